//! The searches in eight lanes: eight values of a group, eight neighbours of a point, eight
//! candidates for a scale or eight splits at once. Every sum runs in one lane, in the order of
//! [`super::plain`].

use super::Search;
use super::grid::{Grid, MAX_CODES};
use super::magnitudes::{Group, MAGNITUDES, MAX_CANDIDATES, Sums, Trials};
use super::splits::{self, DOWN, Prefixes, Split, UP};
use crate::quant::lanes::search::InLanes;
use crate::quant::lanes::{Eight, Lanes};

impl<L: Lanes> Search for InLanes<L> {
    #[inline(always)]
    fn choose<const D: usize>(
        group: &Group,
        grid: &Grid<D>,
        ids: &[f32],
        scales: &[f32],
    ) -> Trials {
        choose::<L::Eight, D>(group, grid, ids, scales)
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
    fn clearly_best(prefixes: &Prefixes) -> Option<Split> {
        clearly_best::<L::Eight>(prefixes)
    }

    #[inline(always)]
    fn clearly_best_of_two(halves: &[Prefixes; 2]) -> Option<Split> {
        clearly_best_of_two::<L::Eight>(halves)
    }
}

/// All scales of one point after the other: neighbouring scales mostly lead to the same list, so
/// its length, and whether it is needed, are foreseen by the processor.
#[inline(always)]
fn choose<L: Eight, const D: usize>(
    group: &Group,
    grid: &Grid<D>,
    ids: &[f32],
    scales: &[f32],
) -> Trials {
    let mut trials = Trials::new();
    let last = L::splat(f32::from(grid.n_codes) - 1.0);
    let (one, half, zero) = (L::splat(1.0), L::splat(0.5), L::splat(0.0));
    let magnitudes = L::load(&MAGNITUDES[D / 8]);
    let mut planes = [[0; 3]; MAX_CANDIDATES];
    for at in (0..group.n).step_by(8) {
        let x = L::load(&group.x[at..]);
        for (planes, &id) in planes.iter_mut().zip(ids) {
            let codes = (half * (L::splat(id) * x - one)).nearest_int();
            *planes = codes.max(zero).min(last).planes();
        }
        for at in (at..at + 8).step_by(D) {
            let (k, shift, mask) = (at / D, at % 8, (1 << D) - 1);
            let (x, root) = (&group.x[at..at + D], &group.root[at..at + D]);
            let mut are_points = 0;
            let trial = scales.iter().zip(&planes).zip(&mut trials.points[k]);
            for (t, ((&scale, &[low, middle, high]), point)) in trial.enumerate() {
                let mut planes = low >> shift & mask | (middle >> shift & mask) << D;
                if D == 4 {
                    planes |= (high >> shift & mask) << (2 * D);
                }
                let (around, is_point) = grid.around(planes);
                *point = if is_point {
                    around[0]
                } else {
                    nearest::<L, D>(around, L::splat(scale) * magnitudes, x, root)
                };
                are_points |= u32::from(is_point) << t;
            }
            trials.is_point[k] = are_points;
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
    let lane = lanes.trailing_zeros() as usize;
    if around.len() == 8 {
        return around[lane];
    }
    if lanes & (lanes - 1) == 0 {
        return L::lane(nearest, lane);
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

/// The best of many splits, and whether another one comes near.
struct Ranking<L> {
    /// What the best split of each lane takes off the error.
    most: L,
    /// The same for the next best.
    next: L,
    /// The number of the best.
    number: L,
}

/// Splits are numbered by their places, each below 64, and their shift, below 4.
const PLACE: usize = 64;
const SHIFT: usize = 4;

/// By what fraction splits have to differ for their order to be of no matter. Comparing two of them
/// in the reference's way takes at most eight roundings of 2^-24 each, this has room for 64.
const MARGIN: f32 = 4e-6;

impl<L: Eight> Ranking<L> {
    #[inline(always)]
    fn new() -> Self {
        let none = L::splat(-1.0);
        Self { most: none, next: none, number: none }
    }

    /// Eight splits by their sums, but for those that do not exist.
    #[inline(always)]
    fn add(&mut self, (sumqx, sumq2): (L, L), number: L, exists: L::Mask) {
        let gain = L::select(exists, sumqx * sumqx / sumq2, L::splat(-1.0));
        self.next = self.next.max(self.most.min(gain));
        self.number = L::select(self.most.lt(gain), number, self.number);
        self.most = self.most.max(gain);
    }

    /// The best split, if no other comes near. `total` is the sum of all weights: no `sumq2` is below
    /// a hundredth of it, so neither these nor the products compared leave the range of normal
    /// numbers for any split that matters.
    #[inline(always)]
    fn clearly_best(self, total: f32) -> Option<Split> {
        let (mut most, mut next, mut number) = ([0f32; 8], [0f32; 8], [0f32; 8]);
        self.most.store(&mut most);
        self.next.store(&mut next);
        self.number.store(&mut number);
        let best = (1..8).fold(0, |best, i| if most[i] > most[best] { i } else { best });
        let usual = 1e-16..1e16;
        if !usual.contains(&total) || !usual.contains(&most[best]) {
            return None;
        }
        let near = most[best] * (1.0 - MARGIN);
        let others = (0..8).filter(|&i| i != best).map(|i| most[i]);
        if others.chain(next).any(|gain| gain >= near) {
            return None;
        }
        let number = number[best] as usize;
        Some(Split {
            first: number / SHIFT / PLACE,
            second: number / SHIFT % PLACE,
            shift: number % SHIFT,
        })
    }
}

/// What the three parts of eight splits sum to. No closure: those called twice are not compiled for
/// the lanes' instructions.
#[inline(always)]
fn parts<L: Eight>(sums: &[f32], first: usize, second: usize, n: usize) -> [L; 3] {
    let at = L::load(&sums[second..]);
    [L::splat(sums[first] - sums[0]), at - L::splat(sums[first]), L::splat(sums[n]) - at]
}

/// The second places from `second` on, up to `n`, as numbers of splits with the first shift, and
/// which of them there are.
#[inline(always)]
fn numbers<L: Eight>(first: usize, second: usize, n: usize) -> (L, L::Mask) {
    let step = L::load(&[0.0, 1.0, 2.0, 3.0, 4.0, 5.0, 6.0, 7.0]);
    let exists = step.le(L::splat((n - second) as f32));
    let number = L::splat(((first * PLACE + second) * SHIFT) as f32);
    (number + step * L::splat(SHIFT as f32), exists)
}

#[inline(always)]
fn clearly_best<L: Eight>(sums: &Prefixes) -> Option<Split> {
    let n = sums.n;
    let mut ranking = Ranking::<L>::new();
    for first in 0..=n {
        let mut second = first;
        while second <= n {
            let (number, exists) = numbers::<L>(first, second, n);
            let x = parts::<L>(&sums.x, first, second, n);
            let w = parts::<L>(&sums.w, first, second, n);
            for (shift, [a, b, c]) in [UP, DOWN].into_iter().enumerate() {
                let (a, b, c) = (L::splat(a), L::splat(b), L::splat(c));
                let sumqx = x[0] * a + x[1] * b + x[2] * c;
                let sumq2 = w[0] * a * a + w[1] * b * b + w[2] * c * c;
                ranking.add((sumqx, sumq2), number + L::splat(shift as f32), exists);
            }
            second += 8;
        }
    }
    ranking.clearly_best(sums.w[n])
}

/// What [`Prefixes::sums_of_half`] takes from the first place of a split, for the values of one shift.
#[derive(Clone, Copy)]
struct Half<L> {
    all: L,
    first: L,
    fixed: L,
    step: L,
}

impl<L: Eight> Half<L> {
    #[inline(always)]
    fn new(sums: &Prefixes, first: usize, v: [f32; 3]) -> Self {
        let (x, w, n) = (&sums.x, &sums.w, sums.n);
        let (c1, c2) = splits::steps(v);
        Self {
            all: L::splat(x[n] * v[2]),
            first: L::splat(x[first]),
            fixed: L::splat(w[n] * v[2] * v[2] + w[first] * c1),
            step: L::splat(c2),
        }
    }

    /// The sums of eight splits.
    #[inline(always)]
    fn sums(&self, x: L, w: L) -> (L, L) {
        (self.all - (self.first + x), self.fixed + w * self.step)
    }
}

#[inline(always)]
fn clearly_best_of_two<L: Eight>([a, b]: &[Prefixes; 2]) -> Option<Split> {
    let n = a.n;
    let mut ranking = Ranking::<L>::new();
    for first in 0..=n {
        let of_a = [Half::<L>::new(a, first, UP), Half::new(a, first, DOWN)];
        let of_b = [Half::<L>::new(b, first, UP), Half::new(b, first, DOWN)];
        let mut second = first;
        while second <= n {
            let (number, exists) = numbers::<L>(first, second, n);
            let (x, w) = (L::load(&a.x[second..]), L::load(&a.w[second..]));
            let sums_a = [of_a[0].sums(x, w), of_a[1].sums(x, w)];
            let (x, w) = (L::load(&b.x[second..]), L::load(&b.w[second..]));
            let sums_b = [of_b[0].sums(x, w), of_b[1].sums(x, w)];
            for shift in 0..SHIFT {
                let (a, b) = (sums_a[shift / 2], sums_b[shift % 2]);
                let number = number + L::splat(shift as f32);
                ranking.add((a.0 + b.0, a.1 + b.1), number, exists);
            }
            second += 8;
        }
    }
    ranking.clearly_best(a.w[n] + b.w[n])
}
