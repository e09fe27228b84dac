//! The smallest type that keeps the values of each tensor exactly: blocks for weights that are stored as
//! codes on the same grid, and otherwise the narrowest float that has them all.

use super::error::ConvertError;
use super::plan::{UNIT_ELEMENTS, is_precise};
use crate::gguf::Metadata;
use crate::model::CheckpointModel;
use crate::quant::QuantType;
use crate::quant::float::{bf16_to_f32, f16_to_f32, f32_to_bf16, f32_to_f16};
use crate::recipe::FileType;
use crate::source::{Dtype, Source, Storage};
use std::sync::Mutex;

/// The key of files that keep their checkpoint's values.
pub(super) const LOSSLESS: &str = "requant.lossless";

/// Whether a file says that it keeps its checkpoint's values.
///
/// # Errors
/// The key has a value of another kind.
pub fn is_lossless(metadata: &Metadata) -> Result<bool, ConvertError> {
    Ok(metadata.bool(LOSSLESS)?.unwrap_or(false))
}

/// The type of each tensor.
pub(super) fn types(
    model: &CheckpointModel,
    threads: usize,
) -> Result<Vec<QuantType>, ConvertError> {
    let tensors = Mutex::new(0..model.tensors().len());
    let found = Mutex::new(Vec::new());
    let work = || -> Result<(), ConvertError> {
        while let Some(tensor) = tensors.lock().ok().and_then(|mut tensors| tensors.next()) {
            let ty = smallest(model, tensor)?;
            if let Ok(mut found) = found.lock() {
                found.push((tensor, ty));
            }
        }
        Ok(())
    };
    std::thread::scope(|scope| {
        let workers: Vec<_> = (0..threads.max(1)).map(|_| scope.spawn(work)).collect();
        workers.into_iter().try_for_each(|worker| worker.join().unwrap_or(Ok(())))
    })?;
    let mut found = found.into_inner().unwrap_or_default();
    found.sort_unstable_by_key(|(tensor, _)| *tensor);
    Ok(found.into_iter().map(|(_, ty)| ty).collect())
}

fn smallest(model: &CheckpointModel, tensor: usize) -> Result<QuantType, ConvertError> {
    let meta = &model.tensors()[tensor];
    match (model.kept(tensor), meta.dtype) {
        (Some(ty), _) => Ok(ty),
        _ if is_precise(&meta.name, &meta.dims) => Ok(QuantType::F32),
        (None, Dtype::Gguf(ty)) if ty.block_bytes() == 2 => Ok(ty),
        _ => narrowest(model, tensor),
    }
}

/// The narrowest float that has all values of a tensor. Reads no further than it takes to know.
fn narrowest(model: &CheckpointModel, tensor: usize) -> Result<QuantType, ConvertError> {
    let meta = &model.tensors()[tensor];
    let n = meta.n_per_row().max(1);
    let at_once = (UNIT_ELEMENTS / 16 / n).max(1).next_multiple_of(model.granule(tensor));
    let (mut bf16, mut f16, mut values) = (true, true, Vec::new());
    for first in (0..meta.n_rows()).step_by(at_once as usize) {
        let rows = at_once.min(meta.n_rows() - first);
        values.resize((rows * n) as usize, 0.0);
        model.read_rows(tensor, first, &mut values)?;
        bf16 = bf16 && values.iter().all(|&x| bf16_to_f32(f32_to_bf16(x)) == x);
        f16 = f16 && values.iter().all(|&x| f16_to_f32(f32_to_f16(x)) == x);
        if !bf16 && !f16 {
            return Ok(QuantType::F32);
        }
    }
    Ok(if bf16 { QuantType::BF16 } else { QuantType::F16 })
}

/// Says of metadata that the file keeps its checkpoint's values.
pub(super) fn write_key(metadata: &mut Metadata) {
    metadata.set_last(LOSSLESS, true);
}

/// `general.file_type` of such a file: that of most of its weights.
pub(super) fn file_type(model: &CheckpointModel, types: &[QuantType]) -> u32 {
    let of = |ty: QuantType| -> u64 {
        let tensors = types.iter().zip(model.tensors()).filter(|(found, _)| **found == ty);
        tensors.map(|(_, meta)| meta.n_elements()).sum()
    };
    let most = types.iter().copied().max_by_key(|&ty| of(ty)).unwrap_or(QuantType::F32);
    match FileType::of_type(most) {
        Some(file_type) => file_type.id(),
        None => super::metadata::MOSTLY_NVFP4,
    }
}
