//! The real daemon at 5,000 lines/s, with rotations of both kinds, bans that come and go, and restarts: no line missed or
//! counted twice, each attack banned exactly once, descriptors flat; and memory flat, where it runs long enough to say so.
//!
//! Restarts (SIGTERM and kill -9) fill the first quarter and come again at the end; in between one process runs on, and its
//! figures are compared. In less than five minutes of that the tables are still filling: then memory may grow by 16 MiB, so the
//! short run of `cargo xtask test` only shows a leak that is gross; `cargo xtask torture` is what shows that it is flat.
//! `ANOMALY_SOAK_SECS` says how long (default 24), `ANOMALY_SOAK_RATE` how many lines a second
//! (default 5,000, or 1,000 where the daemon is not optimised).

use std::collections::HashMap;
use std::fmt::Write as _;
use std::fs::{self, File};
use std::io::Write as _;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use anomaly::store::Store;
use anomaly::time::Timestamp;
use anyhow::{Context, Result, ensure};

use super::{Chance, binary, figure, from_env};
use crate::lab::daemon::{Config, Daemon};
use crate::lab::{Lab, clock, history, ready, run};

/// People on the site at a time; every second some go and others come.
const CLIENTS: u64 = 20_000;
/// Requests of an attack, all at once.
const BURST: u64 = 300;
/// Attackers; each comes again when its last ban has long ended.
const ATTACKERS: u64 = 100;
/// Rotated files that are kept.
const KEPT: usize = 6;
/// What the memory of one process may grow by in the steady part: a share, and bytes (a day of history is kept in
/// memory, a point a second).
const GROWTH: (f64, u64) = (0.05, 2 << 20);
/// And for each client that is followed at its end and was not at its beginning (browsers are remembered for an hour, so
/// that their number grows for that long): what it holds, and its part of the state that is saved.
const CLIENT_BYTES: u64 = 300;
/// A steady part that is shorter than this is still filling its tables, and may grow by so many bytes.
const SETTLING: (Duration, u64) = (Duration::from_secs(300), 16 << 20);

#[test]
fn a_soak_loses_nothing_and_stays_in_bounds() -> Result<()> {
    if !ready("a_soak_loses_nothing_and_stays_in_bounds") {
        return Ok(());
    }
    let total = Duration::from_secs(from_env("ANOMALY_SOAK_SECS", 24));
    let lab = Lab::new("")?;
    let past = history::quiet(clock::epoch_secs(), 30, 2);
    lab.write_log(&past)?;
    let durations = r#"["20s", "30s", "40s"]"#;
    let config = Config::new(&lab, "soak").with("bans", "durations", durations);
    let mut daemon = Daemon::start(&lab, &binary(), config)?;

    let writer = Writer::new(&lab, total, lines_in(past.as_bytes()));
    let done = AtomicBool::new(false);
    let soaked = std::thread::scope(|scope| {
        let written = scope.spawn(|| writer.run(&done));
        let story = soak(&mut daemon, total, &writer);
        done.store(true, Ordering::Relaxed);
        let written = written.join().map_err(|_| anyhow::anyhow!("the writer panicked"))?;
        Ok::<_, anyhow::Error>((story?, written?))
    });
    let (steady, written) = soaked.with_context(|| format!("the daemon said: {}", tail_of(&daemon.output())))?;

    let records = || daemon.status().map(|status| status["records"].as_u64().unwrap_or(0));
    let read = clock::wait_until("every line to be read", Duration::from_secs(60), || {
        records().is_ok_and(|records| records >= written.lines)
    });
    // Whatever is counted twice is counted after the last line, too.
    std::thread::sleep(Duration::from_millis(1500));
    let (records, status) = (records()?, daemon.status()?);
    ensure!(records == written.lines, "{records} records of {} lines ({read:?}): {status}", written.lines);
    ensure!(status["rejected"] == 0 && status["enforcement_ratio"] == 1.0, "{status}");
    let (bans, untold) = audited_bans(&daemon, &written)?;
    ensure!(untold == 0, "{untold} bans are in no audit log");
    daemon.stop()?;
    offences_are(&lab, &written.attacks)?;

    let minutes = total.as_secs_f64() / 60.0;
    figure(
        "soak",
        &format!(
            "{minutes:.1} min, {} lines ({:.0}/s), {} missed or doubled, {} rotations, {} restarts, {bans} bans, each audited once; \
             steady {:.1} min: RSS {:.1} -> {:.1} MiB ({} -> {} clients \
             followed), descriptors {} to {}",
            written.lines,
            (written.lines - lines_in(past.as_bytes())) as f64 / total.as_secs_f64(),
            records.abs_diff(written.lines),
            written.rotations,
            steady.restarts,
            steady.lasted.as_secs_f64() / 60.0,
            mib(steady.rss_before),
            mib(steady.rss_after),
            steady.followed.0,
            steady.followed.1,
            steady.descriptors.0,
            steady.descriptors.1,
        ),
    );
    let growth = match steady.lasted < SETTLING.0 {
        true => SETTLING.1,
        false => {
            let clients = steady.followed.1.saturating_sub(steady.followed.0);
            (steady.rss_before as f64 * GROWTH.0) as u64 + GROWTH.1 + CLIENT_BYTES * clients
        }
    };
    let allowed = steady.rss_before + growth;
    ensure!(steady.rss_after <= allowed, "memory grew from {} to {}", steady.rss_before, steady.rss_after);
    ensure!(steady.descriptors.1 <= steady.descriptors.0 + 12, "descriptors: {:?}", steady.descriptors);
    Ok(())
}

/// What was seen of the process that ran through.
struct Steady {
    lasted: Duration,
    rss_before: u64,
    rss_after: u64,
    /// Clients, at its beginning and at its end.
    followed: (u64, u64),
    descriptors: (usize, usize),
    restarts: u32,
}

fn soak(daemon: &mut Daemon<'_>, total: Duration, writer: &Writer) -> Result<Steady> {
    let began = clock::now();
    let until = |share: f64| began + total.mul_f64(share);
    let mut chance = Chance::new();
    let mut restarts = 0;
    let mut restart = |daemon: &mut Daemon<'_>| -> Result<()> {
        if restarts % 2 == 0 {
            daemon.kill();
        } else {
            let status = daemon.stop()?;
            ensure!(status.success(), "{status}");
        }
        restarts += 1;
        // Now and then long enough for a rotation to be missed.
        std::thread::sleep(Duration::from_millis(chance.below(1500)));
        daemon.restart()
    };
    let pause = (total.mul_f64(0.2) / 12).max(Duration::from_secs(3));
    while clock::now() + pause < until(0.25) {
        std::thread::sleep(pause);
        restart(daemon)?;
    }
    // Its first minute (of an hour) is spent filling tables.
    sleep_until(until(0.25) + total.mul_f64(0.02));
    let followed = |daemon: &Daemon<'_>| Ok::<_, anyhow::Error>(daemon.status()?["tracked_ips"].as_u64().unwrap_or(0));
    let followed_before = followed(daemon)?;
    let (steady_from, mut rss, mut descriptors) = (clock::now(), Vec::new(), Vec::new());
    let mut told = clock::now();
    while clock::now() < until(0.9) {
        let process = PathBuf::from(format!("/proc/{}", daemon.id()));
        rss.push(resident(&process)?);
        descriptors.push(fs::read_dir(process.join("fd"))?.count());
        if told.elapsed() > Duration::from_secs(60) {
            told = clock::now();
            let bans = daemon.status()?["active_bans"].clone();
            let (lines, rss) = (writer.lines.load(Ordering::Relaxed), rss.last().copied().unwrap_or(0));
            eprintln!("{:4} s: {lines} lines, {:.1} MiB, {bans} bans", began.elapsed().as_secs(), mib(rss));
        }
        std::thread::sleep(Duration::from_millis(500));
    }
    let lasted = steady_from.elapsed();
    let followed = (followed_before, followed(daemon)?);
    for share in [0.92, 0.95] {
        sleep_until(until(share));
        restart(daemon)?;
    }
    sleep_until(until(1.0));
    let tenth = (rss.len() / 10).max(1);
    Ok(Steady {
        lasted,
        rss_before: median(&rss[..tenth]),
        rss_after: median(&rss[rss.len() - tenth..]),
        followed,
        descriptors: (
            descriptors.iter().copied().min().context("no sample")?,
            descriptors.iter().copied().max().context("no sample")?,
        ),
        restarts,
    })
}

/// What was written.
struct Written {
    lines: u64,
    rotations: u32,
    /// Attacks by address.
    attacks: HashMap<String, u32>,
}

/// Writes the log and rotates it; being both, it knows exactly what was written.
struct Writer {
    log: PathBuf,
    total: Duration,
    rate: u64,
    lines: AtomicU64,
}

impl Writer {
    fn new(lab: &Lab, total: Duration, lines: u64) -> Self {
        // A debug build on a machine that runs other tests beside it must keep up as well.
        let default = if std::env::var_os("ANOMALY_TORTURE_BINARY").is_some() { 5_000 } else { 1_000 };
        Self { log: lab.log(), total, rate: from_env("ANOMALY_SOAK_RATE", default), lines: AtomicU64::new(lines) }
    }

    fn run(&self, done: &AtomicBool) -> Result<Written> {
        let mut chance = Chance::new();
        let began = clock::now();
        let rotate_every = (self.total / 120).clamp(Duration::from_secs(2), Duration::from_secs(30));
        let attack_every = Duration::from_secs(4);
        let (mut rotate_at, mut attack_at) = (began + rotate_every, began + Duration::from_secs(2));
        let (mut attack, mut attacks, mut rotations) = (0, HashMap::new(), 0u32);
        let (mut due_lines, mut text) = (0, String::new());
        let mut file = append(&self.log)?;
        while !done.load(Ordering::Relaxed) {
            let now = clock::now();
            let due = (now.duration_since(began).as_secs_f64() * self.rate as f64) as u64;
            text.clear();
            let mut lines = due - due_lines;
            due_lines = due;
            let (second, arrived) = (clock::epoch_secs(), now.duration_since(began).as_secs() * CLIENTS / 6000);
            for _ in 0..lines {
                let client = visitor(arrived + chance.below(CLIENTS));
                // A page and what belongs to it, a few dead links.
                let (path, status) = match chance.below(20) {
                    0..4 => ("/", 200),
                    4 => ("/gone", 404),
                    5..12 => ("/app.css", 200),
                    _ => ("/img/logo.png", 200),
                };
                text += &history::line(second, &client, path, status);
            }
            if now >= attack_at {
                attack_at += attack_every;
                let attacker = format!("198.18.0.{}", 1 + attack % ATTACKERS);
                text += &history::line(second, &attacker, "/", 200).repeat(BURST as usize);
                *attacks.entry(attacker).or_insert(0) += 1;
                (attack, lines) = (attack + 1, lines + BURST);
            }
            if now >= rotate_at {
                rotate_at += rotate_every;
                let half = text[..text.len() / 2].rfind('\n').map_or(0, |at| at + 1);
                // The first half goes to the old file, also after it was renamed, as with Nginx.
                let (early, late) = text.split_at(half);
                if rotations % 2 == 0 {
                    shift(&self.log)?;
                    fs::rename(&self.log, numbered(&self.log, 1))?;
                    file.write_all(early.as_bytes())?;
                    file = append(&self.log)?;
                } else {
                    file.write_all(early.as_bytes())?;
                    shift(&self.log)?;
                    fs::copy(&self.log, numbered(&self.log, 1))?;
                    file.set_len(0)?;
                }
                file.write_all(late.as_bytes())?;
                rotations += 1;
                if rotations % 8 == 0 {
                    compress(&numbered(&self.log, 3))?;
                }
            } else {
                file.write_all(text.as_bytes())?;
            }
            self.lines.fetch_add(lines, Ordering::Relaxed);
            std::thread::sleep(Duration::from_millis(10));
        }
        Ok(Written { lines: self.lines.load(Ordering::Relaxed), rotations, attacks })
    }
}

fn append(log: &Path) -> std::io::Result<File> {
    File::options().create(true).append(true).open(log)
}

fn numbered(log: &Path, n: usize) -> PathBuf {
    PathBuf::from(format!("{}.{n}", log.display()))
}

/// Moves `.1` to `.2` and so on; the oldest goes.
fn shift(log: &Path) -> Result<()> {
    for n in (1..=KEPT).rev() {
        for ending in ["", ".gz"] {
            let from = PathBuf::from(format!("{}{ending}", numbered(log, n).display()));
            let to = PathBuf::from(format!("{}{ending}", numbered(log, n + 1).display()));
            match (from.exists(), n == KEPT) {
                (false, _) => {}
                (true, true) => fs::remove_file(from)?,
                (true, false) => fs::rename(from, to)?,
            }
        }
    }
    Ok(())
}

fn compress(path: &Path) -> Result<()> {
    if path.exists() {
        run(std::process::Command::new("gzip").arg("--fast").arg(path))?;
    }
    Ok(())
}

/// The address of the nth visitor: four million of them.
fn visitor(n: u64) -> String {
    let n = n % (1 << 22);
    format!("10.{}.{}.{}", n >> 16, n >> 8 & 255, n & 255)
}

/// No attack was told twice, and nobody else was banned. How many were told, and how many were not.
fn audited_bans(daemon: &Daemon<'_>, written: &Written) -> Result<(u32, u32)> {
    let mut told: HashMap<String, u32> = HashMap::new();
    for line in daemon.audited("ban", None)? {
        *told.entry(line["ip"].as_str().context("no ip")?.to_owned()).or_default() += 1;
    }
    for (ip, times) in &told {
        let attacks = written.attacks.get(ip).copied().unwrap_or(0);
        ensure!(*times <= attacks, "{ip} attacked {attacks} times and was banned {times} times");
    }
    let (bans, attacks) = (told.values().sum::<u32>(), written.attacks.values().sum::<u32>());
    Ok((bans, attacks - bans))
}

fn offences_are(lab: &Lab, attacks: &HashMap<String, u32>) -> Result<()> {
    let at = Timestamp::from_secs(i64::try_from(clock::epoch_secs())?);
    let opened = Store::open(&lab.dir().join("soak.db"), at)?;
    let offences = opened.loaded.state.offences;
    for offence in &offences {
        let ip = offence.prefix.addr().to_string();
        ensure!(attacks.get(&ip) == Some(&offence.count), "{offence:?}, attacks: {:?}", attacks.get(&ip));
    }
    ensure!(offences.len() == attacks.len(), "{} offenders of {}", offences.len(), attacks.len());
    Ok(())
}

fn resident(process: &Path) -> Result<u64> {
    let status = fs::read_to_string(process.join("status"))?;
    let kib = status.lines().find_map(|line| line.strip_prefix("VmRSS:")).context("no VmRSS")?;
    Ok(kib.trim().trim_end_matches(" kB").parse::<u64>()? << 10)
}

fn median(samples: &[u64]) -> u64 {
    let mut sorted = samples.to_vec();
    sorted.sort_unstable();
    sorted.get(sorted.len() / 2).copied().unwrap_or(0)
}

fn mib(bytes: u64) -> f64 {
    bytes as f64 / f64::from(1 << 20)
}

fn lines_in(text: &[u8]) -> u64 {
    text.iter().filter(|byte| **byte == b'\n').count() as u64
}

fn sleep_until(at: Instant) {
    std::thread::sleep(at.saturating_duration_since(clock::now()));
}

/// The newest lines.
fn tail_of(output: &str) -> String {
    let lines: Vec<&str> = output.lines().collect();
    lines[lines.len().saturating_sub(30)..].iter().fold(String::new(), |mut text, line| {
        let _ = writeln!(text, "{line}");
        text
    })
}
