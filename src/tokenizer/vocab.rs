//! A vocabulary in GGUF's terms.

use super::error::TokenizerError;
use super::pre::Pre;
use crate::gguf::{Metadata, Value};
use bstr::ByteSlice;

/// What a token is (`tokenizer.ggml.token_type`).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum TokenType {
    /// A piece of text.
    Normal = 1,
    /// Stands for what cannot be tokenized.
    Unknown = 2,
    /// Steers the model; never made from text.
    Control = 3,
    /// Added by the user, matched before anything else.
    UserDefined = 4,
    /// A place in the embedding without meaning.
    Unused = 5,
    /// A single byte.
    Byte = 6,
}

impl TokenType {
    fn from_id(id: i32) -> Option<Self> {
        use TokenType::*;
        [Normal, Unknown, Control, UserDefined, Unused, Byte].into_iter().find(|t| *t as i32 == id)
    }
}

/// A byte-level BPE vocabulary.
#[derive(Clone, Debug, PartialEq)]
pub struct Vocab {
    /// GGUF's name of the pre-tokenizer.
    pub pre: String,
    /// Tokens by id, in the byte-to-unicode alphabet of GPT-2.
    pub tokens: Vec<String>,
    /// What each token is.
    pub types: Vec<TokenType>,
    /// Merges in order of rank, two tokens with a space between.
    pub merges: Vec<String>,
    /// Special ids with the part of their key's name before `_token_id`, in order.
    pub special_ids: Vec<(String, u32)>,
    /// Switches with the part of their key's name between `add_` and `_token`, in order.
    pub add_special: Vec<(String, bool)>,
    /// Chat templates by name; the default one has no name.
    pub chat_templates: Vec<(Option<String>, String)>,
    /// Flags of the normalizer: `lowercase`, `strip_accents`.
    pub normalizer: Vec<(String, bool)>,
}

pub(super) const MODEL: &str = "tokenizer.ggml.model";
pub(super) const PRE: &str = "tokenizer.ggml.pre";
pub(super) const TOKENS: &str = "tokenizer.ggml.tokens";
pub(super) const TYPES: &str = "tokenizer.ggml.token_type";
const MERGES: &str = "tokenizer.ggml.merges";
const TEMPLATE: &str = "tokenizer.chat_template";

/// Special ids by their name, with the name that GGUF has for them (`seperator` is the format's
/// own spelling). `cls` has no key.
pub(super) const SPECIAL: [(&str, &str); 8] = [
    ("bos", "bos"),
    ("eos", "eos"),
    ("unk", "unknown"),
    ("sep", "seperator"),
    ("pad", "padding"),
    ("mask", "mask"),
    ("eot", "eot"),
    ("eom", "eom"),
];

impl Vocab {
    /// The id of a special token: `bos`, `eos`, `padding`, …
    pub fn special(&self, name: &str) -> Option<u32> {
        self.special_ids.iter().find(|(n, _)| n == name).map(|x| x.1)
    }

    /// Whether a sequence begins with the BOS token. Without the key it depends on the
    /// pre-tokenizer, as in llama.cpp.
    pub fn add_bos(&self) -> bool {
        let key = self.add_special.iter().find(|(name, _)| name == "bos");
        key.map_or(Pre::adds_bos(&self.pre), |x| x.1)
    }

    /// Writes the `tokenizer.*` keys in the reference converter's order.
    pub fn write(&self, metadata: &mut Metadata) {
        metadata.set(MODEL, "gpt2");
        metadata.set(PRE, self.pre.as_str());
        metadata.set(TOKENS, self.tokens.iter().cloned().collect::<Value>());
        metadata.set(TYPES, self.types.iter().map(|&t| t as i32).collect::<Vec<i32>>());
        if !self.merges.is_empty() {
            metadata.set(MERGES, self.merges.iter().cloned().collect::<Value>());
        }
        for (name, id) in &self.special_ids {
            metadata.set(&format!("tokenizer.ggml.{name}_token_id"), *id);
        }
        for (name, add) in &self.add_special {
            metadata.set(&format!("tokenizer.ggml.add_{name}_token"), *add);
        }
        let mut names: Vec<String> = Vec::new();
        for (name, template) in self.chat_templates.iter().filter(|(name, _)| name.is_some()) {
            let name = name.clone().unwrap_or_default();
            metadata.set(&format!("{TEMPLATE}.{name}"), template.as_str());
            names.push(name);
        }
        if !names.is_empty() {
            metadata.set("tokenizer.chat_templates", names.into_iter().collect::<Value>());
        }
        if let Some((_, template)) = self.chat_templates.iter().find(|(name, _)| name.is_none()) {
            metadata.set(TEMPLATE, template.as_str());
        }
        for (flag, value) in &self.normalizer {
            metadata.set(&format!("tokenizer.ggml.normalizer.{flag}"), *value);
        }
    }

    /// Reads the keys that [`Vocab::write`] writes.
    ///
    /// # Errors
    /// Another kind of tokenizer, missing keys, lists of different lengths, ids out of range.
    pub fn read(metadata: &Metadata) -> Result<Self, TokenizerError> {
        let error = |key, what: &str| TokenizerError::Key { key, what: what.to_owned() };
        match metadata.str(MODEL)? {
            Some("gpt2") => {}
            Some(other) => {
                let what = format!("`{other}` is not supported, byte-level BPE (gpt2) is");
                return Err(error(MODEL, &what));
            }
            None => return Err(error(MODEL, "is missing")),
        }
        let strings = |key: &'static str| -> Result<Vec<String>, TokenizerError> {
            let list = metadata.strings(key)?.ok_or_else(|| error(key, "is missing"))?;
            list.iter()
                .map(|s| s.to_str().map(str::to_owned))
                .collect::<Result<_, _>>()
                .map_err(|_| error(key, "holds a string that is not UTF-8"))
        };
        let tokens = strings(TOKENS)?;
        let types: Vec<TokenType> = match metadata.i32s(TYPES)? {
            None => vec![TokenType::Normal; tokens.len()],
            Some(ids) => ids
                .iter()
                .map(|&id| TokenType::from_id(id))
                .collect::<Option<_>>()
                .ok_or_else(|| error(TYPES, "holds an unknown token type"))?,
        };
        if types.len() != tokens.len() {
            return Err(error(TYPES, "is not as long as the list of tokens"));
        }
        let mut special_ids = Vec::new();
        for (_, name) in SPECIAL {
            if let Some(id) = metadata.u32(&format!("tokenizer.ggml.{name}_token_id"))? {
                if id as usize >= tokens.len() {
                    return Err(error(TOKENS, &format!("has no token {id}, the {name} token")));
                }
                special_ids.push((name.to_owned(), id));
            }
        }
        let mut add_special = Vec::new();
        for name in ["bos", "eos", "sep"] {
            let key = format!("tokenizer.ggml.add_{name}_token");
            add_special.extend(metadata.bool(&key)?.map(|add| (name.to_owned(), add)));
        }
        let mut chat_templates = Vec::new();
        for (key, value) in metadata.iter() {
            let name = match key.strip_prefix(TEMPLATE) {
                Some("") => None,
                Some(rest) => match rest.strip_prefix('.') {
                    Some(name) => Some(name.to_owned()),
                    None => continue,
                },
                None => continue,
            };
            if let Value::String(template) = value {
                chat_templates.push((name, template.to_string()));
            }
        }
        let mut normalizer = Vec::new();
        for flag in ["lowercase", "strip_accents"] {
            let key = format!("tokenizer.ggml.normalizer.{flag}");
            normalizer.extend(metadata.bool(&key)?.map(|value| (flag.to_owned(), value)));
        }
        Ok(Self {
            pre: metadata.str(PRE)?.unwrap_or("default").to_owned(),
            tokens,
            types,
            merges: strings(MERGES)?,
            special_ids,
            add_special,
            chat_templates,
            normalizer,
        })
    }
}
