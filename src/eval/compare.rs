//! Models against a reference on the same text: perplexity, KL divergence, agreement.
//!
//! All models walk in lock-step, layer by layer and then tile by tile through the output matrix, so
//! that no file of logits is needed. Definitions are llama-perplexity's (`kl_divergence` in
//! `perplexity.cpp`); sums are f64 and log-probabilities are not rounded to 16 bits.

use super::base::{BaseReader, BaseWriter};
use super::error::EvalError;
use super::exact::Apart;
use super::model::Model;
use super::perplexity::{Paired, Perplexity, PerplexityOptions, chunk_means, mean};
use super::vocabulary::{self, Side};
use super::walk::{Walk, identity};
use crate::monitor::Monitor;
use serde::Serialize;

/// Where the reference's probabilities come from.
#[non_exhaustive]
pub enum Reference<'r, 'a> {
    /// A model that runs alongside.
    Model(&'r Model<'a>),
    /// A file that llama-perplexity or [`compare`] saved.
    Base(&'r mut BaseReader),
}

/// How far a model is from the reference.
#[derive(Clone, Debug, Serialize)]
pub struct Comparison {
    /// How well it predicts the text.
    pub perplexity: Perplexity,
    /// Its perplexity against the reference's, token by token.
    pub paired: Paired,
    /// Correlation of the log-probabilities of the true tokens, as of their means.
    pub correlation: f64,
    /// KL divergence of the model from the reference, in nats.
    pub kl_divergence: Distribution,
    /// Mean KL divergence of each chunk.
    pub kl_per_chunk: Vec<f64>,
    /// Share of tokens for which both find the same token most probable.
    pub same_top: Estimate,
    /// Share of the most probable tokens of the reference that are among the model's, so many of each.
    pub top_k: Vec<TopK>,
    /// Change of the true token's probability, model less reference.
    pub p_change: Distribution,
    /// Root of the mean square of that change.
    pub p_change_rms: Estimate,
    /// Norm of the difference of the hidden states after each layer, relative to that of the
    /// reference's; empty where the reference did not run.
    pub layer_error: Vec<f64>,
    /// What these errors follow from, layer by layer.
    #[serde(skip)]
    pub layers: Vec<Apart>,
    /// Values of each token, in the order of the text.
    #[serde(skip)]
    pub tokens: Vec<TokenValues>,
}

/// A value and its standard error.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
pub struct Estimate {
    /// The value.
    pub value: f64,
    /// Its standard error, tokens taken as independent.
    pub error: f64,
}

/// How far the sets of most probable tokens agree.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
pub struct TopK {
    /// Tokens of a set.
    pub k: usize,
    /// Share of the reference's that are in the model's, over all places.
    pub value: f64,
    /// Its standard error, tokens taken as independent.
    pub error: f64,
}

/// How values are distributed over tokens.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Distribution {
    /// Mean and its standard error.
    pub mean: Estimate,
    /// Standard error of the mean with chunks taken as independent, but not the tokens within;
    /// absent for a single chunk.
    pub mean_error_by_chunk: Option<f64>,
    /// Smallest.
    pub min: f64,
    /// Largest.
    pub max: f64,
    /// Pairs of a percentage and the value that so many lie below.
    #[serde(serialize_with = "by_percentage")]
    pub percentiles: Vec<(f64, f64)>,
}

/// What is known of a token.
#[derive(Clone, Copy, Debug, Default)]
pub struct TokenValues {
    /// Its negative log-likelihood under the reference.
    pub nll_reference: f64,
    /// And under the model.
    pub nll: f64,
    /// KL divergence at its place.
    pub kl: f64,
    /// Change of its probability.
    pub p_change: f64,
    /// Whether both models find the same token most probable there.
    pub same_top: bool,
    /// How many of the reference's most probable tokens are among the model's, of so many as [`TOP`] says.
    pub shared: [u8; TOP.len()],
}

/// Tokens of the sets whose agreement is looked at.
pub const TOP: [usize; 2] = [5, 10];

/// Percentages that are reported.
const PERCENTILES: [f64; 11] = [0.1, 1.0, 5.0, 10.0, 25.0, 50.0, 75.0, 90.0, 95.0, 99.0, 99.9];

/// Whole rows of logits that exist at a time, where a file needs them.
const WHOLE_ROWS: usize = 128;

/// `{"50": …, "99.9": …}`.
fn by_percentage<S: serde::Serializer>(
    pairs: &[(f64, f64)],
    serializer: S,
) -> Result<S::Ok, S::Error> {
    serializer.collect_map(pairs.iter().map(|(percent, value)| (percent.to_string(), value)))
}

impl Distribution {
    fn new(values: impl Iterator<Item = f64>, n_chunks: usize) -> Self {
        let values: Vec<f64> = values.collect();
        let (value, error) = mean(&values);
        let mean_error_by_chunk = (n_chunks > 1 && values.len() >= n_chunks)
            .then(|| mean(&chunk_means(&values, n_chunks)).1);
        let mut sorted = values;
        sorted.sort_by(f64::total_cmp);
        let at = |percent: f64| {
            let place = percent / 100.0 * (sorted.len() - 1) as f64;
            let (below, part) = (place.floor(), place.fract());
            let next = (below as usize + 1).min(sorted.len() - 1);
            (1.0 - part) * sorted[below as usize] + part * sorted[next]
        };
        Self {
            mean: Estimate { value, error },
            mean_error_by_chunk,
            min: sorted[0],
            max: sorted[sorted.len() - 1],
            percentiles: PERCENTILES.map(|percent| (percent, at(percent))).to_vec(),
        }
    }

    /// A percentile; not a number where it is none of those that are reported.
    pub fn percentile(&self, wanted: f64) -> f64 {
        self.percentiles.iter().find(|p| p.0 == wanted).map_or(f64::NAN, |p| p.1)
    }

    /// The standard error of the mean with chunks taken as independent; tokens where there is one chunk.
    pub fn error_by_chunk(&self) -> f64 {
        self.mean_error_by_chunk.unwrap_or(self.mean.error)
    }
}

impl Comparison {
    /// What follows from the values of each token, in chunks of equally many.
    ///
    /// # Errors
    /// No tokens.
    pub fn new(
        tokens: Vec<TokenValues>,
        n_chunks: usize,
        layers: Vec<Apart>,
    ) -> Result<Self, EvalError> {
        let result = |nll: fn(&TokenValues) -> f64| {
            Perplexity::new(tokens.iter().map(nll).collect(), n_chunks)
        };
        let (reference, perplexity) = (result(|t| t.nll_reference), result(|t| t.nll));
        let n = tokens.len() as f64;
        let covariance = reference.nll.iter().zip(&perplexity.nll);
        let covariance = covariance
            .map(|(a, b)| (a - reference.mean_nll) * (b - perplexity.mean_nll))
            .sum::<f64>()
            / n;
        let spread = |p: &Perplexity| {
            (p.nll.iter().map(|v| (v - p.mean_nll).powi(2)).sum::<f64>() / n).sqrt()
        };
        let same = tokens.iter().filter(|t| t.same_top).count() as f64 / n;
        let top_k = TOP.iter().enumerate().map(|(i, &k)| {
            let share = |t: &TokenValues| f64::from(t.shared[i]) / k as f64;
            let (value, error) = mean(&tokens.iter().map(share).collect::<Vec<_>>());
            TopK { k, value, error }
        });
        let kl: Vec<f64> = tokens.iter().map(|t| t.kl).collect();
        let squares: Vec<f64> = tokens.iter().map(|t| t.p_change * t.p_change).collect();
        let (square, square_error) = mean(&squares);
        Ok(Self {
            paired: Paired::new(&reference, &perplexity)?,
            correlation: covariance / (spread(&reference) * spread(&perplexity)),
            perplexity,
            kl_per_chunk: chunk_means(&kl, n_chunks),
            kl_divergence: Distribution::new(kl.into_iter(), n_chunks),
            same_top: Estimate {
                value: same,
                error: (same * (1.0 - same) / (n - 1.0).max(1.0)).sqrt(),
            },
            top_k: top_k.collect(),
            p_change: Distribution::new(tokens.iter().map(|t| t.p_change), n_chunks),
            p_change_rms: Estimate {
                value: square.sqrt(),
                error: if square > 0.0 { 0.5 / square.sqrt() * square_error } else { 0.0 },
            },
            layer_error: layers.iter().map(|layer| layer.relative()).collect(),
            layers,
            tokens,
        })
    }
}

/// The work that [`compare`] reports: tokens times layers over all models.
pub fn comparison_work(models: &[&Model], n_tokens: usize, options: &PerplexityOptions) -> u64 {
    let work = |model: &&Model| {
        let layers = u64::from(model.hparams().n_layer) + 1;
        let own = layers - u64::from(model.first_different());
        options.work(n_tokens, model.hparams()) / layers * own
    };
    models.iter().map(work).sum()
}

/// Runs the reference and all candidates over a text. Returns the reference's own result and a
/// comparison for each candidate. With `save`, the reference's log-probabilities are written in
/// llama-perplexity's format.
///
/// The monitor counts tokens times layers.
///
/// # Errors
/// A text too short, models of different vocabularies, weights that cannot be read, results that
/// are not finite.
pub fn compare(
    mut reference: Reference,
    candidates: &[&Model],
    tokens: &[u32],
    options: &PerplexityOptions,
    mut save: Option<&mut BaseWriter>,
    monitor: &dyn Monitor,
) -> Result<(Perplexity, Vec<Comparison>), EvalError> {
    let n_chunks = options.checked_chunks(tokens)?;
    let n_vocab = match &reference {
        Reference::Model(model) => model.hparams().n_vocab,
        Reference::Base(base) => base.n_vocab(),
    };
    if let Some(other) = candidates.iter().find(|m| m.hparams().n_vocab != n_vocab) {
        return Err(EvalError::Vocabularies(n_vocab, other.hparams().n_vocab));
    }
    let own: Option<&Model> = match &reference {
        Reference::Model(model) => Some(model),
        Reference::Base(_) => None,
    };
    // The reference has number 0, whether it runs or not.
    let first = usize::from(own.is_none());
    let together: Vec<&Model> = own.into_iter().chain(candidates.iter().copied()).collect();
    let identity = identity(&together, &tokens[..n_chunks * options.ctx], options);
    let mut walks = Vec::new();
    for (number, &model) in (first..).zip(&together) {
        let walk = Walk::new(model, tokens, n_chunks, options, identity ^ number as u64);
        walks.push(walk.map_err(|error| error.of(number))?);
    }
    let deepest = together.iter().map(|model| model.hparams().n_layer).max().unwrap_or(0);
    if let (Some(own), [_, others @ ..]) = (own, &walks[..]) {
        // Errors are taken in lock-step, so nobody may be ahead of what is known of them.
        let compared = others.iter().filter(|walk| comparable(walk.model, own));
        if let Some(noted) = compared.map(Walk::noted).min() {
            for walk in &mut walks {
                walk.restart_beyond(noted + 1)?;
            }
        }
    }
    let mut done = 0;
    for (number, walk) in (first..).zip(&mut walks) {
        done += walk.begin().map_err(|error| error.of(number))?;
    }
    monitor.resume(done);
    let mut layer_errors = vec![Vec::new(); candidates.len()];
    for layer in 0..deepest {
        for number in first..first + walks.len() {
            let (before, from) = walks.split_at_mut(number - first);
            let walk = &mut from[0];
            let shared = if own.is_some() { walk.model.first_different() } else { 0 };
            let passed = match before {
                [reference, ..] if layer + 1 == shared => walk.take_over(reference, shared),
                [_, ..] if layer < shared => Ok(()),
                _ if layer < walk.model.hparams().n_layer => walk.layer(layer, monitor),
                _ => Ok(()),
            };
            passed.map_err(|error| error.of(number))?;
        }
        let (Some(own), [of_reference, others @ ..]) = (own, &mut walks[..]) else { continue };
        for (walk, errors) in others.iter_mut().zip(&mut layer_errors) {
            if comparable(walk.model, own) && layer >= walk.model.first_different() {
                errors.extend(walk.error(of_reference, layer)?);
            }
        }
    }
    let (of_reference, others) = match (own, &walks[..]) {
        (Some(_), [walk, others @ ..]) => (Some(walk), others),
        (_, others) => (None, others),
    };
    let Some(any) = walks.first() else { return Err(EvalError::NothingToScore) };
    // Where whole rows are needed for a file, only few may exist.
    let whole = save.is_some() || own.is_none();
    if let (Some(own), Some(walk)) = (own, of_reference) {
        own.observe_embeddings(&walk.inputs()).map_err(|error| error.of(0))?;
    }
    let mut nll_reference = Vec::new();
    let mut values: Vec<Vec<TokenValues>> = vec![Vec::new(); candidates.len()];
    for rows in any.groups(if whole { WHOLE_ROWS } else { vocabulary::ROWS }) {
        let targets = any.targets(rows.clone());
        let normed = of_reference.map(|walk| walk.normed(rows.clone()));
        let normed = normed.transpose().map_err(|error| error.of(0))?;
        if let (Some(own), Some(normed)) = (own, &normed) {
            own.observe_output(normed.view()).map_err(|error| error.of(0))?;
        }
        let mut states = Vec::new();
        for (number, walk) in (1..).zip(others) {
            states.push(walk.normed(rows.clone()).map_err(|error| error.of(number))?);
        }
        let outputs = others.iter().map(|walk| walk.model.output());
        let models: Vec<_> = outputs.zip(&states).map(|(of, rows)| (of, rows.view())).collect();
        let logits = match (&mut reference, &normed) {
            (Reference::Base(base), _) => Some(base.read(rows.len())?),
            (Reference::Model(model), Some(normed)) if whole => Some(model.logits(normed.view())?),
            _ => None,
        };
        if let (Some(save), Some(logits)) = (save.as_deref_mut(), &logits) {
            save.write(logits.view())?;
        }
        let side = match (own, &normed, &logits) {
            (Some(_), _, Some(logits)) => Side::Logits(logits.view()),
            (Some(model), Some(normed), None) => Side::States(model.output(), normed.view()),
            (_, _, Some(logits)) => Side::Saved(logits.view()),
            (_, _, None) => unreachable!("a reference is a model or a file"),
        };
        let scores =
            vocabulary::score(any.model.simd(), side, &models, &targets).map_err(|bad| {
                let (number, token) = (bad.model, any.place(rows.start + bad.row));
                match number.checked_sub(first) {
                    Some(i) => bad.error(together[i], token).of(number),
                    None => EvalError::SavedNotFinite { token },
                }
            })?;
        nll_reference.extend(scores.nll);
        values.iter_mut().zip(scores.models).for_each(|(all, part)| all.extend(part));
        monitor.advance(any.tokens_of(rows) * walks.len() as u64);
        if monitor.cancelled() {
            return Err(EvalError::Cancelled);
        }
    }
    let own = Perplexity::new(nll_reference, n_chunks);
    let comparisons = values.into_iter().zip(layer_errors);
    let comparisons = comparisons.map(|(values, errors)| Comparison::new(values, n_chunks, errors));
    Ok((own, comparisons.collect::<Result<_, _>>()?))
}

/// Whether states after the same layer can be compared.
fn comparable(model: &Model, reference: &Model) -> bool {
    let shape = |model: &Model| (model.hparams().n_layer, model.hparams().n_embd);
    shape(model) == shape(reference)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn percentiles_lie_between_neighbours() {
        let d = Distribution::new([4.0, 0.0, 1.0, 3.0, 2.0].into_iter(), 1);
        assert_eq!((d.min, d.max, d.mean.value), (0.0, 4.0, 2.0));
        assert_eq!((d.percentile(50.0), d.percentile(25.0)), (2.0, 1.0));
        assert!((d.percentile(90.0) - 3.6).abs() < 1e-12);
    }
}
