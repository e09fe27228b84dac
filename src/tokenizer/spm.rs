//! SentencePiece vocabularies of GGUF files: pieces with scores, of which the best are merged first
//! (`llm_tokenizer_spm` in `llama-vocab.cpp`).

use super::error::TokenizerError;
use super::vocab::{TOKENS, TYPES, TokenType};
use crate::gguf::Metadata;
use std::cmp::Ordering;
use std::collections::{BinaryHeap, HashMap};

const SCORES: &str = "tokenizer.ggml.scores";

/// What a space is in a piece.
const SPACE: &str = "\u{2581}";

/// A vocabulary of scored pieces.
pub(super) struct Spm {
    ids: HashMap<Vec<u8>, u32>,
    scores: Vec<f32>,
    /// Matched in the text before anything else, longest first.
    user_defined: Vec<(String, u32)>,
    /// The same with tokens that are only matched where they are asked for.
    special: Vec<(String, u32)>,
    space_prefix: bool,
}

/// Part of a text that is to become a token: at first a character, nothing once it was merged into
/// the one before.
#[derive(Clone, Copy)]
struct Symbol {
    start: usize,
    len: usize,
    before: Option<usize>,
    after: Option<usize>,
}

/// Two neighbours that make a piece together.
struct Pair {
    score: f32,
    left: usize,
    right: usize,
    /// Length of the piece; another one means that a side has grown since.
    len: usize,
}

impl Ord for Pair {
    /// The best score is the greatest, of equal ones the leftmost.
    fn cmp(&self, other: &Self) -> Ordering {
        self.score.total_cmp(&other.score).then(other.left.cmp(&self.left))
    }
}

impl PartialOrd for Pair {
    fn partial_cmp(&self, other: &Self) -> Option<Ordering> {
        Some(self.cmp(other))
    }
}

impl PartialEq for Pair {
    fn eq(&self, other: &Self) -> bool {
        self.cmp(other) == Ordering::Equal
    }
}

impl Eq for Pair {}

impl Spm {
    /// Reads the vocabulary of a file whose `tokenizer.ggml.model` is `llama`.
    pub fn read(metadata: &Metadata) -> Result<Self, TokenizerError> {
        let error = |key, what: &str| TokenizerError::Key { key, what: what.to_owned() };
        let tokens = metadata.strings(TOKENS)?.ok_or_else(|| error(TOKENS, "is missing"))?;
        let scores = match metadata.f32s(SCORES)? {
            Some(scores) => scores.to_vec(),
            None => vec![0.0; tokens.len()],
        };
        let types = metadata.i32s(TYPES)?.unwrap_or_default();
        if scores.len() < tokens.len() {
            return Err(error(SCORES, "is not as long as the list of tokens"));
        }
        let ids = (0..).zip(tokens).map(|(id, token)| (token.to_vec(), id)).collect();
        let of = |wanted: &[TokenType]| {
            let all = (0..).zip(tokens).zip(types);
            let is = |ty: i32| wanted.iter().any(|&wanted| wanted as i32 == ty);
            let mut found: Vec<(String, u32)> = all
                .filter(|((_, token), ty)| is(**ty) && !token.is_empty())
                .map(|((id, token), _)| (token.to_string(), id))
                .collect();
            found.sort_by_key(|(token, _)| std::cmp::Reverse(token.len()));
            found
        };
        let user_defined = of(&[TokenType::UserDefined]);
        let special = of(&[TokenType::UserDefined, TokenType::Control, TokenType::Unknown]);
        let space_prefix = metadata.bool("tokenizer.ggml.add_space_prefix")?.unwrap_or(true);
        Ok(Self { ids, scores, user_defined, special, space_prefix })
    }

    /// The tokens of a text, and the special ones whose names stand in it where that is asked for.
    pub fn encode(&self, text: &str, special: bool) -> Result<Vec<u32>, TokenizerError> {
        let matched = if special { &self.special } else { &self.user_defined };
        let mut tokens = Vec::new();
        let mut begins = true;
        for part in parts(text, matched) {
            match part {
                Ok(token) => tokens.push(token),
                Err(text) => {
                    let prefix = if self.space_prefix && begins { SPACE } else { "" };
                    self.merge(&[prefix, &text.replace(' ', SPACE)].concat(), &mut tokens)?;
                }
            }
            begins = part.is_ok();
        }
        Ok(tokens)
    }

    /// Merges neighbours as long as any two make a piece, and adds what is left to the tokens.
    fn merge(&self, text: &str, tokens: &mut Vec<u32>) -> Result<(), TokenizerError> {
        let n = text.chars().count();
        let mut symbols: Vec<Symbol> = text
            .char_indices()
            .enumerate()
            .map(|(i, (start, c))| Symbol {
                start,
                len: c.len_utf8(),
                before: i.checked_sub(1),
                after: Some(i + 1).filter(|&next| next < n),
            })
            .collect();
        let pair = |symbols: &[Symbol], left: Option<usize>, right: Option<usize>| {
            let (left, right) = (left?, right?);
            let len = symbols[left].len + symbols[right].len;
            let piece = &text.as_bytes()[symbols[left].start..][..len];
            let score = self.scores[*self.ids.get(piece)? as usize];
            Some(Pair { score, left, right, len })
        };
        let mut pairs: BinaryHeap<Pair> =
            (1..n).filter_map(|i| pair(&symbols, Some(i - 1), Some(i))).collect();
        while let Some(Pair { left, right, len, .. }) = pairs.pop() {
            let (l, r) = (symbols[left], symbols[right]);
            if l.len == 0 || r.len == 0 || l.len + r.len != len {
                continue;
            }
            symbols[left].len = len;
            symbols[left].after = r.after;
            symbols[right].len = 0;
            if let Some(after) = r.after {
                symbols[after].before = Some(left);
            }
            pairs.extend(pair(&symbols, l.before, Some(left)));
            pairs.extend(pair(&symbols, Some(left), r.after));
        }
        for symbol in symbols.iter().filter(|symbol| symbol.len > 0) {
            let piece = &text.as_bytes()[symbol.start..][..symbol.len];
            match self.ids.get(piece) {
                Some(&id) => tokens.push(id),
                None => {
                    for &byte in piece {
                        tokens.push(self.byte(byte)?);
                    }
                }
            }
        }
        Ok(())
    }

    /// The token of a byte that no piece holds.
    fn byte(&self, byte: u8) -> Result<u32, TokenizerError> {
        let found = self.ids.get(format!("<0x{byte:02X}>").as_bytes());
        found.or_else(|| self.ids.get(&[byte][..])).copied().ok_or_else(|| TokenizerError::Key {
            key: TOKENS,
            what: format!("has no token for the byte 0x{byte:02X} of the text"),
        })
    }
}
/// Tokens that are matched in a text, and the text between them.
fn parts<'a>(text: &'a str, matched: &[(String, u32)]) -> Vec<Result<u32, &'a str>> {
    let mut parts = vec![Err(text)];
    for (token, id) in matched {
        if !text.contains(token.as_str()) {
            continue;
        }
        let split = |part| match part {
            Err(text) => {
                let texts = str::split(text, token.as_str()).map(Err);
                // A token stands between two texts, not before the first.
                texts.flat_map(|text| [Ok(*id), text]).skip(1).collect()
            }
            token => vec![token],
        };
        parts = parts.into_iter().flat_map(split).collect();
    }
    parts.retain(|part| part.is_ok() || part.is_err_and(|text| !text.is_empty()));
    parts
}
