//! A text on its way through two models at once that differ in their weights: the states are those of
//! the second, and the first shows what goes into the matrices of the next layer.

use super::error::EvalError;
use super::model::Model;
use super::perplexity::PerplexityOptions;
use super::walk::{Walk, identity};
use crate::monitor::Monitor;
use ndarray::ArrayView2;

/// All chunks of a text between two layers.
pub(crate) struct Passage<'m, 'a> {
    walk: Walk<'m, 'a>,
    original: &'m Model<'a>,
}

impl<'m, 'a> Passage<'m, 'a> {
    /// Begins with the embeddings, or with what was left of an earlier passage for the same `purpose`,
    /// as far as it has passed no more than so many layers.
    ///
    /// # Errors
    /// A text too short, embeddings that cannot be read.
    pub fn begin(
        original: &'m Model<'a>,
        changed: &'m Model<'a>,
        tokens: &[u32],
        options: &PerplexityOptions,
        purpose: u64,
        layers: u32,
    ) -> Result<Self, EvalError> {
        let n_chunks = options.checked_chunks(tokens)?;
        let identity = identity(&[changed], &tokens[..n_chunks * options.ctx], options) ^ purpose;
        let mut walk = Walk::new(changed, tokens, n_chunks, options, identity)?;
        walk.restart_beyond(layers)?;
        walk.begin()?;
        Ok(Self { walk, original })
    }

    /// Shows the observer of the original what goes into the matrices of a layer.
    ///
    /// # Errors
    /// Weights that cannot be read, results that are not finite.
    pub fn look(&self, layer: u32, monitor: &dyn Monitor) -> Result<(), EvalError> {
        self.walk.look(self.original, layer, monitor)
    }

    /// Passes all chunks through a layer of the changed model.
    ///
    /// # Errors
    /// As [`Passage::look`].
    pub fn pass(&mut self, layer: u32, monitor: &dyn Monitor) -> Result<(), EvalError> {
        self.walk.layer(layer, monitor)
    }

    /// Has the layer for multi-token prediction of a model draft behind the layers of the changed one, and hands
    /// on what goes into its output matrix, some tokens at a time.
    ///
    /// # Errors
    /// As [`Passage::look`].
    pub fn draft(
        &self,
        model: &Model,
        monitor: &dyn Monitor,
        mut see: impl FnMut(ArrayView2<f32>),
    ) -> Result<(), EvalError> {
        self.walk.draft(model, monitor, |_, drafted| {
            see(model.draft_norm(drafted)?.view());
            Ok(())
        })
    }

    /// Hands on what goes into the output matrix, some tokens at a time.
    ///
    /// # Errors
    /// States that cannot be read.
    pub fn last(&self, see: impl FnMut(ArrayView2<f32>)) -> Result<(), EvalError> {
        self.walk.last(see)
    }
}
