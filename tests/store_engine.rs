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
