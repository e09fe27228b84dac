//! `requant inspect`: what a model holds.

use crate::cli::args::place;
use crate::cli::views::units;
use crate::cli::{bad_usage, errors, say};
use crate::gguf::{Array, Metadata, TensorInfo, Value};
use crate::inspect::{Stats, stats};
use crate::model::Model;
use crate::names::did_you_mean;
use crate::recipe::Role;
use crate::source::{Source, Storage, TensorMeta};
use crate::warning::{Topic, Warning};
use anyhow::{Context, bail};
use serde_json::{Value as Json, json};
use std::cmp::Ordering;
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

/// Show what a GGUF model or a checkpoint holds; reads headers alone, unless --stats is given.
#[derive(clap::Args)]
#[command(after_help = "Examples:\n  requant inspect model.gguf\n  \
                        requant inspect model.gguf --tensor blk.3.attn_q_b.weight --stats\n  \
                        requant inspect model.gguf.part --header")]
pub struct Args {
    /// GGUF file, the first file of a split model, or a checkpoint; or the URL of one
    model: PathBuf,
    /// List the files of a repository or folder behind a URL instead, such as hf://organization/name
    #[arg(long, conflicts_with_all = ["tensors", "tensor", "header"])]
    files: bool,
    /// List every tensor
    #[arg(long)]
    tensors: bool,
    /// Show these tensors only; repeatable
    #[arg(long, value_name = "NAME")]
    tensor: Vec<String>,
    /// Read the tensors and show how their values are distributed
    #[arg(long, requires = "tensor")]
    stats: bool,
    /// Look at the header alone, of a file whose data is missing or incomplete, or of one part of a
    /// split model
    #[arg(long, conflicts_with = "stats")]
    header: bool,
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
        self.bytes += meta.n_bytes();
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

/// What is looked at.
struct Subject {
    tensors: Vec<TensorMeta>,
    metadata: Metadata,
    /// What becomes of each setting of config.json.
    settings: Vec<(String, &'static str)>,
    /// The values of these.
    config: BTreeMap<String, Json>,
    files: Vec<String>,
    /// Whose values can be read; `None` for a header alone.
    source: Option<Box<dyn Source>>,
    /// Of a header, bytes that are there and bytes that should be.
    size: Option<(u64, u64)>,
}

impl Subject {
    fn open(args: &Args) -> anyhow::Result<Self> {
        if args.header {
            return Self::header(&args.model);
        }
        // A file of any architecture can be looked at, whether or not it can be run.
        if place::is_gguf(&args.model) {
            let file = place::gguf(&args.model)?;
            let files = file.files().iter().map(|f| f.path().display().to_string()).collect();
            return Ok(Self::of(file.metadata().clone(), files, Box::new(file)));
        }
        let Model::Checkpoint(model) = place::model(&args.model)? else {
            bail!("{}: neither a file nor a checkpoint", args.model.display())
        };
        let files = model.files().iter().map(|f| f.path.display().to_string()).collect();
        let described = model.described().unwrap_or_else(|error| {
            say::warning(&Warning::new(Topic::Config, errors::describe(&error.into())));
            Metadata::new()
        });
        let settings = model.config().settings()?;
        let entries = model.config().entries().into_iter();
        let config = entries.map(|(key, value)| (key, value.clone())).collect();
        Ok(Self { settings, config, ..Self::of(described, files, model) })
    }

    fn of(metadata: Metadata, files: Vec<String>, source: Box<dyn Source>) -> Self {
        let tensors = source.tensors().to_vec();
        let settings = Vec::new();
        let config = BTreeMap::new();
        Self { tensors, metadata, settings, config, files, source: Some(source), size: None }
    }

    fn header(path: &Path) -> anyhow::Result<Self> {
        let header = place::header(path)?;
        let meta = |t: &TensorInfo| TensorMeta {
            name: t.name.clone(),
            dims: t.dims.clone(),
            dtype: t.ty.into(),
        };
        Ok(Self {
            tensors: header.tensors().iter().map(meta).collect(),
            metadata: header.metadata().clone(),
            settings: Vec::new(),
            config: BTreeMap::new(),
            files: vec![path.display().to_string()],
            source: None,
            size: Some((header.file_size(), header.full_size())),
        })
    }

    fn find(&self, name: &str) -> anyhow::Result<usize> {
        let found = self.tensors.iter().position(|t| t.name == name);
        found.with_context(|| {
            let near = did_you_mean(name, self.tensors.iter().map(|t| t.name.as_str()));
            let hint = if near.is_empty() { "; --tensors lists all" } else { &near };
            format!("there is no tensor `{name}`{hint}")
        })
    }

    fn stats(&self, tensor: usize) -> anyhow::Result<Option<Stats>> {
        Ok(self.source.as_deref().map(|source| stats(source, tensor)).transpose()?)
    }
}

/// The files of a folder behind a URL.
fn list(args: &Args) -> anyhow::Result<()> {
    let Some(url) = place::url(&args.model) else { return Err(bad_usage("--files takes a URL")) };
    let files = place::list(url)?;
    if args.json {
        let files = files.iter().map(|(name, bytes)| json!({ "name": name, "bytes": bytes }));
        say::json(json!({ "version": 1, "url": url, "files": files.collect::<Vec<_>>() }));
        return Ok(());
    }
    for (name, bytes) in &files {
        println!("{:>10}  {name}", units::bytes(*bytes));
    }
    Ok(())
}

pub fn run(args: &Args) -> anyhow::Result<()> {
    if args.files {
        return list(args);
    }
    let subject = Subject::open(args)?;
    let chosen: Vec<usize> = match args.tensor.is_empty() {
        true => (0..subject.tensors.len()).collect(),
        false => args.tensor.iter().map(|name| subject.find(name)).collect::<Result<_, _>>()?,
    };
    let mut types: BTreeMap<String, Share> = BTreeMap::new();
    let mut roles: BTreeMap<Role, Share> = BTreeMap::new();
    let mut total = Share::default();
    for meta in &subject.tensors {
        types.entry(meta.dtype.to_string()).or_default().add(meta);
        roles.entry(Role::of(&meta.name)).or_default().add(meta);
        total.add(meta);
    }
    if args.json {
        return print_json(args, &subject, &chosen, &types, &roles, total);
    }
    if args.tensor.is_empty() {
        for (i, file) in subject.files.iter().enumerate() {
            println!("{} {file}", if i == 0 { "file    " } else { "        " });
        }
        if let Some((there, full)) = subject.size {
            println!("data     {}", how_much(there, full));
        }
        for (key, value) in subject.metadata.iter() {
            println!("{key:<47} {:<16} {}", value.type_name(), units::value(value));
        }
        if !subject.settings.is_empty() {
            println!("\n{:<38} {:<30} what becomes of it", "config.json", "");
        }
        for (key, what) in &subject.settings {
            let value = subject.config.get(key).cloned().unwrap_or_default().to_string();
            let value = match value.char_indices().nth(28) {
                Some((at, _)) => format!("{}…", &value[..at]),
                None => value,
            };
            println!("{key:<38} {value:<30} {what}");
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
        let width = chosen.iter().map(|&i| subject.tensors[i].name.len()).max().unwrap_or(0);
        for &i in &chosen {
            let meta = &subject.tensors[i];
            let dims: Vec<String> = meta.dims.iter().map(u64::to_string).collect();
            let ty = meta.dtype.to_string();
            let size = units::bytes(meta.n_bytes());
            println!("{:<width$} {ty:>8} {:>22} {size:>12}", meta.name, dims.join(" x "));
            if args.stats {
                subject.stats(i)?.iter().for_each(print_stats);
            }
        }
    }
    Ok(())
}

fn how_much(there: u64, full: u64) -> String {
    match there.cmp(&full) {
        Ordering::Less => format!(
            "incomplete: {there} of {full} bytes are there, {} are missing",
            units::bytes(full - there)
        ),
        _ => format!("complete, as far as the header tells: {there} bytes"),
    }
}

fn print_stats(stats: &Stats) {
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

fn print_json(
    args: &Args,
    subject: &Subject,
    chosen: &[usize],
    types: &BTreeMap<String, Share>,
    roles: &BTreeMap<Role, Share>,
    total: Share,
) -> anyhow::Result<()> {
    let mut tensors = Vec::new();
    for &i in chosen {
        let meta = &subject.tensors[i];
        let mut tensor = json!({
            "name": meta.name, "type": meta.dtype.to_string(), "shape": meta.dims,
            "bytes": meta.n_bytes(), "role": Role::of(&meta.name).name(),
        });
        if args.stats
            && let Some(s) = subject.stats(i)?
        {
            tensor["stats"] = json!({
                "n": s.n, "nan": s.nan, "infinite": s.infinite, "zero": s.zero, "min": s.min,
                "max": s.max, "mean": s.mean, "rms": s.rms, "kurtosis": s.kurtosis,
                "histogram": s.histogram,
            });
        }
        tensors.push(tensor);
    }
    let metadata: serde_json::Map<String, Json> =
        subject.metadata.iter().map(|(k, v)| (k.to_owned(), to_json(v))).collect();
    let types: serde_json::Map<String, Json> =
        types.iter().map(|(name, share)| (name.clone(), share.json())).collect();
    let roles: serde_json::Map<String, Json> =
        roles.iter().map(|(role, share)| (role.name().to_owned(), share.json())).collect();
    let mut json = json!({
        "version": 1, "files": subject.files, "metadata": metadata, "total": total.json(),
        "types": types, "roles": roles, "tensors": tensors,
    });
    if !subject.settings.is_empty() {
        let settings = subject.settings.iter();
        json["settings"] = settings.map(|(k, v)| (k.clone(), Json::from(*v))).collect();
    }
    if let Some((there, full)) = subject.size {
        json["bytes_there"] = there.into();
        json["bytes_of_all"] = full.into();
    }
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
        Value::Bool(flag) => json!(flag.is_on()),
        Value::String(s) => json!(s.to_string()),
        Value::U64(n) => json!(n),
        Value::I64(n) => json!(n),
        Value::F64(x) => json!(x),
        Value::Array(array) => json!({ "array": Array::type_name(array), "length": array.len() }),
    }
}
