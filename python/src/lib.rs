//! The native half of the Python module `requant`: arrays and paths in, arrays, numbers and JSON out. What
//! users see, names, shapes and classes, is in `requant/__init__.py`; nothing is computed here that the
//! library does not compute.

mod file;
mod work;

use numpy::{PyArray1, PyArrayMethods, PyReadonlyArray1};
use pyo3::exceptions::{PyOSError, PyValueError};
use pyo3::prelude::*;
use rayon::prelude::*;
use requant::quant::{Guide, QuantError, QuantType};
use requant::simd::Simd;
use std::ffi::OsString;

/// Weights that a thread takes at a time.
const PIECE: usize = 1 << 16;

/// Runs the command line program; its exit code.
#[pyfunction]
fn main(py: Python, arguments: Vec<OsString>) -> u8 {
    py.detach(|| requant::cli::run(arguments))
}

/// Facts about all types, as `requant formats --json` has them.
#[pyfunction]
fn formats() -> String {
    requant::cli::formats_json().to_string()
}

/// Rows of weights, in f32, or F16 or BF16 as bits, to blocks of a type.
#[pyfunction]
fn quantize<'py>(
    py: Python<'py>,
    weights: &Bound<'py, PyAny>,
    stored: &str,
    n_per_row: usize,
    ty: &str,
    importance: Option<PyReadonlyArray1<f32>>,
    search: bool,
) -> PyResult<Bound<'py, PyArray1<u8>>> {
    let (ty, stored) = (named(ty)?, named(stored)?);
    let row_bytes = row_bytes(ty, n_per_row)?;
    let importance = importance.as_ref().map(|values| values.as_slice()).transpose()?;
    if importance.is_some_and(|values| values.len() != n_per_row) {
        return Err(PyValueError::new_err("importance must have one value for each column"));
    }
    if importance.is_some_and(|values| values.iter().any(|x| !x.is_finite() || *x < 0.0)) {
        return Err(PyValueError::new_err("importances must be finite and not negative"));
    }
    let guide = Guide::from(importance);
    let encode = |weights: &[f32], out: &mut [u8]| match search {
        true => ty.search_rows_with(Simd::detect(), weights, n_per_row, guide, out),
        false => ty.encode_rows(weights, n_per_row, guide, out),
    };
    let rows = (PIECE / n_per_row).max(1);
    if stored == QuantType::F32 {
        let weights: PyReadonlyArray1<f32> = weights.extract()?;
        let weights = weights.as_slice()?;
        let out = PyArray1::zeros(py, weights.len() / n_per_row * row_bytes, false);
        let mut write = out.readwrite();
        let bytes = write.as_slice_mut()?;
        let pieces = bytes.par_chunks_mut(rows * row_bytes);
        let pieces = pieces.zip(weights.par_chunks(rows * n_per_row));
        py.detach(|| pieces.try_for_each(|(out, weights)| encode(weights, out))).map_err(bad)?;
        return Ok(out);
    }
    let weights: PyReadonlyArray1<u8> = weights.extract()?;
    let weights = weights.as_slice()?;
    let out = PyArray1::zeros(py, weights.len() / 2 / n_per_row * row_bytes, false);
    let mut write = out.readwrite();
    let pieces = write.as_slice_mut()?.par_chunks_mut(rows * row_bytes);
    let pieces = pieces.zip(weights.par_chunks(2 * rows * n_per_row));
    let widen = |(out, weights): (&mut [u8], &[u8])| {
        let mut wide = vec![0.0; weights.len() / 2];
        stored.decode_rows(weights, n_per_row, &mut wide)?;
        encode(&wide, out)
    };
    py.detach(|| pieces.try_for_each(widen)).map_err(bad)?;
    Ok(out)
}

/// Blocks of a type to rows of weights.
#[pyfunction]
fn dequantize<'py>(
    py: Python<'py>,
    bytes: PyReadonlyArray1<u8>,
    ty: &str,
    n_per_row: usize,
) -> PyResult<Bound<'py, PyArray1<f32>>> {
    let ty = named(ty)?;
    let row_bytes = row_bytes(ty, n_per_row)?;
    let bytes = bytes.as_slice()?;
    if bytes.len() % row_bytes != 0 {
        let (all, name) = (bytes.len(), ty.name());
        let text = format!(
            "{all} bytes are no whole rows of {n_per_row} weights in {name} ({row_bytes} bytes)"
        );
        return Err(PyValueError::new_err(text));
    }
    let out = PyArray1::zeros(py, bytes.len() / row_bytes * n_per_row, false);
    let rows = (PIECE / n_per_row).max(1);
    let mut write = out.readwrite();
    let pieces = write.as_slice_mut()?.par_chunks_mut(rows * n_per_row);
    let pieces = pieces.zip(bytes.par_chunks(rows * row_bytes));
    let decode = |(out, bytes): (&mut [f32], &[u8])| ty.decode_rows(bytes, n_per_row, out);
    py.detach(|| pieces.try_for_each(decode)).map_err(bad)?;
    Ok(out)
}

/// Bytes of a row.
#[pyfunction(name = "row_bytes")]
fn bytes_of_row(ty: &str, n_per_row: usize) -> PyResult<usize> {
    row_bytes(named(ty)?, n_per_row)
}

/// Weights and bytes of a block.
#[pyfunction]
fn block(ty: &str) -> PyResult<(usize, usize)> {
    named(ty).map(|ty| (ty.block_len(), ty.block_bytes()))
}

fn named(ty: &str) -> PyResult<QuantType> {
    ty.parse()
        .map_err(|error: requant::quant::UnknownType| PyValueError::new_err(error.to_string()))
}

fn row_bytes(ty: QuantType, n_per_row: usize) -> PyResult<usize> {
    let fits = ty.row_bytes(n_per_row).filter(|&bytes| bytes > 0);
    fits.ok_or_else(|| {
        let (name, len) = (ty.name(), ty.block_len());
        PyValueError::new_err(format!(
            "rows of {n_per_row} are no whole blocks of {len}, which {name} has"
        ))
    })
}

fn bad(error: QuantError) -> PyErr {
    PyValueError::new_err(error.to_string())
}

/// An error of the library with all of its causes.
fn failed(error: impl std::error::Error + 'static) -> PyErr {
    told(&error)
}

fn told(error: &(dyn std::error::Error + 'static)) -> PyErr {
    let mut text = error.to_string();
    let mut cause = error.source();
    while let Some(error) = cause {
        let more = error.to_string();
        if !text.contains(&more) {
            text += &format!(": {more}");
        }
        cause = error.source();
    }
    PyOSError::new_err(text)
}

#[pymodule]
fn _native(module: &Bound<PyModule>) -> PyResult<()> {
    module.add("__version__", env!("CARGO_PKG_VERSION"))?;
    module.add_class::<file::File>()?;
    for function in [
        wrap_pyfunction!(main, module)?,
        wrap_pyfunction!(formats, module)?,
        wrap_pyfunction!(quantize, module)?,
        wrap_pyfunction!(dequantize, module)?,
        wrap_pyfunction!(bytes_of_row, module)?,
        wrap_pyfunction!(block, module)?,
        wrap_pyfunction!(work::convert, module)?,
        wrap_pyfunction!(work::ladder, module)?,
        wrap_pyfunction!(work::perplexity, module)?,
        wrap_pyfunction!(work::compare, module)?,
        wrap_pyfunction!(work::imatrix, module)?,
        wrap_pyfunction!(work::gate, module)?,
        wrap_pyfunction!(work::mix, module)?,
    ] {
        module.add_function(function)?;
    }
    Ok(())
}
