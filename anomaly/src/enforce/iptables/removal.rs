//! Takes every rule and set of ours away, without a daemon.

use std::ffi::OsStr;

use super::claim;
use super::firewall::{Firewall, Variant};
use super::rules::{Family, Table};
use super::sets::Sets;
use crate::enforce::EnforceError;

/// What [`remove_all`] took away.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Removed {
    /// Rules of ours, over all tables, chains, families and variants.
    pub rules: usize,
    /// Sets of ours.
    pub sets: usize,
}

/// Removes every rule and set of ours from this network namespace, of both variants of iptables,
/// without the daemon. Where iptables is not installed there is nothing to remove.
///
/// # Errors
/// The command's, when something of ours had to stay; everything that could go has gone.
pub fn remove_all() -> Result<Removed, EnforceError> {
    remove_with(&std::env::var_os("PATH").unwrap_or_default())
}

/// The same for a daemon that works without rules, so that none of an earlier one outlives its ban.
/// Leaves them alone where another anomaly in this network namespace uses them.
///
/// # Errors
/// As there.
pub fn remove_leftovers() -> Result<Removed, EnforceError> {
    match claim::namespace() {
        Ok(_claim) => remove_all(),
        Err(error) => {
            tracing::debug!(%error, "rules of another anomaly are left alone");
            Ok(Removed::default())
        }
    }
}

/// The same with the programs of `path`.
pub(super) fn remove_with(path: &OsStr) -> Result<Removed, EnforceError> {
    let mut removed = Removed::default();
    let mut failed = None;
    for family in Family::BOTH {
        for mut firewall in Firewall::all(family, path) {
            for table in [Table::Filter, Table::Raw] {
                if !firewall.has(table) {
                    continue;
                }
                match firewall.delete(table, |_| true) {
                    Ok(rules) => removed.rules += rules,
                    // A kernel without this table, family or variant has no rules of ours in it.
                    Err(error) if absent(&firewall, table, &error) => {
                        tracing::debug!(%error, "nothing to remove");
                    }
                    Err(error) => failed = failed.or(Some(error)),
                }
            }
        }
        if let Ok(sets) = Sets::find(0, path) {
            match sets.destroy(family) {
                Ok(destroyed) => removed.sets += usize::from(destroyed),
                Err(error) if removed.rules == 0 && failed.is_none() => {
                    tracing::debug!(%error, "ipset cannot be asked");
                }
                Err(error) => failed = failed.or(Some(error)),
            }
        }
    }
    failed.map_or(Ok(removed), Err)
}

/// Whether an error only says that the kernel lacks what was asked for.
fn absent(firewall: &Firewall, table: Table, error: &EnforceError) -> bool {
    let EnforceError::Command { message, .. } = error else { return false };
    let lacks =
        ["does not exist", "not supported", "Address family", "Could not fetch rule set generation id: Invalid"];
    let optional = firewall.variant == Variant::Legacy || table == Table::Raw || firewall.family == Family::V6;
    optional && lacks.iter().any(|words| message.contains(words))
}
