//! Other metadata for an existing file: over the old head where it fits, with a longer head where the
//! file system can insert one, in a new file otherwise.

use super::disk::{Disk, LocalDisk, write_all};
use super::error::GgufError;
use super::file::GgufFile;
use super::layout::Layout;
use super::metadata::Metadata;
use super::value::Value;
use super::writer::{Writer, folder};
use std::fs::{File, OpenOptions};
use std::io::{self, Seek, SeekFrom, Write};
use std::path::{Path, PathBuf};

/// Holds what a head is longer than its metadata, so that the tensors need not move.
const PADDING: &str = "requant.padding";

/// Files with less than this are written anew: that takes no time, and leaves no padding.
const WORTH_INSERTING: u64 = 256 << 20;

/// How metadata were replaced.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Edited {
    /// The tensors stayed where they are.
    InPlace,
    /// The file system made room for a longer head.
    Inserted,
    /// The file was written anew and replaced.
    Anew,
}

/// Gives a file other metadata.
///
/// Where a longer head is inserted, it is first written beside the file as `FILE.head`: should the
/// process be killed in between, the next call ends what was begun.
///
/// # Errors
/// A damaged file, tensors that do not lie as the reference tools lay them, a system that refuses.
pub fn replace_metadata(path: &Path, metadata: &Metadata) -> Result<Edited, GgufError> {
    replace(path, metadata, WORTH_INSERTING)
}

fn replace(path: &Path, metadata: &Metadata, worth: u64) -> Result<Edited, GgufError> {
    finish_interrupted(path)?;
    let file = GgufFile::open(path)?;
    let layout = |metadata: &Metadata| {
        let tensors = file.tensors().iter().map(|t| (t.name.clone(), t.dims.clone(), t.ty));
        Layout::new(metadata, tensors)
    };
    let mut metadata = metadata.clone();
    let was_padded = metadata.remove(PADDING).is_some();
    let plain = layout(&metadata)?;
    let shift = plain.header().len() as u64;
    let usual = file.tensors().iter().enumerate().all(|(i, t)| plain.offset(i) == shift + t.offset)
        && file.file_size() - file.data_offset() <= plain.file_size() - shift;
    if !usual {
        let what = "its tensors do not lie one behind the other, aligned to 32 bytes; quantize it \
                    with COPY first";
        return Err(GgufError::Edit { path: path.to_owned(), what });
    }
    let old = file.data_offset();
    let large = was_padded || file.file_size() - old >= worth;
    // The padding's own key, then as many bytes as are wanted.
    let padded = |target: u64| -> Result<Option<Layout>, GgufError> {
        let mut metadata = metadata.clone();
        metadata.set_last(PADDING, "");
        let Some(missing) = target.checked_sub(layout(&metadata)?.header().len() as u64) else {
            return Ok(None);
        };
        metadata.set_last(PADDING, Value::String(vec![b' '; missing as usize].into()));
        layout(&metadata).map(Some)
    };
    let fitting = match shift == old {
        true => Some(plain.clone()),
        false if large => padded(old)?,
        false => None,
    };
    if let Some(fitting) = fitting {
        write_head(path, fitting.header())?;
        return Ok(Edited::InPlace);
    }
    if large && let Some(block) = block_size(path) {
        let with_key = shift + 128;
        let target = old + with_key.saturating_sub(old).div_ceil(block) * block;
        if let Some(longer) = padded(target)?
            && insert_head(path, file.file_size(), target - old, longer.header())?
        {
            return Ok(Edited::Inserted);
        }
    }
    write_anew(path, old, plain.header())?;
    Ok(Edited::Anew)
}

/// Writes over the head, which must not become longer or shorter.
fn write_head(path: &Path, head: &[u8]) -> Result<(), GgufError> {
    let io = |error| GgufError::io(path, error);
    let part = LocalDisk.open(path).map_err(io)?;
    write_all(part.as_ref(), head, 0).map_err(io)?;
    part.sync().map_err(io)
}

fn write_anew(path: &Path, old: u64, head: &[u8]) -> Result<(), GgufError> {
    let part_path = Writer::part_path(path);
    let written = (|| {
        let mut from = File::open(path)?;
        from.seek(SeekFrom::Start(old))?;
        let mut to = File::create(&part_path)?;
        to.write_all(head)?;
        // The system copies, and shares blocks where the file system can.
        io::copy(&mut from, &mut to)?;
        to.sync_all()?;
        std::fs::rename(&part_path, path)
    })();
    if let Err(error) = written {
        let _ = std::fs::remove_file(&part_path);
        return Err(GgufError::io(&part_path, error));
    }
    LocalDisk.sync_names(folder(path));
    Ok(())
}

/// Where a head waits until there is room for it.
pub(super) fn head_path(path: &Path) -> PathBuf {
    let mut name = path.as_os_str().to_owned();
    name.push(".head");
    name.into()
}

const HEAD_MAGIC: &[u8; 8] = b"RQHEAD01";

/// Makes the file longer at its front and writes a head there. `false` where the file system cannot.
fn insert_head(path: &Path, size: u64, more: u64, head: &[u8]) -> Result<bool, GgufError> {
    let waiting = head_path(path);
    let begun = (|| {
        let mut file = File::create(&waiting)?;
        file.write_all(HEAD_MAGIC)?;
        file.write_all(&(size + more).to_le_bytes())?;
        file.write_all(head)?;
        file.sync_all()?;
        LocalDisk.sync_names(folder(path));
        insert(&OpenOptions::new().read(true).write(true).open(path)?, more)
    })();
    match begun {
        Ok(true) => finish_interrupted(path).map(|()| true),
        Ok(false) => {
            let _ = std::fs::remove_file(&waiting);
            Ok(false)
        }
        Err(error) => {
            let _ = std::fs::remove_file(&waiting);
            Err(GgufError::io(path, error))
        }
    }
}

/// Ends what an interrupted [`replace_metadata`] began, if there is such a thing.
///
/// # Errors
/// A system that refuses.
pub fn finish_interrupted(path: &Path) -> Result<(), GgufError> {
    let waiting = head_path(path);
    let Ok(found) = std::fs::read(&waiting) else { return Ok(()) };
    let size = std::fs::metadata(path).map_err(|error| GgufError::io(path, error))?.len();
    if let Some((magic, rest)) = found.split_first_chunk::<8>()
        && let Some((expected, head)) = rest.split_first_chunk::<8>()
        && magic == HEAD_MAGIC
        && u64::from_le_bytes(*expected) == size
    {
        write_head(path, head)?;
    }
    // Otherwise the file did not become longer, and is what it was.
    std::fs::remove_file(&waiting).map_err(|error| GgufError::io(&waiting, error))
}

#[cfg(target_os = "linux")]
fn insert(file: &File, more: u64) -> io::Result<bool> {
    use rustix::fs::{FallocateFlags, fallocate};
    use rustix::io::Errno;
    match fallocate(file, FallocateFlags::INSERT_RANGE, 0, more) {
        Ok(()) => Ok(true),
        Err(Errno::OPNOTSUPP | Errno::NOSYS | Errno::INVAL | Errno::PERM | Errno::FBIG) => {
            Ok(false)
        }
        Err(error) => Err(error.into()),
    }
}

#[cfg(not(target_os = "linux"))]
fn insert(_file: &File, _more: u64) -> io::Result<bool> {
    Ok(false)
}

/// What file systems insert multiples of.
fn block_size(path: &Path) -> Option<u64> {
    let stat = rustix::fs::statvfs(path).ok()?;
    Some(stat.f_bsize).filter(|&n| n > 0 && n % super::ALIGNMENT == 0)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::quant::QuantType;

    /// A file of one tensor whose bytes count up.
    fn sample(dir: &Path, metadata: &Metadata) -> PathBuf {
        let path = dir.join("model.gguf");
        let tensor = ("t".to_owned(), vec![64, 1000], QuantType::F32);
        let layout = Layout::new(metadata, [tensor]).unwrap();
        let writer = Writer::open(&LocalDisk, &path, &layout).unwrap();
        writer.write_at(0, 0, &data()).unwrap();
        std::fs::rename(Writer::part_path(&path), &path).unwrap();
        path
    }

    fn data() -> Vec<u8> {
        (0..64_000u32).flat_map(u32::to_le_bytes).collect()
    }

    #[track_caller]
    fn holds(path: &Path, key: &str, value: &str) {
        let file = GgufFile::open(path).unwrap();
        assert_eq!(file.metadata().str(key).unwrap(), Some(value));
        let bytes = std::fs::read(path).unwrap();
        assert!(bytes[file.tensor_range(0)] == data()[..]);
        assert!(!head_path(path).exists());
    }

    #[test]
    fn a_longer_head_is_inserted_and_then_has_room() {
        let dir = tempfile::tempdir().unwrap();
        let mut metadata = Metadata::new();
        metadata.set("general.name", "x");
        let path = sample(dir.path(), &metadata);
        let long = "long ".repeat(3000);
        metadata.set("general.name", long.as_str());
        let edited = replace(&path, &metadata, 0).unwrap();
        holds(&path, "general.name", &long);
        // Not every file system can.
        if edited == Edited::Inserted {
            let mut metadata = GgufFile::open(&path).unwrap().metadata().clone();
            for name in ["a name of another length", &"y".repeat(10_000)] {
                metadata.set("general.name", name);
                assert_eq!(replace_metadata(&path, &metadata).unwrap(), Edited::InPlace);
                holds(&path, "general.name", name);
            }
        }
    }

    #[test]
    fn what_was_interrupted_is_ended() {
        let dir = tempfile::tempdir().unwrap();
        let mut metadata = Metadata::new();
        metadata.set("general.name", "x");
        let path = sample(dir.path(), &metadata);
        let original = std::fs::read(&path).unwrap();
        // Killed after the file became longer: the old head, and more bytes than it speaks of.
        metadata.set("general.name", "after".repeat(100).as_str());
        replace(&path, &metadata, u64::MAX).unwrap();
        let edited = std::fs::read(&path).unwrap();
        let head = edited.len() - data().len();
        let waiting =
            [&HEAD_MAGIC[..], &(edited.len() as u64).to_le_bytes(), &edited[..head]].concat();
        let more = edited.len() - original.len();
        std::fs::write(&path, [&vec![0; more][..], &original].concat()).unwrap();
        std::fs::write(head_path(&path), &waiting).unwrap();
        assert!(matches!(GgufFile::open(&path), Err(GgufError::Interrupted { .. })));
        finish_interrupted(&path).unwrap();
        assert_eq!(std::fs::read(&path).unwrap(), edited);
        // Killed before: the file is what it was.
        std::fs::write(&path, &original).unwrap();
        for begun in [&waiting[..], &waiting[..11]] {
            std::fs::write(head_path(&path), begun).unwrap();
            finish_interrupted(&path).unwrap();
            assert_eq!(std::fs::read(&path).unwrap(), original);
            assert!(!head_path(&path).exists());
        }
    }
}
