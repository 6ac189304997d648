//! The detector: what one request adds to its client's evidence, and to what is known of the site.
//!
//! A request is read as four things: *what* it asks for (`path`), *how* it ended (`outcome`), *how alike* its answer is to the
//! client's newest ones (`evidence`), and *where* that is (`routes`). What follows, in one paragraph each:
//!
//! **Load** (`same_answers`): see `weights`. **Large files** (`repeated_megabytes`): the same large answer from the ninth time on.
//!
//! **Scanning** (`unknown_paths`): a failed path counts once. A success on the same path, or on the same name anywhere (the
//! second repository has it), or any write that succeeds takes a failure back. Nothing counts that the site does not have for
//! others either: what clients of two other networks that were ordinary before suffer now, and 5xx on any route that is known.
//! An answer that at least fourteen names got is what nonsense gets here: it counts as a failure, whatever its status.
//! `exploit_paths` counts the names that nobody asks for by accident, whatever the answer.
//!
//! **Guessing** (`repeated_logins`): POSTs to what log-ins and forms are called, or that are denied, unless new pages lie between
//! two of them. `denied_requests`: 401, 407, 429 without success on that route.
//!
//! **Scraping** (`full_minutes`): minutes in a row full of new pages.
//!
//! A client behaves **ordinarily** from its fourth new good answer on, with hardly any failure. Only then do its successes make
//! routes believed, and its minutes teach limits.

use super::codec::{Reader, Writer};
use super::contract::BadState;
use super::evidence::{Evidence, Likeness};
use super::lexicon::Lexicon;
use super::limits::Floors;
use super::ordinary::Ordinary;
use super::outcome::{Method, Outcome};
use super::path::Target;
use super::routes::{CatchAll, Routes};
use super::signals::{Bucket, POINT};
use super::weights::{self, Standing};
use crate::record::Record;

/// Seconds of ordinary behaviour after which a client's failures say something about the site.
const ORDINARY_SECS: u32 = 30;
/// New good answers that are ordinary behaviour ...
const ORDINARY_GOOD: u16 = 4;
/// ... with fewer failures than this.
const ORDINARY_SCAN: i32 = 3 * POINT;
/// Failures of somebody ordinary, from which on others are asked whether they fail too.
const FAILS_AGAIN: u16 = 3;
/// So many denied requests for each good one on a route are still those of somebody who was let in.
const DENIED_PER_GOOD: u32 = 8;
/// Tells a probe of a path from a failure on it, and what is missing from what is led away.
const PROBED: u32 = 0x5555;
const MISSED: u32 = 0x3333;

/// What has been learned of the site and of its ordinary clients.
#[derive(Clone, Debug)]
pub struct Detector {
    lexicon: Lexicon,
    routes: Routes,
    catch_all: CatchAll,
    /// What ordinary clients do.
    pub ordinary: Ordinary,
}

/// One request as it was read.
#[derive(Clone, Copy, Debug)]
pub struct Reading {
    target: Target,
    method: Method,
    outcome: Outcome,
    status: u16,
    size: u64,
}

impl Reading {
    /// The hash of the path as the server takes it.
    pub const fn path(&self) -> u32 {
        self.target.path
    }

    /// A read that went well, of something that nobody guesses or probes for.
    pub const fn is_plain(&self) -> bool {
        let noticed = Target::EXPLOIT
            | Target::SCRIPT
            | Target::CREDENTIAL
            | Target::CREDENTIAL_QUERY
            | Target::PROBING_QUERY
            | Target::QUOTED_QUERY;
        matches!((self.method, self.outcome), (Method::Read, Outcome::Good)) && !self.target.has(noticed)
    }
}

/// When and where from a request came.
#[derive(Clone, Copy, Debug)]
pub struct Moment {
    /// Log time in milliseconds; it never runs backwards.
    pub now_ms: i64,
    /// The client's network, see [`Key::network`](super::key::Key::network).
    pub network: u16,
    /// Length of the window in seconds.
    pub window_secs: u32,
    /// The client's behaviour is learned from.
    pub teaches: bool,
}

/// What follows from a request beside the levels.
#[derive(Clone, Copy, Debug)]
pub struct Observed {
    /// How alike the answer was to those before it.
    pub likeness: Likeness,
    /// The client was ordinary before, or others suffer the same now: the brake spares it.
    pub spared: bool,
}

/// The time of a request in the units that are needed.
#[derive(Clone, Copy)]
struct When {
    now: u32,
    minute: u32,
    day: u16,
    network: u16,
}

/// What is known of the client and of the place of its request.
#[derive(Clone, Copy)]
struct Known {
    likeness: Likeness,
    is_named: bool,
    standing: Standing,
    /// Outcomes of the client on this route.
    own: Option<(u8, u8)>,
    was_ordinary: bool,
    shared: bool,
}

impl Known {
    const fn is_novel(&self) -> bool {
        matches!(self.likeness, Likeness::Novel | Likeness::SamePath)
    }
}

impl Detector {
    /// One that has learned nothing; `seed` is that of the hashes of paths.
    pub fn new(seed: u64) -> Self {
        Self {
            lexicon: Lexicon::new(seed),
            routes: Routes::default(),
            catch_all: CatchAll::default(),
            ordinary: Ordinary::default(),
        }
    }

    /// Hashes paths by another seed: what was learned of routes by the old one says nothing any more.
    pub fn reseed(&mut self, seed: u64) {
        let lexicon = Lexicon::new(seed);
        if lexicon.seed != self.lexicon.seed {
            (self.lexicon, self.routes, self.catch_all) = (lexicon, Routes::default(), CatchAll::default());
        }
    }

    /// The seed of the hashes of paths.
    pub const fn seed(&self) -> u64 {
        self.lexicon.seed
    }

    /// Reads a request.
    pub fn read(&self, record: &Record<'_>) -> Reading {
        let method = Method::of(record.method);
        Reading {
            target: Target::of(record.path, &self.lexicon),
            method,
            outcome: Outcome::of(method, record.method, record.status),
            status: record.status,
            size: record.response_size,
        }
    }

    /// Adds a request to its client's evidence, and to what is known of the site.
    pub fn observe(&mut self, e: &mut Evidence, r: &Reading, at: &Moment, floors: &Floors) -> Observed {
        let now = at.now_ms.div_euclid(1000) as u32;
        let when = When { now, minute: now / 60, day: (now / 86_400) as u16, network: at.network };
        e.advance(at.now_ms, floors.leaks());
        if e.minute.number != when.minute {
            self.end_minute(e, when, at.teaches, floors);
        }
        let likeness = e.note_answer(&r.target, r.size, now / at.window_secs.max(1));
        let target = &r.target;
        let is_named = !target.has(Target::VARIES | Target::ROOT);
        let path_believed = is_named && self.routes.is_believed(target.path);
        let nonsense = r.method == Method::Read
            && is_named
            && (r.status == 200 || r.outcome == Outcome::Redirect)
            && !path_believed
            && !target.has(Target::ASSET)
            && r.size > 0
            && self.catch_all.note(r.status, r.size, target.name, when.minute);
        let since = e.conduct.ordinary_since;
        let was_ordinary = since != 0 && now.wrapping_sub(since) >= ORDINARY_SECS;
        let route = self.routes.entry(target.route, when.minute);
        let shared = route.is_suffering(when.minute, when.network);
        let own = e.on_route(target.route);
        let standing = Standing { path_believed, on_route: own.is_some(), route_believed: route.is_believed() };
        let known = Known { likeness, is_named, standing, own, was_ordinary, shared };
        e.add(Bucket::Same, weights::load(r.method, r.outcome, likeness, r.status, target));
        if let (Likeness::Identical(n), Outcome::Good) = (likeness, r.outcome)
            && r.size >= weights::LARGE
            && n >= weights::LARGE_AGAIN
        {
            // KiB: thousandths of a megabyte, near enough.
            e.add(Bucket::Bytes, i32::try_from(r.size >> 10).unwrap_or(i32::MAX).min(4 << 20));
        }
        Self::probe(e, r, &known);
        match r.outcome {
            Outcome::Good if !nonsense => self.succeed(e, r, &known, when),
            Outcome::Good | Outcome::Redirect | Outcome::Missing | Outcome::Server => self.fail(e, r, &known, when),
            Outcome::Denied => self.deny(e, r, &known, when),
            Outcome::Neutral => {}
        }
        Self::guess(e, r, &known);
        Observed { likeness, spared: was_ordinary || shared }
    }

    /// Ends a client's minute: was it full of pages, and what does it teach?
    fn end_minute(&mut self, e: &mut Evidence, when: When, teaches: bool, floors: &Floors) {
        let over = e.minute;
        if over.number != 0 {
            let step = if over.pages >= weights::FULL_MINUTE { POINT } else { -2 * POINT };
            let idle = when.minute.saturating_sub(over.number.saturating_add(1)).min(100);
            e.add(Bucket::Scrape, step - 2 * POINT * idle as i32);
            if teaches && e.conduct.ordinary_since != 0 && floors.are_above(&over.peaks) {
                self.ordinary.note(over.number, when.network, &over.peaks);
            }
        }
        e.begin_minute(when.minute);
    }

    /// Probes by name, whatever is answered; but what asks for a secret has been there first.
    fn probe(e: &mut Evidence, r: &Reading, known: &Known) {
        let target = &r.target;
        let failed = matches!(r.outcome, Outcome::Missing | Outcome::Server);
        let probing = target.has(Target::PROBING_QUERY) || (target.has(Target::QUOTED_QUERY) && failed);
        let by_name = target.has(Target::EXPLOIT) && !known.standing.path_believed;
        let path = target.path ^ PROBED ^ if probing { target.query } else { 0 };
        if (probing || by_name) && r.outcome != Outcome::Denied && !e.has_failed(path) {
            e.add(Bucket::Exploit, POINT);
            if r.outcome != Outcome::Good {
                e.add(Bucket::Scan, POINT);
            }
            e.remember_failure(path, 0, 0);
        }
    }

    fn succeed(&mut self, e: &mut Evidence, r: &Reading, known: &Known, when: When) {
        let target = &r.target;
        let posts_to_script = r.method == Method::Post && target.has(Target::SCRIPT);
        if !posts_to_script {
            e.redeem(target);
        }
        if r.method == Method::Write || (r.method == Method::Post && matches!(r.status, 201 | 202)) {
            e.redeem_one();
        }
        // POSTs to ever new scripts: web shells are asked for so, and a site may answer 200 to all of them.
        if posts_to_script && !known.standing.path_believed && !e.has_failed(target.path) {
            e.fail(target.path, target.name, 700, false, when.now);
        }
        if known.is_novel() && !target.has(Target::EXPLOIT | Target::PROBING_QUERY) {
            e.conduct.good = e.conduct.good.saturating_add(1);
            e.conduct.since_login = e.conduct.since_login.saturating_add(1);
            e.redeem_denied();
        }
        e.note_outcome(target.route, true);
        let no_probes = e.level(Bucket::Exploit) < POINT;
        let hardly_fails = e.level(Bucket::Scan) < ORDINARY_SCAN && no_probes;
        if e.conduct.good >= ORDINARY_GOOD && hardly_fails && e.conduct.ordinary_since == 0 {
            e.conduct.ordinary_since = when.now;
        }
        if e.conduct.ordinary_since != 0 && no_probes {
            self.routes.entry(target.route, when.minute).succeed(when.network, when.day);
            if known.is_named {
                self.routes.entry(target.path, when.minute).succeed(when.network, when.day);
            }
        }
        // One resource that answers differently each time is no new page, unless it is asked for another one by its query.
        let is_new = known.likeness == Likeness::Novel || (known.is_novel() && target.query != 0);
        if r.method == Method::Read && !target.has(Target::ASSET | Target::DAV) && is_new {
            e.minute.pages = e.minute.pages.saturating_add(1);
        }
    }

    fn fail(&mut self, e: &mut Evidence, r: &Reading, known: &Known, when: When) {
        let target = &r.target;
        let (missing, redirect) = (r.outcome == Outcome::Missing, r.outcome == Outcome::Redirect);
        if known.was_ordinary && e.conduct.bad >= FAILS_AGAIN && missing {
            self.routes.entry(target.route, when.minute).suffer(when.minute, when.network);
        }
        // What is led away first and missing then is one more failure.
        let path = if missing { target.path ^ MISSED } else { target.path };
        let weight = weights::failure(r.method, r.outcome, target, known.standing);
        let soft = r.outcome == Outcome::Server || weight < weights::HARD;
        if weight > 0 && !e.has_failed(path) && (!known.shared || redirect) {
            e.fail(path, target.name, weight, soft, when.now);
        }
        if known.was_ordinary && redirect && known.is_named {
            self.routes.entry(target.path, when.minute).succeed(when.network, when.day);
        }
        if missing {
            e.note_outcome(target.route, false);
        }
        // A form that leads away again and again: spam, or a log-in that nobody calls so.
        let form = r.method == Method::Post && !target.has(Target::CREDENTIAL);
        if redirect && form && matches!(known.likeness, Likeness::Identical(_)) {
            e.add(Bucket::Guess, 250);
        }
    }

    fn deny(&mut self, e: &mut Evidence, r: &Reading, known: &Known, when: When) {
        // A challenge that is answered is no suffering.
        if known.was_ordinary && known.own.is_some_and(|(_, bad)| u16::from(bad) >= FAILS_AGAIN) {
            self.routes.entry(r.target.route, when.minute).suffer(when.minute, when.network);
        }
        let let_in = |(good, bad): (u8, u8)| good > 0 && u32::from(bad) < DENIED_PER_GOOD * u32::from(good);
        if !known.shared && r.method != Method::Post && !known.own.is_some_and(let_in) {
            let again = matches!(known.likeness, Likeness::Identical(_) | Likeness::SamePath);
            let (weight, most) = match (again, known.was_ordinary, e.conduct.good > 0) {
                (true, true, _) => (300, weights::SAME_DENIED_PER_SPAN),
                (true, false, _) => (600, weights::SAME_DENIED_PER_SPAN),
                (false, _, true) => (200, weights::DENIED_PER_SPAN),
                (false, _, false) => (500, weights::DENIED_PER_SPAN),
            };
            e.deny(weight, most, when.now);
        }
        e.note_outcome(r.target.route, false);
    }

    fn guess(e: &mut Evidence, r: &Reading, known: &Known) {
        let target = &r.target;
        let by_query = target.has(Target::CREDENTIAL_QUERY);
        let is_guess = match r.method {
            Method::Post => target.has(Target::CREDENTIAL) || (r.outcome == Outcome::Denied && !known.shared),
            Method::Read => by_query || (target.has(Target::CREDENTIAL) && target.query != 0 && !known.is_novel()),
            _ => false,
        };
        if is_guess {
            let weight = if e.conduct.since_login >= weights::BETWEEN_LOGINS { POINT / 5 } else { POINT };
            let weight = if r.method == Method::Read && !by_query { weight / 2 } else { weight };
            e.conduct.since_login = 0;
            e.add(Bucket::Guess, weight);
        }
    }

    /// Writes down what was learned of routes.
    pub fn save_routes(&self, w: &mut Writer) {
        w.uint(self.lexicon.seed);
        self.catch_all.save(w);
        self.routes.save(w);
    }

    /// Reads what [`Detector::save_routes`] wrote.
    ///
    /// # Errors
    /// [`BadState`] where it is something else.
    pub fn load_routes(&mut self, r: &mut Reader<'_>) -> Result<(), BadState> {
        let lexicon = Lexicon::new(r.uint()?);
        let (catch_all, routes) = (CatchAll::load(r)?, Routes::load(r)?);
        (self.lexicon, self.catch_all, self.routes) = (lexicon, catch_all, routes);
        Ok(())
    }
}
