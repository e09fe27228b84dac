//! Four-bit codes into a fixed table of 16 values: IQ4_NL, IQ4_XS.
//!
//! ```text
//! IQ4_NL  18 bytes  d f16 | qs 16                                    block of 32
//! IQ4_XS 136 bytes  d f16 | scales_h u16 | scales_l 4 | qs 128        8 groups of 32
//!   qs[16i+j]       7 6 5 4: element 32i+j+16   3 2 1 0: element 32i+j
//!   scales_l[j]     7 6 5 4: scale 2j+1, low bits   3 2 1 0: scale 2j
//!   scales_h        bits 2j+1, 2j: high bits of scale j
//! ```
//! Values: `d·values[q]` and `(d·(s - 32))·values[q]` (`quantize_row_iq4_nl_impl` with 7 tries).

use super::float::{f16, f16_bits};
use super::format::{Activation, Format, Importance, Kind, Numbers};
use super::groups::{Group, Grouped, groups};
use super::kernels::{Blocks, levels};
use super::lattice::Search;
use super::search::{
    CODEBOOK, SPAN, importance_weights, nearest_in_codebook, nearest_int, signed_max, sum_squares,
    super_block_squares,
};
use super::types::QuantType;

#[rustfmt::skip]
pub(super) const FORMATS: &[Format] = &[
    Format {
        ty: QuantType::IQ4_NL, kind: Kind::Blocks, len: 32, bytes: 18,
        numbers: Numbers::halves(&[0]), importance: Importance::Weighs,
        activations: Activation::Q8_0, fallback: Some(QuantType::F16), cost: [15.0; 2],
        kernels: Some(levels::<Nl>()),
        groups: Some(groups::<Nl, 18>()),
    },
    Format {
        ty: QuantType::IQ4_XS, kind: Kind::Blocks, len: 256, bytes: 136,
        numbers: Numbers::halves(&[0]), importance: Importance::Weighs,
        activations: Activation::Q8_K, fallback: Some(QuantType::IQ4_NL), cost: [15.0; 2],
        kernels: Some(levels::<Xs>()),
        groups: Some(groups::<Xs, 136>()),
    },
];

const G: usize = 32;

#[inline(always)]
fn inverse(d: f32) -> f32 {
    if d != 0.0 { 1.0 / d } else { 0.0 }
}

/// Codes of one group for the inverse of its scale.
#[inline(always)]
fn pack(x: &[f32], id: f32, qs: &mut [u8]) {
    for j in 0..16 {
        qs[j] = nearest_in_codebook(id * x[j]) | nearest_in_codebook(id * x[j + 16]) << 4;
    }
}

/// Searches the groups of a row, blocks of `N` weights, and hands each block with its scales to
/// `finish`.
#[inline(always)]
fn encode<S: Search, const N: usize, const BYTES: usize>(
    x: &[f32],
    qw: Option<&[f32]>,
    out: &mut [u8],
    finish: impl Fn(&[f32], &[f32], &mut [u8]),
) {
    let (mut w, mut scales) = ([0f32; SPAN], [0f32; SPAN / G]);
    for (i, (x, out)) in x.chunks(SPAN).zip(out.chunks_mut(SPAN / N * BYTES)).enumerate() {
        let squares = if N == 256 { super_block_squares(x) } else { [0.0; SPAN / 256] };
        for (b, (x, w)) in x.chunks_exact(N).zip(w.chunks_exact_mut(N)).enumerate() {
            if let Some(qw) = qw {
                let squares = if N == 256 { squares[b] } else { sum_squares(x) };
                let sigma2 = squares * (2.0 / N as f32);
                importance_weights(x, &qw[i * SPAN + b * N..][..N], sigma2, w);
            } else {
                for (w, &v) in w.iter_mut().zip(x) {
                    *w = v * v;
                }
            }
        }
        let scales = &mut scales[..x.len() / G];
        S::codebook::<G>(x, &w[..x.len()], scales);
        let blocks = x.chunks_exact(N).zip(scales.chunks_exact(N / G));
        for ((x, scales), out) in blocks.zip(out.chunks_exact_mut(BYTES)) {
            finish(x, scales, out);
        }
    }
}

/// The scale of group `j` of a super-block of IQ4_XS.
#[inline(always)]
fn scale_xs(b: &[u8; 136], j: usize) -> f32 {
    let low = i32::from(b[4 + j / 2] >> (4 * (j % 2)) & 15);
    let s = low | i32::from(u16::from_le_bytes([b[2], b[3]]) >> (2 * j) & 3) << 4;
    f16(b) * (s - 32) as f32
}

/// Values of a group, to be scaled.
#[inline(always)]
fn values(qs: &[u8]) -> [i8; G] {
    std::array::from_fn(|i| CODEBOOK[usize::from(qs[i % 16] >> (4 * (i / 16)) & 15)])
}

#[inline(always)]
fn unpack(qs: &[u8], d: f32, out: &mut [f32]) {
    let values = CODEBOOK.map(|v| d * f32::from(v));
    for j in 0..16 {
        out[j] = values[usize::from(qs[j] & 15)];
        out[j + 16] = values[usize::from(qs[j] >> 4)];
    }
}

struct Nl;

impl Blocks for Nl {
    #[inline(always)]
    fn encode<S: Search>(x: &[f32], qw: Option<&[f32]>, out: &mut [u8]) {
        encode::<S, 32, 18>(x, qw, out, |x, scales, out| {
            out[..2].copy_from_slice(&f16_bits(scales[0]));
            pack(x, inverse(scales[0]), &mut out[2..]);
        });
    }

    #[inline(always)]
    fn decode(bytes: &[u8], out: &mut [f32]) {
        for (b, out) in bytes.as_chunks::<18>().0.iter().zip(out.as_chunks_mut::<32>().0) {
            unpack(&b[2..], f16(b), out);
        }
    }
}

impl Grouped<18> for Nl {
    const OFFSETS: bool = false;

    #[inline(always)]
    fn group(b: &[u8; 18], _: usize) -> Group {
        Group { codes: values(&b[2..]), scale: f16(b), offset: 0.0 }
    }
}

struct Xs;

impl Blocks for Xs {
    #[inline(always)]
    fn encode<S: Search>(x: &[f32], qw: Option<&[f32]>, out: &mut [u8]) {
        encode::<S, 256, 136>(x, qw, out, |x, scales, out| {
            let d = -signed_max(scales) / 32.0;
            let id = inverse(d);
            out[..2].copy_from_slice(&f16_bits(d));
            out[4..8].fill(0);
            let mut high = 0u16;
            for (j, x) in x.chunks_exact(G).enumerate() {
                let s = nearest_int(id * scales[j]).clamp(-32, 31);
                pack(x, inverse(d * s as f32), &mut out[8 + 16 * j..][..16]);
                let s = (s + 32) as u8;
                out[4 + j / 2] |= (s & 15) << (4 * (j % 2));
                high |= u16::from(s >> 4) << (2 * j);
            }
            out[2..4].copy_from_slice(&high.to_le_bytes());
        });
    }

    #[inline(always)]
    fn decode(bytes: &[u8], out: &mut [f32]) {
        for (b, out) in bytes.as_chunks::<136>().0.iter().zip(out.as_chunks_mut::<256>().0) {
            for (j, out) in out.chunks_exact_mut(G).enumerate() {
                unpack(&b[8 + 16 * j..], scale_xs(b, j), out);
            }
        }
    }
}

impl Grouped<136> for Xs {
    const OFFSETS: bool = false;

    #[inline(always)]
    fn group(b: &[u8; 136], j: usize) -> Group {
        Group { codes: values(&b[8 + 16 * j..]), scale: scale_xs(b, j), offset: 0.0 }
    }
}
