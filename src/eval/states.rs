//! Hidden states between two layers: in memory, or in a scratch file, where an evaluation that is
//! stopped goes on.
//!
//! The file has one slot more than there are batches. A batch that has passed a layer is written
//! into the free slot, and only then the slot that it came from is free; a journal says which slot
//! holds which batch after how many layers, so that a process may end at any point. What observers
//! have seen of a layer lies in a file of its own, in two places by turns; it and the states of the
//! batch that was seen last are in one line of the journal.

use super::error::EvalError;
use super::exact::Apart;
use crate::io::{Disk, IoError, Journal, LocalDisk, Part, read_all, write_all};
use ndarray::{Array2, s};
use std::borrow::Cow;
use std::io;
use std::ops::Range;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};
use xxhash_rust::xxh3::Xxh3;

/// A folder where hidden states wait between layers, and where an evaluation that was stopped goes
/// on with the last batch that passed a layer.
#[derive(Clone)]
pub struct Scratch {
    folder: PathBuf,
    disk: Arc<dyn Disk>,
    /// Files that are no longer needed when the results are safe.
    files: Arc<Mutex<Vec<PathBuf>>>,
}

impl std::fmt::Debug for Scratch {
    fn fmt(&self, f: &mut std::fmt::Formatter) -> std::fmt::Result {
        f.debug_tuple("Scratch").field(&self.folder).finish()
    }
}

impl Scratch {
    /// A folder with room: 4 bytes for each token and dimension of each model.
    pub fn new(folder: &Path) -> Self {
        Self::on(Arc::new(LocalDisk), folder)
    }

    /// A folder of another disk than the local one.
    pub fn on(disk: Arc<dyn Disk>, folder: &Path) -> Self {
        Self { folder: folder.to_owned(), disk, files: Arc::default() }
    }

    /// The folder.
    pub fn folder(&self) -> &Path {
        &self.folder
    }

    /// Removes what was left for the case that the evaluation is stopped; to be called when its
    /// results are safe. Returns how many files of other evaluations lie in the folder, and their
    /// bytes.
    pub fn finish(&self) -> (usize, u64) {
        for path in self.files.lock().unwrap_or_else(PoisonError::into_inner).drain(..) {
            // Left-over files cost room, not results.
            let _ = self.disk.remove(&path);
        }
        let entries = std::fs::read_dir(&self.folder).into_iter().flatten().flatten();
        let others = entries.filter(|entry| {
            let name = entry.file_name();
            let name = name.to_string_lossy();
            name.starts_with("requant-") && name.ends_with(".states")
        });
        let sizes = others.filter_map(|entry| entry.metadata().ok()).map(|data| data.len());
        sizes.fold((0, 0), |(n, bytes), size| (n + 1, bytes + size))
    }
}

/// The states of all batches.
pub(super) struct States {
    columns: usize,
    batches: Vec<Batch>,
    place: Place,
    notes: Vec<(u32, Apart)>,
}

struct Batch {
    rows: usize,
    /// Layers that it has passed; `None` before it is embedded.
    passed: Option<u32>,
}

enum Place {
    Memory(Vec<Array2<f32>>),
    File(Box<Slots>),
}

struct Slots {
    path: PathBuf,
    part: Box<dyn Part>,
    slot_bytes: u64,
    slot_of: Vec<u64>,
    free: u64,
    journal: Journal,
    seen: Option<Seen>,
}

/// What an observer has seen, layer by layer.
struct Seen {
    path: PathBuf,
    part: Box<dyn Part>,
    layers: Vec<Piece>,
}

/// Where the file has what was seen of a layer.
#[derive(Clone, Copy)]
struct Piece {
    layer: u32,
    at: u64,
    length: u64,
    hash: u64,
}

/// Bytes that are turned into floats, or back, at a time.
const PIECE: usize = 1 << 18;

impl States {
    /// Room for batches of so many rows. `identity` tells evaluations apart that may leave states in
    /// the same folder; an observed one also keeps what was seen.
    pub fn new(
        rows: &[usize],
        columns: usize,
        scratch: Option<&Scratch>,
        identity: u64,
        observed: bool,
    ) -> Result<Self, EvalError> {
        let batches = rows.iter().map(|&rows| Batch { rows, passed: None }).collect();
        let place = match scratch {
            Some(scratch) => {
                let slot_bytes = 4 * (columns * rows.iter().max().copied().unwrap_or(0)) as u64;
                let n = rows.len() as u64;
                Place::File(Box::new(Slots::open(scratch, identity, observed, slot_bytes, n)?))
            }
            None => Place::Memory(rows.iter().map(|_| Array2::zeros((0, columns))).collect()),
        };
        let mut states = Self { columns, batches, place, notes: Vec::new() };
        states.recover()?;
        Ok(states)
    }

    /// Layers that a batch has passed; `None` before it is embedded.
    pub fn passed(&self, batch: usize) -> Option<u32> {
        self.batches[batch].passed
    }

    /// Rows times layers that all batches have passed.
    pub fn work(&self) -> u64 {
        let of = |batch: &Batch| batch.rows as u64 * u64::from(batch.passed.unwrap_or(0));
        self.batches.iter().map(of).sum()
    }

    /// The error that was noted of a layer.
    pub fn note(&self, layer: u32) -> Option<Apart> {
        self.notes.iter().find(|note| note.0 == layer).map(|note| note.1)
    }

    /// Notes the error of a layer, for the case that the evaluation is stopped.
    pub fn set_note(&mut self, layer: u32, error: Apart) -> Result<(), EvalError> {
        self.notes.push((layer, error));
        let words = error.words().map(|word| format!("{word:016x}"));
        self.record(&format!("note {layer} {}", words.join(" ")))
    }

    /// Has batches begin anew that have passed more layers than this; where an observer would see
    /// something twice, all of them.
    pub fn restart_beyond(&mut self, layers: u32) -> Result<(), EvalError> {
        if self.batches.iter().all(|batch| batch.passed.is_none_or(|passed| passed <= layers)) {
            return Ok(());
        }
        for batch in &mut self.batches {
            batch.passed = batch.passed.filter(|&passed| passed <= layers);
        }
        match &self.place {
            Place::File(slots) if slots.seen.is_some() => self.restart(),
            _ => Ok(()),
        }
    }

    /// Has all batches begin anew.
    fn restart(&mut self) -> Result<(), EvalError> {
        self.batches.iter_mut().for_each(|batch| batch.passed = None);
        self.notes.clear();
        let Place::File(slots) = &mut self.place else { return Ok(()) };
        if let Some(seen) = &mut slots.seen {
            seen.layers.clear();
        }
        Ok(slots.journal.clear()?)
    }

    /// Gives a batch its states after `passed` layers, together with what an observer has seen of
    /// the last of them.
    pub fn put(
        &mut self,
        batch: usize,
        passed: u32,
        states: Array2<f32>,
        seen: Option<&[u8]>,
    ) -> Result<(), EvalError> {
        match &mut self.place {
            Place::Memory(all) => all[batch] = states,
            Place::File(slots) => {
                let slot = slots.free;
                let hash = slots.write(slot, &states, seed(batch, passed))?;
                let seen = match (&mut slots.seen, seen) {
                    (Some(file), Some(bytes)) => file.put(passed.saturating_sub(1), bytes)?,
                    _ => String::new(),
                };
                slots.free = std::mem::replace(&mut slots.slot_of[batch], slot);
                self.record(&format!("{batch} {passed} {slot} {hash:016x}{seen}"))?;
            }
        }
        self.batches[batch].passed = Some(passed);
        Ok(())
    }

    /// Takes a batch's states, to be given back with [`States::put`].
    pub fn take(&mut self, batch: usize) -> Result<Array2<f32>, EvalError> {
        let all = 0..self.batches[batch].rows;
        match &mut self.place {
            Place::Memory(states) => {
                Ok(std::mem::replace(&mut states[batch], Array2::zeros((0, self.columns))))
            }
            Place::File(slots) => slots.read(slots.slot_of[batch], all, self.columns),
        }
    }

    /// Some rows of a batch.
    pub fn rows(&self, batch: usize, rows: Range<usize>) -> Result<Cow<'_, [f32]>, EvalError> {
        match &self.place {
            Place::Memory(states) => {
                let rows = states[batch].slice(s![rows, ..]);
                Ok(Cow::Borrowed(rows.to_slice().expect("rows are contiguous")))
            }
            Place::File(slots) => {
                let read = slots.read(slots.slot_of[batch], rows, self.columns)?;
                Ok(Cow::Owned(read.into_raw_vec_and_offset().0))
            }
        }
    }

    /// Whether what an observer has seen is kept.
    pub fn keeps_seen(&self) -> bool {
        matches!(&self.place, Place::File(slots) if slots.seen.is_some())
    }

    /// What an observer had seen before the evaluation was stopped, a layer at a time.
    pub fn each_seen(
        &self,
        mut give: impl FnMut(u32, &[u8]) -> Result<(), EvalError>,
    ) -> Result<(), EvalError> {
        let Place::File(slots) = &self.place else { return Ok(()) };
        let Some(seen) = &slots.seen else { return Ok(()) };
        seen.layers.iter().try_for_each(|&piece| give(piece.layer, &seen.read(piece)?))
    }

    fn record(&mut self, line: &str) -> Result<(), EvalError> {
        let Place::File(slots) = &mut self.place else { return Ok(()) };
        Ok(slots.journal.append(line)?)
    }

    /// Takes up what an earlier process left, as far as hashes confirm it.
    fn recover(&mut self) -> Result<(), EvalError> {
        let Place::File(slots) = &mut self.place else { return Ok(()) };
        let text = slots.journal.read()?;
        let n = self.batches.len();
        let mut last: Vec<Option<(u32, u64, u64)>> = vec![None; n];
        for line in text.lines() {
            let words: Vec<&str> = line.split(' ').collect();
            if let ["note", layer, a, b, c, d] = words[..] {
                let words = [hex(a), hex(b), hex(c), hex(d)];
                if let (Ok(layer), [Some(a), Some(b), Some(c), Some(d)]) = (layer.parse(), words) {
                    self.notes.push((layer, Apart::from_words([a, b, c, d])));
                }
                continue;
            }
            let [batch, passed, slot, hash, ref seen @ ..] = words[..] else { continue };
            let (Ok(batch), Ok(passed), Ok(slot), Some(hash)) =
                (batch.parse::<usize>(), passed.parse::<u32>(), slot.parse::<u64>(), hex(hash))
            else {
                continue;
            };
            if batch >= n || slot > n as u64 {
                continue;
            }
            last[batch] = Some((passed, slot, hash));
            if let ([at, length, hash], Some(file), Some(layer)) =
                (seen, &mut slots.seen, passed.checked_sub(1))
                && let (Ok(at), Ok(length), Some(hash)) = (at.parse(), length.parse(), hex(hash))
            {
                file.set(Piece { layer, at, length, hash });
            }
        }
        for (batch, found) in last.iter().enumerate() {
            let Some((passed, slot, hash)) = *found else { continue };
            slots.slot_of[batch] = slot;
            let found =
                slots.hash(slot, self.batches[batch].rows, self.columns, seed(batch, passed));
            self.batches[batch].passed = found.is_ok_and(|found| found == hash).then_some(passed);
        }
        // What was seen of a batch that begins anew must not be counted twice.
        let complete =
            self.batches.iter().zip(&last).all(|(b, l)| b.passed.is_some() == l.is_some());
        if let Some(seen) = &slots.seen
            && !(complete && seen.layers.iter().all(|&piece| seen.sound(piece)))
        {
            self.restart()?;
        }
        let Place::File(slots) = &mut self.place else { return Ok(()) };
        // Batches that begin anew take slots that no other holds.
        let of_sound = self.batches.iter().zip(&slots.slot_of).filter(|(b, _)| b.passed.is_some());
        let held: Vec<u64> = of_sound.map(|(_, &slot)| slot).collect();
        let mut free = (0..=n as u64).filter(|slot| !held.contains(slot));
        for (batch, slot) in self.batches.iter().zip(&mut slots.slot_of) {
            if batch.passed.is_none() {
                *slot = free.next().unwrap_or(n as u64);
            }
        }
        slots.free = free.next().unwrap_or(n as u64);
        Ok(())
    }
}

impl Slots {
    fn open(
        scratch: &Scratch,
        identity: u64,
        observed: bool,
        slot_bytes: u64,
        n: u64,
    ) -> Result<Self, EvalError> {
        let path = scratch.folder.join(format!("requant-{identity:016x}.states"));
        let [journal_path, seen_path] = ["journal", "seen"].map(|end| path.with_extension(end));
        let disk = scratch.disk.as_ref();
        let Some(journal) = Journal::open(disk, &journal_path)? else {
            return Err(EvalError::InUse { path: journal_path });
        };
        {
            let mut files = scratch.files.lock().unwrap_or_else(PoisonError::into_inner);
            files.extend([journal_path.clone(), path.clone()]);
            files.extend(observed.then(|| seen_path.clone()));
        }
        let open = |path: &Path| disk.open(path).map_err(|error| IoError::new(path, error));
        let part = open(&path)?;
        // A disk without room for all of it is better noticed now than after days.
        if let Err(error) = part.reserve((n + 1) * slot_bytes) {
            if journal.size().is_ok_and(|size| size == 0) {
                // Nothing is in there that one could go on with.
                for path in [&path, &journal_path] {
                    let _ = disk.remove(path);
                }
            }
            return Err(IoError::new(&path, error).into());
        }
        let seen = match observed {
            true => Some(Seen { part: open(&seen_path)?, path: seen_path, layers: Vec::new() }),
            false => None,
        };
        let slot_of = (0..n).collect();
        Ok(Self { path, part, slot_bytes, slot_of, free: n, journal, seen })
    }

    /// Writes a batch's states, and gives their hash.
    fn write(&self, slot: u64, states: &Array2<f32>, mut hash: Xxh3) -> Result<u64, EvalError> {
        let mut bytes = Vec::with_capacity(PIECE);
        let mut at = slot * self.slot_bytes;
        for piece in states.as_slice().expect("states are contiguous").chunks(PIECE / 4) {
            bytes.clear();
            bytes.extend(piece.iter().flat_map(|x| x.to_le_bytes()));
            hash.update(&bytes);
            let written = write_all(self.part.as_ref(), &bytes, at);
            written.map_err(|error| IoError::new(&self.path, error))?;
            at += bytes.len() as u64;
        }
        Ok(hash.digest())
    }

    fn read(
        &self,
        slot: u64,
        rows: Range<usize>,
        columns: usize,
    ) -> Result<Array2<f32>, EvalError> {
        let first = slot * self.slot_bytes + 4 * (rows.start * columns) as u64;
        let mut values = Vec::with_capacity(rows.len() * columns);
        self.pieces(first, 4 * rows.len() * columns, |bytes| {
            values.extend(bytes.as_chunks::<4>().0.iter().map(|&b| f32::from_le_bytes(b)));
        })?;
        Ok(Array2::from_shape_vec((rows.len(), columns), values).expect("as many as were read"))
    }

    fn hash(&self, slot: u64, rows: usize, columns: usize, hash: Xxh3) -> Result<u64, EvalError> {
        let mut hash = hash;
        self.pieces(slot * self.slot_bytes, 4 * rows * columns, |bytes| hash.update(bytes))?;
        Ok(hash.digest())
    }

    fn pieces(
        &self,
        mut at: u64,
        mut length: usize,
        mut give: impl FnMut(&[u8]),
    ) -> Result<(), EvalError> {
        let mut bytes = vec![0; PIECE.min(length)];
        while length > 0 {
            let piece = &mut bytes[..PIECE.min(length)];
            let read = read_all(self.part.as_ref(), piece, at);
            read.map_err(|error| IoError::new(&self.path, error))?;
            give(piece);
            at += piece.len() as u64;
            length -= piece.len();
        }
        Ok(())
    }
}

impl Seen {
    /// Writes what was seen of a layer where nothing lies that the journal still needs.
    fn put(&mut self, layer: u32, bytes: &[u8]) -> Result<String, EvalError> {
        let end = |pieces: &mut dyn Iterator<Item = &Piece>| {
            pieces.map(|piece| piece.at + piece.length).max().unwrap_or(0)
        };
        let before = end(&mut self.layers.iter().filter(|piece| piece.layer != layer));
        let length = bytes.len() as u64;
        let at = match self.layers.iter().find(|piece| piece.layer == layer) {
            Some(piece) if piece.at < before + length => piece.at + piece.length,
            _ => before,
        };
        let written = write_all(self.part.as_ref(), bytes, at);
        written.map_err(|error| IoError::new(&self.path, error))?;
        let hash = xxhash_rust::xxh3::xxh3_64(bytes);
        self.set(Piece { layer, at, length, hash });
        Ok(format!(" {at} {length} {hash:016x}"))
    }

    fn set(&mut self, piece: Piece) {
        self.layers.retain(|old| old.layer != piece.layer);
        self.layers.push(piece);
    }

    fn read(&self, piece: Piece) -> Result<Vec<u8>, EvalError> {
        // The file tells how much there can be; a damaged journal may claim anything.
        let io = |error| IoError::new(&self.path, error);
        if piece
            .at
            .checked_add(piece.length)
            .is_none_or(|end| self.part.size().is_ok_and(|n| end > n))
        {
            return Err(io(io::ErrorKind::UnexpectedEof.into()).into());
        }
        let mut bytes = vec![0; piece.length as usize];
        read_all(self.part.as_ref(), &mut bytes, piece.at).map_err(io)?;
        Ok(bytes)
    }

    fn sound(&self, piece: Piece) -> bool {
        self.read(piece).is_ok_and(|bytes| xxhash_rust::xxh3::xxh3_64(&bytes) == piece.hash)
    }
}

/// The hash of a batch's states begins with what they are, so that no other's can stand in.
fn seed(batch: usize, passed: u32) -> Xxh3 {
    let mut hash = Xxh3::new();
    hash.update(&(batch as u64).to_le_bytes());
    hash.update(&passed.to_le_bytes());
    hash
}

fn hex(word: &str) -> Option<u64> {
    u64::from_str_radix(word, 16).ok()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::io::small::Small;

    fn states(folder: &Path, observed: bool) -> (Scratch, States) {
        let scratch = Scratch::new(folder);
        let states = States::new(&[2, 2, 1], 3, Some(&scratch), 7, observed).unwrap();
        (scratch, states)
    }

    fn passed(states: &States) -> [Option<u32>; 3] {
        [0, 1, 2].map(|batch| states.passed(batch))
    }

    fn filled(rows: usize, value: f32) -> Array2<f32> {
        Array2::from_elem((rows, 3), value)
    }

    /// Changes a byte in the middle of a file.
    fn damage(path: &Path, at: usize) {
        let mut bytes = std::fs::read(path).unwrap();
        bytes[at] ^= 1;
        std::fs::write(path, bytes).unwrap();
    }

    #[test]
    fn what_was_put_is_found_again_by_another_process() {
        let dir = tempfile::tempdir().unwrap();
        let (_, mut first) = states(dir.path(), false);
        assert_eq!(first.passed(0), None);
        for (batch, rows) in [2, 2, 1].into_iter().enumerate() {
            first.put(batch, 0, filled(rows, batch as f32), None).unwrap();
        }
        for passed in 1..4 {
            let rows = first.take(1).unwrap() + 10.0;
            first.put(1, passed, rows, None).unwrap();
        }
        let error = Apart::from_words([1, 2, 3, u64::MAX]);
        first.set_note(2, error).unwrap();
        assert_eq!(*first.rows(1, 1..2).unwrap(), [31.0; 3]);
        drop(first);
        // A line that was begun when the process ended: with what comes next it would be one.
        let journal = dir.path().join("requant-0000000000000007.journal");
        let mut bytes = std::fs::read(&journal).unwrap();
        bytes.push(b'2');
        std::fs::write(&journal, bytes).unwrap();
        let (_, mut second) = states(dir.path(), false);
        assert_eq!(passed(&second), [Some(0), Some(3), Some(0)]);
        assert_eq!(second.work(), 6);
        assert_eq!(second.note(2), Some(error));
        assert_eq!(second.take(1).unwrap(), filled(2, 31.0));
        assert_eq!(second.take(2).unwrap(), filled(1, 2.0));
        second.put(0, 1, filled(2, 5.0), None).unwrap();
        drop(second);
        let (scratch, mut third) = states(dir.path(), false);
        assert_eq!(passed(&third), [Some(1), Some(3), Some(0)]);
        assert_eq!(third.take(0).unwrap(), filled(2, 5.0));
        third.restart_beyond(1).unwrap();
        assert_eq!(passed(&third), [Some(1), None, Some(0)]);
        std::fs::write(dir.path().join("requant-1.states"), "abc").unwrap();
        assert_eq!(scratch.finish(), (1, 3));
        assert_eq!(std::fs::read_dir(dir.path()).unwrap().count(), 1);
    }

    #[test]
    fn a_full_disk_keeps_what_was_put_before() {
        let dir = tempfile::tempdir().unwrap();
        for room in 0..300 {
            let disk = Arc::new(Small::new(room));
            let scratch = Scratch::on(disk, dir.path());
            let mut first = States::new(&[2, 2, 1], 3, Some(&scratch), 7, true).unwrap();
            let mut last = [None; 3];
            let error = loop {
                let batch = (0..3).min_by_key(|&batch| last[batch]).unwrap();
                let passed = last[batch].map_or(0, |passed| passed + 1);
                let states = filled([2, 2, 1][batch], passed as f32);
                match first.put(batch, passed, states, (passed > 0).then_some(&[7; 5][..])) {
                    Ok(()) => last[batch] = Some(passed),
                    Err(error) => break error,
                }
            };
            assert!(matches!(&error, EvalError::Io(error) if error.is_full()), "{error}");
            assert!(error.to_string().contains("requant-0000000000000007."), "{error}");
            drop(first);
            let (scratch, mut second) = states(dir.path(), true);
            assert_eq!(passed(&second), last, "{room} bytes");
            for (batch, passed) in last.into_iter().enumerate() {
                let Some(passed) = passed else { continue };
                let found = second.take(batch).unwrap();
                assert!(found.iter().all(|&x| x == passed as f32));
            }
            drop(second);
            scratch.finish();
            assert_eq!(std::fs::read_dir(dir.path()).unwrap().count(), 0);
        }
    }

    #[test]
    fn damaged_states_begin_anew() {
        let dir = tempfile::tempdir().unwrap();
        let (_, mut first) = states(dir.path(), false);
        for (batch, rows) in [2, 2, 1].into_iter().enumerate() {
            first.put(batch, 5, filled(rows, 1.0), None).unwrap();
        }
        let Place::File(slots) = &first.place else { unreachable!("there is a folder") };
        let at = slots.slot_of[1] * slots.slot_bytes;
        drop(first);
        damage(&dir.path().join("requant-0000000000000007.states"), at as usize);
        let (_, mut second) = states(dir.path(), false);
        assert_eq!(passed(&second), [Some(5), None, Some(5)]);
        second.put(1, 0, filled(2, 9.0), None).unwrap();
        for (batch, value) in [1.0, 9.0, 1.0].into_iter().enumerate() {
            assert!(second.rows(batch, 0..1).unwrap().iter().all(|&x| x == value));
        }
    }

    #[test]
    fn what_was_seen_belongs_to_the_states() {
        let dir = tempfile::tempdir().unwrap();
        let (_, mut first) = states(dir.path(), true);
        for passed in 0..3u8 {
            for (batch, rows) in [2, 2, 1].into_iter().enumerate() {
                let seen = [10 * passed + batch as u8; 40];
                let seen = (passed > 0).then_some(&seen[..]);
                first.put(batch, passed.into(), filled(rows, 0.0), seen).unwrap();
            }
        }
        first.put(0, 3, filled(2, 0.0), Some(&[30; 40])).unwrap();
        drop(first);
        let seen = |states: &States| -> Vec<(u32, u8)> {
            let mut all = Vec::new();
            let give = |layer, bytes: &[u8]| {
                assert!(bytes.len() == 40 && bytes.iter().all(|&b| b == bytes[0]));
                all.push((layer, bytes[0]));
                Ok(())
            };
            states.each_seen(give).unwrap();
            all
        };
        let (_, second) = states(dir.path(), true);
        assert_eq!(passed(&second), [Some(3), Some(2), Some(2)]);
        assert_eq!(seen(&second), [(0, 12), (1, 22), (2, 30)]);
        drop(second);
        // Where a part of it is lost, all begins anew.
        damage(&dir.path().join("requant-0000000000000007.seen"), 0);
        let (_, third) = states(dir.path(), true);
        let lost = (passed(&third), seen(&third));
        assert_eq!(lost, ([None; 3], vec![]));
    }

    #[test]
    fn two_processes_do_not_share_states() {
        let dir = tempfile::tempdir().unwrap();
        let (scratch, _first) = states(dir.path(), false);
        let error = States::new(&[2, 2, 1], 3, Some(&scratch), 7, false).err().unwrap();
        assert!(error.to_string().contains("another process"), "{error}");
        assert!(States::new(&[2, 2, 1], 3, Some(&scratch), 8, false).is_ok());
    }
}
