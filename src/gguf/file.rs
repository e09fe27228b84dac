//! Reading: the header in full, checked against the file; tensor data mapped, not loaded.

use super::edit;
use super::error::GgufError;
use super::metadata::Metadata;
use super::parse::{Cursor, Stop};
use super::tensor_type::{Opaque, TensorType};
use super::value::{self, ARRAY_ID, Value};
use super::{MAGIC, MAX_DIMS, MAX_NAME, VERSION, pad};
use crate::io::Mapping;
use crate::quant::QuantType;
use crate::sniff::{self, Seems};
use std::collections::{HashMap, HashSet};
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
    pub ty: TensorType,
    /// Where the data begins, from the start of the data section.
    pub offset: u64,
}

impl TensorInfo {
    /// Elements.
    pub fn n_elements(&self) -> u64 {
        self.dims.iter().product()
    }

    /// Bytes of its data.
    pub fn n_bytes(&self) -> u64 {
        self.ty.n_bytes(&self.dims).expect("reading has made sure that rows are whole blocks")
    }
}

/// What a file says before its data.
#[derive(Clone, Debug)]
pub struct Header {
    version: u32,
    alignment: u64,
    metadata: Metadata,
    tensors: Vec<TensorInfo>,
    /// Where the table of tensors lies.
    table: Range<usize>,
    data_offset: u64,
    file_size: u64,
}

impl Header {
    /// Reads the header of a file whose data may be missing, wholly or in part.
    ///
    /// # Errors
    /// The first broken rule, naming the file and the key or tensor.
    pub fn read(path: &Path) -> Result<Self, GgufError> {
        let map = Mapping::open(path).map_err(|error| GgufError::io(path, error))?;
        Self::parse(path, map.bytes(), map.bytes().len() as u64)
    }

    /// Reads a header from the beginning of a file of so many bytes. No length field is trusted with
    /// memory: what is allocated is bounded by a small multiple of the header's size.
    pub(crate) fn parse(path: &Path, bytes: &[u8], file_size: u64) -> Result<Self, GgufError> {
        let mut reader = Reader { path, bytes, cursor: Cursor::new(bytes) };
        let (version, n_tensors, n_keys) = reader.head()?;
        let metadata = reader.metadata(n_keys)?;
        let alignment = metadata.alignment().map_err(|error| error.in_file(path))?;
        let start = reader.cursor.position();
        let mut tensors = reader.tensors(n_tensors)?;
        let end = reader.cursor.position();
        let data_offset = reader.place(&mut tensors, end, alignment, file_size)?;
        let table = start as usize..end as usize;
        Ok(Self { version, alignment, metadata, tensors, table, data_offset, file_size })
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

    /// Where the data section begins.
    pub fn data_offset(&self) -> u64 {
        self.data_offset
    }

    /// Bytes of the file.
    pub fn file_size(&self) -> u64 {
        self.file_size
    }

    /// Bytes that the file has if none of its data is missing; padding behind the last tensor does
    /// not count. A tensor of an unknown type at the end has what is there.
    pub fn full_size(&self) -> u64 {
        let ends = self.tensors.iter().map(|t| t.offset.saturating_add(t.n_bytes()));
        ends.max().map_or(self.data_offset, |end| self.data_offset.saturating_add(end))
    }

    /// The first tensor of whose data some is missing.
    pub fn first_cut(&self) -> Option<&TensorInfo> {
        let there = self.file_size.checked_sub(self.data_offset);
        let ends = |t: &TensorInfo| t.offset.saturating_add(t.n_bytes());
        self.tensors.iter().find(|t| there.is_none_or(|there| ends(t) > there))
    }
}

/// A GGUF file as its header describes it, wherever its data is.
#[derive(Clone)]
pub struct Described {
    path: PathBuf,
    header: Header,
    index: HashMap<String, usize>,
}

impl Described {
    /// Takes a file by its header, which may lie behind a URL.
    ///
    /// # Errors
    /// A file whose data is incomplete, or, by its name, a download that has not ended.
    pub fn new(path: &Path, header: Header) -> Result<Self, GgufError> {
        let by_name = sniff::by_name(path);
        if let Some(tensor) = header.first_cut() {
            return Err(GgufError::Cut {
                path: path.to_owned(),
                tensor: tensor.name.clone(),
                there: header.file_size,
                needed: header.full_size(),
                seems: by_name.map(Box::new),
            });
        }
        if by_name == Some(Seems::Unfinished) {
            return Err(GgufError::Unfinished { path: path.to_owned() });
        }
        let names = header.tensors.iter().map(|t| t.name.clone());
        let index = names.enumerate().map(|(i, name)| (name, i)).collect();
        Ok(Self { path: path.to_owned(), header, index })
    }

    /// The file.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// The index of a tensor.
    pub fn find(&self, name: &str) -> Option<usize> {
        self.index.get(name).copied()
    }

    /// Where the tensor's data lies in the file.
    pub fn tensor_range(&self, index: usize) -> Range<usize> {
        let info = &self.header.tensors[index];
        let start = (self.header.data_offset + info.offset) as usize;
        start..start + info.n_bytes() as usize
    }
}

impl std::ops::Deref for Described {
    type Target = Header;

    fn deref(&self) -> &Header {
        &self.header
    }
}

impl std::fmt::Debug for Described {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Described")
            .field("path", &self.path)
            .field("version", &self.header.version)
            .field("keys", &self.header.metadata.len())
            .field("tensors", &self.header.tensors.len())
            .finish_non_exhaustive()
    }
}

impl AsRef<Self> for Described {
    fn as_ref(&self) -> &Self {
        self
    }
}

/// An opened GGUF file of this machine: what its header says, and its data, mapped.
#[derive(Debug)]
pub struct GgufFile {
    described: Described,
    map: Mapping,
}

impl std::ops::Deref for GgufFile {
    type Target = Described;

    fn deref(&self) -> &Described {
        &self.described
    }
}

impl AsRef<Described> for GgufFile {
    fn as_ref(&self) -> &Described {
        &self.described
    }
}

impl From<GgufFile> for Described {
    fn from(file: GgufFile) -> Self {
        file.described
    }
}

impl GgufFile {
    /// Opens a file and checks everything that its header says: counts, lengths and offsets
    /// against the file, types against the table, names against each other.
    ///
    /// # Errors
    /// The first broken rule, naming the file and the key or tensor; a file whose data is incomplete,
    /// or, by its name, a download that has not ended.
    pub fn open(path: &Path) -> Result<Self, GgufError> {
        if edit::is_waiting(path) {
            return Err(GgufError::Interrupted { path: path.to_owned() });
        }
        let map = Mapping::open(path).map_err(|error| GgufError::io(path, error))?;
        let header = Header::parse(path, map.bytes(), map.bytes().len() as u64)?;
        Ok(Self { described: Described::new(path, header)?, map })
    }

    /// The data of the tensor with this index.
    pub fn tensor_data(&self, index: usize) -> &[u8] {
        &self.map.bytes()[self.tensor_range(index)]
    }

    /// The table of tensors as it stands in the file.
    pub(super) fn table(&self) -> &[u8] {
        &self.map.bytes()[self.described.header.table.clone()]
    }
}

struct Reader<'a> {
    path: &'a Path,
    bytes: &'a [u8],
    cursor: Cursor<'a>,
}

impl Reader<'_> {
    fn truncated(&self, what: impl Into<String>) -> GgufError {
        let (path, seems) = (self.path.to_owned(), sniff::by_name(self.path).map(Box::new));
        GgufError::Truncated { path, what: what.into(), seems }
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
            let begin = &self.bytes[..self.bytes.len().min(sniff::WANTED)];
            let seems = sniff::seems(begin, self.path).map(Box::new);
            return Err(GgufError::Magic { path: self.path.to_owned(), seems });
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
    fn name(
        &mut self,
        what: &str,
        number: u64,
        error: fn(&Self, &str, String) -> GgufError,
    ) -> Result<String, GgufError> {
        let bytes =
            self.cursor.string().map_err(|Stop| self.truncated(format!("{what} {number}")))?;
        std::str::from_utf8(bytes).map(str::to_owned).map_err(|_| {
            let name = String::from_utf8_lossy(&bytes[..bytes.len().min(80)]);
            error(self, &name, format!("the name of {what} {number} is not UTF-8"))
        })
    }

    fn metadata(&mut self, n_keys: u64) -> Result<Metadata, GgufError> {
        let mut metadata = Metadata::new();
        for number in 0..n_keys {
            let key = self.name("key", number, Self::key_error)?;
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

    fn tensors(&mut self, n_tensors: u64) -> Result<Vec<TensorInfo>, GgufError> {
        let mut tensors = Vec::with_capacity(n_tensors as usize);
        let mut names = HashSet::with_capacity(n_tensors as usize);
        let mut elements = 0u64;
        for number in 0..n_tensors {
            let info = self.tensor(number)?;
            if !names.insert(info.name.clone()) {
                return Err(self.tensor_error(&info.name, "stands twice in the file"));
            }
            // So that sums over all tensors fit too.
            elements = match elements.checked_add(info.n_elements()) {
                Some(sum) if sum <= i64::MAX as u64 => sum,
                _ => {
                    let what = format!("its dimensions {:?} overflow", info.dims);
                    return Err(self.tensor_error(&info.name, what));
                }
            };
            tensors.push(info);
        }
        Ok(tensors)
    }

    fn tensor(&mut self, number: u64) -> Result<TensorInfo, GgufError> {
        let name = self.name("tensor", number, Self::tensor_error)?;
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
        let Some(elements) = elements.filter(|&n| n <= i64::MAX as u64) else {
            return error(format!("its dimensions {dims:?} overflow"));
        };
        let Some(ty) = QuantType::from_id(id) else {
            let ty = TensorType::Unknown(Opaque { id, n_bytes: 0 });
            return Ok(TensorInfo { name, dims, ty, offset });
        };
        let n_per_row = dims.first().copied().unwrap_or(1);
        if !n_per_row.is_multiple_of(ty.block_len() as u64) {
            return error(format!(
                "rows of {n_per_row} are no whole number of {ty} blocks of {}",
                ty.block_len()
            ));
        }
        let blocks = elements / ty.block_len() as u64;
        if blocks.checked_mul(ty.block_bytes() as u64).is_none() {
            return error(format!("its dimensions {dims:?} overflow"));
        }
        Ok(TensorInfo { name, dims, ty: ty.into(), offset })
    }

    /// Checks that the tensors tile the data section in order, and gives those of unknown types the
    /// bytes up to the next tensor. Returns where the data section begins.
    fn place(
        &self,
        tensors: &mut [TensorInfo],
        header: u64,
        alignment: u64,
        file_size: u64,
    ) -> Result<u64, GgufError> {
        let too_long = || self.truncated("the data section");
        let start = match tensors.is_empty() {
            true => header,
            false => pad(header, alignment).ok_or_else(too_long)?,
        };
        let mut expected = 0u64;
        for i in 0..tensors.len() {
            let next = match tensors.get(i + 1) {
                Some(next) => next.offset,
                None => file_size.saturating_sub(start),
            };
            let info = &mut tensors[i];
            if info.offset != expected {
                let what = format!("its data is at offset {}, expected {expected}", info.offset);
                return Err(self.tensor_error(&info.name, what));
            }
            if let TensorType::Unknown(opaque) = &mut info.ty {
                opaque.n_bytes = next.saturating_sub(expected);
            }
            let end = expected.checked_add(info.n_bytes()).ok_or_else(too_long)?;
            expected = pad(end, alignment).ok_or_else(too_long)?;
        }
        Ok(start)
    }
}
