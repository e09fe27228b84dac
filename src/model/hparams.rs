//! Hyper-parameters, the one description that converter and forward pass share.

/// A model architecture, named as GGUF's `general.architecture` does.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Arch {
    /// DeepSeek V2, V3 and R1: multi-head latent attention, mixture of experts.
    DeepSeek2,
}

impl Arch {
    /// The value of `general.architecture` and the prefix of the architecture's keys.
    pub fn name(self) -> &'static str {
        match self {
            Arch::DeepSeek2 => "deepseek2",
        }
    }
}

/// Everything about a model that is not a weight.
#[derive(Clone, Debug, PartialEq)]
pub struct Hparams {
    /// The architecture.
    pub arch: Arch,
    /// Layers that take part in the forward pass (a multi-token-prediction layer does not).
    pub n_layer: u32,
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

/// Multi-head latent attention.
#[derive(Clone, Debug, PartialEq)]
pub struct Attention {
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
}

/// Rotary position embedding over interleaved pairs.
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
    /// Attention temperature coefficient of the rotary part (`mscale`). GGUF does not store it;
    /// files are read as if it equalled `mscale_all_dim`, which holds for every published model.
    pub mscale: f32,
    /// Attention temperature coefficient of the whole score (`mscale_all_dim`); 0 where absent.
    pub mscale_all_dim: f32,
}

/// How router scores become probabilities.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Gating {
    /// Softmax over all experts (V2).
    Softmax,
    /// Sigmoid of each expert (V3, R1).
    Sigmoid,
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
