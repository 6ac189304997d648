//! Catching up: a daemon starts on millions of lines that were written while it was down, and lines keep coming.

use std::fs::File;
use std::io::{BufWriter, Write};
use std::net::Ipv4Addr;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};

use super::prober::Prober;
use super::steady::{CROWD, RATE, Writer, start};
use super::table::{Row, Target};
use super::traffic::{Plan, page};
use super::{Bench, new_lab};
use crate::lab::daemon::{Config, Daemon, Start};
use crate::lab::{Lab, clock};

/// Lines that nobody read.
const LINES: u64 = 5_000_000;
const BACKLOG: Plan = Plan { lines: LINES, ..CROWD };
/// `thresholds.hard_limit`: an attacker is banned by the line after so many.
const LIMIT: u64 = 100;
/// One in the first tenth of the backlog, one whose last line is the backlog's last, one who comes after the start.
const EARLY: Ipv4Addr = Ipv4Addr::new(198, 18, 0, 1);
const LAST: Ipv4Addr = Ipv4Addr::new(198, 18, 0, 2);
const LIVE: Ipv4Addr = Ipv4Addr::new(198, 18, 0, 3);

/// Adds the rows of this part.
///
/// # Errors
/// When the daemon does not run, or misses an attacker.
pub fn measure(bench: &mut Bench) -> Result<()> {
    let lab = new_lab()?;
    let config = Config::new(&lab, "backlog")
        .with("thresholds", "hard_limit", LIMIT.to_string())
        // Learning only: nothing but the hard limit bans.
        .with("baseline", "warmup_secs", "86400")
        .with("bans", "durations", r#"["1h"]"#);
    let mut daemon = start(&lab, &bench.binary, config.clone())?;
    daemon.stop()?;
    drop(daemon);
    let bytes = write_backlog(&lab)?;
    let began = clock::now();
    let daemon = Daemon::launch(&lab, &bench.binary, config, &Start::default())?;
    let writer = Writer::start(&lab.log())?;
    let seen = watch(&lab, began).with_context(|| format!("the daemon said: {}", daemon.output()))?;
    let written = writer.stop()?;
    let how = format!(
        "from the start of the process to the ban of the backlog's last line in the map; {:.0} MB in the page cache, {RATE} lines/s arriving meanwhile ({} of them); backend XDP",
        bytes as f64 / 1e6,
        written.lines
    );
    let caught_up = seen.last;
    for (what, value, limit, how) in [
        ("backlog of 5,000,000 lines after downtime, caught up", caught_up, 10.0, how.as_str()),
        (
            "the same, attack in the backlog's first tenth enforced",
            seen.early,
            caught_up / 2.0,
            "before half of it is read",
        ),
        (
            "the same, attack written 0.2 s after the start enforced",
            seen.live,
            caught_up + 0.1,
            "its lines lie behind the backlog: as soon as that is read",
        ),
    ] {
        let (what, how) = (what.into(), how.into());
        bench.table.add(Row { part: "backlog", what, value, unit: "s", target: Target::AtMost(limit), how });
    }
    Ok(())
}

/// Five hundred seconds of traffic that end now; the bytes of the log.
fn write_backlog(lab: &Lab) -> Result<u64> {
    let log = File::options().append(true).open(lab.log())?;
    let mut log = BufWriter::with_capacity(1 << 20, log);
    let (begin, mut line) = (clock::epoch_secs() - LINES / RATE, Vec::new());
    let mut lines = BACKLOG.lines_from(begin);
    for nth in 0..LINES {
        lines.next(&mut line);
        let second = begin + nth / RATE;
        let attacks = [(EARLY, LINES / 10), (LAST, LINES - LIMIT - 1)];
        if let Some((address, _)) = attacks.iter().find(|(_, from)| (*from..=from + LIMIT).contains(&nth)) {
            page(&mut line, *address, second);
        }
        log.write_all(&line)?;
    }
    log.flush()?;
    super::size(&lab.log())
}

/// Seconds after which each attacker was in the map.
struct Seen {
    early: f64,
    last: f64,
    live: f64,
}

/// Attacks live, and watches the map until all three are in it.
fn watch(lab: &Lab, began: Instant) -> Result<Seen> {
    let mut prober = Prober::open(lab, "backlog")?;
    let mut seen = [None; 3];
    let mut attacked = false;
    let mut reopened = began;
    while began.elapsed() < Duration::from_secs(120) {
        if !attacked && began.elapsed() >= Duration::from_millis(200) {
            attacked = true;
            attack(lab)?;
        }
        for (address, seen) in [EARLY, LAST, LIVE].into_iter().zip(&mut seen) {
            if seen.is_none() && prober.holds(address)? {
                *seen = Some(began.elapsed().as_secs_f64());
            }
        }
        if let [Some(early), Some(last), Some(live)] = seen {
            return Ok(Seen { early, last, live });
        }
        if reopened.elapsed() > Duration::from_millis(20) {
            // A starting daemon may put another map in place.
            (reopened, _) = (clock::now(), prober.reopen()?);
        }
        std::thread::sleep(Duration::from_millis(1));
    }
    bail!("after two minutes, of {EARLY}, {LAST} and {LIVE} in the map: {seen:?}")
}

fn attack(lab: &Lab) -> Result<()> {
    let mut log = File::options().append(true).open(lab.log())?;
    let mut line = Vec::new();
    for _ in 0..=LIMIT {
        page(&mut line, LIVE, clock::epoch_secs());
        log.write_all(&line)?;
    }
    Ok(())
}
