//! Messages on standard error, as many as `--log-level` asks for.

use anstyle::{AnsiColor, Style};
use std::fmt::{Arguments, Display};
use std::io::Write;
use std::sync::OnceLock;

/// How much is said.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, clap::ValueEnum)]
pub enum Level {
    /// Why the program failed
    Error,
    /// And what is not as one would expect
    Warn,
    /// And plans, progress and what was done
    Info,
    /// And what was chosen where nothing was asked for
    Debug,
}

static LEVEL: OnceLock<Level> = OnceLock::new();

/// Sets the level, once.
pub fn set_level(level: Level) {
    let _ = LEVEL.set(level);
}

/// Whether messages of this level are shown.
pub fn shows(level: Level) -> bool {
    level <= *LEVEL.get().unwrap_or(&Level::Info)
}

/// Lines that tell what happens; nothing where there are none.
pub fn info(text: impl Display) {
    lines(Level::Info, text);
}

/// Lines about what is not as one would expect.
pub fn warn(text: impl Display) {
    lines(Level::Warn, text);
}

/// A line about what was chosen.
pub fn debug(text: impl Display) {
    lines(Level::Debug, text);
}

fn lines(level: Level, text: impl Display) {
    if !shows(level) {
        return;
    }
    let style = match level {
        Level::Warn => AnsiColor::Yellow.on_default(),
        Level::Debug => Style::new().dimmed(),
        Level::Info | Level::Error => Style::new(),
    };
    for line in text.to_string().lines() {
        to_stderr(format_args!("{style}{line}{style:#}"));
    }
}

/// Why the program failed. Always shown.
pub fn error(text: impl Display) {
    let style = AnsiColor::Red.on_default().bold();
    to_stderr(format_args!("{style}requant:{style:#} {text}"));
}

/// Where standard error takes nothing, there is nobody left to tell.
pub fn to_stderr(line: Arguments) {
    let _ = writeln!(anstream::stderr(), "{line}");
}

/// A result, on standard output. Where that takes nothing, as on a full disk, the program ends.
pub fn result(text: Arguments) {
    if let Err(cause) = std::io::stdout().write_fmt(text) {
        error(format_args!("standard output: {cause}"));
        std::process::exit(1);
    }
}
