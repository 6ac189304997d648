//! From a written line to the entry in the XDP map, while 10,000 other lines a second are written.

use std::fs::File;
use std::io::Write;
use std::net::Ipv4Addr;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};

use super::prober::Prober;
use super::steady::{CROWD, RATE, start, step_aside};
use super::table::{Row, Target};
use super::{Bench, new_lab, quantile, traffic};
use crate::lab::clock;
use crate::lab::daemon::Config;

/// Attackers.
const BANS: u32 = 240;
/// Lines between two bans: four bans a second.
const EVERY: u64 = RATE / 4;
/// `thresholds.hard_limit`: an attacker's line after so many others bans it.
const LIMIT: u64 = 100;
/// Lines without any attack at the beginning.
const LEAD: u64 = 3 * RATE;

/// Adds the rows of this part.
///
/// # Errors
/// When a ban does not come at all, or the daemon does not run.
pub fn measure(bench: &mut Bench) -> Result<()> {
    let lab = new_lab()?;
    let config = Config::new(&lab, "latency")
        .with("thresholds", "hard_limit", LIMIT.to_string())
        // Learning only: nothing but the hard limit bans, so that the line that does it is known.
        .with("baseline", "warmup_secs", "86400")
        .with("bans", "durations", r#"["1h"]"#);
    let daemon = start(&lab, &bench.binary, config)?;
    let log = File::options().append(true).open(lab.log())?;
    let prober = Prober::open(&lab, "latency")?;
    // A thread of its own, because it takes a processor for itself.
    let story = std::thread::scope(|scope| {
        let thread = scope.spawn(|| Story::new(log, prober).tell());
        thread.join().map_err(|_| anyhow::anyhow!("the writer panicked"))?
    })
    .with_context(|| format!("the daemon said: {}", daemon.output()))?;
    let Story { mut latencies, mut gaps, late, .. } = story;
    // The last one is enforced before it is audited.
    let audited = || anyhow::Ok(daemon.audited("ban", None)?.into_iter().filter(|ban| ban["ok"] == true).count());
    let _ = clock::wait_until("all bans to be audited", Duration::from_secs(5), || {
        audited().is_ok_and(|bans: usize| bans == BANS as usize)
    });
    let bans = audited()?;
    ensure!(bans == BANS as usize, "{bans} bans in the audit log instead of {BANS}");
    latencies.sort_by(f64::total_cmp);
    gaps.sort_by(f64::total_cmp);
    let how = format!(
        "{BANS} attackers, each cut by the line after {LIMIT} (hard_limit) at a known instant among {RATE} lines/s; one thread writes and looks the address up in the pinned map all the time, so that an entry is seen late by at most the time between two look-ups: median {:.3}, 99 % {:.3} ms; {late:.1} % of the lines written more than 1 ms late",
        quantile(&gaps, 0.5),
        quantile(&gaps, 0.99),
    );
    for (what, share, limit) in [("half of them within", 0.5, 1.0), ("99 of 100 within", 0.99, 10.0)] {
        bench.table.add(Row {
            part: "latency",
            what: format!("line written to entry in the XDP map, {what}"),
            value: quantile(&latencies, share),
            unit: "ms",
            target: Target::AtMost(limit),
            how: if share < 0.9 {
                how.clone()
            } else {
                format!("the same; the slowest {:.2} ms", quantile(&latencies, 1.0))
            },
        });
    }
    Ok(())
}

/// An attacker whose last line is written.
struct Waiting {
    address: Ipv4Addr,
    since: Instant,
    looked: Instant,
}

struct Story {
    log: File,
    prober: Prober,
    waiting: Vec<Waiting>,
    /// Milliseconds from the line to the entry.
    latencies: Vec<f64>,
    /// Milliseconds from the look-up before to the one that found it.
    gaps: Vec<f64>,
    /// Per cent of the lines that were late.
    late: f64,
}

impl Story {
    fn new(log: File, prober: Prober) -> Self {
        Self { log, prober, waiting: Vec::new(), latencies: Vec::new(), gaps: Vec::new(), late: 0.0 }
    }

    fn tell(mut self) -> Result<Self> {
        step_aside()?;
        let (mut crowd, mut line) = (CROWD.lines_from(0), Vec::new());
        let total = LEAD + u64::from(BANS) * EVERY;
        let began = clock::now();
        let mut late = 0u64;
        for nth in 0..total {
            let due = began + Duration::from_nanos(nth * 1_000_000_000 / RATE);
            while clock::now() < due {
                self.look()?;
            }
            late += u64::from(clock::now() - due > Duration::from_millis(1));
            let second = clock::epoch_secs();
            let attack = nth.checked_sub(LEAD).map(|nth| (attacker((nth / EVERY) as u32), nth % EVERY));
            match attack {
                Some((address, EVERY_END)) => {
                    traffic::page(&mut line, address, second);
                    let since = clock::now();
                    self.log.write_all(&line)?;
                    self.waiting.push(Waiting { address, since, looked: since });
                    continue;
                }
                // Before it, every third line of the first part is the attacker's.
                Some((address, place)) if place % 3 == 0 && place / 3 < LIMIT => {
                    traffic::page(&mut line, address, second)
                }
                _ => crowd.next_at(second, &mut line),
            }
            self.log.write_all(&line)?;
        }
        let end = clock::now();
        while !self.waiting.is_empty() {
            ensure!(end.elapsed() < Duration::from_secs(5), "{} attackers were never banned", self.waiting.len());
            self.look()?;
        }
        self.late = 100.0 * late as f64 / total as f64;
        Ok(self)
    }

    /// Looks once for each attacker that is waited for.
    fn look(&mut self) -> Result<()> {
        let mut at = 0;
        while let Some(waiting) = self.waiting.get_mut(at) {
            let held = self.prober.holds(waiting.address)?;
            let now = clock::now();
            if held {
                self.latencies.push((now - waiting.since).as_secs_f64() * 1e3);
                self.gaps.push((now - waiting.looked).as_secs_f64() * 1e3);
                self.waiting.swap_remove(at);
                continue;
            }
            waiting.looked = now;
            // The table may have grown; then this is not the one that is in use any more.
            if now - waiting.since > Duration::from_millis(500) {
                self.prober.reopen()?;
            }
            at += 1;
        }
        Ok(())
    }
}

/// The last line of an attacker's share.
const EVERY_END: u64 = EVERY - 1;

/// An address of the network for benchmarks (RFC 2544).
fn attacker(n: u32) -> Ipv4Addr {
    Ipv4Addr::from(0xc612_0000 | (n + 1))
}
