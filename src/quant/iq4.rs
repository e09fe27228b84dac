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

use super::float::{f16, put_f16};
use super::format::{Activation, Format, Importance, Kind, Numbers};
use super::groups::{Group, Grouped, decode, groups};
use super::guide::Guide;
use super::kernels::{Blocks, levels};
use super::lattice::Search;
use super::rounding::{Grid, Scalar, rounding};
use super::search::{
    CODEBOOK, SPAN, importance_weights, inverse, nearest_in_codebook, nearest_int, signed_max,
    sum_squares, super_block_squares,
};
use super::types::QuantType;
use super::wide::{self, Room};

#[rustfmt::skip]
pub(super) const FORMATS: &[Format] = &[
    Format {
        ty: QuantType::IQ4_NL, kind: Kind::Blocks, len: 32, bytes: 18,
        numbers: Numbers::halves(&[0]), importance: Importance::Weighs,
        activations: Activation::Q8_0, fallback: Some(QuantType::F16), cost: [15.0; 2],
        kernels: Some(levels::<Table<32, 18>>()),
        rounding: Some(rounding::<Table<32, 18>, 32, 32, 18>()),
        groups: groups::<Table<32, 18>, 18>(),
    },
    Format {
        ty: QuantType::IQ4_XS, kind: Kind::Blocks, len: 256, bytes: 136,
        numbers: Numbers::halves(&[0]), importance: Importance::Weighs,
        activations: Activation::Q8_K, fallback: Some(QuantType::IQ4_NL), cost: [15.0; 2],
        kernels: Some(levels::<Table<256, 136>>()),
        rounding: Some(rounding::<Table<256, 136>, 256, 32, 136>()),
        groups: groups::<Table<256, 136>, 136>(),
    },
];

const G: usize = 32;

/// Blocks of `N` weights.
struct Table<const N: usize, const BYTES: usize>;

impl<const N: usize, const BYTES: usize> Table<N, BYTES> {
    /// Where the codes begin.
    const QS: usize = BYTES - N / 2;

    /// The scale of a block and the codes of its groups', 32 added.
    #[inline(always)]
    fn snap(scales: &[f32]) -> (f32, [u8; 8]) {
        let mut stored = [33; 8];
        if N == G {
            return (scales[0], stored);
        }
        let d = -signed_max(scales) / 32.0;
        let id = inverse(d);
        for j in 0..N / G {
            stored[j] = (nearest_int(id * scales[j]).clamp(-32, 31) + 32) as u8;
        }
        (d, stored)
    }

    /// Scales as stored with which the weights are nearest.
    #[inline(always)]
    fn settle(x: &[f32], w: &[f32], scales: &[f32], d: f32) -> (f32, [u8; 8]) {
        let room = Room { numbers: wide::Numbers::Codebook, scales: (-32, 31), mins: 0 };
        let found = room.settle::<G>(x, w, scales, &[], (d, 0.0));
        let mut stored = [0; 8];
        for j in 0..N / G {
            stored[j] = (found.scales[j] + 32) as u8;
        }
        (found.d, stored)
    }

    /// Writes scales, and gives the inverses of groups', with which codes are made.
    #[inline(always)]
    fn pack_scales(d: f32, stored: &[u8; 8], out: &mut [u8; BYTES]) -> [f32; 8] {
        put_f16(out, d);
        let mut inverses = [0f32; 8];
        if N == G {
            inverses[0] = inverse(d);
            return inverses;
        }
        out[4..8].fill(0);
        let mut high = 0u16;
        for j in 0..N / G {
            let s = stored[j];
            inverses[j] = inverse(d * (f32::from(s) - 32.0));
            out[4 + j / 2] |= (s & 15) << (4 * (j % 2));
            high |= u16::from(s >> 4) << (2 * j);
        }
        [out[2], out[3]] = high.to_le_bytes();
        inverses
    }

    /// The scale of group `j`.
    #[inline(always)]
    fn unpack_scale(b: &[u8; BYTES], j: usize) -> f32 {
        if N == G {
            return f16(b);
        }
        let low = i32::from(b[4 + j / 2] >> (4 * (j % 2)) & 15);
        let s = low | i32::from(u16::from_le_bytes([b[2], b[3]]) >> (2 * j) & 3) << 4;
        f16(b) * (s - 32) as f32
    }
}

impl<const N: usize, const BYTES: usize> Scalar<N, G, BYTES> for Table<N, BYTES> {
    const GRID: Grid = Grid::These(&CODEBOOK);

    #[inline(always)]
    fn pack(codes: &[u8; N], out: &mut [u8; BYTES]) {
        let (codes, out) = (codes.as_chunks::<G>().0, out[Self::QS..].as_chunks_mut::<16>().0);
        for g in 0..N / G {
            for j in 0..16 {
                out[g][j] = codes[g][j] | codes[g][j + 16] << 4;
            }
        }
    }
}

impl<const N: usize, const BYTES: usize> Blocks for Table<N, BYTES> {
    const SEARCHES: bool = true;

    #[inline(always)]
    fn encode<S: Search>(x: &[f32], guide: Guide, out: &mut [u8]) {
        let qw = guide.columns();
        let (mut w, mut scales) = ([0f32; SPAN], [0f32; SPAN / G]);
        let out = out.as_chunks_mut::<BYTES>().0;
        let mut at = 0;
        while at < x.len() {
            let len = SPAN.min(x.len() - at);
            let (x, out) = (&x[at..][..len], &mut out[at / N..]);
            let (w, scales) = (&mut w[..len], &mut scales[..len / G]);
            if let Some(qw) = qw {
                let squares = if N == 256 { super_block_squares(x) } else { [0.0; SPAN / 256] };
                for b in 0..len / N {
                    let (x, w) = (&x[b * N..][..N], &mut w[b * N..][..N]);
                    let squares = if N == 256 { squares[b] } else { sum_squares(x) };
                    let sigma2 = squares * (2.0 / N as f32);
                    importance_weights(x, &qw[at + b * N..][..N], sigma2, w);
                }
            } else {
                for i in 0..len {
                    w[i] = x[i] * x[i];
                }
            }
            S::codebook::<G>(x, w, scales);
            for b in 0..len / N {
                let groups = b * N / G..(b + 1) * N / G;
                let scales = &scales[groups.clone()];
                let (mut d, mut stored) = Self::snap(scales);
                if S::WIDE && N > G {
                    (d, stored) = Self::settle(&x[b * N..], &w[b * N..], scales, d);
                }
                let inverses = Self::pack_scales(d, &stored, &mut out[b]);
                let x = &x.as_chunks::<G>().0[groups];
                let mut codes = [0u8; N];
                for j in 0..N / G {
                    for i in 0..G {
                        codes[G * j + i] = nearest_in_codebook(inverses[j] * x[j][i]);
                    }
                }
                Self::pack(&codes, &mut out[b]);
            }
            at += len;
        }
    }

    #[inline(always)]
    fn decode(bytes: &[u8], out: &mut [f32]) {
        decode::<Self, N, G, BYTES>(bytes, out);
    }
}

impl<const N: usize, const BYTES: usize> Grouped<G, BYTES> for Table<N, BYTES> {
    const OFFSETS: bool = false;
    const LARGEST: i16 = 127;

    #[inline(always)]
    fn group(b: &[u8; BYTES], j: usize) -> Group<G> {
        let qs = &b[Self::QS + 16 * j..][..16];
        let mut codes = [0; G];
        for i in 0..16 {
            codes[i] = CODEBOOK[usize::from(qs[i] & 15)];
            codes[i + 16] = CODEBOOK[usize::from(qs[i] >> 4)];
        }
        Group { codes, scale: Self::unpack_scale(b, j), offset: 0.0 }
    }

    #[inline(always)]
    fn units(b: &[u8; BYTES]) -> [f32; 2] {
        [f16(b), 0.0]
    }
}
