//! Attention over chunks of tokens: latent, with keys and values decompressed for each head, and
//! grouped, where several heads share keys and values.

use super::buffers::Rows;
use super::error::EvalError;
use super::exponential::softmax;
use super::gemm::{Panels, packed};
use super::indexer::{Hidden, Indexer, fill};
use super::linear::Matrix;
use super::norm::rms_norm;
use super::rope::{Rotary, rotate, score_scale};
use crate::model::{self, Hparams, Pairs};
use crate::simd::Simd;
use ndarray::parallel::prelude::*;
use ndarray::{Array2, ArrayView2, ArrayViewMut2, Axis, CowArray, Ix2, s};

/// A layer's attention.
pub(super) enum Attention<'a> {
    Latent(Latent<'a>, &'a model::Latent),
    Grouped(Grouped<'a>, &'a model::Grouped),
}

/// The weights of grouped-query attention. A projection may have a bias.
pub(super) struct Grouped<'a> {
    pub query: Biased<'a>,
    pub key: Biased<'a>,
    pub value: Biased<'a>,
    pub output: Biased<'a>,
    /// Weights of the norms of each head of queries and keys.
    pub norms: Option<[Vec<f32>; 2]>,
}

/// A matrix and what is added to its product.
pub(super) struct Biased<'a> {
    pub matrix: Matrix<'a>,
    pub bias: Option<Vec<f32>>,
}

impl Biased<'_> {
    fn apply(&self, x: ArrayView2<f32>) -> Result<Rows, EvalError> {
        let mut out = self.matrix.apply(x)?;
        if let Some(bias) = &self.bias {
            *out += &ndarray::ArrayView1::from(bias);
        }
        Ok(out)
    }
}

/// The weights of latent attention.
pub(super) struct Latent<'a> {
    pub query: Query<'a>,
    pub kv_a: Matrix<'a>,
    pub kv_a_norm: Vec<f32>,
    /// `[kv_lora, nope]` for each head.
    pub k_b: Matrix<'a>,
    /// `[v, kv_lora]` for each head.
    pub v_b: Matrix<'a>,
    pub output: Matrix<'a>,
    /// What chooses the tokens that are attended to, if not all are.
    pub indexer: Option<Box<Indexer<'a>>>,
    /// Whether keys and values stay compressed, so that queries and mixed latents pass the matrices
    /// instead, which costs more here.
    pub compressed: bool,
}

/// The way from the residual stream to queries.
pub(super) enum Query<'a> {
    Direct(Matrix<'a>),
    LowRank { a: Matrix<'a>, norm: Vec<f32>, b: Matrix<'a> },
}

/// How tokens are cut into chunks, each on its own, and which of them ask: all are keys and values, but
/// the first ones of each chunk need no result.
#[derive(Clone, Copy)]
pub(super) struct Chunks {
    /// Tokens of a chunk; the last may have fewer.
    pub ctx: usize,
    /// Tokens of each chunk without a result.
    pub first: usize,
}

impl Chunks {
    /// The rows of the tokens that ask.
    pub fn tails<'x>(self, x: ArrayView2<'x, f32>) -> CowArray<'x, f32, Ix2> {
        if self.first == 0 {
            return x.into();
        }
        let tokens = (0..x.nrows()).filter(|token| token % self.ctx >= self.first);
        x.select(Axis(0), &tokens.collect::<Vec<_>>()).into()
    }
}

/// Queries that are scored together: against the keys up to the last of them, not all. Two tiles of
/// the widest kernel.
pub(super) const QUERIES: usize = 28;

impl Attention<'_> {
    /// Attention within chunks, for the tokens that ask. `x` are the normalised inputs of all.
    pub fn run(
        &self,
        hparams: &Hparams,
        rotary: &Rotary,
        x: ArrayView2<f32>,
        chunks: Chunks,
    ) -> Result<Rows, EvalError> {
        let heads = self.heads(hparams, rotary, x, chunks)?;
        match self {
            Self::Latent(weights, _) => weights.output.apply(heads.view()),
            Self::Grouped(weights, _) => weights.output.apply(heads.view()),
        }
    }

    /// The matrix back to the width of the states.
    pub fn output(&self) -> &Matrix<'_> {
        match self {
            Self::Latent(weights, _) => &weights.output,
            Self::Grouped(weights, _) => &weights.output.matrix,
        }
    }

    /// What all heads give, side by side: what goes into the output matrix.
    pub fn heads(
        &self,
        hparams: &Hparams,
        rotary: &Rotary,
        x: ArrayView2<f32>,
        chunks: Chunks,
    ) -> Result<Rows, EvalError> {
        match self {
            Self::Latent(weights, a) => weights.heads(hparams, a, rotary, x, chunks),
            Self::Grouped(weights, a) => weights.heads(hparams, a, rotary, x, chunks),
        }
    }
}

impl Latent<'_> {
    fn heads(
        &self,
        hparams: &Hparams,
        a: &model::Latent,
        rotary: &Rotary,
        x: ArrayView2<f32>,
        chunks: Chunks,
    ) -> Result<Rows, EvalError> {
        let [nope, rope, kv_lora, v] =
            [a.qk_nope, a.qk_rope, a.kv_lora_rank, a.v_head].map(|n| n as usize);
        let simd = self.output.simd;
        let asking = chunks.tails(x);
        let mut hidden = None;
        let mut q = match &self.query {
            Query::Direct(matrix) => matrix.apply(asking.view())?,
            Query::LowRank { a, norm, b } => {
                let low = a.apply(asking.view())?;
                let low = rms_norm(simd, low.view(), norm, hparams.rms_eps);
                if let Some(indexer) = &self.indexer {
                    hidden = indexer.hidden(rotary, x, low.view(), chunks)?;
                }
                b.apply(low.view())?
            }
        };
        let hidden = hidden.as_ref();
        let all = Chunks { first: 0, ..chunks };
        let kv = self.kv_a.apply(x)?;
        let latent = rms_norm(simd, kv.slice(s![.., ..kv_lora]), &self.kv_a_norm, hparams.rms_eps);
        let mut k_pe = Rows::copy(kv.slice(s![.., kv_lora..]));
        turn(&mut q, nope + rope, nope, rotary, chunks, Pairs::Neighbours);
        turn(&mut k_pe, rope, 0, rotary, all, Pairs::Neighbours);
        let cached = self.compressed.then(|| {
            let mut cached = side_by_side(latent.view(), k_pe.view());
            self.kv_a.activations.cache(simd, &mut cached);
            cached
        });
        let scale = score_scale(&hparams.rope, nope + rope);
        let mut heads = Rows::new(q.nrows(), a.n_head as usize * v);
        heads
            .axis_chunks_iter_mut(Axis(1), v)
            .into_par_iter()
            .zip(q.axis_chunks_iter(Axis(1), nope + rope))
            .enumerate()
            .try_for_each(|(h, (mut out, q))| -> Result<(), EvalError> {
                if let Some(cached) = &cached {
                    let (q_nope, q_pe) = q.split_at(Axis(1), nope);
                    let q = self.k_b.matrix(h).apply_here(q_nope)?;
                    let q = side_by_side(q.view(), q_pe);
                    let values = cached.slice(s![.., ..kv_lora]);
                    let mut mixed = Rows::new(q.nrows(), values.ncols());
                    let mixing = mixed.view_mut();
                    attend(simd, q.view(), cached.view(), values, mixing, chunks, scale, hidden);
                    out.assign(&self.v_b.matrix(h).apply_here(mixed.view())?);
                    return Ok(());
                }
                let k_b = self.k_b.decode(h * kv_lora, kv_lora)?;
                let v_b = self.v_b.decode(h * v, v)?;
                let mut values = Rows::new(x.nrows(), v);
                product(simd, latent.view(), v_b.view(), values.view_mut());
                let mut keys = Rows::new(x.nrows(), nope + rope);
                product(simd, latent.view(), k_b.t(), keys.slice_mut(s![.., ..nope]));
                self.k_b
                    .matrix(h)
                    .observed_transposed(latent.view(), keys.slice(s![.., ..nope]))?;
                self.v_b.matrix(h).observed(latent.view(), values.view())?;
                keys.slice_mut(s![.., nope..]).assign(&k_pe);
                attend(simd, q, keys.view(), values.view(), out, chunks, scale, hidden);
                Ok(())
            })?;
        Ok(heads)
    }
}

/// Rows of two matrices as one, contiguous; ndarray's `concatenate` would make columns so.
fn side_by_side(a: ArrayView2<f32>, b: ArrayView2<f32>) -> Rows {
    let mut out = Rows::new(a.nrows(), a.ncols() + b.ncols());
    out.slice_mut(s![.., ..a.ncols()]).assign(&a);
    out.slice_mut(s![.., a.ncols()..]).assign(&b);
    out
}

impl Grouped<'_> {
    fn heads(
        &self,
        hparams: &Hparams,
        a: &model::Grouped,
        rotary: &Rotary,
        x: ArrayView2<f32>,
        chunks: Chunks,
    ) -> Result<Rows, EvalError> {
        let (width, simd) = (a.head_dim as usize, self.output.matrix.simd);
        let all = Chunks { first: 0, ..chunks };
        let (mut q, mut k) = (self.query.apply(chunks.tails(x).view())?, self.key.apply(x)?);
        let mut values = self.value.apply(x)?;
        if let Some(norms) = &self.norms {
            for (x, weight) in [(&mut q, &norms[0]), (&mut k, &norms[1])] {
                for mut head in x.axis_chunks_iter_mut(Axis(1), width) {
                    let normed = rms_norm(simd, head.view(), weight, hparams.rms_eps);
                    head.assign(&normed);
                }
            }
        }
        turn(&mut q, width, 0, rotary, chunks, a.pairs);
        turn(&mut k, width, 0, rotary, all, a.pairs);
        for cached in [&mut k, &mut values] {
            self.key.matrix.activations.cache(simd, cached);
        }
        let scale = score_scale(&hparams.rope, width);
        let group = (a.n_head / a.n_head_kv) as usize;
        let mut heads = Rows::new(q.nrows(), q.ncols());
        heads
            .axis_chunks_iter_mut(Axis(1), group * width)
            .into_par_iter()
            .zip(q.axis_chunks_iter(Axis(1), group * width))
            .enumerate()
            .for_each(|(h, (out, q))| {
                let of_head = s![.., h * width..(h + 1) * width];
                let (keys, values) = (k.slice(of_head), values.slice(of_head));
                attend(simd, q, keys, values, out, chunks, scale, None);
            });
        Ok(heads)
    }
}

/// Rotates every head of every token by its position within its chunk; the dimensions of a head
/// before `first` stay.
fn turn(
    x: &mut Array2<f32>,
    width: usize,
    first: usize,
    rotary: &Rotary,
    chunks: Chunks,
    pairs: Pairs,
) {
    let turns: Vec<_> = (chunks.first..chunks.ctx).map(|position| rotary.at(position)).collect();
    x.axis_iter_mut(Axis(0)).into_par_iter().enumerate().for_each(|(token, mut row)| {
        let row = row.as_slice_mut().expect("rows are contiguous");
        for head in row.chunks_exact_mut(width) {
            rotate(&mut head[first..], &turns[token % turns.len()], pairs);
        }
    });
}

/// `out = x · Wᵀ` on the calling thread.
fn product(simd: Simd, x: ArrayView2<f32>, weights: ArrayView2<f32>, out: ArrayViewMut2<f32>) {
    let panels = packed(weights);
    Panels { values: panels.values(), columns: weights.ncols(), simd }.multiply_here(x, out);
}

/// Heads that share keys and values, side by side in `q` and `out`: `softmax(scale q kᵀ) v` over
/// each chunk, `hidden` left out. Rows of `q` are the tokens that ask.
#[expect(clippy::too_many_arguments, reason = "one call for each head, with what all have")]
fn attend(
    simd: Simd,
    q: ArrayView2<f32>,
    keys: ArrayView2<f32>,
    values: ArrayView2<f32>,
    mut out: ArrayViewMut2<f32>,
    Chunks { ctx, first }: Chunks,
    scale: f32,
    hidden: Option<&Hidden>,
) {
    let (width, width_out) = (keys.ncols(), values.ncols());
    out.axis_chunks_iter_mut(Axis(0), ctx - first)
        .into_par_iter()
        .zip(q.axis_chunks_iter(Axis(0), ctx - first))
        .zip(keys.axis_chunks_iter(Axis(0), ctx))
        .zip(values.axis_chunks_iter(Axis(0), ctx))
        .enumerate()
        .for_each(|(chunk, (((mut out, q), keys), values))| {
            let hidden = hidden.map(|hidden| (hidden, chunk * (ctx - first)));
            let n = keys.nrows();
            let (key_panels, value_panels) = (packed(keys), packed(values.t()));
            let keys = Panels { values: key_panels.values(), columns: width, simd };
            let values = Panels { values: value_panels.values(), columns: n, simd };
            out.axis_chunks_iter_mut(Axis(1), width_out)
                .into_par_iter()
                .zip(q.axis_chunks_iter(Axis(1), width))
                .for_each(|(out, q)| attend_head(q, first, keys, values, out, (scale, hidden)));
        });
}

/// One head and chunk. The first query is at position `first`, and of this number among those that ask.
fn attend_head(
    q: ArrayView2<f32>,
    first: usize,
    keys: Panels,
    values: Panels,
    mut out: ArrayViewMut2<f32>,
    (scale, hidden): (f32, Option<(&Hidden, usize)>),
) {
    let mut scores = Array2::zeros((QUERIES, first + q.nrows()));
    let outs = out.axis_chunks_iter_mut(Axis(0), QUERIES);
    for (block, (q, out)) in q.axis_chunks_iter(Axis(0), QUERIES).zip(outs).enumerate() {
        let first = first + block * QUERIES;
        let mut scores = scores.slice_mut(s![..q.nrows(), ..first + q.nrows()]);
        keys.multiply_here(q, scores.view_mut());
        let hide = |scores: &mut ArrayViewMut2<f32>, value| {
            let Some((hidden, before)) = hidden else { return };
            let hidden = hidden.from(before + block * QUERIES);
            for (mut row, hidden) in scores.axis_iter_mut(Axis(0)).zip(hidden) {
                fill(row.as_slice_mut().expect("rows are contiguous"), hidden, value);
            }
        };
        hide(&mut scores, f32::NEG_INFINITY);
        causal_softmax(keys.simd, scores.view_mut(), first, scale);
        hide(&mut scores, 0.0);
        values.multiply_here(scores.view(), out);
    }
}

/// Softmax of each row over its own position and those before it; the rest becomes 0. The first
/// row is at position `first`.
fn causal_softmax(simd: Simd, mut scores: ArrayViewMut2<f32>, first: usize, scale: f32) {
    for (i, mut row) in scores.axis_iter_mut(Axis(0)).enumerate() {
        let row = row.as_slice_mut().expect("rows are contiguous");
        let (seen, unseen) = row.split_at_mut(first + i + 1);
        unseen.fill(0.0);
        softmax(simd, seen, scale);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn positions_attend_to_themselves_and_before() {
        let mut scores = Array2::from_shape_vec((2, 2), vec![5.0, 9.0, 1.0, 1.0]).unwrap();
        causal_softmax(Simd::Portable, scores.view_mut(), 0, 0.5);
        assert_eq!(scores.as_slice().unwrap(), [1.0, 0.0, 0.5, 0.5]);
        causal_softmax(Simd::Portable, scores.slice_mut(s![1.., ..]), 1, 1.0);
        assert_eq!(scores.as_slice().unwrap(), [1.0, 0.0, 0.5, 0.5]);
    }
}
