//! The streaming pass: workers take units of rows, widen, encode and write each at its place.
//!
//! Units need no order among themselves, so nothing waits for anything but the first error. What
//! is done is noted in a journal, so that a run which was stopped goes on where it was.

use super::begun::Begun;
use super::encode::{Encoder, Unit};
use super::error::ConvertError;
use super::journal::{Journal, Past};
use super::ladder::{Ladder, Rung, has_its_name, has_its_part};
use super::plan::{Plan, PlannedFile};
use super::shard::Shard;
use super::values::Seen;
use crate::gguf::{GgufError, Writer};
use crate::io::{Disk, LocalDisk, give_name, part_path};
use crate::monitor::Monitor;
use crate::source::{Source, SourceError};
use std::collections::{BTreeSet, VecDeque};
use std::ops::Range;
use std::path::Path;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::mpsc::{SyncSender, sync_channel};
use std::sync::{Mutex, PoisonError};
use xxhash_rust::xxh3::Xxh3;

/// Units that the system is asked to read ahead, for each thread.
const LOOK_AHEAD: usize = 8;

/// Bytes written between requests to put them on disk: what keeps the system's cache of written
/// pages small enough that other programs stay responsive.
const FLUSH_BYTES: u64 = 256 << 20;

/// Stands in the journal for the hash of a unit that the system copied: nothing has read its bytes,
/// and they are compared with the source's when the run goes on.
const COPIED: u64 = 0;

/// How a plan is carried out. None of this changes a byte of the output.
#[derive(Clone, Copy)]
pub struct RunOptions<'a> {
    /// Replace existing files.
    pub force: bool,
    /// Begin anew where an earlier run was stopped, whatever that run was.
    pub restart: bool,
    /// Write only this share of the output's files.
    pub shard: Option<Shard>,
    /// Leave the journal beside the complete output, so that the same call finds it done, until
    /// [`Ladder::forget`] removes it: for work that follows and may be stopped as well.
    pub keep_journal: bool,
    /// Where to write.
    pub disk: &'a dyn Disk,
}

impl Default for RunOptions<'_> {
    fn default() -> Self {
        Self { force: false, restart: false, shard: None, keep_journal: false, disk: &LocalDisk }
    }
}

impl Plan {
    /// Writes the output, as the ladder of one: see [`Ladder::run`].
    ///
    /// # Errors
    /// As there.
    pub fn run(
        &self,
        source: &dyn Source,
        output: &Path,
        options: RunOptions,
        monitor: &dyn Monitor,
    ) -> Result<(), ConvertError> {
        Ladder::of(self, output).run(source, options, monitor)
    }

    /// As [`Plan::run`], where some tensors are made in another way `before` the pass makes the others.
    ///
    /// # Errors
    /// As [`Plan::run`], and those of `before`.
    #[cfg(feature = "eval")]
    pub(crate) fn run_after(
        &self,
        source: &dyn Source,
        output: &Path,
        options: RunOptions,
        monitor: &dyn Monitor,
        before: impl FnOnce(&Begun) -> Result<(), ConvertError>,
    ) -> Result<(), ConvertError> {
        Ladder::of(self, output).run_after(source, options, monitor, before)
    }
}

impl Ladder<'_> {
    /// Writes the outputs. Files get their names when all are complete and on disk.
    ///
    /// A run that was stopped, by a signal, a full disk or a power cut, leaves `.part` files and
    /// a journal; the same call then goes on where it was, after checking what the journal
    /// claims against the files. Errors in the weights leave nothing.
    ///
    /// The monitor counts weights that are read.
    ///
    /// # Errors
    /// Too little room, existing outputs without `force`, a journal of another run, weights that
    /// cannot be read or encoded, a failing disk: each naming file and tensor.
    pub fn run(
        &self,
        source: &dyn Source,
        options: RunOptions,
        monitor: &dyn Monitor,
    ) -> Result<(), ConvertError> {
        self.run_after(source, options, monitor, |_| Ok(()))
    }

    fn run_after(
        &self,
        source: &dyn Source,
        options: RunOptions,
        monitor: &dyn Monitor,
        before: impl FnOnce(&Begun) -> Result<(), ConvertError>,
    ) -> Result<(), ConvertError> {
        self.check_output(options)?;
        let n_files = self.files(options.shard).count();
        if n_files == 0 {
            return Ok(());
        }
        let (disk, shard) = (options.disk, options.shard);
        let identity = self.identity(source);
        let path = self.journal_path(shard);
        let n_units = self.units(None).count() as u64;
        let (journal, past) = Journal::open(disk, &path, &identity, n_units, options.restart)?;
        let resumed = past.is_some();
        let recorded = AtomicU64::new(0);
        let written = (|| {
            let mut past = past.unwrap_or_default();
            if past.all_written && self.is_whole(shard) {
                monitor.resume(self.weights(shard));
            } else {
                if !resumed || past.all_written {
                    // What others left under this name would show between the tensors.
                    self.remove_parts(options);
                    journal.begin(&identity)?;
                    past = Past::default();
                }
                let run = Run {
                    ladder: self,
                    shard,
                    source,
                    monitor,
                    journal: &journal,
                    past,
                    writers: self.writers(options)?,
                    unflushed: AtomicU64::new(0),
                    recorded: &recorded,
                    made: Mutex::default(),
                    seen: Seen::new(self.first()),
                };
                before(&Begun::new(&run))?;
                run.write_units()?;
                run.warn()?;
                run.sync()?;
                // One file has its name or not; of several, some may have theirs when a run ends.
                if n_files > 1 || options.keep_journal {
                    journal.all_written()?;
                }
            }
            // The first file is the one that programs are given, so it comes last.
            for (plan, file, path) in self.files(shard).rev() {
                if !(resumed && has_its_name(plan, file, &path)) {
                    Writer::check(&path, options.force || resumed)?;
                    give_name(disk, &part_path(&path), &path)?;
                }
            }
            Ok(())
        })();
        let kept = resumed || recorded.load(Ordering::Relaxed) > 0;
        match written {
            Ok(()) if options.keep_journal => Ok(()),
            Ok(()) => self.forget(options),
            Err(error) if kept && can_go_on(&error) => {
                Err(ConvertError::Stopped { journal: path, error: Box::new(error) })
            }
            Err(error) => {
                self.remove_parts(options);
                let _ = disk.remove(&path);
                Err(error)
            }
        }
    }

    /// Opens the parts, for each output those of its files that belong to the share.
    fn writers(&self, options: RunOptions) -> Result<Vec<Vec<Writer>>, ConvertError> {
        let of = |rung: &Rung| {
            let files = rung.plan.files_of(options.shard);
            files
                .map(|file| {
                    let path = rung.plan.path(file, rung.output);
                    Ok(Writer::open(options.disk, &path, &rung.plan.files[file].layout)?)
                })
                .collect()
        };
        self.rungs.iter().map(of).collect()
    }

    /// Whether files of which all was on disk are still here, under one name or the other.
    fn is_whole(&self, shard: Option<Shard>) -> bool {
        self.files(shard).all(|(plan, file, path)| {
            has_its_part(plan, file, &path) || has_its_name(plan, file, &path)
        })
    }

    /// Failing to remove what is left over must not hide why.
    fn remove_parts(&self, options: RunOptions) {
        for (_, _, path) in self.files(options.shard) {
            let _ = options.disk.remove(&part_path(&path));
        }
    }
}

/// Whether the same command can succeed later.
fn can_go_on(error: &ConvertError) -> bool {
    matches!(
        error,
        ConvertError::Cancelled
            | ConvertError::Source(SourceError::Io { .. } | SourceError::Shortened { .. })
            | ConvertError::Io(_)
            | ConvertError::Gguf(GgufError::Io(_))
    )
}

/// What the workers of a run share.
pub(super) struct Run<'a> {
    pub ladder: &'a Ladder<'a>,
    shard: Option<Shard>,
    pub source: &'a dyn Source,
    monitor: &'a dyn Monitor,
    pub journal: &'a Journal,
    pub past: Past,
    /// For each output, those of its files that are written.
    writers: Vec<Vec<Writer>>,
    unflushed: AtomicU64,
    pub recorded: &'a AtomicU64,
    /// Units that were made before the pass.
    pub made: Mutex<BTreeSet<u64>>,
    pub seen: Seen,
}

/// Where a tensor goes in one of the outputs.
pub(super) struct Place<'r> {
    rung: usize,
    writer: &'r Writer,
    /// Its number in the file.
    tensor: usize,
    row_bytes: u64,
}

impl Place<'_> {
    /// Writes rows.
    pub fn write(&self, first: u64, bytes: &[u8]) -> Result<(), ConvertError> {
        Ok(self.writer.write_at(self.tensor, first * self.row_bytes, bytes)?)
    }

    /// Reads rows that were written.
    pub fn read(&self, rows: Range<u64>, out: &mut Vec<u8>) -> Result<(), ConvertError> {
        out.resize(((rows.end - rows.start) * self.row_bytes) as usize, 0);
        Ok(self.writer.read_at(self.tensor, rows.start * self.row_bytes, out)?)
    }
}

/// Units not yet taken; the front ones have been asked for.
struct Queue<I: Iterator<Item = Unit>> {
    ahead: VecDeque<Unit>,
    rest: I,
}

impl<I: Iterator<Item = Unit>> Queue<I> {
    /// The next unit, and one that should be asked for meanwhile.
    fn next(&mut self) -> Option<(Unit, Option<Unit>)> {
        let next = self.ahead.pop_front().or_else(|| self.rest.next())?;
        let asked = self.rest.next();
        self.ahead.extend(asked.clone());
        Some((next, asked))
    }
}

impl Run<'_> {
    fn write_units(&self) -> Result<(), ConvertError> {
        let threads = self.ladder.threads();
        let mut rest = self.ladder.units(self.shard);
        let ahead: VecDeque<Unit> = rest.by_ref().take(LOOK_AHEAD * threads).collect();
        ahead.iter().for_each(|unit| self.prefetch(unit));
        let queue = Mutex::new(Queue { ahead, rest });
        let failure = Mutex::new(None);
        std::thread::scope(|scope| {
            let (flush, flushes) = sync_channel::<()>(1);
            for _ in 0..threads {
                let flush = flush.clone();
                let (queue, failure) = (&queue, &failure);
                scope.spawn(move || {
                    let encoder = Encoder::new(self.ladder.plans(), self.source);
                    let mut encoder = encoder.watched_by(&self.seen);
                    let mut bytes = Vec::new();
                    while failure
                        .lock()
                        .is_ok_and(|f: std::sync::MutexGuard<Option<_>>| f.is_none())
                    {
                        let Some((unit, asked)) = queue.lock().ok().and_then(|mut q| q.next())
                        else {
                            break;
                        };
                        asked.iter().for_each(|unit| self.prefetch(unit));
                        let done = match self.monitor.cancelled() {
                            true => Err(ConvertError::Cancelled),
                            false => self.unit(&unit, &mut encoder, &mut bytes, &flush),
                        };
                        if let Err(error) = done
                            && let Ok(mut failure) = failure.lock()
                        {
                            failure.get_or_insert(error);
                        }
                    }
                });
            }
            drop(flush);
            // Beside the workers, so that none of them waits for the disk.
            while flushes.recv().is_ok() {
                if let Err(error) = self.sync()
                    && let Ok(mut failure) = failure.lock()
                {
                    failure.get_or_insert(error);
                }
            }
        });
        match failure.into_inner() {
            Ok(None) => Ok(()),
            Ok(Some(error)) => Err(error),
            Err(poisoned) => Err(poisoned.into_inner().unwrap_or(ConvertError::Cancelled)),
        }
    }

    /// Tells what was odd about the weights, before the files get their names.
    fn warn(&self) -> Result<(), ConvertError> {
        let seen = self.seen.warnings(self.plan(), self.ladder.tensors(self.shard));
        let mut warnings = seen.into_iter().chain(self.source.met());
        match warnings.find(|warning| !self.monitor.warn(warning.clone())) {
            Some(warning) => Err(ConvertError::Unwanted(warning)),
            None => Ok(()),
        }
    }

    fn prefetch(&self, unit: &Unit) {
        if !self.past.units.contains_key(&unit.number) && !self.is_made(unit) {
            self.source.prefetch(self.plan().tensors[unit.tensor].source, unit.rows.clone());
        }
    }

    /// As [`Ladder::first`].
    pub fn plan(&self) -> &Plan {
        self.ladder.first()
    }

    /// Waits until everything written is on disk.
    fn sync(&self) -> Result<(), ConvertError> {
        Ok(self.writers.iter().flatten().try_for_each(Writer::sync)?)
    }

    /// Where a tensor goes; an output is passed over where the tensor belongs to another's share.
    pub fn places(&self, tensor: usize) -> impl Iterator<Item = Place<'_>> {
        let rungs = self.ladder.rungs.iter().zip(&self.writers).enumerate();
        rungs.filter_map(move |(rung, (Rung { plan, .. }, writers))| {
            let file = plan.file_of(tensor);
            let writer = writers.get(file.checked_sub(plan.files_of(self.shard).start)?)?;
            let PlannedFile { tensors, layout } = &plan.files[file];
            let in_file = tensor - tensors.start;
            let row_bytes = layout.n_bytes(in_file) / plan.tensors[tensor].n_rows().max(1);
            Some(Place { rung, writer, tensor: in_file, row_bytes })
        })
    }

    fn is_made(&self, unit: &Unit) -> bool {
        self.made.lock().unwrap_or_else(PoisonError::into_inner).contains(&unit.number)
    }

    /// Carries out one unit, or finds it done.
    fn unit(
        &self,
        unit: &Unit,
        encoder: &mut Encoder,
        bytes: &mut Vec<u8>,
        flush: &SyncSender<()>,
    ) -> Result<(), ConvertError> {
        let places: Vec<Place> = self.places(unit.tensor).collect();
        if self.is_made(unit) || self.is_done(unit, &places, encoder, bytes)? {
            self.seen.pass_over(self.plan(), unit.tensor, unit.rows.clone());
        } else {
            self.write(unit, &places, encoder)?;
            self.recorded.fetch_add(1, Ordering::Relaxed);
            let row_bytes: u64 = places.iter().map(|place| place.row_bytes).sum();
            let length = (unit.rows.end - unit.rows.start) * row_bytes;
            let before = self.unflushed.fetch_add(length, Ordering::Relaxed);
            if before / FLUSH_BYTES != (before + length) / FLUSH_BYTES {
                // A full channel means that one is on its way.
                let _ = flush.try_send(());
            }
        }
        self.monitor.advance(self.plan().tensors[unit.tensor].weights(&unit.rows));
        Ok(())
    }

    /// Whether an earlier process has written a unit into all outputs, and its bytes are still there.
    fn is_done(
        &self,
        unit: &Unit,
        places: &[Place],
        encoder: &mut Encoder,
        bytes: &mut Vec<u8>,
    ) -> Result<bool, ConvertError> {
        let Some(&hash) = self.past.units.get(&unit.number) else { return Ok(false) };
        if hash == COPIED {
            encoder.encode_for(unit, &rungs(places))?;
        }
        let mut found = Xxh3::new();
        for place in places {
            place.read(unit.rows.clone(), bytes)?;
            found.update(bytes);
            if hash == COPIED && encoder.bytes(place.rung) != bytes {
                return Ok(false);
            }
        }
        Ok(hash == COPIED || found.digest() == hash)
    }

    /// Writes a unit into all outputs, and notes it.
    fn write(
        &self,
        unit: &Unit,
        places: &[Place],
        encoder: &mut Encoder,
    ) -> Result<(), ConvertError> {
        if self.copy(unit, places)? {
            self.seen.pass_over(self.plan(), unit.tensor, unit.rows.clone());
            self.source.release(self.plan().tensors[unit.tensor].source, unit.rows.clone());
            return Ok(self.journal.record(unit.number, COPIED)?);
        }
        encoder.encode_for(unit, &rungs(places))?;
        let mut hash = Xxh3::new();
        for place in places {
            let bytes = encoder.bytes(place.rung);
            place.write(unit.rows.start, bytes)?;
            hash.update(bytes);
        }
        Ok(self.journal.record(unit.number, hash.digest())?)
    }

    /// Has the system copy a unit that all outputs take as it is; `false` where it cannot.
    fn copy(&self, unit: &Unit, places: &[Place]) -> Result<bool, ConvertError> {
        let is_kept = |place: &Place| {
            let tensor = &self.ladder.rungs[place.rung].plan.tensors[unit.tensor];
            tensor.ty == tensor.stored
        };
        if !places.iter().all(is_kept) {
            return Ok(false);
        }
        let source = self.plan().tensors[unit.tensor].source;
        let Some((file, range)) = self.source.stored_in(source, unit.rows.clone()) else {
            return Ok(false);
        };
        for Place { writer, tensor, row_bytes, .. } in places {
            let at = unit.rows.start * row_bytes;
            if !writer.copy_from(*tensor, at, file, range.clone())? {
                return Ok(false);
            }
        }
        Ok(true)
    }
}

fn rungs(places: &[Place]) -> Vec<usize> {
    places.iter().map(|place| place.rung).collect()
}
