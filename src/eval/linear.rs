//! Matrices as they are stored, multiplied some rows at a time.

use super::activations::Activations;
use super::block_sums;
use super::buffers::Rows;
use super::error::EvalError;
use super::gemm::{Form, PANEL_ROWS, pack, pack_pairs};
use super::observe::Observer;
use crate::simd::Simd;
use crate::source::{Dtype, SCRATCH, Source};
use ndarray::{ArrayView2, ArrayViewMut2, Axis, s};
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
    /// The instructions that it is multiplied with.
    pub simd: Simd,
    /// What inputs are rounded to.
    pub activations: Activations,
    /// Who sees the products.
    pub observer: Option<&'a dyn Observer>,
}

impl Matrix<'_> {
    /// The name of its tensor.
    pub fn name(&self) -> &str {
        &self.source.tensors()[self.tensor].name
    }

    /// `x · Wᵀ`: rows of `x` are inputs, rows of the result outputs. The result does not depend on
    /// how many threads there are.
    pub fn apply(&self, x: ArrayView2<f32>) -> Result<Rows, EvalError> {
        let mut out = Rows::new(x.nrows(), self.rows);
        self.apply_to(x, out.view_mut())?;
        Ok(out)
    }

    /// As [`Matrix::apply`], into outputs that are written over.
    pub fn apply_to(&self, x: ArrayView2<f32>, out: ArrayViewMut2<f32>) -> Result<(), EvalError> {
        self.multiply(x, out, true)
    }

    /// As [`Matrix::apply`] on the calling thread, for callers that run in parallel themselves.
    pub fn apply_here(&self, x: ArrayView2<f32>) -> Result<Rows, EvalError> {
        let mut out = Rows::new(x.nrows(), self.rows);
        self.multiply(x, out.view_mut(), false)?;
        Ok(out)
    }

    /// Cuts the product into parts whose panels may exist at once.
    fn multiply(
        &self,
        x: ArrayView2<f32>,
        mut out: ArrayViewMut2<f32>,
        parallel: bool,
    ) -> Result<(), EvalError> {
        let form = self.form()?;
        let own = form.inputs(self.activations, self.dtype(), x);
        let inputs = own.as_ref().map_or(x, |own| own.view());
        let panel = form.panels_len(PANEL_ROWS, self.columns).max(1);
        let threads = if parallel { rayon::current_num_threads() } else { 1 };
        let at_once = (PANEL_ELEMENTS * threads / panel).max(1) * PANEL_ROWS;
        let unit = (DECODED_ELEMENTS / self.columns.max(1) / PANEL_ROWS).max(1);
        let len = form.panels_len(at_once.min(self.rows), self.columns);
        let mut panels = Rows::new(1, len);
        for (i, out) in out.axis_chunks_iter_mut(Axis(1), at_once).enumerate() {
            let panels = &mut panels.values_mut()[..form.panels_len(out.ncols(), self.columns)];
            let fill = |(j, panels): (usize, &mut [f32])| {
                let done = j * unit * PANEL_ROWS;
                let rows = (unit * PANEL_ROWS).min(out.ncols() - done);
                self.fill_panels(form, i * at_once + done, rows, panels)
            };
            match parallel {
                true => panels.par_chunks_mut(unit * panel).enumerate().try_for_each(fill)?,
                false => panels.chunks_mut(unit * panel).enumerate().try_for_each(fill)?,
            }
            form.multiply(inputs, panels, out, parallel);
        }
        if matches!(form, Form::Floats(_)) {
            block_sums::correct(self, x, out.view_mut())?;
        }
        self.observed(x, out.view())
    }

    fn dtype(&self) -> Dtype {
        self.source.tensors()[self.tensor].dtype
    }

    /// What weights are in panels: rows that have to be computed are f32.
    fn form(&self) -> Result<Form, EvalError> {
        let floats = Form::Floats(self.simd);
        let Dtype::Gguf(ty) = self.dtype() else { return Ok(floats) };
        let none = self.first_row..self.first_row;
        let stored = self.source.read_raw(self.tensor, none, &mut Vec::new())?;
        let rounded = self.activations == Activations::Q8;
        Ok(if stored { Form::of(ty, rounded, self.simd) } else { floats })
    }

    /// Brings rows from `first` into panels.
    fn fill_panels(
        &self,
        form: Form,
        first: usize,
        rows: usize,
        panels: &mut [f32],
    ) -> Result<(), EvalError> {
        if let Form::Floats(_) = form {
            pack(self.decode(first, rows)?.view(), panels);
            return Ok(());
        }
        let first = self.first_row + first as u64;
        let mut bytes = SCRATCH.take();
        self.source.read_raw(self.tensor, first..first + rows as u64, &mut bytes)?;
        match form {
            Form::Integers(products) => products.pack(&bytes, self.columns, panels),
            _ => pack_pairs(&bytes, rows, self.columns, panels),
        }
        SCRATCH.set(bytes);
        Ok(())
    }

    /// One of several stacked.
    pub fn matrix(self, index: usize) -> Self {
        Self { first_row: (index * self.rows) as u64, ..self }
    }

    /// Tells the observer of a product.
    pub fn observed(&self, x: ArrayView2<f32>, y: ArrayView2<f32>) -> Result<(), EvalError> {
        let tell = |observer: &dyn Observer| observer.product(self.tensor, self.index(), x, y);
        self.observer.map_or(Ok(()), tell)
    }

    /// Tells the observer of inputs whose product nobody needs.
    pub fn shown(&self, x: ArrayView2<f32>) -> Result<(), EvalError> {
        self.observed(x, x.slice(s![.., ..0]))
    }

    /// Tells the observer of a product with the transpose.
    pub fn observed_transposed(
        &self,
        x: ArrayView2<f32>,
        y: ArrayView2<f32>,
    ) -> Result<(), EvalError> {
        let tell =
            |observer: &dyn Observer| observer.transposed_product(self.tensor, self.index(), x, y);
        self.observer.map_or(Ok(()), tell)
    }

    /// Which of several stacked it is.
    fn index(&self) -> usize {
        self.first_row as usize / self.rows.max(1)
    }

    /// Some rows as f32.
    pub fn decode(&self, first: usize, rows: usize) -> Result<Rows, EvalError> {
        let mut weights = Rows::new(rows, self.columns);
        self.source.read_rows(self.tensor, self.first_row + first as u64, weights.values_mut())?;
        Ok(weights)
    }
}
