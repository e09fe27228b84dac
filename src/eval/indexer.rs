//! DeepSeek-V3.2's lightning indexer: which tokens of its chunk a token attends to. Small heads of their own
//! score every pair of tokens, and each token keeps those with the best scores
//! (`llama_model_deepseek32::graph`). Where a chunk has no more tokens than are kept, nothing is left out.

use super::attention::{Chunks, QUERIES};
use super::error::EvalError;
use super::gemm::{Panels, packed};
use super::linear::Matrix;
use super::rope::{Rotary, rotate};
use crate::model::{self, Pairs};
use ndarray::parallel::prelude::*;
use ndarray::{Array2, ArrayView1, ArrayView2, ArrayViewMut2, Axis, s};
use rayon::slice::ParallelSliceMut;

/// Epsilon of the norm of keys.
const EPS: f64 = 1e-6;

/// The indexer of a layer.
pub(super) struct Indexer<'a> {
    pub of: &'a model::Indexer,
    /// Queries from compressed ones.
    pub queries: Matrix<'a>,
    pub keys: Matrix<'a>,
    pub norm: Vec<f32>,
    pub bias: Vec<f32>,
    /// What each head counts for a token.
    pub counts: Matrix<'a>,
}

/// Tokens that others leave out: for each that asks, a bit for each position of its chunk.
pub(super) struct Hidden {
    words: usize,
    bits: Vec<u64>,
}

impl Hidden {
    /// What the tokens from the one of this number on leave out.
    pub fn from(&self, asking: usize) -> impl Iterator<Item = &[u64]> {
        self.bits[asking * self.words..].chunks_exact(self.words)
    }
}

/// Gives positions that are left out a value.
pub(super) fn fill(row: &mut [f32], hidden: &[u64], value: f32) {
    for (values, word) in row.chunks_mut(64).zip(hidden) {
        let left_out = values.iter_mut().enumerate().filter(|(i, _)| word >> i & 1 == 1);
        left_out.for_each(|(_, v)| *v = value);
    }
}

impl Indexer<'_> {
    /// What each token that asks leaves out; `None` where that is nothing. `x` are the normalised inputs
    /// of all tokens, `queries` the compressed queries of those that ask.
    pub fn hidden(
        &self,
        rotary: &Rotary,
        x: ArrayView2<f32>,
        queries: ArrayView2<f32>,
        chunks: Chunks,
    ) -> Result<Option<Hidden>, EvalError> {
        let top_k = self.of.top_k as usize;
        let chooses = chunks.ctx > top_k;
        // Whoever watches sees the products in any case.
        if !chooses && self.keys.observer.is_none() {
            return Ok(None);
        }
        let (simd, width) = (self.keys.simd, self.of.head as usize);
        let (mut q, mut keys) = (self.queries.apply(queries)?, self.keys.apply(x)?);
        let mut counts = self.counts.apply(chunks.tails(x).view())?;
        if !chooses {
            return Ok(None);
        }
        for mut row in keys.axis_iter_mut(Axis(0)) {
            layer_norm(row.as_slice_mut().expect("rows are contiguous"), &self.norm, &self.bias);
        }
        turn(&mut q, width, rotary, chunks);
        turn(&mut keys, width, rotary, Chunks { first: 0, ..chunks });
        let scale = 1.0 / ((self.of.n_head as f32) * width as f32).sqrt();
        counts.iter_mut().for_each(|count| *count *= scale);
        let words = chunks.ctx.div_ceil(64);
        let mut hidden = Hidden { words, bits: vec![0; q.nrows() * words] };
        let of_chunk = chunks.ctx - chunks.first;
        hidden
            .bits
            .par_chunks_mut(of_chunk * words)
            .zip(q.axis_chunks_iter(Axis(0), of_chunk))
            .zip(counts.axis_chunks_iter(Axis(0), of_chunk))
            .zip(keys.axis_chunks_iter(Axis(0), chunks.ctx))
            .for_each(|(((bits, q), counts), keys)| {
                let panels = packed(keys);
                let keys = Panels { values: panels.values(), columns: width, simd };
                bits.par_chunks_mut(QUERIES * words)
                    .zip(q.axis_chunks_iter(Axis(0), QUERIES))
                    .zip(counts.axis_chunks_iter(Axis(0), QUERIES))
                    .enumerate()
                    .for_each(|(block, ((bits, q), counts))| {
                        let first = chunks.first + block * QUERIES;
                        let scores = scores(q, counts, first, keys, width);
                        for (i, (row, bits)) in
                            scores.axis_iter(Axis(0)).zip(bits.chunks_exact_mut(words)).enumerate()
                        {
                            leave_out(row.slice(s![..=first + i]), top_k, bits);
                        }
                    });
            });
        Ok(Some(hidden))
    }
}

/// Scores of tokens, the first of which is at position `first`, with all up to the last of them: over heads,
/// the sum of what is above 0, times what the head counts.
fn scores(
    q: ArrayView2<f32>,
    counts: ArrayView2<f32>,
    first: usize,
    keys: Panels,
    width: usize,
) -> Array2<f32> {
    let n = first + q.nrows();
    let mut sums = Array2::zeros((q.nrows(), n));
    let mut of_head = Array2::zeros((q.nrows(), n));
    for (q, counts) in q.axis_chunks_iter(Axis(1), width).zip(counts.axis_iter(Axis(1))) {
        keys.multiply_here(q, of_head.view_mut());
        add_counted(sums.view_mut(), of_head.view(), counts);
    }
    sums
}

fn add_counted(mut sums: ArrayViewMut2<f32>, of_head: ArrayView2<f32>, counts: ArrayView1<f32>) {
    let rows = sums.axis_iter_mut(Axis(0)).zip(of_head.axis_iter(Axis(0))).zip(counts);
    for ((mut sums, scores), count) in rows {
        sums.zip_mut_with(&scores, |sum, score| *sum += score.max(0.0) * count);
    }
}

/// Marks all but the `top_k` best scores; of equal ones, the first are better.
fn leave_out(scores: ArrayView1<f32>, top_k: usize, bits: &mut [u64]) {
    if scores.len() <= top_k {
        return;
    }
    let mut order: Vec<u32> = (0..scores.len() as u32).collect();
    let score = |&i: &u32| scores[i as usize];
    order.select_nth_unstable_by(top_k, |a, b| score(b).total_cmp(&score(a)).then(a.cmp(b)));
    for &left_out in &order[top_k..] {
        bits[left_out as usize / 64] |= 1 << (left_out % 64);
    }
}

/// Rotates the first dimensions of every head by its token's position within its chunk, halves of them
/// together.
fn turn(x: &mut Array2<f32>, width: usize, rotary: &Rotary, chunks: Chunks) {
    let turns: Vec<_> = (chunks.first..chunks.ctx).map(|position| rotary.at(position)).collect();
    let n_rot = 2 * turns.first().map_or(0, Vec::len);
    x.axis_iter_mut(Axis(0)).into_par_iter().enumerate().for_each(|(token, mut row)| {
        let row = row.as_slice_mut().expect("rows are contiguous");
        for head in row.chunks_exact_mut(width) {
            rotate(&mut head[..n_rot], &turns[token % turns.len()], Pairs::Halves);
        }
    });
}

/// `y = (x - mean) / sqrt(variance + eps) · weight + bias`.
fn layer_norm(row: &mut [f32], weight: &[f32], bias: &[f32]) {
    let n = row.len() as f64;
    let mean = row.iter().map(|&x| f64::from(x)).sum::<f64>() / n;
    let variance = row.iter().map(|&x| (f64::from(x) - mean).powi(2)).sum::<f64>() / n;
    let scale = 1.0 / (variance + EPS).sqrt();
    for ((x, weight), bias) in row.iter_mut().zip(weight).zip(bias) {
        *x = ((f64::from(*x) - mean) * scale) as f32 * weight + bias;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn all_but_the_best_are_left_out() {
        let scores = ArrayView1::from(&[0.5, 2.0, 0.5, -1.0, 3.0]);
        for (top_k, left_out) in [(1, 0b01111), (2, 0b01101), (3, 0b01100), (4, 0b01000), (5, 0)] {
            let mut bits = [0];
            leave_out(scores, top_k, &mut bits);
            assert_eq!(bits, [left_out], "{top_k}");
        }
        let mut row = [1.0; 70];
        fill(&mut row, &[1 << 63 | 2, 1 << 3], 0.0);
        let zeros: Vec<usize> = (0..70).filter(|&i| row[i] == 0.0).collect();
        assert_eq!(zeros, [1, 63, 67]);
    }

    #[test]
    fn keys_are_centred_and_scaled() {
        let mut row = [1.0, 3.0];
        layer_norm(&mut row, &[2.0, 1.0], &[0.5, 0.0]);
        assert!((row[0] + 1.5).abs() < 1e-5 && (row[1] - 1.0).abs() < 1e-5, "{row:?}");
    }
}
