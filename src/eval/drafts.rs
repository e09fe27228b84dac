//! What a multi-token-prediction layer foresees: from a token's state and the token after it, the one after
//! that. How likely it finds the text, and how often it drafts what the model itself would have chosen.

use super::error::EvalError;
use super::model::Model;
use super::perplexity::{PerplexityOptions, mean};
use crate::monitor::Monitor;
use ndarray::{ArrayView2, Axis, s};
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

/// Lets the first multi-token-prediction layer draft the second half of each chunk. All states are in
/// memory. The monitor counts tokens times layers.
///
/// # Errors
/// A model without such a layer, a text too short, weights that cannot be read, results that are not finite.
pub fn drafts(
    model: &Model,
    tokens: &[u32],
    options: &PerplexityOptions,
    monitor: &dyn Monitor,
) -> Result<Drafts, EvalError> {
    let (n_chunks, ctx, n_layer) = (options.checked_chunks(tokens)?, options.ctx, model.n_layer());
    let tokens = &tokens[..n_chunks * ctx];
    let mut seen = tokens.to_vec();
    if let Some(bos) = options.bos {
        seen.iter_mut().step_by(ctx).for_each(|token| *token = bos);
    }
    monitor.expect(tokens.len() as u64 * (u64::from(n_layer) + 2));
    let mut states = model.embed(&seen)?;
    for layer in 0..n_layer {
        if monitor.cancelled() {
            return Err(EvalError::Cancelled);
        }
        model.layer(layer, &mut states, ctx, options.memory)?;
        monitor.advance(tokens.len() as u64);
    }
    let normed = model.output_norm(states.view())?;
    // The last token of a chunk has none behind it; nothing before it sees what is there instead.
    let next = |i: usize| if i % ctx + 1 < ctx { tokens[i + 1] } else { tokens[i] };
    let next: Vec<u32> = (0..tokens.len()).map(next).collect();
    let mut drafted = model.draft_input(&next, normed.view())?;
    model.layer(n_layer, &mut drafted, ctx, options.memory)?;
    monitor.advance(tokens.len() as u64);
    let (first, mut nlls, mut accepted) = (ctx / 2, Vec::new(), 0);
    for (chunk, of_chunk) in tokens.chunks_exact(ctx).enumerate() {
        let rows = |from: usize, to: usize| s![chunk * ctx + from..chunk * ctx + to, ..];
        let own = model.logits(normed.slice(rows(first + 1, ctx - 1)))?;
        let drafts = model.draft_logits(drafted.slice(rows(first, ctx - 2)))?;
        nlls.extend(surprises(drafts.view(), &of_chunk[first + 2..]));
        accepted += choices(own.view()).zip(choices(drafts.view())).filter(|(a, b)| a == b).count();
        monitor.advance(ctx as u64);
    }
    let (nll, error) = mean(&nlls);
    let n = nlls.len();
    Ok(Drafts { nll, error, accepted: accepted as f64 / n.max(1) as f64, tokens: n })
}

/// The negative log-likelihood of a token for each row of logits.
fn surprises(logits: ArrayView2<f32>, tokens: &[u32]) -> Vec<f64> {
    let rows = logits.axis_iter(Axis(0)).zip(tokens);
    rows.map(|(row, &token)| {
        let row = row.to_slice().expect("rows are contiguous");
        let most = row.iter().copied().fold(f32::NEG_INFINITY, f32::max);
        let sum: f64 = row.iter().map(|&x| f64::from(x - most).exp()).sum();
        sum.ln() - f64::from(row[token as usize] - most)
    })
    .collect()
}

/// The first of the most likely tokens of each row.
fn choices(logits: ArrayView2<'_, f32>) -> impl Iterator<Item = usize> {
    logits.into_outer_iter().map(|row| {
        let better = |best: usize, (i, x): (usize, &f32)| if *x > row[best] { i } else { best };
        row.iter().enumerate().fold(0, better)
    })
}
