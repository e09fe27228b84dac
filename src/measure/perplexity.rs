//! Perplexity of one model.

use super::{Found, Job, MeasureError, Options, Outcome, Subject, Text, measure};
use crate::eval::{self, Drafts};
use crate::monitor::Monitor;

/// How well a model predicts texts, by llama-perplexity's rules ([`crate::eval::perplexity`]).
///
/// The monitor counts tokens times layers.
///
/// ```
/// use requant::measure::{Options, Subject, Text, perplexity};
/// use requant::model::{Model, Mtp};
/// use std::path::Path;
///
/// let path = Path::new("tests/fixtures/tiny-r1");
/// let model = Model::open(path, Mtp::Drop)?;
/// let text = Text::read(Path::new("tests/fixtures/text/heldout.txt"))?;
/// let options = Options { chunks: Some(2), ..Options::default() };
/// let found = perplexity(Subject { path, model: &model }, &[text], &options, &())?;
/// assert!((60.0..120.0).contains(&found.own.perplexity));
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
///
/// # Errors
/// A vocabulary or a forward pass that the model does not allow, a text too short, too little memory.
pub fn perplexity(
    subject: Subject,
    texts: &[Text],
    options: &Options,
    monitor: &dyn Monitor,
) -> Result<Outcome, MeasureError> {
    match measure(Job::Perplexity(subject), texts, options, monitor)?.result()? {
        Found::Perplexity(outcome) => Ok(*outcome),
        _ => unreachable!("perplexity is an outcome"),
    }
}

/// How well a model's layer for multi-token prediction foresees the token after next in a text, and how often
/// it drafts what the model would have chosen ([`crate::eval::drafts`]). A checkpoint has to have been opened
/// with that layer.
///
/// # Errors
/// A model without such a layer, and those of [`perplexity`].
pub fn drafts(
    subject: Subject,
    text: &Text,
    options: &Options,
    monitor: &dyn Monitor,
) -> Result<Drafts, MeasureError> {
    let read = text.wanted(subject, options, monitor)?;
    let settings = options.settings(&[subject], read.tokens.len(), read.bos)?;
    let runner = subject.runner(options)?;
    monitor.expect(eval::drafts_work(read.tokens.len(), &settings, subject.model.hparams()));
    let found = options.on_threads(|| eval::drafts(&runner, &read.tokens, &settings, monitor))?;
    found.map_err(|error| MeasureError::of(subject.path, error))
}
