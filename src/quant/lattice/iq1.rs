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

use super::Search;
use super::grid::{self, Grid};
use super::iq2::largest;
use super::magnitudes::{scale_code, weigh};
use super::splits::{self, DELTA, DOWN, Split, UP};
use crate::quant::float::{abs_max, f16, f16_bits};
use crate::quant::format::{Activation, Format, Importance, Kind, Numbers};
use crate::quant::kernels::{Blocks, levels};
use crate::quant::search::ROWS;
use crate::quant::types::QuantType;

#[rustfmt::skip]
pub(in crate::quant) const FORMATS: &[Format] = &[
    Format {
        ty: QuantType::IQ1_S, kind: Kind::Blocks, len: 256, bytes: 50,
        numbers: Numbers::halves(&[0]), importance: Importance::Required,
        activations: Activation::Q8_K, fallback: Some(QuantType::IQ4_NL), cost: [55.0; 2],
        kernels: Some(levels::<Small>()),
        groups: None,
    },
    Format {
        ty: QuantType::IQ1_M, kind: Kind::Blocks, len: 256, bytes: 56,
        numbers: Numbers::Others(|b| scale(b).is_finite()), importance: Importance::Wanted,
        activations: Activation::Q8_K, fallback: Some(QuantType::IQ4_NL), cost: [55.0; 2],
        kernels: Some(levels::<Medium>()),
        groups: None,
    },
];

const N: usize = 256;
/// Positions of the values in ascending order, equal ones as they stand. The reference's `qsort`
/// promises no order of equal values; glibc's, which made the published files, is stable. Every
/// value counts those before it: no branch depends on them.
#[inline(always)]
fn ascending<const G: usize>(x: &[f32]) -> [u8; G] {
    let mut values = [0f32; G];
    values.copy_from_slice(x);
    let mut places = [0u32; G];
    for j in 0..G {
        for i in 0..G {
            // By value, so that both zeros are equal.
            let tie = values[j] == values[i];
            places[i] += u32::from(values[j] < values[i]) + u32::from(tie & (j < i));
        }
    }
    let mut order = [0u8; G];
    for (i, place) in (0..).zip(places) {
        order[place as usize % G] = i;
    }
    order
}

/// Codes 0, 1, 2 for the values before, between and after the two places in ascending order.
fn codes_of<const G: usize>(order: &[u8; G], split: Split) -> [u8; G] {
    let mut codes = [0u8; G];
    for (place, &i) in order.iter().enumerate() {
        codes[usize::from(i)] = u8::from(place >= split.first) + u8::from(place >= split.second);
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
    for (k, point) in points.iter_mut().enumerate() {
        let at = 8 * k..8 * k + 8;
        let mut of_point = [0; 8];
        of_point.copy_from_slice(&codes[at.clone()]);
        let (around, on_grid) = grid.around(Grid::<8>::pack(&of_point));
        all_on_grid &= on_grid;
        let [a, b, c] = *shifts(k);
        let values = [a, b, c, 0.0, a, b, c, 0.0];
        let packed = S::nearest::<8>(around, &values, scale, &x[at.clone()], &w[at]);
        *point = grid.index(packed);
    }
    if all_on_grid {
        return scale;
    }
    let (mut sumqx, mut sumq2) = (0f32, 0f32);
    for (k, &point) in points.iter().enumerate() {
        for (i, &code) in grid.codes[usize::from(point)].iter().enumerate() {
            let (q, w) = (shifts(k)[usize::from(code)], w[8 * k + i]);
            sumqx += w * q * x[8 * k + i];
            sumq2 += w * q * q;
        }
    }
    if sumqx > 0.0 && sumq2 > 0.0 { sumqx / sumq2 } else { scale }
}

/// The values of codes in the first and second eight of a group, by its pair of shifts:
/// up/up, up/down, down/up, down/down.
fn shift_of(pair: usize, half: usize) -> &'static [f32; 3] {
    if pair >> (1 - half) & 1 == 0 { &UP } else { &DOWN }
}

/// The bits in `qh` of each pair of shifts.
const SHIFT_BITS: [u8; 4] = [0x00, 0x80, 0x08, 0x88];

/// Writes the eight values of a point.
#[inline(always)]
fn values(grid: &Grid<8>, point: usize, scale: f32, delta: f32, out: &mut [f32]) {
    for (v, &code) in out.iter_mut().zip(&grid.codes[point]) {
        *v = scale * (f32::from(code) - 1.0 + delta);
    }
}

struct Small;

impl Blocks for Small {
    #[inline(always)]
    fn encode<S: Search>(x: &[f32], qw: Option<&[f32]>, out: &mut [u8]) {
        let grid = grid::iq1();
        let (row, mut squares) = (x, [0f32; ROWS]);
        for (b, (x, out)) in x.chunks_exact(N).zip(out.chunks_exact_mut(50)).enumerate() {
            out.fill(0);
            if b % ROWS == 0 {
                squares = S::row_squares(&row[N * b..], N);
            }
            let sigma2 = 2.0 * squares[b % ROWS] / N as f32;
            let mut scales = [0f32; 8];
            let mut high = [0u16; 8];
            for (g, x) in x.chunks_exact(32).enumerate() {
                // The caller makes sure that there is an importance.
                let w = weigh(x, qw.map(|qw| &qw[N * b + 32 * g..]), sigma2, 0.0);
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
                    codes.iter_mut().for_each(|c| *c = 2 - *c);
                    scale = -scale;
                    up = !up;
                }
                let shift = if up { &UP } else { &DOWN };
                let mut points = [0u16; 4];
                scales[g] = settle::<S, _>(grid, &codes, |_| shift, x, &w, scale, &mut points);
                for (k, &point) in points.iter().enumerate() {
                    out[2 + 4 * g + k] = point as u8;
                    high[g] |= (point >> 8) << (3 * k);
                }
                high[g] |= u16::from(!up) << 15;
            }
            let max_scale = largest(&scales);
            if max_scale == 0.0 {
                for (bytes, high) in out[34..].chunks_exact_mut(2).zip(high) {
                    bytes.copy_from_slice(&(high & 0xfff).to_le_bytes());
                }
                continue;
            }
            let d = max_scale / 15.0;
            out[..2].copy_from_slice(&f16_bits(d * 1.125));
            for (g, bytes) in out[34..].chunks_exact_mut(2).enumerate() {
                let word = high[g] | u16::from(scale_code(1.0 / d, scales[g], 7)) << 12;
                bytes.copy_from_slice(&word.to_le_bytes());
            }
        }
    }

    #[inline(always)]
    fn decode(bytes: &[u8], out: &mut [f32]) {
        let grid = grid::iq1();
        for (b, out) in bytes.chunks_exact(50).zip(out.chunks_exact_mut(N)) {
            let d = f16(b);
            for (p, out) in out.chunks_exact_mut(8).enumerate() {
                let (g, k) = (p / 4, p % 4);
                let word = u16::from_le_bytes([b[34 + 2 * g], b[35 + 2 * g]]);
                let scale = d * f32::from(2 * (word >> 12 & 7) + 1);
                let delta = if word >> 15 == 1 { -DELTA } else { DELTA };
                let high = usize::from(word >> (3 * k) & 7) << 8;
                values(grid, usize::from(b[2 + p]) | high, scale, delta, out);
            }
        }
    }
}

/// The scale of a block of IQ1_M, which is spread over the upper four bits of four words.
#[inline(always)]
fn scale(b: &[u8]) -> f32 {
    let nibble = |i: usize| u16::from(b[49 + 2 * i] >> 4) << (4 * i);
    f16(&(nibble(0) | nibble(1) | nibble(2) | nibble(3)).to_le_bytes())
}

struct Medium;

impl Blocks for Medium {
    #[inline(always)]
    fn encode<S: Search>(x: &[f32], qw: Option<&[f32]>, out: &mut [u8]) {
        let grid = grid::iq1();
        let (row, mut squares) = (x, [0f32; ROWS]);
        for (b, (x, out)) in x.chunks_exact(N).zip(out.chunks_exact_mut(56)).enumerate() {
            out.fill(0);
            if b % ROWS == 0 {
                squares = S::row_squares(&row[N * b..], N);
            }
            let sigma2 = 2.0 * squares[b % ROWS] / N as f32;
            let mut weights = [[0f32; 16]; 16];
            for (g, (weights, x)) in weights.iter_mut().zip(x.chunks_exact(16)).enumerate() {
                let w = weigh(x, qw.map(|qw| &qw[N * b + 16 * g..]), sigma2, 0.0);
                weights.copy_from_slice(&w[..16]);
            }
            let mut scales = [0f32; 16];
            let mut pairs = [0usize; 16];
            let mut all = [0u16; 32];
            for (g, x) in x.chunks_exact(16).enumerate() {
                if abs_max(x) < 1e-7 {
                    continue;
                }
                let w = weights[g];
                let order = ascending::<16>(x);
                let Some((mut scale, split)) = splits::best_of_two::<S>(x, &w, &order) else {
                    continue;
                };
                let mut pair = split.shift;
                let mut codes = codes_of(&order, split);
                if scale < 0.0 {
                    codes.iter_mut().for_each(|c| *c = 2 - *c);
                    scale = -scale;
                    pair = 3 - pair;
                }
                let points = &mut all[2 * g..2 * g + 2];
                scales[g] =
                    settle::<S, _>(grid, &codes, |k| shift_of(pair, k), x, &w, scale, points);
                pairs[g] = pair;
            }
            for (p, &point) in all.iter().enumerate() {
                out[p] = point as u8;
                out[32 + p / 2] |= ((point >> 8) as u8) << (4 * (p % 2));
            }
            let max_scale = largest(&scales);
            if max_scale == 0.0 {
                continue;
            }
            let mut d = max_scale / 15.0;
            let id = 1.0 / d;
            let (mut sumqx, mut sumq2) = (0f32, 0f32);
            let mut words = [0u16; 4];
            for (g, x) in x.chunks_exact(16).enumerate() {
                let code = scale_code(id, scales[g], 7);
                words[g / 4] |= u16::from(code) << (3 * (g % 4));
                out[32 + g] |= SHIFT_BITS[pairs[g]];
                let w = weights[g];
                for k in 0..2 {
                    let codes = grid.codes[usize::from(all[2 * g + k])];
                    for (i, code_of_value) in (8 * k..).zip(codes) {
                        let value = shift_of(pairs[g], k)[usize::from(code_of_value)];
                        let q = value * f32::from(2 * code + 1);
                        sumqx += w[i] * q * x[i];
                        sumq2 += w[i] * q * q;
                    }
                }
            }
            if sumq2 > 0.0 {
                d = sumqx / sumq2;
            }
            let d = u16::from_le_bytes(f16_bits(d * 1.1125));
            for (i, bytes) in out[48..].chunks_exact_mut(2).enumerate() {
                let word = words[i] | (d >> (4 * i) & 15) << 12;
                bytes.copy_from_slice(&word.to_le_bytes());
            }
        }
    }

    #[inline(always)]
    fn decode(bytes: &[u8], out: &mut [f32]) {
        let grid = grid::iq1();
        for (b, out) in bytes.chunks_exact(56).zip(out.chunks_exact_mut(N)) {
            let word = |i: usize| u16::from_le_bytes([b[48 + 2 * i], b[49 + 2 * i]]);
            let d = scale(b);
            for (p, out) in out.chunks_exact_mut(8).enumerate() {
                let g = p / 2;
                let scale = d * f32::from(2 * (word(g / 4) >> (3 * (g % 4)) & 7) + 1);
                let bits = b[32 + g] >> (4 * (p % 2)) & 15;
                let delta = if bits & 8 != 0 { -DELTA } else { DELTA };
                let point = usize::from(b[p]) | usize::from(bits & 7) << 8;
                values(grid, point, scale, delta, out);
            }
        }
    }
}
