//! Products of bytes by VNNI: four of them in each of sixteen lanes, summed by one instruction.

use super::{FRACTIONS, PANEL, Products, Tile, group_words, steps};
use std::arch::x86_64::*;

/// Registers of a row of a panel.
const VECTORS: usize = PANEL / LANES;
/// Values of a register.
const LANES: usize = 16;
/// How sums of groups are multiplied by their scales and added: as f32, with the scales of inputs; in blocks, as integers;
/// in blocks, as f32 that hold them exactly.
const GROUPS: usize = 0;
const BLOCKS: usize = 1;
const FLOATS: usize = 2;

#[inline]
#[target_feature(enable = "avx512f")]
unsafe fn floats(from: *const f32) -> [__m512; VECTORS] {
    // SAFETY: the caller grants a line of a panel.
    unsafe { [_mm512_loadu_ps(from), _mm512_loadu_ps(from.add(LANES))] }
}

#[inline]
#[target_feature(enable = "avx512f")]
unsafe fn integers(from: *const f32) -> [__m512i; VECTORS] {
    // SAFETY: as above.
    let [a, b] = unsafe { floats(from) };
    [_mm512_castps_si512(a), _mm512_castps_si512(b)]
}

/// Cuts a group of inputs into slices.
#[inline]
#[target_feature(enable = "avx512f")]
pub fn slice(x: &[f32; FRACTIONS], words: &mut [f32; 2 + 3 * FRACTIONS / 4]) {
    // SAFETY: a line is read.
    let x = unsafe { floats(x.as_ptr()) };
    // NaN are passed over here.
    let magnitudes = _mm512_max_ps(_mm512_abs_ps(x[0]), _mm512_abs_ps(x[1]));
    let (scale, inverse) = steps(_mm512_reduce_max_ps(magnitudes));
    let (most, half) = (_mm512_set1_epi32((1 << 23) - 1), _mm512_set1_epi32(1 << 23));
    let mut sum = _mm512_setzero_si512();
    let mut finite = true;
    let (values, slices) = words.split_at_mut(2);
    for (i, &x) in x.iter().enumerate() {
        let nothing = _mm512_sub_ps(x, x);
        finite &= _mm512_cmp_ps_mask::<_CMP_EQ_OQ>(nothing, nothing) == u16::MAX;
        let nearest = _mm512_cvtps_epi32(_mm512_mul_ps(x, _mm512_set1_ps(inverse)));
        let steps = _mm512_min_epi32(nearest, most);
        sum = _mm512_add_epi32(sum, steps);
        let steps = _mm512_add_epi32(steps, half);
        let bytes = [_mm512_srli_epi32(steps, 16), _mm512_srli_epi32(steps, 8), steps];
        for (slice, bytes) in slices.as_chunks_mut::<{ FRACTIONS / 4 }>().0.iter_mut().zip(&bytes) {
            let words = &mut slice[i * LANES / 4..][..LANES / 4];
            // SAFETY: sixteen bytes are written over.
            unsafe { _mm_storeu_si128(words.as_mut_ptr().cast(), _mm512_cvtepi32_epi8(*bytes)) };
        }
    }
    values[0] = if finite { scale } else { f32::NAN };
    values[1] = values[0] * _mm512_reduce_add_epi32(sum) as f32;
}

/// The kernels for one row, two rows, and so on.
pub fn tiles(products: Products) -> &'static [Tile] {
    let Products { len, offsets, rounded, .. } = products;
    let sums = match (products.in_blocks(), products.in_floats()) {
        (false, _) => GROUPS,
        (true, false) => BLOCKS,
        (true, true) => FLOATS,
    };
    match (len, rounded.is_some(), sums, offsets) {
        (32, false, _, false) => of::<32, 3, GROUPS, false>(),
        (32, false, _, true) => of::<32, 3, GROUPS, true>(),
        (32, true, GROUPS, false) => of::<32, 1, GROUPS, false>(),
        (32, true, GROUPS, true) => of::<32, 1, GROUPS, true>(),
        (32, true, BLOCKS, false) => of::<32, 1, BLOCKS, false>(),
        (32, true, BLOCKS, true) => of::<32, 1, BLOCKS, true>(),
        (32, true, _, false) => of::<32, 1, FLOATS, false>(),
        (32, true, _, true) => of::<32, 1, FLOATS, true>(),
        (_, _, GROUPS, false) => of::<16, 1, GROUPS, false>(),
        (_, _, GROUPS, true) => of::<16, 1, GROUPS, true>(),
        (_, _, BLOCKS, false) => of::<16, 1, BLOCKS, false>(),
        (_, _, BLOCKS, true) => of::<16, 1, BLOCKS, true>(),
        (_, _, _, false) => of::<16, 1, FLOATS, false>(),
        (_, _, _, true) => of::<16, 1, FLOATS, true>(),
    }
}

fn of<const LEN: usize, const SLICES: usize, const SUMS: usize, const OFFSETS: bool>()
-> &'static [Tile] {
    const {
        &[
            tile::<1, LEN, SLICES, SUMS, OFFSETS>,
            tile::<2, LEN, SLICES, SUMS, OFFSETS>,
            tile::<3, LEN, SLICES, SUMS, OFFSETS>,
            tile::<4, LEN, SLICES, SUMS, OFFSETS>,
        ]
    }
}

/// Writes products to `out`, or adds them.
///
/// # Safety
/// `x` holds `ROWS` rows of `groups` groups of inputs of `LEN` in `SLICES`, `stride` words apart and of one scale unless
/// `SUMS` is [`GROUPS`], `panel` as many groups of columns, with offsets if `OFFSETS` and units behind them unless `SUMS` is [`GROUPS`], `out` `ROWS` rows of [`PANEL`] values,
/// `out_stride` apart, and the machine has AVX-512 F and VNNI.
#[target_feature(enable = "avx512f,avx512vnni")]
unsafe fn tile<
    const ROWS: usize,
    const LEN: usize,
    const SLICES: usize,
    const SUMS: usize,
    const OFFSETS: bool,
>(
    _: Products,
    (x, stride): (*const f32, usize),
    panel: *const f32,
    groups: usize,
    (out, out_stride): (*mut f32, usize),
    add: bool,
) {
    let words = LEN / 4;
    let upper = _mm512_set1_ps(65536.0);
    let mut sums = [[_mm512_setzero_ps(); VECTORS]; ROWS];
    // Of blocks: what is multiplied by scales, in one form or the other, and what by offsets.
    let mut whole = [[_mm512_setzero_si512(); VECTORS]; ROWS];
    let mut offset_sums = [[_mm512_setzero_ps(); VECTORS]; ROWS];
    for group in 0..groups {
        // SAFETY: all that is read lies in the groups that the caller grants.
        unsafe {
            let x = x.add(group * (2 + SLICES * words));
            let block = panel.add(group * group_words(words, OFFSETS));
            let values = block.add(words * PANEL);
            let mut parts = [[[_mm512_setzero_si512(); VECTORS]; SLICES]; ROWS];
            let start = integers(values);
            for row in 0..ROWS {
                parts[row][0] = start;
            }
            for word in 0..words {
                let codes = integers(block.add(word * PANEL));
                for row in 0..ROWS {
                    for slice in 0..SLICES {
                        let x = x.add(row * stride + 2 + slice * words + word);
                        let x = _mm512_set1_epi32(x.cast::<i32>().read());
                        for v in 0..VECTORS {
                            let part = parts[row][slice][v];
                            parts[row][slice][v] = _mm512_dpbusd_epi32(part, x, codes[v]);
                        }
                    }
                }
            }
            if SUMS != GROUPS {
                if SUMS == FLOATS {
                    let scales = floats(values.add(PANEL));
                    for row in 0..ROWS {
                        for v in 0..VECTORS {
                            let part = _mm512_cvtepi32_ps(parts[row][0][v]);
                            sums[row][v] = _mm512_fmadd_ps(part, scales[v], sums[row][v]);
                        }
                    }
                } else {
                    let scales = integers(values.add(PANEL));
                    for row in 0..ROWS {
                        for v in 0..VECTORS {
                            let scaled = _mm512_mullo_epi32(parts[row][0][v], scales[v]);
                            whole[row][v] = _mm512_add_epi32(whole[row][v], scaled);
                        }
                    }
                }
                if OFFSETS {
                    let offsets = floats(values.add(2 * PANEL));
                    for row in 0..ROWS {
                        let sum = _mm512_set1_ps(*x.add(row * stride + 1));
                        for v in 0..VECTORS {
                            let before = offset_sums[row][v];
                            offset_sums[row][v] = _mm512_fmadd_ps(offsets[v], sum, before);
                        }
                    }
                }
                continue;
            }
            let scales = floats(values.add(PANEL));
            let offsets = if OFFSETS { floats(values.add(2 * PANEL)) } else { scales };
            for row in 0..ROWS {
                let x = x.add(row * stride);
                let (scale, sum) = (_mm512_set1_ps(*x), _mm512_set1_ps(*x.add(1)));
                for v in 0..VECTORS {
                    let high = _mm512_cvtepi32_ps(parts[row][0][v]);
                    let whole = if SLICES == 3 {
                        let middle = _mm512_slli_epi32(parts[row][1][v], 8);
                        let lower = _mm512_add_epi32(middle, parts[row][2][v]);
                        _mm512_fmadd_ps(high, upper, _mm512_cvtepi32_ps(lower))
                    } else {
                        high
                    };
                    let scale = _mm512_mul_ps(scales[v], scale);
                    sums[row][v] = _mm512_fmadd_ps(whole, scale, sums[row][v]);
                    if OFFSETS {
                        sums[row][v] = _mm512_fmadd_ps(offsets[v], sum, sums[row][v]);
                    }
                }
            }
        }
    }
    if SUMS != GROUPS {
        // SAFETY: units lie behind the groups of a block.
        let units = unsafe {
            let units = panel.add(groups * group_words(words, OFFSETS));
            [floats(units), floats(units.add(PANEL))]
        };
        for row in 0..ROWS {
            for v in 0..VECTORS {
                let scaled =
                    if SUMS == FLOATS { sums[row][v] } else { _mm512_cvtepi32_ps(whole[row][v]) };
                sums[row][v] = _mm512_mul_ps(scaled, units[0][v]);
                if OFFSETS {
                    sums[row][v] = _mm512_fmadd_ps(offset_sums[row][v], units[1][v], sums[row][v]);
                }
            }
        }
    }
    for row in 0..ROWS {
        for v in 0..VECTORS {
            // SAFETY: the caller grants outputs for each row, whose values are read and written over.
            unsafe {
                let out = out.add(row * out_stride + v * LANES);
                let before = if add { _mm512_loadu_ps(out) } else { _mm512_setzero_ps() };
                let scale = _mm512_set1_ps(if SUMS == GROUPS { 1.0 } else { *x.add(row * stride) });
                _mm512_storeu_ps(out, _mm512_fmadd_ps(sums[row][v], scale, before));
            }
        }
    }
}
