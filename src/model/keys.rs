//! Metadata keys under an architecture's prefix.

use super::error::ModelError;
use super::hparams::Arch;
use crate::gguf::{Metadata, Value};
use std::path::Path;

/// Writes keys in order.
pub(super) struct Keys<'a> {
    prefix: &'static str,
    metadata: &'a mut Metadata,
}

impl<'a> Keys<'a> {
    pub fn new(arch: Arch, metadata: &'a mut Metadata) -> Self {
        Self { prefix: arch.name(), metadata }
    }

    /// Sets a key of the architecture.
    pub fn set(&mut self, key: &str, value: impl Into<Value>) {
        self.metadata.set(&format!("{}.{key}", self.prefix), value);
    }

    /// Sets a key without prefix.
    pub fn general(&mut self, key: &str, value: impl Into<Value>) {
        self.metadata.set(key, value);
    }
}

/// Reads keys; its errors name file and key.
pub(super) struct Reader<'a> {
    pub path: &'a Path,
    pub prefix: &'static str,
    pub metadata: &'a Metadata,
}

impl<'a> Reader<'a> {
    fn key(&self, key: &str) -> String {
        format!("{}.{key}", self.prefix)
    }

    pub fn bad(&self, key: &str) -> ModelError {
        ModelError::Key { path: self.path.to_owned(), key: self.key(key) }
    }

    /// A count, bounded so that products of two fit 64 bits.
    fn count(&self, key: &str) -> Result<Option<u32>, ModelError> {
        match self.metadata.u32(&self.key(key))? {
            Some(n) if n >= 1 << 28 => Err(self.bad(key)),
            n => Ok(n),
        }
    }

    pub fn u32(&self, key: &str) -> Result<u32, ModelError> {
        self.count(key)?.ok_or_else(|| self.bad(key))
    }

    pub fn u32_or(&self, key: &str, default: u32) -> Result<u32, ModelError> {
        Ok(self.count(key)?.unwrap_or(default))
    }

    pub fn f32(&self, key: &str) -> Result<f32, ModelError> {
        self.metadata.f32(&self.key(key))?.ok_or_else(|| self.bad(key))
    }

    pub fn f32_or(&self, key: &str, default: f32) -> Result<f32, ModelError> {
        Ok(self.metadata.f32(&self.key(key))?.unwrap_or(default))
    }

    pub fn bool_or(&self, key: &str, default: bool) -> Result<bool, ModelError> {
        Ok(self.metadata.bool(&self.key(key))?.unwrap_or(default))
    }

    pub fn str_opt(&self, key: &str) -> Result<Option<&'a str>, ModelError> {
        Ok(self.metadata.str(&self.key(key))?)
    }

    /// The vocabulary's size: its own key, or the length of the token list.
    pub fn n_vocab(&self) -> Result<u32, ModelError> {
        if let Some(n) = self.count("vocab_size")? {
            return Ok(n);
        }
        match self.metadata.get("tokenizer.ggml.tokens") {
            Some(Value::Array(tokens)) => Ok(tokens.len() as u32),
            _ => Err(self.bad("vocab_size")),
        }
    }
}
