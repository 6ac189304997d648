//! What one client did, in constant memory: levels of its signals, its newest answers, its newest failures, the routes it uses.
//!
//! It only counts; what a request weighs is for `detector`, what a level means for `limits`. Times are log time and never run
//! backwards in here.
//!
//! **Likeness of answers.** Of a client's newest answers the heavy hitters are kept (Misra and Gries: one that is new wears a
//! resident down instead of taking its place), so that a cycle through more pages than there are places is a repetition too.
//! What is new for a client weighs next to nothing, so the first load of a page, a gallery, a sync or a video is no load,
//! whatever the site has learned; the same answer again and again is.

use super::codec::{Reader, Writer};
use super::contract::BadState;
use super::lexicon::PRIME;
use super::path::Target;
use super::signals::{Bucket, POINT, SIGNALS};

/// Answers that are remembered. A flood has few different ones; a page of a person has more, each once.
const ANSWERS: usize = 8;
/// Failed paths that are remembered: phones ask for the same ten icons again and again.
const FAILED: usize = 12;
/// Routes whose outcomes are remembered for a client.
const ROUTES: usize = 6;
/// Seconds after which the counts of good and bad requests count half.
const HALF_LIFE: u32 = 64;
/// Seconds of a span: a page fires its broken calls at once, a tool goes on.
const SPAN: u32 = 10;
/// What soft failures of a span add at most.
const SOFT_PER_SPAN: u16 = 7000;
/// Answers of one path are alike within so many bytes (or a 64th): a nonce, a date, a name.
const NEAR_BYTES: u32 = 48;
/// Sizes are kept exactly below this; larger ones as a hash of 23 bits, so that large files of any size differ.
const EXACT: u32 = 1 << 23;
/// What a size is kept as fits into 24 bits.
const MAX_SIZE: u32 = 0xff_ffff;

/// A size as it is kept.
const fn kept(size: u64) -> u32 {
    if size < EXACT as u64 { size as u32 } else { EXACT | (size.wrapping_mul(PRIME) >> 41) as u32 }
}

/// Whether two sizes, as they are kept, are those of one answer that varies a little.
fn near(a: u32, b: u32) -> bool {
    a == b || (a < EXACT && b < EXACT && a.abs_diff(b) <= (a / 64).max(NEAR_BYTES))
}

/// An answer seen lately: its path, its route, its size in 24 bits, and how often.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
struct Answer {
    path: u16,
    route: u16,
    size_low: u16,
    size_high: u8,
    /// 0 where the place is free or worn down.
    count: u8,
}

impl Answer {
    const fn size(self) -> u32 {
        (self.size_high as u32) << 16 | self.size_low as u32
    }

    const fn set_size(&mut self, size: u32) {
        (self.size_low, self.size_high) = (size as u16, (size >> 16) as u8);
    }

    fn is_used(self) -> bool {
        self != Self::default()
    }
}

/// A path that failed lately, and what that has added.
#[derive(Clone, Copy, Debug, Default)]
struct Failure {
    path: u16,
    name: u16,
    /// 0 where the place is free.
    weight: u16,
}

/// Outcomes on a route.
#[derive(Clone, Copy, Debug, Default)]
struct Outcomes {
    route: u16,
    good: u8,
    bad: u8,
}

/// How much was added in the present span.
#[derive(Clone, Copy, Debug, Default)]
struct Span {
    since: u32,
    added: u16,
}

impl Span {
    /// What of `weight` may be added, with `most` in a span.
    fn take(&mut self, weight: i32, most: u16, now: u32) -> i32 {
        if now.wrapping_sub(self.since) >= SPAN {
            (self.since, self.added) = (now, 0);
        }
        let weight = weight.min(i32::from(most.saturating_sub(self.added))).max(0);
        self.added = self.added.saturating_add(u16::try_from(weight).unwrap_or(u16::MAX));
        weight
    }
}

/// How alike an answer is to those before it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Likeness {
    /// There was nothing like it lately.
    Novel,
    /// The same resource, with another answer.
    SamePath,
    /// Another resource of the same route, with an answer of exactly this size: how many times so far.
    SameSize(u8),
    /// The same resource with the same answer: how many times so far.
    Identical(u8),
}

/// What a client has shown to be.
#[derive(Clone, Copy, Debug, Default)]
pub struct Conduct {
    /// New good answers; halved every [`HALF_LIFE`] seconds.
    pub good: u16,
    /// Distinct failures; halved alike.
    pub bad: u16,
    halved: u32,
    /// New good answers since the last log-in.
    pub since_login: u8,
    /// The second since when it has behaved ordinarily; 0 where it has not.
    pub ordinary_since: u32,
}

/// What a client did in its present minute.
#[derive(Clone, Copy, Debug, Default)]
pub struct Minute {
    /// Which minute of the epoch; 0 before the first.
    pub number: u32,
    /// New pages.
    pub pages: u16,
    /// The highest level of each signal, in points.
    pub peaks: [u16; SIGNALS],
}

/// One client's evidence.
#[derive(Clone, Debug, Default)]
pub struct Evidence {
    /// Levels in thousandths of a point, as of `at`.
    levels: [i32; SIGNALS],
    /// Log time of the levels in milliseconds, wrapped.
    at: u32,
    answers: [Answer; ANSWERS],
    /// Counts the answers that were new, and the place of the next failure.
    hands: [u8; 2],
    failed: [Failure; FAILED],
    routes: [Outcomes; ROUTES],
    soft: Span,
    denied: Span,
    /// Requests that were like none before, in this span of a window and in the one before.
    novel: [u32; 2],
    novel_span: u32,
    /// What it has shown to be.
    pub conduct: Conduct,
    /// What it does in this minute.
    pub minute: Minute,
}

const fn short(hash: u32) -> u16 {
    hash as u16
}

impl Evidence {
    /// Of a client that has done nothing but ask for `good` things and get them.
    pub fn new(now_ms: i64, good: u16) -> Self {
        let halved = seconds(now_ms);
        Self { at: now_ms as u32, conduct: Conduct { halved, good, ..Conduct::default() }, ..Self::default() }
    }

    /// The level of a signal, in thousandths of a point.
    pub const fn level(&self, bucket: Bucket) -> i32 {
        self.levels[bucket.place()]
    }

    /// The levels of all signals.
    pub const fn levels(&self) -> &[i32; SIGNALS] {
        &self.levels
    }

    /// Lets time pass; `leaks` are what a second takes out of each level.
    pub fn advance(&mut self, now_ms: i64, leaks: &[i32; SIGNALS]) {
        let elapsed = (now_ms as u32).wrapping_sub(self.at) as i32;
        if elapsed > 0 {
            self.at = now_ms as u32;
            for (level, leak) in self.levels.iter_mut().zip(leaks) {
                if *level > 0 && *leak > 0 {
                    let gone = i64::from(elapsed) * i64::from(*leak) / 1000;
                    *level = i64::from(*level).saturating_sub(gone).max(0) as i32;
                }
            }
        }
        let halves = seconds(now_ms).saturating_sub(self.conduct.halved) / HALF_LIFE;
        if halves > 0 {
            self.conduct.halved += halves * HALF_LIFE;
            self.conduct.good = self.conduct.good.checked_shr(halves).unwrap_or(0);
            self.conduct.bad = self.conduct.bad.checked_shr(halves).unwrap_or(0);
            for answer in &mut self.answers {
                answer.count = answer.count.checked_shr(halves).unwrap_or(0);
            }
        }
    }

    /// Raises (or lowers) a level.
    pub fn add(&mut self, bucket: Bucket, amount: i32) {
        let level = &mut self.levels[bucket.place()];
        *level = level.saturating_add(amount).max(0);
        let points = u16::try_from(*level / POINT).unwrap_or(u16::MAX);
        let peak = &mut self.minute.peaks[bucket.place()];
        *peak = (*peak).max(points);
    }

    /// Begins another minute, whose highest levels are the present ones.
    pub fn begin_minute(&mut self, number: u32) {
        let peaks = self.levels.map(|level| u16::try_from(level / POINT).unwrap_or(u16::MAX));
        self.minute = Minute { number, pages: 0, peaks };
    }

    /// Notes an answer in the window `span` (the number of it since the epoch), and says how alike it is to those before.
    pub fn note_answer(&mut self, target: &Target, size: u64, span: u32) -> Likeness {
        let likeness = self.compare(target, size);
        if span != self.novel_span {
            self.novel = [0, if span == self.novel_span.wrapping_add(1) { self.novel[0] } else { 0 }];
            self.novel_span = span;
        }
        self.novel[0] = self.novel[0].saturating_add(u32::from(likeness == Likeness::Novel));
        likeness
    }

    /// No more of the newest window's requests than this were like none before.
    pub const fn novel(&self) -> u32 {
        self.novel[0].saturating_add(self.novel[1])
    }

    fn compare(&mut self, target: &Target, size: u64) -> Likeness {
        let (path, route) = (short(target.path), short(target.route));
        let size = kept(size);
        // Behind a script everything may vary but the page.
        let info = target.has(Target::PATH_INFO) && !target.has(Target::DAV);
        let is_path = |a: &Answer| a.path == path && a.route == route && a.is_used();
        let is_size = |a: &Answer| {
            a.route == route && size > 0 && (a.size() == size || (info && near(a.size(), size))) && a.is_used()
        };
        let (at, likeness) = if let Some(at) = self.answers.iter().position(is_path) {
            let answer = self.answers[at];
            (at, if near(answer.size(), size) { Likeness::Identical(answer.count) } else { Likeness::SamePath })
        } else if let Some(at) = self.answers.iter().position(is_size) {
            (at, Likeness::SameSize(self.answers[at].count))
        } else {
            // Which place cannot be foretold, so that a cycle longer than the list finds some of it there again.
            let hand = usize::from(u16::from(self.hands[0]).wrapping_add(path)) % ANSWERS;
            let hand = self.answers.iter().position(|a| !a.is_used()).unwrap_or(hand);
            self.hands[0] = self.hands[0].wrapping_add(1);
            let old = &mut self.answers[hand];
            if old.count > 1 {
                old.count -= 1;
            } else {
                *old = Answer { path, route, count: 1, ..Answer::default() };
                old.set_size(size);
            }
            return Likeness::Novel;
        };
        let answer = &mut self.answers[at];
        answer.count = answer.count.saturating_add(1);
        answer.set_size(size);
        likeness
    }

    /// Whether it has met this route lately, and how often it went well and badly there.
    pub fn on_route(&self, route: u32) -> Option<(u8, u8)> {
        self.routes.iter().find(|r| r.route == short(route) && r.good | r.bad != 0).map(|r| (r.good, r.bad))
    }

    /// Notes how it went on a route; the route used longest ago gives way.
    pub fn note_outcome(&mut self, route: u32, good: bool) {
        let route = short(route);
        match self.routes.iter().position(|r| r.route == route && r.good | r.bad != 0) {
            Some(at) => self.routes[..=at].rotate_right(1),
            None => {
                self.routes.rotate_right(1);
                self.routes[0] = Outcomes { route, good: 0, bad: 0 };
            }
        }
        let newest = &mut self.routes[0];
        if good {
            newest.good = newest.good.saturating_add(1).min(20);
        } else {
            newest.bad = newest.bad.saturating_add(1);
        }
    }

    /// Whether it has failed on this path lately.
    pub fn has_failed(&self, path: u32) -> bool {
        self.failed.iter().any(|f| f.path == short(path) && f.weight != 0)
    }

    /// Remembers a failure on a path that is called `name`, and counts it. A soft one is one of a page's.
    pub fn fail(&mut self, path: u32, name: u32, weight: i32, soft: bool, now: u32) {
        self.conduct.bad = self.conduct.bad.saturating_add(1);
        let weight = if soft { self.soft.take(weight, SOFT_PER_SPAN, now) } else { weight };
        self.remember_failure(path, name, weight);
        self.add(Bucket::Scan, weight);
    }

    /// Remembers that a path was asked for, as [`Evidence::has_failed`] answers.
    pub fn remember_failure(&mut self, path: u32, name: u32, weight: i32) {
        let place = usize::from(self.hands[1]) % FAILED;
        self.hands[1] = (self.hands[1] + 1) % FAILED as u8;
        let weight = u16::try_from(weight).unwrap_or(u16::MAX).max(1);
        self.failed[place] = Failure { path: short(path), name: short(name), weight };
    }

    /// A success gives back what a failure on the same path or of the same name has added.
    pub fn redeem(&mut self, target: &Target) {
        let (path, name) = (short(target.path), short(target.name));
        let failed = self.failed.iter_mut().find(|f| f.weight != 0 && (f.path == path || f.name == name));
        let weight = failed.map(|f| std::mem::take(&mut f.weight));
        self.give_back(weight);
    }

    /// A write that succeeded gives back one failure: it was asked whether something is there before it was put there.
    pub fn redeem_one(&mut self) {
        let failed = self.failed.iter_mut().find(|f| f.weight != 0);
        let weight = failed.map(|f| std::mem::take(&mut f.weight));
        self.give_back(weight);
    }

    fn give_back(&mut self, weight: Option<u16>) {
        if let Some(weight) = weight {
            self.add(Bucket::Scan, -i32::from(weight));
            self.conduct.bad = self.conduct.bad.saturating_sub(1);
        }
    }

    /// Counts a request that was denied, of which a span adds at most `most`.
    pub fn deny(&mut self, weight: i32, most: u16, now: u32) {
        let weight = self.denied.take(weight, most, now);
        self.add(Bucket::Denied, weight);
    }

    /// Something new that went well: two points of what was denied are forgiven.
    pub fn redeem_denied(&mut self) {
        self.add(Bucket::Denied, -2 * POINT);
    }
}

/// Seconds of the epoch, wrapped.
const fn seconds(ms: i64) -> u32 {
    ms.div_euclid(1000) as u32
}

impl Evidence {
    /// Writes it down.
    pub fn save(&self, w: &mut Writer) {
        self.levels.iter().for_each(|level| w.int((*level).into()));
        w.uint(self.at.into());
        for a in &self.answers {
            [a.path, a.route].into_iter().for_each(|v| w.uint(v.into()));
            w.uint(a.size().into());
            w.uint(a.count.into());
        }
        w.raw(&self.hands);
        for f in &self.failed {
            [f.path, f.name, f.weight].into_iter().for_each(|v| w.uint(v.into()));
        }
        for r in &self.routes {
            w.uint(r.route.into());
            w.raw(&[r.good, r.bad]);
        }
        for span in [self.soft, self.denied] {
            w.uint(span.since.into());
            w.uint(span.added.into());
        }
        for v in [self.novel[0], self.novel[1], self.novel_span] {
            w.uint(v.into());
        }
        let c = &self.conduct;
        for v in [c.good.into(), c.bad.into(), c.halved, c.since_login.into(), c.ordinary_since] {
            w.uint(v.into());
        }
        w.uint(self.minute.number.into());
        w.uint(self.minute.pages.into());
        self.minute.peaks.iter().for_each(|peak| w.uint((*peak).into()));
    }

    /// Reads what [`Evidence::save`] wrote.
    ///
    /// # Errors
    /// [`BadState`] where it is something else.
    pub fn load(r: &mut Reader<'_>) -> Result<Self, BadState> {
        let mut e = Self::default();
        for level in &mut e.levels {
            *level = i32::try_from(r.int()?).map_err(|_| BadState)?;
        }
        e.at = r.small()?;
        for a in &mut e.answers {
            (a.path, a.route) = (r.small()?, r.small()?);
            let size: u32 = r.small()?;
            if size > MAX_SIZE {
                return Err(BadState);
            }
            a.set_size(size);
            a.count = r.small()?;
        }
        e.hands.copy_from_slice(r.raw(2)?);
        for f in &mut e.failed {
            (f.path, f.name, f.weight) = (r.small()?, r.small()?, r.small()?);
        }
        for route in &mut e.routes {
            route.route = r.small()?;
            let counts = r.raw(2)?;
            (route.good, route.bad) = (counts[0], counts[1]);
        }
        for span in [&mut e.soft, &mut e.denied] {
            (span.since, span.added) = (r.small()?, r.small()?);
        }
        (e.novel, e.novel_span) = ([r.small()?, r.small()?], r.small()?);
        let c = &mut e.conduct;
        (c.good, c.bad, c.halved) = (r.small()?, r.small()?, r.small()?);
        (c.since_login, c.ordinary_since) = (r.small()?, r.small()?);
        (e.minute.number, e.minute.pages) = (r.small()?, r.small()?);
        for peak in &mut e.minute.peaks {
            *peak = r.small()?;
        }
        if usize::from(e.hands[1]) >= FAILED { Err(BadState) } else { Ok(e) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::lexicon::Lexicon;
    use crate::signals::TABLE;

    const LEAKS: [i32; SIGNALS] = [4500, 80, 20, 50, 150, 250, 0];

    fn target(path: &str) -> Target {
        Target::of(path.as_bytes(), &Lexicon::new(1))
    }

    #[test]
    fn a_cycle_longer_than_what_is_remembered_is_a_repetition_too() {
        let mut e = Evidence::new(0, 0);
        let mut alike = 0;
        for i in 0..400 {
            let likeness = e.note_answer(&target(&format!("/page-{}", i % 11)), 1000 + i % 11 * 700, 0);
            alike += u32::from(matches!(likeness, Likeness::Identical(_)));
        }
        assert!(alike > 100, "{alike} of 400");
        let mut e = Evidence::new(0, 0);
        assert!((0..400).all(|i| {
            let likeness = e.note_answer(&target(&format!("/files/{i}.bin")), 1000 + i * 77, 0);
            likeness == Likeness::Novel
        }));
    }

    #[test]
    fn a_query_and_a_few_bytes_hide_no_repetition() {
        let mut e = Evidence::new(0, 0);
        e.note_answer(&target("/search?q=a"), 5000, 0);
        for (path, size) in [("/search?q=b", 5000), ("//search?q=c", 5040), ("/./search", 5070), ("/%73earch;x", 5100)]
        {
            assert!(matches!(e.note_answer(&target(path), size, 0), Likeness::Identical(_)), "{path}");
        }
        assert_eq!(e.note_answer(&target("/search?q=d"), 9000, 0), Likeness::SamePath);
    }

    #[test]
    fn large_files_of_other_sizes_are_other_answers() {
        let mut e = Evidence::new(0, 0);
        for n in 0..100u64 {
            let t = target(&format!("/files/{n}.iso"));
            assert_eq!(e.note_answer(&t, (n + 9) << 24, 0), Likeness::Novel, "{n}");
        }
        let t = target("/files/again.iso");
        assert_eq!(e.note_answer(&t, 5_000_000_000, 0), Likeness::Novel);
        for _ in 0..9 {
            e.note_answer(&t, 5_000_000_000, 0);
        }
        assert!(matches!(e.note_answer(&t, 5_000_000_000, 0), Likeness::Identical(_)));
    }

    #[test]
    fn levels_leak_and_never_below_zero_nor_backwards() {
        let mut e = Evidence::new(10_000, 0);
        e.add(Bucket::Same, 9 * POINT);
        e.advance(11_000, &LEAKS);
        assert_eq!(e.level(Bucket::Same), 4500);
        e.advance(5_000, &LEAKS);
        assert_eq!(e.level(Bucket::Same), 4500, "log time that runs backwards gives nothing back");
        e.advance(60_000, &LEAKS);
        assert_eq!(e.level(Bucket::Same), 0);
        e.add(Bucket::Scrape, POINT);
        e.advance(999_000, &LEAKS);
        assert_eq!(e.level(Bucket::Scrape), POINT, "minutes do not leak");
        assert!(TABLE.iter().zip(LEAKS).all(|(row, leak)| row.leak == leak));
    }

    #[test]
    fn success_takes_a_failure_back() {
        let mut e = Evidence::new(0, 0);
        e.fail(target("/a/lib.jar").path, target("/a/lib.jar").name, POINT, false, 0);
        assert!(e.has_failed(target("/a/lib.jar").path));
        // The same name in another repository.
        e.redeem(&target("/b/lib.jar"));
        assert_eq!((e.level(Bucket::Scan), e.conduct.bad), (0, 0));
        assert!(!e.has_failed(target("/a/lib.jar").path));
    }

    #[test]
    fn a_page_fires_its_broken_calls_at_once_and_a_tool_goes_on() {
        let mut page = Evidence::new(0, 0);
        (0..60).for_each(|i| page.fail(i * 7, i, 350, true, 100));
        assert_eq!(page.level(Bucket::Scan), i32::from(SOFT_PER_SPAN));
        let mut tool = Evidence::new(0, 0);
        (0..60).for_each(|i| tool.fail(i * 7, i, 350, true, 100 + i));
        assert_eq!(tool.level(Bucket::Scan), 60 * 350);
    }

    #[test]
    fn a_client_with_evidence_costs_little_more() {
        assert!(size_of::<Evidence>() <= 280, "{} bytes", size_of::<Evidence>());
    }

    #[test]
    fn survives_the_store() {
        let mut e = Evidence::new(1_777_000_000_123, 2);
        for i in 0..50u32 {
            let t = target(&format!("/x{i}/y"));
            e.advance(1_777_000_000_123 + i64::from(i) * 700, &LEAKS);
            e.note_answer(&t, u64::from(i) * 1_000_000, i / 10);
            e.note_outcome(t.route, i % 3 == 0);
            e.fail(t.path, t.name, 350, true, i);
            e.deny(600, 14_000, i);
            e.begin_minute(i);
        }
        let mut w = Writer::new(1);
        e.save(&mut w);
        let bytes = w.finish();
        let again = Evidence::load(&mut Reader::new(&bytes, 1).expect("its version")).expect("its own bytes");
        assert_eq!(format!("{again:?}"), format!("{e:?}"));
    }
}
