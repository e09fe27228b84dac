//! The searches in plain arithmetic: the specification of what [`super::lanes`] does.

use super::Search;
use super::grid::{Grid, List, MAX_CODES};
use super::magnitudes::{MAGNITUDES, MAX_CANDIDATES, Magnitudes, Sums, Trials};
use super::splits::{Prefixes, Split};
use crate::quant::search::{Plain, nearest_int};

impl Search for Plain {
    type Scratch = ();

    #[inline(always)]
    fn choose<const D: usize>(
        group: &Magnitudes,
        grid: &Grid<D>,
        ids: &[f32; MAX_CANDIDATES],
        scales: &[f32; MAX_CANDIDATES],
        count: usize,
        _: &mut (),
    ) -> Trials {
        let mut trials = Trials::new();
        let last = i32::from(grid.n_codes) - 1;
        let points = group.x[..group.n].chunks_exact(D).zip(group.root.chunks_exact(D));
        for (k, (x, root)) in points.enumerate() {
            for (t, (&id, &scale)) in ids.iter().zip(scales).take(count).enumerate() {
                let codes: [u8; D] = std::array::from_fn(|i| {
                    nearest_int(0.5 * (id * x[i] - 1.0)).clamp(0, last) as u8
                });
                let (around, is_point) = grid.around(Grid::<D>::pack(&codes));
                let point = Self::nearest::<D>(around, &MAGNITUDES[D / 8], scale, x, root);
                trials.points[k][t] = point;
                trials.is_point[k] |= u32::from(is_point) << t;
            }
        }
        trials
    }

    #[inline(always)]
    fn sums<const D: usize>(group: &Magnitudes, trials: &Trials, count: usize) -> Sums {
        let mut sums = Sums { qx: [0.0; MAX_CANDIDATES], q2: [0.0; MAX_CANDIDATES] };
        let values = group.x[..group.n].iter().zip(&group.w);
        for t in 0..count {
            let codes = trials.points.iter().flat_map(|trials| Grid::<D>::unpack(trials[t]));
            for ((&x, &w), code) in values.clone().zip(codes) {
                let q = MAGNITUDES[D / 8][usize::from(code)];
                sums.qx[t] += w * x * q;
                sums.q2[t] += w * q * q;
            }
        }
        sums
    }

    #[inline(always)]
    fn nearest<const D: usize>(
        around: List,
        values: &[f32; MAX_CODES],
        scale: f32,
        x: &[f32],
        w: &[f32],
    ) -> u16 {
        let mut best = f32::MAX;
        // No distance below the largest number: then nothing the reference would survive.
        let mut nearest = around.points()[0];
        for &packed in around.points() {
            let mut distance = 0f32;
            for (i, code) in Grid::<D>::unpack(packed).into_iter().enumerate() {
                let diff = scale * values[usize::from(code)] - x[i];
                distance += w[i] * diff * diff;
            }
            if distance < best {
                best = distance;
                nearest = packed;
            }
        }
        nearest
    }

    fn clearly_best(_: &Prefixes) -> Option<Split> {
        None
    }

    fn clearly_best_of_two(_: &[Prefixes; 2]) -> Option<Split> {
        None
    }
}
