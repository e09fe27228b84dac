//! `requant quantize`: a GGUF file to another type.

use super::recipe::{self, line};
use super::{output, plan, say, units};
use crate::convert::{Mode, Plan, Settings};
use crate::model::split_legacy_mla;
use crate::recipe::{FileType, Recipe};
use crate::source::GgufSource;
use std::path::PathBuf;
use std::sync::Arc;

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
    /// Type of the output, named as llama-quantize names it, or a recipe file (*.toml); COPY
    /// keeps every tensor
    #[arg(value_name = "TYPE", value_parser = target)]
    target: Target,
    /// Threads, in the place where llama-quantize takes them; as --threads
    #[arg(value_name = "NTHREADS", conflicts_with = "threads",
          value_parser = clap::value_parser!(u16).range(1..=1024))]
    n_threads: Option<u16>,
    #[command(flatten)]
    recipe: recipe::Args,
    /// Quantize tensors that are quantized already, through their f32 values
    #[arg(long)]
    allow_requantize: bool,
    /// Split the joint attn_kv_b of older deepseek2 files into attn_k_b and attn_v_b. Keys are
    /// transposed, so what is quantized goes through its f32 values (with COPY, to Q8_0)
    #[arg(long, value_enum, value_name = "LAYOUT")]
    mla: Option<MlaArg>,
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

#[derive(Clone, Copy, clap::ValueEnum)]
enum MlaArg {
    Split,
}

/// A type, or none.
#[derive(Clone)]
enum Target {
    Type(Arc<Recipe>),
    Copy,
}

fn target(text: &str) -> Result<Target, String> {
    match text.eq_ignore_ascii_case("copy") {
        true => Ok(Target::Copy),
        false => recipe::recipe(text).map(Target::Type),
    }
}

pub fn run(args: &Args) -> anyhow::Result<()> {
    let mut source = GgufSource::open(&args.input)?;
    if let Some(MlaArg::Split) = args.mla {
        split_legacy_mla(&mut source)?;
    }
    let importance = args.recipe.importance()?;
    let (recipe, mode, name) = match &args.target {
        Target::Type(recipe) => (recipe.clone(), Mode::Quantize, recipe.name()),
        Target::Copy => (Arc::new(Recipe::of(FileType::F32)), Mode::Copy, "COPY"),
    };
    let settings = Settings {
        recipe,
        write_recipe: args.recipe.write_recipe,
        mode,
        prune_layers: args.recipe.prune_layers(),
        override_kv: args.recipe.override_kv(),
        options: args.recipe.options(importance.is_some())?,
        threads: args.n_threads.map_or_else(|| args.output_options.threads(), usize::from),
        importance,
        allow_requantize: args.allow_requantize,
        simd: args.recipe.simd(),
        check: args.recipe.check,
        split: args.output_options.split(args.keep_split)?,
        memory: args.output_options.memory(),
        ..Settings::new(FileType::F32)
    };
    let plan = Plan::of_gguf(&source, &settings)?;
    let mut out = String::new();
    let size = units::bytes(source.n_bytes());
    line(&mut out, "source", &format!("{} ({size})", args.input.display()));
    recipe::describe(&mut out, &plan, &args.output, name);
    say::info(out);
    say::warn(recipe::surprises(&plan));
    if args.dry_run {
        let options = args.output_options.options()?;
        return plan::print(&plan, &source, &args.output, options.shard, args.json);
    }
    args.output_options.run("quantize", &plan, &source, &args.output)
}
