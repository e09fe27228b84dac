//! Finding the point of a lattice that stands for given codes.
//!
//! Codes that are no point have a list of neighbours: the points at the smallest distances, of
//! which the nearest under the weights is taken. The lists are built once per lattice, on first
//! use (`iq2xs_init_impl`, `iq3xs_init_impl`); those of all six take 9 MiB.

use super::points;
use std::sync::OnceLock;

/// Most codes of a coordinate.
pub(super) const MAX_CODES: usize = 8;

/// A lattice in `D` dimensions.
pub(super) struct Grid<const D: usize> {
    /// Codes of each point.
    pub codes: Vec<[u8; D]>,
    /// How many codes there are.
    pub n_codes: u8,
    /// Point of each combination of codes, or `!start` of its list in `neighbours`.
    map: Vec<i32>,
    /// Lists, each a length and as many points.
    neighbours: Vec<u16>,
}

impl<const D: usize> Grid<D> {
    /// Bits of a code among those that index the map.
    const BITS: usize = 2 * 8 / D - (D == 4) as usize;

    fn new(points: &[u16], n_codes: u8, n_distances: usize) -> Self {
        let codes: Vec<[u8; D]> = points.iter().map(|&point| Self::unpack(point.into())).collect();
        let size = 1usize << (Self::BITS * D);
        let mut map = vec![i32::MAX; size];
        for (i, &point) in points.iter().enumerate() {
            map[usize::from(point)] = i as i32;
        }
        let mut neighbours = Vec::new();
        let mut distances: Vec<u16> = Vec::with_capacity(codes.len());
        for (packed, place) in map.iter_mut().enumerate() {
            let wanted: [u8; D] = Self::unpack(packed);
            // Combinations with codes that do not exist are never asked for.
            if *place != i32::MAX || wanted.iter().any(|&c| c >= n_codes) {
                continue;
            }
            distances.clear();
            distances.extend(codes.iter().map(|point| {
                let apart = |(&a, b): (&u8, u8)| u16::from(a.abs_diff(b)).pow(2);
                point.iter().zip(wanted).map(apart).sum::<u16>()
            }));
            let start = neighbours.len();
            *place = !(start as i32);
            neighbours.push(0);
            let mut nearest = distances.iter().copied().min();
            for _ in 0..n_distances {
                let Some(distance) = nearest else { break };
                let at = distances.iter().zip(0u16..).filter(|&(&d, _)| d == distance);
                neighbours.extend(at.map(|(_, i)| i));
                nearest = distances.iter().copied().filter(|&d| d > distance).min();
            }
            neighbours[start] = (neighbours.len() - start - 1) as u16;
        }
        Self { codes, n_codes, map, neighbours }
    }

    fn unpack(packed: usize) -> [u8; D] {
        std::array::from_fn(|i| (packed >> (Self::BITS * i)) as u8 & ((1 << Self::BITS) - 1))
    }

    /// The point with these codes, or the points around them.
    #[inline(always)]
    pub fn find(&self, codes: [u8; D]) -> Result<u16, &[u16]> {
        let packed = codes.iter().rev().fold(0, |packed, &c| packed << Self::BITS | usize::from(c));
        let place = self.map[packed];
        if place >= 0 {
            return Ok(place as u16);
        }
        let start = !place as usize;
        let length = usize::from(self.neighbours[start]);
        Err(&self.neighbours[start + 1..start + 1 + length])
    }

    /// Of some points the one for which the sum of `w · (scale · values[code] - x)²` is smallest,
    /// the first of equals (`iq2_find_best_neighbour`, `iq3_find_best_neighbour`,
    /// `iq1_find_best_neighbour2`).
    #[inline(always)]
    pub fn nearest(
        &self,
        among: &[u16],
        values: &[f32; MAX_CODES],
        scale: f32,
        x: &[f32],
        w: &[f32],
    ) -> u16 {
        // A coordinate's term depends on its code alone, so every term there can be is made once and
        // each distance is their sum, in the reference's order.
        let terms: [[f32; MAX_CODES]; D] = std::array::from_fn(|i| {
            values.map(|value| {
                let diff = scale * value - x[i];
                w[i] * diff * diff
            })
        });
        let mut best = f32::MAX;
        // No distance below the largest number: then nothing the reference would survive.
        let mut point = among[0];
        for &candidate in among {
            let codes = &self.codes[usize::from(candidate)];
            let mut distance = 0f32;
            for (terms, &code) in terms.iter().zip(codes) {
                distance += terms[usize::from(code) % MAX_CODES];
            }
            if distance < best {
                best = distance;
                point = candidate;
            }
        }
        point
    }
}

/// Defines a function that gives a lattice, built on first use.
macro_rules! grids {
    ($($name:ident: $dim:literal, $points:ident, $n_codes:literal, $n_distances:literal;)*) => {$(
        pub(super) fn $name() -> &'static Grid<$dim> {
            static GRID: OnceLock<Grid<$dim>> = OnceLock::new();
            GRID.get_or_init(|| Grid::new(&points::$points, $n_codes, $n_distances))
        }
    )*};
}

grids! {
    iq2_xxs: 8, IQ2_XXS, 3, 2;
    iq2_xs: 8, IQ2_XS, 3, 2;
    iq2_s: 8, IQ2_S, 3, 1;
    iq1: 8, IQ1, 3, 3;
    iq3_xxs: 4, IQ3_XXS, 8, 2;
    iq3_s: 4, IQ3_S, 8, 3;
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn points_are_found_and_others_have_neighbours_in_order() {
        let grid = iq3_s();
        for (i, &codes) in grid.codes.iter().enumerate() {
            assert_eq!(grid.find(codes), Ok(i as u16));
        }
        let off = (0..4096).map(Grid::<4>::unpack).find(|&c| grid.find(c).is_err()).unwrap();
        let neighbours = grid.find(off).unwrap_err();
        let distance = |&i: &u16| -> i32 {
            let apart = |(&a, b): (&u8, u8)| (i32::from(a) - i32::from(b)).pow(2);
            grid.codes[usize::from(i)].iter().zip(off).map(apart).sum()
        };
        let distances: Vec<i32> = neighbours.iter().map(distance).collect();
        assert!(distances.is_sorted());
        let mut distinct = distances.clone();
        distinct.dedup();
        assert_eq!(distinct.len(), 3);
    }
}
