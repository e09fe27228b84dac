//! Text to tokens with the `tokenizers` crate, from tokenizer.json or from GGUF metadata alone.

use super::error::TokenizerError;
use super::parts::{self, PART};
use super::pre::Pre;
use super::spm::Spm;
use super::vocab::{MERGES, MODEL, PRE, TOKENS, TokenType, Vocab, special_id};
use crate::gguf::Metadata;
use crate::warning::Warning;
use rayon::prelude::*;
use serde_json::{Value, json};
use std::path::Path;

/// Makes tokens of text.
pub struct Tokenizer {
    engine: Engine,
    bos: Option<u32>,
    warnings: Vec<Warning>,
}

enum Engine {
    Bpe(Bpe),
    Spm(Spm),
}

struct Bpe {
    engine: Box<tokenizers::Tokenizer>,
    /// Whether a text has the tokens of its [`parts`].
    in_parts: bool,
}

impl Bpe {
    /// The first tokens of a text, at least `enough` or all, from parts of so many bytes, as many at once as there are
    /// threads.
    fn encode(&self, text: &str, enough: usize, part: usize) -> Result<Vec<u32>, TokenizerError> {
        let part = if self.in_parts { part } else { text.len() };
        let mut parts = parts::parts(text, part).peekable();
        let mut tokens = Vec::new();
        while tokens.len() < enough && parts.peek().is_some() {
            let some: Vec<&str> = parts.by_ref().take(rayon::current_num_threads()).collect();
            let encode = |part: &&str| self.engine.encode_fast(*part, false);
            let found: Result<Vec<_>, _> = some.par_iter().map(encode).collect();
            for part in found.map_err(TokenizerError::Engine)? {
                tokens.extend_from_slice(part.get_ids());
            }
        }
        Ok(tokens)
    }
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
        Self::new(&json_of(vocab, json["pre_tokenizer"].clone(), ignore_merges), vocab, false)
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
        let added = |ty: &TokenType| matches!(ty, TokenType::Control | TokenType::UserDefined);
        let mut tokens = vocab.tokens.iter().zip(&vocab.types);
        let joined = tokens.any(|(token, ty)| added(ty) && parts::cut(token, 0).is_some());
        Self::new(&json_of(vocab, pre.section(), pre.ignore_merges), vocab, !joined)
    }

    fn new(json: &Value, vocab: &Vocab, in_parts: bool) -> Result<Self, TokenizerError> {
        if vocab.merges.is_empty() {
            let what = "is missing, so that text cannot be made tokens".to_owned();
            return Err(TokenizerError::Key { key: MERGES, what });
        }
        let mut engine =
            tokenizers::Tokenizer::from_bytes(json.to_string()).map_err(TokenizerError::Engine)?;
        engine.set_encode_special_tokens(true);
        let bos = vocab.special("bos").filter(|_| vocab.add_bos());
        let engine = Engine::Bpe(Bpe { engine: Box::new(engine), in_parts });
        Ok(Self { engine, bos, warnings: vocab.warnings.clone() })
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
        self.encode_some(text, false, usize::MAX)
    }

    /// As [`Tokenizer::encode`], but names of special tokens in the text stand for these tokens, as with
    /// `--parse-special` of llama-imatrix.
    ///
    /// # Errors
    /// The engine refuses.
    pub fn encode_special(&self, text: &str) -> Result<Vec<u32>, TokenizerError> {
        self.encode_some(text, true, usize::MAX)
    }

    /// The first tokens of a text, at least `enough` if it has so many.
    pub(crate) fn encode_some(
        &self,
        text: &str,
        special: bool,
        enough: usize,
    ) -> Result<Vec<u32>, TokenizerError> {
        let mut tokens = match &self.engine {
            Engine::Spm(spm) => spm.encode(text, special)?,
            Engine::Bpe(bpe) if special => {
                let mut engine = bpe.engine.clone();
                engine.set_encode_special_tokens(false);
                Bpe { engine, ..*bpe }.encode(text, enough, PART)?
            }
            Engine::Bpe(bpe) => bpe.encode(text, enough, PART)?,
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

#[cfg(test)]
mod tests {
    use super::*;
    use crate::gguf::GgufFile;

    #[test]
    fn parts_have_the_tokens_of_the_whole() {
        let signs = [
            "a", "Z", " ", " ", "don", "'s", "'LL", "\n", "\r\n", "\t", "12", "3", "é", "e\u{301}",
            "ß", ".", "-", "$", "中", "ァ", "👩", "\u{a0}",
        ];
        let mut state = 1u32;
        let mut next = || {
            state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
            signs[(state >> 8) as usize % signs.len()]
        };
        let text: String = (0..20_000).map(|_| next()).collect();
        assert!(parts::parts(&text, 4).count() > 40, "there is where to cut");
        assert_eq!(parts::parts(&text, 4).collect::<String>(), text);
        let file = GgufFile::open(Path::new("tests/fixtures/tokenizer/bpe.gguf")).unwrap();
        let mut metadata = file.metadata().clone();
        for pre in Pre::names().split(", ") {
            metadata.set(PRE, pre);
            let Engine::Bpe(bpe) = Tokenizer::from_metadata(&metadata).unwrap().engine else {
                panic!("a byte-level vocabulary");
            };
            assert!(bpe.in_parts);
            let whole = bpe.encode(&text, usize::MAX, text.len()).unwrap();
            assert!(bpe.encode(&text, usize::MAX, 4).unwrap() == whole, "{pre}");
            let some = bpe.encode(&text, 1000, 4).unwrap();
            assert!(some.len() >= 1000 && whole.starts_with(&some) && some.len() < whole.len());
        }
    }
}
