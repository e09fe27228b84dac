//! `requant quantize`: a GGUF file to another type.

use super::progress::Progress;
use super::recipe::{self, line};
use super::{threads, units};
use crate::convert::{Intermediate, Plan, Settings};
use crate::recipe::FileType;
use crate::source::GgufSource;
use std::path::PathBuf;

/// Quantize a GGUF file, byte for byte as llama-quantize does.
#[derive(clap::Args)]
#[command(
    after_help = "Example:\n  requant quantize model-BF16.gguf model-IQ4_XS.gguf IQ4_XS \\\n    \
                        --imatrix imatrix.gguf"
)]
pub struct Args {
    /// GGUF file to read
    input: PathBuf,
    /// GGUF file to write
    output: PathBuf,
    /// Type of the output, named as llama-quantize names it
    #[arg(value_name = "TYPE")]
    file_type: FileType,
    #[command(flatten)]
    recipe: recipe::Args,
    /// Quantize tensors that are quantized already, through their f32 values
    #[arg(long)]
    allow_requantize: bool,
    /// Show the plan and stop
    #[arg(long)]
    dry_run: bool,
    /// Replace an existing output
    #[arg(long, short = 'f')]
    force: bool,
    /// Threads [default: all processors]
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u16).range(1..=1024))]
    threads: Option<u16>,
    /// Show neither plan nor progress
    #[arg(long, short = 'q')]
    quiet: bool,
}

pub fn run(args: &Args) -> anyhow::Result<()> {
    let source = GgufSource::open(&args.input)?;
    let importance = args.recipe.importance()?;
    let settings = Settings {
        file_type: args.file_type,
        recipe: args.recipe.options(importance.is_some()),
        intermediate: Intermediate::default(),
        tokenizer_pre: None,
        threads: threads(args.threads.map(usize::from)),
        importance,
        allow_requantize: args.allow_requantize,
        simd: args.recipe.simd(),
        check: args.recipe.check,
    };
    let plan = Plan::of_gguf(&source, &settings)?;
    if !args.quiet {
        let mut out = String::new();
        let size = units::bytes(source.file().file_size());
        line(&mut out, "source", &format!("{} ({size})", args.input.display()));
        recipe::describe(&mut out, &plan, &args.output, &args.file_type.to_string());
        eprint!("{out}");
    }
    if args.dry_run {
        return Ok(());
    }
    plan.check_output(&args.output, args.force)?;
    let progress =
        Progress::start("quantize", plan.n_weights(), "weights", plan.file_size(), args.quiet);
    plan.run(&source, &args.output, args.force, &progress)?;
    progress.finish();
    Ok(())
}
