//! Tokens to text.

use super::checkpoint::byte_of;
use super::error::TokenizerError;
use super::vocab::{MODEL, TOKENS, TYPES, TokenType, Vocab};
use crate::gguf::Metadata;

/// What a space is in a piece of SentencePiece.
const SPACE: char = '\u{2581}';

/// Makes text of tokens, whichever engine made them.
pub struct Pieces {
    /// The bytes of each token, and whether it steers the model instead of being text.
    pieces: Vec<(Vec<u8>, bool)>,
    /// Whether the first space is one that tokens have and the text had not.
    drops_space: bool,
}

impl Pieces {
    /// Those of a byte-level BPE vocabulary.
    pub fn of(vocab: &Vocab) -> Self {
        let piece = |(token, ty): (&String, &TokenType)| match ty {
            TokenType::Control => (token.clone().into_bytes(), true),
            TokenType::UserDefined => (token.clone().into_bytes(), false),
            _ => (bytes(token), false),
        };
        let pieces = vocab.tokens.iter().zip(&vocab.types).map(piece).collect();
        Self { pieces, drops_space: false }
    }

    /// Those that a GGUF file holds.
    ///
    /// # Errors
    /// Missing keys, or keys of other types than they should have.
    pub fn from_metadata(metadata: &Metadata) -> Result<Self, TokenizerError> {
        if metadata.str(MODEL)? != Some("llama") {
            return Ok(Self::of(&Vocab::read(metadata)?));
        }
        let missing = || TokenizerError::Key { key: TOKENS, what: "is missing".to_owned() };
        let tokens = metadata.strings(TOKENS)?.ok_or_else(missing)?;
        let types = metadata.i32s(TYPES)?.unwrap_or_default();
        let piece = |(id, token): (usize, &bstr::BString)| {
            let is = |ty: TokenType| types.get(id) == Some(&(ty as i32));
            let text = token.to_string();
            match text
                .strip_prefix("<0x")
                .and_then(|hex| u8::from_str_radix(hex.strip_suffix('>')?, 16).ok())
            {
                Some(byte) if is(TokenType::Byte) => (vec![byte], false),
                _ if is(TokenType::Control) => (text.into_bytes(), true),
                _ if is(TokenType::UserDefined) => (text.into_bytes(), false),
                _ => (text.replace(SPACE, " ").into_bytes(), false),
            }
        };
        let pieces = tokens.iter().enumerate().map(piece).collect();
        let drops_space = metadata.bool("tokenizer.ggml.add_space_prefix")?.unwrap_or(true);
        Ok(Self { pieces, drops_space })
    }

    /// The bytes of a text, with the names of tokens that steer the model where `special` asks for them. Tokens
    /// may end within a character.
    ///
    /// # Errors
    /// A token that the vocabulary does not have.
    pub fn decode(&self, tokens: &[u32], special: bool) -> Result<Vec<u8>, TokenizerError> {
        let mut text = Vec::new();
        for &token in tokens {
            let n = self.pieces.len();
            let piece = self.pieces.get(token as usize);
            let (piece, steers) = piece.ok_or(TokenizerError::NoToken { token, n })?;
            if special || !steers {
                let skip =
                    usize::from(self.drops_space && text.is_empty() && piece.starts_with(b" "));
                text.extend(&piece[skip..]);
            }
        }
        Ok(text)
    }
}

/// The bytes that characters of GPT-2's alphabet stand for; others stand for themselves.
fn bytes(token: &str) -> Vec<u8> {
    let mut utf8 = [0; 4];
    let of = |c: char| match byte_of(c) {
        Some(byte) => vec![byte],
        None => c.encode_utf8(&mut utf8).as_bytes().to_vec(),
    };
    token.chars().flat_map(of).collect()
}
