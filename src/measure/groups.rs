//! Groups of tensors whose sensitivities are measured together: a kind of tensor in some consecutive layers. And
//! which of several machines measures which.

use crate::convert::Shard;
use crate::model::Model;
use crate::source::Source;
use crate::tensor::{Kind, Part, TensorName};
use std::cmp::Reverse;
use std::collections::BTreeMap;

/// Kinds of tensors that are measured together.
const GROUPS: [(&str, &[Kind]); 11] = [
    ("embedding", &[Kind::TokenEmbd]),
    ("output", &[Kind::Output]),
    ("attention-scores", &[Kind::AttnQ, Kind::AttnK, Kind::AttnQA, Kind::AttnQB, Kind::AttnKB]),
    ("attention-values", &[Kind::AttnV, Kind::AttnVB, Kind::AttnKvAMqa]),
    ("attention-output", &[Kind::AttnOutput]),
    ("ffn-in", &[Kind::FfnGate, Kind::FfnUp]),
    ("ffn-down", &[Kind::FfnDown]),
    ("expert-in", &[Kind::FfnGateExps, Kind::FfnUpExps]),
    ("expert-down", &[Kind::FfnDownExps]),
    ("shared-expert-in", &[Kind::FfnGateShexp, Kind::FfnUpShexp]),
    ("shared-expert-down", &[Kind::FfnDownShexp]),
];

/// Parts that the layers are cut into, at most.
const BANDS: u32 = 8;
/// Groups that run at a time, beside one reference.
pub(super) const TOGETHER: usize = 8;

/// Tensors that are measured together.
pub(super) struct Measured {
    pub name: &'static str,
    /// First and last layer; none outside of layers.
    pub layers: Option<(u32, u32)>,
    /// By number in the source.
    pub tensors: Vec<usize>,
}

impl Measured {
    /// The first layer that it changes.
    pub fn first_different(&self, n_layer: u32) -> u32 {
        match self.layers {
            Some((first, _)) => first,
            None if self.name == "output" => n_layer,
            None => 0,
        }
    }

    /// Layers that the text passes for it, beyond those that it has in common with the reference; the output
    /// matrix counts as one.
    pub fn cost(&self, n_layer: u32) -> u64 {
        u64::from(n_layer + 1 - self.first_different(n_layer))
    }
}

/// The place of a kind of group among all.
pub(super) fn rank(name: &str) -> Option<usize> {
    GROUPS.iter().position(|(known, _)| *known == name)
}

/// The place of a tensor's kind of group, and its layer; nothing for tensors that are never quantized.
pub(super) fn kind_of(tensor: &str) -> Option<(usize, Option<u32>)> {
    let TensorName { layer, kind, part } = TensorName::parse(tensor)?;
    let group = GROUPS.iter().position(|(_, kinds)| kinds.contains(&kind))?;
    (part == Part::Weight).then_some((group, layer))
}

/// Groups of the tensors of a model that can be quantized, or those of a share.
pub(super) fn groups(source: &dyn Source, n_layer: u32, share: Option<Shard>) -> Vec<Measured> {
    let per_band = n_layer.div_ceil(BANDS).max(1);
    // By kind and band: the layer and number of each tensor.
    let mut groups: BTreeMap<_, Vec<_>> = BTreeMap::new();
    for (tensor, meta) in source.tensors().iter().enumerate() {
        let Some((group, layer)) = kind_of(&meta.name) else { continue };
        if layer.is_none_or(|layer| layer < n_layer) {
            let band = layer.map(|layer| layer / per_band);
            groups.entry((group, band)).or_default().push((layer, tensor));
        }
    }
    let measured = groups.into_iter().map(|((group, _), tensors)| {
        let layers = || tensors.iter().filter_map(|&(layer, _)| layer);
        Measured {
            name: GROUPS[group].0,
            layers: layers().min().zip(layers().max()),
            tensors: tensors.iter().map(|(_, tensor)| *tensor).collect(),
        }
    });
    let measured = measured.collect();
    match share {
        Some(share) => of_share(measured, n_layer, share),
        None => measured,
    }
}

/// The groups of a share: the most expensive first, each goes to the share that has least to do with it.
fn of_share(groups: Vec<Measured>, n_layer: u32, share: Shard) -> Vec<Measured> {
    let mut costs: Vec<(usize, u64)> =
        groups.iter().map(|group| group.cost(n_layer)).enumerate().collect();
    costs.sort_by_key(|&(_, cost)| Reverse(cost));
    // Groups and layers of each share; those that come after as many as there are groups have none.
    let mut shares = vec![(0, 0); groups.len().min(share.count() as usize)];
    let mut of = vec![0; groups.len()];
    for (group, cost) in costs {
        let with = |(n, layers): (usize, u64)| {
            let reference = if n % TOGETHER == 0 { u64::from(n_layer + 1) } else { 0 };
            layers + reference + cost
        };
        let Some(least) = (0..shares.len()).min_by_key(|&i| with(shares[i])) else { break };
        shares[least] = (shares[least].0 + 1, with(shares[least]));
        of[group] = least;
    }
    let own = share.number() as usize - 1;
    groups.into_iter().zip(of).filter(|(_, of)| *of == own).map(|(group, _)| group).collect()
}

/// The tensors whose sensitivities a share measures, or all that have some, by their numbers in the model's source.
pub fn measured_tensors(model: &Model, share: Option<Shard>) -> Vec<usize> {
    let groups = groups(model.source(), model.hparams().n_layer, share);
    groups.into_iter().flat_map(|group| group.tensors).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn shares_have_each_group_once_and_as_much_to_do() {
        const N_LAYER: u32 = 61;
        let groups = || -> Vec<Measured> {
            let of = |i: usize, band: u32| {
                let (first, last) = (8 * band, (8 * band + 7).min(N_LAYER - 1));
                let tensors = vec![8 * i + band as usize];
                Measured { name: GROUPS[i].0, layers: Some((first, last)), tensors }
            };
            let outside = (0..2).map(|i| Measured { layers: None, ..of(i, 0) });
            outside.chain((2..11).flat_map(|i| (0..8).map(move |band| of(i, band)))).collect()
        };
        for count in [1, 2, 3, 8, 74, 100] {
            let shares: Vec<Vec<Measured>> = (1..=count)
                .map(|k| of_share(groups(), N_LAYER, Shard::new(k, count).unwrap()))
                .collect();
            let mut tensors: Vec<usize> =
                shares.iter().flatten().flat_map(|group| group.tensors.clone()).collect();
            tensors.sort_unstable();
            let all: Vec<usize> = groups().into_iter().flat_map(|group| group.tensors).collect();
            assert_eq!(tensors, all);
            let cost = |share: &Vec<Measured>| -> u64 {
                let references = share.len().div_ceil(TOGETHER) as u64 * u64::from(N_LAYER + 1);
                references + share.iter().map(|group| group.cost(N_LAYER)).sum::<u64>()
            };
            let costs = || shares.iter().map(cost);
            let (least, most) = (costs().min().unwrap(), costs().max().unwrap());
            // With fewer shares than groups: one reference more, and a group.
            let apart = u64::from(2 * (N_LAYER + 1));
            assert!(count > 74 || most - least <= apart, "{count}: {least} to {most}");
        }
    }
}
