//! Slack and a generic JSON webhook: a bounded queue, coalescing, retry; never in the way.
//!
//! [`Notifier::send`] never blocks and never fails; a task of its own per sink collects, posts and
//! retries. Nothing here decides what is worth a notice.
//!
//! # Bounds
//! What waits for a sink is one message: it keeps the newest notices of each kind (10 for Slack, 1000 for
//! the webhook) and counts the rest ([`SinkHealth::folded`]). So neither a flood of bans nor an outage of days
//! grows it, no number is ever lost to it, and the outage ends in one message. A message is sent a
//! second and a half after its first notice, so that what comes within a second is one message; while notices keep coming,
//! ever more of them wait for the next one (up to 20 s).

mod batch;
mod deliver;
mod http;
mod sink;
mod slack;
mod text;
mod webhook;

use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tokio::sync::{Notify, watch};
use tokio::task::JoinHandle;
use tokio::time::Instant;

use batch::Batch;
use http::Endpoint;
use sink::Sink;

use crate::config;
use crate::engine::{Ban, Braked, Finding, LevelAccepted, NotEffective, Unban};
use crate::time::Timestamp;

/// The daemon that reports: every message names it, because several may write to one channel.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Reporter {
    /// What the host is called.
    pub host: String,
    /// Nothing is dropped.
    pub dry_run: bool,
}

impl Reporter {
    /// The daemon with this configuration.
    pub fn of(config: &config::Config) -> Self {
        Self { host: config.name(), dry_run: config.enforcer.backend == config::Backend::DryRun }
    }

    /// A text for people, with what it must not be read without.
    fn heads(&self, text: &str) -> String {
        let dry_run = if self.dry_run { " (dry run, nothing is dropped)" } else { "" };
        format!("{}{dry_run}: {text}", crate::report::inert(self.host.as_bytes()))
    }
}

/// Something people want to hear of.
#[derive(Clone, Debug)]
pub enum Notice {
    /// A ban.
    Ban {
        /// What was decided.
        ban: Box<Ban>,
        /// Who drops it.
        enforcer: String,
        /// Why it is not enforced.
        error: Option<String>,
    },
    /// The end of a ban.
    Unban {
        /// What was decided.
        unban: Unban,
        /// Packets the ban had dropped.
        packets: u64,
        /// Bytes the ban had dropped.
        bytes: u64,
        /// Why it is still dropped.
        error: Option<String>,
    },
    /// The site as a whole is unusual.
    GlobalAnomaly(Box<Finding>),
    /// A ban that the brake held back.
    Braked(Box<Braked>),
    /// Records of a banned prefix keep coming.
    NotEffective {
        /// The proof.
        proof: NotEffective,
        /// The likely reason.
        reason: String,
    },
    /// A new level became normal.
    LevelAccepted(LevelAccepted),
    /// A rung of the enforcement ladder could not be taken.
    Fallback {
        /// When.
        at: Timestamp,
        /// Interface, where it is one interface's trouble.
        interface: Option<String>,
        /// The rung that failed.
        from: String,
        /// The rung taken instead.
        to: String,
        /// Why.
        reason: String,
    },
    /// Something is not as it should be.
    Degraded {
        /// When.
        at: Timestamp,
        /// The stable word of `status`.
        what: String,
        /// What and why.
        reason: String,
    },
    /// It is as it should be again.
    Recovered {
        /// When.
        at: Timestamp,
        /// The stable word of `status`.
        what: String,
        /// What was wrong with it: there may be several of a word.
        reason: String,
        /// How long it was not.
        after: Duration,
    },
    /// Anything else worth a line (`map_full`, `repaired`, `off`, `started`, ...).
    Other {
        /// When.
        at: Timestamp,
        /// The event's word, as in the audit log.
        event: String,
        /// What happened.
        text: String,
    },
}

impl Notice {
    /// Whether it tells of the health of this sink.
    fn is_about(&self, sink: &str) -> bool {
        matches!(self, Self::Degraded { what, .. } | Self::Recovered { what, .. } if what == sink)
    }
}

/// How a sink is doing.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct SinkHealth {
    /// `slack` or `webhook`.
    pub name: &'static str,
    /// Messages that were accepted.
    pub sent: u64,
    /// Notices in them.
    pub delivered: u64,
    /// Posts that failed and were, or will be, repeated.
    pub retried: u64,
    /// Notices that were given up: refused for good, or the daemon ended.
    pub lost: u64,
    /// Notices of which only the number is (or was) told, because too many waited.
    pub folded: u64,
    /// Notices that wait.
    pub waiting: u64,
    /// For how long nothing has got through, and why (without the URL); `None` while all is well.
    pub failing: Option<(Duration, String)>,
}

/// Why the notifier could not be set up; never has the URL in it.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum NotifyError {
    /// Not an http or https URL.
    #[error("notify: the {0} URL is not a valid http or https URL")]
    BadUrl(&'static str),
}

/// How fast it goes; the defaults are what the daemon uses.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Pace {
    /// How long notices are collected after a quiet time. Default 1.5 s.
    pub collect: Duration,
    /// How long while they keep coming. Default 20 s.
    pub collect_max: Duration,
    /// A post that takes longer has failed. Default 10 s.
    pub timeout: Duration,
    /// Wait after the first failure; doubles. Default 1 s.
    pub retry: Duration,
    /// Longest wait between two attempts, unless the sink asks for more. Default 5 min.
    pub retry_max: Duration,
    /// Longest wait that a sink may ask for (`Retry-After`). Default 15 min.
    pub asked_max: Duration,
}

impl Default for Pace {
    fn default() -> Self {
        Self {
            collect: Duration::from_millis(1500),
            collect_max: Duration::from_secs(20),
            timeout: Duration::from_secs(10),
            retry: Duration::from_secs(1),
            retry_max: Duration::from_secs(300),
            asked_max: Duration::from_secs(900),
        }
    }
}

/// Takes notices from any thread. Cheap to clone; the tasks end after [`Notifier::finish`], or when the last
/// clone is gone and what waited was posted.
#[derive(Clone, Debug)]
pub struct Notifier {
    outlets: Arc<Vec<Outlet>>,
    /// True once the daemon ends: do not collect any longer.
    closing: Arc<watch::Sender<bool>>,
    tasks: Arc<Mutex<Vec<JoinHandle<()>>>>,
}

/// What the notifier keeps of a sink: what waits for it, and what its task has counted.
#[derive(Debug)]
struct Outlet {
    inbox: Arc<Inbox>,
    score: Arc<Score>,
}

/// The next message of a sink.
#[derive(Debug)]
struct Inbox {
    batch: Mutex<Batch>,
    bell: Notify,
    keep: usize,
}

impl Inbox {
    fn new(keep: usize) -> Self {
        Self { batch: Mutex::new(Batch::new(keep)), bell: Notify::new(), keep }
    }

    fn lock(&self) -> MutexGuard<'_, Batch> {
        self.batch.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn take(&self) -> Batch {
        std::mem::replace(&mut *self.lock(), Batch::new(self.keep))
    }

    /// What could not be posted, before what came since. Returns how many were folded.
    fn put_back(&self, mut earlier: Batch) -> u64 {
        let mut batch = self.lock();
        let folded = earlier.append(std::mem::replace(&mut *batch, Batch::new(0)));
        *batch = earlier;
        folded
    }
}

/// What a task counts, for those who ask.
#[derive(Debug, Default)]
struct Score {
    name: &'static str,
    sent: AtomicU64,
    delivered: AtomicU64,
    retried: AtomicU64,
    taken: AtomicU64,
    given_up: AtomicU64,
    folded: AtomicU64,
    failing: Mutex<Option<(Instant, String)>>,
}

impl Score {
    fn set_failing(&self, error: String) {
        let mut failing = self.failing.lock().unwrap_or_else(PoisonError::into_inner);
        let since = failing.as_ref().map_or_else(Instant::now, |(since, _)| *since);
        *failing = Some((since, error));
    }

    /// Counts and logs what will never be told.
    fn lose(&self, notices: u64, why: &str) {
        if notices > 0 {
            tracing::warn!(sink = self.name, notices, "notices are lost: {why}");
            self.given_up.fetch_add(notices, Ordering::Relaxed);
        }
    }

    fn lose_at_the_end(&self, notices: u64) {
        let why = self.health().failing.map_or("no answer in time".into(), |(_, why)| why);
        self.lose(notices, &format!("the daemon ends, and they could not be posted: {why}"));
    }

    fn set_well(&self) {
        *self.failing.lock().unwrap_or_else(PoisonError::into_inner) = None;
    }

    fn health(&self) -> SinkHealth {
        let (delivered, given_up) = (self.delivered.load(Ordering::Relaxed), self.given_up.load(Ordering::Relaxed));
        let failing = self.failing.lock().unwrap_or_else(PoisonError::into_inner);
        SinkHealth {
            name: self.name,
            sent: self.sent.load(Ordering::Relaxed),
            delivered,
            retried: self.retried.load(Ordering::Relaxed),
            lost: given_up,
            folded: self.folded.load(Ordering::Relaxed),
            waiting: self.taken.load(Ordering::Relaxed).saturating_sub(delivered + given_up),
            failing: failing.as_ref().map(|(since, error)| (since.elapsed(), error.clone())),
        }
    }
}

/// The sinks that the configuration names.
///
/// # Errors
/// [`NotifyError`] of the first one that cannot be set up.
fn configured(settings: &config::Notify) -> Result<Vec<Box<dyn Sink>>, NotifyError> {
    let mut sinks: Vec<Box<dyn Sink>> = Vec::new();
    if let Some(url) = &settings.slack_webhook_url {
        sinks.push(Box::new(Endpoint::new("slack", url, slack::SHOWN, slack::message)?));
    }
    if let Some(url) = &settings.webhook_url {
        sinks.push(Box::new(Endpoint::new("webhook", url, webhook::SHOWN, webhook::message)?));
    }
    Ok(sinks)
}

#[cfg(test)]
impl Notifier {
    /// What Slack and the webhook would be sent next, for golden files; nothing waits any longer.
    pub(crate) fn next_messages(&self, reporter: &Reporter, dashboard: Option<&str>) -> [Option<String>; 2] {
        [("slack", slack::message as http::Write), ("webhook", webhook::message)].map(|(name, message)| {
            let outlet = self.outlets.iter().find(|outlet| outlet.score.name == name)?;
            let batch = outlet.inbox.take();
            (!batch.is_empty()).then(|| message(&batch, reporter, dashboard))
        })
    }
}

impl Notifier {
    /// Starts a task for each configured sink on the current tokio runtime. Without a sink it takes
    /// notices and forgets them.
    ///
    /// # Errors
    /// A URL that is none.
    ///
    /// # Panics
    /// Outside of a tokio runtime, where a sink is configured.
    pub fn start(settings: &config::Notify, reporter: &Reporter) -> Result<Self, NotifyError> {
        Self::with_pace(settings, reporter, Pace::default())
    }

    /// As [`Notifier::start`], at another pace.
    ///
    /// # Errors
    /// A URL that is none.
    ///
    /// # Panics
    /// Outside of a tokio runtime, where a sink is configured.
    pub fn with_pace(settings: &config::Notify, reporter: &Reporter, pace: Pace) -> Result<Self, NotifyError> {
        let configured = configured(settings)?;
        let (closing, _) = watch::channel(false);
        let mut outlets = Vec::new();
        let mut tasks = Vec::new();
        for sink in configured {
            let inbox = Arc::new(Inbox::new(sink.shown()));
            let score = Arc::new(Score { name: sink.name(), ..Score::default() });
            let task = deliver::Task {
                sink,
                reporter: reporter.clone(),
                dashboard: settings.dashboard_url.clone(),
                pace,
                score: Arc::clone(&score),
                inbox: Arc::clone(&inbox),
                closing: closing.subscribe(),
            };
            tasks.push(tokio::spawn(task.run()));
            outlets.push(Outlet { inbox, score });
        }
        Ok(Self { outlets: Arc::new(outlets), closing: Arc::new(closing), tasks: Arc::new(Mutex::new(tasks)) })
    }

    /// Hands a notice over. Costs less than a microsecond and never waits for a sink. A sink is not told of itself: what
    /// says that it does not deliver cannot be delivered, and later it would be one message more where there were too many.
    pub fn send(&self, notice: Notice) {
        let notice = Arc::new(notice);
        for outlet in self.outlets.iter().filter(|outlet| !notice.is_about(outlet.score.name)) {
            outlet.score.taken.fetch_add(1, Ordering::Relaxed);
            let folded = outlet.inbox.lock().add(Arc::clone(&notice));
            outlet.score.folded.fetch_add(folded, Ordering::Relaxed);
            outlet.inbox.bell.notify_one();
        }
    }

    /// Every configured sink.
    pub fn health(&self) -> Vec<SinkHealth> {
        self.outlets.iter().map(|outlet| outlet.score.health()).collect()
    }

    /// Posts what waits, for at most `limit`, and ends the tasks; what could not be posted is lost. For the
    /// end of the daemon.
    pub async fn finish(self, limit: Duration) {
        self.closing.send_replace(true);
        let tasks = std::mem::take(&mut *self.tasks.lock().unwrap_or_else(PoisonError::into_inner));
        let deadline = Instant::now() + limit;
        for mut task in tasks {
            if tokio::time::timeout_at(deadline, &mut task).await.is_err() {
                task.abort();
            }
        }
        for outlet in self.outlets.iter() {
            outlet.score.lose_at_the_end(outlet.score.health().waiting);
        }
    }
}
