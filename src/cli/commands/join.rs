//! `requant join`: the result of a measurement that several machines have shared.

use crate::cli::args::imatrix::File;
use crate::cli::args::measure::Shape;
use crate::cli::args::places;
use crate::cli::say;
use crate::cli::views::measured::{self, Show};
use crate::imatrix::Sums;
use crate::measure::{Found, Part};
use anyhow::Context;
use std::path::PathBuf;

/// Join the shares of a perplexity, compare, gate or imatrix that ran with --shard.
///
/// The result is that of a single run, digit for digit. Shares that do not belong together, are missing or
/// appear twice are refused.
#[derive(clap::Args)]
#[command(
    after_help = "Example:\n  requant join cost.1-of-3 cost.2-of-3 cost.3-of-3 --report cost.html"
)]
pub struct Args {
    /// The files that --part named
    #[arg(required = true, value_name = "PART")]
    parts: Vec<PathBuf>,
    /// Show the error of the hidden states after each layer
    #[arg(long)]
    by_layer: bool,
    /// Write a page with tables and pictures
    #[arg(long, value_name = "FILE")]
    report: Option<PathBuf>,
    /// Draw the models' mean KL divergence over their bits per weight (SVG)
    #[arg(long, value_name = "FILE")]
    plot: Option<PathBuf>,
    /// Of a gate, add a table in Markdown to the end of this file, such as $GITHUB_STEP_SUMMARY
    #[arg(long, value_name = "FILE")]
    summary: Option<PathBuf>,
    /// Of a gate, write the verdicts as JUnit's XML
    #[arg(long, value_name = "FILE")]
    junit: Option<PathBuf>,
    #[command(flatten)]
    shape: Shape,
    #[command(flatten)]
    file: File,
    /// Print JSON
    #[arg(long, help_heading = "Results")]
    json: bool,
}

/// The exit code.
pub fn run(args: &Args) -> anyhow::Result<u8> {
    let files = args.report.iter().chain(&args.plot).chain(args.shape.files());
    for path in files.chain(&args.summary).chain(&args.junit) {
        places::prepare(path)?;
    }
    let parts = args.parts.iter().map(|path| Ok((path.clone(), Part::open(path)?)));
    let whole = Part::join(parts.collect::<anyhow::Result<_>>()?)?;
    say::warnings(whole.warnings());
    let found = whole.result()?;
    if let Found::Importances(own) = &found {
        args.file.check()?;
        let mut sums = Sums::default();
        sums.add(own).ok().context("importances join nothing")?;
        args.file.write(&sums, args.json)?;
    }
    let show = Show {
        json: args.json || args.shape.is_json(),
        by_layer: args.by_layer,
        report: args.report.clone(),
        plot: args.plot.clone(),
        summary: args.summary.clone(),
        junit: args.junit.clone(),
        ..args.shape.show()
    };
    measured::found(&found, &show)
}
