//! A disk that fails.

use requant::io::{Disk, LocalDisk, Part};
use std::io;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicI64, Ordering};

/// A disk that gets worse: after some operations every further one fails, and before that reads
/// and writes come in pieces.
pub struct Failing {
    pub left: Arc<AtomicI64>,
    pub kind: io::ErrorKind,
}

struct FailingPart {
    part: Box<dyn Part>,
    left: Arc<AtomicI64>,
    kind: io::ErrorKind,
}

fn spend(left: &AtomicI64, kind: io::ErrorKind) -> io::Result<()> {
    match left.fetch_sub(1, Ordering::Relaxed) > 0 {
        true => Ok(()),
        false => Err(kind.into()),
    }
}

impl Disk for Failing {
    fn open(&self, path: &Path) -> io::Result<Box<dyn Part>> {
        spend(&self.left, self.kind)?;
        let part = LocalDisk.open(path)?;
        Ok(Box::new(FailingPart { part, left: self.left.clone(), kind: self.kind }))
    }

    fn rename(&self, from: &Path, to: &Path) -> io::Result<()> {
        spend(&self.left, self.kind)?;
        LocalDisk.rename(from, to)
    }

    /// Cleaning up works: it needs no room.
    fn remove(&self, path: &Path) -> io::Result<()> {
        LocalDisk.remove(path)
    }

    fn sync_names(&self, _folder: &Path) {}
}

impl Part for FailingPart {
    fn write_at(&self, bytes: &[u8], offset: u64) -> io::Result<usize> {
        spend(&self.left, self.kind)?;
        self.part.write_at(&bytes[..bytes.len().min(60_001)], offset)
    }

    fn read_at(&self, out: &mut [u8], offset: u64) -> io::Result<usize> {
        spend(&self.left, self.kind)?;
        let some = out.len().min(50_003);
        self.part.read_at(&mut out[..some], offset)
    }

    fn size(&self) -> io::Result<u64> {
        self.part.size()
    }

    fn reserve(&self, size: u64) -> io::Result<()> {
        spend(&self.left, self.kind)?;
        self.part.reserve(size)
    }

    fn sync(&self) -> io::Result<()> {
        spend(&self.left, self.kind)
    }

    fn lock(&self) -> io::Result<bool> {
        self.part.lock()
    }
}
