//! The audit log (JSON Lines) and the firewall snapshots, both rotated by size.
//!
//! Every event is one line, written by one call; the caller says when it is and what is worth one.
//! A failure is returned, counted, and over as soon as a write works again.
//!
//! # Bounds
//! Each file and [`GENERATIONS`] older ones (`audit.jsonl.1` is the newest of them) of `audit.max_bytes`.

mod event;
mod file;
mod snapshots;
mod told;

use std::path::{Path, PathBuf};

pub use event::Event;
pub use snapshots::{Change, Snapshots};
pub use told::Newest;

use crate::time::Timestamp;

/// Rotated files that are kept beside the one being written.
pub const GENERATIONS: u32 = 4;

/// Why a line is not in the audit log (or a snapshot not in its file).
#[derive(Debug, thiserror::Error)]
#[error("{}: {source} ({lost} lost since the start)", path.display())]
pub struct AuditError {
    /// The file.
    pub path: PathBuf,
    /// What the system said.
    pub source: std::io::Error,
    /// Entries lost since the start, this one included.
    pub lost: u64,
}

/// The audit log.
#[derive(Debug)]
pub struct Audit {
    file: file::AppendFile,
}

impl Audit {
    /// The log at `path` (directory 0750 and file 0640 are made where missing). Never fails: what is
    /// wrong is said by the first write. Half a line that a crash left at the end is taken away.
    pub fn open(path: &Path, max_bytes: u64) -> Self {
        Self { file: file::AppendFile::new(path, max_bytes) }
    }

    /// Appends one whole line, after rotating where it would not fit. Blocks as long as the disk does.
    ///
    /// # Errors
    /// Why the line is not in the file; it is counted, and the next write tries again.
    pub fn write(&mut self, ts: Timestamp, enforcer: &str, event: &Event<'_>) -> Result<(), AuditError> {
        self.file.append(event.line(ts, enforcer).as_bytes())
    }

    /// SIGHUP: opens the path anew (logrotate may have renamed it, the configuration changed it).
    pub fn reopen(&mut self, path: &Path, max_bytes: u64) {
        self.file.reopen(path, max_bytes);
    }

    /// Lines lost since the start.
    pub fn lost(&self) -> u64 {
        self.file.lost()
    }

    /// Why the newest write failed; `None` while all is well.
    pub fn failing(&self) -> Option<&str> {
        self.file.failing()
    }
}
