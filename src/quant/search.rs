//! Searches for the scale of a group of weights: the plain reference, and the interface through
//! which the block formats call it or its counterpart in lanes.
//!
//! Knows numbers only, no layouts. Order of operations is that of `ggml-quants.c`; every sum is
//! sequential and no multiplication is fused with an addition, for the bytes depend on it.

pub(super) use crate::simd::nearest_int;

/// Below this, a group counts as all zero (`GROUP_MAX_EPS`).
pub(super) const EPS: f32 = 1e-15;

/// The weights in one call of a search: whole super-blocks, and enough groups to fill the lanes.
pub(super) const SPAN: usize = 1024;

/// The rows that types whose importances depend on a whole row take in one call.
pub(super) const ROWS: usize = 8;

/// Truncates as x86 does: what does not fit, and NaN, becomes `i32::MIN`. The reference converts
/// to 8 bits through this, so an overflowing scale leaves its low byte, 0.
#[inline(always)]
pub(super) fn truncate(x: f32) -> i32 {
    if (-2_147_483_648.0..2_147_483_648.0).contains(&x) { x as i32 } else { i32::MIN }
}

/// The low byte of [`truncate`] for what is below 2^22 in magnitude, infinite or NaN, by
/// operations that vectorise. The bits of the last three end in a zero byte, as `i32::MIN` does.
#[inline(always)]
pub(super) fn truncate_to_byte(x: f32) -> u8 {
    let nearest = (x + 12_582_912.0) - 12_582_912.0;
    let excess = if nearest.abs() > x.abs() { 1f32.copysign(x) } else { 0.0 };
    (nearest - excess + 12_582_912.0).to_bits() as u8
}

/// [`truncate_to_byte`] of `x` rounded half away from zero, see [`round_away`].
#[inline(always)]
pub(super) fn round_to_byte(x: f32) -> u8 {
    truncate_to_byte(x + 0.499_999_97_f32.copysign(x))
}

/// Rounds half away from zero (`roundf`), out of range as [`truncate`]. Adding the largest value
/// below one half rounds every tie up and nothing else.
#[inline(always)]
pub(super) fn round_away(x: f32) -> i32 {
    truncate(x + 0.499_999_97_f32.copysign(x))
}

/// `1/d`, and 0 for 0.
#[inline(always)]
pub(super) fn inverse(d: f32) -> f32 {
    if d != 0.0 { 1.0 / d } else { 0.0 }
}

/// Parameters of [`Search::asymmetric`]: codes `0..=nmax`, candidates `nmax + rmin + rdelta·i`
/// for `i` in `0..=steps`.
#[derive(Clone, Copy)]
pub(super) struct Steps {
    pub nmax: i32,
    pub rmin: f32,
    pub rdelta: f32,
    pub steps: i32,
    /// Minimise absolute instead of squared differences.
    pub absolute: bool,
}

impl Steps {
    /// What every type uses with an importance matrix.
    pub const fn weighted(nmax: i32) -> Self {
        Self { nmax, rmin: -0.9, rdelta: 0.05, steps: 36, absolute: false }
    }

    #[inline(always)]
    pub fn candidate(&self, step: i32) -> f32 {
        self.rmin + self.rdelta * step as f32 + self.nmax as f32
    }
}

/// The steps that [`Search::positive`] tries besides none.
pub(super) const POSITIVE_STEPS: [f32; 8] = [-4.0, -3.0, -2.0, -1.0, 1.0, 2.0, 3.0, 4.0];

/// The searches over all groups of a span. `x` holds `G` weights for each of `scales.len()`
/// groups; `w`, `codes` run along with it.
pub(super) trait Search {
    /// Whether scales as stored are searched for too, and not only made of those of groups.
    const WIDE: bool = false;

    /// Codes in `-nmax..nmax`, stored with `nmax` added, that minimise the weighted squared error
    /// for a scale of either sign (`make_qx_quants` with `rmse_type` 1).
    fn symmetric<const G: usize>(
        nmax: i32,
        x: &[f32],
        w: &[f32],
        scales: &mut [f32],
        codes: &mut [u8],
    );

    /// As `symmetric`, weighted by the squares, by local refinement of single codes
    /// (`make_q3_quants`).
    fn refined<const G: usize>(nmax: i32, x: &[f32], scales: &mut [f32], codes: &mut [u8]);

    /// Codes in `0..=nmax` with scale and negated minimum (`make_qkx2_quants`, equal in effect to
    /// `make_qkx3_quants` with weights).
    fn asymmetric<const G: usize>(
        steps: Steps,
        x: &[f32],
        w: &[f32],
        scales: &mut [f32],
        mins: &mut [f32],
        codes: &mut [u8],
    );

    /// Scale alone, for values out of [`CODEBOOK`] (the loop in `quantize_row_iq4_nl_impl`).
    fn codebook<const G: usize>(x: &[f32], w: &[f32], scales: &mut [f32]);

    /// Codes in `0..=nmax` of `N` values that are not negative (scales, minima), minimising the
    /// weighted squared error, and their scale (`make_qp_quants`).
    fn positive<const N: usize>(nmax: i32, x: &[f32], w: &[f32], codes: &mut [u8]) -> f32;

    /// The sum of the squares of each of up to [`ROWS`] rows, in order.
    fn row_squares(rows: &[f32], n_per_row: usize) -> [f32; ROWS];
}

/// The 16 values of IQ4_NL and IQ4_XS (`kvalues_iq4nl`).
pub(super) const CODEBOOK: [i8; 16] =
    [-127, -104, -83, -65, -49, -35, -22, -10, 1, 13, 25, 38, 53, 69, 89, 113];

/// Halfway between neighbours. All halves, so both differences to a value near one are exact and
/// the reference's comparison of them (`best_index_int8`) decides as a comparison with this.
pub(super) const MIDDLES: [f32; 15] = {
    let mut middles = [0f32; 15];
    let mut i = 0;
    while i < 15 {
        middles[i] = (CODEBOOK[i] as f32 + CODEBOOK[i + 1] as f32) / 2.0;
        i += 1;
    }
    middles
};

/// Index of the nearest codebook value, the upper one of two equally near; 15 for NaN.
#[inline(always)]
#[expect(clippy::neg_cmp_op_on_partial_ord, reason = "NaN counts as beyond every middle")]
pub(super) fn nearest_in_codebook(x: f32) -> u8 {
    let mut index = 0;
    for middle in MIDDLES {
        index += u8::from(!(x < middle));
    }
    index
}

/// The first value of largest magnitude, with its sign.
#[inline(always)]
pub(super) fn signed_max(x: &[f32]) -> f32 {
    let (mut amax, mut max) = (0f32, 0f32);
    for &v in x {
        if v.abs() > amax {
            amax = v.abs();
            max = v;
        }
    }
    max
}

/// One group after the other, as the reference does it.
pub(super) struct Plain;

impl Search for Plain {
    #[inline(always)]
    fn symmetric<const G: usize>(
        nmax: i32,
        x: &[f32],
        w: &[f32],
        scales: &mut [f32],
        codes: &mut [u8],
    ) {
        let groups = x.chunks_exact(G).zip(w.chunks_exact(G)).zip(codes.chunks_exact_mut(G));
        for (((x, w), codes), scale) in groups.zip(scales) {
            *scale = symmetric(nmax, x, w, codes);
        }
    }

    #[inline(always)]
    fn refined<const G: usize>(nmax: i32, x: &[f32], scales: &mut [f32], codes: &mut [u8]) {
        let groups = x.chunks_exact(G).zip(codes.chunks_exact_mut(G));
        for ((x, codes), scale) in groups.zip(scales) {
            *scale = refined(nmax, x, codes);
        }
    }

    #[inline(always)]
    fn asymmetric<const G: usize>(
        steps: Steps,
        x: &[f32],
        w: &[f32],
        scales: &mut [f32],
        mins: &mut [f32],
        codes: &mut [u8],
    ) {
        let groups = x.chunks_exact(G).zip(w.chunks_exact(G)).zip(codes.chunks_exact_mut(G));
        for ((((x, w), codes), scale), min) in groups.zip(scales).zip(mins) {
            (*scale, *min) = asymmetric(&steps, x, w, codes);
        }
    }

    #[inline(always)]
    fn codebook<const G: usize>(x: &[f32], w: &[f32], scales: &mut [f32]) {
        for ((x, w), scale) in x.chunks_exact(G).zip(w.chunks_exact(G)).zip(scales) {
            *scale = codebook(x, w);
        }
    }

    fn positive<const N: usize>(nmax: i32, x: &[f32], w: &[f32], codes: &mut [u8]) -> f32 {
        let mut max = 0f32;
        for &v in x {
            max = if max > v { max } else { v };
        }
        if max < EPS {
            codes.fill(0);
            return 0.0;
        }
        let mut iscale = nmax as f32 / max;
        let scale = 1.0 / iscale;
        let mut best = 0f32;
        for (&v, &w) in x.iter().zip(w) {
            // Not limited to nmax here, and wrapped to a byte.
            let diff = v - scale * f32::from(nearest_int(iscale * v) as u8);
            best += w * diff * diff;
        }
        for step in POSITIVE_STEPS {
            let candidate = (0.1 * step + nmax as f32) / max;
            let scale = 1.0 / candidate;
            let mut error = 0f32;
            for (&v, &w) in x.iter().zip(w) {
                let diff = v - scale * nearest_int(candidate * v).min(nmax) as f32;
                error += w * diff * diff;
            }
            if error < best {
                best = error;
                iscale = candidate;
            }
        }
        let (mut sumlx, mut suml2) = (0f32, 0f32);
        for ((c, &v), &w) in codes.iter_mut().zip(x).zip(w) {
            let l = nearest_int(iscale * v).min(nmax);
            *c = l as u8;
            sumlx += w * v * l as f32;
            suml2 += w * l as f32 * l as f32;
        }
        for _ in 0..5 {
            let mut changed = false;
            for ((c, &v), &w) in codes.iter_mut().zip(x).zip(w) {
                let l = f32::from(*c);
                let (mut slx, mut sl2) = (sumlx - w * v * l, suml2 - w * l * l);
                if slx > 0.0 && sl2 > 0.0 {
                    let new = nearest_int(v * sl2 / slx).min(nmax);
                    if new != i32::from(*c) {
                        slx += w * v * new as f32;
                        sl2 += w * new as f32 * new as f32;
                        if slx * slx * suml2 > sumlx * sumlx * sl2 {
                            *c = new as u8;
                            (sumlx, suml2) = (slx, sl2);
                            changed = true;
                        }
                    }
                }
            }
            if !changed {
                break;
            }
        }
        if suml2 > 0.0 { sumlx / suml2 } else { 0.0 }
    }

    #[inline(always)]
    fn row_squares(rows: &[f32], n_per_row: usize) -> [f32; ROWS] {
        let mut sums = [0f32; ROWS];
        for (sum, row) in sums.iter_mut().zip(rows.chunks_exact(n_per_row)) {
            *sum = sum_squares(row);
        }
        sums
    }
}

/// One group of [`Search::symmetric`].
fn symmetric(nmax: i32, x: &[f32], w: &[f32], codes: &mut [u8]) -> f32 {
    let max = signed_max(x);
    if max.abs() < EPS {
        codes.fill(0);
        return 0.0;
    }
    let code = |iscale: f32, v: f32| nearest_int(iscale * v).clamp(-nmax, nmax - 1);
    let sums = |iscale: f32| {
        let (mut sumlx, mut suml2) = (0f32, 0f32);
        for (&v, &w) in x.iter().zip(w) {
            let l = code(iscale, v) as f32;
            sumlx += w * v * l;
            suml2 += w * l * l;
        }
        (sumlx, suml2)
    };
    let mut chosen = -nmax as f32 / max;
    let (sumlx, suml2) = sums(chosen);
    let mut scale = if suml2 != 0.0 { sumlx / suml2 } else { 0.0 };
    let mut best = scale * sumlx;
    for step in (-9..=9).filter(|&step| step != 0) {
        let iscale = -(nmax as f32 + 0.1 * step as f32) / max;
        let (sumlx, suml2) = sums(iscale);
        if suml2 > 0.0 && sumlx * sumlx > best * suml2 {
            chosen = iscale;
            scale = sumlx / suml2;
            best = scale * sumlx;
        }
    }
    // Codes follow from the scale chosen, so they are made once.
    for (c, &v) in codes.iter_mut().zip(x) {
        *c = (code(chosen, v) + nmax) as u8;
    }
    scale
}

fn refined(nmax: i32, x: &[f32], codes: &mut [u8]) -> f32 {
    let max = signed_max(x);
    if max.abs() < EPS {
        codes.fill(0);
        return 0.0;
    }
    let iscale = -nmax as f32 / max;
    let (mut sumlx, mut suml2) = (0f32, 0f32);
    for (c, &v) in codes.iter_mut().zip(x) {
        let l = nearest_int(iscale * v).clamp(-nmax, nmax - 1);
        *c = (l + nmax) as u8;
        sumlx += v * v * v * l as f32;
        suml2 += v * v * l as f32 * l as f32;
    }
    for _ in 0..5 {
        let mut changed = false;
        for (c, &v) in codes.iter_mut().zip(x) {
            let w = v * v;
            let l = (i32::from(*c) - nmax) as f32;
            let mut slx = sumlx - w * v * l;
            if slx > 0.0 {
                let mut sl2 = suml2 - w * l * l;
                let new = nearest_int(v * sl2 / slx).clamp(-nmax, nmax - 1);
                if new as f32 != l {
                    slx += w * v * new as f32;
                    sl2 += w * new as f32 * new as f32;
                    if sl2 > 0.0 && slx * slx * suml2 > sumlx * sumlx * sl2 {
                        *c = (new + nmax) as u8;
                        (sumlx, suml2) = (slx, sl2);
                        changed = true;
                    }
                }
            }
        }
        if !changed {
            break;
        }
    }
    if suml2 > 0.0 { sumlx / suml2 } else { 0.0 }
}

/// One group of [`Search::asymmetric`].
pub(super) fn asymmetric(steps: &Steps, x: &[f32], w: &[f32], codes: &mut [u8]) -> (f32, f32) {
    let nmax = steps.nmax;
    let (mut min, mut max) = (x[0], x[0]);
    let mut sum_w = w[0];
    let mut sum_x = sum_w * x[0];
    for (&v, &w) in x.iter().zip(w).skip(1) {
        min = if v < min { v } else { min };
        max = if v > max { v } else { max };
        sum_w += w;
        sum_x += w * v;
    }
    min = if min > 0.0 { 0.0 } else { min };
    if max <= min {
        codes.fill(0);
        return (0.0, -min);
    }
    let code = |iscale: f32, min: f32, v: f32| nearest_int(iscale * (v - min)).clamp(0, nmax);
    let error = |(iscale, base): (f32, f32), scale: f32, min: f32| {
        let mut error = 0f32;
        for (&v, &w) in x.iter().zip(w) {
            let diff = scale * code(iscale, base, v) as f32 + min - v;
            error += w * if steps.absolute { diff.abs() } else { diff * diff };
        }
        error
    };
    // The codes follow from these two, so they are made once, at the end.
    let mut chosen = (nmax as f32 / (max - min), min);
    let mut scale = 1.0 / chosen.0;
    let mut best = error(chosen, scale, min);
    for step in 0..=steps.steps {
        let iscale = steps.candidate(step) / (max - min);
        let (mut sum_l, mut sum_l2, mut sum_xl) = (0f32, 0f32, 0f32);
        for (&v, &w) in x.iter().zip(w) {
            let l = code(iscale, min, v) as f32;
            sum_l += w * l;
            sum_l2 += w * l * l;
            sum_xl += w * l * v;
        }
        let d = sum_w * sum_l2 - sum_l * sum_l;
        if d > 0.0 {
            let mut this_scale = (sum_w * sum_xl - sum_x * sum_l) / d;
            let mut this_min = (sum_l2 * sum_x - sum_l * sum_xl) / d;
            if this_min > 0.0 {
                this_min = 0.0;
                this_scale = sum_xl / sum_l2;
            }
            let this_error = error((iscale, min), this_scale, this_min);
            if this_error < best {
                chosen = (iscale, min);
                best = this_error;
                scale = this_scale;
                min = this_min;
            }
        }
    }
    for (c, &v) in codes.iter_mut().zip(x) {
        *c = code(chosen.0, chosen.1, v) as u8;
    }
    (scale, -min)
}

fn codebook(x: &[f32], w: &[f32]) -> f32 {
    let max = signed_max(x);
    if max.abs() < EPS {
        return 0.0;
    }
    let sums = |id: f32| {
        let (mut sumqx, mut sumq2) = (0f32, 0f32);
        for (&v, &w) in x.iter().zip(w) {
            let q = f32::from(CODEBOOK[usize::from(nearest_in_codebook(id * v))]);
            sumqx += w * q * v;
            sumq2 += w * q * q;
        }
        (sumqx, sumq2)
    };
    let first = f32::from(CODEBOOK[0]);
    let (sumqx, sumq2) = sums(1.0 / (-max / first));
    let mut scale = if sumq2 > 0.0 { sumqx / sumq2 } else { 0.0 };
    let mut best = scale * sumqx;
    for step in -7..=7 {
        let (sumqx, sumq2) = sums((step as f32 + first) / max);
        if sumq2 > 0.0 && sumqx * sumqx > best * sumq2 {
            scale = sumqx / sumq2;
            best = scale * sumqx;
        }
    }
    scale
}

/// The sum of the squares in order.
#[inline(always)]
pub(super) fn sum_squares(x: &[f32]) -> f32 {
    let mut sum = 0f32;
    for &v in x {
        sum += v * v;
    }
    sum
}

/// [`sum_squares`] of each super-block of a span. Full spans are summed four at a time: a sum in
/// order waits for the adder at every step.
#[inline(always)]
pub(super) fn super_block_squares(x: &[f32]) -> [f32; SPAN / 256] {
    let mut sums = [0f32; SPAN / 256];
    if x.len() == SPAN {
        for i in 0..256 {
            for b in 0..SPAN / 256 {
                sums[b] += x[256 * b + i] * x[256 * b + i];
            }
        }
    } else {
        for (sum, x) in sums.iter_mut().zip(x.chunks_exact(256)) {
            *sum = sum_squares(x);
        }
    }
    sums
}

/// The sum of each group's weights, in order.
#[inline(always)]
pub(super) fn group_sums<const G: usize>(w: &[f32], sums: &mut [f32]) {
    let groups = w.as_chunks::<G>().0;
    for g in 0..groups.len() {
        sums[g] = 0.0;
        for w in groups[g] {
            sums[g] += w;
        }
    }
}

/// `qw · sqrt(sigma2 + x²)`, by which importances weigh in almost every type.
#[inline(always)]
pub(super) fn importance_weights(x: &[f32], qw: &[f32], sigma2: f32, w: &mut [f32]) {
    let n = x.len();
    let (qw, w) = (&qw[..n], &mut w[..n]);
    for i in 0..n {
        w[i] = qw[i] * (sigma2 + x[i] * x[i]).sqrt();
    }
}
