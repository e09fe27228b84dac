//! What a conversion makes of a checkpoint, which `convert` and `plan` share.

use super::operands::Operands;
use super::output::{Cutting, Resources};
use super::types::{self, MIXES, Named, recipe};
use super::{calibrate, place};
use crate::cli::{bad_usage, say};
use crate::convert::{ConvertError, Ingredient, Intermediate, Mode, Outputs, Plan, Role, Settings};
use crate::model::{CheckpointModel, Given, Mla, Mtp};
use crate::recipe::{FileType, Recipe, RecipeError};
use crate::simd::Simd;
use crate::source::{DESCRIPTIONS, GgufSource};
use crate::warning::{Topic, Warning};
use clap::ValueEnum;
use std::path::{Path, PathBuf};
use std::sync::Arc;

/// What the output is to be.
#[derive(clap::Args)]
#[command(next_help_heading = "Conversion")]
pub struct Choices {
    /// Type of the output, named as llama-quantize names it, a recipe file (*.toml), or lossless: each
    /// tensor in the smallest type that keeps its values, such as Q4_0 for INT4 in groups of 32
    #[arg(long = "type", short = 't', value_name = "TYPE", value_parser = TARGETS,
        hide_possible_values = true)]
    ty: Option<Target>,
    /// Types of several outputs, which are written into the folder OUTPUT in one pass: the source is read
    /// once, and each file is as if written by itself
    #[arg(long, value_name = "TYPE,...", value_delimiter = ',', value_parser = MIXES,
        hide_possible_values = true, conflicts_with_all = ["ty", "outtype"])]
    types: Vec<Arc<Recipe>>,
    /// Write the file of convert_hf_to_gguf.py --outtype instead, without llama-quantize's mix:
    /// every matrix in this type, straight from the checkpoint's exact values
    #[arg(long, value_enum, value_name = "TYPE", conflicts_with_all = ["ty", "imatrix",
        "tensor_type", "tensor_type_file", "pure", "leave_output_tensor", "output_tensor_type",
        "token_embedding_type", "write_recipe"])]
    outtype: Option<Outtype>,
    /// Store matrices that are FP8 in the checkpoint as Q8_0, as convert_hf_to_gguf.py does
    #[arg(long, conflicts_with = "ty")]
    fp8_as_q8: bool,
    /// Name of the model (general.name)
    #[arg(long, value_name = "NAME")]
    model_name: Option<String>,
    /// JSON file with metadata to write instead of what the checkpoint says: general.author and other
    /// names, general.sampling.*, general.tags, general.languages
    #[arg(long, value_name = "FILE")]
    metadata: Option<PathBuf>,
    /// Of convert_hf_to_gguf.py, without effect: memory is bounded in any case
    #[arg(long = "no-lazy", alias = "use-temp-file", action = clap::ArgAction::Count, hide = true)]
    _lazy: u8,
    /// Precision on the way to a quantized type: bf16 gives the bytes of the two-step way, f32
    /// quantizes the exact FP8 x scale products
    #[arg(long, value_enum, default_value = "bf16")]
    intermediate: Precision,
    /// Multi-token-prediction layers: drop or keep them, or only them, for a file to draft with
    /// [default: as the reference converter does, which keeps DeepSeek-V3.2's and drops others]
    #[arg(long, value_enum)]
    mtp: Option<MtpArg>,
    /// Latent attention: split into attn_k_b and attn_v_b, as today's files have it, or legacy, the
    /// joint attn_kv_b of files from before April 2025
    #[arg(long, value_enum, default_value = "split")]
    mla: MlaArg,
    /// Name of the pre-tokenizer (tokenizer.ggml.pre), if it is not recognised
    #[arg(long, value_name = "NAME")]
    tokenizer_pre: Option<String>,
    #[command(flatten)]
    recipe: types::Args,
    /// Whether what a run asks for is taken for granted.
    #[arg(skip)]
    assumes: bool,
}

/// What `--type` may say.
#[derive(Clone)]
enum Target {
    Recipe(Arc<Recipe>),
    Lossless,
}

const TARGETS: Named<Target> =
    Named::new(target, || FileType::all().map(FileType::name).chain([LOSSLESS]).collect());

fn target(text: &str) -> Result<Target, String> {
    match text.eq_ignore_ascii_case(LOSSLESS) {
        true => Ok(Target::Lossless),
        false => recipe(text).map(Target::Recipe),
    }
}

const LOSSLESS: &str = "lossless";

/// Precision on the way to a quantized type.
#[derive(Clone, Copy, ValueEnum)]
pub enum Precision {
    Bf16,
    F32,
}

/// The types that convert_hf_to_gguf.py writes.
#[derive(Clone, Copy, ValueEnum)]
#[value(rename_all = "snake_case")]
enum Outtype {
    F32,
    F16,
    Bf16,
    #[value(name = "q8_0")]
    Q8_0,
    #[value(name = "tq1_0")]
    Tq1_0,
    #[value(name = "tq2_0")]
    Tq2_0,
    /// The checkpoint's own 16-bit type
    Auto,
}

#[derive(Clone, Copy, ValueEnum)]
enum MtpArg {
    Drop,
    Keep,
    Only,
}

#[derive(Clone, Copy, ValueEnum)]
enum MlaArg {
    Split,
    Legacy,
}

impl Choices {
    /// Takes up the type that stands behind the output; gives the output.
    pub fn take_up(&mut self, operands: &Operands) -> anyhow::Result<Option<PathBuf>> {
        let has_type = self.ty.is_some() || self.outtype.is_some() || self.is_ladder();
        let words = operands.words(has_type, |word| target(word).is_ok()).map_err(bad_usage)?;
        if words.threads.is_some() {
            return Err(bad_usage("a word too many behind the type; -j N gives threads"));
        }
        match words.ty.map(|word| target(&word)) {
            Some(ty) => self.ty = Some(ty.map_err(bad_usage)?),
            None if has_type => {}
            None => {
                let text =
                    "the type is missing: give it behind the output, or with --type or --outtype";
                return Err(bad_usage(text));
            }
        }
        Ok(words.output)
    }

    /// Plans mixes that need importances without any, as if there were some, and sources that are quantized.
    pub fn assume(&mut self) {
        self.assumes = true;
    }

    /// A plan, which may take for granted what the run itself asks for.
    fn planned(
        &self,
        settings: &Settings,
        plan: impl Fn(&Settings) -> Result<Plan, ConvertError>,
    ) -> anyhow::Result<Plan> {
        let mut settings = settings.clone();
        let (topic, text) = match plan(&settings) {
            Err(ConvertError::Recipe(RecipeError::NeedsImatrix { file_type, .. }))
                if self.assumes =>
            {
                settings.options.imatrix = true;
                let needs = format!("{file_type} needs importances (--imatrix)");
                (Topic::Imatrix, format!("{needs}, which are taken for granted here"))
            }
            Err(error @ ConvertError::Requantize { .. }) if self.assumes => {
                settings.allow_requantize = true;
                (Topic::Tensors, format!("{error}, or give --allow-requantize to quantize"))
            }
            plan => return Ok(plan?),
        };
        say::warning(&Warning::new(topic, text));
        self.planned(&settings, plan)
    }

    /// Plans each of the outputs.
    fn outputs(
        &self,
        (source, output): (&Path, &Path),
        settings: &Settings,
        plan: impl Fn(&Settings) -> Result<Plan, ConvertError>,
    ) -> anyhow::Result<Outputs> {
        if !self.is_ladder() {
            return Ok(Outputs::one(self.planned(settings, plan)?, output));
        }
        let planned = |recipe: &Arc<Recipe>| {
            self.planned(&Settings { recipe: recipe.clone(), ..settings.clone() }, &plan)
        };
        let plans = self.types.iter().map(planned).collect::<anyhow::Result<_>>()?;
        Ok(Outputs::ladder(plans, output, source))
    }

    fn settings(
        &self,
        (recipe, mode): (Arc<Recipe>, Mode),
        (cutting, resources): (&Cutting, &Resources),
        rounding: calibrate::How,
    ) -> anyhow::Result<Settings> {
        let importance = self.recipe.plan().importance()?;
        Ok(Settings {
            recipe,
            write_recipe: self.recipe.write_recipe,
            notes: rounding.notes(),
            search: rounding.search,
            mode,
            given: Given::read(self.model_name.clone(), self.metadata.as_deref())?,
            fp8_as_q8: self.fp8_as_q8,
            prune_layers: self.recipe.plan().prune_layers(),
            override_kv: self.recipe.plan().override_kv(),
            options: self.recipe.plan().options(importance.is_some() || rounding.text.is_some())?,
            intermediate: match self.intermediate {
                Precision::Bf16 => Intermediate::Bf16,
                Precision::F32 => Intermediate::F32,
            },
            tokenizer_pre: self.tokenizer_pre.clone(),
            threads: resources.threads(),
            importance,
            allow_requantize: false,
            simd: self.recipe.simd(),
            check: self.recipe.check,
            split: cutting.split(false)?,
            memory: resources.memory(),
        })
    }

    /// What becomes of layers for multi-token prediction.
    pub fn mtp(&self) -> Mtp {
        match self.mtp {
            Some(MtpArg::Drop) => Mtp::Drop,
            Some(MtpArg::Keep) => Mtp::Keep,
            Some(MtpArg::Only) => Mtp::Only,
            None => Mtp::Usual,
        }
    }

    /// Opens a GGUF file and plans what `quantize` makes of it.
    pub fn plan_gguf(
        &self,
        input: &Path,
        output: &Path,
        how: (&Cutting, &Resources),
        rounding: calibrate::How,
    ) -> anyhow::Result<(GgufSource, Outputs)> {
        let recipe = match (&self.ty, self.types.first()) {
            (Some(Target::Recipe(recipe)), _) | (None, Some(recipe)) => recipe.clone(),
            _ => {
                let text = "of a GGUF file, only what `requant quantize` makes can be planned: give --type \
                            with a mix, or --types";
                return Err(bad_usage(text));
            }
        };
        let mut source = place::gguf(input)?;
        source.set_simd(self.recipe.simd());
        let settings = self.settings((recipe, Mode::Quantize), how, rounding)?;
        let plan = |settings: &Settings| Plan::of_gguf(&source, settings);
        let outputs = self.outputs((input, output), &settings, plan)?;
        Ok((source, outputs))
    }

    /// Opens a checkpoint and plans its conversion into each of the outputs.
    pub fn plan(
        &self,
        checkpoint: &Path,
        output: &Path,
        how: (&Cutting, &Resources),
        rounding: calibrate::How,
    ) -> anyhow::Result<(CheckpointModel, Outputs)> {
        let mla = match self.mla {
            MlaArg::Split => Mla::Split,
            MlaArg::Legacy => Mla::Legacy,
        };
        let mut model = CheckpointModel::open_as(place::folder(checkpoint)?, self.mtp(), mla)?;
        model.set_simd(self.recipe.simd());
        let chosen = match (self.outtype, &self.ty) {
            (Some(outtype), _) => {
                model.keep_blocks()?;
                (Arc::new(Recipe::of(outtype.file_type(&model))), Mode::Convert)
            }
            (None, Some(Target::Recipe(recipe))) => (recipe.clone(), Mode::Quantize),
            (None, Some(Target::Lossless)) => {
                let weighs = self.recipe.plan().importance()?.is_some() || rounding.is_given();
                if weighs || self.recipe.chooses_types() {
                    return Err(bad_usage(
                        "--type lossless takes no other types, and nothing that weighs or rounds",
                    ));
                }
                model.keep_exact()?;
                (Arc::new(Recipe::of(FileType::F32)), Mode::Lossless)
            }
            (None, None) => match self.types.first() {
                Some(first) => (first.clone(), Mode::Quantize),
                None => return Err(bad_usage("neither --type nor --outtype is given")),
            },
        };
        let settings = self.settings(chosen, how, rounding)?;
        let plan = |settings: &Settings| Plan::of_checkpoint(&model, settings);
        let outputs = self.outputs((checkpoint, output), &settings, plan)?;
        Ok((model, outputs))
    }

    /// Whether several outputs are asked for.
    pub fn is_ladder(&self) -> bool {
        !self.types.is_empty()
    }

    /// Files that the output is made with, beside the weights.
    pub fn ingredients(
        &self,
        model: &CheckpointModel,
        calibrated: Option<&calibrate::Prepared>,
    ) -> Vec<Ingredient> {
        let descriptions = DESCRIPTIONS.iter().map(|name| model.dir().join(name));
        let descriptions = descriptions.filter(|path| path.is_file());
        let what = Role::Description;
        let mut all: Vec<Ingredient> = descriptions.map(|path| Ingredient { what, path }).collect();
        all.extend(self.recipe.plan().ingredients());
        let metadata = self.metadata.iter().cloned();
        all.extend(metadata.map(|path| Ingredient { what: Role::Metadata, path }));
        all.extend(calibrated.map(calibrate::Prepared::ingredient));
        all
    }

    /// The instructions to use.
    pub fn simd(&self) -> Simd {
        self.recipe.simd()
    }

    /// The name of the pre-tokenizer, where one is given.
    pub fn tokenizer_pre(&self) -> Option<&str> {
        self.tokenizer_pre.as_deref()
    }

    /// What was asked for.
    pub fn name(&self) -> String {
        match (&self.ty, self.outtype.and_then(|o| o.to_possible_value())) {
            (Some(Target::Recipe(recipe)), _) => recipe.name().to_owned(),
            (Some(Target::Lossless), _) => LOSSLESS.to_owned(),
            (None, Some(outtype)) => outtype.get_name().to_owned(),
            (None, None) => String::new(),
        }
    }
}

impl Outtype {
    fn file_type(self, model: &CheckpointModel) -> FileType {
        match self {
            Self::F32 => FileType::F32,
            Self::F16 => FileType::F16,
            Self::Bf16 => FileType::BF16,
            Self::Q8_0 => FileType::Q8_0,
            Self::Tq1_0 => FileType::TQ1_0,
            Self::Tq2_0 => FileType::TQ2_0,
            Self::Auto => {
                model.checkpoint().half_type().and_then(FileType::of_type).unwrap_or(FileType::F16)
            }
        }
    }
}
