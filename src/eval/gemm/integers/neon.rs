//! Products by SDOT of ARMv8.2: of four bytes in each of four lanes of 32 bits.

use super::{PANEL, Products, Tile, group_words};
use std::arch::{aarch64::*, asm};

/// Registers of rows of a panel that pass together: with as many sums, of integers and of floats, for each row of
/// inputs, codes and inputs fit the 32 that there are.
const VECTORS: usize = 2;
/// Values of a register.
const LANES: usize = 4;

/// The kernels for one row, two rows, and so on.
pub fn tiles(products: Products) -> &'static [Tile] {
    match products.len {
        32 => &[tile::<1, 8>, tile::<2, 8>, tile::<3, 8>, tile::<4, 8>],
        _ => &[tile::<1, 4>, tile::<2, 4>, tile::<3, 4>, tile::<4, 4>],
    }
}

/// Adds to each lane the products of its four codes with the four inputs of a word. The standard library has no
/// stable function for it.
#[inline]
#[target_feature(enable = "neon,dotprod")]
fn add_products<const WORD: usize>(
    sums: int32x4_t,
    codes: int8x16_t,
    inputs: int8x16_t,
) -> int32x4_t {
    let mut sums = sums;
    // SAFETY: registers alone are read and written, by an instruction that the caller has.
    unsafe {
        asm!(
            "sdot {sums:v}.4s, {codes:v}.16b, {inputs:v}.4b[{word}]",
            sums = inout(vreg) sums,
            codes = in(vreg) codes,
            inputs = in(vreg) inputs,
            word = const WORD,
            options(pure, nomem, nostack, preserves_flags)
        );
    }
    sums
}

/// Codes of a word of `VECTORS * LANES` rows.
///
/// # Safety
/// So many values can be read.
#[inline]
#[target_feature(enable = "neon")]
unsafe fn codes(from: *const f32) -> [int8x16_t; VECTORS] {
    // SAFETY: the caller grants so many values.
    unsafe { [vld1q_s8(from.cast()), vld1q_s8(from.add(LANES).cast())] }
}

/// # Safety
/// So many values can be read.
#[inline]
#[target_feature(enable = "neon")]
unsafe fn floats(from: *const f32) -> [float32x4_t; VECTORS] {
    // SAFETY: as above.
    unsafe { [vld1q_f32(from), vld1q_f32(from.add(LANES))] }
}

/// # Safety
/// So many values can be read.
#[inline]
#[target_feature(enable = "neon")]
unsafe fn integers(from: *const f32) -> [int32x4_t; VECTORS] {
    // SAFETY: as above.
    unsafe { [vld1q_s32(from.cast()), vld1q_s32(from.add(LANES).cast())] }
}

/// Writes products to `out`, or adds them. Sums are those of the other kernels to the bit: inputs are bytes above
/// -2⁷, of which this one takes that away at once, where others add what it makes.
///
/// # Safety
/// `x` holds `ROWS` rows of `groups` groups of inputs in one slice, `stride` words apart, `panel` as many groups of
/// columns, both as `of` has them, of `WORDS` words, with units behind them in blocks; `out` holds `ROWS` rows of [`PANEL`] values, `out_stride` apart,
/// and the machine has NEON and SDOT.
#[target_feature(enable = "neon,dotprod")]
unsafe fn tile<const ROWS: usize, const WORDS: usize>(
    of: Products,
    (x, stride): (*const f32, usize),
    panel: *const f32,
    groups: usize,
    (out, out_stride): (*mut f32, usize),
    add: bool,
) {
    let (in_blocks, middle) = (of.in_blocks(), vdupq_n_u8(1 << 7));
    for part in 0..PANEL / (VECTORS * LANES) {
        let at = part * VECTORS * LANES;
        let mut sums = [[vdupq_n_f32(0.0); VECTORS]; ROWS];
        // Of blocks: what is multiplied by scales, while `sums` are of offsets.
        let mut whole = [[vdupq_n_s32(0); VECTORS]; ROWS];
        for group in 0..groups {
            // SAFETY: all that is read lies in the groups that the caller grants.
            unsafe {
                let x = x.add(group * (2 + WORDS));
                let block = panel.add(group * group_words(WORDS, of.offsets) + at);
                let values = block.add(WORDS * PANEL);
                let mut parts = [[vdupq_n_s32(0); VECTORS]; ROWS];
                for four in (0..WORDS).step_by(4) {
                    let mut inputs = [vdupq_n_s8(0); ROWS];
                    for row in 0..ROWS {
                        let bytes = vld1q_u8(x.add(row * stride + 2 + four).cast());
                        inputs[row] = vreinterpretq_s8_u8(veorq_u8(bytes, middle));
                    }
                    let words: [_; 4] =
                        std::array::from_fn(|word| codes(block.add((four + word) * PANEL)));
                    for row in 0..ROWS {
                        for v in 0..VECTORS {
                            let [a, b, c, d] = [0, 1, 2, 3].map(|word: usize| words[word][v]);
                            let mut sum = parts[row][v];
                            sum = add_products::<0>(sum, a, inputs[row]);
                            sum = add_products::<1>(sum, b, inputs[row]);
                            sum = add_products::<2>(sum, c, inputs[row]);
                            parts[row][v] = add_products::<3>(sum, d, inputs[row]);
                        }
                    }
                }
                if in_blocks {
                    let scales = integers(values.add(PANEL));
                    let offsets = floats(values.add(if of.offsets { 2 * PANEL } else { PANEL }));
                    for row in 0..ROWS {
                        let sum = vdupq_n_f32(*x.add(row * stride + 1));
                        for v in 0..VECTORS {
                            whole[row][v] = vmlaq_s32(whole[row][v], parts[row][v], scales[v]);
                            if of.offsets {
                                sums[row][v] = vfmaq_f32(sums[row][v], offsets[v], sum);
                            }
                        }
                    }
                    continue;
                }
                let scales = floats(values.add(PANEL));
                let offsets = if of.offsets { floats(values.add(2 * PANEL)) } else { scales };
                for row in 0..ROWS {
                    let x = x.add(row * stride);
                    let (scale, sum) = (vdupq_n_f32(*x), vdupq_n_f32(*x.add(1)));
                    for v in 0..VECTORS {
                        let whole = vcvtq_f32_s32(parts[row][v]);
                        let scale = vmulq_f32(scales[v], scale);
                        sums[row][v] = vfmaq_f32(sums[row][v], whole, scale);
                        if of.offsets {
                            sums[row][v] = vfmaq_f32(sums[row][v], offsets[v], sum);
                        }
                    }
                }
            }
        }
        if in_blocks {
            // SAFETY: units lie behind the groups of a block.
            let units = unsafe {
                let units = panel.add(groups * group_words(WORDS, of.offsets) + at);
                [floats(units), floats(units.add(PANEL))]
            };
            for row in 0..ROWS {
                for v in 0..VECTORS {
                    let scaled = vmulq_f32(vcvtq_f32_s32(whole[row][v]), units[0][v]);
                    sums[row][v] = match of.offsets {
                        true => vfmaq_f32(scaled, sums[row][v], units[1][v]),
                        false => scaled,
                    };
                }
            }
        }
        for row in 0..ROWS {
            for v in 0..VECTORS {
                // SAFETY: the caller grants outputs for each row, whose values are read and written over.
                unsafe {
                    let out = out.add(row * out_stride + at + v * LANES);
                    let before = if add { vld1q_f32(out) } else { vdupq_n_f32(0.0) };
                    let scale = vdupq_n_f32(if in_blocks { *x.add(row * stride) } else { 1.0 });
                    vst1q_f32(out, vfmaq_f32(before, sums[row][v], scale));
                }
            }
        }
    }
}
