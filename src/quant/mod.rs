//! Block formats: layouts, the plain scalar reference, SIMD kernels, dequantization.
//!
//! This room knows numbers and bytes. It does not know files, tensors' names or models.
//!
//! Kernels count through arrays. Iterators over several slices, arrays mapped or made by a function,
//! copies from slices: parts of these are no inlined functions, and where nothing is optimized at link
//! time, they would be called for every few weights.
#![allow(clippy::needless_range_loop, clippy::manual_memcpy, reason = "see above")]

mod activations;
mod codec;
mod error;
pub mod float;
mod format;
mod fp4;
pub mod fp8;
mod groups;
mod guide;
mod iq4;
mod k_min;
mod k_sym;
mod kernels;
mod lanes;
mod lattice;
mod legacy;
mod rounding;
mod search;
mod ternary;
mod types;
mod wide;

pub use error::QuantError;
pub use format::{Activation, Format, Importance, Kind, Numbers};
pub use fp4::{fp4_pair, mxfp4_from_pairs, nvfp4_from_pairs};
#[cfg(feature = "eval")]
pub(crate) use groups::{Group, Groups, Read};
pub use guide::Guide;
pub use legacy::{INTEGERS, block_of_integers};
#[cfg(feature = "eval")]
pub(crate) use rounding::{Grid, Points, Rounding, Scale};
#[cfg(feature = "convert")]
pub(crate) use types::closest;
pub use types::{QuantType, TYPE_ID_COUNT, UnknownType};
