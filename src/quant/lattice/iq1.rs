//! IQ1_S, IQ1_M: eight ternary values, shifted by an eighth up or down, as a point of a lattice.
//!
//! ```text
//! IQ1_S 50 bytes  d f16 | points 32: low 8 bits | qh 8 × u16: bits 8..11 of 4 points at bits 0, 3,
//!                 6, 9; scale in bits 12..15; bit 15 set for a shift down
//! IQ1_M 56 bytes  points 32: low 8 bits | qh 16: bits 8..11 of two points at bits 0 and 4, their
//!                 shifts down in bits 3 and 7 | scales 4 × u16: 3 bits for 16 values, four times;
//!                 a nibble of d (f16) in bits 12..16
//! ```
//! Values: `d · (2s + 1) · (q ± 1/8)` with `q` in -1, 0, 1.
//! Formulas: `quantize_row_iq1_*_impl` and `dequantize_row_iq1_*` in `ggml-quants.c`.

use super::grid::{self, Grid};
use super::magnitudes::{largest, of_group, scale_code, weigh};
use super::splits::{self, DELTA, DOWN, Split, UP};
use super::{Each, N, Search, SuperBlocks};
use crate::quant::float::{abs_max, f16, f16_bits, put_f16};
use crate::quant::format::{Activation, Format, Importance, Kind, Numbers};
use crate::quant::groups::{Group, Grouped, groups, groups_of_16};
use crate::quant::kernels::levels;
use crate::quant::types::QuantType;

#[rustfmt::skip]
pub(in crate::quant) const FORMATS: &[Format] = &[
    Format {
        ty: QuantType::IQ1_S, kind: Kind::Blocks, len: 256, bytes: 50,
        numbers: Numbers::halves(&[0]), importance: Importance::Required,
        activations: Activation::Q8_K, fallback: Some(QuantType::IQ4_NL), cost: [55.0; 2],
        kernels: Some(levels::<Each<Small, 32, 50>>()),
        rounding: None,
        groups: groups::<Small, 50>(),
    },
    Format {
        ty: QuantType::IQ1_M, kind: Kind::Blocks, len: 256, bytes: 56,
        numbers: Numbers::Others(|b| scale(b).is_finite()), importance: Importance::Wanted,
        activations: Activation::Q8_K, fallback: Some(QuantType::IQ4_NL), cost: [55.0; 2],
        kernels: Some(levels::<Each<Medium, 16, 56>>()),
        rounding: None,
        groups: groups_of_16::<Medium, 56>(),
    },
];

/// Positions of the values in ascending order, equal ones as they stand. The reference's `qsort`
/// promises no order of equal values; glibc's, which made the published files, is stable. Every
/// value counts those before it: no branch depends on them.
#[inline(always)]
fn ascending<const G: usize>(x: &[f32]) -> [u8; G] {
    let mut values = [0f32; G];
    for i in 0..G {
        values[i] = x[i];
    }
    let mut places = [0u32; G];
    for j in 0..G {
        for i in 0..G {
            // By value, so that both zeros are equal.
            let tie = values[j] == values[i];
            places[i] += u32::from(values[j] < values[i]) + u32::from(tie & (j < i));
        }
    }
    let mut order = [0u8; G];
    for i in 0..G {
        order[places[i] as usize % G] = i as u8;
    }
    order
}

/// Codes 0, 1, 2 for the values before, between and after the two places in ascending order.
#[inline(always)]
fn codes_of<const G: usize>(order: &[u8; G], split: Split) -> [u8; G] {
    let mut codes = [0u8; G];
    for place in 0..G {
        let code = u8::from(place >= split.first) + u8::from(place >= split.second);
        codes[usize::from(order[place])] = code;
    }
    codes
}

/// Points for the codes of a group, each eight with their values of the codes; and the scale that
/// fits the points, where some codes are none.
#[inline(always)]
fn settle<S: Search, const G: usize>(
    grid: &Grid<8>,
    codes: &[u8; G],
    shifts: impl Fn(usize) -> &'static [f32; 3],
    x: &[f32],
    w: &[f32],
    scale: f32,
    points: &mut [u16],
) -> f32 {
    let mut all_on_grid = true;
    for k in 0..points.len() {
        let at = 8 * k..8 * k + 8;
        let mut of_point = [0; 8];
        for i in 0..8 {
            of_point[i] = codes[8 * k + i];
        }
        let (around, on_grid) = grid.around(Grid::<8>::pack(&of_point));
        all_on_grid &= on_grid;
        let [a, b, c] = *shifts(k);
        let values = [a, b, c, 0.0, a, b, c, 0.0];
        let packed = S::nearest::<8>(around, &values, scale, &x[at.clone()], &w[at]);
        points[k] = grid.index(packed);
    }
    if all_on_grid {
        return scale;
    }
    let (mut sumqx, mut sumq2) = (0f32, 0f32);
    for k in 0..points.len() {
        let codes = &grid.codes[usize::from(points[k])];
        for i in 0..8 {
            let (q, w) = (shifts(k)[usize::from(codes[i])], w[8 * k + i]);
            sumqx += w * q * x[8 * k + i];
            sumq2 += w * q * q;
        }
    }
    if sumqx > 0.0 && sumq2 > 0.0 { sumqx / sumq2 } else { scale }
}

/// The codes of a point's values, in eighths of a scale, from `at` on.
#[inline(always)]
fn eighths<const G: usize>(grid: &Grid<8>, point: usize, down: bool, at: usize, out: &mut [i8; G]) {
    let shift = if down { -1 } else { 1 };
    let codes = &grid.codes[point];
    for i in 0..8 {
        out[at + i] = 8 * (codes[i] as i8 - 1) + shift;
    }
}

struct Small;

impl SuperBlocks<50> for Small {
    const MEAN: f32 = 2.0;
    type Scratch<S: Search> = ();

    #[inline(always)]
    fn encode<S: Search>(
        x: &[f32; N],
        qw: Option<&[f32]>,
        sigma2: f32,
        _: &mut (),
        out: &mut [u8; 50],
    ) {
        let grid = grid::iq1();
        let mut scales = [0f32; 8];
        let mut high = [0u16; 8];
        for g in 0..N / 32 {
            let x = &x[32 * g..][..32];
            // The caller makes sure that there is an importance.
            let w = weigh(x, of_group::<32>(qw, 32 * g), sigma2, 0.0);
            if abs_max(x) < 1e-12 {
                continue;
            }
            let order = ascending::<32>(x);
            let Some((mut scale, split)) = splits::best::<S>(x, &w, &order) else {
                continue;
            };
            let mut up = split.shift == 0;
            let mut codes = codes_of(&order, split);
            if scale < 0.0 {
                for code in &mut codes {
                    *code = 2 - *code;
                }
                scale = -scale;
                up = !up;
            }
            let shift = if up { &UP } else { &DOWN };
            let mut points = [0u16; 4];
            scales[g] = settle::<S, _>(grid, &codes, |_| shift, x, &w, scale, &mut points);
            for k in 0..4 {
                out[2 + 4 * g + k] = points[k] as u8;
                high[g] |= (points[k] >> 8) << (3 * k);
            }
            high[g] |= u16::from(!up) << 15;
        }
        let max_scale = largest(&scales);
        if max_scale == 0.0 {
            for g in 0..8 {
                [out[34 + 2 * g], out[35 + 2 * g]] = (high[g] & 0xfff).to_le_bytes();
            }
            return;
        }
        let d = max_scale / 15.0;
        put_f16(out, d * 1.125);
        for g in 0..8 {
            let word = high[g] | u16::from(scale_code(1.0 / d, scales[g], 7)) << 12;
            [out[34 + 2 * g], out[35 + 2 * g]] = word.to_le_bytes();
        }
    }
}

impl Grouped<32, 50> for Small {
    const OFFSETS: bool = false;
    const LARGEST: i16 = 9;

    #[inline(always)]
    fn group(b: &[u8; 50], g: usize) -> Group<32> {
        let grid = grid::iq1();
        let word = u16::from_le_bytes([b[34 + 2 * g], b[35 + 2 * g]]);
        let mut codes = [0; 32];
        for k in 0..4 {
            let point = usize::from(b[2 + 4 * g + k]) | usize::from(word >> (3 * k) & 7) << 8;
            eighths(grid, point, word >> 15 == 1, 8 * k, &mut codes);
        }
        let scale = f16(b) * f32::from(2 * (word >> 12 & 7) + 1);
        Group { codes, scale: scale * DELTA, offset: 0.0 }
    }

    #[inline(always)]
    fn units(b: &[u8; 50]) -> [f32; 2] {
        [f16(b) * DELTA, 0.0]
    }
}

/// The scale of a block of IQ1_M, which is spread over the upper four bits of four words.
#[inline(always)]
fn scale(b: &[u8]) -> f32 {
    let nibble = |i: usize| u16::from(b[49 + 2 * i] >> 4) << (4 * i);
    f16(&(nibble(0) | nibble(1) | nibble(2) | nibble(3)).to_le_bytes())
}

/// The values of codes in the first and second eight of a group, by its pair of shifts:
/// up/up, up/down, down/up, down/down.
#[inline(always)]
fn shift_of(pair: usize, half: usize) -> &'static [f32; 3] {
    if pair >> (1 - half) & 1 == 0 { &UP } else { &DOWN }
}

/// The bits in `qh` of each pair of shifts.
const SHIFT_BITS: [u8; 4] = [0x00, 0x80, 0x08, 0x88];

struct Medium;

impl SuperBlocks<56> for Medium {
    const MEAN: f32 = 2.0;
    type Scratch<S: Search> = ();

    #[inline(always)]
    fn encode<S: Search>(
        x: &[f32; N],
        qw: Option<&[f32]>,
        sigma2: f32,
        _: &mut (),
        out: &mut [u8; 56],
    ) {
        let grid = grid::iq1();
        let groups = x.as_chunks::<16>().0;
        let mut weights = [[0f32; 16]; 16];
        for g in 0..16 {
            let w = weigh(&groups[g], of_group::<16>(qw, 16 * g), sigma2, 0.0);
            for i in 0..16 {
                weights[g][i] = w[i];
            }
        }
        let mut scales = [0f32; 16];
        let mut pairs = [0usize; 16];
        let mut all = [0u16; 32];
        for g in 0..16 {
            let (x, w) = (&groups[g], &weights[g]);
            if abs_max(x) < 1e-7 {
                continue;
            }
            let order = ascending::<16>(x);
            let Some((mut scale, split)) = splits::best_of_two::<S>(x, w, &order) else {
                continue;
            };
            let mut pair = split.shift;
            let mut codes = codes_of(&order, split);
            if scale < 0.0 {
                for code in &mut codes {
                    *code = 2 - *code;
                }
                scale = -scale;
                pair = 3 - pair;
            }
            let points = &mut all[2 * g..2 * g + 2];
            scales[g] = settle::<S, _>(grid, &codes, |k| shift_of(pair, k), x, w, scale, points);
            pairs[g] = pair;
        }
        for p in 0..32 {
            out[p] = all[p] as u8;
            out[32 + p / 2] |= ((all[p] >> 8) as u8) << (4 * (p % 2));
        }
        let max_scale = largest(&scales);
        if max_scale == 0.0 {
            return;
        }
        let mut d = max_scale / 15.0;
        let id = 1.0 / d;
        let (mut sumqx, mut sumq2) = (0f32, 0f32);
        let mut words = [0u16; 4];
        for g in 0..16 {
            let (x, w) = (&groups[g], &weights[g]);
            let code = scale_code(id, scales[g], 7);
            words[g / 4] |= u16::from(code) << (3 * (g % 4));
            out[32 + g] |= SHIFT_BITS[pairs[g]];
            for k in 0..2 {
                let codes = &grid.codes[usize::from(all[2 * g + k])];
                for i in 0..8 {
                    let value = shift_of(pairs[g], k)[usize::from(codes[i])];
                    let (q, i) = (value * f32::from(2 * code + 1), 8 * k + i);
                    sumqx += w[i] * q * x[i];
                    sumq2 += w[i] * q * q;
                }
            }
        }
        if sumq2 > 0.0 {
            d = sumqx / sumq2;
        }
        let d = u16::from_le_bytes(f16_bits(d * 1.1125));
        for i in 0..4 {
            let word = words[i] | (d >> (4 * i) & 15) << 12;
            [out[48 + 2 * i], out[49 + 2 * i]] = word.to_le_bytes();
        }
    }
}

impl Grouped<16, 56> for Medium {
    const OFFSETS: bool = false;
    const LARGEST: i16 = 9;

    #[inline(always)]
    fn group(b: &[u8; 56], g: usize) -> Group<16> {
        let grid = grid::iq1();
        let mut codes = [0; 16];
        for k in 0..2 {
            let bits = b[32 + g] >> (4 * k) & 15;
            let point = usize::from(b[2 * g + k]) | usize::from(bits & 7) << 8;
            eighths(grid, point, bits & 8 != 0, 8 * k, &mut codes);
        }
        let at = 48 + 2 * (g / 4);
        let code = u16::from_le_bytes([b[at], b[at + 1]]) >> (3 * (g % 4)) & 7;
        let scale = scale(b) * f32::from(2 * code + 1);
        Group { codes, scale: scale * DELTA, offset: 0.0 }
    }

    #[inline(always)]
    fn units(b: &[u8; 56]) -> [f32; 2] {
        [scale(b) * DELTA, 0.0]
    }
}
