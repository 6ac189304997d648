//! Every Prometheus metric, in one place: name, help and unit.
//!
//! Gauges and totals that others count are set once a second
//! ([`Metrics::live`], [`Metrics::snapshot`], [`Metrics::packets`]); what
//! happens now and then is counted as it happens ([`Metrics::output`],
//! [`Metrics::incident`], or `inc()` on the field). No label is ever an
//! address. Nothing here reads a clock.

use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Mutex, PoisonError};

use prometheus_client::encoding::EncodeLabelSet;
use prometheus_client::metrics::counter::Counter as Total;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::metrics::histogram::Histogram;
use prometheus_client::registry::Registry;

use crate::enforce::{Incident, Totals};
use crate::engine::{Decision, Level, Output, Snapshot};
use crate::notify::SinkHealth;
use crate::record::Reject;
use crate::tail::Counts;
use crate::time::Timestamp;
use crate::view::live::Live;

/// A total that only grows.
pub type Counter = Total<u64, AtomicU64>;
/// A figure that comes and goes.
pub type Figure = Gauge<f64, AtomicU64>;

macro_rules! labels {
    ($($(#[$doc:meta])* $name:ident { $($field:ident: $type:ty),+ })+) => { $(
        $(#[$doc])*
        #[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
        pub struct $name {
            $(#[doc = concat!("The label `", stringify!($field), "`.")] pub $field: $type),+
        }
    )+ };
}

labels! {
    /// Who decided, by which rule (`none` for a ban by hand).
    BanLabels { origin: &'static str, rule: &'static str }
    /// Who decided.
    OriginLabels { origin: &'static str }
    /// Which rule fired.
    RuleLabels { rule: &'static str }
    /// Whose baseline.
    ScopeLabels { scope: &'static str }
    /// Why a line or a packet went the way it went.
    ReasonLabels { reason: &'static str }
    /// What was wrong with what the kernel held.
    KindLabels { kind: &'static str }
    /// What is degraded.
    WhatLabels { what: String }
    /// Which build this is.
    BuildLabels { version: &'static str }
    /// Who drops packets, and how.
    EnforcerLabels { enforcer: String, mode: String }
    /// How an interface is covered.
    InterfaceLabels { interface: String, mode: String }
    /// Where a notice goes.
    TargetLabels { target: &'static str }
    /// First digit of an HTTP status.
    ClassLabels { class: &'static str }
}

macro_rules! metrics {
    ($($name:literal $help:literal $field:ident: $type:ty = $make:expr;)+) => {
        /// All metrics of the daemon.
        #[derive(Debug)]
        pub struct Metrics {
            registry: Registry,
            /// Held while labels come and go, so that no scrape sees half of them.
            whole: Mutex<()>,
            $(#[doc = concat!("`anomaly_", $name, "`: ", $help, ".")] pub $field: $type),+
        }

        impl Default for Metrics {
            fn default() -> Self {
                let mut registry = Registry::with_prefix("anomaly");
                $(
                    let $field: $type = $make;
                    registry.register($name, $help, $field.clone());
                )+
                Self { registry, whole: Mutex::new(()), $($field),+ }.primed()
            }
        }
    };
}

// Counters are named without `_total` here: the text format adds it.
metrics! {
    "build_info" "Version of the running daemon, always 1"
        build: Family<BuildLabels, Figure> = Family::default();
    "start_time_seconds" "When the daemon started, in seconds since the Unix epoch"
        start_time: Figure = Figure::default();
    "healthy" "1 while log and enforcer are there, 0 when one is lost"
        healthy: Figure = Figure::default();
    "degraded" "1 for each fault, by its word in status"
        degraded: Family<WhatLabels, Figure> = Family::default();

    "log_records" "Log lines that gave a record"
        records: Counter = Counter::default();
    "log_rejected_lines" "Log lines that gave no record, by reason"
        rejected_lines: Family<ReasonLabels, Counter> = Family::default();
    "log_late_records" "Records older than the window: counted here, judged by nobody"
        late_records: Counter = Counter::default();
    "log_early_records" "Records with a stamp too far ahead to be believed"
        early_records: Counter = Counter::default();
    "log_blocked_records" "Records of banned addresses: in flight at the ban, or not dropped"
        blocked_records: Counter = Counter::default();
    "log_read_bytes" "Bytes read from the logs"
        read_bytes: Counter = Counter::default();
    "log_rotations" "Logs that were replaced by a new file"
        rotations: Counter = Counter::default();
    "log_truncations" "Logs that were cut to a shorter length"
        truncations: Counter = Counter::default();
    "log_read_errors" "Reads of a log that failed"
        read_errors: Counter = Counter::default();
    "log_backlog_bytes" "Bytes of log that are written but not read"
        backlog: Figure = Figure::default();
    "log_last_record_timestamp_seconds" "Log time of the newest record, in seconds since the Unix epoch; 0 before the first"
        last_record: Figure = Figure::default();

    "global_requests_per_second" "Requests per second of the site over the window"
        global_rate: Figure = Figure::default();
    "global_error_ratio" "Share of the site's requests in the window with status 400 and above"
        global_error_ratio: Figure = Figure::default();
    "baseline_mean_requests_per_second" "Mean of the baseline in effect, by scope"
        baseline_mean: Family<ScopeLabels, Figure> = Family::default();
    "baseline_stddev_requests_per_second" "Standard deviation of the baseline in effect, by scope"
        baseline_stddev: Family<ScopeLabels, Figure> = Family::default();
    "baseline_error_ratio" "Share of errors in the baseline in effect, by scope"
        baseline_error_ratio: Family<ScopeLabels, Figure> = Family::default();
    "baseline_samples" "Samples behind the baseline in effect, by scope"
        baseline_samples: Family<ScopeLabels, Figure> = Family::default();
    "limit_requests_per_second" "Rate above which the site (global) or an unknown client (ip) is anomalous"
        limit: Family<ScopeLabels, Figure> = Family::default();
    "baseline_recalculations" "Times that the baseline was computed"
        recalculations: Counter = Counter::default();
    "baseline_levels_accepted" "New levels that lasted so long that they became normal, by scope"
        levels_accepted: Family<ScopeLabels, Counter> = Family::default();
    "warmup_remaining_seconds" "Log time until the warm-up ends; 0 when it is over"
        warmup: Figure = Figure::default();
    "tracked_ips" "Addresses that are followed now"
        tracked_ips: Figure = Figure::default();
    "tracked_ips_evicted" "Addresses that were forgotten because the table was full"
        evicted: Counter = Counter::default();

    "bans" "Bans that were decided, by origin and rule"
        bans: Family<BanLabels, Counter> = Family::default();
    "unbans" "Bans that ended, by origin: detector (ran out) or operator (lifted)"
        unbans: Family<OriginLabels, Counter> = Family::default();
    "global_anomalies" "Times that the site as a whole was unusual, by rule"
        global_anomalies: Family<RuleLabels, Counter> = Family::default();
    "bans_braked" "Bans that the mass-ban brake held back"
        braked: Counter = Counter::default();
    "bans_not_effective" "Bans whose clients still reached the log"
        not_effective: Counter = Counter::default();
    "active_bans" "Bans in force"
        active_bans: Figure = Figure::default();

    "enforcement_ratio" "Share of the bans in force that the enforcer holds; 1 when there is none"
        enforcement_ratio: Figure = Figure::default();
    "enforcer_info" "Who drops packets, and in which XDP mode; always 1"
        enforcer: Family<EnforcerLabels, Figure> = Family::default();
    "interface_info" "How each interface is covered, always 1"
        interface: Family<InterfaceLabels, Figure> = Family::default();
    "enforcer_dropped_packets" "Packets of banned sources that were dropped, by what named them: host or prefix"
        dropped_packets: Family<ReasonLabels, Counter> = Family::default();
    "enforcer_dropped_bytes" "Bytes of banned sources that were dropped"
        dropped_bytes: Counter = Counter::default();
    "enforcer_passed_packets" "Packets that were let through, by reason"
        passed_packets: Family<ReasonLabels, Counter> = Family::default();
    "enforcer_errors" "Bans and unbans that the enforcer could not carry out"
        enforcer_errors: Counter = Counter::default();
    "enforcer_fallbacks" "Times that a rung of the ladder from native XDP to iptables could not be taken"
        fallbacks: Counter = Counter::default();
    "enforcer_repaired" "Entries that the kernel lacked (missing) or nobody wanted (orphan), put right"
        repaired: Family<KindLabels, Counter> = Family::default();
    "enforcer_gave_way" "Bans that gave way to newer ones because the map was full"
        gave_way: Counter = Counter::default();
    "enforcement_duration_seconds" "Time from the decision to ban until the enforcer had done it"
        enforcement_duration: Histogram = Histogram::new([0.001, 0.005, 0.02, 0.1, 0.5, 1.0, 2.0, 5.0, 10.0, 30.0]);

    "notify_sent" "Messages that were delivered, by target"
        notify_sent: Family<TargetLabels, Counter> = Family::default();
    "notify_retried" "Deliveries that were tried again, by target"
        notify_retried: Family<TargetLabels, Counter> = Family::default();
    "notify_lost" "Notices that were given up because they were refused for good or the daemon ended, by target"
        notify_lost: Family<TargetLabels, Counter> = Family::default();
    "notify_folded" "Notices of which only the number is told because too many waited, by target"
        notify_folded: Family<TargetLabels, Counter> = Family::default();
    "notify_queued" "Notices that wait for delivery, by target"
        notify_queued: Family<TargetLabels, Figure> = Family::default();
    "store_errors" "Reads and writes of the state database that failed"
        store_errors: Counter = Counter::default();
    "audit_errors" "Lines that could not be written to the audit log"
        audit_errors: Counter = Counter::default();
    "config_reloads" "Configurations that were taken while running"
        config_reloads: Counter = Counter::default();
    "config_reload_errors" "Configurations that were refused while running; the old one stayed"
        config_reload_errors: Counter = Counter::default();

    "http_requests" "Requests to dashboard and API that were answered, by class of status"
        http_requests: Family<ClassLabels, Counter> = Family::default();
    "http_connections" "Open connections to dashboard and API"
        http_connections: Gauge = Gauge::default();
    "http_refused_connections" "Connections beyond the limit, turned away"
        http_refused: Counter = Counter::default();
    "http_event_streams" "Dashboards and scripts that follow the event stream"
        http_streams: Gauge = Gauge::default();

    "process_cpu_ratio" "Share of one core that the daemon used lately"
        process_cpu: Figure = Figure::default();
    "process_resident_memory_bytes" "Resident memory of the daemon"
        process_memory: Figure = Figure::default();
    "host_cpu_ratio" "Share of all cores that the host used lately"
        host_cpu: Figure = Figure::default();
    "host_memory_ratio" "Share of the host's memory in use"
        host_memory: Figure = Figure::default();
}

/// The words of `degraded` that are always there, at 0 when all is well, so that an alert on them
/// does not depend on a series that may not exist.
pub const DEGRADED_WORDS: &[&str] = &[
    "fallback",
    "slack",
    "webhook",
    "store",
    "store_damaged",
    "audit",
    "log_silent",
    "log_missing",
    "log_format",
    "rejected",
    "late",
    "not_effective",
    "enforcement",
    "map_full",
    "braked",
    "dashboard",
    "off",
    "config",
];

/// The word of a rejection in metrics and status.
pub const fn reject_word(reject: Reject) -> &'static str {
    match reject {
        Reject::Empty => "empty",
        Reject::TooLong => "too_long",
        Reject::NotAnObject => "not_an_object",
        Reject::NoAddress => "no_address",
        Reject::BadAddress => "bad_address",
        Reject::NoTime => "no_time",
    }
}

/// A total that someone else counts: takes their figure, and never goes back.
fn raise(counter: &Counter, total: u64) {
    counter.inner().fetch_max(total, Ordering::Relaxed);
}

impl Metrics {
    /// Makes every series whose labels are known appear at 0: `rate()` sees the first event only where
    /// there was a 0 before it.
    fn primed(self) -> Self {
        self.build.get_or_create(&BuildLabels { version: env!("CARGO_PKG_VERSION") }).set(1.0);
        for reject in Reject::ALL {
            drop(self.rejected_lines.get_or_create(&ReasonLabels { reason: reject_word(reject) }));
        }
        for rule in ["z_score", "rate_multiplier", "hard_limit"] {
            drop(self.bans.get_or_create(&BanLabels { origin: "detector", rule }));
        }
        for rule in ["z_score", "rate_multiplier"] {
            drop(self.global_anomalies.get_or_create(&RuleLabels { rule }));
        }
        drop(self.bans.get_or_create(&BanLabels { origin: "operator", rule: "none" }));
        for origin in ["detector", "operator"] {
            drop(self.unbans.get_or_create(&OriginLabels { origin }));
        }
        for scope in ["ip", "global"] {
            let labels = ScopeLabels { scope };
            drop(self.levels_accepted.get_or_create(&labels));
            for level in [
                &self.baseline_mean,
                &self.baseline_stddev,
                &self.baseline_error_ratio,
                &self.baseline_samples,
                &self.limit,
            ] {
                drop(level.get_or_create(&labels));
            }
        }
        for what in DEGRADED_WORDS {
            drop(self.degraded.get_or_create(&WhatLabels { what: (*what).into() }));
        }
        for kind in ["missing", "orphan"] {
            drop(self.repaired.get_or_create(&KindLabels { kind }));
        }
        for target in ["slack", "webhook"] {
            let labels = TargetLabels { target };
            drop(self.notify_sent.get_or_create(&labels));
            drop(self.notify_retried.get_or_create(&labels));
            drop(self.notify_lost.get_or_create(&labels));
            drop(self.notify_folded.get_or_create(&labels));
            drop(self.notify_queued.get_or_create(&labels));
        }
        for class in ["2xx", "3xx", "4xx", "5xx"] {
            drop(self.http_requests.get_or_create(&ClassLabels { class }));
        }
        self.packets(&Totals::default());
        self
    }

    /// Counts what the engine said.
    pub fn output(&self, output: &Output) {
        match output {
            Output::Decision(Decision::Ban(ban)) => {
                let rule = match ban.origin {
                    crate::engine::Origin::Detector => ban.finding.as_ref().map_or("none", |f| f.rule.as_str()),
                    crate::engine::Origin::Operator => "none",
                };
                self.bans.get_or_create(&BanLabels { origin: ban.origin.as_str(), rule }).inc();
            }
            Output::Decision(Decision::Unban(unban)) => {
                self.unbans.get_or_create(&OriginLabels { origin: unban.origin.as_str() }).inc();
            }
            Output::GlobalAnomaly(finding) => {
                self.global_anomalies.get_or_create(&RuleLabels { rule: finding.rule.as_str() }).inc();
            }
            Output::Baseline(_) => {
                self.recalculations.inc();
            }
            Output::NotEffective(_) => {
                self.not_effective.inc();
            }
            Output::LevelAccepted(accepted) => {
                self.levels_accepted.get_or_create(&ScopeLabels { scope: accepted.scope.as_str() }).inc();
            }
            Output::Braked(_) => {
                self.braked.inc();
            }
            Output::Kept(_) | Output::Refused(_) => {}
        }
    }

    /// Counts what an enforcer met.
    pub fn incident(&self, incident: &Incident) {
        match incident {
            Incident::Fallback { .. } => {
                self.fallbacks.inc();
            }
            Incident::Repaired { missing, orphans } => {
                self.repaired.get_or_create(&KindLabels { kind: "missing" }).inc_by(missing.len() as u64);
                self.repaired.get_or_create(&KindLabels { kind: "orphan" }).inc_by(orphans.len() as u64);
            }
            Incident::MapFull { gave_way, .. } => {
                self.gave_way.inc_by(gave_way.len() as u64);
            }
            Incident::Degraded { .. } | Incident::Recovered { .. } | Incident::Off => {}
        }
    }

    /// Takes what happened to the logs since the start: bytes, rotations, lines that gave no record, failed reads.
    pub fn logs(&self, totals: &Counts, rejected: &[(Reject, u64)], read_errors: u64) {
        raise(&self.read_bytes, totals.bytes);
        raise(&self.rotations, totals.rotations);
        raise(&self.truncations, totals.truncations);
        raise(&self.read_errors, read_errors);
        for (reject, lines) in rejected {
            raise(&self.rejected_lines.get_or_create(&ReasonLabels { reason: reject_word(*reject) }), *lines);
        }
    }

    /// Takes how each sink of notices is doing.
    pub fn sinks(&self, sinks: &[SinkHealth]) {
        for sink in sinks {
            let labels = TargetLabels { target: sink.name };
            raise(&self.notify_sent.get_or_create(&labels), sink.sent);
            raise(&self.notify_retried.get_or_create(&labels), sink.retried);
            raise(&self.notify_lost.get_or_create(&labels), sink.lost);
            raise(&self.notify_folded.get_or_create(&labels), sink.folded);
            self.notify_queued.get_or_create(&labels).set(sink.waiting as f64);
        }
    }

    /// Takes the enforcer's totals since it started. Where it starts again within one run of the daemon,
    /// they stand still until they have caught up.
    pub fn packets(&self, totals: &Totals) {
        for (reason, packets) in [("host", totals.dropped_host), ("prefix", totals.dropped_prefix)] {
            raise(&self.dropped_packets.get_or_create(&ReasonLabels { reason }), packets);
        }
        raise(&self.dropped_bytes, totals.dropped_bytes);
        for (reason, packets) in [
            ("not_banned", totals.passed),
            ("allowlisted", totals.allowlisted),
            ("malformed", totals.malformed),
            ("not_ip", totals.not_ip),
        ] {
            raise(&self.passed_packets.get_or_create(&ReasonLabels { reason }), packets);
        }
    }

    /// Takes the engine's totals and levels, once a second.
    pub fn snapshot(&self, snapshot: &Snapshot) {
        raise(&self.records, snapshot.records);
        raise(&self.late_records, snapshot.late);
        raise(&self.early_records, snapshot.early);
        raise(&self.blocked_records, snapshot.blocked);
        raise(&self.evicted, snapshot.evicted);
        self.tracked_ips.set(snapshot.tracked_ips as f64);
        self.level(&snapshot.global, snapshot.global_limit);
        self.level(&snapshot.ip, snapshot.ip_limit);
    }

    fn level(&self, level: &Level, limit: f64) {
        let labels = ScopeLabels { scope: level.scope.as_str() };
        self.baseline_mean.get_or_create(&labels).set(level.mean);
        self.baseline_stddev.get_or_create(&labels).set(level.stddev);
        self.baseline_error_ratio.get_or_create(&labels).set(level.error_rate);
        self.baseline_samples.get_or_create(&labels).set(level.samples as f64);
        self.limit.get_or_create(&labels).set(limit);
    }

    /// Takes what the dashboard shows, once a second.
    pub fn live(&self, live: &Live) {
        let status = &live.status;
        let seconds = |text: &str| Timestamp::parse(text).map_or(0.0, Timestamp::as_secs_f64);
        let started = (seconds(&status.time) - status.uptime_secs as f64).max(0.0).floor();
        // The uptime is whole seconds: without this, the start would seem to move by one now and then.
        if (self.start_time.get() - started).abs() > 2.0 {
            self.start_time.set(started);
        }
        self.healthy.set(if status.unhealthy.is_none() { 1.0 } else { 0.0 });
        self.last_record.set(status.log_time.as_deref().map_or(0.0, seconds));
        raise(&self.records, status.records);
        raise(&self.late_records, status.late);
        raise(&self.blocked_records, status.blocked);
        self.backlog.set(status.backlog_bytes as f64);
        self.global_rate.set(status.global_rate);
        self.global_error_ratio.set(status.error_ratio);
        self.warmup.set(f64::from(status.warmup_left_secs));
        self.tracked_ips.set(status.tracked_ips as f64);
        self.active_bans.set(status.active_bans as f64);
        self.enforcement_ratio.set(status.enforcement_ratio);
        self.process_cpu.set(status.cpu);
        self.process_memory.set(status.memory_bytes as f64);
        self.host_cpu.set(status.host_cpu);
        self.host_memory.set(status.host_memory);

        let _whole = self.whole.lock().unwrap_or_else(PoisonError::into_inner);
        self.enforcer.clear();
        let mode = status.xdp_mode.clone().unwrap_or_else(|| "none".into());
        self.enforcer.get_or_create(&EnforcerLabels { enforcer: status.enforcer.clone(), mode }).set(1.0);
        self.interface.clear();
        for row in &status.interfaces {
            let labels = InterfaceLabels { interface: row.name.clone(), mode: row.mode.clone() };
            self.interface.get_or_create(&labels).set(1.0);
        }
        let now = |what: &str| status.degraded.iter().any(|d| d.what == what);
        self.degraded.clear();
        for what in DEGRADED_WORDS {
            let labels = WhatLabels { what: (*what).into() };
            self.degraded.get_or_create(&labels).set(if now(what) { 1.0 } else { 0.0 });
        }
        for row in &status.degraded {
            self.degraded.get_or_create(&WhatLabels { what: row.what.clone() }).set(1.0);
        }
    }

    /// OpenMetrics text, for scrapers that ask for it.
    pub fn open_metrics(&self) -> String {
        let mut text = String::with_capacity(16 * 1024);
        let _whole = self.whole.lock().unwrap_or_else(PoisonError::into_inner);
        // Writing into a String cannot fail; a metric that could not be encoded is left out.
        let _ = prometheus_client::encoding::text::encode(&mut text, &self.registry);
        text
    }

    /// The Prometheus text format 0.0.4.
    ///
    /// It differs from OpenMetrics where counters are described: there the description names the
    /// family, here it names the series, `_total` included.
    pub fn prometheus_text(&self) -> String {
        let open = self.open_metrics();
        let mut counters: Vec<&str> = Vec::new();
        for line in open.lines() {
            if let Some(name) = line.strip_prefix("# TYPE ").and_then(|l| l.strip_suffix(" counter")) {
                counters.push(name);
            }
        }
        let mut text = String::with_capacity(open.len() + counters.len() * 12);
        for line in open.lines() {
            let described = line.strip_prefix("# HELP ").or_else(|| line.strip_prefix("# TYPE "));
            match described.and_then(|rest| rest.split_once(' ')) {
                Some((name, rest)) if counters.contains(&name) => {
                    text.push_str(&line[..7]);
                    text.push_str(name);
                    text.push_str("_total ");
                    text.push_str(rest);
                }
                None if line.starts_with("# ") => continue,
                _ => text.push_str(line),
            }
            text.push('\n');
        }
        text
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::engine::{Ban, Origin, Unban};

    fn value(metrics: &Metrics, series: &str) -> Option<f64> {
        let text = metrics.prometheus_text();
        text.lines().find_map(|line| line.strip_prefix(series)?.strip_prefix(' ')?.parse().ok())
    }

    fn ban(origin: Origin) -> Ban {
        Ban {
            prefix: crate::report::parse_ip("203.0.113.10").expect("an address"),
            at: Timestamp::EPOCH,
            until: None,
            offence: 1,
            origin,
            finding: None,
            note: String::new(),
            in_past: false,
        }
    }

    #[test]
    fn decisions_are_counted_by_who_made_them() {
        let metrics = Metrics::default();
        assert_eq!(value(&metrics, "anomaly_bans_total{origin=\"operator\",rule=\"none\"}"), Some(0.0));
        metrics.output(&Output::Decision(Decision::Ban(Box::new(ban(Origin::Operator)))));
        metrics.output(&Output::Decision(Decision::Ban(Box::new(ban(Origin::Operator)))));
        let ended = std::sync::Arc::new(ban(Origin::Operator));
        let unban =
            Unban { prefix: ended.prefix, at: Timestamp::EPOCH, offence: 1, origin: Origin::Detector, ban: ended };
        metrics.output(&Output::Decision(Decision::Unban(unban)));
        assert_eq!(value(&metrics, "anomaly_bans_total{origin=\"operator\",rule=\"none\"}"), Some(2.0));
        assert_eq!(value(&metrics, "anomaly_unbans_total{origin=\"detector\"}"), Some(1.0));
        assert_eq!(value(&metrics, "anomaly_unbans_total{origin=\"operator\"}"), Some(0.0));
    }

    #[test]
    fn totals_of_others_never_go_back() {
        let metrics = Metrics::default();
        metrics.packets(&Totals { dropped_host: 100, dropped_bytes: 6000, ..Totals::default() });
        metrics.packets(&Totals { dropped_host: 7, dropped_bytes: 420, ..Totals::default() });
        assert_eq!(value(&metrics, "anomaly_enforcer_dropped_packets_total{reason=\"host\"}"), Some(100.0));
        assert_eq!(value(&metrics, "anomaly_enforcer_dropped_bytes_total"), Some(6000.0));
    }

    #[test]
    fn how_sinks_are_doing_is_told_by_target() {
        let metrics = Metrics::default();
        let slack =
            SinkHealth { name: "slack", sent: 1, retried: 2, lost: 3, folded: 4, waiting: 5, ..SinkHealth::default() };
        metrics.sinks(&[slack]);
        for (name, told) in
            [("sent_total", 1.0), ("retried_total", 2.0), ("lost_total", 3.0), ("folded_total", 4.0), ("queued", 5.0)]
        {
            assert_eq!(value(&metrics, &format!("anomaly_notify_{name}{{target=\"slack\"}}")), Some(told), "{name}");
            assert_eq!(value(&metrics, &format!("anomaly_notify_{name}{{target=\"webhook\"}}")), Some(0.0), "{name}");
        }
    }

    #[test]
    fn what_an_enforcer_met_is_counted_by_entry() {
        let metrics = Metrics::default();
        let prefix = |n: u8| ipnet::IpNet::from(std::net::IpAddr::from([192, 0, 2, n]));
        metrics.incident(&Incident::Repaired { missing: vec![prefix(1), prefix(2)], orphans: vec![prefix(3)] });
        metrics.incident(&Incident::MapFull { gave_way: vec![prefix(4)], capacity: 1 });
        assert_eq!(value(&metrics, "anomaly_enforcer_repaired_total{kind=\"missing\"}"), Some(2.0));
        assert_eq!(value(&metrics, "anomaly_enforcer_repaired_total{kind=\"orphan\"}"), Some(1.0));
        assert_eq!(value(&metrics, "anomaly_enforcer_gave_way_total"), Some(1.0));
    }
}
