//! `requant plan`: what a conversion will write, to the byte, from headers alone.

use crate::cli::args::calibrate::{self, Prepared};
use crate::cli::args::choices::Choices;
use crate::cli::args::operands::Operands;
use crate::cli::args::output::{Cutting, Resources};
use crate::cli::args::place;
use crate::cli::say;
use crate::cli::views::conversion::{beside, describe};
use crate::cli::views::plan::{of_file, print};
use crate::convert::{Ladder, Outputs, Plan, Shard};
use crate::source::Source;
use serde_json::Value;
use std::path::PathBuf;

/// Show what a conversion will write, and what that takes.
///
/// Reads headers alone, and some weights to estimate the time; 64 MiB are written beside the output for it and
/// removed. Warns where the disk cannot suffice, and fails where the memory cannot. Mixes that need importances
/// are planned without them as well. Of a GGUF file, here or behind a URL, it shows what `requant quantize` will
/// write.
#[derive(clap::Args)]
#[command(
    override_usage = "requant plan [OPTIONS] <CHECKPOINT> [OUTPUT] [TYPE]",
    after_help = "Examples:\n  requant plan DeepSeek-R1 --type Q4_K_M --split-max-size 40G\n  \
                        requant plan DeepSeek-R1 --type Q3_K_M --calibrate calibration.txt\n  \
                        requant plan DeepSeek-R1 R1-GGUF --types Q8_0,Q6_K,Q5_K_M,Q4_K_M,IQ4_XS\n  \
                        requant plan hf://unsloth/DeepSeek-R1-GGUF/DeepSeek-R1.BF16/DeepSeek-R1.BF16-00001-of-00030.gguf Q4_K_M"
)]
pub struct Args {
    /// Checkpoint or GGUF file: a path, or a URL
    checkpoint: PathBuf,
    #[command(flatten)]
    operands: Operands,
    #[command(flatten)]
    choices: Choices,
    #[command(flatten)]
    calibrate: calibrate::Args,
    #[command(flatten)]
    cutting: Cutting,
    #[command(flatten)]
    resources: Resources,
    /// Show every tensor
    #[arg(long, help_heading = "Results")]
    tensors: bool,
    /// Print the plan as JSON on standard output
    #[arg(long, help_heading = "Results")]
    json: bool,
}

pub fn run(mut args: Box<Args>) -> anyhow::Result<()> {
    let output = args.choices.take_up(&args.operands)?.unwrap_or_else(|| "model.gguf".into());
    args.choices.assume();
    let Args { checkpoint, choices, cutting, resources, .. } = &*args;
    let (pre, is_ladder) = (choices.tokenizer_pre(), choices.is_ladder());
    let calibrated =
        args.calibrate.prepare(checkpoint, choices.mtp(), pre, is_ladder, choices.simd())?;
    let how = (cutting, resources);
    let rounding = args.calibrate.how(calibrated.as_ref());
    if place::is_gguf(checkpoint) {
        let (source, outputs) = choices.plan_gguf(checkpoint, &output, how, rounding)?;
        let about =
            |ladder: &Ladder, shard| of_file(&source, ladder, &choices.name(), checkpoint, shard);
        return show(&args, &source, &outputs, calibrated, about, |_| Value::default());
    }
    let (model, outputs) = choices.plan(checkpoint, &output, how, rounding)?;
    let about =
        |ladder: &Ladder, shard| describe(&model, ladder, &choices.name(), checkpoint, shard);
    show(&args, &model, &outputs, calibrated, about, |plan| beside(&model, plan))
}

/// Shows plans, below what is said about their source.
fn show(
    args: &Args,
    source: &dyn Source,
    outputs: &Outputs,
    calibrated: Option<Prepared>,
    about: impl Fn(&Ladder, Option<Shard>) -> String,
    json: impl Fn(&Plan) -> Value,
) -> anyhow::Result<()> {
    let (ladder, shard) = (outputs.to_write()?, args.cutting.shard()?);
    let plan = ladder.rungs()[0].plan;
    say::warnings(&outputs.warnings());
    say::heed()?;
    let json = args.json.then(|| json(plan));
    if json.is_none() {
        print!("{}", about(&ladder, shard));
    }
    let cost = calibrated.map(|text| text.cost(plan, args.resources.memory())).transpose()?;
    print(&ladder, source, shard, args.tensors, cost, json)
}
