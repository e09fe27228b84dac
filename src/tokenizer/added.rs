//! Tokens beside the model's own, from all files that may name them, as `AutoTokenizer` of
//! transformers 4.57 adds them to the vocabulary (`PreTrainedTokenizerBase._from_pretrained`,
//! `PreTrainedTokenizerFast.__init__`).

use super::error::TokenizerError;
use super::files::{ADDED_TOKENS, CONFIG, Files, Object, SPECIAL_TOKENS_MAP, TOKENIZER};
use crate::warning::{Topic, Warning};
use serde_json::Value;
use std::collections::{BTreeMap, HashMap, HashSet};

/// A token that text is searched for before anything else.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(super) struct Added {
    pub content: String,
    pub special: bool,
    /// Whether it is searched for in text that was normalized.
    pub normalized: bool,
    pub lstrip: bool,
    pub rstrip: bool,
    pub single_word: bool,
}

impl Added {
    /// A token without further wishes.
    fn plain(content: &str, special: bool) -> Self {
        Self {
            content: content.to_owned(),
            special,
            normalized: !special,
            lstrip: false,
            rstrip: false,
            single_word: false,
        }
    }

    fn of(json: &Value) -> Option<Self> {
        let flag = |name: &str| json[name].as_bool();
        let special = flag("special").unwrap_or(false);
        Some(Self {
            content: json["content"].as_str()?.to_owned(),
            special,
            normalized: flag("normalized").unwrap_or(!special),
            lstrip: flag("lstrip").unwrap_or(false),
            rstrip: flag("rstrip").unwrap_or(false),
            single_word: flag("single_word").unwrap_or(false),
        })
    }
}

/// A special token as the files name it.
pub(super) struct Name {
    /// `bos`, `eos`, …; empty where it has no role.
    pub ty: &'static str,
    pub token: Added,
    /// Whether a file names it, rather than the tokenizer's class.
    pub stated: bool,
    /// Whether the file gives its text alone.
    pub plain: bool,
    /// Whether its flags count, rather than its text alone.
    flagged: bool,
}

/// Roles of special tokens, in the order in which they are added.
pub(super) const ROLES: [&str; 7] = ["bos", "eos", "unk", "sep", "pad", "cls", "mask"];

/// The model's tokens and those added to them.
pub(super) struct Table<'a> {
    model: &'a Object,
    added: BTreeMap<u32, Added>,
    ids: HashMap<String, u32>,
}

impl Table<'_> {
    /// The added tokens by id.
    pub fn added(&self) -> &BTreeMap<u32, Added> {
        &self.added
    }

    /// The id of an added token.
    pub fn id(&self, content: &str) -> Option<u32> {
        self.ids.get(content).copied()
    }

    /// Adds tokens as the tokenizers crate does: text that is known keeps its id, other text gets the
    /// next one, and what was once there with the same flags is not looked at again.
    fn extend(&mut self, tokens: impl IntoIterator<Item = Added>) {
        let mut seen: HashSet<Added> = self.added.values().cloned().collect();
        for token in tokens {
            if !token.content.is_empty() && seen.insert(token.clone()) {
                let id = self.id(&token.content).or_else(|| self.id_in_model(&token.content));
                let id = id.unwrap_or_else(|| {
                    let after =
                        self.added.last_key_value().map_or(0, |(id, _)| id.saturating_add(1));
                    after.max(self.model.len() as u32)
                });
                self.ids.insert(token.content.clone(), id);
                self.added.insert(id, token);
            }
        }
    }

    fn id_in_model(&self, content: &str) -> Option<u32> {
        u32::try_from(self.model.get(content)?.as_u64()?).ok()
    }
}

/// What the files say together.
pub(super) struct Merged<'a> {
    pub table: Table<'a>,
    pub names: Vec<Name>,
    /// Ids as the files give them, each with its file and the token's text.
    pub stated: Vec<(&'static str, u64, String)>,
}

impl<'a> Merged<'a> {
    /// No tokens at all.
    pub fn nothing(files: &'a Files) -> Self {
        let table =
            Table { model: &files.added_tokens, added: BTreeMap::new(), ids: HashMap::new() };
        Self { table, names: Vec::new(), stated: Vec::new() }
    }
}

/// All added tokens, and the special ones by role.
pub(super) fn merge<'a>(
    files: &'a Files,
    warnings: &mut Vec<Warning>,
) -> Result<Merged<'a>, TokenizerError> {
    let own = own_tokens(files)?;
    let mut table =
        Table { model: files.vocabulary()?, added: BTreeMap::new(), ids: HashMap::new() };
    table.extend(own.iter().map(|(_, token)| token.clone()));
    let mut names = names(files, warnings);
    let beside = beside(files, &names, warnings);
    let mut flags = beside.clone();
    if !files.config.contains_key(DECODER) {
        flags.extend(own.iter().cloned());
    }
    let of_text: HashMap<&str, &Added> = flags.values().map(|t| (&*t.content, t)).collect();
    for name in names.iter_mut().filter(|n| n.stated && !n.ty.is_empty()) {
        if let Some(&token) = of_text.get(&*name.token.content) {
            (name.token, name.flagged) = (token.clone(), true);
        }
    }
    let wanted = wanted(&table, flags.values(), &names);
    let specials: HashSet<&str> = names.iter().map(|n| &*n.token.content).collect();
    table.extend(wanted.into_iter().map(|token| {
        let special = token.special || specials.contains(&*token.content);
        Added { special, ..token }
    }));
    let stated = [(TOKENIZER, own), (beside_file(files), beside.into_iter().collect())];
    let stated = stated.into_iter().flat_map(|(file, tokens): (_, Vec<(u64, Added)>)| {
        tokens.into_iter().map(move |(id, token)| (file, id, token.content))
    });
    Ok(Merged { table, names, stated: stated.collect() })
}

const DECODER: &str = "added_tokens_decoder";

/// The file beside tokenizer.json that lists added tokens.
fn beside_file(files: &Files) -> &'static str {
    if files.config.contains_key(DECODER) { CONFIG } else { ADDED_TOKENS }
}

/// The `added_tokens` of tokenizer.json with the ids that it gives them.
fn own_tokens(files: &Files) -> Result<Vec<(u64, Added)>, TokenizerError> {
    let list = files.tokenizer["added_tokens"].as_array().map_or(&[][..], Vec::as_slice);
    list.iter()
        .map(|token| Some((token["id"].as_u64()?, Added::of(token)?)))
        .collect::<Option<_>>()
        .ok_or_else(|| files.error("an added token has no id or no content"))
}

/// Tokens of `added_tokens_decoder`, or of added_tokens.json, which knows no flags.
fn beside(files: &Files, names: &[Name], warnings: &mut Vec<Warning>) -> BTreeMap<u64, Added> {
    let special: HashSet<&str> =
        names.iter().filter(|n| n.stated).map(|n| &*n.token.content).collect();
    type Read<'a> = &'a dyn Fn(&str, &Value) -> Option<(u64, Added)>;
    let (list, token): (_, Read) = match files.config.get(DECODER) {
        Some(Value::Object(list)) => {
            (list, &|id, token| Some((id.parse().ok()?, Added::of(token)?)))
        }
        Some(_) => return BTreeMap::new(),
        None => (&files.added_tokens, &|text, id| {
            Some((id.as_u64()?, Added::plain(text, special.contains(text))))
        }),
    };
    let mut tokens = BTreeMap::new();
    for (key, value) in list {
        match token(key, value) {
            Some((id, token)) => drop(tokens.insert(id, token)),
            None => warnings.push(odd(beside_file(files), key, value)),
        }
    }
    tokens
}

/// What is added to the table, in order, though it may be known with other flags.
fn wanted<'a>(
    table: &Table,
    flags: impl Iterator<Item = &'a Added> + Clone,
    names: &'a [Name],
) -> Vec<Added> {
    let mut texts: HashSet<&str> = table.added.values().map(|t| &*t.content).collect();
    texts.extend(flags.clone().map(|t| &*t.content));
    let mut seen = HashSet::new();
    let names = names.iter().filter(|name| {
        // One that is given by its text needs nothing where the text is known.
        seen.insert(&name.token.content) && (name.flagged || !texts.contains(&*name.token.content))
    });
    flags.chain(names.map(|name| &name.token)).cloned().collect()
}

/// The special tokens, those with a role first.
fn names(files: &Files, warnings: &mut Vec<Warning>) -> Vec<Name> {
    let mut names = Vec::new();
    for ty in ROLES {
        let key = format!("{ty}_token");
        let padding = || files.tokenizer["padding"].get("pad_token").filter(|_| ty == "pad");
        let (file, value) = match (files.special_tokens_map.get(&key), files.config.get(&key)) {
            (Some(value), _) => (SPECIAL_TOKENS_MAP, value),
            (None, Some(value)) => (CONFIG, value),
            (None, None) => match (padding(), files.class.default_token(ty)) {
                (Some(value), _) => (TOKENIZER, value),
                (None, Some(text)) => {
                    let flagged = files.class.makes_special(ty);
                    let token = Added::plain(text, true);
                    names.push(Name { ty, token, stated: false, plain: true, flagged });
                    continue;
                }
                (None, None) => continue,
            },
        };
        names.extend(name(files, ty, file, &key, value, warnings));
    }
    let lists = [
        (CONFIG, &files.config, "additional_special_tokens"),
        (SPECIAL_TOKENS_MAP, &files.special_tokens_map, "additional_special_tokens"),
        (CONFIG, &files.config, "extra_special_tokens"),
    ];
    for (file, object, key) in lists {
        let list: Vec<&Value> = match object.get(key) {
            Some(Value::Array(list)) => list.iter().collect(),
            // Under names of the model's own.
            Some(Value::Object(named)) => named.values().collect(),
            _ => continue,
        };
        let all = list.into_iter().filter_map(|v| name(files, "", file, key, v, warnings));
        names.extend(all.collect::<Vec<_>>());
    }
    names
}

/// A special token as it stands in a file: its text, or an object with its flags.
fn name(
    files: &Files,
    ty: &'static str,
    file: &str,
    key: &str,
    value: &Value,
    warnings: &mut Vec<Warning>,
) -> Option<Name> {
    let (token, plain) = match value {
        Value::Null => return None,
        Value::String(text) => (Some(Added::plain(text, true)), true),
        Value::Object(_) if file == SPECIAL_TOKENS_MAP => {
            let mut value = value.clone();
            value["special"] = true.into();
            (Added::of(&value), false)
        }
        value => (Added::of(value), false),
    };
    if token.is_none() {
        warnings.push(odd(file, key, value));
    }
    let flagged = !plain || files.class.makes_special(ty);
    let token = token.filter(|token| !token.content.is_empty())?;
    Some(Name { ty, token, stated: true, plain, flagged })
}

/// A value that names no token.
fn odd(file: &str, key: &str, value: &Value) -> Warning {
    Warning::new(Topic::Tokenizer, format!("{file}: `{key}` is {value}, no token; left out"))
}
