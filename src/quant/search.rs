//! Searches for the scale of a group of weights, in the reference's order of operations.

/// Below this, a group counts as all zero (`GROUP_MAX_EPS`).
pub(super) const EPS: f32 = 1e-15;

/// Rounds to the nearest integer, ties to even, by the reference's bit trick; values beyond ±2^22
/// give what the trick gives (`nearest_int`).
pub(super) fn nearest_int(x: f32) -> i32 {
    let bits = (x + 12_582_912.0).to_bits();
    (bits & 0x007f_ffff) as i32 - 0x0040_0000
}

/// Symmetric codes in `-nmax..nmax`, stored with `nmax` added; returns the scale
/// (`make_qx_quants` with `rmse_type` 1). Weights default to the squares of `x`.
pub(super) fn symmetric(nmax: i32, x: &[f32], codes: &mut [u8], weights: Option<&[f32]>) -> f32 {
    let (mut max, mut amax) = (0f32, 0f32);
    for &v in x {
        if v.abs() > amax {
            amax = v.abs();
            max = v;
        }
    }
    if amax < EPS {
        codes.fill(0);
        return 0.0;
    }
    let code = |iscale: f32, v: f32| nearest_int(iscale * v).clamp(-nmax, nmax - 1);
    let sums = |iscale: f32| {
        let (mut sumlx, mut suml2) = (0f32, 0f32);
        for (i, &v) in x.iter().enumerate() {
            let l = code(iscale, v) as f32;
            let w = weights.map_or(v * v, |w| w[i]);
            sumlx += w * v * l;
            suml2 += w * l * l;
        }
        (sumlx, suml2)
    };
    let mut best_iscale = -nmax as f32 / max;
    let (sumlx, suml2) = sums(best_iscale);
    let mut scale = if suml2 != 0.0 { sumlx / suml2 } else { 0.0 };
    let mut best = scale * sumlx;
    for step in (-9..=9).filter(|&step| step != 0) {
        let iscale = -(nmax as f32 + 0.1 * step as f32) / max;
        let (sumlx, suml2) = sums(iscale);
        if suml2 > 0.0 && sumlx * sumlx > best * suml2 {
            best_iscale = iscale;
            scale = sumlx / suml2;
            best = scale * sumlx;
        }
    }
    for (c, &v) in codes.iter_mut().zip(x) {
        *c = (code(best_iscale, v) + nmax) as u8;
    }
    scale
}

/// The steps of [`asymmetric`].
pub(super) struct Steps {
    pub rmin: f32,
    pub rdelta: f32,
    pub n: i32,
}

/// Codes in `0..=nmax` with scale and (negated) minimum, minimising the weighted squared error
/// (`make_qkx2_quants` without `use_mad`).
pub(super) fn asymmetric(
    nmax: i32,
    x: &[f32],
    weights: &[f32],
    codes: &mut [u8],
    steps: &Steps,
) -> (f32, f32) {
    let (mut min, mut max) = (x[0], x[0]);
    let mut sum_w = weights[0];
    let mut sum_x = sum_w * x[0];
    for (&v, &w) in x.iter().zip(weights).skip(1) {
        if v < min {
            min = v;
        }
        if v > max {
            max = v;
        }
        sum_w += w;
        sum_x += w * v;
    }
    if min > 0.0 {
        min = 0.0;
    }
    if max == min {
        codes.fill(0);
        return (0.0, -min);
    }
    let code = |iscale: f32, min: f32, v: f32| nearest_int(iscale * (v - min)).clamp(0, nmax);
    // The codes follow from these two, so they are made once, at the end.
    let mut chosen = (nmax as f32 / (max - min), min);
    let error = |(iscale, base): (f32, f32), scale: f32, min: f32| {
        let mut error = 0f32;
        for (&v, &w) in x.iter().zip(weights) {
            let diff = scale * code(iscale, base, v) as f32 + min - v;
            error += w * (diff * diff);
        }
        error
    };
    let mut scale = 1.0 / chosen.0;
    let mut best = error(chosen, scale, min);
    for step in 0..=steps.n {
        let iscale = (steps.rmin + steps.rdelta * step as f32 + nmax as f32) / (max - min);
        let (mut sum_l, mut sum_l2, mut sum_xl) = (0f32, 0f32, 0f32);
        for (&v, &w) in x.iter().zip(weights) {
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
