//! Special ids and the switches that add them: the names that the files give, tokenizer.json's
//! post-processor, config.json (`SpecialVocab` in `gguf-py/gguf/vocab.py`).

use super::added::{Merged, ROLES};
use super::files::Files;
use super::vocab::SPECIAL;
use crate::warning::{Topic, Warning};
use serde_json::Value;

/// What the files say together.
pub(super) struct Special {
    pub ids: Vec<(String, u32)>,
    /// Tokens that end a text as well, without a key.
    pub further_ends: Vec<u32>,
    pub add: Vec<(String, bool)>,
}

/// Switches that GGUF has keys for.
const SWITCHES: [&str; 3] = ["bos", "eos", "sep"];

/// Reads them. `model` is config.json, `size` that of the vocabulary.
pub(super) fn read(
    files: &Files,
    merged: &Merged,
    model: &Value,
    size: usize,
    warnings: &mut Vec<Warning>,
) -> Special {
    let mut types = ROLES.to_vec();
    let mut names = Names::of(files, merged);
    let mut add = Switches::default();
    post_processor(&files.tokenizer["post_processor"], &mut names, &mut add, &mut types);
    let mut ids: Vec<(String, u32)> = Vec::new();
    for ty in &types {
        if let Some(switch) = files.config.get(&format!("add_{ty}_token")).and_then(Value::as_bool)
        {
            // The reference lets a bare ByteLevel step, which adds nothing and says nothing,
            // overrule the model's own word. On some models that costs perplexity.
            add.declare(ty, switch);
        }
        set_id(&mut ids, ty, names.get(ty).and_then(|name| merged.table.id(name)));
    }
    let mut ends = Vec::new();
    for ty in &types {
        let key = format!("{ty}_token_id");
        let found = Ids { file: "config.json", key: &key, size, warnings }.of(model.get(&key));
        if *ty == "eos" && found.len() > 1 {
            ends.extend(found);
        } else {
            set_id(&mut ids, ty, found.first().copied());
        }
    }
    let generation = super::files::read_json(&files.dir.join(GENERATION)).unwrap_or_default();
    let key = "eos_token_id";
    ends.extend(Ids { file: GENERATION, key, size, warnings }.of(generation.get(key)));
    if !ids.iter().any(|(ty, _)| ty == "eos")
        && let Some(&first) = ends.first()
    {
        let text =
            format!("no file names an end token; {first}, the first id that ends a text, is taken");
        warnings.push(Warning::new(Topic::Tokenizer, text));
        set_id(&mut ids, "eos", Some(first));
    }
    ends.sort_unstable();
    ends.dedup();
    ends.retain(|end| !ids.iter().any(|(ty, id)| id == end && ENDS.contains(&ty.as_str())));
    let ids = ids
        .into_iter()
        .filter_map(|(ty, id)| {
            let name = SPECIAL.iter().find(|(short, _)| *short == ty)?.1;
            Some((name.to_owned(), id))
        })
        .collect();
    Special { ids, further_ends: ends, add: add.into_keys() }
}

/// Roles of tokens that end a text.
const ENDS: [&str; 3] = ["eos", "eot", "eom"];

const GENERATION: &str = "generation_config.json";

/// Reads ids from a file's key.
struct Ids<'a> {
    file: &'a str,
    key: &'a str,
    size: usize,
    warnings: &'a mut Vec<Warning>,
}

impl Ids<'_> {
    /// An id, or several where a text may end in several ways. Others are left out with a warning.
    fn of(&mut self, value: Option<&Value>) -> Vec<u32> {
        match value {
            Some(Value::Array(list)) if self.key == "eos_token_id" => {
                list.iter().filter_map(|id| self.id(id)).collect()
            }
            Some(value) => self.id(value).into_iter().collect(),
            None => Vec::new(),
        }
    }

    fn id(&mut self, value: &Value) -> Option<u32> {
        let id = value.as_u64().and_then(|id| u32::try_from(id).ok());
        let id = id.filter(|&id| (id as usize) < self.size);
        if id.is_none() && !value.is_null() {
            let Self { file, key, size, .. } = self;
            let text =
                format!("{file}: `{key}` is {value}, no token of a vocabulary of {size}; left out");
            self.warnings.push(Warning::new(Topic::Tokenizer, text));
        }
        id
    }
}

/// The first value stands.
fn set_id(ids: &mut Vec<(String, u32)>, ty: &str, id: Option<u32>) {
    if let Some(id) = id
        && !ids.iter().any(|(known, _)| known == ty)
    {
        ids.push((ty.to_owned(), id));
    }
}

/// The texts of special tokens, completed from the post-processor.
struct Names {
    /// Whether tokenizer_config.json says anything at all.
    configured: bool,
    names: Vec<(String, Text)>,
}

#[derive(Clone)]
struct Text {
    text: String,
    /// Whether a file gives the text alone; the reference compares no others.
    plain: bool,
}

impl Names {
    fn of(files: &Files, merged: &Merged) -> Self {
        let mut names = Self { configured: !files.config.is_empty(), names: Vec::new() };
        for name in merged.names.iter().filter(|n| n.stated && !n.ty.is_empty()) {
            let text = Text { text: name.token.content.clone(), plain: name.plain };
            names.put(name.ty, text);
        }
        for (missing, from) in [("bos", "cls"), ("eos", "sep")] {
            if let (None, Some(text)) = (names.find(missing), names.find(from).cloned()) {
                names.put(missing, text);
            }
        }
        names
    }

    fn find(&self, ty: &str) -> Option<&Text> {
        self.names.iter().find(|(known, _)| known == ty).map(|x| &x.1)
    }

    fn get(&self, ty: &str) -> Option<&str> {
        self.find(ty).map(|name| name.text.as_str())
    }

    fn put(&mut self, ty: &str, text: Text) {
        self.names.retain(|(known, _)| known != ty);
        self.names.push((ty.to_owned(), text));
    }

    fn set(&mut self, ty: &str, text: &str) {
        self.put(ty, Text { text: text.to_owned(), plain: true });
    }

    fn is(&self, text: &str, types: &[&str]) -> bool {
        types.iter().any(|ty| self.find(ty).is_some_and(|name| name.plain && name.text == text))
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
        } else if !names.is(first, &["bos", "cls"]) {
            for ty in ["bos", "cls"] {
                if names.get(ty).is_none() {
                    names.set(ty, first);
                }
            }
        }
        add.set("bos", names.is(first, &["bos", "cls"]));
    }
    if let Some(last) = last {
        if names.configured && !names.is(last, &["eos"]) {
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
        |i: usize| special_of(middle.get(i)).is_some_and(|token| names.is(token, &["sep", "eos"]));
    let adds = (separates(0) && last.is_none()) || (middle.len() == 2 && separates(1));
    add.set("sep", adds);
    if adds
        && names.get("sep").is_none()
        && let Some(eos) = names.get("eos").map(str::to_owned)
    {
        names.set("sep", &eos);
    }
}
