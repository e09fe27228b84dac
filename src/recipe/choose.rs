//! The types that cost least for a size: each tensor has a choice of types with a cost and bytes, and bytes
//! go where they save most.

use crate::quant::QuantType;

/// A type that a tensor could have.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Choice {
    /// The type.
    pub ty: QuantType,
    /// Bytes of the tensor in it.
    pub bytes: u64,
    /// What is lost by it.
    pub cost: f64,
}

/// The options that are worth their bytes: each larger one saves less for a byte than those before it (the
/// lower convex hull).
fn hull(options: &[Choice]) -> Vec<Choice> {
    let mut sorted = options.to_vec();
    sorted.sort_by(|a, b| a.bytes.cmp(&b.bytes).then(a.cost.total_cmp(&b.cost)));
    let mut hull: Vec<Choice> = Vec::new();
    for option in sorted {
        if hull.last().is_some_and(|last| option.cost >= last.cost) {
            continue;
        }
        while let [.., a, b] = hull[..]
            && saved(&a, &b) <= saved(&b, &option)
        {
            hull.pop();
        }
        hull.push(option);
    }
    hull
}

/// What a byte saves on the way from one option to the next.
fn saved(from: &Choice, to: &Choice) -> f64 {
    (from.cost - to.cost) / (to.bytes.saturating_sub(from.bytes)).max(1) as f64
}

/// The option of each tensor with the least cost in all, within so many bytes; `None` where even the
/// smallest options take more. Steps along the hulls are taken in the order of what a byte saves, and then
/// those that still fit.
pub fn choose(tensors: &[Vec<Choice>], bytes: u64) -> Option<Vec<Choice>> {
    let hulls: Vec<Vec<Choice>> = tensors.iter().map(|options| hull(options)).collect();
    let mut chosen = hulls.iter().map(|hull| hull.first().copied()).collect::<Option<Vec<_>>>()?;
    let mut left = bytes.checked_sub(chosen.iter().map(|option| option.bytes).sum())?;
    let mut steps: Vec<(f64, usize, usize)> = Vec::new();
    for (tensor, hull) in hulls.iter().enumerate() {
        let of_hull = hull.windows(2).enumerate();
        steps.extend(of_hull.map(|(i, pair)| (saved(&pair[0], &pair[1]), tensor, i + 1)));
    }
    // Of equal ones, the first tensor; a hull's own steps are in order already.
    steps.sort_by(|a, b| b.0.total_cmp(&a.0).then((a.1, a.2).cmp(&(b.1, b.2))));
    for (_, tensor, to) in steps {
        let next = hulls[tensor][to];
        let more = next.bytes - chosen[tensor].bytes;
        // Where a smaller step did not fit, a larger one of the same tensor may not either.
        if more <= left {
            left -= more;
            chosen[tensor] = next;
        }
    }
    Some(chosen)
}

#[cfg(test)]
mod tests {
    use super::*;
    use QuantType as Q;

    fn option(ty: Q, bytes: u64, cost: f64) -> Choice {
        Choice { ty, bytes, cost }
    }

    #[test]
    fn bytes_go_where_they_save_most() {
        let sensitive =
            vec![option(Q::Q2_K, 10, 8.0), option(Q::Q4_K, 20, 2.0), option(Q::Q8_0, 40, 0.1)];
        let other =
            vec![option(Q::Q2_K, 10, 1.0), option(Q::Q4_K, 20, 0.3), option(Q::Q8_0, 40, 0.0)];
        let types = |bytes| {
            let chosen = choose(&[sensitive.clone(), other.clone()], bytes);
            chosen.map(|chosen| [chosen[0].ty, chosen[1].ty])
        };
        assert_eq!(types(19), None);
        assert_eq!(types(20), Some([Q::Q2_K; 2]));
        assert_eq!(types(30), Some([Q::Q4_K, Q::Q2_K]));
        assert_eq!(types(50), Some([Q::Q8_0, Q::Q2_K]));
        assert_eq!(types(80), Some([Q::Q8_0; 2]));
    }

    #[test]
    fn what_is_larger_and_no_better_is_never_taken() {
        let options = [
            option(Q::Q4_K, 20, 1.0),
            option(Q::Q4_0, 20, 1.5),
            option(Q::Q3_K, 10, 3.0),
            option(Q::Q5_K, 30, 1.0),
            option(Q::Q6_K, 40, 0.9),
            option(Q::Q8_0, 50, 0.0),
        ];
        let types: Vec<Q> = hull(&options).iter().map(|option| option.ty).collect();
        assert_eq!(types, [Q::Q3_K, Q::Q4_K, Q::Q8_0]);
    }

    /// Against all choices there are.
    #[test]
    fn choices_are_within_a_step_of_the_best() {
        for seed in 0..40u64 {
            let number = |i: u64| (seed * 7919 + i * 104_729) % 1009;
            let tensors: Vec<Vec<Choice>> = (0..4)
                .map(|t| {
                    let ty = [Q::Q2_K, Q::Q3_K, Q::Q4_K];
                    (0..3)
                        .map(|i| {
                            option(
                                ty[i as usize],
                                10 * (i + 1) + number(t * 5 + i) % 7,
                                number(t * 11) as f64 / (1 << (2 * i)) as f64,
                            )
                        })
                        .collect()
                })
                .collect();
            let limit = 90;
            let cost = |chosen: &[Choice]| chosen.iter().map(|o| o.cost).sum::<f64>();
            let mut best = f64::INFINITY;
            for i in 0..81usize {
                let all: Vec<Choice> =
                    (0..4).map(|t| tensors[t][i / 3usize.pow(t as u32) % 3]).collect();
                if all.iter().map(|o| o.bytes).sum::<u64>() <= limit {
                    best = best.min(cost(&all));
                }
            }
            let found = choose(&tensors, limit).unwrap();
            assert!(found.iter().map(|o| o.bytes).sum::<u64>() <= limit);
            let largest = tensors.iter().map(|o| o[0].cost - o[2].cost).fold(0.0, f64::max);
            assert!(cost(&found) <= best + largest, "{} {best}", cost(&found));
        }
    }
}
