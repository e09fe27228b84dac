//! The files of a checkpoint to a [`Vocab`]: the tokens that `AutoTokenizer` finds in them, as the
//! reference converter writes them (`TextModel.get_vocab_base`, `_set_vocab_gpt2`).

use super::added::{self, Added, Merged};
use super::error::TokenizerError;
use super::files::{Files, read_text};
use super::pre::Pre;
use super::vocab::{TokenType, Vocab};
use super::{damage, special, templates, tiktoken};
use crate::warning::{Topic, Warning};
use serde_json::Value;
use std::path::Path;

impl Vocab {
    /// Reads the vocabulary of a checkpoint folder. `config` is its config.json, which gives the
    /// size that the vocabulary is padded to; `pre` names the pre-tokenizer where its rules are
    /// not known here.
    ///
    /// # Errors
    /// Missing or malformed files, another kind of tokenizer, tokens that do not fit the model's
    /// vocabulary, an unknown pre-tokenizer, rules that a tool has damaged.
    pub fn from_checkpoint(
        dir: &Path,
        config: &Value,
        pre: Option<&str>,
    ) -> Result<Self, TokenizerError> {
        let files = Files::read(dir, config)?;
        if files.is_tiktoken() {
            return tiktoken::vocab(&files, config, pre);
        }
        damage::check_kind(&files)?;
        let mut warnings = Vec::new();
        let merged = added::merge(&files, &mut warnings)?;
        let (tokens, types) = tokens(&files, &merged, config, &mut warnings)?;
        let pre = match pre {
            Some(name) => {
                warnings.extend(damage::found(&files).map(|what| {
                    Warning::new(Topic::Tokenizer, format!("{}: {what}", files.path.display()))
                }));
                name.to_owned()
            }
            None => recognised(&files, &merged)?.to_owned(),
        };
        damage::oddities(&files, &merged, &pre, &mut warnings);
        let special = special::read(&files, &merged, config, tokens.len(), &mut warnings);
        Ok(Self {
            pre,
            merges: merges(&files)?,
            special_ids: special.ids,
            further_ends: special.further_ends,
            add_special: special.add,
            space_prefix: files.config.get("add_prefix_space").and_then(Value::as_bool),
            chat_templates: templates::read(&files, &mut warnings)?,
            normalizer: normalizer(&files.tokenizer["normalizer"]),
            tokens,
            types,
            warnings,
        })
    }
}

/// All tokens in order of their ids, padded to the model's vocabulary.
fn tokens(
    files: &Files,
    merged: &Merged,
    config: &Value,
    warnings: &mut Vec<Warning>,
) -> Result<(Vec<String>, Vec<TokenType>), TokenizerError> {
    let vocabulary = files.vocabulary()?;
    let mut known: Vec<(u64, &str)> = Vec::with_capacity(vocabulary.len());
    for (token, id) in vocabulary {
        let id = id.as_u64().ok_or_else(|| files.error(format!("token `{token}` has no id")))?;
        known.push((id, token));
    }
    let size = config.get("vocab_size").and_then(Value::as_u64);
    // Of a class's own tokens, only those that the model has room for.
    let of_class = |token: &Added| {
        let mut named = merged.names.iter().filter(|name| name.token.content == token.content);
        !merged.stated.iter().any(|(_, _, text)| *text == token.content)
            && named.all(|name| !name.stated)
    };
    let mut added: Vec<(u64, &Added)> = Vec::new();
    for (&id, token) in merged.table.added() {
        let beyond = size.is_some_and(|size| u64::from(id) >= size);
        if !(beyond && of_class(token)) {
            added.push((id.into(), token));
        }
    }
    let ids = known.iter().map(|x| x.0).chain(added.iter().map(|x| x.0));
    let largest = ids.chain(merged.stated.iter().map(|x| x.1)).max();
    let largest = largest.ok_or_else(|| files.error("the vocabulary is empty"))?;
    let size = size.unwrap_or_else(|| {
        let beside = added.iter().filter(|(_, token)| !vocabulary.contains_key(&token.content));
        (known.len() + beside.count()) as u64
    });
    if largest >= size {
        return Err(files.error(format!(
            "token {largest} is beyond the model's vocab_size of {size}; is this its tokenizer?"
        )));
    }
    misplaced(merged, warnings);
    let mut tokens: Vec<Option<(String, TokenType)>> = vec![None; size as usize];
    let shared = |first: &str, token: &str, id: u64| {
        Err(files.error(format!("`{first}` and `{token}` share the id {id}")))
    };
    for (id, token) in known {
        if let Some((first, _)) = &tokens[id as usize] {
            return shared(first, token, id);
        }
        tokens[id as usize] = Some((token.to_owned(), TokenType::Normal));
    }
    let byte_level = files.tokenizer["decoder"]["type"] == "ByteLevel";
    for (id, token) in added {
        match &tokens[id as usize] {
            Some((first, _)) if *first != token.content => {
                return shared(first, &token.content, id);
            }
            _ => tokens[id as usize] = Some(written(token, byte_level)),
        }
    }
    Ok(tokens
        .into_iter()
        .enumerate()
        .map(|(id, token)| token.unwrap_or_else(|| (format!("[PAD{id}]"), TokenType::Unused)))
        .unzip())
}

/// Warns of tokens that the files give other ids than they have.
fn misplaced(merged: &Merged, warnings: &mut Vec<Warning>) {
    let mut moved: Vec<(&str, u64, &str, u32)> = Vec::new();
    for (file, id, text) in &merged.stated {
        if let Some(found) = merged.table.id(text).filter(|&found| u64::from(found) != *id) {
            moved.push((file, *id, text, found));
        }
    }
    let Some((file, stated, text, found)) = moved.first() else { return };
    let more = match moved.len() {
        1 => String::new(),
        n => format!(" ({} more like this)", n - 1),
    };
    warnings.push(Warning::new(
        Topic::Tokenizer,
        format!(
            "{file} gives `{text}` the id {stated}, but transformers numbers added tokens anew and \
             gives it {found}, which is written{more}"
        ),
    ));
}

/// An added token as llama.cpp looks for it in text.
fn written(token: &Added, byte_level: bool) -> (String, TokenType) {
    let text = match token.normalized || !byte_level {
        true => token.content.clone(),
        false => decoded(&token.content),
    };
    match token.special || looks_special(&text) {
        true => (text, TokenType::Control),
        // Spaces are spaces in plain text.
        false => (text.replace('\u{2581}', " "), TokenType::UserDefined),
    }
}

/// What the byte-level decoder makes of a token's text.
fn decoded(text: &str) -> String {
    let bytes: Option<Vec<u8>> = text.chars().map(byte_of).collect();
    bytes.map_or_else(|| text.to_owned(), |b| String::from_utf8_lossy(&b).into_owned())
}

/// Whether a byte stands for itself in GPT-2's alphabet.
fn is_shown(byte: u8) -> bool {
    matches!(byte, b'!'..=b'~' | 0xa1..=0xac | 0xae..=0xff)
}

/// The byte that a character stands for in GPT-2's alphabet.
pub(super) fn byte_of(c: char) -> Option<u8> {
    match u8::try_from(c).ok() {
        Some(byte) => Some(byte).filter(|&byte| is_shown(byte)),
        None => (0..=255).filter(|&b| !is_shown(b)).nth((c as usize).checked_sub(256)?),
    }
}

/// The character that stands for a byte there.
pub(super) fn char_of(byte: u8) -> char {
    let hidden = (0..byte).filter(|&b| !is_shown(b)).count() as u32;
    let shown = is_shown(byte).then_some(char::from(byte));
    shown.or_else(|| char::from_u32(256 + hidden)).unwrap_or_default()
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

fn recognised(files: &Files, merged: &Merged) -> Result<&'static str, TokenizerError> {
    let path = files.path.clone();
    if let Some(what) = damage::found(files) {
        return Err(TokenizerError::Damaged { path, what });
    }
    let has_token = |token: &str| merged.table.id(token).is_some();
    match Pre::recognise(&files.pre_tokenizer(), has_token) {
        Some(pre) => Ok(pre.name),
        None => Err(TokenizerError::UnknownPre { path, known: Pre::names() }),
    }
}

fn merges(files: &Files) -> Result<Vec<String>, TokenizerError> {
    let pairs: Vec<(String, String)> = match files.tokenizer["model"]["merges"].as_array() {
        Some(list) if !list.is_empty() => {
            let pairs = list.iter().enumerate().map(|(rank, merge)| {
                pair(merge).ok_or_else(|| files.error(format!("merge {rank} is no pair of tokens")))
            });
            pairs.collect::<Result<_, _>>()?
        }
        _ => merges_txt(&files.dir.join("merges.txt"))?,
    };
    if pairs.is_empty() {
        return Err(files.error("it has no merges, and merges.txt has none"));
    }
    let vocabulary = files.vocabulary()?;
    for (a, b) in &pairs {
        let whole = [a.as_str(), b].concat();
        let missing = [a, b, &whole].into_iter().find(|part| !vocabulary.contains_key(*part));
        if let Some(missing) = missing {
            let what = format!("the merge `{a} {b}` needs `{missing}`, which is no token");
            return Err(files.error(what));
        }
    }
    // A space inside a part would read as the space between them.
    let spaced = |part: &str| part.replace(' ', "Ġ");
    Ok(pairs.iter().map(|(a, b)| format!("{} {}", spaced(a), spaced(b))).collect())
}

fn pair(merge: &Value) -> Option<(String, String)> {
    match merge {
        Value::String(merge) => {
            let (a, b) = merge.split_once(' ')?;
            Some((a.to_owned(), b.to_owned()))
        }
        Value::Array(pair) => match pair.as_slice() {
            [Value::String(a), Value::String(b)] => Some((a.clone(), b.clone())),
            _ => None,
        },
        _ => None,
    }
}

/// The merges of older checkpoints, one to a line.
fn merges_txt(path: &Path) -> Result<Vec<(String, String)>, TokenizerError> {
    if !path.is_file() {
        return Ok(Vec::new());
    }
    let text = read_text(path)?;
    let lines = text.lines().skip(usize::from(text.starts_with('#')));
    Ok(lines
        .filter_map(|line| {
            let mut parts = line.split_whitespace();
            match (parts.next(), parts.next(), parts.next()) {
                (Some(a), Some(b), None) => Some((a.to_owned(), b.to_owned())),
                _ => None,
            }
        })
        .collect())
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
