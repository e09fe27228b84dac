//! Block formats: layouts, the plain scalar reference, SIMD kernels, dequantization.
//!
//! This room knows numbers and bytes. It does not know files, tensors' names or models.

mod codec;
mod error;
pub mod float;
pub mod fp8;
mod k;
mod search;
mod simple;
mod types;

pub use error::QuantError;
pub use types::{QuantType, TYPE_ID_COUNT, UnknownType};
