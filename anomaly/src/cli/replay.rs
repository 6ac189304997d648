//! `anomaly replay`: what it prints, and the bar that shows how far it is.

use std::io::{self, IsTerminal, Write};
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use anomaly::config::Config;
use anomaly::engine::State;
use anomaly::record::Format;
use anomaly::replay::{Rejected, Replay, Report, Summary, Unread};
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
    let finished = finished.and_then(|()| {
        let summary = replay.summary(stopwatch());
        rows.summary(&summary)?;
        Ok(summary)
    });
    let summary = match finished {
        // Whoever reads has seen enough (`| head`).
        Err(error) if is_broken_pipe(&error) => return Ok(ExitCode::SUCCESS),
        other => other?,
    };
    for unread in replay.unread() {
        eprintln!("anomaly: {}", why_unread(unread, &format));
    }
    // Whoever asks by the exit status is told as well.
    let is_whole = replay.unread().is_empty();
    if let Some(rejected) = replay.rejected()
        && is_whole
        && summary.rejected * 10 > summary.records + summary.rejected
    {
        eprintln!("anomaly: {}", why_rejected(rejected, &summary, &format));
    }
    if let Some(path) = &args.learn
        && (summary.records > 0 || is_whole)
    {
        let baseline = replay.engine().save().baseline;
        store::write_baseline(path, daemon::now(), &baseline).with_context(|| path.display().to_string())?;
        eprintln!("anomaly: the baseline is in {}", path.display());
    }
    Ok(if is_whole { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

/// What to do about a log of which nothing could be read.
fn why_unread(unread: &Unread, format: &Format) -> String {
    let Unread { lines, first } = unread;
    format!("none of the {lines} lines of {} can be read: {}", first.log, cure(first, format))
}

/// What to do about a log of which a good part gives no record.
fn why_rejected(rejected: &Rejected, summary: &Summary, format: &Format) -> String {
    let (lines, log, cure) = (summary.records + summary.rejected, &rejected.log, cure(rejected, format));
    format!("{} of {lines} lines give no record, the first of them in {log}: {cure}", summary.rejected)
}

/// What to do about such lines.
fn cure(rejected: &Rejected, format: &Format) -> String {
    let Rejected { line, why, .. } = rejected;
    match (Format::guess(line), format) {
        (Some(name), _) => {
            format!("it looks like the format {name}: try --format {name} (the daemon: log.format = \"{name}\")")
        }
        (None, Format::Combined) => "it is not in the combined format; --format names others".to_owned(),
        (None, Format::Json(_)) => format!(
            "{}; --format knows {}, and [log.fields] in the configuration names other keys",
            why.words(),
            Format::NAMES.join(", ")
        ),
    }
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

#[cfg(test)]
mod tests {
    use super::*;
    use anomaly::record::MAX_LINE_BYTES;

    struct Nothing;

    impl Report for Nothing {
        fn row(&mut self, _: &DecisionRow, _: &str) -> io::Result<()> {
            Ok(())
        }

        fn progress(&mut self, _: u64) {}
    }

    #[test]
    fn a_log_in_another_format_is_not_only_counted() {
        let combined = r#"192.0.2.1 - - [27/Apr/2026:09:59:58 +0000] "GET / HTTP/1.1" 200 5 "-" "x""#;
        let caddy =
            r#"{"ts":1777280000.5,"request":{"client_ip":"192.0.2.1","method":"GET","uri":"/"},"status":200,"size":5}"#;
        let cases = [
            (combined, Format::nginx(), "1 of 1 lines give no record", "try --format combined"),
            (caddy, Format::nginx(), "log.json", "try --format caddy"),
            (caddy, Format::Combined, "log.json", "try --format caddy"),
            (r#"{"who":"192.0.2.1"}"#, Format::nginx(), "no source_ip", "[log.fields]"),
            ("Hello.", Format::Combined, "not in the combined format", "--format"),
        ];
        let dir = tempfile::tempdir().unwrap();
        let log = dir.path().join("log.json");
        for (line, format, why, next) in cases {
            std::fs::write(&log, format!("{line}\n")).unwrap();
            let mut replay = Replay::new(anomaly::engine::Settings::default());
            replay.run(std::slice::from_ref(&log), &format, &mut Nothing).unwrap();
            let summary = replay.summary(std::time::Duration::ZERO);
            let said = why_rejected(replay.rejected().unwrap(), &summary, &format);
            assert!(said.contains(why) && said.contains(next), "{line}: {said}");
            let [unread] = replay.unread() else { panic!("{line}: {:?}", replay.unread()) };
            let said = why_unread(unread, &format);
            assert!(said.starts_with("none of the 1 lines of") && said.contains(next), "{line}: {said}");
        }
    }

    #[test]
    fn lines_that_are_too_long_are_counted_and_hide_nothing() {
        let usual = |bytes: usize| {
            let start = r#"{"source_ip":"192.0.2.1","timestamp":"2026-04-27T09:25:51Z","path":"/"#;
            format!("{start}{}\"}}", "x".repeat(bytes - start.len() - 2))
        };
        let dir = tempfile::tempdir().unwrap();
        let log = dir.path().join("log.json");
        let long = MAX_LINE_BYTES + 1;
        for (text, records, rejected) in [
            ([usual(200), usual(MAX_LINE_BYTES), usual(long), usual(long + 1), usual(200)].join("\n"), 3, 2),
            // Longer than what is read at once, and than a line and that.
            ([usual(200), usual(long + (300 << 10)), usual(3 * long), usual(200)].join("\n"), 2, 2),
            (usual(2 * long), 0, 1),
            ([usual(200), usual(2 * long)].join("\n"), 1, 1),
        ] {
            std::fs::write(&log, &text).unwrap();
            // Alone and merged with another, line by line.
            for logs in [vec![log.clone()], vec![log.clone(), log.clone()]] {
                let mut replay = Replay::new(anomaly::engine::Settings::default());
                replay.run(&logs, &Format::nginx(), &mut Nothing).unwrap();
                let summary = replay.summary(std::time::Duration::ZERO);
                let times = logs.len() as u64;
                assert_eq!((summary.records, summary.rejected), (records * times, rejected * times), "{}", text.len());
                assert_eq!(replay.rejected(), None);
                let unread: Vec<u64> = replay.unread().iter().map(|unread| unread.lines).collect();
                assert_eq!(unread, if records == 0 { vec![rejected; logs.len()] } else { vec![] });
            }
        }
    }
}
