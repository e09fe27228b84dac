//! A disk for tests that takes so many bytes more, and then is full; or that gives no names.

use super::disk::{Disk, LocalDisk, Part};
use std::io;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

pub(crate) struct Small {
    room: Arc<AtomicU64>,
    names: bool,
}

struct SmallPart(Box<dyn Part>, Arc<AtomicU64>);

impl Small {
    pub fn new(room: u64) -> Self {
        Self { room: Arc::new(AtomicU64::new(room)), names: true }
    }

    /// One with room, where no file gets another name.
    pub fn without_names() -> Self {
        Self { names: false, ..Self::new(u64::MAX) }
    }
}

impl Part for SmallPart {
    fn write_at(&self, bytes: &[u8], offset: u64) -> io::Result<usize> {
        let left = |room: u64| Some(room.saturating_sub(bytes.len() as u64));
        let room = self.1.fetch_update(Ordering::Relaxed, Ordering::Relaxed, left);
        match room.unwrap_or(0).min(bytes.len() as u64) as usize {
            0 => Err(io::ErrorKind::StorageFull.into()),
            n => self.0.write_at(&bytes[..n], offset),
        }
    }

    fn read_at(&self, out: &mut [u8], offset: u64) -> io::Result<usize> {
        self.0.read_at(out, offset)
    }

    fn size(&self) -> io::Result<u64> {
        self.0.size()
    }

    fn reserve(&self, size: u64) -> io::Result<()> {
        self.0.reserve(size)
    }

    fn sync(&self) -> io::Result<()> {
        self.0.sync()
    }

    fn lock(&self) -> io::Result<bool> {
        self.0.lock()
    }
}

impl Disk for Small {
    fn open(&self, path: &Path) -> io::Result<Box<dyn Part>> {
        Ok(Box::new(SmallPart(LocalDisk.open(path)?, self.room.clone())))
    }

    fn rename(&self, from: &Path, to: &Path) -> io::Result<()> {
        match self.names {
            true => LocalDisk.rename(from, to),
            false => Err(io::ErrorKind::PermissionDenied.into()),
        }
    }

    fn remove(&self, path: &Path) -> io::Result<()> {
        LocalDisk.remove(path)
    }

    fn sync_names(&self, _: &Path) {}
}
