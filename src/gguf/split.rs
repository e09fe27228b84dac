//! Models in several files: their names, the keys that number them, and opening them together.
//!
//! All metadata is in the first file; the others hold the three keys alone
//! (`llama_split_path`, `llama_model_loader::llama_model_loader`).

use super::error::GgufError;
use super::file::{Described, GgufFile};
use super::metadata::Metadata;
use super::value::Value;
use crate::names::base;
use std::collections::HashMap;
use std::path::{Path, PathBuf};

/// Number of this file, from 0 (u16).
pub const SPLIT_NO: &str = "split.no";
/// Number of files (u16).
pub const SPLIT_COUNT: &str = "split.count";
/// Number of tensors in all files (i32).
pub const SPLIT_TENSORS: &str = "split.tensors.count";

/// Which of several files this is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Split {
    /// Number of the file, from 0.
    pub no: u16,
    /// Number of files.
    pub count: u16,
    /// Number of tensors in all of them.
    pub n_tensors: i32,
}

impl Split {
    /// What a file's metadata says; `None` for a file that stands alone.
    ///
    /// # Errors
    /// Keys of other types than the format gives them.
    pub fn read(metadata: &Metadata) -> Result<Option<Self>, GgufError> {
        let wrong = |key: &str, expected| match metadata.get(key) {
            Some(value) => {
                GgufError::KeyType { key: key.to_owned(), expected, found: format!("{value:?}") }
            }
            None => GgufError::KeyType { key: key.to_owned(), expected, found: "missing".into() },
        };
        let count = match metadata.get(SPLIT_COUNT) {
            // 0 is what merging leaves behind.
            None | Some(Value::U16(0)) => return Ok(None),
            Some(&Value::U16(count)) => count,
            Some(_) => return Err(wrong(SPLIT_COUNT, "u16")),
        };
        let Some(&Value::U16(no)) = metadata.get(SPLIT_NO) else {
            return Err(wrong(SPLIT_NO, "u16"));
        };
        let Some(&Value::I32(n_tensors)) = metadata.get(SPLIT_TENSORS) else {
            return Err(wrong(SPLIT_TENSORS, "i32"));
        };
        Ok(Some(Self { no, count, n_tensors }))
    }

    /// Writes the keys in the order of llama-gguf-split.
    pub fn write(self, metadata: &mut Metadata) {
        metadata.set_last(SPLIT_NO, self.no);
        metadata.set_last(SPLIT_TENSORS, self.n_tensors);
        metadata.set_last(SPLIT_COUNT, self.count);
    }

    /// Writes the keys in the order of llama-quantize `--keep-split`.
    pub fn write_counts_last(self, metadata: &mut Metadata) {
        metadata.set_last(SPLIT_NO, self.no);
        metadata.set_last(SPLIT_COUNT, self.count);
        metadata.set_last(SPLIT_TENSORS, self.n_tensors);
    }
}

/// The name of file `no` (from 0) of `count`: `model.gguf` or `model` becomes
/// `model-00001-of-00003.gguf`.
pub fn split_path(output: &Path, no: usize, count: usize) -> PathBuf {
    let name = base(output);
    let stem = name.strip_suffix(".gguf").unwrap_or(&name);
    output.with_file_name(format!("{stem}-{:05}-of-{count:05}.gguf", no + 1))
}

/// The name of the whole for that of one of its files, both without `.gguf`; others stay as they are.
pub fn whole_name(name: &str) -> &str {
    let is_number = |text: &str| text.len() == 5 && text.bytes().all(|b| b.is_ascii_digit());
    let part = name.rsplit_once("-of-").filter(|(_, count)| is_number(count));
    match part.and_then(|(start, _)| start.rsplit_once('-')) {
        Some((whole, no)) if is_number(no) => whole,
        _ => name,
    }
}

/// Opens a model: one file, or all files of a split one, given its first.
///
/// # Errors
/// Any file that is missing, damaged, of another set, or holds a tensor that another holds too.
pub fn open_all(path: &Path) -> Result<Vec<GgufFile>, GgufError> {
    open_all_by(path, |paths| paths.iter().map(|path| GgufFile::open(path)).collect())
}

/// As [`open_all`], where files are opened in another way, some together.
///
/// # Errors
/// As [`open_all`].
pub fn open_all_by<T: AsRef<Described>>(
    path: &Path,
    mut open: impl FnMut(&[PathBuf]) -> Result<Vec<T>, GgufError>,
) -> Result<Vec<T>, GgufError> {
    let mut files = open(&[path.to_owned()])?;
    let Some(first) = files.first().map(AsRef::as_ref) else { return Ok(files) };
    let bad = |path: &Path, what: String| GgufError::Split { path: path.to_owned(), what };
    // A single part is a whole model, whatever its name.
    let read =
        |file: &Described| Split::read(file.metadata()).map_err(|error| error.in_file(file.path()));
    let Some(split) = read(first)?.filter(|split| split.count > 1) else {
        return Ok(files);
    };
    let name = base(path);
    let suffix = format!("-{:05}-of-{:05}.gguf", split.no + 1, split.count);
    let Some(stem) = name.strip_suffix(&suffix) else {
        return Err(bad(path, format!("is one of several files, but its name lacks `{suffix}`")));
    };
    let whole = path.with_file_name(stem);
    if split.no != 0 {
        let first = split_path(&whole, 0, split.count.into());
        return Err(bad(path, format!("is a later part of a model; give {}", first.display())));
    }
    let others: Vec<PathBuf> =
        (1..split.count).map(|no| split_path(&whole, no.into(), split.count.into())).collect();
    let opened = open(&others).map_err(|error| match error {
        GgufError::Io(error) if error.source.kind() == std::io::ErrorKind::NotFound => {
            let what = "this part of the model is missing; fetch it into the same folder";
            bad(&error.path, what.to_owned())
        }
        other => other,
    })?;
    for (no, file) in (1..).zip(&opened) {
        if read(file.as_ref())? != Some(Split { no, ..split }) {
            let what = "its split keys are not those of this model".to_owned();
            return Err(bad(file.as_ref().path(), what));
        }
    }
    files.extend(opened);
    let mut seen = HashMap::new();
    for file in files.iter().map(AsRef::as_ref) {
        for tensor in file.tensors() {
            if let Some(other) = seen.insert(tensor.name.as_str(), file.path()) {
                let what = format!("tensor `{}` is in {} too", tensor.name, other.display());
                return Err(bad(file.path(), what));
            }
        }
    }
    if i64::try_from(seen.len()).ok() != Some(split.n_tensors.into()) {
        let what = format!("announces {} tensors, its parts hold {}", split.n_tensors, seen.len());
        return Err(bad(path, what));
    }
    Ok(files)
}
