//! What describes a model beside its configuration: cards that are no YAML, folders whose names are
//! hashes. No conversion fails of it.

use crate::raw::{Bench, Gguf, Rng, Value};
use requant::gguf::{Array, Metadata, Value as Meta};
use requant::model::{Given, ParamCounts, general_metadata};
use requant::warning::{Topic, Warning};
use serde_json::{Map, Value as Json, json};
use std::path::Path;

/// The keys that a folder's model gets, and what was warned of.
fn general(dir: &Path, config: &Json) -> (Map<String, Json>, Vec<Warning>) {
    let mut metadata = Metadata::new();
    let counts = ParamCounts::default();
    let given = Given::default();
    let warnings = general_metadata(dir, "llama", config, &counts, &given, &mut metadata);
    let json = |value: &Meta| match value {
        Meta::String(text) => json!(text.to_string()),
        Meta::U32(n) => json!(n),
        Meta::I32(n) => json!(n),
        Meta::F32(x) => json!(x),
        Meta::Array(Array::String(words)) => {
            words.iter().map(|word| Json::from(word.to_string())).collect()
        }
        other => panic!("{other:?}"),
    };
    (metadata.iter().map(|(key, value)| (key.to_owned(), json(value))).collect(), warnings)
}

/// A folder `some-model` with a README.md.
fn with_card(bench: &Bench, readme: &[u8]) -> (Map<String, Json>, Vec<Warning>) {
    let dir = bench.path("some-model");
    let _ = std::fs::create_dir(&dir);
    std::fs::write(dir.join("README.md"), readme).unwrap();
    general(&dir, &json!({}))
}

fn latin1(text: &str) -> Vec<u8> {
    text.chars().map(|c| c as u8).collect()
}

fn cards() -> Map<String, Json> {
    let text = std::fs::read("tests/fixtures/cards/cards.json").unwrap();
    serde_json::from_slice(&text).unwrap()
}

#[test]
fn cards_give_the_keys_that_the_reference_makes_of_them() {
    let bench = Bench::new();
    let mut given_up = Vec::new();
    for (name, card) in cards() {
        let (found, warnings) = with_card(&bench, &latin1(card["readme"].as_str().unwrap()));
        assert!(warnings.iter().all(|w| w.topic == Topic::Card), "{name}: {warnings:?}");
        assert!(warnings.iter().all(|w| w.text.contains("some-model/README.md")), "{warnings:?}");
        let Some(mut expected) = card["keys"].as_object().cloned() else {
            given_up.push((name, found, warnings));
            continue;
        };
        // The reference's writer sets it, not its metadata.
        expected.insert("general.type".to_owned(), json!("model"));
        assert_eq!(Json::Object(found), Json::Object(expected), "{name}");
        let no_mapping = ["scalar", "list", "colon without space"].contains(&&*name);
        assert_eq!(warnings.len(), usize::from(no_mapping), "{name}: {warnings:?}");
    }
    // Where the reference gives up, the card is left out, or its words are taken as written.
    for (name, found, warnings) in given_up {
        let written = match &*name {
            "typed" => json!({ "general.version": "1.0", "general.license": "mit" }),
            "truth" => json!({ "general.name": "true" }),
            "date" => json!({ "general.version": "2024-05-01" }),
            "tagged" => json!({ "general.license": "null", "general.author": "y" }),
            "nested list" | "hyphens" => json!({ "general.name": "Some Model" }),
            "body not utf-8" | "zero" => json!({ "general.license": "mit" }),
            "not utf-8" => json!({ "general.license": "mit", "general.author": "M\u{fffd}ller" }),
            "utf-16" => json!({ "general.name": "Some Model" }),
            _ => {
                assert_eq!(warnings.len(), 1, "{name}: {found:?}");
                assert_eq!(found.len(), 3, "{name}: {found:?}");
                continue;
            }
        };
        for (key, value) in written.as_object().unwrap() {
            assert_eq!(&found[key], value, "{name}");
        }
        assert_eq!(warnings.len(), usize::from(name == "not utf-8"), "{name}: {warnings:?}");
    }
}

#[test]
fn a_conversion_goes_on_whatever_the_card_is() {
    let bench = Bench::new();
    let copy = bench.checkpoint("family/qwen2", "c");
    let convert = |readme: &[u8]| {
        std::fs::write(copy.path("README.md"), readme).unwrap();
        bench.run(&["convert", "c", "o.gguf", "--type", "Q8_0", "--force"])
    };
    let said = convert(b"---\nlicense: mit\ntags:\n- a\ntags:\n- b\n---\n# x\n").ok();
    assert!(said.warnings().is_empty(), "{said:#?}");
    let tags = Value::Array(8, vec![Value::str("b")]);
    assert_eq!(Gguf::read(&bench.path("o.gguf")).get("general.tags"), Some(&tags));
    let said = convert(b"---\nlicense: [mit\n---\n").ok();
    assert_eq!(said.warnings().len(), 1, "{said:#?}");
    said.says(&["warning: card: c/README.md"]);
    let strict = ["convert", "c", "p.gguf", "--type", "Q8_0", "--strict"];
    bench.run(&strict).fails(&["card: c/README.md"]);
    assert!(!bench.path("p.gguf").exists());

    std::fs::remove_file(copy.path("README.md")).unwrap();
    std::fs::create_dir(copy.path("README.md")).unwrap();
    bench.run(&["convert", "c", "o.gguf", "--type", "Q8_0", "--force", "--strict"]).ok();
}

#[test]
fn cards_of_any_size_and_depth_take_little_memory_and_time() {
    let bench = Bench::new();
    let front = |yaml: &str| format!("---\n{yaml}---\n").into_bytes();
    let mut laughs = "a: &a [x, x, x, x, x, x, x, x, x, x]\n".to_owned();
    for (name, last) in ('b'..='z').zip('a'..) {
        let each = format!("*{last}, ").repeat(9);
        laughs += &format!("{name}: &{name} [{each}*{last}]\n");
    }
    let long = format!("x: &x {}\ntags: [{}*x]\n", "y".repeat(100_000), "*x, ".repeat(10_000));
    let far = format!("license: mit\nx: \"{}\"\n", "y".repeat(11 << 20));
    for (yaml, what) in [
        (laughs, "aliases"),
        (long, "aliases"),
        (far, "no end"),
        (format!("x: {}{}\n", "[".repeat(200), "]".repeat(200)), "nested"),
        (format!("x:\n {}a\n", "- ".repeat(50_000)), "nested"),
        (format!("x: {}\n", "[".repeat(500_000)), "README.md"),
        (format!("{}a\n", "? ".repeat(50_000)), "README.md"),
    ] {
        let (found, warnings) = with_card(&bench, &front(&yaml));
        assert_eq!(found.len(), 3, "{what}");
        assert!(warnings.len() == 1 && warnings[0].text.contains(what), "{what}: {warnings:?}");
    }
    let mut body = front("license: mit\n");
    body.resize(12 << 20, b'#');
    assert_eq!(with_card(&bench, &body).0["general.license"], "mit");
}

/// Mutations of cards that exist: any bytes in any place.
#[test]
fn no_card_ends_a_conversion() {
    let (bench, mut rng) = (Bench::new(), Rng(5));
    let cards: Vec<Vec<u8>> =
        cards().values().map(|card| latin1(card["readme"].as_str().unwrap())).collect();
    let pieces: [&[u8]; 14] = [
        b"&a", b"*a", b"<<: ", b"[", b"]", b"{", b"}", b"---\n", b"\xff", b": ", b"- ", b"\"",
        b"|\n", b"? ",
    ];
    for _ in 0..400 {
        let mut card = rng.pick(&cards).clone();
        for _ in 0..=rng.below(4) {
            let at = 4.min(card.len()) + rng.below(card.len().max(5) as u64 - 4) as usize;
            let at = at.min(card.len());
            let piece = rng.pick(&pieces).to_vec();
            card.splice(at..at, piece);
        }
        let (found, warnings) = with_card(&bench, &card);
        assert!(found.contains_key("general.architecture"));
        assert!(warnings.len() <= 2, "{warnings:?}");
    }
}

#[test]
fn broken_sampling_settings_are_left_out_by_name() {
    let bench = Bench::new();
    let copy = bench.checkpoint("family/qwen2", "c");
    let with = |text: &str| {
        std::fs::write(copy.path("generation_config.json"), text).unwrap();
        general(&copy.dir, &json!({}))
    };
    let (found, warnings) =
        with(r#"{"temperature": 0.6, "top_k": 40, "top_p": "0.9", "min_p": null}"#);
    assert_eq!(found["general.sampling.temp"], json!(0.6f32));
    assert_eq!(found["general.sampling.top_k"], 40);
    assert!(!found.contains_key("general.sampling.top_p"));
    assert!(warnings.len() == 1 && warnings[0].text.contains("`top_p`"), "{warnings:?}");
    for broken in ["", "{", "[]", "null", "\u{feff}{}", r#"{"temperature": NaN}"#] {
        let (found, warnings) = with(broken);
        assert!(!found.keys().any(|key| key.starts_with("general.sampling")), "{broken}");
        assert_eq!(warnings.len(), 1, "{broken}");
        assert!(warnings[0].text.contains("generation_config.json"), "{warnings:?}");
    }
}

#[test]
fn a_folder_in_the_hubs_cache_is_the_repository() {
    let bench = Bench::new();
    let hash = "0123456789abcdef0123456789abcdef01234567";
    let named = |path: &str, config: Json| {
        let dir = bench.path(path);
        std::fs::create_dir_all(&dir).unwrap();
        general(&dir, &config).0
    };
    let hub = format!("hub/models--deepseek-ai--DeepSeek-R1-Distill-Qwen-7B/snapshots/{hash}");
    let expected = json!({
        "general.architecture": "llama", "general.type": "model",
        "general.name": "DeepSeek R1 Distill Qwen 7B", "general.organization": "Deepseek Ai",
        "general.basename": "DeepSeek-R1-Distill-Qwen", "general.size_label": "7B",
    });
    for path in [hub.clone(), format!("{hub}/"), format!("{hub}/.")] {
        assert_eq!(Json::Object(named(&path, json!({}))), expected, "{path}");
    }
    // By a relative name, and through links.
    std::os::unix::fs::symlink(bench.path(&hub), bench.path(hash)).unwrap();
    std::os::unix::fs::symlink(bench.path(&hub), bench.path("my-copy")).unwrap();
    assert_eq!(Json::Object(general(&bench.path(hash), &json!({})).0), expected);
    assert_eq!(general(&bench.path("my-copy"), &json!({})).0["general.name"], "My Copy");
    // What the configuration says goes first, unless it is a hash or nothing.
    for (given, name) in [
        ("Org/Other-3B", "Other 3B"),
        ("", "DeepSeek R1 Distill Qwen 7B"),
        (hash, "DeepSeek R1 Distill Qwen 7B"),
        (&*format!("snapshots/{hash}"), "DeepSeek R1 Distill Qwen 7B"),
        ("/home/me/models/x", "DeepSeek R1 Distill Qwen 7B"),
    ] {
        let found = named(&hub, json!({ "_name_or_path": given }));
        assert_eq!(found["general.name"], name, "{given}");
    }
    let annex = "SHA256E-s12345--9f86d081884c7d659a2feaa0c55ad015a3bf4f1b2b0b822cd15d6c15b0f00a08";
    for (path, name) in [
        (format!("hub/models--gpt2/snapshots/{hash}"), Some("Gpt2")),
        (format!("DeepSeek-R1/{hash}"), Some("DeepSeek R1")),
        ("DeepSeek-R1/checkpoint-1234".to_owned(), Some("DeepSeek R1")),
        ("DeepSeek-R1/model".to_owned(), Some("DeepSeek R1")),
        ("out/checkpoint-1234".to_owned(), Some("Checkpoint 1234")),
        ("out/model".to_owned(), Some("Model")),
        (format!("DeepSeek-R1/{annex}"), Some("DeepSeek R1")),
        (format!("out/{hash}"), None),
        (format!("out/{annex}"), None),
        ("org/Qwen3-8B".to_owned(), Some("Qwen3 8B")),
    ] {
        let found = named(&path, json!({}));
        assert_eq!(found.get("general.name").and_then(Json::as_str), name, "{path}");
        assert!(!Json::Object(found).to_string().contains("0123456789abcdef"), "{path}");
    }
    // The program, within the folder.
    let cached = bench.path(&hub);
    for entry in std::fs::read_dir(&bench.checkpoint("family/qwen2", "c").dir).unwrap() {
        let path = entry.unwrap().path();
        std::fs::copy(&path, cached.join(path.file_name().unwrap())).unwrap();
    }
    let hub = hub.as_str();
    bench.run(&["convert", hub, "o.gguf", "--type", "Q8_0"]).ok();
    let name = Gguf::read(&bench.path("o.gguf")).get("general.name").cloned();
    assert_eq!(name, Some(Value::str("DeepSeek R1 Distill Qwen 7B")));
}
