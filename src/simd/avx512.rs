//! Sixteen lanes in an AVX-512 register.

use std::arch::x86_64::*;
use std::ops::{Add, Div, Mul, Sub};

use super::avx2::F32x8;
use super::lanes::Lanes;

#[derive(Clone, Copy)]
pub(crate) struct F32x16(__m512);

super::lanes::operators!(F32x16: Add add _mm512_add_ps, Sub sub _mm512_sub_ps, Mul mul _mm512_mul_ps, Div div _mm512_div_ps);

#[cfg(feature = "eval")]
impl F32x16 {
    /// What it holds with the products of pairs of BF16 added, one pair in each lane of both. To be called where
    /// the machine has [`Avx512Bf16`](super::Avx512Bf16).
    #[inline(always)]
    pub(crate) fn add_pairs(self, a: Self, b: Self) -> Self {
        // SAFETY: the features are there, as the caller sees to; registers of the same size hold any bits.
        Self(unsafe {
            let a = std::mem::transmute::<__m512, __m512bh>(a.0);
            let b = std::mem::transmute::<__m512, __m512bh>(b.0);
            _mm512_dpbf16_ps(self.0, a, b)
        })
    }
}

// SAFETY of every block below: this is called in functions of the level alone, and the slices are
// checked to hold the lanes read or written.
impl Lanes for F32x16 {
    type Mask = __mmask16;
    type Eight = F32x8;
    const WIDTH: usize = 16;

    #[inline(always)]
    fn splat(v: f32) -> Self {
        // SAFETY: the features are there, see above.
        Self(unsafe { _mm512_set1_ps(v) })
    }
    #[inline(always)]
    fn load(from: &[f32]) -> Self {
        let from = &from[..Self::WIDTH];
        // SAFETY: in bounds, as just checked.
        Self(unsafe { _mm512_loadu_ps(from.as_ptr()) })
    }
    #[inline(always)]
    fn store(self, to: &mut [f32]) {
        let to = &mut to[..Self::WIDTH];
        // SAFETY: in bounds, as just checked.
        unsafe { _mm512_storeu_ps(to.as_mut_ptr(), self.0) }
    }
    #[inline(always)]
    fn abs(self) -> Self {
        // SAFETY: the features are there, see above.
        Self(unsafe { _mm512_abs_ps(self.0) })
    }
    #[inline(always)]
    fn min(self, other: Self) -> Self {
        // SAFETY: the features are there, see above.
        Self(unsafe { _mm512_min_ps(self.0, other.0) })
    }
    #[inline(always)]
    fn max(self, other: Self) -> Self {
        // SAFETY: the features are there, see above.
        Self(unsafe { _mm512_max_ps(self.0, other.0) })
    }
    #[inline(always)]
    fn nearest_int(self) -> Self {
        // SAFETY: the features are there, see above.
        Self(unsafe {
            let bits = _mm512_castps_si512(_mm512_add_ps(self.0, _mm512_set1_ps(12_582_912.0)));
            let low = _mm512_and_si512(bits, _mm512_set1_epi32(0x007f_ffff));
            _mm512_cvtepi32_ps(_mm512_sub_epi32(low, _mm512_set1_epi32(0x0040_0000)))
        })
    }
    #[inline(always)]
    fn round(self) -> Self {
        // SAFETY: the features are there, see above.
        Self(unsafe {
            _mm512_roundscale_ps::<{ _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC }>(self.0)
        })
    }
    #[inline(always)]
    fn lt(self, other: Self) -> Self::Mask {
        // SAFETY: the features are there, see above.
        unsafe { _mm512_cmp_ps_mask::<_CMP_LT_OQ>(self.0, other.0) }
    }
    #[inline(always)]
    fn le(self, other: Self) -> Self::Mask {
        // SAFETY: the features are there, see above.
        unsafe { _mm512_cmp_ps_mask::<_CMP_LE_OQ>(self.0, other.0) }
    }
    #[inline(always)]
    fn equal(self, other: Self) -> Self::Mask {
        // SAFETY: the features are there, see above.
        unsafe { _mm512_cmp_ps_mask::<_CMP_EQ_OQ>(self.0, other.0) }
    }
    #[inline(always)]
    fn and(a: Self::Mask, b: Self::Mask) -> Self::Mask {
        a & b
    }
    #[inline(always)]
    fn and_not(a: Self::Mask, b: Self::Mask) -> Self::Mask {
        a & !b
    }
    #[inline(always)]
    fn any(mask: Self::Mask) -> bool {
        mask != 0
    }
    #[inline(always)]
    fn all(mask: Self::Mask) -> bool {
        mask == u16::MAX
    }
    #[inline(always)]
    fn select(mask: Self::Mask, yes: Self, no: Self) -> Self {
        // SAFETY: the features are there, see above.
        Self(unsafe { _mm512_mask_blend_ps(mask, no.0, yes.0) })
    }
    #[inline(always)]
    fn add_product(self, a: Self, b: Self) -> Self {
        // SAFETY: the features are there, see above.
        Self(unsafe { _mm512_fmadd_ps(a.0, b.0, self.0) })
    }
    #[inline(always)]
    unsafe fn load_from(from: *const f32) -> Self {
        // SAFETY: as the caller grants.
        Self(unsafe { _mm512_loadu_ps(from) })
    }
    #[inline(always)]
    unsafe fn store_to(self, to: *mut f32) {
        // SAFETY: as the caller grants.
        unsafe { _mm512_storeu_ps(to, self.0) }
    }
    #[inline(always)]
    fn load_columns(from: &[f32], stride: usize) -> [Self; 8] {
        let first = F32x8::load_columns(from, stride);
        let second = F32x8::load_columns(&from[8 * stride..], stride);
        let mut columns = [Self::splat(0.0); 8];
        for i in 0..8 {
            // SAFETY: the features are there, see above.
            columns[i] = Self(unsafe {
                _mm512_insertf32x8::<1>(_mm512_castps256_ps512(first[i].0), second[i].0)
            });
        }
        columns
    }
    #[inline(always)]
    fn store_columns(columns: [Self; 8], to: &mut [f32], stride: usize) {
        let (mut first, mut second) = ([F32x8::splat(0.0); 8], [F32x8::splat(0.0); 8]);
        for i in 0..8 {
            // SAFETY: the features are there, see above.
            unsafe {
                first[i] = F32x8(_mm512_castps512_ps256(columns[i].0));
                second[i] = F32x8(_mm512_extractf32x8_ps::<1>(columns[i].0));
            }
        }
        F32x8::store_columns(first, to, stride);
        F32x8::store_columns(second, &mut to[8 * stride..], stride);
    }
}
