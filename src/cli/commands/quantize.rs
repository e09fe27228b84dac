//! `requant quantize`: a GGUF file to another type.

use crate::cli::args::operands::Operands;
use crate::cli::args::types::{self, MIXES, Named, recipe};
use crate::cli::args::{calibrate, output, place};
use crate::cli::views::plan::{self, of_file};
use crate::cli::{bad_usage, say};
use crate::convert::{Mode, Outputs, Plan, Settings};
use crate::model::{Mtp, join_legacy_mla, split_legacy_mla};
use crate::recipe::{FileType, Recipe};
use std::path::{Path, PathBuf};
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
    #[command(flatten)]
    operands: Operands,
    /// Type of the output, named as llama-quantize names it, or a recipe file (*.toml); COPY
    /// keeps every tensor
    #[arg(long = "type", short = 't', value_name = "TYPE", value_parser = TARGETS,
          hide_possible_values = true, conflicts_with = "types")]
    ty: Option<Target>,
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
#[derive(Clone)]
enum Target {
    Type(Arc<Recipe>),
    Copy,
    Ladder,
}

const COPY: &str = "COPY";

const TARGETS: Named<Target> =
    Named::new(target, || FileType::all().map(FileType::name).chain([COPY]).collect());

fn target(text: &str) -> Result<Target, String> {
    match text.eq_ignore_ascii_case(COPY) {
        true => Ok(Target::Copy),
        false => recipe(text).map(Target::Type),
    }
}

/// What is made of the input: as for llama-quantize, the output may be missing.
struct Wanted {
    output: PathBuf,
    target: Target,
    n_threads: Option<usize>,
}

impl Args {
    fn wanted(&self) -> Result<Wanted, String> {
        let is_ladder = !self.types.is_empty();
        let words = self.operands.words(self.ty.is_some() || is_ladder, |w| target(w).is_ok())?;
        let found = match (&self.ty, &words.ty) {
            (Some(ty), _) => ty.clone(),
            (None, Some(word)) => target(word)?,
            (None, None) if is_ladder => Target::Ladder,
            (None, None) => {
                let word = words.output.as_deref().filter(|path| path.extension().is_none());
                let typo = word.and_then(Path::to_str).and_then(|word| target(word).err());
                let missing =
                    || "the type is missing: <INPUT> [OUTPUT] <TYPE> [NTHREADS]".to_owned();
                return Err(typo.unwrap_or_else(missing));
            }
        };
        let output = match (words.output, &found) {
            (Some(output), _) => output,
            (None, Target::Ladder) => return Err("give the folder of the outputs".to_owned()),
            (None, found) => {
                let name = match (found, words.ty) {
                    (_, Some(word)) if word.parse::<u32>().is_err() => word.to_ascii_uppercase(),
                    (Target::Type(recipe), _) => recipe.name().to_owned(),
                    _ => COPY.to_owned(),
                };
                self.input.with_file_name(format!("ggml-model-{name}.gguf"))
            }
        };
        if words.threads.is_some() && self.output_options.resources.has_threads() {
            return Err("threads are given twice, behind the type and by --threads".to_owned());
        }
        Ok(Wanted { output, target: found, n_threads: words.threads.map(usize::from) })
    }
}

pub fn run(args: &Args) -> anyhow::Result<()> {
    let Wanted { output, target, n_threads } = args.wanted().map_err(bad_usage)?;
    place::refuse_folder(&args.input)?;
    let mut source = place::gguf(&args.input)?;
    source.set_simd(args.recipe.simd());
    match args.mla {
        Some(MlaArg::Split) => split_legacy_mla(&mut source)?,
        Some(MlaArg::Legacy) => join_legacy_mla(&mut source)?,
        None => {}
    }
    let (is_ladder, simd) = (matches!(target, Target::Ladder), args.recipe.simd());
    let calibrated = args.calibrate.prepare(&args.input, Mtp::default(), None, is_ladder, simd)?;
    let rounding = args.calibrate.how(calibrated.as_ref());
    let importance = args.recipe.plan().importance()?;
    let (recipe, mode, name) = match &target {
        Target::Type(recipe) => (recipe.clone(), Mode::Quantize, recipe.name()),
        Target::Copy => (Arc::new(Recipe::of(FileType::F32)), Mode::Copy, COPY),
        Target::Ladder => (args.types[0].clone(), Mode::Quantize, ""),
    };
    let settings = Settings {
        recipe,
        write_recipe: args.recipe.write_recipe,
        notes: rounding.notes(),
        search: rounding.search,
        mode,
        prune_layers: args.recipe.plan().prune_layers(),
        override_kv: args.recipe.plan().override_kv(),
        options: args.recipe.plan().options(importance.is_some() || calibrated.is_some())?,
        threads: n_threads.unwrap_or_else(|| args.output_options.resources.threads()),
        importance,
        allow_requantize: args.allow_requantize,
        simd: args.recipe.simd(),
        check: args.recipe.check,
        split: args.output_options.cutting.split(args.keep_split)?,
        memory: args
            .max_buffer_size
            .map(|n| (n + OTHER_MEMORY) << 20)
            .or(args.output_options.resources.memory()),
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
    let options = args.output_options.options()?;
    say::info(of_file(&source, &ladder, name, &args.input, options.shard));
    say::warnings(&outputs.warnings());
    say::heed()?;
    if args.dry_run {
        let json = args.json.then(Default::default);
        let plan = ladder.rungs()[0].plan;
        let cost = calibrated
            .map(|text| text.cost(plan, args.output_options.resources.memory()))
            .transpose()?;
        return plan::print(&ladder, &source, options.shard, true, cost, json);
    }
    let mut made_with = args.recipe.plan().ingredients();
    made_with.extend(calibrated.as_ref().map(calibrate::Prepared::ingredient));
    let output = &args.output_options;
    output.run("quantize", &ladder, &source, &made_with, options, calibrated.as_ref())?;
    Ok(())
}
