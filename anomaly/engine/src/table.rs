//! All clients that are followed: found by a hash, kept in slabs, thrown out when their window is empty.
//!
//! When the table is full, a new client takes the place of the least active of [`SAMPLE`] that a hand
//! passes. A client that keeps sending is never the least active of eight for long, so an attacker that fills the table with
//! addresses seen once cannot push out a flooding client; and each step costs the same, however large the table is.
//! The order of the hash never shows: everything else goes by the index in the slab.

use std::hash::BuildHasher;
use std::mem::offset_of;

use foldhash::fast::FixedState;

use super::evidence::Evidence;
use super::index::Index;
use super::key::Key;
use super::population::Seen;
use super::window::Window;

/// Clients the hand looks at when it must make room.
const SAMPLE: usize = 8;
/// Clients that are chosen at once to make room.
const VICTIMS: usize = 32;
/// After so many free places no more are chosen at once.
const MAX_FREE: usize = 256;
/// Clients the hand looks at when a new one comes and there is room, to throw out those that are idle.
const SWEEP: usize = 4;
/// Who has done more than a visitor is remembered this many seconds longer.
const EVIDENCE_SECS: i32 = 7200;
/// Nobody is remembered for longer than the window where more than one in so many places of the table is taken.
const CROWDED: usize = 4;
const SLAB: usize = 1024;

/// What is known of one client: two cache lines.
#[derive(Clone, Debug)]
#[repr(align(64))]
pub struct Client {
    /// Its prefix, in parts, so that they need no padding.
    key: (u64, u64),
    key_len: u8,
    /// Flags of this client.
    pub flags: u8,
    /// Its part in what is being learned.
    pub seen: Seen,
    /// The newest second it was seen in, wrapped.
    pub last: u32,
    /// What it has shown: nothing while it has done next to nothing.
    pub evidence: Option<Box<Evidence>>,
    /// Its requests.
    pub window: Window,
}

const _: () = assert!(size_of::<Client>() == 128);
// See `touch`: of the first line and of the second.
const _: () = assert!(offset_of!(Client, window) == 0 && offset_of!(Client, last) >= 64);

impl Client {
    /// Never judged: allow-listed.
    pub const EXEMPT: u8 = 1;
    /// Among the busiest, see `top`.
    pub const TOP: u8 = 1 << 1;
    /// Its newest requests are kept, see `top::Suspects`.
    pub const WATCHED: u8 = 1 << 2;
    /// It is only remembered: its window was empty when the hand passed. (A history of its own in older states.)
    const IDLE: u8 = 1 << 3;
    /// The brake has held back its ban, and said so.
    pub const BRAKED: u8 = 1 << 4;
    /// It has been banned before: nothing is learned from it.
    pub const OFFENDER: u8 = 1 << 5;
    /// The place in the slab is free.
    const FREE: u8 = 1 << 7;

    /// One that has done nothing.
    pub fn new(key: &Key, last: u32) -> Self {
        let (high, low, key_len) = key.hashed();
        Self {
            key: (high, low),
            key_len,
            flags: 0,
            seen: Seen::default(),
            last,
            evidence: None,
            window: Window::default(),
        }
    }

    /// Its prefix.
    #[inline]
    pub const fn key(&self) -> Key {
        Key::from_hashed((self.key.0, self.key.1, self.key_len))
    }

    /// Reads both cache lines of it; the answer means nothing.
    #[inline]
    pub const fn touch(&self) -> u64 {
        (self.last ^ self.window.has_list() as u32) as u64
    }

    /// Whether a flag is set.
    pub const fn is(&self, flag: u8) -> bool {
        self.flags & flag != 0
    }
}

/// The client that makes room next, and how active it was when it was chosen.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Victim {
    index: u32,
    requests: u32,
    newest: u32,
}

impl Victim {
    fn new(index: u32, client: &Client) -> Self {
        let requests = client.window.pages_tenths().max(client.window.errors() * 10);
        Self { index, requests, newest: client.window.newest() }
    }

    fn is_less_active(&self, other: &Self) -> bool {
        let longer_ago = (self.newest.wrapping_sub(other.newest) as i32) < 0;
        self.requests < other.requests || (self.requests == other.requests && longer_ago)
    }
}

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

/// The table.
#[derive(Clone, Debug)]
pub struct Table {
    /// Where each client is, with half of its hash: finding and growing need not look at the clients.
    index: Index,
    slabs: Vec<Vec<Client>>,
    free: Vec<u32>,
    /// Clients that are only remembered.
    idle: usize,
    hand: usize,
    /// Go next, unless they have done something since.
    victims: Vec<Victim>,
    capacity: usize,
    peak: usize,
    evicted: u64,
    hasher: FixedState,
}

impl Table {
    /// An empty table for at most `capacity` clients. Its hashes are seeded by `seed`, which an attacker must not know.
    pub fn new(capacity: usize, seed: u64) -> Self {
        Self {
            index: Index::default(),
            slabs: Vec::new(),
            free: Vec::new(),
            idle: 0,
            hand: 0,
            victims: Vec::new(),
            capacity: capacity.max(1),
            peak: 0,
            evicted: 0,
            hasher: FixedState::with_seed(seed),
        }
    }

    /// Clients followed now.
    pub fn len(&self) -> usize {
        self.index.len()
    }

    /// Clients that have done something lately.
    pub fn active(&self) -> usize {
        self.len().saturating_sub(self.idle)
    }

    /// A client has done something again.
    pub fn wake(&mut self, index: u32) {
        let client = self.get_mut(index);
        if client.is(Client::IDLE) {
            client.flags &= !Client::IDLE;
            self.idle = self.idle.saturating_sub(1);
        }
    }

    /// Most ever.
    pub const fn peak(&self) -> usize {
        self.peak
    }

    /// Clients that had to make room.
    pub const fn evicted(&self) -> u64 {
        self.evicted
    }

    /// Takes over the counters of a table that is given up, and its hash: a [`Hint`] of the records to come has been made
    /// with it. Only for a table that holds nobody yet.
    pub fn inherit(&mut self, other: &Self) {
        (self.peak, self.evicted) = (other.peak, other.evicted);
        self.hasher = other.hasher.clone();
    }

    /// The places of all clients.
    pub fn places_in_use(&self) -> Vec<u32> {
        self.iter().map(|(index, _)| index).collect()
    }

    /// Takes another capacity; a smaller one is reached as new clients come.
    pub fn set_capacity(&mut self, capacity: usize) {
        self.capacity = capacity.max(1);
    }

    fn hash(&self, key: &Key) -> u32 {
        self.hasher.hash_one(key.hashed()) as u32
    }

    /// Where a client is.
    pub fn find(&self, key: &Key) -> Option<u32> {
        self.find_hashed(key, self.hash(key))
    }

    /// A hint that only knows the hash of a client.
    pub fn hint(&self, key: &Key) -> Hint {
        Hint { hash: self.hash(key), index: Hint::NOWHERE }
    }

    /// Reads the bucket of a client, so that it is in the processor's cache; the answer means nothing.
    #[inline]
    pub fn touch(&self, hint: Hint) -> u64 {
        self.index.touch(hint.hash)
    }

    /// The client at a place that was found a moment ago.
    #[inline]
    pub fn at(&self, hint: Hint) -> Option<&Client> {
        (hint.index != Hint::NOWHERE).then(|| self.get(hint.index))
    }

    /// Where a client with this hash is now, for [`Table::entry`] a few records later: probably the right one.
    pub fn locate(&self, hint: Hint) -> Hint {
        Hint { index: self.index.find_any(hint.hash).unwrap_or(Hint::NOWHERE), ..hint }
    }

    fn find_hashed(&self, key: &Key, hash: u32) -> Option<u32> {
        self.index.find(hash, |index| get(&self.slabs, index).key() == *key)
    }

    /// A client by its place.
    pub fn get(&self, index: u32) -> &Client {
        get(&self.slabs, index)
    }

    /// A client by its place.
    pub fn get_mut(&mut self, index: u32) -> &mut Client {
        &mut self.slabs[index as usize / SLAB][index as usize % SLAB]
    }

    /// The client's place, a new one where it was not followed. `hint` says where it was a few records ago, `oldest` is
    /// the oldest second of the window; `dropped` is told of each client that goes.
    pub fn entry(
        &mut self,
        key: Key,
        hint: Option<Hint>,
        oldest: u32,
        mut dropped: impl FnMut(u32, &Client),
    ) -> (u32, bool) {
        let hash = match hint {
            Some(Hint { index, .. }) if self.is_at(&key, index) => return (index, false),
            Some(Hint { hash, .. }) => hash,
            None => self.hash(&key),
        };
        if let Some(index) = self.find_hashed(&key, hash) {
            return (index, false);
        }
        if self.len() < self.capacity {
            self.sweep(SWEEP, oldest, &mut dropped);
        }
        while self.len() >= self.capacity {
            self.evict(oldest, &mut dropped);
        }
        let client = Client::new(&key, oldest);
        let index = match self.free.pop() {
            Some(index) => {
                *self.get_mut(index) = client;
                index
            }
            None => {
                if self.slabs.last().is_none_or(|s| s.len() == SLAB) {
                    // The first slab grows, so that a small site stays small.
                    let first = if self.slabs.is_empty() { 16 } else { SLAB };
                    self.slabs.push(Vec::with_capacity(first));
                }
                let slab = self.slabs.len() - 1;
                self.slabs[slab].push(client);
                (slab * SLAB + self.slabs[slab].len() - 1) as u32
            }
        };
        self.index.insert(hash, index);
        self.peak = self.peak.max(self.index.len());
        (index, true)
    }

    /// Whether a place is that of `key`.
    fn is_at(&self, key: &Key, index: u32) -> bool {
        let client = self.slabs.get(index as usize / SLAB).and_then(|slab| slab.get(index as usize % SLAB));
        client.is_some_and(|client| client.key() == *key && !client.is(Client::FREE))
    }

    fn places(&self) -> usize {
        self.slabs.last().map_or(0, |last| (self.slabs.len() - 1) * SLAB + last.len())
    }

    fn step(&mut self) -> u32 {
        let index = self.hand;
        self.hand += 1;
        if self.hand >= self.places() {
            self.hand = 0;
        }
        index as u32
    }

    /// Moves the hand past `n` places and throws out clients that were not seen since `oldest`, or what they did where they
    /// are remembered for longer.
    pub fn sweep(&mut self, n: usize, oldest: u32, dropped: &mut impl FnMut(u32, &Client)) {
        for _ in 0..n.min(self.places()) {
            let index = self.step();
            let client = self.get(index);
            let is_kept = client.evidence.is_some() && self.len() <= self.capacity / CROWDED;
            let kept = if is_kept { EVIDENCE_SECS } else { 0 };
            let ahead = client.last.wrapping_sub(oldest) as i32;
            if client.is(Client::FREE) || ahead >= 0 {
                continue;
            }
            if ahead < -kept {
                dropped(index, client);
                self.remove(index);
            } else {
                // It is only remembered: what it did is over, and need neither be kept nor saved.
                let client = self.get_mut(index);
                client.window.expire(oldest);
                let falls_idle = !client.is(Client::IDLE);
                client.flags |= Client::IDLE;
                self.idle += usize::from(falls_idle);
            }
        }
    }

    /// Takes out the next of those that are to make room, where it has done nothing since it was chosen.
    fn evict(&mut self, oldest: u32, dropped: &mut impl FnMut(u32, &Client)) {
        if self.victims.is_empty() {
            self.choose_victims(oldest);
        }
        let Some(victim) = self.victims.pop() else { return };
        let client = self.get(victim.index);
        if !client.is(Client::FREE) && Victim::new(victim.index, client) == victim {
            dropped(victim.index, client);
            self.remove(victim.index);
            self.evicted += 1;
        }
    }

    /// Chooses the clients that make room for the next ones, at most [`VICTIMS`]: each is the least active of those the hand passes. Their
    /// buckets are in no cache, and are read all at once here, rather than one by one as they go.
    fn choose_victims(&mut self, oldest: u32) {
        // Free places do not count. There are hardly any, but where the capacity was made smaller.
        let mut free = 0;
        while self.victims.len() < VICTIMS && (self.victims.is_empty() || free < MAX_FREE) {
            let mut victim: Option<Victim> = None;
            let mut left = SAMPLE;
            for _ in 0..self.places() {
                let index = self.step();
                let client = self.get_mut(index);
                // A client without requests is rare here, and only its second cache line tells it from a free place.
                client.window.expire(oldest);
                if client.window.is_empty() && client.is(Client::FREE) {
                    free += 1;
                    continue;
                }
                let candidate = Victim::new(index, client);
                if victim.is_none_or(|victim| candidate.is_less_active(&victim)) {
                    victim = Some(candidate);
                }
                left -= 1;
                if left == 0 {
                    break;
                }
            }
            let Some(victim) = victim else { break };
            self.victims.push(victim);
        }
        let buckets = self.victims.iter().map(|victim| self.touch(self.hint(&self.get(victim.index).key())));
        std::hint::black_box(buckets.fold(0, |all, bucket| all ^ bucket));
    }

    /// Forgets a client.
    pub fn remove(&mut self, index: u32) {
        let hash = self.hash(&self.get(index).key());
        if self.index.remove(hash, index) {
            self.wake(index);
            let client = self.get_mut(index);
            client.flags = Client::FREE;
            client.evidence = None;
            client.window = Window::default();
            self.free.push(index);
        }
    }

    /// All clients, in the order of their places.
    pub fn iter(&self) -> impl Iterator<Item = (u32, &Client)> {
        let clients = self.slabs.iter().flatten().enumerate();
        clients.filter(|(_, c)| !c.is(Client::FREE)).map(|(i, c)| (i as u32, c))
    }

    /// Heap bytes, as an upper bound: what is allocated, whether used or not.
    pub fn heap_bytes(&self) -> usize {
        let places: usize = self.slabs.iter().map(|s| s.capacity() * size_of::<Client>()).sum();
        let windows: usize = self.slabs.iter().flatten().map(|c| c.window.heap_bytes()).sum();
        let evidence = self.slabs.iter().flatten().filter(|c| c.evidence.is_some()).count() * size_of::<Evidence>();
        places + windows + evidence + self.index.heap_bytes() + self.free.capacity() * 4
    }
}

fn get(slabs: &[Vec<Client>], index: u32) -> &Client {
    &slabs[index as usize / SLAB][index as usize % SLAB]
}

#[cfg(test)]
mod tests {
    use super::super::kind::Kind;
    use super::*;
    use crate::record::Extension;
    use std::net::{IpAddr, Ipv4Addr};

    fn key(i: u32) -> Key {
        Key::host(&IpAddr::V4(Ipv4Addr::from(i)))
    }

    fn touch(table: &mut Table, i: u32, sec: u32) {
        let (index, _) = table.entry(key(i), None, sec - 59, |_, _| {});
        let client = table.get_mut(index);
        client.window.expire(sec - 59);
        client.window.add(sec, Kind::new(b"GET", Extension::NONE, 200), 0);
        client.last = sec;
    }

    #[test]
    fn never_exceeds_its_capacity_and_keeps_who_keeps_sending() {
        let mut table = Table::new(1000, 1);
        for i in 0..100_000u32 {
            touch(&mut table, 1 << 31 | i, 1000 + i / 5000);
            if i % 250 == 0 {
                touch(&mut table, 7, 1000 + i / 5000);
            }
            assert!(table.len() <= 1000);
        }
        assert_eq!(table.peak(), 1000);
        let index = table.find(&key(7)).expect("a client that keeps sending");
        assert_eq!(table.get(index).window.requests(), 400);
    }

    #[test]
    fn a_smaller_capacity_is_reached_with_the_next_client() {
        let mut table = Table::new(10_000, 1);
        (0..10_000).for_each(|i| touch(&mut table, i, 1000));
        (0..50).for_each(|_| touch(&mut table, 7, 1000));
        table.set_capacity(10);
        touch(&mut table, 20_000, 1001);
        assert_eq!(table.len(), 10);
        assert!(table.find(&key(20_000)).is_some() && table.find(&key(7)).is_some(), "the least active go");
        table.set_capacity(1);
        touch(&mut table, 20_001, 1001);
        touch(&mut table, 20_002, 1001);
        assert!(table.len() == 1 && table.find(&key(20_002)).is_some());
    }

    #[test]
    fn idle_clients_go_as_new_ones_come() {
        let mut table = Table::new(1_000_000, 1);
        for i in 0..50_000u32 {
            touch(&mut table, i, 1000 + i / 10);
        }
        // 600 of them were seen in the newest minute.
        assert!(table.len() < 1200, "{}", table.len());
        assert_eq!(table.evicted(), 0);
    }

    #[test]
    fn who_has_shown_something_is_remembered_without_its_requests() {
        let mut table = Table::new(1_000_000, 1);
        for i in 0..10_000u32 {
            for sec in 1000..1020 {
                touch(&mut table, i, sec);
            }
            let index = table.find(&key(i)).expect("there");
            table.get_mut(index).evidence = Some(Box::default());
        }
        let before = table.heap_bytes();
        // As many others come once, ten minutes later.
        for i in 10_000..20_000u32 {
            touch(&mut table, i, 1600);
        }
        let known = |i: u32| table.find(&key(i)).map(|index| table.get(index).clone());
        let idle: Vec<Client> = (0..10_000).filter_map(known).collect();
        assert!(idle.len() == 10_000 && idle.iter().all(|client| client.evidence.is_some()));
        let heap: usize = idle.iter().map(|client| client.window.heap_bytes()).sum();
        assert!(heap == 0 && idle.iter().all(|client| client.window.is_empty()), "{heap} of {before} bytes");
    }

    #[test]
    fn a_hint_of_the_table_before_leads_nowhere_wrong() {
        let before = Table::new(10, 1);
        let hint = before.hint(&key(1));
        let mut after = Table::new(10, 1);
        after.inherit(&before);
        let (index, new) = after.entry(key(1), Some(hint), 0, |_, _| {});
        assert!(new && after.find(&key(1)) == Some(index));
    }

    #[test]
    fn a_client_seen_twice_costs_little() {
        let mut table = Table::new(1_000_000, 1);
        for i in 0..300_000u32 {
            touch(&mut table, i, 1000);
            touch(&mut table, i, 1001);
        }
        let bytes = table.heap_bytes() / table.len();
        assert!(bytes <= 160, "{bytes} bytes");
    }
}
