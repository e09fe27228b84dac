//! `quantize` against llama-quantize: whole files, for every type and for options.
#![cfg(feature = "cli")]

mod common;

use assert_cmd::cargo::CommandCargoExt;
use common::json;
use sha2::{Digest, Sha256};
use std::process::Command;

/// Runs `requant quantize` where the goldens' file names are relative to.
fn quantize(arguments: &str) -> (Option<i32>, Option<String>, String) {
    let dir = tempfile::tempdir().unwrap();
    let output = dir.path().join("out.gguf");
    let (options, ty) = arguments.rsplit_once(' ').unwrap_or(("", arguments));
    let run = Command::cargo_bin("requant")
        .unwrap()
        .current_dir("tests/fixtures/reference")
        .args(["quantize", "tiny-r1-bf16.gguf", output.to_str().unwrap(), ty, "-q"])
        .args(options.split_whitespace())
        .output()
        .unwrap();
    let hash = std::fs::read(&output).ok().map(|bytes| {
        Sha256::digest(bytes).iter().map(|byte| format!("{byte:02x}")).collect::<String>()
    });
    (run.status.code(), hash, String::from_utf8(run.stderr).unwrap())
}

#[test]
fn whole_files_equal_llama_quantizes() {
    let goldens = json("tests/fixtures/goldens/quantize.json");
    for (arguments, golden) in goldens.as_object().unwrap() {
        let (code, hash, err) = quantize(arguments);
        match golden.as_str() {
            Some(golden) => {
                assert_eq!(code, Some(0), "{arguments}: {err}");
                assert_eq!(hash.as_deref(), Some(golden), "{arguments}");
            }
            None => {
                assert_eq!((code, hash), (Some(1), None), "{arguments} is refused");
                assert!(err.contains("importance matrix"), "{arguments}: {err}");
            }
        }
    }
}

#[test]
fn quantized_tensors_are_not_quantized_again_unasked() {
    let dir = tempfile::tempdir().unwrap();
    let [once, twice] = ["once.gguf", "twice.gguf"].map(|name| dir.path().join(name));
    let requant = |from: &str, to: &std::path::Path, ty: &str, options: &[&str]| {
        let to = to.to_str().unwrap();
        let mut command = Command::cargo_bin("requant").unwrap();
        command.args(["quantize", from, to, ty, "-q"]).args(options).output().unwrap()
    };
    let source = "tests/fixtures/reference/tiny-r1-bf16.gguf";
    assert!(requant(source, &once, "Q8_0", &[]).status.success());
    let from = once.to_str().unwrap();
    let refused = requant(from, &twice, "Q4_0", &[]);
    assert_eq!(refused.status.code(), Some(1));
    assert!(String::from_utf8(refused.stderr).unwrap().contains("--allow-requantize"));
    assert!(requant(from, &twice, "Q4_0", &["--allow-requantize"]).status.success());
    // What has its type already is copied as it is.
    let copy = dir.path().join("copy.gguf");
    assert!(requant(from, &copy, "Q8_0", &[]).status.success());
    assert!(std::fs::read(once).unwrap() == std::fs::read(copy).unwrap());
}
