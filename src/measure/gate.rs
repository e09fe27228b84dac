//! Whether the loss of models stays within limits, decided as early as the measurements allow.

use super::order::spread;
use super::part::{Compared, Head};
use super::values::Values;
use super::{Against, Extras, Found, Job, MeasureError, Options, Outcome, Subject, Text, measure};
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
    /// The texts, where they are known.
    pub texts: Vec<PathBuf>,
    /// Tokens per chunk.
    pub ctx: usize,
    /// In which precision activations met weights.
    pub activations: Activations,
    /// On all models together: failed if one failed, passed if all passed.
    pub verdict: Verdict,
    /// On each model.
    pub models: Vec<Judged>,
    /// The probability that a verdict is right.
    pub confidence: f64,
    /// Chunks that it took.
    pub chunks: usize,
    /// Whether as many chunks were taken as verdicts, or the text, allowed; not where it was stopped before.
    pub complete: bool,
    /// Chunks that there were.
    pub chunks_available: usize,
    /// What was measured of the chunks that it took; none where it was stopped before the first.
    pub outcome: Option<Outcome>,
}

/// What a gate found of a model.
#[derive(Clone, Debug)]
pub struct Judged {
    /// The model.
    pub path: PathBuf,
    /// Its bits per weight.
    pub bits_per_weight: f64,
    /// On all limits together.
    pub verdict: Verdict,
    /// On each; none where it was stopped before the first look.
    pub checks: Vec<Check>,
    /// Chunks that it took.
    pub chunks: usize,
}

/// Compares models with a reference, chunks upon chunks from all over the texts, until all limits are decided
/// at this confidence for each of them, or the texts end.
///
/// The monitor counts tokens times layers, as if all chunks were needed.
///
/// ```
/// use requant::eval::{Limits, Verdict};
/// use requant::measure::{Against, Options, Subject, Terms, Text, gate};
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
/// let found = gate(Against::Model(a), &[b], &[text], terms, &options, &())?;
/// assert_eq!(found.verdict, Verdict::Pass);
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
///
/// # Errors
/// As [`super::compare`].
pub fn gate(
    reference: Against,
    candidates: &[Subject],
    texts: &[Text],
    terms: Terms,
    options: &Options,
    monitor: &dyn Monitor,
) -> Result<Judgement, MeasureError> {
    let job = Job::Gate { reference, candidates, extras: Extras::default(), terms };
    match measure(job, texts, options, monitor)?.result()? {
        Found::Judgement(judgement) => Ok(*judgement),
        _ => unreachable!("a gate judges"),
    }
}

/// Looks at chunks in the order in which a gate takes them, until the limits are decided for each model.
pub(super) fn judge(
    values: &Values,
    head: &Head,
    terms: Terms,
) -> Result<Vec<Judged>, MeasureError> {
    let values = values.ordered(&spread(head.chunks, head.seed));
    let looks = looks(head.chunks);
    let undecided = |model: &Compared| Judged {
        path: model.path.clone(),
        bits_per_weight: model.bits_per_weight,
        verdict: Verdict::Undecided,
        checks: Vec::new(),
        chunks: 0,
    };
    let mut models: Vec<Judged> = head.models.iter().map(undecided).collect();
    for &look in looks.iter().filter(|&&look| look <= values.chunks.len()) {
        let places: Vec<usize> = (0..look).collect();
        let found = values.pick(&places).comparisons()?;
        let open = models.iter_mut().zip(&found);
        for (model, found) in open.filter(|(model, _)| model.verdict == Verdict::Undecided) {
            model.checks = terms.limits.check(found, terms.confidence, looks.len() as u32);
            model.verdict = verdict(&model.checks);
            model.chunks = look;
        }
        if are_decided(&models) {
            break;
        }
    }
    Ok(models)
}

/// Whether there is a verdict on each model.
pub(super) fn are_decided(models: &[Judged]) -> bool {
    models.iter().all(|model| model.verdict != Verdict::Undecided)
}

/// What follows from all that was measured.
pub(super) fn judgement(
    values: &Values,
    head: &Head,
    terms: Terms,
    stopped: bool,
) -> Result<Judgement, MeasureError> {
    let models = judge(values, head, terms)?;
    // Shares have them all, of which a single run would not have needed some.
    let chunks = models.iter().map(|model| model.chunks).max().unwrap_or(0);
    let values = values.ordered(&spread(head.chunks, head.seed));
    let values = values.pick(&(0..chunks).collect::<Vec<_>>());
    let outcome = (chunks > 0).then(|| Outcome::new(head, &values, stopped)).transpose()?;
    let has = |wanted| models.iter().any(|model| model.verdict == wanted);
    let verdict = match (has(Verdict::Fail), has(Verdict::Undecided)) {
        (true, _) => Verdict::Fail,
        (false, true) => Verdict::Undecided,
        (false, false) => Verdict::Pass,
    };
    Ok(Judgement {
        reference: head.reference.clone(),
        texts: head.texts.iter().map(|(path, _)| path.clone()).collect(),
        ctx: head.ctx,
        activations: head.activations,
        verdict,
        models,
        confidence: terms.confidence,
        chunks,
        complete: !stopped,
        chunks_available: head.chunks,
        outcome,
    })
}
