//! Read-only file mappings, and telling the system which pages will not be needed again.

use memmap2::{Mmap, UncheckedAdvice};
use std::fs::File;
use std::io;
use std::ops::Range;
use std::path::Path;

/// A file mapped for reading. Pages come in as they are touched.
#[derive(Debug)]
pub(crate) struct Mapping(Mmap);

impl Mapping {
    pub fn open(path: &Path) -> io::Result<Self> {
        let file = File::open(path)?;
        // SAFETY: the mapping is private to this process and only read. Another process that
        // truncates or rewrites the file meanwhile could change what is read, as with any mapped
        // model file; no decoder here relies on bytes staying the same for its memory safety.
        let map = unsafe { Mmap::map(&file) }?;
        Ok(Self(map))
    }

    pub fn bytes(&self) -> &[u8] {
        &self.0
    }

    /// Drops the pages of a finished range from this process's memory, and what the system mapped
    /// around it in advance. Neighbours that are still in use come back from the page cache.
    pub fn release(&self, range: Range<usize>) {
        if range.is_empty() {
            return;
        }
        const AROUND: usize = 256 << 10;
        let start = range.start.saturating_sub(AROUND);
        let end = (range.end + AROUND).min(self.0.len());
        // SAFETY: the mapping is shared, read-only and backed by its file, so dropped pages are
        // read from the file again when touched: no reader can see other bytes than before.
        // A failure only means that pages stay resident for longer.
        let _ =
            unsafe { self.0.unchecked_advise_range(UncheckedAdvice::DontNeed, start, end - start) };
    }
}
