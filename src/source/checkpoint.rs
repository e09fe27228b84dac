//! Hugging Face checkpoints: safetensors files, sharded or single, plain or block-scaled FP8.
//!
//! It knows how such a folder is stored, not what model it holds. Everything that the headers can
//! tell is checked on opening; only values remain for reading.

use super::error::{CheckpointError, SourceError};
use super::folder::Folder;
use super::{Dtype, Origin, SCRATCH, Source, SourceFile, TensorMeta};
use crate::blob::{Blob, physical_memory};
use crate::quant::{QuantError, QuantType, fp8};
use safetensors::tensor::{Dtype as StDtype, Metadata, SafeTensorError, TensorInfo};
use serde_json::Value;
use std::collections::{BTreeSet, HashMap};
use std::ops::Range;
use std::path::{Path, PathBuf};

const INDEX: &str = "model.safetensors.index.json";
const SCALE_SUFFIX: &str = "_scale_inv";

/// An opened checkpoint folder. Tensors are sorted by name, shapes are innermost first, and the
/// `weight_scale_inv` companions are folded into the tensors that they scale.
pub struct Checkpoint {
    folder: Folder,
    shards: Vec<Shard>,
    metas: Vec<TensorMeta>,
    places: Vec<Place>,
    by_name: HashMap<String, usize>,
}

struct Shard {
    path: PathBuf,
    blob: Box<dyn Blob>,
}

/// Where a tensor's bytes lie.
struct Place {
    shard: usize,
    bytes: Range<u64>,
    scale: Option<Scale>,
}

/// One f32 factor for every `block[0]` rows and `block[1]` columns (torch order).
struct Scale {
    shard: usize,
    bytes: Range<u64>,
    dtype: QuantType,
    block: [usize; 2],
    per_row: usize,
}

/// A tensor as its shard's header describes it.
struct Stored {
    shard: usize,
    info: TensorInfo,
    bytes: Range<u64>,
}

impl Checkpoint {
    /// Opens the folder, reads every shard's header and checks headers, index and scales against each other.
    ///
    /// # Errors
    /// Missing or cut shards, tensors that the index places where they are not, unknown dtypes,
    /// scales of the wrong shape: each naming file and tensor.
    pub fn open(folder: Folder) -> Result<Self, CheckpointError> {
        let dir = folder.dir();
        let config = read_json(&dir.join("config.json"))?;
        let block = fp8_block(dir, &config)?;
        let (names, weight_map) = shard_names(dir)?;
        folder.expect(&names);
        let mut shards = Vec::with_capacity(names.len());
        let mut stored: HashMap<String, Stored> = HashMap::new();
        for file in &names {
            let path = folder.path_of(file);
            let blob = match folder.open(file) {
                Ok(blob) => blob,
                Err(error) if error.kind() == std::io::ErrorKind::NotFound => {
                    return Err(CheckpointError::MissingShard { path });
                }
                Err(error) => return Err(CheckpointError::Io { path, error }),
            };
            let (data, header) = read_header(&path, &*blob)?;
            let shard = shards.len();
            for (name, info) in header.tensors() {
                let (start, end) = info.data_offsets;
                let bytes = data + start as u64..data + end as u64;
                let entry = Stored { shard, info: info.clone(), bytes };
                if let Some(weight_map) = &weight_map {
                    match weight_map.get(&name) {
                        None => return Err(CheckpointError::NotInIndex { path, tensor: name }),
                        Some(place) if place != file => {
                            return Err(CheckpointError::WrongShard {
                                tensor: name,
                                indexed: folder.path_of(place),
                                found: path,
                            });
                        }
                        Some(_) => {}
                    }
                }
                if let Some(first) = stored.insert(name.clone(), entry) {
                    let first: &Shard = &shards[first.shard];
                    return Err(CheckpointError::Duplicate {
                        tensor: name,
                        first: first.path.clone(),
                        second: path,
                    });
                }
            }
            shards.push(Shard { path, blob });
        }
        for (tensor, file) in weight_map.iter().flatten() {
            if !stored.contains_key(tensor) {
                return Err(CheckpointError::NotInShard {
                    path: folder.path_of(file),
                    tensor: tensor.clone(),
                });
            }
        }
        // What fits into memory is left there for the next run.
        let size: u64 = shards.iter().map(|s| s.blob.size()).sum();
        let large = physical_memory().is_some_and(|memory| size > memory / 2);
        shards.iter_mut().for_each(|s| s.blob.drop_pages(large));
        Self::assemble(folder, shards, stored, block)
    }

    fn assemble(
        folder: Folder,
        shards: Vec<Shard>,
        mut stored: HashMap<String, Stored>,
        block: Option<[usize; 2]>,
    ) -> Result<Self, CheckpointError> {
        let mut names: Vec<String> = stored.keys().cloned().collect();
        names.sort_unstable();
        let mut checkpoint =
            Self { folder, shards, metas: Vec::new(), places: Vec::new(), by_name: HashMap::new() };
        for name in names {
            let path = |shard: usize| checkpoint.shards[shard].path.clone();
            if let Some(weight) = name.strip_suffix(SCALE_SUFFIX) {
                // Names are visited in order, so the weight has been placed before its scale.
                let scaled = checkpoint.by_name.get(weight);
                if scaled.is_none_or(|&i| checkpoint.metas[i].dtype != Dtype::F8E4M3) {
                    let path = path(stored[&name].shard);
                    return Err(CheckpointError::StrayScale { path, tensor: name });
                }
                continue;
            }
            let Some(Stored { shard, info, bytes }) = stored.remove(&name) else { continue };
            let dtype = match info.dtype {
                StDtype::F32 => Dtype::Gguf(QuantType::F32),
                StDtype::F16 => Dtype::Gguf(QuantType::F16),
                StDtype::BF16 => Dtype::Gguf(QuantType::BF16),
                StDtype::F8_E4M3 => Dtype::F8E4M3,
                other => {
                    return Err(CheckpointError::Dtype {
                        path: path(shard),
                        tensor: name,
                        dtype: format!("{other:?}"),
                    });
                }
            };
            let scale = match dtype {
                Dtype::F8E4M3 => {
                    let name_of_scale = format!("{name}{SCALE_SUFFIX}");
                    let Some(found) = stored.get(&name_of_scale) else {
                        return Err(CheckpointError::MissingScale {
                            path: path(shard),
                            tensor: name,
                        });
                    };
                    let Some(block) = block else {
                        return Err(CheckpointError::NoBlockSize {
                            path: checkpoint.folder.dir().join("config.json"),
                            tensor: name,
                        });
                    };
                    Some(scale_of(&name, &info, found, block, || path(found.shard))?)
                }
                Dtype::Gguf(_) => None,
            };
            let dims = info.shape.iter().rev().map(|&d| d as u64).collect();
            checkpoint.by_name.insert(name.clone(), checkpoint.metas.len());
            checkpoint.metas.push(TensorMeta { name, dims, dtype });
            checkpoint.places.push(Place { shard, bytes, scale });
        }
        Ok(checkpoint)
    }

    /// The local folder that holds the small files.
    pub fn dir(&self) -> &Path {
        self.folder.dir()
    }

    /// The file that a tensor lies in.
    pub fn path_of(&self, tensor: usize) -> &Path {
        &self.shards[self.places[tensor].shard].path
    }

    /// The type of the first matrix that has 16 bits, in the order of the files; what the reference
    /// converter takes for `--outtype auto`.
    pub fn half_type(&self) -> Option<QuantType> {
        let half = |&i: &usize| {
            let meta = &self.metas[i];
            let half = [QuantType::BF16, QuantType::F16].map(Dtype::Gguf).contains(&meta.dtype);
            meta.dims.len() >= 2 && half
        };
        let first = (0..self.metas.len()).filter(half).min_by_key(|&i| self.position(i))?;
        match self.metas[first].dtype {
            Dtype::Gguf(ty) => Some(ty),
            Dtype::F8E4M3 => None,
        }
    }

    /// A tensor's place in the order of the reference converter: the number of its shard, and its
    /// name's place among all names.
    pub fn position(&self, tensor: usize) -> (usize, usize) {
        (self.places[tensor].shard, tensor)
    }

    /// Bytes of all shards together.
    pub fn n_bytes(&self) -> u64 {
        self.shards.iter().map(|s| s.blob.size()).sum()
    }

    /// Bytes of a tensor as stored, its scales included.
    pub fn stored_bytes(&self, tensor: usize) -> u64 {
        let place = &self.places[tensor];
        let length = |bytes: &Range<u64>| bytes.end - bytes.start;
        length(&place.bytes) + place.scale.as_ref().map_or(0, |s| length(&s.bytes))
    }

    /// How many shards there are.
    pub fn n_shards(&self) -> usize {
        self.shards.len()
    }

    /// Where rows lie in their shard.
    fn bytes_of(&self, tensor: usize, rows: Range<u64>) -> Range<u64> {
        let bytes = &self.places[tensor].bytes;
        let row = (bytes.end - bytes.start).checked_div(self.metas[tensor].n_rows()).unwrap_or(0);
        bytes.start + rows.start * row..bytes.start + rows.end * row
    }

    /// Fills `out` with bytes of a shard, which belong to the tensor named.
    fn read(
        &self,
        shard: usize,
        tensor: impl FnOnce() -> String,
        offset: u64,
        out: &mut [u8],
    ) -> Result<(), SourceError> {
        let Shard { path, blob } = &self.shards[shard];
        blob.read_at(offset, out).map_err(|error| SourceError::Io {
            path: path.clone(),
            tensor: tensor(),
            error,
        })
    }

    fn read_fp8(
        &self,
        tensor: usize,
        scale: &Scale,
        first_row: usize,
        out: &mut [f32],
    ) -> Result<(), SourceError> {
        let meta = &self.metas[tensor];
        let n = meta.n_per_row() as usize;
        let shard = self.places[tensor].shard;
        let name_of_scale = || format!("{}{SCALE_SUFFIX}", meta.name);
        let n_rows = out.len() / n;
        let width = scale.dtype.block_bytes();
        // The scales of all rows at once: one for every block of rows.
        let block_rows = first_row / scale.block[0]..(first_row + n_rows).div_ceil(scale.block[0]);
        let mut stored = vec![0; block_rows.len() * scale.per_row * width];
        let at = scale.bytes.start + (block_rows.start * scale.per_row * width) as u64;
        self.read(scale.shard, name_of_scale, at, &mut stored)?;
        let mut factors = vec![0f32; block_rows.len() * scale.per_row];
        scale
            .dtype
            .decode_rows(&stored, scale.per_row, &mut factors)
            .map_err(|error| self.decode_error(tensor, error))?;
        if let Some(at) = factors.iter().position(|f| !f.is_finite()) {
            return Err(SourceError::Scale {
                path: self.shards[scale.shard].path.clone(),
                tensor: name_of_scale(),
                row: (block_rows.start + at / scale.per_row) as u64,
                column: (at % scale.per_row) as u64,
                value: factors[at],
            });
        }
        let mut data = SCRATCH.take();
        data.resize(out.len(), 0);
        let bytes = self.bytes_of(tensor, first_row as u64..(first_row + n_rows) as u64);
        self.read(shard, || meta.name.clone(), bytes.start, &mut data)?;
        for (i, (bytes, row)) in data.chunks_exact(n).zip(out.chunks_exact_mut(n)).enumerate() {
            let r = first_row + i;
            let factors = &factors[(r / scale.block[0] - block_rows.start) * scale.per_row..];
            let blocks = bytes.chunks(scale.block[1]).zip(row.chunks_mut(scale.block[1]));
            for (b, ((bytes, row), &factor)) in blocks.zip(factors).enumerate() {
                if let Err(at) = fp8::decode_scaled(bytes, factor, row) {
                    return Err(SourceError::Fp8Nan {
                        path: self.shards[shard].path.clone(),
                        tensor: meta.name.clone(),
                        row: r as u64,
                        column: (b * scale.block[1] + at) as u64,
                    });
                }
            }
        }
        SCRATCH.set(data);
        Ok(())
    }

    fn decode_error(&self, tensor: usize, error: QuantError) -> SourceError {
        SourceError::Decode {
            path: self.path_of(tensor).to_owned(),
            tensor: self.metas[tensor].name.clone(),
            error,
        }
    }
}

impl Source for Checkpoint {
    fn tensors(&self) -> &[TensorMeta] {
        &self.metas
    }

    fn read_rows(&self, tensor: usize, first_row: u64, out: &mut [f32]) -> Result<(), SourceError> {
        let n = self.metas[tensor].n_per_row() as usize;
        if out.is_empty() || n == 0 {
            return Ok(());
        }
        if let Some(scale) = &self.places[tensor].scale {
            return self.read_fp8(tensor, scale, first_row as usize, out);
        }
        let rows = first_row..first_row + (out.len() / n) as u64;
        let mut bytes = SCRATCH.take();
        self.read_raw(tensor, rows, &mut bytes)?;
        let Dtype::Gguf(ty) = self.metas[tensor].dtype else {
            unreachable!("FP8 tensors have a scale")
        };
        let done = ty.decode_rows(&bytes, n, out);
        SCRATCH.set(bytes);
        done.map_err(|error| self.decode_error(tensor, error))
    }

    fn read_raw(
        &self,
        tensor: usize,
        rows: Range<u64>,
        out: &mut Vec<u8>,
    ) -> Result<bool, SourceError> {
        let place = &self.places[tensor];
        if place.scale.is_some() {
            return Ok(false);
        }
        let bytes = self.bytes_of(tensor, rows);
        out.resize((bytes.end - bytes.start) as usize, 0);
        self.read(place.shard, || self.metas[tensor].name.clone(), bytes.start, out)?;
        Ok(true)
    }

    fn prefetch(&self, tensor: usize, rows: Range<u64>) {
        self.shards[self.places[tensor].shard].blob.prefetch(self.bytes_of(tensor, rows));
    }

    fn release(&self, tensor: usize, rows: Range<u64>) {
        self.shards[self.places[tensor].shard].blob.release(self.bytes_of(tensor, rows));
    }

    fn origin(&self, tensor: usize, _row: u64) -> Origin {
        let tensor_name = self.metas[tensor].name.clone();
        Origin { path: self.path_of(tensor).to_owned(), tensor: tensor_name }
    }

    fn files(&self) -> Vec<SourceFile> {
        let shards = self.shards.iter();
        shards
            .map(|shard| SourceFile {
                path: shard.path.clone(),
                size: shard.blob.size(),
                version: shard.blob.version(),
            })
            .collect()
    }

    fn file_of(&self, tensor: usize) -> usize {
        self.places[tensor].shard
    }

    fn table_bytes(&self) -> u64 {
        let names: usize = self.metas.iter().map(|t| t.name.len()).sum();
        let tables = 4 * (names + self.metas.len() * 256) as u64;
        tables + self.folder.cache_bytes(self.shards.len())
    }

    fn find(&self, name: &str) -> Option<usize> {
        self.by_name.get(name).copied()
    }
}

fn read_json(path: &Path) -> Result<Value, CheckpointError> {
    let bytes = std::fs::read(path)
        .map_err(|error| CheckpointError::Io { path: path.to_owned(), error })?;
    serde_json::from_slice(&bytes)
        .map_err(|error| CheckpointError::Json { path: path.to_owned(), error })
}

/// `quantization_config.weight_block_size`, where the checkpoint is block-scaled FP8.
fn fp8_block(dir: &Path, config: &Value) -> Result<Option<[usize; 2]>, CheckpointError> {
    let Some(quantization) = config.get("quantization_config").filter(|v| !v.is_null()) else {
        return Ok(None);
    };
    let bad = |found: &Value, key: &'static str, expected: &'static str| {
        Err(CheckpointError::Quantization {
            path: dir.join("config.json"),
            key,
            found: found.to_string(),
            expected,
        })
    };
    let method = &quantization["quant_method"];
    if method != "fp8" {
        return bad(method, "quant_method", "\"fp8\"");
    }
    let size = &quantization["weight_block_size"];
    if size.is_null() {
        return Ok(None);
    }
    let numbers: Option<Vec<usize>> =
        size.as_array().map(|a| a.iter().filter_map(Value::as_u64).map(|n| n as usize).collect());
    match numbers.as_deref() {
        Some(&[rows, columns]) if rows > 0 && columns > 0 => Ok(Some([rows, columns])),
        _ => bad(size, "weight_block_size", "two positive integers"),
    }
}

type WeightMap = HashMap<String, String>;

/// The shard files in order, and the index where there is one.
fn shard_names(dir: &Path) -> Result<(Vec<String>, Option<WeightMap>), CheckpointError> {
    let index = dir.join(INDEX);
    if index.is_file() {
        let json = read_json(&index)?;
        let malformed =
            |what| CheckpointError::Index { path: index.clone(), what: String::from(what) };
        let map = json["weight_map"].as_object().ok_or_else(|| malformed("has no `weight_map`"))?;
        let mut weight_map = WeightMap::with_capacity(map.len());
        for (tensor, file) in map {
            let file = file.as_str().ok_or_else(|| malformed("names a file that is no string"))?;
            if Path::new(file).file_name().is_none_or(|name| name != file) {
                return Err(malformed("names a file outside of the checkpoint's folder"));
            }
            weight_map.insert(tensor.clone(), file.to_owned());
        }
        let files: BTreeSet<String> = weight_map.values().cloned().collect();
        return Ok((files.into_iter().collect(), Some(weight_map)));
    }
    let entries = std::fs::read_dir(dir)
        .map_err(|error| CheckpointError::Io { path: dir.to_owned(), error })?;
    let mut names: Vec<String> =
        entries.filter_map(|entry| entry.ok()?.file_name().into_string().ok()).collect();
    names.sort_unstable();
    let is_shard = |n: &&String| n.starts_with("model") && n.ends_with(".safetensors");
    let files: Vec<String> = names.iter().filter(is_shard).cloned().collect();
    if files.is_empty() {
        return Err(match names.iter().find(|n| n.ends_with(".bin") || n.ends_with(".pth")) {
            Some(pickle) => CheckpointError::PytorchOnly { path: dir.join(pickle) },
            None => CheckpointError::NoShards { dir: dir.to_owned() },
        });
    }
    if let Some(of) = files.iter().find(|f| f.contains("-of-")) {
        // Without the index nothing says whether all shards are here.
        let promised = of.rsplit("-of-").next().and_then(|s| s.strip_suffix(".safetensors"));
        if promised.and_then(|n| n.parse().ok()) != Some(files.len()) {
            return Err(CheckpointError::Index {
                path: index,
                what: format!("is missing, and `{of}` promises other shards than are here"),
            });
        }
    }
    Ok((files, None))
}

/// Longest header that safetensors files may have.
const MAX_HEADER: u64 = 100_000_000;

/// Where the data begins, and the tensors, which are found to tile the rest of the file.
fn read_header(path: &Path, blob: &dyn Blob) -> Result<(u64, Metadata), CheckpointError> {
    let io = |error| CheckpointError::Io { path: path.to_owned(), error };
    let truncated = || CheckpointError::Truncated { path: path.to_owned(), length: blob.size() };
    let invalid = |error| CheckpointError::Header { path: path.to_owned(), error };
    if blob.size() < 8 {
        return Err(truncated());
    }
    let mut length = [0; 8];
    blob.read_at(0, &mut length).map_err(io)?;
    let length = u64::from_le_bytes(length);
    if length > MAX_HEADER {
        return Err(invalid(SafeTensorError::HeaderTooLarge));
    }
    if length > blob.size() - 8 {
        return Err(truncated());
    }
    let mut header = vec![0; length as usize];
    blob.read_at(8, &mut header).map_err(io)?;
    let metadata: Metadata = serde_json::from_slice(&header).map_err(|error| {
        let path = path.to_owned();
        match unknown_dtype(&header) {
            Some((tensor, dtype)) => CheckpointError::Dtype { path, tensor, dtype },
            None => invalid(SafeTensorError::InvalidHeaderDeserialization(error)),
        }
    })?;
    let mut end = 0;
    for name in metadata.offset_keys() {
        let Some(info) = metadata.info(&name) else { continue };
        let elements = info.shape.iter().try_fold(1usize, |n, &d| n.checked_mul(d));
        let bits = elements.and_then(|n| n.checked_mul(info.dtype.bitsize()));
        let bits = bits.ok_or_else(|| invalid(SafeTensorError::ValidationOverflow))?;
        if info.data_offsets.0 != end || info.data_offsets.1 < end {
            return Err(invalid(SafeTensorError::InvalidOffset(name)));
        }
        end = info.data_offsets.1;
        if bits % 8 != 0 || end - info.data_offsets.0 != bits / 8 {
            return Err(invalid(SafeTensorError::TensorInvalidInfo));
        }
    }
    match 8 + length + end as u64 == blob.size() {
        true => Ok((8 + length, metadata)),
        false => Err(truncated()),
    }
}

/// The tensor whose dtype made the header unreadable; the parser's own message does not name it.
fn unknown_dtype(header: &[u8]) -> Option<(String, String)> {
    let header: Value = serde_json::from_slice(header).ok()?;
    header.as_object()?.iter().filter(|(name, _)| *name != "__metadata__").find_map(|(name, t)| {
        let dtype = t.get("dtype")?;
        serde_json::from_value::<StDtype>(dtype.clone()).is_err().then(|| {
            (name.clone(), dtype.as_str().map_or_else(|| dtype.to_string(), str::to_owned))
        })
    })
}

fn scale_of(
    tensor: &str,
    weight: &TensorInfo,
    scale: &Stored,
    block: [usize; 2],
    path: impl Fn() -> PathBuf,
) -> Result<Scale, CheckpointError> {
    let &[rows, columns] = weight.shape.as_slice() else {
        return Err(CheckpointError::Fp8Shape {
            path: path(),
            tensor: tensor.to_owned(),
            shape: weight.shape.clone(),
        });
    };
    let expected = vec![rows.div_ceil(block[0]), columns.div_ceil(block[1])];
    if scale.info.shape != expected {
        return Err(CheckpointError::ScaleShape {
            path: path(),
            tensor: format!("{tensor}{SCALE_SUFFIX}"),
            found: scale.info.shape.clone(),
            expected,
        });
    }
    let dtype = match scale.info.dtype {
        StDtype::F32 => QuantType::F32,
        StDtype::BF16 => QuantType::BF16,
        StDtype::F16 => QuantType::F16,
        other => {
            return Err(CheckpointError::Dtype {
                path: path(),
                tensor: format!("{tensor}{SCALE_SUFFIX}"),
                dtype: format!("{other:?}"),
            });
        }
    };
    let bytes = scale.bytes.clone();
    Ok(Scale { shard: scale.shard, bytes, dtype, block, per_row: expected[1] })
}
