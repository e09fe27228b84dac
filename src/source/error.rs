//! What can be wrong with a checkpoint or a GGUF file as a source of weights.

use crate::quant::QuantError;
use std::path::PathBuf;

/// A source that cannot be opened or read.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum SourceError {
    /// The operating system refused.
    #[error("{}: {error}", path.display())]
    Io {
        /// The file or folder.
        path: PathBuf,
        /// What the system said.
        error: std::io::Error,
    },
    /// A row could not be decoded.
    #[error("{}: tensor `{tensor}`: {error}", path.display())]
    Decode {
        /// The file.
        path: PathBuf,
        /// The tensor.
        tensor: String,
        /// What is wrong with its rows.
        error: QuantError,
    },
}
