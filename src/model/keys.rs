//! Metadata keys under an architecture's prefix.

use super::config::Config;
use super::error::ModelError;
use super::hparams::{Arch, Hparams};
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

    /// Sets what all architectures begin with (`TextModel.set_gguf_parameters`).
    pub fn common(&mut self, hparams: &Hparams, config: &Config) -> Result<(), ModelError> {
        self.set("block_count", hparams.n_layer + hparams.n_nextn);
        self.set("context_length", hparams.context_length);
        self.set("embedding_length", hparams.n_embd);
        self.set("feed_forward_length", hparams.n_ff);
        self.set("attention.head_count", hparams.attention.n_head());
        self.set("attention.head_count_kv", hparams.attention.n_head_kv());
        let rope = config.rope()?;
        if let Some(yarn) = &hparams.rope.yarn {
            self.set("rope.scaling.type", "yarn");
            self.set("rope.scaling.factor", yarn.factor);
            self.set("rope.scaling.original_context_length", yarn.original_context);
            for (key, settings) in [
                ("rope.scaling.yarn_ext_factor", &["extrapolation_factor"][..]),
                ("rope.scaling.yarn_attn_factor", &["attention_factor", "attn_factor"]),
                ("rope.scaling.yarn_beta_fast", &["beta_fast"]),
                ("rope.scaling.yarn_beta_slow", &["beta_slow"]),
            ] {
                for setting in settings {
                    if let Some(value) = rope.f32_opt(setting)? {
                        self.set(key, value);
                        break;
                    }
                }
            }
        }
        self.set("rope.freq_base", hparams.rope.freq_base);
        self.set("attention.layer_norm_rms_epsilon", hparams.rms_eps);
        Ok(())
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
    pub has_tensor: &'a dyn Fn(&str) -> bool,
}

impl<'a> Reader<'a> {
    /// Whether the file has a tensor of this name.
    pub fn has_tensor(&self, name: &str) -> bool {
        (self.has_tensor)(name)
    }

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
