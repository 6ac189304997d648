//! Judges how well the log serves: missing, silent, full of lines that say nothing, or late.

use std::collections::VecDeque;
use std::time::Duration;

use super::hot::LogPicture;
use super::trouble::Trouble;
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
    /// What is not as it should be now. To be called about once a second.
    pub fn judge(&mut self, now: Timestamp, snapshot: &Snapshot, logs: &[LogPicture], rejected: u64) -> Vec<Trouble> {
        let mut found = Vec::new();
        for log in logs {
            let path = log.path.display();
            let lasts = now.since(log.since);
            let reason = match &log.presence {
                Presence::Reading => continue,
                Presence::Missing if lasts < MISSING_AFTER => continue,
                Presence::Missing => {
                    format!("{path} does not exist; is log.paths right, and does Nginx write there (nginx/)?")
                }
                Presence::Unreadable(why) => format!("{path} cannot be read: {why}"),
            };
            found.push(Trouble { word: "log_missing", which: path.to_string(), reason });
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
            found.push(Trouble::new("log_silent", reason));
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
                found.push(Trouble::new("rejected", reason));
            }
            if share(late, records) {
                let reason = format!("{late} of {records} records in the last minute were older than the window");
                found.push(Trouble::new("late", reason));
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

#[cfg(test)]
mod tests {
    use std::path::PathBuf;

    use super::*;
    use crate::engine::{Engine, Settings};

    /// A day whose every second is told to the watch.
    struct Day {
        watch: LogWatch,
        snapshot: Snapshot,
        log: LogPicture,
        now: Timestamp,
        rejected: u64,
    }

    impl Day {
        fn new(mean: f64) -> Self {
            let now = Timestamp::from_secs(1_777_281_951);
            let mut snapshot = Engine::new(Settings::default(), 0).snapshot(0);
            snapshot.global.mean = mean;
            let log = LogPicture { path: PathBuf::from("access.json"), presence: Presence::Reading, since: now };
            Self { watch: LogWatch::default(), snapshot, log, now, rejected: 0 }
        }

        /// Lets seconds pass with so many records, rejected lines and late records in each; the words found at the end.
        fn pass(&mut self, secs: u64, records: u64, rejected: u64, late: u64) -> Vec<&'static str> {
            let mut found = Vec::new();
            for _ in 0..secs {
                self.now = self.now.plus(Duration::from_secs(1));
                self.snapshot.records += records;
                self.snapshot.late += late;
                self.rejected += rejected;
                found = self.watch.judge(self.now, &self.snapshot, std::slice::from_ref(&self.log), self.rejected);
            }
            found.into_iter().map(|trouble| trouble.word).collect()
        }
    }

    #[test]
    fn a_sustained_share_of_rejected_lines_is_told_and_a_single_bad_second_is_not() {
        let mut day = Day::new(50.0);
        assert_eq!(day.pass(100, 50, 0, 0), [""; 0]);
        assert_eq!(day.pass(1, 50, 60, 0), [""; 0], "60 of 3,000 in the minute");
        assert_eq!(day.pass(60, 50, 4, 0), [""; 0], "8 %");
        assert_eq!(day.pass(60, 50, 8, 0), ["rejected"], "14 %");
        assert_eq!(day.pass(60, 0, 8, 0), ["rejected"], "nothing but bad lines is no silence, but a fault");
        assert_eq!(day.pass(61, 50, 0, 0), [""; 0], "and it is over when it is over");
    }

    #[test]
    fn a_few_bad_lines_of_a_small_site_are_not_told() {
        let mut day = Day::new(0.1);
        assert_eq!(day.pass(1, 10, 0, 0), [""; 0]);
        assert_eq!(day.pass(1, 10, 19, 0), [""; 0]);
        assert_eq!(day.pass(1, 0, 1, 0), ["rejected"]);
    }

    #[test]
    fn late_records_are_told() {
        let mut day = Day::new(50.0);
        day.pass(61, 50, 0, 0);
        assert_eq!(day.pass(60, 50, 0, 10), ["late"]);
    }

    #[test]
    fn silence_is_told_where_it_means_something() {
        let mut busy = Day::new(50.0);
        busy.pass(100, 50, 0, 0);
        assert_eq!(busy.pass(60, 0, 0, 0), [""; 0]);
        assert_eq!(busy.pass(1, 0, 0, 0), ["log_silent"]);
        assert_eq!(busy.pass(1, 1, 0, 0), [""; 0]);
        let mut quiet = Day::new(0.2);
        quiet.pass(100, 1, 0, 0);
        assert_eq!(quiet.pass(490, 0, 0, 0), [""; 0], "98 requests were to be expected");
        assert_eq!(quiet.pass(20, 0, 0, 0), ["log_silent"]);
    }

    #[test]
    fn a_log_that_is_gone_is_told_after_ten_seconds_and_one_that_may_not_be_read_at_once() {
        let mut day = Day::new(50.0);
        day.log.presence = Presence::Missing;
        assert_eq!(day.pass(9, 1, 0, 0), [""; 0]);
        assert_eq!(day.pass(1, 1, 0, 0), ["log_missing"]);
        day.log = LogPicture { presence: Presence::Unreadable("no".into()), since: day.now, ..day.log };
        assert_eq!(day.pass(1, 1, 0, 0), ["log_missing"]);
    }
}
