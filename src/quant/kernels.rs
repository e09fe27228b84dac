//! The functions of a format, and their compilation for every level of instructions.

use super::guide::Guide;
use super::lanes::InLanes;
use super::lattice::Search;
use super::wide::Wide;
use crate::simd::{Portable, Simd};

/// A format: from weights to blocks and back. Everything in it has to be inlined, to be compiled for
/// the instructions that it is called with.
pub(super) trait Blocks {
    /// Whether the weight of an importance depends on the whole row.
    const BY_ROW: bool = false;
    /// Whether scales are searched for.
    const SEARCHES: bool = false;

    /// Encodes whole blocks, or one row where importances guide it; up to
    /// [`ROWS`](super::search::ROWS) rows where importances are weighed by the row.
    fn encode<S: Search>(x: &[f32], guide: Guide, out: &mut [u8]);

    /// Decodes whole blocks.
    fn decode(bytes: &[u8], out: &mut [f32]);
}

/// The functions of a format at one level. Unsafe to call but with its token.
#[derive(Clone, Copy, Debug)]
struct Kernels {
    encode: unsafe fn(&[f32], Guide<'_>, &mut [u8]),
    decode: unsafe fn(&[u8], &mut [f32]),
}

/// The functions of a format at every level.
#[derive(Debug)]
pub(super) struct Levels {
    /// [`Blocks::BY_ROW`].
    pub by_row: bool,
    #[cfg(test)]
    plain: Kernels,
    /// With wide searches, where there are some; those for AVX2 serve AVX-512 as well.
    wide: Option<Kernels>,
    #[cfg(target_arch = "x86_64")]
    wide_avx2: Option<Kernels>,
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
        fn encode<B: Blocks>(x: &[f32], guide: Guide, out: &mut [u8]) {
            B::encode::<$search>(x, guide, out);
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
    #[cfg(target_arch = "aarch64")]
    use crate::simd::F32x4;
    #[cfg(any(target_arch = "x86_64", target_arch = "aarch64"))]
    use crate::simd::Pair;
    #[cfg(target_arch = "x86_64")]
    use crate::simd::{F32x8, F32x16};
    Levels {
        by_row: B::BY_ROW,
        #[cfg(test)]
        plain: kernels!(B, inline(never), super::search::Plain),
        wide: match B::SEARCHES {
            true => Some(kernels!(B, inline(never), Wide<InLanes<Portable>>)),
            false => None,
        },
        #[cfg(target_arch = "x86_64")]
        wide_avx2: match B::SEARCHES {
            true => {
                Some(kernels!(B, target_feature(enable = "avx2,f16c"), Wide<InLanes<Pair<F32x8>>>))
            }
            false => None,
        },
        portable: kernels!(B, inline(never), InLanes<Portable>),
        #[cfg(target_arch = "x86_64")]
        avx2: kernels!(B, target_feature(enable = "avx2,f16c"), InLanes<Pair<F32x8>>),
        #[cfg(target_arch = "x86_64")]
        avx512: kernels!(
            B,
            target_feature(enable = "avx2,f16c,avx512f,avx512bw,avx512dq,avx512vl"),
            InLanes<Pair<F32x16>>
        ),
        #[cfg(target_arch = "aarch64")]
        neon: kernels!(B, target_feature(enable = "neon"), InLanes<Pair<F32x4>>),
    }
}

impl Levels {
    fn at(&self, simd: Simd) -> Kernels {
        match simd {
            Simd::Portable => self.portable,
            #[cfg(target_arch = "aarch64")]
            Simd::Neon(_) => self.neon,
            #[cfg(target_arch = "x86_64")]
            Simd::Avx2(_) => self.avx2,
            #[cfg(target_arch = "x86_64")]
            Simd::Avx512(_) | Simd::Avx512Vnni(_) => self.avx512,
        }
    }

    /// Whether there is a wide search.
    pub fn searches(&self) -> bool {
        self.wide.is_some()
    }

    /// [`Blocks::encode`] with a wide search, where there is one.
    pub fn search(&self, simd: Simd, x: &[f32], guide: Guide, out: &mut [u8]) {
        let wide = match simd {
            #[cfg(target_arch = "x86_64")]
            Simd::Avx2(_) | Simd::Avx512(_) | Simd::Avx512Vnni(_) => self.wide_avx2,
            #[cfg(target_arch = "aarch64")]
            Simd::Neon(_) => self.wide,
            Simd::Portable => self.wide,
        };
        // SAFETY: `simd` holds the token of its level, which has AVX2 where that is used.
        unsafe { (wide.unwrap_or(self.at(simd)).encode)(x, guide, out) }
    }

    /// [`Blocks::encode`].
    pub fn encode(&self, simd: Simd, x: &[f32], guide: Guide, out: &mut [u8]) {
        // SAFETY: `simd` holds the token of the level.
        unsafe { (self.at(simd).encode)(x, guide, out) }
    }

    /// [`Blocks::decode`].
    pub fn decode(&self, simd: Simd, bytes: &[u8], out: &mut [f32]) {
        // SAFETY: as above.
        unsafe { (self.at(simd).decode)(bytes, out) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::quant::QuantType;
    use proptest::prelude::*;

    /// Weights that hit every branch of the searches: bits of any finite number, ordinary ones,
    /// few distinct ones, zeros.
    fn weight() -> impl Strategy<Value = f32> {
        prop_oneof![
            4 => -1f32..1.0,
            2 => (-8i8..8).prop_map(|v| f32::from(v) * 0.5),
            1 => Just(0.0),
            1 => Just(-0.0),
            1 => any::<u32>().prop_map(f32::from_bits).prop_filter("finite", |v| v.is_finite()),
        ]
    }

    /// A row of three super-blocks, each 16 of it of one kind.
    fn row() -> impl Strategy<Value = Vec<f32>> {
        let group = prop_oneof![
            3 => prop::collection::vec(-1f32..1.0, 16),
            1 => prop::collection::vec(weight(), 16),
            1 => weight().prop_map(|v| vec![v; 16]),
        ];
        prop::collection::vec(group, 48).prop_map(|groups| groups.concat())
    }

    fn importances() -> impl Strategy<Value = Option<Vec<f32>>> {
        let value = prop_oneof![4 => 0f32..10.0, 1 => Just(0.0), 1 => Just(1e30), 1 => Just(1e-30)];
        prop::option::of(prop::collection::vec(value, 768))
    }

    proptest! {
        #[test]
        fn every_level_writes_the_bytes_of_the_plain_reference(x in row(), qw in importances()) {
            let guide = Guide::from(qw.as_deref());
            for ty in QuantType::all() {
                let Some(levels) = &ty.format().kernels else { continue };
                let reference = levels.plain;
                let mut expected = vec![0; ty.row_bytes(x.len()).unwrap()];
                // SAFETY: compiled for what every machine has.
                unsafe { (reference.encode)(&x, guide, &mut expected) };
                let mut values = vec![0.0; x.len()];
                // SAFETY: as above.
                unsafe { (reference.decode)(&expected, &mut values) };
                let mut searched = None;
                for simd in Simd::supported() {
                    let mut bytes = vec![0xaa; expected.len()];
                    levels.search(simd, &x, guide, &mut bytes);
                    let first = searched.get_or_insert_with(|| bytes.clone());
                    prop_assert_eq!(&bytes, first, "{} searched at {}", ty, simd);
                    levels.encode(simd, &x, guide, &mut bytes);
                    prop_assert_eq!(&bytes, &expected, "{} at {}", ty, simd);
                    let mut decoded = vec![0.0; x.len()];
                    levels.decode(simd, &bytes, &mut decoded);
                    for (a, b) in decoded.iter().zip(&values) {
                        prop_assert!(a.to_bits() == b.to_bits() || a.is_nan() && b.is_nan());
                    }
                }
            }
        }
    }
}
