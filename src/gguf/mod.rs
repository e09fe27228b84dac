//! The GGUF container: metadata, tensor table, a validating reader and a streaming writer.
//!
//! It knows bytes, keys and the type table; it does not know what the tensors mean. A tensor of a type
//! that the table does not have is so many bytes: those up to the next tensor's.
//!
//! ```text
//! "GGUF" | version u32 | n_tensors u64 | n_kv u64
//! n_kv      x  key string | value type u32 | value
//! n_tensors x  name string | n_dims u32 | dims u64… | type u32 | offset u64
//! zeros to the alignment
//! tensor data, each tensor followed by zeros to the alignment
//! ```
//! A string is its length as u64 and its bytes; everything is little-endian (`gguf.cpp`).

mod edit;
mod error;
mod file;
mod layout;
mod metadata;
mod parse;
mod split;
mod tensor_type;
#[cfg(test)]
mod tests;
mod value;
mod writer;

pub use edit::{Edited, finish_interrupted, replace_metadata};
pub use error::GgufError;
pub use file::{Described, GgufFile, Header, TensorInfo};
pub use layout::Layout;
pub use metadata::Metadata;
pub use split::{
    SPLIT_COUNT, SPLIT_NO, SPLIT_TENSORS, Split, open_all, open_all_by, split_path, whole_name,
};
pub use tensor_type::{Opaque, TensorType};
pub use value::{Array, Flag, Value};
pub use writer::Writer;

const MAGIC: [u8; 4] = *b"GGUF";
/// The version written, and the latest one read.
const VERSION: u32 = 3;
/// The alignment where `general.alignment` does not say otherwise.
pub(crate) const ALIGNMENT: u64 = 32;
/// Longest tensor name in bytes (`GGML_MAX_NAME` less its terminator).
const MAX_NAME: usize = 63;
/// Most dimensions of a tensor (`GGML_MAX_DIMS`).
const MAX_DIMS: usize = 4;

/// `n` rounded up to a multiple of `alignment`, a power of two.
fn pad(n: u64, alignment: u64) -> Option<u64> {
    n.checked_add(alignment - 1).map(|n| n & !(alignment - 1))
}
