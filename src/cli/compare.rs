//! `requant compare` and `requant gate`: what a quantization costs, token by token.

use super::evaluate::{Precision, Room};
use super::instructions::Instructions;
use super::progress::Progress;
use super::show::{self, Show};
use super::{bad_usage, place, share, threads};
use crate::eval::Limits;
use crate::measure::{Against, Choices, Extras, Job, Options, Subject, Terms, Text, choices};
use crate::model::Model;
use std::path::{Path, PathBuf};

/// Compare models with a reference on a text: perplexity, KL divergence, agreement.
///
/// All models pass the text together, layer by layer; no file of logits is needed. Definitions are
/// those of llama-perplexity --kl-divergence.
#[derive(clap::Args)]
#[command(after_help = "Examples:\n  requant compare DeepSeek-R1 DeepSeek-R1-Q4_K_M.gguf \
                        --text wiki.test.raw --report cost.html\n  \
                        requant compare --base r1.kld DeepSeek-R1-Q4_K_M.gguf")]
pub struct Args {
    /// The reference, then the models to compare with it; with --base, the models alone
    #[arg(required = true, value_name = "MODEL")]
    models: Vec<PathBuf>,
    #[command(flatten)]
    text: TextArgs,
    /// Take the reference from a file of log-probabilities (llama-perplexity's format)
    #[arg(long, value_name = "FILE", conflicts_with_all = ["text", "tokens", "ctx", "save_base"])]
    base: Option<PathBuf>,
    /// Save the reference's log-probabilities in llama-perplexity's format
    #[arg(long, value_name = "FILE", conflicts_with_all = ["shard", "until_error"])]
    save_base: Option<PathBuf>,
    /// Show the error of the hidden states after each layer
    #[arg(long, conflicts_with = "shard")]
    by_layer: bool,
    /// Measure the error of each tensor's output alone, on the reference's own activations
    #[arg(long, conflicts_with = "base")]
    by_tensor: bool,
    /// Write a page with tables and pictures
    #[arg(long, value_name = "FILE", conflicts_with = "shard")]
    report: Option<PathBuf>,
    #[command(flatten)]
    tasks: Tasks,
    #[command(flatten)]
    sampling: Sampling,
    #[command(flatten)]
    share: share::Args,
    #[command(flatten)]
    room: Room,
    #[command(flatten)]
    run: RunArgs,
}

/// The text, and how it is cut.
#[derive(clap::Args)]
pub struct TextArgs {
    /// Text file; repeatable, for figures of each text beside those of all
    #[arg(long, short = 'f', value_name = "FILE")]
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
pub struct RunArgs {
    /// Threads [default: all processors]
    #[arg(long, short, value_name = "N", value_parser = clap::value_parser!(u16).range(1..=1024))]
    threads: Option<u16>,
    #[command(flatten)]
    precision: Precision,
    #[command(flatten)]
    instructions: Instructions,
    /// Print JSON
    #[arg(long)]
    pub json: bool,
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

/// A model to be measured.
pub fn model(path: &Path, options: &Options) -> anyhow::Result<Model> {
    let mut model = place::model(path)?;
    model.set_simd(options.simd);
    Ok(model)
}

impl TextArgs {
    /// The texts, or the numbers of their tokens.
    pub fn read(&self) -> anyhow::Result<Vec<Text>> {
        let texts = self.text.iter().map(|path| Text::read(path));
        let tokens = self.tokens.iter().map(|path| Text::read_tokens(path));
        let texts = texts.chain(tokens).collect::<Result<Vec<_>, _>>()?;
        match texts.is_empty() {
            true => bad_usage("give a text with --text, or token numbers with --tokens"),
            false => Ok(texts),
        }
    }

    /// The one text.
    pub fn read_one(&self) -> anyhow::Result<Text> {
        match <[Text; 1]>::try_from(self.read()?) {
            Ok([text]) => Ok(text),
            Err(_) => bad_usage("give one text"),
        }
    }
}

/// Tasks whose answers are given.
#[derive(clap::Args)]
pub struct Tasks {
    /// Let models choose among given answers: a file of JSON lines ({"context": …, "choices": […],
    /// "answer": 0}), or one of llama-perplexity --multiple-choice, --hellaswag or --winogrande
    #[arg(long, value_name = "FILE", conflicts_with_all = ["shard", "dry_run"])]
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

    /// Has models answer.
    pub fn ask(&self, subjects: &[Subject], options: &Options) -> anyhow::Result<Option<Choices>> {
        let Some(file) = &self.choices else { return Ok(None) };
        let progress = Progress::start("choices", 0, "token-layers", 0);
        let most = self.tasks.map(|n| n as usize);
        let found = choices(subjects, file, most, options, &progress)?;
        progress.finish();
        Ok(Some(found))
    }
}

/// How many chunks are enough.
#[derive(clap::Args)]
pub struct Sampling {
    /// Take chunks from all over the text, and stop as soon as the standard error of the mean KL divergence
    /// (of the mean negative log-likelihood for perplexity) is this part of the mean, for example 2%
    #[arg(long, value_name = "PERCENT", value_parser = percent, conflicts_with = "shard")]
    until_error: Option<f64>,
    /// Which chunks come first where not all may be needed
    #[arg(long, value_name = "N", default_value_t = 0)]
    seed: u64,
}

impl Sampling {
    /// Sets these of the options.
    pub fn apply(&self, options: Options) -> Options {
        Options { until_error: self.until_error, seed: self.seed, ..options }
    }
}

/// `2%` or `0.02`.
fn percent(text: &str) -> Result<f64, String> {
    let (number, scale) = text.strip_suffix('%').map_or((text, 1.0), |number| (number, 100.0));
    let number: Option<f64> = number.trim().parse().ok();
    number
        .map(|x| x / scale)
        .filter(|x| *x > 0.0 && *x < 1.0)
        .ok_or("write for example 2%".to_owned())
}

pub fn run(args: &Args) -> anyhow::Result<()> {
    let options = args.sampling.apply(options(&args.text, &args.room, &args.run));
    let candidates = match (&args.base, args.models.as_slice()) {
        (Some(_), models) => models,
        (None, [_, candidates @ ..]) if args.save_base.is_some() || !candidates.is_empty() => {
            candidates
        }
        _ => bad_usage("give a reference and at least one model to compare with it"),
    };
    let open = |path: &PathBuf| model(path, &options);
    let opened = candidates.iter().map(open).collect::<anyhow::Result<Vec<_>>>()?;
    let candidates: Vec<Subject> =
        candidates.iter().zip(&opened).map(|(path, model)| Subject { path, model }).collect();
    let alone = args.base.is_none() && args.tasks.are_alone(&args.text);
    let path = &args.models[0];
    let of_reference;
    let (reference, texts) = match &args.base {
        Some(base) => (Against::Base(base), Vec::new()),
        None => {
            of_reference = open(path)?;
            let texts = if alone { Vec::new() } else { args.text.read()? };
            (Against::Model(Subject { path, model: &of_reference }), texts)
        }
    };
    let extras = Extras { by_tensor: args.by_tensor, save_base: args.save_base.as_deref() };
    let job = Job::Compare { reference, candidates: &candidates, extras };
    let ask = || args.tasks.ask(&job.subjects(), &options);
    if alone {
        ask()?.iter().for_each(|choices| show::choices(choices, args.run.json));
    } else if let Some(part) =
        args.share.measure("compare", job, &texts, &options, args.run.json)?
    {
        let show = Show {
            json: args.run.json,
            by_layer: args.by_layer,
            report: args.report.clone(),
            choices: ask()?,
        };
        show::found(&part.result()?, &show)?;
    }
    Room::finish(&options);
    Ok(())
}

/// Decide whether a model's loss stays within limits, as early as the measurements allow.
///
/// Exit codes: 0 all limits are kept, 3 one is not, 4 undecided at this confidence.
#[derive(clap::Args)]
#[command(after_help = "Example:\n  requant gate DeepSeek-R1 DeepSeek-R1-Q4_K_M.gguf \
                        --text wiki.test.raw --max-kld 0.02 --max-ppl-ratio 1.01")]
#[command(group(clap::ArgGroup::new("limits").required(true).multiple(true)
                .args(["max_kld", "max_ppl_ratio", "min_same_top"])))]
pub struct GateArgs {
    /// The reference: checkpoint or GGUF file
    reference: PathBuf,
    /// The model to judge
    model: PathBuf,
    #[command(flatten)]
    text: TextArgs,
    /// Largest mean KL divergence, in nats
    #[arg(long, value_name = "X", value_parser = positive)]
    max_kld: Option<f64>,
    /// Largest perplexity, divided by the reference's
    #[arg(long, value_name = "X", value_parser = positive)]
    max_ppl_ratio: Option<f64>,
    /// Smallest share of tokens with the same most probable token, from 0 to 1
    #[arg(long, value_name = "X", value_parser = positive)]
    min_same_top: Option<f64>,
    /// Probability that a verdict is right
    #[arg(long, value_name = "P", default_value_t = 0.99, value_parser = probability)]
    confidence: f64,
    #[command(flatten)]
    sampling: Sampling,
    #[command(flatten)]
    share: share::Args,
    #[command(flatten)]
    room: Room,
    #[command(flatten)]
    run: RunArgs,
}

fn positive(text: &str) -> Result<f64, String> {
    text.parse().ok().filter(|x: &f64| *x > 0.0 && x.is_finite()).ok_or("not above 0".to_owned())
}

fn probability(text: &str) -> Result<f64, String> {
    let inside = |p: &f64| *p > 0.5 && *p < 1.0;
    text.parse().ok().filter(inside).ok_or("not between 0.5 and 1".to_owned())
}

/// The exit code of the verdict.
pub fn gate(args: &GateArgs) -> anyhow::Result<u8> {
    let options = args.sampling.apply(options(&args.text, &args.room, &args.run));
    let texts = args.text.read()?;
    let (reference, model) = (model(&args.reference, &options)?, model(&args.model, &options)?);
    let reference = Subject { path: &args.reference, model: &reference };
    let candidate = Subject { path: &args.model, model: &model };
    let limits = Limits {
        kl: args.max_kld,
        perplexity_ratio: args.max_ppl_ratio,
        same_top: args.min_same_top,
    };
    let job =
        Job::Gate { reference, candidate, terms: Terms { limits, confidence: args.confidence } };
    let mut exit = 0;
    if let Some(part) = args.share.measure("gate", job, &texts, &options, args.run.json)? {
        let show = Show { json: args.run.json, ..Show::default() };
        exit = show::found(&part.result()?, &show)?;
    }
    Room::finish(&options);
    Ok(exit)
}
