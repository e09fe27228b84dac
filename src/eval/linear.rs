//! Matrices as they are stored, multiplied some rows at a time.

use super::activations::Activations;
use super::block_sums;
use super::buffers::Rows;
use super::error::EvalError;
use super::gemm::{PANEL_ROWS, Panels, pack, panels_len};
use super::observe::Observer;
use crate::source::Source;
use ndarray::{ArrayView2, ArrayViewMut2, Axis};
use rayon::prelude::*;

/// Weights in panels at a time for each thread, at most: 8 MiB. For each such part all inputs are
/// read again, which takes a tenth of the time where rows are as wide as R1's and parts half as large.
const PANEL_ELEMENTS: usize = 1 << 21;
/// Weights read and decoded at a time, at most: they are put into panels while a core's own cache
/// still holds them.
const DECODED_ELEMENTS: usize = 1 << 17;

/// One matrix of a tensor: `rows` outputs of `columns` inputs.
#[derive(Clone, Copy)]
pub(super) struct Matrix<'a> {
    pub source: &'a dyn Source,
    pub tensor: usize,
    /// First row within the tensor, for stacked matrices.
    pub first_row: u64,
    pub rows: usize,
    pub columns: usize,
    /// What inputs are rounded to.
    pub activations: Activations,
    /// Who sees the products.
    pub observer: Option<&'a dyn Observer>,
}

impl Matrix<'_> {
    /// `x · Wᵀ`: rows of `x` are inputs, rows of the result outputs. The result does not depend on
    /// how many threads there are.
    pub fn apply(&self, x: ArrayView2<f32>) -> Result<Rows, EvalError> {
        let mut out = Rows::new(x.nrows(), self.rows);
        self.apply_to(x, out.view_mut())?;
        Ok(out)
    }

    /// As [`Matrix::apply`], into outputs that are written over.
    pub fn apply_to(&self, x: ArrayView2<f32>, out: ArrayViewMut2<f32>) -> Result<(), EvalError> {
        self.in_parts(x, out, rayon::current_num_threads(), |x, first, panels, out| {
            let unit = rows_within(DECODED_ELEMENTS, self.columns) * self.columns.max(1);
            panels.par_chunks_mut(unit).enumerate().try_for_each(|(i, panels)| {
                let done = i * unit / self.columns.max(1);
                self.decode_panels(first + done, out.ncols() - done, panels)
            })?;
            Panels { values: panels, columns: self.columns }.multiply(x, out);
            Ok(())
        })
    }

    /// As [`Matrix::apply`] on the calling thread, for callers that run in parallel themselves.
    pub fn apply_here(&self, x: ArrayView2<f32>) -> Result<Rows, EvalError> {
        let mut out = Rows::new(x.nrows(), self.rows);
        self.in_parts(x, out.view_mut(), 1, |x, first, panels, out| {
            let unit = rows_within(DECODED_ELEMENTS, self.columns) * self.columns.max(1);
            for (i, panels) in panels.chunks_mut(unit).enumerate() {
                let done = i * unit / self.columns.max(1);
                self.decode_panels(first + done, out.ncols() - done, panels)?;
            }
            Panels { values: panels, columns: self.columns }.multiply_here(x, out);
            Ok(())
        })?;
        Ok(out)
    }

    /// Cuts a product into parts whose panels may exist at once.
    fn in_parts(
        &self,
        x: ArrayView2<f32>,
        mut out: ArrayViewMut2<f32>,
        threads: usize,
        part: impl Fn(ArrayView2<f32>, usize, &mut [f32], ArrayViewMut2<f32>) -> Result<(), EvalError>,
    ) -> Result<(), EvalError> {
        let rounded = self.activations.round(self.source.tensors()[self.tensor].dtype, x);
        let inputs = rounded.as_ref().map_or(x, |rounded| rounded.view());
        let at_once = rows_within(PANEL_ELEMENTS * threads, self.columns);
        let mut panels = Rows::new(1, panels_len(at_once.min(self.rows), self.columns));
        for (i, out) in out.axis_chunks_iter_mut(Axis(1), at_once).enumerate() {
            let len = panels_len(out.ncols(), self.columns);
            part(inputs, i * at_once, &mut panels.values_mut()[..len], out)?;
        }
        block_sums::correct(self, x, out.view_mut())?;
        self.observed(x, out.view())
    }

    /// Brings rows from `first` into panels, as many as these hold and there are.
    fn decode_panels(
        &self,
        first: usize,
        rows: usize,
        panels: &mut [f32],
    ) -> Result<(), EvalError> {
        let rows = rows.min(panels.len() / self.columns.max(1));
        pack(self.decode(first, rows)?.view(), panels);
        Ok(())
    }

    /// One of several stacked.
    pub fn matrix(self, index: usize) -> Self {
        Self { first_row: (index * self.rows) as u64, ..self }
    }

    /// Tells the observer of a product.
    pub fn observed(&self, x: ArrayView2<f32>, y: ArrayView2<f32>) -> Result<(), EvalError> {
        match self.observer {
            Some(observer) => {
                observer.product(self.tensor, self.first_row as usize / self.rows.max(1), x, y)
            }
            None => Ok(()),
        }
    }

    /// Some rows as f32.
    pub fn decode(&self, first: usize, rows: usize) -> Result<Rows, EvalError> {
        let mut weights = Rows::new(rows, self.columns);
        let row = self.first_row + first as u64;
        self.source.read_rows(self.tensor, row, weights.values_mut())?;
        self.source.release(self.tensor, row..row + rows as u64);
        Ok(weights)
    }
}

/// Whole panels of about so many weights.
fn rows_within(elements: usize, columns: usize) -> usize {
    (elements / columns.max(1) / PANEL_ROWS).max(1) * PANEL_ROWS
}
