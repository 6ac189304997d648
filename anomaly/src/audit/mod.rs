//! The audit log (JSON Lines) and the firewall snapshots, both rotated by size.
//!
//! Every event is one line written by one call; the caller says when it is. A failure is returned,
//! counted, and over as soon as a write works again.

use std::path::{Path, PathBuf};

use ipnet::IpNet;

use crate::engine::{Ban, BaselineUpdate, Braked, Finding, LevelAccepted, NotEffective, Unban};
use crate::time::Timestamp;

/// Why a line is not in the audit log (or a snapshot not in its file).
#[derive(Debug, thiserror::Error)]
#[error("{path}: {source} ({lost} lines lost so far)")]
pub struct AuditError {
    /// The file.
    pub path: PathBuf,
    /// What the system said.
    pub source: std::io::Error,
    /// Lines lost since the start, this one included.
    pub lost: u64,
}

/// What happened. Text from outside is made inert on the way in.
#[derive(Clone, Debug)]
pub enum Event<'a> {
    /// A ban, after it was enforced or not.
    Ban {
        /// What was decided.
        ban: &'a Ban,
        /// Why it is not enforced.
        error: Option<&'a str>,
    },
    /// An unban, after it was carried out or not.
    Unban {
        /// What was decided.
        unban: &'a Unban,
        /// Packets the ban had dropped.
        packets: u64,
        /// Bytes the ban had dropped.
        bytes: u64,
        /// Why it could not be carried out.
        error: Option<&'a str>,
    },
    /// The site as a whole is unusual.
    GlobalAnomaly(&'a Finding),
    /// The baseline was recomputed.
    Baseline(&'a BaselineUpdate),
    /// A rung of the ladder could not be taken.
    Fallback {
        /// Interface, where it is one interface's trouble.
        interface: Option<&'a str>,
        /// The rung that failed.
        from: &'a str,
        /// The rung taken instead.
        to: &'a str,
        /// Why.
        reason: &'a str,
    },
    /// The enforcer could not do something outside a ban or an unban (restore, maintenance).
    EnforceFailed {
        /// Which prefix, where it is about one.
        prefix: Option<IpNet>,
        /// What it said.
        error: &'a str,
    },
    /// Records of a banned prefix keep coming.
    NotEffective {
        /// The proof.
        proof: &'a NotEffective,
        /// The likely reason.
        reason: &'a str,
    },
    /// The kernel did not hold what was wanted, and now does.
    Repaired {
        /// Bans that were missing.
        missing: &'a [IpNet],
        /// Entries that no ban wanted.
        orphans: &'a [IpNet],
    },
    /// The ban map was full.
    MapFull {
        /// Bans that are no longer enforced.
        gave_way: &'a [IpNet],
        /// Entries the map can hold.
        capacity: u32,
    },
    /// The mass-ban brake held a ban back.
    Braked(&'a Braked),
    /// A level became normal.
    LevelAccepted(&'a LevelAccepted),
    /// Something is not as it should be, or is again (`recovered`).
    Degraded {
        /// The stable word of `status`'s `degraded[].what`.
        what: &'a str,
        /// What and why.
        reason: &'a str,
        /// It is over.
        recovered: bool,
    },
    /// Dropping was stopped by `anomaly off`.
    Off,
    /// The daemon is up.
    Started {
        /// Its version.
        version: &'a str,
        /// Bans taken over from the store.
        restored_bans: usize,
    },
    /// The daemon ends.
    Stopped {
        /// Bans stay enforced.
        keep: bool,
    },
    /// SIGHUP: the new configuration is in force, or why the old one stays.
    ConfigReloaded {
        /// Why it was refused.
        error: Option<&'a str>,
    },
}

/// The audit log.
#[derive(Debug)]
pub struct Audit {}

impl Audit {
    /// The log at `path` (directory 0750, file 0640 are made where missing); never fails: what is
    /// wrong is said by the first write.
    pub fn open(path: &Path, max_bytes: u64) -> Self {
        let _ = (path, max_bytes);
        Self {}
    }

    /// Appends one whole line.
    ///
    /// # Errors
    /// Why the line is not in the file; it is counted, and the next write tries again.
    pub fn write(&mut self, ts: Timestamp, enforcer: &str, event: &Event<'_>) -> Result<(), AuditError> {
        let _ = (ts, enforcer, event);
        Ok(())
    }

    /// SIGHUP: opens the path anew (it may have been renamed by logrotate, or changed).
    pub fn reopen(&mut self, path: &Path, max_bytes: u64) {
        let _ = (path, max_bytes);
    }

    /// Lines lost since the start.
    pub fn lost(&self) -> u64 {
        0
    }

    /// Why the newest write failed; `None` while all is well.
    pub fn failing(&self) -> Option<&str> {
        None
    }
}

/// One change of the firewall, for the snapshot file.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Change {
    /// Dropped from now on; `None` is for ever.
    Ban(IpNet, Option<std::time::Duration>),
    /// No longer dropped.
    Unban(IpNet),
}

/// The file of firewall snapshots.
#[derive(Debug)]
pub struct Snapshots {}

impl Snapshots {
    /// As [`Audit::open`].
    pub fn open(path: &Path, max_bytes: u64) -> Self {
        let _ = (path, max_bytes);
        Self {}
    }

    /// Writes what changed, and the whole state where the last whole one is at least a second
    /// old (longer for big ones: at most 1 MiB/s is written); otherwise a reference to that one.
    /// `full` is only called when it is due.
    ///
    /// # Errors
    /// Why it is not in the file.
    pub fn write(
        &mut self,
        now: Timestamp,
        enforcer: &str,
        changes: &[Change],
        full: impl FnOnce() -> Result<String, String>,
    ) -> Result<(), AuditError> {
        let _ = (now, enforcer, changes, full);
        Ok(())
    }

    /// True when changes were written since the last whole snapshot and a new one is due: call
    /// [`Snapshots::write`] without changes. Ask about once a second.
    pub fn due(&self, now: Timestamp) -> bool {
        let _ = now;
        false
    }

    /// As [`Audit::reopen`].
    pub fn reopen(&mut self, path: &Path, max_bytes: u64) {
        let _ = (path, max_bytes);
    }

    /// Why the newest write failed; `None` while all is well.
    pub fn failing(&self) -> Option<&str> {
        None
    }
}
