//! Progress on standard error: a bar on a terminal, a plain line now and then in a log.

use super::views::units;
use super::{INTERRUPTED, say};
use crate::monitor::Monitor;
use crate::warning::Warning;
use anyhow::bail;
use indicatif::{ProgressBar, ProgressDrawTarget, ProgressState, ProgressStyle};
use std::fmt::Write;
use std::io::IsTerminal;
use std::sync::Mutex;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant, SystemTime};

/// Time to the first line where there is no terminal.
const FIRST_LINE: Duration = Duration::from_secs(15);
/// Time between lines later, as a part of the time passed: some forty lines in the first hour, ten in each that
/// is twice as late.
const LINES: u32 = 8;

/// Shows work whose amount is known beforehand.
pub struct Progress {
    bar: ProgressBar,
    what: &'static str,
    /// When the next plain line is due; `None` on a terminal and when quiet.
    next_line: Option<Mutex<Instant>>,
    /// What one unit of work is in bytes, where bytes are of interest.
    bytes_per_unit: f64,
    unit: &'static str,
    /// Work that an earlier process did.
    resumed: AtomicU64,
}

impl Progress {
    /// Starts showing `total` units of work named `unit`, or of nothing that anybody counts. Where `bytes` is not 0, it is the amount
    /// that will have been written in the end.
    pub fn start(what: &'static str, total: u64, unit: &'static str, bytes: u64) -> Self {
        let quiet = !say::shows(say::Level::Info);
        let terminal = std::io::stderr().is_terminal();
        let target = match terminal && !quiet {
            true => ProgressDrawTarget::stderr(),
            false => ProgressDrawTarget::hidden(),
        };
        let bytes_per_unit = bytes as f64 / total.max(1) as f64;
        let template = match unit {
            "" => "{prefix} {wide_bar} {percent:>3}%, {eta} left",
            _ => "{prefix} {wide_bar} {percent:>3}% {size} {rate}, {eta} left",
        };
        let style = ProgressStyle::with_template(template)
            .expect("the template is valid")
            .with_key("size", move |state: &ProgressState, w: &mut dyn Write| {
                if bytes_per_unit > 0.0 {
                    let done = (state.pos() as f64 * bytes_per_unit) as u64;
                    let _ = write!(w, "{}/{}", units::bytes(done), units::bytes(bytes));
                }
            })
            .with_key("rate", move |state: &ProgressState, w: &mut dyn Write| {
                let _ = write!(w, "{} {unit}/s", units::count(state.per_sec()));
            });
        let bar = ProgressBar::with_draw_target(Some(total), target).with_style(style);
        bar.set_prefix(what);
        let next_line = (!terminal && !quiet).then(|| Mutex::new(Instant::now() + FIRST_LINE));
        Self { bar, what, next_line, bytes_per_unit, unit, resumed: AtomicU64::new(0) }
    }

    /// Ends the display with a line that stays.
    pub fn finish(self) {
        // Afterwards, the bar says that all was done, which is not so where less was enough.
        let line = self.last_line();
        self.bar.finish_and_clear();
        if !self.bar.is_hidden() || self.next_line.is_some() {
            say::to_stderr(format_args!("{line}"));
        }
    }

    /// An error where the program was asked to stop.
    pub fn stop_if_asked(&self) -> anyhow::Result<()> {
        match self.cancelled() {
            true => bail!("interrupted"),
            false => Ok(()),
        }
    }

    fn line(&self) -> String {
        let (done, total) = (self.bar.position(), self.bar.length().unwrap_or(0));
        let seconds = self.bar.elapsed().as_secs_f64();
        let left = seconds / self.own().max(1) as f64 * total.saturating_sub(done) as f64;
        let percent = 100.0 * done as f64 / total.max(1) as f64;
        let left = units::duration(left);
        format!("{}: {percent:.0} %{}, {left} left", self.what, self.amounts())
    }

    fn last_line(&self) -> String {
        let seconds = self.bar.elapsed().as_secs_f64();
        let time =
            if seconds < 60.0 { format!("{seconds:.1} s") } else { units::duration(seconds) };
        let rate = if self.unit.is_empty() { String::new() } else { format!(", {}", self.rate()) };
        format!("{}: done,{} {time}{rate}", self.what, self.size())
    }

    /// Bytes and rate, behind a share.
    fn amounts(&self) -> String {
        if self.unit.is_empty() {
            String::new()
        } else {
            format!(",{} {}", self.size(), self.rate())
        }
    }

    /// Work of this process.
    fn own(&self) -> u64 {
        self.bar.position().saturating_sub(self.resumed.load(Ordering::Relaxed))
    }

    fn rate(&self) -> String {
        let rate = self.own() as f64 / self.bar.elapsed().as_secs_f64().max(1e-9);
        format!("{} {}/s", units::count(rate), self.unit)
    }

    fn size(&self) -> String {
        match self.bytes_per_unit > 0.0 {
            true => {
                let bytes = self.bar.position() as f64 * self.bytes_per_unit;
                format!(" {},", units::bytes(bytes as u64))
            }
            false => String::new(),
        }
    }
}

/// Work of a kind of its own, that is worth so much of what is shown for each unit.
pub struct Share<'p> {
    of: &'p Progress,
    worth: f64,
    /// What is not yet a whole unit of what is shown.
    rest: Mutex<f64>,
}

impl Progress {
    /// A part of the work whose unit is worth so many of its own.
    pub fn share(&self, worth: f64) -> Share<'_> {
        Share { of: self, worth, rest: Mutex::new(0.0) }
    }
}

impl Monitor for Share<'_> {
    fn advance(&self, amount: u64) {
        let mut rest = self.rest.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
        *rest += amount as f64 * self.worth;
        let whole = rest.floor();
        *rest -= whole;
        drop(rest);
        self.of.advance(whole as u64);
    }

    fn warn(&self, warning: Warning) -> bool {
        self.of.warn(warning)
    }

    fn cancelled(&self) -> bool {
        self.of.cancelled()
    }
}

impl Monitor for Progress {
    fn expect(&self, amount: u64) {
        self.bar.set_length(amount);
    }

    fn advance(&self, amount: u64) {
        self.bar.inc(amount);
        if let Some(mut next) = self.next_line.as_ref().and_then(|n| n.try_lock().ok())
            && Instant::now() >= *next
        {
            *next = Instant::now() + FIRST_LINE.max(self.bar.elapsed() / LINES);
            let now = humantime::format_rfc3339_seconds(SystemTime::now());
            say::to_stderr(format_args!("{now} {}", self.line()));
        }
    }

    fn resume(&self, amount: u64) {
        if amount == 0 {
            return;
        }
        self.resumed.fetch_add(amount, Ordering::Relaxed);
        self.bar.inc(amount);
        self.bar.reset_eta();
        let share = 100.0 * amount as f64 / self.bar.length().unwrap_or(amount).max(1) as f64;
        let line =
            format!("{}: goes on where it was interrupted, {share:.0} % were done", self.what);
        self.bar.suspend(|| say::info(line));
    }

    fn warn(&self, warning: Warning) -> bool {
        self.bar.suspend(|| say::warning(&warning));
        !say::is_strict()
    }

    fn cancelled(&self) -> bool {
        INTERRUPTED.load(Ordering::Relaxed)
    }
}
