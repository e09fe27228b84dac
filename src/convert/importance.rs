//! Which entry of an importance matrix weighs a tensor, and which tensors do without.
//!
//! An entry belongs to the inputs of a product. Where other versions of a file hold the same weights
//! under another name, joined with others or apart from them, the inputs and with them the entry are
//! the same.

use super::error::ConvertError;
use crate::imatrix::Imatrix;
use crate::recipe::layer_of;
use crate::source::TensorMeta;
use std::collections::BTreeSet;
use std::sync::Arc;

/// Tensors that other files have in parts, and those parts that have the inputs of the whole.
/// The keys of latent attention are another product once they are apart: `attn_k_b` is transposed,
/// and its inputs are queries. Its values, `attn_v_b`, get averages of what `attn_kv_b` gets.
const PARTS: [(&str, &[&str]); 3] = [
    (KV_B, &[V_B]),
    ("attn_qkv", &["attn_q", "attn_k", "attn_v"]),
    ("ffn_gate_up_exps", &["ffn_up_exps", "ffn_gate_exps"]),
];

const KV_B: &str = "attn_kv_b";
const K_B: &str = "attn_k_b";
const V_B: &str = "attn_v_b";

/// What weighs a tensor.
#[derive(Clone, Debug)]
pub struct Weighing {
    entry: String,
    /// Whether the entry has another name than the tensor.
    by_another: bool,
    /// Values that were made of the entry, or of several.
    made: Option<Arc<[f32]>>,
}

impl Weighing {
    /// The entry, if it has another name than the tensor in the source.
    pub fn by_another(&self) -> Option<&str> {
        self.by_another.then_some(self.entry.as_str())
    }

    fn values<'a>(&'a self, imatrix: &'a Imatrix) -> &'a [f32] {
        self.made.as_deref().unwrap_or_else(|| &imatrix.entries[&self.entry])
    }

    /// The importances of a matrix's columns. Where there are fewer than matrices, they serve all.
    pub(super) fn columns<'a>(
        &'a self,
        imatrix: &'a Imatrix,
        matrix: usize,
        n_per_row: usize,
    ) -> &'a [f32] {
        let values = self.values(imatrix);
        let at = (matrix * n_per_row).checked_rem(values.len()).unwrap_or(0);
        &values[at..at + n_per_row]
    }
}

/// The importances that there are, seen from a model's tensors.
pub(super) struct Importances<'a> {
    imatrix: Option<&'a Imatrix>,
    names: BTreeSet<&'a str>,
    /// Layers that predict further tokens, which not everybody collects for.
    predicting: BTreeSet<u32>,
}

impl<'a> Importances<'a> {
    pub fn new(imatrix: Option<&'a Imatrix>, metas: &'a [TensorMeta]) -> Self {
        let names = metas.iter().map(|meta| meta.name.as_str());
        let entries = imatrix.into_iter().flat_map(|imatrix| imatrix.entries.keys());
        let all = names.clone().chain(entries.map(String::as_str));
        let predicting = all.filter(|name| name.contains(".nextn.")).filter_map(layer_of).collect();
        Self { imatrix, names: names.collect(), predicting }
    }

    fn has_entry(&self, name: &str) -> bool {
        self.imatrix.is_some_and(|imatrix| imatrix.entries.contains_key(name))
    }

    /// Whether there is no entry for a tensor because its inputs are rarely or never measured: llama-imatrix
    /// watches the layers of the ordinary forward pass alone.
    pub fn is_unmeasured(&self, meta: &TensorMeta) -> bool {
        let name = meta.name.as_str();
        let before_the_split = || {
            let joint = replace_kind(name, K_B, KV_B);
            joint.is_some_and(|joint| self.has_entry(&joint))
        };
        self.find(meta).is_none()
            && match layer_of(name) {
                None => true,
                Some(layer) => self.predicting.contains(&layer) || before_the_split(),
            }
    }

    /// Whether the user wants a tensor not to be weighed.
    pub fn is_excluded(&self, meta: &TensorMeta) -> bool {
        self.imatrix.is_some_and(|imatrix| imatrix.excluded.contains(&meta.name))
    }

    /// What weighs a tensor, if anything does.
    pub fn of(&self, meta: &TensorMeta) -> Result<Option<Weighing>, ConvertError> {
        let (Some(imatrix), Some(weighing)) = (self.imatrix, self.find(meta)) else {
            return Ok(None);
        };
        let columns = meta.n_per_row();
        let matrices = meta.dims.get(2).copied().unwrap_or(1);
        let found = weighing.values(imatrix).len();
        let heads = is_kind(&meta.name, K_B) || is_kind(&meta.name, V_B);
        match found as u64 {
            n if n == columns * matrices => Ok(Some(weighing)),
            // llama-imatrix of early 2025, and ik_llama.cpp, add up all heads.
            n if n == columns && heads => Ok(Some(weighing)),
            n if weighing.by_another
                && matrices == 1
                && n > columns
                && n.is_multiple_of(columns) =>
            {
                let made = mean(weighing.values(imatrix), columns as usize);
                Ok(Some(Weighing { made: Some(made), ..weighing }))
            }
            // As the reference: embeddings are rows, not products, so their entry fits no column.
            _ if meta.name == "token_embd.weight" => Ok(None),
            _ => Err(ConvertError::ImportanceLength {
                tensor: meta.name.clone(),
                entry: weighing.entry,
                expected: columns * matrices,
                found,
            }),
        }
    }

    fn find(&self, meta: &TensorMeta) -> Option<Weighing> {
        let name = meta.name.as_str();
        if self.is_excluded(meta) {
            return None;
        }
        let entry = |entry: String, by_another| {
            self.has_entry(&entry).then_some(Weighing { entry, by_another, made: None })
        };
        let renamed = || entry(format!("{name}{RESHAPED}"), true);
        let related = || relatives(name).into_iter().find_map(|name| entry(name, true));
        entry(name.to_owned(), false)
            .or_else(renamed)
            .or_else(related)
            .or_else(|| self.stacked(meta))
    }

    /// The entries of single experts, from before these were one tensor. One that no token reached
    /// has none.
    fn stacked(&self, meta: &TensorMeta) -> Option<Weighing> {
        let stem = meta.name.strip_suffix("_exps.weight").filter(|_| meta.n_elements() > 0)?;
        let experts = 0..meta.dims.get(2).copied().unwrap_or(1);
        let of_expert = |expert| self.imatrix?.entries.get(&format!("{stem}.{expert}.weight"));
        experts.clone().find_map(of_expert)?;
        let columns = meta.n_per_row() as usize;
        let values = experts.flat_map(|expert| match of_expert(expert) {
            Some(values) => values.clone(),
            None => vec![1.0; columns],
        });
        let made = Some(values.collect());
        Some(Weighing { entry: format!("{stem}.*.weight"), by_another: true, made })
    }

    /// Entries that no tensor of the model takes, whatever becomes of it.
    pub fn unused(&self) -> impl Iterator<Item = &'a str> {
        let entries = self.imatrix.into_iter().flat_map(|imatrix| imatrix.entries.keys());
        entries.map(String::as_str).filter(|entry| !self.concerns(entry))
    }

    fn concerns(&self, entry: &str) -> bool {
        // Prediction layers may have been left out of the model.
        if layer_of(entry).is_some_and(|layer| self.predicting.contains(&layer)) {
            return true;
        }
        let entry = entry.strip_suffix(RESHAPED).unwrap_or(entry);
        let keys = replace_kind(entry, K_B, KV_B);
        let expert = expert_stack(entry);
        let others = relatives(entry).into_iter().chain(keys).chain(expert);
        self.names.contains(entry)
            || others.into_iter().any(|name| self.names.contains(name.as_str()))
    }
}

/// What ik_llama.cpp appended to names of tensors that it viewed in another shape.
const RESHAPED: &str = " (reshaped)";

/// `blk.3.ffn_up_exps.weight` for `blk.3.ffn_up.7.weight`.
fn expert_stack(entry: &str) -> Option<String> {
    let (stem, expert) = entry.strip_suffix(".weight")?.rsplit_once('.')?;
    expert.parse::<u32>().ok().map(|_| format!("{stem}_exps.weight"))
}

/// Names of tensors with the same inputs that files of another version have instead.
fn relatives(name: &str) -> Vec<String> {
    let others = PARTS.iter().flat_map(|(whole, parts)| {
        let joint = parts.iter().filter_map(|part| replace_kind(name, part, whole));
        let apart = parts.iter().filter_map(|part| replace_kind(name, whole, part));
        joint.chain(apart).collect::<Vec<_>>()
    });
    others.collect()
}

fn is_kind(name: &str, kind: &str) -> bool {
    replace_kind(name, kind, kind).is_some()
}

/// The name of another kind of tensor in the same layer; `None` if this one is not of the kind.
fn replace_kind(name: &str, kind: &str, other: &str) -> Option<String> {
    let layer = name.strip_suffix(".weight")?.strip_suffix(kind)?.strip_suffix('.')?;
    Some(format!("{layer}.{other}.weight"))
}

/// What several matrices with the same columns have in the mean.
fn mean(values: &[f32], columns: usize) -> Arc<[f32]> {
    let n = (values.len() / columns) as f64;
    let column = |i| values.iter().skip(i).step_by(columns).map(|&x| f64::from(x)).sum::<f64>();
    (0..columns).map(|i| (column(i) / n) as f32).collect()
}
