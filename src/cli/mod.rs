//! The command line: arguments, progress, tables, JSON and exit codes. No arithmetic on weights.
//!
//! Results go to standard output, everything else to standard error. Exit codes: 0 done,
//! 1 failed, 2 bad usage, 3 compared and found different or beyond a limit, 4 undecided,
//! 130 interrupted.

/// As the standard library's, which panic where standard output takes nothing.
macro_rules! print {
    ($($arg:tt)*) => { $crate::cli::say::result(format_args!($($arg)*)) };
}
macro_rules! println {
    () => { print!("\n") };
    ($($arg:tt)*) => { print!("{}\n", format_args!($($arg)*)) };
}

mod args;
mod commands;
mod errors;
mod progress;
mod reference;
mod say;
mod views;

use crate::io;
use anyhow::Context;
use clap::{CommandFactory, Parser, Subcommand};
use commands::{
    compare, convert, diff, edit, export, formats, gate, hash, imatrix, inspect, join, mix,
    perplexity, plan, publish, quantize, recipe, split, types, verify,
};
use std::ffi::OsString;
use std::process::ExitCode;
use std::sync::atomic::{AtomicBool, Ordering};

/// Set by the first Ctrl-C (or SIGTERM); work ends at the next opportunity.
static INTERRUPTED: AtomicBool = AtomicBool::new(false);

/// GGUF quantization and conversion for the DeepSeek-R1 family.
#[derive(Parser)]
#[command(version, max_term_width = 100)]
#[command(
    after_long_help = "Exit codes: 0 done, 1 failed, 2 bad usage, 3 compared and found different or beyond a \
                             limit, 4 undecided, 130 interrupted\n\nExamples:\n  requant convert DeepSeek-R1 DeepSeek-R1-Q4_K_M.gguf \
                             --type Q4_K_M\n  requant quantize model-BF16.gguf model-Q4_K_M.gguf \
                             Q4_K_M\n  requant inspect model-Q4_K_M.gguf"
)]
struct Cli {
    /// How much to say on standard error
    #[arg(
        long,
        global = true,
        value_enum,
        value_name = "LEVEL",
        default_value = "info",
        help_heading = "Messages"
    )]
    log_level: say::Level,
    /// Say nothing but errors, as --log-level error
    #[arg(long, short, global = true, conflicts_with = "log_level", help_heading = "Messages")]
    quiet: bool,
    /// Take warnings for errors: nothing is written, and the exit code is 1
    #[arg(long, global = true, help_heading = "Messages")]
    strict: bool,
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    Convert(Box<convert::Args>),
    Quantize(Box<quantize::Args>),
    Plan(Box<plan::Args>),
    Verify(Box<verify::Args>),
    Perplexity(Box<perplexity::Args>),
    Compare(Box<compare::Args>),
    Gate(Box<gate::Args>),
    Imatrix(Box<imatrix::Args>),
    Join(join::Args),
    Inspect(inspect::Args),
    Diff(diff::Args),
    Split(Box<split::SplitArgs>),
    Merge(Box<split::MergeArgs>),
    Set(edit::SetArgs),
    Unset(edit::UnsetArgs),
    Hash(hash::Args),
    Export(export::Args),
    Publish(publish::Args),
    Recipe(recipe::Args),
    Mix(Box<mix::Args>),
    Types(types::Args),
    Formats(formats::Args),
    /// Print completions for a shell
    #[command(after_help = "Example:\n  requant completions bash > /etc/bash_completion.d/requant")]
    Completions {
        /// The shell
        shell: clap_complete::Shell,
    },
    /// Write manual pages into a folder
    #[command(after_help = "Example:\n  requant man /usr/local/share/man/man1")]
    Man {
        /// The folder
        folder: std::path::PathBuf,
    },
}

pub use args::place;
pub use formats::all as formats_json;

/// Runs the program on the process's arguments. On Windows, where shells leave it to programs, `*.gguf` becomes the
/// names of files.
pub fn main() -> ExitCode {
    ExitCode::from(run(wild::args_os()))
}

/// Runs the program on arguments, of which the first is its own name; its exit code. The process is the
/// program's: signals are handled its way, and where arguments do not parse, the process ends.
pub fn run(arguments: impl IntoIterator<Item = OsString>) -> u8 {
    // A second Ctrl-C ends the process at once: the output has not got its name yet.
    let handler = ctrlc::set_handler(|| {
        if INTERRUPTED.swap(true, Ordering::Relaxed) {
            std::process::exit(130);
        }
    });
    let mut exit = 0;
    let result =
        handler.map_err(anyhow::Error::from).and_then(|()| match parse(arguments).command {
            Command::Convert(args) => convert::run(args),
            Command::Quantize(args) => quantize::run(&args),
            Command::Plan(args) => plan::run(args),
            Command::Verify(args) => verify::run(&args).map(|same| {
                exit = if same { 0 } else { 3 };
            }),
            Command::Perplexity(args) => perplexity::run(&args).map(|code| exit = code),
            Command::Inspect(args) => inspect::run(&args),
            Command::Compare(args) => compare::run(&args).map(|code| exit = code),
            Command::Gate(args) => gate::run(&args).map(|code| exit = code),
            Command::Imatrix(args) => imatrix::run(&args),
            Command::Join(args) => join::run(&args).map(|code| exit = code),
            Command::Diff(args) => diff::run(&args).map(|equal| {
                exit = if equal { 0 } else { 3 };
            }),
            Command::Split(args) => split::split(&args),
            Command::Merge(args) => split::merge(&args),
            Command::Set(args) => edit::set(&args),
            Command::Unset(args) => edit::unset(&args),
            Command::Hash(args) => hash::run(&args),
            Command::Export(args) => export::run(&args),
            Command::Publish(args) => publish::run(&args),
            Command::Recipe(args) => recipe::run(&args),
            Command::Mix(args) => mix::run(&args),
            Command::Types(args) => {
                types::run(&args);
                Ok(())
            }
            Command::Formats(args) => {
                formats::run(&args);
                Ok(())
            }
            Command::Completions { shell } => {
                let mut script = Vec::new();
                clap_complete::generate(shell, &mut Cli::command(), "requant", &mut script);
                print!("{}", String::from_utf8_lossy(&script));
                Ok(())
            }
            Command::Man { folder } => clap_mangen::generate_to(Cli::command(), &folder)
                .with_context(|| folder.display().to_string()),
        });
    match result.and_then(|()| say::heed()) {
        Ok(()) if say::is_lost() => exit.max(1),
        Ok(()) => exit,
        Err(error) => {
            let text = errors::describe(&error);
            say::error(&text);
            say::json_error(&text);
            match (is_interrupted(), error.is::<errors::BadUsage>()) {
                (true, _) => 130,
                (false, true) => 2,
                (false, false) => 1,
            }
        }
    }
}

/// Whether the program was asked to stop.
fn is_interrupted() -> bool {
    INTERRUPTED.load(Ordering::Relaxed)
}

/// What people do with it, for who asks for nothing.
const FIRST_STEPS: &str = "\
requant: GGUF quantization and conversion for the DeepSeek-R1 family

Make a GGUF file of a checkpoint, here or on the hub; with --types several in one pass:
  requant convert DeepSeek-R1 R1-Q4_K_M.gguf --type Q4_K_M
  requant convert hf://deepseek-ai/DeepSeek-R1 R1-GGUF --types Q8_0,Q6_K,Q4_K_M,IQ4_XS
Make another one of a GGUF file, as llama-quantize does:
  requant quantize model-BF16.gguf model-Q4_K_M.gguf Q4_K_M
Say what it cost: KL divergence, perplexity and more, against the original:
  requant compare DeepSeek-R1 R1-Q4_K_M.gguf --text wiki.test.raw
Look into a file, and check that it is whole and from where it should be:
  requant inspect R1-Q4_K_M.gguf
  requant verify R1-Q4_K_M.gguf --against DeepSeek-R1
Get a folder of files ready for the hub: page, quality, checksums, how they were made:
  requant publish R1-GGUF --quality quality.json

requant --help lists all commands, requant COMMAND --help explains one.
";

/// The arguments; how much is said follows from them at once.
fn parse(arguments: impl IntoIterator<Item = OsString>) -> Cli {
    let arguments: Vec<OsString> = arguments.into_iter().collect();
    if arguments.len() < 2 {
        print!("{FIRST_STEPS}");
        std::process::exit(0);
    }
    say::begin(&arguments);
    let json = |pair: &[OsString]| pair[0] == "--format" && pair[1] == "json";
    let is_json = |argument: &OsString| argument == "--json" || argument == "--format=json";
    say::set_json(arguments.iter().any(is_json) || arguments.windows(2).any(json));
    let cli = Cli::try_parse_from(arguments).unwrap_or_else(|error| {
        let error = reference::explain(error);
        if error.use_stderr() {
            say::json_error(error.to_string().lines().next().unwrap_or_default());
        }
        error.exit()
    });
    if cli.strict {
        say::set_strict();
    }
    say::set_level(if cli.quiet { say::Level::Error } else { cli.log_level });
    say::debug(machine());
    cli
}

/// What of the machine may be used.
fn machine() -> String {
    let memory = io::memory();
    let bytes = |n: Option<u64>| n.map_or("an unknown amount".to_owned(), views::units::bytes);
    let allowed = match memory.allowed {
        Some(_) => format!(", {} allowed by its control group", bytes(memory.allowed)),
        None => String::new(),
    };
    let processors = views::units::of(io::processors(), "processor");
    format!("{processors}, {} of memory{allowed}", bytes(memory.physical))
}

/// An error of arguments that mean nothing together, as of one that does not parse.
fn bad_usage(message: impl Into<String>) -> anyhow::Error {
    errors::BadUsage(message.into()).into()
}

/// Threads to use: what is asked for, or what the machine has.
fn threads(asked: Option<usize>) -> usize {
    asked.unwrap_or_else(io::processors)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_commands_long_help_has_an_example_of_it() {
        fn check(mut command: clap::Command, path: &str) {
            let help = command.render_long_help().to_string();
            let example = help.split("\nExample").nth(1).unwrap_or_default();
            assert!(example.contains(&format!("\n  {path} ")), "{path}: {help}");
            for part in command.get_subcommands() {
                if part.get_name() != "help" {
                    check(part.clone(), &format!("{path} {}", part.get_name()));
                }
            }
        }
        check(Cli::command(), "requant");
    }

    #[test]
    fn a_short_option_means_the_same_everywhere() {
        let mut known = std::collections::BTreeMap::new();
        fn options(command: &clap::Command, see: &mut dyn FnMut(char, String)) {
            for arg in command.get_arguments() {
                if let (Some(short), Some(long)) = (arg.get_short(), arg.get_long()) {
                    see(short, long.to_owned());
                }
            }
            command.get_subcommands().for_each(|part| options(part, see));
        }
        options(&Cli::command(), &mut |short, long| {
            assert_eq!(*known.entry(short).or_insert_with(|| long.clone()), long, "-{short}");
        });
        for (short, long) in [('t', "type"), ('j', "threads"), ('f', "force"), ('o', "output")] {
            assert_eq!(known[&short], long);
        }
    }

    #[test]
    fn many_options_stand_under_headings() {
        for command in Cli::command().get_subcommands() {
            let own: Vec<_> = command.get_opts().filter(|arg| !arg.is_hide_set()).collect();
            let loose = own.iter().filter(|arg| arg.get_help_heading().is_none()).count();
            assert!(loose <= 10, "{}: {loose} of {}", command.get_name(), own.len());
        }
    }

    #[test]
    fn the_arguments_do_not_contradict_each_other() {
        Cli::command().debug_assert();
    }
}
