//! Other metadata for an existing file: over the old head where it fits, with a longer head where the
//! file system can insert one, in a new file otherwise. The tensors, their table and the version stay
//! as they are.
//!
//! A head is read again and compared before anything is written. One that goes over the old head waits
//! beside the file as `FILE.head` until it is written and on disk, so that a process that is killed
//! leaves a file that the next call mends. A new file gets the name only when it is complete, on disk
//! and found to hold the old one's tensors.

use super::error::GgufError;
use super::file::{GgufFile, Header};
use super::layout::header;
use super::metadata::Metadata;
use super::value::Value;
use super::{ALIGNMENT, pad};
use crate::io::{
    Disk, LocalDisk, Part, beside, complete, folder, read_all, read_exact_at, write_all,
};
use std::fs::{File, OpenOptions};
use std::io::{self, Read, Write};
use std::ops::Range;
use std::path::{Path, PathBuf};
use xxhash_rust::xxh3::xxh3_64;

/// Holds what a head is longer than its metadata, so that the tensors need not move.
const PADDING: &str = "requant.padding";

/// Files with less than this are written anew: that takes no time, and leaves no padding.
const WORTH_INSERTING: u64 = 256 << 20;

/// Bytes that are copied, compared or written at a time.
const PIECE: usize = 1 << 20;

/// Bytes that are compared at the beginning, in the middle and at the end of a tensor.
const SAMPLE: u64 = 4096;

/// How metadata were replaced.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Edited {
    /// The tensors stayed where they are.
    InPlace,
    /// The file system made room for a longer head.
    Inserted,
    /// The file was written anew and replaced.
    Anew,
}

/// Gives a file other metadata; the one that a link leads to, where `path` is one. With `backup`, the
/// file is written anew, and the old one stays as `FILE.bak`.
///
/// Should the process be killed while it writes over the old head, the next call ends what was begun.
///
/// # Errors
/// A damaged file, a backup that exists already, a system that refuses. The file is what it was then,
/// unless it says that it was interrupted.
pub fn replace_metadata(
    path: &Path,
    metadata: &Metadata,
    backup: bool,
) -> Result<Edited, GgufError> {
    replace(&LocalDisk, path, metadata, backup, WORTH_INSERTING)
}

fn replace(
    disk: &dyn Disk,
    path: &Path,
    metadata: &Metadata,
    backup: bool,
    worth: u64,
) -> Result<Edited, GgufError> {
    let path = &target(path)?;
    let _lock = Lock::of(path)?;
    finish_interrupted(path)?;
    let file = GgufFile::open(path)?;
    let backup = match backup {
        true => Some(free_backup(path)?),
        false => None,
    };
    let mut metadata = metadata.clone();
    let was_padded = metadata.remove(PADDING).is_some();
    let plain = Head::new(&file, &metadata)?;
    let old = data_start(&file);
    if backup.is_none() {
        let large = was_padded || file.file_size() - old >= worth;
        let fitting = match plain.data_offset == old {
            true => Some(plain.clone()),
            false if large => plain.padded(&file, &metadata, old)?,
            false => None,
        };
        if let Some(fitting) = fitting {
            write_over(path, &file, &fitting, 0)?;
            return Ok(Edited::InPlace);
        }
        if large && let Some(block) = block_size(path, file.alignment()) {
            let with_key = plain.data_offset + 128;
            let target = old + with_key.saturating_sub(old).div_ceil(block) * block;
            if let Some(longer) = plain.padded(&file, &metadata, target)?
                && write_over(path, &file, &longer, target - old)?
            {
                return Ok(Edited::Inserted);
            }
        }
    }
    write_anew(disk, path, file, &plain, backup.as_deref())?;
    Ok(Edited::Anew)
}

/// Keeps other processes from changing a file at the same time.
struct Lock {
    _held: Box<dyn Part>,
    /// What is removed with it.
    beside: Option<PathBuf>,
}

impl Lock {
    fn of(path: &Path) -> Result<Self, GgufError> {
        // A locked file of Windows can be read and written through the handle that locks it alone.
        let beside = cfg!(windows).then(|| beside(path, ".lock"));
        let held = beside.as_deref().unwrap_or(path);
        let io = |error| GgufError::io(held, error);
        let part = LocalDisk.open(held).map_err(io)?;
        if !part.lock().map_err(io)? {
            let what = "another process is changing it".to_owned();
            return Err(GgufError::Edit { path: path.to_owned(), what });
        }
        Ok(Self { _held: part, beside })
    }
}

impl Drop for Lock {
    fn drop(&mut self) {
        if let Some(path) = &self.beside {
            let _ = LocalDisk.remove(path);
        }
    }
}

/// The file itself, where `path` may be a link to it.
fn target(path: &Path) -> Result<PathBuf, GgufError> {
    path.canonicalize().map_err(|error| GgufError::io(path, error))
}

fn free_backup(path: &Path) -> Result<PathBuf, GgufError> {
    let backup = beside(path, ".bak");
    match backup.symlink_metadata() {
        Ok(_) => Err(GgufError::Backup { path: backup }),
        Err(_) => Ok(backup),
    }
}

/// Where what follows the head begins. The padding of a file without tensors belongs to the head.
fn data_start(file: &GgufFile) -> u64 {
    match file.tensors().is_empty() {
        true => file.data_offset().next_multiple_of(ALIGNMENT).min(file.file_size()),
        false => file.data_offset(),
    }
}

/// What comes before the data of an edited file.
#[derive(Clone)]
struct Head {
    /// All but the zeros at its end.
    bytes: Vec<u8>,
    data_offset: u64,
}

impl Head {
    /// The head of a file with other metadata, read again to see that it says what it should.
    fn new(file: &GgufFile, metadata: &Metadata) -> Result<Self, GgufError> {
        let refused = |what: String| GgufError::Edit { path: file.path().to_owned(), what };
        let n_tensors = file.tensors().len() as u64;
        let bytes = header(file.version(), n_tensors, metadata, file.table());
        let alignment = match n_tensors {
            0 => ALIGNMENT,
            _ => file.alignment(),
        };
        let data_offset = pad(bytes.len() as u64, alignment)
            .ok_or_else(|| refused("the metadata are too large".to_owned()))?;
        let data = file.file_size() - file.data_offset();
        let again = Header::parse(file.path(), &bytes, data_offset.saturating_add(data))
            .map_err(|error| refused(format!("what was to be written cannot be read: {error}")))?;
        let same = again.metadata() == metadata
            && again.tensors() == file.tensors()
            && again.alignment() == file.alignment();
        match same {
            true => Ok(Self { bytes, data_offset }),
            false => Err(refused("what was to be written does not describe its tensors".into())),
        }
    }

    /// The same metadata with as much padding as lets the data begin at `target`; `None` where there
    /// is no room for it.
    fn padded(
        &self,
        file: &GgufFile,
        metadata: &Metadata,
        target: u64,
    ) -> Result<Option<Self>, GgufError> {
        let mut metadata = metadata.clone();
        metadata.set_last(PADDING, "");
        let shortest = Self::new(file, &metadata)?;
        let Some(missing) = target.checked_sub(shortest.data_offset) else { return Ok(None) };
        metadata.set_last(PADDING, Value::String(vec![b' '; missing as usize].into()));
        Self::new(file, &metadata).map(|head| Some(head).filter(|head| head.data_offset == target))
    }

    /// Writes it, zeros included.
    fn write(&self, part: &dyn Part) -> io::Result<()> {
        write_all(part, &self.bytes, 0)?;
        for_pieces(self.bytes.len() as u64..self.data_offset, |piece| {
            write_all(part, &vec![0; (piece.end - piece.start) as usize], piece.start)
        })
    }
}

fn for_pieces(
    bytes: Range<u64>,
    mut each: impl FnMut(Range<u64>) -> io::Result<()>,
) -> io::Result<()> {
    bytes
        .clone()
        .step_by(PIECE)
        .try_for_each(|start| each(start..bytes.end.min(start + PIECE as u64)))
}

/// Writes the file anew with another head, sees that it holds what it should, and replaces the old one.
fn write_anew(
    disk: &dyn Disk,
    path: &Path,
    old: GgufFile,
    head: &Head,
    backup: Option<&Path>,
) -> Result<(), GgufError> {
    let new_path = beside(path, ".edit");
    let io = |error| GgufError::io(&new_path, error);
    let mut kept = None;
    let written = complete(disk, &new_path, path, || {
        let from = crate::io::open(path).map_err(|error| GgufError::io(path, error))?;
        let new = disk.open(&new_path).map_err(io)?;
        let data = data_start(&old)..old.file_size();
        new.reserve(0).map_err(io)?;
        new.reserve(head.data_offset + (data.end - data.start)).map_err(io)?;
        head.write(new.as_ref()).map_err(io)?;
        copy(&from, data, new.as_ref(), head.data_offset).map_err(io)?;
        keep_access(&from, &new_path).map_err(io)?;
        new.sync().map_err(io)?;
        check(&old, &from, new.as_ref(), &new_path, head)?;
        // Windows replaces no file that is mapped.
        drop(old);
        if let Some(backup) = backup {
            keep_old(path, backup).map_err(|error| GgufError::io(backup, error))?;
            kept = Some(backup);
        }
        Ok(())
    });
    if let (Err(_), Some(backup)) = (&written, kept) {
        let _ = disk.remove(backup);
    }
    written
}

/// Copies bytes of a file; the system does where it can, and may share blocks.
fn copy(from: &File, bytes: Range<u64>, to: &dyn Part, offset: u64) -> io::Result<()> {
    if to.copy_from(from, bytes.clone(), offset)? {
        return Ok(());
    }
    let mut buffer = Vec::new();
    for_pieces(bytes.clone(), |piece| {
        buffer.resize((piece.end - piece.start) as usize, 0);
        read_exact_at(from, &mut buffer, piece.start)?;
        write_all(to, &buffer, offset + (piece.start - bytes.start))
    })
}

/// Gives the new file the permissions of the old one, and its owner where the system allows that.
fn keep_access(old: &File, new: &Path) -> io::Result<()> {
    let metadata = old.metadata()?;
    #[cfg(unix)]
    {
        use std::os::unix::fs::{MetadataExt, chown};
        let _ = chown(new, Some(metadata.uid()), Some(metadata.gid()));
    }
    std::fs::set_permissions(new, metadata.permissions())
}

/// Keeps the old file under another name: a second name for the same bytes where the file system has
/// such, a copy elsewhere.
fn keep_old(path: &Path, backup: &Path) -> io::Result<()> {
    if std::fs::hard_link(path, backup).is_ok() {
        return Ok(());
    }
    let mut to = File::create_new(backup)?;
    let copied = io::copy(&mut File::open(path)?, &mut to).and_then(|_| to.sync_all());
    if copied.is_err() {
        let _ = std::fs::remove_file(backup);
    }
    copied
}

/// Compares the new file's table, and a sample of each tensor, with the old one's.
fn check(
    old: &GgufFile,
    from: &File,
    new: &dyn Part,
    new_path: &Path,
    head: &Head,
) -> Result<(), GgufError> {
    let differs = |what: &str| {
        let what = format!("{what} in the new file; the old one stays");
        Err(GgufError::Edit { path: old.path().to_owned(), what })
    };
    let mut begin = vec![0; head.bytes.len()];
    let io = |error| GgufError::io(new_path, error);
    read_all(new, &mut begin, 0).map_err(io)?;
    let again = Header::parse(new_path, &begin, new.size().map_err(io)?)?;
    if begin != head.bytes || again.tensors() != old.tensors() {
        return differs("the head is another");
    }
    for (i, tensor) in old.tensors().iter().enumerate() {
        let range = old.tensor_range(i);
        let (start, n) = (range.start as u64, tensor.n_bytes());
        for at in [0, n / 2, n.saturating_sub(SAMPLE)] {
            let mut there = vec![0; SAMPLE.min(n - at) as usize];
            let mut here = there.clone();
            read_exact_at(from, &mut there, start + at)
                .map_err(|error| GgufError::io(old.path(), error))?;
            read_all(new, &mut here, again.data_offset() + tensor.offset + at).map_err(io)?;
            if there != here {
                return differs(&format!("tensor `{}` is another", tensor.name));
            }
        }
    }
    Ok(())
}

const HEAD_MAGIC: &[u8; 8] = b"RQHEAD02";

/// Where a head waits until it is written.
fn head_path(path: &Path) -> PathBuf {
    beside(path, ".head")
}

/// Whether a change of this file's metadata was interrupted.
pub(super) fn is_waiting(path: &Path) -> bool {
    let Ok(path) = target(path) else { return false };
    let mut magic = [0; 8];
    let begin = File::open(head_path(&path)).and_then(|mut file| file.read_exact(&mut magic));
    begin.is_ok() && &magic == HEAD_MAGIC
}

/// Writes a head over the old one, after making the file `more` bytes longer at its front. `false`
/// where the file system cannot.
fn write_over(path: &Path, old: &GgufFile, head: &Head, more: u64) -> Result<bool, GgufError> {
    let waiting = head_path(path);
    let mut bytes = HEAD_MAGIC.to_vec();
    for number in [old.file_size() + more, head.data_offset, xxh3_64(&head.bytes)] {
        bytes.extend(number.to_le_bytes());
    }
    bytes.extend(&head.bytes);
    let begun = write_waiting(&waiting, &bytes).map_err(|error| GgufError::io(&waiting, error));
    let begun = begun.and_then(|()| {
        LocalDisk.sync_names(folder(path));
        let inserted = match more {
            0 => Ok(true),
            _ => OpenOptions::new().write(true).open(path).and_then(|file| insert(&file, more)),
        };
        inserted.map_err(|error| GgufError::io(path, error))
    });
    if let Ok(true) = begun {
        return finish_interrupted(path).map(|()| true);
    }
    let _ = std::fs::remove_file(&waiting);
    begun
}

fn write_waiting(waiting: &Path, bytes: &[u8]) -> io::Result<()> {
    let mut file = File::create(waiting)?;
    file.write_all(bytes)?;
    file.sync_all()
}

/// Ends what an interrupted [`replace_metadata`] began, if there is such a thing.
///
/// # Errors
/// A system that refuses.
pub fn finish_interrupted(path: &Path) -> Result<(), GgufError> {
    let path = &target(path)?;
    if !is_waiting(path) {
        return Ok(());
    }
    let waiting = head_path(path);
    let io = |error| GgufError::io(path, error);
    let found = std::fs::read(&waiting).map_err(|error| GgufError::io(&waiting, error))?;
    let part = LocalDisk.open(path).map_err(io)?;
    // Otherwise the file did not become longer, and is what it was.
    if let Some((size, head)) = waiting_head(&found)
        && part.size().map_err(io)? == size
    {
        head.write(part.as_ref()).and_then(|()| part.sync()).map_err(io)?;
    }
    std::fs::remove_file(&waiting).map_err(|error| GgufError::io(&waiting, error))
}

/// The head that waits, with the size of the file that it belongs to; `None` where it is incomplete.
fn waiting_head(found: &[u8]) -> Option<(u64, Head)> {
    let rest = found.strip_prefix(HEAD_MAGIC)?;
    let (numbers, bytes) = rest.split_first_chunk::<24>()?;
    let [size, data_offset, hash] =
        [0, 8, 16].map(|at| u64::from_le_bytes(std::array::from_fn(|i| numbers[at + i])));
    let whole = xxh3_64(bytes) == hash;
    whole.then(|| (size, Head { bytes: bytes.to_vec(), data_offset }))
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

/// What a file can be made longer by so that its data stays aligned: multiples of the file system's
/// blocks, and of the alignment.
fn block_size(path: &Path, alignment: u64) -> Option<u64> {
    let block = fs4::allocation_granularity(path).ok()?;
    block.is_power_of_two().then(|| block.max(alignment))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::gguf::{Layout, Writer};
    use crate::io::part_path;
    use crate::io::small::Small;
    use crate::quant::QuantType;

    /// A file of one tensor whose bytes count up.
    fn sample(dir: &Path, metadata: &Metadata) -> PathBuf {
        let path = dir.join("model.gguf");
        let tensor = ("t".to_owned(), vec![64, 1000], QuantType::F32);
        let layout = Layout::new(metadata, [tensor]).unwrap();
        let writer = Writer::open(&LocalDisk, &path, &layout).unwrap();
        writer.write_at(0, 0, &data()).unwrap();
        std::fs::rename(part_path(&path), &path).unwrap();
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
        let edited = replace(&LocalDisk, &path, &metadata, false, 0).unwrap();
        holds(&path, "general.name", &long);
        // Not every file system can.
        if edited == Edited::Inserted {
            let mut metadata = GgufFile::open(&path).unwrap().metadata().clone();
            for name in ["a name of another length", &"y".repeat(10_000)] {
                metadata.set("general.name", name);
                assert_eq!(replace_metadata(&path, &metadata, false).unwrap(), Edited::InPlace);
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
        replace(&LocalDisk, &path, &metadata, false, u64::MAX).unwrap();
        let edited = std::fs::read(&path).unwrap();
        let head = edited.len() - data().len();
        let numbers = [edited.len() as u64, head as u64, xxh3_64(&edited[..head])];
        let numbers = numbers.map(u64::to_le_bytes).concat();
        let waiting = [&HEAD_MAGIC[..], &numbers, &edited[..head]].concat();
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

    #[test]
    fn a_head_that_was_written_by_half_is_written_in_full() {
        let dir = tempfile::tempdir().unwrap();
        let mut metadata = Metadata::new();
        metadata.set("general.name", "first");
        let path = sample(dir.path(), &metadata);
        let original = std::fs::read(&path).unwrap();
        metadata.set("general.name", "other");
        assert_eq!(replace_metadata(&path, &metadata, false).unwrap(), Edited::InPlace);
        let edited = std::fs::read(&path).unwrap();
        let head = &edited[..edited.len() - data().len()];
        let numbers = [edited.len() as u64, head.len() as u64, xxh3_64(head)];
        let waiting = [&HEAD_MAGIC[..], &numbers.map(u64::to_le_bytes).concat(), head].concat();
        let mut torn = original;
        torn[..20].fill(0xee);
        for (there, expected) in [(waiting.len(), &edited), (waiting.len() - 1, &torn)] {
            std::fs::write(&path, &torn).unwrap();
            std::fs::write(head_path(&path), &waiting[..there]).unwrap();
            assert!(matches!(GgufFile::open(&path), Err(GgufError::Interrupted { .. })));
            finish_interrupted(&path).unwrap();
            assert_eq!(std::fs::read(&path).unwrap(), *expected);
        }
        // A file of that name that is somebody else's.
        std::fs::write(head_path(&path), "mine").unwrap();
        std::fs::write(&path, &edited).unwrap();
        GgufFile::open(&path).unwrap();
        finish_interrupted(&path).unwrap();
        assert_eq!(std::fs::read(head_path(&path)).unwrap(), b"mine");
    }

    #[test]
    fn a_failing_disk_leaves_the_old_file_alone() {
        let dir = tempfile::tempdir().unwrap();
        let mut metadata = Metadata::new();
        metadata.set("general.name", "x");
        let path = sample(dir.path(), &metadata);
        let original = std::fs::read(&path).unwrap();
        metadata.set("general.name", "long".repeat(100).as_str());
        for room in [0, 300, 4096, 200_000] {
            let disk = Small::new(room);
            let error = replace(&disk, &path, &metadata, true, u64::MAX).unwrap_err();
            assert!(matches!(&error, GgufError::Io(error) if error.is_full()), "{error}");
            assert_eq!(std::fs::read(&path).unwrap(), original);
            assert_eq!(std::fs::read_dir(&dir).unwrap().count(), 1);
        }
        let error = replace(&Small::without_names(), &path, &metadata, true, u64::MAX).unwrap_err();
        assert!(error.to_string().contains("model.gguf: "), "{error}");
        assert_eq!(std::fs::read(&path).unwrap(), original);
        assert_eq!(std::fs::read_dir(&dir).unwrap().count(), 1);
        let disk = Small::new(1 << 20);
        assert_eq!(replace(&disk, &path, &metadata, true, u64::MAX).unwrap(), Edited::Anew);
        holds(&path, "general.name", &"long".repeat(100));
        assert_eq!(std::fs::read(beside(&path, ".bak")).unwrap(), original);
    }
}
