//! The messages between the daemon's threads: what the hot thread hands to the apply thread, and what both show to the main
//! thread. No thread's own state is in here.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};

use ipnet::IpNet;
use tokio::sync::oneshot;

use super::trouble::Trouble;
use crate::config::Config;
use crate::enforce::guard::Guarded;
use crate::enforce::{Coverage, Name};
use crate::engine::{Ban, Output, Snapshot, State};
use crate::record::Reject;
use crate::report::{BanAnswer, DecisionRow, Explanation, HistoryPoint, TopRow};
use crate::tail::{Checkpoint, Counts};
use crate::time::Timestamp;
use crate::view::control::RequestError;

/// Bans in an explanation, of each kind.
pub const MAX_EXPLAINED: usize = 50;

/// What the hot thread hands over.
pub enum Work {
    /// What the engine said, and who waits for it.
    Outputs {
        /// In order.
        outputs: Vec<Output>,
        /// Answered when everything is done.
        reply: Option<Reply>,
    },
    /// State and checkpoints for the store.
    Save(Progress),
    /// Every ban that should be enforced.
    Reconcile(Arc<[Arc<Ban>]>),
    /// The why-card.
    Explain {
        /// Of which address or prefix.
        prefix: IpNet,
        /// Its figures now.
        client: Option<TopRow>,
        /// Who allows it.
        allowlisted_by: Option<IpNet>,
        /// Active bans that cover it.
        active: Vec<Arc<Ban>>,
        /// Active bans of what lies inside it, newest first.
        inside: Vec<Arc<Ban>>,
        /// Who asked.
        reply: oneshot::Sender<Result<Explanation, RequestError>>,
    },
    /// What must never be dropped from now on, in the place of what that was, beside the configuration's.
    Guard(Vec<Guarded>),
    /// A new configuration, or why it was refused.
    Reloaded(Result<Box<Config>, String>),
    /// Why the configuration file would be refused; none when it is good again.
    ConfigFile(Option<String>),
    /// A point of the graph for the store.
    History(HistoryPoint),
    /// What is wrong with the logs and the threads, whenever that has changed.
    Health(Vec<Trouble>),
    /// The end.
    Stop(Box<Progress>),
}

/// Who waits for the outcome of a command.
pub enum Reply {
    /// Of a ban.
    Ban(oneshot::Sender<Result<BanAnswer, RequestError>>),
    /// Of an unban.
    Unban(oneshot::Sender<Result<Vec<DecisionRow>, RequestError>>),
}

/// What a restart continues from.
pub struct Progress {
    /// The engine's.
    pub state: State,
    /// How far each log has been read.
    pub checkpoints: Vec<Checkpoint>,
    /// When.
    pub at: Timestamp,
}

/// What the apply thread shows.
#[derive(Clone, Debug)]
pub struct ApplyStatus {
    /// Who drops.
    pub enforcer: Name,
    /// How, and totals.
    pub coverage: Coverage,
    /// Packets and bytes dropped per ban.
    pub counts: Arc<HashMap<IpNet, (u64, u64)>>,
    /// Share of the wanted bans that the kernel holds.
    pub enforcement_ratio: f64,
    /// Word, reason, since.
    pub degraded: Vec<(String, String, Timestamp)>,
    /// Why nothing is dropped, or nobody knows what is.
    pub lost: Option<String>,
    /// When this was made; an old picture means that the enforcer or the disk hangs.
    pub at: Timestamp,
}

/// What the hot thread shows: replaced once a second.
#[derive(Clone, Debug)]
pub struct HotStatus {
    /// The engine's figures.
    pub snapshot: Snapshot,
    /// Lines that gave no record, by reason.
    pub rejected: Vec<(Reject, u64)>,
    /// What happened to the logs since the start.
    pub totals: Counts,
    /// Bytes that are written and not read.
    pub backlog_bytes: u64,
    /// Reads that failed.
    pub read_errors: u64,
    /// Outputs that were lost because the apply thread did not keep up.
    pub lost_outputs: u64,
    /// What is not as it should be with the logs.
    pub degraded: Vec<Trouble>,
    /// When this was made (wall clock).
    pub at: Timestamp,
}

/// The newest state of a thread, shared with the threads that show it.
pub type Shared<T> = Arc<Mutex<Option<Arc<T>>>>;

/// Replaces a shared state.
pub fn publish<T>(slot: &Shared<T>, picture: T) {
    *slot.lock().unwrap_or_else(PoisonError::into_inner) = Some(Arc::new(picture));
}

/// The newest shared state.
pub fn newest<T>(slot: &Shared<T>) -> Option<Arc<T>> {
    slot.lock().unwrap_or_else(PoisonError::into_inner).clone()
}
