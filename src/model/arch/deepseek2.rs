//! The `deepseek2` architecture, DeepSeek V2, V3 and R1, and `deepseek32`, V3.2, which is V3 with an
//! indexer that chooses the tokens that are attended to.
//!
//! Three translations of one model: config.json to [`Hparams`], hyper-parameters to GGUF keys and
//! back, and GGUF tensors to the checkpoint tensors they are made of.

use super::{Arch, Architecture, USUAL};
use crate::gguf::Metadata;
use crate::model::config::Config;
use crate::model::error::ModelError;
use crate::model::export::short;
use crate::model::gguf_keys;
use crate::model::hparams::{
    Attention, Gating, Hparams, Indexer, Latent, Mla, Moe, Rope, Yarn, mscale,
};
use crate::model::inventory::{From, Layer, TensorSpec};
use crate::model::keys::{Keys, Reader};
use crate::model::settings::Class;
use crate::tensor::{Kind, Part};
use serde_json::Value;

pub(in crate::model) const DEEPSEEK2: Architecture = Architecture {
    name: "deepseek2",
    names: &USUAL,
    classes: &[Class::DeepseekV3, Class::DeepseekV2],
    hparams: |config, class| match class {
        Class::DeepseekV2 => hparams(config, Gating::Softmax),
        _ => hparams(config, Gating::Sigmoid),
    },
    from_keys,
    write_keys,
    keys: gguf_keys::LATENT,
    layer,
    describe,
};

pub(in crate::model) const DEEPSEEK32: Architecture = Architecture {
    name: "deepseek32",
    classes: &[Class::DeepseekV32],
    hparams: sparse,
    keys: gguf_keys::SPARSE,
    ..DEEPSEEK2
};

/// Reads the hyper-parameters of a `DeepseekV32ForCausalLM`.
fn sparse(config: &Config, _: Class) -> Result<Hparams, ModelError> {
    let mut hparams = hparams(config, Gating::Sigmoid)?;
    hparams.arch = Arch::DeepSeek32;
    if let Attention::Latent(latent) = &mut hparams.attention {
        if latent.q_lora_rank.is_none() {
            return Err(config.bad("q_lora_rank", "a positive whole number"));
        }
        let indexer = Indexer {
            n_head: config.u32("index_n_heads")?,
            head: config.u32("index_head_dim")?,
            top_k: config.u32("index_topk")?,
        };
        if indexer.head < latent.qk_rope {
            return Err(config.bad("index_head_dim", "at least `qk_rope_head_dim`"));
        }
        latent.indexer = Some(indexer);
    }
    Ok(hparams)
}

/// Reads the hyper-parameters of a `DeepseekV3ForCausalLM`, whose router has a sigmoid, or of a
/// `DeepseekV2ForCausalLM`, whose router has a softmax. Defaults for absent settings are those of
/// transformers' `DeepseekV3Config` and `DeepseekV2Config`.
fn hparams(config: &Config, gating: Gating) -> Result<Hparams, ModelError> {
    let v3 = gating == Gating::Sigmoid;
    let class = |v3_default: u32, v2_default: u32| Some(if v3 { v3_default } else { v2_default });
    check_router(config, gating)?;
    // transformers 5 knows the first by the others' names as well.
    let experts = ["n_routed_experts", "num_local_experts", "num_experts"];
    let experts = experts.into_iter().find(|key| config.get(key).is_some());
    let n_expert = config.u32_or(experts.unwrap_or("n_routed_experts"), class(256, 64))?;
    // V2 has settings for groups even where it does not use them.
    let greedy = !v3 && config.str_opt("topk_method")?.unwrap_or("greedy") == "greedy";
    let group = |key: &str, v3_default| -> Result<u32, ModelError> {
        let n = config.u32_or(key, class(v3_default, 0))?.unwrap_or(0);
        Ok(if greedy { n.min(1) } else { n })
    };
    let moe = match n_expert {
        None | Some(0) => None,
        Some(n_expert) => Some(Moe {
            leading_dense: config.u32_or("first_k_dense_replace", class(3, 0))?.unwrap_or(0),
            n_expert,
            n_used: config.u32_or("num_experts_per_tok", v3.then_some(8))?.unwrap_or(0),
            n_shared: config.u32_or("n_shared_experts", class(1, 2))?.unwrap_or(0),
            n_group: group("n_group", 8)?,
            n_group_used: group("topk_group", 4)?,
            n_ff: config.u32("moe_intermediate_size")?,
            gating,
            norm_weights: config.bool_or("norm_topk_prob", v3)?,
            weights_scale: config.f32_opt("routed_scaling_factor")?.unwrap_or(if v3 {
                2.5
            } else {
                1.0
            }),
        }),
    };
    if let Some(moe) = &moe {
        check_experts(config, moe)?;
    }
    Ok(Hparams {
        arch: Arch::DeepSeek2,
        n_layer: config.u32("num_hidden_layers")?,
        // transformers 5 has another word for it.
        n_nextn: match config.u32_opt("num_nextn_predict_layers")? {
            Some(n) => n,
            None => config.u32_opt("num_mtp_layers")?.unwrap_or(0),
        },
        context_length: config.context_length(4096)?,
        n_embd: config.u32("hidden_size")?,
        n_ff: config.u32("intermediate_size")?,
        n_vocab: config.u32("vocab_size")?,
        rms_eps: config.rms_eps()?,
        attention: Attention::Latent(Latent {
            n_head: config.u32("num_attention_heads")?,
            q_lora_rank: config.u32_or("q_lora_rank", Some(1536))?.filter(|&rank| rank > 0),
            kv_lora_rank: config.u32("kv_lora_rank")?,
            qk_nope: config.u32("qk_nope_head_dim")?,
            qk_rope: config.u32("qk_rope_head_dim")?,
            v_head: config.u32("v_head_dim")?,
            mla: Mla::default(),
            indexer: None,
        }),
        rope: rope(config)?,
        moe,
    })
}

/// Refuses settings of the router that its class has no code for.
fn check_router(config: &Config, gating: Gating) -> Result<(), ModelError> {
    let (scoring, methods): (_, &[&str]) = match gating {
        Gating::Sigmoid => ("sigmoid", &["noaux_tc"]),
        Gating::Softmax => ("softmax", &["greedy", "group_limited_greedy"]),
    };
    for (key, known) in [("scoring_func", &[scoring][..]), ("topk_method", methods)] {
        if config.str_opt(key)?.is_some_and(|found| !known.contains(&found)) {
            return Err(config.bad(key, &format!("\"{}\"", known.join("\" or \""))));
        }
    }
    // V2's own code leaves out the factor where it normalises, transformers does not normalise, and
    // GGUF's key stands for both.
    let scale = config.f32_opt("routed_scaling_factor")?.unwrap_or(1.0);
    if gating == Gating::Softmax && scale != 1.0 && config.bool_or("norm_topk_prob", false)? {
        return Err(config.bad("norm_topk_prob", "false beside a `routed_scaling_factor`"));
    }
    Ok(())
}

/// Refuses numbers of experts and groups among which no token can choose.
fn check_experts(config: &Config, moe: &Moe) -> Result<(), ModelError> {
    let groups = moe.n_group.max(1);
    if moe.n_used == 0 || moe.n_used > moe.n_expert {
        return Err(config.bad("num_experts_per_tok", "at least 1, at most `n_routed_experts`"));
    }
    if !moe.n_expert.is_multiple_of(groups) {
        return Err(config.bad("n_group", "a divisor of `n_routed_experts`"));
    }
    let reach = u64::from(moe.n_expert / groups) * u64::from(moe.n_group_used);
    if groups > 1 && (moe.n_group_used > groups || u64::from(moe.n_used) > reach) {
        let expected = "at most `n_group`, and enough for `num_experts_per_tok` experts";
        return Err(config.bad("topk_group", expected));
    }
    Ok(())
}

fn rope(config: &Config) -> Result<Rope, ModelError> {
    let rope = config.rope()?;
    let yarn = match rope.kind()? {
        None => None,
        Some("yarn") => {
            let factor = rope.factor()?;
            let all_dim = rope.f32_opt("mscale_all_dim")?.unwrap_or(0.0);
            // transformers' `_compute_yarn_parameters`: both coefficients or neither.
            let attention_factor =
                match (rope.f32_opt("attention_factor")?, rope.f32_opt("mscale")?) {
                    (Some(factor), _) => factor,
                    (None, Some(k)) if k != 0.0 && all_dim != 0.0 => {
                        mscale(factor, k) / mscale(factor, all_dim)
                    }
                    _ => mscale(factor, 1.0),
                };
            Some(Yarn {
                factor,
                original_context: rope.original_context()?,
                beta_fast: rope.f32_opt("beta_fast")?.unwrap_or(32.0),
                beta_slow: rope.f32_opt("beta_slow")?.unwrap_or(1.0),
                attention_factor,
                mscale_all_dim: all_dim,
            })
        }
        Some(_) => return Err(rope.bad(rope.kind_key(), "\"yarn\" or none")),
    };
    Ok(Rope { freq_base: rope.theta()?.unwrap_or(10000.0), yarn })
}

/// The factor on cosines and sines that files of this architecture imply.
fn implied_factor(factor: f32, all_dim: f32) -> f32 {
    if all_dim == 0.0 { mscale(factor, 1.0) } else { 1.0 }
}

/// Whether llama.cpp takes a file of so many layers for a "lite" model: it then reads no
/// `q_lora_rank`, without which it refuses others (`llama_model_deepseek2::load_arch_hparams`).
pub(crate) fn is_lite(n_layer: u32) -> bool {
    [26, 27].contains(&n_layer)
}

/// Writes the `deepseek2.*` keys, and `general.file_type`, in the reference converter's order
/// (`DeepseekV2Model.set_gguf_parameters` and its base class).
fn write_keys(
    hparams: &Hparams,
    config: &Config,
    file_type: u32,
    metadata: &mut Metadata,
) -> Result<(), ModelError> {
    let Attention::Latent(a) = &hparams.attention else { return Ok(()) };
    let mut keys = Keys::new(hparams.arch, metadata);
    keys.common(hparams, config)?;
    let rope = config.rope()?;
    if let Some(yarn) = &hparams.rope.yarn
        && (yarn.attention_factor - implied_factor(yarn.factor, yarn.mscale_all_dim)).abs() > 1e-6
    {
        let given = rope.f32_opt("attention_factor")?.is_some();
        return Err(match given {
            true => rope.bad("attention_factor", "nothing, since GGUF has no place for it"),
            false => rope.bad("mscale", "`mscale_all_dim`, since GGUF has no place for another"),
        });
    }
    if let Some(moe) = &hparams.moe {
        keys.set("expert_count", moe.n_expert);
        keys.set("expert_used_count", moe.n_used);
        if moe.n_group > 0 {
            keys.set("expert_group_count", moe.n_group);
            keys.set("expert_group_used_count", moe.n_group_used);
        }
        // The reference hands on what config.json says, which for V3 is often nothing; llama.cpp
        // then takes the softmax of V2.
        if moe.gating != Gating::Softmax || config.get("scoring_func").is_some() {
            keys.set("expert_gating_func", moe.gating as u32);
        }
    }
    let [key_length, value_length] = head_lengths(a);
    let lengths = |keys: &mut Keys| {
        keys.set("attention.key_length", key_length);
        keys.set("attention.value_length", value_length);
    };
    // The reference knows a width of heads where transformers has the class of the configuration.
    let known =
        ["deepseek_v3", "deepseek_v2"].contains(&config.str_opt("model_type")?.unwrap_or(""));
    if known || config.get("head_dim").is_some() {
        lengths(&mut keys);
    }
    keys.general("general.file_type", file_type);
    let leading = hparams.moe.as_ref().map_or(hparams.n_layer, |moe| moe.leading_dense);
    keys.set("leading_dense_block_count", leading);
    keys.set("vocab_size", hparams.n_vocab);
    match a.q_lora_rank {
        Some(rank) => keys.set("attention.q_lora_rank", rank),
        // llama.cpp refuses a file without the key unless the layer count is a lite model's.
        None if !is_lite(hparams.n_layer) => keys.set("attention.q_lora_rank", 0u32),
        None => {}
    }
    keys.set("attention.kv_lora_rank", a.kv_lora_rank);
    lengths(&mut keys);
    if a.mla == Mla::Split {
        keys.set("attention.key_length_mla", a.qk_nope + a.qk_rope);
        keys.set("attention.value_length_mla", a.v_head);
    }
    let moe = hparams.moe.as_ref();
    keys.set("expert_feed_forward_length", moe.map_or(hparams.n_ff, |moe| moe.n_ff));
    keys.set("expert_shared_count", moe.map_or(0, |moe| moe.n_shared));
    if let Some(moe) = moe {
        keys.set("expert_weights_scale", moe.weights_scale);
        if moe.norm_weights {
            keys.set("expert_weights_norm", true);
        }
    }
    keys.set("rope.dimension_count", a.qk_rope);
    if let Some(all_dim) = rope.f64_opt("mscale_all_dim")? {
        keys.set("rope.scaling.yarn_log_multiplier", (0.1 * all_dim) as f32);
    }
    let nextn = a.indexer.is_some() && config.u32_opt("num_nextn_predict_layers")? == Some(0);
    if hparams.n_nextn > 0 || nextn {
        keys.set("nextn_predict_layers", hparams.n_nextn);
    }
    if let Some(indexer) = &a.indexer {
        keys.set("attention.indexer.head_count", indexer.n_head);
        keys.set("attention.indexer.key_length", indexer.head);
        keys.set("attention.indexer.top_k", indexer.top_k);
    }
    Ok(())
}

/// What `attention.key_length` and `value_length` say: the widths of the one head of multi-query
/// attention on what is compressed, or of each head.
fn head_lengths(a: &Latent) -> [u32; 2] {
    match a.mla {
        Mla::Split => [a.kv_lora_rank + a.qk_rope, a.kv_lora_rank],
        Mla::Legacy => [a.qk_nope + a.qk_rope, a.v_head],
    }
}

/// Sets the keys in which today's files differ from those with a joint `attn_kv_b`.
pub(in crate::model) fn write_mla_keys(arch: Arch, a: &Latent, metadata: &mut Metadata) {
    let of_split = ["attention.key_length_mla", "attention.value_length_mla"];
    if a.mla == Mla::Legacy {
        of_split.iter().for_each(|key| drop(metadata.remove(&format!("{}.{key}", arch.name()))));
    }
    let mut keys = Keys::new(arch, metadata);
    let [key_length, value_length] = head_lengths(a);
    keys.set("attention.head_count_kv", if a.mla == Mla::Split { 1 } else { a.n_head });
    keys.set("attention.key_length", key_length);
    keys.set("attention.value_length", value_length);
    if a.mla == Mla::Split {
        keys.set(of_split[0], a.qk_nope + a.qk_rope);
        keys.set(of_split[1], a.v_head);
    }
}

/// Reads the keys that [`write_keys`] writes.
fn from_keys(keys: &Reader, arch: Arch) -> Result<Hparams, ModelError> {
    let n_nextn = keys.u32_or("nextn_predict_layers", 0)?;
    let blocks = keys.u32("block_count")?;
    let qk_rope = keys.u32("rope.dimension_count")?;
    // Files with a joint `attn_kv_b` have no other lengths than these.
    let legacy = keys.has_tensor("blk.0.attn_kv_b.weight");
    let [key, value] = match legacy {
        true => ["attention.key_length", "attention.value_length"],
        false => ["attention.key_length_mla", "attention.value_length_mla"],
    };
    let key_length = keys.u32(key)?;
    let yarn = match keys.yarn()? {
        None => None,
        Some((factor, original_context)) => {
            // The converter stores a tenth of the coefficient.
            let all_dim = keys.f32_or("rope.scaling.yarn_log_multiplier", 0.0)? / 0.1;
            Some(Yarn {
                factor,
                original_context,
                beta_fast: keys.f32_or("rope.scaling.yarn_beta_fast", 32.0)?,
                beta_slow: keys.f32_or("rope.scaling.yarn_beta_slow", 1.0)?,
                attention_factor: implied_factor(factor, all_dim),
                mscale_all_dim: all_dim,
            })
        }
    };
    let n_expert = keys.u32_or("expert_count", 0)?;
    let moe = (n_expert > 0)
        .then(|| {
            Ok::<_, ModelError>(Moe {
                leading_dense: keys.u32_or("leading_dense_block_count", 0)?,
                n_expert,
                n_used: keys.u32("expert_used_count")?,
                n_shared: keys.u32_or("expert_shared_count", 0)?,
                n_group: keys.u32_or("expert_group_count", 0)?,
                n_group_used: keys.u32_or("expert_group_used_count", 0)?,
                n_ff: keys.u32("expert_feed_forward_length")?,
                gating: match keys.u32_or("expert_gating_func", Gating::Softmax as u32)? {
                    1 => Gating::Softmax,
                    2 => Gating::Sigmoid,
                    _ => return Err(keys.bad_value("expert_gating_func", "1 or 2")),
                },
                norm_weights: keys.bool_or("expert_weights_norm", false)?,
                weights_scale: keys.f32_or("expert_weights_scale", 1.0)?,
            })
        })
        .transpose()?;
    let indexer = match arch {
        Arch::DeepSeek32 => Some(Indexer {
            n_head: keys.u32("attention.indexer.head_count")?,
            head: keys.u32("attention.indexer.key_length")?,
            top_k: keys.u32("attention.indexer.top_k")?,
        }),
        _ => None,
    };
    if indexer.is_some_and(|indexer| indexer.head < qk_rope) {
        return Err(keys.bad("attention.indexer.key_length"));
    }
    Ok(Hparams {
        arch,
        n_layer: blocks.checked_sub(n_nextn).ok_or_else(|| keys.bad("nextn_predict_layers"))?,
        n_nextn,
        context_length: keys.u32("context_length")?,
        n_embd: keys.u32("embedding_length")?,
        n_ff: keys.u32("feed_forward_length")?,
        n_vocab: keys.n_vocab()?,
        rms_eps: keys.f32("attention.layer_norm_rms_epsilon")?,
        attention: Attention::Latent(Latent {
            n_head: keys.u32("attention.head_count")?,
            q_lora_rank: Some(keys.u32_or("attention.q_lora_rank", 0)?).filter(|&rank| rank > 0),
            kv_lora_rank: keys.u32("attention.kv_lora_rank")?,
            qk_nope: key_length.checked_sub(qk_rope).ok_or_else(|| keys.bad(key))?,
            qk_rope,
            v_head: keys.u32(value)?,
            mla: Mla::Split,
            indexer,
        }),
        rope: Rope { freq_base: keys.f32_or("rope.freq_base", 10000.0)?, yarn },
        moe,
    })
}

/// The tensors of layer `layer`, with the checkpoint tensors they are made of
/// (`DeepseekV2Model.modify_tensors`).
fn layer(hparams: &Hparams, number: u32) -> Vec<TensorSpec> {
    let Attention::Latent(a) = &hparams.attention else { return Vec::new() };
    let [embd, ff, heads] = [hparams.n_embd, hparams.n_ff, a.n_head].map(u64::from);
    let [kv_lora, nope, rope, v] = [a.kv_lora_rank, a.qk_nope, a.qk_rope, a.v_head].map(u64::from);
    let mut layer = Layer::new(hparams.arch, number);
    layer.weight(Kind::AttnNorm, "input_layernorm", &[embd]);
    let q_dims = |input| [input, heads.saturating_mul(nope + rope)];
    match a.q_lora_rank.map(u64::from) {
        Some(rank) => {
            layer.weight(Kind::AttnQA, "self_attn.q_a_proj", &[embd, rank]);
            layer.weight(Kind::AttnQANorm, "self_attn.q_a_layernorm", &[rank]);
            layer.weight(Kind::AttnQB, "self_attn.q_b_proj", &q_dims(rank));
        }
        None => layer.weight(Kind::AttnQ, "self_attn.q_proj", &q_dims(embd)),
    }
    layer.weight(Kind::AttnKvAMqa, "self_attn.kv_a_proj_with_mqa", &[embd, kv_lora + rope]);
    layer.weight(Kind::AttnKvANorm, "self_attn.kv_a_layernorm", &[kv_lora]);
    layer.weight(Kind::AttnOutput, "self_attn.o_proj", &[heads * v, embd]);
    layer.weight(Kind::FfnNorm, "post_attention_layernorm", &[embd]);
    match hparams.moe.as_ref().filter(|moe| number >= moe.leading_dense) {
        None => {
            layer.weight(Kind::FfnGate, "mlp.gate_proj", &[embd, ff]);
            layer.weight(Kind::FfnUp, "mlp.up_proj", &[embd, ff]);
            layer.weight(Kind::FfnDown, "mlp.down_proj", &[ff, embd]);
        }
        Some(moe) => experts(&mut layer, moe, embd),
    }
    let from = layer.hf("self_attn.kv_b_proj.weight");
    let head_rows = nope + v;
    let mut kv_b = |kind, dims: &[u64], from| layer.add(kind, Part::Weight, dims, from);
    match a.mla {
        Mla::Split => {
            let keys = From::HeadsTransposed { from: from.clone(), head_rows };
            kv_b(Kind::AttnKB, &[nope, kv_lora, heads], keys);
            let values = From::HeadRows { from, head_rows, first: nope };
            kv_b(Kind::AttnVB, &[kv_lora, v, heads], values);
        }
        Mla::Legacy => {
            kv_b(Kind::AttnKvB, &[kv_lora, heads.saturating_mul(head_rows)], From::Whole(from))
        }
    }
    if let (Some(indexer), Some(rank)) = (&a.indexer, a.q_lora_rank) {
        let [heads, head, rank] = [indexer.n_head, indexer.head, rank].map(u64::from);
        let queries = [rank, heads.saturating_mul(head)];
        layer.weight(Kind::IndexerAttnQB, "self_attn.indexer.wq_b", &queries);
        layer.weight(Kind::IndexerAttnK, "self_attn.indexer.wk", &[embd, head]);
        layer.weight(Kind::IndexerKNorm, "self_attn.indexer.k_norm", &[head]);
        layer.bias(Kind::IndexerKNorm, "self_attn.indexer.k_norm", head);
        layer.weight(Kind::IndexerProj, "self_attn.indexer.weights_proj", &[embd, heads]);
    }
    if number >= hparams.n_layer {
        predicting(&mut layer, embd, u64::from(hparams.n_vocab));
    }
    layer.specs
}

fn experts(layer: &mut Layer, moe: &Moe, embd: u64) {
    let [experts, shared, ff] = [moe.n_expert, moe.n_shared, moe.n_ff].map(u64::from);
    layer.weight(Kind::FfnGateInp, "mlp.gate", &[embd, experts]);
    if moe.gating == Gating::Sigmoid {
        let from = From::Whole(layer.hf("mlp.gate.e_score_correction_bias"));
        layer.add(Kind::ExpProbsB, Part::Bias, &[experts], from);
    }
    if shared > 0 {
        let ff = ff * shared;
        layer.weight(Kind::FfnGateShexp, "mlp.shared_experts.gate_proj", &[embd, ff]);
        layer.weight(Kind::FfnUpShexp, "mlp.shared_experts.up_proj", &[embd, ff]);
        layer.weight(Kind::FfnDownShexp, "mlp.shared_experts.down_proj", &[ff, embd]);
    }
    for (kind, from, [columns, rows]) in [
        (Kind::FfnGateExps, "gate_proj", [embd, ff]),
        (Kind::FfnUpExps, "up_proj", [embd, ff]),
        (Kind::FfnDownExps, "down_proj", [ff, embd]),
    ] {
        let prefix = layer.hf("mlp.experts.");
        let from = From::Stack { prefix, suffix: format!(".{from}.weight") };
        layer.add(kind, Part::Weight, &[columns, rows, experts], from);
    }
}

/// What a layer has beside the others if it predicts further tokens.
fn predicting(layer: &mut Layer, embd: u64, vocab: u64) {
    layer.weight(Kind::NextnEhProj, "eh_proj", &[2 * embd, embd]);
    layer.weight(Kind::NextnEnorm, "enorm", &[embd]);
    layer.weight(Kind::NextnHnorm, "hnorm", &[embd]);
    let first_optional = layer.specs.len();
    layer.weight(Kind::NextnEmbedTokens, "embed_tokens", &[embd, vocab]);
    layer.weight(Kind::NextnSharedHeadHead, "shared_head.head", &[embd, vocab]);
    layer.weight(Kind::NextnSharedHeadNorm, "shared_head.norm", &[embd]);
    layer.specs[first_optional..].iter_mut().for_each(|spec| spec.optional = true);
}

/// See [`Architecture::describe`].
fn describe(h: &Hparams, config: &mut Value) -> [&'static str; 2] {
    let Attention::Latent(a) = &h.attention else { return [""; 2] };
    config["num_key_value_heads"] = a.n_head.into();
    config["q_lora_rank"] = a.q_lora_rank.into();
    for (key, value) in [
        ("kv_lora_rank", a.kv_lora_rank),
        ("qk_nope_head_dim", a.qk_nope),
        ("qk_rope_head_dim", a.qk_rope),
        ("v_head_dim", a.v_head),
        ("num_nextn_predict_layers", h.n_nextn),
    ] {
        config[key] = value.into();
    }
    if let Some(moe) = &h.moe {
        let v3 = moe.gating == Gating::Sigmoid;
        for (key, value) in [
            ("first_k_dense_replace", moe.leading_dense),
            ("n_routed_experts", moe.n_expert),
            ("num_experts_per_tok", moe.n_used),
            ("n_shared_experts", moe.n_shared),
            ("n_group", moe.n_group),
            ("topk_group", moe.n_group_used),
            ("moe_intermediate_size", moe.n_ff),
        ] {
            config[key] = value.into();
        }
        config["norm_topk_prob"] = moe.norm_weights.into();
        config["routed_scaling_factor"] = short(moe.weights_scale);
        config["scoring_func"] = if v3 { "sigmoid" } else { "softmax" }.into();
        config["topk_method"] = match (v3, moe.n_group > 1) {
            (true, _) => "noaux_tc",
            (false, true) => "group_limited_greedy",
            (false, false) => "greedy",
        }
        .into();
    }
    if let Some(yarn) = h.rope.yarn.as_ref().filter(|yarn| yarn.mscale_all_dim != 0.0) {
        config["rope_scaling"]["mscale"] = short(yarn.mscale_all_dim);
        config["rope_scaling"]["mscale_all_dim"] = short(yarn.mscale_all_dim);
    }
    if let Some(indexer) = &a.indexer {
        config["index_n_heads"] = indexer.n_head.into();
        config["index_head_dim"] = indexer.head.into();
        config["index_topk"] = indexer.top_k.into();
        return ["DeepseekV32ForCausalLM", "deepseek_v32"];
    }
    match h.moe.as_ref().map(|moe| moe.gating) {
        Some(Gating::Softmax) => ["DeepseekV2ForCausalLM", "deepseek_v2"],
        Some(Gating::Sigmoid) | None => ["DeepseekV3ForCausalLM", "deepseek_v3"],
    }
}
