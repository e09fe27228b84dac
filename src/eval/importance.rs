//! Importance matrices from activations: what llama-imatrix collects, with f32 activations and
//! sums in f64.

use super::error::EvalError;
use super::model::Model;
use super::observe::{Observer, Words, of_layer};
use super::perplexity::PerplexityOptions;
use super::walk::{Walk, identity};
use crate::imatrix::{Entry, Sums};
use crate::monitor::Monitor;
use crate::source::{Source, TensorMeta};
use ndarray::{ArrayView2, Axis};
use std::sync::{Mutex, PoisonError};

/// Collects sums of squares. Made before the model that it observes.
pub struct Collector {
    tensors: Vec<TensorMeta>,
    names: Vec<String>,
    entries: Vec<Mutex<Entry>>,
}

impl Collector {
    /// For the tensors of a source.
    pub fn new(source: &dyn Source) -> Self {
        let tensors = source.tensors().to_vec();
        let entries = tensors.iter().map(|_| Mutex::default()).collect();
        let names = tensors.iter().map(|tensor| tensor.name.clone()).collect();
        Self { tensors, names, entries }
    }

    /// What has been collected.
    pub fn sums(&self, dataset: &str, chunk_count: u32, chunk_size: u32) -> Sums {
        let entries = self.tensors.iter().zip(&self.entries).filter_map(|(tensor, entry)| {
            let entry = entry.lock().unwrap_or_else(PoisonError::into_inner).clone();
            (!entry.counts.is_empty()).then(|| (tensor.name.clone(), entry))
        });
        let datasets = vec![dataset.to_owned()];
        Sums { entries: entries.collect(), datasets, chunk_count, chunk_size }
    }
}

impl Observer for Collector {
    fn product(
        &self,
        tensor: usize,
        matrix: usize,
        x: ArrayView2<f32>,
        _y: ArrayView2<f32>,
    ) -> Result<(), EvalError> {
        let meta = &self.tensors[tensor];
        let columns = meta.n_per_row() as usize;
        let matrices = meta.dims.get(2).map_or(1, |&n| n as usize);
        // Tokens choose their experts; every token passes every head.
        let routed = meta.name.contains("_exps.");
        let mut sums = vec![0.0f64; columns];
        for row in x.axis_iter(Axis(0)) {
            for (sum, &x) in sums.iter_mut().zip(row) {
                *sum += f64::from(x) * f64::from(x);
            }
        }
        let mut entry = self.entries[tensor].lock().unwrap_or_else(PoisonError::into_inner);
        entry.sums.resize(columns * matrices, 0.0);
        entry.counts.resize(if routed { matrices } else { 1 }, 0);
        let own = &mut entry.sums[matrix * columns..][..columns];
        own.iter_mut().zip(sums).for_each(|(a, b)| *a += b);
        if routed || matrix == 0 {
            entry.counts[if routed { matrix } else { 0 }] += x.nrows() as u64;
        }
        Ok(())
    }

    fn seen(&self, layer: u32) -> Vec<u8> {
        let mut bytes = Vec::new();
        for tensor in of_layer(&self.names, layer) {
            let entry = self.entries[tensor].lock().unwrap_or_else(PoisonError::into_inner);
            let lengths = [entry.sums.len() as u64, entry.counts.len() as u64];
            let sums = entry.sums.iter().map(|sum| sum.to_bits());
            let words = lengths.into_iter().chain(sums).chain(entry.counts.iter().copied());
            bytes.extend(words.flat_map(u64::to_le_bytes));
        }
        bytes
    }

    fn take_up(&self, layer: u32, seen: &[u8]) -> Result<(), EvalError> {
        let mut words = Words::new(seen);
        for tensor in of_layer(&self.names, layer) {
            let [sums, counts] = [words.next()?, words.next()?];
            let mut read = |n: u64| (0..n).map(|_| words.next()).collect::<Result<Vec<_>, _>>();
            let sums = read(sums)?.into_iter().map(f64::from_bits).collect();
            let entry = Entry { sums, counts: read(counts)? };
            *self.entries[tensor].lock().unwrap_or_else(PoisonError::into_inner) = entry;
        }
        Ok(())
    }
}

/// Runs a text through the layers of a model that a [`Collector`] observes. Returns the number of
/// chunks.
///
/// The monitor counts tokens times layers.
///
/// # Errors
/// A text too short, weights that cannot be read, results that are not finite.
pub fn collect(
    model: &Model,
    tokens: &[u32],
    options: &PerplexityOptions,
    monitor: &dyn Monitor,
) -> Result<u32, EvalError> {
    let ctx = options.ctx;
    let n_chunks = (tokens.len() / ctx.max(1)).min(options.chunks.unwrap_or(usize::MAX));
    if ctx < 4 || n_chunks == 0 {
        return Err(EvalError::TooShort { found: tokens.len(), ctx });
    }
    let identity = identity(&[model], &tokens[..n_chunks * ctx], options);
    let mut walk = Walk::new(model, tokens, n_chunks, options, identity)?;
    monitor.resume(walk.begin()?);
    for layer in 0..model.hparams().n_layer {
        walk.layer(layer, monitor)?;
    }
    Ok(n_chunks as u32)
}
