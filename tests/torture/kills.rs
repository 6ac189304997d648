//! kill -9 of the whole daemon at moments nobody chose, under load, while bans come and go: none lost, none doubled,
//! offences exact, nothing corrupt, nothing left in the kernel that should not be there.
//!
//! `ANOMALY_KILLS` says how often (default 6).

use std::collections::{HashMap, HashSet};
use std::fs::{self, File};
use std::io::Write;
use std::path::Path;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::Duration;

use anomaly::store::Store;
use anomaly::time::Timestamp;
use anyhow::{Context, Result, bail, ensure};
use aya::maps::{HashMap as BpfMap, MapData};
use rusqlite::{Connection, OpenFlags};
use serde_json::Value;

use super::{Chance, binary, figure, from_env};
use crate::lab::daemon::{Config, Daemon};
use crate::lab::{Lab, clock, history, ready, run};

/// Requests of each attacker, all within a second.
const BURST: usize = 300;
/// A new attacker in every step; each comes once more, this many steps later, when its first ban has ended.
const STEP: Duration = Duration::from_millis(150);
const AGAIN: usize = 80;
/// So many attackers there can be.
const ATTACKERS: usize = 2 * 250 * 250;
/// Further lines of each step, from people.
const PEOPLE: usize = 200;

#[test]
fn random_kills_with_xdp() -> Result<()> {
    killed("random_kills_with_xdp", "xdp", from_env("ANOMALY_KILLS", 6))
}

#[test]
fn random_kills_with_iptables() -> Result<()> {
    // Beyond some hundreds of bans they are in a set, so that the rules are tested in the beginning only.
    killed("random_kills_with_iptables", "iptables", from_env("ANOMALY_KILLS", 6_u32).div_ceil(5))
}

fn killed(test: &str, backend: &str, kills: u32) -> Result<()> {
    if !ready(test) {
        return Ok(());
    }
    let lab = Lab::new("")?;
    lab.write_log(&history::quiet(clock::epoch_secs(), 30, 2))?;
    let config = Config::new(&lab, "kills")
        .with("enforcer", "backend", format!("{backend:?}"))
        .with("bans", "durations", r#"["2s", "10h"]"#)
        // Every step has its attacker: more than the brake lets pass.
        .with("bans", "brake_per_minute", "0");
    let mut daemon = Daemon::start(&lab, &binary(), config)?;
    clock::wait_until("the daemon to have learned from the log", Duration::from_secs(20), || {
        daemon.status().is_ok_and(|s| s["records"].as_u64() > Some(1000) && s["warmup_left_secs"] == 0)
    })?;
    let (done, attackers) = (AtomicBool::new(false), AtomicUsize::new(0));
    let mut starts = 0;
    std::thread::scope(|scope| -> Result<()> {
        let log = lab.log();
        let writer = scope.spawn(|| write_attacks(File::options().append(true).open(log)?, &attackers, &done));
        let story = kill_often(&lab, &mut daemon, kills, &mut starts);
        done.store(true, Ordering::Relaxed);
        writer.join().map_err(|_| anyhow::anyhow!("the writer panicked"))??;
        story
    })
    .with_context(|| format!("{backend}, after {starts} starts"))?;
    let attackers = attackers.load(Ordering::Relaxed);
    let expected: HashSet<String> = (0..attackers).map(attacker).collect();
    let active = || -> Result<HashMap<String, u64>> {
        let bans = daemon.json(&["bans"])?;
        let rows = bans.as_array().context("no array")?.iter();
        Ok(rows.filter_map(|row| Some((row["ip"].as_str()?.to_owned(), row["offence"].as_u64()?))).collect())
    };
    clock::wait_until("every attacker to be banned again, and nobody else", Duration::from_secs(60), || {
        active().is_ok_and(|bans| {
            bans.len() == attackers && bans.iter().all(|(ip, offence)| *offence == 2 && expected.contains(ip))
        })
    })
    .map_err(|e| e.context(format!("{} {:?}", wrong(&expected, &active()), daemon.status())))?;
    ensure!(daemon.status()?["enforcement_ratio"] == 1.0, "{}", daemon.status()?);
    enforced_are(&lab, backend, &expected)?;
    let told = told_once(&daemon, &expected)?;
    daemon.stop()?;
    intact(&lab.dir().join("kills.db"))?;
    let at = Timestamp::from_secs(i64::try_from(clock::epoch_secs())?);
    let offences = Store::open(&lab.dir().join("kills.db"), at)?.loaded.state.offences;
    for offence in offences.iter().filter(|o| expected.contains(&o.prefix.addr().to_string())) {
        ensure!(offence.count == 2, "{offence:?}");
    }
    let down = daemon.command(&["down"])?;
    ensure!(down.status.success(), "{down:?}");
    enforced_are(&lab, backend, &HashSet::new())?;
    figure(
        &format!("kill -9, {backend}"),
        &format!(
            "{kills} kills under load ({starts} starts), {} bans of {attackers} attackers and {kills} by hand: 0 lost, 0 doubled, \
             offences exact, database intact after each, each ban and each end once in the audit log ({told} lines, all whole), 0 orphans",
            2 * attackers
        ),
    );
    Ok(())
}

fn kill_often(lab: &Lab, daemon: &mut Daemon<'_>, kills: u32, starts: &mut u32) -> Result<()> {
    let mut chance = Chance::new();
    let mut killed = 0;
    while killed < kills {
        // A ban that runs out, most of them while nobody watches.
        let output = daemon.command(&["ban", &format!("198.51.100.{}", 200 + killed % 50), "--for", "1s"])?;
        ensure!(output.status.success(), "{output:?}");
        std::thread::sleep(Duration::from_millis(chance.below(900)));
        daemon.kill();
        killed += 1;
        intact(&lab.dir().join("kills.db"))?;
        if killed < kills && chance.below(3) == 0 {
            // In the middle of a start as well.
            daemon.relaunch()?;
            std::thread::sleep(Duration::from_millis(chance.below(120)));
            daemon.kill();
            (killed, *starts) = (killed + 1, *starts + 1);
            intact(&lab.dir().join("kills.db"))?;
        }
        daemon.restart()?;
        *starts += 1;
        if killed % 50 == 0 {
            eprintln!("{killed} of {kills} kills");
        }
    }
    Ok(())
}

/// A new attacker each step, the one of some steps ago once more, and people. Ends when each has come twice.
fn write_attacks(mut log: File, attackers: &AtomicUsize, done: &AtomicBool) -> Result<()> {
    let (mut again, mut last) = (0, None);
    for step in 0.. {
        let now = clock::epoch_secs();
        let burst = |n: usize| history::line(now, &attacker(n), "/", 200).repeat(BURST);
        let mut text = String::new();
        if done.load(Ordering::Relaxed) {
            last.get_or_insert(step);
        } else {
            text += &burst(step);
            attackers.store(step + 1, Ordering::Relaxed);
        }
        if step >= AGAIN {
            text += &burst(again);
            again += 1;
        }
        for n in 0..PEOPLE {
            text += &history::line(now, &format!("10.0.{}.{}", n, step % 250), "/app.css", 200);
        }
        log.write_all(text.as_bytes())?;
        if last == Some(again) {
            return Ok(());
        }
        std::thread::sleep(STEP);
    }
    Ok(())
}

/// The nth of the addresses that are set aside for measuring (198.18.0.0/15).
fn attacker(n: usize) -> String {
    assert!(n < ATTACKERS, "more than five hours: there are no more addresses for attackers");
    format!("198.{}.{}.{}", 18 + n / (250 * 250), n / 250 % 250, 1 + n % 250)
}

#[test]
fn every_attacker_has_an_address_of_its_own() {
    let all: HashSet<std::net::Ipv4Addr> = (0..ATTACKERS).map(|n| attacker(n).parse().expect("an address")).collect();
    assert_eq!(all.len(), ATTACKERS);
}

/// What the database's files hold now can be recovered and is sound. Looked at in a copy, so that the daemon finds
/// what its predecessor left.
fn intact(path: &Path) -> Result<()> {
    let copy = tempfile::tempdir()?;
    for ending in ["", "-wal"] {
        let name = format!("{}{ending}", path.display());
        if Path::new(&name).exists() {
            fs::copy(&name, copy.path().join(format!("copy.db{ending}")))?;
        }
    }
    let database = Connection::open_with_flags(copy.path().join("copy.db"), OpenFlags::SQLITE_OPEN_READ_WRITE)?;
    let verdict: String = database.query_row("PRAGMA integrity_check", [], |row| row.get(0))?;
    ensure!(verdict == "ok", "{verdict}");
    Ok(())
}

/// The kernel drops exactly these addresses.
fn enforced_are(lab: &Lab, backend: &str, expected: &HashSet<String>) -> Result<()> {
    let held = || if backend == "xdp" { in_map(lab) } else { in_rules(lab) };
    let same = clock::wait_until("the kernel to hold the bans and nothing else", Duration::from_secs(20), || {
        held().is_ok_and(|held| held == *expected)
    });
    same.map_err(|e| e.context(format!("held: {:?}", held().map(|held| held.len()))))
}

/// The addresses in the pinned map, which belongs to a mount namespace of the lab's; none where nothing is pinned.
fn in_map(lab: &Lab) -> Result<HashSet<String>> {
    let root = format!("/proc/{}/root", lab.server.pid());
    let pins = Path::new(&root).join(lab.bpffs().strip_prefix("/")?).join("kills");
    if !pins.exists() {
        return Ok(HashSet::new());
    }
    let version = format!("v{}", anomaly_common::LAYOUT_VERSION);
    let map = aya::maps::Map::HashMap(MapData::from_pin(pins.join(version).join("BANS_V4"))?);
    let map: BpfMap<MapData, u32, anomaly_common::Ban> = map.try_into()?;
    // Those that have ended are swept later.
    let now = rustix::time::clock_gettime(rustix::time::ClockId::Monotonic);
    let now = u64::try_from(now.tv_sec)? * 1_000_000_000 + u64::try_from(now.tv_nsec)?;
    let entries = map.iter().collect::<Result<Vec<_>, _>>()?;
    let active = entries.into_iter().filter(|(_, ban)| ban.until_ns > now);
    Ok(active.map(|(key, _)| std::net::Ipv4Addr::from(key.to_ne_bytes()).to_string()).collect())
}

/// The sources that INPUT's rules and the sets drop.
fn in_rules(lab: &Lab) -> Result<HashSet<String>> {
    let mut held = HashSet::new();
    for line in run(lab.server.command("iptables").args(["-w", "-S", "INPUT"]))?.lines() {
        let source = line.split_once("-s ").and_then(|(_, rest)| rest.split_once("/32 "));
        if let Some((source, _)) = source
            && !held.insert(source.to_owned())
        {
            bail!("two rules for {source}");
        }
    }
    for line in run(lab.server.command("ipset").arg("save"))?.lines().filter(|line| line.starts_with("add ")) {
        held.extend(line.split(' ').nth(2).map(|entry| entry.trim_end_matches("/32").to_owned()));
    }
    Ok(held)
}

/// Each ban was told once, and so was its end. The number of audit lines, each of which can be read.
fn told_once(daemon: &Daemon<'_>, attackers: &HashSet<String>) -> Result<usize> {
    let lines = daemon.audit()?;
    let told = |event: &str| -> Result<HashMap<(String, u64), u32>> {
        let mut told = HashMap::new();
        for line in lines.iter().filter(|line| line["event"] == event) {
            let offence = line["offence"].as_u64().context("no offence")?;
            *told.entry((line["ip"].as_str().context("no ip")?.to_owned(), offence)).or_default() += 1;
        }
        Ok(told)
    };
    let (bans, unbans) = (told("ban")?, told("unban")?);
    let twice: Vec<_> = bans.iter().chain(&unbans).filter(|(_, times)| **times > 1).collect();
    ensure!(twice.is_empty(), "told more than once: {twice:?}");
    // A first ban may be over by the time the daemon reads of it; then neither it nor its end is news.
    let lasts = |(ip, offence): &(String, u64)| attackers.contains(ip) && *offence == 2;
    let last = bans.keys().filter(|ban| lasts(ban)).count();
    ensure!(last == attackers.len(), "of {} bans {last} were told", attackers.len());
    let over: HashSet<_> = bans.keys().filter(|ban| !lasts(ban)).collect();
    let differ: Vec<_> = over.symmetric_difference(&unbans.keys().collect()).take(20).copied().collect();
    let of_them = |line: &&Value| differ.iter().any(|(ip, _)| line["ip"] == **ip);
    ensure!(
        differ.is_empty(),
        "ended and not told, or told and never banned: {differ:?}; told of them: {:#?}; starts: {:#?}",
        lines.iter().filter(of_them).collect::<Vec<_>>(),
        lines.iter().filter(|line| line["event"] == "started").collect::<Vec<_>>()
    );
    Ok(lines.len())
}

/// What differs, for whoever reads the failure.
fn wrong(expected: &HashSet<String>, active: &Result<HashMap<String, u64>>) -> String {
    let Ok(active) = active else { return format!("{active:?}") };
    let missing: Vec<_> = expected.iter().filter(|ip| !active.contains_key(*ip)).take(20).collect();
    let odd: Vec<_> = active.iter().filter(|(ip, n)| **n != 2 || !expected.contains(*ip)).take(20).collect();
    format!("{} expected, {} active; missing {missing:?}; not as expected {odd:?}", expected.len(), active.len())
}
