//! Whether a model's loss stays within limits, decided as early as the measurements allow.

use super::order::spread;
use super::part::Head;
use super::values::Values;
use super::{Found, Job, MeasureError, Options, Subject, Text, measure};
use crate::eval::{Activations, Check, Limits, Verdict, looks, verdict};
use crate::monitor::Monitor;
use serde::{Deserialize, Serialize};
use std::path::PathBuf;

/// What a model is to keep within.
#[derive(Clone, Copy, Debug, Serialize, Deserialize)]
pub struct Terms {
    /// The limits.
    pub limits: Limits,
    /// The probability that a verdict is right.
    pub confidence: f64,
}

/// What a gate found.
#[derive(Clone, Debug)]
pub struct Judgement {
    /// The reference.
    pub reference: PathBuf,
    /// The model.
    pub model: PathBuf,
    /// In which precision activations met weights.
    pub activations: Activations,
    /// On all limits together.
    pub verdict: Verdict,
    /// On each.
    pub checks: Vec<Check>,
    /// The probability that the verdict is right.
    pub confidence: f64,
    /// Chunks that it took.
    pub chunks: usize,
    /// Whether as many chunks were taken as a verdict, or the text, allowed; not where it was stopped before.
    pub complete: bool,
    /// Chunks that there were.
    pub chunks_available: usize,
}

/// Compares a model with a reference, chunks upon chunks from all over the texts, until all limits are decided
/// at this confidence or the texts end.
///
/// The monitor counts tokens times layers, as if all chunks were needed.
///
/// ```
/// use requant::eval::{Limits, Verdict};
/// use requant::measure::{Options, Subject, Terms, Text, gate};
/// use requant::model::{Model, Mtp};
/// use std::path::Path;
///
/// let paths = ["tests/fixtures/tiny-r1", "tests/fixtures/reference/tiny-r1-bf16.gguf"];
/// let [a, b] = paths.map(Path::new);
/// let (of_a, of_b) = (Model::open(a, Mtp::Drop)?, Model::open(b, Mtp::Drop)?);
/// let [a, b] = [(a, &of_a), (b, &of_b)].map(|(path, model)| Subject { path, model });
/// let text = Text::read(Path::new("tests/fixtures/text/heldout.txt"))?;
/// let options = Options { chunks: Some(4), ..Options::default() };
/// let limits = Limits { kl: Some(0.1), ..Limits::default() };
/// let terms = Terms { limits, confidence: 0.99 };
/// assert_eq!(gate(a, b, &[text], terms, &options, &())?.verdict, Verdict::Pass);
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
///
/// # Errors
/// As [`super::compare`].
pub fn gate(
    reference: Subject,
    candidate: Subject,
    texts: &[Text],
    terms: Terms,
    options: &Options,
    monitor: &dyn Monitor,
) -> Result<Judgement, MeasureError> {
    let job = Job::Gate { reference, candidate, terms };
    match measure(job, texts, options, monitor)?.result()? {
        Found::Judgement(judgement) => Ok(judgement),
        _ => unreachable!("a gate judges"),
    }
}

/// Looks at chunks in the order in which a gate takes them, until the limits are decided.
pub(super) fn judge(
    values: &Values,
    head: &Head,
    terms: Terms,
    stopped: bool,
) -> Result<Judgement, MeasureError> {
    let values = values.ordered(&spread(head.chunks, head.seed));
    let looks = looks(head.chunks);
    let (mut checks, mut chunks) = (Vec::new(), 0);
    for &look in looks.iter().filter(|&&look| look <= values.chunks.len()) {
        let places: Vec<usize> = (0..look).collect();
        let found = values.pick(&places).comparisons()?;
        chunks = look;
        checks = terms.limits.check(&found[0], terms.confidence, looks.len() as u32);
        if verdict(&checks) != Verdict::Undecided {
            break;
        }
    }
    Ok(Judgement {
        reference: head.reference.clone(),
        model: head.models[0].0.clone(),
        activations: head.activations,
        verdict: if chunks == 0 { Verdict::Undecided } else { verdict(&checks) },
        complete: !stopped,
        checks,
        confidence: terms.confidence,
        chunks,
        chunks_available: head.chunks,
    })
}
