//! Perplexity of one model.

use super::{MeasureError, Options, Subject, Text};
use crate::eval::{self, Perplexity};
use crate::monitor::Monitor;

/// How well a model predicts a text, by llama-perplexity's rules ([`eval::perplexity`]).
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
/// let found = perplexity(Subject { path, model: &model }, &text, &options, &())?;
/// assert!((60.0..120.0).contains(&found.perplexity));
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
///
/// # Errors
/// A vocabulary or a forward pass that the model does not allow, a text too short, too little memory.
pub fn perplexity(
    subject: Subject,
    text: &Text,
    options: &Options,
    monitor: &dyn Monitor,
) -> Result<Perplexity, MeasureError> {
    let read = text.tokens(subject, options.tokenizer_pre.as_deref(), monitor)?;
    let found = read.tokens.len();
    if found < 2 * options.ctx {
        let path = text.path().to_owned();
        return Err(MeasureError::TooShort { path, found, ctx: options.ctx });
    }
    let settings = options.settings(&[subject], &read)?;
    let runner = subject.runner(options)?;
    monitor.expect(settings.work(found, subject.model.hparams()));
    options
        .on_threads(|| eval::perplexity(&runner, &read.tokens, &settings, monitor))?
        .map_err(|error| MeasureError::of(subject.path, error))
}
