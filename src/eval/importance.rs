//! Importance matrices from activations: what llama-imatrix collects, with f32 activations and
//! exact sums.

use super::error::EvalError;
use super::exact::Exact;
use super::model::Model;
use super::observe::{Observer, Words, of_layer};
use super::perplexity::PerplexityOptions;
use super::walk::{Walk, identity};
use crate::imatrix::{Entry, Sums};
use crate::monitor::Monitor;
use crate::source::{Source, TensorMeta};
use ndarray::{ArrayView2, Axis};
use std::collections::BTreeMap;
use std::sync::{Mutex, PoisonError};

/// Collects sums of squares. Made before the model that it observes.
pub struct Collector {
    tensors: Vec<TensorMeta>,
    names: Vec<String>,
    entries: Vec<Mutex<Squares>>,
}

/// The squares of a tensor's inputs.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Squares {
    /// Their sums: one a column, matrix after matrix for stacked tensors.
    pub sums: Vec<Exact>,
    /// Tokens that went into each sum: one number, or one for each matrix of experts.
    pub counts: Vec<u64>,
}

impl Squares {
    /// Adds those of another part of a text, if their numbers are the same.
    pub fn add(&mut self, other: &Self) -> bool {
        let lengths = |squares: &Self| (squares.sums.len(), squares.counts.len());
        if lengths(self) != lengths(other) {
            return false;
        }
        self.sums.iter_mut().zip(&other.sums).for_each(|(a, b)| *a += *b);
        self.counts.iter_mut().zip(&other.counts).for_each(|(a, b)| *a += b);
        true
    }
}

/// The importance matrix that squares make, by tensor.
pub fn importances(
    squares: &BTreeMap<String, Squares>,
    datasets: Vec<String>,
    chunk_count: u32,
    chunk_size: u32,
) -> Sums {
    let entry = |squares: &Squares| Entry {
        sums: squares.sums.iter().map(|sum| sum.value()).collect(),
        counts: squares.counts.clone(),
    };
    let entries = squares.iter().map(|(name, squares)| (name.clone(), entry(squares)));
    Sums { entries: entries.collect(), datasets, chunk_count, chunk_size }
}

impl Collector {
    /// For the tensors of a source.
    pub fn new(source: &dyn Source) -> Self {
        let tensors = source.tensors().to_vec();
        let entries = tensors.iter().map(|_| Mutex::default()).collect();
        let names = tensors.iter().map(|tensor| tensor.name.clone()).collect();
        Self { tensors, names, entries }
    }

    /// What has been collected, by tensor.
    pub fn finish(self) -> BTreeMap<String, Squares> {
        let all = self.names.into_iter().zip(self.entries);
        all.filter_map(|(name, squares)| {
            let squares = squares.into_inner().unwrap_or_else(PoisonError::into_inner);
            (!squares.counts.is_empty()).then_some((name, squares))
        })
        .collect()
    }
}

impl Collector {
    /// Adds the squares of inputs of a matrix.
    fn add(&self, tensor: usize, matrix: usize, x: ArrayView2<f32>) {
        let meta = &self.tensors[tensor];
        let columns = meta.n_per_row() as usize;
        let matrices = meta.dims.get(2).map_or(1, |&n| n as usize);
        // Tokens choose their experts; every token passes every head.
        let routed = meta.name.contains("_exps.");
        let mut sums = vec![Exact::default(); columns];
        for row in x.axis_iter(Axis(0)) {
            // Squares of f32 are exact in f64.
            sums.iter_mut().zip(row).for_each(|(sum, &x)| *sum += f64::from(x) * f64::from(x));
        }
        let mut entry = self.entries[tensor].lock().unwrap_or_else(PoisonError::into_inner);
        entry.sums.resize(columns * matrices, Exact::default());
        entry.counts.resize(if routed { matrices } else { 1 }, 0);
        let own = &mut entry.sums[matrix * columns..][..columns];
        own.iter_mut().zip(sums).for_each(|(a, b)| *a += b);
        if routed || matrix == 0 {
            entry.counts[if routed { matrix } else { 0 }] += x.nrows() as u64;
        }
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
        self.add(tensor, matrix, x);
        Ok(())
    }

    fn seen(&self, layer: u32) -> Vec<u8> {
        let mut bytes = Vec::new();
        for tensor in of_layer(&self.names, layer) {
            let entry = self.entries[tensor].lock().unwrap_or_else(PoisonError::into_inner);
            let lengths = [entry.sums.len() as u64, entry.counts.len() as u64];
            let sums = entry.sums.iter().flat_map(|sum| sum.words());
            let words = lengths.into_iter().chain(sums).chain(entry.counts.iter().copied());
            bytes.extend(words.flat_map(u64::to_le_bytes));
        }
        bytes
    }

    fn take_up(&self, layer: u32, seen: &[u8]) -> Result<(), EvalError> {
        let mut words = Words::new(seen);
        for tensor in of_layer(&self.names, layer) {
            let [sums, counts] = [words.next()?, words.next()?];
            let sum = |words: &mut Words| Ok(Exact::from_words([words.next()?, words.next()?]));
            let sums = (0..sums).map(|_| sum(&mut words)).collect::<Result<_, EvalError>>()?;
            let counts = (0..counts).map(|_| words.next()).collect::<Result<_, _>>()?;
            let entry = Squares { sums, counts };
            *self.entries[tensor].lock().unwrap_or_else(PoisonError::into_inner) = entry;
        }
        Ok(())
    }
}

/// What is collected of beside the layers that every token passes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Beside {
    /// The output matrix, where it is not the token embedding.
    pub output: bool,
    /// The first layer for multi-token prediction, and its own output matrix.
    pub prediction: bool,
}

/// Runs a text through the layers of a model that a [`Collector`] observes. With `output`, the number of the
/// output matrix, the collector sees what goes into that, with `prediction` the layer for multi-token prediction,
/// which gets what it gets when the model drafts: of each token but a chunk's last, its state and the token
/// after it.
///
/// The monitor counts tokens times layers.
///
/// # Errors
/// A model without that layer, a text too short, weights that cannot be read, results that are not finite.
pub fn collect(
    model: &Model,
    collector: &Collector,
    output: Option<usize>,
    prediction: bool,
    tokens: &[u32],
    options: &PerplexityOptions,
    monitor: &dyn Monitor,
) -> Result<(), EvalError> {
    if prediction {
        model.check_drafts()?;
    }
    let n_chunks = options.checked_chunks(tokens)?;
    let identity = identity(&[model], &tokens[..n_chunks * options.ctx], options);
    let mut walk = Walk::new(model, tokens, n_chunks, options, identity)?;
    monitor.resume(walk.begin()?);
    for layer in 0..model.hparams().n_layer {
        walk.layer(layer, monitor)?;
    }
    if prediction {
        let head = model.own_draft_output();
        walk.draft(model, monitor, |_, drafted| {
            if let Some(head) = head {
                collector.add(head, 0, model.draft_norm(drafted)?.view());
            }
            Ok(())
        })?;
    }
    match output {
        Some(output) => walk.last(|x| collector.add(output, 0, x)),
        None => Ok(()),
    }
}
