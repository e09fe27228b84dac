//! Vocabularies: tokenizer.json to `tokenizer.ggml.*` keys and back, and text to tokens.
//!
//! It knows GGUF's keys; it does not know what model the tokens are for.

mod checkpoint;
#[cfg(feature = "eval")]
mod encode;
mod error;
mod pre;
mod special;
#[cfg(feature = "eval")]
mod spm;
mod vocab;

#[cfg(feature = "eval")]
pub use encode::{Tokenizer, bos, tokenizer_files};
pub use error::TokenizerError;
pub use vocab::{TokenType, Vocab};
