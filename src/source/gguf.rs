//! A GGUF model as a source of weights, in one file or several.

use super::{Dtype, Origin, SCRATCH, Source, SourceError, SourceFile, Storage, TensorMeta};
#[cfg(feature = "remote")]
use crate::gguf::open_all_by;
use crate::gguf::{Described, GgufError, GgufFile, Metadata, Opaque, TensorType, open_all};
use crate::io::{Blob, LocalFile, memory};
use crate::quant::QuantType;
use crate::simd::Simd;
use std::collections::HashMap;
use std::fs::File;
use std::ops::Range;
use std::path::{Path, PathBuf};

/// Where a tensor is stored: file, index in that file, and which part of it.
#[derive(Clone, Copy)]
struct Place {
    file: usize,
    index: usize,
    part: Part,
}

/// The part of a stored tensor that is seen as a tensor.
#[derive(Clone, Copy)]
enum Part {
    Whole,
    /// Of every `of` rows, those from `first` on.
    Rows {
        of: u64,
        first: u64,
    },
    /// Of every `of` rows the first ones, transposed.
    Columns {
        of: u64,
    },
    /// To a head of `of` rows, the `first` columns of its matrix, and the rows of its matrix in another
    /// tensor.
    Joint {
        of: u64,
        first: u64,
        values: Stored,
    },
}

/// A tensor in a file: the file's number, and its own.
#[derive(Clone, Copy)]
struct Stored {
    file: usize,
    index: usize,
}

/// An opened GGUF model whose tensors can be read as `f32` whatever their type.
pub struct GgufSource {
    files: Vec<Described>,
    data: Vec<Box<dyn Blob>>,
    metas: Vec<TensorMeta>,
    metadata: Metadata,
    places: Vec<Place>,
    by_name: HashMap<String, usize>,
    /// For tensors that have some, a factor for each matrix.
    factors: HashMap<usize, Vec<f32>>,
    simd: Simd,
    /// Memory that reading the files takes, at most.
    cache_bytes: u64,
}

impl GgufSource {
    /// Opens a file, or all files of a split model, given its first.
    ///
    /// # Errors
    /// See [`open_all`].
    pub fn open(path: &Path) -> Result<Self, GgufError> {
        let files = open_all(path)?;
        let size: u64 = files.iter().map(|file| file.file_size()).sum();
        let large = memory().usable().is_some_and(|memory| size > memory / 2);
        let open = |file: &GgufFile| -> Result<Box<dyn Blob>, GgufError> {
            let opened = LocalFile::open(file.path());
            let mut blob = opened.map_err(|error| GgufError::io(file.path(), error))?;
            blob.drop_pages(large);
            Ok(Box::new(blob))
        };
        let data = files.iter().map(open).collect::<Result<_, _>>()?;
        Ok(Self::new(files.into_iter().map(Described::from).collect(), data))
    }

    /// Opens a file, or all files of a split model, in a folder behind a URL; their headers are read in one
    /// or two requests each.
    ///
    /// # Errors
    /// See [`open_all`], and what the store says.
    #[cfg(feature = "remote")]
    pub fn open_remote(folder: &super::Remote, name: &str) -> Result<Self, GgufError> {
        let mut data: Vec<Box<dyn Blob>> = Vec::new();
        let files = open_all_by(&folder.path_of(name), |paths| {
            let mut described = Vec::new();
            for (path, blob) in paths.iter().zip(folder.open_all(paths, data.is_empty())) {
                let mut blob = blob.map_err(|error| GgufError::io(path, error))?;
                described.push(Described::new(path, blob.header(path)?)?);
                data.push(Box::new(blob));
            }
            Ok(described)
        })?;
        Ok(Self { cache_bytes: folder.cache_bytes(0), ..Self::new(files, data) })
    }

    fn new(files: Vec<Described>, data: Vec<Box<dyn Blob>>) -> Self {
        let mut places = Vec::new();
        let mut metas = Vec::new();
        for (i, file) in files.iter().enumerate() {
            for (j, t) in file.tensors().iter().enumerate() {
                places.push(Place { file: i, index: j, part: Part::Whole });
                let dtype = t.ty.into();
                metas.push(TensorMeta { name: t.name.clone(), dims: t.dims.clone(), dtype });
            }
        }
        let by_name = metas.iter().enumerate().map(|(i, t)| (t.name.clone(), i)).collect();
        let metadata = files[0].metadata().clone();
        let (factors, simd) = (HashMap::new(), Simd::detect());
        Self { files, data, metas, metadata, places, by_name, factors, simd, cache_bytes: 0 }
    }

    /// All files, as what their bytes are read from.
    pub fn blobs(&self) -> impl Iterator<Item = (&Described, &dyn Blob)> {
        self.files.iter().zip(self.data.iter().map(Box::as_ref))
    }

    /// Sets the instructions to decode with, instead of the fastest of this machine.
    pub fn set_simd(&mut self, simd: Simd) {
        self.simd = simd;
    }

    /// From now on, rows read as `f32` are multiplied with the factor that the file has for them:
    /// `X.scale` for `X.weight`, one number, or one for each expert. So llama.cpp computes with
    /// weights that were NVFP4 in the checkpoint (`llama_model_base::load_tensors`).
    ///
    /// # Errors
    /// Factors that cannot be read.
    pub fn apply_scales(&mut self) -> Result<(), SourceError> {
        for tensor in 0..self.metas.len() {
            let meta = &self.metas[tensor];
            let Some(stem) = meta.name.strip_suffix(".weight") else { continue };
            let Some(scale) = self.find(&format!("{stem}.scale")) else { continue };
            let of_scale = &self.metas[scale];
            let matrices = meta.dims.iter().skip(2).product::<u64>();
            if of_scale.dtype == Dtype::Gguf(QuantType::F32) && of_scale.n_elements() == matrices {
                let mut factors = vec![0.0; matrices as usize];
                self.read_rows(scale, 0, &mut factors)?;
                self.factors.insert(tensor, factors);
            }
        }
        Ok(())
    }

    /// The first file, or the only one.
    pub fn file(&self) -> &Described {
        &self.files[0]
    }

    /// All files.
    pub fn files(&self) -> &[Described] {
        &self.files
    }

    /// The model's metadata.
    pub fn metadata(&self) -> &Metadata {
        &self.metadata
    }

    /// The metadata, to be seen otherwise than it is stored.
    pub fn metadata_mut(&mut self) -> &mut Metadata {
        &mut self.metadata
    }

    /// Sees each of these tensors, `X.attn_kv_b.weight` with `nope + v` rows to a head, as
    /// `X.attn_k_b.weight`, each head's first `nope` rows transposed, and `X.attn_v_b.weight`, the
    /// others. Transposed blocks have to be made again: what is quantized becomes Q8_0.
    pub fn split_heads(&mut self, joint: &[usize], nope: u64, v: u64) {
        for &tensor in joint {
            let TensorMeta { name, dims, dtype } = self.metas[tensor].clone();
            let (of, rank) = (nope + v, dims[0]);
            let heads = dims[1] / of;
            let named = |part: &str| name.replace("attn_kv_b", part);
            let keys = match dtype {
                Dtype::Gguf(ty) if ty.is_quantized() => Dtype::Gguf(QuantType::Q8_0),
                float => float,
            };
            self.metas[tensor] =
                TensorMeta { name: named("attn_k_b"), dims: vec![nope, rank, heads], dtype: keys };
            self.metas.push(TensorMeta {
                name: named("attn_v_b"),
                dims: vec![rank, v, heads],
                dtype,
            });
            let place = self.places[tensor];
            self.places[tensor].part = Part::Columns { of };
            self.places.push(Place { part: Part::Rows { of, first: nope }, ..place });
        }
        self.by_name = self.metas.iter().enumerate().map(|(i, t)| (t.name.clone(), i)).collect();
    }

    /// Sees each of these pairs, `X.attn_k_b.weight` and `X.attn_v_b.weight` of as many heads, as one
    /// `X.attn_kv_b.weight`, as [`GgufSource::split_heads`] would split it. Keys are transposed, so what is
    /// quantized becomes Q8_0.
    pub fn join_heads(&mut self, pairs: &[[usize; 2]]) {
        for &[keys, values] in pairs {
            let [of_keys, of_values] = [keys, values].map(|tensor| self.metas[tensor].clone());
            let dtype = match (of_keys.dtype, of_values.dtype) {
                (Dtype::Gguf(k), Dtype::Gguf(v)) if k.is_quantized() || v.is_quantized() => {
                    Dtype::Gguf(QuantType::Q8_0)
                }
                (k, v) if k == v => k,
                _ => Dtype::Gguf(QuantType::F32),
            };
            let [nope, rank, heads] = [0, 1, 2].map(|i| of_keys.dims.get(i).copied().unwrap_or(1));
            let of = nope + of_values.dims.get(1).copied().unwrap_or(1);
            let name = of_keys.name.replace("attn_k_b", "attn_kv_b");
            self.metas[keys] = TensorMeta { name, dims: vec![rank, heads * of], dtype };
            let Place { file, index, .. } = self.places[values];
            let values = Stored { file, index };
            self.places[keys].part = Part::Joint { of, first: nope, values };
        }
        let is_joined = |i: usize| pairs.iter().any(|[_, values]| *values == i);
        let kept: Vec<usize> = (0..self.metas.len()).filter(|&i| !is_joined(i)).collect();
        self.metas = kept.iter().map(|&i| self.metas[i].clone()).collect();
        self.places = kept.iter().map(|&i| self.places[i]).collect();
        self.by_name = self.metas.iter().enumerate().map(|(i, t)| (t.name.clone(), i)).collect();
    }

    /// Reads rows of a joint tensor whose keys are stored so: heads of `of` rows, `first` of keys.
    fn read_joint(
        &self,
        [keys, values]: [Stored; 2],
        [of, first]: [u64; 2],
        rows: Range<u64>,
        out: &mut [f32],
    ) -> Result<(), SourceError> {
        let rank = out.len() / (rows.end - rows.start).max(1) as usize;
        let (mut head, mut held) = (Vec::new(), None);
        for (row, out) in rows.zip(out.chunks_exact_mut(rank)) {
            let (of_head, in_head) = (row / of, row % of);
            if in_head >= first {
                self.decode(values, of_head * (of - first) + in_head - first, out)?;
                continue;
            }
            if held != Some(of_head) {
                head.resize(first as usize * rank, 0.0);
                self.decode(keys, of_head * rank as u64, &mut head)?;
                held = Some(of_head);
            }
            for (value, stored) in out.iter_mut().zip(head.chunks_exact(first as usize)) {
                *value = stored[in_head as usize];
            }
        }
        Ok(())
    }

    /// Decodes whole rows of a stored tensor, as many as `out` holds.
    fn decode(&self, of: Stored, first: u64, out: &mut [f32]) -> Result<(), SourceError> {
        let stored = &self.files[of.file].tensors()[of.index];
        let path = || self.files[of.file].path().to_owned();
        let ty = match stored.ty {
            TensorType::Known(ty) => ty,
            TensorType::Unknown(Opaque { id, .. }) => {
                return Err(SourceError::UnknownType {
                    path: path(),
                    tensor: stored.name.clone(),
                    id,
                });
            }
        };
        let n = stored.dims[0] as usize;
        let range = self.stored_bytes(of, first..first + (out.len() / n) as u64);
        let mut bytes = vec![0; (range.end - range.start) as usize];
        self.data[of.file]
            .read_at(range.start, &mut bytes)
            .map_err(|error| SourceError::reading(path(), &stored.name, error))?;
        ty.decode_rows_with(self.simd, &bytes, n, out).map_err(|error| SourceError::Decode {
            path: path(),
            tensor: stored.name.clone(),
            error,
        })
    }

    /// Calls `each` with runs of stored rows and the rows of the tensor that they are; for what is
    /// transposed, the stored rows of the whole head.
    fn runs(
        &self,
        tensor: usize,
        rows: Range<u64>,
        mut each: impl FnMut(Range<u64>, Range<u64>) -> Result<(), SourceError>,
    ) -> Result<(), SourceError> {
        let (of, first, stored) = match self.places[tensor].part {
            Part::Whole => return each(rows.clone(), rows),
            Part::Rows { of, first } => (of, first, None),
            Part::Columns { of } => (of, 0, Some(self.metas[tensor].dims[0])),
            // Read by heads, from two places.
            Part::Joint { .. } => return Ok(()),
        };
        let per_head = self.metas[tensor].dims[1];
        let mut row = rows.start;
        while row < rows.end {
            let (head, in_head) = (row / per_head, row % per_head);
            let count = (per_head - in_head).min(rows.end - row);
            let start = head * of + first;
            let stored = match stored {
                Some(all) => start..start + all,
                None => start + in_head..start + in_head + count,
            };
            each(stored, row..row + count)?;
            row += count;
        }
        Ok(())
    }

    /// Reads stored rows as they are.
    fn read_stored(
        &self,
        tensor: usize,
        stored: Range<u64>,
        out: &mut [u8],
    ) -> Result<(), SourceError> {
        let start = self.bytes_of(tensor, stored).start;
        self.blob(tensor).read_at(start, out).map_err(|error| {
            SourceError::reading(self.path(tensor), &self.metas[tensor].name, error)
        })
    }

    /// Reads the stored bytes of rows that are not transposed.
    fn read_whole(
        &self,
        tensor: usize,
        rows: Range<u64>,
        out: &mut Vec<u8>,
    ) -> Result<(), SourceError> {
        let bytes = self.bytes_of(tensor, rows.clone());
        out.resize((bytes.end - bytes.start) as usize, 0);
        let row = out.len() / (rows.end - rows.start).max(1) as usize;
        self.runs(tensor, rows.clone(), |stored, run| {
            let [start, end] = [run.start, run.end].map(|at| (at - rows.start) as usize * row);
            self.read_stored(tensor, stored, &mut out[start..end])
        })
    }

    /// Bytes of all files together.
    pub fn n_bytes(&self) -> u64 {
        self.files.iter().map(|file| file.file_size()).sum()
    }

    fn path(&self, tensor: usize) -> PathBuf {
        self.files[self.places[tensor].file].path().to_owned()
    }

    /// Where stored rows lie in their file.
    fn bytes_of(&self, tensor: usize, rows: Range<u64>) -> Range<u64> {
        let Place { file, index, .. } = self.places[tensor];
        self.stored_bytes(Stored { file, index }, rows)
    }

    fn stored_bytes(&self, of: Stored, rows: Range<u64>) -> Range<u64> {
        let file = &self.files[of.file];
        let stored = &file.tensors()[of.index];
        let row = match stored.ty {
            TensorType::Unknown(_) => 1,
            known => known.n_bytes(&stored.dims[..stored.dims.len().min(1)]).unwrap_or(0),
        };
        let start = file.tensor_range(of.index).start as u64;
        start + rows.start * row..start + rows.end * row
    }

    fn blob(&self, tensor: usize) -> &dyn Blob {
        &*self.data[self.places[tensor].file]
    }
}

impl Source for GgufSource {
    fn tensors(&self) -> &[TensorMeta] {
        &self.metas
    }

    fn read_rows(&self, tensor: usize, first_row: u64, out: &mut [f32]) -> Result<(), SourceError> {
        let n = self.metas[tensor].n_per_row() as usize;
        if out.is_empty() || n == 0 {
            return Ok(());
        }
        let Place { file, index, part } = self.places[tensor];
        if let Part::Joint { of, first, values } = part {
            let rows = first_row..first_row + (out.len() / n) as u64;
            return self.read_joint([Stored { file, index }, values], [of, first], rows, out);
        }
        let stored = &self.files[file].tensors()[index];
        let ty = match stored.ty {
            TensorType::Known(ty) => ty,
            TensorType::Unknown(Opaque { id, .. }) => {
                let (path, tensor) = (self.path(tensor), self.metas[tensor].name.clone());
                return Err(SourceError::UnknownType { path, tensor, id });
            }
        };
        let mut bytes = SCRATCH.take();
        let rows = first_row..first_row + (out.len() / n) as u64;
        let mut done = Ok(());
        if let Part::Columns { .. } = part {
            let (width, per_head) = (stored.dims[0] as usize, self.metas[tensor].dims[1]);
            let mut head = Vec::new();
            self.runs(tensor, rows, |stored_rows, rows| {
                let range = self.bytes_of(tensor, stored_rows.clone());
                bytes.resize((range.end - range.start) as usize, 0);
                self.read_stored(tensor, stored_rows, &mut bytes)?;
                head.resize(n * width, 0.0);
                if done.is_ok() {
                    done = ty.decode_rows_with(self.simd, &bytes, width, &mut head);
                }
                for row in rows {
                    let column = (row % per_head) as usize;
                    let out = &mut out[(row - first_row) as usize * n..][..n];
                    for (value, stored) in out.iter_mut().zip(head.chunks_exact(width)) {
                        *value = stored[column];
                    }
                }
                Ok(())
            })?;
        } else {
            self.read_whole(tensor, rows, &mut bytes)?;
            done = ty.decode_rows_with(self.simd, &bytes, n, out);
        }
        SCRATCH.set(bytes);
        if let Some(factors) = self.factors.get(&tensor) {
            let per_matrix = self.metas[tensor].dims.get(1).copied().unwrap_or(1);
            for (row, weights) in (first_row..).zip(out.chunks_exact_mut(n)) {
                let factor = factors[(row / per_matrix) as usize];
                weights.iter_mut().for_each(|weight| *weight *= factor);
            }
        }
        done.map_err(|error| SourceError::Decode {
            path: self.path(tensor),
            tensor: self.metas[tensor].name.clone(),
            error,
        })
    }

    fn read_raw(
        &self,
        tensor: usize,
        rows: Range<u64>,
        out: &mut Vec<u8>,
    ) -> Result<bool, SourceError> {
        let transposed =
            matches!(self.places[tensor].part, Part::Columns { .. } | Part::Joint { .. });
        if transposed || self.factors.contains_key(&tensor) {
            return Ok(false);
        }
        self.read_whole(tensor, rows, out)?;
        Ok(true)
    }

    fn find(&self, name: &str) -> Option<usize> {
        self.by_name.get(name).copied()
    }
}

impl Storage for GgufSource {
    fn table_bytes(&self) -> u64 {
        super::table_bytes(&self.metas) + self.cache_bytes
    }

    fn granule(&self, tensor: usize) -> u64 {
        match self.places[tensor].part {
            Part::Columns { .. } => self.metas[tensor].dims[1],
            Part::Joint { of, .. } => of,
            Part::Whole | Part::Rows { .. } => 1,
        }
    }

    fn stored_in(&self, tensor: usize, rows: Range<u64>) -> Option<(&File, Range<u64>)> {
        let whole = matches!(self.places[tensor].part, Part::Whole);
        let file = self.blob(tensor).local().filter(|_| whole)?;
        Some((file, self.bytes_of(tensor, rows)))
    }

    fn prefetch(&self, tensor: usize, rows: Range<u64>) {
        let told = self.runs(tensor, rows, |stored, _| {
            self.blob(tensor).prefetch(self.bytes_of(tensor, stored));
            Ok(())
        });
        debug_assert!(told.is_ok(), "a hint reads nothing");
    }

    fn release(&self, tensor: usize, rows: Range<u64>) {
        let told = self.runs(tensor, rows, |stored, _| {
            self.blob(tensor).release(self.bytes_of(tensor, stored));
            Ok(())
        });
        debug_assert!(told.is_ok(), "a hint reads nothing");
    }

    fn origin(&self, tensor: usize, _row: u64) -> Origin {
        Origin { path: self.path(tensor), tensor: self.metas[tensor].name.clone() }
    }

    fn files(&self) -> Vec<SourceFile> {
        let files = self.files.iter().zip(&self.data);
        files
            .map(|(file, blob)| SourceFile {
                path: file.path().to_owned(),
                size: blob.size(),
                version: blob.version(),
            })
            .collect()
    }

    fn file_of(&self, tensor: usize) -> usize {
        self.places[tensor].file
    }
}
