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
#[command(
    after_help = "Examples:\n  requant plan DeepSeek-R1 --type Q4_K_M --split-max-size 40G\n  \
                        requant plan DeepSeek-R1 R1-GGUF --types Q8_0,Q6_K,Q5_K_M,Q4_K_M,IQ4_XS"
)]
pub struct Args {
    /// Checkpoint: a folder, or a URL
    checkpoint: PathBuf,
    /// GGUF file that would be written, or with --types a folder
    #[arg(default_value = "model.gguf")]
    output: PathBuf,
    #[command(flatten)]
    choices: Choices,
    #[command(flatten)]
    output_options: output::Args,
    /// Print the plan as JSON on standard output
    #[arg(long, help_heading = "Results")]
    json: bool,
}

pub fn run(args: &Args) -> anyhow::Result<()> {
    let Args { checkpoint, output, choices, output_options, .. } = args;
    let (model, outputs) = choices.plan(checkpoint, output, output_options, None)?;
    let ladder = outputs.to_write()?;
    say::info(describe(&model, &ladder, &choices.name(), checkpoint));
    say::warnings(&outputs.warnings());
    say::heed()?;
    let json = args.json.then(|| beside(&model, ladder.rungs()[0].plan));
    print(&ladder, &model, output_options.options()?.shard, json)
}
