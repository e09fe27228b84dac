//! Converts DeepSeek-R1 family checkpoints to GGUF in one streaming pass with bounded memory,
//! and measures what the quantization costs.
//!
//! The rooms, each knowing only those after it: [`model`] (what the models are), [`source`]
//! (where weights are read from), [`gguf`] (the container), [`quant`] (block formats).
#![deny(missing_docs)]

pub mod gguf;
mod mapping;
pub mod monitor;
pub mod quant;
pub mod recipe;
