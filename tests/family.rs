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
use std::path::Path;

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

/// Converts a checkpoint in all types of the reference converter, and runs it before and after.
fn check(name: &str) {
    let dir = tempfile::tempdir().unwrap();
    // The model is named after its folder.
    let folder = dir.path().join(name);
    std::fs::create_dir(&folder).unwrap();
    let copy = |from: &Path| {
        std::fs::copy(from, folder.join(from.file_name().unwrap())).unwrap();
    };
    for file in ["config.json", "model.safetensors"] {
        copy(&Path::new(FAMILY).join(name).join(file));
    }
    copy(&Path::new(common::TINY_R1).join("tokenizer.json"));
    let mut tokenizer = common::json("tests/fixtures/tiny-r1/tokenizer_config.json");
    tokenizer["add_bos_token"] = false.into();
    std::fs::write(folder.join("tokenizer_config.json"), tokenizer.to_string()).unwrap();

    let goldens = common::json("tests/fixtures/family/converted.json");
    let types = [
        ("f32", FileType::F32),
        ("f16", FileType::F16),
        ("bf16", FileType::BF16),
        ("q8_0", FileType::Q8_0),
    ];
    for (outtype, file_type) in types {
        let model = CheckpointModel::open(&folder, Mtp::Drop).unwrap();
        let settings = Settings { mode: Mode::Convert, ..settings(file_type) };
        let plan = Plan::of_checkpoint(&model, &settings).unwrap();
        let output = dir.path().join(format!("{outtype}.gguf"));
        plan.run(&model, &output, RunOptions::default(), &()).unwrap();
        let hash = Sha256::digest(std::fs::read(&output).unwrap());
        let hash: String = hash.iter().map(|b| format!("{b:02x}")).collect();
        assert_eq!(goldens[name][outtype], hash, "{outtype}");
    }
    for path in [folder, dir.path().join("f32.gguf")] {
        let error = largest_error(&Model::open(&path, Mtp::Drop).unwrap(), name);
        assert!(error < 1e-3, "logits of {} differ by {error}", path.display());
    }
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
