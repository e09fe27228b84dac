//! `requant imatrix`: importance matrices from a model and a text.

use super::compare::{RunArgs, TextArgs};
use super::evaluate::Room;
use super::progress::Progress;
use super::{place, say};
use crate::eval::{Collector, PerplexityOptions, collect};
use crate::imatrix::Sums;
use crate::warning::{Topic, Warning};
use anyhow::{Context, bail};
use std::path::PathBuf;

/// Collect an importance matrix, as llama-imatrix does but with f32 activations.
///
/// Reads a GGUF file or a checkpoint, FP8 as well. The file is written in llama-imatrix's formats.
#[derive(clap::Args)]
#[command(
    after_help = "Examples:\n  requant imatrix DeepSeek-R1 --text calibration.txt -o imatrix.gguf\n  \
                        requant imatrix --merge a.gguf --merge b.gguf -o imatrix.gguf"
)]
pub struct Args {
    /// Checkpoint or GGUF file; may be left out where files are merged
    model: Option<PathBuf>,
    #[command(flatten)]
    text: TextArgs,
    /// File to write
    #[arg(long, short, value_name = "FILE", default_value = "imatrix.gguf")]
    output: PathBuf,
    /// Format: gguf, or the legacy dat
    #[arg(long, value_enum, value_name = "FORMAT", default_value = "gguf")]
    output_format: Format,
    /// Add the sums of these files (GGUF format); repeatable
    #[arg(long, value_name = "FILE")]
    merge: Vec<PathBuf>,
    /// Replace an existing output
    #[arg(long)]
    force: bool,
    #[command(flatten)]
    room: Room,
    #[command(flatten)]
    run: RunArgs,
}

#[derive(Clone, Copy, clap::ValueEnum)]
enum Format {
    Gguf,
    Dat,
}

pub fn run(args: &Args) -> anyhow::Result<()> {
    if args.model.is_none() && args.merge.is_empty() {
        bail!("give a model and a text, or files to --merge");
    }
    if args.output.exists() && !args.force {
        bail!("{} exists; choose another name or give --force", args.output.display());
    }
    let mut sums = Sums::default();
    for path in &args.merge {
        let other = Sums::open(path)?;
        sums.add(&other).map_err(|name| {
            anyhow::anyhow!(
                "{}: `{name}` has another shape than in the files before",
                path.display()
            )
        })?;
    }
    let mut options = PerplexityOptions::default();
    if let Some(path) = &args.model {
        let own = of_model(args, path, &mut options)?;
        sums.add(&own).map_err(|name| {
            anyhow::anyhow!(
                "{}: `{name}` has another shape than in the files merged",
                path.display()
            )
        })?;
    }
    match args.output_format {
        Format::Gguf => sums.write_gguf(&args.output)?,
        Format::Dat => sums.write_legacy(&args.output)?,
    }
    Room::finish([&options]);
    let unreached = sums.unreached();
    for (name, experts) in &unreached {
        let experts: Vec<String> = experts.iter().map(usize::to_string).collect();
        let text = format!("no token reached {name}: {}", experts.join(", "));
        say::warning(&Warning::new(Topic::Imatrix, text));
    }
    if args.run.json {
        let unreached: serde_json::Map<String, serde_json::Value> = unreached
            .iter()
            .map(|(name, experts)| ((*name).to_owned(), experts.clone().into()))
            .collect();
        let json = serde_json::json!({
            "version": 1, "output": args.output, "entries": sums.entries.len(),
            "chunks": sums.chunk_count, "ctx": sums.chunk_size, "unreached_experts": unreached,
        });
        say::json(json);
        return Ok(());
    }
    say::info(format!(
        "{}: {} entries from {} chunks of {}",
        args.output.display(),
        sums.entries.len(),
        sums.chunk_count,
        sums.chunk_size
    ));
    Ok(())
}

fn of_model(
    args: &Args,
    path: &std::path::Path,
    options: &mut PerplexityOptions,
) -> anyhow::Result<Sums> {
    let model = place::model(path)?;
    let (tokens, read) = args.text.read(&model)?;
    *options = read;
    args.room.apply(options, &[&model], tokens.len())?;
    let collector = Collector::new(model.source());
    let mut runner = super::evaluate::runner(&model, args.run.activations())
        .with_context(|| path.display().to_string())?;
    runner.observe(&collector);
    let work = options.work(tokens.len(), model.hparams());
    let progress = Progress::start("imatrix", work, "token-layers", 0);
    let n_chunks = args
        .run
        .pool()?
        .install(|| collect(&runner, &tokens, options, &progress))
        .with_context(|| path.display().to_string())?;
    progress.finish();
    let dataset = args.text.path()?.display().to_string();
    Ok(collector.sums(&dataset, n_chunks, options.ctx as u32))
}
