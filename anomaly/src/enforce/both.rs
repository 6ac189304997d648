//! XDP on the interfaces that take it, iptables for the rest.
//!
//! Starts as XDP alone where every interface took it. As soon as one has no XDP (its
//! driver refuses, somebody else's program is on it, it came later and could not be
//! attached), the netfilter rung is added, and every ban is set in both: rules of
//! iptables know no interfaces, and a packet that XDP dropped never reaches them.
//! While XDP is alone, rules of an earlier daemon that had none are cleared away.

use std::collections::{HashMap, HashSet};

use ipnet::IpNet;

use super::{Coverage, Drop, EnforceError, Enforcer, Held, Incident, Name, Totals, iptables};

/// Opens the second rung when it is needed.
pub type OpenLower = Box<dyn FnMut() -> Result<(Box<dyn Enforcer>, Vec<Incident>), EnforceError> + Send>;

/// How often [`Enforcer::maintain`] tries to open the second rung again after a failure, in calls
/// (about seconds).
const RETRY_EVERY: u32 = 60;

/// Calls of [`Enforcer::maintain`] after which an earlier daemon's rules are cleared away: by then the
/// reconciler has set every ban anew.
const CLEAR_AFTER: u32 = 3;

/// Two enforcers, the second only while the first has gaps.
pub struct Both {
    upper: Box<dyn Enforcer>,
    lower: Option<Box<dyn Enforcer>>,
    open_lower: Option<OpenLower>,
    /// What was to be dropped, as of the last ban or unban.
    told: HashSet<IpNet>,
    never_drop: Vec<IpNet>,
    incidents: Vec<Incident>,
    retry_in: u32,
    clear_in: u32,
}

impl Both {
    /// `upper` first; `open_lower` is called now or later, when an interface has no XDP. `None` leaves
    /// such an interface uncovered.
    pub fn new(upper: Box<dyn Enforcer>, open_lower: Option<OpenLower>) -> Self {
        let mut both = Self {
            upper,
            lower: None,
            open_lower,
            told: HashSet::new(),
            never_drop: Vec::new(),
            incidents: Vec::new(),
            retry_in: 0,
            clear_in: CLEAR_AFTER,
        };
        both.close_gaps();
        both
    }

    /// Interfaces that the upper rung does not cover.
    fn gaps(&mut self) -> Vec<String> {
        let rows = self.upper.coverage().attachments;
        rows.into_iter().filter(|row| row.mode == "none").map(|row| row.interface).collect()
    }

    fn close_gaps(&mut self) {
        if self.lower.is_some() || self.open_lower.is_none() {
            return;
        }
        self.retry_in = self.retry_in.saturating_sub(1);
        let gaps = self.gaps();
        if gaps.is_empty() {
            self.retry_in = 0;
            return;
        }
        if self.retry_in > 0 {
            return;
        }
        match self.add_lower() {
            Ok(incidents) => {
                // The rules are in use from now on.
                self.clear_in = 0;
                self.incidents.extend(incidents);
                tracing::info!(interfaces = ?gaps, "iptables covers the interfaces without XDP");
            }
            Err(error) => {
                self.retry_in = RETRY_EVERY;
                let reason = format!("{} without XDP, and iptables cannot cover them: {error}", gaps.join(", "));
                if !self.incidents.iter().any(|i| matches!(i, Incident::Degraded { reason: r } if *r == reason)) {
                    self.incidents.push(Incident::Degraded { reason });
                }
            }
        }
    }

    fn clear_leftovers(&mut self) {
        let due = self.clear_in == 1;
        self.clear_in = self.clear_in.saturating_sub(1);
        if !due {
            return;
        }
        match iptables::remove_leftovers() {
            Ok(removed) if removed == iptables::Removed::default() => {}
            Ok(removed) => tracing::info!(?removed, "removed what an earlier daemon left in iptables"),
            Err(error) => self.incidents.push(Incident::Degraded {
                reason: format!("rules that an earlier daemon left may stay in force after an unban: {error}"),
            }),
        }
    }

    /// Opens the second rung and makes it hold what the first one does. What only the second holds
    /// (an earlier daemon had no XDP) is taken away: the reconciler that follows sets it in both.
    fn add_lower(&mut self) -> Result<Vec<Incident>, EnforceError> {
        let Some(open_lower) = &mut self.open_lower else { return Ok(Vec::new()) };
        let (mut lower, incidents) = open_lower()?;
        lower.set_never_drop(&self.never_drop)?;
        let upper: HashSet<IpNet> = self.upper.banned()?.into_iter().map(|held| held.prefix).collect();
        let lower_has: HashSet<IpNet> = lower.banned()?.into_iter().map(|held| held.prefix).collect();
        let orphans: Vec<IpNet> = lower_has.difference(&upper).copied().collect();
        // Rules do not end by themselves, and the entries of a set only must not end too early.
        let missing: Vec<Drop> = upper.difference(&lower_has).map(|&prefix| Drop { prefix, left: None }).collect();
        lower.unban(&orphans).into_iter().collect::<Result<(), _>>()?;
        for failed in lower.ban(&missing).into_iter().filter_map(Result::err) {
            tracing::warn!(error = %failed, "a ban of XDP could not be set as a rule as well");
        }
        self.lower = Some(lower);
        Ok(incidents)
    }
}

impl std::fmt::Debug for Both {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Both").field("name", &self.name()).field("told", &self.told.len()).finish_non_exhaustive()
    }
}

/// Both answers for one ban: the first failure wins.
fn merge(
    upper: Vec<Result<(), EnforceError>>,
    lower: Option<Vec<Result<(), EnforceError>>>,
) -> Vec<Result<(), EnforceError>> {
    match lower {
        Some(lower) => upper.into_iter().zip(lower).map(|(upper, lower)| upper.and(lower)).collect(),
        None => upper,
    }
}

impl Enforcer for Both {
    fn name(&self) -> Name {
        if self.lower.is_some() { Name::XdpAndIptables } else { self.upper.name() }
    }

    fn ban(&mut self, drops: &[Drop]) -> Vec<Result<(), EnforceError>> {
        self.told.extend(drops.iter().map(|drop| drop.prefix.trunc()));
        merge(self.upper.ban(drops), self.lower.as_mut().map(|lower| lower.ban(drops)))
    }

    fn unban(&mut self, prefixes: &[IpNet]) -> Vec<Result<(), EnforceError>> {
        for prefix in prefixes {
            self.told.remove(&prefix.trunc());
        }
        merge(self.upper.unban(prefixes), self.lower.as_mut().map(|lower| lower.unban(prefixes)))
    }

    /// Counters are added up. Left out are bans that only one of the two holds although both were
    /// told, so that a reconciler sets them again.
    fn banned(&mut self) -> Result<Vec<Held>, EnforceError> {
        let upper = self.upper.banned()?;
        let Some(lower) = &mut self.lower else { return Ok(upper) };
        let mut rest: HashMap<IpNet, Held> = lower.banned()?.into_iter().map(|held| (held.prefix, held)).collect();
        let mut all = Vec::with_capacity(upper.len());
        let told = &self.told;
        for held in upper {
            match rest.remove(&held.prefix) {
                Some(other) => {
                    all.push(Held { packets: held.packets + other.packets, bytes: held.bytes + other.bytes, ..held })
                }
                None if told.contains(&held.prefix) => {}
                None => all.push(held),
            }
        }
        all.extend(rest.into_values().filter(|held| !told.contains(&held.prefix)));
        all.sort_by_key(|held| held.prefix);
        Ok(all)
    }

    fn snapshot_text(&mut self) -> Result<String, EnforceError> {
        let mut text = self.upper.snapshot_text()?;
        if let Some(lower) = &mut self.lower {
            text.push_str(&lower.snapshot_text()?);
        }
        Ok(text)
    }

    fn set_never_drop(&mut self, prefixes: &[IpNet]) -> Result<(), EnforceError> {
        self.never_drop = prefixes.to_vec();
        let upper = self.upper.set_never_drop(prefixes);
        match &mut self.lower {
            Some(lower) => upper.and(lower.set_never_drop(prefixes)),
            None => upper,
        }
    }

    fn maintain(&mut self) -> Vec<Incident> {
        let mut incidents = self.upper.maintain();
        self.close_gaps();
        self.clear_leftovers();
        incidents.append(&mut self.incidents);
        if let Some(lower) = &mut self.lower {
            incidents.extend(lower.maintain());
        }
        incidents
    }

    fn coverage(&mut self) -> Coverage {
        let mut coverage = self.upper.coverage();
        if let Some(lower) = &mut self.lower {
            let Totals { dropped_host, dropped_prefix, dropped_bytes, .. } = lower.coverage().totals;
            coverage.totals.dropped_host += dropped_host;
            coverage.totals.dropped_prefix += dropped_prefix;
            coverage.totals.dropped_bytes += dropped_bytes;
        }
        coverage
    }

    fn close(self: Box<Self>, keep: bool) -> Result<(), EnforceError> {
        let upper = self.upper.close(keep);
        match self.lower {
            Some(lower) => upper.and(lower.close(keep)),
            None => upper,
        }
    }
}
