//! Groups of 32 weights as the integers that they are stored as.
//!
//! Products with such weights need not widen each of them: what all weights of a group have in common
//! can wait until the integers are multiplied and summed.

use super::float::f16;
use super::simd::compiled;
use super::types::QuantType;
use super::{iq4, k_min, legacy};

/// 32 weights, `scale · code + offset` each.
#[derive(Clone, Copy, Default)]
pub(crate) struct Group {
    pub codes: [i8; Group::LEN],
    pub scale: f32,
    pub offset: f32,
}

impl Group {
    /// Weights in a group.
    pub const LEN: usize = 32;
}

/// Whether weights of a type are such groups, and if so, whether they have offsets.
pub(crate) fn groups_with_offsets(ty: QuantType) -> Option<bool> {
    use QuantType::*;
    match ty {
        Q4_0 | Q5_0 | Q8_0 | IQ4_NL | IQ4_XS => Some(false),
        Q4_1 | Q5_1 | Q4_K | Q5_K => Some(true),
        _ => None,
    }
}

compiled!(
    /// Reads whole blocks of a type that has [groups](groups_with_offsets), as many as `bytes` holds.
    pub(crate) read_groups(ty: QuantType, bytes: &[u8], out: &mut [Group]) -> () = read
);

#[inline(always)]
fn read(ty: QuantType, bytes: &[u8], out: &mut [Group]) {
    match ty {
        QuantType::Q4_0 => read_legacy::<18, 8>(bytes, out),
        QuantType::Q4_1 => read_legacy::<20, 0>(bytes, out),
        QuantType::Q5_0 => read_legacy::<22, 16>(bytes, out),
        QuantType::Q5_1 => read_legacy::<24, 0>(bytes, out),
        QuantType::Q8_0 => blocks(bytes, out, |b: &[u8; 34], _| Group {
            codes: std::array::from_fn(|i| b[2 + i] as i8),
            scale: f16(b),
            offset: 0.0,
        }),
        QuantType::Q4_K => read_k::<144>(bytes, out),
        QuantType::Q5_K => read_k::<176>(bytes, out),
        QuantType::IQ4_NL => blocks(bytes, out, |b: &[u8; 18], _| Group {
            codes: iq4::values(&b[2..]),
            scale: f16(b),
            offset: 0.0,
        }),
        QuantType::IQ4_XS => blocks(bytes, out, |b: &[u8; 136], j| Group {
            codes: iq4::values(&b[8 + 16 * j..]),
            scale: iq4::scale_xs(b, j),
            offset: 0.0,
        }),
        _ => unreachable!("weights of {ty} are no such groups"),
    }
}

/// Calls `group` for each block and each group in it.
#[inline(always)]
fn blocks<const BYTES: usize>(
    bytes: &[u8],
    out: &mut [Group],
    group: impl Fn(&[u8; BYTES], usize) -> Group,
) {
    let blocks = bytes.as_chunks::<BYTES>().0;
    let per_block = (out.len() / blocks.len().max(1)).max(1);
    for (b, groups) in blocks.iter().zip(out.chunks_exact_mut(per_block)) {
        for (j, to) in groups.iter_mut().enumerate() {
            *to = group(b, j);
        }
    }
}

#[inline(always)]
fn read_legacy<const BYTES: usize, const HALF: i8>(bytes: &[u8], out: &mut [Group]) {
    blocks(bytes, out, |b: &[u8; BYTES], _| Group {
        codes: legacy::unpack::<BYTES, HALF>(b),
        scale: f16(b),
        offset: if HALF == 0 { f16(&b[2..]) } else { 0.0 },
    });
}

#[inline(always)]
fn read_k<const BYTES: usize>(bytes: &[u8], out: &mut [Group]) {
    blocks(bytes, out, |b: &[u8; BYTES], j| {
        let (scale, min) = k_min::scale_min(j, &b[4..16]);
        Group {
            codes: k_min::unpack_32(b, j),
            scale: f16(b) * f32::from(scale),
            offset: -(f16(&b[2..]) * f32::from(min)),
        }
    });
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::quant::Simd;

    #[test]
    fn groups_hold_the_weights_that_are_decoded() {
        let weights: Vec<f32> =
            (0..768).map(|i| ((i * i * 7 + 3 * i) % 1013) as f32 / 500.0 - 0.9).collect();
        let mut seen = 0;
        for ty in QuantType::all() {
            let Some(offsets) = groups_with_offsets(ty) else { continue };
            seen += 1;
            let mut bytes = vec![0; ty.row_bytes(weights.len()).unwrap()];
            ty.encode_rows(&weights, weights.len(), None, &mut bytes).unwrap();
            let mut decoded = vec![0.0; weights.len()];
            ty.decode_rows(&bytes, weights.len(), &mut decoded).unwrap();
            for level in Simd::ALL {
                let mut groups = vec![Group::default(); weights.len() / Group::LEN];
                read_groups(level, ty, &bytes, &mut groups);
                assert!(groups.iter().any(|group| group.offset != 0.0) == offsets, "{ty}");
                for (group, expected) in groups.iter().zip(decoded.chunks_exact(Group::LEN)) {
                    let found = group.codes.map(|q| group.scale * f32::from(q) + group.offset);
                    assert_eq!(found, expected, "{ty} at {level}");
                }
            }
        }
        assert_eq!(seen, 9);
    }
}
