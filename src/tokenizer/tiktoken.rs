//! Vocabularies of tiktoken, as Kimi's models have them: `tiktoken.model` holds the bytes of each token
//! with its rank, and special tokens follow, named by tokenizer_config.json
//! (`DeepseekV2Model.set_vocab` in the reference converter's `deepseek.py`).
//!
//! There are no merges in the file. A token's last one is what merging its bytes leads to, with those of
//! lower ranks alone. How text is split says code that comes with the model, which is not run: it is taken
//! for Kimi's.

use super::added::Merged;
use super::error::TokenizerError;
use super::files::{Files, read_text};
use super::vocab::{TokenType, Vocab};
use super::{special, templates};
use base64::Engine;
use base64::prelude::BASE64_STANDARD;
use serde_json::Value;
use std::collections::HashMap;

/// Special tokens behind the others, named or not.
const SPECIAL: usize = 256;

/// The vocabulary of a checkpoint that has nothing else to read it from.
pub(super) fn vocab(
    files: &Files,
    config: &Value,
    pre: Option<&str>,
) -> Result<Vocab, TokenizerError> {
    let ranked = ranked(files)?;
    let ranks: HashMap<&[u8], u32> =
        ranked.iter().map(|(token, rank)| (token.as_slice(), *rank)).collect();
    let size = config["vocab_size"].as_u64().map_or(ranked.len() + SPECIAL, |n| n as usize);
    let mut tokens: Vec<Option<(String, TokenType)>> = vec![None; size];
    for (token, rank) in &ranked {
        let beyond = || {
            files.error(format!(
                "token {rank} is beyond the model's vocab_size of {size}; is this its tokenizer?"
            ))
        };
        let place = tokens.get_mut(*rank as usize).ok_or_else(beyond)?;
        if place.replace((text(token), TokenType::Normal)).is_some() {
            return Err(files.error(format!("two tokens have the rank {rank}")));
        }
    }
    let named = |id: usize| {
        let named = files.config.get("added_tokens_decoder")?.get(id.to_string())?;
        named["content"].as_str().map(str::to_owned)
    };
    for (id, place) in tokens.iter_mut().enumerate().skip(ranked.len()).take(SPECIAL) {
        let token = named(id).unwrap_or_else(|| format!("<|reserved_token_{id}|>"));
        *place = Some((token, TokenType::Control));
    }
    let padded = tokens
        .into_iter()
        .enumerate()
        .map(|(id, token)| token.unwrap_or_else(|| (format!("[PAD{id}]"), TokenType::Unused)));
    let (tokens, types) = padded.unzip();
    let mut warnings = Vec::new();
    // Texts of special tokens are looked up in no table: config.json has their ids.
    let special = special::read(files, &Merged::nothing(files), config, size, &mut warnings);
    let merges = ranked.iter().filter_map(|(token, rank)| {
        let [first, second] = halves(&ranks, token, *rank)?;
        Some(format!("{} {}", text(first), text(second)))
    });
    Ok(Vocab {
        pre: pre.unwrap_or("kimi-k2").to_owned(),
        tokens,
        types,
        merges: merges.collect(),
        special_ids: special.ids,
        further_ends: special.further_ends,
        add_special: special.add,
        space_prefix: None,
        chat_templates: templates::read(files, &mut warnings)?,
        normalizer: Vec::new(),
        warnings,
    })
}

/// Tokens and ranks, in the order of the file.
fn ranked(files: &Files) -> Result<Vec<(Vec<u8>, u32)>, TokenizerError> {
    let file = read_text(&files.path)?;
    let lines = file.lines().enumerate().filter(|(_, line)| !line.is_empty());
    let ranked = lines.map(|(number, line)| {
        let parts = line.split_once(' ').and_then(|(token, rank)| {
            Some((BASE64_STANDARD.decode(token).ok()?, rank.parse().ok()?))
        });
        parts.filter(|(token, _): &(Vec<u8>, u32)| !token.is_empty()).ok_or_else(|| {
            let number = number + 1;
            files.error(format!("line {number} is no token in base64 and its rank"))
        })
    });
    let ranked: Vec<_> = ranked.collect::<Result<_, _>>()?;
    match ranked.is_empty() {
        true => Err(files.error("the vocabulary is empty")),
        false => Ok(ranked),
    }
}

/// What merges of lower ranks make of a token, if that is two parts.
fn halves<'a>(ranks: &HashMap<&[u8], u32>, token: &'a [u8], rank: u32) -> Option<[&'a [u8]; 2]> {
    let mut bounds: Vec<usize> = (0..=token.len()).collect();
    loop {
        let pairs = bounds.windows(3).enumerate();
        let ranked = pairs.filter_map(|(i, at)| Some((*ranks.get(&token[at[0]..at[2]])?, i)));
        match ranked.min() {
            Some((found, i)) if found < rank => drop(bounds.remove(i + 1)),
            _ => break,
        }
    }
    match *bounds.as_slice() {
        [_, middle, _] => Some([&token[..middle], &token[middle..]]),
        _ => None,
    }
}

/// Bytes in GPT-2's alphabet.
fn text(bytes: &[u8]) -> String {
    bytes.iter().map(|&byte| super::checkpoint::char_of(byte)).collect()
}
