//! Files that are what they claim to be, and files that are not.
#![cfg(feature = "cli")]

mod common;

use common::{BF16, Copy, TINY_R1, requant};
use requant::gguf::GgufFile;
use sha2::{Digest, Sha256};
use std::path::Path;
use std::process::Command;

const IMATRIX: &str = "tests/fixtures/reference/imatrix.dat";

/// Overwrites a byte in the middle of a tensor.
fn damage(path: &Path, tensor: &str) {
    let file = GgufFile::open(path).unwrap();
    let range = file.tensor_range(file.find(tensor).unwrap());
    // Windows replaces no file that is mapped.
    drop(file);
    let mut bytes = std::fs::read(path).unwrap();
    bytes[range.start + range.len() / 2 + 7] ^= 0x10;
    std::fs::write(path, bytes).unwrap();
}

#[test]
fn a_file_is_traced_to_its_checkpoint() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("out.gguf");
    let out = path.to_str().unwrap();
    let convert = ["convert", TINY_R1, out, "-t", "IQ2_XS", "-q", "--imatrix", IMATRIX];
    assert_eq!(requant(&convert).0, 0);
    let verify = ["verify", out, "-q", "--against", TINY_R1, "--imatrix", IMATRIX];
    let (code, stdout, err) = requant(&verify);
    assert_eq!(code, 0, "{err}");
    assert!(stdout.contains("100.0 %") && stdout.contains("all equal"), "{stdout}");
    let sampled = [&verify[..], &["--sample", "30%", "--seed", "1", "--json"]].concat();
    let (code, stdout, err) = requant(&sampled);
    assert_eq!(code, 0, "{err}");
    let json: serde_json::Value = serde_json::from_str(&stdout).unwrap();
    let (weights, of) = (&json["compared"]["weights"], &json["compared"]["of"]);
    assert!(0 < weights.as_u64().unwrap() && weights.as_u64() < of.as_u64(), "{json}");
    assert_eq!(json["compared"]["other_metadata"], serde_json::json!([]));
    assert_eq!(requant(&["set", out, "general.author=str:somebody", "-q"]).0, 0);
    let (_, stdout, _) = requant(&verify);
    assert!(stdout.contains("not as requant writes it: general.author\n"), "{stdout}");

    // One number of the checkpoint is another.
    let copy = Copy::new();
    let down = "model.layers.0.mlp.down_proj.weight";
    copy.poke("model-00001-of-00003.safetensors", down, 600, &[0x7e]);
    let other = copy.path().to_str().unwrap();
    let (code, _, err) = requant(&["verify", out, "-q", "--against", other, "--imatrix", IMATRIX]);
    assert_eq!(code, 3);
    assert!(err.contains("`blk.0.ffn_down.weight` differs, row 1"), "{err}");

    damage(&path, "blk.2.ffn_up_exps.weight");
    let (code, _, err) = requant(&verify);
    assert_eq!(code, 3);
    assert!(
        err.contains("`blk.2.ffn_up_exps.weight` differs") && err.lines().count() == 1,
        "{err}"
    );
}

#[test]
fn a_wider_search_is_said_made_again_and_the_same_in_a_ladder() {
    let dir = tempfile::tempdir().unwrap();
    let at = |name: &str| dir.path().join(name).to_str().unwrap().to_owned();
    let (searched, plain) = (at("searched.gguf"), at("plain.gguf"));
    let convert = ["convert", TINY_R1, &searched, "-t", "Q3_K_M", "-q", "--rounding", "search"];
    assert_eq!(requant(&convert).0, 0);
    assert_eq!(requant(&["convert", TINY_R1, &plain, "-t", "Q3_K_M", "-q"]).0, 0);
    let rounding = |path: &str| {
        let file = GgufFile::open(Path::new(path)).unwrap();
        file.metadata().str("requant.rounding").unwrap().map(str::to_owned)
    };
    assert_eq!(rounding(&searched).as_deref(), Some("search"));
    assert_eq!(rounding(&plain), None);
    let (code, stdout, err) = requant(&["verify", &searched, "-q", "--against", TINY_R1]);
    assert_eq!(code, 0, "{err}");
    for said in ["made with  a wider search for scales", "all equal"] {
        assert!(stdout.contains(said), "{stdout}");
    }
    assert!(!stdout.contains("not as requant writes it"), "{stdout}");

    // The weights are nearer to the original's.
    let errors = |path: &str| {
        let (_, stdout, _) = requant(&["diff", BF16, path, "--json", "-q"]);
        let json: serde_json::Value = serde_json::from_str(&stdout).unwrap();
        let tensors = json["tensors"].as_array().unwrap();
        let of = |name: &str| {
            let tensor = tensors.iter().find(|tensor| tensor["name"] == name).unwrap();
            tensor["relative"].as_f64().unwrap()
        };
        ["blk.0.ffn_up.weight", "blk.1.attn_output.weight", "output.weight"].map(of)
    };
    for (searched, plain) in errors(&searched).into_iter().zip(errors(&plain)) {
        assert!(searched < plain, "{searched} {plain}");
    }

    let folder = at("ladder");
    let ladder = ["convert", TINY_R1, &folder, "--types", "Q3_K_M,IQ4_XS", "-q"];
    assert_eq!(requant(&[&ladder[..], &["--rounding", "search"]].concat()).0, 0);
    let of_ladder = std::fs::read(format!("{folder}/tiny-r1-Q3_K_M.gguf")).unwrap();
    assert!(of_ladder == std::fs::read(&searched).unwrap());
    let (code, _, err) =
        requant(&["publish", &folder, "--base-model", "deepseek-ai/DeepSeek-R1", "-q"]);
    assert_eq!(code, 0, "{err}");
    let page = std::fs::read_to_string(format!("{folder}/README.md")).unwrap();
    for said in ["--type Q3_K_M --rounding search", "| with scales searched for |"] {
        assert!(page.contains(said), "{page}");
    }

    // Where nothing is searched for, the file does not say so, and the user is told.
    let copied = at("copied.gguf");
    let (code, _, err) = requant(&["quantize", &plain, &copied, "COPY", "--rounding", "search"]);
    assert!(code == 0 && err.contains("no tensor gets a type"), "{err}");
    assert_eq!(rounding(&copied), None);

    for other in ["reference", "search"] {
        let both = ["--calibrate", "tests/fixtures/text/calibration.txt", "--rounding", other];
        let (code, _, err) = requant(&[&convert[..6], &both, &["--force"]].concat());
        assert_eq!(code, 2, "{err}");
        assert!(err.contains(&format!("no meaning with --rounding {other}")), "{err}");
    }
}

#[test]
fn a_manifest_finds_damage_and_missing_parts() {
    let dir = tempfile::tempdir().unwrap();
    let out = dir.path().join("out.gguf");
    let options = ["-t", "Q8_0", "-q", "--manifest", "--split-max-tensors", "20"];
    let convert = ["convert", TINY_R1, out.to_str().unwrap()];
    assert_eq!(requant(&[&convert[..], &options].concat()).0, 0);
    let first = dir.path().join("out-00001-of-00003.gguf");
    let verify = ["verify", first.to_str().unwrap(), "-q"];
    let (code, stdout, err) = requant(&verify);
    assert_eq!(code, 0, "{err}");
    assert!(stdout.contains("out.gguf.manifest.json was checked"), "{stdout}");

    let manifest = dir.path().join("out.gguf.manifest.json");
    let json = common::json(manifest.to_str().unwrap());
    let inputs = json["inputs"].as_array().unwrap();
    let of = |what: &str| inputs.iter().filter(|input| input["what"] == what).count();
    assert_eq!((of("weights"), inputs.len()), (3, 3 + of("description")));
    let config = inputs.iter().find(|input| input["name"] == "config.json").unwrap();
    let bytes = std::fs::read(Path::new(TINY_R1).join("config.json")).unwrap();
    let hash: String = Sha256::digest(bytes).iter().map(|b| format!("{b:02x}")).collect();
    assert_eq!(config["sha256"], hash);
    assert_eq!(json["recipe"]["name"], "Q8_0");
    assert!((8.0..10.0).contains(&json["bits_per_weight"].as_f64().unwrap()));
    // Nothing is said of this machine's folders.
    let text = std::fs::read_to_string(&manifest).unwrap();
    assert!(!text.contains(dir.path().to_str().unwrap()) && !text.contains("fixtures"), "{text}");
    if cfg!(unix) {
        let mut check = Command::new("sha256sum");
        let checked = check.args(["-c", "out.gguf.sha256"]).current_dir(&dir).output().unwrap();
        assert_eq!(String::from_utf8(checked.stdout).unwrap().matches(": OK").count(), 3);
    }
    assert_eq!(json["tensors"].as_array().unwrap().len(), 52);
    let hash = common::hashes(&first)[0].2.clone();
    assert_eq!(json["tensors"][0]["sha256"], hash);

    let last = dir.path().join("out-00003-of-00003.gguf");
    damage(&last, "blk.2.ffn_up_shexp.weight");
    let (code, _, err) = requant(&verify);
    assert_eq!(code, 3);
    assert!(err.contains("tensor `blk.2.ffn_up_shexp.weight` is not the manifest's"), "{err}");
    std::fs::remove_file(&last).unwrap();
    let (code, _, err) = requant(&verify);
    assert_eq!(code, 1);
    assert!(err.contains("out-00003-of-00003.gguf") && err.contains("missing"), "{err}");
}

#[test]
fn what_belonged_to_a_replaced_output_goes_with_it() {
    let dir = tempfile::tempdir().unwrap();
    let source = dir.path().join("model-00001-of-00001.gguf");
    std::fs::copy(BF16, &source).unwrap();
    let out = dir.path().join("model.gguf");
    let run = |options: &[&str]| {
        let command = ["quantize", source.to_str().unwrap(), out.to_str().unwrap(), "Q8_0"];
        requant(&[&command[..], options].concat())
    };
    let names = || -> Vec<String> {
        let entries = std::fs::read_dir(dir.path()).unwrap();
        let mut names: Vec<String> =
            entries.map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect();
        names.sort();
        names.retain(|name| name != "model-00001-of-00001.gguf");
        names
    };
    assert_eq!(run(&["--manifest", "--split-max-tensors", "20", "-q"]).0, 0);
    assert_eq!(names().len(), 5);
    std::fs::write(dir.path().join("model-x.gguf"), "another's").unwrap();
    // An unfinished run with other options.
    std::fs::write(dir.path().join("model.gguf.journal"), "{}\n").unwrap();
    let (code, _, err) = run(&[]);
    assert!(code == 1 && err.contains("--restart"), "{err}");
    let (code, _, err) = run(&["--force"]);
    assert_eq!(code, 0, "{err}");
    assert!(err.contains("begins anew") && err.contains("model-00003-of-00003.gguf"), "{err}");
    assert_eq!(names(), ["model-x.gguf", "model.gguf"]);
    assert!(source.exists(), "what is read stays");
}

#[test]
fn what_it_takes_to_make_a_file_again_is_said() {
    let dir = tempfile::tempdir().unwrap();
    let out = dir.path().join("out.gguf");
    let out = out.to_str().unwrap();
    let convert =
        ["convert", TINY_R1, out, "-t", "IQ4_XS", "-q", "--imatrix", IMATRIX, "--manifest"];
    assert_eq!(requant(&convert).0, 0);
    let (code, stdout, err) = requant(&["verify", out, "-q"]);
    assert_eq!(code, 0, "{err}");
    assert!(stdout.contains(&format!("made with  importance matrix {IMATRIX}")), "{stdout}");
    let (_, _, err) = requant(&["verify", out, "--against", TINY_R1, "--log-level", "warn"]);
    assert!(
        err.contains("was made with the importance matrix") && err.contains("--imatrix"),
        "{err}"
    );
    let other = "tests/fixtures/reference/imatrix.gguf";
    let against = ["verify", out, "--against", TINY_R1, "--log-level", "warn", "--imatrix"];
    let (_, _, err) = requant(&[&against[..], &[other]].concat());
    assert!(err.contains("imatrix.gguf is not the manifest's imatrix.dat"), "{err}");
    let (code, _, err) = requant(&[&against[..], &[IMATRIX]].concat());
    assert_eq!((code, err.as_str()), (0, ""));
}

#[test]
fn blocks_that_are_no_numbers_are_located() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("out.gguf");
    let out = path.to_str().unwrap();
    assert_eq!(requant(&["convert", TINY_R1, out, "-t", "Q8_0", "-q"]).0, 0);
    let range = {
        let file = GgufFile::open(&path).unwrap();
        file.tensor_range(file.find("blk.0.ffn_down.weight").unwrap())
    };
    let mut bytes = std::fs::read(&path).unwrap();
    // The scale of the first block of row 2: rows of 512 are 16 blocks of 34 bytes.
    bytes[range.start + 2 * 16 * 34..][..2].copy_from_slice(&[0, 0x7c]);
    std::fs::write(&path, bytes).unwrap();
    let (code, _, err) = requant(&["verify", out, "-q"]);
    assert_eq!(code, 1);
    assert!(err.contains("blk.0.ffn_down.weight") && err.contains("block 32 "), "{err}");
}

#[test]
fn a_plan_is_exact_and_says_why() {
    let dir = tempfile::tempdir().unwrap();
    let out = dir.path().join("out.gguf");
    let out = out.to_str().unwrap();
    let options = ["-t", "Q4_K_M", "-q", "--split-max-size", "3M"];
    let (code, stdout, err) = requant(&[&["plan", TINY_R1, out, "--json"], &options[..]].concat());
    assert_eq!(code, 0, "{err}");
    assert_eq!(std::fs::read_dir(dir.path()).unwrap().count(), 0);
    let plan: serde_json::Value = serde_json::from_str(&stdout).unwrap();
    assert_eq!(requant(&[&["convert", TINY_R1, out], &options[..]].concat()).0, 0);
    let files: Vec<GgufFile> = plan["files"]
        .as_array()
        .unwrap()
        .iter()
        .map(|file| {
            let opened = GgufFile::open(Path::new(file["path"].as_str().unwrap())).unwrap();
            assert_eq!(file["bytes"], opened.file_size());
            opened
        })
        .collect();
    assert_eq!(files.len(), 3);
    for tensor in plan["tensors"].as_array().unwrap() {
        let file = &files[tensor["file"].as_u64().unwrap() as usize];
        let i = file.find(tensor["name"].as_str().unwrap()).unwrap();
        assert_eq!(tensor["offset"], file.tensor_range(i).start as u64);
        assert_eq!(tensor["bytes"], file.tensors()[i].n_bytes());
        assert_eq!(tensor["type"], file.tensors()[i].ty.to_string());
    }
    let find = |name: &str| {
        plan["tensors"].as_array().unwrap().iter().find(|t| t["name"] == name).unwrap().clone()
    };
    assert_eq!(find("blk.0.attn_k_b.weight")["why"], "rows of 128 are no whole Q4_K blocks");
    let experts = find("blk.1.ffn_up_exps.weight");
    let pieces = experts["pieces"].as_array().unwrap();
    assert_eq!(pieces.len() as u64, experts["shape"][2].as_u64().unwrap());
    assert_eq!(pieces[1]["tensor"], "model.layers.1.mlp.experts.1.up_proj.weight");

    let (code, _, err) = requant(&["plan", TINY_R1, out, "-t", "Q8_0", "-q", "--memory", "20M"]);
    assert_eq!(code, 1);
    assert!(err.contains("--memory"), "{err}");
}
