//! Where a text may be cut, so that its parts have the tokens that they have in the whole.
//!
//! It knows what all rules of [`super::pre`] have in common: between a letter of ASCII and a space that such a letter follows, a
//! piece ends and the next one begins, whatever stands before and after, and merges never leave a piece.

/// Bytes of a part, at least, but for the last.
pub(super) const PART: usize = 1 << 16;

/// Parts of at least `len` bytes, which together are the text.
pub(super) fn parts(text: &str, len: usize) -> impl Iterator<Item = &str> {
    let mut rest = Some(text);
    std::iter::from_fn(move || {
        let text = rest?;
        let (part, after) = match cut(text, len) {
            Some(at) => (&text[..at], Some(&text[at..])),
            None => (text, None),
        };
        rest = after;
        Some(part)
    })
}

/// The first cut from here on, in front of the space.
pub(super) fn cut(text: &str, from: usize) -> Option<usize> {
    let between = |three: &[u8]| {
        three[1] == b' ' && three[0].is_ascii_alphabetic() && three[2].is_ascii_alphabetic()
    };
    let at = text.as_bytes().get(from..)?.windows(3).position(between)?;
    Some(from + at + 1)
}
