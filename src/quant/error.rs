//! What can be wrong with rows handed to the quantizer.

use super::QuantType;

/// A broken precondition of [`QuantType::encode_rows`] or [`QuantType::decode_rows`].
#[derive(Clone, Debug, PartialEq, thiserror::Error)]
#[non_exhaustive]
pub enum QuantError {
    /// The row length is no multiple of the type's block length.
    #[error("rows of {n_per_row} weights are no whole number of {ty} blocks of {}", ty.block_len())]
    RowLength {
        /// The type asked for.
        ty: QuantType,
        /// Weights per row.
        n_per_row: usize,
    },
    /// A buffer's length does not follow from the others.
    #[error("the {what} holds {found} elements where {expected} are needed")]
    BufferLength {
        /// Which buffer: `input`, `output` or `importance matrix`.
        what: &'static str,
        /// Elements needed.
        expected: usize,
        /// Elements found.
        found: usize,
    },
    /// An input weight is NaN or infinite.
    #[error("weight at row {row}, column {column} is {value}, not a finite number")]
    NotFinite {
        /// Row, counted from the first row handed over.
        row: usize,
        /// Column within the row.
        column: usize,
        /// The offending value.
        value: f32,
    },
    /// An importance that is NaN, infinite or negative.
    #[error(
        "importance of column {column} is {value}, where sums of squares are finite and not negative"
    )]
    Importance {
        /// Column.
        column: usize,
        /// The offending value.
        value: f32,
    },
    /// The type cannot be written without an importance matrix.
    #[error("{0} cannot be quantized without an importance matrix")]
    NeedsImportance(QuantType),
    /// The type is no target for weights (activation-only and integer types).
    #[error("{0} is no type for weights")]
    NotForWeights(QuantType),
    /// A stored scale or value is infinite or NaN.
    #[error(
        "{ty} block {block} holds an infinite or NaN scale or value; the weights exceed the type's range"
    )]
    InvalidBlock {
        /// The type.
        ty: QuantType,
        /// The block, counted from the first byte handed over.
        block: usize,
    },
}
