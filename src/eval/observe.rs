//! Watching products from outside: for importance matrices, and for the error of single tensors.

use super::error::EvalError;
use ndarray::ArrayView2;

/// Sees what goes into the matrices of the layers, and what comes out; in a comparison those of the output
/// matrix as well.
pub trait Observer: Sync {
    /// Rows of `x` have been multiplied with a matrix of a tensor (numbered where several are
    /// stacked) and have given rows of `y`, which have no columns where nobody needs the product. Called from
    /// many threads at once.
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

    /// As [`Observer::product`], where rows of `x` have been multiplied with the transpose of a matrix: those
    /// of `attn_k_b`, unless keys stay [compressed](super::Model::keep_compressed). What goes into the
    /// matrix as it is stored is not known then.
    ///
    /// # Errors
    /// As [`Observer::product`].
    fn transposed_product(
        &self,
        _tensor: usize,
        _matrix: usize,
        _x: ArrayView2<f32>,
        _y: ArrayView2<f32>,
    ) -> Result<(), EvalError> {
        Ok(())
    }

    /// Tokens have been embedded, by the tensor with this number.
    ///
    /// # Errors
    /// As [`Observer::product`].
    fn embedded(
        &self,
        _tensor: usize,
        _tokens: &[u32],
        _states: ArrayView2<f32>,
    ) -> Result<(), EvalError> {
        Ok(())
    }

    /// What has been seen of a layer so far, so that an evaluation that is stopped can go on.
    fn seen(&self, layer: u32) -> Vec<u8>;

    /// Takes up what an earlier process had seen of a layer.
    ///
    /// # Errors
    /// Bytes that [`Observer::seen`] did not make.
    fn take_up(&self, layer: u32, seen: &[u8]) -> Result<(), EvalError>;
}

/// The tensors of a layer among all, by number.
pub(super) fn of_layer(names: &[String], layer: u32) -> impl Iterator<Item = usize> + '_ {
    let begin = format!("blk.{layer}.");
    (0..names.len()).filter(move |&i| names[i].starts_with(&begin))
}

/// Numbers of eight bytes, read one after the other.
pub(super) struct Words<'b>(pub std::slice::Iter<'b, [u8; 8]>);

impl<'b> Words<'b> {
    pub fn new(bytes: &'b [u8]) -> Self {
        Self(bytes.as_chunks().0.iter())
    }

    /// The next number.
    pub fn next(&mut self) -> Result<u64, EvalError> {
        let word = self.0.next().ok_or(EvalError::Seen)?;
        Ok(u64::from_le_bytes(*word))
    }
}
