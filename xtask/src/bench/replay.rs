//! `anomaly replay` over fixed logs, against a bare parse of the same bytes in the same run.

use std::path::Path;
use std::process::Command;

use anyhow::{Context, Result};
use serde_json::Value;

use super::stages::Stages;
use super::table::{Row, Target};
use super::{Bench, best_and_median, size, traffic, usage};

/// Runs of everything; they take turns, so that a noisy moment hits all alike.
const RUNS: usize = 7;
const MIB: f64 = 1_048_576.0;

/// Adds the rows of this part.
///
/// # Errors
/// When something cannot be built or run.
pub fn measure(bench: &mut Bench) -> Result<()> {
    let stages = Stages::build()?;
    usual(bench, &stages)?;
    distinct(bench, &stages)
}

/// One run of `anomaly replay`.
struct Replayed {
    secs: f64,
    cpu_secs: f64,
    wall_secs: f64,
    peak_bytes: f64,
    summary: Value,
}

fn replay(binary: &Path, log: &Path) -> Result<Replayed> {
    let ended = usage::run(Command::new(binary).arg("replay").arg("--json").arg(log), None)?;
    let last: Value = serde_json::from_str(ended.output.lines().last().context("replay printed nothing")?)?;
    let summary = last["summary"].clone();
    Ok(Replayed {
        secs: summary["elapsed_secs"].as_f64().context("the summary has no elapsed_secs")?,
        cpu_secs: ended.cpu.as_secs_f64(),
        wall_secs: ended.wall.as_secs_f64(),
        peak_bytes: ended.peak_bytes as f64,
        summary,
    })
}

/// Records a second of a few replays of a log, the best of them.
///
/// # Errors
/// When it cannot be replayed.
pub fn records_per_second(binary: &Path, log: &Path) -> Result<f64> {
    let runs = (0..3).map(|_| replay(binary, log)).collect::<Result<Vec<_>>>()?;
    let records = runs[0].summary["records"].as_f64().context("the summary has no records")?;
    Ok(records / best_and_median(runs.iter().map(|run| run.secs).collect()).0)
}

fn usual(bench: &mut Bench, stages: &Stages) -> Result<()> {
    let log = traffic::USUAL.file()?;
    let lines = traffic::USUAL.lines as f64;
    let (mut split, mut parse, mut runs) = (Vec::new(), Vec::new(), Vec::new());
    for _ in 0..RUNS {
        split.push(stages.secs("split", &log)?);
        parse.push(stages.secs("serde_json", &log)?);
        runs.push(replay(&bench.binary, &log)?);
    }
    let (secs, median) = best_and_median(runs.iter().map(|run| run.secs).collect());
    let (cpu, _) = best_and_median(runs.iter().map(|run| run.cpu_secs).collect());
    let (wall, _) = best_and_median(runs.iter().map(|run| run.wall_secs).collect());
    let (split, _) = best_and_median(split);
    let (bare, bare_median) = best_and_median(parse);
    let run = &runs[0].summary;
    bench.table.add(Row {
        part: "replay",
        what: "replay, 1,000,000 lines of 20,000 addresses".into(),
        value: lines / secs,
        unit: "records/s",
        target: Target::AtLeast(4e6),
        how: format!(
            "elapsed_secs of its summary, best of {RUNS} ({:.0} median); whole process {wall:.3} s, CPU {cpu:.3} s; {:.0} MB in the page cache; {} bans, {} tracked",
            lines / median,
            size(&log)? as f64 / 1e6,
            run["bans"],
            run["tracked_ips_peak"],
        ),
    });
    bench.table.add(Row {
        part: "replay",
        what: "the same, time against a bare borrowed serde_json parse".into(),
        value: secs / bare,
        unit: "x",
        target: Target::AtMost(1.0),
        how: format!(
            "same bytes, same run, best of {RUNS} each ({:.2} by medians): {secs:.3} s with reading the file, the parse {bare:.3} s with the file in memory",
            median / bare_median
        ),
    });
    for (what, secs) in [("bare serde_json into six borrowed strings", bare), ("newline split alone (memchr)", split)] {
        bench.table.add(Row {
            part: "replay",
            what: format!("for comparison: {what}"),
            value: lines / secs,
            unit: "lines/s",
            target: Target::None,
            how: format!("benches/stages, the file in memory, best of {RUNS}"),
        });
    }
    Ok(())
}

fn distinct(bench: &mut Bench, stages: &Stages) -> Result<()> {
    let log = traffic::DISTINCT.file()?;
    let lines = traffic::DISTINCT.lines as f64;
    let mut runs = Vec::new();
    for _ in 0..RUNS {
        runs.push(replay(&bench.binary, &log)?);
    }
    let (secs, median) = best_and_median(runs.iter().map(|run| run.secs).collect());
    let peak = runs.iter().map(|run| run.peak_bytes).fold(0.0, f64::max);
    let tracked = &runs[0].summary["tracked_ips_peak"];
    bench.table.add(Row {
        part: "replay",
        what: "replay, 1,000,000 addresses in the window".into(),
        value: lines / secs,
        unit: "records/s",
        target: Target::AtLeast(1.5e6),
        how: format!(
            "as above; each of {lines} lines is of an address that was not seen before, {tracked} tracked; {:.0} median",
            lines / median
        ),
    });
    let engine = stages.run("engine", &log)?;
    let (heap, tracked) = (engine["heap_bytes"].as_f64(), engine["tracked"].as_f64());
    bench.table.add(Row {
        part: "replay",
        what: "the same, heap of a tracked address".into(),
        value: heap.zip(tracked).map_or(f64::NAN, |(heap, tracked)| heap / tracked),
        unit: "bytes",
        target: Target::AtMost(160.0),
        how: "Engine::heap_bytes (tables at their capacity, and what hangs on them) by tracked addresses".into(),
    });
    bench.table.add(Row {
        part: "replay",
        what: "the same, most resident memory".into(),
        value: peak / MIB,
        unit: "MiB",
        target: Target::AtMost(220.0),
        how: format!("ru_maxrss of the process, the worst of {RUNS}"),
    });
    Ok(())
}
