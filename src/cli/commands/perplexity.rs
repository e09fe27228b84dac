//! `requant perplexity`: how well a model predicts a text.

use crate::cli::args::measure::{self, Measuring, Room, Tasks, TextArgs};
use crate::cli::args::place;
use crate::cli::progress::Progress;
use crate::cli::views::measured::Show;
use crate::cli::{bad_usage, say};
use crate::measure::{Inputs, Job, Options, Subject, Text};
use serde_json::json;
use std::path::PathBuf;

/// Perplexity of a checkpoint folder or a GGUF file on a text.
///
/// The text is cut into chunks as llama-perplexity cuts it, and the second half of each chunk is
/// scored. Activations are f32, unless --activations says otherwise; weights are used exactly as stored.
#[derive(clap::Args)]
#[command(after_help = "Example:\n  requant perplexity DeepSeek-R1-Q4_K_M.gguf \
                        --text wiki.test.raw --json")]
pub struct Args {
    /// Checkpoint folder or GGUF file
    model: PathBuf,
    /// Instead, how well the layer for multi-token prediction foresees the token after next, and the
    /// share of its drafts that the model itself would choose
    #[arg(long, conflicts_with_all = ["shard", "until_error", "time_limit"])]
    mtp: bool,
    #[command(flatten)]
    text: TextArgs,
    #[command(flatten)]
    tasks: Tasks,
    #[command(flatten)]
    measuring: Measuring,
}

/// The exit code.
pub fn run(args: &Args) -> anyhow::Result<u8> {
    args.tasks.check(&args.text, &args.measuring.share)?;
    let options = args.measuring.options(&args.text);
    let json = args.measuring.json();
    let alone = args.tasks.are_alone(&args.text);
    let texts = if alone { Vec::new() } else { args.text.read()? };
    if args.mtp {
        return drafts(args, &texts, &options);
    }
    let model = measure::model(&args.model, &options)?;
    let subject = Subject { path: &args.model, model: &model };
    let ask = || args.tasks.ask(&[subject], &options);
    if alone {
        args.tasks.ask_alone(&[subject], &options, &args.measuring.share, json)?;
    } else if let Some(part) = args.measuring.share.measure(
        "perplexity",
        Job::Perplexity(subject),
        &texts,
        &options,
        json,
    )? {
        let inputs = json.then(|| Inputs::of(&texts, &[subject])).transpose()?;
        let show = Show { json, choices: ask()?, inputs, ..Show::default() };
        return measure::conclude(&part.result()?, &show, &options);
    }
    Room::finish(&options);
    Ok(0)
}

/// What the layer for multi-token prediction is worth.
fn drafts(args: &Args, texts: &[Text], options: &Options) -> anyhow::Result<u8> {
    let [text] = texts else { return Err(bad_usage("--mtp takes one text")) };
    let mut model = place::open_with_drafts(&args.model)?;
    model.set_simd(options.simd);
    let subject = Subject { path: &args.model, model: &model };
    let progress = Progress::start("drafts", 0, "token-layers", 0);
    let found = crate::measure::drafts(subject, text, options, &progress)?;
    progress.finish();
    if args.measuring.json() {
        say::json(json!({ "version": 1, "drafts": found }));
        return Ok(0);
    }
    println!("token after next: mean NLL {:.6} ± {:.6}", found.nll, found.error);
    println!("accepted drafts:  {:.2} % of {}", 100.0 * found.accepted, found.tokens);
    Ok(0)
}
