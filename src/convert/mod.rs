//! The pipeline: from a model's tensors to a GGUF file in one pass.
//!
//! A [`Plan`] says what will be written, to the byte, before a weight is read; [`Plan::run`]
//! streams it with memory that follows from the options alone. A [`Ladder`] is several plans for one
//! source, which a single pass carries out.

mod begun;
mod cut;
mod encode;
mod error;
mod explain;
#[cfg(feature = "eval")]
mod export;
mod importance;
mod job;
mod journal;
mod ladder;
mod lossless;
mod made_with;
mod manifest;
mod metadata;
mod older;
mod outputs;
mod plan;
mod prune;
mod run;
mod settings;
mod shard;
mod values;
mod verify;

#[cfg(feature = "eval")]
pub(crate) use begun::Begun;
pub use error::ConvertError;
pub use explain::{Explained, Explanation, explain};
#[cfg(feature = "eval")]
pub use export::export;
pub use importance::Weighing;
pub use ladder::{Ladder, Rung};
pub use lossless::is_lossless;
pub use made_with::{MadeWith, OfCalibration, OfImatrix};
pub use manifest::{HashedFile, HashedTensor, Ingredient, Input, Manifest, Naming, OfRecipe, Role};
pub use metadata::RECIPE;
pub use outputs::Outputs;
pub use plan::{Plan, PlannedFile, PlannedTensor};
pub use run::RunOptions;
pub use settings::{Importance, Intermediate, Limit, Mode, Settings, SplitBy};
pub use shard::{BadShard, Shard};
pub use values::zeros;
pub use verify::{Comparison, validate_blocks};
