//! llama-quantize's options: whole files equal its own.
#![cfg(feature = "cli")]

mod common;

use assert_cmd::cargo::CommandCargoExt;
use common::BF16;
use sha2::{Digest, Sha256};
use std::path::Path;
use std::process::Command;

fn quantize(output: &Path, file_type: &str, options: &[&str]) -> (bool, String) {
    let run = Command::cargo_bin("requant")
        .unwrap()
        .args(["quantize", BF16, output.to_str().unwrap(), file_type, "--force", "-q"])
        .args(options)
        .output()
        .unwrap();
    (run.status.success(), String::from_utf8(run.stderr).unwrap())
}

#[test]
fn files_equal_those_of_llama_quantize() {
    let dir = tempfile::tempdir().unwrap();
    let output = dir.path().join("out.gguf");
    let goldens = common::json("tests/fixtures/goldens/options.json");
    let goldens = goldens.as_array().unwrap();
    assert!(goldens.len() > 20);
    for golden in goldens {
        let options = golden["options"].as_array().unwrap();
        let options: Vec<&str> = options.iter().map(|o| o.as_str().unwrap()).collect();
        let file_type = golden["type"].as_str().unwrap();
        let (done, err) = quantize(&output, file_type, &options);
        assert!(done, "{file_type} {options:?}: {err}");
        let hash = Sha256::digest(as_pruned_by_llama_quantize(std::fs::read(&output).unwrap()));
        let hash: String = hash.iter().map(|b| format!("{b:02x}")).collect();
        assert_eq!(golden["sha256"], hash, "{file_type} {options:?}");
    }
}

/// llama-quantize leaves the number of dense layers as it was, where the only one is pruned as well:
/// the file does not load. It is all that is different.
fn as_pruned_by_llama_quantize(mut file: Vec<u8>) -> Vec<u8> {
    let key = b"deepseek2.leading_dense_block_count";
    let at = file.windows(key.len()).position(|bytes| bytes == key).unwrap() + key.len() + 4;
    file[at] = 1;
    file
}

#[test]
fn what_fits_nothing_is_an_error() {
    let dir = tempfile::tempdir().unwrap();
    let output = dir.path().join("out.gguf");
    for (options, expected) in [
        (&["--tensor-type", "attn_qq=q8_0"][..], "`attn_qq=Q8_0` fits no tensor"),
        (&["--tensor-type", "a(=q8_0"], "no regular expression"),
        (&["--tensor-type", "attn=q99"], "q99"),
        (&["--prune-layers", "3"], "layer 3"),
        (&["--override-kv", "a=int:x"], "`x`"),
        (&["--override-kv", "a=u8:1"], "unknown type `u8`"),
        (&["--override-kv", "=int:1"], "the key is empty"),
        (&["--override-kv", "split.count=int:3"], "`split.count` follows from"),
    ] {
        let (done, err) = quantize(&output, "Q4_K_M", options);
        assert!(!done && err.contains(expected), "{options:?}: {err}");
        assert!(!output.exists());
    }
    let (done, err) = quantize(&output, "F16", &["--tensor-type", "attn=q8_0"]);
    assert!(!done && err.contains("not of F16"), "{err}");
    let accepted = ["--tensor-type", "attn_qq=q8_0", "--allow-unmatched"];
    assert!(quantize(&output, "Q4_K_M", &accepted).0);
}

#[test]
fn threads_may_follow_the_type_as_in_llama_quantize() {
    let dir = tempfile::tempdir().unwrap();
    let output = dir.path().join("out.gguf");
    let (done, err) = quantize(&output, "Q8_0", &["2"]);
    assert!(done && output.exists(), "{err}");
    for wrong in [&["0"][..], &["2", "--threads", "2"], &["two"]] {
        assert!(!quantize(&output, "Q8_0", wrong).0, "{wrong:?}");
    }
}

#[test]
fn the_output_may_be_left_out_as_in_llama_quantize() {
    let dir = tempfile::tempdir().unwrap();
    let input = dir.path().join("in.gguf");
    std::fs::copy(BF16, &input).unwrap();
    let run = |arguments: &[&str]| {
        let mut command = Command::cargo_bin("requant").unwrap();
        let run = command.args(["quantize", input.to_str().unwrap(), "-q"]).args(arguments);
        let run = run.output().unwrap();
        (run.status.code(), String::from_utf8(run.stderr).unwrap())
    };
    for (arguments, name) in [
        (&["q8_0"][..], "Q8_0"),
        (&["Q4_K", "2"], "Q4_K"),
        (&["7"], "Q8_0"),
        (&["copy", "--max-buffer-size", "64"], "COPY"),
    ] {
        let (code, err) = run(arguments);
        assert_eq!(code, Some(0), "{arguments:?}: {err}");
        let written = dir.path().join(format!("ggml-model-{name}.gguf"));
        assert!(std::fs::remove_file(written).is_ok(), "{arguments:?}");
    }
    let out = dir.path().join("out.gguf");
    let out = out.to_str().unwrap();
    for (arguments, expected) in [
        (&["Q4KM"][..], "did you mean Q4_K_M?"),
        (&[out], "the type is missing"),
        (&[out, "Q4KM"], "did you mean Q4_K_M?"),
        (&["Q8_0", "two"], "`two` is no number of threads"),
        (&["Q8_0", "Q8_0", "2"], "which is a type"),
    ] {
        let (code, err) = run(arguments);
        assert!(code == Some(2) && err.contains(expected), "{arguments:?}: {err}");
    }
}

#[test]
fn a_source_is_not_overwritten_by_what_is_made_of_it() {
    let dir = tempfile::tempdir().unwrap();
    let input = dir.path().join("in.gguf");
    std::fs::copy(BF16, &input).unwrap();
    let link = dir.path().join("link.gguf");
    #[cfg(unix)]
    std::os::unix::fs::symlink(&input, &link).unwrap();
    for output in [&input, &link].into_iter().filter(|path| path.exists()) {
        let mut command = Command::cargo_bin("requant").unwrap();
        let run = command.arg("quantize").arg(&input).arg(output).args(["Q4_0", "--force"]);
        let run = run.output().unwrap();
        let err = String::from_utf8(run.stderr).unwrap();
        assert!(run.status.code() == Some(1) && err.contains("is the source itself"), "{err}");
    }
    assert!(std::fs::read(&input).unwrap() == std::fs::read(BF16).unwrap());
}
