//! Layers that are left out (llama-quantize `--prune-layers`): new names for the tensors behind
//! them, and the metadata that counts layers or lists something for each of them.

use super::error::ConvertError;
use crate::gguf::{Array, Metadata, Value};
use crate::model::is_lite;
use crate::recipe;
use crate::source::TensorMeta;
use crate::warning::{Topic, Warning};
use std::collections::BTreeSet;

/// Numbers of layers at the beginning of a model.
const LEADING: [&str; 2] = ["leading_dense_block_count", "hash_layer_count"];

/// Numbers of layers at its end.
const TRAILING: [&str; 2] = [NEXTN, "attention.shared_kv_layers"];

/// Multi-token-prediction layers, which the number of layers includes.
const NEXTN: &str = "nextn_predict_layers";

/// Arrays that do not list something for each layer, however long they are.
const OTHER_LISTS: [&str; 1] = ["rope.dimension_sections"];

/// What speaks of layers by their numbers, and cannot say what it said once they have others.
const BY_NUMBER: [&str; 9] = [
    "attention.sliding_window_pattern",
    "full_attention_interval",
    "hrm.layers_per_stack",
    "interleave_moe_layer_step",
    "moe_every_n_layers",
    "n_deepstack_layers",
    "ple.layers",
    "rescale_every_n_layers",
    "target_layers",
];

/// The architecture of which llama.cpp reads a key or not by the number of layers.
const DEEPSEEK2: &str = "deepseek2";
const Q_LORA_RANK: &str = "attention.q_lora_rank";

/// Layers that are left out.
pub(super) struct Pruned(BTreeSet<u32>);

impl Pruned {
    pub fn new(layers: &[u32]) -> Self {
        Self(layers.iter().copied().collect())
    }

    /// Those of some layers that are left.
    fn left(&self, layers: std::ops::Range<u32>) -> u32 {
        (layers.end - layers.start) - self.0.range(layers).count() as u32
    }

    /// Where a layer is in the output; `None` where it is left out.
    fn place(&self, layer: u32) -> Option<u32> {
        (!self.0.contains(&layer)).then(|| self.left(0..layer))
    }

    /// Leaves out tensors, and gives the others their new names (`remap_layer`).
    pub fn names(
        &self,
        metas: &[TensorMeta],
        order: &mut Vec<usize>,
    ) -> Result<Vec<String>, ConvertError> {
        let layer_of = |i: usize| recipe::layer_of(&metas[i].name);
        let present: BTreeSet<u32> = order.iter().filter_map(|&i| layer_of(i)).collect();
        if let Some(&layer) = self.0.iter().find(|layer| !present.contains(layer)) {
            return Err(ConvertError::NoLayer { layer, count: present.len() });
        }
        order.retain(|&i| layer_of(i).is_none_or(|layer| self.place(layer).is_some()));
        let names = order.iter().map(|&i| {
            let (layer, kind) = recipe::layer_and_kind(&metas[i].name);
            match layer.and_then(|layer| self.place(layer)) {
                Some(place) => format!("blk.{place}.{kind}"),
                None => metas[i].name.clone(),
            }
        });
        Ok(names.collect())
    }

    /// Brings in line what the metadata says of layers, but for their number, which is returned
    /// with its key. llama-quantize sets that alone.
    pub fn apply(&self, metadata: &mut Metadata) -> Result<Option<(String, u32)>, ConvertError> {
        if self.0.is_empty() {
            return Ok(None);
        }
        let count = |metadata: &Metadata, key: &str| {
            let n = metadata.u32(key)?;
            n.ok_or_else(|| ConvertError::NoLayerCount { key: key.to_owned() })
        };
        let arch = metadata.str("general.architecture")?.unwrap_or_default().to_owned();
        let key = format!("{arch}.block_count");
        let blocks = count(metadata, &key)?;
        let nextn = metadata.u32(&format!("{arch}.{NEXTN}"))?.unwrap_or(0).min(blocks);
        if self.left(0..blocks - nextn) == 0 {
            return Err(ConvertError::NoLayerLeft);
        }
        let counts = LEADING.map(|key| (key, true)).into_iter().chain(TRAILING.map(|k| (k, false)));
        for (key, leading) in counts {
            let key = format!("{arch}.{key}");
            if let Some(n) = metadata.u32(&key)?.map(|n| n.min(blocks)) {
                metadata.set(&key, self.left(if leading { 0..n } else { blocks - n..blocks }));
            }
        }
        let lists: Vec<(String, Array)> = metadata
            .iter()
            .filter_map(|(key, value)| match value {
                Value::Array(list) => Some((key, list)),
                _ => None,
            })
            .filter(|(key, list)| {
                let key = key.strip_prefix(&arch).and_then(|key| key.strip_prefix('.'));
                key.is_some_and(|key| !OTHER_LISTS.contains(&key))
                    && [blocks, blocks - nextn].contains(&(list.len() as u32))
            })
            .map(|(key, list)| (key.to_owned(), list.clone()))
            .collect();
        for (key, mut list) in lists {
            list.retain(|i| self.place(i as u32).is_some());
            metadata.set(&key, Value::Array(list));
        }
        let rank = format!("{arch}.{Q_LORA_RANK}");
        if arch == DEEPSEEK2
            && !is_lite(self.left(0..blocks - nextn))
            && metadata.get(&rank).is_none()
        {
            metadata.set(&rank, 0u32);
        }
        Ok(Some((key, self.left(0..blocks))))
    }

    /// What the metadata says and cannot be brought in line.
    pub fn warnings(&self, metadata: &Metadata) -> Vec<Warning> {
        if self.0.is_empty() {
            return Vec::new();
        }
        let arch = metadata.str("general.architecture").ok().flatten().unwrap_or_default();
        let keys = BY_NUMBER.iter().map(|key| format!("{arch}.{key}"));
        let said = keys.filter(|key| match metadata.get(key) {
            Some(Value::Array(list)) => !key.ends_with("pattern") && !list.is_empty(),
            found => found.is_some(),
        });
        let said =
            said.map(|key| format!("{key} speaks of layers by their numbers, which changed"));
        let number = |key| metadata.u32(&format!("{arch}.{key}")).ok().flatten().unwrap_or(0);
        let layers = number("block_count").saturating_sub(number(NEXTN));
        let taken_for_lite = arch == DEEPSEEK2 && is_lite(layers) && number(Q_LORA_RANK) > 0;
        let refused = taken_for_lite.then(|| {
            format!(
                "llama.cpp loads no {layers} layers with {arch}.{Q_LORA_RANK}; leave out others"
            )
        });
        said.chain(refused).map(|text| Warning::new(Topic::Config, text)).collect()
    }
}
