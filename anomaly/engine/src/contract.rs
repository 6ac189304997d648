//! What goes into the engine and what comes out: plain values, no behaviour.
//!
//! Everybody else depends on these types and on nothing further inside.

use std::net::IpAddr;
use std::sync::Arc;

use ipnet::IpNet;

use super::settings::{BanLength, Settings};
use crate::record::Record;
use crate::time::Timestamp;

/// What the engine is told.
#[derive(Debug)]
pub enum Input<'a> {
    /// A log record. Windows and baselines advance on its time.
    Record(&'a Record<'a>),
    /// Nothing but `now`: lets bans end. Sent at [`Engine::next_deadline`](super::Engine::next_deadline) or later.
    Tick {
        /// The log has been read to its end, so that silence is silence: from the first record on log time follows
        /// `now`, windows run empty and idle seconds count as zeros. In a replay it ends the wait for records that confirm a jump.
        caught_up: bool,
    },
    /// An operator's wish.
    Command(Command),
}

/// What an operator can ask for.
#[derive(Clone, Debug)]
pub enum Command {
    /// Ban exactly this prefix.
    Ban {
        /// What to ban.
        prefix: IpNet,
        /// How long; `None` takes the ladder's next step for this prefix.
        length: Option<BanLength>,
        /// The operator's words.
        reason: String,
        /// Ban prefixes shorter than /16 (IPv4) or /32 (IPv6) too.
        force: bool,
        /// End when this says, also where the ban in force lasts longer.
        replace: bool,
    },
    /// Lift every ban that covers this prefix.
    Unban {
        /// What to free.
        prefix: IpNet,
    },
    /// Take new settings without losing a window or a ban.
    Configure(Box<Settings>),
}

/// What the engine says.
#[derive(Clone, Debug, PartialEq)]
pub enum Output {
    /// A ban or an unban; the only thing that is ever enforced.
    Decision(Decision),
    /// The site as a whole is unusual; alerts only.
    GlobalAnomaly(Finding),
    /// The baseline was recomputed.
    Baseline(BaselineUpdate),
    /// Records of a banned address keep coming, long after its ban.
    NotEffective(NotEffective),
    /// A level that was held out of the baseline has lasted so long that it is normal now.
    LevelAccepted(LevelAccepted),
    /// The mass-ban brake held a ban back.
    Braked(Braked),
    /// A ban by hand that leaves the longer one as it is.
    Kept(Kept),
    /// A command could not be done.
    Refused(Refusal),
}

/// A ban or an unban.
#[derive(Clone, Debug, PartialEq)]
pub enum Decision {
    /// Drop this prefix.
    Ban(Box<Ban>),
    /// Stop dropping it.
    Unban(Unban),
}

/// Why and how long a prefix is dropped.
#[derive(Clone, Debug, PartialEq)]
pub struct Ban {
    /// What is dropped.
    pub prefix: IpNet,
    /// When it was decided: log time for the detector, wall time for an operator.
    pub at: Timestamp,
    /// When it ends; `None` is permanent.
    pub until: Option<Timestamp>,
    /// The nth ban of this prefix, from 1.
    pub offence: u32,
    /// Who wanted it.
    pub origin: Origin,
    /// The numbers at the moment of the ban; `None` when an operator banned a
    /// client the engine knows nothing of.
    pub finding: Option<Finding>,
    /// The operator's words; empty for the detector, and where an operator gave none.
    pub note: String,
    /// It had already ended when it was decided (a backlog was read): it counts as
    /// an offence and is neither enforced nor notified.
    pub in_past: bool,
}

impl Ban {
    /// Its whole length in seconds; `None` when permanent.
    pub fn duration_secs(&self) -> Option<u64> {
        self.until.map(|until| until.since(self.at).as_secs())
    }
}

/// The end of a ban.
#[derive(Clone, Debug, PartialEq)]
pub struct Unban {
    /// What was dropped.
    pub prefix: IpNet,
    /// When.
    pub at: Timestamp,
    /// The nth ban of this prefix.
    pub offence: u32,
    /// `Detector` where the ban ran out, `Operator` where it was lifted by hand.
    pub origin: Origin,
    /// The ban that it ends.
    pub ban: Arc<Ban>,
}

/// Who wanted a decision.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Origin {
    /// The rules.
    Detector,
    /// A human.
    Operator,
}

/// The rule that fired.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Rule {
    /// z-score above its threshold.
    ZScore,
    /// Rate above a multiple of the mean.
    RateMultiplier,
    /// More requests in the window than any client may make.
    HardLimit,
    /// The floor of a signal, below which no learned limit lies.
    Floor,
}

/// How sure a ban is. It decides how fast the offence fades.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Grade {
    /// Nobody does this by accident.
    Certain,
    /// Nearly nobody does.
    Likely,
}

/// What a ban is for, in one word for people.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Category {
    /// Too many requests.
    Flood,
    /// Looks for what is not there.
    Scanner,
    /// Tries passwords or forms.
    Guessing,
    /// Fetches page after page.
    Scraping,
    /// Takes too many bytes.
    Bandwidth,
    /// Banned by hand.
    Manual,
}

/// Where a limit comes from.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum LimitSource {
    /// The least that any client may do.
    Floor,
    /// The site's ordinary clients.
    Learned,
    /// The configuration.
    Configured,
}

/// Whose baseline a finding was judged by.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Scope {
    /// The population of single clients (raised by a client's own history, where mature).
    Ip,
    /// The site as a whole.
    Global,
}

/// Where a baseline's figures come from.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Source {
    /// Not enough has been learned; the configured floors stand in.
    Floor,
    /// The rolling history.
    Rolling,
    /// This hour of the day, over past days.
    Hour,
    /// The longer memory that stands beside both.
    Long,
    /// The address's own history.
    Own,
}

/// Mean and spread, in requests/s over the window.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Level {
    /// Whose.
    pub scope: Scope,
    /// Requests/s.
    pub mean: f64,
    /// Requests/s; never below the configured floor.
    pub stddev: f64,
    /// Share of requests that were answered with an error, 0 to 1 (499, and 405 to MKCOL, are none).
    pub error_rate: f64,
    /// Number of samples behind the figures.
    pub samples: u64,
    /// Which history they are from.
    pub source: Source,
}

/// A signal beside the raw request rate. Its value and limit are in the signal's own unit: points of a leaky bucket, or for the
/// first four, which are only found in what was stored before, a number per window.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Signal {
    /// Requests for pages; static assets weigh less.
    Pages,
    /// Distinct paths that were answered 4xx, each counted once however it is spelled.
    ErrorPaths,
    /// POSTs to one path.
    PostsToOnePath,
    /// Error answers.
    Errors,
    /// The same answers again and again.
    SameAnswers,
    /// Paths that the site does not have.
    UnknownPaths,
    /// Well-known exploit paths.
    ExploitPaths,
    /// Log-ins or forms.
    RepeatedLogins,
    /// Requests that were denied.
    DeniedRequests,
    /// Megabytes of the same large answers.
    RepeatedMegabytes,
    /// Minutes in a row full of pages.
    FullMinutes,
}

impl Signal {
    /// What it is evidence of.
    pub const fn category(self) -> Category {
        match self {
            Self::Pages | Self::Errors | Self::SameAnswers => Category::Flood,
            Self::ErrorPaths | Self::UnknownPaths | Self::ExploitPaths => Category::Scanner,
            Self::PostsToOnePath | Self::RepeatedLogins | Self::DeniedRequests => Category::Guessing,
            Self::RepeatedMegabytes => Category::Bandwidth,
            Self::FullMinutes => Category::Scraping,
        }
    }
}

/// The numbers behind an anomaly.
#[derive(Clone, Debug, PartialEq)]
pub struct Finding {
    /// Log time.
    pub at: Timestamp,
    /// Which rule fired.
    pub rule: Rule,
    /// Judged by the tightened thresholds.
    pub error_surge: bool,
    /// Requests/s over the window.
    pub rate: f64,
    /// What it was compared with.
    pub baseline: Level,
    /// `(rate - mean) / stddev`, in requests/s.
    pub z_score: f64,
    /// What fired, where it was not the request rate.
    pub signal: Option<(Signal, f64)>,
    /// The limit that was crossed, in the unit of the signal (or requests per window).
    pub limit: f64,
    /// Where that limit comes from.
    pub limit_source: LimitSource,
    /// How sure it is.
    pub grade: Grade,
    /// Requests in the window.
    pub requests: u64,
    /// Requests in the window that were answered with an error (499, and 405 to MKCOL, are none).
    pub errors: u64,
    /// Newest requests of the client, oldest first; at most a handful.
    pub samples: Vec<Sample>,
}

impl Finding {
    /// What it is evidence of, in one word.
    pub fn category(&self) -> Category {
        self.signal.map_or(Category::Flood, |(signal, _)| signal.category())
    }
}

/// One request, kept as evidence. Text is raw log bytes, cut to a bounded length.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Sample {
    /// Log time.
    pub at: Timestamp,
    /// As in the log.
    pub method: Box<[u8]>,
    /// As in the log.
    pub path: Box<[u8]>,
    /// HTTP status.
    pub status: u16,
}

/// The baseline after a recalculation.
#[derive(Clone, Debug, PartialEq)]
pub struct BaselineUpdate {
    /// Log time.
    pub at: Timestamp,
    /// The site's.
    pub global: Level,
    /// The population of clients'.
    pub ip: Level,
}

/// A banned prefix whose requests still reach the log.
#[derive(Clone, Debug, PartialEq)]
pub struct NotEffective {
    /// The banned prefix.
    pub prefix: IpNet,
    /// The client that got through.
    pub client: IpAddr,
    /// Its TCP peer, where the log has it: another address says that it comes through a proxy.
    pub peer: Option<IpAddr>,
    /// When the ban was decided.
    pub banned_at: Timestamp,
    /// Log time of the record that proves it.
    pub at: Timestamp,
    /// Records since the ban plus grace.
    pub records: u64,
}

/// A new level that became normal.
#[derive(Clone, Debug, PartialEq)]
pub struct LevelAccepted {
    /// Log time.
    pub at: Timestamp,
    /// Whose level.
    pub scope: Scope,
    /// The baseline before.
    pub before: Level,
    /// The baseline from now on.
    pub after: Level,
}

/// A ban that the brake held back.
#[derive(Clone, Debug, PartialEq)]
pub struct Braked {
    /// Who would have been banned.
    pub prefix: IpNet,
    /// Why.
    pub finding: Finding,
    /// Automatic bans in the newest minute.
    pub bans_last_minute: u32,
}

/// A ban by hand that changes nothing, because the one in force of that prefix lasts at least as long.
#[derive(Clone, Debug, PartialEq)]
pub struct Kept {
    /// When it was asked for.
    pub at: Timestamp,
    /// The ban in force, as it was.
    pub ban: Arc<Ban>,
    /// When the one that was asked for would have ended; `None` is permanent.
    pub until: Option<Timestamp>,
    /// The operator's words for it.
    pub note: String,
}

/// Why a command was not done.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Refusal {
    /// The prefix is, holds, or lies in an allow-listed one.
    AllowListed {
        /// What was asked for.
        prefix: IpNet,
        /// The entry of the allow-list.
        entry: IpNet,
    },
    /// The prefix is, holds, or lies in one that must never be banned (own
    /// address, gateway, resolver, trusted proxy, where somebody is logged in, ...).
    NeverBan {
        /// What was asked for.
        prefix: IpNet,
        /// The guarded prefix.
        entry: IpNet,
    },
    /// So wide that it needs `--force`.
    TooWide {
        /// What was asked for.
        prefix: IpNet,
    },
    /// No ban covers it.
    NotBanned {
        /// What was asked for.
        prefix: IpNet,
    },
}

/// What people see of the engine: a copy, made at most once a second.
#[derive(Clone, Debug, PartialEq)]
pub struct Snapshot {
    /// Log time.
    pub at: Timestamp,
    /// Records handled since the start.
    pub records: u64,
    /// Records older than the window: counted, in no window.
    pub late: u64,
    /// Records whose stamp was too far ahead to be believed.
    pub early: u64,
    /// Records of banned addresses.
    pub blocked: u64,
    /// Requests/s of the site over the window.
    pub global_rate: f64,
    /// Requests in the newest complete second of log time.
    pub last_second: u64,
    /// Share of errors in the window, 0 to 1.
    pub global_error_ratio: f64,
    /// The site's baseline.
    pub global: Level,
    /// Site rate above which a global anomaly is raised, requests/s.
    pub global_limit: f64,
    /// The population's baseline.
    pub ip: Level,
    /// Rate over the window above which a client that gets one answer again and again is banned, requests/s.
    pub ip_limit: f64,
    /// Seconds of log time until the warm-up ends; 0 when it is over. Before the first record it has not begun.
    pub warmup_left_secs: u32,
    /// The 24 hour slots of the site, UTC; `None` while a slot is empty.
    pub hours: [Option<Level>; 24],
    /// Addresses followed now.
    pub tracked_ips: usize,
    /// Most ever.
    pub tracked_ips_peak: usize,
    /// Addresses dropped from the table because it was full.
    pub evicted: u64,
    /// The brake has held bans back, without a pause of a minute: since when, and when last.
    pub braked: Option<(Timestamp, Timestamp)>,
    /// Busiest clients in the window, busiest first.
    pub top: Vec<Client>,
    /// Active bans, oldest first.
    pub bans: Arc<[Arc<Ban>]>,
}

/// One client in the window.
#[derive(Clone, Debug, PartialEq)]
pub struct Client {
    /// The address, or for IPv6 the prefix it is counted by.
    pub prefix: IpNet,
    /// Requests in the window.
    pub requests: u64,
    /// Errors in the window.
    pub errors: u64,
    /// Requests/s over the window.
    pub rate: f64,
    /// `(rate - mean) / stddev` against the population.
    pub z_score: f64,
    /// Rate above which this client is banned, requests/s.
    pub limit: f64,
    /// Covered by a ban.
    pub banned: bool,
}

/// How often a prefix has been banned.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Offence {
    /// Which prefix.
    pub prefix: IpNet,
    /// How often, decayed ones not included.
    pub count: u32,
    /// When the newest ban was decided.
    pub last: Timestamp,
}

/// All state that outlives a restart. The byte strings are the engine's own versioned encoding.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct State {
    /// Bans in force.
    pub bans: Vec<Ban>,
    /// Offences that have not decayed.
    pub offences: Vec<Offence>,
    /// What has been learned.
    pub baseline: Vec<u8>,
    /// The windows as of the last record.
    pub windows: Vec<u8>,
}

/// Bytes in a [`State`] that are not of this engine's making.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct BadState;

/// Gives the variants of an enum their words.
macro_rules! words {
    ($type:ty { $($variant:ident => $word:literal),+ $(,)? }) => {
        impl $type {
            /// The word that JSON, audit and configuration use.
            pub const fn as_str(self) -> &'static str {
                match self { $(Self::$variant => $word),+ }
            }
            /// The value of a word.
            pub fn from_word(word: &str) -> Option<Self> {
                match word { $($word => Some(Self::$variant),)+ _ => None }
            }
        }
    };
}

words!(Rule { ZScore => "z_score", RateMultiplier => "rate_multiplier", HardLimit => "hard_limit", Floor => "floor" });
words!(Scope { Ip => "ip", Global => "global" });
words!(Source { Floor => "floor", Rolling => "rolling", Hour => "hour", Long => "long", Own => "own" });
words!(Signal {
    Pages => "pages",
    ErrorPaths => "error_paths",
    PostsToOnePath => "posts_to_one_path",
    Errors => "errors",
    SameAnswers => "same_answers",
    UnknownPaths => "unknown_paths",
    ExploitPaths => "exploit_paths",
    RepeatedLogins => "repeated_logins",
    DeniedRequests => "denied_requests",
    RepeatedMegabytes => "repeated_megabytes",
    FullMinutes => "full_minutes",
});
words!(Grade { Certain => "certain", Likely => "likely" });
words!(Category {
    Flood => "flood",
    Scanner => "scanner",
    Guessing => "guessing",
    Scraping => "scraping",
    Bandwidth => "bandwidth",
    Manual => "manual",
});
words!(LimitSource { Floor => "floor", Learned => "learned", Configured => "configured" });
words!(Origin { Detector => "detector", Operator => "operator" });
