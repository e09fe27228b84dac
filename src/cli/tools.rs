//! Everyday tools on GGUF files: `split`, `merge`, `set`, `unset`, `hash`, `diff`.

use super::progress::Progress;
use super::{output, plan, say, units};
use crate::convert::{Mode, Plan, Settings};
use crate::gguf::{Edited, GgufFile, Metadata, Value, finish_interrupted, replace_metadata};
use crate::inspect::{Difference, difference, hash_metadata, hash_tensor};
use crate::monitor::Monitor;
use crate::names::did_you_mean;
use crate::quant::QuantType;
use crate::recipe::FileType;
use crate::source::{Dtype, GgufSource, Source};
use anyhow::{Context, bail};
use rayon::prelude::*;
use serde_json::{Value as Json, json};
use sha2::{Digest, Sha256};
use std::path::{Path, PathBuf};

/// Cut a GGUF file into several, byte for byte as llama-gguf-split does.
#[derive(clap::Args)]
#[command(after_help = "Example:\n  requant split model.gguf model --split-max-size 40G")]
pub struct SplitArgs {
    /// GGUF file to read
    input: PathBuf,
    /// Name of the parts: model becomes model-00001-of-00003.gguf
    output: PathBuf,
    #[command(flatten)]
    output_options: output::Args,
    /// Show the plan and stop
    #[arg(long)]
    dry_run: bool,
}

/// Join the files of a split model, byte for byte as llama-gguf-split --merge does.
#[derive(clap::Args)]
#[command(after_help = "Example:\n  requant merge model-00001-of-00003.gguf model.gguf")]
pub struct MergeArgs {
    /// First file of the split model
    input: PathBuf,
    /// GGUF file to write
    output: PathBuf,
    #[command(flatten)]
    output_options: output::Args,
}

pub fn split(args: &SplitArgs) -> anyhow::Result<()> {
    if args.output_options.split(false)?.is_none() {
        bail!("say with --split-max-size or --split-max-tensors where to cut");
    }
    regroup("split", &args.input, &args.output, &args.output_options, args.dry_run)
}

pub fn merge(args: &MergeArgs) -> anyhow::Result<()> {
    if args.output_options.split(false)?.is_some() {
        bail!("merge writes one file; use split to cut a model otherwise");
    }
    regroup("merge", &args.input, &args.output, &args.output_options, false)
}

fn regroup(
    what: &'static str,
    input: &Path,
    output: &Path,
    options: &output::Args,
    dry_run: bool,
) -> anyhow::Result<()> {
    let source = GgufSource::open(input)?;
    let settings = Settings {
        mode: Mode::Regroup,
        threads: options.threads(),
        split: options.split(false)?,
        memory: options.memory(),
        ..Settings::new(FileType::F32)
    };
    let plan = Plan::of_gguf(&source, &settings)?;
    let run_options = options.options()?;
    match dry_run {
        true => plan::print(&plan, &source, output, run_options.shard, false),
        false => options.run(what, &plan, &source, output, run_options),
    }
}

/// Set metadata of a GGUF file: in place where it fits, otherwise the file is written anew.
#[derive(clap::Args)]
#[command(after_help = "Example:\n  requant set model.gguf general.name=str:DeepSeek-R1 \\\n    \
                        tokenizer.ggml.add_bos_token=bool:true")]
pub struct SetArgs {
    /// GGUF file, or the first file of a split model, which holds the metadata
    file: PathBuf,
    /// Keys and values; TYPE is u8, i8, u16, i16, u32, i32, f32, bool, str, u64, i64 or f64
    #[arg(required = true, value_name = "KEY=TYPE:VALUE", value_parser = assignment)]
    assignments: Vec<(String, Value)>,
}

/// Remove metadata from a GGUF file.
#[derive(clap::Args)]
#[command(after_help = "Example:\n  requant unset model.gguf tokenizer.chat_template")]
pub struct UnsetArgs {
    /// GGUF file, or the first file of a split model, which holds the metadata
    file: PathBuf,
    /// Keys
    #[arg(required = true)]
    keys: Vec<String>,
}

fn assignment(text: &str) -> Result<(String, Value), String> {
    let (key, value) = text.split_once('=').ok_or("not of the form KEY=TYPE:VALUE")?;
    let (ty, value) = value.split_once(':').ok_or("not of the form KEY=TYPE:VALUE")?;
    const TYPES: &str = "u8 i8 u16 i16 u32 i32 f32 bool str u64 i64 f64";
    if !TYPES.split(' ').any(|known| known == ty) {
        return Err(format!("unknown type `{ty}`; known: {TYPES}"));
    }
    let value = Value::parse(ty, value).ok_or_else(|| format!("`{value}` is no {ty}"))?;
    Ok((key.to_owned(), value))
}

pub fn set(args: &SetArgs) -> anyhow::Result<()> {
    edit(&args.file, |metadata| {
        for (key, value) in &args.assignments {
            metadata.set(key, value.clone());
        }
        Ok(())
    })
}

pub fn unset(args: &UnsetArgs) -> anyhow::Result<()> {
    edit(&args.file, |metadata| {
        for key in &args.keys {
            if metadata.remove(key).is_none() {
                let near = did_you_mean(key, metadata.iter().map(|(key, _)| key));
                bail!("{}: there is no key `{key}`{near}", args.file.display());
            }
        }
        Ok(())
    })
}

fn edit(
    path: &Path,
    change: impl FnOnce(&mut Metadata) -> anyhow::Result<()>,
) -> anyhow::Result<()> {
    finish_interrupted(path)?;
    let mut metadata = GgufFile::open(path)?.metadata().clone();
    let before = metadata.clone();
    change(&mut metadata)?;
    // What says where bytes lie is not a matter of taste.
    for key in ["general.alignment", "split.no", "split.count", "split.tensors.count"] {
        if metadata.get(key) != before.get(key) {
            bail!("{}: `{key}` belongs to the file's structure and stays", path.display());
        }
    }
    let how = match replace_metadata(path, &metadata)? {
        Edited::InPlace => "in place",
        Edited::Inserted => "with room made for it at the front",
        Edited::Anew => "in a new file, which replaced it",
    };
    say::info(format!("{}: metadata written {how}", path.display()));
    Ok(())
}

/// Hash a GGUF model: SHA-256 of each tensor and of all, whatever files it is spread over.
#[derive(clap::Args)]
#[command(after_help = "Example:\n  requant hash model-00001-of-00003.gguf")]
pub struct HashArgs {
    /// GGUF file, or the first file of a split model
    model: PathBuf,
    /// Print JSON
    #[arg(long)]
    json: bool,
}

pub fn hash(args: &HashArgs) -> anyhow::Result<()> {
    let model = GgufSource::open(&args.model)?;
    let weights: u64 = model.tensors().iter().map(|t| t.n_elements()).sum();
    let progress = Progress::start("hash", weights, "weights", model.n_bytes());
    let mut tensors: Vec<(usize, [u8; 32])> = (0..model.tensors().len())
        .into_par_iter()
        .map(|i| {
            stop_if_asked(&progress)?;
            let hash = hash_tensor(&model, i)?;
            progress.advance(model.tensors()[i].n_elements());
            Ok((i, hash))
        })
        .collect::<anyhow::Result<_>>()?;
    progress.finish();
    tensors.sort_by(|(i, _), (j, _)| model.tensors()[*i].name.cmp(&model.tensors()[*j].name));
    let metadata = hash_metadata(model.metadata());
    let mut whole = Sha256::new_with_prefix(metadata);
    for (i, hash) in &tensors {
        let meta = &model.tensors()[*i];
        whole.update(format!("{}\n{:?}\n{}\n", meta.name, meta.dims, meta.dtype));
        whole.update(hash);
    }
    let whole: [u8; 32] = whole.finalize().into();
    if args.json {
        let named = |(i, hash): &(usize, [u8; 32])| {
            (model.tensors()[*i].name.clone(), Json::from(hex(hash)))
        };
        let tensors: serde_json::Map<String, Json> = tensors.iter().map(named).collect();
        let (all, metadata) = (hex(&whole), hex(&metadata));
        let json = json!({ "version": 1, "sha256": all, "metadata": metadata, "tensors": tensors });
        say::json(json);
        return Ok(());
    }
    for (i, hash) in &tensors {
        println!("{}  {}", hex(hash), model.tensors()[*i].name);
    }
    println!("{}  (metadata)", hex(&metadata));
    println!("{}  {}", hex(&whole), args.model.display());
    Ok(())
}

fn stop_if_asked(progress: &Progress) -> anyhow::Result<()> {
    match progress.cancelled() {
        true => bail!("interrupted"),
        false => Ok(()),
    }
}

fn hex(hash: &[u8]) -> String {
    hash.iter().map(|byte| format!("{byte:02x}")).collect()
}

/// Compare two models: metadata, tensors, types and values. Fails where they differ.
#[derive(clap::Args)]
#[command(after_help = "Example:\n  requant diff model-BF16.gguf model-Q4_K_M.gguf")]
pub struct DiffArgs {
    /// GGUF file or checkpoint
    a: PathBuf,
    /// GGUF file or checkpoint
    b: PathBuf,
    /// Compare metadata, names, shapes and types alone
    #[arg(long)]
    no_values: bool,
    /// Print JSON
    #[arg(long)]
    json: bool,
}

struct TensorDiff {
    name: String,
    types: [Dtype; 2],
    /// `None` for tensors of different shapes, or where values are not compared.
    values: Option<Difference>,
    shapes: [Vec<u64>; 2],
}

/// Compares; `false` where something differs.
pub fn diff(args: &DiffArgs) -> anyhow::Result<bool> {
    let (a, b) = (super::place::model(&args.a)?, super::place::model(&args.b)?);
    let metadata = match (&a, &b) {
        (crate::model::Model::Gguf(a), crate::model::Model::Gguf(b)) => {
            diff_metadata(a.metadata(), b.metadata())
        }
        _ => Vec::new(),
    };
    let (a, b) = (a.source(), b.source());
    let only = |x: &dyn Source, y: &dyn Source| -> Vec<String> {
        let names = x.tensors().iter().map(|t| &t.name);
        names.filter(|name| y.find(name).is_none()).cloned().collect()
    };
    let (only_a, only_b) = (only(a, b), only(b, a));
    let pairs: Vec<(usize, usize)> =
        a.tensors().iter().enumerate().filter_map(|(i, t)| Some((i, b.find(&t.name)?))).collect();
    let weights: u64 = pairs.iter().map(|&(i, _)| a.tensors()[i].n_elements()).sum();
    let progress = Progress::start("diff", weights, "weights", 0);
    let mut tensors: Vec<TensorDiff> = pairs
        .into_par_iter()
        .map(|(i, j)| {
            stop_if_asked(&progress)?;
            let (x, y) = (&a.tensors()[i], &b.tensors()[j]);
            let shapes = [trimmed(&x.dims), trimmed(&y.dims)];
            let values = match shapes[0] == shapes[1] && !args.no_values {
                true => Some(difference((a, i), (b, j)).with_context(|| x.name.clone())?),
                false => None,
            };
            progress.advance(x.n_elements());
            Ok(TensorDiff { name: x.name.clone(), types: [x.dtype, y.dtype], values, shapes })
        })
        .collect::<anyhow::Result<_>>()?;
    if !args.no_values {
        progress.finish();
    }
    let total = tensors.len();
    tensors.retain(|t| {
        t.types[0] != t.types[1]
            || t.shapes[0] != t.shapes[1]
            || t.values.is_some_and(|values| values.max != 0.0)
    });
    let size = |t: &TensorDiff| t.values.map_or(f64::INFINITY, |values| values.relative);
    tensors.sort_by(|x, y| size(y).total_cmp(&size(x)));
    let equal = metadata.is_empty() && only_a.is_empty() && only_b.is_empty() && tensors.is_empty();
    if args.json {
        let differing: Vec<Json> = tensors
            .iter()
            .map(|t| {
                json!({
                    "name": t.name,
                    "types": t.types.map(|ty| ty.to_string()),
                    "shapes": t.shapes,
                    "max": t.values.map(|v| v.max),
                    "rms": t.values.map(|v| v.rms),
                    "relative": t.values.map(|v| v.relative),
                    "cosine": t.values.map(|v| v.cosine),
                })
            })
            .collect();
        let metadata: Vec<Json> =
            metadata.iter().map(|(key, a, b)| json!({ "key": key, "a": a, "b": b })).collect();
        let json = json!({
            "version": 1, "equal": equal, "metadata": metadata, "only_a": only_a,
            "only_b": only_b, "tensors": differing, "tensors_compared": total,
        });
        say::json(json);
        return Ok(equal);
    }
    for (key, a, b) in &metadata {
        println!(
            "metadata  {key}: {} -> {}",
            a.as_deref().unwrap_or("-"),
            b.as_deref().unwrap_or("-")
        );
    }
    for (names, file) in [(&only_a, &args.a), (&only_b, &args.b)] {
        for name in names {
            println!("only in {}: {name}", file.display());
        }
    }
    let width = tensors.iter().map(|t| t.name.len()).max().unwrap_or(0);
    if !tensors.is_empty() {
        let head = ["types", "relative", "rms", "max", "cosine"];
        println!(
            "{:<width$} {:>18} {:>11} {:>11} {:>11} {:>10}",
            "tensor", head[0], head[1], head[2], head[3], head[4]
        );
    }
    for t in &tensors {
        let types = match t.types[0] == t.types[1] {
            true => t.types[0].to_string(),
            false => format!("{} -> {}", t.types[0], t.types[1]),
        };
        match t.values {
            Some(v) => println!(
                "{:<width$} {types:>18} {:>11.3e} {:>11.3e} {:>11.3e} {:>10.7}",
                t.name, v.relative, v.rms, v.max, v.cosine
            ),
            None if t.shapes[0] != t.shapes[1] => {
                println!(
                    "{:<width$} {types:>18} shapes {:?} and {:?}",
                    t.name, t.shapes[0], t.shapes[1]
                );
            }
            None => println!("{:<width$} {types:>18}", t.name),
        }
    }
    println!("{} of {total} tensors differ", tensors.len());
    Ok(equal)
}

/// Keys whose values differ, with both values in short.
fn diff_metadata(a: &Metadata, b: &Metadata) -> Vec<(String, Option<String>, Option<String>)> {
    let keys =
        a.iter().map(|x| x.0).chain(b.iter().map(|x| x.0).filter(|key| a.get(key).is_none()));
    keys.filter(|key| a.get(key) != b.get(key))
        .map(|key| {
            let shown = |m: &Metadata| m.get(key).map(units::value);
            (key.to_owned(), shown(a), shown(b))
        })
        .collect()
}

fn trimmed(dims: &[u64]) -> Vec<u64> {
    let n = dims.iter().rposition(|&d| d != 1).map_or(1, |i| i + 1);
    dims[..n.min(dims.len())].to_vec()
}

/// Turn a GGUF model back into a checkpoint folder: safetensors, config.json, tokenizer.json.
#[derive(clap::Args)]
#[command(after_help = "Example:\n  requant export model-Q8_0.gguf model-bf16 --dtype bf16")]
pub struct ExportArgs {
    /// GGUF file, or the first file of a split model
    file: PathBuf,
    /// Folder to write
    folder: PathBuf,
    /// Type of the weights
    #[arg(long, value_enum, default_value = "bf16")]
    dtype: Dtype16,
}

#[derive(Clone, Copy, clap::ValueEnum)]
enum Dtype16 {
    Bf16,
    F16,
    F32,
}

pub fn export(args: &ExportArgs) -> anyhow::Result<()> {
    let model = crate::model::GgufModel::open(&args.file)?;
    let ty = match args.dtype {
        Dtype16::Bf16 => QuantType::BF16,
        Dtype16::F16 => QuantType::F16,
        Dtype16::F32 => QuantType::F32,
    };
    let weights: u64 = model.gguf().tensors().iter().map(|t| t.n_elements()).sum();
    let progress = Progress::start("export", weights, "weights", 0);
    crate::convert::export(&model, model.gguf(), &args.folder, ty, &progress)
        .with_context(|| args.file.display().to_string())?;
    progress.finish();
    Ok(())
}
