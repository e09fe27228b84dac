//! What can be wrong with a GGUF file.

use crate::io::IoError;
use crate::sniff::Seems;
use std::path::PathBuf;

/// A file that cannot be read as GGUF, or cannot be written.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum GgufError {
    /// A file whose metadata cannot be replaced.
    #[error("{}: {what}", path.display())]
    Edit {
        /// The file.
        path: PathBuf,
        /// Why.
        what: String,
    },
    /// The name that the old file was to get is taken.
    #[error("{}: exists already, from an earlier change; move or remove it first", path.display())]
    Backup {
        /// The name.
        path: PathBuf,
    },
    /// The system refused.
    #[error(transparent)]
    Io(#[from] IoError),
    /// The file does not begin with `GGUF`.
    #[error("{}: not a GGUF file{}", path.display(), but(seems))]
    Magic {
        /// The file.
        path: PathBuf,
        /// What it seems to be.
        seems: Option<Box<Seems>>,
    },
    /// A file that is not complete, going by its name.
    #[error(
        "{}: {}; if it is complete, give it a name without that ending",
        path.display(), Seems::Unfinished
    )]
    Unfinished {
        /// The file.
        path: PathBuf,
    },
    /// A change of its metadata was interrupted.
    #[error("{}: a change of its metadata was interrupted", path.display())]
    Interrupted {
        /// The file.
        path: PathBuf,
    },
    /// A version that is not read.
    #[error("{}: GGUF version {version} is not readable: {why}", path.display())]
    Version {
        /// The file.
        path: PathBuf,
        /// Its version.
        version: u32,
        /// Why not.
        why: &'static str,
    },
    /// The file ends inside its header.
    #[error(
        "{}: the file ends inside {what}; it is cut short or damaged{}", path.display(), or(seems)
    )]
    Truncated {
        /// The file.
        path: PathBuf,
        /// The part of the header that is incomplete.
        what: String,
        /// What it seems to be.
        seems: Option<Box<Seems>>,
    },
    /// The file ends inside its data.
    #[error(
        "{}: tensor `{tensor}`: its data lies past the end of the file, which is cut short or \
         damaged: {there} of {needed} bytes are there{}", path.display(), or(seems)
    )]
    Cut {
        /// The file.
        path: PathBuf,
        /// The first tensor that is not there in full.
        tensor: String,
        /// Bytes of the file.
        there: u64,
        /// Bytes that it should have.
        needed: u64,
        /// What it seems to be.
        seems: Option<Box<Seems>>,
    },
    /// A metadata entry that breaks the format.
    #[error("{}: metadata key `{key}`: {what}", path.display())]
    Key {
        /// The file.
        path: PathBuf,
        /// The key.
        key: String,
        /// What is wrong with it.
        what: String,
    },
    /// A key whose value has another type than needed.
    #[error("metadata key `{key}` is {found}, expected {expected}")]
    KeyType {
        /// The key.
        key: String,
        /// The type needed.
        expected: &'static str,
        /// The type found.
        found: String,
    },
    /// A tensor that breaks the format.
    #[error("{}: tensor `{tensor}`: {what}", path.display())]
    Tensor {
        /// The file.
        path: PathBuf,
        /// The tensor.
        tensor: String,
        /// What is wrong with it.
        what: String,
    },
    /// A tensor that cannot be laid out.
    #[error("tensor `{tensor}` cannot be stored: {what}")]
    Layout {
        /// The tensor.
        tensor: String,
        /// Why.
        what: String,
    },
    /// Files that do not make up one model.
    #[error("{}: {what}", path.display())]
    Split {
        /// The file.
        path: PathBuf,
        /// What is wrong with it.
        what: String,
    },
    /// The output exists already.
    #[error("{}: exists already; give another name", path.display())]
    Exists {
        /// The output.
        path: PathBuf,
    },
}

fn but(seems: &Option<Box<Seems>>) -> String {
    seems.as_ref().map_or_else(String::new, |seems| format!(", but {seems}"))
}

fn or(seems: &Option<Box<Seems>>) -> String {
    seems.as_ref().map_or_else(String::new, |seems| format!("; it is {seems}"))
}

impl GgufError {
    /// The same error, with the file where it names a key alone.
    pub(crate) fn in_file(self, path: &std::path::Path) -> Self {
        match self {
            Self::KeyType { key, expected, found } => {
                let what = format!("is {found}, expected {expected}");
                Self::Key { path: path.to_owned(), key, what }
            }
            other => other,
        }
    }

    /// An I/O error on `path`.
    pub(crate) fn io(path: &std::path::Path, error: std::io::Error) -> Self {
        Self::Io(IoError::new(path, error))
    }
}
