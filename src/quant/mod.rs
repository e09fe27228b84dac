//! Block formats: layouts, the plain scalar reference, SIMD kernels, dequantization.
//!
//! This room knows numbers and bytes. It does not know files, tensors' names or models.

mod error;
mod types;

pub use error::QuantError;
pub use types::{QuantType, TYPE_ID_COUNT, UnknownType};
