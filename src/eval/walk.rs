//! A text on its way through a model: all chunks pass a layer before the next one's weights are
//! read.

use super::budget;
use super::error::EvalError;
use super::model::Model;
use super::perplexity::PerplexityOptions;
use crate::monitor::Monitor;
use ndarray::{Array2, s};
use std::ops::Range;

/// The states of all chunks of a text between two layers.
pub(super) struct Walk<'m, 'a> {
    pub model: &'m Model<'a>,
    ctx: usize,
    memory: usize,
    pub batches: Vec<Batch>,
}

/// Chunks that pass a layer together.
pub(super) struct Batch {
    /// The first token's place in the text.
    pub first: usize,
    pub tokens: Vec<u32>,
    pub states: Array2<f32>,
}

impl<'m, 'a> Walk<'m, 'a> {
    /// Embeds the first `n_chunks` chunks of a text.
    pub fn new(
        model: &'m Model<'a>,
        tokens: &[u32],
        n_chunks: usize,
        options: &PerplexityOptions,
    ) -> Result<Self, EvalError> {
        let ctx = options.ctx;
        let n_batch = ctx * budget::batch(model.hparams(), ctx, options.memory);
        let mut batches = Vec::new();
        for (i, batch) in tokens[..n_chunks * ctx].chunks(n_batch).enumerate() {
            let mut input = batch.to_vec();
            if let Some(bos) = options.bos {
                input.iter_mut().step_by(ctx).for_each(|token| *token = bos);
            }
            let states = model.embed(&input)?;
            batches.push(Batch { first: i * n_batch, tokens: batch.to_vec(), states });
        }
        Ok(Self { model, ctx, memory: options.memory, batches })
    }

    /// Passes all chunks through a layer.
    pub fn layer(&mut self, layer: u32, monitor: &dyn Monitor) -> Result<(), EvalError> {
        for batch in &mut self.batches {
            let passed = self.model.layer(layer, &mut batch.states, self.ctx, self.memory);
            passed.map_err(|e| e.after(batch.first))?;
            monitor.advance(batch.tokens.len() as u64);
            if monitor.cancelled() {
                return Err(EvalError::Cancelled);
            }
        }
        Ok(())
    }

    /// Positions of a chunk whose next token is scored: the second half, but for the last.
    pub fn scored(ctx: usize) -> Range<usize> {
        ctx / 2..ctx - 1
    }

    /// The scored rows of a chunk, normalised for the output matrix, the tokens that they should
    /// predict, and the place of the first of them in the text.
    pub fn rows(&self, chunk: usize) -> Result<(Array2<f32>, Vec<u32>, usize), EvalError> {
        let mut chunk = chunk;
        let batch = self
            .batches
            .iter()
            .find(|batch| {
                let n = batch.tokens.len() / self.ctx;
                let here = chunk < n;
                if !here {
                    chunk -= n;
                }
                here
            })
            .expect("a chunk of the text");
        let scored = Self::scored(self.ctx);
        let rows = chunk * self.ctx + scored.start..chunk * self.ctx + scored.end;
        let first = batch.first + rows.start;
        let targets = batch.tokens[rows.start + 1..=rows.end].to_vec();
        Ok((self.model.output_norm(batch.states.slice(s![rows, ..]))?, targets, first))
    }
}
