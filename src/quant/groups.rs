//! Groups of 32 weights as the integers that they are stored as.
//!
//! Products with such weights need not widen each of them: what all weights of a group have in common
//! can wait until the integers are multiplied and summed.

use crate::simd::{Simd, compiled};

/// 32 weights, `scale · code + offset` each.
#[derive(Clone, Copy, Default)]
#[cfg_attr(not(feature = "eval"), allow(dead_code))]
pub(crate) struct Group {
    pub codes: [i8; Group::LEN],
    pub scale: f32,
    pub offset: f32,
}

impl Group {
    /// Weights in a group.
    pub const LEN: usize = 32;
}

/// A format whose weights are such groups. To be inlined, as [`Blocks`](super::kernels::Blocks).
pub(super) trait Grouped<const BYTES: usize> {
    /// Whether groups have offsets.
    const OFFSETS: bool;

    /// Group `j` of a block.
    fn group(block: &[u8; BYTES], j: usize) -> Group;
}

/// How blocks of a type are read as groups.
#[derive(Clone, Copy, Debug)]
#[cfg_attr(not(feature = "eval"), allow(dead_code))]
pub(crate) struct Groups {
    /// Whether they have offsets.
    pub offsets: bool,
    /// Reads whole blocks, as many as the bytes hold, into as many groups as they have.
    pub read: fn(Simd, &[u8], &mut [Group]),
}

/// How blocks of a format are read.
pub(super) const fn groups<B: Grouped<BYTES>, const BYTES: usize>() -> Groups {
    Groups { offsets: B::OFFSETS, read: read::<B, BYTES> }
}

compiled!(
    /// Reads whole blocks.
    read<B: Grouped<BYTES>, const BYTES: usize>(bytes: &[u8], out: &mut [Group]) -> ()
        = read_blocks::<B, BYTES>
);

#[inline(always)]
fn read_blocks<B: Grouped<BYTES>, const BYTES: usize>(bytes: &[u8], out: &mut [Group]) {
    let blocks = bytes.as_chunks::<BYTES>().0;
    let per_block = (out.len() / blocks.len().max(1)).max(1);
    for (b, groups) in blocks.iter().zip(out.chunks_exact_mut(per_block)) {
        for (j, to) in groups.iter_mut().enumerate() {
            *to = B::group(b, j);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::quant::QuantType;

    #[test]
    fn groups_hold_the_weights_that_are_decoded() {
        let weights: Vec<f32> =
            (0..768).map(|i| ((i * i * 7 + 3 * i) % 1013) as f32 / 500.0 - 0.9).collect();
        let mut seen = 0;
        for ty in QuantType::all() {
            let Some(Groups { offsets, read }) = ty.format().groups else { continue };
            seen += 1;
            let mut bytes = vec![0; ty.row_bytes(weights.len()).unwrap()];
            ty.encode_rows(&weights, weights.len(), None, &mut bytes).unwrap();
            let mut decoded = vec![0.0; weights.len()];
            ty.decode_rows(&bytes, weights.len(), &mut decoded).unwrap();
            for simd in Simd::supported() {
                let mut groups = vec![Group::default(); weights.len() / Group::LEN];
                read(simd, &bytes, &mut groups);
                assert!(groups.iter().any(|group| group.offset != 0.0) == offsets, "{ty}");
                for (group, expected) in groups.iter().zip(decoded.chunks_exact(Group::LEN)) {
                    let found = group.codes.map(|q| group.scale * f32::from(q) + group.offset);
                    assert_eq!(found, expected, "{ty} at {simd}");
                }
            }
        }
        assert_eq!(seen, 9);
    }
}
