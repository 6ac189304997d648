//! `anomaly doctor`: what will work on this host, what will not, why, and what to do about it.
//!
//! It looks and changes nothing: no program is attached, no rule is set, nothing is posted. What a
//! running daemon says of itself is believed more than what can be guessed from outside. The modes
//! of XDP are a forecast as long as no daemon runs, because only attaching tells for sure.

mod host;
mod log;
mod network;
mod nginx;

use serde::Serialize;

use crate::config::Config;
use crate::report::Status;
use crate::time::Timestamp;

/// How bad it is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Level {
    /// As it should be.
    Ok,
    /// Works, but not as well as it could.
    Warn,
    /// Does not work.
    Fail,
}

impl Level {
    /// `ok`, `warn`, `fail`.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Ok => "ok",
            Self::Warn => "warn",
            Self::Fail => "fail",
        }
    }
}

/// One thing that was looked at; one object of `doctor --json`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Check {
    /// A stable word: `kernel`, `capabilities`, `log`, ...
    pub check: &'static str,
    /// How it is.
    pub status: Level,
    /// What was found.
    pub detail: String,
    /// What to do next; null when nothing need be done.
    pub next: Option<String>,
}

impl Check {
    fn ok(check: &'static str, detail: impl Into<String>) -> Self {
        Self { check, status: Level::Ok, detail: detail.into(), next: None }
    }

    fn warn(check: &'static str, detail: impl Into<String>, next: impl Into<String>) -> Self {
        Self { check, status: Level::Warn, detail: detail.into(), next: Some(next.into()) }
    }

    fn fail(check: &'static str, detail: impl Into<String>, next: impl Into<String>) -> Self {
        Self { check, status: Level::Fail, detail: detail.into(), next: Some(next.into()) }
    }
}

/// Looks at everything. `live` is what a running daemon answers to `status`, where one does; `now`
/// is the wall clock.
pub fn run(config: &Config, live: Option<&Status>, now: Timestamp) -> Vec<Check> {
    let mut checks = vec![daemon(config, live)];
    checks.extend(live.iter().flat_map(|status| &status.degraded).map(|d| {
        let next = format!("since {}; `anomaly status` shows when it is over", d.since);
        Check::warn("daemon", format!("degraded: {}: {}", d.what, d.reason), next)
    }));
    checks.extend(host::run(config));
    checks.extend(network::run(config, live));
    checks.extend(nginx::run(config));
    for path in &config.log.paths {
        checks.extend(log::run(path, &config.log.format, &config.trusted_proxies, now));
    }
    checks.extend(host::outside(config, live));
    checks
}

/// A configuration that is refused, for this reason; what else is looked at goes by what could be read of it.
pub fn refused(reason: &str) -> Check {
    let next =
        "mend it, then `anomaly config check`; a daemon that runs keeps the old one, and none starts with this one";
    Check::fail("config", format!("the configuration is refused: {reason}"), next)
}

fn daemon(config: &Config, live: Option<&Status>) -> Check {
    match live {
        Some(status) => Check::ok(
            "daemon",
            format!("{} has run for {} s with {}", status.version, status.uptime_secs, status.enforcer),
        ),
        None => Check::warn(
            "daemon",
            format!("none answers on {}", config.dashboard.socket.display()),
            "start it: `systemctl start anomaly` or `anomaly run`",
        ),
    }
}
