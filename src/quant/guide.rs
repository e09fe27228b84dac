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
}

impl<'a> Guide<'a> {
    /// The importances of columns.
    #[inline(always)]
    pub(super) fn columns(self) -> Option<&'a [f32]> {
        match self {
            Self::Plain => None,
            Self::Columns(importances) => Some(importances),
        }
    }

    /// Whether it can guide the encoding of rows of so many weights.
    pub(super) fn check(self, n_per_row: usize) -> Result<(), QuantError> {
        let Some(columns) = self.columns() else { return Ok(()) };
        let (expected, found) = (n_per_row, columns.len());
        if found != expected {
            return Err(QuantError::BufferLength { what: "importance matrix", expected, found });
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
