//! Inputs as llama.cpp rounds them, as bytes in groups.

use super::super::super::activations::{of_32, of_256, to_f16};
use super::avx2_blocks::{CHUNK, CHUNKS, WORDS, input_words};
use super::{BLOCK, word_of, word_of_two};
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
    /// As [`in_groups_of_32`], with sixteen bits for each value.
    pub(super) in_wide_groups_of_32(row: &[f32], to: Activation, words: &mut [f32]) -> () = in_groups::<32, true>
);
compiled!(
    /// A row in blocks of 256 in halves of 32, as bytes above -2⁷ (`avx2_blocks`).
    pub(super) in_blocks(row: &[f32], words: &mut [f32]) -> () = in_halves::<128>
);
compiled!(
    /// The same as bytes with signs.
    pub(super) in_signed_blocks(row: &[f32], words: &mut [f32]) -> () = in_halves::<0>
);
compiled!(
    /// The same with sixteen bits for each value, in their order.
    pub(super) in_wide_blocks(row: &[f32], words: &mut [f32]) -> () = in_wide
);

#[inline(always)]
fn in_groups<const G: usize, const WIDE: bool>(row: &[f32], to: Activation, words: &mut [f32]) {
    let groups = row.as_chunks::<G>().0;
    let per_group = 2 + if WIDE { G / 2 } else { G / 4 };
    if to == Activation::Q8_K {
        let (blocks, per_block) = (row.as_chunks::<BLOCK>().0, BLOCK / G);
        for b in 0..blocks.len() {
            let [scale, inverse] = of_256(&blocks[b]);
            for g in b * per_block..(b + 1) * per_block {
                let words = &mut words[g * per_group..][..per_group];
                words[1] = integers::<G, WIDE>(&groups[g], inverse, &mut words[2..]) as f32;
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
            let sum = integers::<G, WIDE>(&groups[g], inverse, &mut words[2..]) as f32;
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
) -> i32 {
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
    sum
}

#[inline(always)]
fn in_halves<const ABOVE: i32>(row: &[f32], words: &mut [f32]) {
    let (blocks, words) =
        (row.as_chunks::<BLOCK>().0, words.as_chunks_mut::<{ input_words(1) }>().0);
    for b in 0..blocks.len() {
        let [scale, inverse] = of_256(&blocks[b]);
        let chunks = blocks[b].as_chunks::<CHUNK>().0;
        words[b][0] = scale;
        for c in 0..CHUNKS {
            let (mut bytes, mut sums) = ([0; CHUNK], [0; 2]);
            for half in 0..2 {
                for i in 16 * half..16 * half + 16 {
                    let whole = nearest_int(chunks[c][i] * inverse);
                    sums[half] += whole;
                    bytes[i] = (whole + ABOVE) as u8;
                }
            }
            words[b][1 + c] = word_of_two([sums[0] as i16, sums[1] as i16]);
            let two = bytes.as_chunks::<2>().0;
            for w in 0..WORDS {
                let (low, high) = (u16::from_le_bytes(two[w]), u16::from_le_bytes(two[WORDS + w]));
                words[b][1 + CHUNKS + WORDS * c + w] = word_of_two([low as i16, high as i16]);
            }
        }
    }
}

#[inline(always)]
fn in_wide(row: &[f32], words: &mut [f32]) {
    let (blocks, words) =
        (row.as_chunks::<BLOCK>().0, words.as_chunks_mut::<{ input_words(0) }>().0);
    for b in 0..blocks.len() {
        let [scale, inverse] = of_256(&blocks[b]);
        words[b][0] = scale;
        integers::<BLOCK, true>(&blocks[b], inverse, &mut words[b][1..]);
    }
}
