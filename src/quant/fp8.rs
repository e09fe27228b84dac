//! FP8 E4M3 (the "FN" variant: no infinities, 0x7F and 0xFF are NaN) to f32.
//!
//! ```text
//! bit  7      6 5 4 3    2 1 0
//!      sign   exponent   mantissa      value = ±2^(e-7) · (1 + m/8), or ±2^-6 · m/8 for e = 0
//! ```
//! (Micikevicius et al., arXiv:2209.05433.) E5M2, its sibling, is the upper half of an F16.

use super::float::f16_to_f32;
use crate::simd::{Simd, compiled};

/// Value of a byte; ±480 for the two that are NaN. The magnitude's bits, moved to those of an f32,
/// stand for the value times 2^-120, subnormal ones included.
#[inline(always)]
fn value(byte: u8) -> f32 {
    let magnitude = f32::from_bits(u32::from(byte & 0x7f) << 20) * f32::from_bits(247 << 23);
    f32::from_bits(magnitude.to_bits() | u32::from(byte & 0x80) << 24)
}

/// Decodes bytes that share a scale: `out[i] = value(bytes[i]) * scale`, one rounding.
///
/// # Errors
/// The index of the first NaN byte. What is in `out` then is unspecified.
///
/// # Panics
/// When the lengths differ.
pub fn decode_scaled(simd: Simd, bytes: &[u8], scale: f32, out: &mut [f32]) -> Result<(), usize> {
    assert_eq!(bytes.len(), out.len());
    match decode(simd, bytes, scale, out) {
        true => Ok(()),
        false => Err(bytes.iter().position(|b| b & 0x7f == 0x7f).unwrap_or(0)),
    }
}

/// [`decode_scaled`] for E5M2.
///
/// # Errors
/// The index of the first byte that is NaN or infinite. What is in `out` then is unspecified.
///
/// # Panics
/// When the lengths differ.
pub fn decode_scaled_e5m2(
    simd: Simd,
    bytes: &[u8],
    scale: f32,
    out: &mut [f32],
) -> Result<(), usize> {
    assert_eq!(bytes.len(), out.len());
    decode_e5m2(simd, bytes, scale, out);
    bytes.iter().position(|byte| byte & 0x7c == 0x7c).map_or(Ok(()), Err)
}

compiled!(
    decode_e5m2(bytes: &[u8], scale: f32, out: &mut [f32]) -> () = decode_all_e5m2
);

#[inline(always)]
fn decode_all_e5m2(bytes: &[u8], scale: f32, out: &mut [f32]) {
    for (value, &byte) in out.iter_mut().zip(bytes) {
        *value = f16_to_f32(u16::from(byte) << 8) * scale;
    }
}

/// The value of an E8M0 byte: 2 to the power of it less 127; NaN for 255.
pub fn power_of_two(byte: u8) -> f32 {
    match byte {
        0 => f32::from_bits(1 << 22),
        255 => f32::NAN,
        _ => f32::from_bits(u32::from(byte) << 23),
    }
}

compiled!(
    /// Decodes whatever the bytes are; false where one is NaN.
    decode(bytes: &[u8], scale: f32, out: &mut [f32]) -> bool = decode_all
);

#[inline(always)]
fn decode_all(bytes: &[u8], scale: f32, out: &mut [f32]) -> bool {
    let mut nan = false;
    let bytes = &bytes[..out.len()];
    for i in 0..out.len() {
        out[i] = value(bytes[i]) * scale;
        nan |= bytes[i] & 0x7f == 0x7f;
    }
    !nan
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn values_are_those_of_the_format() {
        for (byte, value) in
            [(0x00, 0.0), (0x01, 0.001953125), (0x08, 0.015625), (0x38, 1.0), (0x7e, 448.0)]
        {
            assert_eq!(self::value(byte), value);
            assert_eq!(self::value(byte | 0x80), -value);
        }
    }

    #[test]
    fn every_level_decodes_as_the_plain_loop() {
        let bytes: Vec<u8> = (0..=255).chain(0..77).collect();
        for simd in Simd::supported() {
            let [mut out, mut expected] = [(); 2].map(|()| vec![0f32; bytes.len()]);
            assert!(!decode(simd, &bytes, 0.3, &mut out));
            decode_all(&bytes, 0.3, &mut expected);
            assert_eq!(out, expected, "{simd}");
        }
    }

    #[test]
    fn e5m2_is_the_upper_half_of_an_f16() {
        let mut out = [0.0; 5];
        let bytes = [0x01, 0x3c, 0xc0, 0x7b, 0x80];
        assert_eq!(decode_scaled_e5m2(Simd::detect(), &bytes, 0.5, &mut out), Ok(()));
        assert_eq!(out, [2f32.powi(-17), 0.5, -1.0, 28672.0, 0.0]);
        for bad in [0x7c, 0xfd, 0x7f] {
            let found = decode_scaled_e5m2(Simd::detect(), &[0x3c, bad], 1.0, &mut out[..2]);
            assert_eq!(found, Err(1));
        }
    }

    #[test]
    fn powers_of_two_are_exact() {
        for byte in 0..=254u8 {
            assert_eq!(f64::from(power_of_two(byte)), 2f64.powi(i32::from(byte) - 127));
        }
        assert!(power_of_two(255).is_nan());
    }

    #[test]
    fn a_nan_byte_is_found() {
        let mut out = [0.0; 3];
        assert_eq!(decode_scaled(Simd::Portable, &[0x38, 0xb8, 0x40], 0.5, &mut out), Ok(()));
        assert_eq!(out, [0.5, -0.5, 1.0]);
        assert_eq!(decode_scaled(Simd::Portable, &[0x38, 0xff, 0x7f], 0.5, &mut out), Err(1));
    }
}
