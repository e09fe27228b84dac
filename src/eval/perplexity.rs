//! Perplexity by llama-perplexity's rules, and the paired comparison of two results.

use super::error::EvalError;
use super::model::Model;
use super::states::Scratch;
use super::vocabulary::{self, Side};
use super::walk::{Walk, identity};
use crate::model::Hparams;
use crate::monitor::Monitor;
use serde::Serialize;

/// How a text is cut and scored.
#[derive(Clone, Debug)]
pub struct PerplexityOptions {
    /// Tokens per chunk.
    pub ctx: usize,
    /// Chunks at most, from the beginning of the text.
    pub chunks: Option<usize>,
    /// Takes the place of every chunk's first token, where the vocabulary begins sequences so.
    pub bos: Option<u32>,
    /// Bytes that intermediate results of a layer may take, roughly.
    pub memory: usize,
    /// Where hidden states wait between layers, and are kept when the evaluation is stopped; in
    /// memory where there is none.
    pub scratch: Option<Scratch>,
}

impl Default for PerplexityOptions {
    fn default() -> Self {
        Self { ctx: 512, chunks: None, bos: None, memory: 1 << 30, scratch: None }
    }
}

impl PerplexityOptions {
    pub(super) fn n_chunks(&self, n_tokens: usize) -> usize {
        (n_tokens / self.ctx.max(1)).min(self.chunks.unwrap_or(usize::MAX))
    }

    /// The chunks of a text that has one at least.
    pub(crate) fn checked_chunks(&self, tokens: &[u32]) -> Result<usize, EvalError> {
        if self.ctx < 4 || self.chunks == Some(0) {
            return Err(EvalError::NothingToScore);
        }
        match self.n_chunks(tokens.len()) {
            0 => Err(EvalError::TooShort { found: tokens.len(), ctx: self.ctx }),
            n => Ok(n),
        }
    }

    /// The work that [`perplexity`] will report to its monitor: tokens times layers, the output
    /// matrix counting as one layer.
    pub fn work(&self, n_tokens: usize, hparams: &Hparams) -> u64 {
        let tokens = self.n_chunks(n_tokens) * self.ctx;
        tokens as u64 * (u64::from(hparams.n_layer) + 1)
    }
}

/// How well a model predicts a text.
#[derive(Clone, Debug, Serialize)]
pub struct Perplexity {
    /// `exp(mean_nll)`.
    pub perplexity: f64,
    /// Its standard error, `perplexity` times that of `mean_nll`.
    pub perplexity_error: f64,
    /// Mean negative log-likelihood of the scored tokens, in nats.
    pub mean_nll: f64,
    /// How many tokens were scored.
    pub tokens_scored: usize,
    /// Sum of the negative log-likelihoods of each chunk's scored tokens, in nats.
    pub nll_per_chunk: Vec<f64>,
    /// Negative log-likelihood of every scored token, chunk after chunk.
    #[serde(skip)]
    pub nll: Vec<f64>,
}

impl Perplexity {
    /// What follows from the negative log-likelihoods of all scored tokens, in chunks of equally many.
    pub fn new(nll: Vec<f64>, n_chunks: usize) -> Self {
        let per_chunk = (nll.len() / n_chunks.max(1)).max(1);
        let nll_per_chunk = nll.chunks(per_chunk).map(|chunk| chunk.iter().sum()).collect();
        let (mean_nll, error) = mean(&nll);
        let perplexity = mean_nll.exp();
        Self {
            perplexity,
            perplexity_error: perplexity * error,
            mean_nll,
            tokens_scored: nll.len(),
            nll_per_chunk,
            nll,
        }
    }
}

/// The means of values in chunks of equally many, which are independent where tokens are not.
pub(crate) fn chunk_means(values: &[f64], n_chunks: usize) -> Vec<f64> {
    let per_chunk = (values.len() / n_chunks.max(1)).max(1);
    values.chunks(per_chunk).map(|c| c.iter().sum::<f64>() / c.len() as f64).collect()
}

/// Mean and standard error of the mean, tokens taken as independent
/// (`perplexity` in llama-perplexity; the variance there is the population's, divided by `n - 1`).
pub(crate) fn mean(values: &[f64]) -> (f64, f64) {
    let n = values.len() as f64;
    let mean = values.iter().sum::<f64>() / n;
    let variance = values.iter().map(|v| (v - mean) * (v - mean)).sum::<f64>() / n;
    (mean, if n > 1.0 { (variance / (n - 1.0)).sqrt() } else { 0.0 })
}

/// Perplexity of `tokens`: chunks of `ctx` tokens are run on their own, and the second half of
/// each predicts its next token, but for the last (`perplexity` in llama-perplexity).
///
/// The monitor counts tokens times layers.
///
/// # Errors
/// A text shorter than a chunk, options that leave nothing to score, weights that cannot be
/// read, results that are not finite.
pub fn perplexity(
    model: &Model,
    tokens: &[u32],
    options: &PerplexityOptions,
    monitor: &dyn Monitor,
) -> Result<Perplexity, EvalError> {
    let n_chunks = options.checked_chunks(tokens)?;
    let identity = identity(&[model], &tokens[..n_chunks * options.ctx], options);
    let mut walk = Walk::new(model, tokens, n_chunks, options, identity)?.only_scored();
    monitor.resume(walk.begin()?);
    for layer in 0..model.hparams().n_layer {
        walk.layer(layer, monitor)?;
    }
    let mut nll = Vec::new();
    for rows in walk.groups(vocabulary::ROWS) {
        let (normed, targets) = (walk.normed(rows.clone())?, walk.targets(rows.clone()));
        let side = Side::States(model.output(), normed.view());
        let scores = vocabulary::score(model.simd(), side, &[], &targets);
        let scores = scores.map_err(|bad| {
            let token = walk.place(rows.start + bad.row);
            bad.error(model, token)
        })?;
        nll.extend(scores.nll);
        monitor.advance(walk.tokens_of(rows));
        if monitor.cancelled() {
            return Err(EvalError::Cancelled);
        }
    }
    Ok(Perplexity::new(nll, n_chunks))
}

/// The difference between two models on the same tokens. Pairing token by token removes what the
/// text itself contributes to the uncertainty.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
pub struct Paired {
    /// Mean difference of the negative log-likelihoods, result less source: the logarithm of the
    /// ratio of the perplexities.
    pub ln_ratio: f64,
    /// Its standard error.
    pub ln_ratio_error: f64,
    /// Perplexity of the result divided by that of the source.
    pub ratio: f64,
    /// Its standard error, `ratio` times that of its logarithm.
    pub ratio_error: f64,
    /// Perplexity of the result less that of the source.
    pub difference: f64,
    /// Its standard error, from both errors and their covariance.
    pub difference_error: f64,
}

impl Paired {
    /// Pairs two results (`kl_divergence` in llama-perplexity: "Mean ln(PPL(Q)/PPL(base))" and
    /// the lines after it).
    ///
    /// # Errors
    /// The results are not over the same number of tokens.
    pub fn new(source: &Perplexity, result: &Perplexity) -> Result<Self, EvalError> {
        let n = source.nll.len();
        if n != result.nll.len() || n == 0 {
            return Err(EvalError::Unpaired(n, result.nll.len()));
        }
        let pairs = || source.nll.iter().zip(&result.nll);
        let (ln_ratio, ln_ratio_error) = mean(&pairs().map(|(s, r)| r - s).collect::<Vec<_>>());
        let ratio = ln_ratio.exp();
        // The error of PPL_r - PPL_s to first order: that of the mean of PPL_r·r - PPL_s·s.
        let (p_s, p_r) = (source.perplexity, result.perplexity);
        let (_, difference_error) =
            mean(&pairs().map(|(s, r)| p_r * r - p_s * s).collect::<Vec<_>>());
        Ok(Self {
            ln_ratio,
            ln_ratio_error,
            ratio,
            ratio_error: ratio * ln_ratio_error,
            difference: p_r - p_s,
            difference_error,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn result(nll: &[f64]) -> Perplexity {
        Perplexity::new(nll.to_vec(), 1)
    }

    #[test]
    fn perplexity_and_its_error_by_hand() {
        let p = result(&[1.0, 3.0]);
        assert_eq!(p.mean_nll, 2.0);
        assert_eq!(p.perplexity, 2f64.exp());
        // Population variance 1, divided by n - 1 = 1.
        assert_eq!(p.perplexity_error, 2f64.exp());
    }

    #[test]
    fn pairing_removes_what_both_share() {
        let paired = Paired::new(&result(&[1.0, 5.0, 2.0]), &result(&[1.5, 5.5, 2.5])).unwrap();
        assert_eq!((paired.ln_ratio, paired.ln_ratio_error), (0.5, 0.0));
        assert_eq!(paired.ratio, 0.5f64.exp());
        assert!(Paired::new(&result(&[1.0]), &result(&[1.0, 2.0])).is_err());
    }

    #[test]
    fn the_error_of_the_difference_follows_from_both_errors_and_their_covariance() {
        let (s, r) = (result(&[1.0, 2.0, 4.0]), result(&[1.5, 1.0, 4.5]));
        let n = 3.0;
        let cov = (s.nll.iter().zip(&r.nll).map(|(a, b)| a * b).sum::<f64>() / n
            - s.mean_nll * r.mean_nll)
            / (n - 1.0);
        let expected = (s.perplexity_error.powi(2) + r.perplexity_error.powi(2)
            - 2.0 * s.perplexity * r.perplexity * cov)
            .sqrt();
        let paired = Paired::new(&s, &r).unwrap();
        assert!((paired.difference_error - expected).abs() < 1e-9 * expected);
    }
}
