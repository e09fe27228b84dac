//! Inputs as llama.cpp rounds them, as bytes in groups.

use super::super::super::activations::{of_32, of_256, to_f16};
use super::word_of;
use crate::quant::Activation;
use crate::simd::{compiled, nearest_int};

compiled!(
    /// A row in groups of 16: those of a block have its scale, which is not finite where a value is not.
    pub(super) in_groups_of_16(row: &[f32], to: Activation, words: &mut [f32]) -> () = in_groups::<16>
);
compiled!(
    /// The same in groups of 32.
    pub(super) in_groups_of_32(row: &[f32], to: Activation, words: &mut [f32]) -> () = in_groups::<32>
);

#[inline(always)]
fn in_groups<const G: usize>(row: &[f32], to: Activation, words: &mut [f32]) {
    let groups = row.as_chunks::<G>().0;
    let per_group = 2 + G / 4;
    if to == Activation::Q8_K {
        let (blocks, per_block) = (row.as_chunks::<256>().0, 256 / G);
        for b in 0..blocks.len() {
            let [scale, inverse] = of_256(&blocks[b]);
            for g in b * per_block..(b + 1) * per_block {
                let words = &mut words[g * per_group..][..per_group];
                words[1] = bytes(&groups[g], inverse, &mut words[2..]);
                words[0] = scale;
            }
        }
        return;
    }
    let (blocks, per_block) = (row.as_chunks::<32>().0, 32 / G);
    for b in 0..blocks.len() {
        let [step, inverse] = of_32(&blocks[b]);
        let scale = to_f16(step);
        for g in b * per_block..(b + 1) * per_block {
            let words = &mut words[g * per_group..][..per_group];
            let sum = bytes(&groups[g], inverse, &mut words[2..]);
            // `quantize_row_q8_1` has sums as F16, with steps that are not yet.
            words[1] = if to == Activation::Q8_1 { to_f16(step * sum) } else { scale * sum };
            words[0] = scale;
        }
    }
}

/// The bytes of a group, above -2⁷, and the sum of its integers.
#[inline(always)]
fn bytes<const G: usize>(x: &[f32; G], inverse: f32, words: &mut [f32]) -> f32 {
    let (mut bytes, mut sum) = ([0; G], 0);
    for i in 0..G {
        let whole = nearest_int(x[i] * inverse);
        sum += whole;
        bytes[i] = (whole + 128) as u8;
    }
    let four = bytes.as_chunks::<4>().0;
    for i in 0..four.len() {
        words[i] = word_of(four[i]);
    }
    sum as f32
}
