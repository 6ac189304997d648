//! The apply thread with real sinks in a directory of their own, and an enforcer that counts what it is asked.

use std::fs::File;
use std::net::IpAddr;
use std::path::Path;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};

use tokio::sync::oneshot;

use super::*;
use crate::enforce::dry_run::DryRun;
use crate::enforce::{Coverage, EnforceError, Fault, Held, Incident, Name};
use crate::engine::{Braked, Finding, Grade, Level, LimitSource, Origin, Rule, Scope, Source, Unban};
use crate::notify::Reporter;

mod golden;

/// Drops nothing, and counts its calls.
#[derive(Default)]
struct Counting {
    inner: DryRun,
    calls: Arc<Calls>,
}

#[derive(Default)]
struct Calls {
    listings: AtomicUsize,
    bans: AtomicUsize,
    unbans: AtomicUsize,
    /// It cannot be asked.
    mute: AtomicBool,
    /// It has no room for one more.
    full: AtomicBool,
    /// It cannot lift a ban.
    stuck: AtomicBool,
    /// It calls itself XDP, and each ban has dropped something.
    xdp: AtomicBool,
    /// Packets that each ban has dropped.
    packets: AtomicUsize,
}

impl Enforcer for Counting {
    fn name(&self) -> Name {
        if self.calls.xdp.load(Ordering::Relaxed) { Name::Xdp } else { self.inner.name() }
    }

    fn ban(&mut self, drops: &[Drop]) -> Vec<Result<(), EnforceError>> {
        self.calls.bans.fetch_add(1, Ordering::Relaxed);
        if self.calls.full.load(Ordering::Relaxed) {
            return drops.iter().map(|_| Err(EnforceError::Full { capacity: 1 })).collect();
        }
        self.inner.ban(drops)
    }

    fn unban(&mut self, prefixes: &[IpNet]) -> Vec<Result<(), EnforceError>> {
        self.calls.unbans.fetch_add(1, Ordering::Relaxed);
        if self.calls.stuck.load(Ordering::Relaxed) {
            let error = |_: &IpNet| EnforceError::Command { command: "ipset del".into(), message: "no answer".into() };
            return prefixes.iter().map(|prefix| Err(error(prefix))).collect();
        }
        self.inner.unban(prefixes)
    }

    fn banned(&mut self) -> Result<Vec<Held>, EnforceError> {
        self.calls.listings.fetch_add(1, Ordering::Relaxed);
        if self.calls.mute.load(Ordering::Relaxed) {
            return Err(EnforceError::Command { command: "iptables-save".into(), message: "no answer".into() });
        }
        let packets = self.calls.packets.load(Ordering::Relaxed) as u64;
        let mut held = self.inner.banned()?;
        let counted = if self.calls.xdp.load(Ordering::Relaxed) { (1200, 64_000) } else { (packets, 60 * packets) };
        held.iter_mut().for_each(|held| (held.packets, held.bytes) = counted);
        Ok(held)
    }

    fn snapshot_text(&mut self) -> Result<String, EnforceError> {
        self.inner.snapshot_text()
    }

    fn set_never_drop(&mut self, prefixes: &[IpNet]) -> Result<(), EnforceError> {
        self.inner.set_never_drop(prefixes)
    }

    fn maintain(&mut self) -> Vec<Incident> {
        self.inner.maintain()
    }

    fn coverage(&mut self) -> Coverage {
        self.inner.coverage()
    }

    fn close(self: Box<Self>, keep: bool) -> Result<(), EnforceError> {
        Box::new(self.inner).close(keep)
    }
}

/// An apply thread without the thread, whose files are below `dir`.
fn apply(dir: &Path) -> (Apply, Arc<Calls>) {
    let config = Config::default();
    let store = Store::open(&dir.join("state.db"), now()).unwrap().store;
    let enforcer = Counting::default();
    let calls = Arc::clone(&enforcer.calls);
    let apply = Apply {
        reader: store.reader(),
        store,
        enforcer: Box::new(enforcer),
        audit: Audit::open(&dir.join("audit.jsonl"), 1 << 30),
        snapshots: Snapshots::open(&dir.join("snapshots.log"), 1 << 30),
        notifier: Notifier::start(&config.notify, &Reporter::of(&config)).unwrap(),
        events: broadcast::channel(16).0,
        metrics: Arc::default(),
        picture: Shared::default(),
        news: Arc::new(Notify::new()),
        saves: Arc::default(),
        config: Box::new(config),
        guarded: Vec::new(),
        wanted: Wanted::default(),
        counts: Arc::default(),
        held: 0,
        unlisted: None,
        off: false,
        not_effective: BTreeMap::new(),
        degraded: BTreeMap::new(),
        told: Told::default(),
    };
    (apply, calls)
}

/// 20.0.0.0, 20.0.0.1, ...
fn prefix(n: u32) -> IpNet {
    IpAddr::from((0x1400_0000 + n).to_be_bytes()).into()
}

fn ban(n: u32) -> Ban {
    Ban {
        prefix: prefix(n),
        at: now(),
        until: Some(now().plus(Duration::from_secs(600))),
        offence: 1,
        origin: Origin::Detector,
        finding: None,
        note: String::new(),
        in_past: false,
    }
}

fn bans(count: u32) -> Vec<Output> {
    (0..count).map(|n| Output::Decision(Decision::Ban(Box::new(ban(n))))).collect()
}

fn unbans(count: u32) -> Vec<Output> {
    (0..count).map(|n| unban(n, Origin::Detector)).collect()
}

fn unban(n: u32, origin: Origin) -> Output {
    let ban = Arc::new(ban(n));
    Output::Decision(Decision::Unban(Unban { prefix: ban.prefix, at: now(), offence: 1, origin, ban }))
}

/// What is written to the daemon's log meanwhile, by way of a file in `dir`.
fn told(dir: &Path, work: impl FnOnce()) -> Vec<String> {
    // While there is one subscriber only, `tracing` asks that of whichever thread comes by a line of code first, and other
    // tests' threads have none; then the line stays off for ours too.
    let _second = tracing::Dispatch::new(tracing_subscriber::registry());
    let path = dir.join("log");
    let file = Arc::new(File::create(&path).unwrap());
    let subscriber = tracing_subscriber::fmt().with_ansi(false).without_time().with_writer(file).finish();
    tracing::subscriber::with_default(subscriber, work);
    std::fs::read_to_string(path).unwrap().lines().map(str::to_owned).collect()
}

/// The audit log's events, by word and address.
fn audited(dir: &Path) -> Vec<(String, String)> {
    let text = std::fs::read_to_string(dir.join("audit.jsonl")).unwrap();
    let row = |line: &str| {
        let row: serde_json::Value = serde_json::from_str(line).unwrap();
        let word = |key: &str| row[key].as_str().unwrap_or_default().to_owned();
        (word("event"), word("ip"))
    };
    text.lines().map(row).collect()
}

#[test]
fn bans_that_end_together_cost_one_listing_of_the_enforcer() {
    let dir = tempfile::tempdir().unwrap();
    let (mut apply, calls) = apply(dir.path());
    let count =
        |calls: &Calls| [&calls.bans, &calls.unbans, &calls.listings].map(|calls| calls.swap(0, Ordering::Relaxed));
    apply.outputs(bans(900), None);
    assert_eq!(count(&calls), [1, 0, 0]);
    // What each has dropped is read once, for all of them.
    apply.outputs(unbans(800), None);
    assert_eq!(count(&calls), [0, 1, 1]);
    // Nothing that is dropped is among these, so nobody need be asked.
    apply.outputs(unbans(800), None);
    assert_eq!(count(&calls), [0, 0, 0]);
    let ended = audited(dir.path()).into_iter().filter(|(event, _)| event == "unban").count();
    assert_eq!((apply.wanted.len(), ended), (100, 800));
    // However many there are: what the last ones have dropped since they were last read belongs to them too.
    apply.outputs(bans(1100), None);
    apply.outputs(unbans(1100), None);
    assert_eq!(count(&calls), [1, 1, 1]);
}

#[test]
fn many_bans_at_once_are_each_audited_and_told_the_log_in_few_lines() {
    const BANS: u32 = 10_000;
    let dir = tempfile::tempdir().unwrap();
    let (mut apply, calls) = apply(dir.path());
    let watch = stopwatch();
    let lines = told(dir.path(), || apply.outputs(bans(BANS), None));
    let banned = watch();
    println!("{BANS} bans applied in {banned:?}, {} lines", lines.len());
    assert!(lines.len() < 10, "{} lines: {:?}", lines.len(), &lines[..3]);
    assert!(lines.iter().any(|line| line.contains(&format!("{BANS} bans")) && line.contains("20.0.0.0")), "{lines:?}");
    assert_eq!(calls.bans.load(Ordering::Relaxed), 1);
    let lines = told(dir.path(), || apply.outputs(unbans(BANS), None));
    println!("lifted in {:?}", watch() - banned);
    assert!(lines.len() < 10, "{} lines: {:?}", lines.len(), &lines[..3]);
    // Each on record, in the audit log and among the snapshots, and in order.
    let wanted: Vec<_> = ["ban", "unban"]
        .into_iter()
        .flat_map(|event| (0..BANS).map(move |n| (event.to_owned(), ip_text(&prefix(n)))))
        .collect();
    assert!(audited(dir.path()) == wanted, "the audit log is not whole");
    let snapshots = std::fs::read_to_string(dir.path().join("snapshots.log")).unwrap();
    assert_eq!(snapshots.lines().filter(|line| line.contains(" change ")).count(), 2 * BANS as usize);
    let recorded = apply.reader.explain(&prefix(BANS - 1), 10).unwrap();
    assert_eq!(recorded.iter().map(|r| r.state).collect::<Vec<_>>(), [BanState::Expired]);
    // A handful is told one by one, with the reason.
    let lines = told(dir.path(), || apply.outputs(bans(3), None));
    assert_eq!(lines.iter().filter(|line| line.contains("ban 20.0.0.") && line.contains("offence 1")).count(), 3);
}

/// A sink that was asked to wait, or was away for a moment, is nothing to tell anybody of.
#[test]
fn a_sink_is_degraded_once_nothing_has_got_through_for_ten_seconds() {
    let dir = tempfile::tempdir().unwrap();
    let (mut apply, _) = apply(dir.path());
    // Nobody listens there any more.
    let gone = std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
    let settings =
        config::Notify { webhook_url: Some(config::Secret::new(format!("http://{gone}/"))), ..Default::default() };
    let pace = crate::notify::Pace { collect: Duration::ZERO, ..Default::default() };
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    runtime.block_on(async {
        apply.notifier = Notifier::with_pace(&settings, &Reporter::of(&apply.config), pace).unwrap();
        apply.notifier.send(Notice::Other { at: now(), event: "started".into(), text: String::new() });
        while apply.notifier.health()[0].failing.is_none() {
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
        tokio::time::pause();
        apply.look_after_sinks();
        assert!(apply.degraded.is_empty(), "{:?}", apply.degraded);
        tokio::time::advance(upkeep::SINK_FAILS_AFTER).await;
        apply.look_after_sinks();
        assert!(apply.degraded["webhook"].0.starts_with("nothing delivered for 1"), "{:?}", apply.degraded);
        assert_eq!(audited(dir.path()), [("degraded".to_owned(), String::new())]);
    });
}

/// What is shown as degraded, with its reasons.
fn shown(apply: &mut Apply) -> Vec<(String, String)> {
    apply.publish();
    let picture = apply.picture.lock().unwrap().clone().unwrap();
    picture.degraded.iter().map(|(word, reason, _)| (word.clone(), reason.clone())).collect()
}

/// As long ago as nobody would remember by himself.
fn make_old(apply: &mut Apply) {
    for (_, since) in apply.degraded.values_mut() {
        *since = since.minus(Duration::from_secs(86_400));
    }
}

#[test]
fn each_fault_of_the_enforcer_ends_by_itself_and_not_with_another() {
    let dir = tempfile::tempdir().unwrap();
    let (mut apply, calls) = apply(dir.path());
    let lost = |name: &str| Fault::Interface(name.into());
    let degraded = |fault, reason: &str| Incident::Degraded { fault, reason: reason.into() };
    apply.incidents(vec![degraded(Fault::Ipv6, "no IPv6"), degraded(lost("a"), "a"), degraded(lost("b"), "b")]);
    // What the kernel holds is right, which says nothing of the three.
    apply.reconcile(true);
    apply.look_after_sinks();
    let word = |reason: &str| ("enforcement".to_owned(), reason.to_owned());
    assert_eq!(shown(&mut apply), [word("a"), word("b"), word("no IPv6")]);
    let told = audited(dir.path()).len();
    apply.incidents(vec![degraded(lost("a"), "still a")]);
    assert_eq!(audited(dir.path()).len(), told, "it is no news");
    apply.incidents(vec![Incident::Recovered { fault: lost("a") }]);
    assert_eq!(shown(&mut apply), [word("b"), word("no IPv6")]);
    // A listing that fails ends with a comparison that succeeds, and nothing else does.
    calls.mute.store(true, Ordering::Relaxed);
    apply.reconcile(true);
    assert_eq!(shown(&mut apply), [word("iptables-save: no answer"), word("b"), word("no IPv6")]);
    calls.mute.store(false, Ordering::Relaxed);
    apply.reconcile(true);
    assert_eq!(shown(&mut apply), [word("b"), word("no IPv6")]);
    let (in_all, recovered) = told_degraded(dir.path());
    assert_eq!((in_all, recovered), (6, 2), "each once, and its end once");
}

/// Lines of the audit log that say that something is degraded, or was; and how many of them say that it was.
fn told_degraded(dir: &Path) -> (usize, usize) {
    let text = std::fs::read_to_string(dir.join("audit.jsonl")).unwrap();
    let lines: Vec<&str> = text.lines().filter(|line| line.contains(r#""event":"degraded""#)).collect();
    (lines.len(), lines.iter().filter(|line| line.contains(r#""recovered":true"#)).count())
}

#[test]
fn an_interface_that_is_covered_again_ends_its_fallback_and_no_other() {
    let dir = tempfile::tempdir().unwrap();
    let (mut apply, _) = apply(dir.path());
    let fallback = |interface: Option<&str>, from: &str| Incident::Fallback {
        interface: interface.map(str::to_owned),
        from: from.into(),
        to: "iptables".into(),
        reason: "why".into(),
    };
    apply.incidents(vec![fallback(Some("a"), "xdp"), fallback(None, "xdp"), fallback(None, "iptables")]);
    assert_eq!(shown(&mut apply).len(), 3);
    apply.incidents(vec![Incident::Recovered { fault: Fault::Interface("a".into()) }]);
    apply.incidents(vec![Incident::Recovered { fault: Fault::Overflow }]);
    let left: Vec<String> = shown(&mut apply).into_iter().map(|(_, reason)| reason).collect();
    assert_eq!(left, ["xdp cannot be used, iptables is: why"]);
}

#[test]
fn a_ban_without_effect_is_shown_until_it_ends_and_never_said_to_have_recovered() {
    let dir = tempfile::tempdir().unwrap();
    let (mut apply, _) = apply(dir.path());
    apply.outputs(bans(3), None);
    let proof = |n| {
        let at = now().plus(Duration::from_secs(u64::from(n)));
        let client = prefix(n).addr();
        Output::NotEffective(NotEffective { prefix: prefix(n), client, peer: None, banned_at: now(), at, records: 5 })
    };
    apply.outputs(vec![proof(0), proof(1)], None);
    make_old(&mut apply);
    apply.look_after_sinks();
    let reasons = |apply: &mut Apply| {
        let shown = shown(apply);
        assert!(shown.iter().all(|(word, _)| word == "not_effective"), "{shown:?}");
        shown.into_iter().map(|(_, reason)| reason).collect::<Vec<_>>()
    };
    let both = reasons(&mut apply);
    assert!(
        both.len() == 1 && both[0].starts_with("20.0.0.1: ") && both[0].ends_with("; and one more ban"),
        "{both:?}"
    );
    apply.outputs(vec![unban(2, Origin::Operator), unban(1, Origin::Operator)], None);
    let one = reasons(&mut apply);
    assert!(one.len() == 1 && one[0].starts_with("20.0.0.0: ") && !one[0].contains("more"), "{one:?}");
    // Its ban has gone without a word, as where the queue to this thread was too short.
    apply.work(Work::Reconcile(Arc::new([])));
    assert_eq!(reasons(&mut apply), [""; 0]);
    assert_eq!(told_degraded(dir.path()), (0, 0));
}

#[test]
fn a_full_map_is_shown_until_every_ban_is_held() {
    let dir = tempfile::tempdir().unwrap();
    let (mut apply, calls) = apply(dir.path());
    calls.full.store(true, Ordering::Relaxed);
    apply.outputs(bans(1), None);
    apply.incidents(vec![Incident::MapFull { gave_way: vec![prefix(0)], capacity: 1 }]);
    make_old(&mut apply);
    apply.reconcile(true);
    apply.look_after_sinks();
    let words = |apply: &mut Apply| shown(apply).into_iter().map(|(word, _)| word).collect::<Vec<_>>();
    assert_eq!(words(&mut apply), ["enforcement", "map_full"]);
    calls.full.store(false, Ordering::Relaxed);
    apply.reconcile(true);
    assert_eq!(words(&mut apply), [""; 0]);
}

#[test]
fn what_cannot_be_asked_or_was_switched_off_enforces_nothing() {
    let dir = tempfile::tempdir().unwrap();
    let (mut apply, calls) = apply(dir.path());
    let health = |apply: &mut Apply| {
        apply.publish();
        let picture = apply.picture.lock().unwrap().clone().unwrap();
        (picture.enforcement_ratio, picture.lost.clone())
    };
    apply.outputs(bans(2), None);
    assert_eq!(health(&mut apply), (1.0, None));
    calls.mute.store(true, Ordering::Relaxed);
    apply.recount();
    let (ratio, lost) = health(&mut apply);
    assert!(ratio == 0.0 && lost.as_ref().is_some_and(|why| why.contains("iptables-save: no answer")), "{lost:?}");
    assert_eq!(shown(&mut apply).len(), 1);
    calls.mute.store(false, Ordering::Relaxed);
    apply.recount();
    assert_eq!(health(&mut apply), (1.0, None));
    assert!(shown(&mut apply).is_empty(), "it is known again, and as it should be");
    // The kernel's switch and the mark that `anomaly off` leaves are the same thing, told once.
    apply.incidents(vec![Incident::Off, Incident::Off]);
    let (ratio, lost) = health(&mut apply);
    assert!(ratio == 0.0 && lost.is_some_and(|why| why.contains("anomaly off")));
    assert_eq!(audited(dir.path()).iter().filter(|(event, _)| event == "off").count(), 1);
}

#[test]
fn who_watches_hears_how_a_ban_ended_and_what_the_brake_held_back() {
    let dir = tempfile::tempdir().unwrap();
    let (mut apply, _) = apply(dir.path());
    let mut events = apply.events.subscribe();
    apply.outputs(bans(2), None);
    apply.outputs(vec![unban(0, Origin::Detector), unban(1, Origin::Operator)], None);
    let level =
        Level { scope: Scope::Ip, mean: 1.0, stddev: 0.5, error_rate: 0.01, samples: 9, source: Source::Rolling };
    let finding = Finding {
        at: now(),
        rule: Rule::ZScore,
        error_surge: false,
        rate: 9.0,
        baseline: level,
        z_score: 16.0,
        signal: None,
        limit: 150.0,
        limit_source: LimitSource::Learned,
        grade: Grade::Likely,
        requests: 540,
        errors: 0,
        samples: Vec::new(),
    };
    let why = finding.reason();
    let before = Level { scope: Scope::Global, ..level };
    let after = Level { mean: 2.5, ..before };
    apply.outputs(
        vec![
            Output::Braked(Braked { prefix: prefix(7), finding, bans_last_minute: 20 }),
            Output::LevelAccepted(LevelAccepted { at: now(), scope: Scope::Global, before, after }),
        ],
        None,
    );
    let heard: Vec<_> = std::iter::from_fn(|| events.try_recv().ok())
        .map(|Event { row, reason }| (row.action, row.ip.unwrap_or_default(), reason))
        .filter(|(action, ..)| action != "ban")
        .collect();
    let wanted = [
        ("unban", "20.0.0.0", "expired"),
        ("unban", "20.0.0.1", "lifted"),
        ("braked", "20.0.0.7", &*why),
        ("level_accepted", "", "global: 2.50 req/s is normal now (was 1.00)"),
    ];
    assert_eq!(heard, wanted.map(|(action, ip, reason)| (action.to_owned(), ip.to_owned(), reason.to_owned())));
}

#[test]
fn a_ban_that_is_lifted_and_dropped_all_the_same_is_no_success() {
    let dir = tempfile::tempdir().unwrap();
    let (mut apply, calls) = apply(dir.path());
    apply.outputs(bans(2), None);
    calls.stuck.store(true, Ordering::Relaxed);
    let (reply, mut answer) = oneshot::channel();
    apply.outputs(vec![unban(0, Origin::Operator)], Some(Reply::Unban(reply)));
    let refused = answer.try_recv().unwrap().unwrap_err();
    assert!(matches!(&refused, RequestError::StillDropped { prefix: whose, .. } if *whose == prefix(0)), "{refused:?}");
    assert!(refused.to_string().starts_with("20.0.0.0 may STILL be dropped"), "{refused}");
    let [(word, reason)] = &shown(&mut apply)[..] else { panic!("not shown") };
    assert!(
        word == "enforcement" && reason.contains("20.0.0.0") && reason.contains("ipset del: no answer"),
        "{reason}"
    );
    calls.stuck.store(false, Ordering::Relaxed);
    apply.reconcile(true);
    assert_eq!(shown(&mut apply), [], "it is gone now, as nobody wants it");
    // A ban by hand that the enforcer could not set is none either.
    calls.full.store(true, Ordering::Relaxed);
    let (reply, mut answer) = oneshot::channel();
    apply.outputs(vec![Output::Decision(Decision::Ban(Box::new(ban(7))))], Some(Reply::Ban(reply)));
    let refused = answer.try_recv().unwrap().unwrap_err();
    assert!(matches!(&refused, RequestError::NotEnforced(why) if why.contains("full")), "{refused:?}");
}

#[test]
fn the_last_count_of_a_ban_is_told_although_its_entry_is_gone() {
    let dir = tempfile::tempdir().unwrap();
    let (mut apply, calls) = apply(dir.path());
    let told = || {
        let text = std::fs::read_to_string(dir.path().join("audit.jsonl")).unwrap();
        let rows = text.lines().map(|line| serde_json::from_str::<serde_json::Value>(line).unwrap());
        rows.filter(|row| row["event"] == "unban").map(|row| (row["packets"].clone(), row["bytes"].clone())).collect()
    };
    apply.outputs(bans(3), None);
    calls.packets.store(5, Ordering::Relaxed);
    apply.recount();
    // It ran out by itself, as an entry of a set does, before anybody has told of it.
    apply.enforcer.unban(&[prefix(0)]);
    calls.packets.store(7, Ordering::Relaxed);
    apply.recount();
    apply.outputs(vec![unban(0, Origin::Detector), unban(1, Origin::Detector)], None);
    let wanted: Vec<(serde_json::Value, serde_json::Value)> = vec![(5.into(), 300.into()), (7.into(), 420.into())];
    let rows: Vec<_> = told();
    assert_eq!(rows, wanted);
    // It ended while no daemon ran: the first comparison takes its entry away, and its end is told after that.
    apply.wanted.insert(prefix(2), Some(now().minus(Duration::from_secs(9))));
    apply.counts = Arc::default();
    apply.reconcile(true);
    apply.outputs(vec![unban(2, Origin::Detector)], None);
    let rows: Vec<_> = told();
    assert_eq!(rows[2], (7.into(), 420.into()));
    assert_eq!(apply.reader.explain(&prefix(2), 1).unwrap()[0].packets, 7);
}
