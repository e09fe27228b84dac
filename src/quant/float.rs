//! Conversions between f32 and the two 16-bit floats, rounding to nearest, ties to even.

/// f32 to the bits of a BF16 (`ggml_compute_fp32_to_bf16`).
pub fn f32_to_bf16(x: f32) -> u16 {
    let bits = x.to_bits();
    if x.is_nan() {
        return (bits >> 16) as u16 | 64;
    }
    ((bits + 0x7fff + ((bits >> 16) & 1)) >> 16) as u16
}

/// BF16 bits to f32, exactly.
pub fn bf16_to_f32(bits: u16) -> f32 {
    f32::from_bits(u32::from(bits) << 16)
}

/// Replaces each value by the nearest that a BF16 holds.
pub fn round_to_bf16(values: &mut [f32]) {
    for value in values {
        *value = bf16_to_f32(f32_to_bf16(*value));
    }
}

/// The little-endian bits of the nearest F16.
pub(super) fn f16_bits(x: f32) -> [u8; 2] {
    half::f16::from_f32(x).to_le_bytes()
}

/// The F16 that `bytes` begins with.
pub(super) fn f16(bytes: &[u8]) -> f32 {
    half::f16::from_le_bytes([bytes[0], bytes[1]]).to_f32()
}
