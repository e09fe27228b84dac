//! Reading: the header in full, checked against the file; tensor data mapped, not loaded.

use super::edit::head_path;
use super::error::GgufError;
use super::metadata::Metadata;
use super::parse::{Cursor, Stop};
use super::value::{self, ARRAY_ID, Value};
use super::{ALIGNMENT, MAGIC, MAX_DIMS, MAX_NAME, VERSION, pad};
use crate::mapping::Mapping;
use crate::quant::{QuantType, TYPE_ID_COUNT};
use std::collections::HashMap;
use std::ops::Range;
use std::path::{Path, PathBuf};

/// A tensor as the table describes it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TensorInfo {
    /// Name.
    pub name: String,
    /// Extents, innermost first, as many as the file gives.
    pub dims: Vec<u64>,
    /// How the elements are stored.
    pub ty: QuantType,
    /// Where the data begins, from the start of the data section.
    pub offset: u64,
}

impl TensorInfo {
    /// Elements.
    pub fn n_elements(&self) -> u64 {
        self.dims.iter().product()
    }

    /// Bytes of its data. Reading has made sure that rows are whole blocks.
    pub fn n_bytes(&self) -> u64 {
        self.n_elements() / self.ty.block_len() as u64 * self.ty.block_bytes() as u64
    }
}

/// An opened GGUF file.
pub struct GgufFile {
    path: PathBuf,
    map: Mapping,
    version: u32,
    alignment: u64,
    metadata: Metadata,
    tensors: Vec<TensorInfo>,
    index: HashMap<String, usize>,
    data_offset: u64,
}

impl std::fmt::Debug for GgufFile {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("GgufFile")
            .field("path", &self.path)
            .field("version", &self.version)
            .field("keys", &self.metadata.len())
            .field("tensors", &self.tensors.len())
            .finish_non_exhaustive()
    }
}

impl GgufFile {
    /// Opens a file and checks everything that its header says: counts, lengths and offsets
    /// against the file, types against the table, names against each other.
    ///
    /// # Errors
    /// The first broken rule, naming the file and the key or tensor. No length field is trusted
    /// with memory: what is allocated is bounded by a small multiple of the header's size.
    pub fn open(path: &Path) -> Result<Self, GgufError> {
        let map = Mapping::open(path).map_err(|error| GgufError::io(path, error))?;
        let mut reader = Reader { path, cursor: Cursor::new(map.bytes()) };
        let (version, n_tensors, n_keys) = reader.head()?;
        let metadata = reader.metadata(n_keys)?;
        let alignment = reader.alignment(&metadata)?;
        let (tensors, index) = reader.tensors(n_tensors)?;
        let data_offset = reader.data(&tensors, alignment)?;
        let path = path.to_owned();
        Ok(Self { path, version, alignment, metadata, tensors, index, data_offset, map })
    }

    /// The file.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// The version of the format: 2 or 3, which differ in nothing that matters here.
    pub fn version(&self) -> u32 {
        self.version
    }

    /// The alignment of tensor data in bytes.
    pub fn alignment(&self) -> u64 {
        self.alignment
    }

    /// The metadata.
    pub fn metadata(&self) -> &Metadata {
        &self.metadata
    }

    /// The tensors, in the order of the file.
    pub fn tensors(&self) -> &[TensorInfo] {
        &self.tensors
    }

    /// The index of a tensor.
    pub fn find(&self, name: &str) -> Option<usize> {
        self.index.get(name).copied()
    }

    /// The data of the tensor with this index.
    pub fn tensor_data(&self, index: usize) -> &[u8] {
        &self.map.bytes()[self.tensor_range(index)]
    }

    /// Where the tensor's data lies in the file.
    pub fn tensor_range(&self, index: usize) -> Range<usize> {
        let info = &self.tensors[index];
        let start = (self.data_offset + info.offset) as usize;
        start..start + info.n_bytes() as usize
    }

    /// Where the data section begins.
    pub fn data_offset(&self) -> u64 {
        self.data_offset
    }

    /// Bytes of the file.
    pub fn file_size(&self) -> u64 {
        self.map.bytes().len() as u64
    }
}

struct Reader<'a> {
    path: &'a Path,
    cursor: Cursor<'a>,
}

impl Reader<'_> {
    fn truncated(&self, what: impl Into<String>) -> GgufError {
        GgufError::Truncated { path: self.path.to_owned(), what: what.into() }
    }

    fn key_error(&self, key: &str, what: impl Into<String>) -> GgufError {
        GgufError::Key { path: self.path.to_owned(), key: key.to_owned(), what: what.into() }
    }

    fn tensor_error(&self, tensor: &str, what: impl Into<String>) -> GgufError {
        GgufError::Tensor {
            path: self.path.to_owned(),
            tensor: tensor.to_owned(),
            what: what.into(),
        }
    }

    /// Version and the numbers of tensors and keys.
    fn head(&mut self) -> Result<(u32, u64, u64), GgufError> {
        if self.cursor.fixed().ok() != Some(MAGIC) {
            if head_path(self.path).is_file() {
                return Err(GgufError::Interrupted { path: self.path.to_owned() });
            }
            return Err(GgufError::Magic { path: self.path.to_owned() });
        }
        let head = |c: &mut Cursor| -> Result<(u32, u64, u64), Stop> {
            Ok((c.value()?, c.value()?, c.value()?))
        };
        let (version, n_tensors, n_keys) =
            head(&mut self.cursor).map_err(|Stop| self.truncated("the header"))?;
        let refuse = |why| Err(GgufError::Version { path: self.path.to_owned(), version, why });
        match version {
            2 | VERSION => {}
            1 => return refuse("version 1 is obsolete, convert the model anew"),
            v if v & 0xffff == 0 => return refuse("the file is big-endian"),
            _ => return refuse("it is newer than this program"),
        }
        // The smallest key takes 8 + 1 + 4 + 1 bytes, the smallest tensor 8 + 4 + 4 + 8.
        for (n, bytes, what) in [(n_keys, 14, "the metadata"), (n_tensors, 24, "the tensor table")]
        {
            if n.checked_mul(bytes).is_none_or(|total| total > self.cursor.remaining()) {
                return Err(self.truncated(format!("{what} ({n} entries are announced)")));
            }
        }
        Ok((version, n_tensors, n_keys))
    }

    /// A name or key, which unlike other strings has to be UTF-8.
    fn name(&mut self, what: &str, number: u64) -> Result<String, GgufError> {
        let bytes =
            self.cursor.string().map_err(|Stop| self.truncated(format!("{what} {number}")))?;
        match std::str::from_utf8(bytes) {
            Ok(name) => Ok(name.to_owned()),
            Err(_) => {
                let name = String::from_utf8_lossy(&bytes[..bytes.len().min(80)]);
                Err(self.key_error(&name, format!("{what} {number} is not UTF-8")))
            }
        }
    }

    fn metadata(&mut self, n_keys: u64) -> Result<Metadata, GgufError> {
        let mut metadata = Metadata::new();
        for number in 0..n_keys {
            let key = self.name("key", number)?;
            if key.is_empty() {
                return Err(self.key_error("", format!("key {number} is empty")));
            }
            if metadata.get(&key).is_some() {
                return Err(self.key_error(&key, "stands twice in the file"));
            }
            let cut = |reader: &Self| reader.truncated(format!("metadata key `{key}`"));
            let id: u32 = self.cursor.value().map_err(|Stop| cut(self))?;
            let (id, read) = if id == ARRAY_ID {
                let element: u32 = self.cursor.value().map_err(|Stop| cut(self))?;
                if element == ARRAY_ID {
                    return Err(self.key_error(&key, "is an array of arrays"));
                }
                (element, value::read_array(element, &mut self.cursor))
            } else {
                (id, value::read(id, &mut self.cursor))
            };
            let value: Option<Value> = read.map_err(|Stop| cut(self))?;
            let value = value
                .ok_or_else(|| self.key_error(&key, format!("has the unknown type id {id}")))?;
            metadata.set(&key, value);
        }
        Ok(metadata)
    }

    fn alignment(&self, metadata: &Metadata) -> Result<u64, GgufError> {
        const KEY: &str = "general.alignment";
        match metadata.get(KEY) {
            None => Ok(ALIGNMENT),
            Some(&Value::U32(n)) if n.is_power_of_two() => Ok(n.into()),
            Some(other) => {
                Err(self.key_error(KEY, format!("is {other:?}, expected a power of two as u32")))
            }
        }
    }

    fn tensors(
        &mut self,
        n_tensors: u64,
    ) -> Result<(Vec<TensorInfo>, HashMap<String, usize>), GgufError> {
        let mut tensors = Vec::with_capacity(n_tensors as usize);
        let mut index = HashMap::with_capacity(n_tensors as usize);
        for number in 0..n_tensors {
            let info = self.tensor(number)?;
            if index.insert(info.name.clone(), tensors.len()).is_some() {
                return Err(self.tensor_error(&info.name, "stands twice in the file"));
            }
            tensors.push(info);
        }
        Ok((tensors, index))
    }

    fn tensor(&mut self, number: u64) -> Result<TensorInfo, GgufError> {
        let name = self.name("tensor", number)?;
        let error = |what: String| Err(self.tensor_error(&name, what));
        if name.len() > MAX_NAME {
            return error(format!("its name has {} bytes, at most {MAX_NAME} fit", name.len()));
        }
        let cut = |reader: &Self| reader.truncated(format!("the description of tensor `{name}`"));
        let n_dims: u32 = self.cursor.value().map_err(|Stop| cut(self))?;
        if n_dims as usize > MAX_DIMS {
            return Err(self.tensor_error(&name, format!("has {n_dims} dimensions")));
        }
        let mut dims = Vec::with_capacity(n_dims as usize);
        for _ in 0..n_dims {
            dims.push(self.cursor.value::<u64>().map_err(|Stop| cut(self))?);
        }
        let id: u32 = self.cursor.value().map_err(|Stop| cut(self))?;
        let offset: u64 = self.cursor.value().map_err(|Stop| cut(self))?;
        let error = |what: String| Err(self.tensor_error(&name, what));
        // As if none were 0, so that products of some of them fit too.
        let elements = dims.iter().try_fold(1u64, |n, &d| n.checked_mul(d.max(1)));
        if elements.is_none_or(|n| n > i64::MAX as u64) {
            return error(format!("its dimensions {dims:?} overflow"));
        }
        let Some(ty) = QuantType::from_id(id) else {
            return error(match id < TYPE_ID_COUNT {
                true => format!("its type {id} was withdrawn from the format"),
                false => format!("its type {id} is unknown"),
            });
        };
        let n_per_row = dims.first().copied().unwrap_or(1);
        if !n_per_row.is_multiple_of(ty.block_len() as u64) {
            return error(format!(
                "rows of {n_per_row} are no whole number of {ty} blocks of {}",
                ty.block_len()
            ));
        }
        if elements.is_none_or(|n| {
            (n / ty.block_len() as u64).checked_mul(ty.block_bytes() as u64).is_none()
        }) {
            return error(format!("its dimensions {dims:?} overflow"));
        }
        Ok(TensorInfo { name, dims, ty, offset })
    }

    /// Checks that the tensors tile the data section in order, and that the file holds it all.
    fn data(&self, tensors: &[TensorInfo], alignment: u64) -> Result<u64, GgufError> {
        let too_long = || self.truncated("the data section");
        let start = match tensors.is_empty() {
            true => self.cursor.position(),
            false => pad(self.cursor.position(), alignment).ok_or_else(too_long)?,
        };
        let available = (self.cursor.position() + self.cursor.remaining()).checked_sub(start);
        let mut expected = 0u64;
        for info in tensors {
            if info.offset != expected {
                let what = format!("its data is at offset {}, expected {expected}", info.offset);
                return Err(self.tensor_error(&info.name, what));
            }
            let end = expected.checked_add(info.n_bytes()).ok_or_else(too_long)?;
            if available.is_none_or(|available| end > available) {
                let what = "its data lies past the end of the file, which is cut short or damaged";
                return Err(self.tensor_error(&info.name, what));
            }
            expected = pad(end, alignment).ok_or_else(too_long)?;
        }
        Ok(start)
    }
}
