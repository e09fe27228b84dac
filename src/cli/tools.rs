//! Everyday tools on GGUF files: `split`, `merge`, `hash`, `diff`, `export`.

use super::progress::Progress;
use super::{output, plan, say, units};
use crate::convert::{Mode, Plan, Settings};
use crate::gguf::Metadata;
use crate::inspect::{Difference, difference, hash_metadata, hash_tensor, same_bytes};
use crate::io::LocalDisk;
use crate::model::{GgufModel, Model};
use crate::monitor::Monitor;
use crate::names::hex;
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
        true => plan::print(&plan, &source, output, run_options.shard, None),
        false => options.run(what, &plan, &source, output, run_options),
    }
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
        whole.update(format!("{}\n{:?}\n{}\n", meta.name, trimmed(&meta.dims), meta.dtype));
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
    /// `None` for tensors of different shapes, where values are not compared, and where nobody can
    /// read them.
    values: Option<Difference>,
    /// Whether bytes of the same type differ that nobody can read as values.
    bytes_differ: bool,
    shapes: [Vec<u64>; 2],
}

impl TensorDiff {
    fn of(
        (a, i): (&dyn Source, usize),
        (b, j): (&dyn Source, usize),
        with_values: bool,
    ) -> anyhow::Result<Self> {
        let (x, y) = (&a.tensors()[i], &b.tensors()[j]);
        let types = [x.dtype, y.dtype];
        let shapes = [trimmed(&x.dims), trimmed(&y.dims)];
        let mut diff =
            Self { name: x.name.clone(), types, values: None, bytes_differ: false, shapes };
        if !with_values || diff.shapes[0] != diff.shapes[1] {
            return Ok(diff);
        }
        if diff.same_type() && same_bytes((a, i), (b, j))? {
            diff.values = Some(Difference { cosine: 1.0, ..Difference::default() });
        } else if types.map(Dtype::is_readable) == [true; 2] {
            diff.values = Some(difference((a, i), (b, j)).with_context(|| x.name.clone())?);
        } else {
            diff.bytes_differ = diff.same_type();
        }
        Ok(diff)
    }

    fn same_type(&self) -> bool {
        match self.types {
            [Dtype::Opaque(a), Dtype::Opaque(b)] => a.id == b.id,
            [a, b] => a == b,
        }
    }

    fn differs(&self) -> bool {
        !self.same_type()
            || self.shapes[0] != self.shapes[1]
            || self.bytes_differ
            || self.values.is_some_and(|values| values.max != 0.0)
    }
}

/// A model to compare.
enum Side {
    /// As its architecture has it.
    Model(Model),
    /// A GGUF file as it is, where the architecture is not known.
    Stored(Box<GgufSource>),
}

impl Side {
    fn open(place: &Path) -> anyhow::Result<Self> {
        if !place.is_file() {
            return Ok(Self::Model(super::place::model(place)?));
        }
        match GgufModel::open(place) {
            Ok(model) => {
                let model = Model::Gguf(Box::new(model));
                say::warnings(model.warnings());
                Ok(Self::Model(model))
            }
            Err(_) => Ok(Self::Stored(Box::new(GgufSource::open(place)?))),
        }
    }

    fn source(&self) -> &dyn Source {
        match self {
            Self::Model(model) => model.source(),
            Self::Stored(file) => file.as_ref(),
        }
    }

    fn metadata(&self) -> Option<&Metadata> {
        match self {
            Self::Model(Model::Checkpoint(_)) => None,
            Self::Model(Model::Gguf(model)) => Some(model.metadata()),
            Self::Stored(file) => Some(file.metadata()),
        }
    }
}

/// Compares; `false` where something differs.
pub fn diff(args: &DiffArgs) -> anyhow::Result<bool> {
    let (a, b) = (Side::open(&args.a)?, Side::open(&args.b)?);
    let metadata = match (a.metadata(), b.metadata()) {
        (Some(a), Some(b)) => diff_metadata(a, b),
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
            let diff = TensorDiff::of((a, i), (b, j), !args.no_values)?;
            progress.advance(a.tensors()[i].n_elements());
            Ok(diff)
        })
        .collect::<anyhow::Result<_>>()?;
    if !args.no_values {
        progress.finish();
    }
    let total = tensors.len();
    tensors.retain(TensorDiff::differs);
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
                    "bytes_differ": t.bytes_differ,
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
        let types = match t.same_type() {
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
            None if t.bytes_differ => println!("{:<width$} {types:>18} bytes differ", t.name),
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

/// Extents as a copy has them: at least one, and none of 1 at the end.
fn trimmed(dims: &[u64]) -> Vec<u64> {
    let n = dims.iter().rposition(|&d| d != 1).map_or(1, |i| i + 1);
    (0..n).map(|i| dims.get(i).copied().unwrap_or(1)).collect()
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
    say::warnings(model.warnings());
    say::heed()?;
    let ty = match args.dtype {
        Dtype16::Bf16 => QuantType::BF16,
        Dtype16::F16 => QuantType::F16,
        Dtype16::F32 => QuantType::F32,
    };
    let weights: u64 = model.gguf().tensors().iter().map(|t| t.n_elements()).sum();
    let progress = Progress::start("export", weights, "weights", 0);
    crate::convert::export(&model, model.gguf(), &LocalDisk, &args.folder, ty, &progress)
        .with_context(|| args.file.display().to_string())?;
    progress.finish();
    Ok(())
}
