//! Several f32 side by side.

use std::ops::{Add, Div, Mul, Sub};

/// Rounds to the nearest integer, ties to even, by the reference's bit trick; values beyond ±2^22
/// give what the trick gives (`nearest_int` in `ggml-quants.c`).
#[inline(always)]
pub(crate) fn nearest_int(x: f32) -> i32 {
    let bits = (x + 12_582_912.0).to_bits();
    (bits & 0x007f_ffff) as i32 - 0x0040_0000
}

/// At most this many lanes, pairs included.
pub(crate) const MAX: usize = 64;

/// A vector of f32. All operations are IEEE binary32, lane by lane.
///
/// The instructions of a vector are those of a level. Code over lanes is inlined into functions that are
/// compiled for the level, and these are called by who has its token.
#[cfg_attr(not(feature = "eval"), allow(dead_code, reason = "the forward pass alone needs some"))]
pub(crate) trait Lanes:
    Copy + Add<Output = Self> + Sub<Output = Self> + Mul<Output = Self> + Div<Output = Self>
{
    /// A truth value per lane.
    type Mask: Copy;
    /// Eight lanes of the same kind.
    type Eight: Eight;
    /// How many lanes.
    const WIDTH: usize;

    fn splat(v: f32) -> Self;
    /// The first `WIDTH` values.
    fn load(from: &[f32]) -> Self;
    fn store(self, to: &mut [f32]);
    fn abs(self) -> Self;
    /// `self < other ? self : other`
    fn min(self, other: Self) -> Self;
    /// `self > other ? self : other`
    fn max(self, other: Self) -> Self;
    /// [`nearest_int`], any input, as a float.
    fn nearest_int(self) -> Self;
    /// Rounds to the nearest integer, ties to even: [`nearest_int`](Self::nearest_int) for what is
    /// below 2^22 in magnitude. What rounds to zero has either sign.
    fn round(self) -> Self;
    /// False where either is NaN.
    fn lt(self, other: Self) -> Self::Mask;
    /// False where either is NaN.
    fn le(self, other: Self) -> Self::Mask;
    /// False where either is NaN.
    fn equal(self, other: Self) -> Self::Mask;
    fn and(a: Self::Mask, b: Self::Mask) -> Self::Mask;
    /// `a` and not `b`.
    fn and_not(a: Self::Mask, b: Self::Mask) -> Self::Mask;
    fn any(mask: Self::Mask) -> bool;
    fn all(mask: Self::Mask) -> bool;
    fn select(mask: Self::Mask, yes: Self, no: Self) -> Self;
    /// `self + a · b` in one rounding; in two where every machine is to have it. AVX2's is an
    /// instruction of FMA.
    fn add_product(self, a: Self, b: Self) -> Self;
    /// As [`load`](Self::load).
    ///
    /// # Safety
    /// `WIDTH` values can be read.
    unsafe fn load_from(from: *const f32) -> Self;
    /// As [`store`](Self::store).
    ///
    /// # Safety
    /// `WIDTH` values can be written over.
    unsafe fn store_to(self, to: *mut f32);

    /// Eight columns of `WIDTH` rows that begin `stride` apart: row `j` in lane `j`.
    #[inline(always)]
    fn load_columns(from: &[f32], stride: usize) -> [Self; 8] {
        let mut buffer = [0f32; MAX];
        let mut columns = [Self::splat(0.0); 8];
        for i in 0..8 {
            for j in 0..Self::WIDTH {
                buffer[j] = from[j * stride + i];
            }
            columns[i] = Self::load(&buffer);
        }
        columns
    }
    /// The reverse of [`load_columns`](Self::load_columns).
    #[inline(always)]
    fn store_columns(columns: [Self; 8], to: &mut [f32], stride: usize) {
        let mut buffer = [0f32; MAX];
        for i in 0..8 {
            columns[i].store(&mut buffer);
            for j in 0..Self::WIDTH {
                to[j * stride + i] = buffer[j];
            }
        }
    }
}

/// Exactly eight lanes, with what the lattices need: a table of eight values in a vector, and lanes
/// turned into bits.
pub(crate) trait Eight: Lanes {
    /// Eight times the packed codes of a point.
    type Codes: Copy;

    /// The first eight.
    fn codes(from: &[u16]) -> Self::Codes;
    /// Codes as numbers.
    fn numbers(codes: Self::Codes) -> Self;
    /// The reverse, into the first eight.
    fn store_codes(self, to: &mut [u16]);
    /// For each codes `c` the value of lane `c >> shift & 7`.
    fn lookup(self, codes: Self::Codes, shift: usize) -> Self;
    /// `yes` where the mask is set.
    fn pick(mask: Self::Mask, yes: Self::Codes, no: Self::Codes) -> Self::Codes;
    /// One of the eight, `lane` below 8.
    fn lane(codes: Self::Codes, lane: usize) -> u16;
    /// Lane 0 in bit 0.
    fn bits(mask: Self::Mask) -> u32;
    /// The least of the lanes, none of which is NaN.
    fn least(self) -> f32;
}

/// Implements the four operators by calls of intrinsics.
#[cfg(any(target_arch = "x86_64", target_arch = "aarch64"))]
macro_rules! operators {
    ($ty:ident: $($op:ident $method:ident $intrinsic:ident),*) => {$(
        impl $op for $ty {
            type Output = Self;
            #[inline(always)]
            fn $method(self, other: Self) -> Self {
                // SAFETY: values of this type exist only where the features were detected.
                Self(unsafe { $intrinsic(self.0, other.0) })
            }
        }
    )*};
}
#[cfg(any(target_arch = "x86_64", target_arch = "aarch64"))]
pub(super) use operators;
