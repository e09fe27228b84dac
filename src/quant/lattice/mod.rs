//! Lattice types: groups of eight or four magnitudes (or ternary values) are stored as the index of
//! a point of a fixed lattice.
//!
//! [`grid`] finds points, [`points`] holds them; [`magnitudes`] is the search for a scale that
//! IQ2 and IQ3 share, [`splits`] that of IQ1; `iq1`, `iq2` and `iq3` know the layouts. All follow
//! `ggml-quants.c` operation by operation, its quirks included.

mod grid;
pub(super) mod iq1;
pub(super) mod iq2;
pub(super) mod iq3;
mod lanes;
mod magnitudes;
mod plain;
mod points;
mod splits;
mod wide;

use super::groups::{self, Grouped};
use super::guide::Guide;
use super::kernels::Blocks;
use super::search::ROWS;
use grid::{Grid, List, MAX_CODES};
use magnitudes::{MAX_CANDIDATES, Magnitudes, Sums, Trials};
use splits::{Prefixes, Split};
use std::marker::PhantomData;

/// The parts of the searches on which the time goes, plain or in lanes.
pub(super) trait Search: crate::quant::search::Search {
    /// Room for [`choose`](Self::choose), made once for many groups: clearing it takes time.
    type Scratch: Default;

    /// The points of a group for each of `count` falling scales and their inverses: packed codes, and
    /// whether the weights' own codes were those points already.
    fn choose<const D: usize>(
        group: &Magnitudes,
        grid: &Grid<D>,
        ids: &[f32; MAX_CANDIDATES],
        scales: &[f32; MAX_CANDIDATES],
        count: usize,
        scratch: &mut Self::Scratch,
    ) -> Trials;

    /// The sums of the first `count` candidates.
    fn sums<const D: usize>(group: &Magnitudes, trials: &Trials, count: usize) -> Sums;

    /// Of some points the one for which the sum of `w · (scale · values[code] - x)²` is smallest,
    /// the first of equals (`iq2_find_best_neighbour`, `iq3_find_best_neighbour`,
    /// `iq1_find_best_neighbour2`). For `D` of 8, the upper half of `values` repeats the lower.
    fn nearest<const D: usize>(
        around: List,
        values: &[f32; MAX_CODES],
        scale: f32,
        x: &[f32],
        w: &[f32],
    ) -> u16;

    /// The split and shift that are better than all others by more than rounding could change, so
    /// that the order in which they are compared is of no matter. `None` where there are none such
    /// and one has to look in order.
    fn clearly_best(prefixes: &Prefixes) -> Option<Split>;

    /// The same for groups of two halves with a shift each.
    fn clearly_best_of_two(halves: &[Prefixes; 2]) -> Option<Split>;
}

/// Weights in a super-block.
const N: usize = 256;

/// A format each of whose super-blocks is encoded by itself. To be inlined, as [`Blocks`].
trait SuperBlocks<const BYTES: usize> {
    /// What the mean of the squares of a super-block counts beside the square of a weight.
    const MEAN: f32;
    /// [`Search::Scratch`], where it is needed.
    type Scratch<S: Search>: Default;

    /// Encodes into zeros. `qw` are the importances of the super-block's columns, `sigma2` is what the
    /// mean of its squares counts.
    fn encode<S: Search>(
        x: &[f32; N],
        qw: Option<&[f32]>,
        sigma2: f32,
        scratch: &mut Self::Scratch<S>,
        out: &mut [u8; BYTES],
    );
}

/// The functions of such a format, whose groups have `G` weights.
struct Each<B, const G: usize, const BYTES: usize>(PhantomData<B>);

impl<B, const G: usize, const BYTES: usize> Blocks for Each<B, G, BYTES>
where
    B: SuperBlocks<BYTES> + Grouped<G, BYTES>,
{
    #[inline(always)]
    fn encode<S: Search>(x: &[f32], guide: Guide, out: &mut [u8]) {
        let qw = guide.columns();
        let mut squares = [0f32; ROWS];
        let mut scratch = B::Scratch::<S>::default();
        let (blocks, out) = (x.as_chunks::<N>().0, out.as_chunks_mut::<BYTES>().0);
        for b in 0..blocks.len() {
            if b % ROWS == 0 {
                squares = S::row_squares(&x[N * b..], N);
            }
            let sigma2 = B::MEAN * squares[b % ROWS] / N as f32;
            let qw = magnitudes::of_group::<N>(qw, N * b);
            out[b].fill(0);
            B::encode::<S>(&blocks[b], qw, sigma2, &mut scratch, &mut out[b]);
        }
    }

    #[inline(always)]
    fn decode(bytes: &[u8], out: &mut [f32]) {
        groups::decode::<B, N, G, BYTES>(bytes, out);
    }
}
