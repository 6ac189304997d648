//! What outlives a restart, as the engine's own bytes: what was learned, and the windows as of the last record.
//!
//! Not in here: samples kept as evidence (they are in the bans already), and a replay's records that wait for witnesses.

use super::codec::{Reader, SECTIONS, Writer};
use super::contract::{BadState, Grade, Level, Output, Source, State};
use super::detector::Detector;
use super::evidence::Evidence;
use super::key::Key;
use super::ledger::Proof;
use super::level::{load_level, save_level};
use super::limits::Limits;
use super::ordinary::Ordinary;
use super::population::{MEASURES, MEASURES_AT_FIRST, Population, Seen};
use super::site::Site;
use super::table::Client;
use super::window::Window;
use super::{Decision, Engine};
use crate::time::Timestamp;
use ipnet::IpNet;

/// What the version of a baseline was before it had sections: the same values without tags.
const FIRST_BASELINE: u8 = 1;
/// The same for windows.
const FIRST_WINDOWS: u8 = 2;
/// How the events of a window are written: those of another class cannot be judged, so that such windows begin empty.
const EVENT_LAYOUT: u64 = 1;

/// Sections of a baseline.
mod baseline {
    pub const ROLLING: u8 = 1;
    pub const HELD: u8 = 2;
    pub const HOURS: u8 = 3;
    pub const POPULATION: u8 = 4;
    // 5 were the histories of heavy clients of their own: nobody has a limit of his own any more.
    pub const ROUTES: u8 = 6;
    pub const ORDINARY: u8 = 7;
    /// Prefixes whose newest offence is only a likely one.
    pub const LIKELY: u8 = 8;
}

/// Sections of the windows.
mod windows {
    pub const CLOCK: u8 = 1;
    pub const SITE: u8 = 2;
    pub const LEVELS: u8 = 3;
    // 4 were the limits of version 0.1's signals.
    pub const GRACE: u8 = 5;
    pub const PAST: u8 = 6;
    pub const PROOFS: u8 = 7;
    pub const RECENT: u8 = 8;
    pub const CLIENTS: u8 = 9;
    pub const LIMITS: u8 = 10;
}

/// Flags of a client that mean something after a restart.
const KEPT_FLAGS: u8 = Client::EXEMPT | Client::BRAKED | Client::OFFENDER;

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

    /// Puts saved state back into a new engine. A stored baseline that has a request in it skips the warm-up.
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
        for ban in self.ledger.bans().iter() {
            let offence = state.offences.iter().find(|o| o.prefix == ban.prefix && o.last == ban.at);
            if offence.is_some() && ban.finding.as_ref().is_some_and(|f| f.grade == Grade::Likely) {
                self.ledger.set_likely(ban.prefix, &self.settings);
            }
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
        let mut w = Writer::new(SECTIONS);
        w.section(baseline::ROLLING, |w| self.site.save_rolling(w));
        w.section(baseline::HELD, |w| self.site.save_held(w));
        w.section(baseline::HOURS, |w| self.site.save_hours(w));
        w.section(baseline::POPULATION, |w| self.population.save(w));
        w.section(baseline::ROUTES, |w| self.detector.save_routes(w));
        w.section(baseline::ORDINARY, |w| self.detector.ordinary.save(w));
        w.section(baseline::LIKELY, |w| {
            let likely = self.ledger.likely();
            w.uint(likely.len() as u64);
            likely.iter().for_each(|prefix| w.raw(&prefix_bytes(prefix)));
        });
        w.finish_sections()
    }

    fn load_baseline(&mut self, bytes: &[u8]) -> Result<(), BadState> {
        let mut site = Site::new(&self.settings);
        let mut detector = Detector::new(self.path_seed);
        let mut likely = Vec::new();
        let population;
        if bytes.first() == Some(&FIRST_BASELINE) {
            let mut r = Reader::new(bytes, FIRST_BASELINE)?;
            site.load_rolling(&mut r)?;
            site.load_held(&mut r)?;
            site.load_hours(&mut r)?;
            population = Population::load_measures(&mut r, MEASURES_AT_FIRST, &self.settings)?;
        } else {
            let sections = Reader::new(bytes, SECTIONS)?.sections()?;
            sections.get(baseline::ROLLING).map_or(Ok(()), |mut r| site.load_rolling(&mut r))?;
            sections.get(baseline::HELD).map_or(Ok(()), |mut r| site.load_held(&mut r))?;
            sections.get(baseline::HOURS).map_or(Ok(()), |mut r| site.load_hours(&mut r))?;
            let stored = sections.get(baseline::POPULATION);
            population = stored.map_or_else(
                || Ok(Population::new(&self.settings)),
                |mut r| Population::load(&mut r, &self.settings),
            )?;
            if let Some(mut r) = sections.get(baseline::ROUTES) {
                detector.load_routes(&mut r)?;
            }
            if let Some(mut r) = sections.get(baseline::ORDINARY) {
                detector.ordinary = Ordinary::load(&mut r)?;
            }
            if let Some(mut r) = sections.get(baseline::LIKELY) {
                for _ in 0..r.count(17)? {
                    likely.push(load_prefix(&mut r)?);
                }
            }
        }
        self.path_seed = detector.seed();
        (self.site, self.population, self.detector) = (site, population, detector);
        likely.into_iter().for_each(|prefix| self.ledger.set_likely(prefix, &self.settings));
        self.site.recalculate(&self.settings);
        let error_rate = self.site.level().error_rate;
        self.level = self.population.level(&self.settings, error_rate);
        // Not those of the next recalculation: what is saved again is what was read.
        self.limits = Limits::new(&mut self.detector.ordinary.clone(), &self.settings);
        if self.level.source != Source::Floor || self.site.has_learned() {
            self.warm_at = Some(i64::MIN);
        }
        // Log time may begin before what was learned ended: other logs, another year.
        self.population.unstart();
        Ok(())
    }

    fn save_windows(&self) -> Vec<u8> {
        // As large as the last time, and a little: growing would take twice the room for a moment.
        let room = self.saved_bytes.get();
        let mut w = Writer::with_capacity(SECTIONS, room + room / 16);
        w.section(windows::CLOCK, |w| {
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
        });
        w.section(windows::SITE, |w| self.site.save_window(w));
        w.section(windows::LEVELS, |w| {
            self.site.save_level(w);
            save_level(&self.level, w);
        });
        w.section(windows::LIMITS, |w| self.limits.save(w));
        w.section(windows::GRACE, |w| save_times(self.ledger.grace(), w));
        w.section(windows::PAST, |w| save_times(self.ledger.past(), w));
        w.section(windows::PROOFS, |w| {
            let proofs = self.ledger.proofs(self.clock);
            w.uint(proofs.len() as u64);
            for proof in proofs {
                w.raw(&prefix_bytes(&proof.prefix));
                w.int(proof.since.as_ms());
                w.uint(proof.through);
                w.uint(proof.reported.into());
            }
        });
        w.section(windows::RECENT, |w| {
            w.uint(self.ledger.recent().len() as u64);
            self.ledger.recent().for_each(|at| w.int(at.as_ms()));
        });
        w.section(windows::CLIENTS, |w| {
            w.uint(EVENT_LAYOUT);
            w.uint(MEASURES as u64);
            w.uint(self.table.len() as u64);
            let mut scratch = Writer::default();
            for (_, client) in self.table.iter() {
                w.part(&mut scratch, |w| save_client(client, w));
            }
        });
        let bytes = w.finish_sections();
        self.saved_bytes.set(bytes.len());
        bytes
    }

    /// `has_learned` says whether the baseline that was saved with them has been loaded: clients are counted in it.
    fn load_windows(&mut self, bytes: &[u8], has_learned: bool) -> Result<(), BadState> {
        let windows = if bytes.first() == Some(&FIRST_WINDOWS) {
            self.read_first_windows(bytes)?
        } else {
            self.read_windows(bytes)?
        };
        // Everything could be read; from here on nothing fails.
        if let Some(clock) = windows.clock {
            let path_seed;
            [self.records, self.late, self.early, self.blocked, path_seed] = clock.counters;
            self.path_seed = path_seed;
            self.detector.reseed(path_seed);
            if self.records > 0 {
                (self.site, self.clock, self.recalculated) = (windows.site, clock.clock, clock.recalculated);
                [self.warm_at, self.alerted] = clock.moments;
                (self.minute_held, self.late_run, self.busiest) = (clock.minute_held, clock.late_run, clock.busiest);
                self.population.resume(clock.minute);
                self.level = windows.level.unwrap_or(self.level);
                self.limits = windows.limits;
            } else if self.warm_at.is_none() {
                // Versions that began without a record have learned from an empty log that nobody ever comes.
                self.site = Site::new(&self.settings);
                self.population = Population::new(&self.settings);
            }
        }
        windows.grace.into_iter().for_each(|(prefix, until)| self.ledger.set_grace(prefix, until));
        windows.past.into_iter().for_each(|(prefix, until)| self.ledger.set_past(prefix, until));
        windows.proofs.iter().for_each(|proof| self.ledger.set_proof(proof));
        self.ledger.set_recent(windows.recent);
        let oldest = self.oldest();
        for mut client in windows.clients {
            if !has_learned {
                client.seen = Seen::default();
            }
            // It was banned since: with that its evidence was gone.
            if self.ledger.is_old_news(&self.exempt.ban_prefix(client.key().prefix().addr()), self.clock) {
                client.evidence = None;
            }
            let (top, suspects) = (&mut self.top, &mut self.suspects);
            let (index, _) =
                self.table.entry(client.key(), None, oldest, |index, c| super::forget(top, suspects, index, c));
            *self.table.get_mut(index) = client;
            self.top.offer(index, &mut self.table);
        }
        Ok(())
    }

    fn read_windows(&self, bytes: &[u8]) -> Result<Windows, BadState> {
        let sections = Reader::new(bytes, SECTIONS)?.sections()?;
        let mut windows = Windows::empty(self.site.clone(), self.limits.clone());
        let Some(mut r) = sections.get(windows::CLOCK) else {
            // All the rest is relative to it.
            return Ok(windows);
        };
        windows.clock = Some(Clock::load(&mut r)?);
        sections.get(windows::SITE).map_or(Ok(()), |mut r| windows.site.load_window(&mut r))?;
        if let Some(mut r) = sections.get(windows::LEVELS) {
            windows.site.load_level(&mut r)?;
            windows.level = Some(load_level(&mut r)?);
        }
        sections.get(windows::LIMITS).map_or(Ok(()), |mut r| windows.limits.load(&mut r))?;
        let times = |tag| sections.get(tag).map_or_else(|| Ok(Vec::new()), |mut r| load_times(&mut r));
        (windows.grace, windows.past) = (times(windows::GRACE)?, times(windows::PAST)?);
        windows.proofs = sections.get(windows::PROOFS).map_or_else(|| Ok(Vec::new()), |mut r| load_proofs(&mut r))?;
        windows.recent = sections.get(windows::RECENT).map_or_else(|| Ok(Vec::new()), |mut r| load_recent(&mut r))?;
        if let Some(mut r) = sections.get(windows::CLIENTS) {
            if r.uint()? != EVENT_LAYOUT {
                return Ok(windows);
            }
            let measures = r.small()?;
            for _ in 0..r.count(21)? {
                let mut part = r.part()?;
                let mut client = load_client(&mut part, measures)?;
                client.evidence = load_evidence(&mut part)?;
                windows.clients.push(client);
            }
        }
        Ok(windows)
    }

    /// The same values as version 0.1 wrote them: in one row, without tags.
    fn read_first_windows(&self, bytes: &[u8]) -> Result<Windows, BadState> {
        let mut r = Reader::new(bytes, FIRST_WINDOWS)?;
        let r = &mut r;
        let mut windows = Windows::empty(self.site.clone(), self.limits.clone());
        windows.clock = Some(Clock::load(r)?);
        windows.site.load_window(r)?;
        windows.site.load_level(r)?;
        windows.level = Some(load_level(r)?);
        skip_first_limits(r)?;
        (windows.grace, windows.past) = (load_times(r)?, load_times(r)?);
        windows.proofs = load_proofs(r)?;
        windows.recent = load_recent(r)?;
        for _ in 0..r.count(21)? {
            windows.clients.push(load_client(r, MEASURES_AT_FIRST)?);
        }
        Ok(windows)
    }
}

/// What windows were saved with, read and not yet believed.
struct Windows {
    site: Site,
    clock: Option<Clock>,
    level: Option<Level>,
    limits: Limits,
    grace: Vec<(IpNet, Timestamp)>,
    past: Vec<(IpNet, Timestamp)>,
    proofs: Vec<Proof>,
    recent: Vec<Timestamp>,
    clients: Vec<Client>,
}

impl Windows {
    const fn empty(site: Site, limits: Limits) -> Self {
        Self {
            site,
            clock: None,
            level: None,
            limits,
            grace: Vec::new(),
            past: Vec::new(),
            proofs: Vec::new(),
            recent: Vec::new(),
            clients: Vec::new(),
        }
    }
}

/// Log time as it was saved, and the counters beside it.
struct Clock {
    clock: Timestamp,
    /// Records, late, early, blocked, and the seed of the paths' hash.
    counters: [u64; 5],
    recalculated: i64,
    /// The end of the warm-up, and the newest alert.
    moments: [Option<i64>; 2],
    minute_held: bool,
    late_run: u32,
    busiest: u32,
    minute: i64,
}

impl Clock {
    fn load(r: &mut Reader<'_>) -> Result<Self, BadState> {
        let clock = Timestamp::from_ms(r.int()?);
        let counters = [r.uint()?, r.uint()?, r.uint()?, r.uint()?, r.uint()?];
        let recalculated = r.int()?;
        let mut moments = [None; 2];
        for moment in &mut moments {
            let is_some = r.uint()? != 0;
            let value = r.int()?;
            *moment = is_some.then_some(value);
        }
        Ok(Self {
            clock,
            counters,
            recalculated,
            moments,
            minute_held: r.uint()? != 0,
            late_run: r.small()?,
            busiest: r.small()?,
            minute: r.int()?,
        })
    }
}

fn save_times<'a>(times: impl ExactSizeIterator<Item = (&'a IpNet, &'a Timestamp)>, w: &mut Writer) {
    w.uint(times.len() as u64);
    for (prefix, until) in times {
        w.raw(&prefix_bytes(prefix));
        w.int(until.as_ms());
    }
}

fn load_times(r: &mut Reader<'_>) -> Result<Vec<(IpNet, Timestamp)>, BadState> {
    (0..r.count(18)?).map(|_| Ok((load_prefix(r)?, Timestamp::from_ms(r.int()?)))).collect()
}

fn load_proofs(r: &mut Reader<'_>) -> Result<Vec<Proof>, BadState> {
    let proof = |r: &mut Reader<'_>| {
        let (prefix, since) = (load_prefix(r)?, Timestamp::from_ms(r.int()?));
        Ok(Proof { prefix, since, through: r.uint()?, reported: r.uint()? != 0 })
    };
    (0..r.count(20)?).map(|_| proof(r)).collect()
}

fn load_recent(r: &mut Reader<'_>) -> Result<Vec<Timestamp>, BadState> {
    (0..r.count(1)?).map(|_| Ok(Timestamp::from_ms(r.int()?))).collect()
}

/// Passes over the limits of version 0.1: seven values and four rules.
fn skip_first_limits(r: &mut Reader<'_>) -> Result<(), BadState> {
    (0..11).try_for_each(|_| r.uint().map(|_| ()))
}

fn save_client(client: &Client, w: &mut Writer) {
    w.raw(&client.key().to_bytes());
    w.uint(u64::from(client.flags & KEPT_FLAGS));
    client.seen.save(w);
    w.uint(u64::from(client.last));
    let events = client.window.events();
    w.uint(events.len() as u64);
    for (sec, bits) in events {
        // Distance to the newest second: one byte instead of five.
        w.uint(u64::from(client.last.wrapping_sub(sec)));
        w.uint(u64::from(bits));
    }
    w.uint(client.evidence.is_some().into());
    if let Some(evidence) = &client.evidence {
        evidence.save(w);
    }
}

fn load_client(r: &mut Reader<'_>, measures: usize) -> Result<Client, BadState> {
    let key = Key::from_bytes(r.raw(17)?).ok_or(BadState)?;
    let flags = r.small::<u8>()? & KEPT_FLAGS;
    let seen = Seen::load(r, measures)?;
    let last: u32 = r.small()?;
    let mut events = Vec::new();
    for _ in 0..r.count(2)? {
        let back: u32 = r.small()?;
        events.push((last.wrapping_sub(back), r.small()?));
    }
    let window = Window::from_events(&events).ok_or(BadState)?;
    let mut client = Client::new(&key, last);
    (client.seen, client.flags, client.window) = (seen, flags, window);
    Ok(client)
}

/// The evidence behind a client, which versions before this one did not write.
fn load_evidence(r: &mut Reader<'_>) -> Result<Option<Box<Evidence>>, BadState> {
    let is_some = !r.is_empty() && r.uint()? != 0;
    Ok(if is_some { Some(Box::new(Evidence::load(r)?)) } else { None })
}

fn load_prefix(r: &mut Reader<'_>) -> Result<IpNet, BadState> {
    Key::from_bytes(r.raw(17)?).and_then(|key| key.to_prefix()).ok_or(BadState)
}

fn prefix_bytes(prefix: &IpNet) -> [u8; 17] {
    Key::of_prefix(prefix).to_bytes()
}
