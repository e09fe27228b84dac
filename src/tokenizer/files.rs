//! The files of a checkpoint that say something about tokens, each read once.

use super::error::TokenizerError;
use crate::io::IoError;
use serde_json::{Map, Value, json};
use std::path::{Path, PathBuf};

/// Keys and values of a file; none where it is missing.
pub(super) type Object = Map<String, Value>;

/// What the files say.
pub(super) struct Files {
    /// The folder.
    pub dir: PathBuf,
    /// The file that holds the vocabulary.
    pub path: PathBuf,
    /// tokenizer.json, or what vocab.json and merges.txt stand for; nothing beside tiktoken.model.
    pub tokenizer: Value,
    /// tokenizer_config.json.
    pub config: Object,
    /// special_tokens_map.json, unless `added_tokens_decoder` has taken its place.
    pub special_tokens_map: Object,
    /// added_tokens.json, unless `added_tokens_decoder` has taken its place.
    pub added_tokens: Object,
    /// The class that reads them.
    pub class: Class,
}

pub(super) const TOKENIZER: &str = "tokenizer.json";
const TIKTOKEN: &str = "tiktoken.model";
pub(super) const CONFIG: &str = "tokenizer_config.json";
pub(super) const SPECIAL_TOKENS_MAP: &str = "special_tokens_map.json";
pub(super) const ADDED_TOKENS: &str = "added_tokens.json";

/// A class of transformers, as far as it has tokens of its own.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum Class {
    Llama,
    Qwen2,
    Gpt2,
    /// One that does what the files say.
    Plain,
}

impl Class {
    fn of(config: &Object, model: &Value) -> Self {
        let name = config.get("tokenizer_class").or_else(|| model.get("tokenizer_class"));
        if let Some(name) = name.and_then(Value::as_str) {
            return match name.strip_suffix("Fast").unwrap_or(name) {
                "LlamaTokenizer" => Self::Llama,
                "Qwen2Tokenizer" => Self::Qwen2,
                "GPT2Tokenizer" => Self::Gpt2,
                _ => Self::Plain,
            };
        }
        match model["model_type"].as_str() {
            Some("llama" | "deepseek_v2" | "deepseek_v3") => Self::Llama,
            Some(qwen) if qwen.starts_with("qwen2") || qwen.starts_with("qwen3") => Self::Qwen2,
            _ => Self::Plain,
        }
    }

    /// A special token where no file speaks of it.
    pub fn default_token(self, ty: &str) -> Option<&'static str> {
        match (self, ty) {
            (Self::Llama, "bos") => Some("<s>"),
            (Self::Llama, "eos") => Some("</s>"),
            (Self::Llama, "unk") => Some("<unk>"),
            (Self::Qwen2, "eos" | "unk" | "pad") => Some("<|endoftext|>"),
            (Self::Gpt2, "bos" | "eos" | "unk") => Some("<|endoftext|>"),
            _ => None,
        }
    }

    /// Whether a special token that is given by its text alone is special whatever else says.
    pub fn makes_special(self, ty: &str) -> bool {
        self == Self::Qwen2 && matches!(ty, "bos" | "eos" | "unk" | "pad")
    }

    /// A tokenizer.json without vocabulary, for checkpoints that have none.
    fn skeleton(self) -> Option<Value> {
        let (normalizer, pre) = match self {
            Self::Qwen2 => (json!({ "type": "NFC" }), super::pre::qwen2_section()),
            Self::Gpt2 => (
                Value::Null,
                json!({ "type": "ByteLevel", "add_prefix_space": false, "use_regex": true }),
            ),
            Self::Llama | Self::Plain => return None,
        };
        Some(json!({
            "added_tokens": [], "normalizer": normalizer, "pre_tokenizer": pre,
            "decoder": { "type": "ByteLevel" }, "model": { "type": "BPE" },
        }))
    }
}

impl Files {
    /// Reads the files. `model` is config.json, which names the class where the tokenizer's own
    /// files do not.
    pub fn read(dir: &Path, model: &Value) -> Result<Self, TokenizerError> {
        let config = read_object(&dir.join(CONFIG))?;
        let class = Class::of(&config, model);
        let (path, tiktoken) = (dir.join(TOKENIZER), dir.join(TIKTOKEN));
        let (path, tokenizer) = match class.skeleton().filter(|_| !path.is_file()) {
            _ if !path.is_file() && tiktoken.is_file() => (tiktoken, Value::Null),
            Some(mut skeleton) if dir.join("vocab.json").is_file() => {
                let path = dir.join("vocab.json");
                skeleton["model"]["vocab"] = read_json(&path)?;
                (path, skeleton)
            }
            _ => {
                let tokenizer = read_json(&path)?;
                (path, tokenizer)
            }
        };
        let legacy = |name: &str| match config.contains_key("added_tokens_decoder") {
            true => Ok(Object::new()),
            false => read_object(&dir.join(name)),
        };
        Ok(Self {
            dir: dir.to_owned(),
            path,
            tokenizer,
            special_tokens_map: legacy(SPECIAL_TOKENS_MAP)?,
            added_tokens: legacy(ADDED_TOKENS)?,
            config,
            class,
        })
    }

    /// Whether the vocabulary is tiktoken's.
    pub fn is_tiktoken(&self) -> bool {
        self.tokenizer.is_null()
    }

    /// The tokens of the model itself.
    pub fn vocabulary(&self) -> Result<&Object, TokenizerError> {
        let vocabulary = self.tokenizer["model"]["vocab"].as_object();
        vocabulary.ok_or_else(|| self.error("`model.vocab` is missing"))
    }

    /// The `pre_tokenizer` section as it takes effect.
    pub fn pre_tokenizer(&self) -> Value {
        let mut section = self.tokenizer["pre_tokenizer"].clone();
        if section["type"] == "ByteLevel" && self.class != Class::Llama {
            // One that stands alone does as tokenizer_config.json says.
            let prefix = self.config.get("add_prefix_space").unwrap_or(&Value::Bool(false));
            section["add_prefix_space"] = prefix.clone();
        }
        section
    }

    /// Something is wrong with the file that holds the vocabulary.
    pub fn error(&self, what: impl Into<String>) -> TokenizerError {
        TokenizerError::Vocabulary { path: self.path.clone(), what: what.into() }
    }
}

/// A file that may be missing.
fn read_object(path: &Path) -> Result<Object, TokenizerError> {
    match path.is_file() {
        false => Ok(Object::new()),
        true => match read_json(path)? {
            Value::Object(object) => Ok(object),
            _ => Err(TokenizerError::Vocabulary {
                path: path.to_owned(),
                what: "holds no JSON object".to_owned(),
            }),
        },
    }
}

pub(super) fn read_json(path: &Path) -> Result<Value, TokenizerError> {
    Ok(crate::json::read(path)?)
}

pub(super) fn read_text(path: &Path) -> Result<String, TokenizerError> {
    Ok(String::from_utf8_lossy(&read_bytes(path)?).into_owned())
}

fn read_bytes(path: &Path) -> Result<Vec<u8>, TokenizerError> {
    std::fs::read(path).map_err(|error| IoError::new(path, error).into())
}
