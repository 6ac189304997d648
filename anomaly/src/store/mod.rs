//! What outlives a restart, in SQLite: bans on record with their evidence, offences, what the
//! engine has learned, how far each log has been read, and the points of the graph.
//!
//! It decides nothing and reads no clock. One [`Store`] writes, on the thread that applies
//! decisions; a [`Reader`] is a second, read-only connection for threads that only ask. No call
//! waits for a lock longer than [`BUSY_TIMEOUT`]. What could not be written is kept in memory
//! (bounded) and written by a later call, so a full, locked or read-only disk heals by itself.
//!
//! # Bounds
//! Bans that have ended: [`MAX_ENDED`], and [`KEEP_ENDED`]. Offences: [`MAX_OFFENCES`]. Graph:
//! [`KEEP_HISTORY`]. Checkpoints: [`KEEP_CHECKPOINTS`]. Unwritten decisions in memory:
//! [`MAX_UNWRITTEN`]. Bans in force are as many as the engine has.

mod finding;
mod quarantine;
mod reader;
mod rows;
mod schema;
mod transaction;
mod writer;

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::time::Duration;

pub use reader::{Reader, read_baseline};
pub use writer::{COUNTS, Store, write_baseline};

use crate::engine::{Ban, State};
use crate::time::Timestamp;

/// How long a call waits for someone else's lock on the database.
pub const BUSY_TIMEOUT: Duration = Duration::from_millis(100);
/// How long [`Store::open`] waits for it: starting without knowing the bans would lift them.
pub const OPEN_TIMEOUT: Duration = Duration::from_secs(5);
/// Bans that have ended and stay on record for `explain`; the oldest go first.
pub const MAX_ENDED: u32 = 50_000;
/// How long a ban that has ended stays on record.
pub const KEEP_ENDED: Duration = Duration::from_secs(90 * 86_400);
/// Offences on disk; the newest stay.
pub const MAX_OFFENCES: usize = 1_000_000;
/// How far back the graph goes.
pub const KEEP_HISTORY: Duration = Duration::from_secs(8 * 86_400);
/// How long the checkpoint of a log that is no longer read is kept.
pub const KEEP_CHECKPOINTS: Duration = Duration::from_secs(30 * 86_400);
/// Decisions that are kept in memory while the disk cannot be written. Beyond it the oldest lose
/// their evidence; that they are in force is saved by the next [`Store::save_progress`] all the same.
pub const MAX_UNWRITTEN: usize = 10_000;

/// What can be wrong with the database. None of these stops detection or enforcement.
#[derive(Clone, Debug, thiserror::Error)]
pub enum StoreError {
    /// Another process holds the lock; passes by itself.
    #[error("the state database is locked by another process")]
    Busy,
    /// The disk is full; passes when there is room again.
    #[error("no room left for the state database")]
    Full,
    /// File, directory or file system cannot be written.
    #[error("the state database cannot be written: {0}")]
    ReadOnly(String),
    /// The file was damaged. It has been moved aside already and a fresh one is in use; the next
    /// [`Store::save_progress`] writes everything that is known to it.
    #[error(
        "the state database was damaged ({}); it was moved to {} and a fresh one started",
        .0.problem, .0.moved_to.display()
    )]
    Damaged(Quarantined),
    /// Written by a newer version of this program.
    #[error(
        "{} was written by a newer version (schema {found}, this one knows {known}): update anomaly, or move the file away",
        path.display()
    )]
    TooNew {
        /// The file.
        path: PathBuf,
        /// Its schema version.
        found: i64,
        /// The newest that this program knows.
        known: i64,
    },
    /// A file, but of another program.
    #[error("{} is not a database of anomaly: move it away, or set another store.path", .0.display())]
    Foreign(PathBuf),
    /// Directory or file could not be made or opened.
    #[error("{}: {message}", path.display())]
    Io {
        /// Which.
        path: PathBuf,
        /// What kind of failure.
        kind: std::io::ErrorKind,
        /// Why.
        message: String,
    },
    /// Damaged, and not ours to move (a reader's view).
    #[error("the state database is damaged: {0}")]
    Corrupt(String),
    /// Anything else SQLite says.
    #[error("state database: {0}")]
    Other(String),
}

impl StoreError {
    fn from_sqlite(path: &Path, error: rusqlite::Error) -> Self {
        use rusqlite::ErrorCode as Code;
        let text = match &error {
            rusqlite::Error::SqliteFailure(_, Some(message)) => message.clone(),
            other => other.to_string(),
        };
        match error.sqlite_error_code() {
            Some(Code::DatabaseBusy | Code::DatabaseLocked) => Self::Busy,
            Some(Code::DiskFull) => Self::Full,
            Some(Code::ReadOnly | Code::PermissionDenied) => Self::ReadOnly(format!("{}: {text}", path.display())),
            Some(Code::DatabaseCorrupt | Code::NotADatabase) => Self::Corrupt(text),
            Some(Code::CannotOpen | Code::SystemIoFailure) => {
                Self::Io { path: path.to_owned(), kind: std::io::ErrorKind::Other, message: text }
            }
            _ => Self::Other(text),
        }
    }

    /// True for a file that is somebody else's, or of a later version: do not start with it.
    pub fn is_fatal(&self) -> bool {
        matches!(self, Self::TooNew { .. } | Self::Foreign(_))
    }
}

/// A damaged database that was moved out of the way.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Quarantined {
    /// Where it is now (`state.db.damaged-20260427T092551Z`, its `-wal` beside it).
    pub moved_to: PathBuf,
    /// What SQLite said.
    pub problem: String,
}

/// What is known of the bans before everything is loaded.
#[derive(Clone, Copy, Debug)]
pub enum Early<'a> {
    /// So many IPv4 prefixes are probably banned still: those that were when progress was last saved. Not told where that is
    /// long ago.
    Count(usize),
    /// All bans that were in force, some of which have ended since.
    Bans(&'a [Ban]),
}

/// What [`Store::open`] gives.
#[derive(Debug)]
pub struct Opened {
    /// Ready to write, or to try again.
    pub store: Store,
    /// What was stored; empty for a new file.
    pub loaded: Loaded,
    /// Set when the file that was there was damaged: report it loudly, what was stored is lost.
    pub quarantined: Option<Quarantined>,
    /// Set when the database can be read (or does not exist yet) but not written: degraded, and
    /// tried again by every later call.
    pub trouble: Option<StoreError>,
}

/// What was stored, consistent with itself: the engine continues exactly behind the checkpoints.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Loaded {
    /// Active bans (also those whose end passed meanwhile: the engine ends them), oldest first,
    /// with their numbers but **without samples**: those stay on disk for [`Reader::explain`].
    pub state: State,
    /// Per log path, what was given to [`Store::save_progress`].
    pub checkpoints: BTreeMap<PathBuf, Vec<u8>>,
    /// When progress was last saved.
    pub saved_at: Option<Timestamp>,
}

/// What became of a ban on record.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum BanState {
    /// In force.
    Active,
    /// Ran out.
    Expired,
    /// Lifted by an operator, or replaced by a newer ban of the same prefix.
    Lifted,
    /// Had ended before it was decided (backlog).
    InPast,
}

/// A ban on record.
#[derive(Clone, Debug, PartialEq)]
pub struct Recorded {
    /// With its evidence.
    pub ban: Ban,
    /// What became of it.
    pub state: BanState,
    /// When it ended.
    pub ended: Option<Timestamp>,
    /// Packets dropped, as last written.
    pub packets: u64,
    /// Bytes dropped, as last written.
    pub bytes: u64,
}
