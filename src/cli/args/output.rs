//! Options on how and where files are written, which `convert` and `quantize` share.

use super::{places, share};
use crate::cli::progress::Progress;
use crate::cli::views::units;
use crate::cli::{bad_usage, say, threads};
use crate::convert::{Limit, Manifest, Plan, RunOptions, SplitBy};
use crate::io::LocalDisk;
use crate::source::Source;
use crate::warning::{Topic, Warning};
use anyhow::bail;
use serde_json::json;
use std::path::{Path, PathBuf};

/// How the output is written.
#[derive(clap::Args)]
pub struct Args {
    /// Split the output into files of at most this size: N bytes, or N followed by K, M or G
    /// (decimal, as llama-gguf-split counts)
    #[arg(long, value_name = "SIZE", value_parser = decimal_size, conflicts_with = "split_max_tensors")]
    split_max_size: Option<u64>,
    /// Split the output into files of at most this many tensors
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u64).range(1..))]
    split_max_tensors: Option<u64>,
    /// Leave the first of the split files to the metadata
    #[arg(long)]
    no_tensor_first_split: bool,
    /// Write only share K of N of the split files, so that N machines can share the work; auto
    /// takes K and N from Slurm, Kubernetes, AWS Batch or RANK and WORLD_SIZE
    #[arg(long, value_name = "K/N")]
    shard: Option<String>,
    #[command(flatten)]
    resources: Resources,
    /// Then write OUTPUT.manifest.json: SHA-256 of every input, output and tensor
    #[arg(long, conflicts_with = "shard")]
    manifest: bool,
    /// Replace an existing output
    #[arg(long, short)]
    force: bool,
    /// Begin anew where an interrupted run was kept
    #[arg(long)]
    restart: bool,
}

/// What of the machine may be used.
#[derive(clap::Args)]
pub struct Resources {
    /// Memory to use at most: N bytes, or N followed by M or G (binary) [default: a sixteenth of
    /// the machine's, at least 1G]
    #[arg(long, value_name = "SIZE", value_parser = binary_size)]
    memory: Option<u64>,
    /// Threads [default: all processors]
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u16).range(1..=1024))]
    threads: Option<u16>,
}

impl Resources {
    /// Memory to use at most.
    pub fn memory(&self) -> Option<u64> {
        self.memory
    }

    /// Threads to use.
    pub fn threads(&self) -> usize {
        threads(self.threads.map(usize::from))
    }
}

impl Args {
    /// Where the output is cut; `keep` keeps the source's files.
    pub fn split(&self, keep: bool) -> anyhow::Result<Option<SplitBy>> {
        let limit = match (self.split_max_size, self.split_max_tensors) {
            (Some(n), _) => Some(Limit::Bytes(n)),
            (None, Some(n)) => Some(Limit::Tensors(n)),
            (None, None) => None,
        };
        let no_tensor_first = self.no_tensor_first_split;
        match limit {
            Some(_) if keep => {
                Err(bad_usage("--keep-split and a limit on splits contradict each other"))
            }
            Some(limit) => Ok(Some(SplitBy::Limit { limit, no_tensor_first })),
            None if no_tensor_first => Err(bad_usage(
                "--no-tensor-first-split needs --split-max-size or --split-max-tensors",
            )),
            None if self.shard.is_some() && !keep => Err(bad_usage(
                "--shard shares out whole files; say with --split-max-size or \
                 --split-max-tensors how large they are",
            )),
            None => Ok(keep.then_some(SplitBy::Source)),
        }
    }

    /// Memory to use at most.
    pub fn memory(&self) -> Option<u64> {
        self.resources.memory()
    }

    /// Threads to use.
    pub fn threads(&self) -> usize {
        self.resources.threads()
    }

    /// Whether the number of threads is given.
    pub fn has_threads(&self) -> bool {
        self.resources.threads.is_some()
    }

    /// How the plan is carried out.
    pub fn options(&self) -> anyhow::Result<RunOptions<'static>> {
        let shard = self.shard.as_deref().map(share::shard).transpose()?;
        Ok(RunOptions {
            force: self.force,
            restart: self.restart,
            shard,
            keep_journal: false,
            disk: &LocalDisk,
        })
    }

    /// Carries out the plan.
    pub fn run(
        &self,
        what: &'static str,
        plan: &Plan,
        source: &dyn Source,
        output: &Path,
        options: RunOptions,
    ) -> anyhow::Result<()> {
        self.run_with(plan, source, output, options, |output| {
            let progress = output.progress(what, plan);
            plan.run(source, output.path, output.options, &progress)?;
            progress.finish();
            Ok(())
        })
    }

    /// Has a plan carried out, with what belongs before and after.
    pub fn run_with<T>(
        &self,
        plan: &Plan,
        source: &dyn Source,
        output: &Path,
        options: RunOptions,
        run: impl FnOnce(&Output) -> anyhow::Result<T>,
    ) -> anyhow::Result<T> {
        places::prepare_folder(output)?;
        plan.check_output(output, options)?;
        let files = plan.files_of(options.shard);
        let written = files.clone().filter_map(|i| plan.path(i, output).canonicalize().ok());
        let read: Vec<PathBuf> =
            source.files().iter().filter_map(|file| file.path.canonicalize().ok()).collect();
        if let Some(path) = written.into_iter().find(|path| read.contains(path)) {
            bail!("{}: is the source itself; give the output another name", path.display());
        }
        if let Some(limit) = self.split_max_size {
            let size = |i: usize| plan.files()[i].layout.file_size();
            let data = |i: usize| size(i) - plan.files()[i].layout.data_offset();
            let large = files.clone().filter(|&i| data(i) > limit).count();
            if large > 0 {
                let largest = units::bytes(files.clone().map(size).max().unwrap_or(0));
                let text = format!(
                    "{large} of {} files hold a tensor that is larger than the limit; the largest \
                     has {largest}",
                    files.len()
                );
                say::warning(&Warning::new(Topic::Output, text));
                say::heed()?;
            }
        }
        if let Some(shard) = options.shard {
            let names: Vec<String> =
                files.clone().map(|i| plan.path(i, output).display().to_string()).collect();
            let (k, n) = (shard.number(), shard.count());
            match names.is_empty() {
                true => {
                    say::info(format!("share {k}/{n}: no file falls to this share, nothing to do"))
                }
                false => say::info(format!("share {k}/{n}: {}", names.join(", "))),
            }
        }
        say::debug(format!(
            "{}, {} in {}, at most {} of memory",
            units::of(plan.threads(), "thread"),
            units::of(plan.tensors().len(), "tensor"),
            units::of(plan.files().len(), "file"),
            units::bytes(plan.peak_memory())
        ));
        let done = run(&Output { path: output, options, memory: self.memory() })?;
        if self.manifest {
            write_manifest(plan, source, output)?;
        }
        Ok(done)
    }
}

/// Writes the manifest of an output beside it.
fn write_manifest(plan: &Plan, source: &dyn Source, output: &Path) -> anyhow::Result<()> {
    let outputs: Vec<PathBuf> = (0..plan.files().len()).map(|i| plan.path(i, output)).collect();
    let inputs: u64 = source.files().iter().map(|f| f.size).sum();
    let progress = Progress::start("hash", inputs + plan.file_size(), "B", 0);
    let options: Vec<String> =
        std::env::args_os().skip(1).map(|arg| arg.to_string_lossy().into_owned()).collect();
    let manifest = Manifest::make(source, &outputs, json!(options), &progress)?;
    progress.finish();
    Ok(manifest.write(&LocalDisk, output)?)
}

/// Where and how a plan is carried out.
pub struct Output<'a> {
    pub path: &'a Path,
    pub options: RunOptions<'a>,
    /// Memory to use at most.
    pub memory: Option<u64>,
}

impl Output<'_> {
    /// Shows how much is written.
    pub fn progress(&self, what: &'static str, plan: &Plan) -> Progress {
        let files = plan.files_of(self.options.shard);
        let weights = plan.weights_of(files.clone());
        let size = files.map(|i| plan.files()[i].layout.file_size()).sum();
        Progress::start(what, weights, "weights", size)
    }
}

fn decimal_size(text: &str) -> Result<u64, String> {
    size(text, 1000)
}

pub fn binary_size(text: &str) -> Result<u64, String> {
    size(text, 1024)
}

/// `40G`, `512M`, `1000`; units are powers of `base`, those of `40GiB` of 1024, those of `40GB` of 1000.
fn size(text: &str, base: u64) -> Result<u64, String> {
    let digits = text.trim_end_matches(|c: char| c.is_ascii_alphabetic());
    let unit = text[digits.len()..].to_ascii_uppercase();
    let (unit, base) = match (unit.strip_suffix("IB"), unit.strip_suffix('B')) {
        (Some(unit), _) => (unit, 1024),
        (None, Some(unit)) => (unit, if unit.is_empty() { base } else { 1000 }),
        (None, None) => (&*unit, base),
    };
    let power = match unit {
        "" => 0,
        "K" => 1,
        "M" => 2,
        "G" => 3,
        "T" => 4,
        unit => return Err(format!("unknown unit `{unit}`; write for example 40G or 512M")),
    };
    let number: Option<u64> = digits.parse().ok();
    match number.and_then(|n| n.checked_mul(base.pow(power))) {
        None | Some(0) => Err("not a size; write for example 40G or 512M".to_owned()),
        Some(size) => Ok(size),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_have_the_units_of_their_kind() {
        assert_eq!(decimal_size("40G"), Ok(40_000_000_000));
        assert_eq!(binary_size("4g"), Ok(4 << 30));
        assert_eq!(decimal_size("12"), Ok(12));
        for bad in ["", "G", "0", "1X", "-1", "99999999999G"] {
            assert!(decimal_size(bad).is_err(), "{bad}");
        }
    }
}
