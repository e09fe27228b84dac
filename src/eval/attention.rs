//! Multi-head latent attention, with keys and values decompressed for each head.

use super::error::EvalError;
use super::linear::Matrix;
use super::norm::rms_norm;
use super::rope::{Rotary, rotate, score_scale};
use crate::model::Hparams;
use ndarray::parallel::prelude::*;
use ndarray::{Array2, ArrayView2, ArrayViewMut2, Axis, s};

/// A layer's attention weights.
pub(super) struct Attention<'a> {
    pub query: Query<'a>,
    pub kv_a: Matrix<'a>,
    pub kv_a_norm: Vec<f32>,
    /// `[kv_lora, nope]` for each head.
    pub k_b: Matrix<'a>,
    /// `[v, kv_lora]` for each head.
    pub v_b: Matrix<'a>,
    pub output: Matrix<'a>,
}

/// The way from the residual stream to queries.
pub(super) enum Query<'a> {
    Direct(Matrix<'a>),
    LowRank { a: Matrix<'a>, norm: Vec<f32>, b: Matrix<'a> },
}

impl Attention<'_> {
    /// Attention over chunks of `ctx` tokens, each on its own. `x` are the normalised inputs.
    pub fn run(
        &self,
        hparams: &Hparams,
        rotary: &Rotary,
        x: ArrayView2<f32>,
        ctx: usize,
    ) -> Result<Array2<f32>, EvalError> {
        let a = &hparams.attention;
        let [nope, rope, kv_lora, v] =
            [a.qk_nope, a.qk_rope, a.kv_lora_rank, a.v_head].map(|n| n as usize);
        let mut q = match &self.query {
            Query::Direct(matrix) => matrix.apply(x)?,
            Query::LowRank { a, norm, b } => {
                b.apply(rms_norm(a.apply(x)?.view(), norm, hparams.rms_eps).view())?
            }
        };
        let kv = self.kv_a.apply(x)?;
        let latent = rms_norm(kv.slice(s![.., ..kv_lora]), &self.kv_a_norm, hparams.rms_eps);
        let mut k_pe = kv.slice(s![.., kv_lora..]).to_owned();
        let turns: Vec<_> = (0..ctx).map(|position| rotary.at(position)).collect();
        q.axis_iter_mut(Axis(0)).into_par_iter().enumerate().for_each(|(token, mut row)| {
            let row = row.as_slice_mut().expect("rows are contiguous");
            for head in row.chunks_exact_mut(nope + rope) {
                rotate(&mut head[nope..], &turns[token % ctx]);
            }
        });
        for (token, mut row) in k_pe.axis_iter_mut(Axis(0)).enumerate() {
            rotate(row.as_slice_mut().expect("rows are contiguous"), &turns[token % ctx]);
        }
        let scale = score_scale(&hparams.rope, nope + rope);
        let mut heads = Array2::zeros((x.nrows(), a.n_head as usize * v));
        heads
            .axis_chunks_iter_mut(Axis(1), v)
            .into_par_iter()
            .zip(q.axis_chunks_iter(Axis(1), nope + rope))
            .enumerate()
            .try_for_each(|(h, (mut out, q))| -> Result<(), EvalError> {
                let k_b = self.k_b.decode(h * kv_lora, kv_lora)?;
                let v_b = self.v_b.decode(h * v, v)?;
                let (k_nope, values) = (latent.dot(&k_b), latent.dot(&v_b.t()));
                for start in (0..x.nrows()).step_by(ctx) {
                    let chunk = start..(start + ctx).min(x.nrows());
                    let rows = s![chunk.clone(), ..];
                    let q = q.slice(rows);
                    let mut scores = q.slice(s![.., ..nope]).dot(&k_nope.slice(rows).t());
                    scores += &q.slice(s![.., nope..]).dot(&k_pe.slice(rows).t());
                    causal_softmax(scores.view_mut(), scale);
                    out.slice_mut(rows).assign(&scores.dot(&values.slice(rows)));
                }
                Ok(())
            })?;
        self.output.apply(heads.view())
    }
}

/// Softmax of each row over its own position and those before it; the rest becomes 0.
fn causal_softmax(mut scores: ArrayViewMut2<f32>, scale: f32) {
    for (i, mut row) in scores.axis_iter_mut(Axis(0)).enumerate() {
        let row = row.as_slice_mut().expect("scores are contiguous");
        let (seen, unseen) = row.split_at_mut(i + 1);
        unseen.fill(0.0);
        let mut max = f32::NEG_INFINITY;
        for s in seen.iter_mut() {
            *s *= scale;
            max = max.max(*s);
        }
        let mut sum = 0f64;
        for s in seen.iter_mut() {
            *s = (*s - max).exp();
            sum += f64::from(*s);
        }
        let norm = (1.0 / sum) as f32;
        seen.iter_mut().for_each(|s| *s *= norm);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn positions_attend_to_themselves_and_before() {
        let mut scores = Array2::from_shape_vec((2, 2), vec![5.0, 9.0, 1.0, 1.0]).unwrap();
        causal_softmax(scores.view_mut(), 0.5);
        assert_eq!(scores.as_slice().unwrap(), [1.0, 0.0, 0.5, 0.5]);
    }
}
