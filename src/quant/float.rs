//! Plain numbers: F32, and conversions to and from F16 and BF16, rounding to nearest, ties to
//! even.
//!
//! ```text
//! F16   15: sign   14..10: exponent, bias 15    9..0: mantissa
//! BF16  15: sign   14..7:  exponent, bias 127   6..0: mantissa      (upper half of an f32)
//! ```
//! All conversions are free of branches, so loops over them become vector code.

use super::format::{Activation, Format, Importance, Kind, Numbers};
use super::guide::Guide;
use super::kernels::{Blocks, Levels, levels};
use super::lattice::Search;
use super::types::QuantType;
use crate::simd::compiled;

/// An f32 at the beginning of a block.
pub(super) const F32: Numbers = Numbers::Exponents(&[2], 0x7f80);

#[rustfmt::skip]
pub(super) const FORMATS: &[Format] = {
    use {Activation as A, Numbers::Exponents, QuantType as Q};
    &[
        row(Q::F64, Kind::Float("float64"), 8, Exponents(&[6], 0x7ff0), A::F32, None),
        row(Q::F32, Kind::Float("float32"), 4, F32, A::F32, Some(levels::<Float>())),
        row(Q::F16, Kind::Float("float16"), 2, Numbers::halves(&[0]), A::F16, Some(levels::<Half>())),
        row(Q::BF16, Kind::Float("bfloat16"), 2, Exponents(&[0], 0x7f80), A::BF16, Some(levels::<Brain>())),
        row(Q::I8, Kind::Integer, 1, Numbers::None, A::F32, None),
        row(Q::I16, Kind::Integer, 2, Numbers::None, A::F32, None),
        row(Q::I32, Kind::Integer, 4, Numbers::None, A::F32, None),
        row(Q::I64, Kind::Integer, 8, Numbers::None, A::F32, None),
    ]
};

/// f32 to the bits of a BF16 (`ggml_compute_fp32_to_bf16`).
#[inline(always)]
pub fn f32_to_bf16(x: f32) -> u16 {
    let bits = x.to_bits();
    let rounded = bits.wrapping_add(0x7fff + ((bits >> 16) & 1)) >> 16;
    (if x.is_nan() { bits >> 16 | 64 } else { rounded }) as u16
}

/// BF16 bits to f32, exactly.
#[inline(always)]
pub fn bf16_to_f32(bits: u16) -> f32 {
    f32::from_bits(u32::from(bits) << 16)
}

/// f32 to the bits of an F16; infinite from 65520 on (`ggml_compute_fp32_to_fp16`).
#[inline(always)]
pub fn f32_to_f16(x: f32) -> u16 {
    let (sign, bits) = (x.to_bits() >> 16 & 0x8000, x.to_bits() & 0x7fff_ffff);
    // In [0.5, 1) the last bit of an f32 weighs 2^-24, as in an F16 below 2^-14: the sum rounds.
    let subnormal = (f32::from_bits(bits) + 0.5).to_bits().wrapping_sub(0.5f32.to_bits());
    let normal = (bits + 0xfff + (bits >> 13 & 1)).wrapping_sub(0x3800_0000) >> 13;
    let magnitude = if bits < 0x3880_0000 { subnormal } else { normal };
    let magnitude = if bits < 0x4780_0000 { magnitude } else { 0x7c00 };
    let magnitude = if bits > 0x7f80_0000 { 0x7e00 } else { magnitude };
    (sign | magnitude) as u16
}

/// F16 bits to f32, exactly.
#[inline(always)]
pub fn f16_to_f32(bits: u16) -> f32 {
    let (sign, magnitude) = (u32::from(bits & 0x8000) << 16, u32::from(bits & 0x7fff));
    let rebias = if magnitude < 0x7c00 { 0x3800_0000 } else { 0x7000_0000 };
    let normal = (magnitude << 13) + rebias;
    let subnormal = (magnitude as f32 * f32::from_bits(0x3380_0000)).to_bits();
    f32::from_bits(sign | if magnitude < 0x400 { subnormal } else { normal })
}

compiled!(
    /// Replaces each value by the nearest that a BF16 holds.
    pub round_to_bf16(values: &mut [f32]) -> () = each_to_bf16
);
compiled!(
    /// Whether all are numbers.
    pub(crate) all_finite(values: &[f32]) -> bool = are_all_finite
);

#[inline(always)]
fn each_to_bf16(values: &mut [f32]) {
    for value in values {
        *value = bf16_to_f32(f32_to_bf16(*value));
    }
}

/// Whether all are numbers. Without an early exit, so that it vectorises.
#[inline(always)]
pub(super) fn are_all_finite(values: &[f32]) -> bool {
    let mut most = 0;
    for v in values {
        most = most.max(v.to_bits() & 0x7f80_0000);
    }
    most < 0x7f80_0000
}

/// The largest magnitude. The bits of magnitudes order as integers, which vectorises;
/// NaN comes out as the largest.
#[inline(always)]
pub(crate) fn abs_max(x: &[f32]) -> f32 {
    let mut max = 0;
    for v in x {
        max = max.max(v.to_bits() & 0x7fff_ffff);
    }
    f32::from_bits(max)
}

/// The little-endian bits of the nearest F16. NaNs come from scales whose squares overflow: x86 makes
/// them negative, and so are those of other machines here, for files not to depend on the machine.
#[inline(always)]
pub(super) fn f16_bits(x: f32) -> [u8; 2] {
    let foreign = cfg!(not(target_arch = "x86_64")) && x.is_nan();
    let bits = if foreign { 0xfe00 } else { f32_to_f16(x) };
    bits.to_le_bytes()
}

/// Writes [`f16_bits`] over the first two bytes, as one number rather than as two.
#[inline(always)]
pub(super) fn put_f16(out: &mut [u8], x: f32) {
    out.as_chunks_mut::<2>().0[0] = f16_bits(x);
}

/// The F16 that `bytes` begins with.
#[inline(always)]
pub(super) fn f16(bytes: &[u8]) -> f32 {
    f16_to_f32(u16::from_le_bytes([bytes[0], bytes[1]]))
}

#[inline(always)]
fn write<const N: usize>(values: &[f32], out: &mut [u8], convert: impl Fn(f32) -> [u8; N]) {
    let out = &mut out.as_chunks_mut::<N>().0[..values.len()];
    for i in 0..values.len() {
        out[i] = convert(values[i]);
    }
}

#[inline(always)]
fn read<const N: usize>(bytes: &[u8], out: &mut [f32], convert: impl Fn([u8; N]) -> f32) {
    let bytes = &bytes.as_chunks::<N>().0[..out.len()];
    for i in 0..out.len() {
        out[i] = convert(bytes[i]);
    }
}

struct Float;

impl Blocks for Float {
    #[inline(always)]
    fn encode<S: Search>(x: &[f32], _: Guide, out: &mut [u8]) {
        write(x, out, f32::to_le_bytes);
    }

    #[inline(always)]
    fn decode(bytes: &[u8], out: &mut [f32]) {
        read(bytes, out, f32::from_le_bytes);
    }
}

struct Half;

impl Blocks for Half {
    #[inline(always)]
    fn encode<S: Search>(x: &[f32], _: Guide, out: &mut [u8]) {
        write(x, out, |v| f32_to_f16(v).to_le_bytes());
    }

    #[inline(always)]
    fn decode(bytes: &[u8], out: &mut [f32]) {
        read(bytes, out, |b| f16_to_f32(u16::from_le_bytes(b)));
    }
}

struct Brain;

impl Blocks for Brain {
    #[inline(always)]
    fn encode<S: Search>(x: &[f32], _: Guide, out: &mut [u8]) {
        write(x, out, |v| f32_to_bf16(v).to_le_bytes());
    }

    #[inline(always)]
    fn decode(bytes: &[u8], out: &mut [f32]) {
        read(bytes, out, |b| bf16_to_f32(u16::from_le_bytes(b)));
    }
}

const fn row(
    ty: QuantType,
    kind: Kind,
    bytes: usize,
    numbers: Numbers,
    activations: Activation,
    kernels: Option<Levels>,
) -> Format {
    Format {
        ty,
        kind,
        len: 1,
        bytes,
        numbers,
        importance: Importance::Ignored,
        activations,
        // One number fits every row.
        fallback: None,
        cost: [1.5; 2],
        kernels,
        rounding: None,
        groups: None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn f16_agrees_with_an_independent_implementation() {
        for bits in 0..=u16::MAX {
            let other = half::f16::from_bits(bits);
            let mine = f16_to_f32(bits);
            assert_eq!(mine.is_nan(), other.is_nan());
            if !mine.is_nan() {
                assert_eq!(mine.to_bits(), other.to_f32().to_bits());
                assert_eq!(f32_to_f16(mine), bits);
            }
        }
        // Around every rounding boundary and everywhere else.
        for bits in (0..=u32::MAX).step_by(4093).chain((0..=u32::MAX).step_by(0x0fff)) {
            let x = f32::from_bits(bits);
            if !x.is_nan() {
                assert_eq!(f32_to_f16(x), half::f16::from_f32(x).to_bits(), "{x:e}");
                assert_eq!(f32_to_bf16(x), half::bf16::from_f32(x).to_bits(), "{x:e}");
            }
        }
        assert_eq!(f32_to_f16(-f32::NAN), 0xfe00);
        assert_eq!(f16_bits(-f32::NAN), [0x00, 0xfe]);
    }
}
