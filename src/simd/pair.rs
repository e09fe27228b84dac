//! Two vectors as one. The searches are chains of dependent sums; two of them side by side keep
//! the adders busy while each waits for its own.

use std::ops::{Add, Div, Mul, Sub};

use super::lanes::Lanes;

#[derive(Clone, Copy)]
pub(crate) struct Pair<L>(L, L);

macro_rules! operators {
    ($($op:ident $method:ident),*) => {$(
        impl<L: Lanes> $op for Pair<L> {
            type Output = Self;
            #[inline(always)]
            fn $method(self, other: Self) -> Self {
                Self(self.0.$method(other.0), self.1.$method(other.1))
            }
        }
    )*};
}
operators!(Add add, Sub sub, Mul mul, Div div);

impl<L: Lanes> Lanes for Pair<L> {
    type Mask = (L::Mask, L::Mask);
    type Eight = L::Eight;
    const WIDTH: usize = 2 * L::WIDTH;

    #[inline(always)]
    fn splat(v: f32) -> Self {
        Self(L::splat(v), L::splat(v))
    }
    #[inline(always)]
    fn load(from: &[f32]) -> Self {
        Self(L::load(from), L::load(&from[L::WIDTH..]))
    }
    #[inline(always)]
    fn store(self, to: &mut [f32]) {
        self.0.store(to);
        self.1.store(&mut to[L::WIDTH..]);
    }
    #[inline(always)]
    fn abs(self) -> Self {
        Self(self.0.abs(), self.1.abs())
    }
    #[inline(always)]
    fn min(self, other: Self) -> Self {
        Self(self.0.min(other.0), self.1.min(other.1))
    }
    #[inline(always)]
    fn max(self, other: Self) -> Self {
        Self(self.0.max(other.0), self.1.max(other.1))
    }
    #[inline(always)]
    fn nearest_int(self) -> Self {
        Self(self.0.nearest_int(), self.1.nearest_int())
    }
    #[inline(always)]
    fn round(self) -> Self {
        Self(self.0.round(), self.1.round())
    }
    #[inline(always)]
    fn lt(self, other: Self) -> Self::Mask {
        (self.0.lt(other.0), self.1.lt(other.1))
    }
    #[inline(always)]
    fn le(self, other: Self) -> Self::Mask {
        (self.0.le(other.0), self.1.le(other.1))
    }
    #[inline(always)]
    fn equal(self, other: Self) -> Self::Mask {
        (self.0.equal(other.0), self.1.equal(other.1))
    }
    #[inline(always)]
    fn and(a: Self::Mask, b: Self::Mask) -> Self::Mask {
        (L::and(a.0, b.0), L::and(a.1, b.1))
    }
    #[inline(always)]
    fn and_not(a: Self::Mask, b: Self::Mask) -> Self::Mask {
        (L::and_not(a.0, b.0), L::and_not(a.1, b.1))
    }
    #[inline(always)]
    fn any(mask: Self::Mask) -> bool {
        L::any(mask.0) || L::any(mask.1)
    }
    #[inline(always)]
    fn all(mask: Self::Mask) -> bool {
        L::all(mask.0) && L::all(mask.1)
    }
    #[inline(always)]
    fn select(mask: Self::Mask, yes: Self, no: Self) -> Self {
        Self(L::select(mask.0, yes.0, no.0), L::select(mask.1, yes.1, no.1))
    }
    #[inline(always)]
    fn add_product(self, a: Self, b: Self) -> Self {
        Self(self.0.add_product(a.0, b.0), self.1.add_product(a.1, b.1))
    }
    #[inline(always)]
    unsafe fn load_from(from: *const f32) -> Self {
        // SAFETY: as the caller grants.
        unsafe { Self(L::load_from(from), L::load_from(from.add(L::WIDTH))) }
    }
    #[inline(always)]
    unsafe fn store_to(self, to: *mut f32) {
        // SAFETY: as the caller grants.
        unsafe {
            self.0.store_to(to);
            self.1.store_to(to.add(L::WIDTH));
        }
    }
    #[inline(always)]
    fn load_columns(from: &[f32], stride: usize) -> [Self; 8] {
        let first = L::load_columns(from, stride);
        let second = L::load_columns(&from[L::WIDTH * stride..], stride);
        let mut columns = [Self::splat(0.0); 8];
        for i in 0..8 {
            columns[i] = Self(first[i], second[i]);
        }
        columns
    }
    #[inline(always)]
    fn store_columns(columns: [Self; 8], to: &mut [f32], stride: usize) {
        let (mut first, mut second) = ([L::splat(0.0); 8], [L::splat(0.0); 8]);
        for i in 0..8 {
            (first[i], second[i]) = (columns[i].0, columns[i].1);
        }
        L::store_columns(first, to, stride);
        L::store_columns(second, &mut to[L::WIDTH * stride..], stride);
    }
}
