//! Puts together what people see: the hot thread's figures, the apply thread's, and the machine's.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use ipnet::IpNet;
use sysinfo::{CpuRefreshKind, MemoryRefreshKind, Pid, ProcessRefreshKind, ProcessesToUpdate, RefreshKind, System};

use super::messages::{ApplyStatus, HotStatus};
use super::trouble::Trouble;
use crate::enforce::{Attachment, Coverage, Name, Totals};
use crate::engine::Ban;
use crate::report::{BanRow, BaselineRow, Degraded, HistoryPoint, InterfaceRow, LevelRow, Status, TopRow, round};
use crate::time::Timestamp;
use crate::view::live::Live;

/// A thread that has shown nothing for this long hangs.
pub const HANGS_AFTER: Duration = Duration::from_secs(15);

/// The brake is shown for so long after it last held a ban back.
const BRAKED_FOR: Duration = Duration::from_secs(60);

/// Where a smaller share of the bans is enforced, the enforcer is lost.
const LEAST_ENFORCED: f64 = 0.5;

/// CPU and memory, of the daemon and of the host.
pub struct Machine {
    /// None where `/proc` cannot be read; then the figures are 0.
    system: Option<System>,
    pid: Pid,
}

impl Machine {
    /// Nothing is known before the second [`Machine::refresh`].
    pub fn new() -> Self {
        let kinds = RefreshKind::nothing()
            .with_cpu(CpuRefreshKind::nothing().with_usage())
            .with_memory(MemoryRefreshKind::nothing().with_ram());
        Self { system: System::new_with_specifics(kinds).ok(), pid: Pid::from_u32(std::process::id()) }
    }

    /// Reads `/proc`; the figures are averages since the last time.
    pub fn refresh(&mut self) {
        let Some(system) = &mut self.system else { return };
        system.refresh_cpu_usage();
        system.refresh_memory_specifics(MemoryRefreshKind::nothing().with_ram());
        let kinds = ProcessRefreshKind::nothing().with_cpu().with_memory().without_tasks();
        system.refresh_processes_specifics(ProcessesToUpdate::Some(&[self.pid]), false, kinds);
    }

    /// Share of one core that the daemon used, its resident bytes, shares of the host's CPU and memory in use.
    fn figures(&self) -> (f64, u64, f64, f64) {
        let Some(system) = &self.system else { return (0.0, 0, 0.0, 0.0) };
        let (cpu, memory) = system.process(self.pid).map_or((0.0, 0), |p| (f64::from(p.cpu_usage()), p.memory()));
        let host_memory = system.used_memory() as f64 / system.total_memory().max(1) as f64;
        (cpu / 100.0, memory, f64::from(system.global_cpu_usage()) / 100.0, host_memory)
    }
}

/// What is remembered from one picture to the next.
#[derive(Default)]
pub struct Memory {
    /// Since when something is degraded.
    since: HashMap<(&'static str, String), Timestamp>,
    /// What was found for the newest picture.
    found: Vec<Trouble>,
    /// The apply thread does not know all of it.
    news: bool,
    rows: Option<Rows>,
}

/// The rows of the bans and what they were made of.
struct Rows {
    bans: Arc<[Arc<Ban>]>,
    counts: Arc<HashMap<IpNet, (u64, u64)>>,
    at: Timestamp,
    rows: Arc<Vec<BanRow>>,
}

/// Packets of more bans than this are brought up to date only every [`COUNTS_EVERY`].
const MANY_BANS: usize = 1000;
const COUNTS_EVERY: Duration = Duration::from_secs(10);

impl Memory {
    /// One row a ban; made anew when bans have come or gone, or their counts.
    fn rows(
        &mut self,
        bans: &Arc<[Arc<Ban>]>,
        counts: &Arc<HashMap<IpNet, (u64, u64)>>,
        name: Name,
        now: Timestamp,
    ) -> Arc<Vec<BanRow>> {
        if let Some(old) = &self.rows
            && Arc::ptr_eq(&old.bans, bans)
            && (Arc::ptr_eq(&old.counts, counts) || (bans.len() > MANY_BANS && now.since(old.at) < COUNTS_EVERY))
        {
            return Arc::clone(&old.rows);
        }
        let row = |ban: &Arc<Ban>| {
            let (packets, bytes) = counts.get(&ban.prefix).copied().unwrap_or_default();
            BanRow::new(ban, name.as_str(), packets, bytes)
        };
        let rows = Arc::new(bans.iter().map(row).collect::<Vec<_>>());
        self.rows = Some(Rows { bans: Arc::clone(bans), counts: Arc::clone(counts), at: now, rows: Arc::clone(&rows) });
        rows
    }

    /// What was found, where it is something else than when it was last handed over.
    pub fn news(&self) -> Option<Vec<Trouble>> {
        self.news.then(|| self.found.clone())
    }

    /// The apply thread has the news.
    pub fn told(&mut self) {
        self.news = false;
    }

    fn mark(&mut self, now: Timestamp, found: Vec<Trouble>) -> Vec<Degraded> {
        self.since.retain(|(word, which), _| found.iter().any(|trouble| trouble.key() == (*word, which)));
        // Reasons count seconds and lines; only another thing is news.
        self.news |= !found.iter().map(Trouble::key).eq(self.found.iter().map(Trouble::key));
        let rows = found
            .iter()
            .map(|trouble| {
                let since = *self.since.entry((trouble.word, trouble.which.clone())).or_insert(now);
                Degraded { what: trouble.word.into(), reason: trouble.reason.clone(), since: since.to_string() }
            })
            .collect();
        self.found = found;
        rows
    }
}

/// What [`live`] is made of.
pub struct Sources<'a> {
    /// From the hot thread.
    pub hot: &'a HotStatus,
    /// From the apply thread; none before its first round.
    pub apply: Option<&'a ApplyStatus>,
    /// From the kernel.
    pub machine: &'a Machine,
    /// Wall clock.
    pub now: Timestamp,
    /// Since the start.
    pub uptime: Duration,
    /// Listeners of the dashboard that are not bound.
    pub unbound: Vec<Trouble>,
}

/// The picture of this second.
pub fn live(sources: &Sources<'_>, memory: &mut Memory) -> Live {
    let Sources { hot, apply, machine, now, uptime, unbound } = sources;
    let s = &hot.snapshot;
    let (name, coverage, ratio, counts) = match apply {
        Some(apply) => (apply.enforcer, apply.coverage.clone(), apply.enforcement_ratio, Arc::clone(&apply.counts)),
        None => (Name::DryRun, Coverage::default(), 1.0, Arc::default()),
    };
    let mut found = hot.degraded.clone();
    let mut lost = apply.and_then(|apply| apply.lost.clone());
    if now.since(hot.at) > HANGS_AFTER {
        let reason = format!("no log has been read for {} s: the reading thread hangs", now.since(hot.at).as_secs());
        lost = Some(reason.clone());
        found.push(Trouble { word: "log_silent", which: "thread".into(), reason });
    }
    if let Some(apply) = apply
        && now.since(apply.at) > HANGS_AFTER
    {
        let lasts = now.since(apply.at).as_secs();
        let reason = format!("the enforcer or the disk has not answered for {lasts} s: bans are decided but wait");
        lost = Some(reason.clone());
        found.push(Trouble::new("enforcement", reason));
    }
    if hot.lost_outputs > 0 {
        let reason = format!("{} decisions were lost on their way to the enforcer", hot.lost_outputs);
        found.push(Trouble { word: "enforcement", which: "lost".into(), reason });
    }
    found.extend_from_slice(unbound);
    if lost.is_none() {
        let is_blind = |trouble: &&Trouble| matches!(trouble.word, "log_missing" | "log_format");
        lost = hot.degraded.iter().find(is_blind).map(|trouble| trouble.reason.clone());
    }
    if lost.is_none() && !s.bans.is_empty() && ratio < LEAST_ENFORCED {
        lost = Some(format!("only {:.1} % of the bans are enforced", 100.0 * ratio));
    }
    if lost.is_none() && name == Name::Xdp {
        lost = unprotected(&coverage.attachments);
    }
    let mut degraded: Vec<Degraded> = (apply.iter().flat_map(|a| &a.degraded))
        .map(|(what, reason, since)| Degraded { what: what.clone(), reason: reason.clone(), since: since.to_string() })
        .collect();
    degraded.extend(memory.mark(*now, found));
    degraded.extend(brake(s.braked, *now));
    let global = LevelRow::new(&s.global, s.global_limit);
    let rejected: u64 =
        hot.rejected.iter().filter(|(r, _)| *r != crate::record::Reject::Empty).map(|(_, count)| count).sum();
    let (cpu, memory_bytes, host_cpu, host_memory) = machine.figures();
    let status = Status {
        version: env!("CARGO_PKG_VERSION").into(),
        time: now.to_string(),
        log_time: (s.records > 0).then(|| s.at.to_string()),
        uptime_secs: uptime.as_secs(),
        enforcer: name.as_str().into(),
        xdp_mode: worst_mode(&coverage.attachments).map(str::to_owned),
        interfaces: (coverage.attachments.iter())
            .map(|a| InterfaceRow { name: a.interface.clone(), mode: a.mode.into(), reason: a.reason.clone() })
            .collect(),
        enforcement_ratio: ratio,
        records: s.records,
        rejected,
        late: s.late,
        blocked: s.blocked,
        active_bans: s.bans.len() as u64,
        dropped_packets: dropped(&coverage.totals),
        global_rate: round(s.global_rate),
        last_second: s.last_second,
        error_ratio: round(s.global_error_ratio),
        baseline: global.clone(),
        ip_limit: round(s.ip_limit),
        warmup_left_secs: s.warmup_left_secs,
        tracked_ips: s.tracked_ips as u64,
        backlog_bytes: hot.backlog_bytes,
        cpu: round(cpu),
        memory_bytes,
        host_cpu: round(host_cpu),
        host_memory: round(host_memory),
        unhealthy: lost,
        degraded,
    };
    Live {
        status,
        bans: memory.rows(&s.bans, &counts, name, *now),
        top: s.top.iter().map(|client| TopRow::new(client, s.global_rate)).collect(),
        baseline: BaselineRow {
            global,
            ip: LevelRow::new(&s.ip, s.ip_limit),
            warmup_left_secs: s.warmup_left_secs,
            hours: s.hours.iter().map(|h| h.as_ref().map(|level| LevelRow::new(level, 0.0))).collect(),
        },
    }
}

/// The point of the graph for this second.
pub fn point(live: &Live, now: Timestamp) -> HistoryPoint {
    let status = &live.status;
    HistoryPoint {
        t: now.as_secs(),
        rate: status.global_rate,
        error_ratio: status.error_ratio,
        mean: status.baseline.figures.mean,
        stddev: status.baseline.figures.stddev,
        limit: status.baseline.limit,
        bans: status.active_bans,
        dropped: status.dropped_packets,
    }
}

/// The mass-ban brake holds, or did within the last minute. Each ban it holds back is reported on its own, so this is only shown.
fn brake(braked: Option<(Timestamp, Timestamp)>, now: Timestamp) -> Option<Degraded> {
    let (since, _) = braked.filter(|(_, last)| now.since(*last) <= BRAKED_FOR)?;
    let reason = "so many clients crossed their limits at once that only the worst are banned (bans.brake_per_minute, bans.brake_share); is it an attack, or did a deployment break the site?";
    Some(Degraded { what: "braked".into(), reason: reason.into(), since: since.to_string() })
}

/// Why what comes in by an interface is not dropped: it has no program, and nothing else covers it.
fn unprotected(attachments: &[Attachment]) -> Option<String> {
    let open = attachments.iter().find(|a| a.mode == "none")?;
    let why = open.reason.as_deref().unwrap_or("the program is not attached");
    Some(format!("{} is not protected: {why}", open.interface))
}

fn dropped(totals: &Totals) -> u64 {
    totals.dropped_host + totals.dropped_prefix
}

/// `native` only where every interface is; none without XDP.
fn worst_mode(attachments: &[Attachment]) -> Option<&'static str> {
    let covered = || attachments.iter().filter(|a| a.mode != "none");
    covered().find(|a| a.mode == "generic").or_else(|| covered().next()).map(|a| a.mode)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::engine::{Client, Level, Origin, Scope, Snapshot, Source};
    use crate::golden::{self, indent};
    use crate::record::Reject;
    use crate::tail::Counts;

    const NOW: Timestamp = Timestamp::from_secs(1_777_280_000);

    #[test]
    fn only_another_trouble_is_news() {
        let mut memory = Memory::default();
        memory.mark(NOW, Vec::new());
        assert_eq!(memory.news(), None);
        let silent = |secs: u32| vec![Trouble::new("log_silent", format!("no request for {secs} s"))];
        let rows = memory.mark(NOW, silent(61));
        assert_eq!(memory.news(), Some(silent(61)));
        // Nobody took it: it is still news, in its newest words, and the time is that of the first.
        assert_eq!(memory.mark(NOW.plus(Duration::from_secs(1)), silent(62))[0].since, rows[0].since);
        assert_eq!(memory.news(), Some(silent(62)));
        memory.told();
        memory.mark(NOW, silent(63));
        assert_eq!(memory.news(), None);
        memory.mark(NOW, Vec::new());
        assert_eq!(memory.news(), Some(Vec::new()));
    }

    #[test]
    fn each_missing_log_has_its_own_time_and_is_news() {
        let missing = |path: &str| Trouble { word: "log_missing", which: path.into(), reason: path.into() };
        let (mut memory, later) = (Memory::default(), NOW.plus(Duration::from_secs(1)));
        memory.mark(NOW, vec![missing("a")]);
        memory.told();
        let rows = memory.mark(later, vec![missing("a"), missing("b")]);
        assert_eq!(rows.iter().map(|row| row.since.clone()).collect::<Vec<_>>(), [NOW.to_string(), later.to_string()]);
        memory.told();
        memory.mark(later, vec![missing("b")]);
        memory.told();
        memory.mark(later, vec![missing("a")]);
        assert_eq!(memory.news(), Some(vec![missing("a")]), "the same word, but another log");
    }

    #[test]
    fn the_brake_is_shown_for_a_minute_after_it_last_held() {
        let at = |secs| NOW.plus(Duration::from_secs(secs));
        assert_eq!(brake(None, NOW), None);
        let shown = brake(Some((NOW, at(30))), at(90)).expect("shown");
        assert_eq!((shown.what, shown.since), ("braked".into(), NOW.to_string()));
        assert_eq!(brake(Some((NOW, at(30))), at(91)), None);
    }

    #[test]
    fn an_interface_without_a_program_is_not_protected() {
        let attachment = |mode, reason: Option<&str>| Attachment {
            interface: "eth0".into(),
            mode,
            reason: reason.map(str::to_owned),
        };
        assert_eq!(unprotected(&[]), None);
        assert_eq!(unprotected(&[attachment("native", None), attachment("generic", None)]), None);
        let lost = unprotected(&[attachment("native", None), attachment("none", Some("it is gone"))]).expect("lost");
        assert_eq!(lost, "eth0 is not protected: it is gone");
    }

    fn level(scope: Scope, source: Source) -> Level {
        Level { scope, mean: 41.0, stddev: 9.5, error_rate: 0.0123, samples: 1800, source }
    }

    fn hot() -> HotStatus {
        let ban = |ip: &str, until| Ban {
            prefix: crate::report::parse_ip(ip).expect("a prefix"),
            at: NOW,
            until,
            offence: 1,
            origin: Origin::Operator,
            finding: None,
            note: "scraper".into(),
            in_past: false,
        };
        let bans = [ban("203.0.113.10", Some(NOW.plus(Duration::from_secs(600)))), ban("2001:db8:7::/64", None)];
        let mut hours = [const { None }; 24];
        hours[9] = Some(level(Scope::Global, Source::Hour));
        let snapshot = Snapshot {
            at: NOW,
            records: 1_000_000,
            late: 1,
            early: 2,
            blocked: 12,
            global_rate: 41.51234,
            last_second: 44,
            global_error_ratio: 0.021_234,
            global: level(Scope::Global, Source::Hour),
            global_limit: 69.5,
            ip: level(Scope::Ip, Source::Rolling),
            ip_limit: 2.0,
            warmup_left_secs: 0,
            hours,
            tracked_ips: 2312,
            tracked_ips_peak: 4000,
            evicted: 3,
            braked: Some((NOW, NOW)),
            top: vec![Client {
                prefix: bans[0].prefix,
                requests: 852,
                errors: 31,
                rate: 14.2,
                z_score: 23.0,
                limit: 2.0,
                banned: true,
            }],
            bans: bans.map(Arc::new).into_iter().collect(),
        };
        HotStatus {
            snapshot,
            rejected: vec![(Reject::Empty, 5), (Reject::NoTime, 3)],
            totals: Counts::default(),
            backlog_bytes: 4096,
            read_errors: 0,
            lost_outputs: 0,
            degraded: vec![Trouble::new("late", "20 of the last 100 records were late".into())],
            at: NOW,
        }
    }

    fn applied() -> ApplyStatus {
        let attachment = |interface: &str, mode, reason: Option<&str>| Attachment {
            interface: interface.into(),
            mode,
            reason: reason.map(str::to_owned),
        };
        let attachments =
            vec![attachment("eth0", "native", None), attachment("eth1", "generic", Some("the driver has no XDP"))];
        ApplyStatus {
            enforcer: Name::Xdp,
            coverage: Coverage {
                attachments,
                totals: Totals { dropped_host: 1000, dropped_prefix: 200, ..Totals::default() },
            },
            counts: Arc::new([(crate::report::parse_ip("203.0.113.10").expect("a prefix"), (1200, 64_000))].into()),
            enforcement_ratio: 1.0,
            degraded: vec![("fallback".into(), "eth1: xdp native cannot be used".into(), NOW)],
            lost: None,
            at: NOW,
        }
    }

    /// Everything that is shown each second, as JSON.
    fn shown(hot: &HotStatus, apply: Option<&ApplyStatus>) -> String {
        let machine = Machine { system: None, pid: Pid::from_u32(1) };
        let sources =
            Sources { hot, apply, machine: &machine, now: NOW, uptime: Duration::from_secs(7260), unbound: Vec::new() };
        let mut live = live(&sources, &mut Memory::default());
        live.status.version = "0.0.0".into();
        let json = |value: serde_json::Result<String>| indent(&value.expect("JSON"));
        format!(
            "status {}\nbans {}\ntop {}\nbaseline {}\npoint {}\n",
            json(serde_json::to_string(&live.status)),
            json(serde_json::to_string(&*live.bans)),
            json(serde_json::to_string(&live.top)),
            json(serde_json::to_string(&live.baseline)),
            json(serde_json::to_string(&point(&live, NOW))),
        )
    }

    #[test]
    fn golden_status() {
        let (hot, apply) = (hot(), applied());
        let hanging = HotStatus { at: Timestamp::from_secs(NOW.as_secs() - 60), lost_outputs: 3, ..hot.clone() };
        let open = ApplyStatus {
            coverage: Coverage {
                attachments: vec![Attachment { interface: "eth0".into(), mode: "none", reason: None }],
                ..Coverage::default()
            },
            ..apply.clone()
        };
        let late = ApplyStatus { at: Timestamp::from_secs(NOW.as_secs() - 60), ..apply.clone() };
        let few = ApplyStatus { enforcement_ratio: 0.25, ..apply.clone() };
        let text: String = [
            ("all is well but for three faults", &hot, Some(&apply)),
            ("before the enforcer is there", &hot, None),
            ("the reading thread hangs and has lost decisions", &hanging, Some(&apply)),
            ("the enforcer hangs", &hot, Some(&late)),
            ("an interface has no program", &hot, Some(&open)),
            ("few bans are enforced", &hot, Some(&few)),
        ]
        .map(|(name, hot, apply)| {
            let text = shown(hot, apply);
            // What is the same in all of them is shown once.
            let end = if name.starts_with("all") { text.len() } else { text.find("\nbans ").expect("bans") + 1 };
            format!("# {name}\n{}", &text[..end])
        })
        .concat();
        golden::same("status.txt", &text);
    }
}
