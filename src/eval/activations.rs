//! What activations are rounded to before they meet a matrix.

use crate::quant::float::{self, round_to_bf16};
use crate::quant::{Activation, QuantType};
use crate::simd::{Simd, compiled};
use crate::source::Dtype;
use ndarray::{Array2, ArrayView2, Axis};
use rayon::prelude::*;
use serde::{Deserialize, Serialize};

/// In which precision activations meet weights.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
#[non_exhaustive]
pub enum Activations {
    /// As they are, in f32.
    #[default]
    F32,
    /// As llama.cpp has them on a CPU: rows that meet a matrix are rounded to the type that its
    /// dot product takes (`vec_dot_type` in `ggml-cpu.c`), mostly integers of 8 bits; keys and
    /// values are kept in F16, and queries of latent attention pass `attn_k_b`, not keys.
    Q8,
}

/// A function that rounds a row, compiled for a level.
type Round = fn(Simd, &mut [f32]);

impl Activations {
    /// Rounds rows for a matrix of this type; `None` where they stay as they are.
    pub(super) fn round(
        self,
        simd: Simd,
        weights: Dtype,
        x: ArrayView2<f32>,
    ) -> Option<Array2<f32>> {
        let round = match (self, weights) {
            (Self::Q8, Dtype::Gguf(ty)) => rounding(ty)?,
            (Self::Q8, Dtype::Coded(coding)) => rounding(coding.activations_of?)?,
            (Self::F32, _) | (_, Dtype::Opaque(_)) => return None,
        };
        Some(rounded(simd, x, round))
    }

    /// Rounds what a cache of keys and values holds.
    pub(super) fn cache(self, simd: Simd, x: &mut Array2<f32>) {
        if self == Self::Q8 {
            *x = rounded(simd, x.view(), f16);
        }
    }
}

fn rounded(simd: Simd, x: ArrayView2<f32>, round: Round) -> Array2<f32> {
    let mut x = x.as_standard_layout().into_owned();
    x.axis_iter_mut(Axis(0)).into_par_iter().for_each(|mut row| {
        round(simd, row.as_slice_mut().expect("the layout is the standard one"));
    });
    x
}

/// How rows are rounded that meet weights of a type.
fn rounding(weights: QuantType) -> Option<Round> {
    match weights.format().activations {
        Activation::F32 => None,
        Activation::F16 => Some(f16),
        Activation::BF16 => Some(round_to_bf16),
        Activation::Q8_0 | Activation::Q8_1 => Some(q8_0),
        Activation::Q8_K => Some(q8_k),
    }
}

compiled!(
    /// To Q8_0 and back (`quantize_row_q8_0` in `arch/x86/quants.c`, where ties go to even). Q8_1 has
    /// the same integers and scales; what it does to sums is in `block_sums`.
    q8_0(row: &mut [f32]) -> () = in_blocks_of_32
);
compiled!(
    /// To Q8_K and back (`quantize_row_q8_K_ref` in `ggml-quants.c`).
    q8_k(row: &mut [f32]) -> () = in_blocks_of_256
);
compiled!(
    /// To F16 and back.
    f16(row: &mut [f32]) -> () = each_to_f16
);

/// The step between the integers of a block of 32, and what makes them. The integers are multiplied with the step
/// as F16.
#[inline(always)]
pub(super) fn of_32(block: &[f32; 32]) -> [f32; 2] {
    let most = float::abs_max(block);
    [most / 127.0, if most == 0.0 { 0.0 } else { 127.0 / most }]
}

/// To F16 and back.
#[inline(always)]
pub(super) fn to_f16(x: f32) -> f32 {
    float::f16_to_f32(float::f32_to_f16(x))
}

/// The step between the integers of a block of 256, and what makes them; of zeros, nothing.
#[inline(always)]
pub(super) fn of_256(block: &[f32; 256]) -> [f32; 2] {
    let most = float::abs_max(block);
    if most == 0.0 {
        return [0.0; 2];
    }
    let (mut above, mut below) = (false, false);
    for x in block {
        above |= x.to_bits() == most.to_bits();
        below |= x.to_bits() == (-most).to_bits();
    }
    // The first of equal values gives the sign.
    let first = || block.iter().find(|x| x.abs().to_bits() == most.to_bits());
    let positive = if above && below { first().is_some_and(|&x| x > 0.0) } else { above };
    let inverse = if positive { -127.0 } else { 127.0 } / most;
    [1.0 / inverse, inverse]
}

#[inline(always)]
fn in_blocks_of_32(row: &mut [f32]) {
    for block in row.as_chunks_mut::<32>().0 {
        let [step, inverse] = of_32(block);
        let scale = to_f16(step);
        block.iter_mut().for_each(|x| *x = (*x * inverse).round_ties_even() * scale);
    }
}

#[inline(always)]
fn in_blocks_of_256(row: &mut [f32]) {
    for block in row.as_chunks_mut::<256>().0 {
        let [scale, inverse] = of_256(block);
        block.iter_mut().for_each(|x| *x = (*x * inverse).round_ties_even() * scale);
    }
}

#[inline(always)]
fn each_to_f16(row: &mut [f32]) {
    row.iter_mut().for_each(|x| *x = to_f16(*x));
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::quant::Guide;

    fn row(n: usize) -> Vec<f32> {
        (0..n).map(|i| ((i * i * 7 + 3 * i) % 101) as f32 * 0.031 - 1.4).collect()
    }

    #[test]
    fn blocks_of_thirty_two_are_those_of_q8_0() {
        let mut found = row(96);
        found[40] = 9.0;
        let x = found.clone();
        q8_0(Simd::detect(), &mut found);
        let mut bytes = vec![0; 3 * 34];
        QuantType::Q8_0.encode_rows(&x, 96, Guide::Plain, &mut bytes).unwrap();
        let mut expected = vec![0.0; 96];
        QuantType::Q8_0.decode_rows(&bytes, 96, &mut expected).unwrap();
        assert_eq!(found, expected);
    }

    #[test]
    fn blocks_of_256_have_steps_of_their_largest_value() {
        let mut found = row(512);
        found[7] = -2.54;
        let x = found.clone();
        q8_k(Simd::detect(), &mut found);
        let steps = found[..256].iter().zip(&x);
        for (found, x) in steps {
            let step = found / 0.02;
            assert!(
                (step - step.round()).abs() < 1e-3 && (found - x).abs() < 0.0101,
                "{found} {x}"
            );
        }
        assert!((found[7] + 2.54).abs() < 1e-6);
        let mut none = [0.0; 256];
        q8_k(Simd::detect(), &mut none);
        assert_eq!(none, [0.0; 256]);
    }

    #[test]
    fn what_is_not_finite_stays_so() {
        for round in [q8_0, q8_k, f16, round_to_bf16] {
            for bad in [f32::NAN, f32::INFINITY] {
                for zero in [0.0, 1.0] {
                    let mut row = [zero; 256];
                    row[5] = bad;
                    round(Simd::detect(), &mut row);
                    assert!(row.iter().any(|x| !x.is_finite()));
                }
            }
        }
    }
}
