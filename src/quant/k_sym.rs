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

use super::float::{are_all_finite, f16, put_f16};
use super::format::{Activation, Format, Importance, Kind, Numbers};
use super::groups::{Group, Grouped, decode, groups_of_16};
use super::guide::Guide;
use super::k_min::pack_pairs;
use super::kernels::{Blocks, levels};
use super::lattice::Search;
use super::rounding::{Grid, Scalar, rounding};
use super::search::{
    self, EPS, Plain, SPAN, group_sums, importance_weights, nearest_int, signed_max,
    super_block_squares,
};
use super::types::QuantType;
use super::wide::{self, Room};

#[rustfmt::skip]
pub(super) const FORMATS: &[Format] = &[
    Format {
        ty: QuantType::Q3_K, kind: Kind::Blocks, len: 256, bytes: 110,
        numbers: Numbers::halves(&[108]), importance: Importance::Weighs,
        activations: Activation::Q8_K, fallback: Some(QuantType::Q4_0), cost: [7.0; 2],
        kernels: Some(levels::<Q3>()),
        rounding: Some(rounding::<Q3, 256, 16, 110>()),
        groups: groups_of_16::<Q3, 110>(),
    },
    Format {
        ty: QuantType::Q6_K, kind: Kind::Blocks, len: 256, bytes: 210,
        numbers: Numbers::halves(&[208]), importance: Importance::Weighs,
        activations: Activation::Q8_K, fallback: Some(QuantType::Q8_0), cost: [7.0; 2],
        kernels: Some(levels::<Q6>()),
        rounding: Some(rounding::<Q6, 256, 16, 210>()),
        groups: groups_of_16::<Q6, 210>(),
    },
];

const N: usize = 256;
const G: usize = 16;

/// The codes for a scale as stored, left alone if it is zero.
#[inline(always)]
fn round(nmax: i32, x: &[f32; G], d: f32, codes: &mut [u8; G]) {
    if d != 0.0 {
        for i in 0..G {
            codes[i] = (nearest_int(x[i] / d).clamp(-nmax, nmax - 1) + nmax) as u8;
        }
    }
}

struct Q3;

impl Q3 {
    /// Codes of the scales, 32 added, that spread the largest to -32, and their scale.
    #[inline(always)]
    fn snap(scales: &[f32], stored: &mut [u8]) -> f32 {
        let max = signed_max(scales);
        if max == 0.0 {
            stored.fill(0);
            return 0.0;
        }
        let iscale = -32.0 / max;
        for j in 0..N / G {
            let code = nearest_int(iscale * scales[j]) as i8;
            stored[j] = (code.clamp(-32, 31) + 32) as u8;
        }
        1.0 / iscale
    }

    #[inline(always)]
    fn pack_scales(d: f32, scales: &[u8], out: &mut [u8; 110]) {
        out[96..108].fill(0);
        for j in 0..N / G {
            out[96 + j % 8] |= (scales[j] & 15) << (4 * (j / 8));
            out[104 + j % 4] |= (scales[j] >> 4) << (2 * (j / 4));
        }
        put_f16(&mut out[108..], d);
    }

    /// Scale `j`.
    #[inline(always)]
    fn unpack_scale(j: usize, b: &[u8; 110]) -> f32 {
        let low = b[96 + j % 8] >> (4 * (j / 8)) & 15;
        let s = i32::from(low | (b[104 + j % 4] >> (2 * (j / 4)) & 3) << 4) - 32;
        f16(&b[108..]) * s as f32
    }
}

impl Scalar<N, G, 110> for Q3 {
    const GRID: Grid = Grid::Whole(-4, 3);

    #[inline(always)]
    fn pack(codes: &[u8; N], out: &mut [u8; 110]) {
        for l in 0..32 {
            let mut high = 0;
            for i in 0..8 {
                high |= (codes[32 * i + l] >> 2) << i;
            }
            out[l] = high;
        }
        let mut low = [0u8; N];
        for i in 0..N {
            low[i] = codes[i] & 3;
        }
        pack_pairs(&low, &mut out[32..96]);
    }
}

impl Blocks for Q3 {
    const SEARCHES: bool = true;

    #[inline(always)]
    fn encode<S: Search>(x: &[f32], guide: Guide, out: &mut [u8]) {
        let qw = guide.columns();
        let (mut w, mut codes) = ([0f32; SPAN], [0u8; SPAN]);
        let (mut scales, mut stored) = ([0f32; SPAN / G], [0u8; SPAN / G]);
        let (mut sums, mut d) = ([0f32; SPAN / G], [0f32; SPAN / N]);
        let out = out.as_chunks_mut::<110>().0;
        let mut at = 0;
        while at < x.len() {
            let len = SPAN.min(x.len() - at);
            let (x, out) = (&x[at..][..len], &mut out[at / N..]);
            let (scales, codes) = (&mut scales[..len / G], &mut codes[..len]);
            let (stored, d) = (&mut stored[..len / G], &mut d[..len / N]);
            if let Some(qw) = qw {
                let (w, squares) = (&mut w[..len], super_block_squares(x));
                for b in 0..len / N {
                    let (x, qw) = (&x[b * N..][..N], &qw[at + b * N..][..N]);
                    let sigma2 = 2.0 * squares[b] / N as f32;
                    importance_weights(x, qw, sigma2, &mut w[b * N..][..N]);
                }
                S::symmetric::<G>(4, x, w, scales, codes);
                let sums = &mut sums[..len / G];
                group_sums::<G>(w, sums);
                // Lanes take numbers only.
                if are_all_finite(scales) {
                    S::symmetric::<16>(32, scales, sums, d, stored);
                } else {
                    <Plain as search::Search>::symmetric::<16>(32, scales, sums, d, stored);
                }
            } else {
                S::refined::<G>(4, x, scales, codes);
                for b in 0..len / N {
                    let groups = b * N / G..(b + 1) * N / G;
                    d[b] = Self::snap(&scales[groups.clone()], &mut stored[groups]);
                }
            }
            let (x, codes) = (x.as_chunks::<G>().0, codes.as_chunks_mut::<G>().0);
            for b in 0..len / N {
                let groups = b * N / G..(b + 1) * N / G;
                let (out, codes) = (&mut out[b], &mut codes[groups.clone()]);
                if S::WIDE {
                    let numbers = wide::Numbers::Whole(-4.0, 3.0);
                    let room = Room { numbers, scales: (-32, 31), mins: 0 };
                    let (x, w) = (x[b * N / G..].as_flattened(), &w[b * N..]);
                    let found = room.settle::<G>(x, w, &scales[groups.clone()], &[], (d[b], 0.0));
                    d[b] = found.d;
                    for j in 0..N / G {
                        stored[b * N / G + j] = (found.scales[j] + 32) as u8;
                    }
                }
                Self::pack_scales(d[b], &stored[groups], out);
                for j in 0..N / G {
                    round(4, &x[b * N / G + j], Self::unpack_scale(j, out), &mut codes[j]);
                }
                Self::pack(&codes.as_flattened().as_chunks().0[0], out);
            }
            at += len;
        }
    }

    #[inline(always)]
    fn decode(bytes: &[u8], out: &mut [f32]) {
        decode::<Self, N, G, 110>(bytes, out);
    }
}

impl Grouped<G, 110> for Q3 {
    const OFFSETS: bool = false;
    const LARGEST: i16 = 4;

    #[inline(always)]
    fn group(b: &[u8; 110], j: usize) -> Group<G> {
        let at = 16 * (j % 2);
        let (qs, high) = (&b[32 + 32 * (j / 8) + at..][..G], &b[at..][..G]);
        let mut codes = [0; G];
        for l in 0..G {
            let code = (qs[l] >> (j % 8 / 2 * 2) & 3) | (high[l] >> (j / 2) & 1) << 2;
            codes[l] = code as i8 - 4;
        }
        Group { codes, scale: Self::unpack_scale(j, b), offset: 0.0 }
    }

    #[inline(always)]
    fn units(b: &[u8; 110]) -> [f32; 2] {
        [f16(&b[108..]), 0.0]
    }
}

struct Q6;

impl Scalar<N, G, 210> for Q6 {
    const GRID: Grid = Grid::Whole(-32, 31);

    #[inline(always)]
    fn pack(codes: &[u8; N], out: &mut [u8; 210]) {
        for h in 0..2 {
            let codes = &codes[128 * h..][..128];
            for l in 0..64 {
                out[64 * h + l] = (codes[l] & 15) | codes[l + 64] << 4;
            }
            for l in 0..32 {
                let (a, b) = (codes[l] >> 4, codes[32 + l] >> 4);
                let (c, d) = (codes[64 + l] >> 4, codes[96 + l] >> 4);
                out[128 + 32 * h + l] = a | b << 2 | c << 4 | d << 6;
            }
        }
    }
}

impl Blocks for Q6 {
    const SEARCHES: bool = true;

    #[inline(always)]
    fn encode<S: Search>(x: &[f32], guide: Guide, out: &mut [u8]) {
        let qw = guide.columns();
        let (mut w, mut codes) = ([0f32; SPAN], [0u8; SPAN]);
        let mut scales = [0f32; SPAN / G];
        let out = out.as_chunks_mut::<210>().0;
        let mut at = 0;
        while at < x.len() {
            let len = SPAN.min(x.len() - at);
            let (x, out) = (&x[at..][..len], &mut out[at / N..]);
            let w = match qw {
                Some(qw) => &qw[at..][..len],
                None => {
                    let w = &mut w[..len];
                    for i in 0..len {
                        w[i] = x[i] * x[i];
                    }
                    &*w
                }
            };
            let (scales, codes) = (&mut scales[..len / G], &mut codes[..len]);
            S::symmetric::<G>(32, x, w, scales, codes);
            let (x, codes) = (x.as_chunks::<G>().0, codes.as_chunks_mut::<G>().0);
            for b in 0..len / N {
                let groups = b * N / G..(b + 1) * N / G;
                let (scales, out) = (&scales[groups.clone()], &mut out[b]);
                let max = signed_max(scales);
                if max.abs() < EPS {
                    out.fill(0);
                    continue;
                }
                let iscale = -128.0 / max;
                let mut d = 1.0 / iscale;
                let mut stored = [0i8; N / G];
                for j in 0..N / G {
                    stored[j] = nearest_int(iscale * scales[j]).min(127) as i8;
                }
                let (x, codes) = (&x[groups.clone()], &mut codes[groups]);
                if S::WIDE {
                    let numbers = wide::Numbers::Whole(-32.0, 31.0);
                    let room = Room { numbers, scales: (-128, 127), mins: 0 };
                    let (x, w) = (x.as_flattened(), &w[b * N..]);
                    let found = room.settle::<G>(x, w, scales, &[], (d, 0.0));
                    (d, stored) = (found.d, found.scales);
                }
                put_f16(&mut out[208..], d);
                let d = f16(&out[208..]);
                for j in 0..N / G {
                    let s = stored[j];
                    out[192 + j] = s as u8;
                    round(32, &x[j], d * f32::from(s), &mut codes[j]);
                }
                Self::pack(&codes.as_flattened().as_chunks().0[0], out);
            }
            at += len;
        }
    }

    #[inline(always)]
    fn decode(bytes: &[u8], out: &mut [f32]) {
        decode::<Self, N, G, 210>(bytes, out);
    }
}

impl Grouped<G, 210> for Q6 {
    const OFFSETS: bool = false;
    const LARGEST: i16 = 32;

    #[inline(always)]
    fn group(b: &[u8; 210], j: usize) -> Group<G> {
        let (h, part, at) = (j / 8, j % 8 / 2, 16 * (j % 2));
        let low = &b[64 * h + 32 * (part % 2) + at..][..G];
        let high = &b[128 + 32 * h + at..][..G];
        let mut codes = [0; G];
        for l in 0..G {
            let code = (low[l] >> (4 * (part / 2)) & 15) | (high[l] >> (2 * part) & 3) << 4;
            codes[l] = code as i8 - 32;
        }
        let scale = f16(&b[208..]) * f32::from(b[192 + j] as i8);
        Group { codes, scale, offset: 0.0 }
    }

    #[inline(always)]
    fn units(b: &[u8; 210]) -> [f32; 2] {
        [f16(&b[208..]), 0.0]
    }
}
