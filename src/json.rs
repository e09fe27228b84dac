//! The small JSON files that describe a model.

use crate::io::IoError;
use crate::sniff::{self, Seems};
use serde::de::DeserializeOwned;
use std::path::{Path, PathBuf};

/// A JSON file that cannot be read.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum JsonError {
    /// The system refused.
    #[error(transparent)]
    Io(#[from] IoError),
    /// A file that is something else.
    #[error("{}: not JSON but {seems}", path.display())]
    Other {
        /// The file.
        path: PathBuf,
        /// What it seems to be.
        seems: Seems,
    },
    /// A file that is damaged, or not of the shape that is expected.
    #[error("{}: not valid JSON: {error}", path.display())]
    Json {
        /// The file.
        path: PathBuf,
        /// What the parser said.
        #[source]
        error: serde_json::Error,
    },
}

/// Reads a file.
///
/// # Errors
/// A file that the system does not give, or that is not such JSON.
pub fn read<T: DeserializeOwned>(path: &Path) -> Result<T, JsonError> {
    let bytes = std::fs::read(path).map_err(|error| IoError::new(path, error))?;
    parse(path, &bytes)
}

/// Reads what is in a file.
///
/// # Errors
/// It is no such JSON.
pub fn parse<T: DeserializeOwned>(path: &Path, bytes: &[u8]) -> Result<T, JsonError> {
    serde_json::from_slice(bytes).map_err(|error| {
        let path = path.to_owned();
        let begins = bytes.trim_ascii_start().first();
        // What begins like JSON is JSON that has been damaged.
        let seems = match begins {
            Some(b'{' | b'[') => None,
            _ => sniff::seems(&bytes[..bytes.len().min(sniff::WANTED)], &path),
        };
        match seems {
            Some(seems) => JsonError::Other { path, seems },
            None => JsonError::Json { path, error },
        }
    })
}
