//! `requant mix`: what groups of tensors cost, and the mix that follows for a size.
#![cfg(feature = "cli")]

mod common;

use assert_cmd::cargo::CommandCargoExt;
use common::{BF16, CALIBRATION, TINY_R1, json, validate};
use requant::recipe::Recipe;
use serde_json::Value;
use std::path::Path;
use std::process::{Command, Output};

fn requant(arguments: &[&str]) -> Output {
    let mut command = Command::cargo_bin("requant").unwrap();
    command.args(["--log-level", "error"]).args(arguments).output().unwrap()
}

fn done(arguments: &[&str]) -> Value {
    let output = requant(arguments);
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    serde_json::from_slice(&output.stdout).unwrap_or_default()
}

#[test]
fn bytes_go_where_they_save_most() {
    let folder = tempfile::tempdir().unwrap();
    let path = |name: &str| folder.path().join(name).to_str().unwrap().to_owned();
    let [known, recipe, list] = ["known.json", "mix.toml", "types.txt"].map(path);
    let [own, stock, by_list] = ["own.gguf", "stock.gguf", "list.gguf"].map(path);
    assert!(requant(&["quantize", BF16, &stock, "Q3_K_M"]).status.success());
    let bytes = std::fs::metadata(&stock).unwrap().len();
    let size = bytes.to_string();
    let common = ["mix", BF16, "--sensitivities", &known, "--json"];
    let first = [
        &common[..],
        &["--text", CALIBRATION, "--ctx", "256", "--chunks", "16", "--size", &size],
        &["-o", &recipe, "--tensor-type-file", &list],
    ];
    let found = done(&first.concat());
    validate("mix", &found);
    let [expected, measured] =
        [&found["expected_kld"], &found["measured"]["mean_kld"]].map(|v| v.as_f64().unwrap());
    assert!((0.4..2.5).contains(&(measured / expected)), "{measured} for {expected}");

    // The file is as large as was said, no larger than the stock mix's, and better.
    assert!(requant(&["quantize", BF16, &own, &recipe]).status.success());
    let own_bytes = std::fs::metadata(&own).unwrap().len();
    assert_eq!(Some(own_bytes), found["file_bytes"].as_u64());
    assert!(own_bytes <= bytes && own_bytes > bytes / 100 * 95, "{own_bytes} of {bytes}");
    let klds = common::divergences(Path::new(BF16), &[Path::new(&stock), Path::new(&own)]);
    assert!(klds[1] < 0.6 * klds[0], "{klds:?}");

    // Stock llama-quantize takes the list.
    let with = ["quantize", BF16, &by_list, "Q3_K", "--tensor-type-file", &list];
    assert!(requant(&with).status.success());
    assert_eq!(common::hashes(Path::new(&by_list)), common::hashes(Path::new(&own)));

    // Other sizes need neither text nor time, and are what is measured again.
    let other = path("other.toml");
    let again = [&common[..], &["--bpw", "4.5", "--no-proof", "-o", &other]].concat();
    let larger = done(&again);
    assert!(larger["expected_kld"].as_f64().unwrap() < expected);
    assert!((4.3..4.5).contains(&larger["bits_per_weight"].as_f64().unwrap()), "{larger}");
    Recipe::parse(&std::fs::read_to_string(&other).unwrap()).unwrap();
    let plot = path("curve.svg");
    let curve = done(&[&common[..], &["--curve", "--plot", &plot]].concat());
    let drawn = std::fs::read_to_string(plot).unwrap();
    assert_eq!(drawn.matches("<circle").count(), curve["curve"].as_array().unwrap().len());
    validate("mix", &curve);
    let klds: Vec<f64> = curve["curve"]
        .as_array()
        .unwrap()
        .iter()
        .map(|p| p["expected_kld"].as_f64().unwrap())
        .collect();
    assert!(klds.len() > 10 && klds.is_sorted_by(|a, b| a >= b), "{klds:?}");

    // What cannot be.
    let floors = ["--floor", "output=Q8_0", "--keep", "attn_v_b=Q6_K"];
    let floored = path("floored.toml");
    done(&[&common[..], &floors, &["--bpw", "4.5", "--no-proof", "-o", &floored]].concat());
    let shown = done(&["recipe", "show", &floored, "--model", BF16, "--json"]);
    for tensor in shown["tensors"].as_array().unwrap() {
        let (name, ty) = (tensor["name"].as_str().unwrap(), tensor["type"].as_str().unwrap());
        assert!(name != "output.weight" || ty == "Q8_0", "{ty}");
        assert!(!name.contains("attn_v_b") || ty == "Q6_K", "{ty}");
    }
    // Parts of the model have their own sizes: here, experts almost nothing and the rest what it likes.
    let parted = path("parted.toml");
    let budgets = ["--budget", "expert=2200K", "--budget", "rest=9MiB"];
    done(&[&common[..], &budgets, &["--no-proof", "-o", &parted]].concat());
    let shown = done(&["recipe", "show", &parted, "--model", BF16, "--json"]);
    let bits = |role: &str| shown["roles"][role]["bits_per_weight"].as_f64().unwrap();
    assert!((2.6..2.865).contains(&bits("expert")), "{}", bits("expert"));
    assert_eq!(["embedding", "attention", "output"].map(bits), [8.5; 3]);

    // What the context takes is no room for weights: 3 layers, 256 + 64 numbers a token, in F16.
    let fitted = |context: &str| {
        let to = path("fitted.toml");
        let fit = ["--fit", "519MiB", "--fit-ctx", context, "--no-proof", "--force", "-o", &to];
        done(&[&common[..], &fit].concat())["file_bytes"].as_u64().unwrap()
    };
    let (short, long) = (fitted("64"), fitted("1024"));
    assert!(short <= 7 << 20 && short > (7 << 20) - (500 << 10), "{short}");
    assert!((1600 << 10..2000 << 10).contains(&(short - long)), "{short} {long}");

    let bad: [(&[&str], &str); 9] = [
        (&["--budget", "expert=2M", "--no-proof", "-o", &path("a")], "rest"),
        (&["--bpw", "4", "--budget", "rest=2M", "--no-proof", "-o", &path("a")], "contradict"),
        (&["--fit", "100M", "--no-proof", "-o", &path("a")], "do not even hold"),
        (&["--bpw", "4", "--no-proof", "-o", &path("none/of/a")], "none"),
        (&["--bpw", "1", "--no-proof", "-o", &path("a")], "too few"),
        (&["--bpw", "4", "--no-proof", "-o", &path("a"), "--types", "IQ"], "nothing about"),
        (&["--bpw", "4", "--no-proof", "-o", &other], "--force"),
        (&["--bpw", "4", "--no-proof", "-o", &path("a"), "--types", "Q4_J"], "Q4_J"),
        (&["--bpw", "4", "--no-proof", "-o", &path("a"), "--floor", "outputs=Q8_0"], "outputs"),
    ];
    for (options, words) in bad {
        let output = requant(&[&common[..], options].concat());
        let said = String::from_utf8_lossy(&output.stderr);
        assert!(!output.status.success() && said.contains(words), "{options:?}: {said}");
    }
    let other =
        ["mix", TINY_R1, "--sensitivities", &known, "--bpw", "4", "--no-proof", "-o", &path("b")];
    let told = requant(&other);
    assert!(
        told.status.success(),
        "the checkpoint has the same tensors: {}",
        String::from_utf8_lossy(&told.stderr)
    );
}

/// A mix for searched scales is chosen by their errors, and measured with them.
#[test]
fn scales_that_are_searched_for_have_mixes_of_their_own() {
    let folder = tempfile::tempdir().unwrap();
    let path = |name: &str| folder.path().join(name).to_str().unwrap().to_owned();
    let [known, recipe, plain] = ["known.json", "mix.toml", "plain.toml"].map(path);
    let common = ["mix", BF16, "--sensitivities", &known, "--bpw", "3.6", "--json"];
    let text = ["--text", CALIBRATION, "--ctx", "256", "--chunks", "8"];
    let search = ["--rounding", "search"];
    let found = done(&[&common[..], &text, &search, &["-o", &recipe]].concat());
    validate("mix", &found);
    let value = |of: &Value| of.as_f64().unwrap();
    let expected = value(&found["expected_kld"]);
    assert!(expected < 0.95 * value(&found["expected_kld_reference"]), "{found}");
    let measured = value(&found["measured"]["mean_kld"]);
    assert!((0.4..2.5).contains(&(measured / expected)), "{found}");
    let written = std::fs::read_to_string(&recipe).unwrap();
    assert!(written.contains("--rounding search") && written.contains("With such scales"));

    // What was measured serves the reference's rounding as well, which costs more.
    let other = done(&[&common[..], &["--no-proof", "-o", &plain]].concat());
    assert!(value(&other["expected_kld"]) > expected, "{other}");
    assert!(!std::fs::read_to_string(&plain).unwrap().contains("--rounding"));
    // A file that knows nothing of them serves the reference's rounding alone.
    let unknown = path("unknown.json");
    let mut json: Value = serde_json::from_slice(&std::fs::read(&known).unwrap()).unwrap();
    for tensor in json["tensors"].as_array_mut().unwrap() {
        tensor.as_object_mut().unwrap().remove("searched").unwrap();
    }
    std::fs::write(&unknown, json.to_string()).unwrap();
    let again = ["mix", BF16, "--sensitivities", &unknown, "--bpw", "4", "--no-proof", "-o"];
    assert!(requant(&[&again[..], &[&path("a")]].concat()).status.success());
    let refused = requant(&[&again[..], &[&path("b")], &search].concat());
    let said = String::from_utf8_lossy(&refused.stderr);
    assert!(!refused.status.success() && said.contains("searched scales"), "{said}");
}

/// What a mix is chosen by must not be what weights are rounded with.
#[test]
fn texts_have_nothing_in_common() {
    let folder = tempfile::tempdir().unwrap();
    let path = |name: &str| folder.path().join(name).to_str().unwrap().to_owned();
    let text = std::fs::read_to_string(CALIBRATION).unwrap();
    let lines: Vec<&str> = text.lines().collect();
    let part = |name: &str, lines: &[&str]| {
        std::fs::write(path(name), lines.join("\n")).unwrap();
        path(name)
    };
    let [first, second] = [part("first.txt", &lines[..400]), part("second.txt", &lines[400..800])];
    let overlapping = part("overlapping.txt", &lines[300..700]);
    let mix = |text: &str, calibration: &str, to: &str| {
        let common = ["mix", BF16, "--ctx", "64", "--chunks", "9", "--bpw", "4", "--no-proof"];
        let with = ["--types", "Q3_K,Q8_0", "--calibrate-chunks", "2"];
        let own = ["--text", text, "--calibrate", calibration, "-o", to];
        requant(&[&common[..], &with, &own].concat())
    };
    let told = mix(&first, &overlapping, &path("a.toml"));
    let said = String::from_utf8_lossy(&told.stderr);
    assert!(!told.status.success() && said.contains("stands in"), "{said}");
    assert!(mix(&first, &second, &path("b.toml")).status.success());
    // One text for both is cut.
    assert!(mix(&first, &first, &path("c.toml")).status.success());
    assert_ne!(std::fs::read(path("b.toml")).unwrap(), std::fs::read(path("c.toml")).unwrap());
}

/// A search, or a share of one, that is killed between two batches of groups goes on, and finds the same.
#[test]
fn a_search_that_is_killed_goes_on() {
    let folder = tempfile::tempdir().unwrap();
    let path = |name: &str| folder.path().join(name).to_str().unwrap().to_owned();
    let search = |options: &[&str]| {
        let mut command = Command::cargo_bin("requant").unwrap();
        let texts = ["--text", CALIBRATION, "--calibrate", CALIBRATION, "--ctx", "128"];
        command.args(["--log-level", "error", "mix", BF16]).args(texts);
        command.args(["--chunks", "18", "--types", "Q3_K,Q5_K"]).args(options);
        command.stdout(std::process::Stdio::null());
        command
    };
    let single = |file: &str| search(&["--curve", "--sensitivities", file]);
    let whole = path("whole.json");
    assert!(single(&whole).status().unwrap().success());
    let whole = json(&whole);
    let goes_on = |search: &dyn Fn() -> Command, file: &str, found: &dyn Fn() -> Value| {
        let part = format!("{file}.part");
        let mut child = search().spawn().unwrap();
        let begun = || {
            let state: Value = serde_json::from_slice(&std::fs::read(&part).ok()?).ok()?;
            Some(state["measured"]["groups"].as_array()?.len())
        };
        let groups = loop {
            match begun() {
                Some(groups) if groups > 0 => break groups,
                _ => {
                    assert!(child.try_wait().unwrap().is_none(), "it ended before it was killed");
                }
            }
        };
        child.kill().unwrap();
        child.wait().unwrap();
        let all = whole["groups"].as_array().unwrap().len();
        assert!(groups < all && !Path::new(file).exists(), "{groups} of {all}");
        // What was measured is not measured again: the state counts for another search no more.
        let mut state: Value = json(&part);
        state["measured"]["groups"][0]["error"] = 0.125.into();
        std::fs::write(&part, state.to_string()).unwrap();
        assert!(search().status().unwrap().success());
        assert!(!Path::new(&part).exists());
        let mut found = found();
        assert_eq!(found["groups"][0]["error"], 0.125);
        found["groups"][0]["error"] = whole["groups"][0]["error"].clone();
        assert_eq!(found, whole);
    };
    let killed = path("killed.json");
    goes_on(&|| single(&killed), &killed, &|| json(&killed));
    let (name, share, joined) = (path("share"), path("share.1-of-1"), path("joined.json"));
    goes_on(&|| search(&["--shard", "1/1", "--part", &name]), &share, &|| {
        assert!(requant(&["join", &share, "-o", &joined]).status.success());
        json(&joined)
    });
}
