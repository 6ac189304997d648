//! What the site's routes are used for, and by clients of which networks: learned, bounded, and believed only when several
//! networks or days agree.
//!
//! A route is the directory of a path with the segments that vary replaced (see `path`); a path that has a name of its own is
//! remembered by itself as well. Belief removes suspicion and never adds any: a believed path may be missing, a believed route
//! may answer 5xx. It is only for what clients that had shown ordinary behaviour were answered well; whether one has is the
//! caller's word. The table is set-associative: of four places the one used longest ago gives way, so that a stream of invented
//! routes displaces only what nobody uses, and a step costs the same whatever the table holds.

use super::codec::{Reader, Writer};
use super::contract::BadState;

/// Sets of [`WAYS`] places of 36 bytes: 2.4 MB.
const SETS: usize = 16_384;
const WAYS: usize = 4;
/// Networks (/24, /48) that have to use a route before it is believed ...
const BELIEVED_NETWORKS: usize = 3;
/// ... or two networks with so many days between the first and the last use: a private site has few networks.
const BELIEVED_DAYS: u16 = 2;
/// Ordinary clients of so many other networks that suffer the same now: it is the site, not the client.
const SHARED_NETWORKS: usize = 2;
/// Minutes that suffering is remembered.
const SUFFERING_MINUTES: u32 = 2;
/// A believed route is as good as one used so many minutes later.
const BELIEVED_KEEPS: u32 = 1440;

/// Three networks, each as 16 bits of a hash that is never 0.
type Networks = [u16; 3];

fn note(networks: &mut Networks, network: u16) {
    if !networks.contains(&network)
        && let Some(free) = networks.iter_mut().find(|n| **n == 0)
    {
        *free = network;
    }
}

/// One route.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Route {
    /// 0 where the place is free.
    key: u32,
    /// Minute of the last use.
    used: u32,
    /// Networks whose ordinary clients were answered well.
    networks: Networks,
    first_day: u16,
    last_day: u16,
    /// Networks whose ordinary clients fail here: in the minute `suffering`, and shortly before.
    failing: Networks,
    suffering: u32,
}

impl Route {
    /// Whether the site is known to have it. Nobody makes it so alone, nor from one network.
    pub fn is_believed(&self) -> bool {
        let n = self.networks.iter().filter(|n| **n != 0).count();
        n >= BELIEVED_NETWORKS || (n >= 2 && self.last_day.saturating_sub(self.first_day) >= BELIEVED_DAYS)
    }

    /// An ordinary client was answered well, on this day of the epoch.
    pub fn succeed(&mut self, network: u16, day: u16) {
        if self.first_day == 0 {
            self.first_day = day;
        }
        self.last_day = self.last_day.max(day);
        note(&mut self.networks, network);
    }

    /// A client that was ordinary before has failed.
    pub fn suffer(&mut self, minute: u32, network: u16) {
        if self.suffering == 0 || minute > self.suffering + SUFFERING_MINUTES {
            self.failing = [0; 3];
        }
        self.suffering = minute;
        note(&mut self.failing, network);
    }

    /// Whether ordinary clients of other networks fail here right now: an outage, an ended session, a limiter.
    pub fn is_suffering(&self, minute: u32, network: u16) -> bool {
        let others = || self.failing.iter().filter(|n| **n != 0 && **n != network).count();
        minute <= self.suffering + SUFFERING_MINUTES && others() >= SHARED_NETWORKS
    }

    fn age_key(&self) -> u32 {
        self.used.saturating_add(if self.is_believed() { BELIEVED_KEEPS } else { 0 })
    }
}

/// All routes.
#[derive(Clone, Debug)]
pub struct Routes {
    places: Vec<[Route; WAYS]>,
}

impl Default for Routes {
    fn default() -> Self {
        Self { places: vec![[Route::default(); WAYS]; SETS] }
    }
}

/// Keys are never 0: that is a free place.
const fn key_of(hash: u32) -> u32 {
    hash | 1
}

const fn set_of(key: u32) -> usize {
    (key >> 8) as usize % SETS
}

impl Routes {
    /// The route of a hash, a new one where it was not known.
    pub fn entry(&mut self, hash: u32, minute: u32) -> &mut Route {
        let key = key_of(hash);
        let set = &mut self.places[set_of(key)];
        let way = match set.iter().position(|r| r.key == key) {
            Some(way) => way,
            None => {
                let way = (0..WAYS).min_by_key(|way| set[*way].age_key()).unwrap_or(0);
                set[way] = Route { key, ..Route::default() };
                way
            }
        };
        set[way].used = minute;
        &mut set[way]
    }

    /// Whether the site is known to have the route of a hash.
    pub fn is_believed(&self, hash: u32) -> bool {
        let key = key_of(hash);
        self.places[set_of(key)].iter().any(|r| r.key == key && r.is_believed())
    }

    /// Writes down those that have been used well, or are failing: the rest begins anew.
    pub fn save(&self, w: &mut Writer) {
        let used = || self.places.iter().flatten().filter(|r| r.key != 0);
        w.uint(used().count() as u64);
        for r in used() {
            w.raw(&r.key.to_le_bytes());
            w.uint(r.used.into());
            for v in r.networks.into_iter().chain(r.failing).chain([r.first_day, r.last_day]) {
                w.uint(v.into());
            }
            w.uint(r.suffering.into());
        }
    }

    /// Reads what [`Routes::save`] wrote.
    ///
    /// # Errors
    /// [`BadState`] where it is something else.
    pub fn load(r: &mut Reader<'_>) -> Result<Self, BadState> {
        let mut routes = Self::default();
        for _ in 0..r.count(14)? {
            let key = u32::from_le_bytes(r.raw(4)?.try_into().map_err(|_| BadState)?);
            let mut route = Route { key: key_of(key), used: r.small()?, ..Route::default() };
            for v in route.networks.iter_mut().chain(&mut route.failing) {
                *v = r.small()?;
            }
            (route.first_day, route.last_day, route.suffering) = (r.small()?, r.small()?, r.small()?);
            let set = &mut routes.places[set_of(route.key)];
            if let Some(free) = set.iter_mut().find(|r| r.key == 0) {
                *free = route;
            }
        }
        Ok(routes)
    }
}

/// Distinct names (bits of a sketch) that got the same answer, from which on it is what nonsense gets: some 16 names.
const NONSENSE_NAMES: u32 = 14;
/// Answers that are watched.
const WATCHED: usize = 16;
/// Each name of an answer keeps it so many minutes longer.
const NAME_KEEPS: u32 = 4;

/// An answer, and a sketch of the distinct names that were asked for: one bit each.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
struct Answer {
    key: u32,
    used: u32,
    names: u64,
}

/// Answers that a site gives to nonsense: the same status and size for paths that have nothing to do with each other.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct CatchAll {
    answers: [Answer; WATCHED],
}

impl CatchAll {
    /// Notes an answer to a path that is not believed, and says whether it is the one that nonsense gets.
    pub fn note(&mut self, status: u16, size: u64, name: u32, minute: u32) -> bool {
        // Size and status overlap only for answers of megabytes.
        let key = (u32::from(status) << 20 ^ size as u32) | 1 << 31;
        let at = match self.answers.iter().position(|a| a.key == key) {
            Some(at) => at,
            None => {
                let keeps = |a: &Answer| a.used.saturating_add(a.names.count_ones() * NAME_KEEPS);
                let at = (0..WATCHED).min_by_key(|at| keeps(&self.answers[*at])).unwrap_or(0);
                self.answers[at] = Answer { key, used: minute, names: 0 };
                at
            }
        };
        let answer = &mut self.answers[at];
        answer.used = minute;
        answer.names |= 1 << (name % 64);
        answer.names.count_ones() >= NONSENSE_NAMES
    }

    /// Writes it down.
    pub fn save(&self, w: &mut Writer) {
        w.uint(WATCHED as u64);
        for a in &self.answers {
            w.uint(a.key.into());
            w.uint(a.used.into());
            w.raw(&a.names.to_le_bytes());
        }
    }

    /// Reads what [`CatchAll::save`] wrote.
    ///
    /// # Errors
    /// [`BadState`] where it is something else.
    pub fn load(r: &mut Reader<'_>) -> Result<Self, BadState> {
        let mut all = Self::default();
        let stored = r.count(10)?;
        for at in 0..stored {
            let (key, used) = (r.small()?, r.small()?);
            let names = u64::from_le_bytes(r.raw(8)?.try_into().map_err(|_| BadState)?);
            if let Some(place) = all.answers.get_mut(at) {
                *place = Answer { key, used, names };
            }
        }
        Ok(all)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nobody_makes_a_route_believed_from_one_network() {
        let mut routes = Routes::default();
        for day in 0..30 {
            routes.entry(77, 5).succeed(9, 20_000 + day);
        }
        assert!(!routes.is_believed(77));
        routes.entry(77, 6).succeed(10, 20_030);
        assert!(routes.is_believed(77), "two networks over a month");
        for network in 1..=3 {
            assert!(!routes.is_believed(78));
            routes.entry(78, 6).succeed(network, 20_000);
        }
        assert!(routes.is_believed(78), "three networks on one day");
    }

    #[test]
    fn a_stream_of_invented_routes_displaces_only_what_nobody_uses() {
        let mut routes = Routes::default();
        (1..=3).for_each(|network| routes.entry(0x1234_5678, 100).succeed(network, 20_000));
        for invented in 0..400_000u32 {
            routes.entry(invented.wrapping_mul(0x9e37_79b1), 1000);
        }
        assert!(routes.is_believed(0x1234_5678));
    }

    #[test]
    fn only_others_who_suffer_now_excuse_a_failure() {
        let mut route = Route::default();
        (1..=2).for_each(|network| route.suffer(10, network));
        assert!(route.is_suffering(11, 3) && route.is_suffering(12, 3) && !route.is_suffering(13, 3));
        assert!(!route.is_suffering(11, 2), "one of the two is the client's own network");
        route.suffer(20, 5);
        assert!(!route.is_suffering(20, 3), "the others were long before");
    }

    #[test]
    fn the_answer_that_nonsense_gets_is_found_and_an_answer_of_one_page_is_not() {
        let mut all = CatchAll::default();
        assert!((0..100).all(|_| !all.note(200, 4711, 7, 1)));
        let first = (0..64).position(|name| all.note(302, 138, name, 1));
        assert_eq!(first, Some(13));
    }

    #[test]
    fn both_survive_the_store() {
        let (mut routes, mut all) = (Routes::default(), CatchAll::default());
        for n in 0..2000u32 {
            routes.entry(n.wrapping_mul(0x9e37_79b1), n).succeed(n as u16 | 1, 20_000);
            routes.entry(n, n).suffer(n, 3);
            all.note(200, u64::from(n % 20), n, n);
        }
        let mut w = Writer::new(1);
        routes.save(&mut w);
        all.save(&mut w);
        let bytes = w.finish();
        let mut r = Reader::new(&bytes, 1).expect("its version");
        let (again, all_again) = (Routes::load(&mut r).expect("routes"), CatchAll::load(&mut r).expect("answers"));
        let sorted = |routes: &Routes| {
            let mut all: Vec<Route> = routes.places.iter().flatten().copied().filter(|r| r.key != 0).collect();
            all.sort_by_key(|r| r.key);
            all
        };
        assert_eq!((sorted(&again), all_again), (sorted(&routes), all));
    }
}
