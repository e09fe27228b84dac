//! `requant gate`: whether a model's loss stays within limits.

use crate::cli::args::measure::{
    Room, RunArgs, Sampling, TextArgs, conclude, inputs, model, options,
};
use crate::cli::args::numbers::{confidence, positive, share as share_of};
use crate::cli::args::share;
use crate::cli::views::measured::Show;
use crate::eval::Limits;
use crate::measure::{Job, Subject, Terms};
use serde_json::Value;
use std::path::PathBuf;

/// Decide whether a model's loss stays within limits, as early as the measurements allow.
///
/// Exit codes: 0 all limits are kept, 3 one is not, 4 undecided at this confidence.
#[derive(clap::Args)]
#[command(after_help = "Example:\n  requant gate DeepSeek-R1 DeepSeek-R1-Q4_K_M.gguf \
                        --text wiki.test.raw --max-kld 0.02 --max-ppl-ratio 1.01")]
#[command(group(clap::ArgGroup::new("limits").required(true).multiple(true)
                .args(["max_kld", "max_ppl_ratio", "min_same_top"])))]
pub struct Args {
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
    /// Smallest share of tokens with the same most probable token, such as 0.95 or 95%
    #[arg(long, value_name = "X", value_parser = share_of)]
    min_same_top: Option<f64>,
    /// Probability that a verdict is right
    #[arg(long, value_name = "P", default_value_t = 0.99, value_parser = confidence)]
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

/// The exit code of the verdict.
pub fn run(args: &Args) -> anyhow::Result<u8> {
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
    if let Some(part) = args.share.measure("gate", job, &texts, &options, args.run.json)? {
        let json = args.run.json;
        let inputs = if json { inputs(&texts, &[reference, candidate])? } else { Value::Null };
        let show = Show { json, inputs, ..Show::default() };
        return conclude(&part.result()?, &show, &options);
    }
    Room::finish(&options);
    Ok(0)
}
