//! `requant compare` and `requant gate`: what a quantization costs, token by token.

use super::evaluate::{Precision, Room};
use super::instructions::Instructions;
use super::progress::Progress;
use super::{bad_usage, place, report, say, threads};
use crate::eval::{Activations, Limits, Verdict};
use crate::io::LocalDisk;
use crate::measure::{self, Extras, Judgement, Options, Outcome, Subject, Text};
use crate::model::Model;
use serde_json::{Value, json};
use std::path::{Path, PathBuf};
use std::process::ExitCode;

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
    #[arg(long, value_name = "FILE")]
    save_base: Option<PathBuf>,
    /// Show the error of the hidden states after each layer
    #[arg(long)]
    by_layer: bool,
    /// Measure the error of each tensor's output alone, on the reference's own activations
    #[arg(long, conflicts_with = "base")]
    by_tensor: bool,
    /// Write a page with tables and pictures
    #[arg(long, value_name = "FILE")]
    report: Option<PathBuf>,
    #[command(flatten)]
    room: Room,
    #[command(flatten)]
    run: RunArgs,
}

/// The text, and how it is cut.
#[derive(clap::Args)]
pub struct TextArgs {
    /// Text file
    #[arg(long, short = 'f', value_name = "FILE")]
    text: Option<PathBuf>,
    /// File of token numbers instead, separated by spaces, commas or lines
    #[arg(long, value_name = "FILE", conflicts_with = "text")]
    tokens: Option<PathBuf>,
    /// Tokens per chunk [default: 512]
    #[arg(long, short, value_name = "N",
          value_parser = clap::value_parser!(u32).range(4..=1 << 20))]
    ctx: Option<u32>,
    /// Use only the first N chunks
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
    /// The text, or the numbers of its tokens.
    pub fn read(&self) -> anyhow::Result<Text> {
        match (&self.text, &self.tokens) {
            (Some(path), _) => Ok(Text::read(path)?),
            (None, Some(path)) => Ok(Text::read_tokens(path)?),
            (None, None) => bad_usage("give a text with --text, or token numbers with --tokens"),
        }
    }
}

pub fn run(args: &Args) -> anyhow::Result<()> {
    let options = options(&args.text, &args.room, &args.run);
    let candidates = match (&args.base, args.models.as_slice()) {
        (Some(_), models) => models,
        (None, [_, candidates @ ..]) if args.save_base.is_some() || !candidates.is_empty() => {
            candidates
        }
        _ => bad_usage("give a reference and at least one model to compare with it"),
    };
    let opened = candidates.iter().map(|path| model(path, &options));
    let opened = opened.collect::<anyhow::Result<Vec<_>>>()?;
    let candidates: Vec<Subject> =
        candidates.iter().zip(&opened).map(|(path, model)| Subject { path, model }).collect();
    let progress = Progress::start("compare", 0, "token-layers", 0);
    let outcome = match &args.base {
        Some(base) => measure::compare_with_base(base, &candidates, &options, &progress),
        None => {
            let path = args.models[0].as_path();
            let model = model(path, &options)?;
            let (text, reference) = (args.text.read()?, Subject { path, model: &model });
            let extras = Extras { by_tensor: args.by_tensor, save_base: args.save_base.as_deref() };
            measure::compare(reference, &candidates, &text, &options, extras, &progress)
        }
    };
    let outcome = outcome?;
    progress.finish();
    if let Some(path) = &args.report {
        crate::io::write(&LocalDisk, path, report::page(&outcome).as_bytes())?;
    }
    match args.run.json {
        true => say::json(as_json(&outcome)),
        false => print!("{}", table(&outcome, args.by_layer)),
    }
    Room::finish(&options);
    Ok(())
}

/// For people.
fn table(outcome: &Outcome, by_layer: bool) -> String {
    let mut out = format!(
        "reference {}\n  perplexity {:.4} ± {:.4}, {} tokens scored in {} chunks of {}{}\n",
        outcome.reference.display(),
        outcome.own.perplexity,
        outcome.own.perplexity_error,
        outcome.own.tokens_scored,
        outcome.own.nll_per_chunk.len(),
        outcome.ctx,
        match outcome.activations {
            Activations::F32 => "",
            Activations::Q8 => ", activations rounded as llama.cpp does",
        },
    );
    for row in &outcome.rows {
        let c = &row.comparison;
        out += &format!("\n{} ({:.3} bits per weight)\n", row.path.display(), row.bits_per_weight);
        let mut line = |name: &str, text: String| out += &format!("  {name:<24} {text}\n");
        let p = &c.perplexity;
        line("perplexity", format!("{:.4} ± {:.4}", p.perplexity, p.perplexity_error));
        line(
            "ln(PPL ratio), paired",
            format!("{:+.6} ± {:.6}", c.paired.ln_ratio, c.paired.ln_ratio_error),
        );
        line("PPL ratio", format!("{:.6} ± {:.6}", c.paired.ratio, c.paired.ratio_error));
        line("correlation of ln p", format!("{:.3} %", 100.0 * c.correlation));
        let kl = &c.kl_divergence;
        let chunk = kl.mean_error_by_chunk.map_or(String::new(), |e| format!(" (by chunk {e:.6})"));
        line("mean KL divergence", format!("{:.6} ± {:.6}{chunk}", kl.mean.value, kl.mean.error));
        let at = |d: &crate::eval::Distribution, wanted: f64| {
            d.percentiles.iter().find(|p| p.0 == wanted).map_or(f64::NAN, |p| p.1)
        };
        let percentiles = [50.0, 90.0, 95.0, 99.0, 99.9].map(|p| format!("{:.6}", at(kl, p)));
        line("  50 90 95 99 99.9 %", percentiles.join("  "));
        line("  maximum", format!("{:.6}", kl.max));
        let top = c.same_top;
        line("same top token", format!("{:.3} ± {:.3} %", 100.0 * top.value, 100.0 * top.error));
        let change = &c.p_change;
        line(
            "change of p, mean",
            format!("{:+.3} ± {:.3} %", 100.0 * change.mean.value, 100.0 * change.mean.error),
        );
        let rms = c.p_change_rms;
        line("change of p, RMS", format!("{:.3} ± {:.3} %", 100.0 * rms.value, 100.0 * rms.error));
        let percentiles =
            [1.0, 5.0, 50.0, 95.0, 99.0].map(|p| format!("{:+.3}", 100.0 * at(change, p)));
        line("  1 5 50 95 99 %", percentiles.join("  "));
        if by_layer {
            for (layer, error) in c.layer_error.iter().enumerate() {
                line(&format!("state after layer {layer}"), format!("{error:.3e} relative"));
            }
        }
        for (name, error) in row.tensors.iter().flatten() {
            line(name, format!("{error:.3e} relative, of its output"));
        }
    }
    out
}

/// See docs/schema/compare.json.
fn as_json(outcome: &Outcome) -> Value {
    let rows: Vec<Value> = outcome
        .rows
        .iter()
        .map(|row| {
            let mut value = json!({
                "model": row.path,
                "bits_per_weight": row.bits_per_weight,
                "result": row.comparison,
            });
            if let Some(tensors) = &row.tensors {
                let list =
                    tensors.iter().map(|(name, error)| json!({ "name": name, "error": error }));
                value["tensors"] = list.collect();
            }
            value
        })
        .collect();
    json!({
        "version": 1,
        "reference": outcome.reference,
        "text": outcome.text,
        "ctx": outcome.ctx,
        "activations": outcome.activations,
        "reference_perplexity": outcome.own,
        "models": rows,
    })
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

pub fn gate(args: &GateArgs) -> anyhow::Result<ExitCode> {
    let options = options(&args.text, &args.room, &args.run);
    let text = args.text.read()?;
    let (reference, model) = (model(&args.reference, &options)?, model(&args.model, &options)?);
    let reference = Subject { path: &args.reference, model: &reference };
    let candidate = Subject { path: &args.model, model: &model };
    let limits = Limits {
        kl: args.max_kld,
        perplexity_ratio: args.max_ppl_ratio,
        same_top: args.min_same_top,
    };
    let progress = Progress::start("gate", 0, "token-layers", 0);
    let judged =
        measure::gate(reference, candidate, &text, limits, args.confidence, &options, &progress);
    let Judgement { verdict, checks, chunks, chunks_available } = judged?;
    progress.finish();
    if args.run.json {
        let json = json!({
            "version": 1, "reference": args.reference, "model": args.model,
            "activations": options.activations, "verdict": verdict,
            "confidence": args.confidence, "chunks": chunks, "chunks_available": chunks_available,
            "checks": checks,
        });
        say::json(json);
    } else {
        for check in &checks {
            let verdict = match check.verdict {
                Verdict::Pass => "pass".to_owned(),
                Verdict::Fail => "FAIL".to_owned(),
                Verdict::Undecided => match check.chunks_needed {
                    Some(n) => format!("undecided, some {n} chunks would decide"),
                    None => "undecided".to_owned(),
                },
            };
            println!(
                "{:<20} {:.6} ± {:.6}, limit {}: {verdict}",
                check.what, check.value, check.error, check.limit
            );
        }
        let name = match verdict {
            Verdict::Pass => "PASS",
            Verdict::Fail => "FAIL",
            Verdict::Undecided => "UNDECIDED",
        };
        println!(
            "{name} at confidence {} after {chunks} of {chunks_available} chunks",
            args.confidence
        );
    }
    Room::finish(&options);
    Ok(ExitCode::from(match verdict {
        Verdict::Pass => 0,
        Verdict::Fail => 3,
        Verdict::Undecided => 4,
    }))
}
