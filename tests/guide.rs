//! Every command of docs/guide.md, in its order, on the fixture.
#![cfg(all(feature = "cli", unix))]

use assert_cmd::cargo::CommandCargoExt;
use std::os::unix::fs::symlink;
use std::path::Path;
use std::process::Command;

#[test]
fn every_command_of_the_guide_runs() {
    let dir = tempfile::tempdir().unwrap();
    let fixtures = Path::new("tests/fixtures").canonicalize().unwrap();
    for (name, file) in [
        ("DeepSeek-R1", "tiny-r1"),
        ("calibration.txt", "text/calibration.txt"),
        ("wiki.txt", "text/heldout.txt"),
    ] {
        symlink(fixtures.join(file), dir.path().join(name)).unwrap();
    }
    let task =
        "{\"context\": \"The sky is\", \"choices\": [\"blue.\", \"a fork.\"], \"answer\": 0}\n";
    std::fs::write(dir.path().join("tasks.jsonl"), task.repeat(3)).unwrap();
    let program = Command::cargo_bin("requant").unwrap();
    let folder = Path::new(program.get_program()).parent().unwrap();
    let path = format!("{}:{}", folder.display(), std::env::var("PATH").unwrap());
    let guide = std::fs::read_to_string("docs/guide.md").unwrap();
    let commands: Vec<&str> = guide.lines().filter_map(|line| line.strip_prefix("    ")).collect();
    assert!(commands.len() >= 12 && commands.iter().all(|c| c.starts_with("requant ")));
    for command in commands {
        let mut shell = Command::new("sh");
        let run = shell.args(["-c", command]).env("PATH", &path).current_dir(&dir).output();
        let run = run.unwrap();
        let err = String::from_utf8_lossy(&run.stderr);
        assert!(run.status.success(), "{command}\n{err}");
    }
}
