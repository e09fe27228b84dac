//! What goes into the matrices of a layer: second moments H = XᵀX / n of their inputs, and, for routed
//! experts, the inputs themselves in a file, since the moments of all would not fit.

use super::factor::{BLOCK, panels, times};
use crate::eval::gemm::packed_len;
use crate::eval::{EvalError, Observer};
use crate::io::{IoError, Part, read_all, unnamed, write_all};
use crate::simd::Simd;
use ndarray::{Array2, ArrayView2, Axis, s};
use rayon::prelude::*;
use std::collections::HashMap;
use std::path::{Path, PathBuf};
use std::sync::{Mutex, MutexGuard, PoisonError};

/// Tokens that are multiplied at a time.
const TOKENS: usize = 2048;

/// What is kept of products of different columns at most: other text has others, however many inputs were
/// seen. The best of five values on a real model (docs/quality.md).
const KEPT: f64 = 0.75;

/// Second moments of one matrix's inputs.
pub(crate) struct Moments {
    /// The number of inputs.
    pub count: u64,
    /// Sums of squares of each column.
    diagonal: Vec<f64>,
    /// Sums over inputs of the squares of all products of two columns: how far sums of products scatter.
    scatter: f64,
    /// Sums of products of columns, the lower triangle of each part, which lie below each other; without columns
    /// where those are known for themselves alone.
    sums: Array2<f32>,
}

impl Moments {
    /// None yet; of columns with each other within parts of so many, which are whole blocks but for the last one,
    /// or, with none, of the diagonal alone.
    pub fn new(columns: usize, part: usize) -> Self {
        Self {
            count: 0,
            diagonal: vec![0.0; columns],
            scatter: 0.0,
            sums: Array2::zeros((columns, part)),
        }
    }

    /// Those of inputs, on all threads, with parts as for [`Moments::new`].
    pub fn of(x: ArrayView2<f32>, part: usize, simd: Simd) -> Self {
        let mut moments = Self::new(x.ncols(), part);
        moments.add(x, simd, true);
        moments
    }

    /// Columns.
    pub fn columns(&self) -> usize {
        self.diagonal.len()
    }

    /// Columns of a part.
    pub fn part(&self) -> usize {
        self.sums.ncols()
    }

    /// Whether columns are known with each other.
    pub fn has_products(&self) -> bool {
        !self.sums.is_empty()
    }

    /// Adds inputs, on all threads or on the calling one.
    pub fn add(&mut self, x: ArrayView2<f32>, simd: Simd, parallel: bool) {
        self.count += x.nrows() as u64;
        let part = if self.has_products() { self.part() } else { self.columns() };
        for row in x.rows() {
            let of_row = row.axis_chunks_iter(Axis(0), part);
            for (sums, x) in self.diagonal.chunks_mut(part).zip(of_row) {
                let (mut squares, mut fourths) = (0.0, 0.0);
                for (sum, &x) in sums.iter_mut().zip(x) {
                    let square = f64::from(x) * f64::from(x);
                    *sum += square;
                    squares += square;
                    fourths += square * square;
                }
                self.scatter += squares * squares - fourths;
            }
        }
        if !self.has_products() {
            return;
        }
        for x in x.axis_chunks_iter(Axis(0), TOKENS) {
            let columns = x.t().as_standard_layout().into_owned();
            let all = panels(columns.view());
            let add = |(i, mut sums): (usize, ndarray::ArrayViewMut2<f32>)| {
                let (first, start) = (i * BLOCK, i * BLOCK / part * part);
                let end = first + sums.nrows();
                let of_part = &all[packed_len(start, columns.ncols())..];
                let products = times(columns.slice(s![first..end, ..]), of_part, end - start, simd);
                sums.slice_mut(s![.., ..end - start]).zip_mut_with(&products, |a, b| *a += b);
            };
            let pieces = self.sums.axis_chunks_iter_mut(Axis(0), BLOCK);
            match parallel {
                true => pieces.into_par_iter().enumerate().for_each(add),
                false => pieces.into_iter().enumerate().for_each(add),
            }
        }
    }

    /// The mean square of each column; with a prior, as much as one that was seen as often as there are
    /// columns.
    pub fn importances(&self, prior: Option<&Self>) -> Vec<f32> {
        let [own, other, n] = self.weights(prior);
        let of = |column: usize| {
            let known = prior.map_or(0.0, |prior| other * prior.diagonal[column]);
            ((own * self.diagonal[column] + known) / n) as f32
        };
        (0..self.columns()).map(of).collect()
    }

    /// The moments, with a prior as for [`Moments::importances`]. Products of different columns are taken for
    /// smaller than they were seen, by what of their squares is expected to be chance (Ledoit and Wolf 2004,
    /// with the target of Schäfer and Strimmer 2005): few inputs say little about many columns. Parts lie below
    /// each other.
    pub fn mean(&self, prior: Option<&Self>) -> Array2<f32> {
        let [own, other, n] = self.weights(prior);
        let part = self.part();
        let mut mean = self.sums.mapv(|sum| (own / n) as f32 * sum);
        let (mut scatter, mut count) = (own * own * self.scatter, self.count);
        if let Some(prior) = prior {
            match prior.has_products() {
                true => mean.scaled_add((other / n) as f32, &prior.sums),
                false => {
                    for (i, known) in prior.diagonal.iter().enumerate() {
                        mean[[i, i % part]] += (other / n * known) as f32;
                    }
                }
            }
            scatter += other * other * prior.scatter;
            count += prior.count;
        }
        let lower = |(i, row): (usize, ndarray::ArrayView1<f32>)| {
            row.iter().take(i % part).map(|&x| f64::from(x) * f64::from(x)).sum::<f64>()
        };
        let squares = 2.0 * mean.rows().into_iter().enumerate().map(lower).sum::<f64>();
        let chance = scatter / (n * n) - squares / count.max(1) as f64;
        let kept = 1.0 - (chance / squares.max(f64::MIN_POSITIVE)).clamp(0.0, 1.0);
        let kept = kept.min(KEPT);
        for (i, mut row) in mean.rows_mut().into_iter().enumerate() {
            row.iter_mut().take(i % part).for_each(|x| *x *= kept as f32);
        }
        mean
    }

    /// What sums count, those of a prior, and together.
    fn weights(&self, prior: Option<&Self>) -> [f64; 3] {
        let Some(prior) = prior.filter(|prior| prior.count > 0) else {
            return [1.0, 0.0, (self.count as f64).max(1.0)];
        };
        let columns = self.columns() as f64;
        [1.0, columns / prior.count as f64, self.count as f64 + columns]
    }

    /// Known mean squares, as a prior.
    pub fn known(mean_squares: &[f32]) -> Self {
        let diagonal = mean_squares.iter().map(|&x| f64::from(x)).collect();
        Self { count: 1, diagonal, scatter: 0.0, sums: Array2::zeros((0, 0)) }
    }
}

/// Inputs of the matrices of a stack, in a file.
pub(crate) struct Spool {
    path: PathBuf,
    file: Box<dyn Part>,
    end: u64,
    columns: usize,
    /// Columns of a part of moments.
    part: usize,
    /// Where the inputs of each matrix are, and how many.
    pieces: Vec<Vec<(u64, usize)>>,
}

impl Spool {
    /// An empty one in a folder; the file has no name.
    pub fn new(
        folder: &Path,
        columns: usize,
        matrices: usize,
        part: usize,
    ) -> Result<Self, IoError> {
        let file = unnamed(folder).map_err(|error| IoError::new(folder, error))?;
        let pieces = vec![Vec::new(); matrices];
        Ok(Self { path: folder.to_owned(), file, end: 0, columns, part, pieces })
    }

    fn add(&mut self, matrix: usize, x: ArrayView2<f32>) -> Result<(), IoError> {
        let bytes: Vec<u8> = x.iter().flat_map(|x| x.to_le_bytes()).collect();
        let written = write_all(self.file.as_ref(), &bytes, self.end);
        written.map_err(|error| IoError::new(&self.path, error))?;
        self.pieces[matrix].push((self.end, x.nrows()));
        self.end += bytes.len() as u64;
        Ok(())
    }

    /// Moments of inputs as they are here, on all threads.
    pub fn moments(&self, x: ArrayView2<f32>, simd: Simd) -> Moments {
        Moments::of(x, self.part, simd)
    }

    /// Moments of the inputs of all matrices together. They are added in the order of the matrices, whatever
    /// the order in which they were seen.
    pub fn of_all(&self, simd: Simd) -> Result<Moments, IoError> {
        let mut all = Moments::new(self.columns, self.part);
        for matrix in 0..self.pieces.len() {
            all.add(self.inputs(matrix)?.view(), simd, true);
        }
        Ok(all)
    }

    /// The inputs of a matrix, in the order of the tokens.
    pub fn inputs(&self, matrix: usize) -> Result<Array2<f32>, IoError> {
        let rows: usize = self.pieces[matrix].iter().map(|piece| piece.1).sum();
        let mut values = Vec::with_capacity(rows * self.columns);
        let mut bytes = Vec::new();
        for &(at, rows) in &self.pieces[matrix] {
            bytes.resize(4 * rows * self.columns, 0);
            let read = read_all(self.file.as_ref(), &mut bytes, at);
            read.map_err(|error| IoError::new(&self.path, error))?;
            values.extend(bytes.as_chunks().0.iter().map(|&x| f32::from_le_bytes(x)));
        }
        Ok(Array2::from_shape_vec((rows, self.columns), values).expect("whole rows"))
    }
}

/// What is kept of a tensor's inputs.
pub(crate) enum Kept {
    /// Moments of each of its matrices.
    Each(Vec<Mutex<Moments>>),
    /// The inputs.
    Spooled(Mutex<Spool>),
    /// Nothing: they are made from those of other matrices later. Their columns, and those of a part of moments.
    Later { columns: usize, part: usize },
}

/// Sees the inputs of some tensors, by their number in the source.
pub(crate) struct Watch {
    pub simd: Simd,
    pub kept: Mutex<HashMap<usize, std::sync::Arc<Kept>>>,
}

/// A lock whose holder cannot leave anything half done.
pub(crate) fn locked<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Observer for Watch {
    fn product(
        &self,
        tensor: usize,
        matrix: usize,
        x: ArrayView2<f32>,
        _y: ArrayView2<f32>,
    ) -> Result<(), EvalError> {
        let Some(kept) = locked(&self.kept).get(&tensor).cloned() else { return Ok(()) };
        // Stacks are multiplied on many threads: one that waits with a lock must not be given other work.
        match &*kept {
            Kept::Each(moments) => {
                let parallel = moments.len() == 1;
                locked(&moments[matrix]).add(x, self.simd, parallel);
            }
            Kept::Spooled(spool) => locked(spool).add(matrix, x)?,
            Kept::Later { .. } => {}
        }
        Ok(())
    }

    fn seen(&self, _layer: u32) -> Vec<u8> {
        Vec::new()
    }

    fn take_up(&self, _layer: u32, _seen: &[u8]) -> Result<(), EvalError> {
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn parts_are_squares_of_the_whole() {
        let (tokens, n, part) = (70, 600, 256);
        let input = |(t, i): (usize, usize)| ((t * 31 + i * i * 17 + i) % 101) as f32 / 50.0 - 1.0;
        let x = Array2::from_shape_fn((tokens, n), input);
        let of = |part: usize, parallel: bool| {
            let mut moments = Moments::new(n, part);
            moments.add(x.slice(s![..30, ..]), Simd::detect(), parallel);
            moments.add(x.slice(s![30.., ..]), Simd::detect(), !parallel);
            moments
        };
        let (whole, parts) = (of(n, true), of(part, false));
        for i in 0..n {
            for j in 0..=i % part {
                let [a, b] = [whole.sums[[i, i / part * part + j]], parts.sums[[i, j]]];
                assert!((a - b).abs() < 1e-3, "{a} {b} at {i}, {j}");
            }
        }
        assert_eq!(whole.importances(None), parts.importances(None));
        assert!(parts.scatter < whole.scatter && parts.mean(None).iter().all(|x| x.is_finite()));
    }
}
