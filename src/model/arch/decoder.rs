//! The plain decoders: `qwen2`, `qwen3` and `llama`, whose classes R1's distilled models have.
//!
//! Grouped-query attention and a gated feed-forward network; they differ in biases, in norms of
//! queries and keys, and in which elements of a head rotate together.

use super::{Arch, Architecture, USUAL};
use crate::gguf::Metadata;
use crate::model::config::Config;
use crate::model::error::ModelError;
use crate::model::export::short;
use crate::model::gguf_keys;
use crate::model::hparams::{Attention, Grouped, Hparams, Pairs, Rope, Yarn, mscale};
use crate::model::inventory::{From, Layer, TensorSpec};
use crate::model::keys::{Keys, Reader};
use crate::model::settings::Class;
use crate::tensor::{Kind, Part};
use serde_json::Value;

pub(in crate::model) const QWEN2: Architecture = Architecture {
    name: "qwen2",
    names: &USUAL,
    classes: &[Class::Qwen2],
    hparams,
    from_keys,
    write_keys,
    keys: gguf_keys::PLAIN,
    layer,
    describe,
};
pub(in crate::model) const QWEN3: Architecture =
    Architecture { name: "qwen3", classes: &[Class::Qwen3], ..QWEN2 };
pub(in crate::model) const LLAMA: Architecture =
    Architecture { name: "llama", classes: &[Class::Llama], ..QWEN2 };

/// Reads the hyper-parameters of a `Qwen2ForCausalLM`, `Qwen3ForCausalLM` or `LlamaForCausalLM`.
/// Defaults for absent settings are those of transformers' configuration classes.
fn hparams(config: &Config, class: Class) -> Result<Hparams, ModelError> {
    let arch = Arch::of(class);
    let n_head = config.u32("num_attention_heads")?;
    let n_embd = config.u32("hidden_size")?;
    let head_dim = match (config.u32_opt("head_dim")?, arch) {
        (Some(width), _) => width,
        (None, Arch::Qwen3) => 128,
        (None, _) => n_embd / n_head,
    };
    let attention_bias = arch != Arch::Qwen2 && config.bool_or("attention_bias", false)?;
    let (context, n_head_kv) = match arch {
        Arch::Llama => (2048, n_head),
        _ => (32_768, 32),
    };
    let grouped = Grouped {
        n_head,
        n_head_kv: config.u32_or("num_key_value_heads", Some(n_head_kv))?.unwrap_or(n_head),
        head_dim,
        pairs: pairs(arch),
        qkv_bias: arch == Arch::Qwen2 || attention_bias,
        output_bias: attention_bias,
        qk_norm: arch == Arch::Qwen3,
    };
    if grouped.n_head_kv == 0 || !n_head.is_multiple_of(grouped.n_head_kv) {
        return Err(config.bad("num_key_value_heads", "a divisor of `num_attention_heads`"));
    }
    if !head_dim.is_multiple_of(2) || head_dim == 0 {
        return Err(match config.get("head_dim") {
            Some(_) => config.bad("head_dim", "a positive even number"),
            None => {
                config.bad("num_attention_heads", "what divides `hidden_size` into even widths")
            }
        });
    }
    Ok(Hparams {
        arch,
        n_layer: config.u32("num_hidden_layers")?,
        n_nextn: 0,
        context_length: config.context_length(context)?,
        n_embd,
        n_ff: config.u32("intermediate_size")?,
        n_vocab: config.u32("vocab_size")?,
        rms_eps: config.rms_eps()?,
        attention: Attention::Grouped(grouped),
        rope: rope(config, arch)?,
        moe: None,
    })
}

/// Llama's alone are stored with neighbours rotating together.
fn pairs(arch: Arch) -> Pairs {
    if arch == Arch::Llama { Pairs::Neighbours } else { Pairs::Halves }
}

fn rope(config: &Config, arch: Arch) -> Result<Rope, ModelError> {
    let rope = config.rope()?;
    let yarn = match rope.kind()? {
        None => None,
        Some("llama3") if arch == Arch::Llama => None,
        Some("yarn") => {
            let factor = rope.factor()?;
            Some(Yarn {
                factor,
                original_context: rope.original_context()?,
                beta_fast: rope.f32_opt("beta_fast")?.unwrap_or(32.0),
                beta_slow: rope.f32_opt("beta_slow")?.unwrap_or(1.0),
                // transformers knows the first spelling and takes it as it is; the second, of
                // the Qwen3 distill, is a factor on the formula's value, as for vLLM and GGUF.
                attention_factor: match rope.f32_opt("attention_factor")? {
                    Some(factor) => factor,
                    None => rope.f32_opt("attn_factor")?.unwrap_or(1.0) * mscale(factor, 1.0),
                },
                mscale_all_dim: 0.0,
            })
        }
        Some(_) => {
            let expected = match arch {
                Arch::Llama => "\"yarn\", \"llama3\" or none",
                _ => "\"yarn\" or none",
            };
            return Err(rope.bad(rope.kind_key(), expected));
        }
    };
    Ok(Rope { freq_base: rope.theta()?.unwrap_or(10_000.0), yarn })
}

/// Writes the architecture's keys and `general.file_type` in the reference converter's order
/// (`TextModel.set_gguf_parameters`, `LlamaModel.set_gguf_parameters`).
fn write_keys(
    hparams: &Hparams,
    config: &Config,
    file_type: u32,
    metadata: &mut Metadata,
) -> Result<(), ModelError> {
    let Attention::Grouped(a) = &hparams.attention else { return Ok(()) };
    let mut keys = Keys::new(hparams.arch, metadata);
    keys.common(hparams, config)?;
    // transformers' Qwen2Config alone has no such setting.
    if hparams.arch != Arch::Qwen2 || config.get("head_dim").is_some() {
        keys.set("attention.key_length", a.head_dim);
        keys.set("attention.value_length", a.head_dim);
    }
    keys.general("general.file_type", file_type);
    if hparams.arch == Arch::Llama {
        keys.set("vocab_size", hparams.n_vocab);
        keys.set("rope.dimension_count", a.head_dim);
    }
    Ok(())
}

/// Reads the keys that [`write_keys`] writes.
fn from_keys(keys: &Reader, arch: Arch) -> Result<Hparams, ModelError> {
    let n_head = keys.u32("attention.head_count")?;
    let n_embd = keys.u32("embedding_length")?;
    if n_head == 0 {
        return Err(keys.bad("attention.head_count"));
    }
    let head_dim = keys.u32_or("attention.key_length", n_embd / n_head)?;
    let n_head_kv = keys.u32_or("attention.head_count_kv", n_head)?;
    if n_head_kv == 0 || !n_head.is_multiple_of(n_head_kv) {
        return Err(keys.bad("attention.head_count_kv"));
    }
    for key in ["attention.value_length", "rope.dimension_count"] {
        if keys.u32_or(key, head_dim)? != head_dim {
            return Err(keys.bad_value(key, &format!("the width of a head, {head_dim}")));
        }
    }
    if keys.u32_or("expert_count", 0)? != 0 {
        return Err(keys.bad_value("expert_count", "0"));
    }
    let yarn = match keys.yarn()? {
        None => None,
        Some((factor, original_context)) => {
            let attention = keys.f32_or("rope.scaling.yarn_attn_factor", 1.0)?;
            Some(Yarn {
                factor,
                original_context,
                beta_fast: keys.f32_or("rope.scaling.yarn_beta_fast", 32.0)?,
                beta_slow: keys.f32_or("rope.scaling.yarn_beta_slow", 1.0)?,
                attention_factor: attention * mscale(factor, 1.0),
                mscale_all_dim: 0.0,
            })
        }
    };
    let has = |tensor: &str| keys.has_tensor(&format!("blk.0.{tensor}"));
    Ok(Hparams {
        arch,
        n_layer: keys.u32("block_count")?,
        n_nextn: 0,
        context_length: keys.u32("context_length")?,
        n_embd,
        n_ff: keys.u32("feed_forward_length")?,
        n_vocab: keys.n_vocab()?,
        rms_eps: keys.f32("attention.layer_norm_rms_epsilon")?,
        attention: Attention::Grouped(Grouped {
            n_head,
            n_head_kv,
            head_dim,
            pairs: pairs(arch),
            qkv_bias: has("attn_q.bias"),
            output_bias: has("attn_output.bias"),
            qk_norm: arch == Arch::Qwen3,
        }),
        rope: Rope { freq_base: keys.f32_or("rope.freq_base", 10000.0)?, yarn },
        moe: None,
    })
}

/// Divisors of the frequencies of Llama 3's rotary embedding, one a pair; `None` for other kinds
/// (`LlamaModel.generate_extra_tensors`). All steps are rounded to f32, as they are there.
pub(in crate::model) fn rope_factors(
    config: &Config,
    hparams: &Hparams,
) -> Result<Option<Vec<f32>>, ModelError> {
    let rope = config.rope()?;
    let Attention::Grouped(a) = &hparams.attention else { return Ok(None) };
    if hparams.arch != Arch::Llama || rope.kind()? != Some("llama3") {
        return Ok(None);
    }
    let factor = rope.f32_opt("factor")?.map_or(Ok(8.0), |_| rope.factor())?;
    let low = rope.f64_opt("low_freq_factor")?.unwrap_or(1.0);
    let high = rope.f64_opt("high_freq_factor")?.unwrap_or(4.0);
    let context = if rope.has_original() { rope.original_context()?.into() } else { 8192.0 };
    if low <= 0.0 || high <= low {
        return Err(
            rope.bad("high_freq_factor", "a number above `low_freq_factor`, which is above 0")
        );
    }
    let n = a.head_dim as usize / 2;
    Ok(Some(llama3_factors(hparams.rope.freq_base, n, factor, low, high, context)))
}

/// Llama 3's divisors of the frequencies of `n` pairs. PyTorch divides a number by a tensor by
/// multiplying with its reciprocal, which rounds twice.
pub(in crate::model) fn llama3_factors(
    base: f32,
    n: usize,
    factor: f32,
    low: f64,
    high: f64,
    context: f64,
) -> Vec<f32> {
    let (long, short) = ((context / low) as f32, (context / high) as f32);
    let factors = (0..n).map(|i| {
        let frequency = 1.0 / base.powf((2 * i) as f32 / (2 * n) as f32);
        let wavelength = 1.0 / frequency * std::f32::consts::TAU;
        if wavelength < short {
            1.0
        } else if wavelength > long {
            factor
        } else {
            let smooth = (1.0 / wavelength * context as f32 - low as f32) / (high - low) as f32;
            1.0 / ((1.0 - smooth) / factor + smooth)
        }
    });
    factors.collect()
}

/// The tensors of layer `layer`, with the checkpoint tensors they are made of.
fn layer(hparams: &Hparams, number: u32) -> Vec<TensorSpec> {
    let Attention::Grouped(a) = &hparams.attention else { return Vec::new() };
    let [embd, ff, heads, heads_kv, width] =
        [hparams.n_embd, hparams.n_ff, a.n_head, a.n_head_kv, a.head_dim].map(u64::from);
    let mut layer = Layer::new(hparams.arch, number);
    layer.weight(Kind::AttnNorm, "input_layernorm", &[embd]);
    layer.weight(Kind::AttnV, "self_attn.v_proj", &[embd, heads_kv * width]);
    layer.weight(Kind::AttnOutput, "self_attn.o_proj", &[heads * width, embd]);
    if a.qkv_bias {
        layer.bias(Kind::AttnV, "self_attn.v_proj", heads_kv * width);
    }
    if a.output_bias {
        layer.bias(Kind::AttnOutput, "self_attn.o_proj", embd);
    }
    if a.qk_norm {
        layer.weight(Kind::AttnQNorm, "self_attn.q_norm", &[width]);
        layer.weight(Kind::AttnKNorm, "self_attn.k_norm", &[width]);
    }
    layer.weight(Kind::FfnNorm, "post_attention_layernorm", &[embd]);
    layer.weight(Kind::FfnGate, "mlp.gate_proj", &[embd, ff]);
    layer.weight(Kind::FfnUp, "mlp.up_proj", &[embd, ff]);
    layer.weight(Kind::FfnDown, "mlp.down_proj", &[ff, embd]);
    for (kind, name, heads) in [(Kind::AttnQ, "q_proj", heads), (Kind::AttnK, "k_proj", heads_kv)] {
        let from = |layer: &Layer, part: &str| {
            let from = layer.hf(&format!("self_attn.{name}.{part}"));
            match a.pairs {
                Pairs::Neighbours => From::Rotated { from, head_rows: width },
                Pairs::Halves => From::Whole(from),
            }
        };
        layer.add(kind, Part::Weight, &[embd, heads * width], from(&layer, "weight"));
        if a.qkv_bias {
            layer.add(kind, Part::Bias, &[heads * width], from(&layer, "bias"));
        }
    }
    layer.specs
}

/// See [`Architecture::describe`].
fn describe(h: &Hparams, config: &mut Value) -> [&'static str; 2] {
    let Attention::Grouped(a) = &h.attention else { return [""; 2] };
    config["num_key_value_heads"] = a.n_head_kv.into();
    if h.arch != Arch::Qwen2 || a.head_dim * a.n_head != h.n_embd {
        config["head_dim"] = a.head_dim.into();
    }
    if h.arch != Arch::Qwen2 {
        config["attention_bias"] = a.qkv_bias.into();
    }
    if let Some(yarn) = &h.rope.yarn {
        let factor = yarn.attention_factor / mscale(yarn.factor, 1.0);
        if (factor - 1.0).abs() > 1e-6 {
            config["rope_scaling"]["attn_factor"] = short(factor);
        }
    }
    // GGUF and transformers have the same word for these.
    let row = h.arch.row();
    [row.classes[0].name(), row.name]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn llama3_factors_are_rounded_as_pytorch_rounds_them() {
        // The reference converter's; plain division ends on another value for the first.
        let factors = llama3_factors(10_000.0, 16, 32.0, 1.0, 4.0, 8192.0);
        let found: Vec<u32> = factors[10..14].iter().map(|f| f.to_bits()).collect();
        assert_eq!(found, [1_065_353_216, 1_074_530_707, 1_089_954_674, 1_107_296_256]);
    }
}
