//! Gated feed-forward layers, dense and as a mixture of experts.

use super::buffers::Rows;
use super::error::EvalError;
use super::exponential::swiglu;
use super::linear::Matrix;
use super::passage::Stage;
use super::router::route;
use crate::model::Moe;
use crate::simd::Simd;
use ndarray::parallel::prelude::*;
use ndarray::{ArrayView1, ArrayView2, ArrayViewMut1, Axis};

/// `down(silu(gate(x)) · up(x))`.
#[derive(Clone, Copy)]
pub(super) struct Gated<'a> {
    pub gate: Matrix<'a>,
    pub up: Matrix<'a>,
    pub down: Matrix<'a>,
}

impl<'a> Gated<'a> {
    /// Takes `part` rows of `x` at a time, each on all threads.
    pub fn run_in_parts(&self, x: ArrayView2<f32>, part: usize) -> Result<Rows, EvalError> {
        let mut out = Rows::new(x.nrows(), x.ncols());
        let parts = x.axis_chunks_iter(Axis(0), part);
        for (x, out) in parts.zip(out.axis_chunks_iter_mut(Axis(0), part)) {
            self.down.apply_to(self.hidden_on_all(x)?.view(), out)?;
        }
        Ok(out)
    }

    /// Shows the observer what goes into `gate` and `up`, or into `down`.
    fn look(&self, x: ArrayView2<f32>, part: usize, stage: Stage) -> Result<(), EvalError> {
        if stage != Stage::Down {
            return self.gate.shown(x);
        }
        let mut parts = x.axis_chunks_iter(Axis(0), part);
        parts.try_for_each(|x| self.down.shown(self.hidden_on_all(x)?.view()))
    }

    /// What goes into `down`, on all threads.
    pub fn hidden_on_all(&self, x: ArrayView2<f32>) -> Result<Rows, EvalError> {
        let (mut hidden, up) = (self.gate.apply(x)?, self.up.apply(x)?);
        hidden
            .axis_iter_mut(Axis(0))
            .into_par_iter()
            .zip(up.axis_iter(Axis(0)))
            .for_each(|(gate, up)| gate_row(self.gate.simd, gate, up));
        Ok(hidden)
    }

    /// All rows of `x` on the calling thread.
    pub fn run_here(&self, x: ArrayView2<f32>) -> Result<Rows, EvalError> {
        self.down.apply_here(self.hidden(x)?.view())
    }

    /// What goes into `down`, on the calling thread.
    fn hidden(&self, x: ArrayView2<f32>) -> Result<Rows, EvalError> {
        let (mut hidden, up) = (self.gate.apply_here(x)?, self.up.apply_here(x)?);
        for (gate, up) in hidden.rows_mut().into_iter().zip(up.rows()) {
            gate_row(self.gate.simd, gate, up);
        }
        Ok(hidden)
    }

    /// One of several stacked.
    pub fn expert(&self, index: usize) -> Self {
        let [gate, up, down] = [self.gate, self.up, self.down].map(|m| m.matrix(index));
        Self { gate, up, down }
    }
}

fn gate_row(simd: Simd, mut gate: ArrayViewMut1<f32>, up: ArrayView1<f32>) {
    let gate = gate.as_slice_mut().expect("rows are contiguous");
    swiglu(simd, gate, up.as_slice().expect("rows are contiguous"));
}

/// A layer's feed-forward weights.
pub(super) enum FeedForward<'a> {
    Dense(Box<Gated<'a>>),
    Experts(Box<Experts<'a>>),
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

/// Experts that run at the same time, at most, and whose outputs then wait to be added.
pub(super) const WAVE: usize = 16;

impl FeedForward<'_> {
    /// `x` are the normalised inputs. Experts see all of them at once, dense layers `part` rows.
    pub fn run(&self, x: ArrayView2<f32>, part: usize) -> Result<Rows, EvalError> {
        match self {
            Self::Dense(dense) => dense.run_in_parts(x, part),
            Self::Experts(experts) => experts.run(x, part),
        }
    }

    /// Shows the observer what goes into the matrices of a stage. The inputs of the `down` of routed experts are
    /// not shown, see [`Gated::hidden_on_all`].
    pub fn look(&self, x: ArrayView2<f32>, part: usize, stage: Stage) -> Result<(), EvalError> {
        match self {
            Self::Dense(dense) => dense.look(x, part, stage),
            Self::Experts(experts) => experts.look(x, part, stage),
        }
    }
}

impl Experts<'_> {
    /// What all tokens pass: the shared experts, and the router.
    pub fn run_shared(&self, x: ArrayView2<f32>, part: usize) -> Result<(Rows, Rows), EvalError> {
        let out = match &self.shared {
            Some(shared) => shared.run_in_parts(x, part)?,
            None => {
                let mut out = Rows::new(x.nrows(), x.ncols());
                out.fill(0.0);
                out
            }
        };
        Ok((out, self.router.apply(x)?))
    }

    /// The tokens that each expert gets, and what its outputs count for them.
    fn tokens_of(&self, logits: &Rows) -> Vec<Vec<(usize, f32)>> {
        let routes: Vec<Vec<(usize, f32)>> = (logits.axis_iter(Axis(0)))
            .into_par_iter()
            .map(|logits| route(self.moe, &logits.to_vec(), self.bias.as_deref()))
            .collect();
        let mut tokens_of = vec![Vec::new(); self.moe.n_expert as usize];
        for (token, route) in routes.iter().enumerate() {
            for &(expert, weight) in route {
                tokens_of[expert].push((token, weight));
            }
        }
        tokens_of
    }

    fn look(&self, x: ArrayView2<f32>, part: usize, stage: Stage) -> Result<(), EvalError> {
        if let Some(shared) = &self.shared {
            shared.look(x, part, stage)?;
        }
        if stage == Stage::Down {
            return Ok(());
        }
        let tokens_of = self.tokens_of(&self.router.apply(x)?);
        for (expert, tokens) in tokens_of.iter().enumerate().filter(|(_, all)| !all.is_empty()) {
            let tokens: Vec<usize> = tokens.iter().map(|token| token.0).collect();
            self.routed.expert(expert).gate.shown(x.select(Axis(0), &tokens).view())?;
        }
        Ok(())
    }

    fn run(&self, x: ArrayView2<f32>, part: usize) -> Result<Rows, EvalError> {
        let (mut out, logits) = self.run_shared(x, part)?;
        for (token, row) in logits.rows().into_iter().enumerate() {
            if !row.iter().all(|logit| logit.is_finite()) {
                // An expert that is never chosen would hide it.
                out.row_mut(token).fill(f32::NAN);
            }
        }
        let tokens_of = self.tokens_of(&logits);
        // All tokens of an expert in one product; outputs are added in the order of the experts.
        let used: Vec<usize> = (0..tokens_of.len()).filter(|&e| !tokens_of[e].is_empty()).collect();
        for wave in used.chunks(WAVE) {
            let outputs: Vec<Rows> = wave
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
