//! tokenizer.json and its companions to a [`Vocab`], as the reference converter reads them
//! (`TextModel.get_vocab_base`, `_set_vocab_gpt2`).

use super::error::TokenizerError;
use super::pre::Pre;
use super::special;
use super::vocab::{TokenType, Vocab};
use serde_json::Value;
use std::path::{Path, PathBuf};

impl Vocab {
    /// Reads the vocabulary of a checkpoint folder. `config` is its config.json, which gives the
    /// size that the vocabulary is padded to; `pre` names the pre-tokenizer where its rules are
    /// not known here.
    ///
    /// # Errors
    /// Missing or malformed files, another kind of tokenizer, tokens that do not fit the model's
    /// vocabulary, an unknown pre-tokenizer.
    pub fn from_checkpoint(
        dir: &Path,
        config: &Value,
        pre: Option<&str>,
    ) -> Result<Self, TokenizerError> {
        let path = dir.join("tokenizer.json");
        let json = read_json(&path)?;
        if json["model"]["type"] != "BPE" && json["model"]["merges"].is_null() {
            let found = json["model"]["type"].as_str().unwrap_or("none").to_owned();
            return Err(TokenizerError::Kind { path, found });
        }
        let reader = Reader { path: &path, json: &json };
        let (tokens, types) = reader.tokens(config)?;
        let pre = match pre {
            Some(name) => name.to_owned(),
            None => reader.pre()?,
        };
        let merges = reader.merges(dir)?;
        let tokenizer_config = match dir.join("tokenizer_config.json") {
            path if path.is_file() => Some(read_json(&path)?),
            _ => None,
        };
        let special = special::read(dir, &json, tokenizer_config, config)?;
        if let Some((name, id)) = special.ids.iter().find(|(_, id)| *id as usize >= tokens.len()) {
            return Err(reader.error(format!("the {name} token is {id}, beyond the vocabulary")));
        }
        Ok(Self {
            pre,
            tokens,
            types,
            merges,
            special_ids: special.ids,
            add_special: special.add,
            chat_templates: special.chat_templates,
            normalizer: normalizer(&json["normalizer"]),
        })
    }
}

pub(super) fn read_json(path: &Path) -> Result<Value, TokenizerError> {
    let bytes =
        std::fs::read(path).map_err(|error| TokenizerError::Io { path: path.to_owned(), error })?;
    serde_json::from_slice(&bytes)
        .map_err(|error| TokenizerError::Json { path: path.to_owned(), error })
}

struct Reader<'a> {
    path: &'a Path,
    json: &'a Value,
}

impl Reader<'_> {
    fn error(&self, what: impl Into<String>) -> TokenizerError {
        TokenizerError::Vocabulary { path: PathBuf::from(self.path), what: what.into() }
    }

    fn added(&self) -> &[Value] {
        self.json["added_tokens"].as_array().map_or(&[], Vec::as_slice)
    }

    fn tokens(&self, config: &Value) -> Result<(Vec<String>, Vec<TokenType>), TokenizerError> {
        let vocab = self.json["model"]["vocab"]
            .as_object()
            .ok_or_else(|| self.error("`model.vocab` is missing"))?;
        let mut known: Vec<(u64, &str, TokenType)> = Vec::with_capacity(vocab.len());
        for (token, id) in vocab {
            let id = id.as_u64().ok_or_else(|| self.error(format!("token `{token}` has no id")))?;
            known.push((id, token, TokenType::Normal));
        }
        let mut owned: Vec<(u64, String, TokenType)> = Vec::new();
        for added in self.added() {
            let (Some(id), Some(token)) = (added["id"].as_u64(), added["content"].as_str()) else {
                return Err(self.error("an added token has no id or no content"));
            };
            if vocab.get(token).is_some_and(|first| first.as_u64() != Some(id)) {
                return Err(self.error(format!("token `{token}` has two ids")));
            }
            owned.push(match added["special"] == true || looks_special(token) {
                true => (id, token.to_owned(), TokenType::Control),
                // llama.cpp matches these in plain text, where spaces are spaces.
                false => (id, token.replace('\u{2581}', " "), TokenType::UserDefined),
            });
        }
        let largest = known.iter().map(|x| x.0).chain(owned.iter().map(|x| x.0)).max();
        let largest = largest.ok_or_else(|| self.error("the vocabulary is empty"))?;
        let size = match config.get("vocab_size").and_then(Value::as_u64) {
            Some(size) => size,
            None => known.len() as u64,
        };
        if largest >= size {
            return Err(self.error(format!(
                "token {largest} is beyond the model's vocab_size of {size}; is this its tokenizer?"
            )));
        }
        let mut tokens: Vec<Option<(String, TokenType)>> = vec![None; size as usize];
        for (id, token, ty) in known {
            if let Some((first, _)) = &tokens[id as usize] {
                return Err(self.error(format!("`{first}` and `{token}` share the id {id}")));
            }
            tokens[id as usize] = Some((token.to_owned(), ty));
        }
        for (id, token, ty) in owned {
            tokens[id as usize] = Some((token, ty));
        }
        Ok(tokens
            .into_iter()
            .enumerate()
            .map(|(id, token)| token.unwrap_or_else(|| (format!("[PAD{id}]"), TokenType::Unused)))
            .unzip())
    }

    fn pre(&self) -> Result<String, TokenizerError> {
        let added = self.added();
        let has_token = |token: &str| added.iter().any(|a| a["content"] == token);
        match Pre::recognise(&self.json["pre_tokenizer"], has_token) {
            Some(pre) => Ok(pre.name.to_owned()),
            None => {
                Err(TokenizerError::UnknownPre { path: self.path.to_owned(), known: Pre::names() })
            }
        }
    }

    fn merges(&self, dir: &Path) -> Result<Vec<String>, TokenizerError> {
        let list = match self.json["model"]["merges"].as_array() {
            Some(list) if !list.is_empty() => list,
            _ => return merges_txt(&dir.join("merges.txt")),
        };
        list.iter()
            .enumerate()
            .map(|(rank, merge)| {
                match merge {
                    Value::String(merge) => Some(merge.clone()),
                    Value::Array(pair) => match pair.as_slice() {
                        // A space inside a part would read as the space between them.
                        [Value::String(a), Value::String(b)] => {
                            Some(format!("{} {}", a.replace(' ', "Ġ"), b.replace(' ', "Ġ")))
                        }
                        _ => None,
                    },
                    _ => None,
                }
                .ok_or_else(|| self.error(format!("merge {rank} is no pair of tokens")))
            })
            .collect()
    }
}

/// The merges of older checkpoints, one to a line.
fn merges_txt(path: &Path) -> Result<Vec<String>, TokenizerError> {
    let text = match std::fs::read_to_string(path) {
        Ok(text) => text,
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(Vec::new()),
        Err(error) => return Err(TokenizerError::Io { path: path.to_owned(), error }),
    };
    let lines = text.lines().skip(usize::from(text.starts_with('#')));
    Ok(lines
        .filter_map(|line| {
            let mut parts = line.split_whitespace();
            match (parts.next(), parts.next(), parts.next()) {
                (Some(a), Some(b), None) => Some(format!("{a} {b}")),
                _ => None,
            }
        })
        .collect())
}

/// Tokens that steer the model although their tokenizer does not mark them so
/// (`TextModel.does_token_look_special`).
fn looks_special(token: &str) -> bool {
    let within = |start, end| token.starts_with(start) && token.ends_with(end);
    matches!(token, "<pad>" | "<mask>" | "<2mass>" | "[@BOS@]")
        || within("<|", "|>")
        || within("<｜", "｜>")
        || within("<unused", ">")
}

fn normalizer(section: &Value) -> Vec<(String, bool)> {
    match section["type"].as_str() {
        Some("Lowercase") => vec![("lowercase".to_owned(), true)],
        Some("StripAccents") => vec![("strip_accents".to_owned(), true)],
        Some("Sequence") => section["normalizers"]
            .as_array()
            .map_or_else(Vec::new, |list| list.iter().flat_map(normalizer).collect()),
        _ => Vec::new(),
    }
}
