//! Checkpoints as they are stored: what is left out of them, and generated ones, in which everything comes
//! together. Scales and shards have files of their own.

use crate::raw::{Bench, Checkpoint, Gguf, Rng, Said, St};
use crate::scales::*;
use serde_json::{Value as Json, json};
use std::collections::BTreeMap;

pub const SINGLE: &str = "model.safetensors";
pub const INDEX: &str = "model.safetensors.index.json";
pub const UP: &str = "model.layers.0.mlp.up_proj.weight";

pub fn f32_bytes(values: &[f32]) -> Vec<u8> {
    values.iter().flat_map(|x| x.to_le_bytes()).collect()
}

/// The tensors of a file by name, and nothing of their order.
pub fn sorted(file: &Gguf) -> BTreeMap<&str, (u32, &[u64], &[u8])> {
    let tensors = file.tensors.iter();
    tensors.map(|t| (t.name.as_str(), (t.ty, t.dims.as_slice(), t.data.as_slice()))).collect()
}

/// Converts without loss.
pub fn convert(bench: &Bench, name: &str, more: &[&str]) -> (Said, Option<Gguf>) {
    let out = format!("{name}.gguf");
    let args = [&["convert", name, &out, "--outtype", "f32", "--force"], more].concat();
    let said = bench.run(&args);
    let file = (said.code == Some(0)).then(|| Gguf::read(&bench.path(&out)));
    (said, file)
}

/// Fails to convert, with these words in one line of error.
#[track_caller]
pub fn refused(bench: &Bench, name: &str, words: &[&str]) {
    let said = bench.run(&["convert", name, "o.gguf", "--type", "Q8_0", "--force"]).fails(words);
    let errors = said.stderr.lines().filter(|line| line.starts_with("requant:")).count();
    assert_eq!(errors, 1, "{said:#?}");
    assert!(!bench.path("o.gguf").exists());
}

#[track_caller]
pub fn same_tensors(a: &Gguf, b: &Gguf) {
    let (a, b) = (sorted(a), sorted(b));
    assert_eq!(a.keys().collect::<Vec<_>>(), b.keys().collect::<Vec<_>>());
    for (name, tensor) in a {
        assert!(tensor == b[name], "{name} is another");
    }
}

/// A fixture in one file, with the file as it converts.
pub fn qwen2(bench: &Bench) -> (Checkpoint, Gguf) {
    let copy = bench.checkpoint("family/qwen2", "c");
    let (said, plain) = convert(bench, "c", &["--strict"]);
    assert!(said.ok().warnings().is_empty());
    (copy, plain.unwrap())
}

/// A fixture in three shards, and the file of the same with all of them there.
pub fn tiny_r1(bench: &Bench) -> (Checkpoint, Gguf) {
    let copy = bench.checkpoint("tiny-r1", "c");
    let (said, plain) = convert(bench, "c", &["--strict"]);
    assert!(said.ok().warnings().is_empty());
    (copy, plain.unwrap())
}

pub fn shard(n: usize) -> String {
    format!("model-{n:05}-of-00003.safetensors")
}

/// Whether a conversion gives the file expected, with one warning that has these words, or without any.
#[track_caller]
pub fn converts(bench: &Bench, expected: &Gguf, words: &[&str]) -> Said {
    let (said, file) = convert(bench, "c", &[]);
    let said = said.ok();
    same_tensors(&file.unwrap(), expected);
    let warnings = said.warnings();
    assert_eq!(warnings.len(), usize::from(!words.is_empty()), "{said:#?}");
    for word in words {
        assert!(warnings[0].contains(word), "no `{word}` in {warnings:?}");
    }
    let (strict, _) = convert(bench, "c", &["--strict"]);
    assert_eq!(strict.code, Some(i32::from(!words.is_empty())), "{strict:#?}");
    said
}

#[test]
fn scales_of_activations_and_caches_and_buffers_are_counted() {
    let bench = Bench::new();
    let (copy, plain) = qwen2(&bench);
    let attention = "model.layers.0.self_attn";
    let extra = [
        ("cache_scales", format!("{attention}.k_scale"), "F32"),
        ("cache_scales", format!("{attention}.attn.v_scale"), "F32"),
        ("cache_scales", format!("{attention}.kv_scale"), "BF16"),
        ("cache_scales", format!("{attention}.k_proj.output_scale"), "F32"),
        ("cache_scales", format!("{attention}.v_proj.v_scale"), "F32"),
        ("cache_scales", format!("{attention}.k_zero_point"), "I8"),
        ("activation_scales", format!("{attention}.q_proj.input_scale"), "F32"),
        ("activation_scales", format!("{attention}.q_proj.act_scale"), "F32"),
        ("activation_scales", format!("{attention}.o_proj.input_zero_point"), "I8"),
        ("activation_scales", format!("{attention}.q_proj.activation_scale"), "F32"),
        ("activation_scales", format!("{attention}.q_scale"), "F32"),
        ("activation_scales", format!("{attention}.prob_output_scale"), "F32"),
        ("activation_scales", "model.layers.1.mlp.down_proj.input_scale_ub".to_owned(), "F32"),
        ("rotary_frequencies", format!("{attention}.rotary_emb.inv_freq"), "F32"),
        ("rotary_frequencies", "model.rotary_emb.inv_freq".to_owned(), "F64"),
        ("buffers", "model.position_ids".to_owned(), "I64"),
        ("buffers", format!("{attention}.attention.masked_bias"), "BOOL"),
        ("buffers", "scaled_fp8".to_owned(), "F8_E4M3"),
    ];
    copy.edit_shard(SINGLE, |st| {
        for (_, name, dtype) in &extra {
            let width = match *dtype {
                "F32" => 4,
                "BF16" => 2,
                "I64" | "F64" => 8,
                _ => 1,
            };
            st.set(name, dtype, &[1], vec![1; width]);
        }
    });
    let said = converts(&bench, &plain, &[]);
    said.says(&[
        "left out",
        "2 tensors of rotary",
        "6 cache scales",
        "7 activation scales",
        "3 buffers",
    ]);
    let plan = ["plan", "c", "--type", "Q8_0", "--json"];
    let counts =
        json!({"rotary_frequencies": 2, "cache_scales": 6, "activation_scales": 7, "buffers": 3});
    let said = bench.run(&plan).ok();
    assert_eq!(said.json()["left_out"], counts);
    assert!(!said.stderr.contains("MTP"), "{said:#?}");
    let convert = ["convert", "c", "o.gguf", "--type", "Q8_0", "--json", "-q"];
    assert_eq!(bench.run(&convert).ok().json()["left_out"], counts);
    // What is not known stays an error.
    std::fs::remove_file(bench.path("o.gguf")).unwrap();
    copy.edit_shard(SINGLE, |st| {
        st.set("model.layers.0.self_attn.k_shift", "F32", &[1], vec![0; 4])
    });
    refused(&bench, "c", &["k_shift", "no place"]);
}

#[test]
fn a_plan_speaks_of_mtp_where_there_is_one() {
    let bench = Bench::new();
    let (copy, dropped) = tiny_r1(&bench);
    let plan = ["plan", "c", "--type", "Q8_0", "--json"];
    assert_eq!(bench.run(&plan).ok().json()["left_out"], json!({"mtp": 124}));
    let said = bench.run(&plan[..4]).ok().stdout;
    assert!(said.contains("MTP layer  dropped with"), "{said}");
    // Checkpoints stored anew say nothing of their layer.
    copy.edit("config.json", |json| {
        drop(json.as_object_mut().unwrap().remove("num_nextn_predict_layers"))
    });
    converts(&bench, &dropped, &[]);
    assert_eq!(bench.run(&plan).ok().json()["left_out"], json!({"mtp": 124}));
    let (said, kept) = convert(&bench, "c", &["--mtp", "keep"]);
    said.ok().says(&["MTP layer  1 kept"]);
    let kept = kept.unwrap();
    assert!(kept.tensor("blk.3.nextn.eh_proj.weight").is_some());
    assert_eq!(kept.get("deepseek2.nextn_predict_layers"), Some(&crate::raw::Value::U32(1)));
    // Kimi K2 says 0 and has none.
    copy.edit("config.json", |json| json["num_nextn_predict_layers"] = 0.into());
    (1..=3).for_each(|n| {
        copy.edit_shard(&shard(n), |st| {
            st.tensors.retain(|(name, _)| !name.starts_with("model.layers.3."))
        });
    });
    copy.edit(INDEX, |json| {
        json["weight_map"]
            .as_object_mut()
            .unwrap()
            .retain(|name, _| !name.starts_with("model.layers.3."))
    });
    let said = converts(&bench, &dropped, &[]);
    assert!(!said.stderr.contains("MTP"), "{said:#?}");
}

#[test]
fn layers_beyond_the_declared_ones_are_no_mtp_layers() {
    let bench = Bench::new();
    for (fixture, declared, words) in [
        ("family/qwen2", 1, ["`num_hidden_layers` is 1", "layers 1 besides"]),
        ("family/llama3", 1, ["`num_hidden_layers` is 1", "layers 1 besides"]),
        ("tiny-r1", 2, ["`num_hidden_layers` is 2", "layers 2 besides"]),
        ("tiny-r1", 1, ["`num_hidden_layers` is 1", "layers 1-2 besides"]),
    ] {
        let copy = bench.checkpoint(fixture, "c");
        copy.edit("config.json", |json| json["num_hidden_layers"] = declared.into());
        refused(&bench, "c", &[&["config.json"], &words[..]].concat());
    }
}

/// A checkpoint that is stored in one of many ways, and the same model as exact products in one plain file.
/// What is done to it that a warning or an error should name comes back as words.
fn generated(bench: &Bench, seed: u64) -> (Vec<&'static str>, Vec<&'static str>) {
    let mut rng = Rng(seed);
    let fixture = *rng.pick(&[
        "family/qwen2",
        "family/qwen2-tied",
        "family/qwen3",
        "family/llama3",
        "family/llama-bias",
        "family/deepseek-v2",
    ]);
    let [copy, plain] = ["c", "plain"].map(|name| bench.checkpoint(fixture, name));
    let mut st = St::read(&copy.path(SINGLE));
    let mut products = st.clone();
    let (mut warnings, mut errors) = (Vec::new(), Vec::new());
    let method = *rng.pick(&["fp8", "compressed-tensors", "quark"]);
    let scale_name = *rng.pick(&SCALE_NAMES);
    let mut n_scaled = 0;
    for (name, (_, shape, _)) in products.clone().tensors {
        if name.ends_with("_proj.weight") && !rng.chance(4) {
            let dtype = if rng.chance(5) { "F8_E5M2" } else { "F8_E4M3" };
            let (kind, of) = (*rng.pick(&KINDS), *rng.pick(&SCALE_DTYPES));
            let block = [1 << rng.below(6), 1 << rng.below(6)];
            let values = quantize(&mut st, &name, dtype, scale_name, kind, (of, block), &mut rng);
            products.set(&name, "F32", &shape, f32_bytes(&values));
            n_scaled += 1;
        }
    }
    products.write(&plain.path(SINGLE));
    match rng.below(3) {
        0 if n_scaled > 0 => {
            copy.edit("config.json", |json| json["quantization_config"] = Json::Null);
            warnings.push("declares no quantization");
        }
        _ => {
            copy.edit("config.json", |json| {
                json["quantization_config"] = json!({"quant_method": method})
            });
            warnings.extend((n_scaled == 0).then_some("and none is"));
        }
    }
    // What no model needs.
    let extra =
        ["self_attn.k_scale", "self_attn.q_proj.input_scale", "self_attn.rotary_emb.inv_freq"];
    for name in extra.iter().filter(|_| rng.chance(2)).copied().collect::<Vec<_>>() {
        st.set(&format!("model.layers.1.{name}"), "F32", &[], 1f32.to_le_bytes().to_vec());
    }
    match rng.below(8) {
        0 => {
            st.set("model.layers.1.mlp.down_proj.qzeros", "I32", &[1], vec![0; 4]);
            errors.push("is packed by");
        }
        1 => {
            st.set("model.layers.2.mlp.down_proj.weight", "BF16", &[1], vec![0; 2]);
            errors.push("`num_hidden_layers` is 2");
        }
        2 => {
            st.remove("model.layers.1.mlp.down_proj.weight");
            errors.push("model.layers.1.mlp.down_proj.weight");
        }
        _ => {}
    }
    let (stale, missing) = store(&copy, &st, &mut rng);
    warnings.extend(stale);
    errors.extend(missing);
    (warnings, errors)
}

/// Stores tensors in files that relate to each other in some way. Returns what a warning and what an error
/// should name.
fn store(
    copy: &Checkpoint,
    st: &St,
    rng: &mut Rng,
) -> (Option<&'static str>, Option<&'static str>) {
    let n = 1 + rng.below(4) as usize;
    if n == 1 {
        st.write(&copy.path(SINGLE));
        return (None, None);
    }
    std::fs::remove_file(copy.path(SINGLE)).unwrap();
    let stem = *rng.pick(&["model", "pytorch_model", "parts/weights"]);
    std::fs::create_dir_all(copy.path("parts")).unwrap();
    let file = |i: usize| format!("{stem}-{:05}-of-{n:05}.safetensors", i + 1);
    let mut shards: Vec<St> = (0..n).map(|_| St::default()).collect();
    let mut map = serde_json::Map::new();
    for (i, tensor) in st.tensors.iter().enumerate() {
        // At least one in each.
        let shard = if i < n { i } else { rng.below(n as u64) as usize };
        shards[shard].tensors.push(tensor.clone());
        map.insert(tensor.0.clone(), file(shard).into());
        // Some are there twice.
        if rng.chance(20) {
            shards[(shard + 1) % n].tensors.push(tensor.clone());
        }
    }
    shards.iter().enumerate().for_each(|(i, shard)| shard.write(&copy.path(&file(i))));
    if stem == "model" && rng.chance(3) {
        return (None, None);
    }
    let mut found = (None, None);
    match rng.below(6) {
        0 => {
            map.remove("model.norm.weight");
            found.0 = Some("does not list");
        }
        1 => {
            map.insert("model.phantom".to_owned(), file(0).into());
            found.0 = Some("`model.phantom`");
        }
        2 => {
            map.insert("model.layers.0.self_attn.v_scale".to_owned(), "gone.safetensors".into());
        }
        3 => {
            std::fs::remove_file(copy.path(&file(0))).unwrap();
            found.1 = Some("complete the download");
        }
        4 => {
            st.write(&copy.path("model-00001-of-00009.safetensors"));
            found.0 = Some("model-00001-of-00009.safetensors");
        }
        _ => {}
    }
    copy.write_json(INDEX, &json!({"metadata": {}, "weight_map": map}));
    found
}

#[test]
fn generated_checkpoints_give_their_products_or_one_error() {
    let bench = Bench::new();
    for seed in 0..60 {
        let (warnings, errors) = generated(&bench, seed);
        let (_, plain) = convert(&bench, "plain", &[]);
        let (said, file) = convert(&bench, "c", &[]);
        if errors.is_empty() {
            let said = said.ok();
            same_tensors(&file.unwrap(), &plain.unwrap());
            assert_eq!(
                said.warnings().len(),
                warnings.len(),
                "seed {seed}: {warnings:?} in {said:#?}"
            );
            warnings
                .iter()
                .for_each(|word| assert!(said.stderr.contains(word), "seed {seed}: {said:#?}"));
        } else {
            let said = said.fails(&[]);
            let named = errors.iter().any(|word| said.stderr.contains(word));
            assert!(named, "seed {seed}: none of {errors:?} in {said:#?}");
            let n = said.stderr.lines().filter(|line| line.starts_with("requant:")).count();
            assert_eq!(n, 1, "seed {seed}: {said:#?}");
        }
    }
}
