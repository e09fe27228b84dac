//! Rotary position embedding, with the frequencies of YaRN and of Llama 3.

use crate::model::{Pairs, Rope, Yarn, mscale};
use std::f64::consts::PI;

/// Frequencies of the pairs and the factors that YaRN puts on attention.
#[derive(Default)]
pub(super) struct Rotary {
    frequencies: Vec<f32>,
    /// Factor on cosines and sines.
    magnitude: f32,
}

impl Rotary {
    /// For heads with `n_dims` rotated dimensions.
    pub fn new(rope: &Rope, n_dims: usize) -> Self {
        let base = f64::from(rope.freq_base);
        let plain = (0..n_dims / 2).map(|i| base.powf(-2.0 * i as f64 / n_dims as f64));
        match &rope.yarn {
            None => Self { frequencies: plain.map(|f| f as f32).collect(), magnitude: 1.0 },
            Some(yarn) => {
                let (low, high) = correction_range(yarn, base, n_dims);
                let frequencies = plain
                    .enumerate()
                    .map(|(i, f)| {
                        let span = if high > low { high - low } else { 0.001 };
                        let interpolated = ((i as f64 - low) / span).clamp(0.0, 1.0);
                        let long = f / f64::from(yarn.factor);
                        (long * interpolated + f * (1.0 - interpolated)) as f32
                    })
                    .collect();
                Self { frequencies, magnitude: yarn.attention_factor }
            }
        }
    }

    /// Divides each pair's frequency by its factor, as Llama 3 does.
    pub fn divide(&mut self, factors: &[f32]) {
        for (frequency, factor) in self.frequencies.iter_mut().zip(factors) {
            *frequency /= factor;
        }
    }

    /// Cosines and sines of all pairs at a position.
    pub fn at(&self, position: usize) -> Vec<(f32, f32)> {
        self.frequencies
            .iter()
            .map(|f| {
                let (sin, cos) = (position as f32 * f).sin_cos();
                (cos * self.magnitude, sin * self.magnitude)
            })
            .collect()
    }
}

/// Rotates the pairs of `x`.
pub(super) fn rotate(x: &mut [f32], turns: &[(f32, f32)], pairs: Pairs) {
    let half = x.len() / 2;
    for (i, (cos, sin)) in turns.iter().enumerate() {
        let (first, second) = match pairs {
            Pairs::Neighbours => (2 * i, 2 * i + 1),
            Pairs::Halves => (i, i + half),
        };
        let (a, b) = (x[first], x[second]);
        x[first] = a * cos - b * sin;
        x[second] = a * sin + b * cos;
    }
}

/// The factor on attention scores of heads with keys of width `key`
/// (transformers' `DeepseekV3Attention.scaling`).
pub(super) fn score_scale(rope: &Rope, key: usize) -> f32 {
    let temperature = match &rope.yarn {
        Some(yarn) if yarn.mscale_all_dim != 0.0 => mscale(yarn.factor, yarn.mscale_all_dim),
        _ => 1.0,
    };
    temperature * temperature / (key as f32).sqrt()
}

/// The pairs between which interpolation sets in and is complete: those that turn `beta_fast` and
/// `beta_slow` times within the original context (Peng et al., arXiv:2309.00071, section 3.2;
/// transformers' `find_correction_range`).
fn correction_range(yarn: &Yarn, base: f64, n_dims: usize) -> (f64, f64) {
    let pair_turning = |times: f32| {
        let wavelengths = f64::from(yarn.original_context) / (f64::from(times) * 2.0 * PI);
        n_dims as f64 * wavelengths.ln() / (2.0 * base.ln())
    };
    let low = pair_turning(yarn.beta_fast).floor().max(0.0);
    let high = pair_turning(yarn.beta_slow).ceil().min(n_dims as f64 - 1.0);
    (low, high)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn r1() -> Rope {
        let yarn = Yarn {
            factor: 40.0,
            original_context: 4096,
            beta_fast: 32.0,
            beta_slow: 1.0,
            attention_factor: 1.0,
            mscale_all_dim: 1.0,
        };
        Rope { freq_base: 10000.0, yarn: Some(yarn) }
    }

    #[test]
    fn r1_interpolates_between_pairs_10_and_23() {
        let rope = r1();
        assert_eq!(correction_range(rope.yarn.as_ref().unwrap(), 10000.0, 64), (10.0, 23.0));
        let rotary = Rotary::new(&rope, 64);
        let plain = Rotary::new(&Rope { yarn: None, ..rope }, 64);
        assert_eq!(rotary.frequencies[..=10], plain.frequencies[..=10]);
        for i in 23..32 {
            let ratio = plain.frequencies[i] / rotary.frequencies[i];
            assert!((ratio - 40.0).abs() < 1e-4, "pair {i}: {ratio}");
        }
    }

    #[test]
    fn r1_scales_scores_by_its_temperature() {
        assert!((score_scale(&r1(), 192) - 0.135_234).abs() < 1e-6);
    }

    #[test]
    fn rotation_keeps_length_and_depends_on_distance_alone() {
        let rotary = Rotary::new(&r1(), 4);
        let turned = |position, x: [f32; 4]| {
            let mut x = x;
            rotate(&mut x, &rotary.at(position), Pairs::Neighbours);
            x
        };
        let dot = |a: [f32; 4], b: [f32; 4]| a.iter().zip(b).map(|(a, b)| a * b).sum::<f32>();
        let (q, k) = ([1.0, 2.0, -0.5, 0.25], [0.5, -1.0, 1.5, 2.0]);
        let near = dot(turned(7, q), turned(3, k));
        let far = dot(turned(107, q), turned(103, k));
        assert!((near - far).abs() < 1e-4);
        assert!((dot(turned(9, q), turned(9, q)) - dot(q, q)).abs() < 1e-5);
    }
}
