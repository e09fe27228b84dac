//! What can be wrong with a model's description.

use crate::gguf::GgufError;
use crate::json::JsonError;
use crate::source::{CheckpointError, SourceError};
use std::path::PathBuf;

/// A model that cannot be described, or whose tensors are not what its description says.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ModelError {
    /// A JSON file that cannot be read.
    #[error(transparent)]
    Json(#[from] JsonError),
    /// The checkpoint cannot be opened.
    #[error(transparent)]
    Checkpoint(#[from] CheckpointError),
    /// Factors of its tensors cannot be read.
    #[error(transparent)]
    Source(#[from] SourceError),
    /// The GGUF file cannot be opened or lacks metadata.
    #[error(transparent)]
    Gguf(#[from] GgufError),
    /// A setting that is missing or of the wrong kind.
    #[error("{}: `{key}` is {found}, expected {expected}", path.display())]
    Config {
        /// The config file.
        path: PathBuf,
        /// The setting.
        key: String,
        /// What it says, or `missing`.
        found: String,
        /// What it should be.
        expected: String,
    },
    /// A metadata key that the architecture needs.
    #[error("{}: metadata key `{key}` is missing or makes no sense", path.display())]
    Key {
        /// The GGUF file.
        path: PathBuf,
        /// The key.
        key: String,
    },
    /// An architecture that is not supported.
    #[error("{}: architecture `{found}` is not supported; supported: {supported}", path.display())]
    Architecture {
        /// The file that names it.
        path: PathBuf,
        /// The architecture.
        found: String,
        /// Those that are supported.
        supported: String,
    },
    /// A tensor that the description calls for does not exist.
    #[error("{}: tensor `{tensor}` is missing, the model's config calls for it", path.display())]
    MissingTensor {
        /// The checkpoint folder or file.
        path: PathBuf,
        /// The tensor.
        tensor: String,
    },
    /// A tensor has another shape than the description says.
    #[error(
        "{}: tensor `{tensor}` has shape {found:?}, the model's config calls for {expected:?}",
        path.display()
    )]
    Shape {
        /// The file that holds it.
        path: PathBuf,
        /// The tensor.
        tensor: String,
        /// Its shape, outermost first.
        found: Vec<u64>,
        /// The shape called for.
        expected: Vec<u64>,
    },
    /// A tensor and the settings that speak of it do not agree.
    #[error("{error}; in {} {settings}", config.display())]
    Disagrees {
        /// What is wrong with the tensor.
        #[source]
        error: Box<ModelError>,
        /// The config file.
        config: PathBuf,
        /// The settings with their values.
        settings: String,
    },
    /// A tensor that the description has no place for.
    #[error("{}: tensor `{tensor}` has no place in this architecture", path.display())]
    UnknownTensor {
        /// The file that holds it.
        path: PathBuf,
        /// The tensor.
        tensor: String,
    },
    /// Layers beyond those that the description says the model has.
    #[error(
        "{}: `num_hidden_layers` is {n_layer}, counted from 0, but the checkpoint has layers {found} \
         besides, which are not for multi-token prediction; mend the number, or remove these layers",
        path.display()
    )]
    MoreLayers {
        /// The config file.
        path: PathBuf,
        /// Layers by the description.
        n_layer: u32,
        /// The others.
        found: String,
    },
}
