//! `requant join`: the result of a measurement that several machines have shared.

use crate::cli::args::imatrix::File;
use crate::cli::args::measure::{Shape, Verdicts};
use crate::cli::say;
use crate::cli::views::measured::{self, Show};
use crate::imatrix::Sums;
use crate::measure::{Found, Part};
use anyhow::Context;
use std::path::PathBuf;

/// Join the shares of a perplexity, compare, gate, imatrix or mix that ran with --shard, of a text or of tasks.
///
/// The result is that of a single run, digit for digit; of imatrix and mix it is the file, of mix that which
/// --sensitivities names. Shares that do not belong together, are missing or
/// appear twice are refused.
#[derive(clap::Args)]
#[command(
    after_help = "Examples:\n  requant join cost.1-of-3 cost.2-of-3 cost.3-of-3 --report cost.html\n  \
                  requant join r1.1-of-2 r1.2-of-2 -o r1.json\n  \
                  requant mix DeepSeek-R1 --sensitivities r1.json --size 300G --no-proof -o mix.toml"
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
    match &found {
        Found::Importances(own) => {
            args.file.check()?;
            let mut sums = Sums::default();
            sums.add(own).ok().context("importances join nothing")?;
            args.file.write(&sums, args.json)?;
        }
        Found::Sensitivities(found) => args.file.write_sensitivities(found, args.json)?,
        _ => {}
    }
    let show = args.verdicts.show(args.shape.show(args.json));
    measured::found(&found, &Show { inputs: whole.inputs().cloned(), ..show })
}
