//! The ABI between the kernel program and the daemon: what lies in the maps, and nothing else.
//!
//! Every change of a type, a bit or a meaning here is a new [`LAYOUT_VERSION`]. Two things hold across
//! all versions, so that any daemon can move any older one's bans: a ban map's key is the address in
//! network byte order (behind a `u32` prefix length in a trie), and the first eight bytes of its value
//! are the end of the ban in nanoseconds of `CLOCK_MONOTONIC`, native byte order.
#![no_std]

/// Version of the layout, part of the path that maps and links are pinned under.
pub const LAYOUT_VERSION: u32 = 1;

/// The end of a ban that has none.
pub const NEVER: u64 = u64::MAX;

/// What is known of one banned address: 32 bytes, two to a cache line.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[repr(C)]
pub struct Ban {
    /// When it ends, in nanoseconds of `CLOCK_MONOTONIC`; [`NEVER`] for a permanent one.
    pub until_ns: u64,
    /// Packets dropped; a few less where several processors receive them at the same moment.
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
    /// IPv4 prefixes that are never dropped.
    pub const ALLOW4: u64 = 1 << 5;
    /// IPv6 prefixes that are never dropped.
    pub const ALLOW6: u64 = 1 << 6;
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
}

const _: () = {
    assert!(size_of::<Ban>() == 32);
    assert!(size_of::<NetBan>() == 40);
    assert!(size_of::<State>() == 24);
    assert!(size_of::<Totals>() == 64);
};

#[cfg(feature = "user")]
mod user {
    use aya::Pod;

    // SAFETY: all four are `repr(C)`, hold only `u64`s, and so have no padding and no invalid bit pattern.
    unsafe impl Pod for super::Ban {}
    // SAFETY: as above.
    unsafe impl Pod for super::NetBan {}
    // SAFETY: as above.
    unsafe impl Pod for super::State {}
    // SAFETY: as above.
    unsafe impl Pod for super::Totals {}
}
