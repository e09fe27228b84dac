//! Watching products from outside: for importance matrices, and for the error of single tensors.

use super::error::EvalError;
use ndarray::ArrayView2;

/// Sees what goes into the matrices of the layers, and what comes out.
pub trait Observer: Sync {
    /// Rows of `x` have been multiplied with a matrix of a tensor (numbered where several are
    /// stacked) and have given rows of `y`. Called from many threads at once.
    ///
    /// # Errors
    /// Whatever the observer finds; the pass ends with it.
    fn product(
        &self,
        tensor: usize,
        matrix: usize,
        x: ArrayView2<f32>,
        y: ArrayView2<f32>,
    ) -> Result<(), EvalError>;
}
