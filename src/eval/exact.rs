//! Sums that do not depend on the order of their terms, so that what several machines have summed can be
//! joined to what one of them would have.

use std::ops::AddAssign;

/// One, in the unit of the sums: terms are cut to multiples of 2⁻⁶⁰.
const ONE: f64 = (1u64 << 60) as f64;

/// A sum of numbers that are not negative, up to 2⁶⁸, beyond which it stays there.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Exact(u128);

impl Exact {
    /// The sum as two words, the lower first.
    pub fn words(self) -> [u64; 2] {
        [self.0 as u64, (self.0 >> 64) as u64]
    }

    /// The sum that these words are.
    pub fn from_words([lower, upper]: [u64; 2]) -> Self {
        Self((u128::from(upper) << 64) | u128::from(lower))
    }

    /// Its value.
    pub fn value(self) -> f64 {
        self.0 as f64 / ONE
    }
}

/// A term in the unit of the sums. Most are small, and 64 bits are cut in less time.
#[inline]
fn steps(term: f64) -> u128 {
    match term < 8.0 {
        true => u128::from((term * ONE) as i64 as u64),
        false => (term * ONE) as u128,
    }
}

impl AddAssign<f64> for Exact {
    #[inline]
    fn add_assign(&mut self, term: f64) {
        self.0 = self.0.saturating_add(steps(term));
    }
}

impl AddAssign for Exact {
    fn add_assign(&mut self, other: Self) {
        self.0 = self.0.saturating_add(other.0);
    }
}

/// How far values are from a reference's: sums of squares.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Apart {
    /// Of the differences.
    pub apart: Exact,
    /// Of the reference's values.
    pub norm: Exact,
}

impl Apart {
    /// Adds values, in a row of their own: each row is summed by itself.
    pub fn add<'v>(
        &mut self,
        reference: impl IntoIterator<Item = &'v f32>,
        values: impl IntoIterator<Item = &'v f32>,
    ) {
        let (mut apart, mut norm) = (0.0, 0.0);
        for (&a, &b) in reference.into_iter().zip(values) {
            apart += f64::from(a - b).powi(2);
            norm += f64::from(a).powi(2);
        }
        self.apart += apart;
        self.norm += norm;
    }

    /// Norm of the differences, relative to that of the reference's values.
    pub fn relative(self) -> f64 {
        (self.apart.value() / self.norm.value()).sqrt()
    }

    /// The sums as words.
    pub fn words(self) -> [u64; 4] {
        let ([a, b], [c, d]) = (self.apart.words(), self.norm.words());
        [a, b, c, d]
    }

    /// The sums that these words are.
    pub fn from_words([a, b, c, d]: [u64; 4]) -> Self {
        Self { apart: Exact::from_words([a, b]), norm: Exact::from_words([c, d]) }
    }
}

impl AddAssign for Apart {
    fn add_assign(&mut self, other: Self) {
        self.apart += other.apart;
        self.norm += other.norm;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sum(terms: impl Iterator<Item = f64>) -> Exact {
        let mut sum = Exact::default();
        terms.for_each(|term| sum += term);
        sum
    }

    #[test]
    fn the_order_of_terms_and_where_they_are_parted_do_not_matter() {
        let terms: Vec<f64> = (0..999).map(|i| f64::from(i * 7919 % 1009).exp2() % 1e9).collect();
        let whole = sum(terms.iter().copied());
        assert_eq!(sum(terms.iter().rev().copied()), whole);
        for at in [0, 1, 500, 999] {
            let mut joined = sum(terms[..at].iter().copied());
            joined += sum(terms[at..].iter().copied());
            assert_eq!(joined, whole);
            assert_eq!(Exact::from_words(joined.words()), whole);
        }
        let plain: f64 = terms.iter().sum();
        assert!((whole.value() / plain - 1.0).abs() < 1e-14);
    }

    #[test]
    fn small_terms_count_and_large_ones_do_not_wrap() {
        let step = 2f64.powi(-60);
        assert_eq!(sum([1e6, step].into_iter()).words()[0], (1_000_000u128 << 60) as u64 + 1);
        let most = sum([f64::MAX, 1.0, f64::MAX].into_iter());
        assert_eq!(most.words(), [u64::MAX; 2]);
    }
}
