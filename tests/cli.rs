//! The program as its users see it: the README's command, streams, exit codes.
#![cfg(feature = "cli")]

mod common;

use assert_cmd::cargo::CommandCargoExt;
use common::{BF16, HELDOUT, TINY_R1, validate};
use requant::gguf::GgufFile;
use std::path::Path;
use std::process::{Command, Output, Stdio};

fn requant(args: &[&str]) -> Output {
    Command::cargo_bin("requant").unwrap().args(args).output().unwrap()
}

fn text(bytes: &[u8]) -> String {
    String::from_utf8(bytes.to_vec()).unwrap()
}

#[test]
fn the_main_job_plans_converts_and_measures() {
    let dir = tempfile::tempdir().unwrap();
    let output = dir.path().join("tiny-r1-Q4_K_M.gguf");
    let path = output.to_str().unwrap();
    let args = ["convert", TINY_R1, path, "--type", "Q4_K_M", "--evaluate", HELDOUT];
    let run = requant(&[&args[..], &["--chunks", "4", "--scratch", "no/such/folder"]].concat());
    assert!(text(&run.stderr).contains("not a folder"));
    assert_eq!(
        std::fs::read_dir(dir.path()).unwrap().count(),
        0,
        "said before anything is written"
    );

    let scratch = tempfile::tempdir().unwrap();
    let folder = scratch.path().to_str().unwrap();
    let run = requant(&[&args[..], &["--chunks", "4", "--scratch", folder]].concat());
    assert_eq!(std::fs::read_dir(folder).unwrap().count(), 0, "nothing is left");
    let (out, err) = (text(&run.stdout), text(&run.stderr));
    assert_eq!(run.status.code(), Some(0), "{err}");
    let size = std::fs::metadata(&output).unwrap().len();
    assert!(err.contains(&format!("= {size} bytes")), "the plan is exact: {err}");
    assert!(err.contains("--mtp keep"), "{err}");
    assert!(err.contains("Q5_0 instead of Q4_K"), "{err}");
    assert!(out.contains("Q4_K_M") && out.contains("±") && out.contains("1020 tokens"), "{out}");
    assert_eq!(std::fs::read_dir(dir.path()).unwrap().count(), 1);

    let again = requant(&args);
    assert_eq!(again.status.code(), Some(1));
    assert!(text(&again.stderr).contains("--force"));
    assert_eq!(std::fs::metadata(&output).unwrap().len(), size);
}

#[test]
fn json_is_alone_on_standard_output() {
    let dir = tempfile::tempdir().unwrap();
    let output = dir.path().join("out.gguf");
    let path = output.to_str().unwrap();
    let args = ["convert", TINY_R1, path, "-t", "q8_0", "--json", "--evaluate", HELDOUT];
    let run = requant(&[&args[..], &["--chunks", "2"]].concat());
    let json: serde_json::Value = serde_json::from_slice(&run.stdout).unwrap();
    assert_eq!(json["file_bytes"], std::fs::metadata(&output).unwrap().len());
    assert!(json["evaluation"]["paired"]["difference_error"].as_f64().unwrap() > 0.0);

    let run = requant(&["perplexity", path, "--text", HELDOUT, "--chunks", "2", "--json"]);
    let json: serde_json::Value = serde_json::from_slice(&run.stdout).unwrap();
    assert_eq!(json["nll_per_chunk"].as_array().unwrap().len(), 2);
    assert_eq!(json["tokens_scored"], 510);
    let mean = json["mean_nll"].as_f64().unwrap();
    assert!((json["perplexity"].as_f64().unwrap() / mean.exp() - 1.0).abs() < 1e-12);
    assert!(json["perplexity_error"].as_f64().unwrap() > 0.0);
}

#[test]
fn bad_usage_exits_with_2_and_failure_with_1() {
    for args in [
        &["convert", TINY_R1][..],
        &["convert", TINY_R1, "out.gguf", "--type", "Q4KM"],
        &["perplexity", TINY_R1],
        &["compare", TINY_R1, "--text", HELDOUT],
        &["split", BF16, "out"],
        &["imatrix"],
        &["convert", TINY_R1, "out.gguf", "-t", "Q8_0", "--shard", "1/2"],
        &["perplexity", TINY_R1, "--text", HELDOUT, "--shard", "3/2", "--part", "a"],
        &["frobnicate"],
    ] {
        let run = requant(args);
        assert_eq!(run.status.code(), Some(2), "{args:?}");
        assert!(run.stdout.is_empty());
    }
    for args in [
        &["convert", "no/such/folder", "out.gguf", "--type", "Q8_0"][..],
        &["perplexity", "no/such/file.gguf", "--text", HELDOUT],
        &["perplexity", HELDOUT, "--text", HELDOUT],
        &["perplexity", TINY_R1, "--text", "no/such/text"],
        &["perplexity", TINY_R1, "--text", "tests/fixtures/reference/imatrix.dat"],
        &["convert", TINY_R1, "/no/such/folder/out.gguf", "--type", "Q8_0", "-q"],
        &["compare", BF16, BF16, "--text", HELDOUT, "--report", "/no/such/folder/a.html"],
        &["imatrix", BF16, "--text", HELDOUT, "-o", "tests"],
    ] {
        let run = requant(args);
        let err = text(&run.stderr);
        assert_eq!(run.status.code(), Some(1), "{args:?}");
        assert!(err.starts_with("requant: ") && err.lines().count() == 1, "{err}");
    }
}

#[test]
fn an_error_is_json_where_results_are() {
    for (args, code) in [
        (&["perplexity", TINY_R1, "--text", "no/such/text", "--json"][..], 1),
        (&["perplexity", TINY_R1, "--json"], 2),
        (&["perplexity", TINY_R1, "--no-such-option", "--json"], 2),
    ] {
        let run = requant(args);
        assert_eq!(run.status.code(), Some(code), "{args:?}");
        let json = serde_json::from_slice(&run.stdout).unwrap();
        validate("error", &json);
        assert!(text(&run.stderr).contains(json["error"].as_str().unwrap()), "{json}");
    }
}

#[test]
fn results_are_said_before_a_page_is_written() {
    let dir = tempfile::tempdir().unwrap();
    let page = dir.path().join("new/page.html");
    let path = page.to_str().unwrap();
    let args = ["compare", BF16, BF16, "--text", HELDOUT, "--chunks", "2", "--report", path];
    assert_eq!(requant(&args).status.code(), Some(0));
    assert!(page.exists(), "its folder was made");
    std::fs::remove_file(&page).unwrap();
    // What makes the page fail in the end cannot be known before.
    std::fs::create_dir(dir.path().join("new/page.html.part")).unwrap();
    let run = requant(&args);
    assert_eq!(run.status.code(), Some(1));
    assert!(text(&run.stdout).contains("mean KL divergence"), "{}", text(&run.stdout));
    assert!(text(&run.stderr).contains("page.html.part"), "{}", text(&run.stderr));
}

#[test]
#[cfg(unix)]
fn a_gate_that_is_told_to_stop_says_what_it_has() {
    let model = "tests/fixtures/reference/tiny-r1-bf16.gguf";
    let args = ["gate", TINY_R1, model, "--text", HELDOUT, "--max-kld", "1e-9", "--json"];
    let child = Command::cargo_bin("requant").unwrap().args(args).stdout(Stdio::piped()).spawn();
    let child = child.unwrap();
    // Handlers stand long before the text is read, and all chunks take longer than this.
    std::thread::sleep(std::time::Duration::from_millis(300));
    let id = rustix::process::Pid::from_child(&child);
    rustix::process::kill_process(id, rustix::process::Signal::TERM).unwrap();
    let run = child.wait_with_output().unwrap();
    let json: serde_json::Value = serde_json::from_slice(&run.stdout).unwrap();
    match run.status.code() {
        Some(4) => {
            validate("gate", &json);
            assert_eq!(json["complete"], false);
        }
        // The signal came while models were opened, or late.
        code => assert!([Some(3), Some(130)].contains(&code), "{json}"),
    }
}

#[test]
fn options_of_the_reference_are_taken_or_refused_by_name() {
    for (option, words) in [
        ("--mistral-format", "transformers writes it"),
        ("--fuse-gate-up-exps", "fails with it"),
        ("--outfile", "follows the checkpoint"),
        ("--remote", "hf://"),
        ("--no-mtp", "--mtp drop"),
    ] {
        let run = requant(&["convert", TINY_R1, "out.gguf", "--outtype", "bf16", option]);
        let err = text(&run.stderr);
        assert_eq!(run.status.code(), Some(2), "{err}");
        assert!(err.contains(option) && err.contains(words), "{err}");
    }
    let taken = ["--no-lazy", "--use-temp-file", "--model-name", "x", "--dry-run"];
    let run =
        requant(&[&["convert", TINY_R1, "out.gguf", "--outtype", "bf16"], &taken[..]].concat());
    assert_eq!(run.status.code(), Some(0), "{}", text(&run.stderr));
    let run = requant(&["convert", TINY_R1, "out.gguf", "--type", "Q8_0", "--fp8-as-q8"]);
    assert_eq!(run.status.code(), Some(2), "{}", text(&run.stderr));
}

#[test]
fn what_is_kept_without_loss_is_said_and_verified() {
    let dir = tempfile::tempdir().unwrap();
    let copy = |from: &str, name: &str| {
        let from = Path::new("tests/fixtures").join(from).join(name);
        std::fs::copy(from, dir.path().join(name)).unwrap();
    };
    copy("nvfp4/llama", "config.json");
    copy("nvfp4/llama", "model.safetensors");
    copy("tiny-r1", "tokenizer.json");
    copy("tiny-r1", "tokenizer_config.json");
    let file = dir.path().join("lossless.gguf");
    let [folder, file] = [dir.path(), &file].map(|path| path.to_str().unwrap());
    let run = requant(&["convert", folder, file, "--type", "lossless"]);
    let err = text(&run.stderr);
    assert_eq!(run.status.code(), Some(0), "{err}");
    assert!(err.contains("as NVFP4, code for code"), "{err}");
    assert!(err.contains("no type has the codes of"), "FP8 is kept as floats: {err}");
    let run = requant(&["verify", file, "--against", folder]);
    assert_eq!(run.status.code(), Some(0), "{}", text(&run.stderr));
    assert!(text(&run.stdout).contains("all equal"), "{}", text(&run.stdout));
    let more = ["convert", folder, "x.gguf", "--type", "lossless", "--tensor-type", "attn=Q8_0"];
    let run = requant(&more);
    assert_eq!(run.status.code(), Some(2));
    assert!(text(&run.stderr).contains("takes no other types"), "{}", text(&run.stderr));
}

#[test]
fn a_text_may_come_from_standard_input_and_types_are_listed() {
    let mut command = Command::cargo_bin("requant").unwrap();
    command.args(["perplexity", BF16, "--text", "-", "--chunks", "1", "-j", "2"]);
    let text_of = std::fs::File::open(HELDOUT).unwrap();
    let run = command.stdin(text_of).output().unwrap();
    let from_file = requant(&["perplexity", BF16, "--text", HELDOUT, "--chunks", "1"]);
    assert_eq!(text(&run.stdout), text(&from_file.stdout));
    let (types, list) = (requant(&["types"]), requant(&["recipe", "list"]));
    assert_eq!(text(&types.stdout), text(&list.stdout));
    let types = text(&types.stdout);
    assert!(types.contains("Q4_K_M") && types.lines().all(|line| line.chars().count() <= 80));
    let completions = text(&requant(&["completions", "bash"]).stdout);
    assert!(completions.contains("IQ4_XS") && completions.contains("lossless"));
}

#[test]
fn output_and_type_are_words_or_options_everywhere() {
    let dir = tempfile::tempdir().unwrap();
    let at = |name: &str| dir.path().join(name).to_str().unwrap().to_owned();
    let [a, b, c, d] = ["a", "b", "c", "d"].map(|name| at(&format!("{name}.gguf")));
    for args in [
        ["convert", TINY_R1, &a, "Q8_0", "-q"],
        ["convert", TINY_R1, "-tQ8_0", &format!("-o{b}"), "-q"],
        ["quantize", BF16, &c, "Q8_0", "-q"],
        ["quantize", BF16, "-tQ8_0", &format!("-o{d}"), "-q"],
    ] {
        let run = requant(&args);
        assert_eq!(run.status.code(), Some(0), "{args:?}: {}", text(&run.stderr));
    }
    let bytes = |path: &String| std::fs::read(path).unwrap();
    assert!(bytes(&a) == bytes(&b) && bytes(&c) == bytes(&d));
    let parts = at("parts");
    let cut = requant(&["split", &a, "-o", &parts, "--split-max-size", "3M", "-q"]);
    assert_eq!(cut.status.code(), Some(0), "{}", text(&cut.stderr));
    for args in [
        &["convert", TINY_R1, "Q8_0"][..],
        &["convert", TINY_R1, &a],
        &["convert", TINY_R1, &a, "Q8_0", "4"],
        &["quantize", BF16, "Q8_0", &a],
        &["quantize", BF16, &a],
        &["split", &a, "--split-max-size", "3M"],
    ] {
        assert_eq!(requant(args).status.code(), Some(2), "{args:?}");
    }
    let help = text(&requant(&["merge", "--help"]).stdout);
    assert!(!help.contains("--split-max-size") && !help.contains("--shard"), "{help}");
    assert!(!text(&requant(&["plan", "--help"]).stdout).contains("--manifest"));
    assert!(!text(&requant(&["recipe", "show", "--help"]).stdout).contains("--write-recipe"));
}

#[test]
fn a_size_is_told_without_importances_and_room() {
    let run = requant(&["plan", TINY_R1, "IQ2_XS"]);
    let (out, err) = (text(&run.stdout), text(&run.stderr));
    assert_eq!(run.status.code(), Some(0), "{err}");
    assert!(out.contains("3435392 bytes") && err.contains("--imatrix"), "{out}{err}");
    assert!(!out.contains("blk.0.attn_norm.weight"), "{out}");
    let run = requant(&["plan", TINY_R1, "-t", "Q8_0", "--tensors"]);
    assert!(text(&run.stdout).contains("blk.0.attn_norm.weight"));
    let share = ["--split-max-size", "3M", "--shard", "1/2"];
    let run = requant(&[&["plan", TINY_R1, "x", "Q8_0"], &share[..]].concat());
    let out = text(&run.stdout);
    assert!(out.contains("share      1/2, 3 of 5 files, 7.2 MiB"), "{out}");
    assert!(out.contains("disk       7.2 MiB"), "{out}");
}

#[test]
#[cfg(unix)]
fn what_is_no_file_is_refused_at_once() {
    let dir = tempfile::tempdir().unwrap();
    let pipe = dir.path().join("pipe.gguf");
    assert!(Command::new("mkfifo").arg(&pipe).status().unwrap().success());
    for (path, expected) in [(pipe.as_path(), "no regular file"), (dir.path(), "is a folder")] {
        let path = path.to_str().unwrap();
        let run = requant(&["hash", path]);
        let err = text(&run.stderr);
        assert!(run.status.code() == Some(1) && err.contains(expected), "{err}");
        assert!(err.contains(path), "{err}");
    }
}

#[test]
fn a_similar_name_is_offered_after_a_typo() {
    let model = "tests/fixtures/reference/tiny-r1-bf16.gguf";
    for (args, expected) in [
        (&["inspect", model, "--tensor", "blk.0.atn_q_a.weight"][..], "blk.0.attn_q_a.weight"),
        (&["unset", model, "general.nam"], "general.name"),
        (&["quantize", model, "q4km"], "Q4_K_M"),
        (&["quantize", model, "no.gguf", "Q4_0", "--output-tensor-type", "q6k"], "Q6_K"),
        (&["set", model, "a=foo:1"], "unknown type `foo`; known: u8"),
        (&["quantize", TINY_R1, "no.gguf", "Q4_0"], "requant convert"),
        (&["convert", model, "no.gguf", "-t", "Q4_0"], "requant quantize"),
        (&["convert", "deepseek-ai/R1", "no.gguf", "-t", "Q4_0"], "hf://deepseek-ai/R1"),
        (&["perplexity", model, HELDOUT], "--text tests/fixtures/text/heldout.txt"),
        (&["compare", model, model, HELDOUT], "give texts with --text"),
        (&["perplexity", model, "-f", HELDOUT], "--text FILE"),
        (&["perplexity", model, "--text", HELDOUT, "-t", "2"], "-j N"),
        (&["gate", model, model, "--text", HELDOUT, "--min-same-top", "95"], "95% or 0.95"),
        (&["quantise"], "quantize"),
        (&["split", model, "no", "--split-max-sise", "1G"], "--split-max-size"),
    ] {
        let run = requant(args);
        let err = text(&run.stderr);
        assert!(!run.status.success() && err.contains(expected), "{args:?}: {err}");
    }
}

#[test]
#[cfg(target_os = "linux")]
fn a_full_disk_behind_a_stream_is_no_panic() {
    let full = || std::fs::OpenOptions::new().write(true).open("/dev/full").unwrap();
    for args in [&["recipe", "show", "Q4_K_M"][..], &["inspect", TINY_R1], &["completions", "zsh"]]
    {
        let mut command = Command::cargo_bin("requant").unwrap();
        let run = command.args(args).stdout(full()).output().unwrap();
        let err = text(&run.stderr);
        assert!(
            run.status.code() == Some(1) && err.starts_with("requant: standard output"),
            "{err}"
        );
        assert_eq!(err.lines().count(), 1, "{err}");
    }
    let dir = tempfile::tempdir().unwrap();
    let output = dir.path().join("out.gguf");
    let mut command = Command::cargo_bin("requant").unwrap();
    command.args(["convert", TINY_R1, output.to_str().unwrap(), "-t", "Q8_0"]).stderr(full());
    assert!(command.status().unwrap().success() && output.exists());
}

#[test]
fn a_reader_that_has_seen_enough_stops_nothing() {
    let dir = tempfile::tempdir().unwrap();
    let page = dir.path().join("page.html");
    let args = ["compare", BF16, BF16, "--text", HELDOUT, "--chunks", "2", "-q", "--report"];
    let mut command = Command::cargo_bin("requant").unwrap();
    let mut child = command.args(args).arg(&page).stdout(Stdio::piped()).spawn().unwrap();
    drop(child.stdout.take());
    assert_eq!(child.wait().unwrap().code(), Some(0));
    assert!(page.exists());
}

#[test]
fn a_dry_run_writes_nothing() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("out.gguf");
    let run = requant(&["convert", TINY_R1, path.to_str().unwrap(), "-t", "Q4_0", "--dry-run"]);
    assert_eq!(run.status.code(), Some(0));
    assert!(text(&run.stderr).contains("memory"));
    assert_eq!(std::fs::read_dir(dir.path()).unwrap().count(), 0);
}

#[test]
fn a_kept_prediction_layer_is_in_the_file() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("out.gguf");
    let path = path.to_str().unwrap();
    let run = requant(&["convert", TINY_R1, path, "-t", "Q8_0", "--mtp", "keep", "-q"]);
    assert_eq!(run.status.code(), Some(0));
    let file = GgufFile::open(Path::new(path)).unwrap();
    assert!(file.find("blk.3.nextn.eh_proj.weight").is_some());
    assert_eq!(file.metadata().u32("deepseek2.block_count").unwrap(), Some(4));
    assert_eq!(file.metadata().u32("deepseek2.nextn_predict_layers").unwrap(), Some(1));
    let run = requant(&["perplexity", path, "--text", HELDOUT, "--chunks", "1"]);
    assert_eq!(run.status.code(), Some(0), "the forward pass leaves it out");
}

#[test]
#[cfg(unix)]
fn an_interrupted_run_goes_on_with_the_same_command() {
    let dir = tempfile::tempdir().unwrap();
    let output = dir.path().join("out.gguf");
    let args = ["convert", TINY_R1, output.to_str().unwrap(), "-t", "Q6_K", "--threads", "1"];
    let mut child =
        Command::cargo_bin("requant").unwrap().args(args).stderr(Stdio::null()).spawn().unwrap();
    // As soon as the temporary file exists.
    while std::fs::read_dir(dir.path()).unwrap().count() == 0 {
        assert!(child.try_wait().unwrap().is_none(), "ended before it began to write");
        std::thread::yield_now();
    }
    let id = rustix::process::Pid::from_child(&child);
    rustix::process::kill_process(id, rustix::process::Signal::INT).unwrap();
    match child.wait().unwrap().code() {
        Some(130) => assert!(!output.exists(), "it has no name before it is complete"),
        // The signal came after the last weight.
        code => assert_eq!((code, output.exists()), (Some(0), true)),
    }
    std::fs::remove_file(&output).ok();
    let run = requant(&args);
    assert_eq!(run.status.code(), Some(0), "{}", text(&run.stderr));
    assert_eq!(std::fs::read_dir(dir.path()).unwrap().count(), 1);
}

#[test]
fn as_much_is_said_as_the_level_asks_for() {
    let dir = tempfile::tempdir().unwrap();
    let said = |level: &[&str]| {
        let output = dir.path().join("out.gguf");
        let mut command = Command::cargo_bin("requant").unwrap();
        command.args(["convert", TINY_R1]).arg(output).args(["--type", "Q4_K_M", "--force"]);
        let run = command.args(level).output().unwrap();
        assert!(run.status.success() && run.stdout.is_empty());
        String::from_utf8(run.stderr).unwrap()
    };
    assert_eq!(said(&["--quiet"]), "");
    assert_eq!(said(&["--log-level", "error"]), "");
    // That rows do not fit a type is part of the plan, not a warning.
    assert_eq!(said(&["--log-level", "warn", "--strict"]), "");
    let info = said(&[]);
    assert!(info.starts_with("source ") && info.contains("\nfallback "), "{info}");
    assert!(!info.contains("threads"), "{info}");
    let debug = said(&["--log-level", "debug"]);
    assert!(debug.contains(" threads,") && !debug.contains('\x1b'), "{debug}");
}
