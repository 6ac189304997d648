//! How many requests clients of this site normally have in the window, for each minute in which they were active: the mean and
//! spread that people see beside a ban.
//!
//! Samples are the highest window that a client
//! reached in a clock minute, so like is compared with like. They go into three memories: the rolling history, this
//! hour of the day on past days, and a long memory that holds at least [`LONG_SAMPLES`] samples and otherwise fades by
//! half a day (a small site has 200 samples a day, which say nothing of its far tail).
//!
//! Not in here: what decides that a client is banned (see `ordinary` and `limits`), and the site as a whole (see `site`).

use super::codec::{Reader, Writer};
use super::contract::{BadState, Level, Scope, Source};
use super::histogram::{BINS, Histogram, bin};
use super::settings::Settings;

/// What is measured of a client: its requests. (Earlier versions stored four more behind it, which are passed over.)
pub const MEASURES: usize = 1;
const REQUESTS: usize = 0;
/// Number of measures in a stored state that does not say how many it has.
pub const MEASURES_AT_FIRST: usize = 5;
/// Minutes of an hour in which a client speaks for the far tails.
const HEARD_AN_HOUR: u8 = 3;
/// Counters of the clients that have been heard; clients that share one are heard less.
const HEARD: usize = 1 << 16;
/// The long memory does not fade below this.
const LONG_SAMPLES: f64 = 20_000.0;
/// What is left of an hour slot, or of the long memory, a day later.
const DAY_FADE: f64 = 0.5;

type Counts = [[u32; BINS]; MEASURES];
type Memory = [Histogram; MEASURES];

/// What is kept with each client: the bins it is counted in this minute.
#[derive(Clone, Copy, Debug, Default)]
pub struct Seen {
    minute: u16,
    bins: [u8; MEASURES],
    state: SeenState,
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
enum SeenState {
    #[default]
    Never,
    /// In all measures.
    Counted,
    /// Only its requests: it has said enough about the tails in this hour.
    Heard,
    /// Not at all.
    LeftOut,
}

impl Seen {
    /// How many measures it is counted in; requests are the first.
    const fn measures(&self) -> usize {
        match self.state {
            SeenState::Never | SeenState::LeftOut => 0,
            SeenState::Heard => 1,
            SeenState::Counted => MEASURES,
        }
    }

    /// Writes it down.
    pub fn save(&self, w: &mut Writer) {
        w.uint(self.minute.into());
        w.raw(&[self.state as u8]);
        w.raw(&self.bins);
    }

    /// Reads what [`Seen::save`] wrote while there were `stored` measures.
    ///
    /// # Errors
    /// [`BadState`] where it is something else.
    pub fn load(r: &mut Reader<'_>, stored: usize) -> Result<Self, BadState> {
        let minute = r.small()?;
        let state = match r.raw(1)?[0] {
            0 => SeenState::Never,
            1 => SeenState::Counted,
            2 => SeenState::Heard,
            3 => SeenState::LeftOut,
            _ => return Err(BadState),
        };
        let mut bins = [0; MEASURES];
        for (bin, stored) in bins.iter_mut().zip(r.raw(stored)?) {
            *bin = *stored;
        }
        if bins.iter().any(|b| usize::from(*b) >= BINS) {
            return Err(BadState);
        }
        Ok(Self { minute, bins, state })
    }
}

/// All memories.
#[derive(Clone, Debug)]
pub struct Population {
    minute: i64,
    now: Box<Counts>,
    /// The newest minutes, oldest first from `next` on.
    ring: Vec<Counts>,
    next: usize,
    rolling: Box<Memory>,
    long: Box<Memory>,
    /// This hour so far; it becomes part of its slot when it is over.
    hour: Box<Memory>,
    slots: Vec<Memory>,
    held: Box<Memory>,
    day: i64,
    /// How often clients were counted in this hour, by a hash of theirs.
    heard: Box<[u8; HEARD]>,
}

fn counts() -> Box<Counts> {
    Box::new([[0; BINS]; MEASURES])
}

impl Population {
    /// A population nobody has been seen of.
    pub fn new(settings: &Settings) -> Self {
        let minutes = (settings.history_secs as usize / 60).max(1);
        Self {
            minute: 0,
            now: counts(),
            ring: vec![[[0; BINS]; MEASURES]; minutes],
            next: 0,
            rolling: Box::default(),
            long: Box::default(),
            hour: Box::default(),
            slots: vec![Memory::default(); 24],
            held: Box::default(),
            day: 0,
            heard: Box::new([0; HEARD]),
        }
    }

    /// Counts a client's window in the present minute, as its highest so far. `hash` is the client's.
    ///
    /// A client speaks for the tails in [`HEARD_AN_HOUR`] minutes of an hour: otherwise one client that tries passwords
    /// all day would weigh as much as a crowd.
    pub fn note(&mut self, seen: &mut Seen, hash: u32, values: [u32; MEASURES]) {
        let minute = self.minute as u16;
        if seen.state == SeenState::Never || seen.minute != minute {
            let heard = &mut self.heard[hash as usize % HEARD];
            let state = if *heard < HEARD_AN_HOUR { SeenState::Counted } else { SeenState::Heard };
            *heard = heard.saturating_add(1);
            *seen = Seen { minute, bins: values.map(bin), state };
            for (counts, bin) in self.now.iter_mut().zip(seen.bins).take(seen.measures()) {
                counts[bin as usize] += 1;
            }
        } else {
            let measures = seen.measures();
            for ((counts, old), value) in self.now.iter_mut().zip(&mut seen.bins).zip(values).take(measures) {
                // Whether it has risen cannot be foretold, so it is moved in any case, perhaps to where it is.
                let new = bin(value).max(*old);
                counts[*old as usize] -= 1;
                counts[new as usize] += 1;
                *old = new;
            }
        }
    }

    /// Takes a client's window out of the present minute again: it is not to be learned from.
    pub fn leave_out(&mut self, seen: &mut Seen) {
        let minute = self.minute as u16;
        if seen.minute == minute {
            for (counts, bin) in self.now.iter_mut().zip(seen.bins).take(seen.measures()) {
                counts[bin as usize] -= 1;
            }
        }
        *seen = Seen { minute, state: SeenState::LeftOut, ..Seen::default() };
    }

    /// The present minute of the epoch.
    pub const fn minute(&self) -> i64 {
        self.minute
    }

    /// The next minute is the first one, whichever it is; everything learned stays.
    pub fn unstart(&mut self) {
        self.minute = 0;
    }

    /// Goes on in a minute that was saved.
    pub fn resume(&mut self, minute: i64) {
        self.minute = minute;
    }

    /// Log time begins anew at a minute that may lie before what was seen; everything learned stays.
    pub fn restart(&mut self, minute: i64) {
        add(&mut self.long, &self.now);
        add(&mut self.hour, &self.now);
        self.push();
        (self.minute, self.day) = (minute, minute.div_euclid(1440));
    }

    /// Takes another length of the rolling history.
    pub fn resize(&mut self, settings: &Settings) {
        let minutes = (settings.history_secs as usize / 60).max(1);
        if minutes == self.ring.len() {
            return;
        }
        let now = std::mem::replace(&mut self.now, counts());
        let mut old = std::mem::replace(&mut self.ring, vec![[[0; BINS]; MEASURES]; minutes]);
        old.rotate_left(std::mem::take(&mut self.next));
        *self.rolling = Memory::default();
        for counts in old {
            *self.now = counts;
            self.push();
        }
        self.now = now;
    }

    /// Begins the minute `minute` (of the epoch). With `hold`, what the minute before it has counted is kept apart
    /// until [`Population::accept`] or [`Population::forget_held`].
    pub fn advance(&mut self, minute: i64, hold: bool) {
        if minute <= self.minute {
            return;
        }
        let started = self.minute != 0;
        let over = std::mem::replace(&mut self.minute, minute);
        if !started {
            (self.day, self.minute) = (minute.div_euclid(1440), minute);
            return;
        }
        if hold {
            add(&mut self.held, &self.now);
            self.now = counts();
        } else {
            add(&mut self.long, &self.now);
            add(&mut self.hour, &self.now);
        }
        self.push();
        // Minutes without anybody push old ones out.
        for _ in 0..(minute - over - 1).min(self.ring.len() as i64) {
            self.push();
        }
        if over.div_euclid(60) != minute.div_euclid(60) {
            let slot = &mut self.slots[over.div_euclid(60).rem_euclid(24) as usize];
            for (slot, hour) in slot.iter_mut().zip(self.hour.iter()) {
                slot.fade(DAY_FADE);
                slot.merge(hour);
            }
            *self.hour = Memory::default();
            self.heard.fill(0);
        }
        let days = minute.div_euclid(1440) - self.day;
        if days > 0 {
            self.day += days;
            for memory in self.long.iter_mut().filter(|m| m.total() > LONG_SAMPLES) {
                let factor = DAY_FADE.powi(days.min(64) as i32).max(LONG_SAMPLES / memory.total());
                memory.fade(factor);
            }
        }
    }

    /// Moves the present minute's counts into the rolling history.
    fn push(&mut self) {
        let at = self.next;
        self.next = (at + 1) % self.ring.len();
        let slot = &mut self.ring[at];
        // Every client is in the requests: nobody there, nobody anywhere. Quiet logs have many such minutes.
        if slot[REQUESTS].iter().chain(&self.now[REQUESTS]).all(|c| *c == 0) {
            return;
        }
        for ((rolling, old), new) in self.rolling.iter_mut().zip(slot.iter()).zip(self.now.iter()) {
            if old.iter().any(|c| *c > 0) {
                rolling.subtract(old);
            }
            if new.iter().any(|c| *c > 0) {
                rolling.add(new);
            }
        }
        std::mem::swap(slot, &mut *self.now);
        for counts in self.now.iter_mut() {
            counts.fill(0);
        }
    }

    /// What was held back is normal from now on.
    pub fn accept(&mut self) {
        for (memory, held) in self.long.iter_mut().zip(self.held.iter()) {
            memory.merge(held);
        }
        *self.held = Memory::default();
    }

    /// What was held back is never learned.
    pub fn forget_held(&mut self) {
        if self.held[0].total() > 0.0 {
            *self.held = Memory::default();
        }
    }

    fn slot(&self) -> &Memory {
        &self.slots[self.minute.div_euclid(60).rem_euclid(24) as usize]
    }

    /// Mean and spread of a client's requests, in requests/s over the window: this hour's on past days where there are
    /// enough samples, else the rolling history's, else the long memory's.
    pub fn level(&self, settings: &Settings, error_rate: f64) -> Level {
        let m = REQUESTS;
        let enough = settings.min_hour_samples as f64;
        let (memory, source) = if self.slot()[m].total() >= enough {
            (&self.slot()[m], Source::Hour)
        } else if self.rolling[m].total() >= enough {
            (&self.rolling[m], Source::Rolling)
        } else if self.long[m].total() >= 1.0 {
            (&self.long[m], Source::Long)
        } else {
            (&self.long[m], Source::Floor)
        };
        let (mean, stddev) = memory.mean_and_stddev();
        let window = f64::from(settings.window_secs);
        Level {
            scope: Scope::Ip,
            mean: (mean / window).max(settings.min_mean_rps),
            stddev: (stddev / window).max(settings.min_stddev_rps),
            error_rate,
            samples: memory.total() as u64,
            source,
        }
    }

    /// Writes down what has been learned; the present minute is lost, unless it is saved with the clients.
    pub fn save(&self, w: &mut Writer) {
        w.uint(MEASURES as u64);
        w.int(self.minute);
        w.int(self.day);
        for memory in [&self.long, &self.hour, &self.held] {
            memory.iter().for_each(|h| h.save(w));
        }
        self.slots.iter().flatten().for_each(|h| h.save(w));
        w.uint(self.ring.len() as u64);
        for i in 0..self.ring.len() {
            save_counts(&self.ring[(self.next + i) % self.ring.len()], w);
        }
        save_counts(&self.now, w);
        w.uint(self.heard.iter().filter(|n| **n > 0).count() as u64);
        for (i, n) in self.heard.iter().enumerate().filter(|(_, n)| **n > 0) {
            w.uint(i as u64);
            w.raw(&[*n]);
        }
    }

    /// Reads what [`Population::save`] wrote.
    ///
    /// # Errors
    /// [`BadState`] where it is something else.
    pub fn load(r: &mut Reader<'_>, settings: &Settings) -> Result<Self, BadState> {
        let stored = r.count(1)?;
        Self::load_measures(r, stored, settings)
    }

    /// Reads a population of which `stored` measures were saved: further ones have seen nothing yet.
    ///
    /// # Errors
    /// [`BadState`] where it is something else.
    pub fn load_measures(r: &mut Reader<'_>, stored: usize, settings: &Settings) -> Result<Self, BadState> {
        let mut population = Self::new(settings);
        population.minute = r.int()?;
        population.day = r.int()?;
        let memories = [&mut *population.long, &mut population.hour, &mut population.held];
        for memory in memories.into_iter().chain(&mut population.slots) {
            for measure in 0..stored {
                let histogram = Histogram::load(r)?;
                if let Some(known) = memory.get_mut(measure) {
                    *known = histogram;
                }
            }
        }
        let minutes = r.count(stored)?;
        for _ in 0..minutes {
            population.now = load_counts(r, stored)?;
            population.push();
        }
        population.now = load_counts(r, stored)?;
        for _ in 0..r.count(2)? {
            let i: usize = r.small()?;
            *population.heard.get_mut(i).ok_or(BadState)? = r.raw(1)?[0];
        }
        Ok(population)
    }
}

fn add(memory: &mut Memory, counts: &Counts) {
    for (histogram, counts) in memory.iter_mut().zip(counts) {
        histogram.add(counts);
    }
}

fn save_counts(counts: &Counts, w: &mut Writer) {
    for counts in counts {
        w.uint(counts.iter().filter(|c| **c > 0).count() as u64);
        for (bin, count) in counts.iter().enumerate().filter(|(_, c)| **c > 0) {
            w.raw(&[bin as u8]);
            w.uint(u64::from(*count));
        }
    }
}

fn load_counts(r: &mut Reader<'_>, stored: usize) -> Result<Box<Counts>, BadState> {
    let mut all = counts();
    for measure in 0..stored {
        for _ in 0..r.count(2)? {
            let bin = usize::from(r.raw(1)?[0]);
            let count = r.small()?;
            if let Some(counts) = all.get_mut(measure) {
                *counts.get_mut(bin).ok_or(BadState)? = count;
            }
        }
    }
    Ok(all)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn filled(values: impl IntoIterator<Item = u32>) -> Population {
        let mut population = Population::new(&Settings::default());
        population.advance(1_000_000, false);
        for (client, value) in values.into_iter().enumerate() {
            population.note(&mut Seen::default(), client as u32, [value; MEASURES]);
        }
        population.advance(1_000_001, false);
        population
    }

    #[test]
    fn a_client_counts_once_a_minute_with_its_highest() {
        let mut population = Population::new(&Settings::default());
        population.advance(1_000_000, false);
        let mut seen = Seen::default();
        for value in [1, 5, 3] {
            population.note(&mut seen, 1, [value; MEASURES]);
        }
        population.advance(1_000_001, false);
        population.note(&mut seen, 1, [2; MEASURES]);
        population.advance(1_000_002, false);
        assert_eq!(population.long[0].total(), 2.0);
        assert_eq!(population.long[0].mean_and_stddev(), (3.5, 1.5));
    }

    #[test]
    fn flagged_clients_and_held_minutes_are_not_learned() {
        let mut population = filled([1; 10]);
        let mut seen = Seen::default();
        population.note(&mut seen, 1, [500; MEASURES]);
        population.leave_out(&mut seen);
        population.note(&mut seen, 1, [600; MEASURES]);
        population.advance(1_000_002, false);
        assert_eq!(population.long[0].total(), 10.0);
        population.note(&mut Seen::default(), 2, [700; MEASURES]);
        population.advance(1_000_003, true);
        assert_eq!(population.long[0].total(), 10.0);
        population.accept();
        assert_eq!(population.long[0].total(), 11.0);
    }

    #[test]
    fn the_rolling_history_forgets_and_the_long_memory_does_not() {
        let mut population = filled([7; 100]);
        assert_eq!(population.rolling[0].total(), 100.0);
        population.advance(1_000_031, false);
        assert_eq!(population.rolling[0].total(), 0.0);
        population.advance(1_000_001 + 3 * 1440, false);
        assert_eq!(population.long[0].total(), 100.0);
    }

    #[test]
    fn survives_the_store() {
        let population = filled((0..500).map(|i| i % 60));
        let mut w = Writer::new(1);
        population.save(&mut w);
        let bytes = w.finish();
        let mut r = Reader::new(&bytes, 1).expect("its version");
        let again = Population::load(&mut r, &Settings::default()).expect("its own bytes");
        assert_eq!(again.rolling, population.rolling);
        assert_eq!(again.long, population.long);
    }
}
