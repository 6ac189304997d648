//! Room for bans: tables that grow while one is allowed, and who gives way when none is.

use std::collections::HashSet;

use anomaly_common::Ban;
use ipnet::IpNet;

use super::program::{Kernel, failed};
use super::tables::{self, Kind};
use super::{XdpEnforcer, now_ns, options};
use crate::enforce::{EnforceError, Incident};

impl XdpEnforcer {
    /// Makes room for `fresh` new entries: a larger table while one is allowed. False when it must be
    /// made by others giving way.
    fn has_room(&mut self, kind: Kind, fresh: usize) -> Result<bool, EnforceError> {
        let (len, capacity) = {
            let table = self.kernel.table(kind);
            (table.len(), table.capacity() as usize)
        };
        let needed = len + fresh;
        let limit = match kind {
            Kind::Net4 | Kind::Net6 => capacity,
            _ => self.settings.max_bans.max(1) as usize,
        };
        if needed > capacity.min(limit) && capacity < limit {
            // At most three quarters full, so that buckets stay short and growing stays rare; 104 bytes an entry.
            let larger = (needed + needed / 3).next_power_of_two().min(limit);
            let mut capacities = [None; 3];
            capacities[kind as usize] = Some(larger as u32);
            self.rebuild(capacities)?;
        }
        Ok(needed <= self.kernel.table(kind).capacity().min(limit as u32) as usize)
    }

    /// Makes room for this many bans in a table before they come.
    pub(super) fn make_room(&mut self, kind: Kind, bans: usize) -> Result<(), EnforceError> {
        let fresh = bans.saturating_sub(self.kernel.table(kind).len());
        self.has_room(kind, fresh).map(drop)
    }

    /// Loads the program anew over larger tables, and lets every link run it from the next packet on.
    fn rebuild(&mut self, capacities: [Option<u32>; 3]) -> Result<(), EnforceError> {
        let stage = self.dir.fresh_stage()?;
        let object = std::mem::take(&mut self.object);
        let options = options(&self.settings, &object, capacities);
        let loaded = Kernel::load(&self.dir, &stage, options, &mut self.loader);
        self.object = object;
        let mut kernel = loaded?;
        for attached in &mut self.attached {
            // A link that cannot be swapped is of an interface that just went; `maintain` sees to it.
            if let Err(e) = attached.swap(&mut kernel) {
                tracing::warn!("{}: {e}", attached.interface);
            }
        }
        self.kernel = kernel;
        self.remember_left_behind();
        self.next_to_go.clear();
        self.start_log();
        self.dir.publish(&stage)
    }

    /// The soonest to end give way until `needed` entries fit.
    fn give_way(&mut self, kind: Kind, needed: usize, protect: &HashSet<IpNet>) -> Result<(), EnforceError> {
        let limit = match kind {
            Kind::Net4 | Kind::Net6 => self.kernel.table(kind).capacity(),
            _ => self.settings.max_bans.max(1).min(self.kernel.table(kind).capacity()),
        };
        let mut gone = Vec::new();
        let mut refilled = false;
        while self.kernel.table(kind).len() + needed > limit as usize {
            let Some((prefix, until)) = self.next_to_go.entry(kind as usize).or_default().pop() else {
                if refilled {
                    return Err(EnforceError::Full { capacity: limit });
                }
                refilled = true;
                let mut all = self.kernel.table(kind).all().map_err(|e| failed("reading", kind.map(), e))?;
                all.retain(|(prefix, _)| !protect.contains(prefix));
                all.sort_unstable_by_key(|(_, ban)| ban.until_ns);
                // Enough for a while, so that a flood of bans does not read a full table for each.
                all.truncate(needed.max(4096));
                let ends = all.into_iter().rev().map(|(prefix, ban)| (prefix, ban.until_ns)).collect();
                self.next_to_go.insert(kind as usize, ends);
                continue;
            };
            // Lifted or prolonged since the list was made.
            let now_held = self.kernel.table(kind).get(&prefix).map_err(|e| failed("reading", kind.map(), e))?;
            if let Some(ban) = now_held.filter(|ban| ban.until_ns == until && !protect.contains(&prefix)) {
                self.kernel.table(kind).remove(&prefix).map_err(|e| failed("writing", kind.map(), e))?;
                self.remember([(prefix, ban)]);
                if until > now_ns() {
                    self.gave_way.insert(prefix, until);
                    gone.push(prefix);
                }
            }
        }
        if !gone.is_empty() {
            self.incidents.push(Incident::MapFull { gave_way: gone, capacity: limit });
        }
        Ok(())
    }

    /// Sets the bans of one table; none of `protect` (or of themselves) gives way to them. Fails as a whole;
    /// `ban` then tries one by one.
    pub(super) fn put(
        &mut self,
        kind: Kind,
        drops: &[(IpNet, u64)],
        protect: Option<&HashSet<IpNet>>,
    ) -> Result<(), EnforceError> {
        let reading = |e| failed("reading", kind.map(), e);
        let prefixes = || drops.iter().map(|(prefix, _)| *prefix);
        let held = tables::existing(self.kernel.table(kind), prefixes()).map_err(reading)?;
        let fresh = prefixes().filter(|prefix| !held.contains_key(prefix)).count();
        if !self.has_room(kind, fresh)? {
            match protect {
                Some(protect) => self.give_way(kind, fresh, protect)?,
                None => self.give_way(kind, fresh, &prefixes().collect())?,
            }
        }
        let entry = |n: usize| {
            let (prefix, until_ns) = drops[n];
            (prefix, Ban { until_ns, ..held.get(&prefix).copied().unwrap_or_default() })
        };
        let table = self.kernel.table(kind);
        match table.put(drops.len(), &entry, fresh) {
            Err(error) if error.raw_os_error().is_some_and(|e| e == libc::E2BIG || e == libc::ENOSPC) => {
                Err(EnforceError::Full { capacity: table.capacity() })
            }
            Err(error) => Err(failed("writing", kind.map(), error)),
            Ok(()) => {
                self.line_up(kind, drops);
                Ok(())
            }
        }
    }

    /// New bans take their places among those that go next.
    fn line_up(&mut self, kind: Kind, drops: &[(IpNet, u64)]) {
        let Some(line) = self.next_to_go.get_mut(&(kind as usize)) else { return };
        if drops.len() > 64 {
            line.clear();
        }
        for (prefix, until) in drops {
            let at = line.partition_point(|(_, other)| other > until);
            // Behind the last of the line there may be others in the table that end before it.
            if at > 0 {
                line.insert(at, (*prefix, *until));
            }
        }
    }

    /// A ban that gave way is set again only when it lasts longer than it did, or there is room.
    pub(super) fn must_wait(&mut self, kind: Kind, prefix: &IpNet, until_ns: u64) -> bool {
        let Some(before) = self.gave_way.get(prefix).copied() else { return false };
        let table = self.kernel.table(kind);
        let limit = (self.settings.max_bans as usize).min(table.capacity() as usize);
        let second = 1_000_000_000;
        if table.len() < limit || until_ns > before.saturating_add(second) {
            self.gave_way.remove(prefix);
            return false;
        }
        true
    }
}
