//! What can be wrong with rows handed to the quantizer.

use super::QuantType;
use std::fmt;

/// A broken precondition of [`QuantType::encode_rows`] or [`QuantType::decode_rows`].
#[derive(Clone, Debug, PartialEq)]
#[non_exhaustive]
pub enum QuantError {
    /// The row length is no multiple of the type's block length.
    RowLength {
        /// The type asked for.
        ty: QuantType,
        /// Weights per row.
        n_per_row: usize,
    },
    /// A buffer's length does not follow from the others.
    BufferLength {
        /// Which buffer: `input`, `output` or `importance matrix`.
        what: &'static str,
        /// Elements needed.
        expected: usize,
        /// Elements found.
        found: usize,
    },
    /// An input weight is NaN or infinite.
    NotFinite {
        /// Row, counted from the first row handed over.
        row: usize,
        /// Column within the row.
        column: usize,
        /// The offending value.
        value: f32,
    },
    /// An importance that is NaN, infinite or negative.
    Importance {
        /// Column.
        column: usize,
        /// The offending value.
        value: f32,
    },
    /// The type cannot be written without an importance matrix.
    NeedsImportance(QuantType),
    /// The type is no target for weights (activation-only and integer types).
    NotForWeights(QuantType),
    /// A stored scale or value is infinite or NaN.
    InvalidBlock {
        /// The type.
        ty: QuantType,
        /// The block, counted from the first byte handed over.
        block: usize,
    },
}

// By hand, so that block formats alone need no crate for it.
impl fmt::Display for QuantError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::RowLength { ty, n_per_row } => write!(
                f,
                "rows of {n_per_row} weights are no whole number of {ty} blocks of {}",
                ty.block_len()
            ),
            Self::BufferLength { what, expected, found } => {
                write!(f, "the {what} holds {found} elements where {expected} are needed")
            }
            Self::NotFinite { row, column, value } => {
                write!(f, "weight at row {row}, column {column} is {value}, not a finite number")
            }
            Self::Importance { column, value } => write!(
                f,
                "importance of column {column} is {value}, where sums of squares are finite and \
                 not negative"
            ),
            Self::NeedsImportance(ty) => {
                write!(f, "{ty} cannot be quantized without an importance matrix")
            }
            Self::NotForWeights(ty) => write!(f, "{ty} is no type for weights"),
            Self::InvalidBlock { ty, block } => write!(
                f,
                "{ty} block {block} holds an infinite or NaN scale or value; the weights exceed \
                 the type's range"
            ),
        }
    }
}

impl std::error::Error for QuantError {}
