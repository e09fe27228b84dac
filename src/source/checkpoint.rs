//! Hugging Face checkpoints: safetensors files, sharded or single, plain,
//! block-scaled FP8, or quantized by ModelOpt (NVFP4, FP8).
//!
//! It knows how such a folder is stored, not what model it holds. Everything that the headers can
//! tell is checked on opening; only values remain for reading.

use super::error::{CheckpointError, SourceError};
use super::folder::Folder;
use super::{Dtype, Origin, SCRATCH, Source, SourceFile, TensorMeta};
use crate::blob::{Blob, physical_memory};
use crate::quant::{QuantError, QuantType, fp8, nvfp4_from_modelopt};
use safetensors::tensor::{Dtype as StDtype, Metadata, SafeTensorError, TensorInfo};
use serde_json::Value;
use std::collections::{BTreeSet, HashMap};
use std::ops::Range;
use std::path::{Path, PathBuf};

const INDEX: &str = "model.safetensors.index.json";
/// The scales of FP8 weights in DeepSeek's own checkpoints.
const SCALE_INV: &str = "_scale_inv";
/// The scales of a weight in ModelOpt's: for blocks of NVFP4; for rows or the whole of FP8.
const SCALE: &str = "_scale";
/// The scale of an NVFP4 weight as a whole, on top of its blocks' scales.
const SCALE_2: &str = "_scale_2";
/// What ModelOpt keeps for activations and caches.
const ACTIVATIONS: [&str; 3] = [".input_scale", ".k_scale", ".v_scale"];

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
    scaling: Scaling,
}

/// What turns stored values into weights.
enum Scaling {
    Plain,
    Fp8(Scale),
    NvFp4(NvFp4),
}

/// A range of bytes in a shard.
#[derive(Clone)]
struct Extent {
    shard: usize,
    bytes: Range<u64>,
}

struct NvFp4 {
    scales: Extent,
    /// One f32.
    global: Option<Extent>,
    /// One f32 for the activations, which the weights do not need.
    input: Option<Extent>,
}

/// One f32 factor for every `block[0]` rows and `block[1]` columns (torch order).
struct Scale {
    suffix: &'static str,
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
        let quantization = Quantization::of(dir, &config)?;
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
        Self::assemble(folder, shards, stored, quantization)
    }

    fn assemble(
        folder: Folder,
        shards: Vec<Shard>,
        mut stored: HashMap<String, Stored>,
        quantization: Quantization,
    ) -> Result<Self, CheckpointError> {
        let mut names: Vec<String> = stored.keys().cloned().collect();
        names.sort_unstable();
        let mut checkpoint =
            Self { folder, shards, metas: Vec::new(), places: Vec::new(), by_name: HashMap::new() };
        for name in names {
            let path = |shard: usize| checkpoint.shards[shard].path.clone();
            let modelopt = quantization == Quantization::ModelOpt;
            if modelopt && ACTIVATIONS.iter().any(|suffix| name.ends_with(suffix)) {
                continue;
            }
            let suffixes: &[&str] = if modelopt { &[SCALE, SCALE_2] } else { &[SCALE_INV] };
            if let Some(weight) = suffixes.iter().find_map(|suffix| name.strip_suffix(suffix)) {
                // Names are visited in order, so the weight has been placed before its scale.
                let scaled = checkpoint.by_name.get(weight);
                let is_scaled =
                    |&i: &usize| !matches!(checkpoint.places[i].scaling, Scaling::Plain);
                if !scaled.is_some_and(is_scaled) {
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
                StDtype::U8 if modelopt => Dtype::NvFp4,
                other => {
                    return Err(CheckpointError::Dtype {
                        path: path(shard),
                        tensor: name,
                        dtype: format!("{other:?}"),
                    });
                }
            };
            let scale = |suffix: &str| {
                let scale = format!("{name}{suffix}");
                stored.get(&scale).ok_or_else(|| CheckpointError::MissingScale {
                    path: path(shard),
                    tensor: name.clone(),
                    scale,
                })
            };
            let mut dims: Vec<u64> = info.shape.iter().rev().map(|&d| d as u64).collect();
            let scaling = match dtype {
                Dtype::F8E4M3 if modelopt => {
                    let found = scale(SCALE)?;
                    Scaling::Fp8(scale_of(&name, &info, found, None, || path(found.shard))?)
                }
                Dtype::F8E4M3 => {
                    let found = scale(SCALE_INV)?;
                    let Quantization::Fp8(block) = quantization else {
                        return Err(CheckpointError::NoBlockSize {
                            path: checkpoint.folder.dir().join("config.json"),
                            tensor: name,
                        });
                    };
                    Scaling::Fp8(scale_of(&name, &info, found, Some(block), || path(found.shard))?)
                }
                Dtype::NvFp4 => {
                    let found = scale(SCALE)?;
                    let extent = |stored: &Stored| Extent {
                        shard: stored.shard,
                        bytes: stored.bytes.clone(),
                    };
                    let expected = match *info.shape.as_slice() {
                        // A GGUF block holds four groups of 16, of two to a byte.
                        [rows, packed] if packed % 32 == 0 => vec![rows, packed / 8],
                        _ => {
                            return Err(CheckpointError::NvFp4Shape {
                                path: path(shard),
                                tensor: name,
                                shape: info.shape.clone(),
                            });
                        }
                    };
                    let tensor = || format!("{name}{SCALE}");
                    if found.info.dtype != StDtype::F8_E4M3 {
                        return Err(CheckpointError::Dtype {
                            path: path(found.shard),
                            tensor: tensor(),
                            dtype: format!("{:?}", found.info.dtype),
                        });
                    }
                    if found.info.shape != expected {
                        return Err(CheckpointError::ScaleShape {
                            path: path(found.shard),
                            tensor: tensor(),
                            found: found.info.shape.clone(),
                            expected,
                        });
                    }
                    let single = |name: String| match stored.get(&name) {
                        None => Ok(None),
                        Some(Stored { shard, info, .. })
                            if info.dtype != StDtype::F32 || info.shape.iter().any(|&n| n != 1) =>
                        {
                            Err(CheckpointError::ScaleShape {
                                path: path(*shard),
                                tensor: name,
                                found: info.shape.clone(),
                                expected: vec![1],
                            })
                        }
                        Some(found) => Ok(Some(extent(found))),
                    };
                    dims[0] *= 2;
                    let stem = name.strip_suffix(".weight").unwrap_or(&name);
                    Scaling::NvFp4(NvFp4 {
                        scales: extent(found),
                        global: single(format!("{name}{SCALE_2}"))?,
                        input: single(format!("{stem}.input_scale"))?,
                    })
                }
                Dtype::Gguf(_) => Scaling::Plain,
            };
            checkpoint.by_name.insert(name.clone(), checkpoint.metas.len());
            checkpoint.metas.push(TensorMeta { name, dims, dtype });
            checkpoint.places.push(Place { shard, bytes, scaling });
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
            Dtype::F8E4M3 | Dtype::NvFp4 => None,
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
        length(&place.bytes)
            + match &place.scaling {
                Scaling::Plain => 0,
                Scaling::Fp8(scale) => length(&scale.bytes),
                Scaling::NvFp4(NvFp4 { scales, .. }) => length(&scales.bytes) + 4,
            }
    }

    /// The f32 factors of an NVFP4 tensor as a whole: of its weights, and of the activations that
    /// it is multiplied with; 1 where there is none.
    ///
    /// # Errors
    /// When they cannot be read.
    pub fn nvfp4_factors(&self, tensor: usize) -> Result<[f32; 2], SourceError> {
        let Scaling::NvFp4(NvFp4 { global, input, .. }) = &self.places[tensor].scaling else {
            return Ok([1.0; 2]);
        };
        let mut factors = [1.0; 2];
        for (factor, extent) in factors.iter_mut().zip([global, input]) {
            if let Some(Extent { shard, bytes }) = extent {
                let mut stored = [0; 4];
                self.read(*shard, || self.metas[tensor].name.clone(), bytes.start, &mut stored)?;
                *factor = f32::from_le_bytes(stored);
            }
        }
        Ok(factors)
    }

    /// Rows of an NVFP4 tensor as GGUF's blocks, which lack the factor of the whole
    /// ([`Checkpoint::nvfp4_factors`]). `false` for other tensors.
    ///
    /// # Errors
    /// When they cannot be read, and scales that are NaN.
    pub fn read_nvfp4(
        &self,
        tensor: usize,
        rows: Range<u64>,
        out: &mut [u8],
    ) -> Result<bool, SourceError> {
        let Place { shard, scaling: Scaling::NvFp4(NvFp4 { scales, .. }), .. } =
            &self.places[tensor]
        else {
            return Ok(false);
        };
        let meta = &self.metas[tensor];
        let per_row = meta.n_per_row() / 16;
        let name_of_scale = || format!("{}{SCALE}", meta.name);
        let mut stored = vec![0; ((rows.end - rows.start) * per_row) as usize];
        self.read(
            scales.shard,
            name_of_scale,
            scales.bytes.start + rows.start * per_row,
            &mut stored,
        )?;
        let mut packed = SCRATCH.take();
        packed.resize(8 * stored.len(), 0);
        let at = self.bytes_of(tensor, rows.clone()).start;
        self.read(*shard, || meta.name.clone(), at, &mut packed)?;
        let done = nvfp4_from_modelopt(&packed, &stored, out);
        SCRATCH.set(packed);
        done.map_err(|at| SourceError::Scale {
            path: self.shards[scales.shard].path.clone(),
            tensor: name_of_scale(),
            row: rows.start + at as u64 / per_row,
            column: at as u64 % per_row,
            value: f32::NAN,
        })?;
        Ok(true)
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
        let name_of_scale = || format!("{}{}", meta.name, scale.suffix);
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
        let rows = first_row..first_row + (out.len() / n) as u64;
        match &self.places[tensor].scaling {
            Scaling::Plain => {}
            Scaling::Fp8(scale) => return self.read_fp8(tensor, scale, first_row as usize, out),
            Scaling::NvFp4(_) => {
                let [factor, _] = self.nvfp4_factors(tensor)?;
                let mut blocks = vec![0; out.len() / 64 * 36];
                self.read_nvfp4(tensor, rows, &mut blocks)?;
                QuantType::NVFP4
                    .decode_rows(&blocks, n, out)
                    .map_err(|error| self.decode_error(tensor, error))?;
                out.iter_mut().for_each(|weight| *weight *= factor);
                return Ok(());
            }
        }
        let mut bytes = SCRATCH.take();
        self.read_raw(tensor, rows, &mut bytes)?;
        let Dtype::Gguf(ty) = self.metas[tensor].dtype else {
            unreachable!("what is scaled has been read")
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
        if !matches!(place.scaling, Scaling::Plain) {
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

/// How the weights of a checkpoint are quantized.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Quantization {
    /// Not at all, or nothing says how.
    None,
    /// FP8 with a scale for each block of rows and columns.
    Fp8([usize; 2]),
    /// By NVIDIA's ModelOpt: NVFP4, and FP8 with a scale for each row or tensor.
    ModelOpt,
}

impl Quantization {
    /// Reads config.json's `quantization_config`, or hf_quant_config.json where that is missing.
    fn of(dir: &Path, config: &Value) -> Result<Self, CheckpointError> {
        let beside = dir.join("hf_quant_config.json");
        let Some(quantization) = config.get("quantization_config").filter(|v| !v.is_null()) else {
            return match beside.is_file() && read_json(&beside)?["producer"]["name"] == "modelopt" {
                true => Ok(Self::ModelOpt),
                false => Ok(Self::None),
            };
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
        if method == "modelopt" {
            return Ok(Self::ModelOpt);
        }
        if method != "fp8" {
            return bad(method, "quant_method", "\"fp8\" or \"modelopt\"");
        }
        let size = &quantization["weight_block_size"];
        if size.is_null() {
            return Ok(Self::None);
        }
        let numbers: Option<Vec<usize>> = size
            .as_array()
            .map(|a| a.iter().filter_map(Value::as_u64).map(|n| n as usize).collect());
        match numbers.as_deref() {
            Some(&[rows, columns]) if rows > 0 && columns > 0 => Ok(Self::Fp8([rows, columns])),
            _ => bad(size, "weight_block_size", "two positive integers"),
        }
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
        // As if none were 0, so that products of some of them fit too.
        let elements = info.shape.iter().try_fold(1usize, |n, &d| n.checked_mul(d.max(1)));
        let bits = elements.and_then(|n| n.checked_mul(info.dtype.bitsize()));
        let bits = bits.ok_or_else(|| invalid(SafeTensorError::ValidationOverflow))?;
        let bits = if info.shape.contains(&0) { 0 } else { bits };
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

/// The scale of an FP8 weight: one for each block, or without blocks, one for each row or for all.
fn scale_of(
    tensor: &str,
    weight: &TensorInfo,
    scale: &Stored,
    block: Option<[usize; 2]>,
    path: impl Fn() -> PathBuf,
) -> Result<Scale, CheckpointError> {
    let suffix = if block.is_some() { SCALE_INV } else { SCALE };
    let &[rows, columns] = weight.shape.as_slice() else {
        return Err(CheckpointError::Fp8Shape {
            path: path(),
            tensor: tensor.to_owned(),
            shape: weight.shape.clone(),
        });
    };
    let found = &scale.info.shape;
    let whole = block.is_none() && found.iter().all(|&n| n == 1);
    let block = block.unwrap_or([if whole { rows } else { 1 }, columns]).map(|n| n.max(1));
    let expected = vec![rows.div_ceil(block[0]), columns.div_ceil(block[1])];
    // A scale for each row has one dimension or two.
    if *found != expected && !(suffix == SCALE && (whole || *found == expected[..1])) {
        return Err(CheckpointError::ScaleShape {
            path: path(),
            tensor: format!("{tensor}{suffix}"),
            found: found.clone(),
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
                tensor: format!("{tensor}{suffix}"),
                dtype: format!("{other:?}"),
            });
        }
    };
    let bytes = scale.bytes.clone();
    Ok(Scale { suffix, shard: scale.shard, bytes, dtype, block, per_row: expected[1] })
}
