//! Where the clients of the next records are, found for all of them before the first is handled.
//!
//! With many clients, each record meets memory that no cache of the processor holds: a bucket of the table, the client,
//! its events. One after the other that is most of a record's time. Loads that do not depend on each other overlap, so
//! the records of a batch are looked up in one short loop, and their clients' memory is read in another.

use super::key::Key;
use super::table::Table;
use crate::record::LINES_AT_ONCE;

/// Where a client probably is: only speed depends on the place being right. The hash must be the table's.
#[derive(Clone, Copy, Debug)]
pub struct Hint {
    /// The hash of the key that was looked up.
    pub hash: u32,
    /// Its place then; [`Hint::NOWHERE`] where it was not followed.
    pub index: u32,
}

impl Hint {
    /// No place.
    pub const NOWHERE: u32 = u32::MAX;
}

/// The hints of the records to come, in their order.
#[derive(Clone, Debug)]
pub struct Ahead {
    hints: [(Key, Hint); LINES_AT_ONCE],
    len: usize,
    next: usize,
}

impl Default for Ahead {
    fn default() -> Self {
        let nothing = (Key::UNSPECIFIED, Hint { hash: 0, index: Hint::NOWHERE });
        Self { hints: [nothing; LINES_AT_ONCE], len: 0, next: 0 }
    }
}

impl Ahead {
    /// Finds the clients of `keys` (as many as there is room for) and reads what will be needed of them.
    pub fn look(&mut self, keys: impl Iterator<Item = Key>, table: &Table) {
        (self.len, self.next) = (0, 0);
        // First the buckets, then both ends of each client, then of each list of events. A loop that branched on what it has
        // just read would wait for it each time.
        let mut read = 0;
        for (slot, key) in self.hints.iter_mut().zip(keys) {
            let (hint, bucket) = table.touch(&key);
            read ^= bucket;
            *slot = (key, hint);
            self.len += 1;
        }
        for (_, hint) in &mut self.hints[..self.len] {
            *hint = table.locate(*hint);
        }
        let clients = || self.hints[..self.len].iter().filter(|(_, hint)| hint.index != Hint::NOWHERE);
        let clients = || clients().map(|(_, hint)| table.get(hint.index));
        let read = clients().fold(read, |read, client| read ^ client.touch());
        let read = clients().fold(read, |read, client| read ^ u64::from(client.window.touch()));
        // Or the compiler would see that nobody wants what was read.
        std::hint::black_box(read);
    }

    /// Goes on to the next record.
    pub fn step(&mut self) {
        self.next += 1;
    }

    /// The hint of the record that was stepped to, where it is one of `key`.
    pub fn hint(&self, key: &Key) -> Option<Hint> {
        let (of, hint) = self.hints[..self.len].get(self.next.wrapping_sub(1))?;
        (of == key).then_some(*hint)
    }
}
