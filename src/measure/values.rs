//! What has been measured of some chunks, before anything is reckoned from it.

use super::MeasureError;
use crate::eval::{Apart, Comparison, Perplexity, TokenValues, chunk_means, mean};
use std::collections::HashMap;
use std::ops::Range;

/// Values of scored tokens, chunk after chunk.
#[derive(Clone, Debug, Default)]
pub(super) struct Values {
    /// The chunks, by their number in the text.
    pub chunks: Vec<usize>,
    /// Negative log-likelihoods under the reference, or under the one model.
    pub nll: Vec<f64>,
    /// The models compared with it.
    pub models: Vec<OfModel>,
}

/// Values of a model compared with a reference.
#[derive(Clone, Debug, Default)]
pub(super) struct OfModel {
    pub tokens: Vec<TokenValues>,
    /// The errors of the states after each layer, over all chunks.
    pub layers: Vec<Apart>,
    /// The errors of the outputs of tensors.
    pub tensors: Vec<(String, Apart)>,
}

impl Values {
    /// Of no chunk.
    pub fn none(models: usize) -> Self {
        Self { models: vec![OfModel::default(); models], ..Self::default() }
    }

    /// Scored tokens of a chunk.
    fn per_chunk(&self) -> usize {
        self.nll.len() / self.chunks.len().max(1)
    }

    /// Adds other chunks. Where nothing was measured of layers or tensors, it is the others'.
    pub fn add(&mut self, other: Self) {
        self.chunks.extend(other.chunks);
        self.nll.extend(other.nll);
        for (own, other) in self.models.iter_mut().zip(other.models) {
            own.tokens.extend(other.tokens);
            own.layers.resize(own.layers.len().max(other.layers.len()), Apart::default());
            own.layers.iter_mut().zip(other.layers).for_each(|(own, other)| *own += other);
            for (name, error) in other.tensors {
                match own.tensors.iter_mut().find(|(known, _)| *known == name) {
                    Some((_, own)) => *own += error,
                    None => own.tensors.push((name, error)),
                }
            }
        }
    }

    /// Chunks at these places alone, in this order. Layers and tensors stay as they were.
    pub fn pick(&self, places: &[usize]) -> Self {
        let n = self.per_chunk();
        let token = |place: &usize| place * n..(place + 1) * n;
        let models = self.models.iter().map(|model| OfModel {
            tokens: places.iter().flat_map(|place| &model.tokens[token(place)]).copied().collect(),
            layers: model.layers.clone(),
            tensors: model.tensors.clone(),
        });
        Self {
            chunks: places.iter().map(|&place| self.chunks[place]).collect(),
            nll: places.iter().flat_map(|place| &self.nll[token(place)]).copied().collect(),
            models: models.collect(),
        }
    }

    /// In the order of the text.
    pub fn sorted(&self) -> Self {
        let mut places: Vec<usize> = (0..self.chunks.len()).collect();
        places.sort_by_key(|&place| self.chunks[place]);
        self.pick(&places)
    }

    /// In an order of the chunks of the text, as far as they are there.
    pub fn ordered(&self, order: &[usize]) -> Self {
        let places: HashMap<usize, usize> =
            self.chunks.iter().enumerate().map(|(place, &chunk)| (chunk, place)).collect();
        self.pick(&order.iter().filter_map(|chunk| places.get(chunk).copied()).collect::<Vec<_>>())
    }

    /// The chunks in a range alone, without what was found of all chunks together.
    pub fn within(&self, chunks: &Range<usize>) -> Self {
        let inside = |place: &usize| chunks.contains(&self.chunks[*place]);
        let places: Vec<usize> = (0..self.chunks.len()).filter(inside).collect();
        let mut part = self.pick(&places);
        part.models.iter_mut().for_each(|model| model.layers.clear());
        part
    }

    /// The largest of the relative standard errors: of the mean KL divergence of each model, or of the
    /// mean negative log-likelihood where there are none. Chunks are taken as independent.
    pub fn relative_error(&self) -> f64 {
        let of = |values: &[f64]| {
            let (mean, error) = mean(&chunk_means(values, self.chunks.len()));
            match self.chunks.len() {
                0 | 1 => f64::INFINITY,
                _ if error == 0.0 => 0.0,
                _ => error / mean.abs(),
            }
        };
        let of_models = self
            .models
            .iter()
            .map(|model| of(&model.tokens.iter().map(|token| token.kl).collect::<Vec<_>>()));
        match self.models.is_empty() {
            true => of(&self.nll),
            false => of_models.fold(0.0, f64::max),
        }
    }

    /// How well the reference predicts these chunks.
    pub fn own(&self) -> Perplexity {
        Perplexity::new(self.nll.clone(), self.chunks.len())
    }

    /// How far each model is from the reference.
    pub fn comparisons(&self) -> Result<Vec<Comparison>, MeasureError> {
        let compared = self.models.iter().map(|model| {
            Comparison::new(model.tokens.clone(), self.chunks.len(), model.layers.clone())
        });
        Ok(compared.collect::<Result<_, _>>()?)
    }
}
