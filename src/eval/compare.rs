//! Models against a reference on the same text: perplexity, KL divergence, agreement.
//!
//! All models walk in lock-step, layer by layer and then chunk by chunk through the output matrix,
//! so that no file of logits is needed. Definitions are llama-perplexity's (`kl_divergence` in
//! `perplexity.cpp`); sums are f64 and log-probabilities are not rounded to 16 bits.

use super::base::{BaseReader, BaseWriter};
use super::error::EvalError;
use super::model::Model;
use super::perplexity::{Paired, Perplexity, PerplexityOptions, mean};
use super::walk::Walk;
use crate::monitor::Monitor;
use ndarray::parallel::prelude::*;
use ndarray::{Array2, Axis};
use serde::Serialize;

/// Where the reference's probabilities come from.
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
    /// Share of tokens for which both find the same token most probable.
    pub same_top: Estimate,
    /// Change of the true token's probability, model less reference.
    pub p_change: Distribution,
    /// Root of the mean square of that change.
    pub p_change_rms: Estimate,
    /// Norm of the difference of the hidden states after each layer, relative to that of the
    /// reference's; empty where the reference did not run.
    pub layer_error: Vec<f64>,
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
}

/// Percentages that are reported.
const PERCENTILES: [f64; 11] = [0.1, 1.0, 5.0, 10.0, 25.0, 50.0, 75.0, 90.0, 95.0, 99.0, 99.9];

/// Rows of logits that exist at a time.
const ROWS: usize = 128;

impl Distribution {
    fn new(values: impl Iterator<Item = f64>, n_chunks: usize) -> Self {
        let values: Vec<f64> = values.collect();
        let (value, error) = mean(&values);
        let per_chunk = values.len() / n_chunks.max(1);
        let mean_error_by_chunk = (n_chunks > 1 && per_chunk > 0).then(|| {
            let means = values.chunks(per_chunk).map(|c| c.iter().sum::<f64>() / c.len() as f64);
            mean(&means.collect::<Vec<_>>()).1
        });
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
}

impl Comparison {
    fn new(
        tokens: Vec<TokenValues>,
        n_chunks: usize,
        layer_error: Vec<f64>,
    ) -> Result<Self, EvalError> {
        let per_chunk = tokens.len() / n_chunks.max(1);
        let result = |nll: fn(&TokenValues) -> f64| {
            let nll: Vec<f64> = tokens.iter().map(nll).collect();
            let sums = nll.chunks(per_chunk.max(1)).map(|chunk| chunk.iter().sum()).collect();
            Perplexity::new(sums, nll)
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
        let squares: Vec<f64> = tokens.iter().map(|t| t.p_change * t.p_change).collect();
        let (square, square_error) = mean(&squares);
        Ok(Self {
            paired: Paired::new(&reference, &perplexity)?,
            correlation: covariance / (spread(&reference) * spread(&perplexity)),
            perplexity,
            kl_divergence: Distribution::new(tokens.iter().map(|t| t.kl), n_chunks),
            same_top: Estimate {
                value: same,
                error: (same * (1.0 - same) / (n - 1.0).max(1.0)).sqrt(),
            },
            p_change: Distribution::new(tokens.iter().map(|t| t.p_change), n_chunks),
            p_change_rms: Estimate {
                value: square.sqrt(),
                error: if square > 0.0 { 0.5 / square.sqrt() * square_error } else { 0.0 },
            },
            layer_error,
            tokens,
        })
    }

    /// Joins the comparisons of a text's parts.
    ///
    /// # Errors
    /// Parts without tokens.
    pub fn join(parts: Vec<Self>) -> Result<Self, EvalError> {
        let n_chunks = parts.iter().map(|p| p.perplexity.nll_per_chunk.len()).sum();
        Self::new(parts.into_iter().flat_map(|p| p.tokens).collect(), n_chunks, Vec::new())
    }
}

/// The work that [`compare`] reports: tokens times layers over all models.
pub fn comparison_work(models: &[&Model], n_tokens: usize, options: &PerplexityOptions) -> u64 {
    models.iter().map(|model| options.work(n_tokens, model.hparams())).sum()
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
    let walk = |model| Walk::new(model, tokens, n_chunks, options);
    let mut of_reference = match &reference {
        Reference::Model(model) => Some(walk(model)?),
        Reference::Base(_) => None,
    };
    let mut walks = Vec::new();
    for &model in candidates {
        walks.push(walk(model)?);
    }
    let n_vocab = match &reference {
        Reference::Model(model) => model.hparams().n_vocab,
        Reference::Base(base) => base.n_vocab(),
    };
    if let Some(other) = candidates.iter().find(|m| m.hparams().n_vocab != n_vocab) {
        return Err(EvalError::Vocabularies(n_vocab, other.hparams().n_vocab));
    }
    let mut layer_errors = vec![Vec::new(); candidates.len()];
    let n_layer = |walk: &Walk| walk.model.hparams().n_layer;
    let deepest = of_reference.iter().chain(&walks).map(n_layer).max().unwrap_or(0);
    for layer in 0..deepest {
        for walk in of_reference.iter_mut().chain(&mut walks) {
            if layer < n_layer(walk) {
                walk.layer(layer, monitor)?;
            }
        }
        let Some(of_reference) = &of_reference else { continue };
        for (walk, errors) in walks.iter_mut().zip(&mut layer_errors) {
            if n_layer(walk) == n_layer(of_reference) {
                errors.extend(walk.error(of_reference, layer)?);
            }
        }
    }
    let mut nll_reference = Vec::new();
    let mut values: Vec<Vec<TokenValues>> = vec![Vec::new(); candidates.len()];
    for chunk in 0..n_chunks {
        let rows_of = |walk: &Walk| walk.rows(chunk);
        let own = of_reference.as_ref().map(rows_of).transpose()?;
        let others = walks.iter().map(rows_of).collect::<Result<Vec<_>, _>>()?;
        let Some((_, targets, first)) = own.as_ref().or(others.first()) else { break };
        for start in (0..targets.len()).step_by(ROWS) {
            let part = start..(start + ROWS).min(targets.len());
            let slice = ndarray::s![part.clone(), ..];
            let mut logits = match (&mut reference, &own) {
                (Reference::Model(model), Some((rows, ..))) => model.logits(rows.slice(slice))?,
                (Reference::Base(base), _) => base.read(part.len())?,
                (Reference::Model(_), None) => unreachable!("a model has walked"),
            };
            if let Some(save) = save.as_deref_mut() {
                save.write(logits.view())?;
            }
            let targets = &targets[part.clone()];
            let nll = match &reference {
                Reference::Model(_) => log_softmax(&mut logits, targets)
                    .map_err(|token| not_finite(deepest, first + part.start + token))?,
                // Taken as saved, though rounding has left the sums of probabilities off 1.
                Reference::Base(_) => {
                    let rows = logits.rows().into_iter().zip(targets);
                    rows.map(|(row, &target)| -f64::from(row[target as usize])).collect()
                }
            };
            nll_reference.extend_from_slice(&nll);
            for ((model, (rows, ..)), values) in candidates.iter().zip(&others).zip(&mut values) {
                let mut other = model.logits(rows.slice(slice))?;
                let other_nll = log_softmax(&mut other, targets)
                    .map_err(|token| not_finite(deepest, first + part.start + token))?;
                values.extend(tokens_of(&logits, &other, &nll, &other_nll));
            }
        }
        let n_models = walks.len() + usize::from(of_reference.is_some());
        monitor.advance((options.ctx * n_models) as u64);
        if monitor.cancelled() {
            return Err(EvalError::Cancelled);
        }
    }
    of_reference.into_iter().chain(walks).for_each(Walk::finish);
    let per_chunk = nll_reference.len() / n_chunks;
    let sums = nll_reference.chunks(per_chunk.max(1)).map(|chunk| chunk.iter().sum()).collect();
    let own = Perplexity::new(sums, nll_reference);
    let comparisons = values.into_iter().zip(layer_errors);
    let comparisons = comparisons.map(|(values, errors)| Comparison::new(values, n_chunks, errors));
    Ok((own, comparisons.collect::<Result<_, _>>()?))
}

fn not_finite(layer: u32, token: usize) -> EvalError {
    EvalError::NotFinite { layer, part: "output matrix", token }
}

/// Turns rows of logits into log-probabilities, and gives the negative of each row's target.
/// Fails with the first row that is not finite.
fn log_softmax(logits: &mut Array2<f32>, targets: &[u32]) -> Result<Vec<f64>, usize> {
    let nll: Vec<f64> = logits
        .axis_iter_mut(Axis(0))
        .into_par_iter()
        .zip(targets)
        .map(|(mut row, &target)| {
            let row = row.as_slice_mut().expect("rows are contiguous");
            let (max, sum) = super::exponential::log_sum_parts(row);
            let log_sum = sum.ln();
            let nll = log_sum - (f64::from(row[target as usize]) - f64::from(max));
            for logit in row {
                *logit = (f64::from(*logit) - f64::from(max) - log_sum) as f32;
            }
            nll
        })
        .collect();
    match nll.iter().position(|nll| !nll.is_finite()) {
        Some(token) => Err(token),
        None => Ok(nll),
    }
}

/// Compares rows of log-probabilities.
fn tokens_of(
    reference: &Array2<f32>,
    other: &Array2<f32>,
    nll_reference: &[f64],
    nll: &[f64],
) -> Vec<TokenValues> {
    let rows = reference.axis_iter(Axis(0)).into_par_iter().zip(other.axis_iter(Axis(0)));
    rows.zip(nll_reference.par_iter().zip(nll))
        .map(|((a, b), (&nll_reference, &nll))| {
            let (mut kl, mut top_a, mut top_b) = (0.0, 0, 0);
            for (i, (&p, &q)) in a.iter().zip(b).enumerate() {
                if p > a[top_a] {
                    top_a = i;
                }
                if q > b[top_b] {
                    top_b = i;
                }
                // What is less probable than this adds nothing.
                if p > -60.0 {
                    kl += f64::from(super::exponential::exp(p)) * f64::from(p - q);
                }
            }
            TokenValues {
                nll_reference,
                nll,
                kl,
                p_change: (-nll).exp() - (-nll_reference).exp(),
                same_top: top_a == top_b,
            }
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn divergence_and_agreement_by_hand() {
        // p = (1/2, 1/4, 1/4), q = (1/4, 1/2, 1/4): KL = ln(2)/2 - ln(2)/4.
        let mut p = Array2::from_shape_vec((1, 3), vec![2f32.ln(), 0.0, 0.0]).unwrap();
        let mut q = Array2::from_shape_vec((1, 3), vec![7.0, 7.0 + 2f32.ln(), 7.0]).unwrap();
        let (a, b) = (log_softmax(&mut p, &[0]).unwrap(), log_softmax(&mut q, &[0]).unwrap());
        let token = tokens_of(&p, &q, &a, &b)[0];
        assert!((token.kl - 2f64.ln() / 4.0).abs() < 1e-6, "{token:?}");
        assert!((token.p_change + 0.25).abs() < 1e-6 && !token.same_top);
        assert!((token.nll - 4f64.ln()).abs() < 1e-6);
        assert_eq!(log_softmax(&mut Array2::from_elem((1, 2), f32::NAN), &[0]), Err(0));
    }

    #[test]
    fn percentiles_lie_between_neighbours() {
        let d = Distribution::new([4.0, 0.0, 1.0, 3.0, 2.0].into_iter(), 1);
        assert_eq!((d.min, d.max, d.mean.value), (0.0, 4.0, 2.0));
        let at = |percent: f64| d.percentiles.iter().find(|p| p.0 == percent).unwrap().1;
        assert_eq!((at(50.0), at(25.0)), (2.0, 1.0));
        assert!((at(90.0) - 3.6).abs() < 1e-12);
    }
}
