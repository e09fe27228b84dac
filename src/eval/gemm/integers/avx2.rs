//! Products by AVX2: of bytes, two of them in each of sixteen lanes of sixteen bits, or of sixteen bits, two of them in
//! each of eight lanes.

use super::{PANEL, Products, Tile, group_words};
use std::arch::x86_64::*;

/// Registers of rows of a panel that pass together: with as many sums for each row of inputs, codes and an
/// input fill the sixteen that there are.
pub(super) const VECTORS: usize = 2;
/// Values of a register.
pub(super) const LANES: usize = 8;

/// The kernels for one row, two rows, and so on, where `at_once` products are added before they are widened; with none,
/// codes and inputs have sixteen bits.
pub fn tiles(products: Products, at_once: usize) -> &'static [Tile] {
    match (products.len, at_once) {
        (32, 0) => of::<16, 0>(),
        (32, 1) => of::<8, 1>(),
        (32, 2 | 3) => of::<8, 2>(),
        (32, 4..8) => of::<8, 4>(),
        (32, _) => of::<8, 8>(),
        (_, 0) => unreachable!("groups of 16 whose codes have eight bits are in blocks"),
        (_, 1) => of::<4, 1>(),
        (_, 2 | 3) => of::<4, 2>(),
        _ => of::<4, 4>(),
    }
}

fn of<const WORDS: usize, const AT_ONCE: usize>() -> &'static [Tile] {
    const {
        &[
            tile::<1, WORDS, AT_ONCE>,
            tile::<2, WORDS, AT_ONCE>,
            tile::<3, WORDS, AT_ONCE>,
            tile::<4, WORDS, AT_ONCE>,
        ]
    }
}

#[inline]
#[target_feature(enable = "avx2")]
pub(super) unsafe fn floats(from: *const f32) -> [__m256; VECTORS] {
    // SAFETY: the caller grants so many values.
    unsafe { [_mm256_loadu_ps(from), _mm256_loadu_ps(from.add(LANES))] }
}

#[inline]
#[target_feature(enable = "avx2")]
pub(super) unsafe fn integers(from: *const f32) -> [__m256i; VECTORS] {
    // SAFETY: as above.
    let [a, b] = unsafe { floats(from) };
    [_mm256_castps_si256(a), _mm256_castps_si256(b)]
}

/// Writes products to `out`, or adds them. Sums are those of [`super::vnni`] to the bit.
///
/// # Safety
/// `x` holds `ROWS` rows of `groups` groups of inputs in one slice, `stride` words apart, `panel` as many groups of
/// columns, both as `of` has them, of `WORDS` words, of which `AT_ONCE` are a part, or, where that is none, have sixteen
/// bits for each value; `out` holds `ROWS` rows of [`PANEL`] values,
/// `out_stride` apart, and the machine has AVX2 and FMA.
#[target_feature(enable = "avx2,fma")]
unsafe fn tile<const ROWS: usize, const WORDS: usize, const AT_ONCE: usize>(
    of: Products,
    (x, stride): (*const f32, usize),
    panel: *const f32,
    groups: usize,
    (out, out_stride): (*mut f32, usize),
    add: bool,
) {
    let ones = _mm256_set1_epi16(1);
    for part in 0..PANEL / (VECTORS * LANES) {
        let at = part * VECTORS * LANES;
        let mut sums = [[_mm256_setzero_ps(); VECTORS]; ROWS];
        for group in 0..groups {
            // SAFETY: all that is read lies in the groups that the caller grants.
            unsafe {
                let x = x.add(group * (2 + WORDS));
                let block = panel.add(group * group_words(WORDS, of.offsets) + at);
                let values = block.add(WORDS * PANEL);
                let mut parts = [integers(values); ROWS];
                for word in 0..if AT_ONCE == 0 { WORDS } else { 0 } {
                    let codes = integers(block.add(word * PANEL));
                    for row in 0..ROWS {
                        let x = x.add(row * stride + 2 + word).cast::<i32>().read();
                        for v in 0..VECTORS {
                            let two = _mm256_madd_epi16(_mm256_set1_epi32(x), codes[v]);
                            parts[row][v] = _mm256_add_epi32(parts[row][v], two);
                        }
                    }
                }
                for part in 0..WORDS.checked_div(AT_ONCE).unwrap_or(0) {
                    let mut short = [[_mm256_setzero_si256(); VECTORS]; ROWS];
                    for word in part * AT_ONCE..(part + 1) * AT_ONCE {
                        let codes = integers(block.add(word * PANEL));
                        for row in 0..ROWS {
                            let x = x.add(row * stride + 2 + word).cast::<i32>().read();
                            for v in 0..VECTORS {
                                let two = _mm256_maddubs_epi16(_mm256_set1_epi32(x), codes[v]);
                                short[row][v] = _mm256_add_epi16(short[row][v], two);
                            }
                        }
                    }
                    for row in 0..ROWS {
                        for v in 0..VECTORS {
                            let four = _mm256_madd_epi16(short[row][v], ones);
                            parts[row][v] = _mm256_add_epi32(parts[row][v], four);
                        }
                    }
                }
                let scales = floats(values.add(PANEL));
                let offsets = if of.offsets { floats(values.add(2 * PANEL)) } else { scales };
                for row in 0..ROWS {
                    let x = x.add(row * stride);
                    let (scale, sum) = (_mm256_set1_ps(*x), _mm256_set1_ps(*x.add(1)));
                    for v in 0..VECTORS {
                        let whole = _mm256_cvtepi32_ps(parts[row][v]);
                        let scale = _mm256_mul_ps(scales[v], scale);
                        sums[row][v] = _mm256_fmadd_ps(whole, scale, sums[row][v]);
                        if of.offsets {
                            sums[row][v] = _mm256_fmadd_ps(offsets[v], sum, sums[row][v]);
                        }
                    }
                }
            }
        }
        for row in 0..ROWS {
            for v in 0..VECTORS {
                // SAFETY: the caller grants outputs for each row, whose values are read and written over.
                unsafe {
                    let out = out.add(row * out_stride + at + v * LANES);
                    let before = if add { _mm256_loadu_ps(out) } else { _mm256_setzero_ps() };
                    _mm256_storeu_ps(out, _mm256_add_ps(sums[row][v], before));
                }
            }
        }
    }
}
