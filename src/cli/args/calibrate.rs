//! Options of rounding that a text calibrates, for `convert` and `quantize`.

use super::output;
use crate::calibrate::{self, Calibration, Errors, InputsOf, Memory, OfTensor, Outcome, Way};
use crate::cli::progress::Progress;
use crate::cli::views::{plan, units};
use crate::cli::{bad_usage, say};
use crate::convert::{Ingredient, Ladder, Plan, Role, RunOptions, Rung};
use crate::eval::{PerplexityOptions, Scratch};
use crate::gguf::Value;
use crate::io::{folder, memory as machine_memory};
use crate::measure::{CALIBRATED_WITH, Options, PROBE, Subject, Text, Tokens, measured_tensors};
use crate::model::{Hparams, Model, Mtp};
use crate::names::base;
use crate::quant::QuantType;
use crate::simd::Simd;
use crate::source::{Source, is_url};
use anyhow::bail;
use serde_json::{Value as Json, json};
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

/// How weights are rounded.
#[derive(clap::Args)]
#[command(next_help_heading = "Rounding")]
pub struct Args {
    /// Text that shows how much errors of weights count. Weights are then rounded so that they make up for
    /// each other's errors in the model's products with this text, which passes the model twice; sizes and
    /// types stay
    #[arg(long, value_name = "FILE", conflicts_with_all = ["shard", "prune_layers"])]
    calibrate: Option<PathBuf>,
    /// Use only the first N chunks of that text
    #[arg(long, value_name = "N", requires = "calibrate",
          value_parser = clap::value_parser!(u32).range(1..))]
    calibrate_chunks: Option<u32>,
    /// Tokens per chunk of that text
    #[arg(long, value_name = "N", requires = "calibrate", default_value = "512",
          value_parser = clap::value_parser!(u32).range(4..))]
    calibrate_ctx: u32,
    /// Model whose activations count: the rounded one, so that tensors make up for those before them, or
    /// the original, which the text passes once
    #[arg(
        long,
        value_enum,
        value_name = "MODEL",
        requires = "calibrate",
        default_value = "rounded"
    )]
    calibrate_inputs: Inputs,
    /// How weights are rounded: reference, as llama-quantize does; search, with scales that are searched for
    /// more widely, which loses less and takes longer; compensated, as said for --calibrate and its default
    #[arg(long, value_enum, value_name = "WAY")]
    rounding: Option<Rounding>,
}

/// Errors of compensated rounding, for the search for a mix.
#[derive(Debug, clap::Args)]
#[command(next_help_heading = "Rounding")]
pub struct ForMix {
    /// Choose for compensated rounding with this text (convert --calibrate): errors are those of products with
    /// it, as they will be rounded. Where it is the text of --text, that is cut into three parts instead of
    /// two, and this is the first
    #[arg(long, value_name = "FILE")]
    pub calibrate: Option<PathBuf>,
    /// Use only the first N chunks of that text
    #[arg(long, value_name = "N", requires = "calibrate",
          value_parser = clap::value_parser!(u32).range(1..))]
    calibrate_chunks: Option<u32>,
}

impl ForMix {
    /// Chunks of the text at most.
    pub fn chunks(&self) -> Option<usize> {
        self.calibrate_chunks.map(|n| n as usize)
    }

    /// The errors of a model's tensors, those of a share, in these types and in that which sensitivities are measured
    /// with.
    pub fn errors(
        &self,
        subject: Subject,
        text: &Text,
        types: &[QuantType],
        options: &Options,
    ) -> anyhow::Result<BTreeMap<String, Errors>> {
        let tokens = text.tokens(subject, None, &())?;
        let (hparams, source) = (subject.model.hparams(), subject.model.source());
        let passes = Passes { ctx: options.ctx, chunks: self.chunks(), inputs: InputsOf::Original };
        let work = 2 * passes.n_tokens(&tokens) * u64::from(hparams.n_layer);
        let progress = Progress::start("calibrate", work, "token-half-layers", 0);
        let folder = std::env::temp_dir();
        let folder = options.scratch.as_ref().map_or(&*folder, |scratch| scratch.folder());
        let calibration =
            calibration(hparams, &tokens, passes, folder, options.memory, options.simd);
        let mut all = types.to_vec();
        all.push(PROBE);
        all.sort_unstable();
        all.dedup();
        let tensors = measured_tensors(subject.model, options.share);
        let pool = rayon::ThreadPoolBuilder::new().num_threads(options.threads).build()?;
        let found =
            pool.install(|| calibrate::errors(source, &calibration, &all, &tensors, &progress))?;
        progress.finish();
        Ok(found)
    }
}

/// How a text passes a model.
#[derive(Clone, Copy)]
struct Passes {
    ctx: usize,
    chunks: Option<usize>,
    inputs: InputsOf,
}

impl Passes {
    fn n_chunks(self, tokens: &Tokens) -> usize {
        (tokens.tokens.len() / self.ctx).min(self.chunks.unwrap_or(usize::MAX))
    }

    fn n_tokens(self, tokens: &Tokens) -> u64 {
        (self.n_chunks(tokens) * self.ctx) as u64
    }
}

/// How a text calibrates within so much memory.
fn calibration<'a>(
    hparams: &'a Hparams,
    tokens: &'a Tokens,
    passes: Passes,
    folder: &'a Path,
    memory: Option<u64>,
    simd: Simd,
) -> Calibration<'a> {
    let memory = memory.unwrap_or_else(default_memory);
    let memory = Memory::of(memory, hparams);
    Calibration {
        hparams,
        tokens: &tokens.tokens,
        text: PerplexityOptions {
            bos: tokens.bos,
            ctx: passes.ctx,
            chunks: passes.chunks,
            memory: memory.text as usize,
            ..PerplexityOptions::default()
        },
        folder,
        inputs: passes.inputs,
        memory: memory.moments,
        rows: memory.rows,
        damping: DAMPING,
        sweeps: SWEEPS,
        simd,
    }
}

/// How weights are rounded.
#[derive(Clone, Copy, PartialEq, clap::ValueEnum)]
enum Rounding {
    Reference,
    Search,
    Compensated,
}

/// The model whose activations count.
#[derive(Clone, Copy, PartialEq, clap::ValueEnum)]
enum Inputs {
    Rounded,
    Original,
}

/// A text, ready to calibrate with.
pub struct Prepared {
    model: Model,
    path: PathBuf,
    sha256: String,
    tokens: Tokens,
    passes: Passes,
    /// Whether weights are read over a network.
    is_remote: bool,
    simd: Simd,
}

/// A quarter of the memory that may be used, at least 1 GiB where that leaves a half.
fn default_memory() -> u64 {
    let all = machine_memory().usable();
    all.map_or(1 << 30, |all| (all / 4).max((1 << 30).min(all / 2)))
}

/// What a damped diagonal gets, in relation to its mean.
const DAMPING: f32 = 0.01;
/// How often blocks are rounded again.
const SWEEPS: usize = 1;

impl Args {
    /// Reads the text as the model reads it, if there is one and weights are to be rounded with it: those of one
    /// output, not of several at once.
    pub fn prepare(
        &self,
        place: &Path,
        mtp: Mtp,
        pre: Option<&str>,
        is_ladder: bool,
        simd: Simd,
    ) -> anyhow::Result<Option<Prepared>> {
        if is_ladder && self.calibrate.is_some() {
            bail!(
                "--calibrate rounds one output at a time, because each layer makes up for what is in \
                 that output before it; give --type instead of --types, once for each"
            );
        }
        let path = match (&self.calibrate, self.rounding) {
            (None, Some(Rounding::Compensated)) => {
                return Err(bad_usage(
                    "--rounding compensated needs a text to calibrate with: --calibrate FILE",
                ));
            }
            (Some(_), Some(Rounding::Reference)) => {
                return Err(bad_usage("--calibrate has no meaning with --rounding reference"));
            }
            (Some(_), Some(Rounding::Search)) => {
                return Err(bad_usage("--calibrate has no meaning with --rounding search"));
            }
            (None, _) => return Ok(None),
            (Some(path), _) => path,
        };
        let text = Text::read(path)?;
        let model = super::place::open_with(place, mtp)?;
        let subject = Subject { path: place, model: &model };
        let tokens = text.tokens(subject, pre, &())?;
        let sha256 = text.sha256().to_owned();
        let ctx = self.calibrate_ctx as usize;
        if tokens.tokens.len() < ctx {
            let (found, name) = (tokens.tokens.len(), path.display());
            bail!("{name}: {found} tokens are too few, a chunk has {ctx} (--calibrate-ctx)");
        }
        let chunks = self.calibrate_chunks.map(|n| n as usize);
        let inputs = match self.calibrate_inputs {
            Inputs::Rounded => InputsOf::Rounded,
            Inputs::Original => InputsOf::Original,
        };
        let passes = Passes { ctx, chunks, inputs };
        let is_remote = place.to_str().is_some_and(is_url);
        Ok(Some(Prepared { model, path: path.clone(), sha256, tokens, passes, is_remote, simd }))
    }
}

/// How weights are rounded, once the text is known.
#[derive(Clone, Copy)]
pub struct How<'a> {
    /// The text that calibrates it.
    pub text: Option<&'a Prepared>,
    /// Whether scales are searched for more widely than the reference does.
    pub search: bool,
}

impl Args {
    /// With the text that [`Args::prepare`] found.
    pub fn how<'a>(&self, text: Option<&'a Prepared>) -> How<'a> {
        How { text, search: self.rounding == Some(Rounding::Search) }
    }
}

impl How<'_> {
    /// Whether it is another than the reference's.
    pub fn is_given(self) -> bool {
        self.text.is_some() || self.search
    }

    /// What outputs say about the text.
    pub fn notes(self) -> Vec<(String, Value)> {
        self.text.map(Prepared::notes).unwrap_or_default()
    }
}

impl Prepared {
    /// What a calibration takes beside the conversion, from short trials.
    pub fn cost(&self, plan: &Plan, memory: Option<u64>) -> anyhow::Result<Cost> {
        // No folder is needed yet.
        let calibration = self.calibration(Path::new(""), memory);
        let tokens = self.passes.n_tokens(&self.tokens);
        let speed = calibrate::speed(self.simd);
        let [text, moments, rows] = calibrate::work(plan, &calibration, tokens);
        let [text, moments, rows] =
            [text, moments, rows * calibrate::operations(SWEEPS)].map(|n| n as f64 / speed);
        // Weights that are elsewhere are not fetched for a trial.
        let text = match self.is_remote {
            true => text * if self.passes.inputs == InputsOf::Rounded { 2.0 } else { 1.0 },
            false => calibrate::seconds_of_text(plan, self.model.source(), &calibration)?,
        };
        Ok(Cost {
            tokens,
            memory: memory.unwrap_or_else(default_memory),
            seconds: [text, moments, rows],
        })
    }

    fn calibration<'a>(&'a self, folder: &'a Path, memory: Option<u64>) -> Calibration<'a> {
        calibration(self.model.hparams(), &self.tokens, self.passes, folder, memory, self.simd)
    }

    /// What the output says about how it was made.
    fn notes(&self) -> Vec<(String, Value)> {
        let name = base(&self.path);
        let Passes { ctx, inputs, .. } = self.passes;
        let chunks = self.passes.n_chunks(&self.tokens) as u32;
        let inputs = if inputs == InputsOf::Rounded { "rounded" } else { "original" };
        vec![
            ("requant.rounding".to_owned(), "compensated".into()),
            ("requant.calibration.file".to_owned(), name.as_str().into()),
            (CALIBRATED_WITH.to_owned(), self.sha256.as_str().into()),
            ("requant.calibration.chunks".to_owned(), Value::U32(chunks)),
            ("requant.calibration.ctx".to_owned(), Value::U32(ctx as u32)),
            ("requant.calibration.inputs".to_owned(), inputs.into()),
        ]
    }

    /// The text, as a file that the output is made with.
    pub fn ingredient(&self) -> Ingredient {
        Ingredient { what: Role::Calibration, path: self.path.clone() }
    }

    /// Carries out a plan.
    pub fn run(
        &self,
        what: &'static str,
        ladder: &Ladder,
        source: &dyn Source,
        options: RunOptions,
        memory: Option<u64>,
    ) -> anyhow::Result<Json> {
        let Rung { plan, output: path } = ladder.rungs()[0];
        let hparams = self.model.hparams();
        let folder = folder(path);
        let n_tokens = self.passes.n_tokens(&self.tokens);
        let layers = 2 * n_tokens * u64::from(hparams.n_layer + hparams.n_nextn.min(1));
        let mut calibration = self.calibration(folder, memory);
        calibration.text.scratch = Some(Scratch::new(folder));
        let cost = self.cost(plan, memory)?;
        say::info(cost.describe());
        // Counted in milliseconds: moments are added while the text passes.
        let [text, moments, rows] = cost.seconds.map(|seconds| 1000.0 * seconds);
        let progress = Progress::start("calibrate", (1000.0 * cost.sum()) as u64, "", 0);
        let passing = progress.share((text + moments) / layers.max(1) as f64);
        let [_, _, all] = calibrate::work(plan, &calibration, n_tokens);
        let rounding = progress.share(rows / all.max(1) as f64);
        let writing = output::progress(what, ladder, options);
        let outcome = calibrate::run(
            plan,
            source,
            path,
            options,
            &calibration,
            [&passing, &rounding, &writing],
        )?;
        progress.finish();
        writing.finish();
        if let Some(text) = describe(&outcome) {
            say::info(text);
        }
        Ok(outcome.tensors.iter().map(json_of).collect())
    }
}

/// What a calibration takes.
pub struct Cost {
    tokens: u64,
    /// Bytes that it may use.
    memory: u64,
    /// Of processor time, on this machine: for passes of the text, moments, and rows.
    seconds: [f64; 3],
}

impl Cost {
    fn sum(&self) -> f64 {
        self.seconds.iter().sum()
    }

    /// A line about it.
    pub fn describe(&self) -> String {
        let [text, moments, rows] = self.seconds.map(units::duration);
        let tokens = units::of(self.tokens as usize, "token");
        let (memory, sum) = (units::bytes(self.memory), units::duration(self.sum()));
        let mut out = String::new();
        plan::line(
            &mut out,
            "calibrate",
            &format!(
                "{tokens}, at most {memory} of memory, about {sum} of processor time: {text} for the text, \
                 {moments} for moments, {rows} for rows"
            ),
        );
        out.trim_end().to_owned()
    }

    /// The same for programs.
    pub fn json(&self) -> Json {
        let [text, moments, rows] = self.seconds;
        json!({
            "tokens": self.tokens, "memory_bytes": self.memory, "processor_seconds": self.sum(),
            "seconds": { "text": text, "moments": moments, "rows": rows },
        })
    }
}

fn json_of(tensor: &OfTensor) -> Json {
    let ways: BTreeMap<&str, u64> = tensor.ways.iter().map(|(&way, &n)| (name(way), n)).collect();
    let ratio = tensor.errors.map(|[reference, own]| own / reference);
    json!({ "name": tensor.name, "type": tensor.ty.name(), "rows": ways, "error_ratio": ratio })
}

fn name(way: Way) -> &'static str {
    match way {
        Way::Plain => "plain",
        Way::Weighed => "weighed",
        Way::Blocks => "blocks",
        Way::Columns => "columns",
        Way::Again => "again",
    }
}

/// What was gained, in a few lines.
fn describe(outcome: &Outcome) -> Option<String> {
    let ratios = outcome.tensors.iter().filter_map(|tensor| {
        let [reference, own] = tensor.errors?;
        (reference > 0.0).then(|| (own / reference).ln())
    });
    let ratios: Vec<f64> = ratios.collect();
    let without = outcome.tensors.len() - ratios.len();
    if outcome.tensors.is_empty() {
        return None;
    }
    let mut rows = BTreeMap::new();
    for (&way, &n) in outcome.tensors.iter().flat_map(|tensor| &tensor.ways) {
        *rows.entry(way).or_insert(0) += n;
    }
    let all = rows.values().sum::<u64>().max(1) as f64;
    let rows: Vec<String> = rows
        .iter()
        .map(|(&way, &n)| format!("{} {:.1} %", name(way), 100.0 * n as f64 / all))
        .collect();
    let mean = (ratios.iter().sum::<f64>() / ratios.len().max(1) as f64).exp();
    let mut text = format!(
        "rounding: {} tensors; errors of products {:.3} of the reference's in the geometric mean; rows: {}",
        outcome.tensors.len(),
        mean,
        rows.join(", ")
    );
    if without > 0 {
        text += &format!("; {without} without second moments, rounded as the reference does");
    }
    Some(text)
}
