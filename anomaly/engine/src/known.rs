//! Heavy clients with a history of their own: a monitor, a mirror, an office behind one address.
//!
//! Only clients that make at least [`HEAVY_PAGES`] page requests a minute get one, so it is small. A history is mature
//! when it was made while the site was first learned, or after [`MATURE_MINUTES`] heavy minutes over
//! [`MATURE_SPAN`]; it moves slowly, so that a ramp does not lift its own limit, and raises it to [`RELIEF`] times the
//! usual minute at most.

use std::collections::BTreeMap;

use super::codec::{Reader, Writer};
use super::contract::BadState;
use super::key::Key;

/// Page requests a minute from which a client has a history, in tenths.
pub const HEAVY_PAGES: u32 = 600;
/// Heavy minutes that make a history.
const MATURE_MINUTES: u32 = 120;
/// Minutes from the first to the last of them.
const MATURE_SPAN: i64 = 12 * 60;
/// Limit of a known client as a multiple of its usual minute.
const RELIEF: f64 = 2.5;
/// Histories that are kept; the one unseen for longest goes.
const CAPACITY: usize = 4096;
/// Minutes after which an unseen history is forgotten.
const FORGET: i64 = 14 * 1440;

#[derive(Clone, Copy, Debug, PartialEq)]
struct History {
    first: i64,
    last: i64,
    minutes: u32,
    /// Usual page requests in a heavy minute, in tenths.
    usual: f64,
    founder: bool,
}

/// All histories.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Known {
    histories: BTreeMap<Key, History>,
}

impl Known {
    /// A client made this many weighted page requests (tenths) within a window in the minute. `founding` is true while
    /// the site is first learned.
    pub fn note(&mut self, key: Key, minute: i64, pages_tenths: u32, founding: bool) {
        let pages = f64::from(pages_tenths);
        if let Some(h) = self.histories.get_mut(&key) {
            h.minutes = h.minutes.saturating_add(1);
            h.last = h.last.max(minute);
            // Half of the way in the founding minutes, of which there are two; later slower than any ramp.
            let weight = if founding { 0.5 } else { 1.0 / f64::from(h.minutes.clamp(2, 1440)) };
            h.usual += (pages - h.usual) * weight;
            h.founder |= founding;
            return;
        }
        if self.histories.len() >= CAPACITY {
            self.make_room(minute);
        }
        let history = History { first: minute, last: minute, minutes: 1, usual: pages, founder: founding };
        self.histories.insert(key, history);
    }

    /// Once in a long while: a full table is walked, then has room for many.
    fn make_room(&mut self, minute: i64) {
        self.histories.retain(|_, h| minute - h.last < FORGET);
        if self.histories.len() < CAPACITY {
            return;
        }
        let mut last: Vec<(bool, i64)> = self.histories.values().map(|h| (h.is_mature(), h.last)).collect();
        last.sort_unstable();
        let cut = last[CAPACITY / 4];
        self.histories.retain(|_, h| (h.is_mature(), h.last) > cut);
    }

    /// The limit that a client's own history gives it, in tenths of page requests; 0 where it has none.
    pub fn limit(&self, key: &Key) -> u32 {
        match self.histories.get(key) {
            Some(h) if h.is_mature() => (h.usual * RELIEF) as u32,
            _ => 0,
        }
    }

    /// Forgets a client: it was banned.
    pub fn forget(&mut self, key: &Key) {
        self.histories.remove(key);
    }

    /// Writes it down.
    pub fn save(&self, w: &mut Writer) {
        w.uint(self.histories.len() as u64);
        for (key, h) in &self.histories {
            w.raw(&key.to_bytes());
            w.int(h.first);
            w.int(h.last);
            w.uint(h.minutes.into());
            w.float(h.usual);
            w.uint(h.founder.into());
        }
    }

    /// Reads what [`Known::save`] wrote.
    ///
    /// # Errors
    /// [`BadState`] where it is something else.
    pub fn load(r: &mut Reader<'_>) -> Result<Self, BadState> {
        let mut known = Self::default();
        for _ in 0..r.count(29)? {
            let key = Key::from_bytes(r.raw(17)?).ok_or(BadState)?;
            let history = History {
                first: r.int()?,
                last: r.int()?,
                minutes: r.small()?,
                usual: r.float()?,
                founder: r.uint()? != 0,
            };
            known.histories.insert(key, history);
        }
        Ok(known)
    }
}

impl History {
    const fn is_mature(&self) -> bool {
        self.founder || (self.minutes >= MATURE_MINUTES && self.last - self.first >= MATURE_SPAN)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::net::{IpAddr, Ipv4Addr};

    fn key(i: u32) -> Key {
        Key::host(&IpAddr::V4(Ipv4Addr::from(i)))
    }

    #[test]
    fn only_a_long_history_counts() {
        let mut known = Known::default();
        for minute in 0..119 {
            known.note(key(1), minute, 3000, false);
        }
        assert_eq!(known.limit(&key(1)), 0);
        for minute in 119..800 {
            known.note(key(1), minute, 3000, false);
        }
        assert_eq!(known.limit(&key(1)), 7500);
        assert_eq!(known.limit(&key(2)), 0);
    }

    #[test]
    fn who_was_there_from_the_start_is_known_at_once() {
        let mut known = Known::default();
        known.note(key(1), 0, 6000, true);
        assert_eq!(known.limit(&key(1)), 15_000);
        known.forget(&key(1));
        assert_eq!(known.limit(&key(1)), 0);
    }

    #[test]
    fn stays_small_and_keeps_the_mature() {
        let mut known = Known::default();
        known.note(key(0), 0, 6000, true);
        for i in 1..50_000 {
            known.note(key(i), i64::from(i) / 100, 700, false);
        }
        assert!(known.histories.len() <= CAPACITY);
        assert!(known.limit(&key(0)) > 0);
    }

    #[test]
    fn survives_the_store() {
        let mut known = Known::default();
        for i in 0..10 {
            known.note(key(i), 5, 700 + i, i == 3);
        }
        let mut w = Writer::new(1);
        known.save(&mut w);
        let bytes = w.finish();
        assert_eq!(Known::load(&mut Reader::new(&bytes, 1).expect("its version")), Ok(known));
    }
}
