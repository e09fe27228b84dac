//! `requant recipe`: what each tensor of a model gets in a mix, and which mix a file has.

use crate::cli::args::types::{self, MIXES};
use crate::cli::args::{output, place};
use crate::cli::say;
use crate::cli::views::units;
use crate::convert::{Explained, Explanation, Plan, Settings, explain};
use crate::model::Model;
use crate::names::by_layer;
use crate::recipe::{FileType, Reason, Recipe, Role};
use clap::Subcommand;
use serde_json::{Value, json};
use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::Arc;

/// Look at mixes: what each tensor gets and why, or which types a file has.
#[derive(clap::Args)]
#[command(after_help = "Examples:\n  requant recipe show Q4_K_M --model DeepSeek-R1\n  \
                        requant recipe from published-UD-Q2_K.gguf > mix.toml")]
pub struct Args {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    Show(Box<ShowArgs>),
    From(FromArgs),
    /// List the mixes by name, as `requant types`
    #[command(after_help = "Example:\n  requant recipe list --json")]
    List(super::types::Args),
}

/// Show the rules of a mix, or what each tensor of a model gets in it, and why.
#[derive(clap::Args)]
#[command(after_help = "Example:\n  requant recipe show Q4_K_M --model DeepSeek-R1")]
struct ShowArgs {
    /// Mix, named as llama-quantize names it, or a recipe file (*.toml)
    #[arg(value_name = "TYPE", value_parser = MIXES, hide_possible_values = true)]
    mix: Arc<Recipe>,
    /// Model: checkpoint or GGUF file; without it, the recipe itself is printed
    #[arg(long)]
    model: Option<PathBuf>,
    #[command(flatten)]
    recipe: types::Planned,
    #[command(flatten)]
    resources: output::Resources,
    /// Print JSON
    #[arg(long, help_heading = "Results")]
    json: bool,
}

/// Print the recipe of a file, to make the same mix elsewhere: the one that it was made with, the
/// named mix that gives its types, or a list of them.
#[derive(clap::Args)]
#[command(after_help = "Example:\n  requant recipe from published-UD-Q2_K.gguf > mix.toml\n  \
                        requant convert DeepSeek-R1 out.gguf --type mix.toml")]
struct FromArgs {
    /// GGUF file, or the first file of a split model
    file: PathBuf,
}

pub fn run(args: &Args) -> anyhow::Result<()> {
    match &args.command {
        Command::Show(args) => show(args),
        Command::From(args) => from(args),
        Command::List(args) => {
            super::types::run(args);
            Ok(())
        }
    }
}

fn show(args: &ShowArgs) -> anyhow::Result<()> {
    let Some(model) = &args.model else {
        if args.json {
            let text = args.mix.text();
            let json = json!({ "version": 1, "mix": args.mix.name(), "recipe": text,
                "sha256": args.mix.sha256() });
            say::json(json);
        } else {
            print!("{}", args.mix.text());
        }
        return Ok(());
    };
    let importance = args.recipe.importance()?;
    let settings = Settings {
        recipe: args.mix.clone(),
        prune_layers: args.recipe.prune_layers(),
        override_kv: args.recipe.override_kv(),
        options: args.recipe.options(importance.is_some())?,
        threads: args.resources.threads(),
        importance,
        allow_requantize: true,
        memory: args.resources.memory(),
        ..Settings::new(FileType::F32)
    };
    let plan = if place::is_gguf(model) {
        Plan::of_gguf(&place::gguf(model)?, &settings)?
    } else {
        let Model::Checkpoint(opened) = place::model(model)? else {
            anyhow::bail!("{}: neither a file nor a checkpoint", model.display())
        };
        Plan::of_checkpoint(&opened, &settings)?
    };
    let mut roles: BTreeMap<Role, (u64, u64)> = BTreeMap::new();
    let mut groups: Vec<((String, String), Vec<&str>)> = Vec::new();
    for (i, tensor) in plan.tensors().iter().enumerate() {
        let share = roles.entry(Role::of(&tensor.name)).or_default();
        share.0 += tensor.n_elements();
        share.1 += plan.n_bytes(i);
        let key = (tensor.ty.to_string(), why(&plan, tensor.reason));
        match groups.iter_mut().find(|(known, _)| *known == key) {
            Some((_, names)) => names.push(&tensor.name),
            None => groups.push((key, vec![&tensor.name])),
        }
    }
    if args.json {
        let tensors: Vec<Value> = plan
            .tensors()
            .iter()
            .map(|t| json!({ "name": t.name, "type": t.ty.to_string(), "why": why(&plan, t.reason) }))
            .collect();
        let roles: serde_json::Map<String, Value> = roles
            .iter()
            .map(|(role, &(n, bytes))| {
                (role.name().to_owned(), json!({ "weights": n, "bits_per_weight": bits(n, bytes) }))
            })
            .collect();
        let json = json!({
            "version": 1, "mix": args.mix.name(), "roles": roles,
            "bits_per_weight": plan.bits_per_weight(), "tensors": tensors,
        });
        say::json(json);
        return Ok(());
    }
    for ((ty, why), names) in groups {
        for name in by_layer(&names) {
            println!("{name:<40} {ty:<8} {why}");
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

fn why(plan: &Plan, reason: Reason) -> String {
    match reason {
        Reason::Kept => "never quantized".to_owned(),
        Reason::Default => "the mix's default".to_owned(),
        Reason::Rule(rule) => plan.recipe().rule_name(rule).to_owned(),
        Reason::Outside => "outside of the layers".to_owned(),
        Reason::Requested => "asked for".to_owned(),
        Reason::Unmeasured { wanted } => format!("no importances, which {wanted} needs"),
        Reason::Fallback { wanted } => format!("rows do not fit {wanted}"),
    }
}

fn from(args: &FromArgs) -> anyhow::Result<()> {
    let file = place::gguf(&args.file)?;
    let name = args.file.file_stem().unwrap_or_default().to_string_lossy();
    let Explanation { text, how } = explain(&file, &name)?;
    let with = |imatrix| if imatrix { ", with an imatrix" } else { "" };
    let how = match how {
        Explained::Stored => None,
        Explained::Mix { mix, imatrix } => Some(format!("the types of {mix}{}", with(imatrix))),
        Explained::Amended { mix, imatrix, rules } => Some(format!(
            "{mix}{}, with {rules} rule{} before its own",
            with(imatrix),
            if rules == 1 { "" } else { "s" }
        )),
        Explained::Listed => Some("no mix of llama-quantize; the types, listed".to_owned()),
    };
    if let Some(how) = how {
        println!("# {}: {how}", args.file.display());
    }
    print!("{text}");
    Ok(())
}
