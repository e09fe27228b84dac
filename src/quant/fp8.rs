//! FP8 E4M3 (the "FN" variant: no infinities, 0x7F and 0xFF are NaN) to f32.
//!
//! ```text
//! bit  7      6 5 4 3    2 1 0
//!      sign   exponent   mantissa      value = ±2^(e-7) · (1 + m/8), or ±2^-6 · m/8 for e = 0
//! ```
//! (Micikevicius et al., arXiv:2209.05433.)

/// Value of each byte; NaN for the two that are none.
static VALUES: [f32; 256] = {
    let mut values = [0f32; 256];
    let mut byte = 0;
    while byte < 256 {
        let (e, m) = ((byte >> 3) & 15, byte & 7);
        let magnitude = if e == 0 {
            m as f32 / 512.0
        } else if byte & 0x7f == 0x7f {
            f32::NAN
        } else {
            (1.0 + m as f32 / 8.0) * f32::from_bits((e as u32 + 120) << 23)
        };
        values[byte] = if byte & 0x80 != 0 { -magnitude } else { magnitude };
        byte += 1;
    }
    values
};

/// Decodes bytes that share a scale: `out[i] = value(bytes[i]) * scale`, one rounding.
///
/// # Errors
/// The index of the first NaN byte. What is in `out` then is unspecified.
///
/// # Panics
/// When the lengths differ.
pub fn decode_scaled(bytes: &[u8], scale: f32, out: &mut [f32]) -> Result<(), usize> {
    assert_eq!(bytes.len(), out.len());
    let mut nan = false;
    for (value, &byte) in out.iter_mut().zip(bytes) {
        *value = VALUES[byte as usize] * scale;
        nan |= byte & 0x7f == 0x7f;
    }
    match nan {
        true => Err(bytes.iter().position(|b| b & 0x7f == 0x7f).unwrap_or(0)),
        false => Ok(()),
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
            assert_eq!(VALUES[byte], value);
            assert_eq!(VALUES[byte | 0x80], -value);
        }
        assert_eq!(VALUES.iter().filter(|v| v.is_nan()).count(), 2);
    }

    #[test]
    fn a_nan_byte_is_found() {
        let mut out = [0.0; 3];
        assert_eq!(decode_scaled(&[0x38, 0xb8, 0x40], 0.5, &mut out), Ok(()));
        assert_eq!(out, [0.5, -0.5, 1.0]);
        assert_eq!(decode_scaled(&[0x38, 0xff, 0x7f], 0.5, &mut out), Err(1));
    }
}
