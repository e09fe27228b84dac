//! `requant diff`: what two models differ in.

use crate::cli::args::place;
use crate::cli::progress::Progress;
use crate::cli::say;
use crate::cli::views::units;
use crate::gguf::{Metadata, SPLIT_COUNT, SPLIT_NO, SPLIT_TENSORS};
use crate::inspect::{Difference, difference, same_bytes};
use crate::model::{GgufModel, Model};
use crate::monitor::Monitor;
use crate::source::{Dtype, GgufSource, Source};
use anyhow::Context;
use rayon::prelude::*;
use serde_json::{Value as Json, json};
use std::path::{Path, PathBuf};

/// Compare two models: metadata, tensors, types and values.
///
/// Exit codes: 0 equal, 3 different.
#[derive(clap::Args)]
#[command(after_help = "Example:\n  requant diff model-BF16.gguf model-Q4_K_M.gguf")]
pub struct Args {
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
        if !place::is_gguf(place) {
            return Ok(Self::Model(place::model(place)?));
        }
        match GgufModel::of(place::gguf(place)?) {
            Ok(model) => {
                let model = Model::Gguf(Box::new(model));
                say::warnings(model.warnings());
                Ok(Self::Model(model))
            }
            Err(_) => Ok(Self::Stored(Box::new(place::gguf(place)?))),
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
pub fn run(args: &Args) -> anyhow::Result<bool> {
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
            progress.stop_if_asked()?;
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
    // How many files a model is in is no matter of what it is.
    keys.filter(|key| ![SPLIT_NO, SPLIT_COUNT, SPLIT_TENSORS].contains(key))
        .filter(|key| a.get(key) != b.get(key))
        .map(|key| {
            let shown = |m: &Metadata| m.get(key).map(units::value);
            (key.to_owned(), shown(a), shown(b))
        })
        .collect()
}

/// Extents as a copy has them: at least one, and none of 1 at the end.
pub fn trimmed(dims: &[u64]) -> Vec<u64> {
    let n = dims.iter().rposition(|&d| d != 1).map_or(1, |i| i + 1);
    (0..n).map(|i| dims.get(i).copied().unwrap_or(1)).collect()
}
