//! Four lanes in a NEON register.

use std::arch::aarch64::*;
use std::ops::{Add, Div, Mul, Sub};

use super::lanes::Lanes;

#[derive(Clone, Copy)]
pub(crate) struct F32x4(float32x4_t);

super::lanes::operators!(F32x4: Add add vaddq_f32, Sub sub vsubq_f32, Mul mul vmulq_f32, Div div vdivq_f32);

// SAFETY of every block below: this is called in functions of the level alone, and the slices are
// checked to hold the lanes read or written.
impl Lanes for F32x4 {
    type Mask = uint32x4_t;
    type Eight = super::portable::Portable;
    const WIDTH: usize = 4;

    #[inline(always)]
    fn splat(v: f32) -> Self {
        // SAFETY: the features are there, see above.
        Self(unsafe { vdupq_n_f32(v) })
    }
    #[inline(always)]
    fn load(from: &[f32]) -> Self {
        let from = &from[..Self::WIDTH];
        // SAFETY: in bounds, as just checked.
        Self(unsafe { vld1q_f32(from.as_ptr()) })
    }
    #[inline(always)]
    fn store(self, to: &mut [f32]) {
        let to = &mut to[..Self::WIDTH];
        // SAFETY: in bounds, as just checked.
        unsafe { vst1q_f32(to.as_mut_ptr(), self.0) }
    }
    #[inline(always)]
    fn abs(self) -> Self {
        // SAFETY: the features are there, see above.
        Self(unsafe { vabsq_f32(self.0) })
    }
    #[inline(always)]
    fn min(self, other: Self) -> Self {
        // SAFETY: the features are there, see above.
        Self(unsafe { vbslq_f32(vcltq_f32(self.0, other.0), self.0, other.0) })
    }
    #[inline(always)]
    fn max(self, other: Self) -> Self {
        // SAFETY: the features are there, see above.
        Self(unsafe { vbslq_f32(vcgtq_f32(self.0, other.0), self.0, other.0) })
    }
    #[inline(always)]
    fn nearest_int(self) -> Self {
        // SAFETY: the features are there, see above.
        Self(unsafe {
            let bits = vreinterpretq_s32_f32(vaddq_f32(self.0, vdupq_n_f32(12_582_912.0)));
            let low = vandq_s32(bits, vdupq_n_s32(0x007f_ffff));
            vcvtq_f32_s32(vsubq_s32(low, vdupq_n_s32(0x0040_0000)))
        })
    }
    #[inline(always)]
    fn round(self) -> Self {
        // SAFETY: the features are there, see above.
        Self(unsafe { vrndnq_f32(self.0) })
    }
    #[inline(always)]
    fn lt(self, other: Self) -> Self::Mask {
        // SAFETY: the features are there, see above.
        unsafe { vcltq_f32(self.0, other.0) }
    }
    #[inline(always)]
    fn le(self, other: Self) -> Self::Mask {
        // SAFETY: the features are there, see above.
        unsafe { vcleq_f32(self.0, other.0) }
    }
    #[inline(always)]
    fn equal(self, other: Self) -> Self::Mask {
        // SAFETY: the features are there, see above.
        unsafe { vceqq_f32(self.0, other.0) }
    }
    #[inline(always)]
    fn and(a: Self::Mask, b: Self::Mask) -> Self::Mask {
        // SAFETY: the features are there, see above.
        unsafe { vandq_u32(a, b) }
    }
    #[inline(always)]
    fn and_not(a: Self::Mask, b: Self::Mask) -> Self::Mask {
        // SAFETY: the features are there, see above.
        unsafe { vbicq_u32(a, b) }
    }
    #[inline(always)]
    fn any(mask: Self::Mask) -> bool {
        // SAFETY: the features are there, see above.
        unsafe { vmaxvq_u32(mask) != 0 }
    }
    #[inline(always)]
    fn all(mask: Self::Mask) -> bool {
        // SAFETY: the features are there, see above.
        unsafe { vminvq_u32(mask) != 0 }
    }
    #[inline(always)]
    fn select(mask: Self::Mask, yes: Self, no: Self) -> Self {
        // SAFETY: the features are there, see above.
        Self(unsafe { vbslq_f32(mask, yes.0, no.0) })
    }
    #[inline(always)]
    fn add_product(self, a: Self, b: Self) -> Self {
        // SAFETY: the features are there, see above.
        Self(unsafe { vfmaq_f32(self.0, a.0, b.0) })
    }
    #[inline(always)]
    unsafe fn load_from(from: *const f32) -> Self {
        // SAFETY: as the caller grants.
        Self(unsafe { vld1q_f32(from) })
    }
    #[inline(always)]
    unsafe fn store_to(self, to: *mut f32) {
        // SAFETY: as the caller grants.
        unsafe { vst1q_f32(to, self.0) }
    }
}
