//! Runs that are stopped at any point and by anything: the same call goes on, and ends with the
//! same bytes.

mod common;

use common::failing::{Failing, run_on_failing_disks};
use common::{Copy, TINY_R1, contents, settings};
use requant::convert::{ConvertError, Limit, Plan, RunOptions, Shard, SplitBy};
use requant::model::{CheckpointModel, Mtp};
use requant::recipe::{FileType, Recipe};
use std::collections::BTreeMap;
use std::io;
use std::path::Path;
use std::sync::Arc;

fn plan(model: &CheckpointModel) -> Plan {
    let limit = Limit::Bytes(1_000_000);
    let split = Some(SplitBy::Limit { limit, no_tensor_first: true });
    Plan::of_checkpoint(model, &requant::convert::Settings { split, ..settings(FileType::Q8_0) })
        .unwrap()
}

fn uninterrupted(model: &CheckpointModel) -> BTreeMap<String, Vec<u8>> {
    let dir = tempfile::tempdir().unwrap();
    plan(model).run(model, &dir.path().join("out.gguf"), RunOptions::default(), &()).unwrap();
    contents(dir.path())
}

#[test]
fn a_failing_disk_loses_nothing_that_was_written() {
    let model = CheckpointModel::open(Path::new(TINY_R1), Mtp::Drop).unwrap();
    let expected = uninterrupted(&model);
    assert!(expected.contains_key("out-00001-of-00017.gguf"));
    let plan = plan(&model);
    for kind in [io::ErrorKind::StorageFull, io::ErrorKind::Other] {
        // From the first operation on, then later and later, until nothing fails.
        for step in [3, 40] {
            let dir = tempfile::tempdir().unwrap();
            let output = dir.path().join("out.gguf");
            let run = |options: RunOptions| plan.run(&model, &output, options, &());
            let journal = "out.gguf.journal";
            let stopped = run_on_failing_disks(kind, step, dir.path(), journal, &expected, run);
            assert!(stopped > 0);
            assert!(contents(dir.path()) == expected, "{kind} after each {step} operations");
        }
    }
}

#[test]
fn what_the_journal_claims_is_checked() {
    let model = CheckpointModel::open(Path::new(TINY_R1), Mtp::Drop).unwrap();
    let expected = uninterrupted(&model);
    let plan = plan(&model);
    let dir = tempfile::tempdir().unwrap();
    let output = dir.path().join("out.gguf");
    let stop_after = |operations| {
        let disk = Failing::after(operations, io::ErrorKind::Other);
        let options = RunOptions { disk: &disk, ..RunOptions::default() };
        plan.run(&model, &output, options, &()).unwrap_err()
    };
    assert!(matches!(stop_after(200), ConvertError::Stopped { .. }));
    let journal = dir.path().join("out.gguf.journal");
    let lines = std::fs::read_to_string(&journal).unwrap();
    assert!(lines.lines().count() > 5, "{lines}");
    // Power was cut: pages of the parts are lost, the journal ends within a line and in zeros.
    for (name, mut bytes) in contents(dir.path()) {
        if name.ends_with("17.gguf.part") || name.ends_with("03-of-00017.gguf.part") {
            bytes[1000..].fill(0);
            std::fs::write(dir.path().join(name), bytes).unwrap();
        }
    }
    let torn = [&lines.as_bytes()[..lines.len() - 5], &[0; 20]].concat();
    std::fs::write(&journal, torn).unwrap();
    plan.run(&model, &output, RunOptions::default(), &()).unwrap();
    assert!(contents(dir.path()) == expected);
}

#[test]
fn a_journal_of_another_run_is_refused() {
    let copy = Copy::new();
    let open = || CheckpointModel::open(copy.path(), Mtp::Drop).unwrap();
    let dir = tempfile::tempdir().unwrap();
    let output = dir.path().join("out.gguf");
    let settings = settings(FileType::Q8_0);
    let run = |settings: &requant::convert::Settings, options: RunOptions| {
        let model = open();
        Plan::of_checkpoint(&model, settings).unwrap().run(&model, &output, options, &())
    };
    let disk = Failing::after(60, io::ErrorKind::Other);
    let failing = RunOptions { disk: &disk, ..RunOptions::default() };
    assert!(matches!(run(&settings, failing), Err(ConvertError::Stopped { .. })));
    let before = contents(dir.path());
    let refused = |settings: &requant::convert::Settings, because: &str| {
        let error = run(settings, RunOptions::default()).unwrap_err().to_string();
        assert!(error.contains(because), "{error}");
        assert!(contents(dir.path()) == before, "nothing is touched");
    };
    refused(
        &requant::convert::Settings {
            recipe: Recipe::of(FileType::Q4_0).into(),
            ..settings.clone()
        },
        "other options",
    );
    // The same bytes, written again: how could one know?
    copy.edit("model-00002-of-00003.safetensors", |_| ());
    refused(&settings, "one has changed");
    let restart = RunOptions { restart: true, ..RunOptions::default() };
    run(&settings, restart).unwrap();
    assert_eq!(contents(dir.path()).len(), 1);
}

#[test]
fn a_run_in_use_is_left_alone() {
    let model = CheckpointModel::open(Path::new(TINY_R1), Mtp::Drop).unwrap();
    let dir = tempfile::tempdir().unwrap();
    let output = dir.path().join("out.gguf");
    let journal = std::fs::File::create(dir.path().join("out.gguf.journal")).unwrap();
    journal.lock().unwrap();
    let error = plan(&model).run(&model, &output, RunOptions::default(), &()).unwrap_err();
    assert!(matches!(error, ConvertError::InUse { .. }), "{error}");
}

#[test]
fn shares_make_up_what_one_machine_writes() {
    let model = CheckpointModel::open(Path::new(TINY_R1), Mtp::Drop).unwrap();
    let limit = Limit::Tensors(5);
    let split = Some(SplitBy::Limit { limit, no_tensor_first: false });
    let settings = requant::convert::Settings { split, ..settings(FileType::Q4_K_M) };
    let plan = Plan::of_checkpoint(&model, &settings).unwrap();
    let whole = tempfile::tempdir().unwrap();
    plan.run(&model, &whole.path().join("out"), RunOptions::default(), &()).unwrap();
    assert_eq!(contents(whole.path()).len(), 11);
    for count in [1, 3, 4, 20] {
        let dir = tempfile::tempdir().unwrap();
        let mut files = Vec::new();
        for number in (1..=count).rev() {
            let shard = Shard::new(number, count);
            files.push(plan.files_of(shard));
            let options = RunOptions { shard, ..RunOptions::default() };
            plan.run(&model, &dir.path().join("out"), options, &()).unwrap();
        }
        assert_eq!(files.last().unwrap().start, 0, "the metadata is the first share's");
        assert!(contents(dir.path()) == contents(whole.path()), "{count} shares");
    }
}

#[test]
#[cfg(all(feature = "cli", unix))]
fn a_killed_process_goes_on_where_it_was() {
    use assert_cmd::cargo::CommandCargoExt;
    use std::process::{Command, Stdio};
    use std::time::Duration;

    let command = |dir: &Path| {
        let mut command = Command::cargo_bin("requant").unwrap();
        // The slowest instructions, so that there is time to kill.
        let options = ["-t", "Q5_K_M", "--threads", "1", "--simd", "portable", "-q"];
        command.args(["convert", TINY_R1, dir.join("out.gguf").to_str().unwrap()]).args(options);
        command.stderr(Stdio::null());
        command
    };
    let whole = tempfile::tempdir().unwrap();
    let started = std::time::Instant::now();
    assert!(command(whole.path()).status().unwrap().success());
    let time = started.elapsed();
    let expected = contents(whole.path());
    for round in 0..3 {
        let dir = tempfile::tempdir().unwrap();
        let mut kills = 0;
        loop {
            let mut child = command(dir.path()).spawn().unwrap();
            // Moments spread over the whole run, and beyond it in the end.
            let share = (round * 7 + kills * 5) % 11 + kills / 4;
            std::thread::sleep(Duration::from_secs_f64(time.as_secs_f64() * share as f64 / 11.0));
            child.kill().unwrap();
            let ended = child.wait().unwrap();
            if ended.success() {
                break;
            }
            assert_eq!(ended.code(), None, "killed, not failed");
            assert!(!dir.path().join("out.gguf").exists() || contents(dir.path()).len() > 1);
            kills += 1;
            assert!(kills < 200, "no progress");
        }
        assert!(contents(dir.path()) == expected, "after {kills} kills");
    }
}

#[test]
#[cfg(feature = "eval")]
fn evaluations_on_a_failing_disk_go_on_and_find_the_same() {
    use requant::eval::{Collector, EvalError, Model, PerplexityOptions, Scratch};
    use requant::eval::{collect, drafts, perplexity};
    let opened = requant::model::Model::open(Path::new(TINY_R1), Mtp::Keep).unwrap();
    let model = || Model::new(opened.hparams(), opened.source()).unwrap();
    let tokens: Vec<u32> = (0..6 * 64).map(|i| 5 + i * i * 7 % 2000).collect();
    let scored = |options: &PerplexityOptions| {
        Ok(format!("{:?}", perplexity(&model(), &tokens, options, &())?.nll))
    };
    let drafted =
        |options: &PerplexityOptions| Ok(format!("{:?}", drafts(&model(), &tokens, options, &())?));
    let collected = |options: &PerplexityOptions| {
        let collector = Collector::new(opened.source());
        let mut observed = model();
        observed.observe(&collector);
        collect(&observed, &collector, None, true, &tokens, options, &())?;
        drop(observed);
        Ok(format!("{:?}", collector.finish()))
    };
    type Evaluation<'a> = &'a dyn Fn(&PerplexityOptions) -> Result<String, EvalError>;
    // Batches of one chunk.
    let options = PerplexityOptions { ctx: 64, memory: 1, ..PerplexityOptions::default() };
    let evaluations: [(Evaluation, _); 4] = [
        (&scored, io::ErrorKind::StorageFull),
        (&scored, io::ErrorKind::Other),
        (&drafted, io::ErrorKind::Other),
        (&collected, io::ErrorKind::Other),
    ];
    for (evaluation, kind) in evaluations {
        let expected = evaluation(&options).unwrap();
        let dir = tempfile::tempdir().unwrap();
        for stopped in 0.. {
            let disk = Arc::new(Failing::after(7 * (stopped + 1), kind));
            let scratch = Scratch::on(disk, dir.path());
            let options = PerplexityOptions { scratch: Some(scratch.clone()), ..options.clone() };
            match evaluation(&options) {
                Ok(found) => {
                    assert!(found == expected && stopped > 3, "after {stopped} failures");
                    assert_eq!(scratch.finish(), (0, 0));
                    break;
                }
                Err(error) => {
                    let (full, error) = (kind == io::ErrorKind::StorageFull, error.to_string());
                    assert_eq!(error.contains("the disk is full"), full, "{error}");
                    let files = [".states", ".journal", ".seen"];
                    assert!(files.iter().any(|file| error.contains(file)), "{error}");
                }
            }
            assert!(stopped < 100, "no progress");
        }
        assert!(contents(dir.path()).is_empty(), "nothing is left");
    }
}
