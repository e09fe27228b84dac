//! A GGUF model back to a checkpoint folder: safetensors shards, config.json, tokenizer.json.

use super::encode::by_place;
use super::error::ConvertError;
use crate::gguf::Metadata;
use crate::io::{Disk, IoError, Sequence, give_name, part_path};
use crate::model::{Exported, GgufModel, sampling_settings};
use crate::monitor::Monitor;
use crate::quant::{Guide, Kind, QuantError, QuantType};
use crate::source::{GgufSource, Origin};
use crate::tokenizer;
use serde_json::{Map, Value, json};
use std::io::{BufWriter, Write};
use std::path::Path;

/// Bytes of a shard, at most, unless a single tensor has more.
const SHARD: u64 = 5_000_000_000;

/// Weights that are read at a time, about.
const PART: u64 = 1 << 20;

/// Writes the checkpoint. Matrices get the type `ty`, one of F32, F16 and BF16; vectors and routers
/// too, where that loses nothing, otherwise F32. The folder gets its name when it is complete.
///
/// The monitor counts weights.
///
/// # Errors
/// A folder that exists, tensors that are missing or cannot be read, a system that refuses.
pub fn export(
    model: &GgufModel,
    source: &GgufSource,
    disk: &dyn Disk,
    path: &Path,
    ty: QuantType,
    monitor: &dyn Monitor,
) -> Result<(), ConvertError> {
    if path.symlink_metadata().is_ok() {
        return Err(ConvertError::Exists { path: path.to_owned() });
    }
    let part = part_path(path);
    // What an earlier export left.
    let _ = std::fs::remove_dir_all(&part);
    std::fs::create_dir(&part).map_err(|error| IoError::new(&part, error))?;
    let written = write(model, source, disk, &part, ty, monitor).and_then(|()| {
        disk.sync_names(&part);
        Ok(give_name(disk, &part, path)?)
    });
    if written.is_err() {
        // Failing to remove what is left over must not hide the error.
        let _ = std::fs::remove_dir_all(&part);
    }
    written
}

/// Writes all files into the folder.
fn write(
    model: &GgufModel,
    source: &GgufSource,
    disk: &dyn Disk,
    part: &Path,
    ty: QuantType,
    monitor: &dyn Monitor,
) -> Result<(), ConvertError> {
    let Kind::Float(torch_dtype) = ty.format().kind else {
        return Err(ConvertError::NotFloat { ty });
    };
    let tensors = model.exported()?;
    for (name, json) in description(model, source.metadata(), torch_dtype, monitor)? {
        write_json(disk, &part.join(name), &json)?;
    }
    let shards = shards(&tensors, ty);
    let mut weight_map = Map::new();
    let mut total = 0;
    for (i, shard) in shards.iter().enumerate() {
        let name = match shards.len() {
            1 => "model.safetensors".to_owned(),
            n => format!("model-{:05}-of-{n:05}.safetensors", i + 1),
        };
        let path = part.join(&name);
        total += write_shard(disk, &path, &tensors[shard.clone()], source, ty, monitor)?;
        for tensor in &tensors[shard.clone()] {
            weight_map.insert(tensor.name.clone(), name.clone().into());
        }
    }
    if shards.len() > 1 {
        let index = json!({ "metadata": { "total_size": total }, "weight_map": weight_map });
        write_json(disk, &part.join("model.safetensors.index.json"), &index)?;
    }
    Ok(())
}

/// The files beside the weights.
fn description(
    model: &GgufModel,
    metadata: &Metadata,
    torch_dtype: &str,
    monitor: &dyn Monitor,
) -> Result<Vec<(String, Value)>, ConvertError> {
    let (vocab, mut files) = tokenizer::exported(metadata)?;
    for warning in &vocab.warnings {
        if !monitor.warn(warning.clone()) {
            return Err(ConvertError::Unwanted(warning.clone()));
        }
    }
    let mut config = model.config_json()?;
    for (key, id) in tokenizer::config_ids(&vocab) {
        config[key] = id;
    }
    let mut generation = tokenizer::generation_ids(&vocab);
    generation.append(&mut sampling_settings(metadata));
    config["torch_dtype"] = torch_dtype.into();
    files.push(("config.json".to_owned(), config));
    files.push(("generation_config.json".to_owned(), Value::Object(generation)));
    Ok(files)
}

fn write_json(disk: &dyn Disk, path: &Path, json: &Value) -> Result<(), IoError> {
    Sequence::write(disk, path, format!("{json:#}\n").as_bytes())
        .map_err(|error| IoError::new(path, error))
}

fn shards(tensors: &[Exported], ty: QuantType) -> Vec<std::ops::Range<usize>> {
    let (mut shards, mut start, mut size) = (Vec::new(), 0, 0);
    for (i, tensor) in tensors.iter().enumerate() {
        let bytes = tensor.dims.iter().product::<u64>() * ty.block_bytes() as u64;
        if size + bytes > SHARD && i > start {
            shards.push(start..i);
            (start, size) = (i, 0);
        }
        size += bytes;
    }
    shards.push(start..tensors.len());
    shards
}

fn write_shard(
    disk: &dyn Disk,
    path: &Path,
    tensors: &[Exported],
    source: &GgufSource,
    ty: QuantType,
    monitor: &dyn Monitor,
) -> Result<u64, ConvertError> {
    let io = |error| IoError::new(path, error);
    let mut header = Map::new();
    header.insert("__metadata__".to_owned(), json!({ "format": "pt" }));
    let mut types = Vec::new();
    let mut end = 0u64;
    for tensor in tensors {
        let precise = tensor.dims.len() == 1 || tensor.name.ends_with(".mlp.gate.weight");
        let ty = if precise { precise_type(tensor, source, ty)? } else { ty };
        let start = end;
        end += tensor.dims.iter().product::<u64>() * ty.block_bytes() as u64;
        let shape: Vec<u64> = tensor.dims.iter().rev().copied().collect();
        let entry = json!({ "dtype": ty.name(), "shape": shape, "data_offsets": [start, end] });
        header.insert(tensor.name.clone(), entry);
        types.push(ty);
    }
    let mut header = Value::Object(header).to_string();
    header.extend(std::iter::repeat_n(' ', header.len().next_multiple_of(8) - header.len()));
    let mut out = BufWriter::new(Sequence::create(disk, path).map_err(io)?);
    out.write_all(&(header.len() as u64).to_le_bytes()).map_err(io)?;
    out.write_all(header.as_bytes()).map_err(io)?;
    let (mut weights, mut bytes) = (Vec::new(), Vec::new());
    for (tensor, ty) in tensors.iter().zip(types) {
        let n = tensor.dims[0];
        let step = (PART / n.max(1)).max(1).next_multiple_of(tensor.step());
        let mut row = 0;
        while row < tensor.n_rows() {
            if monitor.cancelled() {
                return Err(ConvertError::Cancelled);
            }
            let rows = row..(row + step).min(tensor.n_rows());
            let count = ((rows.end - rows.start) * n) as usize;
            weights.resize(count, 0.0);
            bytes.resize(count * ty.block_bytes(), 0);
            tensor.read_rows(source, rows.clone(), &mut weights)?;
            let origin = || Origin { path: path.to_owned(), tensor: tensor.name.clone() };
            let name = || tensor.name.clone();
            let encode_error =
                |error| ConvertError::Encode { origin: origin(), tensor: name(), ty, error };
            ty.encode_rows(&weights, n as usize, Guide::Plain, &mut bytes).map_err(encode_error)?;
            let valid = ty.validate_rows(&bytes, n as usize);
            match valid.map_err(|error| by_place(error, n as usize, &bytes)) {
                Ok(()) => {}
                Err(QuantError::NotFinite { row, column, .. }) => {
                    let value = weights[row * n as usize + column];
                    let (origin, tensor, row) = (origin(), name(), rows.start + row as u64);
                    return Err(ConvertError::Overflow { origin, tensor, ty, row, column, value });
                }
                Err(error) => return Err(encode_error(error)),
            }
            out.write_all(&bytes).map_err(io)?;
            monitor.advance(count as u64);
            row = rows.end;
        }
    }
    let file = out.into_inner().map_err(|error| io(error.into_error()))?;
    file.sync().map_err(io)?;
    Ok(end)
}

/// `ty` where it holds every value exactly, F32 where it does not.
fn precise_type(
    tensor: &Exported,
    source: &GgufSource,
    ty: QuantType,
) -> Result<QuantType, ConvertError> {
    let n = tensor.dims[0] as usize;
    let (mut values, mut again) = (vec![0.0; n], vec![0.0; n]);
    let mut bytes = vec![0; n * ty.block_bytes()];
    for row in 0..tensor.n_rows() {
        tensor.read_rows(source, row..row + 1, &mut values)?;
        let exact = ty.encode_rows(&values, n, Guide::Plain, &mut bytes).is_ok()
            && ty.decode_rows(&bytes, n, &mut again).is_ok()
            && values == again;
        if !exact {
            return Ok(QuantType::F32);
        }
    }
    Ok(ty)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::convert::{Plan, RunOptions, Settings};
    use crate::io::small::Small;
    use crate::model::{CheckpointModel, Mtp};
    use crate::recipe::FileType;

    #[test]
    fn a_failing_disk_leaves_no_folder() {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("tiny.gguf");
        let tiny = Path::new("tests/fixtures/tiny-r1");
        let tiny = CheckpointModel::open(tiny, Mtp::Drop).unwrap();
        let plan = Plan::of_checkpoint(&tiny, &Settings::new(FileType::Q8_0)).unwrap();
        plan.run(&tiny, &file, RunOptions::default(), &()).unwrap();
        let model = GgufModel::open(&file).unwrap();
        let folder = dir.path().join("again");
        for (room, name) in [(0, ".json"), (2_000_000, "model.safetensors")] {
            let disk = Small::new(room);
            let error = export(&model, model.gguf(), &disk, &folder, QuantType::BF16, &());
            let error = error.unwrap_err().to_string();
            assert!(error.contains(name) && error.contains("the disk is full"), "{error}");
            assert_eq!(std::fs::read_dir(&dir).unwrap().count(), 1);
        }
        let disk = Small::without_names();
        let error = export(&model, model.gguf(), &disk, &folder, QuantType::BF16, &());
        let error = error.unwrap_err().to_string();
        assert!(error.contains("again: "), "{error}");
        assert_eq!(std::fs::read_dir(&dir).unwrap().count(), 1);
        let disk = Small::new(1 << 30);
        export(&model, model.gguf(), &disk, &folder, QuantType::BF16, &()).unwrap();
        assert!(folder.join("config.json").is_file());
    }
}
