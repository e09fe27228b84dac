//! `requant export`: a GGUF model as a checkpoint folder.

use crate::cli::args::operands::Destination;
use crate::cli::args::places;
use crate::cli::progress::Progress;
use crate::cli::say;
use crate::io::LocalDisk;
use crate::model::GgufModel;
use crate::quant::QuantType;
use crate::source::Source;
use anyhow::Context;
use std::path::PathBuf;

/// Turn a GGUF model back into a checkpoint folder: safetensors, config.json, tokenizer.json.
#[derive(clap::Args)]
#[command(after_help = "Example:\n  requant export model-Q8_0.gguf model-bf16 --dtype bf16")]
pub struct Args {
    /// GGUF file, or the first file of a split model
    file: PathBuf,
    #[command(flatten)]
    folder: Destination,
    /// Type of the weights
    #[arg(long, value_enum, default_value = "bf16")]
    dtype: Dtype16,
}

#[derive(Clone, Copy, clap::ValueEnum)]
enum Dtype16 {
    Bf16,
    F16,
    F32,
}

pub fn run(args: &Args) -> anyhow::Result<()> {
    places::prepare_folder(args.folder.path())?;
    let model = GgufModel::open(&args.file)?;
    say::warnings(model.warnings());
    say::heed()?;
    let ty = match args.dtype {
        Dtype16::Bf16 => QuantType::BF16,
        Dtype16::F16 => QuantType::F16,
        Dtype16::F32 => QuantType::F32,
    };
    let weights: u64 = model.gguf().tensors().iter().map(|t| t.n_elements()).sum();
    let progress = Progress::start("export", weights, "weights", 0);
    crate::convert::export(&model, model.gguf(), &LocalDisk, args.folder.path(), ty, &progress)
        .with_context(|| args.file.display().to_string())?;
    progress.finish();
    Ok(())
}
