//! The warm-up: it begins with the first record ever, and what comes before teaches nothing.

use std::net::{IpAddr, Ipv4Addr};

use anomaly::engine::{Engine, Input, Output, Settings, Snapshot, Source, State};
use anomaly::record::Record;
use anomaly::time::Timestamp;

const START: i64 = 1_767_225_600;
const WARMUP: u32 = 120;
/// Behind the clock, log time that no record moves follows it at this distance.
const LAG: u32 = 2;

struct Site {
    engine: Engine,
    now: i64,
    out: Vec<Output>,
}

impl Site {
    fn new() -> Self {
        Self { engine: Engine::new(Settings::default(), 1), now: START, out: Vec::new() }
    }

    /// Seconds pass, in which the log is read to its end.
    fn pass(&mut self, secs: i64) {
        for _ in 0..secs {
            self.now += 1;
            let now = Timestamp::from_secs(self.now);
            self.engine.handle(now, Input::Tick { caught_up: true }, &mut self.out);
        }
    }

    /// Somebody asks for pages, all at once.
    fn visit(&mut self, client: u8, pages: u32) {
        let now = Timestamp::from_secs(self.now);
        let client = IpAddr::V4(Ipv4Addr::new(192, 0, 2, client));
        let record = Record { method: b"GET", status: 200, ..Record::new(client, now) }.with_path(b"/");
        for _ in 0..pages {
            self.engine.handle(now, Input::Record(&record), &mut self.out);
        }
    }

    fn decisions(&self) -> usize {
        self.out.iter().filter(|o| matches!(o, Output::Decision(_) | Output::GlobalAnomaly(_))).count()
    }

    fn shown(&self) -> Snapshot {
        self.engine.snapshot(0)
    }

    /// Decisions about somebody who comes in the last second of a warm-up that has just begun, and about one in the
    /// second that ends it.
    fn warms_up(&self) -> [usize; 2] {
        [119, 120].map(|secs| {
            let mut site = Self { engine: self.engine.clone(), out: Vec::new(), ..*self };
            site.pass(secs);
            assert_eq!(site.shown().warmup_left_secs, WARMUP + LAG - secs as u32);
            // More than the limit, and less than twice as much.
            site.visit(2, 100);
            assert_eq!(site.shown().warmup_left_secs, WARMUP - secs as u32);
            site.decisions()
        })
    }

    fn restart(&mut self) {
        self.resume(self.engine.save());
    }

    fn resume(&mut self, state: State) {
        self.engine = Engine::new(Settings::default(), 1);
        assert_eq!(self.engine.restore(state), Ok(()));
    }
}

#[test]
fn the_first_visitor_of_an_empty_log_is_not_banned_against_nothing() {
    for idle in [0, 1, 119, 121, 4000] {
        let mut site = Site::new();
        site.pass(idle);
        assert_eq!(site.shown().warmup_left_secs, WARMUP, "after {idle} s without a record");
        assert_eq!(site.out, [], "nothing is learned from {idle} s without a record");
        site.visit(1, 100);
        assert_eq!(site.decisions(), 0, "the first visitor after {idle} s");
        assert_eq!(site.shown().warmup_left_secs, WARMUP);
        assert_eq!(site.warms_up(), [0, 1], "while it warms up, and then, after {idle} s");
    }
}

#[test]
fn idle_seconds_before_the_first_record_are_no_samples() {
    let (mut late, mut soon) = (Site::new(), Site::new());
    late.pass(4000);
    soon.now = late.now;
    for site in [&mut late, &mut soon] {
        for second in 0..400 {
            site.visit((second % 50) as u8, 2);
            site.pass(1);
        }
    }
    let [late, soon] = [late, soon].map(|site| site.shown());
    assert_eq!((late.global, late.ip, late.global_limit), (soon.global, soon.ip, soon.global_limit));
}

#[test]
fn a_restart_neither_ends_the_warm_up_nor_begins_it_anew() {
    let mut site = Site::new();
    site.pass(300);
    site.restart();
    site.pass(300);
    assert_eq!(site.shown().warmup_left_secs, WARMUP);
    site.visit(1, 1);
    site.pass(50);
    site.restart();
    assert_eq!(site.shown().warmup_left_secs, 70 + LAG);
    site.pass(72);
    site.restart();
    assert_eq!(site.shown().warmup_left_secs, 0);
    // With its baseline alone, as after a new version, it is warm, and nobody has come since.
    for second in 0..400 {
        site.visit((second % 50) as u8, 2);
        site.pass(1);
    }
    let baseline = site.engine.save().baseline;
    site.resume(State { baseline, ..State::default() });
    site.pass(300);
    assert_eq!(site.shown().warmup_left_secs, 0);
    site.visit(60, 300);
    assert_eq!(site.decisions(), 1);
}

/// A clock that was an hour ahead while the log began makes the warm-up no longer.
#[test]
fn a_clock_that_is_set_back_does_not_prolong_the_warm_up() {
    let mut site = Site::new();
    site.now += 3600;
    site.visit(1, 1);
    site.pass(20);
    site.now -= 3600;
    site.visit(1, 1);
    assert_eq!(site.shown().warmup_left_secs, 100 + LAG);
    site.pass(104);
    assert_eq!(site.shown().warmup_left_secs, 0);
    site.visit(2, 300);
    assert_eq!(site.decisions(), 1);
}

/// What a version has saved that began without a record: warm, with an hour of nobody.
fn idle_state() -> State {
    let allowed = Settings { allowlist: vec!["192.0.2.1/32".parse().expect("a prefix")], ..Settings::default() };
    // Nothing is learned from an exempt client that comes before the window is full: what stays is an hour without anybody.
    let [once, twice] = [1, 2].map(|records| {
        let mut site = Site { engine: Engine::new(allowed.clone(), 1), ..Site::new() };
        site.visit(1, records);
        site.pass(4000);
        assert_eq!(site.shown().global.samples, 1800);
        site.engine.save()
    });
    let mut state = once;
    let counts = state.windows.iter().zip(&twice.windows).position(|(a, b)| a != b).expect("the number of records");
    assert_eq!((state.windows[counts], twice.windows[counts]), (1, 2));
    state.windows[counts] = 0;
    state
}

#[test]
fn a_state_that_was_warm_without_a_record_is_not() {
    let mut site = Site::new();
    site.resume(idle_state());
    assert_eq!(site.shown().warmup_left_secs, WARMUP);
    assert_eq!((site.shown().global.source, site.shown().global.samples), (Source::Floor, 0));
    site.visit(1, 100);
    assert_eq!(site.decisions(), 0);
    // Without its windows it is no warmer.
    site.resume(State { windows: Vec::new(), ..idle_state() });
    assert_eq!(site.shown().warmup_left_secs, WARMUP);
    site.visit(1, 100);
    assert_eq!(site.decisions(), 0);
}
