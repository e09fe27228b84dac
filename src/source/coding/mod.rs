//! How checkpoints store the values of a tensor, one file for each coding.
//!
//! A coding *claims* tensors by their dtypes and by what stands beside them, and gives what it
//! claimed a dtype, extents, and a way to read rows. It checks everything that headers can tell; only
//! values remain for reading. Formats that are known by their names alone are in [`unread`].

mod fp4;
mod integers;
mod plain;
pub(super) mod scale;
mod scaled_fp8;
pub(super) mod unread;

use super::declared::Declared;
use super::error::{CheckpointError, SourceError};
use super::shards::{Shards, Stored};
use super::{Dtype, SCRATCH};
use crate::quant::QuantType;
use std::ops::Range;

/// All of them. Where two might claim a tensor, the first does.
pub(super) const CODINGS: [Claim; 4] =
    [plain::claim, scaled_fp8::claim, fp4::claim, integers::claim];

/// Finds out whether a tensor is stored in a coding, by its name and what is stored under it.
///
/// # Errors
/// It is, and what belongs to it is missing, or is not as the coding has it.
pub(super) type Claim =
    fn(&Tensors, &str, Option<&Stored>) -> Result<Option<Claimed>, CheckpointError>;

/// What there is to claim.
#[derive(Clone, Copy)]
pub(super) struct Tensors<'a> {
    pub shards: &'a Shards,
    pub declared: &'a Declared,
}

impl<'a> Tensors<'a> {
    /// A tensor, as the part of a file.
    pub fn part(&self, name: &str, stored: &Stored) -> Part {
        Part { name: name.to_owned(), shard: stored.shard, bytes: stored.bytes.clone() }
    }

    /// A tensor of any dtype; see [`Shards::find`].
    pub fn find(&self, name: &str) -> Result<Option<&'a Stored>, CheckpointError> {
        self.shards.find(name)
    }

    /// Says that a tensor is not as what it belongs to has it.
    fn unfit(&self, name: &str, stored: &Stored, found: String, expected: &str) -> CheckpointError {
        let (path, tensor) = (self.shards.path_of(stored).to_owned(), name.to_owned());
        CheckpointError::Unfit { path, tensor, found, expected: expected.to_owned() }
    }
}

/// A tensor of a checkpoint file.
pub(super) struct Part {
    pub name: String,
    pub shard: usize,
    pub bytes: Range<u64>,
}

impl Part {
    /// Where rows lie in the file, if there are so many in all.
    pub fn rows(&self, rows: Range<u64>, n_rows: u64) -> Range<u64> {
        let row = self.n_bytes().checked_div(n_rows).unwrap_or(0);
        self.bytes.start + rows.start * row..self.bytes.start + rows.end * row
    }

    /// Its bytes.
    pub fn n_bytes(&self) -> u64 {
        self.bytes.end - self.bytes.start
    }
}

/// A tensor that a coding has claimed.
pub(super) struct Claimed {
    pub dtype: Dtype,
    /// Innermost first.
    pub dims: Vec<u64>,
    pub coded: Box<dyn Coded>,
}

/// A tensor, stored in a coding.
pub(super) trait Coded: Send + Sync {
    /// What holds the values, row after row.
    fn values(&self) -> &Part;

    /// What else is read with them: scales and the like.
    fn beside(&self) -> Vec<&Part> {
        Vec::new()
    }

    /// Names of tensors that belong to this one and need not be read.
    fn without_use(&self) -> Vec<String> {
        Vec::new()
    }

    /// Whether the reference converter, which gives it another name, has it behind all that keep theirs.
    fn is_moved(&self) -> bool {
        false
    }

    /// Reads whole rows as `f32`.
    ///
    /// # Errors
    /// When the system cannot read them, and values that are no numbers.
    fn read(&self, shards: &Shards, rows: Range<u64>, out: &mut [f32]) -> Result<(), SourceError>;

    /// Finds out whether GGUF has a type for its rows, where that is a matter of values.
    ///
    /// # Errors
    /// When the system cannot read them, and scales that are no numbers.
    fn settle(&self, _shards: &Shards) -> Result<(), SourceError> {
        Ok(())
    }

    /// Its rows as blocks, where GGUF is known to have a type for them.
    fn blocks(&self) -> Option<&dyn InBlocks> {
        None
    }

    /// Scales of 0 that have wiped out weights which are stored as others: the first that was met.
    fn wiped_by(&self) -> Option<(&Part, [u64; 2])> {
        None
    }
}

/// A tensor whose rows can be had as blocks of a GGUF type, byte for byte, but for [`Factors`].
pub(super) trait InBlocks {
    /// The type.
    fn ty(&self) -> QuantType;

    /// Reads whole rows.
    ///
    /// # Errors
    /// As [`Coded::read`].
    fn read(&self, shards: &Shards, rows: Range<u64>, out: &mut [u8]) -> Result<(), SourceError>;

    /// What blocks lack.
    ///
    /// # Errors
    /// When the system cannot read them.
    fn factors(&self, _shards: &Shards) -> Result<Factors, SourceError> {
        Ok(Factors::default())
    }

    /// The name of the factor of the activations that it is multiplied with, if that is kept.
    fn of_activations(&self) -> Option<&str> {
        None
    }
}

/// Factors of a tensor as a whole, which a GGUF file has as tensors of their own.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Factors {
    /// Of its weights.
    pub weights: f32,
    /// Of the activations that it is multiplied with.
    pub activations: f32,
}

impl Default for Factors {
    fn default() -> Self {
        Self { weights: 1.0, activations: 1.0 }
    }
}

/// Calls `with` with bytes of a part, in a buffer that the thread keeps.
fn with_bytes<T>(
    shards: &Shards,
    part: &Part,
    bytes: Range<u64>,
    with: impl FnOnce(&[u8]) -> T,
) -> Result<T, SourceError> {
    let mut buffer = SCRATCH.take();
    buffer.resize((bytes.end - bytes.start) as usize, 0);
    let read = shards.read(part, bytes.start, &mut buffer);
    let done = read.map(|()| with(&buffer));
    SCRATCH.set(buffer);
    done
}
