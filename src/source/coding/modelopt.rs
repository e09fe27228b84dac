//! ModelOpt's NVFP4: E2M1 codes, two to a byte, an E4M3 scale for every 16 (`weight_scale`), and an f32
//! scale for the tensor (`weight_scale_2`).
//!
//! GGUF's NVFP4 has the same codes and scales in another order, four groups of 16 to a block, and no
//! place for the scale of the tensor.

use super::{Claimed, Coded, Factors, InBlocks, Part, Tensors, with_bytes};
use crate::quant::{QuantType, nvfp4_from_modelopt};
use crate::source::error::{CheckpointError, SourceError};
use crate::source::shards::{Shards, Stored};
use crate::source::{Coding, Dtype};
use safetensors::tensor::Dtype as StDtype;
use std::ops::Range;

const NVFP4: Coding =
    Coding { name: "NVFP4", bytes: 9, weights: 16, activations_of: Some(QuantType::NVFP4) };

/// Weights in a block of GGUF's.
const BLOCK: usize = 64;
/// Weights that share a scale.
const GROUP: u64 = 16;

struct NvFp4 {
    values: Part,
    scales: Part,
    /// One f32.
    global: Option<Part>,
    /// One f32 for the activations, which the weights do not need.
    input: Option<Part>,
    n_rows: u64,
    n_per_row: u64,
}

/// Claims bytes that have FP8 scales, or whose checkpoint is said to be ModelOpt's.
pub(super) fn claim(
    tensors: &Tensors,
    name: &str,
    stored: Option<&Stored>,
) -> Result<Option<Claimed>, CheckpointError> {
    let shards = tensors.shards;
    let scale = format!("{name}_scale");
    let is_fp8 = |copy: &Stored| copy.info.dtype == StDtype::F8_E4M3;
    let has_scale = shards.stored.get(&scale).is_some_and(|copies| copies.iter().all(is_fp8));
    let declared = tensors.declared.method.as_deref() == Some("modelopt");
    let stored = match stored {
        Some(stored) if stored.info.dtype == StDtype::U8 && (has_scale || declared) => stored,
        _ => return Ok(None),
    };
    let path = |stored: &Stored| shards.path_of(stored).to_owned();
    let Some(found) = tensors.find(&scale)? else {
        let (path, tensor) = (path(stored), name.to_owned());
        return Err(CheckpointError::MissingScale { path, tensor, scale });
    };
    let (rows, packed) = match *stored.info.shape.as_slice() {
        [rows, packed] if packed % (BLOCK / 2) == 0 => (rows, packed),
        _ => {
            return Err(CheckpointError::NvFp4Shape {
                path: path(stored),
                tensor: name.to_owned(),
                shape: stored.info.shape.clone(),
            });
        }
    };
    if found.info.dtype != StDtype::F8_E4M3 {
        let dtype = format!("{:?}", found.info.dtype);
        return Err(CheckpointError::Dtype { path: path(found), tensor: scale, dtype });
    }
    let scale_shape = |found: &Stored, tensor: String, expected: Vec<usize>| {
        let (path, found) = (path(found), found.info.shape.clone());
        CheckpointError::ScaleShape { path, tensor, found, expected }
    };
    let expected = vec![rows, packed / (GROUP as usize / 2)];
    if found.info.shape != expected {
        return Err(scale_shape(found, scale, expected));
    }
    let single = |name: String| match tensors.find(&name)? {
        None => Ok(None),
        Some(found)
            if found.info.dtype != StDtype::F32 || found.info.shape.iter().any(|&n| n != 1) =>
        {
            Err(scale_shape(found, name, vec![1]))
        }
        Some(found) => Ok(Some(tensors.part(&name, found))),
    };
    let (n_rows, n_per_row) = (rows as u64, 2 * packed as u64);
    let coded = NvFp4 {
        values: tensors.part(name, stored),
        scales: tensors.part(&scale, found),
        global: single(format!("{name}_scale_2"))?,
        input: single(input_scale(name))?,
        n_rows,
        n_per_row,
    };
    let dims = vec![n_per_row, n_rows];
    Ok(Some(Claimed { dtype: Dtype::Coded(NVFP4), dims, coded: Box::new(coded) }))
}

/// The name of the factor of the activations that a weight is multiplied with.
pub(in crate::source) fn input_scale(weight: &str) -> String {
    format!("{}.input_scale", weight.strip_suffix(".weight").unwrap_or(weight))
}

impl Coded for NvFp4 {
    fn values(&self) -> &Part {
        &self.values
    }

    fn beside(&self) -> Vec<&Part> {
        [&self.scales].into_iter().chain(&self.global).collect()
    }

    fn read(&self, shards: &Shards, rows: Range<u64>, out: &mut [f32]) -> Result<(), SourceError> {
        let factor = self.factors(shards)?.weights;
        let mut blocks = vec![0; out.len() / BLOCK * QuantType::NVFP4.block_bytes()];
        InBlocks::read(self, shards, rows, &mut blocks)?;
        QuantType::NVFP4
            .decode_rows_with(shards.simd, &blocks, self.n_per_row as usize, out)
            .map_err(|error| shards.decode_error(&self.values, error))?;
        out.iter_mut().for_each(|weight| *weight *= factor);
        Ok(())
    }

    fn blocks(&self) -> Option<&dyn InBlocks> {
        Some(self)
    }
}

impl InBlocks for NvFp4 {
    fn ty(&self) -> QuantType {
        QuantType::NVFP4
    }

    fn read(&self, shards: &Shards, rows: Range<u64>, out: &mut [u8]) -> Result<(), SourceError> {
        let per_row = self.n_per_row / GROUP;
        let mut scales = vec![0; ((rows.end - rows.start) * per_row) as usize];
        shards.read(
            &self.scales,
            self.scales.rows(rows.clone(), self.n_rows).start,
            &mut scales,
        )?;
        let bytes = self.values.rows(rows.clone(), self.n_rows);
        let repack = |codes: &[u8]| nvfp4_from_modelopt(codes, &scales, out);
        with_bytes(shards, &self.values, bytes, repack)?.map_err(|at| SourceError::Scale {
            path: shards.files[self.scales.shard].path.clone(),
            tensor: self.scales.name.clone(),
            row: rows.start + at as u64 / per_row,
            column: at as u64 % per_row,
            value: f32::NAN,
        })
    }

    fn factors(&self, shards: &Shards) -> Result<Factors, SourceError> {
        let read = |part: &Option<Part>| {
            let Some(part) = part else { return Ok(1.0) };
            let mut stored = [0; 4];
            shards.read(part, part.bytes.start, &mut stored)?;
            Ok(f32::from_le_bytes(stored))
        };
        Ok(Factors { weights: read(&self.global)?, activations: read(&self.input)? })
    }
}
