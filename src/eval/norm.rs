//! Root-mean-square normalisation.

use super::buffers::Rows;
use super::exponential::square_sum;
use crate::simd::Simd;
use ndarray::parallel::prelude::*;
use ndarray::{ArrayView2, Axis};

/// `y = x / sqrt(mean(x²) + eps) · weight` for each row, the mean summed in f64
/// (`ggml_compute_forward_rms_norm_f32`).
pub(super) fn rms_norm(simd: Simd, x: ArrayView2<f32>, weight: &[f32], eps: f32) -> Rows {
    let mut out = Rows::new(x.nrows(), x.ncols());
    let rows = out.axis_iter_mut(Axis(0)).into_par_iter().zip(x.axis_iter(Axis(0)));
    rows.for_each(|(mut row, x)| {
        row.assign(&x);
        rms_norm_row(simd, row.as_slice_mut().expect("rows are contiguous"), weight, eps);
    });
    out
}

fn rms_norm_row(simd: Simd, row: &mut [f32], weight: &[f32], eps: f32) {
    let scale = 1.0 / ((square_sum(simd, row) / row.len() as f64) as f32 + eps).sqrt();
    for (v, w) in row.iter_mut().zip(weight) {
        *v = *v * scale * w;
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use ndarray::Array2;

    #[test]
    fn rows_are_scaled_to_unit_mean_square_times_weight() {
        let x = Array2::from_shape_vec((1, 4), vec![3.0, -3.0, 3.0, -3.0]).unwrap();
        let y = rms_norm(Simd::Portable, x.view(), &[1.0, 2.0, 3.0, 4.0], 0.0);
        assert_eq!(y.as_slice().unwrap(), [1.0, -2.0, 3.0, -4.0]);
    }
}
