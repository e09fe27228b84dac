//! Settings of config.json at other values than the models have that everybody tests with: each is
//! followed, known to make no difference, or refused by name.

use crate::raw::{Bench, Checkpoint, Gguf, HELDOUT, Rng, Value};
use requant::model::{CheckpointModel, Config, Hparams, Mtp};
use requant::source::Source;
use serde_json::{Map, Value as Json, json};
use std::path::Path;

const SETTINGS: &str = "tests/fixtures/settings";

/// A fixture of each class.
const CLASSES: [(&str, &str); 5] = [
    ("DeepseekV3ForCausalLM", "tiny-r1"),
    ("DeepseekV2ForCausalLM", "family/deepseek-v2"),
    ("Qwen2ForCausalLM", "family/qwen2"),
    ("Qwen3ForCausalLM", "family/qwen3-yarn"),
    ("LlamaForCausalLM", "family/llama3"),
];

fn fixture(name: &str) -> Json {
    serde_json::from_slice(&std::fs::read(Path::new(SETTINGS).join(name)).unwrap()).unwrap()
}

/// What a configuration says of each of its settings, in a folder of its own.
fn verdicts(bench: &Bench, config: &Json) -> Map<String, Json> {
    std::fs::write(bench.path("config.json"), config.to_string()).unwrap();
    let settings = Config::open(bench.dir()).unwrap().settings().unwrap();
    settings.into_iter().map(|(key, verdict)| (key, verdict.into())).collect()
}

fn words(json: &Json) -> impl Iterator<Item = &str> {
    json.as_array().unwrap().iter().map(|word| word.as_str().unwrap())
}

#[test]
fn every_setting_of_transformers_is_known() {
    let bench = Bench::new();
    let mut versions = 0;
    for (version, classes) in fixture("keys.json").as_object().unwrap() {
        for (class, _) in CLASSES {
            let mut config = json!({ "rope_scaling": {} });
            for key in words(&classes["rotary"]) {
                config["rope_scaling"][key] = 7.into();
            }
            for key in ["rope_type", "type"] {
                config["rope_scaling"][key] = "default".into();
            }
            for key in words(&classes[class])
                .filter(|key| !["rope_scaling", "rope_parameters"].contains(key))
            {
                config[key] = 7.into();
            }
            config["architectures"] = json!([class]);
            for (key, verdict) in verdicts(&bench, &config) {
                assert_ne!(verdict, "unknown", "{version}: {class}: {key}");
            }
        }
        versions += 1;
    }
    assert_eq!(versions, 2);
}

#[test]
fn published_configurations_are_understood_without_a_warning() {
    let bench = Bench::new();
    for (name, config) in fixture("published.json").as_object().unwrap() {
        for (key, verdict) in verdicts(&bench, config) {
            assert_ne!(verdict, "unknown", "{name}: {key}");
        }
        let config = Config::open(bench.dir()).unwrap();
        if let Err(error) = Hparams::from_config(&config) {
            panic!("{name}: {error}");
        }
    }
}

#[test]
fn checkpoints_as_published_convert_with_strict() {
    let bench = Bench::new();
    for (fixture, _) in ["tiny-r1", "family/deepseek-v2", "family/qwen2", "family/qwen2-tied"]
        .into_iter()
        .chain(["family/qwen3", "family/qwen3-yarn", "family/llama3", "family/llama-bias"])
        .zip(0..)
    {
        bench.checkpoint(fixture, "c");
        bench.run(&["convert", "c", "o.gguf", "--outtype", "bf16", "--strict", "--force"]).ok();
    }
}

/// A fixture whose configuration is edited, opened.
fn open(bench: &Bench, fixture: &str, edit: impl FnOnce(&mut Json)) -> Result<Opened, String> {
    let copy = bench.checkpoint(fixture, "c");
    copy.edit("config.json", edit);
    opened(&copy)
}

/// What a checkpoint is seen as.
#[derive(PartialEq)]
struct Opened {
    /// Keys and tensors as a file would have them.
    file: String,
    warnings: Vec<String>,
    settings: Vec<(String, &'static str)>,
}

fn opened(copy: &Checkpoint) -> Result<Opened, String> {
    let model = CheckpointModel::open(&copy.dir, Mtp::Drop).map_err(|error| error.to_string())?;
    let metadata = model.described().map_err(|error| error.to_string())?;
    let keys: Vec<_> = metadata.iter().map(|(key, value)| format!("{key}={value:?}")).collect();
    let tensors: Vec<_> =
        model.tensors().iter().map(|t| format!("{} {:?} {}", t.name, t.dims, t.dtype)).collect();
    let warnings = model.warnings().iter().map(|w| w.text.clone()).collect();
    let settings = model.config().settings().unwrap();
    // What follows from the configuration alone.
    let mut factors = vec![0.0; 4];
    if let Some(tensor) = model.find("rope_freqs.weight") {
        model.read_rows(tensor, 0, &mut factors).unwrap();
    }
    let file = format!("{}{factors:?}", [keys, tensors].concat().join("\n"));
    Ok(Opened { file, warnings, settings })
}

#[test]
fn what_would_be_another_model_is_refused_by_name() {
    let bench = Bench::new();
    let refused = |fixture: &str, key: &str, value: Json| {
        let error = open(&bench, fixture, |config| match key.split_once('.') {
            Some((nested, key)) => config[nested][key] = value.clone(),
            None => config[key] = value.clone(),
        });
        let Err(error) = error else { panic!("{fixture}: {key}: {value}") };
        assert!(error.contains("config.json: `") && error.contains(key), "{key}: {error}");
    };
    for (_, fixture) in CLASSES {
        for (key, value) in [
            ("hidden_act", json!("gelu")),
            ("hidden_act", json!(["silu", "gelu"])),
            ("hidden_act", json!(3)),
            ("mlp_bias", json!(true)),
            ("layer_types", json!(["full_attention", "sliding_attention"])),
            ("partial_rotary_factor", json!(0.5)),
            ("logit_scale", json!(0.0625)),
            ("residual_multiplier", json!(0.22)),
            ("attn_logit_softcapping", json!(50.0)),
            ("final_logit_softcapping", json!(30)),
            ("attn_output_gate", json!(true)),
            ("clip_qkv", json!(8.0)),
            ("is_causal", json!(false)),
            ("text_config", json!({ "hidden_size": 1 })),
            ("pruned_heads", json!({ "0": [1] })),
            ("per_layer_config", json!({ "0": { "intermediate_size": 1 } })),
            ("rope_parameters", json!({ "rope_type": "linear", "factor": 2.0 })),
            ("rope_theta", json!(0)),
            ("rms_norm_eps", json!(-1e-6)),
            ("max_position_embeddings", json!(0)),
            ("max_position_embeddings", json!(-1)),
            ("max_position_embeddings", json!(1e30)),
            ("max_position_embeddings", json!(null)),
            ("num_attention_heads", json!("4")),
            ("num_hidden_layers", json!(2.5)),
            ("intermediate_size", json!([96, 97])),
            ("num_hidden_layers", json!(true)),
            ("rms_norm_eps", json!("1e-6")),
            ("vocab_size", json!(null)),
        ] {
            refused(fixture, key, value);
        }
        for kind in ["linear", "dynamic", "longrope", "su", "mrope", "ntk", "proportional"] {
            let error = open(&bench, fixture, |config| {
                config["rope_scaling"] = json!({ "type": kind, "factor": 2.0 });
            });
            let error = error.err().unwrap();
            assert!(error.contains("`rope_scaling.type`") && error.contains(kind), "{error}");
        }
    }
    for (fixture, key, value) in [
        ("tiny-r1", "rope_interleave", json!(false)),
        ("tiny-r1", "moe_layer_freq", json!(2)),
        ("tiny-r1", "moe_layer_freq", json!([0, 1, 1])),
        ("tiny-r1", "scoring_func", json!("softmax")),
        ("tiny-r1", "topk_method", json!("greedy")),
        ("tiny-r1", "attention_bias", json!(true)),
        ("tiny-r1", "num_key_value_heads", json!(2)),
        ("tiny-r1", "qk_head_dim", json!(128)),
        ("tiny-r1", "num_local_experts", json!(8)),
        ("tiny-r1", "num_experts_per_tok", json!(17)),
        ("tiny-r1", "n_group", json!(3)),
        ("tiny-r1", "topk_group", json!(5)),
        ("tiny-r1", "index_topk", json!(2048)),
        ("tiny-r1", "rope_scaling.truncate", json!(false)),
        ("tiny-r1", "rope_scaling.factor", json!(0.5)),
        ("tiny-r1", "rope_scaling.factor", json!(null)),
        ("tiny-r1", "rope_scaling.extrapolation_factor", json!(0.5)),
        // GGUF has no place for these.
        ("tiny-r1", "rope_scaling.mscale", json!(0.5)),
        ("tiny-r1", "rope_scaling.attention_factor", json!(1.2)),
        ("family/deepseek-v2", "topk_method", json!("noaux_tc")),
        ("family/deepseek-v2", "scoring_func", json!("sigmoid")),
        ("family/deepseek-v2", "num_experts_per_tok", json!(null)),
        ("family/deepseek-v2", "norm_topk_prob", json!(true)),
        ("family/qwen2", "use_mrope", json!(true)),
        ("family/qwen2", "num_key_value_heads", json!([2, 4])),
        ("family/qwen3-yarn", "rope_scaling.mscale", json!(1.0)),
        ("family/qwen3-yarn", "rope_scaling.original_max_position_embeddings", json!(0)),
        ("family/llama3", "draft_vocab_size", json!(100)),
        ("family/llama3", "rope_interleaved", json!(true)),
        ("family/llama3", "use_sliding_window", json!(true)),
        ("family/llama3", "rope_scaling.high_freq_factor", json!(1.0)),
        ("family/llama3", "rope_scaling.factor", json!(0.5)),
    ] {
        refused(fixture, key, value);
    }
    // Windows that slide in some layer.
    let windows = |config: &mut Json, first: u32| {
        config.as_object_mut().unwrap().remove("layer_types");
        config["use_sliding_window"] = true.into();
        config["sliding_window"] = 64.into();
        config["max_window_layers"] = first.into();
    };
    let error = open(&bench, "family/qwen2", |config| windows(config, 1)).err().unwrap();
    assert!(error.contains("`use_sliding_window`"), "{error}");
    assert!(open(&bench, "family/qwen2", |config| windows(config, 2)).is_ok());
    // Llama 3's factors in a class that llama.cpp does not have them for.
    let error = open(&bench, "family/qwen2", |config| {
        config["rope_scaling"] = json!({ "rope_type": "llama3", "factor": 8.0 });
    });
    assert!(error.err().unwrap().contains("llama3"));

    let error = open(&bench, "tiny-r1", |config| {
        config["rope_parameters"] = json!({ "rope_type": "default" });
    });
    assert!(error.err().unwrap().contains("`rope_scaling` is {"));
    let error = open(&bench, "tiny-r1", |c| c["original_max_position_embeddings"] = 8192.into());
    assert!(error.err().unwrap().contains("original_max_position_embeddings"));
}

/// Every way of saying the same gives the same file.
#[test]
fn other_spellings_are_the_same_model() {
    let bench = Bench::new();
    let same = |fixture: &str, edit: &dyn Fn(&mut Json)| {
        let plain = open(&bench, fixture, |_| {}).unwrap();
        let found = open(&bench, fixture, edit).unwrap_or_else(|error| panic!("{error}"));
        assert_eq!(found.file, plain.file);
        assert_eq!(found.warnings, [""; 0]);
    };
    for (class, fixture) in CLASSES {
        same(fixture, &|config| config["architectures"] = class.into());
        same(fixture, &|config| config["architectures"] = json!([class, "Other"]));
        same(fixture, &|config| config["hidden_act"] = json!(["swish"]));
        same(fixture, &|config| config["eos_token_id"] = json!([1, 2]));
        same(fixture, &|config| config["torch_dtype"] = "float64".into());
        same(fixture, &|config| config["tie_word_embeddings"] = json!(null));
        same(fixture, &|config| {
            // Lists for layers, and counts as tools that know no integers write them.
            for key in ["intermediate_size", "num_attention_heads", "rms_norm_eps"] {
                config[key] = json!([config[key], config[key], config[key]]);
            }
            for key in ["hidden_size", "num_hidden_layers", "vocab_size"] {
                config[key] = config[key].as_f64().unwrap().into();
            }
        });
        // As transformers 5 writes it.
        same(fixture, &|config| {
            let map = config.as_object_mut().unwrap();
            let theta = map.remove("rope_theta").unwrap();
            let mut rope = match map.remove("rope_scaling") {
                Some(Json::Object(rope)) => rope,
                _ => Map::new(),
            };
            let kind = rope.remove("type").or(rope.remove("rope_type"));
            rope.insert("rope_type".to_owned(), kind.unwrap_or_else(|| "default".into()));
            rope.insert("rope_theta".to_owned(), theta);
            map.insert("rope_parameters".to_owned(), Json::Object(rope));
        });
        same(fixture, &|config| {
            // Both spellings, and one for each kind of layer.
            let mut rope = config["rope_scaling"].as_object().cloned().unwrap_or_default();
            rope.insert("rope_theta".to_owned(), config["rope_theta"].clone());
            config["rope_parameters"] =
                json!({ "full_attention": rope, "sliding_attention": null });
        });
    }
    same("tiny-r1", &|config| {
        let map = config.as_object_mut().unwrap();
        let n = map.remove("n_routed_experts").unwrap();
        map.insert("num_local_experts".to_owned(), n);
    });
    // Explicitly nothing is not the class's default.
    let none = open(&bench, "tiny-r1", |config| config["norm_topk_prob"] = json!(null)).unwrap();
    assert!(!none.file.contains("expert_weights_norm"));
    let gone = open(&bench, "tiny-r1", |config| {
        config.as_object_mut().unwrap().remove("norm_topk_prob");
    });
    assert!(gone.unwrap().file.contains("expert_weights_norm=Bool"));
}

#[test]
fn settings_of_no_effect_leave_the_bytes_alone() {
    let bench = Bench::new();
    let convert = |edit: &dyn Fn(&mut Json)| {
        bench.checkpoint("family/qwen2", "c").edit("config.json", edit);
        bench.run(&["convert", "c", "o.gguf", "--type", "Q8_0", "--force", "--strict"]).ok();
        std::fs::read(bench.path("o.gguf")).unwrap()
    };
    let plain = convert(&|_| {});
    let other = convert(&|config| {
        for (key, value) in [
            ("pretraining_tp", json!(4)),
            ("ep_size", json!(8)),
            ("attention_dropout", json!(0.1)),
            ("use_cache", json!(false)),
            ("auto_map", json!({ "AutoModel": "x.Y" })),
            ("aux_loss_alpha", json!(1.0)),
            ("initializer_range", json!(9)),
            ("attn_implementation", json!("flash_attention_2")),
            ("_attn_implementation", json!("eager")),
            ("unsloth_version", json!("2025.1")),
            ("image_token_id", json!(7)),
            ("sliding_window", json!(7)),
            ("max_window_layers", json!(0)),
            ("attention_bias", json!(false)),
            ("id2label", json!({ "0": "x" })),
            ("temperature", json!(0.1)),
            ("something_new", json!(null)),
        ] {
            config[key] = value;
        }
    });
    assert!(plain == other);
}

#[test]
fn settings_that_are_not_known_are_listed_once_by_every_command() {
    let bench = Bench::new();
    let copy = bench.checkpoint("tiny-r1", "c");
    copy.edit("config.json", |config| {
        config["use_hyper_connections"] = true.into();
        config["memory_slots"] = 16.into();
        config["rope_scaling"]["warp"] = "x".into();
    });
    let text = std::fs::canonicalize(HELDOUT).unwrap();
    let text = text.to_str().unwrap();
    let imatrix = ["imatrix", "c", "--text", text, "-c", "16", "--chunks", "1", "-o", "i.gguf"];
    let commands: [&[&str]; 6] = [
        &["convert", "c", "o.gguf", "--type", "Q8_0", "--force"],
        &["plan", "c", "--type", "Q8_0"],
        &["inspect", "c"],
        &["perplexity", "c", "--text", text, "-c", "16", "--chunks", "1"],
        &["compare", "c", "c", "--text", text, "-c", "16", "--chunks", "1"],
        &imatrix,
    ];
    for command in commands {
        let said = bench.run(command).ok();
        let mut warnings = said.warnings();
        warnings.retain(|warning| warning.starts_with("warning: config"));
        assert_eq!(warnings.len(), 1, "{said:#?}");
        for word in
            ["c/config.json", "`use_hyper_connections`", "`memory_slots`", "rope_scaling.warp"]
        {
            assert!(warnings[0].contains(word), "{warnings:?}");
        }
        assert_eq!(bench.run(&[command, &["--strict"]].concat()).code, Some(1), "{command:?}");
    }
    let said = bench.run(&["inspect", "c", "--json"]).ok().json();
    assert_eq!(said["settings"]["memory_slots"], "unknown");
    assert_eq!(said["settings"]["hidden_act"], "checked");
    assert_eq!(said["settings"]["rope_scaling.factor"], "used");
    assert_eq!(said["metadata"]["deepseek2.block_count"], 3);
    assert_eq!(said["warnings"].as_array().unwrap().len(), 1);
}

#[test]
fn what_is_said_twice_or_not_at_all_costs_a_warning() {
    let bench = Bench::new();
    let found = open(&bench, "family/qwen3-yarn", |config| {
        config["rope_scaling"]["rope_theta"] = 5000.0.into();
    });
    let found = found.unwrap();
    assert!(found.file.contains("rope.freq_base=F32(5000.0)"));
    assert!(found.warnings.len() == 1 && found.warnings[0].contains("`rope_scaling.rope_theta`"));
    let found = open(&bench, "family/qwen3-yarn", |config| {
        let rope = config["rope_scaling"].as_object_mut().unwrap();
        rope.remove("original_max_position_embeddings");
    });
    let found = found.unwrap();
    assert!(found.file.contains("original_context_length=U32(4096)"));
    assert!(found.warnings[0].contains("original_max_position_embeddings"));
}

/// Values that any tool may write for a setting.
fn candidates(now: Option<&Json>) -> Vec<Json> {
    let mut values = vec![
        json!(null),
        json!(true),
        json!(false),
        json!(0),
        json!(1),
        json!(2),
        json!(3),
        json!(-1),
        json!(0.5),
        json!(7),
        json!(64),
        json!(1e6),
        json!("x"),
        json!(""),
        json!("1"),
        json!([]),
        json!([1]),
        json!([1, 2]),
        json!({}),
        json!({ "a": 1 }),
        json!(1e300),
    ];
    if let Some(now) = now {
        values.extend([json!([now, now]), json!([now, 1.25]), json!(now.to_string())]);
        if let Some(x) = now.as_f64() {
            values.extend([json!(x), json!(2.0 * x), json!(x + 1.0), json!(x - 1.0)]);
        }
    }
    values
}

/// Settings that are read with tokens and weights.
const ELSEWHERE: [&str; 8] = [
    // In wider heads.
    "rope_scaling.low_freq_factor",
    "num_nextn_predict_layers",
    "architectures",
    "bos_token_id",
    "eos_token_id",
    "pad_token_id",
    "name_or_path",
    "quantization_config",
];

/// Any value of any setting: the file follows it, or it is refused by name, or it is known to make no
/// difference and the file is as it was.
#[test]
fn no_value_of_any_setting_is_passed_over() {
    let (bench, mut rng) = (Bench::new(), Rng(19));
    let known = fixture("keys.json");
    let (mut counts, mut passed_over) = ([0; 4], Vec::new());
    for (class, fixture) in CLASSES {
        let copy = bench.checkpoint(fixture, "c");
        let plain = opened(&copy).unwrap();
        let config = copy.json("config.json");
        let mut keys: Vec<String> = known
            .as_object()
            .unwrap()
            .values()
            .flat_map(|version| {
                let rotary = words(&version["rotary"]).map(|key| format!("rope_scaling.{key}"));
                words(&version[class]).map(str::to_owned).chain(rotary)
            })
            .chain(config.as_object().unwrap().keys().cloned())
            .collect();
        keys.sort();
        keys.dedup();
        for key in keys {
            let mut path: Vec<&str> = key.split('.').collect();
            if path.len() == 2 && config["rope_scaling"].is_null() {
                path.remove(0);
            }
            let now = path.iter().try_fold(&config, |json, key| json.get(key));
            let mut values = candidates(now);
            for _ in 0..4 {
                let value = values.swap_remove(rng.below(values.len() as u64) as usize);
                let mut edited = config.clone();
                *path.iter().fold(&mut edited, |json, key| &mut json[*key]) = value.clone();
                copy.write_json("config.json", &edited);
                let about = format!("{class}: {key}: {value}");
                let model = match opened(&copy) {
                    Ok(model) => model,
                    Err(error) => {
                        let name = path[path.len() - 1];
                        let named = error.contains(&format!("{name}`"));
                        let elsewhere = ELSEWHERE.iter().find(|e| **e == key);
                        if !named
                            && elsewhere.is_none_or(|e| !error.contains(e.trim_end_matches('s')))
                        {
                            passed_over.push(format!("{about}: {error}"));
                        }
                        counts[0] += 1;
                        continue;
                    }
                };
                let name = path.join(".");
                let verdict = model.settings.iter().find(|(key, _)| *key == name).map(|(_, v)| *v);
                let first = value.as_array().map_or(Some(&value), |list| list.first());
                // What is within goes before what is beside.
                let now = match now {
                    None if key == "rope_scaling.rope_theta" => config.get("rope_theta"),
                    now => now,
                };
                let same = now.is_some_and(|now| {
                    first.is_some_and(|first| first == now || first.as_f64() == now.as_f64())
                });
                let (kind, right) = match verdict.unwrap_or("absent") {
                    verdict if model.file != plain.file => {
                        (1, ["used", "absent"].contains(&verdict))
                    }
                    "harmless" | "checked" => (2, true),
                    "unknown" | "idle" => (3, model.warnings.iter().any(|w| w.contains(path[0]))),
                    _ => (3, same || value.is_null() || ELSEWHERE.contains(&&*key)),
                };
                counts[kind] += 1;
                if !right && model.warnings.is_empty() {
                    passed_over.push(format!("{about}: {verdict:?}, and of no effect"));
                }
            }
        }
    }
    assert!(passed_over.is_empty(), "{}", passed_over.join("\n"));
    assert!(counts.iter().all(|&n| n > 20), "{counts:?}");
}

/// Keys of GGUF files: a scalar for each layer, and what llama.cpp would compute otherwise.
#[test]
fn keys_that_would_be_another_model_are_refused_by_name() {
    let bench = Bench::new();
    let text = std::fs::canonicalize(HELDOUT).unwrap();
    let with = |file: &Gguf, keys: &[(&str, Value)]| {
        let mut file = file.clone();
        for (key, value) in keys {
            file.set(key, value.clone());
        }
        file.write(&bench.path("a.gguf"));
        let text = text.to_str().unwrap();
        bench.run(&["perplexity", "a.gguf", "--text", text, "-c", "16", "--chunks", "1"])
    };
    let r1 = Bench::bf16();
    let plain = with(&r1, &[]).ok();
    assert!(plain.warnings().is_empty());
    for (key, value) in [
        ("attention.scale", Value::F32(0.1)),
        ("attention.clamp_kqv", Value::F32(8.0)),
        ("attention.causal", Value::Bool(0)),
        ("attention.sliding_window", Value::U32(64)),
        ("logit_scale", Value::F32(0.5)),
        ("attn_logit_softcapping", Value::F32(50.0)),
        ("final_logit_softcapping", Value::F32(30.0)),
        ("residual_scale", Value::F32(0.2)),
        ("rope.scaling.type", Value::str("longrope")),
        ("rope.scaling.type", Value::str("linear")),
        ("rope.scaling.factor", Value::F32(0.0)),
        ("rope.scaling.attn_factor", Value::F32(1.5)),
        ("rope.scaling.yarn_ext_factor", Value::F32(0.0)),
        ("rope.scaling.yarn_attn_factor", Value::F32(1.5)),
        ("expert_gating_func", Value::U32(3)),
        ("expert_count", Value::Array(4, vec![Value::U32(16), Value::U32(8)])),
    ] {
        let key = format!("deepseek2.{key}");
        let named = if key.ends_with("scaling.type") { "deepseek2.rope.scaling" } else { &key };
        with(&r1, &[(&key, value)]).fails(&["a.gguf", named]);
    }
    // Neutral values, and what is not known.
    let neutral = [
        ("deepseek2.attention.scale", Value::F32(0.0)),
        ("deepseek2.logit_scale", Value::F32(1.0)),
        ("deepseek2.attention.causal", Value::Bool(1)),
        ("deepseek2.attention.sliding_window", Value::U32(163_840)),
        ("deepseek2.rope.scaling.finetuned", Value::Bool(1)),
        ("deepseek2.pooling_type", Value::U32(0)),
    ];
    let said = with(&r1, &neutral).ok();
    assert_eq!((said.stdout.as_str(), said.warnings().len()), (plain.stdout.as_str(), 0));
    let said = with(&r1, &[("deepseek2.hyper", Value::U32(1)), ("deepseek2.b.c", Value::U32(2))]);
    let warnings = said.ok();
    assert_eq!(warnings.warnings().len(), 1);
    warnings.says(&["`deepseek2.hyper`", "`deepseek2.b.c`"]);
    // Without a type, scaling is linear.
    let mut file = r1.clone();
    file.keys.retain(|(key, _)| key != "deepseek2.rope.scaling.type");
    with(&file, &[]).fails(&["deepseek2.rope.scaling.factor"]);
    // YaRN without the original context takes the context.
    let mut file = r1.clone();
    file.keys.retain(|(key, _)| key != "deepseek2.rope.scaling.original_context_length");
    with(&file, &[("deepseek2.context_length", Value::U32(4096))]).ok();
    // What does not touch values goes on.
    with(&r1, &[("deepseek2.attention.scale", Value::F32(0.1))]);
    bench.run(&["quantize", "a.gguf", "b.gguf", "Q8_0"]).ok();
    bench.run(&["inspect", "a.gguf"]).ok();
}

#[test]
fn a_model_that_says_nothing_of_its_output_and_has_none_is_tied() {
    let bench = Bench::new();
    let plain = open(&bench, "family/qwen2-tied", |_| {}).unwrap();
    let edit =
        |config: &mut Json| drop(config.as_object_mut().unwrap().remove("tie_word_embeddings"));
    let found = open(&bench, "family/qwen2-tied", edit).unwrap();
    assert_eq!(found.file, plain.file);
    assert!(found.warnings.concat().contains("`tie_word_embeddings` is missing"));
}

/// The reference writes the matrix that is there, transformers would take the embedding.
#[test]
fn a_tied_model_with_another_output_matrix_is_a_warning() {
    let bench = Bench::new();
    let copy = bench.checkpoint("family/qwen2-tied", "c");
    let plain = opened(&copy).unwrap();
    for (other, warnings) in [(false, 0), (true, 1)] {
        copy.edit_shard("model.safetensors", |tensors| {
            let (dtype, shape, mut data) =
                tensors.get("model.embed_tokens.weight").unwrap().clone();
            if other {
                data.reverse();
            }
            tensors.set("lm_head.weight", &dtype, &shape, data);
        });
        let found = opened(&copy).unwrap();
        assert_eq!(found.warnings.len(), warnings, "{:?}", found.warnings);
        assert!(found.file.contains("output.weight ") && found.file != plain.file);
    }
    let found = open(&bench, "family/qwen2", |config| config["tie_word_embeddings"] = true.into());
    assert!(found.unwrap().warnings[0].contains("`lm_head.weight` is another matrix"));
}

/// An error about a tensor names the settings that speak of it.
#[test]
fn tensors_that_do_not_agree_with_settings_name_both() {
    let bench = Bench::new();
    let error = |fixture: &str, key: &str, value: Json| {
        open(&bench, fixture, |config| config[key] = value).err().unwrap()
    };
    for (fixture, key, value, words) in [
        (
            "family/qwen2",
            "num_hidden_layers",
            json!(3),
            ["model.layers.2.", "`num_hidden_layers` is 3"],
        ),
        ("family/qwen2", "vocab_size", json!(2000), ["embed_tokens", "`vocab_size` is 2000"]),
        ("family/qwen3", "head_dim", json!(32), ["_proj.weight", "`head_dim` is 32"]),
        ("family/qwen2", "num_key_value_heads", json!(4), ["_proj", "`num_key_value_heads` is 4"]),
        (
            "family/llama-bias",
            "attention_bias",
            json!(false),
            ["_proj.bias", "`attention_bias` is false"],
        ),
        (
            "family/llama3",
            "attention_bias",
            json!(true),
            ["_proj.bias", "`attention_bias` is true"],
        ),
        ("tiny-r1", "q_lora_rank", json!(null), ["q_proj", "`q_lora_rank` is null"]),
        ("tiny-r1", "n_routed_experts", json!(8), ["mlp.gate.weight", "`n_routed_experts` is 8"]),
        (
            "tiny-r1",
            "first_k_dense_replace",
            json!(2),
            ["mlp.gate_proj", "`first_k_dense_replace` is 2"],
        ),
        (
            "tiny-r1",
            "first_k_dense_replace",
            json!(0),
            ["layers.0.mlp.", "`first_k_dense_replace` is 0"],
        ),
        ("tiny-r1", "n_shared_experts", json!(0), ["shared_experts", "`n_shared_experts` is 0"]),
    ] {
        let error = error(fixture, key, value);
        assert!(words.iter().all(|word| error.contains(word)), "{key}: {error}");
    }
}
