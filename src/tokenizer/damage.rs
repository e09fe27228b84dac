//! What tokenizer.json asks for and a byte-level GGUF vocabulary cannot do: mostly the work of a tool
//! that saved the file.

use super::added::Merged;
use super::error::TokenizerError;
use super::files::Files;
use super::pre::{self, Pre};
use crate::warning::{Topic, Warning};
use serde_json::Value;

/// Refuses vocabularies of another kind.
pub(super) fn check_kind(files: &Files) -> Result<(), TokenizerError> {
    let model = &files.tokenizer["model"];
    let byte_level = model["vocab"].get("Ġ").is_some() || steps(files).contains(&"ByteLevel");
    let found = match model["type"].as_str() {
        Some("BPE") | None if byte_level || !model["vocab"].is_object() => return Ok(()),
        Some("BPE") | None if model["byte_fallback"] == true => "BPE of SentencePiece pieces",
        Some("BPE") | None => "BPE of characters",
        Some(other) => other,
    };
    Err(TokenizerError::Kind { path: files.path.clone(), found: found.to_owned() })
}

/// Types of the pre-tokenizer's steps.
fn steps(files: &Files) -> Vec<&str> {
    let steps = pre::steps(&files.tokenizer["pre_tokenizer"]);
    steps.iter().filter_map(|step| step["type"].as_str()).collect()
}

/// The first thing that would give other tokens than any of GGUF's rules.
pub(super) fn found(files: &Files) -> Option<String> {
    let steps = steps(files);
    if !steps.contains(&"ByteLevel") || steps.contains(&"Metaspace") {
        let steps = if steps.is_empty() { "none".to_owned() } else { steps.join(", ") };
        return Some(format!("its vocabulary is byte-level, its pre-tokenizer ({steps}) is not"));
    }
    let section = files.pre_tokenizer();
    let prefixes = |step: &Value| step["type"] == "ByteLevel" && step["add_prefix_space"] == true;
    if pre::steps(&section).iter().any(prefixes) {
        return Some("its pre-tokenizer puts a space before the text".to_owned());
    }
    if let Some(name) = foreign_normalizer(&files.tokenizer["normalizer"]) {
        return Some(format!(
            "its normalizer `{name}` changes the text, and that of no known model does"
        ));
    }
    let model = &files.tokenizer["model"];
    ["continuing_subword_prefix", "end_of_word_suffix"].into_iter().find_map(|key| {
        let text = model[key].as_str().filter(|text| !text.is_empty())?;
        Some(format!("its `{key}` is `{text}`"))
    })
}

/// A normalizer beside Unicode's composition, which llama.cpp does without.
fn foreign_normalizer(section: &Value) -> Option<&str> {
    match section["type"].as_str()? {
        "NFC" => None,
        "Sequence" => section["normalizers"].as_array()?.iter().find_map(foreign_normalizer),
        other => Some(other),
    }
}

/// Warns of what is not as these rules have it, and changes little.
pub(super) fn oddities(files: &Files, merged: &Merged, pre: &str, warnings: &mut Vec<Warning>) {
    let mut warn = |what: String| {
        let text = format!("{}: {what}", files.path.display());
        warnings.push(Warning::new(Topic::Tokenizer, text));
    };
    let model = &files.tokenizer["model"];
    if let Some(rules) = Pre::named(pre) {
        let ignored = model["ignore_merges"] == true;
        if ignored != rules.ignore_merges {
            warn(format!(
                "`ignore_merges` is {ignored}, but `{pre}`, as GGUF names these rules, has {}",
                rules.ignore_merges
            ));
        }
    }
    if model["dropout"].as_f64().is_some_and(|p| p > 0.0) {
        warn(format!("`dropout` of {} is for training, and left out", model["dropout"]));
    }
    let mut stripping =
        merged.table.added().values().filter(|t| t.lstrip || t.rstrip || t.single_word);
    if let Some(token) = stripping.next() {
        warn(format!(
            "`{}` takes spaces beside it along, or no part of a word, which GGUF cannot say ({} \
             tokens)",
            token.content,
            1 + stripping.count()
        ));
    }
}
