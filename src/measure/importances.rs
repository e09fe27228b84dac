//! Importance matrices of a model from texts.

use super::{Found, Job, MeasureError, Options, Subject, Text, measure};
use crate::imatrix::Sums;
use crate::monitor::Monitor;

/// Sums of squares of the inputs of a model's matrices, as llama-imatrix collects them; of the output matrix
/// where it is asked for.
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
/// let sums = importances(Subject { path, model: &model }, false, &[text], &options, &())?;
/// assert_eq!(sums.entries["blk.0.attn_q_a.weight"].counts, [512]);
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
///
/// # Errors
/// A vocabulary or a forward pass that the model does not allow, a text too short, too little memory.
pub fn importances(
    subject: Subject,
    of_output: bool,
    texts: &[Text],
    options: &Options,
    monitor: &dyn Monitor,
) -> Result<Sums, MeasureError> {
    match measure(Job::Importances { subject, of_output }, texts, options, monitor)?.result()? {
        Found::Importances(sums) => Ok(sums),
        _ => unreachable!("importances are sums"),
    }
}
