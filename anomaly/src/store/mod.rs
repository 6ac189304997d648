//! What outlives a restart, in SQLite: bans on record with their evidence, offences, what the
//! engine has learned, how far each log has been read, and the points of the graph.
//!
//! It decides nothing and reads no clock. One [`Store`] writes, on the thread that applies
//! decisions; a [`Reader`] is a second, read-only connection for threads that only ask. No call
//! waits for a lock longer than [`BUSY_TIMEOUT`]. What could not be written is kept in memory
//! (bounded) and written by a later call, so a full, locked or read-only disk heals by itself.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::time::Duration;

use ipnet::IpNet;

use crate::engine::{Ban, State, Unban};
use crate::report::HistoryPoint;
use crate::time::Timestamp;

/// How long a call waits for someone else's lock on the database.
pub const BUSY_TIMEOUT: Duration = Duration::from_millis(100);

/// What can be wrong with the database. None of these stops detection or enforcement.
#[derive(Debug, thiserror::Error)]
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
    #[error("the state database was damaged ({}); it was moved to {} and a fresh one started", .0.problem, .0.moved_to.display())]
    Damaged(Quarantined),
    /// Written by a newer version of this program.
    #[error(
        "{path} was written by a newer version (schema {found}, this one knows {known}); update anomaly, or move the file away"
    )]
    TooNew {
        /// The file.
        path: PathBuf,
        /// Its schema version.
        found: i64,
        /// The newest that this program knows.
        known: i64,
    },
    /// An SQLite database, but of another program.
    #[error("{0} is a database of another program")]
    Foreign(PathBuf),
    /// Directory or file could not be made or opened.
    #[error("{path}: {source}")]
    Io {
        /// Which.
        path: PathBuf,
        /// Why.
        source: std::io::Error,
    },
    /// Anything else SQLite says.
    #[error("state database: {0}")]
    Other(String),
}

/// A damaged database that was moved out of the way.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Quarantined {
    /// Where it is now (`state.db.damaged-20260427T092551Z`, its `-wal` beside it).
    pub moved_to: PathBuf,
    /// What SQLite said.
    pub problem: String,
}

/// What [`Store::open`] gives.
#[derive(Debug)]
pub struct Opened {
    /// Ready to write.
    pub store: Store,
    /// What was stored; empty for a new file.
    pub loaded: Loaded,
    /// Set when the file that was there was damaged: report it loudly, all that was stored is lost.
    pub quarantined: Option<Quarantined>,
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

/// The writing connection.
#[derive(Debug)]
pub struct Store {}

/// What became of a ban on record.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum BanState {
    /// In force.
    Active,
    /// Ran out.
    Expired,
    /// Lifted by an operator.
    Lifted,
    /// Had ended before it was decided (backlog).
    InPast,
}

impl BanState {
    /// The word of explanations and of the database.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Active => "active",
            Self::Expired => "expired",
            Self::Lifted => "lifted",
            Self::InPast => "in_past",
        }
    }
}

/// A ban on record.
#[derive(Clone, Debug, PartialEq)]
pub struct Recorded {
    /// With its complete evidence.
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

impl Store {
    /// Opens the database, making directory (0750) and file (0640) where missing, migrates it and
    /// loads what it holds. A damaged file is moved aside and a fresh one started.
    ///
    /// # Errors
    /// [`StoreError::TooNew`] and [`StoreError::Foreign`] (fatal at start), or whatever keeps a
    /// database from being opened at all.
    pub fn open(path: &Path, now: Timestamp) -> Result<Opened, StoreError> {
        let _ = (path, now);
        unreachable!()
    }

    /// Puts a ban on record. When this fails the ban is kept and written by a later call: go on
    /// and enforce it. Never syncs to disk, so it costs tens of microseconds.
    ///
    /// # Errors
    /// Why it is not on disk yet.
    pub fn record_ban(&mut self, ban: &Ban) -> Result<(), StoreError> {
        let _ = ban;
        Ok(())
    }

    /// Ends the ban on record, with what it had dropped. As [`Store::record_ban`] otherwise.
    /// Call [`Store::save_progress`] right after an operator's unban.
    ///
    /// # Errors
    /// Why it is not on disk yet.
    pub fn record_unban(&mut self, unban: &Unban, packets: u64, bytes: u64) -> Result<(), StoreError> {
        let _ = (unban, packets, bytes);
        Ok(())
    }

    /// Saves everything the engine knows and how far the logs were read, in one transaction
    /// together with decisions that were not written yet. After a crash the daemon continues here.
    ///
    /// # Errors
    /// Why it was not saved; the newest earlier save stays in force.
    pub fn save_progress(
        &mut self,
        now: Timestamp,
        state: &State,
        checkpoints: &BTreeMap<PathBuf, Vec<u8>>,
    ) -> Result<(), StoreError> {
        let _ = (now, state, checkpoints);
        Ok(())
    }

    /// Updates packets and bytes of active bans.
    ///
    /// # Errors
    /// Why they were not written; nothing is kept, the next call brings newer ones.
    pub fn update_counts(&mut self, counts: &[(IpNet, u64, u64)]) -> Result<(), StoreError> {
        let _ = counts;
        Ok(())
    }

    /// Adds a point to the graph (one a minute).
    ///
    /// # Errors
    /// Why it was not written; it is not kept.
    pub fn add_history(&mut self, point: &HistoryPoint) -> Result<(), StoreError> {
        let _ = point;
        Ok(())
    }

    /// Tries again to write what is kept in memory. Call it about once a second while
    /// [`Store::unwritten`] is not 0.
    ///
    /// # Errors
    /// Why it still cannot.
    pub fn retry(&mut self) -> Result<(), StoreError> {
        Ok(())
    }

    /// Decisions that are in memory only.
    pub fn unwritten(&self) -> usize {
        0
    }

    /// Forgets what is too old or too much. Call it about once an hour; works in small pieces
    /// and returns `true` when there is more to do.
    ///
    /// # Errors
    /// Why it could not.
    pub fn prune(&mut self, now: Timestamp, offence_decay: Duration) -> Result<bool, StoreError> {
        let _ = (now, offence_decay);
        Ok(false)
    }

    /// Bytes of the database and its write-ahead log on disk.
    pub fn size_bytes(&self) -> u64 {
        0
    }

    /// A read-only connection of its own, for another thread.
    ///
    /// # Errors
    /// Why the database cannot be read.
    pub fn reader(&self) -> Result<Reader, StoreError> {
        Ok(Reader {})
    }
}

/// A read-only connection; any thread may have one. Follows the file when it is quarantined or replaced.
#[derive(Debug)]
pub struct Reader {}

impl Reader {
    /// Opens an existing database for reading only.
    ///
    /// # Errors
    /// Why it cannot be read.
    pub fn open(path: &Path) -> Result<Self, StoreError> {
        let _ = path;
        Ok(Self {})
    }

    /// Bans on record whose prefix shares an address with this one, newest first, at most `limit`,
    /// with complete evidence.
    ///
    /// # Errors
    /// Why the database cannot be read.
    pub fn explain(&mut self, prefix: &IpNet, limit: usize) -> Result<Vec<Recorded>, StoreError> {
        let _ = (prefix, limit);
        Ok(Vec::new())
    }

    /// Points of the graph from `since` (seconds since the epoch) on, oldest first.
    ///
    /// # Errors
    /// Why the database cannot be read.
    pub fn history(&mut self, since: i64) -> Result<Vec<HistoryPoint>, StoreError> {
        let _ = since;
        Ok(Vec::new())
    }

    /// What the engine had learned: `State::baseline`; empty when nothing is stored.
    ///
    /// # Errors
    /// Why the database cannot be read.
    pub fn baseline(&mut self) -> Result<Vec<u8>, StoreError> {
        Ok(Vec::new())
    }
}

/// `replay --baseline DB`: the baseline of a database, without changing the file.
///
/// # Errors
/// Why the database cannot be read.
pub fn read_baseline(path: &Path) -> Result<Vec<u8>, StoreError> {
    Reader::open(path)?.baseline()
}

/// `replay --learn DB`: writes the baseline of a new or existing database and touches nothing else in it.
///
/// # Errors
/// Why it could not be written.
pub fn write_baseline(path: &Path, now: Timestamp, baseline: &[u8]) -> Result<(), StoreError> {
    let _ = (path, now, baseline);
    Ok(())
}
