//! The JSON rows that `replay`, the audit log, the API, the CLI and Slack share.
//!
//! One place for names and rounding; the engine's types know no serde.

mod verdict;

use std::net::IpAddr;

use ipnet::IpNet;
use serde::{Deserialize, Serialize};

use crate::engine::{Ban, Braked, Finding, Level, LevelAccepted, Origin, Scope, Signal, Unban};
use crate::time::Timestamp;

use verdict::Sentence as _;
pub use verdict::Verdict;

/// An address where the prefix is one address, else the prefix.
pub fn ip_text(prefix: &IpNet) -> String {
    if prefix.prefix_len() == prefix.max_prefix_len() { prefix.addr().to_string() } else { prefix.to_string() }
}

/// The first three of many prefixes, and how many more there are.
pub fn some_of<'a>(mut prefixes: impl Iterator<Item = &'a IpNet>) -> String {
    let mut text = prefixes.by_ref().take(3).map(ip_text).collect::<Vec<_>>().join(", ");
    match prefixes.count() {
        0 => {}
        more => text.push_str(&format!(" and {more} more")),
    }
    text
}

/// Reads what [`ip_text`] writes: an address is a /32 or /128; host bits are cut off. IPv4 written as IPv6
/// (`::ffff:203.0.113.9`) is IPv4: records know no other, so it would never match.
pub fn parse_ip(text: &str) -> Option<IpNet> {
    let text = text.trim();
    let net = match text.parse::<IpNet>() {
        Ok(net) => net.trunc(),
        Err(_) => IpNet::from(text.parse::<IpAddr>().ok()?),
    };
    match (net.addr().to_canonical(), net.prefix_len().checked_sub(96)) {
        (v4 @ IpAddr::V4(_), Some(len)) if net.addr().is_ipv6() => IpNet::new(v4, len).ok(),
        _ => Some(net),
    }
}

pub(crate) fn round(value: f64) -> f64 {
    if value.is_finite() { (value * 1000.0).round() / 1000.0 } else { 0.0 }
}

/// Mean and spread as they were judged.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, utoipa::ToSchema)]
pub struct BaselineFigures {
    /// `ip` (the population of clients) or `global` (the site).
    pub scope: String,
    /// Requests/s.
    pub mean: f64,
    /// Requests/s.
    pub stddev: f64,
    /// `rolling`, `hour`, `long`, `own` or `floor`.
    pub source: String,
}

impl From<&Level> for BaselineFigures {
    fn from(level: &Level) -> Self {
        Self {
            scope: level.scope.as_str().into(),
            mean: round(level.mean),
            stddev: round(level.stddev),
            source: level.source.as_str().into(),
        }
    }
}

/// A decision or an anomaly: one line of `replay --json`.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, utoipa::ToSchema)]
pub struct DecisionRow {
    /// RFC 3339, UTC.
    pub time: String,
    /// `ban`, `unban` or `global_anomaly`; among the events also `braked` and `level_accepted`.
    pub action: String,
    /// Address, or prefix where a prefix is banned; absent for what concerns the whole site.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub ip: Option<String>,
    /// The numbers; absent for unbans and for bans by hand of unknown clients.
    #[serde(flatten, skip_serializing_if = "Option::is_none")]
    pub numbers: Option<Numbers>,
    /// The nth ban of this prefix; only of bans and unbans.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub offence: Option<u32>,
    /// Length of a ban; null when permanent; absent for the rest.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub duration_secs: Option<Option<u64>>,
    /// What refuses the client all the same, and for how long, in words; only in the answer to an unban, and absent where
    /// nothing does.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub still_refused: Option<String>,
    /// Why, for people; only of bans and of those that the brake held back.
    #[serde(flatten, skip_serializing_if = "Option::is_none")]
    pub verdict: Option<Verdict>,
}

/// The numbers of a finding.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, utoipa::ToSchema)]
pub struct Numbers {
    /// `z_score`, `rate_multiplier`, `hard_limit` or `floor`.
    pub rule: String,
    /// What fired where it was not the request rate.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub signal: Option<String>,
    /// Its value, in the unit of `limit`.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub signal_value: Option<f64>,
    /// Judged by the tightened thresholds; absent for global anomalies.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub error_surge: Option<bool>,
    /// Requests/s over the window.
    pub rate: f64,
    /// What it was compared with.
    pub baseline: BaselineFigures,
    /// `(rate - mean) / stddev`.
    pub z_score: f64,
}

impl From<&Finding> for Numbers {
    fn from(f: &Finding) -> Self {
        Self {
            rule: f.rule.as_str().into(),
            signal: f.signal.map(|(s, _)| s.as_str().into()),
            signal_value: f.signal.map(|(_, v)| round(v)),
            error_surge: (f.baseline.scope == Scope::Ip).then_some(f.error_surge),
            rate: round(f.rate),
            baseline: (&f.baseline).into(),
            z_score: round(f.z_score),
        }
    }
}

impl DecisionRow {
    /// The row of a ban.
    pub fn ban(ban: &Ban) -> Self {
        Self {
            time: ban.at.to_string(),
            action: "ban".into(),
            ip: Some(ip_text(&ban.prefix)),
            numbers: ban.finding.as_ref().map(Numbers::from),
            offence: Some(ban.offence),
            duration_secs: Some(ban.duration_secs()),
            still_refused: None,
            verdict: Verdict::of_ban(ban),
        }
    }

    /// The row of an unban.
    pub fn unban(unban: &Unban) -> Self {
        Self {
            time: unban.at.to_string(),
            action: "unban".into(),
            ip: Some(ip_text(&unban.prefix)),
            numbers: None,
            offence: Some(unban.offence),
            duration_secs: None,
            still_refused: None,
            verdict: None,
        }
    }

    /// The row of a global anomaly.
    pub fn global_anomaly(finding: &Finding) -> Self {
        Self::event("global_anomaly", finding.at, None, Some(finding))
    }

    /// The row of a ban that the brake held back.
    pub fn braked(braked: &Braked) -> Self {
        Self::event("braked", braked.finding.at, Some(&braked.prefix), Some(&braked.finding))
    }

    /// The row of a level that has become normal.
    pub fn level_accepted(accepted: &LevelAccepted) -> Self {
        Self::event("level_accepted", accepted.at, None, None)
    }

    fn event(action: &str, at: Timestamp, prefix: Option<&IpNet>, finding: Option<&Finding>) -> Self {
        Self {
            time: at.to_string(),
            action: action.into(),
            ip: prefix.map(ip_text),
            numbers: finding.map(Numbers::from),
            offence: None,
            duration_secs: None,
            still_refused: None,
            verdict: prefix.zip(finding).map(|(prefix, finding)| Verdict::of_finding(prefix, finding)),
        }
    }
}

/// Why something was decided, in one line of English.
pub trait Reason {
    /// Rule and numbers, or the operator's note.
    fn reason(&self) -> String;
}

impl Reason for Ban {
    fn reason(&self) -> String {
        match (&self.finding, self.origin) {
            (_, Origin::Operator) if !self.note.is_empty() => self.note.clone(),
            // It was the detector's before an operator gave it another end.
            (Some(finding), Origin::Operator) if finding.limit > 0.0 => {
                format!("{}; its end was set by hand", finding.reason())
            }
            (_, Origin::Operator) => "banned by hand".into(),
            (Some(finding), Origin::Detector) => finding.reason(),
            (None, Origin::Detector) => String::new(),
        }
    }
}

impl Reason for Finding {
    fn reason(&self) -> String {
        let surge = if self.error_surge { ", error surge" } else { "" };
        let signal = match self.signal {
            Some((Signal::Pages, v)) => format!("{v:.0} page requests in the window (limit {:.0}), ", self.limit),
            Some((Signal::ErrorPaths, v)) => format!("{v:.0} distinct paths answered 4xx (limit {:.0}), ", self.limit),
            Some((Signal::PostsToOnePath, v)) => format!("{v:.0} POSTs to one path (limit {:.0}), ", self.limit),
            Some((Signal::Errors, v)) => format!("{v:.0} error answers (limit {:.0}), ", self.limit),
            // z and baseline have decided nothing there.
            Some(_) => return format!("{}{surge}: {}; {:.2} req/s", self.rule.as_str(), self.sentence(), self.rate),
            None => String::new(),
        };
        let who = match self.baseline.scope {
            Scope::Ip => "clients",
            Scope::Global => "the site",
        };
        format!(
            "{}{surge}: {signal}{:.2} req/s against {:.2} ± {:.2} of {who} ({}), z {:.1}",
            self.rule.as_str(),
            self.rate,
            self.baseline.mean,
            self.baseline.stddev,
            self.baseline.source.as_str(),
            self.z_score
        )
    }
}

/// One active ban: an element of `bans --json` and `GET /api/v1/bans`.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, utoipa::ToSchema)]
pub struct BanRow {
    /// What was decided, and why.
    #[serde(flatten)]
    pub decision: DecisionRow,
    /// RFC 3339.
    pub since: String,
    /// RFC 3339; null when permanent.
    pub until: Option<String>,
    /// `detector` or `operator`.
    pub origin: String,
    /// Why, in words.
    pub reason: String,
    /// Who drops it.
    pub enforcer: String,
    /// Packets dropped since the ban.
    pub packets: u64,
    /// Bytes dropped since the ban.
    pub bytes: u64,
}

impl BanRow {
    /// The row of a ban with what its enforcer has counted.
    pub fn new(ban: &Ban, enforcer: &str, packets: u64, bytes: u64) -> Self {
        Self {
            decision: DecisionRow::ban(ban),
            since: ban.at.to_string(),
            until: ban.until.map(|t| t.to_string()),
            origin: ban.origin.as_str().into(),
            reason: ban.reason(),
            enforcer: enforcer.into(),
            packets,
            bytes,
        }
    }
}

/// The answer to `POST /api/v1/bans`: the ban in force.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, utoipa::ToSchema)]
pub struct BanAnswer {
    /// As in the list of bans.
    #[serde(flatten)]
    pub ban: BanRow,
    /// It was in force before, lasts at least as long as was asked for, and stays as it is, with its own reason, origin and offence.
    pub kept: bool,
}

/// One client of `top --json` and `GET /api/v1/top`, busiest first.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, utoipa::ToSchema)]
pub struct TopRow {
    /// Address, or prefix for IPv6.
    pub ip: String,
    /// Requests/s over the window.
    pub rate: f64,
    /// Requests in the window.
    pub requests: u64,
    /// Share of errors, 0 to 1.
    pub error_ratio: f64,
    /// Against the population.
    pub z_score: f64,
    /// Rate above which it is banned.
    pub limit: f64,
    /// Share of the site's requests, 0 to 1.
    pub share: f64,
    /// Covered by a ban.
    pub banned: bool,
}

impl TopRow {
    /// The row of a client on a site with `global_rate` requests/s.
    pub fn new(client: &crate::engine::Client, global_rate: f64) -> Self {
        Self {
            ip: ip_text(&client.prefix),
            rate: round(client.rate),
            requests: client.requests,
            error_ratio: round(client.errors as f64 / client.requests.max(1) as f64),
            z_score: round(client.z_score),
            limit: round(client.limit),
            share: round(if global_rate > 0.0 { client.rate / global_rate } else { 0.0 }),
            banned: client.banned,
        }
    }
}

/// A baseline with everything that is known of it: `GET /api/v1/baseline`.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, utoipa::ToSchema)]
pub struct LevelRow {
    /// As in decisions.
    #[serde(flatten)]
    pub figures: BaselineFigures,
    /// Share of errors, 0 to 1.
    pub error_rate: f64,
    /// Samples behind the figures.
    pub samples: u64,
    /// Rate above which it is an anomaly, requests/s.
    pub limit: f64,
}

impl LevelRow {
    /// The row of a level with the limit that follows from it.
    pub fn new(level: &Level, limit: f64) -> Self {
        Self { figures: level.into(), error_rate: round(level.error_rate), samples: level.samples, limit: round(limit) }
    }
}

/// `GET /api/v1/baseline`.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, utoipa::ToSchema)]
pub struct BaselineRow {
    /// The site.
    pub global: LevelRow,
    /// The population of clients.
    pub ip: LevelRow,
    /// Seconds of log time until the warm-up ends; 0 when it is over.
    pub warmup_left_secs: u32,
    /// The hour slots of the site, UTC, 24 of them; null while empty.
    pub hours: Vec<Option<LevelRow>>,
}

/// One fault.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, utoipa::ToSchema)]
pub struct Degraded {
    /// A stable word (`fallback`, `slack`, `store`, `audit`, `log_silent`, `log_format`, `rejected`, `late`, `not_effective`, ...).
    pub what: String,
    /// What and why, and what to do.
    pub reason: String,
    /// Since when, RFC 3339.
    pub since: String,
}

/// How one interface is covered.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, utoipa::ToSchema)]
pub struct InterfaceRow {
    /// Its name.
    pub name: String,
    /// `native`, `generic` or `none`.
    pub mode: String,
    /// Why it is not native.
    pub reason: Option<String>,
}

/// `status --json` and `GET /api/v1/status`.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, utoipa::ToSchema)]
pub struct Status {
    /// The daemon's.
    pub version: String,
    /// RFC 3339, wall clock of the daemon.
    pub time: String,
    /// RFC 3339 of the newest record; null before the first.
    pub log_time: Option<String>,
    /// Seconds since the daemon started.
    pub uptime_secs: u64,
    /// `xdp`, `iptables`, `xdp+iptables` or `dry-run`.
    pub enforcer: String,
    /// `native`, `generic`, or null without XDP; the worst of all interfaces.
    pub xdp_mode: Option<String>,
    /// Every interface.
    pub interfaces: Vec<InterfaceRow>,
    /// Share of the wanted bans that the kernel holds, 0 to 1; 1 when none is wanted.
    pub enforcement_ratio: f64,
    /// Log records since the start.
    pub records: u64,
    /// Log lines that gave no record.
    pub rejected: u64,
    /// Records that came too late for the window.
    pub late: u64,
    /// Records of banned addresses.
    pub blocked: u64,
    /// Bans in force.
    pub active_bans: u64,
    /// Packets dropped since the enforcer started.
    pub dropped_packets: u64,
    /// Requests/s of the site over the window.
    pub global_rate: f64,
    /// Requests in the newest whole second.
    pub last_second: u64,
    /// Share of errors in the window.
    pub error_ratio: f64,
    /// The site's effective baseline.
    pub baseline: LevelRow,
    /// Rate above which an unknown client is banned.
    pub ip_limit: f64,
    /// Seconds of log time until the warm-up ends.
    pub warmup_left_secs: u32,
    /// Addresses followed now.
    pub tracked_ips: u64,
    /// Bytes of log not read yet.
    pub backlog_bytes: u64,
    /// Share of one core that the daemon used in the last 3 seconds, or 15 where nobody follows the events; 0 to 1 and above.
    pub cpu: f64,
    /// Resident memory of the daemon in bytes.
    pub memory_bytes: u64,
    /// Share of all cores that the host used in the same time, 0 to 1.
    pub host_cpu: f64,
    /// Memory in use on the host, 0 to 1.
    pub host_memory: f64,
    /// Why `/healthz` answers 503: the log or the enforcer is lost; null when neither is.
    pub unhealthy: Option<String>,
    /// Every fault; an empty list is good.
    pub degraded: Vec<Degraded>,
}

/// One point of the graph over time: `GET /api/v1/history`.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize, utoipa::ToSchema)]
pub struct HistoryPoint {
    /// Seconds since the epoch (wall clock).
    pub t: i64,
    /// Requests/s of the site over the window.
    pub rate: f64,
    /// Share of errors.
    pub error_ratio: f64,
    /// The site's mean.
    pub mean: f64,
    /// The site's standard deviation.
    pub stddev: f64,
    /// Rate above which the site is anomalous.
    pub limit: f64,
    /// Bans in force.
    pub bans: u64,
    /// Packets dropped since the enforcer started.
    pub dropped: u64,
}

/// The why-card of an address: `explain --json` and `GET /api/v1/bans/{ip}`.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, utoipa::ToSchema)]
pub struct Explanation {
    /// What was asked for.
    pub ip: String,
    /// Bans in force that cover it.
    pub active: Vec<BanRow>,
    /// Of a prefix: the newest bans in force of addresses and prefixes inside it, at most 50. It is not banned by them.
    pub inside: Vec<BanRow>,
    /// Its figures in the window now; null when it is not followed.
    pub now: Option<TopRow>,
    /// The newest bans on record that cover it or lie inside it, at most 50, newest first.
    pub bans: Vec<PastBan>,
    /// The entry of the allow-list that covers it, if any.
    pub allowlisted_by: Option<String>,
}

/// One ban on record with its evidence and what became of it.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, utoipa::ToSchema)]
pub struct PastBan {
    /// What was decided, and why.
    #[serde(flatten)]
    pub decision: DecisionRow,
    /// RFC 3339; null when permanent.
    pub until: Option<String>,
    /// `detector` or `operator`.
    pub origin: String,
    /// Why, in words.
    pub reason: String,
    /// Requests in the window when it was banned.
    pub requests: u64,
    /// Errors in the window when it was banned.
    pub errors: u64,
    /// The limit that was crossed.
    pub limit: f64,
    /// A few of its requests.
    pub samples: Vec<SampleRow>,
    /// `active`, `expired`, `lifted`, `in_past`.
    pub state: String,
    /// When it ended, RFC 3339; null while it is active.
    pub ended: Option<String>,
    /// Packets dropped over its life, as far as known.
    pub packets: u64,
    /// Bytes dropped over its life, as far as known.
    pub bytes: u64,
}

/// One request kept as evidence. Text from the log, with control characters escaped.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, utoipa::ToSchema)]
pub struct SampleRow {
    /// RFC 3339.
    pub time: String,
    /// As in the log.
    pub method: String,
    /// As in the log.
    pub path: String,
    /// HTTP status.
    pub status: u16,
}

/// Log bytes as inert text: lossy UTF-8 with control and bidi characters escaped, so that nothing
/// from a log moves a cursor or forges a line.
pub fn inert(bytes: &[u8]) -> String {
    let mut text = String::with_capacity(bytes.len());
    for c in String::from_utf8_lossy(bytes).chars() {
        match c {
            '\u{200e}' | '\u{200f}' | '\u{202a}'..='\u{202e}' | '\u{2066}'..='\u{2069}' | '\u{feff}' => {
                text.extend(c.escape_unicode());
            }
            c if c.is_control() => text.extend(c.escape_default()),
            c => text.push(c),
        }
    }
    text
}

impl PastBan {
    /// The row of a ban whose end and counts are known from the store.
    pub fn new(ban: &Ban, state: &str, ended: Option<Timestamp>, packets: u64, bytes: u64) -> Self {
        let finding = ban.finding.as_ref();
        let mut decision = DecisionRow::ban(ban);
        // It stands in the row itself.
        decision.verdict.iter_mut().for_each(|verdict| verdict.limit = None);
        Self {
            decision,
            until: ban.until.map(|t| t.to_string()),
            origin: ban.origin.as_str().into(),
            reason: ban.reason(),
            requests: finding.map_or(0, |f| f.requests),
            errors: finding.map_or(0, |f| f.errors),
            limit: finding.map_or(0.0, |f| round(f.limit)),
            samples: finding.map_or_else(Vec::new, |f| {
                f.samples
                    .iter()
                    .map(|s| SampleRow {
                        time: s.at.to_string(),
                        method: inert(&s.method),
                        path: inert(&s.path),
                        status: s.status,
                    })
                    .collect()
            }),
            state: state.into(),
            ended: ended.map(|t| t.to_string()),
            packets,
            bytes,
        }
    }
}
