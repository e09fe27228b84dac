//! What the sums of blocks of activations, as llama.cpp rounds them, change in products.
//!
//! Weights of Q4_1 and Q5_1 are `d q + m` in blocks of 32. Their dot products in llama.cpp take the
//! sum of a block of activations, which meets `m`, from `block_q8_1`, where it is stored as F16
//! (`ggml_vec_dot_q4_1_q8_1`): not quite the sum of the rounded activations.

use super::activations::{Activations, of_32, to_f16};
use super::error::EvalError;
use super::linear::Matrix;
use crate::quant::{Activation, Format, float};
use crate::simd::compiled;
use crate::source::Dtype;
use ndarray::linalg::general_mat_mul;
use ndarray::parallel::prelude::*;
use ndarray::{Array2, ArrayView2, ArrayViewMut2, Axis};

/// Values in a block.
const BLOCK: usize = 32;
/// Weights whose offsets are looked up at a time, about.
const ELEMENTS: usize = 1 << 19;

/// Adds to the products of a matrix with rounded rows of `x` what follows from the rounding of sums,
/// where there is any.
pub(super) fn correct(
    matrix: &Matrix,
    x: ArrayView2<f32>,
    mut out: ArrayViewMut2<f32>,
) -> Result<(), EvalError> {
    let Dtype::Gguf(ty) = matrix.source.tensors()[matrix.tensor].dtype else { return Ok(()) };
    let Format { bytes: block_bytes, activations: Activation::Q8_1, .. } = *ty.format() else {
        return Ok(());
    };
    if matrix.activations != Activations::Q8 {
        return Ok(());
    }
    let blocks = matrix.columns / BLOCK;
    let x = x.as_standard_layout();
    let simd = matrix.simd;
    let mut errors = Array2::zeros((x.nrows(), blocks));
    ndarray::Zip::from(errors.rows_mut()).and(x.rows()).par_for_each(|mut errors, row| {
        let row = row.as_slice().expect("the layout is the standard one");
        rounding_errors(simd, row, errors.as_slice_mut().expect("a new array is contiguous"));
    });
    let at_once = (ELEMENTS / matrix.columns.max(1)).max(1);
    out.axis_chunks_iter_mut(Axis(1), at_once).into_par_iter().enumerate().try_for_each(
        |(i, mut out)| {
            let first = matrix.first_row + (i * at_once) as u64;
            let rows = first..first + out.ncols() as u64;
            let mut bytes = Vec::new();
            if matrix.source.read_raw(matrix.tensor, rows, &mut bytes)? {
                let offsets = bytes
                    .chunks_exact(block_bytes)
                    .map(|block| float::f16_to_f32(u16::from_le_bytes([block[2], block[3]])));
                let offsets = Array2::from_shape_vec((out.ncols(), blocks), offsets.collect());
                let offsets = offsets.expect("whole rows were read");
                general_mat_mul(1.0, &errors, &offsets.t(), 1.0, &mut out);
            }
            Ok(())
        },
    )
}

compiled!(
    /// The sum that is stored for each block of a row, less that of its rounded values
    /// (`quantize_row_q8_1`).
    rounding_errors(row: &[f32], errors: &mut [f32]) -> () = each_rounding_error
);

#[inline(always)]
fn each_rounding_error(row: &[f32], errors: &mut [f32]) {
    for (error, block) in errors.iter_mut().zip(row.as_chunks::<BLOCK>().0) {
        let [step, inverse] = of_32(block);
        // Integers of 8 bits: no order of the sum rounds.
        let mut lanes = [0.0; 8];
        for x in block.as_chunks::<8>().0 {
            lanes.iter_mut().zip(x).for_each(|(sum, x)| *sum += (x * inverse).round_ties_even());
        }
        let sum: f32 = lanes.iter().sum();
        *error = to_f16(step * sum) - to_f16(step) * sum;
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::quant::{Guide, QuantType};
    use crate::simd::Simd;
    use crate::source::{Source, SourceError, Storage, TensorMeta};
    use std::ops::Range;

    #[test]
    fn sums_are_rounded_to_f16() {
        // Steps of 1: the scale is exact, and so is a sum below 2048.
        let mut row = [127.0; 4 * BLOCK];
        row[..BLOCK / 2].fill(0.0);
        // Between 2048 and 4096 every second integer is an F16.
        row[2 * BLOCK] = 126.0;
        row[3 * BLOCK..].fill(0.0);
        let mut errors = [9.0; 4];
        rounding_errors(Simd::detect(), &row, &mut errors);
        assert_eq!(errors.map(f32::abs), [0.0, 0.0, 1.0, 0.0]);
    }

    /// A tensor of Q4_1 or Q5_1 alone.
    struct Alone([TensorMeta; 1], Vec<u8>);

    impl Source for Alone {
        fn tensors(&self) -> &[TensorMeta] {
            &self.0
        }

        fn read_rows(&self, _: usize, first: u64, out: &mut [f32]) -> Result<(), SourceError> {
            let Dtype::Gguf(ty) = self.0[0].dtype else { unreachable!() };
            let width = self.0[0].dims[0] as usize;
            let bytes = &self.1[first as usize * ty.row_bytes(width).unwrap()..];
            let rows = out.len() / width;
            ty.decode_rows(&bytes[..rows * ty.row_bytes(width).unwrap()], width, out).unwrap();
            Ok(())
        }

        fn read_raw(
            &self,
            _: usize,
            rows: Range<u64>,
            out: &mut Vec<u8>,
        ) -> Result<bool, SourceError> {
            let row = self.1.len() / self.0[0].dims[1] as usize;
            *out = self.1[rows.start as usize * row..rows.end as usize * row].to_vec();
            Ok(true)
        }
    }

    impl Storage for Alone {}

    #[test]
    fn products_are_those_of_integers_and_rounded_sums() {
        let wave = |i: usize| ((i * i * 7 + 3 * i) % 1013) as f32 / 1013.0;
        let (width, rows) = (96, 70);
        for ty in [QuantType::Q4_1, QuantType::Q5_1] {
            // Far from zero, as no trained weights are, so that sums count.
            let weights: Vec<f32> = (0..width * rows).map(|i| 40.0 + wave(i)).collect();
            let mut bytes = vec![0; rows * ty.row_bytes(width).unwrap()];
            ty.encode_rows(&weights, width, Guide::Plain, &mut bytes).unwrap();
            let x = Array2::from_shape_fn((3, width), |(i, j)| wave(i * width + j + 5) + 0.1);
            let dims = vec![width as u64, rows as u64];
            let meta = TensorMeta { name: "w".to_owned(), dims, dtype: Dtype::Gguf(ty) };
            let source = Alone([meta], bytes);
            let product = |activations, x: &Array2<f32>| {
                let matrix = Matrix {
                    source: &source,
                    tensor: 0,
                    first_row: 0,
                    rows,
                    columns: width,
                    simd: Simd::detect(),
                    activations,
                    observer: None,
                };
                matrix.apply(x.view()).unwrap().view().to_owned()
            };
            let found = product(Activations::Q8, &x);
            let rounded = Activations::Q8.round(Simd::Portable, Dtype::Gguf(ty), x.view()).unwrap();
            let without = product(Activations::F32, &rounded);
            let mut decoded = vec![0.0; width];
            let (mut furthest, mut apart) = (0f64, 0f64);
            for row in 0..rows {
                source.read_rows(0, row as u64, &mut decoded).unwrap();
                for i in 0..3 {
                    let mut expected = 0.0;
                    for block in 0..width / BLOCK {
                        let at = block * BLOCK;
                        let n = ty.block_bytes();
                        let stored = &source.1[(row * width / BLOCK + block) * n..];
                        let m = float::f16_to_f32(u16::from_le_bytes([stored[2], stored[3]]));
                        let most =
                            x.row(i).iter().skip(at).take(BLOCK).fold(0f32, |a, &b| a.max(b));
                        let steps = |j: usize| (x[[i, j]] * (127.0 / most)).round_ties_even();
                        let sum: f32 = (at..at + BLOCK).map(steps).sum();
                        let sum = float::f16_to_f32(float::f32_to_f16(most / 127.0 * sum));
                        expected += f64::from(m) * f64::from(sum);
                        for j in at..at + BLOCK {
                            expected += f64::from(decoded[j] - m) * f64::from(rounded[[i, j]]);
                        }
                    }
                    furthest = furthest.max((f64::from(found[[i, row]]) / expected - 1.0).abs());
                    apart = apart.max((f64::from(without[[i, row]]) / expected - 1.0).abs());
                }
            }
            assert!(furthest < 2e-6 && apart > 2e-5, "{ty}: {furthest} and {apart}");
        }
    }
}
