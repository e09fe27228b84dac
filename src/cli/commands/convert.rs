//! `requant convert`: a checkpoint to a GGUF file, and what it cost.

use crate::cli::args::choices::Choices;
use crate::cli::args::measure::Room;
use crate::cli::args::operands::Operands;
use crate::cli::args::{calibrate, output, place};
use crate::cli::views::conversion::{beside, describe};
use crate::cli::views::evaluation::{self, Evaluation};
use crate::cli::views::plan;
use crate::cli::{bad_usage, errors, say};
use crate::convert::RunOptions;
use crate::measure::{Options, Subject, Text};
use crate::model::{CheckpointModel, Mtp};
use anyhow::Context;
use serde_json::json;
use std::path::{Path, PathBuf};

/// Convert a checkpoint folder to a GGUF file in one streaming pass.
///
/// The checkpoint's weights, whatever they are stored as, are read once and written once, without an
/// intermediate file; memory does not grow with the model. By default the output's tensors are
/// those of convert_hf_to_gguf.py --outtype bf16 followed by llama-quantize, byte for byte.
#[derive(clap::Args)]
#[command(
    override_usage = "requant convert [OPTIONS] <CHECKPOINT> <OUTPUT> [TYPE]",
    after_help = "Examples:\n  requant convert DeepSeek-R1 DeepSeek-R1-Q4_K_M.gguf \\\n    \
                        --type Q4_K_M --evaluate wiki.test.raw\n  requant convert DeepSeek-R1 R1-GGUF \\\n    \
                        --types Q8_0,Q6_K,Q5_K_M,Q4_K_M,IQ4_XS --split-max-size 40G --manifest"
)]
pub struct Args {
    /// Checkpoint: a folder with config.json, tokenizer.json and safetensors files, or the URL of
    /// one (s3://, gs://, az://, https://, hf://organization/name or name@revision)
    checkpoint: PathBuf,
    #[command(flatten)]
    operands: Operands,
    #[command(flatten)]
    choices: Choices,
    #[command(flatten)]
    calibrate: calibrate::Args,
    /// Then measure the perplexity of checkpoint and output on this text; after an interruption the
    /// same command goes on with that
    #[arg(long, value_name = "FILE", conflicts_with_all = ["shard", "types"],
          help_heading = "Evaluation")]
    evaluate: Option<PathBuf>,
    /// Evaluate only the first N chunks of the text
    #[arg(long, value_name = "N", requires = "evaluate", help_heading = "Evaluation")]
    chunks: Option<usize>,
    /// Folder for the evaluation's hidden states, instead of memory; an interrupted evaluation goes
    /// on from there
    #[arg(long, value_name = "DIR", requires = "evaluate", help_heading = "Evaluation")]
    scratch: Option<PathBuf>,
    #[command(flatten)]
    output_options: output::Args,
    /// Show the plan and stop
    #[arg(long, help_heading = "Results")]
    dry_run: bool,
    /// Print plan and evaluation as JSON on standard output
    #[arg(long, help_heading = "Results")]
    json: bool,
}

pub fn run(mut args: Box<Args>) -> anyhow::Result<()> {
    let output = args.choices.take_up(&args.operands)?.ok_or_else(|| {
        bad_usage("the output is missing: requant convert CHECKPOINT OUTPUT TYPE")
    })?;
    let (args, output) = (&*args, &*output);
    // Text and folder are looked at first: a typo in their names should not cost a conversion.
    let measured = Room::in_folder(args.scratch.clone());
    let measured = measured.apply(Options { chunks: args.chunks, ..Options::default() });
    measured.check()?;
    let text = args.evaluate.as_deref().map(Text::read).transpose()?;
    let Args { checkpoint, choices, output_options, .. } = args;
    let (pre, is_ladder) = (choices.tokenizer_pre(), choices.is_ladder());
    let calibrated =
        args.calibrate.prepare(checkpoint, choices.mtp(), pre, is_ladder, choices.simd())?;
    let calibrated = calibrated.as_ref();
    let (model, outputs) = choices.plan(
        checkpoint,
        output,
        output_options.planning(),
        args.calibrate.how(calibrated),
    )?;
    let ladder = outputs.to_write()?;
    let plan = ladder.rungs()[0].plan;
    let keep_journal = text.is_some();
    let options = RunOptions { keep_journal, ..output_options.options()? };
    say::info(describe(&model, &ladder, &choices.name(), checkpoint, options.shard));
    say::warnings(&outputs.warnings());
    say::heed()?;
    let beside = beside(&model, plan);
    if args.dry_run {
        let cost = calibrated
            .map(|text| text.cost(plan, args.output_options.resources.memory()))
            .transpose()?;
        let json = args.json.then_some(beside);
        return plan::print(&ladder, &model, options.shard, true, cost, json);
    }
    let made_with = choices.ingredients(&model, calibrated);
    let rounding =
        output_options.run("convert", &ladder, &model, &made_with, options, calibrated)?;
    if choices.is_ladder() {
        if args.json {
            let mut json = plan::ladder_json(&ladder, options.shard);
            plan::merge(&mut json, beside);
            say::json(json);
        }
        return Ok(());
    }
    let evaluation = match text {
        Some(text) => {
            let first = plan.path(0, output);
            let tokenizer_pre = choices.tokenizer_pre().map(str::to_owned);
            let (threads, simd) = (plan.threads(), choices.simd());
            let options = Options { threads, simd, tokenizer_pre, ..measured.clone() };
            let found = evaluate_both(args, &first, model, &text, &options);
            Some(found.map_err(|error| complete(args, &first, &error))?)
        }
        None => None,
    };
    if args.json {
        let mut json = json!({
            "version": 1,
            "output": output,
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
        ladder.forget(options)?;
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
        errors::describe(error),
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
    evaluation::compare(("source", source), (&args.choices.name(), result), text, options)
}
