//! Importance matrices as people have them: both formats, in any order and layout, incomplete, from
//! before tensors had their names of today, damaged.

use super::raw::{BF16, Bench, Gguf, Rng, Said, TINY_R1, Tensor, Value};
use std::collections::BTreeMap;
use std::path::Path;

const GGUF: &str = "tests/fixtures/reference/imatrix.gguf";
const DAT: &str = "tests/fixtures/reference/imatrix.dat";

/// A fixture's place for the program, which runs elsewhere.
fn fixture(path: &str) -> String {
    std::fs::canonicalize(path).unwrap().to_str().unwrap().to_owned()
}

/// Sums and counts of an entry.
#[derive(Clone, Debug, PartialEq)]
struct Entry {
    sums: Vec<f32>,
    counts: Vec<f32>,
}

impl Entry {
    fn one(sums: Vec<f32>, count: f32) -> Self {
        Self { sums, counts: vec![count] }
    }

    fn means(&self) -> Vec<f32> {
        let columns = self.sums.len() / self.counts.len();
        self.sums.iter().enumerate().map(|(i, sum)| sum / self.counts[i / columns]).collect()
    }
}

type Entries = BTreeMap<String, Entry>;

fn floats(bytes: &[u8]) -> Vec<f32> {
    bytes.chunks(4).map(|b| f32::from_le_bytes(b.try_into().unwrap())).collect()
}

fn f32s(name: String, dims: Vec<u64>, values: &[f32]) -> Tensor {
    Tensor { name, dims, ty: 0, data: values.iter().flat_map(|x| x.to_le_bytes()).collect() }
}

fn read(path: &Path) -> (Gguf, Entries) {
    let file = Gguf::read(path);
    let values = |name: &str| floats(&file.tensor(name).unwrap().data);
    let names = file.tensors.iter().filter_map(|t| t.name.strip_suffix(".in_sum2"));
    let entry = |name: &str| {
        let [sums, counts] = ["in_sum2", "counts"].map(|part| values(&format!("{name}.{part}")));
        (name.to_owned(), Entry { sums, counts })
    };
    let entries = names.map(entry).collect();
    (file, entries)
}

fn reference() -> Entries {
    read(Path::new(GGUF)).1
}

/// The pairs of an entry, as llama-imatrix lays them out.
fn pair(name: &str, entry: &Entry) -> [Tensor; 2] {
    let n = entry.counts.len() as u64;
    [
        f32s(format!("{name}.in_sum2"), vec![entry.sums.len() as u64 / n, n], &entry.sums),
        f32s(format!("{name}.counts"), vec![1, n], &entry.counts),
    ]
}

fn gguf(entries: &Entries) -> Gguf {
    let keys = [
        ("general.type", Value::str("imatrix")),
        ("imatrix.datasets", Value::Array(8, vec![Value::str("text.txt")])),
        ("imatrix.chunk_count", Value::U32(4)),
        ("imatrix.chunk_size", Value::U32(512)),
    ];
    Gguf {
        version: 3,
        keys: keys.map(|(key, value)| (key.to_owned(), value)).into(),
        tensors: entries.iter().flat_map(|(name, entry)| pair(name, entry)).collect(),
    }
}

/// The legacy format: name, calls, and means times calls.
fn legacy<'a>(entries: impl IntoIterator<Item = (&'a str, i32, Vec<f32>)>, rest: &[u8]) -> Vec<u8> {
    let (mut n, mut out) = (0i32, Vec::new());
    for (name, calls, values) in entries {
        n += 1;
        out.extend((name.len() as i32).to_le_bytes());
        out.extend(name.as_bytes());
        out.extend(calls.to_le_bytes());
        out.extend((values.len() as i32).to_le_bytes());
        values.iter().for_each(|x| out.extend(x.to_le_bytes()));
    }
    [&n.to_le_bytes()[..], &out, rest].concat()
}

fn types(file: &Gguf, part: &str) -> Vec<(String, u32)> {
    let tensors = file.tensors.iter().filter(|t| t.name.contains(part));
    tensors.map(|t| (t.name.clone(), t.ty)).collect()
}

/// Converts tiny-r1, and gives what was said and written.
fn convert(bench: &Bench, more: &[&str]) -> (Said, Gguf) {
    let args = ["convert", &fixture(TINY_R1), "out.gguf", "--force"];
    let said = bench.run(&[&args[..], more].concat()).ok();
    (said, Gguf::read(&bench.path("out.gguf")))
}

#[test]
fn a_prediction_layer_gets_a_type_that_needs_no_importances() {
    let bench = Bench::new();
    let imatrix = fixture(GGUF);
    // Types that need importances, and what takes their place: Q2_K, or Q3_K.
    for (mix, wanted, instead) in [
        ("IQ1_S", 19, 10),
        ("IQ1_M", 29, 10),
        ("IQ2_XXS", 16, 10),
        ("IQ2_M", 22, 10),
        ("IQ3_XXS", 18, 11),
        ("Q2_K_S", 10, 11),
    ] {
        let options = ["--type", mix, "--mtp", "keep", "--imatrix", &imatrix, "--strict"];
        let (said, file) = convert(&bench, &options);
        said.says(&["unmeasured", "blk.3.nextn.eh_proj.weight"]);
        let ty = |name: &str| file.tensor(name).unwrap().ty;
        assert_eq!(ty("blk.2.ffn_up_exps.weight"), wanted, "{mix}");
        for name in ["nextn.eh_proj", "attn_q_a", "ffn_up_exps", "ffn_gate_shexp"] {
            assert_eq!(ty(&format!("blk.3.{name}.weight")), instead, "{mix} {name}");
        }
        if !["IQ1_S", "Q2_K_S"].contains(&mix) {
            continue;
        }
        // The same from a file with the layer, and the mix is recognized.
        let args = ["convert", &fixture(TINY_R1), "bf16.gguf", "--outtype", "bf16", "--force"];
        bench.run(&[&args[..], &["--mtp", "keep"]].concat()).ok();
        let args = ["quantize", "bf16.gguf", "q.gguf", mix, "--imatrix", &imatrix, "--force"];
        bench.run(&[&args[..], &["--strict"]].concat()).ok();
        assert!(Gguf::read(&bench.path("q.gguf")).tensors == file.tensors, "{mix}");
        let recipe = bench.run(&["recipe", "from", "q.gguf"]).ok().stdout;
        assert!(recipe.contains(&format!("name = \"{mix}\"")), "{recipe}");
    }
    let args = ["plan", &fixture(TINY_R1), "-t", "IQ2_XXS", "--mtp", "keep", "--imatrix", &imatrix];
    let plan = bench.run(&[&args[..], &["--json"]].concat()).ok().json();
    let tensors = plan["tensors"].as_array().unwrap();
    let of = |name: &str| tensors.iter().find(|t| t["name"] == name).unwrap();
    let eh_proj = of("blk.3.nextn.eh_proj.weight");
    assert_eq!(eh_proj["type"], "Q2_K");
    let why = eh_proj["why"].as_str().unwrap();
    assert!(why.contains("IQ2_XXS needs importances"), "{why}");
    assert_eq!(plan["warnings"], serde_json::json!([]));
    assert_eq!(of("blk.1.ffn_up_exps.weight")["weighed"], true);
}

#[test]
fn a_prediction_layer_is_collected_for_unless_it_is_not_wanted() {
    let bench = Bench::new();
    let (r1, text) = (fixture(TINY_R1), fixture("tests/fixtures/text/calibration.txt"));
    let collect = |model: &str, out: &str, more: &[&str]| {
        let args = ["imatrix", model, "--text", &text, "--chunks", "2", "--ctx", "128", "-o", out];
        bench.run(&[&args[..], more].concat())
    };
    collect(&r1, "with.gguf", &[]).ok();
    collect(&r1, "without.gguf", &["--mtp", "drop"]).ok();
    let [(_, mut with), (_, without)] = ["with.gguf", "without.gguf"].map(|f| read(&bench.path(f)));
    let all = with.clone();
    with.retain(|name, _| !name.starts_with("blk.3."));
    assert!(with == without && !with.is_empty());
    assert_eq!(all["blk.3.nextn.eh_proj.weight"].counts, [2.0 * 127.0]);
    // The same of a file that has the layer, and of shares.
    let args = ["convert", &r1, "bf16.gguf", "--outtype", "f32", "--mtp", "keep"];
    bench.run(&args).ok();
    collect("bf16.gguf", "of-file.gguf", &["--mtp", "keep"]).ok();
    assert!(read(&bench.path("of-file.gguf")).1 == all);
    // Where there is none, only who asks for it is told.
    collect(&fixture(BF16), "none.gguf", &["--mtp", "keep"]).fails(&["no layer for multi-token"]);
    assert!(!collect(&fixture(BF16), "none.gguf", &[]).ok().stderr.contains("multi-token"));
    // There is something for each of its matrices, but the embedding is none.
    let options = ["--type", "IQ2_XXS", "--mtp", "keep", "--imatrix", "with.gguf", "--strict"];
    let (said, file) = convert(&bench, &[&options[..], &["--unrouted", "shared"]].concat());
    let said = said.unfolded();
    let unmeasured = said.lines().find(|line| line.starts_with("unmeasured")).unwrap();
    assert!(
        unmeasured.ends_with("IQ2_XXS, which needs importances: blk.3.nextn.embed_tokens.weight")
    );
    assert_eq!(file.tensor("blk.3.nextn.eh_proj.weight").unwrap().ty, 16);
    assert_eq!(file.tensor("blk.3.nextn.shared_head_head.weight").unwrap().ty, 16);
}

#[test]
fn what_is_asked_for_a_prediction_layer_is_given_as_far_as_it_can_be() {
    let bench = Bench::new();
    let imatrix = fixture(GGUF);
    let keep = ["--type", "Q4_K_M", "--mtp", "keep", "--strict", "--imatrix"];
    let asked = ["--tensor-type", "exps=iq2_xs", "--tensor-type", "nextn=q6_k"];
    let (_, file) = convert(&bench, &[&keep[..], &[&imatrix], &asked].concat());
    let ty = |name: &str| file.tensor(name).unwrap().ty;
    assert_eq!(ty("blk.2.ffn_up_exps.weight"), 17);
    assert_eq!(ty("blk.3.ffn_up_exps.weight"), 10);
    assert_eq!(ty("blk.3.nextn.eh_proj.weight"), 14);
    // Where there are importances, they are used.
    let mut entries = reference();
    let of_layer_2 = entries.iter().filter(|(name, _)| name.starts_with("blk.2."));
    let of_layer_3 = of_layer_2.map(|(name, e)| (name.replace("blk.2.", "blk.3."), e.clone()));
    let of_layer_3: Entries = of_layer_3.collect();
    entries.extend(of_layer_3);
    let eh_proj = Entry::one(vec![2.0; 512], 1.0);
    entries.insert("blk.3.nextn.eh_proj.weight".to_owned(), eh_proj);
    gguf(&entries).write(&bench.path("mtp.gguf"));
    let low = ["--type", "IQ2_XXS", "--strict", "--imatrix", "mtp.gguf", "--mtp"];
    let (said, file) = convert(&bench, &[&low[..], &["keep"]].concat());
    let said = said.unfolded();
    let unmeasured = said.lines().find(|line| line.starts_with("unmeasured")).unwrap();
    assert!(
        unmeasured
            .ends_with("blk.3.nextn.embed_tokens.weight, blk.3.nextn.shared_head_head.weight")
    );
    assert_eq!(file.tensor("blk.3.nextn.eh_proj.weight").unwrap().ty, 16);
    assert_eq!(file.tensor("blk.3.ffn_up_exps.weight").unwrap().ty, 16);
    // Nor are they of another model where the layer is left out.
    convert(&bench, &[&low[..], &["drop"]].concat());
}

#[test]
fn a_tensor_of_an_ordinary_layer_without_importances_is_named() {
    let bench = Bench::new();
    let mut entries = reference();
    entries.remove("blk.1.ffn_down_exps.weight");
    gguf(&entries).write(&bench.path("im.gguf"));
    let r1 = fixture(TINY_R1);
    for (mix, ty) in [("IQ2_XXS", "IQ2_XXS"), ("Q2_K_S", "Q2_K"), ("IQ3_XXS", "IQ3_XXS")] {
        let args = ["convert", &r1, "o.gguf", "-t", mix, "--mtp", "keep", "--imatrix", "im.gguf"];
        bench.run(&args).fails(&["`blk.1.ffn_down_exps.weight`", ty, "--tensor-type"]);
    }
    // Other mixes do without, and say so.
    let args = ["convert", &r1, "o.gguf", "-t", "Q4_K_M", "--imatrix", "im.gguf"];
    let said = bench.run(&args).ok();
    let warned = "warning: imatrix: no entry, quantized without: blk.1.ffn_down_exps.weight";
    assert_eq!(said.warnings(), [warned]);
    bench.run(&[&args[..], &["--force", "--strict"]].concat()).fails(&["--strict"]);
}

#[test]
fn nothing_is_said_of_well_formed_pairs() {
    let bench = Bench::new();
    let r1 = fixture(TINY_R1);
    for imatrix in [fixture(GGUF), fixture(DAT)] {
        for more in [
            &["--mtp", "keep"][..],
            &["--mtp", "drop"],
            &["--prune-layers", "1"],
            &["--mtp", "keep", "--prune-layers", "0,3"],
            &["--mla", "legacy"],
            &["--exclude-weights", "ffn_down"],
            &["--include-weights", "attn"],
        ] {
            let plan = ["plan", &r1, "--type", "Q4_K_M", "--imatrix", &imatrix, "--strict"];
            bench.run(&[&plan[..], more].concat()).ok();
        }
    }
    let args = ["quantize", &fixture(BF16), "o.gguf", "COPY", "--strict", "--imatrix"];
    bench.run(&[&args[..], &[&fixture(GGUF)]].concat()).ok();
    // Of another model, everything is to be said.
    let mut entries = reference();
    entries.insert("blk.7.attn_q.weight".to_owned(), Entry::one(vec![1.0; 256], 1.0));
    gguf(&entries).write(&bench.path("im.gguf"));
    let (said, _) = convert(&bench, &["--type", "Q4_K_M", "--imatrix", "im.gguf"]);
    let warned = "warning: imatrix: entries without a tensor: blk.7.attn_q.weight";
    assert_eq!(said.warnings(), [warned]);
}

#[test]
fn importances_from_before_keys_and_values_were_split_serve_the_values() {
    let bench = Bench::new();
    let (mut old, mut repeated) = (reference(), reference());
    for layer in 0..3 {
        let name = |kind: &str| format!("blk.{layer}.{kind}.weight");
        old.remove(&name("attn_k_b"));
        repeated.remove(&name("attn_k_b"));
        let values = old.remove(&name("attn_v_b")).unwrap();
        let joint = values.sums[..256].to_vec();
        repeated.insert(name("attn_v_b"), Entry::one(joint.repeat(4), values.counts[0]));
        old.insert(name("attn_kv_b"), Entry::one(joint, values.counts[0]));
    }
    gguf(&old).write(&bench.path("old.gguf"));
    gguf(&repeated).write(&bench.path("repeated.gguf"));
    let means = old.iter().map(|(name, entry)| (name.as_str(), 1, entry.means()));
    std::fs::write(bench.path("old.dat"), legacy(means, &[])).unwrap();
    for mix in ["IQ3_XXS", "Q4_K_M", "IQ2_XXS"] {
        let (_, expected) = convert(&bench, &["--type", mix, "--imatrix", "repeated.gguf"]);
        for imatrix in ["old.gguf", "old.dat"] {
            let options = ["--type", mix, "--imatrix", imatrix, "--strict"];
            let (said, file) = convert(&bench, &options);
            said.says(&["weighed    by entries of attn_kv_b.weight", "blk.0-2.attn_v_b.weight"]);
            assert!(file.tensors == expected.tensors, "{mix} {imatrix}");
        }
    }
    // A file with the joint matrix, and importances from after the split: those of all heads.
    let mut joint = reference();
    for layer in 0..3 {
        let name = |kind: &str| format!("blk.{layer}.{kind}.weight");
        joint.remove(&name("attn_k_b"));
        let values = joint.remove(&name("attn_v_b")).unwrap().means();
        let mean = |i: usize| (0..4).map(|h| f64::from(values[h * 256 + i])).sum::<f64>() / 4.0;
        let mean = (0..256).map(|i| mean(i) as f32).collect();
        joint.insert(name("attn_kv_b"), Entry::one(mean, 1.0));
    }
    gguf(&joint).write(&bench.path("joint.gguf"));
    let legacy = ["--mla", "legacy", "--type", "IQ3_S", "--strict", "--imatrix"];
    let (_, expected) = convert(&bench, &[&legacy[..], &["joint.gguf"]].concat());
    let (said, file) = convert(&bench, &[&legacy[..], &[&fixture(GGUF)]].concat());
    said.says(&["weighed    by entries of attn_v_b.weight", "blk.0-2.attn_kv_b.weight"]);
    assert!(file.tensors == expected.tensors);
}

/// A model of two layers with one tensor of each of some kinds, and what their importances are.
fn synthetic(kinds: &[(&str, &[u64])]) -> Gguf {
    let mut file = Gguf { version: 3, keys: Vec::new(), tensors: Vec::new() };
    file.set("general.architecture", Value::str("deepseek2"));
    file.set("deepseek2.block_count", Value::U32(2));
    let rng = &mut Rng(7);
    for layer in 0..2 {
        for (kind, dims) in kinds {
            let n = dims.iter().product::<u64>();
            let values: Vec<f32> = (0..n).map(|_| rng.below(2000) as f32 / 1000.0 - 1.0).collect();
            file.tensors.push(f32s(format!("blk.{layer}.{kind}.weight"), dims.to_vec(), &values));
        }
    }
    file
}

fn random(n: usize, seed: u64) -> Vec<f32> {
    let rng = &mut Rng(seed);
    (0..n).map(|_| 1.0 + rng.below(4000) as f32).collect()
}

/// Both entries for each layer, by their kind.
fn in_layers(kinds: &[(&str, Entry)]) -> Entries {
    let names = (0..2).flat_map(|layer| {
        kinds.iter().map(move |(kind, e)| (format!("blk.{layer}.{kind}"), e.clone()))
    });
    names.collect()
}

#[test]
fn entries_under_other_names_serve_tensors_with_the_same_inputs() {
    let bench = Bench::new();
    let quantize = |model: &Gguf, mix: &str, entries: &Entries| {
        model.write(&bench.path("model.gguf"));
        gguf(entries).write(&bench.path("im.gguf"));
        let args = ["quantize", "model.gguf", "o.gguf", mix, "--imatrix", "im.gguf", "--force"];
        let said = bench.run(&[&args[..], &["--strict"]].concat()).ok();
        (said, Gguf::read(&bench.path("o.gguf")))
    };
    let same = |model: &Gguf, mix: &str, ours: &Entries, today: &Entries| {
        let (said, file) = quantize(model, mix, ours);
        assert!(file.tensors == quantize(model, mix, today).1.tensors, "{:?}", ours.keys());
        said
    };
    // Experts whose gates and ups are one tensor, in the model or where importances are from.
    let experts = Entry { sums: random(3 * 256, 1), counts: vec![4.0, 8.0, 1.0] };
    let apart = [("ffn_gate_exps", &[256, 8, 3][..]), ("ffn_up_exps", &[256, 8, 3])];
    let both = ["ffn_gate_exps.weight", "ffn_up_exps.weight"].map(|kind| (kind, experts.clone()));
    let fused = [("ffn_gate_up_exps.weight", experts.clone())];
    same(&synthetic(&apart), "IQ2_XXS", &in_layers(&fused), &in_layers(&both));
    let joint = synthetic(&[("ffn_gate_up_exps", &[256, 16, 3])]);
    same(&joint, "IQ2_XXS", &in_layers(&both), &in_layers(&fused));
    // Queries, keys and values.
    let qkv = Entry::one(random(256, 2), 16.0);
    let apart = ["attn_q", "attn_k", "attn_v"].map(|kind| (kind, &[256, 8][..]));
    let each = ["attn_q.weight", "attn_k.weight", "attn_v.weight"].map(|kind| (kind, qkv.clone()));
    let fused = [("attn_qkv.weight", qkv.clone())];
    same(&synthetic(&apart), "IQ2_S", &in_layers(&fused), &in_layers(&each));
    // Single experts, from before they were stacked; no token reached the second.
    let model = synthetic(&[("ffn_down_exps", &[256, 8, 3])]);
    let parts = experts.means();
    let single = |i: usize| Entry::one(parts[i * 256..][..256].to_vec(), 1.0);
    let singles = [("ffn_down.0.weight", single(0)), ("ffn_down.2.weight", single(2))];
    let mut stacked = experts.clone();
    stacked.counts[1] = 0.0;
    let stacked = [("ffn_down_exps.weight", stacked)];
    same(&model, "IQ1_M", &in_layers(&singles), &in_layers(&stacked));
    // Heads that were added up, and a name that ik_llama.cpp gave them.
    let model = synthetic(&[("attn_k_b", &[256, 8, 4]), ("attn_v_b", &[512, 8, 4])]);
    let [keys, values] = [(256, 3), (512, 4)].map(|(n, seed)| Entry::one(random(n, seed), 32.0));
    let repeat = |e: &Entry| Entry::one(e.sums.repeat(4), e.counts[0]);
    let today = [("attn_k_b.weight", repeat(&keys)), ("attn_v_b.weight", repeat(&values))];
    let added = [("attn_k_b.weight (reshaped)", keys), ("attn_v_b.weight", values.clone())];
    same(&model, "IQ2_XS", &in_layers(&added), &in_layers(&today));
    // Keys that were measured as part of another product: a type that needs nothing.
    let old = in_layers(&[("attn_kv_b.weight", values)]);
    let (said, file) = quantize(&model, "IQ2_XS", &old);
    said.says(&["Q2_K instead of IQ2_XS, which needs importances: blk.0-1.attn_k_b.weight"]);
    let expected = [("blk.0.attn_k_b.weight", 10), ("blk.1.attn_k_b.weight", 10)];
    assert_eq!(types(&file, "attn_k_b"), expected.map(|(name, ty)| (name.to_owned(), ty)));
    assert_eq!(types(&file, "attn_v_b")[0].1, 17);
}

#[test]
fn other_lengths_are_another_models() {
    let bench = Bench::new();
    let args = ["quantize", "model.gguf", "o.gguf", "Q4_K_M", "--imatrix", "im.gguf"];
    for (kind, dims, entry, n) in [
        ("attn_q", &[256, 8][..], "attn_q", 512),
        ("attn_q", &[256, 8], "attn_q", 100),
        ("ffn_up_exps", &[256, 8, 4], "ffn_up_exps", 256),
        ("ffn_up_exps", &[256, 8, 4], "ffn_gate_up_exps", 512),
        ("attn_v_b", &[256, 8, 4], "attn_kv_b", 300),
        ("attn_v_b", &[256, 8, 4], "attn_v_b", 512),
        ("attn_kv_b", &[256, 8], "attn_v_b", 300),
        ("ffn_up_exps", &[256, 8, 2], "ffn_up.0", 200),
    ] {
        synthetic(&[(kind, dims)]).write(&bench.path("model.gguf"));
        let entry = (&*format!("{entry}.weight"), Entry::one(vec![1.0; n], 1.0));
        gguf(&in_layers(&[entry])).write(&bench.path("im.gguf"));
        bench.run(&args).fails(&[&format!("`blk.0.{kind}.weight`"), "is it this model's?"]);
        assert!(!bench.path("o.gguf").exists());
    }
}

#[test]
fn matrices_of_both_formats_are_merged_as_llama_imatrix_does() {
    let bench = Bench::new();
    let (a, b) = (fixture(GGUF), fixture(DAT));
    let merge = |files: &[&str], more: &[&str]| {
        let files = files.iter().flat_map(|file| ["--merge", file]);
        let args: Vec<&str> =
            ["imatrix", "-o", "m.gguf", "--force"].into_iter().chain(files).collect();
        bench.run(&[&args[..], more].concat()).ok();
        bench.path("m.gguf")
    };
    // The legacy format knows calls of 512 tokens, and of experts' tokens nothing.
    let (file, entries) = read(&merge(&[&b], &[]));
    assert_eq!(file.get("imatrix.chunk_count"), Some(&Value::U32(63)));
    assert_eq!(file.get("imatrix.chunk_size"), Some(&Value::U32(512)));
    for (name, entry) in reference() {
        let merged = &entries[&name];
        let most = entry.counts.iter().copied().fold(0.0, f32::max);
        assert_eq!(merged.counts, [(most / 512.0).ceil() * 512.0], "{name}");
        for (a, b) in merged.means().iter().zip(entry.means()) {
            assert!((a - b).abs() <= 1e-5 * b.abs(), "{name}: {a} and {b}");
        }
    }
    // Together, in either order: sums and counts are added, the one count to each expert's.
    let [first, second] = [[&*a, &*b], [&*b, &*a]].map(|files| read(&merge(&files, &[])).1);
    assert!(first == second);
    for (name, entry) in reference() {
        let calls = entries[&name].counts[0];
        let of_both: Vec<f32> = entry.counts.iter().map(|n| n + calls).collect();
        assert_eq!(first[&name].counts, of_both, "{name}");
        let sum = entry.sums[0] + entries[&name].sums[0];
        assert!((first[&name].sums[0] - sum).abs() <= 1e-6 * sum, "{name}");
    }
    // A legacy file has what it had after a round through GGUF, and other chunks if they are given.
    let dat = merge(&[&b], &["--output-format", "dat"]);
    let [old, new] = [std::fs::read(&b).unwrap(), std::fs::read(dat).unwrap()];
    // Behind the values stand the number of chunks, and the name of the text with its length.
    let values = old.len() - 4 - 4 - 51;
    assert!(old[..values] == new[..values]);
    let (file, entries) = read(&merge(&[&b], &["--ctx", "256"]));
    assert_eq!(file.get("imatrix.chunk_size"), Some(&Value::U32(256)));
    assert_eq!(entries["blk.0.attn_q_a.weight"].counts, [63.0 * 256.0]);
    // What does not go together is named.
    let mut other = reference();
    other.insert("blk.0.attn_q_a.weight".to_owned(), Entry::one(vec![1.0; 128], 1.0));
    gguf(&other).write(&bench.path("other.gguf"));
    let args = ["imatrix", "--merge", &a, "--merge", "other.gguf", "-o", "m.gguf", "--force"];
    bench.run(&args).fails(&["other.gguf", "`blk.0.attn_q_a.weight`"]);
    let three = Entry { sums: vec![1.0; 16 * 256], counts: vec![1.0; 8] };
    other = reference();
    other.insert("blk.1.ffn_up_exps.weight".to_owned(), three);
    gguf(&other).write(&bench.path("other.gguf"));
    bench.run(&args).fails(&["other.gguf", "`blk.1.ffn_up_exps.weight`"]);
}

#[test]
fn what_no_importance_matrix_holds_is_one_error_that_names_it() {
    let bench = Bench::new();
    let model = fixture(BF16);
    let refused = |file: &str, words: &[&str]| {
        let words = &[&[file], words].concat()[..];
        bench.run(&["quantize", &model, "o.gguf", "Q4_K_M", "--imatrix", file]).fails(words);
        bench.run(&["imatrix", "--merge", file, "-o", "m.gguf"]).fails(words);
        assert!(!bench.path("o.gguf").exists() && !bench.path("m.gguf").exists());
    };
    let name = "blk.1.ffn_up_exps.weight";
    let edited = |edit: &dyn Fn(&mut Entry)| {
        let mut entries = reference();
        edit(entries.get_mut(name).unwrap());
        gguf(&entries).write(&bench.path("im.gguf"));
        entries
    };
    for (value, said) in [(f32::NAN, "NaN"), (f32::INFINITY, "inf"), (-1.0, "-1")] {
        let entries = edited(&|entry| entry.sums[300] = value);
        refused("im.gguf", &[name, said, "column 300"]);
        let means = entries.iter().map(|(name, entry)| (name.as_str(), 2, entry.sums.clone()));
        std::fs::write(bench.path("im.dat"), legacy(means, &[])).unwrap();
        refused("im.dat", &[name, said, "column 300"]);
        edited(&|entry| entry.counts[3] = value);
        refused("im.gguf", &[name, said, "count"]);
    }
    // Files with other tensors than pairs of F32.
    let whole = gguf(&reference());
    let with = |edit: &dyn Fn(&mut Vec<Tensor>)| {
        let mut file = whole.clone();
        edit(&mut file.tensors);
        file.write(&bench.path("im.gguf"));
    };
    let half = format!("{name}.in_sum2");
    with(&|tensors| tensors.retain(|t| t.name != half));
    refused("im.gguf", &[&half]);
    let half = format!("{name}.counts");
    with(&|tensors| tensors.retain(|t| t.name != half));
    refused("im.gguf", &[&half]);
    with(&|tensors| {
        let counts = tensors.iter_mut().find(|t| t.name == half).unwrap();
        (counts.ty, counts.data) = (1, counts.data[..32].to_vec());
    });
    refused("im.gguf", &[&half, "F16"]);
    with(&|tensors| {
        let counts = tensors.iter_mut().find(|t| t.name == half).unwrap();
        (counts.dims, counts.data) = (vec![3], counts.data[..12].to_vec());
    });
    refused("im.gguf", &[name, "4096 sums and 3 counts"]);
    with(&|tensors| tensors.iter_mut().for_each(|t| t.name = t.name.replace(".in_sum2", ".x")));
    refused("im.gguf", &["in_sum2"]);
    with(&|tensors| tensors.clear());
    refused("im.gguf", &["not an importance matrix"]);
    refused(&model, &["not an importance matrix"]);
    // Legacy files without an end, or of nothing.
    let full = std::fs::read(DAT).unwrap();
    for bytes in [&full[..1000], &[], &[0; 400], &legacy([], &[]), &(-1i32).to_le_bytes()] {
        std::fs::write(bench.path("im.dat"), bytes).unwrap();
        refused("im.dat", &[]);
    }
    let empty = legacy([("blk.0.attn_q_a.weight", 1, Vec::new())], &[]);
    std::fs::write(bench.path("im.dat"), empty).unwrap();
    refused("im.dat", &[]);
    let pointer =
        format!("version https://git-lfs.github.com/spec/v1\noid sha256:{:064}\nsize 1\n", 0);
    std::fs::write(bench.path("im.dat"), pointer).unwrap();
    refused("im.dat", &["LFS"]);
}

/// The same importances as `entries` in another form that llama-imatrix, another version of it or
/// another tool may have written.
fn in_another_form(entries: &Entries, rng: &mut Rng, path: &Path) -> String {
    let mut order: Vec<&String> = entries.keys().collect();
    for i in (1..order.len()).rev() {
        order.swap(i, rng.below(i as u64 + 1) as usize);
    }
    if rng.chance(3) {
        let trailer =
            |n: i32| [&n.to_le_bytes()[..], &7i32.to_le_bytes(), b"text.md", b"more"].concat();
        let end = match rng.below(4) {
            0 => Vec::new(),
            1 => 3i32.to_le_bytes().to_vec(),
            2 => trailer(3)[..10].to_vec(),
            _ => trailer(3),
        };
        let mut all = Vec::new();
        for name in order {
            let calls = 1 << rng.below(6);
            let values = entries[name].means().iter().map(|x| x * calls as f32).collect();
            if rng.chance(8) {
                all.push((name.as_str(), 1, vec![3.0; entries[name].sums.len()]));
            }
            all.push((name, calls, values));
        }
        std::fs::write(path, legacy(all, &end)).unwrap();
        return format!("legacy, {} bytes behind the entries", end.len());
    }
    let mut file = gguf(&Entries::new());
    let flat = rng.chance(3);
    for name in order {
        let entry = &entries[name];
        let one = !entry.means().is_empty() && entry.counts.iter().all(|n| *n == entry.counts[0]);
        let counts = match one && rng.chance(2) {
            true => vec![entry.counts[0]],
            false => entry.counts.clone(),
        };
        let mut pair = pair(name, &Entry { counts, ..entry.clone() });
        for tensor in pair.iter_mut().filter(|_| flat) {
            tensor.dims = vec![tensor.dims.iter().product()];
        }
        let [sums, counts] = pair;
        if rng.chance(4) {
            file.tensors.extend([f32s(
                format!("{name}.in_sum"),
                sums.dims.clone(),
                &floats(&sums.data),
            )]);
        }
        file.tensors.extend(if rng.chance(2) { [sums, counts] } else { [counts, sums] });
    }
    for _ in 0..rng.below(3) {
        file.keys.remove(rng.below(file.keys.len() as u64) as usize);
    }
    if rng.chance(3) {
        file.set("imatrix.datasets", Value::Array(*rng.pick(&[8, 5]), Vec::new()));
    }
    if rng.chance(3) {
        file.set("general.alignment", Value::U32(*rng.pick(&[8, 16, 64, 1024])));
    }
    file.write(path);
    format!("GGUF, {:?}", file.keys.iter().map(|(key, _)| key).collect::<Vec<_>>())
}

#[test]
fn one_matrix_in_any_form_weighs_alike_and_what_it_lacks_is_not_weighed() {
    let bench = Bench::new();
    for (name, seed) in [("deepseek-v2", 1), ("qwen3", 2), ("llama-bias", 3)] {
        let rng = &mut Rng(seed);
        let checkpoint = bench.checkpoint(&format!("family/{name}"), name);
        let args = ["convert", checkpoint.name(), "model.gguf", "--outtype", "f32", "--force"];
        bench.run(&args).ok();
        let model = Gguf::read(&bench.path("model.gguf"));
        let quantize = |ty: &str, more: &[&str]| {
            // With --pure, types do not depend on whether there are importances.
            let args = ["quantize", "model.gguf", "q.gguf", ty, "--pure", "--force"];
            let said = bench.run(&[&args[..], more].concat()).ok();
            (said, Gguf::read(&bench.path("q.gguf")).tensors)
        };
        for round in 0..5 {
            let ty = *rng.pick(&["Q4_0", "Q5_1", "IQ4_NL", "Q4_1"]);
            let weights = model.tensors.iter().filter(|t| {
                t.name.starts_with("blk.") && t.dims.len() > 1 && !t.name.contains("ffn_gate_inp")
            });
            let partial = rng.chance(2);
            let mut entries = Entries::new();
            for t in weights.clone() {
                if partial && rng.chance(3) {
                    continue;
                }
                let matrices = t.dims.get(2).map_or(1, |&n| n as usize);
                let n = t.dims[0] as usize * matrices;
                let scale = 2f32.powi(rng.below(60) as i32 - 30);
                let sums = (0..n).map(|_| rng.below(4096) as f32 * scale).collect();
                let exps = t.name.contains("_exps");
                let counts =
                    (0..if exps { matrices } else { 1 }).map(|_| (1 << rng.below(8)) as f32);
                entries.insert(t.name.clone(), Entry { sums, counts: counts.collect() });
            }
            gguf(&entries).write(&bench.path("im.gguf"));
            let (said, expected) = quantize(ty, &["--imatrix", "im.gguf"]);
            let lacking: Vec<&str> = weights
                .map(|t| t.name.as_str())
                .filter(|name| !entries.contains_key(*name))
                .collect();
            assert_eq!(said.warnings().is_empty(), lacking.is_empty(), "{said:?}");
            for _ in 0..4 {
                let form = in_another_form(&entries, rng, &bench.path("other"));
                let (_, found) = quantize(ty, &["--imatrix", "other"]);
                assert!(found == expected, "{name} {round} {ty} {form}");
            }
            let merged = ["imatrix", "--merge", "im.gguf", "-o", "merged", "--force"];
            let format = if rng.chance(2) { "dat" } else { "gguf" };
            bench.run(&[&merged[..], &["--output-format", format]].concat()).ok();
            assert!(
                quantize(ty, &["--imatrix", "merged"]).1 == expected,
                "{name} {round} {format}"
            );
            let (_, without) = quantize(ty, &[]);
            for (weighed, plain) in expected.iter().zip(&without) {
                if !entries.contains_key(&weighed.name) {
                    assert!(weighed == plain, "{name} {round} {ty} {}", plain.name);
                }
            }
        }
    }
}

#[test]
fn a_matrix_in_several_files_is_one() {
    let bench = Bench::new();
    let (model, imatrix) = (fixture(BF16), fixture(GGUF));
    bench.run(&["split", &imatrix, "part", "--split-max-tensors", "20"]).ok();
    let quantize = |imatrix: &str| {
        let args = ["quantize", &model, "o.gguf", "IQ3_XXS", "--imatrix", imatrix, "--force"];
        bench.run(&[&args[..], &["--strict"]].concat()).ok();
        Gguf::read(&bench.path("o.gguf")).tensors
    };
    assert!(quantize(&imatrix) == quantize("part-00001-of-00004.gguf"));
    std::fs::remove_file(bench.path("part-00003-of-00004.gguf")).unwrap();
    let args = ["quantize", &model, "o.gguf", "Q4_0", "--force", "--imatrix"];
    bench
        .run(&[&args[..], &["part-00001-of-00004.gguf"]].concat())
        .fails(&["part-00003", "missing"]);
}
