//! Eight lanes in an AVX2 register.

use std::arch::x86_64::*;
use std::ops::{Add, Div, Mul, Sub};

use super::lanes::{Eight, Lanes};

#[derive(Clone, Copy)]
pub(crate) struct F32x8(pub(super) __m256);

super::lanes::operators!(F32x8: Add add _mm256_add_ps, Sub sub _mm256_sub_ps, Mul mul _mm256_mul_ps, Div div _mm256_div_ps);

// SAFETY of every block below: this is called in functions of the level alone, and the slices are
// checked to hold the lanes read or written.
impl Lanes for F32x8 {
    type Mask = __m256;
    type Eight = Self;
    const WIDTH: usize = 8;

    #[inline(always)]
    fn splat(v: f32) -> Self {
        // SAFETY: the features are there, see above.
        Self(unsafe { _mm256_set1_ps(v) })
    }
    #[inline(always)]
    fn load(from: &[f32]) -> Self {
        let from = &from[..Self::WIDTH];
        // SAFETY: in bounds, as just checked.
        Self(unsafe { _mm256_loadu_ps(from.as_ptr()) })
    }
    #[inline(always)]
    fn store(self, to: &mut [f32]) {
        let to = &mut to[..Self::WIDTH];
        // SAFETY: in bounds, as just checked.
        unsafe { _mm256_storeu_ps(to.as_mut_ptr(), self.0) }
    }
    #[inline(always)]
    fn abs(self) -> Self {
        // SAFETY: the features are there, see above.
        Self(unsafe { _mm256_andnot_ps(_mm256_set1_ps(-0.0), self.0) })
    }
    #[inline(always)]
    fn min(self, other: Self) -> Self {
        // SAFETY: the features are there, see above.
        Self(unsafe { _mm256_min_ps(self.0, other.0) })
    }
    #[inline(always)]
    fn max(self, other: Self) -> Self {
        // SAFETY: the features are there, see above.
        Self(unsafe { _mm256_max_ps(self.0, other.0) })
    }
    #[inline(always)]
    fn nearest_int(self) -> Self {
        // SAFETY: the features are there, see above.
        Self(unsafe {
            let bits = _mm256_castps_si256(_mm256_add_ps(self.0, _mm256_set1_ps(12_582_912.0)));
            let low = _mm256_and_si256(bits, _mm256_set1_epi32(0x007f_ffff));
            _mm256_cvtepi32_ps(_mm256_sub_epi32(low, _mm256_set1_epi32(0x0040_0000)))
        })
    }
    #[inline(always)]
    fn round(self) -> Self {
        // SAFETY: the features are there, see above.
        Self(unsafe {
            _mm256_round_ps::<{ _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC }>(self.0)
        })
    }
    #[inline(always)]
    fn lt(self, other: Self) -> Self::Mask {
        // SAFETY: the features are there, see above.
        unsafe { _mm256_cmp_ps::<_CMP_LT_OQ>(self.0, other.0) }
    }
    #[inline(always)]
    fn le(self, other: Self) -> Self::Mask {
        // SAFETY: the features are there, see above.
        unsafe { _mm256_cmp_ps::<_CMP_LE_OQ>(self.0, other.0) }
    }
    #[inline(always)]
    fn equal(self, other: Self) -> Self::Mask {
        // SAFETY: the features are there, see above.
        unsafe { _mm256_cmp_ps::<_CMP_EQ_OQ>(self.0, other.0) }
    }
    #[inline(always)]
    fn and(a: Self::Mask, b: Self::Mask) -> Self::Mask {
        // SAFETY: the features are there, see above.
        unsafe { _mm256_and_ps(a, b) }
    }
    #[inline(always)]
    fn and_not(a: Self::Mask, b: Self::Mask) -> Self::Mask {
        // SAFETY: the features are there, see above.
        unsafe { _mm256_andnot_ps(b, a) }
    }
    #[inline(always)]
    fn any(mask: Self::Mask) -> bool {
        // SAFETY: the features are there, see above.
        unsafe { _mm256_movemask_ps(mask) != 0 }
    }
    #[inline(always)]
    fn all(mask: Self::Mask) -> bool {
        // SAFETY: the features are there, see above.
        unsafe { _mm256_movemask_ps(mask) == 0xff }
    }
    #[inline(always)]
    fn select(mask: Self::Mask, yes: Self, no: Self) -> Self {
        // SAFETY: the features are there, see above.
        Self(unsafe { _mm256_blendv_ps(no.0, yes.0, mask) })
    }
    #[inline(always)]
    fn add_product(self, a: Self, b: Self) -> Self {
        // SAFETY: the features are there, see above.
        Self(unsafe { _mm256_fmadd_ps(a.0, b.0, self.0) })
    }
    #[inline(always)]
    unsafe fn load_from(from: *const f32) -> Self {
        // SAFETY: as the caller grants.
        Self(unsafe { _mm256_loadu_ps(from) })
    }
    #[inline(always)]
    unsafe fn store_to(self, to: *mut f32) {
        // SAFETY: as the caller grants.
        unsafe { _mm256_storeu_ps(to, self.0) }
    }
    #[inline(always)]
    fn load_columns(from: &[f32], stride: usize) -> [Self; 8] {
        let mut rows = [Self::splat(0.0); 8];
        for j in 0..8 {
            rows[j] = Self::load(&from[j * stride..]);
        }
        transpose(rows)
    }
    #[inline(always)]
    fn store_columns(columns: [Self; 8], to: &mut [f32], stride: usize) {
        let rows = transpose(columns);
        for j in 0..8 {
            rows[j].store(&mut to[j * stride..]);
        }
    }
}

/// Lane `i` of vector `j` becomes lane `j` of vector `i`: first within squares of two by two and of
/// four by four, then of eight.
#[inline(always)]
fn transpose(rows: [F32x8; 8]) -> [F32x8; 8] {
    let r = rows;
    let low = squares([r[0].0, r[1].0, r[2].0, r[3].0]);
    let high = squares([r[4].0, r[5].0, r[6].0, r[7].0]);
    let mut columns = rows;
    for i in 0..4 {
        // SAFETY: the features are there, see above.
        unsafe {
            columns[i] = F32x8(_mm256_permute2f128_ps::<0x20>(low[i], high[i]));
            columns[4 + i] = F32x8(_mm256_permute2f128_ps::<0x31>(low[i], high[i]));
        }
    }
    columns
}

/// Transposes each four columns of four rows.
#[inline(always)]
fn squares(r: [__m256; 4]) -> [__m256; 4] {
    // SAFETY: the features are there, see above.
    unsafe {
        let (a, b) = (_mm256_unpacklo_ps(r[0], r[1]), _mm256_unpackhi_ps(r[0], r[1]));
        let (c, d) = (_mm256_unpacklo_ps(r[2], r[3]), _mm256_unpackhi_ps(r[2], r[3]));
        [
            _mm256_shuffle_ps::<0x44>(a, c),
            _mm256_shuffle_ps::<0xee>(a, c),
            _mm256_shuffle_ps::<0x44>(b, d),
            _mm256_shuffle_ps::<0xee>(b, d),
        ]
    }
}

impl Eight for F32x8 {
    type Codes = __m256i;

    #[inline(always)]
    fn codes(from: &[u16]) -> Self::Codes {
        let from = &from[..8];
        // SAFETY: in bounds, as just checked.
        unsafe { _mm256_cvtepu16_epi32(_mm_loadu_si128(from.as_ptr().cast())) }
    }
    #[inline(always)]
    fn numbers(codes: Self::Codes) -> Self {
        // SAFETY: the features are there, see above.
        Self(unsafe { _mm256_cvtepi32_ps(codes) })
    }
    #[inline(always)]
    fn store_codes(self, to: &mut [u16]) {
        let to = &mut to[..8];
        // SAFETY: in bounds, as just checked.
        unsafe {
            let v = _mm256_cvttps_epi32(self.0);
            let (low, high) = (_mm256_castsi256_si128(v), _mm256_extracti128_si256::<1>(v));
            _mm_storeu_si128(to.as_mut_ptr().cast(), _mm_packus_epi32(low, high));
        }
    }
    #[inline(always)]
    fn lookup(self, codes: Self::Codes, shift: usize) -> Self {
        // SAFETY: the features are there, see above.
        Self(unsafe {
            let codes = _mm256_srl_epi32(codes, _mm_cvtsi32_si128(shift as i32));
            _mm256_permutevar8x32_ps(self.0, codes)
        })
    }
    #[inline(always)]
    fn pick(mask: Self::Mask, yes: Self::Codes, no: Self::Codes) -> Self::Codes {
        // SAFETY: the features are there, see above.
        unsafe { _mm256_blendv_epi8(no, yes, _mm256_castps_si256(mask)) }
    }
    #[inline(always)]
    fn lane(codes: Self::Codes, lane: usize) -> u16 {
        // SAFETY: the features are there, see above.
        unsafe {
            let lane = _mm256_castsi128_si256(_mm_cvtsi32_si128(lane as i32));
            _mm256_cvtsi256_si32(_mm256_permutevar8x32_epi32(codes, lane)) as u16
        }
    }
    #[inline(always)]
    fn bits(mask: Self::Mask) -> u32 {
        // SAFETY: the features are there, see above.
        unsafe { _mm256_movemask_ps(mask) as u32 }
    }
    #[inline(always)]
    fn least(self) -> f32 {
        // SAFETY: the features are there, see above.
        unsafe {
            let v = _mm_min_ps(_mm256_castps256_ps128(self.0), _mm256_extractf128_ps::<1>(self.0));
            let v = _mm_min_ps(v, _mm_movehl_ps(v, v));
            _mm_cvtss_f32(_mm_min_ss(v, _mm_shuffle_ps::<1>(v, v)))
        }
    }
}
