//! Hugging Face checkpoints: safetensors files, sharded or single, plain, FP8 with scales of any
//! shape, or NVFP4 as ModelOpt stores it.
//!
//! It knows how such a folder is stored, not what model it holds. Tensors are made readable one by
//! one, as they are asked for: everything that headers can tell of them is checked then, and what
//! nobody asks for may be missing or stored in any way. Only values remain for reading.

use super::declared::Declared;
use super::error::{CheckpointError, SourceError};
use super::folder::Folder;
use super::scales::{self, Scale};
use super::shards::{Shard, Shards, Stored};
use super::{Dtype, Origin, SCRATCH, Source, SourceFile, TensorMeta, packed};
use crate::names::few;
use crate::quant::{QuantError, QuantType, fp8, nvfp4_from_modelopt};
use crate::warning::{Topic, Warning};
use safetensors::tensor::Dtype as StDtype;
use std::collections::{BTreeMap, HashMap, HashSet};
use std::ops::Range;
use std::path::Path;
use std::sync::{Mutex, PoisonError};

/// The scales of the blocks of an NVFP4 weight.
const SCALE: &str = "_scale";
/// The scale of an NVFP4 weight as a whole, on top of its blocks' scales.
const SCALE_2: &str = "_scale_2";

/// Methods under which weights are known to be stored values times scales.
const MULTIPLYING: [&str; 5] = ["fp8", "fbgemm_fp8", "compressed-tensors", "modelopt", "quark"];

/// An opened checkpoint folder. Shapes are innermost first, and scales are folded into the tensors that
/// they scale.
pub struct Checkpoint {
    folder: Folder,
    shards: Shards,
    declared: Declared,
    metas: Vec<TensorMeta>,
    places: Vec<Place>,
    by_name: HashMap<String, usize>,
    /// Names of tensors that have been made readable, and of their scales.
    taken: HashSet<String>,
    /// Tensors whose values a scale of 0 has wiped out, with the scale's row and column.
    wiped: Mutex<BTreeMap<usize, [u64; 2]>>,
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

impl From<&Stored> for Extent {
    fn from(stored: &Stored) -> Self {
        Self { shard: stored.shard, bytes: stored.bytes.clone() }
    }
}

struct NvFp4 {
    scales: Extent,
    /// One f32.
    global: Option<Extent>,
    /// One f32 for the activations, which the weights do not need.
    input: Option<Extent>,
}

impl Checkpoint {
    /// Opens the folder, reads every shard's header and compares headers and index.
    ///
    /// # Errors
    /// A folder without weights, a damaged index, damaged shards where no index says what else there is.
    pub fn open(folder: Folder) -> Result<Self, CheckpointError> {
        let declared = Declared::of(folder.dir())?;
        let shards = Shards::open(&folder)?;
        Ok(Self {
            folder,
            shards,
            declared,
            metas: Vec::new(),
            places: Vec::new(),
            by_name: HashMap::new(),
            taken: HashSet::new(),
            wiped: Mutex::default(),
        })
    }

    /// Makes a tensor readable and returns its index; `None` where no file that is here holds it.
    ///
    /// # Errors
    /// Dtypes that are not read, scales that are missing or of the wrong shape, two different
    /// tensors of this name.
    pub fn take(&mut self, name: &str) -> Result<Option<usize>, CheckpointError> {
        if let Some(&known) = self.by_name.get(name) {
            return Ok(Some(known));
        }
        let (meta, place) = match self.place(name) {
            Ok(None) => return Ok(None),
            Ok(Some(found)) => found,
            Err(CheckpointError::MissingScale { path, tensor, scale }) => {
                // It may be in a file that is not here.
                let absent =
                    scales::names(name).into_iter().find_map(|n| self.shards.why_missing(&n));
                let missing = CheckpointError::MissingScale { path, tensor, scale };
                return Err(absent.unwrap_or(missing));
            }
            Err(error) => return Err(error),
        };
        self.taken.insert(name.to_owned());
        match &place.scaling {
            Scaling::Plain => {}
            Scaling::Fp8(scale) => {
                self.taken.extend([scale.name.clone(), format!("{name}_zero_point")]);
            }
            Scaling::NvFp4(_) => {
                self.taken.extend([SCALE, SCALE_2].map(|suffix| format!("{name}{suffix}")));
            }
        }
        self.by_name.insert(name.to_owned(), self.metas.len());
        self.metas.push(meta);
        self.places.push(place);
        Ok(Some(self.metas.len() - 1))
    }

    fn place(&self, name: &str) -> Result<Option<(TensorMeta, Place)>, CheckpointError> {
        let Some(stored) = self.shards.find(name)? else { return Ok(None) };
        let mut dims: Vec<u64> = stored.info.shape.iter().rev().map(|&d| d as u64).collect();
        let (dtype, scaling) = match stored.info.dtype {
            StDtype::F32 => (Dtype::Gguf(QuantType::F32), Scaling::Plain),
            StDtype::F16 => (Dtype::Gguf(QuantType::F16), Scaling::Plain),
            StDtype::BF16 => (Dtype::Gguf(QuantType::BF16), Scaling::Plain),
            StDtype::F8_E4M3 => (Dtype::F8E4M3, Scaling::Fp8(self.scale_of(name, stored)?)),
            StDtype::F8_E5M2 => (Dtype::F8E5M2, Scaling::Fp8(self.scale_of(name, stored)?)),
            StDtype::U8 if self.is_nvfp4(name) => {
                let nvfp4 = self.nvfp4_of(name, stored)?;
                dims[0] *= 2;
                (Dtype::NvFp4, Scaling::NvFp4(nvfp4))
            }
            other => return Err(self.unreadable(name, stored, other)),
        };
        let Extent { shard, bytes } = stored.into();
        let meta = TensorMeta { name: name.to_owned(), dims, dtype };
        Ok(Some((meta, Place { shard, bytes, scaling })))
    }

    /// The scale of an FP8 tensor.
    fn scale_of(&self, name: &str, stored: &Stored) -> Result<Scale, CheckpointError> {
        let zero_point = format!("{name}_zero_point");
        if let Some(stored) = self.shards.find(&zero_point)?
            && !self.shards.is_zero(stored)?
        {
            let path = self.shards.path_of(stored).to_owned();
            return Err(CheckpointError::ZeroPoint { path, tensor: zero_point });
        }
        Scale::of(name, stored, &self.shards, &self.declared)
    }

    /// Whether a tensor of bytes is NVFP4, which has FP8 scales.
    fn is_nvfp4(&self, name: &str) -> bool {
        let scale = self.shards.stored.get(&format!("{name}{SCALE}"));
        let is_fp8 = |copy: &Stored| copy.info.dtype == StDtype::F8_E4M3;
        scale.is_some_and(|copies| copies.iter().all(is_fp8))
            || self.declared.method.as_deref() == Some("modelopt")
    }

    fn nvfp4_of(&self, name: &str, stored: &Stored) -> Result<NvFp4, CheckpointError> {
        let path = |stored: &Stored| self.shards.path_of(stored).to_owned();
        let scale = format!("{name}{SCALE}");
        let Some(found) = self.shards.find(&scale)? else {
            let (path, tensor) = (path(stored), name.to_owned());
            return Err(CheckpointError::MissingScale { path, tensor, scale });
        };
        let expected = match *stored.info.shape.as_slice() {
            // A GGUF block holds four groups of 16, of two to a byte.
            [rows, packed] if packed % 32 == 0 => vec![rows, packed / 8],
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
        if found.info.shape != expected {
            return Err(CheckpointError::ScaleShape {
                path: path(found),
                tensor: scale,
                found: found.info.shape.clone(),
                expected,
            });
        }
        let single = |name: String| match self.shards.find(&name)? {
            None => Ok(None),
            Some(found)
                if found.info.dtype != StDtype::F32 || found.info.shape.iter().any(|&n| n != 1) =>
            {
                Err(CheckpointError::ScaleShape {
                    path: path(found),
                    tensor: name,
                    found: found.info.shape.clone(),
                    expected: vec![1],
                })
            }
            Some(found) => Ok(Some(found.into())),
        };
        Ok(NvFp4 {
            scales: found.into(),
            global: single(format!("{name}{SCALE_2}"))?,
            input: single(input_scale(name))?,
        })
    }

    /// Why a tensor that is here is not read.
    fn unreadable(&self, name: &str, stored: &Stored, dtype: StDtype) -> CheckpointError {
        let (path, tensor) = (self.shards.path_of(stored).to_owned(), name.to_owned());
        let integers = matches!(dtype, StDtype::U8 | StDtype::I8 | StDtype::I32 | StDtype::U32);
        let format = self.packed_beside(name).map(|(_, format)| format);
        match format.or_else(|| self.declared.method.clone().filter(|_| integers)) {
            Some(format) => CheckpointError::Packed { path, tensor, format },
            None => CheckpointError::Dtype { path, tensor, dtype: format!("{dtype:?}") },
        }
    }

    /// A tensor of a format that packs weights, which is this one or belongs to it by its name.
    fn packed_beside(&self, name: &str) -> Option<(&str, String)> {
        let format = |name| Some((name, packed::format(name, &self.declared)?));
        let stem = name.strip_suffix("weight").unwrap_or(name);
        let names = self.shards.stored.keys().filter(|stored| stored.starts_with(stem));
        names.filter_map(|stored| format(stored.as_str())).min()
    }

    /// Why a tensor is not here, or why one that is has no use, as far as it is a matter of how
    /// checkpoints are stored.
    pub fn objection(&mut self, name: &str) -> Option<CheckpointError> {
        if let Some((packed, format)) = self.packed_beside(name) {
            let (tensor, path) = (packed.to_owned(), self.shards.stored[packed].first());
            let path = path.map_or(self.dir(), |stored| self.shards.path_of(stored)).to_owned();
            return Some(CheckpointError::Packed { path, tensor, format });
        }
        let Some(stored) = self.shards.stored.get(name).and_then(|copies| copies.first()) else {
            return self.shards.why_missing(name);
        };
        let path = self.shards.path_of(stored).to_owned();
        let weight = scales::scaled(name).filter(|weight| self.shards.stored.contains_key(weight));
        weight.map(|_| CheckpointError::StrayScale { path, tensor: name.to_owned() })
    }

    /// Names of tensors that have not been made readable, in order: those of files that are here, and
    /// those of files that should be by the index.
    pub fn left(&self) -> Vec<String> {
        let names = self.shards.stored.keys().chain(self.shards.absent.keys());
        let mut names: Vec<String> =
            names.filter(|name| !self.taken.contains(*name)).cloned().collect();
        names.sort_unstable();
        names
    }

    /// The file that holds a tensor of any dtype, readable or not.
    pub fn file_with(&self, name: &str) -> Option<&Path> {
        let copies = self.shards.stored.get(name)?;
        copies.first().map(|stored| self.shards.path_of(stored))
    }

    /// Files that by the index hold tensors and do not exist.
    pub fn missing_files(&self) -> impl Iterator<Item = &Path> {
        let missing = self.shards.unopened.iter().filter(|file| file.missing);
        missing.map(|file| file.path.as_path())
    }

    /// What is not as one would expect, once everything that is needed has been made readable.
    pub fn warnings(&self) -> Vec<Warning> {
        let shards = &self.shards;
        let mut warnings = shards.warnings.clone();
        let damaged = shards.unopened.iter().filter(|file| !file.missing);
        for error in damaged.filter_map(|file| file.error.as_ref()).chain(&shards.incomplete) {
            let text = format!("{error}; nothing that is needed is in there");
            warnings.push(Warning::new(Topic::Tensors, text));
        }
        let scaled: Vec<&str> = self
            .metas
            .iter()
            .zip(&self.places)
            .filter(|(_, place)| !matches!(place.scaling, Scaling::Plain))
            .map(|(meta, _)| meta.name.as_str())
            .collect();
        let config = self.dir().join("config.json");
        let config = config.display();
        let text = match &self.declared.method {
            Some(method) if scaled.is_empty() => {
                format!("{config}: declares weights quantized by {method}, and none is")
            }
            Some(method) if !MULTIPLYING.contains(&method.as_str()) => format!(
                "{config}: {method} is no format that is known; weights are taken as their stored \
                 values times their scales: {}",
                few(&scaled)
            ),
            None if !scaled.is_empty() => format!(
                "{config}: declares no quantization, and these are quantized; their scales are \
                 applied: {}",
                few(&scaled)
            ),
            _ => return warnings,
        };
        warnings.push(Warning::new(Topic::Config, text));
        warnings
    }

    /// The local folder that holds the small files.
    pub fn dir(&self) -> &Path {
        self.folder.dir()
    }

    /// The file that a tensor lies in.
    pub fn path_of(&self, tensor: usize) -> &Path {
        &self.shards.files[self.places[tensor].shard].path
    }

    /// The type of the first matrix that has 16 bits, in the order of the files; what the reference
    /// converter takes for `--outtype auto`.
    pub fn half_type(&self) -> Option<QuantType> {
        let tensors =
            self.shards.stored.iter().flat_map(|(name, copies)| copies.iter().zip([name]));
        let halves = tensors.filter_map(|(stored, name)| match stored.info.dtype {
            StDtype::BF16 => Some((stored, name, QuantType::BF16)),
            StDtype::F16 => Some((stored, name, QuantType::F16)),
            _ => None,
        });
        let matrices = halves.filter(|(stored, ..)| stored.info.shape.len() >= 2);
        let first = matrices.min_by_key(|(stored, name, _)| (stored.shard, *name));
        first.map(|(.., ty)| ty)
    }

    /// A tensor's place in the order of the reference converter: the number of its shard, and its
    /// name.
    pub fn position(&self, tensor: usize) -> (usize, &str) {
        (self.places[tensor].shard, &self.metas[tensor].name)
    }

    /// Bytes of all shards together.
    pub fn n_bytes(&self) -> u64 {
        self.shards.n_bytes()
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

    /// The name of the factor of the activations that a tensor is multiplied with.
    pub fn input_scale(&self, tensor: usize) -> String {
        input_scale(&self.metas[tensor].name)
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
            path: self.shards.files[scales.shard].path.clone(),
            tensor: name_of_scale(),
            row: rows.start + at as u64 / per_row,
            column: at as u64 % per_row,
            value: f32::NAN,
        })?;
        Ok(true)
    }

    /// How many shards there are.
    pub fn n_shards(&self) -> usize {
        self.shards.files.len()
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
        let Shard { path, blob } = &self.shards.files[shard];
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
        let n_rows = out.len() / n;
        let width = scale.width();
        // The scales of all rows at once: one for every block of rows.
        let block_rows = first_row / scale.block[0]..(first_row + n_rows).div_ceil(scale.block[0]);
        let mut stored = vec![0; block_rows.len() * scale.per_row * width];
        let at = scale.bytes.start + (block_rows.start * scale.per_row * width) as u64;
        self.read(scale.shard, || scale.name.clone(), at, &mut stored)?;
        let factors = scale.decode(&stored).map_err(|error| self.decode_error(tensor, error))?;
        if let Some(at) = factors.iter().position(|f| !(f.is_finite() && *f >= 0.0)) {
            return Err(SourceError::Scale {
                path: self.shards.files[scale.shard].path.clone(),
                tensor: scale.name.clone(),
                row: (block_rows.start + at / scale.per_row) as u64,
                column: (at % scale.per_row) as u64,
                value: factors[at],
            });
        }
        let decode = match meta.dtype {
            Dtype::F8E5M2 => fp8::decode_scaled_e5m2,
            _ => fp8::decode_scaled,
        };
        let mut data = SCRATCH.take();
        data.resize(out.len(), 0);
        let bytes = self.bytes_of(tensor, first_row as u64..(first_row + n_rows) as u64);
        self.read(shard, || meta.name.clone(), bytes.start, &mut data)?;
        for (i, (bytes, row)) in data.chunks_exact(n).zip(out.chunks_exact_mut(n)).enumerate() {
            let r = first_row + i;
            let block_row = r / scale.block[0];
            let factors = &factors[(block_row - block_rows.start) * scale.per_row..];
            let blocks = bytes.chunks(scale.block[1]).zip(row.chunks_mut(scale.block[1]));
            for (b, ((bytes, row), &factor)) in blocks.zip(factors).enumerate() {
                if let Err(at) = decode(bytes, factor, row) {
                    return Err(SourceError::Fp8Nan {
                        path: self.shards.files[shard].path.clone(),
                        tensor: meta.name.clone(),
                        row: r as u64,
                        column: (b * scale.block[1] + at) as u64,
                    });
                }
                if factor == 0.0 && bytes.iter().any(|byte| byte & 0x7f != 0) {
                    let mut wiped = self.wiped.lock().unwrap_or_else(PoisonError::into_inner);
                    let first = wiped.entry(tensor).or_insert([block_row as u64, b as u64]);
                    *first = [block_row as u64, b as u64].min(*first);
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
        self.shards.files[self.places[tensor].shard].blob.prefetch(self.bytes_of(tensor, rows));
    }

    fn release(&self, tensor: usize, rows: Range<u64>) {
        self.shards.files[self.places[tensor].shard].blob.release(self.bytes_of(tensor, rows));
    }

    fn origin(&self, tensor: usize, _row: u64) -> Origin {
        let tensor_name = self.metas[tensor].name.clone();
        Origin { path: self.path_of(tensor).to_owned(), tensor: tensor_name }
    }

    fn files(&self) -> Vec<SourceFile> {
        let shards = self.shards.files.iter();
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
        tables + self.folder.cache_bytes(self.shards.files.len())
    }

    fn find(&self, name: &str) -> Option<usize> {
        self.by_name.get(name).copied()
    }

    fn met(&self) -> Vec<Warning> {
        let wiped = self.wiped.lock().unwrap_or_else(PoisonError::into_inner);
        let mut by_file: BTreeMap<&Path, Vec<String>> = BTreeMap::new();
        for (&tensor, [row, column]) in wiped.iter() {
            let Scaling::Fp8(scale) = &self.places[tensor].scaling else { continue };
            let path = self.shards.files[scale.shard].path.as_path();
            let name = format!("{}[{row}, {column}]", scale.name);
            by_file.entry(path).or_default().push(name);
        }
        let texts = by_file.into_iter().map(|(path, scales)| {
            let (path, scales) = (path.display(), few(&scales));
            format!("{path}: scales of 0 make 0 of weights that are stored as others: {scales}")
        });
        texts.map(|text| Warning::new(Topic::Values, text)).collect()
    }
}

fn input_scale(weight: &str) -> String {
    format!("{}.input_scale", weight.strip_suffix(".weight").unwrap_or(weight))
}
