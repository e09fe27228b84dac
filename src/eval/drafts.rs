//! What a multi-token-prediction layer foresees: from a token's state and the token after it, the one after
//! that. How likely it finds the text, and how often it drafts what the model itself would have chosen.

use super::error::EvalError;
use super::model::Model;
use super::perplexity::{PerplexityOptions, mean};
use super::vocabulary::{self, Side};
use super::walk::{Walk, identity};
use crate::model::Hparams;
use crate::monitor::Monitor;
use ndarray::Axis;
use serde::Serialize;

/// How good drafts are.
#[derive(Clone, Debug, Serialize)]
pub struct Drafts {
    /// Mean negative log-likelihood of the token after next.
    pub nll: f64,
    /// Its standard error.
    pub error: f64,
    /// The share of drafts that the model would have chosen: those that are accepted where it decodes
    /// greedily.
    pub accepted: f64,
    /// Tokens that were drafted.
    pub tokens: usize,
}

/// Tells the states from those of [`super::perplexity()`], which leaves out some behind the last layer.
const PURPOSE: u64 = 0x6472_6166_7473;

/// The work that [`drafts`] will report to its monitor: tokens times layers, that for prediction and the output
/// matrices counting as one each.
pub fn drafts_work(n_tokens: usize, options: &PerplexityOptions, hparams: &Hparams) -> u64 {
    let tokens = options.n_chunks(n_tokens) * options.ctx;
    tokens as u64 * (u64::from(hparams.n_layer) + 2)
}

/// Lets the first multi-token-prediction layer draft the second half of each chunk.
///
/// The monitor counts tokens times layers.
///
/// # Errors
/// A model without such a layer, a text too short, weights that cannot be read, results that are not finite.
pub fn drafts(
    model: &Model,
    tokens: &[u32],
    options: &PerplexityOptions,
    monitor: &dyn Monitor,
) -> Result<Drafts, EvalError> {
    model.check_drafts()?;
    let (n_chunks, ctx) = (options.checked_chunks(tokens)?, options.ctx);
    let identity = identity(&[model], &tokens[..n_chunks * ctx], options) ^ PURPOSE;
    let mut walk = Walk::new(model, tokens, n_chunks, options, identity)?;
    monitor.resume(walk.begin()?);
    for layer in 0..model.n_layer() {
        walk.layer(layer, monitor)?;
    }
    let (mut nlls, mut accepted, output) = (Vec::new(), 0, model.draft_output());
    walk.draft(model, monitor, |first, drafted| {
        let chunks = (0..drafted.nrows() / (ctx - 1)).map(|chunk| chunk * ctx);
        let scored: Vec<usize> =
            chunks.flat_map(|chunk| chunk + ctx / 2..chunk + ctx - 2).collect();
        for places in scored.chunks(vocabulary::ROWS) {
            let rows: Vec<usize> = places.iter().map(|at| at - at / ctx).collect();
            let drafted = model.draft_norm(drafted.select(Axis(0), &rows).view())?;
            let next: Vec<usize> = places.iter().map(|at| first + at + 1).collect();
            let own = walk.normed_at(&next)?;
            let targets: Vec<u32> = next.iter().map(|at| tokens[at + 1]).collect();
            let own = Side::States(model.output(), own.view());
            let scores =
                vocabulary::score(model.simd(), own, &[(output, drafted.view())], &targets);
            let scores = scores.map_err(|bad| {
                let token = next[bad.row];
                match bad.model {
                    0 => bad.error(model, token),
                    _ => bad.error_of(model, output, token - 1),
                }
            })?;
            let values = scores.models.iter().flatten();
            nlls.extend(values.clone().map(|value| value.nll));
            accepted += values.filter(|value| value.same_top).count();
        }
        monitor.advance((drafted.nrows() / (ctx - 1) * ctx) as u64);
        Ok(())
    })?;
    if nlls.is_empty() {
        return Err(EvalError::NothingToScore);
    }
    let ((nll, error), tokens) = (mean(&nlls), nlls.len());
    Ok(Drafts { nll, error, accepted: accepted as f64 / tokens as f64, tokens })
}
