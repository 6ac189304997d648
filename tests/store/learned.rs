//! What was learned: stored in parts, and what `replay` reads and writes of it.

use anomaly::engine::State;
use anomaly::store::Reader;

use super::{address, at, ban, no_checkpoints, open};

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
