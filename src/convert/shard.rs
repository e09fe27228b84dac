//! One machine's share of an output that many machines write, or of other work.
//!
//! Whole files are shared out, in order, so that machines never write into the same file; which
//! machine gets which follows from the plan alone.

use super::plan::{Plan, PlannedTensor};
use crate::io::beside;
use std::ops::Range;
use std::path::{Path, PathBuf};

/// Share `number` of `count`, counted from 1.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Shard {
    number: u32,
    count: u32,
}

/// A share that is none.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("`{0}` is no share of work; shares are k/N with k from 1 to N, for example 2/4")]
pub struct BadShard(String);

impl Shard {
    /// Share `number` of `count`; `None` unless `1 <= number <= count`.
    pub fn new(number: u32, count: u32) -> Option<Self> {
        (1..=count).contains(&number).then_some(Self { number, count })
    }

    /// Which share, from 1.
    pub fn number(self) -> u32 {
        self.number
    }

    /// How many there are.
    pub fn count(self) -> u32 {
        self.count
    }

    /// `path` with the share behind its name: `PATH.2-of-4`.
    pub(crate) fn beside(self, path: &Path) -> PathBuf {
        beside(path, &format!(".{}-of-{}", self.number, self.count))
    }

    /// Its range of `n` equal pieces of work.
    pub fn of(self, n: usize) -> Range<usize> {
        let begin = |k: u32| (n as u128 * u128::from(k) / u128::from(self.count)) as usize;
        begin(self.number - 1)..begin(self.number)
    }
}

impl std::str::FromStr for Shard {
    type Err = BadShard;

    fn from_str(text: &str) -> Result<Self, BadShard> {
        let parsed =
            text.split_once('/').and_then(|(k, n)| Some((k.parse().ok()?, n.parse().ok()?)));
        parsed.and_then(|(k, n)| Self::new(k, n)).ok_or_else(|| BadShard(text.to_owned()))
    }
}

/// Nanoseconds that a weight takes on one thread, roughly: enough to share work out evenly, and
/// the same on every machine.
fn cost(tensor: &PlannedTensor) -> f64 {
    let each = match tensor.ty.known() {
        Some(ty) if tensor.ty != tensor.stored => {
            ty.format().cost[usize::from(tensor.weighing.is_some())]
        }
        Some(_) | None => 1.0,
    };
    f64::from(each) * tensor.n_elements() as f64
}

impl Plan {
    /// The files that a share of the work consists of; all of them without one. Shares differ by
    /// no more than a file, and some are empty where there are more shares than files.
    pub fn files_of(&self, shard: Option<Shard>) -> Range<usize> {
        let Some(shard) = shard else { return 0..self.files.len() };
        let costs: Vec<f64> = self
            .files
            .iter()
            .map(|file| self.tensors[file.tensors.clone()].iter().map(cost).sum::<f64>() + 1.0)
            .collect();
        let total: f64 = costs.iter().sum();
        // A file belongs to the share that its beginning falls into, so that the first file, with
        // the metadata, is always the first share's.
        let mut before = 0.0;
        let shares: Vec<u32> = costs
            .iter()
            .map(|cost| {
                let begins = before / total;
                before += cost;
                ((begins * f64::from(shard.count)) as u32).min(shard.count - 1)
            })
            .collect();
        let start = shares.partition_point(|&share| share < shard.number - 1);
        let end = shares.partition_point(|&share| share < shard.number);
        start..end
    }
}
