//! Measures, and prints one table of everything that was measured.
//!
//! Each part starts real processes (the release build of the daemon, Nginx, the peers), looks at them from outside, and
//! ends them, also when it fails. What is compared is measured in the same run; each row says how it was measured.

mod backlog;
mod counts;
mod flood;
mod latency;
mod peers;
mod prober;
mod program;
mod replay;
mod stages;
mod steady;
mod stored;
mod table;
mod traffic;
mod usage;
mod xdp;

use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail};

use crate::lab::Lab;
use crate::{cargo, lab, setup};
use table::Table;

/// Measures, and prints one table. Needs root for the parts with a daemon, and an idle machine.
#[derive(clap::Args)]
#[command(args_conflicts_with_subcommands = true)]
pub struct Args {
    #[command(subcommand)]
    what: Option<What>,
    /// Only these parts, separated by commas.
    #[arg(long, value_enum, value_delimiter = ',', value_name = "PART")]
    only: Vec<Part>,
    /// Others over the same log and under the same flood, too: fetches them from Debian, takes minutes.
    #[arg(long)]
    peers: bool,
    /// Measure this program instead of building the daemon.
    #[arg(long, value_name = "FILE")]
    binary: Option<PathBuf>,
    /// Also write the table to this file, in Markdown.
    #[arg(long, value_name = "FILE")]
    markdown: Option<PathBuf>,
    /// Also write the figures to this file, in JSON.
    #[arg(long, value_name = "FILE")]
    json: Option<PathBuf>,
    /// Install what is missing without asking.
    #[arg(long)]
    yes: bool,
}

#[derive(clap::Subcommand)]
enum What {
    Xdp(xdp::Args),
}

/// What can be measured by itself.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
enum Part {
    /// `replay` of a million lines, against serde_json; with a million addresses.
    Replay,
    /// Instructions a record, by step, under callgrind.
    Counts,
    /// The daemon's CPU and memory, idle and at 10,000 lines a second.
    Run,
    /// From a written line to the entry in the XDP map.
    Latency,
    /// From the first request of a flood to the first dropped packet.
    Flood,
    /// Five million lines after downtime.
    Backlog,
    /// 100,000 stored bans, enforced at the start.
    Stored,
    /// Size and start of the program.
    Program,
    /// Others over the same bytes; takes minutes.
    Peers,
    /// Until a flood is cut off, by others too; takes minutes.
    PeersFlood,
}

impl Part {
    const ALL: [Self; 8] =
        [Self::Replay, Self::Counts, Self::Run, Self::Latency, Self::Flood, Self::Backlog, Self::Stored, Self::Program];

    fn needs_lab(self) -> bool {
        !matches!(self, Self::Replay | Self::Counts | Self::Peers)
    }
}

/// What the parts need.
struct Bench {
    /// The release build of the daemon.
    binary: PathBuf,
    table: Table,
}

/// Runs the task.
pub fn run(args: &Args) -> Result<()> {
    if let Some(What::Xdp(args)) = &args.what {
        return xdp::run(args);
    }
    let mut parts = if args.only.is_empty() { Part::ALL.to_vec() } else { args.only.clone() };
    for part in [Part::Peers, Part::PeersFlood] {
        if args.peers && !parts.contains(&part) {
            parts.push(part);
        }
    }
    if parts.iter().any(|part| part.needs_lab()) {
        setup::packages("the bench", setup::LAB, args.yes)?;
        lab::available().context("the parts with a daemon cannot be measured here (`--only replay` can)")?;
    }
    let binary = match &args.binary {
        Some(binary) => std::path::absolute(binary)?,
        None => {
            eprintln!("Building the daemon with optimisation (the first time, this takes some minutes).");
            cargo::build_daemon(true)?
        }
    };
    let mut bench = Bench { binary, table: Table::default() };
    let mut failed = Vec::new();
    for part in parts {
        eprintln!("\n== {part:?}");
        let outcome = match part {
            Part::Replay => replay::measure(&mut bench),
            Part::Run => steady::measure(&mut bench),
            Part::Latency => latency::measure(&mut bench),
            Part::Counts => counts::measure(&mut bench, args.yes),
            Part::Flood => flood::measure(&mut bench),
            Part::Backlog => backlog::measure(&mut bench),
            Part::Stored => stored::measure(&mut bench),
            Part::Program => program::measure(&mut bench),
            Part::Peers => peers::measure(&mut bench, args.yes),
            Part::PeersFlood => peers::flood::measure(&mut bench, args.yes),
        };
        if let Err(error) = outcome {
            eprintln!("FAILED {part:?}: {error:#}");
            failed.push(format!("{part:?}"));
        }
    }
    let mut table = bench.table.markdown();
    if !failed.is_empty() {
        table += &format!("\nCould not be measured: {}.\n", failed.join(", "));
    }
    println!("\n{table}");
    if let Some(file) = &args.markdown {
        std::fs::write(file, table).with_context(|| file.display().to_string())?;
    }
    if let Some(file) = &args.json {
        let text = serde_json::to_string_pretty(&bench.table.json())?;
        std::fs::write(file, text).with_context(|| file.display().to_string())?;
    }
    if !failed.is_empty() {
        bail!("could not be measured: {}", failed.join(", "));
    }
    Ok(())
}

/// Where logs for measuring are kept between runs.
fn dir() -> Result<PathBuf> {
    let dir = cargo::target_dir().join("bench");
    std::fs::create_dir_all(&dir).with_context(|| dir.display().to_string())?;
    Ok(dir)
}

/// A lab; an interrupted bench reports its end.
fn new_lab() -> Result<Lab> {
    Lab::new("\nInterrupted: every namespace, process and file of the bench is gone.")
}

/// The best and the median of some figures where less is better.
fn best_and_median(mut values: Vec<f64>) -> (f64, f64) {
    values.sort_by(f64::total_cmp);
    (values.first().copied().unwrap_or(f64::NAN), values.get(values.len() / 2).copied().unwrap_or(f64::NAN))
}

/// The median of some figures.
fn median(values: Vec<f64>) -> f64 {
    best_and_median(values).1
}

/// The value below which a share of the sorted values lies.
fn quantile(sorted: &[f64], share: f64) -> f64 {
    let at = (sorted.len() as f64 * share).ceil() as usize;
    sorted.get(at.saturating_sub(1)).copied().unwrap_or(f64::NAN)
}

/// Bytes of a file.
fn size(path: &Path) -> Result<u64> {
    Ok(path.metadata().with_context(|| path.display().to_string())?.len())
}
