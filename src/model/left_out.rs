//! What a checkpoint holds beside the tensors that a model is made of: the rules by which a tensor is
//! left out, or is none that is known.

use super::arch::Names;
use std::collections::BTreeSet;

/// Why a tensor is left out.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
#[non_exhaustive]
pub enum LeftOut {
    /// It belongs to a multi-token-prediction layer.
    Mtp,
    /// An output matrix where the embedding serves.
    TiedOutput,
    /// Frequencies of the rotary embedding, which follow from the configuration.
    RotaryFrequencies,
    /// Scales of a quantized cache of keys and values.
    CacheScales,
    /// Scales of quantized activations.
    ActivationScales,
    /// Other buffers that exporters store and no model needs.
    Buffers,
    /// What a model sees with.
    Vision,
    /// It belongs to another layer than those for multi-token prediction, which alone are wanted.
    Trunk,
}

impl LeftOut {
    /// Its name for programs.
    pub fn name(self) -> &'static str {
        match self {
            Self::Mtp => "mtp",
            Self::TiedOutput => "tied_output",
            Self::RotaryFrequencies => "rotary_frequencies",
            Self::CacheScales => "cache_scales",
            Self::ActivationScales => "activation_scales",
            Self::Buffers => "buffers",
            Self::Vision => "vision",
            Self::Trunk => "trunk",
        }
    }

    /// Its name for people, of so many.
    pub fn describe(self, n: usize) -> String {
        let (one, many) = match self {
            Self::Mtp => ("tensor of the MTP layer", "tensors of the MTP layer"),
            Self::TiedOutput => ("tensor of a tied output", "tensors of a tied output"),
            Self::RotaryFrequencies => {
                ("tensor of rotary frequencies", "tensors of rotary frequencies")
            }
            Self::CacheScales => ("cache scale", "cache scales"),
            Self::ActivationScales => ("activation scale", "activation scales"),
            Self::Buffers => ("buffer", "buffers"),
            Self::Vision => ("tensor of the vision tower", "tensors of the vision tower"),
            Self::Trunk => ("tensor of another layer", "tensors of other layers"),
        };
        format!("{n} {}", if n == 1 { one } else { many })
    }
}

/// What decides about layers and the output.
pub(super) struct Rules {
    /// What the checkpoint calls tensors.
    pub names: &'static Names,
    /// The multi-token-prediction layers that are not kept ([`mtp_layers`]).
    pub mtp: BTreeSet<u32>,
    /// Whether the embedding serves as the output matrix.
    pub tied: bool,
    /// Layers before this one are left out.
    pub trunk: u32,
}

/// Ends of names that tell what a tensor is, whatever it belongs to.
const ENDS: [(LeftOut, &[&str]); 4] = [
    (
        LeftOut::RotaryFrequencies,
        &[
            "rotary_emb.inv_freq",
            "rotary_emb.original_inv_freq",
            "rotary_emb.cos_cached",
            "rotary_emb.sin_cached",
            "rope.freqs",
        ],
    ),
    (
        LeftOut::CacheScales,
        &[
            ".k_scale",
            ".v_scale",
            ".kv_scale",
            ".k_zero_point",
            ".v_zero_point",
            ".k_cache_scale",
            ".v_cache_scale",
            ".kv_cache_scale",
            ".kv_cache_scaling_factor",
            ".k_cache.scale",
            ".v_cache.scale",
            ".k_proj.output_scale",
            ".v_proj.output_scale",
            ".kv_proj.output_scale",
            ".k_proj.output_zero_point",
            ".v_proj.output_zero_point",
        ],
    ),
    (
        LeftOut::ActivationScales,
        &[
            ".input_scale",
            ".input_scale_ub",
            ".input_global_scale",
            ".input_zero_point",
            ".input_g_idx",
            ".output_scale",
            ".output_zero_point",
            ".act_scale",
            "activation_scale",
            ".scale_input",
            ".qscale_act",
            ".q_scale",
            ".q_zero_point",
            ".prob_scale",
            ".prob_output_scale",
        ],
    ),
    (
        LeftOut::Buffers,
        &[
            ".attention.masked_bias",
            ".attention.bias",
            "position_ids",
            ".num_batches_tracked",
            ".comfy_quant",
            "scaled_fp8",
        ],
    ),
];

/// How names of what a model sees with begin.
const VISION: [&str; 4] =
    ["vision_tower.", "mm_projector.", "multi_modal_projector.", "model.vision_tower."];

/// Why a tensor that no wanted one is made of is left out; `None` for one that is not known.
pub(super) fn kind(name: &str, rules: &Rules) -> Option<LeftOut> {
    if rules.names.layer_of(name).is_some_and(|layer| rules.mtp.contains(&layer)) {
        return Some(LeftOut::Mtp);
    }
    if rules.names.layer_of(name).is_some_and(|layer| layer < rules.trunk) {
        return Some(LeftOut::Trunk);
    }
    if VISION.iter().any(|start| name.starts_with(start)) {
        return Some(LeftOut::Vision);
    }
    if rules.tied && name.starts_with(rules.names.output) {
        return Some(LeftOut::TiedOutput);
    }
    let is = |ends: &&[&str]| ends.iter().any(|end| name.ends_with(end));
    ENDS.iter().find(|(_, ends)| is(ends)).map(|(kind, _)| *kind)
}

/// The layers behind a model's own that are for multi-token prediction, as their tensors tell: no other
/// layer has these.
pub(super) fn mtp_layers<'a>(
    of: &Names,
    names: impl Iterator<Item = &'a str>,
    n_layer: u32,
) -> BTreeSet<u32> {
    const OWN: [&str; 4] = [".eh_proj.", ".enorm.", ".hnorm.", ".shared_head."];
    let own = names.filter(|name| OWN.iter().any(|part| name.contains(part)));
    own.filter_map(|name| of.layer_of(name)).filter(|&layer| layer >= n_layer).collect()
}

#[cfg(test)]
mod tests {
    use super::super::arch::USUAL;
    use super::*;

    #[test]
    fn what_is_left_out_has_a_kind() {
        let rules = Rules { names: &USUAL, mtp: BTreeSet::from([3]), tied: true, trunk: 0 };
        for (name, expected) in [
            ("model.layers.3.mlp.experts.7.down_proj.weight_scale_inv", Some(LeftOut::Mtp)),
            ("model.layers.4.mlp.up_proj.weight", None),
            ("model.layers.2.mlp.up_proj.weight_scale", None),
            ("lm_head.weight", Some(LeftOut::TiedOutput)),
            ("lm_head.weight_scale_inv", Some(LeftOut::TiedOutput)),
            ("model.layers.0.self_attn.rotary_emb.inv_freq", Some(LeftOut::RotaryFrequencies)),
            ("rope.freqs", Some(LeftOut::RotaryFrequencies)),
            ("model.layers.0.self_attn.k_scale", Some(LeftOut::CacheScales)),
            ("model.layers.0.self_attn.attn.v_scale", Some(LeftOut::CacheScales)),
            ("model.layers.0.self_attn.k_proj.output_scale", Some(LeftOut::CacheScales)),
            ("model.layers.0.self_attn.q_proj.output_scale", Some(LeftOut::ActivationScales)),
            ("model.layers.0.mlp.down_proj.input_scale_ub", Some(LeftOut::ActivationScales)),
            ("model.layers.0.mlp.down_proj.act_scale", Some(LeftOut::ActivationScales)),
            ("model.layers.0.mlp.w1_activation_scale", Some(LeftOut::ActivationScales)),
            ("model.layers.0.self_attn.prob_output_scale", Some(LeftOut::ActivationScales)),
            ("model.embeddings.position_ids", Some(LeftOut::Buffers)),
            ("model.layers.0.self_attn.q_proj.bias", None),
            ("model.layers.0.self_attn.o_proj.scale", None),
            ("visual.patch_embed.weight", None),
            ("vision_tower.encoder.blocks.0.wqkv.weight", Some(LeftOut::Vision)),
            ("mm_projector.proj.0.weight", Some(LeftOut::Vision)),
        ] {
            assert_eq!(kind(name, &rules), expected, "{name}");
        }
    }

    #[test]
    fn layers_of_their_own_tensors_predict_more_tokens() {
        let names = [
            "model.layers.2.enorm.weight",
            "model.layers.3.mlp.up_proj.weight",
            "model.layers.4.shared_head.norm.weight",
            "model.layers.5.eh_proj.weight",
        ];
        assert_eq!(mtp_layers(&USUAL, names.into_iter(), 3), BTreeSet::from([4, 5]));
    }
}
