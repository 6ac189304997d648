//! Rules of iptables and ip6tables, and an ipset beyond a number of them.
//!
//! Each ban is exactly the rule an operator would type, marked with a comment:
//!
//! ```text
//! iptables -I INPUT -s 203.0.113.10/32 -m comment --comment anomaly -j DROP
//! ```
//!
//! The same rule goes into `DOCKER-USER` wherever that chain is, because INPUT never sees the
//! traffic of a published container, and, if wanted, into PREROUTING of the raw table. A list of
//! rules is walked for every packet, so beyond `enforcer.iptables_max_rules` bans go into one ipset
//! per family behind one rule of the same chains. Without ipset the list grows on, up to
//! [`LONGEST_LIST`] times that number; then bans are refused.
//!
//! What is not here: decisions, and time. Rules do not end by themselves (the daemon takes them
//! away, and at start whatever no ban wants); entries of the set do.

use std::collections::HashMap;
use std::collections::HashSet;
use std::ffi::{OsStr, OsString};
use std::os::unix::net::UnixListener;

use ipnet::IpNet;

use super::{Coverage, Drop, EnforceError, Enforcer, Fault, Held, Incident, Name, covered_by};
use crate::config;

mod claim;
mod command;
mod examine;
mod firewall;
mod ledger;
mod nft;
mod removal;
mod rules;
mod sets;
mod survey;

use firewall::Firewall;
use ledger::{Ledger, Place};
use rules::{Family, Table, What};
use sets::{Count, Sets};
use survey::{Found, Look};

pub use examine::{Examination, examine};
pub use removal::{Removed, remove_all, remove_leftovers, remove_what_goes};

/// How often [`Enforcer::maintain`] looks at the chains: every so many calls, about as many
/// seconds. A firewall that was flushed is open for no longer than this.
const LOOK_EVERY: u32 = 3;

/// The same while iptables does not answer: a hanging one must not take up the whole thread.
const LOOK_EVERY_WHEN_BROKEN: u32 = 60;

/// Without ipset the list of rules may grow to so many times `iptables_max_rules`: an attack by
/// 2,000 addresses is still cut off, and no packet pays for more than that.
pub const LONGEST_LIST: u32 = 4;

/// Entries of a set up to which it is listed only to tell what a ban has dropped: 100,000 take a second.
const LIST_SETS_UP_TO: usize = 5000;

/// The enforcer over iptables. Made by [`IptablesEnforcer::open`].
#[derive(Debug)]
pub struct IptablesEnforcer {
    firewalls: Vec<Firewall>,
    /// Why a family has no firewall.
    unavailable: HashMap<Family, String>,
    sets: Result<Sets, EnforceError>,
    ledger: Ledger,
    never_drop: Vec<IpNet>,
    incidents: Vec<Incident>,
    /// Calls of `maintain` until it looks at the chains again.
    look_in: u32,
    /// It did not work when last looked at.
    broken: bool,
    /// What has been told of tables that iptables does not list.
    unlisted: Option<String>,
    path: OsString,
    _claim: Option<UnixListener>,
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
        claim::require_net_admin()?;
        let mut firewalls = Vec::new();
        let mut unavailable = HashMap::new();
        for family in Family::BOTH {
            match usable(family, config.iptables_raw_prerouting, path) {
                Ok(firewall) => firewalls.push(firewall),
                Err(error) if family == Family::V4 => return Err(error),
                Err(error) => drop(unavailable.insert(family, error.to_string())),
            }
        }
        let claim = claim::namespace()?;
        let others: Vec<Firewall> = firewalls.iter().filter_map(|firewall| firewall.secondary(path)).collect();
        firewalls.extend(others);
        let mut enforcer = Self {
            firewalls,
            sets: Sets::find(config.max_bans, path),
            ledger: Ledger::new(config.iptables_max_rules),
            never_drop: Vec::new(),
            incidents: Vec::new(),
            look_in: LOOK_EVERY,
            broken: false,
            unlisted: None,
            path: path.to_owned(),
            unavailable,
            _claim: claim,
        };
        if let Some(reason) = enforcer.unavailable.get(&Family::V6)
            && std::path::Path::new("/proc/thread-self/net/if_inet6").exists()
        {
            let reason = format!("IPv6 clients cannot be dropped: {reason}");
            enforcer.incidents.push(Incident::Degraded { fault: Fault::Ipv6, reason });
        }
        enforcer.take_over(config.iptables_raw_prerouting)?;
        enforcer.tell_unlisted();
        if !config.grace.is_zero() {
            tracing::info!(
                "rules have no end of their own: where the daemon goes for good they stay, whatever enforcer.grace_secs is, \
                 until `anomaly down`, its next start or a reboot"
            );
        }
        let incidents = std::mem::take(&mut enforcer.incidents);
        Ok((enforcer, incidents))
    }

    /// Adopts what an earlier daemon left, and completes it where a chain lacks it.
    fn take_over(&mut self, raw: bool) -> Result<(), EnforceError> {
        let survey = self.survey(Look::Everything)?;
        for (&prefix, found) in &survey.found {
            self.ledger.adopt(prefix, found.place);
        }
        if !raw {
            // The option was on before: what it left is nobody's.
            for firewall in self.firewalls.iter_mut().filter(|f| f.has(Table::Raw)) {
                match firewall.delete(Table::Raw, |_| true) {
                    Ok(_) => {}
                    Err(error) if removal::absent(firewall, Table::Raw, &error) => {
                        tracing::debug!(%error, "there is no raw table");
                    }
                    Err(error) => self.incidents.push(Incident::Degraded {
                        fault: Fault::Leftovers,
                        reason: format!("what an earlier daemon left in the raw table may drop on: {error}"),
                    }),
                }
            }
        }
        self.repair().map(drop)
    }

    /// Tells of tables that iptables does not list, and when it does so again.
    fn tell_unlisted(&mut self) {
        let mut why: Vec<&str> = self.firewalls.iter().flat_map(Firewall::unlisted).collect();
        why.dedup();
        let fault = Fault::Listing;
        if why.is_empty() {
            if self.unlisted.take().is_some() {
                self.incidents.push(Incident::Recovered { fault });
            }
            return;
        }
        let reason = format!(
            "{}. Our rules are read from the kernel instead, and taken away by their handles; but a rule of another tool \
             in that table is one that iptables does not understand, and where it accepts packets it may stand before ours",
            why.join("; ").trim_end_matches('.')
        );
        if self.unlisted.as_ref() != Some(&reason) {
            self.unlisted = Some(reason.clone());
            self.incidents.push(Incident::Degraded { fault, reason });
        }
    }

    /// Sets the rules that are wanted and missing; returns the prefixes that were not dropped.
    fn repair(&mut self) -> Result<Vec<IpNet>, EnforceError> {
        for family in Family::BOTH {
            if let (true, Ok(sets)) = (self.ledger.uses_set(family), &self.sets) {
                sets.create(family)?;
            }
        }
        let survey = self.survey(Look::Rules)?;
        let mut missing = HashSet::new();
        for at in 0..self.firewalls.len() {
            let whats: Vec<What> = survey.lacking.iter().filter(|(i, _)| *i == at).map(|(_, what)| *what).collect();
            if whats.is_empty() {
                continue;
            }
            self.firewalls[at].insert(&whats)?;
            for what in whats {
                match what {
                    What::Prefix(prefix) => drop(missing.insert(prefix)),
                    What::Set(family) => missing.extend(self.ledger.in_set(family)),
                }
            }
        }
        let mut missing: Vec<IpNet> = missing.into_iter().collect();
        missing.sort();
        if !missing.is_empty()
            && let still = self.survey(Look::Rules)?
            && let Some((at, what)) = still.lacking.iter().find(|lacking| survey.lacking.contains(lacking))
        {
            let firewall = &self.firewalls[*at];
            let command = format!("{} -I {}", firewall.family.program(), what.spec().join(" "));
            let message = "the rule was set, and is not there when looked for".into();
            return Err(EnforceError::Command { command, message });
        }
        Ok(missing)
    }

    fn firewalls_of(&mut self, family: Family) -> impl Iterator<Item = &mut Firewall> {
        self.firewalls.iter_mut().filter(move |firewall| firewall.family == family)
    }

    /// The place of a ban, or why it has none.
    fn place(&mut self, prefix: IpNet) -> Result<Place, EnforceError> {
        if let Some(entry) = covered_by(&prefix, &self.never_drop) {
            return Err(EnforceError::NeverDrop { prefix, entry });
        }
        let family = Family::of(&prefix);
        if let Some(reason) = self.unavailable.get(&family) {
            return Err(EnforceError::Command { command: family.program().into(), message: reason.clone() });
        }
        if let Some(place) = self.ledger.place(&prefix) {
            return Ok(place);
        }
        // A set cannot hold a prefix of length 0.
        if !self.ledger.is_full() || prefix.prefix_len() == 0 {
            return Ok(Place::Rule);
        }
        let rules = self.ledger.max_rules;
        match &self.sets {
            Ok(sets) if self.ledger.set_size(family) >= sets.capacity as usize => {
                Err(EnforceError::Full { capacity: sets.capacity })
            }
            Ok(_) => {
                if self.ledger.announce_overflow() {
                    self.incidents.push(Incident::Fallback {
                        interface: None,
                        from: "iptables".into(),
                        to: "ipset".into(),
                        reason: format!(
                            "more than {rules} bans (enforcer.iptables_max_rules): further ones go into the sets \
                             {} and {} behind one rule of the same chains",
                            Family::V4.set(),
                            Family::V6.set()
                        ),
                    });
                }
                Ok(Place::Set)
            }
            Err(error) => {
                let capacity = rules.saturating_mul(LONGEST_LIST);
                if self.ledger.rules_total() >= capacity as usize {
                    return Err(EnforceError::Full { capacity });
                }
                if self.ledger.announce_overflow() {
                    self.incidents.push(Incident::Degraded {
                        fault: Fault::Overflow,
                        reason: format!(
                            "more than {rules} bans (enforcer.iptables_max_rules) and no ipset for further ones: \
                             {error}. Rules are set up to {capacity}, and every packet pays for each"
                        ),
                    });
                }
                Ok(Place::Rule)
            }
        }
    }

    fn ban_rules(&mut self, family: Family, prefixes: &[IpNet]) -> Result<(), EnforceError> {
        if prefixes.is_empty() {
            return Ok(());
        }
        let whats: Vec<What> = prefixes.iter().map(|&prefix| What::Prefix(prefix)).collect();
        self.firewalls_of(family).try_for_each(|firewall| firewall.insert(&whats))
    }

    fn ban_in_set(&mut self, family: Family, drops: &[Drop]) -> Result<(), EnforceError> {
        if drops.is_empty() {
            return Ok(());
        }
        let Ok(sets) = &self.sets else { return Ok(()) };
        sets.create(family)?;
        let new: Vec<_> = drops.iter().map(|d| (d.prefix, d.left, self.ledger.counted(&d.prefix))).collect();
        sets.add(family, &new)?;
        self.firewalls_of(family).try_for_each(|firewall| firewall.insert(&[What::Set(family)]))
    }

    fn unban_family(&mut self, family: Family, prefixes: &HashSet<IpNet>) -> Result<(), EnforceError> {
        let had_set = self.ledger.uses_set(family);
        let mut in_set: Vec<IpNet> = prefixes.iter().copied().collect();
        if had_set && let Ok(sets) = &self.sets {
            in_set.retain(|prefix| self.ledger.place(prefix) != Some(Place::Rule));
            sets.delete(family, &in_set)?;
        }
        if prefixes.iter().any(|prefix| self.ledger.place(prefix) != Some(Place::Set)) {
            let ours = |what: &What| matches!(what, What::Prefix(prefix) if prefixes.contains(prefix));
            for firewall in self.firewalls_of(family).filter(|f| f.primary || f.has(Table::Filter)) {
                for &table in firewall.tables() {
                    match firewall.delete(table, ours) {
                        Err(error) if !firewall.primary && removal::says_absent(&error) => {}
                        done => drop(done?),
                    }
                }
            }
        }
        if had_set && self.ledger.in_set(family).all(|prefix| prefixes.contains(&prefix)) {
            self.drop_set(family)?;
        }
        Ok(())
    }

    /// Takes the set and its rules away, once it is empty.
    fn drop_set(&mut self, family: Family) -> Result<(), EnforceError> {
        for firewall in self.firewalls_of(family).filter(|f| f.primary || f.has(Table::Filter)) {
            for &table in firewall.tables() {
                match firewall.delete(table, |what| *what == What::Set(family)) {
                    Err(error) if !firewall.primary && removal::says_absent(&error) => {}
                    done => drop(done?),
                }
            }
        }
        if let Ok(sets) = &self.sets {
            sets.destroy(family)?;
        }
        Ok(())
    }
}

/// The firewall of a family, known to work.
fn usable(family: Family, raw: bool, path: &OsStr) -> Result<Firewall, EnforceError> {
    let firewall = Firewall::primary(family, raw, path)?;
    firewall.probe()?;
    Ok(firewall)
}

impl Enforcer for IptablesEnforcer {
    fn name(&self) -> Name {
        Name::Iptables
    }

    fn ban(&mut self, drops: &[Drop]) -> Vec<Result<(), EnforceError>> {
        if self.ledger.is_empty() {
            // Nobody looks at the chains while nothing is banned: DOCKER-USER may be new.
            for firewall in &mut self.firewalls {
                if (firewall.primary || firewall.has(Table::Filter))
                    && let Err(error) = firewall.read(Table::Filter)
                {
                    tracing::debug!(%error, "the filter table cannot be read");
                }
            }
        }
        let mut results: Vec<Result<(), EnforceError>> = Vec::with_capacity(drops.len());
        let mut batches: HashMap<(Family, Place), (Vec<Drop>, Vec<usize>)> = HashMap::new();
        for (at, drop) in drops.iter().enumerate() {
            let prefix = drop.prefix.trunc();
            results.push(self.place(prefix).map(|place| {
                self.ledger.put(prefix, place);
                let batch = batches.entry((Family::of(&prefix), place)).or_default();
                batch.0.push(Drop { prefix, left: drop.left });
                batch.1.push(at);
            }));
        }
        for ((family, place), (drops, at)) in batches {
            let done = match place {
                Place::Rule => self.ban_rules(family, &drops.iter().map(|d| d.prefix).collect::<Vec<_>>()),
                Place::Set => self.ban_in_set(family, &drops),
            };
            if let Err(error) = done {
                at.into_iter().for_each(|at| results[at] = Err(again(&error)));
            }
        }
        results
    }

    fn unban(&mut self, prefixes: &[IpNet]) -> Vec<Result<(), EnforceError>> {
        let mut failed = HashMap::new();
        for family in Family::BOTH {
            let theirs: HashSet<IpNet> =
                prefixes.iter().map(IpNet::trunc).filter(|prefix| Family::of(prefix) == family).collect();
            if theirs.is_empty() {
                continue;
            }
            // Without the program nothing was set; what a daemon had set that had it is taken away all the same.
            let done = if self.unavailable.contains_key(&family) {
                let ours = |what: &What| matches!(what, What::Prefix(prefix) if theirs.contains(prefix));
                let mut tables = [Table::Filter, Table::Raw].into_iter();
                tables.try_for_each(|table| removal::remove_from_kernel(family, table, ours).map(drop)).map_err(
                    |source| {
                        let doing = format!("looking for rules of {}, which cannot be used", family.program());
                        EnforceError::Kernel { doing, source, hint: None }
                    },
                )
            } else {
                self.unban_family(family, &theirs)
            };
            if let Err(error) = done {
                failed.insert(family, error);
            }
            theirs.iter().for_each(|prefix| self.ledger.remove(prefix));
        }
        prefixes.iter().map(|prefix| failed.get(&Family::of(prefix)).map_or(Ok(()), |e| Err(again(e)))).collect()
    }

    /// Left out are bans that some chain lacks, so that a reconciler sets them again.
    fn banned(&mut self) -> Result<Vec<Held>, EnforceError> {
        let survey = self.survey(Look::Bans)?;
        let held = |(&prefix, found): (&IpNet, &Found)| {
            let half = survey.incomplete.contains(&prefix) && self.ledger.place(&prefix).is_some();
            let Count { packets, bytes } = found.count.plus(self.ledger.carried(&prefix));
            (!half).then_some(Held { prefix, packets, bytes, last_hit: None })
        };
        let mut held: Vec<Held> = survey.found.iter().filter_map(held).collect();
        held.sort_by_key(|held| held.prefix);
        Ok(held)
    }

    fn count(&mut self, prefixes: &[IpNet]) -> Result<Vec<Held>, EnforceError> {
        let many = Family::BOTH.iter().any(|family| self.ledger.set_size(*family) > LIST_SETS_UP_TO);
        self.survey(if many { Look::Rules } else { Look::Bans })?;
        let held = |prefix: &IpNet| {
            let prefix = prefix.trunc();
            let Count { packets, bytes } = self.ledger.counted(&prefix).plus(self.ledger.carried(&prefix));
            Held { prefix, packets, bytes, last_hit: None }
        };
        Ok(prefixes.iter().map(held).collect())
    }

    fn snapshot_text(&mut self) -> Result<String, EnforceError> {
        let mut text = String::new();
        for firewall in &mut self.firewalls {
            if !firewall.primary && !firewall.has(Table::Filter) {
                continue;
            }
            for &table in firewall.tables() {
                let saved = match firewall.text(table) {
                    Ok(saved) => saved,
                    Err(_) if !firewall.primary => continue,
                    Err(error) => return Err(error),
                };
                let names: Vec<&str> = firewall.chains().iter().filter(|c| c.table == table).map(|c| c.name).collect();
                let excerpt = rules::excerpt(&saved, &names);
                if !excerpt.is_empty() {
                    text.push_str(&format!(
                        "# {} ({})\n*{}\n{excerpt}COMMIT\n",
                        firewall.family.program(),
                        firewall.variant.as_str(),
                        table.as_str()
                    ));
                }
            }
        }
        for family in Family::BOTH {
            if let (true, Ok(sets)) = (self.ledger.uses_set(family), &self.sets) {
                text.push_str(&format!("# ipset {}\n{}", family.set(), sets.text(family)?));
            }
        }
        Ok(text)
    }

    /// A rule cannot except anybody from a wider one, so a prefix that shares an address with one of
    /// these is refused by [`Enforcer::ban`] with [`EnforceError::NeverDrop`], and taken away here when
    /// it is dropped already.
    fn set_never_drop(&mut self, prefixes: &[IpNet]) -> Result<(), EnforceError> {
        self.never_drop = prefixes.iter().map(IpNet::trunc).collect();
        let wrong: Vec<IpNet> = self.ledger.prefixes().filter(|p| covered_by(p, &self.never_drop).is_some()).collect();
        self.unban(&wrong).into_iter().collect()
    }

    fn maintain(&mut self) -> Vec<Incident> {
        self.look_in = self.look_in.saturating_sub(1);
        if self.look_in == 0 && (!self.ledger.is_empty() || self.broken || self.unlisted.is_some()) {
            match self.repair() {
                Ok(missing) => {
                    if !missing.is_empty() {
                        self.incidents.push(Incident::Repaired { missing, orphans: Vec::new() });
                    }
                    if self.broken {
                        self.incidents.push(Incident::Recovered { fault: Fault::Chains });
                    }
                    (self.broken, self.look_in) = (false, LOOK_EVERY);
                }
                Err(error) => {
                    tracing::warn!(%error, "the firewall cannot be looked at");
                    if !self.broken {
                        let reason = format!("the firewall cannot be looked at or repaired: {error}");
                        self.incidents.push(Incident::Degraded { fault: Fault::Chains, reason });
                    }
                    (self.broken, self.look_in) = (true, LOOK_EVERY_WHEN_BROKEN);
                }
            }
            self.tell_unlisted();
        }
        if self.ledger.overflow_is_over() {
            self.incidents.push(Incident::Recovered { fault: Fault::Overflow });
        }
        std::mem::take(&mut self.incidents)
    }

    /// Totals are as of the last look at the chains.
    fn coverage(&mut self) -> Coverage {
        Coverage { attachments: Vec::new(), totals: self.ledger.totals() }
    }

    fn close(self: Box<Self>, keep: bool) -> Result<(), EnforceError> {
        if keep {
            return Ok(());
        }
        let (_, failed) = removal::remove_with(&self.path);
        failed.into_iter().next().map_or(Ok(()), Err)
    }
}

/// The same failure for another of the bans it hit.
fn again(error: &EnforceError) -> EnforceError {
    match error {
        EnforceError::Command { command, message } => {
            EnforceError::Command { command: command.clone(), message: message.clone() }
        }
        EnforceError::Full { capacity } => EnforceError::Full { capacity: *capacity },
        other => EnforceError::Command { command: "iptables".into(), message: other.to_string() },
    }
}
