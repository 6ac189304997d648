//! Whole operations of the enforcer: opening, loading a million bans, reconciling them, and their memory.

use std::time::{Duration, Instant};

use anomaly::enforce::{Drop, Enforcer, reconcile};
use anyhow::{Context, Result, ensure};
use aya::maps::MapData;
use ipnet::IpNet;

use super::program::{Guard, v4};
use super::{Row, Table};

/// Adds the lines of this part.
pub fn measure(table: &mut Table) -> Result<()> {
    let ms = |duration: Duration| duration.as_secs_f64() * 1000.0;
    for entries in [100_000, 1_000_000] {
        let left = Some(Duration::from_secs(36_000));
        let drops: Vec<Drop> =
            v4(entries, true).into_iter().map(|address| Drop { prefix: IpNet::from(address), left }).collect();
        let mut add = |what: &str, value: f64, unit, how| {
            table.add(Row { what: what.into(), entries: Some(entries), value, unit, how });
        };
        let start = now();
        let mut guard = Guard::open()?;
        let opened = start.elapsed();
        let answers = guard.xdp.ban(&drops);
        let loaded = start.elapsed();
        ensure!(answers.iter().all(Result::is_ok), "{:?}", answers.into_iter().find_map(Result::err));
        add("open the enforcer, nothing pinned", ms(opened), "ms", "wall clock");
        add("from start to all bans enforced", ms(loaded), "ms", "wall clock: open, grow, batch insert");
        let start = now();
        let found = reconcile(&mut guard.xdp, &drops)?;
        add("reconcile, nothing to repair", ms(start.elapsed()), "ms", "wall clock: batch look-up, compare");
        ensure!(found.missing.is_empty() && found.orphans.is_empty(), "{found:?}");
        let map = MapData::from_pin(guard.pin("BANS_V4"))?;
        add(
            "memory in the kernel, per ban",
            memlock(&map)? / entries as f64,
            "bytes",
            "memlock of the map: buckets and entries",
        );
        let start = now();
        guard.clear()?;
        add("lift all", ms(start.elapsed()), "ms", "wall clock: batch look-up, batch delete");
        guard.close()?;
    }
    Ok(())
}

/// What the kernel charges for a map.
fn memlock(map: &MapData) -> Result<f64> {
    use std::os::fd::{AsFd, AsRawFd};
    let info = std::fs::read_to_string(format!("/proc/self/fdinfo/{}", map.fd().as_fd().as_raw_fd()))?;
    let line = info.lines().find_map(|line| line.strip_prefix("memlock:")).context("no memlock")?;
    Ok(line.trim().parse()?)
}

#[expect(clippy::disallowed_methods, reason = "a bench measures")]
fn now() -> Instant {
    Instant::now()
}
