//! Which tensor a value that is not finite comes from.

use super::error::EvalError;
use super::observe::Observer;
use crate::quant::float::all_finite;
use crate::simd::Simd;
use crate::source::Source;
use ndarray::parallel::prelude::*;
use ndarray::{ArrayView1, ArrayView2, Axis};
use std::sync::{Mutex, PoisonError};

/// Notes the matrices whose product has a last row that is not finite, though that row of their
/// input is.
pub(super) struct Probe {
    simd: Simd,
    found: Mutex<Vec<(usize, usize)>>,
}

impl Probe {
    /// To look with these instructions.
    pub fn new(simd: Simd) -> Self {
        Self { simd, found: Mutex::default() }
    }

    /// The first of them: its tensor's name, and which of several stacked it is.
    pub fn found(&self, source: &dyn Source) -> Option<String> {
        let found = self.found.lock().unwrap_or_else(PoisonError::into_inner);
        let (tensor, matrix) = *found.iter().min()?;
        let meta = &source.tensors()[tensor];
        let stacked = meta.dims.get(2).is_some_and(|&n| n > 1);
        Some(match (stacked, meta.name.contains("_exps.")) {
            (false, _) => format!("`{}`", meta.name),
            (true, true) => format!("`{}`, expert {matrix},", meta.name),
            (true, false) => format!("`{}`, head {matrix},", meta.name),
        })
    }
}

impl Observer for Probe {
    fn product(
        &self,
        tensor: usize,
        matrix: usize,
        x: ArrayView2<f32>,
        y: ArrayView2<f32>,
    ) -> Result<(), EvalError> {
        let last = y.nrows().saturating_sub(1);
        if y.nrows() > 0 && is_finite(self.simd, x.row(last)) && !is_finite(self.simd, y.row(last))
        {
            let mut found = self.found.lock().unwrap_or_else(PoisonError::into_inner);
            found.push((tensor, matrix));
        }
        Ok(())
    }

    fn transposed_product(
        &self,
        tensor: usize,
        matrix: usize,
        x: ArrayView2<f32>,
        y: ArrayView2<f32>,
    ) -> Result<(), EvalError> {
        self.product(tensor, matrix, x, y)
    }

    fn seen(&self, _layer: u32) -> Vec<u8> {
        Vec::new()
    }

    fn take_up(&self, _layer: u32, _seen: &[u8]) -> Result<(), EvalError> {
        Ok(())
    }
}

/// The first row that holds a value that is not finite.
pub(super) fn first_not_finite(simd: Simd, rows: ArrayView2<f32>) -> Option<usize> {
    rows.axis_iter(Axis(0)).into_par_iter().position_first(|row| !is_finite(simd, row))
}

fn is_finite(simd: Simd, row: ArrayView1<f32>) -> bool {
    match row.as_slice() {
        Some(row) => all_finite(simd, row),
        None => row.iter().all(|value| value.is_finite()),
    }
}
