//! `requant gate`: whether the loss of models stays within limits.

use crate::cli::args::measure::{Measuring, Models, Report, Room, TextArgs, Verdicts, conclude};
use crate::cli::args::numbers::{confidence, positive, share as share_of};
use crate::cli::views::measured::Show;
use crate::eval::Limits;
use crate::measure::{Extras, Inputs, Job, Terms};

/// Decide whether the loss of models stays within limits, as early as the measurements allow.
///
/// Exit codes: 0 all limits are kept, 3 one is not, 4 undecided at this confidence or when it was interrupted.
#[derive(clap::Args)]
#[command(after_help = "Examples:\n  requant gate DeepSeek-R1 DeepSeek-R1-Q4_K_M.gguf \
                        --text wiki.test.raw --max-kld 0.02 --max-ppl-ratio 1.01\n  \
                        requant gate --base r1.kld *.gguf --max-kld 0.05 \
                        --summary $GITHUB_STEP_SUMMARY --report cost.html")]
#[command(group(clap::ArgGroup::new("limits").required(true).multiple(true)
                .args(["max_kld", "max_ppl_ratio", "min_same_top"])))]
pub struct Args {
    #[command(flatten)]
    models: Models,
    #[command(flatten)]
    text: TextArgs,
    /// Largest mean KL divergence, in nats
    #[arg(long, value_name = "X", value_parser = positive, help_heading = "Limits")]
    max_kld: Option<f64>,
    /// Largest perplexity, divided by the reference's
    #[arg(long, value_name = "X", value_parser = positive, help_heading = "Limits")]
    max_ppl_ratio: Option<f64>,
    /// Smallest share of tokens with the same most probable token, such as 0.95 or 95%
    #[arg(long, value_name = "X", value_parser = share_of, help_heading = "Limits")]
    min_same_top: Option<f64>,
    /// Probability that a verdict is right
    #[arg(long, value_name = "P", default_value_t = 0.99, value_parser = confidence, help_heading = "Limits")]
    confidence: f64,
    /// Measure the error of each tensor's output alone, for --report
    #[arg(long, conflicts_with = "base", requires = "report", help_heading = "Results")]
    by_tensor: bool,
    #[command(flatten)]
    report: Report,
    #[command(flatten)]
    verdicts: Verdicts,
    #[command(flatten)]
    measuring: Measuring,
}

/// The exit code of the verdict.
pub fn run(args: &Args) -> anyhow::Result<u8> {
    let is_share = args.measuring.share.is_share();
    args.report.prepare(is_share)?;
    args.verdicts.prepare(is_share)?;
    let options = args.measuring.options(&args.text);
    args.models.require_candidates()?;
    let opened = args.models.open(&options)?;
    let texts = args.models.texts(&args.text)?;
    let (reference, candidates) = (opened.reference(), opened.candidates());
    let limits = Limits {
        kl: args.max_kld,
        perplexity_ratio: args.max_ppl_ratio,
        same_top: args.min_same_top,
    };
    let terms = Terms { limits, confidence: args.confidence };
    let extras = Extras { by_tensor: args.by_tensor, ..Extras::default() };
    let job = Job::Gate { reference, candidates: &candidates, extras, terms };
    let json = args.measuring.json();
    if let Some(part) = args.measuring.share.measure("gate", job, &texts, &options, json)? {
        let inputs = json.then(|| Inputs::of(&texts, &job.subjects())).transpose()?;
        let show = Show { json, report: args.report.path(), inputs, ..Show::default() };
        let show = args.verdicts.show(show);
        return conclude(&part.result()?, &show, &options);
    }
    Room::finish(&options);
    Ok(0)
}
