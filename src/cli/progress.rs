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
use std::time::{Duration, Instant};

/// Seconds between lines where there is no terminal.
const LOG_INTERVAL: Duration = Duration::from_secs(15);

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
    /// Starts showing `total` units of work named `unit`. Where `bytes` is not 0, it is the amount
    /// that will have been written in the end.
    pub fn start(what: &'static str, total: u64, unit: &'static str, bytes: u64) -> Self {
        let quiet = !say::shows(say::Level::Info);
        let terminal = std::io::stderr().is_terminal();
        let target = match terminal && !quiet {
            true => ProgressDrawTarget::stderr(),
            false => ProgressDrawTarget::hidden(),
        };
        let bytes_per_unit = bytes as f64 / total.max(1) as f64;
        let style = ProgressStyle::with_template(
            "{prefix} {wide_bar} {percent:>3}% {size} {rate}, {eta} left",
        )
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
        let next_line = (!terminal && !quiet).then(|| Mutex::new(Instant::now() + LOG_INTERVAL));
        Self { bar, what, next_line, bytes_per_unit, unit, resumed: AtomicU64::new(0) }
    }

    /// Ends the display with a line that stays.
    pub fn finish(self) {
        self.bar.finish_and_clear();
        if !self.bar.is_hidden() || self.next_line.is_some() {
            say::to_stderr(format_args!("{}", self.line()));
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
        let own = done.saturating_sub(self.resumed.load(Ordering::Relaxed));
        let rate = units::count(own as f64 / seconds.max(1e-9));
        let size = match self.bytes_per_unit > 0.0 {
            true => format!(" {},", units::bytes((done as f64 * self.bytes_per_unit) as u64)),
            false => String::new(),
        };
        if done >= total {
            return format!("{}: done,{size} {seconds:.1} s, {rate} {}/s", self.what, self.unit);
        }
        let left = seconds / own.max(1) as f64 * (total - done) as f64;
        let percent = 100.0 * done as f64 / total as f64;
        format!("{}: {percent:.0}%,{size} {rate} {}/s, {left:.0} s left", self.what, self.unit)
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
            *next = Instant::now() + LOG_INTERVAL;
            say::to_stderr(format_args!("{}", self.line()));
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
