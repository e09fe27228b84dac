//! What models are worth on a text: perplexity, comparison, gate, importances, the best mix for a size, each as one function
//! from opened models and a text to a result.
//!
//! This room joins what the others know, a model's tokenizer, its weights and the forward pass, and
//! turns an amount of memory into settings. It neither prints nor knows any option's name.

mod choices;
mod chunks;
mod compare;
mod deadline;
mod error;
mod estimate;
mod front;
mod gate;
mod groups;
mod importances;
mod inputs;
mod job;
mod mix;
mod options;
mod order;
mod outcome;
mod pairs;
mod part;
mod perplexity;
mod search;
mod sensitivity;
mod tasks;
mod text;
mod values;

pub use choices::{Answers, Choices, Share, Tasks, choices, choices_unless, estimate_choices};
pub use compare::{Against, Extras, compare};
pub use error::MeasureError;
pub use estimate::{Estimate, estimate};
pub use front::front;
pub use gate::{Judged, Judgement, Terms, gate};
pub use groups::measured_tensors;
pub use importances::importances;
pub use inputs::{InputModel, InputText, Inputs};
pub use job::{Job, measure, measure_unless};
pub use mix::{Bounds, Mix, mix};
pub use options::Options;
pub use outcome::{Domain, Found, Outcome, Row, Sampling, TensorCost};
pub use pairs::Pair;
pub use part::Part;
pub use perplexity::{drafts, perplexity};
pub use search::Search;
pub use sensitivity::{Group, OfTensor, PROBE, Sensitivities, SoFar, Types, proof, sensitivities};
pub use tasks::Format;
pub use text::{CALIBRATED_WITH, Text, Tokens};

pub use crate::eval::Beside;

use crate::eval;
use crate::model::Model;
use crate::source::Source;
use std::path::Path;

/// An opened model, and what messages and results call it.
#[derive(Clone, Copy)]
pub struct Subject<'a> {
    /// Where it is, as its user says.
    pub path: &'a Path,
    /// The model.
    pub model: &'a Model,
}

impl<'a> Subject<'a> {
    /// Its forward pass.
    fn runner(self, options: &Options) -> Result<eval::Model<'a>, MeasureError> {
        self.runner_over(self.model.source(), options)
    }

    /// Its forward pass with other weights.
    fn runner_over<'s>(
        self,
        source: &'s dyn Source,
        options: &Options,
    ) -> Result<eval::Model<'s>, MeasureError>
    where
        'a: 's,
    {
        let runner = eval::Model::new(self.model.hparams(), source);
        let mut runner = runner.map_err(|error| MeasureError::of(self.path, error))?;
        runner.set_activations(options.activations);
        runner.set_simd(options.simd);
        Ok(runner)
    }

    /// Bytes of its weights and their number.
    pub fn size(self) -> (u64, u64) {
        let tensors = self.model.source().tensors().iter();
        (self.model.n_bytes(), tensors.map(|t| t.n_elements()).sum())
    }

    /// What tells it from other models, wherever it lies: a hash over names, shapes and types of its tensors, and
    /// the first and the last row of each.
    ///
    /// # Errors
    /// Weights that cannot be read.
    pub fn fingerprint(self) -> Result<String, MeasureError> {
        chunks::fingerprint(self)
    }

    /// Bits per weight, as stored.
    pub fn bits_per_weight(self) -> f64 {
        let (bytes, weights) = self.size();
        bytes as f64 * 8.0 / weights.max(1) as f64
    }
}
