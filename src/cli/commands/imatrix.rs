//! `requant imatrix`: importance matrices from a model and a text.

use crate::cli::args::imatrix::File;
use crate::cli::args::measure::{self, Room, RunArgs, TextArgs};
use crate::cli::args::share;
use crate::cli::bad_usage;
use crate::imatrix::Sums;
use crate::measure::{Found, Job, Subject};
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
    #[command(flatten)]
    file: File,
    /// Add the sums of these files (either format); repeatable
    #[arg(long, value_name = "FILE", conflicts_with = "shard")]
    merge: Vec<PathBuf>,
    #[command(flatten)]
    share: share::Args,
    #[command(flatten)]
    room: Room,
    #[command(flatten)]
    run: RunArgs,
}

pub fn run(args: &Args) -> anyhow::Result<()> {
    if args.model.is_none() && args.merge.is_empty() {
        return Err(bad_usage("give a model and a text, or files to --merge"));
    }
    args.file.check()?;
    let options = measure::options(&args.text, &args.room, &args.run);
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
        let (texts, model) = (args.text.read()?, measure::model(path, &options)?);
        let job = Job::Importances(Subject { path, model: &model });
        let Some(part) = args.share.measure("imatrix", job, &texts, &options, args.run.json)?
        else {
            Room::finish(&options);
            return Ok(());
        };
        let Found::Importances(own) = part.result()? else { unreachable!("importances are sums") };
        sums.add(&own).map_err(|name| {
            anyhow::anyhow!(
                "{}: `{name}` has another shape than in the files merged",
                path.display()
            )
        })?;
    }
    args.file.write(&sums, args.run.json)?;
    Room::finish(&options);
    Ok(())
}
