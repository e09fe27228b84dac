//! The classes beside R1's own: whole files equal the reference converter's, logits transformers'.
#![cfg(feature = "eval")]

mod common;

use common::settings;
use requant::convert::{Mode, Plan, RunOptions, Settings};
use requant::eval;
use requant::model::{CheckpointModel, Model, Mtp};
use requant::recipe::FileType;
use safetensors::SafeTensors;
use sha2::{Digest, Sha256};
use std::path::{Path, PathBuf};

const FAMILY: &str = "tests/fixtures/family";

/// The largest difference to transformers' logits, at every sixteenth position.
fn largest_error(opened: &Model, name: &str) -> f32 {
    let bytes = std::fs::read(format!("{FAMILY}/logits.safetensors")).unwrap();
    let reference = SafeTensors::deserialize(&bytes).unwrap();
    let words = |name: &str| -> Vec<u32> {
        let data = reference.tensor(name).unwrap().data();
        data.chunks_exact(4).map(|b| u32::from_le_bytes(b.try_into().unwrap())).collect()
    };
    let (tokens, expected) = (words("tokens"), words(name));
    let model = eval::Model::new(opened.hparams(), opened.source()).unwrap();
    let mut states = model.embed(&tokens).unwrap();
    for layer in 0..opened.hparams().n_layer {
        model.layer(layer, &mut states, tokens.len(), 1 << 28).unwrap();
    }
    let logits = model.logits(model.output_norm(states.view()).unwrap().view()).unwrap();
    let found: Vec<f32> =
        logits.rows().into_iter().skip(7).step_by(16).flatten().copied().collect();
    assert_eq!(found.len(), expected.len());
    let errors = found.iter().zip(&expected).map(|(f, &e)| (f - f32::from_bits(e)).abs());
    errors.fold(0.0, f32::max)
}

/// Converts a checkpoint in all types of the reference converter, to `{outtype}.gguf` in a folder,
/// and returns a copy of it that has a tokenizer.
fn convert(fixtures: &str, name: &str, dir: &Path) -> PathBuf {
    // The model is named after its folder.
    let folder = dir.join(name);
    std::fs::create_dir(&folder).unwrap();
    let copy = |from: &Path| {
        std::fs::copy(from, folder.join(from.file_name().unwrap())).unwrap();
    };
    for file in ["config.json", "model.safetensors"] {
        copy(&Path::new(fixtures).join(name).join(file));
    }
    copy(&Path::new(common::TINY_R1).join("tokenizer.json"));
    let mut tokenizer = common::json("tests/fixtures/tiny-r1/tokenizer_config.json");
    tokenizer["add_bos_token"] = false.into();
    std::fs::write(folder.join("tokenizer_config.json"), tokenizer.to_string()).unwrap();

    let goldens = common::json(&format!("{fixtures}/converted.json"));
    let types = [
        ("f32", FileType::F32),
        ("f16", FileType::F16),
        ("bf16", FileType::BF16),
        ("q8_0", FileType::Q8_0),
    ];
    for (outtype, file_type) in types {
        let Some(golden) = goldens[name][outtype].as_str() else { continue };
        let mut model = CheckpointModel::open(&folder, Mtp::Drop).unwrap();
        model.keep_blocks().unwrap();
        let settings = Settings { mode: Mode::Convert, ..settings(file_type) };
        let plan = Plan::of_checkpoint(&model, &settings).unwrap();
        let output = dir.join(format!("{outtype}.gguf"));
        plan.run(&model, &output, RunOptions::default(), &()).unwrap();
        let hash = Sha256::digest(std::fs::read(&output).unwrap());
        let hash: String = hash.iter().map(|b| format!("{b:02x}")).collect();
        assert_eq!(golden, hash, "{outtype}");
    }
    folder
}

/// Converts a checkpoint, and runs it before and after.
fn check(name: &str) {
    let dir = tempfile::tempdir().unwrap();
    let folder = convert(FAMILY, name, dir.path());
    for path in [folder, dir.path().join("f32.gguf")] {
        let error = largest_error(&Model::open(&path, Mtp::Drop).unwrap(), name);
        assert!(error < 1e-3, "logits of {} differ by {error}", path.display());
    }
}

/// A chunk's logits of a model.
fn logits(path: &Path) -> Vec<f32> {
    let opened = Model::open(path, Mtp::Drop).unwrap();
    let model = eval::Model::new(opened.hparams(), opened.source()).unwrap();
    let tokens: Vec<u32> = (0..64).map(|i| i * 31 % 2048).collect();
    let mut states = model.embed(&tokens).unwrap();
    for layer in 0..opened.hparams().n_layer {
        model.layer(layer, &mut states, tokens.len(), 1 << 28).unwrap();
    }
    let states = model.output_norm(states.view()).unwrap();
    model.logits(states.view()).unwrap().iter().copied().collect()
}

/// Weights in NVFP4 stay as they are in a file of the reference converter's; the checkpoint with
/// its factors multiplied in, and such a file, are one model.
fn check_nvfp4(name: &str) {
    let dir = tempfile::tempdir().unwrap();
    let folder = convert("tests/fixtures/nvfp4", name, dir.path());
    let model = CheckpointModel::open(&folder, Mtp::Drop).unwrap();
    let plan = Plan::of_checkpoint(&model, &settings(FileType::F32)).unwrap();
    let plain = dir.path().join("plain.gguf");
    plan.run(&model, &plain, RunOptions::default(), &()).unwrap();
    let expected = logits(&folder);
    // Without `.scale` beside them, the weights themselves hold the factors, rounded to BF16.
    for (path, limit) in [(dir.path().join("f32.gguf"), 1e-4), (plain, 0.3)] {
        let found = logits(&path);
        let errors = found.iter().zip(&expected).map(|(f, e)| (f - e).abs());
        let error = errors.fold(0.0, f32::max);
        assert!(error < limit, "logits of {} differ by {error}", path.display());
    }
}

#[test]
fn nvfp4_experts_of_deepseek() {
    check_nvfp4("deepseek");
}

#[test]
fn nvfp4_and_fp8_of_llama() {
    check_nvfp4("llama");
}

/// One test for each, so that a failure names it.
macro_rules! family {
    ($($test:ident: $name:literal,)*) => {$(
        #[test]
        fn $test() {
            check($name);
        }
    )*};
}

family! {
    qwen2_has_biases: "qwen2",
    qwen2_with_a_tied_output: "qwen2-tied",
    qwen3_normalises_heads: "qwen3",
    qwen3_with_a_longer_context: "qwen3-yarn",
    llama3_rotates_neighbours_with_factors: "llama3",
    llama_with_biases: "llama-bias",
    deepseek_v2_has_a_softmax_router: "deepseek-v2",
}
