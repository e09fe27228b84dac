//! What a tensor of a model is, as GGUF names it: `blk.3.attn_q.weight` is the query projection of
//! layer 3. Knows the words, not which model has which of them.

use std::fmt;

/// Defines the kinds, with GGUF's word for each (`gguf-py/gguf/constants.py`, `TENSOR_NAMES`).
macro_rules! kinds {
    ($($(#[$doc:meta])* $name:ident = $word:literal,)*) => {
        /// What a tensor is for, whatever layer it is in.
        #[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
        #[non_exhaustive]
        pub enum Kind {
            $($(#[$doc])* $name,)*
        }

        impl Kind {
            /// All kinds.
            pub const ALL: &[Self] = &[$(Self::$name),*];

            /// GGUF's word for it.
            pub fn word(self) -> &'static str {
                match self {
                    $(Self::$name => $word,)*
                }
            }
        }
    };
}

kinds! {
    /// Token embedding.
    TokenEmbd = "token_embd",
    /// Output matrix.
    Output = "output",
    /// Norm before the output matrix.
    OutputNorm = "output_norm",
    /// Divisors of rotary frequencies.
    RopeFreqs = "rope_freqs",
    /// Norm before attention.
    AttnNorm = "attn_norm",
    /// Queries.
    AttnQ = "attn_q",
    /// Keys.
    AttnK = "attn_k",
    /// Values.
    AttnV = "attn_v",
    /// What attention gives, back to the width of the states.
    AttnOutput = "attn_output",
    /// Norm of each head's queries.
    AttnQNorm = "attn_q_norm",
    /// Norm of each head's keys.
    AttnKNorm = "attn_k_norm",
    /// Queries, compressed.
    AttnQA = "attn_q_a",
    /// Norm of compressed queries.
    AttnQANorm = "attn_q_a_norm",
    /// Queries from compressed ones.
    AttnQB = "attn_q_b",
    /// Keys and values, compressed, and keys with positions.
    AttnKvAMqa = "attn_kv_a_mqa",
    /// Norm of compressed keys and values.
    AttnKvANorm = "attn_kv_a_norm",
    /// Keys and values from compressed ones, as files from before April 2025 have them.
    AttnKvB = "attn_kv_b",
    /// Keys from compressed ones, each head transposed.
    AttnKB = "attn_k_b",
    /// Values from compressed ones.
    AttnVB = "attn_v_b",
    /// Queries of the indexer, which chooses the tokens that are attended to, from compressed ones.
    IndexerAttnQB = "indexer.attn_q_b",
    /// Its keys.
    IndexerAttnK = "indexer.attn_k",
    /// Norm of these.
    IndexerKNorm = "indexer.k_norm",
    /// What each of its heads counts.
    IndexerProj = "indexer.proj",
    /// Norm before the feed-forward network.
    FfnNorm = "ffn_norm",
    /// Gate of a dense layer.
    FfnGate = "ffn_gate",
    /// Up projection of a dense layer.
    FfnUp = "ffn_up",
    /// Down projection of a dense layer.
    FfnDown = "ffn_down",
    /// Router.
    FfnGateInp = "ffn_gate_inp",
    /// Corrections of the router's scores.
    ExpProbsB = "exp_probs_b",
    /// Gates of routed experts.
    FfnGateExps = "ffn_gate_exps",
    /// Up projections of routed experts.
    FfnUpExps = "ffn_up_exps",
    /// Down projections of routed experts.
    FfnDownExps = "ffn_down_exps",
    /// Gate of the shared experts.
    FfnGateShexp = "ffn_gate_shexp",
    /// Up projection of the shared experts.
    FfnUpShexp = "ffn_up_shexp",
    /// Down projection of the shared experts.
    FfnDownShexp = "ffn_down_shexp",
    /// Projection of a state and the next token's embedding, of a layer that predicts further tokens.
    NextnEhProj = "nextn.eh_proj",
    /// Norm of that embedding.
    NextnEnorm = "nextn.enorm",
    /// Norm of that state.
    NextnHnorm = "nextn.hnorm",
    /// An embedding of such a layer's own.
    NextnEmbedTokens = "nextn.embed_tokens",
    /// An output matrix of its own.
    NextnSharedHeadHead = "nextn.shared_head_head",
    /// A norm before that.
    NextnSharedHeadNorm = "nextn.shared_head_norm",
}

impl Kind {
    /// Whether it stacks routed experts, of which each token passes some.
    pub fn is_routed(self) -> bool {
        matches!(self, Self::FfnGateExps | Self::FfnUpExps | Self::FfnDownExps)
    }
}

/// Which of the tensors of one kind.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
#[non_exhaustive]
pub enum Part {
    /// The weights.
    Weight,
    /// The bias.
    Bias,
}

impl Part {
    fn word(self) -> &'static str {
        match self {
            Self::Weight => "weight",
            Self::Bias => "bias",
        }
    }
}

/// The name of a tensor.
///
/// ```
/// # use requant::tensor::{Kind, Part, TensorName};
/// let name: TensorName = TensorName { layer: Some(3), kind: Kind::AttnQ, part: Part::Weight };
/// assert_eq!(name.to_string(), "blk.3.attn_q.weight");
/// assert_eq!(TensorName::parse("blk.3.attn_q.weight"), Some(name));
/// ```
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct TensorName {
    /// The layer; `None` for what stands outside of the layers.
    pub layer: Option<u32>,
    /// What it is for.
    pub kind: Kind,
    /// Which of those.
    pub part: Part,
}

impl TensorName {
    /// The weights of a kind.
    pub const fn weight(layer: Option<u32>, kind: Kind) -> Self {
        Self { layer, kind, part: Part::Weight }
    }

    /// Reads a name; `None` for one that no kind has.
    pub fn parse(name: &str) -> Option<Self> {
        let (layer, rest) = match name.strip_prefix("blk.").and_then(|rest| rest.split_once('.')) {
            Some((layer, rest)) => (Some(layer.parse().ok()?), rest),
            None => (None, name),
        };
        let (word, part) = rest.rsplit_once('.')?;
        let part = [Part::Weight, Part::Bias].into_iter().find(|known| known.word() == part)?;
        let kind = Kind::ALL.iter().copied().find(|kind| kind.word() == word)?;
        Some(Self { layer, kind, part })
    }
}

impl fmt::Display for TensorName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if let Some(layer) = self.layer {
            write!(f, "blk.{layer}.")?;
        }
        write!(f, "{}.{}", self.kind.word(), self.part.word())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_name_is_read_as_it_is_written() {
        for &kind in Kind::ALL {
            for (layer, part) in [(None, Part::Weight), (Some(61), Part::Bias)] {
                let name = TensorName { layer, kind, part };
                assert_eq!(TensorName::parse(&name.to_string()), Some(name));
            }
        }
        for other in ["blk.x.attn_q.weight", "attn_qkv.weight", "blk.1.attn_q", "", "output.scale"]
        {
            assert_eq!(TensorName::parse(other), None, "{other}");
        }
    }
}
