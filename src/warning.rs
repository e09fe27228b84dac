//! What is not as one would expect, and yet no error.
//!
//! The library neither prints nor decides whether to go on; it hands warnings to whoever called
//! it, with what it made or through a [`crate::monitor::Monitor`].

use serde::{Deserialize, Serialize};

/// What a warning is about; a word that scripts can filter by.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
#[non_exhaustive]
pub enum Topic {
    /// Settings in config.json or in a GGUF file's metadata.
    Config,
    /// The model card.
    Card,
    /// Tokens, special ids, chat templates.
    Tokenizer,
    /// Which tensors there are, and in which files.
    Tensors,
    /// What tensors hold.
    Values,
    /// The importance matrix.
    Imatrix,
    /// Types asked for.
    Recipe,
    /// What is measured on.
    Text,
    /// Where results go.
    Output,
}

impl Topic {
    /// The word.
    pub fn name(self) -> &'static str {
        match self {
            Self::Config => "config",
            Self::Card => "card",
            Self::Tokenizer => "tokenizer",
            Self::Tensors => "tensors",
            Self::Values => "values",
            Self::Imatrix => "imatrix",
            Self::Recipe => "recipe",
            Self::Text => "text",
            Self::Output => "output",
        }
    }
}

/// Something that is not as one would expect. Its text names the file, key or tensor.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Warning {
    /// What it is about.
    pub topic: Topic,
    /// What it is, on one line.
    pub text: String,
}

impl Warning {
    /// A warning.
    pub fn new(topic: Topic, text: impl Into<String>) -> Self {
        Self { topic, text: text.into() }
    }
}

impl std::fmt::Display for Warning {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}: {}", self.topic.name(), self.text)
    }
}
