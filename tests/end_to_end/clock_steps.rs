//! The wall clock is set hours forth and back under the daemon (by faketime, so only for its process), and the log's with
//! it, as on a host whose clock was wrong.

use std::fs::{self, File};
use std::io::Write;
use std::process::Command;
use std::time::Duration;

use anyhow::{Context, Result, ensure};

use super::{binary, lab};
use crate::lab::daemon::{Config, Daemon, Start};
use crate::lab::{Lab, clock, history, run, skip};

const HOURS: u64 = 3;

/// Burst of one attacker, with the stamps of a clock that is `ahead` seconds ahead.
fn attack(lab: &Lab, address: &str, ahead: u64) -> Result<()> {
    attack_at(lab, address, clock::epoch_secs() + ahead)
}

/// The same with this stamp, in seconds since the epoch.
fn attack_at(lab: &Lab, address: &str, stamp: u64) -> Result<()> {
    let line = history::line(stamp, address, "/", 200);
    Ok(File::options().append(true).open(lab.log())?.write_all(line.repeat(300).as_bytes())?)
}

fn wait_for_ban(daemon: &Daemon<'_>, address: &str, there: bool) -> Result<()> {
    let what = format!("{address} to be {}", if there { "banned" } else { "free" });
    clock::wait_until(&what, Duration::from_secs(20), || daemon.ban_of(address).is_ok_and(|ban| ban.is_some() == there))
        .map_err(|e| e.context(format!("{:?} {:?} {}", daemon.status(), daemon.json(&["bans"]), daemon.output())))
}

#[test]
fn a_clock_set_hours_forth_and_back_blinds_nothing() -> Result<()> {
    const NAME: &str = "a_clock_set_hours_forth_and_back_blinds_nothing";
    let Some(lab) = lab(NAME)? else { return Ok(()) };
    // The wrapper knows where its library is.
    let Ok(environment) = run(Command::new("faketime").args(["-f", "+0", "env"])) else {
        skip(NAME, "faketime is not installed");
        return Ok(());
    };
    let preload = environment.lines().find(|line| line.starts_with("LD_PRELOAD=")).context("faketime sets nothing")?;
    let offset = lab.dir().join("offset");
    fs::write(&offset, "+0")?;
    let start = Start {
        through: vec![
            "env".into(),
            preload.into(),
            format!("FAKETIME_TIMESTAMP_FILE={}", offset.display()),
            "FAKETIME_NO_CACHE=1".into(),
            // The kernel's bans end on the real monotonic clock, which nobody can set.
            "FAKETIME_DONT_FAKE_MONOTONIC=1".into(),
        ],
        ..Start::default()
    };
    let config = Config::new(&lab, "steps").with("bans", "durations", r#"["1h"]"#);
    let mut daemon = Daemon::launch(&lab, binary(), config, &start)?;
    daemon.wait_ready()?;
    clock::wait_until("the daemon to have learned from the log", Duration::from_secs(20), || {
        daemon.status().is_ok_and(|s| s["records"].as_u64() > Some(1000))
    })?;
    attack(&lab, "198.18.0.1", 0)?;
    wait_for_ban(&daemon, "198.18.0.1", true)?;

    fs::write(&offset, format!("+{HOURS}h"))?;
    // Its hour is over, by this clock; nobody is banned for longer than was said.
    wait_for_ban(&daemon, "198.18.0.1", false)?;
    attack(&lab, "198.18.0.2", HOURS * 3600)?;
    wait_for_ban(&daemon, "198.18.0.2", true)?;

    fs::write(&offset, "+0")?;
    attack(&lab, "198.18.0.3", 0)?;
    wait_for_ban(&daemon, "198.18.0.3", true)?;
    wait_for_ban(&daemon, "198.18.0.2", true)?;

    // Stamps that are wrong while the clock is right: of next year, of a summer time that has ended.
    for (address, ahead) in [("198.18.0.4", 300 * 86_400), ("198.18.0.5", 3600)] {
        attack(&lab, address, ahead)?;
        wait_for_ban(&daemon, address, true)?;
    }
    attack(&lab, "198.18.0.6", 0)?;
    wait_for_ban(&daemon, "198.18.0.6", true)?;
    // Of the past: an hour ago, and 1970, as of a clock without a battery. A ban that they lead to is over already; they must
    // not hide who attacks now.
    let now = clock::epoch_secs();
    for (address, next, stamp) in [("198.18.0.7", "198.18.0.8", now - 3600), ("198.18.0.9", "198.18.0.10", 0)] {
        let records = || Ok::<_, anyhow::Error>(daemon.status()?["records"].as_u64().unwrap_or(0));
        let before = records()?;
        attack_at(&lab, address, stamp)?;
        clock::wait_until("records of the past to be read", Duration::from_secs(20), || {
            records().is_ok_and(|records| records >= before + 300)
        })
        .map_err(|e| e.context(format!("{:?}", daemon.status())))?;
        attack(&lab, next, 0)?;
        wait_for_ban(&daemon, next, true)?;
    }
    let status = daemon.status()?;
    ensure!(status["enforcement_ratio"] == 1.0 && status["rejected"] == 0, "{status}");
    Ok(())
}
