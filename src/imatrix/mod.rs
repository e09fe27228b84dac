//! Importance matrices: the mean square of each column's activations, as files hold them.
//!
//! Both of llama-imatrix's formats are read: GGUF, and the legacy `.dat`. This room knows the
//! container; it does not know models or block formats.

mod file;
mod legacy;
mod statistics;
mod sums;

pub use statistics::{OfLayer, Statistics};
pub use sums::{Entry, Sums};

use crate::gguf::GgufError;
use crate::io::IoError;
use std::collections::{BTreeMap, BTreeSet};
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
    /// Names of entries that are not to be used.
    pub excluded: BTreeSet<String>,
}

/// An importance matrix that cannot be read.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ImatrixError {
    /// The system refused.
    #[error(transparent)]
    Io(#[from] IoError),
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
        "{}: `{tensor}`: no token reached expert{} {}; use a longer text",
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
#[non_exhaustive]
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
        let file::File { entries, datasets, chunk_count, legacy, .. } = file::read(path)?;
        let mut means = BTreeMap::new();
        for (tensor, mut entry) in entries {
            entry.counts.iter_mut().for_each(|n| *n = n.round());
            let columns = entry.columns();
            for (values, &count) in entry.sums.chunks_mut(columns).zip(&entry.counts) {
                match count > 0.0 {
                    true => values.iter_mut().for_each(|value| *value /= count),
                    // As llama-quantize: a matrix that no token reached counts every column alike.
                    false if !legacy => values.fill(1.0),
                    false => {}
                }
            }
            if !legacy && entry.counts.contains(&0.0) {
                unrouted.fill(path, &tensor, &mut entry.sums, &entry.counts)?;
            }
            means.insert(tensor, entry.sums);
        }
        Ok(Self { entries: means, datasets, chunk_count, excluded: BTreeSet::new() })
    }

    /// Drops every entry whose name contains one of these (`--exclude-weights`).
    pub fn exclude(&mut self, parts: &[String]) {
        self.keep(|name| !parts.iter().any(|part| name.contains(part)));
    }

    /// Keeps the entries whose name contains one of these (`--include-weights`).
    pub fn include(&mut self, parts: &[String]) {
        self.keep(|name| parts.iter().any(|part| name.contains(part)));
    }

    fn keep(&mut self, wanted: impl Fn(&str) -> bool) {
        let names = self.entries.keys().filter(|name| !wanted(name)).cloned();
        self.excluded.extend(names);
        self.entries.retain(|name, _| wanted(name));
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
