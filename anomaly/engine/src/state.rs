//! What outlives a restart, as the engine's own bytes: what was learned, and the windows as of the last record.
//!
//! Not in here: samples kept as evidence (they are in the bans already), and a replay's records that wait for witnesses.

use super::codec::{Reader, Writer};
use super::contract::{BadState, Level, Output, Scope, Source, State};
use super::detector::Limits;
use super::key::Key;
use super::known::Known;
use super::ledger::Proof;
use super::population::{Population, Seen};
use super::table::Client;
use super::window::Window;
use super::{Decision, Engine};
use crate::time::Timestamp;
use foldhash::fast::FixedState;
use ipnet::IpNet;

const BASELINE_VERSION: u8 = 1;
const WINDOWS_VERSION: u8 = 2;
/// Flags of a client that mean something after a restart.
const KEPT_FLAGS: u8 = Client::EXEMPT | Client::KNOWN | Client::BRAKED | Client::OFFENDER | Client::BROWSER;

impl Engine {
    /// All state that must outlive a restart.
    pub fn save(&self) -> State {
        State {
            bans: self.ledger.bans().iter().map(|ban| (**ban).clone()).collect(),
            offences: self.ledger.offences(),
            baseline: self.save_baseline(),
            windows: self.save_windows(),
        }
    }

    /// Puts saved state back into a new engine. A stored baseline that holds anything skips the warm-up.
    ///
    /// # Errors
    /// [`BadState`] where the baseline's or the windows' bytes cannot be read; bans and
    /// offences are restored all the same.
    pub fn restore(&mut self, state: State) -> Result<(), BadState> {
        for offence in &state.offences {
            self.ledger.remember(offence.clone(), &self.settings);
        }
        let mut at = Timestamp::MIN;
        for ban in state.bans {
            let since = ban.at;
            at = at.max(since);
            self.ledger.hold(ban, since);
        }
        let exempt = &self.exempt;
        let unbans = self.ledger.lift_where(at, &self.settings, |p| exempt.overlap(p).is_some());
        self.owed.extend(unbans.into_iter().map(|u| Output::Decision(Decision::Unban(u))));
        let baseline = if state.baseline.is_empty() { Ok(()) } else { self.load_baseline(&state.baseline) };
        let has_learned = baseline.is_ok() && !state.baseline.is_empty();
        let windows = if state.windows.is_empty() { Ok(()) } else { self.load_windows(&state.windows, has_learned) };
        baseline.and(windows)
    }

    /// The restored bans are in force again since `moment`: what came through them before that proves nothing.
    pub fn enforced_from(&mut self, moment: Timestamp) {
        self.ledger.enforced_from(moment);
    }

    fn save_baseline(&self) -> Vec<u8> {
        let mut w = Writer::new(BASELINE_VERSION);
        self.site.save_baseline(&mut w);
        self.population.save(&mut w);
        self.known.save(&mut w);
        w.finish()
    }

    fn load_baseline(&mut self, bytes: &[u8]) -> Result<(), BadState> {
        let mut r = Reader::new(bytes, BASELINE_VERSION)?;
        let mut site = super::Site::new(&self.settings);
        site.load_baseline(&mut r)?;
        let population = Population::load(&mut r, &self.settings)?;
        let known = Known::load(&mut r)?;
        r.end()?;
        (self.site, self.population, self.known) = (site, population, known);
        self.site.recalculate(&self.settings);
        let error_rate = self.site.level().error_rate;
        self.level = self.population.level(&self.settings, error_rate);
        self.limits = Limits::new(&self.population, error_rate, &self.settings);
        if self.level.source != Source::Floor || self.site.level().source != Source::Floor {
            self.warm_at = Some(i64::MIN);
        }
        // Log time may begin before what was learned ended: other logs, another year.
        self.population.unstart();
        Ok(())
    }

    fn save_windows(&self) -> Vec<u8> {
        // As large as the last time, and a little: growing would take twice the room for a moment.
        let room = self.saved_bytes.get();
        let mut w = Writer::with_capacity(WINDOWS_VERSION, room + room / 16);
        w.int(self.clock.as_ms());
        for number in [self.records, self.late, self.early, self.blocked, self.path_seed] {
            w.uint(number);
        }
        w.int(self.recalculated);
        for moment in [self.warm_at, self.alerted] {
            w.uint(moment.is_some().into());
            w.int(moment.unwrap_or(0));
        }
        w.uint(self.minute_held.into());
        w.uint(self.late_run.into());
        w.uint(self.busiest.into());
        w.int(self.population.minute());
        self.site.save_window(&mut w);
        self.site.save_level(&mut w);
        save_level(&self.level, &mut w);
        self.limits.save(&mut w);
        for times in [self.ledger.grace().collect::<Vec<_>>(), self.ledger.past().collect()] {
            w.uint(times.len() as u64);
            for (prefix, until) in times {
                w.raw(&prefix_bytes(prefix));
                w.int(until.as_ms());
            }
        }
        let proofs = self.ledger.proofs(self.clock);
        w.uint(proofs.len() as u64);
        for proof in proofs {
            w.raw(&prefix_bytes(&proof.prefix));
            w.int(proof.since.as_ms());
            w.uint(proof.through);
            w.uint(proof.reported.into());
        }
        w.uint(self.ledger.recent().len() as u64);
        self.ledger.recent().for_each(|at| w.int(at.as_ms()));
        w.uint(self.table.len() as u64);
        for (_, client) in self.table.iter() {
            w.raw(&client.key().to_bytes());
            w.uint(u64::from(client.flags & KEPT_FLAGS));
            client.seen.save(&mut w);
            w.uint(u64::from(client.last));
            let events = client.window.events();
            w.uint(events.len() as u64);
            for (sec, bits) in events {
                // Distance to the newest second: one byte instead of five.
                w.uint(u64::from(client.last.wrapping_sub(sec)));
                w.uint(u64::from(bits));
            }
        }
        let bytes = w.finish();
        self.saved_bytes.set(bytes.len());
        bytes
    }

    /// `has_learned` says whether the baseline that was saved with them has been loaded: clients are counted in it.
    fn load_windows(&mut self, bytes: &[u8], has_learned: bool) -> Result<(), BadState> {
        let mut r = Reader::new(bytes, WINDOWS_VERSION)?;
        let r = &mut r;
        let clock = Timestamp::from_ms(r.int()?);
        let counters: [u64; 5] = [r.uint()?, r.uint()?, r.uint()?, r.uint()?, r.uint()?];
        let recalculated = r.int()?;
        let mut moments = [None; 2];
        for moment in &mut moments {
            let is_some = r.uint()? != 0;
            let value = r.int()?;
            *moment = is_some.then_some(value);
        }
        let minute_held = r.uint()? != 0;
        let late_run = r.small()?;
        let busiest = r.small()?;
        let minute = r.int()?;
        let mut site = self.site.clone();
        site.load_window(r)?;
        site.load_level(r)?;
        let level = load_level(r)?;
        let limits = Limits::load(r)?;
        let mut times: [Vec<(IpNet, Timestamp)>; 2] = Default::default();
        for list in &mut times {
            for _ in 0..r.count(18)? {
                let prefix = Key::from_bytes(r.raw(17)?).and_then(|k| k.to_prefix()).ok_or(BadState)?;
                list.push((prefix, Timestamp::from_ms(r.int()?)));
            }
        }
        let mut proofs = Vec::new();
        for _ in 0..r.count(20)? {
            let prefix = Key::from_bytes(r.raw(17)?).and_then(|k| k.to_prefix()).ok_or(BadState)?;
            let since = Timestamp::from_ms(r.int()?);
            proofs.push(Proof { prefix, since, through: r.uint()?, reported: r.uint()? != 0 });
        }
        let mut recent = Vec::new();
        for _ in 0..r.count(1)? {
            recent.push(Timestamp::from_ms(r.int()?));
        }
        let mut clients = Vec::new();
        for _ in 0..r.count(21)? {
            let key = Key::from_bytes(r.raw(17)?).ok_or(BadState)?;
            let flags = r.small::<u8>()? & KEPT_FLAGS;
            let seen = Seen::load(r)?;
            let last: u32 = r.small()?;
            let mut events = Vec::new();
            for _ in 0..r.count(2)? {
                let back: u32 = r.small()?;
                events.push((last.wrapping_sub(back), r.small()?));
            }
            let window = Window::from_events(&events).ok_or(BadState)?;
            let mut client = Client::new(&key, last);
            client.seen = if has_learned { seen } else { Seen::default() };
            (client.flags, client.window) = (flags, window);
            clients.push(client);
        }
        // Everything could be read; from here on nothing fails.
        self.site = site;
        self.clock = clock;
        [self.records, self.late, self.early, self.blocked, self.path_seed] = counters;
        self.paths = FixedState::with_seed(self.path_seed);
        self.recalculated = recalculated;
        [self.warm_at, self.alerted] = moments;
        (self.minute_held, self.late_run, self.busiest) = (minute_held, late_run, busiest);
        self.population.resume(minute);
        (self.level, self.limits) = (level, limits);
        let [grace, past] = times;
        grace.into_iter().for_each(|(prefix, until)| self.ledger.set_grace(prefix, until));
        past.into_iter().for_each(|(prefix, until)| self.ledger.set_past(prefix, until));
        proofs.iter().for_each(|proof| self.ledger.set_proof(proof));
        self.ledger.set_recent(recent);
        let oldest = self.oldest();
        for client in clients {
            let (top, evidence) = (&mut self.top, &mut self.evidence);
            let (index, _) =
                self.table.entry(client.key(), None, oldest, |index, c| super::forget(top, evidence, index, c));
            *self.table.get_mut(index) = client;
            self.top.offer(index, &mut self.table);
        }
        Ok(())
    }
}

fn prefix_bytes(prefix: &IpNet) -> [u8; 17] {
    Key::of_prefix(prefix).to_bytes()
}

pub(super) fn save_level(level: &Level, w: &mut Writer) {
    w.uint(u64::from(level.scope == Scope::Global));
    for v in [level.mean, level.stddev, level.error_rate] {
        w.float(v);
    }
    w.uint(level.samples);
    w.uint(match level.source {
        Source::Floor => 0,
        Source::Rolling => 1,
        Source::Hour => 2,
        Source::Long => 3,
        Source::Own => 4,
    });
}

pub(super) fn load_level(r: &mut Reader<'_>) -> Result<Level, BadState> {
    Ok(Level {
        scope: if r.uint()? == 0 { Scope::Ip } else { Scope::Global },
        mean: r.float()?,
        stddev: r.float()?,
        error_rate: r.float()?,
        samples: r.uint()?,
        source: match r.uint()? {
            0 => Source::Floor,
            1 => Source::Rolling,
            2 => Source::Hour,
            3 => Source::Long,
            4 => Source::Own,
            _ => return Err(BadState),
        },
    })
}
