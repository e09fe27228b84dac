//! Root-mean-square normalisation.

use super::exponential::square_sum;
use crate::quant::Simd;
use ndarray::{Array2, ArrayView2, Axis};
use rayon::prelude::*;

/// `y = x / sqrt(mean(x²) + eps) · weight` for each row, the mean summed in f64
/// (`ggml_compute_forward_rms_norm_f32`).
pub(super) fn rms_norm(x: ArrayView2<f32>, weight: &[f32], eps: f32) -> Array2<f32> {
    let mut out = x.to_owned();
    out.axis_iter_mut(Axis(0)).into_par_iter().for_each(|mut row| {
        if let Some(row) = row.as_slice_mut() {
            rms_norm_row(row, weight, eps);
        }
    });
    out
}

fn rms_norm_row(row: &mut [f32], weight: &[f32], eps: f32) {
    let scale = 1.0 / ((square_sum(Simd::detect(), row) / row.len() as f64) as f32 + eps).sqrt();
    for (v, w) in row.iter_mut().zip(weight) {
        *v = *v * scale * w;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rows_are_scaled_to_unit_mean_square_times_weight() {
        let x = Array2::from_shape_vec((1, 4), vec![3.0, -3.0, 3.0, -3.0]).unwrap();
        let y = rms_norm(x.view(), &[1.0, 2.0, 3.0, 4.0], 0.0);
        assert_eq!(y.as_slice().unwrap(), [1.0, -2.0, 3.0, -4.0]);
    }
}
