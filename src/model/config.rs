//! config.json as published: typed look-ups with errors that name the key.
//!
//! Both spellings of the rotary settings are understood: the original's `rope_scaling` beside
//! `rope_theta`, and transformers 5's `rope_parameters`.

use super::error::ModelError;
use serde_json::{Map, Value};
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
        let bytes =
            std::fs::read(&path).map_err(|error| ModelError::Io { path: path.clone(), error })?;
        match serde_json::from_slice(&bytes) {
            Ok(json) => Ok(Self { path, json }),
            Err(error) => Err(ModelError::Json { path, error }),
        }
    }

    /// The whole document.
    pub fn json(&self) -> Value {
        Value::Object(self.json.clone())
    }

    /// The first entry of `architectures`.
    pub fn architecture(&self) -> Result<&str, ModelError> {
        self.json
            .get("architectures")
            .and_then(|a| a.get(0))
            .and_then(Value::as_str)
            .ok_or_else(|| self.bad("architectures", "a list with the model's class"))
    }

    /// The file.
    pub fn path(&self) -> &Path {
        &self.path
    }

    pub(super) fn bad(&self, key: &str, expected: &'static str) -> ModelError {
        let found = self.json.get(key).map_or_else(|| "missing".into(), Value::to_string);
        ModelError::Config { path: self.path.clone(), key: key.into(), found, expected }
    }

    /// A key's value; `None` when it is absent or null.
    pub fn get(&self, key: &str) -> Option<&Value> {
        self.json.get(key).filter(|v| !v.is_null())
    }

    /// An optional count.
    pub fn u32_opt(&self, key: &str) -> Result<Option<u32>, ModelError> {
        self.get(key)
            .map(|v| count(v).ok_or_else(|| self.bad(key, "a whole number below 2^28")))
            .transpose()
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
        self.get(key).map(|v| finite(v).ok_or_else(|| self.bad(key, "a finite number"))).transpose()
    }

    /// An optional switch.
    pub fn bool_opt(&self, key: &str) -> Result<Option<bool>, ModelError> {
        self.get(key).map(|v| v.as_bool().ok_or_else(|| self.bad(key, "true or false"))).transpose()
    }

    /// An optional word.
    pub fn str_opt(&self, key: &str) -> Result<Option<&str>, ModelError> {
        self.get(key).map(|v| v.as_str().ok_or_else(|| self.bad(key, "a string"))).transpose()
    }

    /// The rotary settings, whichever way they are spelled.
    pub fn rope(&self) -> Result<RopeConfig<'_>, ModelError> {
        let key =
            if self.get("rope_parameters").is_some() { "rope_parameters" } else { "rope_scaling" };
        let nested = match self.get(key) {
            None => None,
            Some(Value::Object(map)) => Some(map),
            Some(_) => return Err(self.bad(key, "an object or null")),
        };
        Ok(RopeConfig { config: self, key, nested })
    }
}

/// View of the rotary settings: the nested object first, the top level for what it lacks.
pub struct RopeConfig<'a> {
    config: &'a Config,
    key: &'static str,
    nested: Option<&'a Map<String, Value>>,
}

impl RopeConfig<'_> {
    fn get(&self, key: &str) -> Option<&Value> {
        self.nested.and_then(|map| map.get(key)).filter(|v| !v.is_null())
    }

    pub(super) fn bad(&self, key: &str, expected: &'static str) -> ModelError {
        ModelError::Config {
            path: self.config.path.clone(),
            key: format!("{}.{key}", self.key),
            found: self.get(key).map_or_else(|| "missing".into(), Value::to_string),
            expected,
        }
    }

    /// The key of the kind of scaling: `rope_type`, formerly `type`.
    pub(super) fn kind_key(&self) -> &'static str {
        if self.get("rope_type").is_some() { "rope_type" } else { "type" }
    }

    /// The kind of scaling; `None` for none.
    pub fn kind(&self) -> Result<Option<&str>, ModelError> {
        let key = self.kind_key();
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

    /// `rope_theta`, from either place.
    pub fn theta(&self) -> Result<Option<f32>, ModelError> {
        match self.f32_opt("rope_theta")? {
            Some(theta) => Ok(Some(theta)),
            None => self.config.f32_opt("rope_theta"),
        }
    }

    /// `original_max_position_embeddings`, from either place.
    pub fn original_context(&self) -> Result<u32, ModelError> {
        const KEY: &str = "original_max_position_embeddings";
        match self.get(KEY).and_then(count) {
            Some(n) => Ok(n),
            None if self.get(KEY).is_none() && self.config.get(KEY).is_some() => {
                self.config.u32(KEY)
            }
            None => Err(self.bad(KEY, "a whole number")),
        }
    }
}

/// JSON numbers are doubles; GGUF stores them rounded to f32 as the reference converter does.
fn finite(value: &Value) -> Option<f32> {
    value.as_f64().map(|v| v as f32).filter(|v| v.is_finite())
}

/// Counts are bounded so that products of two fit 64 bits, whatever a file claims.
fn count(value: &Value) -> Option<u32> {
    value.as_u64().filter(|&n| n < 1 << 28).map(|n| n as u32)
}
