//! The architectures. A file says all there is to say of one, or of some that are alike: classes,
//! hyper-parameters from config.json and back, GGUF's keys in both directions, and the tensors.
//!
//! What it does not say: how tokens pass through it, which is `eval`'s, and what settings mean that
//! make no difference ([`settings`](super::settings)).

pub(super) mod decoder;
pub(super) mod deepseek2;

use super::config::Config;
use super::error::ModelError;
use super::gguf_keys::Known;
use super::hparams::Hparams;
use super::inventory::TensorSpec;
use super::keys::Reader;
use super::settings::Class;
use crate::gguf::Metadata;
use serde_json::Value;

/// A model architecture, named as GGUF's `general.architecture` does.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Arch {
    /// DeepSeek V2, V3 and R1: multi-head latent attention, mixture of experts.
    DeepSeek2,
    /// DeepSeek V3.2: the same with sparse attention.
    DeepSeek32,
    /// Qwen 2 and 2.5.
    Qwen2,
    /// Qwen 3, dense.
    Qwen3,
    /// Llama 2 and 3.
    Llama,
}

/// What is to be known of an architecture.
pub(super) struct Architecture {
    /// The value of `general.architecture`.
    pub name: &'static str,
    /// What its checkpoints call the tensors outside of layers, and how the names of others begin.
    pub names: &'static Names,
    /// Its classes in transformers.
    pub classes: &'static [Class],
    /// Reads config.json.
    pub hparams: fn(&Config, Class) -> Result<Hparams, ModelError>,
    /// Reads the keys of a GGUF file.
    pub from_keys: fn(&Reader, Arch) -> Result<Hparams, ModelError>,
    /// Writes them, and `general.file_type`, in the reference converter's order.
    pub write_keys: fn(&Hparams, &Config, u32, &mut Metadata) -> Result<(), ModelError>,
    /// Keys that it has beside those of all.
    pub keys: Known,
    /// The tensors of a layer.
    pub layer: fn(&Hparams, u32) -> Vec<TensorSpec>,
    /// Adds to a config.json what it has beside the settings of all, and gives class and `model_type`.
    pub describe: fn(&Hparams, &mut Value) -> [&'static str; 2],
}

/// What checkpoints call tensors.
pub(super) struct Names {
    pub embedding: &'static str,
    pub output_norm: &'static str,
    pub output: &'static str,
    /// What stands before the number of a layer.
    pub layers: &'static str,
}

/// As most classes have them.
pub(super) const USUAL: Names = Names {
    embedding: "model.embed_tokens.weight",
    output_norm: "model.norm.weight",
    output: "lm_head.weight",
    layers: "model.layers.",
};

impl Names {
    /// The number of the layer that a tensor is in.
    pub fn layer_of(&self, name: &str) -> Option<u32> {
        name.strip_prefix(self.layers)?.split_once('.')?.0.parse().ok()
    }
}

impl Arch {
    /// All of them.
    pub const ALL: [Self; 5] =
        [Self::DeepSeek2, Self::DeepSeek32, Self::Qwen2, Self::Qwen3, Self::Llama];

    pub(super) fn row(self) -> &'static Architecture {
        match self {
            Self::DeepSeek2 => &deepseek2::DEEPSEEK2,
            Self::DeepSeek32 => &deepseek2::DEEPSEEK32,
            Self::Qwen2 => &decoder::QWEN2,
            Self::Qwen3 => &decoder::QWEN3,
            Self::Llama => &decoder::LLAMA,
        }
    }

    /// The architecture of a class.
    pub(super) fn of(class: Class) -> Self {
        let has = |arch: &Self| arch.row().classes.contains(&class);
        Self::ALL.into_iter().find(has).expect("every class is in a row")
    }

    /// The value of `general.architecture` and the prefix of the architecture's keys.
    pub fn name(self) -> &'static str {
        self.row().name
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_class_has_one_architecture() {
        for (_, class) in Class::ALL {
            let has = |arch: &&Arch| arch.row().classes.contains(&class);
            assert_eq!(Arch::ALL.iter().filter(has).count(), 1, "{class:?}");
        }
    }
}
