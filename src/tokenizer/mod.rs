//! Vocabularies: tokenizer.json or tiktoken.model and their companions to `tokenizer.ggml.*` keys and back, and text to
//! tokens.
//!
//! It knows GGUF's keys; it does not know what model the tokens are for.

mod added;
mod checkpoint;
mod damage;
#[cfg(feature = "eval")]
mod decode;
#[cfg(feature = "eval")]
mod encode;
mod error;
#[cfg(feature = "eval")]
mod export;
mod files;
#[cfg(feature = "eval")]
mod parts;
mod pre;
mod special;
#[cfg(feature = "eval")]
mod spm;
mod templates;
mod tiktoken;
mod vocab;

#[cfg(feature = "eval")]
pub use decode::Pieces;
#[cfg(feature = "eval")]
pub use encode::{Tokenizer, bos};
pub use error::TokenizerError;
#[cfg(feature = "eval")]
pub use export::{config_ids, exported, generation_ids};
pub use vocab::{TokenType, Vocab};
