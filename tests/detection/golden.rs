//! A golden file of decisions: what `anomaly replay --json` says of the log of each scenario, byte for byte.

use std::path::Path;
use std::process::Command;

use super::scenario;
use crate::golden::same;

/// Larger than what a test should write and read: their decisions are held by what they expect.
const TOO_LONG: &[&str] = &["busy_site_grows", "daily_cycle", "new_level_is_accepted"];

/// Decisions, and the summary without what depends on the machine.
pub fn timeless(text: &str) -> String {
    let lines = text.lines().map(|line| match line.split_once(",\"elapsed_secs\"") {
        Some((summary, _)) => format!("{summary}}}}}\n"),
        None => format!("{line}\n"),
    });
    lines.collect()
}

#[test]
fn golden_replay_of_scenarios() {
    let dir = Path::new(env!("CARGO_MANIFEST_DIR")).join("../tests/scenarios");
    let mut files: Vec<_> = std::fs::read_dir(dir).expect("the scenarios").flatten().map(|e| e.path()).collect();
    files.sort();
    let logs = tempfile::tempdir().expect("a directory");
    let mut text = String::new();
    for file in files {
        let name = file.file_stem().expect("a name").to_string_lossy().into_owned();
        if TOO_LONG.contains(&&*name) {
            continue;
        }
        let log = logs.path().join(&name);
        std::fs::write(&log, scenario::log(&std::fs::read_to_string(&file).expect("a scenario"))).expect("written");
        let output = Command::new(env!("CARGO_BIN_EXE_anomaly"))
            .args(["-c", "/dev/null", "replay", "--json"])
            .arg(&log)
            .output();
        let output = output.expect("started");
        assert!(output.status.success(), "{name}: {output:?}");
        text += &format!("# {name}\n{}", timeless(&String::from_utf8(output.stdout).expect("UTF-8")));
    }
    same("replay.txt", &text);
}
