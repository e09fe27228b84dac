//! One trait for everything weights can be read from, and the containers behind it.
//!
//! A source is a list of named tensors whose rows can be had as `f32` or, where they are stored
//! plainly, as bytes. It does not know what the tensors mean.

mod checkpoint;
mod error;
mod gguf;

pub use checkpoint::Checkpoint;
pub use error::{CheckpointError, SourceError};
pub use gguf::GgufSource;

use crate::quant::QuantType;
use std::ops::Range;
use std::path::PathBuf;

/// How a tensor's elements are stored.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Dtype {
    /// FP8 E4M3 with one f32 scale for each block of rows and columns.
    F8E4M3,
    /// A GGUF type: plain floats, or blocks.
    Gguf(QuantType),
}

impl std::fmt::Display for Dtype {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Dtype::F8E4M3 => f.pad("F8_E4M3"),
            Dtype::Gguf(ty) => f.pad(ty.name()),
        }
    }
}

/// Name, shape and storage of a tensor.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TensorMeta {
    /// Name, in the spelling of the source.
    pub name: String,
    /// Extents, innermost (contiguous) first as GGUF counts them: `[n_per_row, rows, matrices]`.
    pub dims: Vec<u64>,
    /// How the elements are stored.
    pub dtype: Dtype,
}

impl TensorMeta {
    /// Elements in a row.
    pub fn n_per_row(&self) -> u64 {
        self.dims.first().copied().unwrap_or(1)
    }

    /// Rows, over all matrices.
    pub fn n_rows(&self) -> u64 {
        self.dims.iter().skip(1).product()
    }

    /// Elements.
    pub fn n_elements(&self) -> u64 {
        self.dims.iter().product()
    }
}

/// Where a row is stored, for messages.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Origin {
    /// The file.
    pub path: PathBuf,
    /// The tensor in that file's own spelling.
    pub tensor: String,
}

impl std::fmt::Display for Origin {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}: tensor `{}`", self.path.display(), self.tensor)
    }
}

/// Named tensors, readable row by row from many threads at once.
pub trait Source: Send + Sync {
    /// Every tensor, in the source's own order. Indices into this slice name tensors below.
    fn tensors(&self) -> &[TensorMeta];

    /// Reads whole rows as `f32`, as many as `out` holds, from row `first_row` on.
    ///
    /// # Errors
    /// When the stored values cannot be widened: an FP8 NaN byte, or a type without a decoder.
    /// The error names file, tensor, row and column.
    ///
    /// # Panics
    /// When `out` is no whole number of rows or reaches past the last row.
    fn read_rows(&self, tensor: usize, first_row: u64, out: &mut [f32]) -> Result<(), SourceError>;

    /// The stored bytes of whole rows, where the tensor is stored as its [`Dtype::Gguf`] says and
    /// in this order; `None` where rows have to be computed.
    fn raw_rows(&self, tensor: usize, rows: Range<u64>) -> Option<&[u8]>;

    /// Says that these rows will not be read again soon, so that their pages need not stay in
    /// memory. A hint without effect on what is read.
    fn release(&self, _tensor: usize, _rows: Range<u64>) {}

    /// Where a row is stored.
    fn origin(&self, tensor: usize, row: u64) -> Origin;

    /// The index of a tensor.
    fn find(&self, name: &str) -> Option<usize> {
        self.tensors().iter().position(|t| t.name == name)
    }
}
