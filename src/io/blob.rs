//! Bytes at rest: what weights are read from, a piece at a time and from many threads at once.
//!
//! Weights are read with positional reads rather than through a mapping: a file that shrinks or a
//! disk that fails is then an error with a name instead of a signal, and a remote object is read
//! like a file.

use std::fs::File;
use std::io;
use std::ops::Range;
use std::path::Path;
use std::time::{SystemTime, UNIX_EPOCH};

/// A file or object of known length.
pub trait Blob: Send + Sync {
    /// Bytes in all.
    fn size(&self) -> u64;

    /// A text that changes when the bytes do, as far as can be told without reading them.
    fn version(&self) -> String;

    /// Fills `out` with the bytes from `offset` on.
    ///
    /// # Errors
    /// What the system says; [`io::ErrorKind::UnexpectedEof`] where the blob ends before.
    fn read_at(&self, offset: u64, out: &mut [u8]) -> io::Result<()>;

    /// The file of this machine that it is, if it is one.
    fn local(&self) -> Option<&File> {
        None
    }

    /// Says that these bytes will be read soon. A hint.
    fn prefetch(&self, _bytes: Range<u64>) {}

    /// Says that these bytes will not be read again soon. A hint.
    fn release(&self, _bytes: Range<u64>) {}

    /// Whether released ranges leave the system's page cache: worth it for what does not fit into
    /// memory anyway, harmful for what is read again and again.
    fn drop_pages(&mut self, _yes: bool) {}
}

/// A file of the local system.
pub struct LocalFile {
    file: File,
    size: u64,
    modified: Option<SystemTime>,
    drop_pages: bool,
}

impl LocalFile {
    /// Opens a file.
    ///
    /// # Errors
    /// What the system says.
    pub fn open(path: &Path) -> io::Result<Self> {
        let file = super::mapping::open(path)?;
        let metadata = file.metadata()?;
        let (size, modified) = (metadata.len(), metadata.modified().ok());
        Ok(Self { file, size, modified, drop_pages: false })
    }
}

impl Blob for LocalFile {
    fn size(&self) -> u64 {
        self.size
    }

    fn version(&self) -> String {
        let since = self.modified.and_then(|time| time.duration_since(UNIX_EPOCH).ok());
        since.map_or_else(String::new, |since| since.as_nanos().to_string())
    }

    fn read_at(&self, offset: u64, out: &mut [u8]) -> io::Result<()> {
        read_exact_at(&self.file, out, offset)
    }

    fn local(&self) -> Option<&File> {
        Some(&self.file)
    }

    fn prefetch(&self, bytes: Range<u64>) {
        advise::will_need(&self.file, bytes);
    }

    fn release(&self, bytes: Range<u64>) {
        if self.drop_pages {
            advise::dont_need(&self.file, bytes);
        }
    }

    fn drop_pages(&mut self, yes: bool) {
        self.drop_pages = yes;
    }
}

#[cfg(unix)]
pub(crate) fn read_exact_at(file: &File, out: &mut [u8], offset: u64) -> io::Result<()> {
    std::os::unix::fs::FileExt::read_exact_at(file, out, offset)
}

#[cfg(windows)]
pub(crate) fn read_exact_at(file: &File, mut out: &mut [u8], mut offset: u64) -> io::Result<()> {
    use std::os::windows::fs::FileExt;
    while !out.is_empty() {
        match file.seek_read(out, offset)? {
            0 => return Err(io::ErrorKind::UnexpectedEof.into()),
            n => {
                out = &mut out[n..];
                offset += n as u64;
            }
        }
    }
    Ok(())
}

/// Advice on page cache; failing to give it changes nothing but speed.
#[cfg(target_os = "linux")]
pub(crate) mod advise {
    use rustix::fs::{Advice, fadvise};
    use std::fs::File;
    use std::num::NonZeroU64;
    use std::ops::Range;

    pub fn will_need(file: &File, bytes: Range<u64>) {
        advise(file, bytes, Advice::WillNeed);
    }

    pub fn dont_need(file: &File, bytes: Range<u64>) {
        advise(file, bytes, Advice::DontNeed);
    }

    fn advise(file: &File, bytes: Range<u64>, advice: Advice) {
        if let Some(length) = NonZeroU64::new(bytes.end.saturating_sub(bytes.start)) {
            let _ = fadvise(file, bytes.start, Some(length), advice);
        }
    }
}

#[cfg(not(target_os = "linux"))]
pub(crate) mod advise {
    use std::fs::File;
    use std::ops::Range;

    pub fn will_need(_file: &File, _bytes: Range<u64>) {}

    pub fn dont_need(_file: &File, _bytes: Range<u64>) {}
}
