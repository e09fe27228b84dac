//! Plain floats: F32, F16, BF16.

use super::{Claimed, Coded, InBlocks, Part, Tensors, with_bytes};
use crate::quant::QuantType;
use crate::source::Dtype;
use crate::source::error::{CheckpointError, SourceError};
use crate::source::shards::{Shards, Stored};
use safetensors::tensor::Dtype as StDtype;
use std::ops::Range;

struct Plain {
    values: Part,
    ty: QuantType,
    n_rows: u64,
    n_per_row: usize,
}

/// Claims what is stored as such.
pub(super) fn claim(
    tensors: &Tensors,
    name: &str,
    stored: Option<&Stored>,
) -> Result<Option<Claimed>, CheckpointError> {
    let Some(stored) = stored else { return Ok(None) };
    let ty = match stored.info.dtype {
        StDtype::F32 => QuantType::F32,
        StDtype::F16 => QuantType::F16,
        StDtype::BF16 => QuantType::BF16,
        _ => return Ok(None),
    };
    let dims: Vec<u64> = stored.info.shape.iter().rev().map(|&d| d as u64).collect();
    let n_per_row = dims.first().map_or(1, |&n| n as usize);
    let n_rows = dims.iter().skip(1).product();
    let coded = Plain { values: tensors.part(name, stored), ty, n_rows, n_per_row };
    Ok(Some(Claimed { dtype: Dtype::Gguf(ty), dims, coded: Box::new(coded) }))
}

impl Coded for Plain {
    fn values(&self) -> &Part {
        &self.values
    }

    fn read(&self, shards: &Shards, rows: Range<u64>, out: &mut [f32]) -> Result<(), SourceError> {
        let bytes = self.values.rows(rows, self.n_rows);
        let decode =
            |bytes: &[u8]| self.ty.decode_rows_with(shards.simd, bytes, self.n_per_row, out);
        with_bytes(shards, &self.values, bytes, decode)?
            .map_err(|error| shards.decode_error(&self.values, error))
    }

    fn blocks(&self) -> Option<&dyn InBlocks> {
        Some(self)
    }
}

impl InBlocks for Plain {
    fn ty(&self) -> QuantType {
        self.ty
    }

    fn read(&self, shards: &Shards, rows: Range<u64>, out: &mut [u8]) -> Result<(), SourceError> {
        shards.read(&self.values, self.values.rows(rows, self.n_rows).start, out)
    }
}
