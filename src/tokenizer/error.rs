//! What can be wrong with a vocabulary.

use crate::gguf::GgufError;
use crate::io::IoError;
use crate::json::JsonError;
use std::path::PathBuf;

/// A vocabulary that cannot be read or used.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum TokenizerError {
    /// The system refused.
    #[error(transparent)]
    Io(#[from] IoError),
    /// A JSON file that cannot be read.
    #[error(transparent)]
    Json(#[from] JsonError),
    /// A tokenizer of another kind than byte-level BPE.
    #[error("{}: tokenizer model `{found}` is not supported, byte-level BPE is", path.display())]
    Kind {
        /// The file.
        path: PathBuf,
        /// What it says.
        found: String,
    },
    /// A tokenizer.json that contradicts itself or the model.
    #[error("{}: {what}", path.display())]
    Vocabulary {
        /// The file.
        path: PathBuf,
        /// What is wrong.
        what: String,
    },
    /// A pre-tokenizer without a known name.
    #[error(
        "{}: the pre-tokenizer is none of the known ones ({known}); if you know its GGUF name, \
         give it",
        path.display()
    )]
    UnknownPre {
        /// The file.
        path: PathBuf,
        /// The known names.
        known: String,
    },
    /// Rules that no pre-tokenizer of GGUF has, and no model was trained with.
    #[error(
        "{}: {what}: a tool has damaged the file, and text would become other tokens than the model \
         was trained on; take the file from the original model, or give the GGUF name \
         of the model's pre-tokenizer",
        path.display()
    )]
    Damaged {
        /// The file.
        path: PathBuf,
        /// What is wrong.
        what: String,
    },
    /// A token that the vocabulary does not have.
    #[error("there is no token {token}, the vocabulary has {n}, counted from 0")]
    NoToken {
        /// The token.
        token: u32,
        /// Tokens that there are.
        n: usize,
    },
    /// A pre-tokenizer that text cannot be split with here.
    #[error(
        "tokenizer.ggml.pre is `{0}`, whose rules are not known here; give the numbers of the text's \
         tokens"
    )]
    NoRules(String),
    /// Metadata that holds no complete vocabulary.
    #[error("metadata key `{key}`: {what}")]
    Key {
        /// The key.
        key: &'static str,
        /// What is wrong.
        what: String,
    },
    /// A metadata key of the wrong type.
    #[error(transparent)]
    Gguf(#[from] GgufError),
    /// The tokenizers crate refused.
    #[error("tokenizing: {0}")]
    Engine(#[source] Box<dyn std::error::Error + Send + Sync>),
}
