//! Blocks of 32 with one f16 scale, some with a minimum: Q4_0, Q4_1, Q5_0, Q5_1, Q8_0.
//!
//! ```text
//! Q4_0  18 bytes  d f16 |         |        | qs 16     value (q - 8)·d
//! Q4_1  20 bytes  d f16 | m f16   |        | qs 16     value q·d + m
//! Q5_0  22 bytes  d f16 |         | qh u32 | qs 16     value (q - 16)·d
//! Q5_1  24 bytes  d f16 | m f16   | qh u32 | qs 16     value q·d + m
//! Q8_0  34 bytes  d f16 |         |        | qs 32×i8  value q·d
//!
//! qs byte j   bit  7 6 5 4      3 2 1 0
//!                  element j+16 element j        (lower 4 bits of the code)
//! qh bit j    fifth bit of element j, little-endian
//! ```
//! Without importances codes are made with the f32 scale, not with the stored f16 one
//! (`quantize_row_*_ref`); with them a search finds codes and scale together
//! (`quantize_row_*_impl`), and Q8_0 ignores them.

use super::float::{abs_max, f16, f16_bits};
use super::format::{Activation, Format, Importance, Kind, Numbers};
use super::groups::{Group, Grouped, groups};
use super::kernels::{Blocks, levels};
use super::lattice::Search;
use super::search::{SPAN, Steps, importance_weights, round_to_byte, signed_max, truncate_to_byte};
use super::types::QuantType;

#[rustfmt::skip]
pub(super) const FORMATS: &[Format] = &[
    Format {
        ty: QuantType::Q4_0, kind: Kind::Blocks, len: 32, bytes: 18,
        numbers: Numbers::halves(&[0]), importance: Importance::Weighs,
        activations: Activation::Q8_0, fallback: Some(QuantType::F16), cost: [1.5, 6.0],
        kernels: Some(levels::<Symmetric<8, 18>>()),
        groups: Some(groups::<Symmetric<8, 18>, 18>()),
    },
    Format {
        ty: QuantType::Q4_1, kind: Kind::Blocks, len: 32, bytes: 20,
        numbers: Numbers::halves(&[0, 2]), importance: Importance::Weighs,
        activations: Activation::Q8_1, fallback: Some(QuantType::F16), cost: [1.5, 16.0],
        kernels: Some(levels::<Asymmetric<15, 20>>()),
        groups: Some(groups::<Asymmetric<15, 20>, 20>()),
    },
    Format {
        ty: QuantType::Q5_0, kind: Kind::Blocks, len: 32, bytes: 22,
        numbers: Numbers::halves(&[0]), importance: Importance::Weighs,
        activations: Activation::Q8_0, fallback: Some(QuantType::F16), cost: [1.5, 6.0],
        kernels: Some(levels::<Symmetric<16, 22>>()),
        groups: Some(groups::<Symmetric<16, 22>, 22>()),
    },
    Format {
        ty: QuantType::Q5_1, kind: Kind::Blocks, len: 32, bytes: 24,
        numbers: Numbers::halves(&[0, 2]), importance: Importance::Weighs,
        activations: Activation::Q8_1, fallback: Some(QuantType::F16), cost: [1.5, 16.0],
        kernels: Some(levels::<Asymmetric<31, 24>>()),
        groups: Some(groups::<Asymmetric<31, 24>, 24>()),
    },
    Format {
        ty: QuantType::Q8_0, kind: Kind::Blocks, len: 32, bytes: 34,
        numbers: Numbers::halves(&[0]), importance: Importance::Ignored,
        activations: Activation::Q8_0, fallback: Some(QuantType::F16), cost: [1.5; 2],
        kernels: Some(levels::<Q8>()),
        groups: Some(groups::<Q8, 34>()),
    },
];

const N: usize = 32;

#[inline(always)]
fn inverse(d: f32) -> f32 {
    if d != 0.0 { 1.0 / d } else { 0.0 }
}

/// First smallest and first largest. Which of equals is first matters for the sign of zero only,
/// so eight at a time will do for other results.
#[inline(always)]
fn min_max(x: &[f32; N]) -> (f32, f32) {
    let least = |a: f32, b: f32| if b < a { b } else { a };
    let most = |a: f32, b: f32| if b > a { b } else { a };
    let (mut mins, mut maxs) = ([f32::MAX; 8], [-f32::MAX; 8]);
    for x in x.as_chunks::<8>().0 {
        for i in 0..8 {
            mins[i] = least(mins[i], x[i]);
            maxs[i] = most(maxs[i], x[i]);
        }
    }
    for n in [4, 2, 1] {
        for i in 0..n {
            mins[i] = least(mins[i], mins[i + n]);
            maxs[i] = most(maxs[i], maxs[i + n]);
        }
    }
    let (min, max) = (mins[0], maxs[0]);
    if min != 0.0 && max != 0.0 {
        return (min, max);
    }
    (x.iter().copied().fold(f32::MAX, least), x.iter().copied().fold(-f32::MAX, most))
}

/// As [`signed_max`], by the largest magnitude first.
#[inline(always)]
fn block_signed_max(x: &[f32; N]) -> f32 {
    let amax = abs_max(x);
    let (mut up, mut down) = (false, false);
    for &v in x {
        up |= v == amax;
        down |= v == -amax;
    }
    match (up, down) {
        (true, false) => amax,
        (false, true) => -amax,
        _ => signed_max(x),
    }
}

/// Packs 32 codes, the last 16 bytes of `out` taking the nibbles, the 4 before them the fifth
/// bits if the type has them.
#[inline(always)]
fn pack(codes: &[u8], five_bits: bool, out: &mut [u8]) {
    let (head, qs) = out.split_at_mut(out.len() - 16);
    for j in 0..16 {
        qs[j] = (codes[j] & 15) | codes[j + 16] << 4;
    }
    if five_bits {
        let at = head.len() - 4;
        for (high, codes) in head[at..].iter_mut().zip(codes.as_chunks::<8>().0) {
            // The product moves the lowest bit of byte i to bit 56 + i.
            let bits = u64::from_le_bytes(*codes) >> 4 & 0x0101_0101_0101_0101;
            *high = (bits.wrapping_mul(0x0102_0408_1020_4080) >> 56) as u8;
        }
    }
}

/// The spans of up to [`ROWS`](super::search::ROWS) rows, with their importances, the mean square of
/// their row and their place in the output.
#[inline(always)]
fn spans<'a, S: Search, const BYTES: usize>(
    rows: &'a [f32],
    qw: &'a [f32],
    out: &'a mut [u8],
) -> impl Iterator<Item = (&'a [f32], &'a [f32], f32, &'a mut [u8])> {
    let n = qw.len();
    let squares = S::row_squares(rows, n);
    let rows = rows.chunks_exact(n).zip(out.chunks_exact_mut(n / N * BYTES)).zip(squares);
    rows.flat_map(move |((x, out), squares)| {
        let spans = x.chunks(SPAN).zip(qw.chunks(SPAN));
        let spans = spans.zip(out.chunks_mut(SPAN / N * BYTES));
        spans.map(move |((x, qw), out)| (x, qw, squares / n as f32, out))
    })
}

/// Q4_0 (`HALF` = 8) and Q5_0 (16).
struct Symmetric<const HALF: i32, const BYTES: usize>;

impl<const HALF: i32, const BYTES: usize> Blocks for Symmetric<HALF, BYTES> {
    const BY_ROW: bool = true;

    #[inline(always)]
    fn encode<S: Search>(x: &[f32], qw: Option<&[f32]>, out: &mut [u8]) {
        let Some(qw) = qw else {
            for (x, out) in x.as_chunks::<N>().0.iter().zip(out.as_chunks_mut::<BYTES>().0) {
                let d = block_signed_max(x) / -HALF as f32;
                let id = inverse(d);
                let mut codes = [0u8; N];
                for (c, &v) in codes.iter_mut().zip(x) {
                    *c = (truncate_to_byte(v * id + (HALF as f32 + 0.5)) as i8)
                        .min(2 * HALF as i8 - 1) as u8;
                }
                out[..2].copy_from_slice(&f16_bits(d));
                pack(&codes, HALF == 16, out);
            }
            return;
        };
        let (mut w, mut codes, mut scales) = ([0f32; SPAN], [0u8; SPAN], [0f32; SPAN / N]);
        for (x, qw, sigma2, out) in spans::<S, BYTES>(x, qw, out) {
            importance_weights(x, qw, sigma2, &mut w);
            let scales = &mut scales[..x.len() / N];
            S::symmetric::<N>(HALF, x, &w[..x.len()], scales, &mut codes[..x.len()]);
            for ((codes, d), out) in
                codes.chunks_exact(N).zip(scales).zip(out.chunks_exact_mut(BYTES))
            {
                out[..2].copy_from_slice(&f16_bits(*d));
                pack(codes, HALF == 16, out);
            }
        }
    }

    #[inline(always)]
    fn decode(bytes: &[u8], out: &mut [f32]) {
        decode::<BYTES, HALF, false>(bytes, out);
    }
}

impl<const HALF: i32, const BYTES: usize> Grouped<BYTES> for Symmetric<HALF, BYTES> {
    const OFFSETS: bool = false;

    #[inline(always)]
    fn group(b: &[u8; BYTES], _: usize) -> Group {
        Group { codes: unpack::<BYTES, HALF>(b), scale: f16(b), offset: 0.0 }
    }
}

/// Q4_1 (`NMAX` = 15) and Q5_1 (31).
struct Asymmetric<const NMAX: i32, const BYTES: usize>;

impl<const NMAX: i32, const BYTES: usize> Blocks for Asymmetric<NMAX, BYTES> {
    const BY_ROW: bool = true;

    #[inline(always)]
    fn encode<S: Search>(x: &[f32], qw: Option<&[f32]>, out: &mut [u8]) {
        let Some(qw) = qw else {
            for (x, out) in x.as_chunks::<N>().0.iter().zip(out.as_chunks_mut::<BYTES>().0) {
                let (min, max) = min_max(x);
                let d = (max - min) / NMAX as f32;
                let id = inverse(d);
                let mut codes = [0u8; N];
                for (c, &v) in codes.iter_mut().zip(x) {
                    let code = truncate_to_byte((v - min) * id + 0.5);
                    // Only the 4-bit type limits its codes.
                    *c = if NMAX == 15 { (code as i8).min(15) as u8 } else { code };
                }
                out[..2].copy_from_slice(&f16_bits(d));
                out[2..4].copy_from_slice(&f16_bits(min));
                pack(&codes, NMAX == 31, out);
            }
            return;
        };
        let (mut w, mut codes) = ([0f32; SPAN], [0u8; SPAN]);
        let (mut scales, mut mins) = ([0f32; SPAN / N], [0f32; SPAN / N]);
        for (x, qw, sigma2, out) in spans::<S, BYTES>(x, qw, out) {
            importance_weights(x, qw, sigma2, &mut w);
            let n = x.len() / N;
            let (scales, mins) = (&mut scales[..n], &mut mins[..n]);
            let steps = Steps::weighted(NMAX);
            S::asymmetric::<N>(steps, x, &w[..x.len()], scales, mins, &mut codes[..x.len()]);
            let groups = codes.chunks_exact(N).zip(scales).zip(mins);
            for (((codes, d), min), out) in groups.zip(out.chunks_exact_mut(BYTES)) {
                out[..2].copy_from_slice(&f16_bits(*d));
                out[2..4].copy_from_slice(&f16_bits(-*min));
                pack(codes, NMAX == 31, out);
            }
        }
    }

    #[inline(always)]
    fn decode(bytes: &[u8], out: &mut [f32]) {
        decode::<BYTES, 0, true>(bytes, out);
    }
}

impl<const NMAX: i32, const BYTES: usize> Grouped<BYTES> for Asymmetric<NMAX, BYTES> {
    const OFFSETS: bool = true;

    #[inline(always)]
    fn group(b: &[u8; BYTES], _: usize) -> Group {
        Group { codes: unpack::<BYTES, 0>(b), scale: f16(b), offset: f16(&b[2..]) }
    }
}

/// Codes of a block of four or five bits, less `HALF`.
#[inline(always)]
fn unpack<const BYTES: usize, const HALF: i32>(b: &[u8; BYTES]) -> [i8; N] {
    let at = BYTES - 16;
    let high = match BYTES >= 22 {
        true => u32::from_le_bytes([b[at - 4], b[at - 3], b[at - 2], b[at - 1]]),
        false => 0,
    };
    let code = |low: u8, j: usize| (low | ((high >> j & 1) << 4) as u8) as i8 - HALF as i8;
    let mut codes = [0; N];
    let (first, second) = codes.split_at_mut(16);
    for (j, (code_at, q)) in first.iter_mut().zip(&b[at..]).enumerate() {
        *code_at = code(q & 15, j);
    }
    for (j, (code_at, q)) in second.iter_mut().zip(&b[at..]).enumerate() {
        *code_at = code(q >> 4, j + 16);
    }
    codes
}

#[inline(always)]
fn decode<const BYTES: usize, const HALF: i32, const MIN: bool>(bytes: &[u8], out: &mut [f32]) {
    for (b, out) in bytes.as_chunks::<BYTES>().0.iter().zip(out.as_chunks_mut::<N>().0) {
        let (d, m) = (f16(b), if MIN { f16(&b[2..]) } else { 0.0 });
        for (v, q) in out.iter_mut().zip(unpack::<BYTES, HALF>(b)) {
            let q = f32::from(q);
            *v = if MIN { q * d + m } else { q * d };
        }
    }
}

struct Q8;

impl Blocks for Q8 {
    #[inline(always)]
    fn encode<S: Search>(x: &[f32], _: Option<&[f32]>, out: &mut [u8]) {
        for (x, out) in x.as_chunks::<N>().0.iter().zip(out.as_chunks_mut::<34>().0) {
            let d = abs_max(x) / 127.0;
            let id = inverse(d);
            out[..2].copy_from_slice(&f16_bits(d));
            for (q, &v) in out[2..].iter_mut().zip(x) {
                *q = round_to_byte(v * id);
            }
        }
    }

    #[inline(always)]
    fn decode(bytes: &[u8], out: &mut [f32]) {
        for (b, out) in bytes.as_chunks::<34>().0.iter().zip(out.as_chunks_mut::<N>().0) {
            let d = f16(b);
            for (v, &q) in out.iter_mut().zip(&b[2..]) {
                *v = f32::from(q as i8) * d;
            }
        }
    }
}

impl Grouped<34> for Q8 {
    const OFFSETS: bool = false;

    #[inline(always)]
    fn group(b: &[u8; 34], _: usize) -> Group {
        Group { codes: std::array::from_fn(|i| b[2 + i] as i8), scale: f16(b), offset: 0.0 }
    }
}
