//! E2M1 codes, two to a byte, under scales of groups: NVFP4 and MXFP4.
//!
//! ```text
//!                          codes          scales of groups                        of the tensor
//! NVFP4, ModelOpt          weight         weight_scale, E4M3, 16 columns          weight_scale_2, a factor
//! NVFP4, compressed-tensors weight_packed weight_scale, E4M3, 16 columns          weight_global_scale, a divisor
//! MXFP4                    weight_packed  weight_scale, powers of two, 32 columns
//! ```
//! GGUF has the same codes and scales in another order, and no place for the scale of a tensor.

use super::{Claimed, Coded, Factors, InBlocks, Part, Tensors, with_bytes};
use crate::quant::fp8::{Fp8, Scales, power_of_two};
use crate::quant::{QuantType, fp4_pair, mxfp4_from_pairs, nvfp4_from_pairs};
use crate::source::error::{CheckpointError, SourceError};
use crate::source::shards::{Shards, Stored};
use crate::source::{Coding, Dtype};
use safetensors::tensor::Dtype as StDtype;
use std::ops::Range;

const NVFP4: Coding =
    Coding { name: "NVFP4", bytes: 9, weights: 16, activations_of: Some(QuantType::NVFP4) };
const MXFP4: Coding =
    Coding { name: "MXFP4", bytes: 17, weights: 32, activations_of: Some(QuantType::MXFP4) };

struct Fp4 {
    values: Part,
    scales: Part,
    kind: Kind,
    /// Whether it is under another name than `weight`.
    packed: bool,
    n_rows: u64,
    n_per_row: u64,
}

enum Kind {
    Nv(OfTensor),
    Mx,
}

/// Scales of a tensor as a whole, of one f32 each.
struct OfTensor {
    weights: Option<Part>,
    /// For the activations, which the weights do not need.
    activations: Option<Part>,
    divide: bool,
}

/// Claims bytes that have scales of a byte, or whose checkpoint is said to be ModelOpt's.
pub(super) fn claim(
    tensors: &Tensors,
    name: &str,
    stored: Option<&Stored>,
) -> Result<Option<Claimed>, CheckpointError> {
    let shards = tensors.shards;
    let scale = format!("{name}_scale");
    let is = |copy: &Stored, dtypes: &[StDtype]| dtypes.contains(&copy.info.dtype);
    let has_scale = |dtypes: &[StDtype]| {
        shards.stored.get(&scale).is_some_and(|copies| copies.iter().all(|copy| is(copy, dtypes)))
    };
    let declared = tensors.declared.method.as_deref() == Some("modelopt");
    let packed_name = format!("{name}_packed");
    let (values, stored) = match (stored, tensors.find(&packed_name)?) {
        (Some(stored), _)
            if is(stored, &[StDtype::U8]) && (has_scale(&[StDtype::F8_E4M3]) || declared) =>
        {
            (name, stored)
        }
        (None, Some(packed))
            if is(packed, &[StDtype::U8])
                && tensors.declared.format(name) != Some("mxfp6-pack-quantized") =>
        {
            (packed_name.as_str(), packed)
        }
        _ => return Ok(None),
    };
    let packed = values != name;
    let path = |stored: &Stored| shards.path_of(stored).to_owned();
    let Some(found) = tensors.find(&scale)? else {
        let (path, tensor) = (path(stored), name.to_owned());
        return Err(CheckpointError::MissingScale { path, tensor, scale });
    };
    let (coding, group) = match found.info.dtype {
        StDtype::F8_E4M3 => (NVFP4, 16),
        StDtype::U8 | StDtype::F8_E8M0 => (MXFP4, 32),
        other => {
            let dtype = format!("{other:?}");
            return Err(CheckpointError::Dtype { path: path(found), tensor: scale, dtype });
        }
    };
    let (rows, bytes) = match *stored.info.shape.as_slice() {
        [rows, bytes] if bytes % (group / 2) == 0 => (rows, bytes),
        _ => {
            let expected = format!("a matrix with rows of a multiple of {} bytes", group / 2);
            let found = format!("{:?}", stored.info.shape);
            return Err(tensors.unfit(values, stored, found, &expected));
        }
    };
    let scale_shape = |found: &Stored, tensor: String, expected: Vec<usize>| {
        let (path, found) = (path(found), found.info.shape.clone());
        CheckpointError::ScaleShape { path, tensor, found, expected }
    };
    let expected = vec![rows, bytes / (group / 2)];
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
    let module = name.strip_suffix(".weight").unwrap_or(name);
    let [of_weights, of_activations] = match packed {
        true => [format!("{name}_global_scale"), format!("{module}.input_global_scale")],
        false => [format!("{name}_scale_2"), format!("{module}.input_scale")],
    };
    let kind = match coding {
        NVFP4 => Kind::Nv(OfTensor {
            weights: single(of_weights)?,
            activations: single(of_activations)?,
            divide: packed,
        }),
        _ => Kind::Mx,
    };
    let (n_rows, n_per_row) = (rows as u64, 2 * bytes as u64);
    let (values, scales) = (tensors.part(values, stored), tensors.part(&scale, found));
    let coded = Fp4 { values, scales, kind, packed, n_rows, n_per_row };
    let dims = vec![n_per_row, n_rows];
    Ok(Some(Claimed { dtype: Dtype::Coded(coding), dims, coded: Box::new(coded) }))
}

impl OfTensor {
    /// A scale as it is stored; 1 where there is none.
    fn read(shards: &Shards, part: &Option<Part>) -> Result<f32, SourceError> {
        let Some(part) = part else { return Ok(1.0) };
        let mut stored = [0; 4];
        shards.read(part, part.bytes.start, &mut stored)?;
        Ok(f32::from_le_bytes(stored))
    }

    /// The scale as a factor.
    fn factor(&self, shards: &Shards, part: &Option<Part>) -> Result<f32, SourceError> {
        let stored = Self::read(shards, part)?;
        Ok(if self.divide { 1.0 / stored } else { stored })
    }
}

impl Fp4 {
    /// Columns that share a scale.
    fn group(&self) -> u64 {
        match self.kind {
            Kind::Nv(_) => 16,
            Kind::Mx => 32,
        }
    }

    /// The scales of rows, as they are stored.
    fn scales(&self, shards: &Shards, rows: &Range<u64>) -> Result<Vec<u8>, SourceError> {
        let per_row = self.n_per_row / self.group();
        let mut scales = vec![0; ((rows.end - rows.start) * per_row) as usize];
        let at = self.scales.rows(rows.clone(), self.n_rows).start;
        shards.read(&self.scales, at, &mut scales)?;
        Ok(scales)
    }

    /// Says that a scale is NaN.
    fn nan(&self, shards: &Shards, first: u64, at: usize) -> SourceError {
        let per_row = self.n_per_row / self.group();
        SourceError::Scale {
            path: shards.files[self.scales.shard].path.clone(),
            tensor: self.scales.name.clone(),
            row: first + at as u64 / per_row,
            column: at as u64 % per_row,
            value: f32::NAN,
        }
    }
}

impl Coded for Fp4 {
    fn values(&self) -> &Part {
        &self.values
    }

    fn beside(&self) -> Vec<&Part> {
        let of_tensor = match &self.kind {
            Kind::Nv(of_tensor) => of_tensor.weights.as_ref(),
            Kind::Mx => None,
        };
        [&self.scales].into_iter().chain(of_tensor).collect()
    }

    fn is_moved(&self) -> bool {
        self.packed
    }

    fn read(&self, shards: &Shards, rows: Range<u64>, out: &mut [f32]) -> Result<(), SourceError> {
        let stored = self.scales(shards, &rows)?;
        let mut scales = vec![0.0; stored.len()];
        let mut factor = 1.0;
        match &self.kind {
            Kind::Mx => {
                scales.iter_mut().zip(&stored).for_each(|(s, &byte)| *s = power_of_two(byte));
                if let Some(at) = scales.iter().position(|scale| scale.is_nan()) {
                    return Err(self.nan(shards, rows.start, at));
                }
            }
            Kind::Nv(of_tensor) => {
                let magnitudes: Vec<u8> = stored.iter().map(|byte| byte & 0x7f).collect();
                let one =
                    Scales { values: &[1.0], per_row: 1, height: 1, width: usize::MAX, before: 0 };
                Fp8::E4M3
                    .decode_rows(shards.simd, &magnitudes, magnitudes.len(), one, &mut scales)
                    .map_err(|[_, at]| self.nan(shards, rows.start, at))?;
                let of_all = OfTensor::read(shards, &of_tensor.weights)?;
                // As those who write them compute the weights.
                match of_tensor.divide {
                    true => scales.iter_mut().for_each(|scale| *scale /= of_all),
                    false => factor = of_all,
                }
            }
        }
        let group = self.group() as usize;
        let bytes = self.values.rows(rows, self.n_rows);
        with_bytes(shards, &self.values, bytes, |bytes| {
            let groups = bytes.chunks_exact(group / 2).zip(out.chunks_exact_mut(group));
            for ((bytes, out), scale) in groups.zip(scales) {
                for (byte, out) in bytes.iter().zip(out.as_chunks_mut::<2>().0) {
                    *out = fp4_pair(*byte).map(|value| value * scale * factor);
                }
            }
        })
    }

    fn blocks(&self) -> Option<&dyn InBlocks> {
        self.n_per_row.is_multiple_of(self.ty().block_len() as u64).then_some(self)
    }
}

impl InBlocks for Fp4 {
    fn ty(&self) -> QuantType {
        match self.kind {
            Kind::Nv(_) => QuantType::NVFP4,
            Kind::Mx => QuantType::MXFP4,
        }
    }

    fn read(&self, shards: &Shards, rows: Range<u64>, out: &mut [u8]) -> Result<(), SourceError> {
        let scales = self.scales(shards, &rows)?;
        let bytes = self.values.rows(rows.clone(), self.n_rows);
        let repack = |codes: &[u8]| match self.kind {
            Kind::Nv(_) => nvfp4_from_pairs(codes, &scales, out),
            Kind::Mx => mxfp4_from_pairs(codes, &scales, out),
        };
        with_bytes(shards, &self.values, bytes, repack)?
            .map_err(|at| self.nan(shards, rows.start, at))
    }

    fn factors(&self, shards: &Shards) -> Result<Factors, SourceError> {
        let Kind::Nv(of_tensor) = &self.kind else { return Ok(Factors::default()) };
        Ok(Factors {
            weights: of_tensor.factor(shards, &of_tensor.weights)?,
            activations: of_tensor.factor(shards, &of_tensor.activations)?,
        })
    }

    fn of_activations(&self) -> Option<&str> {
        let Kind::Nv(of_tensor) = &self.kind else { return None };
        of_tensor.activations.as_ref().map(|part| part.name.as_str())
    }
}
