//! kill -9 at moments nobody chose, while bans come and go: none lost, none doubled, nothing corrupt.
//!
//! `ANOMALY_KILLS` says how often (default 6, which takes a quarter of a minute).

use std::collections::HashMap;
use std::fs::File;
use std::io::Write;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::Duration;

use anyhow::{Context, Result, ensure};

use super::{daemon, lab};
use crate::lab::daemon::Config;
use crate::lab::{clock, history};

/// Requests of each attacker, all within a second.
const BURST: usize = 300;

#[test]
fn random_kills_lose_and_double_nothing() -> Result<()> {
    let Some(lab) = lab("random_kills_lose_and_double_nothing")? else { return Ok(()) };
    let kills: u32 = std::env::var("ANOMALY_KILLS").ok().and_then(|n| n.parse().ok()).unwrap_or(6);
    let config = Config::new(&lab, "kills").with("bans", "durations", "[\"1h\"]").with("bans", "brake_per_minute", "0");
    let mut daemon = daemon(&lab, config)?;
    let (done, attackers) = (AtomicBool::new(false), AtomicUsize::new(0));
    let mut chance = Chance(0x5eed);
    std::thread::scope(|scope| -> Result<()> {
        let log = lab.log();
        let writer = scope.spawn(|| write_attacks(File::options().append(true).open(log)?, &attackers, &done));
        let story = (|| {
            for round in 0..kills {
                // A ban that runs out, most of them while nobody watches.
                let output = daemon.command(&["ban", &format!("198.51.100.{}", 200 + round % 50), "--for", "1s"])?;
                ensure!(output.status.success(), "{output:?}");
                std::thread::sleep(Duration::from_millis(chance.below(900)));
                daemon.kill();
                if chance.below(3) == 0 {
                    // In the middle of a start as well.
                    daemon.relaunch()?;
                    std::thread::sleep(Duration::from_millis(chance.below(120)));
                    daemon.kill();
                }
                daemon.restart()?;
            }
            Ok(())
        })();
        done.store(true, Ordering::Relaxed);
        writer.join().map_err(|_| anyhow::anyhow!("the writer panicked"))??;
        story
    })?;
    let attackers = attackers.load(Ordering::Relaxed);
    let offences = || -> Result<HashMap<String, u64>> {
        let bans = daemon.json(&["bans"])?;
        let rows = bans.as_array().context("no array")?.iter();
        Ok(rows.filter_map(|row| Some((row["ip"].as_str()?.to_owned(), row["offence"].as_u64()?))).collect())
    };
    clock::wait_until("every attacker to be banned, and nobody else", Duration::from_secs(30), || {
        offences().is_ok_and(|bans| bans.len() == attackers && bans.keys().all(|ip| ip.starts_with("198.18.")))
    })
    .map_err(|e| e.context(format!("{attackers} attackers, bans: {:?}\n{}", offences(), daemon.output())))?;
    for (ip, offence) in offences()? {
        ensure!(offence == 1, "{ip}: offence {offence}");
    }
    // Reconciliation found everything, and the kernel holds no more than it should.
    let held = daemon.status()?;
    ensure!(held["enforcement_ratio"] == 1.0, "{held}");
    let mut told: HashMap<String, u32> = HashMap::new();
    for line in daemon.audited("ban", None)? {
        *told.entry(line["ip"].as_str().context("no ip")?.to_owned()).or_default() += 1;
    }
    told.retain(|ip, times| *times > 1 && ip.starts_with("198.18."));
    ensure!(told.is_empty(), "told more than once: {told:?}");
    daemon.stop()?;
    let database = rusqlite::Connection::open(lab.dir().join("kills.db"))?;
    let verdict: String = database.query_row("PRAGMA integrity_check", [], |row| row.get(0))?;
    ensure!(verdict == "ok", "{verdict}");
    Ok(())
}

/// A new attacker every 150 ms, and somebody harmless now and then.
fn write_attacks(mut log: File, attackers: &AtomicUsize, done: &AtomicBool) -> Result<()> {
    while !done.load(Ordering::Relaxed) {
        let n = attackers.load(Ordering::Relaxed);
        let now = clock::epoch_secs();
        let attacker = history::line(now, &format!("198.18.{}.{}", n / 250, 1 + n % 250), "/", 200);
        let mut text = attacker.repeat(BURST);
        text += &history::line(now, &format!("198.51.100.{}", 100 + n % 30), "/", 200);
        log.write_all(text.as_bytes())?;
        attackers.fetch_add(1, Ordering::Relaxed);
        std::thread::sleep(Duration::from_millis(150));
    }
    Ok(())
}

/// Numbers without a pattern, the same in every run (xorshift64, Marsaglia 2003).
struct Chance(u64);

impl Chance {
    fn below(&mut self, limit: u64) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0 % limit
    }
}
