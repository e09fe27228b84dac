//! What a measurement will take, before it begins.

use super::job::{Chosen, Job};
use super::{MeasureError, Options, Subject, Text};
use crate::eval::{Collector, Exact, Model, looks, memory_of, trial};
use crate::io::read_rate;
use crate::monitor::Monitor;
use crate::source::{Source, TensorMeta};
use serde::Serialize;

/// What a measurement will take, if all of its chunks are needed.
#[derive(Clone, Copy, Debug, Serialize)]
pub struct Estimate {
    /// Tokens that pass each model.
    pub tokens: usize,
    /// Threads at work.
    pub threads: usize,
    /// Seconds, with all threads at work and nothing else on the machine.
    pub seconds: f64,
    /// Seconds of processor time, over all threads.
    pub processor_seconds: f64,
    /// Bytes that are read, at most.
    pub read_bytes: u64,
    /// Bytes a second that they are read at, from the system's cache where they are in it now. Unknown for
    /// what is elsewhere.
    pub read_bytes_per_second: Option<f64>,
    /// Bytes of memory, about and at most; pages of weights in the system's cache not counted.
    pub memory_bytes: u64,
    /// Bytes that hidden states take in a folder.
    pub scratch_bytes: u64,
}

/// Estimates a measurement from a short trial on the models' own weights and the first chunk.
///
/// # Errors
/// As the measurement itself.
pub fn estimate(
    job: Job,
    texts: &[Text],
    options: &Options,
    monitor: &dyn Monitor,
) -> Result<Estimate, MeasureError> {
    let Chosen { chunks, own, options, settings, .. } = Chosen::new(&job, texts, options, monitor)?;
    let n_tokens = own.len() * chunks.ctx;
    let first = chunks.tokens(&[0]);
    let subjects = job.subjects();
    let (watched, drafted) = match job {
        Job::Importances { beside, .. } => (true, beside.prediction),
        _ => (false, false),
    };
    let collectors: Vec<Collector> =
        subjects.iter().map(|subject| Collector::new(subject.model.source())).collect();
    let mut runners: Vec<Model> = Vec::new();
    for (subject, collector) in subjects.iter().zip(&collectors) {
        let mut runner = subject.runner(&options)?;
        if watched {
            runner.keep_compressed();
            runner.observe(collector);
        }
        runners.push(runner);
    }
    let together: Vec<&Model> = runners.iter().collect();
    let (seconds, threads, memory) = options.on_threads(|| {
        let seconds = subjects.iter().zip(&runners).map(|(subject, runner)| {
            let seconds = trial(runner, &first, n_tokens, &settings, !watched, drafted);
            seconds.map_err(|error| MeasureError::of(subject.path, error))
        });
        let seconds = seconds.collect::<Result<Vec<f64>, _>>();
        (seconds, rayon::current_num_threads(), memory_of(&together, n_tokens, &settings))
    })?;
    let seconds = seconds?;
    // Each candidate multiplies the reference's inputs as well.
    let again = if job.extras().by_tensor { subjects.len() as f64 - 1.0 } else { 0.0 };
    let processor_seconds = seconds.iter().sum::<f64>() + again * seconds[0];
    let passes = match job {
        Job::Gate { .. } if options.share.is_none() => looks(chunks.len()).len() as u64,
        _ => 1,
    };
    let read_bytes = passes * subjects.iter().map(|subject| subject.size().0).sum::<u64>();
    let squares = if watched { bytes_of_squares(subjects[0].model.source()) } else { 0 };
    let work = (n_tokens, processor_seconds, threads);
    Ok(Estimate::of(&subjects, &options, work, (read_bytes, memory + squares)))
}

impl Estimate {
    /// What follows from tokens, processor time and threads, and from bytes that are read and those of memory.
    pub(super) fn of(
        subjects: &[Subject],
        options: &Options,
        (tokens, processor_seconds, threads): (usize, f64, usize),
        (read_bytes, memory_bytes): (u64, u64),
    ) -> Self {
        let files = subjects.iter().flat_map(|subject| subject.model.source().files());
        let rate = read_rate(&files.map(|file| (file.path, file.size)).collect::<Vec<_>>());
        let reading = rate.map_or(0.0, |rate| read_bytes as f64 / rate);
        let widths: u64 = subjects.iter().map(|s| u64::from(s.model.hparams().n_embd)).sum();
        Self {
            tokens,
            threads,
            seconds: (processor_seconds / threads as f64).max(reading),
            processor_seconds,
            read_bytes,
            read_bytes_per_second: rate,
            memory_bytes,
            scratch_bytes: options.scratch.as_ref().map_or(0, |_| 4 * tokens as u64 * widths),
        }
    }
}

/// What sums of squares of all columns take.
fn bytes_of_squares(source: &dyn Source) -> u64 {
    let columns =
        |tensor: &TensorMeta| tensor.n_per_row() * tensor.dims.iter().skip(2).product::<u64>();
    source.tensors().iter().map(columns).sum::<u64>() * size_of::<Exact>() as u64
}
