//! IQ2_XXS, IQ2_XS, IQ2_S: eight magnitudes of 8, 25 or 43 as a point of a lattice.
//!
//! ```text
//! IQ2_XXS 66 bytes  d f16 | 8 x { points 4 × u8 | u32: signs 4 × 7 bits, scale in bits 28..32 }
//! IQ2_XS  74 bytes  d f16 | 32 × u16: point (9 bits), signs (7 bits) | scales 8: a nibble for 16
//! IQ2_S   82 bytes  d f16 | points 32: low 8 bits | signs 32 | qh 8: bits 8..10 of point p at bit
//!                   2(p%4) of byte p/4 | scales 8: a nibble for 16
//! ```
//! Values: `d · (s + 1/2) / 4 · magnitude · sign`. Seven signs stand for eight of even parity.
//! Formulas: `quantize_row_iq2_*_impl` and `dequantize_row_iq2_*` in `ggml-quants.c`.

use super::Search;
use super::grid::{self, Grid};
use super::magnitudes::{Candidates, Group, Refine, scale_code, signed, weigh, with_parity};
use crate::quant::float::{f16, f16_bits};
use crate::quant::format::{Activation, Format, Importance, Kind, Numbers};
use crate::quant::kernels::{Blocks, levels};
use crate::quant::search::{EPS, ROWS};
use crate::quant::types::QuantType;

#[rustfmt::skip]
pub(in crate::quant) const FORMATS: &[Format] = &[
    Format {
        ty: QuantType::IQ2_XXS, kind: Kind::Blocks, len: 256, bytes: 66,
        numbers: Numbers::halves(&[0]), importance: Importance::Required,
        activations: Activation::Q8_K, fallback: Some(QuantType::IQ4_NL), cost: [55.0; 2],
        kernels: Some(levels::<Xxs>()),
        groups: None,
    },
    Format {
        ty: QuantType::IQ2_XS, kind: Kind::Blocks, len: 256, bytes: 74,
        numbers: Numbers::halves(&[0]), importance: Importance::Required,
        activations: Activation::Q8_K, fallback: Some(QuantType::IQ4_NL), cost: [55.0; 2],
        kernels: Some(levels::<Xs>()),
        groups: None,
    },
    Format {
        ty: QuantType::IQ2_S, kind: Kind::Blocks, len: 256, bytes: 82,
        numbers: Numbers::halves(&[0]), importance: Importance::Wanted,
        activations: Activation::Q8_K, fallback: Some(QuantType::IQ4_NL), cost: [55.0; 2],
        kernels: Some(levels::<Small>()),
        groups: None,
    },
];

const N: usize = 256;
/// The magnitudes of codes.
const VALUES: [f32; 3] = [8.0, 25.0, 43.0];

/// The largest of scales that are not negative.
pub(super) fn largest(scales: &[f32]) -> f32 {
    scales.iter().fold(0f32, |max, &s| if max > s { max } else { s })
}

/// One value for each point of a group of two.
#[inline(always)]
fn pair<S: Search>(
    grid: &Grid<8>,
    group: &mut Group,
    mask: u8,
    points: &mut [u16; 2],
    scratch: &mut S::Scratch,
) -> f32 {
    let max = group.max();
    let candidates = Candidates { base: 5.0, step: 0.1, n: 9, max };
    let scale =
        group.search::<S, _>(grid, &candidates, max / 5.0, Refine::OffGrid, points, scratch);
    if scale < 0.0 {
        group.flip(mask);
    }
    scale.abs()
}

/// Two scale codes to a byte.
fn pack_scales(id: f32, scales: &[f32; 16], out: &mut [u8]) {
    for (byte, pair) in out.iter_mut().zip(scales.chunks_exact(2)) {
        *byte = scale_code(id, pair[0], 15) | scale_code(id, pair[1], 15) << 4;
    }
}

/// Writes the eight values of a point.
#[inline(always)]
fn values(grid: &Grid<8>, point: usize, signs: u8, scale: f32, out: &mut [f32]) {
    for (i, (v, &code)) in out.iter_mut().zip(&grid.codes[point]).enumerate() {
        *v = signed(scale * VALUES[usize::from(code)], signs, i);
    }
}

/// The factor of a group from its 4-bit code.
fn factor(d: f32, code: u8) -> f32 {
    d * (0.5 + f32::from(code)) * 0.25
}

/// The code of the 16 values that point `p` belongs to.
fn nibble(scales: &[u8], p: usize) -> u8 {
    scales[p / 4] >> (4 * (p / 2 % 2)) & 15
}

struct Xxs;

impl Blocks for Xxs {
    #[inline(always)]
    fn encode<S: Search>(x: &[f32], qw: Option<&[f32]>, out: &mut [u8]) {
        let grid = grid::iq2_xxs();
        let (row, mut squares) = (x, [0f32; ROWS]);
        let mut scratch = S::Scratch::default();
        for (b, (x, out)) in x.chunks_exact(N).zip(out.chunks_exact_mut(66)).enumerate() {
            out.fill(0);
            if b % ROWS == 0 {
                squares = S::row_squares(&row[N * b..], N);
            }
            let sigma2 = squares[b % ROWS] / N as f32;
            let mut scales = [0f32; 8];
            let mut words = [0u32; 16];
            for (g, x) in x.chunks_exact(32).enumerate() {
                let qw = qw.map(|qw| &qw[N * b + 32 * g..]);
                let mut group = Group::new(x, weigh(x, qw, sigma2, 0.0), true);
                if group.max() < EPS {
                    continue;
                }
                let first = S::positive::<32>(4, &group.x, &group.w, &mut [0; 32]);
                let max = first * 3.0;
                if max <= 0.0 {
                    continue;
                }
                let candidates = Candidates { base: 5.0, step: 0.1, n: 6, max };
                let mut points = [0u16; 4];
                let scale = group.search::<S, _>(
                    grid,
                    &candidates,
                    first,
                    Refine::Always,
                    &mut points,
                    &mut scratch,
                );
                if scale < 0.0 {
                    group.flip(127);
                }
                scales[g] = scale.abs();
                for (k, (point, signs)) in points.into_iter().zip(group.signs).enumerate() {
                    words[2 * g] |= u32::from(point) << (8 * k);
                    words[2 * g + 1] |= u32::from(signs) << (7 * k);
                }
            }
            let max_scale = largest(&scales);
            if max_scale == 0.0 {
                continue;
            }
            let d = max_scale / 31.0;
            out[..2].copy_from_slice(&f16_bits(d));
            for (g, &scale) in scales.iter().enumerate() {
                words[2 * g + 1] |= u32::from(scale_code(1.0 / d, scale, 15)) << 28;
            }
            for (bytes, word) in out[2..].chunks_exact_mut(4).zip(words) {
                bytes.copy_from_slice(&word.to_le_bytes());
            }
        }
    }

    #[inline(always)]
    fn decode(bytes: &[u8], out: &mut [f32]) {
        let grid = grid::iq2_xxs();
        for (b, out) in bytes.chunks_exact(66).zip(out.chunks_exact_mut(N)) {
            let d = f16(b);
            for (g, out) in b[2..].chunks_exact(8).zip(out.chunks_exact_mut(32)) {
                let word = u32::from_le_bytes([g[4], g[5], g[6], g[7]]);
                let scale = factor(d, (word >> 28) as u8);
                for (k, out) in out.chunks_exact_mut(8).enumerate() {
                    values(grid, usize::from(g[k]), with_parity(word >> (7 * k)), scale, out);
                }
            }
        }
    }
}

struct Xs;

impl Blocks for Xs {
    #[inline(always)]
    fn encode<S: Search>(x: &[f32], qw: Option<&[f32]>, out: &mut [u8]) {
        let grid = grid::iq2_xs();
        let (row, mut squares) = (x, [0f32; ROWS]);
        let mut scratch = S::Scratch::default();
        for (b, (x, out)) in x.chunks_exact(N).zip(out.chunks_exact_mut(74)).enumerate() {
            out.fill(0);
            if b % ROWS == 0 {
                squares = S::row_squares(&row[N * b..], N);
            }
            let sigma2 = squares[b % ROWS] / N as f32;
            let mut scales = [0f32; 16];
            let mut words = [0u16; 32];
            for (g, x) in x.chunks_exact(16).enumerate() {
                let qw = qw.map(|qw| &qw[N * b + 16 * g..]);
                let mut group = Group::new(x, weigh(x, qw, sigma2, 0.0), true);
                if group.max() < EPS {
                    continue;
                }
                let mut points = [0u16; 2];
                scales[g] = pair::<S>(grid, &mut group, 127, &mut points, &mut scratch);
                for (k, (point, signs)) in points.into_iter().zip(group.signs).enumerate() {
                    words[2 * g + k] = point | u16::from(signs) << 9;
                }
            }
            let max_scale = largest(&scales);
            if max_scale == 0.0 {
                continue;
            }
            let d = max_scale / 31.0;
            out[..2].copy_from_slice(&f16_bits(d));
            pack_scales(1.0 / d, &scales, &mut out[66..]);
            for (bytes, word) in out[2..66].chunks_exact_mut(2).zip(words) {
                bytes.copy_from_slice(&word.to_le_bytes());
            }
        }
    }

    #[inline(always)]
    fn decode(bytes: &[u8], out: &mut [f32]) {
        let grid = grid::iq2_xs();
        for (b, out) in bytes.chunks_exact(74).zip(out.chunks_exact_mut(N)) {
            let d = f16(b);
            for (p, out) in out.chunks_exact_mut(8).enumerate() {
                let word = u16::from_le_bytes([b[2 + 2 * p], b[3 + 2 * p]]);
                let scale = factor(d, nibble(&b[66..], p));
                values(grid, usize::from(word & 511), with_parity((word >> 9).into()), scale, out);
            }
        }
    }
}

struct Small;

impl Blocks for Small {
    #[inline(always)]
    fn encode<S: Search>(x: &[f32], qw: Option<&[f32]>, out: &mut [u8]) {
        let grid = grid::iq2_s();
        let (row, mut squares) = (x, [0f32; ROWS]);
        let mut scratch = S::Scratch::default();
        for (b, (x, out)) in x.chunks_exact(N).zip(out.chunks_exact_mut(82)).enumerate() {
            out.fill(0);
            if b % ROWS == 0 {
                squares = S::row_squares(&row[N * b..], N);
            }
            let sigma2 = 2.0 * squares[b % ROWS] / N as f32;
            let mut scales = [0f32; 16];
            for (g, x) in x.chunks_exact(16).enumerate() {
                let qw = qw.map(|qw| &qw[N * b + 16 * g..]);
                let mut group = Group::new(x, weigh(x, qw, sigma2, 0.25 * sigma2), false);
                if group.max() < 1e-8 {
                    continue;
                }
                let mut points = [0u16; 2];
                scales[g] = pair::<S>(grid, &mut group, 255, &mut points, &mut scratch);
                for (p, (point, signs)) in (2 * g..).zip(points.into_iter().zip(group.signs)) {
                    out[2 + p] = point as u8;
                    out[66 + p / 4] |= ((point >> 8) as u8) << (2 * (p % 4));
                    out[34 + p] = signs;
                }
            }
            let max_scale = largest(&scales);
            if max_scale == 0.0 {
                continue;
            }
            let d = max_scale / 31.0;
            out[..2].copy_from_slice(&f16_bits(d * 0.9875));
            pack_scales(1.0 / d, &scales, &mut out[74..]);
        }
    }

    #[inline(always)]
    fn decode(bytes: &[u8], out: &mut [f32]) {
        let grid = grid::iq2_s();
        for (b, out) in bytes.chunks_exact(82).zip(out.chunks_exact_mut(N)) {
            let d = f16(b);
            for (p, out) in out.chunks_exact_mut(8).enumerate() {
                let high = usize::from(b[66 + p / 4] >> (2 * (p % 4)) & 3) << 8;
                let scale = factor(d, nibble(&b[74..], p));
                values(grid, usize::from(b[2 + p]) | high, b[34 + p], scale, out);
            }
        }
    }
}
