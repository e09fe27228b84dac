//! The rules of the named mixes, as `llama_tensor_get_type_impl` (`llama-quant.cpp`) applies them.
//!
//! A mix is an ordered list of rules; the first whose role and conditions fit decides, otherwise
//! the mix's default type stands.

use super::file_type::FileType;
use crate::quant::QuantType::{self, *};

/// What the rules ask about a model.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Facts {
    /// Layers, multi-token-prediction layers included.
    pub n_layer: u32,
    /// Query heads.
    pub n_head: u32,
    /// Key and value heads; 1 for latent attention.
    pub n_head_kv: u32,
    /// Routed experts, 0 for none.
    pub n_expert: u32,
    /// Whether the token embedding also serves as output matrix.
    pub tied: bool,
}

/// What a tensor is for, as far as the rules care (`tensor_category`).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Category {
    Output,
    TokenEmbedding,
    /// Values, also when fused with other projections.
    AttnV,
    AttnK,
    AttnQ,
    AttnOutput,
    FfnUp,
    FfnGate,
    FfnDown,
    Other,
}

impl Category {
    pub fn of(name: &str) -> Self {
        const SUBSTRINGS: [(&str, Category); 9] = [
            ("attn_qkv.weight", Category::AttnV),
            ("attn_kv_b.weight", Category::AttnV),
            ("attn_v.weight", Category::AttnV),
            ("attn_k.weight", Category::AttnK),
            ("attn_q.weight", Category::AttnQ),
            ("attn_output.weight", Category::AttnOutput),
            ("ffn_up", Category::FfnUp),
            ("ffn_gate", Category::FfnGate),
            ("ffn_down", Category::FfnDown),
        ];
        match name {
            "output.weight" => Category::Output,
            "token_embd.weight" | "per_layer_token_embd.weight" => Category::TokenEmbedding,
            _ => SUBSTRINGS.iter().find(|(s, _)| name.contains(s)).map_or(Category::Other, |x| x.1),
        }
    }
}

/// A condition of a rule. `i` of `n` is the tensor's position: its layer among all layers for the
/// feed-forward roles of a mixture of experts, otherwise its number among tensors of its role.
#[derive(Clone, Copy, Debug, PartialEq)]
enum When {
    /// At least four query heads to a key head.
    Gqa4,
    /// At least four query heads to a key head, or at least four experts.
    Gqa4OrExperts4,
    /// Exactly eight experts.
    Experts8,
    /// An importance matrix is given.
    Imatrix,
    /// No importance matrix is given.
    NoImatrix,
    /// `i` below this.
    First(u32),
    /// `i` below `n` divided by this.
    FirstPart(u32),
    /// As `FirstPart`, with `i` always the number among tensors of the role.
    FirstPartByCount(u32),
    /// `i` neither in the first nor in the last eighth.
    Middle,
    /// `i` in the first or last eighth, or every third between (`use_more_bits`).
    MoreBits,
}

struct Rule(Category, &'static [When], QuantType);

/// Where a tensor stands among those of its role.
#[derive(Clone, Copy)]
pub(super) struct Position {
    /// Number among the tensors of the role seen so far.
    pub count: u32,
    /// How many there are, as the conditions count them.
    pub of: u32,
    /// Layer in the name.
    pub layer: Option<u32>,
}

/// The type that the mix gives a tensor, `None` for its default.
pub(super) fn choose(
    file_type: FileType,
    role: Category,
    dims: &[u64],
    at: Position,
    facts: &Facts,
    imatrix: bool,
) -> Option<QuantType> {
    let default = file_type.default_type();
    if role == Category::Output || (facts.tied && role == Category::TokenEmbedding) {
        let fits = dims[0].is_multiple_of(default.block_len() as u64);
        return match file_type {
            FileType::MXFP4_MOE => Some(Q8_0),
            _ if !fits => Some(Q8_0),
            f if LOW.contains(&f) || f == FileType::IQ3_XXS => Some(Q5_K),
            _ if default != Q8_0 => Some(Q6_K),
            _ => None,
        };
    }
    if file_type == FileType::MXFP4_MOE {
        // Latent attention's per-head matrices are stacked as experts are, and count as such.
        return Some(if dims.get(2).is_some_and(|&n| n > 1) { MXFP4 } else { Q8_0 });
    }
    let general: &[Rule] = if LOW.contains(&file_type) { &[] } else { &EIGHT_EXPERTS };
    let gqa4 = facts.n_head_kv > 0 && facts.n_head / facts.n_head_kv >= 4;
    let feed_forward = matches!(role, Category::FfnDown | Category::FfnGate | Category::FfnUp);
    let n = at.of;
    let i =
        if facts.n_expert > 1 && feed_forward { at.layer.unwrap_or(at.count) } else { at.count };
    let holds = |when: &When| match *when {
        When::Gqa4 => gqa4,
        When::Gqa4OrExperts4 => gqa4 || facts.n_expert >= 4,
        When::Experts8 => facts.n_expert == 8,
        When::Imatrix => imatrix,
        When::NoImatrix => !imatrix,
        When::First(k) => i < k,
        When::FirstPart(k) => i < n / k,
        When::FirstPartByCount(k) => at.count < n / k,
        When::Middle => i >= n / 8 && i < 7 * n / 8,
        When::MoreBits => i < n / 8 || i >= 7 * n / 8 || (i - n / 8) % 3 == 2,
    };
    general
        .iter()
        .chain(rules(file_type))
        .find(|Rule(of, when, _)| *of == role && when.iter().all(holds))
        .map(|rule| rule.2)
}

/// The mixes below three bits, which share a set of rules of their own.
const LOW: [FileType; 6] = {
    use FileType::*;
    [IQ1_S, IQ1_M, IQ2_XXS, IQ2_XS, IQ2_S, IQ2_M]
};

/// Eight experts share small attention tensors, so that more bits there cost little.
const EIGHT_EXPERTS: [Rule; 2] = [
    Rule(Category::AttnV, &[When::Experts8], Q8_0),
    Rule(Category::AttnK, &[When::Experts8], Q8_0),
];

fn rules(file_type: FileType) -> &'static [Rule] {
    use Category::*;
    use FileType as F;
    use When::*;
    match file_type {
        F::IQ1_S | F::IQ1_M => &[
            Rule(TokenEmbedding, &[], Q2_K),
            Rule(AttnV, &[Gqa4OrExperts4], Q4_K),
            Rule(AttnV, &[], Q2_K),
            Rule(AttnK, &[Experts8], Q4_K),
            Rule(FfnDown, &[FirstPartByCount(8)], Q2_K),
            Rule(AttnOutput, &[Experts8], Q5_K),
            Rule(AttnOutput, &[], IQ2_XXS),
        ],
        F::IQ2_XXS | F::IQ2_XS => &[
            Rule(TokenEmbedding, &[], Q2_K),
            Rule(AttnV, &[Gqa4OrExperts4], Q4_K),
            Rule(AttnV, &[], Q2_K),
            Rule(AttnK, &[Experts8], Q4_K),
            Rule(FfnDown, &[FirstPartByCount(8)], Q2_K),
            Rule(AttnOutput, &[Experts8], Q5_K),
        ],
        F::IQ2_S | F::IQ2_M => &[
            Rule(TokenEmbedding, &[], IQ3_S),
            Rule(AttnV, &[Gqa4OrExperts4], Q4_K),
            Rule(AttnV, &[], IQ3_S),
            Rule(AttnK, &[Experts8], Q4_K),
            Rule(FfnDown, &[FirstPartByCount(8)], IQ3_S),
            Rule(AttnOutput, &[Experts8], Q5_K),
            Rule(AttnOutput, &[], IQ3_S),
        ],
        F::Q2_K => &[
            Rule(AttnV, &[Gqa4], Q4_K),
            Rule(AttnV, &[], Q3_K),
            Rule(FfnDown, &[], Q3_K),
            Rule(AttnOutput, &[Experts8], Q5_K),
            Rule(AttnOutput, &[], Q3_K),
        ],
        F::Q2_K_S => &[Rule(AttnV, &[Gqa4], Q4_K), Rule(FfnDown, &[FirstPart(8)], Q4_K)],
        F::IQ3_XXS => &[
            Rule(TokenEmbedding, &[], IQ3_S),
            Rule(AttnV, &[Gqa4], Q4_K),
            Rule(AttnV, &[NoImatrix], IQ3_S),
            Rule(AttnK, &[], IQ2_S),
            Rule(AttnQ, &[], IQ2_S),
            Rule(FfnDown, &[NoImatrix, FirstPart(8)], Q4_K),
            Rule(FfnDown, &[NoImatrix], Q3_K),
            Rule(AttnOutput, &[Experts8], Q5_K),
            Rule(AttnOutput, &[], IQ3_S),
        ],
        F::IQ3_XS => &[
            Rule(AttnV, &[Gqa4], Q4_K),
            Rule(AttnK, &[], IQ3_XXS),
            Rule(AttnQ, &[], IQ3_XXS),
            Rule(FfnGate, &[Middle], IQ3_XXS),
            Rule(FfnUp, &[Middle], IQ3_XXS),
            Rule(AttnOutput, &[Experts8], Q5_K),
        ],
        F::IQ3_S => &[Rule(AttnV, &[Gqa4], Q4_K), Rule(AttnOutput, &[Experts8], Q5_K)],
        F::IQ3_M => &[
            Rule(AttnV, &[], Q4_K),
            Rule(FfnDown, &[FirstPart(8)], Q4_K),
            Rule(FfnDown, &[Experts8, MoreBits], Q4_K),
            Rule(AttnOutput, &[Experts8], Q5_K),
            Rule(AttnOutput, &[], Q4_K),
        ],
        F::Q3_K_S => &[Rule(AttnOutput, &[Experts8], Q5_K)],
        F::Q3_K_M => &[
            Rule(AttnV, &[First(2)], Q5_K),
            Rule(AttnV, &[], Q4_K),
            Rule(FfnDown, &[FirstPart(16)], Q5_K),
            Rule(FfnDown, &[], Q4_K),
            Rule(AttnOutput, &[Experts8], Q5_K),
            Rule(AttnOutput, &[], Q4_K),
        ],
        F::Q3_K_L => &[
            Rule(AttnV, &[], Q5_K),
            Rule(FfnDown, &[], Q5_K),
            Rule(AttnOutput, &[Experts8], Q3_K),
            Rule(AttnOutput, &[], Q5_K),
        ],
        F::Q4_K_S => &[
            Rule(AttnV, &[First(4)], Q5_K),
            Rule(FfnDown, &[FirstPart(8)], Q5_K),
            Rule(AttnOutput, &[Experts8], Q5_K),
        ],
        F::Q4_K_M => &[
            Rule(AttnV, &[MoreBits], Q6_K),
            Rule(FfnDown, &[MoreBits], Q6_K),
            Rule(AttnOutput, &[Experts8], Q5_K),
        ],
        F::Q5_K_M => &[Rule(AttnV, &[MoreBits], Q6_K), Rule(FfnDown, &[MoreBits], Q6_K)],
        F::IQ4_NL | F::IQ4_XS => &[
            Rule(AttnV, &[Gqa4], Q5_K),
            Rule(FfnDown, &[FirstPart(8), NoImatrix], Q5_K),
            Rule(AttnOutput, &[Experts8], Q5_K),
        ],
        F::Q4_0 => &[Rule(FfnDown, &[Imatrix, FirstPart(8)], Q4_1)],
        F::Q5_0 => &[Rule(FfnDown, &[Imatrix, FirstPart(8)], Q5_1)],
        F::TQ1_0 | F::TQ2_0 | F::Q2_0 => &[Rule(TokenEmbedding, &[], Q4_K)],
        _ => &[],
    }
}
