//! Clients that the detector spares and operators need not.

use std::net::IpAddr;

use anomaly::engine::{Command, Decision, Engine, Input, Output, Settings};
use anomaly::record::Record;
use anomaly::time::Timestamp;
use ipnet::IpNet;

const START: i64 = 1_767_225_600;

fn now(secs: i64) -> Timestamp {
    Timestamp::from_secs(START + secs)
}

/// Warm, and with these clients spared.
fn engine(spared: &[&str]) -> Engine {
    let spared = spared.iter().map(|prefix| prefix.parse().expect("a prefix")).collect();
    let mut engine = Engine::new(Settings { spared, ..Settings::default() }, 1);
    ask(&mut engine, 0, "198.51.100.200", 1);
    engine.handle(now(600), Input::Tick { caught_up: true }, &mut Vec::new());
    engine
}

/// The prefixes that are banned for these requests.
fn ask(engine: &mut Engine, at: i64, client: &str, requests: u32) -> Vec<IpNet> {
    let client: IpAddr = client.parse().expect("an address");
    let record = Record { method: b"GET", status: 200, ..Record::new(client, now(at)) }.with_path(b"/");
    let mut out = Vec::new();
    (0..requests).for_each(|_| engine.handle(now(at), Input::Record(&record), &mut out));
    bans(&out)
}

fn bans(out: &[Output]) -> Vec<IpNet> {
    let ban = |output: &Output| match output {
        Output::Decision(Decision::Ban(ban)) => Some(ban.prefix),
        _ => None,
    };
    out.iter().filter_map(ban).collect()
}

#[test]
fn a_spared_client_is_banned_by_hand_only_and_its_neighbours_as_ever() {
    let mut engine = engine(&["203.0.113.9/32", "2001:db8::9/128"]);
    assert_eq!(ask(&mut engine, 600, "203.0.113.9", 1000), []);
    assert_eq!(ask(&mut engine, 600, "203.0.113.8", 1000), ["203.0.113.8/32".parse().expect("a prefix")]);
    // Its own requests are not held against its /64; those of the others are, and by one count.
    assert_eq!(ask(&mut engine, 600, "2001:db8::9", 1000), []);
    assert_eq!(ask(&mut engine, 600, "2001:db8::1", 60), []);
    assert_eq!(ask(&mut engine, 600, "2001:db8::2", 60), ["2001:db8::/64".parse().expect("a prefix")]);

    let command = |prefix: &str| Command::Ban {
        prefix: prefix.parse().expect("a prefix"),
        length: None,
        reason: "by hand".into(),
        force: false,
        replace: false,
    };
    let mut out = Vec::new();
    engine.handle(now(601), Input::Command(command("203.0.113.9/32")), &mut out);
    assert_eq!(bans(&out).len(), 1, "{out:?}");
    // New settings that spare it do not lift the ban.
    let spared = vec!["203.0.113.9/32".parse().expect("a prefix")];
    let settings = Settings { spared, ..Settings::default() };
    let mut out = Vec::new();
    engine.handle(now(602), Input::Command(Command::Configure(Box::new(settings))), &mut out);
    assert!(!out.iter().any(|output| matches!(output, Output::Decision(Decision::Unban(_)))), "{out:?}");
}

#[test]
fn who_is_spared_no_longer_is_judged_by_what_follows() {
    let mut engine = engine(&["203.0.113.9/32"]);
    assert_eq!(ask(&mut engine, 600, "203.0.113.9", 1000), []);
    let settings = Command::Configure(Box::default());
    engine.handle(now(601), Input::Command(settings), &mut Vec::new());
    assert_eq!(ask(&mut engine, 601, "203.0.113.9", 1), []);
    assert_eq!(ask(&mut engine, 602, "203.0.113.9", 200).len(), 1);
}
