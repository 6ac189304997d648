//! Bans by hand: nothing but an unban, time, and `replace` makes one weaker.

use std::collections::HashMap;
use std::net::IpAddr;
use std::time::Duration;

use anomaly::engine::{Ban, BanLength, Command, Decision, Engine, Input, Kept, Origin, Output, Settings};
use anomaly::record::Record;
use anomaly::report::Reason as _;
use anomaly::time::Timestamp;
use ipnet::IpNet;
use proptest::prelude::*;

const START: i64 = 1_767_225_600;

fn net(text: &str) -> IpNet {
    text.parse().expect("a prefix")
}

struct Desk {
    engine: Engine,
    now: i64,
}

impl Desk {
    fn new() -> Self {
        let settings = Settings { warmup_secs: 0, brake_per_minute: 0, ..Settings::default() };
        Self { engine: Engine::new(settings, 1), now: START }
    }

    fn now(&self) -> Timestamp {
        Timestamp::from_secs(self.now)
    }

    fn ban(&mut self, prefix: &str, length: Option<BanLength>, reason: &str, replace: bool) -> Output {
        let command = Command::Ban { prefix: net(prefix), length, reason: reason.into(), force: true, replace };
        let mut out = Vec::new();
        self.engine.handle(self.now(), Input::Command(command), &mut out);
        out.pop().expect("an outcome")
    }

    /// Enough for a ban by the detector.
    fn flood(&mut self, client: IpAddr) -> Vec<Output> {
        let mut out = Vec::new();
        let record = Record { method: b"GET", status: 200, ..Record::new(client, self.now()) }.with_path(b"/");
        for _ in 0..200 {
            self.engine.handle(self.now(), Input::Record(&record), &mut out);
        }
        out
    }

    fn pass(&mut self, secs: i64) {
        self.now += secs;
        self.engine.handle(self.now(), Input::Tick { caught_up: true }, &mut Vec::new());
    }

    /// When an address is free again: `None` where it is not banned, `Some(None)` never.
    fn free_at(&self, address: IpAddr) -> Option<Option<Timestamp>> {
        let bans = self.engine.snapshot(0).bans;
        let ends: Vec<_> = bans.iter().filter(|b| b.prefix.contains(&address)).map(|b| b.until).collect();
        if ends.contains(&None) { Some(None) } else { ends.into_iter().max() }
    }

    fn in_force(&self, prefix: &str) -> Ban {
        let bans = self.engine.snapshot(0).bans;
        Ban::clone(bans.iter().find(|ban| ban.prefix == net(prefix)).expect("a ban"))
    }
}

fn minutes(n: u64) -> Option<BanLength> {
    Some(BanLength::Timed(Duration::from_secs(60 * n)))
}

#[track_caller]
fn made(output: Output) -> Ban {
    match output {
        Output::Decision(Decision::Ban(ban)) => *ban,
        other => panic!("no ban: {other:?}"),
    }
}

#[track_caller]
fn kept(output: Output) -> Kept {
    match output {
        Output::Kept(kept) => kept,
        other => panic!("not kept: {other:?}"),
    }
}

#[test]
fn the_longer_ban_stays_with_its_reason_and_it_is_said() {
    let mut desk = Desk::new();
    let x = "192.0.2.1/32";
    let first = made(desk.ban(x, Some(BanLength::Permanent), "never again", false));
    desk.pass(10);
    for length in [minutes(30), Some(BanLength::Permanent), None] {
        let said = kept(desk.ban(x, length, "again", false));
        assert_eq!((&*said.ban, said.note.as_str(), said.at), (&first, "again", desk.now()));
        assert_eq!(said.until.is_none(), length == Some(BanLength::Permanent));
        assert_eq!(desk.in_force(x), first);
    }
    let replaced = made(desk.ban(x, minutes(30), "", true));
    assert_eq!((replaced.note.as_str(), replaced.duration_secs(), replaced.offence), ("never again", Some(1800), 1));
    // What is longer is made as before, no new offence, and its reason is forgotten no more than when it gets shorter.
    let longer = made(desk.ban(x, minutes(31), "", false));
    assert_eq!((longer.note.as_str(), longer.duration_secs(), longer.offence), ("never again", Some(1860), 1));
    assert_eq!(made(desk.ban(x, minutes(32), "scrapes", false)).note, "scrapes");
    assert_eq!(desk.engine.save().offences[0].count, 1);
}

#[test]
fn a_ban_by_hand_does_not_weaken_the_detectors() {
    let mut desk = Desk::new();
    let x = "192.0.2.1/32";
    let first = made(desk.flood(net(x).addr()).pop().expect("a ban"));
    assert_eq!((first.origin, first.duration_secs()), (Origin::Detector, Some(600)));
    assert_eq!(*kept(desk.ban(x, minutes(5), "by hand", false)).ban, first);
    assert_eq!(desk.in_force(x), first);
    let longer = made(desk.ban(x, minutes(60), "", false));
    assert_eq!((longer.origin, &longer.finding, longer.offence), (Origin::Operator, &first.finding, 1));
    let why = first.finding.expect("the numbers").reason();
    assert!(longer.reason().contains(&why) && longer.reason().contains("by hand"), "{}", longer.reason());
}

/// The ladder's next step may be shorter than what an operator has said.
#[test]
fn the_ladder_does_not_shorten_a_ban() {
    let mut desk = Desk::new();
    made(desk.ban("192.0.2.1/32", minutes(600), "", false));
    let said = kept(desk.ban("192.0.2.1/32", None, "", false));
    assert_eq!(said.until, Some(desk.now().plus(Duration::from_secs(1800))));
    assert_eq!(desk.engine.save().offences[0].count, 1, "and no offence is counted");
    assert_eq!(made(desk.ban("192.0.2.1/32", None, "", true)).offence, 2);
}

#[derive(Clone, Copy, Debug)]
enum Deed {
    Ban(u8, Option<u64>),
    Forever(u8),
    Flood(u8),
    Pass(u16),
    Restart,
}

/// Prefixes inside one another.
const PREFIXES: [&str; 10] = [
    "192.0.2.1/32",
    "192.0.2.2/32",
    "192.0.2.0/31",
    "192.0.2.0/24",
    "192.0.0.0/16",
    "2001:db8::1/128",
    "2001:db8::2/128",
    "2001:db8::/64",
    "2001:db8:0:1::/64",
    "2001:db8::/48",
];
const ADDRESSES: [&str; 6] = ["192.0.2.1", "192.0.2.2", "192.0.9.9", "2001:db8::1", "2001:db8::2", "2001:db8:0:1::1"];

fn deed() -> impl Strategy<Value = Deed> {
    let prefix = || 0..PREFIXES.len() as u8;
    prop_oneof![
        4 => (prefix(), proptest::option::of(1u64..300)).prop_map(|(n, minutes)| Deed::Ban(n, minutes)),
        1 => prefix().prop_map(Deed::Forever),
        3 => (0..ADDRESSES.len() as u8).prop_map(Deed::Flood),
        3 => (1u16..4000).prop_map(Deed::Pass),
        1 => Just(Deed::Restart),
    ]
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 100, ..ProptestConfig::default() })]

    /// By hand or by the detector, of an address, of what is around it or inside it, before or after a restart: no ban
    /// sets anybody free sooner.
    #[test]
    fn no_ban_makes_another_one_weaker(deeds in proptest::collection::vec(deed(), 1..60)) {
        let mut desk = Desk::new();
        let addresses: Vec<IpAddr> = ADDRESSES.iter().map(|a| a.parse().expect("an address")).collect();
        let mut promised: HashMap<IpAddr, Option<Timestamp>> = HashMap::new();
        for deed in deeds {
            match deed {
                Deed::Ban(n, length) => {
                    let outcome = desk.ban(PREFIXES[usize::from(n)], length.and_then(minutes), "", false);
                    prop_assert!(matches!(outcome, Output::Decision(_) | Output::Kept(_)), "{outcome:?}");
                }
                Deed::Forever(n) => drop(desk.ban(PREFIXES[usize::from(n)], Some(BanLength::Permanent), "", false)),
                Deed::Flood(n) => drop(desk.flood(addresses[usize::from(n)])),
                Deed::Pass(secs) => desk.pass(secs.into()),
                Deed::Restart => {
                    let state = desk.engine.save();
                    desk.engine = Desk::new().engine;
                    prop_assert_eq!(desk.engine.restore(state), Ok(()));
                }
            }
            let now = desk.now();
            promised.retain(|_, end| end.is_none_or(|end| end > now));
            for address in &addresses {
                let free_at = desk.free_at(*address);
                if let Some(end) = promised.get(address) {
                    let lasts = match (free_at, end) {
                        (Some(None), _) => true,
                        (Some(Some(free_at)), Some(end)) => free_at >= *end,
                        _ => false,
                    };
                    prop_assert!(lasts, "{address} was banned until {end:?}, and after {deed:?} until {free_at:?}");
                }
                if let Some(end) = free_at {
                    promised.insert(*address, end);
                }
            }
        }
    }
}
