//! A start with 100,000 stored bans: how long until the kernel holds all of them.

use std::fs::File;
use std::io::{BufWriter, Write};
use std::net::Ipv4Addr;
use std::time::Duration;

use anyhow::{Context, Result, ensure};

use super::prober::Prober;
use super::table::{Row, Target};
use super::{Bench, median, new_lab, traffic};
use crate::lab::daemon::{Config, Daemon, Start};
use crate::lab::{Lab, clock};

/// Bans.
const BANS: u32 = 100_000;
/// `thresholds.hard_limit` while they are made.
const LIMIT: u32 = 5;
/// Starts.
const STARTS: usize = 5;
/// Every so many bans one is looked for all the time; the rest is there, but for the last handful, when these are.
const SAMPLE: usize = 100;

/// Adds the row of this part.
///
/// # Errors
/// When the daemon does not run or does not enforce all.
pub fn measure(bench: &mut Bench) -> Result<()> {
    let lab = new_lab()?;
    let config = Config::new(&lab, "stored").with("thresholds", "hard_limit", LIMIT.to_string()).with(
        "bans",
        "durations",
        r#"["10h"]"#,
    );
    make_bans(&lab, bench, config.clone().with("enforcer", "backend", r#""dry-run""#))?;
    let mut secs = Vec::new();
    for _ in 0..STARTS {
        secs.push(start(&lab, bench, config.clone())?);
    }
    let (fastest, slowest) = secs.iter().fold((f64::MAX, 0.0f64), |(low, high), s| (low.min(*s), high.max(*s)));
    bench.table.add(Row {
        part: "stored",
        what: "start with 100,000 stored bans to all enforced".into(),
        value: median(secs) * 1e3,
        unit: "ms",
        target: Target::AtMost(300.0),
        how: format!(
            "from exec (with nsenter) to all in the XDP map, nothing pinned before; median of {STARTS} ({:.0} to {:.0} ms); every {SAMPLE}th is looked for in a loop, and then every one of the others",
            fastest * 1e3,
            slowest * 1e3
        ),
    });
    Ok(())
}

/// Lets a daemon in dry run ban them all from a log.
fn make_bans(lab: &Lab, bench: &Bench, config: Config) -> Result<()> {
    lab.write_log("")?;
    let mut log = BufWriter::with_capacity(1 << 20, File::create(lab.log())?);
    let (second, mut line) = (clock::epoch_secs() - 1, Vec::new());
    for n in 0..BANS {
        for _ in 0..=LIMIT {
            traffic::page(&mut line, banned(n), second);
            log.write_all(&line)?;
        }
    }
    log.flush()?;
    let mut daemon = Daemon::start(lab, &bench.binary, config)?;
    clock::wait_until("all bans to be decided", Duration::from_secs(120), || {
        daemon.status().is_ok_and(|status| status["active_bans"] == BANS)
    })
    .with_context(|| format!("status: {:?}", daemon.status()))?;
    // It ends when what it has decided is stored, and that may take a while.
    if daemon.stop().is_err() {
        daemon.wait(Duration::from_secs(180))?;
    }
    Ok(())
}

/// Starts it with XDP; the seconds until all are enforced. Leaves nothing pinned.
fn start(lab: &Lab, bench: &Bench, config: Config) -> Result<f64> {
    let began = clock::now();
    let mut daemon = Daemon::launch(lab, &bench.binary, config, &Start::default())?;
    let mut missing: Vec<Ipv4Addr> = (0..BANS).step_by(SAMPLE).map(banned).collect();
    let mut rest: Vec<Ipv4Addr> = (0..BANS).map(banned).collect();
    let secs = loop {
        let took = began.elapsed();
        ensure!(took < Duration::from_secs(30), "{} bans not enforced after 30 s: {}", missing.len(), daemon.output());
        // There is no pin until the program is loaded, and then maybe that of a smaller table.
        if let Ok(prober) = Prober::open(lab, "stored") {
            missing.retain(|address| !prober.holds(*address).unwrap_or(false));
            if missing.is_empty() && rest.is_empty() {
                break took.as_secs_f64();
            }
            if missing.is_empty() {
                let sampled = began.elapsed().as_secs_f64();
                missing = std::mem::take(&mut rest);
                missing.retain(|address| !prober.holds(*address).unwrap_or(false));
                if missing.is_empty() {
                    break sampled;
                }
            }
        }
        std::thread::sleep(Duration::from_micros(200));
    };
    daemon.wait_ready()?;
    daemon.stop()?;
    let down = daemon.command(&["down"])?;
    ensure!(down.status.success(), "anomaly down: {}", String::from_utf8_lossy(&down.stderr));
    Ok(secs)
}

fn banned(n: u32) -> Ipv4Addr {
    traffic::address(n.into())
}
