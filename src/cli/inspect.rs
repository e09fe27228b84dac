//! `requant inspect`: what a model holds.

use super::{place, say, units};
use crate::gguf::{Array, Metadata, Value};
use crate::inspect::stats;
use crate::model::Model;
use crate::names::did_you_mean;
use crate::quant::QuantType;
use crate::recipe::Role;
use crate::source::{Dtype, Source, TensorMeta};
use anyhow::{Context, bail};
use serde_json::{Value as Json, json};
use std::collections::BTreeMap;
use std::path::PathBuf;

/// Show what a GGUF model or a checkpoint holds; reads headers alone, unless --stats is given.
#[derive(clap::Args)]
#[command(after_help = "Examples:\n  requant inspect model.gguf\n  \
                        requant inspect model.gguf --tensor blk.3.attn_q_b.weight --stats")]
pub struct Args {
    /// GGUF file, the first file of a split model, or a checkpoint
    model: PathBuf,
    /// List every tensor
    #[arg(long)]
    tensors: bool,
    /// Show these tensors only; repeatable
    #[arg(long, value_name = "NAME")]
    tensor: Vec<String>,
    /// Read the tensors and show how their values are distributed
    #[arg(long, requires = "tensor")]
    stats: bool,
    /// Print JSON
    #[arg(long)]
    json: bool,
}

/// Tensors of a kind, their weights and their bytes.
#[derive(Clone, Copy, Default)]
struct Share {
    tensors: u64,
    weights: u64,
    bytes: u64,
}

impl Share {
    fn add(&mut self, meta: &TensorMeta) {
        self.tensors += 1;
        self.weights += meta.n_elements();
        self.bytes += n_bytes(meta);
    }

    fn bits(&self) -> f64 {
        self.bytes as f64 * 8.0 / self.weights.max(1) as f64
    }

    fn json(&self) -> Json {
        json!({
            "tensors": self.tensors, "weights": self.weights, "bytes": self.bytes,
            "bits_per_weight": self.bits(),
        })
    }
}

pub fn run(args: &Args) -> anyhow::Result<()> {
    // A file of any architecture can be looked at, whether or not it can be run.
    let gguf;
    let opened;
    let (source, metadata, files): (&dyn Source, Option<&Metadata>, Vec<String>) =
        if args.model.is_file() {
            gguf = crate::source::GgufSource::open(&args.model)?;
            let files = gguf.files().iter().map(|f| f.path().display().to_string()).collect();
            (&gguf, Some(gguf.metadata()), files)
        } else {
            opened = place::model(&args.model)?;
            let Model::Checkpoint(model) = &opened else {
                bail!("{}: neither a file nor a checkpoint", args.model.display())
            };
            let files = model.files().iter().map(|f| f.path.display().to_string()).collect();
            (model.as_ref(), None, files)
        };
    let chosen: Vec<usize> = match args.tensor.is_empty() {
        true => (0..source.tensors().len()).collect(),
        false => args
            .tensor
            .iter()
            .map(|name| source.find(name).with_context(|| no_tensor(source, name)))
            .collect::<anyhow::Result<_>>()?,
    };
    let mut types: BTreeMap<String, Share> = BTreeMap::new();
    let mut roles: BTreeMap<Role, Share> = BTreeMap::new();
    let mut total = Share::default();
    for meta in source.tensors() {
        types.entry(meta.dtype.to_string()).or_default().add(meta);
        roles.entry(Role::of(&meta.name)).or_default().add(meta);
        total.add(meta);
    }
    if args.json {
        return print_json(args, source, metadata, &files, &chosen, &types, &roles, total);
    }
    if args.tensor.is_empty() {
        for (i, file) in files.iter().enumerate() {
            println!("{} {file}", if i == 0 { "file    " } else { "        " });
        }
        for (key, value) in metadata.into_iter().flat_map(Metadata::iter) {
            println!("{key:<47} {:<16} {}", value.type_name(), units::value(value));
        }
        let row = |name: &str, share: &Share| {
            println!(
                "{name:<16} {:>8} {:>10} {:>12} {:>8.3}",
                share.tensors,
                units::count(share.weights as f64),
                units::bytes(share.bytes),
                share.bits()
            );
        };
        for (title, rows) in [
            ("type", types.iter().map(|(ty, share)| (ty.as_str(), share)).collect::<Vec<_>>()),
            ("role", roles.iter().map(|(role, share)| (role.name(), share)).collect()),
        ] {
            println!(
                "\n{title:<16} {:>8} {:>10} {:>12} {:>8}",
                "tensors", "weights", "size", "bits"
            );
            rows.iter().for_each(|(name, share)| row(name, share));
        }
        row("all", &total);
    }
    if args.tensors || !args.tensor.is_empty() {
        println!();
        let width = chosen.iter().map(|&i| source.tensors()[i].name.len()).max().unwrap_or(0);
        for &i in &chosen {
            let meta = &source.tensors()[i];
            let dims: Vec<String> = meta.dims.iter().map(u64::to_string).collect();
            let ty = meta.dtype.to_string();
            let size = units::bytes(n_bytes(meta));
            println!("{:<width$} {ty:>8} {:>22} {size:>12}", meta.name, dims.join(" x "));
            if args.stats {
                print_stats(&stats(source, i)?);
            }
        }
    }
    Ok(())
}

fn no_tensor(source: &dyn Source, name: &str) -> String {
    let near = did_you_mean(name, source.tensors().iter().map(|t| t.name.as_str()));
    let hint = if near.is_empty() { "; --tensors lists all" } else { &near };
    format!("there is no tensor `{name}`{hint}")
}

fn print_stats(stats: &crate::inspect::Stats) {
    println!(
        "  {} values from {:.6e} to {:.6e}, mean {:.3e}, rms {:.6e}, kurtosis {:.2}",
        stats.n, stats.min, stats.max, stats.mean, stats.rms, stats.kurtosis
    );
    println!("  {} zero, {} NaN, {} infinite", stats.zero, stats.nan, stats.infinite);
    let most = stats.histogram.iter().copied().max().unwrap_or(0).max(1);
    let step = (f64::from(stats.max) - f64::from(stats.min)) / stats.histogram.len() as f64;
    for (i, &n) in stats.histogram.iter().enumerate() {
        let bar = "#".repeat((n as f64 / most as f64 * 50.0).ceil() as usize);
        println!("  {:>12.4e} {n:>12} {bar}", f64::from(stats.min) + step * i as f64);
    }
}

#[allow(clippy::too_many_arguments)]
fn print_json(
    args: &Args,
    source: &dyn Source,
    metadata: Option<&Metadata>,
    files: &[String],
    chosen: &[usize],
    types: &BTreeMap<String, Share>,
    roles: &BTreeMap<Role, Share>,
    total: Share,
) -> anyhow::Result<()> {
    let mut tensors = Vec::new();
    for &i in chosen {
        let meta = &source.tensors()[i];
        let mut tensor = json!({
            "name": meta.name, "type": meta.dtype.to_string(), "shape": meta.dims,
            "bytes": n_bytes(meta), "role": Role::of(&meta.name).name(),
        });
        if args.stats {
            let s = stats(source, i)?;
            tensor["stats"] = json!({
                "n": s.n, "nan": s.nan, "infinite": s.infinite, "zero": s.zero, "min": s.min,
                "max": s.max, "mean": s.mean, "rms": s.rms, "kurtosis": s.kurtosis,
                "histogram": s.histogram,
            });
        }
        tensors.push(tensor);
    }
    let metadata: serde_json::Map<String, Json> = metadata
        .into_iter()
        .flat_map(Metadata::iter)
        .map(|(k, v)| (k.to_owned(), to_json(v)))
        .collect();
    let types: serde_json::Map<String, Json> =
        types.iter().map(|(name, share)| (name.clone(), share.json())).collect();
    let roles: serde_json::Map<String, Json> =
        roles.iter().map(|(role, share)| (role.name().to_owned(), share.json())).collect();
    let json = json!({
        "version": 1, "files": files, "metadata": metadata, "total": total.json(),
        "types": types, "roles": roles, "tensors": tensors,
    });
    say::json(json);
    Ok(())
}

/// Scalars as they are, arrays by their length: a vocabulary is no use in a summary.
fn to_json(value: &Value) -> Json {
    match value {
        Value::U8(n) => json!(n),
        Value::I8(n) => json!(n),
        Value::U16(n) => json!(n),
        Value::I16(n) => json!(n),
        Value::U32(n) => json!(n),
        Value::I32(n) => json!(n),
        Value::F32(x) => json!(x),
        Value::Bool(b) => json!(b),
        Value::String(s) => json!(s.to_string()),
        Value::U64(n) => json!(n),
        Value::I64(n) => json!(n),
        Value::F64(x) => json!(x),
        Value::Array(array) => json!({ "array": Array::type_name(array), "length": array.len() }),
    }
}

fn n_bytes(meta: &TensorMeta) -> u64 {
    match meta.dtype {
        Dtype::F8E4M3 => meta.n_elements(),
        Dtype::NvFp4 => meta.n_elements() * 9 / 16,
        Dtype::Gguf(QuantType::F32) => 4 * meta.n_elements(),
        Dtype::Gguf(ty) => meta.n_elements() / ty.block_len() as u64 * ty.block_bytes() as u64,
    }
}
