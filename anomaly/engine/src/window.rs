//! The sliding window of one client: whole seconds of log time, the current one included.
//!
//! A client's requests are kept as a short list of events in the order of their seconds. Requests that only count
//! (GETs that went well) share one event per second and class; a request whose path matters (answered 4xx, or a POST)
//! has one of its own, up to [`MAX_NAMED`]. So a visitor costs a few bytes and a flood costs no more than
//! a few kilobytes. All sums are kept as events come and go; nothing is decayed or estimated.
//!
//! With many clients, the number of cache lines that a record touches decides the cost. So an event takes one number of
//! 16 bits, two if it stands for several requests, three if it has a path (`slots`). The client itself holds as many as fit into
//! two lines with its other fields. Only busier clients have a list elsewhere.

use super::kind::Kind;
use super::slots::{
    DATA, Event, MAX_COUNT, NEWEST, POST, SECS, Slots, age, event_before, events, head, kind_of, of_path, path_data,
};

/// Events with a path of their own that a window holds; further ones are counted without their path.
pub const MAX_NAMED: u16 = 512;
/// Bits of a path's hash that are kept.
const PATH_BITS: u32 = 0xff_ffff;
/// What the store calls the class.
const CLASS: u32 = (Kind::ASSET | Kind::ERROR | Kind::CLIENT_ERROR | Kind::POST) as u32;
/// What the store calls a merged event.
const SAVED_MERGED: u32 = 1 << 4;
/// What the store calls [`NEWEST`].
const SAVED_NEWEST: u32 = 1 << 5;

/// What one client did in the newest seconds. Weighted figures are in tenths.
#[derive(Clone, Debug)]
pub struct Window {
    requests: u32,
    errors: u32,
    pages_tenths: u32,
    page_errors: u32,
    error_paths_tenths: u32,
    /// The second of its newest event, wrapped; nothing where it has none.
    newest: u32,
    named: u16,
    slots: Slots,
}

impl Default for Window {
    fn default() -> Self {
        Self {
            requests: 0,
            errors: 0,
            pages_tenths: 0,
            page_errors: 0,
            error_paths_tenths: 0,
            newest: 0,
            named: 0,
            slots: Slots::EMPTY,
        }
    }
}

impl Window {
    /// Requests.
    pub const fn requests(&self) -> u32 {
        self.requests
    }

    /// Requests that were answered with an error.
    pub const fn errors(&self) -> u32 {
        self.errors
    }

    /// Requests, an asset weighing [`Kind::page_tenths`].
    pub const fn pages_tenths(&self) -> u32 {
        self.pages_tenths
    }

    /// Those that are not for assets.
    #[cfg(test)]
    pub const fn page_errors(&self) -> u32 {
        self.page_errors
    }

    /// Distinct paths answered 4xx, an asset weighing [`Kind::error_path_tenths`].
    #[cfg(test)]
    pub const fn error_paths_tenths(&self) -> u32 {
        self.error_paths_tenths
    }

    /// The second of its newest request, wrapped; means nothing where it has none.
    pub const fn newest(&self) -> u32 {
        self.newest
    }

    /// True when there is no request in it.
    pub const fn is_empty(&self) -> bool {
        self.requests == 0
    }

    /// Seconds wrap around: they are compared by their distance, which is far below 2^31.
    const fn is_before(a: u32, b: u32) -> bool {
        (a.wrapping_sub(b) as i32) < 0
    }

    /// Lets go of what happened before the second `oldest`.
    #[inline]
    pub fn expire(&mut self, oldest: u32) {
        let Some(first) = self.slots.as_slice().first() else { return };
        let span = self.newest.wrapping_sub(oldest);
        if Self::is_before(self.newest, oldest) || age(*first, self.newest) > span {
            self.drop_older(oldest);
        }
    }

    /// [`Window::expire`] where there is something to let go of: apart, so that to see that there is nothing stays short.
    #[inline(never)]
    fn drop_older(&mut self, oldest: u32) {
        if Self::is_before(self.newest, oldest) {
            *self = Self::default();
            return;
        }
        let span = self.newest.wrapping_sub(oldest);
        let slots = self.slots.as_slice();
        let mut gone = 0;
        let (mut requests, mut pages_tenths, mut named) = (0, 0, 0);
        for event in events(slots).take_while(|event| event.age(self.newest) > span) {
            let (kind, n) = (event.kind(), event.count());
            requests += n;
            pages_tenths += n * kind.page_tenths();
            if kind.is_error() {
                self.errors -= n;
                self.page_errors -= n * u32::from(!kind.is_asset());
            }
            if event.head() & NEWEST != 0 {
                self.error_paths_tenths -= kind.error_path_tenths();
            }
            named += u16::from(event.path().is_some());
            gone += event.0.len();
        }
        self.requests -= requests;
        self.pages_tenths -= pages_tenths;
        self.named -= named;
        self.slots.drop_first(gone);
    }

    /// Counts a request in the second `sec`, which must not be older than the last [`Window::expire`]. `path` is a
    /// hash of which 24 bits are used. The answer is how many POSTs of the window went to the same path, this one
    /// included; 0 for other requests.
    pub fn add(&mut self, sec: u32, kind: Kind, path: u32) -> u32 {
        self.requests = self.requests.saturating_add(1);
        self.pages_tenths = self.pages_tenths.saturating_add(kind.page_tenths());
        if kind.is_error() {
            self.errors += 1;
            self.page_errors += u32::from(!kind.is_asset());
        }
        let slots = self.slots.as_mut_slice();
        let mut end = slots.len();
        let is_named = kind.is_named() && self.named < MAX_NAMED;
        if end == 0 || Self::is_before(self.newest, sec) {
            self.newest = sec;
        } else {
            let age = self.newest.wrapping_sub(sec);
            // Almost always the end: records are almost in order.
            while let Some((index, event)) = event_before(slots, end)
                && event.age(self.newest) < age
            {
                end = index;
            }
            let mut before = end;
            while !is_named
                && let Some((index, event)) = event_before(slots, before)
                && event.age(self.newest) == age
            {
                if event.kind() == kind {
                    match event.0 {
                        [_] => {
                            self.slots.insert(index + 1, [DATA | 2]);
                            return 0;
                        }
                        [_, _] if event.count() < MAX_COUNT => {
                            slots[index + 1] += 1;
                            return 0;
                        }
                        _ => {}
                    }
                }
                before = index;
            }
        }
        let mut head = head(sec, kind);
        if !is_named {
            self.slots.insert(end, [head]);
            return 0;
        }
        let path = path & PATH_BITS;
        let posts = if kind.is_post() { 1 + of_path(slots, path, POST).count() as u32 } else { 0 };
        if kind.is_client_error() {
            let newest_before = of_path(slots, path, NEWEST).next();
            match newest_before {
                // A path counts until its newest request leaves, and as what it was then.
                Some(index) if index < end => {
                    slots[index] &= !NEWEST;
                    self.error_paths_tenths -= kind_of(slots[index]).error_path_tenths();
                    head |= NEWEST;
                }
                Some(_) => {}
                None => head |= NEWEST,
            }
            if head & NEWEST != 0 {
                self.error_paths_tenths += kind.error_path_tenths();
            }
        }
        self.named += 1;
        let [low, high] = path_data(path);
        self.slots.insert(end, [head, low, high]);
        posts
    }

    /// Weighted page requests of the newest seconds, as a running sum from `now` back: (seconds, tenths) for each
    /// second that has any.
    pub fn pages_back(&self, now: u32) -> impl Iterator<Item = (u32, u32)> {
        let (slots, newest) = (self.slots.as_slice(), self.newest);
        let since_newest = now.wrapping_sub(newest).wrapping_add(1);
        let (mut sum, mut end) = (0, slots.len());
        std::iter::from_fn(move || {
            loop {
                let (index, event) = event_before(slots, end)?;
                end = index;
                sum += event.count() * event.kind().page_tenths();
                let age = event.age(newest);
                if event_before(slots, end).is_none_or(|(_, before)| before.age(newest) != age) {
                    return Some((age.wrapping_add(since_newest), sum));
                }
            }
        })
    }

    /// Whether its events are kept elsewhere.
    pub const fn has_list(&self) -> bool {
        self.slots.has_list()
    }

    /// Its events, wherever they are, so that they can be read ahead of time; what they say is for nobody else.
    pub fn list(&self) -> &[u16] {
        self.slots.as_slice()
    }

    /// Requests and errors since the second `oldest`, for a window that was not expired lately.
    pub fn since(&self, oldest: u32) -> (u32, u32) {
        if Self::is_before(self.newest, oldest) {
            return (0, 0);
        }
        let span = self.newest.wrapping_sub(oldest);
        let newer = events(self.slots.as_slice()).filter(|e| e.age(self.newest) <= span);
        newer.fold((0, 0), |(requests, errors), e| {
            (requests + e.count(), errors + if e.kind().is_error() { e.count() } else { 0 })
        })
    }

    /// Heap bytes it holds.
    pub const fn heap_bytes(&self) -> usize {
        self.slots.heap_bytes()
    }

    /// All requests and those with status >= 400, counted anew.
    #[cfg(test)]
    fn naive(&self) -> (u32, u32) {
        let count = |f: &dyn Fn(Event) -> bool| events(self.slots.as_slice()).filter(|e| f(*e)).map(Event::count).sum();
        (count(&|_| true), count(&|e| e.kind().is_error()))
    }

    /// Everything as numbers, for the store: per event its second, and flags below its path's hash or, of a merged one,
    /// its number.
    pub fn events(&self) -> Vec<(u32, u32)> {
        let saved = |event: Event<'_>| {
            let (word, merged) = event.path().map_or((event.count(), SAVED_MERGED), |path| (path, 0));
            let newest = if event.head() & NEWEST != 0 { SAVED_NEWEST } else { 0 };
            let flags = u32::from(event.kind().bits()) | merged | newest;
            (self.newest.wrapping_sub(event.age(self.newest)), word << 8 | flags)
        };
        events(self.slots.as_slice()).map(saved).collect()
    }

    /// A window with these events, which must be in the order of their seconds and lie less than 1024 s apart; `None`
    /// where they are not.
    pub fn from_events(list: &[(u32, u32)]) -> Option<Self> {
        let mut window = Self::default();
        let mut slots = Vec::with_capacity(list.len());
        window.newest = list.last().map_or(0, |(sec, _)| *sec);
        if list.first().is_some_and(|(sec, _)| window.newest.wrapping_sub(*sec) >= SECS) {
            return None;
        }
        if list.windows(2).any(|two| Self::is_before(two[1].0, two[0].0)) {
            return None;
        }
        for (sec, bits) in list {
            let (kind, word) = (Kind::from_bits((bits & CLASS) as u8), bits >> 8);
            let is_merged = bits & SAVED_MERGED != 0;
            let mut head = head(*sec, kind);
            let n = if is_merged { word } else { 1 };
            window.requests = window.requests.checked_add(n)?;
            window.pages_tenths = window.pages_tenths.checked_add(n.checked_mul(kind.page_tenths())?)?;
            if kind.is_error() {
                window.errors += n;
                window.page_errors += n * u32::from(!kind.is_asset());
            }
            if is_merged {
                let mut left = word;
                while left > 0 {
                    let count = left.min(MAX_COUNT);
                    slots.push(head);
                    slots.extend((count > 1).then_some(DATA | count as u16));
                    left -= count;
                }
            } else {
                if bits & SAVED_NEWEST != 0 {
                    head |= NEWEST;
                    window.error_paths_tenths += kind.error_path_tenths();
                }
                window.named = window.named.checked_add(1)?;
                let [low, high] = path_data(word);
                slots.extend([head, low, high]);
            }
        }
        window.slots = Slots::of(slots);
        Some(window)
    }
}

#[cfg(test)]
mod tests {
    use super::super::slots::INLINE;
    use super::*;
    use crate::record::Extension;
    use proptest::prelude::*;
    use std::collections::HashMap;

    const SPAN: u32 = 60;

    fn kind(asset: bool, status: u16, post: bool) -> Kind {
        let extension = if asset { Extension::new(b"png") } else { Extension::NONE };
        Kind::new(if post { b"POST" } else { b"GET" }, extension, status)
    }

    /// The newest 60 seconds of everything, counted again from the start.
    fn naive(requests: &[(u32, Kind, u32)], now: u32) -> (u32, u32, u32, u32, u32) {
        let inside: Vec<_> = requests.iter().filter(|(sec, ..)| *sec + SPAN > now).collect();
        let mut newest: HashMap<u32, (u32, Kind)> = HashMap::new();
        for (sec, kind, path) in &inside {
            let at = newest.entry(*path).or_insert((*sec, *kind));
            if kind.is_client_error() && (*sec >= at.0 || !at.1.is_client_error()) {
                *at = (*sec, *kind);
            }
        }
        (
            inside.len() as u32,
            inside.iter().filter(|(_, k, _)| k.is_error()).count() as u32,
            inside.iter().map(|(_, k, _)| k.page_tenths()).sum(),
            inside.iter().filter(|(_, k, _)| k.is_error() && !k.is_asset()).count() as u32,
            newest.values().filter(|(_, k)| k.is_client_error()).map(|(_, k)| k.error_path_tenths()).sum(),
        )
    }

    proptest! {
        #[test]
        fn equals_a_naive_count_for_any_order_within_the_lateness(
            steps in proptest::collection::vec(
                // Now and then it is quiet for a while, so that what a list was needed for fits into the window again.
                (prop_oneof![19 => 0u32..4, 1 => 0u32..60], 0u32..60, any::<bool>(), 0usize..4, any::<bool>(), 0u32..6),
                1..300,
            )
        ) {
            let mut window = Window::default();
            let mut seen = Vec::new();
            let mut now = 1000;
            for (forward, late, asset, status, post, path) in steps {
                now += forward;
                let kind = kind(asset, [200, 304, 404, 500][status], post);
                // One path is always the same class, as in real logs.
                let path = path * 2 + u32::from(asset);
                window.expire(now + 1 - SPAN);
                let sec = now - late;
                let posts = window.add(sec, kind, path);
                seen.push((sec, kind, path));
                let (requests, errors, pages, page_errors, paths) = naive(&seen, now);
                prop_assert_eq!(window.requests(), requests);
                prop_assert_eq!(window.errors(), errors);
                prop_assert_eq!(window.pages_tenths(), pages);
                prop_assert_eq!(window.page_errors(), page_errors);
                prop_assert_eq!(window.error_paths_tenths(), paths);
                prop_assert_eq!(window.naive(), (requests, errors));
                if post {
                    let same = seen.iter().filter(|(s, k, p)| k.is_post() && *p == path && *s + SPAN > now).count();
                    prop_assert_eq!(posts as usize, same);
                }
                let back = window.pages_back(now).last();
                prop_assert_eq!(back.map(|(_, sum)| sum), Some(pages));
                let again = Window::from_events(&window.events()).expect("its own events");
                prop_assert_eq!(again.events(), window.events());
                prop_assert_eq!(again.error_paths_tenths(), paths);
                prop_assert_eq!(again.pages_tenths(), pages);
            }
        }
    }

    #[test]
    fn empties_when_time_passes() {
        let mut window = Window::default();
        for i in 0..200 {
            window.add(100 + i / 10, kind(false, 404, false), i);
        }
        assert_eq!(window.error_paths_tenths(), 2000);
        window.expire(120);
        assert!(window.is_empty());
        assert_eq!(window.error_paths_tenths(), 0);
        assert_eq!(window.events().len(), 0);
    }

    #[test]
    fn a_flood_of_named_requests_is_bounded_and_still_counted() {
        let mut window = Window::default();
        for i in 0..100_000 {
            window.add(5, kind(false, 404, true), i);
        }
        assert_eq!(window.requests(), 100_000);
        let merged = (100_000 - u32::from(MAX_NAMED)).div_ceil(MAX_COUNT) as usize;
        assert_eq!(window.events().len(), MAX_NAMED as usize + merged);
        let again = Window::from_events(&window.events()).expect("its own events");
        assert_eq!((again.requests(), again.events()), (window.requests(), window.events()));
    }

    #[test]
    fn keeps_its_events_as_they_move_to_a_list_and_back() {
        let (get, missing) = (kind(false, 200, false), kind(false, 404, false));
        let merged = |count: u32| count << 8 | SAVED_MERGED;
        for (alone, is_named) in (1..=INLINE as u32).flat_map(|alone| [(alone, false), (alone, true)]) {
            let mut window = Window::default();
            let mut expected: Vec<(u32, u32)> = (0..alone).map(|i| (100 + i, merged(1))).collect();
            expected.iter().for_each(|(sec, _)| assert_eq!(window.add(*sec, get, 0), 0));
            // In the middle, and at the end until there is no room.
            window.add(100, get, 0);
            expected[0].1 = merged(2);
            assert_eq!((window.has_list(), window.events()), (alone as usize == INLINE, expected.clone()), "{alone}");
            for sec in 100 + alone.. {
                let kept = if is_named {
                    window.add(sec, missing, sec);
                    sec << 8 | u32::from(missing.bits()) | SAVED_NEWEST
                } else {
                    window.add(sec, get, 0);
                    window.add(sec, get, 0);
                    merged(2)
                };
                expected.push((sec, kept));
                assert_eq!(window.events(), expected, "{alone}");
                if window.has_list() {
                    break;
                }
            }
            window.add(100, missing, 0);
            expected.insert(1, (100, u32::from(missing.bits()) | SAVED_NEWEST));
            let mut is_back = false;
            while let Some((sec, _)) = expected.first().copied() {
                assert_eq!(window.events(), expected, "{alone}");
                let again = Window::from_events(&expected).expect("its own events");
                assert_eq!((again.requests(), again.events()), (window.requests(), window.events()));
                window.expire(sec + 1);
                expected.retain(|(of, _)| *of != sec);
                is_back |= !window.has_list() && !window.is_empty();
            }
            assert!(is_back && window.is_empty() && window.heap_bytes() == 0, "{alone}");
        }
    }

    #[test]
    fn counts_more_than_one_slot_can_say() {
        let mut window = Window::default();
        let get = kind(false, 200, false);
        (0..2 * MAX_COUNT + 1).for_each(|_| assert_eq!(window.add(100, get, 0), 0));
        window.add(101, get, 0);
        window.add(100, get, 0);
        let merged = |count: u32| count << 8 | SAVED_MERGED;
        let events = [(100, merged(MAX_COUNT)), (100, merged(MAX_COUNT)), (100, merged(2)), (101, merged(1))];
        assert_eq!(window.events(), events);
        let saved = [(100, merged(2 * MAX_COUNT + 2)), (101, merged(1))];
        assert_eq!(Window::from_events(&saved).expect("a large count").events(), events);
        window.expire(101);
        assert_eq!((window.requests(), window.pages_tenths(), window.events().len()), (1, 10, 1));
    }

    #[test]
    fn takes_no_events_that_it_could_not_tell_apart() {
        let one = 1 << 8 | SAVED_MERGED;
        assert!(Window::from_events(&[(7, one), (7 + SECS - 1, one)]).is_some());
        assert!(Window::from_events(&[(7, one), (7 + SECS, one)]).is_none());
        assert!(Window::from_events(&[(8, one), (7, one)]).is_none());
    }

    #[test]
    fn survives_the_wrap_of_its_seconds() {
        let mut window = Window::default();
        window.add(u32::MAX - 1, kind(false, 200, false), 0);
        window.add(1, kind(false, 200, false), 0);
        window.expire(u32::MAX);
        assert_eq!(window.requests(), 1);
    }
}
