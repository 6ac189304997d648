//! The mark that `anomaly off` leaves for a running daemon: do not drop, and do not repair that nothing is dropped.
//!
//! It is a file beside the daemon's socket, so that it needs no daemon that answers.

use std::io;
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
    std::fs::write(mark(socket), b"")
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
