//! The `.dat` format that llama-imatrix wrote before GGUF.
//!
//! ```text
//! n_entries i32
//! n_entries x  length i32 | name | n_calls i32 | n_values i32 | values f32…
//! then, optionally: n_chunks i32 | length i32 | name of the data set
//! ```
//! Values are means multiplied by `n_calls` (`common_imatrix_load_legacy`). Of two entries with one
//! name the later counts.

use super::ImatrixError;
use super::file::{Entry, File};
use crate::io::IoError;
use crate::sniff::{WANTED, seems};
use std::path::Path;

pub(super) fn read(path: &Path) -> Result<File, ImatrixError> {
    let bytes = std::fs::read(path).map_err(|error| IoError::new(path, error))?;
    parse(&bytes).ok_or_else(|| {
        let what = match seems(&bytes[..bytes.len().min(WANTED)], path) {
            Some(seems) => format!("is {seems}"),
            None => "is no importance matrix, or is cut short".to_owned(),
        };
        ImatrixError::Format { path: path.to_owned(), what }
    })
}

fn parse(bytes: &[u8]) -> Option<File> {
    let mut rest = bytes;
    let mut file = File { legacy: true, ..File::default() };
    for _ in 0..take_i32(&mut rest).filter(|&n| n > 0)? {
        let name = take_string(&mut rest)?;
        let n_calls = take_i32(&mut rest)?;
        let n_values = take_i32(&mut rest).filter(|&n| n > 0)?;
        let values = take(&mut rest, 4 * n_values as usize)?.as_chunks::<4>().0;
        let sums = values.iter().map(|&bytes| f32::from_le_bytes(bytes)).collect();
        file.entries.insert(name, Entry { sums, counts: vec![n_calls as f32] });
    }
    file.chunk_count = take_i32(&mut rest).map_or(0, |n| n.max(0) as u32);
    file.datasets.extend(take_string(&mut rest).filter(|name| !name.is_empty()));
    Some(file)
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
