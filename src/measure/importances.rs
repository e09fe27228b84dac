//! Importance matrices of a model from texts.

use super::{Beside, Found, Job, MeasureError, Options, Subject, Text, measure};
use crate::imatrix::Sums;
use crate::monitor::Monitor;

/// Sums of squares of the inputs of a model's matrices, as llama-imatrix collects them; of the output matrix and
/// the layer for multi-token prediction where these are asked for.
///
/// The monitor counts tokens times layers.
///
/// ```
/// use requant::measure::{Beside, Options, Subject, Text, importances};
/// use requant::model::{Model, Mtp};
/// use std::path::Path;
///
/// let path = Path::new("tests/fixtures/reference/tiny-r1-bf16.gguf");
/// let model = Model::open(path, Mtp::Drop)?;
/// let text = Text::read(Path::new("tests/fixtures/text/calibration.txt"))?;
/// let options = Options { chunks: Some(1), ..Options::default() };
/// let subject = Subject { path, model: &model };
/// let sums = importances(subject, Beside::default(), &[text], &options, &())?;
/// assert_eq!(sums.entries["blk.0.attn_q_a.weight"].counts, [512]);
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
///
/// # Errors
/// A vocabulary, a forward pass or a layer that the model does not have, a text too short, too little memory.
pub fn importances(
    subject: Subject,
    beside: Beside,
    texts: &[Text],
    options: &Options,
    monitor: &dyn Monitor,
) -> Result<Sums, MeasureError> {
    match measure(Job::Importances { subject, beside }, texts, options, monitor)?.result()? {
        Found::Importances(sums) => Ok(sums),
        _ => unreachable!("importances are sums"),
    }
}
