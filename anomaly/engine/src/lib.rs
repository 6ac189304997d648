//! The pure core: records, ticks and commands go in, decisions and anomalies
//! come out.
//!
//! It does no I/O, reads no clock, logs nothing, cannot fail, and depends on
//! neither tokio nor serde. Everything is deterministic: the same inputs give
//! the same outputs.
//!
//! A record goes through `waiting` (is its stamp believed?), `ledger` (is its client banned?), `site` (the window of all),
//! `table` and `window` (its client's), `population` (what is normal, learned), `detector` (is it anomalous?), and back
//! to the `ledger`, which decides how long.

mod ahead;
mod codec;
mod command;
mod contract;
mod detector;
mod extension;
mod histogram;
mod index;
mod key;
mod known;
mod ledger;
mod level;
mod paths;
mod picture;
mod population;
pub mod record;
mod settings;
mod signals;
mod site;
mod slots;
mod state;
mod table;
pub mod time;
mod top;
mod waiting;
mod window;

use std::cell::Cell;

use ipnet::IpNet;

pub use contract::*;
pub use settings::{BanLength, Settings};

use ahead::Ahead;
use detector::{Limits, Verdict};
use key::Exempt;
use known::Known;
use ledger::{BanRequest, Ledger};
use paths::Paths;
use population::{MEASURES, Population};
use record::Record;
use signals::Kind;
use site::Site;
use table::Table;
use time::Timestamp;
use top::{Evidence, Top};
use waiting::{JUMP, Queue, Waiting};

/// With the log at its end, log time follows the clock at this distance: lines that are just being written are not late.
const LAG_SECS: i64 = 2;
/// So many late records in a row say that log time itself is wrong (a clock was set back).
const LATE_RUN: u32 = 100;
/// Idle clients looked at when a second begins.
const SWEEP_PER_SECOND: usize = 256;

/// The detector and the ledger of bans behind one entrance.
#[derive(Clone, Debug)]
pub struct Engine {
    settings: Settings,
    exempt: Exempt,
    table: Table,
    ahead: Ahead,
    top: Top,
    /// Requests in the window of the busiest client, as of this second.
    busiest: u32,
    /// A fast client half-way to a limit has made a request.
    hurry: bool,
    evidence: Evidence,
    site: Site,
    population: Population,
    known: Known,
    ledger: Ledger,
    limits: Limits,
    /// The population's level, as of the last recalculation.
    level: Level,
    /// The newest believed stamp.
    clock: Timestamp,
    recalculated: i64,
    /// When the warm-up ends; `None` before the first record, which begins it.
    warm_at: Option<i64>,
    alerted: Option<i64>,
    /// The present minute has an anomalous second.
    minute_held: bool,
    late_run: u32,
    waiting: Queue,
    paths: Paths,
    records: u64,
    late: u64,
    early: u64,
    blocked: u64,
    /// The brake has held a ban back: since when, and when last, without a pause of a minute.
    braked: Option<(Timestamp, Timestamp)>,
    /// Outputs of a call that had nowhere to put them.
    owed: Vec<Output>,
    /// Bytes of the windows when they were last saved.
    saved_bytes: Cell<usize>,
}

impl Engine {
    /// An engine that has learned nothing. `seed` seeds its hashes: the clients of a live site choose the addresses and paths
    /// that are hashed, so a daemon draws it at random; a replay takes a constant, so that it gives the same decisions again.
    pub fn new(settings: Settings, seed: u64) -> Self {
        let site = Site::new(&settings);
        let population = Population::new(&settings);
        let limits = Limits::new(&population, settings.min_error_rate, &settings);
        Self {
            exempt: Exempt::new(&settings.allowlist, &settings.never_ban, settings.ipv6_prefix),
            table: Table::new(settings.max_tracked_ips, seed),
            ahead: Ahead::default(),
            top: Top::default(),
            busiest: 0,
            hurry: false,
            evidence: Evidence::default(),
            known: Known::default(),
            ledger: Ledger::new(seed),
            limits,
            level: population.level(&settings, settings.min_error_rate),
            clock: Timestamp::MIN,
            recalculated: i64::MIN,
            warm_at: None,
            alerted: None,
            minute_held: false,
            late_run: 0,
            waiting: Queue::default(),
            paths: Paths::with_seed(seed),
            records: 0,
            late: 0,
            early: 0,
            blocked: 0,
            braked: None,
            owed: Vec::new(),
            saved_bytes: Cell::new(0),
            site,
            population,
            settings,
        }
    }

    /// Is told of the records that [`Engine::handle`] is given next, up to [`crate::record::LINES_AT_ONCE`] of them: it
    /// handles them faster then, and no differently.
    pub fn look_ahead(&mut self, records: &[Record<'_>]) {
        let exempt = &self.exempt;
        self.ahead.look(records.iter().map(|record| exempt.key(&record.client)), &self.table);
    }

    /// Takes one input and appends what follows from it to `out`.
    pub fn handle(&mut self, now: Timestamp, input: Input<'_>, out: &mut Vec<Output>) {
        if !self.owed.is_empty() {
            out.append(&mut self.owed);
        }
        match input {
            Input::Record(record) => {
                self.ahead.step();
                if self.settings.replay {
                    self.replay_record(record, out);
                } else {
                    self.live_record(now, record, out);
                }
            }
            Input::Tick { caught_up } => self.tick(now, caught_up, out),
            Input::Command(command) => {
                self.expire(self.wall(now), out);
                self.command(self.wall(now), command, out);
            }
        }
    }

    /// When the next [`Input::Tick`] is due, in the time of `now`; `None` when only records matter.
    pub fn next_deadline(&self) -> Option<Timestamp> {
        self.ledger.next_end()
    }

    /// Whether a fast client that is half-way to a limit has made a request since the last call: the next records should
    /// not wait.
    pub const fn take_hurry(&mut self) -> bool {
        std::mem::replace(&mut self.hurry, false)
    }

    /// The time that bans end on: `now`, but a replay has no clock but the log's.
    fn wall(&self, now: Timestamp) -> Timestamp {
        if self.settings.replay && self.clock != Timestamp::MIN { self.clock } else { now }
    }

    fn replay_record(&mut self, record: &Record<'_>, out: &mut Vec<Output>) {
        let begun = self.clock != Timestamp::MIN;
        if begun && self.waiting.is_empty() && record.time <= self.clock.plus(JUMP) {
            self.record(record, record.time, record.time.max(self.clock), out);
            return;
        }
        self.waiting.push(Waiting::new(record));
        self.settle(false, out);
    }

    /// Handles the records that need wait no longer.
    fn settle(&mut self, ended: bool, out: &mut Vec<Output>) {
        loop {
            let now = (self.clock != Timestamp::MIN).then_some(self.clock);
            let believed = match self.waiting.verdict(now, ended) {
                waiting::Verdict::Open => return,
                waiting::Verdict::Believed => true,
                waiting::Verdict::Wrong => false,
            };
            let Some(waiting) = self.waiting.pop() else { return };
            let record = waiting.record();
            if believed {
                self.record(&record, record.time, record.time.max(self.clock), out);
            } else {
                self.early += 1;
                // Its stamp is wrong, but the request was made.
                if let Some(now) = now {
                    self.record(&record, now, now, out);
                } else {
                    self.records += 1;
                }
            }
        }
    }

    fn live_record(&mut self, now: Timestamp, record: &Record<'_>, out: &mut Vec<Output>) {
        if self.clock > now.plus(JUMP) {
            // The clock was set back, and log time with it.
            self.step_back(now);
        }
        let mut time = record.time;
        if time > now.plus(JUMP) {
            self.early += 1;
            time = if self.clock == Timestamp::MIN { now } else { self.clock };
        }
        self.record(record, time, now, out);
    }

    fn tick(&mut self, now: Timestamp, caught_up: bool, out: &mut Vec<Output>) {
        if caught_up {
            self.settle(true, out);
            // Before the first record there is no log time yet: seconds in which nobody could have come teach nothing.
            if !self.settings.replay && self.site.now().is_some() {
                let idle = Timestamp::from_secs(now.as_secs().saturating_sub(LAG_SECS));
                if idle > self.clock && idle.as_secs() > self.clock.as_secs() {
                    self.advance(idle, out);
                }
            }
        }
        self.expire(self.wall(now), out);
    }

    fn expire(&mut self, now: Timestamp, out: &mut Vec<Output>) {
        if self.ledger.is_due(now, &self.settings) {
            let ended = |unban| out.push(Output::Decision(Decision::Unban(unban)));
            self.ledger.expire(now, self.clock, &self.settings, ended);
        }
    }

    /// The oldest second of the window, wrapped.
    fn oldest(&self) -> u32 {
        let now = self.site.now().unwrap_or(0);
        (now + 1 - i64::from(self.settings.window_secs)) as u32
    }

    /// Moves log time forward.
    fn advance(&mut self, to: Timestamp, out: &mut Vec<Output>) {
        self.clock = to;
        let sec = to.as_secs();
        if self.site.now().is_none() {
            self.site.start(sec);
            self.population.advance(sec.div_euclid(60), false);
            self.recalculated = sec;
            self.warm_at.get_or_insert(sec.saturating_add(i64::from(self.settings.warmup_secs)));
            self.recalculate(out, sec);
            return;
        }
        while let Some(at) = self.site.now().filter(|at| *at < sec) {
            if self.site.requests() == 0 && sec - at > 1 {
                self.end_minutes(sec);
                self.site.skip_to(sec);
                break;
            }
            let closed = self.site.close_second(self.busiest, &self.settings);
            self.minute_held |= closed.held;
            if let Some(accepted) = closed.accepted {
                self.population.accept();
                let (before, after) = (accepted.before, accepted.after);
                out.push(Output::LevelAccepted(LevelAccepted { at: to, scope: Scope::Global, before, after }));
            }
            if !self.site.is_holding() {
                self.population.forget_held();
            }
            self.end_minutes(at + 1);
        }
        let oldest = self.oldest();
        self.busiest = self.top.refresh(oldest, &mut self.table);
        let (top, evidence) = (&mut self.top, &mut self.evidence);
        self.table.sweep(SWEEP_PER_SECOND, oldest, &mut |index, client| forget(top, evidence, index, client));
        if sec - self.recalculated >= i64::from(self.settings.recalc_secs) {
            self.recalculate(out, sec);
        }
    }

    fn end_minutes(&mut self, sec: i64) {
        let minute = sec.div_euclid(60);
        if minute > self.population.minute() {
            self.population.advance(minute, std::mem::take(&mut self.minute_held));
        }
    }

    fn recalculate(&mut self, out: &mut Vec<Output>, sec: i64) {
        self.recalculated = sec;
        self.site.recalculate(&self.settings);
        let error_rate = self.site.level().error_rate;
        self.level = self.population.level(&self.settings, error_rate);
        self.limits = Limits::new(&self.population, error_rate, &self.settings);
        out.push(Output::Baseline(BaselineUpdate { at: self.clock, global: *self.site.level(), ip: self.level }));
    }

    /// Log time was in the future: begins anew at `to` with empty windows and everything that was learned.
    fn step_back(&mut self, to: Timestamp) {
        let sec = to.as_secs();
        if let Some((warm_at, now)) = self.warm_at.zip(self.site.now()) {
            let left = warm_at.saturating_sub(now);
            self.warm_at = Some(if left > 0 { sec.saturating_add(left) } else { i64::MIN });
        }
        self.clock = to;
        self.site.restart(sec);
        self.population.restart(sec.div_euclid(60));
        let mut table = Table::new(self.settings.max_tracked_ips, self.paths.seed());
        table.inherit(&self.table);
        self.table = table;
        self.top = Top::default();
        self.evidence = Evidence::default();
        self.recalculated = sec;
        self.alerted = None;
    }

    /// Handles a record that happened at `time`.
    fn record(&mut self, record: &Record<'_>, time: Timestamp, now: Timestamp, out: &mut Vec<Output>) {
        self.records += 1;
        if time > self.clock {
            if time.as_secs() > self.clock.as_secs() {
                self.advance(time, out);
            } else {
                self.clock = time;
            }
        }
        self.expire(now, out);
        let sec = time.as_secs();
        let oldest = self.site.now().unwrap_or(sec) - i64::from(self.settings.window_secs) + 1;
        if sec < oldest {
            self.late += 1;
            self.late_run += 1;
            if self.late_run < LATE_RUN {
                return;
            }
            self.step_back(time);
        }
        self.late_run = 0;
        if let Some(prefix) = self.ledger.covering(record.client) {
            self.came_through(prefix, record, (time, now), out);
            return;
        }
        if !self.ledger.has_no_past() {
            let prefix = self.exempt.ban_prefix(record.client);
            if self.ledger.in_past(&prefix, self.clock) {
                self.blocked += 1;
                return;
            }
        }
        let kind = Kind::of(record);
        self.site.add(sec, kind.is_error());
        if !self.settings.spared.iter().any(|prefix| prefix.contains(&record.client)) {
            self.follow(record, kind, sec as u32, now, out);
        }
        self.alert(out);
    }

    fn came_through(
        &mut self,
        prefix: IpNet,
        record: &Record<'_>,
        (at, now): (Timestamp, Timestamp),
        out: &mut Vec<Output>,
    ) {
        self.blocked += 1;
        if self.settings.self_proof
            && let Some((banned_at, records)) = self.ledger.came_through(&prefix, at, now)
        {
            let (client, peer) = (record.client, record.peer);
            out.push(Output::NotEffective(NotEffective { prefix, client, peer, banned_at, at, records }));
        }
    }

    fn is_warm(&self) -> bool {
        match (self.warm_at, self.site.now()) {
            (Some(warm_at), Some(now)) => now >= warm_at,
            _ => false,
        }
    }

    /// Says so when the whole site is anomalous.
    fn alert(&mut self, out: &mut Vec<Output>) {
        if !self.site.is_anomalous(self.busiest) || !self.is_warm() {
            return;
        }
        let Some(now) = self.site.now() else { return };
        if self.alerted.is_some_and(|at| now - at < i64::from(self.settings.global_cooldown_secs)) {
            return;
        }
        self.alerted = Some(now);
        let baseline = *self.site.level();
        let requests = u64::from(self.site.requests());
        let rate = requests as f64 / f64::from(self.settings.window_secs);
        let z_score = (rate - baseline.mean) / baseline.stddev;
        out.push(Output::GlobalAnomaly(Finding {
            at: self.clock,
            rule: if z_score > self.settings.z_score { Rule::ZScore } else { Rule::RateMultiplier },
            error_surge: false,
            rate,
            baseline,
            z_score,
            signal: None,
            limit: self.site.limit(),
            requests,
            errors: u64::from(self.site.errors()),
            samples: Vec::new(),
        }));
    }

    /// Counts a record in its client's window, learns from it, and judges.
    fn follow(&mut self, record: &Record<'_>, kind: Kind, sec: u32, now: Timestamp, out: &mut Vec<Output>) {
        let oldest = self.oldest();
        let key = self.exempt.key(&record.client);
        let (top, evidence) = (&mut self.top, &mut self.evidence);
        let hint = self.ahead.hint(&key);
        let (index, new) = self.table.entry(key, hint, oldest, |index, client| forget(top, evidence, index, client));
        let path = if kind.is_named() { self.paths.hash(record.path) } else { 0 };
        let founding = !self.is_warm();
        let client = self.table.get_mut(index);
        if new {
            if self.exempt.covers(record.client) {
                client.flags |= table::Client::EXEMPT;
            } else if self.ledger.offences_of(&self.exempt.ban_prefix(record.client)) > 0 {
                client.flags |= table::Client::OFFENDER;
            }
        } else {
            if client.window.pages_tenths() >= known::HEAVY_PAGES
                && !client.is(table::Client::EXEMPT)
                && self.population.is_over(&client.seen)
            {
                self.known.note(key, self.population.minute(), client.window.pages_tenths(), founding);
                client.flags |= table::Client::KNOWN;
            }
            client.window.expire(oldest);
        }
        client.last = oldest.wrapping_add(self.settings.window_secs - 1);
        let posts = client.window.add(sec, kind, path);
        self.busiest = self.busiest.max(client.window.requests());
        if !client.is(table::Client::BROWSER) && kind.is_asset() && Limits::shows_browser(&client.window) {
            client.flags |= table::Client::BROWSER;
        }
        let exempt = client.is(table::Client::EXEMPT);
        if exempt {
            // What it does now is not noted: it counts again from the minute on after it is exempt no longer.
            self.population.leave_out(&mut client.seen);
        } else if !client.is(table::Client::OFFENDER) {
            let w = &client.window;
            let values =
                [w.requests(), (w.pages_tenths() + 5) / 10, (w.error_paths_tenths() + 5) / 10, posts, w.page_errors()];
            // Requests and pages, and what only errors and POSTs can add to.
            let risen = if kind.is_error() || kind.is_post() { MEASURES } else { 2 };
            self.population.note(&mut client.seen, key.spread(), values, risen);
        }
        let suspicious = !exempt && self.limits.is_suspicious(&client.window, posts);
        if suspicious {
            let now_sec = client.last;
            self.hurry = self.hurry || Limits::is_fast(&client.window, now_sec);
            let own = if client.is(table::Client::KNOWN) || client.window.pages_tenths() >= known::HEAVY_PAGES {
                self.known.limit(&key)
            } else {
                0
            };
            let verdict = if founding {
                self.limits.judge_hard(&client.window)
            } else {
                self.limits.judge(&client.window, kind, posts, now_sec, client.is(table::Client::BROWSER), own)
            };
            if let Some(verdict) = verdict
                && self.anomalous(index, verdict, record, now, out)
            {
                return;
            }
            let client = self.table.get_mut(index);
            if self.evidence.keep(index, record, self.clock) {
                client.flags |= table::Client::WATCHED;
            }
        }
        self.top.offer(index, &mut self.table);
    }

    /// Acts on a verdict; true when the client is banned and no longer followed.
    fn anomalous(
        &mut self,
        index: u32,
        verdict: Verdict,
        record: &Record<'_>,
        now: Timestamp,
        out: &mut Vec<Output>,
    ) -> bool {
        // Two addresses of an IPv6 prefix can differ in this: one may be allow-listed by hand.
        if self.exempt.covers(record.client) {
            return false;
        }
        let client = self.table.get_mut(index);
        self.population.leave_out(&mut client.seen);
        let prefix = self.exempt.ban_prefix(record.client);
        let hard = verdict.rule == Rule::HardLimit;
        if self.ledger.is_old_news(&prefix, self.clock) || (!hard && self.ledger.has_grace(&prefix, now)) {
            return false;
        }
        let bans_last_minute = self.ledger.bans_last_minute(self.clock);
        if !hard && verdict.excess < 3.0 && self.brake_holds(bans_last_minute) {
            let goes_on = self.braked.filter(|(_, last)| now.since(*last) <= ledger::BRAKE_SPAN);
            self.braked = Some((goes_on.map_or(now, |(since, _)| since), now));
            if !self.table.get(index).is(table::Client::BRAKED) {
                let finding = self.finding(index, verdict, record);
                self.table.get_mut(index).flags |= table::Client::BRAKED;
                out.push(Output::Braked(Braked { prefix, finding, bans_last_minute }));
            }
            return false;
        }
        let finding = self.finding(index, verdict, record);
        let key = self.table.get(index).key();
        self.known.forget(&key);
        forget(&mut self.top, &mut self.evidence, index, self.table.get(index));
        self.table.remove(index);
        let request = BanRequest {
            at: self.clock,
            origin: Origin::Detector,
            length: None,
            finding: Some(finding),
            note: String::new(),
        };
        let ban = self.ledger.ban(prefix, request, now, &self.settings);
        out.push(Output::Decision(Decision::Ban(Box::new(ban))));
        true
    }

    /// From `brake_per_minute` bans a minute on, or where it is more, a share of the active clients.
    fn brake_holds(&self, bans_last_minute: u32) -> bool {
        let s = &self.settings;
        s.brake_per_minute > 0
            && bans_last_minute >= s.brake_per_minute
            && f64::from(bans_last_minute) >= s.brake_share * self.table.len() as f64
    }

    fn finding(&mut self, index: u32, verdict: Verdict, record: &Record<'_>) -> Finding {
        let samples = self.evidence.take(index, record, self.clock);
        let window = &self.table.get(index).window;
        let span = f64::from(self.settings.window_secs);
        let rate = f64::from(window.requests()) / span;
        let baseline = self.level;
        Finding {
            at: self.clock,
            rule: verdict.rule,
            error_surge: Limits::is_error_surge(window, baseline.error_rate, &self.settings),
            rate,
            baseline,
            z_score: (rate - baseline.mean) / baseline.stddev,
            signal: verdict.signal.map(|s| (s, verdict.value)),
            limit: verdict.limit,
            requests: u64::from(window.requests()),
            errors: u64::from(window.errors()),
            samples,
        }
    }
}

/// A client goes: nobody else may keep its place.
fn forget(top: &mut Top, evidence: &mut Evidence, index: u32, client: &table::Client) {
    if client.is(table::Client::TOP) {
        top.forget(index);
    }
    if client.is(table::Client::WATCHED) {
        evidence.forget(index);
    }
}
