//! Ban tables: prefixes in, map entries out. Exact addresses (and /64s) are hashed, other prefixes
//! lie in tries.
//!
//! A table knows no clock and no policy: who gives way when it is full is decided above.

#![expect(
    clippy::needless_borrows_for_generic_args,
    reason = "aya 0.15 takes keys and values by reference only; passing them so now makes that step mechanical"
)]

use std::collections::HashMap as StdMap;
use std::hash::Hash;
use std::io;
use std::net::{Ipv4Addr, Ipv6Addr};
use std::ops::Range;
use std::os::fd::AsFd;
use std::thread::Builder;

use anomaly_common::{Ban, NetBan};
use aya::Pod;
use aya::maps::lpm_trie::Key;
use aya::maps::{HashMap, LpmTrie, MapData, MapError};
use ipnet::{IpNet, Ipv4Net, Ipv6Net};

use super::raw;

/// Which table a prefix belongs to. The order is that of [`super::program::Kernel::tables`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    V4,
    V6,
    V6Subnet,
    Net4,
    Net6,
}

impl Kind {
    pub const ALL: [Self; 5] = [Self::V4, Self::V6, Self::V6Subnet, Self::Net4, Self::Net6];

    /// The table for a prefix.
    pub fn of(prefix: &IpNet) -> Self {
        match (prefix, prefix.prefix_len()) {
            (IpNet::V4(_), 32) => Self::V4,
            (IpNet::V4(_), _) => Self::Net4,
            (IpNet::V6(_), 128) => Self::V6,
            (IpNet::V6(_), 64) => Self::V6Subnet,
            (IpNet::V6(_), _) => Self::Net6,
        }
    }

    /// Name of the map.
    pub const fn map(self) -> &'static str {
        match self {
            Self::V4 => "BANS_V4",
            Self::V6 => "BANS_V6",
            Self::V6Subnet => "BANS_V6_64",
            Self::Net4 => "NETS_V4",
            Self::Net6 => "NETS_V6",
        }
    }

    /// The bit that tells the program to look into it.
    pub const fn bit(self) -> u64 {
        use anomaly_common::tables;
        match self {
            Self::V4 => tables::V4,
            Self::V6 => tables::V6,
            Self::V6Subnet => tables::V6_64,
            Self::Net4 => tables::NET4,
            Self::Net6 => tables::NET6,
        }
    }

    /// The prefix that a raw key of this table stands for; `None` when it is none.
    pub fn prefix(self, key: &[u8]) -> Option<IpNet> {
        match self {
            Self::V4 => Some(u32::from_ne_bytes(key.try_into().ok()?).prefix(32)),
            Self::V6 => Some(words(key)?.prefix(128)),
            Self::V6Subnet => Some(u64::from_ne_bytes(key.try_into().ok()?).prefix(64)),
            Self::Net4 | Self::Net6 => trie_prefix(key),
        }
    }
}

/// The prefix of a raw trie key: prefix length, then the address.
pub fn trie_prefix(key: &[u8]) -> Option<IpNet> {
    let (len, address) = key.split_first_chunk::<4>()?;
    let len = u8::try_from(u32::from_ne_bytes(*len)).ok()?;
    match address.len() {
        4 if len <= 32 => Some(u32::from_ne_bytes(address.try_into().ok()?).prefix(len)),
        16 if len <= 128 => Some(words(address)?.prefix(len)),
        _ => None,
    }
}

fn words(bytes: &[u8]) -> Option<[u64; 2]> {
    let (high, low) = bytes.split_first_chunk::<8>()?;
    Some([u64::from_ne_bytes(*high), u64::from_ne_bytes(low.try_into().ok()?)])
}

/// The nth of the entries that are to be set. There may be a million: they are made where they are needed, on whichever
/// thread, and not collected first.
pub type Entry<'a> = &'a (dyn Fn(usize) -> (IpNet, Ban) + Sync);

/// A table of bans.
pub trait Table: std::fmt::Debug + Send {
    /// The entry of exactly this prefix.
    fn get(&self, prefix: &IpNet) -> io::Result<Option<Ban>>;
    /// Sets `count` entries; `fresh` of them are new. Where one fails, some of the others are set.
    fn put(&mut self, count: usize, entry: Entry<'_>, fresh: usize) -> io::Result<()>;
    /// Removes an entry; false when there was none.
    fn remove(&mut self, prefix: &IpNet) -> io::Result<bool>;
    /// Removes many; those that are not there are skipped.
    fn remove_all(&mut self, prefixes: &[IpNet]) -> io::Result<()> {
        prefixes.iter().try_for_each(|prefix| self.remove(prefix).map(drop))
    }
    /// Shows every entry. Those that come or go meanwhile may be missed.
    fn each(&mut self, visit: &mut dyn FnMut(IpNet, Ban)) -> io::Result<()>;
    /// Every entry.
    fn all(&mut self) -> io::Result<Vec<(IpNet, Ban)>> {
        let mut all = Vec::with_capacity(self.len());
        self.each(&mut |prefix, ban| all.push((prefix, ban)))?;
        Ok(all)
    }
    /// Entries it holds.
    fn len(&self) -> usize;
    /// Entries it has room for.
    fn capacity(&self) -> u32;
}

/// An address as it lies in a packet.
pub trait Address: Pod + Default + Eq + Hash + std::fmt::Debug + Send {
    fn of(prefix: &IpNet) -> Self;
    fn prefix(self, len: u8) -> IpNet;
}

impl Address for u32 {
    fn of(prefix: &IpNet) -> Self {
        match prefix.network() {
            std::net::IpAddr::V4(address) => Self::from_ne_bytes(address.octets()),
            std::net::IpAddr::V6(_) => unreachable!("Kind::of sends IPv6 elsewhere"),
        }
    }

    fn prefix(self, len: u8) -> IpNet {
        Ipv4Net::new_assert(Ipv4Addr::from(self.to_ne_bytes()), len.min(32)).trunc().into()
    }
}

impl Address for [u64; 2] {
    fn of(prefix: &IpNet) -> Self {
        match prefix.network() {
            std::net::IpAddr::V6(address) => words(&address.octets()).unwrap_or_default(),
            std::net::IpAddr::V4(_) => unreachable!("Kind::of sends IPv4 elsewhere"),
        }
    }

    fn prefix(self, len: u8) -> IpNet {
        let mut octets = [0; 16];
        octets[..8].copy_from_slice(&self[0].to_ne_bytes());
        octets[8..].copy_from_slice(&self[1].to_ne_bytes());
        Ipv6Net::new_assert(Ipv6Addr::from(octets), len.min(128)).trunc().into()
    }
}

/// The first half of an IPv6 address.
impl Address for u64 {
    fn of(prefix: &IpNet) -> Self {
        <[u64; 2]>::of(prefix)[0]
    }

    fn prefix(self, len: u8) -> IpNet {
        [self, 0].prefix(len)
    }
}

/// A hash of single addresses, or of /64s.
#[derive(Debug)]
pub struct Hosts<K> {
    map: HashMap<MapData, K, Ban>,
    prefix_len: u8,
    len: usize,
    capacity: u32,
}

impl<K: Address> Hosts<K> {
    /// Over an open map, counting what it holds.
    pub fn new(map: HashMap<MapData, K, Ban>, capacity: u32, prefix_len: u8) -> io::Result<Self> {
        let mut table = Self { map, prefix_len, len: 0, capacity };
        table.each(&mut |_, _| {})?;
        Ok(table)
    }
}

fn map_fd<K: Pod>(map: &HashMap<MapData, K, Ban>) -> std::os::fd::BorrowedFd<'_> {
    use aya::maps::IterableMap;
    map.map().fd().as_fd()
}

/// Up to so many elements go to the kernel in one call.
const BATCH: usize = 65_536;
/// Fewer than this are set one by one.
const FEW: usize = 8;
/// So many threads at most share the work of many batches: where a million bans are to be set, the host is
/// without them until it is done.
const THREADS: usize = 4;

impl<K: Address> Table for Hosts<K> {
    fn get(&self, prefix: &IpNet) -> io::Result<Option<Ban>> {
        found(self.map.get(&K::of(prefix), 0))
    }

    fn put(&mut self, count: usize, entry: Entry<'_>, fresh: usize) -> io::Result<()> {
        // Counted before: a count that is too high costs a look into the table, one that is too low would
        // hide it from the program.
        self.len += fresh;
        if count < FEW {
            return (0..count).try_for_each(|n| {
                let (prefix, ban) = entry(n);
                self.map.insert(&K::of(&prefix), &ban, 0).map_err(io_error)
            });
        }
        let map = map_fd(&self.map);
        let set = |batch: Range<usize>| {
            let (mut keys, mut values) = (Vec::with_capacity(batch.len()), Vec::with_capacity(batch.len()));
            for (prefix, ban) in batch.map(entry) {
                keys.push(K::of(&prefix));
                values.push(ban);
            }
            raw::update_batch(map, &keys, &values)
        };
        let batches = |first: usize, step: usize| {
            let starts = (first * BATCH..count).step_by(step * BATCH);
            starts.map(|start| start..count.min(start + BATCH)).try_for_each(set)
        };
        let threads = std::thread::available_parallelism().map_or(1, |n| n.get().min(THREADS));
        if threads == 1 || count <= BATCH {
            return batches(0, 1);
        }
        std::thread::scope(|scope| {
            let others: Vec<_> = (1..threads)
                .map(|first| (first, Builder::new().spawn_scoped(scope, move || batches(first, threads))))
                .collect();
            let mut outcome = batches(0, threads);
            for (first, thread) in others {
                let done = match thread {
                    Ok(thread) => thread.join().unwrap_or_else(|p| std::panic::resume_unwind(p)),
                    // The host has no thread to give, as may be under attack: its share is done here.
                    Err(_) => batches(first, threads),
                };
                outcome = outcome.and(done);
            }
            outcome
        })
    }

    fn remove(&mut self, prefix: &IpNet) -> io::Result<bool> {
        let removed = gone(self.map.remove(&K::of(prefix)))?;
        self.len = self.len.saturating_sub(usize::from(removed));
        Ok(removed)
    }

    fn remove_all(&mut self, prefixes: &[IpNet]) -> io::Result<()> {
        if prefixes.len() < FEW {
            return prefixes.iter().try_for_each(|prefix| self.remove(prefix).map(drop));
        }
        for chunk in prefixes.chunks(BATCH) {
            let keys: Vec<K> = chunk.iter().map(K::of).collect();
            let mut rest = &keys[..];
            while let Err(partly) = raw::delete_batch(map_fd(&self.map), rest) {
                if partly.error.raw_os_error() != Some(libc::ENOENT) {
                    return Err(partly.error);
                }
                self.len = self.len.saturating_sub(partly.done);
                rest = rest.get(partly.done + 1..).unwrap_or_default();
            }
            self.len = self.len.saturating_sub(rest.len());
        }
        Ok(())
    }

    fn each(&mut self, visit: &mut dyn FnMut(IpNet, Ban)) -> io::Result<()> {
        let (mut len, prefix_len) = (0, self.prefix_len);
        raw::for_each(map_fd(&self.map), self.len, |key: K, ban| {
            len += 1;
            visit(key.prefix(prefix_len), ban);
        })?;
        self.len = len;
        Ok(())
    }

    fn len(&self) -> usize {
        self.len
    }

    fn capacity(&self) -> u32 {
        self.capacity
    }
}

/// A trie of prefixes.
#[derive(Debug)]
pub struct Nets<K> {
    map: LpmTrie<MapData, K, NetBan>,
    len: usize,
    capacity: u32,
}

impl<K: Address> Nets<K> {
    /// Over an open map, counting what it holds.
    pub fn new(map: LpmTrie<MapData, K, NetBan>, capacity: u32) -> io::Result<Self> {
        let mut table = Self { map, len: 0, capacity };
        table.each(&mut |_, _| {})?;
        Ok(table)
    }

    fn key(prefix: &IpNet) -> Key<K> {
        Key::new(u32::from(prefix.prefix_len()), K::of(prefix))
    }
}

impl<K: Address> Table for Nets<K> {
    fn get(&self, prefix: &IpNet) -> io::Result<Option<Ban>> {
        // The trie answers with the longest match, which may be a wider prefix.
        let found = found(self.map.get(&Self::key(prefix), 0))?;
        Ok(found.filter(|net| net.prefix_len == u64::from(prefix.prefix_len())).map(|net| net.ban))
    }

    fn put(&mut self, count: usize, entry: Entry<'_>, fresh: usize) -> io::Result<()> {
        self.len += fresh;
        for (prefix, ban) in (0..count).map(entry) {
            let net = NetBan { ban, prefix_len: u64::from(prefix.prefix_len()) };
            self.map.insert(&Self::key(&prefix), &net, 0).map_err(io_error)?;
        }
        Ok(())
    }

    fn remove(&mut self, prefix: &IpNet) -> io::Result<bool> {
        let removed = gone(self.map.remove(&Self::key(prefix)))?;
        self.len = self.len.saturating_sub(usize::from(removed));
        Ok(removed)
    }

    fn each(&mut self, visit: &mut dyn FnMut(IpNet, Ban)) -> io::Result<()> {
        let mut count = 0;
        for entry in self.map.iter() {
            let (key, net) = entry.map_err(io_error)?;
            let (len, address) = (key.prefix_len(), key.data());
            visit(address.prefix(u8::try_from(len).unwrap_or(u8::MAX)), net.ban);
            count += 1;
        }
        self.len = count;
        Ok(())
    }

    fn len(&self) -> usize {
        self.len
    }

    fn capacity(&self) -> u32 {
        self.capacity
    }
}

/// What a table holds of many prefixes, asking the kernel in the cheaper way.
pub fn existing(table: &mut dyn Table, prefixes: impl ExactSizeIterator<Item = IpNet>) -> io::Result<Bans> {
    let mut found = Bans::default();
    if table.len() == 0 {
        return Ok(found);
    }
    // A single look-up costs about as much as four elements of a batch.
    if prefixes.len() < 64 || prefixes.len() < table.len() / 4 {
        for prefix in prefixes {
            found.extend(table.get(&prefix)?.map(|ban| (prefix.trunc(), ban)));
        }
        return Ok(found);
    }
    found.reserve(table.len());
    table.each(&mut |prefix, ban| found.extend([(prefix, ban)]))?;
    Ok(found)
}

/// Bans by prefix.
pub type Bans = StdMap<IpNet, Ban, foldhash::fast::RandomState>;

/// What the kernel said, out of aya's error.
pub fn io_error(error: MapError) -> io::Error {
    match error {
        MapError::SyscallError(e) => e.io_error,
        MapError::IoError(e) => e,
        other => io::Error::other(other),
    }
}

fn found<V>(answer: Result<V, MapError>) -> io::Result<Option<V>> {
    match answer {
        Ok(value) => Ok(Some(value)),
        Err(MapError::KeyNotFound | MapError::ElementNotFound) => Ok(None),
        Err(e) => Err(io_error(e)),
    }
}

fn gone(answer: Result<(), MapError>) -> io::Result<bool> {
    match answer.map_err(io_error) {
        Ok(()) => Ok(true),
        Err(e) if e.raw_os_error() == Some(libc::ENOENT) => Ok(false),
        Err(e) => Err(e),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn prefixes_survive_the_way_into_a_key_and_back() {
        for text in
            ["203.0.113.7/32", "2001:db8::1/128", "2001:db8:0:7::/64", "10.0.0.0/8", "2001:db8::/48", "0.0.0.0/0"]
        {
            let prefix: IpNet = text.parse().unwrap();
            let len = prefix.prefix_len();
            let trie = |address: &[u8]| [&u32::from(len).to_ne_bytes()[..], address].concat();
            let key = match Kind::of(&prefix) {
                Kind::V4 => u32::of(&prefix).to_ne_bytes().to_vec(),
                Kind::V6 => <[u64; 2]>::of(&prefix).map(u64::to_ne_bytes).concat(),
                Kind::V6Subnet => u64::of(&prefix).to_ne_bytes().to_vec(),
                Kind::Net4 => trie(&u32::of(&prefix).to_ne_bytes()),
                Kind::Net6 => trie(&<[u64; 2]>::of(&prefix).map(u64::to_ne_bytes).concat()),
            };
            assert_eq!(Kind::of(&prefix).prefix(&key), Some(prefix), "{text}");
        }
    }

    #[test]
    fn a_key_is_in_network_byte_order() {
        assert_eq!(u32::of(&"1.2.3.4/32".parse().unwrap()).to_ne_bytes(), [1, 2, 3, 4]);
        assert_eq!(u64::of(&"102:304::/64".parse().unwrap()).to_ne_bytes(), [1, 2, 3, 4, 0, 0, 0, 0]);
    }

    #[test]
    fn keys_of_another_size_are_no_prefix() {
        assert_eq!(Kind::V4.prefix(&[1, 2, 3]), None);
        assert_eq!(Kind::Net4.prefix(&[33, 0, 0, 0, 1, 2, 3, 4]), None, "/33");
        assert_eq!(Kind::Net6.prefix(&[]), None);
    }
}
