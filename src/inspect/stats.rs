//! How a tensor's values are distributed.

use super::parts;
use crate::source::{Source, SourceError};

/// Bins of the histogram, which spans the finite values.
const BINS: usize = 32;

/// How a tensor's values are distributed. Sums are f64.
#[derive(Clone, Debug, Default)]
pub struct Stats {
    /// Values.
    pub n: u64,
    /// Values that are NaN.
    pub nan: u64,
    /// Values that are infinite.
    pub infinite: u64,
    /// Values that are 0.
    pub zero: u64,
    /// Smallest finite value.
    pub min: f32,
    /// Largest finite value.
    pub max: f32,
    /// Mean of the finite values.
    pub mean: f64,
    /// Root of the mean square of the finite values.
    pub rms: f64,
    /// Fourth moment about the mean over the squared variance: 3 for a Gaussian.
    pub kurtosis: f64,
    /// Finite values in equal steps from `min` to `max`.
    pub histogram: Vec<u64>,
}

/// Reads a tensor twice: for its range, then for the histogram.
///
/// # Errors
/// Rows that cannot be read.
pub fn stats(source: &dyn Source, tensor: usize) -> Result<Stats, SourceError> {
    let n_per_row = source.tensors()[tensor].n_per_row() as usize;
    let mut stats = Stats { min: f32::INFINITY, max: f32::NEG_INFINITY, ..Stats::default() };
    let mut values = Vec::new();
    let (mut sum, mut squares) = (0.0f64, 0.0f64);
    parts(source, tensor, |rows| {
        values.resize((rows.end - rows.start) as usize * n_per_row, 0.0);
        source.read_rows(tensor, rows.start, &mut values)?;
        for &value in &values {
            stats.n += 1;
            if value.is_nan() {
                stats.nan += 1;
            } else if value.is_infinite() {
                stats.infinite += 1;
            } else {
                stats.zero += u64::from(value == 0.0);
                stats.min = stats.min.min(value);
                stats.max = stats.max.max(value);
                sum += f64::from(value);
                squares += f64::from(value) * f64::from(value);
            }
        }
        Ok(())
    })?;
    let finite = (stats.n - stats.nan - stats.infinite).max(1) as f64;
    stats.mean = sum / finite;
    stats.rms = (squares / finite).sqrt();
    if stats.min > stats.max {
        (stats.min, stats.max) = (0.0, 0.0);
    }
    stats.histogram = vec![0; BINS];
    let step = (f64::from(stats.max) - f64::from(stats.min)) / BINS as f64;
    let mut fourth = 0.0;
    parts(source, tensor, |rows| {
        values.resize((rows.end - rows.start) as usize * n_per_row, 0.0);
        source.read_rows(tensor, rows.start, &mut values)?;
        for &value in values.iter().filter(|value| value.is_finite()) {
            let value = f64::from(value);
            let bin = ((value - f64::from(stats.min)) / step) as usize;
            stats.histogram[bin.min(BINS - 1)] += 1;
            fourth += (value - stats.mean).powi(4);
        }
        Ok(())
    })?;
    let variance = stats.rms * stats.rms - stats.mean * stats.mean;
    stats.kurtosis = if variance > 0.0 { fourth / finite / (variance * variance) } else { 0.0 };
    Ok(stats)
}
