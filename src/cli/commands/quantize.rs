//! `requant quantize`: a GGUF file to another type.

use crate::cli::args::ladder::Outputs;
use crate::cli::args::types::{self, MIXES, recipe};
use crate::cli::args::{calibrate, output, place};
use crate::cli::views::plan::{self, line, summary};
use crate::cli::views::units;
use crate::cli::{bad_usage, say};
use crate::convert::{Mode, Plan, Settings};
use crate::model::{join_legacy_mla, split_legacy_mla};
use crate::recipe::{FileType, Recipe};
use crate::source::GgufSource;
use std::path::PathBuf;
use std::sync::Arc;

/// MiB that are granted beside the rows where only theirs are limited.
const OTHER_MEMORY: u64 = 256;

/// Quantize a GGUF file, byte for byte as llama-quantize does.
#[derive(clap::Args)]
#[command(
    override_usage = "requant quantize [OPTIONS] <INPUT> [OUTPUT] <TYPE> [NTHREADS]",
    after_help = "Examples:\n  requant quantize model-BF16.gguf model-IQ4_XS.gguf IQ4_XS \\\n    \
                        --imatrix imatrix.gguf\n  requant quantize model-BF16.gguf model-GGUF \\\n    \
                        --types Q8_0,Q6_K,Q4_K_M,IQ4_XS --imatrix imatrix.gguf"
)]
pub struct Args {
    /// GGUF file to read
    input: PathBuf,
    /// GGUF file to write; where it is left out, ggml-model-TYPE.gguf beside the input. With --types, the
    /// folder of several
    #[arg(value_name = "OUTPUT")]
    second: PathBuf,
    /// Type of the output, named as llama-quantize names it, or a recipe file (*.toml); COPY
    /// keeps every tensor
    #[arg(value_name = "TYPE")]
    third: Option<String>,
    /// Threads, in the place where llama-quantize takes them; as --threads
    #[arg(value_name = "NTHREADS")]
    fourth: Option<String>,
    /// Types of several outputs instead of TYPE, which are written into the folder OUTPUT in one pass: the
    /// source is read once, and each file is as if written by itself
    #[arg(long, value_name = "TYPE,...", value_delimiter = ',', value_parser = MIXES,
          hide_possible_values = true)]
    types: Vec<Arc<Recipe>>,
    #[command(flatten)]
    recipe: types::Args,
    #[command(flatten)]
    calibrate: calibrate::Args,
    /// Quantize tensors that are quantized already, through their f32 values
    #[arg(long, help_heading = "Conversion")]
    allow_requantize: bool,
    /// Split the joint attn_kv_b of older deepseek2 files into attn_k_b and attn_v_b, or join these
    /// (legacy). Keys are transposed, so what is quantized goes through its f32 values (with COPY, to
    /// Q8_0)
    #[arg(long, value_enum, value_name = "LAYOUT", help_heading = "Conversion")]
    mla: Option<MlaArg>,
    /// Memory for the rows of tensors, in MiB, as llama-quantize takes it; --memory limits the
    /// whole program's
    #[arg(long, value_name = "MiB", conflicts_with = "memory", help_heading = "Machine",
          value_parser = clap::value_parser!(u64).range(1..1 << 40))]
    max_buffer_size: Option<u64>,
    /// Write as many files as the source has, each with the tensors of one of them
    #[arg(long, help_heading = "Output")]
    keep_split: bool,
    #[command(flatten)]
    output_options: output::Args,
    /// Show the plan and stop
    #[arg(long, help_heading = "Results")]
    dry_run: bool,
    /// Print the plan as JSON on standard output
    #[arg(long, requires = "dry_run", help_heading = "Results")]
    json: bool,
}

#[derive(Clone, Copy, clap::ValueEnum)]
enum MlaArg {
    Split,
    Legacy,
}

/// A type, or none, or several.
enum Target {
    Type(Arc<Recipe>),
    Copy,
    Ladder,
}

/// What follows the input: as for llama-quantize, the output may be missing.
struct Operands {
    output: PathBuf,
    target: Target,
    n_threads: Option<usize>,
}

impl Args {
    fn operands(&self) -> Result<Operands, String> {
        let named = self.second.to_str().and_then(|word| Some((word, target(word).ok()?)));
        let (output, target, threads) = match named {
            _ if !self.types.is_empty() => {
                if self.fourth.is_some() {
                    return Err("--types stands instead of the type behind the output".to_owned());
                }
                (self.second.clone(), Target::Ladder, &self.third)
            }
            Some((word, found)) if !word.ends_with(".toml") => {
                if self.fourth.is_some() {
                    return Err(format!("`{word}` is a type, what follows it can only be threads"));
                }
                let name = match &found {
                    Target::Type(recipe) if word.parse::<u32>().is_ok() => recipe.name().to_owned(),
                    _ => word.to_ascii_uppercase(),
                };
                let output = self.input.with_file_name(format!("ggml-model-{name}.gguf"));
                (output, found, &self.third)
            }
            _ => {
                let Some(word) = &self.third else {
                    return Err(match self.second.to_str().map(target) {
                        Some(Err(error)) if self.second.extension().is_none() => error,
                        _ => "the type is missing: <INPUT> [OUTPUT] <TYPE> [NTHREADS]".to_owned(),
                    });
                };
                (self.second.clone(), target(word)?, &self.fourth)
            }
        };
        let n_threads = match threads {
            None => None,
            Some(_) if self.output_options.has_threads() => {
                return Err("threads are given twice, behind the type and by --threads".to_owned());
            }
            Some(word) => match word.parse() {
                Ok(n @ 1..=1024) => Some(n),
                _ => return Err(format!("`{word}` is no number of threads from 1 to 1024")),
            },
        };
        Ok(Operands { output, target, n_threads })
    }
}

fn target(text: &str) -> Result<Target, String> {
    match text.eq_ignore_ascii_case("copy") {
        true => Ok(Target::Copy),
        false => recipe(text).map(Target::Type),
    }
}

pub fn run(args: &Args) -> anyhow::Result<()> {
    let Operands { output, target, n_threads } = args.operands().map_err(bad_usage)?;
    place::refuse_folder(&args.input)?;
    let mut source = GgufSource::open(&args.input)?;
    source.set_simd(args.recipe.simd());
    match args.mla {
        Some(MlaArg::Split) => split_legacy_mla(&mut source)?,
        Some(MlaArg::Legacy) => join_legacy_mla(&mut source)?,
        None => {}
    }
    if matches!(target, Target::Ladder) {
        args.calibrate.refuse_ladder()?;
    }
    let calibrated = args.calibrate.prepare(&args.input, None)?;
    let importance = args.recipe.importance()?;
    let (recipe, mode, name) = match &target {
        Target::Type(recipe) => (recipe.clone(), Mode::Quantize, recipe.name()),
        Target::Copy => (Arc::new(Recipe::of(FileType::F32)), Mode::Copy, "COPY"),
        Target::Ladder => (args.types[0].clone(), Mode::Quantize, ""),
    };
    let settings = Settings {
        recipe,
        write_recipe: args.recipe.write_recipe,
        notes: calibrated.as_ref().map(calibrate::Prepared::notes).unwrap_or_default(),
        mode,
        prune_layers: args.recipe.prune_layers(),
        override_kv: args.recipe.override_kv(),
        options: args.recipe.options(importance.is_some() || calibrated.is_some())?,
        threads: n_threads.unwrap_or_else(|| args.output_options.threads()),
        importance,
        allow_requantize: args.allow_requantize,
        simd: args.recipe.simd(),
        check: args.recipe.check,
        split: args.output_options.split(args.keep_split)?,
        memory: args
            .max_buffer_size
            .map(|n| (n + OTHER_MEMORY) << 20)
            .or(args.output_options.memory()),
        ..Settings::new(FileType::F32)
    };
    let outputs = match target {
        Target::Ladder => {
            let planned = |recipe: &Arc<Recipe>| {
                let recipe = recipe.clone();
                Plan::of_gguf(&source, &Settings { recipe, ..settings.clone() })
            };
            let plans = args.types.iter().map(planned).collect::<Result<_, _>>()?;
            Outputs::ladder(plans, &output, &args.input)
        }
        _ => Outputs::one(Plan::of_gguf(&source, &settings)?, &output),
    };
    let ladder = outputs.to_write()?;
    let mut out = String::new();
    let size = units::bytes(source.n_bytes());
    line(&mut out, "source", &format!("{} ({size})", args.input.display()));
    summary(&mut out, &ladder, name);
    say::info(out);
    say::warnings(&outputs.warnings());
    say::heed()?;
    let options = args.output_options.options()?;
    if args.dry_run {
        return plan::print(&ladder, &source, options.shard, args.json.then(Default::default));
    }
    match calibrated {
        None => args.output_options.run("quantize", &ladder, &source, options),
        Some(calibrated) => {
            let simd = args.recipe.simd();
            let run = |output: &output::Output| calibrated.run("quantize", &source, output, simd);
            args.output_options.run_with(&ladder, &source, options, run)?;
            Ok(())
        }
    }
}
