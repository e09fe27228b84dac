//! Which experts a token is sent to, and with what weight.

use crate::model::{Gating, Moe};

/// The experts of one token with their weights, in order of preference.
///
/// `logits` are the router's outputs, `bias` the correction that takes part in the choice but not
/// in the weights (transformers' `DeepseekV3TopkRouter`, `DeepseekV2MoEGate`). Of equal scores the
/// lower index goes first.
pub(super) fn route(moe: &Moe, logits: &[f32], bias: Option<&[f32]>) -> Vec<(usize, f32)> {
    let probabilities = match moe.gating {
        Gating::Sigmoid => logits.iter().map(|&x| 1.0 / (1.0 + (-x).exp())).collect(),
        Gating::Softmax => softmax(logits),
    };
    let mut choice: Vec<f32> = match bias {
        Some(bias) => probabilities.iter().zip(bias).map(|(p, b)| p + b).collect(),
        None => probabilities.clone(),
    };
    let n_group = moe.n_group as usize;
    if n_group > 1 {
        let size = choice.len() / n_group;
        let scores: Vec<f32> = choice
            .chunks_exact(size)
            .map(|group| match moe.gating {
                Gating::Sigmoid => top(group, 2).iter().map(|&i| group[i]).sum(),
                Gating::Softmax => group.iter().copied().fold(f32::NEG_INFINITY, f32::max),
            })
            .collect();
        let kept = top(&scores, moe.n_group_used as usize);
        for (g, group) in choice.chunks_exact_mut(size).enumerate() {
            if !kept.contains(&g) {
                group.fill(f32::NEG_INFINITY);
            }
        }
    }
    let chosen = top(&choice, moe.n_used as usize);
    let total: f32 = match moe.norm_weights {
        true => chosen.iter().map(|&i| probabilities[i]).sum::<f32>() + 1e-20,
        false => 1.0,
    };
    chosen.iter().map(|&i| (i, probabilities[i] / total * moe.weights_scale)).collect()
}

/// Indices of the `n` largest values, largest first.
fn top(values: &[f32], n: usize) -> Vec<usize> {
    let mut order: Vec<usize> = (0..values.len()).collect();
    order.sort_by(|&a, &b| values[b].total_cmp(&values[a]));
    order.truncate(n);
    order
}

fn softmax(logits: &[f32]) -> Vec<f32> {
    let max = logits.iter().copied().fold(f32::NEG_INFINITY, f32::max);
    let exp: Vec<f32> = logits.iter().map(|x| (x - max).exp()).collect();
    let sum: f64 = exp.iter().map(|&e| f64::from(e)).sum();
    exp.iter().map(|e| (f64::from(*e) / sum) as f32).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn moe() -> Moe {
        Moe {
            leading_dense: 0,
            n_expert: 6,
            n_used: 2,
            n_shared: 0,
            n_group: 3,
            n_group_used: 1,
            n_ff: 1,
            gating: Gating::Sigmoid,
            norm_weights: true,
            weights_scale: 2.0,
        }
    }

    #[test]
    fn groups_are_chosen_by_their_two_best_experts() {
        // The single best expert is in group 0, the best pair in group 1.
        let logits = [3.0, -9.0, 2.0, 2.0, -1.0, -1.0];
        let routed = route(&moe(), &logits, None);
        assert_eq!(routed, [(2, 1.0), (3, 1.0)]);
    }

    #[test]
    fn the_bias_changes_the_choice_but_not_the_weights() {
        let logits = [0.0, 0.0, 1.0, 1.0, -1.0, -1.0];
        let bias = [0.0, 0.0, 0.0, 0.0, 5.0, 5.5];
        let routed = route(&Moe { norm_weights: false, ..moe() }, &logits, Some(&bias));
        let weight = 2.0 / (1.0 + 1f32.exp());
        assert_eq!(routed.iter().map(|r| r.0).collect::<Vec<_>>(), [5, 4]);
        assert!(routed.iter().all(|r| (r.1 - weight).abs() < 1e-6));
    }

    #[test]
    fn softmax_routers_take_the_best_and_break_ties_by_index() {
        let moe = Moe { gating: Gating::Softmax, n_group: 1, norm_weights: false, ..moe() };
        let routed = route(&moe, &[0.0; 6], None);
        assert_eq!(routed.iter().map(|r| r.0).collect::<Vec<_>>(), [0, 1]);
        assert!((routed[0].1 - 2.0 / 6.0).abs() < 1e-6);
    }
}
