//! What every metadata key of an architecture means, as [`super::settings`] has it for config.json:
//! which the forward pass reads, and which would make it another one.

use super::arch::Arch;
use super::error::ModelError;
use crate::gguf::{Array, Metadata, Value};
use crate::warning::{Topic, Warning};
use Meaning::{Harmless, Only, Used};
use std::path::Path;

/// What a key is to the model.
#[derive(Clone, Copy)]
pub(super) enum Meaning {
    /// It is read.
    Used,
    /// It changes nothing that is computed here.
    Harmless,
    /// It is another model but for some values, told apart by the test and described by the words.
    Only(fn(&Metadata, &str) -> bool, &'static str),
}

const ZERO: Meaning = Only(|metadata, key| number(metadata, key) == Some(0.0), "0");
/// llama.cpp takes 0 for a factor that is not set.
const FACTOR: Meaning = Only(|metadata, key| matches!(number(metadata, key), Some(0.0 | 1.0)), "1");

/// Meaning, and keys with spaces between them.
pub(super) type Known = &'static [(Meaning, &'static str)];

/// Keys of all architectures.
const KEYS: Known = &[
    (
        Used,
        "block_count context_length embedding_length feed_forward_length vocab_size \
         attention.head_count attention.head_count_kv attention.key_length \
         attention.value_length attention.layer_norm_rms_epsilon rope.dimension_count \
         rope.freq_base rope.scaling.type rope.scaling.factor \
         rope.scaling.original_context_length rope.scaling.yarn_beta_fast \
         rope.scaling.yarn_beta_slow expert_count",
    ),
    // Read where the architecture has them; of no effect beside 0 experts.
    (
        Harmless,
        "expert_used_count rope.scaling.finetuned tensor_data_layout pooling_type \
         classifier.output_labels attention.layer_norm_epsilon attention.temperature_length \
         decoder_start_token_id",
    ),
    (Only(is_out_of_reach, "0, or the context length"), "attention.sliding_window"),
    (Only(|metadata, key| metadata.bool(key).ok() == Some(Some(true)), "true"), "attention.causal"),
    (
        Only(|metadata, key| metadata.bool(key).ok() == Some(Some(false)), "false"),
        "use_parallel_residual swin_norm",
    ),
    (
        Only(|metadata, key| metadata.str(key).ok() == Some(Some("silu")), "silu"),
        "hidden_activation",
    ),
    (
        ZERO,
        "attention.scale attention.clamp_kqv attention.max_alibi_bias \
         attention.temperature_scale attention.relative_buckets_count \
         attention.indexer.top_k attn_logit_softcapping final_logit_softcapping \
         router_logit_softcapping rope.scaling.alpha rope.dimension_sections \
         swiglu_clamp_exp swiglu_clamp_shexp nextn_predict_layers",
    ),
    (
        FACTOR,
        "logit_scale residual_scale embedding_scale attention.output_scale \
         attention.value_scale expert_group_scale rope.scale_linear rope.scaling.attn_factor \
         moe_every_n_layers",
    ),
    (
        Only(|metadata, key| number(metadata, key).is_some_and(|x| x == 1.0 || x < 0.0), "1"),
        "rope.scaling.yarn_ext_factor",
    ),
];

/// Keys of `deepseek2` and `deepseek32` alone; these go first.
const OF_LATENT: [(Meaning, &str); 2] = [
    (
        Used,
        "attention.q_lora_rank attention.kv_lora_rank attention.key_length_mla \
         attention.value_length_mla leading_dense_block_count expert_used_count \
         expert_shared_count expert_group_count expert_group_used_count expert_gating_func \
         expert_feed_forward_length expert_weights_scale expert_weights_norm \
         nextn_predict_layers rope.scaling.yarn_log_multiplier",
    ),
    (FACTOR, "rope.scaling.yarn_attn_factor"),
];

/// Keys of `deepseek2`.
pub(super) const LATENT: Known = &OF_LATENT;

/// Keys of `deepseek32`.
pub(super) const SPARSE: Known = &[
    OF_LATENT[0],
    OF_LATENT[1],
    (Used, "attention.indexer.head_count attention.indexer.key_length attention.indexer.top_k"),
];

/// Keys of the others.
pub(super) const PLAIN: Known =
    &[(Used, "rope.scaling.yarn_attn_factor"), (ZERO, "rope.scaling.yarn_log_multiplier")];

fn number(metadata: &Metadata, key: &str) -> Option<f64> {
    let count = metadata.u32(key).ok().flatten().map(f64::from);
    count.or_else(|| metadata.f32(key).ok().flatten().map(f64::from))
}

/// Whether no token is so far away.
fn is_out_of_reach(metadata: &Metadata, key: &str) -> bool {
    let prefix = key.split('.').next().unwrap_or(key);
    let context = number(metadata, &format!("{prefix}.context_length")).unwrap_or(0.0);
    number(metadata, key).is_some_and(|window| window == 0.0 || window >= context)
}

fn meaning(arch: Arch, key: &str) -> Option<Meaning> {
    let listed = |(_, keys): &&(Meaning, &str)| keys.split(' ').any(|known| known == key);
    arch.row().keys.iter().chain(KEYS).find(listed).map(|(meaning, _)| *meaning)
}

/// Refuses keys that make another model than the forward pass computes, and says which are not known.
pub(super) fn check(
    path: &Path,
    arch: Arch,
    metadata: &Metadata,
) -> Result<Vec<Warning>, ModelError> {
    let mut unknown = Vec::new();
    for (name, value) in metadata.iter() {
        let Some(key) = name.strip_prefix(arch.name()).and_then(|key| key.strip_prefix('.')) else {
            continue;
        };
        match meaning(arch, key) {
            Some(Only(is_neutral, expected)) if !is_neutral(metadata, name) => {
                return Err(bad(path, name, Some(value), expected));
            }
            Some(_) => {}
            None => unknown.push(format!("`{name}`")),
        }
    }
    let text = format!(
        "{}: keys that are not known and have no effect: {}",
        path.display(),
        unknown.join(", ")
    );
    Ok(match unknown.is_empty() {
        true => Vec::new(),
        false => vec![Warning::new(Topic::Config, text)],
    })
}

/// A key with a value that it must not have.
pub(super) fn bad(path: &Path, key: &str, found: Option<&Value>, expected: &str) -> ModelError {
    let found = match found {
        None => "missing".to_owned(),
        Some(Value::String(text)) => format!("\"{text}\""),
        Some(Value::U32(n)) => n.to_string(),
        Some(Value::I32(n)) => n.to_string(),
        Some(Value::F32(x)) => x.to_string(),
        Some(Value::Array(array)) => {
            format!("{} values of {}", array.len(), Array::type_name(array))
        }
        Some(other) => format!("{other:?}"),
    };
    ModelError::Config {
        path: path.to_owned(),
        key: key.to_owned(),
        found,
        expected: expected.to_owned(),
    }
}
