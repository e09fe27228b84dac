//! Facts about tokens: spread over all the files that may hold them, contradicting each other, out of
//! range, damaged by a tool, and on the way back.

use crate::raw::*;
use serde_json::{Value as Json, json};
use std::collections::BTreeMap;
use std::path::Path;

const TOKENIZER: &str = "tokenizer.json";
const CONFIG: &str = "tokenizer_config.json";
const MAP: &str = "special_tokens_map.json";

/// A checkpoint with tiny-r1's tokenizer, for whose model one conversion takes little time.
fn checkpoint(bench: &Bench, name: &str) -> Checkpoint {
    bench.checkpoint("family/qwen2", name)
}

/// What a conversion says about tokens, by key.
fn told(bench: &Bench, copy: &Checkpoint) -> BTreeMap<String, Value> {
    let args = ["convert", copy.name(), "o.gguf", "--outtype", "bf16", "--force", "--strict"];
    bench.run(&args).ok();
    tokenizer_keys(&Gguf::read(&bench.path("o.gguf")))
}

fn tokenizer_keys(file: &Gguf) -> BTreeMap<String, Value> {
    let keys = file.keys.iter().filter(|(key, _)| key.starts_with("tokenizer."));
    keys.cloned().collect()
}

/// The text and the type of a token.
fn token(keys: &BTreeMap<String, Value>, id: usize) -> (String, i32) {
    let Value::Array(_, tokens) = &keys["tokenizer.ggml.tokens"] else { panic!() };
    let Value::Array(_, types) = &keys["tokenizer.ggml.token_type"] else { panic!() };
    match (&tokens[id], &types[id]) {
        (Value::Str(text), Value::I32(ty)) => (String::from_utf8(text.clone()).unwrap(), *ty),
        other => panic!("{other:?}"),
    }
}

/// Takes added tokens out of tokenizer.json.
fn take(copy: &Checkpoint, taken: impl Fn(u64) -> bool) -> Vec<Json> {
    let mut found = Vec::new();
    copy.edit(TOKENIZER, |json| {
        let (out, kept) = json["added_tokens"]
            .as_array()
            .unwrap()
            .iter()
            .cloned()
            .partition::<Vec<Json>, _>(|token| taken(token["id"].as_u64().unwrap()));
        json["added_tokens"] = kept.into();
        found = out;
    });
    found
}

/// `added_tokens_decoder` of such tokens.
fn decoder(tokens: &[Json]) -> Json {
    let entry = |token: &Json| {
        let mut token = token.clone();
        let id = token.as_object_mut().unwrap().remove("id").unwrap();
        (id.to_string(), token)
    };
    tokens.iter().map(entry).collect::<serde_json::Map<_, _>>().into()
}

#[test]
fn a_token_may_stand_in_any_file() {
    let bench = Bench::new();
    let published = told(&bench, &checkpoint(&bench, "p"));
    assert_eq!(token(&published, 2038), ("</think>".to_owned(), 4));

    let copy = checkpoint(&bench, "a");
    let taken = take(&copy, |id| id >= 2037);
    copy.edit(CONFIG, |json| json["added_tokens_decoder"] = decoder(&taken));
    assert!(told(&bench, &copy) == published);

    let copy = checkpoint(&bench, "b");
    take(&copy, |id| id == 2038);
    copy.write_json("added_tokens.json", &json!({ "</think>": 2038 }));
    assert!(told(&bench, &copy) == published);

    // Another word on the same token: that of tokenizer_config.json counts.
    let copy = checkpoint(&bench, "c");
    copy.edit(CONFIG, |json| {
        json["added_tokens_decoder"] = json!({ "2037": { "content": "<think>", "special": true } });
    });
    let found = told(&bench, &copy);
    assert_eq!(token(&found, 2037), ("<think>".to_owned(), 3));
    assert_eq!(token(&found, 2038), ("</think>".to_owned(), 4));

    // What a class adds by itself is padding's place.
    let copy = checkpoint(&bench, "d");
    copy.edit(CONFIG, |json| drop(json.as_object_mut().unwrap().remove("unk_token")));
    assert_eq!(token(&told(&bench, &copy), 2039), ("<unk>".to_owned(), 3));
}

#[test]
fn another_id_than_the_files_say_is_warned_of() {
    let bench = Bench::new();
    let convert = |copy: &Checkpoint| {
        bench.run(&["convert", copy.name(), "o.gguf", "--outtype", "bf16", "--force"])
    };
    let copy = checkpoint(&bench, "a");
    let taken = take(&copy, |id| id == 2035);
    copy.edit(CONFIG, |json| json["added_tokens_decoder"] = decoder(&taken));
    let said = convert(&copy).ok();
    assert_eq!(said.warnings().len(), 1, "{said:#?}");
    said.says(&["`<｜Assistant｜>` the id 2036", "gives it 2035", "3 more"]);
    let found = tokenizer_keys(&Gguf::read(&bench.path("o.gguf")));
    assert_eq!(token(&found, 2035), ("<｜Assistant｜>".to_owned(), 3));
    assert_eq!(token(&found, 2038), ("<｜User｜>".to_owned(), 3));

    let copy = checkpoint(&bench, "b");
    copy.edit(CONFIG, |json| {
        json["added_tokens_decoder"] = json!({ "70000": { "content": "<far>" } });
    });
    convert(&copy).fails(&["token 70000", "vocab_size of 2048"]);
}

/// Says the same of the tokenizer in other words, by a roll of the dice for each fact.
fn reworded(copy: &Checkpoint, rng: &mut Rng) -> String {
    let mut how = Vec::new();
    let legacy = rng.chance(2);
    // Added tokens, from some id on, so that all keep their places.
    let from = *rng.pick(&[2034, 2035, 2036, 2037, 2038, 2039]);
    let taken = take(copy, |id| id >= from);
    how.push(format!("added tokens from {from} on, {}", if legacy { "legacy" } else { "decoder" }));
    let special: Vec<&str> = taken
        .iter()
        .filter(|token| token["special"] == true)
        .map(|token| token["content"].as_str().unwrap())
        .collect();
    if legacy {
        let ids =
            taken.iter().map(|t| (t["content"].as_str().unwrap().to_owned(), t["id"].clone()));
        copy.write_json("added_tokens.json", &Json::Object(ids.collect()));
        // This file says of no token that it is special, but these look so.
        if rng.chance(2) {
            copy.edit(CONFIG, |json| json["additional_special_tokens"] = json!(special));
        }
    } else {
        copy.edit(CONFIG, |json| json["added_tokens_decoder"] = decoder(&taken));
        // Another word on tokens that have nothing to say any more.
        copy.write_json(MAP, &json!({ "bos_token": "<think>", "pad_token": "<none>" }));
    }
    for role in ["bos_token", "eos_token", "pad_token"] {
        let text = copy.json(CONFIG)[role]["content"].clone();
        let shape = rng.below(if legacy { 4 } else { 3 });
        how.push(format!("{role} {shape}"));
        match shape {
            0 => {}
            1 => drop(copy.edit(CONFIG, |json| json[role] = text)),
            2 => drop(copy.edit(CONFIG, |json| json[role] = json!({ "content": text }))),
            _ => {
                let mut map = match copy.path(MAP).is_file() {
                    true => copy.json(MAP),
                    false => json!({}),
                };
                map[role] =
                    if rng.chance(2) { text } else { json!({ "content": text, "rstrip": false }) };
                copy.write_json(MAP, &map);
                let other = rng.chance(2).then(|| "<think>".into());
                copy.edit(CONFIG, |json| {
                    drop(json.as_object_mut().unwrap().remove(role));
                    json.as_object_mut().unwrap().extend(other.map(|o| (role.to_owned(), o)));
                });
            }
        }
    }
    let template = copy.json(CONFIG)["chat_template"].as_str().unwrap().to_owned();
    let shape = rng.below(4);
    how.push(format!("template {shape}"));
    if shape > 0 {
        copy.edit(CONFIG, |json| drop(json.as_object_mut().unwrap().remove("chat_template")));
    }
    match shape {
        0 => {}
        1 => std::fs::write(copy.path("chat_template.jinja"), &template).unwrap(),
        2 => copy.write_json("chat_template.json", &json!({ "chat_template": template })),
        _ => drop(copy.edit(CONFIG, |json| {
            json["chat_template"] = json!([{ "name": "default", "template": template }]);
        })),
    }
    if rng.chance(2) {
        copy.edit("config.json", |json| {
            json["bos_token_id"] = 7.into();
            json["eos_token_id"] = json!([1, 2]);
        });
    }
    if rng.chance(2) {
        // What is for training and for batches.
        copy.edit(TOKENIZER, |json| {
            json["truncation"] = json!({
                "direction": "Right", "max_length": 3, "strategy": "LongestFirst", "stride": 0,
            });
            json["padding"] = json!({
                "strategy": { "Fixed": 9 }, "direction": "Left", "pad_to_multiple_of": null,
                "pad_id": 5, "pad_type_id": 0, "pad_token": "<｜▁pad▁｜>",
            });
        });
    }
    how.join("; ")
}

#[test]
fn facts_that_move_between_files_give_the_same_metadata() {
    let bench = Bench::new();
    let published = told(&bench, &checkpoint(&bench, "p"));
    for seed in 0..36 {
        let copy = checkpoint(&bench, "c");
        let how = reworded(&copy, &mut Rng(seed));
        let found = told(&bench, &copy);
        for key in published.keys().chain(found.keys()) {
            assert!(found.get(key) == published.get(key), "{seed}: {how}: {key}");
        }
    }
}

#[test]
fn special_ids_that_are_none_are_left_out_with_a_warning() {
    let bench = Bench::new();
    for (file, key, value) in [
        ("config.json", "pad_token_id", json!(2048)),
        ("config.json", "pad_token_id", json!(4_294_967_295u64)),
        ("config.json", "pad_token_id", json!(-1)),
        ("config.json", "pad_token_id", json!(2.5)),
        ("config.json", "pad_token_id", json!("2")),
        ("config.json", "pad_token_id", json!([2])),
        ("config.json", "unk_token_id", json!(u64::MAX)),
        ("config.json", "eos_token_id", json!([1, 5000])),
        ("generation_config.json", "eos_token_id", json!([1, -1])),
        (CONFIG, "pad_token", json!(2)),
        (CONFIG, "mask_token", json!({ "text": "<mask>" })),
    ] {
        let copy = checkpoint(&bench, "c");
        copy.edit(CONFIG, |json| drop(json.as_object_mut().unwrap().remove("pad_token")));
        if !copy.path(file).is_file() {
            copy.write_json(file, &json!({}));
        }
        copy.edit(file, |json| json[key] = value.clone());
        let args = ["convert", copy.name(), "o.gguf", "--outtype", "bf16", "--force"];
        let said = bench.run(&args).ok();
        let bad = value.as_array().map_or(&value, |list| list.last().unwrap());
        let bad = if value == json!([2]) { &value } else { bad };
        assert_eq!(said.warnings().len(), 1, "{said:#?}");
        assert!(said.stderr.contains("warning: tokenizer:"), "{said:#?}");
        said.says(&[file, key, &bad.to_string(), "left out"]);
        let found = tokenizer_keys(&Gguf::read(&bench.path("o.gguf")));
        assert_eq!(found["tokenizer.ggml.eos_token_id"], Value::U32(1));
        for name in ["padding", "unknown", "mask"] {
            assert!(!found.contains_key(&format!("tokenizer.ggml.{name}_token_id")), "{key}");
        }
        bench.run(&[args.as_slice(), &["--strict"]].concat()).fails(&["--strict"]);
    }
    // Nothing, said in several ways, is nothing to speak of.
    let copy = checkpoint(&bench, "c");
    copy.edit("config.json", |json| json["pad_token_id"] = Json::Null);
    copy.edit(CONFIG, |json| json["mask_token"] = Json::Null);
    told(&bench, &copy);
}

#[test]
fn further_ends_are_said_and_a_sole_list_gives_the_end() {
    let bench = Bench::new();
    let copy = checkpoint(&bench, "c");
    copy.edit("config.json", |json| json["eos_token_id"] = json!([1, 2036]));
    copy.write_json("generation_config.json", &json!({ "eos_token_id": [2036, 1, 2038] }));
    let said = bench.run(&["plan", "c", "--outtype", "bf16", "--strict"]).ok();
    for end in ["2036 <｜Assistant｜>", "2038 </think>"] {
        assert!(said.stdout.contains(end), "{said:#?}");
    }
    let said = bench.run(&["plan", "c", "--outtype", "bf16", "--strict", "--json"]).ok();
    assert_eq!(said.json()["further_end_tokens"], json!([2036, 2038]));

    copy.edit(CONFIG, |json| drop(json.as_object_mut().unwrap().remove("eos_token")));
    let args = ["convert", "c", "o.gguf", "--outtype", "bf16", "--force"];
    bench.run(&args).ok().says(&["warning: tokenizer: no file names an end token; 1"]);
    let found = tokenizer_keys(&Gguf::read(&bench.path("o.gguf")));
    assert_eq!(found["tokenizer.ggml.eos_token_id"], Value::U32(1));
}

/// Damages tokenizer.json as tools did.
fn damages() -> Vec<(&'static str, Json, &'static str)> {
    let metaspace = json!({
        "type": "Metaspace", "replacement": "▁", "prepend_scheme": "first", "split": false,
    });
    let split = json!({
        "type": "Split", "pattern": { "Regex": r"\p{N}{1,3}" }, "behavior": "Isolated",
        "invert": false,
    });
    let prefix = json!({ "type": "ByteLevel", "add_prefix_space": true, "use_regex": false });
    let replace = json!({ "type": "Replace", "pattern": { "String": " " }, "content": "▁" });
    let nfc = json!({ "type": "NFC" });
    let sequence = |steps: &[&Json]| json!({ "type": "Sequence", "pretokenizers": steps });
    vec![
        ("pre_tokenizer", metaspace.clone(), "Metaspace"),
        ("pre_tokenizer", sequence(&[&split, &metaspace]), "Split, Metaspace"),
        ("pre_tokenizer", Json::Null, "none"),
        ("pre_tokenizer", sequence(&[]), "none"),
        ("pre_tokenizer", sequence(&[&split]), "Split"),
        ("pre_tokenizer", json!({ "type": "WhitespaceSplit" }), "WhitespaceSplit"),
        ("pre_tokenizer", sequence(&[&split, &prefix]), "a space before the text"),
        ("normalizer", json!({ "type": "Sequence", "normalizers": [nfc, replace] }), "`Replace`"),
        ("normalizer", json!({ "type": "Prepend", "prepend": "▁" }), "`Prepend`"),
        ("normalizer", json!({ "type": "Lowercase" }), "`Lowercase`"),
        ("normalizer", json!({ "type": "NFKC" }), "`NFKC`"),
    ]
}

const PERPLEXITY: [&str; 5] = ["--chunks", "1", "--ctx", "64", "--json"];

fn perplexity(bench: &Bench, model: &str) -> Said {
    let text = std::fs::canonicalize(HELDOUT).unwrap();
    let args = ["perplexity", model, "--text", text.to_str().unwrap()];
    bench.run(&[&args[..], &PERPLEXITY].concat())
}

#[test]
fn a_damaged_tokenizer_is_never_evaluated_with() {
    let bench = Bench::new();
    let text = std::fs::canonicalize(HELDOUT).unwrap();
    let text = text.to_str().unwrap();
    let published = checkpoint(&bench, "p");
    let right = told(&bench, &published);
    let expected = perplexity(&bench, "o.gguf").ok().json()["mean_nll"].clone();
    for (section, damage, word) in damages() {
        let copy = checkpoint(&bench, "c");
        copy.edit(TOKENIZER, |json| json[section] = damage.clone());
        let convert = ["convert", "c", "o.gguf", "--outtype", "bf16", "--force"];
        let commands = [
            &convert[..],
            &["perplexity", "c", "--text", text, "--chunks", "1"],
            &["imatrix", "c", "--text", text, "-o", "im.gguf", "--chunks", "1"],
            &["compare", "c", "p", "--text", text, "--chunks", "1"],
        ];
        for command in commands {
            bench.run(command).fails(&["tokenizer.json", word, "--tokenizer-pre"]);
        }
        // Its user may know better.
        let named = [&convert[..], &["--tokenizer-pre", "deepseek-v3"]].concat();
        let said = bench.run(&named).ok();
        assert_eq!(said.warnings().len(), 1, "{said:#?}");
        said.says(&["warning: tokenizer:", word]);
        let mut found = tokenizer_keys(&Gguf::read(&bench.path("o.gguf")));
        found.retain(|key, _| !key.contains("normalizer"));
        assert!(found == right, "{word}");
        assert_eq!(perplexity(&bench, "o.gguf").ok().json()["mean_nll"], expected);
        // Numbers of tokens need no rules.
        std::fs::write(bench.path("ids"), "5 6 7 8 ".repeat(40)).unwrap();
        bench.run(&["perplexity", "c", "--tokens", "ids", "--ctx", "64"]).ok();
        bench.run(&[&named[..], &["--evaluate", text, "--chunks", "1"]].concat()).ok();
    }
}

#[test]
fn what_is_harmless_in_a_tokenizer_changes_no_token() {
    let bench = Bench::new();
    let expected =
        perplexity(&bench, checkpoint(&bench, "p").name()).ok().json()["mean_nll"].clone();
    let truncation =
        json!({ "max_length": 9, "strategy": "LongestFirst", "stride": 0, "direction": "Right" });
    for (path, value, warns) in [
        ("/truncation", truncation, None),
        ("/normalizer", json!({ "type": "NFC" }), None),
        ("/decoder", Json::Null, None),
        ("/model/dropout", json!(0.1), Some("dropout")),
        ("/model/ignore_merges", json!(true), Some("ignore_merges")),
        ("/model/byte_fallback", json!(true), None),
        ("/added_tokens/6/lstrip", json!(true), Some("`<think>` takes spaces")),
    ] {
        let copy = checkpoint(&bench, "c");
        copy.edit(TOKENIZER, |json| *json.pointer_mut(path).unwrap() = value);
        let said = perplexity(&bench, "c").ok();
        assert_eq!(said.json()["mean_nll"], expected, "{path}");
        assert_eq!(said.warnings().len(), usize::from(warns.is_some()), "{path}: {said:#?}");
        said.says(&warns.into_iter().collect::<Vec<_>>());
    }
}

#[test]
fn tokenizers_of_another_kind_are_named() {
    let bench = Bench::new();
    let refused = |edit: &dyn Fn(&mut Json), words: &[&str]| {
        let copy = checkpoint(&bench, "c");
        copy.edit(TOKENIZER, edit);
        bench.run(&["convert", "c", "o.gguf", "--outtype", "bf16", "--force"]).fails(words);
        perplexity(&bench, "c").fails(words);
    };
    refused(&|json| json["model"]["type"] = "Unigram".into(), &["`Unigram` is not supported"]);
    // Llama 2's.
    let pieces = |json: &mut Json| {
        let mut spelled = serde_json::Map::new();
        for (token, id) in json["model"]["vocab"].as_object().unwrap() {
            spelled.insert(token.replace('Ġ', "▁"), id.clone());
        }
        json["model"]["vocab"] = spelled.into();
        json["model"]["byte_fallback"] = true.into();
        json["pre_tokenizer"] = Json::Null;
        json["normalizer"] = json!({ "type": "Prepend", "prepend": "▁" });
    };
    refused(&pieces, &["SentencePiece", "byte-level BPE"]);
    refused(&|json| json["model"]["merges"] = json!([]), &["no merges"]);
    refused(
        &|json| json["model"]["merges"][0] = json!(["Ġ", "missing"]),
        &["`missing`, which is no token"],
    );
    refused(&|json| json["model"]["merges"][3] = json!(7), &["merge 3 is no pair"]);
    refused(&|json| json["model"]["vocab"]["Ġthe"] = json!(5), &["share the id 5"]);
    refused(&|json| json["model"]["vocab"]["Ġthe"] = json!(-5), &["`Ġthe` has no id"]);
    refused(&|json| json["model"]["vocab"] = Json::Null, &["model.vocab"]);
    refused(&|json| json["added_tokens"][1] = json!({ "id": 1 }), &["no id or no content"]);
}

#[test]
fn the_vocabulary_may_be_smaller_than_the_model_not_larger() {
    let bench = Bench::new();
    let copy = checkpoint(&bench, "c");
    let found = told(&bench, &copy);
    assert_eq!(token(&found, 2039), ("[PAD2039]".to_owned(), 5));
    assert_eq!(token(&found, 2047), ("[PAD2047]".to_owned(), 5));
    copy.edit(TOKENIZER, |json| {
        let more = (2039..2050).map(|id| {
            json!({ "id": id, "content": format!("<{id}>"), "single_word": false, "lstrip": false,
                    "rstrip": false, "normalized": true, "special": false })
        });
        json["added_tokens"].as_array_mut().unwrap().extend(more);
    });
    bench.run(&["convert", "c", "o.gguf", "--outtype", "bf16", "--force"]).fails(&[
        "tokenizer.json",
        "token 2049",
        "vocab_size of 2048",
    ]);
}

#[test]
fn vocab_json_and_merges_txt_do_without_tokenizer_json() {
    let bench = Bench::new();
    let whole = checkpoint(&bench, "whole");
    let tokenizer = whole.json(TOKENIZER);
    whole.edit(CONFIG, |json| json["tokenizer_class"] = "Qwen2Tokenizer".into());
    let slow = checkpoint(&bench, "slow");
    std::fs::remove_file(slow.path(TOKENIZER)).unwrap();
    slow.write_json("vocab.json", &tokenizer["model"]["vocab"]);
    let merges: Vec<String> = tokenizer["model"]["merges"]
        .as_array()
        .unwrap()
        .iter()
        .map(|pair| format!("{} {}", pair[0].as_str().unwrap(), pair[1].as_str().unwrap()))
        .collect();
    let text = format!("#version: 0.2\n{}\n", merges.join("\n"));
    std::fs::write(slow.path("merges.txt"), text).unwrap();
    slow.edit(CONFIG, |json| {
        json["tokenizer_class"] = "Qwen2Tokenizer".into();
        json["added_tokens_decoder"] = decoder(tokenizer["added_tokens"].as_array().unwrap());
    });
    let (whole, slow) = (told(&bench, &whole), told(&bench, &slow));
    for key in whole.keys().chain(slow.keys()) {
        match key.as_str() {
            // R1's Qwen has this token, and Qwen2's rules.
            "tokenizer.ggml.pre" => assert_eq!(slow[key], Value::str("deepseek-r1-qwen")),
            // Nothing says how a text ends.
            key => assert!(whole.get(key) == slow.get(key), "{key}"),
        }
    }
}

#[test]
fn chat_templates_are_found_where_transformers_finds_them() {
    let bench = Bench::new();
    let template = |copy: &Checkpoint, name: &str| {
        let args = ["convert", copy.name(), "o.gguf", "--outtype", "bf16", "--force"];
        let said = bench.run(&args).ok();
        let found = tokenizer_keys(&Gguf::read(&bench.path("o.gguf")));
        let text = found.get(&format!("tokenizer.chat_template{name}")).map(|text| match text {
            Value::Str(text) => String::from_utf8(text.clone()).unwrap(),
            other => panic!("{other:?}"),
        });
        (text, said.warnings().len())
    };
    let copy = checkpoint(&bench, "c");
    let published = copy.json(CONFIG)["chat_template"].as_str().unwrap().to_owned();
    let jinja = |text: &str| std::fs::write(copy.path("chat_template.jinja"), text).unwrap();
    jinja(&published);
    assert_eq!(template(&copy, ""), (Some(published.clone()), 0));
    // Where two differ, the file of its own counts, and that is said.
    jinja("new");
    assert_eq!(template(&copy, ""), (Some("new".to_owned()), 1));
    std::fs::create_dir(copy.path("additional_chat_templates")).unwrap();
    std::fs::write(copy.path("additional_chat_templates/tool use.jinja"), "tools").unwrap();
    assert_eq!(template(&copy, ".tool_use").0.as_deref(), Some("tools"));
    std::fs::remove_file(copy.path("chat_template.jinja")).unwrap();
    assert_eq!(template(&copy, ""), (Some(published), 0));
    assert_eq!(template(&copy, ".tool_use").0.as_deref(), Some("tools"));
    std::fs::remove_dir_all(copy.path("additional_chat_templates")).unwrap();
    copy.edit(CONFIG, |json| json["chat_template"] = json!({ "text": 5 }));
    assert_eq!(template(&copy, ""), (None, 1));
    copy.edit(CONFIG, |json| {
        json["chat_template"] = json!([{ "name": "x" }, { "name": "y", "template": "Y" }])
    });
    assert_eq!(template(&copy, ".y"), (Some("Y".to_owned()), 1));
}

/// The fixture with its BOS, whose perplexity is that of the checkpoint.
fn bf16() -> Gguf {
    let mut file = Bench::bf16();
    file.set("tokenizer.ggml.add_bos_token", Value::Bool(1));
    file
}

fn types(file: &mut Gguf) -> &mut Vec<Value> {
    let types = file.keys.iter_mut().find(|(key, _)| key == "tokenizer.ggml.token_type");
    match &mut types.unwrap().1 {
        Value::Array(_, types) => types,
        other => panic!("{other:?}"),
    }
}

#[test]
fn odd_types_and_ids_of_a_file_cost_a_warning() {
    let bench = Bench::new();
    bf16().write(&bench.path("m.gguf"));
    let expected = perplexity(&bench, "m.gguf").ok().json()["mean_nll"].clone();
    let run = |edit: &dyn Fn(&mut Gguf), words: &[&str]| {
        let mut file = bf16();
        edit(&mut file);
        file.write(&bench.path("m.gguf"));
        let said = perplexity(&bench, "m.gguf").ok();
        assert_eq!(said.json()["mean_nll"], expected, "{words:?}");
        assert_eq!(said.warnings().len(), usize::from(!words.is_empty()), "{said:#?}");
        said.says(words);
    };
    run(&|file| types(file)[300] = Value::I32(0), &["1 types without a meaning, as 0"]);
    run(&|file| types(file)[2040..].fill(Value::I32(-7)), &["8 types without a meaning, as -7"]);
    run(&|file| types(file)[300..2000].fill(Value::I32(99)), &["1700 types", "as 99"]);
    run(&|file| types(file).push(Value::I32(1)), &["2049 entries for 2048 tokens"]);
    run(&|file| file.keys.retain(|(key, _)| key != "tokenizer.ggml.token_type"), &[]);
    for value in [Value::U32(2048), Value::U32(u32::MAX), Value::I32(-1), Value::str("2")] {
        let set = |file: &mut Gguf| {
            file.set("tokenizer.ggml.padding_token_id", value.clone());
        };
        run(&set, &["padding_token_id", "left out"]);
    }
    let unknown = |file: &mut Gguf| {
        file.set("tokenizer.ggml.unknown_token_id", Value::U32(9999));
    };
    run(&unknown, &["9999"]);

    // A beginning that is no token is none.
    let mut file = bf16();
    file.set("tokenizer.ggml.bos_token_id", Value::U32(5000)).write(&bench.path("m.gguf"));
    let said = perplexity(&bench, "m.gguf").ok();
    said.says(&["bos_token_id is 5000", "left out"]);
    file.set("tokenizer.ggml.add_bos_token", Value::Bool(0));
    file.set("tokenizer.ggml.bos_token_id", Value::U32(0)).write(&bench.path("n.gguf"));
    assert_eq!(
        perplexity(&bench, "m.gguf").json()["mean_nll"],
        perplexity(&bench, "n.gguf").json()["mean_nll"]
    );

    // What llama.cpp refuses as well.
    let mut file = bf16();
    types(&mut file).truncate(2000);
    file.write(&bench.path("m.gguf"));
    perplexity(&bench, "m.gguf").fails(&["token_type", "2000 entries for 2048 tokens"]);
    let mut file = bf16();
    file.keys.retain(|(key, _)| key != "tokenizer.ggml.merges");
    file.write(&bench.path("m.gguf"));
    perplexity(&bench, "m.gguf").fails(&["tokenizer.ggml.merges", "is missing"]);
    // Numbers of tokens need no merges.
    std::fs::write(bench.path("ids"), "5 6 7 8 ".repeat(40)).unwrap();
    bench.run(&["perplexity", "m.gguf", "--tokens", "ids", "--ctx", "64"]).ok();
}

/// What an export of a file holds.
struct Exported {
    said: Said,
    dir: std::path::PathBuf,
}

impl Exported {
    fn json(&self, file: &str) -> Json {
        serde_json::from_slice(&std::fs::read(self.dir.join(file)).unwrap()).unwrap()
    }
}

fn export(bench: &Bench, file: &Gguf) -> Exported {
    file.write(&bench.path("e.gguf"));
    let dir = bench.path("e");
    let _ = std::fs::remove_dir_all(&dir);
    Exported { said: bench.run(&["export", "e.gguf", "e"]).ok(), dir }
}

#[test]
fn an_export_says_what_the_file_knows() {
    let bench = Bench::new();
    let mut file = bf16();
    for (key, value) in [
        ("tokenizer.chat_template.tool_use", Value::str("T")),
        ("general.sampling.temp", Value::F32(0.6)),
        ("general.sampling.top_p", Value::F32(0.95)),
        ("general.sampling.top_k", Value::I32(20)),
        ("general.sampling.penalty_repeat", Value::F32(1.05)),
        ("tokenizer.ggml.eot_token_id", Value::U32(2036)),
        ("tokenizer.ggml.mask_token_id", Value::U32(2037)),
    ] {
        file.set(key, value);
    }
    file.set("tokenizer.ggml.padding_token_id", Value::U32(2));
    let e = export(&bench, &file);
    assert!(e.said.warnings().is_empty());
    assert_eq!(
        e.json("generation_config.json"),
        json!({
            "bos_token_id": 0, "eos_token_id": [1, 2036], "pad_token_id": 2, "do_sample": true,
            "temperature": 0.6, "top_p": 0.95, "top_k": 20, "repetition_penalty": 1.05,
        })
    );
    let config = e.json("config.json");
    assert_eq!((&config["bos_token_id"], &config["eos_token_id"]), (&json!(0), &json!(1)));
    let tokens = e.json(CONFIG);
    for (name, text) in [
        ("bos_token", "<｜begin▁of▁sentence｜>"),
        ("eos_token", "<｜end▁of▁sentence｜>"),
        ("pad_token", "<｜▁pad▁｜>"),
        ("mask_token", "<think>"),
        ("tokenizer_class", "LlamaTokenizerFast"),
    ] {
        assert_eq!(tokens[name], text, "{name}");
    }
    assert_eq!(tokens["unk_token"], Json::Null);
    assert_eq!(tokens["add_bos_token"], true);
    assert_eq!(tokens["chat_template"][0]["name"], "default");
    assert_eq!(tokens["chat_template"][1], json!({ "name": "tool_use", "template": "T" }));

    // Other tokenizers than DeepSeek's put their tokens around a text themselves.
    file.set("tokenizer.ggml.pre", Value::str("llama-bpe"));
    let tokenizer = export(&bench, &file).json(TOKENIZER);
    assert_eq!(tokenizer["model"]["ignore_merges"], true);
    let processor = &tokenizer["post_processor"];
    assert_eq!(processor["type"], "TemplateProcessing");
    assert_eq!(processor["single"][0]["SpecialToken"]["id"], "<｜begin▁of▁sentence｜>");
    assert_eq!(processor["single"].as_array().unwrap().len(), 2);
    assert_eq!(processor["special_tokens"]["<｜begin▁of▁sentence｜>"]["ids"], json!([0]));
    file.set("tokenizer.ggml.add_bos_token", Value::Bool(0));
    file.set("tokenizer.ggml.add_eos_token", Value::Bool(1));
    let processor = export(&bench, &file).json(TOKENIZER)["post_processor"].take();
    assert_eq!(processor["single"][1]["SpecialToken"]["id"], "<｜end▁of▁sentence｜>");

    // Qwen2's compose characters, and have no beginning.
    file.set("tokenizer.ggml.pre", Value::str("qwen2"));
    file.set("tokenizer.ggml.add_eos_token", Value::Bool(0));
    let e = export(&bench, &file);
    assert_eq!(e.json(TOKENIZER)["normalizer"], json!({ "type": "NFC" }));
    assert_eq!(e.json(CONFIG)["bos_token"], Json::Null);
    assert_eq!(e.json("config.json")["bos_token_id"], 0);

    // An ordinary token that has a role stays one; padding that has one becomes special.
    file.set("tokenizer.ggml.padding_token_id", Value::U32(300));
    file.set("tokenizer.ggml.unknown_token_id", Value::U32(2040));
    let e = export(&bench, &file);
    assert_eq!(e.json("config.json")["pad_token_id"], 300);
    assert_eq!(e.json(CONFIG)["pad_token"], Json::Null);
    assert_eq!(e.json(CONFIG)["unk_token"], "[PAD2040]");
    let added = e.json(TOKENIZER)["added_tokens"].take();
    assert!(added.as_array().unwrap().iter().any(|t| t["id"] == 2040 && t["special"] == true));
}

#[test]
fn an_export_survives_what_is_missing() {
    let bench = Bench::new();
    let without = |keys: &[&str]| {
        let mut file = bf16();
        file.keys.retain(|(key, _)| !keys.contains(&key.as_str()));
        file
    };
    let bare = |file: &Gguf, word: &str| {
        let e = export(&bench, file);
        assert_eq!(e.said.warnings().len(), 1, "{:#?}", e.said);
        assert_eq!(e.json("config.json")["eos_token_id"], 1);
        assert!(!e.dir.join(TOKENIZER).exists() && !e.dir.join(CONFIG).exists());
        e.said.says(&[word, "no tokenizer is written"]);
        bench.run(&["export", "e.gguf", "strict", "--strict"]).fails(&[word]);
        assert!(!bench.path("strict").exists() && !bench.path("strict.part").exists());
    };
    bare(&without(&["tokenizer.ggml.merges"]), "merges");
    bare(&without(&["tokenizer.ggml.tokens"]), "tokens");
    bare(&without(&["tokenizer.ggml.model"]), "model");
    let mut file = bf16();
    bare(file.set("tokenizer.ggml.pre", Value::str("tomorrow")), "tomorrow");
    bare(bf16().set("tokenizer.ggml.model", Value::str("llama")), "`llama`");
    for keys in [&["tokenizer.ggml.token_type"][..], &["tokenizer.ggml.pre"]] {
        let e = export(&bench, &without(keys));
        assert!(e.said.warnings().is_empty() && e.dir.join(TOKENIZER).is_file());
    }
    // Nothing of a vocabulary at all.
    let keys: Vec<String> = bf16().keys.into_iter().map(|(key, _)| key).collect();
    let keys: Vec<&str> =
        keys.iter().map(String::as_str).filter(|k| k.starts_with("tokenizer.")).collect();
    let e = export(&bench, &without(&keys));
    assert!(
        e.dir.join("model.safetensors").is_file() && !Path::new(&e.dir).join(TOKENIZER).exists()
    );
}
