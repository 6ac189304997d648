//! Where the clients of the next records are, found for all of them before the first is handled.
//!
//! With many clients, each record meets memory that no cache of the processor holds: a bucket of the table, the client,
//! and its events where they are elsewhere. One after the other that is most of a record's time. Loads that do not depend on
//! each other overlap, so the records of a batch are looked up in one short loop, and their clients' memory is read in another.

use super::key::Key;
use super::table::{Client, Hint, Table};
use crate::record::LINES_AT_ONCE;

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
        // just read would wait for it each time; and how many of its rounds the processor has under way at once depends on how
        // little they do beside. So each loop does one thing.
        for (slot, key) in self.hints.iter_mut().zip(keys) {
            *slot = (key, table.hint(&key));
            self.len += 1;
        }
        let hints = &mut self.hints[..self.len];
        let read = hints.iter().fold(0, |read, (_, hint)| read ^ table.touch(*hint));
        for (_, hint) in hints.iter_mut() {
            *hint = table.locate(*hint);
        }
        let mut clients = [const { None }; LINES_AT_ONCE];
        for (client, (_, hint)) in clients.iter_mut().zip(hints) {
            *client = table.at(*hint);
        }
        let clients = || clients.iter().flatten();
        let read = clients().fold(read, |read, client: &&Client| read ^ client.touch());
        // Hardly any has a list of its own. They are moved to the front, for which no branch is needed either.
        let (mut busy, mut len) = ([None; LINES_AT_ONCE], 0);
        for client in clients() {
            busy[len] = Some(client);
            len += usize::from(client.window.has_list());
        }
        let lists = busy[..len].iter().flatten().map(|client| client.window.list());
        let ends = |list: &[u16]| if let [first, .., last] = list { first ^ last } else { 0 };
        let read = lists.fold(read, |read, list| read ^ u64::from(ends(list)));
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
