//! What can go wrong in a forward pass.

use crate::io::IoError;
use crate::source::SourceError;
use std::path::PathBuf;

/// A forward pass that cannot be carried out.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum EvalError {
    /// A tensor that the architecture needs.
    #[error("tensor `{0}` is missing")]
    MissingTensor(String),
    /// A tensor of another shape than the hyper-parameters say.
    #[error("tensor `{tensor}` has dimensions {found:?}, expected {expected:?}")]
    Shape {
        /// The tensor.
        tensor: String,
        /// Its extents, innermost first.
        found: Vec<u64>,
        /// The extents needed.
        expected: Vec<u64>,
    },
    /// Hyper-parameters that no forward pass can be made of.
    #[error("{0}")]
    Hparams(String),
    /// Reading weights.
    #[error(transparent)]
    Source(#[from] SourceError),
    /// A token that the model has no embedding for.
    #[error("token {token} is beyond the model's vocabulary of {n_vocab}")]
    Token {
        /// The token.
        token: u32,
        /// Tokens in the vocabulary.
        n_vocab: u32,
    },
    /// An activation that is NaN or infinite.
    #[error(
        "layer {layer}: the output of {place} is not finite at token {token}; a weight is damaged or out of range"
    )]
    NotFinite {
        /// The layer; the number of layers for the output layer.
        layer: u32,
        /// The tensor that gave it, or the part of the layer where no single one did.
        place: String,
        /// The token's number in the text, or in the states that were handed over.
        token: usize,
    },
    /// A weight of a vector, which every token meets, that is NaN or infinite.
    #[error("`{tensor}`: element {element} is {value}, and so would be the state of every token")]
    Weight {
        /// The tensor.
        tensor: String,
        /// Its place in the tensor.
        element: usize,
        /// The value.
        value: f32,
    },
    /// One of several models that run together.
    #[error("{error}")]
    Of {
        /// 0 for the reference, then the models compared with it.
        model: usize,
        /// What is wrong.
        #[source]
        error: Box<EvalError>,
    },
    /// A log-probability of a file that is NaN or infinite.
    #[error("the file of log-probabilities is not finite at token {token}")]
    SavedNotFinite {
        /// The token's number in the text.
        token: usize,
    },
    /// A text too short.
    #[error("{found} tokens are too few for a chunk of {ctx}")]
    TooShort {
        /// Tokens.
        found: usize,
        /// Tokens per chunk.
        ctx: usize,
    },
    /// Options that no text can satisfy.
    #[error(
        "nothing to score: chunks need at least 4 tokens, 5 where drafts are, and there must be one chunk"
    )]
    NothingToScore,
    /// Two results that do not belong to the same text.
    #[error("results over {0} and {1} tokens cannot be paired")]
    Unpaired(usize, usize),
    /// Models whose logits cannot be compared.
    #[error("vocabularies of {0} and {1} tokens cannot be compared")]
    Vocabularies(u32, u32),
    /// A file of log-probabilities.
    #[error("{}: {what}", path.display())]
    Base {
        /// The file.
        path: PathBuf,
        /// What is wrong with it.
        what: String,
    },
    /// The system refused.
    #[error(transparent)]
    Io(#[from] IoError),
    /// Another process uses the same scratch files.
    #[error("{}: another process is at this evaluation", path.display())]
    InUse {
        /// The journal.
        path: PathBuf,
    },
    /// What an observer had seen of an evaluation that was stopped.
    #[error("what was kept of an interrupted evaluation does not fit this model")]
    Seen,
    /// The work was cancelled from outside.
    #[error("interrupted")]
    Cancelled,
}

impl EvalError {
    /// The error as seen by a caller for whom the states begin at token `first`.
    pub(super) fn after(mut self, first: usize) -> Self {
        if let Self::NotFinite { token, .. } = &mut self {
            *token += first;
        }
        self
    }

    /// The error in a text of which the states were a selection: `place` has the place in it of each token.
    pub(crate) fn placed(self, place: &dyn Fn(usize) -> usize) -> Self {
        match self {
            Self::NotFinite { layer, place: of, token } => {
                Self::NotFinite { layer, place: of, token: place(token) }
            }
            Self::SavedNotFinite { token } => Self::SavedNotFinite { token: place(token) },
            Self::Of { model, error } => Self::Of { model, error: Box::new(error.placed(place)) },
            error => error,
        }
    }

    /// The error as one of several models'.
    pub(super) fn of(self, model: usize) -> Self {
        match self {
            Self::Cancelled | Self::Of { .. } => self,
            error => Self::Of { model, error: Box::new(error) },
        }
    }
}
