//! Super-blocks of 256 whose groups have a scale and a minimum: Q2_K, Q4_K, Q5_K.
//!
//! ```text
//! Q2_K  84 bytes  scales 16 | qs 64 | d f16 | dmin f16               16 groups of 16
//! Q4_K 144 bytes  d f16 | dmin f16 | scales 12 |       | qs 128       8 groups of 32
//! Q5_K 176 bytes  d f16 | dmin f16 | scales 12 | qh 32 | qs 128       8 groups of 32
//!
//! Q2_K scales[j]      7 6 5 4   3 2 1 0        qs[32h+l]   7 6   5 4   3 2   1 0
//!                     min j     scale j        128h+l+     96    64    32    0
//! Q4_K, Q5_K scales   7 6            5 4 3 2 1 0
//!   b[j],   j < 4     s[j+4] high    s[j]
//!   b[j+4], j < 4     m[j+4] high    m[j]
//!   b[j+8], j < 4     7 6 5 4: m[j+4] low   3 2 1 0: s[j+4] low
//! qs[32c+l]           7 6 5 4: element 64c+l+32   3 2 1 0: element 64c+l
//! qh[l] bit i         fifth bit of element 32i+l
//! ```
//! Value: `(d·s)·q - dmin·m`. After the search for each group, all codes are made anew with the
//! scales as stored; the codes of the search survive only where a stored scale is zero
//! (`quantize_row_q{2,4,5}_K_ref` without and `_impl` with importances).

use super::float::{f16, f16_bits};
use super::format::{Activation, Format, Importance, Kind, Numbers};
use super::groups::{Group, Grouped, groups};
use super::kernels::{Blocks, levels};
use super::lattice::Search;
use super::search::{
    ROWS, SPAN, Steps, group_sums, importance_weights, nearest_int, super_block_squares,
};
use super::types::QuantType;

#[rustfmt::skip]
pub(super) const FORMATS: &[Format] = &[
    Format {
        ty: QuantType::Q2_K, kind: Kind::Blocks, len: 256, bytes: 84,
        numbers: Numbers::halves(&[80, 82]), importance: Importance::WantedIn(&["Q2_K_S"]),
        activations: Activation::Q8_K, fallback: Some(QuantType::Q4_0), cost: [11.0, 18.0],
        kernels: Some(levels::<Q2>()),
        groups: None,
    },
    Format {
        ty: QuantType::Q4_K, kind: Kind::Blocks, len: 256, bytes: 144,
        numbers: Numbers::halves(&[0, 2]), importance: Importance::Weighs,
        activations: Activation::Q8_K, fallback: Some(QuantType::Q5_0), cost: [11.0, 18.0],
        kernels: Some(levels::<Q32<15, 144>>()),
        groups: Some(groups::<Q32<15, 144>, 144>()),
    },
    Format {
        ty: QuantType::Q5_K, kind: Kind::Blocks, len: 256, bytes: 176,
        numbers: Numbers::halves(&[0, 2]), importance: Importance::Weighs,
        activations: Activation::Q8_K, fallback: Some(QuantType::Q5_1), cost: [11.0, 18.0],
        kernels: Some(levels::<Q32<31, 176>>()),
        groups: Some(groups::<Q32<31, 176>, 176>()),
    },
];

const N: usize = 256;

/// Scale and minimum of group `j`.
#[inline(always)]
fn scale_min(j: usize, b: &[u8]) -> (u8, u8) {
    if j < 4 {
        (b[j] & 63, b[j + 4] & 63)
    } else {
        ((b[j + 4] & 15) | (b[j - 4] >> 6 << 4), (b[j + 4] >> 4) | (b[j] >> 6 << 4))
    }
}

#[inline(always)]
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

/// The codes of one group for scales as stored, left alone if the scale is zero.
#[inline(always)]
fn recode(nmax: i32, x: &[f32], d: f32, m: f32, codes: &mut [u8]) {
    if d != 0.0 {
        for (c, &v) in codes.iter_mut().zip(x) {
            *c = nearest_int((v + m) / d).clamp(0, nmax) as u8;
        }
    }
}

/// Weights of a super-block for the search, and of its groups for their scales.
#[inline(always)]
fn weigh<S: Search, const G: usize>(
    x: &[f32],
    qw: Option<&[f32]>,
    squares: f32,
    w: &mut [f32],
    sums: &mut [f32],
) {
    let Some(qw) = qw else {
        // Of eight groups of 32; smaller ones have no average.
        let squares = if G == 16 { [0.0; ROWS] } else { S::row_squares(x, G) };
        for (g, (x, w)) in x.chunks_exact(G).zip(w.chunks_exact_mut(G)).enumerate() {
            let average = if G == 16 { 0.0 } else { (squares[g] / G as f32).sqrt() };
            for (w, v) in w.iter_mut().zip(x) {
                *w = average + v.abs();
            }
        }
        return;
    };
    let factor = if G == 16 { 1.0 } else { 2.0 };
    importance_weights(x, qw, factor * squares / N as f32, w);
    group_sums::<G>(w, sums);
}

/// `top / max` and `max / top`, both 0 unless `max > 0`.
#[inline(always)]
fn largest(values: &[f32], top: f32) -> (f32, f32) {
    let mut max = 0f32;
    for &v in values {
        max = if v > max { v } else { max };
    }
    if max > 0.0 { (top / max, max / top) } else { (0.0, 0.0) }
}

/// Searches all groups of a row and hands each super-block with its groups' weights, scales,
/// minima and codes to what its type, known by its bytes, does with them.
#[inline(always)]
fn encode<S: Search, const G: usize, const BYTES: usize>(
    steps: Steps,
    x: &[f32],
    qw: Option<&[f32]>,
    out: &mut [u8],
) {
    let steps = if qw.is_some() { Steps::weighted(steps.nmax) } else { steps };
    let (mut w, mut codes, mut sums) = ([0f32; SPAN], [0u8; SPAN], [0f32; SPAN / 16]);
    let (mut scales, mut mins) = ([0f32; SPAN / 16], [0f32; SPAN / 16]);
    for (i, (x, out)) in x.chunks(SPAN).zip(out.chunks_mut(SPAN / N * BYTES)).enumerate() {
        let squares = if qw.is_some() { super_block_squares(x) } else { [0.0; SPAN / N] };
        for (b, x) in x.chunks_exact(N).enumerate() {
            let qw = qw.map(|qw| &qw[i * SPAN + b * N..][..N]);
            weigh::<S, G>(x, qw, squares[b], &mut w[b * N..][..N], &mut sums[b * N / G..][..N / G]);
        }
        let n = x.len() / G;
        let codes = &mut codes[..x.len()];
        S::asymmetric::<G>(steps, x, &w[..x.len()], &mut scales[..n], &mut mins[..n], codes);
        let blocks = x.chunks_exact(N).zip(codes.chunks_exact_mut(N));
        for (b, ((x, codes), out)) in blocks.zip(out.chunks_exact_mut(BYTES)).enumerate() {
            let groups = [&scales, &mins, &sums].map(|v| &v[b * N / G..][..N / G]);
            // No function handed in: that would not be compiled for the lanes' instructions.
            match BYTES {
                84 => finish_q2_k::<S>(qw.is_some(), x, groups, codes, out),
                144 => finish_32::<S, 15>(qw.is_some(), x, groups, codes, out),
                _ => finish_32::<S, 31>(qw.is_some(), x, groups, codes, out),
            }
        }
    }
}

/// What Q2_K does after the search.
#[inline(always)]
fn finish_q2_k<S: Search>(
    weighted: bool,
    x: &[f32],
    [scales, mins, sums]: [&[f32]; 3],
    codes: &mut [u8],
    out: &mut [u8],
) {
    let (d, dmin);
    if weighted {
        let (mut s, mut m) = ([0u8; 16], [0u8; 16]);
        d = S::positive::<16>(15, scales, sums, &mut s);
        dmin = S::positive::<16>(15, mins, sums, &mut m);
        for (j, out) in out[..16].iter_mut().enumerate() {
            *out = s[j] | m[j] << 4;
        }
    } else {
        let ((inv_scale, max_d), (inv_min, max_dmin)) =
            (largest(scales, 15.0), largest(mins, 15.0));
        (d, dmin) = (max_d, max_dmin);
        for (j, out) in out[..16].iter_mut().enumerate() {
            let (s, m) = (nearest_int(inv_scale * scales[j]), nearest_int(inv_min * mins[j]));
            *out = s as u8 | (m as u8) << 4;
        }
    }
    out[80..82].copy_from_slice(&f16_bits(d));
    out[82..84].copy_from_slice(&f16_bits(dmin));
    let (d, dmin) = (f16(&out[80..]), f16(&out[82..]));
    for (j, (x, codes)) in x.chunks_exact(16).zip(codes.chunks_exact_mut(16)).enumerate() {
        recode(3, x, d * f32::from(out[j] & 15), dmin * f32::from(out[j] >> 4), codes);
    }
    pack_pairs(codes, &mut out[16..80]);
}

/// Four 2-bit codes to a byte, 32 elements apart.
#[inline(always)]
pub(super) fn pack_pairs(codes: &[u8], qs: &mut [u8]) {
    for (codes, qs) in codes.chunks_exact(128).zip(qs.chunks_exact_mut(32)) {
        for (l, q) in qs.iter_mut().enumerate() {
            *q = codes[l] | codes[l + 32] << 2 | codes[l + 64] << 4 | codes[l + 96] << 6;
        }
    }
}

/// What Q4_K and Q5_K do after the search.
#[inline(always)]
fn finish_32<S: Search, const NMAX: i32>(
    weighted: bool,
    x: &[f32],
    [scales, mins, sums]: [&[f32]; 3],
    codes: &mut [u8],
    out: &mut [u8],
) {
    let (d, dmin);
    let (mut s, mut m) = ([0u8; 8], [0u8; 8]);
    if weighted {
        d = S::positive::<8>(63, scales, sums, &mut s);
        dmin = S::positive::<8>(63, mins, sums, &mut m);
        // A negative scale wraps to a large code. Only Q5_K limits it, as in the reference.
        if NMAX == 31 {
            (s, m) = (s.map(|c| c.min(63)), m.map(|c| c.min(63)));
        }
    } else {
        let ((inv_scale, max_d), (inv_min, max_dmin)) =
            (largest(scales, 63.0), largest(mins, 63.0));
        (d, dmin) = (max_d, max_dmin);
        for j in 0..8 {
            s[j] = (nearest_int(inv_scale * scales[j]) as u8).min(63);
            m[j] = (nearest_int(inv_min * mins[j]) as u8).min(63);
        }
    }
    out[..2].copy_from_slice(&f16_bits(d));
    out[2..4].copy_from_slice(&f16_bits(dmin));
    for j in 0..8 {
        set_scale_min(j, s[j], m[j], &mut out[4..16]);
    }
    let (d, dmin) = (f16(out), f16(&out[2..]));
    for (j, (x, codes)) in x.chunks_exact(32).zip(codes.chunks_exact_mut(32)).enumerate() {
        let (s, m) = scale_min(j, &out[4..16]);
        recode(NMAX, x, d * f32::from(s), dmin * f32::from(m), codes);
    }
    let at = out.len() - 128;
    for (codes, qs) in codes.chunks_exact(64).zip(out[at..].chunks_exact_mut(32)) {
        for (l, q) in qs.iter_mut().enumerate() {
            *q = (codes[l] & 15) | codes[l + 32] << 4;
        }
    }
    if NMAX == 31 {
        for l in 0..32 {
            let mut high = 0;
            for i in 0..8 {
                high |= (codes[32 * i + l] >> 4) << i;
            }
            out[16 + l] = high;
        }
    }
}

/// Codes of group `j` of a super-block of Q4_K (144 bytes) or Q5_K (176).
#[inline(always)]
fn unpack_32<const BYTES: usize>(b: &[u8; BYTES], j: usize) -> [i8; 32] {
    let qs = &b[BYTES - 128 + 32 * (j / 2)..][..32];
    std::array::from_fn(|l| {
        let high = if BYTES == 176 { (b[16 + l] >> j & 1) << 4 } else { 0 };
        ((qs[l] >> (4 * (j % 2)) & 15) | high) as i8
    })
}

struct Q2;

impl Blocks for Q2 {
    #[inline(always)]
    fn encode<S: Search>(x: &[f32], qw: Option<&[f32]>, out: &mut [u8]) {
        let steps = Steps { nmax: 3, rmin: -0.5, rdelta: 0.1, steps: 15, absolute: true };
        encode::<S, 16, 84>(steps, x, qw, out);
    }

    #[inline(always)]
    fn decode(bytes: &[u8], out: &mut [f32]) {
        for (b, out) in bytes.as_chunks::<84>().0.iter().zip(out.as_chunks_mut::<N>().0) {
            let (d, dmin) = (f16(&b[80..]), f16(&b[82..]));
            for (j, out) in out.chunks_exact_mut(16).enumerate() {
                let (d, m) = (d * f32::from(b[j] & 15), dmin * f32::from(b[j] >> 4));
                let qs = &b[16 + 32 * (j / 8) + 16 * (j % 2)..][..16];
                for (v, q) in out.iter_mut().zip(qs) {
                    *v = d * f32::from(q >> (j % 8 / 2 * 2) & 3) - m;
                }
            }
        }
    }
}

/// Q4_K (`NMAX` = 15) and Q5_K (31).
struct Q32<const NMAX: i32, const BYTES: usize>;

impl<const NMAX: i32, const BYTES: usize> Blocks for Q32<NMAX, BYTES> {
    #[inline(always)]
    fn encode<S: Search>(x: &[f32], qw: Option<&[f32]>, out: &mut [u8]) {
        let (rmin, steps) = if NMAX == 15 { (-1.0, 20) } else { (-0.5, 15) };
        let steps = Steps { nmax: NMAX, rmin, rdelta: 0.1, steps, absolute: false };
        encode::<S, 32, BYTES>(steps, x, qw, out);
    }

    #[inline(always)]
    fn decode(bytes: &[u8], out: &mut [f32]) {
        for (b, out) in bytes.as_chunks::<BYTES>().0.iter().zip(out.as_chunks_mut::<N>().0) {
            let (d, dmin) = (f16(b), f16(&b[2..]));
            for (j, out) in out.chunks_exact_mut(32).enumerate() {
                let (s, m) = scale_min(j, &b[4..16]);
                let (d, m) = (d * f32::from(s), dmin * f32::from(m));
                for (v, q) in out.iter_mut().zip(unpack_32(b, j)) {
                    *v = d * f32::from(q) - m;
                }
            }
        }
    }
}

impl<const NMAX: i32, const BYTES: usize> Grouped<BYTES> for Q32<NMAX, BYTES> {
    const OFFSETS: bool = true;

    #[inline(always)]
    fn group(b: &[u8; BYTES], j: usize) -> Group {
        let (scale, min) = scale_min(j, &b[4..16]);
        Group {
            codes: unpack_32(b, j),
            scale: f16(b) * f32::from(scale),
            offset: -(f16(&b[2..]) * f32::from(min)),
        }
    }
}
