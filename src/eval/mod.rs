//! The reference forward pass, streamed layer by layer, and what is measured with it.
//!
//! All chunks of a text pass through a layer before the next layer's weights are read. Weights are
//! decoded a few rows at a time and used at once, so memory follows from the tokens, not from the
//! model. Activations are f32; sums that decide on precision are f64.

mod activations;
mod attention;
mod base;
mod block_sums;
mod budget;
mod buffers;
mod compare;
mod continuations;
mod drafts;
mod error;
mod exact;
mod exponential;
mod feed_forward;
mod gate;
pub(crate) mod gemm;
mod importance;
mod indexer;
mod linear;
mod model;
mod norm;
mod observe;
mod passage;
mod perplexity;
mod probe;
mod rope;
mod router;
mod states;
mod tensor_error;
mod trial;
mod vocabulary;
mod walk;

pub use activations::Activations;
pub use base::{BaseReader, BaseWriter};
pub use compare::{
    Comparison, Distribution, Estimate, Reference, TOP, TokenValues, TopK, compare, comparison_work,
};
pub use continuations::{Asked, Sequences, continuations};
pub use drafts::{Drafts, drafts, drafts_work};
pub use error::EvalError;
pub use exact::{Apart, Exact};
pub use gate::{Check, Limited, Limits, Verdict, looks, verdict};
pub use importance::{Beside, Collector, Squares, collect, importances};
pub use model::Model;
pub use observe::Observer;
pub(crate) use passage::{Half, Passage, Stage};
pub use perplexity::{Paired, Perplexity, PerplexityOptions, perplexity};
pub(crate) use perplexity::{chunk_means, mean};
pub use states::Scratch;
pub use tensor_error::{AS_OUTPUT, TensorErrors};
pub use trial::{memory_of, trial};
pub(crate) use trial::{of_layers, trial_of_scores};
