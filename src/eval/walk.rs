//! A text on its way through a model: all chunks pass a layer before the next one's weights are
//! read.

use super::attention::{Chunks, QUERIES};
use super::error::EvalError;
use super::exact::Apart;
use super::model::Model;
use super::passage::{Half, Stage};
use super::perplexity::PerplexityOptions;
use super::states::States;
use super::{budget, buffers};
use crate::monitor::Monitor;
use ndarray::{Array2, ArrayView1, ArrayView2, Axis, s};
use std::borrow::Cow;
use std::ops::Range;
use xxhash_rust::xxh3::Xxh3;

/// The states of all chunks of a text between two layers.
///
/// Scored rows are numbered over all chunks: the second half of each, but for the last.
pub(super) struct Walk<'m, 'a> {
    pub model: &'m Model<'a>,
    ctx: usize,
    memory: usize,
    bos: Option<u32>,
    /// Tokens of each chunk that need not pass the last layer.
    unasked: usize,
    /// Tokens of a batch: chunks that pass a layer together. The last may have fewer.
    n_batch: usize,
    tokens: Vec<u32>,
    states: States,
}

impl<'m, 'a> Walk<'m, 'a> {
    /// Opens the states of the first `n_chunks` chunks of a text, with what was left of an earlier
    /// walk of the same [`identity`].
    pub fn new(
        model: &'m Model<'a>,
        tokens: &[u32],
        n_chunks: usize,
        options: &PerplexityOptions,
        identity: u64,
    ) -> Result<Self, EvalError> {
        buffers::keep_for(options.memory);
        let ctx = options.ctx;
        let n_batch = ctx * budget::batch(model.hparams(), ctx, options.memory);
        let tokens = tokens[..n_chunks * ctx].to_vec();
        let rows: Vec<usize> = tokens.chunks(n_batch).map(<[u32]>::len).collect();
        let columns = model.hparams().n_embd as usize;
        let observed = model.observer().is_some();
        let states = States::new(&rows, columns, options.scratch.as_ref(), identity, observed)?;
        let PerplexityOptions { memory, bos, .. } = *options;
        Ok(Self { model, ctx, memory, bos, unasked: 0, n_batch, tokens, states })
    }

    /// Only scored rows will be right after the last layer, and they have the same bits as when all
    /// pass. Who watches its products sees all.
    pub fn only_scored(mut self) -> Self {
        if self.model.observer().is_none() {
            self.unasked = self.ctx / 2 / QUERIES * QUERIES;
        }
        self
    }

    /// Layers from the first on whose error was noted before the walk was stopped.
    pub fn noted(&self) -> u32 {
        (0..).take_while(|&layer| self.states.note(layer).is_some()).count() as u32
    }

    /// Has chunks begin anew that have passed more layers than this.
    pub fn restart_beyond(&mut self, layers: u32) -> Result<(), EvalError> {
        self.states.restart_beyond(layers)
    }

    /// What goes into the model: the text, with BOS at the beginning of each chunk where it belongs there.
    pub fn inputs(&self) -> Vec<u32> {
        let mut inputs = self.tokens.clone();
        if let Some(bos) = self.bos {
            inputs.iter_mut().step_by(self.ctx).for_each(|token| *token = bos);
        }
        inputs
    }

    /// Embeds the chunks that begin anew, and tells the observer what it saw before. Returns the
    /// work that was done before, in tokens times layers.
    pub fn begin(&mut self) -> Result<u64, EvalError> {
        if let Some(observer) = self.model.observer() {
            self.states.each_seen(|layer, seen| observer.take_up(layer, seen))?;
        }
        let done = self.states.work();
        for (batch, tokens) in self.tokens.chunks(self.n_batch).enumerate() {
            if self.states.passed(batch).is_none() {
                let mut input = tokens.to_vec();
                if let Some(bos) = self.bos {
                    input.iter_mut().step_by(self.ctx).for_each(|token| *token = bos);
                }
                let states = self.model.embed(&input).map_err(|e| e.after(batch * self.n_batch))?;
                self.states.put(batch, 0, states, None)?;
            }
        }
        Ok(done)
    }

    /// Passes all chunks through a layer, as far as they have not passed it.
    pub fn layer(&mut self, layer: u32, monitor: &dyn Monitor) -> Result<(), EvalError> {
        let last = layer + 1 == self.model.hparams().n_layer;
        let unasked = if last { self.unasked } else { 0 };
        let (chunks, memory) = (Chunks { ctx: self.ctx, first: unasked }, self.memory);
        self.step(layer, monitor, |model, states| {
            let mut halves = Half::BOTH.into_iter();
            halves.try_for_each(|half| model.half(layer, half, states, chunks, memory))
        })?;
        // Not before: the next batch reads them again.
        self.model.release(Some(layer));
        Ok(())
    }

    /// Passes all chunks through a half of a layer, as far as they have not passed it. Walks are in halves or in
    /// layers, whose numbers count other things.
    pub fn half(&mut self, layer: u32, half: Half, monitor: &dyn Monitor) -> Result<(), EvalError> {
        let (chunks, memory) = (Chunks { ctx: self.ctx, first: 0 }, self.memory);
        self.step(half.number(layer), monitor, |model, states| {
            model.half(layer, half, states, chunks, memory)
        })?;
        if half == Half::FeedForward {
            self.model.release(Some(layer));
        }
        Ok(())
    }

    fn step(
        &mut self,
        step: u32,
        monitor: &dyn Monitor,
        pass: impl Fn(&Model, &mut Array2<f32>) -> Result<(), EvalError>,
    ) -> Result<(), EvalError> {
        for (batch, tokens) in self.tokens.chunks(self.n_batch).enumerate() {
            if self.states.passed(batch).is_some_and(|passed| passed > step) {
                continue;
            }
            let mut states = self.states.take(batch)?;
            pass(self.model, &mut states).map_err(|e| e.after(batch * self.n_batch))?;
            let seen = match self.states.keeps_seen() {
                true => self.model.observer().map(|observer| observer.seen(step)),
                false => None,
            };
            self.states.put(batch, step + 1, states, seen.as_deref())?;
            monitor.advance(tokens.len() as u64);
            if monitor.cancelled() {
                return Err(EvalError::Cancelled);
            }
        }
        Ok(())
    }

    /// Takes over the states that another walk of the same text has after so many layers.
    pub fn take_over(&mut self, other: &Self, layers: u32) -> Result<(), EvalError> {
        let columns = self.model.hparams().n_embd as usize;
        for (batch, tokens) in self.tokens.chunks(self.n_batch).enumerate() {
            let states = other.states.rows(batch, 0..tokens.len())?.into_owned();
            let states = Array2::from_shape_vec((tokens.len(), columns), states);
            self.states.put(batch, layers, states.expect("whole rows"), None)?;
        }
        Ok(())
    }

    /// Shows the observer of another model what all chunks give the matrices of a stage: the states stay as they
    /// are.
    pub fn look(
        &self,
        other: &Model,
        layer: u32,
        stage: Stage,
        monitor: &dyn Monitor,
    ) -> Result<(), EvalError> {
        let columns = self.model.hparams().n_embd as usize;
        for (batch, tokens) in self.tokens.chunks(self.n_batch).enumerate() {
            let states = self.states.rows(batch, 0..tokens.len())?;
            let states = ArrayView2::from_shape((tokens.len(), columns), &states);
            let states = states.expect("whole rows");
            let seen = other.look(layer, stage, states, self.ctx, self.memory);
            seen.map_err(|e| e.after(batch * self.n_batch))?;
            if monitor.cancelled() {
                return Err(EvalError::Cancelled);
            }
        }
        Ok(())
    }

    /// Has the first layer for multi-token prediction of a model draft, a batch at a time: hands on the place
    /// of the batch in the text, and the states behind that layer of all tokens but each chunk's last, which
    /// has none after it. The states of the walk stay as they are.
    pub fn draft(
        &self,
        other: &Model,
        monitor: &dyn Monitor,
        mut see: impl FnMut(usize, ArrayView2<f32>) -> Result<(), EvalError>,
    ) -> Result<(), EvalError> {
        let (ctx, n, columns) = (self.ctx, self.ctx - 1, other.hparams().n_embd as usize);
        for (batch, tokens) in self.tokens.chunks(self.n_batch).enumerate() {
            let first = batch * self.n_batch;
            let mut drafted = Array2::zeros((tokens.len() / ctx * n, columns));
            let chunks = tokens.chunks(ctx).zip(drafted.axis_chunks_iter_mut(Axis(0), n));
            for (i, (chunk, mut drafted)) in chunks.enumerate() {
                let at = first + i * ctx;
                let states = self.rows(at..at + n)?;
                let states = ArrayView2::from_shape((n, columns), &states).expect("whole rows");
                let normed = other.output_norm(states)?;
                let input = other.draft_input(&chunk[1..], normed.view());
                drafted.assign(&input.map_err(|e| e.after(at))?);
            }
            let passed = other.layer(other.n_layer(), &mut drafted, n, self.memory);
            passed.map_err(|e| e.placed(&|token| first + token / n * ctx + token % n))?;
            see(first, drafted.view())?;
            monitor.advance(tokens.len() as u64);
            if monitor.cancelled() {
                return Err(EvalError::Cancelled);
            }
        }
        Ok(())
    }

    /// All tokens, normalised for the output matrix, a batch at a time.
    pub fn last(&self, mut see: impl FnMut(ArrayView2<f32>)) -> Result<(), EvalError> {
        let columns = self.model.hparams().n_embd as usize;
        for (batch, tokens) in self.tokens.chunks(self.n_batch).enumerate() {
            let states = self.states.rows(batch, 0..tokens.len())?;
            let states = ArrayView2::from_shape((tokens.len(), columns), &states);
            see(self.model.output_norm(states.expect("whole rows"))?.view());
        }
        Ok(())
    }

    /// Rows of a chunk that are scored.
    fn per_chunk(&self) -> usize {
        self.ctx - 1 - self.ctx / 2
    }

    /// All scored rows, so many at a time.
    pub fn groups(&self, rows: usize) -> impl Iterator<Item = Range<usize>> + use<> {
        let n = self.tokens.len() / self.ctx * self.per_chunk();
        (0..n).step_by(rows).map(move |first| first..n.min(first + rows))
    }

    /// The place of a scored row in the text.
    pub fn place(&self, row: usize) -> usize {
        row / self.per_chunk() * self.ctx + self.ctx / 2 + row % self.per_chunk()
    }

    /// The tokens that scored rows should predict.
    pub fn targets(&self, rows: Range<usize>) -> Vec<u32> {
        rows.map(|row| self.tokens[self.place(row) + 1]).collect()
    }

    /// Tokens of the chunks that end with these scored rows.
    pub fn tokens_of(&self, rows: Range<usize>) -> u64 {
        let chunks = rows.end / self.per_chunk() - rows.start / self.per_chunk();
        (chunks * self.ctx) as u64
    }

    /// Scored rows, normalised for the output matrix.
    pub fn normed(&self, rows: Range<usize>) -> Result<Array2<f32>, EvalError> {
        let columns = self.model.hparams().n_embd as usize;
        let mut all = Array2::zeros((rows.len(), columns));
        let mut at = rows.start;
        while at < rows.end {
            let left = self.per_chunk() - at % self.per_chunk();
            let end = rows.end.min(at + left);
            let place = self.place(at);
            let states = self.rows(place..place + end - at)?;
            let states = ArrayView2::from_shape((end - at, columns), &states).expect("whole rows");
            let part = s![at - rows.start..end - rows.start, ..];
            all.slice_mut(part).assign(&self.model.output_norm(states)?);
            at = end;
        }
        Ok(all)
    }

    /// The states of tokens at these places, normalised for the output matrix.
    pub fn normed_at(&self, places: &[usize]) -> Result<Array2<f32>, EvalError> {
        let mut all = Array2::zeros((places.len(), self.model.hparams().n_embd as usize));
        for (mut row, &place) in all.rows_mut().into_iter().zip(places) {
            row.assign(&ArrayView1::from(&*self.rows(place..place + 1)?));
        }
        self.model.output_norm(all.view())
    }

    /// States of tokens that one batch holds.
    fn rows(&self, tokens: Range<usize>) -> Result<Cow<'_, [f32]>, EvalError> {
        let first = tokens.start % self.n_batch;
        self.states.rows(tokens.start / self.n_batch, first..first + tokens.len())
    }

    /// How far all states are from the reference's, after a layer that both have passed. `None` where the
    /// states have other widths.
    pub fn error(&mut self, reference: &Self, layer: u32) -> Result<Option<Apart>, EvalError> {
        if let Some(error) = self.states.note(layer) {
            return Ok(Some(error));
        }
        if self.model.hparams().n_embd != reference.model.hparams().n_embd {
            return Ok(None);
        }
        let mut error = Apart::default();
        let columns = self.model.hparams().n_embd as usize;
        for chunk in (0..self.tokens.len()).step_by(self.ctx) {
            let [a, b] = [reference, &*self].map(|walk| walk.rows(chunk..chunk + walk.ctx));
            let (a, b) = (a?, b?);
            a.chunks(columns).zip(b.chunks(columns)).for_each(|(a, b)| error.add(a, b));
        }
        self.states.set_note(layer, error)?;
        Ok(Some(error))
    }
}

impl Drop for Walk<'_, '_> {
    fn drop(&mut self) {
        buffers::release();
        self.model.release(None);
    }
}

/// What tells one evaluation from another: models, text and how it is cut. Models that run together
/// have the same one, to which each adds its number.
pub(super) fn identity(models: &[&Model], tokens: &[u32], options: &PerplexityOptions) -> u64 {
    let mut hash = Xxh3::new();
    hash.update(env!("CARGO_PKG_VERSION").as_bytes());
    for model in models {
        let ways = [model.observer().is_some(), model.keeps_compressed()];
        hash.update(&ways.map(u8::from));
        hash.update(&[model.activations() as u8]);
        hash.update(model.simd().name().as_bytes());
        for file in model.source().files() {
            hash.update(file.path.as_os_str().as_encoded_bytes());
            hash.update(&file.size.to_le_bytes());
            hash.update(file.version.as_bytes());
        }
    }
    tokens.iter().for_each(|token| hash.update(&token.to_le_bytes()));
    // Where chunks are cut into batches follows from the memory.
    let numbers = [options.ctx, options.memory, options.bos.map_or(0, |bos| bos as usize + 1)];
    numbers.iter().for_each(|n| hash.update(&n.to_le_bytes()));
    hash.digest()
}
