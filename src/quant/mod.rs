//! Block formats: layouts, the plain scalar reference, SIMD kernels, dequantization.
//!
//! This room knows numbers and bytes. It does not know files, tensors' names or models.

mod codec;
#[cfg(feature = "eval")]
mod codes;
mod error;
pub mod float;
mod fp4;
pub mod fp8;
mod iq4;
mod k_min;
mod k_sym;
mod lanes;
mod lattice;
mod legacy;
mod search;
mod simd;
mod ternary;
mod types;

#[cfg(feature = "eval")]
pub(crate) use codes::{Group, groups_with_offsets, read_groups};
pub use error::QuantError;
pub use fp4::nvfp4_from_modelopt;
pub use simd::{Simd, UnknownSimd};
#[cfg(feature = "eval")]
pub(crate) use simd::{all_finite, compiled, round_to_bf16};
#[cfg(feature = "convert")]
pub(crate) use types::closest;
pub use types::{QuantType, TYPE_ID_COUNT, UnknownType};
