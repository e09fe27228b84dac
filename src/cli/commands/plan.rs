//! `requant plan`: what a conversion will write, to the byte, from headers alone.

use crate::cli::args::calibrate;
use crate::cli::args::choices::Choices;
use crate::cli::args::operands::Operands;
use crate::cli::args::output::{Cutting, Resources};
use crate::cli::say;
use crate::cli::views::conversion::{beside, describe};
use crate::cli::views::plan::print;
use std::path::PathBuf;

/// Show what a conversion will write, and what that takes.
///
/// Reads headers alone, and some weights to estimate the time; 64 MiB are written beside the output for it and
/// removed. Warns where the disk cannot suffice, and fails where the memory cannot. Mixes that need importances
/// are planned without them as well.
#[derive(clap::Args)]
#[command(
    override_usage = "requant plan [OPTIONS] <CHECKPOINT> [OUTPUT] [TYPE]",
    after_help = "Examples:\n  requant plan DeepSeek-R1 --type Q4_K_M --split-max-size 40G\n  \
                        requant plan DeepSeek-R1 --type Q3_K_M --calibrate calibration.txt\n  \
                        requant plan DeepSeek-R1 R1-GGUF --types Q8_0,Q6_K,Q5_K_M,Q4_K_M,IQ4_XS"
)]
pub struct Args {
    /// Checkpoint: a folder, or a URL
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
    args.choices.assume_importances();
    let Args { checkpoint, choices, cutting, resources, .. } = &*args;
    let (pre, is_ladder) = (choices.tokenizer_pre(), choices.is_ladder());
    let calibrated = args.calibrate.prepare(checkpoint, pre, is_ladder, choices.simd())?;
    let (model, outputs) =
        choices.plan(checkpoint, &output, (cutting, resources), calibrated.as_ref())?;
    let ladder = outputs.to_write()?;
    let shard = cutting.shard()?;
    say::warnings(&outputs.warnings());
    say::heed()?;
    let json = args.json.then(|| beside(&model, ladder.rungs()[0].plan));
    if json.is_none() {
        print!("{}", describe(&model, &ladder, &choices.name(), checkpoint, shard));
    }
    let cost = calibrated.map(|text| text.cost(ladder.rungs()[0].plan));
    print(&ladder, &model, shard, args.tensors, cost, json)
}
