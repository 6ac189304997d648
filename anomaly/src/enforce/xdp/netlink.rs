//! What rtnetlink knows of interfaces and default routes, and a watch that says when to ask again.
//!
//! Read only. It is asked over netlink and not through /sys, because /sys shows the interfaces of the
//! network namespace it was mounted in, which need not be ours.

use std::io;
use std::os::fd::OwnedFd;

use rustix::io::Errno;
use rustix::net::netlink::SocketAddrNetlink;
use rustix::net::{self, AddressFamily, RecvFlags, SendFlags, SocketFlags, SocketType};

/// One interface.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Interface {
    /// Kernel's number; a recreated interface has another.
    pub index: u32,
    /// Name.
    pub name: String,
    /// Largest packet in bytes.
    pub mtu: u32,
    /// `ARPHRD_*`: what its frames look like.
    pub link_type: u16,
    /// Kind of a virtual interface (`veth`, `vlan`, `bridge`, `wireguard`, ...).
    pub kind: Option<String>,
    /// The interface below (of a VLAN), or the other end (of a veth).
    pub below: Option<u32>,
    /// The bridge or bond that it is a port of.
    pub master: Option<u32>,
    /// The XDP program on it.
    pub xdp: Option<Attached>,
}

impl Interface {
    /// Whether it spreads its traffic over members: what covers one member leaves the others open.
    pub fn is_bond(&self) -> bool {
        matches!(self.kind.as_deref(), Some("bond" | "team"))
    }
}

/// An XDP program on an interface.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Attached {
    /// In the driver (or the card) rather than in the stack.
    pub native: bool,
    /// Its id.
    pub prog_id: u32,
}

/// Numbers from `linux/rtnetlink.h`, `linux/if_link.h`, `linux/netlink.h`.
mod uapi {
    pub const NLMSG_ERROR: u16 = 2;
    pub const NLMSG_DONE: u16 = 3;
    pub const NLM_F_REQUEST_DUMP: u16 = 0x301;
    pub const NLM_F_DUMP_INTR: u16 = 0x10;
    pub const RTM_NEWLINK: u16 = 16;
    pub const RTM_GETLINK: u16 = 18;
    pub const RTM_NEWROUTE: u16 = 24;
    pub const RTM_GETROUTE: u16 = 26;
    pub const IFLA_IFNAME: u16 = 3;
    pub const IFLA_MTU: u16 = 4;
    pub const IFLA_LINK: u16 = 5;
    pub const IFLA_MASTER: u16 = 10;
    pub const IFLA_LINKINFO: u16 = 18;
    pub const IFLA_INFO_KIND: u16 = 1;
    pub const IFLA_XDP: u16 = 43;
    pub const IFLA_XDP_ATTACHED: u16 = 2;
    pub const IFLA_XDP_PROG_ID: u16 = 4;
    pub const IFLA_XDP_DRV_PROG_ID: u16 = 5;
    pub const IFLA_XDP_SKB_PROG_ID: u16 = 6;
    pub const IFLA_XDP_HW_PROG_ID: u16 = 7;
    pub const XDP_ATTACHED_SKB: u8 = 2;
    pub const XDP_ATTACHED_MULTI: u8 = 4;
    pub const RTA_OIF: u16 = 4;
    pub const RTA_MULTIPATH: u16 = 9;
    pub const RTN_UNICAST: u8 = 1;
    pub const RTMGRP_LINK: u32 = 1;
    pub const RTMGRP_IPV4_ROUTE: u32 = 0x40;
    pub const RTMGRP_IPV6_ROUTE: u32 = 0x400;
}

/// Every interface of this network namespace.
pub fn interfaces() -> io::Result<Vec<Interface>> {
    let mut all = Vec::new();
    dump(uapi::RTM_GETLINK, uapi::RTM_NEWLINK, 16, |header, attributes| {
        let mut interface = Interface {
            index: u32_at(header, 4).unwrap_or_default(),
            link_type: u16_at(header, 2).unwrap_or_default(),
            ..Interface::default()
        };
        for (kind, value) in Attributes(attributes) {
            match kind {
                uapi::IFLA_IFNAME => interface.name = text(value),
                uapi::IFLA_MTU => interface.mtu = u32_at(value, 0).unwrap_or_default(),
                uapi::IFLA_LINK => interface.below = u32_at(value, 0),
                uapi::IFLA_MASTER => interface.master = u32_at(value, 0),
                uapi::IFLA_LINKINFO => {
                    interface.kind =
                        Attributes(value).find(|(kind, _)| *kind == uapi::IFLA_INFO_KIND).map(|(_, value)| text(value));
                }
                uapi::IFLA_XDP => interface.xdp = xdp(value),
                _ => {}
            }
        }
        all.push(interface);
    })?;
    Ok(all)
}

fn xdp(value: &[u8]) -> Option<Attached> {
    let (mut mode, mut single, mut native, mut generic) = (0, None, None, None);
    for (kind, value) in Attributes(value) {
        match kind {
            uapi::IFLA_XDP_ATTACHED => mode = value.first().copied().unwrap_or_default(),
            uapi::IFLA_XDP_PROG_ID => single = u32_at(value, 0),
            uapi::IFLA_XDP_DRV_PROG_ID | uapi::IFLA_XDP_HW_PROG_ID => native = u32_at(value, 0),
            uapi::IFLA_XDP_SKB_PROG_ID => generic = u32_at(value, 0),
            _ => {}
        }
    }
    if mode == uapi::XDP_ATTACHED_MULTI {
        // Two at once, in different modes: the one in the driver is met first.
        return native.or(generic).map(|prog_id| Attached { native: native.is_some(), prog_id });
    }
    single.map(|prog_id| Attached { native: mode != uapi::XDP_ATTACHED_SKB, prog_id })
}

/// Numbers of the interfaces that carry a default route, IPv4 or IPv6, in any table.
pub fn default_route_interfaces() -> io::Result<Vec<u32>> {
    let mut all = Vec::new();
    dump(uapi::RTM_GETROUTE, uapi::RTM_NEWROUTE, 12, |header, attributes| {
        let (prefix_len, kind) = (header[1], header[7]);
        if prefix_len != 0 || kind != uapi::RTN_UNICAST {
            return;
        }
        for (kind, value) in Attributes(attributes) {
            match kind {
                uapi::RTA_OIF => all.extend(u32_at(value, 0)),
                uapi::RTA_MULTIPATH => {
                    let mut rest = value;
                    // struct rtnexthop: length, flags, hops, interface, attributes.
                    while let (Some(len), Some(index)) = (u16_at(rest, 0), u32_at(rest, 4)) {
                        all.push(index);
                        match rest.get(align(usize::from(len).max(8))..) {
                            Some(after) => rest = after,
                            None => break,
                        }
                    }
                }
                _ => {}
            }
        }
    })?;
    all.sort_unstable();
    all.dedup();
    Ok(all)
}

/// Says whether interfaces or routes changed since it was last asked.
#[derive(Debug)]
pub struct Watch(OwnedFd);

impl Watch {
    /// Starts watching.
    pub fn new() -> io::Result<Self> {
        let groups = uapi::RTMGRP_LINK | uapi::RTMGRP_IPV4_ROUTE | uapi::RTMGRP_IPV6_ROUTE;
        Ok(Self(socket(groups, SocketFlags::CLOEXEC | SocketFlags::NONBLOCK)?))
    }

    /// True when something changed since the last call; also when so much did that the kernel lost count.
    pub fn changed(&self) -> bool {
        let mut buffer = [0u8; 8192];
        let mut changed = false;
        // Bounded, so that a storm of changes cannot hold the caller here.
        for _ in 0..256 {
            match net::recv(&self.0, &mut buffer, RecvFlags::empty()) {
                Ok(_) | Err(Errno::NOBUFS) => changed = true,
                Err(Errno::INTR) => {}
                Err(_) => break,
            }
        }
        changed
    }
}

fn socket(groups: u32, flags: SocketFlags) -> io::Result<OwnedFd> {
    // No protocol is protocol 0, which is NETLINK_ROUTE.
    let socket = net::socket_with(AddressFamily::NETLINK, SocketType::RAW, flags, None)?;
    net::bind(&socket, &SocketAddrNetlink::new(0, groups))?;
    Ok(socket)
}

/// A list that changed while it was read may lack what was there all the time; it is read so often at most.
const DUMP_TRIES: usize = 8;

/// Asks for everything of one kind. `each` gets the fixed header of `header_len` bytes and the attributes.
fn dump(ask: u16, answer: u16, header_len: usize, mut each: impl FnMut(&[u8], &[u8])) -> io::Result<()> {
    let mut messages = Vec::new();
    for _ in 0..DUMP_TRIES {
        messages.clear();
        if dump_once(ask, answer, header_len, &mut messages)? == Dump::Whole {
            break;
        }
    }
    for message in &messages {
        if let Some((header, attributes)) = message.split_at_checked(header_len) {
            each(header, attributes);
        }
    }
    Ok(())
}

/// How a dump ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Dump {
    Whole,
    /// Something came or went meanwhile.
    Interrupted,
    /// More is to come.
    Unfinished,
}

fn dump_once(ask: u16, answer: u16, header_len: usize, messages: &mut Vec<Vec<u8>>) -> io::Result<Dump> {
    let socket = socket(0, SocketFlags::CLOEXEC)?;
    let mut request = Vec::with_capacity(16 + header_len);
    request.extend((16 + header_len as u32).to_ne_bytes());
    request.extend(ask.to_ne_bytes());
    request.extend(uapi::NLM_F_REQUEST_DUMP.to_ne_bytes());
    request.extend([0; 8]);
    request.resize(16 + header_len, 0);
    net::send(&socket, &request, SendFlags::empty())?;
    let mut buffer = vec![0u8; 65_536];
    let mut interrupted = false;
    loop {
        let (filled, _) = match net::recv(&socket, &mut buffer[..], RecvFlags::empty()) {
            Err(Errno::INTR) => continue,
            other => other?,
        };
        match read_dump(&buffer[..filled], answer, messages, &mut interrupted)? {
            Dump::Unfinished => {}
            end => return Ok(end),
        }
    }
}

/// Takes the messages of one datagram of a dump.
fn read_dump(mut rest: &[u8], answer: u16, messages: &mut Vec<Vec<u8>>, interrupted: &mut bool) -> io::Result<Dump> {
    while let (Some(len), Some(kind), Some(flags)) = (u32_at(rest, 0), u16_at(rest, 4), u16_at(rest, 6)) {
        let len = (len as usize).max(16);
        let Some(message) = rest.get(16..len) else { break };
        *interrupted |= flags & uapi::NLM_F_DUMP_INTR != 0;
        match kind {
            // The end of a dump that failed in its middle carries the reason, as an error does.
            uapi::NLMSG_DONE | uapi::NLMSG_ERROR => {
                let code = u32_at(message, 0).map(u32::cast_signed);
                return match code {
                    None | Some(0) if kind == uapi::NLMSG_DONE => {
                        Ok(if *interrupted { Dump::Interrupted } else { Dump::Whole })
                    }
                    code => Err(io::Error::from_raw_os_error(code.map_or(libc::EIO, |code| -code))),
                };
            }
            kind if kind == answer => messages.push(message.to_vec()),
            _ => {}
        }
        rest = rest.get(align(len)..).unwrap_or_default();
    }
    Ok(Dump::Unfinished)
}

/// Walks netlink attributes.
pub struct Attributes<'a>(pub &'a [u8]);

impl<'a> Iterator for Attributes<'a> {
    type Item = (u16, &'a [u8]);

    fn next(&mut self) -> Option<Self::Item> {
        let len = usize::from(u16_at(self.0, 0)?);
        // The upper two bits say how it is encoded, not what it is.
        let kind = u16_at(self.0, 2)? & 0x3fff;
        let value = self.0.get(4..len)?;
        self.0 = self.0.get(align(len)..).unwrap_or_default();
        Some((kind, value))
    }
}

/// Where what follows so many bytes begins.
pub const fn align(len: usize) -> usize {
    (len + 3) & !3
}

/// A number in the host's byte order.
pub fn u16_at(bytes: &[u8], at: usize) -> Option<u16> {
    Some(u16::from_ne_bytes(bytes.get(at..at + 2)?.try_into().ok()?))
}

/// A number in the host's byte order.
pub fn u32_at(bytes: &[u8], at: usize) -> Option<u32> {
    Some(u32::from_ne_bytes(bytes.get(at..at + 4)?.try_into().ok()?))
}

fn text(value: &[u8]) -> String {
    String::from_utf8_lossy(value.strip_suffix(b"\0").unwrap_or(value)).into_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn attribute(kind: u16, value: &[u8]) -> Vec<u8> {
        let mut bytes = ((4 + value.len()) as u16).to_ne_bytes().to_vec();
        bytes.extend(kind.to_ne_bytes());
        bytes.extend(value);
        bytes.resize(align(bytes.len()), 0);
        bytes
    }

    #[test]
    fn loopback_is_found_without_privileges() {
        let all = interfaces().unwrap();
        let lo = all.iter().find(|i| i.name == "lo").expect("every namespace has one");
        assert_eq!((lo.index, lo.link_type, lo.xdp), (1, 772, None));
        assert!(default_route_interfaces().unwrap().iter().all(|index| all.iter().any(|i| i.index == *index)));
    }

    #[test]
    fn a_dump_that_was_disturbed_is_no_whole_one() {
        let message = |kind: u16, flags: u16, payload: &[u8]| {
            let mut bytes = (16 + payload.len() as u32).to_ne_bytes().to_vec();
            bytes.extend(kind.to_ne_bytes());
            bytes.extend(flags.to_ne_bytes());
            bytes.extend([0; 8]);
            bytes.extend(payload);
            bytes.resize(align(bytes.len()), 0);
            bytes
        };
        let link = |flags| message(uapi::RTM_NEWLINK, flags, &[7; 17]);
        let done = |flags, code: i32| message(uapi::NLMSG_DONE, flags, &code.to_ne_bytes());
        let read = |datagrams: &[Vec<u8>]| {
            let (mut messages, mut interrupted, mut end) = (Vec::new(), false, Dump::Unfinished);
            for datagram in datagrams {
                end = read_dump(datagram, uapi::RTM_NEWLINK, &mut messages, &mut interrupted)?;
            }
            Ok::<_, io::Error>((messages.len(), end))
        };
        assert_eq!(read(&[[link(2), link(2)].concat(), done(2, 0)]).unwrap(), (2, Dump::Whole));
        assert_eq!(read(&[link(0x12), [link(2), done(2, 0)].concat()]).unwrap(), (2, Dump::Interrupted));
        assert_eq!(read(&[[link(2), link(2)].concat()]).unwrap(), (2, Dump::Unfinished));
        let failed = read(&[[link(2), done(2, -libc::ENOMEM)].concat()]).unwrap_err();
        assert_eq!(failed.raw_os_error(), Some(libc::ENOMEM));
        let refused = read(&[message(uapi::NLMSG_ERROR, 0, &(-libc::EPERM).to_ne_bytes())]).unwrap_err();
        assert_eq!(refused.raw_os_error(), Some(libc::EPERM));
    }

    #[test]
    fn a_quiet_watch_says_nothing() {
        // Other tests may change other namespaces; this one's is only read.
        let watch = Watch::new().unwrap();
        let _ = watch.changed();
        assert!(!watch.changed());
    }

    #[test]
    fn xdp_attributes_are_read() {
        let both = [
            attribute(uapi::IFLA_XDP_ATTACHED, &[uapi::XDP_ATTACHED_MULTI]),
            attribute(uapi::IFLA_XDP_DRV_PROG_ID, &7u32.to_ne_bytes()),
            attribute(uapi::IFLA_XDP_SKB_PROG_ID, &8u32.to_ne_bytes()),
        ];
        assert_eq!(xdp(&both.concat()), Some(Attached { native: true, prog_id: 7 }));
        let generic = [
            attribute(uapi::IFLA_XDP_ATTACHED, &[uapi::XDP_ATTACHED_SKB]),
            attribute(uapi::IFLA_XDP_PROG_ID, &9u32.to_ne_bytes()),
            attribute(uapi::IFLA_XDP_SKB_PROG_ID, &9u32.to_ne_bytes()),
        ];
        assert_eq!(xdp(&generic.concat()), Some(Attached { native: false, prog_id: 9 }));
        assert_eq!(xdp(&attribute(uapi::IFLA_XDP_ATTACHED, &[0])), None);
    }

    #[test]
    fn cut_attributes_end_the_walk() {
        let whole = attribute(3, b"eth0\0");
        assert_eq!(Attributes(&whole).count(), 1);
        for len in 0..9 {
            assert_eq!(Attributes(&whole[..len]).count(), 0, "{len} bytes");
        }
        assert_eq!(Attributes(&[2, 0, 3, 0]).count(), 0, "shorter than its own header");
    }
}
