//! Gated feed-forward layers, dense and as a mixture of experts.

use super::error::EvalError;
use super::exponential::swiglu;
use super::linear::Matrix;
use super::router::route;
use crate::model::Moe;
use ndarray::parallel::prelude::*;
use ndarray::{Array2, ArrayView2, Axis};

/// `down(silu(gate(x)) · up(x))`.
#[derive(Clone, Copy)]
pub(super) struct Gated<'a> {
    pub gate: Matrix<'a>,
    pub up: Matrix<'a>,
    pub down: Matrix<'a>,
}

impl<'a> Gated<'a> {
    pub fn run(&self, x: ArrayView2<f32>) -> Result<Array2<f32>, EvalError> {
        let mut hidden = self.gate.apply(x)?;
        gate(&mut hidden, &self.up.apply(x)?);
        self.down.apply(hidden.view())
    }

    /// As [`Gated::run`] on the calling thread.
    fn run_here(&self, x: ArrayView2<f32>) -> Result<Array2<f32>, EvalError> {
        let mut hidden = self.gate.apply_here(x)?;
        gate(&mut hidden, &self.up.apply_here(x)?);
        self.down.apply_here(hidden.view())
    }

    /// One of several stacked.
    fn expert(&self, index: usize) -> Self {
        let matrix = |m: Matrix<'a>| Matrix { first_row: (index * m.rows) as u64, ..m };
        Self { gate: matrix(self.gate), up: matrix(self.up), down: matrix(self.down) }
    }
}

fn gate(hidden: &mut Array2<f32>, up: &Array2<f32>) {
    let hidden = hidden.as_slice_mut().expect("products are contiguous");
    swiglu(hidden, up.as_slice().expect("products are contiguous"));
}

/// A layer's feed-forward weights.
pub(super) enum FeedForward<'a> {
    Dense(Gated<'a>),
    Experts(Box<Experts<'a>>),
}

impl FeedForward<'_> {
    /// `x` are the normalised inputs.
    pub fn run(&self, x: ArrayView2<f32>) -> Result<Array2<f32>, EvalError> {
        match self {
            Self::Dense(dense) => dense.run(x),
            Self::Experts(experts) => experts.run(x),
        }
    }
}

/// A mixture of experts.
pub(super) struct Experts<'a> {
    pub moe: &'a Moe,
    pub router: Matrix<'a>,
    pub bias: Option<Vec<f32>>,
    /// All experts, stacked.
    pub routed: Gated<'a>,
    pub shared: Option<Gated<'a>>,
}

/// Experts whose outputs wait to be added, at most, for each thread.
const WAVE: usize = 4;

impl Experts<'_> {
    fn run(&self, x: ArrayView2<f32>) -> Result<Array2<f32>, EvalError> {
        let mut out = match &self.shared {
            Some(shared) => shared.run(x)?,
            None => Array2::zeros(x.raw_dim()),
        };
        let logits = self.router.apply(x)?;
        let mut tokens_of: Vec<Vec<(usize, f32)>> = vec![Vec::new(); self.moe.n_expert as usize];
        for (token, logits) in logits.axis_iter(Axis(0)).enumerate() {
            let logits = logits.to_vec();
            for (expert, weight) in route(self.moe, &logits, self.bias.as_deref()) {
                tokens_of[expert].push((token, weight));
            }
        }
        // All tokens of an expert in one product; outputs are added in the order of the experts.
        let used: Vec<usize> = (0..tokens_of.len()).filter(|&e| !tokens_of[e].is_empty()).collect();
        for wave in used.chunks(WAVE * rayon::current_num_threads()) {
            let outputs: Vec<Array2<f32>> = wave
                .par_iter()
                .map(|&expert| {
                    let tokens: Vec<usize> = tokens_of[expert].iter().map(|t| t.0).collect();
                    self.routed.expert(expert).run_here(x.select(Axis(0), &tokens).view())
                })
                .collect::<Result<_, _>>()?;
            for (&expert, output) in wave.iter().zip(&outputs) {
                for (&(token, weight), output) in tokens_of[expert].iter().zip(output.rows()) {
                    out.row_mut(token).scaled_add(weight, &output);
                }
            }
        }
        Ok(out)
    }
}
