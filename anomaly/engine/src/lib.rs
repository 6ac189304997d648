//! The pure core: records, ticks and commands go in, decisions and anomalies
//! come out.
//!
//! It does no I/O, reads no clock, logs nothing, cannot fail, and depends on
//! neither tokio nor serde. Everything is deterministic: the same inputs give
//! the same outputs.
//!
//! A record goes through `waiting` (is its stamp believed?), `ledger` (is its client banned?), `site` (the window of all),
//! `table` and `window` (its client's requests), `detector` (what it adds to the client's `evidence` and to what is known of
//! `routes` and of `ordinary` clients), `limits` (is that anomalous?), and back to the `ledger`, which decides how long.
//! `population` learns the mean and spread of the clients' request rates that people see beside that.

mod ahead;
mod codec;
mod command;
mod contract;
mod detector;
mod evidence;
mod extension;
mod follow;
mod histogram;
mod index;
mod key;
mod kind;
mod ledger;
mod level;
mod lexicon;
mod limits;
mod ordinary;
mod outcome;
mod path;
mod picture;
mod population;
pub mod record;
mod routes;
mod settings;
mod signals;
mod site;
mod slots;
mod state;
mod table;
pub mod time;
mod top;
mod waiting;
mod weights;
mod window;

use std::cell::Cell;

use ipnet::IpNet;

pub use contract::*;
pub use settings::{BanLength, Settings};

use ahead::Ahead;
use detector::Detector;
use follow::forget;
use key::Exempt;
use kind::Kind;
use ledger::Ledger;
use limits::Limits;
use population::Population;
use record::Record;
use site::Site;
use table::Table;
use time::Timestamp;
use top::{Suspects, Top};
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
    suspects: Suspects,
    site: Site,
    population: Population,
    detector: Detector,
    /// Of the hashes of paths.
    path_seed: u64,
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
        let mut detector = Detector::new(seed);
        let limits = Limits::new(&mut detector.ordinary, &settings);
        Self {
            exempt: Exempt::new(&settings.allowlist, &settings.never_ban, settings.ipv6_prefix),
            table: Table::new(settings.max_tracked_ips, seed),
            ahead: Ahead::default(),
            top: Top::default(),
            busiest: 0,
            hurry: false,
            suspects: Suspects::default(),
            detector,
            path_seed: seed,
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
        if self.ledger.is_due(now) {
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
        let (top, suspects) = (&mut self.top, &mut self.suspects);
        self.table.sweep(SWEEP_PER_SECOND, oldest, &mut |index, client| forget(top, suspects, index, client));
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
        self.limits = Limits::new(&mut self.detector.ordinary, &self.settings);
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
        let mut table = Table::new(self.settings.max_tracked_ips, self.path_seed);
        table.inherit(&self.table);
        self.table = table;
        self.top = Top::default();
        self.suspects = Suspects::default();
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
            limit_source: LimitSource::Learned,
            grade: Grade::Likely,
            requests,
            errors: u64::from(self.site.errors()),
            samples: Vec::new(),
        }));
    }
}
