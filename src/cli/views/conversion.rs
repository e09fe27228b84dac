//! What a conversion makes of a checkpoint, for people and for programs.

use super::plan::{line, summary};
use super::units;
use crate::convert::{Ladder, Plan, Shard, is_lossless};
use crate::model::{CheckpointModel, LeftOut};
use crate::names::in_short;
use serde_json::{Value as Json, json};
use std::collections::BTreeMap;
use std::path::Path;

/// The plan as people read it.
pub fn describe(
    model: &CheckpointModel,
    ladder: &Ladder,
    name: &str,
    path: &Path,
    shard: Option<Shard>,
) -> String {
    let plan = ladder.rungs()[0].plan;
    let mut out = String::new();
    let hparams = model.hparams();
    let checkpoint = model.checkpoint();
    let source = format!(
        "{} ({}, {}, {}, {})",
        path.display(),
        hparams.arch.name(),
        units::of(hparams.n_layer as usize, "layer"),
        units::of(checkpoint.n_shards(), "shard"),
        units::bytes(checkpoint.n_bytes())
    );
    line(&mut out, "source", &source);
    summary(&mut out, ladder, name, shard);
    let left_out = model.left_out();
    let mtp = left_out.get(&LeftOut::Mtp).map_or(0, Vec::len);
    match (hparams.n_nextn, mtp) {
        (0, 0) => {}
        (0, n) => line(
            &mut out,
            "MTP layer",
            &format!("dropped with {}; --mtp keep stores it", units::of(n, "tensor")),
        ),
        (n, _) => line(&mut out, "MTP layer", &format!("{n} kept")),
    }
    let others = left_out.iter().filter(|(kind, _)| **kind != LeftOut::Mtp);
    let others: Vec<String> = others.map(|(kind, names)| kind.describe(names.len())).collect();
    if !others.is_empty() {
        line(&mut out, "left out", &others.join(", "));
    }
    let ends: Vec<String> =
        plan.further_ends().iter().map(|(id, text)| format!("{id} {text}")).collect();
    lossless(&mut out, model, plan);
    if !ends.is_empty() {
        let ends = ends.join(", ");
        line(
            &mut out,
            "ends",
            &format!("a text may end with {ends} as well, for which GGUF has no key"),
        );
    }
    for path in checkpoint.missing_files() {
        let text = format!("{}, which holds nothing that is needed", path.display());
        line(&mut out, "not here", &text);
    }
    out
}

/// Coded weights that are in the output as they are, and what of the rest has no such type, where values
/// are to be kept.
fn lossless(out: &mut String, model: &CheckpointModel, plan: &Plan) {
    for (ty, (n, weights)) in kept(model, plan) {
        let weights = units::count(weights as f64);
        let text = format!("{} as {ty}, code for code, {weights} weights", units::of(n, "tensor"));
        line(out, "lossless", &text);
    }
    let without = without_blocks(model, plan);
    if !without.is_empty() {
        let text = format!("no type has the codes of {}; kept as floats", in_short(&without));
        line(out, "", &text);
    }
}

/// Tensors and weights that are blocks of the checkpoint's own codes, by type.
fn kept(model: &CheckpointModel, plan: &Plan) -> BTreeMap<String, (usize, u64)> {
    let mut kept: BTreeMap<String, (usize, u64)> = BTreeMap::new();
    for tensor in plan.tensors() {
        let Some(ty) = model.kept(tensor.source).filter(|&ty| tensor.ty == ty) else { continue };
        let (n, weights) = kept.entry(ty.to_string()).or_default();
        (*n, *weights) = (*n + 1, *weights + tensor.n_elements());
    }
    kept
}

/// Coded tensors of which a lossless output has the values and not the codes.
fn without_blocks<'a>(model: &CheckpointModel, plan: &'a Plan) -> Vec<&'a str> {
    let lossless = is_lossless(plan.metadata()).unwrap_or(false);
    let is_float = |i: usize| model.is_coded(i) && model.kept(i).is_none();
    let tensors = plan.tensors().iter().filter(|tensor| lossless && is_float(tensor.source));
    tensors.map(|tensor| tensor.name.as_str()).collect()
}

/// What of the checkpoint is in the output as it is, and what has no place there, for programs.
pub fn beside(model: &CheckpointModel, plan: &Plan) -> Json {
    let counts = model.left_out().iter().map(|(kind, names)| (kind.name(), names.len()));
    let missing: Vec<&Path> = model.checkpoint().missing_files().collect();
    let kept = kept(model, plan)
        .into_iter()
        .map(|(ty, (tensors, weights))| (ty, json!({ "tensors": tensors, "weights": weights })));
    json!({
        "left_out": counts.collect::<BTreeMap<_, _>>(),
        "missing_files": missing,
        "lossless": kept.collect::<BTreeMap<_, _>>(),
        "without_lossless": without_blocks(model, plan),
    })
}
