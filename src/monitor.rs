//! How work tells its caller how far it is and what it met, and learns that it should stop.
//!
//! The library neither prints nor catches signals; whoever calls it passes a [`Monitor`].

use crate::warning::Warning;

/// Watches a piece of work from outside, from many threads at once.
pub trait Monitor: Sync {
    /// The work will be so much in all, where that is known before it begins.
    fn expect(&self, _amount: u64) {}

    /// `amount` more of the work is done, in the unit that the work's documentation names.
    fn advance(&self, amount: u64);

    /// `amount` of the work was done before, by a process that was stopped.
    fn resume(&self, amount: u64) {
        self.advance(amount);
    }

    /// The work met something that is not as one would expect. `false` where that is reason enough to
    /// end it, with nothing left behind.
    fn warn(&self, _warning: Warning) -> bool {
        true
    }

    /// Whether the work should end at the next opportunity, with an error and nothing left behind.
    fn cancelled(&self) -> bool {
        false
    }
}

/// Watches nothing and never cancels.
impl Monitor for () {
    fn advance(&self, _amount: u64) {}
}
