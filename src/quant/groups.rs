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
    /// Zeros.
    pub const ZERO: Self = Self { codes: [0; G], scale: 0.0, offset: 0.0 };
}

/// A format whose blocks consist of such groups. To be inlined, as [`Blocks`](super::kernels::Blocks).
pub(super) trait Grouped<const G: usize, const BYTES: usize> {
    /// Whether groups have offsets.
    const OFFSETS: bool;
    /// The largest magnitude of a code.
    const LARGEST: i16;

    /// Group `j` of a block.
    fn group(block: &[u8; BYTES], j: usize) -> Group<G>;

    /// What the scales and the offsets of a block's groups are whole multiples of, up to eight bits and a sign: those of
    /// the group where there is but one, or all have the same.
    #[inline(always)]
    fn units(block: &[u8; BYTES]) -> [f32; 2] {
        let Group { scale, offset, .. } = Self::group(block, 0);
        [scale, offset]
    }
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

/// How blocks of a type are read as groups.
#[derive(Clone, Copy, Debug)]
#[cfg_attr(not(feature = "eval"), allow(dead_code))]
pub(crate) struct Groups {
    /// Whether they have offsets.
    pub offsets: bool,
    /// The largest magnitude of a code.
    pub largest: i16,
    /// Reads whole blocks, as many as the bytes hold, into as many groups as they have.
    pub read: Read,
    /// [`Grouped::units`]; of blocks of 256, at least.
    pub units: fn(&[u8]) -> [f32; 2],
}

/// A function for groups of one length or the other.
#[derive(Clone, Copy, Debug)]
#[cfg_attr(not(feature = "eval"), allow(dead_code))]
pub(crate) enum Read {
    Of16(fn(Simd, &[u8], &mut [Group<16>])),
    Of32(fn(Simd, &[u8], &mut [Group<32>])),
}

/// How blocks of a format are read that has groups of 32.
pub(super) const fn groups<B: Grouped<32, BYTES>, const BYTES: usize>() -> Option<Groups> {
    of::<B, 32, BYTES>(Read::Of32(read_32::<B, BYTES>))
}

/// The same for groups of 16.
pub(super) const fn groups_of_16<B: Grouped<16, BYTES>, const BYTES: usize>() -> Option<Groups> {
    of::<B, 16, BYTES>(Read::Of16(read_16::<B, BYTES>))
}

const fn of<B: Grouped<G, BYTES>, const G: usize, const BYTES: usize>(
    read: Read,
) -> Option<Groups> {
    let units = |block: &[u8]| block.first_chunk().map_or([0.0; 2], B::units);
    Some(Groups { offsets: B::OFFSETS, largest: B::LARGEST, read, units })
}

compiled!(
    /// Reads whole blocks.
    read_32<B: Grouped<32, BYTES>, const BYTES: usize>(bytes: &[u8], out: &mut [Group<32>]) -> ()
        = read_blocks::<B, 32, BYTES>
);
compiled!(
    /// Reads whole blocks.
    read_16<B: Grouped<16, BYTES>, const BYTES: usize>(bytes: &[u8], out: &mut [Group<16>]) -> ()
        = read_blocks::<B, 16, BYTES>
);

#[inline(always)]
fn read_blocks<B: Grouped<G, BYTES>, const G: usize, const BYTES: usize>(
    bytes: &[u8],
    out: &mut [Group<G>],
) {
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

    /// Reads blocks as groups of a length and compares with what is decoded.
    fn check<const G: usize>(
        ty: QuantType,
        read: fn(Simd, &[u8], &mut [Group<G>]),
        offsets: bool,
        bytes: &[u8],
        decoded: &[f32],
    ) {
        for simd in Simd::supported() {
            let mut groups = vec![Group::<G>::ZERO; decoded.len() / G];
            read(simd, bytes, &mut groups);
            assert!(groups.iter().any(|group| group.offset != 0.0) == offsets, "{ty}");
            for (group, expected) in groups.iter().zip(decoded.chunks_exact(G)) {
                let found = group.codes.map(|q| group.scale * f32::from(q) + group.offset);
                assert_eq!(found, expected, "{ty} at {simd}");
            }
        }
    }

    #[test]
    fn groups_hold_the_weights_that_are_decoded() {
        let weights: Vec<f32> =
            (0..768).map(|i| ((i * i * 7 + 3 * i) % 1013) as f32 / 500.0 - 0.9).collect();
        let importances = vec![1.0; weights.len()];
        for ty in QuantType::all().filter(|ty| ty.is_quantized() && ty.format().is_target()) {
            let Some(Groups { offsets, read, .. }) = ty.format().groups else {
                panic!("{ty} has no groups")
            };
            let mut bytes = vec![0; ty.row_bytes(weights.len()).unwrap()];
            ty.encode_rows(&weights, weights.len(), Guide::Columns(&importances), &mut bytes)
                .unwrap();
            let mut decoded = vec![0.0; weights.len()];
            ty.decode_rows(&bytes, weights.len(), &mut decoded).unwrap();
            match read {
                Read::Of16(read) => check(ty, read, offsets, &bytes, &decoded),
                Read::Of32(read) => check(ty, read, offsets, &bytes, &decoded),
            }
        }
    }

    #[test]
    fn no_byte_gives_a_code_beyond_the_largest() {
        let mut state = 1u32;
        let mut next = || {
            state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
            (state >> 24) as u8
        };
        for ty in QuantType::all() {
            let Some(Groups { largest, read, .. }) = ty.format().groups else { continue };
            let blocks = 200;
            let bytes: Vec<u8> = (0..blocks * ty.block_bytes()).map(|_| next()).collect();
            fn most<const G: usize>(
                read: fn(Simd, &[u8], &mut [Group<G>]),
                bytes: &[u8],
                n: usize,
            ) -> i16 {
                let mut groups = vec![Group::<G>::ZERO; n / G];
                read(Simd::detect(), bytes, &mut groups);
                let codes = groups.iter().flat_map(|group| group.codes);
                codes.map(|code| i16::from(code).abs()).max().unwrap_or(0)
            }
            let n = blocks * ty.block_len();
            let most = match read {
                Read::Of16(read) => most(read, &bytes, n),
                Read::Of32(read) => most(read, &bytes, n),
            };
            assert_eq!(most, largest, "{ty}");
        }
    }
}
