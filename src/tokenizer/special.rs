//! Special ids, the switches that add them, and chat templates: tokenizer_config.json against
//! tokenizer.json's post-processor (`SpecialVocab` in `gguf-py/gguf/vocab.py`).

use super::checkpoint::read_json;
use super::error::TokenizerError;
use super::vocab::SPECIAL;
use serde_json::Value;
use std::path::Path;

/// What the two files say together.
pub(super) struct Special {
    pub ids: Vec<(String, u32)>,
    pub add: Vec<(String, bool)>,
    pub chat_templates: Vec<(Option<String>, String)>,
}

/// Switches that GGUF has keys for.
const SWITCHES: [&str; 3] = ["bos", "eos", "sep"];

pub(super) fn read(
    dir: &Path,
    tokenizer: &Value,
    tokenizer_config: Option<Value>,
    config: &Value,
) -> Result<Special, TokenizerError> {
    let mut types = vec!["bos", "eos", "unk", "sep", "pad", "cls", "mask"];
    let mut names = Names::of(tokenizer_config.as_ref());
    let mut add = Switches::default();
    post_processor(&tokenizer["post_processor"], &mut names, &mut add, &mut types);
    let mut ids: Vec<(String, u32)> = Vec::new();
    if let Some(tokenizer_config) = &tokenizer_config {
        let added = tokenizer["added_tokens"].as_array().map_or(&[][..], Vec::as_slice);
        for ty in &types {
            if let Some(switch) = tokenizer_config[format!("add_{ty}_token")].as_bool() {
                // The reference lets a bare ByteLevel step, which adds nothing and says nothing,
                // overrule the model's own word. On some models that costs perplexity.
                add.declare(ty, switch);
            }
            let id = names
                .get(ty)
                .and_then(|name| added.iter().find(|token| token["content"] == name))
                .and_then(|token| token["id"].as_u64());
            set_id(&mut ids, ty, id);
        }
    }
    for ty in &types {
        set_id(&mut ids, ty, config.get(format!("{ty}_token_id")).and_then(Value::as_u64));
    }
    let ids = ids
        .into_iter()
        .filter_map(|(ty, id)| {
            let name = SPECIAL.iter().find(|(short, _)| *short == ty)?.1;
            Some((name.to_owned(), id))
        })
        .collect();
    let chat_templates = match &tokenizer_config {
        Some(tokenizer_config) => chat_templates(dir, tokenizer_config)?,
        None => Vec::new(),
    };
    Ok(Special { ids, add: add.into_keys(), chat_templates })
}

/// The first value stands.
fn set_id(ids: &mut Vec<(String, u32)>, ty: &str, id: Option<u64>) {
    if let Some(id) = id.and_then(|id| u32::try_from(id).ok())
        && !ids.iter().any(|(known, _)| known == ty)
    {
        ids.push((ty.to_owned(), id));
    }
}

/// The texts of special tokens as tokenizer_config.json has them, completed from the post-processor.
struct Names {
    /// Whether there is a tokenizer_config.json at all.
    configured: bool,
    names: Vec<(String, String)>,
}

impl Names {
    fn of(tokenizer_config: Option<&Value>) -> Self {
        let mut names = Self { configured: tokenizer_config.is_some(), names: Vec::new() };
        for (key, value) in tokenizer_config.and_then(Value::as_object).into_iter().flatten() {
            if let Some(ty) = key.strip_suffix("_token")
                && let Some(text) = value.as_str().or_else(|| value["content"].as_str())
            {
                names.set(ty, text);
            }
        }
        for (missing, from) in [("bos", "cls"), ("eos", "sep")] {
            if names.get(missing).is_none()
                && let Some(text) = names.get(from).map(str::to_owned)
            {
                names.set(missing, &text);
            }
        }
        names
    }

    fn get(&self, ty: &str) -> Option<&str> {
        self.names.iter().find(|(known, _)| known == ty).map(|x| x.1.as_str())
    }

    fn set(&mut self, ty: &str, text: &str) {
        self.names.retain(|(known, _)| known != ty);
        self.names.push((ty.to_owned(), text.to_owned()));
    }

    fn is(&self, text: &str, types: [&str; 2]) -> bool {
        types.iter().any(|ty| self.get(ty) == Some(text))
    }
}

/// Switches in the order in which they were first heard of. One that a bare ByteLevel step implies
/// yields to any other word.
#[derive(Default)]
struct Switches(Vec<Switch>);

struct Switch {
    ty: String,
    add: bool,
    implied: bool,
}

impl Switches {
    fn imply(&mut self, ty: &str) {
        if !self.0.iter().any(|s| s.ty == ty) {
            self.0.push(Switch { ty: ty.to_owned(), add: false, implied: true });
        }
    }

    fn set(&mut self, ty: &str, add: bool) {
        match self.0.iter_mut().find(|s| s.ty == ty) {
            Some(switch) => (switch.add, switch.implied) = (add, false),
            None => self.0.push(Switch { ty: ty.to_owned(), add, implied: false }),
        }
    }

    /// tokenizer_config.json's word, which stands unless the post-processor really adds tokens.
    fn declare(&mut self, ty: &str, add: bool) {
        match self.0.iter_mut().find(|s| s.ty == ty) {
            Some(switch) if switch.implied => switch.add = add,
            Some(_) => {}
            None => self.set(ty, add),
        }
    }

    fn into_keys(self) -> Vec<(String, bool)> {
        let known = self.0.into_iter().filter(|s| SWITCHES.contains(&s.ty.as_str()));
        known.map(|s| (s.ty, s.add)).collect()
    }
}

fn post_processor(
    section: &Value,
    names: &mut Names,
    add: &mut Switches,
    types: &mut Vec<&'static str>,
) {
    let steps = match section["processors"].as_array() {
        Some(steps) => steps.as_slice(),
        None => std::slice::from_ref(section),
    };
    for step in steps {
        match step["type"].as_str() {
            Some("ByteLevel") => {
                add.imply("bos");
                add.imply("eos");
            }
            Some("RobertaProcessing") => {
                for ty in SWITCHES {
                    add.set(ty, true);
                }
                for ty in ["cls", "sep"] {
                    if names.get(ty).is_none()
                        && let Some(text) = step[ty][0].as_str()
                    {
                        names.set(ty, text);
                    }
                }
            }
            Some("TemplateProcessing") => template(step, names, add, types),
            _ => {}
        }
    }
}

fn special_of(entry: Option<&Value>) -> Option<&str> {
    entry?["SpecialToken"]["id"].as_str().filter(|id| !id.is_empty())
}

fn template(step: &Value, names: &mut Names, add: &mut Switches, types: &mut Vec<&'static str>) {
    let list = |key: &str| step[key].as_array().map_or(&[][..], Vec::as_slice);
    let (single, pair) = (list("single"), list("pair"));
    let (mut first, mut last) = (None, None);
    if single.len() > 1 {
        first = special_of(single.first());
        last = special_of(single.last());
    }
    if let Some(first) = first {
        if !names.configured {
            names.set("bos", first);
        } else if !names.is(first, ["bos", "cls"]) {
            for ty in ["bos", "cls"] {
                if names.get(ty).is_none() {
                    names.set(ty, first);
                }
            }
        }
        add.set("bos", names.is(first, ["bos", "cls"]));
    }
    if let Some(last) = last {
        if names.configured && names.get("eos") != Some(last) {
            // The configured end of sequence becomes an end of turn, or of message.
            if let Some(free) = ["eot", "eom"].into_iter().find(|ty| !types.contains(ty)) {
                types.push(free);
                if let Some(text) = names.get("eos").map(str::to_owned) {
                    names.set(free, &text);
                }
            }
        }
        names.set("eos", last);
        add.set("eos", true);
    }
    separator(pair, first, last, names, add);
}

/// A pair template with something between its two sequences decides on the separator.
fn separator(
    pair: &[Value],
    first: Option<&str>,
    last: Option<&str>,
    names: &mut Names,
    add: &mut Switches,
) {
    let mut pair = pair;
    if first.is_some() && special_of(pair.first()) == first {
        pair = &pair[1..];
    }
    if last.is_some() && special_of(pair.last()) == last {
        pair = &pair[..pair.len() - 1];
    }
    let [a, middle @ .., b] = pair else { return };
    if a["Sequence"]["id"] != "A" || b["Sequence"]["id"] != "B" || middle.is_empty() {
        return;
    }
    let separates =
        |i: usize| special_of(middle.get(i)).is_some_and(|token| names.is(token, ["sep", "eos"]));
    let adds = (separates(0) && last.is_none()) || (middle.len() == 2 && separates(1));
    add.set("sep", adds);
    if adds
        && names.get("sep").is_none()
        && let Some(eos) = names.get("eos").map(str::to_owned)
    {
        names.set("sep", &eos);
    }
}

fn chat_templates(
    dir: &Path,
    tokenizer_config: &Value,
) -> Result<Vec<(Option<String>, String)>, TokenizerError> {
    let text = |path: &Path| {
        std::fs::read_to_string(path)
            .map_err(|error| TokenizerError::Io { path: path.to_owned(), error })
    };
    let (jinja, json) = (dir.join("chat_template.jinja"), dir.join("chat_template.json"));
    let template = match tokenizer_config.get("chat_template") {
        Some(template) => template.clone(),
        None if jinja.is_file() => {
            let mut all = vec![(None, text(&jinja)?)];
            let mut extra: Vec<_> = std::fs::read_dir(dir.join("additional_chat_templates"))
                .map(|entries| entries.filter_map(|e| Some(e.ok()?.path())).collect())
                .unwrap_or_default();
            extra
                .retain(|path: &std::path::PathBuf| path.extension().is_some_and(|x| x == "jinja"));
            extra.sort();
            for path in extra {
                let name = path.file_stem().unwrap_or_default().to_string_lossy();
                all.push((Some(key_name(&name)), text(&path)?));
            }
            return Ok(all);
        }
        None if json.is_file() => read_json(&json)?["chat_template"].clone(),
        None => return Ok(Vec::new()),
    };
    Ok(match template {
        Value::String(template) => vec![(None, template)],
        Value::Array(list) => list
            .iter()
            .filter_map(|entry| {
                let (name, template) = (entry["name"].as_str()?, entry["template"].as_str()?);
                let name = (name != "default").then(|| key_name(name));
                Some((name, template.to_owned()))
            })
            .collect(),
        _ => Vec::new(),
    })
}

/// A template's name as part of a key.
fn key_name(name: &str) -> String {
    name.chars().map(|c| if c.is_ascii_alphanumeric() { c } else { '_' }).collect()
}
