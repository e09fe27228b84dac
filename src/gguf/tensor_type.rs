//! How a tensor is stored, known or not.

use crate::quant::QuantType;
use std::fmt;

/// How a tensor is stored, by the id that its file gives.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum TensorType {
    /// A type of the table.
    Known(QuantType),
    /// Any other.
    Unknown(Opaque),
}

/// The type of a tensor whose id is not in the table: one of another program, a future one, or one
/// that was withdrawn. Such a tensor is so many bytes, which can be copied and compared.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Opaque {
    /// The id.
    pub id: u32,
    /// Bytes from the tensor's beginning to the next tensor's, or to the end of the file. Padding is
    /// among them, as only the type could tell where it begins.
    pub n_bytes: u64,
}

impl TensorType {
    /// The type of the table.
    pub fn known(self) -> Option<QuantType> {
        match self {
            Self::Known(ty) => Some(ty),
            Self::Unknown(_) => None,
        }
    }

    /// The id stored in files.
    pub fn id(self) -> u32 {
        match self {
            Self::Known(ty) => ty.id(),
            Self::Unknown(opaque) => opaque.id,
        }
    }

    /// Bytes of a tensor of this type and shape; `None` where rows are no whole number of blocks or
    /// the size does not fit.
    pub fn n_bytes(self, dims: &[u64]) -> Option<u64> {
        match self {
            Self::Known(ty) => {
                let n_per_row = dims.first().copied().unwrap_or(1);
                let row_bytes = ty.row_bytes(usize::try_from(n_per_row).ok()?)? as u64;
                let rows = dims.iter().skip(1).try_fold(1u64, |n, &d| n.checked_mul(d))?;
                rows.checked_mul(row_bytes)
            }
            Self::Unknown(opaque) => Some(opaque.n_bytes),
        }
    }

    /// Whether the type stores blocks of codes with scales. Of an unknown one, nobody knows.
    pub fn is_quantized(self) -> bool {
        self.known().is_some_and(QuantType::is_quantized)
    }
}

impl From<QuantType> for TensorType {
    fn from(ty: QuantType) -> Self {
        Self::Known(ty)
    }
}

impl PartialEq<QuantType> for TensorType {
    fn eq(&self, other: &QuantType) -> bool {
        self.known() == Some(*other)
    }
}

impl fmt::Display for TensorType {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Known(ty) => ty.fmt(f),
            Self::Unknown(opaque) => opaque.fmt(f),
        }
    }
}

impl fmt::Display for Opaque {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(&format!("type {}", self.id))
    }
}
