//! Which tensor a value that is not finite comes from.

use super::error::EvalError;
use super::observe::Observer;
use crate::quant::{Simd, all_finite};
use crate::source::Source;
use ndarray::parallel::prelude::*;
use ndarray::{ArrayView1, ArrayView2, Axis};
use std::sync::{Mutex, PoisonError};

/// Notes the matrices whose product has a last row that is not finite, though that row of their
/// input is.
#[derive(Default)]
pub(super) struct Probe {
    found: Mutex<Vec<(usize, usize)>>,
}

impl Probe {
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
        if y.nrows() > 0 && is_finite(x.row(last)) && !is_finite(y.row(last)) {
            let mut found = self.found.lock().unwrap_or_else(PoisonError::into_inner);
            found.push((tensor, matrix));
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

/// The first row that holds a value that is not finite.
pub(super) fn first_not_finite(rows: ArrayView2<f32>) -> Option<usize> {
    rows.axis_iter(Axis(0)).into_par_iter().position_first(|row| !is_finite(row))
}

fn is_finite(row: ArrayView1<f32>) -> bool {
    match row.as_slice() {
        Some(row) => all_finite(Simd::detect(), row),
        None => row.iter().all(|value| value.is_finite()),
    }
}
