//! Points are searched for as the reference does, also where scales are searched for more widely.

use super::Search;
use super::grid::{Grid, List, MAX_CODES};
use super::magnitudes::{MAX_CANDIDATES, Magnitudes, Sums, Trials};
use super::splits::{Prefixes, Split};
use crate::quant::wide::Wide;

impl<S: Search> Search for Wide<S> {
    type Scratch = S::Scratch;

    #[inline(always)]
    fn choose<const D: usize>(
        group: &Magnitudes,
        grid: &Grid<D>,
        ids: &[f32; MAX_CANDIDATES],
        scales: &[f32; MAX_CANDIDATES],
        count: usize,
        scratch: &mut Self::Scratch,
    ) -> Trials {
        S::choose(group, grid, ids, scales, count, scratch)
    }

    #[inline(always)]
    fn sums<const D: usize>(group: &Magnitudes, trials: &Trials, count: usize) -> Sums {
        S::sums::<D>(group, trials, count)
    }

    #[inline(always)]
    fn nearest<const D: usize>(
        around: List,
        values: &[f32; MAX_CODES],
        scale: f32,
        x: &[f32],
        w: &[f32],
    ) -> u16 {
        S::nearest::<D>(around, values, scale, x, w)
    }

    #[inline(always)]
    fn clearly_best(prefixes: &Prefixes) -> Option<Split> {
        S::clearly_best(prefixes)
    }

    #[inline(always)]
    fn clearly_best_of_two(halves: &[Prefixes; 2]) -> Option<Split> {
        S::clearly_best_of_two(halves)
    }
}
