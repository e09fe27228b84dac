//! `requant plan`: what a conversion will write, to the byte, from headers alone.

use crate::cli::args::choices::Choices;
use crate::cli::args::output;
use crate::cli::say;
use crate::cli::views::conversion::{beside, describe};
use crate::cli::views::plan::print;
use std::path::PathBuf;

/// Show what a conversion will write: every tensor with its type, file and offset.
///
/// Reads headers alone, and some weights to estimate the time; 64 MiB are written beside the output for it and
/// removed. Fails where the disk of the
/// output, or the memory, cannot suffice.
#[derive(clap::Args)]
#[command(after_help = "Example:\n  requant plan DeepSeek-R1 --type Q4_K_M --split-max-size 40G")]
pub struct Args {
    /// Checkpoint: a folder, or a URL
    checkpoint: PathBuf,
    /// GGUF file that would be written
    #[arg(default_value = "model.gguf")]
    output: PathBuf,
    #[command(flatten)]
    choices: Choices,
    #[command(flatten)]
    output_options: output::Args,
    /// Print the plan as JSON on standard output
    #[arg(long)]
    json: bool,
}

pub fn run(args: &Args) -> anyhow::Result<()> {
    let (model, plan) = args.choices.plan(&args.checkpoint, &args.output_options, None)?;
    let name = args.choices.name();
    say::info(describe(&model, &plan, &name, &args.checkpoint, &args.output));
    say::warnings(plan.warnings());
    say::heed()?;
    let json = args.json.then(|| beside(&model, &plan));
    print(&plan, &model, &args.output, args.output_options.options()?.shard, json)
}
