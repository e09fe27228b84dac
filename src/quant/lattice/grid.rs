//! Finding the point of a lattice that stands for given codes.
//!
//! Codes that are no point have a list of neighbours: the points at the smallest distances, of
//! which the nearest under the weights is taken. The list of a point is the point alone. The lists are built once per lattice, on first
//! use (`iq2xs_init_impl`, `iq3xs_init_impl`); those of all six take 10 MiB.

use super::points;
use std::sync::OnceLock;

/// Most codes of a coordinate.
pub(super) const MAX_CODES: usize = 8;

/// A lattice in `D` dimensions.
///
/// A point is known by its index, which is stored, and by its codes, packed in `BITS` bits each
/// from the lowest on, with which the searches work.
pub(in crate::quant) struct Grid<const D: usize> {
    /// Codes of each point.
    pub codes: Vec<[u8; D]>,
    /// How many codes there are.
    pub n_codes: u8,
    /// By bit planes of codes: where their list is in `neighbours`; inverted if they are no point.
    map: Vec<i32>,
    /// Lists of packed codes, each after the number of them. Their lengths are multiples of eight;
    /// points are repeated as often as that takes.
    neighbours: Vec<u16>,
    /// Indexes of points by packed codes.
    indexes: Vec<u16>,
}

impl<const D: usize> Grid<D> {
    /// Bits of a packed code.
    pub const BITS: usize = 2 * 8 / D - (D == 4) as usize;

    fn new(points: &[u16], n_codes: u8, n_distances: usize) -> Self {
        let codes: Vec<[u8; D]> = points.iter().map(|&point| Self::unpack(point)).collect();
        let size = 1usize << (Self::BITS * D);
        let mut indexes = vec![u16::MAX; size];
        for (i, &point) in (0..).zip(points) {
            indexes[usize::from(point)] = i;
        }
        let mut map = vec![0; size];
        let mut neighbours = Vec::new();
        let mut distances: Vec<u16> = Vec::with_capacity(codes.len());
        for (packed, &index) in (0..=u16::MAX).zip(&indexes) {
            let wanted: [u8; D] = Self::unpack(packed);
            // Combinations with codes that do not exist are never asked for.
            if wanted.iter().any(|&c| c >= n_codes) {
                continue;
            }
            let start = neighbours.len();
            let place = &mut map[Self::planes(wanted)];
            if index != u16::MAX {
                *place = start as i32;
                neighbours.push(8);
                neighbours.extend([packed; 8]);
                continue;
            }
            distances.clear();
            distances.extend(codes.iter().map(|point| {
                let apart = |(&a, b): (&u8, u8)| u16::from(a.abs_diff(b)).pow(2);
                point.iter().zip(wanted).map(apart).sum::<u16>()
            }));
            *place = !(start as i32);
            neighbours.push(0);
            let mut nearest = distances.iter().copied().min();
            for _ in 0..n_distances {
                let Some(distance) = nearest else { break };
                let at = distances.iter().zip(points).filter(|&(&d, _)| d == distance);
                neighbours.extend(at.map(|(_, &point)| point));
                nearest = distances.iter().copied().filter(|&d| d > distance).min();
            }
            let length = (neighbours.len() - start - 1).next_multiple_of(8);
            while neighbours.len() < start + 1 + length {
                // The point eight places before, where there is one, loses against itself there.
                let filler = neighbours[(neighbours.len() - 8).max(start + 1)];
                neighbours.push(filler);
            }
            neighbours[start] = length as u16;
        }
        Self { codes, n_codes, map, neighbours, indexes }
    }

    /// The codes that are packed.
    #[inline(always)]
    pub fn unpack(packed: u16) -> [u8; D] {
        std::array::from_fn(|i| (packed >> (Self::BITS * i)) as u8 & ((1 << Self::BITS) - 1))
    }

    /// The codes of a point, packed.
    #[inline(always)]
    pub fn packed(&self, index: u16) -> u16 {
        let codes = &self.codes[usize::from(index)];
        codes.iter().rev().fold(0, |packed, &c| packed << Self::BITS | u16::from(c))
    }

    /// The point with these packed codes.
    #[inline(always)]
    pub fn index(&self, packed: u16) -> u16 {
        self.indexes[usize::from(packed)]
    }

    /// The lowest bits of all codes, then the second ones, then the third.
    #[inline(always)]
    pub fn planes(codes: [u8; D]) -> usize {
        (0..D).fold(0, |planes, i| {
            let bit = |plane: usize| usize::from(codes[i] >> plane & 1) << (D * plane + i);
            planes | bit(0) | bit(1) | bit(2)
        })
    }

    /// The points around these bit planes of codes, eight or a multiple, and whether the codes are
    /// a point. No branch: which it is can hardly be predicted.
    #[inline(always)]
    pub fn around(&self, planes: usize) -> (&[u16], bool) {
        let place = self.map[planes];
        let start = (place ^ (place >> 31)) as usize;
        let list = &self.neighbours[start..];
        (&list[1..1 + usize::from(list[0])], place >= 0)
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
            let packed = grid.packed(i as u16);
            assert_eq!(grid.around(Grid::<4>::planes(codes)), (&[packed; 8][..], true));
            assert_eq!(Grid::<4>::unpack(packed), codes);
            assert_eq!(grid.index(packed), i as u16);
        }
        let around = |codes| grid.around(Grid::<4>::planes(codes));
        let off = (0..4096).map(Grid::<4>::unpack).find(|&c| !around(c).1).unwrap();
        let neighbours = around(off).0;
        let distance = |&packed: &u16| -> i32 {
            let apart = |(a, b): (u8, u8)| (i32::from(a) - i32::from(b)).pow(2);
            Grid::<4>::unpack(packed).into_iter().zip(off).map(apart).sum()
        };
        let mut seen = std::collections::HashSet::new();
        let once = neighbours.iter().filter(|&point| seen.insert(point));
        let distances: Vec<i32> = once.map(distance).collect();
        assert!(distances.is_sorted());
        let mut distinct = distances.clone();
        distinct.dedup();
        assert_eq!(distinct.len(), 3);
    }
}
