//! `anomaly replay`: what it prints, and the bar that shows how far it is.

use std::io::{self, IsTerminal, Write};
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use anomaly::config::Config;
use anomaly::engine::State;
use anomaly::record::Format;
use anomaly::replay::{Replay, Report, Summary};
use anomaly::report::DecisionRow;
use anomaly::{daemon, store};
use anyhow::{Context, Result};
use indicatif::{ProgressBar, ProgressStyle};

use super::args;
use super::print::span;

/// Replays.
///
/// # Errors
/// What cannot be read or written.
pub fn run(config: Config, args: &args::Replay) -> Result<ExitCode> {
    let stopwatch = daemon::stopwatch();
    let format = args.format.as_deref().and_then(Format::from_name).unwrap_or(config.log.format);
    let mut replay = Replay::new(config.engine);
    if let Some(path) = &args.baseline {
        let baseline = store::read_baseline(path).with_context(|| path.display().to_string())?;
        let state = State { baseline, ..State::default() };
        let bad = || format!("{}: its baseline is not of this version of anomaly", path.display());
        replay.engine().restore(state).map_err(|_| anyhow::anyhow!(bad()))?;
    }
    let mut rows = Rows::new(args.json, progress_bar(&args.files));
    let finished = replay.run(&args.files, &format, &mut rows);
    let finished = finished.and_then(|()| Ok(rows.summary(&replay.summary(stopwatch()))?));
    match finished {
        // Whoever reads has seen enough (`| head`).
        Err(error) if is_broken_pipe(&error) => return Ok(ExitCode::SUCCESS),
        other => other?,
    }
    if let Some(path) = &args.learn {
        let baseline = replay.engine().save().baseline;
        store::write_baseline(path, daemon::now(), &baseline).with_context(|| path.display().to_string())?;
        eprintln!("anomaly: the baseline is in {}", path.display());
    }
    Ok(ExitCode::SUCCESS)
}

fn is_broken_pipe(error: &anyhow::Error) -> bool {
    error.chain().any(|e| e.downcast_ref::<io::Error>().is_some_and(|e| e.kind() == io::ErrorKind::BrokenPipe))
}

/// A bar on standard error, while that is a terminal and all sizes are known.
fn progress_bar(files: &[PathBuf]) -> ProgressBar {
    let size = |file: &PathBuf| if file == Path::new("-") { None } else { std::fs::metadata(file).ok() };
    let sizes: Option<Vec<u64>> = files.iter().map(|f| size(f).map(|m| m.len())).collect();
    let total: u64 = sizes.unwrap_or_default().iter().sum();
    if total == 0 || !io::stderr().is_terminal() {
        return ProgressBar::hidden();
    }
    let style = ProgressStyle::with_template("{bar:40} {percent:>3} %, {bytes} of {total_bytes}, {eta} to go");
    let bar = ProgressBar::new(total);
    match style {
        Ok(style) => bar.with_style(style),
        Err(_) => bar,
    }
}

/// Rows on standard output: JSON Lines, or a line each for people.
struct Rows {
    out: io::BufWriter<io::Stdout>,
    json: bool,
    bar: ProgressBar,
    /// Rows and bar share a terminal: the bar makes room for every row.
    shared: bool,
}

impl Rows {
    fn new(json: bool, bar: ProgressBar) -> Self {
        let shared = !bar.is_hidden() && io::stdout().is_terminal();
        Self { out: io::BufWriter::new(io::stdout()), json, bar, shared }
    }

    fn write(&mut self, line: &str) -> io::Result<()> {
        if !self.shared {
            return writeln!(self.out, "{line}");
        }
        let out = &mut self.out;
        self.bar.suspend(|| writeln!(out, "{line}").and_then(|()| out.flush()))
    }

    fn summary(&mut self, s: &Summary) -> io::Result<()> {
        self.bar.finish_and_clear();
        let line = if self.json {
            format!("{{\"summary\":{}}}", serde_json::to_string(s)?)
        } else {
            format!(
                "{} records ({} rejected, {} late) of up to {} clients at once: {} bans, {} unbans, {} records blocked, \
                 {} global anomalies; {:.2} s, {} records/s",
                s.records,
                s.rejected,
                s.late,
                s.tracked_ips_peak,
                s.bans,
                s.unbans,
                s.blocked,
                s.global_anomalies,
                s.elapsed_secs,
                s.records_per_sec
            )
        };
        self.write(&line)?;
        self.out.flush()
    }
}

impl Report for Rows {
    fn row(&mut self, row: &DecisionRow, reason: &str) -> io::Result<()> {
        if self.json {
            return self.write(&serde_json::to_string(row)?);
        }
        let ip = row.ip.as_deref().unwrap_or("the site");
        let length = match row.duration_secs {
            Some(Some(secs)) => format!(" for {}", span(secs as f64)),
            Some(None) => " permanently".into(),
            None => String::new(),
        };
        let offence = row.offence.map(|n| format!(", offence {n}")).unwrap_or_default();
        let colon = if reason.is_empty() { "" } else { ": " };
        self.write(&format!("{}  {:<14} {ip}{length}{offence}{colon}{reason}", row.time, row.action))
    }

    fn progress(&mut self, bytes: u64) {
        self.bar.set_position(bytes);
    }
}
