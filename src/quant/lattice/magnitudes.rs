//! What IQ2 and IQ3 share: signs taken off, and the search for the scale of a group of magnitudes
//! `2·code + 1` that are points of a lattice.

use super::grid::{Grid, MAX_CODES};
use crate::quant::search::nearest_int;

/// Largest group and most points in one.
pub(super) const MAX_GROUP: usize = 32;
const MAX_POINTS: usize = 8;

/// A group of weights on its way to a scale and points.
pub(super) struct Group {
    /// Magnitudes; slightly negative where a sign was given up for parity.
    pub x: [f32; MAX_GROUP],
    /// Weights of the errors.
    pub w: [f32; MAX_GROUP],
    /// Their roots, which weigh the choice of neighbours.
    pub root: [f32; MAX_GROUP],
    /// Signs of eight values each, bit set for negative.
    pub signs: [u8; 4],
    n: usize,
}

/// The candidates for the inverse scale: `(base + i · step) / max` for `i` in `-n..=n`.
pub(super) struct Candidates {
    pub base: f32,
    pub step: f32,
    pub n: i32,
    pub max: f32,
}

/// Which points are chosen anew for the best scale in the end.
#[derive(Clone, Copy, PartialEq)]
pub(super) enum Refine {
    /// All.
    Always,
    /// Those whose codes were no point.
    OffGrid,
    /// All, if the codes of any were no point.
    AllIfOffGrid,
}

impl Group {
    /// Takes the signs off. With `even`, each eight get an even number of negative signs, at the
    /// cost of the value whose sign weighs least: it is stored with the wrong one.
    #[inline(always)]
    pub fn new(xs: &[f32], weight: impl Fn(usize, f32) -> f32, even: bool) -> Self {
        let n = xs.len();
        let zero = [0f32; MAX_GROUP];
        let mut group = Self { x: zero, w: zero, root: zero, signs: [0; 4], n };
        for (i, &x) in xs.iter().enumerate() {
            group.w[i] = weight(i, x);
            group.root[i] = group.w[i].sqrt();
            let negative = x < 0.0;
            group.x[i] = if negative { -x } else { x };
            group.signs[i / 8] |= u8::from(negative) << (i % 8);
        }
        for (k, x) in xs.chunks_exact(8).enumerate().filter(|_| even) {
            if group.signs[k].count_ones() % 2 == 1 {
                let costs: [f32; 8] = std::array::from_fn(|i| group.w[8 * k + i] * x[i] * x[i]);
                let cheapest = (1..8).fold(0, |c, i| if costs[i] < costs[c] { i } else { c });
                group.x[8 * k + cheapest] = -group.x[8 * k + cheapest];
                group.signs[k] ^= 1 << cheapest;
            }
            group.signs[k] &= 127;
        }
        group
    }

    /// The largest magnitude.
    pub fn max(&self) -> f32 {
        self.x[1..self.n].iter().fold(self.x[0], |max, &x| if max > x { max } else { x })
    }

    /// Inverts all signs, for a scale that came out negative.
    pub fn flip(&mut self, mask: u8) {
        self.signs.iter_mut().for_each(|signs| *signs = !*signs & mask);
    }

    /// The scale and points with the least weighted squared error among the candidates, of which
    /// the best is refined. `scale` is what stands if no candidate is better than nothing.
    #[inline(always)]
    pub fn search<const D: usize>(
        &self,
        grid: &Grid<D>,
        candidates: &Candidates,
        mut scale: f32,
        refine: Refine,
        points: &mut [u16],
    ) -> f32 {
        let mut best = 0f32;
        // Before any candidate is taken, IQ3_S counts all points as off the grid.
        let mut on_grid = [refine != Refine::AllIfOffGrid; MAX_POINTS];
        let mut trial = [0u16; MAX_POINTS];
        let trial = &mut trial[..points.len()];
        let mut trial_on_grid = [true; MAX_POINTS];
        for i in -candidates.n..=candidates.n {
            let id = (candidates.base + i as f32 * candidates.step) / candidates.max;
            for (k, point) in trial.iter_mut().enumerate() {
                (*point, trial_on_grid[k]) = self.point(grid, k, id, 1.0 / id);
            }
            let (sumqx, sumq2) = self.sums(grid, trial);
            if sumq2 > 0.0 && sumqx * sumqx > best * sumq2 {
                scale = sumqx / sumq2;
                best = scale * sumqx;
                points.copy_from_slice(trial);
                on_grid = trial_on_grid;
            }
        }
        let off_grid = on_grid[..points.len()].contains(&false);
        if (refine == Refine::Always || off_grid) && scale > 0.0 {
            for (k, point) in points.iter_mut().enumerate() {
                if refine != Refine::OffGrid || !on_grid[k] {
                    *point = self.point(grid, k, 1.0 / scale, scale).0;
                }
            }
            let (sumqx, sumq2) = self.sums(grid, points);
            if sumq2 > 0.0 {
                scale = sumqx / sumq2;
            }
        }
        scale
    }

    /// The point for the `k`th `D` values at a scale, and whether their codes are one.
    #[inline(always)]
    fn point<const D: usize>(&self, grid: &Grid<D>, k: usize, id: f32, scale: f32) -> (u16, bool) {
        let x = &self.x[D * k..D * k + D];
        let last = i32::from(grid.n_codes) - 1;
        let codes: [u8; D] =
            std::array::from_fn(|i| nearest_int(0.5 * (id * x[i] - 1.0)).clamp(0, last) as u8);
        match grid.find(codes) {
            Ok(point) => (point, true),
            Err(around) => {
                (grid.nearest(around, &MAGNITUDES, scale, x, &self.root[D * k..D * k + D]), false)
            }
        }
    }

    #[inline(always)]
    fn sums<const D: usize>(&self, grid: &Grid<D>, points: &[u16]) -> (f32, f32) {
        let (mut sumqx, mut sumq2) = (0f32, 0f32);
        let values = points.iter().flat_map(|&point| grid.codes[usize::from(point)]);
        for ((&x, &w), code) in self.x.iter().zip(&self.w).zip(values) {
            let q = MAGNITUDES[usize::from(code) % MAX_CODES];
            sumqx += w * x * q;
            sumq2 += w * q * q;
        }
        (sumqx, sumq2)
    }
}

/// The magnitudes of codes, as the search counts them: `2·code + 1`.
const MAGNITUDES: [f32; MAX_CODES] = [1.0, 3.0, 5.0, 7.0, 9.0, 11.0, 13.0, 15.0];

/// The code `0..=max` of a group's scale, where the largest scale is `31 / id`.
pub(super) fn scale_code(id: f32, scale: f32, max: i32) -> u8 {
    nearest_int(0.5 * (id * scale - 1.0)).clamp(0, max) as u8
}

/// Eight signs of which the last one follows from even parity (`ksigns_iq2xs`).
pub(super) fn with_parity(signs: u32) -> u8 {
    let signs = signs as u8 & 127;
    signs | (signs.count_ones() as u8 & 1) << 7
}

/// `x`, or `-x` where the bit is set.
pub(super) fn signed(x: f32, signs: u8, bit: usize) -> f32 {
    x * if signs >> bit & 1 == 1 { -1.0 } else { 1.0 }
}
