//! Levels of instructions: which there are, which this machine has, and code compiled for each.
//!
//! A [`Simd`] is a level that the machine has: it holds a token that only a look at the machine gives.
//! Whoever has one may call the code of the level; nobody else can. What a level changes is speed, and
//! in products of the forward pass roundings.
#![allow(clippy::needless_range_loop, reason = "loops are to need no optimization at link time")]

#[cfg(target_arch = "x86_64")]
mod avx2;
#[cfg(target_arch = "x86_64")]
mod avx512;
mod lanes;
#[cfg(target_arch = "aarch64")]
mod neon;
mod pair;
mod portable;

pub(crate) use self::lanes::{Eight, Lanes, MAX, nearest_int};
pub(crate) use self::portable::Portable;
#[cfg(target_arch = "x86_64")]
pub(crate) use self::{avx2::F32x8, avx512::F32x16};
#[cfg(target_arch = "aarch64")]
pub(crate) use neon::F32x4;
pub(crate) use pair::Pair;

use std::fmt;
use std::str::FromStr;
use std::sync::OnceLock;

/// Defines a token, of which other architectures have none.
macro_rules! token {
    ($(#[$doc:meta])* $name:ident: $arch:literal $detected:ident $($feature:tt)+) => {
        $(#[$doc])*
        #[cfg(target_arch = $arch)]
        #[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
        pub struct $name(());

        $(#[$doc])*
        #[cfg(not(target_arch = $arch))]
        #[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
        pub enum $name {}

        impl $name {
            /// A token, if the machine has the instructions.
            pub fn new() -> Option<Self> {
                #[cfg(target_arch = $arch)]
                let token = ($(std::arch::$detected!($feature))&&+).then_some(Self(()));
                #[cfg(not(target_arch = $arch))]
                let token = None;
                token
            }
        }
    };
}

token!(
    /// NEON, of aarch64.
    Neon: "aarch64" is_aarch64_feature_detected "neon"
);
token!(
    /// Products of bytes beside [`Neon`]; no level of its own, since nothing else uses them.
    NeonDot: "aarch64" is_aarch64_feature_detected "neon" "dotprod"
);
token!(
    /// AVX2, FMA and F16C, of x86-64.
    Avx2: "x86_64" is_x86_feature_detected "avx2" "fma" "f16c"
);
token!(
    /// AVX-512 F, BW, DQ and VL beside those of [`Avx2`].
    Avx512: "x86_64" is_x86_feature_detected
        "avx2" "fma" "f16c" "avx512f" "avx512bw" "avx512dq" "avx512vl"
);
token!(
    /// VNNI, the products of bytes, beside those of [`Avx512`].
    Avx512Vnni: "x86_64" is_x86_feature_detected
        "avx2" "fma" "f16c" "avx512f" "avx512bw" "avx512dq" "avx512vl" "avx512vnni"
);

token!(
    /// Products of BF16 beside the instructions of [`Avx512Vnni`]; no level of its own, since nothing else
    /// uses them.
    Avx512Bf16: "x86_64" is_x86_feature_detected
        "avx2" "fma" "f16c" "avx512f" "avx512bw" "avx512dq" "avx512vl" "avx512vnni" "avx512bf16"
);

/// A level of instructions that the machine has.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum Simd {
    /// What every machine of the target has.
    Portable,
    /// aarch64.
    Neon(Neon),
    /// x86-64 since Haswell and Zen.
    Avx2(Avx2),
    /// x86-64 since Skylake-X and Zen 4.
    Avx512(Avx512),
    /// With products of bytes, as Ice Lake and Zen 4.
    Avx512Vnni(Avx512Vnni),
}

/// A level by its name, where the machine has it.
type Level = (&'static str, fn() -> Option<Simd>);

/// Every level, the slowest first.
const LEVELS: [Level; 5] = [
    ("portable", || Some(Simd::Portable)),
    ("neon", || Neon::new().map(Simd::Neon)),
    ("avx2", || Avx2::new().map(Simd::Avx2)),
    ("avx512", || Avx512::new().map(Simd::Avx512)),
    ("avx512vnni", || Avx512Vnni::new().map(Simd::Avx512Vnni)),
];

impl Simd {
    /// The levels of this machine, the slowest first.
    pub fn supported() -> impl DoubleEndedIterator<Item = Self> {
        LEVELS.iter().filter_map(|(_, level)| level())
    }

    /// The fastest level of this machine, found once.
    pub fn detect() -> Self {
        static BEST: OnceLock<Simd> = OnceLock::new();
        *BEST.get_or_init(|| Self::supported().next_back().unwrap_or(Self::Portable))
    }

    /// The name as users spell it.
    pub fn name(self) -> &'static str {
        match self {
            Self::Portable => "portable",
            Self::Neon(_) => "neon",
            Self::Avx2(_) => "avx2",
            Self::Avx512(_) => "avx512",
            Self::Avx512Vnni(_) => "avx512vnni",
        }
    }
}

impl fmt::Display for Simd {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.name())
    }
}

/// A word that names no level of this machine.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum SimdError {
    /// It names none at all.
    Unknown(String),
    /// It names one that the machine lacks.
    Unsupported(&'static str),
}

impl fmt::Display for SimdError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Unknown(word) => {
                let known = LEVELS.map(|level| level.0).join(", ");
                write!(f, "unknown instruction set `{word}`: {known}")
            }
            Self::Unsupported(level) => write!(f, "this machine has no {level}"),
        }
    }
}

impl std::error::Error for SimdError {}

impl FromStr for Simd {
    type Err = SimdError;

    fn from_str(s: &str) -> Result<Self, Self::Err> {
        let level = LEVELS.iter().find(|(name, _)| name.eq_ignore_ascii_case(s));
        let (name, level) = level.ok_or_else(|| SimdError::Unknown(s.to_owned()))?;
        level().ok_or(SimdError::Unsupported(name))
    }
}

/// Compiles a function, which has to be inlined, for every level. All give the same bits: products and
/// sums are not contracted. NEON belongs to every aarch64.
macro_rules! compiled {
    ($(#[$doc:meta])* $vis:vis $name:ident($($arg:ident: $ty:ty),*) -> $ret:ty = $function:path) => {
        $crate::simd::compiled!(@ $(#[$doc])* $vis $name [] [] ($($arg: $ty),*) -> $ret = $function);
    };
    ($(#[$doc:meta])* $vis:vis $name:ident<$param:ident: $bound:path, const $len:ident: usize>
     ($($arg:ident: $ty:ty),*) -> $ret:ty = $function:path) => {
        $crate::simd::compiled!(@ $(#[$doc])* $vis $name [<$param: $bound, const $len: usize>] [::<$param, $len>]
            ($($arg: $ty),*) -> $ret = $function);
    };
    (@ $(#[$doc:meta])* $vis:vis $name:ident [$($generics:tt)*] [$($given:tt)*]
     ($($arg:ident: $ty:ty),*) -> $ret:ty = $function:path) => {
        $(#[$doc])*
        $vis fn $name $($generics)* (simd: $crate::simd::Simd, $($arg: $ty),*) -> $ret {
            #[cfg(target_arch = "x86_64")]
            #[target_feature(enable = "avx2")]
            fn avx2 $($generics)* ($($arg: $ty),*) -> $ret {
                $function($($arg),*)
            }
            #[cfg(target_arch = "x86_64")]
            #[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl")]
            fn avx512 $($generics)* ($($arg: $ty),*) -> $ret {
                $function($($arg),*)
            }
            match simd {
                #[cfg(target_arch = "x86_64")]
                // SAFETY: the token says that the machine has the instructions.
                $crate::simd::Simd::Avx2(_) => unsafe { avx2 $($given)* ($($arg),*) },
                #[cfg(target_arch = "x86_64")]
                $crate::simd::Simd::Avx512(_) | $crate::simd::Simd::Avx512Vnni(_) => {
                    // SAFETY: as above.
                    unsafe { avx512 $($given)* ($($arg),*) }
                }
                $crate::simd::Simd::Portable | $crate::simd::Simd::Neon(_) => $function($($arg),*),
            }
        }
    };
}
pub(crate) use compiled;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_those_of_levels_that_the_machine_has() {
        for simd in Simd::supported() {
            assert_eq!(simd.to_string().to_uppercase().parse(), Ok(simd));
        }
        let unknown = "sse9".parse::<Simd>().unwrap_err().to_string();
        assert!(unknown.ends_with("portable, neon, avx2, avx512, avx512vnni"), "{unknown}");
        let foreign = if cfg!(target_arch = "aarch64") { "avx2" } else { "neon" };
        assert_eq!(foreign.parse::<Simd>(), Err(SimdError::Unsupported(foreign)));
    }

    #[test]
    fn levels_come_from_the_slowest_to_the_fastest() {
        let all: Vec<Simd> = Simd::supported().collect();
        assert_eq!((all.first(), all.last()), (Some(&Simd::Portable), Some(&Simd::detect())));
    }
}
