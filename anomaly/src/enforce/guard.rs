//! Finds the addresses that must never be dropped: own, gateways, resolvers, and where somebody is logged in from.
//!
//! Only what would cut the host or its operator off. Neighbours on the same link are *not*
//! guarded: an attacker in the host's own /24 must remain bannable, and so must private addresses.
//! An IPv6 /64 that holds an own address or a gateway cannot be banned as a whole, which is how
//! neighbours on an IPv6 link end up banned one by one.
//!
//! Everything is read from text files (`/proc/net`, `resolv.conf`) by pure functions. What cannot
//! be read is logged and left out; the other sources still count.
//!
//! A login session proves that somebody may operate the host, so its client must never be banned, for as long as it lasts
//! ([`logged_in`]). A connection to sshd proves nothing: anybody can open one and stay silent. It counts only where no session
//! can be seen, for a few minutes after the start, and against nobody's decision ([`ssh_peers`]).

mod sessions;
mod ssh;

use ipnet::IpNet;
use std::collections::BTreeMap;
use std::fs;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::path::Path;

pub use sessions::{LoggedIn, logged_in};
pub use ssh::{SSH_GRACE_MARGIN, login_grace, peers as ssh_peers};

/// One prefix that must never be banned or dropped.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
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
    /// Where somebody is logged in from.
    LoggedIn,
}

impl Why {
    /// In words, after "it is": `a gateway`.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Loopback => "loopback",
            Self::LinkLocal => "link-local",
            Self::Multicast => "multicast",
            Self::Unspecified => "the unspecified address",
            Self::Broadcast => "a broadcast address",
            Self::Own => "an address of this host",
            Self::Gateway => "a gateway",
            Self::Resolver => "a name server",
            Self::TrustedProxy => "a trusted proxy",
            Self::LoggedIn => "where somebody is logged in from",
        }
    }
}

/// What is guarded on every host, whatever its addresses.
const ALWAYS: [(&str, Why); 9] = [
    ("0.0.0.0/32", Why::Unspecified),
    ("::/128", Why::Unspecified),
    ("127.0.0.0/8", Why::Loopback),
    ("::1/128", Why::Loopback),
    ("169.254.0.0/16", Why::LinkLocal),
    ("fe80::/10", Why::LinkLocal),
    ("224.0.0.0/4", Why::Multicast),
    ("ff00::/8", Why::Multicast),
    ("255.255.255.255/32", Why::Broadcast),
];

/// Everything in this network namespace that must never be banned because the host lives on it, as of now, by address and
/// without duplicates; of several reasons the first in the order of [`Why`] is given.
pub fn find(trusted_proxies: &[IpNet]) -> Vec<Guarded> {
    collect(&Sources::read(), trusted_proxies)
}

/// The texts it is all found in; empty where there is nothing to read.
#[derive(Debug, Default)]
struct Sources {
    /// `/proc/net/fib_trie`.
    fib_trie: String,
    /// `/proc/net/if_inet6`.
    if_inet6: String,
    /// `/proc/net/route`.
    route: String,
    /// `/proc/net/ipv6_route`.
    ipv6_route: String,
    /// `/etc/resolv.conf` and what systemd-resolved asks in its stead.
    resolv_conf: String,
}

impl Sources {
    fn read() -> Self {
        Self {
            fib_trie: net("fib_trie"),
            if_inet6: net("if_inet6"),
            route: net("route"),
            ipv6_route: net("ipv6_route"),
            resolv_conf: both(text(Path::new("/etc/resolv.conf")), text(Path::new("/run/systemd/resolve/resolv.conf"))),
        }
    }
}

/// A file of `/proc/net`, of the calling thread's network namespace, which need not be the process's.
fn net(file: &str) -> String {
    text(&Path::new("/proc/thread-self/net").join(file))
}

fn both(one: String, two: String) -> String {
    one + "\n" + &two
}

fn text(path: &Path) -> String {
    match fs::read(path) {
        Ok(bytes) => String::from_utf8_lossy(&bytes).into_owned(),
        Err(error) => {
            tracing::debug!(path = %path.display(), %error, "not read for the never-ban list");
            String::new()
        }
    }
}

fn collect(sources: &Sources, trusted_proxies: &[IpNet]) -> Vec<Guarded> {
    let mut found: BTreeMap<IpNet, Why> = BTreeMap::new();
    let mut guard = |prefix: IpNet, why: Why| {
        let slot = found.entry(prefix.trunc()).or_insert(why);
        *slot = why.min(*slot);
    };
    for (prefix, why) in ALWAYS {
        if let Ok(prefix) = prefix.parse() {
            guard(prefix, why);
        }
    }
    for (prefix, why) in fib_trie(&sources.fib_trie) {
        guard(prefix, why);
    }
    let hosts = [
        (if_inet6(&sources.if_inet6), Why::Own),
        (route(&sources.route), Why::Gateway),
        (ipv6_route(&sources.ipv6_route), Why::Gateway),
        (resolv_conf(&sources.resolv_conf), Why::Resolver),
    ];
    for (addresses, why) in hosts {
        for address in addresses {
            guard(IpNet::from(address), why);
        }
    }
    for proxy in trusted_proxies {
        guard(*proxy, Why::TrustedProxy);
    }
    found.into_iter().map(|(prefix, why)| Guarded { prefix, why }).collect()
}

/// Own and broadcast IPv4 addresses out of the routing tables `local` and `main`.
///
/// Local prefixes count as a whole (an address block that is served by one host), but not those of other
/// tables: transparent proxies put `local 0.0.0.0/0` there.
fn fib_trie(text: &str) -> Vec<(IpNet, Why)> {
    let mut found = Vec::new();
    let mut in_main = true;
    let mut leaf: Option<Ipv4Addr> = None;
    for line in text.lines() {
        if !line.starts_with(' ') {
            in_main = matches!(line.trim_end_matches(':'), "Main" | "Local");
            continue;
        }
        let line = line.trim();
        if let Some(address) = line.strip_prefix("|-- ") {
            leaf = address.parse().ok();
            continue;
        }
        let (Some(address), Some(route)) = (leaf, line.strip_prefix('/')) else { continue };
        let mut words = route.split_whitespace();
        let length = words.next().and_then(|length| length.parse().ok());
        let why = match words.nth(1) {
            Some("LOCAL") => Why::Own,
            Some("BROADCAST") => Why::Broadcast,
            _ => continue,
        };
        if let Some(Ok(prefix)) = length.filter(|length| in_main && *length >= 8).map(|l| IpNet::new(address.into(), l))
        {
            found.push((prefix, why));
        }
    }
    found
}

/// Own IPv6 addresses: `fe80...01 02 40 20 80 eth0`.
fn if_inet6(text: &str) -> Vec<IpAddr> {
    text.lines().filter_map(|line| plain_v6(line.split_whitespace().next()?)).collect()
}

/// Flag of a route that goes through a router.
const RTF_GATEWAY: u32 = 2;

/// IPv4 gateways: interface, destination, gateway, flags.
fn route(text: &str) -> Vec<IpAddr> {
    let gateway = |line: &str| {
        let mut words = line.split_whitespace().skip(2);
        let (gateway, flags) = (words.next()?, u32::from_str_radix(words.next()?, 16).ok()?);
        (flags & RTF_GATEWAY != 0).then_some(())?;
        kernel_address(gateway)
    };
    text.lines().filter_map(gateway).collect()
}

/// IPv6 gateways: destination, length, source, length, next hop, metric, references, use, flags.
fn ipv6_route(text: &str) -> Vec<IpAddr> {
    let gateway = |line: &str| {
        let words: Vec<&str> = line.split_whitespace().collect();
        let flags = u32::from_str_radix(words.get(8)?, 16).ok()?;
        let gateway = plain_v6(words.get(4)?)?;
        (flags & RTF_GATEWAY != 0 && !gateway.is_unspecified()).then_some(gateway)
    };
    text.lines().filter_map(gateway).collect()
}

/// `nameserver 192.0.2.1`, an IPv6 one perhaps with `%interface`.
fn resolv_conf(text: &str) -> Vec<IpAddr> {
    let server = |line: &str| {
        let mut words = line.split_whitespace();
        let address = (words.next()? == "nameserver").then(|| words.next())??;
        address.split('%').next()?.parse().ok()
    };
    text.lines().filter_map(server).collect()
}

/// An address as the kernel prints its 32-bit words: hexadecimal numbers, in the byte order of this machine.
fn kernel_address(text: &str) -> Option<IpAddr> {
    let word = |at: usize| Some(u32::from_str_radix(text.get(at..at + 8)?, 16).ok()?.to_ne_bytes());
    match text.len() {
        8 => Some(IpAddr::from(word(0)?)),
        32 => {
            let words = [word(0)?, word(8)?, word(16)?, word(24)?];
            let mut bytes = [0; 16];
            bytes.copy_from_slice(words.as_flattened());
            Some(IpAddr::from(bytes))
        }
        _ => None,
    }
}

/// An IPv6 address as 32 hexadecimal digits in the order of the network.
fn plain_v6(text: &str) -> Option<IpAddr> {
    let number = (text.len() == 32).then(|| u128::from_str_radix(text, 16).ok())??;
    Some(Ipv6Addr::from(number).into())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ip(text: &str) -> IpAddr {
        text.parse().expect("an address")
    }

    fn net(text: &str) -> IpNet {
        text.parse().expect("a prefix")
    }

    const FIB: &str = "\
Main:
  +-- 0.0.0.0/0 3 0 5
     |-- 0.0.0.0
        /0 universe UNICAST
     +-- 192.0.2.0/24 2 0 2
        |-- 192.0.2.0
           /24 link UNICAST
        |-- 192.0.2.2
           /32 host LOCAL
        |-- 192.0.2.255
           /32 link BROADCAST
Id 100:
  |-- 0.0.0.0
     /0 host LOCAL
  |-- 198.51.100.0
     /24 host LOCAL
Local:
  |-- 203.0.113.0
     /24 host LOCAL
";

    #[test]
    fn own_addresses_are_guarded_and_neighbours_are_not() {
        let found = fib_trie(FIB);
        assert_eq!(
            found,
            [
                (net("192.0.2.2/32"), Why::Own),
                (net("192.0.2.255/32"), Why::Broadcast),
                (net("203.0.113.0/24"), Why::Own),
            ]
        );
    }

    #[test]
    fn reads_own_ipv6_addresses() {
        let text = "fd000000000000000000000000000002 04 40 00 82     eth0\nnonsense\n";
        assert_eq!(if_inet6(text), [ip("fd00::2")]);
    }

    #[test]
    fn reads_gateways() {
        let text = "Iface\tDestination\tGateway\tFlags\tRefCnt\n\
                    eth0\t00000000\t010200C0\t0003\t0\n\
                    eth0\t000200C0\t00000000\t0001\t0\n";
        assert_eq!(route(text), [ip("192.0.2.1")]);
        let text = "00000000000000000000000000000000 00 00000000000000000000000000000000 00 \
                    fe800000000000000000000000000001 00000400 00000001 00000000 00000003 eth0\n\
                    fd000000000000000000000000000000 40 00000000000000000000000000000000 00 \
                    00000000000000000000000000000000 00000100 00000001 00000000 00000001 eth0\n";
        assert_eq!(ipv6_route(text), [ip("fe80::1")]);
    }

    #[test]
    fn reads_name_servers() {
        let text =
            "# nameserver 192.0.2.9\nsearch example.org\nnameserver 192.0.2.53\nnameserver fe80::53%eth0\nnameserver\n";
        assert_eq!(resolv_conf(text), [ip("192.0.2.53"), ip("fe80::53")]);
    }

    #[test]
    fn collects_each_prefix_once_with_its_first_reason() {
        let sources = Sources {
            fib_trie: FIB.into(),
            resolv_conf: "nameserver 192.0.2.2\nnameserver 10.0.0.53\n".into(),
            ..Sources::default()
        };
        let found = collect(&sources, &[net("10.0.0.53/32"), net("198.51.100.7/24")]);
        let why = |prefix: &str| found.iter().filter(|g| g.prefix == net(prefix)).map(|g| g.why).collect::<Vec<_>>();
        assert_eq!(why("192.0.2.2/32"), [Why::Own], "it is its own resolver too");
        assert_eq!(why("10.0.0.53/32"), [Why::Resolver]);
        assert_eq!(why("198.51.100.0/24"), [Why::TrustedProxy]);
        assert_eq!(why("127.0.0.0/8"), [Why::Loopback]);
        let guarded = |address: &str| found.iter().any(|g| g.prefix.contains(&ip(address)));
        assert!(!guarded("192.0.2.77"), "an attacker in the host's own /24 can be banned");
        assert!(!guarded("10.1.2.3") && !guarded("fd00::1"), "private addresses are not exempt");
    }

    #[test]
    fn finds_something_on_every_host() {
        let found = find(&[]);
        assert!(found.iter().any(|g| g.prefix == net("127.0.0.0/8")));
        assert!(found.is_sorted_by(|a, b| a.prefix < b.prefix), "in order and without duplicates");
    }

    proptest::proptest! {
        #[test]
        fn no_text_makes_it_panic(text in "(.{0,80}\n){0,5}", hex in "[0-9A-Fa-f:é ]{0,120}") {
            for text in [&text, &hex] {
                let _ = (fib_trie(text), if_inet6(text), route(text), ipv6_route(text), resolv_conf(text));
                let _ = (kernel_address(text), plain_v6(text));
            }
        }
    }
}
