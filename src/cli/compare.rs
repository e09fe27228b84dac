//! `requant compare` and `requant gate`: what a quantization costs, token by token.

use super::evaluate::{self, Precision, Room, Text, runner};
use super::progress::Progress;
use super::{place, report, say, threads};
use crate::eval::{
    Activations, BaseReader, BaseWriter, Check, Comparison, EvalError, Limits, Perplexity,
    PerplexityOptions, Reference, TensorErrors, Verdict, compare, comparison_work, looks, verdict,
};
use crate::model::Model;
use anyhow::{Context, bail};
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
    /// Print JSON
    #[arg(long)]
    pub json: bool,
}

impl RunArgs {
    /// In which precision activations meet weights.
    pub fn activations(&self) -> Activations {
        self.precision.activations
    }

    /// Threads of their own.
    pub fn pool(&self) -> anyhow::Result<rayon::ThreadPool> {
        let n = threads(self.threads.map(usize::from));
        Ok(rayon::ThreadPoolBuilder::new().num_threads(n).build()?)
    }
}

impl TextArgs {
    /// Where the tokens come from.
    pub fn path(&self) -> anyhow::Result<&Path> {
        let path = self.text.as_ref().or(self.tokens.as_ref());
        path.map(PathBuf::as_path)
            .context("give a text with --text, or token numbers with --tokens")
    }

    /// The tokens of the text for a model, and how they are run.
    pub fn read(&self, model: &Model) -> anyhow::Result<(Vec<u32>, PerplexityOptions)> {
        let mut options = PerplexityOptions::default();
        if let Some(ctx) = self.ctx {
            options.ctx = ctx as usize;
        }
        options.chunks = self.chunks.map(|n| n as usize);
        let path = self.path()?;
        if self.tokens.is_some() {
            let text = std::fs::read_to_string(path).with_context(|| path.display().to_string())?;
            let words = text.split(|c: char| c.is_whitespace() || matches!(c, ',' | '[' | ']'));
            let tokens = words
                .filter(|word| !word.is_empty())
                .map(|word| word.parse().with_context(|| format!("{}: `{word}`", path.display())));
            // The numbers are taken as they are; the vocabulary may not even be there.
            options.bos = evaluate::bos(model).unwrap_or(None);
            return Ok((tokens.collect::<anyhow::Result<_>>()?, options));
        }
        let text = Text::read(path)?;
        let (tokens, bos) = text.tokens(model)?;
        options.bos = bos;
        Ok((tokens, options))
    }
}

/// What was found about one model.
pub struct Row {
    /// The model.
    pub path: PathBuf,
    /// Bits per weight.
    pub bits: f64,
    /// How far it is from the reference.
    pub comparison: Comparison,
    /// Relative error of the output of each tensor, largest first.
    pub tensors: Option<Vec<(String, f64)>>,
}

/// A comparison of several models with a reference.
pub struct Outcome {
    /// The reference: a model, or a file of log-probabilities.
    pub reference: PathBuf,
    /// The text, where it is known.
    pub text: Option<PathBuf>,
    /// Tokens per chunk.
    pub ctx: usize,
    /// In which precision activations met weights.
    pub activations: Activations,
    /// Its own result.
    pub own: Perplexity,
    /// The models.
    pub rows: Vec<Row>,
}

pub fn run(args: &Args) -> anyhow::Result<()> {
    let (outcome, options) = match &args.base {
        Some(base) => from_base(args, base)?,
        None => from_model(args)?,
    };
    if let Some(path) = &args.report {
        std::fs::write(path, report::page(&outcome)).with_context(|| path.display().to_string())?;
    }
    match args.run.json {
        true => say::json(outcome.json()),
        false => print!("{}", outcome.table(args.by_layer)),
    }
    Room::finish([&options]);
    Ok(())
}

fn open(paths: &[PathBuf]) -> anyhow::Result<Vec<Model>> {
    paths.iter().map(|path| place::model(path)).collect()
}

fn runners(
    models: &[Model],
    activations: Activations,
) -> anyhow::Result<Vec<crate::eval::Model<'_>>> {
    models.iter().map(|model| runner(model, activations)).collect()
}

/// An error of one of several models, with the name of that model.
fn named(error: EvalError, models: &[&Path]) -> anyhow::Error {
    match error {
        EvalError::Of { model, error } => {
            let name = models.get(model).map_or(String::new(), |path| path.display().to_string());
            anyhow::Error::new(*error).context(name)
        }
        error => error.into(),
    }
}

fn from_model(args: &Args) -> anyhow::Result<(Outcome, PerplexityOptions)> {
    let [reference, candidates @ ..] = args.models.as_slice() else { bail!("no model is given") };
    if candidates.is_empty() && args.save_base.is_none() {
        bail!("give a reference and at least one model to compare with it");
    }
    let reference_model = place::model(reference)?;
    let (tokens, mut options) = args.text.read(&reference_model)?;
    let models = open(candidates)?;
    let together: Vec<&Model> = std::iter::once(&reference_model).chain(&models).collect();
    args.room.apply(&mut options, &together, tokens.len())?;
    let others = runners(&models, args.run.activations())?;
    let errors: Vec<TensorErrors> = match args.by_tensor {
        true => {
            let pair =
                |other| TensorErrors::new(reference_model.source(), other, args.run.activations());
            models.iter().map(|model| pair(model.source())).collect()
        }
        false => Vec::new(),
    };
    let all = All(&errors);
    let mut runner = runner(&reference_model, args.run.activations())
        .with_context(|| reference.display().to_string())?;
    if args.by_tensor {
        runner.observe(&all);
    }
    let mut writer = match &args.save_base {
        None => None,
        Some(path) => {
            let n_chunks = (tokens.len() / options.ctx).min(options.chunks.unwrap_or(usize::MAX));
            let used = &tokens[..n_chunks * options.ctx];
            let n_vocab = reference_model.hparams().n_vocab;
            Some(BaseWriter::create(path, options.ctx as u32, n_vocab, used)?)
        }
    };
    let candidates_run: Vec<&crate::eval::Model> = others.iter().collect();
    let mut counted = vec![&runner];
    counted.extend(&candidates_run);
    let work = comparison_work(&counted, tokens.len(), &options);
    let progress = Progress::start("compare", work, "token-layers", 0);
    let found = args.run.pool()?.install(|| {
        let reference = Reference::Model(&runner);
        compare(reference, &candidates_run, &tokens, &options, writer.as_mut(), &progress)
    });
    let paths: Vec<&Path> = args.models.iter().map(PathBuf::as_path).collect();
    let (own, comparisons) = found.map_err(|error| named(error, &paths))?;
    progress.finish();
    if let Some(writer) = writer {
        writer.finish()?;
    }
    let mut rows = Vec::new();
    for (i, (path, comparison)) in candidates.iter().zip(comparisons).enumerate() {
        let tensors = errors.get(i).map(|errors| {
            let mut list: Vec<(String, f64)> = errors
                .relative()
                .into_iter()
                .filter(|(_, error)| *error > 0.0)
                .map(|(name, error)| (name.to_owned(), error))
                .collect();
            list.sort_by(|a, b| b.1.total_cmp(&a.1));
            list
        });
        rows.push(Row { path: path.clone(), bits: bits(&models[i]), comparison, tensors });
    }
    let outcome = Outcome {
        reference: reference.clone(),
        text: Some(args.text.path()?.to_owned()),
        ctx: options.ctx,
        activations: args.run.activations(),
        own,
        rows,
    };
    Ok((outcome, options))
}

fn from_base(args: &Args, base: &Path) -> anyhow::Result<(Outcome, PerplexityOptions)> {
    let mut reader = BaseReader::open(base)?;
    let models = open(&args.models)?;
    let others = runners(&models, args.run.activations())?;
    let candidates: Vec<&crate::eval::Model> = others.iter().collect();
    let tokens = reader.tokens().to_vec();
    let mut options = PerplexityOptions {
        ctx: reader.ctx() as usize,
        chunks: args.text.chunks.map(|n| n as usize),
        bos: evaluate::bos(&models[0])?,
        ..PerplexityOptions::default()
    };
    args.room.apply(&mut options, &models.iter().collect::<Vec<_>>(), tokens.len())?;
    let work = comparison_work(&candidates, tokens.len(), &options);
    let progress = Progress::start("compare", work, "token-layers", 0);
    let found = args.run.pool()?.install(|| {
        compare(Reference::Base(&mut reader), &candidates, &tokens, &options, None, &progress)
    });
    let paths: Vec<&Path> =
        [base].into_iter().chain(args.models.iter().map(PathBuf::as_path)).collect();
    let (own, comparisons) = found.map_err(|error| named(error, &paths))?;
    progress.finish();
    let rows = args.models.iter().zip(&models).zip(comparisons);
    let rows = rows.map(|((path, model), comparison)| {
        let tensors = None;
        Row { path: path.clone(), bits: bits(model), comparison, tensors }
    });
    let outcome = Outcome {
        reference: base.to_owned(),
        text: None,
        ctx: options.ctx,
        activations: args.run.activations(),
        own,
        rows: rows.collect(),
    };
    Ok((outcome, options))
}

/// Several observers as one.
struct All<'a>(&'a [TensorErrors<'a>]);

impl crate::eval::Observer for All<'_> {
    fn product(
        &self,
        tensor: usize,
        matrix: usize,
        x: ndarray::ArrayView2<f32>,
        y: ndarray::ArrayView2<f32>,
    ) -> Result<(), crate::eval::EvalError> {
        self.0.iter().try_for_each(|one| one.product(tensor, matrix, x, y))
    }

    fn seen(&self, layer: u32) -> Vec<u8> {
        self.0.iter().flat_map(|one| one.seen(layer)).collect()
    }

    /// All have the reference's tensors, so each takes as many bytes.
    fn take_up(&self, layer: u32, seen: &[u8]) -> Result<(), EvalError> {
        let parts = seen.chunks((seen.len() / self.0.len().max(1)).max(1));
        self.0.iter().zip(parts).try_for_each(|(one, seen)| one.take_up(layer, seen))
    }
}

fn bits(model: &Model) -> f64 {
    let n_weights: u64 = model.source().tensors().iter().map(|t| t.n_elements()).sum();
    model.n_bytes() as f64 * 8.0 / n_weights.max(1) as f64
}

impl Outcome {
    fn table(&self, by_layer: bool) -> String {
        let mut out = format!(
            "reference {}\n  perplexity {:.4} ± {:.4}, {} tokens scored in {} chunks of {}{}\n",
            self.reference.display(),
            self.own.perplexity,
            self.own.perplexity_error,
            self.own.tokens_scored,
            self.own.nll_per_chunk.len(),
            self.ctx,
            match self.activations {
                Activations::F32 => "",
                Activations::Q8 => ", activations rounded as llama.cpp does",
            },
        );
        for row in &self.rows {
            let c = &row.comparison;
            out += &format!("\n{} ({:.3} bits per weight)\n", row.path.display(), row.bits);
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
            let chunk =
                kl.mean_error_by_chunk.map_or(String::new(), |e| format!(" (by chunk {e:.6})"));
            line(
                "mean KL divergence",
                format!("{:.6} ± {:.6}{chunk}", kl.mean.value, kl.mean.error),
            );
            let at = |d: &crate::eval::Distribution, wanted: f64| {
                d.percentiles.iter().find(|p| p.0 == wanted).map_or(f64::NAN, |p| p.1)
            };
            let percentiles = [50.0, 90.0, 95.0, 99.0, 99.9].map(|p| format!("{:.6}", at(kl, p)));
            line("  50 90 95 99 99.9 %", percentiles.join("  "));
            line("  maximum", format!("{:.6}", kl.max));
            let top = c.same_top;
            line(
                "same top token",
                format!("{:.3} ± {:.3} %", 100.0 * top.value, 100.0 * top.error),
            );
            let change = &c.p_change;
            line(
                "change of p, mean",
                format!("{:+.3} ± {:.3} %", 100.0 * change.mean.value, 100.0 * change.mean.error),
            );
            let rms = c.p_change_rms;
            line(
                "change of p, RMS",
                format!("{:.3} ± {:.3} %", 100.0 * rms.value, 100.0 * rms.error),
            );
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
    fn json(&self) -> Value {
        let rows: Vec<Value> = self
            .rows
            .iter()
            .map(|row| {
                let mut value = json!({
                    "model": row.path,
                    "bits_per_weight": row.bits,
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
            "reference": self.reference,
            "text": self.text,
            "ctx": self.ctx,
            "activations": self.activations,
            "reference_perplexity": self.own,
            "models": rows,
        })
    }
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
    let reference_model = place::model(&args.reference)?;
    let (tokens, mut options) = args.text.read(&reference_model)?;
    let model = place::model(&args.model)?;
    args.room.apply(&mut options, &[&reference_model, &model], tokens.len())?;
    let reference = runner(&reference_model, args.run.activations())
        .with_context(|| args.reference.display().to_string())?;
    let other =
        runner(&model, args.run.activations()).with_context(|| args.model.display().to_string())?;
    let n_chunks = (tokens.len() / options.ctx).min(options.chunks.unwrap_or(usize::MAX));
    let limits = Limits {
        kl: args.max_kld,
        perplexity_ratio: args.max_ppl_ratio,
        same_top: args.min_same_top,
    };
    let looks = looks(n_chunks);
    let work = comparison_work(&[&reference, &other], tokens.len(), &options);
    let progress = Progress::start("gate", work, "token-layers", 0);
    let pool = args.run.pool()?;
    let (mut parts, mut done) = (Vec::new(), 0);
    let mut checks: Vec<Check> = Vec::new();
    for &look in &looks {
        let part = &tokens[done * options.ctx..look * options.ctx];
        let reference = Reference::Model(&reference);
        // What a first part has shown is not thrown away: the parts are joined.
        let (_, mut found) = pool
            .install(|| {
                compare(
                    reference,
                    &[&other],
                    part,
                    &PerplexityOptions { chunks: None, ..options.clone() },
                    None,
                    &progress,
                )
            })
            .map_err(|error| named(error, &[&args.reference, &args.model]))?;
        parts.extend(found.pop());
        done = look;
        let joined = Comparison::join(parts.clone())?;
        checks = limits.check(&joined, args.confidence, looks.len() as u32);
        if verdict(&checks) != Verdict::Undecided {
            break;
        }
    }
    progress.finish();
    let verdict = verdict(&checks);
    if args.run.json {
        let json = json!({
            "version": 1, "reference": args.reference, "model": args.model,
            "activations": args.run.activations(), "verdict": verdict, "confidence": args.confidence, "chunks": done,
            "chunks_available": n_chunks, "checks": checks,
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
        println!("{name} at confidence {} after {done} of {n_chunks} chunks", args.confidence);
    }
    Room::finish([&options]);
    Ok(ExitCode::from(match verdict {
        Verdict::Pass => 0,
        Verdict::Fail => 3,
        Verdict::Undecided => 4,
    }))
}
