//! Comparisons against figures computed apart, verdicts, and importance matrices against
//! llama-imatrix's.
#![cfg(feature = "cli")]

mod common;

use assert_cmd::cargo::CommandCargoExt;
use common::{BF16, CALIBRATION, HELDOUT, TINY_R1, requant, validate};
use requant::eval::{self, Limits, PerplexityOptions, Reference, Verdict, compare};
use requant::imatrix::{Imatrix, Sums};
use requant::measure::{self, Against, Options, Subject, Terms, Text};
use requant::model::{Model, Mtp};
use requant::monitor::Monitor;
use serde_json::Value;
use std::path::{Path, PathBuf};
use std::process::Command;

fn quantized(dir: &Path, ty: &str) -> PathBuf {
    let path = dir.join(format!("{ty}.gguf"));
    let (code, _, err) = requant(&["quantize", BF16, path.to_str().unwrap(), ty, "-q"]);
    assert_eq!(code, 0, "{err}");
    path
}

#[test]
fn figures_equal_those_computed_from_all_logits() {
    let dir = tempfile::tempdir().unwrap();
    let open = |path: &Path| Model::open(path, Mtp::Drop).unwrap();
    let (a, b) = (open(Path::new(BF16)), open(&quantized(dir.path(), "Q2_K")));
    let runner = |m| -> eval::Model<'_> {
        let m: &Model = m;
        eval::Model::new(m.hparams(), m.source()).unwrap()
    };
    let (a, b) = (runner(&a), runner(&b));
    let ctx = 64;
    let tokens: Vec<u32> = (0..3 * ctx as u32).map(|i| 5 + i * i * 7 % 2000).collect();
    let options = PerplexityOptions { ctx, ..PerplexityOptions::default() };
    let (own, found) = compare(Reference::Model(&a), &[&b], &tokens, &options, None, &()).unwrap();
    let found = &found[0];

    let logits = |model: &eval::Model| {
        let mut states = model.embed(&tokens).unwrap();
        for layer in 0..model.hparams().n_layer {
            model.layer(layer, &mut states, ctx, 1 << 28).unwrap();
        }
        (model.logits(model.output_norm(states.view()).unwrap().view()).unwrap(), states)
    };
    let ((p, states), (q, others)) = (logits(&a), logits(&b));
    let log_p = |row: ndarray::ArrayView1<f32>| -> Vec<f64> {
        let sum: f64 = row.iter().map(|&x| f64::from(x).exp()).sum();
        row.iter().map(|&x| f64::from(x) - sum.ln()).collect()
    };
    let (mut kl, mut nll, mut change, mut same) = (Vec::new(), Vec::new(), Vec::new(), 0);
    for chunk in 0..3 {
        for at in chunk * ctx + ctx / 2..chunk * ctx + ctx - 1 {
            let (p, q) = (log_p(p.row(at)), log_p(q.row(at)));
            kl.push(p.iter().zip(&q).map(|(p, q)| p.exp() * (p - q)).sum::<f64>());
            let target = tokens[at + 1] as usize;
            nll.push(-p[target]);
            change.push(q[target].exp() - p[target].exp());
            let top = |x: &[f64]| (0..x.len()).max_by(|&i, &j| x[i].total_cmp(&x[j])).unwrap();
            same += usize::from(top(&p) == top(&q));
        }
    }
    let n = kl.len() as f64;
    let mean = |x: &[f64]| x.iter().sum::<f64>() / n;
    let close = |a: f64, b: f64| assert!((a - b).abs() < 1e-5 * b.abs().max(1e-2), "{a} {b}");
    close(found.kl_divergence.mean.value, mean(&kl));
    close(found.kl_divergence.max, kl.iter().copied().fold(0.0, f64::max));
    close(own.mean_nll, mean(&nll));
    close(found.p_change.mean.value, mean(&change));
    close(found.p_change_rms.value, mean(&change.iter().map(|x| x * x).collect::<Vec<_>>()).sqrt());
    assert_eq!(found.same_top.value, same as f64 / n);
    let spread = kl.iter().map(|x| (x - mean(&kl)).powi(2)).sum::<f64>() / n;
    close(found.kl_divergence.mean.error, (spread / (n - 1.0)).sqrt());
    let apart = (&others - &states).iter().map(|&x| f64::from(x).powi(2)).sum::<f64>();
    let norm = states.iter().map(|&x| f64::from(x).powi(2)).sum::<f64>();
    close(*found.layer_error.last().unwrap(), (apart / norm).sqrt());
}

#[test]
fn what_is_not_scored_need_not_pass_the_last_layer() {
    // `compare` passes all tokens, whose states it compares.
    for name in ["tiny-r1", "family/deepseek-v2", "family/llama3", "family/qwen3"] {
        let model = Model::open(&Path::new("tests/fixtures").join(name), Mtp::Drop).unwrap();
        let model = eval::Model::new(model.hparams(), model.source()).unwrap();
        let n_vocab = model.hparams().n_vocab;
        let tokens: Vec<u32> = (0..300).map(|i| i * i * 7 % n_vocab).collect();
        for ctx in [4, 63, 130] {
            let options = PerplexityOptions { ctx, ..PerplexityOptions::default() };
            let alone = eval::perplexity(&model, &tokens, &options, &()).unwrap();
            let reference = Reference::Model(&model);
            let (own, _) = compare(reference, &[], &tokens, &options, None, &()).unwrap();
            assert!(alone.nll == own.nll, "{name}, chunks of {ctx}");
        }
    }
}

#[test]
fn a_model_equals_itself_and_files_stand_in_for_references() {
    let dir = tempfile::tempdir().unwrap();
    let [base, report] = ["base.kld", "page.html"].map(|name| dir.path().join(name));
    let q4 = quantized(dir.path(), "Q4_K_M");
    let (q4, base) = (q4.to_str().unwrap(), base.to_str().unwrap());
    let text = ["--text", HELDOUT, "--chunks", "3", "-q", "--json"];
    let report = report.to_str().unwrap();
    let mut args = vec!["compare", BF16, TINY_R1, q4, "--by-tensor", "--report", report];
    args.extend(["--save-base", base]);
    args.extend(text);
    let (code, out, err) = requant(&args);
    assert_eq!(code, 0, "{err}");
    let json: Value = serde_json::from_str(&out).unwrap();
    validate("compare", &json);
    let kl = |json: &Value, i: usize| {
        json["models"][i]["result"]["kl_divergence"]["mean"]["value"].as_f64().unwrap()
    };
    // The file holds the FP8 products rounded to eight bits; Q4_K has half as many.
    assert!(kl(&json, 0) < 1e-3 && kl(&json, 1) > 2e-3, "{out}");
    assert!(json["models"][1]["tensors"].as_array().unwrap().len() > 30);

    let (code, out, err) = requant(&["compare", "--base", base, q4, "-q", "--json"]);
    assert_eq!(code, 0, "{err}");
    let from_file: Value = serde_json::from_str(&out).unwrap();
    validate("compare", &from_file);
    assert!((kl(&from_file, 0) - kl(&json, 1)).abs() < 1e-4);

    let page = std::fs::read_to_string(report).unwrap();
    assert!(page.starts_with("<!doctype html>") && page.matches("<svg").count() == 6);
    // The checkpoint's tensors are the file's, and all models are in the same pictures.
    assert!(page.contains("unchanged") && page.contains("class=\"same\""));
    assert!(page.contains("Mean KL divergence over size") && page.contains("legend"));
    assert_eq!(page.matches("<polyline class=\"curve").count(), 6);
    assert!(page.contains("<polyline class=\"front\""));
    // What is folded away on a screen is printed.
    assert!(page.contains("<details>") && page.contains("details::details-content"));
    for forbidden in ["http:", "https:", "src=", "url(", "NaN", "inf"] {
        assert!(!page.contains(forbidden), "{forbidden}");
    }
    let damaged = std::fs::read(base).unwrap();
    std::fs::write(base, &damaged[..damaged.len() - 1]).unwrap();
    let (code, _, err) = requant(&["compare", "--base", base, q4, "-q"]);
    assert!(code == 1 && err.contains("cut short"), "{err}");

    let mut same = vec!["compare", BF16, BF16];
    same.extend(text);
    let json: Value = serde_json::from_str(&requant(&same).1).unwrap();
    let result = &json["models"][0]["result"];
    assert_eq!((kl(&json, 0), result["same_top"]["value"].as_f64()), (0.0, Some(1.0)));
    assert_eq!(result["paired"]["ln_ratio"], 0.0);
}

#[test]
fn numbers_of_tokens_stand_in_for_a_tokenizer_that_is_not_known() {
    let dir = tempfile::tempdir().unwrap();
    let at = |name: &str| dir.path().join(name).into_os_string().into_string().unwrap();
    let (model, numbers, text) = (at("m.gguf"), at("tokens"), at("text"));
    std::fs::copy(BF16, &model).unwrap();
    let gguf = requant::gguf::GgufFile::open(Path::new(BF16)).unwrap();
    let tokenizer = requant::tokenizer::Tokenizer::from_metadata(gguf.metadata()).unwrap();
    let tokens = tokenizer.encode(&std::fs::read_to_string(HELDOUT).unwrap()).unwrap();
    std::fs::write(&numbers, format!("{tokens:?}")).unwrap();
    assert_eq!(requant(&["set", &model, "tokenizer.ggml.pre=str:mine"]).0, 0);
    let perplexity = |what: &[&str]| requant(&[&["perplexity", "--chunks", "2"], what].concat());
    let (code, _, err) = perplexity(&[&model, "--text", HELDOUT]);
    assert!(code == 1 && err.contains("`mine`") && err.contains("--tokens"), "{err}");
    let (_, expected, _) = perplexity(&[BF16, "--text", HELDOUT]);
    let (code, found, err) = perplexity(&[&model, "--tokens", &numbers]);
    assert_eq!((code, &found), (0, &expected), "{err}");
    // A checkpoint has the rules with it.
    let copy = common::Copy::new();
    copy.replace("tokenizer.json", "{1,3}", "{1,9}");
    let folder = copy.path().to_str().unwrap();
    assert_eq!(requant(&["convert", folder, &at("o.gguf"), "--type", "Q8_0"]).0, 1);
    let (_, expected, _) = perplexity(&[TINY_R1, "--text", HELDOUT]);
    let (code, found, err) = perplexity(&[folder, "--text", HELDOUT]);
    assert_eq!((code, &found), (0, &expected), "{err}");
    // A newline at the end of a file is not part of its text.
    for end in ["", "\n", "\n\n"] {
        std::fs::write(&text, format!("One{end}")).unwrap();
        let (_, _, err) = perplexity(&[BF16, "--text", &text]);
        let n = if end == "\n\n" { 3 } else { 2 };
        assert!(err.contains(&format!("{n} tokens, but")), "{err}");
    }
}

#[test]
fn verdicts_have_exit_codes() {
    let dir = tempfile::tempdir().unwrap();
    let (q8, q2) = (quantized(dir.path(), "Q8_0"), quantized(dir.path(), "Q2_K"));
    let gate = |model: &Path, limits: &[&str], chunks: &str| {
        let mut args = vec!["gate", BF16, model.to_str().unwrap(), "--text", HELDOUT, "-q"];
        args.extend(["--chunks", chunks, "--json"]);
        args.extend(limits);
        let (code, out, err) = requant(&args);
        let json: Value = serde_json::from_str(&out).unwrap_or_else(|_| panic!("{err}"));
        validate("gate", &json);
        (code, json)
    };
    let (code, json) = gate(&q8, &["--max-kld", "0.02", "--max-ppl-ratio", "1.05"], "16");
    assert_eq!((code, json["verdict"].as_str()), (0, Some("pass")), "{json}");
    assert!(json["chunks"].as_u64().unwrap() < 16, "decided early: {json}");
    let (code, json) = gate(&q2, &["--max-kld", "0.002", "--min-same-top", "0.5"], "8");
    assert_eq!((code, json["verdict"].as_str()), (3, Some("fail")), "{json}");
    assert_eq!(json["models"][0]["checks"][0]["what"], "mean_kld");
    let value = json["models"][0]["checks"][0]["value"].as_f64().unwrap().to_string();
    let (code, json) = gate(&q2, &["--max-kld", &value], "6");
    assert_eq!((code, json["verdict"].as_str()), (4, Some("undecided")), "{json}");
    assert!(requant(&["gate", BF16, BF16, "--text", HELDOUT]).0 == 2, "no limit is bad usage");
}

#[test]
fn a_gate_judges_several_models_in_one_run_and_says_so_to_what_runs_checks() {
    let dir = tempfile::tempdir().unwrap();
    let [q2, q8] = ["Q2_K", "Q8_0"].map(|ty| quantized(dir.path(), ty));
    let [q2, q8] = [&q2, &q8].map(|path| path.to_str().unwrap());
    let path = |name: &str| dir.path().join(name).to_str().unwrap().to_owned();
    let [base, report, summary, junit] = ["base", "a.html", "s.md", "j.xml"].map(path);
    std::fs::write(&summary, "# Before\n").unwrap();
    let text = ["--text", HELDOUT, "--ctx", "128", "--chunks", "24"];
    let limits = ["--max-kld", "0.002", "--min-same-top", "0.5", "-q", "--json"];
    let files = ["--report", &report, "--summary", &summary, "--junit", &junit];
    let (code, out, err) =
        requant(&[&["gate", BF16, q8, q2], &text[..], &limits, &files, &["--by-tensor"]].concat());
    assert_eq!(code, 3, "{err}");
    let found: serde_json::Value = serde_json::from_str(&out).unwrap();
    common::validate("gate", &found);
    let verdicts = |of: &serde_json::Value| -> Vec<String> {
        let models = of["models"].as_array().unwrap().iter();
        models.map(|model| model["verdict"].as_str().unwrap().to_owned()).collect()
    };
    assert_eq!(verdicts(&found), ["pass", "fail"]);
    let read = |path: &str| std::fs::read_to_string(path).unwrap();
    let lines = read(&summary);
    assert!(lines.starts_with("# Before\n### requant gate: FAIL\n"), "{lines}");
    assert_eq!(lines.matches("| pass |").count(), 3, "{lines}");
    let cases = read(&junit);
    assert!(cases.contains("tests=\"4\" failures=\"1\" errors=\"0\""), "{cases}");
    assert!(cases.contains("name=\"mean KL divergence\"><failure type=\"fail\""), "{cases}");
    assert!(read(&report).contains("blk.0.ffn_down.weight"));

    // Where no model is compared there is nothing to draw.
    let plot = path("plot.svg");
    let save = ["compare", BF16, "--save-base", &base, "--plot", &plot, "-q"];
    assert_eq!(requant(&[&save[..], &text].concat()).0, 0);
    assert!(!Path::new(&plot).exists());
    let (code, out, err) = requant(&[&["gate", "--base", &base, q8, q2], &limits[..]].concat());
    assert_eq!(code, 3, "{err}");
    assert_eq!(verdicts(&serde_json::from_str(&out).unwrap()), ["pass", "fail"]);
    let alone = requant(&[&["gate", BF16], &text[..], &limits].concat());
    assert!(alone.0 == 2 && alone.2.contains("at least one model"), "{}", alone.2);
}

#[test]
fn importances_are_those_of_llama_imatrix() {
    let dir = tempfile::tempdir().unwrap();
    let path = |name: &str| dir.path().join(name).to_str().unwrap().to_owned();
    let [gguf, dat, fp8, twice] = ["a.gguf", "a.dat", "fp8.gguf", "twice.gguf"].map(path);
    let run = |args: &[&str]| {
        let (code, _, err) = requant(args);
        assert_eq!(code, 0, "{err}");
    };
    run(&["imatrix", BF16, "--text", CALIBRATION, "-o", &gguf, "-q"]);
    let ours = Imatrix::open(Path::new(&gguf)).unwrap();
    let theirs = Imatrix::open(Path::new("tests/fixtures/reference/imatrix.gguf")).unwrap();
    assert!(ours.entries.keys().eq(theirs.entries.keys()));
    let distance = |a: &Imatrix, b: &Imatrix| {
        let of = |name: &String| -> f64 {
            let pairs = a.entries[name].iter().zip(&b.entries[name]);
            let (apart, norm) = pairs.fold((0.0, 0.0), |(apart, norm), (&a, &b)| {
                (apart + f64::from(a - b).powi(2), norm + f64::from(b).powi(2))
            });
            (apart / norm).sqrt()
        };
        a.entries.keys().map(of).fold(0.0, f64::max)
    };
    // The reference was collected with BOS at the beginning of each chunk, as the checkpoint has it
    // but not the file. llama-imatrix rounds activations to BF16 and leaves out a few tokens.
    run(&["imatrix", TINY_R1, "--mtp", "drop", "--text", CALIBRATION, "-o", &fp8, "-q"]);
    let error = distance(&Imatrix::open(Path::new(&fp8)).unwrap(), &theirs);
    assert!(error < 1e-2, "{error}");

    run(&["imatrix", "--merge", &gguf, "--merge", &gguf, "-o", &twice]);
    let (once, twice) = (Sums::open(Path::new(&gguf), 512), Sums::open(Path::new(&twice), 512));
    let (once, twice) = (once.unwrap(), twice.unwrap());
    assert_eq!(twice.chunk_count, 2 * once.chunk_count);
    for (name, entry) in &once.entries {
        assert!(
            twice.entries[name].counts.iter().eq(entry
                .counts
                .iter()
                .map(|n| 2 * n)
                .collect::<Vec<_>>()
                .iter())
        );
        assert!(entry.counts.iter().all(|&n| n > 0), "{name}");
    }
    assert_eq!(distance(&twice.means(), &ours), 0.0);

    run(&["imatrix", BF16, "--text", CALIBRATION, "-o", &dat, "-q"]);
    assert_ne!(std::fs::read(&dat).unwrap()[..4], *b"GGUF", "the name says which format is meant");
    assert!(distance(&Imatrix::open(Path::new(&dat)).unwrap(), &ours) < 1e-6);
    let (code, _, err) = requant(&["imatrix", BF16, "--text", CALIBRATION, "-o", &dat]);
    assert!(code == 1 && err.contains("exists"), "{err}");
}

#[test]
fn statistics_are_those_of_llama_imatrix() {
    let file = "tests/fixtures/reference/imatrix.gguf";
    let (code, out, err) = requant(&["imatrix", "--show-statistics", file, "--json"]);
    assert_eq!(code, 0, "{err}");
    let found: serde_json::Value = serde_json::from_str(&out).unwrap();
    common::validate("statistics", &found);
    let theirs = common::json("tests/fixtures/reference/imatrix.json");
    let theirs_of = theirs["statistics"].as_object().unwrap();
    let tensors = found["tensors"].as_array().unwrap();
    assert_eq!(tensors.len(), theirs_of.len());
    let near = |ours: f64, theirs: &serde_json::Value, digit: f64, what: &str| {
        let theirs = theirs.as_f64().unwrap();
        // Theirs are sums in f32, and as many digits as are printed.
        let apart = (ours - theirs).abs();
        assert!(apart <= 0.51 * digit + 1e-4 * theirs.abs(), "{what}: {ours} and {theirs}");
    };
    for tensor in tensors {
        let name = tensor["tensor"].as_str().unwrap();
        let figures = [
            ("sum", 1.0, 1e-2),
            ("min", 1.0, 1e-4),
            ("max", 1.0, 1e-4),
            ("mean", 1.0, 1e-2),
            ("deviation", 1.0, 1e-2),
            ("active", 100.0, 1e-2),
            ("inputs", 1.0, 1.0),
            ("entropy", 1.0, 1e-4),
            ("entropy_share", 100.0, 1e-2),
            ("above_deviation", 100.0, 1e-2),
            ("cosine", 1.0, 1e-4),
        ];
        for (i, (what, scale, digit)) in figures.into_iter().enumerate() {
            let ours = scale * tensor[what].as_f64().unwrap_or(0.0);
            near(ours, &theirs_of[name][i], digit, &format!("{what} of {name}"));
        }
    }
    for layer in found["layers"].as_array().unwrap() {
        let of = &theirs["layers"][layer["layer"].to_string()];
        let figures = [("sum", 1.0, 1e-2), ("above_deviation", 100.0, 1e-4), ("cosine", 1.0, 1e-4)];
        for (i, (what, scale, digit)) in figures.into_iter().enumerate() {
            near(scale * layer[what].as_f64().unwrap(), &of[i], digit, what);
        }
    }
    let (code, out, _) = requant(&["imatrix", "--show-statistics", "--in-file", file]);
    assert!(code == 0 && out.lines().all(|line| line.chars().count() <= 80), "{out}");
}

#[test]
fn options_of_llama_imatrix_find_what_it_finds() {
    let dir = tempfile::tempdir().unwrap();
    let path = |name: &str| dir.path().join(name).to_str().unwrap().to_owned();
    let [text, with, without] = ["text", "with.gguf", "without.gguf"].map(path);
    let calibration = std::fs::read_to_string(CALIBRATION).unwrap();
    std::fs::write(&text, calibration.replace('\n', "<｜end▁of▁sentence｜>")).unwrap();
    // The checkpoint has BOS at the beginning of each chunk, as the reference was told.
    let run = ["imatrix", TINY_R1, "-q", "--text", &text, "--chunks", "2"];
    let options = ["--process-output", "--parse-special", "--from-chunk", "1", "-o", &with];
    assert_eq!(requant(&[&run[..], &options].concat()).0, 0);
    assert_eq!(requant(&[&run[..], &["-o", &without]].concat()).0, 0);
    let theirs = common::json("tests/fixtures/reference/imatrix.json");
    let ours = Sums::open(Path::new(&with), 512).unwrap();
    let output = &ours.entries["output.weight"];
    assert_eq!(output.counts, [theirs["count"].as_f64().unwrap() as u64]);
    let (mut apart, mut norm) = (0.0, 0.0);
    for (&ours, theirs) in output.sums.iter().zip(theirs["output"].as_array().unwrap()) {
        let (ours, theirs) = (ours / output.counts[0] as f64, theirs.as_f64().unwrap());
        (apart, norm) = (apart + (ours - theirs).powi(2), norm + theirs * theirs);
    }
    let error = (apart / norm).sqrt();
    assert!(error < 1e-2, "{error}");
    let without = Sums::open(Path::new(&without), 512).unwrap();
    assert!(!without.entries.contains_key("output.weight"));
    let name = "blk.1.attn_q_a.weight";
    assert_ne!(ours.entries[name], without.entries[name]);
}

#[test]
fn experts_that_no_token_reached_are_named_and_handled() {
    let dir = tempfile::tempdir().unwrap();
    let [tokens, file, out] = ["tokens", "im.gguf", "out.gguf"].map(|name| dir.path().join(name));
    let [tokens, file, out] = [&tokens, &file, &out].map(|path| path.to_str().unwrap());
    std::fs::write(tokens, "7, 8, 9, 10, 11, 12, 13, 14").unwrap();
    let args = ["imatrix", BF16, "--tokens", tokens, "--ctx", "4", "-o", file];
    let (code, _, err) = requant(&args);
    assert!(code == 0 && err.contains("no token reached blk."), "{err}");
    let quantize = |unrouted: &str| {
        let choice = ["--imatrix", file, "--unrouted", unrouted, "-q", "--force"];
        let mut args = vec!["quantize", BF16, out, "IQ2_XS"];
        args.extend(choice);
        requant(&args)
    };
    let (code, _, err) = quantize("error");
    assert!(code == 1 && err.contains("no token reached expert"), "{err}");
    assert_eq!(quantize("uniform").0, 0);
    let uniform = std::fs::read(out).unwrap();
    assert_eq!(quantize("shared").0, 0);
    assert!(std::fs::read(out).unwrap() != uniform);
}

/// Runs a command, killing it again and again, until it ends by itself. Returns its output, and how
/// often it was killed after it had left something to go on with.
#[cfg(unix)]
fn killed_again_and_again(args: &[&str], scratch: &Path, step: u64) -> (String, u32) {
    use std::process::Stdio;
    let journals = || {
        let entries = std::fs::read_dir(scratch).unwrap().map(|entry| entry.unwrap().path());
        let journals = entries.filter(|path| path.extension().is_some_and(|end| end == "journal"));
        journals.filter_map(|path| std::fs::metadata(path).ok()).map(|data| data.len()).sum::<u64>()
    };
    let mut kills = 0;
    for patience in 1.. {
        let mut child = Command::cargo_bin("requant").unwrap();
        let child = child.args(args).stdout(Stdio::piped()).stderr(Stdio::null());
        let mut child = child.spawn().unwrap();
        let before = journals();
        // Long enough for some progress, which a busy machine makes more slowly.
        let wanted = before + step * patience;
        while journals() < wanted && child.try_wait().unwrap().is_none() {
            std::thread::sleep(std::time::Duration::from_millis(5));
        }
        child.kill().unwrap();
        let ended = child.wait_with_output().unwrap();
        match ended.status.code() {
            None => kills += 1,
            Some(code) => {
                assert_eq!(code, 0);
                return (String::from_utf8(ended.stdout).unwrap(), kills);
            }
        }
        assert!(patience < 100, "no progress");
    }
    unreachable!("it ends within a hundred starts")
}

#[test]
#[cfg(unix)]
fn a_killed_evaluation_goes_on_and_finds_the_same_to_the_bit() {
    let dir = tempfile::tempdir().unwrap();
    let scratch = dir.path().join("scratch");
    std::fs::create_dir(&scratch).unwrap();
    let q4 = quantized(dir.path(), "Q4_0");
    let q4 = q4.to_str().unwrap();
    let out = dir.path().join("im.gguf");
    let out = out.to_str().unwrap();
    let common = ["--text", HELDOUT, "--chunks", "12", "-q", "--memory", "320M"];
    let other = dir.path().to_str().unwrap();
    let tail = ["--scratch", scratch.to_str().unwrap()];
    let cases: [Vec<&str>; 4] = [
        vec!["perplexity", q4, "--json"],
        vec!["compare", BF16, q4, "--json", "--by-layer"],
        vec!["gate", BF16, q4, "--json", "--max-kld", "0.0001"],
        vec!["imatrix", BF16, "-o", out, "--force"],
    ];
    for mut args in cases {
        args.extend(common);
        // Batches follow from the memory, and figures from batches in their last bits.
        let (code, expected, err) = requant(&[&args[..], &["--scratch", other]].concat());
        let verdict = args[0] == "gate";
        assert!(code == 0 || verdict && code == 3, "{err}");
        let file = std::fs::read(out).ok();
        if verdict {
            // Its exit code is the verdict: one kill is enough here.
            args.extend(tail);
            assert_eq!(common::result(&requant(&args).1), common::result(&expected));
            continue;
        }
        args.extend(tail);
        let (found, kills) = killed_again_and_again(&args, &scratch, 60);
        assert!(kills > 0, "{args:?} was never killed");
        let [found, expected] = [&found, &expected].map(|text| common::result(text));
        assert_eq!(found, expected, "{args:?} after {kills} kills");
        assert!(std::fs::read(out).ok() == file, "the same file");
        assert_eq!(std::fs::read_dir(&scratch).unwrap().count(), 0, "nothing is left");
    }
}

/// Runs a command, and interrupts it when journals in a folder have so many lines together. Returns
/// its exit code and what it printed.
#[cfg(unix)]
fn interrupted_at(
    mut command: Command,
    scratch: &Path,
    at: Option<usize>,
) -> (i32, String, String) {
    command.stdout(std::process::Stdio::piped()).stderr(std::process::Stdio::piped());
    let mut child = command.spawn().unwrap();
    if let Some(at) = at {
        let lines = || -> usize {
            let all = std::fs::read_dir(scratch).unwrap().map(|entry| entry.unwrap().path());
            let all = all.filter(|path| path.extension().is_some_and(|end| end == "journal"));
            let texts = all.filter_map(|path| std::fs::read_to_string(path).ok());
            texts.map(|text| text.lines().count()).sum()
        };
        while lines() < at && child.try_wait().unwrap().is_none() {
            std::thread::sleep(std::time::Duration::from_millis(5));
        }
        let id = rustix::process::Pid::from_child(&child);
        let _ = rustix::process::kill_process(id, rustix::process::Signal::INT);
    }
    let out = child.wait_with_output().unwrap();
    let text = |bytes| String::from_utf8(bytes).unwrap();
    (out.status.code().unwrap(), text(out.stdout), text(out.stderr))
}

#[test]
#[cfg(unix)]
fn a_conversion_goes_on_with_the_evaluation_that_was_interrupted() {
    let dir = tempfile::tempdir().unwrap();
    let scratch = dir.path().join("scratch");
    std::fs::create_dir(&scratch).unwrap();
    let out = dir.path().join("out.gguf");
    let journal = dir.path().join("out.gguf.journal");
    let convert = |with_scratch: bool, more: &[&str], at| {
        let mut command = Command::cargo_bin("requant").unwrap();
        command.args(["convert", TINY_R1]).arg(&out).args(["--type", "Q4_0", "--json"]);
        command.args(["--evaluate", HELDOUT, "--chunks", "40"]).args(more);
        if with_scratch {
            command.arg("--scratch").arg(&scratch);
        }
        interrupted_at(command, &scratch, at)
    };
    let (code, expected, err) = convert(false, &[], None);
    assert!(code == 0 && !journal.exists(), "{err}");
    // As this output has no journal, it is not taken for one's own.
    let (code, _, err) = convert(true, &[], None);
    assert!(code == 1 && err.contains("--force"), "{err}");
    let time = |path: &Path| std::fs::metadata(path).unwrap().modified().unwrap();
    let first = time(&out);
    // One line for what is embedded and three for layers, of each batch: within either model.
    let (code, _, err) = convert(true, &["--force"], Some(3));
    assert!(code == 130 && err.contains("out.gguf is complete"), "{err}");
    assert!(err.contains("the same command evaluates it where it was"), "{err}");
    let written = time(&out);
    assert!(written > first && journal.exists());
    let lines = |err: &str, what: &str| {
        let went_on = format!("evaluate {what}: goes on where it was interrupted");
        err.contains(&went_on)
    };
    let batches = {
        let entries = std::fs::read_dir(&scratch).unwrap().map(|entry| entry.unwrap().path());
        let path = entries.filter(|path| path.extension().is_some_and(|end| end == "journal"));
        let text = std::fs::read_to_string(path.last().unwrap()).unwrap();
        text.lines().filter(|line| line.split(' ').nth(1) == Some("0")).count()
    };
    let (code, _, err) = convert(true, &["--force"], Some(4 * batches + 2));
    assert!(code == 130 && lines(&err, "source") && !lines(&err, "result"), "{err}");
    let (code, found, err) = convert(true, &["--force"], None);
    assert!(code == 0 && lines(&err, "source") && lines(&err, "result"), "{err}");
    assert_eq!(common::result(&found), common::result(&expected));
    assert_eq!(time(&out), written, "it is converted once");
    assert!(!journal.exists() && std::fs::read_dir(&scratch).unwrap().count() == 0);
}

#[test]
#[cfg(unix)]
fn a_complete_output_that_is_gone_or_changed_is_written_again() {
    let dir = tempfile::tempdir().unwrap();
    let out = dir.path().join("out.gguf");
    let short = dir.path().join("short.txt");
    std::fs::write(&short, "Too short.").unwrap();
    let convert = |text: &str| {
        let out = out.to_str().unwrap();
        requant(&["convert", TINY_R1, out, "--type", "Q4_0", "--evaluate", text, "--chunks", "2"])
    };
    let (code, _, err) = convert(short.to_str().unwrap());
    assert!(code == 1 && err.contains("out.gguf is complete"), "{err}");
    let bytes = std::fs::read(&out).unwrap();
    for damage in [None, Some(&bytes[..bytes.len() - 1])] {
        match damage {
            None => std::fs::remove_file(&out).unwrap(),
            Some(bytes) => std::fs::write(&out, bytes).unwrap(),
        }
        assert_eq!(convert(short.to_str().unwrap()).0, 1);
        assert!(std::fs::read(&out).unwrap() == bytes);
    }
    // A text that is long enough is all that was missing.
    let (code, table, err) = convert(HELDOUT);
    assert!(code == 0 && table.contains("difference of perplexity"), "{err}");
    assert_eq!(std::fs::read_dir(dir.path()).unwrap().count(), 2, "no journal is left");
}

#[test]
#[cfg(unix)]
fn what_was_kept_of_another_text_or_model_is_not_taken() {
    let dir = tempfile::tempdir().unwrap();
    let scratch = dir.path().join("scratch");
    std::fs::create_dir(&scratch).unwrap();
    let [text, model] = ["text", "m.gguf"].map(|name| dir.path().join(name));
    std::fs::copy(HELDOUT, &text).unwrap();
    std::fs::copy(BF16, &model).unwrap();
    let run = |interrupt: bool, chunks: &str| {
        let mut command = Command::cargo_bin("requant").unwrap();
        command.arg("perplexity").arg(&model).arg("--text").arg(&text);
        command.args(["--chunks", chunks, "--scratch"]).arg(&scratch);
        let (code, _, err) = interrupted_at(command, &scratch, interrupt.then_some(2));
        (code, err)
    };
    let went_on = "goes on where it was interrupted";
    assert_eq!(run(true, "40").0, 130);
    let (code, err) = run(false, "3");
    assert!(code == 0 && !err.contains(went_on) && err.contains("1 other evaluation"), "{err}");
    let (code, err) = run(false, "40");
    assert!(code == 0 && err.contains(went_on), "{err}");
    assert_eq!(std::fs::read_dir(&scratch).unwrap().count(), 0);
    // The same bytes, written again: how could one know?
    assert_eq!(run(true, "40").0, 130);
    std::fs::copy(BF16, &model).unwrap();
    let (code, err) = run(false, "40");
    assert!(code == 0 && !err.contains(went_on), "{err}");
}

#[test]
fn the_tensor_that_is_not_finite_is_named() {
    use requant::gguf::GgufFile;
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("damaged.gguf");
    let file = GgufFile::open(Path::new(BF16)).unwrap();
    let tokens = dir.path().join("tokens");
    let list: Vec<String> = (0..64u32).map(|i| (5 + i * i * 7 % 2000).to_string()).collect();
    std::fs::write(&tokens, list.join(" ")).unwrap();
    let mut kinds = 0;
    for (i, info) in file.tensors().iter().enumerate() {
        // One layer of each kind, and what is in no layer.
        if info.name.starts_with("blk.2.") {
            continue;
        }
        kinds += 1;
        let at = (file.data_offset() + info.offset) as usize;
        let width = file.tensor_data(i).len() / info.n_elements() as usize;
        // All of an expert's or head's first row; of embeddings, a token that occurs.
        let row = if info.name == "token_embd.weight" { 5 } else { 0 };
        let columns = info.dims[0] as usize;
        let experts = if info.name.contains("_exps.") { info.dims[2] as usize } else { 1 };
        for bad in [f32::NAN, f32::INFINITY, f32::NEG_INFINITY] {
            let mut bytes = std::fs::read(BF16).unwrap();
            for expert in 0..experts {
                let stack = info.n_elements() as usize / experts * width;
                let first = at + expert * stack + row * columns * width;
                // BF16 is the upper half of f32.
                bytes[first..first + width].copy_from_slice(&bad.to_le_bytes()[4 - width..]);
            }
            std::fs::write(&path, bytes).unwrap();
            let (path, tokens) = (path.to_str().unwrap(), tokens.to_str().unwrap());
            let args = ["compare", BF16, path, "--tokens", tokens, "--ctx", "32", "-q"];
            let (code, out, err) = requant(&args);
            assert!(code == 1 && out.is_empty(), "{} {bad}: {out} {err}", info.name);
            assert!(
                err.contains(&format!("`{}`", info.name)) && err.contains(path),
                "{} {bad}: {err}",
                info.name
            );
            if info.dims.len() > 1 {
                assert!(err.contains("not finite at token "), "{err}");
            }
            if let Some(layer) = info.name.strip_prefix("blk.").filter(|_| info.dims.len() > 1) {
                assert!(err.contains(&format!("layer {}: ", &layer[..1])), "{err}");
            }
            assert_eq!(err.contains(", expert "), info.name.contains("_exps."), "{err}");
        }
    }
    assert!(kinds > 25, "{kinds}");
}

#[test]
fn too_little_memory_is_said_before_anything_runs() {
    let args = ["compare", BF16, BF16, "--text", HELDOUT, "--memory", "256M"];
    let (code, _, err) = requant(&args);
    assert!(
        code == 1 && err.contains("--memory") && err.contains("--scratch puts on disk"),
        "{err}"
    );
    let args = ["perplexity", BF16, "--text", HELDOUT, "--scratch", "no/such/folder"];
    let (code, _, err) = requant(&args);
    assert!(code == 1 && err.contains("not a folder"), "{err}");
}

/// Stops work after so much of it.
struct StopsAfter(std::sync::atomic::AtomicU64, u64);

impl Monitor for StopsAfter {
    fn advance(&self, amount: u64) {
        self.0.fetch_add(amount, std::sync::atomic::Ordering::Relaxed);
    }

    fn cancelled(&self) -> bool {
        self.0.load(std::sync::atomic::Ordering::Relaxed) > self.1
    }
}

#[test]
fn what_was_found_before_it_was_stopped_is_said() {
    let model = Model::open(Path::new(BF16), Mtp::Drop).unwrap();
    let subject = Subject { path: Path::new(BF16), model: &model };
    let texts = [Text::read(Path::new(HELDOUT)).unwrap()];
    let hour = Some(std::time::Duration::from_secs(3600));
    let options = Options { time_limit: hour, chunks: Some(20), ..Options::default() };
    // Four chunks come first, and pass three layers and the output.
    let first = 4 * 512 * 4;
    let found = |work: u64, options: &Options| {
        measure::perplexity(subject, &texts, options, &StopsAfter(0.into(), work))
    };
    let part = found(first + 1, &options).unwrap();
    assert_eq!((part.complete, part.chunks, part.chunks_available), (false, 4, 20));
    assert_eq!(part.own.nll_per_chunk.len(), 4);
    assert!(found(first / 2, &options).is_err(), "there is nothing yet");
    let all = found(u64::MAX, &options).unwrap();
    assert_eq!((all.complete, all.chunks), (true, 20));
    let plain = Options { time_limit: None, ..options.clone() };
    assert_eq!(found(u64::MAX, &plain).unwrap().own.mean_nll, all.own.mean_nll);
    // Where no limit is given, eight come first, and as many as there are already after them.
    let part = found(2 * first + 1, &plain).unwrap();
    assert_eq!((part.complete, part.chunks, part.chunks_available), (false, 8, 20));
    assert_eq!(part.own.nll_per_chunk[..], all.own.nll_per_chunk[..8]);
    let short = Options { time_limit: Some(std::time::Duration::from_nanos(1)), ..options.clone() };
    let error = found(u64::MAX, &short).unwrap_err().to_string();
    assert!(error.contains("time limit"), "{error}");

    let limits = Limits { kl: Some(1e-12), ..Limits::default() };
    let terms = Terms { limits, confidence: 0.99 };
    let gate = |work: u64| {
        let stops = StopsAfter(0.into(), work);
        measure::gate(Against::Model(subject), &[subject], &texts, terms, &plain, &stops).unwrap()
    };
    let judged = gate(0);
    assert_eq!((judged.verdict, judged.complete, judged.chunks), (Verdict::Undecided, false, 0));
}
