//! The types that a GGUF file may name, with the ids of `ggml_type` in the reference implementation
//! (`ggml.h`). What is known of each is in its [row](Format).

use super::format::Format;
use crate::names::did_you_mean;
use std::fmt;
use std::str::FromStr;

/// Defines the types, and what follows from there being these and no others.
macro_rules! types {
    ($($(#[$doc:meta])* $name:ident = $id:literal,)*) => {
        /// A tensor type of the GGUF format. The discriminant is the id that files carry.
        ///
        /// Ids 4, 5, 31 to 33 and 36 to 38 belonged to types that were withdrawn; they have no variant.
        #[allow(non_camel_case_types)]
        #[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
        #[repr(u32)]
        #[non_exhaustive]
        pub enum QuantType {
            $($(#[$doc])* $name = $id,)*
        }

        /// In the order of their ids.
        const ALL: &[QuantType] = &[$(QuantType::$name),*];

        impl QuantType {
            /// The name as users spell it, for example `Q4_K`.
            pub fn name(self) -> &'static str {
                match self {
                    $(Self::$name => stringify!($name),)*
                }
            }

            /// What is known of the type.
            pub fn format(self) -> &'static Format {
                match self {
                    $(Self::$name => const { Format::of(Self::$name) },)*
                }
            }
        }
    };
}

types! {
    /// IEEE binary32.
    F32 = 0,
    /// IEEE binary16.
    F16 = 1,
    /// 4 bits, one scale for 32 weights.
    Q4_0 = 2,
    /// 4 bits, scale and minimum for 32 weights.
    Q4_1 = 3,
    /// 5 bits, one scale for 32 weights.
    Q5_0 = 6,
    /// 5 bits, scale and minimum for 32 weights.
    Q5_1 = 7,
    /// 8 bits, one scale for 32 weights.
    Q8_0 = 8,
    /// 8 bits with block sums; exists for activations only.
    Q8_1 = 9,
    /// 2 bits, 4-bit scales and minima for 16 weights.
    Q2_K = 10,
    /// 3 bits, 6-bit scales for 16 weights.
    Q3_K = 11,
    /// 4 bits, 6-bit scales and minima for 32 weights.
    Q4_K = 12,
    /// 5 bits, 6-bit scales and minima for 32 weights.
    Q5_K = 13,
    /// 6 bits, 8-bit scales for 16 weights.
    Q6_K = 14,
    /// 8 bits with block sums; exists for activations only.
    Q8_K = 15,
    /// 256-point lattice in 8 dimensions, 4-bit scales for 32 weights.
    IQ2_XXS = 16,
    /// 512-point lattice in 8 dimensions, 4-bit scales for 16 weights.
    IQ2_XS = 17,
    /// 256-point lattice in 4 dimensions.
    IQ3_XXS = 18,
    /// 2048-point ternary lattice in 8 dimensions, 3-bit scales for 32 weights.
    IQ1_S = 19,
    /// 4-bit codebook, one scale for 32 weights.
    IQ4_NL = 20,
    /// 512-point lattice in 4 dimensions.
    IQ3_S = 21,
    /// 1024-point lattice in 8 dimensions.
    IQ2_S = 22,
    /// 4-bit codebook, 6-bit scales for 32 weights.
    IQ4_XS = 23,
    /// 8-bit integers.
    I8 = 24,
    /// 16-bit integers.
    I16 = 25,
    /// 32-bit integers.
    I32 = 26,
    /// 64-bit integers.
    I64 = 27,
    /// IEEE binary64.
    F64 = 28,
    /// 2048-point ternary lattice in 8 dimensions, 3-bit scales for 16 weights.
    IQ1_M = 29,
    /// The upper half of a binary32.
    BF16 = 30,
    /// Ternary, five weights to a byte.
    TQ1_0 = 34,
    /// Ternary, four weights to a byte.
    TQ2_0 = 35,
    /// E2M1 with a power-of-two scale for 32 weights (OCP microscaling).
    MXFP4 = 39,
    /// E2M1 with a UE4M3 scale for 16 weights.
    NVFP4 = 40,
    /// Signs, one scale for 128 weights.
    Q1_0 = 41,
    /// Ternary, one scale for 64 weights.
    Q2_0 = 42,
}

/// How many ids the format defines, withdrawn ones included (`GGML_TYPE_COUNT`).
pub const TYPE_ID_COUNT: u32 = 43;

impl QuantType {
    /// Every type, in the order of its id.
    pub fn all() -> impl Iterator<Item = Self> {
        ALL.iter().copied()
    }

    /// The type of an id as stored in files; `None` for withdrawn and unknown ids.
    pub fn from_id(id: u32) -> Option<Self> {
        Self::all().find(|ty| ty.id() == id)
    }

    /// The id stored in files.
    pub fn id(self) -> u32 {
        self as u32
    }

    /// Weights in a block.
    pub fn block_len(self) -> usize {
        self.format().len
    }

    /// Bytes of a block.
    pub fn block_bytes(self) -> usize {
        self.format().bytes
    }

    /// Bits that one weight occupies, scales included.
    pub fn bits_per_weight(self) -> f64 {
        self.format().bits_per_weight()
    }

    /// Bytes of a row of `n_per_row` weights; `None` if the row is no whole number of blocks
    /// or its size does not fit.
    pub fn row_bytes(self, n_per_row: usize) -> Option<usize> {
        let format = self.format();
        if !n_per_row.is_multiple_of(format.len) {
            return None;
        }
        (n_per_row / format.len).checked_mul(format.bytes)
    }

    /// Whether the type stores blocks of codes with scales, as opposed to plain numbers
    /// (`ggml_is_quantized`).
    pub fn is_quantized(self) -> bool {
        self.block_len() > 1
    }
}

impl fmt::Display for QuantType {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.name())
    }
}

/// A word that names no tensor type.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct UnknownType(pub String);

impl fmt::Display for UnknownType {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "unknown tensor type `{}`{}", self.0, closest(&self.0, QuantType::all()))
    }
}

impl std::error::Error for UnknownType {}

/// What a message says after a name that is none of the known ones; all of them where none is similar.
pub(crate) fn closest(found: &str, known: impl Iterator<Item = impl ToString>) -> String {
    let known: Vec<String> = known.map(|name| name.to_string()).collect();
    match did_you_mean(found, known.iter().map(String::as_str)) {
        hint if hint.is_empty() => format!("; known: {}", known.join(", ")),
        hint => hint,
    }
}

impl FromStr for QuantType {
    type Err = UnknownType;

    /// Accepts the name in any case (`Q4_K`, `q4_k`).
    fn from_str(s: &str) -> Result<Self, Self::Err> {
        let ty = Self::all().find(|ty| ty.name().eq_ignore_ascii_case(s));
        ty.ok_or_else(|| UnknownType(s.to_owned()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_similar_name_is_offered_for_an_unknown_one() {
        for (found, expected) in [("q4k", "did you mean Q4_K?"), ("Q6_K_L", "did you mean Q6_K?")] {
            let error = found.parse::<QuantType>().unwrap_err().to_string();
            assert!(error.ends_with(expected), "{error}");
        }
        assert!("foo".parse::<QuantType>().unwrap_err().to_string().contains("known: F32, F16"));
    }

    #[test]
    fn ids_and_names_round_trip() {
        let all: Vec<_> = QuantType::all().collect();
        assert_eq!(all.len(), 35);
        for ty in all {
            assert_eq!(QuantType::from_id(ty.id()), Some(ty));
            assert_eq!(ty.name().to_lowercase().parse(), Ok(ty));
            assert_eq!(format!("{ty:?}"), ty.name());
        }
    }

    #[test]
    fn withdrawn_ids_have_no_type() {
        let live = (0..TYPE_ID_COUNT).filter_map(QuantType::from_id).count();
        assert_eq!(live, 35);
        for id in [4, 5, 31, 32, 33, 36, 37, 38, 43, u32::MAX] {
            assert_eq!(QuantType::from_id(id), None);
        }
    }

    #[test]
    fn row_sizes_are_whole_blocks() {
        assert_eq!(QuantType::Q4_K.row_bytes(512), Some(288));
        assert_eq!(QuantType::Q4_K.row_bytes(320), None);
        assert_eq!(QuantType::F64.row_bytes(usize::MAX), None);
    }
}
