//! What an importance matrix says about the inputs of each tensor: the figures of llama-imatrix
//! `--show-statistics` (`compute_statistics`, `compute_cossim`), with sums in f64.

use super::sums::{Entry, Sums};
use crate::recipe::layer_and_kind;
use serde::Serialize;
use std::collections::BTreeMap;

/// A mean square up to which an input counts as inactive.
const INACTIVE: f64 = 1e-5;

/// How the mean squares of a tensor's inputs are distributed, matrices that no token reached left out.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Statistics {
    /// The tensor.
    pub tensor: String,
    /// Inputs, over all matrices.
    pub inputs: usize,
    /// Sum of the mean squares.
    pub sum: f64,
    /// Smallest.
    pub min: f64,
    /// Largest.
    pub max: f64,
    /// Their mean.
    pub mean: f64,
    /// Their standard deviation.
    pub deviation: f64,
    /// Share of inputs whose mean square is above 0.00001.
    pub active: f64,
    /// Entropy of the mean squares as shares of their sum, in bits.
    pub entropy: f64,
    /// The entropy as a share of the largest that so many inputs can have.
    pub entropy_share: f64,
    /// Share of inputs more than one deviation above the mean (Z-score distribution).
    pub above_deviation: f64,
    /// Cosine of the angle to the sums of the same tensor in the layer before, where there is one.
    pub cosine: Option<f64>,
}

/// The figures of a layer: means over its tensors, weighted by how many inputs they have.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
pub struct OfLayer {
    /// The layer.
    pub layer: u32,
    /// Of [`Statistics::sum`].
    pub sum: f64,
    /// Of [`Statistics::above_deviation`].
    pub above_deviation: f64,
    /// Of [`Statistics::cosine`], 0 where there is none.
    pub cosine: f64,
}

impl Sums {
    /// The figures of each tensor that any token reached: those of one kind together, the largest sum
    /// first.
    pub fn statistics(&self) -> Vec<Statistics> {
        let of = |(name, entry): (&String, &Entry)| {
            let before = before(name).and_then(|before| self.entries.get(&before));
            Statistics::new(name, entry, before)
        };
        let mut all: Vec<Statistics> = self.entries.iter().filter_map(of).collect();
        all.sort_by(|a, b| a.kind().cmp(b.kind()).then(b.sum.total_cmp(&a.sum)));
        all
    }
}

impl Statistics {
    fn new(tensor: &str, entry: &Entry, before: Option<&Entry>) -> Option<Self> {
        let squares = mean_squares(entry);
        let inputs = squares.len();
        let n = inputs as f64;
        let share =
            |is: &dyn Fn(f64) -> bool| squares.iter().filter(|&&x| is(x)).count() as f64 / n;
        let sum: f64 = squares.iter().sum();
        let (min, max) =
            (squares.iter().copied().reduce(f64::min)?, squares.iter().copied().reduce(f64::max)?);
        let mean = sum / n;
        let variance = squares.iter().map(|x| x * x).sum::<f64>() / n - mean * mean;
        let deviation = variance.max(0.0).sqrt();
        let shares = squares.iter().map(|x| x / sum).filter(|share| *share > 0.0);
        let entropy = if sum > 0.0 { -shares.map(|p| p * p.log2()).sum::<f64>() } else { 0.0 };
        Some(Self {
            tensor: tensor.to_owned(),
            inputs,
            sum,
            min,
            max,
            mean,
            deviation,
            active: 1.0 - share(&|x| x <= INACTIVE),
            entropy,
            entropy_share: if inputs > 1 { entropy / n.log2() } else { 0.0 },
            above_deviation: share(&|x| deviation > 0.0 && x - mean > deviation),
            cosine: before.and_then(|before| cosine(&entry.sums, &before.sums)),
        })
    }

    /// The layer that the tensor is in, if it is in one.
    pub fn layer(&self) -> Option<u32> {
        layer_and_kind(&self.tensor).0
    }

    /// What the tensor is called in every layer, without `.weight`.
    pub fn kind(&self) -> &str {
        let (_, kind) = layer_and_kind(&self.tensor);
        kind.strip_suffix(".weight").unwrap_or(kind)
    }

    /// The figures of each layer.
    pub fn by_layer(all: &[Self]) -> Vec<OfLayer> {
        let mut layers: BTreeMap<u32, (f64, [f64; 3])> = BTreeMap::new();
        for one in all {
            let Some(layer) = one.layer() else { continue };
            let (weights, sums) = layers.entry(layer).or_default();
            let weight = one.inputs as f64;
            *weights += weight;
            let values = [one.sum, one.above_deviation, one.cosine.unwrap_or(0.0)];
            sums.iter_mut().zip(values).for_each(|(sum, value)| *sum += weight * value);
        }
        let of = |(layer, (weights, sums)): (u32, (f64, [f64; 3]))| {
            let [sum, above_deviation, cosine] = sums.map(|sum| sum / weights);
            OfLayer { layer, sum, above_deviation, cosine }
        };
        layers.into_iter().map(of).collect()
    }
}

/// The mean squares of the inputs of matrices that tokens reached.
fn mean_squares(entry: &Entry) -> Vec<f64> {
    let columns = (entry.sums.len() / entry.counts.len().max(1)).max(1);
    let reached = entry.sums.chunks(columns).zip(&entry.counts).filter(|(_, n)| **n > 0);
    reached.flat_map(|(sums, &n)| sums.iter().map(move |sum| sum / n as f64)).collect()
}

fn cosine(a: &[f64], b: &[f64]) -> Option<f64> {
    let product = |a: &[f64], b: &[f64]| a.iter().zip(b).map(|(a, b)| a * b).sum::<f64>();
    let norms = (product(a, a) * product(b, b)).sqrt();
    (a.len() == b.len() && norms > 0.0).then(|| product(a, b) / norms)
}

/// The name of the tensor in the layer before.
fn before(tensor: &str) -> Option<String> {
    let (layer, kind) = layer_and_kind(tensor);
    Some(format!("blk.{}.{kind}", layer?.checked_sub(1)?))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn entry(sums: &[f64], counts: &[u64]) -> Entry {
        Entry { sums: sums.to_vec(), counts: counts.to_vec() }
    }

    #[test]
    fn matrices_that_no_token_reached_do_not_count() {
        let entries = [
            ("blk.0.ffn_up.weight", entry(&[0.0, 0.0, 2.0, 6.0], &[0, 2])),
            ("blk.1.ffn_up.weight", entry(&[1.0, 0.0, 0.0, 0.0], &[1, 0])),
            ("blk.2.ffn_up.weight", entry(&[0.0, 0.0, 0.0, 0.0], &[0, 0])),
        ];
        let entries = entries.map(|(name, entry)| (name.to_owned(), entry)).into();
        let found = Sums { entries, ..Sums::default() }.statistics();
        let [a, b] = &found[..] else { panic!("{found:?}") };
        assert_eq!((a.layer(), a.kind(), a.inputs), (Some(0), "ffn_up", 2));
        assert_eq!((a.sum, a.min, a.max, a.mean, a.deviation), (4.0, 1.0, 3.0, 2.0, 1.0));
        assert!((a.entropy - 0.8112781244591328).abs() < 1e-12 && a.cosine.is_none());
        assert_eq!((b.active, b.above_deviation, b.entropy), (0.5, 0.0, 0.0));
        assert_eq!(b.cosine, Some(0.0));
        let layers = Statistics::by_layer(&found);
        assert_eq!(
            layers.iter().map(|of| (of.layer, of.sum)).collect::<Vec<_>>(),
            [(0, 4.0), (1, 1.0)]
        );
    }
}
