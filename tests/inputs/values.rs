//! Values that are silently bad: beyond what their type can hold, nothing but zeros, wiped out by a scale
//! of 0. Found by whatever reads them, and named.

use super::raw::{Bench, Checkpoint, Gguf, Said, St};
use serde_json::Value as Json;

const SINGLE: &str = "model.safetensors";
const UP: &str = "model.layers.0.mlp.up_proj.weight";

/// A fixture whose tensors have been edited.
fn edited(bench: &Bench, fixture: &str, edit: impl FnOnce(&mut St)) -> Checkpoint {
    let copy = bench.checkpoint(fixture, "c");
    copy.edit_shard(SINGLE, edit);
    copy
}

/// Puts a weight into a BF16 matrix of rows of 32.
fn put(st: &mut St, name: &str, row: usize, column: usize, value: f32) {
    let at = 2 * (32 * row + column);
    st.get_mut(name).2[at..at + 2].copy_from_slice(&value.to_le_bytes()[2..]);
}

/// Makes a matrix of another dtype, all of its weights alike but for one in row 3, column 7.
fn with_one(st: &mut St, dtype: &str, one: &[u8], others: &[u8]) {
    let (_, shape, _) = st.get(UP).unwrap().clone();
    let mut data = others.repeat(96 * 32);
    data[(3 * 32 + 7) * one.len()..][..one.len()].copy_from_slice(one);
    st.set(UP, dtype, &shape, data);
}

fn run(bench: &Bench, args: &[&str]) -> Said {
    bench.run(&[args, &["--force"]].concat())
}

/// One warning, with these words.
#[track_caller]
fn warned(said: &Said, words: &[&str]) {
    let warnings = said.warnings();
    assert_eq!(warnings.len(), 1, "{said:#?}");
    words.iter().for_each(|word| assert!(warnings[0].contains(word), "no `{word}`: {warnings:?}"));
}

#[test]
fn a_weight_beyond_its_type_is_named() {
    let bench = Bench::new();
    let names = ["`blk.0.ffn_up.weight`", "row 3, column 7"];
    let f32s = |x: f32| (x.to_le_bytes(), 0.5f32.to_le_bytes());
    for (dtype, one, others, value) in [
        ("BF16", &99_840f32.to_le_bytes()[2..], &[0, 0x3f][..], "99840"),
        ("BF16", &(-65_536f32).to_le_bytes()[2..], &[0, 0x3f], "-65536"),
        ("F32", &f32s(65_520.0).0, &f32s(0.0).1, "65520"),
        ("F32", &f32s(1e30).0, &f32s(0.0).1, "1000000000000000000000000000000"),
    ] {
        edited(&bench, "family/qwen2", |st| with_one(st, dtype, one, others));
        let said = run(&bench, &["convert", "c", "o.gguf", "--outtype", "f16"]);
        said.fails(&[&names[..], &[UP, value, "F16"]].concat());
        assert!(!bench.path("o.gguf").exists());
        run(&bench, &["convert", "c", "o.gguf", "--type", "F16"]).fails(&names);
        // Types that hold it.
        run(&bench, &["convert", "c", "f32.gguf", "--outtype", "f32", "--strict"]).ok();
        run(&bench, &["convert", "c", "bf16.gguf", "--outtype", "bf16", "--strict"]).ok();
        run(&bench, &["quantize", "f32.gguf", "o.gguf", "F16"]).fails(&names);
        let typed = ["--tensor-type", "blk.0.ffn_up=f16"];
        run(&bench, &[&["quantize", "f32.gguf", "o.gguf", "Q8_0"], &typed[..]].concat())
            .fails(&names);
        let exported = ["export", "f32.gguf", "e", "--dtype", "f16"];
        bench.run(&exported).fails(&[UP, "row 3, column 7", value]);
        assert!(!bench.path("e").exists());
    }
    // The largest that rounds to a number.
    edited(&bench, "family/qwen2", |st| with_one(st, "F32", &f32s(65_519.0).0, &f32s(0.0).1));
    run(&bench, &["convert", "c", "o.gguf", "--outtype", "f16", "--strict"]).ok();
    let file = Gguf::read(&bench.path("o.gguf"));
    let data = &file.tensor("blk.0.ffn_up.weight").unwrap().data;
    assert_eq!(data[2 * (3 * 32 + 7)..][..2], 0x7bffu16.to_le_bytes());
    // BF16 ends as well.
    edited(&bench, "family/qwen2", |st| with_one(st, "F32", &f32s(f32::MAX).0, &f32s(0.0).1));
    run(&bench, &["convert", "c", "o.gguf", "--outtype", "bf16"]).fails(&names);
    // A product of FP8.
    edited(&bench, "family/qwen2", |st| {
        with_one(st, "F8_E4M3", &[0x7e], &[0x38]);
        st.set(&format!("{UP}_scale"), "F32", &[], 200f32.to_le_bytes().to_vec());
    });
    run(&bench, &["convert", "c", "o.gguf", "--outtype", "f16"]).fails(&names).says(&["89600"]);
}

#[test]
fn an_infinity_in_a_file_is_named_by_its_place() {
    let bench = Bench::new();
    bench.checkpoint("family/qwen2", "c");
    run(&bench, &["convert", "c", "o.gguf", "--outtype", "f16"]).ok();
    let mut file = Gguf::read(&bench.path("o.gguf"));
    let tensor = file.tensors.iter_mut().find(|t| t.name == "blk.0.ffn_up.weight").unwrap();
    tensor.data[2 * (5 * 32 + 9)..][..2].copy_from_slice(&[0x00, 0x7c]);
    file.write(&bench.path("bad.gguf"));
    bench.run(&["verify", "bad.gguf"]).fails(&["`blk.0.ffn_up.weight`", "row 5, column 9", "inf"]);
}

#[test]
fn a_scale_that_becomes_infinite_is_warned_of() {
    let bench = Bench::new();
    edited(&bench, "family/qwen2", |st| put(st, UP, 3, 7, 1e12));
    let q8 = ["convert", "c", "o.gguf", "--type", "Q8_0"];
    let said = run(&bench, &q8).ok();
    warned(&said, &["infinite", "blk.0.ffn_up.weight"]);
    run(&bench, &[&q8[..], &["--strict"]].concat()).fails(&["blk.0.ffn_up.weight"]);
    run(&bench, &["convert", "c", "checked.gguf", "--type", "F32"]).ok();
    run(&bench, &["quantize", "checked.gguf", "p.gguf", "Q8_0", "--check"])
        .fails(&["blk.0.ffn_up.weight"]);
    bench.run(&["verify", "o.gguf"]).fails(&["blk.0.ffn_up.weight"]);
}

/// Makes zeros of whole tensors.
fn zero(st: &mut St, names: &[&str]) {
    names.iter().for_each(|name| st.get_mut(name).2.fill(0));
}

#[test]
fn matrices_of_zeros_are_warned_of() {
    let bench = Bench::new();
    let dense = [UP, "model.layers.1.mlp.up_proj.weight", "model.layers.1.self_attn.q_proj.weight"];
    edited(&bench, "family/qwen2", |st| zero(st, &dense));
    for ty in ["Q8_0", "Q4_0", "BF16", "IQ4_NL"] {
        let convert = ["convert", "c", "o.gguf", "--type", ty, "--json"];
        let said = run(&bench, &convert).ok();
        warned(&said, &["zeros", "blk.0-1.ffn_up.weight", "blk.1.attn_q.weight"]);
        assert_eq!(said.json()["warnings"][0]["topic"], "values");
        std::fs::remove_file(bench.path("o.gguf")).unwrap();
        run(&bench, &[&convert[..], &["--strict"]].concat()).fails(&["--strict"]);
        assert!(!bench.path("o.gguf").exists());
        run(&bench, &convert).ok();
        let said = bench.run(&["verify", "o.gguf", "--json"]).ok();
        warned(&said, &["zeros", "blk.0-1.ffn_up.weight"]);
        assert_eq!(said.json()["warnings"].as_array().map(Vec::len), Some(1));
        bench.run(&["verify", "o.gguf", "--strict"]).fails(&["--strict"]);
    }
    let experts = ["2.gate_proj", "0.down_proj", "2.down_proj"];
    edited(&bench, "family/deepseek-v2", |st| {
        experts
            .iter()
            .for_each(|expert| zero(st, &[&format!("model.layers.1.mlp.experts.{expert}.weight")]));
    });
    let said = run(&bench, &["convert", "c", "o.gguf", "--type", "Q8_0"]).ok();
    warned(&said, &["zeros", "blk.1.ffn_gate_exps.weight: 2", "blk.1.ffn_down_exps.weight: 0,2"]);
    warned(&bench.run(&["verify", "o.gguf"]).ok(), &["blk.1.ffn_gate_exps.weight: 2"]);
}

#[test]
fn zeros_that_are_as_they_should_be_are_not() {
    let bench = Bench::new();
    edited(&bench, "family/qwen2", |st| {
        let vectors: Vec<String> = st
            .tensors
            .iter()
            .filter(|(_, t)| t.1.len() == 1)
            .map(|(name, _)| name.clone())
            .collect();
        vectors.iter().for_each(|name| zero(st, &[name]));
        // Rows of the vocabulary that no token uses, and all but one weight of a matrix.
        st.get_mut("model.embed_tokens.weight").2[2039 * 64..].fill(0);
        zero(st, &[UP]);
        put(st, UP, 95, 31, 0.25);
    });
    run(&bench, &["convert", "c", "o.gguf", "--type", "F16", "--strict"]).ok();
    assert!(bench.run(&["verify", "o.gguf", "--strict"]).ok().warnings().is_empty());
}

#[test]
fn a_file_that_ends_with_zeros_is_named() {
    let bench = Bench::new();
    let fill = |file: &str, from: f64| {
        let path = bench.path(&format!("c/{file}"));
        let mut bytes = std::fs::read(&path).unwrap();
        let at = (bytes.len() as f64 * from) as usize;
        bytes[at..].fill(0);
        std::fs::write(path, bytes).unwrap();
    };
    for from in [0.5, 0.75, 0.9] {
        bench.checkpoint("tiny-r1", "c");
        let file = "model-00002-of-00003.safetensors";
        fill(file, from);
        let said = run(&bench, &["convert", "c", "o.gguf", "--type", "Q8_0"]).ok();
        let of_file = said.warnings().into_iter().filter(|w| w.contains(file)).count();
        assert_eq!(of_file, 1, "{said:#?}");
        said.says(&[file, "zeros at its end", "fetch it again"]);
        // Before a weight is read, too.
        bench.run(&["plan", "c", "--type", "Q8_0"]).ok().says(&[file, "fetch it again"]);
        run(&bench, &["convert", "c", "o.gguf", "--type", "Q8_0", "--strict"]).fails(&[file]);
    }
}

#[test]
fn scales_of_0_are_named_where_they_wipe_out_weights() {
    let bench = Bench::new();
    let scale = format!("{UP}_scale_inv");
    let case = |codes: u8| {
        edited(&bench, "family/qwen2", |st| {
            with_one(st, "F8_E4M3", &[0x38], &[codes]);
            st.get_mut(UP).2[64 * 32..].fill(codes);
            let mut factors: Vec<u8> = [0.5f32; 3].iter().flat_map(|x| x.to_le_bytes()).collect();
            factors[8..].fill(0);
            st.set(&scale, "F32", &[3, 1], factors);
        });
        let config = bench.path("c/config.json");
        let mut json: Json = serde_json::from_slice(&std::fs::read(&config).unwrap()).unwrap();
        json["quantization_config"] =
            serde_json::json!({"quant_method": "fp8", "weight_block_size": [32, 32]});
        std::fs::write(config, json.to_string()).unwrap();
        run(&bench, &["convert", "c", "o.gguf", "--type", "Q8_0", "--json"]).ok()
    };
    let said = case(0x30);
    warned(&said, &[SINGLE, "scales of 0", &scale, "[2, 0]"]);
    assert_eq!(said.json()["warnings"][0]["topic"], "values");
    run(&bench, &["convert", "c", "o.gguf", "--type", "Q8_0", "--strict"]).fails(&["scales of 0"]);
    let against = bench.run(&["verify", "o.gguf", "--against", "c"]);
    assert!(against.code == Some(0), "{against:#?}");
    // What was 0 before stays it.
    assert!(case(0).warnings().is_empty());
}
