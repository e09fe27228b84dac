//! Texts, and the tokens that a model reads them as.

use super::{MeasureError, Options, Subject};
use crate::io::IoError;
use crate::model::Model;
use crate::monitor::Monitor;
use crate::names::hex;
use crate::tokenizer::{self, Tokenizer, TokenizerError, Vocab};
use crate::warning::{Topic, Warning};
use sha2::{Digest, Sha256};
use std::collections::HashSet;
use std::io::Read;
use std::path::{Path, PathBuf};

/// A text to measure on.
#[derive(Clone, Debug)]
pub struct Text {
    path: PathBuf,
    /// Of the whole file.
    sha256: String,
    content: Content,
    special: bool,
}

#[derive(Clone, Debug)]
enum Content {
    Characters(String),
    Tokens(Vec<u32>),
}

/// A text as a model reads it.
#[derive(Clone, Debug)]
pub struct Tokens {
    /// The tokens.
    pub tokens: Vec<u32>,
    /// The token that chunks begin with, if any.
    pub bos: Option<u32>,
}

impl Text {
    /// Reads a UTF-8 file, but for a newline at its end, which llama-perplexity drops as well.
    ///
    /// # Errors
    /// A file that cannot be read, or is no UTF-8.
    pub fn read(path: &Path) -> Result<Self, MeasureError> {
        let file = std::fs::File::open(path).map_err(|error| IoError::new(path, error))?;
        Self::from_reader(path, file)
    }

    /// As [`Text::read`], from a file that is open or what else gives bytes; `path` is what messages call it.
    ///
    /// # Errors
    /// As [`Text::read`].
    pub fn from_reader(path: &Path, mut reader: impl Read) -> Result<Self, MeasureError> {
        let mut bytes = Vec::new();
        reader.read_to_end(&mut bytes).map_err(|error| IoError::new(path, error))?;
        let sha256 = hex(&Sha256::digest(&bytes));
        let mut text = String::from_utf8(bytes).map_err(|error| MeasureError::NotUtf8 {
            path: path.to_owned(),
            at: error.utf8_error().valid_up_to(),
        })?;
        text.truncate(text.strip_suffix('\n').unwrap_or(&text).len());
        let (path, content) = (path.to_owned(), Content::Characters(text));
        Ok(Self { path, sha256, content, special: false })
    }

    /// The text, in which names of special tokens, such as those of a chat, stand for these tokens.
    pub fn with_special_tokens(self) -> Self {
        Self { special: true, ..self }
    }

    /// Reads a file of numbers of tokens, separated by spaces, commas or lines.
    ///
    /// # Errors
    /// A file that cannot be read, or other words in it.
    pub fn read_tokens(path: &Path) -> Result<Self, MeasureError> {
        let text = Self::read(path)?;
        let Content::Characters(characters) = &text.content else { return Ok(text) };
        let words = characters.split(|c: char| c.is_whitespace() || matches!(c, ',' | '[' | ']'));
        let tokens = words.filter(|word| !word.is_empty()).map(|word| {
            let path = path.to_owned();
            word.parse().map_err(|_| MeasureError::NoToken { path, word: word.to_owned() })
        });
        let tokens = tokens.collect::<Result<_, _>>()?;
        Ok(Self { content: Content::Tokens(tokens), ..text })
    }

    /// The text as a model reads it, so that it is not read again.
    ///
    /// # Errors
    /// As [`Text::tokens`].
    pub fn as_tokens(self, subject: Subject) -> Result<Self, MeasureError> {
        let content = Content::Tokens(self.tokens(subject, None, &())?.tokens);
        Ok(Self { content, ..self })
    }

    /// Parts of equal length of the text, or of as many chunks of it, cut where a chunk begins.
    ///
    /// # Errors
    /// As [`Text::tokens`], and a text of fewer than two chunks for each part.
    pub fn parts<const N: usize>(
        &self,
        subject: Subject,
        ctx: usize,
        chunks: Option<usize>,
    ) -> Result<[Self; N], MeasureError> {
        let tokens = self.tokens(subject, None, &())?.tokens;
        let n = (tokens.len() / ctx.max(1)).min(chunks.unwrap_or(usize::MAX));
        if n < 2 * N {
            let (path, found) = (self.path.clone(), tokens.len());
            return Err(MeasureError::TooShort { path, found, needed: 2 * N * ctx, ctx });
        }
        Ok(std::array::from_fn(|i| Self {
            path: self.path.clone(),
            sha256: self.sha256.clone(),
            special: self.special,
            content: Content::Tokens(tokens[n * i / N * ctx..n * (i + 1) / N * ctx].to_vec()),
        }))
    }

    /// SHA-256 of the file.
    pub fn sha256(&self) -> &str {
        &self.sha256
    }

    /// The file.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Warns of a model whose weights were rounded with this very text: it is better on it than elsewhere.
    pub(super) fn heed_calibration(
        &self,
        subject: Subject,
        monitor: &dyn Monitor,
    ) -> Result<(), MeasureError> {
        let Model::Gguf(model) = subject.model else { return Ok(()) };
        if model.metadata().str(CALIBRATED_WITH).ok().flatten() != Some(&*self.sha256) {
            return Ok(());
        }
        let (model, text) = (subject.path.display(), self.path.display());
        let warning = format!("{model} was calibrated with {text}; other text shows what it costs");
        heed(&[Warning::new(Topic::Text, warning)], monitor)
    }

    /// The text as a model reads it. `pre` names the pre-tokenizer of a checkpoint, where its user
    /// knows better than its files. The monitor is warned of what is odd about the vocabulary.
    ///
    /// # Errors
    /// A vocabulary that text cannot be made tokens with.
    pub fn tokens(
        &self,
        subject: Subject,
        pre: Option<&str>,
        monitor: &dyn Monitor,
    ) -> Result<Tokens, MeasureError> {
        self.first_tokens(usize::MAX, subject, pre, monitor)
    }

    /// What of the text options ask for, as [`Text::tokens`] gives it, on their threads.
    pub(super) fn wanted(
        &self,
        subject: Subject,
        options: &Options,
        monitor: &dyn Monitor,
    ) -> Result<Tokens, MeasureError> {
        let enough = options.ctx.saturating_mul(options.chunks.unwrap_or(usize::MAX));
        let pre = options.tokenizer_pre.as_deref();
        options.on_threads(|| self.first_tokens(enough, subject, pre, monitor))?
    }

    /// As [`Text::tokens`], but not more than the first ones need be made: at least `enough` of them.
    pub(super) fn first_tokens(
        &self,
        enough: usize,
        subject: Subject,
        pre: Option<&str>,
        monitor: &dyn Monitor,
    ) -> Result<Tokens, MeasureError> {
        let bad = |error| MeasureError::Tokenizer { path: subject.path.to_owned(), error };
        match &self.content {
            Content::Characters(text) => {
                let tokenizer = tokenizer(subject.model, pre).map_err(bad)?;
                heed(tokenizer.warnings(), monitor)?;
                let tokens = tokenizer.encode_some(text, self.special, enough).map_err(bad)?;
                Ok(Tokens { tokens, bos: tokenizer.bos() })
            }
            // The numbers are taken as they are; the vocabulary may not even be there.
            Content::Tokens(tokens) => {
                Ok(Tokens { tokens: tokens.clone(), bos: bos(subject, monitor).unwrap_or(None) })
            }
        }
    }
}

impl Tokens {
    /// The share of this text that stands in another one as well: of its pieces of 64 tokens, those that
    /// are found anywhere in the other.
    pub fn shared_with(&self, other: &Self) -> f64 {
        const PIECE: usize = 64;
        let known: HashSet<&[u32]> = other.tokens.windows(PIECE).collect();
        let pieces = self.tokens.chunks_exact(PIECE);
        let (n, shared) = (pieces.len(), pieces.filter(|piece| known.contains(piece)).count());
        shared as f64 / n.max(1) as f64
    }
}

/// Where a file says with which text its weights were rounded: SHA-256 of the text.
pub const CALIBRATED_WITH: &str = "requant.calibration.sha256";

/// Ends the work where the monitor takes a warning for an error.
pub(super) fn heed(warnings: &[Warning], monitor: &dyn Monitor) -> Result<(), MeasureError> {
    match warnings.iter().find(|&warning| !monitor.warn(warning.clone())) {
        Some(warning) => Err(MeasureError::Unwanted(warning.clone())),
        None => Ok(()),
    }
}

/// The token that chunks of a model begin with, if any.
pub(super) fn bos(subject: Subject, monitor: &dyn Monitor) -> Result<Option<u32>, MeasureError> {
    let bad = |error| MeasureError::Tokenizer { path: subject.path.to_owned(), error };
    match subject.model {
        Model::Checkpoint(model) => {
            let vocab = |pre| Vocab::from_checkpoint(model.dir(), &model.config().json(), pre);
            // The rules that split text are not needed, but for a default.
            let vocab = vocab(None).or_else(|_| vocab(Some(""))).map_err(bad)?;
            Ok(vocab.special("bos").filter(|_| vocab.add_bos()))
        }
        Model::Gguf(model) => {
            let (bos, warnings) = tokenizer::bos(model.metadata()).map_err(bad)?;
            heed(&warnings, monitor)?;
            Ok(bos)
        }
    }
}

pub(super) fn tokenizer(model: &Model, pre: Option<&str>) -> Result<Tokenizer, TokenizerError> {
    match model {
        Model::Checkpoint(model) => {
            let config = model.config().json();
            let vocab = match Vocab::from_checkpoint(model.dir(), &config, pre) {
                // tokenizer.json splits text whether or not GGUF has a name for its rules.
                Err(TokenizerError::UnknownPre { .. }) => {
                    Vocab::from_checkpoint(model.dir(), &config, Some(""))
                }
                vocab => vocab,
            }?;
            Tokenizer::from_checkpoint(model.dir(), &vocab)
        }
        Model::Gguf(model) => Tokenizer::from_metadata(model.metadata()),
    }
}
