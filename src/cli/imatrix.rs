//! `requant imatrix`: importance matrices from a model and a text.

use super::compare::{self, RunArgs, TextArgs};
use super::evaluate::Room;
use super::{say, share};
use crate::imatrix::Sums;
use crate::io::LocalDisk;
use crate::measure::{Found, Job, Subject};
use crate::warning::{Topic, Warning};
use anyhow::bail;
use std::path::PathBuf;

/// The file that is written.
#[derive(clap::Args)]
pub struct File {
    /// File to write
    #[arg(long, short, value_name = "FILE", default_value = "imatrix.gguf")]
    output: PathBuf,
    /// Format: gguf, or the legacy dat
    #[arg(long, value_enum, value_name = "FORMAT", default_value = "gguf")]
    output_format: Format,
    /// Replace an existing output
    #[arg(long)]
    force: bool,
}

#[derive(Clone, Copy, clap::ValueEnum)]
enum Format {
    Gguf,
    Dat,
}

impl File {
    /// Whether the file may be written.
    pub fn check(&self) -> anyhow::Result<()> {
        match self.output.exists() && !self.force {
            true => bail!("{} exists; choose another name or give --force", self.output.display()),
            false => Ok(()),
        }
    }

    /// Writes it, and says what is in it.
    pub fn write(&self, sums: &Sums, json: bool) -> anyhow::Result<()> {
        match self.output_format {
            Format::Gguf => sums.write_gguf(&LocalDisk, &self.output)?,
            Format::Dat => sums.write_legacy(&LocalDisk, &self.output)?,
        }
        let unreached = sums.unreached();
        for (name, experts) in &unreached {
            let experts: Vec<String> = experts.iter().map(usize::to_string).collect();
            let text = format!("no token reached {name}: {}", experts.join(", "));
            say::warning(&Warning::new(Topic::Imatrix, text));
        }
        if json {
            let unreached: serde_json::Map<String, serde_json::Value> = unreached
                .iter()
                .map(|(name, experts)| ((*name).to_owned(), experts.clone().into()))
                .collect();
            say::json(serde_json::json!({
                "version": 1, "output": self.output, "entries": sums.entries.len(),
                "chunks": sums.chunk_count, "ctx": sums.chunk_size, "unreached_experts": unreached,
            }));
            return Ok(());
        }
        say::info(format!(
            "{}: {} entries from {} chunks of {}",
            self.output.display(),
            sums.entries.len(),
            sums.chunk_count,
            sums.chunk_size
        ));
        Ok(())
    }
}

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
        bail!("give a model and a text, or files to --merge");
    }
    args.file.check()?;
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
        let (texts, model) = (args.text.read()?, compare::model(path, &options)?);
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
