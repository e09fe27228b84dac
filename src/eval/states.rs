//! Hidden states between two layers: in memory, or in a scratch file where they do not fit or where
//! an evaluation that is stopped shall go on.
//!
//! The file has one slot more than there are batches. A batch that has passed a layer is written
//! into the free slot, and only then the slot that it came from is free; a journal says which slot
//! holds which batch after how many layers, so that a process may end at any point.

use super::error::EvalError;
use super::perplexity::PerplexityOptions;
use ndarray::{Array2, s};
use std::borrow::Cow;
use std::fs::{File, OpenOptions, TryLockError};
use std::io::{self, Write};
use std::ops::Range;
use std::path::{Path, PathBuf};
use xxhash_rust::xxh3::xxh3_64;

/// Where hidden states go that do not fit into memory.
#[derive(Clone, Debug)]
pub struct Scratch {
    /// A folder with room for them: 4 bytes for each token and dimension of the model.
    pub folder: PathBuf,
    /// Whether they, and a journal, stay there when the evaluation is stopped, so that the same
    /// evaluation goes on with the last finished layer.
    pub keep: bool,
}

/// The states of all batches.
pub(super) struct States {
    columns: usize,
    batches: Vec<Batch>,
    place: Place,
    notes: Vec<(u32, f64)>,
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
    file: File,
    slot_bytes: u64,
    slot_of: Vec<u64>,
    free: u64,
    journal: Option<(PathBuf, File)>,
}

impl States {
    /// Room for batches of so many rows. `identity` tells evaluations apart that may leave states in
    /// the same folder.
    pub fn new(
        rows: &[usize],
        columns: usize,
        options: &PerplexityOptions,
        keep: bool,
        identity: u64,
    ) -> Result<Self, EvalError> {
        let size = 4 * columns as u64 * rows.iter().sum::<usize>() as u64;
        let keep = |scratch: &Scratch| scratch.keep && keep;
        let batches = rows.iter().map(|&rows| Batch { rows, passed: None }).collect();
        let place = match &options.scratch {
            Some(scratch) if keep(scratch) || size > options.states_memory => {
                let slot_bytes = 4 * (columns * rows.iter().max().copied().unwrap_or(0)) as u64;
                Place::File(Box::new(Slots::open(scratch, keep(scratch), identity, slot_bytes)?))
            }
            _ => Place::Memory(rows.iter().map(|_| Array2::zeros((0, columns))).collect()),
        };
        let mut states = Self { columns, batches, place, notes: Vec::new() };
        if let Place::File(slots) = &mut states.place {
            slots.slot_of = (0..rows.len() as u64).collect();
            slots.free = rows.len() as u64;
        }
        states.recover()?;
        Ok(states)
    }

    /// Layers that a batch has passed; `None` before it is embedded.
    pub fn passed(&self, batch: usize) -> Option<u32> {
        self.batches[batch].passed
    }

    /// A number that was noted about a layer.
    pub fn note(&self, layer: u32) -> Option<f64> {
        self.notes.iter().find(|note| note.0 == layer).map(|note| note.1)
    }

    /// Notes a number about a layer, for the case that the evaluation is stopped.
    pub fn set_note(&mut self, layer: u32, value: f64) -> Result<(), EvalError> {
        self.notes.push((layer, value));
        self.record(&format!("note {layer} {:016x}\n", value.to_bits()))
    }

    /// Gives a batch its states after `passed` layers.
    pub fn put(&mut self, batch: usize, passed: u32, states: Array2<f32>) -> Result<(), EvalError> {
        match &mut self.place {
            Place::Memory(all) => all[batch] = states,
            Place::File(slots) => {
                let bytes: Vec<u8> = states.iter().flat_map(|x| x.to_le_bytes()).collect();
                let slot = slots.free;
                slots.write(&bytes, slot)?;
                slots.free = std::mem::replace(&mut slots.slot_of[batch], slot);
                let hash = xxh3_64(&bytes);
                self.record(&format!("{batch} {passed} {slot} {hash:016x}\n"))?;
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
            Place::File(slots) => slots.read(batch, all, self.columns),
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
                let read = slots.read(batch, rows, self.columns)?;
                Ok(Cow::Owned(read.into_raw_vec_and_offset().0))
            }
        }
    }

    /// Removes what was kept, when nothing is left to go on with.
    pub fn remove(self) {
        if let Place::File(slots) = self.place
            && let Some((journal, _)) = slots.journal
        {
            // Left-over files cost room, not results.
            let _ = std::fs::remove_file(journal);
            let _ = std::fs::remove_file(slots.path);
        }
    }

    fn record(&mut self, line: &str) -> Result<(), EvalError> {
        match &mut self.place {
            Place::File(slots) => match &mut slots.journal {
                Some((path, journal)) => {
                    journal.write_all(line.as_bytes()).map_err(|error| io_error(path, error))
                }
                None => Ok(()),
            },
            Place::Memory(_) => Ok(()),
        }
    }

    /// Takes up what an earlier process left, as far as hashes confirm it.
    fn recover(&mut self) -> Result<(), EvalError> {
        let Place::File(slots) = &mut self.place else { return Ok(()) };
        let Some((path, _)) = &slots.journal else { return Ok(()) };
        let text = std::fs::read_to_string(path).map_err(|error| io_error(path, error))?;
        let mut last: Vec<Option<(u32, u64, u64)>> = vec![None; self.batches.len()];
        // A line that was cut short has no end.
        for line in text.split_inclusive('\n').filter_map(|line| line.strip_suffix('\n')) {
            let words: Vec<&str> = line.split(' ').collect();
            let hex = |word: &str| u64::from_str_radix(word, 16).ok();
            match words[..] {
                ["note", layer, value] => {
                    if let (Ok(layer), Some(bits)) = (layer.parse(), hex(value)) {
                        self.notes.push((layer, f64::from_bits(bits)));
                    }
                }
                [batch, passed, slot, hash] => {
                    if let (Ok(batch), Ok(passed), Ok(slot), Some(hash)) =
                        (batch.parse::<usize>(), passed.parse(), slot.parse(), hex(hash))
                        && batch < last.len()
                        && slot <= self.batches.len() as u64
                    {
                        last[batch] = Some((passed, slot, hash));
                    }
                }
                _ => {}
            }
        }
        for (batch, found) in last.iter().enumerate() {
            let Some((passed, slot, hash)) = *found else { continue };
            slots.slot_of[batch] = slot;
            let read = slots.read(batch, 0..self.batches[batch].rows, self.columns);
            let sound = read.is_ok_and(|states| {
                xxh3_64(&states.iter().flat_map(|x| x.to_le_bytes()).collect::<Vec<u8>>()) == hash
            });
            self.batches[batch].passed = sound.then_some(passed);
        }
        // Batches that begin anew take slots that no other holds.
        let n = self.batches.len() as u64;
        let held = |slots: &Slots, batches: &[Batch]| -> Vec<u64> {
            let of_sound = batches.iter().zip(&slots.slot_of).filter(|(b, _)| b.passed.is_some());
            of_sound.map(|(_, &slot)| slot).collect()
        };
        let held = held(slots, &self.batches);
        let mut free = (0..=n).filter(|slot| !held.contains(slot));
        for (batch, slot) in self.batches.iter().zip(&mut slots.slot_of) {
            if batch.passed.is_none() {
                *slot = free.next().unwrap_or(n);
            }
        }
        slots.free = free.next().unwrap_or(n);
        Ok(())
    }
}

impl Slots {
    fn open(
        scratch: &Scratch,
        keep: bool,
        identity: u64,
        slot_bytes: u64,
    ) -> Result<Self, EvalError> {
        let folder = &scratch.folder;
        let path = folder.join(format!("requant-{identity:016x}.states"));
        let create = |path: &Path| {
            let mut options = OpenOptions::new();
            options.read(true).write(true).create(true).truncate(false);
            options.open(path).map_err(|error| io_error(path, error))
        };
        let (file, journal) = match keep {
            true => {
                let at = path.with_extension("journal");
                let journal = OpenOptions::new().append(true).create(true).read(true).open(&at);
                let journal = journal.map_err(|error| io_error(&at, error))?;
                if let Err(TryLockError::WouldBlock) = journal.try_lock() {
                    let error = io::Error::other("another process is at this evaluation");
                    return Err(io_error(&at, error));
                }
                (create(&path)?, Some((at, journal)))
            }
            false => {
                let file = tempfile::tempfile_in(folder);
                (file.map_err(|error| io_error(folder, error))?, None)
            }
        };
        Ok(Self { path, file, slot_bytes, slot_of: Vec::new(), free: 0, journal })
    }

    fn write(&self, bytes: &[u8], slot: u64) -> Result<(), EvalError> {
        use std::io::{Seek, SeekFrom};
        let mut file = &self.file;
        let done =
            file.seek(SeekFrom::Start(slot * self.slot_bytes)).and_then(|_| file.write_all(bytes));
        done.map_err(|error| io_error(&self.path, error))
    }

    fn read(
        &self,
        batch: usize,
        rows: Range<usize>,
        columns: usize,
    ) -> Result<Array2<f32>, EvalError> {
        let at = self.slot_of[batch] * self.slot_bytes + 4 * (rows.start * columns) as u64;
        let mut bytes = vec![0; 4 * rows.len() * columns];
        crate::blob::read_exact_at(&self.file, &mut bytes, at)
            .map_err(|error| io_error(&self.path, error))?;
        let values = bytes.as_chunks::<4>().0.iter().map(|&b| f32::from_le_bytes(b)).collect();
        Ok(Array2::from_shape_vec((rows.len(), columns), values).expect("as many as were read"))
    }
}

fn io_error(path: &Path, error: io::Error) -> EvalError {
    EvalError::Io { path: path.to_owned(), error }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn states(folder: &Path) -> States {
        let scratch = Scratch { folder: folder.to_owned(), keep: true };
        let options = PerplexityOptions { scratch: Some(scratch), ..PerplexityOptions::default() };
        States::new(&[2, 2, 1], 3, &options, true, 7).unwrap()
    }

    fn filled(rows: usize, value: f32) -> Array2<f32> {
        Array2::from_elem((rows, 3), value)
    }

    #[test]
    fn what_was_put_is_found_again_by_another_process() {
        let dir = tempfile::tempdir().unwrap();
        let mut first = states(dir.path());
        assert_eq!(first.passed(0), None);
        for (batch, rows) in [2, 2, 1].into_iter().enumerate() {
            first.put(batch, 0, filled(rows, batch as f32)).unwrap();
        }
        for passed in 1..4 {
            let rows = first.take(1).unwrap() + 10.0;
            first.put(1, passed, rows).unwrap();
        }
        first.set_note(2, 0.1).unwrap();
        assert_eq!(*first.rows(1, 1..2).unwrap(), [31.0; 3]);
        drop(first);
        // A line that was begun when the process ended.
        let journal = dir.path().join("requant-0000000000000007.journal");
        OpenOptions::new().append(true).open(&journal).unwrap().write_all(b"2 1 3 00").unwrap();
        let mut second = states(dir.path());
        let passed: Vec<_> = (0..3).map(|batch| second.passed(batch)).collect();
        assert_eq!(passed, [Some(0), Some(3), Some(0)]);
        assert_eq!(second.note(2), Some(0.1));
        assert_eq!(second.take(1).unwrap(), filled(2, 31.0));
        assert_eq!(second.take(2).unwrap(), filled(1, 2.0));
        second.remove();
        assert_eq!(std::fs::read_dir(dir.path()).unwrap().count(), 0);
    }

    #[test]
    fn damaged_states_begin_anew() {
        let dir = tempfile::tempdir().unwrap();
        let mut first = states(dir.path());
        for (batch, rows) in [2, 2, 1].into_iter().enumerate() {
            first.put(batch, 5, filled(rows, 1.0)).unwrap();
        }
        let damaged = match &first.place {
            Place::File(slots) => slots.slot_of[1] * slots.slot_bytes,
            Place::Memory(_) => unreachable!("states are kept"),
        };
        drop(first);
        let path = dir.path().join("requant-0000000000000007.states");
        let mut bytes = std::fs::read(&path).unwrap();
        bytes[damaged as usize] ^= 1;
        std::fs::write(&path, bytes).unwrap();
        let mut second = states(dir.path());
        let passed: Vec<_> = (0..3).map(|batch| second.passed(batch)).collect();
        assert_eq!(passed, [Some(5), None, Some(5)]);
        second.put(1, 0, filled(2, 9.0)).unwrap();
        for (batch, value) in [1.0, 9.0, 1.0].into_iter().enumerate() {
            assert!(second.rows(batch, 0..1).unwrap().iter().all(|&x| x == value));
        }
    }
}
