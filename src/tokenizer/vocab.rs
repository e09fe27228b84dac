//! A vocabulary in GGUF's terms.

use super::error::TokenizerError;
use super::pre::Pre;
use crate::gguf::{Metadata, Value};
use crate::warning::{Topic, Warning};

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
#[derive(Clone, Debug, Default, PartialEq)]
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
    /// Tokens that end a text beside those with a key, as far as the files of a checkpoint tell.
    pub further_ends: Vec<u32>,
    /// Switches with the part of their key's name between `add_` and `_token`, in order.
    pub add_special: Vec<(String, bool)>,
    /// What tokenizer_config.json says of a space before the text, which byte-level vocabularies do
    /// not heed.
    pub space_prefix: Option<bool>,
    /// Chat templates by name; the default one has no name.
    pub chat_templates: Vec<(Option<String>, String)>,
    /// Flags of the normalizer: `lowercase`, `strip_accents`.
    pub normalizer: Vec<(String, bool)>,
    /// What was odd where it was read from.
    pub warnings: Vec<Warning>,
}

pub(super) const MODEL: &str = "tokenizer.ggml.model";
pub(super) const PRE: &str = "tokenizer.ggml.pre";
pub(super) const TOKENS: &str = "tokenizer.ggml.tokens";
pub(super) const TYPES: &str = "tokenizer.ggml.token_type";
pub(super) const MERGES: &str = "tokenizer.ggml.merges";
pub(super) const SPACE_PREFIX: &str = "tokenizer.ggml.add_space_prefix";
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
        if let Some(prefix) = self.space_prefix {
            metadata.set(SPACE_PREFIX, prefix);
        }
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

    /// The special ids of a file whose vocabulary is of another kind or incomplete, and nothing else.
    #[cfg(feature = "eval")]
    pub(super) fn of_ids(metadata: &Metadata) -> Self {
        let mut warnings = Vec::new();
        let n = metadata.strings(TOKENS).ok().flatten().map_or(usize::MAX, <[_]>::len);
        Self { special_ids: special_ids(metadata, n, &mut warnings), warnings, ..Self::default() }
    }

    /// Reads the keys that [`Vocab::write`] writes. What llama.cpp puts up with costs a warning.
    ///
    /// # Errors
    /// Another kind of tokenizer, missing keys, fewer types than tokens.
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
        let strings = |key: &'static str| -> Result<Option<Vec<String>>, TokenizerError> {
            let list = metadata.strings(key)?;
            Ok(list.map(|list| list.iter().map(|s| s.to_string()).collect()))
        };
        let mut warnings = Vec::new();
        let tokens = strings(TOKENS)?.ok_or_else(|| error(TOKENS, "is missing"))?;
        let types = types(metadata, tokens.len(), &mut warnings)?;
        let special_ids = special_ids(metadata, tokens.len(), &mut warnings);
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
            merges: strings(MERGES)?.unwrap_or_default(),
            special_ids,
            further_ends: Vec::new(),
            add_special,
            space_prefix: metadata.bool(SPACE_PREFIX)?,
            chat_templates,
            normalizer,
            warnings,
        })
    }
}

/// All special ids that a file names.
fn special_ids(metadata: &Metadata, n: usize, warnings: &mut Vec<Warning>) -> Vec<(String, u32)> {
    let ids = SPECIAL
        .into_iter()
        .filter_map(|(_, name)| Some((name.to_owned(), special_id(metadata, name, n, warnings)?)));
    ids.collect()
}

/// The types of so many tokens. Numbers without a meaning are of ordinary tokens, as in llama.cpp.
fn types(
    metadata: &Metadata,
    n: usize,
    warnings: &mut Vec<Warning>,
) -> Result<Vec<TokenType>, TokenizerError> {
    let Some(ids) = metadata.i32s(TYPES)? else { return Ok(vec![TokenType::Normal; n]) };
    if ids.len() < n {
        let what = format!("has {} entries for {n} tokens", ids.len());
        return Err(TokenizerError::Key { key: TYPES, what });
    }
    let mut warn = |what: String| {
        warnings.push(Warning::new(Topic::Tokenizer, format!("{TYPES} {what}")));
    };
    if ids.len() > n {
        warn(format!("has {} entries for {n} tokens; the rest is left out", ids.len()));
    }
    let unknown = |id: &&i32| TokenType::from_id(**id).is_none();
    let n_unknown = ids[..n].iter().filter(unknown).count();
    if let Some(id) = ids[..n].iter().find(unknown) {
        warn(format!(
            "has {n_unknown} types without a meaning, as {id}; these tokens are taken as text"
        ));
    }
    Ok(ids[..n].iter().map(|&id| TokenType::from_id(id).unwrap_or(TokenType::Normal)).collect())
}

/// A special id, unless it is none of the so many tokens.
pub(super) fn special_id(
    metadata: &Metadata,
    name: &str,
    n: usize,
    warnings: &mut Vec<Warning>,
) -> Option<u32> {
    let key = format!("tokenizer.ggml.{name}_token_id");
    let what = match metadata.u32(&key) {
        Ok(Some(id)) if (id as usize) < n => return Some(id),
        Ok(Some(id)) => format!("{key} is {id}, none of the {n} tokens"),
        Ok(None) => return None,
        Err(error) => error.to_string(),
    };
    warnings.push(Warning::new(Topic::Tokenizer, format!("{what}; left out")));
    None
}
