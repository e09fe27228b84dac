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

/// One of the two formats.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fp8 {
    /// Four bits of exponent, three of mantissa.
    E4M3,
    /// Five and two.
    E5M2,
}

/// The factors of rows: one for each block of `height` rows and `width` columns.
#[derive(Clone, Copy, Debug)]
pub struct Scales<'a> {
    /// Those of whole rows of blocks, from the one on that the first row is in.
    pub values: &'a [f32],
    /// Factors of a row of blocks.
    pub per_row: usize,
    /// Rows that share a factor.
    pub height: usize,
    /// Columns that share a factor.
    pub width: usize,
    /// Rows of the first row of blocks that stand before the first row.
    pub before: usize,
}

impl<'a> Scales<'a> {
    /// Those of a row.
    #[inline(always)]
    fn of(&self, row: usize) -> &'a [f32] {
        &self.values[(self.before + row) / self.height * self.per_row..][..self.per_row]
    }
}

impl Fp8 {
    /// Decodes rows of `n` bytes: each value times its factor, one rounding.
    ///
    /// # Errors
    /// Row and column of the first byte that is NaN or infinite. What is in `out` then is unspecified.
    ///
    /// # Panics
    /// When the lengths differ, or are no whole number of rows, or there are too few factors.
    pub fn decode_rows(
        self,
        simd: Simd,
        bytes: &[u8],
        n: usize,
        scales: Scales,
        out: &mut [f32],
    ) -> Result<(), [usize; 2]> {
        assert!(bytes.len() == out.len() && bytes.len().is_multiple_of(n.max(1)));
        let (finite, above) = match self {
            Self::E4M3 => (rows_of_e4m3(simd, bytes, n, scales, out), 0x7e),
            Self::E5M2 => (rows_of_e5m2(simd, bytes, n, scales, out), 0x7b),
        };
        if finite {
            return Ok(());
        }
        match bytes.iter().position(|byte| byte & 0x7f > above) {
            Some(at) => Err([at / n, at % n]),
            None => Ok(()),
        }
    }
}

compiled!(
    /// Decodes whatever the bytes are; false where one is NaN.
    rows_of_e4m3(bytes: &[u8], n: usize, scales: Scales, out: &mut [f32]) -> bool = all_e4m3
);
compiled!(
    /// Decodes whatever the bytes are; false where one is NaN or infinite.
    rows_of_e5m2(bytes: &[u8], n: usize, scales: Scales, out: &mut [f32]) -> bool = all_e5m2
);

#[inline(always)]
fn all_e4m3(bytes: &[u8], n: usize, scales: Scales, out: &mut [f32]) -> bool {
    decode_rows(bytes, n, scales, out, value) <= 0x7e
}

#[inline(always)]
fn all_e5m2(bytes: &[u8], n: usize, scales: Scales, out: &mut [f32]) -> bool {
    decode_rows(bytes, n, scales, out, |byte| f16_to_f32(u16::from(byte) << 8)) <= 0x7b
}

/// Decodes rows and returns the largest of the bytes, their signs left out.
#[inline(always)]
fn decode_rows(
    bytes: &[u8],
    n: usize,
    scales: Scales,
    out: &mut [f32],
    value: impl Fn(u8) -> f32,
) -> u8 {
    let mut largest = 0;
    for row in 0..out.len().checked_div(n).unwrap_or(0) {
        let of_row = scales.of(row);
        let (mut at, end) = (row * n, (row + 1) * n);
        for b in 0..of_row.len() {
            let next = end.min(at.saturating_add(scales.width));
            let (bytes, out) = (&bytes[at..next], &mut out[at..next]);
            for i in 0..bytes.len() {
                out[i] = value(bytes[i]) * of_row[b];
                largest = largest.max(bytes[i] & 0x7f);
            }
            at = next;
        }
    }
    largest
}

/// The value of an E8M0 byte: 2 to the power of it less 127; NaN for 255.
pub fn power_of_two(byte: u8) -> f32 {
    match byte {
        0 => f32::from_bits(1 << 22),
        255 => f32::NAN,
        _ => f32::from_bits(u32::from(byte) << 23),
    }
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

    /// One factor for all.
    fn one(factor: &f32) -> Scales<'_> {
        let values = std::slice::from_ref(factor);
        Scales { values, per_row: 1, height: usize::MAX, width: usize::MAX, before: 0 }
    }

    #[test]
    fn every_level_decodes_each_value_times_its_factor() {
        let (rows, n) = (9, 333);
        let bytes: Vec<u8> =
            (0..rows * n).map(|i| ((i * 7 % 251) as u8 % 0x7b) | (i as u8 & 0x80)).collect();
        let values: Vec<f32> = (0..12).map(|i| 0.3 + i as f32).collect();
        let scales = Scales { values: &values, per_row: 3, height: 4, width: 128, before: 2 };
        for (format, value) in [
            (Fp8::E4M3, value as fn(u8) -> f32),
            (Fp8::E5M2, |byte| f16_to_f32(u16::from(byte) << 8)),
        ] {
            let expected: Vec<f32> = (0..rows * n)
                .map(|i| value(bytes[i]) * values[(2 + i / n) / 4 * 3 + i % n / 128])
                .collect();
            for simd in Simd::supported() {
                let mut out = vec![0.0; rows * n];
                assert_eq!(format.decode_rows(simd, &bytes, n, scales, &mut out), Ok(()));
                assert_eq!(out, expected, "{format:?}, {simd}");
            }
        }
    }

    #[test]
    fn e5m2_is_the_upper_half_of_an_f16() {
        let mut out = [0.0; 5];
        let bytes = [0x01, 0x3c, 0xc0, 0x7b, 0x80];
        let simd = Simd::detect();
        assert_eq!(Fp8::E5M2.decode_rows(simd, &bytes, 5, one(&0.5), &mut out), Ok(()));
        assert_eq!(out, [2f32.powi(-17), 0.5, -1.0, 28672.0, 0.0]);
        for bad in [0x7c, 0xfd, 0x7f] {
            let found = Fp8::E5M2.decode_rows(simd, &[0x3c, bad], 1, one(&1.0), &mut out[..2]);
            assert_eq!(found, Err([1, 0]));
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
        for simd in Simd::supported() {
            let decode = |bytes: &[u8]| {
                let mut out = [0.0; 3];
                Fp8::E4M3.decode_rows(simd, bytes, 3, one(&0.5), &mut out).map(|()| out)
            };
            assert_eq!(decode(&[0x38, 0xb8, 0x40]), Ok([0.5, -0.5, 1.0]));
            assert_eq!(decode(&[0x38, 0xff, 0x7f]), Err([0, 1]));
        }
    }
}
