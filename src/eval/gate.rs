//! Whether limits on the loss are kept, decided as early as the measurements allow.
//!
//! Chunks are taken as independent, tokens within them are not. A limit is looked at several times
//! while chunks come in; the chance of an error is shared among the looks (Bonferroni), so that
//! the confidence holds for the whole procedure.

use super::compare::Comparison;
use super::perplexity::mean;
use serde::Serialize;
use statrs::distribution::{ContinuousCDF, StudentsT};

/// Limits on the loss.
#[derive(Clone, Copy, Debug, Default)]
pub struct Limits {
    /// On the mean KL divergence, in nats.
    pub kl: Option<f64>,
    /// On the perplexity, divided by the reference's.
    pub perplexity_ratio: Option<f64>,
    /// On the share of tokens with the same most probable token; a lower limit.
    pub same_top: Option<f64>,
}

/// What is known about a limit.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Verdict {
    /// The limit is kept.
    Pass,
    /// It is not.
    Fail,
    /// The measurements allow both.
    Undecided,
}

/// One limit, measured.
#[derive(Clone, Debug, Serialize)]
pub struct Check {
    /// What is limited.
    pub what: &'static str,
    /// What it was found to be.
    pub value: f64,
    /// Its standard error, chunks taken as independent.
    pub error: f64,
    /// The limit.
    pub limit: f64,
    /// Whether it is kept.
    pub verdict: Verdict,
    /// Chunks that would probably decide it, if it is undecided.
    pub chunks_needed: Option<usize>,
}

impl Limits {
    /// Judges a comparison, at this confidence, as one of `looks` looks.
    pub fn check(&self, comparison: &Comparison, confidence: f64, looks: u32) -> Vec<Check> {
        let n_chunks = comparison.perplexity.nll_per_chunk.len();
        let per_chunk = comparison.tokens.len() / n_chunks.max(1);
        let by_chunk = |value: &dyn Fn(&super::compare::TokenValues) -> f64| -> Vec<f64> {
            let chunks = comparison.tokens.chunks(per_chunk.max(1));
            chunks.map(|c| c.iter().map(value).sum::<f64>() / c.len() as f64).collect()
        };
        let one_sided = (1.0 - confidence) / f64::from(looks.max(1));
        let mut checks = Vec::new();
        let mut judge = |what, values: Vec<f64>, limit: f64, shown: fn(f64) -> f64, sign: f64| {
            let (value, error) = mean(&values);
            let n = values.len();
            let quantile = match n {
                0 | 1 => f64::INFINITY,
                _ => StudentsT::new(0.0, 1.0, (n - 1) as f64)
                    .map_or(f64::INFINITY, |t| t.inverse_cdf(1.0 - one_sided)),
            };
            // `sign` turns a lower limit into an upper one.
            let room = sign * (limit - value);
            let reach = if n > 1 { quantile * error } else { f64::INFINITY };
            let (verdict, chunks_needed) = match room {
                room if room > reach => (Verdict::Pass, None),
                room if -room > reach => (Verdict::Fail, None),
                _ if n < 2 || room == 0.0 => (Verdict::Undecided, None),
                room => {
                    let needed = (n as f64 * (reach / room).powi(2)).ceil();
                    (Verdict::Undecided, Some((needed.min(1e9) as usize).max(n + 1)))
                }
            };
            let slope = (shown(value + 1e-6) - shown(value - 1e-6)) / 2e-6;
            checks.push(Check {
                what,
                value: shown(value),
                error: slope * error,
                limit: shown(limit),
                verdict,
                chunks_needed,
            });
        };
        if let Some(limit) = self.kl {
            judge("mean KL divergence", by_chunk(&|t| t.kl), limit, |x| x, 1.0);
        }
        if let Some(limit) = self.perplexity_ratio {
            let values = by_chunk(&|t| t.nll - t.nll_reference);
            judge("perplexity ratio", values, limit.ln(), f64::exp, 1.0);
        }
        if let Some(limit) = self.same_top {
            let values = by_chunk(&|t| f64::from(u8::from(t.same_top)));
            judge("same top token", values, limit, |x| x, -1.0);
        }
        checks
    }
}

/// The verdict on all limits together: kept if all are, broken if one is.
pub fn verdict(checks: &[Check]) -> Verdict {
    let any = |wanted| checks.iter().any(|check| check.verdict == wanted);
    match (any(Verdict::Fail), any(Verdict::Undecided)) {
        (true, _) => Verdict::Fail,
        (false, true) => Verdict::Undecided,
        (false, false) => Verdict::Pass,
    }
}

/// Numbers of chunks after which to look, up to all of them: each twice the one before. Two chunks
/// at least lie between looks, the fewest that are evaluated.
pub fn looks(n_chunks: usize, first: usize) -> Vec<usize> {
    let mut looks = Vec::new();
    let mut at = first.max(2);
    while at + 2 <= n_chunks {
        looks.push(at);
        at *= 2;
    }
    looks.push(n_chunks);
    looks
}

#[cfg(test)]
mod tests {
    use super::looks;

    #[test]
    fn no_look_leaves_a_single_chunk() {
        assert_eq!(looks(5, 4), [5]);
        assert_eq!(looks(6, 4), [4, 6]);
        assert_eq!(looks(17, 4), [4, 8, 17]);
        assert_eq!(looks(2, 4), [2]);
    }
}
