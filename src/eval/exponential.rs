//! The exponential, and the functions of it that layers apply to whole rows.
//!
//! The standard library's is a call for each value, and slow far below zero, where most attention
//! scores lie; this one has no branches, so loops over it become SIMD code.
#![allow(clippy::needless_range_loop, reason = "loops are to need no optimization at link time")]

use crate::simd::compiled;
use std::f32::consts::LOG2_E;

/// `e^x` to 3 units in the last place; where that leaves f32's normal range, the last value within.
///
/// `x = n ln 2 + r` with `n` whole and `|r| <= ln 2 / 2`: `2^n` is put together from bits, `e^r` is
/// its series up to the seventh power, whose remainder is below 2^-27.
#[inline(always)]
pub(super) fn exp(x: f32) -> f32 {
    /// Adding it leaves the nearest whole number in the lowest bits.
    const ROUND: f32 = 12_582_912.0;
    /// ln 2 in two parts, the first short enough for exact products with `n`.
    const LN_2: [f32; 2] = [0.693_359_4, -2.121_944_4e-4];
    let x = x.clamp(-87.3, 88.3);
    let shifted = x * LOG2_E + ROUND;
    let n = shifted - ROUND;
    let r = x - n * LN_2[0] - n * LN_2[1];
    let mut series = 1.0 / 5040.0;
    for coefficient in [1.0 / 720.0, 1.0 / 120.0, 1.0 / 24.0, 1.0 / 6.0, 0.5, 1.0, 1.0] {
        series = series * r + coefficient;
    }
    series * f32::from_bits((shifted.to_bits() + 127) << 23)
}

/// Values that are taken together: sums and maxima have so many parts, for one alone would make each
/// step wait for the one before.
const LANES: usize = 16;

compiled!(
    /// `silu(gate) * up` with `silu(x) = x / (1 + e^-x)`, in place of `gate`.
    pub(super) swiglu(gate: &mut [f32], up: &[f32]) -> () = gated
);
compiled!(
    /// Softmax of `scale * scores` with a positive scale, in place; the sum is f64.
    pub(super) softmax(scores: &mut [f32], scale: f32) -> () = normalised
);
compiled!(
    /// The largest value that is a number.
    pub(super) maximum(values: &[f32]) -> f32 = largest
);
compiled!(
    /// `Σ e^(v - max)` in f64.
    pub(super) exp_sum(values: &[f32], max: f32) -> f64 = exponentials
);
compiled!(
    /// The sum in f64 of squares.
    pub(super) square_sum(values: &[f32]) -> f64 = squares
);

#[inline(always)]
fn gated(gate: &mut [f32], up: &[f32]) {
    for (g, u) in gate.iter_mut().zip(up) {
        *g = *g / (1.0 + exp(-*g)) * u;
    }
}

#[inline(always)]
fn normalised(scores: &mut [f32], scale: f32) {
    let max = largest(scores) * scale;
    scores.iter_mut().for_each(|s| *s = exp(*s * scale - max));
    let norm = (1.0 / sum(scores, f64::from)) as f32;
    scores.iter_mut().for_each(|s| *s *= norm);
}

#[inline(always)]
fn exponentials(values: &[f32], max: f32) -> f64 {
    sum(values, |v| f64::from(exp(v - max)))
}

#[inline(always)]
fn squares(values: &[f32]) -> f64 {
    sum(values, |v| f64::from(v * v))
}

/// The largest value that is a number.
#[inline(always)]
fn largest(values: &[f32]) -> f32 {
    let larger = |a: f32, b: f32| if b > a { b } else { a };
    let (chunks, rest) = values.as_chunks::<LANES>();
    let mut parts = [f32::NEG_INFINITY; LANES];
    for chunk in chunks {
        for i in 0..LANES {
            parts[i] = larger(parts[i], chunk[i]);
        }
    }
    parts.iter().chain(rest).fold(f32::NEG_INFINITY, |max, &v| larger(max, v))
}

/// The sum of a function of the values.
#[inline(always)]
fn sum(values: &[f32], f: impl Fn(f32) -> f64) -> f64 {
    let (chunks, rest) = values.as_chunks::<LANES>();
    let mut parts = [0.0; LANES];
    for chunk in chunks {
        for i in 0..LANES {
            parts[i] += f(chunk[i]);
        }
    }
    parts.iter().sum::<f64>() + rest.iter().map(|&v| f(v)).sum::<f64>()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::simd::Simd;

    #[test]
    fn exponentials_are_within_three_units_in_the_last_place() {
        for i in -87_000..88_000 {
            let x = i as f32 / 1000.0;
            let exact = f64::from(x).exp();
            let error = (f64::from(exp(x)) - exact).abs() / exact;
            assert!(error < 3.0 * f64::from(f32::EPSILON), "exp({x}) is off by {error:e}");
        }
        assert_eq!(exp(0.0), 1.0);
        assert!(exp(f32::NEG_INFINITY) < 2e-38 && exp(f32::INFINITY) > 2e38);
        assert!(exp(f32::NAN).is_nan());
    }

    #[test]
    fn softmax_is_scaled_and_sums_to_one() {
        let mut scores = [2.0, 2.0, -4000.0, 4.0];
        softmax(Simd::detect(), &mut scores, 0.5);
        let e = std::f32::consts::E;
        for (found, expected) in scores.iter().zip([1.0, 1.0, 0.0, e]) {
            assert!((found - expected / (2.0 + e)).abs() < 1e-6);
        }
    }

    #[test]
    fn gates_far_below_zero_close() {
        let mut gate = [1.0, -1000.0, f32::NAN];
        swiglu(Simd::detect(), &mut gate, &[2.0, 5.0, 1.0]);
        assert!((gate[0] - 1.462_117_2).abs() < 1e-6);
        assert!(gate[1].abs() < 1e-30 && gate[2].is_nan());
    }
}
