//! Values that are no error and yet not as they should be, found in the pass that reads them anyway:
//! matrices that are nothing but zeros, which is what a download that was set aside but never filled
//! leaves, or an expert that was lost; and scales that became infinite.

use super::plan::{Plan, PlannedTensor};
use crate::names::{in_short, runs};
use crate::source::{Source, SourceError};
use crate::warning::{Topic, Warning};
use std::collections::BTreeSet;
use std::ops::Range;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Mutex, PoisonError};

/// What a pass has seen of a plan's tensors.
pub(super) struct Seen {
    /// Which of their matrices hold anything but zeros.
    hold: Vec<Vec<AtomicBool>>,
    /// Those with infinite scales.
    infinite: Mutex<BTreeSet<usize>>,
}

impl Seen {
    pub fn new(plan: &Plan) -> Self {
        let of = |tensor: &PlannedTensor| {
            let n = if tensor.dims.len() < 2 { 0 } else { tensor.dims.iter().skip(2).product() };
            (0..n).map(|_| AtomicBool::new(false)).collect()
        };
        Self { hold: plan.tensors().iter().map(of).collect(), infinite: Mutex::default() }
    }

    /// Rows of a tensor that have been read. What ends at the first weight that is not 0 costs nothing.
    pub fn look(&self, plan: &Plan, tensor: usize, rows: Range<u64>, weights: &[f32]) {
        let planned = &plan.tensors()[tensor];
        let (n, per_matrix) = (planned.n_per_row() as usize, planned.rows_per_matrix());
        for (row, weights) in rows.zip(weights.chunks_exact(n.max(1))) {
            let Some(seen) = self.hold[tensor].get((row / per_matrix.max(1)) as usize) else {
                return;
            };
            if !seen.load(Ordering::Relaxed) && weights.iter().any(|&weight| weight != 0.0) {
                seen.store(true, Ordering::Relaxed);
            }
        }
    }

    /// Rows that nobody has looked at: they are given the benefit of the doubt.
    pub fn pass_over(&self, plan: &Plan, tensor: usize, rows: Range<u64>) {
        let per_matrix = plan.tensors()[tensor].rows_per_matrix().max(1);
        for matrix in rows.start / per_matrix..rows.end.div_ceil(per_matrix) {
            if let Some(seen) = self.hold[tensor].get(matrix as usize) {
                seen.store(true, Ordering::Relaxed);
            }
        }
    }

    /// A tensor has a scale that became infinite.
    pub fn is_infinite(&self, tensor: usize) {
        self.infinite.lock().unwrap_or_else(PoisonError::into_inner).insert(tensor);
    }

    /// What to warn of among these tensors.
    pub fn warnings(&self, plan: &Plan, tensors: Range<usize>) -> Vec<Warning> {
        let found = tensors.filter(|&i| plan.tensors()[i].n_elements() > 0).map(|i| {
            let of = |(matrix, seen): (usize, &AtomicBool)| {
                (!seen.load(Ordering::Relaxed)).then_some(matrix as u32)
            };
            let zeros = self.hold[i].iter().enumerate().filter_map(of).collect();
            (plan.tensors()[i].name.as_str(), self.hold[i].len(), zeros)
        });
        let mut warnings = describe(found);
        let infinite = self.infinite.lock().unwrap_or_else(PoisonError::into_inner);
        if !infinite.is_empty() {
            let names: Vec<&str> =
                infinite.iter().map(|&i| plan.tensors()[i].name.as_str()).collect();
            let text = format!(
                "weights so large that their scales became infinite, as llama-quantize writes them, in {}; \
                 give these tensors another type",
                in_short(&names)
            );
            warnings.push(Warning::new(Topic::Values, text));
        }
        warnings
    }
}

/// Warns of every matrix of a model that is nothing but zeros. Reads a row of each, and more only
/// where that is zero.
///
/// # Errors
/// Rows that cannot be read.
pub fn zeros(source: &dyn Source) -> Result<Vec<Warning>, SourceError> {
    let mut found: Vec<(&str, usize, Vec<u32>)> = Vec::new();
    for (i, meta) in source.tensors().iter().enumerate() {
        let readable = meta.dims.len() >= 2 && meta.n_elements() > 0 && meta.dtype.is_readable();
        if !readable {
            continue;
        }
        let (per_matrix, mut zeros) = (meta.dims[1], Vec::new());
        let matrices = meta.n_rows() / per_matrix;
        let mut row = vec![0.0; meta.n_per_row() as usize];
        for matrix in 0..matrices {
            let mut zero = true;
            for at in matrix * per_matrix..(matrix + 1) * per_matrix {
                source.read_rows(i, at, &mut row)?;
                zero = row.iter().all(|&weight| weight == 0.0);
                if !zero {
                    break;
                }
            }
            zeros.extend(zero.then_some(matrix as u32));
        }
        found.push((&meta.name, matrices as usize, zeros));
    }
    Ok(describe(found.into_iter()))
}

/// One warning of whole tensors, one of parts of stacks.
fn describe<'a>(found: impl Iterator<Item = (&'a str, usize, Vec<u32>)>) -> Vec<Warning> {
    let (mut whole, mut parts) = (Vec::new(), Vec::new());
    for (name, of, zeros) in found.filter(|(_, _, zeros)| !zeros.is_empty()) {
        match zeros.len() == of {
            true => whole.push(name),
            false => parts.push(format!("{name}: {}", runs(zeros))),
        }
    }
    let mut warnings = Vec::new();
    let advice = "is the download complete?";
    if !whole.is_empty() {
        let text = format!("nothing but zeros in {}; {advice}", in_short(&whole));
        warnings.push(Warning::new(Topic::Values, text));
    }
    if !parts.is_empty() {
        const SHOWN: usize = 8;
        let more = match parts.len().saturating_sub(SHOWN) {
            0 => String::new(),
            more => format!(" and {more} more tensors"),
        };
        parts.truncate(SHOWN);
        let text = format!("nothing but zeros in matrices of {}{more}; {advice}", parts.join("; "));
        warnings.push(Warning::new(Topic::Values, text));
    }
    warnings
}
