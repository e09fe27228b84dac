//! The file system as writing needs it, small enough to put a failing one in its place.

use super::blob::advise;
use std::fs::{File, OpenOptions, TryLockError};
use std::io;
use std::ops::Range;
use std::path::Path;
use std::time::Duration;

/// A file being written at known places, from many threads.
pub trait Part: Send + Sync {
    /// Writes some of the bytes at `offset` and says how many.
    ///
    /// # Errors
    /// What the system says.
    fn write_at(&self, bytes: &[u8], offset: u64) -> io::Result<usize>;

    /// Has the system copy bytes of another file to `offset`, which may share blocks or leave the
    /// work to a server. `false` where it cannot; some bytes may have been written then.
    ///
    /// # Errors
    /// What the system says, a full disk above all.
    fn copy_from(&self, _file: &File, _bytes: Range<u64>, _offset: u64) -> io::Result<bool> {
        Ok(false)
    }

    /// Reads some bytes from `offset` on and says how many; 0 at the end.
    ///
    /// # Errors
    /// What the system says.
    fn read_at(&self, out: &mut [u8], offset: u64) -> io::Result<usize>;

    /// Bytes of the file.
    ///
    /// # Errors
    /// What the system says.
    fn size(&self) -> io::Result<u64>;

    /// Gives the file its length; where the system can, room on disk is set aside for all of it.
    ///
    /// # Errors
    /// What the system says, a full disk above all.
    fn reserve(&self, size: u64) -> io::Result<()>;

    /// Waits until what was written is on disk.
    ///
    /// # Errors
    /// What the system says.
    fn sync(&self) -> io::Result<()>;

    /// Says that these bytes will not be read again soon. A hint.
    fn release(&self, _bytes: Range<u64>) {}

    /// Makes sure that no other process writes this file; `false` where one does.
    ///
    /// # Errors
    /// What the system says.
    fn lock(&self) -> io::Result<bool>;
}

/// Where files are made and get their names.
pub trait Disk: Send + Sync {
    /// Opens a file for writing, without touching what it holds, and creates it where it does not
    /// exist.
    ///
    /// # Errors
    /// What the system says.
    fn open(&self, path: &Path) -> io::Result<Box<dyn Part>>;

    /// Gives a file or folder another name, beside it, and replaces a file that has it.
    ///
    /// # Errors
    /// What the system says.
    fn rename(&self, from: &Path, to: &Path) -> io::Result<()>;

    /// Removes a file.
    ///
    /// # Errors
    /// What the system says.
    fn remove(&self, path: &Path) -> io::Result<()>;

    /// Makes the names in a folder durable, as far as the system can be asked for it.
    fn sync_names(&self, folder: &Path);
}

/// The local file system.
#[derive(Clone, Copy, Debug, Default)]
pub struct LocalDisk;

impl Disk for LocalDisk {
    fn open(&self, path: &Path) -> io::Result<Box<dyn Part>> {
        let mut options = OpenOptions::new();
        options.read(true).write(true).create(true).truncate(false);
        Ok(Box::new(LocalPart(options.open(path)?)))
    }

    fn rename(&self, from: &Path, to: &Path) -> io::Result<()> {
        std::fs::rename(from, to)
    }

    fn remove(&self, path: &Path) -> io::Result<()> {
        std::fs::remove_file(path)
    }

    fn sync_names(&self, folder: &Path) {
        #[cfg(unix)]
        if let Ok(folder) = File::open(folder) {
            let _ = folder.sync_all();
        }
        #[cfg(not(unix))]
        let _ = folder;
    }
}

/// Bytes free where a file is to lie, in a folder that may still have to be made; `None` where the system does
/// not say.
#[must_use]
pub fn free_disk(path: &Path) -> Option<u64> {
    let folder = super::output::folder(path);
    let there = if folder.exists() { folder } else { super::output::folder(folder) };
    fs4::available_space(there).ok()
}

/// A file without a name in a folder, which is gone when nobody has it open.
///
/// # Errors
/// What the system says.
#[cfg(feature = "eval")]
pub(crate) fn unnamed(folder: &Path) -> io::Result<Box<dyn Part>> {
    Ok(Box::new(LocalPart(tempfile::tempfile_in(folder)?)))
}

struct LocalPart(File);

impl Part for LocalPart {
    #[cfg(unix)]
    fn write_at(&self, bytes: &[u8], offset: u64) -> io::Result<usize> {
        std::os::unix::fs::FileExt::write_at(&self.0, bytes, offset)
    }

    #[cfg(windows)]
    fn write_at(&self, bytes: &[u8], offset: u64) -> io::Result<usize> {
        std::os::windows::fs::FileExt::seek_write(&self.0, bytes, offset)
    }

    #[cfg(target_os = "linux")]
    fn copy_from(&self, file: &File, mut bytes: Range<u64>, mut offset: u64) -> io::Result<bool> {
        use rustix::io::Errno;
        while !bytes.is_empty() {
            let length = (bytes.end - bytes.start).min(1 << 30) as usize;
            let (from, to) = (Some(&mut bytes.start), Some(&mut offset));
            match rustix::fs::copy_file_range(file, from, &self.0, to, length) {
                Ok(0) => return Err(io::ErrorKind::UnexpectedEof.into()),
                Ok(_) | Err(Errno::INTR) => {}
                Err(Errno::XDEV | Errno::NOSYS | Errno::OPNOTSUPP | Errno::INVAL | Errno::PERM) => {
                    return Ok(false);
                }
                Err(error) => return Err(error.into()),
            }
        }
        Ok(true)
    }

    #[cfg(unix)]
    fn read_at(&self, out: &mut [u8], offset: u64) -> io::Result<usize> {
        std::os::unix::fs::FileExt::read_at(&self.0, out, offset)
    }

    #[cfg(windows)]
    fn read_at(&self, out: &mut [u8], offset: u64) -> io::Result<usize> {
        std::os::windows::fs::FileExt::seek_read(&self.0, out, offset)
    }

    fn size(&self) -> io::Result<u64> {
        Ok(self.0.metadata()?.len())
    }

    fn reserve(&self, size: u64) -> io::Result<()> {
        self.0.set_len(size)?;
        #[cfg(target_os = "linux")]
        if size > 0 {
            use rustix::io::Errno;
            match rustix::fs::fallocate(&self.0, rustix::fs::FallocateFlags::empty(), 0, size) {
                Ok(()) | Err(Errno::OPNOTSUPP | Errno::NOSYS | Errno::INTR) => {}
                Err(error) => return Err(error.into()),
            }
        }
        Ok(())
    }

    fn sync(&self) -> io::Result<()> {
        self.0.sync_all()
    }

    fn release(&self, bytes: Range<u64>) {
        advise::dont_need(&self.0, bytes);
    }

    fn lock(&self) -> io::Result<bool> {
        for tries in 0.. {
            match self.0.try_lock() {
                Ok(()) => return Ok(true),
                // A child that another thread is just starting holds a copy of each descriptor until it
                // runs its own program.
                Err(TryLockError::WouldBlock) if tries < 20 => {
                    std::thread::sleep(Duration::from_millis(10));
                }
                Err(TryLockError::WouldBlock) => return Ok(false),
                // Not every file system has locks.
                Err(TryLockError::Error(error)) if error.kind() == io::ErrorKind::Unsupported => {
                    return Ok(true);
                }
                Err(TryLockError::Error(error)) => return Err(error),
            }
        }
        Ok(false)
    }
}

/// Writes all bytes, however few at a time.
pub(crate) fn write_all(part: &dyn Part, mut bytes: &[u8], mut offset: u64) -> io::Result<()> {
    while !bytes.is_empty() {
        match part.write_at(bytes, offset) {
            Ok(0) => return Err(io::ErrorKind::WriteZero.into()),
            Ok(n) => {
                bytes = &bytes[n..];
                offset += n as u64;
            }
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(error),
        }
    }
    Ok(())
}

/// Fills `out`, however few bytes come at a time.
pub(crate) fn read_all(part: &dyn Part, mut out: &mut [u8], mut offset: u64) -> io::Result<()> {
    while !out.is_empty() {
        match part.read_at(out, offset) {
            Ok(0) => return Err(io::ErrorKind::UnexpectedEof.into()),
            Ok(n) => {
                out = &mut out[n..];
                offset += n as u64;
            }
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(error),
        }
    }
    Ok(())
}
