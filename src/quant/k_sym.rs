//! Super-blocks of 256 in 16 groups with a signed scale each: Q3_K, Q6_K.
//!
//! ```text
//! Q3_K 110 bytes  hmask 32 | qs 64 | scales 12 | d f16
//!   qs[32h+l]       7 6   5 4   3 2   1 0      lower 2 bits
//!     128h+l+       96    64    32    0
//!   hmask[l] bit i  upper bit of element 32i+l
//!   scales[j]       7 6 5 4: low bits of scale j+8   3 2 1 0: of scale j          (j < 8)
//!   scales[8+j]     7 6, 5 4, 3 2, 1 0: high bits of scale j+12, j+8, j+4, j      (j < 4)
//! Q6_K 210 bytes  ql 128 | qh 64 | scales 16×i8 | d f16
//!   ql[64h+l]       7 6 5 4: element 128h+l+64   3 2 1 0: element 128h+l          (l < 64)
//!   qh[32h+l]       7 6   5 4   3 2   1 0      upper 2 bits
//!     128h+l+       96    64    32    0
//! ```
//! Values: `(d·(s - 32))·(q - 4)` and `(d·s)·(q - 32)`. Codes are made anew with the scales as
//! stored; those of the search survive where the stored scale is zero
//! (`quantize_row_q{3,6}_K_ref` and `_impl`).

use super::float::{are_all_finite, f16, f16_bits};
use super::format::{Activation, Format, Importance, Kind, Numbers};
use super::k_min::pack_pairs;
use super::kernels::{Blocks, levels};
use super::lattice::Search;
use super::search::{
    self, EPS, Plain, SPAN, group_sums, importance_weights, nearest_int, signed_max,
    super_block_squares,
};
use super::types::QuantType;

#[rustfmt::skip]
pub(super) const FORMATS: &[Format] = &[
    Format {
        ty: QuantType::Q3_K, kind: Kind::Blocks, len: 256, bytes: 110,
        numbers: Numbers::halves(&[108]), importance: Importance::Weighs,
        activations: Activation::Q8_K, fallback: Some(QuantType::Q4_0), cost: [7.0; 2],
        kernels: Some(levels::<Q3>()),
        groups: None,
    },
    Format {
        ty: QuantType::Q6_K, kind: Kind::Blocks, len: 256, bytes: 210,
        numbers: Numbers::halves(&[208]), importance: Importance::Weighs,
        activations: Activation::Q8_K, fallback: Some(QuantType::Q8_0), cost: [7.0; 2],
        kernels: Some(levels::<Q6>()),
        groups: None,
    },
];

const N: usize = 256;
const G: usize = 16;

#[inline(always)]
fn recode(nmax: i32, x: &[f32], d: f32, codes: &mut [u8]) {
    if d != 0.0 {
        for (c, &v) in codes.iter_mut().zip(x) {
            *c = (nearest_int(v / d).clamp(-nmax, nmax - 1) + nmax) as u8;
        }
    }
}

/// Scale `j` of a Q3_K block, its offset removed.
#[inline(always)]
fn scale_6(j: usize, b: &[u8]) -> i32 {
    let low = b[j % 8] >> (4 * (j / 8)) & 15;
    i32::from(low | (b[8 + j % 4] >> (2 * (j / 4)) & 3) << 4) - 32
}

/// Codes of the scales, 32 added, that spread the largest to -32, and their scale.
#[inline(always)]
fn store_scales(scales: &[f32], stored: &mut [u8]) -> f32 {
    let max = signed_max(scales);
    if max == 0.0 {
        stored.fill(0);
        return 0.0;
    }
    let iscale = -32.0 / max;
    for (s, scale) in stored.iter_mut().zip(scales) {
        let code = nearest_int(iscale * scale) as i8;
        *s = (code.clamp(-32, 31) + 32) as u8;
    }
    1.0 / iscale
}

#[inline(always)]
fn finish_q3_k(x: &[f32], d: f32, scales: &[u8], codes: &mut [u8], out: &mut [u8]) {
    out[96..108].fill(0);
    for (j, s) in scales.iter().enumerate() {
        out[96 + j % 8] |= (s & 15) << (4 * (j / 8));
        out[104 + j % 4] |= (s >> 4) << (2 * (j / 4));
    }
    out[108..].copy_from_slice(&f16_bits(d));
    let d = f16(&out[108..]);
    for (j, (x, codes)) in x.chunks_exact(G).zip(codes.chunks_exact_mut(G)).enumerate() {
        recode(4, x, d * scale_6(j, &out[96..]) as f32, codes);
    }
    for l in 0..32 {
        let mut high = 0;
        for i in 0..8 {
            high |= (codes[32 * i + l] >> 2) << i;
        }
        out[l] = high;
    }
    for c in codes.iter_mut() {
        *c &= 3;
    }
    pack_pairs(codes, &mut out[32..96]);
}

#[inline(always)]
fn finish_q6_k(x: &[f32], scales: &[f32], codes: &mut [u8], out: &mut [u8]) {
    let max = signed_max(scales);
    if max.abs() < EPS {
        out.fill(0);
        return;
    }
    let iscale = -128.0 / max;
    out[208..].copy_from_slice(&f16_bits(1.0 / iscale));
    let d = f16(&out[208..]);
    for (j, (x, codes)) in x.chunks_exact(G).zip(codes.chunks_exact_mut(G)).enumerate() {
        let s = nearest_int(iscale * scales[j]).min(127) as i8;
        out[192 + j] = s as u8;
        recode(32, x, d * f32::from(s), codes);
    }
    let (ql, qh) = out.split_at_mut(128);
    for (h, codes) in codes.chunks_exact(128).enumerate() {
        for l in 0..64 {
            ql[64 * h + l] = (codes[l] & 15) | codes[l + 64] << 4;
        }
        for l in 0..32 {
            let q = [0, 32, 64, 96].map(|o| codes[o + l] >> 4);
            qh[32 * h + l] = q[0] | q[1] << 2 | q[2] << 4 | q[3] << 6;
        }
    }
}

struct Q3;

impl Blocks for Q3 {
    #[inline(always)]
    fn encode<S: Search>(x: &[f32], qw: Option<&[f32]>, out: &mut [u8]) {
        let (mut w, mut codes) = ([0f32; SPAN], [0u8; SPAN]);
        let (mut scales, mut stored, mut d) = ([0f32; SPAN / G], [0u8; SPAN / G], [0f32; SPAN / N]);
        for (i, (x, out)) in x.chunks(SPAN).zip(out.chunks_mut(SPAN / N * 110)).enumerate() {
            let (scales, codes) = (&mut scales[..x.len() / G], &mut codes[..x.len()]);
            let (stored, d) = (&mut stored[..x.len() / G], &mut d[..x.len() / N]);
            if let Some(qw) = qw {
                let w = &mut w[..x.len()];
                let squares = super_block_squares(x);
                for (b, x) in x.chunks_exact(N).enumerate() {
                    let (qw, w) = (&qw[i * SPAN + b * N..][..N], &mut w[b * N..][..N]);
                    importance_weights(x, qw, 2.0 * squares[b] / N as f32, w);
                }
                S::symmetric::<G>(4, x, w, scales, codes);
                let mut sums = [0f32; SPAN / G];
                let sums = &mut sums[..scales.len()];
                group_sums::<G>(w, sums);
                // Lanes take numbers only.
                if are_all_finite(scales) {
                    S::symmetric::<16>(32, scales, sums, d, stored);
                } else {
                    <Plain as search::Search>::symmetric::<16>(32, scales, sums, d, stored);
                }
            } else {
                S::refined::<G>(4, x, scales, codes);
                let groups = scales.chunks_exact(16).zip(stored.chunks_exact_mut(16));
                for ((scales, stored), d) in groups.zip(d.iter_mut()) {
                    *d = store_scales(scales, stored);
                }
            }
            let blocks = x.chunks_exact(N).zip(codes.chunks_exact_mut(N)).zip(d);
            let blocks = blocks.zip(stored.chunks_exact(16)).zip(out.chunks_exact_mut(110));
            for ((((x, codes), d), stored), out) in blocks {
                finish_q3_k(x, *d, stored, codes, out);
            }
        }
    }

    #[inline(always)]
    fn decode(bytes: &[u8], out: &mut [f32]) {
        for (b, out) in bytes.as_chunks::<110>().0.iter().zip(out.as_chunks_mut::<N>().0) {
            let d = f16(&b[108..]);
            for (j, out) in out.chunks_exact_mut(G).enumerate() {
                let d = d * scale_6(j, &b[96..]) as f32;
                let at = 16 * (j % 2);
                let (qs, high) = (&b[32 + 32 * (j / 8) + at..][..16], &b[at..][..16]);
                for ((v, q), h) in out.iter_mut().zip(qs).zip(high) {
                    let code = (q >> (j % 8 / 2 * 2) & 3) | (h >> (j / 2) & 1) << 2;
                    *v = d * (i32::from(code) - 4) as f32;
                }
            }
        }
    }
}

struct Q6;

impl Blocks for Q6 {
    #[inline(always)]
    fn encode<S: Search>(x: &[f32], qw: Option<&[f32]>, out: &mut [u8]) {
        let (mut w, mut codes) = ([0f32; SPAN], [0u8; SPAN]);
        let mut scales = [0f32; SPAN / G];
        for (i, (x, out)) in x.chunks(SPAN).zip(out.chunks_mut(SPAN / N * 210)).enumerate() {
            let w = if let Some(qw) = qw {
                &qw[i * SPAN..][..x.len()]
            } else {
                for (w, &v) in w.iter_mut().zip(x) {
                    *w = v * v;
                }
                &w[..x.len()]
            };
            let (scales, codes) = (&mut scales[..x.len() / G], &mut codes[..x.len()]);
            S::symmetric::<G>(32, x, w, scales, codes);
            let blocks = x.chunks_exact(N).zip(codes.chunks_exact_mut(N));
            let blocks = blocks.zip(scales.chunks_exact(G)).zip(out.chunks_exact_mut(210));
            for (((x, codes), scales), out) in blocks {
                finish_q6_k(x, scales, codes, out);
            }
        }
    }

    #[inline(always)]
    fn decode(bytes: &[u8], out: &mut [f32]) {
        for (b, out) in bytes.as_chunks::<210>().0.iter().zip(out.as_chunks_mut::<N>().0) {
            let d = f16(&b[208..]);
            for (j, out) in out.chunks_exact_mut(G).enumerate() {
                let d = d * f32::from(b[192 + j] as i8);
                let (h, part, at) = (j / 8, j % 8 / 2, 16 * (j % 2));
                let low = &b[64 * h + 32 * (part % 2) + at..][..16];
                let high = &b[128 + 32 * h + at..][..16];
                for ((v, l), h) in out.iter_mut().zip(low).zip(high) {
                    let code = (l >> (4 * (part / 2)) & 15) | (h >> (2 * part) & 3) << 4;
                    *v = d * (i32::from(code) - 32) as f32;
                }
            }
        }
    }
}
