//! What IQ2 and IQ3 share: signs taken off, and the search for the scale of a group of magnitudes
//! `2·code + 1` that are points of a lattice.

use super::Search;
use super::grid::{Grid, MAX_CODES};
use crate::quant::search::nearest_int;

/// Largest group and most points in one.
pub(super) const MAX_GROUP: usize = 32;
const MAX_POINTS: usize = 8;
/// Room for all candidates, and for eight from any one of them on.
pub(super) const MAX_CANDIDATES: usize = 40;

/// A group of weights on its way to a scale and points.
pub(in crate::quant) struct Group {
    /// Magnitudes; slightly negative where a sign was given up for parity.
    pub x: [f32; MAX_GROUP],
    /// Weights of the errors.
    pub w: [f32; MAX_GROUP],
    /// Their roots, which weigh the choice of neighbours.
    pub root: [f32; MAX_GROUP],
    /// Signs of eight values each, bit set for negative.
    pub signs: [u8; 4],
    /// How many weights there are.
    pub n: usize,
}

/// The candidates for the inverse scale: `(base + i · step) / max` for `i` in `-n..=n`.
pub(in crate::quant) struct Candidates {
    pub base: f32,
    pub step: f32,
    pub n: i32,
    pub max: f32,
}

/// Which points are chosen anew for the best scale in the end.
#[derive(Clone, Copy, PartialEq)]
pub(in crate::quant) enum Refine {
    /// All.
    Always,
    /// Those whose codes were no point.
    OffGrid,
    /// All, if the codes of any were no point.
    AllIfOffGrid,
}

impl Group {
    /// Takes the signs off weights whose errors weigh `w`. With `even`, each eight get an even number of negative signs, at the
    /// cost of the value whose sign weighs least: it is stored with the wrong one.
    #[inline(always)]
    pub fn new(xs: &[f32], w: [f32; MAX_GROUP], even: bool) -> Self {
        let n = xs.len();
        let zero = [0f32; MAX_GROUP];
        let mut group = Self { x: zero, w, root: zero, signs: [0; 4], n };
        for (root, w) in group.root.iter_mut().zip(&group.w) {
            *root = w.sqrt();
        }
        for (magnitude, &x) in group.x.iter_mut().zip(xs) {
            *magnitude = if x < 0.0 { -x } else { x };
        }
        for (signs, xs) in group.signs.iter_mut().zip(xs.chunks_exact(8)) {
            *signs = (0..8).fold(0, |signs, i| signs | u8::from(xs[i] < 0.0) << i);
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
    #[inline(always)]
    pub fn max(&self) -> f32 {
        let mut most = [0f32; 8];
        for x in self.x[..self.n].as_chunks::<8>().0 {
            for (most, &x) in most.iter_mut().zip(x) {
                *most = if *most > x { *most } else { x };
            }
        }
        most.into_iter().fold(0.0, |max, x| if max > x { max } else { x })
    }

    /// Inverts all signs, for a scale that came out negative.
    pub fn flip(&mut self, mask: u8) {
        self.signs.iter_mut().for_each(|signs| *signs = !*signs & mask);
    }

    /// The scale and points with the least weighted squared error among the candidates, of which
    /// the best is refined. `scale` is what stands if no candidate is better than nothing.
    #[inline(always)]
    pub fn search<S: Search, const D: usize>(
        &self,
        grid: &Grid<D>,
        candidates: &Candidates,
        mut scale: f32,
        refine: Refine,
        points: &mut [u16],
        scratch: &mut S::Scratch,
    ) -> f32 {
        let count = 2 * candidates.n as usize + 1;
        let (mut ids, mut scales) = ([0f32; MAX_CANDIDATES], [0f32; MAX_CANDIDATES]);
        for (t, (id, scale)) in ids.iter_mut().zip(&mut scales).enumerate() {
            let i = t as i32 - candidates.n;
            *id = (candidates.base + i as f32 * candidates.step) / candidates.max;
            *scale = 1.0 / *id;
        }
        let mut trials = S::choose(self, grid, &ids, &scales, count, scratch);
        let sums = S::sums::<D>(self, &trials, count);
        let mut best = 0f32;
        let mut chosen = None;
        for (t, (&sumqx, &sumq2)) in sums.qx[..count].iter().zip(&sums.q2).enumerate() {
            if sumq2 > 0.0 && sumqx * sumqx > best * sumq2 {
                scale = sumqx / sumq2;
                best = scale * sumqx;
                chosen = Some(t);
            }
        }
        // What is chosen moves to the first place.
        let all = 0xffu8 >> (8 - points.len());
        let mut on_grid = all;
        if let Some(t) = chosen {
            on_grid = trials.on_grid(t);
            trials.points.iter_mut().for_each(|points| points[0] = points[t]);
        } else {
            for (trials, &point) in trials.points.iter_mut().zip(points.iter()) {
                trials[0] = grid.packed(point);
            }
            // Before any candidate is taken, IQ3_S counts all points as off the grid.
            if refine == Refine::AllIfOffGrid {
                on_grid = 0;
            }
        }
        if (refine == Refine::Always || on_grid != all) && scale > 0.0 {
            let (id, scales) = ([1.0 / scale; MAX_CANDIDATES], [scale; MAX_CANDIDATES]);
            let again = S::choose(self, grid, &id, &scales, 1, scratch);
            for (k, (points, again)) in trials.points.iter_mut().zip(&again.points).enumerate() {
                if refine != Refine::OffGrid || on_grid >> k & 1 == 0 {
                    points[0] = again[0];
                }
            }
            let sums = S::sums::<D>(self, &trials, 1);
            if sums.q2[0] > 0.0 {
                scale = sums.qx[0] / sums.q2[0];
            }
        }
        for (point, trials) in points.iter_mut().zip(&trials.points) {
            *point = grid.index(trials[0]);
        }
        scale
    }
}

/// The points of a group for every candidate.
pub(in crate::quant) struct Trials {
    /// Packed codes of a point, candidate after candidate.
    pub points: [[u16; MAX_CANDIDATES]; MAX_POINTS],
    /// For each point, bit `t` set where the codes of the weights for candidate `t` are the point.
    pub is_point: [u32; MAX_POINTS],
}

impl Trials {
    #[inline(always)]
    pub fn new() -> Self {
        Self { points: [[0; MAX_CANDIDATES]; MAX_POINTS], is_point: [0; MAX_POINTS] }
    }

    /// Bit `k` set where point `k` of candidate `t` is what the weights' own codes say.
    fn on_grid(&self, t: usize) -> u8 {
        (0..MAX_POINTS).fold(0, |bits, k| bits | ((self.is_point[k] >> t & 1) as u8) << k)
    }
}

/// Sums for each candidate, from which its scale and error follow.
pub(in crate::quant) struct Sums {
    /// Of `w · x · q`.
    pub qx: [f32; MAX_CANDIDATES],
    /// Of `w · q²`.
    pub q2: [f32; MAX_CANDIDATES],
}

/// The magnitudes of codes, as the search counts them, `2·code + 1`: for points of four codes and
/// for points of eight, whose packed codes are looked up with a bit of the next one.
pub(super) const MAGNITUDES: [[f32; MAX_CODES]; 2] =
    [[1.0, 3.0, 5.0, 7.0, 9.0, 11.0, 13.0, 15.0], [1.0, 3.0, 5.0, 7.0, 1.0, 3.0, 5.0, 7.0]];

/// The weights of a group's errors: by importance where there is one.
#[inline(always)]
pub(super) fn weigh(
    x: &[f32],
    qw: Option<&[f32]>,
    sigma2: f32,
    otherwise: f32,
) -> [f32; MAX_GROUP] {
    let mut weights = [0f32; MAX_GROUP];
    let blocks = weights.as_chunks_mut::<8>().0.iter_mut().zip(x.as_chunks::<8>().0);
    match qw {
        Some(qw) => {
            for ((w, x), qw) in blocks.zip(qw.as_chunks::<8>().0) {
                for i in 0..8 {
                    w[i] = qw[i] * (sigma2 + x[i] * x[i]).sqrt();
                }
            }
        }
        None => {
            for (w, x) in blocks {
                for i in 0..8 {
                    w[i] = otherwise + x[i] * x[i];
                }
            }
        }
    }
    weights
}

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
