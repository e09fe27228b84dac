//! A vocabulary back to the files that transformers reads, as far as GGUF knows it.

use super::encode::json_of;
use super::error::TokenizerError;
use super::pre::Pre;
use super::vocab::{MERGES, MODEL, TokenType, Vocab};
use crate::gguf::Metadata;
use crate::warning::{Topic, Warning};
use serde_json::{Map, Value, json};

/// Special tokens by their name in tokenizer_config.json, with the name that GGUF has for them.
const NAMED: [(&str, &str); 6] = [
    ("bos", "bos"),
    ("eos", "eos"),
    ("unk", "unknown"),
    ("sep", "seperator"),
    ("pad", "padding"),
    ("mask", "mask"),
];

/// Special ids as config.json has them: where a text begins and ends, and those that
/// tokenizer_config.json cannot name.
pub fn config_ids(vocab: &Vocab) -> Map<String, Value> {
    ids(vocab, |name, id| matches!(name, "bos" | "eos") || !is_named(vocab, name, id))
}

/// Special ids as generation_config.json has them.
pub fn generation_ids(vocab: &Vocab) -> Map<String, Value> {
    let eos = vocab.special("eos");
    // Padding is with the end of texts where nothing else is said.
    let mut ids = ids(vocab, |name, id| match name {
        "bos" | "eos" => true,
        "pad" => eos != Some(id),
        _ => false,
    });
    let mut ends: Vec<u32> = Vec::new();
    for id in ["eos", "eot", "eom"].iter().filter_map(|name| vocab.special(name)) {
        if !ends.contains(&id) {
            ends.push(id);
        }
    }
    if ends.len() > 1 {
        ids.insert("eos_token_id".to_owned(), ends.into());
    }
    ids
}

fn ids(vocab: &Vocab, wanted: impl Fn(&str, u32) -> bool) -> Map<String, Value> {
    let all = NAMED.iter().filter_map(|(name, key)| Some((*name, vocab.special(key)?)));
    let ids = all.filter(|(name, id)| wanted(name, *id));
    ids.map(|(name, id)| (format!("{name}_token_id"), id.into())).collect()
}

/// Whether tokenizer_config.json names a special token. An ordinary one would be cut out of text if
/// it did, and Qwen2's tokenizers have no beginning, though their models do.
fn is_named(vocab: &Vocab, name: &str, id: u32) -> bool {
    let ordinary = matches!(
        vocab.types.get(id as usize),
        Some(TokenType::Normal | TokenType::Unknown | TokenType::Byte) | None
    );
    let beginning_of_qwen2 = name == "bos" && vocab.pre == "qwen2" && !vocab.add_bos();
    !(ordinary || beginning_of_qwen2)
}

/// The vocabulary of a GGUF file with the files that transformers reads; none, and a warning, where it
/// holds too little for them.
///
/// # Errors
/// Another kind of tokenizer.
pub fn exported(metadata: &Metadata) -> Result<(Vocab, Vec<(String, Value)>), TokenizerError> {
    let known = matches!(metadata.str(MODEL)?, None | Some("gpt2" | "llama"));
    let (mut vocab, files) = match Vocab::read(metadata) {
        Ok(vocab) => {
            let files = tokenizer_files(&vocab);
            (vocab, files)
        }
        Err(error) if known => (Vocab::of_ids(metadata), Err(error)),
        Err(error) => return Err(error),
    };
    let files = files.unwrap_or_else(|error| {
        let text = format!("{error}; no tokenizer is written, take the original model's");
        vocab.warnings.push(Warning::new(Topic::Tokenizer, text));
        Vec::new()
    });
    Ok((vocab, files))
}

/// tokenizer.json and tokenizer_config.json of a vocabulary.
///
/// # Errors
/// A pre-tokenizer whose rules are not known, no merges.
fn tokenizer_files(vocab: &Vocab) -> Result<Vec<(String, Value)>, TokenizerError> {
    let pre = Pre::named(&vocab.pre).ok_or_else(|| TokenizerError::NoRules(vocab.pre.clone()))?;
    if vocab.merges.is_empty() {
        return Err(TokenizerError::Key { key: MERGES, what: "is missing".to_owned() });
    }
    let mut vocab = vocab.clone();
    for (_, id) in &vocab.special_ids {
        // Padding with a role is no padding.
        if let Some(ty @ TokenType::Unused) = vocab.types.get_mut(*id as usize) {
            *ty = TokenType::Control;
        }
    }
    let mut tokenizer = json_of(&vocab, pre.section(), pre.ignore_merges);
    if matches!(vocab.pre.as_str(), "qwen2" | "deepseek-r1-qwen") {
        // As every tokenizer of this name has it. llama.cpp does without.
        tokenizer["normalizer"] = json!({ "type": "NFC" });
    }
    tokenizer["decoder"] = json!({
        "type": "ByteLevel", "add_prefix_space": true, "trim_offsets": true, "use_regex": true,
    });
    tokenizer["post_processor"] = post_processor(&vocab);
    let named = [("tokenizer.json", tokenizer), ("tokenizer_config.json", config(&vocab))];
    Ok(named.map(|(name, json)| (name.to_owned(), json)).into())
}

/// Whether the files are best written as DeepSeek publishes them: transformers 4 puts tokens around a
/// text as tokenizer_config.json says, transformers 5 as the post-processor does, which adds none.
fn is_deepseek(vocab: &Vocab) -> bool {
    let deepseek = vocab.pre.starts_with("deepseek") || vocab.pre == "joyai-llm";
    // A template of tokens says whether it has a separator.
    deepseek
        && vocab.space_prefix.is_none()
        && !vocab.add_special.iter().any(|(name, _)| name == "sep")
}

/// Puts the tokens around a text that the vocabulary says belong there.
fn post_processor(vocab: &Vocab) -> Value {
    if is_deepseek(vocab) {
        return json!({
            "type": "ByteLevel", "add_prefix_space": true, "trim_offsets": false, "use_regex": true,
        });
    }
    let adds = |name: &str| match vocab.add_special.iter().find(|(known, _)| known == name) {
        Some((_, add)) => *add,
        None => name == "bos" && vocab.add_bos(),
    };
    let text = |name: &str| {
        let id = vocab.special(name).filter(|_| adds(name))?;
        Some((vocab.tokens.get(id as usize)?.as_str(), id))
    };
    let (bos, eos) = (text("bos"), text("eos"));
    if bos.is_none() && eos.is_none() {
        return Value::Null;
    }
    let token = |(text, _): (&str, u32), sequence: u8| json!({ "SpecialToken": { "id": text, "type_id": sequence } });
    let sequence = |id: &str, n: u8| json!({ "Sequence": { "id": id, "type_id": n } });
    let around = |id: &str, n: u8, bos: Option<(&str, u32)>| -> Vec<Value> {
        let eos = eos.map(|eos| token(eos, n));
        bos.map(|bos| token(bos, n)).into_iter().chain([sequence(id, n)]).chain(eos).collect()
    };
    // A second beginning counts as a separator, which some vocabularies say that they have none of.
    let separates = vocab.add_special.iter().any(|(name, _)| name == "sep");
    let second = around("B", 1, bos.filter(|_| separates));
    let pair = [around("A", 0, bos), second].concat();
    let special: Map<String, Value> = [bos, eos]
        .into_iter()
        .flatten()
        .map(|(text, id)| (text.to_owned(), json!({ "id": text, "ids": [id], "tokens": [text] })))
        .collect();
    json!({
        "type": "TemplateProcessing", "single": around("A", 0, bos),
        "pair": pair, "special_tokens": special,
    })
}

fn config(vocab: &Vocab) -> Value {
    let mut config = json!({ "clean_up_tokenization_spaces": false });
    if is_deepseek(vocab) {
        // The class has defaults of its own.
        for name in ["bos", "eos", "unk"] {
            config[format!("{name}_token")] = Value::Null;
        }
        config["tokenizer_class"] = "LlamaTokenizerFast".into();
    } else {
        config["tokenizer_class"] = "PreTrainedTokenizerFast".into();
    }
    for (name, key) in NAMED {
        let id = vocab.special(key).filter(|&id| is_named(vocab, name, id));
        if let Some(token) = id.and_then(|id| vocab.tokens.get(id as usize)) {
            config[format!("{name}_token")] = token.as_str().into();
        }
    }
    for (name, add) in &vocab.add_special {
        config[format!("add_{name}_token")] = (*add).into();
    }
    if config["bos_token"].is_null() || !vocab.add_bos() {
        // Which the class would do where nothing else is said.
        config["add_bos_token"] = false.into();
    }
    if let Some(prefix) = vocab.space_prefix {
        config["add_prefix_space"] = prefix.into();
    }
    match vocab.chat_templates.as_slice() {
        [] => {}
        [(None, template)] => config["chat_template"] = template.as_str().into(),
        all => {
            let (default, named): (Vec<_>, _) = all.iter().partition(|(name, _)| name.is_none());
            let entry = |(name, template): &(Option<String>, String)| {
                let name = name.as_deref().unwrap_or("default");
                json!({ "name": name, "template": template })
            };
            config["chat_template"] = default.into_iter().chain(named).map(entry).collect();
        }
    }
    config
}
