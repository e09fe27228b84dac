//! Writing: tensor data at known offsets, in any order and from many threads, into a temporary
//! sibling that gets the file's name only when it is complete.

use super::error::GgufError;
use super::layout::Layout;
use std::path::{Path, PathBuf};
use tempfile::NamedTempFile;

/// A file being written.
pub struct Writer {
    file: NamedTempFile,
    path: PathBuf,
    force: bool,
    places: Vec<(u64, u64)>,
}

impl Writer {
    /// Begins a file beside `path`: writes the header and reserves the length.
    ///
    /// # Errors
    /// `path` exists and `force` is not given, or the system refuses.
    pub fn create(path: &Path, layout: &Layout, force: bool) -> Result<Self, GgufError> {
        Self::check(path, force)?;
        let io = |error| GgufError::io(path, error);
        let name = path.file_name().unwrap_or_default().to_string_lossy().into_owned();
        let prefix = format!(".{name}.");
        let mut options = tempfile::Builder::new();
        options.prefix(&prefix).suffix(".part");
        #[cfg(unix)]
        {
            // As any newly created file; the default of temporary files is private.
            use std::os::unix::fs::PermissionsExt;
            options.permissions(std::fs::Permissions::from_mode(0o666));
        }
        let file = options.tempfile_in(folder(path)).map_err(io)?;
        let places = (0..layout.n_tensors()).map(|i| (layout.offset(i), layout.n_bytes(i)));
        let writer = Self { file, path: path.to_owned(), force, places: places.collect() };
        write_all_at(writer.file.as_file(), layout.header(), 0).map_err(io)?;
        writer.file.as_file().set_len(layout.file_size()).map_err(io)?;
        Ok(writer)
    }

    /// Refuses what [`Writer::create`] would refuse about the name, before any work is done.
    ///
    /// # Errors
    /// `path` exists and `force` is not given, is a folder, or its folder does not exist.
    pub fn check(path: &Path, force: bool) -> Result<(), GgufError> {
        if path.is_dir() || path.file_name().is_none() {
            let error = std::io::ErrorKind::IsADirectory.into();
            return Err(GgufError::Io { path: path.to_owned(), error });
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

    /// Writes a part of a tensor's data, `at` bytes from its beginning.
    ///
    /// # Errors
    /// The system refuses, for example because the disk is full.
    ///
    /// # Panics
    /// When the part reaches past the tensor's end.
    pub fn write_at(&self, tensor: usize, at: u64, bytes: &[u8]) -> Result<(), GgufError> {
        let (offset, n_bytes) = self.places[tensor];
        assert!(
            at.checked_add(bytes.len() as u64).is_some_and(|end| end <= n_bytes),
            "write past the end of a tensor"
        );
        write_all_at(self.file.as_file(), bytes, offset + at)
            .map_err(|error| GgufError::io(&self.path, error))
    }

    /// Puts the file on disk and gives it its name.
    ///
    /// # Errors
    /// The system refuses, or meanwhile another file took the name and `force` was not given.
    pub fn finish(self) -> Result<(), GgufError> {
        let Self { file, path, force, .. } = self;
        let io = |error| GgufError::io(&path, error);
        file.as_file().sync_all().map_err(io)?;
        let persisted = if force { file.persist(&path) } else { file.persist_noclobber(&path) };
        persisted.map_err(|refused| match refused.error.kind() {
            std::io::ErrorKind::AlreadyExists => GgufError::Exists { path: path.clone() },
            _ => io(refused.error),
        })?;
        // The name is durable once the folder is; not every file system can be asked for that.
        #[cfg(unix)]
        if let Ok(folder) = std::fs::File::open(folder(&path)) {
            let _ = folder.sync_all();
        }
        Ok(())
    }
}

/// The folder that a file lies in.
fn folder(path: &Path) -> &Path {
    match path.parent() {
        Some(folder) if !folder.as_os_str().is_empty() => folder,
        _ => Path::new("."),
    }
}

#[cfg(unix)]
fn write_all_at(file: &std::fs::File, bytes: &[u8], offset: u64) -> std::io::Result<()> {
    std::os::unix::fs::FileExt::write_all_at(file, bytes, offset)
}

#[cfg(windows)]
fn write_all_at(file: &std::fs::File, mut bytes: &[u8], mut offset: u64) -> std::io::Result<()> {
    use std::os::windows::fs::FileExt;
    while !bytes.is_empty() {
        match file.seek_write(bytes, offset)? {
            0 => return Err(std::io::ErrorKind::WriteZero.into()),
            n => {
                bytes = &bytes[n..];
                offset += n as u64;
            }
        }
    }
    Ok(())
}
