//! `requant quantize`: a GGUF file to another type.

use super::recipe::{self, line};
use super::{output, plan, units};
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
    /// Write as many files as the source has, each with the tensors of one of them
    #[arg(long)]
    keep_split: bool,
    #[command(flatten)]
    output_options: output::Args,
    /// Show the plan and stop
    #[arg(long)]
    dry_run: bool,
    /// Print the plan as JSON on standard output
    #[arg(long, requires = "dry_run")]
    json: bool,
}

pub fn run(args: &Args) -> anyhow::Result<()> {
    let source = GgufSource::open(&args.input)?;
    let importance = args.recipe.importance()?;
    let settings = Settings {
        file_type: args.file_type,
        recipe: args.recipe.options(importance.is_some()),
        intermediate: Intermediate::default(),
        tokenizer_pre: None,
        threads: args.output_options.threads(),
        importance,
        allow_requantize: args.allow_requantize,
        simd: args.recipe.simd(),
        check: args.recipe.check,
        split: args.output_options.split(args.keep_split)?,
        memory: args.output_options.memory(),
    };
    let plan = Plan::of_gguf(&source, &settings)?;
    if !args.output_options.quiet {
        let mut out = String::new();
        let size = units::bytes(source.n_bytes());
        line(&mut out, "source", &format!("{} ({size})", args.input.display()));
        recipe::describe(&mut out, &plan, &args.output, &args.file_type.to_string());
        eprint!("{out}");
    }
    if args.dry_run {
        let options = args.output_options.options()?;
        return plan::print(&plan, &source, &args.output, options.shard, args.json);
    }
    args.output_options.run("quantize", &plan, &source, &args.output)
}
