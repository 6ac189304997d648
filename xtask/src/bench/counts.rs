//! Instructions a record by step of the hot path, counted by callgrind: a regression shows on a noisy machine too.
//!
//! Each step runs over a short and over a long log. What the longer one costs more, by the records it has more, is the
//! step without start and end of the process. The engine's own share is what its stage has more than the parser's.

use std::path::Path;
use std::process::Command;

use anyhow::{Context, Result};

use super::Bench;
use super::stages::Stages;
use super::table::{Row, Target};
use super::traffic::Plan;
use crate::lab::run;
use crate::setup;

/// Past the warm-up of 120 s; every client comes six times a minute.
const SHORT: Plan = Plan { lines: 320_000, clients: 20_000, per_second: 2_000, in_turn: false };
const LONG: Plan = Plan { lines: 420_000, ..SHORT };

/// What each step may cost, in instructions a record: 5 % above what it was when it was last looked at.
const PARSE: f64 = 792.0;
const ENGINE: f64 = 948.0;
const REPLAY: f64 = 1738.0;

/// Adds the rows of this part.
///
/// # Errors
/// When valgrind is unavailable or a step fails under it.
pub fn measure(bench: &mut Bench, yes: bool) -> Result<()> {
    setup::packages("counting instructions", &[setup::package("valgrind", "valgrind")], yes)?;
    let stages = Stages::build()?;
    let parse = per_record(|log| stages.command("parse", log))?;
    let engine = per_record(|log| stages.command("engine", log))?;
    let bare = per_record(|log| stages.command("serde_json", log))?;
    let whole = per_record(|log| {
        let mut command = Command::new(&bench.binary);
        command.arg("replay").arg("--json").arg(log);
        command
    })?;
    let how = format!(
        "callgrind, {} lines less {}, by the difference; {} clients, past the warm-up",
        LONG.lines, SHORT.lines, LONG.clients
    );
    for (what, value, target, how) in [
        ("parse, the lines' ends found", parse, Target::AtMost(PARSE), how.as_str()),
        ("engine", engine - parse, Target::AtMost(ENGINE), "stage engine less stage parse"),
        ("whole replay", whole, Target::AtMost(REPLAY), "the release program, reading included"),
        ("bare serde_json, for comparison", bare, Target::None, "stage serde_json, newlines by memchr"),
    ] {
        let (what, how) = (format!("a record under callgrind: {what}"), how.into());
        bench.table.add(Row { part: "counts", what, value, unit: "instructions", target, how });
    }
    Ok(())
}

fn per_record(command: impl Fn(&Path) -> Command) -> Result<f64> {
    let short = instructions(&command(&SHORT.file()?))?;
    let long = instructions(&command(&LONG.file()?))?;
    Ok((long as f64 - short as f64) / (LONG.lines - SHORT.lines) as f64)
}

/// All instructions of a command's process.
fn instructions(command: &Command) -> Result<u64> {
    let log = super::dir()?.join("callgrind.log");
    let mut valgrind = Command::new("valgrind");
    valgrind.args(["--tool=callgrind", "--callgrind-out-file=/dev/null"]).arg(format!("--log-file={}", log.display()));
    run(valgrind.arg(command.get_program()).args(command.get_args()))?;
    let said = std::fs::read_to_string(&log).with_context(|| log.display().to_string())?;
    std::fs::remove_file(&log)?;
    // `==123== Collected : 456`
    let collected = said.lines().find_map(|line| line.split_once("Collected :").map(|(_, count)| count.trim()));
    collected.with_context(|| format!("callgrind told no count: {said}"))?.parse().context("no count")
}
