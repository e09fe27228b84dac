//! Work that ends at a time, with what it has by then.

use crate::monitor::Monitor;
use crate::warning::Warning;
use std::time::{Duration, Instant};

/// Chunks that are taken first, where a time decides how many are taken.
const FIRST: usize = 4;
/// Part of the time left that chunks may be expected to take.
const MARGIN: f64 = 0.8;

/// A monitor that has work end at a time.
pub(super) struct Deadline<'m> {
    monitor: &'m dyn Monitor,
    at: Option<Instant>,
}

impl<'m> Deadline<'m> {
    /// So long from now; never without a limit.
    pub fn new(monitor: &'m dyn Monitor, limit: Option<Duration>) -> Self {
        let at = limit.and_then(|limit| Instant::now().checked_add(limit));
        Self { monitor, at }
    }

    /// Whether it has come.
    pub fn is_over(&self) -> bool {
        self.at.is_some_and(|at| Instant::now() >= at)
    }

    /// Chunks that fit into the time that is left, if the last ones took so long; as many as one likes
    /// without a limit.
    pub fn fitting(&self, last: Option<(usize, Duration)>) -> usize {
        let Some(at) = self.at else { return usize::MAX };
        let Some((chunks, took)) = last else { return FIRST };
        let left = at.saturating_duration_since(Instant::now());
        let times = MARGIN * left.as_secs_f64() / took.as_secs_f64().max(1e-9);
        (chunks as f64 * times) as usize
    }
}

impl Monitor for Deadline<'_> {
    fn expect(&self, amount: u64) {
        self.monitor.expect(amount);
    }

    fn advance(&self, amount: u64) {
        self.monitor.advance(amount);
    }

    fn resume(&self, amount: u64) {
        self.monitor.resume(amount);
    }

    fn warn(&self, warning: Warning) -> bool {
        self.monitor.warn(warning)
    }

    fn cancelled(&self) -> bool {
        self.is_over() || self.monitor.cancelled()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn as_many_chunks_are_taken_as_there_is_time_for() {
        let endless = Deadline::new(&(), None);
        assert_eq!((endless.fitting(None), endless.cancelled()), (usize::MAX, false));
        let hour = Deadline::new(&(), Some(Duration::from_secs(3600)));
        assert_eq!(hour.fitting(None), FIRST);
        let after = |seconds| hour.fitting(Some((4, Duration::from_secs(seconds))));
        assert!((1100..=1152).contains(&after(10)), "{}", after(10));
        assert_eq!(after(20_000), 0);
        assert!(Deadline::new(&(), Some(Duration::ZERO)).cancelled());
    }
}
