//! A GGUF model as a source of weights, in one file or several.

use super::{Dtype, Origin, SCRATCH, Source, SourceError, SourceFile, TensorMeta};
use crate::blob::{Blob, LocalFile, physical_memory};
use crate::gguf::{GgufError, GgufFile, Metadata, open_all};
use crate::quant::QuantType;
use std::collections::HashMap;
use std::ops::Range;
use std::path::{Path, PathBuf};

/// An opened GGUF model whose tensors can be read as `f32` whatever their type.
pub struct GgufSource {
    files: Vec<GgufFile>,
    data: Vec<LocalFile>,
    metas: Vec<TensorMeta>,
    /// File, and index in that file.
    places: Vec<(usize, usize)>,
    by_name: HashMap<String, usize>,
    /// For tensors that have some, a factor for each matrix.
    factors: HashMap<usize, Vec<f32>>,
}

impl GgufSource {
    /// Opens a file, or all files of a split model, given its first.
    ///
    /// # Errors
    /// See [`open_all`].
    pub fn open(path: &Path) -> Result<Self, GgufError> {
        let files = open_all(path)?;
        let size: u64 = files.iter().map(GgufFile::file_size).sum();
        let large = physical_memory().is_some_and(|memory| size > memory / 2);
        let mut data = Vec::new();
        let mut places = Vec::new();
        let mut metas = Vec::new();
        for (i, file) in files.iter().enumerate() {
            let mut blob = LocalFile::open(file.path())
                .map_err(|error| GgufError::Io { path: file.path().to_owned(), error })?;
            blob.drop_pages(large);
            data.push(blob);
            for (j, t) in file.tensors().iter().enumerate() {
                places.push((i, j));
                let dtype = Dtype::Gguf(t.ty);
                metas.push(TensorMeta { name: t.name.clone(), dims: t.dims.clone(), dtype });
            }
        }
        let by_name = metas.iter().enumerate().map(|(i, t)| (t.name.clone(), i)).collect();
        Ok(Self { files, data, metas, places, by_name, factors: HashMap::new() })
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
            let matrices = meta.dims.get(2).copied().unwrap_or(1);
            if of_scale.dtype == Dtype::Gguf(QuantType::F32) && of_scale.n_elements() == matrices {
                let mut factors = vec![0.0; matrices as usize];
                self.read_rows(scale, 0, &mut factors)?;
                self.factors.insert(tensor, factors);
            }
        }
        Ok(())
    }

    /// The first file, or the only one.
    pub fn file(&self) -> &GgufFile {
        &self.files[0]
    }

    /// All files.
    pub fn files(&self) -> &[GgufFile] {
        &self.files
    }

    /// The model's metadata.
    pub fn metadata(&self) -> &Metadata {
        self.files[0].metadata()
    }

    /// Bytes of all files together.
    pub fn n_bytes(&self) -> u64 {
        self.files.iter().map(GgufFile::file_size).sum()
    }

    fn path(&self, tensor: usize) -> PathBuf {
        self.files[self.places[tensor].0].path().to_owned()
    }

    /// Where rows lie in their file.
    fn bytes_of(&self, tensor: usize, rows: Range<u64>) -> Range<u64> {
        let (file, index) = self.places[tensor];
        let file = &self.files[file];
        let n_per_row = self.metas[tensor].n_per_row() as usize;
        let row = file.tensors()[index].ty.row_bytes(n_per_row);
        let row = row.expect("the reader checked that rows are whole") as u64;
        let start = file.tensor_range(index).start as u64;
        start + rows.start * row..start + rows.end * row
    }

    fn blob(&self, tensor: usize) -> &LocalFile {
        &self.data[self.places[tensor].0]
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
        let mut bytes = SCRATCH.take();
        self.read_raw(tensor, first_row..first_row + (out.len() / n) as u64, &mut bytes)?;
        let (file, index) = self.places[tensor];
        let done = self.files[file].tensors()[index].ty.decode_rows(&bytes, n, out);
        SCRATCH.set(bytes);
        if let Some(factors) = self.factors.get(&tensor) {
            let per_matrix = self.metas[tensor].dims[1];
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
        let bytes = self.bytes_of(tensor, rows);
        out.resize((bytes.end - bytes.start) as usize, 0);
        self.blob(tensor).read_at(bytes.start, out).map_err(|error| SourceError::Io {
            path: self.path(tensor),
            tensor: self.metas[tensor].name.clone(),
            error,
        })?;
        Ok(true)
    }

    fn prefetch(&self, tensor: usize, rows: Range<u64>) {
        self.blob(tensor).prefetch(self.bytes_of(tensor, rows));
    }

    fn release(&self, tensor: usize, rows: Range<u64>) {
        self.blob(tensor).release(self.bytes_of(tensor, rows));
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
        self.places[tensor].0
    }

    fn find(&self, name: &str) -> Option<usize> {
        self.by_name.get(name).copied()
    }
}
