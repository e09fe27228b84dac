//! From the last states to probabilities: the vocabulary is taken in tiles, so that the logits of
//! whole rows never exist, and each tile of the output matrix is decoded once for all rows.
//!
//! Everything that is reported of a token follows from sums over the vocabulary, which each tile
//! adds to: with `a` and `b` the logits of reference and model, `Z = Σ eᵃ`,
//! `KL = Σ eᵃ (a - b) / Z - ln Σ eᵃ + ln Σ eᵇ`. Sums are f64, and relative to the largest logit so
//! far.

use super::buffers::Rows;
use super::compare::{TOP, TokenValues};
use super::error::EvalError;
use super::exponential::{exp, exp_sum, maximum};
use super::linear::Matrix;
use super::model::Model;
use crate::quant::float::all_finite;
use crate::simd::Simd;
use ndarray::parallel::prelude::*;
use ndarray::{ArrayView1, ArrayView2, s};

/// Rows of states that are scored together.
pub(super) const ROWS: usize = 1024;

/// Tokens of the vocabulary that one task takes.
const TILE: usize = 1024;
/// The largest of saved log-probabilities that do not count: the file has the same one for all that lie further below the
/// most probable token, and of a large vocabulary these are many (`log_softmax` in tools/perplexity/perplexity.cpp).
const LEAST_SAVED: f32 = -16.0;
/// What stands in their place: it adds nothing to any sum.
const LEFT_OUT: f32 = -1000.0;

/// Where the logits of some rows come from.
pub(super) enum Side<'s, 'a> {
    /// From normalised states and the output matrix that they meet.
    States(Matrix<'a>, ArrayView2<'s, f32>),
    /// They are known.
    Logits(ArrayView2<'s, f32>),
    /// Log-probabilities are known, and taken as they are: rounding has left their sums off 1.
    Saved(ArrayView2<'s, f32>),
}

/// What was found of some rows.
pub(super) struct Scores {
    /// The reference's negative log-likelihood of each row's target.
    pub nll: Vec<f64>,
    /// Each model's values.
    pub models: Vec<Vec<TokenValues>>,
}

/// A row that is not finite, or weights that cannot be read.
#[derive(Debug)]
pub(super) struct Bad {
    /// 0 for the reference, then the models compared with it.
    pub model: usize,
    /// The row.
    pub row: usize,
    cause: Option<EvalError>,
}

impl Bad {
    /// The error, for a row that is the text's token `token`.
    pub fn error(self, model: &Model, token: usize) -> EvalError {
        self.error_of(model, model.output(), token)
    }

    /// As [`Bad::error`], with another output matrix than the model's own.
    pub fn error_of(self, model: &Model, output: Matrix, token: usize) -> EvalError {
        self.cause.unwrap_or_else(|| {
            let place = format!("`{}`", output.name());
            EvalError::NotFinite { layer: model.hparams().n_layer, place, token }
        })
    }
}

/// Sums over a part of the vocabulary.
#[derive(Clone, Copy)]
struct Sums {
    /// The largest logit.
    max: f32,
    best: Best,
    /// Sum of `e^(l - max)`.
    sum: f64,
    /// For a model: sum of `e^(a - max) (a - b)` with the reference's logits `a` and their `max`.
    cross: f64,
    /// The target's logit.
    target: Option<f32>,
}

impl Sums {
    fn of(simd: Simd, logits: &[f32], first: usize, target: u32) -> Self {
        let max = maximum(simd, logits);
        Self {
            max,
            best: Best::of(logits, first),
            // Minus infinity would leave the sum finite.
            sum: match all_finite(simd, logits) {
                true => exp_sum(simd, logits, max),
                false => f64::NAN,
            },
            cross: 0.0,
            target: (target as usize).checked_sub(first).and_then(|t| logits.get(t)).copied(),
        }
    }

    /// Adds another part, all but the cross sums, which are relative to the reference's logits.
    fn add(&mut self, other: &Self) {
        let max = self.max.max(other.max);
        let [own, others] = [self.max, other.max].map(|m| f64::from(m - max).exp());
        self.sum = self.sum * own + other.sum * others;
        self.best.add(&other.best);
        self.max = max;
        self.target = self.target.or(other.target);
    }

    fn log_sum(&self) -> f64 {
        f64::from(self.max) + self.sum.ln()
    }
}

/// The tokens with the largest logits, largest first; of equal ones the first.
#[derive(Clone, Copy)]
struct Best([(f32, u32); MOST]);

/// How many are looked at, at most.
const MOST: usize = TOP[TOP.len() - 1];

impl Best {
    const NONE: Self = Self([(f32::NEG_INFINITY, u32::MAX); MOST]);

    fn of(logits: &[f32], first: usize) -> Self {
        /// Logits that are passed over together where none of them is large enough.
        const STEP: usize = 32;
        let mut best = Self::NONE;
        let (parts, rest) = logits.as_chunks::<STEP>();
        for (part, first) in parts.iter().zip((first as u32..).step_by(STEP)) {
            let least = best.0[MOST - 1].0;
            // Without a branch for each, so that many are looked at in one instruction.
            if part.iter().fold(false, |any, &logit| any | (logit > least)) {
                part.iter().zip(first..).for_each(|(&logit, token)| best.put(logit, token));
            }
        }
        let tokens = (first + logits.len() - rest.len()) as u32..;
        rest.iter().zip(tokens).for_each(|(&logit, token)| best.put(logit, token));
        best
    }

    fn put(&mut self, logit: f32, token: u32) {
        if logit > self.0[MOST - 1].0 {
            let place = self.0.partition_point(|other| other.0 >= logit);
            self.0.copy_within(place..MOST - 1, place + 1);
            self.0[place] = (logit, token);
        }
    }

    /// Adds those of tokens that come later.
    fn add(&mut self, other: &Self) {
        other.0.iter().for_each(|&(logit, token)| self.put(logit, token));
    }

    /// How many of the first `k` are among the first `k` of others.
    fn shared(&self, other: &Self, k: usize) -> u8 {
        let others = &other.0[..k];
        let shared = |&&(_, token): &&(f32, u32)| others.iter().any(|other| other.1 == token);
        self.0[..k].iter().filter(shared).count() as u8
    }
}

/// `Σ e^(a - max) (a - b)`.
fn cross(a: &[f32], b: &[f32], max: f32) -> f64 {
    let term = |a: f32, b: f32| f64::from(exp(a - max)) * (f64::from(a) - f64::from(b));
    let ((chunks_a, rest_a), (chunks_b, rest_b)) = (a.as_chunks::<8>(), b.as_chunks::<8>());
    let mut lanes = [0.0; 8];
    for (a, b) in chunks_a.iter().zip(chunks_b) {
        for ((lane, &a), &b) in lanes.iter_mut().zip(a).zip(b) {
            *lane += term(a, b);
        }
    }
    let rest = rest_a.iter().zip(rest_b).map(|(&a, &b)| term(a, b));
    lanes.iter().sum::<f64>() + rest.sum::<f64>()
}

fn saved_that_counts(log_p: f32) -> f32 {
    if (f32::MIN..=LEAST_SAVED).contains(&log_p) { LEFT_OUT } else { log_p }
}

impl Side<'_, '_> {
    fn n_vocab(&self) -> usize {
        match self {
            Self::States(output, _) => output.rows,
            Self::Logits(rows) | Self::Saved(rows) => rows.ncols(),
        }
    }

    /// Logits of a part of the vocabulary.
    fn tile(&self, first: usize, n: usize) -> Result<Rows, EvalError> {
        match self {
            Self::States(output, states) => {
                let tile = Matrix { first_row: first as u64, rows: n, ..*output };
                tile.apply_here(*states)
            }
            Self::Logits(rows) | Self::Saved(rows) => {
                Ok(Rows::copy(rows.slice(s![.., first..first + n])))
            }
        }
    }
}

/// Tiles of the vocabulary.
pub(super) fn tiles(model: &Model) -> usize {
    (model.hparams().n_vocab as usize).div_ceil(TILE)
}

/// Bytes that the sums of so many models take at a time, the reference's included.
pub(super) fn bytes(model: &Model, sides: usize) -> u64 {
    (tiles(model) * sides * ROWS * size_of::<Sums>()) as u64
}

/// What the first tile of the vocabulary adds to some rows, to see what it costs.
pub(super) fn first_tile(model: &Model, states: ArrayView2<f32>) -> Result<f64, EvalError> {
    let n = TILE.min(model.hparams().n_vocab as usize);
    let logits = Side::States(model.output(), states).tile(0, n)?;
    Ok(logits.rows().into_iter().map(|row| Sums::of(model.simd(), slice(&row), 0, 0).sum).sum())
}

/// Scores rows of a reference and of models, whose next tokens should be `targets`. All have the
/// same vocabulary.
pub(super) fn score(
    simd: Simd,
    reference: Side,
    models: &[(Matrix, ArrayView2<f32>)],
    targets: &[u32],
) -> Result<Scores, Bad> {
    let n_vocab = reference.n_vocab();
    let tiles: Vec<usize> = (0..n_vocab).step_by(TILE).collect();
    let sides = 1 + models.len();
    let saved = matches!(reference, Side::Saved(_));
    let bad = |model| move |cause| Bad { model, row: 0, cause: Some(cause) };
    // For each tile the sums of each row, for the reference and then for each model.
    let parts: Vec<Vec<Sums>> = tiles
        .par_iter()
        .map(|&first| {
            let n = TILE.min(n_vocab - first);
            let mut a = reference.tile(first, n).map_err(bad(0))?;
            let mut parts = Vec::with_capacity(sides * targets.len());
            for (mut row, &token) in a.rows_mut().into_iter().zip(targets) {
                // The next token's own counts in any case.
                let target = row.get((token as usize).wrapping_sub(first)).copied();
                if saved {
                    row.mapv_inplace(saved_that_counts);
                }
                parts.push(Sums { target, ..Sums::of(simd, slice(&row.view()), first, token) });
            }
            for (i, &(output, states)) in models.iter().enumerate() {
                let b = Side::States(output, states).tile(first, n).map_err(bad(1 + i))?;
                for (row, (a, b)) in a.rows().into_iter().zip(b.rows()).enumerate() {
                    let (a, b) = (slice(&a), slice(&b));
                    let cross = cross(a, b, parts[row].max);
                    parts.push(Sums { cross, ..Sums::of(simd, b, first, targets[row]) });
                }
            }
            Ok(parts)
        })
        .collect::<Result<_, Bad>>()?;
    let rows: Vec<(f64, Vec<TokenValues>)> = (0..targets.len())
        .into_par_iter()
        .map(|row| join(&parts, row, targets.len(), sides, saved))
        .collect::<Result<_, _>>()?;
    let mut models = vec![Vec::with_capacity(rows.len()); models.len()];
    let mut nll = Vec::with_capacity(rows.len());
    for (own, values) in rows {
        nll.push(own);
        models.iter_mut().zip(values).for_each(|(all, value)| all.push(value));
    }
    Ok(Scores { nll, models })
}

fn slice<'r>(row: &'r ArrayView1<f32>) -> &'r [f32] {
    row.as_slice().expect("rows are contiguous")
}

/// What follows from the tiles' sums for a row.
fn join(
    parts: &[Vec<Sums>],
    row: usize,
    rows: usize,
    sides: usize,
    saved: bool,
) -> Result<(f64, Vec<TokenValues>), Bad> {
    let whole = |side: usize| {
        let mut all = parts[0][side * rows + row];
        parts[1..].iter().for_each(|tile| all.add(&tile[side * rows + row]));
        all
    };
    let finite = |model: usize, value: f64| match value.is_finite() {
        true => Ok(value),
        false => Err(Bad { model, row, cause: None }),
    };
    let a = whole(0);
    let target = |sums: &Sums| f64::from(sums.target.unwrap_or(f32::NAN));
    // Saved log-probabilities count as they are.
    let log_sum_a = if saved { 0.0 } else { a.log_sum() };
    let nll_reference = finite(0, log_sum_a - target(&a))?;
    let weight = f64::from(a.max).exp() * a.sum;
    let values = (1..sides).map(|side| {
        let b = whole(side);
        let log_sum_b = b.log_sum();
        let nll = finite(side, log_sum_b - target(&b))?;
        let cross: f64 = parts
            .iter()
            .map(|tile| tile[side * rows + row].cross * f64::from(tile[row].max - a.max).exp())
            .sum();
        let mut kl = cross / a.sum - log_sum_a + log_sum_b;
        if saved {
            kl *= weight;
        }
        Ok(TokenValues {
            nll_reference,
            nll,
            kl: finite(side, kl)?,
            p_change: (-nll).exp() - (-nll_reference).exp(),
            same_top: a.best.0[0].1 == b.best.0[0].1,
            shared: TOP.map(|k| a.best.shared(&b.best, k)),
        })
    });
    Ok((nll_reference, values.collect::<Result<_, _>>()?))
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Sums of rows of logits, cut into tiles of `n`.
    fn tiles(a: &[f32], b: &[f32], n: usize, target: u32) -> Vec<Vec<Sums>> {
        let tiles = (0..a.len()).step_by(n).map(|first| {
            let range = first..a.len().min(first + n);
            let (a, b) = (&a[range.clone()], &b[range]);
            let own = Sums::of(Simd::Portable, a, first, target);
            vec![
                own,
                Sums { cross: cross(a, b, own.max), ..Sums::of(Simd::Portable, b, first, target) },
            ]
        });
        tiles.collect()
    }

    #[test]
    fn divergence_and_agreement_by_hand() {
        // p = (1/2, 1/4, 1/4), q = (1/4, 1/2, 1/4): KL = ln(2)/2 - ln(2)/4.
        let (p, q) = ([2f32.ln(), 0.0, 0.0], [7.0, 7.0 + 2f32.ln(), 7.0]);
        for n in 1..4 {
            let (nll, values) = join(&tiles(&p, &q, n, 0), 0, 1, 2, false).unwrap();
            assert!((nll - 2f64.ln()).abs() < 1e-6);
            assert!((values[0].kl - 2f64.ln() / 4.0).abs() < 1e-6, "{values:?}");
            assert!((values[0].p_change + 0.25).abs() < 1e-6 && !values[0].same_top);
            assert!((values[0].nll - 4f64.ln()).abs() < 1e-6);
        }
        // Log-probabilities whose sum is 3/4 are not scaled up to 1.
        let p = [0.5f32.ln(), 0.125f32.ln(), 0.125f32.ln()];
        let (nll, values) = join(&tiles(&p, &q, 2, 0), 0, 1, 2, true).unwrap();
        assert!((nll - 2f64.ln()).abs() < 1e-6);
        let by_hand = 0.5 * 2f64.ln() + 0.125 * 0.25f64.ln() + 0.125 * 0.5f64.ln();
        assert!((values[0].kl - by_hand).abs() < 1e-6, "{} {by_hand}", values[0].kl);
        // A hundred thousand tokens that the file knows to be improbable, and no more, add nothing.
        let p: Vec<f32> =
            p.into_iter().chain(vec![-16.3; 100_000]).map(saved_that_counts).collect();
        let q: Vec<f32> = q.into_iter().chain(vec![-20.0; 100_000]).collect();
        for n in [2, 1024] {
            let (_, values) = join(&tiles(&p, &q, n, 0), 0, 1, 2, true).unwrap();
            assert!((values[0].kl - by_hand).abs() < 1e-5, "{} {by_hand}", values[0].kl);
        }
        assert!(saved_that_counts(f32::NEG_INFINITY) == f32::NEG_INFINITY);
    }

    #[test]
    fn tiles_give_what_the_whole_row_gives() {
        let wave = |i: usize, k: f32| (i as f32 * k).sin() * 12.0;
        let a: Vec<f32> = (0..1000).map(|i| wave(i, 0.37)).collect();
        let b: Vec<f32> = (0..1000).map(|i| wave(i, 0.37) + 0.1 * wave(i, 1.7)).collect();
        let log_p = |x: &[f32]| -> Vec<f64> {
            let sum: f64 = x.iter().map(|&x| f64::from(x).exp()).sum();
            x.iter().map(|&x| f64::from(x) - sum.ln()).collect()
        };
        let (p, q) = (log_p(&a), log_p(&b));
        let kl: f64 = p.iter().zip(&q).map(|(p, q)| p.exp() * (p - q)).sum();
        let top = |x: &[f64]| (0..1000).max_by(|&i, &j| x[i].total_cmp(&x[j])).unwrap();
        for n in [7, 64, 1000] {
            let (nll, values) = join(&tiles(&a, &b, n, 613), 0, 1, 2, false).unwrap();
            assert!((nll + p[613]).abs() < 1e-6 && (values[0].nll + q[613]).abs() < 1e-6);
            assert!((values[0].kl / kl - 1.0).abs() < 1e-5, "{} {kl}", values[0].kl);
            assert_eq!(values[0].same_top, top(&p) == top(&q));
            for (k, shared) in TOP.into_iter().zip(values[0].shared) {
                let first = |x: &[f64]| -> Vec<usize> {
                    let mut order: Vec<usize> = (0..1000).collect();
                    order.sort_by(|&i, &j| x[j].total_cmp(&x[i]));
                    order[..k].to_vec()
                };
                let (p, q) = (first(&p), first(&q));
                let expected = p.iter().filter(|token| q.contains(token)).count();
                assert_eq!(usize::from(shared), expected);
                assert!(shared > 0 && usize::from(shared) < k, "both differ: {shared} of {k}");
            }
            let (_, same) = join(&tiles(&a, &a, n, 613), 0, 1, 2, false).unwrap();
            assert!(same[0].kl == 0.0 && same[0].same_top, "{same:?}");
        }
    }

    #[test]
    fn what_is_not_finite_is_found_on_either_side() {
        let (good, bad) = ([1.0, 2.0, 3.0], [1.0, f32::NAN, 3.0]);
        let found = |a, b| join(&tiles(a, b, 2, 0), 0, 1, 2, false).unwrap_err();
        assert_eq!((found(&bad, &good).model, found(&good, &bad).model), (0, 1));
        let infinite = [f32::INFINITY, f32::NEG_INFINITY].map(|bad| [1.0, bad, 0.0]);
        for bad in &infinite {
            assert_eq!((found(bad, &good).model, found(&good, bad).model), (0, 1));
        }
    }
}
