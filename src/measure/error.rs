//! What can go wrong between a text and a result.

use crate::convert::ConvertError;
use crate::eval::EvalError;
use crate::io::IoError;
use crate::json::JsonError;
use crate::tokenizer::TokenizerError;
use crate::warning::Warning;
use std::path::{Path, PathBuf};

/// A measurement that cannot be carried out.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum MeasureError {
    /// The system refused.
    #[error(transparent)]
    Io(#[from] IoError),
    /// A text in another encoding, or no text.
    #[error("{}: not UTF-8 text (byte {at}); is this the right file?", path.display())]
    NotUtf8 {
        /// The file.
        path: PathBuf,
        /// The first byte that is not UTF-8.
        at: usize,
    },
    /// A word where the number of a token is expected.
    #[error("{}: `{word}` is no number of a token", path.display())]
    NoToken {
        /// The file.
        path: PathBuf,
        /// The word.
        word: String,
    },
    /// A vocabulary that text cannot be made tokens with.
    #[error("{}: {error}", path.display())]
    Tokenizer {
        /// The model.
        path: PathBuf,
        /// What is wrong with it.
        #[source]
        error: TokenizerError,
    },
    /// A text too short to score.
    #[error(
        "{}: {found} tokens, but chunks of {ctx} need at least {needed}; use a longer text or smaller \
         chunks", path.display()
    )]
    TooShort {
        /// The text.
        path: PathBuf,
        /// Tokens in it.
        found: usize,
        /// Tokens that are needed.
        needed: usize,
        /// Tokens per chunk.
        ctx: usize,
    },
    /// A file of tasks.
    #[error("{}: {what}", path.display())]
    Tasks {
        /// The file.
        path: PathBuf,
        /// What is wrong with it.
        what: String,
    },
    /// A file that holds no part of a measurement, or a damaged one.
    #[error("{}: {what}", path.display())]
    Part {
        /// The file.
        path: PathBuf,
        /// What is wrong with it.
        what: String,
    },
    /// Parts of different measurements.
    #[error(
        "{} and {} are not of the same measurement: {what} is {} there and {} here",
        first.display(), path.display(), values[0], values[1]
    )]
    Unlike {
        /// The first part.
        first: PathBuf,
        /// Another one.
        path: PathBuf,
        /// What they differ in.
        what: String,
        /// What it is in either.
        values: [String; 2],
    },
    /// A part that is there twice.
    #[error("{} and {} are the same share, {share}", first.display(), path.display())]
    Twice {
        /// One of them.
        first: PathBuf,
        /// The other.
        path: PathBuf,
        /// Which share.
        share: String,
    },
    /// No parts at all.
    #[error("there is no part to join")]
    NoPart,
    /// Log-probabilities of chunks that are not all of a text.
    #[error("{}: log-probabilities are saved of whole texts, not of some chunks until an error is small", .0.display())]
    Sampled(PathBuf),
    /// A time limit that was over before any chunk was measured.
    #[error("the time limit was over before any chunk was measured")]
    NoTime,
    /// Parts that are missing.
    #[error("{}: {} of the measurement {} missing", first.display(), shares.join(", "),
        if shares.len() == 1 { "is" } else { "are" })]
    Missing {
        /// A part that is there.
        first: PathBuf,
        /// The shares that are not.
        shares: Vec<String>,
    },
    /// Too little memory.
    #[error(
        "{memory} bytes of memory are not enough, {needed} are needed{}",
        if *states > 0 { format!(", {states} of them for hidden states") } else { String::new() }
    )]
    Memory {
        /// Bytes allowed.
        memory: u64,
        /// Bytes needed at least.
        needed: u64,
        /// Bytes of them that a folder for hidden states would spare.
        states: u64,
    },
    /// What was measured for a mix, of another model or not of all types.
    #[error("{}: {what}", path.display())]
    OtherSensitivities {
        /// The file.
        path: PathBuf,
        /// How it does not belong here.
        what: String,
    },
    /// A file of sensitivities that cannot be read.
    #[error(transparent)]
    Json(#[from] JsonError),
    /// A tensor that may have none of the types.
    #[error("no type is left for `{tensor}`")]
    NoType {
        /// The tensor.
        tensor: String,
    },
    /// A size that no mix keeps to.
    #[error("{size} bytes are too few: the smallest types take {least}{}",
        if *by_role { "; the bytes of a role hold for it alone" } else { "" })]
    TooFewBytes {
        /// Bytes of the file.
        size: u64,
        /// Bytes of the tensors in their smallest types.
        least: u64,
        /// Whether roles have bytes of their own.
        by_role: bool,
    },
    /// A file that cannot be planned.
    #[error(transparent)]
    Plan(Box<ConvertError>),
    /// A folder for hidden states that is none.
    #[error("{}: not a folder; hidden states need one with room", .0.display())]
    NoFolder(PathBuf),
    /// A warning that whoever watches the work takes for an error.
    #[error("{0}")]
    Unwanted(Warning),
    /// Threads that the system does not give.
    #[error("threads: {0}")]
    Threads(#[from] rayon::ThreadPoolBuildError),
    /// A model's forward pass.
    #[error("{}: {error}", path.display())]
    Model {
        /// The model.
        path: PathBuf,
        /// What went wrong.
        #[source]
        error: EvalError,
    },
    /// A forward pass of no single model.
    #[error(transparent)]
    Eval(#[from] EvalError),
}

impl From<ConvertError> for MeasureError {
    fn from(error: ConvertError) -> Self {
        Self::Plan(Box::new(error))
    }
}

impl MeasureError {
    /// Whether the work was only asked to end.
    pub(super) fn is_cancelled(&self) -> bool {
        match self {
            Self::Model { error, .. } | Self::Eval(error) => matches!(error, EvalError::Cancelled),
            _ => false,
        }
    }

    pub(super) fn of(path: &Path, error: EvalError) -> Self {
        Self::Model { path: path.to_owned(), error }
    }

    /// An error of one of several models that run together, with that model's name.
    pub(super) fn of_several<'a>(
        error: EvalError,
        mut paths: impl Iterator<Item = &'a Path>,
    ) -> Self {
        match error {
            EvalError::Of { model, error } => match paths.nth(model) {
                Some(path) => Self::of(path, *error),
                None => Self::Eval(*error),
            },
            error => Self::Eval(error),
        }
    }
}
