//! Importance matrices of a model from a text.

use super::{MeasureError, Options, Subject, Text};
use crate::eval::{Collector, collect};
use crate::imatrix::Sums;
use crate::monitor::Monitor;

/// Sums of squares of the inputs of a model's matrices, as llama-imatrix collects them.
///
/// The monitor counts tokens times layers.
///
/// ```
/// use requant::measure::{Options, Subject, Text, importances};
/// use requant::model::{Model, Mtp};
/// use std::path::Path;
///
/// let path = Path::new("tests/fixtures/reference/tiny-r1-bf16.gguf");
/// let model = Model::open(path, Mtp::Drop)?;
/// let text = Text::read(Path::new("tests/fixtures/text/calibration.txt"))?;
/// let options = Options { chunks: Some(1), ..Options::default() };
/// let sums = importances(Subject { path, model: &model }, &text, &options, &())?;
/// assert_eq!(sums.entries["blk.0.attn_q_a.weight"].counts, [512]);
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
///
/// # Errors
/// A vocabulary or a forward pass that the model does not allow, a text too short, too little memory.
pub fn importances(
    subject: Subject,
    text: &Text,
    options: &Options,
    monitor: &dyn Monitor,
) -> Result<Sums, MeasureError> {
    let read = text.tokens(subject, options.tokenizer_pre.as_deref(), monitor)?;
    let settings = options.settings(&[subject], &read)?;
    let collector = Collector::new(subject.model.source());
    let mut runner = subject.runner(options)?;
    runner.keep_compressed();
    runner.observe(&collector);
    monitor.expect(settings.work(read.tokens.len(), subject.model.hparams()));
    let n_chunks = options
        .on_threads(|| collect(&runner, &read.tokens, &settings, monitor))?
        .map_err(|error| MeasureError::of(subject.path, error))?;
    Ok(collector.sums(&text.path().display().to_string(), n_chunks, options.ctx as u32))
}
