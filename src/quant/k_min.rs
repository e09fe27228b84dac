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

use super::float::{f16, put_f16};
use super::format::{Activation, Format, Importance, Kind, Numbers};
use super::groups::{Group, Grouped, decode, groups, groups_of_16};
use super::guide::Guide;
use super::kernels::{Blocks, levels};
use super::lattice::Search;
use super::rounding::{Grid, Scalar, rounding};
use super::search::{
    ROWS, SPAN, Steps, group_sums, importance_weights, nearest_int, super_block_squares,
};
use super::types::QuantType;
use super::wide::{self, Room};

#[rustfmt::skip]
pub(super) const FORMATS: &[Format] = &[
    Format {
        ty: QuantType::Q2_K, kind: Kind::Blocks, len: 256, bytes: 84,
        numbers: Numbers::halves(&[80, 82]), importance: Importance::WantedIn(&["Q2_K_S"]),
        activations: Activation::Q8_K, fallback: Some(QuantType::Q4_0), cost: [11.0, 18.0],
        kernels: Some(levels::<Min<16, 3, 84>>()),
        rounding: Some(rounding::<Min<16, 3, 84>, 256, 16, 84>()),
        groups: groups_of_16::<Min<16, 3, 84>, 84>(),
    },
    Format {
        ty: QuantType::Q4_K, kind: Kind::Blocks, len: 256, bytes: 144,
        numbers: Numbers::halves(&[0, 2]), importance: Importance::Weighs,
        activations: Activation::Q8_K, fallback: Some(QuantType::Q5_0), cost: [11.0, 18.0],
        kernels: Some(levels::<Min<32, 15, 144>>()),
        rounding: Some(rounding::<Min<32, 15, 144>, 256, 32, 144>()),
        groups: groups::<Min<32, 15, 144>, 144>(),
    },
    Format {
        ty: QuantType::Q5_K, kind: Kind::Blocks, len: 256, bytes: 176,
        numbers: Numbers::halves(&[0, 2]), importance: Importance::Weighs,
        activations: Activation::Q8_K, fallback: Some(QuantType::Q5_1), cost: [11.0, 18.0],
        kernels: Some(levels::<Min<32, 31, 176>>()),
        rounding: Some(rounding::<Min<32, 31, 176>, 256, 32, 176>()),
        groups: groups::<Min<32, 31, 176>, 176>(),
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

/// `top / max` and `max / top`, both 0 unless `max > 0`.
#[inline(always)]
fn largest(values: &[f32], top: f32) -> (f32, f32) {
    let mut max = 0f32;
    for &v in values {
        max = if v > max { v } else { max };
    }
    if max > 0.0 { (top / max, max / top) } else { (0.0, 0.0) }
}

/// Scales and minima of a super-block as stored.
struct Stored {
    d: f32,
    dmin: f32,
    scales: [u8; 16],
    mins: [u8; 16],
}

/// Groups of `G`, codes to `NMAX`.
struct Min<const G: usize, const NMAX: i32, const BYTES: usize>;

impl<const G: usize, const NMAX: i32, const BYTES: usize> Min<G, NMAX, BYTES> {
    /// The largest code of a scale.
    const TOP: i32 = if G == 16 { 15 } else { 63 };

    /// How scales are searched for without importances.
    const STEPS: Steps = match NMAX {
        3 => Steps { nmax: NMAX, rmin: -0.5, rdelta: 0.1, steps: 15, absolute: true },
        15 => Steps { nmax: NMAX, rmin: -1.0, rdelta: 0.1, steps: 20, absolute: false },
        _ => Steps { nmax: NMAX, rmin: -0.5, rdelta: 0.1, steps: 15, absolute: false },
    };

    /// What the errors of a super-block's weights count, and with importances those of its groups'
    /// scales.
    #[inline(always)]
    fn weigh<S: Search>(
        x: &[f32; N],
        qw: Option<&[f32]>,
        squares: f32,
        w: &mut [f32; N],
        sums: &mut [f32],
    ) {
        if let Some(qw) = qw {
            let factor = if G == 16 { 1.0 } else { 2.0 };
            importance_weights(x, qw, factor * squares / N as f32, w);
            group_sums::<G>(w, sums);
            return;
        }
        // Of eight groups of 32; smaller ones have no average.
        let squares = if G == 16 { [0.0; ROWS] } else { S::row_squares(x, G) };
        let (x, w) = (x.as_chunks::<G>().0, w.as_chunks_mut::<G>().0);
        for g in 0..N / G {
            let average = if G == 16 { 0.0 } else { (squares[g] / G as f32).sqrt() };
            for i in 0..G {
                w[g][i] = average + x[g][i].abs();
            }
        }
    }

    /// Scales and minima as they can be stored.
    #[inline(always)]
    fn snap<S: Search>(weighted: bool, scales: &[f32], mins: &[f32], sums: &[f32]) -> Stored {
        let mut stored = Stored { d: 0.0, dmin: 0.0, scales: [0; 16], mins: [0; 16] };
        let groups = N / G;
        let (s, m) = (&mut stored.scales[..groups], &mut stored.mins[..groups]);
        if !weighted {
            let ((inv_scale, d), (inv_min, dmin)) =
                (largest(scales, Self::TOP as f32), largest(mins, Self::TOP as f32));
            for j in 0..groups {
                s[j] = nearest_int(inv_scale * scales[j]) as u8;
                m[j] = nearest_int(inv_min * mins[j]) as u8;
                if G == 32 {
                    (s[j], m[j]) = (s[j].min(63), m[j].min(63));
                }
            }
            (stored.d, stored.dmin) = (d, dmin);
            return stored;
        }
        (stored.d, stored.dmin) = match G {
            16 => (
                S::positive::<16>(Self::TOP, scales, sums, s),
                S::positive::<16>(Self::TOP, mins, sums, m),
            ),
            _ => (
                S::positive::<8>(Self::TOP, scales, sums, s),
                S::positive::<8>(Self::TOP, mins, sums, m),
            ),
        };
        // A negative scale wraps to a large code. Only Q5_K limits it, as in the reference.
        if NMAX == 31 {
            for j in 0..groups {
                (s[j], m[j]) = (s[j].min(63), m[j].min(63));
            }
        }
        stored
    }

    /// Scales and minima as stored with which the weights are nearest.
    #[inline(always)]
    fn settle(x: &[f32; N], w: &[f32], scales: &[f32], mins: &[f32], stored: &mut Stored) {
        let numbers = wide::Numbers::Whole(0.0, NMAX as f32);
        let top = Self::TOP as i8;
        let room = Room { numbers, scales: (0, top), mins: top };
        let found = room.settle::<G>(x, w, scales, mins, (stored.d, stored.dmin));
        (stored.d, stored.dmin) = (found.d, found.dmin);
        for j in 0..N / G {
            (stored.scales[j], stored.mins[j]) = (found.scales[j] as u8, found.mins[j] as u8);
        }
    }

    /// Writes the scales.
    #[inline(always)]
    fn pack_scales(stored: &Stored, out: &mut [u8; BYTES]) {
        let at = if G == 16 { 80 } else { 0 };
        put_f16(&mut out[at..], stored.d);
        put_f16(&mut out[at + 2..], stored.dmin);
        for j in 0..N / G {
            match G {
                16 => out[j] = stored.scales[j] | stored.mins[j] << 4,
                _ => set_scale_min(j, stored.scales[j], stored.mins[j], &mut out[4..16]),
            }
        }
    }

    /// Scale and minimum of group `j`.
    #[inline(always)]
    fn unpack_scales(j: usize, b: &[u8; BYTES]) -> (f32, f32) {
        let at = if G == 16 { 80 } else { 0 };
        let (s, m) = match G {
            16 => (b[j] & 15, b[j] >> 4),
            _ => scale_min(j, &b[4..16]),
        };
        (f16(&b[at..]) * f32::from(s), f16(&b[at + 2..]) * f32::from(m))
    }

    /// The codes for scales as stored; those of the search where a scale is zero.
    #[inline(always)]
    fn round(x: &[f32; N], b: &[u8; BYTES], codes: &mut [u8; N]) {
        let (x, codes) = (x.as_chunks::<G>().0, codes.as_chunks_mut::<G>().0);
        for j in 0..N / G {
            let (d, m) = Self::unpack_scales(j, b);
            if d != 0.0 {
                for i in 0..G {
                    codes[j][i] = nearest_int((x[j][i] + m) / d).clamp(0, NMAX) as u8;
                }
            }
        }
    }
}

impl<const G: usize, const NMAX: i32, const BYTES: usize> Scalar<N, G, BYTES>
    for Min<G, NMAX, BYTES>
{
    const GRID: Grid = Grid::Whole(0, NMAX as i8);

    #[inline(always)]
    fn pack(codes: &[u8; N], out: &mut [u8; BYTES]) {
        if G == 16 {
            return pack_pairs(codes, &mut out[16..80]);
        }
        let qs = BYTES - 128;
        for c in 0..4 {
            for l in 0..32 {
                out[qs + 32 * c + l] = (codes[64 * c + l] & 15) | codes[64 * c + l + 32] << 4;
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
}

/// Four 2-bit codes to a byte, 32 elements apart.
#[inline(always)]
pub(super) fn pack_pairs(codes: &[u8; N], qs: &mut [u8]) {
    for h in 0..2 {
        let (codes, qs) = (&codes[128 * h..][..128], &mut qs[32 * h..][..32]);
        for l in 0..32 {
            qs[l] = codes[l] | codes[l + 32] << 2 | codes[l + 64] << 4 | codes[l + 96] << 6;
        }
    }
}

impl<const G: usize, const NMAX: i32, const BYTES: usize> Blocks for Min<G, NMAX, BYTES> {
    const SEARCHES: bool = true;

    #[inline(always)]
    fn encode<S: Search>(x: &[f32], guide: Guide, out: &mut [u8]) {
        let qw = guide.columns();
        let steps = if qw.is_some() { Steps::weighted(NMAX) } else { Self::STEPS };
        let (mut w, mut codes, mut sums) = ([0f32; SPAN], [0u8; SPAN], [0f32; SPAN / 16]);
        let (mut scales, mut mins) = ([0f32; SPAN / 16], [0f32; SPAN / 16]);
        let out = out.as_chunks_mut::<BYTES>().0;
        let mut at = 0;
        while at < x.len() {
            let len = SPAN.min(x.len() - at);
            let (x, out) = (&x[at..][..len], &mut out[at / N..]);
            let (blocks, w) = (x.as_chunks::<N>().0, &mut w[..len]);
            let squares = if qw.is_some() { super_block_squares(x) } else { [0.0; SPAN / N] };
            for b in 0..blocks.len() {
                let qw = qw.map(|qw| &qw[at + b * N..][..N]);
                let (w, sums) = (&mut w.as_chunks_mut().0[b], &mut sums[b * N / G..][..N / G]);
                Self::weigh::<S>(&blocks[b], qw, squares[b], w, sums);
            }
            let (codes, groups) = (&mut codes[..len], len / G);
            S::asymmetric::<G>(steps, x, w, &mut scales[..groups], &mut mins[..groups], codes);
            let codes = codes.as_chunks_mut::<N>().0;
            for b in 0..blocks.len() {
                let groups = b * N / G..(b + 1) * N / G;
                let (scales, mins) = (&scales[groups.clone()], &mins[groups.clone()]);
                let mut stored = Self::snap::<S>(qw.is_some(), scales, mins, &sums[groups]);
                if S::WIDE {
                    Self::settle(&blocks[b], &w[b * N..][..N], scales, mins, &mut stored);
                }
                Self::pack_scales(&stored, &mut out[b]);
                Self::round(&blocks[b], &out[b], &mut codes[b]);
                Self::pack(&codes[b], &mut out[b]);
            }
            at += len;
        }
    }

    #[inline(always)]
    fn decode(bytes: &[u8], out: &mut [f32]) {
        decode::<Self, N, G, BYTES>(bytes, out);
    }
}

impl<const G: usize, const NMAX: i32, const BYTES: usize> Grouped<G, BYTES>
    for Min<G, NMAX, BYTES>
{
    const OFFSETS: bool = true;
    const LARGEST: i16 = NMAX as i16;

    #[inline(always)]
    fn group(b: &[u8; BYTES], j: usize) -> Group<G> {
        let (scale, min) = Self::unpack_scales(j, b);
        let mut codes = [0; G];
        if G == 16 {
            let qs = &b[16 + 32 * (j / 8) + 16 * (j % 2)..][..G];
            for l in 0..G {
                codes[l] = (qs[l] >> (j % 8 / 2 * 2) & 3) as i8;
            }
        } else {
            let qs = &b[BYTES - 128 + 32 * (j / 2)..][..G];
            for l in 0..G {
                let high = if NMAX == 31 { (b[16 + l] >> j & 1) << 4 } else { 0 };
                codes[l] = ((qs[l] >> (4 * (j % 2)) & 15) | high) as i8;
            }
        }
        Group { codes, scale, offset: -min }
    }

    #[inline(always)]
    fn units(b: &[u8; BYTES]) -> [f32; 2] {
        let at = if G == 16 { 80 } else { 0 };
        [f16(&b[at..]), -f16(&b[at + 2..])]
    }
}
