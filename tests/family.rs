//! The classes beside R1's own: whole files equal the reference converter's, logits transformers'.
#![cfg(feature = "eval")]

mod common;

use common::settings;
use requant::convert::{Mode, Plan, RunOptions, Settings};
use requant::eval;
use requant::measure::{Beside, Options, Subject, Text, drafts, importances, perplexity};
use requant::model::{CheckpointModel, Given, LeftOut, Model, Mtp};
use requant::quant::{QuantType, float};
use requant::recipe::FileType;
use requant::source::{Checkpoint, Dtype, Folder, GgufSource, Source};
use requant::tokenizer::{Tokenizer, Vocab};
use safetensors::tensor::{Dtype as StDtype, TensorView};
use safetensors::{SafeTensors, serialize_to_file};
use sha2::{Digest, Sha256};
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

const FAMILY: &str = "tests/fixtures/family";
const COMPRESSED: &str = "tests/fixtures/compressed";

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

/// A copy of a checkpoint that has a tokenizer, in a folder.
fn prepare(fixtures: &str, name: &str, dir: &Path) -> PathBuf {
    // The model is named after its folder.
    let folder = dir.join(name);
    std::fs::create_dir(&folder).unwrap();
    let copy = |from: &Path| {
        std::fs::copy(from, folder.join(from.file_name().unwrap())).unwrap();
    };
    for file in ["config.json", "model.safetensors"] {
        copy(&Path::new(fixtures).join(name).join(file));
    }
    if fixtures == COMPRESSED {
        write_embedding(&folder);
    }
    copy(&Path::new(common::TINY_R1).join("tokenizer.json"));
    let mut tokenizer = common::json("tests/fixtures/tiny-r1/tokenizer_config.json");
    tokenizer["add_bos_token"] = false.into();
    std::fs::write(folder.join("tokenizer_config.json"), tokenizer.to_string()).unwrap();
    folder
}

/// Converts a checkpoint in all types of the reference converter, to `{outtype}.gguf` in a folder,
/// and returns a copy of it that has a tokenizer.
fn convert(fixtures: &str, name: &str, dir: &Path) -> PathBuf {
    let folder = prepare(fixtures, name, dir);
    convert_all(&folder, fixtures, name, dir);
    folder
}

fn convert_all(folder: &Path, fixtures: &str, name: &str, dir: &Path) {
    let goldens = common::json(&format!("{fixtures}/converted.json"));
    let types = [
        ("f32", FileType::F32),
        ("f16", FileType::F16),
        ("bf16", FileType::BF16),
        ("q8_0", FileType::Q8_0),
    ];
    for (outtype, file_type) in types {
        let Some(golden) = goldens[name][outtype].as_str() else { continue };
        let mut model = CheckpointModel::open(folder, Mtp::Drop).unwrap();
        model.keep_blocks().unwrap();
        let settings = Settings { mode: Mode::Convert, ..settings(file_type) };
        let plan = Plan::of_checkpoint(&model, &settings).unwrap();
        let output = dir.join(format!("{outtype}.gguf"));
        plan.run(&model, &output, RunOptions::default(), &()).unwrap();
        assert_eq!(golden, sha256(&std::fs::read(&output).unwrap()), "{outtype}");
    }
}

/// The embedding that `compressed/make.py` does not store.
fn write_embedding(folder: &Path) {
    let bits = (0..2048 * 64u32).map(|i| (i.wrapping_mul(40503) & 0xffff) as u16);
    let bytes: Vec<u8> =
        bits.flat_map(|h| (h & 0x8000 | 0x3f00 | h & 0x7f).to_le_bytes()).collect();
    let tensor = TensorView::new(StDtype::BF16, vec![2048, 64], &bytes).unwrap();
    let tensors = [("model.embed_tokens.weight", tensor)];
    let path = folder.join("model-embedding.safetensors");
    serialize_to_file(tensors, None, &path).unwrap();
}

fn sha256(bytes: &[u8]) -> String {
    Sha256::digest(bytes).iter().map(|b| format!("{b:02x}")).collect()
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

/// Every kind of weight that compressed-tensors stores, read as it decompresses them: products with one
/// rounding, to the type of the scales.
#[test]
fn compressed_tensors_are_what_they_decompress_to() {
    let folder = Folder::local(&Path::new(COMPRESSED).join("every"));
    let mut checkpoint = Checkpoint::open(folder).unwrap();
    let goldens = common::json(&format!("{COMPRESSED}/values.json"));
    let goldens = goldens.as_object().unwrap();
    assert_eq!(goldens.len(), 35);
    for (name, golden) in goldens {
        let tensor = checkpoint.take(name).unwrap().expect(name);
        let rows = checkpoint.tensors()[tensor].n_rows() as usize;
        assert_eq!(checkpoint.tensors()[tensor].dims[0], 128, "{name}");
        let mut values = vec![0.0; rows * 128];
        checkpoint.read_rows(tensor, 0, &mut values).unwrap();
        let bytes: Vec<u8> = match golden["dtype"].as_str().unwrap() {
            "float32" => values.iter().flat_map(|x| x.to_le_bytes()).collect(),
            "bfloat16" => {
                values.iter().flat_map(|&x| float::f32_to_bf16(x).to_le_bytes()).collect()
            }
            "float16" => values.iter().flat_map(|&x| float::f32_to_f16(x).to_le_bytes()).collect(),
            other => panic!("{other}"),
        };
        assert_eq!(golden["sha256"].as_str().unwrap(), sha256(&bytes), "{name}");
        // Rows from the middle are the same.
        for (first, n) in [(1, 1), (3, 37), (33, 11)] {
            let Some(expected) = values.get(first * 128..(first + n) * 128) else { continue };
            let mut some = vec![0.0; n * 128];
            checkpoint.read_rows(tensor, first as u64, &mut some).unwrap();
            assert_eq!(some, expected, "{name}, rows from {first}");
        }
    }
    assert_eq!(checkpoint.left(), Vec::<String>::new());
}

/// Integers are blocks of the type that has their numbers, where F16 has their scales, value for value.
#[test]
fn blocks_hold_the_values_of_compressed_tensors() {
    let folder = Folder::local(&Path::new(COMPRESSED).join("every"));
    let mut checkpoint = Checkpoint::open(folder).unwrap();
    for (name, ty) in [
        ("packed.4.32.even", Some(QuantType::Q4_0)),
        ("packed.4.64.even", Some(QuantType::Q4_0)),
        ("packed.4.128.even", Some(QuantType::Q4_0)),
        ("packed.4.channel.even", Some(QuantType::Q4_0)),
        ("packed.4.32.odd", Some(QuantType::Q5_0)),
        ("packed.4.channel.odd", Some(QuantType::Q5_0)),
        ("packed.8.32.even", None),
        ("packed.8.channel.odd", None),
        ("packed.2.odd", None),
        ("packed.tensor", None),
        ("int.channel", Some(QuantType::Q8_0)),
        ("naive.group", Some(QuantType::Q8_0)),
        ("naive.narrow", None),
        ("nvfp4", Some(QuantType::NVFP4)),
        ("mxfp4", Some(QuantType::MXFP4)),
        ("float.group", None),
    ] {
        let tensor = checkpoint.take(&format!("{name}.weight")).unwrap().expect(name);
        checkpoint.settle(tensor).unwrap();
        assert_eq!(checkpoint.blocks(tensor), ty, "{name}");
        let Some(ty) = ty else { continue };
        let rows = checkpoint.tensors()[tensor].n_rows();
        let mut blocks = vec![0; ty.row_bytes(128).unwrap() * rows as usize];
        assert!(checkpoint.read_blocks(tensor, 0..rows, &mut blocks).unwrap());
        let (mut found, mut expected) =
            (vec![0.0; 128 * rows as usize], vec![0.0; 128 * rows as usize]);
        ty.decode_rows(&blocks, 128, &mut found).unwrap();
        checkpoint.read_rows(tensor, 0, &mut expected).unwrap();
        let factor = checkpoint.factors(tensor).unwrap().weights;
        for (i, (found, expected)) in found.iter().zip(&expected).enumerate() {
            // The scale of a tensor is applied in another order.
            let near = if factor == 1.0 { 0.0 } else { 2e-7 * expected.abs() };
            assert!((found * factor - expected).abs() <= near, "{name}: {i}: {found}, {expected}");
        }
    }
}

/// Files whose values are those of their checkpoints, and are found to be.
#[test]
fn lossless_files_hold_the_values_of_their_checkpoints() {
    for (name, of_coded) in [
        ("experts-int4", &[QuantType::Q4_0][..]),
        // Where every zero point is such that F16 has what it comes to.
        ("int4-offset", &[QuantType::Q4_1, QuantType::Q5_0]),
        ("int8", &[QuantType::Q8_0]),
        ("fp8-block", &[QuantType::F32]),
        ("nvfp4", &[QuantType::NVFP4]),
    ] {
        let dir = tempfile::tempdir().unwrap();
        let folder = prepare(COMPRESSED, name, dir.path());
        let mut kept = CheckpointModel::open(&folder, Mtp::Drop).unwrap();
        kept.keep_exact().unwrap();
        let lossless = Settings { mode: Mode::Lossless, ..settings(FileType::F32) };
        let plan = Plan::of_checkpoint(&kept, &lossless).unwrap();
        let output = dir.path().join("lossless.gguf");
        plan.run(&kept, &output, RunOptions::default(), &()).unwrap();
        let file = GgufSource::open(&output).unwrap();
        let plain = CheckpointModel::open(&folder, Mtp::Drop).unwrap();
        let opened = Model::open(&output, Mtp::Drop).unwrap();
        for (i, meta) in plain.tensors().iter().enumerate() {
            let at = file.find(&meta.name).expect(&meta.name);
            if plain.is_coded(i) {
                let ty = file.tensors()[at].dtype;
                let is_known = of_coded.iter().any(|&known| ty == Dtype::Gguf(known));
                assert!(is_known, "{name}: {}: {ty}", meta.name);
            }
            let source = opened.source();
            let n = meta.n_elements() as usize;
            let (mut found, mut expected) = (vec![0.0; n], vec![0.0; n]);
            source.read_rows(source.find(&meta.name).unwrap(), 0, &mut found).unwrap();
            plain.read_rows(i, 0, &mut expected).unwrap();
            let near = if name == "nvfp4" { 2e-7 } else { 0.0 };
            let differs = |(f, e): (&f32, &f32)| (f - e).abs() > near * e.abs();
            assert!(!found.iter().zip(&expected).any(differs), "{name}: {}", meta.name);
        }
        let again = Plan::like_file(&kept, &settings(FileType::BF16), &file).unwrap();
        let comparison = again.compare(&kept, &file, 1.0, 0, &()).unwrap();
        assert!(comparison.is_same() && comparison.keys.is_empty(), "{name}: {comparison:?}");
    }
}

/// Options of the reference converter that change its file.
#[test]
fn options_of_the_converter() {
    let (name, dir) = ("fp8-channel", tempfile::tempdir().unwrap());
    let folder = prepare(COMPRESSED, name, dir.path());
    let file = Path::new(COMPRESSED).join("metadata.json");
    let options = Settings {
        mode: Mode::Convert,
        given: Given::read(Some("Some Model".to_owned()), Some(&file)).unwrap(),
        fp8_as_q8: true,
        ..settings(FileType::BF16)
    };
    let model = CheckpointModel::open(&folder, Mtp::Drop).unwrap();
    let plan = Plan::of_checkpoint(&model, &options).unwrap();
    let output = dir.path().join("options.gguf");
    plan.run(&model, &output, RunOptions::default(), &()).unwrap();
    let golden = common::json(&format!("{COMPRESSED}/converted.json"));
    let hash = sha256(&std::fs::read(&output).unwrap());
    assert_eq!(golden[name]["options"].as_str().unwrap(), hash);
    for (json, key) in [
        (r#"{"general.nam": "x"}"#, "general.nam"),
        (r#"{"general.author": 1}"#, "general.author"),
        (r#"{"general.tags": "x"}"#, "general.tags"),
        (r#"{"general.sampling.top_k": "x"}"#, "general.sampling.top_k"),
        (r#"{"general.base_models": []}"#, "general.base_models"),
    ] {
        std::fs::write(dir.path().join("m.json"), json).unwrap();
        let error = Given::read(None, Some(&dir.path().join("m.json"))).unwrap_err().to_string();
        assert!(error.contains("m.json") && error.contains(key), "{error}");
    }
}

/// ModelOpt's weights for activations of 16 bits are named in the metadata.
#[test]
fn weights_for_16_bits_are_named() {
    let (fixtures, dir) = ("tests/fixtures/nvfp4", tempfile::tempdir().unwrap());
    let folder = prepare(fixtures, "llama", dir.path());
    let path = folder.join("config.json");
    let mut config = common::json(path.to_str().unwrap());
    let of = &mut config["quantization_config"];
    of["quant_algo"] = "W4A16_NVFP4".into();
    of["quantized_layers"] = serde_json::json!({
        "model.layers.0.mlp": {"quant_algo": "NVFP4"},
        "model.layers.1.self_attn.q_proj": {"quant_algo": "NVFP4"},
    });
    std::fs::write(&path, config.to_string()).unwrap();
    let mut model = CheckpointModel::open(&folder, Mtp::Drop).unwrap();
    model.keep_blocks().unwrap();
    let settings = Settings { mode: Mode::Convert, ..settings(FileType::BF16) };
    let plan = Plan::of_checkpoint(&model, &settings).unwrap();
    let output = dir.path().join("w4a16.gguf");
    plan.run(&model, &output, RunOptions::default(), &()).unwrap();
    let golden = common::json(&format!("{fixtures}/converted.json"));
    let hash = sha256(&std::fs::read(&output).unwrap());
    assert_eq!(golden["llama"]["w4a16"].as_str().unwrap(), hash);
}

macro_rules! compressed {
    ($($test:ident: $name:literal,)*) => {$(
        #[test]
        fn $test() {
            convert(COMPRESSED, $name, tempfile::tempdir().unwrap().path());
        }
    )*};
}

compressed! {
    experts_in_int4: "experts-int4",
    int4_with_zero_points: "int4-offset",
    fp8_by_channel: "fp8-channel",
    fp8_by_block: "fp8-block",
    int8_by_channel: "int8",
}

/// Weights in NVFP4 stay as they are in a file of the reference converter's; the checkpoint with
/// its factors multiplied in, and such a file, are one model.
fn check_nvfp4(fixtures: &str, name: &str) {
    let dir = tempfile::tempdir().unwrap();
    let folder = convert(fixtures, name, dir.path());
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
    check_nvfp4("tests/fixtures/nvfp4", "deepseek");
    check_nvfp4(COMPRESSED, "experts-nvfp4");
}

#[test]
fn nvfp4_and_fp8_of_llama() {
    check_nvfp4("tests/fixtures/nvfp4", "llama");
    check_nvfp4(COMPRESSED, "nvfp4");
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

const KIMI: &str = "tests/fixtures/kimi";

/// A checkpoint of `kimi/make.py`, with weights.
fn prepare_kimi(name: &str, dir: &Path) -> PathBuf {
    let folder = dir.join(name);
    std::fs::create_dir(&folder).unwrap();
    for file in ["config.json", "tokenizer_config.json"] {
        std::fs::copy(Path::new(KIMI).join(name).join(file), folder.join(file)).unwrap();
    }
    std::fs::copy(Path::new(KIMI).join("tiktoken.model"), folder.join("tiktoken.model")).unwrap();
    write_listed(KIMI, name, &folder);
    folder
}

/// Writes the weights that a fixture lists.
fn write_listed(fixtures: &str, name: &str, folder: &Path) {
    let listed = common::json(&format!("{fixtures}/tensors.json"));
    let mut tensors: Vec<(String, StDtype, Vec<usize>, Vec<u8>)> = Vec::new();
    for of_name in listed[name].as_array().unwrap() {
        let pattern = of_name[0].as_str().unwrap();
        let shape: Vec<usize> = serde_json::from_value(of_name[3].clone()).unwrap();
        for i in 0..of_name[1].as_u64().unwrap() {
            let name = pattern.replace('#', &i.to_string());
            let seed = tensors.len() as u32 + 1;
            let dtype = of_name[2].as_str().unwrap();
            let (dtype, shape, bytes) = match dtype {
                "shape" => {
                    let bytes = shape.iter().flat_map(|&n| (n as u64).to_le_bytes()).collect();
                    (StDtype::I64, vec![2], bytes)
                }
                "F32" => (StDtype::F32, shape.clone(), values(dtype, &shape, seed)),
                "I32" => (StDtype::I32, shape.clone(), values(dtype, &shape, seed)),
                _ => (StDtype::BF16, shape.clone(), values(dtype, &shape, seed)),
            };
            tensors.push((name, dtype, shape, bytes));
        }
    }
    let views = tensors.iter().map(|(name, dtype, shape, bytes)| {
        (name, TensorView::new(*dtype, shape.clone(), bytes).unwrap())
    });
    serialize_to_file(views, None, &folder.join("model.safetensors")).unwrap();
}

/// As `values()` in `kimi/make.py`.
fn values(kind: &str, shape: &[usize], seed: u32) -> Vec<u8> {
    let n = shape.iter().product::<usize>() as u32;
    let h = |i: u32| i.wrapping_add(seed * 7919).wrapping_mul(40503) & 0xffff;
    let bf16 = |of: &dyn Fn(u32) -> u32| {
        (0..n).flat_map(|i| (of(h(i)) as u16).to_le_bytes()).collect::<Vec<u8>>()
    };
    let signed = |h: u32| h & 0x7f | 0x3c00 | h & 0x8000;
    match kind {
        "I32" => (0..2 * n).flat_map(|i| (h(i) as u16).to_le_bytes()).collect(),
        "F32" => (0..n).flat_map(|i| (signed(h(i)) << 16).to_le_bytes()).collect(),
        "norm" => bf16(&|h| h & 0x3f | 0x3f80),
        "scale" => bf16(&|h| h & 0x7f | 0x3c00),
        _ => bf16(&signed),
    }
}

/// Vocabularies of tiktoken, experts without groups, parts for text behind a prefix.
#[test]
fn kimi_and_moonlight() {
    for (name, vision) in [("moonlight", 0), ("k2.5", 2)] {
        let dir = tempfile::tempdir().unwrap();
        let folder = prepare_kimi(name, dir.path());
        convert_all(&folder, KIMI, name, dir.path());
        let model = CheckpointModel::open(&folder, Mtp::Drop).unwrap();
        assert_eq!(model.warnings(), &[], "{name}");
        assert_eq!(model.left_out().get(&LeftOut::Vision).map_or(0, Vec::len), vision, "{name}");
        let text = std::fs::read_to_string(common::HELDOUT).unwrap();
        let vocab = Vocab::from_checkpoint(&folder, &model.config().json(), None).unwrap();
        let of_folder = Tokenizer::from_checkpoint(&folder, &vocab).unwrap();
        let file = GgufSource::open(&dir.path().join("f32.gguf")).unwrap();
        let of_file = Tokenizer::from_metadata(file.metadata()).unwrap();
        assert_eq!(of_folder.encode(&text).unwrap(), of_file.encode(&text).unwrap(), "{name}");
        let recorded = common::json(&format!("{KIMI}/tokens.json"));
        for (of, recorded) in recorded.as_object().unwrap() {
            let expected: Vec<u32> = serde_json::from_value(recorded["tokens"].clone()).unwrap();
            let mut found = of_file.encode(recorded["text"].as_str().unwrap()).unwrap();
            found.drain(..usize::from(of_file.bos().is_some()));
            assert_eq!(found, expected, "{name}: {of}");
        }
    }
}

/// Every expert of Kimi-K2.5 is Q4_0 as it is.
#[test]
fn experts_of_kimi_are_kept() {
    let dir = tempfile::tempdir().unwrap();
    let folder = prepare_kimi("k2.5", dir.path());
    let mut model = CheckpointModel::open(&folder, Mtp::Drop).unwrap();
    model.keep_exact().unwrap();
    let kept = (0..model.tensors().len()).filter(|&i| model.kept(i) == Some(QuantType::Q4_0));
    let kept: Vec<&str> = kept.map(|i| model.tensors()[i].name.as_str()).collect();
    assert_eq!(kept, ["gate", "up", "down"].map(|name| format!("blk.1.ffn_{name}_exps.weight")));
    let lossless = Settings { mode: Mode::Lossless, ..settings(FileType::F32) };
    let plan = Plan::of_checkpoint(&model, &lossless).unwrap();
    let file_type = plan.metadata().u32("general.file_type").unwrap();
    assert_eq!(file_type, Some(FileType::Q4_0.id()), "that of most weights");
}

/// What the prediction layer foresees, in the checkpoint and in a file.
#[test]
fn prediction_layers_draft_as_transformers_layers_do() {
    let golden = common::json("tests/fixtures/reference/mtp.json");
    let dir = tempfile::tempdir().unwrap();
    let model = CheckpointModel::open(Path::new(common::TINY_R1), Mtp::Keep).unwrap();
    let settings = Settings { mode: Mode::Convert, ..settings(FileType::F32) };
    let plan = Plan::of_checkpoint(&model, &settings).unwrap();
    let file = dir.path().join("keep.gguf");
    plan.run(&model, &file, RunOptions::default(), &()).unwrap();
    let text = Text::read(Path::new(common::HELDOUT)).unwrap();
    let chunks = golden["chunks"].as_u64().map(|n| n as usize);
    let options = Options { chunks, ..Options::default() };
    for path in [Path::new(common::TINY_R1), &file] {
        let model = Model::open(path, Mtp::Keep).unwrap();
        let found = drafts(Subject { path, model: &model }, &text, &options, &()).unwrap();
        assert_eq!(found.tokens as u64, golden["tokens"].as_u64().unwrap());
        assert!((found.nll - golden["nll"].as_f64().unwrap()).abs() < 1e-5, "{found:?}");
        // One draft may fall otherwise where two tokens are as likely.
        let accepted = (found.accepted - golden["accepted"].as_f64().unwrap()).abs();
        assert!(accepted * found.tokens as f64 <= 1.01, "{found:?}");
    }
    // What goes into its matrices, in the file, beside what the other layers get.
    let (path, inputs) = (&file, golden["inputs"].as_object().unwrap());
    let model = Model::open(path, Mtp::Keep).unwrap();
    let collect = |prediction| {
        let (subject, texts) = (Subject { path, model: &model }, [text.clone()]);
        importances(subject, Beside { output: false, prediction }, &texts, &options, &()).unwrap()
    };
    let (mut with, without) = (collect(true), collect(false));
    let of_layer = with.entries.extract_if(.., |name, _| name.starts_with("blk.3."));
    let of_layer: BTreeMap<_, _> = of_layer.collect();
    assert!(with == without && of_layer.len() == 15, "{:?}", of_layer.keys());
    for (name, golden) in inputs {
        let (kind, expert) = match name.split_once("exps.") {
            Some((kind, expert)) => (format!("{kind}exps"), expert.parse().unwrap()),
            None => (name.clone(), 0),
        };
        let entry = &of_layer[&format!("blk.3.{kind}.weight")];
        let columns = entry.sums.len() / entry.counts.len();
        let sums = &entry.sums[expert * columns..][..columns];
        let numbered: f64 = (1..).zip(sums).map(|(i, sum)| f64::from(i) * sum).sum();
        assert_eq!(entry.counts[expert], golden[0].as_u64().unwrap(), "{name}");
        for (found, golden) in [(sums.iter().sum(), &golden[1]), (numbered, &golden[2])] {
            let apart: f64 = found / golden.as_f64().unwrap() - 1.0;
            assert!(apart.abs() < 1e-4, "{name}: {apart}");
        }
    }
    let path = Path::new(common::TINY_R1);
    let model = Model::open(path, Mtp::Drop).unwrap();
    assert!(!model.drafts());
    let error = drafts(Subject { path, model: &model }, &text, &options, &()).unwrap_err();
    assert!(error.to_string().contains("multi-token prediction"), "{error}");
}

const V32: &str = "tests/fixtures/v32";

/// DeepSeek-V3.2, with its prediction layer and without.
#[test]
fn deepseek_v3_2_has_an_indexer() {
    let dir = tempfile::tempdir().unwrap();
    let folder = dir.path().join("v32");
    std::fs::create_dir(&folder).unwrap();
    std::fs::copy(Path::new(V32).join("config.json"), folder.join("config.json")).unwrap();
    let mut tokenizer = common::json("tests/fixtures/tiny-r1/tokenizer.json");
    tokenizer["post_processor"] = serde_json::Value::Null;
    std::fs::write(folder.join("tokenizer.json"), tokenizer.to_string()).unwrap();
    let config = Path::new(common::TINY_R1).join("tokenizer_config.json");
    std::fs::copy(config, folder.join("tokenizer_config.json")).unwrap();
    write_listed(V32, "v32", &folder);
    let goldens = common::json(&format!("{V32}/converted.json"));
    for (key, file_type, mtp) in [
        ("f32", FileType::F32, Mtp::Usual),
        ("q8_0", FileType::Q8_0, Mtp::Usual),
        ("bf16", FileType::BF16, Mtp::Keep),
        ("drop", FileType::BF16, Mtp::Drop),
        ("only", FileType::BF16, Mtp::Only),
    ] {
        let model = CheckpointModel::open(&folder, mtp).unwrap();
        assert_eq!(model.warnings(), &[], "{key}");
        let settings = Settings { mode: Mode::Convert, ..settings(file_type) };
        let plan = Plan::of_checkpoint(&model, &settings).unwrap();
        let output = dir.path().join(format!("{key}.gguf"));
        plan.run(&model, &output, RunOptions::default(), &()).unwrap();
        assert_eq!(
            goldens["v32"][key].as_str().unwrap(),
            sha256(&std::fs::read(&output).unwrap()),
            "{key}"
        );
    }
    // Contexts on both sides of the 128 tokens that the indexer chooses.
    let text = [Text::read(Path::new(common::HELDOUT)).unwrap()];
    for (ctx, expected) in common::json(&format!("{V32}/perplexity.json")).as_object().unwrap() {
        let options = Options { ctx: ctx.parse().unwrap(), chunks: Some(6), ..Options::default() };
        for path in [&folder, &dir.path().join("f32.gguf")] {
            let model = Model::open(path, Mtp::Drop).unwrap();
            let found = perplexity(Subject { path, model: &model }, &text, &options, &()).unwrap();
            let ratio = found.own.perplexity / expected.as_f64().unwrap();
            assert!((ratio - 1.0).abs() < 1e-5, "{}, {ctx}: {ratio}", path.display());
        }
    }
    let golden = common::json(&format!("{V32}/transformers.json"));
    let chunks = golden["chunks"].as_u64().map(|n| n as usize);
    for (ctx, expected) in golden["nll"].as_object().unwrap() {
        let options = Options { ctx: ctx.parse().unwrap(), chunks, ..Options::default() };
        let (path, model) = (&*folder, Model::open(&folder, Mtp::Drop).unwrap());
        let found = perplexity(Subject { path, model: &model }, &text, &options, &()).unwrap();
        let apart = found.own.mean_nll - expected.as_f64().unwrap();
        assert!(apart.abs() < 1e-6, "{ctx}: {apart}");
    }
}
