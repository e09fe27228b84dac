//! The reference forward pass, streamed layer by layer, and what is measured with it.
//!
//! All chunks of a text pass through a layer before the next layer's weights are read. Weights are
//! decoded a few rows at a time and used at once, so memory follows from the tokens, not from the
//! model. Activations are f32; sums that decide on precision are f64.

mod attention;
mod budget;
mod error;
mod exponential;
mod feed_forward;
mod linear;
mod model;
mod norm;
mod perplexity;
mod rope;
mod router;

pub use error::EvalError;
pub use model::Model;
pub use perplexity::{Paired, Perplexity, PerplexityOptions, perplexity};
