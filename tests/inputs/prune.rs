//! Models without some of their layers: what is written says what it holds, and runs.

use super::raw::{BF16, Bench, Gguf, HELDOUT, Rng, TINY_R1, Tensor, Value};
use std::collections::BTreeSet;
use std::path::Path;

/// A fixture's place for the program, which runs elsewhere.
fn fixture(path: &str) -> String {
    std::fs::canonicalize(path).unwrap().to_str().unwrap().to_owned()
}

/// The number of a layer and what follows it in a tensor's name.
fn in_layer(name: &str) -> Option<(u32, &str)> {
    let (layer, rest) = name.strip_prefix("blk.")?.split_once('.')?;
    Some((layer.parse().ok()?, rest))
}

fn number(file: &Gguf, key: &str) -> Option<u32> {
    match file.get(&format!("{}.{key}", arch(file)))? {
        Value::U32(n) => Some(*n),
        other => panic!("{key}: {other:?}"),
    }
}

fn arch(file: &Gguf) -> String {
    match file.get("general.architecture") {
        Some(Value::Str(arch)) => String::from_utf8(arch.clone()).unwrap(),
        other => panic!("{other:?}"),
    }
}

/// What is left of a model, made of it layer by layer.
fn without(file: &Gguf, layers: &[u32]) -> Vec<Tensor> {
    let kept = file.tensors.iter().filter_map(|t| {
        let name = match in_layer(&t.name) {
            None => t.name.clone(),
            Some((layer, _)) if layers.contains(&layer) => return None,
            Some((layer, rest)) => {
                let before = layers.iter().filter(|&&l| l < layer).count() as u32;
                format!("blk.{}.{rest}", layer - before)
            }
        };
        Some(Tensor { name, ..t.clone() })
    });
    let mut kept: Vec<Tensor> = kept.collect();
    kept.sort_by_key(|t| (in_layer(&t.name).map(|(layer, _)| layer), t.name.clone()));
    kept
}

#[track_caller]
fn runs(bench: &Bench, file: &str) -> String {
    let text = fixture(HELDOUT);
    let said = bench.run(&["perplexity", file, "--text", &text, "--chunks", "1", "--ctx", "64"]);
    said.ok().stdout
}

#[test]
fn a_dense_layer_or_a_prediction_layer_may_be_left_out() {
    let bench = Bench::new();
    let r1 = fixture(TINY_R1);
    let convert = |out: &str, more: &[&str]| {
        let args = ["convert", &r1, out, "--outtype", "bf16", "--mtp", "keep", "--strict"];
        bench.run(&[&args[..], more].concat()).ok();
        Gguf::read(&bench.path(out))
    };
    let whole = convert("whole.gguf", &[]);
    for (layers, left, dense, nextn) in [
        ("0", 3, 0, 1),
        ("1", 3, 1, 1),
        ("3", 3, 1, 0),
        ("1,2", 2, 1, 1),
        ("2,0,2", 2, 0, 1),
        ("0,1,3", 1, 0, 0),
    ] {
        let list: Vec<u32> = layers.split(',').map(|l| l.parse().unwrap()).collect();
        let list: Vec<u32> = BTreeSet::from_iter(list).into_iter().collect();
        let file = format!("without-{layers}.gguf");
        let pruned = convert(&file, &["--prune-layers", layers]);
        let counts = ["block_count", "leading_dense_block_count", "nextn_predict_layers"];
        assert_eq!(counts.map(|key| number(&pruned, key)), [left, dense, nextn].map(Some));
        let mut tensors = pruned.tensors.clone();
        tensors.sort_by_key(|t| (in_layer(&t.name).map(|(layer, _)| layer), t.name.clone()));
        assert!(tensors == without(&whole, &list), "{layers}");
        // The same from a GGUF file, and in the order of llama-quantize.
        let out = format!("quantized-{layers}.gguf");
        bench.run(&["quantize", "whole.gguf", &out, "COPY", "--prune-layers", layers]).ok();
        let quantized = Gguf::read(&bench.path(&out));
        assert_eq!(counts.map(|key| number(&quantized, key)), [left, dense, nextn].map(Some));
        assert!(quantized.tensors == tensors, "{layers}");
        assert_eq!(runs(&bench, &file), runs(&bench, &out), "{layers}");
    }
}

#[test]
fn importances_follow_the_original_names_and_patterns_the_new_ones() {
    let bench = Bench::new();
    let (source, imatrix) = (fixture(BF16), fixture("tests/fixtures/reference/imatrix.gguf"));
    let quantize = |out: &str, more: &[&str]| {
        let args = ["quantize", &source, out, "IQ4_XS", "--imatrix", &imatrix, "--strict"];
        bench.run(&[&args[..], more].concat()).ok();
        Gguf::read(&bench.path(out))
    };
    // All of one type, since the mix looks at the number of layers.
    let types = ["--tensor-type", "attn=q4_k", "--tensor-type", "ffn=q5_k"];
    let whole = quantize("whole.gguf", &types);
    let pruned = quantize("pruned.gguf", &[&types[..], &["--prune-layers", "1"]].concat());
    assert!(pruned.tensors == without(&whole, &[1]));
    let types = ["--tensor-type", r"blk\.1\.attn_output=q8_0", "--prune-layers", "0"];
    let pruned = quantize("new-names.gguf", &types);
    let ty = |name: &str| pruned.tensor(name).unwrap().ty;
    assert_eq!(ty("blk.1.attn_output.weight"), 8);
    assert_ne!(ty("blk.0.attn_output.weight"), 8);
}

/// A model of an architecture that requant does not know, with lists for its layers.
fn unknown(n_layer: u32) -> Gguf {
    let list = |id, values: Vec<Value>| Value::Array(id, values);
    let keys = [
        ("general.architecture", Value::str("lfm9")),
        ("lfm9.block_count", Value::U32(n_layer)),
        (
            "lfm9.attention.head_count_kv",
            list(5, (0..n_layer).map(|i| Value::I32(i as i32 % 3)).collect()),
        ),
        (
            "lfm9.attention.sliding_window_pattern",
            list(7, (0..n_layer).map(|i| Value::Bool(u8::from(i % 2 == 0))).collect()),
        ),
        ("lfm9.xielu.beta", list(6, (0..n_layer).map(|i| Value::F32(i as f32)).collect())),
        ("lfm9.rope.dimension_sections", list(5, vec![Value::I32(8); n_layer as usize])),
        ("lfm9.leading_dense_block_count", Value::U32(2)),
        ("other.list", list(4, (0..n_layer).map(Value::U32).collect())),
    ];
    let tensor = |name: String, fill: u8| {
        let data = [fill, 0, 128, 63].repeat(8);
        Tensor { name, dims: vec![4, 2], ty: 0, data }
    };
    let layers = (0..n_layer).map(|i| tensor(format!("blk.{i}.attn_x.weight"), i as u8));
    Gguf {
        version: 3,
        keys: keys.map(|(key, value)| (key.to_owned(), value)).into(),
        tensors: std::iter::once(tensor("token_embd.weight".into(), 99)).chain(layers).collect(),
    }
}

#[test]
fn lists_with_something_for_each_layer_lose_what_is_left_out() {
    let bench = Bench::new();
    let file = unknown(4);
    file.write(&bench.path("in.gguf"));
    let args = ["quantize", "in.gguf", "out.gguf", "COPY", "--prune-layers", "1,2", "--strict"];
    bench.run(&args).ok();
    let out = Gguf::read(&bench.path("out.gguf"));
    assert!(out.tensors == without(&file, &[1, 2]));
    let list = |key: &str| match out.get(key) {
        Some(Value::Array(_, values)) => values.clone(),
        other => panic!("{key}: {other:?}"),
    };
    assert_eq!(list("lfm9.attention.head_count_kv"), [Value::I32(0), Value::I32(0)]);
    assert_eq!(list("lfm9.attention.sliding_window_pattern"), [Value::Bool(1), Value::Bool(0)]);
    assert_eq!(list("lfm9.xielu.beta"), [Value::F32(0.0), Value::F32(3.0)]);
    assert_eq!(list("lfm9.rope.dimension_sections").len(), 4);
    assert_eq!(list("other.list").len(), 4);
    assert_eq!(out.get("lfm9.leading_dense_block_count"), Some(&Value::U32(1)));
    assert_eq!(out.get("lfm9.block_count"), Some(&Value::U32(2)));
    // What cannot follow is said.
    let mut file = file;
    file.set("lfm9.full_attention_interval", Value::U32(2)).write(&bench.path("in.gguf"));
    let said = bench.run(&[&args[..6], &["1", "--force"]].concat()).ok();
    assert_eq!(said.warnings().len(), 1, "{said:?}");
    said.says(&["lfm9.full_attention_interval"]);
}

#[test]
fn what_cannot_be_left_out_is_one_error() {
    let bench = Bench::new();
    let refused = |file: &str, layers: &str, words: &[&str]| {
        let out = ["out.gguf", "COPY", "--prune-layers", layers];
        bench.run(&[&["quantize", file][..], &out].concat()).fails(words);
        assert!(!bench.path("out.gguf").exists());
    };
    let (source, r1) = (fixture(BF16), fixture(TINY_R1));
    refused(&source, "0,1,2", &["all layers"]);
    refused(&source, "3", &["layer 3", "3 layers"]);
    refused(&source, "x", &["x"]);
    let args =
        ["convert", &r1, "out.gguf", "-t", "Q8_0", "--mtp", "keep", "--prune-layers", "2,1,0"];
    bench.run(&args).fails(&["all layers"]);
    let mut file = unknown(3);
    file.keys.retain(|(key, _)| key != "lfm9.block_count");
    file.write(&bench.path("in.gguf"));
    refused("in.gguf", "0", &["`lfm9.block_count` is missing"]);
    let mut file = unknown(3);
    file.set("lfm9.block_count", Value::str("three")).write(&bench.path("in.gguf"));
    refused("in.gguf", "0", &["lfm9.block_count"]);
    file.keys.clear();
    file.write(&bench.path("in.gguf"));
    refused("in.gguf", "0", &["block_count"]);
}

#[test]
fn keys_that_llama_cpp_reads_by_the_number_of_layers_are_there() {
    let bench = Bench::new();
    let lite = Gguf::read(Path::new("tests/fixtures/shapes/v2-lite.gguf"));
    assert_eq!(number(&lite, "attention.q_lora_rank"), None);
    let source = fixture("tests/fixtures/shapes/v2-lite.gguf");
    bench.run(&["quantize", &source, "o.gguf", "COPY", "--prune-layers", "1", "--strict"]).ok();
    let pruned = Gguf::read(&bench.path("o.gguf"));
    assert_eq!(number(&pruned, "attention.q_lora_rank"), Some(0));
    // A model with the key, of as many layers as those without.
    let source = Bench::bf16();
    let mut long = stacked(&source, &[&[0][..], &[1; 27]].concat(), 0);
    long.tensors.retain(|t| t.name.contains("norm.weight"));
    long.write(&bench.path("long.gguf"));
    let prune = |layers: &str| {
        let args = ["quantize", "long.gguf", "o.gguf", "COPY", "--force", "--prune-layers", layers];
        bench.run(&args).ok()
    };
    prune("3").says(&["llama.cpp loads no 27 layers with deepseek2.attention.q_lora_rank"]);
    assert_eq!(prune("3,4,5").warnings(), [""; 0]);
}

/// A model whose layers are some of another's, the last `nextn` of them for prediction.
fn stacked(file: &Gguf, layers: &[u32], nextn: u32) -> Gguf {
    let arch = arch(file);
    let mut out = Gguf { tensors: Vec::new(), ..file.clone() };
    out.tensors.extend(file.tensors.iter().filter(|t| in_layer(&t.name).is_none()).cloned());
    for (i, &layer) in layers.iter().enumerate() {
        let of_layer = |t: &&Tensor| in_layer(&t.name).is_some_and(|(l, _)| l == layer);
        out.tensors.extend(file.tensors.iter().filter(of_layer).map(|t| {
            let name = format!("blk.{i}.{}", in_layer(&t.name).unwrap().1);
            Tensor { name, ..t.clone() }
        }));
    }
    out.set(&format!("{arch}.block_count"), Value::U32(layers.len() as u32));
    if let Some(dense) = number(file, "leading_dense_block_count") {
        let dense = layers.iter().filter(|&&l| l < dense).count() as u32;
        out.set(&format!("{arch}.leading_dense_block_count"), Value::U32(dense));
    }
    if nextn > 0 {
        out.set(&format!("{arch}.nextn_predict_layers"), Value::U32(nextn));
    }
    out
}

#[test]
fn any_layers_at_once_or_one_after_the_other() {
    let bench = Bench::new();
    for (name, seed) in [("deepseek-v2", 1), ("qwen2-tied", 2), ("llama3", 3)] {
        let rng = &mut Rng(seed);
        let checkpoint = bench.checkpoint(&format!("family/{name}"), name);
        bench.run(&["convert", checkpoint.name(), "base.gguf", "--outtype", "f16", "--force"]).ok();
        let base = Gguf::read(&bench.path("base.gguf"));
        let moe = number(&base, "leading_dense_block_count").is_some();
        for _ in 0..8 {
            // Layer 0 is the dense one, and those in front are.
            let n = 2 + rng.below(5) as usize;
            let mut layers: Vec<u32> = (0..n).map(|_| rng.below(2) as u32).collect();
            let nextn = u32::from(moe && n > 2 && rng.chance(2));
            if moe {
                layers.sort_unstable();
                layers[n - 1] = 1;
            }
            let whole = stacked(&base, &layers, nextn);
            whole.write(&bench.path("whole.gguf"));
            let pruned: Vec<u32> = (0..n as u32).filter(|_| rng.chance(2)).collect();
            let ahead = (n as u32 - nextn) as usize;
            if pruned.is_empty()
                || pruned.iter().filter(|&&l| (l as usize) < ahead).count() == ahead
            {
                continue;
            }
            let prune = |from: &str, to: &str, layers: &[u32]| {
                let layers: Vec<String> = layers.iter().map(u32::to_string).collect();
                let layers = layers.join(",");
                let args = ["quantize", from, to, "COPY", "--force", "--prune-layers", &layers];
                bench.run(&[&args[..], &["--strict"]].concat()).ok();
            };
            prune("whole.gguf", "once.gguf", &pruned);
            let once = Gguf::read(&bench.path("once.gguf"));
            assert!(once.tensors == without(&whole, &pruned), "{name} {layers:?} {pruned:?}");
            let left: Vec<u32> = (0..n as u32).filter(|l| !pruned.contains(l)).collect();
            let kept: Vec<u32> = left.iter().map(|&l| layers[l as usize]).collect();
            let expected =
                stacked(&base, &kept, u32::from(nextn > 0 && left.last() == Some(&(n as u32 - 1))));
            for key in ["block_count", "leading_dense_block_count"] {
                assert_eq!(number(&once, key), number(&expected, key), "{layers:?} {pruned:?}");
            }
            let nextn = |file| number(file, "nextn_predict_layers").unwrap_or(0);
            assert_eq!(nextn(&once), nextn(&expected), "{layers:?} {pruned:?}");
            // In two steps, the last layers first.
            if pruned.len() > 1 {
                let (first, rest) = pruned.split_at(1);
                prune("whole.gguf", "some.gguf", rest);
                prune("some.gguf", "twice.gguf", first);
                let [once, twice] =
                    ["once.gguf", "twice.gguf"].map(|f| std::fs::read(bench.path(f)));
                assert!(once.unwrap() == twice.unwrap(), "{name} {layers:?} {pruned:?}");
            }
            runs(&bench, "once.gguf");
            bench
                .run(&[
                    "quantize",
                    "whole.gguf",
                    "q.gguf",
                    "Q4_0",
                    "--force",
                    "--prune-layers",
                    &pruned[0].to_string(),
                ])
                .ok();
        }
    }
}
