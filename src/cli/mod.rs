//! The command line: arguments, progress, tables, JSON and exit codes. No arithmetic on weights.
//!
//! Results go to standard output, everything else to standard error. Exit codes: 0 done,
//! 1 failed, 2 bad usage, 130 interrupted.

mod convert;
mod evaluate;
mod output;
mod perplexity;
mod place;
mod plan;
mod progress;
mod quantize;
mod recipe;
mod units;
mod verify;

use clap::{Parser, Subcommand};
use std::process::ExitCode;
use std::sync::atomic::{AtomicBool, Ordering};

/// Set by the first Ctrl-C (or SIGTERM); work ends at the next opportunity.
static INTERRUPTED: AtomicBool = AtomicBool::new(false);

/// GGUF quantization and conversion for the DeepSeek-R1 family.
#[derive(Parser)]
#[command(version, max_term_width = 100)]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    Convert(Box<convert::Args>),
    Quantize(Box<quantize::Args>),
    Plan(Box<plan::Args>),
    Verify(Box<verify::Args>),
    Perplexity(perplexity::Args),
}

/// Runs the program on the process's arguments.
pub fn main() -> ExitCode {
    // A second Ctrl-C ends the process at once: the output has not got its name yet.
    let handler = ctrlc::set_handler(|| {
        if INTERRUPTED.swap(true, Ordering::Relaxed) {
            std::process::exit(130);
        }
    });
    let result = handler.map_err(anyhow::Error::from).and_then(|()| match Cli::parse().command {
        Command::Convert(args) => convert::run(&args),
        Command::Quantize(args) => quantize::run(&args),
        Command::Plan(args) => plan::run(&args),
        Command::Verify(args) => verify::run(&args),
        Command::Perplexity(args) => perplexity::run(&args),
    });
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("requant: {}", describe(&error));
            let interrupted = INTERRUPTED.load(Ordering::Relaxed);
            ExitCode::from(if interrupted { 130 } else { 1 })
        }
    }
}

/// The chain of causes on one line. Library errors name their cause themselves, so a cause that is
/// repeated in what came before adds nothing.
fn describe(error: &anyhow::Error) -> String {
    let mut text = String::new();
    for cause in error.chain() {
        let cause = cause.to_string();
        if !text.contains(&cause) {
            if !text.is_empty() {
                text += ": ";
            }
            text += &cause;
        }
    }
    text
}

/// Threads to use: what is asked for, or what the machine has.
fn threads(asked: Option<usize>) -> usize {
    asked.unwrap_or_else(|| std::thread::available_parallelism().map_or(1, usize::from))
}

#[cfg(test)]
mod tests {
    use super::*;
    use clap::CommandFactory;

    #[test]
    fn the_arguments_do_not_contradict_each_other() {
        Cli::command().debug_assert();
    }
}
