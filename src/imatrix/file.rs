//! What files hold, of either format: sums, and how often something was added to them.

use super::{ImatrixError, legacy};
use crate::gguf::{GgufFile, TensorType, open_all};
use crate::io::IoError;
use crate::quant::QuantType;
use std::collections::BTreeMap;
use std::path::Path;

/// A file of either format.
#[derive(Default)]
pub(super) struct File {
    pub entries: BTreeMap<String, Entry>,
    pub datasets: Vec<String>,
    /// 0 where the file does not say.
    pub chunk_count: u32,
    /// Tokens of a chunk; 0 where the file does not say.
    pub chunk_size: u32,
    /// Whether sums are means times the number of calls, and counts are these numbers.
    pub legacy: bool,
}

/// The entry of a tensor.
pub(super) struct Entry {
    /// One a column, matrix after matrix.
    pub sums: Vec<f32>,
    /// Whole numbers: one, or one for each matrix.
    pub counts: Vec<f32>,
}

impl Entry {
    /// Columns of a matrix that has a count of its own.
    pub fn columns(&self) -> usize {
        self.sums.len() / self.counts.len()
    }

    /// Whether anything was added to the sum in this column, counted over all matrices.
    fn is_counted(&self, column: usize) -> bool {
        self.counts[column / self.columns()] > 0.0
    }
}

/// Reads a file. Every entry has sums and counts, as many of the one as fit the other, and no value
/// that cannot be a sum of squares or a number of tokens.
pub(super) fn read(path: &Path) -> Result<File, ImatrixError> {
    let mut magic = [0; 4];
    let io = |error| IoError::new(path, error);
    let mut start = crate::io::open(path).map_err(io)?;
    let is_gguf = std::io::Read::read_exact(&mut start, &mut magic).is_ok() && &magic == b"GGUF";
    let file = if is_gguf { read_gguf(path)? } else { legacy::read(path)? };
    for (tensor, entry) in &file.entries {
        check(path, tensor, entry)?;
    }
    Ok(file)
}

/// Pairs of `<tensor>.in_sum2` and `<tensor>.counts` (`common_imatrix_load`). Tensors with other
/// names are other tools' business. Metadata that is missing or of another type says nothing, as
/// gguf-py leaves out empty lists.
fn read_gguf(path: &Path) -> Result<File, ImatrixError> {
    let files = open_all(path)?;
    let metadata = files[0].metadata();
    let number = |key: &str| metadata.u32(key).ok().flatten().unwrap_or(0);
    let datasets = metadata.strings("imatrix.datasets").ok().flatten().unwrap_or_default();
    let mut file = File {
        datasets: datasets.iter().map(|name| name.to_string()).collect(),
        chunk_count: number("imatrix.chunk_count"),
        chunk_size: number("imatrix.chunk_size"),
        ..File::default()
    };
    let error = |what: String| ImatrixError::Format { path: path.to_owned(), what };
    let parts = || files.iter().flat_map(|file| file.tensors());
    for info in parts() {
        let (tensor, other) = match (info.name.strip_suffix(SUMS), info.name.strip_suffix(COUNTS)) {
            (Some(tensor), _) => (tensor, format!("{tensor}{COUNTS}")),
            (_, Some(tensor)) => (tensor, format!("{tensor}{SUMS}")),
            (None, None) => continue,
        };
        let Some(other) = floats(&files, &other).map_err(error)? else {
            return Err(error(format!("`{}` has no `{other}` beside it", info.name)));
        };
        if info.name.ends_with(SUMS) {
            let sums = floats(&files, &info.name).map_err(error)?.unwrap_or_default();
            file.entries.insert(tensor.to_owned(), Entry { sums, counts: other });
        }
    }
    match file.entries.is_empty() {
        true => Err(error("is a GGUF file, but not an importance matrix".to_owned())),
        false => Ok(file),
    }
}

const SUMS: &str = ".in_sum2";
const COUNTS: &str = ".counts";

/// The values of a tensor in one of the files.
fn floats(files: &[GgufFile], name: &str) -> Result<Option<Vec<f32>>, String> {
    let Some((file, index)) = files.iter().find_map(|file| Some((file, file.find(name)?))) else {
        return Ok(None);
    };
    match file.tensors()[index].ty {
        TensorType::Known(QuantType::F32) => {
            let values = file.tensor_data(index).as_chunks::<4>().0.iter();
            Ok(Some(values.map(|&bytes| f32::from_le_bytes(bytes)).collect()))
        }
        ty => Err(format!("`{name}` is {ty}, where importance matrices have F32")),
    }
}

fn check(path: &Path, tensor: &str, entry: &Entry) -> Result<(), ImatrixError> {
    let Entry { sums, counts } = entry;
    let error = |what: String| Err(ImatrixError::Format { path: path.to_owned(), what });
    if sums.is_empty() || counts.is_empty() || !sums.len().is_multiple_of(counts.len()) {
        return error(format!("`{tensor}` has {} sums and {} counts", sums.len(), counts.len()));
    }
    if let Some(count) = counts.iter().find(|n| !(n.is_finite() && **n >= 0.0)) {
        return error(format!("`{tensor}` has a count of {count}, which is no number of tokens"));
    }
    let bad = |&column: &usize| {
        entry.is_counted(column) && !(sums[column] >= 0.0 && sums[column].is_finite())
    };
    match (0..sums.len()).find(bad) {
        None => Ok(()),
        Some(column) => Err(ImatrixError::NoSumOfSquares {
            path: path.to_owned(),
            tensor: tensor.to_owned(),
            column,
            value: sums[column],
        }),
    }
}
