//! `requant imatrix`: importance matrices from a model and a text.

use crate::cli::args::imatrix::File;
use crate::cli::args::measure::{self, Room, RunArgs, TextArgs};
use crate::cli::args::{place, share};
use crate::cli::views::statistics;
use crate::cli::{bad_usage, say};
use crate::imatrix::Sums;
use crate::measure::{Beside, Found, Job, Options, Subject, Text};
use crate::model::Model;
use anyhow::bail;
use std::path::{Path, PathBuf};

/// Collect an importance matrix, as llama-imatrix does but with f32 activations.
///
/// Reads a GGUF file or a checkpoint, FP8 as well. The file is written in llama-imatrix's formats. The layer for
/// multi-token prediction gets the entries that llama-imatrix would give it.
#[derive(clap::Args)]
#[command(
    after_help = "Examples:\n  requant imatrix DeepSeek-R1 --text calibration.txt -o imatrix.gguf\n  \
                        requant imatrix --merge a.gguf --merge b.gguf -o imatrix.gguf\n  \
                        requant imatrix --show-statistics imatrix.gguf"
)]
pub struct Args {
    /// Checkpoint or GGUF file; may be left out where files are merged. With --show-statistics, an
    /// importance matrix
    model: Option<PathBuf>,
    #[command(flatten)]
    text: TextArgs,
    #[command(flatten)]
    file: File,
    /// Leave out the first N chunks of each text
    #[arg(long = "chunk", visible_alias = "from-chunk", value_name = "N", default_value_t = 0)]
    first_chunk: u32,
    /// Collect for the output matrix as well
    #[arg(long)]
    process_output: bool,
    /// Whether to collect for the layer for multi-token prediction as well [default: keep, where it is there]
    #[arg(long, value_enum, value_name = "MTP")]
    mtp: Option<Mtp>,
    /// Take names of special tokens in the text, such as those of a chat, for these tokens
    #[arg(long, conflicts_with = "tokens")]
    parse_special: bool,
    /// Show what an importance matrix says about the inputs of each tensor, and stop
    #[arg(long, conflicts_with_all = ["text", "tokens", "process_output", "mtp", "parse_special",
        "first_chunk", "shard", "dry_run"])]
    show_statistics: bool,
    /// Add the sums of these files (either format); repeatable
    #[arg(long, visible_alias = "in-file", value_name = "FILE", conflicts_with = "shard")]
    merge: Vec<PathBuf>,
    #[command(flatten)]
    share: share::Args,
    #[command(flatten)]
    room: Room,
    #[command(flatten)]
    run: RunArgs,
}

#[derive(Clone, Copy, PartialEq, clap::ValueEnum)]
enum Mtp {
    Keep,
    Drop,
}

pub fn run(args: &Args) -> anyhow::Result<()> {
    if args.show_statistics {
        return show_statistics(args);
    }
    if args.model.is_none() && args.merge.is_empty() {
        return Err(bad_usage("give a model and a text, or files to --merge"));
    }
    args.file.check()?;
    let options = measure::options(&args.text, &args.room, &args.run);
    let options = Options { first_chunk: args.first_chunk as usize, ..options };
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
        let (mut texts, model) = (args.text.read()?, open(path, args.mtp, &options)?);
        if args.parse_special {
            texts = texts.into_iter().map(Text::with_special_tokens).collect();
        }
        let prediction = args.mtp != Some(Mtp::Drop) && model.drafts();
        let beside = Beside { output: args.process_output, prediction };
        let job = Job::Importances { subject: Subject { path, model: &model }, beside };
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

/// Opens a model with as much of it as is wanted.
fn open(path: &Path, mtp: Option<Mtp>, options: &Options) -> anyhow::Result<Model> {
    place::refuse_text(path)?;
    let mut model = match mtp {
        Some(Mtp::Drop) => place::model(path)?,
        Some(Mtp::Keep) => place::open_with_drafts(path)?,
        None => place::open_with_drafts_if_there(path)?,
    };
    if mtp == Some(Mtp::Keep) && !model.drafts() {
        bail!("{}: there is no layer for multi-token prediction to collect for", path.display());
    }
    model.set_simd(options.simd);
    Ok(model)
}

/// Shows the statistics of the one file that is given.
fn show_statistics(args: &Args) -> anyhow::Result<()> {
    let files: Vec<&PathBuf> = args.model.iter().chain(&args.merge).collect();
    let [path] = files[..] else {
        return Err(bad_usage("--show-statistics takes one importance matrix"));
    };
    let options = measure::options(&args.text, &args.room, &args.run);
    let sums = Sums::open(path, options.ctx as u32)?;
    let all = sums.statistics();
    match args.run.json {
        true => say::json(statistics::json(path, &sums, &all)),
        false => print!("{}", statistics::table(&all)),
    }
    Ok(())
}
