//! Takes every rule and set of ours away, without a daemon.

use std::ffi::OsStr;
use std::io;

use super::firewall::{Firewall, Variant};
use super::rules::{Family, Saved, Table, What};
use super::sets::Sets;
use super::{claim, nft};
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
/// without the daemon. Rules of nf_tables go also where iptables is not installed, or does not list them.
///
/// # Errors
/// The command's or the kernel's, when something of ours had to stay, or may have; everything that could go has gone.
pub fn remove_all() -> Result<Removed, EnforceError> {
    let (removed, failed) = remove_what_goes();
    failed.into_iter().next().map_or(Ok(removed), Err)
}

/// The same, with what had to stay or may have stayed beside what went.
pub fn remove_what_goes() -> (Removed, Vec<EnforceError>) {
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
pub(super) fn remove_with(path: &OsStr) -> (Removed, Vec<EnforceError>) {
    let mut removed = Removed::default();
    let mut failed = Vec::new();
    for family in Family::BOTH {
        let before = (removed.rules, failed.len());
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
                    Err(error) => failed.push(error),
                }
            }
        }
        for table in [Table::Filter, Table::Raw] {
            match remove_from_kernel(family, table, |_| true) {
                Ok(rules) => removed.rules += rules,
                Err(error) => failed.push(EnforceError::Kernel {
                    doing: format!("looking for rules that are left in {} {}", family.program(), table.as_str()),
                    source: error,
                    hint: None,
                }),
            }
        }
        if let Ok(sets) = Sets::find(0, path) {
            match sets.destroy(family) {
                Ok(destroyed) => removed.sets += usize::from(destroyed),
                // No rule named it.
                Err(error) if (removed.rules, failed.len()) == before => {
                    tracing::debug!(%error, "ipset cannot be asked");
                }
                Err(error) => failed.push(error),
            }
        }
    }
    (removed, failed)
}

/// Takes away what is left in nf_tables when the programs have done their work, or are not there.
pub(super) fn remove_from_kernel(family: Family, table: Table, is_wanted: impl Fn(&What) -> bool) -> io::Result<usize> {
    let read = || match nft::read(family, table) {
        // A kernel without nf_tables, or without this family.
        Err(error) if error.raw_os_error().is_some_and(|e| NO_NF_TABLES.contains(&e)) => Ok(Saved::default()),
        other => other,
    };
    let mut left = read()?.rules;
    left.retain(|rule| is_wanted(&rule.what));
    if left.is_empty() {
        return Ok(0);
    }
    nft::delete(family, table, &left.iter().collect::<Vec<_>>())?;
    match read()?.rules.iter().find(|rule| is_wanted(&rule.what)) {
        None => Ok(left.len()),
        Some(rule) => {
            let first = format!("-A {} {}", rule.chain, rule.what.spec().join(" "));
            Err(io::Error::other(format!("rules are still there, the first of them: {first}")))
        }
    }
}

const NO_NF_TABLES: [i32; 4] = [libc::EINVAL, libc::EPROTONOSUPPORT, libc::EAFNOSUPPORT, libc::EOPNOTSUPP];

/// Whether an error only says that the kernel lacks what was asked for, and may.
pub(super) fn absent(firewall: &Firewall, table: Table, error: &EnforceError) -> bool {
    let optional = firewall.variant == Variant::Legacy || table == Table::Raw || firewall.family == Family::V6;
    optional && says_absent(error)
}

/// Whether an error only says that the kernel lacks what was asked for.
pub(super) fn says_absent(error: &EnforceError) -> bool {
    let EnforceError::Command { command, message } = error else { return false };
    let lacks =
        ["does not exist", "not supported", "Address family", "Could not fetch rule set generation id: Invalid"];
    lacks.iter().any(|words| message.contains(words) || command.contains(words))
}
