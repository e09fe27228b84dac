//! The searches in eight lanes: eight neighbours of a point, eight candidates for a scale or eight
//! splits at once. Every sum on which bytes depend runs in one lane, in the order of
//! [`super::plain`].

use super::Search;
use super::grid::{Grid, List, MAX_CODES, MAX_LIST};
use super::magnitudes::{MAGNITUDES, MAX_CANDIDATES, Magnitudes, Sums, Trials};
use super::splits::{self, DOWN, Prefixes, Split, UP};
use crate::quant::lanes::InLanes;
use crate::simd::{Eight, Lanes};

impl<L: Lanes> Search for InLanes<L> {
    type Scratch = Parabolas;

    #[inline(always)]
    fn choose<const D: usize>(
        group: &Magnitudes,
        grid: &Grid<D>,
        ids: &[f32; MAX_CANDIDATES],
        scales: &[f32; MAX_CANDIDATES],
        count: usize,
        parabolas: &mut Parabolas,
    ) -> Trials {
        choose::<L::Eight, D>(group, grid, ids, scales, count, parabolas)
    }

    #[inline(always)]
    fn sums<const D: usize>(group: &Magnitudes, trials: &Trials, count: usize) -> Sums {
        sums::<L::Eight, D>(group, trials, count)
    }

    #[inline(always)]
    fn nearest<const D: usize>(
        around: List,
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

/// The points of a group for all scales, one point after the other. Neighbouring scales mostly lead
/// to the same list; the nearest of its points is sought for eight scales at once.
#[inline(always)]
fn choose<L: Eight, const D: usize>(
    group: &Magnitudes,
    grid: &Grid<D>,
    ids: &[f32; MAX_CANDIDATES],
    scales: &[f32; MAX_CANDIDATES],
    count: usize,
    parabolas: &mut Parabolas,
) -> Trials {
    let mut trials = Trials::new();
    let magnitudes = L::load(&MAGNITUDES[D / 8]);
    let most = 2.0 * f32::from(grid.n_codes) - 1.0;
    for k in 0..group.n / D {
        let (x, root) = (&group.x[D * k..][..D], &group.root[D * k..][..D]);
        let (codes, ends) = codes::<L, D>(x, grid.n_codes, ids, count);
        let (mut squares, mut products) = ([magnitudes; D], [magnitudes; D]);
        for i in 0..D {
            let weighted = L::splat(root[i]) * magnitudes;
            squares[i] = weighted * magnitudes;
            products[i] = weighted * L::splat(2.0 * x[i]);
        }
        let tie = tie([scales[0], scales[count - 1]], most, x, root);
        let points = &mut trials.points[k];
        let mut at = 0;
        while at < count {
            let n = 1 + (ends >> at).trailing_zeros() as usize;
            let (around, is_point) = grid.around(codes[at].to_bits() as u16);
            if is_point {
                trials.is_point[k] |= (u32::MAX >> (32 - n)) << at;
            } else {
                parabolas.set::<L, D>(around, &squares, &products);
            }
            // Eight points are written at once; those of the next list overwrite what is too much.
            for at in (at..at + n).step_by(8) {
                if is_point {
                    points[at..at + 8].fill(around.padded[0]);
                    continue;
                }
                let mut unclear = parabolas.nearest(L::load(&scales[at..]), tie, &mut points[at..]);
                while unclear != 0 {
                    let t = at + unclear.trailing_zeros() as usize;
                    points[t] = nearest::<L, D>(around, L::splat(scales[t]) * magnitudes, x, root);
                    unclear &= unclear - 1;
                }
            }
            at += n;
        }
    }
    trials
}

/// The packed codes of a point's weights for each candidate, above 2^23, and bit `t` set where those
/// of candidate `t + 1` are others.
#[inline(always)]
fn codes<L: Eight, const D: usize>(
    x: &[f32],
    n_codes: u8,
    ids: &[f32; MAX_CANDIDATES],
    count: usize,
) -> ([f32; MAX_CANDIDATES], u64) {
    let last = L::splat(f32::from(n_codes) - 1.0);
    let (one, half, zero) = (L::splat(1.0), L::splat(0.5), L::splat(0.0));
    let above = L::splat((1 << Grid::<D>::BITS) as f32);
    let mut codes = [0f32; MAX_CANDIDATES];
    for t in (0..count).step_by(8) {
        let id = L::load(&ids[t..]);
        let mut packed = zero;
        for i in (0..D).rev() {
            let code = (half * (id * L::splat(x[i]) - one)).nearest_int().max(zero).min(last);
            packed = packed * above + code;
        }
        // Integers stand in the lowest bits of what is 2^23 and more.
        (packed + L::splat(8_388_608.0)).store(&mut codes[t..]);
    }
    let mut ends = 1 << (count - 1);
    for t in (0..count - 1).step_by(8) {
        let same = L::load(&codes[t..]).equal(L::load(&codes[t + 1..]));
        ends |= u64::from(L::bits(same) ^ 0xff) << t;
    }
    (codes, ends)
}

/// By what part of the sum in [`tie`] distances have to differ for roundings to be of no matter. The
/// reference's distances are wrong by at most 13 roundings of 2^-24 of that sum, those of
/// [`Parabolas`] by 12; this has room for 67, where both have two of either.
const TIE: f32 = 4e-6;

/// By how much the values of [`Parabolas`] have to differ for falling scales from the first to the
/// last, and values up to `most`. Infinite where something might leave the range of normal numbers.
#[inline(always)]
fn tie([first, last]: [f32; 2], most: f32, x: &[f32], w: &[f32]) -> f32 {
    let (mut sum, mut greatest) = (0f32, 0f32);
    let w = &w[..x.len()];
    for i in 0..x.len() {
        let apart = first * most + x[i].abs();
        sum += w[i] * apart * apart;
        greatest = if greatest > apart { greatest } else { apart };
    }
    let usual = (1e-10..1e5).contains(&greatest) && (1e-25..1e25).contains(&sum);
    if usual { TIE * sum / last } else { f32::INFINITY }
}

/// Distances of the points of a list as functions of the scale `s`. The sum of `w · (s · v - x)²` is
/// `s` times `s · Σwv² - 2Σwvx`, but for what all points share: of a point's coordinates only two
/// sums are needed for all scales.
pub(in crate::quant) struct Parabolas {
    blocks: [[[f32; 8]; 3]; MAX_LIST / 8],
    n: usize,
}

impl Default for Parabolas {
    fn default() -> Self {
        Self { blocks: [[[0.0; 8]; 3]; MAX_LIST / 8], n: 0 }
    }
}

impl Parabolas {
    /// Of the points of a list; the terms are those of each coordinate by its code.
    #[inline(always)]
    fn set<L: Eight, const D: usize>(&mut self, around: List, squares: &[L; D], products: &[L; D]) {
        let lane = L::load(&[0.0, 1.0, 2.0, 3.0, 4.0, 5.0, 6.0, 7.0]);
        let none = L::splat(f32::NEG_INFINITY);
        let (codes, _) = around.padded.as_chunks::<8>();
        self.n = codes.len();
        let mut left = around.n as i32 as f32;
        for i in 0..codes.len() {
            let (codes, block) = (L::codes(&codes[i]), &mut self.blocks[i]);
            distances::<L, D>(squares, codes).store(&mut block[0]);
            // Those that only fill the list are never near.
            let products = distances::<L, D>(products, codes);
            L::select(lane.lt(L::splat(left)), products, none).store(&mut block[1]);
            L::numbers(codes).store(&mut block[2]);
            left -= 8.0;
        }
    }

    /// The nearest point for eight scales, and a bit for each where another one is less than `tie`
    /// farther away.
    #[inline(always)]
    fn nearest<L: Eight>(&self, scales: L, tie: f32, points: &mut [u16]) -> u32 {
        let none = L::splat(f32::INFINITY);
        let (mut best, mut next, mut nearest) = (none, none, none);
        for [squares, products, codes] in &self.blocks[..self.n] {
            for i in 0..8 {
                let distance = scales * L::splat(squares[i]) - L::splat(products[i]);
                nearest = L::select(distance.lt(best), L::splat(codes[i]), nearest);
                next = next.min(best.max(distance));
                best = distance.min(best);
            }
        }
        nearest.store_codes(points);
        // What is not a number is not beyond.
        L::bits((best + L::splat(tie)).lt(next)) ^ 0xff
    }
}

#[inline(always)]
fn sums<L: Eight, const D: usize>(group: &Magnitudes, trials: &Trials, count: usize) -> Sums {
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
fn nearest<L: Eight, const D: usize>(around: List, values: L, x: &[f32], w: &[f32]) -> u16 {
    let mut terms = [values; D];
    for i in 0..D {
        let diff = values - L::splat(x[i]);
        terms[i] = L::splat(w[i]) * diff * diff;
    }
    let padded = around.padded;
    let mut nearest = L::codes(padded);
    let mut best = distances::<L, D>(&terms, nearest);
    // Not below the largest number is as good as none: then the first point stands.
    let none = L::splat(f32::MAX);
    best = L::select(best.lt(none), best, none);
    for at in (8..padded.len()).step_by(8) {
        let codes = L::codes(&padded[at..]);
        let distance = distances::<L, D>(&terms, codes);
        let nearer = distance.lt(best);
        best = L::select(nearer, distance, best);
        nearest = L::pick(nearer, codes, nearest);
    }
    let least = L::splat(best.least());
    let lanes = L::bits(best.equal(least));
    let lane = lanes.trailing_zeros() as usize;
    if padded.len() == 8 {
        return padded[lane];
    }
    if lanes & (lanes - 1) == 0 {
        return L::lane(nearest, lane);
    }
    // Equally near ones in several lanes.
    for at in (0..padded.len()).step_by(8) {
        let lanes = L::bits(distances::<L, D>(&terms, L::codes(&padded[at..])).equal(least));
        if lanes != 0 {
            return padded[at + lanes.trailing_zeros() as usize];
        }
    }
    padded[0]
}

/// The sums of the coordinates' terms, for eight points.
#[inline(always)]
fn distances<L: Eight, const D: usize>(terms: &[L; D], codes: L::Codes) -> L {
    let mut distance = terms[0].lookup(codes, 0);
    for i in 1..D {
        distance = distance + terms[i].lookup(codes, Grid::<D>::BITS * i);
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
        let mut best = 0;
        for i in 1..8 {
            best = if most[i] > most[best] { i } else { best };
        }
        let usual = 1e-16..1e16;
        if !usual.contains(&total) || !usual.contains(&most[best]) {
            return None;
        }
        let near = most[best] * (1.0 - MARGIN);
        for i in 0..8 {
            if next[i] >= near || (i != best && most[i] >= near) {
                return None;
            }
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
            for shift in 0..2 {
                let [a, b, c] = [UP, DOWN][shift];
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
