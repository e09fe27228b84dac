//! Super-blocks of 256: Q4_K and Q6_K.
//!
//! ```text
//! Q4_K 144 bytes  d f16 | dmin f16 | scales 12 | qs 128
//!   scales: 8 pairs (s, m) of 6 bits; pair j < 4: s = b[j]&63, m = b[j+4]&63; j >= 4:
//!           s = b[j+4]&15 | b[j-4]>>6<<4, m = b[j+4]>>4 | b[j]>>6<<4
//!   qs:     byte 32c+l = element 64c+l (low nibble), 64c+32+l (high nibble)
//! Q6_K 210 bytes  ql 128 | qh 64 | scales 16 × i8 | d f16
//!   half h: ql[64h+l] = low bits of l, l+64; ql[64h+32+l] = low bits of l+32, l+96;
//!           qh[32h+l] = upper 2 bits of l, l+32, l+64, l+96, from bit 0 on
//! ```
//! Values: `d·s·q - dmin·m` and `d·s·(q - 32)`. Formulas: `quantize_row_*_ref` and
//! `dequantize_row_*` in `ggml-quants.c`.

use super::float::{f16, f16_bits};
use super::search::{EPS, Steps, asymmetric, nearest_int, symmetric};

const N: usize = 256;

/// Scale and minimum of sub-block `j`.
fn scale_min(j: usize, b: &[u8]) -> (u8, u8) {
    if j < 4 {
        (b[j] & 63, b[j + 4] & 63)
    } else {
        ((b[j + 4] & 15) | (b[j - 4] >> 6 << 4), (b[j + 4] >> 4) | (b[j] >> 6 << 4))
    }
}

fn set_scale_min(j: usize, s: u8, m: u8, b: &mut [u8]) {
    if j < 4 {
        b[j] = s;
        b[j + 4] = m;
    } else {
        b[j + 4] = (s & 15) | (m & 15) << 4;
        b[j - 4] |= s >> 4 << 6;
        b[j] |= m >> 4 << 6;
    }
}

pub(super) fn encode_q4_k(x: &[f32], out: &mut [u8]) {
    for (x, out) in x.chunks_exact(N).zip(out.chunks_exact_mut(144)) {
        let mut codes = [0u8; N];
        let mut weights = [0f32; 32];
        let (mut scales, mut mins) = ([0f32; 8], [0f32; 8]);
        let (mut max_scale, mut max_min) = (0f32, 0f32);
        for (j, x) in x.chunks_exact(32).enumerate() {
            let av = (x.iter().fold(0f32, |sum, v| sum + v * v) / 32.0).sqrt();
            for (w, v) in weights.iter_mut().zip(x) {
                *w = av + v.abs();
            }
            let steps = Steps { rmin: -1.0, rdelta: 0.1, n: 20 };
            let codes = &mut codes[32 * j..32 * j + 32];
            (scales[j], mins[j]) = asymmetric(15, x, &weights, codes, &steps);
            max_scale = if scales[j] > max_scale { scales[j] } else { max_scale };
            max_min = if mins[j] > max_min { mins[j] } else { max_min };
        }
        let inverse = |max: f32| if max > 0.0 { 63.0 / max } else { 0.0 };
        let (inv_scale, inv_min) = (inverse(max_scale), inverse(max_min));
        for j in 0..8 {
            let code = |v: f32| (nearest_int(v) as u8).min(63);
            set_scale_min(j, code(inv_scale * scales[j]), code(inv_min * mins[j]), &mut out[4..16]);
        }
        out[..2].copy_from_slice(&f16_bits(max_scale / 63.0));
        out[2..4].copy_from_slice(&f16_bits(max_min / 63.0));
        for (j, x) in x.chunks_exact(32).enumerate() {
            let (s, m) = scale_min(j, &out[4..16]);
            let d = f16(&out[..2]) * f32::from(s);
            if d == 0.0 {
                continue;
            }
            let dm = f16(&out[2..4]) * f32::from(m);
            for (c, v) in codes[32 * j..].iter_mut().zip(x) {
                *c = nearest_int((v + dm) / d).clamp(0, 15) as u8;
            }
        }
        for c in 0..4 {
            for l in 0..32 {
                out[16 + 32 * c + l] = codes[64 * c + l] | codes[64 * c + 32 + l] << 4;
            }
        }
    }
}

pub(super) fn decode_q4_k(bytes: &[u8], out: &mut [f32]) {
    for (b, out) in bytes.chunks_exact(144).zip(out.chunks_exact_mut(N)) {
        let (d, dmin) = (f16(&b[..2]), f16(&b[2..4]));
        for (j, out) in out.chunks_exact_mut(32).enumerate() {
            let (s, m) = scale_min(j, &b[4..16]);
            let (d, m) = (d * f32::from(s), dmin * f32::from(m));
            for (l, v) in out.iter_mut().enumerate() {
                let q = b[16 + 32 * (j / 2) + l] >> (4 * (j % 2)) & 15;
                *v = d * f32::from(q) - m;
            }
        }
    }
}

pub(super) fn encode_q6_k(x: &[f32], out: &mut [u8]) {
    for (x, out) in x.chunks_exact(N).zip(out.chunks_exact_mut(210)) {
        let mut codes = [0u8; N];
        let mut scales = [0f32; 16];
        let (mut max_scale, mut max_abs) = (0f32, 0f32);
        for (j, x) in x.chunks_exact(16).enumerate() {
            scales[j] = symmetric(32, x, &mut codes[16 * j..16 * j + 16], None);
            if scales[j].abs() > max_abs {
                max_abs = scales[j].abs();
                max_scale = scales[j];
            }
        }
        if max_abs < EPS {
            out.fill(0);
            continue;
        }
        let iscale = -128.0 / max_scale;
        out[208..].copy_from_slice(&f16_bits(1.0 / iscale));
        for (j, x) in x.chunks_exact(16).enumerate() {
            let s = nearest_int(iscale * scales[j]).min(127) as i8;
            out[192 + j] = s as u8;
            let d = f16(&out[208..]) * f32::from(s);
            if d == 0.0 {
                continue;
            }
            for (c, v) in codes[16 * j..].iter_mut().zip(x) {
                *c = (nearest_int(v / d).clamp(-32, 31) + 32) as u8;
            }
        }
        let (ql, qh) = out.split_at_mut(128);
        for h in 0..2 {
            for l in 0..32 {
                let q = [0, 32, 64, 96].map(|o| codes[128 * h + o + l]);
                ql[64 * h + l] = (q[0] & 15) | (q[2] & 15) << 4;
                ql[64 * h + 32 + l] = (q[1] & 15) | (q[3] & 15) << 4;
                qh[32 * h + l] = q[0] >> 4 | q[1] >> 4 << 2 | q[2] >> 4 << 4 | q[3] >> 4 << 6;
            }
        }
    }
}

pub(super) fn decode_q6_k(bytes: &[u8], out: &mut [f32]) {
    for (b, out) in bytes.chunks_exact(210).zip(out.chunks_exact_mut(N)) {
        let d = f16(&b[208..]);
        for (i, v) in out.iter_mut().enumerate() {
            let (h, part, l) = (i / 128, i % 128 / 32, i % 32);
            let low = b[64 * h + 32 * (part % 2) + l] >> (4 * (part / 2)) & 15;
            let high = b[128 + 32 * h + l] >> (2 * part) & 3;
            let q = i32::from(low | high << 4) - 32;
            *v = d * f32::from(b[192 + i / 16] as i8) * q as f32;
        }
    }
}
