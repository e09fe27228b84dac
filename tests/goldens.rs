//! Quantized bytes and decoded values against the hashes in `tests/fixtures/goldens`, at every
//! instruction set of this machine. `REQUANT_GOLDENS` names other files of hashes to check, made
//! by `make.py` there with more rows.

use requant::quant::QuantType;
use requant::simd::Simd;
use serde_json::Value;
use sha2::{Digest, Sha256};
use std::path::Path;

/// Output `i` of SplitMix64.
fn mix(seed: u64, i: usize) -> u64 {
    let mut z = seed.wrapping_add((i as u64 + 1).wrapping_mul(0x9e37_79b9_7f4a_7c15));
    z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    z ^ (z >> 31)
}

fn power(e: i64) -> f32 {
    f32::from_bits(((e + 127) as u32) << 23)
}

/// Value `i` of a class of rows; the same as in `make.py`.
fn value(class: &str, seed: u64, i: usize) -> f32 {
    let (a, b, g) = (mix(seed, i), mix(seed + 1, i), mix(seed + 2, i / 32));
    let total: i64 =
        [a, b].into_iter().flat_map(|v| [0, 16, 32, 48].map(|s| (v >> s & 0xffff) as i64)).sum();
    let normal = (total - 262_140) as f32 / 131_072.0;
    let top = (a >> 60) as i64;
    let zero = if a >> 63 != 0 { -0.0 } else { 0.0 };
    match class {
        "gaussian" => normal,
        "heavy" => normal * power(-top),
        "bf16" => f32::from_bits(normal.to_bits() & 0xffff_0000),
        "zeros" if g & 3 < 2 => zero,
        "zeros" => normal,
        "spike" if a & 63 == 0 => normal,
        "spike" => zero,
        "equal" => ((g & 0xffff) as i64 - 32_768) as f32 / 32_768.0,
        "subnormal" => f32::from_bits(a as u32 & 0x807f_ffff),
        "huge" => normal * power(-top + 120),
        "ties" => ((a >> 32) % 17) as f32 * 0.5 - 4.0,
        "tiny" => normal * power(-top - 44),
        "positive" => normal.abs() + (g & 1) as f32,
        "near_power" => {
            let exponent = (g % 240 + 1) as u32;
            f32::from_bits(
                (a as u32 & 0x8000_0000) | exponent << 23 | (0x7f_ffe0 + (b as u32 & 31)),
            )
        }
        "overflow" => normal * power((g % 24) as i64),
        other => panic!("unknown class of rows {other}"),
    }
}

fn importance(kind: &str, seed: u64, n: usize) -> Option<Vec<f32>> {
    let at = |i| {
        let a = mix(seed + 3, i);
        let random = ((a & 0xffff) as f32 + 1.0) / 4096.0;
        match kind {
            "random" => random,
            "sparse" if (a >> 32).is_multiple_of(4) => random,
            _ => 0.0,
        }
    };
    (kind != "none").then(|| (0..n).map(at).collect())
}

fn hash(bytes: impl AsRef<[u8]>) -> String {
    Sha256::digest(bytes).iter().map(|b| format!("{b:02x}")).collect()
}

fn check(path: impl AsRef<Path>) {
    let goldens: Value = serde_json::from_str(&std::fs::read_to_string(path).unwrap()).unwrap();
    let number = |key: &str| goldens[key].as_u64().unwrap();
    let (rows, width) = (number("rows") as usize, number("width") as usize);
    let levels: Vec<_> = Simd::supported().collect();
    let mut wrong = vec![];
    for (c, class) in goldens["classes"].as_array().unwrap().iter().enumerate() {
        let seed = number("seed") * 1_000_003 + c as u64 * 1009;
        let x: Vec<f32> =
            (0..rows * width).map(|i| value(class.as_str().unwrap(), seed, i)).collect();
        for entry in goldens["entries"].as_array().unwrap().iter().filter(|e| &e["rows"] == class) {
            let text = |key: &str| entry[key].as_str().unwrap();
            let ty: QuantType = text("type").parse().unwrap();
            let qw = importance(text("importance"), seed, width);
            for &level in &levels {
                let mut out = vec![0; ty.row_bytes(width).unwrap() * rows];
                ty.encode_rows_with(level, &x, width, qw.as_deref().into(), &mut out).unwrap();
                if hash(&out) != text("encoded") {
                    wrong.push(format!("{level} encoding {entry}"));
                }
                let Some(decoded) = entry.get("decoded") else { continue };
                let mut back = vec![0.0; x.len()];
                ty.decode_rows_with(level, &out, width, &mut back).unwrap();
                let one_nan = |v: &f32| if v.is_nan() { 0x7fc0_0000 } else { v.to_bits() };
                let bytes: Vec<u8> = back.iter().flat_map(|v| one_nan(v).to_le_bytes()).collect();
                if hash(bytes) != *decoded {
                    wrong.push(format!("{level} decoding {entry}"));
                }
            }
        }
    }
    assert!(wrong.is_empty(), "{} differ:\n{}", wrong.len(), wrong.join("\n"));
}

#[test]
fn bytes_and_values_are_the_reference_s() {
    for file in ["goldens.json", "lattice.json"] {
        check(Path::new(file!()).with_file_name("fixtures/goldens").join(file));
    }
    for path in std::env::var("REQUANT_GOLDENS").unwrap_or_default().split(':') {
        if !path.is_empty() {
            check(path);
        }
    }
}
