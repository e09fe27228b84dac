//! The searches of [`super::search`] with one group of weights per lane, so that each lane performs the
//! plain reference's operations in the reference's order and the results are equal to the bit: nothing
//! is fused, nothing re-associated.

use std::marker::PhantomData;

use super::search::{
    CODEBOOK, EPS, MIDDLES, POSITIVE_STEPS, Plain, ROWS, SPAN, Search, Steps, nearest_int,
};
use crate::simd::{Eight, Lanes, MAX, Pair};

/// [`Search`] in lanes `L`.
pub(super) struct InLanes<L>(PhantomData<L>);

/// 1.5 · 2^23: the low bits of a sum with it are those of the nearest integer.
const MAGIC: f32 = 12_582_912.0;

/// Up to `WIDTH` groups of `G` values, no more than a span in all, transposed: element `i` of group `j`
/// in lane `j` of vector `i`. Lanes without a group hold zeros. Written in place: a result
/// would be copied.
#[inline(always)]
fn transpose<L: Lanes, const G: usize>(x: &[f32], out: &mut [L; G]) {
    if x.len() < G * L::WIDTH {
        let mut padded = [0f32; SPAN];
        padded[..x.len()].copy_from_slice(x);
        return transpose_all(&padded, out);
    }
    transpose_all(x, out);
}

#[inline(always)]
fn transpose_all<L: Lanes, const G: usize>(x: &[f32], out: &mut [L; G]) {
    let out = out.as_chunks_mut::<8>().0;
    for i in 0..G / 8 {
        out[i] = L::load_columns(&x[8 * i..], G);
    }
}

/// Weights and what they count, both transposed.
#[inline(always)]
fn transpose_both<'a, L: Lanes, const G: usize>(
    x: &[f32],
    w: &[f32],
    [x_out, w_out]: &'a mut [[L; G]; 2],
) -> (&'a [L; G], &'a [L; G]) {
    transpose(x, x_out);
    transpose(w, w_out);
    (x_out, w_out)
}

/// Writes codes held as floats back, group after group.
#[inline(always)]
fn scatter<L: Lanes, const G: usize>(lanes: &[L; G], codes: &mut [u8]) {
    let mut buffer = [0f32; 8 * MAX];
    let groups = codes.as_chunks_mut::<G>().0;
    let columns = lanes.as_chunks::<8>().0;
    for i in 0..G / 8 {
        L::store_columns(columns[i], &mut buffer, 8);
        let values = buffer.as_chunks::<8>().0;
        for j in 0..groups.len() {
            for k in 0..8 {
                // The low byte of the sum's bits is the code; a conversion would saturate, slowly.
                groups[j][8 * i + k] = (values[j][k] + MAGIC).to_bits() as u8;
            }
        }
    }
}

#[inline(always)]
fn store<L: Lanes>(v: L, to: &mut [f32]) {
    let mut buffer = [0f32; MAX];
    v.store(&mut buffer);
    to.copy_from_slice(&buffer[..to.len()]);
}

/// The first value of largest magnitude in each lane; 1 where all are zero, and which those are.
#[inline(always)]
fn signed_max<L: Lanes>(x: &[L]) -> (L, L::Mask) {
    let (mut amax, mut max) = (L::splat(0.0), L::splat(0.0));
    for &v in x {
        max = L::select(amax.lt(v.abs()), v, max);
        amax = v.abs().max(amax);
    }
    let zero = amax.lt(L::splat(EPS));
    (L::select(zero, L::splat(1.0), max), zero)
}

/// Rounds and limits what is surely below 2^22 in magnitude.
#[inline(always)]
fn code<L: Lanes>(v: L, least: L, most: L) -> L {
    limit::<L, true, true>(v.round(), least, most)
}

/// Limits a code at the ends where it can be beyond.
#[inline(always)]
fn limit<L: Lanes, const BELOW: bool, const ABOVE: bool>(l: L, least: L, most: L) -> L {
    let l = if BELOW { l.max(least) } else { l };
    if ABOVE { l.min(most) } else { l }
}

impl<L: Lanes> Search for InLanes<L> {
    #[inline(always)]
    fn symmetric<const G: usize>(
        nmax: i32,
        x: &[f32],
        w: &[f32],
        scales: &mut [f32],
        codes: &mut [u8],
    ) {
        let mut at = 0;
        while at < scales.len() {
            let groups = at..scales.len().min(at + L::WIDTH);
            let of = G * groups.start..G * groups.end;
            let (x, w, codes) = (&x[of.clone()], &w[of.clone()], &mut codes[of]);
            symmetric::<L, G>(nmax as f32, x, w, &mut scales[groups], codes);
            at += L::WIDTH;
        }
    }

    #[inline(always)]
    fn refined<const G: usize>(nmax: i32, x: &[f32], scales: &mut [f32], codes: &mut [u8]) {
        let mut at = 0;
        while at < scales.len() {
            let groups = at..scales.len().min(at + L::WIDTH);
            let of = G * groups.start..G * groups.end;
            let (x, codes) = (&x[of.clone()], &mut codes[of]);
            refined::<L, G>(nmax as f32, x, &mut scales[groups], codes);
            at += L::WIDTH;
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
        match (G < 32, steps.absolute) {
            (true, true) => asymmetric_all::<Pair<L>, G, true>(&steps, x, w, scales, mins, codes),
            (true, false) => asymmetric_all::<Pair<L>, G, false>(&steps, x, w, scales, mins, codes),
            (false, true) => asymmetric_all::<L, G, true>(&steps, x, w, scales, mins, codes),
            (false, false) => asymmetric_all::<L, G, false>(&steps, x, w, scales, mins, codes),
        }
    }

    #[inline(always)]
    fn codebook<const G: usize>(x: &[f32], w: &[f32], scales: &mut [f32]) {
        let mut at = 0;
        while at < scales.len() {
            let groups = at..scales.len().min(at + L::WIDTH);
            let of = G * groups.start..G * groups.end;
            codebook::<L, G>(&x[of.clone()], &w[of], &mut scales[groups]);
            at += L::WIDTH;
        }
    }

    #[inline(always)]
    fn positive<const N: usize>(nmax: i32, x: &[f32], w: &[f32], codes: &mut [u8]) -> f32 {
        positive::<L::Eight, N>(nmax, x, w, codes)
    }

    /// A sum in order waits for the adder at every step: eight rows share the wait.
    #[inline(always)]
    fn row_squares(rows: &[f32], n_per_row: usize) -> [f32; ROWS] {
        if rows.len() < ROWS * n_per_row {
            return Plain::row_squares(rows, n_per_row);
        }
        let mut squares = L::Eight::splat(0.0);
        for i in (0..n_per_row).step_by(8) {
            for x in L::Eight::load_columns(&rows[i..], n_per_row) {
                squares = squares + x * x;
            }
        }
        let mut sums = [0f32; ROWS];
        squares.store(&mut sums);
        sums
    }
}

/// The sums from which a scale follows, for the codes that a candidate gives; these are limited only
/// where they can be beyond the least or the greatest code.
#[inline(always)]
fn fit<L: Lanes, const G: usize, const BELOW: bool, const ABOVE: bool>(
    iscale: L,
    x: &[L; G],
    w: &[L; G],
    wx: &[L; G],
    nmax: f32,
) -> (L, L) {
    let (least, most) = (L::splat(-nmax), L::splat(nmax - 1.0));
    let (mut sumlx, mut suml2) = (L::splat(0.0), L::splat(0.0));
    for i in 0..G {
        let l = limit::<L, BELOW, ABOVE>((iscale * x[i]).round(), least, most);
        sumlx = sumlx + wx[i] * l;
        suml2 = suml2 + w[i] * l * l;
    }
    (sumlx, suml2)
}

/// The best of the candidates of [`symmetric`] so far.
struct Best<L> {
    iscale: L,
    scale: L,
    /// What the scale takes off the error.
    gain: L,
}

impl<L: Lanes> Best<L> {
    /// Tries the candidates of some steps.
    #[inline(always)]
    fn improve<const G: usize, const BELOW: bool, const ABOVE: bool>(
        &mut self,
        steps: std::ops::RangeInclusive<i32>,
        max: L,
        [x, w, wx]: [&[L; G]; 3],
        nmax: f32,
    ) {
        for step in steps {
            let iscale = L::splat(-(nmax + 0.1 * step as f32)) / max;
            let (sumlx, suml2) = fit::<L, G, BELOW, ABOVE>(iscale, x, w, wx, nmax);
            let better = L::and(L::splat(0.0).lt(suml2), (self.gain * suml2).lt(sumlx * sumlx));
            self.iscale = L::select(better, iscale, self.iscale);
            self.scale = L::select(better, sumlx / suml2, self.scale);
            self.gain = L::select(better, self.scale * sumlx, self.gain);
        }
    }
}

/// Codes stay within `nmax + 1` of zero, so rounding needs no guard here. The largest weight has the
/// code `-nmax - step / 10` before rounding, and no other one a larger magnitude: one step beyond
/// ±5, rounding alone keeps codes within one of the limits.
#[inline(always)]
fn symmetric<L: Lanes, const G: usize>(
    nmax: f32,
    x: &[f32],
    w: &[f32],
    scales: &mut [f32],
    codes: &mut [u8],
) {
    let mut columns = [[L::splat(0.0); G]; 2];
    let (x, w) = transpose_both(x, w, &mut columns);
    let (least, most) = (L::splat(-nmax), L::splat(nmax - 1.0));
    let zero = L::splat(0.0);
    let (max, all_zero) = signed_max(x);
    let mut wx = [zero; G];
    for i in 0..G {
        wx[i] = w[i] * x[i];
    }
    let iscale = L::splat(-nmax) / max;
    let (sumlx, suml2) = fit::<L, G, false, true>(iscale, x, w, &wx, nmax);
    let scale = L::select(suml2.equal(zero), zero, sumlx / suml2);
    let mut best = Best { iscale, scale, gain: scale * sumlx };
    let weights = [x, w, &wx];
    best.improve::<G, false, false>(-9..=-6, max, weights, nmax);
    best.improve::<G, false, true>(-5..=-1, max, weights, nmax);
    best.improve::<G, false, true>(1..=4, max, weights, nmax);
    best.improve::<G, true, true>(5..=9, max, weights, nmax);
    store(L::select(all_zero, zero, best.scale), scales);
    let mut l = [zero; G];
    for i in 0..G {
        let stored = code(best.iscale * x[i], least, most) + L::splat(nmax);
        l[i] = L::select(all_zero, zero, stored);
    }
    scatter(&l, codes);
}

/// A lane that a sweep leaves unchanged stays so in all later ones; only all together stop.
#[inline(always)]
fn refined<L: Lanes, const G: usize>(
    nmax: f32,
    values: &[f32],
    scales: &mut [f32],
    codes: &mut [u8],
) {
    let (least, most) = (L::splat(-nmax), L::splat(nmax - 1.0));
    let zero = L::splat(0.0);
    let mut x = [zero; G];
    transpose(values, &mut x);
    let (max, all_zero) = signed_max(&x);
    let iscale = L::splat(-nmax) / max;
    let (mut sumlx, mut suml2) = (zero, zero);
    let (mut w, mut wx, mut l) = ([zero; G], [zero; G], [zero; G]);
    for i in 0..G {
        x[i] = L::select(all_zero, zero, x[i]);
        w[i] = x[i] * x[i];
        wx[i] = w[i] * x[i];
        l[i] = code(iscale * x[i], least, most);
        sumlx = sumlx + wx[i] * l[i];
        suml2 = suml2 + w[i] * l[i] * l[i];
    }
    for _ in 0..5 {
        let mut any_changed = false;
        for i in 0..G {
            let slx = sumlx - wx[i] * l[i];
            let sl2 = suml2 - w[i] * l[i] * l[i];
            let new = (x[i] * sl2 / slx).nearest_int().max(least).min(most);
            let changed = L::and_not(zero.lt(slx), new.equal(l[i]));
            // Most weights keep their code from the first sweep on.
            if !L::any(changed) {
                continue;
            }
            let (slx, sl2) = (slx + wx[i] * new, sl2 + w[i] * new * new);
            let better = L::and(zero.lt(sl2), (sumlx * sumlx * sl2).lt(slx * slx * suml2));
            let accepted = L::and(changed, better);
            l[i] = L::select(accepted, new, l[i]);
            sumlx = L::select(accepted, slx, sumlx);
            suml2 = L::select(accepted, sl2, suml2);
            any_changed |= L::any(accepted);
        }
        if !any_changed {
            break;
        }
    }
    store(L::select(zero.lt(suml2), sumlx / suml2, zero), scales);
    for l in &mut l {
        *l = L::select(all_zero, zero, *l + L::splat(nmax));
    }
    scatter(&l, codes);
}

/// Whether all weights round exactly: rounding is monotone, so they lie between the extremes.
#[inline(always)]
fn in_range<L: Lanes>(iscale: L, low: L, high: L) -> bool {
    let limit = L::splat(4_194_303.0);
    L::all(L::and((iscale * low).abs().le(limit), (iscale * high).abs().le(limit)))
}

/// Whether all codes lie in `0..=nmax` without being limited, by the same argument.
#[inline(always)]
fn within<L: Lanes>(iscale: L, low: L, high: L, nmax: L) -> bool {
    let half = L::splat(0.5);
    L::all(L::and(L::splat(-0.5).le(iscale * low), (iscale * high).lt(nmax + half)))
}

/// The codes that a candidate gives, and the sums from which scale and minimum follow: of the codes,
/// of their squares, of their products with the weights.
#[inline(always)]
fn sums<L: Lanes, const G: usize, const LIMIT: bool>(
    iscale: L,
    min: L,
    x: &[L; G],
    w: &[L; G],
    nmax: L,
    l: &mut [L; G],
) -> [L; 3] {
    let zero = L::splat(0.0);
    let (mut sum_l, mut sum_l2, mut sum_xl) = (zero, zero, zero);
    for i in 0..G {
        l[i] = limit::<L, LIMIT, LIMIT>((iscale * (x[i] - min)).round(), zero, nmax);
        let wl = w[i] * l[i];
        sum_l = sum_l + wl;
        sum_l2 = sum_l2 + wl * l[i];
        sum_xl = sum_xl + wl * x[i];
    }
    [sum_l, sum_l2, sum_xl]
}

#[inline(always)]
fn error<L: Lanes, const G: usize, const ABSOLUTE: bool>(
    x: &[L; G],
    w: &[L; G],
    l: &[L; G],
    scale: L,
    min: L,
) -> L {
    let mut error = L::splat(0.0);
    for i in 0..G {
        let diff = scale * l[i] + min - x[i];
        error = error + w[i] * if ABSOLUTE { diff.abs() } else { diff * diff };
    }
    error
}

/// [`asymmetric`] for a span. What a step has to do once for all lanes weighs more for small groups, so
/// these take twice the lanes.
#[inline(always)]
fn asymmetric_all<L: Lanes, const G: usize, const ABSOLUTE: bool>(
    steps: &Steps,
    x: &[f32],
    w: &[f32],
    scales: &mut [f32],
    mins: &mut [f32],
    codes: &mut [u8],
) {
    let mut columns = [[L::splat(0.0); G]; 2];
    let mut at = 0;
    while at < scales.len() {
        let groups = at..scales.len().min(at + L::WIDTH);
        let of = G * groups.start..G * groups.end;
        let (x, w, codes) = (&x[of.clone()], &w[of.clone()], &mut codes[of]);
        let (scales, mins) = (&mut scales[groups.clone()], &mut mins[groups]);
        at += L::WIDTH;
        if !asymmetric::<L, G, ABSOLUTE>(steps, x, w, &mut columns, scales, mins, codes) {
            Plain::asymmetric::<G>(*steps, x, w, scales, mins, codes);
        }
    }
}

/// False where a code would leave the range in which rounding is exact (weights of zero and
/// sums that overflow can lead there): the caller then takes the plain search.
#[inline(always)]
fn asymmetric<L: Lanes, const G: usize, const ABSOLUTE: bool>(
    steps: &Steps,
    x: &[f32],
    w: &[f32],
    columns: &mut [[L; G]; 2],
    scales: &mut [f32],
    mins: &mut [f32],
    codes: &mut [u8],
) -> bool {
    let (zero, one) = (L::splat(0.0), L::splat(1.0));
    let (x, w) = transpose_both(x, w, columns);
    let nmax = L::splat(steps.nmax as f32);
    let (mut least, mut max) = (x[0], x[0]);
    let mut sum_w = w[0];
    let mut sum_x = sum_w * x[0];
    for i in 1..G {
        least = x[i].min(least);
        max = x[i].max(max);
        sum_w = sum_w + w[i];
        sum_x = sum_x + w[i] * x[i];
    }
    let mut min = zero.min(least);
    let flat = max.le(min);
    let mut l = [zero; G];
    let mut chosen = (nmax / L::select(flat, one, max - min), min);
    if !in_range(chosen.0, least - min, max - min) {
        return false;
    }
    for i in 0..G {
        l[i] = code(chosen.0 * (x[i] - min), zero, nmax);
    }
    let mut scale = one / chosen.0;
    let mut best = error::<L, G, ABSOLUTE>(x, w, &l, scale, min);
    for step in 0..=steps.steps {
        let (low, high) = (least - min, max - min);
        let iscale = L::splat(steps.candidate(step)) / L::select(flat, one, high);
        let [sum_l, sum_l2, sum_xl] = if within(iscale, low, high, nmax) {
            sums::<L, G, false>(iscale, min, x, w, nmax, &mut l)
        } else if in_range(iscale, low, high) {
            sums::<L, G, true>(iscale, min, x, w, nmax, &mut l)
        } else {
            return false;
        };
        let d = sum_w * sum_l2 - sum_l * sum_l;
        let mut this_scale = (sum_w * sum_xl - sum_x * sum_l) / d;
        let mut this_min = (sum_l2 * sum_x - sum_l * sum_xl) / d;
        let above = zero.lt(this_min);
        if L::any(above) {
            this_scale = L::select(above, sum_xl / sum_l2, this_scale);
            this_min = L::select(above, zero, this_min);
        }
        let this_error = error::<L, G, ABSOLUTE>(x, w, &l, this_scale, this_min);
        let better = L::and(zero.lt(d), this_error.lt(best));
        chosen.0 = L::select(better, iscale, chosen.0);
        chosen.1 = L::select(better, min, chosen.1);
        best = L::select(better, this_error, best);
        scale = L::select(better, this_scale, scale);
        min = L::select(better, this_min, min);
    }
    for i in 0..G {
        let code = code(chosen.0 * (x[i] - chosen.1), zero, nmax);
        l[i] = L::select(flat, zero, code);
    }
    store(L::select(flat, zero, scale), scales);
    store(min, mins);
    for min in mins {
        *min = -*min;
    }
    scatter(&l, codes);
    true
}

/// The nearest value of the codebook. One step per middle, from the top, so that NaN, below none,
/// stays there.
#[inline(always)]
fn nearest_value<L: Lanes>(v: L) -> L {
    let mut q = L::splat(f32::from(CODEBOOK[15]));
    for i in 0..15 {
        let step = f32::from(CODEBOOK[i]) - f32::from(CODEBOOK[i + 1]);
        q = q + L::select(v.lt(L::splat(MIDDLES[i])), L::splat(step), L::splat(0.0));
    }
    q
}

/// As [`fit`], for the values of the codebook.
#[inline(always)]
fn fit_values<L: Lanes, const G: usize>(id: L, x: &[L; G], w: &[L; G]) -> (L, L) {
    let (mut sumqx, mut sumq2) = (L::splat(0.0), L::splat(0.0));
    for i in 0..G {
        let q = nearest_value(id * x[i]);
        let wq = w[i] * q;
        sumqx = sumqx + wq * x[i];
        sumq2 = sumq2 + wq * q;
    }
    (sumqx, sumq2)
}

#[inline(always)]
fn codebook<L: Lanes, const G: usize>(x: &[f32], w: &[f32], scales: &mut [f32]) {
    let mut columns = [[L::splat(0.0); G]; 2];
    let (x, w) = transpose_both(x, w, &mut columns);
    let zero = L::splat(0.0);
    let (max, all_zero) = signed_max(x);
    let first = f32::from(CODEBOOK[0]);
    // Negation and division by a negative constant, as one division by its opposite.
    let (sumqx, sumq2) = fit_values(L::splat(1.0) / (max / L::splat(-first)), x, w);
    let mut scale = L::select(zero.lt(sumq2), sumqx / sumq2, zero);
    let mut best = scale * sumqx;
    for step in -7..=7 {
        let (sumqx, sumq2) = fit_values(L::splat(step as f32 + first) / max, x, w);
        let better = L::and(zero.lt(sumq2), (best * sumq2).lt(sumqx * sumqx));
        scale = L::select(better, sumqx / sumq2, scale);
        best = L::select(better, scale * sumqx, best);
    }
    store(L::select(all_zero, zero, scale), scales);
}

/// Terms are made eight at once and added in order; of the candidates there are eight.
#[inline(always)]
fn positive<L: Eight, const N: usize>(nmax: i32, x: &[f32], w: &[f32], codes: &mut [u8]) -> f32 {
    let (x, w) = (&x[..N], &w[..N]);
    let zero = L::splat(0.0);
    let (mut most, mut largest) = (zero, zero);
    for at in (0..N).step_by(8) {
        let x = L::load(&x[at..]);
        most = most.max(x);
        largest = largest.max(x.abs());
    }
    let max = -(zero - most).least();
    // Then codes are not below `-nmax`, and those below zero wrap in one way.
    let usual = L::all(largest.le(L::splat(max))) && (EPS..f32::MAX).contains(&max);
    if !usual {
        return Plain::positive::<N>(nmax, x, w, codes);
    }
    let top = L::splat(nmax as f32);
    let mut iscale = nmax as f32 / max;
    let mut terms = [0f32; N];
    let scale = L::splat(1.0 / iscale);
    for at in (0..N).step_by(8) {
        let x = L::load(&x[at..]);
        let diff = x - scale * to_byte((L::splat(iscale) * x).nearest_int());
        (L::load(&w[at..]) * diff * diff).store(&mut terms[at..]);
    }
    let mut best = in_order(&terms);
    let mut candidates = [0f32; 8];
    for i in 0..8 {
        candidates[i] = (0.1 * POSITIVE_STEPS[i] + nmax as f32) / max;
    }
    let iscales = L::load(&candidates);
    let scales = L::splat(1.0) / iscales;
    let mut sums = zero;
    for i in 0..N {
        let x = L::splat(x[i]);
        let diff = x - scales * (iscales * x).nearest_int().min(top);
        sums = sums + L::splat(w[i]) * diff * diff;
    }
    let mut errors = [0f32; 8];
    sums.store(&mut errors);
    for i in 0..8 {
        if errors[i] < best {
            best = errors[i];
            iscale = candidates[i];
        }
    }
    let (mut l, mut squares) = ([0f32; N], [0f32; N]);
    for at in (0..N).step_by(8) {
        let (x, w) = (L::load(&x[at..]), L::load(&w[at..]));
        let code = (L::splat(iscale) * x).nearest_int().min(top);
        to_byte(code).store(&mut l[at..]);
        (w * x * code).store(&mut terms[at..]);
        (w * code * code).store(&mut squares[at..]);
    }
    let (mut sumlx, mut suml2) = (in_order(&terms), in_order(&squares));
    for _ in 0..5 {
        let mut changed = false;
        let mut at = 0;
        while at < N {
            // The next value whose code may change: mostly none of the eight.
            let block = at / 8 * 8;
            let (xs, ws, ls) = (L::load(&x[block..]), L::load(&w[block..]), L::load(&l[block..]));
            let slx = L::splat(sumlx) - ws * xs * ls;
            let sl2 = L::splat(suml2) - ws * ls * ls;
            let new = (xs * sl2 / slx).nearest_int().min(top);
            let others = L::and_not(L::and(zero.lt(slx), zero.lt(sl2)), new.equal(ls));
            let others = L::bits(others) & 0xff << (at - block);
            if others == 0 {
                at = block + 8;
                continue;
            }
            let i = block + others.trailing_zeros() as usize;
            at = i + 1;
            let (x, w, l) = (x[i], w[i], &mut l[i]);
            let (slx, sl2) = (sumlx - w * x * *l, suml2 - w * *l * *l);
            let new = nearest_int(x * sl2 / slx).min(nmax) as f32;
            let (slx, sl2) = (slx + w * x * new, sl2 + w * new * new);
            if slx * slx * suml2 > sumlx * sumlx * sl2 {
                *l = f32::from(new as i32 as u8);
                (sumlx, suml2) = (slx, sl2);
                changed = true;
            }
        }
        if !changed {
            break;
        }
    }
    let codes = &mut codes[..N];
    for i in 0..N {
        codes[i] = l[i] as u8;
    }
    if suml2 > 0.0 { sumlx / suml2 } else { 0.0 }
}

/// Codes as stored: those below zero wrap.
#[inline(always)]
fn to_byte<L: Lanes>(code: L) -> L {
    L::select(code.lt(L::splat(0.0)), code + L::splat(256.0), code)
}

/// The sum of some terms in order.
#[inline(always)]
fn in_order(terms: &[f32]) -> f32 {
    let mut sum = 0f32;
    for term in terms {
        sum += term;
    }
    sum
}
