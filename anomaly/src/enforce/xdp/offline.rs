//! What works without the daemon: stop dropping, and remove every trace.

use std::os::fd::AsFd;
use std::path::Path;

use anomaly_common::switch;

use super::attach;
use super::pins::{self, PinDir, pin_error};
use super::raw;
use crate::enforce::EnforceError;

/// What [`down`] took away.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Removed {
    /// Interfaces the program was detached from.
    pub interfaces: Vec<String>,
    /// Pinned maps that were removed.
    pub maps: usize,
}

/// Stops all dropping at once through the pinned control map, without the daemon. Bans stay in the
/// maps; the next `run` turns dropping on again. `Ok(false)` when nothing is pinned at `pin_dir`.
///
/// # Errors
/// The kernel's, when the control map cannot be opened or written.
pub fn off(pin_dir: &Path) -> Result<bool, EnforceError> {
    readable(pin_dir)?;
    let mut found = false;
    for version in pins::versions(pin_dir) {
        let pin = version.join("SWITCH");
        let opened = match raw::get(&pin) {
            Err(e) if e.kind() == std::io::ErrorKind::NotFound => continue,
            other => other.map_err(|e| pin_error("opening", &pin, e))?,
        };
        raw::set_first(opened.as_fd(), switch::OFF).map_err(|e| pin_error("writing", &pin, e))?;
        found = true;
    }
    Ok(found)
}

/// Removes every trace: links, maps, pins, the directory. Works without the daemon.
///
/// # Errors
/// [`EnforceError::InUse`] while a daemon runs on `pin_dir`; the kernel's when something had to stay.
pub fn down(pin_dir: &Path) -> Result<Removed, EnforceError> {
    readable(pin_dir)?;
    let Some(dir) = PinDir::lock_existing(pin_dir)? else { return Ok(Removed::default()) };
    take_down(dir)
}

/// A directory that may not be read is not empty.
fn readable(pin_dir: &Path) -> Result<(), EnforceError> {
    match std::fs::read_dir(pin_dir) {
        Err(e) if e.kind() != std::io::ErrorKind::NotFound => Err(pin_error("reading", pin_dir, e)),
        _ => Ok(()),
    }
}

/// Removes every trace below a locked directory.
pub fn take_down(dir: PinDir) -> Result<Removed, EnforceError> {
    let mut removed = Removed::default();
    for version in pins::versions(dir.path()) {
        for (interface, pin) in pins::links(&version) {
            attach::remove_pinned(&pin)?;
            removed.interfaces.push(interface);
        }
        removed.maps += std::fs::read_dir(&version).map_or(0, Iterator::count);
    }
    dir.remove()?;
    removed.interfaces.sort();
    removed.interfaces.dedup();
    Ok(removed)
}
