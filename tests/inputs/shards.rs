//! The files of checkpoints: index and shards in every relation, links, and files that are not what they
//! seem.

use crate::checkpoint::*;
use crate::raw::*;
use serde_json::{Value as Json, json};

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
    std::fs::write(bench.path("tokens"), "5, 6, 7, 8").unwrap();
    let imatrix = ["imatrix", "c", "--tokens", "tokens", "--ctx", "4"];
    bench.run(&imatrix).ok().says(&["multi-token prediction is left out", &shard(2)]);
    bench.run(&[&imatrix[..], &["--mtp", "keep", "-f"]].concat()).fails(&[&shard(2)]);
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
