//! Messages on standard error, as many as `--log-level` asks for.

use crate::source::without_secrets;
use crate::warning::Warning;
use anstyle::{AnsiColor, Style};
use anyhow::bail;
use std::ffi::OsString;
use std::fmt::{Arguments, Display};
use std::io::{ErrorKind, Write};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Mutex, OnceLock};
use std::time::{Instant, SystemTime};

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

/// What was warned of, in order.
static WARNINGS: Mutex<Vec<Warning>> = Mutex::new(Vec::new());

static STRICT: AtomicBool = AtomicBool::new(false);

/// From now on, [`heed`] takes warnings for errors.
pub fn set_strict() {
    STRICT.store(true, Ordering::Relaxed);
}

/// Whether warnings are errors.
pub fn is_strict() -> bool {
    STRICT.load(Ordering::Relaxed)
}

/// Warns once, on one line, and remembers it for [`json`] and [`heed`].
pub fn warning(warning: &Warning) {
    let mut said = WARNINGS.lock().unwrap_or_else(|poisoned| poisoned.into_inner());
    if said.contains(warning) {
        return;
    }
    said.push(warning.clone());
    if shows(Level::Warn) {
        let style = AnsiColor::Yellow.on_default().bold();
        to_stderr(format_args!("{style}warning:{style:#} {warning}"));
    }
}

/// Warns of each.
pub fn warnings<'a>(warnings: impl IntoIterator<Item = &'a Warning>) {
    warnings.into_iter().for_each(warning);
}

/// What was warned of so far.
pub fn said() -> Vec<Warning> {
    WARNINGS.lock().map_or_else(|_| Vec::new(), |said| said.clone())
}

/// With `--strict`, an error where anything was warned of: before work begins, and at the end.
pub fn heed() -> anyhow::Result<()> {
    let n = WARNINGS.lock().map_or(0, |said| said.len());
    match is_strict() && n > 0 {
        false => Ok(()),
        true if n == 1 => bail!("there was a warning, which is an error with --strict"),
        true => bail!("there were {n} warnings, which are errors with --strict"),
    }
}

/// When the program began, and with which arguments.
static RUN: OnceLock<(SystemTime, Instant, Vec<String>)> = OnceLock::new();

/// Remembers that the program begins with these arguments. What in their URLs grants access is left out.
pub fn begin(arguments: &[OsString]) {
    let _ = RUN.set((SystemTime::now(), Instant::now(), shown(arguments)));
}

/// Arguments behind the program's name, as results show them.
fn shown(arguments: &[OsString]) -> Vec<String> {
    let arguments = arguments.iter().skip(1);
    arguments.map(|argument| without_secrets(&argument.to_string_lossy())).collect()
}

/// What made a result. See docs/schema/run.json.
fn run() -> serde_json::Value {
    let program = concat!("requant ", env!("CARGO_PKG_VERSION"));
    let Some((began, instant, arguments)) = RUN.get() else {
        return serde_json::json!({ "program": program });
    };
    serde_json::json!({
        "program": program,
        "arguments": arguments,
        "began": humantime::format_rfc3339_seconds(*began).to_string(),
        "seconds": instant.elapsed().as_secs_f64(),
    })
}

/// A result as JSON on standard output, with what made it and the list of what was warned of.
pub fn json(mut value: serde_json::Value) {
    if let (Some(object), Ok(said)) = (value.as_object_mut(), WARNINGS.lock()) {
        object.insert("run".to_owned(), run());
        object.insert("warnings".to_owned(), serde_json::json!(*said));
    }
    result(format_args!("{value:#}\n"));
}

static JSON: AtomicBool = AtomicBool::new(false);

/// Whether results are JSON, so that an error is one as well.
pub fn set_json(json: bool) {
    JSON.store(json, Ordering::Relaxed);
}

/// Why the program failed, on standard output for programs that read results there. See
/// docs/schema/error.json.
pub fn json_error(text: &str) {
    if JSON.load(Ordering::Relaxed) {
        json(serde_json::json!({ "version": 1, "error": text }));
    }
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
        Level::Debug => Style::new().dimmed(),
        Level::Info | Level::Warn | Level::Error => Style::new(),
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

static LOST: AtomicBool = AtomicBool::new(false);

/// A result, on standard output. Where that takes nothing, as on a full disk, that is said once, and what else
/// was to be written still is. A reader that has seen enough, such as head, is no reason to complain.
pub fn result(text: Arguments) {
    let mut out = std::io::stdout().lock();
    match out.write_fmt(text).and_then(|()| out.flush()) {
        Err(cause) if cause.kind() == ErrorKind::BrokenPipe => {}
        Err(cause) if !LOST.swap(true, Ordering::Relaxed) => {
            error(format_args!("standard output: {cause}"));
        }
        _ => {}
    }
}

/// Whether standard output has not taken all results.
pub fn is_lost() -> bool {
    LOST.load(Ordering::Relaxed)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_grants_access_is_not_among_the_arguments() {
        let of =
            |arguments: &[&str]| shown(&arguments.iter().map(OsString::from).collect::<Vec<_>>());
        let urls =
            ["requant", "https://user:token@host/a?sig=xyz", "--base=s3://k:s@bucket/b", "a?b=1"];
        assert_eq!(of(&urls), ["https://host/a", "--base=s3://bucket/b", "a?b=1"]);
    }
}
