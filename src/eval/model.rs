//! The model as a stack of layers over a source of weights.

use super::activations::Activations;
use super::attention::{Attention, Biased, Chunks, Grouped, Latent, Query};
use super::budget;
use super::buffers::Rows;
use super::error::EvalError;
use super::feed_forward::{Experts, FeedForward, Gated};
use super::linear::Matrix;
use super::norm::rms_norm;
use super::observe::Observer;
use super::probe::{Probe, first_not_finite};
use super::rope::Rotary;
use crate::model::{self, Gating, Hparams};
use crate::simd::Simd;
use crate::source::Source;
use ndarray::parallel::prelude::*;
use ndarray::{Array2, ArrayView2, ArrayViewMut2, Axis, s};

/// A model ready to run: every tensor is there and has the shape that the hyper-parameters call for.
pub struct Model<'a> {
    hparams: &'a Hparams,
    source: &'a dyn Source,
    rotary: Rotary,
    simd: Simd,
    activations: Activations,
    observer: Option<&'a dyn Observer>,
}

impl<'a> Model<'a> {
    /// Checks that `source` has the tensors that `hparams` call for.
    ///
    /// # Errors
    /// A tensor that is missing or of another shape, naming it.
    pub fn new(hparams: &'a Hparams, source: &'a dyn Source) -> Result<Self, EvalError> {
        check(hparams)?;
        let mut model = Self {
            hparams,
            source,
            rotary: Rotary::default(),
            simd: Simd::detect(),
            activations: Activations::F32,
            observer: None,
        };
        let (embd, vocab) = (hparams.n_embd as usize, hparams.n_vocab as usize);
        model.matrix("token_embd.weight", embd, vocab)?;
        model.output()?;
        model.tensor("output_norm.weight", &[embd])?;
        for layer in 0..hparams.n_layer {
            model.attention(layer, false)?;
            model.feed_forward(layer, false)?;
            for norm in ["attn_norm", "ffn_norm"] {
                model.tensor(&format!("blk.{layer}.{norm}.weight"), &[embd])?;
            }
        }
        // Only now is it certain that the number of dimensions is a real one.
        let n_rot = hparams.attention.n_rot() as usize;
        model.rotary = Rotary::new(&hparams.rope, n_rot);
        if source.find("rope_freqs.weight").is_some() {
            model.rotary.divide(&model.vector("rope_freqs.weight", n_rot / 2, true)?);
        }
        Ok(model)
    }

    /// Has someone watch the products of the layers.
    pub fn observe(&mut self, observer: &'a dyn Observer) {
        self.observer = Some(observer);
    }

    /// Sets the instructions that it runs with, instead of the fastest of this machine. Products with
    /// others are rounded elsewhere.
    pub fn set_simd(&mut self, simd: Simd) {
        self.simd = simd;
    }

    /// The instructions that it runs with.
    pub fn simd(&self) -> Simd {
        self.simd
    }

    /// Sets in which precision activations meet weights.
    pub fn set_activations(&mut self, activations: Activations) {
        self.activations = activations;
    }

    /// In which precision they do.
    pub fn activations(&self) -> Activations {
        self.activations
    }

    /// Who watches.
    pub(super) fn observer(&self) -> Option<&'a dyn Observer> {
        self.observer
    }

    /// Weights whose names begin so will not be read again soon.
    pub(super) fn release(&self, begin: &str) {
        for (tensor, meta) in self.source.tensors().iter().enumerate() {
            if meta.name.starts_with(begin) {
                self.source.release(tensor, 0..meta.n_rows());
            }
        }
    }

    /// The weights.
    pub fn source(&self) -> &'a dyn Source {
        self.source
    }

    /// The hyper-parameters.
    pub fn hparams(&self) -> &Hparams {
        self.hparams
    }

    /// The tensor of this name, if its extents (innermost first) are these.
    fn tensor(&self, name: &str, dims: &[usize]) -> Result<usize, EvalError> {
        let tensor =
            self.source.find(name).ok_or_else(|| EvalError::MissingTensor(name.to_owned()))?;
        let found = &self.source.tensors()[tensor].dims;
        // Files may leave out trailing extents of 1.
        let extent = |i: usize| found.get(i).copied().unwrap_or(1);
        let n = dims.len().max(found.len());
        if (0..n).any(|i| extent(i) != dims.get(i).map_or(1, |&d| d as u64)) {
            return Err(EvalError::Shape {
                tensor: name.to_owned(),
                found: found.clone(),
                expected: dims.iter().map(|&d| d as u64).collect(),
            });
        }
        Ok(tensor)
    }

    fn part(&self, tensor: usize, rows: usize, columns: usize) -> Matrix<'a> {
        let &Self { source, simd, activations, observer, .. } = self;
        Matrix { source, tensor, first_row: 0, rows, columns, simd, activations, observer }
    }

    fn matrix(&self, name: &str, columns: usize, rows: usize) -> Result<Matrix<'a>, EvalError> {
        let tensor = self.tensor(name, &[columns, rows])?;
        Ok(self.part(tensor, rows, columns))
    }

    fn stack(&self, name: &str, dims: [usize; 3]) -> Result<Matrix<'a>, EvalError> {
        let [columns, rows, _] = dims;
        let tensor = self.tensor(name, &dims)?;
        Ok(self.part(tensor, rows, columns))
    }

    /// A vector's values, which have to be finite; empty when only its presence is checked.
    fn vector(&self, name: &str, n: usize, read: bool) -> Result<Vec<f32>, EvalError> {
        let tensor = self.tensor(name, &[n])?;
        let mut values = vec![0.0; if read { n } else { 0 }];
        if read {
            self.source.read_rows(tensor, 0, &mut values)?;
        }
        if let Some(element) = values.iter().position(|value| !value.is_finite()) {
            let value = values[element];
            return Err(EvalError::Weight { tensor: name.to_owned(), element, value });
        }
        Ok(values)
    }

    fn attention(&self, layer: u32, read: bool) -> Result<Attention<'a>, EvalError> {
        Ok(match &self.hparams.attention {
            model::Attention::Latent(a) => Attention::Latent(self.latent(a, layer, read)?, a),
            model::Attention::Grouped(a) => Attention::Grouped(self.grouped(a, layer, read)?, a),
        })
    }

    fn grouped(
        &self,
        a: &model::Grouped,
        layer: u32,
        read: bool,
    ) -> Result<Grouped<'a>, EvalError> {
        let [embd, width] = [self.hparams.n_embd, a.head_dim].map(|n| n as usize);
        let [heads, heads_kv] = [a.n_head, a.n_head_kv].map(|n| width.saturating_mul(n as usize));
        let part = |name: &str, columns: usize, rows: usize, biased: bool| {
            let name = format!("blk.{layer}.attn_{name}");
            let bias = match biased {
                true => Some(self.vector(&format!("{name}.bias"), rows, read)?),
                false => None,
            };
            let matrix = self.matrix(&format!("{name}.weight"), columns, rows)?;
            Ok::<_, EvalError>(Biased { matrix, bias })
        };
        let norm = |name: &str| self.vector(&format!("blk.{layer}.{name}.weight"), width, read);
        Ok(Grouped {
            query: part("q", embd, heads, a.qkv_bias)?,
            key: part("k", embd, heads_kv, a.qkv_bias)?,
            value: part("v", embd, heads_kv, a.qkv_bias)?,
            output: part("output", heads, embd, a.output_bias)?,
            norms: match a.qk_norm {
                true => Some([norm("attn_q_norm")?, norm("attn_k_norm")?]),
                false => None,
            },
        })
    }

    fn latent(&self, a: &model::Latent, layer: u32, read: bool) -> Result<Latent<'a>, EvalError> {
        let [embd, heads, kv_lora, nope, rope, v] =
            [self.hparams.n_embd, a.n_head, a.kv_lora_rank, a.qk_nope, a.qk_rope, a.v_head]
                .map(|n| n as usize);
        // Files may claim any number; one too large matches no tensor.
        let q_rows = heads.saturating_mul(nope + rope);
        let name = |tensor: &str| format!("blk.{layer}.{tensor}.weight");
        let query = match a.q_lora_rank.map(|rank| rank as usize) {
            None => Query::Direct(self.matrix(&name("attn_q"), embd, q_rows)?),
            Some(rank) => Query::LowRank {
                a: self.matrix(&name("attn_q_a"), embd, rank)?,
                norm: self.vector(&name("attn_q_a_norm"), rank, read)?,
                b: self.matrix(&name("attn_q_b"), rank, q_rows)?,
            },
        };
        Ok(Latent {
            query,
            kv_a: self.matrix(&name("attn_kv_a_mqa"), embd, kv_lora + rope)?,
            kv_a_norm: self.vector(&name("attn_kv_a_norm"), kv_lora, read)?,
            k_b: self.stack(&name("attn_k_b"), [nope, kv_lora, heads])?,
            v_b: self.stack(&name("attn_v_b"), [kv_lora, v, heads])?,
            output: self.matrix(&name("attn_output"), heads.saturating_mul(v), embd)?,
        })
    }

    fn feed_forward(&self, layer: u32, read: bool) -> Result<FeedForward<'_>, EvalError> {
        let embd = self.hparams.n_embd as usize;
        let name = |tensor: &str| format!("blk.{layer}.{tensor}.weight");
        let gated = |suffix: &str, ff: usize| -> Result<Gated<'a>, EvalError> {
            Ok(Gated {
                gate: self.matrix(&name(&format!("ffn_gate{suffix}")), embd, ff)?,
                up: self.matrix(&name(&format!("ffn_up{suffix}")), embd, ff)?,
                down: self.matrix(&name(&format!("ffn_down{suffix}")), ff, embd)?,
            })
        };
        let Some(moe) = self.hparams.moe.as_ref().filter(|moe| layer >= moe.leading_dense) else {
            return Ok(FeedForward::Dense(Box::new(gated("", self.hparams.n_ff as usize)?)));
        };
        let [experts, shared, ff] = [moe.n_expert, moe.n_shared, moe.n_ff].map(|n| n as usize);
        let bias = match moe.gating {
            Gating::Softmax => None,
            Gating::Sigmoid => {
                Some(self.vector(&format!("blk.{layer}.exp_probs_b.bias"), experts, read)?)
            }
        };
        Ok(FeedForward::Experts(Box::new(Experts {
            moe,
            router: self.matrix(&name("ffn_gate_inp"), embd, experts)?,
            bias,
            routed: Gated {
                gate: self.stack(&name("ffn_gate_exps"), [embd, ff, experts])?,
                up: self.stack(&name("ffn_up_exps"), [embd, ff, experts])?,
                down: self.stack(&name("ffn_down_exps"), [ff, embd, experts])?,
            },
            shared: if shared > 0 {
                Some(gated("_shexp", ff.saturating_mul(shared))?)
            } else {
                None
            },
        })))
    }

    /// The output matrix; the token embedding where they are tied.
    pub(super) fn output(&self) -> Result<Matrix<'a>, EvalError> {
        let name = self.output_name();
        let (embd, vocab) = (self.hparams.n_embd as usize, self.hparams.n_vocab as usize);
        // It is taken in tiles, and belongs to no layer.
        Ok(Matrix { observer: None, ..self.matrix(name, embd, vocab)? })
    }

    /// The name of the output matrix.
    pub(super) fn output_name(&self) -> &'static str {
        let tied = self.source.find("output.weight").is_none();
        if tied { "token_embd.weight" } else { "output.weight" }
    }

    /// Embeddings of tokens, one row each.
    ///
    /// # Errors
    /// A token beyond the vocabulary, or whose embedding is not finite.
    pub fn embed(&self, tokens: &[u32]) -> Result<Array2<f32>, EvalError> {
        let (embd, n_vocab) = (self.hparams.n_embd as usize, self.hparams.n_vocab);
        let matrix = self.matrix("token_embd.weight", embd, n_vocab as usize)?;
        let mut states = Array2::zeros((tokens.len(), embd));
        for (mut row, &token) in states.rows_mut().into_iter().zip(tokens) {
            if token >= n_vocab {
                return Err(EvalError::Token { token, n_vocab });
            }
            row.assign(&matrix.decode(token as usize, 1)?.row(0));
        }
        match first_not_finite(self.simd, states.view()) {
            Some(token) => {
                let place = "`token_embd.weight`".to_owned();
                Err(EvalError::NotFinite { layer: 0, place, token })
            }
            None => Ok(states),
        }
    }

    /// Passes states, one row a token in chunks of `ctx`, through a layer. Intermediate results
    /// are kept within about `memory` bytes by taking some chunks after others, all but those of
    /// the experts, which see all tokens at once.
    ///
    /// # Errors
    /// Weights that cannot be read, or a result that is not finite.
    ///
    /// # Panics
    /// When `ctx` is 0.
    pub fn layer(
        &self,
        layer: u32,
        states: &mut Array2<f32>,
        ctx: usize,
        memory: usize,
    ) -> Result<(), EvalError> {
        self.layer_from(layer, states, ctx, memory, 0)
    }

    /// As [`Model::layer`], where the first `first` tokens of each chunk need not pass: after the last
    /// layer nobody asks for them. Their states stay as they are.
    pub(super) fn layer_from(
        &self,
        layer: u32,
        states: &mut Array2<f32>,
        ctx: usize,
        memory: usize,
        first: usize,
    ) -> Result<(), EvalError> {
        let (embd, eps) = (self.hparams.n_embd as usize, self.hparams.rms_eps);
        let norm = |name: &str| self.vector(&format!("blk.{layer}.{name}.weight"), embd, true);
        let part = budget::part(self.hparams, ctx, memory);
        let chunks = Chunks { ctx, first };
        let (attention, weight) = (self.attention(layer, true)?, norm("attn_norm")?);
        for (i, mut states) in states.axis_chunks_iter_mut(Axis(0), part).enumerate() {
            let x = rms_norm(self.simd, states.view(), &weight, eps);
            let change = attention.run(self.hparams, &self.rotary, x.view(), chunks)?;
            add(states.view_mut(), &change, chunks);
            if let Some(row) = first_not_finite(self.simd, states.view()) {
                // Its own chunk up to itself has a say in it.
                let x = x.slice(s![row / ctx * ctx..=row, ..]);
                let chunks = Chunks { first: 0, ..chunks };
                let run = |model: &Model| {
                    model.attention(layer, true)?.run(self.hparams, &self.rotary, x, chunks)
                };
                let place = self.culprit("attention", run)?;
                return Err(EvalError::NotFinite { layer, place, token: i * part + row });
            }
        }
        let feed_forward = self.feed_forward(layer, true)?;
        let x = rms_norm(self.simd, chunks.tails(states.view()).view(), &norm("ffn_norm")?, eps);
        let change = feed_forward.run(x.view(), part)?;
        add(states.view_mut(), &change, chunks);
        if let Some(token) = first_not_finite(self.simd, states.view()) {
            let row = token / ctx * (ctx - first) + token % ctx - first;
            let x = x.slice(s![row..=row, ..]);
            let run = |model: &Model| model.feed_forward(layer, true)?.run(x, 1);
            let place = self.culprit("the feed-forward network", run)?;
            return Err(EvalError::NotFinite { layer, place, token });
        }
        Ok(())
    }

    /// Runs a part of a layer again, whose last row is not finite, to learn which tensor that comes
    /// from.
    fn culprit(
        &self,
        part: &str,
        run: impl FnOnce(&Model) -> Result<Rows, EvalError>,
    ) -> Result<String, EvalError> {
        let probe = Probe::new(self.simd);
        let mut probed = Model {
            hparams: self.hparams,
            source: self.source,
            rotary: Rotary::default(),
            simd: self.simd,
            activations: self.activations,
            observer: None,
        };
        probed.observe(&probe);
        run(&probed)?;
        Ok(probe.found(self.source).unwrap_or_else(|| part.to_owned()))
    }

    /// The states after the last layer, normalised for the output matrix.
    ///
    /// # Errors
    /// Weights that cannot be read.
    pub fn output_norm(&self, states: ArrayView2<f32>) -> Result<Array2<f32>, EvalError> {
        let weight = self.vector("output_norm.weight", self.hparams.n_embd as usize, true)?;
        Ok(rms_norm(self.simd, states, &weight, self.hparams.rms_eps).into_array())
    }

    /// Logits of normalised states, one row a token, one column a token of the vocabulary.
    ///
    /// # Errors
    /// Weights that cannot be read.
    pub fn logits(&self, normed: ArrayView2<f32>) -> Result<Array2<f32>, EvalError> {
        Ok(self.output()?.apply(normed)?.into_array())
    }
}

/// Checks what the shapes of tensors do not.
fn check(hparams: &Hparams) -> Result<(), EvalError> {
    let mut widths = vec![
        ("embedding width", hparams.n_embd),
        ("vocabulary", hparams.n_vocab),
        ("number of heads", hparams.attention.n_head()),
    ];
    match &hparams.attention {
        model::Attention::Latent(a) => widths.extend([
            ("rank of keys and values", a.kv_lora_rank),
            ("width of keys", a.qk_nope.saturating_add(a.qk_rope)),
            ("width of values", a.v_head),
            ("rank of queries", a.q_lora_rank.unwrap_or(1)),
        ]),
        model::Attention::Grouped(a) => {
            widths.extend([("number of key heads", a.n_head_kv), ("width of heads", a.head_dim)]);
        }
    }
    let dense = hparams.moe.as_ref().map_or(hparams.n_layer, |moe| moe.leading_dense);
    if dense > 0 {
        widths.push(("feed-forward width", hparams.n_ff));
    }
    if let Some(moe) = &hparams.moe {
        widths.extend([("number of experts", moe.n_expert), ("width of experts", moe.n_ff)]);
        let groups = moe.n_group.max(1);
        if !moe.n_expert.is_multiple_of(groups)
            || moe.n_used > moe.n_expert
            || (groups > 1
                && (moe.n_group_used > groups
                    || moe.n_used > moe.n_expert / groups * moe.n_group_used))
        {
            return Err(EvalError::Hparams(format!(
                "{} of {} experts cannot be chosen from {} of {groups} groups",
                moe.n_used, moe.n_expert, moe.n_group_used
            )));
        }
    }
    if let Some((what, _)) = widths.iter().find(|(_, n)| *n == 0) {
        return Err(EvalError::Hparams(format!("the {what} is 0")));
    }
    if !hparams.attention.n_rot().is_multiple_of(2) {
        return Err(EvalError::Hparams("an odd number of dimensions cannot rotate".into()));
    }
    Ok(())
}

/// Adds to the states of the tokens that pass, on all threads.
fn add(mut states: ArrayViewMut2<f32>, change: &Array2<f32>, chunks: Chunks) {
    let states = states.axis_chunks_iter_mut(Axis(0), chunks.ctx).into_par_iter();
    let change = change.axis_chunks_iter(Axis(0), chunks.ctx - chunks.first);
    states.zip(change).for_each(|(mut states, change)| {
        let mut tail = states.slice_mut(s![chunks.first.., ..]);
        let rows = tail.axis_iter_mut(Axis(0)).into_par_iter();
        rows.zip(change.axis_iter(Axis(0))).for_each(|(mut state, change)| state += &change);
    });
}
