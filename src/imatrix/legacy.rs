//! The `.dat` format that llama-imatrix wrote before GGUF.
//!
//! ```text
//! n_entries i32
//! n_entries x  length i32 | name | n_calls i32 | n_values i32 | values f32…
//! then, optionally: n_chunks i32 | length i32 | name of the data set
//! ```
//! Values are means multiplied by `n_calls` (`common_imatrix_load_legacy`).

use super::{Imatrix, ImatrixError};
use std::path::Path;

pub(super) fn read(path: &Path) -> Result<Imatrix, ImatrixError> {
    let bytes =
        std::fs::read(path).map_err(|error| ImatrixError::Io { path: path.to_owned(), error })?;
    let error = |what: &str| ImatrixError::Format { path: path.to_owned(), what: what.to_owned() };
    let cut = || error("is no importance matrix, or is cut short");
    let mut rest = bytes.as_slice();
    let n_entries = take_i32(&mut rest).filter(|&n| n > 0).ok_or_else(cut)?;
    let mut imatrix = Imatrix::default();
    for _ in 0..n_entries {
        let name = take_string(&mut rest).ok_or_else(cut)?;
        let n_calls = take_i32(&mut rest).ok_or_else(cut)?;
        let n_values = take_i32(&mut rest).filter(|&n| n > 0).ok_or_else(cut)?;
        let values = take(&mut rest, 4 * n_values as usize).ok_or_else(cut)?;
        let scale = if n_calls > 0 { n_calls as f32 } else { 1.0 };
        let values = values.as_chunks::<4>().0.iter().map(|&b| f32::from_le_bytes(b) / scale);
        imatrix.entries.insert(name, values.collect());
    }
    imatrix.chunk_count = take_i32(&mut rest).map_or(0, |n| n.max(0) as u32);
    imatrix.datasets.extend(take_string(&mut rest).filter(|name| !name.is_empty()));
    Ok(imatrix)
}

fn take<'a>(rest: &mut &'a [u8], n: usize) -> Option<&'a [u8]> {
    let (bytes, after) = rest.split_at_checked(n)?;
    *rest = after;
    Some(bytes)
}

fn take_i32(rest: &mut &[u8]) -> Option<i32> {
    take(rest, 4).map(|b| i32::from_le_bytes([b[0], b[1], b[2], b[3]]))
}

fn take_string(rest: &mut &[u8]) -> Option<String> {
    let length = usize::try_from(take_i32(rest)?).ok()?;
    let bytes = take(rest, length)?;
    // The reference ends names at the first NUL.
    let end = bytes.iter().position(|&b| b == 0).unwrap_or(length);
    Some(String::from_utf8_lossy(&bytes[..end]).into_owned())
}
