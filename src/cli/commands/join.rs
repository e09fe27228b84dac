//! `requant join`: the result of a measurement that several machines have shared.

use crate::cli::args::imatrix::File;
use crate::cli::args::measure::{Shape, Verdicts};
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
    #[command(flatten)]
    shape: Shape,
    #[command(flatten)]
    verdicts: Verdicts,
    #[command(flatten)]
    file: File,
    /// Print JSON
    #[arg(long, help_heading = "Results")]
    json: bool,
}

/// The exit code.
pub fn run(args: &Args) -> anyhow::Result<u8> {
    args.shape.prepare(false)?;
    args.verdicts.prepare(false)?;
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
    let show = args.verdicts.show(args.shape.show(args.json));
    measured::found(&found, &Show { inputs: whole.inputs().cloned(), ..show })
}
