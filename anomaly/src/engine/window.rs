//! The sliding window of one client: whole seconds of log time, the current one included.
//!
//! A client's requests are kept as a short list of events in the order of their seconds. Requests that only count
//! (GETs that went well) share one event per second and class; a request whose path matters (answered 4xx, or a POST)
//! has one of its own, up to [`MAX_NAMED`]. So a visitor costs a few bytes and a flood costs no more than
//! a few kilobytes. All sums are kept as events come and go; nothing is decayed or estimated.

use super::signals::Kind;

/// Events with a path of their own that a window holds; further ones are counted without their path.
pub const MAX_NAMED: u16 = 512;
/// Events that are kept inside the window itself.
const INLINE: usize = 3;

const MERGED: u8 = 1 << 4;
const NEWEST: u8 = 1 << 5;
const CLASS: u8 = Kind::ASSET | Kind::ERROR | Kind::CLIENT_ERROR | Kind::POST;

/// `bits` holds the path's hash, or for merged events their number, in the upper 24 bits and flags in the lower eight.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Event {
    sec: u32,
    bits: u32,
}

impl Event {
    const fn new(sec: u32, flags: u8, word: u32) -> Self {
        Self { sec, bits: word << 8 | flags as u32 }
    }

    const fn flags(self) -> u8 {
        self.bits as u8
    }

    const fn word(self) -> u32 {
        self.bits >> 8
    }

    const fn is(self, flag: u8) -> bool {
        self.flags() & flag != 0
    }

    const fn kind(self) -> Kind {
        Kind::from_bits(self.flags() & CLASS)
    }

    /// How many requests it stands for.
    const fn count(self) -> u32 {
        if self.is(MERGED) { self.word() } else { 1 }
    }
}

#[derive(Clone, Debug)]
enum Events {
    Few { len: u8, at: [Event; INLINE] },
    Many(Vec<Event>),
}

impl Events {
    fn as_slice(&self) -> &[Event] {
        match self {
            Self::Few { len, at } => &at[..*len as usize],
            Self::Many(events) => events,
        }
    }

    fn as_mut_slice(&mut self) -> &mut [Event] {
        match self {
            Self::Few { len, at } => &mut at[..*len as usize],
            Self::Many(events) => events,
        }
    }

    fn insert(&mut self, index: usize, event: Event) {
        match self {
            Self::Few { len, at } if (*len as usize) < INLINE => {
                at.copy_within(index..*len as usize, index + 1);
                at[index] = event;
                *len += 1;
            }
            Self::Few { at, .. } => {
                let mut events = Vec::with_capacity(2 * INLINE + 2);
                events.extend_from_slice(at);
                events.insert(index, event);
                *self = Self::Many(events);
            }
            Self::Many(events) => events.insert(index, event),
        }
    }

    fn drop_first(&mut self, n: usize) {
        match self {
            Self::Few { len, at } => {
                at.copy_within(n..*len as usize, 0);
                *len -= n as u8;
            }
            Self::Many(events) if events.len() - n <= INLINE / 2 + 1 => {
                let rest = &events[n..];
                let mut at = [Event::new(0, 0, 0); INLINE];
                at[..rest.len()].copy_from_slice(rest);
                *self = Self::Few { len: rest.len() as u8, at };
            }
            Self::Many(events) => {
                events.drain(..n);
            }
        }
    }
}

/// What one client did in the newest seconds. Weighted figures are in tenths.
#[derive(Clone, Debug)]
pub struct Window {
    requests: u32,
    errors: u32,
    pages_tenths: u32,
    page_errors: u32,
    error_paths_tenths: u32,
    named: u16,
    events: Events,
}

impl Default for Window {
    fn default() -> Self {
        Self {
            requests: 0,
            errors: 0,
            pages_tenths: 0,
            page_errors: 0,
            error_paths_tenths: 0,
            named: 0,
            events: Events::Few { len: 0, at: [Event::new(0, 0, 0); INLINE] },
        }
    }
}

impl Window {
    /// Requests.
    pub const fn requests(&self) -> u32 {
        self.requests
    }

    /// Requests with status >= 400.
    pub const fn errors(&self) -> u32 {
        self.errors
    }

    /// Requests, an asset weighing [`Kind::page_tenths`].
    pub const fn pages_tenths(&self) -> u32 {
        self.pages_tenths
    }

    /// Requests with status >= 400 that are not for assets.
    pub const fn page_errors(&self) -> u32 {
        self.page_errors
    }

    /// Requests for assets that were answered without an error.
    pub const fn good_assets(&self) -> u32 {
        // Tenths are 10 for a page and 1 for an asset.
        let assets = (self.requests.saturating_mul(10) - self.pages_tenths) / 9;
        assets - (self.errors - self.page_errors)
    }

    /// Distinct paths answered 4xx, an asset weighing [`Kind::error_path_tenths`].
    pub const fn error_paths_tenths(&self) -> u32 {
        self.error_paths_tenths
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
    pub fn expire(&mut self, oldest: u32) {
        let events = self.events.as_slice();
        match events.first() {
            Some(first) if Self::is_before(first.sec, oldest) => {}
            _ => return,
        }
        let gone = events.iter().take_while(|e| Self::is_before(e.sec, oldest)).count();
        for event in &events[..gone] {
            let (kind, n) = (event.kind(), event.count());
            self.requests -= n;
            self.pages_tenths -= n * kind.page_tenths();
            if kind.is_error() {
                self.errors -= n;
                self.page_errors -= n * u32::from(!kind.is_asset());
            }
            if event.is(NEWEST) {
                self.error_paths_tenths -= kind.error_path_tenths();
            }
            self.named -= u16::from(!event.is(MERGED));
        }
        self.events.drop_first(gone);
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
        let named = kind.is_named() && self.named < MAX_NAMED;
        let events = self.events.as_mut_slice();
        // Almost always the end: records are almost in order.
        let end = events.len() - events.iter().rev().take_while(|e| Self::is_before(sec, e.sec)).count();
        if !named {
            for event in events[..end].iter_mut().rev().take_while(|e| e.sec == sec) {
                if event.is(MERGED) && event.kind() == kind && event.word() < 0xff_ffff {
                    event.bits += 1 << 8;
                    return 0;
                }
            }
            self.events.insert(end, Event::new(sec, kind.bits() | MERGED, 1));
            return 0;
        }
        let path = path & 0xff_ffff;
        let mut flags = kind.bits();
        let mut posts = 0;
        if kind.is_post() {
            let wanted = path << 8 | u32::from(Kind::POST);
            posts =
                1 + events.iter().filter(|e| e.bits & (0xffff_ff00 | u32::from(Kind::POST | MERGED)) == wanted).count()
                    as u32;
        }
        if kind.is_client_error() {
            let wanted = path << 8 | u32::from(NEWEST);
            match events.iter().position(|e| e.bits & (0xffff_ff00 | u32::from(NEWEST | MERGED)) == wanted) {
                // A path counts until its newest request leaves, and as what it was then.
                Some(index) if index < end => {
                    events[index].bits &= !u32::from(NEWEST);
                    self.error_paths_tenths -= events[index].kind().error_path_tenths();
                    flags |= NEWEST;
                }
                Some(_) => {}
                None => flags |= NEWEST,
            }
            if flags & NEWEST != 0 {
                self.error_paths_tenths += kind.error_path_tenths();
            }
        }
        self.named += 1;
        self.events.insert(end, Event::new(sec, flags, path));
        posts
    }

    /// Weighted page requests of the newest seconds, as a running sum from `now` back: (seconds, tenths) for each
    /// second that has any.
    pub fn pages_back(&self, now: u32) -> impl Iterator<Item = (u32, u32)> {
        let events = self.events.as_slice();
        let mut sum = 0;
        events.iter().enumerate().rev().filter_map(move |(i, event)| {
            sum += event.count() * event.kind().page_tenths();
            let last_of_second = i == 0 || events[i - 1].sec != event.sec;
            last_of_second.then(|| (now.wrapping_sub(event.sec).wrapping_add(1), sum))
        })
    }

    /// Requests and errors since the second `oldest`, for a window that was not expired lately.
    pub fn since(&self, oldest: u32) -> (u32, u32) {
        let newer = self.events.as_slice().iter().filter(|e| !Self::is_before(e.sec, oldest));
        newer.fold((0, 0), |(requests, errors), e| {
            (requests + e.count(), errors + if e.kind().is_error() { e.count() } else { 0 })
        })
    }

    /// Heap bytes it holds.
    pub fn heap_bytes(&self) -> usize {
        match &self.events {
            Events::Few { .. } => 0,
            Events::Many(events) => events.capacity() * size_of::<Event>(),
        }
    }

    /// All requests and those with status >= 400, counted anew.
    #[cfg(test)]
    fn naive(&self) -> (u32, u32) {
        let events = self.events.as_slice();
        let count = |f: &dyn Fn(&Event) -> bool| events.iter().filter(|e| f(e)).map(|e| e.count()).sum();
        (count(&|_| true), count(&|e| e.kind().is_error()))
    }

    /// Everything as numbers, for the store: (second, bits) per event.
    pub fn events(&self) -> impl ExactSizeIterator<Item = (u32, u32)> {
        self.events.as_slice().iter().map(|e| (e.sec, e.bits))
    }

    /// A window with these events, which must be in the order of their seconds; `None` where they are not.
    pub fn from_events(events: impl ExactSizeIterator<Item = (u32, u32)>) -> Option<Self> {
        let mut window = Self::default();
        let mut list = Vec::with_capacity(events.len());
        for (sec, bits) in events {
            let event = Event { sec, bits };
            if list.last().is_some_and(|last: &Event| Self::is_before(sec, last.sec)) {
                return None;
            }
            let (kind, n) = (event.kind(), event.count());
            window.requests = window.requests.checked_add(n)?;
            window.pages_tenths = window.pages_tenths.checked_add(n.checked_mul(kind.page_tenths())?)?;
            if kind.is_error() {
                window.errors += n;
                window.page_errors += n * u32::from(!kind.is_asset());
            }
            if event.is(NEWEST) {
                window.error_paths_tenths += kind.error_path_tenths();
            }
            window.named = window.named.checked_add(u16::from(!event.is(MERGED)))?;
            list.push(event);
        }
        if list.len() <= INLINE {
            let mut at = [Event::new(0, 0, 0); INLINE];
            at[..list.len()].copy_from_slice(&list);
            window.events = Events::Few { len: list.len() as u8, at };
        } else {
            window.events = Events::Many(list);
        }
        Some(window)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use std::collections::HashMap;

    const SPAN: u32 = 60;

    fn kind(asset: bool, status: u16, post: bool) -> Kind {
        Kind::of(if post { b"POST" } else { b"GET" }, if asset { b"/a.png" } else { b"/a" }, status)
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
            steps in proptest::collection::vec((0u32..4, 0u32..60, any::<bool>(), 0usize..4, any::<bool>(), 0u32..6), 1..300)
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
                let again = Window::from_events(window.events()).expect("its own events");
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
        assert!(window.events().len() <= MAX_NAMED as usize + 1);
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
