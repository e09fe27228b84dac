//! `requant recipe`: what each tensor of a model gets in a mix, and which mix a file has.

use super::{output, place, recipe, units};
use crate::convert::{Plan, Settings};
use crate::model::Model;
use crate::quant::QuantType;
use crate::recipe::{FileType, Reason, Role};
use crate::source::{Dtype, GgufSource, Source};
use clap::Subcommand;
use serde_json::{Value, json};
use std::collections::BTreeMap;
use std::path::PathBuf;

/// Look at mixes: what each tensor gets and why, or which types a file has.
#[derive(clap::Args)]
pub struct Args {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    Show(Box<ShowArgs>),
    From(FromArgs),
}

/// Show what each tensor of a model gets in a mix, and why.
#[derive(clap::Args)]
#[command(after_help = "Example:\n  requant recipe show Q4_K_M --model DeepSeek-R1")]
struct ShowArgs {
    /// Mix, named as llama-quantize names it
    #[arg(value_name = "TYPE")]
    file_type: FileType,
    /// Model: checkpoint or GGUF file
    #[arg(long)]
    model: PathBuf,
    #[command(flatten)]
    recipe: recipe::Args,
    #[command(flatten)]
    resources: output::Resources,
    /// Print JSON
    #[arg(long)]
    json: bool,
}

/// Print the types of a file as a list for --tensor-type-file, to make the same mix elsewhere.
#[derive(clap::Args)]
#[command(after_help = "Example:\n  requant recipe from published-UD-Q2_K.gguf > mix.txt\n  \
                        requant convert DeepSeek-R1 out.gguf --type Q2_K --tensor-type-file mix.txt")]
struct FromArgs {
    /// GGUF file, or the first file of a split model
    file: PathBuf,
}

pub fn run(args: &Args) -> anyhow::Result<()> {
    match &args.command {
        Command::Show(args) => show(args),
        Command::From(args) => from(args),
    }
}

fn show(args: &ShowArgs) -> anyhow::Result<()> {
    let importance = args.recipe.importance()?;
    let settings = Settings {
        prune_layers: args.recipe.prune_layers(),
        override_kv: args.recipe.override_kv(),
        recipe: args.recipe.options(importance.is_some())?,
        threads: args.resources.threads(),
        importance,
        allow_requantize: true,
        memory: args.resources.memory(),
        ..Settings::new(args.file_type)
    };
    let plan = if args.model.is_file() {
        Plan::of_gguf(&GgufSource::open(&args.model)?, &settings)?
    } else {
        let Model::Checkpoint(model) = place::model(&args.model)? else {
            anyhow::bail!("{}: neither a file nor a checkpoint", args.model.display())
        };
        Plan::of_checkpoint(&model, &settings)?
    };
    let mut roles: BTreeMap<Role, (u64, u64)> = BTreeMap::new();
    let mut groups: Vec<((QuantType, String), Vec<&str>)> = Vec::new();
    for (i, tensor) in plan.tensors().iter().enumerate() {
        let share = roles.entry(Role::of(&tensor.name)).or_default();
        share.0 += tensor.n_elements();
        share.1 += plan.n_bytes(i);
        let key = (tensor.ty, why(tensor.reason));
        match groups.iter_mut().find(|(known, _)| *known == key) {
            Some((_, names)) => names.push(&tensor.name),
            None => groups.push((key, vec![&tensor.name])),
        }
    }
    if args.json {
        let tensors: Vec<Value> = plan
            .tensors()
            .iter()
            .map(|t| json!({ "name": t.name, "type": t.ty.name(), "why": why(t.reason) }))
            .collect();
        let roles: serde_json::Map<String, Value> = roles
            .iter()
            .map(|(role, &(n, bytes))| {
                (role.name().to_owned(), json!({ "weights": n, "bits_per_weight": bits(n, bytes) }))
            })
            .collect();
        let json = json!({
            "version": 1, "mix": args.file_type.to_string(), "roles": roles,
            "bits_per_weight": plan.bits_per_weight(), "tensors": tensors,
        });
        println!("{json:#}");
        return Ok(());
    }
    for ((ty, why), names) in groups {
        for name in units::names(&names) {
            println!("{name:<40} {:<8} {why}", ty.name());
        }
    }
    println!("\n{:<16} {:>10} {:>8}", "role", "weights", "bits");
    for (role, &(n, bytes)) in &roles {
        println!("{:<16} {:>10} {:>8.3}", role.name(), units::count(n as f64), bits(n, bytes));
    }
    let n = plan.n_weights() as f64;
    println!("{:<16} {:>10} {:>8.3}", "all", units::count(n), plan.bits_per_weight());
    Ok(())
}

fn bits(weights: u64, bytes: u64) -> f64 {
    bytes as f64 * 8.0 / weights.max(1) as f64
}

fn why(reason: Reason) -> String {
    match reason {
        Reason::Kept => "never quantized".to_owned(),
        Reason::Default => "the mix's default".to_owned(),
        Reason::Mix => "a rule of the mix".to_owned(),
        Reason::Requested => "asked for".to_owned(),
        Reason::Fallback { wanted } => format!("rows do not fit {wanted}"),
    }
}

fn from(args: &FromArgs) -> anyhow::Result<()> {
    let file = GgufSource::open(&args.file)?;
    // One line for each kind of tensor and type, with the layers where there are several.
    let mut kinds: BTreeMap<&str, BTreeMap<QuantType, Vec<Option<u32>>>> = BTreeMap::new();
    for meta in file.tensors() {
        let Dtype::Gguf(ty) = meta.dtype else { continue };
        let plain = matches!(ty, QuantType::F32) || meta.dims.len() < 2;
        if plain || !meta.name.ends_with("weight") {
            continue;
        }
        let layer = crate::recipe::layer_of(&meta.name);
        let kind = match layer {
            Some(_) => meta.name.splitn(3, '.').nth(2).unwrap_or_default(),
            None => &meta.name,
        };
        kinds.entry(kind).or_default().entry(ty).or_default().push(layer);
    }
    for (kind, types) in &kinds {
        let kind = kind.replace('.', "\\.");
        let mut types: Vec<_> = types.iter().collect();
        types.sort_by_key(|(_, layers)| layers.len());
        let last = types.len() - 1;
        for (i, (ty, layers)) in types.into_iter().enumerate() {
            let ty = ty.name();
            let numbers: Vec<String> = layers.iter().flatten().map(u32::to_string).collect();
            match numbers.is_empty() {
                true => println!("^{kind}$={ty}"),
                // The most frequent type stands last, for all layers that are not named.
                false if i == last => println!("^blk\\.[0-9]+\\.{kind}$={ty}"),
                false => println!("^blk\\.({})\\.{kind}$={ty}", numbers.join("|")),
            }
        }
    }
    Ok(())
}
