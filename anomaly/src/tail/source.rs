//! One open file and the lines in it. Knows nothing of paths and rotation.

use std::fs::File;
use std::io::{self, BufReader, IoSliceMut, Read};
use std::os::unix::fs::FileExt;

use flate2::bufread::MultiGzDecoder;

use super::checkpoint::{self, FINGERPRINT_BYTES, FileId, Position, digest, modified_ns};
use super::{Counts, MAX_LINE_BYTES};
use crate::time::Timestamp;

/// Room for reads: large enough that system calls do not count, small enough for the cache.
const READ_BYTES: usize = 256 << 10;

/// What a read found.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Step {
    /// New bytes; `more` where there may be more of them.
    Bytes { read: usize, more: bool },
    /// Nothing new.
    End,
    /// Not the bytes that were there before: the file was cut, or cut and written anew.
    Rewritten,
}

/// Why bytes are thrown away.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Skip {
    No,
    /// Until the newline of a line that is too long.
    Oversized,
    /// Until the newline of a line whose beginning was not read.
    Fragment,
    /// Until this place: the part of a compressed file that was read in an earlier life.
    To(u64),
}

#[derive(Debug)]
enum Input {
    Plain(File),
    Gzip(Box<MultiGzDecoder<BufReader<File>>>),
}

/// A file that is being read.
#[derive(Debug)]
pub(super) struct Source {
    input: Input,
    pub(super) id: FileId,
    real_path: Option<String>,
    /// Bytes before those yet to be handed over (for the fingerprint), then from `start` on the beginning of
    /// a line whose newline has not been written.
    buffer: Vec<u8>,
    start: usize,
    end: usize,
    /// Place in the file that `buffer[end]` belongs to.
    offset: u64,
    head: Vec<u8>,
    /// First bytes of a file of which less has been read yet.
    primed: Vec<u8>,
    skip: Skip,
    /// The end of what was read in an earlier life, to be checked when [`Skip::To`] gets there.
    expected_tail: Option<String>,
    /// It was empty when it was found: it may be the copy of the log that `copytruncate` is about to make.
    pub(super) perhaps_copy: bool,
    /// Since when there has been nothing new.
    pub(super) quiet_since: Option<Timestamp>,
}

impl Source {
    /// Reads a file from its beginning.
    pub(super) fn from_beginning(file: File, real_path: Option<String>) -> io::Result<Self> {
        let id = FileId::of(&file.metadata()?);
        Ok(Self {
            input: Input::Plain(file),
            id,
            real_path,
            buffer: Vec::new(),
            start: 0,
            end: 0,
            offset: 0,
            head: Vec::new(),
            primed: Vec::new(),
            skip: Skip::No,
            expected_tail: None,
            perhaps_copy: false,
            quiet_since: None,
        })
    }

    /// Goes on at a position that has been found to fit.
    pub(super) fn at(file: File, real_path: Option<String>, position: &Position) -> io::Result<Self> {
        let mut source = Self::from_beginning(file, real_path)?;
        source.move_to(position.offset)?;
        source.skip = if position.in_oversized { Skip::Oversized } else { Skip::No };
        Ok(source)
    }

    /// Reads a compressed file from a position on. That it fits is only known when
    /// reading has come there: see [`Source::step`].
    pub(super) fn gzip(file: File, real_path: Option<String>, position: &Position) -> io::Result<Self> {
        let mut source = Self::from_beginning(file.try_clone()?, real_path)?;
        source.input = Input::Gzip(Box::new(MultiGzDecoder::new(BufReader::with_capacity(64 << 10, file))));
        if position.offset > 0 {
            source.skip = Skip::To(position.offset);
            source.expected_tail = Some(position.tail.clone());
        }
        Ok(source)
    }

    /// Moves on to `offset` without reading what is before it.
    pub(super) fn move_to(&mut self, offset: u64) -> io::Result<()> {
        if let Input::Plain(file) = &self.input {
            let (head, tail) = checkpoint::ends(file, offset)?;
            self.head = head;
            self.start = tail.len();
            self.end = tail.len();
            self.buffer = tail;
            self.offset = offset;
        }
        Ok(())
    }

    /// Moves on to the end of the file, or into the line that is being written there: its rest is not handed over.
    pub(super) fn move_to_end(&mut self) -> io::Result<()> {
        let Input::Plain(file) = &self.input else { return Ok(()) };
        self.move_to(file.metadata()?.len())?;
        if self.end > 0 && self.buffer[self.end - 1] != b'\n' {
            self.skip = Skip::Fragment;
        }
        Ok(())
    }

    /// The file itself, where it is not compressed.
    pub(super) fn plain(&self) -> Option<&File> {
        match &self.input {
            Input::Plain(file) => Some(file),
            Input::Gzip(_) => None,
        }
    }

    fn file(&self) -> &File {
        match &self.input {
            Input::Plain(file) => file,
            Input::Gzip(decoder) => decoder.get_ref().get_ref(),
        }
    }

    /// Bytes that have been dealt with.
    fn done(&self) -> u64 {
        self.offset - (self.end - self.start) as u64
    }

    /// How long it is; of a compressed file that is not known.
    pub(super) fn len(&self) -> u64 {
        match &self.input {
            Input::Plain(file) => file.metadata().map_or(u64::MAX, |m| m.len()),
            Input::Gzip(_) => u64::MAX,
        }
    }

    /// Bytes yet to be read; of a compressed file those of its compressed form.
    pub(super) fn backlog_bytes(&self) -> u64 {
        let len = self.file().metadata().map_or(0, |m| m.len());
        match &self.input {
            Input::Plain(_) => len.saturating_sub(self.offset),
            Input::Gzip(decoder) => {
                let mut file = decoder.get_ref().get_ref();
                len.saturating_sub(io::Seek::stream_position(&mut file).unwrap_or(0))
            }
        }
    }

    /// How far it has been read.
    pub(super) fn position(&self) -> Position {
        let done = self.done();
        // What was looked at in advance, as long as that is more than what was read.
        let unfinished = match self.primed.get(done as usize..) {
            Some(primed) if self.offset < self.primed.len() as u64 => primed,
            _ => &self.buffer[self.start..self.end],
        };
        let mut head = self.head.clone();
        if head.len() as u64 == done {
            head.extend(unfinished.iter().take(FINGERPRINT_BYTES - head.len()));
        }
        let tail = &self.buffer[self.start - self.start.min(FINGERPRINT_BYTES)..self.start];
        Position {
            id: self.id,
            file: self.real_path.clone(),
            offset: if let Skip::To(offset) = self.skip { offset } else { done },
            in_oversized: matches!(self.skip, Skip::Oversized | Skip::Fragment),
            head_len: head.len() as u64,
            head: digest(&head),
            tail: self.expected_tail.clone().unwrap_or_else(|| digest(tail)),
            modified_ns: self.file().metadata().map_or(0, |m| modified_ns(&m)),
            finished: false,
        }
    }

    /// The position at the beginning of what the file has become.
    pub(super) fn written_anew(&self) -> Option<Position> {
        let mut source = Self::from_beginning(self.plain()?.try_clone().ok()?, self.real_path.clone()).ok()?;
        source.prime().ok()?;
        Some(source.position())
    }

    /// Looks at the first bytes of a file that has to wait for its turn: should it be cut in the
    /// meantime, that will be seen.
    pub(super) fn prime(&mut self) -> io::Result<()> {
        if self.offset == 0
            && self.primed.is_empty()
            && let Input::Plain(file) = &self.input
        {
            self.primed.resize(FINGERPRINT_BYTES, 0);
            let read = file.read_at(&mut self.primed, 0)?;
            self.primed.truncate(read);
        }
        Ok(())
    }

    /// Reads once, at most `limit` bytes, and hands over the lines that are complete now.
    pub(super) fn step<F: FnMut(&[u8])>(
        &mut self,
        limit: usize,
        counts: &mut Counts,
        on_lines: &mut F,
    ) -> io::Result<Step> {
        self.make_room();
        let before = self.end;
        let read = self.read(limit)?;
        if let Step::Bytes { read: bytes, .. } = read {
            counts.bytes += bytes as u64;
            if let Skip::To(wanted) = self.skip {
                if self.offset < wanted {
                    self.pass(self.end);
                    return Ok(read);
                }
                self.pass(self.end - (self.offset - wanted) as usize);
                self.skip = Skip::No;
                let tail = &self.buffer[self.start - self.start.min(FINGERPRINT_BYTES)..self.start];
                if self.expected_tail.take().is_some_and(|expected| digest(tail) != expected) {
                    return Err(io::Error::new(io::ErrorKind::InvalidData, "not the file that was read before"));
                }
                self.lines(self.start, counts, on_lines);
            } else {
                self.lines(before, counts, on_lines);
            }
        }
        Ok(read)
    }

    /// Hands over what is left of a line whose newline will never come.
    pub(super) fn finish<F: FnMut(&[u8])>(&mut self, counts: &mut Counts, on_lines: &mut F) {
        if self.end > self.start && self.skip == Skip::No {
            counts.unterminated += 1;
            on_lines(&self.buffer[self.start..self.end]);
        }
        self.pass(self.end);
    }

    /// Starts anew at the beginning of the same file.
    pub(super) fn rewind(&mut self) {
        self.buffer.clear();
        self.head.clear();
        self.primed.clear();
        (self.start, self.end, self.offset, self.skip) = (0, 0, 0, Skip::No);
    }

    /// Moves what is still needed to the front of the buffer, and lets it grow for a long line.
    fn make_room(&mut self) {
        let keep_from = self.start - self.start.min(FINGERPRINT_BYTES);
        self.buffer.copy_within(keep_from..self.end, 0);
        self.start -= keep_from;
        self.end -= keep_from;
        // At least half of the buffer is free: a long line makes it grow to about 2 MiB, and no further.
        let wanted = READ_BYTES.max((2 * self.end).next_power_of_two());
        if self.buffer.len() != wanted {
            self.buffer.resize(wanted, 0);
            self.buffer.shrink_to(wanted);
        }
    }

    /// Appends to the buffer. Of a plain file the bytes before are read once more by the same call
    /// and compared: that is how a file is noticed that was cut and has grown beyond
    /// the old place since.
    fn read(&mut self, limit: usize) -> io::Result<Step> {
        let room = (self.buffer.len() - self.end).min(limit.max(1));
        match &mut self.input {
            Input::Plain(file) => {
                let mut again = [0; FINGERPRINT_BYTES];
                let known = self.end.min(FINGERPRINT_BYTES);
                let (old, new) = self.buffer.split_at_mut(self.end);
                let read = rustix::io::retry_on_intr(|| {
                    rustix::io::preadv(
                        &*file,
                        &mut [IoSliceMut::new(&mut again[..known]), IoSliceMut::new(&mut new[..room])],
                        self.offset - known as u64,
                    )
                })?;
                if read < known || again[..known] != old[old.len() - known..] {
                    return Ok(Step::Rewritten);
                }
                let read = read - known;
                if let Some(primed) = self.primed.get(self.offset as usize..)
                    && !new[..read].starts_with(&primed[..primed.len().min(room)])
                {
                    return Ok(Step::Rewritten);
                }
                self.end += read;
                self.offset += read as u64;
                if self.offset >= self.primed.len() as u64 {
                    self.primed.clear();
                }
                Ok(if read == 0 { Step::End } else { Step::Bytes { read, more: read == room } })
            }
            Input::Gzip(decoder) => {
                let read = decoder.read(&mut self.buffer[self.end..self.end + room])?;
                self.end += read;
                self.offset += read as u64;
                Ok(if read == 0 { Step::End } else { Step::Bytes { read, more: true } })
            }
        }
    }

    /// Hands over the complete lines; newlines are looked for from `from` on.
    fn lines<F: FnMut(&[u8])>(&mut self, from: usize, counts: &mut Counts, on_lines: &mut F) {
        let mut begin = self.start;
        if self.skip != Skip::No {
            let Some(newline) = memchr::memchr(b'\n', &self.buffer[from..self.end]) else { return self.pass(self.end) };
            begin = from + newline + 1;
            self.skip = Skip::No;
        }
        let from = from.max(begin);
        if let Some(newline) = memchr::memrchr(b'\n', &self.buffer[from..self.end]) {
            let end = from + newline + 1;
            on_lines(&self.buffer[begin..end]);
            begin = end;
        }
        if self.end - begin > MAX_LINE_BYTES {
            counts.oversized += 1;
            self.skip = Skip::Oversized;
            begin = self.end;
        }
        self.pass(begin);
    }

    /// Everything before `to` has been dealt with.
    fn pass(&mut self, to: usize) {
        let missing = FINGERPRINT_BYTES - self.head.len();
        let passed_before = self.offset - (self.end - self.start) as u64;
        if missing > 0 && passed_before == self.head.len() as u64 {
            let more = (to - self.start).min(missing);
            self.head.extend_from_slice(&self.buffer[self.start..self.start + more]);
        }
        self.start = to;
    }
}
