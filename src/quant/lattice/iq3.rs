//! IQ3_XXS, IQ3_S: four magnitudes as a point of a lattice.
//!
//! ```text
//! IQ3_XXS 98 bytes  d f16 | points 64 × u8 | 8 × u32: signs 4 × 7 bits, scale in bits 28..32
//! IQ3_S  110 bytes  d f16 | points 64: low 8 bits | qh 8: bit 8 of point p at bit p%8 of byte p/8
//!                   | signs 32: a byte for 8 | scales 4: a nibble for 32
//! ```
//! Values: `d · (s + 1/2) / 2 · magnitude · sign` and `d · (2s + 1) · magnitude · sign`. Seven
//! signs stand for eight of even parity.
//! Formulas: `quantize_row_iq3_*_impl` and `dequantize_row_iq3_*` in `ggml-quants.c`.

use super::Search;
use super::grid::{self, Grid};
use super::iq2::largest;
use super::magnitudes::{Candidates, Group, Refine, scale_code, signed, weigh, with_parity};
use crate::quant::float::{f16, f16_bits};
use crate::quant::format::{Activation, Format, Importance, Kind, Numbers};
use crate::quant::kernels::{Blocks, levels};
use crate::quant::search::ROWS;
use crate::quant::types::QuantType;

#[rustfmt::skip]
pub(in crate::quant) const FORMATS: &[Format] = &[
    Format {
        ty: QuantType::IQ3_XXS, kind: Kind::Blocks, len: 256, bytes: 98,
        numbers: Numbers::halves(&[0]), importance: Importance::Wanted,
        activations: Activation::Q8_K, fallback: Some(QuantType::IQ4_NL), cost: [70.0; 2],
        kernels: Some(levels::<Xxs>()),
        groups: None,
    },
    Format {
        ty: QuantType::IQ3_S, kind: Kind::Blocks, len: 256, bytes: 110,
        numbers: Numbers::halves(&[0]), importance: Importance::Weighs,
        activations: Activation::Q8_K, fallback: Some(QuantType::IQ4_NL), cost: [70.0; 2],
        kernels: Some(levels::<Small>()),
        groups: None,
    },
];

const N: usize = 256;
/// The magnitudes of codes in IQ3_XXS.
const XXS_VALUES: [f32; 8] = [4.0, 12.0, 20.0, 28.0, 36.0, 44.0, 52.0, 62.0];
/// The magnitudes of codes in IQ3_S.
const S_VALUES: [f32; 8] = [1.0, 3.0, 5.0, 7.0, 9.0, 11.0, 13.0, 15.0];

/// Writes eight values from two points.
#[inline(always)]
fn values(
    grid: &Grid<4>,
    points: [usize; 2],
    magnitudes: &[f32; 8],
    signs: u8,
    scale: f32,
    out: &mut [f32],
) {
    let codes = points.iter().flat_map(|&point| grid.codes[point]);
    for (i, (v, code)) in out.iter_mut().zip(codes).enumerate() {
        *v = signed(scale * magnitudes[usize::from(code)], signs, i);
    }
}

struct Xxs;

impl Blocks for Xxs {
    #[inline(always)]
    fn encode<S: Search>(x: &[f32], qw: Option<&[f32]>, out: &mut [u8]) {
        let grid = grid::iq3_xxs();
        let (row, mut squares) = (x, [0f32; ROWS]);
        let mut scratch = S::Scratch::default();
        for (b, (x, out)) in x.chunks_exact(N).zip(out.chunks_exact_mut(98)).enumerate() {
            out.fill(0);
            if b % ROWS == 0 {
                squares = S::row_squares(&row[N * b..], N);
            }
            let sigma2 = 2.0 * squares[b % ROWS] / N as f32;
            let mut scales = [0f32; 8];
            let mut words = [0u32; 8];
            let mut all = [0u16; 64];
            for (g, x) in x.chunks_exact(32).enumerate() {
                let qw = qw.map(|qw| &qw[N * b + 32 * g..]);
                let mut group = Group::new(x, weigh(x, qw, sigma2, 0.0), true);
                let max = group.max();
                if max < 1e-8 {
                    continue;
                }
                let candidates = Candidates { base: 15.0, step: 0.2, n: 15, max };
                let points = &mut all[8 * g..8 * g + 8];
                let scale = group.search::<S, _>(
                    grid,
                    &candidates,
                    max / 15.0,
                    Refine::OffGrid,
                    points,
                    &mut scratch,
                );
                if scale < 0.0 {
                    group.flip(127);
                }
                scales[g] = scale.abs();
                for (k, &signs) in group.signs.iter().enumerate() {
                    words[g] |= u32::from(signs) << (7 * k);
                }
            }
            let max_scale = largest(&scales);
            if max_scale == 0.0 {
                continue;
            }
            let d = max_scale / 31.0;
            out[..2].copy_from_slice(&f16_bits(d * 1.0125));
            for (byte, point) in out[2..66].iter_mut().zip(all) {
                *byte = point as u8;
            }
            for (g, bytes) in out[66..].chunks_exact_mut(4).enumerate() {
                let word = words[g] | u32::from(scale_code(1.0 / d, scales[g], 15)) << 28;
                bytes.copy_from_slice(&word.to_le_bytes());
            }
        }
    }

    #[inline(always)]
    fn decode(bytes: &[u8], out: &mut [f32]) {
        let grid = grid::iq3_xxs();
        for (b, out) in bytes.chunks_exact(98).zip(out.chunks_exact_mut(N)) {
            let d = f16(b);
            for (g, out) in out.chunks_exact_mut(32).enumerate() {
                let at = 66 + 4 * g;
                let word = u32::from_le_bytes([b[at], b[at + 1], b[at + 2], b[at + 3]]);
                let scale = d * (0.5 + (word >> 28) as f32) * 0.5;
                for (k, out) in out.chunks_exact_mut(8).enumerate() {
                    let points = [0, 1].map(|i| usize::from(b[2 + 8 * g + 2 * k + i]));
                    values(grid, points, &XXS_VALUES, with_parity(word >> (7 * k)), scale, out);
                }
            }
        }
    }
}

/// A group of zeros leaves no gap among the points and signs: those of the groups after it move
/// up, while `qh` and scales stay in place. So the reference does, and such super-blocks decode to
/// other values than they should.
struct Small;

impl Blocks for Small {
    #[inline(always)]
    fn encode<S: Search>(x: &[f32], qw: Option<&[f32]>, out: &mut [u8]) {
        let grid = grid::iq3_s();
        let (row, mut squares) = (x, [0f32; ROWS]);
        let mut scratch = S::Scratch::default();
        for (b, (x, out)) in x.chunks_exact(N).zip(out.chunks_exact_mut(110)).enumerate() {
            out.fill(0);
            if b % ROWS == 0 {
                squares = S::row_squares(&row[N * b..], N);
            }
            let sigma2 = 2.0 * squares[b % ROWS] / N as f32;
            let mut scales = [0f32; 8];
            let mut written = 0;
            for (g, x) in x.chunks_exact(32).enumerate() {
                let qw = qw.map(|qw| &qw[N * b + 32 * g..]);
                let mut group = Group::new(x, weigh(x, qw, sigma2, 0.0), false);
                let max = group.max();
                if max == 0.0 {
                    continue;
                }
                let candidates = Candidates { base: 15.0, step: 0.2, n: 9, max };
                let mut points = [0u16; 8];
                let refine = Refine::AllIfOffGrid;
                let scale = group.search::<S, _>(
                    grid,
                    &candidates,
                    max / 15.0,
                    refine,
                    &mut points,
                    &mut scratch,
                );
                if scale < 0.0 {
                    group.flip(255);
                }
                scales[g] = scale.abs();
                for (k, point) in points.into_iter().enumerate() {
                    out[2 + 8 * written + k] = point as u8;
                    out[66 + g] |= ((point >> 8) as u8) << k;
                }
                out[74 + 4 * written..78 + 4 * written].copy_from_slice(&group.signs);
                written += 1;
            }
            let max_scale = largest(&scales);
            if max_scale == 0.0 {
                continue;
            }
            let d = max_scale / 31.0;
            out[..2].copy_from_slice(&f16_bits(d * 1.033));
            for (byte, pair) in out[106..].iter_mut().zip(scales.chunks_exact(2)) {
                *byte = scale_code(1.0 / d, pair[0], 15) | scale_code(1.0 / d, pair[1], 15) << 4;
            }
        }
    }

    #[inline(always)]
    fn decode(bytes: &[u8], out: &mut [f32]) {
        let grid = grid::iq3_s();
        for (b, out) in bytes.chunks_exact(110).zip(out.chunks_exact_mut(N)) {
            let d = f16(b);
            for (k, out) in out.chunks_exact_mut(8).enumerate() {
                let g = k / 4;
                let code = b[106 + g / 2] >> (4 * (g % 2)) & 15;
                let points = [0, 1].map(|i| {
                    let p = 2 * k + i;
                    usize::from(b[2 + p]) | usize::from(b[66 + p / 8] >> (p % 8) & 1) << 8
                });
                values(grid, points, &S_VALUES, b[74 + k], d * f32::from(1 + 2 * code), out);
            }
        }
    }
}
