//! The sliding window of one client: whole seconds of log time, the current one included.
//!
//! A client's requests are kept as a short list of events in the order of their seconds. Requests that only count
//! (GETs that went well) share one event per second and class; a request whose path matters (answered 4xx, or a POST)
//! has one of its own, up to [`MAX_NAMED`]. So a visitor costs a few bytes and a flood costs no more than
//! a few kilobytes. All sums are kept as events come and go; nothing is decayed or estimated.
//!
//! With many clients, what counts is how many cache lines a record touches. So an event is one number of 32 bits (with
//! its path: two), and as many as fit into two lines with all the rest are kept in the client itself.

use super::signals::Kind;

/// Events with a path of their own that a window holds; further ones are counted without their path.
pub const MAX_NAMED: u16 = 512;
/// Slots that are kept inside the window itself: with them, a client is two cache lines.
const INLINE: usize = 15;

const MERGED: u32 = 1 << 4;
const NEWEST: u32 = 1 << 5;
const CLASS: u32 = (Kind::ASSET | Kind::ERROR | Kind::CLIENT_ERROR | Kind::POST) as u32;
/// Seconds are kept modulo this. The events of a window lie at most 600 s apart, so an age below it is exact.
const SECS: u32 = 1 << 13;
const SEC_SHIFT: u32 = 6;
const COUNT_SHIFT: u32 = 19;
/// A merged event that stands for more requests is followed by another one.
const MAX_COUNT: u32 = 0xfff;
/// Marks a slot that holds the path of the event before it.
const PATH: u32 = 1 << 31;
/// Bits of a path's hash that are kept.
const PATH_BITS: u32 = 0xff_ffff;

/// A slot without [`PATH`]: flags, the second, and how many requests a merged event stands for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Event(u32);

impl Event {
    const fn new(sec: u32, flags: u32, count: u32) -> Self {
        Self(flags | (sec % SECS) << SEC_SHIFT | count << COUNT_SHIFT)
    }

    const fn is(self, flag: u32) -> bool {
        self.0 & flag != 0
    }

    const fn kind(self) -> Kind {
        Kind::from_bits((self.0 & CLASS) as u8)
    }

    /// How many requests it stands for.
    const fn count(self) -> u32 {
        if self.is(MERGED) { self.0 >> COUNT_SHIFT } else { 1 }
    }

    /// Seconds from it to `newest`.
    const fn age(self, newest: u32) -> u32 {
        newest.wrapping_sub(self.0 >> SEC_SHIFT) % SECS
    }
}

/// The events of a window.
#[derive(Clone, Debug)]
enum Slots {
    Few { len: u8, at: [u32; INLINE] },
    Many(Vec<u32>),
}

impl Slots {
    const EMPTY: Self = Self::Few { len: 0, at: [0; INLINE] };

    fn as_slice(&self) -> &[u32] {
        match self {
            Self::Few { len, at } => &at[..*len as usize],
            Self::Many(slots) => slots,
        }
    }

    fn as_mut_slice(&mut self) -> &mut [u32] {
        match self {
            Self::Few { len, at } => &mut at[..*len as usize],
            Self::Many(slots) => slots,
        }
    }

    fn insert(&mut self, index: usize, slot: u32) {
        match self {
            Self::Few { len, at } if (*len as usize) < INLINE => {
                if index < *len as usize {
                    at.copy_within(index..*len as usize, index + 1);
                }
                at[index] = slot;
                *len += 1;
            }
            Self::Few { at, .. } => {
                let mut slots = Vec::with_capacity(2 * INLINE + 2);
                slots.extend_from_slice(at);
                slots.insert(index, slot);
                *self = Self::Many(slots);
            }
            Self::Many(slots) => slots.insert(index, slot),
        }
    }

    fn drop_first(&mut self, n: usize) {
        match self {
            Self::Few { len, at } => {
                // One is the rule; all are moved then, which costs less than to see how many there are.
                if n == 1 {
                    at.copy_within(1.., 0)
                } else {
                    at.copy_within(n..*len as usize, 0)
                }
                *len -= n as u8;
            }
            Self::Many(slots) if slots.len() - n <= INLINE / 2 + 1 => *self = Self::few(&slots[n..]),
            Self::Many(slots) => {
                slots.drain(..n);
            }
        }
    }

    /// A list that fits into the window itself.
    fn few(slots: &[u32]) -> Self {
        let mut at = [0; INLINE];
        at[..slots.len()].copy_from_slice(slots);
        Self::Few { len: slots.len() as u8, at }
    }
}

/// The events in a list, oldest first: where each is, and its path's hash where it has one.
fn events(slots: &[u32]) -> impl Iterator<Item = (usize, Event, Option<u32>)> {
    slots.iter().enumerate().filter(|(_, slot)| **slot & PATH == 0).map(|(index, slot)| {
        let path = slots.get(index + 1).filter(|next| **next & PATH != 0);
        (index, Event(*slot), path.map(|path| path & PATH_BITS))
    })
}

/// Where the events of a path are that have a flag.
fn of_path(slots: &[u32], path: u32, flag: u32) -> impl Iterator<Item = usize> {
    events(slots).filter(move |(_, event, of)| *of == Some(path) && event.is(flag)).map(|(index, ..)| index)
}

/// The newest event before the slot `end`.
fn event_before(slots: &[u32], end: usize) -> Option<(usize, Event)> {
    let slot = |back: usize| Some((end.checked_sub(back)?, Event(*slots.get(end.checked_sub(back)?)?)));
    slot(1).filter(|(_, event)| !event.is(PATH)).or_else(|| slot(2))
}

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
    pub fn expire(&mut self, oldest: u32) {
        let slots = self.slots.as_slice();
        let Some(first) = slots.first() else { return };
        if Self::is_before(self.newest, oldest) {
            *self = Self::default();
            return;
        }
        let span = self.newest.wrapping_sub(oldest);
        if Event(*first).age(self.newest) <= span {
            return;
        }
        let mut gone = slots.len();
        for (index, event, _) in events(slots) {
            if event.age(self.newest) <= span {
                gone = index;
                break;
            }
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
        if slots.is_empty() || Self::is_before(self.newest, sec) {
            self.newest = sec;
        }
        let age = self.newest.wrapping_sub(sec);
        // Almost always the end: records are almost in order.
        let mut end = slots.len();
        while let Some((index, event)) = event_before(slots, end)
            && event.age(self.newest) < age
        {
            end = index;
        }
        let flags = u32::from(kind.bits());
        if !kind.is_named() || self.named >= MAX_NAMED {
            let mut before = end;
            while let Some((index, event)) = event_before(slots, before)
                && event.age(self.newest) == age
            {
                if event.0 & (CLASS | MERGED) == flags | MERGED && event.count() < MAX_COUNT {
                    slots[index] += 1 << COUNT_SHIFT;
                    return 0;
                }
                before = index;
            }
            self.slots.insert(end, Event::new(sec, flags | MERGED, 1).0);
            return 0;
        }
        let path = path & PATH_BITS;
        let posts = if kind.is_post() { 1 + of_path(slots, path, Kind::POST.into()).count() as u32 } else { 0 };
        let mut newest = 0;
        if kind.is_client_error() {
            let newest_before = of_path(slots, path, NEWEST).next();
            match newest_before {
                // A path counts until its newest request leaves, and as what it was then.
                Some(index) if index < end => {
                    slots[index] &= !NEWEST;
                    self.error_paths_tenths -= Event(slots[index]).kind().error_path_tenths();
                    newest = NEWEST;
                }
                Some(_) => {}
                None => newest = NEWEST,
            }
            if newest == NEWEST {
                self.error_paths_tenths += kind.error_path_tenths();
            }
        }
        self.named += 1;
        self.slots.insert(end, Event::new(sec, flags | newest, 0).0);
        self.slots.insert(end + 1, path | PATH);
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
        matches!(self.slots, Slots::Many(_))
    }

    /// Its events, wherever they are, so that they can be read ahead of time; what they say is for nobody else.
    pub fn list(&self) -> &[u32] {
        self.slots.as_slice()
    }

    /// Requests and errors since the second `oldest`, for a window that was not expired lately.
    pub fn since(&self, oldest: u32) -> (u32, u32) {
        if Self::is_before(self.newest, oldest) {
            return (0, 0);
        }
        let span = self.newest.wrapping_sub(oldest);
        let newer = events(self.slots.as_slice()).map(|(_, e, _)| e).filter(|e| e.age(self.newest) <= span);
        newer.fold((0, 0), |(requests, errors), e| {
            (requests + e.count(), errors + if e.kind().is_error() { e.count() } else { 0 })
        })
    }

    /// Heap bytes it holds.
    pub fn heap_bytes(&self) -> usize {
        match &self.slots {
            Slots::Few { .. } => 0,
            Slots::Many(slots) => slots.capacity() * size_of::<u32>(),
        }
    }

    /// All requests and those with status >= 400, counted anew.
    #[cfg(test)]
    fn naive(&self) -> (u32, u32) {
        let count = |f: &dyn Fn(Event) -> bool| {
            events(self.slots.as_slice()).filter(|(_, e, _)| f(*e)).map(|(_, e, _)| e.count()).sum()
        };
        (count(&|_| true), count(&|e| e.kind().is_error()))
    }

    /// Everything as numbers, for the store: per event its second, and flags below its path's hash or, of a merged one,
    /// its number.
    pub fn events(&self) -> Vec<(u32, u32)> {
        events(self.slots.as_slice())
            .map(|(_, event, path)| {
                let word = path.unwrap_or_else(|| event.count());
                (self.newest.wrapping_sub(event.age(self.newest)), word << 8 | event.0 & (CLASS | MERGED | NEWEST))
            })
            .collect()
    }

    /// A window with these events, which must be in the order of their seconds and lie less than 8192 s apart; `None`
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
            let (flags, word) = (bits & (CLASS | MERGED | NEWEST), bits >> 8);
            let event = Event::new(*sec, flags, 0);
            let kind = event.kind();
            let n = if event.is(MERGED) { word } else { 1 };
            window.requests = window.requests.checked_add(n)?;
            window.pages_tenths = window.pages_tenths.checked_add(n.checked_mul(kind.page_tenths())?)?;
            if kind.is_error() {
                window.errors += n;
                window.page_errors += n * u32::from(!kind.is_asset());
            }
            if event.is(NEWEST) {
                window.error_paths_tenths += kind.error_path_tenths();
            }
            if event.is(MERGED) {
                let whole = std::iter::repeat_n(MAX_COUNT, (word / MAX_COUNT) as usize);
                let rest = Some(word % MAX_COUNT).filter(|rest| *rest > 0);
                slots.extend(whole.chain(rest).map(|count| Event::new(*sec, flags, count).0));
            } else {
                window.named = window.named.checked_add(1)?;
                slots.extend([event.0, word | PATH]);
            }
        }
        window.slots = if slots.len() <= INLINE { Slots::few(&slots) } else { Slots::Many(slots) };
        Some(window)
    }
}

#[cfg(test)]
mod tests {
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
                let again = Window::from_events(&window.events()).expect("its own events");
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
    fn survives_the_wrap_of_its_seconds() {
        let mut window = Window::default();
        window.add(u32::MAX - 1, kind(false, 200, false), 0);
        window.add(1, kind(false, 200, false), 0);
        window.expire(u32::MAX);
        assert_eq!(window.requests(), 1);
    }
}
