//! The model as a stack of layers over a source of weights.

use super::activations::Activations;
use super::attention::{Attention, Biased, Chunks, Grouped, Latent, Query};
use super::budget;
use super::buffers::Rows;
use super::error::EvalError;
use super::feed_forward::{Experts, FeedForward, Gated};
use super::indexer::Indexer;
use super::linear::Matrix;
use super::norm::rms_norm;
use super::observe::Observer;
use super::passage::{Half, Stage};
use super::probe::{Probe, first_not_finite};
use super::rope::Rotary;
use crate::model::{self, Gating, Hparams};
use crate::simd::Simd;
use crate::source::Source;
use crate::tensor::{Kind, Part, TensorName};
use ndarray::parallel::prelude::*;
use ndarray::{Array2, ArrayView2, ArrayViewMut2, Axis, s};
use std::collections::HashMap;
use std::collections::hash_map::Entry;
use std::sync::Arc;

/// Tokens that an observer is told of at a time.
const OBSERVED_TOKENS: usize = 512;

/// Logits that exist at a time where an observer is told of them.
const OBSERVED_LOGITS: usize = 1 << 25;

/// A model ready to run: every tensor is there and has the shape that the hyper-parameters call for.
pub struct Model<'a> {
    hparams: &'a Hparams,
    source: &'a dyn Source,
    tensors: Arc<Tensors>,
    rotary: Rotary,
    simd: Simd,
    activations: Activations,
    compressed: bool,
    /// Layers before this one are those of the reference that it is compared with.
    differs_from: u32,
    observer: Option<&'a dyn Observer>,
}

/// The tensors of a model by number in its source, found once.
type Tensors = HashMap<TensorName, usize>;

/// Finds all tensors that take part, with the shapes that a model gives them.
fn find_all(hparams: &Hparams, source: &dyn Source) -> Result<Tensors, EvalError> {
    let mut tensors = Tensors::new();
    for spec in hparams.outer_tensors() {
        match find(source, &spec.name, &spec.dims) {
            // The embedding serves.
            Err(EvalError::MissingTensor(_)) if spec.name.kind == Kind::Output => None,
            found => tensors.insert(spec.name, found?),
        };
    }
    for layer in 0..hparams.n_layer {
        for spec in hparams.layer_tensors(layer).into_iter().filter(|spec| !spec.optional) {
            tensors.insert(spec.name, find(source, &spec.name, &spec.dims)?);
        }
    }
    // What predicts further tokens may be in a file of its own.
    for layer in hparams.n_layer..hparams.n_layer + hparams.n_nextn {
        for spec in hparams.layer_tensors(layer) {
            match find(source, &spec.name, &spec.dims) {
                Err(EvalError::MissingTensor(_)) => None,
                found => tensors.insert(spec.name, found?),
            };
        }
    }
    Ok(tensors)
}

/// The tensor of this name, if its extents are these.
fn find(source: &dyn Source, name: &TensorName, dims: &[u64]) -> Result<usize, EvalError> {
    let name = name.to_string();
    let Some(tensor) = source.find(&name) else { return Err(EvalError::MissingTensor(name)) };
    let found = &source.tensors()[tensor].dims;
    // Files may leave out trailing extents of 1.
    let extent = |dims: &[u64], i: usize| dims.get(i).copied().unwrap_or(1);
    let n = dims.len().max(found.len());
    match (0..n).all(|i| extent(found, i) == extent(dims, i)) {
        true => Ok(tensor),
        false => {
            let (found, expected) = (found.clone(), dims.to_vec());
            Err(EvalError::Shape { tensor: name, found, expected })
        }
    }
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
            tensors: Arc::new(find_all(hparams, source)?),
            rotary: Rotary::default(),
            simd: Simd::detect(),
            activations: Activations::F32,
            compressed: false,
            differs_from: 0,
            observer: None,
        };
        // Only now is it certain that the number of dimensions is a real one.
        let n_rot = hparams.attention.n_rot() as usize;
        model.rotary = Rotary::new(&hparams.rope, n_rot);
        if source.find("rope_freqs.weight").is_some() {
            let name = TensorName::weight(None, Kind::RopeFreqs);
            let divisors = find(source, &name, &[n_rot as u64 / 2])?;
            model.rotary.divide(&model.values(divisors)?);
        }
        Ok(model)
    }

    /// Has keys and values of latent attention stay compressed, as llama.cpp computes: what is multiplied
    /// with `attn_k_b` and `attn_v_b` are then queries, and means of latents. Rounded activations are so
    /// in any case.
    pub fn keep_compressed(&mut self) {
        self.compressed = true;
    }

    /// Says that embeddings and all layers before this one are those of the reference that it will be
    /// compared with, so that these need not run twice.
    pub fn differs_from(&mut self, layer: u32) {
        self.differs_from = layer;
    }

    /// The first layer that may differ from a reference's.
    pub(super) fn first_different(&self) -> u32 {
        self.differs_from
    }

    /// Whether they do.
    pub(super) fn keeps_compressed(&self) -> bool {
        self.compressed || self.activations != Activations::F32
    }

    /// Has someone watch the products of the layers, which does not change what is computed.
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

    /// The weights of a layer, or all, will not be read again soon.
    pub(super) fn release(&self, layer: Option<u32>) {
        let release = |i: usize| self.source.release(i, 0..self.source.tensors()[i].n_rows());
        match layer {
            None => (0..self.source.tensors().len()).for_each(release),
            layer => {
                let of_layer = self.tensors.iter().filter(|(name, _)| name.layer == layer);
                of_layer.for_each(|(_, &tensor)| release(tensor));
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

    /// The weights of a tensor, or of each of the matrices that it stacks.
    fn matrix(&self, tensor: usize) -> Matrix<'a> {
        let &Self { source, simd, activations, observer, .. } = self;
        let extent = |i: usize| source.tensors()[tensor].dims.get(i).map_or(1, |&n| n as usize);
        let (columns, rows) = (extent(0), extent(1));
        Matrix { source, tensor, first_row: 0, rows, columns, simd, activations, observer }
    }

    /// A vector's values, which have to be finite.
    fn values(&self, tensor: usize) -> Result<Vec<f32>, EvalError> {
        let meta = &self.source.tensors()[tensor];
        let mut values = vec![0.0; meta.n_elements() as usize];
        self.source.read_rows(tensor, 0, &mut values)?;
        match values.iter().position(|value| !value.is_finite()) {
            None => Ok(values),
            Some(element) => {
                let (tensor, value) = (meta.name.clone(), values[element]);
                Err(EvalError::Weight { tensor, element, value })
            }
        }
    }

    /// A tensor outside of the layers.
    fn outer(&self, kind: Kind) -> usize {
        self.tensors[&TensorName::weight(None, kind)]
    }

    fn of_layer(&self, number: u32) -> Layer<'_, 'a> {
        Layer { model: self, number }
    }

    /// The output matrix; the token embedding where they are tied.
    pub(super) fn output(&self) -> Matrix<'a> {
        // It is taken in tiles, and belongs to no layer.
        Matrix { observer: None, ..self.matrix(self.outer(self.output_kind())) }
    }

    fn output_kind(&self) -> Kind {
        match self.tensors.contains_key(&TensorName::weight(None, Kind::Output)) {
            true => Kind::Output,
            false => Kind::TokenEmbd,
        }
    }

    /// Tells the observer, where there is one, of embedded tokens.
    pub(super) fn observe_embeddings(&self, tokens: &[u32]) -> Result<(), EvalError> {
        let Some(observer) = self.observer else { return Ok(()) };
        let tensor = self.outer(Kind::TokenEmbd);
        tokens
            .chunks(OBSERVED_TOKENS)
            .try_for_each(|tokens| observer.embedded(tensor, tokens, self.embed(tokens)?.view()))
    }

    /// Tells the observer, where there is one, of products of the output matrix with normalised states.
    pub(super) fn observe_output(&self, normed: ArrayView2<f32>) -> Result<(), EvalError> {
        let Some(observer) = self.observer else { return Ok(()) };
        let output = self.output();
        let threads = rayon::current_num_threads();
        let fit = OBSERVED_LOGITS / output.rows.max(1) / threads;
        let rows = normed.nrows().div_ceil(threads).min(fit).max(1);
        let parts: Vec<_> = normed.axis_chunks_iter(Axis(0), rows).collect();
        parts.into_par_iter().try_for_each(|x| {
            let y = output.apply_here(x)?;
            observer.product(output.tensor, 0, x, y.view())
        })
    }

    /// Embeddings of tokens, one row each.
    ///
    /// # Errors
    /// A token beyond the vocabulary, or whose embedding is not finite.
    pub fn embed(&self, tokens: &[u32]) -> Result<Array2<f32>, EvalError> {
        self.embed_with(self.matrix(self.outer(Kind::TokenEmbd)), tokens)
    }

    fn embed_with(&self, matrix: Matrix, tokens: &[u32]) -> Result<Array2<f32>, EvalError> {
        let (embd, n_vocab) = (self.hparams.n_embd as usize, self.hparams.n_vocab);
        let mut states = Array2::zeros((tokens.len(), embd));
        // Most tokens of a text have been there before.
        let mut read = HashMap::new();
        for (i, &token) in tokens.iter().enumerate() {
            if token >= n_vocab {
                return Err(EvalError::Token { token, n_vocab });
            }
            match read.entry(token) {
                Entry::Occupied(place) => {
                    let (before, mut here) = states.view_mut().split_at(Axis(0), i);
                    here.row_mut(0).assign(&before.row(*place.get()));
                }
                Entry::Vacant(place) => {
                    place.insert(i);
                    states.row_mut(i).assign(&matrix.decode(token as usize, 1)?.row(0));
                }
            }
        }
        match first_not_finite(self.simd, states.view()) {
            Some(token) => {
                let place = format!("`{}`", matrix.name());
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
        let chunks = Chunks { ctx, first: 0 };
        Half::BOTH.into_iter().try_for_each(|half| self.half(layer, half, states, chunks, memory))
    }

    /// Passes states through one half of a layer, as [`Model::layer`] does through both. After the last layer
    /// nobody asks for the first tokens of each chunk; the states of those that need not pass stay as they are.
    pub(super) fn half(
        &self,
        layer: u32,
        half: Half,
        states: &mut Array2<f32>,
        chunks: Chunks,
        memory: usize,
    ) -> Result<(), EvalError> {
        let part = budget::part(self.hparams, chunks.ctx, memory);
        match half {
            Half::Attention => self.attention(layer, states, chunks, part),
            Half::FeedForward => self.feed_forward(layer, states, chunks, part),
        }
    }

    fn attention(
        &self,
        layer: u32,
        states: &mut Array2<f32>,
        chunks: Chunks,
        part: usize,
    ) -> Result<(), EvalError> {
        let (eps, tensors, ctx) = (self.hparams.rms_eps, self.of_layer(layer), chunks.ctx);
        let (attention, weight) = (tensors.attention()?, tensors.vector(Kind::AttnNorm)?);
        for (i, mut states) in states.axis_chunks_iter_mut(Axis(0), part).enumerate() {
            let x = rms_norm(self.simd, states.view(), &weight, eps);
            let change = attention.run(self.hparams, &self.rotary, x.view(), chunks)?;
            add(states.view_mut(), &change, chunks);
            if let Some(row) = first_not_finite(self.simd, states.view()) {
                // Its own chunk up to itself has a say in it.
                let x = x.slice(s![row / ctx * ctx..=row, ..]);
                let chunks = Chunks { first: 0, ..chunks };
                let run = |model: &Model| {
                    model.of_layer(layer).attention()?.run(self.hparams, &self.rotary, x, chunks)
                };
                let place = self.culprit("attention", run)?;
                return Err(EvalError::NotFinite { layer, place, token: i * part + row });
            }
        }
        Ok(())
    }

    fn feed_forward(
        &self,
        layer: u32,
        states: &mut Array2<f32>,
        chunks: Chunks,
        part: usize,
    ) -> Result<(), EvalError> {
        let (eps, tensors) = (self.hparams.rms_eps, self.of_layer(layer));
        let Chunks { ctx, first } = chunks;
        let (feed_forward, weight) = (tensors.feed_forward()?, tensors.vector(Kind::FfnNorm)?);
        let x = rms_norm(self.simd, chunks.tails(states.view()).view(), &weight, eps);
        let change = feed_forward.run(x.view(), part)?;
        add(states.view_mut(), &change, chunks);
        if let Some(token) = first_not_finite(self.simd, states.view()) {
            let row = token / ctx * (ctx - first) + token % ctx - first;
            let x = x.slice(s![row..=row, ..]);
            let run = |model: &Model| model.of_layer(layer).feed_forward()?.run(x, 1);
            let place = self.culprit("the feed-forward network", run)?;
            return Err(EvalError::NotFinite { layer, place, token });
        }
        Ok(())
    }

    /// Shows the observer what goes into the matrices of a stage, of states that have passed what is before its
    /// half of the layer.
    pub(super) fn look(
        &self,
        layer: u32,
        stage: Stage,
        states: ArrayView2<f32>,
        ctx: usize,
        memory: usize,
    ) -> Result<(), EvalError> {
        let (eps, tensors) = (self.hparams.rms_eps, self.of_layer(layer));
        let part = budget::part(self.hparams, ctx, memory);
        if stage.half() == Half::FeedForward {
            let x = rms_norm(self.simd, states, &tensors.vector(Kind::FfnNorm)?, eps);
            return tensors.feed_forward()?.look(x.view(), part, stage);
        }
        let (attention, weight) = (tensors.attention()?, tensors.vector(Kind::AttnNorm)?);
        states.axis_chunks_iter(Axis(0), part).try_for_each(|states| {
            let x = rms_norm(self.simd, states, &weight, eps);
            let chunks = Chunks { ctx, first: 0 };
            let heads = attention.heads(self.hparams, &self.rotary, x.view(), chunks)?;
            attention.output().shown(heads.view())
        })
    }

    /// The first layer of each kind, with tensors of other shapes or types than those before, and how many
    /// there are of it; that for drafts among them where it is asked for.
    pub(super) fn kinds_of_layers(&self, drafted: bool) -> Vec<(u32, u32)> {
        let kind = |layer: u32| {
            let of_layer = self.tensors.iter().filter(|(name, _)| name.layer == Some(layer));
            let described = of_layer.map(|(name, &tensor)| {
                let meta = &self.source.tensors()[tensor];
                format!("{} {:?} {}", TensorName { layer: None, ..*name }, meta.dims, meta.dtype)
            });
            let mut described: Vec<String> = described.collect();
            described.sort_unstable();
            described
        };
        let mut kinds: Vec<(Vec<String>, u32, u32)> = Vec::new();
        for layer in 0..self.hparams.n_layer + u32::from(drafted) {
            let found = kind(layer);
            match kinds.iter_mut().find(|(known, _, _)| *known == found) {
                Some((_, _, count)) => *count += 1,
                None => kinds.push((found, layer, 1)),
            }
        }
        kinds.into_iter().map(|(_, layer, count)| (layer, count)).collect()
    }

    /// What attention adds to states.
    pub(super) fn attention_of(
        &self,
        layer: u32,
        states: ArrayView2<f32>,
        ctx: usize,
    ) -> Result<Rows, EvalError> {
        let tensors = self.of_layer(layer);
        let weight = tensors.vector(Kind::AttnNorm)?;
        let x = rms_norm(self.simd, states, &weight, self.hparams.rms_eps);
        tensors.attention()?.run(self.hparams, &self.rotary, x.view(), Chunks { ctx, first: 0 })
    }

    /// The feed-forward network of a layer.
    pub(super) fn feed_forward_of(&self, layer: u32) -> Result<FeedForward<'_>, EvalError> {
        self.of_layer(layer).feed_forward()
    }

    /// What goes into the `down` of a routed expert, for normalised inputs, on all threads.
    pub(crate) fn hidden(
        &self,
        layer: u32,
        expert: usize,
        x: ArrayView2<f32>,
    ) -> Result<Array2<f32>, EvalError> {
        match self.of_layer(layer).feed_forward()? {
            FeedForward::Experts(experts) => {
                Ok(experts.routed.expert(expert).hidden_on_all(x)?.into_array())
            }
            FeedForward::Dense(dense) => Ok(dense.hidden_on_all(x)?.into_array()),
        }
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
            tensors: self.tensors.clone(),
            rotary: Rotary::default(),
            simd: self.simd,
            activations: self.activations,
            compressed: self.compressed,
            differs_from: self.differs_from,
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
        let weight = self.values(self.outer(Kind::OutputNorm))?;
        Ok(rms_norm(self.simd, states, &weight, self.hparams.rms_eps).into_array())
    }

    /// Logits of normalised states, one row a token, one column a token of the vocabulary.
    ///
    /// # Errors
    /// Weights that cannot be read.
    pub fn logits(&self, normed: ArrayView2<f32>) -> Result<Array2<f32>, EvalError> {
        Ok(self.output().apply(normed)?.into_array())
    }

    /// Layers that take part in the forward pass.
    pub(super) fn n_layer(&self) -> u32 {
        self.hparams.n_layer
    }

    /// Checks that there is a layer for multi-token prediction.
    pub(super) fn check_drafts(&self) -> Result<(), EvalError> {
        if self.hparams.n_nextn == 0 {
            let text = "the model has no layer for multi-token prediction".to_owned();
            return Err(EvalError::Hparams(text));
        }
        let needed = self.hparams.layer_tensors(self.n_layer()).into_iter();
        let mut needed = needed.filter(|spec| !spec.optional).map(|spec| spec.name);
        match needed.find(|name| !self.tensors.contains_key(name)) {
            Some(name) => Err(EvalError::MissingTensor(name.to_string())),
            None => Ok(()),
        }
    }

    /// What the first layer for multi-token prediction takes in: normalised states of tokens, and the
    /// tokens after them.
    pub(super) fn draft_input(
        &self,
        next: &[u32],
        normed: ArrayView2<f32>,
    ) -> Result<Array2<f32>, EvalError> {
        let (layer, eps) = (self.of_layer(self.n_layer()), self.hparams.rms_eps);
        let own = layer.optional(Kind::NextnEmbedTokens);
        let embedding = own.unwrap_or(self.outer(Kind::TokenEmbd));
        let embedded = self.embed_with(self.matrix(embedding), next)?;
        let [enorm, hnorm] = [Kind::NextnEnorm, Kind::NextnHnorm].map(|kind| layer.vector(kind));
        let n = self.hparams.n_embd as usize;
        let mut both = Rows::new(next.len(), 2 * n);
        both.slice_mut(s![.., ..n]).assign(&rms_norm(self.simd, embedded.view(), &enorm?, eps));
        both.slice_mut(s![.., n..]).assign(&rms_norm(self.simd, normed, &hnorm?, eps));
        let matrix = layer.matrix(Kind::NextnEhProj)?;
        let input = matrix.apply(both.view())?.into_array();
        match first_not_finite(self.simd, input.view()) {
            Some(token) => {
                let (layer, place) = (layer.number, format!("`{}`", matrix.name()));
                Err(EvalError::NotFinite { layer, place, token })
            }
            None => Ok(input),
        }
    }

    /// States that have passed that layer, normalised for its output matrix.
    pub(super) fn draft_norm(&self, states: ArrayView2<f32>) -> Result<Array2<f32>, EvalError> {
        let norm = self.of_layer(self.n_layer()).optional(Kind::NextnSharedHeadNorm);
        let weight = self.values(norm.unwrap_or(self.outer(Kind::OutputNorm)))?;
        Ok(rms_norm(self.simd, states, &weight, self.hparams.rms_eps).into_array())
    }

    /// The output matrix of that layer, where it does not share the model's.
    pub(super) fn own_draft_output(&self) -> Option<usize> {
        self.of_layer(self.n_layer()).optional(Kind::NextnSharedHeadHead)
    }

    /// The output matrix of that layer.
    pub(super) fn draft_output(&self) -> Matrix<'a> {
        match self.own_draft_output() {
            Some(own) => Matrix { observer: None, ..self.matrix(own) },
            None => self.output(),
        }
    }
}

/// The tensors of a layer, as its parts take them.
struct Layer<'m, 'a> {
    model: &'m Model<'a>,
    number: u32,
}

impl<'m, 'a> Layer<'m, 'a> {
    fn tensor(&self, kind: Kind, part: Part) -> Result<usize, EvalError> {
        let name = TensorName { layer: Some(self.number), kind, part };
        let missing = || EvalError::MissingTensor(name.to_string());
        self.model.tensors.get(&name).copied().ok_or_else(missing)
    }

    /// The weights of a kind that not all models have.
    fn optional(&self, kind: Kind) -> Option<usize> {
        self.tensor(kind, Part::Weight).ok()
    }

    fn matrix(&self, kind: Kind) -> Result<Matrix<'a>, EvalError> {
        Ok(self.model.matrix(self.tensor(kind, Part::Weight)?))
    }

    fn vector(&self, kind: Kind) -> Result<Vec<f32>, EvalError> {
        self.model.values(self.tensor(kind, Part::Weight)?)
    }

    fn bias(&self, kind: Kind) -> Result<Vec<f32>, EvalError> {
        self.model.values(self.tensor(kind, Part::Bias)?)
    }

    fn attention(&self) -> Result<Attention<'a>, EvalError> {
        Ok(match &self.model.hparams.attention {
            model::Attention::Latent(a) => Attention::Latent(self.latent(a)?, a),
            model::Attention::Grouped(a) => Attention::Grouped(self.grouped(a)?, a),
        })
    }

    fn grouped(&self, a: &model::Grouped) -> Result<Grouped<'a>, EvalError> {
        let part = |kind: Kind, biased: bool| {
            let bias = biased.then(|| self.bias(kind)).transpose()?;
            Ok::<_, EvalError>(Biased { matrix: self.matrix(kind)?, bias })
        };
        Ok(Grouped {
            query: part(Kind::AttnQ, a.qkv_bias)?,
            key: part(Kind::AttnK, a.qkv_bias)?,
            value: part(Kind::AttnV, a.qkv_bias)?,
            output: part(Kind::AttnOutput, a.output_bias)?,
            norms: match a.qk_norm {
                true => Some([self.vector(Kind::AttnQNorm)?, self.vector(Kind::AttnKNorm)?]),
                false => None,
            },
        })
    }

    fn latent(&self, a: &'a model::Latent) -> Result<Latent<'a>, EvalError> {
        let query = match a.q_lora_rank {
            None => Query::Direct(self.matrix(Kind::AttnQ)?),
            Some(_) => Query::LowRank {
                a: self.matrix(Kind::AttnQA)?,
                norm: self.vector(Kind::AttnQANorm)?,
                b: self.matrix(Kind::AttnQB)?,
            },
        };
        Ok(Latent {
            query,
            kv_a: self.matrix(Kind::AttnKvAMqa)?,
            kv_a_norm: self.vector(Kind::AttnKvANorm)?,
            k_b: self.matrix(Kind::AttnKB)?,
            v_b: self.matrix(Kind::AttnVB)?,
            output: self.matrix(Kind::AttnOutput)?,
            // As in llama.cpp, what predicts further tokens attends to all.
            indexer: match a.indexer.as_ref().filter(|_| self.number < self.model.n_layer()) {
                Some(of) => Some(Box::new(Indexer {
                    of,
                    queries: self.matrix(Kind::IndexerAttnQB)?,
                    keys: self.matrix(Kind::IndexerAttnK)?,
                    norm: self.vector(Kind::IndexerKNorm)?,
                    bias: self.bias(Kind::IndexerKNorm)?,
                    counts: self.matrix(Kind::IndexerProj)?,
                })),
                None => None,
            },
            compressed: self.model.keeps_compressed(),
        })
    }

    fn feed_forward(&self) -> Result<FeedForward<'m>, EvalError>
    where
        'a: 'm,
    {
        let gated = |[gate, up, down]: [Kind; 3]| -> Result<Gated<'a>, EvalError> {
            Ok(Gated { gate: self.matrix(gate)?, up: self.matrix(up)?, down: self.matrix(down)? })
        };
        let moe = self.model.hparams.moe.as_ref();
        let Some(moe) = moe.filter(|moe| self.number >= moe.leading_dense) else {
            let dense = gated([Kind::FfnGate, Kind::FfnUp, Kind::FfnDown])?;
            return Ok(FeedForward::Dense(Box::new(dense)));
        };
        let shared = [Kind::FfnGateShexp, Kind::FfnUpShexp, Kind::FfnDownShexp];
        Ok(FeedForward::Experts(Box::new(Experts {
            moe,
            router: self.matrix(Kind::FfnGateInp)?,
            bias: match moe.gating {
                Gating::Softmax => None,
                Gating::Sigmoid => Some(self.bias(Kind::ExpProbsB)?),
            },
            routed: gated([Kind::FfnGateExps, Kind::FfnUpExps, Kind::FfnDownExps])?,
            shared: (moe.n_shared > 0).then(|| gated(shared)).transpose()?,
        })))
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
            ("number of the indexer's heads", a.indexer.map_or(1, |indexer| indexer.n_head)),
            ("tokens that the indexer chooses", a.indexer.map_or(1, |indexer| indexer.top_k)),
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
