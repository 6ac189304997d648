//! `anomaly replay`: the same engine over past logs at full speed, enforcing nothing.
//!
//! Log time is the only time here, so that the same files give the same rows.

use std::cell::Cell;
use std::fs::File;
use std::io::{self, Read};
use std::path::{Path, PathBuf};
use std::rc::Rc;
use std::time::Duration;

use anyhow::{Context, Result};
use flate2::read::MultiGzDecoder;
use serde::Serialize;

use crate::engine::{Decision, Engine, Input, Output, Settings};
use crate::record::{Format, LINES_AT_ONCE, MAX_LINE_BYTES, Parsed, Parser, Record, Reject};
use crate::report::{DecisionRow, Reason};
use crate::time::Timestamp;

const CHUNK: usize = 256 << 10;

/// What a replay has seen and decided: the last line of `replay --json`.
#[derive(Clone, Debug, Default, PartialEq, Serialize)]
pub struct Summary {
    /// Lines that gave a record.
    pub records: u64,
    /// Lines that gave none.
    pub rejected: u64,
    /// Records older than the window.
    pub late: u64,
    /// Records of banned addresses.
    pub blocked: u64,
    /// Bans decided.
    pub bans: u64,
    /// Bans that ran out before the log did.
    pub unbans: u64,
    /// Global anomalies.
    pub global_anomalies: u64,
    /// Most addresses followed at once.
    pub tracked_ips_peak: usize,
    /// Wall time.
    pub elapsed_secs: f64,
    /// Records per second of wall time.
    pub records_per_sec: u64,
}

/// How a replay is told what it decides.
pub trait Report {
    /// A decision or an anomaly, with its reason in words.
    ///
    /// # Errors
    /// When it cannot be written; ends the replay.
    fn row(&mut self, row: &DecisionRow, reason: &str) -> io::Result<()>;

    /// Called about every 256 KiB with the bytes read so far (as stored, so of the compressed file).
    fn progress(&mut self, bytes: u64);
}

/// A line that gave no record.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Rejected {
    /// The log that it is in.
    pub log: String,
    /// Its bytes; none of one that was too long.
    pub line: Vec<u8>,
    /// What is wrong with it.
    pub why: Reject,
}

/// A log that has lines, of which none gave a record.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Unread {
    /// How many lines, blank ones not counted.
    pub lines: u64,
    /// One of the first.
    pub first: Rejected,
}

/// A replay in progress.
pub struct Replay {
    engine: Engine,
    out: Vec<Output>,
    summary: Summary,
    rejected: Option<Rejected>,
    unread: Vec<Unread>,
    now: Timestamp,
}

impl Replay {
    /// Prepares an engine for past logs: `settings` with self-proof off and log time believed only when it is confirmed.
    pub fn new(settings: Settings) -> Self {
        let settings = Settings { self_proof: false, replay: true, ..settings };
        let engine = Engine::new(settings, 0);
        Self {
            engine,
            out: Vec::new(),
            summary: Summary::default(),
            rejected: None,
            unread: Vec::new(),
            now: Timestamp::MIN,
        }
    }

    /// One of the first lines that gave no record.
    pub fn rejected(&self) -> Option<&Rejected> {
        self.rejected.as_ref()
    }

    /// The logs of which nothing could be read.
    pub fn unread(&self) -> &[Unread] {
        &self.unread
    }

    /// The engine, to give it a baseline before or to take it after.
    pub fn engine(&mut self) -> &mut Engine {
        &mut self.engine
    }

    /// Reads `paths` (`-` is standard input; gzip is recognised by its content), merged by the time of their records, so
    /// that rotated files may come in any order and the logs of several sites side by side.
    ///
    /// # Errors
    /// A file that cannot be opened or read, or a report that cannot be written.
    pub fn run(&mut self, paths: &[PathBuf], format: &Format, report: &mut dyn Report) -> Result<()> {
        let mut sources = Vec::with_capacity(paths.len());
        for path in paths {
            let mut source = Source::open(path, format)?;
            let lines = source.advance(&mut self.summary)?;
            if source.next.is_none() && lines > 0 {
                let too_long = || Rejected { log: source.name(), line: Vec::new(), why: Reject::TooLong };
                self.unread.push(Unread { lines, first: source.rejected.clone().unwrap_or_else(too_long) });
            }
            sources.push(source);
        }
        let mut bytes = 0;
        loop {
            if self.rejected.is_none() {
                self.rejected = sources.iter_mut().find_map(|s| s.rejected.take());
            }
            // The source whose next record is the oldest goes on until another one's is older.
            sources.retain(|s| s.next.is_some());
            let mut order: Vec<usize> = (0..sources.len()).collect();
            order.sort_by_key(|i| sources[*i].next);
            let Some(first) = order.first().copied() else { break };
            let limit = order.get(1).and_then(|i| sources[*i].next);
            self.read_until(&mut sources[first], limit, report, &mut bytes)?;
        }
        // The newest records may still wait for others to confirm a jump in log time.
        self.engine.handle(self.now, Input::Tick { caught_up: true }, &mut self.out);
        Ok(write_rows(&mut self.out, &mut self.summary, report)?)
    }

    fn read_until(
        &mut self,
        source: &mut Source,
        limit: Option<Timestamp>,
        report: &mut dyn Report,
        bytes: &mut u64,
    ) -> Result<()> {
        loop {
            let read = source.consume(limit, |records| {
                self.engine.look_ahead(records);
                for record in records {
                    self.now = self.now.max(record.time);
                    self.engine.handle(self.now, Input::Record(record), &mut self.out);
                    if !self.out.is_empty() {
                        write_rows(&mut self.out, &mut self.summary, report)?;
                    }
                }
                Ok(())
            });
            let outcome = read.with_context(|| source.name())?;
            self.summary.records += outcome.records;
            self.summary.rejected += outcome.rejected;
            match outcome.stopped {
                Stopped::AtLimit => return Ok(()),
                Stopped::OutOfBytes => {
                    let before = source.read_bytes.get();
                    let more = source.fill().with_context(|| source.name())?;
                    *bytes += source.read_bytes.get() - before;
                    report.progress(*bytes);
                    if more == 0 && source.at_end() {
                        self.summary.rejected += u64::from(source.skipping);
                        source.next = None;
                        return Ok(());
                    }
                }
            }
        }
    }

    /// The figures; `elapsed` is the wall time of the whole replay.
    pub fn summary(&self, elapsed: Duration) -> Summary {
        let snapshot = self.engine.snapshot(0);
        let secs = elapsed.as_secs_f64();
        Summary {
            late: snapshot.late,
            blocked: snapshot.blocked,
            tracked_ips_peak: snapshot.tracked_ips_peak,
            elapsed_secs: (secs * 1e6).round() / 1e6,
            records_per_sec: if secs > 0.0 { (self.summary.records as f64 / secs) as u64 } else { 0 },
            ..self.summary.clone()
        }
    }
}

fn write_rows(out: &mut Vec<Output>, summary: &mut Summary, report: &mut dyn Report) -> io::Result<()> {
    for output in out.drain(..) {
        match output {
            Output::Decision(Decision::Ban(ban)) => {
                summary.bans += 1;
                report.row(&DecisionRow::ban(&ban), &ban.reason())?;
            }
            Output::Decision(Decision::Unban(unban)) => {
                summary.unbans += 1;
                report.row(&DecisionRow::unban(&unban), "")?;
            }
            Output::GlobalAnomaly(finding) => {
                summary.global_anomalies += 1;
                report.row(&DecisionRow::global_anomaly(&finding), &finding.reason())?;
            }
            Output::Baseline(_)
            | Output::NotEffective(_)
            | Output::LevelAccepted(_)
            | Output::Braked(_)
            | Output::Kept(_)
            | Output::Refused(_) => {}
        }
    }
    Ok(())
}

/// One log: its bytes, its own parser, and the time of its next record.
struct Source {
    path: PathBuf,
    reader: Box<dyn Read>,
    /// Bytes read of the file as it is stored.
    read_bytes: Rc<Cell<u64>>,
    parser: Parser,
    buffer: Vec<u8>,
    start: usize,
    end: usize,
    /// The end of the last complete line.
    complete: usize,
    ended: bool,
    /// The rest of a line that is longer than [`MAX_LINE_BYTES`] is being skipped.
    skipping: bool,
    next: Option<Timestamp>,
    /// Its first line that gave no record.
    rejected: Option<Rejected>,
}

/// Counts what is read through it.
struct Counted<R> {
    inner: R,
    bytes: Rc<Cell<u64>>,
}

impl<R: Read> Read for Counted<R> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let read = self.inner.read(buffer)?;
        self.bytes.set(self.bytes.get() + read as u64);
        Ok(read)
    }
}

struct Outcome {
    records: u64,
    rejected: u64,
    stopped: Stopped,
}

enum Stopped {
    /// The next record is newer than the limit.
    AtLimit,
    /// No complete line is left in the buffer.
    OutOfBytes,
}

impl Source {
    fn open(path: &Path, format: &Format) -> Result<Self> {
        let name = || path.display().to_string();
        let mut raw: Box<dyn Read> =
            if path == Path::new("-") { Box::new(io::stdin()) } else { Box::new(File::open(path).with_context(name)?) };
        let mut magic = [0; 2];
        let mut have = 0;
        while have < 2 {
            match raw.read(&mut magic[have..]).with_context(name)? {
                0 => break,
                n => have += n,
            }
        }
        let read_bytes = Rc::new(Cell::new(0));
        let raw = Counted { inner: io::Cursor::new(magic[..have].to_vec()).chain(raw), bytes: Rc::clone(&read_bytes) };
        let reader: Box<dyn Read> =
            if magic == [0x1f, 0x8b] { Box::new(MultiGzDecoder::new(raw)) } else { Box::new(raw) };
        Ok(Self {
            path: path.to_path_buf(),
            reader,
            read_bytes,
            parser: Parser::with_format(format),
            buffer: vec![0; CHUNK],
            start: 0,
            end: 0,
            complete: 0,
            ended: false,
            skipping: false,
            next: None,
            rejected: None,
        })
    }

    fn name(&self) -> String {
        self.path.display().to_string()
    }

    fn at_end(&self) -> bool {
        self.ended && self.start == self.end
    }

    /// Finds the time of the first record; how many lines before it gave none.
    fn advance(&mut self, summary: &mut Summary) -> Result<u64> {
        let before = summary.rejected;
        loop {
            let outcome = self.consume(Some(Timestamp::MIN), |_| Ok(())).with_context(|| self.name())?;
            summary.rejected += outcome.rejected;
            if matches!(outcome.stopped, Stopped::AtLimit) {
                return Ok(summary.rejected - before);
            }
            if self.fill().with_context(|| self.name())? == 0 && self.at_end() {
                summary.rejected += u64::from(self.skipping);
                return Ok(summary.rejected - before);
            }
        }
    }

    /// Hands over the complete records up to and including `limit` that are in the buffer.
    fn consume(
        &mut self,
        limit: Option<Timestamp>,
        mut on_records: impl FnMut(&[Record<'_>]) -> io::Result<()>,
    ) -> io::Result<Outcome> {
        let mut outcome = Outcome { records: 0, rejected: 0, stopped: Stopped::OutOfBytes };
        // With a limit, a record may have to be parsed again when the turn is back here: one by one, then.
        let at_once = if limit.is_some() { 1 } else { LINES_AT_ONCE };
        let buffer = &self.buffer[..self.end];
        if self.skipping
            && let Some(newline) = memchr::memchr(b'\n', &buffer[self.start..])
        {
            outcome.rejected += 1;
            self.skipping = false;
            self.start += newline + 1;
        }
        while self.start < self.complete {
            let mut result = Ok(());
            let len = self.parser.parse_some(&buffer[self.start..self.complete], at_once, &mut |parsed| match parsed {
                Parsed::Records([record, ..]) if limit.is_some_and(|limit| record.time > limit) => {
                    self.next = Some(record.time);
                    outcome.stopped = Stopped::AtLimit;
                }
                Parsed::Records(records) if result.is_ok() => {
                    outcome.records += records.len() as u64;
                    result = on_records(records);
                }
                Parsed::Records(_) | Parsed::Rejected(Reject::Empty, _) => {}
                // It says nothing of the others.
                Parsed::Rejected(Reject::TooLong, _) => outcome.rejected += 1,
                Parsed::Rejected(why, line) => {
                    outcome.rejected += 1;
                    if self.rejected.is_none() {
                        let log = self.path.display().to_string();
                        self.rejected = Some(Rejected { log, line: line.to_vec(), why });
                    }
                }
            });
            result?;
            if matches!(outcome.stopped, Stopped::AtLimit) {
                break;
            }
            self.start += len;
        }
        Ok(outcome)
    }

    /// Reads more; the number of bytes read, 0 at the end.
    fn fill(&mut self) -> io::Result<usize> {
        if self.skipping || self.end - self.start > MAX_LINE_BYTES {
            // Longer than a line may be: forget what is there, and the rest of it when it comes.
            self.skipping = true;
            (self.start, self.end) = (0, 0);
        }
        // What is left is less than a line.
        if self.start > 0 {
            self.buffer.copy_within(self.start..self.end, 0);
            self.end -= self.start;
            self.start = 0;
        }
        if self.buffer.len() - self.end < CHUNK {
            self.buffer.resize(self.end + CHUNK, 0);
        }
        let read = loop {
            match self.reader.read(&mut self.buffer[self.end..]) {
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                other => break other?,
            }
        };
        let newline = memchr::memrchr(b'\n', &self.buffer[self.end..self.end + read]);
        self.complete = newline.map_or(0, |newline| self.end + newline + 1);
        self.end += read;
        self.ended |= read == 0;
        if self.ended {
            // The last line of a file may lack its newline.
            self.complete = self.end;
        }
        Ok(read)
    }
}
