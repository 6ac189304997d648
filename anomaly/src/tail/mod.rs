//! Follows a log across rotation and truncation, and yields its complete lines as bytes, each
//! exactly once.
//!
//! It knows nothing of what is in a line, starts no thread, never blocks and reads no clock: the
//! daemon polls it, when [`Watcher`] says that something was written and once a second anyway.

use std::collections::VecDeque;
use std::path::{Path, PathBuf};
use std::time::Duration;
use std::{fs, io};

use crate::time::Timestamp;

mod checkpoint;
mod resume;
mod rotated;
mod seek;
mod source;
mod watcher;

pub use checkpoint::{Checkpoint, FileId, Position};
use rotated::{Known, Rotated};
use source::{Source, Step};
pub use watcher::{WatchError, Watcher};

pub use crate::record::MAX_LINE_BYTES;

/// Where reading starts.
#[derive(Clone, Debug, Default)]
pub enum Start {
    /// Where an earlier run stopped. What was rotated away since then is found (also renamed or
    /// compressed) and read first. A checkpoint that fits no file is reported
    /// ([`Counts::lost_files`]) and reading starts at the beginning.
    At(Checkpoint),
    /// At the beginning of the present file (default); [`Tail::seek_back`] moves on from there.
    #[default]
    Beginning,
    /// At the end of the present file: only what is written from now on. A file that appears
    /// later is read from its beginning.
    End,
}

/// Whether the log can be read.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub enum Presence {
    /// It is open.
    #[default]
    Reading,
    /// There is no such file (yet, or any more). It is waited for.
    Missing,
    /// It is there and cannot be opened; in words. It is tried again at each poll.
    Unreadable(String),
}

/// What one poll did. Counts are of this poll only; [`Tail::totals`] has their sums.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Progress {
    /// What happened.
    pub counts: Counts,
    /// There is nothing more to read now. False when `limit_bytes` ended the poll: poll again at once.
    pub at_end: bool,
    /// Whether the log at its path can be read.
    pub presence: Presence,
}

/// What happened while reading.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Counts {
    /// Bytes read.
    pub bytes: u64,
    /// Lines that were longer than [`MAX_LINE_BYTES`] before their end was there: skipped, to be counted as rejected
    /// (`TooLong`).
    pub oversized: u64,
    /// Last lines of files that went away before their newline was written. They were handed to
    /// the callback as they are.
    pub unterminated: u64,
    /// Another file took the place of the one that was read.
    pub rotations: u64,
    /// The file was cut to a shorter length, or rewritten from its beginning.
    pub truncations: u64,
    /// A rotated file was found and caught up (after downtime, or the copy of `copytruncate`).
    pub caught_up: u64,
    /// A file that was to be read to its end could not be found or read any more; lines may be lost.
    pub lost_files: u64,
}

impl Counts {
    /// Adds up the counts of two polls.
    pub fn add(&mut self, other: &Self) {
        let Self { bytes, oversized, unterminated, rotations, truncations, caught_up, lost_files } = other;
        self.bytes += bytes;
        self.oversized += oversized;
        self.unterminated += unterminated;
        self.rotations += rotations;
        self.truncations += truncations;
        self.caught_up += caught_up;
        self.lost_files += lost_files;
    }
}

/// Why a log cannot be followed.
#[derive(Debug, thiserror::Error)]
pub enum TailError {
    /// The path cannot be that of a log.
    #[error("{} is not a regular file", .0.display())]
    NotAFile(PathBuf),
    /// The kernel refused to read an open file. Polling again is safe.
    #[error("{}: {source}", path.display())]
    Read {
        /// The log.
        path: PathBuf,
        /// The kernel's answer.
        source: std::io::Error,
    },
}

/// A file that was rotated away stays open until nothing has been written to it for this long: after a rename
/// Nginx goes on writing to it until its workers have reopened their logs.
const QUIET: Duration = Duration::from_secs(10);

/// No more files than this are held open for late writers.
const MAX_DRAINING: usize = 8;

/// So many finished files are remembered, in case one of them becomes the log again.
const MAX_FINISHED: usize = 16;

/// Follows one log.
#[derive(Debug)]
pub struct Tail {
    path: PathBuf,
    totals: Counts,
    presence: Presence,
    /// Finished files, oldest first.
    finished: VecDeque<Position>,
    /// Rotated files that are open, oldest first.
    draining: Vec<Source>,
    /// Rotated files yet to be read, oldest first. The log itself has to wait for them.
    waiting: VecDeque<(Rotated, Position)>,
    /// The log itself.
    current: Option<Source>,
    /// What happened outside a poll, to be reported by the next one.
    pending: Counts,
    /// The files of an earlier run, while nobody lets us see whether they are there.
    unresolved: Option<Vec<Position>>,
}

impl Tail {
    /// Starts to follow the log at `path`. A file that is missing or cannot be read is no error: it
    /// is waited for, and [`Progress::presence`] says so.
    ///
    /// # Errors
    /// [`TailError::NotAFile`] when the path is a directory, a pipe or the like.
    pub fn open(path: impl Into<PathBuf>, start: Start) -> Result<Self, TailError> {
        let path = path.into();
        if fs::metadata(&path).is_ok_and(|m| !m.is_file()) {
            return Err(TailError::NotAFile(path));
        }
        let mut tail = Self {
            path,
            totals: Counts::default(),
            presence: Presence::Missing,
            finished: VecDeque::new(),
            draining: Vec::new(),
            waiting: VecDeque::new(),
            current: None,
            pending: Counts::default(),
            unresolved: None,
        };
        match start {
            Start::Beginning => tail.open_current(),
            Start::End => {
                tail.open_current();
                if let Some(current) = &mut tail.current {
                    current.move_to_end().map_err(|source| TailError::Read { path: tail.path.clone(), source })?;
                }
            }
            Start::At(checkpoint) => {
                tail.unresolved = Some(checkpoint.files);
                tail.resume();
            }
        }
        Ok(tail)
    }

    /// The log's path.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Moves the start of a log without a checkpoint: to the first line that is at most `back` older than
    /// the newest lines of the file, found by binary search. Call it once, before the first
    /// poll after [`Start::Beginning`]. `time_of` reads the stamp of a line.
    ///
    /// # Errors
    /// [`TailError::Read`]; reading then still starts at the beginning.
    pub fn seek_back(
        &mut self,
        back: Duration,
        time_of: &mut dyn FnMut(&[u8]) -> Option<Timestamp>,
    ) -> Result<(), TailError> {
        let Some(current) = &mut self.current else { return Ok(()) };
        let Some(file) = current.plain() else { return Ok(()) };
        seek::first_line_within(file, back, time_of)
            .and_then(|offset| current.move_to(offset))
            .map_err(|source| TailError::Read { path: self.path.clone(), source })
    }

    /// Reads what is there, at most about `limit_bytes`, and calls `on_lines` with complete lines and their newlines, as many as
    /// have been read at once; only the last line of a file that went away may lack its. Never blocks. `now` is the wall clock:
    /// it only decides when a file that was rotated away has been quiet for so long that nobody writes to it any more.
    ///
    /// # Errors
    /// [`TailError::Read`]; the lines handed over before are in the checkpoint.
    pub fn poll<F: FnMut(&[u8])>(
        &mut self,
        now: Timestamp,
        limit_bytes: usize,
        on_lines: &mut F,
    ) -> Result<Progress, TailError> {
        self.resume();
        let mut counts = std::mem::take(&mut self.pending);
        if self.unresolved.is_some() {
            return Ok(Progress { counts, at_end: true, presence: self.presence.clone() });
        }
        let result = self.read(now, limit_bytes, &mut counts, on_lines);
        self.totals.add(&counts);
        match result {
            Ok(at_end) => Ok(Progress { counts, at_end, presence: self.presence.clone() }),
            Err(source) => Err(TailError::Read { path: self.path.clone(), source }),
        }
    }

    /// Reads on in the log that is open, with one system call where nothing else is open. Does all that [`Tail::poll`] does
    /// but for finding out what was written since then, and whether the path names another file by now: for who
    /// comes back within milliseconds, because lines keep coming, and polls every few times.
    ///
    /// # Errors
    /// As [`Tail::poll`].
    pub fn glance<F: FnMut(&[u8])>(
        &mut self,
        now: Timestamp,
        limit_bytes: usize,
        on_lines: &mut F,
    ) -> Result<Progress, TailError> {
        let alone = self.unresolved.is_none() && self.draining.is_empty() && self.waiting.is_empty();
        if let Some(current) = self.current.as_mut().filter(|_| alone) {
            let mut counts = std::mem::take(&mut self.pending);
            match current.step(limit_bytes, &mut counts, on_lines) {
                Ok(Step::Rewritten) => self.pending = counts,
                step => {
                    self.totals.add(&counts);
                    let step = step.map_err(|source| TailError::Read { path: self.path.clone(), source })?;
                    let at_end = !matches!(step, Step::Bytes { more: true, .. });
                    return Ok(Progress { counts, at_end, presence: self.presence.clone() });
                }
            }
        }
        self.poll(now, limit_bytes, on_lines)
    }

    /// Reads the oldest file first; true when all have been read to their ends.
    fn read<F: FnMut(&[u8])>(
        &mut self,
        now: Timestamp,
        limit_bytes: usize,
        counts: &mut Counts,
        on_lines: &mut F,
    ) -> io::Result<bool> {
        let limit = counts.bytes.saturating_add(limit_bytes as u64);
        loop {
            if !self.drain(now, limit, counts, on_lines) {
                // It may take long until the log's turn comes.
                return self.current.as_mut().map_or(Ok(()), Source::prime).map(|()| false);
            }
            if let Some(current) = &mut self.current {
                let mut rewritten = false;
                loop {
                    if counts.bytes >= limit {
                        return Ok(false);
                    }
                    match current.step((limit - counts.bytes) as usize, counts, on_lines)? {
                        Step::Bytes { .. } => {}
                        Step::End => break,
                        Step::Rewritten => {
                            if let Err(error) = resume::can_be_seen(&self.path) {
                                // The copy cannot be looked for now: later, then.
                                self.presence = absence(&error);
                                return Ok(true);
                            }
                            rewritten = true;
                            counts.truncations += 1;
                            let mut known = known(&self.finished, &self.draining, &self.waiting);
                            known.open.push(current.id);
                            known.begun.extend(current.written_anew().map(|anew| (anew, current.len())));
                            let copies = resume::copy_of(&self.path, current, &known);
                            // An unfinished line goes on in the copy, where that goes so far.
                            let done = current.position().offset;
                            if copies.first().is_none_or(|(_, copy)| copy.offset != done) {
                                current.finish(counts, on_lines);
                            }
                            current.rewind();
                            self.waiting.extend(copies);
                            break;
                        }
                    }
                }
                if rewritten {
                    continue;
                }
            }
            if !self.look_at_path(counts) {
                return Ok(true);
            }
        }
    }

    /// Reads the rotated files, opening those that wait; false when the limit was reached before.
    fn drain<F: FnMut(&[u8])>(&mut self, now: Timestamp, limit: u64, counts: &mut Counts, on_lines: &mut F) -> bool {
        let mut nth = 0;
        loop {
            if nth == self.draining.len() {
                let Some((rotated, position)) = self.waiting.pop_front() else { break };
                match open_rotated(rotated, &position) {
                    Ok(mut source) => {
                        source.perhaps_copy = source.backlog_bytes() == 0 && position.offset == 0;
                        counts.caught_up += 1;
                        self.draining.push(source);
                    }
                    Err(_) => counts.lost_files += 1,
                }
                continue;
            }
            if counts.bytes >= limit {
                return false;
            }
            let source = &mut self.draining[nth];
            if source.perhaps_copy
                && let (Some(copy), Some(log)) = (source.plain(), self.current.as_ref().and_then(Source::plain))
                && resume::is_copy_of(copy, log).unwrap_or(false)
            {
                // It will be found once the log is cut, with the place to which it has been read.
                self.draining.remove(nth);
                continue;
            }
            let done = match source.step((limit - counts.bytes) as usize, counts, on_lines) {
                Ok(Step::Bytes { .. }) => {
                    source.quiet_since = None;
                    source.perhaps_copy = false;
                    continue;
                }
                Ok(Step::End) => {
                    let since = *source.quiet_since.get_or_insert(now);
                    // A clock that was set back starts the wait anew.
                    source.quiet_since = Some(since.min(now));
                    source.plain().is_none() || (now.since(since) >= QUIET && self.current.is_some())
                }
                Ok(Step::Rewritten) => true,
                Err(_) => {
                    counts.lost_files += 1;
                    true
                }
            };
            if done {
                self.retire(nth, counts, on_lines);
            } else {
                nth += 1;
            }
        }
        while self.draining.len() > MAX_DRAINING {
            self.retire(0, counts, on_lines);
        }
        true
    }

    /// Closes a rotated file that has been read to its end.
    fn retire<F: FnMut(&[u8])>(&mut self, nth: usize, counts: &mut Counts, on_lines: &mut F) {
        let mut source = self.draining.remove(nth);
        source.finish(counts, on_lines);
        remember(&mut self.finished, source.position());
    }

    /// Looks which file the path names now; true when that changed what is to be read.
    fn look_at_path(&mut self, counts: &mut Counts) -> bool {
        match fs::metadata(&self.path) {
            Ok(metadata) => {
                if self.current.as_ref().is_some_and(|c| c.id == FileId::of(&metadata)) {
                    self.presence = Presence::Reading;
                    return false;
                }
                let old = self.current.take();
                self.open_current();
                match (old, &self.current) {
                    (old, None) => {
                        self.current = old;
                        false
                    }
                    (None, Some(_)) => true,
                    (Some(old), Some(new)) if old.id == new.id => {
                        self.current = Some(old);
                        false
                    }
                    (Some(old), Some(new)) => {
                        counts.rotations += 1;
                        let mut known = known(&self.finished, &self.draining, &self.waiting);
                        known.open.extend([old.id, new.id]);
                        known.begun.push((old.position(), old.len()));
                        self.waiting.extend(resume::newer_than(&self.path, &old.position(), &known));
                        self.draining.push(old);
                        true
                    }
                }
            }
            Err(error) => {
                self.presence = absence(&error);
                false
            }
        }
    }

    /// Opens the log at its path, where that can be done: at the place where it was left, if it is a file that
    /// was read before, else at its beginning.
    fn open_current(&mut self) {
        let opened = rotated::open(&self.path).and_then(|file| {
            let real_path = fs::canonicalize(&self.path).ok().and_then(|p| p.into_os_string().into_string().ok());
            let id = FileId::of(&file.metadata()?);
            // A file may come back while it is still being drained: its reader goes on with it.
            if let Some(nth) = self.draining.iter().position(|s| s.id == id && s.plain().is_some()) {
                return Ok(self.draining.remove(nth));
            }
            if let Some(nth) = self.finished.iter().rposition(|p| p.id == id && p.fits(&file).unwrap_or(false)) {
                let position = self.finished.remove(nth);
                if let Some(position) = position {
                    return Source::at(file, real_path, &position);
                }
            }
            let mut source = Source::from_beginning(file, real_path)?;
            // Should it go away before it is read, it is known by its first bytes.
            source.prime()?;
            Ok(source)
        });
        match opened {
            Ok(source) => {
                self.current = Some(source);
                self.presence = Presence::Reading;
            }
            Err(error) => self.presence = absence(&error),
        }
    }

    /// Goes on where an earlier run stopped, as soon as it can be seen what has become of its files.
    fn resume(&mut self) {
        let Some(files) = self.unresolved.take() else { return };
        if let Err(error) = resume::can_be_seen(&self.path) {
            self.presence = absence(&error);
            self.unresolved = Some(files);
            return;
        }
        let plan = resume::plan(&self.path, files);
        self.finished = plan.finished.into();
        self.waiting = plan.waiting.into();
        self.pending.lost_files = plan.lost;
        // As one of those that were read before, from where the log goes on when it is opened.
        self.finished.extend(plan.current.map(|p| Position { finished: true, ..p }));
        self.open_current();
        while self.finished.len() > MAX_FINISHED {
            self.finished.pop_front();
        }
    }

    /// Where reading would go on after a restart: behind the last line that was handed over. Costs a
    /// hash of about 1 KiB.
    pub fn checkpoint(&self) -> Checkpoint {
        if let Some(files) = &self.unresolved {
            return Checkpoint { path: self.path.clone(), files: files.clone() };
        }
        let files = self
            .finished
            .iter()
            .cloned()
            .chain(self.draining.iter().map(Source::position))
            .chain(self.waiting.iter().map(|(_, position)| position.clone()))
            .chain(self.current.iter().map(Source::position))
            .collect();
        Checkpoint { path: self.path.clone(), files }
    }

    /// Bytes that are there and not yet read (of compressed files: their compressed size).
    pub fn backlog_bytes(&self) -> u64 {
        let open: u64 = self.draining.iter().chain(&self.current).map(Source::backlog_bytes).sum();
        let waiting: u64 = self
            .waiting
            .iter()
            .map(|(rotated, position)| {
                let len = rotated.file.metadata().map_or(0, |m| m.len());
                if rotated.gzip { len } else { len.saturating_sub(position.offset) }
            })
            .sum();
        open + waiting
    }

    /// What happened since [`Tail::open`]; the daemon notices silence by it.
    pub fn totals(&self) -> Counts {
        self.totals
    }
}

fn open_rotated(rotated: Rotated, position: &Position) -> io::Result<Source> {
    let Rotated { file, path, gzip, .. } = rotated;
    let real_path = path.to_str().map(Into::into);
    if gzip {
        Source::gzip(file, real_path, position)
    } else if position.fits(&file)? {
        Source::at(file, real_path, position)
    } else {
        Err(io::ErrorKind::NotFound.into())
    }
}

fn known(finished: &VecDeque<Position>, draining: &[Source], waiting: &VecDeque<(Rotated, Position)>) -> Known {
    let waiting = waiting.iter().map(|(rotated, _)| rotated.id);
    Known {
        open: draining.iter().map(|s| s.id).chain(waiting).collect(),
        begun: (finished.iter().map(|p| (p.clone(), p.offset.max(p.head_len))))
            .chain(draining.iter().map(|s| (s.position(), s.len())))
            .collect(),
    }
}

fn remember(finished: &mut VecDeque<Position>, position: Position) {
    finished.retain(|p| p.id != position.id);
    // Of an empty file there is only the number, which another may get.
    if position.head_len == 0 {
        return;
    }
    finished.push_back(Position { finished: true, ..position });
    if finished.len() > MAX_FINISHED {
        finished.pop_front();
    }
}

fn absence(error: &io::Error) -> Presence {
    match error.kind() {
        io::ErrorKind::NotFound | io::ErrorKind::NotADirectory => Presence::Missing,
        _ => Presence::Unreadable(error.to_string()),
    }
}
