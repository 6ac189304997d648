//! The mark that `anomaly off` leaves for a running daemon: do not drop, and do not repair that nothing is dropped.
//!
//! It is a file beside the daemon's socket, so that it needs no daemon that answers.

use std::io;
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};

fn mark(socket: &Path) -> PathBuf {
    socket.with_extension("off")
}

/// Tells the daemon behind `socket`, running or not, that dropping is off.
///
/// # Errors
/// When the file cannot be made.
pub fn mark_off(socket: &Path) -> io::Result<()> {
    if let Some(directory) = socket.parent() {
        std::fs::create_dir_all(directory)?;
    }
    // A link in its place, which somebody may have put there, leads elsewhere.
    let mut mark_only = std::fs::OpenOptions::new();
    mark_only.write(true).create(true).truncate(false).custom_flags(libc::O_NOFOLLOW);
    mark_only.open(mark(socket)).map(drop)
}

/// Whether dropping is off.
pub fn is_off(socket: &Path) -> bool {
    mark(socket).exists()
}

/// A start turns dropping on again.
pub fn clear(socket: &Path) {
    // What cannot be removed shows as `off` in status.
    let _ = std::fs::remove_file(mark(socket));
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_mark_is_made_and_seen_and_follows_no_link() {
        let dir = tempfile::tempdir().unwrap();
        let socket = dir.path().join("a.sock");
        let elsewhere = dir.path().join("precious");
        std::fs::write(&elsewhere, "kept").unwrap();
        std::os::unix::fs::symlink(&elsewhere, dir.path().join("a.off")).unwrap();
        assert!(mark_off(&socket).is_err());
        assert_eq!(std::fs::read_to_string(&elsewhere).unwrap(), "kept");
        clear(&socket);
        assert!(!is_off(&socket));
        mark_off(&socket).unwrap();
        mark_off(&socket).unwrap();
        assert!(is_off(&socket));
    }
}
