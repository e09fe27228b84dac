//! How far the values of two tensors lie apart.

use super::{PART, parts};
use crate::source::{Source, SourceError};
use std::ops::Range;

/// How far the values of a tensor lie from those of another. Sums are f64.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Difference {
    /// Largest difference of two values.
    pub max: f64,
    /// Root of the mean square of the differences.
    pub rms: f64,
    /// Norm of the difference, relative to the first tensor's norm; 0 where both are 0.
    pub relative: f64,
    /// Cosine of the angle between the two; 1 where either is 0.
    pub cosine: f64,
}

/// Whether two tensors of the same shape and type are stored as the same bytes; `false` as well where
/// one of them has to be computed. Of tensors of an unknown type, one may have more zeros at its end,
/// which may be its file's padding.
///
/// # Errors
/// Rows that cannot be read.
pub fn same_bytes(
    (a, i): (&dyn Source, usize),
    (b, j): (&dyn Source, usize),
) -> Result<bool, SourceError> {
    let [rows, others] = [&a.tensors()[i], &b.tensors()[j]].map(|tensor| tensor.n_rows());
    let common = 0..rows.min(others);
    let (mut x, mut y) = (Vec::new(), Vec::new());
    let step = (PART / a.tensors()[i].n_per_row().max(1)).max(1);
    let pieces = |rows: Range<u64>| {
        rows.clone().step_by(step as usize).map(move |first| first..rows.end.min(first + step))
    };
    for rows in pieces(common.clone()) {
        let stored = a.read_raw(i, rows.clone(), &mut x)? && b.read_raw(j, rows.clone(), &mut y)?;
        a.release(i, rows.clone());
        b.release(j, rows);
        if !stored || x != y {
            return Ok(false);
        }
    }
    for (source, tensor, rows) in [(a, i, common.end..rows), (b, j, common.end..others)] {
        for rows in pieces(rows) {
            source.read_raw(tensor, rows, &mut x)?;
            if x.iter().any(|&byte| byte != 0) {
                return Ok(false);
            }
        }
    }
    Ok(true)
}

/// Compares a tensor with one of the same shape.
///
/// # Errors
/// Rows that cannot be read.
///
/// # Panics
/// When the shapes differ.
pub fn difference(
    (a, i): (&dyn Source, usize),
    (b, j): (&dyn Source, usize),
) -> Result<Difference, SourceError> {
    let (first, second) = (&a.tensors()[i], &b.tensors()[j]);
    assert_eq!((first.n_per_row(), first.n_rows()), (second.n_per_row(), second.n_rows()));
    let n_per_row = first.n_per_row() as usize;
    let (mut x, mut y) = (Vec::new(), Vec::new());
    let (mut max, mut apart, mut xx, mut yy, mut xy) = (0f64, 0f64, 0f64, 0f64, 0f64);
    parts(a, i, |rows| {
        let n = (rows.end - rows.start) as usize * n_per_row;
        x.resize(n, 0.0);
        y.resize(n, 0.0);
        a.read_rows(i, rows.start, &mut x)?;
        b.read_rows(j, rows.start, &mut y)?;
        b.release(j, rows);
        for (&x, &y) in x.iter().zip(&y) {
            let (x, y) = (f64::from(x), f64::from(y));
            max = max.max((x - y).abs());
            apart += (x - y) * (x - y);
            xx += x * x;
            yy += y * y;
            xy += x * y;
        }
        Ok(())
    })?;
    let ratio = |a: f64, b: f64, none: f64| if b > 0.0 { a / b } else { none };
    Ok(Difference {
        max,
        rms: (apart / first.n_elements().max(1) as f64).sqrt(),
        relative: ratio(apart, xx, if apart > 0.0 { f64::INFINITY } else { 0.0 }).sqrt(),
        cosine: ratio(xy, (xx * yy).sqrt(), 1.0),
    })
}
