//! What bans have dropped whose entries are gone before anybody has told of their ends: entries that ran out, gave way to others,
//! or were not moved into a new table.

use std::time::Duration;

use anomaly_common::Ban;
use ipnet::IpNet;

use super::program::failed;
use super::tables::{self, Kind};
use super::{XdpEnforcer, nanos, now_ns};
use crate::enforce::{EnforceError, Held};

/// What a ban has counted is kept for so long after its end, looked at after so many calls of `Enforcer::maintain`. Longer
/// than a daemon hangs that is to tell of it.
const FORGET_AFTER: Duration = Duration::from_secs(3600);
const FORGET_ROUNDS: u64 = 600;

impl XdpEnforcer {
    /// Keeps what bans have counted whose entries are removed before anybody has told of their ends.
    pub(super) fn remember(&mut self, removed: impl IntoIterator<Item = (IpNet, Ban)>) {
        for (prefix, ban) in removed {
            let known = self.gone.entry(prefix).or_default();
            let (packets, bytes) = (known.packets + ban.packets, known.bytes + ban.bytes);
            *known =
                Ban { packets, bytes, last_hit_ns: known.last_hit_ns.max(ban.last_hit_ns), until_ns: ban.until_ns };
        }
    }

    /// The same of those for which there was no room when they were moved.
    pub(super) fn remember_left_behind(&mut self) {
        let left_behind = std::mem::take(&mut self.kernel.left_behind);
        self.remember(left_behind);
    }

    /// The apply thread asks for the count within seconds of an end. A count that is not asked for, an earlier database's, is dropped.
    pub(super) fn forget_gone(&mut self) {
        if self.rounds.is_multiple_of(FORGET_ROUNDS) {
            let long_ago = now_ns().saturating_sub(nanos(FORGET_AFTER));
            self.gone.retain(|_, ban| ban.until_ns > long_ago);
        }
    }

    /// What these have dropped, in the entries that they have and in those that they had.
    pub(super) fn last_counts(&mut self, prefixes: &[IpNet]) -> Result<Vec<Held>, EnforceError> {
        let now = now_ns();
        let mut counted = Vec::with_capacity(prefixes.len());
        for kind in Kind::ALL {
            let of_kind: Vec<IpNet> = prefixes.iter().filter(|p| Kind::of(p) == kind).map(IpNet::trunc).collect();
            let table = self.kernel.table(kind);
            let held =
                tables::existing(table, of_kind.iter().copied()).map_err(|e| failed("reading", kind.map(), e))?;
            for prefix in of_kind {
                let bans = [held.get(&prefix), self.gone.get(&prefix)].into_iter().flatten();
                let whole = bans.copied().reduce(|a, b| Ban {
                    packets: a.packets + b.packets,
                    bytes: a.bytes + b.bytes,
                    last_hit_ns: a.last_hit_ns.max(b.last_hit_ns),
                    ..a
                });
                counted.extend(whole.map(|ban| held_of(prefix, &ban, now)));
            }
        }
        Ok(counted)
    }
}

pub(super) fn held_of(prefix: IpNet, ban: &Ban, now: u64) -> Held {
    let last_hit = (ban.last_hit_ns != 0).then(|| Duration::from_nanos(now.saturating_sub(ban.last_hit_ns)));
    Held { prefix, packets: ban.packets, bytes: ban.bytes, last_hit }
}
