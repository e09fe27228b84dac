//! The pipeline: from a model's tensors to a GGUF file in one pass.
//!
//! A [`Plan`] says what will be written, to the byte, before a weight is read; [`Plan::run`]
//! streams it with memory that follows from the options alone.

mod error;
mod metadata;
mod plan;
mod run;
mod settings;

pub use error::ConvertError;
pub use plan::{Plan, PlannedTensor};
pub use settings::{Importance, Intermediate, Settings};
