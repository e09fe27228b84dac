//! Damaged, contradictory and hostile checkpoints: one clear error each, and nothing left behind.

mod common;

use common::{Copy, settings};
use requant::convert::{ConvertError, Plan, RunOptions};
use requant::model::{CheckpointModel, Mtp};
use requant::monitor::Monitor;
use requant::recipe::FileType;
use serde_json::Value;

const SHARDS: [&str; 3] = [
    "model-00001-of-00003.safetensors",
    "model-00002-of-00003.safetensors",
    "model-00003-of-00003.safetensors",
];
const INDEX: &str = "model.safetensors.index.json";
const DOWN: &str = "model.layers.0.mlp.down_proj.weight";

/// What opening and planning say.
#[track_caller]
fn refused(copy: &Copy, because: &[&str]) {
    let model = CheckpointModel::open(copy.path(), Mtp::Drop).map_err(ConvertError::from);
    let planned = model.and_then(|m| Plan::of_checkpoint(&m, &settings(FileType::Q8_0)));
    let Err(error) = planned else { panic!("accepted, despite {because:?}") };
    let error = error.to_string();
    for word in because {
        assert!(error.contains(word), "`{error}` does not say `{word}`");
    }
}

/// What converting says; nothing may be left in the output's folder.
#[track_caller]
fn fails(copy: &Copy, because: &[&str]) {
    let model = CheckpointModel::open(copy.path(), Mtp::Drop).unwrap();
    let plan = Plan::of_checkpoint(&model, &settings(FileType::Q8_0)).unwrap();
    let dir = tempfile::tempdir().unwrap();
    let error = plan
        .run(&model, &dir.path().join("out.gguf"), RunOptions::default(), &())
        .unwrap_err()
        .to_string();
    for word in because {
        assert!(error.contains(word), "`{error}` does not say `{word}`");
    }
    assert_eq!(std::fs::read_dir(dir.path()).unwrap().count(), 0);
}

fn edit_json(copy: &Copy, file: &str, edit: impl FnOnce(&mut Value)) {
    copy.edit(file, |bytes| {
        let mut json = serde_json::from_slice(bytes).unwrap();
        edit(&mut json);
        *bytes = json.to_string().into_bytes();
    });
}

fn with_config(key: &str, value: Value) -> Copy {
    let copy = Copy::new();
    edit_json(&copy, "config.json", |config| config[key] = value);
    copy
}

#[test]
fn shards_that_are_missing_or_cut_are_named() {
    let copy = Copy::new();
    copy.remove(SHARDS[1]);
    refused(&copy, &[SHARDS[1], "complete the download"]);
    for length in [0, 5, 100, 3_000_000] {
        let copy = Copy::new();
        copy.edit(SHARDS[1], |bytes| bytes.truncate(length));
        refused(&copy, &[SHARDS[1]]);
    }
    let copy = Copy::new();
    copy.edit(SHARDS[1], |bytes| bytes.push(0));
    refused(&copy, &[SHARDS[1], "not what its header describes"]);
    let copy = Copy::new();
    copy.edit(SHARDS[1], |bytes| bytes[..8].fill(0xff));
    refused(&copy, &[SHARDS[1]]);
}

#[test]
fn an_index_that_does_not_lead_to_the_shards_is_refused() {
    let copy = Copy::new();
    edit_json(&copy, INDEX, |i| i["weight_map"][DOWN] = "../elsewhere.safetensors".into());
    refused(&copy, &["outside of the checkpoint's folder"]);
    let copy = Copy::new();
    copy.remove(INDEX);
    copy.remove(SHARDS[2]);
    refused(&copy, &[INDEX, "is missing"]);
}

#[test]
fn the_index_is_not_needed_when_all_shards_are_there() {
    let copy = Copy::new();
    copy.remove(INDEX);
    assert!(CheckpointModel::open(copy.path(), Mtp::Drop).is_ok());
}

#[test]
fn dtypes_and_scales_that_do_not_fit_are_refused() {
    for (from, to) in [("\"BF16\"", "\"BF17\""), ("\"F8_E4M3\"", "\"F8_E3M4\"")] {
        let copy = Copy::new();
        copy.replace(SHARDS[0], from, to);
        refused(&copy, &[SHARDS[0], "tensor `model.", to.trim_matches('"')]);
    }
    let copy = Copy::new();
    edit_json(&copy, "config.json", |c| c["quantization_config"]["weight_block_size"] = 64.into());
    refused(&copy, &["weight_block_size", "two positive integers"]);
    let copy = Copy::new();
    edit_json(&copy, "config.json", |c| {
        c["quantization_config"]["weight_block_size"] = serde_json::json!([64, 128]);
    });
    refused(&copy, &["weight_scale_inv", "has shape"]);
    let copy = Copy::new();
    let scale = format!("{DOWN}_scale_inv");
    copy.replace(SHARDS[0], &scale, &scale.replace("scale_inv", "scale_off"));
    copy.replace(INDEX, &scale, &scale.replace("scale_inv", "scale_off"));
    refused(&copy, &[DOWN, "is missing"]);
}

#[test]
fn configurations_at_odds_with_the_tensors_are_refused() {
    refused(&with_config("hidden_size", 128.into()), &["has shape", "[2048, 128]"]);
    refused(&with_config("n_routed_experts", 8.into()), &["mlp.gate.weight", "[8, 256]"]);
    refused(&with_config("num_hidden_layers", 200_000_000.into()), &["is missing"]);
    refused(&with_config("hidden_size", 1_000_000_000_000u64.into()), &["`hidden_size`"]);
    refused(&with_config("v_head_dim", 0.into()), &["`v_head_dim` is 0", "positive"]);
    refused(&with_config("vocab_size", (-1).into()), &["`vocab_size` is -1"]);
    refused(&with_config("q_lora_rank", Value::Null), &["self_attn.q_proj.weight` is missing"]);
    refused(&with_config("architectures", serde_json::json!(["Other"])), &["`Other`"]);
    refused(&with_config("rope_scaling", serde_json::json!({"type": "linear"})), &["linear"]);
    refused(&with_config("scoring_func", "softmax".into()), &["scoring_func"]);
    let copy = Copy::new();
    copy.edit("config.json", |bytes| bytes.truncate(20));
    refused(&copy, &["config.json"]);
    let copy = Copy::new();
    copy.remove("config.json");
    refused(&copy, &["config.json"]);
}

#[test]
fn pickles_are_refused() {
    let copy = Copy::new();
    SHARDS.iter().chain([&INDEX]).for_each(|file| copy.remove(file));
    refused(&copy, &["is this a checkpoint folder?"]);
    std::fs::write(copy.file("pytorch_model.bin"), "").unwrap();
    refused(&copy, &["pytorch_model.bin", "safetensors"]);
}

#[test]
fn values_that_are_no_numbers_are_located() {
    let copy = Copy::new();
    copy.poke(SHARDS[0], DOWN, 3 * 512 + 300, &[0x7f]);
    fails(&copy, &[SHARDS[0], DOWN, "FP8 NaN", "row 3, column 300"]);

    let copy = Copy::new();
    copy.poke(SHARDS[0], &format!("{DOWN}_scale_inv"), 4, &f32::INFINITY.to_le_bytes());
    fails(&copy, &[SHARDS[0], DOWN, "scale_inv` is inf at row 0, column 1"]);

    let copy = Copy::new();
    copy.poke(SHARDS[0], "model.embed_tokens.weight", 2 * (700 * 256 + 9), &[0xc0, 0x7f]);
    fails(&copy, &[SHARDS[0], "model.embed_tokens.weight", "row 700, column 9 is NaN"]);
}

#[test]
fn a_cancelled_run_leaves_nothing() {
    struct Cancel;
    impl Monitor for Cancel {
        fn advance(&self, _: u64) {}
        fn cancelled(&self) -> bool {
            true
        }
    }
    let copy = Copy::new();
    let model = CheckpointModel::open(copy.path(), Mtp::Drop).unwrap();
    let plan = Plan::of_checkpoint(&model, &settings(FileType::Q8_0)).unwrap();
    let dir = tempfile::tempdir().unwrap();
    let run = plan.run(&model, &dir.path().join("out.gguf"), RunOptions::default(), &Cancel);
    assert!(matches!(run, Err(ConvertError::Cancelled)));
    assert_eq!(std::fs::read_dir(dir.path()).unwrap().count(), 0);
}

#[test]
fn shapes_without_elements_do_not_overflow() {
    let copy = Copy::new();
    copy.edit(SHARDS[0], |bytes| {
        let length = u64::from_le_bytes(bytes[..8].try_into().unwrap()) as usize;
        let mut header: Value = serde_json::from_slice(&bytes[8..8 + length]).unwrap();
        let shape = serde_json::json!([1u64 << 33, 1u64 << 33, 0]);
        header["none"] =
            serde_json::json!({"dtype": "F32", "shape": shape, "data_offsets": [0, 0]});
        let header = header.to_string();
        let data = bytes.split_off(8 + length);
        *bytes = [&(header.len() as u64).to_le_bytes(), header.as_bytes(), &data].concat();
    });
    refused(&copy, &[SHARDS[0]]);
}
