//! Options of everything that is measured.

use super::instructions::Instructions;
use super::numbers::{binary_size, part, time};
use super::{place, places, share};
use crate::cli::progress::Progress;
use crate::cli::views::measured::{self, Show};
use crate::cli::views::models::Format;
use crate::cli::views::units;
use crate::cli::{bad_usage, say, threads};
use crate::eval::{Activations, Scratch};
use crate::measure::{self, Against, Choices, Found, Options, Subject, Text, choices};
use crate::model::Model;
use clap::builder::{PossibleValuesParser, TypedValueParser};
use std::path::{Path, PathBuf};
use std::time::Duration;

/// Where hidden states wait, and how much memory there is.
#[derive(Clone, clap::Args)]
#[command(next_help_heading = "Machine")]
pub struct Room {
    /// Folder for hidden states, instead of memory; an interrupted run goes on from there with the
    /// same command
    #[arg(long, value_name = "DIR")]
    scratch: Option<PathBuf>,
    /// Memory to keep within, about, such as 4G; the more, the fewer times a layer's weights are decoded
    /// [default: some 2G and the hidden states]
    #[arg(long, value_name = "SIZE", value_parser = binary_size)]
    memory: Option<u64>,
}

impl Room {
    /// Memory as it comes, and a folder for hidden states.
    pub fn in_folder(scratch: Option<PathBuf>) -> Self {
        Self { scratch, memory: None }
    }

    /// Sets these of the options.
    pub fn apply(&self, options: Options) -> Options {
        let scratch = self.scratch.as_deref().map(Scratch::new);
        Options { scratch, memory: self.memory, ..options }
    }

    /// Removes what was kept of evaluations, now that their results are safe.
    pub fn finish(options: &Options) {
        let Some(scratch) = options.scratch.as_ref().filter(|_| !say::is_lost()) else { return };
        let (n, bytes) = scratch.finish();
        if n > 0 {
            // No fault of what was asked for, so no warning.
            say::info(format!(
                "{}: {n} other evaluations, running or stopped, have {} here; delete requant-* of those \
                 that are not to go on",
                scratch.folder().display(),
                units::bytes(bytes)
            ));
        }
    }
}

/// In which precision activations meet weights.
#[derive(Clone, Copy, clap::Args)]
pub struct Precision {
    /// Precision in which activations meet weights: f32, or q8, the rounding of llama.cpp on a CPU,
    /// for its figures
    #[arg(long = "activations", value_name = "TYPE", default_value = "f32",
          value_parser = PossibleValuesParser::new(["f32", "q8"]).map(|name| match name.as_str() {
              "q8" => Activations::Q8,
              _ => Activations::F32,
          }))]
    pub activations: Activations,
}

/// The page of what was found.
#[derive(clap::Args)]
#[command(next_help_heading = "Results")]
pub struct Report {
    /// Write a page with tables and pictures
    #[arg(long, value_name = "FILE")]
    report: Option<PathBuf>,
}

/// In which forms a comparison is shown.
#[derive(clap::Args)]
#[command(next_help_heading = "Results")]
pub struct Shape {
    /// Show the error of the hidden states after each layer
    #[arg(long)]
    by_layer: bool,
    #[command(flatten)]
    report: Report,
    /// Draw the models' mean KL divergence over their bits per weight (SVG)
    #[arg(long, value_name = "FILE")]
    plot: Option<PathBuf>,
    /// Form of the result; json as --json
    #[arg(long, value_enum, value_name = "FORM", default_value = "text", conflicts_with = "json")]
    format: Format,
    /// Show all figures of several models, not a line each
    #[arg(long, short)]
    verbose: bool,
    /// Write the values of every token, as lines of JSON
    #[arg(long, value_name = "FILE")]
    per_token: Option<PathBuf>,
}

/// Files that say what a verdict is, for what runs checks of changes.
#[derive(clap::Args)]
#[command(next_help_heading = "Results")]
pub struct Verdicts {
    /// Add a table of verdicts in Markdown to the end of this file, such as $GITHUB_STEP_SUMMARY
    #[arg(long, value_name = "FILE")]
    summary: Option<PathBuf>,
    /// Write the verdicts as JUnit's XML
    #[arg(long, value_name = "FILE")]
    junit: Option<PathBuf>,
}

/// What is shown of the whole alone: options and their files, where these are given.
type OfWhole<'a> = [(&'static str, Option<&'a Path>)];

/// Sees to it that the files can be written. A share has none of them.
fn prepare(files: &OfWhole, is_share: bool) -> anyhow::Result<()> {
    for (option, file) in files {
        let Some(file) = file else { continue };
        if is_share {
            return Err(bad_usage(format!("{option} is for the whole; give it to `requant join`")));
        }
        places::prepare(file)?;
    }
    Ok(())
}

impl Report {
    /// Sees to it that it can be written.
    pub fn prepare(&self, is_share: bool) -> anyhow::Result<()> {
        prepare(&[("--report", self.report.as_deref())], is_share)
    }

    /// The file.
    pub fn path(&self) -> Option<PathBuf> {
        self.report.clone()
    }
}

impl Shape {
    /// Whether it is JSON.
    pub fn is_json(&self) -> bool {
        self.format == Format::Json
    }

    /// Sees to it that files can be written.
    pub fn prepare(&self, is_share: bool) -> anyhow::Result<()> {
        if self.by_layer && is_share {
            return Err(bad_usage("--by-layer is for the whole; give it to `requant join`"));
        }
        self.report.prepare(is_share)?;
        let (plot, per_token) = (self.plot.as_deref(), self.per_token.as_deref());
        prepare(&[("--plot", plot), ("--per-token", per_token)], is_share)
    }

    /// How results are shown.
    pub fn show(&self, json: bool) -> Show {
        Show {
            json: json || self.is_json(),
            format: self.format,
            verbose: self.verbose,
            per_token: self.per_token.clone(),
            by_layer: self.by_layer,
            report: self.report.path(),
            plot: self.plot.clone(),
            ..Show::default()
        }
    }
}

impl Verdicts {
    /// Sees to it that they can be written.
    pub fn prepare(&self, is_share: bool) -> anyhow::Result<()> {
        let (summary, junit) = (self.summary.as_deref(), self.junit.as_deref());
        prepare(&[("--summary", summary), ("--junit", junit)], is_share)
    }

    /// Results that are shown so as well.
    pub fn show(&self, show: Show) -> Show {
        Show { summary: self.summary.clone(), junit: self.junit.clone(), ..show }
    }
}

/// The reference, and the models that are compared with it.
#[derive(clap::Args)]
pub struct Models {
    /// The reference, then the models to compare with it, with --base the models alone; NAME=PATH gives a model
    /// a name in the results
    #[arg(required = true, value_name = "MODEL")]
    models: Vec<PathBuf>,
    /// Take the reference from a file of log-probabilities (llama-perplexity's format)
    #[arg(long, value_name = "FILE", conflicts_with_all = ["text", "tokens", "ctx"])]
    base: Option<PathBuf>,
}

/// Models that were opened.
pub struct Opened<'a> {
    reference: Reference<'a>,
    candidates: Vec<(&'a Path, Model)>,
}

enum Reference<'a> {
    Model(&'a Path, Box<Model>),
    Base(&'a Path),
}

impl Models {
    /// Whether the reference is a file of log-probabilities.
    pub fn has_base(&self) -> bool {
        self.base.is_some()
    }

    /// Bad usage where there is nothing to compare with the reference.
    pub fn require_candidates(&self) -> anyhow::Result<()> {
        match self.base.is_none() && self.models.len() < 2 {
            true => Err(bad_usage("give a reference and at least one model to compare with it")),
            false => Ok(()),
        }
    }

    /// Opens them.
    pub fn open(&self, options: &Options) -> anyhow::Result<Opened<'_>> {
        let mut candidates = Vec::new();
        for word in &self.models {
            let (name, path) = labelled(word);
            candidates.push((name, model(path, options)?));
        }
        let reference = match &self.base {
            Some(base) => Reference::Base(base),
            None => {
                let (path, model) = candidates.remove(0);
                Reference::Model(path, Box::new(model))
            }
        };
        Ok(Opened { reference, candidates })
    }

    /// The texts, unless the file of log-probabilities has one.
    pub fn texts(&self, text: &TextArgs) -> anyhow::Result<Vec<Text>> {
        if self.has_base() { Ok(Vec::new()) } else { text.read() }
    }
}

impl Opened<'_> {
    /// What the models are compared with.
    pub fn reference(&self) -> Against<'_> {
        match &self.reference {
            Reference::Model(path, model) => Against::Model(Subject { path, model }),
            Reference::Base(path) => Against::Base(path),
        }
    }

    /// The models.
    pub fn candidates(&self) -> Vec<Subject<'_>> {
        self.candidates.iter().map(|(path, model)| Subject { path, model }).collect()
    }
}

/// The text, and how it is cut.
#[derive(clap::Args)]
#[command(next_help_heading = "Text")]
pub struct TextArgs {
    /// Text file, or - for standard input; repeatable, for figures of each text beside those of all
    #[arg(long, value_name = "FILE")]
    text: Vec<PathBuf>,
    /// File of token numbers instead, separated by spaces, commas or lines
    #[arg(long, value_name = "FILE", conflicts_with = "text")]
    tokens: Vec<PathBuf>,
    /// Tokens per chunk [default: 512]
    #[arg(long, short, value_name = "N",
          value_parser = clap::value_parser!(u32).range(4..=1 << 20))]
    ctx: Option<u32>,
    /// Use only the first N chunks of each text
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..))]
    chunks: Option<u32>,
}

/// How it runs.
#[derive(clap::Args)]
#[command(next_help_heading = "Machine")]
pub struct RunArgs {
    /// Threads [default: all processors]
    #[arg(long, short = 'j', value_name = "N",
          value_parser = clap::value_parser!(u16).range(1..=1024))]
    threads: Option<u16>,
    #[command(flatten)]
    precision: Precision,
    #[command(flatten)]
    instructions: Instructions,
    /// Print JSON
    #[arg(long, help_heading = "Results")]
    pub json: bool,
}

/// How `compare`, `gate` and `perplexity` measure.
#[derive(clap::Args)]
pub struct Measuring {
    #[command(flatten)]
    sampling: Sampling,
    #[command(flatten)]
    pub share: share::Args,
    #[command(flatten)]
    room: Room,
    #[command(flatten)]
    run: RunArgs,
}

impl Measuring {
    /// What the options say together.
    pub fn options(&self, text: &TextArgs) -> Options {
        self.sampling.apply(options(text, &self.room, &self.run))
    }

    /// Whether results are JSON.
    pub fn json(&self) -> bool {
        self.run.json
    }
}

/// What the options of a measurement say together.
pub fn options(text: &TextArgs, room: &Room, run: &RunArgs) -> Options {
    room.apply(Options {
        ctx: text.ctx.map_or(Options::default().ctx, |ctx| ctx as usize),
        chunks: text.chunks.map(|n| n as usize),
        activations: run.precision.activations,
        simd: run.instructions.simd(),
        threads: threads(run.threads.map(usize::from)),
        ..Options::default()
    })
}

/// What results call a model, and where it is: `NAME=PATH`, or a path that is both.
pub fn labelled(word: &Path) -> (&Path, &Path) {
    match word.to_str().and_then(|text| text.split_once('=')) {
        Some((name, path)) if !word.exists() && !name.is_empty() && !name.contains(['/', ':']) => {
            (Path::new(name), Path::new(path))
        }
        _ => (word, word),
    }
}

/// A model to be measured.
pub fn model(path: &Path, options: &Options) -> anyhow::Result<Model> {
    place::refuse_text(path)?;
    let mut model = place::model(path)?;
    model.set_simd(options.simd);
    Ok(model)
}

/// Shows what was found, removes what is not needed any more, and gives the exit code.
pub fn conclude(found: &Found, show: &Show, options: &Options) -> anyhow::Result<u8> {
    let exit = measured::found(found, show)?;
    if found.is_complete() {
        Room::finish(options);
    }
    Ok(exit)
}

impl TextArgs {
    /// The texts, or the numbers of their tokens.
    pub fn read(&self) -> anyhow::Result<Vec<Text>> {
        let texts = self.text.iter().map(|path| match path.as_os_str() == "-" {
            true => Text::from_reader(path, std::io::stdin().lock()),
            false => Text::read(path),
        });
        let tokens = self.tokens.iter().map(|path| Text::read_tokens(path));
        let texts = texts.chain(tokens).collect::<Result<Vec<_>, _>>()?;
        match texts.is_empty() {
            true => Err(bad_usage("give a text with --text, or token numbers with --tokens")),
            false => Ok(texts),
        }
    }

    /// The one text.
    pub fn read_one(&self) -> anyhow::Result<Text> {
        match <[Text; 1]>::try_from(self.read()?) {
            Ok([text]) => Ok(text),
            Err(_) => Err(bad_usage("give one text")),
        }
    }
}

/// Tasks whose answers are given.
#[derive(clap::Args)]
#[command(next_help_heading = "Tasks with given answers")]
pub struct Tasks {
    /// Let models choose among given answers: a file of JSON lines ({"context": …, "choices": […],
    /// "answer": 0}), or one of llama-perplexity --multiple-choice, --hellaswag or --winogrande
    #[arg(long, value_name = "FILE")]
    choices: Option<PathBuf>,
    /// Use only N tasks, from all over the file
    #[arg(long, value_name = "N", requires = "choices", value_parser = clap::value_parser!(u32).range(1..))]
    tasks: Option<u32>,
}

impl Tasks {
    /// Whether there are some, and no text.
    pub fn are_alone(&self, text: &TextArgs) -> bool {
        self.choices.is_some() && text.text.is_empty() && text.tokens.is_empty()
    }

    /// Refuses what text and tasks cannot do together.
    pub fn check(&self, text: &TextArgs, share: &share::Args) -> anyhow::Result<()> {
        if self.choices.is_some() && !self.are_alone(text) && !share.is_whole() {
            return Err(bad_usage(
                "--shard and --dry-run are about a text or about --choices: run them once for each",
            ));
        }
        Ok(())
    }

    /// Has models answer.
    pub fn ask(&self, subjects: &[Subject], options: &Options) -> anyhow::Result<Option<Choices>> {
        let Some(tasks) = self.of_file() else { return Ok(None) };
        let progress = Progress::start("choices", 0, "token-layers", 0);
        let found = choices(subjects, tasks, options, &progress)?;
        progress.finish();
        Ok(Some(found))
    }

    /// Has models answer where nothing else is measured: all tasks or a share, or says what it would take.
    pub fn ask_alone(
        &self,
        subjects: &[Subject],
        options: &Options,
        share: &share::Args,
        json: bool,
    ) -> anyhow::Result<()> {
        let Some(tasks) = self.of_file() else { return Ok(()) };
        if share.is_whole() {
            self.ask(subjects, options)?.iter().for_each(|found| measured::choices(found, json));
            return Ok(());
        }
        share.ask(subjects, tasks, options, json)
    }

    fn of_file(&self) -> Option<measure::Tasks<'_>> {
        let file = self.choices.as_deref()?;
        Some(measure::Tasks { file, most: self.tasks.map(|n| n as usize) })
    }
}

/// How many chunks are enough.
#[derive(clap::Args)]
#[command(next_help_heading = "How much of the text")]
struct Sampling {
    /// Take chunks from all over the text, and stop as soon as the standard error of the mean KL divergence
    /// (of the mean negative log-likelihood for perplexity) is this part of the mean, for example 2%
    #[arg(long, value_name = "PERCENT", value_parser = part, conflicts_with = "shard")]
    until_error: Option<f64>,
    /// Take chunks from all over the text for so long, for example 30m or 2h, and say what was found by then
    #[arg(long, value_name = "TIME", value_parser = time, conflicts_with = "shard")]
    time_limit: Option<Duration>,
    /// Which chunks come first where not all may be needed
    #[arg(long, value_name = "N", default_value_t = 0)]
    seed: u64,
}

impl Sampling {
    /// Sets these of the options.
    fn apply(&self, options: Options) -> Options {
        Options {
            until_error: self.until_error,
            time_limit: self.time_limit,
            seed: self.seed,
            ..options
        }
    }
}
