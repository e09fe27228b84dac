//! Models against a reference on the same texts.

use super::{Found, Job, MeasureError, Options, Outcome, Subject, Text, measure};
use crate::monitor::Monitor;
use std::path::Path;

/// What models are compared with.
#[derive(Clone, Copy)]
pub enum Against<'a> {
    /// A model that runs alongside.
    Model(Subject<'a>),
    /// A file of log-probabilities, which also says what the text is and how it is cut.
    Base(&'a Path),
}

/// What a comparison gives beside its result.
#[derive(Clone, Copy, Debug, Default)]
pub struct Extras<'a> {
    /// Measure the error of each tensor's output alone, on the activations of a reference that runs.
    pub by_tensor: bool,
    /// Save the log-probabilities of a reference that runs here, in llama-perplexity's format.
    pub save_base: Option<&'a Path>,
}

/// Compares models with a reference. Without candidates, the reference's own result is found.
///
/// The monitor counts tokens times layers.
///
/// ```
/// use requant::measure::{Against, Extras, Options, Subject, Text, compare};
/// use requant::model::{Model, Mtp};
/// use std::path::Path;
///
/// let path = Path::new("tests/fixtures/tiny-r1");
/// let of = |path| Model::open(path, Mtp::Drop);
/// let (a, b) = (of(path)?, of(path)?);
/// let [a, b] = [&a, &b].map(|model| Subject { path, model });
/// let text = Text::read(Path::new("tests/fixtures/text/heldout.txt"))?;
/// let options = Options { chunks: Some(2), ..Options::default() };
/// let found = compare(Against::Model(a), &[b], &[text], &options, Extras::default(), &())?;
/// assert_eq!(found.rows[0].comparison.kl_divergence.mean.value, 0.0);
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
///
/// # Errors
/// A text too short, models of different vocabularies, weights that cannot be read, results that
/// are not finite, too little memory, a system that refuses, a file that is none of log-probabilities.
pub fn compare(
    reference: Against,
    candidates: &[Subject],
    texts: &[Text],
    options: &Options,
    extras: Extras,
    monitor: &dyn Monitor,
) -> Result<Outcome, MeasureError> {
    let job = Job::Compare { reference, candidates, extras };
    match measure(job, texts, options, monitor)?.result()? {
        Found::Comparison(outcome) => Ok(*outcome),
        _ => unreachable!("a comparison is an outcome"),
    }
}
