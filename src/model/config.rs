//! config.json as published: typed look-ups with errors that name the key.
//!
//! Both spellings of the rotary settings are understood: the original's `rope_scaling` beside
//! `rope_theta`, and transformers 5's `rope_parameters`.

use super::error::ModelError;
use super::settings::{self, Class};
use serde_json::{Map, Value};
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

/// The configuration of a checkpoint.
#[derive(Clone, Debug)]
pub struct Config {
    path: PathBuf,
    json: Map<String, Value>,
}

impl Config {
    /// Reads `config.json` of a checkpoint folder.
    ///
    /// # Errors
    /// When the file cannot be read or is no JSON object.
    pub fn open(dir: &Path) -> Result<Self, ModelError> {
        let path = dir.join("config.json");
        let mut json: Map<String, Value> = crate::json::read(&path)?;
        with_text(&mut json);
        Ok(Self { json, path })
    }

    /// The whole document.
    pub fn json(&self) -> Value {
        Value::Object(self.json.clone())
    }

    /// The first entry of `architectures`.
    pub fn architecture(&self) -> Result<&str, ModelError> {
        let classes = self.json.get("architectures");
        let first = classes.map(|classes| classes.get(0).unwrap_or(classes));
        first
            .and_then(Value::as_str)
            .ok_or_else(|| self.bad("architectures", "a list with the model's class"))
    }

    /// Every key with its value, those of the rotary settings as `rope_scaling.factor`.
    pub fn entries(&self) -> Vec<(String, &Value)> {
        fn flatten<'a>(key: String, value: &'a Value, out: &mut Vec<(String, &'a Value)>) {
            let holds = ROTARY.contains(&key.as_str()) || key.ends_with("_attention");
            match value {
                Value::Object(map) if holds && !map.is_empty() => {
                    map.iter().for_each(|(sub, value)| flatten(format!("{key}.{sub}"), value, out));
                }
                _ => out.push((key, value)),
            }
        }
        let mut entries = Vec::new();
        self.json.iter().for_each(|(key, value)| flatten(key.clone(), value, &mut entries));
        entries
    }

    /// What every setting is to the model: `used`, `checked`, `harmless`, `idle` or `unknown`. The
    /// rotary ones are named as `rope_scaling.factor`.
    ///
    /// # Errors
    /// An unsupported class, or rotary settings that contradict each other.
    pub fn settings(&self) -> Result<Vec<(String, &'static str)>, ModelError> {
        settings::verdicts(self, Class::of(self)?)
    }

    /// The file.
    pub fn path(&self) -> &Path {
        &self.path
    }

    pub(super) fn bad(&self, key: &str, expected: &str) -> ModelError {
        self.bad_value(key, self.json.get(key), expected)
    }

    pub(super) fn bad_value(&self, key: &str, found: Option<&Value>, expected: &str) -> ModelError {
        let found = found.map_or_else(|| "missing".into(), Value::to_string);
        let expected = expected.to_owned();
        ModelError::Config { path: self.path.clone(), key: key.into(), found, expected }
    }

    /// A key's value; `None` when it is absent or null.
    pub fn get(&self, key: &str) -> Option<&Value> {
        self.json.get(key).filter(|v| !v.is_null())
    }

    /// Whether a key is there and says that it has no value.
    pub(super) fn is_null(&self, key: &str) -> bool {
        self.json.get(key).is_some_and(Value::is_null)
    }

    /// A key's value as a type that `convert` knows.
    fn typed<'a, T>(
        &'a self,
        key: &str,
        expected: &str,
        convert: impl FnOnce(&'a Value) -> Option<T>,
    ) -> Result<Option<T>, ModelError> {
        let Some(value) = self.get(key) else { return Ok(None) };
        match alone(value).and_then(convert) {
            Some(value) => Ok(Some(value)),
            None => Err(self.bad(key, expected)),
        }
    }

    /// An optional count.
    pub fn u32_opt(&self, key: &str) -> Result<Option<u32>, ModelError> {
        self.typed(key, "a whole number below 2^28", count)
    }

    /// A required count, at least 1.
    pub fn u32(&self, key: &str) -> Result<u32, ModelError> {
        let count = self.u32_opt(key)?.filter(|&n| n > 0);
        count.ok_or_else(|| self.bad(key, "a positive whole number"))
    }

    /// A count that the model class has a default for. An explicit null stays `None`.
    pub fn u32_or(&self, key: &str, default: Option<u32>) -> Result<Option<u32>, ModelError> {
        if self.json.contains_key(key) { self.u32_opt(key) } else { Ok(default) }
    }

    /// An optional number.
    pub fn f32_opt(&self, key: &str) -> Result<Option<f32>, ModelError> {
        self.typed(key, "a finite number", finite)
    }

    /// A switch that the model class has a default for. An explicit null is off, as in Python.
    pub fn bool_or(&self, key: &str, default: bool) -> Result<bool, ModelError> {
        match self.bool_opt(key)? {
            Some(on) => Ok(on),
            None => Ok(default && !self.is_null(key)),
        }
    }

    /// An optional switch.
    pub fn bool_opt(&self, key: &str) -> Result<Option<bool>, ModelError> {
        self.typed(key, "true or false", Value::as_bool)
    }

    /// An optional word.
    pub fn str_opt(&self, key: &str) -> Result<Option<&str>, ModelError> {
        self.typed(key, "a string", Value::as_str)
    }

    /// The longest context, in tokens.
    pub(super) fn context_length(&self, default: u32) -> Result<u32, ModelError> {
        const KEY: &str = "max_position_embeddings";
        match self.u32_or(KEY, Some(default))? {
            Some(n) if n > 0 => Ok(n),
            _ => Err(self.bad(KEY, "a positive whole number")),
        }
    }

    /// The epsilon of the norms.
    pub(super) fn rms_eps(&self) -> Result<f32, ModelError> {
        const KEY: &str = "rms_norm_eps";
        let eps = self.f32_opt(KEY)?.unwrap_or(1e-6);
        if eps >= 0.0 { Ok(eps) } else { Err(self.bad(KEY, "a number that is not negative")) }
    }

    /// The rotary settings, whichever way they are spelled. Where layers of several kinds have their
    /// own, those of full attention.
    pub fn rope(&self) -> Result<RopeConfig<'_>, ModelError> {
        let mut found = None;
        for key in ROTARY {
            let nested = match self.get(key) {
                None => continue,
                Some(Value::Object(map)) => map,
                Some(_) => return Err(self.bad(key, "an object or null")),
            };
            let (key, nested) = match nested.get("full_attention") {
                Some(Value::Object(full)) => (format!("{key}.full_attention"), full),
                _ => (key.to_owned(), nested),
            };
            match &found {
                None => found = Some((key, nested)),
                Some((_, other)) if same_rope(other, nested) => {}
                Some((other, _)) => {
                    let expected = format!("the same as `{other}`, or nothing");
                    return Err(self.bad(&key, &expected));
                }
            }
        }
        let (key, nested) = match found {
            Some((key, nested)) => (key, Some(nested)),
            None => (ROTARY[1].to_owned(), None),
        };
        Ok(RopeConfig { config: self, key, nested })
    }
}

/// Takes out the part for text of a model that also sees, as the reference converter does: what it says
/// counts, but for ids of tokens, which are asked for outside of it first, and the class.
fn with_text(json: &mut Map<String, Value>) {
    if !json.contains_key("vision_config") {
        return;
    }
    let Some(Value::Object(text)) = json.remove("text_config") else { return };
    for (key, value) in text {
        let outside = key.ends_with("_token_id") || key == "architectures";
        if !(outside && json.get(&key).is_some_and(|known| !known.is_null())) {
            json.insert(key, value);
        }
    }
}

/// Where rotary settings are: since transformers 5, and before. The reference takes the first.
const ROTARY: [&str; 2] = ["rope_parameters", "rope_scaling"];

/// Whether two spellings of the rotary settings say the same, apart from `rope_theta`, which may be
/// beside either.
fn same_rope(a: &Map<String, Value>, b: &Map<String, Value>) -> bool {
    let kind = |map: &Map<String, Value>| {
        let kind = map.get("rope_type").or_else(|| map.get("type")).and_then(Value::as_str);
        kind.unwrap_or("default").to_owned()
    };
    let settings = |map: &Map<String, Value>| -> BTreeMap<String, String> {
        let other = |key: &String| !["rope_type", "type", "rope_theta"].contains(&key.as_str());
        let text = |value: &Value| value.as_f64().map_or(value.to_string(), |x| x.to_string());
        let set = map.iter().filter(|(key, value)| other(key) && !value.is_null());
        set.map(|(key, value)| (key.clone(), text(value))).collect()
    };
    kind(a) == kind(b) && settings(a) == settings(b)
}

/// View of the rotary settings: the nested object first, the top level for what it lacks.
pub struct RopeConfig<'a> {
    config: &'a Config,
    key: String,
    nested: Option<&'a Map<String, Value>>,
}

impl RopeConfig<'_> {
    fn get(&self, key: &str) -> Option<&Value> {
        self.nested.and_then(|map| map.get(key)).filter(|v| !v.is_null())
    }

    pub(super) fn bad(&self, key: &str, expected: &str) -> ModelError {
        self.config.bad_value(&self.name(key), self.get(key), expected)
    }

    /// What a setting is called in messages.
    pub(super) fn name(&self, key: &str) -> String {
        format!("{}.{key}", self.key)
    }

    /// The key of the kind of scaling: `rope_type`, formerly `type`.
    pub(super) fn kind_key(&self) -> &'static str {
        if self.get("rope_type").is_some() { "rope_type" } else { "type" }
    }

    /// The kind of scaling; `None` for none.
    pub fn kind(&self) -> Result<Option<&str>, ModelError> {
        let key = self.kind_key();
        if self.get("type").is_some_and(|old| self.get(key) != Some(old)) {
            return Err(self.bad("type", &format!("the same as `{key}`")));
        }
        match self.get(key) {
            None => Ok(None),
            Some(Value::String(kind)) if kind == "default" => Ok(None),
            Some(Value::String(kind)) => Ok(Some(kind)),
            Some(_) => Err(self.bad(key, "a string")),
        }
    }

    /// A number of the nested object.
    pub fn f32_opt(&self, key: &str) -> Result<Option<f32>, ModelError> {
        self.get(key).map(|v| finite(v).ok_or_else(|| self.bad(key, "a finite number"))).transpose()
    }

    /// A number of the nested object, as precise as JSON has it.
    pub fn f64_opt(&self, key: &str) -> Result<Option<f64>, ModelError> {
        self.get(key)
            .map(|v| v.as_f64().ok_or_else(|| self.bad(key, "a finite number")))
            .transpose()
    }

    /// How many times longer the context becomes.
    pub(super) fn factor(&self) -> Result<f32, ModelError> {
        let factor = self.f32_opt("factor")?.filter(|&factor| factor >= 1.0);
        factor.ok_or_else(|| self.bad("factor", "a number, 1 or above"))
    }

    /// `rope_theta`, from either place.
    pub fn theta(&self) -> Result<Option<f32>, ModelError> {
        const KEY: &str = "rope_theta";
        let nested = self.f32_opt(KEY)?;
        let theta = match nested {
            Some(theta) => Some(theta),
            None => self.config.f32_opt(KEY)?,
        };
        let positive = "a number above 0";
        match theta {
            Some(theta) if theta <= 0.0 && nested.is_some() => Err(self.bad(KEY, positive)),
            Some(theta) if theta <= 0.0 => Err(self.config.bad(KEY, positive)),
            theta => Ok(theta),
        }
    }

    /// `original_max_position_embeddings`, from either place; where it is missing, transformers
    /// takes `max_position_embeddings`.
    pub fn original_context(&self) -> Result<u32, ModelError> {
        let positive = "a positive whole number";
        let beside = self.config.u32_opt(ORIGINAL)?;
        match (self.get(ORIGINAL), beside) {
            (Some(value), beside) => match count(value).filter(|&n| n > 0) {
                Some(n) if beside.is_none_or(|beside| beside == n) => Ok(n),
                Some(_) => Err(self.bad(ORIGINAL, "the same as in the top level")),
                None => Err(self.bad(ORIGINAL, positive)),
            },
            (None, Some(n)) if n > 0 => Ok(n),
            (None, Some(_)) => Err(self.config.bad(ORIGINAL, positive)),
            (None, None) => self.config.u32("max_position_embeddings"),
        }
    }

    /// Whether the context before its extension is said.
    pub(super) fn has_original(&self) -> bool {
        self.get(ORIGINAL).or_else(|| self.config.get(ORIGINAL)).is_some()
    }

    /// What of the settings is not as one would expect.
    pub(super) fn oddities(&self) -> Result<Vec<String>, ModelError> {
        let mut odd = Vec::new();
        let beside = self.config.f32_opt("rope_theta")?;
        if let (Some(theta), Some(beside)) = (self.f32_opt("rope_theta")?, beside)
            && theta != beside
        {
            let name = self.name("rope_theta");
            odd.push(format!("`{name}` is {theta}, which is taken, but `rope_theta` is {beside}"));
        }
        if self.kind()? == Some("yarn") && !self.has_original() {
            let name = self.name(ORIGINAL);
            odd.push(format!("`{name}` is missing; `max_position_embeddings` is taken for it"));
        }
        Ok(odd)
    }
}

/// The context before its extension.
const ORIGINAL: &str = "original_max_position_embeddings";

/// A value as it is, or the one that a list has for every layer.
pub(super) fn alone(value: &Value) -> Option<&Value> {
    let Value::Array(list) = value else { return Some(value) };
    let (first, rest) = list.split_first()?;
    rest.iter().all(|other| other == first).then_some(first)
}

/// JSON numbers are doubles; GGUF stores them rounded to f32 as the reference converter does.
fn finite(value: &Value) -> Option<f32> {
    value.as_f64().map(|v| v as f32).filter(|v| v.is_finite())
}

/// Counts are bounded so that products of two fit 64 bits, whatever a file claims.
fn count(value: &Value) -> Option<u32> {
    let whole =
        value.as_f64().filter(|x| (0.0..f64::from(1 << 28)).contains(x) && x.fract() == 0.0);
    whole.map(|x| x as u32)
}
