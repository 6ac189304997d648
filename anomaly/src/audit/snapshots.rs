//! The firewall's state at every ban and unban, as proof.
//!
//! Each change is a line. The whole state follows where the last whole one is at least a second
//! old; otherwise the line says when that one was written.

use std::fmt::Write as _;
use std::path::Path;
use std::time::Duration;

use ipnet::IpNet;

use super::{AuditError, file::AppendFile};
use crate::report::{inert, ip_text};
use crate::time::Timestamp;

/// Whole snapshots are at least this far apart.
const INTERVAL: Duration = Duration::from_secs(1);
/// Bytes of whole snapshots per second, so that 100,000 rules at every ban do not fill the disk.
const BYTES_PER_SEC: u64 = 1 << 20;

/// One change of the firewall.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Change {
    /// Dropped from now on, for so long; `None` is for ever.
    Ban(IpNet, Option<Duration>),
    /// No longer dropped.
    Unban(IpNet),
}

/// The file of firewall snapshots.
#[derive(Debug)]
pub struct Snapshots {
    file: AppendFile,
    /// When the last whole one was written, and how long nobody may write the next.
    last: Option<(Timestamp, Duration)>,
    /// Something changed since.
    changed: bool,
}

impl Snapshots {
    /// The file at `path`; as [`super::Audit::open`].
    pub fn open(path: &Path, max_bytes: u64) -> Self {
        Self { file: AppendFile::new(path, max_bytes), last: None, changed: false }
    }

    /// Writes what changed, and the whole state where that is due (see [`Snapshots::due`]); `full`
    /// is called only then. Text beyond half of `audit.max_bytes` is cut, and says so.
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
        self.changed |= !changes.is_empty();
        let due = self.due(now);
        let mut entry = String::new();
        let reference = match self.last {
            _ if due => "below".to_owned(),
            Some((at, _)) => at.to_string(),
            None => "none".to_owned(),
        };
        for change in changes {
            let what = match change {
                Change::Ban(prefix, Some(left)) => format!("ban {} for {} s", ip_text(prefix), left.as_secs()),
                Change::Ban(prefix, None) => format!("ban {} for ever", ip_text(prefix)),
                Change::Unban(prefix) => format!("unban {}", ip_text(prefix)),
            };
            // Writing to a string cannot fail.
            let _ = writeln!(entry, "{now} change {what} enforcer={enforcer} full={reference}");
        }
        if due {
            let (text, wait) = match full() {
                Ok(text) => {
                    let limit = usize::try_from(self.file.max_bytes() / 2).unwrap_or(usize::MAX);
                    let kept = &text[..text.floor_char_boundary(limit)];
                    let cut = if kept.len() < text.len() { format!(" cut_to={}", kept.len()) } else { String::new() };
                    let _ = writeln!(entry, "{now} full enforcer={enforcer} bytes={}{cut}", text.len());
                    entry.reserve(kept.len() + kept.len() / 8);
                    for line in kept.lines() {
                        entry.push_str("  ");
                        if line.bytes().all(|b| (b' '..=b'~').contains(&b)) {
                            entry.push_str(line);
                        } else {
                            entry.push_str(&inert(line.as_bytes()));
                        }
                        entry.push('\n');
                    }
                    let _ = writeln!(entry, "{now} end");
                    (true, Duration::from_millis((kept.len() as u64).saturating_mul(1000) / BYTES_PER_SEC))
                }
                Err(error) => {
                    let _ = writeln!(entry, "{now} full enforcer={enforcer} failed: {}", inert(error.as_bytes()));
                    (false, Duration::ZERO)
                }
            };
            self.last = Some((now, wait.max(INTERVAL)));
            self.changed = !text;
        }
        if entry.is_empty() { Ok(()) } else { self.file.append(entry.as_bytes()) }
    }

    /// True when something changed since the last whole snapshot and that is old enough: a second, or
    /// longer where it was big (1 MiB of them is written per second). Ask about once a second, and
    /// call [`Snapshots::write`] without changes, so that the end of a burst is proved too.
    pub fn due(&self, now: Timestamp) -> bool {
        self.changed && self.last.is_none_or(|(at, wait)| now < at || now.since(at) >= wait)
    }

    /// SIGHUP; as [`super::Audit::reopen`].
    pub fn reopen(&mut self, path: &Path, max_bytes: u64) {
        self.file.reopen(path, max_bytes);
        // What the new file refers to must be in it.
        self.last = None;
    }

    /// Entries lost since the start.
    pub fn lost(&self) -> u64 {
        self.file.lost()
    }

    /// Why the newest write failed; `None` while all is well.
    pub fn failing(&self) -> Option<&str> {
        self.file.failing()
    }
}
