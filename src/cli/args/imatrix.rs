//! The file that `imatrix` and `join` write: an importance matrix, or sensitivities.

use super::places;
use crate::cli::views::units;
use crate::cli::{bad_usage, say};
use crate::imatrix::Sums;
use crate::io::LocalDisk;
use crate::measure::Sensitivities;
use crate::warning::{Topic, Warning};
use std::path::{Path, PathBuf};

/// The file that is written.
#[derive(clap::Args)]
#[command(next_help_heading = "Output")]
pub struct File {
    /// File to write [default: imatrix.gguf]
    #[arg(long, short, value_name = "FILE")]
    output: Option<PathBuf>,
    /// Format: gguf, or the legacy dat [default: dat where the file's name ends so, else gguf]
    #[arg(long, value_enum, value_name = "FORMAT")]
    output_format: Option<Format>,
    /// Replace an existing output
    #[arg(long, short)]
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
        places::prepare_new(self.path(), self.force)
    }

    fn path(&self) -> &Path {
        self.output.as_deref().unwrap_or(Path::new("imatrix.gguf"))
    }

    /// Writes sensitivities, and says what is in it.
    pub fn write_sensitivities(&self, found: &Sensitivities, json: bool) -> anyhow::Result<()> {
        let Some(path) = &self.output else {
            return Err(bad_usage("sensitivities need a file to be written to: -o FILE"));
        };
        self.check()?;
        found.write(&LocalDisk, path)?;
        let groups = found.groups.len();
        if json {
            say::json(serde_json::json!({
                "version": 1, "sensitivities": path, "groups": groups, "tokens": found.tokens,
            }));
            return Ok(());
        }
        let tokens = units::of(found.tokens as usize, "token");
        say::info(format!("{}: {groups} groups of tensors, measured on {tokens}", path.display()));
        Ok(())
    }

    /// Writes it, and says what is in it.
    pub fn write(&self, sums: &Sums, json: bool) -> anyhow::Result<()> {
        let path = self.path();
        let is_dat = path.extension().is_some_and(|ext| ext.eq_ignore_ascii_case("dat"));
        match self.output_format.unwrap_or(if is_dat { Format::Dat } else { Format::Gguf }) {
            Format::Gguf => sums.write_gguf(&LocalDisk, path)?,
            Format::Dat => sums.write_legacy(&LocalDisk, path)?,
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
                "version": 1, "output": path, "entries": sums.entries.len(),
                "chunks": sums.chunk_count, "ctx": sums.chunk_size, "unreached_experts": unreached,
            }));
            return Ok(());
        }
        say::info(format!(
            "{}: {} entries from {} of {}",
            path.display(),
            sums.entries.len(),
            units::of(sums.chunk_count as usize, "chunk"),
            sums.chunk_size
        ));
        Ok(())
    }
}
