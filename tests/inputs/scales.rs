//! Quantized weights of checkpoints: declarations against tensors, formats that are not read, scales by any
//! name and of any shape.

use crate::checkpoint::*;
use crate::raw::*;
use serde_json::{Value as Json, json};

fn bf16(x: f32) -> [u8; 2] {
    ((x.to_bits() >> 16) as u16).to_le_bytes()
}

fn f16(bits: u16) -> f32 {
    let (e, m) = (i32::from(bits >> 10 & 31), f32::from(bits & 1023) / 1024.0);
    let value = if e == 0 { m * 2f32.powi(-14) } else { (1.0 + m) * 2f32.powi(e - 15) };
    if bits >> 15 == 1 { -value } else { value }
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

pub fn channels() -> Json {
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
            Some("compressed-tensors/marlin-24"),
            "compressed-tensors (marlin-24)",
        ),
        (
            &[("weight_packed", "U8"), ("weight_scale", "U8")],
            Some("compressed-tensors/mxfp6-pack-quantized"),
            "compressed-tensors (mxfp6-pack-quantized)",
        ),
        (
            &[("weight_packed", "I32"), ("weight_scale", "BF16"), ("weight_g_idx", "I32")],
            Some("compressed-tensors"),
            "weight_g_idx",
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
            json["quantization_config"] = method.map_or(Json::Null, |method| {
                let (method, format) = method.split_once('/').unwrap_or((method, ""));
                match format {
                    "" => json!({"quant_method": method}),
                    _ => json!({"quant_method": method, "format": format}),
                }
            });
        });
        refused(&bench, "c", &[SINGLE, stem, words]);
    }
}

#[test]
fn packed_integers_that_do_not_fit_are_named() {
    let bench = Bench::new();
    let mut rng = Rng(9);
    let mut case = |declared: Json, edit: &dyn Fn(&mut St, [u64; 2]), words: &[&str]| {
        let copy = bench.checkpoint("family/qwen2", "c");
        copy.edit_shard(SINGLE, |st| {
            let (_, shape, _) = st.get(UP).unwrap().clone();
            let [rows, columns] = shape[..] else { panic!("{UP}") };
            st.remove(UP);
            let n = (rows * columns / 2) as usize;
            st.set(&format!("{UP}_packed"), "I32", &[rows, columns / 8], rng.bytes(n));
            st.set(&format!("{UP}_scale"), "BF16", &[rows, 1], bf16(0.5).repeat(rows as usize));
            let numbers = [rows, columns].map(u64::to_le_bytes).concat();
            st.set(&format!("{UP}_shape"), "I64", &[2], numbers);
            edit(st, [rows, columns]);
        });
        let groups = json!({"group_0": {"targets": ["Linear"], "weights": declared}});
        copy.edit("config.json", |json| {
            json["quantization_config"] = json!({
                "quant_method": "compressed-tensors", "format": "pack-quantized",
                "config_groups": groups,
            });
        });
        match words {
            [] => drop(convert(&bench, "c", &["--strict"]).0.ok()),
            words => refused(&bench, "c", &[&[SINGLE], words].concat()),
        }
    };
    let int4 = || json!({"num_bits": 4, "type": "int", "strategy": "channel", "symmetric": true});
    case(int4(), &|_, _| {}, &[]);
    case(json!({"strategy": "channel"}), &|_, _| {}, &[]);
    let shape = format!("{UP}_shape");
    case(int4(), &|st, _| st.remove(&shape), &["weight_shape", "missing"]);
    let other = |st: &mut St, [rows, columns]: [u64; 2]| {
        st.set(&shape, "I64", &[2], [rows + 1, columns].map(u64::to_le_bytes).concat());
    };
    case(int4(), &other, &["weight_shape", "expected"]);
    let narrow = |st: &mut St, [rows, columns]: [u64; 2]| {
        st.set(&shape, "I64", &[2], [rows, columns - 8].map(u64::to_le_bytes).concat());
    };
    case(int4(), &narrow, &["weight_packed", "words a row"]);
    case(json!({"num_bits": 8, "strategy": "channel"}), &|_, _| {}, &["integers of 8 bits"]);
    case(json!({"num_bits": 4, "symmetric": false}), &|_, _| {}, &["weight_zero_point", "missing"]);
    let zero = format!("{UP}_zero_point");
    let zeros = |st: &mut St, _: [u64; 2]| st.set(&zero, "I32", &[1, 1], vec![0; 4]);
    case(int4(), &zeros, &["weight_zero_point", "expected"]);
    let floats = |st: &mut St, _: [u64; 2]| st.set(&zero, "F32", &[1, 1], vec![0; 4]);
    case(int4(), &floats, &["weight_zero_point", "F32"]);
    let scale = format!("{UP}_scale");
    let nan = |st: &mut St, _: [u64; 2]| st.get_mut(&scale).2[..2].copy_from_slice(&[0xc0, 0x7f]);
    case(int4(), &nan, &["weight_scale", "NaN"]);
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
pub struct Grid {
    pub block: [u64; 2],
    pub shape: Vec<u64>,
}

pub fn grid(kind: &str, rows: u64, columns: u64, block: [u64; 2]) -> Grid {
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
pub fn scale(dtype: &str, rng: &mut Rng) -> (Vec<u8>, f32) {
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
pub fn quantize(
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

pub const SCALE_NAMES: [&str; 5] =
    ["weight_scale_inv", "weight_scale", ".scale_weight", ".qscale_weight", ".scale"];
pub const SCALE_DTYPES: [&str; 5] = ["F32", "BF16", "F16", "F8_E8M0", "U8"];
pub const KINDS: [&str; 7] = ["[]", "[1]", "[1, 1]", "[n]", "[n, 1]", "block", "block, 1"];

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
