//! Where everything in a new file goes, known before any tensor data is.

use super::error::GgufError;
use super::metadata::Metadata;
use super::tensor_type::TensorType;
use super::value::Element;
use super::{ALIGNMENT, MAGIC, MAX_DIMS, MAX_NAME, VERSION, pad};
use std::collections::HashSet;

/// The header of a new file, and the place of each tensor after it.
#[derive(Clone, Debug)]
pub struct Layout {
    header: Vec<u8>,
    data_offset: u64,
    /// First byte in the file and number of bytes.
    places: Vec<(u64, u64)>,
    file_size: u64,
}

impl Layout {
    /// Lays out a version 3 file with the reference implementation's conventions: the alignment that
    /// the metadata give, or 32, and trailing dimensions of 1 left out.
    ///
    /// # Errors
    /// Names too long or used twice, more than four dimensions, rows that are no whole number of
    /// blocks, sizes that overflow, an alignment that is none.
    pub fn new<T: Into<TensorType>>(
        metadata: &Metadata,
        tensors: impl IntoIterator<Item = (String, Vec<u64>, T)>,
    ) -> Result<Self, GgufError> {
        let alignment = metadata.alignment()?;
        let mut infos = Vec::new();
        let mut places = Vec::new();
        let mut names = HashSet::new();
        let mut offset = 0u64;
        let mut end = 0u64;
        for (name, dims, ty) in tensors {
            let ty: TensorType = ty.into();
            let error = |what: String| Err(GgufError::Layout { tensor: name.clone(), what });
            let n_dims = dims.iter().rposition(|&d| d != 1).map_or(1, |i| i + 1);
            if name.len() > MAX_NAME {
                return error(format!("its name has {} bytes, at most {MAX_NAME} fit", name.len()));
            }
            if n_dims > MAX_DIMS {
                return error(format!("it has {n_dims} dimensions, at most {MAX_DIMS} fit"));
            }
            let n_per_row = dims.first().copied().unwrap_or(1);
            if ty.known().is_some_and(|ty| !n_per_row.is_multiple_of(ty.block_len() as u64)) {
                return error(format!("rows of {n_per_row} are no whole number of {ty} blocks"));
            }
            let n_bytes = ty.n_bytes(&dims);
            let next = n_bytes.and_then(|n| pad(offset.checked_add(n)?, alignment));
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
            (offset, end) = (next, offset + n_bytes);
        }
        let header = header(VERSION, places.len() as u64, metadata, &infos);
        // llama-quantize and llama-gguf-split pad to 32 at least what lies behind the last tensor.
        let sizes = match places.is_empty() {
            true => pad(header.len() as u64, ALIGNMENT).map(|data| (data, data)),
            false => pad(header.len() as u64, alignment).and_then(|data| {
                let size = pad(end, alignment.max(ALIGNMENT))?;
                Some((data, data.checked_add(size)?))
            }),
        };
        let Some((data_offset, file_size)) = sizes else {
            let tensor = names.into_iter().next().unwrap_or_default();
            return Err(GgufError::Layout { tensor, what: "the file is too large".to_owned() });
        };
        for place in &mut places {
            place.0 += data_offset;
        }
        Ok(Self { header, data_offset, places, file_size })
    }

    /// Everything before the data section, less the zeros at its end.
    pub fn header(&self) -> &[u8] {
        &self.header
    }

    /// Where the data section begins.
    pub fn data_offset(&self) -> u64 {
        self.data_offset
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

impl Metadata {
    /// The bytes of a file that holds these keys and no tensor.
    pub fn to_file(&self) -> Vec<u8> {
        let mut header = header(VERSION, 0, self, &[]);
        header.resize(header.len().next_multiple_of(ALIGNMENT as usize), 0);
        header
    }
}

/// Metadata, and the table of tensors as it stands in files, with what comes before them.
pub(super) fn header(version: u32, n_tensors: u64, metadata: &Metadata, table: &[u8]) -> Vec<u8> {
    let mut header = Vec::from(MAGIC);
    version.write(&mut header);
    n_tensors.write(&mut header);
    (metadata.len() as u64).write(&mut header);
    for (key, value) in metadata.iter() {
        write_string(key, &mut header);
        value.type_id().write(&mut header);
        value.write(&mut header);
    }
    header.extend_from_slice(table);
    header
}

fn write_string(s: &str, out: &mut Vec<u8>) {
    (s.len() as u64).write(out);
    out.extend_from_slice(s.as_bytes());
}
