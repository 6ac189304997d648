//! Frames with VLAN tags on a real wire: sent as they are by a packet socket, looked for by another one behind the
//! program. Works on kernels without VLAN interfaces, too.

use std::os::fd::OwnedFd;
use std::time::Duration;

use anomaly::enforce::Enforcer;
use rustix::net::{AddressFamily, RecvFlags, SendFlags, SocketAddrAny, SocketType, eth, recvfrom, sendto, sockopt};

use super::packets::{frame, v4, v6};
use super::rig::{Rig, ban, lift};

/// Every frame of every interface of a namespace, in both directions.
struct Tap {
    socket: OwnedFd,
    /// Where the first frame was seen: sending there needs the interface's number, which comes with it.
    interface: SocketAddrAny,
}

impl Tap {
    /// Opens one where `va` and `vb` are the only interfaces that carry anything; `knock` makes something pass.
    fn open(on: impl FnOnce() -> OwnedFd, knock: impl FnOnce()) -> Self {
        let socket = on();
        sockopt::set_socket_timeout(&socket, sockopt::Timeout::Recv, Some(Duration::from_secs(5))).unwrap();
        knock();
        let (_, _, from) = recvfrom(&socket, &mut [0; 2048][..], RecvFlags::empty()).unwrap();
        Self { socket, interface: from.unwrap() }
    }

    fn send(&self, frame: &[u8]) {
        assert_eq!(sendto(&self.socket, frame, SendFlags::empty(), &self.interface).unwrap(), frame.len());
    }

    /// The marks of the frames that arrive, up to the one with `last`.
    fn marks_up_to(&self, last: u32) -> Vec<u32> {
        let mut marks = Vec::new();
        let mut buffer = [0; 2048];
        loop {
            let (_, len, _) = recvfrom(&self.socket, &mut buffer[..], RecvFlags::empty()).expect("the last one passes");
            let Some((rest, mark)) = buffer[..len].split_last_chunk::<4>() else { continue };
            if !rest.ends_with(MAGIC) {
                continue;
            }
            match u32::from_be_bytes(*mark) {
                mark if mark == last => return marks,
                mark => marks.push(mark),
            }
        }
    }
}

const MAGIC: &[u8] = b"anomaly-test";

fn packet_socket() -> OwnedFd {
    rustix::net::socket(AddressFamily::PACKET, SocketType::RAW, Some(eth::ALL)).unwrap()
}

#[test]
fn tags_hide_no_banned_packet_on_the_wire() {
    let Some(rig) = Rig::new() else { return };
    let knock = || assert_eq!(rig.arrive("10.77.0.2", "10.77.0.1", 1), 1);
    let sender = Tap::open(|| rig.on_peer(packet_socket), knock);
    let receiver = Tap::open(|| rig.on_host(packet_socket), knock);
    let (mut xdp, _) = rig.open(&rig.settings()).unwrap();
    let tags: [&[u16]; 6] = [&[], &[0x8100], &[0x88a8], &[0x88a8, 0x8100], &[0x8100, 0x8100], &[0x9100, 0x8100]];
    let payloads =
        [(0x0800, v4("198.51.100.7".parse().unwrap(), 0, 0)), (0x86dd, v6("2001:db8::7".parse().unwrap(), 6))];
    let cases: Vec<(&[u16], u16, &[u8])> =
        payloads.iter().flat_map(|(kind, payload)| tags.map(|tags| (tags, *kind, &payload[..]))).collect();
    let mut mark = 0;
    let mut arrived = |expect: usize| {
        let first = mark;
        let mut send = |tags: &[u16], kind, payload: &[u8]| {
            mark += 1;
            sender.send(&[&frame(tags, kind, payload), MAGIC, &u32::to_be_bytes(mark)].concat());
            mark
        };
        for (tags, kind, payload) in &cases {
            send(tags, *kind, payload);
        }
        // Not banned: what was sent before it has arrived or never will.
        let last = send(&[], 0x0800, &v4("198.51.100.8".parse().unwrap(), 0, 0));
        let got = receiver.marks_up_to(last);
        let missed =
            (first + 1..last).filter(|mark| !got.contains(mark)).map(|mark| &cases[(mark - first - 1) as usize]);
        assert_eq!(got.len(), expect, "did not arrive: {:x?}", missed.collect::<Vec<_>>());
    };
    arrived(cases.len());
    ban(&mut xdp, "198.51.100.7/32", Some(600));
    arrived(cases.len() / 2);
    ban(&mut xdp, "2001:db8::/64", Some(600));
    arrived(0);
    lift(&mut xdp, "198.51.100.7/32");
    lift(&mut xdp, "2001:db8::/64");
    arrived(cases.len());
    Box::new(xdp).close(false).unwrap();
}

/// The kernel's own VLAN interfaces, where it has them: the daemon is told of the VLAN and covers what lies below.
#[test]
fn a_vlan_by_name_or_by_its_default_route_is_covered_from_below() {
    let Some(rig) = Rig::new() else { return };
    if !rig.has_vlans() {
        let test = "a_vlan_by_name_or_by_its_default_route_is_covered_from_below";
        crate::lab::skip_anywhere(test, "this kernel has no 8021q");
        return;
    }
    // VLAN 9, and VLAN 5 in an outer one.
    for (space, below, last) in [(&rig.host, "va", 1), (&rig.peer, "vb", 2)] {
        let ip = |line: &str| {
            space.ip(line).unwrap();
        };
        ip(&format!("link add link {below} name {below}.9 type vlan id 9"));
        ip(&format!("link add link {below} name {below}.s type vlan protocol 802.1ad id 100"));
        ip(&format!("link add link {below}.s name {below}.s.5 type vlan id 5"));
        for (name, net) in [(format!("{below}.9"), 79), (format!("{below}.s"), 80), (format!("{below}.s.5"), 81)] {
            ip(&format!("addr add 10.{net}.0.{last}/24 dev {name}"));
            ip(&format!("link set {name} up"));
        }
    }
    let mut settings = rig.settings();
    for interfaces in [vec!["va.9"], vec!["va.s.5"], vec!["va.9", "va.s.5", "va"], vec!["auto"]] {
        if interfaces == ["auto"] {
            rig.ip("route del default");
            rig.ip("route add default via 10.81.0.2");
        }
        settings.interfaces = interfaces.iter().map(|name| (*name).to_owned()).collect();
        let (mut xdp, incidents) = rig.open(&settings).unwrap();
        assert_eq!(incidents, []);
        let covered = xdp.coverage().attachments;
        assert_eq!(covered.len(), 1, "{covered:?}");
        assert_eq!((covered[0].interface.as_str(), covered[0].mode), ("va", "native"));
        for net in [77, 79, 81] {
            let (from, to) = (format!("10.{net}.0.2"), format!("10.{net}.0.1"));
            assert_eq!(rig.arrive(&from, &to, 2), 2, "{from}");
            ban(&mut xdp, &format!("{from}/32"), Some(600));
            assert_eq!(rig.arrive(&from, &to, 2), 0, "{from}");
        }
        Box::new(xdp).close(false).unwrap();
    }
}

/// What the daemon is told of a VLAN comes over netlink; a macvlan says it in the same words, and this kernel has it.
#[test]
fn what_an_interface_lies_on_is_read_from_the_kernel() {
    let Some(rig) = Rig::new() else { return };
    rig.ip("link add link va name mv0 type macvlan");
    let mut settings = rig.settings();
    settings.interfaces = vec!["va".into(), "mv0".into()];
    let seen = rig.on_host(|| anomaly::enforce::xdp::wanted_interfaces(&settings)).unwrap();
    let [va, macvlan] = &seen[..] else { panic!("{seen:?}") };
    assert_eq!((macvlan.kind.as_deref(), macvlan.below), (Some("macvlan"), Some(va.index)));
}
