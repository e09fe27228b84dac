//! `requant split` and `requant merge`: GGUF models in other files, bytes as they are.

use crate::cli::args::operands::Destination;
use crate::cli::args::output;
use crate::cli::bad_usage;
use crate::cli::views::plan;
use crate::convert::{Ladder, Mode, Plan, Settings};
use crate::recipe::FileType;
use crate::source::GgufSource;
use std::path::{Path, PathBuf};

/// Cut a GGUF file into several, byte for byte as llama-gguf-split does.
///
/// OUTPUT names the parts: model becomes model-00001-of-00003.gguf.
#[derive(clap::Args)]
#[command(after_help = "Example:\n  requant split model.gguf model --split-max-size 40G")]
pub struct SplitArgs {
    /// GGUF file to read
    input: PathBuf,
    #[command(flatten)]
    output: Destination,
    #[command(flatten)]
    output_options: output::Args,
    /// Show the plan and stop
    #[arg(long, help_heading = "Results")]
    dry_run: bool,
}

/// Join the files of a split model, byte for byte as llama-gguf-split --merge does.
#[derive(clap::Args)]
#[command(after_help = "Example:\n  requant merge model-00001-of-00003.gguf model.gguf")]
pub struct MergeArgs {
    /// First file of the split model
    input: PathBuf,
    #[command(flatten)]
    output: Destination,
    #[command(flatten)]
    output_options: output::Args,
}

pub fn split(args: &SplitArgs) -> anyhow::Result<()> {
    if args.output_options.split(false)?.is_none() {
        return Err(bad_usage("say with --split-max-size or --split-max-tensors where to cut"));
    }
    regroup("split", &args.input, args.output.path(), &args.output_options, args.dry_run)
}

pub fn merge(args: &MergeArgs) -> anyhow::Result<()> {
    if args.output_options.split(false)?.is_some() {
        return Err(bad_usage("merge writes one file; use split to cut a model otherwise"));
    }
    regroup("merge", &args.input, args.output.path(), &args.output_options, false)
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
    let ladder = Ladder::of(&plan, output);
    match dry_run {
        true => plan::print(&ladder, &source, run_options.shard, true, None, None),
        false => options.run(what, &ladder, &source, &[], run_options),
    }
}
