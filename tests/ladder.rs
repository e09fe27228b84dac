//! Several outputs in one pass: each is as if written by itself, wherever the pass is stopped, and the source
//! is read once.

mod common;

use common::failing::{Failing, run_on_failing_disks};
use common::{BF16, TINY_R1, contents, requant, settings};
use requant::convert::{
    ConvertError, Importance, Ladder, Limit, Plan, RunOptions, Rung, Settings, Shard, SplitBy,
};
use requant::imatrix::Imatrix;
use requant::model::{CheckpointModel, Mtp};
use requant::recipe::{FileType, Recipe};
use requant::source::{GgufSource, Source, SourceError, SourceFile, Storage, TensorMeta};
use std::collections::BTreeMap;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

/// One that the source has, one of halves, mixes that share types, and one that asks for importances.
const TYPES: [&str; 6] = ["BF16", "Q8_0", "Q4_0", "Q4_K_M", "Q4_K_S", "IQ2_XXS"];

fn open() -> CheckpointModel {
    CheckpointModel::open(Path::new(TINY_R1), Mtp::Drop).unwrap()
}

fn base(split: Option<SplitBy>) -> Settings {
    let file = "tests/fixtures/reference/imatrix.gguf";
    let imatrix = Arc::new(Imatrix::open(Path::new(file)).unwrap());
    let mut settings = Settings { split, ..settings(FileType::Q8_0) };
    settings.options.imatrix = true;
    settings.importance = Some(Importance { imatrix, file: file.to_owned() });
    settings
}

fn limit(limit: Limit) -> Option<SplitBy> {
    Some(SplitBy::Limit { limit, no_tensor_first: false })
}

fn plans(types: &[&str], base: &Settings, plan: impl Fn(&Settings) -> Plan) -> Vec<Plan> {
    let of = |name: &&str| {
        let recipe = Arc::new(Recipe::of(name.parse().unwrap()));
        plan(&Settings { recipe, ..base.clone() })
    };
    types.iter().map(of).collect()
}

/// Types that take little time, of a model that is split.
fn quick(model: &CheckpointModel, split: Option<SplitBy>) -> Vec<Plan> {
    let settings = Settings { split, ..settings(FileType::Q8_0) };
    let plan = |settings: &Settings| Plan::of_checkpoint(model, settings).unwrap();
    plans(&["BF16", "Q8_0", "Q4_0"], &settings, plan)
}

fn paths(plans: &[Plan], dir: &Path) -> Vec<PathBuf> {
    plans.iter().map(|plan| dir.join(format!("{}.gguf", plan.recipe().name()))).collect()
}

fn ladder<'a>(plans: &'a [Plan], paths: &'a [PathBuf], dir: &Path) -> Ladder<'a> {
    let rungs = plans.iter().zip(paths).map(|(plan, output)| Rung { plan, output });
    Ladder::new(rungs.collect(), dir).unwrap()
}

/// What single runs write.
fn single_runs(plans: &[Plan], source: &dyn Source) -> BTreeMap<String, Vec<u8>> {
    let dir = tempfile::tempdir().unwrap();
    for (plan, path) in plans.iter().zip(paths(plans, dir.path())) {
        plan.run(source, &path, RunOptions::default(), &()).unwrap();
    }
    contents(dir.path())
}

#[track_caller]
fn assert_same(plans: &[Plan], source: &dyn Source) {
    let dir = tempfile::tempdir().unwrap();
    let names = paths(plans, dir.path());
    let ladder = ladder(plans, &names, dir.path());
    ladder.run(source, RunOptions::default(), &()).unwrap();
    assert!(contents(dir.path()).len() >= plans.len());
    assert!(contents(dir.path()) == single_runs(plans, source));
}

#[test]
fn each_file_is_that_of_its_own_run() {
    let model = open();
    let gguf = GgufSource::open(Path::new(BF16)).unwrap();
    let of_model = |settings: &Settings| Plan::of_checkpoint(&model, settings).unwrap();
    let of_gguf = |settings: &Settings| Plan::of_gguf(&gguf, settings).unwrap();
    assert_same(&plans(&TYPES, &base(None), of_model), &model);
    assert_same(&plans(&TYPES, &base(limit(Limit::Bytes(1_000_000))), of_gguf), &gguf);
    assert_same(&quick(&model, limit(Limit::Tensors(7))), &model);
}

/// A source that counts what is read.
struct Counting<'a>(&'a CheckpointModel, AtomicU64);

impl Storage for Counting<'_> {
    fn files(&self) -> Vec<SourceFile> {
        self.0.files()
    }
}

impl Source for Counting<'_> {
    fn tensors(&self) -> &[TensorMeta] {
        self.0.tensors()
    }

    fn read_rows(&self, tensor: usize, first: u64, out: &mut [f32]) -> Result<(), SourceError> {
        self.1.fetch_add(out.len() as u64, Ordering::Relaxed);
        self.0.read_rows(tensor, first, out)
    }
}

#[test]
fn the_source_is_read_once_and_memory_follows_from_the_number_of_types() {
    let model = open();
    let plans = quick(&model, None);
    let counting = Counting(&model, AtomicU64::new(0));
    let dir = tempfile::tempdir().unwrap();
    let names = paths(&plans, dir.path());
    let all = ladder(&plans, &names, dir.path());
    all.run(&counting, RunOptions::default(), &()).unwrap();
    assert_eq!(counting.1.into_inner(), plans[0].n_weights());
    let sum: u64 = plans.iter().map(Plan::peak_memory).sum();
    assert!(all.peak_memory() < sum, "{} < {sum}", all.peak_memory());
    // Fewer threads where units of all outputs would not fit.
    let memory = Some(plans[0].peak_memory());
    let tight = [FileType::BF16, FileType::Q8_0, FileType::Q4_0].map(|file_type| {
        let recipe = Arc::new(Recipe::of(file_type));
        let settings = Settings { recipe, memory, ..settings(file_type) };
        Plan::of_checkpoint(&model, &settings).unwrap()
    });
    assert_eq!((tight[0].threads(), ladder(&tight, &names, dir.path()).threads()), (2, 1));
}

#[test]
fn a_failing_disk_loses_nothing_that_was_written() {
    let model = open();
    let plans = quick(&model, limit(Limit::Bytes(2_000_000)));
    let expected = single_runs(&plans, &model);
    let dir = tempfile::tempdir().unwrap();
    let names = paths(&plans, dir.path());
    let ladder = ladder(&plans, &names, dir.path());
    let run = |options: RunOptions| ladder.run(&model, options, &());
    let (kind, journal) = (io::ErrorKind::Other, "ladder.journal");
    let stopped = run_on_failing_disks(kind, 45, dir.path(), journal, &expected, run);
    assert!(stopped > 3 && contents(dir.path()) == expected, "after {stopped}");
}

#[test]
fn names_are_given_to_the_rest_and_what_is_lost_is_made_again() {
    let model = open();
    let plans = quick(&model, None);
    let expected = single_runs(&plans, &model);
    for lost in [None, Some("BF16.gguf.part"), Some("Q4_0.gguf")] {
        let dir = tempfile::tempdir().unwrap();
        let names = paths(&plans, dir.path());
        let ladder = ladder(&plans, &names, dir.path());
        let naming = Failing::naming(2);
        let error = ladder.run(&model, RunOptions { disk: &naming, ..RunOptions::default() }, &());
        assert!(matches!(error, Err(ConvertError::Stopped { .. })));
        let there: Vec<String> = contents(dir.path()).into_keys().collect();
        assert_eq!(there, ["BF16.gguf.part", "Q4_0.gguf", "Q8_0.gguf", "ladder.journal"]);
        if let Some(lost) = lost {
            std::fs::remove_file(dir.path().join(lost)).unwrap();
        }
        let counting = Counting(&model, AtomicU64::new(0));
        ladder.run(&counting, RunOptions::default(), &()).unwrap();
        assert!(contents(dir.path()) == expected);
        assert_eq!(counting.1.into_inner() > 0, lost.is_some());
    }
}

#[test]
fn shares_make_up_what_one_machine_writes() {
    let model = open();
    let plans = quick(&model, limit(Limit::Tensors(5)));
    let dir = tempfile::tempdir().unwrap();
    let names = paths(&plans, dir.path());
    let ladder = ladder(&plans, &names, dir.path());
    for number in 1..=3 {
        let options = RunOptions { shard: Shard::new(number, 3), ..RunOptions::default() };
        ladder.run(&model, options, &()).unwrap();
    }
    assert!(contents(dir.path()) == single_runs(&plans, &model));
}

#[test]
fn what_cannot_be_written_together_is_refused() {
    let model = open();
    let plan = |settings: &Settings| Plan::of_checkpoint(&model, settings).unwrap();
    let whole = plan(&settings(FileType::Q8_0));
    let pruned = plan(&Settings { prune_layers: vec![2], ..settings(FileType::Q8_0) });
    let [one, two] = ["one", "two"].map(Path::new);
    let refused = |rungs: &[(&Plan, &Path)]| {
        let rungs = rungs.iter().map(|&(plan, output)| Rung { plan, output });
        Ladder::new(rungs.collect(), Path::new("")).map(|_| ()).unwrap_err().to_string()
    };
    let error = refused(&[(&whole, one), (&pruned, two)]);
    assert!(error.starts_with("two: has `blk.2."), "{error}");
    assert_eq!(
        refused(&[(&whole, one), (&whole, one)]),
        "one: would be written twice; ask for each type once"
    );
    assert_eq!(refused(&[]), "no output is asked for; name a type at least");
}

#[test]
#[cfg(feature = "cli")]
fn the_program_writes_a_folder() {
    let dir = tempfile::tempdir().unwrap();
    let path = |name: &str| dir.path().join(name).to_str().unwrap().to_owned();
    let (folder, single) = (path("gguf"), path("single.gguf"));
    let types = ["--types", "Q8_0,q4_k_m", "-q"];
    let more = ["--manifest", "--json"];
    let (code, json, error) =
        requant(&[&["convert", TINY_R1, &folder], &types[..], &more].concat());
    assert_eq!(code, 0, "{error}");
    let json: serde_json::Value = serde_json::from_str(&json).unwrap();
    let found = contents(Path::new(&folder));
    let names: Vec<&str> = found.keys().map(String::as_str).collect();
    let manifest = |name: &str| format!("{name}.manifest.json");
    let files = ["tiny-r1-Q4_K_M.gguf", "tiny-r1-Q8_0.gguf"];
    let of = |name: &str| [name.to_owned(), manifest(name), format!("{name}.sha256")];
    assert_eq!(names, files.map(of).concat());
    assert_eq!(json["outputs"][1]["bytes"], found[files[0]].len());
    let run = requant(&["convert", TINY_R1, &single, "-t", "Q4_K_M", "-q", "--manifest"]);
    assert_eq!(run.0, 0, "{}", run.2);
    let hashed = |text: &[u8]| {
        let json: serde_json::Value = serde_json::from_slice(text).unwrap();
        (json["inputs"].clone(), json["outputs"][0]["sha256"].clone())
    };
    let of_single = std::fs::read(manifest(&single)).unwrap();
    assert_eq!(hashed(&found[&manifest(files[0])]), hashed(&of_single));
    let run = requant(&["quantize", BF16, &path("of"), "--types", "Q4_K_M,IQ4_XS", "-q"]);
    assert_eq!(run.0, 0, "{}", run.2);
    let of = contents(Path::new(&path("of")));
    assert_eq!(of.keys().collect::<Vec<_>>(), ["tiny-r1-IQ4_XS.gguf", "tiny-r1-Q4_K_M.gguf"]);
    let plan = requant(&["plan", TINY_R1, &path("none"), "--types", "Q8_0,Q4_K_M", "--json", "-q"]);
    let plan: serde_json::Value = serde_json::from_str(&plan.1).unwrap();
    assert_eq!((&plan["bytes"], &plan["outputs"]), (&json["bytes"], &plan["outputs"]));
    assert!(plan["estimated_seconds"].as_f64().unwrap() > 0.0);
    // Refused, with nothing left.
    let with = ["--calibrate", common::CALIBRATION];
    let run = requant(&[&["convert", TINY_R1, &path("no")], &types[..], &with].concat());
    assert!(run.0 == 1 && run.2.contains("one output at a time"), "{}", run.2);
    let run = requant(&["convert", TINY_R1, &path("no"), "--types", "Q8_0,Q8_0"]);
    assert!(run.0 == 1 && run.2.contains("written twice"), "{}", run.2);
    assert!(!Path::new(&path("no")).exists() && !Path::new(&path("none")).exists());
}

#[test]
#[cfg(feature = "cli")]
fn a_folder_gets_a_page_with_what_is_known_of_it() {
    let dir = tempfile::tempdir().unwrap();
    let path = |name: &str| dir.path().join(name).to_str().unwrap().to_owned();
    let folder = path("R1-GGUF");
    let types = ["--types", "Q8_0,Q4_0,Q4_K_M", "--split-max-size", "4M", "-q", "--manifest"];
    let run = requant(&[&["convert", TINY_R1, &folder], &types[..]].concat());
    assert_eq!(run.0, 0, "{}", run.2);
    let models: Vec<String> = contents(Path::new(&folder))
        .into_keys()
        .filter(|name| name.contains("-00001-of-") && name.ends_with(".gguf"))
        .map(|name| format!("{folder}/{name}"))
        .collect();
    assert_eq!(models.len(), 3);
    let names: Vec<&str> = models.iter().map(String::as_str).collect();
    let plot = path("plot.svg");
    let more = ["--text", common::HELDOUT, "--chunks", "2", "--json", "--plot", &plot, "-q"];
    let (code, json, error) = requant(&[&["compare", TINY_R1], &names[..], &more].concat());
    assert_eq!(code, 0, "{error}");
    let found: serde_json::Value = serde_json::from_str(&json).unwrap();
    let kl = |i: usize| &found["models"][i]["result"]["kl_divergence"]["mean"]["value"];
    assert!(found["models"].as_array().unwrap().iter().any(|model| model["front"] == true));
    let picture = std::fs::read_to_string(&plot).unwrap();
    assert!(picture.contains(">Q4_K_M</text>"));
    // Errors are by chunk, as in the table and on the page.
    let divergence = &found["models"][0]["result"]["kl_divergence"];
    let by_chunk = divergence["mean_error_by_chunk"].as_f64().unwrap();
    let says = format!("{:.6} ± {by_chunk:.6}<", kl(0).as_f64().unwrap());
    assert!(picture.contains(&says), "{says}: {picture}");
    let quality = path("quality.json");
    std::fs::write(&quality, &json).unwrap();
    let options = ["--quality", &quality, "--base-model", "deepseek-ai/DeepSeek-R1", "-q"];
    let publish = [&["publish", &folder], &options[..]].concat();
    let run = requant(&publish);
    assert_eq!(run.0, 0, "{}", run.2);
    let page = std::fs::read_to_string(format!("{folder}/README.md")).unwrap();
    let (front, text) = page.strip_prefix("---\n").unwrap().split_once("---\n").unwrap();
    let yaml = yaml_rust2::YamlLoader::load_from_str(front).unwrap();
    assert_eq!(yaml[0]["base_model"].as_str(), Some("deepseek-ai/DeepSeek-R1"));
    assert!(yaml[0]["quantized_by"].is_null() && yaml[0]["license"].is_null(), "{front}");
    let measured = format!(" {:.5} ± ", kl(0).as_f64().unwrap());
    assert!(text.contains(&measured) && text.contains("](quality.svg)"), "{text}");
    assert!(text.contains("requant convert tiny-r1 R1-GGUF --types Q8_0,Q4_0,Q4_K_M"), "{text}");
    // Checksums are those of the files, and the program that everybody has agrees.
    let sums = std::fs::read_to_string(format!("{folder}/SHA256SUMS")).unwrap();
    let n_files = contents(Path::new(&folder)).into_keys().filter(|n| n.ends_with(".gguf")).count();
    assert_eq!(sums.lines().count(), n_files);
    if cfg!(unix) {
        let mut check = std::process::Command::new("sha256sum");
        let check = check.args(["-c", "--quiet", "SHA256SUMS"]).current_dir(&folder).output();
        assert!(check.is_ok_and(|check| check.status.success()));
    }
    let again = requant(&publish);
    assert!(again.0 == 1 && again.2.contains("--force"), "{}", again.2);
    assert_eq!(requant(&[&publish[..], &["--force"]].concat()).0, 0);
    // Of files that were not measured there is no picture.
    std::fs::write(&quality, r#"{"models": []}"#).unwrap();
    std::fs::remove_file(format!("{folder}/quality.svg")).unwrap();
    let run = requant(&[&publish[..], &["--force"]].concat());
    assert_eq!(run.0, 0, "{}", run.2);
    let page = std::fs::read_to_string(format!("{folder}/README.md")).unwrap();
    assert!(!page.contains("quality.svg") && !Path::new(&folder).join("quality.svg").exists());
}
