//! A text on its way through a model whose weights change: before the states pass the next half of a layer, this or
//! another model shows what goes into its matrices.

use super::error::EvalError;
use super::model::Model;
use super::perplexity::PerplexityOptions;
use super::walk::{Walk, identity};
use crate::monitor::Monitor;
use ndarray::ArrayView2;

/// One half of a layer. Each adds to the states what it makes of them.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Half {
    Attention,
    FeedForward,
}

impl Half {
    /// Both, in their order.
    pub const BOTH: [Self; 2] = [Self::Attention, Self::FeedForward];

    /// Halves of layers before this one.
    pub fn number(self, layer: u32) -> u32 {
        2 * layer + u32::from(self == Self::FeedForward)
    }
}

/// Matrices of a layer, by what has to be known for their inputs.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Stage {
    /// Those of attention.
    Attention,
    /// `gate` and `up`.
    Hidden,
    /// `down`, behind these.
    Down,
}

impl Stage {
    /// All, in their order.
    pub const ALL: [Self; 3] = [Self::Attention, Self::Hidden, Self::Down];

    /// The half of the layer that they belong to.
    pub fn half(self) -> Half {
        if self == Self::Attention { Half::Attention } else { Half::FeedForward }
    }
}

/// All chunks of a text between two halves of layers.
pub(crate) struct Passage<'m, 'a> {
    walk: Walk<'m, 'a>,
}

impl<'m, 'a> Passage<'m, 'a> {
    /// Begins with the embeddings, or with what was left of an earlier passage for the same `purpose`,
    /// as far as it has passed no more than so many halves of layers.
    ///
    /// # Errors
    /// A text too short, embeddings that cannot be read.
    pub fn begin(
        model: &'m Model<'a>,
        tokens: &[u32],
        options: &PerplexityOptions,
        purpose: u64,
        halves: u32,
    ) -> Result<Self, EvalError> {
        let n_chunks = options.checked_chunks(tokens)?;
        // Others than walks of whole layers, whose states they are not.
        let identity = identity(&[model], &tokens[..n_chunks * options.ctx], options)
            ^ purpose.rotate_left(32);
        let mut walk = Walk::new(model, tokens, n_chunks, options, identity)?;
        walk.restart_beyond(halves)?;
        walk.begin()?;
        Ok(Self { walk })
    }

    /// Shows the observer of a model what goes into the matrices of a stage of the next half of a layer. The monitor
    /// can cancel it.
    ///
    /// # Errors
    /// Weights that cannot be read.
    pub fn look(
        &self,
        model: &Model,
        layer: u32,
        stage: Stage,
        monitor: &dyn Monitor,
    ) -> Result<(), EvalError> {
        self.walk.look(model, layer, stage, monitor)
    }

    /// Passes all chunks through a half of a layer. The monitor counts tokens.
    ///
    /// # Errors
    /// Weights that cannot be read, results that are not finite.
    pub fn pass(&mut self, layer: u32, half: Half, monitor: &dyn Monitor) -> Result<(), EvalError> {
        self.walk.half(layer, half, monitor)
    }

    /// Has the layer for multi-token prediction of a model draft behind the layers of the changed one, and hands
    /// on what goes into its output matrix, some tokens at a time.
    ///
    /// # Errors
    /// As [`Passage::pass`].
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
