//! Models against a reference on the same text.

use super::text::bos;
use super::{MeasureError, Options, Subject, Text, Tokens};
use crate::eval::{
    self, Activations, BaseReader, BaseWriter, Comparison, EvalError, Observer, Perplexity,
    Reference, TensorErrors, comparison_work,
};
use crate::io::LocalDisk;
use crate::monitor::Monitor;
use ndarray::ArrayView2;
use std::path::{Path, PathBuf};

/// What was found about one model.
#[derive(Clone, Debug)]
pub struct Row {
    /// The model.
    pub path: PathBuf,
    /// Bits per weight.
    pub bits_per_weight: f64,
    /// How far it is from the reference.
    pub comparison: Comparison,
    /// Relative error of the output of each tensor, largest first, where it was asked for.
    pub tensors: Option<Vec<(String, f64)>>,
}

/// A comparison of several models with a reference.
#[derive(Clone, Debug)]
pub struct Outcome {
    /// The reference: a model, or a file of log-probabilities.
    pub reference: PathBuf,
    /// The text, where it is known.
    pub text: Option<PathBuf>,
    /// Tokens per chunk.
    pub ctx: usize,
    /// In which precision activations met weights.
    pub activations: Activations,
    /// The reference's own result.
    pub own: Perplexity,
    /// The models.
    pub rows: Vec<Row>,
}

/// What a comparison gives beside its result.
#[derive(Clone, Copy, Debug, Default)]
pub struct Extras<'a> {
    /// Measure the error of each tensor's output alone, on the reference's own activations.
    pub by_tensor: bool,
    /// Save the reference's log-probabilities here, in llama-perplexity's format.
    pub save_base: Option<&'a Path>,
}

/// Compares models with a reference that runs alongside. Without candidates, the reference's own
/// result is found.
///
/// The monitor counts tokens times layers.
///
/// ```
/// use requant::measure::{Extras, Options, Subject, Text, compare};
/// use requant::model::{Model, Mtp};
/// use std::path::Path;
///
/// let path = Path::new("tests/fixtures/tiny-r1");
/// let of = |path| Model::open(path, Mtp::Drop);
/// let (a, b) = (of(path)?, of(path)?);
/// let [a, b] = [&a, &b].map(|model| Subject { path, model });
/// let text = Text::read(Path::new("tests/fixtures/text/heldout.txt"))?;
/// let options = Options { chunks: Some(2), ..Options::default() };
/// let found = compare(a, &[b], &text, &options, Extras::default(), &())?;
/// assert_eq!(found.rows[0].comparison.kl_divergence.mean.value, 0.0);
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
///
/// # Errors
/// A text too short, models of different vocabularies, weights that cannot be read, results that
/// are not finite, too little memory, a system that refuses.
pub fn compare(
    reference: Subject,
    candidates: &[Subject],
    text: &Text,
    options: &Options,
    extras: Extras,
    monitor: &dyn Monitor,
) -> Result<Outcome, MeasureError> {
    let read = text.tokens(reference, options.tokenizer_pre.as_deref(), monitor)?;
    let together: Vec<Subject> = [&[reference], candidates].concat();
    let settings = options.settings(&together, &read)?;
    let others = runners(candidates, options)?;
    let observed = if extras.by_tensor { candidates } else { &[] };
    let errors = observed.iter().map(|other| {
        let (reference, other) = (reference.model.source(), other.model.source());
        TensorErrors::new(reference, other, options.simd, options.activations)
    });
    let errors = Together(errors.collect());
    let mut runner = reference.runner(options)?;
    if extras.by_tensor {
        runner.keep_compressed();
        runner.observe(&errors);
    }
    let mut writer = match extras.save_base {
        None => None,
        Some(path) => {
            let used = &read.tokens[..options.n_chunks(read.tokens.len()) * options.ctx];
            let n_vocab = reference.model.hparams().n_vocab;
            Some(BaseWriter::create(&LocalDisk, path, options.ctx as u32, n_vocab, used)?)
        }
    };
    let others: Vec<&eval::Model> = others.iter().collect();
    let counted: Vec<&eval::Model> = std::iter::once(&runner).chain(others.clone()).collect();
    monitor.expect(comparison_work(&counted, read.tokens.len(), &settings));
    let found = options.on_threads(|| {
        let reference = Reference::Model(&runner);
        eval::compare(reference, &others, &read.tokens, &settings, writer.as_mut(), monitor)
    })?;
    let paths = together.iter().map(|subject| subject.path);
    let (own, comparisons) = found.map_err(|error| MeasureError::of_several(error, paths))?;
    writer.map(BaseWriter::finish).transpose()?;
    let mut rows = rows(candidates, comparisons);
    for (row, errors) in rows.iter_mut().zip(&errors.0) {
        row.tensors = Some(largest_first(errors));
    }
    Ok(Outcome {
        reference: reference.path.to_owned(),
        text: Some(text.path().to_owned()),
        ctx: options.ctx,
        activations: options.activations,
        own,
        rows,
    })
}

/// Compares models with a file of log-probabilities, which also says what the text is and how it is
/// cut.
///
/// The monitor counts tokens times layers.
///
/// # Errors
/// As [`compare`], and a file that is none of log-probabilities.
pub fn compare_with_base(
    base: &Path,
    candidates: &[Subject],
    options: &Options,
    monitor: &dyn Monitor,
) -> Result<Outcome, MeasureError> {
    let mut reader = BaseReader::open(base)?;
    let options = Options { ctx: reader.ctx() as usize, ..options.clone() };
    let bos = match candidates.first() {
        Some(first) => bos(*first, monitor)?,
        None => None,
    };
    let read = Tokens { tokens: reader.tokens().to_vec(), bos };
    let settings = options.settings(candidates, &read)?;
    let others = runners(candidates, &options)?;
    let others: Vec<&eval::Model> = others.iter().collect();
    monitor.expect(comparison_work(&others, read.tokens.len(), &settings));
    let found = options.on_threads(|| {
        let reference = Reference::Base(&mut reader);
        eval::compare(reference, &others, &read.tokens, &settings, None, monitor)
    })?;
    let paths = std::iter::once(base).chain(candidates.iter().map(|subject| subject.path));
    let (own, comparisons) = found.map_err(|error| MeasureError::of_several(error, paths))?;
    Ok(Outcome {
        reference: base.to_owned(),
        text: None,
        ctx: options.ctx,
        activations: options.activations,
        own,
        rows: rows(candidates, comparisons),
    })
}

fn runners<'a>(
    subjects: &[Subject<'a>],
    options: &Options,
) -> Result<Vec<eval::Model<'a>>, MeasureError> {
    subjects.iter().map(|subject| subject.runner(options)).collect()
}

fn rows(candidates: &[Subject], comparisons: Vec<Comparison>) -> Vec<Row> {
    let pairs = candidates.iter().zip(comparisons);
    pairs
        .map(|(subject, comparison)| Row {
            path: subject.path.to_owned(),
            bits_per_weight: subject.bits_per_weight(),
            comparison,
            tensors: None,
        })
        .collect()
}

/// The tensors that differ.
fn largest_first(errors: &TensorErrors) -> Vec<(String, f64)> {
    let differing = errors.relative().into_iter().filter(|(_, error)| *error > 0.0);
    let mut list: Vec<(String, f64)> =
        differing.map(|(name, error)| (name.to_owned(), error)).collect();
    list.sort_by(|a, b| b.1.total_cmp(&a.1));
    list
}

/// Several observers as one.
struct Together<'a>(Vec<TensorErrors<'a>>);

impl Observer for Together<'_> {
    fn product(
        &self,
        tensor: usize,
        matrix: usize,
        x: ArrayView2<f32>,
        y: ArrayView2<f32>,
    ) -> Result<(), EvalError> {
        self.0.iter().try_for_each(|one| one.product(tensor, matrix, x, y))
    }

    fn seen(&self, layer: u32) -> Vec<u8> {
        self.0.iter().flat_map(|one| one.seen(layer)).collect()
    }

    /// All have the reference's tensors, so each takes as many bytes.
    fn take_up(&self, layer: u32, seen: &[u8]) -> Result<(), EvalError> {
        let parts = seen.chunks((seen.len() / self.0.len().max(1)).max(1));
        self.0.iter().zip(parts).try_for_each(|(one, seen)| one.take_up(layer, seen))
    }
}
