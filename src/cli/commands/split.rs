//! `requant split` and `requant merge`: GGUF models in other files, bytes as they are.

use crate::cli::args::operands::Destination;
use crate::cli::args::output::{self, Resources, Writing};
use crate::cli::bad_usage;
use crate::cli::views::plan;
use crate::convert::{Ladder, Mode, Plan, Settings, SplitBy};
use crate::recipe::FileType;
use crate::source::GgufSource;
use std::path::PathBuf;

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
    writing: Writing,
    #[command(flatten)]
    resources: Resources,
}

pub fn split(args: &SplitArgs) -> anyhow::Result<()> {
    let options = &args.output_options;
    let Some(split) = options.cutting.split(false)? else {
        return Err(bad_usage("say with --split-max-size or --split-max-tensors where to cut"));
    };
    let source = GgufSource::open(&args.input)?;
    let plan = regrouped(&source, Some(split), &options.resources)?;
    let ladder = Ladder::of(&plan, args.output.path());
    let run_options = options.options()?;
    match args.dry_run {
        true => plan::print(&ladder, &source, run_options.shard, true, None, None),
        false => options.run("split", &ladder, &source, &[], run_options, None).map(drop),
    }
}

pub fn merge(args: &MergeArgs) -> anyhow::Result<()> {
    let source = GgufSource::open(&args.input)?;
    let plan = regrouped(&source, None, &args.resources)?;
    let ladder = Ladder::of(&plan, args.output.path());
    args.writing.run(&ladder, &source, &[], args.writing.options(None), |options| {
        output::write("merge", &ladder, &source, options)
    })
}

fn regrouped(
    source: &GgufSource,
    split: Option<SplitBy>,
    resources: &Resources,
) -> anyhow::Result<Plan> {
    let settings = Settings {
        mode: Mode::Regroup,
        threads: resources.threads(),
        split,
        memory: resources.memory(),
        ..Settings::new(FileType::F32)
    };
    Ok(Plan::of_gguf(source, &settings)?)
}
