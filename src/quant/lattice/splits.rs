//! The search of IQ1: the ascending values of a group are split in three, which get the codes 0, 1
//! and 2; every way to split and every shift is tried.
//!
//! [`Search::clearly_best`] and [`Search::clearly_best_of_two`] find the best way wherever the order
//! in which the reference tries them is of no matter; elsewhere they are tried here in its order.

use super::Search;

/// By how much values are shifted up or down.
pub(super) const DELTA: f32 = 0.125;
/// The values of codes with the shift up, and down.
pub(super) const UP: [f32; 3] = [-1.0 + DELTA, DELTA, 1.0 + DELTA];
pub(super) const DOWN: [f32; 3] = [-1.0 - DELTA, -DELTA, 1.0 - DELTA];

/// Largest group, and as many places after the last prefix that eight can be read from any.
const PLACES: usize = 32 + 8;

/// Sums over the first values in ascending order.
pub(in crate::quant) struct Prefixes {
    /// Of `w · x`.
    pub x: [f32; PLACES],
    /// Of `w`.
    pub w: [f32; PLACES],
    /// How many values there are.
    pub n: usize,
}

impl Prefixes {
    /// Of the values at `from..to`.
    #[inline(always)]
    fn new(x: &[f32], w: &[f32], order: &[u8], from: usize, to: usize) -> Self {
        // Zeros for the others change no sum, and need no branch that nothing could foretell.
        let (mut of_x, mut of_w) = ([0f32; 32], [0f32; 32]);
        for i in from..to {
            of_x[i] = w[i] * x[i];
            of_w[i] = w[i];
        }
        let mut sums = Self { x: [0.0; PLACES], w: [0.0; PLACES], n: order.len() };
        let (mut sum_x, mut sum_w) = (0f32, 0f32);
        for place in 0..order.len() {
            let i = order[place];
            sum_x += of_x[usize::from(i) % 32];
            sum_w += of_w[usize::from(i) % 32];
            sums.x[place + 1] = sum_x;
            sums.w[place + 1] = sum_w;
        }
        sums
    }

    /// `Σ w·q·x` and `Σ w·q²` of a split, for the values of one shift.
    #[inline(always)]
    pub fn sums(&self, first: usize, second: usize, [a, b, c]: [f32; 3]) -> (f32, f32) {
        let (x, w, n) = (&self.x, &self.w, self.n);
        let x = [x[first] - x[0], x[second] - x[first], x[n] - x[second]];
        let w = [w[first] - w[0], w[second] - w[first], w[n] - w[second]];
        (x[0] * a + x[1] * b + x[2] * c, w[0] * a * a + w[1] * b * b + w[2] * c * c)
    }

    /// The same for prefixes over one half of a group. Values are one apart, so a split's sum is
    /// the total times the last value less two prefixes.
    #[inline(always)]
    pub fn sums_of_half(&self, first: usize, second: usize, v: [f32; 3]) -> (f32, f32) {
        let (x, w, n) = (&self.x, &self.w, self.n);
        let (c1, c2) = steps(v);
        let qx = x[n] * v[2] - (x[first] + x[second]);
        (qx, w[n] * v[2] * v[2] + w[first] * c1 + w[second] * c2)
    }
}

/// By how much the squares of the values differ.
#[inline(always)]
pub(super) fn steps(v: [f32; 3]) -> (f32, f32) {
    (v[0] * v[0] - v[1] * v[1], v[1] * v[1] - v[2] * v[2])
}

/// The sums of the four pairs of shifts: up/up, up/down, down/up, down/down.
#[inline(always)]
pub(super) fn of_pairs(halves: &[Prefixes; 2], first: usize, second: usize) -> [(f32, f32); 4] {
    let [a, b] = halves;
    let a = [a.sums_of_half(first, second, UP), a.sums_of_half(first, second, DOWN)];
    let b = [b.sums_of_half(first, second, UP), b.sums_of_half(first, second, DOWN)];
    let mut pairs = [(0.0, 0.0); 4];
    for pair in 0..4 {
        pairs[pair] = (a[pair / 2].0 + b[pair % 2].0, a[pair / 2].1 + b[pair % 2].1);
    }
    pairs
}

/// A way to split a group, and to shift its parts.
#[derive(Clone, Copy)]
pub(in crate::quant) struct Split {
    /// Place of the first value with code 1.
    pub first: usize,
    /// Place of the first value with code 2.
    pub second: usize,
    /// Index of the shift, down second, or of the pair of shifts.
    pub shift: usize,
}

/// Scale, places and direction of the shift that minimise the weighted squared error over all ways
/// to split the ascending values in three.
#[inline(always)]
pub(super) fn best<S: Search>(x: &[f32], w: &[f32; 32], order: &[u8; 32]) -> Option<(f32, Split)> {
    let prefixes = Prefixes::new(x, w, order, 0, 32);
    match S::clearly_best(&prefixes) {
        Some(split) => {
            let values = [UP, DOWN][split.shift];
            let (sumqx, sumq2) = prefixes.sums(split.first, split.second, values);
            Some((sumqx / sumq2, split))
        }
        None => in_order(32, |first, second| {
            [prefixes.sums(first, second, UP), prefixes.sums(first, second, DOWN)]
        }),
    }
}

/// As [`best`], with a shift for each half of the group; sums are kept for the halves apart.
#[inline(always)]
pub(super) fn best_of_two<S: Search>(
    x: &[f32],
    w: &[f32; 16],
    order: &[u8; 16],
) -> Option<(f32, Split)> {
    let halves = [Prefixes::new(x, w, order, 0, 8), Prefixes::new(x, w, order, 8, 16)];
    match S::clearly_best_of_two(&halves) {
        Some(split) => {
            let (sumqx, sumq2) = of_pairs(&halves, split.first, split.second)[split.shift];
            Some((sumqx / sumq2, split))
        }
        None => in_order(16, |first, second| of_pairs(&halves, first, second)),
    }
}

/// Tries all splits of `n` values in the reference's order, with the sums of each of their shifts.
fn in_order<const SHIFTS: usize>(
    n: usize,
    sums: impl Fn(usize, usize) -> [(f32, f32); SHIFTS],
) -> Option<(f32, Split)> {
    let mut best = -f32::MAX;
    let mut found = None;
    for first in 0..=n {
        for second in first..=n {
            for (shift, (sumqx, sumq2)) in sums(first, second).into_iter().enumerate() {
                if sumq2 > 0.0 && sumqx * sumqx > best * sumq2 {
                    let scale = sumqx / sumq2;
                    best = scale * sumqx;
                    found = Some((scale, Split { first, second, shift }));
                }
            }
        }
    }
    found
}
