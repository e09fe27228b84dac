//! What several integration tests need.
#![allow(dead_code)]

pub mod failing;

use assert_cmd::cargo::CommandCargoExt;
use requant::convert::{Plan, RunOptions, Settings};
use requant::gguf::GgufFile;
use requant::model::{CheckpointModel, Mtp};
use requant::recipe::FileType;
use sha2::{Digest, Sha256};
use std::path::{Path, PathBuf};

pub const TINY_R1: &str = "tests/fixtures/tiny-r1";
pub const HELDOUT: &str = "tests/fixtures/text/heldout.txt";
pub const CALIBRATION: &str = "tests/fixtures/text/calibration.txt";
pub const BF16: &str = "tests/fixtures/reference/tiny-r1-bf16.gguf";

pub fn settings(file_type: FileType) -> Settings {
    Settings { threads: 2, ..Settings::new(file_type) }
}

pub fn convert(settings: &Settings, output: &Path) {
    let model = CheckpointModel::open(Path::new(TINY_R1), Mtp::Drop).unwrap();
    let plan = Plan::of_checkpoint(&model, settings).unwrap();
    plan.run(&model, output, RunOptions::default(), &()).unwrap();
    assert_eq!(std::fs::metadata(output).unwrap().len(), plan.file_size());
}

/// Type and SHA-256 of every tensor of a file, in its order.
pub fn hashes(path: &Path) -> Vec<(String, String, String)> {
    let file = GgufFile::open(path).unwrap();
    (0..file.tensors().len())
        .map(|i| {
            let info = &file.tensors()[i];
            let hash = Sha256::digest(file.tensor_data(i));
            let hash = hash.iter().map(|b| format!("{b:02x}")).collect();
            (info.name.clone(), info.ty.to_string(), hash)
        })
        .collect()
}

/// Mean KL divergences of models from a reference, on the first chunks of text that nothing was made with.
pub fn divergences(reference: &Path, models: &[&Path]) -> Vec<f64> {
    let mut command = std::process::Command::cargo_bin("requant").unwrap();
    command.args(["--log-level", "error", "compare", "--json", "--chunks", "12"]);
    let output = command.args(["--text", HELDOUT]).arg(reference).args(models).output().unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let json: serde_json::Value = serde_json::from_slice(&output.stdout).unwrap();
    let models = json["models"].as_array().unwrap();
    let mean =
        |model: &serde_json::Value| model["result"]["kl_divergence"]["mean"]["value"].as_f64();
    models.iter().map(|model| mean(model).unwrap()).collect()
}

/// What a command printed as JSON, without how it came by it: when it ran and with which arguments. Nothing where
/// nothing was printed.
pub fn result(json: &str) -> serde_json::Value {
    let mut value = match json.is_empty() {
        true => serde_json::Value::Null,
        false => serde_json::from_str(json).unwrap(),
    };
    value.as_object_mut().map(|object| object.remove("run"));
    value
}

/// Names and contents of a folder.
pub fn contents(dir: &Path) -> std::collections::BTreeMap<String, Vec<u8>> {
    let entries = std::fs::read_dir(dir).unwrap().map(|entry| entry.unwrap());
    entries
        .map(|e| (e.file_name().into_string().unwrap(), std::fs::read(e.path()).unwrap()))
        .collect()
}

pub fn json(path: &str) -> serde_json::Value {
    serde_json::from_slice(&std::fs::read(path).unwrap()).unwrap()
}

/// Exit code, standard output and standard error of the program.
pub fn requant(args: &[&str]) -> (i32, String, String) {
    let run = std::process::Command::cargo_bin("requant").unwrap().args(args).output().unwrap();
    let text = |bytes| String::from_utf8(bytes).unwrap();
    (run.status.code().unwrap(), text(run.stdout), text(run.stderr))
}

/// A value against one of the schemas in docs/schema.
pub fn validate(schema: &str, value: &serde_json::Value) {
    let schema = json(&format!("docs/schema/{schema}.json"));
    let validator = jsonschema::validator_for(&schema).unwrap();
    let errors: Vec<String> = validator.iter_errors(value).map(|e| e.to_string()).collect();
    assert!(errors.is_empty(), "{errors:?}");
}

/// A copy of the fixture checkpoint to damage. Files are links until they are replaced.
pub struct Copy(tempfile::TempDir);

impl Copy {
    pub fn new() -> Self {
        let dir = tempfile::tempdir().unwrap();
        let source = std::fs::canonicalize(TINY_R1).unwrap();
        for entry in std::fs::read_dir(&source).unwrap() {
            let entry = entry.unwrap();
            let to = dir.path().join(entry.file_name());
            #[cfg(unix)]
            std::os::unix::fs::symlink(entry.path(), to).unwrap();
            // Elsewhere, links are for administrators.
            #[cfg(not(unix))]
            std::fs::copy(entry.path(), to).unwrap();
        }
        Self(dir)
    }

    pub fn path(&self) -> &Path {
        self.0.path()
    }

    pub fn file(&self, name: &str) -> PathBuf {
        self.0.path().join(name)
    }

    pub fn remove(&self, name: &str) {
        std::fs::remove_file(self.file(name)).unwrap();
    }

    /// Replaces a file by an edited copy.
    pub fn edit(&self, name: &str, edit: impl FnOnce(&mut Vec<u8>)) {
        let mut bytes = std::fs::read(self.file(name)).unwrap();
        edit(&mut bytes);
        self.remove(name);
        std::fs::write(self.file(name), bytes).unwrap();
    }

    /// Replaces text in a file.
    pub fn replace(&self, name: &str, from: &str, to: &str) {
        self.edit(name, |bytes| {
            let at = bytes.windows(from.len()).position(|w| w == from.as_bytes()).unwrap();
            bytes.splice(at..at + from.len(), to.bytes());
        });
    }

    /// Overwrites bytes of a tensor's data, from `at` on.
    pub fn poke(&self, shard: &str, tensor: &str, at: usize, value: &[u8]) {
        self.edit(shard, |bytes| {
            let length = u64::from_le_bytes(bytes[..8].try_into().unwrap()) as usize;
            let header: serde_json::Value = serde_json::from_slice(&bytes[8..8 + length]).unwrap();
            let start = header[tensor]["data_offsets"][0].as_u64().unwrap() as usize;
            let at = 8 + length + start + at;
            bytes[at..at + value.len()].copy_from_slice(value);
        });
    }
}
