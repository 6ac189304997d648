//! From log line to dropped packet: the real daemon, real Nginx and real clients in a lab of
//! network namespaces, one test per promise. What needs no packet is tested elsewhere.
//!
//! Each test has a lab of its own, so they run side by side.

mod ban;
mod broken_config;
mod browser;
mod cleanup;
mod clock_steps;
mod crash;
mod fallback;
mod faults;
mod injection;
mod log;
mod logins;
mod operate;
mod proxy;
mod replay;
mod start;

use std::path::Path;
use std::time::Duration;

use anyhow::Result;
use serde_json::Value;

use crate::lab::client::Traffic;
use crate::lab::daemon::{Config, Daemon};
use crate::lab::{Lab, clock, history, ready};

/// The daemon's binary, as cargo built it for these tests.
fn binary() -> &'static Path {
    Path::new(env!("CARGO_BIN_EXE_anomaly"))
}

/// A lab whose log holds half an hour of quiet traffic; `None` where there can be none.
fn lab(test: &str) -> Result<Option<Lab>> {
    if !ready(test) {
        return Ok(None);
    }
    let lab = Lab::new("")?;
    lab.write_log(&history::quiet(clock::epoch_secs(), 30, 2))?;
    Ok(Some(lab))
}

/// A daemon that has learned from the log.
fn daemon<'lab>(lab: &'lab Lab, config: Config) -> Result<Daemon<'lab>> {
    let daemon = Daemon::start(lab, binary(), config)?;
    clock::wait_until("the daemon to have learned from the log", Duration::from_secs(20), || {
        daemon.status().is_ok_and(|s| s["records"].as_u64() > Some(1000) && s["warmup_left_secs"] == 0)
    })?;
    Ok(daemon)
}

/// The ban's row, once there is one with this offence. What `bans` shows is up to a second old.
fn wait_for_ban(daemon: &Daemon<'_>, ip: &str, offence: u64, patience: Duration) -> Result<Value> {
    clock::wait_for(&format!("offence {offence} of {ip}"), patience, || {
        daemon.ban_of(ip).ok().flatten().filter(|row| row["offence"].as_u64() == Some(offence))
    })
    .map_err(|e| e.context(format!("bans: {:?}\noutput: {}", daemon.json(&["bans"]), daemon.output())))
}

/// Seconds from a client's first request to the first one that got no connection.
pub fn seconds_to_cut(flood: &Traffic) -> f64 {
    flood.first_cut().map_or(f64::INFINITY, |cut| (cut - flood.began).as_secs_f64())
}
