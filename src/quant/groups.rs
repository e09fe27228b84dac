//! Weights as the integers that they are stored as, in groups with what all of a group have in common.
//!
//! Decoding multiplies them out. Products with such weights need not: scale and offset can wait until
//! the integers are multiplied and summed.

use crate::simd::{Simd, compiled};

/// Weights, `scale · code + offset` each.
#[derive(Clone, Copy)]
pub(crate) struct Group<const G: usize> {
    pub codes: [i8; G],
    pub scale: f32,
    pub offset: f32,
}

#[cfg_attr(not(feature = "eval"), allow(dead_code))]
impl<const G: usize> Group<G> {
    /// Weights in a group.
    pub const LEN: usize = G;
    /// Zeros.
    pub const ZERO: Self = Self { codes: [0; G], scale: 0.0, offset: 0.0 };
}

/// A format whose blocks consist of such groups. To be inlined, as [`Blocks`](super::kernels::Blocks).
pub(super) trait Grouped<const G: usize, const BYTES: usize> {
    /// Whether groups have offsets.
    const OFFSETS: bool;

    /// Group `j` of a block.
    fn group(block: &[u8; BYTES], j: usize) -> Group<G>;
}

/// [`Blocks::decode`](super::kernels::Blocks::decode) for blocks of `LEN` weights.
#[inline(always)]
pub(super) fn decode<B, const LEN: usize, const G: usize, const BYTES: usize>(
    bytes: &[u8],
    out: &mut [f32],
) where
    B: Grouped<G, BYTES>,
{
    let (blocks, out) = (bytes.as_chunks::<BYTES>().0, out.as_chunks_mut::<LEN>().0);
    for b in 0..blocks.len() {
        let groups = out[b].as_chunks_mut::<G>().0;
        for j in 0..LEN / G {
            let group = B::group(&blocks[b], j);
            for i in 0..G {
                let value = group.scale * f32::from(group.codes[i]);
                groups[j][i] = if B::OFFSETS { value + group.offset } else { value };
            }
        }
    }
}

/// How blocks of a type are read as groups of 32.
#[derive(Clone, Copy, Debug)]
#[cfg_attr(not(feature = "eval"), allow(dead_code))]
pub(crate) struct Groups {
    /// Whether they have offsets.
    pub offsets: bool,
    /// Reads whole blocks, as many as the bytes hold, into as many groups as they have.
    pub read: fn(Simd, &[u8], &mut [Group<32>]),
}

/// How blocks of a format are read.
pub(super) const fn groups<B: Grouped<32, BYTES>, const BYTES: usize>() -> Groups {
    Groups { offsets: B::OFFSETS, read: read::<B, BYTES> }
}

compiled!(
    /// Reads whole blocks.
    read<B: Grouped<32, BYTES>, const BYTES: usize>(bytes: &[u8], out: &mut [Group<32>]) -> ()
        = read_blocks::<B, BYTES>
);

#[inline(always)]
fn read_blocks<B: Grouped<32, BYTES>, const BYTES: usize>(bytes: &[u8], out: &mut [Group<32>]) {
    let blocks = bytes.as_chunks::<BYTES>().0;
    let per_block = (out.len() / blocks.len().max(1)).max(1);
    for b in 0..blocks.len() {
        for j in 0..per_block {
            out[b * per_block + j] = B::group(&blocks[b], j);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::quant::{Guide, QuantType};

    #[test]
    fn groups_hold_the_weights_that_are_decoded() {
        let weights: Vec<f32> =
            (0..768).map(|i| ((i * i * 7 + 3 * i) % 1013) as f32 / 500.0 - 0.9).collect();
        let mut seen = 0;
        for ty in QuantType::all() {
            let Some(Groups { offsets, read }) = ty.format().groups else { continue };
            seen += 1;
            let mut bytes = vec![0; ty.row_bytes(weights.len()).unwrap()];
            ty.encode_rows(&weights, weights.len(), Guide::Plain, &mut bytes).unwrap();
            let mut decoded = vec![0.0; weights.len()];
            ty.decode_rows(&bytes, weights.len(), &mut decoded).unwrap();
            for simd in Simd::supported() {
                let mut groups = vec![Group::<32>::ZERO; weights.len() / 32];
                read(simd, &bytes, &mut groups);
                assert!(groups.iter().any(|group| group.offset != 0.0) == offsets, "{ty}");
                for (group, expected) in groups.iter().zip(decoded.chunks_exact(32)) {
                    let found = group.codes.map(|q| group.scale * f32::from(q) + group.offset);
                    assert_eq!(found, expected, "{ty} at {simd}");
                }
            }
        }
        assert_eq!(seen, 9);
    }
}
