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

use super::grid::{self, Grid};
use super::magnitudes::{
    Candidates, Magnitudes, Refine, largest, nibble, of_group, pack_scales, put_seven, scale_code,
    signed, taken_apart, weigh, with_parity,
};
use super::{Each, N, Search, SuperBlocks};
use crate::quant::float::{f16, put_f16};
use crate::quant::format::{Activation, Format, Importance, Kind, Numbers};
use crate::quant::groups::{Group, Grouped, groups, groups_of_16};
use crate::quant::kernels::levels;
use crate::quant::rounding::{self, Points, Scalar, rounding};
use crate::quant::search::EPS;
use crate::quant::types::QuantType;

#[rustfmt::skip]
pub(in crate::quant) const FORMATS: &[Format] = &[
    Format {
        ty: QuantType::IQ2_XXS, kind: Kind::Blocks, len: 256, bytes: 66,
        numbers: Numbers::halves(&[0]), importance: Importance::Required,
        activations: Activation::Q8_K, fallback: Some(QuantType::IQ4_NL), cost: [55.0; 2],
        kernels: Some(levels::<Each<Xxs, 32, 66>>()),
        rounding: Some(rounding::<Xxs, 256, 32, 66>()),
        groups: groups::<Xxs, 66>(),
    },
    Format {
        ty: QuantType::IQ2_XS, kind: Kind::Blocks, len: 256, bytes: 74,
        numbers: Numbers::halves(&[0]), importance: Importance::Required,
        activations: Activation::Q8_K, fallback: Some(QuantType::IQ4_NL), cost: [55.0; 2],
        kernels: Some(levels::<Each<Xs, 16, 74>>()),
        rounding: Some(rounding::<Xs, 256, 16, 74>()),
        groups: groups_of_16::<Xs, 74>(),
    },
    Format {
        ty: QuantType::IQ2_S, kind: Kind::Blocks, len: 256, bytes: 82,
        numbers: Numbers::halves(&[0]), importance: Importance::Wanted,
        activations: Activation::Q8_K, fallback: Some(QuantType::IQ4_NL), cost: [55.0; 2],
        kernels: Some(levels::<Each<Small, 16, 82>>()),
        rounding: Some(rounding::<Small, 256, 16, 82>()),
        groups: groups_of_16::<Small, 82>(),
    },
];

/// The magnitudes of codes.
const VALUES: [i8; 3] = [8, 25, 43];

/// One value for each point of a group of two.
#[inline(always)]
fn pair<S: Search>(
    grid: &Grid<8>,
    group: &mut Magnitudes,
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

/// The codes of a point's values, from `at` on.
#[inline(always)]
fn signed_codes<const G: usize>(
    grid: &Grid<8>,
    point: usize,
    signs: u8,
    at: usize,
    out: &mut [i8; G],
) {
    let codes = &grid.codes[point];
    for i in 0..8 {
        out[at + i] = signed(VALUES[usize::from(codes[i])], signs, i);
    }
}

/// The factor of a group from its 4-bit code.
#[inline(always)]
fn factor(d: f32, code: u8) -> f32 {
    d * (0.5 + f32::from(code)) * 0.25
}

struct Xxs;

impl SuperBlocks<66> for Xxs {
    const MEAN: f32 = 1.0;
    type Scratch<S: Search> = S::Scratch;

    #[inline(always)]
    fn encode<S: Search>(
        x: &[f32; N],
        qw: Option<&[f32]>,
        sigma2: f32,
        scratch: &mut S::Scratch,
        out: &mut [u8; 66],
    ) {
        let grid = grid::iq2_xxs();
        let mut scales = [0f32; 8];
        let mut words = [0u32; 16];
        for g in 0..8 {
            let x = &x[32 * g..][..32];
            let w = weigh(x, of_group::<32>(qw, 32 * g), sigma2, 0.0);
            let mut group = Magnitudes::new(x, w, true);
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
                scratch,
            );
            if scale < 0.0 {
                group.flip(127);
            }
            scales[g] = scale.abs();
            for k in 0..4 {
                words[2 * g] |= u32::from(points[k]) << (8 * k);
                words[2 * g + 1] |= u32::from(group.signs[k]) << (7 * k);
            }
        }
        let max_scale = largest(&scales);
        if max_scale == 0.0 {
            return;
        }
        let d = max_scale / 31.0;
        put_f16(out, d);
        for g in 0..8 {
            words[2 * g + 1] |= u32::from(scale_code(1.0 / d, scales[g], 15)) << 28;
        }
        let out = out[2..].as_chunks_mut::<4>().0;
        for i in 0..16 {
            out[i] = words[i].to_le_bytes();
        }
    }
}

impl Grouped<32, 66> for Xxs {
    const OFFSETS: bool = false;
    const LARGEST: i16 = 43;

    #[inline(always)]
    fn group(b: &[u8; 66], g: usize) -> Group<32> {
        let grid = grid::iq2_xxs();
        let of_group = &b[2 + 8 * g..][..8];
        let word = u32::from_le_bytes([of_group[4], of_group[5], of_group[6], of_group[7]]);
        let mut codes = [0; 32];
        for k in 0..4 {
            let signs = with_parity(word >> (7 * k));
            signed_codes(grid, usize::from(of_group[k]), signs, 8 * k, &mut codes);
        }
        Group { codes, scale: factor(f16(b), (word >> 28) as u8), offset: 0.0 }
    }

    #[inline(always)]
    fn units(b: &[u8; 66]) -> [f32; 2] {
        [factor(f16(b), 0), 0.0]
    }
}

impl Scalar<256, 32, 66> for Xxs {
    const GRID: rounding::Grid = rounding::Grid::Points(&Points {
        len: 8,
        magnitudes: &VALUES,
        even: true,
        around: |codes| grid::iq2_xxs().around(codes).0.points(),
    });

    #[inline(always)]
    fn pack(codes: &[u8; 256], out: &mut [u8; 66]) {
        let (grid, eights) = (grid::iq2_xxs(), codes.as_chunks::<8>().0);
        for p in 0..32 {
            let (signs, [point]) = taken_apart(grid, &VALUES, &eights[p]);
            let (g, k) = (p / 4, p % 4);
            let of_group = &mut out[2 + 8 * g..][..8];
            of_group[k] = point as u8;
            put_seven(signs, k, &mut of_group[4..]);
        }
    }
}

struct Xs;

impl SuperBlocks<74> for Xs {
    const MEAN: f32 = 1.0;
    type Scratch<S: Search> = S::Scratch;

    #[inline(always)]
    fn encode<S: Search>(
        x: &[f32; N],
        qw: Option<&[f32]>,
        sigma2: f32,
        scratch: &mut S::Scratch,
        out: &mut [u8; 74],
    ) {
        let grid = grid::iq2_xs();
        let mut scales = [0f32; 16];
        let mut words = [0u16; 32];
        for g in 0..16 {
            let x = &x[16 * g..][..16];
            let w = weigh(x, of_group::<16>(qw, 16 * g), sigma2, 0.0);
            let mut group = Magnitudes::new(x, w, true);
            if group.max() < EPS {
                continue;
            }
            let mut points = [0u16; 2];
            scales[g] = pair::<S>(grid, &mut group, 127, &mut points, scratch);
            for k in 0..2 {
                words[2 * g + k] = points[k] | u16::from(group.signs[k]) << 9;
            }
        }
        let max_scale = largest(&scales);
        if max_scale == 0.0 {
            return;
        }
        let d = max_scale / 31.0;
        put_f16(out, d);
        pack_scales(1.0 / d, &scales, &mut out[66..]);
        let out = out[2..66].as_chunks_mut::<2>().0;
        for p in 0..32 {
            out[p] = words[p].to_le_bytes();
        }
    }
}

impl Grouped<16, 74> for Xs {
    const OFFSETS: bool = false;
    const LARGEST: i16 = 43;

    #[inline(always)]
    fn group(b: &[u8; 74], g: usize) -> Group<16> {
        let grid = grid::iq2_xs();
        let mut codes = [0; 16];
        for k in 0..2 {
            let at = 2 + 4 * g + 2 * k;
            let word = u16::from_le_bytes([b[at], b[at + 1]]);
            let signs = with_parity((word >> 9).into());
            signed_codes(grid, usize::from(word & 511), signs, 8 * k, &mut codes);
        }
        Group { codes, scale: factor(f16(b), nibble(&b[66..], g)), offset: 0.0 }
    }

    #[inline(always)]
    fn units(b: &[u8; 74]) -> [f32; 2] {
        [factor(f16(b), 0), 0.0]
    }
}

impl Scalar<256, 16, 74> for Xs {
    const GRID: rounding::Grid = rounding::Grid::Points(&Points {
        len: 8,
        magnitudes: &VALUES,
        even: true,
        around: |codes| grid::iq2_xs().around(codes).0.points(),
    });

    #[inline(always)]
    fn pack(codes: &[u8; 256], out: &mut [u8; 74]) {
        let (grid, eights) = (grid::iq2_xs(), codes.as_chunks::<8>().0);
        for p in 0..32 {
            let (signs, [point]) = taken_apart(grid, &VALUES, &eights[p]);
            let word = point | u16::from(signs & 127) << 9;
            out[2 + 2 * p..][..2].copy_from_slice(&word.to_le_bytes());
        }
    }
}

struct Small;

impl SuperBlocks<82> for Small {
    const MEAN: f32 = 2.0;
    type Scratch<S: Search> = S::Scratch;

    #[inline(always)]
    fn encode<S: Search>(
        x: &[f32; N],
        qw: Option<&[f32]>,
        sigma2: f32,
        scratch: &mut S::Scratch,
        out: &mut [u8; 82],
    ) {
        let grid = grid::iq2_s();
        let mut scales = [0f32; 16];
        for g in 0..16 {
            let x = &x[16 * g..][..16];
            let w = weigh(x, of_group::<16>(qw, 16 * g), sigma2, 0.25 * sigma2);
            let mut group = Magnitudes::new(x, w, false);
            if group.max() < 1e-8 {
                continue;
            }
            let mut points = [0u16; 2];
            scales[g] = pair::<S>(grid, &mut group, 255, &mut points, scratch);
            for k in 0..2 {
                let p = 2 * g + k;
                out[2 + p] = points[k] as u8;
                out[66 + p / 4] |= ((points[k] >> 8) as u8) << (2 * (p % 4));
                out[34 + p] = group.signs[k];
            }
        }
        let max_scale = largest(&scales);
        if max_scale == 0.0 {
            return;
        }
        let d = max_scale / 31.0;
        put_f16(out, d * 0.9875);
        pack_scales(1.0 / d, &scales, &mut out[74..]);
    }
}

impl Grouped<16, 82> for Small {
    const OFFSETS: bool = false;
    const LARGEST: i16 = 43;

    #[inline(always)]
    fn group(b: &[u8; 82], g: usize) -> Group<16> {
        let grid = grid::iq2_s();
        let mut codes = [0; 16];
        for k in 0..2 {
            let p = 2 * g + k;
            let point =
                usize::from(b[2 + p]) | usize::from(b[66 + p / 4] >> (2 * (p % 4)) & 3) << 8;
            signed_codes(grid, point, b[34 + p], 8 * k, &mut codes);
        }
        Group { codes, scale: factor(f16(b), nibble(&b[74..], g)), offset: 0.0 }
    }

    #[inline(always)]
    fn units(b: &[u8; 82]) -> [f32; 2] {
        [factor(f16(b), 0), 0.0]
    }
}

impl Scalar<256, 16, 82> for Small {
    const GRID: rounding::Grid = rounding::Grid::Points(&Points {
        len: 8,
        magnitudes: &VALUES,
        even: false,
        around: |codes| grid::iq2_s().around(codes).0.points(),
    });

    #[inline(always)]
    fn pack(codes: &[u8; 256], out: &mut [u8; 82]) {
        let (grid, eights) = (grid::iq2_s(), codes.as_chunks::<8>().0);
        for p in 0..32 {
            let (signs, [point]) = taken_apart(grid, &VALUES, &eights[p]);
            let (high, shift) = (&mut out[66 + p / 4], 2 * (p % 4));
            *high = *high & !(3 << shift) | ((point >> 8) as u8) << shift;
            out[2 + p] = point as u8;
            out[34 + p] = signs;
        }
    }
}
