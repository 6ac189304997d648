//! What takes long: soak, kills, stories of a log, a flood of addresses. Runs the tests of `tests/torture` (and the tail's
//! model) for as long as is asked, side by side, and prints their figures.
//!
//! Daemon and tests run from copies, so that building meanwhile does not disturb them.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Child, Command};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use serde_json::Value;

use crate::cargo::{build_daemon, build_tests, root};
use crate::lab::{self, clock};
use crate::setup::{self, package};

/// Soak, kill -9, stories of a log, a flood of addresses: for as long as you like, with a table at the end. Needs root.
#[derive(clap::Args)]
pub struct Args {
    /// Length of the soak; the number of kills (8 a minute) and of stories goes with it.
    #[arg(long, default_value_t = 10, value_parser = clap::value_parser!(u32).range(1..=10_000))]
    minutes: u32,
    /// Kills with -9, instead of 8 a minute.
    #[arg(long)]
    kills: Option<u32>,
    /// Seed of everything random; by default another one each time. It is printed.
    #[arg(long)]
    seed: Option<u64>,
    /// Only these: soak, kills, stories, flood.
    #[arg(long, value_name = "WHICH", value_parser = ["soak", "kills", "stories", "flood"])]
    only: Vec<String>,
    /// Install what is missing without asking.
    #[arg(long)]
    yes: bool,
}

/// One of the tortures.
struct Torture {
    name: &'static str,
    /// Tests, by the beginning of their names.
    tests: &'static [&'static str],
    environment: Vec<(&'static str, String)>,
}

/// Runs the task.
pub fn run(args: &Args) -> Result<()> {
    if !rustix::process::geteuid().is_root() {
        bail!("torture needs root, for network namespaces and XDP; as root: cargo xtask torture");
    }
    setup::packages("the lab of the tests", setup::LAB, args.yes)?;
    setup::packages("torture", &[package("ipset", "ipset"), package("gzip", "gzip")], args.yes)?;
    lab::available()?;
    let seed = args.seed.unwrap_or_else(|| clock::epoch_secs() % 1_000_000);
    eprintln!("Building daemon (with optimisation) and tests; then {} minutes, seed {seed}.", args.minutes);
    let dir = root().join(format!("target/torture-{}", std::process::id()));
    fs::create_dir_all(&dir)?;
    let copies = (copy(&build_daemon(true)?, &dir)?, copy(&build_tests()?, &dir)?);
    let outcome = torture(args, seed, &dir, &copies);
    // What they printed is only of interest where one failed.
    if outcome.is_ok() {
        fs::remove_dir_all(&dir)?;
    }
    outcome
}

fn torture(args: &Args, seed: u64, dir: &Path, (daemon, tests): &(PathBuf, PathBuf)) -> Result<()> {
    let figures = dir.join("figures.jsonl");
    let minutes = args.minutes;
    let kills = args.kills.unwrap_or(minutes.saturating_mul(500).div_ceil(60));
    let all = [
        Torture {
            name: "soak",
            tests: &["torture::soak"],
            environment: vec![("ANOMALY_SOAK_SECS", (u64::from(minutes) * 60).to_string())],
        },
        Torture { name: "kills", tests: &["torture::kills"], environment: vec![("ANOMALY_KILLS", kills.to_string())] },
        Torture {
            name: "stories",
            tests: &["tail::model", "store_crash"],
            environment: vec![
                ("ANOMALY_TAIL_STORIES", minutes.saturating_mul(1_000).to_string()),
                ("ANOMALY_TAIL_SEED", seed.to_string()),
                ("ANOMALY_TEST_KILLS", kills.to_string()),
            ],
        },
        Torture {
            name: "flood",
            tests: &["torture::flood"],
            environment: vec![("ANOMALY_FLOOD_ADDRESSES", "12000000".into())],
        },
    ];
    let mut running = Vec::new();
    for torture in all {
        if !args.only.is_empty() && !args.only.iter().any(|word| word == torture.name) {
            continue;
        }
        let output = fs::File::create(dir.join(format!("{}.out", torture.name)))?;
        let mut command = Command::new(tests);
        command.args(torture.tests).args(["--nocapture", "--test-threads", "1"]);
        // A skipped test would be a figure that is missing.
        command.env("CI", "1").env("ANOMALY_TORTURE_BINARY", daemon).env("ANOMALY_FIGURES", &figures);
        command.env("ANOMALY_SEED", seed.to_string()).envs(torture.environment);
        command.current_dir(root().join("anomaly")).stdout(output.try_clone()?).stderr(output);
        let child = command.spawn().context("the tests could not be started")?;
        running.push(Running { name: torture.name, child, began: clock::now() });
    }
    let mut failed = Vec::new();
    let mut told = clock::now();
    while !running.is_empty() {
        std::thread::sleep(Duration::from_millis(500));
        for mut one in std::mem::take(&mut running) {
            match one.child.try_wait()? {
                None => running.push(one),
                Some(status) => {
                    let took = one.began.elapsed().as_secs();
                    eprintln!("{} after {took} s: {}", one.name, if status.success() { "passed" } else { "FAILED" });
                    if !status.success() {
                        failed.push(one.name);
                    }
                }
            }
        }
        if told.elapsed() > Duration::from_secs(60) {
            told = clock::now();
            for one in &running {
                let last = fs::read_to_string(dir.join(format!("{}.out", one.name))).unwrap_or_default();
                eprintln!("  {}: {}", one.name, last.lines().next_back().unwrap_or_default());
            }
        }
    }
    table(&figures);
    for name in &failed {
        let output = fs::read_to_string(dir.join(format!("{name}.out"))).unwrap_or_default();
        let lines: Vec<&str> = output.lines().collect();
        eprintln!("\n== {name} failed\n{}", lines[lines.len().saturating_sub(40)..].join("\n"));
    }
    if !failed.is_empty() {
        bail!("{} failed; all output is in {}; again with --seed {seed}", failed.join(", "), dir.display());
    }
    Ok(())
}

struct Running {
    name: &'static str,
    child: Child,
    began: Instant,
}

impl Drop for Running {
    fn drop(&mut self) {
        // Where we end early; the lab's guardian then removes what it made.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

fn copy(program: &Path, dir: &Path) -> Result<PathBuf> {
    let to = dir.join(program.file_name().context("a program without a name")?);
    fs::copy(program, &to).with_context(|| program.display().to_string())?;
    Ok(to)
}

fn table(figures: &Path) {
    let text = fs::read_to_string(figures).unwrap_or_default();
    let rows: BTreeMap<String, (u64, String)> = text
        .lines()
        .filter_map(|line| serde_json::from_str::<Value>(line).ok())
        .filter_map(|row| Some((row["what"].as_str()?.into(), (row["seed"].as_u64()?, row["figure"].as_str()?.into()))))
        .collect();
    println!("\n| what | seed | figure |\n|---|--:|---|");
    for (what, (seed, figure)) in rows {
        println!("| {what} | {seed} | {figure} |");
    }
}
