//! What follows from measured values.

use super::front::front;
use super::part::{Head, Stored};
use super::values::Values;
use super::{Choices, Judgement, MeasureError, Sensitivities};
use crate::eval::{AS_OUTPUT, Activations, Apart, Comparison, Perplexity};
use crate::imatrix::Sums;
use serde::Serialize;
use std::path::PathBuf;

/// What was found.
#[derive(Clone, Debug)]
pub enum Found {
    /// Of one model.
    Perplexity(Box<Outcome>),
    /// Of models compared with a reference.
    Comparison(Box<Outcome>),
    /// Of models that were to keep within limits.
    Judgement(Box<Judgement>),
    /// Sums of squares.
    Importances(Sums),
    /// What the types of a model's tensors cost.
    Sensitivities(Sensitivities),
    /// How tasks with given answers were answered.
    Choices(Choices),
}

impl Found {
    /// Whether what was asked for was found, and not only what there was when it was stopped.
    pub fn is_complete(&self) -> bool {
        match self {
            Self::Perplexity(outcome) | Self::Comparison(outcome) => outcome.complete,
            Self::Judgement(judgement) => judgement.complete,
            Self::Importances(_) | Self::Sensitivities(_) | Self::Choices(_) => true,
        }
    }
}

/// What was found about one model.
#[derive(Clone, Debug)]
pub struct Row {
    /// The model.
    pub path: PathBuf,
    /// Bits per weight.
    pub bits_per_weight: f64,
    /// Bytes of its weights.
    pub bytes: u64,
    /// How far it is from the reference.
    pub comparison: Comparison,
    /// The error of the output of each tensor, largest first, where it was asked for.
    pub tensors: Option<Vec<TensorCost>>,
}

/// What a tensor of a model costs.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct TensorCost {
    /// Its name.
    pub name: String,
    /// Relative error of its output, or of the tokens that it embeds; 0 where it is unchanged.
    pub error: f64,
    /// Its type.
    #[serde(rename = "type")]
    pub ty: String,
    /// Bits per weight.
    pub bits_per_weight: f64,
    /// Its bytes.
    pub bytes: u64,
}

/// How well a model predicts texts, and how far several models are from it.
#[derive(Clone, Debug)]
pub struct Outcome {
    /// The reference, a model or a file of log-probabilities; or the one model.
    pub reference: PathBuf,
    /// The texts, where they are known.
    pub texts: Vec<PathBuf>,
    /// Tokens per chunk.
    pub ctx: usize,
    /// In which precision activations met weights.
    pub activations: Activations,
    /// The reference's own result.
    pub own: Perplexity,
    /// The models.
    pub rows: Vec<Row>,
    /// The same for each text, where there are several.
    pub domains: Vec<Domain>,
    /// What was to be reached with some of the chunks, and what was.
    pub sampling: Option<Sampling>,
    /// Whether what was asked for was found; not where it was stopped, or a time limit was over, before.
    pub complete: bool,
    /// Chunks that it took.
    pub chunks: usize,
    /// Chunks that there were.
    pub chunks_available: usize,
    /// The numbers of the chunks that it took.
    pub taken: Vec<usize>,
}

/// What was found on one of several texts.
#[derive(Clone, Debug)]
pub struct Domain {
    /// The text.
    pub text: PathBuf,
    /// The reference's own result.
    pub own: Perplexity,
    /// Those of the models.
    pub models: Vec<Comparison>,
}

/// Chunks that were taken from all over a text until an error was small enough.
#[derive(Clone, Copy, Debug, serde::Serialize)]
pub struct Sampling {
    /// The relative standard error that was wanted.
    pub wanted: f64,
    /// What it is: the largest of all models.
    pub error: f64,
    /// Which chunks came first.
    pub seed: u64,
    /// Chunks that it took.
    pub chunks: usize,
    /// Chunks that there were.
    pub chunks_available: usize,
}

impl Outcome {
    /// Which models no other beats: none is as small and, by mean KL divergence, as close to the reference.
    pub fn front(&self) -> Vec<bool> {
        let point = |row: &Row| (row.bytes as f64, row.comparison.kl_divergence.mean.value);
        front(&self.rows.iter().map(point).collect::<Vec<_>>())
    }

    pub(super) fn new(head: &Head, values: &Values, stopped: bool) -> Result<Self, MeasureError> {
        let values = values.sorted();
        let models = head.models.iter().zip(values.comparisons()?).zip(&values.models);
        let rows = models.map(|((model, comparison), found)| Row {
            path: model.path.clone(),
            bits_per_weight: model.bits_per_weight,
            bytes: model.bytes,
            comparison,
            tensors: head.by_tensor.then(|| largest_first(&found.tensors, &model.stored)),
        });
        let mut domains = Vec::new();
        for (text, chunks) in head.texts.iter().filter(|_| head.texts.len() > 1) {
            let part = values.within(chunks);
            if !part.chunks.is_empty() {
                let (own, models) = (part.own(), part.comparisons()?);
                domains.push(Domain { text: text.clone(), own, models });
            }
        }
        let sampling = head.until_error.map(|wanted| Sampling {
            wanted,
            error: values.relative_error(),
            seed: head.seed,
            chunks: values.chunks.len(),
            chunks_available: head.chunks,
        });
        Ok(Self {
            reference: head.reference.clone(),
            texts: head.texts.iter().map(|(path, _)| path.clone()).collect(),
            ctx: head.ctx,
            activations: head.activations,
            own: values.own(),
            rows: rows.collect(),
            domains,
            sampling,
            complete: !stopped,
            chunks: values.chunks.len(),
            chunks_available: head.chunks,
            taken: values.chunks,
        })
    }
}

/// What tensors cost, with how they are stored.
fn largest_first(errors: &[(String, Apart)], stored: &[Stored]) -> Vec<TensorCost> {
    let cost = |(name, error): &(String, Apart)| {
        let tensor = name.strip_suffix(AS_OUTPUT).unwrap_or(name);
        let stored = stored.iter().find(|stored| stored.name == tensor)?;
        Some(TensorCost {
            name: name.clone(),
            error: error.relative(),
            ty: stored.ty.clone(),
            bits_per_weight: stored.bytes as f64 * 8.0 / stored.weights.max(1) as f64,
            bytes: stored.bytes,
        })
    };
    let mut list: Vec<TensorCost> = errors.iter().filter_map(cost).collect();
    list.sort_by(|a, b| b.error.total_cmp(&a.error).then_with(|| a.name.cmp(&b.name)));
    list
}
