//! What guides an encoder beside the weights.

use super::error::QuantError;

/// What is known of the errors that weights may have.
#[derive(Clone, Copy, Debug, Default)]
#[non_exhaustive]
pub enum Guide<'a> {
    /// Nothing: errors count as the type has it.
    #[default]
    Plain,
    /// The importance of each column, for every row alike, which multiplies what an error counts. Some
    /// types use another algorithm with it, others ignore it.
    Columns(&'a [f32]),
    /// As [`Guide::Columns`], for blocks of several rows side by side: the importance of each weight, and
    /// for each block the mean square of the row that it is from, where a type asks for that.
    Blocks {
        /// The importances.
        importances: &'a [f32],
        /// The mean squares.
        mean_squares: &'a [f32],
    },
}

impl<'a> Guide<'a> {
    /// The importances of columns.
    #[inline(always)]
    pub(super) fn columns(self) -> Option<&'a [f32]> {
        match self {
            Self::Plain => None,
            Self::Columns(importances) | Self::Blocks { importances, .. } => Some(importances),
        }
    }

    /// The mean square of the row of each block.
    #[inline(always)]
    pub(super) fn mean_squares(self) -> Option<&'a [f32]> {
        match self {
            Self::Plain | Self::Columns(_) => None,
            Self::Blocks { mean_squares, .. } => Some(mean_squares),
        }
    }

    /// Whether it can guide the encoding of rows of so many weights.
    pub(super) fn check(self, n_per_row: usize, block_len: usize) -> Result<(), QuantError> {
        let Some(columns) = self.columns() else { return Ok(()) };
        let mean_squares = self.mean_squares().map(|all| all.len() * block_len);
        for found in [Some(columns.len()), mean_squares].into_iter().flatten() {
            if found != n_per_row {
                let (what, expected) = ("importance matrix", n_per_row);
                return Err(QuantError::BufferLength { what, expected, found });
            }
        }
        match columns.iter().position(|v| !(v.is_finite() && *v >= 0.0)) {
            Some(column) => Err(QuantError::Importance { column, value: columns[column] }),
            None => Ok(()),
        }
    }
}

impl<'a> From<Option<&'a [f32]>> for Guide<'a> {
    fn from(columns: Option<&'a [f32]>) -> Self {
        columns.map_or(Self::Plain, Self::Columns)
    }
}
