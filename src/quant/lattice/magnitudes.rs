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

/// Eight signed magnitudes as signs, bit set for negative, and points: for whoever has chosen them in another way.
#[inline(always)]
pub(super) fn taken_apart<const D: usize, const POINTS: usize>(
    grid: &Grid<D>,
    magnitudes: &[i8],
    numbers: &[u8; 8],
) -> (u8, [u16; POINTS]) {
    let (mut signs, mut points) = (0, [0; POINTS]);
    for k in 0..POINTS {
        let mut codes = [0; D];
        for i in 0..D {
            let number = numbers[D * k + i] as i8;
            signs |= u8::from(number < 0) << (D * k + i);
            let same = |&known: &i8| known == number.abs();
            codes[i] = magnitudes.iter().position(same).unwrap_or(0) as u8;
        }
        points[k] = grid.index(Grid::pack(&codes));
    }
    (signs, points)
}

/// Writes seven signs of the `k`th eight weights into a word of four times seven and a scale.
#[inline(always)]
pub(super) fn put_seven(signs: u8, k: usize, word: &mut [u8]) {
    if let Some(bytes) = word.first_chunk_mut::<4>() {
        let others = u32::from_le_bytes(*bytes) & !(127 << (7 * k));
        *bytes = (others | u32::from(signs & 127) << (7 * k)).to_le_bytes();
    }
}

/// A group of weights on its way to a scale and points.
pub(in crate::quant) struct Magnitudes {
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

impl Magnitudes {
    /// Takes the signs off weights whose errors weigh `w`. With `even`, each eight get an even number of negative signs, at the
    /// cost of the value whose sign weighs least: it is stored with the wrong one.
    #[inline(always)]
    pub fn new(xs: &[f32], w: [f32; MAX_GROUP], even: bool) -> Self {
        let n = xs.len();
        let zero = [0f32; MAX_GROUP];
        let mut group = Self { x: zero, w, root: zero, signs: [0; 4], n };
        for i in 0..MAX_GROUP {
            group.root[i] = w[i].sqrt();
        }
        let xs = xs.as_chunks::<8>().0;
        for k in 0..xs.len() {
            let x = xs[k];
            for i in 0..8 {
                group.x[8 * k + i] = if x[i] < 0.0 { -x[i] } else { x[i] };
                group.signs[k] |= u8::from(x[i] < 0.0) << i;
            }
            if !even {
                continue;
            }
            if group.signs[k].count_ones() % 2 == 1 {
                let (mut cheapest, mut least) = (0, w[8 * k] * x[0] * x[0]);
                for i in 1..8 {
                    let cost = w[8 * k + i] * x[i] * x[i];
                    if cost < least {
                        (cheapest, least) = (i, cost);
                    }
                }
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
            for i in 0..8 {
                most[i] = if most[i] > x[i] { most[i] } else { x[i] };
            }
        }
        let mut max = 0.0;
        for most in most {
            max = if max > most { max } else { most };
        }
        max
    }

    /// Inverts all signs, for a scale that came out negative.
    #[inline(always)]
    pub fn flip(&mut self, mask: u8) {
        for signs in &mut self.signs {
            *signs = !*signs & mask;
        }
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
        for t in 0..MAX_CANDIDATES {
            let i = t as i32 - candidates.n;
            ids[t] = (candidates.base + i as f32 * candidates.step) / candidates.max;
            scales[t] = 1.0 / ids[t];
        }
        let mut trials = S::choose(self, grid, &ids, &scales, count, scratch);
        let sums = S::sums::<D>(self, &trials, count);
        let mut best = 0f32;
        let mut chosen = None;
        for t in 0..count {
            let (sumqx, sumq2) = (sums.qx[t], sums.q2[t]);
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
            for points in &mut trials.points {
                points[0] = points[t];
            }
        } else {
            for k in 0..points.len() {
                trials.points[k][0] = grid.packed(points[k]);
            }
            // Before any candidate is taken, IQ3_S counts all points as off the grid.
            if refine == Refine::AllIfOffGrid {
                on_grid = 0;
            }
        }
        if (refine == Refine::Always || on_grid != all) && scale > 0.0 {
            let (id, scales) = ([1.0 / scale; MAX_CANDIDATES], [scale; MAX_CANDIDATES]);
            let again = S::choose(self, grid, &id, &scales, 1, scratch);
            for k in 0..MAX_POINTS {
                if refine != Refine::OffGrid || on_grid >> k & 1 == 0 {
                    trials.points[k][0] = again.points[k][0];
                }
            }
            let sums = S::sums::<D>(self, &trials, 1);
            if sums.q2[0] > 0.0 {
                scale = sums.qx[0] / sums.q2[0];
            }
        }
        for k in 0..points.len() {
            points[k] = grid.index(trials.points[k][0]);
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
    #[inline(always)]
    fn on_grid(&self, t: usize) -> u8 {
        let mut bits = 0;
        for k in 0..MAX_POINTS {
            bits |= ((self.is_point[k] >> t & 1) as u8) << k;
        }
        bits
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

/// The importances of a group of `G` weights from `at` on.
#[inline(always)]
pub(super) fn of_group<const G: usize>(qw: Option<&[f32]>, at: usize) -> Option<&[f32]> {
    match qw {
        Some(qw) => Some(&qw[at..][..G]),
        None => None,
    }
}

/// The largest of scales that are not negative.
#[inline(always)]
pub(super) fn largest(scales: &[f32]) -> f32 {
    let mut max = 0f32;
    for &scale in scales {
        max = if max > scale { max } else { scale };
    }
    max
}

/// Two scale codes to a byte.
#[inline(always)]
pub(super) fn pack_scales(id: f32, scales: &[f32], out: &mut [u8]) {
    for j in 0..scales.len() / 2 {
        let [a, b] = [scales[2 * j], scales[2 * j + 1]];
        out[j] = scale_code(id, a, 15) | scale_code(id, b, 15) << 4;
    }
}

/// The code of group `g` among those of [`pack_scales`].
#[inline(always)]
pub(super) fn nibble(scales: &[u8], g: usize) -> u8 {
    scales[g / 2] >> (4 * (g % 2)) & 15
}

/// The weights of a group's errors: by importance where there is one.
#[inline(always)]
pub(super) fn weigh(
    x: &[f32],
    qw: Option<&[f32]>,
    sigma2: f32,
    otherwise: f32,
) -> [f32; MAX_GROUP] {
    let mut weights = [0f32; MAX_GROUP];
    let (w, x) = (weights.as_chunks_mut::<8>().0, x.as_chunks::<8>().0);
    match qw {
        Some(qw) => {
            let qw = &qw.as_chunks::<8>().0[..x.len()];
            for k in 0..x.len() {
                for i in 0..8 {
                    w[k][i] = qw[k][i] * (sigma2 + x[k][i] * x[k][i]).sqrt();
                }
            }
        }
        None => {
            for k in 0..x.len() {
                for i in 0..8 {
                    w[k][i] = otherwise + x[k][i] * x[k][i];
                }
            }
        }
    }
    weights
}

/// The code `0..=max` of a group's scale, where the largest scale is `31 / id`.
#[inline(always)]
pub(super) fn scale_code(id: f32, scale: f32, max: i32) -> u8 {
    nearest_int(0.5 * (id * scale - 1.0)).clamp(0, max) as u8
}

/// Eight signs of which the last one follows from even parity (`ksigns_iq2xs`).
#[inline(always)]
pub(super) fn with_parity(signs: u32) -> u8 {
    let signs = signs as u8 & 127;
    signs | (signs.count_ones() as u8 & 1) << 7
}

/// `code`, or its opposite where the bit is set.
#[inline(always)]
pub(super) fn signed(code: i8, signs: u8, bit: usize) -> i8 {
    // All ones where it is: the complement, and one.
    let negative = -((signs >> bit & 1) as i8);
    (code ^ negative) - negative
}
