//! What a tensor is for, as people speak of it.

/// What a tensor is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
#[non_exhaustive]
pub enum Role {
    /// The token embedding.
    Embedding,
    /// Projections of attention.
    Attention,
    /// The feed-forward network of a dense layer.
    FeedForward,
    /// Routed experts.
    Expert,
    /// Experts that every token passes.
    SharedExpert,
    /// What sends tokens to experts.
    Router,
    /// The output matrix.
    Output,
    /// Norms.
    Norm,
    /// Everything else: biases, rotary factors, layers that predict several tokens.
    Other,
}

impl Role {
    /// All roles, in the order of a model.
    pub const ALL: [Self; 9] = [
        Self::Embedding,
        Self::Attention,
        Self::FeedForward,
        Self::Expert,
        Self::SharedExpert,
        Self::Router,
        Self::Output,
        Self::Norm,
        Self::Other,
    ];

    /// The role of a tensor by its name in GGUF's spelling.
    pub fn of(name: &str) -> Self {
        let part = match name.strip_prefix("blk.").and_then(|rest| rest.split_once('.')) {
            Some((_, part)) => part,
            None if name == "token_embd.weight" => return Self::Embedding,
            None if name == "output.weight" => return Self::Output,
            None => name,
        };
        match part {
            _ if part.starts_with("nextn.") => Self::Other,
            _ if part.contains("_norm.") => Self::Norm,
            _ if part.starts_with("ffn_gate_inp") || part.starts_with("exp_probs_b") => {
                Self::Router
            }
            _ if !part.ends_with(".weight") => Self::Other,
            _ if part.starts_with("attn_") => Self::Attention,
            _ if part.contains("_shexp") => Self::SharedExpert,
            _ if part.contains("_exps") => Self::Expert,
            _ if part.starts_with("ffn_") => Self::FeedForward,
            _ => Self::Other,
        }
    }

    /// Its name in tables and recipes.
    pub fn name(self) -> &'static str {
        match self {
            Self::Embedding => "embedding",
            Self::Attention => "attention",
            Self::FeedForward => "feed-forward",
            Self::Expert => "expert",
            Self::SharedExpert => "shared-expert",
            Self::Router => "router",
            Self::Output => "output",
            Self::Norm => "norm",
            Self::Other => "other",
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_tell_roles() {
        for (name, role) in [
            ("token_embd.weight", Role::Embedding),
            ("output.weight", Role::Output),
            ("output_norm.weight", Role::Norm),
            ("blk.3.attn_k_b.weight", Role::Attention),
            ("blk.3.attn_q_a_norm.weight", Role::Norm),
            ("blk.3.attn_q.bias", Role::Other),
            ("blk.3.ffn_gate_inp.weight", Role::Router),
            ("blk.3.exp_probs_b.bias", Role::Router),
            ("blk.3.ffn_gate_exps.weight", Role::Expert),
            ("blk.3.ffn_up_shexp.weight", Role::SharedExpert),
            ("blk.0.ffn_down.weight", Role::FeedForward),
            ("blk.61.nextn.eh_proj.weight", Role::Other),
        ] {
            assert_eq!(Role::of(name), role, "{name}");
        }
    }
}
