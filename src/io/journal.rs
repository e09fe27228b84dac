//! What of a long work is done: a small text file, line by line, which lets the same work go on
//! where it was stopped.
//!
//! A line counts only with its end, and the next one is written over what a torn one left. Journals
//! are not made durable: whoever reads one checks what it claims against the files it speaks of.

use super::disk::{Disk, Part, read_all, write_all};
use super::error::IoError;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::{Mutex, PoisonError};

/// A journal, locked against other processes.
pub(crate) struct Journal {
    part: Box<dyn Part>,
    path: PathBuf,
    end: Mutex<u64>,
}

impl Journal {
    /// Opens a journal, without looking into it; `None` where another process holds it.
    pub fn open(disk: &dyn Disk, path: &Path) -> Result<Option<Self>, IoError> {
        let io = |error| IoError::new(path, error);
        let part = disk.open(path).map_err(io)?;
        let locked = part.lock().map_err(io)?;
        Ok(locked.then(|| Self { part, path: path.to_owned(), end: Mutex::new(0) }))
    }

    /// Bytes of the file.
    pub fn size(&self) -> Result<u64, IoError> {
        self.part.size().map_err(|error| self.error(error))
    }

    /// What is in it, up to the end of its last whole line. The next line comes after it.
    pub fn read(&self) -> Result<String, IoError> {
        let mut bytes = vec![0; self.size()? as usize];
        read_all(self.part.as_ref(), &mut bytes, 0).map_err(|error| self.error(error))?;
        // Reserved or torn ends are no lines.
        bytes.truncate(bytes.iter().rposition(|&b| b == b'\n').map_or(0, |at| at + 1));
        *self.end.lock().unwrap_or_else(PoisonError::into_inner) = bytes.len() as u64;
        Ok(String::from_utf8_lossy(&bytes).into_owned())
    }

    /// Begins anew.
    pub fn clear(&self) -> Result<(), IoError> {
        let mut end = self.end.lock().unwrap_or_else(PoisonError::into_inner);
        *end = 0;
        self.part.reserve(0).map_err(|error| self.error(error))
    }

    /// Adds a line.
    pub fn append(&self, line: &str) -> Result<(), IoError> {
        let line = format!("{line}\n");
        let mut end = self.end.lock().unwrap_or_else(PoisonError::into_inner);
        write_all(self.part.as_ref(), line.as_bytes(), *end).map_err(|error| self.error(error))?;
        *end += line.len() as u64;
        Ok(())
    }

    /// Waits until it is on disk.
    pub fn sync(&self) -> Result<(), IoError> {
        self.part.sync().map_err(|error| self.error(error))
    }

    fn error(&self, error: io::Error) -> IoError {
        IoError::new(&self.path, error)
    }
}

#[cfg(test)]
mod tests {
    use super::super::disk::LocalDisk;
    use super::*;

    #[test]
    fn a_torn_line_is_none_and_is_written_over() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("journal");
        std::fs::write(&path, "one\ntwo\na line that was cut sho").unwrap();
        let journal = Journal::open(&LocalDisk, &path).unwrap().unwrap();
        assert!(Journal::open(&LocalDisk, &path).unwrap().is_none());
        assert_eq!(journal.read().unwrap(), "one\ntwo\n");
        journal.append("three").unwrap();
        assert_eq!(journal.read().unwrap(), "one\ntwo\nthree\n");
        journal.clear().unwrap();
        journal.append("four").unwrap();
        drop(journal);
        assert_eq!(std::fs::read_to_string(&path).unwrap(), "four\n");
    }
}
