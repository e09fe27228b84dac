//! The named mixes that users ask for (`general.file_type`, enum `llama_ftype` in `llama.h`).

use crate::quant::{QuantType, closest};
use std::fmt;
use std::str::FromStr;

/// Defines the mixes: name, value of `general.file_type`, and the type that most tensors get
/// (`llama_ftype_get_default_type`); `outside` is what the reference converter makes of the embedding
/// and the output matrix, where that is another one. The recipe is in `mixes/`.
macro_rules! file_types {
    ($($name:ident = $id:literal: $ty:ident $(outside $outside:ident)?,)*) => {
        /// A named mix. The discriminant is the value of `general.file_type`.
        #[allow(non_camel_case_types, missing_docs)]
        #[derive(Clone, Copy, Debug, PartialEq, Eq)]
        #[repr(u32)]
        #[non_exhaustive]
        pub enum FileType {
            $($name = $id,)*
        }

        const ALL: &[FileType] = &[$(FileType::$name),*];

        impl FileType {
            /// Its name, as llama-quantize has it.
            pub fn name(self) -> &'static str {
                match self {
                    $(Self::$name => stringify!($name),)*
                }
            }

            /// The type that tensors get where the mix has no rule for them.
            pub fn default_type(self) -> QuantType {
                match self {
                    $(Self::$name => QuantType::$ty,)*
                }
            }

            /// What the reference converter makes of the embedding and the output matrix.
            pub(super) fn outside(self) -> QuantType {
                match self {
                    $(Self::$name => [$(QuantType::$outside,)? QuantType::$ty][0],)*
                }
            }

            /// The text of the recipe that makes the mix.
            pub(super) fn recipe(self) -> &'static str {
                match self {
                    $(Self::$name => include_str!(concat!("mixes/", stringify!($name), ".toml")),)*
                }
            }
        }
    };
}

file_types! {
    F32 = 0: F32,
    F16 = 1: F16,
    BF16 = 32: BF16,
    Q8_0 = 7: Q8_0,
    Q4_0 = 2: Q4_0,
    Q4_1 = 3: Q4_1,
    Q5_0 = 8: Q5_0,
    Q5_1 = 9: Q5_1,
    Q2_K = 10: Q2_K,
    Q2_K_S = 21: Q2_K,
    Q3_K_S = 11: Q3_K,
    Q3_K_M = 12: Q3_K,
    Q3_K_L = 13: Q3_K,
    Q4_K_S = 14: Q4_K,
    Q4_K_M = 15: Q4_K,
    Q5_K_S = 16: Q5_K,
    Q5_K_M = 17: Q5_K,
    Q6_K = 18: Q6_K,
    IQ1_S = 24: IQ1_S,
    IQ1_M = 31: IQ1_M,
    IQ2_XXS = 19: IQ2_XXS,
    IQ2_XS = 20: IQ2_XS,
    IQ2_S = 28: IQ2_XS,
    IQ2_M = 29: IQ2_S,
    IQ3_XXS = 23: IQ3_XXS,
    IQ3_XS = 22: IQ3_S,
    IQ3_S = 26: IQ3_S,
    IQ3_M = 27: IQ3_S,
    IQ4_NL = 25: IQ4_NL,
    IQ4_XS = 30: IQ4_XS,
    TQ1_0 = 36: TQ1_0 outside F16,
    TQ2_0 = 37: TQ2_0 outside F16,
    MXFP4_MOE = 38: MXFP4,
    Q1_0 = 40: Q1_0,
    Q2_0 = 41: Q2_0,
}

impl FileType {
    /// Every mix.
    pub fn all() -> impl Iterator<Item = Self> {
        ALL.iter().copied()
    }

    /// The first mix that most tensors of have this type.
    pub fn of_type(ty: QuantType) -> Option<Self> {
        Self::all().find(|file_type| file_type.default_type() == ty)
    }

    /// The mix that this value of `general.file_type` stands for.
    pub fn of_id(id: u32) -> Option<Self> {
        Self::all().find(|file_type| file_type.id() == id)
    }

    /// The value of `general.file_type`.
    pub fn id(self) -> u32 {
        self as u32
    }
}

impl fmt::Display for FileType {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.name())
    }
}

/// A word that names no mix.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("unknown type `{found}`{}", closest(found, FileType::all()))]
pub struct UnknownFileType {
    /// The word.
    pub found: String,
}

impl FromStr for FileType {
    type Err = UnknownFileType;

    /// Accepts names in any case, the aliases `Q3_K`, `Q4_K` and `Q5_K` for the medium mixes, and
    /// numbers, as llama-quantize does.
    fn from_str(s: &str) -> Result<Self, Self::Err> {
        let name = match s.to_ascii_uppercase().as_str() {
            "Q3_K" | "Q4_K" | "Q5_K" => format!("{s}_M"),
            _ => s.to_owned(),
        };
        Self::all()
            .find(|ft| name.eq_ignore_ascii_case(&ft.to_string()) || name.parse() == Ok(ft.id()))
            .ok_or_else(|| UnknownFileType { found: s.to_owned() })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_aliases_and_numbers_are_understood() {
        for ft in FileType::all() {
            assert_eq!(ft.to_string().to_lowercase().parse(), Ok(ft));
            assert_eq!(ft.id().to_string().parse(), Ok(ft));
        }
        assert_eq!("q4_k".parse(), Ok(FileType::Q4_K_M));
        let error = "Q4KM".parse::<FileType>().unwrap_err().to_string();
        assert!(error.contains("did you mean Q4_K_M?"), "{error}");
        assert!("4".parse::<FileType>().is_err(), "id 4 was withdrawn");
    }
}
