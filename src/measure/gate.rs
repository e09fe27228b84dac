//! Whether a model's loss stays within limits, decided as early as the measurements allow.

use super::{MeasureError, Options, Subject, Text};
use crate::eval::{
    self, Check, Comparison, Limits, PerplexityOptions, Reference, Verdict, comparison_work, looks,
    verdict,
};
use crate::monitor::Monitor;

/// What a gate found.
#[derive(Clone, Debug)]
pub struct Judgement {
    /// On all limits together.
    pub verdict: Verdict,
    /// On each.
    pub checks: Vec<Check>,
    /// Chunks that it took.
    pub chunks: usize,
    /// Chunks that there were.
    pub chunks_available: usize,
}

/// Compares a model with a reference, chunks upon chunks, until all limits are decided at this
/// confidence or the text ends.
///
/// The monitor counts tokens times layers, as if all chunks were needed.
///
/// ```
/// use requant::eval::{Limits, Verdict};
/// use requant::measure::{Options, Subject, Text, gate};
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
/// assert_eq!(gate(a, b, &text, limits, 0.99, &options, &())?.verdict, Verdict::Pass);
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
///
/// # Errors
/// As [`super::compare`].
pub fn gate(
    reference: Subject,
    candidate: Subject,
    text: &Text,
    limits: Limits,
    confidence: f64,
    options: &Options,
    monitor: &dyn Monitor,
) -> Result<Judgement, MeasureError> {
    let read = text.tokens(reference, options.tokenizer_pre.as_deref(), monitor)?;
    let settings = options.settings(&[reference, candidate], &read)?;
    let settings = PerplexityOptions { chunks: None, ..settings };
    let [own, other] = [reference, candidate].map(|s| s.runner(options));
    let (own, other) = (own?, other?);
    let chunks_available = options.n_chunks(read.tokens.len());
    let used = &read.tokens[..chunks_available * options.ctx];
    monitor.expect(comparison_work(&[&own, &other], used.len(), &settings));
    let looks = looks(chunks_available);
    let (mut parts, mut checks, mut chunks) = (Vec::new(), Vec::new(), 0);
    for &look in &looks {
        let part = &used[chunks * options.ctx..look * options.ctx];
        let found = options.on_threads(|| {
            eval::compare(Reference::Model(&own), &[&other], part, &settings, None, monitor)
        })?;
        let paths = [reference.path, candidate.path].into_iter();
        let (_, found) = found.map_err(|error| MeasureError::of_several(error, paths))?;
        // What a first part has shown is not thrown away: the parts are joined.
        parts.extend(found);
        chunks = look;
        let joined = Comparison::join(parts.clone())?;
        checks = limits.check(&joined, confidence, looks.len() as u32);
        if verdict(&checks) != Verdict::Undecided {
            break;
        }
    }
    Ok(Judgement { verdict: verdict(&checks), checks, chunks, chunks_available })
}
