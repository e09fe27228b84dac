//! `requant verify`: whether a file is whole, and whether it is what it claims to be.

use crate::cli::args::choices::Precision;
use crate::cli::args::instructions::Instructions;
use crate::cli::args::numbers::share;
use crate::cli::args::{output, place, types};
use crate::cli::progress::Progress;
use crate::cli::say;
use crate::cli::views::units;
use crate::convert::{
    Comparison, Input, Intermediate, MadeWith, Manifest, Naming, OfCalibration, OfImatrix, Plan,
    Settings, is_lossless, validate_blocks, zeros,
};
use crate::model::{CheckpointModel, Mla, Mtp};
use crate::names::in_short;
use crate::recipe::FileType;
use crate::source::{Dtype, GgufSource, Source, TensorMeta};
use crate::warning::{Topic, Warning};
use serde_json::json;
use std::path::{Path, PathBuf};

/// Check that a GGUF model is complete and undamaged, and that it came from a checkpoint.
///
/// Always checked: headers, that all parts of a split model are there, and every block. Where a
/// manifest lies beside the model, its hashes too. With --against, tensors are made again from the
/// checkpoint and compared byte by byte; that serves for files that other programs made as well.
///
/// Exit codes: 0 as it should be, 3 something differs, 1 what is no whole file.
#[derive(clap::Args)]
#[command(
    after_help = "Example:\n  requant verify DeepSeek-R1-Q4_K_M-00001-of-00010.gguf \\\n    \
                        --against DeepSeek-R1 --sample 5%"
)]
pub struct Args {
    /// GGUF file, or the first file of a split model
    model: PathBuf,
    /// Manifest [default: beside the model, where there is one]
    #[arg(long, value_name = "FILE")]
    manifest: Option<PathBuf>,
    /// Make the tensors again from this checkpoint, a folder or a URL, and compare
    #[arg(long, value_name = "CHECKPOINT")]
    against: Option<PathBuf>,
    /// Compare only a random share of the weights, for example 5%
    #[arg(long, value_name = "SHARE", value_parser = share, requires = "against")]
    sample: Option<f64>,
    /// Chooses the share; the same seed chooses the same weights [default: at random]
    #[arg(long, value_name = "N", requires = "sample")]
    seed: Option<u64>,
    /// Precision that the weights had on the way to their type
    #[arg(long, value_enum, default_value = "bf16", requires = "against")]
    intermediate: Precision,
    #[command(flatten)]
    recipe: types::Imatrix,
    #[command(flatten)]
    instructions: Instructions,
    #[command(flatten)]
    resources: output::Resources,
    /// Print the result as JSON on standard output
    #[arg(long, help_heading = "Results")]
    json: bool,
}

/// Whether everything that was compared is equal.
pub fn run(args: &Args) -> anyhow::Result<bool> {
    let file = place::gguf(&args.model)?;
    let threads = args.resources.threads();
    let weights: u64 = file.tensors().iter().map(|t| t.n_elements()).sum();
    let progress = Progress::start("blocks", weights, "weights", file.n_bytes());
    validate_blocks(&file, threads, &progress)?;
    progress.finish();
    let unknown: Vec<&str> = of_unknown_types(&file).map(|t| t.name.as_str()).collect();
    if !unknown.is_empty() {
        let text = format!(
            "types that this program does not know, whose blocks were not looked at: {}",
            in_short(&unknown)
        );
        say::warning(&Warning::new(Topic::Tensors, text));
    }
    say::warnings(&zeros(&file)?);
    let mut problems = Vec::new();
    let made_with = MadeWith::read(file.metadata())?;
    let manifest = check_manifest(args, &file, &mut problems)?;
    let missing = match args.against {
        Some(_) => missing(args, &made_with, manifest.as_ref().map(|(_, manifest)| manifest))?,
        None => Vec::new(),
    };
    for text in &missing {
        say::warning(&Warning::new(Topic::Imatrix, text.clone()));
    }
    let comparison = match &args.against {
        Some(checkpoint) => Some(compare(args, checkpoint, &file)?),
        None => None,
    };
    if let Some(comparison) = &comparison {
        let each = |names: &[String], what: &str| -> Vec<String> {
            names.iter().map(|name| format!("tensor `{name}` {what}")).collect()
        };
        let differing = comparison.differing.iter();
        problems.extend(differing.map(|(name, row)| format!("tensor `{name}` differs, row {row}")));
        problems.extend(each(&comparison.missing, "of the checkpoint is missing"));
        problems.extend(each(&comparison.extra, "is not in the checkpoint"));
    }
    if args.json {
        let json = json!({
            "version": 1,
            "model": args.model,
            "files": file.files().len(),
            "tensors": file.tensors().len(),
            "bytes": file.n_bytes(),
            "manifest": manifest.as_ref().map(|(path, _)| path),
            "made_with": made_with,
            "missing": missing,
            "problems": problems,
            "compared": comparison.as_ref().map(|c| json!({
                "weights": c.weights,
                "of": c.of,
                "other_metadata": c.keys,
            })),
        });
        say::json(json);
    } else {
        let manifest = manifest.as_ref().map(|(path, _)| path.as_path());
        println!("{}", describe(&file, manifest, &made_with, comparison.as_ref()));
    }
    if problems.is_empty() {
        return Ok(true);
    }
    const SHOWN: usize = 5;
    let more = match problems.len().saturating_sub(SHOWN) {
        0 => String::new(),
        more => format!("; and {more} more (--json lists all)"),
    };
    problems.truncate(SHOWN);
    say::error(format_args!("{}: {}{more}", args.model.display(), problems.join("; ")));
    Ok(false)
}

fn of_unknown_types(file: &GgufSource) -> impl Iterator<Item = &TensorMeta> {
    file.tensors().iter().filter(|t| matches!(t.dtype, Dtype::Opaque(_)))
}

/// What it takes to make the file again, and was not given.
fn missing(
    args: &Args,
    made_with: &MadeWith,
    manifest: Option<&Manifest>,
) -> anyhow::Result<Vec<String>> {
    let mut missing = Vec::new();
    let given = args.recipe.ingredients();
    if let (Some(imatrix), []) = (&made_with.imatrix, &given[..]) {
        let OfImatrix { file, .. } = imatrix;
        missing.push(format!(
            "it was made with the importance matrix {file}, without which tensors that it weighed \
             differ (--imatrix)"
        ));
    }
    if let Some(OfCalibration { file, .. }) = &made_with.calibration {
        missing.push(format!(
            "its rounding was calibrated with {file}, so that its tensors are not those of plain \
             rounding; `requant convert --calibrate` makes it again"
        ));
    }
    for ingredient in given {
        let found = Input::of(&ingredient, Naming::Base, &())?;
        let mut named = manifest.iter().flat_map(|m| &m.inputs).filter(|i| i.what == found.what);
        if let Some(expected) = named.next().filter(|expected| expected.sha256 != found.sha256) {
            let (given, name) = (ingredient.path.display(), &expected.name);
            missing.push(format!("{given} is not the manifest's {name}; give that one"));
        }
    }
    Ok(missing)
}

fn describe(
    file: &GgufSource,
    manifest: Option<&Path>,
    made_with: &MadeWith,
    comparison: Option<&Comparison>,
) -> String {
    let size = units::bytes(file.n_bytes());
    let mut out = format!(
        "structure  {} in {}, {size}, every block{} finite",
        units::of(file.tensors().len(), "tensor"),
        units::of(file.files().len(), "file"),
        if of_unknown_types(file).next().is_some() { " of a known type" } else { "" },
    );
    if let Some(manifest) = manifest {
        out += &format!("\nmanifest   {} was checked", manifest.display());
    }
    if let Some(OfImatrix { file, dataset, entries, .. }) = &made_with.imatrix {
        let n = entries.map_or(String::new(), |n| format!(", {n} entries"));
        let of = dataset.as_ref().map_or(String::new(), |dataset| format!(", from {dataset}"));
        out += &format!("\nmade with  importance matrix {file}{n}{of}");
    }
    if let Some(OfCalibration { file, .. }) = &made_with.calibration {
        out += &format!("\nmade with  rounding calibrated on {file}");
    }
    if made_with.search {
        out += "\nmade with  a wider search for scales";
    }
    if let Some(c) = comparison {
        let share = 100.0 * c.weights as f64 / c.of.max(1) as f64;
        let verdict = if c.is_same() { "all equal" } else { "not all equal" };
        let compared = units::count(c.weights as f64);
        out += &format!("\ncheckpoint {compared} weights made again ({share:.1} %), {verdict}");
        if !c.keys.is_empty() {
            out += &format!("\nmetadata   not as requant writes it: {}", c.keys.join(", "));
        }
    }
    out
}

/// Checks the manifest that is given or found, and returns it with its path.
fn check_manifest(
    args: &Args,
    file: &GgufSource,
    problems: &mut Vec<String>,
) -> anyhow::Result<Option<(PathBuf, Manifest)>> {
    let found = match &args.manifest {
        Some(path) => Some((path.clone(), Manifest::read(path)?)),
        None => place::manifest(&args.model)?,
    };
    let Some((path, manifest)) = found else { return Ok(None) };
    let progress = Progress::start("hash", file.n_bytes(), "B", 0);
    let (files, tensors) = Manifest::hash_files(file, &progress)?;
    progress.finish();
    problems.extend(manifest.differences(&files, &tensors));
    Ok(Some((path, manifest)))
}

fn compare(args: &Args, checkpoint: &Path, file: &GgufSource) -> anyhow::Result<Comparison> {
    let kept = file.tensors().iter().any(|t| t.name.contains(".nextn."));
    let mtp = match (kept, file.find("blk.0.attn_norm.weight")) {
        (false, _) => Mtp::Drop,
        (true, Some(_)) => Mtp::Keep,
        (true, None) => Mtp::Only,
    };
    let mla = match file.find("blk.0.attn_kv_b.weight") {
        Some(_) => Mla::Legacy,
        None => Mla::Split,
    };
    let mut model = CheckpointModel::open_as(place::folder(checkpoint)?, mtp, mla)?;
    model.set_simd(args.instructions.simd());
    if is_lossless(file.metadata())? {
        model.keep_exact()?;
    }
    let importance = args.recipe.importance()?;
    let settings = Settings {
        intermediate: match args.intermediate {
            Precision::Bf16 => Intermediate::Bf16,
            Precision::F32 => Intermediate::F32,
        },
        threads: args.resources.threads(),
        importance,
        simd: args.instructions.simd(),
        memory: args.resources.memory(),
        ..Settings::new(FileType::BF16)
    };
    let plan = Plan::like_file(&model, &settings, file)?;
    say::warnings(plan.warnings());
    let share = args.sample.unwrap_or(1.0);
    let seed = args.seed.unwrap_or_else(|| {
        let now = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH);
        now.map_or(0, |now| now.as_nanos() as u64)
    });
    let expected = (plan.n_weights() as f64 * share) as u64;
    let progress = Progress::start("compare", expected, "weights", 0);
    let comparison = plan.compare(&model, file, share, seed, &progress)?;
    progress.finish();
    Ok(comparison)
}
