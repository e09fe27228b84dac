//! Finding the point of a lattice that stands for given codes.
//!
//! Codes that are no point have a list of neighbours: the points at the smallest distances, of
//! which the nearest under the weights is taken. The list of a point is the point alone. The lists are built once per lattice, on first
//! use (`iq2xs_init_impl`, `iq3xs_init_impl`); those of all six take 10 MiB.

use super::points;
use std::sync::OnceLock;

/// Most codes of a coordinate.
pub(super) const MAX_CODES: usize = 8;
/// Room for the longest list.
pub(super) const MAX_LIST: usize = 320;

/// A lattice in `D` dimensions.
///
/// A point is known by its index, which is stored, and by its codes, packed in `BITS` bits each
/// from the lowest on, with which the searches work.
pub(in crate::quant) struct Grid<const D: usize> {
    /// Codes of each point.
    pub codes: Vec<[u8; D]>,
    /// How many codes there are.
    pub n_codes: u8,
    /// By packed codes: where their list is in `neighbours`; inverted if they are no point.
    map: Vec<i32>,
    /// Lists of packed codes, each after the number of its points. Points are repeated until the
    /// length is a multiple of eight.
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
        let mut distances = vec![0u16; codes.len()];
        for (packed, &index) in (0..=u16::MAX).zip(&indexes) {
            let wanted: [u8; D] = Self::unpack(packed);
            // Combinations with codes that do not exist are never asked for.
            if wanted.iter().any(|&c| c >= n_codes) {
                continue;
            }
            let start = neighbours.len();
            let place = &mut map[usize::from(packed)];
            if index != u16::MAX {
                *place = start as i32;
                neighbours.push(1);
                neighbours.extend([packed; 8]);
                continue;
            }
            for (distance, point) in distances.iter_mut().zip(&codes) {
                *distance = 0;
                for i in 0..D {
                    let apart = u16::from(point[i].abs_diff(wanted[i]));
                    *distance += apart * apart;
                }
            }
            *place = !(start as i32);
            neighbours.push(0);
            let mut nearest = distances.iter().copied().min();
            for _ in 0..n_distances {
                let Some(distance) = nearest else { break };
                let at = distances.iter().zip(points).filter(|&(&d, _)| d == distance);
                neighbours.extend(at.map(|(_, &point)| point));
                nearest = distances.iter().copied().filter(|&d| d > distance).min();
            }
            let n = neighbours.len() - start - 1;
            assert!(n <= MAX_LIST, "a list has room");
            neighbours[start] = n as u16;
            let nearest = neighbours[start + 1];
            neighbours.resize(start + 1 + n.next_multiple_of(8), nearest);
        }
        Self { codes, n_codes, map, neighbours, indexes }
    }

    /// The codes that are packed.
    #[inline(always)]
    pub fn unpack(packed: u16) -> [u8; D] {
        let mut codes = [0; D];
        for i in 0..D {
            codes[i] = (packed >> (Self::BITS * i)) as u8 & ((1 << Self::BITS) - 1);
        }
        codes
    }

    /// The codes of a point, packed.
    #[inline(always)]
    pub fn packed(&self, index: u16) -> u16 {
        Self::pack(&self.codes[usize::from(index)])
    }

    /// The point with these packed codes.
    #[inline(always)]
    pub fn index(&self, packed: u16) -> u16 {
        self.indexes[usize::from(packed)]
    }

    /// Codes in one number.
    #[inline(always)]
    pub fn pack(codes: &[u8; D]) -> u16 {
        let mut packed = 0;
        for i in (0..D).rev() {
            packed = packed << Self::BITS | u16::from(codes[i]);
        }
        packed
    }

    /// The points around these packed codes, and whether the codes are a point. No branch:
    /// which it is can hardly be predicted.
    #[inline(always)]
    pub fn around(&self, packed: u16) -> (List<'_>, bool) {
        let place = self.map[usize::from(packed)];
        let start = (place ^ (place >> 31)) as usize;
        let list = &self.neighbours[start..];
        let n = usize::from(list[0]);
        (List { n, padded: &list[1..1 + n.next_multiple_of(8)] }, place >= 0)
    }
}

/// Packed codes of at least one point, in the reference's order.
#[derive(Clone, Copy)]
pub(in crate::quant) struct List<'a> {
    /// How many there are.
    pub n: usize,
    /// All of them, and then some again, up to a multiple of eight.
    pub padded: &'a [u16],
}

impl<'a> List<'a> {
    /// Each point once.
    pub fn points(self) -> &'a [u16] {
        &self.padded[..self.n]
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
            let (list, is_point) = grid.around(Grid::<4>::pack(&codes));
            assert!(is_point && list.n == 1 && list.padded == [packed; 8]);
            assert_eq!(Grid::<4>::unpack(packed), codes);
            assert_eq!(grid.index(packed), i as u16);
        }
        let around = |codes| grid.around(Grid::<4>::pack(&codes));
        let off = (0..4096).map(Grid::<4>::unpack).find(|&c| !around(c).1).unwrap();
        let neighbours = around(off).0.points();
        let distance = |&packed: &u16| -> i32 {
            let apart = |(a, b): (u8, u8)| (i32::from(a) - i32::from(b)).pow(2);
            Grid::<4>::unpack(packed).into_iter().zip(off).map(apart).sum()
        };
        let distances: Vec<i32> = neighbours.iter().map(distance).collect();
        assert!(distances.is_sorted());
        let mut distinct = distances.clone();
        distinct.dedup();
        assert_eq!(distinct.len(), 3);
    }
}
