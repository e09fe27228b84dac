//! A GGUF model back to a checkpoint folder: safetensors shards, config.json, tokenizer.json.

use super::error::ConvertError;
use crate::gguf::{Disk, GgufError, LocalDisk, Metadata};
use crate::model::{Exported, GgufModel, sampling_settings};
use crate::monitor::Monitor;
use crate::quant::{Guide, Kind, QuantError, QuantType};
use crate::source::{GgufSource, Origin};
use crate::tokenizer;
use serde_json::{Map, Value, json};
use std::fs::File;
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
    folder: &Path,
    ty: QuantType,
    monitor: &dyn Monitor,
) -> Result<(), ConvertError> {
    if folder.symlink_metadata().is_ok() {
        return Err(GgufError::Exists { path: folder.to_owned() }.into());
    }
    let mut part = folder.as_os_str().to_owned();
    part.push(".part");
    let part = Path::new(&part);
    let _ = std::fs::remove_dir_all(part);
    std::fs::create_dir(part).map_err(io(part))?;
    let written = write(model, source, part, ty, monitor)
        .and_then(|()| std::fs::rename(part, folder).map_err(io(folder)));
    if written.is_err() {
        let _ = std::fs::remove_dir_all(part);
    }
    LocalDisk.sync_names(crate::gguf::folder(folder));
    written
}

/// Writes all files into the folder.
fn write(
    model: &GgufModel,
    source: &GgufSource,
    part: &Path,
    ty: QuantType,
    monitor: &dyn Monitor,
) -> Result<(), ConvertError> {
    let Kind::Float(torch_dtype) = ty.format().kind else {
        return Err(ConvertError::NotFloat { ty });
    };
    let tensors = model.exported()?;
    for (name, json) in description(model, source.metadata(), torch_dtype, monitor)? {
        let path = part.join(name);
        std::fs::write(&path, format!("{json:#}\n")).map_err(io(&path))?;
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
        total += write_shard(&path, &tensors[shard.clone()], source, ty, monitor)?;
        for tensor in &tensors[shard.clone()] {
            weight_map.insert(tensor.name.clone(), name.clone().into());
        }
    }
    if shards.len() > 1 {
        let index = json!({ "metadata": { "total_size": total }, "weight_map": weight_map });
        let path = part.join("model.safetensors.index.json");
        std::fs::write(&path, format!("{index:#}\n")).map_err(io(&path))?;
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

fn io(path: &Path) -> impl FnOnce(std::io::Error) -> ConvertError {
    let path = path.to_owned();
    move |error| ConvertError::from(GgufError::Io { path, error })
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
    path: &Path,
    tensors: &[Exported],
    source: &GgufSource,
    ty: QuantType,
    monitor: &dyn Monitor,
) -> Result<u64, ConvertError> {
    let io = |error| ConvertError::from(GgufError::Io { path: path.to_owned(), error });
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
    let mut out = BufWriter::new(File::create(path).map_err(io)?);
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
            ty.encode_rows(&weights, n as usize, Guide::Plain, &mut bytes).map_err(|error| {
                ConvertError::Encode { origin: origin(), tensor: name(), ty, error }
            })?;
            if let Err(QuantError::InvalidBlock { block, .. }) =
                ty.validate_rows(&bytes, n as usize)
            {
                return Err(ConvertError::Overflow {
                    origin: origin(),
                    tensor: name(),
                    ty,
                    row: rows.start + block as u64 / n,
                    column: block % n as usize,
                    value: weights[block],
                });
            }
            out.write_all(&bytes).map_err(io)?;
            monitor.advance(count as u64);
            row = rows.end;
        }
    }
    let file = out.into_inner().map_err(|error| io(error.into_error()))?;
    file.sync_all().map_err(io)?;
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
