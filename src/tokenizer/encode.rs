//! Text to tokens with the `tokenizers` crate, from tokenizer.json or from GGUF metadata alone.

use super::error::TokenizerError;
use super::pre::Pre;
use super::spm::Spm;
use super::vocab::{MODEL, PRE, TokenType, Vocab};
use crate::gguf::Metadata;
use serde_json::{Value, json};
use std::path::Path;

/// Makes tokens of text.
pub struct Tokenizer {
    engine: Engine,
    bos: Option<u32>,
}

enum Engine {
    Bpe(Box<tokenizers::Tokenizer>),
    Spm(Spm),
}

impl Tokenizer {
    /// From a checkpoint's tokenizer.json. `vocab` is what was read from the same folder.
    ///
    /// # Errors
    /// The file cannot be read, or the engine refuses it.
    pub fn from_checkpoint(dir: &Path, vocab: &Vocab) -> Result<Self, TokenizerError> {
        let mut json = super::checkpoint::read_json(&dir.join("tokenizer.json"))?;
        for token in json["added_tokens"].as_array_mut().into_iter().flatten() {
            // Tokens that steer the model are not always marked so.
            let id = token["id"].as_u64().and_then(|id| usize::try_from(id).ok());
            if id.and_then(|id| vocab.types.get(id)) == Some(&TokenType::Control) {
                token["special"] = true.into();
            }
        }
        Self::new(&json, vocab)
    }

    /// From what a GGUF file holds: byte-level BPE (`gpt2`) or SentencePiece (`llama`).
    ///
    /// # Errors
    /// Another kind of tokenizer, missing keys, and what [`Tokenizer::from_vocab`] refuses.
    pub fn from_metadata(metadata: &Metadata) -> Result<Self, TokenizerError> {
        match metadata.str(MODEL)? {
            Some("llama") => {
                Ok(Self { engine: Engine::Spm(Spm::read(metadata)?), bos: bos(metadata)? })
            }
            _ => Self::from_vocab(&Vocab::read(metadata)?),
        }
    }

    /// From a byte-level BPE vocabulary.
    ///
    /// # Errors
    /// A pre-tokenizer whose rules are not known, or merges that do not fit the tokens.
    pub fn from_vocab(vocab: &Vocab) -> Result<Self, TokenizerError> {
        Self::new(&json_of(vocab)?, vocab)
    }

    fn new(json: &Value, vocab: &Vocab) -> Result<Self, TokenizerError> {
        let mut engine = tokenizers::Tokenizer::from_bytes(json.to_string())
            .map_err(|error| TokenizerError::Engine(error.to_string()))?;
        engine.set_encode_special_tokens(true);
        let bos = vocab.special("bos").filter(|_| vocab.add_bos());
        Ok(Self { engine: Engine::Bpe(Box::new(engine)), bos })
    }

    /// The tokens of a text, with the BOS token before them where the vocabulary says so. Special
    /// tokens in the text are text, as in llama-perplexity.
    ///
    /// # Errors
    /// The engine refuses.
    pub fn encode(&self, text: &str) -> Result<Vec<u32>, TokenizerError> {
        let mut tokens = match &self.engine {
            Engine::Spm(spm) => spm.encode(text)?,
            Engine::Bpe(engine) => {
                let encoding = engine.encode_fast(text, false);
                let encoding =
                    encoding.map_err(|error| TokenizerError::Engine(error.to_string()))?;
                encoding.get_ids().to_vec()
            }
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
/// tokens with its vocabulary here.
///
/// # Errors
/// A key of another type than it should have.
pub fn bos(metadata: &Metadata) -> Result<Option<u32>, TokenizerError> {
    let spm = metadata.str(MODEL)? == Some("llama");
    let adds = spm || Pre::adds_bos(metadata.str(PRE)?.unwrap_or_default());
    let id = metadata.u32("tokenizer.ggml.bos_token_id")?.or(spm.then_some(1));
    let adds = metadata.bool("tokenizer.ggml.add_bos_token")?.unwrap_or(adds);
    Ok(id.filter(|_| adds))
}

/// What tokenizer.json says about a vocabulary.
fn json_of(vocab: &Vocab) -> Result<Value, TokenizerError> {
    let pre = Pre::named(&vocab.pre).ok_or_else(|| TokenizerError::NoRules(vocab.pre.clone()))?;
    let mut tokens = serde_json::Map::new();
    let mut added: Vec<Value> = Vec::new();
    for (id, (token, ty)) in vocab.tokens.iter().zip(&vocab.types).enumerate() {
        match ty {
            TokenType::Control | TokenType::UserDefined => added.push(json!({
                "id": id, "content": token, "single_word": false, "lstrip": false,
                "rstrip": false, "normalized": false, "special": *ty == TokenType::Control,
            })),
            TokenType::Unused => {}
            _ => drop(tokens.insert(token.clone(), id.into())),
        }
    }
    // An added token keeps its id only if the model knows it.
    for token in &added {
        if let Some(content) = token["content"].as_str() {
            tokens.insert(content.to_owned(), token["id"].clone());
        }
    }
    let json = json!({
        "version": "1.0", "truncation": null, "padding": null, "added_tokens": added,
        "normalizer": null, "pre_tokenizer": pre.section(), "post_processor": null,
        "decoder": null,
        "model": {
            "type": "BPE", "dropout": null, "unk_token": null,
            "continuing_subword_prefix": null, "end_of_word_suffix": null, "fuse_unk": false,
            "byte_fallback": false, "ignore_merges": pre.ignore_merges,
            "vocab": tokens, "merges": vocab.merges,
        },
    });
    Ok(json)
}

/// tokenizer.json and tokenizer_config.json of a vocabulary.
///
/// # Errors
/// A pre-tokenizer whose rules are not known.
pub fn tokenizer_files(vocab: &Vocab) -> Result<Vec<(String, Value)>, TokenizerError> {
    let mut tokenizer = json_of(vocab)?;
    tokenizer["decoder"] = json!({
        "type": "ByteLevel", "add_prefix_space": true, "trim_offsets": true, "use_regex": true,
    });
    let mut config = json!({ "tokenizer_class": "PreTrainedTokenizerFast" });
    for (key, name) in [
        ("bos_token", "bos"),
        ("eos_token", "eos"),
        ("pad_token", "padding"),
        ("unk_token", "unknown"),
    ] {
        let token = vocab.special(name).and_then(|id| vocab.tokens.get(id as usize));
        if let Some(token) = token {
            config[key] = token.as_str().into();
        }
    }
    for (name, add) in &vocab.add_special {
        config[format!("add_{name}_token")] = (*add).into();
    }
    if let Some((_, template)) = vocab.chat_templates.iter().find(|(name, _)| name.is_none()) {
        config["chat_template"] = template.as_str().into();
    }
    let named = [("tokenizer.json", tokenizer), ("tokenizer_config.json", config)];
    Ok(named.map(|(name, json)| (name.to_owned(), json)).into())
}
