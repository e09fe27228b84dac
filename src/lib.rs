//! Converts DeepSeek-R1 family checkpoints to GGUF in one streaming pass with bounded memory,
//! and measures what the quantization costs.
//!
//! The rooms, each knowing only those after it: `cli` (the program), `eval` (the forward pass and
//! what it measures), [`convert`] (the pipeline), [`recipe`] (which type each tensor
//! gets), [`inspect`] (what models hold),
//! [`imatrix`] (importance matrices), [`model`] (what the models are), [`tokenizer`]
//! (vocabularies), [`source`] (where weights are read from), [`gguf`] (the container), [`blob`]
//! (files), [`quant`] (block formats).
#![deny(missing_docs)]

pub mod blob;
#[cfg(feature = "cli")]
pub mod cli;
pub mod convert;
#[cfg(feature = "eval")]
pub mod eval;
pub mod gguf;
pub mod imatrix;
pub mod inspect;
mod mapping;
pub mod model;
pub mod monitor;
mod names;
pub mod quant;
pub mod recipe;
pub mod source;
pub mod tokenizer;
pub mod warning;
