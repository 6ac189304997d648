//! Counts log lines that gave no record, and keeps one of them to show.

use crate::record::Reject;
use crate::report::inert;
use crate::time::Timestamp;

/// Bytes of a line that are shown.
const SHOWN_BYTES: usize = 200;

/// Bytes of a line that are kept to guess its format from: few lines are longer, and a cut one may not be guessed.
const GUESSED_BYTES: usize = 16 << 10;

/// What the lines of one log have given since the start, blank ones not counted.
#[derive(Clone, Debug, Default)]
pub struct LogLines {
    /// Lines that gave a record.
    pub records: u64,
    /// Lines that gave none.
    pub rejected: u64,
    /// Those behind the newest record.
    pub unread: Unread,
}

/// Lines in a row of which none has given a record.
#[derive(Clone, Debug, Default)]
pub struct Unread {
    /// How many.
    pub lines: u64,
    /// When the first of them was read (wall clock).
    pub since: Option<Timestamp>,
    /// What is wrong with the newest.
    pub why: Option<Reject>,
    /// The newest: the first may be one that was cut in two.
    pub line: Vec<u8>,
}

impl LogLines {
    /// Counts records of neighbouring lines.
    pub fn read(&mut self, records: usize) {
        self.records += records as u64;
        self.unread.lines = 0;
    }

    /// Counts a line that gave no record.
    pub fn reject(&mut self, reject: Reject, line: &[u8], wall: Timestamp) {
        if reject == Reject::Empty {
            return;
        }
        self.rejected += 1;
        let unread = &mut self.unread;
        if unread.lines == 0 {
            unread.since = Some(wall);
        }
        unread.lines += 1;
        unread.why = Some(reject);
        unread.line.clear();
        unread.line.extend_from_slice(&line[..line.len().min(GUESSED_BYTES)]);
    }
}

/// Lines by what became of them.
#[derive(Debug, Default)]
pub struct LineCounts {
    /// By reason.
    pub rejected: [u64; Reject::ALL.len()],
    /// A line to show, with nothing in it that could move a cursor.
    pub sample: Option<(Reject, String)>,
    /// How many there were since a line was shown last, the sample among them.
    pub unshown: u64,
}

impl LineCounts {
    /// Counts a line. Empty ones are nothing to show.
    pub fn reject(&mut self, reject: Reject, line: &[u8]) {
        self.rejected[reject as usize] += 1;
        if reject != Reject::Empty {
            self.unshown += 1;
            self.sample.get_or_insert_with(|| (reject, inert(&line[..line.len().min(SHOWN_BYTES)])));
        }
    }
}
