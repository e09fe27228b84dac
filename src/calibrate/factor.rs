//! Second moments of a matrix's inputs, factored so that the error of one block of columns can be made
//! up for by the blocks before it.
//!
//! With H = L·D·Lᵀ, L unit lower triangular in blocks of columns, the error that rounding causes in a
//! row's products is tr(Δ·H·Δᵀ) = Σ η·D·ηᵀ over the blocks, where η is what a block's rounding leaves of
//! its target: the weights and what the errors of later blocks ask for. So each block is rounded to its
//! target, the last one first. This is OPTQ (Frantar et al. 2022, arXiv:2210.17323) in the form of
//! LDLQ (Chee et al. 2023, arXiv:2307.13304).

use crate::eval::gemm::{Panels, pack, packed_len};
use crate::simd::Simd;
use ndarray::{Array2, ArrayView2, ArrayViewMut2, Axis, CowArray, s};
use rayon::prelude::*;
use std::ops::Range;

/// Columns of a block: what most types store together, and a whole number of blocks of all others.
pub(crate) const BLOCK: usize = 256;

/// Damped second moments and their factors.
pub(crate) struct Factored {
    /// L of the blocks that follow each block, and D.
    blocks: Vec<Block>,
    /// Rows of the damped moments themselves.
    moments: Vec<Block>,
    simd: Simd,
}

/// What is needed to round a block of columns.
pub(crate) struct Block {
    pub columns: Range<usize>,
    /// What errors are multiplied with, and of which columns.
    feedback: Vec<f32>,
    of: Range<usize>,
    /// Its own part of the error.
    pub metric: Metric,
}

/// A metric of the errors of a block.
pub(crate) struct Metric {
    /// Columns.
    pub n: usize,
    /// The metric itself, in panels and as it is.
    panels: Vec<f32>,
    /// M of M·E·Mᵀ, unit lower triangular: the metric factored column by column. Transposed, so that
    /// a row has what the errors of the columns after it ask of one.
    pub unit: Vec<f32>,
    /// E of M·E·Mᵀ.
    pub diagonal: Vec<f32>,
    /// N of the inverse, Nᵀ·N, lower triangular, in panels, and transposed. Products with the inverse
    /// itself would lose what both factors keep.
    root: [Vec<f32>; 2],
    /// L in blocks of 32 columns, transposed as well.
    pub by_32: Vec<f32>,
}

impl Factored {
    /// Factors moments, whose lower triangle is written over, after adding a share of the mean of the
    /// diagonal to it. Where there are fewer columns than rows, they are parts below each other, each of as many
    /// columns, that have nothing to do with each other. `None` where they have no factors.
    pub fn new(mut h: Array2<f32>, damping: f32, simd: Simd) -> Option<Self> {
        let (n, part) = h.dim();
        let diagonal = (0..n).map(|i| f64::from(h[[i, i % part]]));
        let mean = diagonal.sum::<f64>() / n.max(1) as f64;
        if !(mean.is_finite() && mean > 0.0) {
            return None;
        }
        let mut factors = Self { blocks: Vec::new(), moments: Vec::new(), simd };
        for (i, mut h) in h.axis_chunks_iter_mut(Axis(0), part).enumerate() {
            let n = h.nrows();
            let mut h = h.slice_mut(s![.., ..n]);
            h.diag_mut().mapv_inplace(|x| x + (f64::from(damping) * mean) as f32);
            factors.add(h, i * part)?;
        }
        Some(factors)
    }

    /// Adds the factors of a part that begins at a column.
    fn add(&mut self, mut h: ArrayViewMut2<f32>, first: usize) -> Option<()> {
        let n = h.nrows();
        mirror(h.view_mut());
        let ranges = || (0..n).step_by(BLOCK).map(|first| first..n.min(first + BLOCK));
        let rows = |columns: Range<usize>| {
            let metric = Metric::new(h.slice(s![columns.clone(), columns.clone()]))?;
            let feedback = panels(h.slice(s![columns.clone(), ..]));
            Some(Block { columns, feedback, of: 0..n, metric })
        };
        let moments = ranges().collect::<Vec<_>>().into_par_iter().map(rows);
        let moments = moments.collect::<Option<Vec<_>>>()?;
        let blocks = ranges().map(|columns| eliminate(h.view_mut(), columns, self.simd));
        let blocks = blocks.collect::<Option<Vec<_>>>()?;
        self.moments.extend(moments.into_iter().map(|block| block.behind(first)));
        self.blocks.extend(blocks.into_iter().map(|block| block.behind(first)));
        Some(())
    }

    /// Bytes that the factors of so many columns, in parts of some of them, take at most, moments included.
    pub fn memory(n: u64, part: u64) -> u64 {
        // The moments, their rows in panels, half as much for L, and a little for each block.
        4 * n * part * 5 / 2 + 16 * n * BLOCK as u64
    }

    /// The blocks, for rounding from the last one on.
    pub fn blocks(&self) -> &[Block] {
        &self.blocks
    }

    /// Rows of the moments, for rounding one block while all others stay.
    pub fn moments(&self) -> &[Block] {
        &self.moments
    }

    /// tr(Δ·H·Δᵀ) of each row, or what some blocks have of it, where that is more than `enough` of the row. The last
    /// blocks come first, which have the fewest others to make up for.
    pub fn errors(&self, delta: ArrayView2<f32>, enough: Option<&[f64]>) -> Vec<f64> {
        let mut errors = vec![0.0; delta.nrows()];
        let (mut delta, mut rows) = (CowArray::from(delta), (0..delta.nrows()).collect::<Vec<_>>());
        for block in self.blocks.iter().rev() {
            let mut eta = block.feedback(delta.view(), self.simd);
            eta += &delta.slice(s![.., block.columns.clone()]);
            let mut of_block = vec![0.0; rows.len()];
            block.metric.add_errors(eta.view(), self.simd, &mut of_block);
            rows.iter().zip(of_block).for_each(|(&row, error)| errors[row] += error);
            let Some(enough) = enough else { continue };
            let decided = |row: usize| errors[row] > enough[row];
            let open: Vec<usize> = (0..rows.len()).filter(|&i| !decided(rows[i])).collect();
            // Copying rows pays when many are decided.
            if open.len() * 4 < rows.len() * 3 {
                delta = delta.select(Axis(0), &open).into();
                rows = open.into_iter().map(|i| rows[i]).collect();
            }
        }
        errors
    }
}

impl Block {
    /// What the errors of other columns ask of this block's, for each row.
    pub fn feedback(&self, delta: ArrayView2<f32>, simd: Simd) -> Array2<f32> {
        times(delta.slice(s![.., self.of.clone()]), &self.feedback, self.columns.len(), simd)
    }

    /// The same so many columns further on.
    fn behind(mut self, first: usize) -> Self {
        for columns in [&mut self.columns, &mut self.of] {
            *columns = columns.start + first..columns.end + first;
        }
        self
    }
}

impl Metric {
    fn new(metric: ArrayView2<f32>) -> Option<Self> {
        let n = metric.nrows();
        let (unit, diagonal) = factored(metric)?;
        let below = inverse_of_unit(&unit, n);
        let scaled = |(i, j): (usize, usize)| (below[i * n + j] / diagonal[i].sqrt()) as f32;
        let root = Array2::from_shape_fn((n, n), scaled);
        let transposed = |i: usize| unit[i % n * n + i / n] as f32;
        Some(Self {
            n,
            panels: panels(metric),
            by_32: in_blocks_of_32(&unit, &below, n),
            root: [panels(root.view()), panels(root.t())],
            unit: (0..n * n).map(transposed).collect(),
            diagonal: diagonal.iter().map(|&x| x as f32).collect(),
        })
    }

    /// Adds η·D·ηᵀ of each row.
    pub fn add_errors(&self, eta: ArrayView2<f32>, simd: Simd, errors: &mut [f64]) {
        let products = times(eta, &self.panels, self.n, simd);
        for ((error, eta), product) in errors.iter_mut().zip(eta.rows()).zip(products.rows()) {
            *error +=
                eta.iter().zip(product).map(|(&a, &b)| f64::from(a) * f64::from(b)).sum::<f64>();
        }
    }

    /// Rows times the inverse.
    pub fn times_inverse(&self, rows: ArrayView2<f32>, simd: Simd) -> Array2<f32> {
        let [root, transposed] = &self.root;
        times(times(rows, root, self.n, simd).view(), transposed, self.n, simd)
    }
}

/// Takes a block out of a matrix: its columns become L, and what is left of the later ones is what the
/// block cannot make up for.
fn eliminate(mut h: ArrayViewMut2<f32>, columns: Range<usize>, simd: Simd) -> Option<Block> {
    let n = h.nrows();
    let end = columns.end;
    let metric = Metric::new(h.slice(s![columns.clone(), columns.clone()]))?;
    let below = h.slice(s![end.., columns.clone()]);
    // A of A·Aᵀ, which is what the block explains of the rest, and L.
    let (mut explained, mut lower) =
        (Array2::zeros(below.raw_dim()), Array2::zeros(below.raw_dim()));
    let [root, transposed] = &metric.root;
    let by = |values| Panels { values, columns: columns.len(), simd };
    by(root).multiply(below, explained.view_mut());
    by(transposed).multiply(explained.view(), lower.view_mut());
    let all = panels(explained.view());
    let mut rest = h.slice_mut(s![end.., end..]);
    let pieces = rest.axis_chunks_iter_mut(Axis(0), BLOCK).into_par_iter();
    pieces.zip(explained.axis_chunks_iter(Axis(0), BLOCK)).enumerate().for_each(
        |(i, (mut rest, explained))| {
            // The lower triangle alone.
            let upto = (n - end).min((i + 1) * BLOCK);
            let products = times(explained, &all, upto, simd);
            rest.slice_mut(s![.., ..upto]).zip_mut_with(&products, |a, b| *a -= b);
        },
    );
    let next = end..n.min(end + BLOCK);
    mirror(h.slice_mut(s![next.clone(), next]));
    Some(Block { columns, feedback: panels(lower.t()), of: end..n, metric })
}

/// Copies the lower triangle to the upper one.
fn mirror(mut h: ArrayViewMut2<f32>) {
    for i in 0..h.nrows() {
        for j in 0..i {
            h[[j, i]] = h[[i, j]];
        }
    }
}

/// Rows of a matrix in panels.
pub(super) fn panels(matrix: ArrayView2<f32>) -> Vec<f32> {
    let mut panels = vec![0.0; packed_len(matrix.nrows(), matrix.ncols())];
    pack(matrix, &mut panels);
    panels
}

/// Rows times a transposed matrix in panels.
pub(super) fn times(
    rows: ArrayView2<f32>,
    panels: &[f32],
    outputs: usize,
    simd: Simd,
) -> Array2<f32> {
    let mut out = Array2::zeros((rows.nrows(), outputs));
    Panels { values: panels, columns: rows.ncols(), simd }.multiply_here(rows, out.view_mut());
    out
}

/// Floating-point operations a second of one thread in products like those of a calibration: the most of some
/// short trials, so that what else the machine does counts little.
pub fn speed(simd: Simd) -> f64 {
    const SIDE: usize = 1024;
    let ones = |rows| Array2::<f32>::ones((rows, SIDE));
    let (rows, panels) = (ones(super::rows::ROWS), panels(ones(SIDE).view()));
    let trial = |_| {
        let start = std::time::Instant::now();
        times(rows.view(), &panels, SIDE, simd);
        start.elapsed().as_secs_f64()
    };
    let least = (0..12).map(trial).fold(f64::INFINITY, f64::min);
    (2 * rows.len() * SIDE) as f64 / least.max(1e-9)
}

/// M and E of M·E·Mᵀ, row after row; `None` where a pivot is not positive.
fn factored(matrix: ArrayView2<f32>) -> Option<(Vec<f64>, Vec<f64>)> {
    let n = matrix.nrows();
    let mut unit: Vec<f64> = matrix.iter().map(|&x| f64::from(x)).collect();
    let (mut diagonal, mut column) = (vec![0.0; n], vec![0.0; n]);
    for j in 0..n {
        let pivot = unit[j * n + j];
        if !(pivot.is_finite() && pivot > 0.0) {
            return None;
        }
        diagonal[j] = pivot;
        for i in j + 1..n {
            column[i] = unit[i * n + j];
        }
        for i in j + 1..n {
            let factor = column[i] / pivot;
            let row = &mut unit[i * n..][..n];
            row[j] = factor;
            for k in j + 1..=i {
                row[k] -= factor * column[k];
            }
        }
        for k in 0..n {
            if k >= j {
                unit[j * n + k] = if k == j { 1.0 } else { 0.0 };
            }
        }
    }
    Some((unit, diagonal))
}

/// The inverse of a unit lower triangular matrix.
fn inverse_of_unit(unit: &[f64], n: usize) -> Vec<f64> {
    let mut inverse = vec![0.0; n * n];
    for i in 0..n {
        let (above, row) = inverse.split_at_mut(i * n);
        row[i] = 1.0;
        for k in 0..i {
            let factor = unit[i * n + k];
            for (a, b) in row[..=k].iter_mut().zip(&above[k * n..][..=k]) {
                *a -= factor * b;
            }
        }
    }
    inverse
}

/// L of blocks of 32 columns, transposed: what M has below such a block, times the inverse of the block.
fn in_blocks_of_32(unit: &[f64], below: &[f64], n: usize) -> Vec<f32> {
    let mut out = vec![0.0; n * n];
    for first in (0..n).step_by(32) {
        let end = n.min(first + 32);
        for later in end..n {
            for j in first..end {
                let product = |k: usize| {
                    // The inverse of a triangle's block on the diagonal is that of the block.
                    unit[later * n + k] * below[k * n + j]
                };
                out[j * n + later] = (j..end).map(product).sum::<f64>() as f32;
            }
        }
    }
    out
}

#[cfg(test)]
pub(super) mod tests {
    use super::*;

    /// Moments of inputs with a strong common part.
    pub(in crate::calibrate) fn moments(n: usize) -> Array2<f32> {
        let input = |t: usize, i: usize| {
            let common = ((t * 13 + 5) % 37) as f32 / 18.0 - 1.0;
            common * (1.0 + (i % 7) as f32) / 4.0 + ((t * 31 + i * i * 17 + i) % 101) as f32 / 50.0
                - 1.0
        };
        let x = Array2::from_shape_fn((2 * n, n), |(t, i)| input(t, i));
        x.t().dot(&x) / (2 * n) as f32
    }

    #[test]
    fn errors_are_those_of_the_moments() {
        let (n, damping) = (600, 0.01);
        let mut h = moments(n);
        let factors = Factored::new(h.clone(), damping, Simd::detect()).unwrap();
        let mean = h.diag().sum() / n as f32;
        h.diag_mut().mapv_inplace(|x| x + damping * mean);
        let delta =
            Array2::from_shape_fn((5, n), |(i, j)| ((i * 7 + j * 11) % 23) as f32 / 11.0 - 1.0);
        let found = factors.errors(delta.view(), None);
        for (row, found) in delta.rows().into_iter().zip(found) {
            let expected = f64::from(row.dot(&h.dot(&row)));
            assert!((found / expected - 1.0).abs() < 1e-4, "{found} {expected}");
        }
    }

    #[test]
    fn parts_have_nothing_to_do_with_each_other() {
        let (n, part, damping) = (600, 256, 0.01);
        let whole = moments(n);
        let column = |i: usize, j: usize| i / part * part + j;
        let known = |(i, j)| if column(i, j) < n { whole[[i, column(i, j)]] } else { f32::NAN };
        let h = Array2::from_shape_fn((n, part), known);
        let factors = Factored::new(h, damping, Simd::detect()).unwrap();
        let added = damping * whole.diag().sum() / n as f32;
        let delta = Array2::from_shape_fn((3, n), |(i, j)| ((i * 7 + j * 11) % 23) as f32 - 11.0);
        for (row, found) in delta.rows().into_iter().zip(factors.errors(delta.view(), None)) {
            let error = |(i, j): (usize, usize)| {
                let of_both = if i == j { whole[[i, j]] + added } else { whole[[i, j]] };
                if i / part == j / part { row[i] * of_both * row[j] } else { 0.0 }
            };
            let all = (0..n).flat_map(|i| (0..n).map(move |j| (i, j)));
            let expected: f64 = all.map(|at| f64::from(error(at))).sum();
            assert!((found / expected - 1.0).abs() < 1e-4, "{found} {expected}");
        }
    }

    #[test]
    fn moments_that_are_not_positive_have_no_factors() {
        for bad in [0.0, -1.0, f32::NAN, f32::INFINITY] {
            assert!(Factored::new(Array2::from_elem((64, 64), bad), 0.0, Simd::Portable).is_none());
        }
        let mut h = moments(300);
        h[[299, 299]] = -40.0;
        assert!(Factored::new(h, 0.01, Simd::Portable).is_none());
    }
}
