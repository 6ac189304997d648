//! Judges how well the log serves: missing, silent, full of lines that say nothing, or late.

use std::collections::VecDeque;
use std::time::Duration;

use super::hot::LogPicture;
use crate::engine::{NotEffective, Snapshot};
use crate::report::ip_text;
use crate::tail::Presence;
use crate::time::Timestamp;

/// A log may be missing for this long (rotation, a start before Nginx) before anybody is told.
const MISSING_AFTER: Duration = Duration::from_secs(10);
/// Records that must have been expected before silence means something.
const SILENT_AFTER_EXPECTED: f64 = 100.0;
/// Silence shorter than this is never reported.
const SILENT_AFTER: Duration = Duration::from_secs(60);
/// A share of bad lines above this, over a minute, is reported.
const BAD_SHARE: f64 = 0.1;
/// Fewer bad lines than this in a minute are not.
const BAD_LINES: u64 = 20;

/// Remembers one minute of counts.
#[derive(Debug, Default)]
pub struct LogWatch {
    minute: VecDeque<(Timestamp, u64, u64, u64)>,
    records: u64,
    newest: Option<Timestamp>,
}

impl LogWatch {
    /// What is not as it should be now: word and reason. To be called about once a second.
    pub fn judge(
        &mut self,
        now: Timestamp,
        snapshot: &Snapshot,
        logs: &[LogPicture],
        rejected: u64,
    ) -> Vec<(&'static str, String)> {
        let mut found = Vec::new();
        for log in logs {
            let path = log.path.display();
            let lasts = now.since(log.since);
            match &log.presence {
                Presence::Reading => {}
                Presence::Missing if lasts < MISSING_AFTER => {}
                Presence::Missing => found.push((
                    "log_missing",
                    format!("{path} does not exist; is log.paths right, and does Nginx write there (nginx/)?"),
                )),
                Presence::Unreadable(why) => {
                    found.push(("log_missing", format!("{path} cannot be read: {why}")));
                }
            }
        }
        if snapshot.records != self.records || self.newest.is_none() {
            self.records = snapshot.records;
            self.newest = Some(now);
        }
        let silence = self.newest.map_or(Duration::ZERO, |newest| now.since(newest));
        let expected = silence.as_secs_f64() * snapshot.global.mean;
        if snapshot.records > 0 && silence > SILENT_AFTER && expected > SILENT_AFTER_EXPECTED {
            let reason = format!(
                "no request has been logged for {} s, and {expected:.0} would be normal; is the log where Nginx writes?",
                silence.as_secs()
            );
            found.push(("log_silent", reason));
        }
        self.minute.push_back((now, snapshot.records, rejected, snapshot.late));
        while self.minute.front().is_some_and(|(at, ..)| now.since(*at) > Duration::from_secs(60)) {
            self.minute.pop_front();
        }
        if let (Some(first), Some(last)) = (self.minute.front(), self.minute.back()) {
            let records = last.1.saturating_sub(first.1);
            let rejected = last.2.saturating_sub(first.2);
            let late = last.3.saturating_sub(first.3);
            if share(rejected, records + rejected) {
                let reason = format!(
                    "{rejected} of {} lines in the last minute gave no record; is it the log format of nginx/?",
                    records + rejected
                );
                found.push(("rejected", reason));
            }
            if share(late, records) {
                let reason = format!("{late} of {records} records in the last minute were older than the window");
                found.push(("late", reason));
            }
        }
        found
    }
}

fn share(bad: u64, all: u64) -> bool {
    bad >= BAD_LINES && bad as f64 > BAD_SHARE * all as f64
}

/// The likely reason why records of a banned client keep coming, with what to do.
pub fn why_not_effective(proof: &NotEffective) -> String {
    match proof.peer {
        Some(peer) if peer != proof.client => format!(
            "{} comes through {peer}, so its packets do not carry its own address; a packet filter cannot drop it \
             (ban it in Nginx, and list {peer} in trusted_proxies)",
            proof.client
        ),
        Some(_) => format!(
            "{} requests of {} arrived after its ban although it is the TCP peer itself: its packets do not pass the \
             protected interface; see enforcer.interfaces",
            proof.records,
            ip_text(&proof.prefix)
        ),
        None => format!(
            "{} requests of {} arrived after its ban: either a proxy or CDN stands in front (then log $realip_remote_addr as peer), \
             or its packets come in by another interface than enforcer.interfaces",
            proof.records,
            ip_text(&proof.prefix)
        ),
    }
}
