//! What every setting of config.json means: one table for all that open a checkpoint, so that none is
//! passed over because nobody thought of it.
//!
//! It knows the settings of the classes' configurations in transformers 4.57 and 5, of the published
//! models, and those of other families that would make another model of one of these.

use super::config::{Config, alone};
use super::error::ModelError;
use crate::warning::{Topic, Warning};
use Meaning::{Harmless, Idle, Only, Used};
use serde_json::Value;

/// The classes of transformers that are known.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Class {
    DeepseekV3 = 1,
    DeepseekV2 = 2,
    Qwen2 = 4,
    Qwen3 = 8,
    Llama = 16,
    DeepseekV32 = 32,
}

impl Class {
    /// By name; the first of a class is its own.
    pub const ALL: [(&str, Self); 8] = [
        ("DeepseekV3ForCausalLM", Self::DeepseekV3),
        ("DeepseekV2ForCausalLM", Self::DeepseekV2),
        ("DeepseekV32ForCausalLM", Self::DeepseekV32),
        ("Qwen2ForCausalLM", Self::Qwen2),
        ("Qwen3ForCausalLM", Self::Qwen3),
        ("LlamaForCausalLM", Self::Llama),
        // Their part for text.
        ("KimiK25ForConditionalGeneration", Self::DeepseekV3),
        ("KimiVLForConditionalGeneration", Self::DeepseekV3),
    ];

    /// Its name.
    pub fn name(self) -> &'static str {
        Self::ALL.iter().find(|(_, class)| *class == self).map_or("", |(name, _)| name)
    }

    /// The class that a configuration names.
    pub fn of(config: &Config) -> Result<Self, ModelError> {
        let named = config.architecture()?;
        let known = Self::ALL.into_iter().find(|(name, _)| *name == named);
        known.map(|(_, class)| class).ok_or_else(|| ModelError::Architecture {
            path: config.path().to_owned(),
            found: named.to_owned(),
            supported: Self::ALL.map(|(name, _)| name).join(", "),
        })
    }
}

/// What a setting is to the model.
#[derive(Clone, Copy)]
enum Meaning {
    /// It is read, here or by those who read tokens and weights.
    Used,
    /// It says how to train, to store or to run the model, not what it computes.
    Harmless,
    /// It is another model but for some values, told apart by the test and described by the words.
    Only(fn(&Config, &Value) -> bool, &'static str),
    /// It is read where the rotary embedding is scaled in another way.
    Idle,
}

const ALL: u8 = 63;
const DEEPSEEK: u8 = Class::DeepseekV3 as u8 | Class::DeepseekV2 as u8 | Class::DeepseekV32 as u8;
const PLAIN: u8 = ALL - DEEPSEEK;
const QWEN: u8 = Class::Qwen2 as u8 | Class::Qwen3 as u8;

const OFF: Meaning = Only(|_, value| is_off(value), "false or nothing");
const ONE: Meaning = Only(|_, value| number(value) == Some(1.0), "1");
const ON: Meaning = Only(|_, value| value == &Value::Bool(true), "true");

/// Classes, meaning, and keys with spaces between them; the first that fits counts.
const SETTINGS: &[(u8, Meaning, &str)] = &[
    (
        ALL,
        Used,
        "architectures vocab_size hidden_size intermediate_size num_hidden_layers \
         num_attention_heads max_position_embeddings rms_norm_eps rope_theta \
         rope_scaling rope_parameters tie_word_embeddings \
         quantization_config name_or_path bos_token_id eos_token_id pad_token_id",
    ),
    (
        DEEPSEEK,
        Used,
        "kv_lora_rank q_lora_rank qk_nope_head_dim qk_rope_head_dim v_head_dim \
         n_routed_experts num_experts_per_tok n_shared_experts n_group topk_group \
         moe_intermediate_size first_k_dense_replace norm_topk_prob routed_scaling_factor \
         scoring_func topk_method num_nextn_predict_layers model_type",
    ),
    (Class::DeepseekV32 as u8, Used, "index_n_heads index_head_dim index_topk"),
    (PLAIN, Used, "num_key_value_heads head_dim"),
    (Class::Llama as u8 | Class::Qwen3 as u8, Used, "attention_bias"),
    // The function itself.
    (
        ALL,
        Only(|_, value| is_silu(value), "\"silu\""),
        "hidden_act hidden_activation activation_function",
    ),
    (Class::Qwen2 as u8, Harmless, "attention_bias"),
    (ALL, OFF, "attention_bias mlp_bias"),
    (ALL, Only(|_, value| is_full(value), "\"full_attention\" in every layer"), "layer_types"),
    (QWEN, Only(slides_nowhere, "false"), "use_sliding_window"),
    (QWEN, Harmless, "sliding_window max_window_layers"),
    (ALL, OFF, "use_sliding_window"),
    (
        DEEPSEEK,
        Only(|config, value| same(config, value, "num_attention_heads"), "`num_attention_heads`"),
        "num_key_value_heads",
    ),
    (
        DEEPSEEK,
        Only(|config, value| same(config, value, "n_routed_experts"), "`n_routed_experts`"),
        "num_local_experts num_experts",
    ),
    (
        DEEPSEEK,
        Only(
            |config, value| same(config, value, "num_nextn_predict_layers"),
            "`num_nextn_predict_layers`",
        ),
        "num_mtp_layers",
    ),
    (
        DEEPSEEK,
        Only(is_both_widths, "the sum of `qk_nope_head_dim` and `qk_rope_head_dim`"),
        "qk_head_dim",
    ),
    (DEEPSEEK, ON, "rope_interleave"),
    (DEEPSEEK, ONE, "moe_layer_freq"),
    (Class::Qwen3 as u8, Harmless, "use_qk_norm qk_norm qk_layernorm"),
    (
        ALL,
        ONE,
        "partial_rotary_factor rotary_pct rope_pct rope_percent logit_scale logits_scale \
         logits_scaling lm_head_multiplier embedding_multiplier embedding_scale scale_emb \
         residual_multiplier residual_scale attention_in_multiplier attention_out_multiplier \
         key_multiplier",
    ),
    (
        ALL,
        OFF,
        "text_config llm_config language_config per_layer_config pruned_heads \
         is_encoder_decoder add_cross_attention draft_vocab_size num_local_experts \
         num_experts attention_multiplier attention_scale query_pre_attn_scalar \
         scale_attn_by_inverse_layer_idx scale_depth mup_width_scale attn_logit_softcapping \
         attn_logit_softcap final_logit_softcapping final_logit_softcap logits_soft_cap \
         router_logit_softcapping clip_qkv clamp_kqv swiglu_limit use_qk_norm qk_norm \
         qk_layernorm qk_layer_norms use_qk_l2_norm attn_output_gate attention_output_gate \
         use_attention_sinks attention_chunk_size attn_temperature_tuning index_topk \
         no_rope_layers use_mrope rope_interleave rope_interleaved alibi use_alibi \
         use_parallel_residual parallel_attn",
    ),
    (ALL, Only(|_, value| value == &Value::Bool(true), "true"), "is_causal"),
    // What beside the text, in a model that also sees.
    (
        DEEPSEEK,
        Harmless,
        "vision_config ignore_index media_placeholder_token_id use_unified_vision_chunk \
         video_placeholder unfreeze",
    ),
    // Derived from others, in the classes that write them.
    (DEEPSEEK, Harmless, "head_dim"),
    // How to train.
    (
        ALL,
        Harmless,
        "initializer_range attention_dropout hidden_dropout hidden_dropout_prob \
         attention_probs_dropout_prob attn_pdrop embd_pdrop resid_pdrop residual_dropout \
         classifier_dropout aux_loss_alpha seq_aux router_aux_loss_coef output_router_logits \
         gradient_checkpointing neftune_noise_alpha use_reentrant_checkpointing",
    ),
    // How to run: over how many devices, by which kernels, what to return.
    (
        ALL,
        Harmless,
        "ep_size pretraining_tp use_cache attn_implementation experts_implementation \
         dual_chunk_attention_config torchscript return_dict use_return_dict \
         output_hidden_states output_attentions chunk_size_feed_forward \
         cross_attention_hidden_size is_decoder tie_encoder_decoder tie_last_hidden_states \
         tf_legacy_loss use_bfloat16 base_model_tp_plan base_model_pp_plan base_model_ep_plan \
         base_model_fsdp_plan model_max_length",
    ),
    // How to sample; generation_config.json says it today.
    (
        ALL,
        Harmless,
        "max_length min_length do_sample early_stopping num_beams num_beam_groups \
         diversity_penalty temperature top_k top_p typical_p repetition_penalty \
         length_penalty no_repeat_ngram_size encoder_no_repeat_ngram_size bad_words_ids \
         num_return_sequences output_scores return_dict_in_generate remove_invalid_values \
         exponential_decay_length_penalty suppress_tokens begin_suppress_tokens",
    ),
    // What it is called, how it is stored, what code and tasks it was made with.
    (
        ALL,
        Harmless,
        "model_type transformers_version auto_map dtype torch_dtype compression_config \
         sparsity_config tokenizer_class prefix id2label label2id num_labels problem_type \
         finetuning_task task_specific_params transformers.js_config is_llama_config \
         pixel_shuffle_factor use_resampler base_config_key sub_configs sub_configs_defaults \
         attribute_map keys_to_ignore_at_inference has_no_defaults_at_init is_composition \
         extra_files extra_config_files default_theta default_rope_type \
         ignore_keys_at_rope_validation model_name base_model",
    ),
];

/// The same of what is within `rope_scaling` or `rope_parameters`, by the kind of scaling that reads
/// it, `*` for all.
const ROTARY: &[(&str, u8, Meaning, &str)] = &[
    ("*", ALL, Used, "rope_type type rope_theta"),
    ("*", ALL, ONE, "partial_rotary_factor"),
    ("*", ALL, OFF, "mrope_section mrope_interleaved"),
    ("*", ALL, Harmless, "finetuned"),
    (
        "yarn",
        ALL,
        Used,
        "factor original_max_position_embeddings beta_fast beta_slow attention_factor",
    ),
    ("yarn", ALL, ONE, "extrapolation_factor"),
    ("yarn", ALL, ON, "truncate"),
    ("yarn", DEEPSEEK, Used, "mscale mscale_all_dim"),
    ("yarn", DEEPSEEK, ONE, "attn_factor"),
    // transformers would derive another factor from the first two, which GGUF has no place for.
    ("yarn", PLAIN, OFF, "mscale mscale_all_dim"),
    ("yarn", PLAIN, Used, "attn_factor"),
    ("llama3", ALL, Used, "factor original_max_position_embeddings"),
    ("llama3", ALL, Used, "low_freq_factor high_freq_factor"),
    // Of kinds that are refused.
    ("longrope", ALL, Used, "short_factor long_factor"),
    ("dynamic", ALL, Used, "alpha"),
];

fn number(value: &Value) -> Option<f64> {
    alone(value)?.as_f64()
}

/// What Python takes for false.
fn is_off(value: &Value) -> bool {
    match value {
        Value::Null => true,
        Value::Bool(on) => !on,
        Value::Number(n) => n.as_f64() == Some(0.0),
        Value::String(text) => text.is_empty(),
        Value::Array(list) => list.is_empty(),
        Value::Object(map) => map.is_empty(),
    }
}

fn is_silu(value: &Value) -> bool {
    alone(value).and_then(Value::as_str).is_some_and(|name| matches!(name, "silu" | "swish"))
}

fn is_full(value: &Value) -> bool {
    is_off(value) || alone(value).and_then(Value::as_str) == Some("full_attention")
}

/// Whether sliding windows are off, or meant for layers beyond the last (`Qwen2Config`).
fn slides_nowhere(config: &Config, value: &Value) -> bool {
    let count = |key, default| config.get(key).map_or(Some(default), number);
    let n_layer = config.get("num_hidden_layers").and_then(number);
    is_off(value)
        || config.get("layer_types").is_some()
        || config.is_null("sliding_window")
        || n_layer.is_some_and(|n| count("max_window_layers", 28.0).is_some_and(|first| first >= n))
}

/// Whether a setting has the value of another, or that one is no number.
fn same(config: &Config, value: &Value, other: &str) -> bool {
    config.get(other).and_then(number).is_none_or(|other| number(value) == Some(other))
}

fn is_both_widths(config: &Config, value: &Value) -> bool {
    let width = |key| config.get(key).and_then(number);
    match width("qk_nope_head_dim").zip(width("qk_rope_head_dim")) {
        Some((nope, rope)) => number(value) == Some(nope + rope),
        None => true,
    }
}

fn lists(keys: &str, name: &str) -> bool {
    keys.split(' ').any(|key| key == name)
}

fn rotary(name: &str, class: Class, kind: &str) -> Option<Meaning> {
    let mut rows = ROTARY.iter().filter(|row| lists(row.3, name)).peekable();
    let known = rows.peek().is_some();
    let read = rows.find(|row| row.1 & class as u8 != 0 && ["*", kind].contains(&row.0));
    read.map(|row| row.2).or(known.then_some(Idle))
}

/// What a setting is to a model of this class, whose rotary embedding is scaled in this way; nothing
/// for one that is not known.
fn meaning(key: &str, class: Class, kind: &str) -> Option<Meaning> {
    let listed = match key.rsplit_once('.') {
        Some((nested, name)) if nested.starts_with("rope_") => rotary(name, class, kind),
        // It may be beside the others as well.
        _ if key == "original_max_position_embeddings" => rotary(key, class, kind),
        _ => {
            let row = SETTINGS.iter().find(|row| row.0 & class as u8 != 0 && lists(row.2, key));
            row.map(|row| row.1)
        }
    };
    // Notes of tools to themselves, and ids of tokens that only some models have.
    let note = key.starts_with('_') || key.starts_with("unsloth") || key.ends_with("token_id");
    listed.or(note.then_some(Harmless))
}

fn kind_of_rope(config: &Config) -> Result<String, ModelError> {
    Ok(config.rope()?.kind()?.unwrap_or("default").to_owned())
}

/// Refuses settings that make another model of the class than the one that is known.
pub(super) fn check(config: &Config, class: Class) -> Result<(), ModelError> {
    let kind = kind_of_rope(config)?;
    for (key, value) in config.entries() {
        if let Some(Only(is_neutral, expected)) = meaning(&key, class, &kind)
            && !value.is_null()
            && !is_neutral(config, value)
        {
            return Err(config.bad_value(&key, Some(value), expected));
        }
    }
    Ok(())
}

/// What is known of each setting, in a word.
pub(super) fn verdicts(
    config: &Config,
    class: Class,
) -> Result<Vec<(String, &'static str)>, ModelError> {
    let kind = kind_of_rope(config)?;
    let verdict = |(key, value): (String, &Value)| {
        let verdict = match meaning(&key, class, &kind) {
            Some(Used) => "used",
            Some(Harmless) => "harmless",
            Some(Only(..)) => "checked",
            // Nothing is set.
            _ if value.is_null() => "harmless",
            Some(Idle) => "idle",
            None => "unknown",
        };
        (key, verdict)
    };
    Ok(config.entries().into_iter().map(verdict).collect())
}

/// What the user should look at.
pub(super) fn warnings(config: &Config) -> Result<Vec<Warning>, ModelError> {
    let mut odd = config.rope()?.oddities()?;
    let unknown: Vec<String> = config
        .settings()?
        .into_iter()
        .filter(|(_, verdict)| ["idle", "unknown"].contains(verdict))
        .map(|(key, _)| format!("`{key}`"))
        .collect();
    if !unknown.is_empty() {
        odd.push(format!(
            "settings that are not known, or have no effect here: {}",
            unknown.join(", ")
        ));
    }
    let warning =
        |what| Warning::new(Topic::Config, format!("{}: {what}", config.path().display()));
    Ok(odd.into_iter().map(warning).collect())
}
