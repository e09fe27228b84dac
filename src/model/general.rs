//! The `general.*` keys: what a model calls itself, gathered from its model card, its
//! configuration and its folder's name as the reference converter gathers them
//! (`gguf-py/gguf/metadata.py`, `ModelBase.prepare_metadata`).

use super::card::{self, Node};
use super::error::ModelError;
use super::model_id::{self, ModelId, title};
use crate::gguf::{Metadata, Value};
use crate::warning::{Topic, Warning};
use serde_json::Value as Json;
use std::collections::HashMap;
use std::path::Path;

/// Parameter counts as the size label shows them (`GGUFWriter.get_total_parameter_count`).
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ParamCounts {
    /// All parameters.
    total: u64,
    /// Parameters outside of stacked experts.
    shared: u64,
    /// Parameters of one expert, over all layers.
    expert: u64,
    /// Experts summed over the stacked tensors, and the number of such tensors.
    experts: (u64, u64),
}

impl ParamCounts {
    /// Counts a tensor by its name in GGUF's spelling; `dims` innermost first.
    pub fn add(&mut self, name: &str, dims: &[u64]) {
        let size: u64 = dims.iter().product();
        self.total += size;
        match dims.get(2).filter(|&&n| n > 0 && name.contains("_exps.")) {
            Some(&n_expert) => {
                self.expert += size / n_expert;
                self.experts.0 += n_expert;
                self.experts.1 += 1;
            }
            None => self.shared += size,
        }
    }

    /// For example `671B` or `256x20B`.
    fn size_label(&self) -> String {
        match self.experts.0.checked_div(self.experts.1) {
            Some(n) if n > 0 => format!("{n}x{}", rounded(self.shared + self.expert)),
            _ => rounded(self.total),
        }
    }
}

/// A count with two significant digits at least (`model_weight_count_rounded_notation`).
fn rounded(n: u64) -> String {
    let (scale, suffix) = match n {
        n if n > 1_000_000_000_000 => (1e-12, "T"),
        n if n > 1_000_000_000 => (1e-9, "B"),
        n if n > 1_000_000 => (1e-6, "M"),
        _ => (1e-3, "K"),
    };
    let scaled = n as f64 * scale;
    let whole = scaled.round_ties_even() as u64;
    let digits = if whole == 0 { 0 } else { whole.to_string().len() };
    format!("{scaled:.*}{suffix}", 2usize.saturating_sub(digits))
}

/// Sampling settings of generation_config.json, in the order of their keys.
const SAMPLING: [(&str, &[&str], Kind); 12] = [
    ("sequence", &["sequence"], Kind::Text),
    ("top_k", &["top_k"], Kind::Int),
    ("top_p", &["top_p"], Kind::Float),
    ("min_p", &["min_p"], Kind::Float),
    ("xtc_probability", &["xtc_probability"], Kind::Float),
    ("xtc_threshold", &["xtc_threshold"], Kind::Float),
    ("temp", &["temperature"], Kind::Float),
    ("penalty_last_n", &["penalty_last_n"], Kind::Int),
    ("penalty_repeat", &["penalty_repeat", "repetition_penalty"], Kind::Float),
    ("mirostat", &["mirostat"], Kind::Int),
    ("mirostat_tau", &["mirostat_tau"], Kind::Float),
    ("mirostat_eta", &["mirostat_eta"], Kind::Float),
];

#[derive(Clone, Copy)]
enum Kind {
    Text,
    Int,
    Float,
}

/// Text fields in the order of their keys, each with the model card's names for it.
const FIELDS: [(&str, &[&str]); 20] = [
    ("name", &["name", "model_name"]),
    ("author", &["author", "model_author", "model_creator"]),
    ("version", &["version", "model_version"]),
    ("organization", &["organization", "model_organization"]),
    ("finetune", &["finetune", "model_finetune"]),
    ("basename", &["basename", "model_basename", "model_type"]),
    ("description", &["description", "model_description"]),
    ("quantized_by", &[]),
    ("size_label", &["size_label", "model_size_label"]),
    ("license", &["license"]),
    ("license.name", &["license_name"]),
    ("license.link", &["license_link"]),
    ("url", &[]),
    ("doi", &[]),
    ("uuid", &[]),
    ("repo_url", &[]),
    ("source.url", &["url", "model_url"]),
    ("source.doi", &["doi", "model_doi"]),
    ("source.uuid", &["uuid", "model_uuid"]),
    ("source.repo_url", &["repo_url", "model_repo_url"]),
];

/// Models and data sets that the model card names: key, the card's names for the list.
const ORIGINS: [(&str, &[&str]); 2] = [
    ("base_model", &["base_model", "base_models", "base_model_sources"]),
    ("dataset", &["datasets", "dataset", "dataset_sources"]),
];

const ORIGIN_FIELDS: [&str; 9] =
    ["name", "author", "version", "organization", "description", "url", "doi", "uuid", "repo_url"];

/// Lists of words: key, the card's names for them.
const LISTS: [(&str, [&str; 2]); 2] =
    [("tags", ["tags", "pipeline_tag"]), ("languages", ["languages", "language"])];

/// What is to be said of a model, whatever its files say (convert_hf_to_gguf.py `--model-name` and
/// `--metadata`).
#[derive(Clone, Debug, Default)]
pub struct Given {
    name: Option<String>,
    keys: serde_json::Map<String, Json>,
}

impl Given {
    /// A name, and a JSON file with values by key, such as `general.author`.
    ///
    /// # Errors
    /// A file that cannot be read, keys that are none of a model's names, settings and lists of words,
    /// values of another kind.
    pub fn read(name: Option<String>, file: Option<&Path>) -> Result<Self, ModelError> {
        let Some(path) = file else { return Ok(Self { name, ..Self::default() }) };
        let keys: serde_json::Map<String, Json> = crate::json::read(path)?;
        for (key, value) in &keys {
            let (is_valid, expected) = expected(key, value);
            if !is_valid {
                return Err(ModelError::Config {
                    path: path.to_owned(),
                    key: key.clone(),
                    found: value.to_string(),
                    expected: expected.to_owned(),
                });
            }
        }
        Ok(Self { name, keys })
    }

    fn get(&self, key: &str) -> Option<&Json> {
        self.keys.get(&format!("general.{key}"))
    }
}

/// Whether a given key has a value that it can have, and what that would be.
fn expected(key: &str, value: &Json) -> (bool, &'static str) {
    let name = key.strip_prefix("general.").unwrap_or_default();
    if FIELDS.iter().any(|(field, _)| *field == name && name != "license") {
        return (value.is_string(), "a string");
    }
    if LISTS.iter().any(|(list, _)| *list == name) {
        let words = value.as_array();
        return (words.is_some_and(|words| words.iter().all(Json::is_string)), "a list of strings");
    }
    let sampling = name.strip_prefix("sampling.").unwrap_or_default();
    match SAMPLING.iter().find(|(setting, ..)| *setting == sampling) {
        Some((.., kind)) => (setting(value, *kind).is_some(), "a value of this setting"),
        None => (false, "no such key: names, settings of sampling, tags and languages are taken"),
    }
}

/// Writes `general.architecture`, `general.type` and everything that is known about the model's
/// name and origin, in the reference converter's order. Returns what of it could not be read.
pub fn general_metadata(
    dir: &Path,
    architecture: &str,
    config: &Json,
    counts: &ParamCounts,
    given: &Given,
    metadata: &mut Metadata,
) -> Vec<Warning> {
    let mut warnings = Vec::new();
    metadata.set("general.architecture", architecture);
    metadata.set("general.type", "model");
    sampling(dir, given, metadata, &mut warnings);
    let card = card::read(dir, &mut warnings);
    let mut fields: HashMap<&str, String> = HashMap::new();
    for (field, names) in FIELDS {
        if let Some(text) = names.iter().find_map(|name| card.get(name)?.text()) {
            fields.insert(field, text);
        }
    }
    let from_config = config["_name_or_path"].as_str().filter(|id| model_id::is_name(id));
    let from_folder = model_id::of_folder(dir);
    for id in [from_config.map(str::to_owned), from_folder].into_iter().flatten() {
        let id = ModelId::parse(&id, counts.total);
        for (field, value) in [
            ("name", Some(title(&id.name))),
            ("organization", id.organization.as_deref().map(title)),
            ("basename", id.basename),
            ("finetune", id.finetune),
            ("version", id.version),
            ("size_label", id.size_label),
        ] {
            if let Some(value) = value {
                fields.entry(field).or_insert(value);
            }
        }
    }
    if counts.total > 0 {
        fields.entry("size_label").or_insert_with(|| counts.size_label());
    }
    for (field, _) in FIELDS {
        fields.extend(given.get(field).and_then(Json::as_str).map(|text| (field, text.to_owned())));
    }
    fields.extend(given.name.clone().map(|name| ("name", name)));
    for (field, _) in FIELDS {
        if let Some(value) = fields.remove(field).filter(|value| !value.is_empty()) {
            metadata.set(&format!("general.{field}"), value);
        }
    }
    for (key, names) in ORIGINS {
        origins(key, names, &card, counts.total, metadata);
    }
    for (key, names) in LISTS {
        let words: Vec<String> = match given.get(key).and_then(Json::as_array) {
            Some(words) => words.iter().filter_map(Json::as_str).map(str::to_owned).collect(),
            None => names.iter().filter_map(|name| card.get(name)).flat_map(Node::words).collect(),
        };
        if !words.is_empty() {
            metadata.set(&format!("general.{key}"), words.into_iter().collect::<Value>());
        }
    }
    warnings
}

fn sampling(dir: &Path, given: &Given, metadata: &mut Metadata, warnings: &mut Vec<Warning>) {
    let path = dir.join("generation_config.json");
    let mut warn = |what: String| {
        let text = format!("{}: {what}", path.display());
        warnings.push(Warning::new(Topic::Config, text));
    };
    let config: serde_json::Map<String, Json> = match std::fs::read(&path) {
        Ok(bytes) => serde_json::from_slice(&bytes).unwrap_or_else(|error| {
            warn(format!("not a JSON object, and left out: {error}"));
            serde_json::Map::new()
        }),
        Err(error) => {
            // Not every model has settings to hand on.
            if error.kind() != std::io::ErrorKind::NotFound {
                warn(format!("cannot be read, and is left out: {error}"));
            }
            serde_json::Map::new()
        }
    };
    for (key, names, kind) in SAMPLING {
        let given = given.get(&format!("sampling.{key}")).map(|value| (&key, value));
        let in_file = || {
            let value = |name| config.get(name).filter(|value| !value.is_null());
            names.iter().find_map(|name| Some((name, value(*name)?)))
        };
        let Some((name, found)) = given.or_else(in_file) else { continue };
        match setting(found, kind) {
            Some(Value::String(text)) if text.is_empty() => {}
            Some(value) => metadata.set(&format!("general.sampling.{key}"), value),
            None => warn(format!("`{name}` is {found}, which is left out")),
        }
    }
}

/// A setting as GGUF has it; `None` where it is of another kind.
fn setting(found: &Json, kind: Kind) -> Option<Value> {
    match kind {
        Kind::Text => found.as_str().map(Value::from),
        Kind::Int => found.as_i64().and_then(|n| i32::try_from(n).ok()).map(Value::from),
        Kind::Float => found.as_f64().map(|x| Value::from(x as f32)),
    }
}

/// The sampling settings of a GGUF file as generation_config.json has them.
#[cfg(feature = "eval")]
pub fn sampling_settings(metadata: &Metadata) -> serde_json::Map<String, Json> {
    let mut settings = serde_json::Map::new();
    for (key, names, _) in SAMPLING {
        let value = match metadata.get(&format!("general.sampling.{key}")) {
            Some(Value::String(text)) => text.to_string().into(),
            Some(Value::I32(n)) => (*n).into(),
            Some(Value::F32(x)) => super::export::short(*x),
            _ => continue,
        };
        // transformers' own name comes last.
        settings.extend(names.last().map(|name| ((*name).to_owned(), value)));
    }
    let samples = ["temperature", "top_k", "top_p", "min_p"];
    if samples.iter().any(|key| settings.contains_key(*key))
        && settings.get("temperature") != Some(&0.0.into())
    {
        settings.insert("do_sample".to_owned(), true.into());
    }
    settings
}

fn origins(key: &str, names: &[&str], card: &Node, total: u64, metadata: &mut Metadata) {
    let Some(value) = names.iter().find_map(|name| card.get(name)) else { return };
    let entries: &[Node] = match value {
        Node::List(list) => list,
        Node::Word(_, true) => std::slice::from_ref(value),
        _ => &[],
    };
    metadata.set(&format!("general.{key}.count"), entries.len() as u32);
    for (i, entry) in entries.iter().enumerate() {
        let mut fields: HashMap<&str, String> = HashMap::new();
        match entry {
            Node::Word(id, true) => origin_of_id(id, total, &mut fields),
            Node::Map(_) => {
                for field in ORIGIN_FIELDS {
                    fields.extend(entry.get(field).and_then(Node::text).map(|text| (field, text)));
                }
            }
            _ => {}
        }
        for field in ORIGIN_FIELDS {
            if let Some(value) = fields.remove(field).filter(|value| !value.is_empty()) {
                metadata.set(&format!("general.{key}.{i}.{field}"), value);
            }
        }
    }
}

fn origin_of_id(id: &str, total: u64, fields: &mut HashMap<&str, String>) {
    const HUB: &str = "https://huggingface.co/";
    let is_url = ["http://", "https://", "ssh://"].iter().any(|scheme| id.starts_with(scheme));
    let hub_id = match is_url {
        true => {
            fields.insert("repo_url", id.to_owned());
            let path = id.strip_prefix(HUB).or_else(|| id.strip_prefix("http://huggingface.co/"));
            path.filter(|p| p.split('/').count() == 2 && p.split('/').all(|part| !part.is_empty()))
        }
        false => Some(id),
    };
    let Some(hub_id) = hub_id else { return };
    let parsed = ModelId::parse(hub_id, total);
    fields.insert("name", title(&parsed.name));
    if let Some(organization) = &parsed.organization {
        fields.insert("organization", title(organization));
        if !is_url {
            fields.insert("repo_url", format!("{HUB}{organization}/{}", parsed.name));
        }
    }
    fields.extend(parsed.version.map(|version| ("version", version)));
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn size_labels_have_two_digits_at_least() {
        assert_eq!(rounded(671_026_419_200), "671B");
        assert_eq!(rounded(1_543_714_304), "1.5B");
        assert_eq!(rounded(135_000_000), "135M");
        assert_eq!(rounded(999_999), "1000K");
        assert_eq!(rounded(400), "0.40K");
    }

    #[test]
    fn experts_are_counted_once() {
        let mut counts = ParamCounts::default();
        counts.add("token_embd.weight", &[100, 10_000]);
        counts.add("blk.1.ffn_up_exps.weight", &[1000, 1000, 8]);
        assert_eq!(counts.size_label(), "8x2.0M");
    }
}
