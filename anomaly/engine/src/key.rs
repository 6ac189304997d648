//! By which prefix a client is counted, and which prefix is banned for it.
//!
//! IPv4 by address; IPv6 by /64, because one host owns 2^64 addresses there. Where a prefix that would be banned holds
//! an address that never may be, its clients are counted and banned one by one, by /128. So are those behind NAT64
//! (64:ff9b::/96), each of which is a client of IPv4.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use ipnet::{IpNet, Ipv4Net, Ipv6Net};

/// The prefix a client is counted by.
///
/// It is made of numbers, not of bytes, because it is made and compared several times for each record: what has just been
/// written byte by byte cannot be read as a whole before it has left the processor's store buffer.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Key {
    /// The upper half of the address, IPv4 as ::ffff:a.b.c.d.
    high: u64,
    low: u64,
    len: u8,
}

/// Whether an address lies in 64:ff9b::/96 (NAT64, RFC 6052): its last 32 bits name a client of IPv4.
const fn is_nat64(high: u64, low: u64) -> bool {
    high == 0x0064_ff9b_0000_0000 && low >> 32 == 0
}

/// The lower half of ::ffff:0.0.0.0.
const MAPPED: u64 = 0xffff_0000_0000;

impl Key {
    /// The key of `::`.
    pub const UNSPECIFIED: Self = Self { high: 0, low: 0, len: 128 };

    const fn new(bits: u128, len: u8) -> Self {
        Self { high: (bits >> 64) as u64, low: bits as u64, len }
    }

    /// The key of one address.
    #[inline]
    pub const fn host(address: &IpAddr) -> Self {
        match address {
            IpAddr::V4(v4) => Self { high: 0, low: MAPPED | v4.to_bits() as u64, len: 128 },
            IpAddr::V6(v6) => Self::new(v6.to_bits(), 128),
        }
    }

    fn shortened(address: Ipv6Addr, len: u8) -> Self {
        let mask = u128::MAX.checked_shl(128 - u32::from(len)).unwrap_or(0);
        Self::new(address.to_bits() & mask, len)
    }

    const fn bits(&self) -> u128 {
        (self.high as u128) << 64 | self.low as u128
    }

    /// The IPv4 address that it begins with, if it is one of IPv4.
    fn v4(&self) -> Option<Ipv4Addr> {
        (self.high == 0 && self.low >> 32 == MAPPED >> 32).then(|| Ipv4Addr::from_bits(self.low as u32))
    }

    /// The prefix it stands for.
    pub fn prefix(&self) -> IpNet {
        match self.v4() {
            Some(v4) if self.len == 128 => IpNet::from(IpAddr::V4(v4)),
            _ => {
                let address = Ipv6Addr::from_bits(self.bits());
                Ipv6Net::new(address, self.len).map_or_else(|_| IpNet::from(IpAddr::V6(address)), IpNet::V6)
            }
        }
    }

    /// The key that stands for a prefix, also one that no client is counted by.
    pub fn of_prefix(prefix: &IpNet) -> Self {
        match prefix {
            IpNet::V4(v4) => Self { len: 96 + v4.prefix_len(), ..Self::host(&IpAddr::V4(v4.addr())) },
            IpNet::V6(v6) => Self::new(v6.addr().to_bits(), v6.prefix_len()),
        }
    }

    /// The prefix of [`Key::of_prefix`].
    pub fn to_prefix(self) -> Option<IpNet> {
        match self.v4() {
            Some(v4) if self.len >= 96 => Ipv4Net::new(v4, self.len - 96).ok().map(IpNet::V4),
            _ => Ipv6Net::new(Ipv6Addr::from_bits(self.bits()), self.len).ok().map(IpNet::V6),
        }
    }

    /// The network it lies in, /24 or /48, as a hash that is never 0: neighbours speak with one voice.
    pub const fn network(&self) -> u16 {
        let is_v4 = self.high == 0 && self.low >> 32 == MAPPED >> 32;
        let network = if is_v4 || is_nat64(self.high, self.low) {
            (self.low & 0xffff_ffff) >> 8
        } else {
            self.high >> 16 | 1 << 63
        };
        let hash = (network.wrapping_mul(0x9e37_79b9_7f4a_7c15) >> 48) as u16;
        if hash == 0 { 1 } else { hash }
    }

    /// A number that differs for most clients and is the same in each run.
    pub const fn spread(&self) -> u32 {
        ((self.high ^ self.low.rotate_left(32)).wrapping_mul(0x9e37_79b9_7f4a_7c15) >> 32) as u32
    }

    /// What a hash is made of: both halves of the address, and how many bits of it count.
    pub const fn hashed(&self) -> (u64, u64, u8) {
        (self.high, self.low, self.len)
    }

    /// From [`Key::hashed`].
    pub const fn from_hashed((high, low, len): (u64, u64, u8)) -> Self {
        Self { high, low, len }
    }

    /// As bytes, for the store.
    pub fn to_bytes(self) -> [u8; 17] {
        let mut bytes = [0; 17];
        bytes[..16].copy_from_slice(&self.bits().to_be_bytes());
        bytes[16] = self.len;
        bytes
    }

    /// From [`Key::to_bytes`]; `None` for anything else.
    pub fn from_bytes(bytes: &[u8]) -> Option<Self> {
        let (bits, len) = bytes.split_at_checked(16)?;
        let bits: [u8; 16] = bits.try_into().ok()?;
        match len {
            [len] if *len <= 128 => Some(Self::new(u128::from_be_bytes(bits), *len)),
            _ => None,
        }
    }
}

/// Addresses as sorted ranges, first and last, that share nothing: each client is looked up in them, and there may be ten
/// thousand.
#[derive(Clone, Debug, Default)]
struct Ranges<T>(Vec<(T, T)>);

impl<T: Ord + Copy> Ranges<T> {
    fn new(mut all: Vec<(T, T)>) -> Self {
        all.sort_unstable();
        let mut merged: Vec<(T, T)> = Vec::with_capacity(all.len());
        for (first, last) in all {
            match merged.last_mut() {
                Some(before) if first <= before.1 => before.1 = before.1.max(last),
                _ => merged.push((first, last)),
            }
        }
        Self(merged)
    }

    fn hold(&self, address: T) -> bool {
        let after = self.0.partition_point(|(first, _)| *first <= address);
        after.checked_sub(1).and_then(|n| self.0.get(n)).is_some_and(|(_, last)| address <= *last)
    }
}

/// Addresses that are never banned, and what follows from them for their neighbours.
#[derive(Clone, Debug, Default)]
pub struct Exempt {
    entries: Vec<IpNet>,
    v4: Ranges<u32>,
    v6: Ranges<u128>,
    /// IPv6 prefixes of the length of a ban that hold such an address without being covered by one.
    guarded: Vec<Ipv6Net>,
    ipv6_prefix: u8,
}

impl Exempt {
    /// From the allow-list and what else must not be banned.
    pub fn new(allowlist: &[IpNet], never_ban: &[IpNet], ipv6_prefix: u8) -> Self {
        let entries: Vec<IpNet> = allowlist.iter().chain(never_ban).map(|n| n.trunc()).collect();
        let mut guarded: Vec<Ipv6Net> = entries
            .iter()
            .filter_map(|n| match n {
                IpNet::V6(v6) if v6.prefix_len() > ipv6_prefix => {
                    Ipv6Net::new(v6.addr(), ipv6_prefix).ok().map(|n| n.trunc())
                }
                _ => None,
            })
            .collect();
        guarded.sort();
        guarded.dedup();
        let (mut v4, mut v6) = (Vec::new(), Vec::new());
        for entry in &entries {
            match entry {
                IpNet::V4(net) => v4.push((net.network().to_bits(), net.broadcast().to_bits())),
                IpNet::V6(net) => v6.push((net.network().to_bits(), net.broadcast().to_bits())),
            }
        }
        Self { entries, v4: Ranges::new(v4), v6: Ranges::new(v6), guarded, ipv6_prefix }
    }

    /// Whether an address is never banned.
    pub fn covers(&self, address: IpAddr) -> bool {
        match address {
            IpAddr::V4(v4) => self.v4.hold(v4.to_bits()),
            IpAddr::V6(v6) => self.v6.hold(v6.to_bits()),
        }
    }

    /// The first entry that shares an address with a prefix.
    pub fn overlap(&self, prefix: &IpNet) -> Option<IpNet> {
        self.entries.iter().find(|n| n.contains(prefix) || prefix.contains(*n)).copied()
    }

    /// Whether an address stands for itself alone: its neighbours are other clients.
    fn is_alone(&self, address: Ipv6Addr) -> bool {
        let bits = address.to_bits();
        is_nat64((bits >> 64) as u64, bits as u64) || self.is_guarded(address)
    }

    fn is_guarded(&self, address: Ipv6Addr) -> bool {
        !self.guarded.is_empty()
            && Ipv6Net::new(address, self.ipv6_prefix).is_ok_and(|n| self.guarded.binary_search(&n.trunc()).is_ok())
    }

    /// The prefix an address is counted by.
    #[inline]
    pub fn key(&self, address: &IpAddr) -> Key {
        match address {
            IpAddr::V4(_) => Key::host(address),
            IpAddr::V6(v6) if self.is_alone(*v6) => Key::host(address),
            IpAddr::V6(v6) => Key::shortened(*v6, self.ipv6_prefix.max(64)),
        }
    }

    /// The prefix that is banned for an address.
    pub fn ban_prefix(&self, address: IpAddr) -> IpNet {
        match address {
            IpAddr::V4(v4) => IpNet::V4(Ipv4Net::from(v4)),
            IpAddr::V6(v6) if self.is_alone(v6) => IpNet::from(IpAddr::V6(v6)),
            IpAddr::V6(v6) => Ipv6Net::new(v6, self.ipv6_prefix)
                .map_or_else(|_| IpNet::from(IpAddr::V6(v6)), |n| IpNet::V6(n.trunc())),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn net(text: &str) -> IpNet {
        text.parse().expect("a prefix")
    }

    fn ip(text: &str) -> IpAddr {
        text.parse().expect("an address")
    }

    #[test]
    fn ipv6_is_counted_and_banned_by_64() {
        let exempt = Exempt::new(&[], &[], 64);
        assert_eq!(exempt.key(&ip("2001:db8::1")), exempt.key(&ip("2001:db8::ffff:2")));
        assert_eq!(exempt.key(&ip("2001:db8::1")).prefix(), net("2001:db8::/64"));
        assert_eq!(exempt.ban_prefix(ip("2001:db8::1")), net("2001:db8::/64"));
        assert_eq!(exempt.key(&ip("192.0.2.7")).prefix(), net("192.0.2.7/32"));
        let wide = Exempt::new(&[], &[], 48);
        assert_eq!(wide.ban_prefix(ip("2001:db8:1:2::1")), net("2001:db8:1::/48"));
        assert_eq!(wide.key(&ip("2001:db8:1:2::1")).prefix(), net("2001:db8:1:2::/64"));
        let narrow = Exempt::new(&[], &[], 128);
        assert_eq!(narrow.key(&ip("2001:db8::1")).prefix(), net("2001:db8::1/128"));
    }

    #[test]
    fn behind_nat64_each_address_is_a_client() {
        let exempt = Exempt::new(&[], &[], 64);
        let (one, other) = (ip("64:ff9b::192.0.2.7"), ip("64:ff9b::192.0.2.8"));
        assert_ne!(exempt.key(&one), exempt.key(&other));
        assert_eq!(exempt.ban_prefix(one), net("64:ff9b::c000:207/128"));
        assert_eq!(exempt.key(&one).network(), exempt.key(&ip("192.0.2.9")).network());
    }

    #[test]
    fn a_network_is_a_24_or_a_48() {
        let exempt = Exempt::new(&[], &[], 64);
        let network = |text| exempt.key(&ip(text)).network();
        assert_eq!(network("192.0.2.7"), network("192.0.2.200"));
        assert_ne!(network("192.0.2.7"), network("192.0.3.7"));
        assert_eq!(network("2001:db8:1:2::1"), network("2001:db8:1:3::1"));
        assert_ne!(network("2001:db8:1:2::1"), network("2001:db8:2:2::1"));
    }

    #[test]
    fn an_allow_listed_neighbour_shrinks_the_ban_to_the_address() {
        let exempt = Exempt::new(&[net("2001:db8::5/128")], &[net("10.0.0.0/8")], 64);
        assert_eq!(exempt.ban_prefix(ip("2001:db8::1")), net("2001:db8::1/128"));
        assert_ne!(exempt.key(&ip("2001:db8::1")), exempt.key(&ip("2001:db8::2")));
        assert_eq!(exempt.ban_prefix(ip("2001:db8:0:1::1")), net("2001:db8:0:1::/64"));
        assert!(exempt.covers(ip("2001:db8::5")) && !exempt.covers(ip("2001:db8::6")));
        assert!(exempt.covers(ip("10.1.2.3")));
        assert_eq!(exempt.overlap(&net("10.1.0.0/16")), Some(net("10.0.0.0/8")));
        assert_eq!(exempt.overlap(&net("0.0.0.0/0")), Some(net("10.0.0.0/8")));
        assert_eq!(exempt.overlap(&net("192.0.2.0/24")), None);
    }

    #[test]
    fn survives_the_store() {
        for text in ["192.0.2.7", "2001:db8::1", "::", "255.255.255.255"] {
            for key in [Key::host(&ip(text)), Exempt::new(&[], &[], 64).key(&ip(text))] {
                assert_eq!(Key::from_bytes(&key.to_bytes()), Some(key));
            }
        }
        for text in ["192.0.2.0/24", "0.0.0.0/0", "2001:db8::/48", "::/0", "192.0.2.7/32"] {
            assert_eq!(Key::of_prefix(&net(text)).to_prefix(), Some(net(text)));
        }
        assert_eq!(Key::from_bytes(&[0; 16]), None);
    }

    /// Prefixes and addresses out of few bits, so that they often meet.
    fn prefixes() -> impl proptest::strategy::Strategy<Value = Vec<IpNet>> {
        use proptest::prelude::*;
        let v4 = (0..=0xffu32, 0..=32u8).prop_map(|(n, len)| (IpAddr::V4(Ipv4Addr::from_bits(n << 20 | n)), len));
        let v6 = (0..=0xffu128, 0..=128u8).prop_map(|(n, len)| (IpAddr::V6(Ipv6Addr::from_bits(n << 116 | n)), len));
        let prefix = prop_oneof![v4, v6].prop_map(|(address, len)| IpNet::new(address, len).expect("a length"));
        prop::collection::vec(prefix, 0..20)
    }

    proptest::proptest! {
        #[test]
        fn the_ranges_cover_what_the_prefixes_do(prefixes in prefixes(), asked in prefixes()) {
            let (allowed, guarded) = prefixes.split_at(prefixes.len() / 2);
            let exempt = Exempt::new(allowed, guarded, 64);
            let edges = prefixes.iter().flat_map(|n| [n.network(), n.broadcast()]);
            let beside = edges.clone().flat_map(|edge| match edge {
                IpAddr::V4(a) => [a.to_bits().wrapping_sub(1), a.to_bits().wrapping_add(1)].map(|b| IpAddr::V4(Ipv4Addr::from_bits(b))),
                IpAddr::V6(a) => [a.to_bits().wrapping_sub(1), a.to_bits().wrapping_add(1)].map(|b| IpAddr::V6(Ipv6Addr::from_bits(b))),
            });
            for address in asked.iter().map(IpNet::addr).chain(edges.clone()).chain(beside) {
                let linear = prefixes.iter().any(|n| n.contains(&address));
                proptest::prop_assert_eq!(exempt.covers(address), linear, "{}", address);
            }
        }
    }
}
