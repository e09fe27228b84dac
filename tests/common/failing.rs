//! A disk that fails.

use requant::convert::{ConvertError, RunOptions};
use requant::io::{Disk, LocalDisk, Part};
use std::collections::BTreeMap;
use std::io;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicI64, Ordering};

/// A disk that gets worse: after some operations every further one fails, and before that reads
/// and writes come in pieces.
pub struct Failing {
    left: Arc<AtomicI64>,
    /// Names that it still gives.
    names: Arc<AtomicI64>,
    kind: io::ErrorKind,
}

impl Failing {
    /// So many operations work, of whatever kind.
    pub fn after(operations: i64, kind: io::ErrorKind) -> Self {
        let left = Arc::new(AtomicI64::new(operations));
        Self { names: left.clone(), left, kind }
    }

    /// So many names are given, and all else works.
    pub fn naming(names: i64) -> Self {
        let names = Arc::new(AtomicI64::new(names));
        Self { names, left: Arc::new(AtomicI64::new(i64::MAX)), kind: io::ErrorKind::Other }
    }
}

/// Writes outputs to disks that fail: each lasts for `step` operations more than the one before, until one lasts to
/// the end. A file is complete or does not exist, and the journal stays exactly where the run can go on. Returns how
/// often it was stopped.
pub fn run_on_failing_disks(
    kind: io::ErrorKind,
    step: i64,
    dir: &Path,
    journal: &str,
    expected: &BTreeMap<String, Vec<u8>>,
    run: impl Fn(RunOptions) -> Result<(), ConvertError>,
) -> i64 {
    let mut stopped = 0;
    loop {
        let disk = Failing::after(step * (stopped + 1), kind);
        match run(RunOptions { disk: &disk, ..RunOptions::default() }) {
            Ok(()) => return stopped,
            Err(error) => {
                let full = kind == io::ErrorKind::StorageFull;
                assert_eq!(error.to_string().contains("the disk is full"), full, "{error}");
                let kept = super::contents(dir).contains_key(journal);
                assert_eq!(matches!(error, ConvertError::Stopped { .. }), kept, "{error}");
            }
        }
        for (name, bytes) in super::contents(dir) {
            if let Some(complete) = expected.get(&name) {
                assert!(bytes == *complete, "{name} is complete or does not exist");
            }
        }
        stopped += 1;
        assert!(stopped < 1000, "no progress");
    }
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
        spend(&self.names, self.kind)?;
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
