//! Several outputs of one source, made in one pass: its rows are read and widened once, and each output
//! gets them in its types.
//!
//! A single output is the ladder of one, so there is one pipeline, one journal and one way to go on.

use super::encode::{Encoder, Unit};
use super::error::ConvertError;
use super::journal::Identity;
use super::plan::{Memory, Plan, PlannedTensor, UNIT_ELEMENTS};
use super::run::RunOptions;
use super::shard::Shard;
use crate::gguf::Writer;
use crate::io::{Clock, IoError, beside, free_disk, part_path, processor_time};
use crate::names::base;
use crate::source::Source;
use std::ops::Range;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;
use xxhash_rust::xxh3::Xxh3;

/// Time spent on each kind of work, unless its first unit takes longer.
const TRIAL: Duration = Duration::from_millis(60);

/// A plan, and the file that it becomes.
#[derive(Clone, Copy)]
pub struct Rung<'a> {
    /// What is written.
    pub plan: &'a Plan,
    /// Its name; that of the whole where it is split.
    pub output: &'a Path,
}

impl Rung<'_> {
    /// The names of the files that a share of the work consists of.
    pub fn paths(&self, shard: Option<Shard>) -> impl Iterator<Item = PathBuf> {
        self.plan.files_of(shard).map(|file| self.plan.path(file, self.output))
    }

    /// Bytes of these files.
    pub fn size(&self, shard: Option<Shard>) -> u64 {
        let files = &self.plan.files[self.plan.files_of(shard)];
        files.iter().map(|file| file.layout.file_size()).sum()
    }
}

/// Outputs that are written together, one at least.
pub struct Ladder<'a> {
    pub(super) rungs: Vec<Rung<'a>>,
    /// What several are written into.
    folder: Option<PathBuf>,
    threads: usize,
}

impl<'a> Ladder<'a> {
    /// The ladder of one.
    pub fn of(plan: &'a Plan, output: &'a Path) -> Self {
        Self { rungs: vec![Rung { plan, output }], folder: None, threads: plan.threads }
    }

    /// Outputs of one source that are written into a folder.
    ///
    /// # Errors
    /// No plans, plans whose tensors differ by more than their types, two outputs of one name, and a memory
    /// budget that does not suffice for all at once.
    pub fn new(rungs: Vec<Rung<'a>>, folder: &Path) -> Result<Self, ConvertError> {
        if rungs.is_empty() {
            return Err(ConvertError::NoOutput);
        }
        for (i, rung) in rungs.iter().enumerate() {
            if let Some(tensor) = difference(rungs[0].plan, rung.plan) {
                return Err(ConvertError::Apart { path: rung.output.to_owned(), tensor });
            }
            if rungs[..i].iter().any(|other| other.output == rung.output) {
                return Err(ConvertError::Twice { path: rung.output.to_owned() });
            }
        }
        let mut ladder = Self { rungs, folder: Some(folder.to_owned()), threads: 1 };
        let first = ladder.first();
        ladder.threads = ladder.memory().threads(first.threads, first.budget)?;
        Ok(ladder)
    }

    /// The outputs.
    pub fn rungs(&self) -> &[Rung<'a>] {
        &self.rungs
    }

    /// One of the plans, whose tensors are those of all but for their types.
    pub fn first(&self) -> &'a Plan {
        self.rungs[0].plan
    }

    pub(super) fn plans(&self) -> impl Iterator<Item = &'a Plan> {
        self.rungs.iter().map(|rung| rung.plan)
    }

    /// Threads that will work.
    pub fn threads(&self) -> usize {
        self.threads
    }

    fn memory(&self) -> Memory {
        Memory::of(self.plans())
    }

    /// An upper bound on the resident memory of the run, in bytes, page cache not counted.
    pub fn peak_memory(&self) -> u64 {
        self.memory().peak(self.threads)
    }

    /// Bytes of all files of a share together.
    pub fn size(&self, shard: Option<Shard>) -> u64 {
        self.rungs.iter().map(|rung| rung.size(shard)).sum()
    }

    /// Weights that are read for a share of the work.
    pub fn weights(&self, shard: Option<Shard>) -> u64 {
        let tensors = &self.first().tensors[self.tensors(shard)];
        tensors.iter().map(PlannedTensor::n_elements).sum()
    }

    /// The tensors that are read for a share of the work: those of its files in any output.
    pub(super) fn tensors(&self, shard: Option<Shard>) -> Range<usize> {
        let of = |plan: &Plan| plan.tensors_in(plan.files_of(shard));
        let ranges = self.plans().map(of).filter(|range| !range.is_empty());
        ranges
            .reduce(|all, range| all.start.min(range.start)..all.end.max(range.end))
            .unwrap_or(0..0)
    }

    /// The folder that outputs are written into, where there may be several.
    pub fn folder(&self) -> Option<&Path> {
        self.folder.as_deref()
    }

    /// A name beside the outputs.
    pub fn place(&self) -> PathBuf {
        match &self.folder {
            None => self.rungs[0].output.to_owned(),
            Some(folder) => folder.join("ladder"),
        }
    }

    /// Where the journal of a run lies.
    pub(super) fn journal_path(&self, shard: Option<Shard>) -> PathBuf {
        let place = self.place();
        let share = shard.map_or_else(|| place.clone(), |shard| shard.beside(&place));
        beside(&share, ".journal")
    }

    /// Removes the journal that [`RunOptions::keep_journal`] left.
    ///
    /// # Errors
    /// The system refuses.
    pub fn forget(&self, options: RunOptions) -> Result<(), ConvertError> {
        let path = self.journal_path(options.shard);
        Ok(options.disk.remove(&path).map_err(|error| IoError::new(&path, error))?)
    }

    /// Refuses outputs that cannot succeed, before any weight is read: those that exist (without `force`),
    /// a folder that does not, too little room.
    ///
    /// # Errors
    /// As said, naming what to do.
    pub fn check_output(&self, options: RunOptions) -> Result<(), ConvertError> {
        let goes_on = !options.restart && self.journal_path(options.shard).exists();
        let mut needed = 0;
        for rung in &self.rungs {
            for file in rung.plan.files_of(options.shard) {
                let path = rung.plan.path(file, rung.output);
                Writer::check(&path, options.force || goes_on)?;
                if !(goes_on && has_its_name(rung.plan, file, &path)) {
                    let size = rung.plan.files[file].layout.file_size();
                    needed += size.saturating_sub(allocated(&part_path(&path)));
                }
            }
        }
        let place = self.place();
        match free_disk(&place) {
            Some(free) if free < needed => {
                let path = self.folder.clone().unwrap_or(place);
                Err(ConvertError::DiskSpace { path, needed, free })
            }
            _ => Ok(()),
        }
    }

    /// What decides the bytes of the outputs.
    pub(super) fn identity(&self, source: &dyn Source) -> Identity {
        let mut layout = Xxh3::new();
        layout.update(&UNIT_ELEMENTS.to_le_bytes());
        for plan in self.plans() {
            for file in &plan.files {
                layout.update(file.layout.header());
            }
            for tensor in &plan.tensors {
                layout.update(&[tensor.stored.id() as u8, u8::from(tensor.weighing.is_some())]);
            }
        }
        let mut input = Xxh3::new();
        for file in source.files() {
            let name = base(&file.path);
            input.update(name.as_bytes());
            input.update(&file.size.to_le_bytes());
            input.update(file.version.as_bytes());
        }
        let mut importance = Xxh3::new();
        let mut matrices: Vec<_> = self.plans().filter_map(|plan| plan.imatrix.as_ref()).collect();
        matrices.dedup_by(|this, other| Arc::ptr_eq(this, other));
        for (name, values) in matrices.into_iter().flat_map(|imatrix| &imatrix.entries) {
            importance.update(name.as_bytes());
            values.iter().for_each(|value| importance.update(&value.to_le_bytes()));
        }
        Identity::new(layout.digest(), input.digest(), importance.digest())
    }

    /// Seconds of processor time that reading and encoding a share will take, over all threads: what else the
    /// machine does has no say in it. Every kind of work, a source type on its way to the outputs' types, is
    /// tried on units from all over the model.
    pub fn estimate(&self, source: &dyn Source, shard: Option<Shard>) -> f64 {
        let first = self.first();
        let mut kinds: Vec<(_, u64, Vec<usize>)> = Vec::new();
        for i in self.tensors(shard) {
            let tensor = &first.tensors[i];
            let dtype = source.tensors()[tensor.source].dtype;
            let types: Vec<_> = self
                .plans()
                .map(|plan| &plan.tensors[i])
                .map(|tensor| (tensor.ty, tensor.weighing.is_some()))
                .collect();
            let kind = (dtype, tensor.stored, types);
            match kinds.iter_mut().find(|(known, _, _)| *known == kind) {
                Some((_, weights, of)) => {
                    *weights += tensor.n_elements();
                    of.push(i);
                }
                None => kinds.push((kind, tensor.n_elements(), vec![i])),
            }
        }
        let mut encoder = Encoder::new(self.plans(), source);
        let all: Vec<usize> = (0..self.rungs.len()).collect();
        let mut seconds = 0.0;
        for (_, weights, of) in kinds {
            let (mut done, mut spent) = (0, Duration::ZERO);
            // Every tenth of the tensors, the largest part of which is typical.
            for &i in of.iter().rev().step_by(of.len().div_ceil(10)) {
                let Some(unit) = first.units(i..i + 1).last() else { continue };
                // What is wrong with a weight is for the run to say.
                let (_, time) =
                    processor_time(Clock::Thread, || drop(encoder.encode_for(&unit, &all)));
                // Where time is too short to be told, a trial still ends.
                spent += time.max(Duration::from_micros(1));
                done += first.tensors[i].weights(&unit.rows);
                if spent > TRIAL {
                    break;
                }
            }
            seconds += weights as f64 * spent.as_secs_f64() / (done.max(1) as f64);
        }
        seconds
    }

    /// The units of a share, in the order of the files.
    pub(super) fn units(&self, shard: Option<Shard>) -> impl Iterator<Item = Unit> + use<'_, 'a> {
        self.first().units(self.tensors(shard))
    }

    /// Every file of a share with its plan, number and name.
    pub(super) fn files(
        &self,
        shard: Option<Shard>,
    ) -> impl DoubleEndedIterator<Item = (&'a Plan, usize, PathBuf)> {
        self.rungs.iter().flat_map(move |rung| {
            let Rung { plan, output } = *rung;
            plan.files_of(shard).map(move |file| (plan, file, plan.path(file, output)))
        })
    }
}

/// The first tensor that two plans do not share, types apart.
fn difference(this: &Plan, other: &Plan) -> Option<String> {
    let key = |tensor: &PlannedTensor| {
        let PlannedTensor { source, dims, stored, .. } = tensor;
        (*source, tensor.name.clone(), dims.clone(), *stored, tensor.n_per_row())
    };
    let [these, others] = [this, other].map(|plan| plan.tensors.iter().map(Some).chain([None]));
    let mut pairs = these.zip(others);
    let differing = pairs.find(|(this, other)| this.map(key) != other.map(key));
    differing.and_then(|(this, other)| Some(this.or(other)?.name.clone()))
}

/// Whether a file was complete and got its name, as far as can be told from outside.
pub(super) fn has_its_name(plan: &Plan, file: usize, path: &Path) -> bool {
    !part_path(path).exists() && has_all(plan, file, path)
}

/// Whether a file, all of which was on disk at a time, still has its part.
pub(super) fn has_its_part(plan: &Plan, file: usize, path: &Path) -> bool {
    has_all(plan, file, &part_path(path))
}

/// Whether what lies here is as large as the complete file.
fn has_all(plan: &Plan, file: usize, path: &Path) -> bool {
    let size = plan.files[file].layout.file_size();
    path.metadata().is_ok_and(|found| found.len() == size)
}

/// Bytes on disk that a file has already.
fn allocated(path: &Path) -> u64 {
    let Ok(metadata) = path.metadata() else { return 0 };
    #[cfg(unix)]
    return std::os::unix::fs::MetadataExt::blocks(&metadata) * 512;
    #[cfg(not(unix))]
    return metadata.len();
}
