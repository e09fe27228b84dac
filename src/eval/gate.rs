//! Whether limits on the loss are kept, decided as early as the measurements allow.
//!
//! Chunks are taken as independent, tokens within them are not. A limit is looked at several times
//! while chunks come in; the chance of an error is shared among the looks (Bonferroni), so that
//! the confidence holds for the whole procedure.

use super::compare::{Comparison, TokenValues};
use super::perplexity::{chunk_means, mean};
use serde::{Deserialize, Serialize};
use statrs::distribution::{ContinuousCDF, Normal, StudentsT};

/// Limits on the loss.
#[derive(Clone, Copy, Debug, Default, Serialize, Deserialize)]
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
#[non_exhaustive]
pub enum Verdict {
    /// The limit is kept.
    Pass,
    /// It is not.
    Fail,
    /// The measurements allow both.
    Undecided,
}

/// What a limit is on.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Limited {
    /// The mean KL divergence.
    MeanKld,
    /// The perplexity, divided by the reference's.
    PplRatio,
    /// The share of tokens with the same most probable token.
    SameTop,
}

impl Limited {
    /// What people call it.
    pub fn name(self) -> &'static str {
        match self {
            Self::MeanKld => "mean KL divergence",
            Self::PplRatio => "perplexity ratio",
            Self::SameTop => "same top token",
        }
    }
}

/// One limit, measured.
#[derive(Clone, Debug, Serialize)]
pub struct Check {
    /// What is limited.
    pub what: Limited,
    /// What it was found to be.
    pub value: f64,
    /// Its standard error, chunks taken as independent.
    pub error: f64,
    /// The limit.
    pub limit: f64,
    /// Whether it is kept.
    pub verdict: Verdict,
    /// Chunks that would decide it in nine of ten cases, if it is undecided.
    pub chunks_needed: Option<usize>,
}

impl Limits {
    /// Judges a comparison, at this confidence, as one of `looks` looks.
    pub fn check(&self, comparison: &Comparison, confidence: f64, looks: u32) -> Vec<Check> {
        let n_chunks = comparison.perplexity.nll_per_chunk.len();
        let by_chunk = |value: fn(&TokenValues) -> f64| {
            let values: Vec<f64> = comparison.tokens.iter().map(value).collect();
            chunk_means(&values, n_chunks)
        };
        let one_sided = (1.0 - confidence) / f64::from(looks.max(1));
        let mut checks = Vec::new();
        let mut judge = |what, values: Vec<f64>, limit: f64, shown: fn(f64) -> f64, sign: f64| {
            let (value, error) = mean(&values);
            let n = values.len();
            let quantile = quantile(n, one_sided);
            // `sign` turns a lower limit into an upper one.
            let room = sign * (limit - value);
            let reach = if n > 1 { quantile * error } else { f64::INFINITY };
            let (verdict, chunks_needed) = match room {
                room if room > reach => (Verdict::Pass, None),
                room if -room > reach => (Verdict::Fail, None),
                _ if n < 2 || room == 0.0 => (Verdict::Undecided, None),
                room => {
                    let room = room.abs() / (error * (n as f64).sqrt());
                    (Verdict::Undecided, chunks_needed(n, room, 1.0 - confidence))
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
            judge(Limited::MeanKld, by_chunk(|t| t.kl), limit, |x| x, 1.0);
        }
        if let Some(limit) = self.perplexity_ratio {
            let values = by_chunk(|t| t.nll - t.nll_reference);
            judge(Limited::PplRatio, values, limit.ln(), f64::exp, 1.0);
        }
        if let Some(limit) = self.same_top {
            let values = by_chunk(|t| f64::from(u8::from(t.same_top)));
            judge(Limited::SameTop, values, limit, |x| x, -1.0);
        }
        checks
    }
}

/// What a mean of `n` values may be off by, in standard errors, but for this chance on one side.
fn quantile(n: usize, one_sided: f64) -> f64 {
    match n {
        0 | 1 => f64::INFINITY,
        // The quantiles of the two differ by less than a thousandth then, and finding Student's takes
        // longer and longer.
        1000.. => Normal::standard().inverse_cdf(1.0 - one_sided),
        _ => StudentsT::new(0.0, 1.0, (n - 1) as f64)
            .map_or(f64::INFINITY, |t| t.inverse_cdf(1.0 - one_sided)),
    }
}

/// Chunks before the first look.
const FIRST_LOOK: usize = 4;

/// How many chunks, more than `n`, would decide with a probability of nine tenths, if a chunk's
/// values lie as far from the limit as they do now: `room` of their standard deviations. Their mean
/// will be another then, by up to 1.28 of its standard errors, and more chunks are looked at more
/// often.
fn chunks_needed(n: usize, room: f64, chance: f64) -> Option<usize> {
    const POWER: f64 = 1.2816;
    let decides = |n: usize| {
        let looks = looks(n).len() as f64;
        (quantile(n, chance / looks) + POWER) / (n as f64).sqrt() <= room
    };
    // Far beyond what anyone would run, the question is moot.
    let most = (1..24).map(|i| (n + 1) << i).find(|&most| decides(most))?;
    // Twice as many decide it, so what is below is a matter of bisection.
    let (mut below, mut enough) = (n, most);
    while below + 1 < enough {
        let middle = below + (enough - below) / 2;
        match decides(middle) {
            true => enough = middle,
            false => below = middle,
        }
    }
    Some(enough)
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
pub fn looks(n_chunks: usize) -> Vec<usize> {
    let mut looks = Vec::new();
    let mut at = FIRST_LOOK;
    while at + 2 <= n_chunks {
        looks.push(at);
        at *= 2;
    }
    looks.push(n_chunks);
    looks
}

#[cfg(test)]
mod tests {
    use super::super::compare::TokenValues;
    use super::*;

    /// Chunks of one token whose divergences are normal with this mean and deviation.
    struct Chunks(u64, f64, f64);

    impl Chunks {
        fn uniform(&mut self) -> f64 {
            self.0 = self.0.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
            (self.0 >> 11) as f64 / (1u64 << 53) as f64
        }

        fn add(&mut self, tokens: &mut Vec<TokenValues>, n: usize) {
            while tokens.len() < n {
                let (a, b) = (self.uniform(), self.uniform());
                let normal = (-2.0 * (1.0 - a).ln()).sqrt() * (std::f64::consts::TAU * b).cos();
                tokens.push(TokenValues { kl: self.1 + self.2 * normal, ..Default::default() });
            }
        }
    }

    const CONFIDENCE: f64 = 0.9;

    /// What the gate finds with up to `n` chunks and a limit of 1.
    fn gate(chunks: &mut Chunks, tokens: &mut Vec<TokenValues>, n: usize) -> Check {
        let limits = Limits { kl: Some(1.0), ..Limits::default() };
        let looks = looks(n);
        let mut check = None;
        for &look in &looks {
            chunks.add(tokens, look);
            let found = Comparison::new(tokens[..look].to_vec(), look, Vec::new()).unwrap();
            check = limits.check(&found, CONFIDENCE, looks.len() as u32).pop();
            if check.as_ref().unwrap().verdict != Verdict::Undecided {
                break;
            }
        }
        check.unwrap()
    }

    #[test]
    fn verdicts_are_as_certain_as_they_claim() {
        let share = |mean: f64, verdict: Verdict| {
            let mut chunks = Chunks(mean.to_bits(), mean, 0.2);
            let found =
                (0..500).filter(|_| gate(&mut chunks, &mut Vec::new(), 64).verdict == verdict);
            found.count() as f64 / 500.0
        };
        assert!(share(1.0001, Verdict::Pass) < 1.0 - CONFIDENCE);
        assert!(share(0.9999, Verdict::Fail) < 1.0 - CONFIDENCE);
        assert!(share(0.9, Verdict::Pass) > 0.9 && share(1.1, Verdict::Fail) > 0.9);
    }

    #[test]
    fn as_many_chunks_as_are_said_to_decide_do_in_nine_of_ten_cases() {
        for (mean, n) in [(0.93, 16), (1.06, 20)] {
            let mut chunks = Chunks(n as u64, mean, 0.2);
            let needed = chunks_needed(n, (1.0 - mean).abs() / 0.2, 1.0 - CONFIDENCE).unwrap();
            let decided = (0..400).filter(|_| {
                gate(&mut chunks, &mut Vec::new(), needed).verdict != Verdict::Undecided
            });
            let share = decided.count() as f64 / 400.0;
            assert!((0.84..0.98).contains(&share), "{mean}: {share} of runs of {needed}");
            assert!(needed > n);
        }
    }

    #[test]
    fn undecided_runs_are_mostly_decided_by_as_many_chunks_as_they_ask_for() {
        let mut chunks = Chunks(5, 0.93, 0.2);
        let (mut undecided, mut decided) = (0.0, 0.0);
        for _ in 0..300 {
            let mut tokens = Vec::new();
            let check = gate(&mut chunks, &mut tokens, 16);
            if let Some(needed) = check.chunks_needed.filter(|&n| n < 2000) {
                undecided += 1.0;
                let more = gate(&mut chunks, &mut tokens, needed);
                decided += f64::from(u8::from(more.verdict != Verdict::Undecided));
            }
        }
        assert!(undecided > 30.0 && decided > 0.7 * undecided, "{decided} of {undecided}");
    }

    #[test]
    fn no_look_leaves_a_single_chunk() {
        assert_eq!(looks(5), [5]);
        assert_eq!(looks(6), [4, 6]);
        assert_eq!(looks(17), [4, 8, 17]);
        assert_eq!(looks(2), [2]);
    }
}
