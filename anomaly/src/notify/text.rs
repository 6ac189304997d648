//! Notices in words: title, condition, and the figures that matter.

use std::time::Duration;

use ipnet::IpNet;

use super::Notice;
use crate::engine::{Ban, Finding, Level, Origin};
use crate::report::{Reason, inert, ip_text};
use crate::time::Timestamp;

/// A notice in words. Nothing in it can move a cursor or begin a line; the sink escapes it for
/// its own medium.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Words {
    pub(super) title: String,
    /// Label and value, most important first.
    pub(super) facts: Vec<(&'static str, String)>,
    /// The address or prefix it is about.
    pub(super) ip: Option<IpNet>,
    pub(super) at: Timestamp,
    /// Requests that led to it, without their query strings: those may hold what is nobody's business.
    pub(super) samples: Vec<String>,
}

/// `2 h`, `10 min`, `1 d 2 h`, `90 s` as `1 min 30 s`.
pub(super) fn length(duration: Duration) -> String {
    let secs = duration.as_secs();
    let parts = [("d", secs / 86_400), ("h", secs / 3600 % 24), ("min", secs / 60 % 60), ("s", secs % 60)];
    let words: Vec<String> =
        parts.iter().filter(|(_, n)| *n > 0).take(2).map(|(unit, n)| format!("{n} {unit}")).collect();
    if words.is_empty() { "0 s".into() } else { words.join(" ") }
}

impl Words {
    pub(super) fn of(notice: &Notice) -> Self {
        let mut facts = Vec::new();
        let mut samples = Vec::new();
        let (title, ip, at) = match notice {
            Notice::Ban { ban, enforcer, error } => {
                let whole = planned(ban);
                let lasts = whole.as_ref().map_or("for good".into(), |whole| format!("for {whole}"));
                let ip = ip_text(&ban.prefix);
                let title = match error {
                    None => format!("{ip} banned {lasts}"),
                    Some(_) => format!("{ip} should be banned, but is NOT dropped"),
                };
                if let Some(error) = error {
                    facts.push(("Error", inert(error.as_bytes())));
                }
                facts.push(("Condition", inert(ban.reason().as_bytes())));
                numbers(&mut facts, ban.finding.as_ref());
                facts.push(("Duration", whole.unwrap_or("permanent".into())));
                facts.push(("Offence", ban.offence.to_string()));
                facts.push(("Banned by", format!("{}, {}", ban.origin.as_str(), inert(enforcer.as_bytes()))));
                samples.extend(ban.finding.iter().flat_map(|f| &f.samples).map(|s| {
                    let path = s.path.split(|&b| b == b'?').next().unwrap_or_default();
                    let path: String = inert(path).chars().take(100).collect();
                    format!("{} {path} {}", inert(&s.method).chars().take(16).collect::<String>(), s.status)
                }));
                (title, Some(ban.prefix), ban.at)
            }
            Notice::Unban { unban, packets, bytes, error } => {
                if let Some(error) = error {
                    facts.push(("Error", inert(error.as_bytes())));
                }
                let lasted = length(unban.at.since(unban.ban.at));
                let (how, duration) = match unban.origin {
                    Origin::Detector => ("the ban ran out", lasted.clone()),
                    Origin::Operator => {
                        let whole = planned(&unban.ban).unwrap_or("a permanent ban".into());
                        ("lifted by hand", format!("{lasted} of {whole}"))
                    }
                };
                let why = inert(unban.ban.reason().as_bytes());
                facts.push(("Condition", format!("{how}; reason of the ban: {why}")));
                numbers(&mut facts, unban.ban.finding.as_ref());
                facts.push(("Duration", duration));
                facts.push(("Offence", unban.offence.to_string()));
                facts.push(("Dropped", format!("{packets} packets, {bytes} bytes")));
                let ip = ip_text(&unban.prefix);
                let title = match error {
                    None => format!("{ip} unbanned after {lasted}"),
                    Some(_) => format!("{ip} should be unbanned, but is STILL dropped"),
                };
                (title, Some(unban.prefix), unban.at)
            }
            Notice::GlobalAnomaly(finding) => {
                facts.push(("Condition", inert(finding.reason().as_bytes())));
                numbers(&mut facts, Some(finding));
                (format!("Unusual traffic: {:.1} requests/s on the whole site", finding.rate), None, finding.at)
            }
            Notice::Braked(braked) => {
                facts.push(("Condition", inert(braked.finding.reason().as_bytes())));
                numbers(&mut facts, Some(&braked.finding));
                facts.push(("Bans in the last minute", braked.bans_last_minute.to_string()));
                let title = format!("{} NOT banned: too many bans at once", ip_text(&braked.prefix));
                (title, Some(braked.prefix), braked.finding.at)
            }
            Notice::NotEffective { proof, reason } => {
                facts.push(("Likely reason", inert(reason.as_bytes())));
                facts.push(("Requests since the ban", proof.records.to_string()));
                facts.push(("Banned at", proof.banned_at.to_string()));
                if let Some(peer) = proof.peer {
                    facts.push(("TCP peer", peer.to_string()));
                }
                (format!("The ban of {} is not effective", ip_text(&proof.prefix)), Some(proof.prefix), proof.at)
            }
            Notice::LevelAccepted(level) => {
                facts.push(("Before", figures(&level.before)));
                facts.push(("From now on", figures(&level.after)));
                (format!("A new level of traffic is normal now ({})", level.scope.as_str()), None, level.at)
            }
            Notice::Fallback { at, interface, from, to, reason } => {
                facts.push(("Reason", inert(reason.as_bytes())));
                let on = interface.as_ref().map_or(String::new(), |i| format!(" on {}", inert(i.as_bytes())));
                let title = format!("Fallback{on}: {} instead of {}", inert(to.as_bytes()), inert(from.as_bytes()));
                (title, None, *at)
            }
            Notice::Degraded { at, what, reason } => {
                facts.push(("Reason", inert(reason.as_bytes())));
                (format!("Degraded: {}", inert(what.as_bytes())), None, *at)
            }
            Notice::Recovered { at, what, reason, after } => {
                facts.push(("After", length(*after)));
                facts.push(("It was", inert(reason.as_bytes())));
                (format!("Recovered: {}", inert(what.as_bytes())), None, *at)
            }
            Notice::Other { at, event, text } => {
                facts.push(("What happened", inert(text.as_bytes())));
                (inert(event.as_bytes()), None, *at)
            }
        };
        Self { title, facts, ip, at, samples }
    }

    /// The two facts that matter most, in one line.
    pub(super) fn brief(&self) -> String {
        let first = self.facts.first().map_or(String::new(), |(_, value)| format!(" — {value}"));
        let offence = self.facts.iter().find(|(label, _)| *label == "Offence");
        let offence = offence.map_or(String::new(), |(_, n)| format!(", offence {n}"));
        format!("{}{first}{offence}, {}", self.title, self.at)
    }

    /// All the facts in one line.
    pub(super) fn line(&self) -> String {
        let facts: Vec<String> = self.facts.iter().map(|(label, value)| format!("{label}: {value}")).collect();
        format!("{} ({}) at {}", self.title, facts.join("; "), self.at)
    }
}

/// How long a ban is to last; `None` is for good.
fn planned(ban: &Ban) -> Option<String> {
    ban.duration_secs().map(|secs| length(Duration::from_secs(secs)))
}

fn numbers(facts: &mut Vec<(&'static str, String)>, finding: Option<&Finding>) {
    if let Some(finding) = finding {
        facts.push(("Rate", format!("{:.2} requests/s", finding.rate)));
        facts.push(("Baseline", figures(&finding.baseline)));
    }
}

fn figures(level: &Level) -> String {
    format!("{:.2} ± {:.2} requests/s ({}, {})", level.mean, level.stddev, level.scope.as_str(), level.source.as_str())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lengths_read_well() {
        for (secs, text) in
            [(0, "0 s"), (30, "30 s"), (90, "1 min 30 s"), (600, "10 min"), (7200, "2 h"), (93_600, "1 d 2 h")]
        {
            assert_eq!(length(Duration::from_secs(secs)), text);
        }
    }
}
