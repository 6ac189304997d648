//! What people ask of the running daemon, how it answers, and the events that it sends to those who watch.

use ipnet::IpNet;
use tokio::sync::oneshot;

use crate::config::Config;
use crate::enforce::guard::Why;
use crate::engine::{BanLength, Refusal};
use crate::report::{BanAnswer, DecisionRow, Explanation, ip_text};
use crate::tail::TailError;
use crate::time::Timestamp;

/// An event for those who watch: a decision (`ban`, `unban`), or something else that happened.
#[derive(Clone, Debug)]
pub struct Event {
    /// What was decided.
    pub row: DecisionRow,
    /// In words; of an unban `expired` or `lifted`.
    pub reason: String,
}

/// What people ask of the running daemon.
#[derive(Debug)]
pub enum Request {
    /// Ban exactly this prefix.
    Ban {
        /// What to ban.
        prefix: IpNet,
        /// How long; `None` takes the ladder's next step.
        length: Option<BanLength>,
        /// The operator's words.
        reason: String,
        /// Wide prefixes too.
        force: bool,
        /// End when this says, also where the ban in force lasts longer.
        replace: bool,
        /// The ban in force.
        reply: oneshot::Sender<Result<BanAnswer, RequestError>>,
    },
    /// Lift every ban that covers this prefix.
    Unban {
        /// What to free.
        prefix: IpNet,
        /// The bans that were lifted, at least one.
        reply: oneshot::Sender<Result<Vec<DecisionRow>, RequestError>>,
    },
    /// Something was written to a log.
    LogWritten,
    /// The bans that were restored are in force since then.
    Enforced(Timestamp),
    /// Take this configuration.
    Configure {
        /// Checked.
        config: Box<Config>,
        /// Whether it is in force, or why not.
        reply: oneshot::Sender<Result<(), TailError>>,
    },
    /// End the hot thread.
    Stop,
    /// The why-card of an address or prefix.
    Explain {
        /// Which.
        prefix: IpNet,
        /// The card.
        reply: oneshot::Sender<Result<Explanation, RequestError>>,
    },
}

/// Why a request was not done.
#[derive(Debug, thiserror::Error)]
pub enum RequestError {
    /// The engine refused; why a guarded prefix is guarded.
    #[error("{}", refusal_text(.0, *.1))]
    Refused(Refusal, Option<Why>),
    /// The daemon is stopping.
    #[error("the daemon is stopping")]
    Stopping,
    /// The ban is on record, and the enforcer could not set it.
    #[error("the ban is on record but NOT enforced: {0}; it is tried again every minute")]
    NotEnforced(String),
    /// The ban is lifted on record, and the enforcer could not take it away, or not see whether it is gone.
    #[error("{} may STILL be dropped although its ban is lifted: {why}; it is tried again every minute", ip_text(.prefix))]
    StillDropped {
        /// Whose ban it was.
        prefix: IpNet,
        /// What the enforcer said.
        why: String,
    },
    /// The store could not be asked.
    #[error("the state database could not be read: {0}")]
    Store(String),
}

fn refusal_text(refusal: &Refusal, why: Option<Why>) -> String {
    match refusal {
        Refusal::AllowListed { prefix, entry } => format!("{prefix} is not banned: {entry} is on the allow-list"),
        Refusal::NeverBan { prefix, entry } => {
            let why = why.map_or("guarded: it must never be dropped", Why::as_str);
            let whose = match (entry == prefix, prefix.contains(entry)) {
                (true, _) => "it is".to_owned(),
                (false, true) => format!("it holds {}, which is", ip_text(entry)),
                (false, false) => format!("it lies in {}, which is", ip_text(entry)),
            };
            format!("{} is not banned: {whose} {why}", ip_text(prefix))
        }
        Refusal::TooWide { prefix } => {
            format!("{prefix} is wider than /16 (IPv6: /32): such a ban must be forced (`--force`, in the API `force`)")
        }
        Refusal::NotBanned { prefix } => format!("no ban covers {prefix}"),
    }
}
