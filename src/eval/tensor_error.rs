//! The error that each quantized tensor causes alone: its products against the reference's, on the
//! reference's own activations.

use super::activations::Activations;
use super::error::EvalError;
use super::exact::Apart;
use super::linear::Matrix;
use super::observe::{Observer, Words, of_layer};
use crate::simd::Simd;
use crate::source::Source;
use ndarray::ArrayView2;
use std::sync::{Mutex, PoisonError};

/// Compares every product of the model that it observes with that of another model's tensor of the
/// same name. Made before the model that it observes.
pub struct TensorErrors<'a> {
    names: Vec<String>,
    other: &'a dyn Source,
    simd: Simd,
    activations: Activations,
    /// The other's tensor, for each of the reference's.
    partners: Vec<Option<usize>>,
    sums: Vec<Mutex<Apart>>,
    /// The tensor that tokens are embedded by, and the errors of embedded tokens.
    embedding: Mutex<Option<(usize, Apart)>>,
}

/// What is added to the name of the embedding where it serves as output matrix, for the error of those products.
pub const AS_OUTPUT: &str = " as output";

impl<'a> TensorErrors<'a> {
    /// Pairs the tensors of two models that multiply in the same way.
    pub fn new(
        reference: &dyn Source,
        other: &'a dyn Source,
        simd: Simd,
        activations: Activations,
    ) -> Self {
        let partner = |meta: &crate::source::TensorMeta| {
            let i = other.find(&meta.name)?;
            let found = &other.tensors()[i];
            let same = found.n_per_row() == meta.n_per_row() && found.n_rows() == meta.n_rows();
            same.then_some(i)
        };
        let partners: Vec<_> = reference.tensors().iter().map(partner).collect();
        let sums = partners.iter().map(|_| Mutex::default()).collect();
        let names = reference.tensors().iter().map(|t| t.name.clone()).collect();
        let embedding = Mutex::default();
        Self { names, other, simd, activations, partners, sums, embedding }
    }

    /// The error of each tensor's output, in the order of the reference, and of embedded tokens; tensors
    /// that took no part are left out.
    pub fn sums(&self) -> Vec<(String, Apart)> {
        let embedding = *self.embedding.lock().unwrap_or_else(PoisonError::into_inner);
        let tied = embedding.map(|(tensor, _)| tensor);
        let of_products = self.names.iter().zip(&self.sums).enumerate().map(|(i, (name, sum))| {
            let as_output = if tied == Some(i) { AS_OUTPUT } else { "" };
            let sum = *sum.lock().unwrap_or_else(PoisonError::into_inner);
            (format!("{name}{as_output}"), sum)
        });
        let embedded = embedding.map(|(tensor, sum)| (self.names[tensor].clone(), sum));
        let all = embedded.into_iter().chain(of_products);
        all.filter(|(_, sum)| *sum != Apart::default()).collect()
    }
}

impl Observer for TensorErrors<'_> {
    fn product(
        &self,
        tensor: usize,
        matrix: usize,
        x: ArrayView2<f32>,
        y: ArrayView2<f32>,
    ) -> Result<(), EvalError> {
        let Some(partner) = self.partners[tensor] else { return Ok(()) };
        let rows = y.ncols();
        let other = Matrix {
            source: self.other,
            tensor: partner,
            first_row: (matrix * rows) as u64,
            rows,
            columns: x.ncols(),
            simd: self.simd,
            activations: self.activations,
            observer: None,
        };
        let found = other.apply_here(x)?;
        let mut sum = Apart::default();
        y.rows().into_iter().zip(found.rows()).for_each(|(y, found)| sum.add(y, found));
        *self.sums[tensor].lock().unwrap_or_else(PoisonError::into_inner) += sum;
        Ok(())
    }

    fn embedded(
        &self,
        tensor: usize,
        tokens: &[u32],
        states: ArrayView2<f32>,
    ) -> Result<(), EvalError> {
        let Some(partner) = self.partners[tensor] else { return Ok(()) };
        let mut row = vec![0.0; states.ncols()];
        let mut sum = Apart::default();
        for (&token, state) in tokens.iter().zip(states.rows()) {
            self.other.read_rows(partner, token.into(), &mut row)?;
            sum.add(state, &row);
        }
        let mut embedding = self.embedding.lock().unwrap_or_else(PoisonError::into_inner);
        embedding.get_or_insert((tensor, Apart::default())).1 += sum;
        Ok(())
    }

    fn seen(&self, layer: u32) -> Vec<u8> {
        let words = of_layer(&self.names, layer).flat_map(|tensor| {
            self.sums[tensor].lock().unwrap_or_else(PoisonError::into_inner).words()
        });
        words.flat_map(u64::to_le_bytes).collect()
    }

    fn take_up(&self, layer: u32, seen: &[u8]) -> Result<(), EvalError> {
        let mut words = Words::new(seen);
        for tensor in of_layer(&self.names, layer) {
            let sum = [words.next()?, words.next()?, words.next()?, words.next()?];
            *self.sums[tensor].lock().unwrap_or_else(PoisonError::into_inner) =
                Apart::from_words(sum);
        }
        Ok(())
    }
}
