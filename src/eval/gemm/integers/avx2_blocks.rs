//! Products with inputs in blocks of 256, by AVX2: the arrangement, and the kernels.
//!
//! Sums of sixteen bits are widened by a product with scales, of two sums at a time. So the columns of a word are two of
//! one half of 32 and two of the other, and the two sums of a lane are those of halves, with a scale each; types
//! whose groups are 32 have the same scale twice. Codes of types with offsets have no sign, and inputs meet them with
//! theirs, at most 127: twice as many products fit into sixteen bits as where codes have signs and inputs are bytes
//! above -2⁷. Where not one product of two fits, weights are the products of codes and scales, of sixteen bits.
//!
//! ```text
//! a block of inputs     scale | sums of halves, two each [8] | bytes [8][8], those of word w of 32 columns:
//!                                                              2w, 2w + 1, 16 + 2w, 17 + 2w
//! a block of a panel    { codes [8][32 rows][4] | scales of two halves [32] } [8]
//!                       | start [32] | unit [32], and where the type has them | unit of offsets [32] | offsets of two halves [8][32]
//!   start: -2⁷ · the sum of codes and scales, where inputs are above that
//! of sixteen bits       scale | inputs, two each [128]
//!                       weights [128][32 rows][2] | unit [32]
//! ```

use super::{BLOCK, PANEL, multiple, word_of, word_of_one, word_of_two};
use crate::quant::Group;

/// Columns that pass together, in two halves.
pub const CHUNK: usize = 32;
pub const CHUNKS: usize = BLOCK / CHUNK;
/// Words of so many columns.
pub const WORDS: usize = CHUNK / 4;
/// Words of a chunk of a panel.
const CHUNK_WORDS: usize = (WORDS + 1) * PANEL;

/// Words of a block of inputs, for kernels that add so many products.
pub const fn input_words(at_once: usize) -> usize {
    if at_once == 0 { 1 + BLOCK / 2 } else { 1 + CHUNKS + BLOCK / 4 }
}

/// Words of a block of a panel.
pub fn block_words(at_once: usize, offsets: bool) -> usize {
    match (at_once, offsets) {
        (0, _) => (BLOCK / 2 + 1) * PANEL,
        (_, false) => CHUNKS * CHUNK_WORDS + 2 * PANEL,
        (_, true) => CHUNKS * CHUNK_WORDS + (3 + CHUNKS) * PANEL,
    }
}

/// Puts a block of a row of weights into its lane of a panel.
pub fn put<const G: usize>(
    groups: &[Group<G>],
    units: [f32; 2],
    at_once: usize,
    offsets: bool,
    lane: usize,
    panel: &mut [f32],
) {
    let half = |i: usize| {
        let group = &groups[16 * i / G];
        let codes = group.codes[16 * i % G..].first_chunk::<16>();
        (codes.unwrap_or(&[0; 16]), multiple(group.scale, units[0]), group.offset)
    };
    if at_once == 0 {
        for i in 0..BLOCK / 16 {
            let (codes, scale, _) = half(i);
            for w in 0..8 {
                let weight = |at: usize| scale * i16::from(codes[at]);
                panel[(8 * i + w) * PANEL + lane] = word_of_two([weight(2 * w), weight(2 * w + 1)]);
            }
        }
        panel[BLOCK / 2 * PANEL + lane] = units[0];
        return;
    }
    let (chunks, values) = panel.split_at_mut(CHUNKS * CHUNK_WORDS);
    let mut start = 0;
    for c in 0..CHUNKS {
        let words = &mut chunks[c * CHUNK_WORDS..][..CHUNK_WORDS];
        let ((a, of_a, least_a), (b, of_b, least_b)) = (half(2 * c), half(2 * c + 1));
        for w in 0..WORDS {
            let (i, j) = (2 * w, 2 * w + 1);
            let four = [a[i] as u8, a[j] as u8, b[i] as u8, b[j] as u8];
            words[w * PANEL + lane] = word_of(four);
        }
        words[WORDS * PANEL + lane] = word_of_two([of_a, of_b]);
        if offsets {
            let two = [multiple(least_a, units[1]), multiple(least_b, units[1])];
            values[(3 + c) * PANEL + lane] = word_of_two(two);
            continue;
        }
        let (mut sum_a, mut sum_b) = (0, 0);
        for i in 0..16 {
            sum_a += i32::from(a[i]);
            sum_b += i32::from(b[i]);
        }
        start -= 128 * (sum_a * i32::from(of_a) + sum_b * i32::from(of_b));
    }
    values[lane] = word_of_one(start);
    values[PANEL + lane] = units[0];
    if offsets {
        values[2 * PANEL + lane] = units[1];
    }
}

#[cfg(target_arch = "x86_64")]
pub use kernels::tiles;

#[cfg(target_arch = "x86_64")]
mod kernels {
    use super::super::avx2::{LANES, VECTORS, floats, integers};
    use super::super::{Products, Tile};
    use super::*;
    use std::arch::x86_64::*;

    /// The kernels for one row, two rows, and so on, where `at_once` products are added before they are widened; with
    /// none, weights and inputs have sixteen bits.
    pub fn tiles(at_once: usize, offsets: bool) -> &'static [Tile] {
        match (at_once, offsets) {
            // Without sums of sixteen bits there are registers for six rows.
            (0, _) => &[wide::<1>, wide::<2>, wide::<3>, wide::<4>, wide::<5>, wide::<6>],
            (1, false) => of::<1, false>(),
            (2 | 3, false) => of::<2, false>(),
            (4..8, false) => of::<4, false>(),
            (_, false) => of::<8, false>(),
            (1, true) => of::<1, true>(),
            (2 | 3, true) => of::<2, true>(),
            (4..8, true) => of::<4, true>(),
            (_, true) => of::<8, true>(),
        }
    }

    fn of<const AT_ONCE: usize, const OFFSETS: bool>() -> &'static [Tile] {
        const {
            &[
                tile::<1, AT_ONCE, OFFSETS>,
                tile::<2, AT_ONCE, OFFSETS>,
                tile::<3, AT_ONCE, OFFSETS>,
                tile::<4, AT_ONCE, OFFSETS>,
            ]
        }
    }

    /// Writes products to `out`, or adds them.
    ///
    /// # Safety
    /// `x` holds `ROWS` rows of a block of inputs, `stride` words apart, with signs if `OFFSETS`, `panel` a block of
    /// columns, with offsets and codes without signs if `OFFSETS`, of which `AT_ONCE` products fit sixteen
    /// bits; `out` holds `ROWS` rows of [`PANEL`] values, `out_stride` apart, and the machine has AVX2 and FMA.
    #[target_feature(enable = "avx2,fma")]
    unsafe fn tile<const ROWS: usize, const AT_ONCE: usize, const OFFSETS: bool>(
        _: Products,
        (x, stride): (*const f32, usize),
        panel: *const f32,
        _: usize,
        out: (*mut f32, usize),
        add: bool,
    ) {
        for at in (0..PANEL).step_by(VECTORS * LANES) {
            // SAFETY: all that is read lies in the blocks that the caller grants, and so do the outputs.
            unsafe {
                let panel = panel.add(at);
                let values = panel.add(CHUNKS * CHUNK_WORDS);
                let mut whole = [integers(values); ROWS];
                for chunk in 0..CHUNKS {
                    let x = x.add(1 + CHUNKS + chunk * WORDS);
                    let words = panel.add(chunk * CHUNK_WORDS);
                    let scales = integers(words.add(WORDS * PANEL));
                    for part in 0..WORDS / AT_ONCE {
                        let mut short = [[_mm256_setzero_si256(); VECTORS]; ROWS];
                        for word in part * AT_ONCE..(part + 1) * AT_ONCE {
                            let codes = integers(words.add(word * PANEL));
                            for row in 0..ROWS {
                                let x = x.add(row * stride + word).cast::<i32>().read();
                                let x = _mm256_set1_epi32(x);
                                for v in 0..VECTORS {
                                    let two = if OFFSETS {
                                        _mm256_maddubs_epi16(codes[v], x)
                                    } else {
                                        _mm256_maddubs_epi16(x, codes[v])
                                    };
                                    short[row][v] = _mm256_add_epi16(short[row][v], two);
                                }
                            }
                        }
                        for row in 0..ROWS {
                            for v in 0..VECTORS {
                                let scaled = _mm256_madd_epi16(short[row][v], scales[v]);
                                whole[row][v] = _mm256_add_epi32(whole[row][v], scaled);
                            }
                        }
                    }
                }
                let mut sums = times(whole, floats(values.add(PANEL)));
                if OFFSETS {
                    let mut whole = [[_mm256_setzero_si256(); VECTORS]; ROWS];
                    for chunk in 0..CHUNKS {
                        let offsets = integers(values.add((3 + chunk) * PANEL));
                        for row in 0..ROWS {
                            let x = x.add(row * stride + 1 + chunk).cast::<i32>().read();
                            for v in 0..VECTORS {
                                let two = _mm256_madd_epi16(_mm256_set1_epi32(x), offsets[v]);
                                whole[row][v] = _mm256_add_epi32(whole[row][v], two);
                            }
                        }
                    }
                    let units = floats(values.add(2 * PANEL));
                    for row in 0..ROWS {
                        for v in 0..VECTORS {
                            let whole = _mm256_cvtepi32_ps(whole[row][v]);
                            sums[row][v] = _mm256_fmadd_ps(whole, units[v], sums[row][v]);
                        }
                    }
                }
                put_sums(sums, (x, stride), (out.0.add(at), out.1), add);
            }
        }
    }

    /// The same with weights and inputs of sixteen bits, without offsets.
    ///
    /// # Safety
    /// As for [`tile`].
    #[target_feature(enable = "avx2,fma")]
    unsafe fn wide<const ROWS: usize>(
        _: Products,
        (x, stride): (*const f32, usize),
        panel: *const f32,
        _: usize,
        out: (*mut f32, usize),
        add: bool,
    ) {
        for at in (0..PANEL).step_by(VECTORS * LANES) {
            // SAFETY: as above.
            unsafe {
                let panel = panel.add(at);
                let mut whole = [[_mm256_setzero_si256(); VECTORS]; ROWS];
                for word in 0..BLOCK / 2 {
                    let weights = integers(panel.add(word * PANEL));
                    for row in 0..ROWS {
                        let x = x.add(row * stride + 1 + word).cast::<i32>().read();
                        for v in 0..VECTORS {
                            let two = _mm256_madd_epi16(_mm256_set1_epi32(x), weights[v]);
                            whole[row][v] = _mm256_add_epi32(whole[row][v], two);
                        }
                    }
                }
                let sums = times(whole, floats(panel.add(BLOCK / 2 * PANEL)));
                put_sums(sums, (x, stride), (out.0.add(at), out.1), add);
            }
        }
    }

    #[inline]
    #[target_feature(enable = "avx2,fma")]
    fn times<const ROWS: usize>(
        whole: [[__m256i; VECTORS]; ROWS],
        units: [__m256; VECTORS],
    ) -> [[__m256; VECTORS]; ROWS] {
        let mut sums = [[_mm256_setzero_ps(); VECTORS]; ROWS];
        for row in 0..ROWS {
            for v in 0..VECTORS {
                sums[row][v] = _mm256_mul_ps(_mm256_cvtepi32_ps(whole[row][v]), units[v]);
            }
        }
        sums
    }

    /// Writes or adds sums, times the scales of inputs.
    ///
    /// # Safety
    /// `x` and `out` hold `ROWS` rows of a value, and of as many as `sums`.
    #[inline]
    #[target_feature(enable = "avx2,fma")]
    unsafe fn put_sums<const ROWS: usize>(
        sums: [[__m256; VECTORS]; ROWS],
        (x, stride): (*const f32, usize),
        (out, out_stride): (*mut f32, usize),
        add: bool,
    ) {
        for row in 0..ROWS {
            for v in 0..VECTORS {
                // SAFETY: the caller grants outputs for each row, whose values are read and written over.
                unsafe {
                    let out = out.add(row * out_stride + v * LANES);
                    let before = if add { _mm256_loadu_ps(out) } else { _mm256_setzero_ps() };
                    let scale = _mm256_set1_ps(*x.add(row * stride));
                    _mm256_storeu_ps(out, _mm256_fmadd_ps(sums[row][v], scale, before));
                }
            }
        }
    }
}
