//! The hot thread: read, split, parse, judge. Nothing here waits for a disk, a process or the network,
//! and no record crosses a thread; only the engine's outputs do.

use std::num::NonZeroU64;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::mpsc::{Receiver, RecvTimeoutError, SyncSender};
use std::time::Duration;

use tracing::{error, info, warn};

use super::clock::{now, stopwatch};
use super::line_counts::{LineCounts, LogLines};
use super::log_watch::{LogStatus, LogWatch};
use super::messages::{HotStatus, MAX_EXPLAINED, Progress, Reply, Shared, Work, publish};
use super::outbox::Outbox;
use super::polling::Polling;
use super::saves::{Saves, Times};
use crate::config::Config;
use crate::enforce::covered_by;
use crate::engine::{BadState, Ban, Command, Engine, Input, Output, Snapshot, State};
use crate::metrics::reject_word;
use crate::record::{Parsed, Parser, Record, Reject};
use crate::report::{TopRow, inert};
use crate::tail::{Checkpoint, Counts, Presence, Start, Tail, TailError, Watcher};
use crate::time::Timestamp;
use crate::view::control::Request;

/// Bytes of one log that are read before anything else gets its turn: a few milliseconds of work.
const CHUNK: usize = 1 << 20;
/// Clients in the picture.
const TOP: usize = 100;
/// While one log is busy, the quiet ones are looked at this often, and all for rotation.
const ALL_EVERY: Duration = Duration::from_millis(16);
/// How often people get a new picture.
const PICTURE_EVERY: Duration = Duration::from_secs(1);
/// A decision is shown at the first look after this.
const NEWS_AFTER: Duration = Duration::from_millis(2);
/// But no more often than this.
const NEWS_EVERY: Duration = Duration::from_millis(100);
/// How often the kernel is compared with what is wanted.
const RECONCILE_EVERY: Duration = Duration::from_secs(60);
/// One rejected line in this time is logged.
const SAMPLE_EVERY: Duration = Duration::from_secs(10);

struct Log {
    tail: Tail,
    parser: Parser,
    /// Log time of its newest record.
    newest: Timestamp,
    at_end: bool,
    /// Looks without anything new that make it quiet; 0 when it is.
    looks: u8,
    lines: LogLines,
    presence: Presence,
    presence_since: Timestamp,
}

/// Whether the watcher wakes for what is written.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Listening {
    /// A log is busy: it is looked at without that.
    No,
    /// All have become quiet: once the watcher has passed over what has happened so far.
    Soon,
    /// Yes, once.
    Yes,
}

/// Everything the hot thread owns.
pub struct Hot {
    engine: Engine,
    logs: Vec<Log>,
    health: LogWatch,
    watcher: Option<Watcher>,
    listening: Listening,
    /// To look without waiting: something may have been written before the watcher listened.
    look_again: bool,
    requests: Receiver<Request>,
    wake: SyncSender<Request>,
    outbox: Outbox,
    picture: Shared<HotStatus>,
    config: Box<Config>,
    out: Vec<Output>,
    counts: LineCounts,
    read_errors: u64,
    saves: Arc<Saves>,
}

/// What [`Hot::new`] needs beside the configuration.
pub struct Parts {
    /// The engine, with nothing in it.
    pub engine: Engine,
    /// Where each log was read to.
    pub checkpoints: Vec<Checkpoint>,
    /// Requests from people and wake-ups.
    pub requests: Receiver<Request>,
    /// The other end of `requests`, for wake-ups.
    pub wake: SyncSender<Request>,
    /// To the apply thread.
    pub work: SyncSender<Work>,
    /// Where the picture goes.
    pub picture: Shared<HotStatus>,
    /// What there is to save.
    pub saves: Arc<Saves>,
}

impl Hot {
    /// Opens the logs and the watcher.
    ///
    /// # Errors
    /// A log path that is no regular file.
    pub fn new(config: Config, parts: Parts) -> Result<Self, TailError> {
        let Parts { engine, checkpoints, requests, wake, work, picture, saves } = parts;
        let mut hot = Self {
            engine,
            logs: Vec::new(),
            health: LogWatch::default(),
            watcher: None,
            listening: Listening::Yes,
            look_again: true,
            requests,
            wake,
            outbox: Outbox::new(work),
            picture,
            config: Box::new(config),
            out: Vec::new(),
            counts: LineCounts::default(),
            read_errors: 0,
            saves,
        };
        for path in hot.config.log.paths.clone() {
            let checkpoint = checkpoints.iter().find(|c| c.path == path).cloned();
            hot.logs.push(hot.open(path, checkpoint)?);
        }
        hot.watch();
        Ok(hot)
    }

    /// Goes on with a state that was saved, whose bans are in force again from [`Request::Enforced`] on.
    ///
    /// # Errors
    /// [`BadState`] where it is that of another version: bans and offences are there all the same.
    pub fn restore(&mut self, state: State) -> Result<(), BadState> {
        self.engine.enforced_from(Timestamp::MAX);
        self.engine.restore(state)
    }

    fn open(&self, path: PathBuf, checkpoint: Option<Checkpoint>) -> Result<Log, TailError> {
        let mut parser = Parser::with_format(&self.config.log.format);
        let fresh = checkpoint.is_none();
        let back = self.config.log.backfill;
        let start = match checkpoint {
            Some(checkpoint) => Start::At(checkpoint),
            None if back.is_zero() => Start::End,
            None => Start::Beginning,
        };
        let mut tail = Tail::open(path, start)?;
        if fresh && !back.is_zero() {
            let mut time_of = |line: &[u8]| parser.parse(line).ok().map(|r| r.time);
            if let Err(error) = tail.seek_back(back, &mut time_of) {
                warn!("{error}; reading starts at the beginning of the log");
            }
        }
        let backlog = tail.backlog_bytes();
        if backlog > 0 {
            let how = if fresh { "to learn from" } else { "written since the last stop" };
            info!("{}: {:.1} MiB {how}", tail.path().display(), backlog as f64 / f64::from(1 << 20));
        }
        Ok(Log {
            tail,
            parser: Parser::with_format(&self.config.log.format),
            newest: Timestamp::MIN,
            at_end: false,
            looks: 0,
            lines: LogLines::default(),
            presence: Presence::Reading,
            presence_since: now(),
        })
    }

    fn watch(&mut self) {
        let wake = self.wake.clone();
        self.listening = Listening::Yes;
        self.look_again = true;
        // A full queue wakes as well.
        let wake = move || drop(wake.try_send(Request::LogWritten));
        self.watcher = match Watcher::new(&self.config.log.paths, wake) {
            Ok(watcher) => Some(watcher),
            Err(error) => {
                warn!("{error}; the logs are looked at every 100 ms instead");
                None
            }
        };
    }

    /// Runs until [`Request::Stop`].
    pub fn run(mut self) {
        let clock = stopwatch();
        // Or a short nap ends up to 50 us late.
        if let Err(error) = rustix::thread::set_current_timer_slack(NonZeroU64::new(1)) {
            tracing::debug!("the kernel does not let naps end on time: {error}");
        }
        // Saved at once for the first time: a crash before that would make the next start take the log for a new one, and
        // lose what was rotated away meanwhile.
        let (mut picture_at, mut save_times, mut reconcile_at) = (Duration::ZERO, Times::default(), RECONCILE_EVERY);
        let (mut sample_at, mut all_at, mut was_behind) = (Duration::ZERO, Duration::ZERO, true);
        let (mut at, mut polling, mut shown_at) = (Duration::ZERO, Polling::default(), Duration::ZERO);
        loop {
            let behind = self.logs.iter().any(|log| !log.at_end);
            let busy = self.logs.iter().any(|log| log.looks > 0);
            let again = std::mem::take(&mut self.look_again);
            let wait = if behind || again || self.outbox.is_waiting() {
                Duration::ZERO
            } else if busy || self.listening == Listening::Soon {
                polling.nap(at)
            } else {
                let tick = self.engine.next_deadline().map_or(PICTURE_EVERY, |at| at.since(now()));
                let poll = if self.watcher.is_some() { PICTURE_EVERY } else { Duration::from_millis(100) };
                tick.min(poll).min(picture_at.saturating_sub(clock())).max(Duration::from_micros(100))
            };
            let mut next = match self.requests.recv_timeout(wait) {
                Ok(request) => Some(request),
                Err(RecvTimeoutError::Timeout) => None,
                Err(RecvTimeoutError::Disconnected) => Some(Request::Stop),
            };
            while let Some(request) = next {
                if matches!(request, Request::Stop) {
                    return self.stop();
                }
                self.request(request);
                next = self.requests.try_recv().ok();
            }
            // Who is not busy was woken, or has waited long.
            at = clock();
            let all = !busy || at >= all_at;
            if all {
                all_at = at + ALL_EVERY;
            }
            self.read(all, polling.empty_looks(at));
            if self.engine.take_hurry() {
                polling.renew(at);
            }
            // Log time may only follow the wall clock when there is nothing older left to read.
            let caught_up = self.logs.iter().all(|log| log.at_end);
            self.engine.handle(now(), Input::Tick { caught_up }, &mut self.out);
            let decided = self.out.iter().any(|o| matches!(o, Output::Decision(_)));
            self.send_outputs(None);
            if decided {
                polling.came_true(at);
                // First what is enforced, then what is shown: the processor may be needed for the former.
                picture_at = picture_at.min((at + NEWS_AFTER).max(shown_at + NEWS_EVERY));
            }
            if at >= picture_at {
                (shown_at, picture_at) = (at, at + PICTURE_EVERY);
                self.refresh();
            }
            self.outbox.flush();
            if was_behind && caught_up {
                // A daemon that is killed every few seconds must not read the same backlog each time.
                was_behind = false;
                save_times.hurry(at);
            }
            if save_times.have_come(at, &self.saves) {
                let (began, bytes, done) = (clock(), self.save(), clock());
                save_times.saved(done, done - began, bytes, caught_up, self.config.engine.shortest_ban());
            }
            if at >= reconcile_at {
                reconcile_at = at + RECONCILE_EVERY;
                self.outbox.send(Work::Reconcile(self.engine.snapshot(0).bans));
            }
            if at >= sample_at
                && let Some((reject, line)) = self.counts.sample.take()
            {
                sample_at = at + SAMPLE_EVERY;
                let more = std::mem::take(&mut self.counts.unshown);
                warn!("{more} log lines gave no record; one of them ({}): {line}", reject_word(reject));
            }
        }
    }

    /// Reads each log (or each that is not quiet) a chunk further. While several are behind, the one with the oldest
    /// records goes first, so that log time advances evenly over them. After `empty_looks` without anything new a log is quiet.
    fn read(&mut self, all: bool, empty_looks: u8) {
        let behind = self.logs.iter().filter(|log| !log.at_end).count();
        let (engine, out, counts) = (&mut self.engine, &mut self.out, &mut self.counts);
        let log_requests = self.config.log.log_requests;
        // Between two times that all are looked at, what is busy is only glanced at.
        let mut look =
            |log: &mut Log, limit, glance| match read_log(log, engine, out, counts, log_requests, limit, glance) {
                Some(0) => log.looks = log.looks.saturating_sub(1),
                Some(_) => {
                    log.looks = empty_looks;
                    self.saves.ask();
                }
                None => {
                    self.read_errors += 1;
                    log.looks = 0;
                }
            };
        if behind > 1 {
            let oldest = self.logs.iter_mut().filter(|log| !log.at_end).min_by_key(|log| log.newest);
            if let Some(log) = oldest {
                look(log, CHUNK / 16, false);
            }
            return;
        }
        for log in self.logs.iter_mut().filter(|log| all || log.looks > 0 || !log.at_end) {
            look(log, CHUNK, !all);
        }
        self.listen();
    }

    /// Lets the watcher wake once all logs are quiet: in two steps, so that it does not wake for each write of the busy
    /// time that the kernel has kept.
    fn listen(&mut self) {
        let Some(watcher) = &self.watcher else { return };
        let busy = self.logs.iter().any(|log| log.looks > 0);
        self.listening = match self.listening {
            Listening::Soon if busy => {
                watcher.rest();
                Listening::No
            }
            _ if busy => Listening::No,
            Listening::Soon => {
                watcher.arm();
                self.look_again = true;
                Listening::Yes
            }
            Listening::Yes if !watcher.rests() => Listening::Yes,
            Listening::No | Listening::Yes => {
                watcher.pass_over();
                Listening::Soon
            }
        };
    }

    fn send_outputs(&mut self, reply: Option<Reply>) {
        if !self.out.is_empty() || reply.is_some() {
            // Each recalculation is an output, so that something is saved even while nothing happens.
            self.saves.ask();
            self.outbox.send(Work::Outputs { outputs: std::mem::take(&mut self.out), reply });
        }
    }

    fn request(&mut self, request: Request) {
        // What was decided before the request is not its outcome.
        self.send_outputs(None);
        match request {
            Request::LogWritten | Request::Stop => {}
            Request::Enforced(since) => self.engine.enforced_from(since),
            Request::Ban { prefix, length, reason, force, replace, reply } => {
                let command = Command::Ban { prefix, length, reason, force, replace };
                self.engine.handle(now(), Input::Command(command), &mut self.out);
                self.refresh();
                self.send_outputs(Some(Reply::Ban(reply)));
            }
            Request::Unban { prefix, reply } => {
                self.engine.handle(now(), Input::Command(Command::Unban { prefix }), &mut self.out);
                self.refresh();
                self.send_outputs(Some(Reply::Unban(reply)));
                // At once, or a crash in the next seconds would bring back what an operator has lifted.
                self.save();
            }
            Request::Explain { prefix, reply } => {
                let Snapshot { global_rate, bans, .. } = self.engine.snapshot(0);
                let client = self.engine.client(prefix.addr()).map(|c| TopRow::new(&c, global_rate));
                let allowlisted_by = covered_by(&prefix, &self.config.allowlist);
                let active = bans.iter().filter(|b| b.prefix.contains(&prefix)).cloned().collect();
                let lies_inside = |b: &&Arc<Ban>| prefix.contains(&b.prefix) && b.prefix != prefix;
                let inside = bans.iter().rev().filter(lies_inside).take(MAX_EXPLAINED).cloned().collect();
                self.outbox.send(Work::Explain { prefix, client, allowlisted_by, active, inside, reply });
            }
            Request::Configure { config, reply } => {
                let outcome = self.configure(*config);
                let _ = reply.send(outcome);
            }
        }
    }

    /// Takes a new configuration: settings, allow-list and logs; windows and bans stay.
    fn configure(&mut self, config: Config) -> Result<(), TailError> {
        let mut logs = Vec::new();
        for path in &config.log.paths {
            if !self.logs.iter().any(|log| log.tail.path() == path) {
                logs.push(self.open(path.clone(), None)?);
            }
        }
        self.logs.retain(|log| config.log.paths.iter().any(|p| p == log.tail.path()));
        self.logs.append(&mut logs);
        let paths_changed = config.log.paths != self.config.log.paths;
        if config.log.format != self.config.log.format {
            for log in &mut self.logs {
                log.parser = Parser::with_format(&config.log.format);
            }
        }
        self.engine.handle(now(), Input::Command(Command::Configure(Box::new(config.engine.clone()))), &mut self.out);
        *self.config = config;
        if paths_changed {
            self.watch();
        }
        self.send_outputs(None);
        Ok(())
    }

    /// Makes the picture of the second, and looks after the logs.
    fn refresh(&mut self) {
        let wall = now();
        if let Some(watcher) = &mut self.watcher {
            for (path, reason) in watcher.refresh() {
                tracing::debug!("{} is not watched ({reason}); it is looked at once a second", path.display());
            }
            self.look_again = true;
        }
        let snapshot = self.engine.snapshot(TOP);
        let mut totals = Counts::default();
        for log in &self.logs {
            totals.add(&log.tail.totals());
        }
        let logs: Vec<LogStatus> = (self.logs.iter())
            .map(|log| LogStatus {
                path: log.tail.path().to_path_buf(),
                presence: log.presence.clone(),
                since: log.presence_since,
                at_end: log.at_end,
                lines: log.lines.clone(),
            })
            .collect();
        let degraded = self.health.judge(wall, &snapshot, &logs);
        let mut rejected: Vec<(Reject, u64)> =
            Reject::ALL.iter().map(|r| (*r, self.counts.rejected[*r as usize])).collect();
        for (reject, count) in &mut rejected {
            if *reject == Reject::TooLong {
                *count += totals.oversized;
            }
        }
        publish(
            &self.picture,
            HotStatus {
                snapshot,
                rejected,
                totals,
                backlog_bytes: self.logs.iter().map(|log| log.tail.backlog_bytes()).sum(),
                read_errors: self.read_errors,
                lost_outputs: self.outbox.lost(),
                degraded,
                at: wall,
            },
        );
    }

    fn progress(&self) -> Progress {
        Progress {
            state: self.engine.save(),
            checkpoints: self.logs.iter().map(|log| log.tail.checkpoint()).collect(),
            at: now(),
        }
    }

    /// Says how many bytes there are to write.
    fn save(&mut self) -> u64 {
        self.saves.begin();
        let progress = self.progress();
        let bytes = progress.state.baseline.len() + progress.state.windows.len();
        self.outbox.send(Work::Save(progress));
        bytes as u64
    }

    fn stop(mut self) {
        self.send_outputs(None);
        let progress = self.progress();
        self.outbox.send(Work::Stop(Box::new(progress)));
        self.outbox.drain();
    }
}

/// Reads one log a chunk further (with `glance` only from the file that is open); how many bytes that were, `None` when
/// reading failed.
fn read_log(
    log: &mut Log,
    engine: &mut Engine,
    out: &mut Vec<Output>,
    counts: &mut LineCounts,
    log_requests: bool,
    limit: usize,
    glance: bool,
) -> Option<u64> {
    let wall = now();
    let Log { tail, parser, newest, lines: seen, .. } = log;
    let mut judge = |parsed: Parsed<'_>| match parsed {
        Parsed::Records(records) => {
            engine.look_ahead(records);
            seen.read(records.len());
            for record in records {
                *newest = record.time;
                if log_requests {
                    log_request(record);
                }
                engine.handle(wall, Input::Record(record), out);
            }
        }
        Parsed::Rejected(reject, line) => {
            counts.reject(reject, line);
            seen.reject(reject, line, wall);
        }
    };
    let mut on_lines = |lines: &[u8]| parser.parse_all(lines, &mut judge);
    let read = if glance { tail.glance(wall, limit, &mut on_lines) } else { tail.poll(wall, limit, &mut on_lines) };
    match read {
        Ok(progress) => {
            log.at_end = progress.at_end;
            // They were skipped before they could be handed over.
            (0..progress.counts.oversized).for_each(|_| log.lines.reject(Reject::TooLong, b"", wall));
            let path = tail.path().display();
            if progress.counts.rotations > 0 {
                info!("{path}: rotated; the new file is being read");
            }
            if progress.counts.truncations > 0 {
                info!("{path}: truncated; reading from its beginning");
            }
            if progress.counts.lost_files > 0 {
                error!("{path}: what was written before the last stop can no longer be found; lines may be lost");
            }
            if progress.presence != log.presence {
                match &progress.presence {
                    Presence::Reading => info!("{path}: reading"),
                    Presence::Missing => warn!("{path} does not exist; waiting for it"),
                    Presence::Unreadable(why) => error!("{path} cannot be read: {why}"),
                }
                log.presence = progress.presence;
                log.presence_since = wall;
            }
            Some(progress.counts.bytes)
        }
        Err(failure) => {
            log.at_end = true;
            error!("{failure}");
            None
        }
    }
}

fn log_request(record: &Record<'_>) {
    info!(
        "request {} {} {} {} {} {}",
        record.time,
        record.client,
        inert(record.method),
        inert(record.path),
        record.status,
        record.response_size
    );
}
