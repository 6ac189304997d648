//! What holds for any input: determinism, restarts, batches, the allow-list, one end for each ban, the cap, and that
//! more requests never make a client less suspicious.

use std::collections::HashMap;
use std::net::{IpAddr, Ipv4Addr};
use std::sync::Arc;
use std::time::Duration;

use anomaly::engine::{
    BadState, Ban, BanLength, Command, Decision, Engine, Input, Output, Refusal, Settings, Signal, Snapshot, State,
};
use anomaly::record::Record;
use anomaly::time::Timestamp;
use ipnet::IpNet;
use proptest::prelude::*;
use proptest::test_runner::{FailurePersistence, FileFailurePersistence};

const START: i64 = 1_767_225_600;

/// A request: seconds since the one before, the client, what it asks for, and how late it is.
#[derive(Clone, Copy, Debug)]
struct Step {
    forward: u16,
    client: u8,
    what: u8,
    late: u8,
}

fn steps(len: usize) -> impl Strategy<Value = Vec<Step>> {
    let forward = prop_oneof![20 => Just(0u16), 10 => 1u16..3, 1 => 3u16..2000];
    // Few clients, so that some of them flood.
    let step = (forward, prop_oneof![4 => 0u8..3, 1 => 0u8..40], 0u8..12, prop_oneof![9 => Just(0u8), 1 => 0u8..90]);
    let step = step.prop_map(|(forward, client, what, late)| Step { forward, client, what, late });
    proptest::collection::vec(step, 1..len)
}

fn settings() -> Settings {
    // Small figures, so that a short log is enough for bans.
    Settings {
        warmup_secs: 5,
        min_requests: 12,
        hard_limit: 200,
        brake_per_minute: 5,
        offence_decay: Duration::from_secs(5000),
        ..Settings::default()
    }
}

fn client(n: u8) -> IpAddr {
    if n.is_multiple_of(4) {
        format!("2001:db8:{}::{n}", n / 8).parse().expect("an address")
    } else {
        IpAddr::V4(Ipv4Addr::new(192, 0, 2, n))
    }
}

struct Run {
    engine: Engine,
    time: i64,
    out: Vec<Output>,
}

impl Run {
    fn new(settings: Settings) -> Self {
        Self { engine: Engine::new(settings, 1), time: START, out: Vec::new() }
    }

    fn step(&mut self, step: &Step) {
        self.time += i64::from(step.forward);
        let path = format!("/{}{}", step.what % 7, [".php", "", ".png"][usize::from(step.what) % 3]);
        let time = Timestamp::from_secs(self.time - i64::from(step.late));
        let record = Record {
            method: if step.what.is_multiple_of(5) { b"POST" } else { b"GET" },
            status: [200, 404, 500, 401][usize::from(step.what) % 4],
            ..Record::new(client(step.client), time)
        }
        .with_path(path.as_bytes());
        self.engine.handle(Timestamp::from_secs(self.time), Input::Record(&record), &mut self.out);
    }

    /// Tells the engine of records before they come: only their clients matter.
    fn look_ahead(&mut self, steps: &[Step]) {
        let record = |step: &Step| Record::new(client(step.client), Timestamp::EPOCH);
        self.engine.look_ahead(&steps.iter().map(record).collect::<Vec<_>>());
    }

    fn tick(&mut self, caught_up: bool) {
        self.engine.handle(Timestamp::from_secs(self.time), Input::Tick { caught_up }, &mut self.out);
    }

    fn finish(mut self) -> (Vec<Output>, Snapshot) {
        self.time += 90_000;
        self.tick(true);
        let snapshot = self.engine.snapshot(10);
        (self.out, snapshot)
    }
}

fn run(steps: &[Step], settings: Settings) -> (Vec<Output>, Snapshot) {
    let mut run = Run::new(settings);
    steps.iter().for_each(|step| run.step(step));
    run.finish()
}

/// Evidence is kept in memory only; everything else must be the same after a restart.
fn without_samples(outputs: Vec<Output>) -> Vec<Output> {
    let strip_ban = |ban: &mut Ban| ban.finding.iter_mut().for_each(|finding| finding.samples.clear());
    let strip = |mut output: Output| {
        match &mut output {
            Output::Decision(Decision::Ban(ban)) => strip_ban(ban),
            Output::Decision(Decision::Unban(unban)) => strip_ban(Arc::make_mut(&mut unban.ban)),
            Output::Braked(braked) => braked.finding.samples.clear(),
            _ => {}
        }
        output
    };
    outputs.into_iter().map(strip).collect()
}

/// Cases that failed once are kept beside this file, and tried first.
fn beside() -> Option<Box<dyn FailurePersistence>> {
    let path = concat!(env!("CARGO_MANIFEST_DIR"), "/../tests/detection/properties.txt");
    Some(Box::new(FileFailurePersistence::Direct(path)))
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 60, failure_persistence: beside(), ..ProptestConfig::default() })]

    #[test]
    fn the_same_input_gives_the_same_output(steps in steps(600)) {
        prop_assert_eq!(run(&steps, settings()), run(&steps, settings()));
    }

    #[test]
    fn a_restart_goes_unnoticed(steps in steps(600), at in 0usize..600) {
        let mut first = Run::new(settings());
        let at = at.min(steps.len());
        steps[..at].iter().for_each(|step| first.step(step));
        let state = first.engine.save();
        let mut second = Run { engine: Engine::new(settings(), 1), time: first.time, out: first.out.clone() };
        prop_assert_eq!(second.engine.restore(state.clone()), Ok(()));
        // Sums of fractions may differ in their last bits, bytes not.
        prop_assert_eq!(second.engine.save(), state);
        for step in &steps[at..] {
            first.step(step);
            second.step(step);
        }
        let (first, second) = (first.finish(), second.finish());
        prop_assert_eq!(without_samples(first.0), without_samples(second.0));
        prop_assert_eq!(first.1.bans, second.1.bans);
        prop_assert_eq!(first.1.global, second.1.global);
        prop_assert_eq!(first.1.ip, second.1.ip);
    }

    #[test]
    fn ticks_in_between_do_not_matter(steps in steps(600), every in 1usize..20) {
        let mut ticked = Run::new(settings());
        for (i, step) in steps.iter().enumerate() {
            ticked.step(step);
            if i % every == 0 {
                ticked.tick(false);
            }
        }
        prop_assert_eq!(ticked.finish(), run(&steps, settings()));
    }

    /// More records than it has room for included.
    #[test]
    fn looking_ahead_changes_nothing(steps in steps(600), at_once in 1usize..24, cap in 2usize..50) {
        let settings = Settings { max_tracked_ips: cap, ..settings() };
        let mut ahead = Run::new(settings.clone());
        for batch in steps.chunks(at_once) {
            ahead.look_ahead(batch);
            batch.iter().for_each(|step| ahead.step(step));
        }
        prop_assert_eq!(ahead.finish(), run(&steps, settings));
    }

    #[test]
    fn an_allow_listed_address_is_in_no_ban(steps in steps(600), listed in proptest::collection::vec(0u8..40, 1..6)) {
        let allowlist: Vec<IpNet> = listed.iter().map(|n| IpNet::from(client(*n))).collect();
        let (out, _) = run(&steps, Settings { allowlist: allowlist.clone(), ..settings() });
        for output in out {
            if let Output::Decision(Decision::Ban(ban)) = output {
                prop_assert!(!allowlist.iter().any(|a| ban.prefix.contains(a)), "{}", ban.prefix);
            }
        }
    }

    #[test]
    fn each_timed_ban_ends_exactly_once(steps in steps(800)) {
        let (out, snapshot) = run(&steps, settings());
        let mut open: HashMap<IpNet, Box<Ban>> = HashMap::new();
        for output in out {
            match output {
                Output::Decision(Decision::Ban(ban)) if ban.in_past => {}
                Output::Decision(Decision::Ban(ban)) => {
                    prop_assert_eq!(open.insert(ban.prefix, ban), None, "banned twice");
                }
                Output::Decision(Decision::Unban(unban)) => {
                    prop_assert_eq!(unban.ban.offence, unban.offence);
                    let begun = open.remove(&unban.prefix);
                    prop_assert_eq!(begun.as_deref(), Some(&*unban.ban));
                }
                _ => {}
            }
        }
        let left: Vec<IpNet> = snapshot.bans.iter().map(|b| b.prefix).collect();
        prop_assert!(snapshot.bans.iter().all(|b| b.until.is_none()));
        prop_assert_eq!(open.len(), left.len());
    }

    #[test]
    fn tracked_addresses_never_exceed_the_cap(steps in steps(600), cap in 1usize..8) {
        let mut run = Run::new(Settings { max_tracked_ips: cap, ..settings() });
        for step in &steps {
            run.step(step);
            prop_assert!(run.engine.snapshot(0).tracked_ips <= cap);
        }
    }

    /// A flood that is banned is banned no later with more of the same in between.
    #[test]
    fn more_requests_never_unflag(
        base in proptest::collection::vec(0u16..3, 50..400),
        extra in proptest::collection::vec((0usize..400, 0u8..12), 0..100),
    ) {
        let banned_at = |extra: &[(usize, u8)]| {
            let mut run = Run::new(settings());
            // Somebody else begins the log, so that the warm-up is over.
            run.step(&Step { forward: 0, client: 39, what: 4, late: 0 });
            run.time += 30;
            for (i, forward) in base.iter().enumerate() {
                run.step(&Step { forward: *forward, client: 1, what: 4, late: 0 });
                for (_, what) in extra.iter().filter(|(at, _)| *at == i) {
                    run.step(&Step { forward: 0, client: 1, what: *what, late: 0 });
                }
            }
            run.out.iter().find_map(|o| match o {
                Output::Decision(Decision::Ban(ban)) => Some(ban.at),
                _ => None,
            })
        };
        if let Some(without) = banned_at(&[]) {
            let with = banned_at(&extra);
            prop_assert!(with.is_some_and(|with| with <= without), "{without} became {with:?}");
        }
    }

    /// Answered well, with different sizes, below 5 req/s and for less than ten minutes: a sync, a gallery, somebody who reads. (Not
    /// what is called like a log-in or an exploit: names are evidence of their own.)
    #[test]
    fn what_is_answered_and_differs_bans_nobody(
        requests in proptest::collection::vec((200u32..2000, 0u8..4, 0u32..400, 0u64..4_000_000_000, 0u8..3), 50..600),
    ) {
        let mut engine = Engine::new(Settings::default(), 1);
        let (mut now, mut out) = (START * 1000, Vec::new());
        let visitor = Record { status: 200, ..Record::new(client(39), Timestamp::from_ms(now)) };
        engine.handle(visitor.time, Input::Record(&visitor), &mut out);
        now += 300_000;
        let end = now + 599_000;
        for (n, (gap, method, name, size, directory)) in (0u64..).zip(requests) {
            now += i64::from(gap);
            if now > end {
                break;
            }
            let method = [b"GET".as_slice(), b"HEAD", b"PUT", b"PROPFIND"][usize::from(method)];
            let path = format!("/{}/{name}", ["files", "remote.php/dav", "page"][usize::from(directory)]);
            // No two sizes are alike.
            let response_size = (size & !0xfff_ffff) + n * 1_000_003 % 0x0fff_ffff;
            let status = [200, 201, 207, 204][(n % 4) as usize];
            let time = Timestamp::from_ms(now);
            let record = Record { method, status, response_size, ..Record::new(client(1), time) }.with_path(path.as_bytes());
            engine.handle(time, Input::Record(&record), &mut out);
        }
        prop_assert_eq!(bans(&out).len(), 0, "{:?}", bans(&out));
    }

    /// The same attack under other names for the same: a query, another spelling, a suffix that looks like an asset's.
    #[test]
    fn other_names_for_the_same_make_nobody_safer(
        kind in 0usize..4, renamed in 1usize..5, per_second in 4u32..20, salt in 0u32..1000,
    ) {
        let (method, path, status, size) = [
            (b"GET".as_slice(), "/index.php", 200, 9000),
            (b"POST", "/wp-login.php", 200, 4000),
            (b"GET", "/.env", 404, 150),
            (b"GET", "/shop/list.php", 200, 20_000),
        ][kind];
        let banned_after = |rename: usize| {
            let mut run = warm(Settings::default());
            for n in 0..4000u32 {
                let spelled = match rename {
                    0 => path.to_owned(),
                    1 => format!("{path}?{}", n.wrapping_mul(salt)),
                    2 => format!("/{n}/../{path}"),
                    3 => path.replacen('/', "//", 1).replace('i', if n % 2 == 0 { "%69" } else { "i" }),
                    _ => format!("{path}/{n}.css"),
                };
                let name = if kind == 2 { format!("/{n}{spelled}") } else { spelled };
                let time = Timestamp::from_ms(run.time * 1000 + i64::from(n) * 1000 / i64::from(per_second));
                let record = Record { method, status, response_size: size, ..Record::new(client(1), time) };
                run.engine.handle(time, Input::Record(&record.with_path(name.as_bytes())), &mut run.out);
                if !bans(&run.out).is_empty() {
                    return n;
                }
            }
            u32::MAX
        };
        let (plain, other) = (banned_after(0), banned_after(renamed));
        // What is called like an asset behind a script is counted as another path of one size, which weighs fully a little later.
        let later = if renamed == 4 { 3 * plain + 60 } else { plain + 2 };
        prop_assert!(plain < 4000 && other <= later, "{plain} became {other}");
    }

    #[test]
    fn bytes_that_are_no_state_are_refused(bytes in proptest::collection::vec(any::<u8>(), 0..400), cut in 0usize..4000) {
        let mut broken = Engine::new(settings(), 1);
        let mut state = State { baseline: bytes.clone(), windows: bytes, ..State::default() };
        let _ = broken.restore(state.clone());
        let mut run = Run::new(settings());
        for i in 0..300u16 {
            run.step(&Step { forward: i % 2, client: (i % 30) as u8, what: (i % 12) as u8, late: 0 });
        }
        state = run.engine.save();
        prop_assume!(cut < state.windows.len());
        state.windows.truncate(cut);
        prop_assert_eq!(Engine::new(settings(), 1).restore(state), if cut == 0 { Ok(()) } else { Err(BadState) });
    }

    #[test]
    fn windows_without_the_baseline_that_was_saved_with_them_are_gone_on_with(bad in any::<bool>(), more in 1..300u16) {
        let step = |i: u16| Step {
            forward: u16::from(i.is_multiple_of(20)),
            client: (i % 30) as u8,
            what: (i % 12) as u8,
            late: 0,
        };
        let mut run = Run::new(settings());
        (0..300).for_each(|i| run.step(&step(i)));
        let mut state = run.engine.save();
        state.baseline = if bad { vec![0xff; 40] } else { Vec::new() };
        let restored = run.engine.snapshot(0).tracked_ips;
        run.engine = Engine::new(settings(), 1);
        prop_assert_eq!(run.engine.restore(state), if bad { Err(BadState) } else { Ok(()) });
        prop_assert_eq!(run.engine.snapshot(0).tracked_ips, restored);
        // Who was counted in the minute that was lost is counted anew, and never taken out of it.
        (0..more).for_each(|i| run.step(&step(i)));
    }
}

fn flood(run: &mut Run, client: u8, requests: u32, per_second: u32) {
    for i in 0..requests {
        run.step(&Step { forward: u16::from(i % per_second == 0), client, what: 4, late: 0 });
    }
}

fn warm(settings: Settings) -> Run {
    let mut run = Run::new(settings);
    run.step(&Step { forward: 0, client: 39, what: 4, late: 0 });
    run.time += 600;
    run.tick(true);
    run.out.clear();
    run
}

fn bans(out: &[Output]) -> Vec<&anomaly::engine::Ban> {
    out.iter()
        .filter_map(|o| match o {
            Output::Decision(Decision::Ban(ban)) => Some(&**ban),
            _ => None,
        })
        .collect()
}

/// Whoever reads the log may look at it less often while there is none.
#[test]
fn a_flood_is_a_hurry_from_half_way_to_its_ban_and_a_visitor_never() {
    let mut run = warm(Settings::default());
    let (mut hurry, mut requests) = (None, 0);
    while bans(&run.out).is_empty() {
        requests += 1;
        run.step(&Step { forward: u16::from(requests % 200 == 0), client: 1, what: 4, late: 0 });
        if run.engine.take_hurry() {
            hurry.get_or_insert(requests);
        }
    }
    assert!(hurry.is_some_and(|hurry| 2 * hurry <= requests + 1), "{hurry:?} of {requests}");
    run.engine.take_hurry();
    for page in 0..300 {
        run.step(&Step { forward: 1, client: 2, what: 4, late: 0 });
        assert!(!run.engine.take_hurry(), "page {page} of somebody who asks for one every second");
    }
    assert_eq!(bans(&run.out).len(), 1, "that of the flood");
}

#[test]
fn an_unban_by_hand_takes_back_the_offence_and_gives_grace() {
    let mut run = warm(Settings::default());
    flood(&mut run, 1, 200, 50);
    assert_eq!(bans(&run.out).iter().map(|b| b.offence).collect::<Vec<_>>(), [1]);
    let prefix = bans(&run.out)[0].prefix;
    run.out.clear();
    let now = Timestamp::from_secs(run.time);
    run.engine.handle(now, Input::Command(Command::Unban { prefix }), &mut run.out);
    assert!(matches!(run.out[..], [Output::Decision(Decision::Unban(_))]));
    assert!(run.engine.client(client(1)).is_none(), "its windows are cleared");
    run.out.clear();
    flood(&mut run, 1, 1000, 50);
    assert_eq!(bans(&run.out), Vec::<&anomaly::engine::Ban>::new(), "only the hard limit bans in the grace");
    flood(&mut run, 1, 300, 50);
    assert_eq!(
        bans(&run.out).iter().map(|b| (b.offence, b.finding.as_ref().map(|f| f.rule))).collect::<Vec<_>>(),
        [(1, Some(anomaly::engine::Rule::HardLimit))]
    );
    run.out.clear();
    run.engine.handle(
        now,
        Input::Command(Command::Unban { prefix: "203.0.113.1/32".parse().expect("a prefix") }),
        &mut run.out,
    );
    assert!(matches!(run.out[..], [Output::Refused(Refusal::NotBanned { .. })]));
}

#[test]
fn an_operator_bans_exactly_what_is_written_and_never_the_allow_list() {
    let allowlist = vec!["10.0.0.0/8".parse().expect("a prefix")];
    let mut run = warm(Settings { allowlist, ..Settings::default() });
    let mut ask = |prefix: &str, length, force| {
        let prefix = prefix.parse().expect("a prefix");
        let command = Command::Ban { prefix, length, reason: "by hand".into(), force, replace: false };
        let mut out = Vec::new();
        run.engine.handle(Timestamp::from_secs(run.time), Input::Command(command), &mut out);
        out.pop().expect("an answer")
    };
    let hour = Some(BanLength::Timed(Duration::from_secs(3600)));
    assert!(matches!(ask("10.1.0.0/16", hour, true), Output::Refused(Refusal::AllowListed { .. })));
    assert!(matches!(ask("0.0.0.0/0", hour, true), Output::Refused(Refusal::AllowListed { .. })));
    assert!(matches!(ask("192.0.0.0/8", hour, false), Output::Refused(Refusal::TooWide { .. })));
    let Output::Decision(Decision::Ban(ban)) = ask("192.0.2.0/24", hour, false) else { panic!("no ban") };
    assert_eq!((ban.offence, ban.until.map(|u| u.since(ban.at).as_secs())), (1, Some(3600)));
    let Output::Decision(Decision::Ban(ban)) = ask("203.0.113.9/32", None, false) else { panic!("no ban") };
    assert_eq!(ban.until.map(|u| u.since(ban.at).as_secs()), Some(600));
    flood(&mut run, 1, 500, 50);
    assert!(bans(&run.out).is_empty(), "who is inside a banned prefix is blocked already");
    assert_eq!(run.engine.snapshot(0).blocked, 500);
}

#[test]
fn reading_lines_again_after_a_crash_counts_no_offence_twice() {
    let mut run = warm(Settings::default());
    let state = run.engine.save();
    let time = run.time;
    flood(&mut run, 1, 400, 50);
    let ban = bans(&run.out)[0].clone();
    // The ban was stored, the windows were not; ten minutes later the daemon starts again and reads on from before.
    let offences = run.engine.save().offences;
    let mut again = Run::new(Settings::default());
    assert_eq!(again.engine.restore(State { bans: vec![ban], offences, ..state }), Ok(()));
    again.time = time;
    flood(&mut again, 1, 400, 50);
    assert!(bans(&again.out).is_empty());
    assert_eq!(again.engine.save().offences.iter().map(|o| o.count).collect::<Vec<_>>(), [1]);
}

#[test]
fn a_ban_from_a_backlog_counts_but_is_in_the_past() {
    let mut run = warm(Settings::default());
    let later = Timestamp::from_secs(run.time + 7200);
    for i in 0..1000 {
        let time = Timestamp::from_secs(run.time + i / 50);
        let record = Record { method: b"GET", status: 200, ..Record::new(client(1), time) }.with_path(b"/");
        run.engine.handle(later, Input::Record(&record), &mut run.out);
    }
    let bans = bans(&run.out);
    assert_eq!(bans.iter().map(|b| (b.offence, b.in_past)).collect::<Vec<_>>(), [(1, true)]);
    assert!(run.engine.snapshot(0).bans.is_empty());
    assert_eq!(run.engine.next_deadline(), None);
}

#[test]
fn stamps_in_the_future_do_not_blind_the_detector() {
    for replay in [false, true] {
        let mut run = warm(Settings::default());
        if replay {
            run = Run::new(Settings { replay: true, ..Settings::default() });
            for i in 0..700u16 {
                run.step(&Step { forward: 1, client: (i % 30) as u8 + 5, what: 4, late: 0 });
            }
        }
        let time = Timestamp::from_secs(run.time + 86_400 * 365);
        let record = Record { damaged: true, ..Record::new(client(2), time) };
        run.engine.handle(Timestamp::from_secs(run.time), Input::Record(&record), &mut run.out);
        flood(&mut run, 1, 200, 50);
        assert_eq!(run.engine.snapshot(0).early, 1, "replay {replay}");
        assert_eq!(bans(&run.out).len(), 1, "replay {replay}");
    }
}

#[test]
fn a_clock_that_is_set_back_does_not_blind_the_detector() {
    let mut run = warm(Settings::default());
    run.time -= 3 * 3600;
    flood(&mut run, 1, 200, 50);
    assert_eq!(bans(&run.out).len(), 1);
    // It has not to learn again, also under another configuration.
    assert_eq!(run.engine.snapshot(0).warmup_left_secs, 0);
    let settings = Settings { warmup_secs: 30, ..Settings::default() };
    let now = Timestamp::from_secs(run.time);
    run.engine.handle(now, Input::Command(Command::Configure(Box::new(settings))), &mut run.out);
    assert_eq!(run.engine.snapshot(0).warmup_left_secs, 0);
}

#[test]
fn who_lies_in_a_banned_prefix_is_banned_in_the_list_of_sources() {
    let mut run = warm(Settings::default());
    flood(&mut run, 2, 20, 50);
    let banned = |run: &Run| {
        let ip = IpNet::from(client(2));
        run.engine.snapshot(100).top.iter().find(|c| c.prefix == ip).map(|c| c.banned)
    };
    assert_eq!(banned(&run), Some(false));
    let prefix = IpNet::new(client(2), 24).expect("a length").trunc();
    let command = Command::Ban { prefix, length: None, reason: String::new(), force: false, replace: false };
    run.engine.handle(Timestamp::from_secs(run.time), Input::Command(command), &mut run.out);
    // It stays in the list until the window has passed.
    assert_eq!(banned(&run), Some(true));
}

#[test]
fn a_configuration_is_taken_without_losing_a_window_or_a_ban() {
    let mut run = warm(Settings::default());
    flood(&mut run, 1, 200, 50);
    flood(&mut run, 2, 50, 50);
    let prefix = bans(&run.out)[0].prefix;
    let now = Timestamp::from_secs(run.time);
    run.out.clear();
    let settings = Settings { window_secs: 30, z_score: 4.0, ..Settings::default() };
    run.engine.handle(now, Input::Command(Command::Configure(Box::new(settings))), &mut run.out);
    assert_eq!(run.engine.snapshot(0).bans.len(), 1);
    assert_eq!(run.engine.client(client(2)).map(|c| c.requests), Some(50));
    // An allow-list that covers a ban ends it.
    run.out.clear();
    let settings = Settings { allowlist: vec![prefix], ..Settings::default() };
    run.engine.handle(now, Input::Command(Command::Configure(Box::new(settings))), &mut run.out);
    assert!(run.out.iter().any(|o| matches!(o, Output::Decision(Decision::Unban(u)) if u.prefix == prefix)));
    assert!(run.engine.snapshot(0).bans.is_empty());
}

#[test]
fn the_busiest_clients_are_banned_where_a_ban_covers_all_of_them() {
    let mut run = warm(Settings::default());
    (1..=4).for_each(|n| flood(&mut run, n, 50, 50));
    let banned = |run: &Run| {
        let top = run.engine.snapshot(10).top;
        top.iter().filter(|c| c.banned).map(|c| c.prefix.to_string()).collect::<Vec<_>>()
    };
    assert_eq!((run.engine.snapshot(10).top.len(), banned(&run)), (4, vec![]));
    let now = Timestamp::from_secs(run.time);
    for prefix in ["192.0.2.0/30", "2001:db8::5/128"] {
        let (prefix, length) = (prefix.parse().expect("a prefix"), None);
        let ban = Command::Ban { prefix, length, reason: String::new(), force: false, replace: false };
        run.engine.handle(now, Input::Command(ban), &mut run.out);
    }
    // Another address of that /64 goes on.
    flood(&mut run, 4, 50, 50);
    assert_eq!(run.engine.snapshot(10).top.len(), 4);
    assert_eq!(banned(&run), ["192.0.2.1/32", "192.0.2.2/32", "192.0.2.3/32"]);
}

#[test]
fn a_ban_says_why() {
    let mut run = warm(Settings::default());
    for i in 0..40u8 {
        run.step(&Step { forward: u16::from(i % 3 == 0), client: 1, what: 1 + 4 * (i % 12), late: 0 });
    }
    flood(&mut run, 1, 400, 50);
    let bans = bans(&run.out);
    let finding = bans[0].finding.as_ref().expect("the numbers");
    assert_eq!(finding.signal.map(|s| s.0), Some(Signal::SameAnswers));
    assert!(finding.rate > finding.baseline.mean && finding.z_score > 3.0);
    assert!(!finding.samples.is_empty() && finding.samples.len() <= 5);
    assert_eq!(&*finding.samples[0].method, b"GET");
}

#[test]
fn a_ban_without_effect_is_reported_once() {
    let mut run = warm(Settings::default());
    flood(&mut run, 1, 4000, 50);
    let reports = run.out.iter().filter(|o| matches!(o, Output::NotEffective(_))).count();
    assert_eq!(reports, 1);
}
