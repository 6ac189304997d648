//! The tail against real files: rotation under load, restarts, and random runs against a model.

mod model;

use std::fs::{self, File, OpenOptions};
use std::io::Write;
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::Duration;

use anomaly::tail::{Checkpoint, MAX_LINE_BYTES, Presence, Progress, Start, Tail};
use anomaly::time::Timestamp;

/// Virtual time: nothing here waits for a clock.
const NOW: Timestamp = Timestamp::from_secs(1_777_281_951);

struct Lab {
    dir: tempfile::TempDir,
}

impl Lab {
    fn new() -> Self {
        Self { dir: tempfile::tempdir().expect("a directory") }
    }

    fn log(&self) -> PathBuf {
        self.path("access.json")
    }

    fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    fn append(&self, name: &str, text: &str) {
        append(&self.path(name), text);
    }

    fn rename(&self, from: &str, to: &str) {
        fs::rename(self.path(from), self.path(to)).expect("renamed");
    }

    fn open(&self, start: Start) -> Tail {
        Tail::open(self.log(), start).expect("a tail")
    }
}

fn append(path: &Path, text: &str) {
    let mut file = OpenOptions::new().create(true).append(true).open(path).expect("opened");
    file.write_all(text.as_bytes()).expect("written");
}

/// Lines with their newlines, as texts without.
pub fn texts(lines: &[u8]) -> impl Iterator<Item = String> {
    let lines = lines.strip_suffix(b"\n").unwrap_or(lines).split(|byte| *byte == b'\n');
    lines.map(|line| String::from_utf8_lossy(line).into_owned())
}

/// Polls once, without a limit.
fn poll(tail: &mut Tail, now: Timestamp) -> (Vec<String>, Progress) {
    let mut lines = Vec::new();
    let progress = tail.poll(now, usize::MAX, &mut |new: &[u8]| lines.extend(texts(new))).expect("polled");
    assert!(progress.at_end);
    (lines, progress)
}

fn lines(tail: &mut Tail) -> Vec<String> {
    poll(tail, NOW).0
}

fn later() -> Timestamp {
    NOW.plus(Duration::from_secs(11))
}

/// A checkpoint as it comes back from the store.
fn stored(tail: &Tail) -> Start {
    let text = serde_json::to_string(&tail.checkpoint()).expect("serialised");
    Start::At(serde_json::from_str::<Checkpoint>(&text).expect("deserialised"))
}

#[test]
fn partial_lines_wait_for_their_newline() {
    let lab = Lab::new();
    lab.append("access.json", "one\ntw");
    let mut tail = lab.open(Start::Beginning);
    assert_eq!(lines(&mut tail), ["one"]);
    assert_eq!(lines(&mut tail), [""; 0]);
    // A restart in the middle of a line reads it whole.
    let mut tail = lab.open(stored(&tail));
    lab.append("access.json", "o\n\nthree\n");
    assert_eq!(lines(&mut tail), ["two", "", "three"]);
    assert_eq!(tail.backlog_bytes(), 0);
}

#[test]
fn a_missing_log_is_waited_for() {
    let lab = Lab::new();
    let mut tail = Tail::open(lab.path("later/access.json"), Start::End).expect("no error");
    assert_eq!(poll(&mut tail, NOW).1.presence, Presence::Missing);
    fs::create_dir(lab.path("later")).expect("created");
    lab.append("later/access.json", "one\n");
    let (lines, progress) = poll(&mut tail, NOW);
    assert_eq!((lines, progress.presence), (vec!["one".to_owned()], Presence::Reading));
    assert!(Tail::open(lab.dir.path(), Start::Beginning).is_err(), "a directory is no log");
    let mut tail = lab.open(Start::Beginning);
    fs::create_dir(lab.log()).expect("created");
    assert!(matches!(poll(&mut tail, NOW).1.presence, Presence::Unreadable(_)));
}

#[test]
fn starting_at_the_end_skips_what_is_there_and_the_line_being_written() {
    let lab = Lab::new();
    lab.append("access.json", "old\nbeing wri");
    let mut tail = lab.open(Start::End);
    lab.append("access.json", "tten\nnew\n");
    assert_eq!(lines(&mut tail), ["new"]);
}

#[test]
fn starting_some_time_back_in_a_large_log() {
    let lab = Lab::new();
    let text: String = (0..50_000).map(|n| format!("{n} {}\n", "x".repeat(40))).collect();
    lab.append("access.json", &text);
    let mut tail = lab.open(Start::Beginning);
    tail.seek_back(Duration::from_secs(1000), &mut |line| {
        let secs = std::str::from_utf8(line).ok()?.split(' ').next()?.parse().ok()?;
        Some(Timestamp::from_secs(secs))
    })
    .expect("sought");
    let read = lines(&mut tail);
    assert!((1000..1100).contains(&read.len()), "{}", read.len());
    assert!(read[read.len() - 1].starts_with("49999 "));
}

#[test]
fn lines_that_are_too_long_are_skipped_and_counted() {
    let lab = Lab::new();
    let mut tail = lab.open(Start::Beginning);
    lab.append("access.json", &format!("a\n{}\nb\n{}", "x".repeat(MAX_LINE_BYTES + 1), "y".repeat(3 * MAX_LINE_BYTES)));
    let (read, progress) = poll(&mut tail, NOW);
    // One that was complete before it was too long is handed over, for others to reject.
    let (long, read): (Vec<_>, Vec<_>) = read.into_iter().partition(|line| line.len() > MAX_LINE_BYTES);
    assert_eq!((read, progress.counts.oversized + long.len() as u64), (vec!["a".to_owned(), "b".to_owned()], 2));
    // In the middle of one, also after a restart.
    let mut tail = lab.open(stored(&tail));
    lab.append("access.json", &format!("{}\nc\n{}\n", "y".repeat(MAX_LINE_BYTES), "z".repeat(MAX_LINE_BYTES)));
    let (read, progress) = poll(&mut tail, NOW);
    assert_eq!(read.len(), 2);
    assert_eq!((read[0].as_str(), read[1].len(), progress.counts.oversized), ("c", MAX_LINE_BYTES, 0));
}

#[test]
fn after_a_rename_the_old_file_is_read_until_it_is_quiet() {
    let lab = Lab::new();
    lab.append("access.json", "1\n");
    let mut tail = lab.open(Start::Beginning);
    assert_eq!(lines(&mut tail), ["1"]);
    lab.rename("access.json", "access.json.1");
    lab.append("access.json.1", "2\n");
    let (read, progress) = poll(&mut tail, NOW);
    assert_eq!((read, progress.presence), (vec!["2".to_owned()], Presence::Missing));
    lab.append("access.json", "4\n");
    lab.append("access.json.1", "3\nha");
    let (read, progress) = poll(&mut tail, NOW);
    assert_eq!((read, progress.counts.rotations), (vec!["3".to_owned(), "4".to_owned()], 1));
    lab.append("access.json.1", "lf\nnever fini");
    lab.append("access.json", "5\n");
    assert_eq!(lines(&mut tail), ["half", "5"]);
    assert_eq!(lines(&mut tail), [""; 0]);
    let (read, progress) = poll(&mut tail, later());
    assert_eq!((read, progress.counts.unterminated), (vec!["never fini".to_owned()], 1));
    assert_eq!(tail.totals().unterminated, 1);
}

#[test]
fn copytruncate_is_noticed_even_when_the_log_has_grown_beyond_the_old_place() {
    let lab = Lab::new();
    lab.append("access.json", "1\n2\n");
    let mut tail = lab.open(Start::Beginning);
    assert_eq!(lines(&mut tail), ["1", "2"]);
    // Written between the last poll and the copy: found in the copy.
    lab.append("access.json", "3\n");
    fs::copy(lab.log(), lab.path("access.json.1")).expect("copied");
    File::options().write(true).open(lab.log()).and_then(|f| f.set_len(0)).expect("cut");
    lab.append("access.json", "4 is longer than what was there before\n5\n");
    let (read, progress) = poll(&mut tail, NOW);
    assert_eq!(read, ["3", "4 is longer than what was there before", "5"]);
    assert_eq!((progress.counts.truncations, progress.counts.caught_up), (1, 1));
    // Without a copy, to nothing.
    fs::write(lab.log(), "").expect("cut");
    lab.append("access.json", "6\n");
    assert_eq!(lines(&mut tail), ["6"]);
}

#[test]
fn what_was_rotated_during_a_downtime_is_caught_up_in_order() {
    for compress in [false, true] {
        for dates in [false, true] {
            let lab = Lab::new();
            let names = if dates { ["-20260425", "-20260426", "-20260427"] } else { [".3", ".2", ".1"] };
            lab.append(&format!("access.json{}", if dates { "-20260424" } else { ".4" }), "before our time\n");
            lab.append("access.json", "1\n2\n");
            let mut tail = lab.open(Start::Beginning);
            assert_eq!(lines(&mut tail), ["1", "2"]);
            let start = stored(&tail);
            drop(tail);
            let mut n = 3;
            for (i, name) in names.iter().enumerate() {
                lab.append("access.json", &format!("{n}\n{}\n", n + 1));
                n += 2;
                let rotated = format!("access.json{name}");
                lab.rename("access.json", &rotated);
                if compress && i < 2 {
                    gzip(&lab.path(&rotated));
                }
            }
            lab.append("access.json", &format!("{n}\n"));
            let mut tail = lab.open(start);
            let (read, progress) = poll(&mut tail, NOW);
            assert_eq!(read, (3..=n).map(|n| n.to_string()).collect::<Vec<_>>(), "gzip {compress} dates {dates}");
            assert_eq!((progress.counts.caught_up, progress.counts.lost_files), (3, 0));
            // And all of it only once.
            let mut tail = lab.open(stored(&tail));
            assert_eq!(poll(&mut tail, later()).0, [""; 0]);
            let mut tail = lab.open(stored(&tail));
            assert_eq!(poll(&mut tail, later()).0, [""; 0]);
        }
    }
}

#[test]
fn a_backlog_of_compressed_files_can_be_interrupted_anywhere() {
    let lab = Lab::new();
    let text: String = (0..2_000).map(|n| format!("{n} {}\n", "x".repeat(n % 50))).collect();
    lab.append("access.json", "first\n");
    let mut tail = lab.open(Start::Beginning);
    let mut read = lines(&mut tail);
    let mut start = stored(&tail);
    lab.append("access.json", &text);
    lab.rename("access.json", "access.json.1");
    gzip(&lab.path("access.json.1"));
    lab.append("access.json", "last\n");
    // Each life ends as soon as it has read something new.
    for life in 0.. {
        let mut tail = lab.open(start);
        let before = read.len();
        let mut at_end = false;
        while read.len() == before && !at_end {
            let progress = tail.poll(NOW, 1_000, &mut |new: &[u8]| read.extend(texts(new))).expect("polled");
            assert_eq!(progress.counts.lost_files, 0);
            at_end = progress.at_end;
        }
        start = stored(&tail);
        if at_end {
            assert!(life > 30, "{life}");
            break;
        }
    }
    let expected: Vec<String> =
        std::iter::once("first").chain(text.lines()).chain(["last"]).map(String::from).collect();
    assert!(read == expected, "{} lines instead of {}", read.len(), expected.len());
}

#[test]
fn a_checkpoint_that_fits_nothing_is_said_and_the_log_read_from_its_beginning() {
    let lab = Lab::new();
    lab.append("access.json", "1\n");
    let mut tail = lab.open(Start::Beginning);
    lines(&mut tail);
    let start = stored(&tail);
    // Whatever inode the new one gets.
    fs::remove_file(lab.log()).expect("removed");
    lab.append("access.json", "another log\n");
    let (read, progress) = poll(&mut lab.open(start), NOW);
    assert_eq!((read, progress.counts.lost_files), (vec!["another log".to_owned()], 1));
}

#[test]
fn a_link_may_point_elsewhere_and_back() {
    let lab = Lab::new();
    let point_to = |target: &str| {
        symlink(lab.path(target), lab.path("new")).expect("linked");
        lab.rename("new", "access.json");
    };
    lab.append("a", "a1\n");
    lab.append("b", "b1\n");
    point_to("a");
    let mut tail = lab.open(Start::Beginning);
    assert_eq!(lines(&mut tail), ["a1"]);
    point_to("b");
    lab.append("a", "a2\n");
    assert_eq!(lines(&mut tail), ["a2", "b1"]);
    point_to("a");
    lab.append("a", "a3\n");
    let (read, _) = poll(&mut tail, later());
    assert_eq!(read, ["a3"]);
    let start = stored(&tail);
    point_to("b");
    lab.append("b", "b2\n");
    lab.append("a", "a4\n");
    let mut tail = lab.open(start);
    assert_eq!(lines(&mut tail), ["a4", "b2"]);
}

#[test]
fn a_link_to_what_is_named_like_a_rotated_log_is_read_once() {
    let lab = Lab::new();
    lab.append("access.json-20260428", "the begi");
    symlink(lab.path("access.json-20260428"), lab.log()).expect("linked");
    let mut tail = lab.open(Start::Beginning);
    assert!(lines(&mut tail).is_empty());
    let mut again = lab.open(stored(&tail));
    assert!(lines(&mut again).is_empty());
    lab.append("access.json-20260428", "nning\nmore\n");
    assert_eq!(lines(&mut again), ["the beginning", "more"]);
    let (late, progress) = poll(&mut again, later());
    assert!(late.is_empty() && progress.counts.unterminated == 0, "{late:?}");
}

#[test]
fn a_log_of_which_only_the_beginning_of_a_line_was_seen_is_found_compressed() {
    let lab = Lab::new();
    lab.append("access.json", "the");
    let mut tail = lab.open(Start::Beginning);
    assert!(lines(&mut tail).is_empty());
    let checkpoint = stored(&tail);
    drop(tail);
    lab.append("access.json", " first\n");
    lab.rename("access.json", "access.json.1");
    gzip(&lab.path("access.json.1"));
    // Whole seconds only, as some compressors keep them.
    let gz = File::options().append(true).open(lab.path("access.json.1.gz")).expect("opened");
    let secs = |time: std::time::SystemTime| {
        let since = time.duration_since(std::time::UNIX_EPOCH).expect("after 1970");
        std::time::UNIX_EPOCH + Duration::from_secs(since.as_secs())
    };
    let written = gz.metadata().and_then(|m| m.modified()).expect("a time");
    gz.set_modified(secs(written)).expect("set");
    lab.append("access.json", "the second\n");
    assert_eq!(lines(&mut lab.open(checkpoint)), ["the first", "the second"]);
}

#[test]
fn a_log_that_may_not_be_read_loses_nothing() {
    let lab = Lab::new();
    lab.append("access.json", "1\n");
    let mut tail = lab.open(Start::Beginning);
    assert_eq!(lines(&mut tail), ["1"]);
    let start = stored(&tail);
    lab.append("access.json", "2\n");
    let mut tail = model::without_permission(lab.dir.path(), || {
        let mut tail = lab.open(start);
        let (read, progress) = poll(&mut tail, NOW);
        assert_eq!(read, [""; 0]);
        assert!(matches!(progress.presence, Presence::Unreadable(_)), "{progress:?}");
        // Even a restart meanwhile forgets nothing.
        lab.open(stored(&tail))
    });
    let (read, progress) = poll(&mut tail, NOW);
    assert_eq!((read, progress.counts.lost_files), (vec!["2".to_owned()], 0));
}

#[test]
fn a_limit_ends_a_poll_early_and_loses_nothing() {
    let lab = Lab::new();
    let text: String = (0..5_000).map(|n| format!("line {n}\n")).collect();
    lab.append("access.json", &text);
    let mut tail = lab.open(Start::Beginning);
    let mut read = Vec::new();
    let mut polls = 0;
    loop {
        let progress = tail.poll(NOW, 777, &mut |new: &[u8]| read.extend(texts(new))).expect("polled");
        assert!(progress.counts.bytes <= 777);
        polls += 1;
        if progress.at_end {
            break;
        }
    }
    assert!(read == text.lines().collect::<Vec<_>>());
    assert!(polls > 50);
}

/// Replaces a file by its compressed form, as logrotate does: the time of the last write stays.
fn gzip(path: &Path) {
    let modified = fs::metadata(path).and_then(|m| m.modified()).expect("a time");
    let content = fs::read(path).expect("read");
    let compressed = PathBuf::from(format!("{}.gz", path.display()));
    let file = File::create(&compressed).expect("created");
    let mut encoder = flate2::write::GzEncoder::new(file, flate2::Compression::fast());
    encoder.write_all(&content).expect("compressed");
    encoder.finish().and_then(|f| f.set_modified(modified)).expect("finished");
    fs::remove_file(path).expect("removed");
}

/// How the writer under load has its log rotated.
#[derive(Clone, Copy, Debug)]
enum Rotation {
    /// Renamed, with some lines still going to the old file, then reopened.
    Rename,
    /// Copied and cut. The writer waits meanwhile: what is written in between is lost to any reader. And
    /// the log is not cut before anything of it was read: nobody could tell it from the one before.
    CopyTruncate,
}

fn rotation_under_load(rotation: Rotation) {
    const LINES: usize = 120_000;
    let lab = Lab::new();
    let log = lab.log();
    append(&log, "");
    let mut tail = lab.open(Start::Beginning);
    let done = Arc::new(AtomicBool::new(false));
    let newest_seen = Arc::new(AtomicUsize::new(0));
    let writer = {
        let (log, done, newest_seen) = (log.clone(), Arc::clone(&done), Arc::clone(&newest_seen));
        std::thread::spawn(move || {
            let reopen = || OpenOptions::new().create(true).append(true).open(&log).expect("opened");
            let mut file = reopen();
            let (mut rotations, mut generation_start) = (0, 0);
            for n in 0..LINES {
                // In two writes now and then, so that the reader sees partial lines.
                let line = format!("{{\"n\":{n},\"x\":\"{}\"}}\n", "x".repeat(n % 120));
                let (first, second) = line.split_at(if n % 5 == 0 { n % line.len() } else { 0 });
                file.write_all(first.as_bytes()).and_then(|()| file.write_all(second.as_bytes())).expect("written");
                match rotation {
                    Rotation::Rename if n % 2_500 == 0 => {
                        rotations += 1;
                        fs::rename(&log, log.with_extension(format!("json-{}", 20_000_000 + rotations)))
                            .expect("renamed");
                    }
                    Rotation::Rename if n % 2_500 == 37 => file = reopen(),
                    Rotation::CopyTruncate if n % 2_500 == 1_000 => {
                        rotations += 1;
                        while newest_seen.load(Ordering::Acquire) <= generation_start {
                            std::thread::yield_now();
                        }
                        generation_start = n;
                        fs::copy(&log, log.with_extension(format!("json-{}", 20_000_000 + rotations))).expect("copied");
                        file.set_len(0).expect("cut");
                    }
                    _ => {}
                }
            }
            done.store(true, Ordering::Release);
            rotations
        })
    };
    let mut seen = vec![0u32; LINES];
    let mut strange = Vec::new();
    loop {
        let finished = done.load(Ordering::Acquire);
        let progress = tail
            .poll(NOW, 64 << 10, &mut |lines: &[u8]| {
                for line in texts(lines) {
                    let n = serde_json::from_str::<serde_json::Value>(&line).ok().and_then(|v| v["n"].as_u64());
                    match n {
                        Some(n) => {
                            seen[n as usize] += 1;
                            newest_seen.fetch_max(n as usize, Ordering::Release);
                        }
                        None => strange.push(line),
                    }
                }
            })
            .expect("polled");
        if finished && progress.at_end {
            break;
        }
    }
    let rotations = writer.join().expect("the writer ended well");
    let lost = seen.iter().filter(|n| **n == 0).count();
    let twice = seen.iter().filter(|n| **n > 1).count();
    let totals = tail.totals();
    assert_eq!((lost, twice, strange), (0, 0, vec![]), "{rotation:?}: {totals:?}");
    assert!(rotations > 40 && totals.rotations + totals.truncations > 0, "{totals:?}");
}

#[test]
fn rename_and_create_under_load() {
    rotation_under_load(Rotation::Rename);
}

#[test]
fn copytruncate_under_load() {
    rotation_under_load(Rotation::CopyTruncate);
}
