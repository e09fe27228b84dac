//! The searches in eight lanes: eight values of a group, eight neighbours of a point, eight
//! candidates for a scale or eight splits at once. Every sum runs in one lane, in the order of
//! [`super::plain`].

use super::Search;
use super::grid::{Grid, MAX_CODES};
use super::magnitudes::{Group, MAGNITUDES, MAX_CANDIDATES, Sums, Trials};
use super::splits::{self, DOWN, Prefixes, UP};
use crate::quant::lanes::search::InLanes;
use crate::quant::lanes::{Eight, Lanes};

impl<L: Lanes> Search for InLanes<L> {
    #[inline(always)]
    fn choose<const D: usize>(group: &Group, grid: &Grid<D>, scales: &[(f32, f32)]) -> Trials {
        choose::<L::Eight, D>(group, grid, scales)
    }

    #[inline(always)]
    fn sums<const D: usize>(group: &Group, trials: &Trials, count: usize) -> Sums {
        sums::<L::Eight, D>(group, trials, count)
    }

    #[inline(always)]
    fn nearest<const D: usize>(
        around: &[u16],
        values: &[f32; MAX_CODES],
        scale: f32,
        x: &[f32],
        w: &[f32],
    ) -> u16 {
        nearest::<L::Eight, D>(around, L::Eight::load(values) * L::Eight::splat(scale), x, w)
    }

    #[inline(always)]
    fn next_better(prefixes: &Prefixes, first: usize, second: usize, best: f32) -> usize {
        next_better::<L::Eight>(prefixes, first, second, best)
    }

    #[inline(always)]
    fn next_better_of_two(halves: &[Prefixes; 2], first: usize, second: usize, best: f32) -> usize {
        next_better_of_two::<L::Eight>(halves, first, second, best)
    }
}

/// All scales of one point after the other: neighbouring scales mostly lead to the same list, so
/// its length, and whether it is needed, are foreseen by the processor.
#[inline(always)]
fn choose<L: Eight, const D: usize>(
    group: &Group,
    grid: &Grid<D>,
    scales: &[(f32, f32)],
) -> Trials {
    let mut trials = Trials::new();
    let last = L::splat(f32::from(grid.n_codes) - 1.0);
    let (one, half, zero) = (L::splat(1.0), L::splat(0.5), L::splat(0.0));
    let magnitudes = L::load(&MAGNITUDES[D / 8]);
    let mut planes = [[0; 3]; MAX_CANDIDATES];
    for at in (0..group.n).step_by(8) {
        let x = L::load(&group.x[at..]);
        for (planes, &(id, _)) in planes.iter_mut().zip(scales) {
            let codes = (half * (L::splat(id) * x - one)).nearest_int();
            *planes = codes.max(zero).min(last).planes();
        }
        for at in (at..at + 8).step_by(D) {
            let (k, shift, mask) = (at / D, at % 8, (1 << D) - 1);
            let (x, root) = (&group.x[at..at + D], &group.root[at..at + D]);
            for (t, (&(_, scale), &[low, middle, high])) in scales.iter().zip(&planes).enumerate() {
                let mut planes = low >> shift & mask | (middle >> shift & mask) << D;
                if D == 4 {
                    planes |= (high >> shift & mask) << (2 * D);
                }
                let (around, is_point) = grid.around(planes);
                let point = if is_point {
                    around[0]
                } else {
                    nearest::<L, D>(around, L::splat(scale) * magnitudes, x, root)
                };
                trials.set(k, t, point, is_point);
            }
        }
    }
    trials
}

#[inline(always)]
fn sums<L: Eight, const D: usize>(group: &Group, trials: &Trials, count: usize) -> Sums {
    let mut sums = Sums { qx: [0.0; MAX_CANDIDATES], q2: [0.0; MAX_CANDIDATES] };
    let values = L::load(&MAGNITUDES[D / 8]);
    for t in (0..count).step_by(8) {
        let (mut sumqx, mut sumq2) = (L::splat(0.0), L::splat(0.0));
        for k in 0..group.n / D {
            let codes = L::codes(&trials.points[k][t..]);
            for i in 0..D {
                let (x, w) = (group.x[D * k + i], group.w[D * k + i]);
                let q = values.lookup(codes, Grid::<D>::BITS * i);
                sumqx = sumqx + L::splat(w * x) * q;
                sumq2 = sumq2 + L::splat(w) * q * q;
            }
        }
        sumqx.store(&mut sums.qx[t..]);
        sumq2.store(&mut sums.q2[t..]);
    }
    sums
}

/// A coordinate's term depends on its code alone, so every term there can be is made once, in a
/// vector, and each distance is a sum of such. `values` are those of the codes, scaled.
#[inline(always)]
fn nearest<L: Eight, const D: usize>(around: &[u16], values: L, x: &[f32], w: &[f32]) -> u16 {
    let mut terms = [values; D];
    for i in 0..D {
        let diff = values - L::splat(x[i]);
        terms[i] = L::splat(w[i]) * diff * diff;
    }
    let mut nearest = L::codes(around);
    let mut best = distances::<L, D>(&terms, nearest);
    // Not below the largest number is as good as none: then the first point stands.
    let none = L::splat(f32::MAX);
    best = L::select(best.lt(none), best, none);
    for at in (8..around.len()).step_by(8) {
        let codes = L::codes(&around[at..]);
        let distance = distances::<L, D>(&terms, codes);
        let nearer = distance.lt(best);
        best = L::select(nearer, distance, best);
        nearest = L::pick(nearer, codes, nearest);
    }
    let least = L::splat(best.least());
    let lanes = L::bits(best.equal(least));
    if around.len() == 8 || lanes & (lanes - 1) == 0 {
        return L::lane(nearest, lanes.trailing_zeros() as usize);
    }
    // Equally near ones in several lanes.
    for at in (0..around.len()).step_by(8) {
        let lanes = L::bits(distances::<L, D>(&terms, L::codes(&around[at..])).equal(least));
        if lanes != 0 {
            return around[at + lanes.trailing_zeros() as usize];
        }
    }
    around[0]
}

/// The distances of eight points.
#[inline(always)]
fn distances<L: Eight, const D: usize>(terms: &[L; D], codes: L::Codes) -> L {
    let mut distance = terms[0].lookup(codes, 0);
    for (i, &terms) in terms.iter().enumerate().skip(1) {
        distance = distance + terms.lookup(codes, Grid::<D>::BITS * i);
    }
    distance
}

/// Those of the eight splits from `second` on that there are and that a mask marks.
#[inline(always)]
fn first_of(bits: u32, second: usize, n: usize) -> Option<usize> {
    let first = second + bits.trailing_zeros() as usize;
    (bits != 0 && first <= n).then_some(first)
}

#[inline(always)]
fn better<L: Eight>(sumqx: L, sumq2: L, best: L) -> u32 {
    L::bits(L::and(L::splat(0.0).lt(sumq2), (best * sumq2).lt(sumqx * sumqx)))
}

/// What the three parts of eight splits sum to. No closure: those called twice are not compiled for
/// the lanes' instructions.
#[inline(always)]
fn parts<L: Eight>(sums: &[f32], first: usize, second: usize, n: usize) -> [L; 3] {
    let at = L::load(&sums[second..]);
    [L::splat(sums[first] - sums[0]), at - L::splat(sums[first]), L::splat(sums[n]) - at]
}

#[inline(always)]
fn next_better<L: Eight>(sums: &Prefixes, first: usize, second: usize, best: f32) -> usize {
    let n = sums.n;
    let best = L::splat(best);
    for second in (second..=n).step_by(8) {
        let x = parts::<L>(&sums.x, first, second, n);
        let w = parts::<L>(&sums.w, first, second, n);
        let mut bits = 0;
        for [a, b, c] in [UP, DOWN] {
            let (a, b, c) = (L::splat(a), L::splat(b), L::splat(c));
            let sumqx = x[0] * a + x[1] * b + x[2] * c;
            let sumq2 = w[0] * a * a + w[1] * b * b + w[2] * c * c;
            bits |= better(sumqx, sumq2, best);
        }
        if let Some(found) = first_of(bits, second, n) {
            return found;
        }
    }
    n + 1
}

/// [`Prefixes::sums_of_half`] of eight splits.
#[inline(always)]
fn half<L: Eight>(sums: &Prefixes, first: usize, second: usize, v: [f32; 3]) -> (L, L) {
    let (x, w, n) = (&sums.x, &sums.w, sums.n);
    let (c1, c2) = splits::steps(v);
    let both = L::splat(x[first]) + L::load(&x[second..]);
    let fixed = L::splat(w[n] * v[2] * v[2] + w[first] * c1);
    (L::splat(x[n] * v[2]) - both, fixed + L::load(&w[second..]) * L::splat(c2))
}

#[inline(always)]
fn next_better_of_two<L: Eight>(
    halves: &[Prefixes; 2],
    first: usize,
    second: usize,
    best: f32,
) -> usize {
    let n = halves[0].n;
    let best = L::splat(best);
    for second in (second..=n).step_by(8) {
        let a = [half::<L>(&halves[0], first, second, UP), half(&halves[0], first, second, DOWN)];
        let b = [half::<L>(&halves[1], first, second, UP), half(&halves[1], first, second, DOWN)];
        let mut bits = 0;
        for pair in 0..4 {
            let (a, b) = (a[pair / 2], b[pair % 2]);
            bits |= better(a.0 + b.0, a.1 + b.1, best);
        }
        if let Some(found) = first_of(bits, second, n) {
            return found;
        }
    }
    n + 1
}
