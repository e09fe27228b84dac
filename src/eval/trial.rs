//! What a pass will cost, from a short trial: one chunk through a layer of each kind, a few tokens through one
//! expert, a tile of the output matrix.

use super::budget;
use super::error::EvalError;
use super::feed_forward::FeedForward;
use super::model::Model;
use super::perplexity::PerplexityOptions;
use super::vocabulary;
use crate::io::{Clock, processor_time};
use ndarray::{Array2, Axis};
use std::time::Duration;

/// Time that a part of a trial is repeated for, so that what happens once counts less.
const ENOUGH: Duration = Duration::from_millis(40);
/// Rows of an expert's trial, at most.
const EXPERT_ROWS: usize = 256;

/// Seconds of processor time that so many tokens will take through all layers of a model, and, where
/// they are scored, through the output matrix, where it drafts, through the layer for that. The trial passes `chunk`, the tokens of one chunk.
///
/// # Errors
/// As the pass itself.
pub fn trial(
    model: &Model,
    chunk: &[u32],
    n_tokens: usize,
    options: &PerplexityOptions,
    scored: bool,
    drafted: bool,
) -> Result<f64, EvalError> {
    let (ctx, states) = (chunk.len(), model.embed(chunk)?);
    let mut seconds = of_layers(model, &states, n_tokens, options, drafted)?.iter().sum();
    if scored {
        seconds += n_tokens as f64 / ctx as f64 * scores(model, &states, ctx - 1 - ctx / 2)?;
    }
    Ok(seconds)
}

/// Seconds of processor time that so many tokens will take through attention, and through feed-forward networks, of
/// all layers, one for drafts among them where it is asked for. The trial passes the embedded tokens of one chunk.
///
/// # Errors
/// As the pass itself.
pub(crate) fn of_layers(
    model: &Model,
    states: &Array2<f32>,
    n_tokens: usize,
    options: &PerplexityOptions,
    drafted: bool,
) -> Result<[f64; 2], EvalError> {
    let ctx = states.nrows();
    let chunks = n_tokens as f64 / ctx as f64;
    let mut seconds = [0.0; 2];
    for (layer, count) in model.kinds_of_layers(drafted) {
        let of_chunk = least(|| model.attention_of(layer, states.view(), ctx).map(drop))?;
        let others = match model.feed_forward_of(layer)? {
            FeedForward::Dense(dense) => {
                chunks * least(|| dense.run_in_parts(states.view(), ctx).map(drop))?
            }
            FeedForward::Experts(experts) => {
                let of_all = least(|| experts.run_shared(states.view(), ctx).map(drop))?;
                let batch = budget::batch(model.hparams(), ctx, options.memory) * ctx;
                let batch = batch.min(n_tokens).max(1);
                let (used, n) = (experts.moe.n_used as usize, experts.moe.n_expert as usize);
                let rows = (batch * used / n).max(1);
                let tried = rows.min(EXPERT_ROWS);
                let x = repeated(states, tried);
                let expert = experts.routed.expert(n / 2);
                let of_expert = least(|| expert.run_here(x.view()).map(drop))?;
                let reached = n.min(batch * used) as f64 * n_tokens as f64 / batch as f64;
                chunks * of_all + reached * of_expert * rows as f64 / tried as f64
            }
        };
        seconds[0] += f64::from(count) * chunks * of_chunk;
        seconds[1] += f64::from(count) * others;
    }
    Ok(seconds)
}

/// Seconds of processor time that so many tokens take through the output matrix. The trial begins with some tokens.
///
/// # Errors
/// As the pass itself.
pub(crate) fn trial_of_scores(
    model: &Model,
    tokens: &[u32],
    scored: usize,
) -> Result<f64, EvalError> {
    let at_once = scored.clamp(1, vocabulary::ROWS);
    let seconds = scores(model, &model.embed(tokens)?, at_once)?;
    Ok(scored.div_ceil(at_once) as f64 * seconds)
}

/// Seconds that so many rows take through the output matrix together.
fn scores(model: &Model, states: &Array2<f32>, rows: usize) -> Result<f64, EvalError> {
    let rows = repeated(states, rows);
    let tile = || vocabulary::first_tile(model, rows.view()).map(drop);
    Ok(least(tile)? * vocabulary::tiles(model) as f64)
}

/// Bytes of memory that so many tokens take at most on their way through models that run together, the
/// weights' pages in the system's cache not counted.
pub fn memory_of(models: &[&Model], n_tokens: usize, options: &PerplexityOptions) -> u64 {
    /// Code and tables, buffers that wait, and the panels of the weights of each thread.
    const ANYWAY: u64 = 128 << 20;
    const THREAD: u64 = 16 << 20;
    let ctx = options.ctx;
    let each = |model: &&Model| budget::bytes(model.hparams(), ctx, options.memory, n_tokens);
    let widths = models.iter().map(|model| u64::from(model.hparams().n_embd));
    let waiting = match options.scratch {
        Some(_) => 0,
        None => 4 * n_tokens as u64 * widths.sum::<u64>(),
    };
    let threads = rayon::current_num_threads() as u64;
    let layers = models.iter().map(each).max().unwrap_or(0);
    let output = models.first().map_or(0, |model| vocabulary::bytes(model, models.len()));
    let tables: u64 = models.iter().map(|model| model.source().table_bytes()).sum();
    ANYWAY + threads * THREAD + tables + waiting + layers.max(output)
}

/// As many rows, over and over the same.
fn repeated(states: &Array2<f32>, n: usize) -> Array2<f32> {
    let rows: Vec<usize> = (0..n).map(|i| i % states.nrows()).collect();
    states.select(Axis(0), &rows)
}

/// The least processor time of work that is repeated some times, in seconds.
fn least(mut work: impl FnMut() -> Result<(), EvalError>) -> Result<f64, EvalError> {
    let (mut least, mut spent) = (Duration::MAX, Duration::ZERO);
    while spent < ENOUGH {
        let (found, time) = processor_time(Clock::Process, &mut work);
        found?;
        least = least.min(time);
        // Where time is too short to be told, it need not be tried forever.
        spent += time.max(Duration::from_millis(1));
    }
    Ok(least.as_secs_f64())
}
