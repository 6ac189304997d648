//! A batch as JSON for any program: the same rows as in the audit log.

use serde_json::{Value, json};

use super::batch::Batch;
use super::slack::page;
use super::text::Words;
use super::{Notice, Reporter};
use crate::audit::Event;
use crate::report::DecisionRow;

/// Notices of one kind that a message carries.
pub(super) const SHOWN: usize = 1000;

/// The body of the POST: `source`, `version`, `host`, `dry_run`, `counts` per kind, `omitted` (those of which only the
/// number is told), and `events`, each with `event`, its audit keys, `host`, `dry_run`, `text` and `url`; an unban also with the
/// `ban` that it ends.
pub(super) fn message(batch: &Batch, reporter: &Reporter, dashboard: Option<&str>) -> String {
    let counts: serde_json::Map<String, Value> =
        batch.groups().map(|(kind, group)| (kind.word().to_owned(), group.count.into())).collect();
    let events: Vec<Value> =
        batch.groups().flat_map(|(_, group)| &group.newest).map(|notice| event(notice, reporter, dashboard)).collect();
    let omitted = batch.count() - events.len() as u64;
    json!({
        "source": "anomaly",
        "version": env!("CARGO_PKG_VERSION"),
        "host": reporter.host,
        "dry_run": reporter.dry_run,
        "counts": counts,
        "omitted": omitted,
        "events": events,
    })
    .to_string()
}

fn event(notice: &Notice, reporter: &Reporter, dashboard: Option<&str>) -> Value {
    let words = Words::of(notice);
    let mut row = match notice {
        Notice::Ban { ban, enforcer, error } => {
            Event::Ban { ban, error: error.as_deref() }.json(words.at, Some(enforcer))
        }
        Notice::Unban { unban, packets, bytes, error } => {
            let unbanned = Event::Unban { unban, packets: *packets, bytes: *bytes, error: error.as_deref() };
            let mut row = unbanned.json(words.at, None);
            row["ban"] = json!(DecisionRow::ban(&unban.ban));
            row
        }
        Notice::GlobalAnomaly(finding) => Event::GlobalAnomaly(finding).json(words.at, None),
        Notice::Braked(braked) => Event::Braked(braked).json(words.at, None),
        Notice::NotEffective { proof, reason } => Event::NotEffective { proof, reason }.json(words.at, None),
        Notice::LevelAccepted(level) => Event::LevelAccepted(level).json(words.at, None),
        Notice::Fallback { interface, from, to, reason, .. } => {
            Event::Fallback { interface: interface.as_deref(), from, to, reason }.json(words.at, None)
        }
        Notice::Degraded { what, reason, .. } => {
            Event::Degraded { what, reason, recovered: false }.json(words.at, None)
        }
        Notice::Recovered { what, reason, .. } => {
            Event::Degraded { what, reason, recovered: true }.json(words.at, None)
        }
        Notice::Other { event, .. } => {
            json!({ "ts": words.at.to_string(), "event": crate::report::inert(event.as_bytes()), "ok": true, "error": null })
        }
    };
    row["host"] = reporter.host.as_str().into();
    row["dry_run"] = reporter.dry_run.into();
    row["text"] = reporter.heads(&words.line()).into();
    if let (Some(url), Some(ip)) = (dashboard, &words.ip) {
        row["url"] = page(url, ip).into();
    }
    row
}
