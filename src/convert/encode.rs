//! Units of work: some rows of a tensor, read, widened and encoded.

use super::error::ConvertError;
use super::plan::{Plan, PlannedTensor, UNIT_ELEMENTS};
use super::values::Seen;
use crate::gguf::TensorType;
use crate::quant::{QuantError, QuantType, float};
use crate::source::{Dtype, Source};
use std::ops::Range;

/// Weights read at a time, so that they are still in the core's own cache when they are encoded.
const CACHED_ELEMENTS: usize = 1 << 16;

/// Rows that are encoded together and lie together in the output.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Unit {
    /// Counted over the whole plan.
    pub number: u64,
    /// Index of the tensor in the plan.
    pub tensor: usize,
    pub rows: Range<u64>,
}

impl Plan {
    /// Every row of some tensors once, cut into units that keep whole matrices together where
    /// they are small and stay within one matrix where they are not.
    pub(super) fn units(&self, tensors: Range<usize>) -> impl Iterator<Item = Unit> + use<'_> {
        let all =
            self.tensors.iter().enumerate().flat_map(|(tensor, planned)| {
                rows_of_units(planned).map(move |rows| (tensor, rows))
            });
        let numbered = (0..).zip(all);
        numbered
            .map(|(number, (tensor, rows))| Unit { number, tensor, rows })
            .skip_while({
                let start = tensors.start;
                move |unit| unit.tensor < start
            })
            .take_while(move |unit| unit.tensor < tensors.end)
    }
}

fn rows_of_units(tensor: &PlannedTensor) -> impl Iterator<Item = Range<u64>> + use<> {
    let per_matrix = tensor.rows_per_matrix();
    let fit = (UNIT_ELEMENTS / tensor.n_per_row().max(1)).max(1);
    let n_rows = tensor.n_rows();
    let (span, step) =
        if fit >= per_matrix { (n_rows, fit / per_matrix * per_matrix) } else { (per_matrix, fit) };
    (0..n_rows).step_by(span.max(1) as usize).flat_map(move |start| {
        let end = (start + span).min(n_rows);
        (start..end).step_by(step as usize).map(move |first| first..(first + step).min(end))
    })
}

/// One thread's buffers.
pub(super) struct Encoder<'a> {
    source: &'a dyn Source,
    plan: &'a Plan,
    weights: Vec<f32>,
    bytes: Vec<u8>,
    seen: Option<&'a Seen>,
}

impl<'a> Encoder<'a> {
    pub fn new(plan: &'a Plan, source: &'a dyn Source) -> Self {
        Self { source, plan, weights: Vec::new(), bytes: Vec::new(), seen: None }
    }

    /// From now on, notes which matrices hold anything but zeros.
    pub fn watched_by(self, seen: &'a Seen) -> Self {
        Self { seen: Some(seen), ..self }
    }

    /// Reads rows as they are encoded: in the precision of what comes between.
    fn widen(&mut self, tensor: usize, rows: Range<u64>) -> Result<(), ConvertError> {
        let planned = &self.plan.tensors[tensor];
        self.source.read_rows(planned.source, rows.start, &mut self.weights)?;
        if let Some(seen) = self.seen {
            seen.look(self.plan, tensor, rows, &self.weights);
        }
        let dtype = self.source.tensors()[planned.source].dtype;
        if planned.stored == QuantType::BF16 && dtype != Dtype::Gguf(QuantType::BF16) {
            float::round_to_bf16(self.plan.simd, &mut self.weights);
        }
        Ok(())
    }

    /// The weights of some rows.
    pub fn weights(mut self, tensor: usize, rows: Range<u64>) -> Result<Vec<f32>, ConvertError> {
        let n_per_row = self.plan.tensors[tensor].n_per_row();
        self.weights.resize(((rows.end - rows.start) * n_per_row) as usize, 0.0);
        self.widen(tensor, rows)?;
        Ok(self.weights)
    }

    /// The bytes that a unit has in the output.
    pub fn encode(&mut self, unit: &Unit) -> Result<&[u8], ConvertError> {
        let tensor = &self.plan.tensors[unit.tensor];
        let rows = unit.rows.clone();
        let n_per_row = tensor.n_per_row() as usize;
        let n_rows = (rows.end - rows.start) as usize;
        if tensor.ty == tensor.stored
            && self.source.read_raw(tensor.source, rows.clone(), &mut self.bytes)?
        {
            self.source.release(tensor.source, rows.clone());
            if let Some(seen) = self.seen {
                seen.pass_over(self.plan, unit.tensor, rows);
            }
            return Ok(&self.bytes);
        }
        let TensorType::Known(ty) = tensor.ty else {
            let (tensor, id) = (tensor.name.clone(), tensor.ty.id());
            return Err(ConvertError::UnknownType { tensor, id });
        };
        let encode_error = |error| {
            let error = shift_row(error, rows.start, n_per_row);
            let row = match error {
                QuantError::NotFinite { row, .. } => row as u64,
                _ => rows.start,
            };
            ConvertError::Encode {
                origin: self.source.origin(tensor.source, row),
                tensor: tensor.name.clone(),
                ty,
                error,
            }
        };
        let row_bytes = ty
            .row_bytes(n_per_row)
            .ok_or_else(|| encode_error(QuantError::RowLength { ty, n_per_row }))?;
        self.bytes.resize(n_rows * row_bytes, 0);
        let dtype = self.source.tensors()[tensor.source].dtype;
        // What is finite stays so.
        let exact = ty == QuantType::F32 || dtype == Dtype::Gguf(ty);
        // Every matrix of a stack has importances of its own.
        let per_matrix = tensor.rows_per_matrix() as usize;
        // A few rows at a time: in eights, as kernels take them.
        let granule = match self.source.granule(tensor.source) as usize {
            ..=8 => 8,
            rows => rows,
        };
        let at_once = (CACHED_ELEMENTS / n_per_row.max(1)).max(granule) / granule * granule;
        let (mut first, mut read) = (0, 0..0);
        while first < n_rows {
            let row = rows.start as usize + first;
            if first == read.end {
                read = first..n_rows.min(first + at_once);
                self.weights.resize(read.len() * n_per_row, 0.0);
                let rows = row as u64..rows.start + read.end as u64;
                self.widen(unit.tensor, rows)?;
            }
            let next = match tensor.weighing {
                Some(_) => read.end.min(first + per_matrix - row % per_matrix),
                None => read.end,
            };
            let guide = self.plan.guide(tensor, row / per_matrix);
            let at = (first - read.start) * n_per_row;
            let weights = &self.weights[at..at + (next - first) * n_per_row];
            let bytes = &mut self.bytes[first * row_bytes..next * row_bytes];
            ty.encode_rows_with(self.plan.simd, weights, n_per_row, guide, bytes)
                .map_err(|error| encode_error(shift_row(error, first as u64, n_per_row)))?;
            let valid = match exact {
                true => Ok(()),
                false => ty.validate_rows(bytes, n_per_row),
            };
            match valid.map_err(|error| by_place(error, n_per_row, bytes)) {
                Ok(()) => {}
                Err(QuantError::NotFinite { row: at, column, .. }) => {
                    let value = weights[at * n_per_row + column];
                    let row = (row + at) as u64;
                    let origin = self.source.origin(tensor.source, row);
                    let tensor = tensor.name.clone();
                    return Err(ConvertError::Overflow { origin, tensor, ty, row, column, value });
                }
                Err(error) if self.plan.check => {
                    return Err(encode_error(shift_row(error, first as u64, n_per_row)));
                }
                Err(_) => self.seen.iter().for_each(|seen| seen.is_infinite(unit.tensor)),
            }
            first = next;
        }
        self.source.release(tensor.source, rows);
        Ok(&self.bytes)
    }
}

/// Errors count rows and blocks from the unit's first; users count from the tensor's.
pub(super) fn shift_row(error: QuantError, first_row: u64, n_per_row: usize) -> QuantError {
    match error {
        QuantError::InvalidBlock { ty, block } => {
            let before = first_row as usize * (n_per_row / ty.block_len());
            QuantError::InvalidBlock { ty, block: block + before }
        }
        QuantError::NotFinite { row, column, value } => {
            QuantError::NotFinite { row: row + first_row as usize, column, value }
        }
        other => other,
    }
}

/// Names a value by row and column where it is a block of its own.
pub(super) fn by_place(error: QuantError, n_per_row: usize, bytes: &[u8]) -> QuantError {
    let QuantError::InvalidBlock { ty, block } = error else { return error };
    let (stored, mut value) = (&bytes[block * ty.block_bytes()..][..ty.block_bytes()], [0.0]);
    match ty.block_len() == 1 && ty.decode_rows(stored, 1, &mut value).is_ok() {
        true => QuantError::NotFinite {
            row: block / n_per_row,
            column: block % n_per_row,
            value: value[0],
        },
        false => error,
    }
}
