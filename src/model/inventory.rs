//! Which tensors a model has, of which shapes, and what they are made of in a checkpoint: stated once,
//! for whoever writes, reads, runs or weighs them.

use super::arch::{Arch, Names};
use super::hparams::Hparams;
use crate::tensor::{Kind, Part, TensorName};

/// A tensor that a model has.
#[derive(Clone, Debug)]
pub struct TensorSpec {
    /// What it is.
    pub name: TensorName,
    /// Extents, innermost first.
    pub dims: Vec<u64>,
    /// Whether the model does without.
    pub optional: bool,
    /// What it is made of.
    pub(super) from: From,
}

/// How a GGUF tensor is made of checkpoint tensors, by name.
#[derive(Clone, Debug)]
pub(super) enum From {
    /// The tensor as it is.
    Whole(String),
    /// One tensor per matrix: `{prefix}{index}{suffix}`.
    Stack { prefix: String, suffix: String },
    /// Of every `head_rows` rows, those from `first` on.
    HeadRows { from: String, head_rows: u64, first: u64 },
    /// Of every `head_rows` rows the leading ones, each head transposed.
    HeadsTransposed { from: String, head_rows: u64 },
    /// Of every `head_rows` rows (or elements of a bias), those of the second half each behind
    /// their partner of the first (`LlamaModel.permute`).
    Rotated { from: String, head_rows: u64 },
    /// Values that follow from the configuration.
    Computed(Vec<f32>),
}

impl TensorSpec {
    pub(super) fn new(name: TensorName, dims: &[u64], from: From) -> Self {
        Self { name, dims: dims.to_vec(), optional: false, from }
    }
}

/// The tensors of a layer, as they are listed.
pub(super) struct Layer {
    number: u32,
    names: &'static Names,
    pub specs: Vec<TensorSpec>,
}

impl Layer {
    pub fn new(arch: Arch, number: u32) -> Self {
        Self { number, names: arch.row().names, specs: Vec::new() }
    }

    /// A tensor's name in the checkpoint.
    pub fn hf(&self, name: &str) -> String {
        format!("{}{}.{name}", self.names.layers, self.number)
    }

    /// Adds a tensor that is made in some way.
    pub fn add(&mut self, kind: Kind, part: Part, dims: &[u64], from: From) {
        let name = TensorName { layer: Some(self.number), kind, part };
        self.specs.push(TensorSpec::new(name, dims, from));
    }

    /// Adds weights that are `{from}.weight` in the checkpoint.
    pub fn weight(&mut self, kind: Kind, from: &str, dims: &[u64]) {
        let from = From::Whole(self.hf(&format!("{from}.weight")));
        self.add(kind, Part::Weight, dims, from);
    }

    /// Adds a bias that is `{from}.bias` in the checkpoint.
    pub fn bias(&mut self, kind: Kind, from: &str, n: u64) {
        let from = From::Whole(self.hf(&format!("{from}.bias")));
        self.add(kind, Part::Bias, &[n], from);
    }
}

impl Hparams {
    /// The tensors outside of the layers, an output matrix of its own included, which a tied model does
    /// without.
    pub fn outer_tensors(&self) -> Vec<TensorSpec> {
        let [embd, vocab] = [self.n_embd, self.n_vocab].map(u64::from);
        let whole = |kind, from: &str, dims: &[u64]| {
            TensorSpec::new(TensorName::weight(None, kind), dims, From::Whole(from.to_owned()))
        };
        let names = self.arch.row().names;
        vec![
            whole(Kind::TokenEmbd, names.embedding, &[embd, vocab]),
            whole(Kind::OutputNorm, names.output_norm, &[embd]),
            whole(Kind::Output, names.output, &[embd, vocab]),
        ]
    }

    /// The tensors of a layer.
    pub fn layer_tensors(&self, layer: u32) -> Vec<TensorSpec> {
        (self.arch.row().layer)(self, layer)
    }
}
