//! `requant convert`: a checkpoint to a GGUF file, and what it cost.

use super::evaluate::{Evaluation, Room};
use super::recipe::{self, line};
use super::{calibrate, evaluate, output, place, plan, say, units};
use crate::convert::{Intermediate, Mode, Plan, RunOptions, Settings};
use crate::measure::{Options, Subject, Text};
use crate::model::{CheckpointModel, LeftOut, Mla, Mtp};
use crate::recipe::{FileType, Recipe};
use anyhow::{Context, bail};
use clap::ValueEnum;
use serde_json::{Value as Json, json};
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::Arc;

/// Convert a checkpoint folder to a GGUF file in one streaming pass.
///
/// The checkpoint's FP8, BF16, F16 or F32 weights are read once and written once, without an
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
    /// Type of the output, named as llama-quantize names it, or a recipe file (*.toml)
    #[arg(long = "type", short = 't', value_name = "TYPE", required_unless_present = "outtype",
        value_parser = recipe::recipe)]
    ty: Option<Arc<Recipe>>,
    /// Write the file of convert_hf_to_gguf.py --outtype instead, without llama-quantize's mix:
    /// every matrix in this type, straight from the checkpoint's exact values
    #[arg(long, value_enum, value_name = "TYPE", conflicts_with_all = ["ty", "imatrix",
        "tensor_type", "tensor_type_file", "pure", "leave_output_tensor", "output_tensor_type",
        "token_embedding_type", "write_recipe"])]
    outtype: Option<Outtype>,
    #[command(flatten)]
    recipe: recipe::Args,
    /// Precision on the way to a quantized type: bf16 gives the bytes of the two-step way, f32
    /// quantizes the exact FP8 x scale products
    #[arg(long, value_enum, default_value = "bf16")]
    intermediate: Precision,
    /// Multi-token-prediction layers: drop them, as the reference converter does, or keep them
    #[arg(long, value_enum, default_value = "drop")]
    mtp: MtpArg,
    /// Latent attention: split into attn_k_b and attn_v_b, as today's files have it, or legacy, the
    /// joint attn_kv_b of files from before April 2025
    #[arg(long, value_enum, default_value = "split")]
    mla: MlaArg,
    /// Name of the pre-tokenizer (tokenizer.ggml.pre), if it is not recognised
    #[arg(long, value_name = "NAME")]
    tokenizer_pre: Option<String>,
}

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
            MtpArg::Drop => Mtp::Drop,
            MtpArg::Keep => Mtp::Keep,
        };
        let mla = match self.mla {
            MlaArg::Split => Mla::Split,
            MlaArg::Legacy => Mla::Legacy,
        };
        let mut model = CheckpointModel::open_as(place::folder(checkpoint)?, mtp, mla)?;
        model.set_simd(self.recipe.simd());
        if self.outtype.is_some() {
            model.keep_blocks()?;
        }
        let importance = self.recipe.importance()?;
        let (recipe, mode) = match (self.outtype, &self.ty) {
            (Some(outtype), _) => (Arc::new(Recipe::of(outtype.file_type(&model))), Mode::Convert),
            (None, Some(recipe)) => (recipe.clone(), Mode::Quantize),
            (None, None) => bail!("neither --type nor --outtype is given"),
        };
        let settings = Settings {
            recipe,
            write_recipe: self.recipe.write_recipe,
            notes: calibrated.map(calibrate::Prepared::notes).unwrap_or_default(),
            mode,
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
            (Some(recipe), _) => recipe.name().to_owned(),
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
        let beside = left_out(&model);
        return plan::print(
            &plan,
            &model,
            &args.output,
            options.shard,
            args.json.then_some(beside),
        );
    }
    let left_out = left_out(&model);
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
        plan::merge(&mut json, left_out);
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

/// What of the checkpoint has no place in the output, for programs.
pub fn left_out(model: &CheckpointModel) -> Json {
    let counts = model.left_out().iter().map(|(kind, names)| (kind.name(), names.len()));
    let missing: Vec<&Path> = model.checkpoint().missing_files().collect();
    json!({ "left_out": counts.collect::<BTreeMap<_, _>>(), "missing_files": missing })
}
