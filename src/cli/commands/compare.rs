//! `requant compare`: what quantizations cost, token by token.

use crate::cli::args::measure::{Measuring, Models, Room, Shape, Tasks, TextArgs, conclude};
use crate::cli::args::places;
use crate::cli::views::measured::Show;
use crate::measure::{Extras, Inputs, Job};
use std::path::PathBuf;

/// Compare models with a reference on a text: perplexity, KL divergence, agreement.
///
/// All models pass the text together, layer by layer; no file of logits is needed. Definitions are
/// those of llama-perplexity --kl-divergence.
///
/// Interrupted, it says what it has found where chunks are taken in rounds (--time-limit, --until-error), and exits
/// with 130.
#[derive(clap::Args)]
#[command(after_help = "Examples:\n  requant compare DeepSeek-R1 DeepSeek-R1-Q4_K_M.gguf \
                        --text wiki.test.raw --report cost.html\n  \
                        requant compare DeepSeek-R1 R1-GGUF/*.gguf --text wiki.test.raw --plot cost.svg\n  \
                        requant compare --base r1.kld DeepSeek-R1-Q4_K_M.gguf")]
pub struct Args {
    #[command(flatten)]
    models: Models,
    #[command(flatten)]
    text: TextArgs,
    /// Save the reference's log-probabilities in llama-perplexity's format
    #[arg(long, value_name = "FILE", help_heading = "Results",
          conflicts_with_all = ["base", "shard", "until_error", "time_limit"])]
    save_base: Option<PathBuf>,
    /// Measure the error of each tensor's output alone, on the reference's own activations
    #[arg(long, help_heading = "Results", conflicts_with = "base")]
    by_tensor: bool,
    #[command(flatten)]
    shape: Shape,
    #[command(flatten)]
    tasks: Tasks,
    #[command(flatten)]
    measuring: Measuring,
}

/// The exit code.
pub fn run(args: &Args) -> anyhow::Result<u8> {
    args.shape.prepare(args.measuring.share.is_share())?;
    args.tasks.check(&args.text, &args.measuring.share)?;
    args.save_base.iter().try_for_each(|path| places::prepare(path))?;
    let options = args.measuring.options(&args.text);
    if args.save_base.is_none() {
        args.models.require_candidates()?;
    }
    let alone = !args.models.has_base() && args.tasks.are_alone(&args.text);
    let opened = args.models.open(&options)?;
    let texts = if alone { Vec::new() } else { args.models.texts(&args.text)? };
    let (reference, candidates) = (opened.reference(), opened.candidates());
    let json = args.measuring.json() || args.shape.is_json();
    let extras = Extras { by_tensor: args.by_tensor, save_base: args.save_base.as_deref() };
    let job = Job::Compare { reference, candidates: &candidates, extras };
    let ask = || args.tasks.ask(&job.subjects(), &options);
    if alone {
        args.tasks.ask_alone(&job.subjects(), &options, &args.measuring.share, json)?;
    } else if let Some(part) =
        args.measuring.share.measure("compare", job, &texts, &options, json)?
    {
        let show = Show {
            choices: ask()?,
            inputs: json.then(|| Inputs::of(&texts, &job.subjects())).transpose()?,
            ..args.shape.show(json)
        };
        return conclude(&part.result()?, &show, &options);
    }
    Room::finish(&options);
    Ok(0)
}
