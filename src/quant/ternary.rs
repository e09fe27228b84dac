//! One scale and codes of one or two bits, or a trit: TQ1_0, TQ2_0, Q1_0, Q2_0.
//!
//! ```text
//! TQ1_0 54 bytes  qs 48 | qh 4 | d f16   block of 256, value (q - 1)·d, q = 0, 1, 2
//!   qs[m], m < 32     elements m + 32n        n = 0..5, first trit most significant
//!   qs[32+m], m < 16  elements 160 + m + 16n  n = 0..5
//!   qh[j]             elements 240 + j + 4n   n = 0..4, the fifth trit is 0
//!   a byte is ceil(256/243 · the five trits read as a number), so that multiplying by 3 leaves
//!   the next trit in bits 8 and 9
//! TQ2_0 66 bytes  qs 64 | d f16          block of 256, value (q - 1)·d
//!   qs[32h+m]         7 6   5 4   3 2   1 0
//!     128h+m+         96    64    32    0
//! Q1_0  18 bytes  d f16 | qs 16          block of 128, value ±d
//!   qs[j] bit i       element 8j+i, 1 = positive
//! Q2_0  18 bytes  d f16 | qs 16          block of 64, value (q - 1)·d
//!   qs[j]             7 6: 4j+3   5 4: 4j+2   3 2: 4j+1   1 0: 4j
//! ```
//! Importances are ignored (`quantize_row_{tq1_0,tq2_0,q1_0,q2_0}_ref`).

use super::float::{abs_max, f16, put_f16};
use super::format::{Activation, Format, Importance, Kind, Numbers};
use super::groups::{Group, Grouped, decode, groups, groups_of_16};
use super::guide::Guide;
use super::k_min::pack_pairs;
use super::kernels::{Blocks, levels};
use super::lattice::Search;
use super::rounding::{Grid, Scalar, rounding};
use super::search::{inverse, round_away, round_to_byte};
use super::types::QuantType;

#[rustfmt::skip]
pub(super) const FORMATS: &[Format] = &[
    Format {
        ty: QuantType::TQ1_0, kind: Kind::Blocks, len: 256, bytes: 54,
        numbers: Numbers::halves(&[52]), importance: Importance::Ignored,
        activations: Activation::Q8_K, fallback: Some(QuantType::Q4_0), cost: [1.5; 2],
        kernels: Some(levels::<Tq1>()),
        rounding: Some(rounding::<Tq1, 256, 16, 54>()),
        groups: groups_of_16::<Tq1, 54>(),
    },
    Format {
        ty: QuantType::TQ2_0, kind: Kind::Blocks, len: 256, bytes: 66,
        numbers: Numbers::halves(&[64]), importance: Importance::Ignored,
        activations: Activation::Q8_K, fallback: Some(QuantType::Q4_0), cost: [1.5; 2],
        kernels: Some(levels::<Tq2>()),
        rounding: Some(rounding::<Tq2, 256, 32, 66>()),
        groups: groups::<Tq2, 66>(),
    },
    Format {
        ty: QuantType::Q1_0, kind: Kind::Blocks, len: 128, bytes: 18,
        numbers: Numbers::halves(&[0]), importance: Importance::Ignored,
        activations: Activation::Q8_0, fallback: None, cost: [1.5; 2],
        kernels: Some(levels::<Q1>()),
        rounding: Some(rounding::<Q1, 128, 32, 18>()),
        groups: groups::<Q1, 18>(),
    },
    Format {
        ty: QuantType::Q2_0, kind: Kind::Blocks, len: 64, bytes: 18,
        numbers: Numbers::halves(&[0]), importance: Importance::Ignored,
        activations: Activation::Q8_0, fallback: Some(QuantType::Q4_0), cost: [1.5; 2],
        kernels: Some(levels::<Q2>()),
        rounding: Some(rounding::<Q2, 64, 32, 18>()),
        groups: groups::<Q2, 18>(),
    },
];

#[inline(always)]
fn trit(x: f32, id: f32) -> u8 {
    round_to_byte(x * id).wrapping_add(1)
}

/// A run of TQ1_0: as many bytes, each of which holds trits of so many elements, a run's bytes apart.
#[inline(always)]
fn pack_trits<const BYTES: usize, const TRITS: usize>(codes: &[u8], out: &mut [u8]) {
    let (codes, out) = (&codes[..BYTES * TRITS], &mut out[..BYTES]);
    for m in 0..BYTES {
        let mut q = 0u8;
        for n in 0..TRITS {
            q = q.wrapping_mul(3).wrapping_add(codes[m + n * BYTES]);
        }
        for _ in TRITS..5 {
            q = q.wrapping_mul(3);
        }
        out[m] = (u32::from(q) * 256).div_ceil(243) as u8;
    }
}

struct Tq1;

impl Scalar<256, 16, 54> for Tq1 {
    const GRID: Grid = Grid::Whole(-1, 1);

    #[inline(always)]
    fn pack(codes: &[u8; 256], out: &mut [u8; 54]) {
        pack_trits::<32, 5>(codes, out);
        pack_trits::<16, 5>(&codes[160..], &mut out[32..]);
        pack_trits::<4, 4>(&codes[240..], &mut out[48..]);
    }
}

impl Blocks for Tq1 {
    #[inline(always)]
    fn encode<S: Search>(x: &[f32], _: Guide, out: &mut [u8]) {
        let (x, out) = (x.as_chunks::<256>().0, out.as_chunks_mut::<54>().0);
        for b in 0..x.len() {
            let (x, out) = (&x[b], &mut out[b]);
            let d = abs_max(x);
            let id = inverse(d);
            let mut codes = [0u8; 256];
            for i in 0..256 {
                codes[i] = trit(x[i], id);
            }
            Self::pack(&codes, out);
            put_f16(&mut out[52..], d);
        }
    }

    #[inline(always)]
    fn decode(bytes: &[u8], out: &mut [f32]) {
        decode::<Self, 256, 16, 54>(bytes, out);
    }
}

impl Grouped<16, 54> for Tq1 {
    const OFFSETS: bool = false;
    const LARGEST: i16 = 1;

    #[inline(always)]
    fn group(b: &[u8; 54], j: usize) -> Group<16> {
        const POWERS: [u8; 5] = [1, 3, 9, 27, 81];
        let code =
            |byte: u8, n: usize| ((u16::from(byte.wrapping_mul(POWERS[n])) * 3) >> 8) as i8 - 1;
        let mut codes = [0; 16];
        for i in 0..16 {
            codes[i] = match j {
                15 => code(b[48 + i % 4], i / 4),
                10..15 => code(b[32 + i], j - 10),
                _ => code(b[16 * (j % 2) + i], j / 2),
            };
        }
        Group { codes, scale: f16(&b[52..]), offset: 0.0 }
    }
}

struct Tq2;

impl Blocks for Tq2 {
    #[inline(always)]
    fn encode<S: Search>(x: &[f32], _: Guide, out: &mut [u8]) {
        let (x, out) = (x.as_chunks::<256>().0, out.as_chunks_mut::<66>().0);
        for b in 0..x.len() {
            let (x, out) = (&x[b], &mut out[b]);
            let d = abs_max(x);
            let id = inverse(d);
            let mut codes = [0u8; 256];
            for i in 0..256 {
                codes[i] = trit(x[i], id) & 3;
            }
            Self::pack(&codes, out);
            put_f16(&mut out[64..], d);
        }
    }

    #[inline(always)]
    fn decode(bytes: &[u8], out: &mut [f32]) {
        decode::<Self, 256, 32, 66>(bytes, out);
    }
}

impl Scalar<256, 32, 66> for Tq2 {
    const GRID: Grid = Grid::Whole(-1, 1);

    #[inline(always)]
    fn pack(codes: &[u8; 256], out: &mut [u8; 66]) {
        pack_pairs(codes, &mut out[..64]);
    }
}

impl Grouped<32, 66> for Tq2 {
    const OFFSETS: bool = false;
    const LARGEST: i16 = 2;

    #[inline(always)]
    fn group(b: &[u8; 66], j: usize) -> Group<32> {
        let qs = &b[32 * (j / 4)..][..32];
        let mut codes = [0; 32];
        for i in 0..32 {
            codes[i] = (qs[i] >> (2 * (j % 4)) & 3) as i8 - 1;
        }
        Group { codes, scale: f16(&b[64..]), offset: 0.0 }
    }
}

struct Q1;

impl Blocks for Q1 {
    #[inline(always)]
    fn encode<S: Search>(x: &[f32], _: Guide, out: &mut [u8]) {
        let (x, out) = (x.as_chunks::<128>().0, out.as_chunks_mut::<18>().0);
        for b in 0..x.len() {
            let (x, out) = (&x[b], &mut out[b]);
            let mut sum = 0f32;
            for v in x {
                sum += v.abs();
            }
            put_f16(out, sum / 128.0);
            let mut codes = [0u8; 128];
            for i in 0..128 {
                codes[i] = u8::from(x[i] >= 0.0);
            }
            Self::pack(&codes, out);
        }
    }

    #[inline(always)]
    fn decode(bytes: &[u8], out: &mut [f32]) {
        decode::<Self, 128, 32, 18>(bytes, out);
    }
}

impl Scalar<128, 32, 18> for Q1 {
    const GRID: Grid = Grid::These(&[-1, 1]);

    #[inline(always)]
    fn pack(codes: &[u8; 128], out: &mut [u8; 18]) {
        for j in 0..16 {
            out[2 + j] = 0;
            for i in 0..8 {
                out[2 + j] |= codes[8 * j + i] << i;
            }
        }
    }
}

impl Grouped<32, 18> for Q1 {
    const OFFSETS: bool = false;
    const LARGEST: i16 = 1;

    #[inline(always)]
    fn group(b: &[u8; 18], j: usize) -> Group<32> {
        let mut codes = [0; 32];
        for i in 0..32 {
            codes[i] = (b[2 + 4 * j + i / 8] >> (i % 8) & 1) as i8 * 2 - 1;
        }
        Group { codes, scale: f16(b), offset: 0.0 }
    }
}

struct Q2;

impl Blocks for Q2 {
    #[inline(always)]
    fn encode<S: Search>(x: &[f32], _: Guide, out: &mut [u8]) {
        let (x, out) = (x.as_chunks::<64>().0, out.as_chunks_mut::<18>().0);
        for b in 0..x.len() {
            let (x, out) = (&x[b], &mut out[b]);
            let d = abs_max(x);
            let id = inverse(d);
            put_f16(out, d);
            let mut codes = [0u8; 64];
            for i in 0..64 {
                codes[i] = round_away(x[i] * id).wrapping_add(1).clamp(0, 3) as u8;
            }
            Self::pack(&codes, out);
        }
    }

    #[inline(always)]
    fn decode(bytes: &[u8], out: &mut [f32]) {
        decode::<Self, 64, 32, 18>(bytes, out);
    }
}

impl Scalar<64, 32, 18> for Q2 {
    const GRID: Grid = Grid::Whole(-1, 2);

    #[inline(always)]
    fn pack(codes: &[u8; 64], out: &mut [u8; 18]) {
        for j in 0..16 {
            out[2 + j] = 0;
            for i in 0..4 {
                out[2 + j] |= codes[4 * j + i] << (2 * i);
            }
        }
    }
}

impl Grouped<32, 18> for Q2 {
    const OFFSETS: bool = false;
    const LARGEST: i16 = 2;

    #[inline(always)]
    fn group(b: &[u8; 18], j: usize) -> Group<32> {
        let mut codes = [0; 32];
        for i in 0..32 {
            codes[i] = (b[2 + 8 * j + i / 4] >> (2 * (i % 4)) & 3) as i8 - 1;
        }
        Group { codes, scale: f16(b), offset: 0.0 }
    }
}
