//! The limits of a client's signals as of the last recalculation, and which of them a client has reached.
//!
//! A limit is what `ordinary` has learned, never below the signal's floor. Two rules stand beside them: the hard limit of
//! answers that were like others, which needs no learning, and hardly any success, which makes a scanner of whoever asks for
//! paths that are not there (a build tool that looks for two check sums of each file has two failures for each success).

use super::codec::{Reader, Writer};
use super::contract::{BadState, Grade, Rule, Signal};
use super::evidence::{Evidence, Likeness};
use super::ordinary::{Limit, Ordinary, Terms};
use super::settings::Settings;
use super::signals::{Bucket, POINT, SIGNALS, TABLE};
use super::window::Window;

/// A scanner has more than so many failures for each success.
const MORE_BAD: u32 = 3;
/// So many times the limit is anomalous also during the warm-up.
const WARMUP_EXCESS: f64 = 2.0;
/// The same answer this often is no coincidence.
const CERTAIN_SAME: u8 = 40;
/// `min_requests` that the floor in the table is for.
const USUAL_MIN_REQUESTS: i64 = 60;
/// Page requests (tenths) within a second that make a client a fast one.
const FAST_PAGES: u32 = 80;
/// Errors that mean something, for the words "error surge".
const SURGE_ERRORS: u32 = 10;

/// Floors and leaks in thousandths of a point (a second): the table's, scaled by `min_requests` where they are of load.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Floors {
    floors: [i32; SIGNALS],
    leaks: [i32; SIGNALS],
}

impl Floors {
    fn new(s: &Settings) -> Self {
        let scaled = |bucket: usize, value: i32| {
            if bucket != Bucket::Same.place() {
                return value;
            }
            let scaled = i64::from(value) * i64::from(s.min_requests) / USUAL_MIN_REQUESTS;
            i32::try_from(scaled).unwrap_or(i32::MAX).max(1)
        };
        Self {
            floors: std::array::from_fn(|place| scaled(place, TABLE[place].floor)),
            leaks: std::array::from_fn(|place| scaled(place, TABLE[place].leak)),
        }
    }

    /// What a second takes out of each level.
    pub const fn leaks(&self) -> &[i32; SIGNALS] {
        &self.leaks
    }

    /// Whether all levels, in points, are below their floors.
    pub fn are_above(&self, points: &[u16; SIGNALS]) -> bool {
        points.iter().zip(&self.floors).all(|(points, floor)| i32::from(*points).saturating_mul(POINT) < *floor)
    }
}

/// All limits.
#[derive(Clone, Debug, PartialEq)]
pub struct Limits {
    limits: [Limit; SIGNALS],
    floors: Floors,
    hard: u32,
    span: u32,
}

/// What was found of a client.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Verdict {
    /// The rule that fired.
    pub rule: Rule,
    /// What it fired for; `None` for the hard limit.
    pub signal: Option<Signal>,
    /// The signal's value, in points; for the hard limit, requests in the window.
    pub value: f64,
    /// The limit it has reached.
    pub limit: f64,
    /// How many times the limit it is.
    pub excess: f64,
    /// How sure that is.
    pub grade: Grade,
}

fn points(level: i32) -> f64 {
    f64::from(level) / f64::from(POINT)
}

impl Limits {
    /// The limits that follow from what has been learned.
    pub fn new(ordinary: &mut Ordinary, s: &Settings) -> Self {
        let floors = Floors::new(s);
        let limit = |place: usize| {
            let row = &TABLE[place];
            let (z_score, multiplier) = if row.tightened {
                (s.tightened_z_score, s.tightened_rate_multiplier)
            } else {
                (s.z_score, s.rate_multiplier)
            };
            let terms = Terms { floor: floors.floors[place], cap_tenths: row.cap_tenths, z_score, multiplier };
            ordinary.limit(place, &terms)
        };
        Self { limits: std::array::from_fn(limit), floors, hard: s.hard_limit, span: s.window_secs }
    }

    /// Floors and leaks.
    pub const fn floors(&self) -> &Floors {
        &self.floors
    }

    /// Rate over a whole window, in requests/s, above which a client that gets one answer again and again is banned.
    pub fn rate(&self) -> f64 {
        let same = Bucket::Same.place();
        points(self.limits[same].value) / f64::from(self.span.max(1)) + points(self.floors.leaks[same])
    }

    /// True where requests are worth keeping as evidence: a third of the way to a limit, which is less than half of the requests,
    /// because the same answer weighs more the more often it was given.
    pub fn is_suspicious(&self, evidence: &Evidence, requests: u32) -> bool {
        let third = |(level, limit): (&i32, &Limit)| level.saturating_mul(3) >= limit.value;
        requests > self.hard / 2 || evidence.levels().iter().zip(&self.limits).any(third)
    }

    /// Whether a client whose newest request is of the second `now` makes them so fast that milliseconds count.
    pub fn is_fast(window: &Window, now: u32) -> bool {
        window.pages_back(now).next().is_some_and(|(span, tenths)| span == 1 && tenths >= FAST_PAGES)
    }

    /// Judges a client after a request whose answer was alike to others as `likeness` says. `requests` are those in its window;
    /// `warm` says that the warm-up is over.
    pub fn judge(&self, evidence: &Evidence, requests: u32, likeness: Likeness, warm: bool) -> Option<Verdict> {
        let alike = requests.saturating_sub(evidence.novel());
        if alike > self.hard {
            let (value, limit) = (f64::from(alike), f64::from(self.hard));
            let excess = f64::INFINITY;
            return Some(Verdict { rule: Rule::HardLimit, signal: None, value, limit, excess, grade: Grade::Certain });
        }
        let (bad, good) = (u32::from(evidence.conduct.bad), u32::from(evidence.conduct.good));
        let mut worst: Option<(usize, f64)> = None;
        for (place, (level, limit)) in evidence.levels().iter().zip(&self.limits).enumerate() {
            if *level < limit.value || (place == Bucket::Scan.place() && bad <= MORE_BAD * good) {
                continue;
            }
            let excess = f64::from(*level) / f64::from(limit.value.max(1));
            if worst.is_none_or(|(_, before)| excess > before) {
                worst = Some((place, excess));
            }
        }
        let (place, excess) = worst.filter(|(_, excess)| warm || *excess >= WARMUP_EXCESS)?;
        let again = matches!(likeness, Likeness::Identical(n) if n >= CERTAIN_SAME);
        let certain = place == Bucket::Exploit.place() || (place == Bucket::Same.place() && again);
        Some(Verdict {
            rule: self.limits[place].rule,
            signal: Some(TABLE[place].signal),
            value: points(evidence.levels()[place]),
            limit: points(self.limits[place].value),
            excess,
            grade: if certain { Grade::Certain } else { Grade::Likely },
        })
    }

    /// Whether a window's errors are a surge: many times the site's usual share.
    pub fn is_error_surge(window: &Window, error_rate: f64, s: &Settings) -> bool {
        window.errors() >= SURGE_ERRORS
            && f64::from(window.errors()) >= s.error_surge_multiplier * error_rate * f64::from(window.requests())
    }

    /// Writes them down: they hold until the next recalculation, also over a restart.
    pub fn save(&self, w: &mut Writer) {
        w.uint(SIGNALS as u64);
        for limit in &self.limits {
            w.int(limit.value.into());
            w.uint(match limit.rule {
                Rule::ZScore => 1,
                Rule::RateMultiplier => 2,
                _ => 0,
            });
        }
    }

    /// Takes over what [`Limits::save`] wrote, also with fewer signals.
    ///
    /// # Errors
    /// [`BadState`] where it is something else.
    pub fn load(&mut self, r: &mut Reader<'_>) -> Result<(), BadState> {
        for place in 0..r.count(2)? {
            let value = i32::try_from(r.int()?).map_err(|_| BadState)?;
            let rule = match r.uint()? {
                0 => Rule::Floor,
                1 => Rule::ZScore,
                2 => Rule::RateMultiplier,
                _ => return Err(BadState),
            };
            if let Some(limit) = self.limits.get_mut(place) {
                *limit = Limit { value, rule };
            }
        }
        Ok(())
    }
}
