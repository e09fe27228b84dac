//! `requant mix`: the mix of types that loses least for a size, found by measurement.

use super::begun::Begun;
use crate::cli::args::measure::{self as measuring, Room, RunArgs, TextArgs};
use crate::cli::args::numbers::binary_size;
use crate::cli::args::types::Imatrix;
use crate::cli::args::{calibrate, places, share};
use crate::cli::progress::Progress;
use crate::cli::say;
use crate::cli::views::chart::Point;
use crate::cli::views::ladder::picture;
use crate::cli::views::units;
use crate::convert::{Importance, Shard};
use crate::io::LocalDisk;
use crate::measure::{
    self, Bounds, MeasureError, Mix, Options, Sensitivities, SoFar, Subject, Text,
};
use crate::quant::QuantType;
use crate::recipe::{Role, TensorType};
use anyhow::{Context, bail};
use serde_json::json;
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

/// Find the mix of types that loses least for a size.
///
/// How much each group of tensors matters is measured once, on the first half of the text: the KL divergence
/// that it causes alone. Bytes then go where they save most. What is expected of the mix, and what is
/// measured on the last part of the text, stands in the recipe.
#[derive(clap::Args)]
#[command(
    after_help = "Examples:\n  requant mix model-BF16.gguf --text wiki.train.raw --bpw 4.5 -o mix.toml\n  \
                        requant quantize model-BF16.gguf model.gguf mix.toml"
)]
pub struct Args {
    /// Checkpoint or GGUF file of full precision
    model: PathBuf,
    #[command(flatten)]
    text: TextArgs,
    /// Size of the file: N bytes, or N followed by M or G (binary)
    #[arg(long, value_name = "SIZE", value_parser = binary_size,
          conflicts_with = "bpw",
          required_unless_present_any = ["bpw", "fit", "budget", "curve", "shard"])]
    size: Option<u64>,
    /// Bits per weight of the file, over all tensors
    #[arg(long, value_name = "BITS")]
    bpw: Option<f64>,
    /// Size of the memory that the model runs in: what --fit-ctx tokens of context take, and 512 MiB for
    /// what llama.cpp computes with, are taken off
    #[arg(long, value_name = "SIZE", value_parser = binary_size,
          conflicts_with_all = ["size", "bpw"])]
    fit: Option<u64>,
    /// Tokens of context for --fit
    #[arg(long, value_name = "N", requires = "fit", default_value = "4096")]
    fit_ctx: u32,
    /// Size of the tensors of a role, apart from all others: expert=300G; repeatable. `rest` is the size of
    /// everything else, in the place of --size
    #[arg(long, value_name = "ROLE=SIZE", value_parser = budget)]
    budget: Vec<(Option<Role>, u64)>,
    /// Print what is expected of all sizes
    #[arg(long)]
    curve: bool,
    /// Draw that (SVG)
    #[arg(long, value_name = "FILE", requires = "curve")]
    plot: Option<PathBuf>,
    /// Types to choose from: K, IQ for both families, or a list
    #[arg(long, value_name = "TYPES", default_value = "K", value_parser = types)]
    types: Types,
    /// Least type of a role: embedding, attention, feed-forward, expert, shared-expert, output; repeatable
    #[arg(long, value_name = "ROLE=TYPE", value_parser = floor)]
    floor: Vec<(Role, QuantType)>,
    /// Type of the tensors whose names fit a pattern (a regular expression); repeatable
    #[arg(long, value_name = "PATTERN=TYPE", value_parser = keep)]
    keep: Vec<TensorType>,
    /// File that keeps what was measured: read where it exists, else written, so that other sizes take no
    /// time. A search that is stopped goes on from the file of this name with .part
    #[arg(long, value_name = "FILE")]
    sensitivities: Option<PathBuf>,
    #[command(flatten)]
    calibrate: calibrate::ForMix,
    /// Choose for files that are rounded so without calibration (convert --rounding)
    #[arg(long, value_enum, default_value = "reference", conflicts_with = "calibrate")]
    rounding: Rounding,
    /// Do not measure the mix itself
    #[arg(long)]
    no_proof: bool,
    /// Recipe to write, for --type or in the place of a type
    #[arg(long, short, value_name = "FILE", required_unless_present_any = ["curve", "shard"])]
    output: Option<PathBuf>,
    /// Also write the types as llama-quantize --tensor-type-file reads them
    #[arg(long, value_name = "FILE")]
    tensor_type_file: Option<PathBuf>,
    /// Replace existing files
    #[arg(long, short)]
    force: bool,
    /// Measure only share K of N of the groups of tensors, so that N machines can share the search; auto takes K and
    /// N from Slurm, Kubernetes, AWS Batch or RANK and WORLD_SIZE. `requant join` makes the file for
    /// --sensitivities of all shares
    #[arg(long, value_name = "K/N", requires = "part", help_heading = "Several machines",
          conflicts_with_all = ["size", "bpw", "fit", "budget", "curve", "floor", "keep", "sensitivities",
              "no_proof", "output", "tensor_type_file", "force", "json"])]
    shard: Option<String>,
    /// Write what the share has found to NAME.K-of-N. A share that is stopped goes on from the file of this name
    /// with .part
    #[arg(long, value_name = "NAME", requires = "shard", help_heading = "Several machines")]
    part: Option<PathBuf>,
    #[command(flatten)]
    weights: Imatrix,
    #[command(flatten)]
    room: Room,
    #[command(flatten)]
    run: RunArgs,
}

/// How weights will be rounded.
#[derive(Clone, Copy, PartialEq, clap::ValueEnum)]
enum Rounding {
    Reference,
    Search,
}

/// Types to choose from.
#[derive(Clone)]
struct Types(Vec<QuantType>);

const K: [QuantType; 6] = [
    QuantType::Q2_K,
    QuantType::Q3_K,
    QuantType::Q4_K,
    QuantType::Q5_K,
    QuantType::Q6_K,
    QuantType::Q8_0,
];
const IQ: [QuantType; 8] = [
    QuantType::IQ1_S,
    QuantType::IQ2_XXS,
    QuantType::IQ2_XS,
    QuantType::IQ2_S,
    QuantType::IQ3_XXS,
    QuantType::IQ3_S,
    QuantType::IQ4_XS,
    QuantType::IQ4_NL,
];

fn types(text: &str) -> Result<Types, String> {
    let named = |word: &str| -> Result<Vec<QuantType>, String> {
        Ok(match word {
            "K" => K.to_vec(),
            "IQ" => [&K[..], &IQ].concat(),
            word => vec![word.parse::<QuantType>().map_err(|error| error.to_string())?],
        })
    };
    let mut all = Vec::new();
    for word in text.split(',') {
        all.extend(named(word.trim())?);
    }
    match all.iter().find(|ty| !ty.is_quantized() || !ty.format().is_target()) {
        Some(ty) => Err(format!("{ty} is no type that weights are quantized to")),
        None => Ok(Types(all)),
    }
}

fn floor(text: &str) -> Result<(Role, QuantType), String> {
    let (name, ty) = text.split_once('=').ok_or("write for example output=Q6_K")?;
    Ok((role(name)?, ty.parse().map_err(|error: crate::quant::UnknownType| error.to_string())?))
}

/// A role's bytes; those of everything else without one.
fn budget(text: &str) -> Result<(Option<Role>, u64), String> {
    let (name, size) = text.split_once('=').ok_or("write for example expert=300G")?;
    let role = if name == "rest" { None } else { Some(role(name)?) };
    Ok((role, binary_size(size)?))
}

fn role(name: &str) -> Result<Role, String> {
    let names = || Role::ALL.map(Role::name).join(", ");
    let found = Role::ALL.into_iter().find(|known| known.name() == name);
    found.ok_or_else(|| format!("no role `{name}`: {}", names()))
}

fn keep(text: &str) -> Result<TensorType, String> {
    let (pattern, ty) = text.rsplit_once('=').ok_or("write for example attn_v=Q8_0")?;
    let ty = ty.parse().map_err(|error: crate::quant::UnknownType| error.to_string())?;
    TensorType::new(pattern, ty).map_err(|error| error.to_string())
}

/// What llama.cpp computes a batch with, roughly: logits of 512 tokens and a layer's products.
const COMPUTE: u64 = 512 << 20;

impl Args {
    fn searches(&self) -> bool {
        self.rounding == Rounding::Search
    }

    fn bounds(&self) -> Bounds {
        let budgets = self.budget.iter().filter_map(|&(role, bytes)| Some((role?, bytes)));
        Bounds {
            types: self.types.0.clone(),
            budgets: budgets.collect(),
            floors: self.floor.clone(),
            keep: self.keep.clone(),
            search: self.searches(),
        }
    }
}

/// Texts that have nothing in common.
struct Texts {
    calibration: Option<Text>,
    /// What groups are measured on.
    search: Text,
    /// What the mix is measured on.
    proof: Text,
}

/// Of two texts, what may stand in both: licences, headings.
const SHARED: f64 = 0.02;

impl Texts {
    fn read(args: &Args, subject: Subject, options: &Options) -> anyhow::Result<Self> {
        let text = args.text.read_one()?.as_tokens(subject)?;
        let calibration = match args.calibrate.calibrate.as_deref() {
            Some(path) => Some(Text::read(path)?.as_tokens(subject)?),
            None => None,
        };
        if calibration.as_ref().is_some_and(|other| other.sha256() == text.sha256()) {
            let [first, search, proof] = text.parts(subject, options.ctx, options.chunks)?;
            return Ok(Self { calibration: Some(first), search, proof });
        }
        if let Some(other) = &calibration {
            let of = |text: &Text| text.tokens(subject, None, &());
            let shared = of(&text)?.shared_with(&of(other)?);
            if shared > SHARED {
                bail!(
                    "{:.0} % of {} stands in {} as well: a mix that is chosen by the text that weights are \
                     rounded with is good on that text alone. Give texts that have nothing in common, or one \
                     text for both, which is cut into parts",
                    100.0 * shared,
                    text.path().display(),
                    other.path().display()
                );
            }
        }
        let [search, proof] = text.parts(subject, options.ctx, options.chunks)?;
        Ok(Self { calibration, search, proof })
    }
}

/// A model, what its types cost, and what a mix may be made of.
struct Search<'a> {
    args: &'a Args,
    subject: Subject<'a>,
    found: &'a Sensitivities,
    importance: Option<&'a Importance>,
    bounds: &'a Bounds,
}

impl Search<'_> {
    fn mix(&self, size: u64) -> Result<Mix, MeasureError> {
        measure::mix(self.subject, self.found, self.bounds, self.importance, size)
    }

    /// The divergence of a mix on a text, with its error.
    fn proof(&self, mix: &Mix, text: &Text, options: &Options) -> anyhow::Result<(f64, f64)> {
        let options = Options { chunks: None, ..options.clone() };
        let progress = Progress::start("proof", 0, "token-layers", 0);
        let imatrix = self.importance.map(|importance| &*importance.imatrix);
        let types = mix.types();
        let search = self.bounds.search;
        let found =
            measure::proof(self.subject, text, &types, imatrix, search, &options, &progress)?;
        progress.finish();
        let kld = found.kl_divergence;
        Ok((kld.mean.value, kld.error_by_chunk()))
    }
}

pub fn run(args: &Args) -> anyhow::Result<()> {
    for path in args.output.iter().chain(&args.tensor_type_file) {
        places::prepare_new(path, args.force)?;
    }
    for path in args.sensitivities.iter().filter(|path| !path.exists()).chain(&args.plot) {
        places::prepare(path)?;
    }
    let bounds = args.bounds();
    let options = measuring::options(&args.text, &args.room, &args.run);
    let model = measuring::model(&args.model, &options)?;
    let importance = args.weights.importance()?;
    let subject = Subject { path: &args.model, model: &model };
    if let (Some(shard), Some(name)) = (&args.shard, &args.part) {
        return measure_share(
            args,
            share::shard(shard)?,
            name,
            subject,
            importance.as_ref(),
            options,
        );
    }
    let size = size(args, subject)?;
    let known = args.sensitivities.as_deref().filter(|path| path.exists());
    let proves = args.output.is_some() && !args.no_proof;
    let texts = || Texts::read(args, subject, &options);
    let (found, texts) = match known {
        Some(path) => {
            let texts = proves.then(texts).transpose()?;
            (Sensitivities::read(path, &model, &bounds.types, bounds.search)?, texts)
        }
        None => {
            let texts = texts()?;
            let begun = Begun::take_up(
                args.sensitivities.as_deref(),
                identity(args, subject, &texts, &options),
            )?;
            let found = measured(args, subject, &texts, importance.as_ref(), &options, &begun)?;
            if let Some(path) = &args.sensitivities {
                found.write(&LocalDisk, path)?;
            }
            begun.finish()?;
            (found, Some(texts))
        }
    };
    let search =
        Search { args, subject, found: &found, importance: importance.as_ref(), bounds: &bounds };
    if args.curve {
        curve(&search)?;
    }
    let (Some(output), Some(size)) = (&args.output, size) else { return Ok(()) };
    let mix = search.mix(size)?;
    let proof = match &texts {
        Some(texts) if proves => Some(search.proof(&mix, &texts.proof, &options)?),
        _ => None,
    };
    let text = mix.text(&args.model, &found, proof);
    // Not after: a disk that is full takes no recipe, and what was found is not to be lost.
    report(args, output, &mix, proof);
    crate::io::write(&LocalDisk, output, text.as_bytes())?;
    if let Some(path) = &args.tensor_type_file {
        let line = |(name, _, ty): &(String, u64, QuantType)| {
            format!("^{}$={ty}\n", name.replace('.', "\\."))
        };
        let lines: String = mix.tensors.iter().map(line).collect();
        crate::io::write(&LocalDisk, path, lines.as_bytes())?;
    }
    Room::finish(&options);
    Ok(())
}

fn report(args: &Args, output: &Path, mix: &Mix, proof: Option<(f64, f64)>) {
    if args.run.json {
        let measured = proof.map(|(kld, error)| json!({ "mean_kld": kld, "error": error }));
        say::json(json!({
            "version": 1, "recipe": output, "file_bytes": mix.bytes,
            "bits_per_weight": mix.bits_per_weight, "expected_kld": mix.expected,
            "expected_kld_reference": mix.expected_of_reference, "measured": measured,
        }));
        return;
    }
    let mut weights: BTreeMap<(Role, QuantType), u64> = BTreeMap::new();
    for (name, n, ty) in &mix.tensors {
        *weights.entry((Role::of(name), *ty)).or_default() += n;
    }
    for ((role, ty), n) in weights {
        println!("{:<16} {:<8} {:>10} weights", role.name(), ty.name(), units::count(n as f64));
    }
    let size = units::bytes(mix.bytes);
    println!("{}: {size}, {:.3} bits per weight", output.display(), mix.bits_per_weight);
    println!("expected KL divergence {:.5}", mix.expected);
    if mix.expected != mix.expected_of_reference {
        println!("rounded as the reference does {:.5}", mix.expected_of_reference);
    }
    if let Some((kld, error)) = proof {
        println!("measured KL divergence {kld:.5} ± {error:.5}, on the last part of the text");
    }
}

fn measured(
    args: &Args,
    subject: Subject,
    texts: &Texts,
    importance: Option<&Importance>,
    options: &Options,
    begun: &Begun,
) -> anyhow::Result<Sensitivities> {
    let options = Options { chunks: None, ..options.clone() };
    let imatrix = importance.map(|importance| &*importance.imatrix);
    let known = match &texts.calibration {
        Some(text) => {
            begun.errors(|| args.calibrate.errors(subject, text, &args.types.0, &options))?
        }
        None => BTreeMap::new(),
    };
    let search = args.searches();
    let types = measure::Types { all: &args.types.0, imatrix, known: &known, search };
    let so_far = SoFar { begun: begun.measured(), keep: &|found| begun.keep(found) };
    let progress = Progress::start("mix", 0, "token-layers", 0);
    let found = measure::sensitivities(subject, &texts.search, types, so_far, &options, &progress)?;
    progress.finish();
    Ok(found)
}

/// Measures a share of the groups, and writes what it has found.
fn measure_share(
    args: &Args,
    shard: Shard,
    name: &Path,
    subject: Subject,
    importance: Option<&Importance>,
    options: Options,
) -> anyhow::Result<()> {
    let path = shard.beside(name);
    places::prepare(&path)?;
    let options = Options { share: Some(shard), ..options };
    let texts = Texts::read(args, subject, &options)?;
    let search = measure::Search {
        subject,
        text: &texts.search,
        types: &args.types.0,
        imatrix: importance.map(|importance| &*importance.imatrix),
        search: args.searches(),
        calibration: texts.calibration.as_ref().map(|text| (text, args.calibrate.chunks())),
    };
    let mut part = search.part(&Options { chunks: None, ..options.clone() })?;
    if share::is_there(&path, &part)? {
        return Ok(());
    }
    let begun = Begun::take_up(Some(&path), identity(args, subject, &texts, &options))?;
    part.set_sensitivities(measured(args, subject, &texts, importance, &options, &begun)?);
    share::write(part, &path, shard)?;
    begun.finish()?;
    Room::finish(&options);
    Ok(())
}

/// What tells measurements from others.
fn identity(args: &Args, subject: Subject, texts: &Texts, options: &Options) -> String {
    let types: Vec<&str> = args.types.0.iter().map(|ty| ty.name()).collect();
    let calibration = texts.calibration.as_ref().map(|text| (text.sha256(), &args.calibrate));
    let Options { ctx, chunks, activations, share, .. } = options;
    let search = (texts.search.sha256(), ctx, chunks, activations, share);
    let importances = args.weights.path();
    let searches = args.searches();
    format!(
        "{:?}",
        (subject.path, subject.size(), search, calibration, types, importances, searches)
    )
}

/// Sizes from the smallest to the largest, and what is expected of them.
fn curve(search: &Search) -> anyhow::Result<()> {
    let mut rows = Vec::new();
    let (_, weights) = search.subject.size();
    for step in 0..=32 {
        let bits = 1.5 + f64::from(step) / 4.0;
        if let Ok(mix) = search.mix((bits * weights as f64 / 8.0) as u64) {
            rows.push(mix);
        }
    }
    if let Some(path) = &search.args.plot {
        let point = |mix: &Mix| Point {
            name: String::new(),
            size: mix.bits_per_weight,
            cost: mix.expected,
            error: 0.0,
            is_on_front: true,
        };
        let drawn = picture(&rows.iter().map(point).collect::<Vec<_>>());
        let drawn = drawn.context("there is no size to draw")?;
        crate::io::write(&LocalDisk, path, drawn.as_bytes())?;
    }
    if search.args.run.json {
        let row = |mix: &Mix| {
            json!({ "file_bytes": mix.bytes, "bits_per_weight": mix.bits_per_weight,
            "expected_kld": mix.expected })
        };
        say::json(json!({ "version": 1, "curve": rows.iter().map(row).collect::<Vec<_>>() }));
        return Ok(());
    }
    println!("{:>8} {:>12} {:>12}", "bits", "size", "KLD");
    for mix in rows {
        println!(
            "{:>8.3} {:>12} {:>12.6}",
            mix.bits_per_weight,
            units::bytes(mix.bytes),
            mix.expected
        );
    }
    Ok(())
}

/// The size that is asked for.
fn size(args: &Args, subject: Subject) -> anyhow::Result<Option<u64>> {
    let (_, weights) = subject.size();
    let of_bits = |bits: f64| (bits * weights as f64 / 8.0) as u64;
    let budgets = args.budget.iter();
    let all: u64 = budgets.clone().map(|(_, bytes)| bytes).sum();
    let rest = budgets.clone().any(|(role, _)| role.is_none());
    let size = args.size.or(args.bpw.map(of_bits));
    let of_role = |role| budgets.clone().filter(|(known, _)| *known == role).count();
    if let Some((role, _)) = budgets.clone().find(|(role, _)| of_role(*role) > 1) {
        bail!("--budget names {} twice", role.map_or("rest", Role::name));
    }
    match (size.or(beside_context(args, subject)?), all > 0) {
        (None, true) if !rest => {
            bail!("--budget says nothing about the rest; give --budget rest=SIZE or --size")
        }
        (None, true) => Ok(Some(all)),
        (Some(_), _) if rest => {
            bail!("--budget rest=SIZE and the size of all contradict each other")
        }
        (size, _) => Ok(size),
    }
}

/// What the context, in F16, and a batch's products leave of the memory.
fn beside_context(args: &Args, subject: Subject) -> anyhow::Result<Option<u64>> {
    let Some(memory) = args.fit else { return Ok(None) };
    let hparams = subject.model.hparams();
    let context = 2
        * u64::from(args.fit_ctx)
        * u64::from(hparams.n_layer)
        * u64::from(hparams.attention.n_cached());
    let left = memory.checked_sub(context + COMPUTE).with_context(|| {
        let [all, context] = [memory, context].map(units::bytes);
        format!(
            "{all} do not even hold the context, which takes {context}, and what is computed with"
        )
    })?;
    Ok(Some(left))
}
