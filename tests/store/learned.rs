//! What was learned: stored in parts, read and written by `replay`, and loaded first at a start.

use std::time::Duration;

use anomaly::engine::State;
use anomaly::store::{Early, Reader, Store};

use super::{address, at, ban, net, no_checkpoints, open};
use crate::lab::clock::wait_until;

#[test]
fn what_was_learned_comes_back_whole_however_much_it_is() {
    let dir = tempfile::tempdir().expect("a directory");
    let path = dir.path().join("state.db");
    for (nth, len) in [(0, 700_000), (1, 65_536), (2, 65_537), (3, 0), (4, 200_000)] {
        let windows: Vec<u8> = (0..len).map(|i: usize| ((i * 31) >> (nth % 7)) as u8).collect();
        let state = State { baseline: windows[..len / 2].to_vec(), windows, ..State::default() };
        open(&path).store.save_progress(at(nth), &state, &no_checkpoints()).expect("saved");
        assert_eq!(open(&path).loaded.state, state, "{len} bytes");
    }
}

#[test]
fn replay_reads_and_writes_only_the_baseline() {
    let dir = tempfile::tempdir().expect("a directory");
    let path = dir.path().join("state.db");
    assert!(anomaly::store::read_baseline(&path).is_err(), "nothing is made by reading");
    assert!(!path.exists());
    anomaly::store::write_baseline(&path, at(0), b"learned").expect("written");
    assert_eq!(anomaly::store::read_baseline(&path).expect("read"), b"learned");
    let opened = open(&path);
    assert_eq!(opened.loaded.state, State { baseline: b"learned".to_vec(), ..State::default() });
    let mut store = opened.store;
    store.record_ban(&ban(address(1), 0, 1)).expect("recorded");
    anomaly::store::write_baseline(&path, at(1), b"more").expect("written beside the daemon");
    assert_eq!(Reader::open(&path).expect("opened").baseline().expect("read"), b"more");
    drop(store);
    assert_eq!(open(&path).loaded.state.bans.len(), 1);
}

/// What SQLite counts in the log's header each time that it begins anew, and the log's length.
fn log_of(database: &std::path::Path) -> (Vec<u8>, u64) {
    let log = std::fs::read(database.with_extension("db-wal")).expect("a log");
    (log[12..16].to_vec(), log.len() as u64)
}

#[test]
fn a_log_that_was_folded_in_is_not_folded_in_again_with_each_ban() {
    let dir = tempfile::tempdir().expect("a directory");
    let path = dir.path().join("state.db");
    let mut store = open(&path).store;
    let state = State { windows: vec![7; 6 << 20], ..State::default() };
    store.save_progress(at(0), &state, &no_checkpoints()).expect("saved");
    let before = log_of(&path);
    assert!(before.1 > 6 << 20, "{} bytes", before.1);
    let mut nth = 0;
    wait_until("the log to begin anew", Duration::from_secs(20), || {
        nth += 1;
        store.record_ban(&ban(address(nth), i64::from(nth), 1)).expect("recorded");
        log_of(&path).0 != before.0
    })
    .expect("folded in, on a thread of its own");
    let anew = log_of(&path);
    assert!(anew.1 < 2 << 20, "its length says how much is in it: {} bytes", anew.1);
    for n in 1..100 {
        store.record_ban(&ban(address(nth + n), 0, 1)).expect("recorded");
        assert_eq!(log_of(&path).0, anew.0, "after {n} bans");
    }
    drop(store);
    assert_eq!(open(&path).loaded.state.windows, state.windows);
}

#[test]
fn a_start_is_told_of_the_bans_before_the_rest_is_read() {
    let dir = tempfile::tempdir().expect("a directory");
    let path = dir.path().join("state.db");
    let bans = [ban(address(1), 0, 1), ban(address(2), 1, 1), ban(net("2001:db8::/64"), 2, 1)];
    {
        let mut store = open(&path).store;
        store.record_bans(&bans).expect("recorded");
        let state = State { bans: bans.to_vec(), ..State::default() };
        store.save_progress(at(3), &state, &no_checkpoints()).expect("saved");
    }
    let told = |secs| {
        let mut told = Vec::new();
        let opened = Store::open_telling(&path, at(secs), &mut |early| {
            told.push(match early {
                Early::Count(count) => format!("{count} of IPv4"),
                Early::Bans(bans) => bans.iter().map(|ban| ban.prefix.to_string()).collect::<Vec<_>>().join(" "),
            });
        });
        assert_eq!(opened.expect("opened").loaded.state.bans.len(), 3);
        told
    };
    let all = "10.0.0.1/32 10.0.0.2/32 2001:db8::/64";
    assert_eq!(told(60), ["2 of IPv4", all]);
    assert_eq!(told(6000), [all], "most of them have ended by now");
}
