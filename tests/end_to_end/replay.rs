//! `anomaly replay --json` as scripts see it: documented rows, one summary, the same bytes every time.
//!
//! Runs without root. The real traces are tried too where they lie beside the repository, or where
//! `ANOMALY_TRACES` says; what is detected in them is `cargo xtask eval`'s matter.

use std::collections::BTreeMap;
use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, ensure};
use serde_json::Value;
use sha2::{Digest as _, Sha256};

use super::binary;
use crate::detection::golden::timeless as golden_text;
use crate::golden;
use crate::interfaces;
use crate::lab::history;

/// A Wednesday.
const NOON: u64 = 1_777_464_000;

fn replay(logs: &[&Path]) -> Result<String> {
    let output = Command::new(binary()).args(["replay", "--json"]).args(logs).output()?;
    ensure!(output.status.success(), "{}: {}", output.status, String::from_utf8_lossy(&output.stderr));
    Ok(String::from_utf8(output.stdout)?)
}

/// The rows, checked against the documentation, and the summary.
fn checked(text: &str) -> Result<(Vec<Value>, Value)> {
    let mut rows: Vec<Value> = Vec::new();
    for line in text.lines() {
        rows.push(serde_json::from_str(line).with_context(|| line.to_owned())?);
    }
    let mut last = rows.pop().context("no summary")?;
    let summary = last["summary"].take();
    for key in interfaces::SUMMARY {
        ensure!(summary[key].is_number(), "the summary lacks {key}: {summary}");
    }
    for row in &rows {
        let keys: &[&str] = match row["action"].as_str() {
            Some("ban") => interfaces::BAN,
            Some("unban") => interfaces::UNBAN,
            Some("global_anomaly") => interfaces::GLOBAL_ANOMALY,
            _ => anyhow::bail!("an undocumented row: {row}"),
        };
        for key in keys {
            ensure!(row.get(key).is_some(), "lacks {key}: {row}");
        }
        if let Some(baseline) = row.get("baseline") {
            ensure!(["scope", "mean", "stddev", "source"].iter().all(|key| baseline.get(key).is_some()), "{row}");
        }
    }
    let count = |action: &str| rows.iter().filter(|row| row["action"] == action).count() as u64;
    for (action, key) in [("ban", "bans"), ("unban", "unbans"), ("global_anomaly", "global_anomalies")] {
        ensure!(summary[key] == count(action), "{key}: {summary}, but {} rows", count(action));
    }
    Ok((rows, summary))
}

/// All but what depends on the machine.
fn timeless(text: &str) -> Result<String> {
    let (rows, mut summary) = checked(text)?;
    summary["elapsed_secs"].take();
    summary["records_per_sec"].take();
    let decisions = text.lines().take(rows.len()).collect::<Vec<_>>().join("\n");
    Ok(format!("{decisions}\n{summary}"))
}

/// Quiet traffic with a flood of 50 requests/s, for 100 s, 20 minutes in.
fn attacked() -> String {
    let mut lines: Vec<String> = history::quiet(NOON, 40, 0).lines().map(Into::into).collect();
    let attack = NOON - 20 * 60;
    for second in attack..attack + 100 {
        let line = history::line(second, "203.0.113.66", "/", 200).trim_end().to_owned();
        lines.extend(std::iter::repeat_n(line, 50));
    }
    lines.sort_by_key(|line| line.split("\"timestamp\":\"").nth(1).map(|rest| rest[..19].to_owned()));
    lines.push("not a record".into());
    lines.join("\n") + "\n"
}

#[test]
fn a_past_attack_gives_the_documented_rows_every_time() -> Result<()> {
    let dir = tempfile::tempdir()?;
    let log = dir.path().join("access.json");
    let text = attacked();
    std::fs::write(&log, &text)?;
    let first = replay(&[&log])?;
    let (rows, summary) = checked(&first)?;
    let ban = rows.iter().find(|row| row["action"] == "ban").context("no ban")?;
    ensure!(ban["ip"] == "203.0.113.66" && ban["offence"] == 1 && ban["duration_secs"] == 600, "{ban}");
    ensure!(rows.iter().filter(|row| row["action"] == "ban").count() == 1, "{first}");
    let unban = rows.iter().find(|row| row["action"] == "unban").context("no unban")?;
    let (banned, unbanned) = (seconds(&ban["time"])?, seconds(&unban["time"])?);
    ensure!(unbanned == banned + 600, "unbanned {} s after its ban", unbanned - banned);
    ensure!(summary["rejected"] == 1 && summary["records"] == text.lines().count() as u64 - 1, "{summary}");
    ensure!(summary["blocked"].as_u64() > Some(4000), "{summary}");
    ensure!(timeless(&first)? == timeless(&replay(&[&log])?)?, "the second run differs");

    // A compressed log and standard input give the same.
    let packed = dir.path().join("access.json.gz");
    let mut gzip = Command::new("gzip").arg("-k").arg(&log).spawn()?;
    ensure!(gzip.wait()?.success() && packed.exists());
    ensure!(timeless(&first)? == timeless(&replay(&[&packed])?)?, "compressed, it differs");
    let mut piped = Command::new(binary())
        .args(["replay", "--json", "-"])
        .stdin(std::process::Stdio::piped())
        .stdout(std::process::Stdio::piped())
        .spawn()?;
    let mut input = piped.stdin.take().context("stdin")?;
    let feeder = std::thread::spawn(move || input.write_all(text.as_bytes()));
    let output = piped.wait_with_output()?;
    feeder.join().map_err(|_| anyhow::anyhow!("the feeder panicked"))??;
    ensure!(timeless(&first)? == timeless(&String::from_utf8(output.stdout)?)?, "through a pipe, it differs");
    Ok(())
}

/// Seconds of the day of an RFC 3339 stamp.
fn seconds(stamp: &Value) -> Result<u64> {
    let text = stamp.as_str().context("a time")?;
    let part = |range: std::ops::Range<usize>| -> Result<u64> { Ok(text.get(range).context("a time")?.parse()?) };
    Ok(part(11..13)? * 3600 + part(14..16)? * 60 + part(17..19)?)
}

#[test]
fn real_traces_replay_as_the_golden_file_says() -> Result<()> {
    let beside = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../shared/data");
    let dir = std::env::var_os("ANOMALY_TRACES").map_or(beside, PathBuf::from);
    let Ok(entries) = std::fs::read_dir(&dir) else {
        // Not a skip that CI must fail for: the traces are not part of the repository.
        let _ = writeln!(std::io::stderr(), "real traces: SKIPPED, no traces in {}", dir.display());
        return Ok(());
    };
    let mut traces: Vec<PathBuf> =
        entries.flatten().map(|e| e.path()).filter(|p| p.to_string_lossy().ends_with(".json.gz")).collect();
    traces.sort();
    let mut digests = digests()?;
    for trace in traces {
        let text = replay(&[&trace])?;
        let (_, summary) = checked(&text)?;
        ensure!(summary["records"].as_u64() > Some(1000) && summary["rejected"] == 0, "{}: {summary}", trace.display());
        let name = trace.file_name().context("a name")?.to_string_lossy().into_owned();
        let digest: String = Sha256::digest(golden_text(&text)).iter().map(|byte| format!("{byte:02x}")).collect();
        let count = |key: &str| summary[key].as_u64().unwrap_or_default();
        let counts = format!("{} bans, {} global anomalies", count("bans"), count("global_anomalies"));
        digests.insert(name, format!("{digest} {counts}"));
    }
    // Lines of traces that are not here stay as they are.
    let text: String = digests.iter().map(|(name, digest)| format!("{name} {digest}\n")).collect();
    golden::same(DIGESTS, &text);
    Ok(())
}

/// SHA-256 of what is decided over each trace, and how much that is.
const DIGESTS: &str = "traces.txt";

/// The golden file's lines, by trace.
fn digests() -> Result<BTreeMap<String, String>> {
    let text = std::fs::read_to_string(golden::path(DIGESTS)).unwrap_or_default();
    text.lines().map(|line| line.split_once(' ').map(|(a, b)| (a.to_owned(), b.to_owned())).context("a line")).collect()
}
