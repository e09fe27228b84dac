//! The named mixes that users ask for (`general.file_type`, enum `llama_ftype` in `llama.h`).

use crate::quant::{QuantType, closest};
use std::fmt;
use std::str::FromStr;

/// A named mix. The discriminant is the value of `general.file_type`.
#[allow(non_camel_case_types, missing_docs)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u32)]
#[rustfmt::skip]
pub enum FileType {
    F32 = 0, F16 = 1, Q4_0 = 2, Q4_1 = 3, Q8_0 = 7, Q5_0 = 8, Q5_1 = 9,
    Q2_K = 10, Q3_K_S = 11, Q3_K_M = 12, Q3_K_L = 13, Q4_K_S = 14, Q4_K_M = 15, Q5_K_S = 16,
    Q5_K_M = 17, Q6_K = 18, IQ2_XXS = 19, IQ2_XS = 20, Q2_K_S = 21, IQ3_XS = 22, IQ3_XXS = 23,
    IQ1_S = 24, IQ4_NL = 25, IQ3_S = 26, IQ3_M = 27, IQ2_S = 28, IQ2_M = 29, IQ4_XS = 30,
    IQ1_M = 31, BF16 = 32, TQ1_0 = 36, TQ2_0 = 37, MXFP4_MOE = 38, Q1_0 = 40, Q2_0 = 41,
}

impl FileType {
    /// Every mix with the type that most of its tensors get (`llama_ftype_get_default_type`).
    #[rustfmt::skip]
    const TABLE: [(FileType, QuantType); 35] = {
        use FileType as F;
        use QuantType::*;
        [
            (F::F32, F32), (F::F16, F16), (F::BF16, BF16), (F::Q8_0, Q8_0),
            (F::Q4_0, Q4_0), (F::Q4_1, Q4_1), (F::Q5_0, Q5_0), (F::Q5_1, Q5_1),
            (F::Q2_K, Q2_K), (F::Q2_K_S, Q2_K), (F::Q3_K_S, Q3_K), (F::Q3_K_M, Q3_K),
            (F::Q3_K_L, Q3_K), (F::Q4_K_S, Q4_K), (F::Q4_K_M, Q4_K), (F::Q5_K_S, Q5_K),
            (F::Q5_K_M, Q5_K), (F::Q6_K, Q6_K),
            (F::IQ1_S, IQ1_S), (F::IQ1_M, IQ1_M), (F::IQ2_XXS, IQ2_XXS), (F::IQ2_XS, IQ2_XS),
            (F::IQ2_S, IQ2_XS), (F::IQ2_M, IQ2_S), (F::IQ3_XXS, IQ3_XXS), (F::IQ3_XS, IQ3_S),
            (F::IQ3_S, IQ3_S), (F::IQ3_M, IQ3_S), (F::IQ4_NL, IQ4_NL), (F::IQ4_XS, IQ4_XS),
            (F::TQ1_0, TQ1_0), (F::TQ2_0, TQ2_0), (F::MXFP4_MOE, MXFP4), (F::Q1_0, Q1_0),
            (F::Q2_0, Q2_0),
        ]
    };

    /// Every mix.
    pub fn all() -> impl Iterator<Item = Self> {
        Self::TABLE.iter().map(|row| row.0)
    }

    /// The type that tensors get where the mix has no rule for them.
    pub fn default_type(self) -> QuantType {
        Self::TABLE.iter().find(|row| row.0 == self).expect("the table has every mix").1
    }

    /// The text of the recipe that makes the mix.
    pub(super) fn recipe(self) -> &'static str {
        macro_rules! shipped {
            ($($name:ident)*) => {
                match self {
                    $(Self::$name => include_str!(concat!("mixes/", stringify!($name), ".toml")),)*
                }
            };
        }
        shipped!(
            F32 F16 BF16 Q8_0 Q4_0 Q4_1 Q5_0 Q5_1 Q2_K Q2_K_S Q3_K_S Q3_K_M Q3_K_L Q4_K_S Q4_K_M
            Q5_K_S Q5_K_M Q6_K IQ1_S IQ1_M IQ2_XXS IQ2_XS IQ2_S IQ2_M IQ3_XXS IQ3_XS IQ3_S IQ3_M
            IQ4_NL IQ4_XS TQ1_0 TQ2_0 MXFP4_MOE Q1_0 Q2_0
        )
    }

    /// The value of `general.file_type`.
    pub fn id(self) -> u32 {
        self as u32
    }
}

impl fmt::Display for FileType {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(&format!("{self:?}"))
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
