//! What is worth a line in the audit log, and its JSON.

use ipnet::IpNet;
use serde::Serialize;

use crate::engine::{Ban, BaselineUpdate, Braked, Finding, Kept, Level, LevelAccepted, NotEffective, Origin, Unban};
use crate::report::{BaselineFigures, DecisionRow, Numbers, Reason, inert, ip_text, round};
use crate::time::Timestamp;

/// Prefixes that one line names; the rest is a number.
const MAX_NAMED: usize = 100;
/// Bytes kept of free text.
const MAX_TEXT: usize = 2048;

/// What happened. Text from outside is made inert and cut to 2 KiB on the way in.
#[derive(Clone, Debug)]
pub enum Event<'a> {
    /// A ban, after it was enforced or not.
    Ban {
        /// What was decided.
        ban: &'a Ban,
        /// Why it is not enforced.
        error: Option<&'a str>,
    },
    /// An unban, after it was carried out or not.
    Unban {
        /// What was decided.
        unban: &'a Unban,
        /// Packets the ban had dropped.
        packets: u64,
        /// Bytes the ban had dropped.
        bytes: u64,
        /// Why it could not be carried out.
        error: Option<&'a str>,
    },
    /// A ban by hand that left the longer one as it is.
    BanKept(&'a Kept),
    /// The site as a whole is unusual.
    GlobalAnomaly(&'a Finding),
    /// The baseline was recomputed.
    Baseline(&'a BaselineUpdate),
    /// A rung of the enforcement ladder could not be taken.
    Fallback {
        /// Interface, where it is one interface's trouble.
        interface: Option<&'a str>,
        /// The rung that failed.
        from: &'a str,
        /// The rung taken instead.
        to: &'a str,
        /// Why.
        reason: &'a str,
    },
    /// The enforcer could not do something outside a ban or an unban (restore, maintenance).
    EnforceFailed {
        /// Which prefix, where it is about one.
        prefix: Option<IpNet>,
        /// What it said.
        error: &'a str,
    },
    /// Records of a banned prefix keep coming.
    NotEffective {
        /// The proof.
        proof: &'a NotEffective,
        /// The likely reason.
        reason: &'a str,
    },
    /// The kernel did not hold what was wanted, and now does.
    Repaired {
        /// Bans that were missing.
        missing: &'a [IpNet],
        /// Entries that no ban wanted.
        orphans: &'a [IpNet],
    },
    /// The ban map was full.
    MapFull {
        /// Bans that are no longer enforced.
        gave_way: &'a [IpNet],
        /// Entries the map can hold.
        capacity: u32,
    },
    /// The mass-ban brake held a ban back.
    Braked(&'a Braked),
    /// A level that lasted became normal.
    LevelAccepted(&'a LevelAccepted),
    /// Something is not as it should be, or is again.
    Degraded {
        /// The stable word of `status`'s `degraded[].what`.
        what: &'a str,
        /// What and why.
        reason: &'a str,
        /// It is over.
        recovered: bool,
    },
    /// Dropping was stopped by `anomaly off`.
    Off,
    /// The daemon is up.
    Started {
        /// Its version.
        version: &'a str,
        /// Bans taken over from the store.
        restored_bans: usize,
    },
    /// The daemon ends.
    Stopped {
        /// Bans stay enforced.
        keep: bool,
    },
    /// SIGHUP: the new configuration is in force, or the old one stays.
    ConfigReloaded {
        /// Why the new one was refused.
        error: Option<&'a str>,
    },
}

impl Event<'_> {
    /// Its word: the value of `event`.
    pub const fn name(&self) -> &'static str {
        match self {
            Self::Ban { .. } => "ban",
            Self::Unban { .. } => "unban",
            Self::BanKept(_) => "ban_kept",
            Self::GlobalAnomaly(_) => "global_anomaly",
            Self::Baseline(_) => "baseline",
            Self::Fallback { .. } => "fallback",
            Self::EnforceFailed { .. } => "enforce_failed",
            Self::NotEffective { .. } => "not_effective",
            Self::Repaired { .. } => "repaired",
            Self::MapFull { .. } => "map_full",
            Self::Braked(_) => "braked",
            Self::LevelAccepted(_) => "level_accepted",
            Self::Degraded { .. } => "degraded",
            Self::Off => "off",
            Self::Started { .. } => "started",
            Self::Stopped { .. } => "stopped",
            Self::ConfigReloaded { .. } => "config_reloaded",
        }
    }

    /// What is wrong: the value of `error`; `ok` is that there is none.
    fn error(&self) -> Option<String> {
        match self {
            Self::Ban { error, .. } | Self::Unban { error, .. } | Self::ConfigReloaded { error } => error.map(text),
            Self::EnforceFailed { error, .. } => Some(text(error)),
            Self::NotEffective { reason, .. } | Self::Degraded { reason, recovered: false, .. } => Some(text(reason)),
            Self::MapFull { capacity, .. } => Some(format!("the ban map is full ({capacity} entries)")),
            _ => None,
        }
    }

    /// The whole line, newline included.
    pub(super) fn line(&self, ts: Timestamp, enforcer: &str) -> String {
        // Strings, numbers and finite floats only: this cannot fail. If it ever does, the event is still named.
        let mut text = serde_json::to_string(&self.row(ts, Some(enforcer))).unwrap_or_else(|_| {
            format!(r#"{{"ts":"{ts}","event":"{}","ok":false,"error":"not serialisable"}}"#, self.name())
        });
        text.push('\n');
        text
    }

    /// The same as a value, for the webhook.
    pub(crate) fn json(&self, ts: Timestamp, enforcer: Option<&str>) -> serde_json::Value {
        serde_json::to_value(self.row(ts, enforcer)).unwrap_or_default()
    }

    fn row(&self, ts: Timestamp, enforcer: Option<&str>) -> Line {
        let error = self.error();
        Line {
            ts: ts.to_string(),
            event: self.name(),
            enforcer: enforcer.map(text),
            ok: error.is_none(),
            error,
            body: self.body(),
        }
    }

    fn body(&self) -> Body {
        match self {
            Self::Ban { ban, .. } => Body::Ban {
                row: DecisionRow::ban(ban),
                until: ban.until.map(|t| t.to_string()),
                origin: ban.origin.as_str(),
                reason: text(&ban.reason()),
                in_past: ban.in_past,
            },
            Self::Unban { unban, packets, bytes, .. } => Body::Unban {
                row: DecisionRow::unban(unban),
                origin: unban.origin.as_str(),
                reason: match unban.origin {
                    Origin::Detector => "ran out",
                    Origin::Operator => "lifted by hand",
                },
                packets: *packets,
                bytes: *bytes,
            },
            Self::BanKept(kept) => Body::BanKept {
                time: kept.at.to_string(),
                ip: ip_text(&kept.ban.prefix),
                offence: kept.ban.offence,
                until: kept.ban.until.map(|t| t.to_string()),
                origin: kept.ban.origin.as_str(),
                reason: text(&kept.ban.reason()),
                asked_until: kept.until.map(|t| t.to_string()),
                asked_reason: text(&kept.note),
            },
            Self::GlobalAnomaly(finding) => {
                Body::GlobalAnomaly { row: DecisionRow::global_anomaly(finding), reason: finding.reason() }
            }
            Self::Baseline(update) => Body::Baseline {
                time: update.at.to_string(),
                global: LevelFigures::from(&update.global),
                ip: LevelFigures::from(&update.ip),
            },
            Self::Fallback { interface, from, to, reason } => {
                Body::Fallback { interface: interface.map(text), from: text(from), to: text(to), reason: text(reason) }
            }
            Self::EnforceFailed { prefix, .. } => Body::EnforceFailed { ip: prefix.as_ref().map(ip_text) },
            Self::NotEffective { proof, reason } => Body::NotEffective {
                time: proof.at.to_string(),
                ip: ip_text(&proof.prefix),
                client: proof.client.to_string(),
                peer: proof.peer.map(|p| p.to_string()),
                since: proof.banned_at.to_string(),
                records: proof.records,
                reason: text(reason),
            },
            Self::Repaired { missing, orphans } => Body::Repaired {
                missing: names(missing),
                missing_count: missing.len(),
                orphans: names(orphans),
                orphans_count: orphans.len(),
            },
            Self::MapFull { gave_way, capacity } => {
                Body::MapFull { gave_way: names(gave_way), gave_way_count: gave_way.len(), capacity: *capacity }
            }
            Self::Braked(braked) => Body::Braked {
                time: braked.finding.at.to_string(),
                ip: ip_text(&braked.prefix),
                numbers: Numbers::from(&braked.finding),
                reason: braked.finding.reason(),
                bans_last_minute: braked.bans_last_minute,
            },
            Self::LevelAccepted(level) => Body::LevelAccepted {
                time: level.at.to_string(),
                before: LevelFigures::from(&level.before),
                after: LevelFigures::from(&level.after),
            },
            Self::Degraded { what, reason, recovered } => {
                Body::Degraded { what: text(what), reason: text(reason), recovered: *recovered }
            }
            Self::Off | Self::ConfigReloaded { .. } => Body::Nothing {},
            Self::Started { version, restored_bans } => {
                Body::Started { version: text(version), restored_bans: *restored_bans }
            }
            Self::Stopped { keep } => Body::Stopped { keep: *keep },
        }
    }
}

#[derive(Serialize)]
struct Line {
    ts: String,
    event: &'static str,
    #[serde(skip_serializing_if = "Option::is_none")]
    enforcer: Option<String>,
    ok: bool,
    error: Option<String>,
    #[serde(flatten)]
    body: Body,
}

#[derive(Serialize)]
#[serde(untagged)]
enum Body {
    Ban {
        #[serde(flatten)]
        row: DecisionRow,
        until: Option<String>,
        origin: &'static str,
        reason: String,
        in_past: bool,
    },
    Unban {
        #[serde(flatten)]
        row: DecisionRow,
        origin: &'static str,
        reason: &'static str,
        packets: u64,
        bytes: u64,
    },
    BanKept {
        time: String,
        ip: String,
        offence: u32,
        until: Option<String>,
        origin: &'static str,
        reason: String,
        asked_until: Option<String>,
        asked_reason: String,
    },
    GlobalAnomaly {
        #[serde(flatten)]
        row: DecisionRow,
        reason: String,
    },
    Baseline {
        time: String,
        global: LevelFigures,
        ip: LevelFigures,
    },
    Fallback {
        interface: Option<String>,
        from: String,
        to: String,
        reason: String,
    },
    EnforceFailed {
        ip: Option<String>,
    },
    NotEffective {
        time: String,
        ip: String,
        client: String,
        peer: Option<String>,
        since: String,
        records: u64,
        reason: String,
    },
    Repaired {
        missing: Vec<String>,
        missing_count: usize,
        orphans: Vec<String>,
        orphans_count: usize,
    },
    MapFull {
        gave_way: Vec<String>,
        gave_way_count: usize,
        capacity: u32,
    },
    Braked {
        time: String,
        ip: String,
        #[serde(flatten)]
        numbers: Numbers,
        reason: String,
        bans_last_minute: u32,
    },
    LevelAccepted {
        time: String,
        before: LevelFigures,
        after: LevelFigures,
    },
    Degraded {
        what: String,
        reason: String,
        recovered: bool,
    },
    Started {
        version: String,
        restored_bans: usize,
    },
    Stopped {
        keep: bool,
    },
    Nothing {},
}

/// A level as the audit log shows it.
#[derive(Serialize)]
struct LevelFigures {
    #[serde(flatten)]
    figures: BaselineFigures,
    error_rate: f64,
    samples: u64,
}

impl From<&Level> for LevelFigures {
    fn from(level: &Level) -> Self {
        Self { figures: level.into(), error_rate: round(level.error_rate), samples: level.samples }
    }
}

fn text(text: &str) -> String {
    inert(&text.as_bytes()[..text.floor_char_boundary(MAX_TEXT)])
}

fn names(prefixes: &[IpNet]) -> Vec<String> {
    prefixes.iter().take(MAX_NAMED).map(ip_text).collect()
}
