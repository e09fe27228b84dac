//! Lanes as an array, for every architecture.

use std::ops::{Add, Div, Mul, Sub};

use super::lanes::{Eight, Lanes, nearest_int};

const N: usize = 8;

#[derive(Clone, Copy)]
pub(crate) struct Portable([f32; N]);

/// A value for each lane.
#[inline(always)]
fn each<T: Copy + Default>(value: impl Fn(usize) -> T) -> [T; N] {
    let mut values = [T::default(); N];
    for i in 0..N {
        values[i] = value(i);
    }
    values
}

macro_rules! operators {
    ($($op:ident $method:ident),*) => {$(
        impl $op for Portable {
            type Output = Self;
            #[inline(always)]
            fn $method(self, other: Self) -> Self {
                Self(each(|i| self.0[i].$method(other.0[i])))
            }
        }
    )*};
}
operators!(Add add, Sub sub, Mul mul, Div div);

impl Lanes for Portable {
    type Mask = [bool; N];
    type Eight = Self;
    const WIDTH: usize = N;

    #[inline(always)]
    fn splat(v: f32) -> Self {
        Self([v; N])
    }
    #[inline(always)]
    fn load(from: &[f32]) -> Self {
        Self(each(|i| from[i]))
    }
    #[inline(always)]
    fn store(self, to: &mut [f32]) {
        to[..N].copy_from_slice(&self.0);
    }
    #[inline(always)]
    fn abs(self) -> Self {
        Self(each(|i| self.0[i].abs()))
    }
    #[inline(always)]
    fn min(self, other: Self) -> Self {
        Self::select(self.lt(other), self, other)
    }
    #[inline(always)]
    fn max(self, other: Self) -> Self {
        Self::select(other.lt(self), self, other)
    }
    #[inline(always)]
    fn nearest_int(self) -> Self {
        Self(each(|i| nearest_int(self.0[i]) as f32))
    }
    #[inline(always)]
    fn round(self) -> Self {
        // Below 2^22, adding and subtracting this rounds as asked, and a library call does not
        // vectorise.
        Self(each(|i| (self.0[i] + 12_582_912.0) - 12_582_912.0))
    }
    #[inline(always)]
    fn lt(self, other: Self) -> Self::Mask {
        each(|i| self.0[i] < other.0[i])
    }
    #[inline(always)]
    fn le(self, other: Self) -> Self::Mask {
        each(|i| self.0[i] <= other.0[i])
    }
    #[inline(always)]
    fn equal(self, other: Self) -> Self::Mask {
        each(|i| self.0[i] == other.0[i])
    }
    #[inline(always)]
    fn and(a: Self::Mask, b: Self::Mask) -> Self::Mask {
        each(|i| a[i] & b[i])
    }
    #[inline(always)]
    fn and_not(a: Self::Mask, b: Self::Mask) -> Self::Mask {
        each(|i| a[i] & !b[i])
    }
    #[inline(always)]
    fn any(mask: Self::Mask) -> bool {
        mask.contains(&true)
    }
    #[inline(always)]
    fn all(mask: Self::Mask) -> bool {
        !mask.contains(&false)
    }
    #[inline(always)]
    fn select(mask: Self::Mask, yes: Self, no: Self) -> Self {
        Self(each(|i| if mask[i] { yes.0[i] } else { no.0[i] }))
    }
    #[inline(always)]
    fn add_product(self, a: Self, b: Self) -> Self {
        self + a * b
    }
    #[inline(always)]
    unsafe fn load_from(from: *const f32) -> Self {
        // SAFETY: as the caller grants.
        Self(unsafe { from.cast::<[f32; N]>().read_unaligned() })
    }
    #[inline(always)]
    unsafe fn store_to(self, to: *mut f32) {
        // SAFETY: as the caller grants.
        unsafe { to.cast::<[f32; N]>().write_unaligned(self.0) }
    }
}

impl Eight for Portable {
    type Codes = [u16; N];

    #[inline(always)]
    fn codes(from: &[u16]) -> Self::Codes {
        each(|i| from[i])
    }
    #[inline(always)]
    fn numbers(codes: Self::Codes) -> Self {
        Self(each(|i| f32::from(codes[i])))
    }
    #[inline(always)]
    fn store_codes(self, to: &mut [u16]) {
        for i in 0..N {
            to[i] = self.0[i] as u16;
        }
    }
    #[inline(always)]
    fn lookup(self, codes: Self::Codes, shift: usize) -> Self {
        Self(each(|i| self.0[usize::from(codes[i] >> shift & 7)]))
    }
    #[inline(always)]
    fn pick(mask: Self::Mask, yes: Self::Codes, no: Self::Codes) -> Self::Codes {
        each(|i| if mask[i] { yes[i] } else { no[i] })
    }
    #[inline(always)]
    fn lane(codes: Self::Codes, lane: usize) -> u16 {
        codes[lane]
    }
    #[inline(always)]
    fn bits(mask: Self::Mask) -> u32 {
        mask.iter().rev().fold(0, |bits, &set| bits << 1 | u32::from(set))
    }
    #[inline(always)]
    fn least(self) -> f32 {
        self.0.iter().fold(self.0[0], |least, &v| if v < least { v } else { least })
    }
}
