//! From the first request of a flood to the first dropped packet: real Nginx, real connections, the real daemon.

use std::net::Ipv4Addr;
use std::path::Path;
use std::time::Duration;

use anyhow::{Context, Result, ensure};

use super::prober::Prober;
use super::table::{Row, Target};
use super::{Bench, median, new_lab};
use crate::lab::client::{Answer, Plan, Traffic};
use crate::lab::daemon::{Config, Daemon};
use crate::lab::nginx::Nginx;
use crate::lab::{INTERFACE, Lab, clock, history};

/// Attackers, one after the other.
pub(super) const FLOODS: u8 = 5;
/// Requests a second.
pub(super) const RATE: f64 = 200.0;

/// What one flood came to.
struct Cut {
    /// Seconds from its first request to its first dropped packet.
    secs: f64,
    /// Milliseconds from the log stamp of the deciding request to the entry in the map.
    own_ms: f64,
    /// Requests that were answered.
    served: usize,
}

/// Adds the rows of this part.
///
/// # Errors
/// When a flood is not cut, or something does not run.
pub fn measure(bench: &mut Bench) -> Result<()> {
    let lab = new_lab()?;
    lab.write_log(&history::quiet(clock::epoch_secs(), 30, 2))?;
    let _nginx = Nginx::start(&lab)?;
    let daemon = learned(&lab, &bench.binary)?;
    let prober = Prober::open(&lab, "flood")?;
    let mut cuts = Vec::new();
    for n in 0..FLOODS {
        cuts.push(flood(&lab, &daemon, &prober, attacker(&lab, n)?)?);
    }
    let of = |figure: fn(&Cut) -> f64| median(cuts.iter().map(figure).collect());
    let (fastest, slowest) = cuts.iter().fold((f64::MAX, 0.0f64), |(low, high), c| (low.min(c.secs), high.max(c.secs)));
    bench.table.add(Row {
        part: "flood",
        what: "200 req/s flood, first request to first dropped packet".into(),
        value: of(|cut| cut.secs),
        unit: "s",
        target: Target::AtMost(3.0),
        how: format!(
            "median of {FLOODS} new addresses ({fastest:.2} to {slowest:.2} s); real Nginx and connections, daemon that has learned from 30 quiet minutes, defaults; the XDP program's drop counter is looked at every 100 us; {:.0} requests were answered before",
            of(|cut| cut.served as f64)
        ),
    });
    bench.table.add(Row {
        part: "flood",
        what: "the same, our own share".into(),
        value: of(|cut| cut.own_ms),
        unit: "ms",
        target: Target::AtMost(10.0),
        how: format!(
            "from $msec of the deciding line (Nginx's clock has steps of 1 ms and more under load) to enforced: anomaly_enforcement_duration_seconds; the slowest {:.1} ms",
            cuts.iter().map(|cut| cut.own_ms).fold(0.0, f64::max)
        ),
    });
    Ok(())
}

/// A daemon with the defaults that has learned from the log, in which there are thirty quiet minutes.
pub(super) fn learned<'lab>(lab: &'lab Lab, binary: &Path) -> Result<Daemon<'lab>> {
    let config = Config::new(lab, "flood").with("bans", "durations", r#"["1h"]"#);
    let daemon = Daemon::start(lab, binary, config)?;
    clock::wait_until("the daemon to have learned from the log", Duration::from_secs(20), || {
        daemon.status().is_ok_and(|s| s["records"].as_u64() > Some(1000) && s["warmup_left_secs"] == 0)
    })?;
    Ok(daemon)
}

/// The address of attacker `n`, which nobody has seen before.
pub(super) fn attacker(lab: &Lab, n: u8) -> Result<Ipv4Addr> {
    let from = Ipv4Addr::new(203, 0, 113, 150 + n);
    lab.attacker.ip(&format!("addr add {from}/24 dev {INTERFACE}"))?;
    Ok(from)
}

fn flood(lab: &Lab, daemon: &Daemon<'_>, prober: &Prober, from: Ipv4Addr) -> Result<Cut> {
    let (dropped, spent) = (prober.dropped()?, enforcement_secs(lab)?);
    let flood = Traffic::start(&lab.attacker, Plan::new(from.into(), RATE));
    let secs = loop {
        if prober.dropped()? > dropped {
            break flood.began.elapsed().as_secs_f64();
        }
        ensure!(flood.began.elapsed() < Duration::from_secs(30), "a flood was not cut: {}", daemon.output());
        std::thread::sleep(Duration::from_micros(100));
    };
    // The daemon's own figure is there when the ban is through: a ban in the map is on its way to the audit log.
    daemon.wait_for_audit("ban", Some(&from.to_string()), 1, Duration::from_secs(5))?;
    let own_ms = (enforcement_secs(lab)? - spent) * 1e3;
    let served = flood.attempts().iter().filter(|attempt| matches!(attempt.answer, Answer::Status(_))).count();
    Ok(Cut { secs, own_ms, served })
}

/// The sum over all bans so far.
fn enforcement_secs(lab: &Lab) -> Result<f64> {
    let mut curl = lab.server.command("curl");
    let text = crate::lab::run(curl.args(["--silent", "--fail", "--noproxy", "*", "http://127.0.0.1:8081/metrics"]))?;
    let line = text.lines().find_map(|line| line.strip_prefix("anomaly_enforcement_duration_seconds_sum "));
    line.context("no anomaly_enforcement_duration_seconds in /metrics")?.trim().parse().context("no number")
}
