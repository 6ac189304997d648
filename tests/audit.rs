//! The audit log and the firewall snapshots: whole lines, bounded files, full disks.

use std::collections::BTreeMap;
use std::fs;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use anomaly::audit::{Audit, Change, Event, GENERATIONS, Newest, Snapshots};
use anomaly::engine::{
    Ban, BaselineUpdate, Braked, Finding, Grade, Kept, Level, LevelAccepted, LimitSource, NotEffective, Origin, Rule,
    Scope, Source, State, Unban,
};
use anomaly::store::{BanState, Recorded, Store};
use anomaly::time::Timestamp;
use ipnet::IpNet;
use serde_json::{Value, json};

use crate::store_crash::SmallDisk;

fn at(secs: i64) -> Timestamp {
    Timestamp::from_secs(1_777_281_951 + secs)
}

fn net(text: &str) -> IpNet {
    text.parse().expect("a valid prefix")
}

fn ban(note: &str) -> Ban {
    Ban {
        prefix: net("203.0.113.10/32"),
        at: at(0),
        until: Some(at(600)),
        offence: 1,
        origin: Origin::Operator,
        finding: None,
        note: note.into(),
        in_past: false,
    }
}

/// The end of a ban.
fn ended(ban: &Ban, secs: i64, origin: Origin) -> Unban {
    Unban { prefix: ban.prefix, at: at(secs), offence: ban.offence, origin, ban: Arc::new(ban.clone()) }
}

fn lines(path: &Path) -> Vec<Value> {
    let text = fs::read_to_string(path).expect("an audit log");
    assert!(text.ends_with('\n'));
    text.lines().map(|l| serde_json::from_str(l).unwrap_or_else(|e| panic!("{e}: {l:?}"))).collect()
}

#[test]
fn a_ban_is_one_line_with_the_documented_keys() {
    let dir = tempfile::tempdir().expect("a directory");
    let path = dir.path().join("log/audit.jsonl");
    let mut audit = Audit::open(&path, 1 << 20);
    let ban = ban("bad\n{\"event\":\"off\"}\u{1b}[2J\u{202e}");
    audit.write(at(1), "xdp", &Event::Ban { ban: &ban, error: None }).expect("written");
    audit.write(at(2), "xdp", &Event::Ban { ban: &ban, error: Some("EPERM") }).expect("written");
    let unban = ended(&ban, 600, Origin::Detector);
    audit.write(at(601), "xdp", &Event::Unban { unban: &unban, packets: 7, bytes: 420, error: None }).expect("written");
    let all = lines(&path);
    assert_eq!(all.len(), 3);
    assert_eq!(
        all[0],
        serde_json::json!({
            "ts": "2026-04-27T09:25:52Z", "event": "ban", "enforcer": "xdp", "ok": true, "error": null,
            "time": "2026-04-27T09:25:51Z", "action": "ban", "ip": "203.0.113.10", "offence": 1, "duration_secs": 600,
            "until": "2026-04-27T09:35:51Z", "origin": "operator", "in_past": false,
            "reason": "bad\\n{\"event\":\"off\"}\\u{1b}[2J\\u{202e}", "category": "manual",
            "sentence": "203.0.113.10 was banned by hand: bad\\n{\"event\":\"off\"}\\u{1b}[2J\\u{202e}",
        })
    );
    assert_eq!((&all[1]["ok"], &all[1]["error"]), (&Value::Bool(false), &Value::from("EPERM")));
    assert_eq!((&all[2]["packets"], &all[2]["event"]), (&Value::from(7), &Value::from("unban")));
}

fn level(scope: Scope) -> Level {
    Level { scope, mean: 41.0, stddev: 9.5, error_rate: 0.0123, samples: 1800, source: Source::Hour }
}

fn finding(scope: Scope) -> Finding {
    Finding {
        at: at(0),
        rule: Rule::ZScore,
        error_surge: false,
        rate: 930.1,
        baseline: level(scope),
        z_score: 93.6,
        signal: None,
        limit: 66.0,
        limit_source: LimitSource::Learned,
        grade: Grade::Likely,
        requests: 55_806,
        errors: 3,
        samples: Vec::new(),
    }
}

#[test]
fn every_event_has_its_name_and_its_facts() {
    let dir = tempfile::tempdir().expect("a directory");
    let path = dir.path().join("audit.jsonl");
    let mut audit = Audit::open(&path, 1 << 20);
    let update = BaselineUpdate { at: at(0), global: level(Scope::Global), ip: level(Scope::Ip) };
    let accepted =
        LevelAccepted { at: at(0), scope: Scope::Global, before: level(Scope::Global), after: level(Scope::Global) };
    let braked = Braked { prefix: net("203.0.113.10/32"), finding: finding(Scope::Ip), bans_last_minute: 21 };
    let proof = NotEffective {
        prefix: net("2001:db8::/64"),
        client: "2001:db8::1".parse().expect("an address"),
        peer: None,
        banned_at: at(-30),
        at: at(0),
        records: 5,
    };
    let many: Vec<IpNet> = (0..=255u8).map(|n| net(&format!("10.0.0.{n}/32"))).collect();
    let global = finding(Scope::Global);
    let mut longer = ban("scrapes");
    longer.until = None;
    let kept = Kept { at: at(60), ban: Arc::new(longer), until: Some(at(3660)), note: "again".into() };
    let events = [
        (Event::GlobalAnomaly(&global), "global_anomaly", json!({ "rate": 930.1, "z_score": 93.6, "rule": "z_score" })),
        (Event::Baseline(&update), "baseline", json!({ "time": "2026-04-27T09:25:51Z" })),
        (
            Event::Fallback { interface: Some("eth0"), from: "xdp native", to: "xdp generic", reason: "EOPNOTSUPP" },
            "fallback",
            json!({ "interface": "eth0", "from": "xdp native", "to": "xdp generic", "reason": "EOPNOTSUPP", "ok": true }),
        ),
        (
            Event::EnforceFailed { prefix: Some(many[7]), error: "EPERM" },
            "enforce_failed",
            json!({ "ip": "10.0.0.7", "ok": false, "error": "EPERM" }),
        ),
        (
            Event::NotEffective { proof: &proof, reason: "another interface" },
            "not_effective",
            json!({ "ip": "2001:db8::/64", "client": "2001:db8::1", "peer": null, "records": 5, "ok": false }),
        ),
        (
            Event::Repaired { missing: &many, orphans: &[] },
            "repaired",
            json!({ "missing_count": 256, "orphans": [], "orphans_count": 0 }),
        ),
        (
            Event::MapFull { gave_way: &many[..1], capacity: 9 },
            "map_full",
            json!({ "gave_way": ["10.0.0.0"], "ok": false }),
        ),
        (Event::Braked(&braked), "braked", json!({ "ip": "203.0.113.10", "bans_last_minute": 21, "rate": 930.1 })),
        (Event::LevelAccepted(&accepted), "level_accepted", json!({ "time": "2026-04-27T09:25:51Z" })),
        (
            Event::Degraded { what: "slack", reason: "HTTP 500", recovered: false },
            "degraded",
            json!({ "what": "slack", "ok": false, "error": "HTTP 500", "recovered": false }),
        ),
        (
            Event::Degraded { what: "slack", reason: "", recovered: true },
            "degraded",
            json!({ "ok": true, "error": null, "recovered": true }),
        ),
        (
            Event::BanKept(&kept),
            "ban_kept",
            json!({
                "time": "2026-04-27T09:26:51Z", "ip": "203.0.113.10", "offence": 1, "until": null, "origin": "operator", "ok": true,
                "reason": "scrapes", "asked_until": "2026-04-27T10:26:51Z", "asked_reason": "again",
            }),
        ),
        (Event::Off, "off", json!({ "ok": true })),
        (
            Event::Started { version: "0.1.0", restored_bans: 3 },
            "started",
            json!({ "version": "0.1.0", "restored_bans": 3 }),
        ),
        (Event::Stopped { keep: true }, "stopped", json!({ "keep": true })),
        (Event::ConfigReloaded { error: Some("line 3") }, "config_reloaded", json!({ "ok": false, "error": "line 3" })),
    ];
    for (event, ..) in &events {
        audit.write(at(1), "iptables", event).expect("written");
    }
    for (line, (_, name, facts)) in lines(&path).iter().zip(&events) {
        assert_eq!(line["event"], *name);
        assert_eq!((&line["ts"], &line["enforcer"]), (&json!("2026-04-27T09:25:52Z"), &json!("iptables")));
        for (key, value) in facts.as_object().expect("facts") {
            assert_eq!(&line[key], value, "{key} of {line}");
        }
    }
    let all = lines(&path);
    assert_eq!(all.len(), events.len());
    assert_eq!(
        all[1]["global"],
        json!({ "scope": "global", "mean": 41.0, "stddev": 9.5, "source": "hour", "error_rate": 0.012, "samples": 1800 })
    );
    assert_eq!(all[5]["missing"].as_array().map(Vec::len), Some(100), "a line has a bound");
}

#[test]
fn files_rotate_by_size_and_the_oldest_goes() {
    let dir = tempfile::tempdir().expect("a directory");
    let path = dir.path().join("audit.jsonl");
    let mut audit = Audit::open(&path, 2000);
    for n in 0..200 {
        audit.write(at(n), "xdp", &Event::Started { version: "0.1.0", restored_bans: n as usize }).expect("written");
    }
    let generation = |n: u32| dir.path().join(format!("audit.jsonl.{n}"));
    let mut newest_first = lines(&path);
    newest_first.reverse();
    for n in 1..=GENERATIONS {
        let mut older = lines(&generation(n));
        assert!(fs::metadata(generation(n)).expect("a file").len() <= 2000);
        older.reverse();
        newest_first.extend(older);
    }
    assert!(!generation(GENERATIONS + 1).exists());
    let numbers: Vec<u64> = newest_first.iter().map(|l| l["restored_bans"].as_u64().expect("a number")).collect();
    assert!(numbers.iter().enumerate().all(|(n, number)| *number == 199 - n as u64), "none is missing: {numbers:?}");
}

#[test]
fn half_a_line_of_a_crash_does_not_spoil_the_next() {
    let dir = tempfile::tempdir().expect("a directory");
    let path = dir.path().join("audit.jsonl");
    let whole = "{\"event\":\"started\"}\n";
    for torn in ["", "{", "{\"event\":\"ban\",\"ip\":\"2", &"x".repeat(100_000)] {
        for before in ["", whole] {
            if before.is_empty() && torn.starts_with('x') {
                continue; // Not a file of ours: see below.
            }
            fs::write(&path, format!("{before}{torn}")).expect("made");
            Audit::open(&path, 1 << 20).write(at(0), "xdp", &Event::Off).expect("written");
            assert_eq!(lines(&path).len(), 1 + before.lines().count(), "{before:?} and {:.20?}", torn);
        }
    }
    // Something else that someone keeps there stays, on a line of its own.
    fs::write(&path, "my notes").expect("made");
    Audit::open(&path, 1 << 20).write(at(0), "xdp", &Event::Off).expect("written");
    assert!(fs::read_to_string(&path).expect("text").starts_with("my notes\n{"));
}

#[test]
fn a_ban_whose_line_a_crash_prevented_is_found() {
    let dir = tempfile::tempdir().expect("a directory");
    let path = dir.path().join("audit.jsonl");
    let numbered = |n: i64| Ban { prefix: net(&format!("192.0.2.{n}/32")), at: at(n), ..ban("") };
    let bans: Vec<Ban> = (1..=5).map(numbered).collect();
    let prefixes = |bans: &[Ban]| bans.iter().map(|ban| ban.prefix.to_string()).collect::<Vec<_>>();
    assert!(Newest::read(&path).untold_bans(&bans).is_empty(), "without a log nothing is known");
    let mut audit = Audit::open(&path, 1 << 20);
    // The log begins after the first ban; what was told of that is not known.
    audit.write(at(1), "xdp", &Event::Off).expect("written");
    for told in [1, 3] {
        audit.write(at(9), "xdp", &Event::Ban { ban: &bans[told], error: None }).expect("written");
    }
    assert_eq!(prefixes(&Newest::read(&path).untold_bans(&bans)), ["192.0.2.3/32", "192.0.2.5/32"]);
    let past = [Ban { in_past: true, ..numbered(5) }];
    assert!(Newest::read(&path).untold_bans(&past).is_empty(), "it was over when it was decided, and is in no log");
    // Of a long log only the end is read, from a whole line on.
    for n in 0..6000 {
        audit
            .write(at(10 + n), "xdp", &Event::Ban { ban: &ban("x".repeat(200).as_str()), error: None })
            .expect("written");
    }
    assert!(Newest::read(&path).untold_bans(&bans).is_empty());
    let late = [Ban { at: at(7000), ..numbered(6) }];
    assert_eq!(prefixes(&Newest::read(&path).untold_bans(&late)), ["192.0.2.6/32"]);
}

/// A ban is decided in the log's time, which may lag behind the clock by which the audit log's lines are stamped.
#[test]
fn a_ban_of_before_the_log_was_begun_is_found_where_there_was_none_then() {
    let begun = |restored_bans| {
        let dir = tempfile::tempdir().expect("a directory");
        let path = dir.path().join("audit.jsonl");
        let mut audit = Audit::open(&path, 1 << 20);
        audit.write(at(1), "xdp", &Event::Started { version: "1", restored_bans }).expect("written");
        Newest::read(&path).untold_bans(&[ban("")]).len()
    };
    assert_eq!((begun(0), begun(1)), (1, 0));
}

/// Thousands of bans within a second are more than is read of a log otherwise, and a crash is likely then.
#[test]
fn a_ban_that_a_crash_kept_from_being_told_is_found_after_a_storm_of_bans() {
    let dir = tempfile::tempdir().expect("a directory");
    let path = dir.path().join("audit.jsonl");
    let mut audit = Audit::open(&path, 2 << 20);
    let bans: Vec<Ban> = (0..=6000u32)
        .map(|n| Ban { prefix: std::net::IpAddr::from((0xcb00_7000 + n).to_be_bytes()).into(), at: at(100), ..ban("") })
        .collect();
    audit.write(at(1), "xdp", &Event::Off).expect("written");
    let (last, told) = bans.split_last().expect("bans");
    for ban in told {
        audit.write(at(101), "xdp", &Event::Ban { ban, error: None }).expect("written");
    }
    assert_eq!(Newest::read(&path).untold_bans(&bans), std::slice::from_ref(last));
}

#[test]
fn what_was_told_is_also_looked_for_in_rotated_files() {
    let dir = tempfile::tempdir().expect("a directory");
    let path = dir.path().join("audit.jsonl");
    let mut audit = Audit::open(&path, 1);
    let bans = [1, 2, 3].map(|n| Ban { prefix: net(&format!("192.0.2.{n}/32")), ..ban("") });
    audit.write(at(-1), "xdp", &Event::Off).expect("written");
    for ban in &bans[..2] {
        audit.write(at(1), "xdp", &Event::Ban { ban, error: None }).expect("written");
    }
    assert_eq!(fs::read_dir(dir.path()).expect("a directory").count(), 3, "each line is a file");
    let untold = Newest::read(&path).untold_bans(&bans);
    assert_eq!(untold.iter().map(|ban| ban.prefix).collect::<Vec<_>>(), [bans[2].prefix]);
    // What is older than a file that somebody has taken away is not known.
    fs::remove_file(dir.path().join("audit.jsonl.1")).expect("removed");
    assert!(Newest::read(&path).untold_bans(&bans).is_empty());
}

/// What the start looks for in the audit log.
#[test]
fn what_ended_lately_is_what_an_unban_ended() {
    let dir = tempfile::tempdir().expect("a directory");
    let mut store = Store::open(&dir.path().join("state.db"), at(0)).expect("a store").store;
    let numbered = |n: u8, secs| Ban { prefix: net(&format!("192.0.2.{n}/32")), at: at(secs), ..ban("") };
    for n in 1..=5 {
        store.record_ban(&numbered(n, 0)).expect("recorded");
    }
    store.save_progress(at(1), &State::default(), &BTreeMap::new()).expect("saved");
    for (n, secs, origin) in [(1, 20, Origin::Detector), (2, 600, Origin::Detector), (3, 30, Origin::Operator)] {
        let unban = ended(&numbered(n, 0), secs, origin);
        store.record_unban(&unban, 7, 420).expect("recorded");
    }
    // The fourth is replaced, the fifth goes on; a sixth was over when it was decided.
    store.record_ban(&Ban { offence: 2, ..numbered(4, 40) }).expect("recorded");
    store.record_ban(&Ban { in_past: true, ..numbered(6, 50) }).expect("recorded");
    store.save_progress(at(601), &State::default(), &BTreeMap::new()).expect("saved");
    let mut reader = store.reader();
    let mut ended = |since, limit| -> Vec<_> {
        let found = reader.ended(at(since), limit).expect("read");
        found.iter().map(|r| (r.ban.prefix, r.state, r.ended, r.packets)).collect()
    };
    let lifted = (net("192.0.2.3/32"), BanState::Lifted, Some(at(30)), 7);
    let expired = (net("192.0.2.2/32"), BanState::Expired, Some(at(600)), 7);
    assert_eq!(ended(20, 10), [lifted, expired]);
    assert_eq!(ended(20, 1), [expired], "the newest are those that a crash may have kept from being told");
    assert!(ended(600, 10).is_empty());
}

#[test]
fn an_unban_whose_line_a_crash_prevented_is_found() {
    let dir = tempfile::tempdir().expect("a directory");
    let path = dir.path().join("audit.jsonl");
    let ended = |offence: u32, secs: i64| Recorded {
        ban: Ban { at: at(secs - 10), offence, ..ban("") },
        state: BanState::Expired,
        ended: Some(at(secs)),
        packets: 7,
        bytes: 420,
    };
    let all = vec![ended(1, 20), ended(2, 40), ended(3, 60)];
    let untold = |all: &[Recorded]| -> Vec<u32> {
        Newest::read(&path).untold_ends(all.to_vec()).iter().map(|r| r.ban.offence).collect()
    };
    assert!(untold(&all).is_empty(), "without a log nothing is known");
    let mut audit = Audit::open(&path, 1 << 20);
    let mut tell = |offence, secs| {
        let unban = self::ended(&Ban { offence, ..ban("") }, secs, Origin::Detector);
        audit
            .write(at(secs), "xdp", &Event::Unban { unban: &unban, packets: 0, bytes: 0, error: None })
            .expect("written");
    };
    tell(9, 30);
    // The log begins after the first end; what was told of that is not known.
    assert_eq!(untold(&all), [2, 3]);
    tell(2, 40);
    assert_eq!(untold(&all), [3]);
    // Lifted by hand, its offence was taken back: the next ban has the same number, and this line is of the one before.
    tell(3, 45);
    assert_eq!(untold(&all), [3]);
    tell(3, 60);
    assert!(untold(&all).is_empty());
}

#[test]
fn a_file_that_was_renamed_or_deleted_is_begun_anew() {
    let dir = tempfile::tempdir().expect("a directory");
    let path = dir.path().join("log/audit.jsonl");
    let mut audit = Audit::open(&path, 1 << 20);
    audit.write(at(0), "xdp", &Event::Off).expect("written");
    let aside = dir.path().join("aside");
    fs::rename(&path, &aside).expect("renamed");
    audit.write(at(1), "xdp", &Event::Off).expect("written");
    assert_eq!((lines(&aside).len(), lines(&path).len()), (1, 1));
    fs::remove_dir_all(dir.path().join("log")).expect("deleted");
    audit.write(at(2), "xdp", &Event::Off).expect("written");
    assert_eq!(lines(&path).len(), 1);
    let other = dir.path().join("other.jsonl");
    audit.reopen(&other, 1 << 20);
    audit.write(at(3), "xdp", &Event::Off).expect("written");
    assert_eq!((lines(&path).len(), lines(&other).len()), (1, 1));
}

#[test]
fn a_full_disk_loses_lines_but_no_line_is_torn_and_it_heals() {
    let Some(disk) = SmallDisk::mount("256k") else { return };
    let path = disk.path("audit.jsonl");
    let mut audit = Audit::open(&path, 1 << 20);
    audit.write(at(0), "xdp", &Event::Off).expect("written");
    let filler = disk.fill();
    let mut lost = 0;
    for n in 0..100 {
        // What is left of the last page still takes some.
        if let Err(error) = audit.write(at(n), "xdp", &Event::Off) {
            lost += 1;
            assert_eq!(error.lost, lost);
            assert!(error.to_string().contains("o space left on device"), "{error}");
        }
    }
    assert!(lost > 20 && audit.lost() == lost && audit.failing().is_some());
    assert_eq!(lines(&path).len() as u64, 101 - lost);
    fs::remove_file(&filler).expect("room again");
    audit.write(at(200), "xdp", &Event::Off).expect("written again");
    assert!(audit.failing().is_none());
    assert_eq!(lines(&path).len() as u64, 102 - lost);

    let filler = disk.fill();
    let mut snapshots = Snapshots::open(&disk.path("snapshots.log"), 1 << 20);
    let change = [Change::Unban(net("203.0.113.10/32"))];
    snapshots.write(at(0), "xdp", &change, || Ok("state".into())).expect_err("no room");
    fs::remove_file(&filler).expect("room again");
    snapshots.write(at(2), "xdp", &change, || Ok("state".into())).expect("written again");
}

#[test]
fn snapshots_prove_every_change_and_the_whole_state_once_a_second() {
    let dir = tempfile::tempdir().expect("a directory");
    let path = dir.path().join("snapshots.log");
    let mut snapshots = Snapshots::open(&path, 1 << 20);
    let ban = [Change::Ban(net("203.0.113.10/32"), Some(Duration::from_secs(600)))];
    let unban = [Change::Unban(net("2001:db8::/64")), Change::Ban(net("10.0.0.0/8"), None)];
    let after = |ms: i64| Timestamp::from_ms(at(0).as_ms() + ms);
    assert!(!snapshots.due(after(0)), "nothing to prove yet");
    snapshots
        .write(after(0), "iptables", &ban, || Ok("-P INPUT ACCEPT\n-A INPUT -s 203.0.113.10/32 -j DROP\n".into()))
        .expect("written");
    snapshots.write(after(500), "iptables", &unban, || panic!("not due")).expect("written");
    assert!(!snapshots.due(after(999)));
    assert!(snapshots.due(after(1000)), "the end of the burst");
    snapshots.write(after(1000), "iptables", &[], || Ok("-P INPUT ACCEPT".into())).expect("written");
    assert!(!snapshots.due(after(9000)));
    // The clock was set back: no need to wait until it is there again.
    snapshots.write(after(-60_000), "xdp", &ban, || Err("bpf(): EPERM".into())).expect("written");
    assert!(snapshots.due(after(-59_000)), "what failed is tried again");
    assert_eq!(
        fs::read_to_string(&path).expect("text"),
        "2026-04-27T09:25:51Z change ban 203.0.113.10 for 600 s enforcer=iptables full=below\n\
         2026-04-27T09:25:51Z full enforcer=iptables bytes=52\n  -P INPUT ACCEPT\n  -A INPUT -s 203.0.113.10/32 -j DROP\n\
         2026-04-27T09:25:51Z end\n\
         2026-04-27T09:25:51.5Z change unban 2001:db8::/64 enforcer=iptables full=2026-04-27T09:25:51Z\n\
         2026-04-27T09:25:51.5Z change ban 10.0.0.0/8 for ever enforcer=iptables full=2026-04-27T09:25:51Z\n\
         2026-04-27T09:25:52Z full enforcer=iptables bytes=15\n  -P INPUT ACCEPT\n2026-04-27T09:25:52Z end\n\
         2026-04-27T09:24:51Z change ban 203.0.113.10 for 600 s enforcer=xdp full=below\n\
         2026-04-27T09:24:51Z full enforcer=xdp failed: bpf(): EPERM\n"
    );
}

#[test]
fn big_snapshots_are_rarer_and_the_files_stay_bounded() {
    let dir = tempfile::tempdir().expect("a directory");
    let path = dir.path().join("snapshots.log");
    let mut snapshots = Snapshots::open(&path, 20 << 20);
    let big = format!("{}\n", "rule ".repeat(1023)).repeat(1025);
    let change = [Change::Ban(net("203.0.113.10/32"), None)];
    let mut whole = 0;
    for second in 0..60 {
        snapshots
            .write(at(second), "xdp", &change, || {
                whole += 1;
                Ok(big.clone())
            })
            .expect("written");
    }
    assert_eq!(whole, 12, "5 MiB every 5 s");
    let mut snapshots = Snapshots::open(&path, 1 << 20);
    for second in 0..20 {
        snapshots.write(at(second), "xdp", &change, || Ok(big.clone())).expect("written");
    }
    let total: u64 =
        fs::read_dir(dir.path()).expect("a listing").flatten().map(|e| e.metadata().expect("a file").len()).sum();
    assert!(fs::read_to_string(&path).expect("text").contains("bytes=5243900 cut_to=524288"));
    // The big ones of before are rotated away, each of the new ones fits.
    assert!(total < 5 * (1 << 20) + (75 << 20), "{total}");
}
