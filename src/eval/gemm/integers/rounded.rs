//! Inputs as llama.cpp rounds them, as bytes in groups.

use super::super::super::activations::{of_32, of_256, to_f16};
use super::{word_of, word_of_two};
use crate::quant::Activation;
use crate::simd::{compiled, nearest_int};

compiled!(
    /// A row in groups of 16: those of a block have its scale, which is not finite where a value is not.
    pub(super) in_groups_of_16(row: &[f32], to: Activation, words: &mut [f32]) -> () = in_groups::<16, false>
);
compiled!(
    /// The same in groups of 32.
    pub(super) in_groups_of_32(row: &[f32], to: Activation, words: &mut [f32]) -> () = in_groups::<32, false>
);
compiled!(
    /// As [`in_groups_of_16`], with sixteen bits for each value.
    pub(super) in_wide_groups_of_16(row: &[f32], to: Activation, words: &mut [f32]) -> () = in_groups::<16, true>
);
compiled!(
    /// As [`in_groups_of_32`], with sixteen bits for each value.
    pub(super) in_wide_groups_of_32(row: &[f32], to: Activation, words: &mut [f32]) -> () = in_groups::<32, true>
);

#[inline(always)]
fn in_groups<const G: usize, const WIDE: bool>(row: &[f32], to: Activation, words: &mut [f32]) {
    let groups = row.as_chunks::<G>().0;
    let per_group = 2 + if WIDE { G / 2 } else { G / 4 };
    if to == Activation::Q8_K {
        let (blocks, per_block) = (row.as_chunks::<256>().0, 256 / G);
        for b in 0..blocks.len() {
            let [scale, inverse] = of_256(&blocks[b]);
            for g in b * per_block..(b + 1) * per_block {
                let words = &mut words[g * per_group..][..per_group];
                words[1] = integers::<G, WIDE>(&groups[g], inverse, &mut words[2..]);
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
            let sum = integers::<G, WIDE>(&groups[g], inverse, &mut words[2..]);
            // `quantize_row_q8_1` has sums as F16, with steps that are not yet.
            words[1] = if to == Activation::Q8_1 { to_f16(step * sum) } else { scale * sum };
            words[0] = scale;
        }
    }
}

/// The integers of a group, as bytes above -2⁷ or as they are in sixteen bits, and their sum.
#[inline(always)]
fn integers<const G: usize, const WIDE: bool>(
    x: &[f32; G],
    inverse: f32,
    words: &mut [f32],
) -> f32 {
    let (mut bytes, mut wide, mut sum) = ([0; G], [0; G], 0);
    for i in 0..G {
        let whole = nearest_int(x[i] * inverse);
        sum += whole;
        bytes[i] = (whole + 128) as u8;
        wide[i] = whole as i16;
    }
    let (two, four) = (wide.as_chunks::<2>().0, bytes.as_chunks::<4>().0);
    if WIDE {
        for i in 0..two.len() {
            words[i] = word_of_two(two[i]);
        }
    } else {
        for i in 0..four.len() {
            words[i] = word_of(four[i]);
        }
    }
    sum as f32
}
