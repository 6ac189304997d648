//! The ABI between the kernel program and the daemon: what lies in the maps, and nothing else.
//!
//! Every change of a type, a bit or a meaning here is a new [`LAYOUT_VERSION`]. Two things hold across
//! all versions, so that any daemon can move any older one's bans: a ban map's key is the address in
//! network byte order (behind a `u32` prefix length in a trie), and the first eight bytes of its value
//! are the end of the ban in nanoseconds of `CLOCK_MONOTONIC`, native byte order.
#![no_std]

/// Version of the layout, part of the path that maps and links are pinned under.
pub const LAYOUT_VERSION: u32 = 2;

/// The end of a ban that has none.
pub const NEVER: u64 = u64::MAX;

/// What is known of one banned address: 32 bytes, two to a cache line.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[repr(C)]
pub struct Ban {
    /// When it ends, in nanoseconds of `CLOCK_MONOTONIC`; [`NEVER`] for a permanent one.
    pub until_ns: u64,
    /// Packets dropped, whichever processors received them.
    pub packets: u64,
    /// Bytes dropped, as the driver delivered them: without the frame check sequence.
    pub bytes: u64,
    /// When the last one was dropped, in nanoseconds of `CLOCK_MONOTONIC`; 0 for never.
    pub last_hit_ns: u64,
}

/// The same for a wider prefix.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[repr(C)]
pub struct NetBan {
    /// End and counters.
    pub ban: Ban,
    /// Length of the prefix itself: a trie does not say which of its entries matched, and where
    /// that one has ended the next shorter one must be asked.
    pub prefix_len: u64,
}

/// What `SWITCH` holds: written by a starting daemon and by `anomaly off`, never by a running daemon.
pub mod switch {
    /// Everything passes.
    pub const OFF: u64 = 0;
    /// Banned packets are dropped.
    pub const ENFORCE: u64 = 1;
    /// Banned packets are counted and pass.
    pub const MONITOR: u64 = 2;
}

/// What the daemon tells the program: written by the running daemon only.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[repr(C)]
pub struct State {
    /// When the daemon was last seen alive, in nanoseconds of `CLOCK_MONOTONIC`.
    pub heartbeat_ns: u64,
    /// Drops stop when the heartbeat is older than this, in nanoseconds; 0 is never.
    pub grace_ns: u64,
    /// Bits of [`tables`] whose tables hold anything.
    pub tables: u64,
    /// Whose allow-list entry is worth looking for.
    pub allow: Sieve,
}

/// Says of most addresses, at once, that the allow-list does not hold them. Asking the trie on every dropped packet would
/// cost more than the rest of the program.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[repr(C)]
pub struct Sieve {
    /// By the first byte of an IPv4 address.
    v4: [u64; 4],
    /// By the first byte of an IPv6 address: prefixes shorter than /32.
    v6_wide: [u64; 4],
    /// By the first four bytes of an IPv6 address, folded into one: all others.
    v6: [u64; 4],
}

impl Sieve {
    /// The allow-list holds this prefix: the first four bytes of its address, and its length.
    pub fn add_v4(&mut self, network: [u8; 4], len: u8) {
        for byte in covered(network[0], len) {
            set(&mut self.v4, byte);
        }
    }

    /// The allow-list holds this prefix: the first four bytes of its address, and its length.
    pub fn add_v6(&mut self, network: [u8; 4], len: u8) {
        if len >= 32 {
            return set(&mut self.v6, fold(u32::from_be_bytes(network)));
        }
        for byte in covered(network[0], len) {
            set(&mut self.v6_wide, byte);
        }
    }

    /// Whether the allow-list may hold this address, which is in network byte order.
    #[inline(always)]
    pub fn may_hold_v4(&self, address: u32) -> bool {
        has(&self.v4, (u32::from_be(address) >> 24) as u8)
    }

    /// Whether the allow-list may hold an address with this first half, which is in network byte order.
    #[inline(always)]
    pub fn may_hold_v6(&self, high: u64) -> bool {
        let first = (u64::from_be(high) >> 32) as u32;
        has(&self.v6, fold(first)) || has(&self.v6_wide, (first >> 24) as u8)
    }
}

/// The first bytes that a prefix covers.
fn covered(first: u8, len: u8) -> core::ops::RangeInclusive<u8> {
    let rest = u8::MAX.checked_shr(len.into()).unwrap_or(0);
    first & !rest..=first | rest
}

/// Addresses of one provider differ in the later bytes only.
#[inline(always)]
const fn fold(first: u32) -> u8 {
    let half = first ^ (first >> 16);
    (half ^ (half >> 8)) as u8
}

#[inline(always)]
const fn has(bits: &[u64; 4], n: u8) -> bool {
    bits[(n >> 6) as usize] & (1 << (n & 63)) != 0
}

const fn set(bits: &mut [u64; 4], n: u8) {
    bits[(n >> 6) as usize] |= 1 << (n & 63);
}

/// One bit per table: an empty one is not looked into.
pub mod tables {
    /// Banned IPv4 addresses.
    pub const V4: u64 = 1;
    /// Banned IPv6 addresses.
    pub const V6: u64 = 1 << 1;
    /// Banned IPv6 /64s.
    pub const V6_64: u64 = 1 << 2;
    /// Other IPv4 prefixes.
    pub const NET4: u64 = 1 << 3;
    /// Other IPv6 prefixes.
    pub const NET6: u64 = 1 << 4;
}

/// Packets and bytes by what became of them; one per processor, so that counting needs no lock.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[repr(C)]
pub struct Totals {
    /// Dropped by an exact address or a /64.
    pub dropped_host: u64,
    /// Dropped by a wider prefix.
    pub dropped_prefix: u64,
    /// Bytes dropped.
    pub dropped_bytes: u64,
    /// Not banned.
    pub passed: u64,
    /// Banned, but on the allow-list.
    pub allowlisted: u64,
    /// Too short for the header they announce: passed.
    pub malformed: u64,
    /// Neither IPv4 nor IPv6 below at most two VLAN tags: passed.
    pub not_ip: u64,
    /// Banned, but passed: switched off, only monitoring, or the daemon has been gone for too long.
    pub not_enforced: u64,
    /// The kernel's tick (`jiffies`) at which the processor last read the clock.
    pub tick: u64,
    /// What it read.
    pub tick_ns: u64,
}

const _: () = {
    assert!(size_of::<Ban>() == 32);
    assert!(size_of::<NetBan>() == 40);
    assert!(size_of::<State>() == 24 + 96);
    assert!(size_of::<Totals>() == 80);
};

#[cfg(test)]
mod tests {
    use super::Sieve;

    fn v4(sieve: &Sieve, octets: [u8; 4]) -> bool {
        sieve.may_hold_v4(u32::from_ne_bytes(octets))
    }

    fn v6(sieve: &Sieve, words: [u16; 4]) -> bool {
        let mut octets = [0; 8];
        for (two, word) in octets.chunks_exact_mut(2).zip(words) {
            two.copy_from_slice(&word.to_be_bytes());
        }
        sieve.may_hold_v6(u64::from_ne_bytes(octets))
    }

    #[test]
    fn an_empty_list_holds_nobody() {
        let sieve = Sieve::default();
        assert!((0..=255).all(|first| !v4(&sieve, [first, 1, 2, 3]) && !v6(&sieve, [u16::from(first) << 8, 1, 2, 3])));
    }

    #[test]
    fn what_a_prefix_covers_is_never_sifted_out() {
        for len in 0..=32 {
            let mut sieve = Sieve::default();
            sieve.add_v4([203, 0, 113, 7], len);
            for host in [[203, 0, 113, 7], [203, 0, 113, 7 ^ 1], [203 ^ 1, 0, 0, 0], [203 ^ 0x80, 255, 255, 255]] {
                let mask = u32::MAX.checked_shl(32 - u32::from(len)).unwrap_or(0);
                let same = (u32::from_be_bytes(host) ^ u32::from_be_bytes([203, 0, 113, 7])) & mask == 0;
                assert!(!same || v4(&sieve, host), "/{len}: {host:?}");
            }
        }
        for len in 0..=128 {
            let mut sieve = Sieve::default();
            sieve.add_v6([0x2a, 0x06, 0x98, 0xc0], len);
            assert!(v6(&sieve, [0x2a06, 0x98c0, 0, 1]), "/{len}");
            assert_eq!(v6(&sieve, [0x2a06, 0x98c1, 0, 1]), len < 32, "/{len}");
            assert_eq!(v6(&sieve, [0xaa06, 0x98c0, 0, 1]), len == 0, "/{len}");
        }
    }

    #[test]
    fn strangers_are_sifted_out() {
        let mut sieve = Sieve::default();
        for (network, len) in [([10, 0, 0, 0], 8), ([192, 0, 2, 1], 32), ([224, 0, 0, 0], 4)] {
            sieve.add_v4(network, len);
        }
        let held: [u8; 4] = [10, 192, 224, 239];
        assert!(held.iter().all(|first| v4(&sieve, [*first, 9, 9, 9])));
        assert_eq!((0..=255).filter(|first| v4(&sieve, [*first, 9, 9, 9])).count(), 1 + 1 + 16);
        for (network, len) in [([0xfe, 0x80, 0, 0], 10), ([0xff, 0, 0, 0], 8), ([0x20, 0x01, 0x0d, 0xb8], 64)] {
            sieve.add_v6(network, len);
        }
        assert!(v6(&sieve, [0xfe80, 0, 0, 1]) && v6(&sieve, [0xff02, 0, 0, 1]) && v6(&sieve, [0x2001, 0xdb8, 5, 6]));
        assert!(!v6(&sieve, [0x2001, 0xdb9, 0, 1]) && !v6(&sieve, [0x2a01, 0x4f8, 0, 1]));
    }
}

#[cfg(feature = "user")]
mod user {
    use aya::Pod;

    // SAFETY: all five are `repr(C)`, hold only `u64`s, and so have no padding and no invalid bit pattern.
    unsafe impl Pod for super::Ban {}
    // SAFETY: as above.
    unsafe impl Pod for super::NetBan {}
    // SAFETY: as above.
    unsafe impl Pod for super::State {}
    // SAFETY: as above.
    unsafe impl Pod for super::Totals {}
}
