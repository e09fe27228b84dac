//! Metadata keys under an architecture's prefix.

use super::arch::Arch;
use super::config::Config;
use super::error::ModelError;
use super::gguf_keys;
use super::hparams::Hparams;
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

    /// A key that is there, with another value than it may have.
    pub fn bad_value(&self, key: &str, expected: &str) -> ModelError {
        let key = self.key(key);
        gguf_keys::bad(self.path, &key, self.metadata.get(&key), expected)
    }

    /// A count, bounded so that products of two fit 64 bits.
    fn count(&self, key: &str) -> Result<Option<u32>, ModelError> {
        match self.metadata.u32(&self.key(key)) {
            Ok(n) if n.is_none_or(|n| n < 1 << 28) => Ok(n),
            _ => Err(self.bad_value(key, "a whole number below 2^28, the same for all layers")),
        }
    }

    fn number(&self, key: &str) -> Result<Option<f32>, ModelError> {
        let number = self.metadata.f32(&self.key(key));
        number.map_err(|_| self.bad_value(key, "a number, the same for all layers"))
    }

    pub fn u32(&self, key: &str) -> Result<u32, ModelError> {
        self.count(key)?.ok_or_else(|| self.bad(key))
    }

    pub fn u32_or(&self, key: &str, default: u32) -> Result<u32, ModelError> {
        Ok(self.count(key)?.unwrap_or(default))
    }

    pub fn f32(&self, key: &str) -> Result<f32, ModelError> {
        self.number(key)?.ok_or_else(|| self.bad(key))
    }

    pub fn f32_or(&self, key: &str, default: f32) -> Result<f32, ModelError> {
        Ok(self.number(key)?.unwrap_or(default))
    }

    pub fn bool_or(&self, key: &str, default: bool) -> Result<bool, ModelError> {
        let switch = self.metadata.bool(&self.key(key));
        Ok(switch.map_err(|_| self.bad_value(key, "true or false"))?.unwrap_or(default))
    }

    pub fn str_opt(&self, key: &str) -> Result<Option<&'a str>, ModelError> {
        self.metadata.str(&self.key(key)).map_err(|_| self.bad_value(key, "a string"))
    }

    /// Factor and original context of YaRN, if the file is scaled. Without a type, llama.cpp takes the
    /// scaling for linear.
    pub fn yarn(&self) -> Result<Option<(f32, u32)>, ModelError> {
        let [ty, factor] = ["rope.scaling.type", "rope.scaling.factor"];
        let bad = |key, expected| self.bad_value(key, expected);
        match self.str_opt(ty)? {
            Some("none") => Ok(None),
            None | Some("linear") if matches!(self.f32_or(factor, 1.0)?, 0.0 | 1.0) => Ok(None),
            None | Some("linear") => Err(bad(factor, "1, but for \"yarn\" as rope.scaling.type")),
            Some("yarn") => match self.f32(factor)? {
                n if n.is_finite() && n >= 1.0 => {
                    let context = self.u32("context_length")?;
                    let context = self.u32_or("rope.scaling.original_context_length", context)?;
                    Ok(Some((n, context)))
                }
                _ => Err(bad(factor, "a number, 1 or above")),
            },
            Some(_) => Err(bad(ty, "\"yarn\" or \"none\"")),
        }
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
