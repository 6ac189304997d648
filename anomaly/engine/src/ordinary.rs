//! How active ordinary clients are: one sample per client and minute, the highest level of each signal, and the limits that
//! follow from them.
//!
//! The user's rule on a scale where the tail is tame: a level is anomalous from `z_score` deviations above the mean of the
//! logarithms on, or from `rate_multiplier` times the mean, whichever is lower; never below the floor of the signal. Levels are
//! the readings of leaky buckets, so a minute's highest is compared with minutes' highest.
//!
//! **Nobody buys a limit.** Only clients that have shown ordinary behaviour teach, and only minutes below the floor; a network
//! adds at most [`PER_NETWORK`] samples an hour; [`SOME_NETWORKS`] have to agree; a limit moves by half in a day at most; and it
//! stays below two or three floors unless [`MANY_NETWORKS`] say so over [`MANY_DAYS`]. With nothing learned the floors decide.

use super::codec::{Reader, Writer};
use super::contract::{BadState, Rule};
use super::signals::{POINT, SIGNALS};

/// Samples an hour that one /24 or /48 may add.
const PER_NETWORK: u8 = 30;
/// Places that networks are hashed to.
const NETWORKS: usize = 1024;
const WORDS: usize = NETWORKS / 64;
/// Samples from which on a limit is learned.
const ENOUGH: f64 = 200.0;
/// Networks without which nothing is learned.
const SOME_NETWORKS: u32 = 8;
/// Networks and days beyond which a limit may leave its cap.
const MANY_NETWORKS: u32 = 64;
const MANY_DAYS: u32 = 3;
/// No limit rises faster than this in a day, nor falls faster than that.
const RISE_PER_DAY: f64 = 1.5;
const FALL_PER_DAY: f64 = 0.9;
/// What is left of the samples a day later: half of them after a week.
const DAY_FADE: f64 = 0.9;
/// Days after which the networks are counted anew.
const NETWORK_DAYS: u32 = 7;
/// Spread of the logarithms that is assumed at least.
const MIN_SIGMA: f64 = 0.1;

/// Sums over the samples of a signal that are not zero.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
struct Moments {
    n: f64,
    sum: f64,
    log_sum: f64,
    log_square: f64,
}

impl Moments {
    const fn values(&mut self) -> [&mut f64; 4] {
        [&mut self.n, &mut self.sum, &mut self.log_sum, &mut self.log_square]
    }
}

/// A signal's limit, as thousandths of a point, and what it follows from.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Limit {
    /// At this level it is reached.
    pub value: i32,
    /// Which rule says so.
    pub rule: Rule,
}

/// What a limit is made of: the floor of its signal and the thresholds.
#[derive(Clone, Copy, Debug)]
pub struct Terms {
    /// Thousandths of a point.
    pub floor: i32,
    /// Tenths of the floor that few networks can raise it to.
    pub cap_tenths: i32,
    /// Deviations on log scale.
    pub z_score: f64,
    /// Multiple of the mean.
    pub multiplier: f64,
}

/// Everything learned of ordinary clients.
#[derive(Clone, Debug, PartialEq)]
pub struct Ordinary {
    moments: [Moments; SIGNALS],
    /// Samples of this hour by network.
    heard: Box<[u8; NETWORKS]>,
    hour: u32,
    day: u32,
    days: u32,
    /// Networks of this week, a bit each.
    seen: [u64; WORDS],
    /// Limits (thousandths of a point) at the end of the day before, and as of now; 0 where there were none.
    yesterday: [f64; SIGNALS],
    today: [f64; SIGNALS],
}

impl Default for Ordinary {
    fn default() -> Self {
        Self {
            moments: [Moments::default(); SIGNALS],
            heard: Box::new([0; NETWORKS]),
            hour: 0,
            day: 0,
            days: 0,
            seen: [0; WORDS],
            yesterday: [0.0; SIGNALS],
            today: [0.0; SIGNALS],
        }
    }
}

impl Ordinary {
    /// A minute (of the epoch) of an ordinary client: the highest level of each signal, in points.
    pub fn note(&mut self, minute: u32, network: u16, peaks: &[u16; SIGNALS]) {
        if minute / 60 != self.hour {
            self.hour = minute / 60;
            self.heard.fill(0);
        }
        if minute / 1440 != self.day {
            self.begin_day(minute / 1440);
        }
        let place = usize::from(network) % NETWORKS;
        let heard = &mut self.heard[place];
        if *heard >= PER_NETWORK {
            return;
        }
        *heard += 1;
        self.seen[place / 64] |= 1 << (place % 64);
        for (m, peak) in self.moments.iter_mut().zip(peaks).filter(|(_, peak)| **peak > 0) {
            let value = f64::from(*peak);
            m.n += 1.0;
            m.sum += value;
            m.log_sum += value.ln();
            m.log_square += value.ln() * value.ln();
        }
    }

    fn begin_day(&mut self, day: u32) {
        self.day = day;
        self.days = self.days.saturating_add(1);
        self.yesterday = self.today;
        if self.days.is_multiple_of(NETWORK_DAYS) {
            self.seen = [0; WORDS];
        }
        for value in self.moments.iter_mut().flat_map(Moments::values) {
            *value *= DAY_FADE;
        }
    }

    fn networks(&self) -> u32 {
        self.seen.iter().map(|w| w.count_ones()).sum()
    }

    /// The limit of the signal at a place. It is remembered, so that it moves slowly.
    pub fn limit(&mut self, place: usize, terms: &Terms) -> Limit {
        let floor = f64::from(terms.floor);
        let (learned, rule) = self.learned(place, terms).unwrap_or((floor, Rule::Floor));
        let before = if self.yesterday[place] > 0.0 { self.yesterday[place] } else { floor };
        let value = learned.clamp(before * FALL_PER_DAY, before * RISE_PER_DAY).max(floor);
        self.today[place] = value;
        Limit { value: value as i32, rule: if value > floor { rule } else { Rule::Floor } }
    }

    /// What the samples of the signal at a place say, and the lower rule; `None` while too few have been seen.
    fn learned(&self, place: usize, terms: &Terms) -> Option<(f64, Rule)> {
        let (m, networks) = (&self.moments[place], self.networks());
        if m.n < ENOUGH || networks < SOME_NETWORKS {
            return None;
        }
        let unit = f64::from(POINT);
        let mean_of_logs = m.log_sum / m.n;
        let sigma = (m.log_square / m.n - mean_of_logs * mean_of_logs).max(0.0).sqrt().max(MIN_SIGMA);
        let by_z = (mean_of_logs + terms.z_score * sigma).exp() * unit;
        let by_mean = terms.multiplier * m.sum / m.n * unit;
        let (value, rule) = if by_z <= by_mean { (by_z, Rule::ZScore) } else { (by_mean, Rule::RateMultiplier) };
        let many = networks >= MANY_NETWORKS && self.days >= MANY_DAYS;
        let cap = if many { f64::MAX } else { f64::from(terms.floor) * f64::from(terms.cap_tenths) / 10.0 };
        Some((value.min(cap), rule))
    }

    /// Writes it down.
    pub fn save(&self, w: &mut Writer) {
        w.uint(SIGNALS as u64);
        for place in 0..SIGNALS {
            let m = &self.moments[place];
            let limits = [self.yesterday[place], self.today[place]];
            [m.n, m.sum, m.log_sum, m.log_square].into_iter().chain(limits).for_each(|v| w.float(v));
        }
        [self.hour, self.day, self.days].into_iter().for_each(|v| w.uint(v.into()));
        self.seen.iter().for_each(|word| w.raw(&word.to_le_bytes()));
        w.raw(&*self.heard);
    }

    /// Reads what [`Ordinary::save`] wrote, also with fewer signals.
    ///
    /// # Errors
    /// [`BadState`] where it is something else.
    pub fn load(r: &mut Reader<'_>) -> Result<Self, BadState> {
        let mut all = Self::default();
        for place in 0..r.count(48)? {
            let mut values = [0.0; 6];
            for value in &mut values {
                *value = r.float()?;
            }
            if place < SIGNALS {
                let [n, sum, log_sum, log_square, yesterday, today] = values;
                all.moments[place] = Moments { n, sum, log_sum, log_square };
                (all.yesterday[place], all.today[place]) = (yesterday.max(0.0), today.max(0.0));
            }
        }
        (all.hour, all.day, all.days) = (r.small()?, r.small()?, r.small()?);
        for word in &mut all.seen {
            *word = u64::from_le_bytes(r.raw(8)?.try_into().map_err(|_| BadState)?);
        }
        all.heard.copy_from_slice(r.raw(NETWORKS)?);
        Ok(all)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const TERMS: Terms = Terms { floor: 80_000, cap_tenths: 30, z_score: 3.0, multiplier: 5.0 };

    fn filled(values: impl Fn(u32) -> u16, networks: u16) -> Ordinary {
        let mut all = Ordinary::default();
        for i in 0..2000u32 {
            all.note(1440 + i / 4, (i % u32::from(networks)) as u16 * 7 + 1, &[values(i); SIGNALS]);
        }
        all
    }

    #[test]
    fn each_rule_can_be_the_lower_one() {
        // Everybody alike: the deviations are reached before the multiple is.
        let limit = filled(|i| 60 + (i % 20) as u16, 40).limit(0, &TERMS);
        assert_eq!(limit.rule, Rule::ZScore, "{limit:?}");
        assert!((85_000..105_000).contains(&limit.value), "{limit:?}");
        // A heavy tail: the multiple comes first.
        let limit = filled(|i| [1, 2, 4, 8, 16, 32, 64, 70][i as usize % 8], 40).limit(0, &TERMS);
        assert_eq!(limit.rule, Rule::RateMultiplier, "{limit:?}");
        assert!(limit.value > 80_000);
        assert_eq!(filled(|_| 3, 40).limit(0, &TERMS), Limit { value: 80_000, rule: Rule::Floor });
    }

    #[test]
    fn few_networks_move_no_limit() {
        assert_eq!(filled(|_| 70, 7).limit(0, &TERMS).rule, Rule::Floor);
    }

    #[test]
    fn a_limit_moves_slowly_and_up_to_its_cap() {
        let terms = Terms { floor: 30_000, ..TERMS };
        let mut all = filled(|_| 79, 40);
        let mut limits = Vec::new();
        for day in 2..9u32 {
            limits.push(all.limit(0, &terms).value);
            (0..400u32).for_each(|i| all.note(day * 1440 + i, (i % 40) as u16 * 7 + 1, &[79; SIGNALS]));
        }
        assert_eq!(limits[..3], [45_000, 67_500, 90_000], "by half a day, and then the cap");
        assert!(limits.iter().all(|limit| *limit <= 90_000), "{limits:?}");
        // It falls by a tenth a day.
        for i in 0..4000u32 {
            all.note(9 * 1440 + i % 1440, (i % 1000) as u16, &[1; SIGNALS]);
        }
        assert!(all.limit(0, &terms).value >= 81_000);
    }

    #[test]
    fn survives_the_store() {
        let mut all = filled(|i| (i % 70) as u16, 40);
        all.limit(0, &TERMS);
        let mut w = Writer::new(1);
        all.save(&mut w);
        let bytes = w.finish();
        assert_eq!(Ordinary::load(&mut Reader::new(&bytes, 1).expect("its version")), Ok(all));
    }
}
