//! Read-only file mappings.

use memmap2::Mmap;
use std::fs::File;
use std::io;
use std::path::Path;

/// A file mapped for reading. Pages come in as they are touched.
#[derive(Debug)]
pub(crate) struct Mapping(Mmap);

/// Opens a file. A folder is refused before anything reads from it, and a pipe, for which opening
/// would wait.
pub(crate) fn open(path: &Path) -> io::Result<File> {
    let kind = path.metadata()?.file_type();
    match kind.is_file() {
        true => File::open(path),
        false if kind.is_dir() => Err(io::Error::other("is a folder, not a file")),
        false => Err(io::Error::other("is no regular file")),
    }
}

impl Mapping {
    pub fn open(path: &Path) -> io::Result<Self> {
        let file = open(path)?;
        // SAFETY: the mapping is private to this process and only read. Another process that
        // truncates or rewrites the file meanwhile could change what is read, as with any mapped
        // model file; no decoder here relies on bytes staying the same for its memory safety.
        let map = unsafe { Mmap::map(&file) }?;
        Ok(Self(map))
    }

    pub fn bytes(&self) -> &[u8] {
        &self.0
    }
}
