//! The functions of a format, and their compilation for every level of instructions.

use super::lanes::portable::Portable;
use super::lanes::search::InLanes;
#[cfg(any(target_arch = "x86_64", target_arch = "aarch64"))]
use super::lanes::search::Pair;
use super::lattice::Search;
use super::simd::Simd;

/// A format: from weights to blocks and back. Everything in it has to be inlined, to be compiled for
/// the instructions that it is called with.
pub(super) trait Blocks {
    /// Whether the weight of an importance depends on the whole row.
    const BY_ROW: bool = false;

    /// Encodes whole blocks without importances, or one row with them; up to
    /// [`ROWS`](super::search::ROWS) rows where importances are weighed by the row.
    fn encode<S: Search>(x: &[f32], qw: Option<&[f32]>, out: &mut [u8]);

    /// Decodes whole blocks.
    fn decode(bytes: &[u8], out: &mut [f32]);
}

/// [`Blocks::encode`] at a level.
pub(super) type Encode = unsafe fn(&[f32], Option<&[f32]>, &mut [u8]);
/// [`Blocks::decode`] at a level.
pub(super) type Decode = unsafe fn(&[u8], &mut [f32]);

/// The functions of a format at one level. Unsafe to call unless the level is supported.
#[derive(Clone, Copy, Debug)]
pub(super) struct Kernels {
    pub encode: Encode,
    pub decode: Decode,
}

/// The functions of a format at every level.
#[derive(Debug)]
pub(super) struct Levels {
    /// [`Blocks::BY_ROW`].
    pub by_row: bool,
    #[cfg(test)]
    pub plain: Kernels,
    portable: Kernels,
    #[cfg(target_arch = "x86_64")]
    avx2: Kernels,
    #[cfg(target_arch = "x86_64")]
    avx512: Kernels,
    #[cfg(target_arch = "aarch64")]
    neon: Kernels,
}

/// Compiles a format with an attribute and a search.
macro_rules! kernels {
    ($format:ident, $attribute:meta, $search:ty) => {{
        #[$attribute]
        fn encode<B: Blocks>(x: &[f32], qw: Option<&[f32]>, out: &mut [u8]) {
            B::encode::<$search>(x, qw, out);
        }
        #[$attribute]
        fn decode<B: Blocks>(bytes: &[u8], out: &mut [f32]) {
            B::decode(bytes, out);
        }
        Kernels { encode: encode::<$format>, decode: decode::<$format> }
    }};
}

/// Compiles a format for every level.
pub(super) const fn levels<B: Blocks>() -> Levels {
    #[cfg(target_arch = "x86_64")]
    use super::lanes::{avx2::Avx2, avx512::Avx512};
    Levels {
        by_row: B::BY_ROW,
        #[cfg(test)]
        plain: kernels!(B, inline(never), super::search::Plain),
        portable: kernels!(B, inline(never), InLanes<Portable>),
        #[cfg(target_arch = "x86_64")]
        avx2: kernels!(B, target_feature(enable = "avx2,f16c"), InLanes<Pair<Avx2>>),
        #[cfg(target_arch = "x86_64")]
        avx512: kernels!(
            B,
            target_feature(enable = "avx2,f16c,avx512f,avx512bw,avx512dq,avx512vl"),
            InLanes<Pair<Avx512>>
        ),
        #[cfg(target_arch = "aarch64")]
        neon: kernels!(B, target_feature(enable = "neon"), InLanes<Pair<super::lanes::neon::Neon>>),
    }
}

impl Levels {
    /// The functions at a level. Where the machine lacks the level, those of the best it has.
    pub fn at(&self, simd: Simd) -> Kernels {
        match if simd.is_supported() { simd } else { Simd::detect() } {
            #[cfg(target_arch = "x86_64")]
            Simd::Avx2 => self.avx2,
            #[cfg(target_arch = "x86_64")]
            Simd::Avx512 => self.avx512,
            #[cfg(target_arch = "aarch64")]
            Simd::Neon => self.neon,
            _ => self.portable,
        }
    }
}
