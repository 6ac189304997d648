//! Drops in the kernel: bans are entries of the maps of an XDP program.
//!
//! Opening locks the pin directory, takes over what an earlier daemon left there (or makes it anew)
//! and attaches the program to every interface it can. It decides nothing, and it never takes an
//! interface away from somebody else's program.

use std::path::Path;

use ipnet::IpNet;

use super::{Coverage, Drop, EnforceError, Enforcer, Held, Incident, Name};
use crate::config;

/// The enforcer over XDP. Made by [`XdpEnforcer::open`].
#[derive(Debug)]
pub struct XdpEnforcer {}

/// What [`down`] took away.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Removed {
    /// Interfaces the program was detached from.
    pub interfaces: Vec<String>,
    /// Pinned maps that were removed.
    pub maps: usize,
}

impl XdpEnforcer {
    /// Locks `enforcer.pin_dir`, loads the program, takes over pinned bans, attaches to the
    /// interfaces, and turns enforcement on (also after [`off`]).
    ///
    /// Succeeds when at least one interface is covered; each one that is not comes back as
    /// [`Incident::Fallback`] with `interface: Some(..)` and `from: "xdp"`, and has mode `none` in
    /// [`Enforcer::coverage`]. Generic XDP is reported as a fallback from `xdp native` to `xdp generic`.
    ///
    /// # Errors
    /// [`EnforceError::InUse`]: stop, do not fall back. [`EnforceError::NoInterface`]: a configured
    /// interface does not exist; also a reason to stop. [`EnforceError::Kernel`]: XDP cannot be had here, with the
    /// reason and a hint; `auto` takes the iptables rung.
    pub fn open(config: &config::Enforcer) -> Result<(Self, Vec<Incident>), EnforceError> {
        Err(EnforceError::NoInterface(config.interfaces.join(", ")))
    }
}

/// Stops all dropping at once through the pinned control map, without the daemon. Bans stay in the
/// maps; the next `run` turns dropping on again. `Ok(false)` when nothing is pinned at `pin_dir`.
///
/// # Errors
/// The kernel's, when the control map cannot be opened or written.
pub fn off(pin_dir: &Path) -> Result<bool, EnforceError> {
    let _ = pin_dir;
    Ok(false)
}

/// Removes every trace: links, maps, pins, the directory. Works without the daemon.
///
/// # Errors
/// [`EnforceError::InUse`] while a daemon runs on `pin_dir`; the kernel's when something had to stay.
pub fn down(pin_dir: &Path) -> Result<Removed, EnforceError> {
    let _ = pin_dir;
    Ok(Removed::default())
}

impl Enforcer for XdpEnforcer {
    fn name(&self) -> Name {
        Name::Xdp
    }

    fn ban(&mut self, drops: &[Drop]) -> Vec<Result<(), EnforceError>> {
        drops.iter().map(|_| Err(EnforceError::Full { capacity: 0 })).collect()
    }

    fn unban(&mut self, prefixes: &[IpNet]) -> Vec<Result<(), EnforceError>> {
        prefixes.iter().map(|_| Ok(())).collect()
    }

    fn banned(&mut self) -> Result<Vec<Held>, EnforceError> {
        Ok(Vec::new())
    }

    fn snapshot_text(&mut self) -> Result<String, EnforceError> {
        Ok(String::new())
    }

    fn set_never_drop(&mut self, _prefixes: &[IpNet]) -> Result<(), EnforceError> {
        Ok(())
    }

    fn maintain(&mut self) -> Vec<Incident> {
        Vec::new()
    }

    fn coverage(&mut self) -> Coverage {
        Coverage::default()
    }

    fn close(self: Box<Self>, _keep: bool) -> Result<(), EnforceError> {
        Ok(())
    }
}
