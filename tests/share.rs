//! Measurements that several machines share, that take some of a text, or of several texts; and given answers.
#![cfg(feature = "cli")]

mod common;

use common::{BF16, CALIBRATION, HELDOUT, TINY_R1, requant, validate};
use serde_json::Value;
use std::path::{Path, PathBuf};

fn quantized(dir: &Path, ty: &str) -> String {
    let path = dir.join(format!("{ty}.gguf")).into_os_string().into_string().unwrap();
    let (code, _, err) = requant(&["quantize", BF16, &path, ty, "-q"]);
    assert_eq!(code, 0, "{err}");
    path
}

/// Runs a command as so many shares, and gives their files, the last one first.
fn shares(dir: &Path, args: &[&str], n: u32) -> Vec<String> {
    let name = dir.join("part").into_os_string().into_string().unwrap();
    let parts = (1..=n).rev().map(|k| {
        let shard = format!("{k}/{n}");
        let (code, out, err) = requant(&[args, &["--shard", &shard, "--part", &name]].concat());
        assert!(code == 0 && out.is_empty(), "{args:?} {shard}: {err}");
        format!("{name}.{k}-of-{n}")
    });
    parts.collect()
}

fn join(parts: &[String], more: &[&str]) -> (i32, String, String) {
    let parts: Vec<&str> = parts.iter().map(String::as_str).collect();
    requant(&[&["join"], &parts[..], more].concat())
}

#[test]
fn shares_give_what_a_single_run_gives_to_the_digit() {
    let dir = tempfile::tempdir().unwrap();
    let (q2, q4) = (quantized(dir.path(), "Q2_K"), quantized(dir.path(), "Q4_1"));
    let base = dir.path().join("base.kld").into_os_string().into_string().unwrap();
    let text = ["--text", HELDOUT, "--text", CALIBRATION, "--chunks", "5", "--ctx", "128"];
    let run = |args: &[&str]| {
        let (code, out, err) = requant(args);
        assert!(code == 0 || code == 3, "{err}");
        (code, out)
    };
    run(&[&["compare", BF16, "--save-base", &base, "-q"], &text[..2], &text[4..]].concat());
    let with_text = |args: &[&str]| -> Vec<String> {
        args.iter().chain(&text).map(|&arg| arg.to_owned()).collect()
    };
    // More shares than chunks leave some empty.
    let cases = [
        (with_text(&["perplexity", TINY_R1]), 3),
        (with_text(&["compare", TINY_R1, &q2, &q4, "--by-tensor"]), 4),
        (with_text(&["compare", TINY_R1, &q4, "--activations", "q8"]), 2),
        (["compare", "--base", &base, &q2].map(str::to_owned).to_vec(), 7),
        (with_text(&["gate", BF16, &q2, "--max-kld", "0.01", "--seed", "7"]), 3),
    ];
    for (args, n) in cases {
        let args: Vec<&str> = args.iter().map(String::as_str).collect();
        let folder = tempfile::tempdir_in(dir.path()).unwrap();
        // Another number of threads, and batches of other sizes.
        let other = [&args[..], &["-q", "-j", "1"]].concat();
        let parts = shares(folder.path(), &other, n);
        let single = run(&[&args[..], &["--json", "-q", "--memory", "340M"]].concat());
        let (code, joined, err) = join(&parts, &["--json"]);
        assert_eq!(
            (code, common::result(&joined)),
            (single.0, common::result(&single.1)),
            "{args:?} {err}"
        );
        let json: Value = serde_json::from_str(&joined).unwrap();
        validate(args[0], &json);
        // People read the same as well.
        let single = run(&[&args[..], &["-q"]].concat());
        assert_eq!(join(&parts, &[]).1, single.1);
    }
}

#[test]
fn shares_of_importances_give_the_file_of_a_single_run() {
    let dir = tempfile::tempdir().unwrap();
    let at = |name: &str| dir.path().join(name).into_os_string().into_string().unwrap();
    let (one, joined) = (at("one.gguf"), at("joined.gguf"));
    let args = ["imatrix", TINY_R1, "--text", CALIBRATION, "--ctx", "64", "--chunks", "7", "-q"];
    let (code, _, err) = requant(&[&args[..], &["-o", &one]].concat());
    assert_eq!(code, 0, "{err}");
    let parts = shares(dir.path(), &args, 3);
    let (code, _, err) = join(&parts, &["-o", &joined]);
    assert_eq!(code, 0, "{err}");
    assert!(std::fs::read(&one).unwrap() == std::fs::read(&joined).unwrap());
    let (code, _, err) = join(&parts, &["-o", &joined]);
    assert!(code == 1 && err.contains("--force"), "{err}");
}

#[test]
fn shares_of_a_search_give_the_sensitivities_of_a_single_run() {
    let dir = tempfile::tempdir().unwrap();
    let at = |name: &str| dir.path().join(name).into_os_string().into_string().unwrap();
    let text = ["--text", CALIBRATION, "--ctx", "64", "--chunks", "6", "--types", "Q3_K,Q8_0"];
    let plain = [&["mix", BF16, "-q"], &text[..]].concat();
    let with = ["--calibrate", CALIBRATION, "--calibrate-chunks", "2"];
    let calibrated = [&plain[..], &with].concat();
    let searches = [("plain", &plain), ("calibrated", &calibrated)].map(|(name, args)| {
        let (one, joined) = (at(&format!("{name}.one")), at(&format!("{name}.joined")));
        let (code, _, err) = requant(&[&args[..], &["--sensitivities", &one, "--curve"]].concat());
        assert_eq!(code, 0, "{err}");
        let folder = dir.path().join(name);
        std::fs::create_dir(&folder).unwrap();
        let parts = shares(&folder, args, 3);
        assert_eq!(std::fs::read_dir(folder).unwrap().count(), 3);
        let (code, out, err) = join(&parts, &["-o", &joined, "--json", "-q"]);
        assert_eq!(code, 0, "{err}");
        validate("mix", &serde_json::from_str(&out).unwrap());
        assert!(std::fs::read(&one).unwrap() == std::fs::read(&joined).unwrap(), "{name}");
        parts
    });
    let joined = at("plain.joined");
    let known = ["--sensitivities", &joined, "--types", "Q3_K,Q8_0", "--bpw", "4", "--no-proof"];
    let (code, _, err) =
        requant(&[&["mix", BF16, "-o", &at("mix.toml"), "-q"], &known[..]].concat());
    assert_eq!(code, 0, "{err}");

    let [parts, others] = &searches;
    let refused = |parts: &[String], words: &[&str]| {
        let (code, out, err) = join(parts, &["-o", &at("none")]);
        assert!(code == 1 && out.is_empty(), "{out}{err}");
        words.iter().for_each(|word| assert!(err.contains(word), "{word}: {err}"));
    };
    refused(&parts[..2], &["part.3-of-3", "1/3", "is missing"]);
    refused(&[&parts[..], &parts[..1]].concat(), &["the same share, 3/3"]);
    refused(&[&parts[..2], &others[2..]].concat(), &["chunks", "3 there and 2 here"]);
    let mut fewer = calibrated.clone();
    *fewer.last_mut().unwrap() = "1";
    let fewer = shares(dir.path(), &fewer, 3);
    refused(&[&others[..2], &fewer[2..]].concat(), &["text that weights are rounded with"]);
    let of_text = ["perplexity", BF16, "--text", HELDOUT, "--chunks", "3", "--ctx", "64", "-q"];
    let folder = dir.path().join("text");
    std::fs::create_dir(&folder).unwrap();
    let of_text = shares(&folder, &of_text, 3);
    refused(&[&parts[..2], &of_text[2..]].concat(), &["measurement", "sensitivities there"]);
    assert_eq!(join(parts, &[]).0, 2, "there is no name that the file has by itself");

    // A share that is there is not measured again, and another one's not replaced.
    let again = |args: &[&str]| {
        let loud: Vec<&str> = args.iter().copied().filter(|&arg| arg != "-q").collect();
        requant(&[&loud[..], &["--shard", "1/3", "--part", &at("plain/part")]].concat())
    };
    let (code, _, err) = again(&plain);
    assert!(code == 0 && err.contains("is there already"), "{err}");
    let (code, _, err) = again(&calibrated);
    assert!(code == 1 && err.contains("no such share"), "{err}");
    let (code, _, err) = again(&[&plain[..], &["--size", "9M"]].concat());
    assert!(code == 2 && err.contains("--size"), "{err}");
}

#[test]
fn shares_that_are_no_whole_are_refused_by_name() {
    let dir = tempfile::tempdir().unwrap();
    let folder = |name: &str| {
        let path = dir.path().join(name);
        std::fs::create_dir(&path).unwrap();
        path
    };
    let q4 = quantized(dir.path(), "Q4_0");
    let args = |model: &'static str, ctx: &'static str| {
        vec!["perplexity", model, "--text", HELDOUT, "--chunks", "4", "--ctx", ctx, "-q"]
    };
    let parts = shares(&folder("a"), &args(BF16, "64"), 3);
    let refused = |parts: &[String], words: &[&str]| {
        let (code, out, err) = join(parts, &[]);
        assert!(code == 1 && out.is_empty(), "{out}{err}");
        words.iter().for_each(|word| assert!(err.contains(word), "{word}: {err}"));
    };
    refused(&parts[..1], &["part.3-of-3", "1/3, 2/3", "are missing"]);
    refused(&[&parts[..], &parts[1..2]].concat(), &["part.2-of-3", "the same share, 2/3"]);
    let mut others = Vec::new();
    for (i, (args, words)) in [
        (args(BF16, "32"), ["tokens per chunk", "is 64 there and 32 here"]),
        (
            vec!["perplexity", &q4, "--text", HELDOUT, "--chunks", "4", "--ctx", "64", "-q"],
            ["model 1", "here"],
        ),
        (
            [args(BF16, "64"), vec!["--activations", "q8"]].concat(),
            ["activations", "f32 there and q8"],
        ),
        (
            vec!["perplexity", BF16, "--text", CALIBRATION, "--chunks", "4", "--ctx", "64", "-q"],
            ["text", "here"],
        ),
        (
            [args(BF16, "64"), vec!["--simd", "portable"]].concat(),
            ["instructions", "portable here"],
        ),
    ]
    .into_iter()
    .enumerate()
    {
        let other = shares(&folder(&i.to_string()), &args, 3);
        refused(&[&parts[..2], &other[2..]].concat(), &words);
        others.push(other);
    }
    refused(
        &[&parts[..2], &shares(&folder("b"), &args(BF16, "64"), 4)[..1]].concat(),
        &["number of shares"],
    );
    // A model at another place is the same model.
    let moved = dir.path().join("moved.gguf");
    std::fs::copy(BF16, &moved).unwrap();
    let mut same = args(BF16, "64");
    same[1] = moved.to_str().unwrap();
    let moved = shares(&folder("c"), &same, 3);
    assert_eq!(join(&[&parts[..2], &moved[2..]].concat(), &[]).0, 0);
    // A share that is there is not measured again, and another one's not replaced.
    let again = |args: &[&str]| {
        let name = dir.path().join("a/part");
        let part = ["--shard", "1/3", "--part", name.to_str().unwrap()];
        let loud: Vec<&str> = args.iter().copied().filter(|&arg| arg != "-q").collect();
        requant(&[&loud[..], &part].concat())
    };
    let (code, _, err) = again(&args(BF16, "64"));
    assert!(code == 0 && err.contains("is there already"), "{err}");
    let (code, _, err) = again(&args(BF16, "32"));
    assert!(code == 1 && err.contains("no such share"), "{err}");
    // Damage is an error, whatever it does.
    let bytes = std::fs::read(&parts[0]).unwrap();
    let damaged = dir.path().join("damaged").into_os_string().into_string().unwrap();
    let mut cut: Vec<Vec<u8>> = (0..12).map(|i| bytes[..i * bytes.len() / 12].to_vec()).collect();
    for (from, to) in [("ctx\\\":64", "ctx\\\":66"), ("chunks\\\":4", "chunks\\\":0")] {
        let text = String::from_utf8_lossy(&bytes).into_owned();
        let at = text.find(from).unwrap_or_else(|| panic!("{from}"));
        let mut changed = bytes.clone();
        changed[at..at + to.len()].copy_from_slice(to.as_bytes());
        cut.push(changed);
    }
    cut.push(std::fs::read(BF16).unwrap());
    for bytes in cut {
        std::fs::write(&damaged, bytes).unwrap();
        refused(std::slice::from_ref(&damaged), &["damaged: "]);
    }
}

#[test]
fn chunks_are_taken_until_the_error_is_small() {
    let dir = tempfile::tempdir().unwrap();
    let q4 = quantized(dir.path(), "Q4_K_M");
    let run = |args: &[&str]| -> Value {
        let text = ["--text", HELDOUT, "--ctx", "64", "--json", "-q"];
        let (code, out, err) = requant(&[args, &text].concat());
        assert_eq!(code, 0, "{err}");
        validate(args[0], &serde_json::from_str(&out).unwrap());
        common::result(&out)
    };
    let compared = run(&["compare", BF16, &q4, "--until-error", "15%"]);
    let sampling = &compared["sampling"];
    let number = |value: &Value| value.as_f64().unwrap();
    let (error, n) = (number(&sampling["error"]), number(&sampling["chunks"]));
    assert!(error <= 0.15 && n < number(&sampling["chunks_available"]), "{sampling}");
    let kl = &compared["models"][0]["result"]["kl_divergence"];
    let (mean, by_chunk) = (number(&kl["mean"]["value"]), number(&kl["mean_error_by_chunk"]));
    assert!((by_chunk / mean - error).abs() < 1e-9);
    // Of the same seed the same; of all chunks near to it.
    assert_eq!(run(&["compare", BF16, &q4, "--until-error", "15%"]), compared);
    assert_ne!(run(&["compare", BF16, &q4, "--until-error", "0.15", "--seed", "1"]), compared);
    let whole = run(&["compare", BF16, &q4]);
    let of_all = number(&whole["models"][0]["result"]["kl_divergence"]["mean"]["value"]);
    assert!((mean - of_all).abs() < 4.0 * by_chunk, "{mean} {of_all} {by_chunk}");
    let alone = run(&["perplexity", BF16, "--until-error", "5%"]);
    assert!(number(&alone["sampling"]["error"]) <= 0.05);
    // What cannot be reached takes all of the text, in its order.
    let mut exhausted = run(&["compare", BF16, &q4, "--until-error", "0.01%"]);
    exhausted.as_object_mut().unwrap().remove("sampling");
    assert_eq!(exhausted, whole);
}

#[test]
fn several_texts_have_figures_of_their_own() {
    let run = |texts: &[&str]| -> Value {
        let texts = texts.iter().flat_map(|text| ["--text", text]).collect::<Vec<_>>();
        let args = ["compare", BF16, TINY_R1, "--chunks", "3", "--ctx", "64", "--json", "-q"];
        let (code, out, err) = requant(&[&args[..], &texts].concat());
        assert_eq!(code, 0, "{err}");
        serde_json::from_str(&out).unwrap()
    };
    let both = run(&[HELDOUT, CALIBRATION]);
    validate("compare", &both);
    assert_eq!(both["reference_perplexity"]["nll_per_chunk"].as_array().unwrap().len(), 6);
    for (i, text) in [HELDOUT, CALIBRATION].into_iter().enumerate() {
        let alone = run(&[text]);
        let domain = &both["domains"][i];
        assert_eq!(domain["text"], text);
        assert_eq!(domain["reference_perplexity"], alone["reference_perplexity"]);
        let (mut own, mut of_alone) =
            (domain["models"][0].clone(), alone["models"][0]["result"].clone());
        for result in [&mut own, &mut of_alone] {
            result.as_object_mut().unwrap().remove("layer_error");
        }
        assert_eq!(own, of_alone);
    }
}

#[test]
fn given_answers_are_chosen_by_their_probability() {
    let dir = tempfile::tempdir().unwrap();
    let q2 = quantized(dir.path(), "Q2_K");
    let at = |name: &str| -> PathBuf { dir.path().join(name) };
    let file = at("tasks.jsonl");
    // What a text really goes on with, among pieces of it.
    let text = std::fs::read_to_string(HELDOUT).unwrap();
    let words: Vec<&str> = text.split_whitespace().collect();
    let piece = |at: usize, n: usize| words[at..at + n].join(" ");
    let lines = (0..40).map(|i| {
        let (begin, answer) = (40 * i, i % 3);
        let mut choices = [piece(begin + 900, 6), piece(begin + 1700, 6), piece(begin + 2500, 6)];
        choices[answer] = piece(begin + 12, 6);
        let domain = if i % 2 == 0 { "even" } else { "odd" };
        serde_json::json!({ "context": piece(begin, 12), "choices": choices, "answer": answer, "domain": domain })
    });
    let lines: Vec<String> = lines.map(|line| line.to_string()).collect();
    std::fs::write(&file, lines.join("\n")).unwrap();
    let file = file.to_str().unwrap();
    let run = |args: &[&str]| -> Value {
        let (code, out, err) = requant(&[args, &["--choices", file, "--json", "-q"]].concat());
        assert_eq!(code, 0, "{err}");
        serde_json::from_str(&out).unwrap()
    };
    let alone = run(&["compare", BF16, &q2]);
    validate("choices", &alone);
    let models = alone["choices"]["models"].as_array().unwrap();
    assert_eq!((models.len(), alone["choices"]["tasks"].as_u64()), (2, Some(40)));
    assert_eq!(models[0]["same_as_first"], 1.0);
    assert_eq!(models[0]["domains"]["odd"]["tasks"], 20);
    let with_text = run(&["compare", BF16, &q2, "--text", HELDOUT, "--chunks", "2"]);
    validate("compare", &with_text);
    assert_eq!(with_text["choices"], alone["choices"]);
    let some = run(&["perplexity", BF16, "--tasks", "10"]);
    assert_eq!(some["choices"]["tasks"], 10);

    // Shares, in any order, are the whole, and none of them another measurement's.
    let name = at("answers");
    let name = name.to_str().unwrap();
    let share = |k: &str, more: &[&str]| {
        let args = ["compare", BF16, &q2, "--choices", file, "--part", name, "-q", "--shard", k];
        requant(&[&args, more].concat())
    };
    for k in ["3/3", "1/3", "2/3", "2/3"] {
        assert_eq!(share(k, &[]).0, 0);
    }
    let parts = [2, 3, 1].map(|k| format!("{name}.{k}-of-3"));
    let parts: Vec<&str> = parts.iter().map(String::as_str).collect();
    let (code, joined, err) = requant(&[&["join", "--json", "-q"], &parts[..]].concat());
    assert_eq!(code, 0, "{err}");
    assert_eq!(common::result(&joined), common::result(&alone.to_string()));
    let (code, table, _) = requant(&[&["join", "-q"], &parts[..]].concat());
    assert!(code == 0 && table.starts_with("40 tasks of "), "{table}");
    let (code, _, err) = requant(&[&["join", "-q"], &parts[..2]].concat());
    assert!(code == 1 && err.contains("1/3 of the measurement"), "{err}");
    let (code, _, err) = share("2/3", &["--tasks", "12"]);
    assert!(code == 1 && err.contains("no such share"), "{err}");
    let (code, _, err) = share("1/2", &["--text", HELDOUT]);
    assert!(code == 2 && err.contains("run them once for each"), "{err}");

    let said = run(&["compare", BF16, &q2, "--dry-run"]);
    validate("estimate", &said);
    let said = |what: &str| said["estimate"][what].as_f64().unwrap();
    assert!(said("processor_seconds") > 0.0 && said("memory_bytes") > 1e6);
    assert!(said("tokens") >= 40.0 * 3.0 * 18.0, "{}", said("tokens"));
}

#[test]
fn as_many_answers_are_right_as_llama_perplexity_says() {
    let expected = common::json("tests/fixtures/choices/accuracies.json");
    for (file, expected) in expected.as_object().unwrap() {
        let file = format!("tests/fixtures/choices/{file}");
        // In f32, one answer of Winogrande's form is another.
        let args = ["perplexity", BF16, "--choices", &file, "--activations", "q8", "--json", "-q"];
        let (code, out, err) = requant(&args);
        assert_eq!(code, 0, "{err}");
        let found: Value = serde_json::from_str(&out).unwrap();
        let found = &found["choices"];
        assert_eq!(found["tasks"], expected["tasks"]);
        let accuracy = |value: &Value| value["accuracy"].as_f64().unwrap();
        assert!((accuracy(&found["models"][0]) - accuracy(expected)).abs() < 1e-6, "{file}: {out}");
    }
}

#[test]
fn what_a_measurement_will_take_is_said_and_nothing_is_measured() {
    let dir = tempfile::tempdir().unwrap();
    let out = dir.path().join("im.gguf");
    let out = out.to_str().unwrap();
    let cases: [&[&str]; 4] = [
        &["perplexity", TINY_R1],
        &["compare", TINY_R1, BF16, "--by-tensor"],
        &["gate", TINY_R1, BF16, "--max-kld", "1"],
        &["imatrix", BF16, "-o", out],
    ];
    for args in cases {
        let more = ["--text", HELDOUT, "--chunks", "8", "--dry-run", "--json", "-q"];
        let (code, found, err) = requant(&[args, &more].concat());
        assert_eq!(code, 0, "{err}");
        let json: Value = serde_json::from_str(&found).unwrap();
        validate("estimate", &json);
        let estimate = &json["estimate"];
        assert_eq!(estimate["tokens"], 8 * 512);
        assert!(estimate["processor_seconds"].as_f64().unwrap() > 0.0);
        assert!(estimate["read_bytes"].as_u64().unwrap() > 1 << 20);
    }
    assert_eq!(std::fs::read_dir(dir.path()).unwrap().count(), 0);
}
