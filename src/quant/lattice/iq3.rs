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

use super::grid::{self, Grid};
use super::magnitudes::{
    Candidates, Magnitudes, Refine, largest, nibble, of_group, pack_scales, put_seven, scale_code,
    signed, taken_apart, weigh, with_parity,
};
use super::{Each, N, Search, SuperBlocks};
use crate::quant::float::{f16, put_f16};
use crate::quant::format::{Activation, Format, Importance, Kind, Numbers};
use crate::quant::groups::{Group, Grouped, groups};
use crate::quant::kernels::levels;
use crate::quant::rounding::{self, Points, Scalar, rounding};
use crate::quant::types::QuantType;

#[rustfmt::skip]
pub(in crate::quant) const FORMATS: &[Format] = &[
    Format {
        ty: QuantType::IQ3_XXS, kind: Kind::Blocks, len: 256, bytes: 98,
        numbers: Numbers::halves(&[0]), importance: Importance::Wanted,
        activations: Activation::Q8_K, fallback: Some(QuantType::IQ4_NL), cost: [70.0; 2],
        kernels: Some(levels::<Each<Xxs, 32, 98>>()),
        rounding: Some(rounding::<Xxs, 256, 32, 98>()),
        groups: groups::<Xxs, 98>(),
    },
    Format {
        ty: QuantType::IQ3_S, kind: Kind::Blocks, len: 256, bytes: 110,
        numbers: Numbers::halves(&[0]), importance: Importance::Weighs,
        activations: Activation::Q8_K, fallback: Some(QuantType::IQ4_NL), cost: [70.0; 2],
        kernels: Some(levels::<Each<Small, 32, 110>>()),
        rounding: Some(rounding::<Small, 256, 32, 110>()),
        groups: groups::<Small, 110>(),
    },
];

/// The magnitudes of codes in IQ3_XXS.
const XXS_VALUES: [i8; 8] = [4, 12, 20, 28, 36, 44, 52, 62];
/// The magnitudes of codes in IQ3_S.
const S_VALUES: [i8; 8] = [1, 3, 5, 7, 9, 11, 13, 15];

/// The codes of eight values from two points, from `at` on.
#[inline(always)]
fn signed_codes(
    grid: &Grid<4>,
    points: [usize; 2],
    magnitudes: &[i8; 8],
    signs: u8,
    at: usize,
    out: &mut [i8; 32],
) {
    for half in 0..2 {
        let codes = &grid.codes[points[half]];
        for i in 0..4 {
            let (magnitude, i) = (magnitudes[usize::from(codes[i])], 4 * half + i);
            out[at + i] = signed(magnitude, signs, i);
        }
    }
}

struct Xxs;

impl SuperBlocks<98> for Xxs {
    const MEAN: f32 = 2.0;
    type Scratch<S: Search> = S::Scratch;

    #[inline(always)]
    fn encode<S: Search>(
        x: &[f32; N],
        qw: Option<&[f32]>,
        sigma2: f32,
        scratch: &mut S::Scratch,
        out: &mut [u8; 98],
    ) {
        let grid = grid::iq3_xxs();
        let mut scales = [0f32; 8];
        let mut words = [0u32; 8];
        let mut all = [0u16; 64];
        for g in 0..8 {
            let x = &x[32 * g..][..32];
            let w = weigh(x, of_group::<32>(qw, 32 * g), sigma2, 0.0);
            let mut group = Magnitudes::new(x, w, true);
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
                scratch,
            );
            if scale < 0.0 {
                group.flip(127);
            }
            scales[g] = scale.abs();
            for k in 0..4 {
                words[g] |= u32::from(group.signs[k]) << (7 * k);
            }
        }
        let max_scale = largest(&scales);
        if max_scale == 0.0 {
            return;
        }
        let d = max_scale / 31.0;
        put_f16(out, d * 1.0125);
        for p in 0..64 {
            out[2 + p] = all[p] as u8;
        }
        let out = out[66..].as_chunks_mut::<4>().0;
        for g in 0..8 {
            let word = words[g] | u32::from(scale_code(1.0 / d, scales[g], 15)) << 28;
            out[g] = word.to_le_bytes();
        }
    }
}

impl Grouped<32, 98> for Xxs {
    const OFFSETS: bool = false;
    const LARGEST: i16 = 62;

    #[inline(always)]
    fn group(b: &[u8; 98], g: usize) -> Group<32> {
        let grid = grid::iq3_xxs();
        let at = 66 + 4 * g;
        let word = u32::from_le_bytes([b[at], b[at + 1], b[at + 2], b[at + 3]]);
        let mut codes = [0; 32];
        for k in 0..4 {
            let p = 2 + 8 * g + 2 * k;
            let points = [usize::from(b[p]), usize::from(b[p + 1])];
            let signs = with_parity(word >> (7 * k));
            signed_codes(grid, points, &XXS_VALUES, signs, 8 * k, &mut codes);
        }
        Group { codes, scale: f16(b) * (0.5 + (word >> 28) as f32) * 0.5, offset: 0.0 }
    }

    #[inline(always)]
    fn units(b: &[u8; 98]) -> [f32; 2] {
        [f16(b) * 0.25, 0.0]
    }
}

impl Scalar<256, 32, 98> for Xxs {
    const GRID: rounding::Grid = rounding::Grid::Points(&Points {
        len: 4,
        magnitudes: &XXS_VALUES,
        even: true,
        around: |codes| grid::iq3_xxs().around(codes).0.points(),
    });

    #[inline(always)]
    fn pack(codes: &[u8; 256], out: &mut [u8; 98]) {
        let (grid, eights) = (grid::iq3_xxs(), codes.as_chunks::<8>().0);
        for p in 0..32 {
            let (signs, [first, second]) = taken_apart(grid, &XXS_VALUES, &eights[p]);
            out[2 + 2 * p] = first as u8;
            out[3 + 2 * p] = second as u8;
            put_seven(signs, p % 4, &mut out[66 + 4 * (p / 4)..]);
        }
    }
}

/// A group of zeros leaves no gap among the points and signs: those of the groups after it move
/// up, while `qh` and scales stay in place. So the reference does, and such super-blocks decode to
/// other values than they should.
struct Small;

impl SuperBlocks<110> for Small {
    const MEAN: f32 = 2.0;
    type Scratch<S: Search> = S::Scratch;

    #[inline(always)]
    fn encode<S: Search>(
        x: &[f32; N],
        qw: Option<&[f32]>,
        sigma2: f32,
        scratch: &mut S::Scratch,
        out: &mut [u8; 110],
    ) {
        let grid = grid::iq3_s();
        let mut scales = [0f32; 8];
        let mut written = 0;
        for g in 0..8 {
            let x = &x[32 * g..][..32];
            let w = weigh(x, of_group::<32>(qw, 32 * g), sigma2, 0.0);
            let mut group = Magnitudes::new(x, w, false);
            let max = group.max();
            if max == 0.0 {
                continue;
            }
            let candidates = Candidates { base: 15.0, step: 0.2, n: 9, max };
            let mut points = [0u16; 8];
            let refine = Refine::AllIfOffGrid;
            let scale =
                group.search::<S, _>(grid, &candidates, max / 15.0, refine, &mut points, scratch);
            if scale < 0.0 {
                group.flip(255);
            }
            scales[g] = scale.abs();
            for k in 0..8 {
                out[2 + 8 * written + k] = points[k] as u8;
                out[66 + g] |= ((points[k] >> 8) as u8) << k;
            }
            for k in 0..4 {
                out[74 + 4 * written + k] = group.signs[k];
            }
            written += 1;
        }
        let max_scale = largest(&scales);
        if max_scale == 0.0 {
            return;
        }
        let d = max_scale / 31.0;
        put_f16(out, d * 1.033);
        pack_scales(1.0 / d, &scales, &mut out[106..]);
    }
}

impl Grouped<32, 110> for Small {
    const OFFSETS: bool = false;
    const LARGEST: i16 = 15;

    #[inline(always)]
    fn group(b: &[u8; 110], g: usize) -> Group<32> {
        let grid = grid::iq3_s();
        let mut codes = [0; 32];
        for k in 0..4 {
            let mut points = [0; 2];
            for i in 0..2 {
                let p = 2 * k + i;
                points[i] = usize::from(b[2 + 8 * g + p]) | usize::from(b[66 + g] >> p & 1) << 8;
            }
            signed_codes(grid, points, &S_VALUES, b[74 + 4 * g + k], 8 * k, &mut codes);
        }
        let code = nibble(&b[106..], g);
        Group { codes, scale: f16(b) * f32::from(1 + 2 * code), offset: 0.0 }
    }

    #[inline(always)]
    fn units(b: &[u8; 110]) -> [f32; 2] {
        [f16(b), 0.0]
    }
}

impl Scalar<256, 32, 110> for Small {
    const GRID: rounding::Grid = rounding::Grid::Points(&Points {
        len: 4,
        magnitudes: &S_VALUES,
        even: false,
        around: |codes| grid::iq3_s().around(codes).0.points(),
    });

    #[inline(always)]
    fn pack(codes: &[u8; 256], out: &mut [u8; 110]) {
        let (grid, eights) = (grid::iq3_s(), codes.as_chunks::<8>().0);
        for p in 0..32 {
            let (signs, [first, second]) = taken_apart(grid, &S_VALUES, &eights[p]);
            for (i, point) in [(2 * p, first), (2 * p + 1, second)] {
                out[2 + i] = point as u8;
                let (high, shift) = (&mut out[66 + i / 8], i % 8);
                *high = *high & !(1 << shift) | ((point >> 8) as u8) << shift;
            }
            out[74 + p] = signs;
        }
    }
}
