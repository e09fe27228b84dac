//! Products of f32 inputs with matrices of weights: `x · Wᵀ`, both with their rows contiguous.
//!
//! Weights are brought into panels once: [`PANEL`] rows side by side, column after column, as the
//! kernels read them; those of some types as the integers that they are stored as, where the machine
//! has products of bytes ([`integers`]), all others as f32. The rest of this is about f32: inputs stay
//! as they are; a kernel's few rows are copied next to each other when their turn comes. Some rows
//! pass all panels, slice after slice, before the next rows do.
//!
//! Each output is a sum over slices of columns, always cut in the same way, so that neither the
//! number of threads nor the rows that share a product change it.
#![allow(clippy::needless_range_loop, reason = "loops are to need no optimization at link time")]

mod integers;
mod kernel;

use super::activations::Activations;
use super::buffers::Rows;
use crate::quant::float::f32_to_bf16;
use crate::quant::{Activation, QuantType};
use crate::simd::{Avx512Bf16, Simd, compiled};
use crate::source::Dtype;
pub(super) use integers::Products;
use kernel::{MAX_ROWS, PANEL, SLICE, STRIDE, Tile};
use ndarray::parallel::prelude::*;
use ndarray::{Array2, ArrayView2, ArrayViewMut2, Axis, s};
use std::borrow::Cow;

/// Weights of a slice of the panels that are multiplied together, at most: a mebibyte, which comes
/// from a core's own cache or one that cores share as fast as it is used.
const NEAR: usize = 1 << 18;
/// Rows of inputs of a task: they and their outputs stay in a core's own cache from slice to slice.
const TASK_ROWS: usize = 8 * MAX_ROWS;

/// Rows of a panel: weights that are cut into parts should be cut at multiples of it.
pub(super) const PANEL_ROWS: usize = PANEL;

/// What weights are in panels.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Form {
    /// f32.
    Floats(Simd),
    /// Pairs of BF16, in the place of f32.
    Pairs(Simd, Avx512Bf16),
    /// Groups of integers.
    Integers(Products),
}

impl Form {
    /// The fastest form for weights of a type that meet inputs as they are, or as llama.cpp rounds them.
    pub fn of(ty: QuantType, rounded: bool, simd: Simd) -> Self {
        let activations = rounded.then_some(ty.format().activations);
        let pairs = matches!(simd, Simd::Avx512Vnni(_)) && activations == Some(Activation::BF16);
        match (Products::of(ty, activations, simd), Avx512Bf16::new().filter(|_| pairs)) {
            (Some(products), _) => Self::Integers(products),
            (None, Some(token)) => Self::Pairs(simd, token),
            (None, None) => Self::Floats(simd),
        }
    }

    /// Inputs as they are handed over; `None` where they stay as they are, and are rounded, if at all, when they
    /// are multiplied.
    pub fn inputs(
        self,
        activations: Activations,
        weights: Dtype,
        x: ArrayView2<f32>,
    ) -> Option<Array2<f32>> {
        match self {
            Self::Floats(simd) => activations.round(simd, weights, x),
            Self::Pairs(simd, _) => Some(pairs(simd, x)),
            Self::Integers(_) => None,
        }
    }

    /// How many values the panels of so many rows take.
    pub fn panels_len(self, rows: usize, columns: usize) -> usize {
        match self {
            Self::Floats(_) => packed_len(rows, columns),
            Self::Pairs(..) => packed_len(rows, columns.div_ceil(2)),
            Self::Integers(products) => rows.div_ceil(PANEL) * products.panel_len(columns),
        }
    }

    /// `out = x · Wᵀ` with `out.ncols()` rows of `W` in panels, on all threads or on the calling one.
    pub fn multiply(
        self,
        x: ArrayView2<f32>,
        panels: &[f32],
        out: ArrayViewMut2<f32>,
        parallel: bool,
    ) {
        match self {
            Self::Integers(products) => products.multiply(x, panels, out, parallel),
            Self::Floats(simd) => product(x, panels, x.ncols(), kernel::of(simd), out, parallel),
            Self::Pairs(_, token) => {
                product(x, panels, x.ncols(), kernel::of_pairs(token), out, parallel)
            }
        }
    }
}

/// Rows as BF16, in words of two.
fn pairs(simd: Simd, x: ArrayView2<f32>) -> Array2<f32> {
    let mut out = Array2::zeros((x.nrows(), x.ncols().div_ceil(2)));
    ndarray::Zip::from(out.rows_mut()).and(x.rows()).par_for_each(|mut out, x| {
        let x = x.as_standard_layout();
        let words = out.as_slice_mut().expect("a new array is contiguous");
        round_to_pairs(simd, x.as_slice().unwrap_or_default(), words);
    });
    out
}

compiled!(
    /// Values as BF16, in words of two; with zero beside the last one where they are odd.
    round_to_pairs(x: &[f32], words: &mut [f32]) -> () = each_to_pairs
);

#[inline(always)]
fn each_to_pairs(x: &[f32], words: &mut [f32]) {
    let word = |a, b| f32::from_bits(u32::from(f32_to_bf16(a)) | u32::from(f32_to_bf16(b)) << 16);
    let (pairs, rest) = x.as_chunks::<2>();
    for i in 0..pairs.len() {
        words[i] = word(pairs[i][0], pairs[i][1]);
    }
    if let [last] = *rest {
        words[pairs.len()] = word(last, 0.0);
    }
}

/// Puts rows of BF16, as they are stored, into panels of [`Form::Pairs`].
pub(super) fn pack_pairs(bytes: &[u8], rows: usize, columns: usize, panels: &mut [f32]) {
    let mut words = Array2::zeros((rows, columns.div_ceil(2)));
    for (mut words, row) in words.rows_mut().into_iter().zip(bytes.chunks_exact(2 * columns)) {
        let (pairs, rest) = row.as_chunks::<4>();
        for (word, &pair) in words.iter_mut().zip(pairs) {
            *word = f32::from_bits(u32::from_le_bytes(pair));
        }
        if let [low, high] = *rest {
            words[pairs.len()] = f32::from_bits(u32::from_le_bytes([low, high, 0, 0]));
        }
    }
    pack(words.view(), panels);
}

/// How many values the panels of so many rows take in [`Form::Floats`].
pub(crate) fn packed_len(rows: usize, columns: usize) -> usize {
    rows.next_multiple_of(PANEL) * columns
}

/// A matrix in panels of its own.
pub(super) fn packed(matrix: ArrayView2<f32>) -> Rows {
    let mut panels = Rows::new(1, packed_len(matrix.nrows(), matrix.ncols()));
    pack(matrix, panels.values_mut());
    panels
}

/// Puts the rows of a matrix into panels of [`Form::Floats`]. What is in the place of rows that
/// would fill the last panel stays as it was.
pub(crate) fn pack(matrix: ArrayView2<f32>, panels: &mut [f32]) {
    /// A cache line.
    const LINE: usize = 16;
    let columns = matrix.ncols();
    if columns == 0 {
        return;
    }
    let groups = matrix.axis_chunks_iter(Axis(0), PANEL);
    for (rows, panel) in groups.zip(panels.chunks_exact_mut(PANEL * columns)) {
        if rows.column(0).as_slice().is_some() {
            for (column, panel) in rows.columns().into_iter().zip(panel.chunks_exact_mut(PANEL)) {
                let column = column.to_slice().expect("so is the first column");
                panel[..column.len()].copy_from_slice(column);
            }
            continue;
        }
        let rows: Vec<Cow<[f32]>> = (rows.rows().into_iter())
            .map(|row| row.to_slice().map_or_else(|| row.to_vec().into(), Cow::from))
            .collect();
        let (blocks, rest) = panel.as_chunks_mut::<{ LINE * PANEL }>();
        for (lines, block) in blocks.iter_mut().enumerate() {
            for lane in 0..rows.len().min(PANEL) {
                let line = &rows[lane][lines * LINE..][..LINE];
                for i in 0..LINE {
                    block[i * PANEL + lane] = line[i];
                }
            }
        }
        for (column, places) in (blocks.len() * LINE..).zip(rest.chunks_exact_mut(PANEL)) {
            for (place, row) in places.iter_mut().zip(&rows) {
                *place = row[column];
            }
        }
    }
}

/// A matrix in panels.
#[derive(Clone, Copy)]
pub(crate) struct Panels<'a> {
    pub values: &'a [f32],
    pub columns: usize,
    pub simd: Simd,
}

impl Panels<'_> {
    /// `out = x · Wᵀ` on all threads, for `out.ncols()` rows and `x.ncols()` columns of `W`.
    pub fn multiply(self, x: ArrayView2<f32>, out: ArrayViewMut2<f32>) {
        product(x, self.values, self.columns, kernel::of(self.simd), out, true);
    }

    /// As [`Panels::multiply`] on the calling thread.
    pub fn multiply_here(self, x: ArrayView2<f32>, out: ArrayViewMut2<f32>) {
        product(x, self.values, self.columns, kernel::of(self.simd), out, false);
    }
}

/// Some rows of inputs times some panels.
struct Task<'a> {
    x: ArrayView2<'a, f32>,
    panels: &'a [f32],
    /// Of a panel.
    columns: usize,
    kernels: &'static [Tile],
    out: ArrayViewMut2<'a, f32>,
}

/// Multiplies with panels of so many columns, in tasks, those of the same rows one after another.
fn product(
    x: ArrayView2<f32>,
    panels: &[f32],
    columns: usize,
    kernels: &'static [Tile],
    out: ArrayViewMut2<f32>,
    parallel: bool,
) {
    assert_eq!(x.nrows(), out.nrows(), "one row of outputs for each of inputs");
    assert!(x.ncols() <= columns, "a column of weights for each of inputs");
    assert!(panels.len() >= packed_len(out.ncols(), columns), "weights for outputs");
    if out.is_empty() {
        return;
    }
    let n_panels = out.ncols().div_ceil(PANEL);
    let near = (NEAR / PANEL / slice(x.ncols()).max(1)).max(1);
    let group = n_panels.div_ceil(n_panels.div_ceil(near));
    let task = |(x, panels, out)| Task { x, panels, columns, kernels, out };
    let tasks = cut(x, panels, PANEL * columns, [TASK_ROWS, group], out);
    match parallel {
        true => tasks.into_par_iter().map(task).for_each(Task::run),
        false => tasks.into_iter().map(task).for_each(Task::run),
    }
}

/// Cuts a product into parts of some rows and some panels, those of the same rows one after
/// another: the inputs, the panels from the first on, and the outputs of each.
fn cut<'a>(
    x: ArrayView2<'a, f32>,
    panels: &'a [f32],
    panel_len: usize,
    [rows, group]: [usize; 2],
    out: ArrayViewMut2<'a, f32>,
) -> Vec<(ArrayView2<'a, f32>, &'a [f32], ArrayViewMut2<'a, f32>)> {
    let mut parts = Vec::new();
    for (i, out) in axis_chunks(out, Axis(0), rows).into_iter().enumerate() {
        let x = x.slice_move(s![i * rows..i * rows + out.nrows(), ..]);
        for (j, out) in axis_chunks(out, Axis(1), group * PANEL).into_iter().enumerate() {
            parts.push((x, &panels[j * group * panel_len..], out));
        }
    }
    parts
}

/// As `axis_chunks_iter_mut`, of a view that is given away.
fn axis_chunks(mut view: ArrayViewMut2<f32>, axis: Axis, size: usize) -> Vec<ArrayViewMut2<f32>> {
    let mut chunks = Vec::new();
    while view.len_of(axis) > size {
        let (chunk, rest) = view.split_at(axis, size);
        chunks.push(chunk);
        view = rest;
    }
    chunks.push(view);
    chunks
}

/// Columns of a slice.
fn slice(columns: usize) -> usize {
    columns.div_ceil(columns.div_ceil(SLICE).max(1))
}

impl Task<'_> {
    fn run(mut self) {
        let columns = self.x.ncols();
        if columns == 0 {
            self.out.fill(0.0);
            return;
        }
        let slice = slice(columns);
        let mut inputs = [0.0; MAX_ROWS * STRIDE];
        for first in (0..columns).step_by(slice) {
            let slice = first..columns.min(first + slice);
            let mut row = 0;
            while row < self.x.nrows() {
                let rows = self.kernels.len().min(self.x.nrows() - row);
                for (i, to) in inputs.chunks_exact_mut(STRIDE).take(rows).enumerate() {
                    let from = self.x.row(row + i);
                    match from.to_slice() {
                        Some(from) => to[..slice.len()].copy_from_slice(&from[slice.clone()]),
                        None => to
                            .iter_mut()
                            .zip(from.slice(s![slice.clone()]))
                            .for_each(|(to, from)| *to = *from),
                    }
                }
                self.run_tile(&inputs, row, rows, slice.start, slice.len());
                row += rows;
            }
        }
    }

    /// All panels of a slice for the inputs of one tile. Without views of single panels, which would
    /// take a tenth of the time where there are few columns.
    fn run_tile(
        &mut self,
        inputs: &[f32; MAX_ROWS * STRIDE],
        row: usize,
        rows: usize,
        first: usize,
        n: usize,
    ) {
        let tile = self.kernels[rows - 1];
        let add = first > 0;
        let mut edge = [0.0; MAX_ROWS * PANEL];
        let (n_rows, n_out) = self.out.dim();
        assert!(row + rows <= n_rows && n <= SLICE, "a tile lies within the product");
        let contiguous = self.out.strides()[1] == 1 && self.out.strides()[0] >= 0;
        let stride = self.out.strides()[0] as usize;
        let out = self.out.as_mut_ptr();
        let panels = self.panels.chunks_exact(PANEL * self.columns);
        for (start, panel) in (0..n_out).step_by(PANEL).zip(panels) {
            let weights = &panel[first * PANEL..][..n * PANEL];
            if contiguous && n_out - start >= PANEL {
                // SAFETY: the inputs are a tile of at least `rows` rows of `n <= SLICE` columns,
                // `weights` holds `n` times `PANEL` values; the view has rows of contiguous outputs
                // `stride` apart, of which `rows` from `row` and `PANEL` from `start` lie within
                // it; the kernels are of this machine.
                unsafe {
                    let out = out.add(row * stride + start);
                    tile(inputs.as_ptr(), weights.as_ptr(), n, out, stride, add);
                }
                continue;
            }
            // SAFETY: as above, with outputs in rows of `PANEL`.
            unsafe {
                tile(inputs.as_ptr(), weights.as_ptr(), n, edge.as_mut_ptr(), PANEL, false);
            }
            for (row, sums) in (row..row + rows).zip(edge.chunks_exact(PANEL)) {
                for (column, sum) in (start..n_out).zip(sums) {
                    // SAFETY: both are below the view's extents.
                    let out = unsafe { self.out.uget_mut((row, column)) };
                    *out = if add { *out + sum } else { *sum };
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use ndarray::Array2;

    fn matrix(rows: usize, columns: usize, seed: usize) -> Array2<f32> {
        Array2::from_shape_fn((rows, columns), |(i, j)| ((i * 7 + j * 3 + seed) % 13) as f32 - 6.0)
    }

    #[test]
    fn products_are_those_of_plain_loops() {
        for (tokens, columns, rows) in
            [(1, 1, 1), (14, 384, 32), (15, 385, 33), (40, 900, 700), (250, 64, 31), (3, 0, 5)]
        {
            let (x, w) = (matrix(tokens, columns, 1), matrix(rows, columns, 2));
            let mut values = vec![f32::NAN; packed_len(rows, columns)];
            pack(w.view(), &mut values);
            let mut turned = vec![f32::NAN; values.len()];
            pack(w.t().as_standard_layout().t(), &mut turned);
            assert!(values.iter().zip(&turned).all(|(a, b)| a == b || a.is_nan() && b.is_nan()));
            let panels = Panels { values: &values, columns, simd: Simd::detect() };
            let expected = Array2::from_shape_fn((tokens, rows), |(i, j)| {
                (0..columns).map(|c| x[(i, c)] * w[(j, c)]).sum::<f32>()
            });
            let mut out = Array2::from_elem((tokens, rows), f32::NAN);
            panels.multiply(x.view(), out.view_mut());
            assert_eq!(out, expected, "{tokens} x {columns} x {rows}");
            // Views with other strides, of inputs and of outputs.
            let turned = x.t().as_standard_layout().into_owned();
            let mut wide = Array2::from_elem((tokens, rows + 3), 1.0);
            panels.multiply_here(turned.t(), wide.slice_mut(s![.., 1..rows + 1]));
            assert_eq!(wide.slice(s![.., 1..rows + 1]), expected);
            assert!(wide.column(0).iter().all(|&v| v == 1.0));
            // The first columns alone.
            let half = columns / 2;
            let expected = x.slice(s![.., ..half]).dot(&w.slice(s![.., ..half]).t());
            panels.multiply_here(x.slice(s![.., ..half]), out.view_mut());
            assert_eq!(out, expected);
        }
    }

    /// Inputs and weights of BF16, an odd number of columns among them.
    #[test]
    fn pairs_give_the_products_of_rounded_inputs() {
        let Some(token) = Avx512Bf16::new() else { return };
        let form = Form::Pairs(Simd::detect(), token);
        for (tokens, columns, rows) in [(1, 1, 1), (15, 385, 33), (119, 900, 70)] {
            let number =
                |i: usize, j: usize| ((i * 7919 + j * 104_729) % 1009) as f32 / 500.0 - 1.0;
            let x = Array2::from_shape_fn((tokens, columns), |(i, j)| number(i, j));
            let bits = |i: usize, j: usize| f32_to_bf16(number(j, i) / 3.0);
            let bytes: Vec<u8> = (0..rows)
                .flat_map(|i| (0..columns).flat_map(move |j| bits(i, j).to_le_bytes()))
                .collect();
            let mut panels = vec![f32::NAN; form.panels_len(rows, columns)];
            pack_pairs(&bytes, rows, columns, &mut panels);
            let dtype = Dtype::Gguf(QuantType::BF16);
            let inputs = form.inputs(Activations::Q8, dtype, x.view()).unwrap();
            let mut out = Array2::from_elem((tokens, rows), f32::NAN);
            form.multiply(inputs.view(), &panels, out.view_mut(), true);
            for ((i, j), found) in out.indexed_iter() {
                let value = |bits: u16| f64::from(f32::from_bits(u32::from(bits) << 16));
                let term = |c: usize| value(f32_to_bf16(x[(i, c)])) * value(bits(j, c));
                let expected: f64 = (0..columns).map(term).sum();
                assert!((f64::from(*found) - expected).abs() < 1e-4, "{found} and {expected}");
            }
        }
    }
}
