//! Rounding that a text calibrates, on the fixture: R1's shape in small, with routed and shared experts,
//! latent attention and tensors of every width.

#![cfg(feature = "cli")]

mod common;

use assert_cmd::cargo::CommandCargoExt;
use requant::calibrate::{self, Calibration, InputsOf, Outcome};
use requant::convert::{ConvertError, Plan, RunOptions, Settings};
use requant::eval::{PerplexityOptions, Scratch};
use requant::gguf::GgufFile;
use requant::measure::{self, Options, Subject, Text};
use requant::model::{Model, Mtp};
use requant::monitor::Monitor;
use requant::quant::QuantType;
use requant::recipe::FileType;
use requant::simd::Simd;
use requant::source::GgufSource;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::atomic::{AtomicU64, Ordering};

fn original() -> PathBuf {
    reference("tiny-r1-bf16.gguf")
}

fn reference(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures/reference").join(name)
}

fn requant(level: &str) -> Command {
    let mut command = Command::cargo_bin("requant").unwrap();
    command.args(["--log-level", level]);
    command
}

fn text(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures/text").join(name)
}

/// Counts tokens times layers, and cancels after so many.
struct Until(AtomicU64, u64);

impl Monitor for Until {
    fn advance(&self, amount: u64) {
        self.0.fetch_add(amount, Ordering::Relaxed);
    }

    fn cancelled(&self) -> bool {
        self.0.load(Ordering::Relaxed) >= self.1
    }
}

/// Whose inputs count, and the memory for moments: enough for all columns with each other.
const ROUNDED: (InputsOf, u64) = (InputsOf::Rounded, 1 << 30);

/// Quantizes the fixture with a few chunks of text.
fn quantize(
    output: &Path,
    file_type: FileType,
    (inputs, memory): (InputsOf, u64),
    threads: usize,
    until: u64,
) -> Result<Outcome, ConvertError> {
    let (path, model) = (original(), Model::open(&original(), Mtp::Drop).unwrap());
    let subject = Subject { path: &path, model: &model };
    let tokens = Text::read(&text("calibration.txt")).unwrap().tokens(subject, None, &()).unwrap();
    let source = GgufSource::open(&path).unwrap();
    let mut settings = Settings { threads, ..Settings::new(file_type) };
    // Embeddings are no products, and their errors would hide all others.
    settings.options.imatrix = true;
    settings.options.token_embedding_type = Some(QuantType::Q8_0);
    let plan = Plan::of_gguf(&source, &settings).unwrap();
    let folder = output.parent().unwrap();
    let calibration = Calibration {
        hparams: model.hparams(),
        tokens: &tokens.tokens,
        text: PerplexityOptions {
            ctx: 256,
            chunks: Some(8),
            bos: tokens.bos,
            memory: 1 << 22,
            scratch: Some(Scratch::new(folder)),
        },
        folder,
        inputs,
        memory,
        rows: 1 << 30,
        damping: 0.01,
        sweeps: 1,
        simd: Simd::detect(),
    };
    let until = Until(AtomicU64::new(0), until);
    calibrate::run(
        &plan,
        model.source(),
        output,
        RunOptions::default(),
        &calibration,
        [&until, &(), &()],
    )
}

#[test]
fn files_are_closer_to_the_original_and_no_larger() {
    let folder = tempfile::tempdir().unwrap();
    let path = |name: &str| folder.path().join(name);
    for file_type in [FileType::Q4_K_M, FileType::IQ2_XS] {
        let outcome = quantize(&path("own.gguf"), file_type, ROUNDED, 2, u64::MAX).unwrap();
        for tensor in &outcome.tensors {
            let Some([reference, own]) = tensor.errors else { panic!("{tensor:?}") };
            assert!(own <= reference, "{tensor:?}");
            assert!(tensor.ways.values().sum::<u64>() > 0);
        }
        // Every matrix of every layer that is quantized, and the output.
        let model = GgufFile::open(&path("own.gguf")).unwrap();
        let quantized =
            model.tensors().iter().filter(|t| t.ty.known().is_some_and(|ty| ty.is_quantized()));
        assert_eq!(outcome.tensors.len(), quantized.count() - 1, "all but the embedding");
        let mut command = requant("error");
        command
            .arg("quantize")
            .arg(original())
            .arg(path("reference.gguf"))
            .arg(file_type.to_string());
        command.args(["--token-embedding-type", "q8_0"]);
        if file_type == FileType::IQ2_XS {
            command.arg("--imatrix").arg(reference("imatrix.gguf"));
        }
        assert!(command.status().unwrap().success());
        let found = common::divergences(&original(), &[&path("reference.gguf"), &path("own.gguf")]);
        assert!(found[1] < 0.9 * found[0], "{file_type} {found:?}");
        let size = |name: &str| path(name).metadata().unwrap().len();
        assert!(size("own.gguf") <= size("reference.gguf"));
        for name in ["own.gguf", "reference.gguf"] {
            std::fs::remove_file(path(name)).unwrap();
        }
        assert_eq!(std::fs::read_dir(folder.path()).unwrap().count(), 0, "nothing is left");
    }
}

#[test]
fn neither_threads_nor_interruptions_change_a_byte() {
    let folder = tempfile::tempdir().unwrap();
    let mut files: Vec<Vec<u8>> = Vec::new();
    // Where memory is short, columns are cut into parts, whatever is left to be done.
    for inputs in [ROUNDED, (InputsOf::Original, 1 << 30), (InputsOf::Rounded, 2 << 20)] {
        let path = |name: &str| folder.path().join(name);
        let run = |name: &str, threads, until| {
            quantize(&path(name), FileType::Q3_K_M, inputs, threads, until)
        };
        run("whole.gguf", 2, u64::MAX).unwrap();
        let whole = std::fs::read(path("whole.gguf")).unwrap();
        assert!(!files.contains(&whole), "{inputs:?} makes a difference");
        let all = 2 * 8 * 256 * 3;
        let mut stopped = 0;
        for until in [5, 8, 10, 12, u64::MAX / all].map(|share| all / 16 * share) {
            assert!(!path("parts.gguf").exists());
            match run("parts.gguf", 1 + stopped % 2, until) {
                Err(ConvertError::Stopped { .. }) => stopped += 1,
                Ok(left) => {
                    assert!(left.tensors.len() < 30, "what was done is done");
                    break;
                }
                Err(error) => panic!("{error}"),
            }
        }
        assert!(stopped > 1, "{stopped}");
        assert!(std::fs::read(path("parts.gguf")).unwrap() == whole, "{inputs:?}");
        std::fs::remove_file(path("whole.gguf")).unwrap();
        std::fs::remove_file(path("parts.gguf")).unwrap();
        assert_eq!(std::fs::read_dir(folder.path()).unwrap().count(), 0, "nothing is left");
        files.push(whole);
    }
}

#[test]
fn the_command_says_what_it_did_and_refuses_what_it_cannot() {
    let folder = tempfile::tempdir().unwrap();
    let output = folder.path().join("out.gguf");
    let run = |options: &[&str]| {
        let mut command = requant("info");
        command.arg("quantize").arg(original()).arg(&output).arg("Q2_K").args(options);
        command.output().unwrap()
    };
    let calibration = text("calibration.txt");
    let calibration = calibration.to_str().unwrap();
    let done =
        run(&["--calibrate", calibration, "--calibrate-chunks", "2", "--calibrate-ctx", "128"]);
    let said = String::from_utf8_lossy(&done.stderr).into_owned();
    assert!(done.status.success() && said.contains("rounding: 34 tensors"), "{said}");
    let file = GgufFile::open(&output).unwrap();
    let metadata = file.metadata();
    assert_eq!(metadata.str("requant.rounding").unwrap(), Some("compensated"));
    assert_eq!(metadata.str("requant.calibration.file").unwrap(), Some("calibration.txt"));
    assert_eq!(metadata.u32("requant.calibration.chunks").unwrap(), Some(2));
    assert_eq!(metadata.str("requant.calibration.sha256").unwrap().map(str::len), Some(64));
    // Who measures it on that text is told.
    for (name, is_told) in [("calibration.txt", true), ("heldout.txt", false)] {
        let mut command = requant("warn");
        command.arg("perplexity").arg(&output).arg("--text").arg(text(name));
        let done = command.args(["--ctx", "32", "--chunks", "2"]).output().unwrap();
        let said = String::from_utf8_lossy(&done.stderr);
        assert!(done.status.success() && said.contains("calibrated with") == is_told, "{said}");
    }
    std::fs::remove_file(&output).unwrap();
    let short = folder.path().join("short.txt");
    std::fs::write(&short, "too short").unwrap();
    let missing = folder.path().join("missing.txt");
    let cases: [(&[&str], i32, &str); 4] = [
        (&["--calibrate", short.to_str().unwrap()], 1, "too few"),
        (&["--calibrate", missing.to_str().unwrap()], 1, "missing.txt"),
        (&["--rounding", "compensated"], 2, "--calibrate"),
        (&["--calibrate", calibration, "--rounding", "reference"], 2, "no meaning"),
    ];
    for (options, code, words) in cases {
        let done = run(options);
        let said = String::from_utf8_lossy(&done.stderr);
        assert!(done.status.code() == Some(code) && said.contains(words), "{options:?}: {said}");
        assert!(!output.exists());
    }
}

/// The measured perplexity is that of an ordinary file: what was rounded is what is written.
#[test]
fn what_is_written_is_what_the_walk_went_on_with() {
    let folder = tempfile::tempdir().unwrap();
    let output = folder.path().join("out.gguf");
    quantize(&output, FileType::Q8_0, ROUNDED, 2, u64::MAX).unwrap();
    let texts = [Text::read(&text("heldout.txt")).unwrap()];
    let options = Options { chunks: Some(2), ..Options::default() };
    let nll = |path: &Path| {
        let model = Model::open(path, Mtp::Drop).unwrap();
        let subject = Subject { path, model: &model };
        measure::perplexity(subject, &texts, &options, &()).unwrap().own.mean_nll
    };
    let (own, other) = (nll(&output), nll(&original()));
    assert!((own - other).abs() < 2e-3, "{own} {other}");
}

/// The layer for multi-token prediction is rounded with what goes into it, and drafts better for it.
#[test]
fn prediction_layers_are_rounded_with_their_own_inputs() {
    let folder = tempfile::tempdir().unwrap();
    let checkpoint = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures/tiny-r1");
    let nll = |name: &str, more: &[&str]| {
        let output = folder.path().join(name);
        let mut command = requant("error");
        command.arg("convert").arg(&checkpoint).arg(&output);
        command.args(["--type", "Q2_K", "--mtp", "keep", "--json"]).args(more);
        let done = command.output().unwrap();
        assert!(done.status.success(), "{}", String::from_utf8_lossy(&done.stderr));
        let json: serde_json::Value = serde_json::from_slice(&done.stdout).unwrap();
        let model = Model::open(&output, Mtp::Keep).unwrap();
        let (subject, text) = (Subject { path: &output, model: &model }, text("heldout.txt"));
        let options = Options { chunks: Some(4), ..Options::default() };
        let found = measure::drafts(subject, &Text::read(&text).unwrap(), &options, &()).unwrap();
        (found.nll, json["rounding"].clone())
    };
    let calibration = text("calibration.txt");
    let calibration = ["--calibrate", calibration.to_str().unwrap(), "--calibrate-chunks", "16"];
    let (plain, _) = nll("plain.gguf", &[]);
    for inputs in ["rounded", "original"] {
        let more = [&calibration[..], &["--calibrate-inputs", inputs]].concat();
        let (own, rounding) = nll(&format!("{inputs}.gguf"), &more);
        assert!(own < plain, "{inputs}: {own} {plain}");
        let rounding = rounding.as_array().unwrap();
        let of_layer = |t: &&serde_json::Value| t["name"].as_str().unwrap().starts_with("blk.3.");
        // All matrices but the router, and the embedding, which is no product.
        assert_eq!(rounding.iter().filter(of_layer).count(), 14);
        for tensor in rounding {
            assert!(tensor["error_ratio"].as_f64().unwrap() <= 1.0, "{tensor}");
        }
    }
}
