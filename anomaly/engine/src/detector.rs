//! The rules: which figures of a client's window are anomalous.
//!
//! Every signal has a floor that hardly any honest client reaches, and a limit learned from the population that may
//! raise it, never lower it. More requests of any kind never make a client less suspicious.
//!
//! # Choice of scale and estimator
//!
//! Client activity is heavy-tailed, so a mean and a sigma do not describe its tail. On log scale, the honest clients of
//! five real logs (one sample per client and minute, the highest 60 s window in it) look like this, while their means
//! are between 1.5 and 3.6 page requests.
//!
//! | honest client-minutes | pages: half | 99 % | 99.9 % | most | distinct 4xx paths: 99.9 % | most | POSTs to one path: 99 % | 99.9 % | most |
//! |---|---|---|---|---|---|---|---|---|---|
//! | a venue's site (111,671) | 1 | 11 | 43 | 109 | 3 | 16 | 5 | 10 | 80 |
//! | Joomla (52,305) | 4 | 8 | 17 | 85 | 4 | 9 | 3 | 3 | 13 |
//! | WordPress (101,719) | 1 | 9 | 29 | 77 | 4 | 9 | 1 | 2 | 61 |
//! | API of a mobile app (152,618) | 2 | 14 | 61 | 300 | 1 | 5 | 8 | 38 | 216 |
//! | a viral quiz (11,346) | 3 | 14 | 60 | 176 | 1 | 4 | 0 | 0 | 4 |
//!
//! So the limit is a far quantile, carried on along a Pareto tail from the quantile that one sample in a hundred exceeds
//! (Weissman's estimator, see `population`), times a headroom. One in a hundred, not fewer: a handful of attackers
//! that stay below the limits must not move it. The z-score is one on this log scale.
//!
//! Three things tell people from attackers better than any single rate:
//!
//! - **Time.** People come in bursts: in those logs nobody makes more than 80 page requests beyond 4.5 a second, over
//!   any span (a leaky bucket's level; one client of 88,000 comes close), although one makes 300 in a minute. 8 req/s from
//!   a flood pass that line in 23 s.
//! - **Assets.** A client that loads assets is a browser. Such a client may meet twice as many missing paths, and may POST to
//!   one path eight times as often: web applications do that, tools that try passwords load no assets.
//! - **Distinctness.** A scanner asks for ever new paths that do not exist; phones ask for the same ten icons.

use super::codec::{Reader, Writer};
use super::contract::{BadState, Rule, Signal};
use super::population::{Measure, Population, Tail};
use super::settings::Settings;
use super::signals::Kind;
use super::window::Window;

/// Floor of distinct paths answered 4xx in the window, in tenths: more than nine (CrowdSec's http-probing: ten).
const ERROR_PATHS_FLOOR: u32 = 91;
/// Floor of POSTs to one path in the window.
const POSTS_FLOOR: u32 = 13;
/// Good assets in the window that make a browser of a client.
const BROWSER_ASSETS: u32 = 12;
/// A browser's floors are this many times as high: people work in web applications that POST to one path all day, and
/// meet galleries full of broken links. Tools that try passwords or paths load no assets.
const BROWSER_POSTS: u32 = 8;
const BROWSER_ERROR_PATHS: u32 = 2;
/// Page requests (tenths) within a second that make a client a fast one.
const FAST_PAGES: u32 = 80;
/// A burst of this many times `min_requests` pages is tolerated at once ...
const BURST: f64 = 4.0 / 3.0;
/// ... and this many per second on top, as long as it lasts, again in units of `min_requests`.
const LEAK: f64 = 0.075;
/// Errors that mean something, for the words "error surge".
const SURGE_ERRORS: u32 = 10;

/// How far beyond the population's far tail a signal's limit lies, and the tail index (of a Pareto tail) that is
/// assumed while little has been seen.
struct Margin {
    headroom: f64,
    far: f64,
    prior: f64,
}

const PAGES: Margin = Margin { headroom: 1.5, far: 1e-3, prior: 0.25 };
const ERROR_PATHS: Margin = Margin { headroom: 2.0, far: 1e-3, prior: 0.0 };
const POSTS: Margin = Margin { headroom: 2.7, far: 1e-4, prior: 0.68 };
const PAGE_ERRORS: Margin = Margin { headroom: 2.5, far: 1e-3, prior: 0.0 };

/// A limit and the rule it is from.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Limit {
    /// At this value it is reached. Tenths for pages and error paths.
    pub value: u32,
    /// Which rule says so.
    pub rule: Rule,
}

/// The limits of a client without a history, as of the last recalculation.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Limits {
    /// Weighted page requests (tenths) in a moment ...
    burst: u32,
    /// ... and in each second of the span on top.
    leak: u32,
    pages_rule: Rule,
    error_paths: Limit,
    posts: Limit,
    page_errors: Limit,
    hard: u32,
    span: u32,
}

/// What was found in a window.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Verdict {
    /// The rule that fired.
    pub rule: Rule,
    /// What it fired for; `None` for the hard limit.
    pub signal: Option<Signal>,
    /// The signal's value.
    pub value: f64,
    /// The limit it has reached.
    pub limit: f64,
    /// How many times the limit it is.
    pub excess: f64,
}

impl Limits {
    /// The limits that follow from what has been learned.
    pub fn new(population: &Population, error_rate: f64, s: &Settings) -> Self {
        let floor = f64::from(s.min_requests);
        let span = f64::from(s.window_secs);
        let profile = floor * (BURST + LEAK * span);
        let learned = |measure, margin: &Margin, z| {
            let tail = population.tail(measure, margin.far, margin.prior);
            learned(&tail, margin.headroom, z, s)
        };
        let (pages, pages_rule) = learned(Measure::Pages, &PAGES, s.z_score);
        let scale = (pages / profile).max(1.0);
        let limit = |floor: f64, (value, rule): (f64, Rule), unit: f64| Limit {
            value: (floor.max(value) * unit).ceil().min(f64::from(u32::MAX)) as u32,
            rule,
        };
        // Error answers are judged by the tightened thresholds, and from a lower floor: as much lower as they are.
        let surge_floor = floor
            * (s.tightened_rate_multiplier / s.rate_multiplier.max(1e-9))
                .min(1.0)
                .max(s.error_surge_multiplier * error_rate);
        Self {
            burst: (floor * BURST * scale * 10.0).ceil() as u32,
            leak: (floor * LEAK * scale * 10.0).ceil() as u32,
            pages_rule,
            error_paths: limit(
                f64::from(ERROR_PATHS_FLOOR) / 10.0,
                learned(Measure::ErrorPaths, &ERROR_PATHS, s.z_score),
                10.0,
            ),
            posts: limit(f64::from(POSTS_FLOOR), learned(Measure::Posts, &POSTS, s.z_score), 1.0),
            page_errors: limit(surge_floor, learned(Measure::PageErrors, &PAGE_ERRORS, s.tightened_z_score), 1.0),
            hard: s.hard_limit,
            span: s.window_secs,
        }
    }

    /// Weighted page requests (tenths) in a whole window at which a client without a history is anomalous.
    pub const fn pages_per_window(&self) -> u32 {
        self.burst.saturating_add(self.leak.saturating_mul(self.span))
    }

    /// True where a window is worth keeping evidence of: half-way to a limit.
    pub fn is_suspicious(&self, window: &Window, posts: u32) -> bool {
        window.requests() > self.hard / 2
            || window.pages_tenths() * 2 >= self.burst
            || window.error_paths_tenths() * 2 >= self.error_paths.value
            || window.page_errors() * 2 >= self.page_errors.value
            || posts * 2 >= self.posts.value
    }

    /// Whether a client whose newest request is of the second `now` makes them so fast that milliseconds count.
    pub fn is_fast(window: &Window, now: u32) -> bool {
        window.pages_back(now).next().is_some_and(|(span, tenths)| span == 1 && tenths >= FAST_PAGES)
    }

    /// Whether a window is one that only a browser has.
    pub const fn shows_browser(window: &Window) -> bool {
        window.good_assets() >= BROWSER_ASSETS
    }

    /// Only the hard limit.
    pub fn judge_hard(&self, window: &Window) -> Option<Verdict> {
        let (value, limit) = (f64::from(window.requests()), f64::from(self.hard));
        (value > limit).then_some(Verdict { rule: Rule::HardLimit, signal: None, value, limit, excess: f64::INFINITY })
    }

    /// Judges a window after a request of the class `kind` in the second `now`, the `posts`th POST to its path.
    /// `browser` says that the client has shown to be one. `own` is the limit (tenths of page requests a window) that the client's own history gives it.
    pub fn judge(&self, window: &Window, kind: Kind, posts: u32, now: u32, browser: bool, own: u32) -> Option<Verdict> {
        if let Some(verdict) = self.judge_hard(window) {
            return Some(verdict);
        }
        let raised = |limit: Limit, floor: u32| {
            if browser { Limit { value: limit.value.max(floor), ..limit } } else { limit }
        };
        let error_paths = raised(self.error_paths, ERROR_PATHS_FLOOR * BROWSER_ERROR_PATHS);
        let max_posts = raised(self.posts, POSTS_FLOOR * BROWSER_POSTS);
        let reached = |signal, value: u32, limit: Limit, unit: f64| {
            (value >= limit.value).then(|| Verdict {
                rule: limit.rule,
                signal: Some(signal),
                value: f64::from(value) / unit,
                limit: f64::from(limit.value) / unit,
                excess: f64::from(value) / f64::from(limit.value.max(1)),
            })
        };
        if kind.is_client_error()
            && let Some(v) = reached(Signal::ErrorPaths, window.error_paths_tenths(), error_paths, 10.0)
        {
            return Some(v);
        }
        if kind.is_post()
            && let Some(v) = reached(Signal::PostsToOnePath, posts, max_posts, 1.0)
        {
            return Some(v);
        }
        if kind.is_error()
            && let Some(v) = reached(Signal::Errors, window.page_errors(), self.page_errors, 1.0)
        {
            return Some(v);
        }
        if window.pages_tenths() < self.burst { None } else { self.judge_pages(window, now, own) }
    }

    /// Page requests over every span up to the window: `burst + leak * span` is what a leaky bucket lets through. It
    /// tells a person who clicks through an application for a minute from a flood of the same size in 20 s.
    fn judge_pages(&self, window: &Window, now: u32, own: u32) -> Option<Verdict> {
        let scale = (f64::from(own) / f64::from(self.pages_per_window().max(1))).max(1.0);
        let mut worst: Option<(f64, f64)> = None;
        for (span, tenths) in window.pages_back(now) {
            let limit = (f64::from(self.burst) + f64::from(self.leak) * f64::from(span)) * scale;
            let excess = f64::from(tenths) / limit;
            if excess >= 1.0 && worst.is_none_or(|(e, _)| excess > e) {
                worst = Some((excess, limit));
            }
        }
        worst.map(|(excess, limit)| Verdict {
            rule: self.pages_rule,
            signal: Some(Signal::Pages),
            value: f64::from(window.pages_tenths()) / 10.0,
            limit: limit / 10.0,
            excess,
        })
    }

    /// Writes them down: they hold until the next recalculation, also over a restart.
    pub fn save(&self, w: &mut Writer) {
        let rules = [self.pages_rule, self.error_paths.rule, self.posts.rule, self.page_errors.rule];
        let values = [self.error_paths.value, self.posts.value, self.page_errors.value];
        for value in [self.burst, self.leak, self.hard, self.span].into_iter().chain(values) {
            w.uint(value.into());
        }
        rules.iter().for_each(|rule| w.uint(u64::from(*rule == Rule::ZScore)));
    }

    /// Reads what [`Limits::save`] wrote.
    ///
    /// # Errors
    /// [`BadState`] where it is something else.
    pub fn load(r: &mut Reader<'_>) -> Result<Self, BadState> {
        let [burst, leak, hard, span, paths, posts, errors] =
            [r.small()?, r.small()?, r.small()?, r.small()?, r.small()?, r.small()?, r.small()?];
        let mut rule = || Ok(if r.uint()? == 0 { Rule::RateMultiplier } else { Rule::ZScore });
        Ok(Self {
            burst,
            leak,
            hard,
            span,
            pages_rule: rule()?,
            error_paths: Limit { value: paths, rule: rule()? },
            posts: Limit { value: posts, rule: rule()? },
            page_errors: Limit { value: errors, rule: rule()? },
        })
    }

    /// Whether a window's errors are a surge: many times the site's usual share.
    pub fn is_error_surge(window: &Window, error_rate: f64, s: &Settings) -> bool {
        window.errors() >= SURGE_ERRORS
            && f64::from(window.errors()) >= s.error_surge_multiplier * error_rate * f64::from(window.requests())
    }
}

/// The limit that a far tail gives, and the rule it follows from, whichever is lower.
///
/// The z-score is one on log scale: with `headroom` times the tail being 3 deviations above the median,
/// `z` deviations are median * (headroom * far / median)^(z / 3). The multiple is `rate_multiplier` times the far tail
/// itself: of a heavy-tailed population the mean says nothing. Both are 0 where nothing has been seen.
fn learned(tail: &Tail, headroom: f64, z: f64, s: &Settings) -> (f64, Rule) {
    let median = tail.median.max(1.0);
    let far = (tail.far * headroom).max(median);
    let by_z = if tail.far > 0.0 { median * (far / median).powf(z / 3.0) } else { 0.0 };
    let by_multiple = s.rate_multiplier * tail.far;
    if by_z <= by_multiple { (by_z, Rule::ZScore) } else { (by_multiple, Rule::RateMultiplier) }
}
