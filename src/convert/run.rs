//! The streaming pass: workers take units of rows, widen, encode and write each at its place.
//!
//! Units need no order among themselves, so nothing waits for anything but the first error. What
//! is done is noted in a journal, so that a run which was stopped goes on where it was.

use super::begun::Begun;
use super::encode::{Encoder, Unit};
use super::error::ConvertError;
use super::journal::{Journal, Past};
use super::plan::Plan;
use super::shard::Shard;
use super::values::Seen;
use crate::gguf::{GgufError, Writer};
use crate::io::{Disk, IoError, LocalDisk, give_name, part_path};
use crate::monitor::Monitor;
use crate::source::{Source, SourceError};
use std::collections::{BTreeSet, VecDeque};
use std::ops::Range;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::mpsc::{SyncSender, sync_channel};
use std::sync::{Mutex, PoisonError};
use xxhash_rust::xxh3::xxh3_64;

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
    /// [`Plan::forget`] removes it: for work that follows and may be stopped as well.
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
    /// Writes the output. Files get their names when all are complete and on disk.
    ///
    /// A run that was stopped, by a signal, a full disk or a power cut, leaves `.part` files and
    /// a journal; the same call then goes on where it was, after checking what the journal
    /// claims against the files. Errors in the weights leave nothing.
    ///
    /// The monitor counts weights.
    ///
    /// # Errors
    /// Too little room, existing outputs without `force`, a journal of another run, weights that
    /// cannot be read or encoded, a failing disk: each naming file and tensor.
    pub fn run(
        &self,
        source: &dyn Source,
        output: &Path,
        options: RunOptions,
        monitor: &dyn Monitor,
    ) -> Result<(), ConvertError> {
        self.run_after(source, output, options, monitor, |_| Ok(()))
    }

    /// As [`Plan::run`], where some tensors are made in another way `before` the pass makes the others.
    ///
    /// # Errors
    /// As [`Plan::run`], and those of `before`.
    pub(crate) fn run_after(
        &self,
        source: &dyn Source,
        output: &Path,
        options: RunOptions,
        monitor: &dyn Monitor,
        before: impl FnOnce(&Begun) -> Result<(), ConvertError>,
    ) -> Result<(), ConvertError> {
        self.check_output(output, options)?;
        let files = self.files_of(options.shard);
        if files.is_empty() {
            return Ok(());
        }
        let disk = options.disk;
        let identity = self.identity(source);
        let path = self.journal_path(output, options.shard);
        let n_units = self.units(0..self.tensors.len()).count() as u64;
        let (journal, past) = Journal::open(disk, &path, &identity, n_units, options.restart)?;
        let resumed = past.is_some();
        let mut run = Run {
            plan: self,
            source,
            monitor,
            journal: &journal,
            past: past.unwrap_or_default(),
            first_file: files.start,
            writers: Vec::new(),
            unflushed: AtomicU64::new(0),
            recorded: AtomicU64::new(0),
            made: Mutex::default(),
            seen: Seen::new(self),
        };
        let written = (|| {
            for file in files.clone() {
                let path = self.path(file, output);
                if !resumed {
                    // What others left under this name would show between the tensors.
                    let _ = disk.remove(&part_path(&path));
                }
                let named = run.past.all_written && self.has_its_name(file, &path);
                run.writers.push(match named {
                    // It has its name already, and was on disk before it got it.
                    true => None,
                    false => Some(Writer::open(disk, &path, &self.files[file].layout)?),
                });
            }
            if !resumed {
                journal.begin(&identity)?;
            }
            match run.writers.iter().all(Option::is_none) {
                true => monitor.resume(self.weights_of(files.clone())),
                false => {
                    before(&Begun::new(&run))?;
                    run.write_units()?;
                    run.warn()?;
                }
            }
            run.writers.iter().flatten().try_for_each(Writer::sync)?;
            // One file has its name or not; of several, some may have theirs when a run ends.
            if run.writers.len() > 1 || options.keep_journal {
                journal.all_written()?;
            }
            // The first file is the one that programs are given, so it comes last.
            for writer in run.writers.iter().flatten().rev() {
                let path = writer.path();
                Writer::check(path, options.force || resumed)?;
                give_name(disk, &part_path(path), path)?;
            }
            Ok(())
        })();
        let kept = resumed || run.recorded.load(Ordering::Relaxed) > 0;
        match written {
            Ok(()) if options.keep_journal => Ok(()),
            Ok(()) => self.forget(output, options),
            Err(error) if kept && can_go_on(&error) => {
                Err(ConvertError::Stopped { journal: path, error: Box::new(error) })
            }
            Err(error) => {
                for file in files {
                    // Failing to remove what is left over must not hide the error.
                    let _ = disk.remove(&part_path(&self.path(file, output)));
                }
                let _ = disk.remove(&path);
                Err(error)
            }
        }
    }

    /// Removes the journal that [`RunOptions::keep_journal`] left.
    ///
    /// # Errors
    /// The system refuses.
    pub fn forget(&self, output: &Path, options: RunOptions) -> Result<(), ConvertError> {
        let path = self.journal_path(output, options.shard);
        Ok(options.disk.remove(&path).map_err(|error| IoError::new(&path, error))?)
    }

    /// Whether a file was complete and got its name, as far as can be told from outside.
    fn has_its_name(&self, file: usize, path: &Path) -> bool {
        let size = self.files[file].layout.file_size();
        !part_path(path).exists() && path.metadata().is_ok_and(|found| found.len() == size)
    }

    /// Where the journal of a run lies.
    fn journal_path(&self, output: &Path, shard: Option<Shard>) -> PathBuf {
        let mut name = output.as_os_str().to_owned();
        if let Some(shard) = shard {
            name.push(format!(".{}-of-{}", shard.number(), shard.count()));
        }
        name.push(".journal");
        name.into()
    }

    /// Refuses an output that cannot succeed, before any weight is read: one that exists (without
    /// `force`), a folder that does not, too little room.
    ///
    /// # Errors
    /// As said, naming what to do.
    pub fn check_output(&self, output: &Path, options: RunOptions) -> Result<(), ConvertError> {
        let goes_on = !options.restart && self.journal_path(output, options.shard).exists();
        let mut needed = 0;
        for file in self.files_of(options.shard) {
            let path = self.path(file, output);
            Writer::check(&path, options.force || goes_on)?;
            let part = part_path(&path);
            if !(goes_on && self.has_its_name(file, &path)) {
                let size = self.files[file].layout.file_size();
                needed += size.saturating_sub(allocated(&part));
            }
        }
        match self.free_disk(output) {
            Some(free) if free < needed => {
                Err(ConvertError::DiskSpace { path: output.to_owned(), needed, free })
            }
            _ => Ok(()),
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

/// Bytes on disk that a file has already.
fn allocated(path: &Path) -> u64 {
    let Ok(metadata) = path.metadata() else { return 0 };
    #[cfg(unix)]
    return std::os::unix::fs::MetadataExt::blocks(&metadata) * 512;
    #[cfg(not(unix))]
    return metadata.len();
}

/// What the workers of a run share.
pub(super) struct Run<'a> {
    pub plan: &'a Plan,
    pub source: &'a dyn Source,
    monitor: &'a dyn Monitor,
    pub journal: &'a Journal,
    pub past: Past,
    pub first_file: usize,
    /// One for each file, or `None` where nothing is left to do.
    pub writers: Vec<Option<Writer>>,
    unflushed: AtomicU64,
    pub recorded: AtomicU64,
    /// Units that were made before the pass.
    pub made: Mutex<BTreeSet<u64>>,
    pub seen: Seen,
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
    fn tensors(&self) -> Range<usize> {
        let files = &self.plan.files;
        let last = self.first_file + self.writers.len() - 1;
        files[self.first_file].tensors.start..files[last].tensors.end
    }

    fn write_units(&self) -> Result<(), ConvertError> {
        let mut rest = self.plan.units(self.tensors());
        let ahead: VecDeque<Unit> = rest.by_ref().take(LOOK_AHEAD * self.plan.threads).collect();
        ahead.iter().for_each(|unit| self.prefetch(unit));
        let queue = Mutex::new(Queue { ahead, rest });
        let failure = Mutex::new(None);
        std::thread::scope(|scope| {
            let (flush, flushes) = sync_channel::<()>(1);
            for _ in 0..self.plan.threads {
                let flush = flush.clone();
                let (queue, failure) = (&queue, &failure);
                scope.spawn(move || {
                    let mut encoder = Encoder::new(self.plan, self.source).watched_by(&self.seen);
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
                if let Err(error) = self.writers.iter().flatten().try_for_each(Writer::sync)
                    && let Ok(mut failure) = failure.lock()
                {
                    failure.get_or_insert(error.into());
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
        let seen = self.seen.warnings(self.plan, self.tensors());
        let mut warnings = seen.into_iter().chain(self.source.met());
        match warnings.find(|warning| !self.monitor.warn(warning.clone())) {
            Some(warning) => Err(ConvertError::Unwanted(warning)),
            None => Ok(()),
        }
    }

    fn prefetch(&self, unit: &Unit) {
        if !self.past.units.contains_key(&unit.number) && !self.is_made(unit) {
            self.source.prefetch(self.plan.tensors[unit.tensor].source, unit.rows.clone());
        }
    }

    /// The file that a tensor goes into, its number there, and the bytes of a row; `None` where nothing is
    /// left to do in the file.
    pub fn place(&self, tensor: usize) -> Option<(&Writer, usize, u64)> {
        let file = self.plan.file_of(tensor);
        let planned = &self.plan.files[file];
        let index = tensor - planned.tensors.start;
        let row_bytes = planned.layout.n_bytes(index) / self.plan.tensors[tensor].n_rows().max(1);
        Some((self.writers[file - self.first_file].as_ref()?, index, row_bytes))
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
        let tensor = &self.plan.tensors[unit.tensor];
        let weights = tensor.weights(&unit.rows);
        if let Some((writer, index, row_bytes)) = self.place(unit.tensor) {
            let at = unit.rows.start * row_bytes;
            let length = (unit.rows.end - unit.rows.start) * row_bytes;
            let done = match self.past.units.get(&unit.number) {
                None => false,
                Some(&hash) => {
                    bytes.resize(length as usize, 0);
                    writer.read_at(index, at, bytes)?;
                    match hash == COPIED {
                        true => encoder.encode(unit)? == bytes,
                        false => xxh3_64(bytes) == hash,
                    }
                }
            };
            if done || self.is_made(unit) {
                self.seen.pass_over(self.plan, unit.tensor, unit.rows.clone());
            } else {
                let stored = match tensor.ty == tensor.stored {
                    true => self.source.stored_in(tensor.source, unit.rows.clone()),
                    false => None,
                };
                let copied = match stored {
                    Some((file, range)) => writer.copy_from(index, at, file, range)?,
                    None => false,
                };
                if copied {
                    self.seen.pass_over(self.plan, unit.tensor, unit.rows.clone());
                    self.source.release(tensor.source, unit.rows.clone());
                    self.journal.record(unit.number, COPIED)?;
                } else {
                    let bytes = encoder.encode(unit)?;
                    writer.write_at(index, at, bytes)?;
                    self.journal.record(unit.number, xxh3_64(bytes))?;
                }
                self.recorded.fetch_add(1, Ordering::Relaxed);
                let before = self.unflushed.fetch_add(length, Ordering::Relaxed);
                if before / FLUSH_BYTES != (before + length) / FLUSH_BYTES {
                    // A full channel means that one is on its way.
                    let _ = flush.try_send(());
                }
            }
        }
        self.monitor.advance(weights);
        Ok(())
    }
}
