//! FP8 weights with scales, whoever quantized them and whatever the scales are called.
//!
//! A weight is its stored value times its scale; `weight_scale_inv` too is a factor.

use super::scale::Scale;
use super::{Claimed, Coded, Part, Tensors, with_bytes};
use crate::quant::fp8::{Fp8, Scales};
use crate::source::error::{CheckpointError, SourceError};
use crate::source::shards::{Shards, Stored};
use crate::source::{Coding, Dtype};
use safetensors::tensor::Dtype as StDtype;
use std::ops::Range;
use std::sync::{Mutex, PoisonError};

const E4M3: Coding = Coding { name: "F8_E4M3", bytes: 1, weights: 1, activations_of: None };
const E5M2: Coding = Coding { name: "F8_E5M2", ..E4M3 };

struct ScaledFp8 {
    values: Part,
    format: Fp8,
    n_rows: u64,
    n_per_row: usize,
    scale: Scale,
    /// The name of a tensor that says nothing.
    zero_point: String,
    /// Row and column of the first scale of 0 that was met for weights stored as others.
    wiped: Mutex<Option<[u64; 2]>>,
}

/// Claims what is stored in FP8.
pub(super) fn claim(
    tensors: &Tensors,
    name: &str,
    stored: Option<&Stored>,
) -> Result<Option<Claimed>, CheckpointError> {
    let Some(stored) = stored else { return Ok(None) };
    let (coding, format) = match stored.info.dtype {
        StDtype::F8_E4M3 => (E4M3, Fp8::E4M3),
        StDtype::F8_E5M2 => (E5M2, Fp8::E5M2),
        _ => return Ok(None),
    };
    let zero_point = format!("{name}_zero_point");
    if let Some(stored) = tensors.find(&zero_point)?
        && !tensors.shards.is_zero(stored)?
    {
        let path = tensors.shards.path_of(stored).to_owned();
        return Err(CheckpointError::ZeroPoint { path, tensor: zero_point });
    }
    let &[rows, columns] = stored.info.shape.as_slice() else {
        return Err(CheckpointError::Fp8Shape {
            path: tensors.shards.path_of(stored).to_owned(),
            tensor: name.to_owned(),
            shape: stored.info.shape.clone(),
        });
    };
    let coded = ScaledFp8 {
        values: tensors.part(name, stored),
        format,
        n_rows: rows as u64,
        n_per_row: columns,
        scale: Scale::of(name, stored, [rows, columns], tensors)?,
        zero_point,
        wiped: Mutex::default(),
    };
    let dims = vec![columns as u64, rows as u64];
    Ok(Some(Claimed { dtype: Dtype::Coded(coding), dims, coded: Box::new(coded) }))
}

impl Coded for ScaledFp8 {
    fn values(&self) -> &Part {
        &self.values
    }

    fn beside(&self) -> Vec<&Part> {
        vec![&self.scale.part]
    }

    fn without_use(&self) -> Vec<String> {
        vec![self.zero_point.clone()]
    }

    fn read(&self, shards: &Shards, rows: Range<u64>, out: &mut [f32]) -> Result<(), SourceError> {
        let [height, width] = self.scale.block;
        let first = rows.start as usize;
        let block_rows = self.scale.rows(&rows);
        let values = self.scale.read(shards, block_rows.clone())?;
        let (per_row, before) = (self.scale.per_row, first % height);
        let scales = Scales { values: &values, per_row, height, width, before };
        let bytes = self.values.rows(rows, self.n_rows);
        with_bytes(shards, &self.values, bytes, |bytes| {
            for at in (0..values.len()).filter(|&at| values[at] == 0.0) {
                let at = [at / per_row, at % per_row];
                if self.wipes(bytes, &scales, at) {
                    self.is_wiped([(block_rows.start + at[0]) as u64, at[1] as u64]);
                }
            }
            self.format.decode_rows(shards.simd, bytes, self.n_per_row, scales, out)
        })?
        .map_err(|[row, column]| SourceError::Fp8Nan {
            path: shards.files[self.values.shard].path.clone(),
            tensor: self.values.name.clone(),
            row: (first + row) as u64,
            column: column as u64,
        })
    }

    fn wiped_by(&self) -> Option<(&Part, [u64; 2])> {
        let wiped = self.wiped.lock().unwrap_or_else(PoisonError::into_inner);
        wiped.map(|at| (&self.scale.part, at))
    }
}

impl ScaledFp8 {
    /// Whether there are values other than 0 in a block of these rows.
    fn wipes(&self, bytes: &[u8], scales: &Scales, [block_row, block]: [usize; 2]) -> bool {
        let rows = bytes.chunks_exact(self.n_per_row).enumerate();
        let in_block = rows.filter(|(row, _)| (scales.before + row) / scales.height == block_row);
        let mut bytes = in_block.filter_map(|(_, bytes)| bytes.chunks(scales.width).nth(block));
        bytes.any(|bytes| bytes.iter().any(|byte| byte & 0x7f != 0))
    }

    fn is_wiped(&self, at: [u64; 2]) {
        let mut wiped = self.wiped.lock().unwrap_or_else(PoisonError::into_inner);
        *wiped = Some(wiped.map_or(at, |first| first.min(at)));
    }
}
