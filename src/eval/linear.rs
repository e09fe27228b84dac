//! Matrices as they are stored, multiplied a few rows at a time.

use super::error::EvalError;
use super::observe::Observer;
use crate::source::Source;
use ndarray::linalg::general_mat_mul;
use ndarray::parallel::prelude::*;
use ndarray::{Array2, ArrayView2, ArrayViewMut2, Axis};

/// Weights decoded at a time, at most. Each panel's product prepares all of its inputs anew, so
/// that large panels pay although they leave a core's own cache.
const PANEL_ELEMENTS: usize = 1 << 20;

/// One matrix of a tensor: `rows` outputs of `columns` inputs.
#[derive(Clone, Copy)]
pub(super) struct Matrix<'a> {
    pub source: &'a dyn Source,
    pub tensor: usize,
    /// First row within the tensor, for stacked matrices.
    pub first_row: u64,
    pub rows: usize,
    pub columns: usize,
    /// Who sees the products.
    pub observer: Option<&'a dyn Observer>,
}

impl Matrix<'_> {
    fn panel_rows(&self) -> usize {
        // Where panels are cut does not change results: each is a sum over columns alone.
        let share = self.rows.div_ceil(rayon::current_num_threads());
        (PANEL_ELEMENTS / self.columns).min(share).max(8)
    }

    /// `x · Wᵀ`: rows of `x` are inputs, rows of the result outputs. Panels run in parallel; the
    /// result does not depend on how many threads there are.
    pub fn apply(&self, x: ArrayView2<f32>) -> Result<Array2<f32>, EvalError> {
        let mut out = Array2::zeros((x.nrows(), self.rows));
        let panel = self.panel_rows();
        out.axis_chunks_iter_mut(Axis(1), panel)
            .into_par_iter()
            .enumerate()
            .try_for_each(|(i, out)| self.apply_panel(i * panel, x, out))?;
        self.observed(x, out.view())?;
        Ok(out)
    }

    /// As [`Matrix::apply`] on the calling thread, for callers that run in parallel themselves.
    pub fn apply_here(&self, x: ArrayView2<f32>) -> Result<Array2<f32>, EvalError> {
        let mut out = Array2::zeros((x.nrows(), self.rows));
        let panel = self.panel_rows();
        for (i, out) in out.axis_chunks_iter_mut(Axis(1), panel).enumerate() {
            self.apply_panel(i * panel, x, out)?;
        }
        self.observed(x, out.view())?;
        Ok(out)
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

    fn apply_panel(
        &self,
        first: usize,
        x: ArrayView2<f32>,
        mut out: ArrayViewMut2<f32>,
    ) -> Result<(), EvalError> {
        let weights = self.decode(first, out.ncols())?;
        general_mat_mul(1.0, &x, &weights.t(), 0.0, &mut out);
        Ok(())
    }

    /// Some rows as f32.
    pub fn decode(&self, first: usize, rows: usize) -> Result<Array2<f32>, EvalError> {
        let mut weights = Array2::zeros((rows, self.columns));
        let row = self.first_row + first as u64;
        let slice = weights.as_slice_mut().expect("a new array is contiguous");
        self.source.read_rows(self.tensor, row, slice)?;
        self.source.release(self.tensor, row..row + rows as u64);
        Ok(weights)
    }
}
