//! What models hold: statistics of a tensor, the differences of two models, and hashes.
//!
//! It reads rows through [`crate::source::Source`] a few at a time, so that memory does not follow
//! from a tensor's size, and knows nothing of architectures.

mod diff;
mod hash;
mod stats;

pub use diff::{Difference, difference, same_bytes};
pub use hash::{hash_metadata, hash_tensor};
pub use stats::{Stats, stats};

use crate::source::{Source, SourceError};
use std::ops::Range;

/// Weights that are read at a time, unless a single row is longer.
const PART: u64 = 1 << 20;

/// Calls `each` with ranges of rows that make up a tensor.
fn parts(
    source: &dyn Source,
    tensor: usize,
    mut each: impl FnMut(Range<u64>) -> Result<(), SourceError>,
) -> Result<(), SourceError> {
    let meta = &source.tensors()[tensor];
    let step = (PART / meta.n_per_row().max(1)).max(1);
    let mut first = 0;
    while first < meta.n_rows() {
        let rows = first..(first + step).min(meta.n_rows());
        each(rows.clone())?;
        source.release(tensor, rows);
        first += step;
    }
    Ok(())
}
