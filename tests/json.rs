//! Every output of `--json` against its schema in docs/schema.
#![cfg(feature = "cli")]

mod common;

use common::{BF16, CALIBRATION, HELDOUT, TINY_R1, json, requant, validate};
use serde_json::Value;
use std::collections::BTreeSet;

/// Runs a command and holds what it prints against a schema.
fn holds(schema: &str, codes: &[i32], args: &[&str]) -> Value {
    let (code, out, err) = requant(&[&["-q"], args, &["--json"]].concat());
    assert!(codes.contains(&code), "{args:?}: {code} {err}");
    let value = serde_json::from_str(&out).unwrap_or_else(|_| panic!("{args:?}: {out}{err}"));
    validate(schema, &value);
    value
}

#[test]
fn every_output_is_as_its_schema_says() {
    let dir = tempfile::tempdir().unwrap();
    let at = |name: &str| dir.path().join(name).to_str().unwrap().to_owned();
    let (q8, q4, parts) = (at("q8.gguf"), at("q4.gguf"), at("parts"));
    let imatrix = "tests/fixtures/reference/imatrix.dat";
    let text = ["--text", HELDOUT, "--chunks", "2"];
    let with = |args: &[&'static str]| -> Vec<&str> { [args, &text[..]].concat() };

    let converted = holds("convert", &[0], &["convert", TINY_R1, &q8, "-t", "Q8_0", "--manifest"]);
    assert_eq!(converted["file_bytes"], std::fs::metadata(&q8).unwrap().len());
    let evaluated = [TINY_R1, &q4, "-t", "Q4_K_M", "--evaluate", HELDOUT, "--chunks", "2"];
    holds("convert", &[0], &[&["convert"], &evaluated[..]].concat());
    let rounded = ["convert", TINY_R1, &at("r.gguf"), "-t", "Q2_K", "--calibrate", CALIBRATION];
    let some =
        ["--calibrate-chunks", "1", "--calibrate-ctx", "16", "--calibrate-inputs", "original"];
    holds("convert", &[0], &[&rounded[..], &some].concat());

    for options in
        [&["-t", "Q4_K_M"][..], &["--outtype", "auto"], &["-t", "IQ2_XS", "--imatrix", imatrix]]
    {
        holds("plan", &[0], &[&["plan", TINY_R1, &at("p.gguf")], options].concat());
    }
    let split = ["plan", TINY_R1, &parts, "-t", "Q8_0", "--split-max-size", "3M", "--shard", "1/2"];
    holds("plan", &[0], &split);
    holds("plan", &[0], &["quantize", BF16, &at("p.gguf"), "Q4_K_M", "--dry-run"]);
    let types = ["--types", "Q8_0,Q4_0"];
    holds("ladder", &[0], &[&["plan", TINY_R1, &at("all")], &types[..]].concat());
    holds("ladder", &[0], &[&["convert", TINY_R1, &at("all")], &types[..]].concat());
    let dry = ["quantize", BF16, &at("all"), "--dry-run"];
    holds("ladder", &[0], &[&dry[..], &types].concat());
    holds("verify", &[0], &["verify", &q8]);
    holds("verify", &[0], &["verify", &q8, "--against", TINY_R1, "--sample", "5%"]);
    holds("hash", &[0], &["hash", &q8]);
    holds("diff", &[3], &["diff", &q8, &q4]);
    holds("diff", &[0], &["diff", &q8, &q8]);
    holds("diff", &[3], &["diff", TINY_R1, &q8, "--no-values"]);
    holds("inspect", &[0], &["inspect", TINY_R1]);
    holds("inspect", &[0], &["inspect", &q8, "--header"]);
    holds("inspect", &[0], &["inspect", &q8, "--tensor", "blk.0.attn_q_a.weight", "--stats"]);
    holds("recipe", &[0], &["recipe", "show", "Q4_K_M"]);
    holds("recipe", &[0], &["recipe", "show", "Q4_K_M", "--model", TINY_R1]);
    holds("types", &[0], &["types"]);
    holds("types", &[0], &["recipe", "list"]);
    holds("formats", &[0], &["formats"]);
    let file = at("imatrix.gguf");
    holds("imatrix", &[0], &[&with(&["imatrix", BF16])[..], &["-o", &file]].concat());

    holds("statistics", &[0], &["imatrix", "--show-statistics", &file]);
    let weighed = ["convert", TINY_R1, &at("i.gguf"), "-t", "IQ4_XS", "--imatrix", imatrix];
    holds("convert", &[0], &weighed);
    let args = ["verify", &at("i.gguf"), "--against", TINY_R1, "--sample", "1%"];
    assert_eq!(holds("verify", &[0, 3], &args)["missing"].as_array().unwrap().len(), 1);

    let tasks = at("tasks.jsonl");
    let task = r#"{"context": "The sky is", "choices": ["blue.", "a fork."], "answer": 0}"#;
    std::fs::write(&tasks, task).unwrap();
    holds("choices", &[0], &["perplexity", BF16, "--choices", &tasks]);
    holds("perplexity", &[0], &with(&["perplexity", BF16]));
    holds("estimate", &[0], &with(&["perplexity", BF16, "--dry-run"]));
    holds("drafts", &[0], &with(&["perplexity", TINY_R1, "--mtp"]));
    let gate = ["gate", BF16, &q4, &q8, "--max-kld", "0.5"];
    holds("gate", &[0, 3, 4], &[&gate[..], &text].concat());
    let tokens = at("tokens.jsonl");
    let compare = ["compare", BF16, &q8, &q4, "--by-tensor", "--per-token", &tokens];
    let compared = holds("compare", &[0], &[&compare[..], &text].concat());
    assert_eq!(compared["pairs"].as_array().unwrap().len(), 1);
    assert_eq!(compared["inputs"]["models"].as_array().unwrap().len(), 3);
    let lines = std::fs::read_to_string(&tokens).unwrap();
    let lines: Vec<Value> = lines.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
    validate("per-token", &lines[0]);
    let mean = |model: usize| {
        let of = |line: &Value| line["models"][model]["kld"].as_f64().unwrap();
        lines.iter().map(of).sum::<f64>() / lines.len() as f64
    };
    let model = |i: usize| &compared["models"][i]["result"];
    let found = |i: usize| model(i)["kl_divergence"]["mean"]["value"].as_f64().unwrap();
    assert!((mean(0) - found(0)).abs() < 1e-12 && (mean(1) - found(1)).abs() < 1e-12);
    let pair = compared["pairs"][0]["kl"]["value"].as_f64().unwrap();
    assert!((pair - (found(1) - found(0))).abs() < 1e-12);
    let per_chunk = model(1)["kl_per_chunk"].as_array().unwrap();
    let chunks: f64 = per_chunk.iter().map(|value| value.as_f64().unwrap()).sum();
    assert!((chunks / 2.0 - found(1)).abs() < 1e-12);
    assert!(model(1)["kl_divergence"]["percentiles"]["99.9"].as_f64().unwrap() > 0.0);
    holds("error", &[1], &["inspect", "no/such/file"]);
}

#[test]
fn every_schema_is_of_something_that_the_tests_look_at() {
    let tests =
        ["json", "mix", "compare", "tools", "remote"].map(|name| format!("tests/{name}.rs"));
    let tests: String = tests.iter().map(|path| std::fs::read_to_string(path).unwrap()).collect();
    let run = json("docs/schema/run.json");
    let schemas = std::fs::read_dir("docs/schema").unwrap();
    let names: BTreeSet<String> = schemas
        .map(|entry| entry.unwrap().path().file_stem().unwrap().to_str().unwrap().to_owned())
        .collect();
    for name in names.iter().filter(|name| *name != "run" && *name != "per-token") {
        assert!(
            tests.contains(&format!("\"{name}\"")) || tests.contains(&format!("{name}.json")),
            "{name}"
        );
        let own = &json(&format!("docs/schema/{name}.json"))["properties"]["run"];
        assert_eq!(own["properties"], run["properties"], "{name}");
    }
}

#[test]
fn several_models_are_a_table_of_any_form() {
    let dir = tempfile::tempdir().unwrap();
    let made = ["Q8_0", "Q2_K", "IQ4_XS"].map(|ty| {
        let path = dir.path().join(format!("model-{ty}.gguf")).to_str().unwrap().to_owned();
        assert_eq!(requant(&["-q", "quantize", BF16, &path, ty]).0, 0);
        path
    });
    let [a, b, c] = &made;
    let shown = |format: &str| {
        let named = format!("tiny={c}");
        let args = ["-q", "compare", BF16, b, &named, a, "--text", HELDOUT, "--chunks", "2"];
        let (code, out, err) = requant(&[&args[..], &["--format", format]].concat());
        assert_eq!(code, 0, "{err}");
        out
    };
    let text = shown("text");
    let places =
        ["\nmodel-Q8_0* ", "\ntiny* ", "\nmodel-Q2_K* "].map(|name| text.find(name).unwrap());
    assert!(places.is_sorted(), "the largest first: {text}");
    assert!(text.contains("tiny less model-Q8_0: KLD +"), "{text}");
    assert!(text.lines().skip(1).all(|line| line.chars().count() <= 80), "{text}");
    assert_eq!(shown("md").lines().filter(|line| line.starts_with("| ")).count(), 4);
    let csv = shown("csv");
    assert_eq!(csv.lines().count(), 4);
    assert!(csv.lines().all(|line| line.split(',').count() == 11), "{csv}");
    validate("compare", &serde_json::from_str(&shown("json")).unwrap());
}
