//! The state database under `kill -9`, power cuts, and disks that are full or read-only.

use std::collections::{BTreeMap, BTreeSet};
use std::io::{BufRead as _, BufReader};
use std::net::Ipv4Addr;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::Arc;

use anomaly::engine::{Ban, Offence, Origin, State, Unban};
use anomaly::store::{Store, StoreError};
use anomaly::time::Timestamp;
use ipnet::IpNet;

/// xorshift64*, so that a run can be repeated from its seed.
struct Random(u64);

impl Random {
    fn below(&mut self, n: u64) -> u64 {
        self.0 ^= self.0 >> 12;
        self.0 ^= self.0 << 25;
        self.0 ^= self.0 >> 27;
        (self.0.wrapping_mul(0x2545_f491_4f6c_dd1d) >> 33) % n
    }
}

fn at(k: u64) -> Timestamp {
    Timestamp::from_secs(1_777_291_200 + i64::try_from(k).expect("small"))
}

fn prefix(n: u64) -> IpNet {
    IpNet::from(std::net::IpAddr::V4(Ipv4Addr::from(0x0a00_0000 + u32::try_from(n).expect("small"))))
}

#[derive(Clone, Debug)]
enum Op {
    Ban(Ban),
    Unban(Unban),
    Save(u64),
}

type Active = BTreeMap<IpNet, Ban>;
type Offences = BTreeMap<IpNet, (u32, Timestamp)>;

/// Bans in force and offences, as the engine has them (`now`) or as they must be found on disk.
#[derive(Clone, Debug, Default, PartialEq)]
struct Known {
    active: Active,
    offences: Offences,
}

impl Known {
    fn apply(&mut self, op: &Op) {
        match op {
            Op::Ban(ban) => {
                if !ban.in_past {
                    self.active.insert(ban.prefix, ban.clone());
                }
                self.offences.insert(ban.prefix, (ban.offence, ban.at));
            }
            Op::Unban(unban) => {
                self.active.remove(&unban.prefix);
                if unban.origin == Origin::Operator
                    && let Some((count, last)) = self.offences.remove(&unban.prefix)
                    && count > 1
                {
                    self.offences.insert(unban.prefix, (count - 1, last));
                }
            }
            Op::Save(_) => {}
        }
    }

    fn state(&self, k: u64, blob: usize) -> State {
        let mut windows = k.to_le_bytes().to_vec();
        windows.resize(8 + blob, k as u8);
        State {
            bans: self.active.values().cloned().collect(),
            offences: self
                .offences
                .iter()
                .map(|(p, (count, last))| Offence { prefix: *p, count: *count, last: *last })
                .collect(),
            baseline: k.to_le_bytes().to_vec(),
            windows,
        }
    }
}

/// The kth operation, and the engine's state after it: the same for the same seed.
struct Story {
    random: Random,
    k: u64,
    now: Known,
}

impl Story {
    fn new(seed: u64) -> Self {
        Self { random: Random(seed * 2 + 1), k: 0, now: Known::default() }
    }

    fn next(&mut self) -> Op {
        self.k += 1;
        let n = self.random.below(30);
        let kind = self.random.below(10);
        let in_past = self.random.below(6) == 0;
        let by_hand = self.random.below(3) == 0;
        let address = prefix(n);
        let op = match (kind, self.now.active.get(&address)) {
            (0..=1, _) => Op::Save(self.k),
            (_, None) => Op::Ban(Ban {
                prefix: address,
                at: at(self.k),
                until: Some(at(self.k + 600)),
                offence: self.now.offences.get(&address).map_or(0, |(count, _)| *count) + 1,
                origin: Origin::Detector,
                finding: None,
                note: String::new(),
                in_past,
            }),
            (_, Some(ban)) => Op::Unban(Unban {
                prefix: address,
                at: at(self.k),
                offence: ban.offence,
                origin: if by_hand { Origin::Operator } else { Origin::Detector },
                ban: Arc::new(ban.clone()),
            }),
        };
        self.now.apply(&op);
        op
    }

    fn perform(&self, op: &Op, store: &mut Store, blob: usize) {
        match op {
            Op::Ban(ban) => store.record_ban(ban),
            Op::Unban(unban) => store.record_unban(unban, 1, 60),
            Op::Save(k) => {
                let checkpoints = BTreeMap::from([(PathBuf::from("/log"), k.to_le_bytes().to_vec())]);
                store.save_progress(at(*k), &self.now.state(*k, blob), &checkpoints)
            }
        }
        .expect("written");
    }
}

/// What must be on disk after each operation: see `Store::record_unban` for what waits for the progress.
#[derive(Clone, Debug, Default)]
struct Disk {
    known: Known,
    saved: u64,
    waiting: Vec<Op>,
    fresh: BTreeSet<IpNet>,
}

impl Disk {
    fn apply(&mut self, op: &Op) {
        let about = match op {
            Op::Save(k) => {
                self.saved = *k;
                self.fresh.clear();
                for op in std::mem::take(&mut self.waiting) {
                    self.known.apply(&op);
                }
                return;
            }
            Op::Ban(ban) if ban.in_past => return self.waiting.push(op.clone()),
            Op::Ban(ban) => {
                self.fresh.insert(ban.prefix);
                ban.prefix
            }
            Op::Unban(unban) if unban.origin == Origin::Operator && self.fresh.contains(&unban.prefix) => {
                return self.waiting.push(op.clone());
            }
            Op::Unban(unban) => unban.prefix,
        };
        let (now, later) = std::mem::take(&mut self.waiting).into_iter().partition(|op| match op {
            Op::Ban(ban) => ban.prefix == about,
            Op::Unban(unban) => unban.prefix == about,
            Op::Save(_) => false,
        });
        self.waiting = later;
        let now: Vec<Op> = now;
        now.iter().chain([op]).for_each(|op| self.known.apply(op));
    }

    fn found(path: &Path) -> Self {
        let opened = Store::open(path, at(0)).expect("opened");
        assert!(opened.quarantined.is_none(), "damaged: {:?}", opened.quarantined);
        assert!(opened.trouble.is_none(), "{:?}", opened.trouble);
        let state = opened.loaded.state;
        let number = |bytes: &[u8]| bytes.get(..8).map_or(0, |b| u64::from_le_bytes(b.try_into().expect("eight")));
        let saved = number(&state.baseline);
        assert_eq!(number(&state.windows), saved, "windows and baseline are of one moment");
        assert_eq!(
            opened.loaded.checkpoints.get(Path::new("/log")).map_or(0, |b| number(b)),
            saved,
            "and the checkpoint"
        );
        Self {
            known: Known {
                active: state.bans.into_iter().map(|b| (b.prefix, b)).collect(),
                offences: state.offences.into_iter().map(|o| (o.prefix, (o.count, o.last))).collect(),
            },
            saved,
            ..Self::default()
        }
    }

    fn is(&self, found: &Self) -> bool {
        self.known == found.known && self.saved == found.saved
    }
}

const VICTIM: &str = "ANOMALY_TEST_STORE_VICTIM";

/// Not a test of its own: what `kill_9_loses_nothing_that_was_acknowledged` starts and kills; does nothing otherwise.
#[test]
fn victim() {
    let Ok(arguments) = std::env::var(VICTIM) else { return };
    let (seed, path) = arguments.split_once(' ').expect("seed and path");
    let mut story = Story::new(seed.parse().expect("a seed"));
    let mut store = Store::open(Path::new(path), at(0)).expect("opened").store;
    loop {
        let op = story.next();
        // Big enough for the write-ahead log to be folded now and then.
        story.perform(&op, &mut store, 60_000);
        println!("ack {}", story.k);
    }
}

#[test]
fn kill_9_loses_nothing_that_was_acknowledged() {
    let rounds = crate::torture::from_env("ANOMALY_TEST_KILLS", 25);
    let mut random = Random(7);
    for round in 0..rounds {
        let dir = tempfile::tempdir().expect("a directory");
        let path = dir.path().join("state.db");
        let mut child = Command::new(std::env::current_exe().expect("this binary"))
            .args(["store_crash::victim", "--exact", "--nocapture", "--test-threads=1"])
            .env(VICTIM, format!("{round} {}", path.display()))
            .stdout(Stdio::piped())
            .stderr(Stdio::null())
            .spawn()
            .expect("started");
        let last_words = random.below(400);
        let mut acknowledged = 0;
        let mut killed = false;
        for line in BufReader::new(child.stdout.take().expect("piped")).lines() {
            let line = line.expect("text");
            let Some((_, k)) = line.rsplit_once("ack ") else { continue };
            acknowledged = k.parse().expect("a number");
            if acknowledged >= last_words && !killed {
                for _ in 0..random.below(20_000) {
                    std::hint::spin_loop();
                }
                child.kill().expect("killed");
                killed = true;
            }
        }
        child.wait().expect("reaped");
        assert!(killed, "round {round}: it ended by itself after {acknowledged}");
        let found = Disk::found(&path);
        let mut story = Story::new(round);
        let mut expected = Disk::default();
        for _ in 0..acknowledged {
            expected.apply(&story.next());
        }
        let before = expected.clone();
        // The one that was being written may be there or not.
        expected.apply(&story.next());
        assert!(before.is(&found) || expected.is(&found), "round {round}: found {found:#?}, expected {before:#?}");
    }
    crate::torture::figure(
        "kill -9, store alone",
        &format!("{rounds} kills: every acknowledged write found, none in half"),
    );
}

fn copy(from: &Path, to: &Path, wal_bytes: Option<usize>, garbage: usize) {
    std::fs::copy(from, to).expect("copied");
    let wal = |path: &Path| PathBuf::from(format!("{}-wal", path.display()));
    let mut log = std::fs::read(wal(from)).unwrap_or_default();
    log.truncate(wal_bytes.unwrap_or(usize::MAX));
    log.extend(std::iter::repeat_n(0xa5, garbage));
    std::fs::write(wal(to), log).expect("copied");
}

/// The newest writes never reached the disk, or half of them did: some earlier moment is found, whole.
#[test]
fn a_power_cut_leaves_an_earlier_moment_whole() {
    let dir = tempfile::tempdir().expect("a directory");
    let path = dir.path().join("state.db");
    let mut store = Store::open(&path, at(0)).expect("opened").store;
    let mut story = Story::new(99);
    let mut random = Random(1234);
    let mut moments = vec![Disk::default()];
    let mut newest_found = 0;
    for n in 0..250 {
        let op = story.next();
        story.perform(&op, &mut store, 100);
        let mut next = moments.last().expect("one").clone();
        next.apply(&op);
        moments.push(next);
        if n % 5 == 0 {
            let length = std::fs::metadata(dir.path().join("state.db-wal")).expect("a log").len();
            assert!(length < 4 << 20, "so short that it was not folded yet: all of it may be lost");
            let kept = usize::try_from(random.below(length + 1)).expect("small");
            let garbage = usize::try_from(random.below(3) * random.below(5000)).expect("small");
            let cut = dir.path().join("cut.db");
            copy(&path, &cut, Some(kept), garbage);
            let found = Disk::found(&cut);
            let moment = moments.iter().rposition(|m| m.is(&found));
            let moment = moment.unwrap_or_else(|| panic!("after {n}, {kept} of {length} bytes: {found:#?}"));
            newest_found = newest_found.max(moment);
            for suffix in ["", "-wal", "-shm"] {
                let _ = std::fs::remove_file(dir.path().join(format!("cut.db{suffix}")));
            }
        }
    }
    assert!(newest_found > 180, "the later moments are found too: {newest_found}");
}

/// The write-ahead log is being folded into the database when the power goes: nothing is lost.
#[test]
fn a_power_cut_while_the_log_is_folded_loses_nothing() {
    let dir = tempfile::tempdir().expect("a directory");
    let path = dir.path().join("state.db");
    let mut store = Store::open(&path, at(0)).expect("opened").store;
    let mut story = Story::new(5);
    let mut expected = Disk::default();
    let mut longest = 0;
    for n in 0..300 {
        let op = story.next();
        story.perform(&op, &mut store, 200_000);
        expected.apply(&op);
        longest = longest.max(std::fs::metadata(dir.path().join("state.db-wal")).expect("a log").len());
        if n % 7 == 0 || matches!(op, Op::Save(_)) {
            let cut = dir.path().join(format!("cut{n}.db"));
            copy(&path, &cut, None, 0);
            let found = Disk::found(&cut);
            assert!(expected.is(&found), "after {n}: found {found:#?}, expected {expected:#?}");
            for suffix in ["", "-wal", "-shm"] {
                let _ = std::fs::remove_file(dir.path().join(format!("cut{n}.db{suffix}")));
            }
        }
    }
    assert!((4 << 20..32 << 20).contains(&longest), "the log was folded now and then: {longest} bytes at most");
}

/// A file system of its own, so small that it can be filled. `None` (said aloud) for a plain user.
pub struct SmallDisk(tempfile::TempDir);

impl SmallDisk {
    pub fn mount(size: &str) -> Option<Self> {
        let dir = tempfile::tempdir().expect("a directory");
        let options = format!("size={size},mode=0755");
        let mounted = Command::new("mount").args(["-t", "tmpfs", "-o", &options, "tmpfs"]).arg(dir.path()).output();
        match mounted {
            Ok(output) if output.status.success() => Some(Self(dir)),
            failed => {
                let test = std::thread::current().name().unwrap_or("a test on a small disk").to_owned();
                crate::lab::skip(&test, &format!("it needs root to mount a tmpfs: {failed:?}"));
                None
            }
        }
    }

    pub fn path(&self, name: &str) -> PathBuf {
        self.0.path().join(name)
    }

    /// Leaves no room; the file is returned so that it can be deleted.
    pub fn fill(&self) -> PathBuf {
        use std::io::Write as _;
        let path = self.path("filler");
        let mut file = std::fs::File::create(&path).expect("made");
        while file.write_all(&[0; 4096]).is_ok() {}
        while file.write_all(&[0]).is_ok() {}
        path
    }

    pub fn remount(&self, options: &str) {
        let done = Command::new("mount").args(["-o", &format!("remount,{options}")]).arg(self.0.path()).status();
        assert!(done.expect("mount runs").success());
    }
}

impl Drop for SmallDisk {
    fn drop(&mut self) {
        let _ = Command::new("umount").arg("-l").arg(self.0.path()).status();
    }
}

fn ban(n: u64) -> Ban {
    Ban {
        prefix: prefix(n),
        at: at(n),
        until: None,
        offence: 1,
        origin: Origin::Operator,
        finding: None,
        note: "x".repeat(500),
        in_past: false,
    }
}

#[test]
fn a_full_disk_heals_when_there_is_room_again() {
    let Some(disk) = SmallDisk::mount("4m") else { return };
    let path = disk.path("state.db");
    let mut store = Store::open(&path, at(0)).expect("opened").store;
    store.record_ban(&ban(1)).expect("recorded");
    let filler = disk.fill();
    let mut refused = 0;
    for n in 2..300 {
        match store.record_ban(&ban(n)) {
            Ok(()) => {}
            Err(StoreError::Full) => refused += 1,
            Err(error) => panic!("{error}"),
        }
    }
    assert!(refused > 200, "{refused}");
    assert!(matches!(store.retry(), Err(StoreError::Full)));
    let state = State { bans: (1..300).map(ban).collect(), ..State::default() };
    assert!(matches!(store.save_progress(at(300), &state, &BTreeMap::new()), Err(StoreError::Full)));
    std::fs::remove_file(&filler).expect("room again");
    store.retry().expect("written");
    assert_eq!(store.unwritten(), 0);
    assert!(store.failing().is_some(), "the progress is still not saved");
    store.save_progress(at(300), &state, &BTreeMap::new()).expect("saved");
    assert!(store.failing().is_none());

    // Restarted while the disk is full, after a kill: what is on record is read all the same.
    let filler = disk.fill();
    std::mem::forget(store);
    let opened = Store::open(&path, at(400)).expect("opened");
    assert_eq!(opened.loaded.state.bans.len(), 299);
    let mut store = opened.store;
    let _ = store.record_ban(&ban(300));
    std::fs::remove_file(&filler).expect("room again");
    store.retry().expect("written");
    drop(store);

    // The same after an orderly stop, when SQLite has to make its files anew.
    let filler = disk.fill();
    let opened = Store::open(&path, at(500)).expect("opened");
    assert_eq!(opened.loaded.state.bans.len(), 300);
    let mut store = opened.store;
    let refused = store.record_ban(&ban(301));
    std::fs::remove_file(&filler).expect("room again");
    store.retry().unwrap_or_else(|e| panic!("{e}, after {refused:?}"));
    drop(store);
    assert_eq!(Store::open(&path, at(600)).expect("opened").loaded.state.bans.len(), 301);

    // And where there has never been a database.
    let filler = disk.fill();
    let mut store = Store::open(&disk.path("lib/new.db"), at(700)).expect("started without").store;
    let _ = store.record_ban(&ban(1));
    std::fs::remove_file(&filler).expect("room again");
    store.retry().expect("written");
    drop(store);
    assert_eq!(Store::open(&disk.path("lib/new.db"), at(800)).expect("opened").loaded.state.bans.len(), 1);
}

#[test]
fn a_read_only_disk_is_read_and_heals_when_it_can_be_written_again() {
    let Some(disk) = SmallDisk::mount("4m") else { return };
    let path = disk.path("state.db");
    let mut store = Store::open(&path, at(0)).expect("opened").store;
    store.record_ban(&ban(1)).expect("recorded");
    // Copies taken now are as after a crash: the write-ahead log has not been folded.
    let crashed = disk.path("crashed.db");
    copy(&path, &crashed, None, 0);
    drop(store);
    for file in [path, crashed, disk.path("new.db")] {
        disk.remount("ro");
        let stored = usize::from(file.exists());
        let opened = Store::open(&file, at(1)).unwrap_or_else(|e| panic!("{}: {e}", file.display()));
        assert_eq!(opened.loaded.state.bans.len(), stored, "{}", file.display());
        assert!(opened.trouble.is_some() && opened.quarantined.is_none());
        let mut store = opened.store;
        let error = store.record_ban(&ban(2)).expect_err("read-only");
        assert!(!matches!(error, StoreError::Damaged(_)), "{error}");
        assert!(store.retry().is_err());
        disk.remount("rw");
        store.retry().expect("written");
        assert!(store.failing().is_none());
        drop(store);
        assert_eq!(Store::open(&file, at(2)).expect("opened").loaded.state.bans.len(), stored + 1);
    }
}
