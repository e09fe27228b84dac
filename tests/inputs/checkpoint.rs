//! Checkpoints as they are stored: declarations against tensors, scales by any name and of any shape,
//! index and shards in every relation, files that are not what they seem, and what is left out.

use crate::raw::{Bench, Checkpoint, Gguf, Rng, Said, St, StTensor, e4m3};
use serde_json::{Value as Json, json};
use std::collections::BTreeMap;

const SINGLE: &str = "model.safetensors";
const INDEX: &str = "model.safetensors.index.json";
const UP: &str = "model.layers.0.mlp.up_proj.weight";

fn bf16(x: f32) -> [u8; 2] {
    ((x.to_bits() >> 16) as u16).to_le_bytes()
}

fn f16(bits: u16) -> f32 {
    let (e, m) = (i32::from(bits >> 10 & 31), f32::from(bits & 1023) / 1024.0);
    let value = if e == 0 { m * 2f32.powi(-14) } else { (1.0 + m) * 2f32.powi(e - 15) };
    if bits >> 15 == 1 { -value } else { value }
}

fn f32_bytes(values: &[f32]) -> Vec<u8> {
    values.iter().flat_map(|x| x.to_le_bytes()).collect()
}

/// The tensors of a file by name, and nothing of their order.
fn sorted(file: &Gguf) -> BTreeMap<&str, (u32, &[u64], &[u8])> {
    let tensors = file.tensors.iter();
    tensors.map(|t| (t.name.as_str(), (t.ty, t.dims.as_slice(), t.data.as_slice()))).collect()
}

/// Converts without loss.
fn convert(bench: &Bench, name: &str, more: &[&str]) -> (Said, Option<Gguf>) {
    let out = format!("{name}.gguf");
    let args = [&["convert", name, &out, "--outtype", "f32", "--force"], more].concat();
    let said = bench.run(&args);
    let file = (said.code == Some(0)).then(|| Gguf::read(&bench.path(&out)));
    (said, file)
}

/// Fails to convert, with these words in one line of error.
#[track_caller]
fn refused(bench: &Bench, name: &str, words: &[&str]) {
    let said = bench.run(&["convert", name, "o.gguf", "--type", "Q8_0", "--force"]).fails(words);
    let errors = said.stderr.lines().filter(|line| line.starts_with("requant:")).count();
    assert_eq!(errors, 1, "{said:#?}");
    assert!(!bench.path("o.gguf").exists());
}

#[track_caller]
fn same_tensors(a: &Gguf, b: &Gguf) {
    let (a, b) = (sorted(a), sorted(b));
    assert_eq!(a.keys().collect::<Vec<_>>(), b.keys().collect::<Vec<_>>());
    for (name, tensor) in a {
        assert!(tensor == b[name], "{name} is another");
    }
}

/// A fixture in one file, with the file as it converts.
fn qwen2(bench: &Bench) -> (Checkpoint, Gguf) {
    let copy = bench.checkpoint("family/qwen2", "c");
    let (said, plain) = convert(bench, "c", &["--strict"]);
    assert!(said.ok().warnings().is_empty());
    (copy, plain.unwrap())
}

/// A fixture in three shards, and the file of the same with all of them there.
fn tiny_r1(bench: &Bench) -> (Checkpoint, Gguf) {
    let copy = bench.checkpoint("tiny-r1", "c");
    let (said, plain) = convert(bench, "c", &["--strict"]);
    assert!(said.ok().warnings().is_empty());
    (copy, plain.unwrap())
}

fn shard(n: usize) -> String {
    format!("model-{n:05}-of-00003.safetensors")
}

/// Whether a conversion gives the file expected, with one warning that has these words, or without any.
#[track_caller]
fn converts(bench: &Bench, expected: &Gguf, words: &[&str]) -> Said {
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
fn a_declaration_that_no_tensor_follows_is_a_warning() {
    let bench = Bench::new();
    let (copy, plain) = qwen2(&bench);
    let old = copy.json("config.json");
    for (key, declared, word) in [
        (
            "quantization_config",
            json!({"quant_method": "bitsandbytes", "load_in_4bit": true}),
            "bitsandbytes",
        ),
        ("quantization_config", json!({"quant_method": "gptq", "bits": 4}), "gptq"),
        ("quantization_config", json!({"quant_method": "awq", "bits": 4}), "awq"),
        ("quantization_config", json!({"quant_method": "hqq"}), "hqq"),
        ("quantization_config", json!({"quant_method": "quanto", "weights": "int8"}), "quanto"),
        (
            "quantization_config",
            json!({"quant_method": "fp8", "weight_block_size": [128, 128]}),
            "fp8",
        ),
        (
            "quantization_config",
            json!({"quant_method": "of tomorrow", "what": null}),
            "of tomorrow",
        ),
        ("quantization_config", json!({}), "unnamed"),
        ("compression_config", channels(), "compressed-tensors"),
    ] {
        copy.edit("config.json", |json| json[key] = declared);
        converts(&bench, &plain, &["config.json", word]);
        copy.write_json("config.json", &old);
    }
    copy.edit("config.json", |json| json["quantization_config"] = Json::Null);
    converts(&bench, &plain, &[]);
}

fn channels() -> Json {
    let weights = json!({"num_bits": 8, "type": "float", "strategy": "channel"});
    let groups = json!({"group_0": {"targets": ["Linear"], "weights": weights}});
    json!({"quant_method": "compressed-tensors", "format": "float-quantized",
        "config_groups": groups, "ignore": ["lm_head"]})
}

#[test]
fn packed_weights_are_named_with_their_format() {
    let bench = Bench::new();
    let stem = "model.layers.1.mlp.down_proj";
    for (parts, method, words) in [
        (
            &[("qweight", "I32"), ("qzeros", "I32"), ("scales", "F16"), ("g_idx", "I32")][..],
            Some("gptq"),
            "gptq",
        ),
        (&[("qweight", "I32"), ("qzeros", "I32"), ("scales", "F16")], Some("awq"), "awq"),
        (&[("qweight", "I32"), ("qzeros", "I32"), ("scales", "F16")], None, "GPTQ or AWQ"),
        (
            &[
                ("weight", "U8"),
                ("weight.absmax", "U8"),
                ("weight.quant_map", "F32"),
                ("weight.quant_state.bitsandbytes__nf4", "U8"),
            ],
            None,
            "bitsandbytes",
        ),
        (&[("weight", "I8"), ("SCB", "F32"), ("weight_format", "U8")], None, "bitsandbytes"),
        (
            &[("weight_packed", "I32"), ("weight_scale", "BF16"), ("weight_shape", "I64")],
            Some("compressed-tensors"),
            "compressed-tensors",
        ),
        (
            &[("weight_packed", "U8"), ("weight_scale", "F8_E4M3"), ("weight_global_scale", "F32")],
            None,
            "compressed-tensors",
        ),
        (&[("W_q", "U8"), ("meta", "F32")], None, "HQQ"),
        (&[("weight._data", "I8"), ("weight._scale", "BF16")], None, "quanto"),
        (&[("weight", "I8"), ("weight_scale", "F32")], Some("w8a8_int8"), "w8a8_int8"),
        (&[("weight", "I8")], None, "I8"),
        (&[("weight", "F64")], None, "F64"),
        (&[("weight", "I64")], None, "I64"),
    ] {
        let copy = bench.checkpoint("family/qwen2", "c");
        copy.edit_shard(SINGLE, |st| {
            st.remove(&format!("{stem}.weight"));
            for (part, dtype) in parts {
                let width = match *dtype {
                    "I64" | "F64" => 8,
                    "I32" | "F32" => 4,
                    "F16" | "BF16" => 2,
                    _ => 1,
                };
                st.set(&format!("{stem}.{part}"), dtype, &[32, 96], vec![1; 32 * 96 * width]);
            }
        });
        copy.edit("config.json", |json| {
            json["quantization_config"] = method.map_or(Json::Null, |m| json!({"quant_method": m}));
        });
        refused(&bench, "c", &[SINGLE, stem, words]);
    }
}

#[test]
fn nvfp4_and_fp8_need_no_declaration() {
    let bench = Bench::new();
    for (fixture, dtype) in [("nvfp4/llama", "NVFP4"), ("tiny-r1", "F8_E4M3")] {
        let copy = bench.checkpoint(fixture, "c");
        let (said, declared) = convert(&bench, "c", &["--strict"]);
        assert!(said.ok().warnings().is_empty(), "{dtype}");
        copy.edit("config.json", |json| {
            drop(json.as_object_mut().unwrap().remove("quantization_config"))
        });
        converts(
            &bench,
            &declared.unwrap(),
            &["config.json", "declares no quantization", "weight"],
        );
    }
    let copy = bench.checkpoint("nvfp4/llama", "c");
    let (_, declared) = convert(&bench, "c", &[]);
    copy.edit("config.json", |json| {
        drop(json.as_object_mut().unwrap().remove("quantization_config"))
    });
    copy.write_json(
        "hf_quant_config.json",
        &json!({"producer": {"name": "modelopt", "version": "0.29"},
        "quantization": {"quant_algo": "NVFP4", "kv_cache_quant_algo": "FP8"}}),
    );
    converts(&bench, &declared.unwrap(), &[]);
}

/// Rows and columns that share a scale, and how the scales are laid out.
struct Grid {
    block: [u64; 2],
    shape: Vec<u64>,
}

fn grid(kind: &str, rows: u64, columns: u64, block: [u64; 2]) -> Grid {
    let [a, b] = [rows.div_ceil(block[0]), columns.div_ceil(block[1])];
    match kind {
        "[]" => Grid { block: [rows, columns], shape: vec![] },
        "[1]" => Grid { block: [rows, columns], shape: vec![1] },
        "[1, 1]" => Grid { block: [rows, columns], shape: vec![1, 1] },
        "[n]" => Grid { block: [1, columns], shape: vec![rows] },
        "[n, 1]" => Grid { block: [1, columns], shape: vec![rows, 1] },
        "block" => Grid { block, shape: vec![a, b] },
        "block, 1" => Grid { block, shape: vec![a, 1, b, 1] },
        _ => panic!("{kind}"),
    }
}

/// A scale's bytes and its value.
fn scale(dtype: &str, rng: &mut Rng) -> (Vec<u8>, f32) {
    let power = rng.below(9) as i32 - 6;
    let x = (1.0 + rng.below(128) as f32 / 128.0) * 2f32.powi(power);
    match dtype {
        "F32" => {
            let x = x * 1.000_123;
            (x.to_le_bytes().to_vec(), x)
        }
        "BF16" => (bf16(x).to_vec(), x),
        "F16" => {
            let bits = ((power + 15) as u16) << 10 | rng.below(1024) as u16;
            (bits.to_le_bytes().to_vec(), f16(bits))
        }
        "F8_E8M0" | "U8" => (vec![(power + 127) as u8], 2f32.powi(power)),
        _ => panic!("{dtype}"),
    }
}

/// Makes FP8 of a matrix, with scales beside it; returns the products.
fn quantize(
    st: &mut St,
    name: &str,
    dtype: &str,
    scale_name: &str,
    kind: &str,
    of: (&str, [u64; 2]),
    rng: &mut Rng,
) -> Vec<f32> {
    let (scale_dtype, block) = of;
    let (_, shape, _) = st.get(name).unwrap().clone();
    let [rows, columns] = shape[..] else { panic!("{name}") };
    let Grid { block, shape: grid } = grid(kind, rows, columns, block);
    let codes: Vec<u8> = match dtype {
        "F8_E4M3" => rng.bytes((rows * columns) as usize).iter().map(|b| b & 0xf7).collect(),
        _ => rng.bytes((rows * columns) as usize).iter().map(|b| b & 0xef).collect(),
    };
    let n = grid.iter().product::<u64>();
    let (bytes, factors): (Vec<Vec<u8>>, Vec<f32>) =
        (0..n).map(|_| scale(scale_dtype, rng)).unzip();
    let per_row = columns.div_ceil(block[1]);
    let value = |i: u64| {
        let (r, c) = (i / columns, i % columns);
        let code = codes[i as usize];
        let value = if dtype == "F8_E4M3" { e4m3(code) } else { f16(u16::from(code) << 8) };
        value * factors[(r / block[0] * per_row + c / block[1]) as usize]
    };
    let products = (0..rows * columns).map(value).collect();
    st.set(name, dtype, &shape, codes);
    let stem = name.strip_suffix(".weight").unwrap();
    let scale_name = match scale_name.strip_prefix('.') {
        Some(_) => format!("{stem}{scale_name}"),
        None => format!("{stem}.{scale_name}"),
    };
    st.set(&scale_name, scale_dtype, &grid, bytes.concat());
    products
}

const SCALE_NAMES: [&str; 5] =
    ["weight_scale_inv", "weight_scale", ".scale_weight", ".qscale_weight", ".scale"];
const SCALE_DTYPES: [&str; 5] = ["F32", "BF16", "F16", "F8_E8M0", "U8"];
const KINDS: [&str; 7] = ["[]", "[1]", "[1, 1]", "[n]", "[n, 1]", "block", "block, 1"];

#[test]
fn values_are_products_whatever_scales_are_called_and_shaped() {
    let bench = Bench::new();
    let mut rng = Rng(7);
    let copy = bench.checkpoint("family/qwen2", "c");
    let original = St::read(&copy.path(SINGLE));
    let mut case = |dtype: &str, name: &str, kind: &str, of: (&str, [u64; 2]), declared: Json| {
        let mut st = original.clone();
        let mut plain = original.clone();
        for (tensor, (_, shape, _)) in &original.tensors {
            if tensor.ends_with("_proj.weight") {
                let products = quantize(&mut st, tensor, dtype, name, kind, of, &mut rng);
                plain.set(tensor, "F32", shape, f32_bytes(&products));
            }
        }
        let without = bench.checkpoint("family/qwen2", "plain");
        plain.write(&without.path(SINGLE));
        st.write(&copy.path(SINGLE));
        copy.edit("config.json", |json| json["quantization_config"] = declared);
        let (_, plain) = convert(&bench, "plain", &["--strict"]);
        converts(&bench, &plain.unwrap(), &[]);
    };
    let fp8 = json!({"quant_method": "fp8"});
    for name in SCALE_NAMES {
        case("F8_E4M3", name, "[]", ("F32", [1, 1]), fp8.clone());
    }
    for kind in KINDS {
        case("F8_E4M3", "weight_scale", kind, ("BF16", [16, 32]), channels());
    }
    for dtype in SCALE_DTYPES {
        case("F8_E4M3", "weight_scale_inv", "block", (dtype, [32, 16]), fp8.clone());
    }
    case("F8_E5M2", "weight_scale", "[n, 1]", ("F32", [1, 1]), fp8);
    // Blocks of an extent that is no power of two have to be declared.
    let declared = json!({"quant_method": "fp8", "weight_block_size": [24, 10]});
    case("F8_E4M3", "weight_scale_inv", "block", ("F32", [24, 10]), declared);
    let weights = |more: Json| {
        let groups = json!({"group_0": {"weights": null}, "group_1": {"weights": more}});
        json!({"quant_method": "compressed-tensors", "config_groups": groups})
    };
    let blocks = weights(json!({"strategy": "block", "block_structure": [20, 12]}));
    case("F8_E4M3", "weight_scale", "block", ("F32", [20, 12]), blocks);
    let groups = weights(json!({"strategy": "group", "group_size": 8}));
    case("F8_E4M3", "weight_scale", "block", ("F32", [1, 8]), groups);
}

#[test]
fn scales_that_do_not_fit_or_make_no_sense_are_named() {
    let bench = Bench::new();
    let mut rng = Rng(8);
    let mut case = |name: &str, kind: &str, edit: &dyn Fn(&mut St, &str), words: &[&str]| {
        let copy = bench.checkpoint("family/qwen2", "c");
        copy.edit_shard(SINGLE, |st| {
            quantize(st, UP, "F8_E4M3", name, kind, ("F32", [32, 16]), &mut rng);
            edit(st, &UP.replace("weight", name));
        });
        copy.edit("config.json", |json| json["quantization_config"] = channels());
        refused(&bench, "c", words);
    };
    let set = |x: f32| {
        move |st: &mut St, scale: &str| st.get_mut(scale).2[..4].copy_from_slice(&x.to_le_bytes())
    };
    for (x, word) in [(f32::NAN, "NaN"), (f32::INFINITY, "inf"), (-1.0, "-1")] {
        for kind in ["[]", "[n, 1]", "block"] {
            case("weight_scale", kind, &set(x), &[SINGLE, "up_proj.weight_scale`", word]);
        }
    }
    case(
        "weight_scale",
        "[n]",
        &|st, scale| st.get_mut(scale).1 = vec![32, 3],
        &["up_proj.weight_scale`", "[32, 3]"],
    );
    case(
        "weight_scale",
        "[]",
        &|st, scale| st.set(scale, "F64", &[], vec![1; 8]),
        &["up_proj.weight_scale`", "F64"],
    );
    case("weight_scale", "[]", &|st, scale| st.remove(scale), &["up_proj.weight`", "is missing"]);
    case(
        "weight_scale",
        "[]",
        &|st, scale| st.set(&scale.replace("_scale", "_scale_inv"), "F32", &[], vec![1; 4]),
        &["up_proj.weight`", "two scales"],
    );
    let zero_point = |byte| {
        move |st: &mut St, scale: &str| {
            st.set(&scale.replace("_scale", "_zero_point"), "I8", &[1], vec![byte])
        }
    };
    case("weight_scale", "[]", &zero_point(3), &["up_proj.weight_zero_point`", "not 0"]);
    case(
        "weight_scale",
        "[]",
        &|st, _| st.set("model.layers.0.mlp.up_proj.what_scale", "F32", &[], vec![1; 4]),
        &["what_scale` has no place"],
    );
    // Weights that somebody dequantized, with the scales of before.
    let copy = bench.checkpoint("family/qwen2", "c");
    copy.edit_shard(SINGLE, |st| st.set(&format!("{UP}_scale_inv"), "F32", &[1, 1], vec![1; 4]));
    refused(&bench, "c", &["up_proj.weight_scale_inv", "no quantized tensor", "dequantized"]);
}

#[test]
fn an_fp8_code_that_is_no_number_is_named() {
    let bench = Bench::new();
    for (dtype, code) in [("F8_E4M3", 0x7f), ("F8_E5M2", 0xfc), ("F8_E5M2", 0x7d)] {
        let copy = bench.checkpoint("family/qwen2", "c");
        copy.edit_shard(SINGLE, |st| {
            quantize(st, UP, dtype, "weight_scale", "[]", ("F32", [1, 1]), &mut Rng(9));
            st.get_mut(UP).2[2 * 32 + 5] = code;
        });
        refused(&bench, "c", &[SINGLE, UP, "row 2, column 5"]);
    }
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
    assert_eq!(
        bench.run(&plan).ok().says(&["MTP layer  dropped with"]).json()["left_out"],
        json!({"mtp": 124})
    );
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

#[test]
fn an_index_older_than_the_shards_is_a_warning() {
    let bench = Bench::new();
    let (copy, plain) = tiny_r1(&bench);
    let index = copy.json(INDEX);
    let edited = |edit: &dyn Fn(&mut serde_json::Map<String, Json>)| {
        copy.write_json(INDEX, &index);
        copy.edit(INDEX, |json| edit(json["weight_map"].as_object_mut().unwrap()));
    };
    edited(&|map| drop(map.remove("model.norm.weight")));
    converts(&bench, &plain, &[INDEX, "does not list `model.norm.weight`"]);
    edited(&|map| drop(map.insert("model.norm.weight".into(), shard(1).into())));
    converts(&bench, &plain, &[INDEX, "another file `model.norm.weight`"]);
    edited(&|map| drop(map.insert("model.phantom.weight".into(), shard(1).into())));
    converts(&bench, &plain, &[INDEX, "`model.phantom.weight`"]);
    edited(&|map| map.retain(|name, _| !name.contains("experts.3.")));
    converts(&bench, &plain, &[INDEX, "and 15 more"]);
    // A tensor that is needed and in no file.
    copy.write_json(INDEX, &index);
    copy.edit_shard(&shard(2), |st| st.remove("model.layers.2.mlp.gate.weight"));
    refused(&bench, "c", &[&shard(2), "model.layers.2.mlp.gate.weight", "by the index"]);
}

#[test]
fn shards_that_hold_only_what_is_left_out_may_be_missing() {
    let bench = Bench::new();
    let (copy, plain) = tiny_r1(&bench);
    // A shard of the MTP layer alone.
    let mut all: Vec<(String, StTensor)> = Vec::new();
    (1..=3).for_each(|n| all.extend(St::read(&copy.path(&shard(n))).tensors));
    let (mtp, others): (Vec<_>, Vec<_>) =
        all.into_iter().partition(|(name, _)| name.starts_with("model.layers.3."));
    let mut map = serde_json::Map::new();
    for (n, tensors) in [(1, others), (2, mtp)] {
        map.extend(tensors.iter().map(|(name, _)| (name.clone(), shard(n).into())));
        St { metadata: None, tensors }.write(&copy.path(&shard(n)));
    }
    std::fs::remove_file(copy.path(&shard(3))).unwrap();
    copy.write_json(INDEX, &json!({"weight_map": map}));
    converts(&bench, &plain, &[]);
    std::fs::rename(copy.path(&shard(2)), bench.path("elsewhere")).unwrap();
    let said = converts(&bench, &plain, &[]);
    said.says(&["MTP layer  dropped with 124", "not here", &shard(2)]);
    let json = bench.run(&["plan", "c", "--type", "Q8_0", "--json"]).ok().json();
    assert_eq!(json["missing_files"], json!([format!("c/{}", shard(2))]));
    bench.run(&["perplexity", "c", "--tokens", "x"]).fails(&["x"]);
    let keep = ["convert", "c", "o.gguf", "--type", "Q8_0", "--mtp", "keep"];
    bench.run(&keep).fails(&[&shard(2), "complete the download"]);
    // One that is damaged is not needed either, and said.
    std::fs::write(copy.path(&shard(2)), "version https://git-lfs.github.com/spec/v1\n").unwrap();
    converts(&bench, &plain, &[&shard(2), "Git LFS", "nothing that is needed"]);
    bench.run(&keep).fails(&[&shard(2), "Git LFS"]);
    // Nor is one that no index speaks of.
    std::fs::remove_file(copy.path(&shard(2))).unwrap();
    std::fs::remove_file(copy.path(INDEX)).unwrap();
    converts(&bench, &plain, &[INDEX, "promises other shards", "nothing that is needed"]);
    bench.run(&keep).fails(&[INDEX, "promises other shards"]);
}

#[test]
fn a_tied_output_and_cache_scales_may_be_missing_too() {
    let bench = Bench::new();
    let copy = bench.checkpoint("family/qwen2-tied", "c");
    let (_, plain) = convert(&bench, "c", &[]);
    let names: Vec<String> =
        St::read(&copy.path(SINGLE)).tensors.into_iter().map(|(name, _)| name).collect();
    let mut map: serde_json::Map<String, Json> =
        names.into_iter().map(|name| (name, "a/weights.safetensors".into())).collect();
    for name in [
        "lm_head.weight",
        "model.layers.0.self_attn.k_scale",
        "model.layers.1.self_attn.rotary_emb.inv_freq",
    ] {
        map.insert(name.to_owned(), "b/others.safetensors".into());
    }
    copy.write_json(INDEX, &json!({"weight_map": map}));
    std::fs::create_dir(copy.path("a")).unwrap();
    std::fs::rename(copy.path(SINGLE), copy.path("a/weights.safetensors")).unwrap();
    let said = converts(&bench, &plain.unwrap(), &[]);
    said.says(&[
        "1 tensor of a tied output",
        "1 tensor of rotary",
        "1 cache scale",
        "b/others.safetensors",
    ]);
    copy.edit(INDEX, |json| {
        json["weight_map"]["model.layers.0.self_attn.what"] = "b/others.safetensors".into()
    });
    refused(&bench, "c", &["b/others.safetensors", "does not exist"]);
}

#[test]
fn files_that_no_index_names_are_not_read() {
    let bench = Bench::new();
    let (copy, plain) = tiny_r1(&bench);
    // Of an earlier download, of another count.
    std::fs::copy(copy.path(&shard(1)), copy.path("model-00001-of-00005.safetensors")).unwrap();
    converts(&bench, &plain, &["not read", "model-00001-of-00005.safetensors"]);
    std::fs::remove_file(copy.path(INDEX)).unwrap();
    converts(&bench, &plain, &["not read", "model-00001-of-00005.safetensors"]);
    std::fs::remove_file(copy.path("model-00001-of-00005.safetensors")).unwrap();
    converts(&bench, &plain, &[]);
    // Mistral's own format, which holds the same.
    std::fs::write(copy.path("consolidated.safetensors"), "whatever").unwrap();
    converts(&bench, &plain, &[]);
}

#[test]
fn an_index_of_other_files_gives_way_to_a_complete_set() {
    let bench = Bench::new();
    let (copy, plain) = qwen2(&bench);
    copy.write_json(
        INDEX,
        &json!({"weight_map": {"lm_head.weight": shard(1), "model.norm.weight": shard(2)}}),
    );
    converts(&bench, &plain, &[INDEX, "none of the files that it names is here", SINGLE]);
    // Where some are here, a download has not ended.
    let mut tensors = St::read(&copy.path(SINGLE));
    tensors.tensors.truncate(3);
    tensors.write(&copy.path(&shard(1)));
    refused(&bench, "c", &[&shard(2), "complete the download"]);
    // Where all are, they are read.
    let first: Vec<String> = tensors.tensors.iter().map(|(name, _)| name.clone()).collect();
    copy.edit_shard(SINGLE, |st| st.tensors.retain(|(name, _)| !first.contains(name)));
    let mut map: serde_json::Map<String, Json> =
        first.iter().map(|name| (name.clone(), shard(1).into())).collect();
    let rest = St::read(&copy.path(SINGLE));
    map.extend(rest.tensors.iter().map(|(name, _)| (name.clone(), shard(2).into())));
    rest.write(&copy.path(&shard(2)));
    copy.write_json(INDEX, &json!({"weight_map": map}));
    converts(&bench, &plain, &["not read", SINGLE]);
}

#[test]
fn a_tensor_in_two_files_has_to_be_the_same() {
    let bench = Bench::new();
    let (copy, plain) = tiny_r1(&bench);
    let norm = St::read(&copy.path(&shard(3))).get("model.norm.weight").unwrap().clone();
    let add = |data: Vec<u8>| {
        copy.edit_shard(&shard(1), |st| st.set("model.norm.weight", &norm.0, &norm.1, data))
    };
    add(norm.2.clone());
    converts(&bench, &plain, &[]);
    let mut other = norm.2.clone();
    *other.last_mut().unwrap() ^= 1;
    add(other);
    refused(&bench, "c", &["model.norm.weight", &shard(1), &shard(3), "not the same"]);
    // Of a layer that is dropped it does not matter.
    let copy = bench.checkpoint("tiny-r1", "c");
    copy.edit_shard(&shard(1), |st| st.set("model.layers.3.enorm.weight", "F32", &[1], vec![0; 4]));
    converts(&bench, &plain, &[]);
}

#[cfg(unix)]
#[test]
fn the_hubs_cache_is_read_through_its_links() {
    let bench = Bench::new();
    let (copy, plain) = tiny_r1(&bench);
    let hub = bench.path("models--deepseek-ai--R1");
    let snapshot = hub.join("snapshots/0123abc");
    for dir in [&hub.join("blobs"), &snapshot] {
        std::fs::create_dir_all(dir).unwrap();
    }
    for (i, entry) in std::fs::read_dir(&copy.dir).unwrap().enumerate() {
        let entry = entry.unwrap();
        std::fs::rename(entry.path(), hub.join(format!("blobs/{i}"))).unwrap();
        std::os::unix::fs::symlink(format!("../../blobs/{i}"), snapshot.join(entry.file_name()))
            .unwrap();
    }
    std::fs::remove_dir(&copy.dir).unwrap();
    std::os::unix::fs::symlink(&snapshot, &copy.dir).unwrap();
    converts(&bench, &plain, &[]);
    // A link that leads nowhere is a file that is missing.
    let blob = std::fs::canonicalize(copy.path(&shard(1))).unwrap();
    std::fs::rename(&blob, bench.path("elsewhere")).unwrap();
    refused(&bench, "c", &[&shard(1), "complete the download"]);
}

#[test]
fn files_that_are_something_else_are_called_what_they_are() {
    let bench = Bench::new();
    let lfs = "version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 4300000000\n";
    for (content, words) in [
        (lfs.as_bytes(), ["Git LFS", "4300000000"]),
        (b"<!DOCTYPE html><html>Too many requests</html>", ["<!DOCTYPE html>", "server"]),
        (b"Entry not found", ["Entry not found", "server"]),
        (&[0; 100_000], ["zeros", "set aside"]),
        (b"", ["empty", "again"]),
        (b"PK\x03\x04\0\0\0\0\x08\x08\0\0archive/data.pkl", ["zip archive", "PyTorch"]),
        (b"GGUF\x03\0\0\0\0\0\0\0\0\0\0\0", ["a GGUF file", "GGUF file is read"]),
    ] {
        for file in [&shard(2), "config.json", "tokenizer.json", INDEX] {
            let copy = bench.checkpoint("tiny-r1", "c");
            std::fs::write(copy.path(file), content).unwrap();
            refused(&bench, "c", &[&[file], &words[..]].concat());
        }
    }
    let copy = bench.checkpoint("tiny-r1", "c");
    std::fs::rename(copy.path(&shard(2)), copy.path(&format!("{}.incomplete", shard(2)))).unwrap();
    refused(&bench, "c", &[&shard(2), "does not exist", ".incomplete` is there", "not ended"]);
    let copy = bench.checkpoint("family/qwen2", "c");
    std::fs::rename(copy.path(SINGLE), copy.path("model.safetensors.part1of2")).unwrap();
    refused(&bench, "c", &["no `model*.safetensors`", "part1of2` is there", "cat"]);
    for file in [SINGLE, "config.json", "tokenizer.json"] {
        let copy = bench.checkpoint("family/qwen2", "c");
        let bytes = std::fs::read(copy.path(file)).unwrap();
        std::fs::write(copy.path(file), &bytes[..bytes.len() - 9]).unwrap();
        let words = if file == SINGLE { "cut short" } else { "not valid JSON" };
        refused(&bench, "c", &[file, words]);
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
