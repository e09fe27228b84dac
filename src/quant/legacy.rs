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

use super::float::{abs_max, f16, put_f16};
use super::format::{Activation, Format, Importance, Kind, Numbers};
use super::groups::{Group, Grouped, decode, groups};
use super::guide::Guide;
use super::kernels::{Blocks, levels};
use super::lattice::Search;
use super::rounding::{Grid, Scalar, rounding};
use super::search::{
    ROWS, SPAN, Steps, importance_weights, inverse, round_to_byte, signed_max, truncate_to_byte,
};
use super::types::QuantType;

#[rustfmt::skip]
pub(super) const FORMATS: &[Format] = &[
    Format {
        ty: QuantType::Q4_0, kind: Kind::Blocks, len: 32, bytes: 18,
        numbers: Numbers::halves(&[0]), importance: Importance::Weighs,
        activations: Activation::Q8_0, fallback: Some(QuantType::F16), cost: [1.5, 6.0],
        kernels: Some(levels::<Small<15, false, 18>>()),
        rounding: Some(rounding::<Small<15, false, 18>, 32, 32, 18>()),
        groups: groups::<Small<15, false, 18>, 18>(),
    },
    Format {
        ty: QuantType::Q4_1, kind: Kind::Blocks, len: 32, bytes: 20,
        numbers: Numbers::halves(&[0, 2]), importance: Importance::Weighs,
        activations: Activation::Q8_1, fallback: Some(QuantType::F16), cost: [1.5, 16.0],
        kernels: Some(levels::<Small<15, true, 20>>()),
        rounding: Some(rounding::<Small<15, true, 20>, 32, 32, 20>()),
        groups: groups::<Small<15, true, 20>, 20>(),
    },
    Format {
        ty: QuantType::Q5_0, kind: Kind::Blocks, len: 32, bytes: 22,
        numbers: Numbers::halves(&[0]), importance: Importance::Weighs,
        activations: Activation::Q8_0, fallback: Some(QuantType::F16), cost: [1.5, 6.0],
        kernels: Some(levels::<Small<31, false, 22>>()),
        rounding: Some(rounding::<Small<31, false, 22>, 32, 32, 22>()),
        groups: groups::<Small<31, false, 22>, 22>(),
    },
    Format {
        ty: QuantType::Q5_1, kind: Kind::Blocks, len: 32, bytes: 24,
        numbers: Numbers::halves(&[0, 2]), importance: Importance::Weighs,
        activations: Activation::Q8_1, fallback: Some(QuantType::F16), cost: [1.5, 16.0],
        kernels: Some(levels::<Small<31, true, 24>>()),
        rounding: Some(rounding::<Small<31, true, 24>, 32, 32, 24>()),
        groups: groups::<Small<31, true, 24>, 24>(),
    },
    Format {
        ty: QuantType::Q8_0, kind: Kind::Blocks, len: 32, bytes: 34,
        numbers: Numbers::halves(&[0]), importance: Importance::Ignored,
        activations: Activation::Q8_0, fallback: Some(QuantType::F16), cost: [1.5; 2],
        kernels: Some(levels::<Q8>()),
        rounding: Some(rounding::<Q8, 32, 32, 34>()),
        groups: groups::<Q8, 34>(),
    },
];

const N: usize = 32;

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
    for i in 0..4 {
        (mins[i], maxs[i]) = (least(mins[i], mins[i + 4]), most(maxs[i], maxs[i + 4]));
    }
    for i in 0..2 {
        (mins[i], maxs[i]) = (least(mins[i], mins[i + 2]), most(maxs[i], maxs[i + 2]));
    }
    let (min, max) = (least(mins[0], mins[1]), most(maxs[0], maxs[1]));
    if min != 0.0 && max != 0.0 {
        return (min, max);
    }
    let (mut min, mut max) = (f32::MAX, -f32::MAX);
    for &v in x {
        (min, max) = (least(min, v), most(max, v));
    }
    (min, max)
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

/// Q4_0 and Q5_0, which have no minimum, Q4_1 and Q5_1: `NMAX` is 15 or 31.
struct Small<const NMAX: i32, const MIN: bool, const BYTES: usize>;

impl<const NMAX: i32, const MIN: bool, const BYTES: usize> Small<NMAX, MIN, BYTES> {
    /// What is taken off codes.
    const HALF: i32 = if MIN { 0 } else { (NMAX + 1) / 2 };

    /// Scale, minimum and codes of a block without importances.
    #[inline(always)]
    fn round(x: &[f32; N], codes: &mut [u8; N]) -> (f32, f32) {
        if MIN {
            let (min, max) = min_max(x);
            let d = (max - min) / NMAX as f32;
            let id = inverse(d);
            for i in 0..N {
                let code = truncate_to_byte((x[i] - min) * id + 0.5);
                // Only the 4-bit type limits its codes.
                codes[i] = if NMAX == 15 { (code as i8).min(15) as u8 } else { code };
            }
            return (d, min);
        }
        let d = block_signed_max(x) / -Self::HALF as f32;
        let id = inverse(d);
        for i in 0..N {
            let code = truncate_to_byte(x[i] * id + (Self::HALF as f32 + 0.5));
            codes[i] = (code as i8).min(NMAX as i8) as u8;
        }
        (d, 0.0)
    }

    /// Scales, negated minima and codes of the blocks of a span.
    #[inline(always)]
    fn search<S: Search>(
        x: &[f32],
        w: &[f32],
        scales: &mut [f32],
        mins: &mut [f32],
        codes: &mut [u8],
    ) {
        match MIN {
            true => S::asymmetric::<N>(Steps::weighted(NMAX), x, w, scales, mins, codes),
            false => S::symmetric::<N>(Self::HALF, x, w, scales, codes),
        }
    }

    /// Writes scale and minimum.
    #[inline(always)]
    fn snap(d: f32, min: f32, out: &mut [u8; BYTES]) {
        put_f16(out, d);
        if MIN {
            put_f16(&mut out[2..], min);
        }
    }
}

impl<const NMAX: i32, const MIN: bool, const BYTES: usize> Scalar<N, N, BYTES>
    for Small<NMAX, MIN, BYTES>
{
    const GRID: Grid = Grid::Whole(-Self::HALF as i8, (NMAX - Self::HALF) as i8);

    #[inline(always)]
    fn pack(codes: &[u8; N], out: &mut [u8; BYTES]) {
        let qs = BYTES - 16;
        for j in 0..16 {
            out[qs + j] = (codes[j] & 15) | codes[j + 16] << 4;
        }
        if NMAX == 31 {
            for i in 0..4 {
                let mut eight = [0; 8];
                for j in 0..8 {
                    eight[j] = codes[8 * i + j];
                }
                // The product moves the lowest bit of byte i to bit 56 + i.
                let bits = u64::from_le_bytes(eight) >> 4 & 0x0101_0101_0101_0101;
                out[qs - 4 + i] = (bits.wrapping_mul(0x0102_0408_1020_4080) >> 56) as u8;
            }
        }
    }
}

impl<const NMAX: i32, const MIN: bool, const BYTES: usize> Blocks for Small<NMAX, MIN, BYTES> {
    const SEARCHES: bool = true;
    const BY_ROW: bool = true;

    #[inline(always)]
    fn encode<S: Search>(x: &[f32], guide: Guide, out: &mut [u8]) {
        let out = out.as_chunks_mut::<BYTES>().0;
        let Some(qw) = guide.columns() else {
            let x = x.as_chunks::<N>().0;
            let out = &mut out[..x.len()];
            for b in 0..x.len() {
                let mut codes = [0u8; N];
                let (d, min) = Self::round(&x[b], &mut codes);
                Self::snap(d, min, &mut out[b]);
                Self::pack(&codes, &mut out[b]);
            }
            return;
        };
        let n = qw.len();
        let mean_squares = guide.mean_squares();
        let squares = if mean_squares.is_some() { [0.0; ROWS] } else { S::row_squares(x, n) };
        let (mut w, mut codes) = ([0f32; SPAN], [0u8; SPAN]);
        let (mut scales, mut mins) = ([0f32; SPAN / N], [0f32; SPAN / N]);
        for row in 0..x.len() / n {
            let mut at = 0;
            while at < n {
                let len = SPAN.min(n - at);
                let x = &x[n * row + at..][..len];
                let mean = squares[row] / n as f32;
                for b in 0..len / N {
                    let mean = mean_squares.map_or(mean, |of_blocks| of_blocks[at / N + b]);
                    let (x, qw) = (&x[b * N..][..N], &qw[at + b * N..][..N]);
                    importance_weights(x, qw, mean, &mut w[b * N..][..N]);
                }
                let (scales, mins) = (&mut scales[..len / N], &mut mins[..len / N]);
                Self::search::<S>(x, &w[..len], scales, mins, &mut codes[..len]);
                let (codes, out) = (codes.as_chunks().0, &mut out[(n * row + at) / N..]);
                for b in 0..len / N {
                    Self::snap(scales[b], -mins[b], &mut out[b]);
                    Self::pack(&codes[b], &mut out[b]);
                }
                at += len;
            }
        }
    }

    #[inline(always)]
    fn decode(bytes: &[u8], out: &mut [f32]) {
        decode::<Self, N, N, BYTES>(bytes, out);
    }
}

impl<const NMAX: i32, const MIN: bool, const BYTES: usize> Grouped<N, BYTES>
    for Small<NMAX, MIN, BYTES>
{
    const OFFSETS: bool = MIN;
    const LARGEST: i16 = if MIN { NMAX as i16 } else { Self::HALF as i16 };

    #[inline(always)]
    fn group(b: &[u8; BYTES], _: usize) -> Group<N> {
        let qs = BYTES - 16;
        let high = match NMAX == 31 {
            true => u32::from_le_bytes([b[qs - 4], b[qs - 3], b[qs - 2], b[qs - 1]]),
            false => 0,
        };
        let code =
            |low: u8, j: usize| (low | ((high >> j & 1) << 4) as u8) as i8 - Self::HALF as i8;
        let mut codes = [0; N];
        for j in 0..16 {
            codes[j] = code(b[qs + j] & 15, j);
        }
        for j in 0..16 {
            codes[16 + j] = code(b[qs + j] >> 4, j + 16);
        }
        Group { codes, scale: f16(b), offset: if MIN { f16(&b[2..]) } else { 0.0 } }
    }
}

struct Q8;

impl Blocks for Q8 {
    #[inline(always)]
    fn encode<S: Search>(x: &[f32], _: Guide, out: &mut [u8]) {
        let x = x.as_chunks::<N>().0;
        let out = &mut out.as_chunks_mut::<34>().0[..x.len()];
        for b in 0..x.len() {
            let (x, out) = (&x[b], &mut out[b]);
            let d = abs_max(x) / 127.0;
            let id = inverse(d);
            put_f16(out, d);
            let mut codes = [0u8; N];
            for i in 0..N {
                codes[i] = round_to_byte(x[i] * id) ^ 128;
            }
            Self::pack(&codes, out);
        }
    }

    #[inline(always)]
    fn decode(bytes: &[u8], out: &mut [f32]) {
        decode::<Self, N, N, 34>(bytes, out);
    }
}

impl Scalar<N, N, 34> for Q8 {
    const GRID: Grid = Grid::Whole(-128, 127);

    #[inline(always)]
    fn pack(codes: &[u8; N], out: &mut [u8; 34]) {
        for i in 0..N {
            out[2 + i] = codes[i] ^ 128;
        }
    }
}

impl Grouped<N, 34> for Q8 {
    const OFFSETS: bool = false;
    const LARGEST: i16 = 128;

    #[inline(always)]
    fn group(b: &[u8; 34], _: usize) -> Group<N> {
        let mut codes = [0; N];
        for i in 0..N {
            codes[i] = b[2 + i] as i8;
        }
        Group { codes, scale: f16(b), offset: 0.0 }
    }
}

/// Integers in a block.
pub const INTEGERS: usize = N;

/// Writes a block of integers times a scale: what Q4_0, Q5_0 and Q8_0 are, and Q4_1 from `least` on. The
/// same values, as long as F16 has the scale, and for Q4_1 `least` times it, and the type the integers.
///
/// # Panics
/// When the type is another, or `out` no block of it.
pub fn block_of_integers(
    ty: QuantType,
    scale: f32,
    least: i16,
    integers: &[i16; INTEGERS],
    out: &mut [u8],
) {
    let above = |zero: i16| integers.map(|integer| (integer - zero) as u8);
    match ty {
        QuantType::Q4_0 => Small::<15, false, 18>::write(scale, 0.0, &above(-8), out),
        QuantType::Q5_0 => Small::<31, false, 22>::write(scale, 0.0, &above(-16), out),
        QuantType::Q4_1 => {
            Small::<15, true, 20>::write(scale, scale * f32::from(least), &above(least), out);
        }
        QuantType::Q8_0 => {
            let out: &mut [u8; 34] = out.try_into().expect("a block");
            put_f16(out, scale);
            Q8::pack(&above(-128), out);
        }
        other => panic!("{other} has no integers"),
    }
}

impl<const NMAX: i32, const MIN: bool, const BYTES: usize> Small<NMAX, MIN, BYTES> {
    /// Writes a block.
    fn write(scale: f32, min: f32, codes: &[u8; N], out: &mut [u8]) {
        let out: &mut [u8; BYTES] = out.try_into().expect("a block");
        Self::snap(scale, min, out);
        Self::pack(codes, out);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn integers_stay_what_they_are() {
        for (ty, least, most) in [
            (QuantType::Q4_0, -8, 7),
            (QuantType::Q4_1, -11, 4),
            (QuantType::Q5_0, -16, 15),
            (QuantType::Q8_0, -128, 127),
        ] {
            let integers: [i16; N] =
                std::array::from_fn(|i| least + (i as i16 * 37) % (most - least + 1));
            let (mut block, mut out) = (vec![0; ty.block_bytes()], [0.0; N]);
            block_of_integers(ty, 0.0625, least, &integers, &mut block);
            ty.decode_rows(&block, N, &mut out).unwrap();
            assert_eq!(out, integers.map(|integer| f32::from(integer) * 0.0625), "{ty}");
        }
    }
}
