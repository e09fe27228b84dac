//! Regular expressions: those that stand in the source, and those that users write, which may look
//! ahead and behind.

use fancy_regex::{Error, Regex};

/// A regular expression.
#[derive(Clone, Debug)]
pub(crate) struct Pattern(Regex);

impl Pattern {
    /// One that a user wrote.
    pub fn parse(text: &str) -> Result<Self, Error> {
        Regex::new(text).map(Self)
    }

    /// One that stands in the source.
    pub fn fixed(text: &str) -> Self {
        Self::parse(text).expect("the pattern is valid")
    }

    /// The expression.
    pub fn as_str(&self) -> &str {
        self.0.as_str()
    }

    /// Whether there is a match; one that takes too many steps to find is none.
    pub fn is_match(&self, text: &str) -> bool {
        self.0.is_match(text).unwrap_or(false)
    }
}
