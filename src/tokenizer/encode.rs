//! Text to tokens with the `tokenizers` crate, from tokenizer.json or from GGUF metadata alone.

use super::error::TokenizerError;
use super::pre::Pre;
use super::spm::Spm;
use super::vocab::{MERGES, MODEL, PRE, TOKENS, TokenType, Vocab, special_id};
use crate::gguf::Metadata;
use crate::warning::Warning;
use serde_json::{Value, json};
use std::path::Path;

/// Makes tokens of text.
pub struct Tokenizer {
    engine: Engine,
    bos: Option<u32>,
    warnings: Vec<Warning>,
}

enum Engine {
    Bpe(Box<tokenizers::Tokenizer>),
    Spm(Spm),
}

impl Tokenizer {
    /// From a checkpoint's vocabulary, by the rules that a GGUF file of it would be read with. Where
    /// GGUF has no name for these, tokenizer.json tells them.
    ///
    /// # Errors
    /// The file cannot be read, or the engine refuses.
    pub fn from_checkpoint(dir: &Path, vocab: &Vocab) -> Result<Self, TokenizerError> {
        if Pre::named(&vocab.pre).is_some() {
            return Self::from_vocab(vocab);
        }
        let json = super::files::read_json(&dir.join("tokenizer.json"))?;
        let ignore_merges = json["model"]["ignore_merges"] == true;
        Self::new(&json_of(vocab, json["pre_tokenizer"].clone(), ignore_merges), vocab)
    }

    /// From what a GGUF file holds: byte-level BPE (`gpt2`) or SentencePiece (`llama`).
    ///
    /// # Errors
    /// Another kind of tokenizer, missing keys, and what [`Tokenizer::from_vocab`] refuses.
    pub fn from_metadata(metadata: &Metadata) -> Result<Self, TokenizerError> {
        match metadata.str(MODEL)? {
            Some("llama") => {
                let engine = Engine::Spm(Spm::read(metadata)?);
                let (bos, warnings) = bos(metadata)?;
                Ok(Self { engine, bos, warnings })
            }
            _ => Self::from_vocab(&Vocab::read(metadata)?),
        }
    }

    /// From a byte-level BPE vocabulary.
    ///
    /// # Errors
    /// A pre-tokenizer whose rules are not known, no merges, or merges that do not fit the tokens.
    pub fn from_vocab(vocab: &Vocab) -> Result<Self, TokenizerError> {
        let pre =
            Pre::named(&vocab.pre).ok_or_else(|| TokenizerError::NoRules(vocab.pre.clone()))?;
        Self::new(&json_of(vocab, pre.section(), pre.ignore_merges), vocab)
    }

    fn new(json: &Value, vocab: &Vocab) -> Result<Self, TokenizerError> {
        if vocab.merges.is_empty() {
            let what = "is missing, so that text cannot be made tokens".to_owned();
            return Err(TokenizerError::Key { key: MERGES, what });
        }
        let mut engine =
            tokenizers::Tokenizer::from_bytes(json.to_string()).map_err(TokenizerError::Engine)?;
        engine.set_encode_special_tokens(true);
        let bos = vocab.special("bos").filter(|_| vocab.add_bos());
        Ok(Self { engine: Engine::Bpe(Box::new(engine)), bos, warnings: vocab.warnings.clone() })
    }

    /// What was odd about the vocabulary.
    pub fn warnings(&self) -> &[Warning] {
        &self.warnings
    }

    /// The tokens of a text, with the BOS token before them where the vocabulary says so. Special
    /// tokens in the text are text, as in llama-perplexity.
    ///
    /// # Errors
    /// The engine refuses.
    pub fn encode(&self, text: &str) -> Result<Vec<u32>, TokenizerError> {
        self.encode_with(text, false)
    }

    /// As [`Tokenizer::encode`], but names of special tokens in the text stand for these tokens, as with
    /// `--parse-special` of llama-imatrix.
    ///
    /// # Errors
    /// The engine refuses.
    pub fn encode_special(&self, text: &str) -> Result<Vec<u32>, TokenizerError> {
        self.encode_with(text, true)
    }

    fn encode_with(&self, text: &str, special: bool) -> Result<Vec<u32>, TokenizerError> {
        let bpe = |engine: &tokenizers::Tokenizer| {
            let encoding = engine.encode_fast(text, false).map_err(TokenizerError::Engine)?;
            Ok::<_, TokenizerError>(encoding.get_ids().to_vec())
        };
        let mut tokens = match &self.engine {
            Engine::Spm(spm) => spm.encode(text, special)?,
            Engine::Bpe(engine) if special => {
                let mut engine = engine.clone();
                engine.set_encode_special_tokens(false);
                bpe(&engine)?
            }
            Engine::Bpe(engine) => bpe(engine)?,
        };
        tokens.splice(0..0, self.bos);
        Ok(tokens)
    }

    /// The token that sequences begin with, if any.
    pub fn bos(&self) -> Option<u32> {
        self.bos
    }
}

/// The token that a GGUF model's sequences begin with, if any, whether or not text can be made
/// tokens with its vocabulary here; with what was odd about it.
///
/// # Errors
/// A key of another type than it should have.
pub fn bos(metadata: &Metadata) -> Result<(Option<u32>, Vec<Warning>), TokenizerError> {
    let spm = metadata.str(MODEL)? == Some("llama");
    let adds = spm || Pre::adds_bos(metadata.str(PRE)?.unwrap_or_default());
    let n = metadata.strings(TOKENS)?.map_or(usize::MAX, <[_]>::len);
    let mut warnings = Vec::new();
    let id = special_id(metadata, "bos", n, &mut warnings).or(spm.then_some(1));
    let adds = metadata.bool("tokenizer.ggml.add_bos_token")?.unwrap_or(adds);
    Ok((id.filter(|_| adds), warnings))
}

/// What tokenizer.json says about a vocabulary that is split by the rules of this section.
pub(super) fn json_of(vocab: &Vocab, pre_tokenizer: Value, ignore_merges: bool) -> Value {
    let mut tokens = serde_json::Map::new();
    let mut added: Vec<Value> = Vec::new();
    for (id, (token, ty)) in vocab.tokens.iter().zip(&vocab.types).enumerate() {
        match ty {
            _ if token.is_empty() => {}
            TokenType::Control | TokenType::UserDefined => added.push(json!({
                "id": id, "content": token, "single_word": false, "lstrip": false,
                "rstrip": false, "normalized": false, "special": *ty == TokenType::Control,
            })),
            TokenType::Unused if *token == format!("[PAD{id}]") => {}
            _ => drop(tokens.insert(token.clone(), id.into())),
        }
    }
    // An added token keeps its id only if the model knows it.
    for token in &added {
        if let Some(content) = token["content"].as_str() {
            tokens.insert(content.to_owned(), token["id"].clone());
        }
    }
    json!({
        "version": "1.0", "truncation": null, "padding": null, "added_tokens": added,
        "normalizer": null, "pre_tokenizer": pre_tokenizer, "post_processor": null,
        "decoder": null,
        "model": {
            "type": "BPE", "dropout": null, "unk_token": null,
            "continuing_subword_prefix": null, "end_of_word_suffix": null, "fuse_unk": false,
            "byte_fallback": false, "ignore_merges": ignore_merges,
            "vocab": tokens, "merges": vocab.merges,
        },
    })
}
