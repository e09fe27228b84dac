//! `requant convert`: a checkpoint to a GGUF file, and what it cost.

use super::evaluate::{Evaluation, Room};
use super::recipe::{self, line};
use super::{calibrate, evaluate, output, place, plan, say, units};
use crate::convert::{Intermediate, Mode, Plan, RunOptions, Settings, is_lossless};
use crate::measure::{Options, Subject, Text};
use crate::model::{CheckpointModel, Given, LeftOut, Mla, Mtp};
use crate::names::in_short;
use crate::recipe::{FileType, Recipe};
use anyhow::{Context, bail};
use clap::ValueEnum;
use serde_json::{Value as Json, json};
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::Arc;

/// Convert a checkpoint folder to a GGUF file in one streaming pass.
///
/// The checkpoint's weights, whatever they are stored as, are read once and written once, without an
/// intermediate file; memory does not grow with the model. By default the output's tensors are
/// those of convert_hf_to_gguf.py --outtype bf16 followed by llama-quantize, byte for byte.
#[derive(clap::Args)]
#[command(after_help = "Example:\n  requant convert DeepSeek-R1 DeepSeek-R1-Q4_K_M.gguf \\\n    \
                        --type Q4_K_M --evaluate wiki.test.raw")]
pub struct Args {
    /// Checkpoint: a folder with config.json, tokenizer.json and safetensors files, or the URL of
    /// one (s3://, gs://, az://, https://, hf://organization/name or name@revision)
    checkpoint: PathBuf,
    /// GGUF file to write
    output: PathBuf,
    #[command(flatten)]
    choices: Choices,
    #[command(flatten)]
    calibrate: calibrate::Args,
    /// Then measure the perplexity of checkpoint and output on this text; after an interruption the
    /// same command goes on with that
    #[arg(long, value_name = "FILE", conflicts_with = "shard")]
    evaluate: Option<PathBuf>,
    /// Evaluate only the first N chunks of the text
    #[arg(long, value_name = "N", requires = "evaluate")]
    chunks: Option<usize>,
    /// Folder for the evaluation's hidden states, instead of memory; an interrupted evaluation goes
    /// on from there
    #[arg(long, value_name = "DIR", requires = "evaluate")]
    scratch: Option<PathBuf>,
    #[command(flatten)]
    output_options: output::Args,
    /// Show the plan and stop
    #[arg(long)]
    dry_run: bool,
    /// Print plan and evaluation as JSON on standard output
    #[arg(long)]
    json: bool,
}

/// What the output is to be.
#[derive(clap::Args)]
pub struct Choices {
    /// Type of the output, named as llama-quantize names it, a recipe file (*.toml), or lossless: each
    /// tensor in the smallest type that keeps its values, such as Q4_0 for INT4 in groups of 32
    #[arg(long = "type", short = 't', value_name = "TYPE", required_unless_present = "outtype",
        value_parser = target)]
    ty: Option<Target>,
    /// Write the file of convert_hf_to_gguf.py --outtype instead, without llama-quantize's mix:
    /// every matrix in this type, straight from the checkpoint's exact values
    #[arg(long, value_enum, value_name = "TYPE", conflicts_with_all = ["ty", "imatrix",
        "tensor_type", "tensor_type_file", "pure", "leave_output_tensor", "output_tensor_type",
        "token_embedding_type", "write_recipe"])]
    outtype: Option<Outtype>,
    /// Store matrices that are FP8 in the checkpoint as Q8_0, as convert_hf_to_gguf.py does
    #[arg(long, conflicts_with = "ty")]
    fp8_as_q8: bool,
    /// Name of the model (general.name)
    #[arg(long, value_name = "NAME")]
    model_name: Option<String>,
    /// JSON file with metadata to write instead of what the checkpoint says: general.author and other
    /// names, general.sampling.*, general.tags, general.languages
    #[arg(long, value_name = "FILE")]
    metadata: Option<PathBuf>,
    /// Of convert_hf_to_gguf.py, without effect: memory is bounded in any case
    #[arg(long = "no-lazy", alias = "use-temp-file", action = clap::ArgAction::Count, hide = true)]
    _lazy: u8,
    #[command(flatten)]
    recipe: recipe::Args,
    /// Precision on the way to a quantized type: bf16 gives the bytes of the two-step way, f32
    /// quantizes the exact FP8 x scale products
    #[arg(long, value_enum, default_value = "bf16")]
    intermediate: Precision,
    /// Multi-token-prediction layers: drop or keep them, or only them, for a file to draft with
    /// [default: as the reference converter does, which keeps DeepSeek-V3.2's and drops others]
    #[arg(long, value_enum)]
    mtp: Option<MtpArg>,
    /// Latent attention: split into attn_k_b and attn_v_b, as today's files have it, or legacy, the
    /// joint attn_kv_b of files from before April 2025
    #[arg(long, value_enum, default_value = "split")]
    mla: MlaArg,
    /// Name of the pre-tokenizer (tokenizer.ggml.pre), if it is not recognised
    #[arg(long, value_name = "NAME")]
    tokenizer_pre: Option<String>,
}

/// What `--type` may say.
#[derive(Clone)]
enum Target {
    Recipe(Arc<Recipe>),
    Lossless,
}

fn target(text: &str) -> Result<Target, String> {
    match text.eq_ignore_ascii_case(LOSSLESS) {
        true => Ok(Target::Lossless),
        false => recipe::recipe(text).map(Target::Recipe),
    }
}

const LOSSLESS: &str = "lossless";

/// Precision on the way to a quantized type.
#[derive(Clone, Copy, ValueEnum)]
pub enum Precision {
    Bf16,
    F32,
}

/// The types that convert_hf_to_gguf.py writes.
#[derive(Clone, Copy, ValueEnum)]
#[value(rename_all = "snake_case")]
enum Outtype {
    F32,
    F16,
    Bf16,
    #[value(name = "q8_0")]
    Q8_0,
    #[value(name = "tq1_0")]
    Tq1_0,
    #[value(name = "tq2_0")]
    Tq2_0,
    /// The checkpoint's own 16-bit type
    Auto,
}

#[derive(Clone, Copy, ValueEnum)]
enum MtpArg {
    Drop,
    Keep,
    Only,
}

#[derive(Clone, Copy, ValueEnum)]
enum MlaArg {
    Split,
    Legacy,
}

impl Choices {
    /// Opens a checkpoint and plans its conversion.
    pub fn plan(
        &self,
        checkpoint: &Path,
        output: &output::Args,
        calibrated: Option<&calibrate::Prepared>,
    ) -> anyhow::Result<(CheckpointModel, Plan)> {
        let mtp = match self.mtp {
            Some(MtpArg::Drop) => Mtp::Drop,
            Some(MtpArg::Keep) => Mtp::Keep,
            Some(MtpArg::Only) => Mtp::Only,
            None => Mtp::Usual,
        };
        let mla = match self.mla {
            MlaArg::Split => Mla::Split,
            MlaArg::Legacy => Mla::Legacy,
        };
        let mut model = CheckpointModel::open_as(place::folder(checkpoint)?, mtp, mla)?;
        model.set_simd(self.recipe.simd());
        let importance = self.recipe.importance()?;
        let (recipe, mode) = match (self.outtype, &self.ty) {
            (Some(outtype), _) => {
                model.keep_blocks()?;
                (Arc::new(Recipe::of(outtype.file_type(&model))), Mode::Convert)
            }
            (None, Some(Target::Recipe(recipe))) => (recipe.clone(), Mode::Quantize),
            (None, Some(Target::Lossless)) => {
                if importance.is_some() || calibrated.is_some() || self.recipe.chooses_types() {
                    bail!(
                        "--type lossless takes no other types, and nothing that weighs or rounds"
                    );
                }
                model.keep_exact()?;
                (Arc::new(Recipe::of(FileType::F32)), Mode::Lossless)
            }
            (None, None) => bail!("neither --type nor --outtype is given"),
        };
        let settings = Settings {
            recipe,
            write_recipe: self.recipe.write_recipe,
            notes: calibrated.map(calibrate::Prepared::notes).unwrap_or_default(),
            mode,
            given: Given::read(self.model_name.clone(), self.metadata.as_deref())?,
            fp8_as_q8: self.fp8_as_q8,
            prune_layers: self.recipe.prune_layers(),
            override_kv: self.recipe.override_kv(),
            options: self.recipe.options(importance.is_some() || calibrated.is_some())?,
            intermediate: match self.intermediate {
                Precision::Bf16 => Intermediate::Bf16,
                Precision::F32 => Intermediate::F32,
            },
            tokenizer_pre: self.tokenizer_pre.clone(),
            threads: output.threads(),
            importance,
            allow_requantize: false,
            simd: self.recipe.simd(),
            check: self.recipe.check,
            split: output.split(false)?,
            memory: output.memory(),
        };
        let plan = Plan::of_checkpoint(&model, &settings)?;
        Ok((model, plan))
    }

    /// What was asked for.
    pub fn name(&self) -> String {
        match (&self.ty, self.outtype.and_then(|o| o.to_possible_value())) {
            (Some(Target::Recipe(recipe)), _) => recipe.name().to_owned(),
            (Some(Target::Lossless), _) => LOSSLESS.to_owned(),
            (None, Some(outtype)) => outtype.get_name().to_owned(),
            (None, None) => String::new(),
        }
    }
}

impl Outtype {
    fn file_type(self, model: &CheckpointModel) -> FileType {
        match self {
            Self::F32 => FileType::F32,
            Self::F16 => FileType::F16,
            Self::Bf16 => FileType::BF16,
            Self::Q8_0 => FileType::Q8_0,
            Self::Tq1_0 => FileType::TQ1_0,
            Self::Tq2_0 => FileType::TQ2_0,
            Self::Auto => {
                model.checkpoint().half_type().and_then(FileType::of_type).unwrap_or(FileType::F16)
            }
        }
    }
}

pub fn run(args: &Args) -> anyhow::Result<()> {
    // Text and folder are looked at first: a typo in their names should not cost a conversion.
    let measured = Room::in_folder(args.scratch.clone());
    let measured = measured.apply(Options { chunks: args.chunks, ..Options::default() });
    measured.check()?;
    let text = args.evaluate.as_deref().map(Text::read).transpose()?;
    let pre = args.choices.tokenizer_pre.as_deref();
    let calibrated = args.calibrate.prepare(&args.checkpoint, pre)?;
    let calibrated = calibrated.as_ref();
    let (model, plan) = args.choices.plan(&args.checkpoint, &args.output_options, calibrated)?;
    say::info(describe(&model, &plan, &args.choices.name(), &args.checkpoint, &args.output));
    say::warnings(plan.warnings());
    say::heed()?;
    let keep_journal = text.is_some();
    let options = RunOptions { keep_journal, ..args.output_options.options()? };
    if args.dry_run {
        let beside = beside(&model, &plan);
        return plan::print(
            &plan,
            &model,
            &args.output,
            options.shard,
            args.json.then_some(beside),
        );
    }
    let beside = beside(&model, &plan);
    let rounding = match calibrated {
        None => {
            args.output_options.run("convert", &plan, &model, &args.output, options)?;
            Json::Null
        }
        Some(calibrated) => {
            let simd = args.choices.recipe.simd();
            let run =
                |output: &output::Output| calibrated.run("convert", &plan, &model, output, simd);
            args.output_options.run_with(&plan, &model, &args.output, options, run)?
        }
    };
    let evaluation = match text {
        Some(text) => {
            let first = plan.path(0, &args.output);
            let tokenizer_pre = args.choices.tokenizer_pre.clone();
            let (threads, simd) = (plan.threads(), args.choices.recipe.simd());
            let options = Options { threads, simd, tokenizer_pre, ..measured.clone() };
            let found = evaluate_both(args, &first, model, &text, &options);
            Some(found.map_err(|error| complete(args, &first, &error))?)
        }
        None => None,
    };
    if args.json {
        let mut json = json!({
            "output": args.output,
            "file_bytes": plan.file_size(),
            "weights": plan.n_weights(),
            "bits_per_weight": plan.bits_per_weight(),
            "peak_memory_bound": plan.peak_memory(),
            "rounding": rounding,
            "evaluation": evaluation.as_ref().map(Evaluation::json),
        });
        plan::merge(&mut json, beside);
        say::json(json);
    } else if let Some(evaluation) = &evaluation {
        println!("{}", evaluation.table());
    }
    if evaluation.is_some() {
        Room::finish(&measured);
        plan.forget(&args.output, options)?;
    }
    Ok(())
}

/// An error after the conversion, with what is left to do.
fn complete(args: &Args, first: &Path, error: &anyhow::Error) -> anyhow::Error {
    let from = match args.scratch {
        Some(_) => "where it was",
        None => "from its beginning; with --scratch DIR it would go on where it was",
    };
    anyhow::anyhow!(
        "{}; {} is complete, and the same command evaluates it {from}",
        super::errors::describe(error),
        first.display()
    )
}

fn evaluate_both(
    args: &Args,
    first: &Path,
    model: CheckpointModel,
    text: &Text,
    options: &Options,
) -> anyhow::Result<Evaluation> {
    // The forward pass has today's layout alone, and factors multiplied in.
    drop(model);
    let mut source = place::model(&args.checkpoint)?;
    let mut result = crate::model::Model::open(first, Mtp::Drop)
        .with_context(|| format!("reading {} back", first.display()))?;
    for model in [&mut source, &mut result] {
        model.set_simd(options.simd);
    }
    let source = Subject { path: &args.checkpoint, model: &source };
    let result = Subject { path: first, model: &result };
    evaluate::compare(("source", source), (&args.choices.name(), result), text, options)
}

/// The plan as people read it.
pub fn describe(
    model: &CheckpointModel,
    plan: &Plan,
    name: &str,
    path: &Path,
    output: &Path,
) -> String {
    let mut out = String::new();
    let hparams = model.hparams();
    let checkpoint = model.checkpoint();
    let source = format!(
        "{} ({}, {} layers, {} shards, {})",
        path.display(),
        hparams.arch.name(),
        hparams.n_layer,
        checkpoint.n_shards(),
        units::bytes(checkpoint.n_bytes())
    );
    line(&mut out, "source", &source);
    recipe::describe(&mut out, plan, output, name);
    let left_out = model.left_out();
    let mtp = left_out.get(&LeftOut::Mtp).map_or(0, Vec::len);
    match (hparams.n_nextn, mtp) {
        (0, 0) => {}
        (0, n) => {
            line(&mut out, "MTP layer", &format!("dropped with {n} tensors; --mtp keep stores it"))
        }
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
        let text = format!("{n} tensors as {ty}, code for code, {weights} weights");
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
