//! `requant perplexity`: how well a model predicts a text.

use super::compare::{self, RunArgs, Sampling, Tasks, TextArgs};
use super::evaluate::Room;
use super::share;
use super::show::{self, Show};
use crate::measure::{Job, Subject};
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
    #[command(flatten)]
    text: TextArgs,
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

pub fn run(args: &Args) -> anyhow::Result<()> {
    let options = args.sampling.apply(compare::options(&args.text, &args.room, &args.run));
    let alone = args.tasks.are_alone(&args.text);
    let texts = if alone { Vec::new() } else { args.text.read()? };
    let model = compare::model(&args.model, &options)?;
    let subject = Subject { path: &args.model, model: &model };
    let ask = || args.tasks.ask(&[subject], &options);
    if alone {
        ask()?.iter().for_each(|choices| show::choices(choices, args.run.json));
    } else if let Some(part) = args.share.measure(
        "perplexity",
        Job::Perplexity(subject),
        &texts,
        &options,
        args.run.json,
    )? {
        let show = Show { json: args.run.json, choices: ask()?, ..Show::default() };
        show::found(&part.result()?, &show)?;
    }
    Room::finish(&options);
    Ok(())
}
