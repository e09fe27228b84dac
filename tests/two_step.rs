//! The default output against the reference's two steps, conversion and quantization.

mod common;

use common::{convert, hashes, json, settings};
use requant::convert::{Importance, Intermediate, Settings};
use requant::gguf::{GgufFile, Value};
use requant::imatrix::Imatrix;
use requant::recipe::FileType;
use requant::simd::Simd;
use std::path::Path;
use std::sync::Arc;

#[track_caller]
fn assert_tensors(settings: &Settings, golden: &serde_json::Value) {
    let dir = tempfile::tempdir().unwrap();
    let output = dir.path().join("out.gguf");
    convert(settings, &output);
    let golden = golden.as_object().unwrap();
    let found = hashes(&output);
    assert_eq!(found.len(), golden.len());
    for (name, ty, hash) in found {
        assert_eq!(golden[&name][0], ty, "type of {name} in {}", settings.recipe.name());
        assert_eq!(golden[&name][1], hash, "bytes of {name} in {}", settings.recipe.name());
    }
}

#[test]
fn tensors_equal_the_two_step_ways() {
    let goldens = json("tests/fixtures/reference/two-step-tensors.json");
    let file = "tests/fixtures/reference/imatrix.gguf";
    let imatrix = Arc::new(Imatrix::open(Path::new(file)).unwrap());
    for (name, golden) in goldens.as_object().unwrap() {
        let file_type = name.trim_end_matches("+imatrix");
        let mut settings = settings(file_type.parse().unwrap());
        if file_type != name {
            settings.options.imatrix = true;
            settings.importance = Some(Importance { imatrix: imatrix.clone(), file: file.into() });
        }
        assert_tensors(&settings, golden);
    }
}

#[test]
fn tensors_of_the_exact_intermediate_equal_those_of_an_f32_conversion() {
    let goldens = json("tests/fixtures/goldens/two-step-f32.json");
    for (file_type, golden) in goldens.as_object().unwrap() {
        let settings =
            Settings { intermediate: Intermediate::F32, ..settings(file_type.parse().unwrap()) };
        assert_tensors(&settings, golden);
    }
}

#[test]
fn threads_do_not_change_a_byte() {
    let dir = tempfile::tempdir().unwrap();
    let [one, three] = ["one", "three"].map(|name| dir.path().join(name));
    convert(&Settings { threads: 1, ..settings(FileType::Q4_K_M) }, &one);
    convert(&Settings { threads: 3, ..settings(FileType::Q4_K_M) }, &three);
    assert!(std::fs::read(one).unwrap() == std::fs::read(three).unwrap());
}

#[test]
fn metadata_equals_the_reference_converters() {
    let dir = tempfile::tempdir().unwrap();
    let output = dir.path().join("out.gguf");
    convert(&settings(FileType::Q4_K_M), &output);
    let file = GgufFile::open(&output).unwrap();
    let reference =
        GgufFile::open(Path::new("tests/fixtures/reference/tiny-r1-bf16.gguf")).unwrap();
    let mut expected = reference.metadata().clone();
    // What quantizing changes, and the one deliberate difference (docs/compatibility.md).
    expected.set_last("general.quantization_version", 2u32);
    expected.set_last("general.file_type", 15u32);
    expected.set("tokenizer.ggml.add_bos_token", true);
    let list = |m: &requant::gguf::Metadata| -> Vec<(String, Value)> {
        m.iter().map(|(key, value)| (key.to_owned(), value.clone())).collect()
    };
    assert_eq!(list(file.metadata()), list(&expected));
}

#[test]
fn instructions_do_not_change_a_byte() {
    let dir = tempfile::tempdir().unwrap();
    let file = |simd: Simd| {
        let output = dir.path().join(simd.name());
        convert(&Settings { simd, check: true, ..settings(FileType::Q4_K_M) }, &output);
        std::fs::read(output).unwrap()
    };
    let portable = file(Simd::Portable);
    for simd in Simd::supported().skip(1) {
        assert!(file(simd) == portable, "{simd}");
    }
}
