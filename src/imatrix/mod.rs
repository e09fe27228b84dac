//! Importance matrices: the mean square of each column's activations, as files hold them.
//!
//! Both of llama-imatrix's formats are read: GGUF, and the legacy `.dat`. This room knows the
//! container; it does not know models or block formats.

mod legacy;
mod sums;

pub use sums::{Entry, Sums};

use crate::gguf::{GgufError, GgufFile};
use crate::quant::QuantType;
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

/// An importance matrix for each of a model's tensors.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Imatrix {
    /// Mean squares by tensor name, in GGUF's spelling: one value a column, matrix after matrix
    /// for stacked tensors.
    pub entries: BTreeMap<String, Vec<f32>>,
    /// Names of the texts it was made from.
    pub datasets: Vec<String>,
    /// Chunks of text it was made from; 0 where the file does not say.
    pub chunk_count: u32,
}

/// An importance matrix that cannot be read.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ImatrixError {
    /// The operating system refused.
    #[error("{}: {error}", path.display())]
    Io {
        /// The file.
        path: PathBuf,
        /// What the system said.
        error: std::io::Error,
    },
    /// The file is no GGUF file.
    #[error(transparent)]
    Gguf(#[from] GgufError),
    /// The file is not an importance matrix, or is damaged.
    #[error("{}: {what}", path.display())]
    Format {
        /// The file.
        path: PathBuf,
        /// What is wrong with it.
        what: String,
    },
    /// Experts that no token reached.
    #[error(
        "{}: `{tensor}`: no token reached expert{} {}; use a longer text, or --unrouted",
        path.display(), if experts.len() == 1 { "" } else { "s" }, list(experts)
    )]
    Unrouted {
        /// The file.
        path: PathBuf,
        /// The entry.
        tensor: String,
        /// The experts.
        experts: Vec<usize>,
    },
    /// A value that no sum of squares has.
    #[error(
        "{}: entry `{tensor}` holds {value} at column {column}, where sums of squares are finite \
         and not negative", path.display()
    )]
    NoSumOfSquares {
        /// The file.
        path: PathBuf,
        /// The entry.
        tensor: String,
        /// The column, counted over all matrices of the entry.
        column: usize,
        /// The value.
        value: f32,
    },
}

fn list(numbers: &[usize]) -> String {
    let numbers: Vec<String> = numbers.iter().map(usize::to_string).collect();
    numbers.join(", ")
}

/// What weighs the columns of experts that no token reached.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Unrouted {
    /// All columns weigh the same, as in llama-quantize.
    #[default]
    Uniform,
    /// The mean of the other experts of the tensor.
    Shared,
    /// Such an expert is an error.
    Error,
}

impl Unrouted {
    fn fill(
        self,
        path: &Path,
        tensor: &str,
        values: &mut [f32],
        counts: &[f32],
    ) -> Result<(), ImatrixError> {
        let columns = (values.len() / counts.len()).max(1);
        let reached = counts.iter().filter(|&&n| n > 0.0).count();
        match self {
            Self::Uniform => Ok(()),
            Self::Error => Err(ImatrixError::Unrouted {
                path: path.to_owned(),
                tensor: tensor.to_owned(),
                experts: (0..counts.len()).filter(|&i| counts[i] <= 0.0).collect(),
            }),
            Self::Shared => {
                let mut mean = vec![0.0f64; columns];
                for (values, _) in values.chunks(columns).zip(counts).filter(|(_, n)| **n > 0.0) {
                    for (mean, &value) in mean.iter_mut().zip(values) {
                        *mean += f64::from(value) / reached as f64;
                    }
                }
                let empty = values.chunks_mut(columns).zip(counts).filter(|(_, n)| **n <= 0.0);
                for (values, _) in empty.filter(|_| reached > 0) {
                    for (value, &mean) in values.iter_mut().zip(&mean) {
                        *value = mean as f32;
                    }
                }
                Ok(())
            }
        }
    }
}

/// Name, sums and counts of each entry, names of texts, number and size of chunks.
type Pairs = (Vec<(String, Vec<f32>, Vec<f32>)>, Vec<String>, u32, u32);

/// Reads a GGUF file as it is.
fn read_pairs(path: &Path) -> Result<Pairs, ImatrixError> {
    let file = GgufFile::open(path)?;
    let error = |what: String| ImatrixError::Format { path: path.to_owned(), what };
    let metadata = file.metadata();
    let (datasets, chunks) =
        (metadata.strings("imatrix.datasets")?, metadata.u32("imatrix.chunk_count")?);
    let (Some(datasets), Some(chunk_count)) = (datasets, chunks) else {
        return Err(error("is a GGUF file, but not an importance matrix".to_owned()));
    };
    let chunk_size = metadata.u32("imatrix.chunk_size")?.unwrap_or(0);
    let floats = |name: &str| -> Result<Option<Vec<f32>>, ImatrixError> {
        let Some(index) = file.find(name) else { return Ok(None) };
        if file.tensors()[index].ty != QuantType::F32 {
            return Err(error(format!("`{name}` is not F32")));
        }
        let bytes = file.tensor_data(index).as_chunks::<4>().0;
        Ok(Some(bytes.iter().map(|&b| f32::from_le_bytes(b)).collect()))
    };
    let mut pairs = Vec::new();
    for info in file.tensors() {
        let Some(tensor) = info.name.strip_suffix(".in_sum2") else {
            let of_pair = info.name.strip_suffix(".counts");
            if of_pair.is_none_or(|t| file.find(&format!("{t}.in_sum2")).is_none()) {
                return Err(error(format!("`{}` has no counterpart", info.name)));
            }
            continue;
        };
        let missing = || error(format!("`{}` has no counterpart", info.name));
        let counts = floats(&format!("{tensor}.counts"))?.ok_or_else(missing)?;
        let values = floats(&info.name)?.ok_or_else(missing)?;
        if counts.is_empty() || !values.len().is_multiple_of(counts.len()) {
            let what = format!("`{tensor}` has {} sums and {} counts", values.len(), counts.len());
            return Err(error(what));
        }
        pairs.push((tensor.to_owned(), values, counts));
    }
    let datasets = datasets.iter().map(|name| name.to_string()).collect();
    Ok((pairs, datasets, chunk_count, chunk_size))
}

impl Imatrix {
    /// Reads a file of either format.
    ///
    /// # Errors
    /// A file of another kind, a damaged one, or values that are not finite.
    pub fn open(path: &Path) -> Result<Self, ImatrixError> {
        Self::open_with(path, Unrouted::default())
    }

    /// [`Imatrix::open`] with a choice about experts that no token reached. The legacy format does
    /// not say which those are.
    ///
    /// # Errors
    /// As [`Imatrix::open`]; with [`Unrouted::Error`], the first tensor with such an expert.
    pub fn open_with(path: &Path, unrouted: Unrouted) -> Result<Self, ImatrixError> {
        let mut magic = [0; 4];
        let io = |error| ImatrixError::Io { path: path.to_owned(), error };
        let mut file = crate::mapping::open(path).map_err(io)?;
        let is_gguf = std::io::Read::read_exact(&mut file, &mut magic).is_ok() && &magic == b"GGUF";
        let imatrix = if is_gguf { Self::from_gguf(path, unrouted)? } else { legacy::read(path)? };
        for (tensor, values) in &imatrix.entries {
            if let Some(column) = values.iter().position(|&v| !v.is_finite() || v < 0.0) {
                return Err(ImatrixError::NoSumOfSquares {
                    path: path.to_owned(),
                    tensor: tensor.clone(),
                    column,
                    value: values[column],
                });
            }
        }
        Ok(imatrix)
    }

    /// Pairs of `<tensor>.in_sum2` and `<tensor>.counts`; a matrix that no token reached counts
    /// every column alike (`common_imatrix_load`, `load_imatrix` in llama-quantize).
    fn from_gguf(path: &Path, unrouted: Unrouted) -> Result<Self, ImatrixError> {
        let (pairs, datasets, chunk_count, _) = read_pairs(path)?;
        let mut entries = BTreeMap::new();
        for (tensor, mut values, counts) in pairs {
            let columns = (values.len() / counts.len()).max(1);
            let counts: Vec<f32> = counts.into_iter().map(f32::round).collect();
            for (values, count) in values.chunks_mut(columns).zip(&counts) {
                for value in values {
                    *value = if *count > 0.0 { *value / count } else { 1.0 };
                }
            }
            if counts.iter().any(|&n| n <= 0.0) {
                unrouted.fill(path, &tensor, &mut values, &counts)?;
            }
            entries.insert(tensor, values);
        }
        Ok(Self { entries, datasets, chunk_count })
    }

    /// Drops every entry whose name contains one of these (`--exclude-weights`).
    pub fn exclude(&mut self, parts: &[String]) {
        self.entries.retain(|name, _| !parts.iter().any(|part| name.contains(part)));
    }

    /// Keeps the entries whose name contains one of these (`--include-weights`).
    pub fn include(&mut self, parts: &[String]) {
        self.entries.retain(|name, _| parts.iter().any(|part| name.contains(part)));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const REFERENCE: &str = "tests/fixtures/reference";

    #[test]
    fn both_formats_hold_the_same_matrix() {
        let gguf = Imatrix::open(&Path::new(REFERENCE).join("imatrix.gguf")).unwrap();
        let legacy = Imatrix::open(&Path::new(REFERENCE).join("imatrix.dat")).unwrap();
        assert_eq!(gguf.chunk_count, legacy.chunk_count);
        assert!(!gguf.entries.is_empty());
        assert!(gguf.entries.keys().eq(legacy.entries.keys()));
        for (name, values) in &gguf.entries {
            for (a, b) in values.iter().zip(&legacy.entries[name]) {
                assert!((a - b).abs() <= 1e-5 * a.abs(), "{name}: {a} and {b}");
            }
        }
        assert_eq!(gguf.entries["blk.1.ffn_up_exps.weight"].len(), 256 * 16);
    }

    #[test]
    fn entries_are_chosen_by_parts_of_their_names() {
        let mut imatrix = Imatrix::open(&Path::new(REFERENCE).join("imatrix.gguf")).unwrap();
        imatrix.exclude(&["ffn_down".to_owned()]);
        imatrix.include(&["ffn_".to_owned(), "attn_q_a".to_owned()]);
        assert!(imatrix.entries.contains_key("blk.0.ffn_up.weight"));
        assert!(imatrix.entries.contains_key("blk.0.attn_q_a.weight"));
        assert!(imatrix.entries.keys().all(|name| !name.contains("ffn_down")));
        assert!(imatrix.entries.keys().all(|name| !name.contains("attn_q_b")));
    }

    #[test]
    fn damaged_files_are_refused() {
        let refused = |bytes: &[u8]| {
            let file = tempfile::NamedTempFile::new().unwrap();
            std::fs::write(file.path(), bytes).unwrap();
            assert!(Imatrix::open(file.path()).is_err());
        };
        let legacy = std::fs::read(Path::new(REFERENCE).join("imatrix.dat")).unwrap();
        let values_end = legacy.len() - 200;
        for length in (0..values_end).step_by(997) {
            refused(&legacy[..length]);
        }
        let mut huge = legacy.clone();
        huge[4..8].copy_from_slice(&i32::MAX.to_le_bytes());
        refused(&huge);
        // The sign of the first value.
        let mut negative = legacy.clone();
        negative[8 + usize::from(legacy[4]) + 8 + 3] |= 0x80;
        refused(&negative);
        refused(b"not an importance matrix");
        let model = std::fs::read(Path::new(REFERENCE).join("tiny-r1-bf16.gguf")).unwrap();
        refused(&model);
    }
}
