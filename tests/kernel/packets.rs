//! The program on single packets, by BPF_PROG_TEST_RUN: what it drops, what it passes, what it counts.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::time::Duration;

use anomaly::enforce::xdp::XdpEnforcer;
use anomaly::enforce::{Drop, EnforceError, Enforcer, Incident, Totals};
use aya::programs::{TestRun, TestRunOptions};
use ipnet::IpNet;
use proptest::prelude::*;

use super::rig::Rig;

const DROP: u32 = 1;
const PASS: u32 = 2;

/// Ethernet, VLAN tags of these types, and a payload of this type.
pub fn frame(tags: &[u16], ethertype: u16, payload: &[u8]) -> Vec<u8> {
    let mut frame = vec![2; 12];
    for tag in tags {
        frame.extend(tag.to_be_bytes());
        frame.extend([0, 7]);
    }
    frame.extend(ethertype.to_be_bytes());
    frame.extend(payload);
    frame
}

/// An IPv4 header with this many words of options and this fragment offset, and a few bytes.
pub fn v4(source: Ipv4Addr, options: u8, fragment: u16) -> Vec<u8> {
    let mut packet = vec![0x45 + options, 0, 0, 0, 0, 1];
    packet.extend(fragment.to_be_bytes());
    packet.extend([64, 6, 0, 0]);
    packet.extend(source.octets());
    packet.extend([10, 9, 9, 9]);
    packet.extend(vec![1; usize::from(options) * 4]);
    packet.extend([0xab; 24]);
    packet
}

/// An IPv6 header with this next header, and a few bytes.
pub fn v6(source: Ipv6Addr, next_header: u8) -> Vec<u8> {
    let mut packet = vec![0x60, 0, 0, 0, 0, 24, next_header, 64];
    packet.extend(source.octets());
    packet.extend(Ipv6Addr::LOCALHOST.octets());
    packet.extend([0xab; 24]);
    packet
}

pub fn from(source: &str) -> Vec<u8> {
    match source.parse().unwrap() {
        IpAddr::V4(source) => frame(&[], 0x0800, &v4(source, 0, 0)),
        IpAddr::V6(source) => frame(&[], 0x86dd, &v6(source, 6)),
    }
}

/// What the program says of a packet: both builds of it must agree.
pub fn verdict(xdp: &mut XdpEnforcer, packet: &[u8]) -> u32 {
    let answers = [true, false].map(|frags| {
        let program = xdp.program(frags).expect("the kernel takes the program");
        let options = TestRunOptions { data_in: Some(packet), ..TestRunOptions::new() };
        program.test_run(options).expect("the kernel runs the program").return_value
    });
    assert_eq!(answers[0], answers[1], "with and without frags");
    answers[0]
}

fn ban(xdp: &mut XdpEnforcer, prefix: &str, left: Option<Duration>) {
    let drop = Drop { prefix: prefix.parse().unwrap(), left };
    xdp.ban(&[drop]).into_iter().collect::<Result<Vec<()>, EnforceError>>().unwrap();
}

fn unban(xdp: &mut XdpEnforcer, prefix: &str) {
    xdp.unban(&[prefix.parse().unwrap()]).into_iter().collect::<Result<Vec<()>, EnforceError>>().unwrap();
}

fn close(xdp: XdpEnforcer) {
    Box::new(xdp).close(false).unwrap();
}

/// What was counted since `before`; each verdict is two runs.
fn since(xdp: &mut XdpEnforcer, before: Totals) -> Totals {
    let now = xdp.coverage().totals;
    Totals {
        dropped_host: now.dropped_host - before.dropped_host,
        dropped_prefix: now.dropped_prefix - before.dropped_prefix,
        dropped_bytes: now.dropped_bytes - before.dropped_bytes,
        passed: now.passed - before.passed,
        allowlisted: now.allowlisted - before.allowlisted,
        malformed: now.malformed - before.malformed,
        not_ip: now.not_ip - before.not_ip,
    }
}

#[test]
fn nothing_below_the_source_address_hides_it() {
    let Some(rig) = Rig::new() else { return };
    let (mut xdp, _) = rig.open(&rig.settings()).unwrap();
    ban(&mut xdp, "198.51.100.7/32", None);
    ban(&mut xdp, "2001:db8::7/128", None);
    let (bad4, good4) = (Ipv4Addr::new(198, 51, 100, 7), Ipv4Addr::new(198, 51, 100, 8));
    let (bad6, good6): (Ipv6Addr, Ipv6Addr) = ("2001:db8::7".parse().unwrap(), "2001:db8::8".parse().unwrap());
    let mut cases = Vec::new();
    for (source, want) in [(bad4, DROP), (good4, PASS)] {
        for options in [0, 1, 10] {
            cases.push((format!("{source}, {options} words of options"), 0x0800, v4(source, options, 0), want));
        }
        for fragment in [0x2000, 0x2001, 0x0042] {
            cases.push((format!("{source}, fragment {fragment:#x}"), 0x0800, v4(source, 0, fragment), want));
        }
    }
    for (source, want) in [(bad6, DROP), (good6, PASS)] {
        // TCP, hop-by-hop, routing, fragment, ESP, destination options, none, one nobody knows.
        for next in [6, 0, 43, 44, 50, 60, 59, 253] {
            cases.push((format!("{source}, next header {next}"), 0x86dd, v6(source, next), want));
        }
    }
    for (what, ethertype, payload, want) in &cases {
        for tags in [&[][..], &[0x8100], &[0x88a8], &[0x88a8, 0x8100], &[0x8100, 0x8100], &[0x9100, 0x8100]] {
            assert_eq!(verdict(&mut xdp, &frame(tags, *ethertype, payload)), *want, "{what} below {tags:x?}");
        }
        // Nothing here terminates three tags, so nothing behind them is ours.
        assert_eq!(verdict(&mut xdp, &frame(&[0x88a8, 0x8100, 0x8100], *ethertype, payload)), PASS, "{what}, 3 tags");
    }
    close(xdp);
}

#[test]
fn a_packet_may_end_anywhere() {
    let Some(rig) = Rig::new() else { return };
    let (mut xdp, _) = rig.open(&rig.settings()).unwrap();
    ban(&mut xdp, "198.51.100.7/32", None);
    ban(&mut xdp, "2001:db8::7/128", None);
    for tags in [&[][..], &[0x8100], &[0x88a8, 0x8100]] {
        let at = 14 + 4 * tags.len();
        for (ethertype, payload, header) in [
            (0x0800, v4(Ipv4Addr::new(198, 51, 100, 7), 0, 0), 20),
            (0x86dd, v6("2001:db8::7".parse().unwrap(), 6), 40),
        ] {
            let whole = frame(tags, ethertype, &payload);
            // The kernel takes no test packet shorter than an Ethernet header.
            for len in 14..=whole.len() {
                let before = xdp.coverage().totals;
                let want = if len >= at + header { DROP } else { PASS };
                assert_eq!(verdict(&mut xdp, &whole[..len]), want, "{len} bytes, {} tags", tags.len());
                let counted = since(&mut xdp, before);
                let drops = if want == DROP { 2 } else { 0 };
                assert_eq!((counted.dropped_host, counted.malformed), (drops, 2 - drops), "{len} bytes");
            }
        }
    }
    close(xdp);
}

#[test]
fn what_is_not_ip_passes_and_is_counted() {
    let Some(rig) = Rig::new() else { return };
    let (mut xdp, _) = rig.open(&rig.settings()).unwrap();
    ban(&mut xdp, "0.0.0.0/0", None);
    let before = xdp.coverage().totals;
    for packet in [
        frame(&[], 0x0806, &[0; 28]),
        frame(&[0x8100], 0x0806, &[0; 28]),
        frame(&[], 0x88cc, &[0; 40]),
        frame(&[], 46, &[0; 46]),
        frame(&[0x8100, 0x8100, 0x8100], 0x0800, &[0; 40]),
    ] {
        assert_eq!(verdict(&mut xdp, &packet), PASS);
    }
    // The interface's own neighbours (router solicitations) may pass meanwhile.
    let counted = Totals { passed: 0, ..since(&mut xdp, before) };
    assert_eq!(counted, Totals { not_ip: 10, ..Totals::default() });
    close(xdp);
}

#[test]
fn bans_end_by_the_kernels_own_clock() {
    let Some(rig) = Rig::new() else { return };
    let (mut xdp, _) = rig.open(&rig.settings()).unwrap();
    ban(&mut xdp, "198.51.100.1/32", Some(Duration::ZERO));
    ban(&mut xdp, "198.51.100.2/32", Some(Duration::from_secs(3600)));
    ban(&mut xdp, "198.51.100.3/32", None);
    ban(&mut xdp, "198.51.100.4/32", Some(Duration::MAX));
    for (source, want) in
        [("198.51.100.1", PASS), ("198.51.100.2", DROP), ("198.51.100.3", DROP), ("198.51.100.4", DROP)]
    {
        assert_eq!(verdict(&mut xdp, &from(source)), want, "{source}");
    }
    // What has ended is not held, and is cleared away.
    let mut held: Vec<IpNet> = xdp.banned().unwrap().into_iter().map(|held| held.prefix).collect();
    held.sort();
    assert_eq!(held.len(), 3);
    // Prolonged, shortened: the counters stay.
    ban(&mut xdp, "198.51.100.2/32", Some(Duration::ZERO));
    assert_eq!(verdict(&mut xdp, &from("198.51.100.2")), PASS);
    ban(&mut xdp, "198.51.100.2/32", Some(Duration::from_secs(60)));
    assert_eq!(verdict(&mut xdp, &from("198.51.100.2")), DROP);
    let counted = xdp.banned().unwrap().into_iter().find(|h| h.prefix == "198.51.100.2/32".parse().unwrap());
    assert_eq!(counted.map(|held| held.packets), Some(4));
    close(xdp);
}

#[test]
fn allow_goes_before_every_ban() {
    let Some(rig) = Rig::new() else { return };
    let (mut xdp, _) = rig.open(&rig.settings()).unwrap();
    ban(&mut xdp, "198.51.100.0/24", None);
    ban(&mut xdp, "198.51.100.7/32", None);
    ban(&mut xdp, "2001:db8::/64", None);
    let allow: Vec<IpNet> = ["198.51.100.7", "198.51.100.64/26", "2001:db8::7/128"]
        .map(|text| text.parse().unwrap_or_else(|_| IpNet::from(text.parse::<IpAddr>().unwrap())))
        .to_vec();
    xdp.set_never_drop(&allow).unwrap();
    let before = xdp.coverage().totals;
    let bytes = from("198.51.100.6").len() as u64;
    for (source, want) in [
        ("198.51.100.6", DROP),
        ("198.51.100.7", PASS),
        ("198.51.100.63", DROP),
        ("198.51.100.64", PASS),
        ("198.51.100.127", PASS),
        ("198.51.100.128", DROP),
        ("2001:db8::7", PASS),
        ("2001:db8::8", DROP),
    ] {
        assert_eq!(verdict(&mut xdp, &from(source)), want, "{source}");
    }
    let counted = since(&mut xdp, before);
    assert_eq!((counted.allowlisted, counted.dropped_prefix, counted.dropped_host), (8, 6, 2));
    assert_eq!(counted.dropped_bytes, 6 * bytes + 2 * from("2001:db8::8").len() as u64);
    // Taken off the list again.
    xdp.set_never_drop(&[]).unwrap();
    assert_eq!(verdict(&mut xdp, &from("198.51.100.7")), DROP);
    close(xdp);
}

#[test]
fn an_allow_list_that_does_not_fit_holds_for_what_did() {
    let Some(rig) = Rig::new() else { return };
    let (mut xdp, _) = rig.open(&rig.settings()).unwrap();
    let hosts = |first: u32, count: u32| -> Vec<IpNet> {
        (first..first + count).map(|n| IpNet::from(IpAddr::from((0x1400_0000 + n).to_be_bytes()))).collect()
    };
    ban(&mut xdp, "20.0.0.0/8", None);
    xdp.set_never_drop(&hosts(0, 16_500)).expect_err("the table has 16,384 places");
    let text = xdp.snapshot_text().unwrap();
    let never: Vec<&str> = text.lines().filter_map(|line| line.strip_prefix("never ")?.strip_suffix("/32")).collect();
    assert_eq!(never.len(), 16_384);
    for source in never.iter().step_by(3000) {
        assert_eq!(verdict(&mut xdp, &from(source)), PASS, "{source}");
    }
    // A list that fits in the place of a full one.
    xdp.set_never_drop(&hosts(65_536, 16_384)).unwrap();
    assert_eq!(verdict(&mut xdp, &from("20.1.0.7")), PASS);
    assert_eq!(verdict(&mut xdp, &from("20.0.0.7")), DROP);
    close(xdp);
}

#[test]
fn wider_and_narrower_bans_live_side_by_side() {
    let Some(rig) = Rig::new() else { return };
    let (mut xdp, _) = rig.open(&rig.settings()).unwrap();
    // A narrower ban that has ended does not hide the wider one around it, in tries either.
    ban(&mut xdp, "10.0.0.0/8", None);
    ban(&mut xdp, "10.1.0.0/16", Some(Duration::ZERO));
    ban(&mut xdp, "10.1.1.0/24", Some(Duration::ZERO));
    ban(&mut xdp, "10.1.1.1/32", Some(Duration::ZERO));
    ban(&mut xdp, "2001:db8::/32", None);
    ban(&mut xdp, "2001:db8:1::/48", Some(Duration::ZERO));
    ban(&mut xdp, "2001:db8:1:1::/64", Some(Duration::ZERO));
    ban(&mut xdp, "2001:db8:1:1::1/128", Some(Duration::ZERO));
    for source in ["10.1.1.1", "10.1.1.2", "10.1.2.1", "10.9.9.9", "2001:db8:1:1::1", "2001:db8:1:1::2"] {
        assert_eq!(verdict(&mut xdp, &from(source)), DROP, "{source}");
    }
    for source in ["11.0.0.0", "9.255.255.255", "2001:db7::1"] {
        assert_eq!(verdict(&mut xdp, &from(source)), PASS, "{source}");
    }
    unban(&mut xdp, "10.0.0.0/8");
    assert_eq!(verdict(&mut xdp, &from("10.1.1.1")), PASS);
    // A /64 and a /128 in it are two bans; lifting one leaves the other.
    ban(&mut xdp, "2001:db9::/64", None);
    ban(&mut xdp, "2001:db9::1/128", None);
    unban(&mut xdp, "2001:db9::/64");
    assert_eq!(verdict(&mut xdp, &from("2001:db9::1")), DROP);
    assert_eq!(verdict(&mut xdp, &from("2001:db9::2")), PASS);
    // The subnet-router anycast address and its /64 are not the same thing.
    ban(&mut xdp, "2001:dba::/64", None);
    unban(&mut xdp, "2001:dba::/128");
    assert_eq!(verdict(&mut xdp, &from("2001:dba::5")), DROP);
    close(xdp);
}

#[test]
fn monitoring_and_off_pass_everything() {
    let Some(rig) = Rig::new() else { return };
    let (mut xdp, _) = rig.open(&rig.settings()).unwrap();
    ban(&mut xdp, "198.51.100.7/32", None);
    assert_eq!(verdict(&mut xdp, &from("198.51.100.7")), DROP);
    xdp.set_monitor(true).unwrap();
    assert_eq!(verdict(&mut xdp, &from("198.51.100.7")), PASS);
    assert_eq!(xdp.banned().unwrap()[0].packets, 4, "monitoring counts what it would drop");
    xdp.set_monitor(false).unwrap();
    assert_eq!(verdict(&mut xdp, &from("198.51.100.7")), DROP);
    // Off works beside the running daemon, which says so once and does not turn it on again.
    assert!(anomaly::enforce::xdp::off(&rig.pin_dir()).unwrap());
    assert_eq!(verdict(&mut xdp, &from("198.51.100.7")), PASS);
    assert_eq!(rig.on_host(|| xdp.maintain()), [Incident::Off]);
    assert_eq!(rig.on_host(|| xdp.maintain()), []);
    ban(&mut xdp, "198.51.100.8/32", None);
    assert_eq!(verdict(&mut xdp, &from("198.51.100.8")), PASS);
    // The next start turns it on again.
    drop(xdp);
    let (mut xdp, _) = rig.open(&rig.settings()).unwrap();
    assert_eq!(verdict(&mut xdp, &from("198.51.100.7")), DROP);
    assert_eq!(verdict(&mut xdp, &from("198.51.100.8")), DROP);
    close(xdp);
    assert!(!anomaly::enforce::xdp::off(&rig.pin_dir()).unwrap(), "nothing is left to switch");
}

#[test]
fn drops_end_when_the_daemon_has_been_gone_for_too_long() {
    let Some(rig) = Rig::new() else { return };
    let mut settings = rig.settings();
    settings.grace = Duration::from_millis(300);
    let (mut xdp, _) = rig.open(&settings).unwrap();
    ban(&mut xdp, "198.51.100.7/32", None);
    assert_eq!(verdict(&mut xdp, &from("198.51.100.7")), DROP);
    // Real time: the program reads the kernel's clock.
    std::thread::sleep(Duration::from_millis(400));
    assert_eq!(verdict(&mut xdp, &from("198.51.100.7")), PASS, "nobody was heard of");
    rig.on_host(|| xdp.maintain());
    assert_eq!(verdict(&mut xdp, &from("198.51.100.7")), DROP, "a heartbeat revives it");
    drop(xdp);
    settings.grace = Duration::ZERO;
    let (mut xdp, _) = rig.open(&settings).unwrap();
    std::thread::sleep(Duration::from_millis(50));
    assert_eq!(verdict(&mut xdp, &from("198.51.100.7")), DROP, "zero is never");
    close(xdp);
}

#[test]
fn jumbo_frames_in_several_buffers_are_read_and_counted() {
    let Some(rig) = Rig::new() else { return };
    let (mut xdp, _) = rig.open(&rig.settings()).unwrap();
    ban(&mut xdp, "198.51.100.7/32", None);
    let mut jumbo = from("198.51.100.7");
    jumbo.resize(9014, 0);
    let program = xdp.program(true).unwrap();
    let run = |program: &mut aya::programs::Xdp, data: &[u8]| {
        program.test_run(TestRunOptions { data_in: Some(data), ..TestRunOptions::new() }).unwrap().return_value
    };
    assert_eq!(run(program, &jumbo), DROP);
    assert_eq!(xdp.banned().unwrap()[0].bytes, 9014);
    let mut other = from("198.51.100.8");
    other.resize(9014, 0);
    assert_eq!(run(xdp.program(true).unwrap(), &other), PASS);
    close(xdp);
}

#[test]
fn no_count_is_lost_when_two_processors_drop_at_once() {
    use rustix::thread::{CpuSet, sched_getaffinity, sched_setaffinity};
    const EACH: u32 = 1_000_000;
    let Some(rig) = Rig::new() else { return };
    let allowed = sched_getaffinity(None).unwrap();
    let cpus: Vec<usize> = (0..CpuSet::MAX_CPU).filter(|cpu| allowed.is_set(*cpu)).take(2).collect();
    let [first, second] = cpus[..] else {
        crate::lab::skip("no_count_is_lost_when_two_processors_drop_at_once", "there is one processor only");
        return;
    };
    let (mut xdp, _) = rig.open(&rig.settings()).unwrap();
    // One of each table: an address, a /64, wider ones.
    for (prefix, source) in
        [("198.51.100.7/32", "198.51.100.7"), ("198.18.0.0/15", "198.19.0.7"), ("2001:db8::/64", "2001:db8::7")]
    {
        ban(&mut xdp, prefix, None);
        let packet = from(source);
        let program = &*xdp.program(true).unwrap();
        let start = std::sync::Barrier::new(2);
        std::thread::scope(|scope| {
            for cpu in [first, second] {
                let (start, packet) = (&start, &packet);
                scope.spawn(move || {
                    let mut only = CpuSet::new();
                    only.set(cpu);
                    sched_setaffinity(None, &only).unwrap();
                    start.wait();
                    let options = TestRunOptions { data_in: Some(packet), repeat: EACH, ..TestRunOptions::new() };
                    assert_eq!(program.test_run(options).unwrap().return_value, DROP);
                });
            }
        });
        let held = xdp.banned().unwrap().into_iter().find(|held| held.prefix == prefix.parse().unwrap()).unwrap();
        let packets = 2 * u64::from(EACH);
        assert_eq!((held.packets, held.bytes), (packets, packets * packet.len() as u64), "{prefix}");
    }
    let totals = xdp.coverage().totals;
    assert_eq!(totals.dropped_host + totals.dropped_prefix, 3 * 2 * u64::from(EACH));
    close(xdp);
}

/// What the program should do, in ten lines.
fn reference(source: IpAddr, bans: &[(IpNet, bool)], allow: &[IpNet]) -> u32 {
    let covered = bans.iter().any(|(ban, live)| *live && ban.contains(&source));
    if covered && !allow.iter().any(|entry| entry.contains(&source)) { DROP } else { PASS }
}

/// Few enough addresses that prefixes meet.
fn address() -> impl Strategy<Value = IpAddr> {
    prop_oneof![
        (0u8..2, 0u8..3, 0u8..4).prop_map(|(b, c, d)| IpAddr::from([10, b, c, d])),
        (0u16..2, 0u16..3, 0u16..3).prop_map(|(b, c, d)| IpAddr::from([0x2001, 0xdb8, b, c, 0, 0, 0, d])),
    ]
}

fn prefix() -> impl Strategy<Value = IpNet> {
    (address(), any::<prop::sample::Index>()).prop_map(|(address, n)| {
        let lens: &[u8] =
            if address.is_ipv4() { &[0, 8, 15, 16, 24, 30, 31, 32] } else { &[0, 32, 48, 63, 64, 65, 127, 128] };
        IpNet::new(address, lens[n.index(lens.len())]).unwrap().trunc()
    })
}

#[test]
fn it_agrees_with_a_plain_filter() {
    let Some(rig) = Rig::new() else { return };
    let (xdp, _) = rig.open(&rig.settings()).unwrap();
    let xdp = std::cell::RefCell::new(xdp);
    let config = ProptestConfig { cases: 200, failure_persistence: None, ..ProptestConfig::default() };
    let mut runner = proptest::test_runner::TestRunner::new_with_rng(
        config,
        proptest::test_runner::TestRng::deterministic_rng(proptest::test_runner::RngAlgorithm::ChaCha),
    );
    let cases = (
        prop::collection::hash_map(prefix(), any::<bool>(), 0..12),
        prop::collection::vec(prefix(), 0..4),
        prop::collection::vec(address(), 1..20),
    );
    runner
        .run(&cases, |(bans, allow, sources)| {
            let mut xdp = xdp.borrow_mut();
            let bans: Vec<(IpNet, bool)> = bans.into_iter().collect();
            let drops: Vec<Drop> = bans
                .iter()
                .map(|(prefix, live)| Drop { prefix: *prefix, left: (!live).then_some(Duration::ZERO) })
                .collect();
            xdp.set_never_drop(&allow).unwrap();
            for answer in xdp.ban(&drops) {
                answer.unwrap();
            }
            for source in sources {
                let packet = from(&source.to_string());
                prop_assert_eq!(verdict(&mut xdp, &packet), reference(source, &bans, &allow), "{}", source);
            }
            for answer in xdp.unban(&bans.iter().map(|(prefix, _)| *prefix).collect::<Vec<_>>()) {
                answer.unwrap();
            }
            prop_assert!(xdp.banned().unwrap().is_empty());
            Ok(())
        })
        .unwrap();
    close(xdp.into_inner());
}
