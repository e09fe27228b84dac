//! Configuration against tensors: which settings call for a tensor and for its shape, so that an error
//! names what may have to be mended.

use super::arch::Names;
use super::config::Config;
use super::error::ModelError;
use crate::source::{Checkpoint, Source, SourceError};

/// Part of a tensor's name, the settings that decide whether there is one, and those that its shape
/// follows from; the first that fits counts.
const DEEPSEEK: &[(&str, &str, &str)] = &[
    ("q_a_proj.weight", "q_lora_rank", "q_lora_rank hidden_size"),
    ("q_a_layernorm", "q_lora_rank", "q_lora_rank"),
    (
        "q_b_proj.weight",
        "q_lora_rank",
        "num_attention_heads qk_nope_head_dim qk_rope_head_dim q_lora_rank",
    ),
    (
        "self_attn.q_proj.weight",
        "q_lora_rank",
        "num_attention_heads qk_nope_head_dim qk_rope_head_dim hidden_size",
    ),
    ("kv_a_proj_with_mqa.weight", "", "kv_lora_rank qk_rope_head_dim hidden_size"),
    ("kv_a_layernorm", "", "kv_lora_rank"),
    ("kv_b_proj.weight", "", "num_attention_heads qk_nope_head_dim v_head_dim kv_lora_rank"),
    ("o_proj.weight", "", "num_attention_heads v_head_dim hidden_size"),
    (
        "mlp.shared_experts.",
        "n_shared_experts first_k_dense_replace",
        "n_shared_experts moe_intermediate_size hidden_size",
    ),
    ("mlp.experts.", "n_routed_experts first_k_dense_replace", "moe_intermediate_size hidden_size"),
    ("mlp.gate.", "first_k_dense_replace n_routed_experts", "n_routed_experts hidden_size"),
    ("mlp.", "first_k_dense_replace n_routed_experts", "intermediate_size hidden_size"),
];

/// The same of the plain decoders.
const PLAIN: &[(&str, &str, &str)] = &[
    ("_norm.weight", "architectures", "head_dim"),
    ("_proj.bias", "attention_bias mlp_bias", "num_attention_heads num_key_value_heads head_dim"),
    ("k_proj.", "", "num_key_value_heads head_dim num_attention_heads hidden_size"),
    ("v_proj.", "", "num_key_value_heads head_dim num_attention_heads hidden_size"),
    ("self_attn.", "", "num_attention_heads head_dim hidden_size"),
    ("mlp.", "", "intermediate_size hidden_size"),
];

/// The same of all.
const ALL: &[(&str, &str, &str)] = &[
    ("input_layernorm.weight", "num_hidden_layers num_nextn_predict_layers", "hidden_size"),
    ("embed_tokens.weight", "", "vocab_size hidden_size"),
    ("lm_head.weight", "tie_word_embeddings", "vocab_size hidden_size"),
    ("norm", "", "hidden_size"),
    (".bias", "attention_bias mlp_bias", ""),
];

/// An error about a tensor, with the settings that call for it.
pub(super) fn explain(error: ModelError, config: &Config) -> ModelError {
    let (tensor, of_shape) = match &error {
        ModelError::Shape { tensor, .. } => (tensor, true),
        ModelError::MissingTensor { tensor, .. } | ModelError::UnknownTensor { tensor, .. } => {
            (tensor, false)
        }
        _ => return error,
    };
    let latent = config.get("kv_lora_rank").is_some();
    let family = if latent { DEEPSEEK } else { PLAIN };
    let row = family.iter().chain(ALL).find(|(part, ..)| tensor.contains(part));
    let keys = row.map_or("", |(_, exists, shape)| if of_shape { shape } else { exists });
    let settings: Vec<String> = keys
        .split_whitespace()
        .filter(|key| latent || !key.starts_with("num_nextn"))
        .map(|key| match config.json().get(key) {
            Some(value) => format!("`{key}` is {value}"),
            None => format!("`{key}` is not set"),
        })
        .collect();
    if settings.is_empty() {
        return error;
    }
    let settings = settings.join(", ");
    ModelError::Disagrees { error: Box::new(error), config: config.path().to_owned(), settings }
}

/// Whether an output matrix is made use of that is another than the embedding, by some of their rows.
pub(super) fn head_differs(checkpoint: &Checkpoint, own: &Names) -> Result<bool, SourceError> {
    let names = [own.embedding, own.output];
    let [Some(embedding), Some(head)] = names.map(|name| checkpoint.find(name)) else {
        return Ok(false);
    };
    let meta = &checkpoint.tensors()[head];
    let row = |tensor, row| {
        let mut values = vec![0.0; meta.n_per_row() as usize];
        checkpoint.read_rows(tensor, row, &mut values).map(|()| values)
    };
    for at in (0..meta.n_rows()).step_by((meta.n_rows() / 8).max(1) as usize) {
        if row(embedding, at)? != row(head, at)? {
            return Ok(true);
        }
    }
    Ok(false)
}
