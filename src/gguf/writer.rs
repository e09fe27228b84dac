//! Writing: tensor data at known offsets, in any order and from many threads, into a sibling
//! named `.part` that gets the file's name only when it is complete.

use super::error::GgufError;
use super::layout::Layout;
use crate::io::{Disk, Part, folder, part_path, read_all, write_all};
use std::fs::File;
use std::ops::Range;
use std::path::{Path, PathBuf};

/// A file being written.
pub struct Writer {
    part: Box<dyn Part>,
    path: PathBuf,
    layout: Layout,
}

impl Writer {
    /// Opens the part beside `path`, sets room aside for all of it, and writes the header. What an
    /// earlier process wrote into a part of the right length stays.
    ///
    /// # Errors
    /// The system refuses.
    pub fn open(disk: &dyn Disk, path: &Path, layout: &Layout) -> Result<Self, GgufError> {
        let part_path = part_path(path);
        let io = |error| GgufError::io(&part_path, error);
        let part = disk.open(&part_path).map_err(io)?;
        let writer = Self { part, path: path.to_owned(), layout: layout.clone() };
        let written = (|| {
            writer.part.reserve(layout.file_size())?;
            write_all(writer.part.as_ref(), layout.header(), 0)
        })();
        written.map_err(io)?;
        Ok(writer)
    }

    /// Refuses a name that cannot become an output, before any work is done.
    ///
    /// # Errors
    /// `path` exists and `force` is not given, is a folder, or its folder does not exist.
    pub fn check(path: &Path, force: bool) -> Result<(), GgufError> {
        if path.is_dir() || path.file_name().is_none() {
            let error = std::io::ErrorKind::IsADirectory.into();
            return Err(GgufError::io(path, error));
        }
        if !force && path.symlink_metadata().is_ok() {
            return Err(GgufError::Exists { path: path.to_owned() });
        }
        let folder = folder(path);
        match std::fs::metadata(folder) {
            Ok(_) => Ok(()),
            Err(error) => Err(GgufError::io(folder, error)),
        }
    }

    /// The name that the file will have.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Writes a part of a tensor's data, `at` bytes from its beginning.
    ///
    /// # Errors
    /// The system refuses, for example because the disk is full.
    ///
    /// # Panics
    /// When the part reaches past the tensor's end.
    pub fn write_at(&self, tensor: usize, at: u64, bytes: &[u8]) -> Result<(), GgufError> {
        let offset = self.place(tensor, at, bytes.len());
        write_all(self.part.as_ref(), bytes, offset).map_err(|error| self.error(error))
    }

    /// Has the system copy a part of a tensor's data from another file; `false` where it cannot.
    ///
    /// # Errors
    /// The system refuses.
    ///
    /// # Panics
    /// When the part reaches past the tensor's end.
    pub fn copy_from(
        &self,
        tensor: usize,
        at: u64,
        file: &File,
        bytes: Range<u64>,
    ) -> Result<bool, GgufError> {
        let offset = self.place(tensor, at, (bytes.end - bytes.start) as usize);
        self.part.copy_from(file, bytes, offset).map_err(|error| self.error(error))
    }

    /// Reads back a part of a tensor's data.
    ///
    /// # Errors
    /// The system refuses.
    ///
    /// # Panics
    /// When the part reaches past the tensor's end.
    pub fn read_at(&self, tensor: usize, at: u64, out: &mut [u8]) -> Result<(), GgufError> {
        let offset = self.place(tensor, at, out.len());
        read_all(self.part.as_ref(), out, offset).map_err(|error| self.error(error))
    }

    fn place(&self, tensor: usize, at: u64, n_bytes: usize) -> u64 {
        assert!(
            at.checked_add(n_bytes as u64).is_some_and(|end| end <= self.layout.n_bytes(tensor)),
            "a place past the end of a tensor"
        );
        self.layout.offset(tensor) + at
    }

    /// Waits until everything written is on disk, and lets go of its pages.
    ///
    /// # Errors
    /// The system refuses.
    pub fn sync(&self) -> Result<(), GgufError> {
        self.part.sync().map_err(|error| self.error(error))?;
        self.part.release(0..self.layout.file_size());
        Ok(())
    }

    fn error(&self, error: std::io::Error) -> GgufError {
        GgufError::io(&part_path(&self.path), error)
    }
}
