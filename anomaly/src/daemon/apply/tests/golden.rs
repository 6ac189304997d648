//! Golden files of what one happening becomes: its line in the audit log, its server-sent event, and what Slack and the
//! webhook are sent. Everything goes in where the daemon's own happenings do, so whatever lies between may be rebuilt.

use crate::audit;
use crate::config::Secret;
use crate::daemon::clock;
use crate::daemon::trouble::Trouble;
use crate::dashboard::frame_of;
use crate::engine::{BaselineUpdate, Kept, Refusal, Sample, Signal};
use crate::golden::{indent, kinds, same, shown};
use crate::store::Recorded;

use super::*;

fn reporter() -> Reporter {
    Reporter { host: "web1".into(), dry_run: false }
}

/// Monday 2026-04-27, 09:25:51 UTC; everything happens at this moment or so many seconds later.
fn at(secs: i64) -> Timestamp {
    Timestamp::from_secs(1_777_281_951 + secs)
}

fn net(text: &str) -> IpNet {
    crate::report::parse_ip(text).unwrap()
}

fn level(scope: Scope, source: Source) -> Level {
    let (mean, stddev) = if scope == Scope::Ip { (0.4, 0.6) } else { (41.0, 9.5) };
    Level { scope, mean, stddev, error_rate: 0.0123, samples: 1800, source }
}

fn finding(rule: Rule, scope: Scope, source: Source, signal: Option<(Signal, f64)>) -> Finding {
    let sample = |method: &str, path: &str, status| Sample {
        at: at(-1),
        method: method.as_bytes().into(),
        path: path.as_bytes().into(),
        status,
    };
    let of_site = scope == Scope::Global;
    Finding {
        at: at(0),
        rule,
        error_surge: false,
        rate: if of_site { 312.5 } else { 14.2 },
        baseline: level(scope, source),
        z_score: 23.0,
        signal,
        limit: 30.0,
        limit_source: LimitSource::Learned,
        grade: Grade::Likely,
        requests: 852,
        errors: 31,
        samples: if of_site {
            Vec::new()
        } else {
            vec![sample("GET", "/.env", 404), sample("POST", "/<!channel>`*x*`\x1b[2J\n\u{202e}&?token=hidden", 200)]
        },
    }
}

fn detected(ip: &str, finding: Finding) -> Ban {
    Ban {
        prefix: net(ip),
        at: at(0),
        until: Some(at(600)),
        offence: 1,
        origin: Origin::Detector,
        finding: Some(finding),
        note: String::new(),
        in_past: false,
    }
}

fn by_rule(rule: Rule) -> Ban {
    detected("203.0.113.10", finding(rule, Scope::Ip, Source::Rolling, None))
}

fn by_signal(signal: Signal, source: Source) -> Ban {
    detected("203.0.113.10", finding(Rule::HardLimit, Scope::Ip, source, Some((signal, 121.0))))
}

/// As the detector finds it: a level of a signal's own, and the limit that it has reached.
fn by_level(rule: Rule, signal: Signal) -> Ban {
    let limit_source = if rule == Rule::Floor { LimitSource::Floor } else { LimitSource::Learned };
    let grade = if signal == Signal::ExploitPaths { Grade::Certain } else { Grade::Likely };
    let found = finding(rule, Scope::Ip, Source::Rolling, Some((signal, 30.4)));
    detected("203.0.113.11", Finding { limit_source, grade, ..found })
}

fn by_hand(ip: &str, note: &str) -> Ban {
    Ban {
        origin: Origin::Operator,
        finding: None,
        note: note.into(),
        ..detected(ip, by_rule(Rule::ZScore).finding.unwrap())
    }
}

fn ends(ban: &Ban, secs: i64, origin: Origin) -> Output {
    let unban = Unban { prefix: ban.prefix, at: at(secs), offence: ban.offence, origin, ban: Arc::new(ban.clone()) };
    Output::Decision(Decision::Unban(unban))
}

fn not_effective(peer: Option<&str>) -> Output {
    Output::NotEffective(NotEffective {
        prefix: net("203.0.113.10"),
        client: "203.0.113.10".parse().unwrap(),
        peer: peer.map(|peer| peer.parse().unwrap()),
        banned_at: at(-30),
        at: at(0),
        records: 7,
    })
}

/// An apply thread, and everywhere that it reports to.
struct Rig {
    apply: Apply,
    calls: Arc<Calls>,
    events: broadcast::Receiver<Event>,
    audit: std::path::PathBuf,
    read: usize,
    _dir: tempfile::TempDir,
    /// Its tasks never run: what they would post stays where it can be taken.
    _runtime: tokio::runtime::Runtime,
}

impl Rig {
    fn new() -> Self {
        clock::fix(at(0));
        let dir = tempfile::tempdir().unwrap();
        let (mut apply, calls) = apply(dir.path());
        calls.xdp.store(true, Ordering::Relaxed);
        let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
        let entered = runtime.enter();
        let url = || Some(Secret::new("http://127.0.0.1:9/nobody".to_owned()));
        let notify = config::Notify { slack_webhook_url: url(), webhook_url: url(), ..config::Notify::default() };
        apply.notifier = Notifier::start(&notify, &reporter()).unwrap();
        drop(entered);
        let (events, audit) = (apply.events.subscribe(), dir.path().join("audit.jsonl"));
        Self { apply, calls, events, audit, read: 0, _dir: dir, _runtime: runtime }
    }

    fn outputs(&mut self, outputs: impl IntoIterator<Item = Output>) {
        self.apply.outputs(outputs.into_iter().collect(), None);
    }

    fn ban(&mut self, bans: impl IntoIterator<Item = Ban>) {
        self.outputs(bans.into_iter().map(|ban| Output::Decision(Decision::Ban(Box::new(ban)))));
    }

    /// A ban that nobody looks at, and its end.
    fn end(&mut self, ban: &Ban, secs: i64, origin: Origin) {
        self.ban([ban.clone()]);
        self.seen();
        clock::fix(at(secs));
        self.outputs([ends(ban, secs, origin)]);
    }

    fn incident(&mut self, incident: Incident) {
        self.apply.incidents(vec![incident]);
    }

    fn fail(&mut self, fault: Fault) {
        self.incident(Incident::Degraded { fault, reason: "it does not answer".into() });
    }

    /// What has come out since the last time: audit log, events, Slack, webhook.
    fn seen(&mut self) -> [String; 4] {
        let audit = std::fs::read_to_string(&self.audit).unwrap_or_default();
        let lines = audit[self.read..].to_owned();
        self.read = audit.len();
        let mut events = String::new();
        while let Ok(event) = self.events.try_recv() {
            events += frame_of(event).trim_end();
            events.push('\n');
        }
        let [slack, webhook] =
            self.apply.notifier.next_messages(&reporter(), Some("https://status.example.net/anomaly"));
        let version = concat!("\"version\":\"", env!("CARGO_PKG_VERSION"), "\"");
        let message = |body: Option<String>| {
            body.map(|body| indent(&body.replace(version, "\"version\":\"0.0.0\"")) + "\n").unwrap_or_default()
        };
        [lines, events, message(slack), message(webhook)]
    }
}

type Happening = (&'static str, fn(&mut Rig));

const DECISIONS: &[Happening] = &[
    ("ban by z_score", |rig| rig.ban([by_rule(Rule::ZScore)])),
    ("ban by rate_multiplier", |rig| rig.ban([by_rule(Rule::RateMultiplier)])),
    ("ban by hard_limit, for good", |rig| rig.ban([Ban { until: None, offence: 4, ..by_rule(Rule::HardLimit) }])),
    ("ban in an error surge, of an IPv6 /64, floor", |rig| {
        let finding = finding(Rule::ZScore, Scope::Ip, Source::Floor, None);
        rig.ban([detected("2001:db8:7::/64", Finding { error_surge: true, ..finding })]);
    }),
    ("ban by pages, hour", |rig| rig.ban([by_signal(Signal::Pages, Source::Hour)])),
    ("ban by error_paths, long", |rig| rig.ban([by_signal(Signal::ErrorPaths, Source::Long)])),
    ("ban by posts_to_one_path, own", |rig| rig.ban([by_signal(Signal::PostsToOnePath, Source::Own)])),
    ("ban by errors", |rig| rig.ban([by_signal(Signal::Errors, Source::Rolling)])),
    ("ban by same_answers, z_score", |rig| rig.ban([by_level(Rule::ZScore, Signal::SameAnswers)])),
    ("ban by unknown_paths, floor", |rig| rig.ban([by_level(Rule::Floor, Signal::UnknownPaths)])),
    ("ban by exploit_paths, floor", |rig| rig.ban([by_level(Rule::Floor, Signal::ExploitPaths)])),
    ("ban by repeated_logins, rate_multiplier", |rig| {
        rig.ban([by_level(Rule::RateMultiplier, Signal::RepeatedLogins)]);
    }),
    ("ban by denied_requests, floor", |rig| rig.ban([by_level(Rule::Floor, Signal::DeniedRequests)])),
    ("ban by repeated_megabytes, floor", |rig| rig.ban([by_level(Rule::Floor, Signal::RepeatedMegabytes)])),
    ("ban by full_minutes, floor", |rig| rig.ban([by_level(Rule::Floor, Signal::FullMinutes)])),
    ("ban by hand, with a reason", |rig| rig.ban([by_hand("198.51.100.0/24", "scraper, see <ticket> & mail")])),
    ("ban by hand, without a reason, for good", |rig| rig.ban([Ban { until: None, ..by_hand("2001:db8::1", "") }])),
    ("ban in a dry run", |rig| {
        rig.calls.xdp.store(false, Ordering::Relaxed);
        rig.ban([by_rule(Rule::ZScore)]);
    }),
    ("ban that had ended before it was decided", |rig| {
        rig.ban([Ban { in_past: true, ..by_rule(Rule::ZScore) }]);
    }),
    ("ban that is not enforced", |rig| {
        rig.calls.full.store(true, Ordering::Relaxed);
        rig.ban([by_rule(Rule::ZScore)]);
    }),
    ("ban while dropping is off", |rig| {
        rig.calls.xdp.store(false, Ordering::Relaxed);
        rig.apply.off = true;
        rig.ban([by_rule(Rule::ZScore)]);
    }),
    ("unban, ran out", |rig| rig.end(&by_rule(Rule::ZScore), 600, Origin::Detector)),
    ("unban, by hand", |rig| rig.end(&by_rule(Rule::ZScore), 90, Origin::Operator)),
    ("unban, by hand, of a ban by hand for good", |rig| {
        rig.end(&Ban { until: None, ..by_hand("198.51.100.0/24", "scraper") }, 93_600, Origin::Operator);
    }),
    ("unban that did not work", |rig| {
        rig.calls.stuck.store(true, Ordering::Relaxed);
        rig.end(&by_rule(Rule::ZScore), 600, Origin::Detector);
    }),
    ("unban of what was never enforced", |rig| rig.outputs([ends(&by_rule(Rule::ZScore), 600, Origin::Detector)])),
    ("ban and unban from before a crash", |rig| {
        let ended = Recorded {
            ban: by_hand("198.51.100.7", "scraper"),
            state: BanState::Lifted,
            ended: Some(at(120)),
            packets: 3,
            bytes: 180,
        };
        rig.apply.tell_late(&[by_rule(Rule::ZScore)], &[ended]);
    }),
];

const REPORTS: &[Happening] = &[
    ("global anomaly by z_score", |rig| {
        rig.outputs([Output::GlobalAnomaly(finding(Rule::ZScore, Scope::Global, Source::Hour, None))]);
    }),
    ("global anomaly by rate_multiplier", |rig| {
        rig.outputs([Output::GlobalAnomaly(finding(Rule::RateMultiplier, Scope::Global, Source::Rolling, None))]);
    }),
    ("baseline", |rig| {
        let (global, ip) = (level(Scope::Global, Source::Hour), level(Scope::Ip, Source::Rolling));
        rig.outputs([Output::Baseline(BaselineUpdate { at: at(0), global, ip })]);
    }),
    ("ban that is not effective, through a proxy", |rig| rig.outputs([not_effective(Some("192.0.2.1"))])),
    ("ban that is not effective, by the peer itself", |rig| rig.outputs([not_effective(Some("203.0.113.10"))])),
    ("ban that is not effective, peer unknown", |rig| rig.outputs([not_effective(None)])),
    ("level accepted", |rig| {
        let (before, after) = (level(Scope::Global, Source::Rolling), level(Scope::Global, Source::Rolling));
        let after = Level { mean: 88.0, stddev: 12.0, ..after };
        rig.outputs([Output::LevelAccepted(LevelAccepted { at: at(0), scope: Scope::Global, before, after })]);
    }),
    ("ban held back by the brake", |rig| {
        let finding = finding(Rule::HardLimit, Scope::Ip, Source::Rolling, Some((Signal::Pages, 121.0)));
        rig.outputs([Output::Braked(Braked { prefix: net("203.0.113.10"), finding, bans_last_minute: 100 })]);
    }),
    ("refusal", |rig| rig.outputs([Output::Refused(Refusal::NotBanned { prefix: net("203.0.113.10") })])),
    ("ban by hand that leaves the longer one as it is", |rig| {
        let ban = Arc::new(Ban { until: None, ..by_hand("203.0.113.10", "never again") });
        rig.outputs([Output::Kept(Kept { at: at(60), ban, until: Some(at(660)), note: "again".into() })]);
    }),
    ("fallback of one interface", |rig| {
        rig.incident(Incident::Fallback {
            interface: Some("eth0".into()),
            from: "xdp native".into(),
            to: "xdp generic".into(),
            reason: "the driver has no XDP".into(),
        });
    }),
    ("fallback of all", |rig| {
        let reason = "the kernel is too old".into();
        rig.incident(Incident::Fallback { interface: None, from: "xdp".into(), to: "iptables".into(), reason });
    }),
    ("repaired", |rig| {
        let (missing, orphans) = (vec![net("203.0.113.10"), net("2001:db8:7::/64")], vec![net("198.51.100.7")]);
        rig.incident(Incident::Repaired { missing, orphans });
    }),
    ("map full", |rig| rig.incident(Incident::MapFull { gave_way: vec![net("203.0.113.10")], capacity: 4096 })),
    ("fault of the enforcer", |rig| rig.fail(Fault::Interface("eth0".into()))),
    ("fault of the enforcer that is over", |rig| {
        rig.fail(Fault::Heartbeat);
        rig.seen();
        clock::fix(at(90));
        rig.incident(Incident::Recovered { fault: Fault::Heartbeat });
    }),
    ("off", |rig| rig.incident(Incident::Off)),
    ("the enforcer does not say what it drops", |rig| {
        rig.calls.mute.store(true, Ordering::Relaxed);
        rig.apply.reconcile(true);
    }),
    ("bans that cannot be set again", |rig| {
        rig.apply.wanted.insert(net("203.0.113.10"), None);
        rig.calls.full.store(true, Ordering::Relaxed);
        rig.apply.reconcile(true);
    }),
    ("fault of a log, and the end of another", |rig| {
        let missing = |site: &str| Trouble {
            word: "log_missing",
            which: format!("{site}.json"),
            reason: format!("{site}.json does not exist"),
        };
        rig.apply.health(&[missing("a")]);
        rig.seen();
        clock::fix(at(90));
        rig.apply.health(&[missing("b")]);
    }),
    ("fault of Slack", |rig| rig.apply.degrade("slack", Some("nothing delivered for 30 s: HTTP 429".into()))),
    ("started", |rig| rig.apply.write(&audit::Event::Started { version: "0.0.0", restored_bans: 3 })),
    ("stopped, bans stay", |rig| rig.apply.write(&audit::Event::Stopped { keep: true })),
    ("stopped, bans are lifted", |rig| rig.apply.write(&audit::Event::Stopped { keep: false })),
    ("configuration reloaded", |rig| {
        let mut config = rig.apply.config.clone();
        config.audit.path.clone_from(&rig.audit);
        rig.apply.reloaded(Ok(config));
    }),
    ("configuration refused", |rig| {
        rig.apply.config.audit.path.clone_from(&rig.audit);
        rig.apply.reloaded(Err("anomaly.toml: line 3: no such key".into()));
    }),
];

const FOLDED: &[Happening] = &[
    ("three kinds at once", |rig| {
        rig.ban([by_rule(Rule::ZScore), Ban { offence: 2, ..by_hand("198.51.100.0/24", "scraper") }]);
        rig.outputs([
            not_effective(None),
            Output::GlobalAnomaly(finding(Rule::ZScore, Scope::Global, Source::Hour, None)),
        ]);
    }),
    ("more bans than Slack names", |rig| {
        rig.ban((0..12).map(|n| Ban {
            prefix: prefix(n),
            finding: None,
            note: "x".into(),
            ..by_hand("192.0.2.1", "")
        }));
    }),
    ("two of each fault", |rig| {
        rig.fail(Fault::Ipv6);
        rig.fail(Fault::Gap);
        clock::fix(at(90));
        rig.incident(Incident::Recovered { fault: Fault::Ipv6 });
        rig.incident(Incident::Recovered { fault: Fault::Gap });
        rig.incident(Incident::MapFull { gave_way: Vec::new(), capacity: 4096 });
        rig.incident(Incident::Repaired { missing: vec![prefix(1)], orphans: Vec::new() });
    }),
];

/// What came out of these: audit log and events in one text, Slack and the webhook in one each.
fn outcome(happenings: &[Happening]) -> [String; 3] {
    let [mut rows, mut slack, mut webhook] = [const { String::new() }; 3];
    for (name, happen) in happenings {
        let mut rig = Rig::new();
        happen(&mut rig);
        let [lines, events, to_slack, to_webhook] = rig.seen();
        let nothing = "(nothing)\n";
        let or_nothing = |text: String| if text.is_empty() { nothing.to_owned() } else { text };
        rows += &format!("# {name}: audit log\n{}", or_nothing(lines));
        rows += &format!("# {name}: server-sent event\n{}", or_nothing(events));
        slack += &format!("# {name}\n{}", or_nothing(to_slack));
        webhook += &format!("# {name}\n{}", or_nothing(to_webhook));
    }
    [rows, slack, webhook]
}

/// What the audit log calls each kind of happening.
fn audited_kinds() -> Vec<(&'static str, &'static str)> {
    let kinds = kinds!(audit::Event<'static> {
        Ban => r#""event":"ban""#,
        Unban => r#""event":"unban""#,
        BanKept => r#""event":"ban_kept""#,
        GlobalAnomaly => r#""event":"global_anomaly""#,
        Baseline => r#""event":"baseline""#,
        Fallback => r#""event":"fallback""#,
        EnforceFailed => r#""event":"enforce_failed""#,
        NotEffective => r#""event":"not_effective""#,
        Repaired => r#""event":"repaired""#,
        MapFull => r#""event":"map_full""#,
        Braked => r#""event":"braked""#,
        LevelAccepted => r#""event":"level_accepted""#,
        Degraded => r#""event":"degraded""#,
        Off => r#""event":"off""#,
        Started => r#""event":"started""#,
        Stopped => r#""event":"stopped""#,
        ConfigReloaded => r#""event":"config_reloaded""#,
    });
    kinds.to_vec()
}

fn rules_and_signals() -> Vec<(&'static str, &'static str)> {
    let rules = kinds!(Rule { ZScore => r#""rule":"z_score""#, RateMultiplier => r#""rule":"rate_multiplier""#, HardLimit => r#""rule":"hard_limit""#, Floor => r#""rule":"floor""# });
    let signals = kinds!(Signal {
        Pages => r#""signal":"pages""#,
        ErrorPaths => r#""signal":"error_paths""#,
        PostsToOnePath => r#""signal":"posts_to_one_path""#,
        Errors => r#""signal":"errors""#,
        SameAnswers => r#""signal":"same_answers""#,
        UnknownPaths => r#""signal":"unknown_paths""#,
        ExploitPaths => r#""signal":"exploit_paths""#,
        RepeatedLogins => r#""signal":"repeated_logins""#,
        DeniedRequests => r#""signal":"denied_requests""#,
        RepeatedMegabytes => r#""signal":"repeated_megabytes""#,
        FullMinutes => r#""signal":"full_minutes""#,
    });
    let sources = kinds!(Source {
        Floor => r#""source":"floor""#,
        Rolling => r#""source":"rolling""#,
        Hour => r#""source":"hour""#,
        Long => r#""source":"long""#,
        Own => r#""source":"own""#,
    });
    let scopes = kinds!(Scope { Ip => r#""scope":"ip""#, Global => r#""scope":"global""# });
    let origins = kinds!(Origin { Detector => r#""origin":"detector""#, Operator => r#""origin":"operator""# });
    [&rules[..], &signals, &sources, &scopes, &origins].concat()
}

/// What the webhook calls each kind of notice.
fn notified_kinds() -> Vec<(&'static str, &'static str)> {
    let kinds = kinds!(Notice {
        Ban => r#""ban":1"#,
        Unban => r#""unban":1"#,
        GlobalAnomaly => r#""global_anomaly":1"#,
        Braked => r#""braked":1"#,
        NotEffective => r#""not_effective":1"#,
        LevelAccepted => r#""level_accepted":1"#,
        Fallback => r#""fallback":1"#,
        Degraded => r#""degraded":1"#,
        Recovered => r#""recovered":1"#,
        Other => r#""other":1"#,
    });
    kinds.to_vec()
}

#[test]
fn golden_decisions() {
    let [rows, slack, webhook] = outcome(DECISIONS);
    same("decisions.txt", &rows);
    same("decisions-slack.txt", &slack);
    same("decisions-webhook.txt", &webhook);
}

#[test]
fn golden_reports() {
    let [rows, slack, webhook] = outcome(REPORTS);
    same("reports.txt", &rows);
    same("reports-slack.txt", &slack);
    same("reports-webhook.txt", &webhook);
}

#[test]
fn golden_folded_messages() {
    let [_, slack, webhook] = outcome(FOLDED);
    same("folded-slack.txt", &slack);
    same("folded-webhook.txt", &webhook);
}

#[test]
fn golden_every_kind_is_shown() {
    let [decisions, _, to_webhook] = outcome(DECISIONS);
    let [reports, _, more_to_webhook] = outcome(REPORTS);
    let rows = decisions + &reports;
    shown(&rows, &audited_kinds());
    shown(&rows, &rules_and_signals());
    shown(&(to_webhook + &more_to_webhook), &notified_kinds());
}

/// `explain --json` and `GET /api/v1/bans/{ip}`, from bans in force and on record.
#[test]
fn golden_explanation() {
    let mut rig = Rig::new();
    let first = by_signal(Signal::Pages, Source::Hour);
    rig.end(&first, 600, Origin::Detector);
    let second = Ban { at: at(700), until: Some(at(4300)), offence: 2, ..by_rule(Rule::ZScore) };
    clock::fix(at(700));
    rig.ban([second.clone()]);
    let wide = Ban { at: at(710), until: None, ..by_hand("203.0.113.0/24", "the whole network") };
    rig.ban([wide.clone()]);
    rig.apply.count();
    let client = TopRow {
        ip: "203.0.113.10".into(),
        rate: 14.2,
        requests: 852,
        error_ratio: 0.036,
        z_score: 23.0,
        limit: 2.0,
        share: 0.342,
        banned: true,
    };
    let active = [Arc::new(second), Arc::new(wide)];
    let of_address = rig.apply.explain(&net("203.0.113.10"), Some(client), None, [&active, &[]]).unwrap();
    let of_prefix = rig.apply.explain(&net("203.0.113.0/24"), None, None, [&active[1..], &active[..1]]).unwrap();
    let allowed = rig.apply.explain(&net("192.0.2.1"), None, Some(net("192.0.2.0/24")), [&[], &[]]).unwrap();
    let text: String = [("address", of_address), ("prefix", of_prefix), ("allow-listed", allowed)]
        .iter()
        .map(|(name, card)| format!("# {name}\n{}\n", indent(&serde_json::to_string(card).unwrap())))
        .collect();
    same("explain.txt", &text);
}
