//! Hyper-parameters, the one description that converter and forward pass share.

use super::arch::Arch;
use super::config::Config;
use super::error::ModelError;
use super::keys::Reader;
use super::settings::{self, Class};
use crate::gguf::Metadata;
use std::path::Path;

impl Hparams {
    /// Reads them from a checkpoint's config.json.
    ///
    /// # Errors
    /// An unsupported class, or a setting that is missing, of the wrong kind, or would make another
    /// model than the class is known to be.
    pub fn from_config(config: &Config) -> Result<Self, ModelError> {
        let class = Class::of(config)?;
        settings::check(config, class)?;
        (Arch::of(class).row().hparams)(config, class)
    }

    /// Reads them from a GGUF file's metadata, and from which tensors there are. `path` is for
    /// error messages.
    ///
    /// # Errors
    /// An unsupported architecture, or a key that is missing or of the wrong type.
    pub fn from_metadata(
        path: &Path,
        metadata: &Metadata,
        has_tensor: &dyn Fn(&str) -> bool,
    ) -> Result<Self, ModelError> {
        let named = metadata.str("general.architecture")?;
        let Some(arch) = Arch::ALL.into_iter().find(|arch| Some(arch.name()) == named) else {
            return Err(ModelError::Architecture {
                path: path.to_owned(),
                found: named.unwrap_or("none").to_owned(),
                supported: Arch::ALL.map(Arch::name).join(", "),
            });
        };
        let keys = Reader { path, prefix: arch.name(), metadata, has_tensor };
        (arch.row().from_keys)(&keys, arch)
    }

    /// Writes the architecture's keys and `general.file_type` in the reference converter's order.
    ///
    /// # Errors
    /// A setting of the wrong kind in `config`, which decides which optional keys there are.
    pub fn write_keys(
        &self,
        config: &Config,
        file_type: u32,
        metadata: &mut Metadata,
    ) -> Result<(), ModelError> {
        (self.arch.row().write_keys)(self, config, file_type, metadata)
    }
}

/// Everything about a model that is not a weight.
#[derive(Clone, Debug, PartialEq)]
pub struct Hparams {
    /// The architecture.
    pub arch: Arch,
    /// Layers that take part in the forward pass.
    pub n_layer: u32,
    /// Multi-token-prediction layers stored after them, which do not.
    pub n_nextn: u32,
    /// Longest context the model was made for, in tokens.
    pub context_length: u32,
    /// Width of the residual stream.
    pub n_embd: u32,
    /// Width of the dense feed-forward layers.
    pub n_ff: u32,
    /// Tokens in the vocabulary, padding included.
    pub n_vocab: u32,
    /// Epsilon of every RMS norm.
    pub rms_eps: f32,
    /// Attention.
    pub attention: Attention,
    /// Rotary position embedding.
    pub rope: Rope,
    /// Mixture of experts, if any.
    pub moe: Option<Moe>,
}

/// How tokens attend to each other.
#[derive(Clone, Debug, PartialEq)]
#[non_exhaustive]
pub enum Attention {
    /// Multi-head latent attention (`deepseek2`, `deepseek32`).
    Latent(Latent),
    /// Grouped-query attention (`qwen2`, `qwen3`, `llama`).
    Grouped(Grouped),
}

impl Attention {
    /// Query heads.
    pub fn n_head(&self) -> u32 {
        match self {
            Self::Latent(a) => a.n_head,
            Self::Grouped(a) => a.n_head,
        }
    }

    /// Heads of keys and values, as GGUF counts them.
    pub fn n_head_kv(&self) -> u32 {
        match self {
            // Latent attention is multi-query attention with one wide head.
            Self::Latent(Latent { mla: Mla::Split, .. }) => 1,
            Self::Latent(a) => a.n_head,
            Self::Grouped(a) => a.n_head_kv,
        }
    }

    /// Numbers that are kept for each token of the context in each layer.
    pub fn n_cached(&self) -> u32 {
        match self {
            Self::Latent(Latent { mla: Mla::Split, kv_lora_rank, qk_rope, .. }) => {
                kv_lora_rank + qk_rope
            }
            Self::Latent(a) => a.n_head * (a.qk_nope + a.qk_rope + a.v_head),
            Self::Grouped(a) => 2 * a.n_head_kv * a.head_dim,
        }
    }

    /// Dimensions of a head that rotate.
    pub fn n_rot(&self) -> u32 {
        match self {
            Self::Latent(a) => a.qk_rope,
            Self::Grouped(a) => a.head_dim,
        }
    }
}

/// Which elements of a head rotate together.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Pairs {
    /// `2i` and `2i + 1`.
    Neighbours,
    /// `i` and `i + width / 2`.
    Halves,
}

/// Grouped-query attention: several query heads share a head of keys and values.
#[derive(Clone, Debug, PartialEq)]
pub struct Grouped {
    /// Query heads.
    pub n_head: u32,
    /// Heads of keys and values.
    pub n_head_kv: u32,
    /// Width of a head.
    pub head_dim: u32,
    /// Which elements of a head rotate together.
    pub pairs: Pairs,
    /// Whether queries, keys and values have biases.
    pub qkv_bias: bool,
    /// Whether the output has a bias.
    pub output_bias: bool,
    /// Whether each head of queries and keys is normalised.
    pub qk_norm: bool,
}

/// Multi-head latent attention.
#[derive(Clone, Debug, PartialEq)]
pub struct Latent {
    /// Query heads.
    pub n_head: u32,
    /// Rank of the query's low-rank projection; `None` where queries are projected directly.
    pub q_lora_rank: Option<u32>,
    /// Rank of the compressed keys and values.
    pub kv_lora_rank: u32,
    /// Width of a head's key without position.
    pub qk_nope: u32,
    /// Width of a head's key with rotary position, also the rope's dimension count.
    pub qk_rope: u32,
    /// Width of a head's value.
    pub v_head: u32,
    /// How keys and values are stored.
    pub mla: Mla,
    /// What chooses the tokens that are attended to; `None` where all are.
    pub indexer: Option<Indexer>,
}

/// DeepSeek-V3.2's lightning indexer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Indexer {
    /// Query heads.
    pub n_head: u32,
    /// Width of a head.
    pub head: u32,
    /// Tokens that each chooses; where there are no more, attention is that of V3.
    pub top_k: u32,
}

/// How GGUF files store the matrix that unpacks compressed keys and values.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub enum Mla {
    /// `attn_k_b`, each head transposed, and `attn_v_b`: multi-query attention on the compressed
    /// keys and values.
    #[default]
    Split,
    /// `attn_kv_b`, as in the checkpoint: files from before April 2025.
    Legacy,
}

/// Rotary position embedding.
#[derive(Clone, Debug, PartialEq)]
pub struct Rope {
    /// Base of the geometric series of frequencies.
    pub freq_base: f32,
    /// Context extension, if any.
    pub yarn: Option<Yarn>,
}

/// YaRN context extension (Peng et al., arXiv:2309.00071).
#[derive(Clone, Debug, PartialEq)]
pub struct Yarn {
    /// How many times longer the context becomes.
    pub factor: f32,
    /// Context length before extension.
    pub original_context: u32,
    /// Rotations over the original context above which a dimension is left alone.
    pub beta_fast: f32,
    /// Rotations below which a dimension is interpolated in full.
    pub beta_slow: f32,
    /// Factor on the cosines and sines. transformers computes it as
    /// [`mscale`]`(factor, mscale) / mscale(factor, mscale_all_dim)`, which is 1 for every
    /// published model. GGUF does not store it: it is 1 where `mscale_all_dim` is not 0.
    pub attention_factor: f32,
    /// Coefficient of the attention temperature (`mscale_all_dim`): scores are multiplied by
    /// [`mscale`]`(factor, mscale_all_dim)` squared. 0 where absent.
    pub mscale_all_dim: f32,
}

/// How router scores become probabilities. The discriminants are those of `expert_gating_func`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Gating {
    /// Softmax over all experts (V2).
    Softmax = 1,
    /// Sigmoid of each expert (V3, R1).
    Sigmoid = 2,
}

/// Mixture of experts.
#[derive(Clone, Debug, PartialEq)]
pub struct Moe {
    /// Leading layers that are dense instead.
    pub leading_dense: u32,
    /// Routed experts.
    pub n_expert: u32,
    /// Experts that a token is sent to.
    pub n_used: u32,
    /// Shared experts, stored as one of this many times the width; 0 for none.
    pub n_shared: u32,
    /// Groups of experts; 0 or 1 for no grouping.
    pub n_group: u32,
    /// Groups that a token may choose from.
    pub n_group_used: u32,
    /// Width of one routed expert.
    pub n_ff: u32,
    /// How scores become probabilities.
    pub gating: Gating,
    /// Whether the chosen experts' weights are normalised to sum to one.
    pub norm_weights: bool,
    /// Factor on the chosen experts' weights.
    pub weights_scale: f32,
}

/// YaRN's attention temperature for a context `factor` times as long: `0.1 k ln(factor) + 1`
/// (Peng et al., arXiv:2309.00071, equation 22; transformers' `yarn_get_mscale`).
pub fn mscale(factor: f32, k: f32) -> f32 {
    if factor <= 1.0 { 1.0 } else { (0.1 * f64::from(k) * f64::from(factor).ln() + 1.0) as f32 }
}
