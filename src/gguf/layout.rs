//! Where everything in a new file goes, known before any tensor data is.

use super::error::GgufError;
use super::metadata::Metadata;
use super::value::Element;
use super::{ALIGNMENT, MAGIC, MAX_DIMS, MAX_NAME, VERSION, pad};
use crate::quant::QuantType;
use std::collections::HashSet;

/// The header of a new file, and the place of each tensor after it.
#[derive(Clone, Debug)]
pub struct Layout {
    header: Vec<u8>,
    /// First byte in the file and number of bytes.
    places: Vec<(u64, u64)>,
    file_size: u64,
}

impl Layout {
    /// Lays out a version 3 file with the reference implementation's conventions: alignment 32,
    /// trailing dimensions of 1 left out.
    ///
    /// # Errors
    /// Names too long or used twice, more than four dimensions, rows that are no whole number of
    /// blocks, sizes that overflow.
    pub fn new(
        metadata: &Metadata,
        tensors: impl IntoIterator<Item = (String, Vec<u64>, QuantType)>,
    ) -> Result<Self, GgufError> {
        let mut infos = Vec::new();
        let mut places = Vec::new();
        let mut names = HashSet::new();
        let mut offset = 0u64;
        for (name, dims, ty) in tensors {
            let error = |what: String| Err(GgufError::Layout { tensor: name.clone(), what });
            let n_dims = dims.iter().rposition(|&d| d != 1).map_or(1, |i| i + 1);
            let n_per_row = dims.first().copied().unwrap_or(1);
            if name.len() > MAX_NAME {
                return error(format!("its name has {} bytes, at most {MAX_NAME} fit", name.len()));
            }
            if n_dims > MAX_DIMS {
                return error(format!("it has {n_dims} dimensions, at most {MAX_DIMS} fit"));
            }
            let rows = dims.iter().skip(1).try_fold(1u64, |n, &d| n.checked_mul(d));
            let row_bytes = usize::try_from(n_per_row).ok().and_then(|n| ty.row_bytes(n));
            let Some(row_bytes) = row_bytes else {
                return error(format!("rows of {n_per_row} are no whole number of {ty} blocks"));
            };
            let n_bytes = rows.and_then(|rows| rows.checked_mul(row_bytes as u64));
            let next = n_bytes.and_then(|n| pad(offset.checked_add(n)?, ALIGNMENT));
            let (Some(n_bytes), Some(next)) = (n_bytes, next) else {
                return error(format!("its dimensions {dims:?} overflow"));
            };
            if !names.insert(name.clone()) {
                return error("its name stands twice".to_owned());
            }
            write_string(&name, &mut infos);
            (n_dims as u32).write(&mut infos);
            (0..n_dims).for_each(|i| dims.get(i).copied().unwrap_or(1).write(&mut infos));
            ty.id().write(&mut infos);
            offset.write(&mut infos);
            places.push((offset, n_bytes));
            offset = next;
        }
        let mut header = Vec::from(MAGIC);
        VERSION.write(&mut header);
        (places.len() as u64).write(&mut header);
        (metadata.len() as u64).write(&mut header);
        for (key, value) in metadata.iter() {
            write_string(key, &mut header);
            value.type_id().write(&mut header);
            value.write(&mut header);
        }
        header.append(&mut infos);
        header.resize(header.len().next_multiple_of(ALIGNMENT as usize), 0);
        let data = header.len() as u64;
        for place in &mut places {
            place.0 += data;
        }
        Ok(Self { header, places, file_size: data + offset })
    }

    /// Everything before the data section.
    pub fn header(&self) -> &[u8] {
        &self.header
    }

    /// How many tensors there are.
    pub fn n_tensors(&self) -> usize {
        self.places.len()
    }

    /// Where the tensor's data begins in the file.
    pub fn offset(&self, tensor: usize) -> u64 {
        self.places[tensor].0
    }

    /// Bytes of the tensor's data, padding not counted.
    pub fn n_bytes(&self, tensor: usize) -> u64 {
        self.places[tensor].1
    }

    /// Bytes of the file.
    pub fn file_size(&self) -> u64 {
        self.file_size
    }
}

fn write_string(s: &str, out: &mut Vec<u8>) {
    (s.len() as u64).write(out);
    out.extend_from_slice(s.as_bytes());
}
