//! GGUF files and checkpoints, here or behind URLs, opened for reading: metadata, tensors row by row, and the tokenizer.

use crate::{failed, told};
use numpy::{PyArray1, PyArrayMethods};
use pyo3::exceptions::PyIndexError;
use pyo3::prelude::*;
use pyo3::types::PyDict;
use requant::cli::place;
use requant::gguf::{Array, Value};
use requant::model::{CheckpointModel, Mtp};
use requant::source::{Dtype, GgufSource, Source};
use requant::tokenizer::{Pieces, Tokenizer, TokenizerError, Vocab};
use std::ffi::OsStr;
use std::path::PathBuf;
use std::sync::OnceLock;

/// A model's file or folder.
#[pyclass(frozen)]
pub struct File {
    path: PathBuf,
    of: Of,
    tokenizer: OnceLock<Tokenizer>,
    pieces: OnceLock<Pieces>,
}

enum Of {
    Gguf(Box<GgufSource>),
    Checkpoint(Box<CheckpointModel>),
}

impl File {
    fn source(&self) -> &dyn Source {
        match &self.of {
            Of::Gguf(source) => &**source,
            Of::Checkpoint(model) => &**model,
        }
    }

    /// The tensor, if there is one of this number and it has these rows.
    fn check(
        &self,
        tensor: usize,
        first: u64,
        rows: u64,
    ) -> PyResult<&requant::source::TensorMeta> {
        let meta = self.source().tensors().get(tensor);
        let meta = meta.ok_or_else(|| PyIndexError::new_err(format!("no tensor {tensor}")))?;
        match first.checked_add(rows) {
            Some(end) if end <= meta.n_rows() => Ok(meta),
            _ => Err(PyIndexError::new_err(format!("{} has {} rows", meta.name, meta.n_rows()))),
        }
    }

    fn tokenizer(&self) -> PyResult<&Tokenizer> {
        let make = || match &self.of {
            Of::Gguf(source) => Tokenizer::from_metadata(source.metadata()),
            Of::Checkpoint(model) => {
                vocab(model).and_then(|vocab| Tokenizer::from_checkpoint(model.dir(), &vocab))
            }
        };
        once(&self.tokenizer, make)
    }

    fn pieces(&self) -> PyResult<&Pieces> {
        let make = || match &self.of {
            Of::Gguf(source) => Pieces::from_metadata(source.metadata()),
            Of::Checkpoint(model) => vocab(model).map(|vocab| Pieces::of(&vocab)),
        };
        once(&self.pieces, make)
    }
}

/// What is made when it is first needed; what fails is tried again.
fn once<T>(place: &OnceLock<T>, make: impl FnOnce() -> Result<T, TokenizerError>) -> PyResult<&T> {
    match place.get() {
        Some(made) => Ok(made),
        None => {
            let made = make().map_err(failed)?;
            Ok(place.get_or_init(|| made))
        }
    }
}

fn vocab(model: &CheckpointModel) -> Result<Vocab, TokenizerError> {
    Vocab::from_checkpoint(model.dir(), &model.config().json(), None)
}

#[pymethods]
impl File {
    #[new]
    fn open(py: Python, path: PathBuf) -> PyResult<Self> {
        let of = py.detach(|| match place::is_gguf(&path) {
            true => {
                let source = place::gguf(&path).map_err(|error| told(&*error))?;
                PyResult::Ok(Of::Gguf(Box::new(source)))
            }
            false => {
                let folder = place::folder(&path).map_err(|error| told(&*error))?;
                let model = CheckpointModel::open_in(folder, Mtp::Keep).map_err(failed)?;
                Ok(Of::Checkpoint(Box::new(model)))
            }
        })?;
        Ok(Self { path, of, tokenizer: OnceLock::new(), pieces: OnceLock::new() })
    }

    #[getter]
    fn path(&self) -> &OsStr {
        self.path.as_os_str()
    }

    /// Metadata of a GGUF file, or the JSON text of a checkpoint's config.json.
    fn metadata<'py>(&self, py: Python<'py>) -> PyResult<Bound<'py, PyAny>> {
        match &self.of {
            Of::Gguf(source) => {
                let dict = PyDict::new(py);
                for (key, value) in source.metadata().iter() {
                    dict.set_item(key, python(py, value)?)?;
                }
                Ok(dict.into_any())
            }
            Of::Checkpoint(model) => {
                Ok(model.config().json().to_string().into_pyobject(py)?.into_any())
            }
        }
    }

    /// Name, type and extents, outermost first, of every tensor.
    fn tensors(&self) -> Vec<(String, String, Vec<u64>)> {
        let of = |meta: &requant::source::TensorMeta| {
            let ty = match meta.dtype {
                Dtype::Gguf(ty) => ty.name().to_owned(),
                other => other.to_string(),
            };
            (meta.name.clone(), ty, meta.dims.iter().rev().copied().collect())
        };
        self.source().tensors().iter().map(of).collect()
    }

    /// Rows of a tensor, widened.
    fn read<'py>(
        &self,
        py: Python<'py>,
        tensor: usize,
        first: u64,
        rows: u64,
    ) -> PyResult<Bound<'py, PyArray1<f32>>> {
        let meta = self.check(tensor, first, rows)?;
        let out = PyArray1::zeros(py, (rows * meta.n_per_row()) as usize, false);
        if rows > 0 {
            let mut write = out.readwrite();
            let values = write.as_slice_mut()?;
            py.detach(|| self.source().read_rows(tensor, first, values)).map_err(failed)?;
        }
        Ok(out)
    }

    /// Rows of a tensor as they are stored; nothing where they are not stored so.
    fn raw<'py>(
        &self,
        py: Python<'py>,
        tensor: usize,
        first: u64,
        rows: u64,
    ) -> PyResult<Option<Bound<'py, PyArray1<u8>>>> {
        self.check(tensor, first, rows)?;
        let mut bytes = Vec::new();
        let found = py.detach(|| self.source().read_raw(tensor, first..first + rows, &mut bytes));
        Ok(found.map_err(failed)?.then(|| PyArray1::from_vec(py, bytes)))
    }

    /// The tokens of a text.
    fn encode(&self, py: Python, text: &str) -> PyResult<Vec<u32>> {
        py.detach(|| self.tokenizer()?.encode(text).map_err(failed))
    }

    /// The text of tokens; bytes that are no UTF-8 become replacement characters.
    fn decode(&self, py: Python, tokens: Vec<u32>, special: bool) -> PyResult<String> {
        let bytes = py.detach(|| self.pieces()?.decode(&tokens, special).map_err(failed))?;
        Ok(String::from_utf8_lossy(&bytes).into_owned())
    }
}

/// A value of metadata.
fn python<'py>(py: Python<'py>, value: &Value) -> PyResult<Bound<'py, PyAny>> {
    macro_rules! values {
        ($($variant:ident),*) => {
            match value {
                $(Value::$variant(value) => Ok((*value).into_pyobject(py)?.into_any()),)*
                Value::Bool(value) => Ok(pyo3::types::PyBool::new(py, value.is_on()).to_owned().into_any()),
                Value::String(value) => Ok(String::from_utf8_lossy(value).into_pyobject(py)?.into_any()),
                Value::Array(array) => match array {
                    $(Array::$variant(values) => Ok(values.clone().into_pyobject(py)?.into_any()),)*
                    Array::Bool(values) => {
                        let values: Vec<bool> = values.iter().map(|value| value.is_on()).collect();
                        Ok(values.into_pyobject(py)?.into_any())
                    }
                    Array::String(values) => {
                        let values: Vec<_> = values.iter().map(|value| String::from_utf8_lossy(value)).collect();
                        Ok(values.into_pyobject(py)?.into_any())
                    }
                },
            }
        };
    }
    values!(U8, I8, U16, I16, U32, I32, F32, U64, I64, F64)
}
