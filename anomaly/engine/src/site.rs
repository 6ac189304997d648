//! The site as a whole: its window, its baseline, and when it is anomalous.
//!
//! A 60 s rate is compared with the spread of 60 s rates, sampled once a second; the mean is that of the per-second
//! counts, idle seconds included. The rolling history stands beside one slot per hour of the day, which holds
//! that hour of past days and never the present one. Anomalous seconds are held back, until they have lasted as
//! long as the rolling history: then they are the new level.

use super::codec::{Reader, Writer};
use super::contract::{BadState, Level, Scope, Source};
use super::level::{load_level, save_level};
use super::settings::Settings;

/// What is left of an hour slot a day later.
const DAY_FADE: f64 = 0.5;
/// An anomalous level that pauses for this many seconds begins anew.
const PAUSE_SECS: u32 = 300;
/// Fewer requests in the window than this many times `min_requests` are no anomaly of a whole site.
const FLOOR_FACTOR: f64 = 2.0;

/// One second as it was.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
struct Second {
    requests: u32,
    errors: u32,
    /// Requests in the window that ended with it.
    window: u32,
}

/// Sums over seconds.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
struct Sums {
    seconds: f64,
    requests: f64,
    errors: f64,
    window: f64,
    window_squares: f64,
}

impl Sums {
    fn add(&mut self, second: Second, times: f64) {
        let window = f64::from(second.window);
        self.seconds += times;
        self.requests += times * f64::from(second.requests);
        self.errors += times * f64::from(second.errors);
        self.window += times * window;
        self.window_squares += times * window * window;
    }

    fn fade_into(self, slot: &mut Self) {
        slot.seconds = slot.seconds * DAY_FADE + self.seconds;
        slot.requests = slot.requests * DAY_FADE + self.requests;
        slot.errors = slot.errors * DAY_FADE + self.errors;
        slot.window = slot.window * DAY_FADE + self.window;
        slot.window_squares = slot.window_squares * DAY_FADE + self.window_squares;
    }

    /// Nothing in it: the floors.
    fn level(&self, source: Source, s: &Settings) -> Level {
        let n = self.seconds.max(1.0);
        let span = f64::from(s.window_secs);
        let mean = self.requests / n;
        let center = self.window / n;
        let variance = (self.window_squares / n - center * center).max(0.0);
        Level {
            scope: Scope::Global,
            mean: mean.max(s.min_mean_rps),
            stddev: (variance.sqrt() / span).max(s.min_stddev_rps),
            error_rate: (self.errors / self.requests.max(1.0)).max(s.min_error_rate),
            samples: self.seconds as u64,
            source: if self.seconds > 0.0 { source } else { Source::Floor },
        }
    }

    fn save(&self, w: &mut Writer) {
        for v in [self.seconds, self.requests, self.errors, self.window, self.window_squares] {
            w.float(v);
        }
    }

    fn load(r: &mut Reader<'_>) -> Result<Self, BadState> {
        Ok(Self {
            seconds: r.float()?,
            requests: r.float()?,
            errors: r.float()?,
            window: r.float()?,
            window_squares: r.float()?,
        })
    }
}

/// The newest seconds, oldest overwritten first, with their sums.
#[derive(Clone, Debug)]
struct History {
    ring: Vec<Second>,
    next: usize,
    filled: usize,
    sums: Sums,
}

impl History {
    fn new(seconds: u32) -> Self {
        Self { ring: vec![Second::default(); seconds.max(1) as usize], next: 0, filled: 0, sums: Sums::default() }
    }

    fn push(&mut self, second: Second) {
        // All figures are integers below 2^53, so adding and taking away leaves no rounding error.
        let old = std::mem::replace(&mut self.ring[self.next], second);
        if self.filled == self.ring.len() {
            self.sums.add(old, -1.0);
        } else {
            self.filled += 1;
        }
        self.sums.add(second, 1.0);
        self.next = (self.next + 1) % self.ring.len();
    }

    fn clear(&mut self) {
        *self = Self::new(self.ring.len() as u32);
    }

    fn iter(&self) -> impl Iterator<Item = Second> {
        let start = self.next + self.ring.len() - self.filled;
        (0..self.filled).map(move |i| self.ring[(start + i) % self.ring.len()])
    }

    fn save(&self, w: &mut Writer) {
        w.uint(self.filled as u64);
        for s in self.iter() {
            w.uint(s.requests.into());
            w.uint(s.errors.into());
            w.uint(s.window.into());
        }
    }

    fn load(&mut self, r: &mut Reader<'_>) -> Result<(), BadState> {
        for _ in 0..r.count(3)? {
            self.push(Second { requests: r.small()?, errors: r.small()?, window: r.small()? });
        }
        Ok(())
    }
}

/// A level that has lasted and is normal now.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Accepted {
    /// The level before.
    pub before: Level,
    /// The level from now on.
    pub after: Level,
}

/// What a second that is over has shown.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Closed {
    /// It was anomalous.
    pub held: bool,
    /// It ended the wait of a new level.
    pub accepted: Option<Accepted>,
}

/// The whole site.
#[derive(Clone, Debug)]
pub struct Site {
    /// The newest whole second of log time; `None` before the first record.
    now: Option<i64>,
    first: i64,
    /// The window, by second modulo its length: requests and errors.
    window: Vec<(u32, u32)>,
    requests: u32,
    errors: u32,
    rolling: History,
    held: History,
    calm_secs: u32,
    hour: Sums,
    slots: [Sums; 24],
    level: Level,
    limit: f64,
}

impl Site {
    /// A site that has seen nothing.
    pub fn new(settings: &Settings) -> Self {
        let mut site = Self {
            now: None,
            first: 0,
            window: vec![(0, 0); settings.window_secs as usize],
            requests: 0,
            errors: 0,
            rolling: History::new(settings.history_secs),
            held: History::new(settings.history_secs),
            calm_secs: 0,
            hour: Sums::default(),
            slots: [Sums::default(); 24],
            level: Sums::default().level(Source::Floor, settings),
            limit: f64::INFINITY,
        };
        site.recalculate(settings);
        site
    }

    /// The newest whole second.
    pub const fn now(&self) -> Option<i64> {
        self.now
    }

    /// Requests in the window.
    pub const fn requests(&self) -> u32 {
        self.requests
    }

    /// Errors in the window.
    pub const fn errors(&self) -> u32 {
        self.errors
    }

    /// Requests in the newest second that is over.
    pub fn last_second(&self) -> u32 {
        self.now.map_or(0, |now| self.window[self.index(now - 1)].0)
    }

    /// The effective baseline, as of the last recalculation.
    pub const fn level(&self) -> &Level {
        &self.level
    }

    /// Requests in the window above which the site is anomalous.
    pub const fn limit(&self) -> f64 {
        self.limit
    }

    /// Whether the window is above the limit, also without its busiest client, which made `busiest` requests: one
    /// person with a gallery is no anomaly of a whole site, and one flood is banned.
    pub fn is_anomalous(&self, busiest: u32) -> bool {
        f64::from(self.requests.saturating_sub(busiest)) > self.limit
    }

    /// Whether anomalous seconds are being held back.
    pub const fn is_holding(&self) -> bool {
        self.held.filled > 0
    }

    /// Whether a request is among what has been learned.
    pub fn has_learned(&self) -> bool {
        let sums = [&self.rolling.sums, &self.held.sums, &self.hour];
        sums.into_iter().chain(&self.slots).any(|sums| sums.requests > 0.0)
    }

    /// The limit in requests/s.
    pub fn limit_rps(&self, settings: &Settings) -> f64 {
        if self.limit.is_finite() { self.limit / f64::from(settings.window_secs) } else { 0.0 }
    }

    /// Log time begins anew, with an empty window; everything learned stays.
    pub fn restart(&mut self, sec: i64) {
        self.window.fill((0, 0));
        (self.requests, self.errors) = (0, 0);
        (self.now, self.first) = (Some(sec), sec);
    }

    /// Takes other lengths of window and rolling history.
    pub fn resize(&mut self, settings: &Settings) {
        let old = std::mem::replace(&mut self.window, vec![(0, 0); settings.window_secs as usize]);
        (self.requests, self.errors) = (0, 0);
        if let Some(now) = self.now {
            for back in 0..old.len().min(self.window.len()) as i64 {
                let (requests, errors) = old[(now - back).rem_euclid(old.len() as i64) as usize];
                let index = self.index(now - back);
                self.window[index] = (requests, errors);
                self.requests += requests;
                self.errors += errors;
            }
        }
        for history in [&mut self.rolling, &mut self.held] {
            let old = std::mem::replace(history, History::new(settings.history_secs));
            // A window of another length has other rates: only the seconds themselves can be kept.
            old.iter().for_each(|second| history.push(second));
        }
    }

    /// The level of an hour of the day on past days.
    pub fn slot(&self, hour: usize, settings: &Settings) -> Option<Level> {
        (self.slots[hour].seconds >= 1.0).then(|| self.slots[hour].level(Source::Hour, settings))
    }

    fn index(&self, sec: i64) -> usize {
        sec.rem_euclid(self.window.len() as i64) as usize
    }

    /// Begins log time.
    pub fn start(&mut self, sec: i64) {
        if self.now.is_none() {
            self.now = Some(sec);
            self.first = sec;
        }
    }

    /// Ends the newest second and begins the next one.
    pub fn close_second(&mut self, busiest: u32, settings: &Settings) -> Closed {
        let Some(now) = self.now else { return Closed::default() };
        let (requests, errors) = self.window[self.index(now)];
        let second = Second { requests, errors, window: self.requests };
        let mut closed = Closed::default();
        // A window that is not full yet is no sample.
        if now - self.first >= self.window.len() as i64 {
            closed = self.learn(second, busiest, settings);
        }
        let next = now + 1;
        let index = self.index(next);
        let (requests, errors) = std::mem::take(&mut self.window[index]);
        self.requests -= requests;
        self.errors -= errors;
        self.now = Some(next);
        if now.div_euclid(3600) != next.div_euclid(3600) {
            self.end_hour(now);
        }
        closed
    }

    fn end_hour(&mut self, now: i64) {
        let hour = std::mem::take(&mut self.hour);
        if hour.seconds > 0.0 {
            hour.fade_into(&mut self.slots[now.div_euclid(3600).rem_euclid(24) as usize]);
        }
    }

    fn learn(&mut self, second: Second, busiest: u32, settings: &Settings) -> Closed {
        if !self.is_anomalous(busiest) {
            self.rolling.push(second);
            self.hour.add(second, 1.0);
            if self.held.filled > 0 {
                self.calm_secs += 1;
                if self.calm_secs >= PAUSE_SECS {
                    self.held.clear();
                }
            }
            return Closed::default();
        }
        self.calm_secs = 0;
        self.held.push(second);
        if self.held.filled < self.held.ring.len() {
            return Closed { held: true, accepted: None };
        }
        let before = self.level;
        self.rolling = self.held.clone();
        self.held.clear();
        self.recalculate(settings);
        Closed { held: true, accepted: Some(Accepted { before, after: self.level }) }
    }

    /// Jumps over idle seconds whose windows are empty, up to `sec`: they count as zeros.
    pub fn skip_to(&mut self, sec: i64) {
        let Some(mut now) = self.now.filter(|now| *now < sec) else { return };
        debug_assert!(self.requests == 0, "only an empty window may be skipped");
        // Beyond the rolling history only the hours matter; beyond two months not even they.
        let from = sec - self.rolling.ring.len() as i64;
        for _ in now.max(from)..sec {
            self.rolling.push(Second::default());
        }
        self.held.clear();
        now = now.max(sec - 60 * 86_400);
        while now < sec {
            let end = ((now.div_euclid(3600) + 1) * 3600).min(sec);
            self.hour.add(Second::default(), (end - now) as f64);
            if end.rem_euclid(3600) == 0 {
                self.end_hour(now);
            }
            now = end;
        }
        self.now = Some(sec);
    }

    /// Counts a request in a second of the window.
    pub fn add(&mut self, sec: i64, error: bool) {
        let index = self.index(sec);
        let slot = &mut self.window[index];
        slot.0 += 1;
        self.requests += 1;
        if error {
            slot.1 += 1;
            self.errors += 1;
        }
    }

    /// Computes the effective baseline anew: this hour on past days where there are enough samples, else the rolling
    /// history; where that is the busier one, it is used all the same, so that the first busy Monday is no anomaly.
    pub fn recalculate(&mut self, settings: &Settings) {
        let rolling = self.rolling.sums.level(Source::Rolling, settings);
        let (mut level, mut limit) = (rolling, limit_of(&rolling, settings));
        let slot = &self.slots[self.now.unwrap_or(0).div_euclid(3600).rem_euclid(24) as usize];
        if slot.seconds >= settings.min_hour_samples as f64 {
            let hour = slot.level(Source::Hour, settings);
            let hour_limit = limit_of(&hour, settings);
            if hour_limit >= limit {
                (level, limit) = (hour, hour_limit);
            }
        }
        // Half a window of samples says nothing of a spread.
        if (level.samples) < u64::from(settings.window_secs) / 2 {
            limit = f64::INFINITY;
        }
        (self.level, self.limit) = (level, limit);
    }

    /// Writes the effective baseline down, as of the last recalculation.
    pub fn save_level(&self, w: &mut Writer) {
        save_level(&self.level, w);
        w.float(self.limit.min(f64::MAX));
    }

    /// Reads what [`Site::save_level`] wrote.
    ///
    /// # Errors
    /// [`BadState`] where it is something else.
    pub fn load_level(&mut self, r: &mut Reader<'_>) -> Result<(), BadState> {
        self.level = load_level(r)?;
        self.limit = r.float()?;
        Ok(())
    }

    /// Writes the rolling history down.
    pub fn save_rolling(&self, w: &mut Writer) {
        self.rolling.save(w);
    }

    /// Reads what [`Site::save_rolling`] wrote.
    ///
    /// # Errors
    /// [`BadState`] where it is something else.
    pub fn load_rolling(&mut self, r: &mut Reader<'_>) -> Result<(), BadState> {
        self.rolling.load(r)
    }

    /// Writes the level down that is held out of the baseline.
    pub fn save_held(&self, w: &mut Writer) {
        self.held.save(w);
        w.uint(self.calm_secs.into());
    }

    /// Reads what [`Site::save_held`] wrote.
    ///
    /// # Errors
    /// [`BadState`] where it is something else.
    pub fn load_held(&mut self, r: &mut Reader<'_>) -> Result<(), BadState> {
        self.held.load(r)?;
        self.calm_secs = r.small()?;
        Ok(())
    }

    /// Writes this hour so far and the slots of the 24 hours down.
    pub fn save_hours(&self, w: &mut Writer) {
        self.hour.save(w);
        self.slots.iter().for_each(|s| s.save(w));
    }

    /// Reads what [`Site::save_hours`] wrote.
    ///
    /// # Errors
    /// [`BadState`] where it is something else.
    pub fn load_hours(&mut self, r: &mut Reader<'_>) -> Result<(), BadState> {
        self.hour = Sums::load(r)?;
        for slot in &mut self.slots {
            *slot = Sums::load(r)?;
        }
        Ok(())
    }

    /// Writes the window down.
    pub fn save_window(&self, w: &mut Writer) {
        w.int(self.now.unwrap_or(i64::MIN));
        w.int(self.first);
        w.uint(self.window.len() as u64);
        let now = self.now.unwrap_or(0);
        for back in 0..self.window.len() as i64 {
            let (requests, errors) = self.window[self.index(now - back)];
            w.uint(requests.into());
            w.uint(errors.into());
        }
    }

    /// Reads what [`Site::save_window`] wrote; seconds that the present window does not reach are dropped.
    ///
    /// # Errors
    /// [`BadState`] where it is something else.
    pub fn load_window(&mut self, r: &mut Reader<'_>) -> Result<(), BadState> {
        let now = r.int()?;
        self.first = r.int()?;
        let len = r.count(2)?;
        self.now = (now != i64::MIN).then_some(now);
        for back in 0..len {
            let (requests, errors): (u32, u32) = (r.small()?, r.small()?);
            if self.now.is_some() && back < self.window.len() {
                let index = self.index(now - back as i64);
                self.window[index] = (requests, errors);
                self.requests = self.requests.checked_add(requests).ok_or(BadState)?;
                self.errors = self.errors.checked_add(errors).ok_or(BadState)?;
            }
        }
        Ok(())
    }
}

/// Requests in the window above which the site is anomalous: `z_score` spreads above the mean, but at least
/// `global_min_ratio` times the mean; or `rate_multiplier` times the mean, whichever is less.
fn limit_of(level: &Level, s: &Settings) -> f64 {
    let span = f64::from(s.window_secs);
    let z = (level.mean + s.z_score * level.stddev).max(level.mean * s.global_min_ratio);
    let multiple = level.mean * s.rate_multiplier.max(s.global_min_ratio);
    (z.min(multiple) * span).max(FLOOR_FACTOR * f64::from(s.min_requests))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn run(site: &mut Site, s: &Settings, seconds: u32, rate: u32) -> Vec<Closed> {
        let mut closed = Vec::new();
        for i in 0..seconds {
            for _ in 0..rate {
                site.add(site.now().expect("started"), false);
            }
            closed.push(site.close_second(0, s));
            if i % 60 == 59 {
                site.recalculate(s);
            }
        }
        closed
    }

    fn site(s: &Settings) -> Site {
        let mut site = Site::new(s);
        site.start(1_700_000_000);
        site
    }

    #[test]
    fn idle_seconds_count_as_zeros_however_they_pass() {
        let s = Settings::default();
        let mut slowly = site(&s);
        run(&mut slowly, &s, 300, 10);
        let mut fast = slowly.clone();
        run(&mut slowly, &s, 1000, 0);
        run(&mut fast, &s, 60, 0);
        fast.skip_to(1_700_000_000 + 1300);
        slowly.recalculate(&s);
        fast.recalculate(&s);
        assert_eq!(slowly.level(), fast.level());
        assert_eq!(slowly.now(), fast.now());
        assert_eq!(slowly.level().samples, 1240);
    }

    #[test]
    fn a_level_that_lasts_is_accepted_once() {
        let s = Settings::default();
        let mut site = site(&s);
        run(&mut site, &s, 1900, 20);
        let closed = run(&mut site, &s, 1900, 120);
        let accepted: Vec<_> = closed.iter().filter_map(|c| c.accepted).collect();
        assert_eq!(accepted.len(), 1);
        assert!(accepted[0].before.mean < 25.0 && accepted[0].after.mean > 100.0, "{accepted:?}");
        assert!(!site.is_anomalous(0));
    }

    #[test]
    fn hour_slots_hold_past_days_only() {
        let s = Settings::default();
        let mut site = site(&s);
        run(&mut site, &s, 1000, 20);
        assert_eq!(site.level().source, Source::Rolling);
        run(&mut site, &s, 86_400, 20);
        assert_eq!(site.level().source, Source::Hour);
        assert!((site.level().mean - 20.0).abs() < 1e-9);
    }

    #[test]
    fn nothing_learned_is_never_anomalous() {
        let s = Settings::default();
        let mut site = site(&s);
        run(&mut site, &s, 59, 1000);
        assert!(!site.is_anomalous(0));
        assert_eq!(site.level().source, Source::Floor);
    }
}
