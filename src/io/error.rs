//! What the system refuses.

use std::fmt;
use std::io;
use std::path::{Path, PathBuf};

/// A file or folder that the system refuses to read or to write.
#[derive(Debug)]
pub struct IoError {
    /// The file or folder.
    pub path: PathBuf,
    /// What the system said.
    pub source: io::Error,
}

impl IoError {
    /// What the system said of this file or folder.
    pub fn new(path: &Path, source: io::Error) -> Self {
        Self { path: path.to_owned(), source }
    }

    /// Whether there is no room left.
    pub fn is_full(&self) -> bool {
        matches!(self.source.kind(), io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded)
    }
}

impl fmt::Display for IoError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { path, source } = self;
        let path = path.display();
        match self.is_full() {
            true => write!(
                f,
                "{path}: the disk is full ({source}); free some room or write to another disk"
            ),
            false => write!(f, "{path}: {source}"),
        }
    }
}

impl std::error::Error for IoError {
    fn source(&self) -> Option<&(dyn std::error::Error + 'static)> {
        Some(&self.source)
    }
}
