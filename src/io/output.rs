//! Files that get their names when they are complete: until then they are called `NAME.part`.

use super::disk::{Disk, Part, write_all};
use super::error::IoError;
use std::io::{self, Write};
use std::path::{Path, PathBuf};

/// `path` with something behind its name.
pub(crate) fn beside(path: &Path, ending: &str) -> PathBuf {
    let mut name = path.as_os_str().to_owned();
    name.push(ending);
    name.into()
}

/// The name that a file or folder has until it is complete.
pub(crate) fn part_path(path: &Path) -> PathBuf {
    beside(path, ".part")
}

/// The folder that a file lies in.
pub(crate) fn folder(path: &Path) -> &Path {
    match path.parent() {
        Some(folder) if !folder.as_os_str().is_empty() => folder,
        _ => Path::new("."),
    }
}

/// Gives a file or folder that is complete and on disk its name, and replaces what has it.
pub(crate) fn give_name(disk: &dyn Disk, part: &Path, path: &Path) -> Result<(), IoError> {
    disk.rename(part, path).map_err(|error| IoError::new(path, error))?;
    disk.sync_names(folder(path));
    Ok(())
}

/// Gives what `write` leaves on disk as `part` its name; removes it where either fails.
pub(crate) fn complete<E: From<IoError>>(
    disk: &dyn Disk,
    part: &Path,
    path: &Path,
    write: impl FnOnce() -> Result<(), E>,
) -> Result<(), E> {
    let named = write().and_then(|()| Ok(give_name(disk, part, path)?));
    if named.is_err() {
        // Failing to remove what is left over must not hide the error.
        let _ = disk.remove(part);
    }
    named
}

/// Writes a small file in one go.
///
/// # Errors
/// The system refuses; nothing is left then, and an older file of that name stays.
pub fn write(disk: &dyn Disk, path: &Path, bytes: &[u8]) -> Result<(), IoError> {
    let part = part_path(path);
    complete(disk, &part, path, || {
        Sequence::write(disk, &part, bytes).map_err(|error| IoError::new(&part, error))
    })
}

/// A file written from its beginning to its end.
pub(crate) struct Sequence {
    part: Box<dyn Part>,
    end: u64,
}

impl Sequence {
    /// Begins a file; what it held before is gone.
    pub fn create(disk: &dyn Disk, path: &Path) -> io::Result<Self> {
        let part = disk.open(path)?;
        part.reserve(0)?;
        Ok(Self { part, end: 0 })
    }

    /// Writes a whole file, and waits until it is on disk.
    pub fn write(disk: &dyn Disk, path: &Path, bytes: &[u8]) -> io::Result<()> {
        let mut file = Self::create(disk, path)?;
        file.write_all(bytes)?;
        file.sync()
    }

    /// Waits until what was written is on disk.
    pub fn sync(&self) -> io::Result<()> {
        self.part.sync()
    }
}

impl Write for Sequence {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        write_all(self.part.as_ref(), bytes, self.end)?;
        self.end += bytes.len() as u64;
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// A file that is written in many calls, from its beginning to its end. Dropped before
/// [`Output::finish`], it leaves nothing.
pub struct Output<'a> {
    disk: &'a dyn Disk,
    path: PathBuf,
    file: io::BufWriter<Sequence>,
    named: bool,
}

impl<'a> Output<'a> {
    /// Begins a file.
    ///
    /// # Errors
    /// The system refuses.
    pub fn create(disk: &'a dyn Disk, path: &Path) -> Result<Self, IoError> {
        let part = part_path(path);
        let file = Sequence::create(disk, &part).map_err(|error| IoError::new(&part, error))?;
        let file = io::BufWriter::new(file);
        Ok(Self { disk, path: path.to_owned(), file, named: false })
    }

    /// Writes what follows.
    ///
    /// # Errors
    /// The system refuses.
    pub fn write(&mut self, bytes: &[u8]) -> Result<(), IoError> {
        self.file.write_all(bytes).map_err(|error| IoError::new(&part_path(&self.path), error))
    }

    /// Gives the file its name, once it is on disk.
    ///
    /// # Errors
    /// The system refuses.
    pub fn finish(mut self) -> Result<(), IoError> {
        self.named = true;
        let part = part_path(&self.path);
        complete(self.disk, &part, &self.path, || {
            let on_disk = self.file.flush().and_then(|()| self.file.get_ref().sync());
            on_disk.map_err(|error| IoError::new(&part, error))
        })
    }
}

impl Drop for Output<'_> {
    fn drop(&mut self) {
        if !self.named {
            let _ = self.disk.remove(&part_path(&self.path));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::super::small::Small;
    use super::*;

    #[test]
    fn a_failing_disk_leaves_nothing_and_the_old_file_alone() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("report.html");
        std::fs::write(&path, "old").unwrap();
        let names = || std::fs::read_dir(&dir).unwrap().count();
        for room in [0, 10_000, 99_999] {
            let error = write(&Small::new(room), &path, &[7; 100_000]).unwrap_err();
            assert!(error.is_full(), "{error}");
            assert!(error.to_string().contains("report.html.part: the disk is full"), "{error}");
            let disk = Small::new(room);
            let mut output = Output::create(&disk, &path).unwrap();
            let written = (0..100).try_for_each(|_| output.write(&[7; 1000]));
            assert!(written.and_then(|()| output.finish()).unwrap_err().is_full());
            assert_eq!(std::fs::read(&path).unwrap(), b"old");
            assert_eq!(names(), 1);
        }
        let error = write(&Small::without_names(), &path, b"new").unwrap_err();
        assert!(error.to_string().contains("report.html: "), "{error}");
        assert_eq!(std::fs::read(&path).unwrap(), b"old");
        assert_eq!(names(), 1);
        let disk = Small::new(1 << 20);
        let mut output = Output::create(&disk, &path).unwrap();
        output.write(b"ne").unwrap();
        output.write(b"w").unwrap();
        assert_eq!(std::fs::read(&path).unwrap(), b"old");
        output.finish().unwrap();
        assert_eq!(std::fs::read(&path).unwrap(), b"new");
        assert_eq!(names(), 1);
    }
}
