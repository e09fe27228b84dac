//! Where a checkpoint's files are: a folder of this machine, or one behind a URL.
//!
//! Small files, which describe the model, are always read from a local folder; only weights are
//! read from where they are.

use crate::io::{Blob, LocalFile};
use std::io;
use std::path::{Path, PathBuf};

/// The files that describe a model, where they exist.
pub const DESCRIPTIONS: [&str; 14] = [
    "config.json",
    "generation_config.json",
    "hf_quant_config.json",
    "tokenizer.json",
    "tiktoken.model",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "added_tokens.json",
    "vocab.json",
    "merges.txt",
    "chat_template.jinja",
    "chat_template.json",
    "README.md",
    INDEX,
];

/// Says which file of weights each tensor is in.
pub(super) const INDEX: &str = "model.safetensors.index.json";

/// A checkpoint's folder.
pub struct Folder {
    place: Place,
}

enum Place {
    Local(PathBuf),
    #[cfg(feature = "remote")]
    Remote(super::remote::RemoteFolder),
}

impl Folder {
    /// A folder of this machine.
    pub fn local(dir: &Path) -> Self {
        Self { place: Place::Local(dir.to_owned()) }
    }

    /// A folder behind a URL.
    #[cfg(feature = "remote")]
    pub fn remote(folder: super::remote::RemoteFolder) -> Self {
        Self { place: Place::Remote(folder) }
    }

    /// The local folder that holds the small files.
    pub fn dir(&self) -> &Path {
        match &self.place {
            Place::Local(dir) => dir,
            #[cfg(feature = "remote")]
            Place::Remote(remote) => remote.dir(),
        }
    }

    /// Whether its weights are files of this machine, where reading a few bytes costs little.
    pub fn is_local(&self) -> bool {
        matches!(self.place, Place::Local(_))
    }

    /// Whether a file of weights is known not to exist.
    pub fn lacks(&self, name: &str) -> bool {
        self.is_local() && !self.dir().join(name).exists()
    }

    /// How a file of weights is called in messages.
    pub fn path_of(&self, name: &str) -> PathBuf {
        match &self.place {
            Place::Local(dir) => dir.join(name),
            #[cfg(feature = "remote")]
            Place::Remote(remote) => remote.path_of(name),
        }
    }

    /// Opens a file of weights.
    ///
    /// # Errors
    /// What the system or the remote store says; [`io::ErrorKind::NotFound`] where there is none.
    pub fn open(&self, name: &str) -> io::Result<Box<dyn Blob>> {
        match &self.place {
            Place::Local(dir) => Ok(Box::new(LocalFile::open(&dir.join(name))?)),
            #[cfg(feature = "remote")]
            Place::Remote(remote) => remote.open_file(name),
        }
    }

    /// Says which files of weights will be opened, all together. A hint.
    pub fn expect(&self, _names: &[String]) {
        #[cfg(feature = "remote")]
        if let Place::Remote(remote) = &self.place {
            remote.expect(_names);
        }
    }

    /// Memory that reading so many files takes beyond what the reader itself holds, at most.
    pub fn cache_bytes(&self, _files: usize) -> u64 {
        match &self.place {
            Place::Local(_) => 0,
            #[cfg(feature = "remote")]
            Place::Remote(remote) => remote.cache_bytes(_files),
        }
    }
}
