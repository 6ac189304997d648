//! Runs the detector over real traces with injected attackers, and scores it beside two simple references.
//!
//! The traces come with two tools: `inject.py` adds attackers and heavy honest clients with known truth, `score.py`
//! judges decisions by that truth. Here they are run for every trace and seed, and one table is printed.

mod log;
mod plot;
mod references;

use std::collections::BTreeMap;
use std::fs::File;
use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, bail, ensure};
use serde_json::Value;

use references::Reference;

/// Runs the detector over real traces with injected attackers, and scores it.
#[derive(clap::Args)]
pub struct Args {
    /// Directory with the traces (NAME.json.gz, NAME.labels.json), inject.py and score.py; else ANOMALY_TRACES says.
    #[arg(long)]
    data: Option<PathBuf>,
    /// Seeds of inject.py: `1..5` or `1,2,7`.
    #[arg(long, default_value = "1..5")]
    seeds: String,
    /// Only these traces, separated by commas.
    #[arg(long, value_delimiter = ',')]
    traces: Vec<String>,
    /// Attackers and honest clients of each kind (inject.py's --copies).
    #[arg(long, default_value_t = 3)]
    copies: u32,
    /// Writes a plot of the clients' activity with the limits drawn in.
    #[arg(long)]
    plot: Option<PathBuf>,
    /// Keeps the injected traces here and uses those that are there already.
    #[arg(long)]
    keep: Option<PathBuf>,
    /// Only the detector, without the references.
    #[arg(long)]
    quick: bool,
    /// Install what is missing without asking.
    #[arg(long)]
    yes: bool,
}

/// What a detector reached on one trace, over all seeds.
#[derive(Default)]
struct Tally {
    /// Kind of attacker -> (banned, of, the worst seed's median seconds).
    attackers: BTreeMap<String, (u64, u64, f64)>,
    early: u64,
    honest: (u64, u64),
    hot: (u64, u64),
    others: (u64, u64),
    /// Kind of label -> (banned, of).
    labelled: BTreeMap<String, (u64, u64)>,
    global_anomalies: u64,
    seeds: u64,
}

/// Runs the task.
///
/// # Errors
/// When the traces or Python are missing, or a run fails.
pub fn run(args: &Args) -> Result<()> {
    crate::setup::packages("eval", &[crate::setup::package("python3", "python3")], args.yes)?;
    let data = args.data.clone().or_else(|| std::env::var_os("ANOMALY_TRACES").map(PathBuf::from));
    let data = data.context("say where the traces are, with --data or ANOMALY_TRACES")?;
    let data = data.canonicalize().with_context(|| data.display().to_string())?;
    let seeds = parse_seeds(&args.seeds)?;
    let traces = traces(&data, &args.traces)?;
    let status = Command::new(env!("CARGO")).args(["build", "--release", "-p", "anomaly"]).status()?;
    ensure!(status.success(), "anomaly could not be built");
    let anomaly = crate::cargo::target_dir().join("release/anomaly");
    let work = args.keep.clone().unwrap_or_else(|| crate::cargo::target_dir().join("eval"));
    std::fs::create_dir_all(&work).with_context(|| work.display().to_string())?;
    let mut rows = Vec::new();
    for trace in &traces {
        let mut tallies: Vec<(&str, Tally)> = vec![("anomaly", Tally::default())];
        if !args.quick {
            tallies.extend(Reference::ALL.map(|r| (r.name(), Tally::default())));
        }
        for seed in &seeds {
            let case = Case { data: &data, work: &work, trace, seed: *seed, copies: args.copies };
            case.inject()?;
            for (i, (name, tally)) in tallies.iter_mut().enumerate() {
                let decisions = work.join(format!("{trace}.{seed}.{i}.decisions.jsonl"));
                match i.checked_sub(1).map(|i| Reference::ALL[i]) {
                    None => replay(&anomaly, &case.log(), &decisions)?,
                    Some(reference) => reference.run(&case.log(), &decisions)?,
                }
                let score = case.score(&decisions).with_context(|| format!("{name} on {trace}, seed {seed}"))?;
                tally.add(&score);
                std::fs::remove_file(&decisions)?;
            }
            eprintln!("{trace}, seed {seed}: done");
        }
        if args.plot.is_some() && !seeds.is_empty() {
            let case = Case { data: &data, work: &work, trace, seed: seeds[0], copies: args.copies };
            rows.push(plot::Panel::read(trace, &case.log(), &case.truth(), &case.labels())?);
        }
        if args.keep.is_none() {
            for seed in &seeds {
                let case = Case { data: &data, work: &work, trace, seed: *seed, copies: args.copies };
                std::fs::remove_file(case.log())?;
                std::fs::remove_file(case.truth())?;
            }
        }
        print_trace(trace, &tallies);
    }
    if let Some(path) = &args.plot {
        std::fs::write(path, plot::svg(&rows)).with_context(|| path.display().to_string())?;
    }
    Ok(())
}

fn parse_seeds(text: &str) -> Result<Vec<u64>> {
    if let Some((from, to)) = text.split_once("..") {
        let (from, to): (u64, u64) = (from.parse()?, to.trim_start_matches('=').parse()?);
        ensure!(from <= to, "no seeds in {text}");
        return Ok((from..=to).collect());
    }
    text.split(',').map(|s| s.trim().parse().with_context(|| format!("{s:?} is no seed"))).collect()
}

fn traces(data: &Path, wanted: &[String]) -> Result<Vec<String>> {
    let mut found = Vec::new();
    for entry in std::fs::read_dir(data)? {
        let name = entry?.file_name().to_string_lossy().into_owned();
        if let Some(trace) = name.strip_suffix(".json.gz") {
            found.push(trace.to_owned());
        }
    }
    found.sort();
    if let Some(missing) = wanted.iter().find(|w| !found.contains(w)) {
        bail!("no trace {missing} in {}", data.display());
    }
    ensure!(!found.is_empty(), "no traces in {}", data.display());
    Ok(if wanted.is_empty() { found } else { wanted.to_vec() })
}

/// One trace with one seed.
struct Case<'a> {
    data: &'a Path,
    work: &'a Path,
    trace: &'a str,
    seed: u64,
    copies: u32,
}

impl Case<'_> {
    fn log(&self) -> PathBuf {
        self.work.join(format!("{}.{}.json", self.trace, self.seed))
    }

    fn truth(&self) -> PathBuf {
        self.work.join(format!("{}.{}.truth.json", self.trace, self.seed))
    }

    fn labels(&self) -> PathBuf {
        self.data.join(format!("{}.labels.json", self.trace))
    }

    fn inject(&self) -> Result<()> {
        if self.log().exists() && self.truth().exists() {
            return Ok(());
        }
        let part = self.work.join("injected.part");
        let status = Command::new("python3")
            .arg(self.data.join("inject.py"))
            .arg(self.data.join(format!("{}.json.gz", self.trace)))
            .args([&part, &self.truth()])
            .args(["--seed", &self.seed.to_string(), "--copies", &self.copies.to_string()])
            .stdout(std::process::Stdio::null())
            .status()
            .context("python3")?;
        ensure!(status.success(), "inject.py failed");
        Ok(std::fs::rename(part, self.log())?)
    }

    fn score(&self, decisions: &Path) -> Result<Value> {
        let output = Command::new("python3")
            .arg(self.data.join("score.py"))
            .args([decisions, &self.log(), &self.truth()])
            .arg("--labels")
            .arg(self.labels())
            .arg("--json")
            .output()
            .context("python3")?;
        ensure!(output.status.success(), "score.py: {}", String::from_utf8_lossy(&output.stderr).trim());
        // Where nobody of a kind was banned, the median is Python's NaN, which is no JSON.
        Ok(serde_json::from_str(&String::from_utf8_lossy(&output.stdout).replace("NaN", "null"))?)
    }
}

fn replay(anomaly: &Path, log: &Path, decisions: &Path) -> Result<()> {
    let out = File::create(decisions)?;
    // Defaults only: whatever is configured on this machine must not count.
    let mut empty = decisions.to_path_buf();
    empty.set_extension("toml");
    File::create(&empty)?.write_all(b"")?;
    let status =
        Command::new(anomaly).arg("-c").arg(&empty).args(["replay", "--json"]).arg(log).stdout(out).status()?;
    std::fs::remove_file(empty)?;
    ensure!(status.success(), "anomaly replay failed");
    Ok(())
}

impl Tally {
    fn add(&mut self, score: &Value) {
        let number = |v: &Value| v.as_u64().unwrap_or(0);
        let len = |v: &Value| v.as_array().map_or(0, |a| a.len() as u64);
        self.seeds += 1;
        for (kind, a) in score["attackers"].as_object().into_iter().flatten() {
            let entry = self.attackers.entry(kind.clone()).or_default();
            entry.0 += number(&a["banned"]);
            entry.1 += number(&a["of"]);
            entry.2 = entry.2.max(a["median_seconds"].as_f64().unwrap_or(0.0));
        }
        self.early += len(&score["banned_early"]);
        self.honest.0 += len(&score["honest_banned"]);
        self.honest.1 += number(&score["honest"]);
        self.hot.0 += number(&score["benign_hot_banned"]);
        self.hot.1 += number(&score["benign_hot"]);
        self.others.0 += number(&score["other_clients_banned"]);
        self.others.1 += number(&score["other_clients"]);
        for (kind, pair) in score["labelled"].as_object().into_iter().flatten() {
            let entry = self.labelled.entry(kind.clone()).or_default();
            entry.0 += number(&pair[0]);
            entry.1 += number(&pair[1]);
        }
        self.global_anomalies += number(&score["global_anomalies"]);
    }
}

fn print_trace(trace: &str, tallies: &[(&str, Tally)]) {
    let names: Vec<&str> = tallies.iter().map(|(name, _)| *name).collect();
    println!("\n| {trace} ({} seeds) | {} |", tallies[0].1.seeds, names.join(" | "));
    println!("|---|{}", "---|".repeat(tallies.len()));
    let row = |name: &str, cell: &dyn Fn(&Tally) -> String| {
        let cells: Vec<String> = tallies.iter().map(|(_, tally)| cell(tally)).collect();
        println!("| {name} | {} |", cells.join(" | "));
    };
    for kind in tallies[0].1.attackers.keys() {
        row(kind, &|t| {
            let (banned, of, median) = t.attackers.get(kind).copied().unwrap_or_default();
            if banned == 0 { format!("0/{of}") } else { format!("{banned}/{of}, {median:.0} s") }
        });
    }
    row("banned before the onset", &|t| t.early.to_string());
    row("injected honest clients banned", &|t| format!("{}/{}", t.honest.0, t.honest.1));
    row("benign_hot banned", &|t| format!("{}/{} ({:.2} %)", t.hot.0, t.hot.1, share(t.hot, 100.0)));
    row("others banned per 10,000", &|t| format!("{:.2}", share(t.others, 10_000.0)));
    for kind in tallies[0].1.labelled.keys() {
        row(&format!("labelled {kind}"), &|t| {
            let pair = t.labelled.get(kind).copied().unwrap_or_default();
            format!("{}/{} ({:.0} %)", pair.0, pair.1, share(pair, 100.0))
        });
    }
    row("global anomalies per seed", &|t| format!("{:.0}", t.global_anomalies as f64 / t.seeds.max(1) as f64));
}

fn share((part, of): (u64, u64), per: f64) -> f64 {
    if of == 0 { 0.0 } else { part as f64 * per / of as f64 }
}
