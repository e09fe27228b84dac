//! The streaming pass: workers take units of rows, widen, encode and write each at its place.
//!
//! Units need no order among themselves, so nothing waits for anything but the first error.

use super::error::ConvertError;
use super::plan::{Plan, PlannedTensor, UNIT_ELEMENTS};
use crate::gguf::Writer;
use crate::monitor::Monitor;
use crate::quant::{QuantError, QuantType, float};
use crate::source::Source;
use std::ops::Range;
use std::path::Path;
use std::sync::Mutex;

impl Plan {
    /// Writes the file. It gets its name only when it is complete and on disk; an error, a
    /// cancelled monitor or the end of the process leave nothing under that name.
    ///
    /// The monitor counts weights.
    ///
    /// # Errors
    /// Too little room, an existing output without `force`, weights that cannot be read or
    /// encoded, a failing disk: each naming file and tensor.
    pub fn run(
        &self,
        source: &dyn Source,
        output: &Path,
        force: bool,
        monitor: &dyn Monitor,
    ) -> Result<(), ConvertError> {
        let writer = Writer::create(output, &self.layout, force)?;
        let units = Mutex::new(self.units());
        let failure = Mutex::new(None);
        std::thread::scope(|scope| {
            for _ in 0..self.threads {
                scope.spawn(|| {
                    let mut worker = Worker {
                        source,
                        writer: &writer,
                        plan: self,
                        weights: Vec::new(),
                        bytes: Vec::new(),
                    };
                    while failure.lock().is_ok_and(|f| f.is_none()) {
                        let Some((tensor, rows)) = units.lock().ok().and_then(|mut u| u.next())
                        else {
                            break;
                        };
                        let done = match monitor.cancelled() {
                            true => Err(ConvertError::Cancelled),
                            false => worker.unit(tensor, &self.tensors[tensor], rows),
                        };
                        match done {
                            Ok(weights) => monitor.advance(weights),
                            Err(error) => {
                                if let Ok(mut failure) = failure.lock() {
                                    failure.get_or_insert(error);
                                }
                            }
                        }
                    }
                });
            }
        });
        match failure.into_inner() {
            Ok(None) => Ok(writer.finish()?),
            Ok(Some(error)) => Err(error),
            Err(poisoned) => Err(poisoned.into_inner().unwrap_or(ConvertError::Cancelled)),
        }
    }

    /// Every row of every tensor once, cut into units that keep whole matrices together where
    /// they are small and stay within one matrix where they are not.
    fn units(&self) -> impl Iterator<Item = (usize, Range<u64>)> + use<'_> {
        self.tensors.iter().enumerate().flat_map(|(i, tensor)| {
            let per_matrix = tensor.dims.get(1).copied().unwrap_or(1).max(1);
            let fit = (UNIT_ELEMENTS / tensor.dims[0].max(1)).max(1);
            let (span, step) = if fit >= per_matrix {
                (tensor.n_rows(), fit / per_matrix * per_matrix)
            } else {
                (per_matrix, fit)
            };
            let n_rows = tensor.n_rows();
            (0..n_rows).step_by(span.max(1) as usize).flat_map(move |start| {
                let end = (start + span).min(n_rows);
                (start..end)
                    .step_by(step as usize)
                    .map(move |first| (i, first..(first + step).min(end)))
            })
        })
    }
}

/// One thread's buffers.
struct Worker<'a> {
    source: &'a dyn Source,
    writer: &'a Writer,
    plan: &'a Plan,
    weights: Vec<f32>,
    bytes: Vec<u8>,
}

impl Worker<'_> {
    /// Carries out one unit and returns its weights.
    fn unit(
        &mut self,
        index: usize,
        tensor: &PlannedTensor,
        rows: Range<u64>,
    ) -> Result<u64, ConvertError> {
        let n_per_row = tensor.dims[0] as usize;
        let n_rows = (rows.end - rows.start) as usize;
        let encode_error = |error| {
            let error = shift_row(error, rows.start);
            let row = match error {
                QuantError::NotFinite { row, .. } => row as u64,
                _ => rows.start,
            };
            ConvertError::Encode {
                origin: self.source.origin(tensor.source, row),
                tensor: tensor.name.clone(),
                ty: tensor.ty,
                error,
            }
        };
        let row_bytes = tensor
            .ty
            .row_bytes(n_per_row)
            .ok_or_else(|| encode_error(QuantError::RowLength { ty: tensor.ty, n_per_row }))?;
        let at = rows.start * row_bytes as u64;
        if tensor.ty == tensor.stored
            && let Some(bytes) = self.source.raw_rows(tensor.source, rows.clone())
        {
            self.writer.write_at(index, at, bytes)?;
            self.source.release(tensor.source, rows);
            return Ok((n_rows * n_per_row) as u64);
        }
        self.weights.resize(n_rows * n_per_row, 0.0);
        self.bytes.resize(n_rows * row_bytes, 0);
        self.source.read_rows(tensor.source, rows.start, &mut self.weights)?;
        if tensor.stored == QuantType::BF16 {
            float::round_to_bf16(&mut self.weights);
        }
        // Every matrix of a stack has an importance of its own.
        let imatrix = self.plan.imatrix.as_ref().filter(|_| tensor.weighed);
        let per_matrix = tensor.dims.get(1).map_or(1, |&n| n as usize);
        let mut first = 0;
        while first < n_rows {
            let row = rows.start as usize + first;
            let (next, importance) = match imatrix {
                None => (n_rows, None),
                Some(imatrix) => {
                    let at = row / per_matrix * n_per_row;
                    let importance = &imatrix.entries[&tensor.name][at..at + n_per_row];
                    (n_rows.min(first + per_matrix - row % per_matrix), Some(importance))
                }
            };
            let weights = &self.weights[first * n_per_row..next * n_per_row];
            let bytes = &mut self.bytes[first * row_bytes..next * row_bytes];
            tensor
                .ty
                .encode_rows_with(self.plan.simd, weights, n_per_row, importance, bytes)
                .map_err(|error| encode_error(shift_row(error, first as u64)))?;
            first = next;
        }
        if self.plan.check {
            tensor.ty.validate_rows(&self.bytes, n_per_row).map_err(encode_error)?;
        }
        self.writer.write_at(index, at, &self.bytes)?;
        self.source.release(tensor.source, rows);
        Ok(self.weights.len() as u64)
    }
}

/// Errors count rows from the unit's first; users count from the tensor's.
fn shift_row(error: QuantError, first_row: u64) -> QuantError {
    match error {
        QuantError::NotFinite { row, column, value } => {
            QuantError::NotFinite { row: row + first_row as usize, column, value }
        }
        other => other,
    }
}
