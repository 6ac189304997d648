//! What of ours the kernel has, against what should be there.

use std::collections::{HashMap, HashSet};

use ipnet::IpNet;

use super::IptablesEnforcer;
use super::ledger::Place;
use super::rules::{Family, Table, What};
use super::sets::Count;
use crate::enforce::EnforceError;

impl IptablesEnforcer {
    /// What of ours the kernel has, chain by chain.
    pub(super) fn survey(&mut self, look: Look) -> Result<Survey, EnforceError> {
        let mut survey = Survey::default();
        let mut chains: Vec<(Family, HashSet<What>)> = Vec::new();
        for (at, firewall) in self.firewalls.iter_mut().enumerate() {
            if !firewall.primary && !firewall.has(Table::Filter) {
                continue;
            }
            let mut lacks = HashSet::new();
            let wanted = self.ledger.rules(firewall.family);
            for &table in firewall.tables() {
                let saved = match firewall.read(table) {
                    Ok(saved) => saved,
                    // The variant that nobody uses here need not work.
                    Err(_) if !firewall.primary && !firewall.covers_docker() => continue,
                    Err(error) => return Err(error),
                };
                for chain in firewall.chains().into_iter().filter(|chain| chain.table == table) {
                    let there = saved.in_chain(chain);
                    lacks.extend(wanted.iter().filter(|what| !there.contains(what)));
                    chains.push((firewall.family, there));
                }
                for rule in saved.rules {
                    match rule.what {
                        What::Prefix(prefix) => {
                            survey.add(prefix, Place::Rule, Count { packets: rule.packets, bytes: rule.bytes });
                        }
                        What::Set(family) => drop(survey.set_rules.insert(family)),
                    }
                }
            }
            survey.lacking.extend(lacks.into_iter().map(|what| (at, what)));
        }
        survey.incomplete.extend(survey.found.keys().filter(|prefix| {
            let lacks = |(family, there): &(Family, HashSet<What>)| {
                *family == Family::of(prefix) && !there.contains(&What::Prefix(**prefix))
            };
            chains.iter().any(lacks)
        }));
        for family in Family::BOTH {
            let Ok(programs) = &self.sets else { continue };
            let used = self.ledger.uses_set(family) || survey.set_rules.contains(&family);
            if look == Look::Rules || (look == Look::Bans && !used) {
                continue;
            }
            let members = match programs.read(family) {
                Ok(members) => members,
                // It was asked only in case: ipset need not work until it is needed.
                Err(error) if !self.ledger.uses_set(family) => {
                    tracing::debug!(%error, "ipset cannot be asked");
                    continue;
                }
                Err(error) => return Err(error),
            };
            let closed = !survey.lacking.iter().any(|(_, what)| *what == What::Set(family));
            for (prefix, count) in members {
                survey.add(prefix, Place::Set, count);
                if closed {
                    survey.incomplete.remove(&prefix);
                } else {
                    survey.incomplete.insert(prefix);
                }
            }
        }
        let counts = survey.found.iter().map(|(prefix, found)| (*prefix, found.count));
        self.ledger.count(counts, look != Look::Rules);
        Ok(survey)
    }
}

/// How far [`IptablesEnforcer::survey`] looks.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum Look {
    /// Chains only: a set of 100,000 entries takes a second to list, and no firewall that reloads
    /// flushes it.
    Rules,
    /// Sets too, where there should be one.
    Bans,
    /// Sets in any case.
    Everything,
}

/// What [`IptablesEnforcer::survey`] found.
#[derive(Debug, Default)]
pub(super) struct Survey {
    pub found: HashMap<IpNet, Found>,
    /// Prefixes that some chain drops and another one, which should, does not.
    pub incomplete: HashSet<IpNet>,
    /// Wanted rules that a firewall (by index) lacks in at least one chain.
    pub lacking: Vec<(usize, What)>,
    /// Families with a rule for the set.
    pub set_rules: HashSet<Family>,
}

#[derive(Clone, Copy, Debug)]
pub(super) struct Found {
    pub place: Place,
    pub count: Count,
}

impl Survey {
    fn add(&mut self, prefix: IpNet, place: Place, count: Count) {
        let found = self.found.entry(prefix).or_insert(Found { place, count: Count::default() });
        found.count.packets += count.packets;
        found.count.bytes += count.bytes;
    }
}
