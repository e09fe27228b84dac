//! Units of work: some rows of a tensor, read, widened and encoded.

use super::error::ConvertError;
use super::plan::{Plan, PlannedTensor, UNIT_ELEMENTS};
use super::values::Seen;
use crate::gguf::TensorType;
use crate::quant::{QuantError, QuantType, float};
use crate::source::{Dtype, Source};
use std::ops::Range;

/// Weights read at a time, so that they are still in the core's own cache when they are encoded.
const CACHED_ELEMENTS: u64 = 1 << 16;

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

/// One thread's buffers, for one plan or for several whose tensors are the same but for their types.
pub(super) struct Encoder<'a> {
    source: &'a dyn Source,
    plans: Vec<&'a Plan>,
    weights: Vec<f32>,
    /// What each plan makes of the unit.
    bytes: Vec<Vec<u8>>,
    /// Where that is found: at the first plan that makes the same.
    made_for: Vec<usize>,
    seen: Option<&'a Seen>,
}

impl<'a> Encoder<'a> {
    pub fn new(plans: impl IntoIterator<Item = &'a Plan>, source: &'a dyn Source) -> Self {
        let plans: Vec<&Plan> = plans.into_iter().collect();
        let bytes = vec![Vec::new(); plans.len()];
        let made_for = (0..plans.len()).collect();
        Self { source, plans, weights: Vec::new(), bytes, made_for, seen: None }
    }

    /// From now on, notes which matrices hold anything but zeros.
    pub fn watched_by(self, seen: &'a Seen) -> Self {
        Self { seen: Some(seen), ..self }
    }

    /// Reads rows as they are encoded: in the precision of what comes between.
    fn widen(&mut self, tensor: usize, rows: Range<u64>) -> Result<(), ConvertError> {
        let plan = self.plans[0];
        let planned = &plan.tensors[tensor];
        self.weights.resize(((rows.end - rows.start) * planned.n_per_row()) as usize, 0.0);
        self.source.read_rows(planned.source, rows.start, &mut self.weights)?;
        if let Some(seen) = self.seen {
            seen.look(plan, tensor, rows, &self.weights);
        }
        let dtype = self.source.tensors()[planned.source].dtype;
        if planned.stored == QuantType::BF16 && dtype != Dtype::Gguf(QuantType::BF16) {
            float::round_to_bf16(plan.simd, &mut self.weights);
        }
        Ok(())
    }

    /// The weights of some rows.
    pub fn weights(mut self, tensor: usize, rows: Range<u64>) -> Result<Vec<f32>, ConvertError> {
        self.widen(tensor, rows)?;
        Ok(self.weights)
    }

    /// The bytes that a unit has in the output of the only plan.
    pub fn encode(&mut self, unit: &Unit) -> Result<&[u8], ConvertError> {
        self.encode_for(unit, &[0])?;
        Ok(self.bytes(0))
    }

    /// Makes what a unit is in some of the plans. Its rows are widened once, and those that are the same in
    /// several plans are made once.
    pub fn encode_for(&mut self, unit: &Unit, plans: &[usize]) -> Result<(), ConvertError> {
        let mut encoded = Vec::new();
        for (i, &plan) in plans.iter().enumerate() {
            let same = |&&other: &&usize| self.plans[plan].makes_as(self.plans[other], unit.tensor);
            self.made_for[plan] = plans[..i].iter().find(same).map_or(plan, |&other| other);
            if self.made_for[plan] == plan && !self.take_over(plan, unit)? {
                encoded.push(plan);
            }
        }
        match (encoded.is_empty(), self.seen) {
            (true, Some(seen)) => seen.pass_over(self.plans[0], unit.tensor, unit.rows.clone()),
            (true, None) => {}
            (false, _) => self.encode_rows(unit, &encoded)?,
        }
        let source = self.plans[0].tensors[unit.tensor].source;
        self.source.release(source, unit.rows.clone());
        Ok(())
    }

    /// What [`Encoder::encode_for`] has made for a plan.
    pub fn bytes(&self, plan: usize) -> &[u8] {
        &self.bytes[self.made_for[plan]]
    }

    /// Takes the bytes of a unit as the source has them; `false` where they become others.
    fn take_over(&mut self, plan: usize, unit: &Unit) -> Result<bool, ConvertError> {
        let tensor = &self.plans[plan].tensors[unit.tensor];
        let bytes = &mut self.bytes[plan];
        Ok(tensor.ty == tensor.stored
            && self.source.read_raw(tensor.source, unit.rows.clone(), bytes)?)
    }

    /// Reads a few rows at a time, and encodes them for each of the plans.
    fn encode_rows(&mut self, unit: &Unit, plans: &[usize]) -> Result<(), ConvertError> {
        let rows = unit.rows.clone();
        for &plan in plans {
            let row_bytes = self.row_bytes(plan, unit)?;
            self.bytes[plan].resize((rows.end - rows.start) as usize * row_bytes, 0);
        }
        let tensor = &self.plans[0].tensors[unit.tensor];
        // In eights, as kernels take them.
        let granule = match self.source.granule(tensor.source) {
            ..=8 => 8,
            rows => rows,
        };
        let cached = CACHED_ELEMENTS / tensor.n_per_row().max(1);
        let at_once = cached.max(granule) / granule * granule;
        for first in rows.clone().step_by(at_once as usize) {
            let read = first..rows.end.min(first + at_once);
            self.widen(unit.tensor, read.clone())?;
            for &plan in plans {
                self.encode_widened(plan, unit, read.clone())?;
            }
        }
        Ok(())
    }

    fn row_bytes(&self, plan: usize, unit: &Unit) -> Result<usize, ConvertError> {
        let tensor = &self.plans[plan].tensors[unit.tensor];
        let n_per_row = tensor.n_per_row() as usize;
        let TensorType::Known(ty) = tensor.ty else {
            let (tensor, id) = (tensor.name.clone(), tensor.ty.id());
            return Err(ConvertError::UnknownType { tensor, id });
        };
        let wrong = QuantError::RowLength { ty, n_per_row };
        let first = unit.rows.start;
        ty.row_bytes(n_per_row)
            .ok_or_else(|| self.encode_error(plan, unit.tensor, ty, wrong, first))
    }

    /// An error in rows, which it counts from the first of the tensor.
    fn encode_error(
        &self,
        plan: usize,
        tensor: usize,
        ty: QuantType,
        error: QuantError,
        first: u64,
    ) -> ConvertError {
        let tensor = &self.plans[plan].tensors[tensor];
        let row = match error {
            QuantError::NotFinite { row, .. } => row as u64,
            _ => first,
        };
        let origin = self.source.origin(tensor.source, row);
        ConvertError::Encode { origin, tensor: tensor.name.clone(), ty, error }
    }

    /// Encodes rows that have been read, matrix by matrix where each has importances of its own.
    fn encode_widened(
        &mut self,
        plan: usize,
        unit: &Unit,
        read: Range<u64>,
    ) -> Result<(), ConvertError> {
        let of = self.plans[plan];
        let tensor = &of.tensors[unit.tensor];
        let TensorType::Known(ty) = tensor.ty else { return Ok(()) };
        let n_per_row = tensor.n_per_row() as usize;
        let per_matrix = tensor.rows_per_matrix();
        let mut all = std::mem::take(&mut self.bytes[plan]);
        let row_bytes = all.len() / (unit.rows.end - unit.rows.start) as usize;
        // What is finite stays so.
        let exact =
            ty == QuantType::F32 || self.source.tensors()[tensor.source].dtype == Dtype::Gguf(ty);
        let mut first = read.start;
        while first < read.end {
            let next = match tensor.weighing {
                Some(_) => read.end.min(first + per_matrix - first % per_matrix),
                None => read.end,
            };
            let within = |start: u64, width: usize| {
                (first - start) as usize * width..(next - start) as usize * width
            };
            let weights = &self.weights[within(read.start, n_per_row)];
            let bytes = &mut all[within(unit.rows.start, row_bytes)];
            let guide = of.guide(tensor, (first / per_matrix) as usize);
            let shifted = |error| {
                let error = shift_row(error, first, n_per_row);
                self.encode_error(plan, unit.tensor, ty, error, unit.rows.start)
            };
            ty.encode_or_search(of.search, of.simd, weights, n_per_row, guide, bytes)
                .map_err(shifted)?;
            let valid = match exact {
                true => Ok(()),
                false => ty.validate_rows(bytes, n_per_row),
            };
            match valid.map_err(|error| by_place(error, n_per_row, bytes)) {
                Ok(()) => {}
                Err(QuantError::NotFinite { row: at, column, .. }) => {
                    let value = weights[at * n_per_row + column];
                    let row = first + at as u64;
                    let origin = self.source.origin(tensor.source, row);
                    let tensor = tensor.name.clone();
                    return Err(ConvertError::Overflow { origin, tensor, ty, row, column, value });
                }
                Err(error) if of.check => return Err(shifted(error)),
                Err(_) => self.seen.iter().for_each(|seen| seen.is_infinite(unit.tensor)),
            }
            first = next;
        }
        self.bytes[plan] = all;
        Ok(())
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
