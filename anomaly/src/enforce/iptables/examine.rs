//! What iptables would do here, found out without changing anything.

use std::ffi::OsStr;

use super::rules::{Family, Table};
use super::sets::Sets;
use super::{claim, usable};
use crate::enforce::EnforceError;

/// What [`examine`] found.
#[derive(Debug)]
pub struct Examination {
    /// `nft` or `legacy`, or why IPv4 clients could not be dropped.
    pub v4: Result<&'static str, EnforceError>,
    /// The same for IPv6.
    pub v6: Result<&'static str, EnforceError>,
    /// Whether bans beyond `enforcer.iptables_max_rules` would go into a set.
    pub ipset: Result<(), EnforceError>,
    /// The programs that show a DOCKER-USER chain: `iptables (nft)`.
    pub docker_user: Vec<String>,
    /// Why iptables does not list a table although the kernel does.
    pub unlisted: Vec<String>,
}

/// Looks whether rules could be set in this network namespace, and read back, with the programs of `path`.
pub fn examine(path: &OsStr, raw: bool) -> Examination {
    let (mut docker_user, mut unlisted) = (Vec::new(), Vec::new());
    let mut family = |family: Family| {
        claim::require_net_admin()?;
        let firewall = usable(family, raw, path)?;
        let variant = firewall.variant.as_str();
        let secondary = firewall.secondary(path);
        for mut firewall in std::iter::once(firewall).chain(secondary) {
            // Listing a legacy table brings it into being.
            let has: Vec<Table> = firewall.tables().iter().copied().filter(|table| firewall.has(*table)).collect();
            for table in has {
                match firewall.read(table) {
                    // The variant that nobody uses here need not work.
                    Err(_) if !firewall.primary => {}
                    done => drop(done?),
                }
            }
            unlisted.extend(firewall.unlisted().map(str::to_owned));
            if firewall.covers_docker() {
                docker_user.push(format!("{} ({})", family.program(), firewall.variant.as_str()));
            }
        }
        Ok(variant)
    };
    let (v4, v6) = (family(Family::V4), family(Family::V6));
    let ipset = Sets::find(0, path).and_then(|sets| sets.exists(Family::V4)).map(drop);
    Examination { v4, v6, ipset, docker_user, unlisted }
}
