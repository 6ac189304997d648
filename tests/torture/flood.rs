//! An attack on the memory: millions of addresses that are seen once, and floods hidden among them. Memory stays within
//! what is configured, the floods are caught, and a record costs at most twice of what it costs otherwise.
//!
//! `anomaly replay` reads ten minutes of log time from a pipe, so parser and engine are those of the daemon.
//! `ANOMALY_FLOOD_ADDRESSES` says how many addresses, one IPv4 in six, the others IPv6 of as many /64s (default 240,000;
//! `cargo xtask torture` takes 12,000,000).

use std::collections::HashMap;
use std::fmt::Write as _;
use std::io::{BufRead, BufReader, Write as _};
use std::process::{Child, Command, Stdio};

use anyhow::{Context, Result, ensure};
use serde_json::Value;

use super::{Chance, binary, figure, from_env};
use crate::lab::history;

/// Log time of the attack and of the quiet time before.
const SECONDS: u64 = 600;
const START: u64 = 1_777_280_000;
/// Clients that the daemon may follow, as a share of the addresses: with all of them, the default of a million.
const TRACKED: u64 = 12;
/// A flood begins every this many seconds ...
const FLOOD_EVERY: u64 = 45;
/// ... asks this often a second ...
const FLOOD_RPS: usize = 20;
/// ... for this long, and must be banned within this time.
const FLOOD_SECS: u64 = 30;
const CAUGHT_WITHIN: u64 = 10;
/// Resident bytes beside the table, and of each followed client: what it holds, and the room it may leave.
const FIXED_BYTES: u64 = 48 << 20;
const CLIENT_BYTES: u64 = 200;

#[test]
fn an_address_flood_costs_no_memory_and_hides_nobody() -> Result<()> {
    let addresses = from_env("ANOMALY_FLOOD_ADDRESSES", 240_000);
    // The crowd of the comparison has a sixtieth of them.
    ensure!(addresses >= 60, "ANOMALY_FLOOD_ADDRESSES={addresses} is no flood; at least 60");
    let attacked = replay(addresses, stranger)?;
    // The same records, from a crowd that comes back every ten seconds or so.
    let normal = replay(addresses, |_, chance| {
        let n = chance.below(addresses / 60);
        format!("10.{}.{}.{}", n >> 16, n >> 8 & 255, n & 255)
    })?;
    ensure!(attacked.tracked <= attacked.cap, "{} clients followed, {} allowed", attacked.tracked, attacked.cap);
    let allowed = FIXED_BYTES + CLIENT_BYTES * attacked.cap;
    ensure!(attacked.memory <= allowed, "{} bytes of memory, {allowed} allowed", attacked.memory);
    for run in [&attacked, &normal] {
        ensure!(run.caught.len() == run.floods, "{} of {} floods were caught", run.caught.len(), run.floods);
        let slowest = run.caught.iter().max().copied().unwrap_or(0);
        ensure!(slowest <= CAUGHT_WITHIN, "caught only after {slowest} s");
        ensure!(run.others == 0, "{} others were banned", run.others);
    }
    let cost = attacked.cpu_secs / normal.cpu_secs;
    figure(
        "address flood",
        &format!(
            "{} IPv4 and {} IPv6 addresses in {SECONDS} s of log time: {} of at most {} clients followed, {:.0} MiB, \
             {:.2} x the CPU time of {} normal records, {} of {} floods caught, after {} s at most, nobody else",
            addresses / 6,
            addresses - addresses / 6,
            attacked.tracked,
            attacked.cap,
            attacked.memory as f64 / f64::from(1 << 20),
            cost,
            normal.records,
            attacked.caught.len(),
            attacked.floods,
            attacked.caught.iter().max().copied().unwrap_or(0),
        ),
    );
    ensure!(cost <= 2.0, "a record costs {cost:.2} times as much as otherwise");
    Ok(())
}

/// What a replay did.
struct Run {
    records: u64,
    tracked: u64,
    cap: u64,
    /// Most resident bytes.
    memory: u64,
    cpu_secs: f64,
    floods: usize,
    /// Seconds from a flood's first request to its ban.
    caught: Vec<u64>,
    /// Bans of somebody else.
    others: usize,
}

fn replay(addresses: u64, mut client: impl FnMut(u64, &mut Chance) -> String) -> Result<Run> {
    let dir = tempfile::tempdir()?;
    let cap = (addresses / TRACKED).max(1000);
    let config = dir.path().join("flood.toml");
    std::fs::write(&config, format!("[bans]\nmax_tracked_ips = {cap}\n"))?;
    let mut command = Command::new(binary());
    for (key, _) in std::env::vars_os().filter(|(key, _)| key.as_encoded_bytes().starts_with(b"ANOMALY_")) {
        command.env_remove(key);
    }
    command.arg("--config").arg(&config).args(["replay", "--json", "-"]);
    let mut child = Reaped(command.stdin(Stdio::piped()).stdout(Stdio::piped()).spawn()?);
    let output = child.0.stdout.take().context("no output")?;
    let rows = std::thread::spawn(move || {
        BufReader::new(output).lines().map(|line| Ok(serde_json::from_str(&line?)?)).collect::<Result<Vec<Value>>>()
    });
    let mut input = child.0.stdin.take().context("no input")?;
    input.write_all(history::quiet(START, 20, 0).as_bytes())?;
    let mut chance = Chance::new();
    let (mut floods, mut written) = (HashMap::new(), 0);
    for second in 0..SECONDS {
        let due = addresses * (second + 1) / SECONDS;
        let mut text = String::new();
        // Their stamp is the same; writing it once a line is most of the work.
        let rest = history::line(START + second, "", "/", 200);
        let (head, rest) = rest.split_once("\"\"").context("no address in a line")?;
        for n in written..due {
            let _ = write!(text, "{head}\"{}\"{rest}", client(n, &mut chance));
        }
        written = due;
        let flood = second / FLOOD_EVERY;
        let began = flood * FLOOD_EVERY;
        if second - began < FLOOD_SECS && began + FLOOD_SECS <= SECONDS {
            let (from, banned) = if flood.is_multiple_of(2) {
                (format!("198.18.0.{flood}"), format!("198.18.0.{flood}"))
            } else {
                (format!("2001:db8:ffff:{flood}::1"), format!("2001:db8:ffff:{flood}::/64"))
            };
            floods.insert(banned, START + began);
            text += &history::line(START + second, &from, "/", 200).repeat(FLOOD_RPS);
        }
        input.write_all(text.as_bytes())?;
    }
    input.flush()?;
    // What is left in the pipe (64 KiB) changes nothing of these.
    let (memory, cpu_secs) = (peak_resident(child.0.id())?, cpu_time(child.0.id())?);
    drop(input);
    let rows = rows.join().map_err(|_| anyhow::anyhow!("the reader panicked"))??;
    let ended = child.0.wait()?;
    ensure!(ended.success(), "{ended}");
    let summary = &rows.last().context("nothing was printed")?["summary"];
    let (mut caught, mut others) = (Vec::new(), 0);
    for row in rows.iter().filter(|row| row["action"] == "ban") {
        let at: anomaly::time::Timestamp =
            anomaly::time::Timestamp::parse(row["time"].as_str().context("no time")?).context("no time")?;
        match floods.remove(row["ip"].as_str().unwrap_or_default()) {
            Some(began) => caught.push(u64::try_from(at.as_secs())?.saturating_sub(began)),
            None => others += 1,
        }
    }
    let number = |key: &str| summary[key].as_u64().with_context(|| format!("{summary}"));
    Ok(Run {
        records: number("records")?,
        tracked: number("tracked_ips_peak")?,
        cap,
        memory,
        cpu_secs,
        floods: floods.len() + caught.len(),
        caught,
        others,
    })
}

/// An address nobody has seen: of IPv4 one in six, otherwise in a /64 of its own.
fn stranger(n: u64, chance: &mut Chance) -> String {
    if n.is_multiple_of(6) {
        // Coprime to 2^24, so that each comes once, in no order.
        let n = (n / 6).wrapping_mul(11_400_715) % (1 << 24);
        return format!("60.{}.{}.{}", n >> 16, n >> 8 & 255, n & 255);
    }
    let n = n.wrapping_mul(2_654_435_761) % (1 << 32);
    format!("2a00:{:x}:{:x}:{:x}::{:x}", n >> 16, n & 0xffff, n % 7, 1 + chance.below(1 << 16))
}

/// A child that does not outlive a failure.
struct Reaped(Child);

impl Drop for Reaped {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

fn peak_resident(pid: u32) -> Result<u64> {
    let status = std::fs::read_to_string(format!("/proc/{pid}/status"))?;
    let kib = status.lines().find_map(|line| line.strip_prefix("VmHWM:")).context("no VmHWM")?;
    Ok(kib.trim().trim_end_matches(" kB").parse::<u64>()? << 10)
}

/// Seconds of CPU so far: unlike elapsed time the same on a busy machine.
fn cpu_time(pid: u32) -> Result<f64> {
    let mut ns = 0;
    for task in std::fs::read_dir(format!("/proc/{pid}/task"))? {
        let text = std::fs::read_to_string(task?.path().join("schedstat"))?;
        ns += text.split(' ').next().context("nothing in schedstat")?.parse::<u64>()?;
    }
    Ok(ns as f64 / 1e9)
}
