//! Judges how well the log serves: missing, silent, full of lines that say nothing, or late.

use std::collections::{BTreeMap, VecDeque};
use std::path::PathBuf;
use std::time::Duration;

use super::line_counts::LogLines;
use super::trouble::Trouble;
use crate::engine::{NotEffective, Snapshot};
use crate::record;
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
/// So many lines in a row that give no record say that a log that is read to its end cannot be read ...
const UNREAD_LINES: u64 = 100;
/// ... and so few where it has lasted ...
const FEW_UNREAD_LINES: u64 = 3;
/// ... for this long.
const UNREAD_FOR: Duration = Duration::from_secs(60);
/// It can be read again when of the lines of so long a time ...
const READ_AGAIN_IN: Duration = Duration::from_secs(10);
/// ... one in so many gives a record.
const READ_AGAIN_SHARE: u64 = 10;

/// One followed log.
#[derive(Clone, Debug)]
pub struct LogStatus {
    /// Its path.
    pub path: PathBuf,
    /// Whether it can be read.
    pub presence: Presence,
    /// Since when that is so (wall clock).
    pub since: Timestamp,
    /// It has been read to its end.
    pub at_end: bool,
    /// What its lines have given.
    pub lines: LogLines,
}

/// Remembers one minute of counts.
#[derive(Debug, Default)]
pub struct LogWatch {
    minute: VecDeque<(Timestamp, u64, u64, u64)>,
    lines: u64,
    newest: Option<Timestamp>,
    /// Logs of which no line can be read, with what their newest lines gave: when, records, rejected.
    unread: BTreeMap<PathBuf, VecDeque<(Timestamp, u64, u64)>>,
}

impl LogWatch {
    /// What is not as it should be now. To be called about once a second.
    pub fn judge(&mut self, now: Timestamp, snapshot: &Snapshot, logs: &[LogStatus]) -> Vec<Trouble> {
        let mut found = Vec::new();
        self.unread.retain(|path, _| logs.iter().any(|log| log.path == *path));
        for log in logs {
            let path = log.path.display();
            let lasts = now.since(log.since);
            let reason = match &log.presence {
                Presence::Reading => {
                    found.extend(self.unread(now, log));
                    continue;
                }
                Presence::Missing if lasts < MISSING_AFTER => continue,
                Presence::Missing => {
                    format!("{path} does not exist; is log.paths right, and does Nginx write there (nginx/)?")
                }
                Presence::Unreadable(why) => format!("{path} cannot be read: {why}"),
            };
            found.push(Trouble { word: "log_missing", which: path.to_string(), reason });
        }
        let rejected: u64 = logs.iter().map(|log| log.lines.rejected).sum();
        // Lines that cannot be read are another trouble, and no silence.
        let lines = snapshot.records.saturating_add(rejected);
        if lines != self.lines || self.newest.is_none() {
            self.lines = lines;
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
            // Of a log that cannot be read at all more is said above.
            if share(rejected, records + rejected) && self.unread.is_empty() {
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

    /// That no line of a log can be read, and what to do: nobody is judged by it. From a hundred lines in a row on, or where a quiet log
    /// has nothing else for a minute, until one line in ten gives a record again.
    fn unread(&mut self, now: Timestamp, log: &LogStatus) -> Option<Trouble> {
        let (lines, unread) = (&log.lines, &log.lines.unread);
        let lasts = unread.since.map_or(Duration::ZERO, |since| now.since(since));
        // Further on in a backlog it may have the format that is expected.
        let begins =
            (log.at_end && unread.lines >= UNREAD_LINES) || (unread.lines >= FEW_UNREAD_LINES && lasts >= UNREAD_FOR);
        if begins && !self.unread.contains_key(&log.path) {
            self.unread.insert(log.path.clone(), VecDeque::new());
        }
        let newest = self.unread.get_mut(&log.path)?;
        newest.push_back((now, lines.records, lines.rejected));
        while newest.front().is_some_and(|(at, ..)| now.since(*at) > READ_AGAIN_IN) {
            newest.pop_front();
        }
        let (_, records, rejected) = newest.front().copied().unwrap_or((now, lines.records, lines.rejected));
        let (records, rejected) = (lines.records.saturating_sub(records), lines.rejected.saturating_sub(rejected));
        if records > 0 && records * READ_AGAIN_SHARE >= rejected {
            self.unread.remove(&log.path);
            return None;
        }
        let path = log.path.display();
        let why = unread.why.map_or("", |why| record::why(why, &unread.line));
        let how_many = match records {
            0 => format!("none of the last {} lines of {path} can be read", unread.lines),
            _ => format!("{rejected} of the last {} lines of {path} cannot be read", records + rejected),
        };
        let reason = format!("{how_many}: {why}; {}", record::cure(&unread.line));
        Some(Trouble { word: "log_format", which: path.to_string(), reason })
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
    use crate::record::Reject;

    const COMBINED: &[u8] = br#"192.0.2.1 - - [27/Apr/2026:09:59:58 +0000] "GET / HTTP/1.1" 200 5"#;

    /// A day whose every second is told to the watch.
    struct Day {
        watch: LogWatch,
        snapshot: Snapshot,
        log: LogStatus,
        now: Timestamp,
    }

    impl Day {
        fn new(mean: f64) -> Self {
            let now = Timestamp::from_secs(1_777_281_951);
            let mut snapshot = Engine::new(Settings::default(), 0).snapshot(0);
            snapshot.global.mean = mean;
            Self { watch: LogWatch::default(), snapshot, log: log("access.json", now), now }
        }

        /// Lets seconds pass with so many records, rejected lines and late records in each; the words found at the end.
        fn pass(&mut self, secs: u64, records: u64, rejected: u64, late: u64) -> Vec<&'static str> {
            let found = self.troubles(secs, records, rejected, late);
            found.into_iter().map(|trouble| trouble.word).collect()
        }

        /// The same with their words. In each second the records come last.
        fn troubles(&mut self, secs: u64, records: u64, rejected: u64, late: u64) -> Vec<Trouble> {
            let mut found = Vec::new();
            for _ in 0..secs {
                self.now = self.now.plus(Duration::from_secs(1));
                self.snapshot.records += records;
                self.snapshot.late += late;
                add(&mut self.log, records, rejected, self.now);
                found = self.watch.judge(self.now, &self.snapshot, std::slice::from_ref(&self.log));
            }
            found
        }
    }

    fn log(path: &str, now: Timestamp) -> LogStatus {
        let (presence, lines) = (Presence::Reading, LogLines::default());
        LogStatus { path: PathBuf::from(path), presence, since: now, at_end: true, lines }
    }

    fn add(log: &mut LogStatus, records: u64, rejected: u64, now: Timestamp) {
        (0..rejected).for_each(|_| log.lines.reject(Reject::NotAnObject, COMBINED, now));
        if records > 0 {
            log.lines.read(records as usize);
        }
    }

    #[test]
    fn a_sustained_share_of_rejected_lines_is_told_and_a_single_bad_second_is_not() {
        let mut day = Day::new(50.0);
        assert_eq!(day.pass(100, 50, 0, 0), [""; 0]);
        assert_eq!(day.pass(1, 50, 60, 0), [""; 0], "60 of 3,000 in the minute");
        assert_eq!(day.pass(60, 50, 4, 0), [""; 0], "8 %");
        assert_eq!(day.pass(60, 50, 8, 0), ["rejected"], "14 %");
        assert_eq!(day.pass(10, 0, 8, 0), ["rejected"]);
        assert_eq!(day.pass(61, 50, 0, 0), [""; 0], "and it is over when it is over");
    }

    #[test]
    fn a_log_of_which_no_line_can_be_read_is_a_fault_with_its_cure() {
        let mut day = Day::new(50.0);
        let found = day.troubles(3, 0, 50, 0);
        let [Trouble { word: "log_format", which, reason }] = &found[..] else { panic!("{found:?}") };
        assert_eq!(which, "access.json");
        assert!(
            reason.starts_with("none of the last 150 lines of access.json can be read: it is not JSON"),
            "{reason}"
        );
        assert!(reason.contains("they look like the format combined: set log.format = \"combined\""), "{reason}");
        // It stays as long as nothing else comes, also when nothing comes at all.
        assert_eq!(day.pass(4000, 0, 0, 0), ["log_format"]);
        assert_eq!(day.pass(1, 1, 0, 0), [""; 0], "a record ends it");
    }

    #[test]
    fn a_format_that_changes_while_the_daemon_runs_is_noticed_at_once() {
        let mut day = Day::new(50.0);
        day.pass(4000, 50, 0, 0);
        assert_eq!(day.pass(1, 0, 50, 0), [""; 0]);
        assert_eq!(day.pass(1, 0, 50, 0), ["log_format"]);
        assert_eq!(day.pass(600, 0, 50, 0), ["log_format"], "and it is no silence as well");
        // Other lines come with it for a while, as when one of several servers has been mended.
        assert_eq!(day.pass(100, 1, 50, 0), ["log_format"]);
        assert!(day.troubles(1, 1, 50, 0)[0].reason.starts_with("500 of the last 510 lines of"));
        assert_eq!(day.pass(60, 50, 50, 0), ["rejected"]);
        assert_eq!(day.pass(61, 50, 0, 0), [""; 0]);
    }

    #[test]
    fn a_quiet_log_that_cannot_be_read_is_noticed_after_a_minute() {
        let mut day = Day::new(0.0);
        assert_eq!(day.pass(1, 0, 2, 0), [""; 0]);
        assert_eq!(day.pass(58, 0, 0, 0), [""; 0]);
        assert_eq!(day.pass(1, 0, 1, 0), [""; 0], "within a minute");
        assert_eq!(day.pass(1, 0, 0, 0), ["log_format"]);
        assert_eq!(day.pass(1, 1, 0, 0), [""; 0]);
        // One line that was cut in two is no format.
        assert_eq!(day.pass(1, 0, 2, 0), [""; 0]);
        assert_eq!(day.pass(4000, 0, 0, 0), [""; 0]);
    }

    #[test]
    fn an_empty_log_is_no_fault() {
        let mut day = Day::new(0.0);
        (0..200).for_each(|_| day.log.lines.reject(Reject::Empty, b"", day.now));
        assert_eq!(day.pass(4000, 0, 0, 0), [""; 0]);
    }

    #[test]
    fn the_past_of_a_log_may_be_in_another_format() {
        let mut day = Day::new(0.0);
        day.log.at_end = false;
        assert_eq!(day.pass(3, 0, 5000, 0), ["rejected"], "it is told, but the end is not known yet");
        day.log.at_end = true;
        assert_eq!(day.pass(1, 1, 0, 0), ["rejected"]);
        // A backlog that takes so long is no past.
        let mut day = Day::new(0.0);
        day.log.at_end = false;
        assert_eq!(day.pass(61, 0, 5000, 0), ["log_format"]);
    }

    #[test]
    fn of_several_logs_the_one_that_cannot_be_read_is_named() {
        let Day { mut watch, mut snapshot, mut now, .. } = Day::new(50.0);
        let mut logs = [log("a.json", now), log("b.log", now)];
        let mut found = Vec::new();
        for _ in 0..120 {
            now = now.plus(Duration::from_secs(1));
            snapshot.records += 50;
            add(&mut logs[0], 50, 0, now);
            add(&mut logs[1], 0, 2, now);
            found = watch.judge(now, &snapshot, &logs);
        }
        let [Trouble { word: "log_format", which, reason }] = &found[..] else { panic!("{found:?}") };
        assert!(which == "b.log" && reason.contains("b.log"), "{reason}");
        // No longer followed, it is no trouble.
        assert_eq!(watch.judge(now, &snapshot, &logs[..1]), []);
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
        day.log = LogStatus { presence: Presence::Unreadable("no".into()), since: day.now, ..day.log };
        assert_eq!(day.pass(1, 1, 0, 0), ["log_missing"]);
    }
}
