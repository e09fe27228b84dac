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

use super::float::{abs_max, f16, f16_bits};
use super::format::{Activation, Format, Importance, Kind, Numbers};
use super::k_min::pack_pairs;
use super::kernels::{Blocks, levels};
use super::lattice::Search;
use super::search::{round_away, round_to_byte};
use super::types::QuantType;

#[rustfmt::skip]
pub(super) const FORMATS: &[Format] = &[
    Format {
        ty: QuantType::TQ1_0, kind: Kind::Blocks, len: 256, bytes: 54,
        numbers: Numbers::halves(&[52]), importance: Importance::Ignored,
        activations: Activation::Q8_K, fallback: Some(QuantType::Q4_0), cost: [1.5; 2],
        kernels: Some(levels::<Tq1>()),
        groups: None,
    },
    Format {
        ty: QuantType::TQ2_0, kind: Kind::Blocks, len: 256, bytes: 66,
        numbers: Numbers::halves(&[64]), importance: Importance::Ignored,
        activations: Activation::Q8_K, fallback: Some(QuantType::Q4_0), cost: [1.5; 2],
        kernels: Some(levels::<Tq2>()),
        groups: None,
    },
    Format {
        ty: QuantType::Q1_0, kind: Kind::Blocks, len: 128, bytes: 18,
        numbers: Numbers::halves(&[0]), importance: Importance::Ignored,
        activations: Activation::Q8_0, fallback: None, cost: [1.5; 2],
        kernels: Some(levels::<Q1>()),
        groups: None,
    },
    Format {
        ty: QuantType::Q2_0, kind: Kind::Blocks, len: 64, bytes: 18,
        numbers: Numbers::halves(&[0]), importance: Importance::Ignored,
        activations: Activation::Q8_0, fallback: Some(QuantType::Q4_0), cost: [1.5; 2],
        kernels: Some(levels::<Q2>()),
        groups: None,
    },
];

/// `1/d`, and 0 for 0.
#[inline(always)]
fn inverse(d: f32) -> f32 {
    if d != 0.0 { 1.0 / d } else { 0.0 }
}

#[inline(always)]
fn trit(x: f32, id: f32) -> u8 {
    round_to_byte(x * id).wrapping_add(1)
}

/// The runs of TQ1_0: first element, first byte, bytes, trits per byte.
const RUNS: [(usize, usize, usize, usize); 3] = [(0, 0, 32, 5), (160, 32, 16, 5), (240, 48, 4, 4)];

struct Tq1;

impl Blocks for Tq1 {
    #[inline(always)]
    fn encode<S: Search>(x: &[f32], _: Option<&[f32]>, out: &mut [u8]) {
        for (x, out) in x.as_chunks::<256>().0.iter().zip(out.as_chunks_mut::<54>().0) {
            let d = abs_max(x);
            let id = inverse(d);
            for (element, byte, bytes, trits) in RUNS {
                for m in 0..bytes {
                    let mut q = 0u8;
                    for n in 0..trits {
                        q = q.wrapping_mul(3).wrapping_add(trit(x[element + m + n * bytes], id));
                    }
                    for _ in trits..5 {
                        q = q.wrapping_mul(3);
                    }
                    out[byte + m] = (u32::from(q) * 256).div_ceil(243) as u8;
                }
            }
            out[52..].copy_from_slice(&f16_bits(d));
        }
    }

    #[inline(always)]
    fn decode(bytes: &[u8], out: &mut [f32]) {
        for (b, out) in bytes.as_chunks::<54>().0.iter().zip(out.as_chunks_mut::<256>().0) {
            let d = f16(&b[52..]);
            for (element, byte, bytes, trits) in RUNS {
                for (n, power) in [1u8, 3, 9, 27, 81].into_iter().enumerate().take(trits) {
                    for m in 0..bytes {
                        let q = (u16::from(b[byte + m].wrapping_mul(power)) * 3) >> 8;
                        out[element + n * bytes + m] = (i32::from(q) - 1) as f32 * d;
                    }
                }
            }
        }
    }
}

struct Tq2;

impl Blocks for Tq2 {
    #[inline(always)]
    fn encode<S: Search>(x: &[f32], _: Option<&[f32]>, out: &mut [u8]) {
        for (x, out) in x.as_chunks::<256>().0.iter().zip(out.as_chunks_mut::<66>().0) {
            let d = abs_max(x);
            let id = inverse(d);
            let mut codes = [0u8; 256];
            for (c, &v) in codes.iter_mut().zip(x) {
                *c = trit(v, id) & 3;
            }
            pack_pairs(&codes, &mut out[..64]);
            out[64..].copy_from_slice(&f16_bits(d));
        }
    }

    #[inline(always)]
    fn decode(bytes: &[u8], out: &mut [f32]) {
        for (b, out) in bytes.as_chunks::<66>().0.iter().zip(out.as_chunks_mut::<256>().0) {
            let d = f16(&b[64..]);
            for (i, out) in out.chunks_exact_mut(32).enumerate() {
                for (v, q) in out.iter_mut().zip(&b[32 * (i / 4)..]) {
                    *v = (i32::from(q >> (2 * (i % 4)) & 3) - 1) as f32 * d;
                }
            }
        }
    }
}

struct Q1;

impl Blocks for Q1 {
    #[inline(always)]
    fn encode<S: Search>(x: &[f32], _: Option<&[f32]>, out: &mut [u8]) {
        for (x, out) in x.as_chunks::<128>().0.iter().zip(out.as_chunks_mut::<18>().0) {
            let mut sum = 0f32;
            for v in x {
                sum += v.abs();
            }
            out[..2].copy_from_slice(&f16_bits(sum / 128.0));
            for (x, q) in x.as_chunks::<8>().0.iter().zip(&mut out[2..]) {
                *q = 0;
                for (i, &v) in x.iter().enumerate() {
                    *q |= u8::from(v >= 0.0) << i;
                }
            }
        }
    }

    #[inline(always)]
    fn decode(bytes: &[u8], out: &mut [f32]) {
        for (b, out) in bytes.as_chunks::<18>().0.iter().zip(out.as_chunks_mut::<128>().0) {
            let d = f16(b);
            for (i, v) in out.iter_mut().enumerate() {
                *v = if b[2 + i / 8] >> (i % 8) & 1 != 0 { d } else { -d };
            }
        }
    }
}

struct Q2;

impl Blocks for Q2 {
    #[inline(always)]
    fn encode<S: Search>(x: &[f32], _: Option<&[f32]>, out: &mut [u8]) {
        for (x, out) in x.as_chunks::<64>().0.iter().zip(out.as_chunks_mut::<18>().0) {
            let d = abs_max(x);
            let id = inverse(d);
            out[..2].copy_from_slice(&f16_bits(d));
            for (x, q) in x.as_chunks::<4>().0.iter().zip(&mut out[2..]) {
                let c = x.map(|v| round_away(v * id).wrapping_add(1).clamp(0, 3) as u8);
                *q = c[0] | c[1] << 2 | c[2] << 4 | c[3] << 6;
            }
        }
    }

    #[inline(always)]
    fn decode(bytes: &[u8], out: &mut [f32]) {
        for (b, out) in bytes.as_chunks::<18>().0.iter().zip(out.as_chunks_mut::<64>().0) {
            let d = f16(b);
            for (i, v) in out.iter_mut().enumerate() {
                *v = (i32::from(b[2 + i / 4] >> (2 * (i % 4)) & 3) - 1) as f32 * d;
            }
        }
    }
}
