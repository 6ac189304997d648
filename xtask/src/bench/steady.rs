//! The running daemon's CPU and memory: with nothing to do, and at a steady 10,000 lines a second.

use std::fs::File;
use std::io::Write;
use std::num::NonZeroU64;
use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use rustix::thread::{CpuSet, sched_setaffinity};

use super::table::{Row, Target};
use super::traffic::{Plan, USUAL};
use super::usage::Usage;
use super::{Bench, new_lab};
use crate::lab::daemon::{Config, Daemon, Start};
use crate::lab::{Lab, clock, history};

/// Lines a second.
pub const RATE: u64 = 10_000;
/// How long is looked.
const SPAN: Duration = Duration::from_secs(60);
/// What a start costs is not what running costs.
const SETTLE: Duration = Duration::from_secs(8);
const MIB: f64 = 1_048_576.0;

/// Clients that send 10,000 lines a second: each one every two seconds, so that no client is banned.
pub const CROWD: Plan = Plan { per_second: RATE, ..USUAL };
/// The processor of the daemon; everything of ours that works at the same time is on the next one.
const DAEMONS_CPU: usize = 0;

/// Adds the rows of this part.
///
/// # Errors
/// When the daemon does not run or does not keep up.
pub fn measure(bench: &mut Bench) -> Result<()> {
    let lab = new_lab()?;
    let daemon = start(&lab, &bench.binary, Config::new(&lab, "steady"))?;
    std::thread::sleep(SETTLE);
    let (idle, usage) = watch(&daemon)?;
    bench.table.add(Row {
        part: "run",
        what: "run, idle".into(),
        value: idle,
        unit: "% of a core",
        target: Target::AtMost(0.1),
        how: format!(
            "utime + stime of all its threads over {} s; XDP on a veth in a namespace of its own, a log that nobody writes, {:.1} MiB resident",
            SPAN.as_secs(),
            usage.rss_bytes as f64 / MIB
        ),
    });

    let before = records(&daemon)?;
    let writer = Writer::start(&lab.log())?;
    std::thread::sleep(SETTLE);
    let (busy, usage) = watch(&daemon)?;
    let written = writer.stop()?;
    clock::wait_until("the daemon to have read every line", Duration::from_secs(5), || {
        records(&daemon).is_ok_and(|records| records == before + written.lines)
    })?;
    let rate = written.lines as f64 / written.took.as_secs_f64();
    ensure!((rate / RATE as f64 - 1.0).abs() < 0.02, "the writer managed {rate:.0} lines/s only");
    bench.table.add(Row {
        part: "run",
        what: "run, steady 10,000 lines/s".into(),
        value: busy,
        unit: "% of a core",
        target: Target::AtMost(1.5),
        how: format!(
            "utime + stime over {} s, enforcing as above; one write a line ({rate:.0}/s) of {} clients by a thread of another process on another processor; every line read",
            SPAN.as_secs(),
            CROWD.clients
        ),
    });
    bench.table.add(Row {
        part: "run",
        what: "the same, resident memory".into(),
        value: usage.rss_bytes as f64 / MIB,
        unit: "MiB",
        target: Target::AtMost(30.0),
        how: format!("VmRSS at the end of it; VmHWM {:.1} MiB", usage.peak_bytes as f64 / MIB),
    });
    Ok(())
}

/// Per cent of a core over [`SPAN`], and what it had used at the end.
fn watch(daemon: &Daemon<'_>) -> Result<(f64, Usage)> {
    let (began, before) = (clock::now(), Usage::of(daemon.id())?);
    std::thread::sleep(SPAN);
    let (after, took) = (Usage::of(daemon.id())?, began.elapsed());
    Ok((100.0 * (after.cpu - before.cpu).as_secs_f64() / took.as_secs_f64(), after))
}

/// Records that the daemon has read.
pub fn records(daemon: &Daemon<'_>) -> Result<u64> {
    daemon.status()?["records"].as_u64().context("status has no records")
}

/// A daemon that has learned from half an hour of quiet traffic, alone on its processor.
///
/// # Errors
/// When it does not run, or XDP is unavailable.
pub fn start<'lab>(lab: &'lab Lab, binary: &Path, config: Config) -> Result<Daemon<'lab>> {
    lab.write_log(&history::quiet(clock::epoch_secs(), 30, 2))?;
    let through = ["taskset", "--cpu-list", &DAEMONS_CPU.to_string()].map(Into::into).to_vec();
    let mut daemon = Daemon::launch(lab, binary, config, &Start { through, ..Start::default() })?;
    daemon.wait_ready()?;
    clock::wait_until("the daemon to have learned from the log", Duration::from_secs(20), || {
        records(&daemon).is_ok_and(|records| records > 1000)
    })?;
    let status = daemon.status()?;
    ensure!(status["enforcer"] == "xdp", "it does not enforce by XDP: {status}");
    Ok(daemon)
}

/// Puts the calling thread on another processor than the daemon's, and lets its sleeps end on time.
///
/// # Errors
/// When the kernel refuses.
pub fn step_aside() -> Result<()> {
    let processors = std::thread::available_parallelism().map_or(1, usize::from);
    let mut ours = CpuSet::new();
    ours.set((DAEMONS_CPU + 1) % processors);
    sched_setaffinity(None, &ours)?;
    rustix::thread::set_current_timer_slack(NonZeroU64::new(1))?;
    Ok(())
}

/// What a writer has done.
pub struct Written {
    /// Lines.
    pub lines: u64,
    /// From the first to the last.
    pub took: Duration,
}

/// Writes lines at [`RATE`], each with a write of its own, until it is stopped or dropped.
pub struct Writer {
    stop: std::sync::Arc<AtomicBool>,
    thread: Option<std::thread::JoinHandle<Result<Written>>>,
}

impl Writer {
    /// Starts to write to the end of this log.
    ///
    /// # Errors
    /// When it cannot be opened.
    pub fn start(log: &Path) -> Result<Self> {
        let file = File::options().append(true).open(log).with_context(|| log.display().to_string())?;
        let stop = std::sync::Arc::new(AtomicBool::new(false));
        let stopped = stop.clone();
        let thread = std::thread::spawn(move || write(file, &stopped));
        Ok(Self { stop, thread: Some(thread) })
    }

    /// Ends it.
    ///
    /// # Errors
    /// When it could not write.
    pub fn stop(mut self) -> Result<Written> {
        self.stop.store(true, Ordering::Relaxed);
        let thread = self.thread.take().context("it is stopped once")?;
        thread.join().map_err(|_| anyhow::anyhow!("the writer panicked"))?
    }
}

impl Drop for Writer {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
    }
}

fn write(mut file: File, stop: &AtomicBool) -> Result<Written> {
    step_aside()?;
    let (mut crowd, mut line) = (CROWD.lines_from(0), Vec::new());
    let began = clock::now();
    let mut lines = 0;
    while !stop.load(Ordering::Relaxed) {
        let due = began + Duration::from_nanos(lines * 1_000_000_000 / RATE);
        let left = due.saturating_duration_since(clock::now());
        if !left.is_zero() {
            std::thread::sleep(left);
        }
        crowd.next_at(clock::epoch_secs(), &mut line);
        file.write_all(&line)?;
        lines += 1;
    }
    Ok(Written { lines, took: began.elapsed() })
}
