//! Moves a damaged database out of the way.

use std::fs;
use std::path::{Path, PathBuf};

use super::{Quarantined, StoreError, schema};
use crate::time::Timestamp;

/// Damaged files that are kept; a dying disk must not fill itself with them.
const KEPT: usize = 4;

/// Renames the database and its write-ahead log to a name with the time in it. Nothing is open any more.
///
/// # Errors
/// [`StoreError::Foreign`] where neither content nor name says that it is a database: a `store.path` that was set to
/// somebody's log by mistake must not move that away.
pub(super) fn quarantine(path: &Path, now: Timestamp, problem: String) -> Result<Quarantined, StoreError> {
    if !has_magic(path)
        && !path.extension().is_some_and(|e| ["db", "sqlite", "sqlite3"].iter().any(|known| e == *known))
    {
        return Err(StoreError::Foreign(path.to_owned()));
    }
    let stamp: String = now.to_string().chars().filter(char::is_ascii_alphanumeric).collect();
    let moved_to = (1..)
        .map(|n| if n == 1 { format!(".damaged-{stamp}") } else { format!(".damaged-{stamp}-{n}") })
        .map(|suffix| schema::beside(path, &suffix))
        .find(|candidate| !candidate.exists())
        .unwrap_or_else(|| schema::beside(path, ".damaged"));
    let failed = |e: std::io::Error| StoreError::ReadOnly(format!("damaged ({problem}), and cannot be moved: {e}"));
    // First the log: a crash between the two must not leave a log beside a fresh database.
    let wal = schema::beside(path, "-wal");
    if wal.exists() {
        fs::rename(&wal, schema::beside(&moved_to, "-wal")).map_err(failed)?;
    }
    let _ = fs::remove_file(schema::beside(path, "-shm"));
    fs::rename(path, &moved_to).map_err(failed)?;
    forget_oldest(path);
    Ok(Quarantined { moved_to, problem })
}

fn has_magic(path: &Path) -> bool {
    use std::io::Read as _;
    let mut start = [0; 16];
    fs::File::open(path).and_then(|mut file| file.read_exact(&mut start)).is_ok() && start == *b"SQLite format 3\0"
}

fn forget_oldest(path: &Path) {
    let (Some(dir), Some(name)) = (path.parent(), path.file_name().and_then(|n| n.to_str())) else { return };
    let start = format!("{name}.damaged-");
    let Ok(entries) = fs::read_dir(if dir.as_os_str().is_empty() { Path::new(".") } else { dir }) else { return };
    let mut damaged: Vec<PathBuf> = entries
        .flatten()
        .map(|e| e.path())
        .filter(|p| {
            p.file_name().and_then(|n| n.to_str()).is_some_and(|n| n.starts_with(&start) && !n.ends_with("-wal"))
        })
        .collect();
    damaged.sort();
    for old in damaged.iter().rev().skip(KEPT) {
        // One that cannot be removed is tried again next time.
        let _ = fs::remove_file(old);
        let _ = fs::remove_file(schema::beside(old, "-wal"));
    }
}
