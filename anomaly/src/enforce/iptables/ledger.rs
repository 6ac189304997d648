//! What the enforcer was told to drop and where it put it, and what that has cost the senders.

use std::collections::HashMap;

use ipnet::IpNet;

use super::rules::{Family, What};
use super::sets::Count;
use crate::enforce::Totals;

/// Where a ban is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(super) enum Place {
    /// A rule of its own in every chain.
    Rule,
    /// An entry of the family's set.
    Set,
}

/// Bans by prefix, and counters that never fall.
#[derive(Debug)]
pub(super) struct Ledger {
    entries: HashMap<IpNet, Place>,
    rules: usize,
    /// Entries of each family's set.
    in_sets: [usize; 2],
    /// Rules beyond which bans go elsewhere.
    pub max_rules: u32,
    overflow_announced: bool,
    /// The announced one is over, and nobody has been told.
    overflow_ended: bool,
    last: HashMap<IpNet, Count>,
    /// What bans had counted that are still wanted, in rules and entries that are gone: flushed, or run out.
    carried: HashMap<IpNet, Count>,
    retired: Totals,
}

impl Ledger {
    pub fn new(max_rules: u32) -> Self {
        Self {
            entries: HashMap::new(),
            rules: 0,
            in_sets: [0; 2],
            max_rules,
            overflow_announced: false,
            overflow_ended: false,
            last: HashMap::new(),
            carried: HashMap::new(),
            retired: Totals::default(),
        }
    }

    pub fn is_empty(&self) -> bool {
        self.entries.is_empty()
    }

    /// Whether one more rule would be too many.
    pub fn is_full(&self) -> bool {
        self.rules >= self.max_rules as usize
    }

    pub fn rules_total(&self) -> usize {
        self.rules
    }

    pub fn place(&self, prefix: &IpNet) -> Option<Place> {
        self.entries.get(prefix).copied()
    }

    pub fn prefixes(&self) -> impl Iterator<Item = IpNet> {
        self.entries.keys().copied()
    }

    pub fn put(&mut self, prefix: IpNet, place: Place) {
        let carried = self.carried.remove(&prefix);
        self.remove(&prefix);
        self.carried.extend(carried.map(|count| (prefix, count)));
        *self.number(place, &prefix) += 1;
        self.entries.insert(prefix, place);
    }

    fn number(&mut self, place: Place, prefix: &IpNet) -> &mut usize {
        match place {
            Place::Rule => &mut self.rules,
            Place::Set => &mut self.in_sets[Family::of(prefix) as usize],
        }
    }

    /// What an earlier daemon left; its overflow was announced then.
    pub fn adopt(&mut self, prefix: IpNet, place: Place) {
        self.overflow_announced |= place == Place::Set;
        self.put(prefix, place);
    }

    pub fn remove(&mut self, prefix: &IpNet) {
        if let Some(place) = self.entries.remove(prefix) {
            *self.number(place, prefix) -= 1;
        }
        self.carried.remove(prefix);
        if !self.is_full() && !Family::BOTH.iter().any(|family| self.uses_set(*family)) {
            self.overflow_ended |= std::mem::take(&mut self.overflow_announced);
        }
    }

    /// True the first time since there was no overflow.
    pub fn announce_overflow(&mut self) -> bool {
        self.overflow_ended = false;
        !std::mem::replace(&mut self.overflow_announced, true)
    }

    /// True once after the end of an overflow.
    pub fn overflow_is_over(&mut self) -> bool {
        std::mem::take(&mut self.overflow_ended)
    }

    /// The bans in the family's set.
    pub fn in_set(&self, family: Family) -> impl Iterator<Item = IpNet> {
        let in_set = move |(prefix, place): (&IpNet, &Place)| {
            (*place == Place::Set && Family::of(prefix) == family).then_some(*prefix)
        };
        self.entries.iter().filter_map(in_set)
    }

    pub fn uses_set(&self, family: Family) -> bool {
        self.set_size(family) > 0
    }

    pub fn set_size(&self, family: Family) -> usize {
        self.in_sets[family as usize]
    }

    /// The rules each of the family's chains must have.
    pub fn rules(&self, family: Family) -> Vec<What> {
        let mut rules: Vec<What> = self
            .entries
            .iter()
            .filter(|(prefix, place)| **place == Place::Rule && Family::of(prefix) == family)
            .map(|(prefix, _)| What::Prefix(*prefix))
            .collect();
        if self.uses_set(family) {
            rules.push(What::Set(family));
        }
        rules
    }

    /// Takes note of what the kernel has counted for everything it drops now. What it no longer
    /// drops, or counts from zero again, is kept in the totals. Without `sets` only rules were looked
    /// at, and what is in a set stays as it was.
    pub fn count(&mut self, now: impl Iterator<Item = (IpNet, Count)>, sets: bool) {
        let mut now: HashMap<IpNet, Count> = now.collect();
        if !sets {
            let in_set = |prefix: &IpNet| self.entries.get(prefix) == Some(&Place::Set);
            now.extend(self.last.iter().filter(|(prefix, _)| in_set(prefix)).map(|(prefix, count)| (*prefix, *count)));
        }
        for (prefix, before) in &self.last {
            if now.get(prefix).is_none_or(|count| count.packets < before.packets) {
                add(&mut self.retired, prefix, *before);
                if self.entries.contains_key(prefix) {
                    let carried = self.carried.entry(*prefix).or_default();
                    *carried = carried.plus(*before);
                }
            }
        }
        self.last = now;
    }

    /// What `prefix` had counted when last looked at.
    pub fn counted(&self, prefix: &IpNet) -> Count {
        self.last.get(prefix).copied().unwrap_or_default()
    }

    /// What `prefix` had counted before, in what is gone.
    pub fn carried(&self, prefix: &IpNet) -> Count {
        self.carried.get(prefix).copied().unwrap_or_default()
    }

    /// Packets and bytes dropped since the start, rules of an earlier daemon included.
    pub fn totals(&self) -> Totals {
        let mut totals = self.retired;
        for (prefix, count) in &self.last {
            add(&mut totals, prefix, *count);
        }
        totals
    }
}

fn add(totals: &mut Totals, prefix: &IpNet, count: Count) {
    // As in the XDP program: an address or an IPv6 /64 is one host.
    let host = match prefix {
        IpNet::V4(net) => net.prefix_len() == 32,
        IpNet::V6(net) => matches!(net.prefix_len(), 64 | 128),
    };
    *(if host { &mut totals.dropped_host } else { &mut totals.dropped_prefix }) += count.packets;
    totals.dropped_bytes += count.bytes;
}

#[cfg(test)]
mod tests {
    use super::*;

    fn net(text: &str) -> IpNet {
        text.parse().expect("a prefix")
    }

    #[test]
    fn counts_rules_through_every_change_of_place() {
        let mut ledger = Ledger::new(1);
        ledger.put(net("192.0.2.1/32"), Place::Rule);
        ledger.put(net("192.0.2.1/32"), Place::Rule);
        assert!(ledger.is_full() && ledger.rules_total() == 1);
        assert!(ledger.announce_overflow() && !ledger.announce_overflow());
        ledger.put(net("2001:db8::/64"), Place::Set);
        assert!(ledger.uses_set(Family::V6) && !ledger.uses_set(Family::V4));
        assert_eq!(ledger.rules(Family::V6), [What::Set(Family::V6)]);
        ledger.remove(&net("192.0.2.1/32"));
        assert!(!ledger.is_full());
        assert!(!ledger.announce_overflow() && !ledger.overflow_is_over(), "the set is still in use");
        ledger.remove(&net("2001:db8::/64"));
        assert!(ledger.is_empty() && ledger.overflow_is_over() && !ledger.overflow_is_over());
        assert!(ledger.announce_overflow());
    }

    #[test]
    fn totals_never_fall() {
        let mut ledger = Ledger::new(9);
        let host = net("192.0.2.1/32");
        let wide = net("198.51.100.0/24");
        let count = |packets| Count { packets, bytes: packets * 100 };
        ledger.count([(host, count(5)), (wide, count(7))].into_iter(), true);
        ledger.count([(host, count(6)), (wide, count(2))].into_iter(), true);
        ledger.count([(host, count(8))].into_iter(), true);
        let totals = ledger.totals();
        assert_eq!((totals.dropped_host, totals.dropped_prefix, totals.dropped_bytes), (8, 9, 1700));
        assert_eq!(ledger.counted(&host), count(8));
        // A rule that was flushed and set again goes on counting where it was; a ban that ended does not.
        ledger.put(wide, Place::Rule);
        ledger.count([(host, count(8)), (wide, count(4))].into_iter(), true);
        ledger.count([(host, count(8)), (wide, count(1))].into_iter(), true);
        assert_eq!(ledger.counted(&wide).plus(ledger.carried(&wide)), count(5));
        ledger.remove(&wide);
        assert_eq!(ledger.carried(&wide), Count::default());
        ledger.count([(host, count(8))].into_iter(), true);
        let totals = ledger.totals();
        ledger.put(host, Place::Set);
        ledger.count(std::iter::empty(), false);
        assert_eq!((ledger.totals(), ledger.counted(&host)), (totals, count(8)), "sets were not looked at");
    }
}
