//! A text on its way through a model: all chunks pass a layer before the next one's weights are
//! read.

use super::budget;
use super::error::EvalError;
use super::model::Model;
use super::perplexity::PerplexityOptions;
use super::states::States;
use crate::monitor::Monitor;
use ndarray::Array2;
use ndarray::ArrayView2;
use std::borrow::Cow;
use std::ops::Range;
use xxhash_rust::xxh3::Xxh3;

/// The states of all chunks of a text between two layers.
pub(super) struct Walk<'m, 'a> {
    pub model: &'m Model<'a>,
    ctx: usize,
    memory: usize,
    /// Tokens of a batch: chunks that pass a layer together. The last may have fewer.
    n_batch: usize,
    tokens: Vec<u32>,
    states: States,
}

impl<'m, 'a> Walk<'m, 'a> {
    /// Embeds the first `n_chunks` chunks of a text, or takes up what was left of an earlier walk.
    pub fn new(
        model: &'m Model<'a>,
        tokens: &[u32],
        n_chunks: usize,
        options: &PerplexityOptions,
    ) -> Result<Self, EvalError> {
        let ctx = options.ctx;
        let n_batch = ctx * budget::batch(model.hparams(), ctx, options.memory);
        let tokens = tokens[..n_chunks * ctx].to_vec();
        let rows: Vec<usize> = tokens.chunks(n_batch).map(<[u32]>::len).collect();
        let columns = model.hparams().n_embd as usize;
        let identity = identity(model, &tokens, n_batch, options);
        // What an observer has seen is not kept, so it has to see everything again.
        let keep = !model.is_observed();
        let states = States::new(&rows, columns, options, keep, identity)?;
        let mut walk = Self { model, ctx, memory: options.memory, n_batch, tokens, states };
        for (batch, tokens) in walk.tokens.chunks(n_batch).enumerate() {
            if walk.states.passed(batch).is_none() {
                let mut input = tokens.to_vec();
                if let Some(bos) = options.bos {
                    input.iter_mut().step_by(ctx).for_each(|token| *token = bos);
                }
                walk.states.put(batch, 0, model.embed(&input)?)?;
            }
        }
        Ok(walk)
    }

    /// Passes all chunks through a layer, as far as they have not passed it.
    pub fn layer(&mut self, layer: u32, monitor: &dyn Monitor) -> Result<(), EvalError> {
        for (batch, tokens) in self.tokens.chunks(self.n_batch).enumerate() {
            if self.states.passed(batch).is_none_or(|passed| passed <= layer) {
                let mut states = self.states.take(batch)?;
                let passed = self.model.layer(layer, &mut states, self.ctx, self.memory);
                passed.map_err(|e| e.after(batch * self.n_batch))?;
                self.states.put(batch, layer + 1, states)?;
            }
            monitor.advance(tokens.len() as u64);
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

    /// Some rows of a chunk.
    fn chunk(&self, chunk: usize, rows: Range<usize>) -> Result<Cow<'_, [f32]>, EvalError> {
        let first = chunk * self.ctx;
        let (batch, first) = (first / self.n_batch, first % self.n_batch);
        self.states.rows(batch, first + rows.start..first + rows.end)
    }

    /// The scored rows of a chunk, normalised for the output matrix, the tokens that they should
    /// predict, and the place of the first of them in the text.
    pub fn rows(&self, chunk: usize) -> Result<(Array2<f32>, Vec<u32>, usize), EvalError> {
        let scored = Self::scored(self.ctx);
        let first = chunk * self.ctx + scored.start;
        let targets = self.tokens[first + 1..][..scored.len()].to_vec();
        let states = self.chunk(chunk, scored)?;
        let shape = (targets.len(), self.model.hparams().n_embd as usize);
        let states = ArrayView2::from_shape(shape, &states).expect("whole rows");
        Ok((self.model.output_norm(states)?, targets, first))
    }

    /// Norm of the difference of all states, relative to the reference's, after a layer that both
    /// have passed. `None` where the states have other widths.
    pub fn error(&mut self, reference: &Self, layer: u32) -> Result<Option<f64>, EvalError> {
        if let Some(error) = self.states.note(layer) {
            return Ok(Some(error));
        }
        if self.model.hparams().n_embd != reference.model.hparams().n_embd {
            return Ok(None);
        }
        let (mut apart, mut norm) = (0.0, 0.0);
        for chunk in 0..self.tokens.len() / self.ctx {
            let rows = [reference, self].map(|walk| walk.chunk(chunk, 0..walk.ctx));
            let [a, b] = rows;
            for (&a, &b) in a?.iter().zip(b?.iter()) {
                apart += f64::from(a - b).powi(2);
                norm += f64::from(a).powi(2);
            }
        }
        let error = (apart / norm).sqrt();
        self.states.set_note(layer, error)?;
        Ok(Some(error))
    }

    /// Removes what was kept for the case that the walk is stopped.
    pub fn finish(self) {
        self.states.remove();
    }
}

/// What tells one walk from another.
fn identity(model: &Model, tokens: &[u32], n_batch: usize, options: &PerplexityOptions) -> u64 {
    let mut hash = Xxh3::new();
    hash.update(env!("CARGO_PKG_VERSION").as_bytes());
    for file in model.source().files() {
        hash.update(file.path.as_os_str().as_encoded_bytes());
        hash.update(&file.size.to_le_bytes());
        hash.update(file.version.as_bytes());
    }
    tokens.iter().for_each(|token| hash.update(&token.to_le_bytes()));
    let numbers = [options.ctx, n_batch, options.bos.map_or(0, |bos| bos as usize + 1)];
    numbers.iter().for_each(|n| hash.update(&n.to_le_bytes()));
    hash.digest()
}
