//! What is asked of a conversion.

use crate::gguf::Value;
use crate::imatrix::Imatrix;
use crate::model::Given;
use crate::recipe::{self, FileType, Recipe};
use crate::simd::Simd;
use std::sync::Arc;

/// The precision that weights pass through on their way to a quantized type.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub enum Intermediate {
    /// BF16, as in a file written by the reference converter with `--outtype bf16`, whose bytes
    /// are then reproduced.
    #[default]
    Bf16,
    /// The exact products of FP8 value and scale.
    F32,
}

/// Which program's output is made.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub enum Mode {
    /// That of llama-quantize: the mix of the file type, tensors in the order of their layers.
    #[default]
    Quantize,
    /// That of llama-quantize `COPY`: every tensor as it is.
    Copy,
    /// That of llama-gguf-split: tensors and metadata as they are, in other files.
    Regroup,
    /// That of convert_hf_to_gguf.py `--outtype`: one type for all matrices, tensors in the order
    /// of the checkpoint.
    Convert,
    /// No program's: each tensor of a checkpoint in the smallest type that keeps its values, once
    /// [`CheckpointModel::keep_exact`](crate::model::CheckpointModel::keep_exact) has been called.
    Lossless,
}

/// What is asked of a conversion.
#[derive(Clone, Debug)]
pub struct Settings {
    /// Which tensor gets which type.
    pub recipe: Arc<Recipe>,
    /// Whether recipe and its hash are written into the metadata, as `requant.recipe` and
    /// `requant.recipe.sha256`.
    pub write_recipe: bool,
    /// Metadata that says how weights were rounded, where that is not as the reference does.
    pub notes: Vec<(String, Value)>,
    /// Whether scales are searched for more widely than the reference does
    /// ([`QuantType::search_rows_with`](crate::quant::QuantType::search_rows_with)).
    pub search: bool,
    /// What is done with it.
    pub mode: Mode,
    /// What is said of the model, whatever a checkpoint's files say.
    pub given: Given,
    /// Whether [`Mode::Convert`] stores what is FP8 in the checkpoint as Q8_0
    /// (convert_hf_to_gguf.py `--fp8-as-q8`).
    pub fp8_as_q8: bool,
    /// Layers that are left out; those behind them move up (llama-quantize `--prune-layers`).
    pub prune_layers: Vec<u32>,
    /// Metadata that is set instead of what the source has (llama-quantize `--override-kv`).
    pub override_kv: Vec<(String, Value)>,
    /// Options on top of the recipe.
    pub options: recipe::Options,
    /// The precision on the way.
    pub intermediate: Intermediate,
    /// GGUF's name of the pre-tokenizer, where it is not to be recognised.
    pub tokenizer_pre: Option<String>,
    /// Threads that read, quantize and write; at least one.
    pub threads: usize,
    /// Weighs the columns, where there is one.
    pub importance: Option<Importance>,
    /// Whether tensors that are quantized already may be quantized again.
    pub allow_requantize: bool,
    /// The instructions to quantize with; they change the speed alone.
    pub simd: Simd,
    /// Whether blocks are looked over after they are made, as llama-quantize does: a scale that
    /// overflowed is then an error.
    pub check: bool,
    /// Whether and where the output is cut into several files.
    pub split: Option<SplitBy>,
    /// Bytes of memory that the run may take; by default a sixteenth of the machine's, at least
    /// 1 GiB. Fewer threads work where they would not fit.
    pub memory: Option<u64>,
}

impl Settings {
    /// One of llama-quantize's mixes and nothing else, on one thread, with the best instructions of this machine.
    pub fn new(file_type: FileType) -> Self {
        Self {
            recipe: Arc::new(Recipe::of(file_type)),
            write_recipe: false,
            notes: Vec::new(),
            search: false,
            mode: Mode::default(),
            given: Given::default(),
            fp8_as_q8: false,
            prune_layers: Vec::new(),
            override_kv: Vec::new(),
            options: recipe::Options::default(),
            intermediate: Intermediate::default(),
            tokenizer_pre: None,
            threads: 1,
            importance: None,
            allow_requantize: false,
            simd: Simd::detect(),
            check: false,
            split: None,
            memory: None,
        }
    }
}

/// Where the output is cut into several files.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum SplitBy {
    /// Where a limit is reached, as llama-gguf-split does.
    Limit {
        /// The limit.
        limit: Limit,
        /// Whether the first file holds metadata alone.
        no_tensor_first: bool,
    },
    /// As the source is, and in its order (llama-quantize `--keep-split`).
    Source,
}

/// How much goes into a file.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Limit {
    /// Tensors; not 0.
    Tensors(u64),
    /// Bytes of tensor data.
    Bytes(u64),
}

/// An importance matrix and the name that the output's metadata gives as its origin.
#[derive(Clone, Debug)]
pub struct Importance {
    /// The matrix.
    pub imatrix: Arc<Imatrix>,
    /// Its file, as named by the user.
    pub file: String,
}
