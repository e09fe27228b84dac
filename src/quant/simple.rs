//! Blocks of 32 with one scale: Q4_0, Q5_0, Q8_0.
//!
//! ```text
//! Q4_0  18 bytes  d f16 | qs 16: byte j = element j (low nibble), element j+16 (high nibble)
//! Q5_0  22 bytes  d f16 | qh u32: bit j = fifth bit of element j | qs 16 as in Q4_0
//! Q8_0  34 bytes  d f16 | qs 32 × i8
//! ```
//! Values: `(q - 8)·d`, `(q - 16)·d`, `q·d`. Formulas: `quantize_row_*_ref` and
//! `dequantize_row_*` in `ggml-quants.c`.

use super::float::{f16, f16_bits};

const N: usize = 32;

/// The value of largest magnitude, with its sign; the first of equals.
fn signed_max(x: &[f32]) -> f32 {
    let (mut amax, mut max) = (0f32, 0f32);
    for &v in x {
        if amax < v.abs() {
            amax = v.abs();
            max = v;
        }
    }
    max
}

fn inverse(d: f32) -> f32 {
    if d != 0.0 { 1.0 / d } else { 0.0 }
}

pub(super) fn encode_q4_0(x: &[f32], out: &mut [u8]) {
    for (x, out) in x.chunks_exact(N).zip(out.chunks_exact_mut(18)) {
        let d = signed_max(x) / -8.0;
        let id = inverse(d);
        let code = |v: f32| ((v * id + 8.5) as i8).min(15) as u8;
        out[..2].copy_from_slice(&f16_bits(d));
        for j in 0..16 {
            out[2 + j] = code(x[j]) | (code(x[j + 16]) << 4);
        }
    }
}

pub(super) fn decode_q4_0(bytes: &[u8], out: &mut [f32]) {
    for (b, out) in bytes.chunks_exact(18).zip(out.chunks_exact_mut(N)) {
        let d = f16(b);
        for j in 0..16 {
            out[j] = (i32::from(b[2 + j] & 15) - 8) as f32 * d;
            out[j + 16] = (i32::from(b[2 + j] >> 4) - 8) as f32 * d;
        }
    }
}

pub(super) fn encode_q5_0(x: &[f32], out: &mut [u8]) {
    for (x, out) in x.chunks_exact(N).zip(out.chunks_exact_mut(22)) {
        let d = signed_max(x) / -16.0;
        let id = inverse(d);
        let code = |v: f32| ((v * id + 16.5) as i8).min(31) as u8;
        out[..2].copy_from_slice(&f16_bits(d));
        let mut high = 0u32;
        for j in 0..16 {
            let (a, b) = (code(x[j]), code(x[j + 16]));
            out[6 + j] = (a & 15) | (b << 4);
            high |= u32::from(a >> 4 & 1) << j | u32::from(b >> 4 & 1) << (j + 16);
        }
        out[2..6].copy_from_slice(&high.to_le_bytes());
    }
}

pub(super) fn decode_q5_0(bytes: &[u8], out: &mut [f32]) {
    for (b, out) in bytes.chunks_exact(22).zip(out.chunks_exact_mut(N)) {
        let d = f16(b);
        let high = u32::from_le_bytes([b[2], b[3], b[4], b[5]]);
        for j in 0..16 {
            let bit = |i: usize| (high >> i & 1) << 4;
            out[j] = ((u32::from(b[6 + j] & 15) | bit(j)) as i32 - 16) as f32 * d;
            out[j + 16] = ((u32::from(b[6 + j] >> 4) | bit(j + 16)) as i32 - 16) as f32 * d;
        }
    }
}

pub(super) fn encode_q8_0(x: &[f32], out: &mut [u8]) {
    for (x, out) in x.chunks_exact(N).zip(out.chunks_exact_mut(34)) {
        let d = x.iter().fold(0f32, |m, v| m.max(v.abs())) / 127.0;
        let id = inverse(d);
        out[..2].copy_from_slice(&f16_bits(d));
        for (q, v) in out[2..].iter_mut().zip(x) {
            *q = (v * id).round() as i8 as u8;
        }
    }
}

pub(super) fn decode_q8_0(bytes: &[u8], out: &mut [f32]) {
    for (b, out) in bytes.chunks_exact(34).zip(out.chunks_exact_mut(N)) {
        let d = f16(b);
        for (v, &q) in out.iter_mut().zip(&b[2..]) {
            *v = f32::from(q as i8) * d;
        }
    }
}
