//! GGUF files that are valid and rare: every alignment, shapes without extents, types of other programs,
//! keys of every kind. What does not need values has to work on all of them.

use crate::raw::{Bench, Gguf, HELDOUT, Rng, Tensor, Value, block};
use std::collections::BTreeMap;
use std::os::unix::fs::{PermissionsExt, symlink};
use std::path::Path;

/// Bytes by the tensor's name, less the zeros at the end of those whose size only their type would tell.
fn data(file: &Gguf) -> BTreeMap<&str, &[u8]> {
    let of = |t: &'_ Tensor| match block(t.ty) {
        Some(_) => t.data.len(),
        None => t.data.iter().rposition(|&byte| byte != 0).map_or(0, |at| at + 1),
    };
    file.tensors.iter().map(|t| (t.name.as_str(), &t.data[..of(t)])).collect()
}

/// Extents as llama.cpp writes them: at least one, none of 1 at the end.
fn trimmed(dims: &[u64]) -> Vec<u64> {
    let n = dims.iter().rposition(|&d| d != 1).map_or(1, |at| at + 1);
    (0..n).map(|i| dims.get(i).copied().unwrap_or(1)).collect()
}

/// Every tensor of `a` is in `b` with its type, shape and bytes, and every key with its type and value,
/// but for those that a copy sets.
#[track_caller]
fn survives(a: &Gguf, b: &Gguf) {
    assert!(data(a) == data(b));
    for t in &a.tensors {
        let other = b.tensor(&t.name).unwrap();
        assert_eq!((t.ty, trimmed(&t.dims)), (other.ty, trimmed(&other.dims)), "{}", t.name);
    }
    for (key, value) in &a.keys {
        let of_copies = ["general.quantization_version", "general.file_type"];
        if !of_copies.contains(&key.as_str()) && !key.starts_with("split.") {
            // As text, since NaN is not equal to itself.
            let found = b.get(key).map(|value| format!("{value:?}"));
            assert_eq!(found, Some(format!("{value:?}")), "{key}");
        }
    }
}

fn f32s(values: &[f32]) -> Vec<u8> {
    values.iter().flat_map(|x| x.to_le_bytes()).collect()
}

fn tensor(name: &str, dims: &[u64], ty: u32, data: Vec<u8>) -> Tensor {
    Tensor { name: name.to_owned(), dims: dims.to_vec(), ty, data }
}

/// A file that no program runs, with a tensor of each kind of shape.
fn shapes() -> Gguf {
    let some = |n: usize| f32s(&(0..n).map(|i| i as f32 - 1.5).collect::<Vec<_>>());
    let tensors = vec![
        tensor("scalar", &[], 0, some(1)),
        tensor("", &[3], 0, some(3)),
        tensor("none", &[0], 0, vec![]),
        tensor("none.many", &[0, 1 << 60], 0, vec![]),
        tensor("none.weight", &[256, 0, 5], 30, vec![]),
        tensor("ones", &[1, 1, 1, 1], 0, some(1)),
        tensor("four.weight", &[32, 3, 2, 2], 0, some(32 * 12)),
        tensor("trailing.weight", &[32, 2, 1], 8, vec![7; 68]),
        tensor(&"n".repeat(63), &[5, 1], 26, vec![3; 20]),
        tensor("wide", &[3], 28, vec![0; 24]),
    ];
    let mut file = Gguf { version: 3, keys: Vec::new(), tensors };
    file.set("general.architecture", Value::str("nobodys"));
    file.set("odd.bool", Value::Bool(7));
    file.set("odd.bools", Value::Array(7, vec![Value::Bool(0), Value::Bool(255)]));
    file.set("odd.empty", Value::Str(Vec::new()));
    file.set("odd.list", Value::Array(8, Vec::new()));
    file.set("odd.bytes", Value::Str(vec![b'a', 0, 0xff, 0xfe, b'z']));
    file
}

/// A small model that runs, with its perplexity.
fn model(bench: &Bench, name: &str) -> Gguf {
    bench.checkpoint("family/qwen2", "checkpoint");
    bench.run(&["convert", "checkpoint", name, "--outtype", "f32", "--force", "-q"]).ok();
    Gguf::read(&bench.path(name))
}

fn perplexity(bench: &Bench, file: &str) -> f64 {
    let text = std::fs::canonicalize(HELDOUT).unwrap();
    let args =
        ["perplexity", file, "--text", text.to_str().unwrap(), "--chunks", "1", "--json", "-q"];
    bench.run(&args).ok().json()["perplexity"].as_f64().unwrap()
}

/// A copy in one file, in several, in one again, and an edit that is taken back.
#[track_caller]
fn copies_survive(bench: &Bench, name: &str) {
    let original = Gguf::read(&bench.path(name));
    for made in ["copy.gguf", "merged.gguf"] {
        let _ = std::fs::remove_file(bench.path(made));
    }
    bench.run(&["quantize", name, "copy.gguf", "COPY", "-q"]).ok();
    survives(&original, &Gguf::read(&bench.path("copy.gguf")));
    let parts = bench.path("parts");
    let _ = std::fs::remove_dir_all(&parts);
    std::fs::create_dir(&parts).unwrap();
    bench.run(&["split", name, "parts/p", "--split-max-tensors", "3", "-q"]).ok();
    let n = original.tensors.len().div_ceil(3).max(1);
    let first = format!("parts/p-00001-of-{n:05}.gguf");
    bench.run(&["merge", &first, "merged.gguf", "-q"]).ok();
    survives(&original, &Gguf::read(&bench.path("merged.gguf")));
    let hashes = |file: &str| {
        let mut hashes = bench.run(&["hash", file, "--json", "-q"]).ok().json();
        hashes.as_object_mut().unwrap().remove("run");
        hashes
    };
    let expected = hashes(name);
    assert_eq!(hashes(&first), expected);
    assert_eq!(hashes("copy.gguf")["tensors"], expected["tensors"]);

    let before = std::fs::read(bench.path(name)).unwrap();
    std::fs::write(bench.path("edited.gguf"), &before).unwrap();
    bench.run(&["set", "edited.gguf", "added.key=arr[str]:[\"a\",\"b\"]", "-q"]).ok();
    let edited = Gguf::read(&bench.path("edited.gguf"));
    survives(&original, &edited);
    let added = Value::Array(8, vec![Value::str("a"), Value::str("b")]);
    assert_eq!(edited.get("added.key"), Some(&added));
    bench.run(&["unset", "edited.gguf", "added.key", "-q"]).ok();
    let restored = Gguf::read(&bench.path("edited.gguf"));
    survives(&original, &restored);
    assert_eq!(restored.get("added.key"), None);

    let diff = bench.run(&["diff", name, "copy.gguf", "--json", "-q"]).json();
    for list in ["tensors", "only_a", "only_b"] {
        assert_eq!(diff[list].as_array().unwrap().len(), 0, "{diff}");
    }
}

#[test]
fn every_alignment_is_kept() {
    let bench = Bench::new();
    let plain = model(&bench, "plain.gguf");
    bench.run(&["quantize", "plain.gguf", "q8.gguf", "Q8_0", "-q"]).ok();
    let quantized = Gguf::read(&bench.path("q8.gguf"));
    let expected = perplexity(&bench, "plain.gguf");
    for (alignment, filler) in [(1, 3), (8, 8), (16, 24), (64, 1), (4096, 16), (65536, 0)] {
        let mut file = plain.clone();
        file.set("x.filler", Value::Str(vec![b'x'; filler]));
        file.set("general.alignment", Value::U32(alignment));
        file.write(&bench.path("a.gguf"));
        copies_survive(&bench, "a.gguf");
        bench.run(&["quantize", "a.gguf", "aq8.gguf", "Q8_0", "--force", "-q"]).ok();
        let found = Gguf::read(&bench.path("aq8.gguf"));
        assert!(data(&found) == data(&quantized), "{alignment}");
        assert_eq!(found.alignment(), u64::from(alignment));
        bench
            .run(&["verify", "a.gguf", "--against", "checkpoint", "--intermediate", "f32", "-q"])
            .ok();
        assert_eq!(perplexity(&bench, "a.gguf"), expected);
    }
}

#[test]
fn split_models_keep_their_cuts_and_alignment() {
    let bench = Bench::new();
    let mut file = model(&bench, "a.gguf");
    file.set("general.alignment", Value::U32(128)).write(&bench.path("a.gguf"));
    bench.run(&["split", "a.gguf", "s", "--split-max-tensors", "9", "-q"]).ok();
    let count = file.tensors.len().div_ceil(9);
    let first = format!("s-00001-of-{count:05}.gguf");
    bench.run(&["quantize", &first, "k", "COPY", "--keep-split", "-q"]).ok();
    for no in 1..=count {
        let [a, b] = ["s", "k"].map(|name| format!("{name}-{no:05}-of-{count:05}.gguf"));
        survives(&Gguf::read(&bench.path(&a)), &Gguf::read(&bench.path(&b)));
    }
    // No part is larger than asked for, whatever the alignment.
    bench.run(&["split", "a.gguf", "m", "--split-max-size", "40K", "-q"]).ok();
    let parts = std::fs::read_dir(bench.dir())
        .unwrap()
        .filter(|entry| entry.as_ref().unwrap().file_name().to_string_lossy().starts_with("m-0"));
    for part in parts {
        let part = Gguf::read(&part.unwrap().path());
        let padded = |t: &Tensor| t.data.len().next_multiple_of(part.alignment() as usize);
        let size: usize = part.tensors.iter().map(padded).sum();
        assert!(size <= 40_000 || part.tensors.len() == 1, "{size}");
    }
}

#[test]
fn alignments_that_are_none_are_refused() {
    let bench = Bench::new();
    let mut file = shapes();
    for wrong in [Value::U32(24), Value::U32(0), Value::U64(32), Value::str("32"), Value::I32(32)] {
        let mut bytes = file.set("x.filler", Value::U8(0)).clone();
        bytes.keys.push(("general.alignment".to_owned(), wrong));
        std::fs::write(bench.path("w.gguf"), bytes.bytes()).unwrap();
        for command in ["inspect", "hash", "verify"] {
            bench.run(&[command, "w.gguf"]).fails(&[
                "w.gguf",
                "`general.alignment`",
                "power of two",
            ]);
        }
    }
    let twice = Value::U32(64);
    file.keys.extend([("general.alignment".to_owned(), twice.clone())]);
    file.keys.push(("general.alignment".to_owned(), twice));
    file.write(&bench.path("w.gguf"));
    bench.run(&["inspect", "w.gguf"]).fails(&["`general.alignment`", "stands twice"]);

    // By an option, it is that of the output.
    let small = model(&bench, "plain.gguf");
    let with = |value: &str| {
        let key = format!("general.alignment={value}");
        bench.run(&["quantize", "plain.gguf", "o.gguf", "COPY", "--override-kv", &key, "--force"])
    };
    with("int:256").ok();
    let found = Gguf::read(&bench.path("o.gguf"));
    assert_eq!(found.alignment(), 256);
    survives(&small, &found);
    with("int:48").fails(&["`general.alignment` is 48", "power of two"]);
    with("str:x").fails(&["`general.alignment`", "power of two"]);
}

#[test]
fn shapes_of_every_rank_are_copied() {
    let bench = Bench::new();
    for (version, alignment) in [(3, 32), (2, 8), (3, 512)] {
        let mut file = shapes();
        file.version = version;
        file.set("general.alignment", Value::U32(alignment)).write(&bench.path("s.gguf"));
        copies_survive(&bench, "s.gguf");
        bench.run(&["verify", "s.gguf"]).ok();
        let out = bench.run(&["inspect", "s.gguf", "--tensors"]).ok().stdout;
        assert!(out.contains("32 x 3 x 2 x 2"), "{out}");
        let stats =
            bench.run(&["inspect", "s.gguf", "--tensor", "four.weight", "--stats", "--json"]);
        assert_eq!(stats.ok().json()["tensors"][0]["stats"]["n"], 384);
        for name in ["scalar", "none", "none.many", ""] {
            bench.run(&["inspect", "s.gguf", "--tensor", name, "--stats"]).ok();
        }
        let args = ["quantize", "s.gguf", "q.gguf", "Q4_0", "--force", "-q"];
        bench.run(&args).fails(&["`trailing.weight` is Q8_0 already"]);
        bench.run(&[&args[..], &["--allow-requantize"]].concat()).ok();
        let found = Gguf::read(&bench.path("q.gguf"));
        assert_eq!(found.tensor("four.weight").unwrap().ty, 2);
        assert_eq!(found.tensor("scalar").unwrap().data, f32s(&[-1.5]));
        bench.run(&["recipe", "from", "s.gguf"]).ok();
        bench.run(&["recipe", "show", "Q4_K_M", "--model", "s.gguf"]).ok();
        for command in ["perplexity", "export"] {
            bench.run(&[command, "s.gguf", "--text"]).fails(&[]);
        }
        bench.run(&["export", "s.gguf", "folder"]).fails(&["s.gguf"]);
    }
    for (what, name) in [("key", "odd.bytes"), ("tensor", "trailing.weight")] {
        let mut bytes = shapes().bytes();
        let at = bytes.windows(name.len()).position(|w| w == name.as_bytes()).unwrap();
        bytes[at + 1] = 0xff;
        std::fs::write(bench.path("n.gguf"), bytes).unwrap();
        bench.run(&["inspect", "n.gguf"]).fails(&["n.gguf", what, &name[2..], "not UTF-8"]);
    }
    let mut long = shapes();
    long.tensors[0].name = "n".repeat(64);
    long.write(&bench.path("l.gguf"));
    bench.run(&["inspect", "l.gguf"]).fails(&["l.gguf", "64 bytes, at most 63"]);
}

#[test]
fn files_without_tensors_are_files() {
    let bench = Bench::new();
    let full = model(&bench, "m.gguf");
    let vocabulary = Gguf { tensors: Vec::new(), ..full };
    let empty = Gguf { keys: Vec::new(), ..vocabulary.clone() };
    for mut file in [vocabulary, empty] {
        for alignment in [None, Some(8), Some(4096)] {
            if let Some(alignment) = alignment {
                file.set("general.alignment", Value::U32(alignment));
            }
            file.write(&bench.path("v.gguf"));
            copies_survive(&bench, "v.gguf");
            for args in [&["inspect", "v.gguf"][..], &["verify", "v.gguf"], &["hash", "v.gguf"]] {
                bench.run(args).ok();
            }
        }
    }
}

#[test]
fn types_of_other_programs_are_kept_and_named() {
    let bench = Bench::new();
    let plain = model(&bench, "plain.gguf");
    // ik_llama.cpp's, future ones and those that were withdrawn; in the middle and at the end.
    for (id, alignment) in [(139, 32), (4, 64), (36, 8), (202, 32), (1000, 32), (43, 128)] {
        let mut file = plain.clone();
        file.set("general.alignment", Value::U32(alignment));
        let at = file.tensors.iter().position(|t| t.name == "blk.0.ffn_up.weight").unwrap();
        let last = file.tensors.len() - 1;
        for (at, n) in [(at, 1000), (last, 77)] {
            let data = (0..n).map(|i| (i * 7 % 251) as u8 + 1).collect();
            file.tensors[at] = Tensor { ty: id, data, ..file.tensors[at].clone() };
        }
        file.write(&bench.path("u.gguf"));
        copies_survive(&bench, "u.gguf");
        let name = format!("type {id}");
        let shown = bench.run(&["inspect", "u.gguf", "--json"]).ok().json();
        assert_eq!(shown["types"][&name]["tensors"], 2, "{shown}");
        let listed = bench.run(&["inspect", "u.gguf", "--tensors"]).ok().stdout;
        assert!(listed.contains(&name));
        let verified = bench.run(&["verify", "u.gguf"]).ok();
        assert_eq!(verified.warnings().len(), 1, "{verified:?}");
        assert!(verified.warnings()[0].contains("blk.0.ffn_up.weight"), "{verified:?}");
        bench.run(&["verify", "u.gguf", "--strict"]).fails(&["blk.0.ffn_up.weight"]);

        // What differs is found without values.
        let mut other = file.clone();
        other.tensors[at].data[10] ^= 1;
        other.write(&bench.path("other.gguf"));
        let diff = bench.run(&["diff", "u.gguf", "other.gguf", "--json", "-q"]);
        assert_eq!(diff.code, Some(3));
        let diff = diff.json();
        assert_eq!(diff["tensors"].as_array().unwrap().len(), 1, "{diff}");
        assert_eq!(diff["tensors"][0]["bytes_differ"], true);
        assert_eq!(bench.run(&["diff", "u.gguf", "plain.gguf", "-q"]).code, Some(3));

        // What needs values names tensor and type.
        let words = ["tensor `", &name];
        let text = std::fs::canonicalize(HELDOUT).unwrap();
        let text = text.to_str().unwrap();
        for args in [
            &["quantize", "u.gguf", "o.gguf", "Q4_K_M"][..],
            &["perplexity", "u.gguf", "--text", text, "--chunks", "1"],
            &["imatrix", "u.gguf", "--text", text, "--chunks", "1", "-o", "im.gguf"],
            &["export", "u.gguf", "folder"],
            &["recipe", "show", "Q4_K_M", "--model", "u.gguf"],
            &["inspect", "u.gguf", "--tensor", "blk.0.ffn_up.weight", "--stats"],
        ] {
            bench.run(args).fails(&words);
        }
    }
}

#[test]
fn set_takes_lists_and_files() {
    let bench = Bench::new();
    shapes().write(&bench.path("a.gguf"));
    let template = "{% for m in messages %}\n{{ m['content'] }}=:,\n{% endfor %}\n";
    std::fs::write(bench.path("t.jinja"), template).unwrap();
    std::fs::write(bench.path("list.json"), "[1.5,\n -2]\n").unwrap();
    std::fs::write(bench.path("raw"), [0xff, 0, b'x']).unwrap();
    let args = [
        "set",
        "a.gguf",
        "a=arr[i32]:1, -2,3",
        "b=arr[f32]:[1e-6, 2]",
        "c=arr[str]:[\"x, y\", \"\"]",
        "d=arr[bool]:true,false",
        "e=arr[u64]:",
        "f=file:t.jinja",
        "g=arr[f64]:file:list.json",
        "h=str:file:raw",
        "i=str:a=b:c",
        "j=arr[str]:x,y",
        "odd.bool=bool:false",
    ];
    bench.run(&args).ok();
    let file = Gguf::read(&bench.path("a.gguf"));
    let strings = |list: &[&str]| Value::Array(8, list.iter().map(|s| Value::str(s)).collect());
    for (key, value) in [
        ("a", Value::Array(5, vec![Value::I32(1), Value::I32(-2), Value::I32(3)])),
        ("b", Value::Array(6, vec![Value::F32(1e-6), Value::F32(2.0)])),
        ("c", strings(&["x, y", ""])),
        ("d", Value::Array(7, vec![Value::Bool(1), Value::Bool(0)])),
        ("e", Value::Array(10, vec![])),
        ("f", Value::str(template)),
        ("g", Value::Array(12, vec![Value::F64(1.5), Value::F64(-2.0)])),
        ("h", Value::Str(vec![0xff, 0, b'x'])),
        ("i", Value::str("a=b:c")),
        ("j", strings(&["x", "y"])),
        ("odd.bool", Value::Bool(0)),
    ] {
        assert_eq!(file.get(key), Some(&value), "{key}");
    }
    assert!(data(&file) == data(&shapes()));
    let before = std::fs::read(bench.path("a.gguf")).unwrap();
    for (wrong, word) in [
        ("a=arr[i32]:1,x", "is no arr[i32]"),
        ("a=arr[u8]:[256]", "is no arr[u8]"),
        ("a=arr[i32]:[1,", "is no arr[i32]"),
        ("a=arr[arr[i32]]:1", "unknown type"),
        ("a=arr:1", "unknown type"),
        ("a=file:missing", "missing: No such file"),
        ("=str:x", "the key is empty"),
        ("general.alignment=u32:64", "stays"),
        ("split.count=u16:2", "stays"),
    ] {
        bench.run(&["set", "a.gguf", wrong]).fails(&[word]);
    }
    assert_eq!(std::fs::read(bench.path("a.gguf")).unwrap(), before);
}

#[test]
fn the_old_file_is_kept_where_asked_for() {
    let bench = Bench::new();
    let file = shapes();
    file.write(&bench.path("real.gguf"));
    let original = std::fs::read(bench.path("real.gguf")).unwrap();
    std::fs::set_permissions(bench.path("real.gguf"), PermissionsExt::from_mode(0o640)).unwrap();
    symlink("real.gguf", bench.path("link.gguf")).unwrap();
    bench.run(&["set", "link.gguf", "a=str:some text", "--backup"]).ok().says(&["new file"]);
    assert_eq!(std::fs::read(bench.path("real.gguf.bak")).unwrap(), original);
    assert!(bench.path("link.gguf").is_symlink());
    let mode = std::fs::metadata(bench.path("real.gguf")).unwrap().permissions().mode();
    assert_eq!(mode & 0o777, 0o640);
    let edited = Gguf::read(&bench.path("real.gguf"));
    survives(&file, &edited);
    assert_eq!(edited.get("a"), Some(&Value::str("some text")));
    // Neither file is touched where the name is taken.
    for command in [&["set", "link.gguf", "a=str:other"][..], &["unset", "real.gguf", "a"]] {
        let said = bench.run(&[command, &["--backup"]].concat());
        said.fails(&["real.gguf.bak", "exists already"]);
    }
    assert_eq!(std::fs::read(bench.path("real.gguf.bak")).unwrap(), original);
    assert!(Gguf::read(&bench.path("real.gguf")) == edited);
    // Without a backup, the same length stays in place.
    bench.run(&["set", "link.gguf", "a=str:same size"]).ok().says(&["in place"]);
    let names = std::fs::read_dir(bench.dir()).unwrap().count();
    assert_eq!(names, 3, "nothing else is left");
}

#[test]
fn what_is_no_gguf_file_is_named() {
    let bench = Bench::new();
    let whole = shapes().bytes();
    let lfs = "version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 4300000000\n";
    let (first, second) = whole.split_at(whole.len() / 2);
    let safetensors = [&64u64.to_le_bytes()[..], b"{\"a\":{\"dtype\":\"F32\"}}"].concat();
    let files: [(&str, &[u8], &[&str]); 13] = [
        ("lfs.gguf", lfs.as_bytes(), &["Git LFS", "git lfs pull"]),
        ("page.gguf", b"<!DOCTYPE html><html><head>", &["<!DOCTYPE html>", "server"]),
        ("s3.gguf", b"<?xml version=\"1.0\"?><Error><Code>AccessDenied", &["AccessDenied"]),
        ("error.gguf", b"{\"error\":\"Repository not found\"}", &["Repository not found"]),
        ("zeros.gguf", &[0; 5000], &["zeros", "download"]),
        ("empty.gguf", b"", &["empty", "download"]),
        ("zip.gguf", b"PK\x03\x04\x14\x00", &["zip archive", "safetensors"]),
        ("packed.gguf.gz", b"\x1f\x8b\x08\x00\x00", &["gzip", "unpack"]),
        ("old.bin", b"tjgg\x03\x00\x00\x00", &["before GGUF", "convert"]),
        ("model.safetensors", &safetensors, &["a safetensors file", "checkpoint"]),
        ("m.gguf.part2of2", second, &["raw piece", "cat"]),
        ("m.gguf-split-a", first, &["raw piece", "cat"]),
        ("m.gguf.incomplete", &whole, &["not ended"]),
    ];
    for (name, bytes, words) in files {
        std::fs::write(bench.path(name), bytes).unwrap();
        for args in [&["inspect", name][..], &["hash", name], &["set", name, "a=u8:1"]] {
            bench.run(args).fails(&[&[name], words].concat());
        }
        assert_eq!(std::fs::read(bench.path(name)).unwrap(), bytes);
    }
    bench.run(&["quantize", "lfs.gguf", "o.gguf", "Q8_0"]).fails(&["lfs.gguf", "Git LFS"]);
    bench.run(&["perplexity", "page.gguf", "--text", "zip.gguf"]).fails(&["page.gguf", "server"]);
    bench.run(&["convert", "lfs.gguf", "o.gguf", "--type", "Q8_0"]).fails(&["lfs.gguf"]);
    bench.run(&["diff", "lfs.gguf", "page.gguf"]).fails(&["lfs.gguf", "Git LFS"]);
    let args = ["quantize", "m.gguf", "o.gguf", "Q8_0", "--imatrix", "lfs.gguf"];
    std::fs::write(bench.path("m.gguf"), &whole).unwrap();
    bench.run(&args).fails(&["lfs.gguf", "Git LFS"]);
}

#[test]
fn parts_of_a_split_model_say_which_one_to_give() {
    let bench = Bench::new();
    let file = model(&bench, "m.gguf");
    let n = file.tensors.len().div_ceil(6);
    bench.run(&["split", "m.gguf", "p", "--split-max-tensors", "6", "-q"]).ok();
    let part = |no: usize| format!("p-{no:05}-of-{n:05}.gguf");
    bench.run(&["inspect", &part(2)]).fails(&[&part(2), &part(1)]);
    bench.run(&["inspect", &part(2), "--header"]).ok();
    std::fs::remove_file(bench.path(&part(2))).unwrap();
    for args in [&["merge", &part(1), "o.gguf"][..], &["verify", &part(1)], &["hash", &part(1)]] {
        bench.run(args).fails(&[&part(2), "missing", "fetch it"]);
    }
    bench.run(&["inspect", &part(1), "--header"]).ok();
    std::fs::write(bench.path(&part(2)), "version https://git-lfs.github.com/spec/v1\n").unwrap();
    bench.run(&["hash", &part(1)]).fails(&[&part(2), "Git LFS"]);
    // A part of one is a model, whatever its name.
    bench.run(&["split", "m.gguf", "one", "--split-max-tensors", "1000", "-q"]).ok();
    std::fs::rename(bench.path("one-00001-of-00001.gguf"), bench.path("one.gguf")).unwrap();
    bench.run(&["quantize", "one.gguf", "o.gguf", "COPY", "-q"]).ok();
    survives(&file, &Gguf::read(&bench.path("o.gguf")));
}

#[test]
fn the_header_of_a_cut_file_is_shown() {
    let bench = Bench::new();
    let file = model(&bench, "m.gguf");
    let bytes = std::fs::read(bench.path("m.gguf")).unwrap();
    let data =
        bytes.len() - file.tensors.iter().map(|t| t.data.len().next_multiple_of(32)).sum::<usize>();
    let full = data + 100_000;
    for there in [full, data + 7, data] {
        std::fs::write(bench.path("cut.gguf"), &bytes[..there]).unwrap();
        let words = ["cut.gguf", &format!("{there} of {}", bytes.len()), "inspect --header"];
        bench.run(&["inspect", "cut.gguf"]).fails(&words);
        let shown = bench.run(&["inspect", "cut.gguf", "--header", "--tensors"]).ok().stdout;
        for word in ["incomplete", "qwen2.block_count", "blk.0.ffn_up.weight"] {
            assert!(shown.contains(word), "{shown}");
        }
        let json = bench.run(&["inspect", "cut.gguf", "--header", "--json"]).ok().json();
        assert_eq!(
            (json["bytes_there"].as_u64(), json["bytes_of_all"].as_u64()),
            (Some(there as u64), Some(bytes.len() as u64))
        );
        assert_eq!(json["total"]["tensors"], file.tensors.len());
    }
    let shown = bench.run(&["inspect", "m.gguf", "--header"]).ok().stdout;
    assert!(shown.contains("complete") && !shown.contains("incomplete"), "{shown}");
    std::fs::write(bench.path("cut.gguf"), &bytes[..data / 2]).unwrap();
    bench.run(&["inspect", "cut.gguf", "--header"]).fails(&["cut.gguf", "ends inside"]);
}

#[test]
fn lists_of_equal_numbers_are_one_number() {
    let bench = Bench::new();
    let mut file = model(&bench, "m.gguf");
    let expected = perplexity(&bench, "m.gguf");
    let number = |file: &Gguf, key: &str| file.get(key).unwrap().clone();
    for key in [
        "qwen2.attention.head_count",
        "qwen2.attention.head_count_kv",
        "qwen2.feed_forward_length",
        "qwen2.attention.layer_norm_rms_epsilon",
        "qwen2.rope.freq_base",
    ] {
        let value = number(&file, key);
        file.set(key, Value::Array(value.id(), vec![value; 2]));
    }
    file.write(&bench.path("lists.gguf"));
    assert_eq!(perplexity(&bench, "lists.gguf"), expected);
    bench.run(&["quantize", "lists.gguf", "q.gguf", "Q4_K_M", "-q"]).ok();
    bench.run(&["quantize", "m.gguf", "q2.gguf", "Q4_K_M", "-q"]).ok();
    assert!(data(&Gguf::read(&bench.path("q.gguf"))) == data(&Gguf::read(&bench.path("q2.gguf"))));
    bench.run(&["export", "lists.gguf", "folder", "-q"]).ok();

    let key = "qwen2.feed_forward_length";
    file.set(key, Value::Array(4, vec![Value::U32(64), Value::U32(96)]))
        .write(&bench.path("d.gguf"));
    let text = std::fs::canonicalize(HELDOUT).unwrap();
    let args = ["perplexity", "d.gguf", "--text", text.to_str().unwrap()];
    bench.run(&args).fails(&[key, "the same for all layers"]);
    // What needs no such number goes on.
    copies_survive(&bench, "d.gguf");
}

/// A value of any kind.
fn value(rng: &mut Rng, arrays: bool) -> Value {
    match rng.below(if arrays { 14 } else { 12 }) {
        0 => Value::U8(rng.next() as u8),
        1 => Value::I8(rng.next() as i8),
        2 => Value::U16(rng.next() as u16),
        3 => Value::I16(rng.next() as i16),
        4 => Value::U32(rng.next() as u32),
        5 => Value::I32(rng.next() as i32),
        6 => Value::F32(f32::from_bits(rng.next() as u32)),
        7 => Value::Bool(rng.next() as u8),
        8 => Value::U64(rng.next()),
        9 => Value::I64(rng.next() as i64),
        10 => Value::F64(f64::from_bits(rng.next())),
        11 => {
            let n = rng.below(40) as usize;
            Value::Str(rng.bytes(n))
        }
        _ => {
            let mut first = value(rng, false);
            let id = first.id();
            let n = *rng.pick(&[0, 0, 1, 2, 7, 300]);
            let mut list = Vec::new();
            while list.len() < n {
                while first.id() != id {
                    first = value(rng, false);
                }
                list.push(std::mem::replace(&mut first, value(rng, false)));
            }
            Value::Array(id, list)
        }
    }
}

/// A valid file that no program made.
fn rare(rng: &mut Rng) -> Gguf {
    let mut file = Gguf { version: *rng.pick(&[2, 3, 3]), keys: Vec::new(), tensors: Vec::new() };
    let known = [
        "general.architecture",
        "general.name",
        "general.file_type",
        "llama.block_count",
        "general.quantization_version",
        "tokenizer.ggml.tokens",
        "split.tensors.count",
    ];
    for _ in 0..rng.below(12) {
        let key = match rng.below(4) {
            0 => (*rng.pick(&known)).to_owned(),
            1 => "ключ.".to_owned() + &"k".repeat(rng.below(70) as usize),
            _ => format!("k{}.x", rng.below(1000)),
        };
        let value = value(rng, true);
        file.set(&key, value);
    }
    if rng.chance(2) {
        let alignment = 1 << *rng.pick(&[0u32, 2, 3, 4, 5, 6, 7, 12]);
        file.set("general.alignment", Value::U32(alignment));
    }
    for i in 0..rng.below(9) {
        let unknown = rng.chance(4);
        let ty = match unknown {
            true => *rng.pick(&[4, 5, 31, 36, 43, 97, 139, 202, 1_000_000, u32::MAX]),
            false => *rng.pick(&[0, 0, 1, 2, 8, 12, 14, 24, 26, 28, 30, 39, 16]),
        };
        let (len, size) = block(ty).unwrap_or((1, 1));
        let rank = rng.below(5) as usize;
        let mut dims: Vec<u64> = (0..rank).map(|_| *rng.pick(&[0, 1, 1, 2, 3, 5, 32])).collect();
        match dims.first_mut() {
            Some(first) => *first *= len,
            None if len > 1 => dims.push(len),
            None => {}
        }
        let n = match unknown {
            true => rng.below(200),
            false => dims.iter().product::<u64>() / len * size,
        };
        let mut name = match rng.below(4) {
            0 => format!("blk.{}.ffn_up.weight", rng.below(3)),
            1 => "ü".repeat(rng.below(31) as usize),
            2 => "n".repeat(rng.below(64) as usize),
            _ => format!("t{i}.weight"),
        };
        while file.tensor(&name).is_some() {
            name = format!("again{}.weight", rng.below(1000));
        }
        file.tensors.push(Tensor { name, dims, ty, data: rng.bytes(n as usize) });
    }
    file
}

/// Three seeds; every command on every file. A panic or a signal fails in [`Bench::run`].
#[test]
fn rare_files_pass_through_every_command() {
    for seed in [1, 20, 300] {
        let mut rng = Rng(seed);
        let bench = Bench::new();
        let text = std::fs::canonicalize(HELDOUT).unwrap();
        let text = text.to_str().unwrap();
        for _ in 0..8 {
            let file = rare(&mut rng);
            file.write(&bench.path("r.gguf"));
            copies_survive(&bench, "r.gguf");
            bench.run(&["inspect", "r.gguf", "--tensors"]).ok();
            bench.run(&["inspect", "r.gguf", "--header", "--json"]).ok();
            let shown = bench.run(&["inspect", "r.gguf", "--json"]).ok().json();
            assert_eq!(shown["total"]["tensors"], file.tensors.len());
            if let Some(first) = file.tensors.first() {
                bench.run(&["inspect", "r.gguf", "--tensor", &first.name, "--stats"]);
            }
            let requantize = ["--allow-requantize", "--force", "-q"];
            for ty in ["Q8_0", "Q4_K_M", "F32", "IQ2_XXS"] {
                bench.run(&[&["quantize", "r.gguf", "q.gguf", ty][..], &requantize].concat());
            }
            let sized = ["split", "r.gguf", "z", "--split-max-size", "300", "--force", "-q"];
            bench.run(&[&sized[..], &["--no-tensor-first-split"]].concat()).ok();
            bench.run(&["verify", "r.gguf"]);
            bench.run(&["recipe", "from", "r.gguf"]);
            bench.run(&["recipe", "show", "Q4_K_M", "--model", "r.gguf"]);
            bench.run(&["convert", "r.gguf", "c.gguf", "-t", "Q8_0"]).fails(&["r.gguf"]);
            bench.run(&["export", "r.gguf", "folder"]).fails(&["r.gguf"]);
            bench.run(&["perplexity", "r.gguf", "--text", text]).fails(&["r.gguf"]);
            bench.run(&["imatrix", "r.gguf", "--text", text, "-o", "i.gguf"]).fails(&["r.gguf"]);
            bench.run(&["imatrix", "--merge", "r.gguf", "-o", "i.gguf"]).fails(&["r.gguf"]);
            bench.run(&["compare", "r.gguf", "r.gguf", "--text", text]).fails(&["r.gguf"]);
        }
    }
}

/// A model that runs, and one tensor of it in another shape or type: the same result, or an error.
#[test]
fn models_with_a_rare_tensor_run_or_say_why_not() {
    let bench = Bench::new();
    let plain = model(&bench, "m.gguf");
    let expected = perplexity(&bench, "m.gguf");
    let text = std::fs::canonicalize(HELDOUT).unwrap();
    let text = text.to_str().unwrap();
    let mut rng = Rng(5);
    for number in 0..12 {
        let mut file = plain.clone();
        let at = rng.below(file.tensors.len() as u64) as usize;
        let t = &mut file.tensors[at];
        let harmless = number % 4 == 0;
        match number % 4 {
            0 => t.dims.resize(4, 1),
            1 => (t.dims, t.data) = (vec![], f32s(&[1.0])),
            2 => (t.dims, t.data) = (vec![0, 7], vec![]),
            _ => t.dims.insert(0, 1),
        }
        if t.dims.len() > 4 {
            t.dims.truncate(4);
        }
        if number % 4 == 3 {
            // Of what is left, as much as the extents say.
            let n = t.dims.iter().product::<u64>() as usize * 4;
            t.data.resize(n, 0);
        }
        file.write(&bench.path("r.gguf"));
        copies_survive(&bench, "r.gguf");
        bench.run(&["quantize", "r.gguf", "q.gguf", "Q4_K_M", "--force", "-q"]);
        let ran =
            bench.run(&["perplexity", "r.gguf", "--text", text, "--chunks", "1", "-q", "--json"]);
        let exported = bench.run(&["export", "r.gguf", &format!("folder{number}"), "-q"]);
        bench.run(&["imatrix", "r.gguf", "--text", text, "--chunks", "1", "-o", "i.gguf", "-q"]);
        bench.run(&["compare", "m.gguf", "r.gguf", "--text", text, "--chunks", "1", "-q"]);
        bench.run(&["verify", "r.gguf", "--against", "checkpoint", "-q"]);
        if harmless {
            assert_eq!(ran.ok().json()["perplexity"], expected);
            exported.ok();
        } else {
            let name = file.tensors[at].name.as_str();
            ran.fails(&[name]);
            exported.fails(&[name]);
        }
    }
    assert!(Path::new(&bench.path("m.gguf")).exists());
}
