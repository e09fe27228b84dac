//! One trait for everything weights can be read from, and the containers behind it.
//!
//! A source is a list of named tensors whose rows can be had as `f32` or, where they are stored
//! plainly, as bytes. It does not know what the tensors mean.

mod checkpoint;
mod coding;
mod declared;
mod error;
mod folder;
mod gguf;
mod overlay;
#[cfg(feature = "remote")]
mod remote;
mod shards;
mod url;

pub use checkpoint::Checkpoint;
pub use coding::Factors;
pub use error::{CheckpointError, SourceError};
pub use folder::{DESCRIPTIONS, Folder};
pub use gguf::GgufSource;
pub use overlay::Overlay;
#[cfg(feature = "remote")]
pub use remote::{Remote, RemoteError, RemoteFolder, RemoteOptions, gguf_in};
pub use url::{is_url, without_secrets};

use crate::gguf::{Opaque, TensorType};
use crate::quant::QuantType;
use crate::warning::Warning;
use std::cell::Cell;
use std::fs::File;
use std::ops::Range;
use std::path::PathBuf;

thread_local! {
    /// Rows as they are stored, on their way to `f32` or into panels: memory that a thread does not give back and ask
    /// for again with every few of them.
    pub(crate) static SCRATCH: Cell<Vec<u8>> = const { Cell::new(Vec::new()) };
}

/// How a tensor's elements are stored.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Dtype {
    /// A GGUF type: plain floats, or blocks.
    Gguf(QuantType),
    /// A coding of checkpoints.
    Coded(Coding),
    /// A GGUF type that this program does not know. The tensor's bytes can be had, as so many rows of
    /// one byte, and its values cannot.
    Opaque(Opaque),
}

/// What is known of a coding of checkpoints.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Coding {
    /// Its name.
    pub name: &'static str,
    /// Bytes that it takes, scales of blocks included, for each so many [`weights`](Coding::weights).
    pub bytes: u64,
    /// See [`bytes`](Coding::bytes).
    pub weights: u64,
    /// The GGUF type whose activations llama.cpp would give it; `None` where they stay floats.
    pub activations_of: Option<QuantType>,
}

impl From<TensorType> for Dtype {
    fn from(ty: TensorType) -> Self {
        match ty {
            TensorType::Known(ty) => Self::Gguf(ty),
            TensorType::Unknown(opaque) => Self::Opaque(opaque),
        }
    }
}

impl Dtype {
    /// Whether values of this type can be read.
    pub fn is_readable(self) -> bool {
        match self {
            Self::Coded(_) => true,
            Self::Gguf(ty) => ty.decode_rows(&[], ty.block_len(), &mut []).is_ok(),
            Self::Opaque(_) => false,
        }
    }
}

impl std::fmt::Display for Dtype {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Dtype::Coded(coding) => f.pad(coding.name),
            Dtype::Gguf(ty) => f.pad(ty.name()),
            Dtype::Opaque(opaque) => opaque.fmt(f),
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
        match self.dtype {
            Dtype::Opaque(_) => 1,
            _ => self.dims.first().copied().unwrap_or(1),
        }
    }

    /// Rows, over all matrices; none where rows have no elements.
    pub fn n_rows(&self) -> u64 {
        match self.dtype {
            Dtype::Opaque(opaque) => opaque.n_bytes,
            _ if self.n_per_row() == 0 => 0,
            _ => self.dims.iter().skip(1).product(),
        }
    }

    /// Elements.
    pub fn n_elements(&self) -> u64 {
        self.dims.iter().product()
    }

    /// Bytes that it takes as it is stored.
    pub fn n_bytes(&self) -> u64 {
        let n = self.n_elements();
        let (bytes, weights) = match self.dtype {
            Dtype::Gguf(ty) => (ty.block_bytes() as u64, ty.block_len() as u64),
            Dtype::Coded(coding) => (coding.bytes, coding.weights),
            Dtype::Opaque(opaque) => return opaque.n_bytes,
        };
        (n as u128 * u128::from(bytes) / u128::from(weights.max(1))) as u64
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

/// A file that weights are read from.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SourceFile {
    /// The file.
    pub path: PathBuf,
    /// Its bytes.
    pub size: u64,
    /// Changes when the file does: its time of modification, or what a remote store calls it.
    pub version: String,
}

impl SourceFile {
    /// Whether it is a file of this machine, and not behind a URL.
    pub fn is_local(&self) -> bool {
        !self.path.to_str().is_some_and(is_url)
    }
}

/// Named tensors, readable row by row from many threads at once.
pub trait Source: Storage {
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

    /// Reads the stored bytes of whole rows into `out`, where the tensor is stored as its
    /// [`Dtype::Gguf`] says and in this order; `false` where rows have to be computed.
    ///
    /// # Errors
    /// When the system cannot read them.
    fn read_raw(
        &self,
        _tensor: usize,
        _rows: Range<u64>,
        _out: &mut Vec<u8>,
    ) -> Result<bool, SourceError> {
        Ok(false)
    }

    /// The index of a tensor.
    fn find(&self, name: &str) -> Option<usize> {
        self.tensors().iter().position(|t| t.name == name)
    }
}

/// Where the tensors of a source are, and hints about how they are read. The defaults are right for
/// what is in memory.
pub trait Storage: Send + Sync {
    /// The files that hold the tensors.
    fn files(&self) -> Vec<SourceFile> {
        Vec::new()
    }

    /// The number in [`Storage::files`] of the file that a tensor begins in.
    fn file_of(&self, _tensor: usize) -> usize {
        0
    }

    /// Where a row is stored.
    fn origin(&self, tensor: usize, _row: u64) -> Origin {
        Origin { path: PathBuf::from("memory"), tensor: format!("number {tensor}") }
    }

    /// The local file and the bytes in it that [`Source::read_raw`] reads for these rows, where they
    /// lie together in one.
    fn stored_in(&self, _tensor: usize, _rows: Range<u64>) -> Option<(&File, Range<u64>)> {
        None
    }

    /// Rows that are best read together, since they are made of the same.
    fn granule(&self, _tensor: usize) -> u64 {
        1
    }

    /// Says that these rows will be read soon. A hint without effect on what is read.
    fn prefetch(&self, _tensor: usize, _rows: Range<u64>) {}

    /// Says that these rows will not be read again soon, so that their pages need not stay in
    /// memory. A hint without effect on what is read.
    fn release(&self, _tensor: usize, _rows: Range<u64>) {}

    /// An upper bound on the memory that names, shapes and places of the tensors take, in bytes.
    fn table_bytes(&self) -> u64 {
        0
    }

    /// What was met in rows that have been read, beside what cannot be read.
    fn met(&self) -> Vec<Warning> {
        Vec::new()
    }
}

/// A bound on the memory of a table of tensors, in bytes.
pub(crate) fn table_bytes(tensors: &[TensorMeta]) -> u64 {
    let names: usize = tensors.iter().map(|t| t.name.len()).sum();
    4 * (names + tensors.len() * 256) as u64
}
