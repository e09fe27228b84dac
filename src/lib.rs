//! Converts DeepSeek-R1 family checkpoints to GGUF in one streaming pass with bounded memory,
//! and measures what the quantization costs.
//!
//! The rooms, each knowing only those after it: `cli` (the program), `calibrate` (rounding that knows what
//! weights are multiplied with), `measure` (perplexity, comparison, gate, importances and sensitivities as
//! functions), `eval` (the forward pass), `convert` (the
//! pipeline), `recipe` (which type each tensor gets), `inspect` (what models hold), `imatrix`
//! (importance matrices), `model` (what the models are), `tokenizer` (vocabularies), `source` (where
//! weights are read from), `gguf` (the container), `io` (files), [`quant`] (block formats), [`simd`]
//! (levels of instructions).
#![deny(missing_docs)]

#[cfg(feature = "eval")]
pub mod calibrate;
#[cfg(feature = "cli")]
pub mod cli;
#[cfg(feature = "convert")]
pub mod convert;
#[cfg(feature = "eval")]
pub mod eval;
#[cfg(feature = "convert")]
pub mod gguf;
#[cfg(feature = "convert")]
pub mod imatrix;
#[cfg(feature = "convert")]
pub mod inspect;
#[cfg(feature = "convert")]
pub mod io;
#[cfg(feature = "convert")]
pub mod json;
#[cfg(feature = "eval")]
pub mod measure;
#[cfg(feature = "convert")]
pub mod model;
#[cfg(feature = "convert")]
pub mod monitor;
mod names;
#[cfg(feature = "convert")]
mod pattern;
pub mod quant;
#[cfg(feature = "convert")]
pub mod recipe;
pub mod simd;
#[cfg(feature = "convert")]
pub mod sniff;
#[cfg(feature = "convert")]
pub mod source;
#[cfg(feature = "convert")]
pub mod tensor;
#[cfg(feature = "convert")]
pub mod tokenizer;
#[cfg(feature = "convert")]
pub mod warning;
