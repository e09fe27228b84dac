//! E2M1 codes under a shared scale: MXFP4, NVFP4.
//!
//! ```text
//! MXFP4 17 bytes  e u8 | qs 16     block of 32, value values[q] · 2^(e-128)
//!   qs[j]         7 6 5 4: element j+16   3 2 1 0: element j
//! NVFP4 36 bytes  d 4×u8 | qs 32   4 groups of 16, value values[q] · ue4m3(d[g])/2
//!   qs[8g+j]      7 6 5 4: element 16g+j+8   3 2 1 0: element 16g+j
//! code            3: sign   2 1: exponent   0: mantissa; the table holds twice the value
//! ue4m3           6 5 4 3: exponent, bias 7   2 1 0: mantissa; 0x7F means 0
//! ```
//! Importances are ignored (`quantize_row_{mxfp4,nvfp4}_ref`).

use super::float::abs_max;
use super::format::{Activation, Format, Importance, Kind, Numbers};
use super::groups::{Group, Grouped, decode, groups, groups_of_16};
use super::guide::Guide;
use super::kernels::{Blocks, levels};
use super::lattice::Search;
use super::rounding::{Grid, Scalar, rounding};
use super::search::truncate;
use super::types::QuantType;

#[rustfmt::skip]
pub(super) const FORMATS: &[Format] = &[
    Format {
        ty: QuantType::MXFP4, kind: Kind::Blocks, len: 32, bytes: 17,
        numbers: Numbers::Others(|b| b[0] != 0xff), importance: Importance::Ignored,
        activations: Activation::Q8_0, fallback: Some(QuantType::F16), cost: [1.5; 2],
        kernels: Some(levels::<Mx>()),
        rounding: Some(rounding::<Mx, 32, 32, 17>()),
        groups: groups::<Mx, 17>(),
    },
    Format {
        ty: QuantType::NVFP4, kind: Kind::Blocks, len: 64, bytes: 36,
        numbers: Numbers::None, importance: Importance::Ignored,
        activations: Activation::Q8_0, fallback: None, cost: [1.5; 2],
        kernels: Some(levels::<Nv>()),
        rounding: Some(rounding::<Nv, 64, 16, 36>()),
        groups: groups_of_16::<Nv, 36>(),
    },
];

/// Twice the values of E2M1 (`kvalues_mxfp4`).
const VALUES: [i8; 16] = [0, 1, 2, 3, 4, 6, 8, 12, 0, -1, -2, -3, -4, -6, -8, -12];

/// [`VALUES`] in a unit.
#[inline(always)]
fn values(unit: f32) -> [f32; 16] {
    let mut values = [0f32; 16];
    for i in 0..16 {
        values[i] = f32::from(VALUES[i]) * unit;
    }
    values
}

/// The first code of least distance.
#[inline(always)]
fn nearest(x: f32, values: &[f32; 16]) -> u8 {
    let (mut code, mut least) = (0, (values[0] - x).abs());
    for i in 1..16 {
        let distance = (values[i] - x).abs();
        if distance < least {
            (code, least) = (i as u8, distance);
        }
    }
    code
}

/// The codes of weights of magnitude `most` at most, for values that are `unit` times [`VALUES`].
///
/// The differences to the two values around a weight are exact (Sterbenz), so it is nearer to the
/// greater one exactly if it is beyond their middle; [`nearest`] takes the smaller one of two equally
/// near. Far beyond the greatest value differences are rounded to equal ones: not so here.
#[inline(always)]
fn codes<const N: usize>(x: &[f32; N], unit: f32, most: f32) -> [u8; N] {
    let values = values(unit);
    let mut codes = [0u8; N];
    if unit == 0.0 || most > 2.0 * values[7] {
        for i in 0..N {
            codes[i] = nearest(x[i], &values);
        }
        return codes;
    }
    for i in 0..N {
        let mut code = 0;
        for middle in [0.5, 1.5, 2.5, 3.5, 5.0, 7.0, 10.0] {
            code += u8::from(x[i].abs() > middle * unit);
        }
        // Zero has the code of its positive sign.
        codes[i] = code | u8::from((x[i] < 0.0) & (code > 0)) << 3;
    }
    codes
}

/// `floor(log2f(x))` as glibc rounds it: a value just below a power of two may have that power's
/// logarithm in f32. For zero and above only.
#[inline(always)]
fn floor_log2(x: f32) -> i32 {
    let bits = x.to_bits();
    if bits < 0x0080_0000 || bits & 0x7f_ff00 == 0x7f_ff00 {
        return (f64::from(x).log2() as f32).floor() as i32;
    }
    (bits >> 23) as i32 - 127
}

/// `2^(e-128)` (`ggml_e8m0_to_fp32_half`).
#[inline(always)]
fn e8m0_half(e: u8) -> f32 {
    f32::from_bits(if e < 2 { 0x0020_0000 << e } else { u32::from(e - 1) << 23 })
}

/// Half the value of an unsigned E4M3 byte (`ggml_ue4m3_to_fp32`).
#[inline(always)]
fn ue4m3_half(b: u8) -> f32 {
    let (e, m) = (i32::from(b >> 3 & 15), f32::from(b & 7));
    if b == 0 || b == 0x7f {
        0.0
    } else if e == 0 {
        m / 1024.0
    } else {
        (1.0 + m / 8.0) * f32::from_bits(((e + 119) as u32) << 23)
    }
}

/// The nearest unsigned E4M3, ties up (`ggml_fp32_to_ue4m3`).
#[inline(always)]
#[expect(clippy::neg_cmp_op_on_partial_ord, reason = "NaN becomes 0")]
fn to_ue4m3(x: f32) -> u8 {
    if !(x > 0.0) {
        return 0;
    }
    let x = if x > 448.0 { 448.0 } else { x };
    let e = (x.to_bits() >> 23) as i32 - 120;
    if e <= 0 {
        return truncate(x * 512.0 + 0.5).min(7) as u8;
    }
    // One bit more than the mantissa has, rounded half up; a carry runs into the exponent.
    let rounded = ((e as u32) << 4 | (x.to_bits() >> 19 & 15)).div_ceil(2);
    if rounded < 0x78 { rounded as u8 } else { 0x7e }
}

struct Mx;

impl Blocks for Mx {
    #[inline(always)]
    fn encode<S: Search>(x: &[f32], _: Guide, out: &mut [u8]) {
        let (x, out) = (x.as_chunks::<32>().0, out.as_chunks_mut::<17>().0);
        for b in 0..x.len() {
            let (x, out) = (&x[b], &mut out[b]);
            let amax = abs_max(x);
            // Exponents below 0 wrap around.
            let e = if amax > 0.0 { (floor_log2(amax) + 125) as u8 } else { 0 };
            let codes = codes(x, e8m0_half(e), amax);
            out[0] = e;
            Self::pack(&codes, out);
        }
    }

    #[inline(always)]
    fn decode(bytes: &[u8], out: &mut [f32]) {
        decode::<Self, 32, 32, 17>(bytes, out);
    }
}

impl Scalar<32, 32, 17> for Mx {
    const GRID: Grid = Grid::These(&VALUES);

    #[inline(always)]
    fn pack(codes: &[u8; 32], out: &mut [u8; 17]) {
        for j in 0..16 {
            out[1 + j] = codes[j] | codes[j + 16] << 4;
        }
    }
}

impl Grouped<32, 17> for Mx {
    const OFFSETS: bool = false;
    const LARGEST: i16 = 12;

    #[inline(always)]
    fn group(b: &[u8; 17], _: usize) -> Group<32> {
        let mut codes = [0; 32];
        for j in 0..16 {
            codes[j] = VALUES[usize::from(b[1 + j] & 15)];
            codes[j + 16] = VALUES[usize::from(b[1 + j] >> 4)];
        }
        Group { codes, scale: e8m0_half(b[0]), offset: 0.0 }
    }
}

struct Nv;

impl Blocks for Nv {
    #[inline(always)]
    fn encode<S: Search>(x: &[f32], _: Guide, out: &mut [u8]) {
        let (x, out) = (x.as_chunks::<64>().0, out.as_chunks_mut::<36>().0);
        for b in 0..x.len() {
            let (x, out) = (x[b].as_chunks::<16>().0, &mut out[b]);
            let mut all = [0u8; 64];
            for g in 0..4 {
                let amax = abs_max(&x[g]);
                let d = to_ue4m3(amax / 6.0);
                all.as_chunks_mut::<16>().0[g] = codes(&x[g], ue4m3_half(d), amax);
                out[g] = d;
            }
            Self::pack(&all, out);
        }
    }

    #[inline(always)]
    fn decode(bytes: &[u8], out: &mut [f32]) {
        decode::<Self, 64, 16, 36>(bytes, out);
    }
}

impl Scalar<64, 16, 36> for Nv {
    const GRID: Grid = Grid::These(&VALUES);

    #[inline(always)]
    fn pack(codes: &[u8; 64], out: &mut [u8; 36]) {
        for g in 0..4 {
            for j in 0..8 {
                out[4 + 8 * g + j] = codes[16 * g + j] | codes[16 * g + j + 8] << 4;
            }
        }
    }
}

impl Grouped<16, 36> for Nv {
    const OFFSETS: bool = false;
    const LARGEST: i16 = 12;

    #[inline(always)]
    fn group(b: &[u8; 36], g: usize) -> Group<16> {
        let mut codes = [0; 16];
        for j in 0..8 {
            let q = b[4 + 8 * g + j];
            codes[j] = VALUES[usize::from(q & 15)];
            codes[j + 8] = VALUES[usize::from(q >> 4)];
        }
        Group { codes, scale: ue4m3_half(b[g]), offset: 0.0 }
    }
}

/// The values of a byte of a checkpoint, which holds two neighbours, the first in its low bits.
pub fn fp4_pair(byte: u8) -> [f32; 2] {
    const HALVES: [f32; 8] = [0.0, 0.5, 1.0, 1.5, 2.0, 3.0, 4.0, 6.0];
    [byte & 15, byte >> 4].map(|code| {
        let magnitude = HALVES[usize::from(code & 7)];
        if code & 8 == 0 { magnitude } else { -magnitude }
    })
}

/// The code of an element of such bytes.
#[inline(always)]
fn code(packed: &[u8], i: usize) -> u8 {
    packed[i / 2] >> (4 * (i % 2)) & 15
}

/// Packs whole rows of a checkpoint into NVFP4 blocks (`_nvfp4_pack` in the reference converter's
/// `base.py`). There a byte holds two neighbours ([`fp4_pair`]), and every 16 elements have an E4M3
/// scale; signs of scales are dropped.
///
/// # Errors
/// The index of the first scale that is NaN. What is in `out` then is unspecified.
///
/// # Panics
/// When the lengths do not belong together: 8 bytes for each scale, 36 for each four.
pub fn nvfp4_from_pairs(packed: &[u8], scales: &[u8], out: &mut [u8]) -> Result<(), usize> {
    assert!(packed.len() == 8 * scales.len() && out.len() == 9 * scales.len());
    if let Some(nan) = scales.iter().position(|d| d & 0x7f == 0x7f) {
        return Err(nan);
    }
    let groups = scales.as_chunks::<4>().0.iter().zip(packed.as_chunks::<32>().0);
    for ((scales, packed), out) in groups.zip(out.as_chunks_mut::<36>().0) {
        for g in 0..4 {
            out[g] = scales[g] & 0x7f;
        }
        Nv::pack(&std::array::from_fn(|i| code(packed, i)), out);
    }
    Ok(())
}

/// Packs whole rows of a checkpoint into MXFP4 blocks (`repack_mxfp4_blocks` in the reference
/// converter's `base.py`): bytes as in [`nvfp4_from_pairs`], and an exponent for every 32 elements.
///
/// # Errors
/// The index of the first scale that is NaN. What is in `out` then is unspecified.
///
/// # Panics
/// When the lengths do not belong together: 16 bytes for each scale, 17 for each block.
pub fn mxfp4_from_pairs(packed: &[u8], scales: &[u8], out: &mut [u8]) -> Result<(), usize> {
    assert!(packed.len() == 16 * scales.len() && out.len() == 17 * scales.len());
    if let Some(nan) = scales.iter().position(|&e| e == 0xff) {
        return Err(nan);
    }
    let groups = scales.iter().zip(packed.as_chunks::<16>().0);
    for ((scale, packed), out) in groups.zip(out.as_chunks_mut::<17>().0) {
        out[0] = *scale;
        Mx::pack(&std::array::from_fn(|i| code(packed, i)), out);
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::super::fp8::power_of_two;
    use super::*;

    /// All scales that weights lead to (the largest finite ones have the exponent 252), and weights on,
    /// beside and between values and their middles.
    #[test]
    fn codes_are_those_of_the_nearest_values() {
        let units = (0..=252).map(e8m0_half).chain((0..=0x7e).map(ue4m3_half));
        for unit in units {
            let values = values(unit);
            for quarter in 0..=100 {
                let v = quarter as f32 * 0.25 * unit;
                for v in [v, v.next_up(), v.next_down(), v * 1.1].map(|v| v.min(f32::MAX)) {
                    for v in [v, -v] {
                        let expected = nearest(v, &values);
                        assert_eq!(codes(&[v; 8], unit, v.abs()), [expected; 8], "{v} at {unit}");
                    }
                }
            }
        }
    }

    #[test]
    fn pairs_are_packed_without_change() {
        let bytes: Vec<u8> = (0..64u8).map(|i| i.wrapping_mul(73)).collect();
        let expected = |scales: &[f32]| -> Vec<f32> {
            let group = 128 / scales.len();
            let values = bytes.iter().flat_map(|&byte| fp4_pair(byte)).enumerate();
            values.map(|(i, value)| value * scales[i / group]).collect()
        };
        let (mut out, mut blocks) = ([0.0; 128], [0; 72]);
        let scales = [0x38, 0x01, 0xb9, 0x7e, 0x40, 0x08, 0x3c, 0x44];
        assert_eq!(nvfp4_from_pairs(&bytes, &scales, &mut blocks), Ok(()));
        QuantType::NVFP4.decode_rows(&blocks, 128, &mut out).unwrap();
        assert_eq!(out.to_vec(), expected(&scales.map(|byte| 2.0 * ue4m3_half(byte & 0x7f))));
        assert_eq!(nvfp4_from_pairs(&bytes[..32], &[0, 0, 0xff, 0], &mut blocks[..36]), Err(2));
        let scales = [127, 0, 250, 120];
        assert_eq!(mxfp4_from_pairs(&bytes, &scales, &mut blocks[..68]), Ok(()));
        QuantType::MXFP4.decode_rows(&blocks[..68], 128, &mut out).unwrap();
        assert_eq!(out.to_vec(), expected(&scales.map(power_of_two)));
        assert_eq!(mxfp4_from_pairs(&bytes[..32], &[0, 0xff], &mut blocks[..34]), Err(1));
    }
}
