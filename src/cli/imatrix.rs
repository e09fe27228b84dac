//! `requant imatrix`: importance matrices from a model and a text.

use super::compare::{self, RunArgs, TextArgs};
use super::evaluate::Room;
use super::progress::Progress;
use super::say;
use crate::imatrix::Sums;
use crate::io::LocalDisk;
use crate::measure::{Subject, importances};
use crate::warning::{Topic, Warning};
use anyhow::bail;
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
    /// Add the sums of these files (either format); repeatable
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
    let options = compare::options(&args.text, &args.room, &args.run);
    let mut sums = Sums::default();
    for path in &args.merge {
        let other = Sums::open(path, options.ctx as u32)?;
        sums.add(&other).map_err(|name| {
            anyhow::anyhow!(
                "{}: `{name}` has another shape than in the files before",
                path.display()
            )
        })?;
    }
    if let Some(path) = &args.model {
        let (text, model) = (args.text.read()?, compare::model(path, &options)?);
        let progress = Progress::start("imatrix", 0, "token-layers", 0);
        let subject = Subject { path, model: &model };
        let own = importances(subject, &text, &options, &progress)?;
        progress.finish();
        sums.add(&own).map_err(|name| {
            anyhow::anyhow!(
                "{}: `{name}` has another shape than in the files merged",
                path.display()
            )
        })?;
    }
    match args.output_format {
        Format::Gguf => sums.write_gguf(&LocalDisk, &args.output)?,
        Format::Dat => sums.write_legacy(&LocalDisk, &args.output)?,
    }
    Room::finish(&options);
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
