//! The everyday tools, as people run them.
#![cfg(feature = "cli")]

mod common;

use common::{BF16, TINY_R1, requant};
use requant::gguf::GgufFile;
use sha2::{Digest, Sha256};
use std::path::Path;

fn json(args: &[&str]) -> serde_json::Value {
    let (code, out, err) = requant(args);
    assert!(code == 0 || code == 3, "{args:?}: {err}");
    serde_json::from_str(&out).unwrap()
}

fn sha256(path: &Path) -> String {
    let hash = Sha256::digest(std::fs::read(path).unwrap());
    hash.iter().map(|b| format!("{b:02x}")).collect()
}

#[test]
fn parts_and_the_whole_equal_those_of_llama_gguf_split() {
    for golden in common::json("tests/fixtures/goldens/split.json").as_array().unwrap() {
        let dir = tempfile::tempdir().unwrap();
        let [part, merged] = ["part", "merged"].map(|name| dir.path().join(name));
        let mut split = vec!["split", BF16, part.to_str().unwrap(), "-q"];
        split.extend(golden["options"].as_array().unwrap().iter().map(|o| o.as_str().unwrap()));
        assert_eq!(requant(&split).0, 0);
        let parts = golden["parts"].as_object().unwrap();
        assert_eq!(std::fs::read_dir(&dir).unwrap().count(), parts.len());
        for (name, hash) in parts {
            assert_eq!(*hash, sha256(&dir.path().join(name)), "{name}");
        }
        let first = dir.path().join(parts.keys().next().unwrap());
        let first = first.to_str().unwrap();
        assert_eq!(requant(&["merge", first, merged.to_str().unwrap(), "-q"]).0, 0);
        assert_eq!(golden["merged"], sha256(&merged));
        // What the model is does not depend on its files.
        let hash = |file: &str| json(&["hash", file, "--json", "-q"])["sha256"].clone();
        assert_eq!(hash(first), hash(BF16));
    }
}

#[test]
fn how_many_files_a_model_is_in_is_no_difference() {
    let dir = tempfile::tempdir().unwrap();
    let parts = dir.path().join("parts");
    let parts = parts.to_str().unwrap();
    assert_eq!(requant(&["split", BF16, parts, "--split-max-tensors", "20", "-q"]).0, 0);
    let first = format!("{parts}-00001-of-00003.gguf");
    let (code, out, err) = requant(&["diff", BF16, &first, "-q"]);
    assert_eq!((code, out.as_str()), (0, "0 of 52 tensors differ\n"), "{err}");
}

#[test]
fn differences_are_found_and_measured() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("q.gguf");
    let q = path.to_str().unwrap();
    assert_eq!(requant(&["quantize", BF16, q, "Q8_0", "-q"]).0, 0);
    let diff = json(&["diff", BF16, q, "--json", "-q"]);
    assert_eq!(diff["equal"], false);
    assert_eq!(diff["metadata"].as_array().unwrap().len(), 1);
    let tensors = diff["tensors"].as_array().unwrap();
    assert_eq!((tensors.len(), diff["tensors_compared"].as_u64()), (35, Some(52)));
    for tensor in tensors {
        let relative = tensor["relative"].as_f64().unwrap();
        assert!(relative > 1e-3 && relative < 1e-2, "{tensor}");
        assert!(tensor["cosine"].as_f64().unwrap() > 0.9999);
    }
    assert_eq!(requant(&["diff", BF16, q, "-q", "--no-values"]).0, 3);
    assert_eq!(requant(&["diff", BF16, BF16, "-q"]).0, 0);
    // The file was made of this checkpoint, rounded to BF16 on the way.
    let diff = json(&["diff", TINY_R1, BF16, "--json", "-q"]);
    assert!(diff["only_a"].as_array().unwrap().is_empty());
    let largest = diff["tensors"][0]["relative"].as_f64().unwrap();
    assert!(largest < 4e-3, "{largest}");
}

#[test]
fn headers_and_values_are_shown() {
    let all = json(&["inspect", BF16, "--json"]);
    assert_eq!(all["metadata"]["general.architecture"], "deepseek2");
    assert_eq!(all["metadata"]["tokenizer.ggml.tokens"]["length"], 2048);
    assert_eq!(all["types"]["BF16"]["tensors"], 35);
    assert_eq!(all["roles"]["expert"]["weights"], 6_291_456);
    assert_eq!(all["total"]["tensors"], 52);
    let name = "blk.1.ffn_gate_inp.weight";
    let one = json(&["inspect", BF16, "--tensor", name, "--stats", "--json"]);
    let stats = &one["tensors"][0]["stats"];
    assert_eq!(stats["n"], 4096);
    let bins = stats["histogram"].as_array().unwrap();
    assert_eq!(bins.iter().map(|n| n.as_u64().unwrap()).sum::<u64>(), 4096);
    let (code, out, _) = requant(&["inspect", TINY_R1]);
    assert!(code == 0 && out.contains("F8_E4M3") && out.contains("shared-expert"), "{out}");
    let (code, _, err) = requant(&["inspect", BF16, "--tensor", "attn_q_b"]);
    assert!(code == 1 && err.contains("did you mean blk.0.attn_q_b.weight"), "{err}");
}

#[test]
fn metadata_is_set_in_place_or_anew() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("model.gguf");
    let file = path.to_str().unwrap();
    std::fs::copy(BF16, &path).unwrap();
    let (code, _, err) = requant(&["set", file, "deepseek2.context_length=u32:512"]);
    assert!(code == 0 && err.contains("in place"), "{err}");
    let long = format!("general.description=str:{}", "long ".repeat(100));
    let (code, _, err) = requant(&["set", file, &long, "general.url=str:x"]);
    assert!(code == 0 && err.contains("new file"), "{err}");
    assert_eq!(requant(&["unset", file, "general.url", "general.description"]).0, 0);
    let diff = json(&["diff", BF16, file, "--json", "-q"]);
    assert_eq!(diff["metadata"].as_array().unwrap().len(), 1);
    assert_eq!(diff["metadata"][0]["b"], "512");
    assert_eq!(diff["tensors"].as_array().unwrap().len(), 0);
    // Setting back what was there gives the file that was there.
    assert_eq!(requant(&["set", file, "deepseek2.context_length=u32:163840"]).0, 0);
    assert_eq!(sha256(&path), sha256(Path::new(BF16)));
    for (args, expected) in [
        (["set", file, "split.count=u16:3"], "stays"),
        (["set", file, "a=u8:256"], "is no u8"),
        (["unset", file, "nothing.here"], "no key `nothing.here`"),
    ] {
        let (code, _, err) = requant(&args);
        assert!(code != 0 && err.contains(expected), "{err}");
    }
    assert_eq!(sha256(&path), sha256(Path::new(BF16)));
}

#[test]
fn completions_and_manuals_come_from_the_arguments() {
    for shell in ["bash", "zsh", "fish", "powershell", "elvish"] {
        let (code, out, _) = requant(&["completions", shell]);
        assert!(code == 0 && out.contains("quantize"), "{shell}");
    }
    let dir = tempfile::tempdir().unwrap();
    assert_eq!(requant(&["man", dir.path().to_str().unwrap()]).0, 0);
    let page = std::fs::read_to_string(dir.path().join("requant-quantize.1")).unwrap();
    assert!(page.contains("tensor\\-type"));
}

#[test]
fn a_mix_is_shown_and_taken_from_a_file() {
    let dir = tempfile::tempdir().unwrap();
    let [first, second, list] = ["a.gguf", "b.gguf", "mix.toml"].map(|name| dir.path().join(name));
    let [a, b] = [&first, &second].map(|path| path.to_str().unwrap());
    assert_eq!(requant(&["quantize", BF16, a, "Q4_K_M", "-q"]).0, 0);
    let (code, out, _) = requant(&["recipe", "from", a]);
    assert!(code == 0 && out.contains("# The mix of `llama-quantize Q4_K_M`"), "{out}");
    std::fs::write(&list, &out).unwrap();
    let list = list.to_str().unwrap();
    assert_eq!(requant(&["quantize", BF16, b, list, "-q"]).0, 0);
    assert_eq!(sha256(&first), sha256(&second));

    // Of a mix with other types for some tensors, these are what is said.
    let other = ["--tensor-type", "blk\\.1\\.ffn_up=q5_K", "--tensor-type", "attn_q_a=q8_0"];
    assert_eq!(
        requant(&[&["quantize", BF16, a, "Q4_K_M", "-q", "--force"][..], &other].concat()).0,
        0
    );
    let (code, out, _) = requant(&["recipe", "from", a]);
    assert!(code == 0 && out.contains("layers = \"1\""), "{out}");
    assert!(out.contains("Q4_K_M, with 3 rules before its own"), "{out}");
    std::fs::write(list, &out).unwrap();
    assert_eq!(requant(&["quantize", BF16, b, list, "-q", "--force"]).0, 0);
    assert_eq!(sha256(&first), sha256(&second));

    // Where there is no mix like it, types are listed.
    let few = ["--pure", "--tensor-type", "attn_q_b=q8_0"];
    assert_eq!(requant(&[&["quantize", BF16, a, "Q5_0", "-q", "--force"][..], &few].concat()).0, 0);
    let (code, listed, _) = requant(&["recipe", "from", a]);
    assert!(code == 0 && listed.matches("[[rule]]").count() == 1, "{listed}");
    std::fs::write(list, &listed).unwrap();
    assert_eq!(requant(&["quantize", BF16, b, list, "-q", "--force"]).0, 0);
    assert_eq!(sha256(&first), sha256(&second));
    std::fs::write(list, &out).unwrap();

    // A file that holds its recipe gives it back.
    assert_eq!(requant(&["quantize", BF16, a, list, "-q", "--force", "--write-recipe"]).0, 0);
    assert_eq!(requant(&["recipe", "from", a]).1, out);
    let (code, _, err) = requant(&["quantize", BF16, a, list, "--write-recipe", "--pure"]);
    assert!(code == 2 && err.contains("--pure"), "{err}");
    std::fs::write(list, out.replace("default", "defualt")).unwrap();
    let (code, _, err) = requant(&["quantize", BF16, a, list]);
    assert!(code == 2 && err.contains("defualt") && err.contains("line 4"), "{err}");

    let shown = json(&["recipe", "show", "Q4_K_M", "--model", TINY_R1, "--json"]);
    let types: Vec<(&str, &str)> = shown["tensors"]
        .as_array()
        .unwrap()
        .iter()
        .map(|t| (t["name"].as_str().unwrap(), t["type"].as_str().unwrap()))
        .collect();
    assert!(types.contains(&("blk.2.ffn_down_exps.weight", "Q6_K")));
    assert!(shown["roles"]["expert"]["bits_per_weight"].as_f64().unwrap() > 4.5);
    let (code, out, _) = requant(&["recipe", "show", "Q4_K_M", "--model", BF16]);
    assert!(code == 0 && out.contains("blk.0-2.attn_k_b.weight"), "{out}");
}

#[test]
fn an_exported_checkpoint_converts_to_the_file_it_came_from() {
    let dir = tempfile::tempdir().unwrap();
    // Folders without a tokenizer borrow the fixture's.
    let with_tokenizer = |name: &str| {
        let folder = dir.path().join(name);
        std::fs::create_dir(&folder).unwrap();
        let family = Path::new("tests/fixtures/family").join(name);
        for from in [
            family.join("config.json"),
            family.join("model.safetensors"),
            Path::new(TINY_R1).join("tokenizer.json"),
            Path::new(TINY_R1).join("tokenizer_config.json"),
        ] {
            std::fs::copy(&from, folder.join(from.file_name().unwrap())).unwrap();
        }
        folder
    };
    let models = [
        (Path::new(TINY_R1).to_owned(), "f32"),
        (with_tokenizer("qwen2"), "bf16"),
        (with_tokenizer("qwen3-yarn"), "bf16"),
        (with_tokenizer("llama3"), "f32"),
        (with_tokenizer("llama-bias"), "bf16"),
        (with_tokenizer("deepseek-v2"), "bf16"),
    ];
    for (i, (checkpoint, dtype)) in models.iter().enumerate() {
        let path = |name: &str| dir.path().join(format!("{name}-{i}")).to_str().unwrap().to_owned();
        let [first, folder, second] = ["first", "folder", "second"].map(path);
        let convert = |from: &str, to: &str| {
            let args = ["convert", from, to, "-t", "F32", "--intermediate", "f32", "-q"];
            let (code, _, err) = requant(&args);
            assert_eq!(code, 0, "{err}");
        };
        convert(checkpoint.to_str().unwrap(), &first);
        let (code, _, err) = requant(&["export", &first, &folder, "--dtype", dtype, "-q"]);
        assert_eq!(code, 0, "{err}");
        convert(&folder, &second);
        let diff = json(&["diff", &first, &second, "--json", "-q"]);
        let name = checkpoint.display();
        assert_eq!(diff["tensors"].as_array().unwrap().len(), 0, "{name}");
        assert!(diff["only_a"].as_array().unwrap().is_empty(), "{name}");
        for key in diff["metadata"].as_array().unwrap() {
            // What GGUF does not hold, or holds by default.
            let key = key["key"].as_str().unwrap();
            let known = ["general.", "expert_gating_func"];
            assert!(known.iter().any(|part| key.contains(part)), "{name}: {key}");
        }
        let (code, _, err) = requant(&["export", &first, &folder, "-q"]);
        assert!(code == 1 && err.contains("exists"), "{err}");
    }
}

#[test]
fn an_exported_router_keeps_its_precision() {
    const ROUTER: &str = "blk.1.ffn_gate_inp.weight";
    let dir = tempfile::tempdir().unwrap();
    let path = |name: &str| dir.path().join(name).to_str().unwrap().to_owned();
    let [first, folder, second] = ["first", "folder", "second"].map(path);
    let router = |path: &str| {
        let file = GgufFile::open(Path::new(path)).unwrap();
        let i = file.tensors().iter().position(|t| t.name == ROUTER).unwrap();
        file.tensor_data(i).to_vec()
    };
    let mut bytes = std::fs::read(BF16).unwrap();
    let data = router(BF16);
    let at = bytes.windows(data.len()).position(|w| w == data).unwrap();
    // The last bit of a value of the third row, which BF16 has no place for.
    bytes[at + 2 * 4 * 256] ^= 1;
    std::fs::write(&first, bytes).unwrap();
    assert_eq!(requant(&["export", &first, &folder, "--dtype", "bf16", "-q"]).0, 0);
    assert_eq!(requant(&["convert", &folder, &second, "--outtype", "bf16", "-q"]).0, 0);
    assert!(router(&first) != data && router(&first) == router(&second));
}

#[test]
fn an_export_that_fails_names_the_file_and_leaves_nothing() {
    let dir = tempfile::tempdir().unwrap();
    let path = |name: &str| dir.path().join(name).to_str().unwrap().to_owned();
    let (file, folder) = (path("m.gguf"), path("folder"));
    std::fs::copy(BF16, &file).unwrap();
    assert_eq!(requant(&["set", &file, "tokenizer.ggml.model=str:x", "-q"]).0, 0);
    let (code, _, err) = requant(&["export", &file, &folder, "-q"]);
    assert_eq!(code, 1);
    assert_eq!(
        err,
        format!(
            "requant: {file}: metadata key `tokenizer.ggml.model`: `x` is not supported, byte-level BPE (gpt2) is\n"
        )
    );
    assert_eq!(std::fs::read_dir(dir.path()).unwrap().count(), 1, "the model alone");
}

#[test]
fn joint_keys_and_values_of_older_files_are_split() {
    let dir = tempfile::tempdir().unwrap();
    let path = |name: &str| dir.path().join(name).to_str().unwrap().to_owned();
    let [legacy, split, new, quantized] = ["l", "s", "n", "q"].map(path);
    for (output, mla) in [(&legacy, "legacy"), (&new, "split")] {
        let args = ["convert", TINY_R1, output, "--type", "BF16", "--mla", mla, "-q"];
        assert_eq!(requant(&args).0, 0);
    }
    assert_eq!(requant(&["quantize", &legacy, &split, "BF16", "--mla", "split", "-q"]).0, 0);
    let (code, out, _) = requant(&["diff", &new, &split]);
    assert!(code == 0 && out.starts_with("0 of 52"), "{out}");
    assert_eq!(requant(&["verify", &legacy, "--against", TINY_R1, "-q"]).0, 0);
    let joined = path("joined");
    assert_eq!(requant(&["quantize", &new, &joined, "BF16", "--mla", "legacy", "-q"]).0, 0);
    let (code, out, _) = requant(&["diff", &legacy, &joined]);
    assert!(code == 0 && out.starts_with("0 of"), "{out}");

    // Values keep their blocks, keys are transposed and cannot.
    assert_eq!(requant(&["quantize", &legacy, &quantized, "Q4_K_M", "-q"]).0, 0);
    let args = ["quantize", &quantized, &split, "COPY", "--mla", "split", "-q", "--force"];
    assert_eq!(requant(&args).0, 0);
    let types = json(&["inspect", &split, "--json"]);
    let of = |name: &str| {
        let tensors = types["tensors"].as_array().unwrap();
        tensors.iter().find(|t| t["name"] == name).unwrap()["type"].as_str().unwrap().to_owned()
    };
    assert_eq!([of("blk.1.attn_k_b.weight"), of("blk.1.attn_v_b.weight")], ["Q8_0", "Q4_K"]);
    let perplexity = |file: &str| {
        let text = "tests/fixtures/text/heldout.txt";
        let result = json(&["perplexity", file, "--text", text, "--chunks", "1", "--json", "-q"]);
        result["perplexity"].as_f64().unwrap()
    };
    let ratio = perplexity(&split) / perplexity(&quantized);
    assert!((ratio - 1.0).abs() < 1e-3, "{ratio}");
}
