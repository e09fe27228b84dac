//! A GGUF file as a source of weights.

use super::{Dtype, Origin, Source, SourceError, TensorMeta};
use crate::gguf::{GgufError, GgufFile};
use std::ops::Range;
use std::path::Path;

/// An opened GGUF file whose tensors can be read as `f32` whatever their type.
#[derive(Debug)]
pub struct GgufSource {
    file: GgufFile,
    metas: Vec<TensorMeta>,
}

impl GgufSource {
    /// Opens a file.
    ///
    /// # Errors
    /// See [`GgufFile::open`].
    pub fn open(path: &Path) -> Result<Self, GgufError> {
        let file = GgufFile::open(path)?;
        let metas = file
            .tensors()
            .iter()
            .map(|t| TensorMeta {
                name: t.name.clone(),
                dims: t.dims.clone(),
                dtype: Dtype::Gguf(t.ty),
            })
            .collect();
        Ok(Self { file, metas })
    }

    /// The file.
    pub fn file(&self) -> &GgufFile {
        &self.file
    }

    fn bytes_of(&self, tensor: usize, rows: Range<u64>) -> Range<usize> {
        let info = &self.file.tensors()[tensor];
        let n_per_row = self.metas[tensor].n_per_row() as usize;
        let row = info.ty.row_bytes(n_per_row).expect("the reader checked that rows are whole");
        rows.start as usize * row..rows.end as usize * row
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
        let range = self.bytes_of(tensor, first_row..first_row + (out.len() / n) as u64);
        let bytes = &self.file.tensor_data(tensor)[range];
        self.file.tensors()[tensor].ty.decode_rows(bytes, n, out).map_err(|error| {
            SourceError::Decode {
                path: self.file.path().to_owned(),
                tensor: self.metas[tensor].name.clone(),
                error,
            }
        })
    }

    fn raw_rows(&self, tensor: usize, rows: Range<u64>) -> Option<&[u8]> {
        let range = self.bytes_of(tensor, rows);
        Some(&self.file.tensor_data(tensor)[range])
    }

    fn release(&self, tensor: usize, rows: Range<u64>) {
        self.file.release(tensor, self.bytes_of(tensor, rows));
    }

    fn origin(&self, tensor: usize, _row: u64) -> Origin {
        Origin { path: self.file.path().to_owned(), tensor: self.metas[tensor].name.clone() }
    }

    fn find(&self, name: &str) -> Option<usize> {
        self.file.find(name)
    }
}
