//! Engine and store together: killed at any record and started again, they come to the same bans and offences
//! as without, and decide nothing twice.

use std::collections::BTreeMap;
use std::net::{IpAddr, Ipv4Addr};
use std::path::{Path, PathBuf};
use std::time::Duration;

use anomaly::engine::{BanLength, Decision, Engine, Input, Output, Settings};
use anomaly::record::Record;
use anomaly::store::Store;
use anomaly::time::Timestamp;

const START: i64 = 1_777_291_200;

fn settings() -> Settings {
    let secs = |n| BanLength::Timed(Duration::from_secs(n));
    Settings {
        warmup_secs: 60,
        durations: vec![secs(20), secs(40), secs(60)],
        brake_per_minute: 0,
        ..Settings::default()
    }
}

/// Ten minutes: twenty calm clients, and six that flood now and then.
fn log() -> Vec<(Timestamp, IpAddr)> {
    let mut log = Vec::new();
    for second in 0..600i64 {
        let mut add = |n: u8, ms: i64| {
            log.push((Timestamp::from_ms((START + second) * 1000 + ms), IpAddr::V4(Ipv4Addr::new(198, 51, 100, n))));
        };
        for n in 0..20u8 {
            if (second + i64::from(n)) % 7 == 0 {
                add(n, i64::from(n) * 10);
            }
        }
        for n in 0..6i64 {
            // Each floods for 12 s in every 97 s, at its own time.
            if second > 100 && (second + 16 * n) % 97 < 12 {
                (0..30).for_each(|k| add(200 + u8::try_from(n).expect("small"), 200 + k * 25));
            }
        }
    }
    log.sort();
    log
}

#[derive(Debug, Default, PartialEq)]
struct Story {
    /// Bans and unbans in the order in which they were told.
    told: Vec<String>,
    /// On record at the end.
    recorded: Vec<String>,
    offences: Vec<String>,
}

/// Reads the log; killed before each of these records, and started again from what is on disk.
fn play(path: &Path, log: &[(Timestamp, IpAddr)], kills: &[usize]) -> Story {
    let mut story = Story::default();
    let mut kills = kills.iter().copied().peekable();
    let mut wall = Timestamp::MIN;
    let log_path = PathBuf::from("/log");
    'start: loop {
        let opened = Store::open(path, wall).expect("opened");
        let mut store = opened.store;
        let mut engine = Engine::new(settings(), 1);
        let mut i = opened
            .loaded
            .checkpoints
            .get(&log_path)
            .map_or(0, |b| usize::from_le_bytes(b.as_slice().try_into().expect("eight bytes")));
        engine.restore(opened.loaded.state).expect("its own bytes");
        let mut saved = wall;
        let mut out = Vec::new();
        let checkpoint = |i: usize| BTreeMap::from([(log_path.clone(), i.to_le_bytes().to_vec())]);
        while i < log.len() {
            if kills.next_if(|kill| *kill == i).is_some() {
                // Nothing is closed, nothing is saved.
                std::mem::forget(store);
                continue 'start;
            }
            let (time, client) = log[i];
            wall = wall.max(time);
            let record = Record { method: b"GET", status: 200, ..Record::new(client, time) }.with_path(b"/");
            if engine.next_deadline().is_some_and(|due| due <= wall) {
                engine.handle(wall, Input::Tick { caught_up: false }, &mut out);
            }
            engine.handle(wall, Input::Record(&record), &mut out);
            i += 1;
            for output in out.drain(..) {
                match output {
                    Output::Decision(Decision::Ban(ban)) => {
                        store.record_ban(&ban).expect("recorded");
                        story.told.push(format!("ban {} {} {}", ban.prefix, ban.at, ban.offence));
                    }
                    Output::Decision(Decision::Unban(unban)) => {
                        store.record_unban(&unban, 0, 0).expect("recorded");
                        story.told.push(format!("unban {} {} {}", unban.prefix, unban.at, unban.offence));
                    }
                    _ => {}
                }
            }
            if wall.since(saved) >= Duration::from_secs(5) {
                saved = wall;
                store.save_progress(wall, &engine.save(), &checkpoint(i)).expect("saved");
            }
        }
        store.save_progress(wall, &engine.save(), &checkpoint(i)).expect("saved");
        let everything = "0.0.0.0/0".parse().expect("a prefix");
        let recorded = store.reader().explain(&everything, 1000).expect("cards");
        story.recorded =
            recorded.iter().map(|r| format!("{} {} {} {:?}", r.ban.prefix, r.ban.at, r.ban.offence, r.state)).collect();
        story.offences = engine.save().offences.iter().map(|o| format!("{} {}", o.prefix, o.count)).collect();
        return story;
    }
}

#[test]
fn killed_at_any_record_it_comes_to_the_same_end() {
    let log = log();
    let dir = tempfile::tempdir().expect("a directory");
    let undisturbed = play(&dir.path().join("undisturbed.db"), &log, &[]);
    assert!(undisturbed.offences.len() == 6, "{undisturbed:#?}");
    assert!(undisturbed.told.iter().any(|t| t.ends_with(" 3")), "third offences too: {undisturbed:#?}");
    let mut seed = 1u64;
    for round in 0..6 {
        let mut kills: Vec<usize> = (0..12)
            .map(|_| {
                seed = seed.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
                usize::try_from(seed >> 33).expect("64 bits") % log.len()
            })
            .collect();
        kills.sort_unstable();
        kills.dedup();
        let path = dir.path().join(format!("{round}.db"));
        let killed = play(&path, &log, &kills);
        assert_eq!(killed, undisturbed, "round {round}, killed before {kills:?}");
    }
}

/// What 0.1.0 had stored for a small site after 27 hours. `store/state-0.1.0.sql` is the dump of its database; the figures
/// beside it are those that its API gave before it stopped.
#[test]
fn the_state_of_version_0_1_0_is_read_with_all_that_it_has_learned() {
    let dir = tempfile::tempdir().expect("a directory");
    let path = dir.path().join("state.db");
    let dump = rusqlite::Connection::open(&path).expect("a new database");
    dump.execute_batch(include_str!("store/state-0.1.0.sql")).expect("the dump");
    drop(dump);
    let stopped = Timestamp::parse("2026-11-29T21:58:42Z").expect("a stamp");
    let state = Store::open(&path, stopped).expect("opened").loaded.state;
    let mut engine = Engine::new(Settings::default(), 1);
    engine.restore(state).expect("read");
    // Thousandths of a request/s.
    let means = [
        281, 339, 306, 295, 321, 283, 307, 318, 281, 323, 275, 287, 299, 290, 296, 332, 297, 283, 282, 297, 314, 288,
        321, 302,
    ];
    let known = |engine: &Engine| {
        let seen = engine.snapshot(20);
        let hours = seen.hours.map(|hour| hour.map(|hour| ((hour.mean * 1000.0).round() as i64, hour.samples >= 3600)));
        assert_eq!(hours, means.map(|mean| Some((mean, true))), "the 24 hour slots");
        assert_eq!((seen.ip.source, seen.ip.samples), (anomaly::engine::Source::Long, 7906), "the long memory");
        assert_eq!(seen.warmup_left_secs, 0, "no second warm-up");
        assert_eq!(
            (seen.records, seen.blocked, seen.at >= stopped.minus(Duration::from_secs(60))),
            (41_273, 11_754, true)
        );
        let mut top: Vec<String> = seen.top.iter().map(|c| format!("{} {}", c.prefix, c.requests)).collect();
        top.sort();
        let mut offences: Vec<String> =
            engine.save().offences.iter().map(|o| format!("{} {}", o.prefix, o.count)).collect();
        offences.sort();
        let mut bans: Vec<String> = seen.bans.iter().map(|ban| ban.prefix.to_string()).collect();
        bans.sort();
        assert_eq!(bans, ["203.0.113.200/32", "203.0.113.9/32"]);
        assert_eq!(
            offences,
            ["2001:db8:5::/64 1", "203.0.113.200/32 1", "203.0.113.77/32 1", "203.0.113.9/32 3"],
            "who has offended how often"
        );
        (top, seen.ip, seen.ip_limit.to_bits(), seen.global, seen.tracked_ips)
    };
    let first = known(&engine);
    assert!(first.4 > 0, "clients in the windows");
    // Saved by this version, and read again.
    let mut again = Engine::new(Settings::default(), 1);
    again.restore(engine.save()).expect("read");
    assert_eq!(known(&again), first);
    assert_eq!(again.save(), engine.save());
}

/// A section that is unknown here costs nothing; one that is missing costs only itself.
#[test]
fn sections_that_come_and_go_cost_only_themselves() {
    let mut engine = Engine::new(settings(), 1);
    let mut out = Vec::new();
    for (time, client) in log() {
        let record = Record { method: b"GET", status: 200, ..Record::new(client, time) }.with_path(b"/");
        engine.handle(time, Input::Record(&record), &mut out);
    }
    let saved = engine.save();
    let restored = |state: anomaly::engine::State| {
        let mut engine = Engine::new(settings(), 1);
        engine.restore(state).map(|()| engine)
    };
    let whole = restored(saved.clone()).expect("read");
    let later = |bytes: &[u8]| {
        // The last byte is the end mark.
        let mut later = bytes[..bytes.len() - 1].to_vec();
        later.push(200);
        later.extend(5u64.to_le_bytes());
        later.extend(b"later\0");
        later
    };
    let mut state = saved.clone();
    (state.baseline, state.windows) = (later(&saved.baseline), later(&saved.windows));
    let with_unknown = restored(state).expect("an unknown section is skipped");
    assert_eq!(with_unknown.save(), whole.save());
    for (name, pick) in [("baseline", 0), ("windows", 1)] {
        let bytes = [&saved.baseline, &saved.windows][pick];
        let tags = sections(bytes);
        assert!(tags.len() >= 5, "{name} has {} sections", tags.len());
        for (tag, range) in &tags {
            let mut without = bytes.clone();
            without.drain(range.clone());
            let mut state = saved.clone();
            *[&mut state.baseline, &mut state.windows][pick] = without;
            let engine = restored(state).unwrap_or_else(|_| panic!("{name} without section {tag} is not read"));
            assert_eq!(engine.save().offences, saved.offences, "{name} without section {tag}");
            let rest = [engine.save().baseline, engine.save().windows][pick].clone();
            for (other, range) in sections(&rest).into_iter().filter(|(other, _)| other != tag) {
                let before = sections(bytes).into_iter().find(|(t, _)| *t == other).map(|(_, r)| bytes[r].to_vec());
                // Clients of the windows are nothing without the clock; all else stands for itself.
                let depends = name == "windows";
                assert!(depends || before.as_deref() == Some(&rest[range]), "{name}: {other} without {tag}");
            }
        }
    }
}

/// Tag and place of each section of a blob.
fn sections(bytes: &[u8]) -> Vec<(u8, std::ops::Range<usize>)> {
    let (mut found, mut at) = (Vec::new(), 1);
    while bytes[at] != 0 {
        let length = u64::from_le_bytes(bytes[at + 1..at + 9].try_into().expect("eight bytes"));
        let end = at + 9 + usize::try_from(length).expect("small");
        found.push((bytes[at], at..end));
        at = end;
    }
    found
}

/// A downgrade: it ends with 2, so that a supervisor does not try for ever, and names the file and the way out.
#[test]
fn a_database_of_a_later_version_is_refused_in_clear_words() {
    let dir = tempfile::tempdir().expect("a directory");
    let newer = dir.path().join("state.db");
    drop(Store::open(&newer, Timestamp::EPOCH).expect("opened"));
    rusqlite::Connection::open(&newer).expect("opened").pragma_update(None, "user_version", 99).expect("set");
    let config = dir.path().join("anomaly.toml");
    let file = |name: &str| dir.path().join(name);
    std::fs::write(file("access.json"), "").expect("written");
    let text = format!(
        "log.paths = [{:?}]\nenforcer.backend = \"dry-run\"\nenforcer.pin_dir = {:?}\ndashboard.socket = {:?}\n\
         dashboard.listen = \"off\"\nstore.path = {newer:?}\naudit.path = {:?}\naudit.snapshot_path = {:?}\n",
        file("access.json"),
        file("pins"),
        file("sock"),
        file("audit.jsonl"),
        file("snapshots.log"),
    );
    std::fs::write(&config, text).expect("written");
    let anomaly = |args: &[&std::ffi::OsStr]| {
        std::process::Command::new(env!("CARGO_BIN_EXE_anomaly")).args(args).output().expect("started")
    };
    let log = file("access.json");
    for output in [
        anomaly(&["run".as_ref(), "--config".as_ref(), config.as_ref()]),
        anomaly(&["replay".as_ref(), "--baseline".as_ref(), newer.as_ref(), log.as_ref()]),
    ] {
        let words = String::from_utf8_lossy(&output.stderr);
        assert_eq!(output.status.code(), Some(2), "{words}");
        assert!(words.contains("newer version (schema 99") && words.contains("update anomaly"), "{words}");
    }
}
