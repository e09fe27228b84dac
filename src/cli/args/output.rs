//! Options on how and where files are written. Each command takes those that mean something to it.

use super::calibrate::Prepared;
use super::numbers::{binary_size, decimal_size};
use super::{places, share};
use crate::cli::progress::Progress;
use crate::cli::views::units;
use crate::cli::{bad_usage, say, threads};
use crate::convert::{
    Ingredient, Ladder, Limit, Manifest, Naming, RunOptions, Rung, Shard, SplitBy,
};
use crate::io::{LocalDisk, folder};
use crate::source::{Source, SourceFile, is_url, without_secrets};
use crate::warning::{Topic, Warning};
use anyhow::bail;
use serde_json::Value as Json;
use std::path::{Path, PathBuf};

/// How outputs are cut and written, and what may be used for it.
#[derive(clap::Args)]
#[command(mut_arg("manifest", |arg| arg.conflicts_with("shard")))]
pub struct Args {
    #[command(flatten)]
    pub cutting: Cutting,
    #[command(flatten)]
    pub writing: Writing,
    #[command(flatten)]
    pub resources: Resources,
}

/// Of which files the output is made up.
#[derive(clap::Args)]
#[command(next_help_heading = "Output")]
pub struct Cutting {
    /// Split the output into files of at most this size, such as 40G (decimal, as llama-gguf-split counts)
    /// or 40GiB
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
}

/// How files are written.
#[derive(clap::Args)]
#[command(next_help_heading = "Output")]
pub struct Writing {
    /// Then write OUTPUT.manifest.json, SHA-256 of every input, output and tensor, and OUTPUT.sha256 for
    /// sha256sum -c
    #[arg(long)]
    manifest: bool,
    /// Name files in the manifest with their folders, as they were given
    #[arg(long, requires = "manifest")]
    full_paths: bool,
    /// Replace an existing output, and remove what belonged to it
    #[arg(long, short)]
    force: bool,
    /// Begin anew where an interrupted run was kept
    #[arg(long)]
    restart: bool,
}

/// What of the machine may be used.
#[derive(clap::Args)]
#[command(next_help_heading = "Machine")]
pub struct Resources {
    /// Memory to use at most, such as 4G [default: a sixteenth of what may be used, at least 1G; with
    /// --calibrate, a quarter for that]
    #[arg(long, value_name = "SIZE", value_parser = binary_size)]
    memory: Option<u64>,
    /// Threads [default: all processors]
    #[arg(long, short = 'j', value_name = "N", value_parser = clap::value_parser!(u16).range(1..=1024))]
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

    /// Whether the number of threads is given.
    pub fn has_threads(&self) -> bool {
        self.threads.is_some()
    }
}

impl Cutting {
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

    /// The share of the files that is written, where it is not all of them.
    pub fn shard(&self) -> anyhow::Result<Option<Shard>> {
        self.shard.as_deref().map(share::shard).transpose()
    }

    /// Warns of tensors that are larger than a file is to be.
    fn warn_of_large(&self, ladder: &Ladder, shard: Option<Shard>) -> anyhow::Result<()> {
        let Some(limit) = self.split_max_size else { return Ok(()) };
        let layouts = ladder.rungs().iter().flat_map(|Rung { plan, .. }| {
            plan.files()[plan.files_of(shard)].iter().map(|file| &file.layout)
        });
        let sizes: Vec<(u64, u64)> = layouts
            .map(|layout| (layout.file_size(), layout.file_size() - layout.data_offset()))
            .collect();
        let large = sizes.iter().filter(|(_, data)| *data > limit).count();
        if large > 0 {
            let largest = sizes.iter().map(|(size, _)| *size).max().unwrap_or(0);
            let text = format!(
                "{large} of {} files hold a tensor that is larger than the limit; the largest \
                 has {}",
                sizes.len(),
                units::bytes(largest)
            );
            say::warning(&Warning::new(Topic::Output, text));
            say::heed()?;
        }
        Ok(())
    }
}

impl Args {
    /// What a plan depends on.
    pub fn planning(&self) -> (&Cutting, &Resources) {
        (&self.cutting, &self.resources)
    }

    /// How the plan is carried out.
    pub fn options(&self) -> anyhow::Result<RunOptions<'static>> {
        Ok(self.writing.options(self.cutting.shard()?))
    }

    /// Carries out what is planned; what rounding with a text has gained.
    pub fn run(
        &self,
        what: &'static str,
        ladder: &Ladder,
        source: &dyn Source,
        ingredients: &[Ingredient],
        options: RunOptions,
        calibrated: Option<&Prepared>,
    ) -> anyhow::Result<Json> {
        self.cutting.warn_of_large(ladder, options.shard)?;
        let memory = self.resources.memory();
        self.writing.run(ladder, source, ingredients, options, |options| match calibrated {
            None => write(what, ladder, source, options).map(|()| Json::Null),
            Some(text) => text.run(what, ladder, source, options, memory),
        })
    }
}

impl Writing {
    /// How the plan is carried out.
    pub fn options(&self, shard: Option<Shard>) -> RunOptions<'static> {
        RunOptions {
            force: self.force,
            restart: self.restart,
            shard,
            keep_journal: false,
            disk: &LocalDisk,
        }
    }

    /// Has plans carried out, with what belongs before and after.
    pub fn run<T>(
        &self,
        ladder: &Ladder,
        source: &dyn Source,
        ingredients: &[Ingredient],
        options: RunOptions,
        run: impl FnOnce(RunOptions) -> anyhow::Result<T>,
    ) -> anyhow::Result<T> {
        places::prepare_folder(ladder.rungs()[0].output)?;
        ladder.check_output(options)?;
        let shard = options.shard;
        let paths: Vec<PathBuf> =
            ladder.rungs().iter().flat_map(|rung| rung.paths(shard)).collect();
        let written = paths.iter().filter_map(|path| path.canonicalize().ok());
        let read: Vec<PathBuf> =
            source.files().iter().filter_map(|file| file.path.canonicalize().ok()).collect();
        if let Some(path) = written.into_iter().find(|path| read.contains(path)) {
            bail!("{}: is the source itself; give the output another name", path.display());
        }
        if let Some(shard) = shard {
            let names: Vec<String> = paths.iter().map(|path| path.display().to_string()).collect();
            let (k, n) = (shard.number(), shard.count());
            match names.is_empty() {
                true => {
                    say::info(format!("share {k}/{n}: no file falls to this share, nothing to do"))
                }
                false => say::info(format!("share {k}/{n}: {}", names.join(", "))),
            }
        }
        let files = ladder.rungs().iter().map(|rung| rung.plan.files().len()).sum();
        say::debug(format!(
            "{}, {} in {}, at most {} of memory",
            units::of(ladder.threads(), "thread"),
            units::of(ladder.rungs()[0].plan.tensors().len(), "tensor"),
            units::of(files, "file"),
            units::bytes(ladder.peak_memory())
        ));
        let options = match ladder.other_run(source, options)? {
            Some(what) if options.force && !options.restart => {
                let place = ladder.place();
                say::info(format!(
                    "{}: begins anew; an unfinished run of {what} was kept here",
                    place.display()
                ));
                RunOptions { restart: true, ..options }
            }
            _ => options,
        };
        let done = run(options)?;
        if options.force {
            let removed = ladder.remove_older(source, options)?;
            let names: Vec<String> =
                removed.iter().map(|path| path.display().to_string()).collect();
            if !names.is_empty() {
                say::info(format!("removed with the older output: {}", names.join(", ")));
            }
        }
        if self.manifest {
            self.write_manifests(ladder, source, ingredients)?;
        }
        Ok(done)
    }

    /// Writes manifests beside the outputs; what was read is hashed once.
    fn write_manifests(
        &self,
        ladder: &Ladder,
        source: &dyn Source,
        ingredients: &[Ingredient],
    ) -> anyhow::Result<()> {
        let local = source.files().into_iter().filter(SourceFile::is_local).map(|file| file.size);
        let inputs: u64 = local.sum();
        let progress = Progress::start("hash", inputs + ladder.size(None), "B", 0);
        let naming = if self.full_paths { Naming::Full } else { Naming::Base };
        let options: Vec<String> = std::env::args_os()
            .skip(1)
            .map(|argument| naming_of(naming, &argument.to_string_lossy()))
            .collect();
        let inputs = Manifest::hash_inputs(source, ingredients, naming, &progress)?;
        for rung in ladder.rungs() {
            let inputs = inputs.clone();
            let manifest = Manifest::make(inputs, *rung, options.clone(), naming, &progress)?;
            manifest.write(&LocalDisk, rung.output)?;
        }
        progress.finish();
        Ok(())
    }
}

/// Writes what is planned, and shows how much is written.
pub fn write(
    what: &'static str,
    ladder: &Ladder,
    source: &dyn Source,
    options: RunOptions,
) -> anyhow::Result<()> {
    let progress = progress(what, ladder, options);
    ladder.run(source, options, &progress)?;
    progress.finish();
    Ok(())
}

/// Shows how much is written.
pub fn progress(what: &'static str, ladder: &Ladder, options: RunOptions) -> Progress {
    let shard = options.shard;
    Progress::start(what, ladder.weights(shard), "weights", ladder.size(shard))
}

/// An argument as a manifest has it: without folders, and without what in a URL grants access.
fn naming_of(naming: Naming, argument: &str) -> String {
    let (option, value) = match argument.split_once('=') {
        Some((option, value)) if option.starts_with("--") => (Some(option), value),
        _ => (None, argument),
    };
    let value = match is_url(value) {
        true => without_secrets(value),
        // What is no path has no folder that exists.
        false if naming == Naming::Base && folder(Path::new(value)).is_dir() => {
            let name = Path::new(value).file_name().unwrap_or(value.as_ref());
            name.to_string_lossy().into_owned()
        }
        false => value.to_owned(),
    };
    match option {
        Some(option) => format!("{option}={value}"),
        None => value,
    }
}
