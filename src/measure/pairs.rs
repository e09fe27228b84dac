//! Models that were compared with the same reference, compared with each other.

use super::Outcome;
use crate::eval::{Estimate, TokenValues, chunk_means, mean};
use serde::Serialize;

/// What one model loses more than another, token by token. Both meet the same text, so that much of what each
/// is uncertain of cancels.
#[derive(Clone, Copy, Debug, Serialize)]
pub struct Pair {
    /// The models, by their number among the rows.
    pub models: [usize; 2],
    /// Mean KL divergence of the second less that of the first; its error takes chunks as independent.
    pub kl: Estimate,
    /// Logarithm of the second's perplexity less that of the first's, likewise.
    pub ln_ratio: Estimate,
}

impl Outcome {
    /// All pairs of compared models.
    pub fn pairs(&self) -> Vec<Pair> {
        let n = self.rows.len();
        let pairs = (0..n).flat_map(|a| (a + 1..n).map(move |b| [a, b]));
        pairs.map(|models| self.pair(models)).collect()
    }

    /// Two of the compared models.
    pub fn pair(&self, models: [usize; 2]) -> Pair {
        let [a, b] = models.map(|i| self.rows[i].comparison.tokens.as_slice());
        let by_chunk = |of: fn(&TokenValues) -> f64| {
            let differences: Vec<f64> = a.iter().zip(b).map(|(a, b)| of(b) - of(a)).collect();
            let (value, error) = mean(&chunk_means(&differences, self.chunks));
            Estimate { value, error }
        };
        Pair { models, kl: by_chunk(|t| t.kl), ln_ratio: by_chunk(|t| t.nll) }
    }
}
