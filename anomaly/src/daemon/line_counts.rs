//! Counts log lines that gave no record, and keeps one of them to show.

use crate::record::Reject;
use crate::report::inert;

/// Bytes of a line that are shown.
const SHOWN_BYTES: usize = 200;

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

    /// All but the empty ones.
    pub fn total_rejected(&self) -> u64 {
        Reject::ALL.iter().filter(|r| **r != Reject::Empty).map(|r| self.rejected[*r as usize]).sum()
    }
}
