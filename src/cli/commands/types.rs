//! `requant types`: what `--type` takes.

use crate::cli::say;
use crate::cli::views::types;

/// List what --type takes: bits, whether importances matter, and what it is for.
#[derive(clap::Args)]
#[command(after_help = "Example:\n  requant types --json")]
pub struct Args {
    /// Print JSON
    #[arg(long)]
    json: bool,
}

pub fn run(args: &Args) {
    match args.json {
        true => say::json(types::json()),
        false => print!("{}", types::table()),
    }
}
