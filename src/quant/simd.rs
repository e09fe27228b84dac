//! Which instructions the kernels use, and the one place where they are chosen.
//!
//! Every level gives the same bytes; they differ in speed alone.

use std::fmt;
use std::str::FromStr;
use std::sync::OnceLock;

use super::{float, fp8};

/// A set of instructions that kernels exist for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Simd {
    /// What every machine of the target has.
    Portable,
    /// x86-64 with AVX2 and F16C.
    Avx2,
    /// x86-64 with AVX-512 F, BW, DQ and VL.
    Avx512,
    /// aarch64.
    Neon,
}

impl Simd {
    /// Every level, the slowest first.
    pub const ALL: [Self; 4] = [Self::Portable, Self::Neon, Self::Avx2, Self::Avx512];

    /// The name as users spell it.
    pub fn name(self) -> &'static str {
        match self {
            Self::Portable => "portable",
            Self::Avx2 => "avx2",
            Self::Avx512 => "avx512",
            Self::Neon => "neon",
        }
    }

    /// Whether this machine has the instructions.
    pub fn is_supported(self) -> bool {
        match self {
            Self::Portable => true,
            #[cfg(target_arch = "x86_64")]
            Self::Avx2 => is_x86_feature_detected!("avx2") && is_x86_feature_detected!("f16c"),
            #[cfg(target_arch = "x86_64")]
            Self::Avx512 => {
                Self::Avx2.is_supported()
                    && is_x86_feature_detected!("avx512f")
                    && is_x86_feature_detected!("avx512bw")
                    && is_x86_feature_detected!("avx512dq")
                    && is_x86_feature_detected!("avx512vl")
            }
            #[cfg(target_arch = "aarch64")]
            Self::Neon => std::arch::is_aarch64_feature_detected!("neon"),
            #[allow(unreachable_patterns, reason = "levels of other architectures")]
            _ => false,
        }
    }

    /// The fastest level of this machine, found once.
    pub fn detect() -> Self {
        static BEST: OnceLock<Simd> = OnceLock::new();
        *BEST.get_or_init(|| {
            let supported = Self::ALL.into_iter().rev().find(|level| level.is_supported());
            supported.unwrap_or(Self::Portable)
        })
    }
}

impl fmt::Display for Simd {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.name())
    }
}

/// A word that names no level.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct UnknownSimd(pub String);

impl fmt::Display for UnknownSimd {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "unknown instruction set `{}`: portable, avx2, avx512 or neon", self.0)
    }
}

impl std::error::Error for UnknownSimd {}

impl FromStr for Simd {
    type Err = UnknownSimd;

    fn from_str(s: &str) -> Result<Self, Self::Err> {
        let level = Self::ALL.into_iter().find(|level| level.name().eq_ignore_ascii_case(s));
        level.ok_or_else(|| UnknownSimd(s.to_owned()))
    }
}

/// Compiles a function, which has to be inlined, for every level. All give the same bits: products and
/// sums are not contracted. Where the machine lacks the one asked for, the function is that
/// of every machine. NEON belongs to every aarch64.
macro_rules! compiled {
    ($(#[$doc:meta])* $vis:vis $name:ident($($arg:ident: $ty:ty),*) -> $ret:ty = $function:path) => {
        $crate::quant::compiled!(@ $(#[$doc])* $vis $name [] [] ($($arg: $ty),*) -> $ret = $function);
    };
    ($(#[$doc:meta])* $vis:vis $name:ident<$param:ident: $bound:path, const $len:ident: usize>
     ($($arg:ident: $ty:ty),*) -> $ret:ty = $function:path) => {
        $crate::quant::compiled!(@ $(#[$doc])* $vis $name [<$param: $bound, const $len: usize>] [::<$param, $len>]
            ($($arg: $ty),*) -> $ret = $function);
    };
    (@ $(#[$doc:meta])* $vis:vis $name:ident [$($generics:tt)*] [$($given:tt)*]
     ($($arg:ident: $ty:ty),*) -> $ret:ty = $function:path) => {
        $(#[$doc])*
        $vis fn $name $($generics)* (level: $crate::quant::Simd, $($arg: $ty),*) -> $ret {
            #[cfg(target_arch = "x86_64")]
            {
                #[target_feature(enable = "avx2")]
                fn avx2 $($generics)* ($($arg: $ty),*) -> $ret {
                    $function($($arg),*)
                }
                #[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl")]
                fn avx512 $($generics)* ($($arg: $ty),*) -> $ret {
                    $function($($arg),*)
                }
                match level {
                    // SAFETY: the level is supported.
                    $crate::quant::Simd::Avx2 if level.is_supported() => return unsafe { avx2 $($given)* ($($arg),*) },
                    // SAFETY: the level is supported.
                    $crate::quant::Simd::Avx512 if level.is_supported() => return unsafe { avx512 $($given)* ($($arg),*) },
                    _ => {}
                }
            }
            let _ = level;
            $function($($arg),*)
        }
    };
}
pub(crate) use compiled;

compiled!(
    /// [`fp8::decode`].
    pub(super) decode_fp8(bytes: &[u8], scale: f32, out: &mut [f32]) -> bool = fp8::decode
);
compiled!(
    /// [`float::round_all_to_bf16`].
    pub(crate) round_to_bf16(values: &mut [f32]) -> () = float::round_all_to_bf16
);
compiled!(
    /// [`float::all_finite`].
    pub(crate) all_finite(values: &[f32]) -> bool = float::all_finite
);

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::quant::QuantType;

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
            for ty in QuantType::all() {
                let Some(levels) = &ty.format().kernels else { continue };
                let reference = levels.plain;
                let mut expected = vec![0; ty.row_bytes(x.len()).unwrap()];
                // SAFETY: compiled for what every machine has.
                unsafe { (reference.encode)(&x, qw.as_deref(), &mut expected) };
                let mut values = vec![0.0; x.len()];
                // SAFETY: as above.
                unsafe { (reference.decode)(&expected, &mut values) };
                for level in Simd::ALL.into_iter().filter(|level| level.is_supported()) {
                    let kernels = levels.at(level);
                    let mut bytes = vec![0xaa; expected.len()];
                    // SAFETY: the level is supported.
                    unsafe { (kernels.encode)(&x, qw.as_deref(), &mut bytes) };
                    prop_assert_eq!(&bytes, &expected, "{} at {}", ty, level);
                    let mut decoded = vec![0.0; x.len()];
                    // SAFETY: the level is supported.
                    unsafe { (kernels.decode)(&bytes, &mut decoded) };
                    for (a, b) in decoded.iter().zip(&values) {
                        prop_assert!(a.to_bits() == b.to_bits() || a.is_nan() && b.is_nan());
                    }
                }
            }
        }
    }

    #[test]
    fn names_round_trip() {
        for level in Simd::ALL {
            assert_eq!(level.to_string().parse(), Ok(level));
        }
        assert!("sse9".parse::<Simd>().is_err());
        assert!(Simd::detect().is_supported());
    }
}
