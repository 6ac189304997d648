//! XDP on the interfaces that take it, iptables for the rest.
//!
//! Starts as XDP alone where every interface took it. As soon as one has no XDP (its
//! driver refuses, somebody else's program is on it, it came later and could not be
//! attached), the netfilter rung is added, and every ban is set in both: rules of
//! iptables know no interfaces, and a packet that XDP dropped never reaches them.
//! While XDP is alone, rules of an earlier daemon that had none are cleared away.

use std::collections::{HashMap, HashSet};

use ipnet::IpNet;

use super::{Coverage, Drop, EnforceError, Enforcer, Fault, Held, Incident, Name, Totals, iptables};

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
    told: HashSet<IpNet, foldhash::fast::RandomState>,
    never_drop: Vec<IpNet>,
    incidents: Vec<Incident>,
    retry_in: u32,
    /// That there is an interface which neither covers has been told.
    gap_told: bool,
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
            told: HashSet::default(),
            never_drop: Vec::new(),
            incidents: Vec::new(),
            retry_in: 0,
            gap_told: false,
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
            self.gap_is_over();
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
                self.gap_is_over();
                tracing::info!(interfaces = ?gaps, "iptables covers the interfaces without XDP");
            }
            Err(error) => {
                self.retry_in = RETRY_EVERY;
                let reason = format!("{} without XDP, and iptables cannot cover them: {error}", gaps.join(", "));
                self.gap_told = true;
                let told = Incident::Degraded { fault: Fault::Gap, reason };
                if !self.incidents.contains(&told) {
                    self.incidents.push(told);
                }
            }
        }
    }

    fn gap_is_over(&mut self) {
        if std::mem::take(&mut self.gap_told) {
            self.incidents.push(Incident::Recovered { fault: Fault::Gap });
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
                fault: Fault::Leftovers,
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

    fn reserve(&mut self, bans: usize) {
        self.told.reserve(bans);
        self.upper.reserve(bans);
    }

    fn unban(&mut self, prefixes: &[IpNet]) -> Vec<Result<(), EnforceError>> {
        for prefix in prefixes {
            self.told.remove(&prefix.trunc());
        }
        merge(self.upper.unban(prefixes), self.lower.as_mut().map(|lower| lower.unban(prefixes)))
    }

    /// Counters are added up.
    fn count(&mut self, prefixes: &[IpNet]) -> Result<Vec<Held>, EnforceError> {
        let mut all = self.upper.count(prefixes)?;
        if let Some(lower) = &mut self.lower {
            let lower = lower.count(prefixes).unwrap_or_else(|error| {
                tracing::warn!(%error, "what the second rung has dropped is not counted");
                Vec::new()
            });
            let mut rest: HashMap<IpNet, Held> = lower.into_iter().map(|held| (held.prefix, held)).collect();
            for held in &mut all {
                if let Some(other) = rest.remove(&held.prefix) {
                    held.packets += other.packets;
                    held.bytes += other.bytes;
                }
            }
            all.extend(rest.into_values());
        }
        Ok(all)
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

#[cfg(test)]
mod tests {
    use std::sync::{Arc, Mutex};

    use super::super::{Attachment, reconcile};
    use super::*;

    /// What a fake holds, shared with the test.
    #[derive(Clone, Default)]
    struct Fake(Arc<Mutex<State>>);

    #[derive(Default)]
    struct State {
        held: HashSet<IpNet>,
        gap: bool,
        closed: Option<bool>,
    }

    impl Fake {
        fn held(&self) -> Vec<IpNet> {
            let mut held: Vec<IpNet> = self.0.lock().unwrap().held.iter().copied().collect();
            held.sort();
            held
        }

        fn hold(&self, prefixes: &[IpNet]) {
            self.0.lock().unwrap().held.extend(prefixes);
        }

        fn set_gap(&self, gap: bool) {
            self.0.lock().unwrap().gap = gap;
        }
    }

    impl Enforcer for Fake {
        fn name(&self) -> Name {
            Name::Xdp
        }

        fn ban(&mut self, drops: &[Drop]) -> Vec<Result<(), EnforceError>> {
            self.hold(&drops.iter().map(|d| d.prefix).collect::<Vec<_>>());
            drops.iter().map(|_| Ok(())).collect()
        }

        fn unban(&mut self, prefixes: &[IpNet]) -> Vec<Result<(), EnforceError>> {
            self.0.lock().unwrap().held.retain(|held| !prefixes.contains(held));
            prefixes.iter().map(|_| Ok(())).collect()
        }

        fn banned(&mut self) -> Result<Vec<Held>, EnforceError> {
            Ok(self.held().into_iter().map(|prefix| Held { prefix, packets: 2, bytes: 100, last_hit: None }).collect())
        }

        fn snapshot_text(&mut self) -> Result<String, EnforceError> {
            Ok("fake\n".into())
        }

        fn set_never_drop(&mut self, _: &[IpNet]) -> Result<(), EnforceError> {
            Ok(())
        }

        fn maintain(&mut self) -> Vec<Incident> {
            Vec::new()
        }

        fn coverage(&mut self) -> Coverage {
            let mode = if self.0.lock().unwrap().gap { "none" } else { "native" };
            let attachments = vec![Attachment { interface: "eth0".into(), mode, reason: None }];
            Coverage { attachments, totals: Totals { dropped_host: 2, ..Totals::default() } }
        }

        fn close(self: Box<Self>, keep: bool) -> Result<(), EnforceError> {
            self.0.lock().unwrap().closed = Some(keep);
            Ok(())
        }
    }

    fn net(text: &str) -> IpNet {
        text.parse().expect("a prefix")
    }

    fn forever(prefix: IpNet) -> Drop {
        Drop { prefix, left: None }
    }

    /// Never clears away leftovers: that would touch the rules of this machine.
    fn both(upper: &Fake, lower: &Fake) -> Both {
        let lower = lower.clone();
        let open: OpenLower = Box::new(move || Ok((Box::new(lower.clone()), Vec::new())));
        let mut both = Both::new(Box::new(upper.clone()), Some(open));
        both.clear_in = 0;
        both
    }

    #[test]
    fn the_second_rung_comes_with_the_first_gap_and_takes_every_ban_over() {
        let (upper, lower) = (Fake::default(), Fake::default());
        let mut both = both(&upper, &lower);
        let first = net("192.0.2.1/32");
        assert!(both.ban(&[forever(first)])[0].is_ok());
        assert_eq!((both.name(), lower.held()), (Name::Xdp, vec![]));
        assert_eq!(both.maintain(), []);
        upper.set_gap(true);
        assert_eq!(both.maintain(), []);
        assert_eq!((both.name(), lower.held()), (Name::XdpAndIptables, vec![first]));
        let second = net("2001:db8::/64");
        assert!(both.ban(&[forever(second)])[0].is_ok());
        assert_eq!((upper.held(), lower.held()), (vec![first, second], vec![first, second]));
        assert_eq!(both.banned().unwrap()[0].packets, 4, "counters are added up");
        assert_eq!(both.coverage().totals.dropped_host, 4);
        both.unban(&[first, second]);
        assert_eq!((upper.held(), lower.held()), (vec![], vec![]));
        Box::new(both).close(true).unwrap();
        assert_eq!((upper.0.lock().unwrap().closed, lower.0.lock().unwrap().closed), (Some(true), Some(true)));
    }

    #[test]
    fn what_one_of_them_lost_is_set_again_and_what_nobody_wants_goes() {
        let (upper, lower) = (Fake::default(), Fake::default());
        upper.set_gap(true);
        // An earlier daemon's: in XDP only, in the rules only.
        upper.hold(&[net("192.0.2.1/32")]);
        lower.hold(&[net("192.0.2.2/32")]);
        let mut both = both(&upper, &lower);
        let wanted = ["192.0.2.1/32", "192.0.2.2/32"].map(|p| forever(net(p)));
        let done = reconcile(&mut both, &wanted).unwrap();
        assert_eq!((done.missing, done.orphans), (vec![net("192.0.2.2/32")], vec![]));
        assert_eq!(upper.held(), lower.held());
        lower.0.lock().unwrap().held.remove(&net("192.0.2.2/32"));
        lower.hold(&[net("192.0.2.3/32")]);
        let done = reconcile(&mut both, &wanted).unwrap();
        assert_eq!((done.missing, done.orphans), (vec![net("192.0.2.2/32")], vec![net("192.0.2.3/32")]));
        assert_eq!((upper.held().len(), lower.held().len()), (2, 2));
    }

    #[test]
    fn a_second_rung_that_cannot_be_had_is_told_and_tried_again_later() {
        let upper = Fake::default();
        let covered_again = upper.clone();
        upper.set_gap(true);
        let tries = Arc::new(Mutex::new(0));
        let count = tries.clone();
        let open: OpenLower = Box::new(move || {
            *count.lock().unwrap() += 1;
            Err(EnforceError::Missing { program: "iptables".into(), package: "iptables", elsewhere: None })
        });
        let mut both = Both::new(Box::new(upper), Some(open));
        both.clear_in = 0;
        let told = both.maintain();
        assert!(
            matches!(&told[..], [Incident::Degraded { fault: Fault::Gap, reason }] if reason.contains("eth0 without XDP") && reason.contains("apt-get install iptables")),
            "{told:?}"
        );
        assert!(both.ban(&[forever(net("192.0.2.1/32"))])[0].is_ok(), "XDP works on");
        let later: usize = (0..RETRY_EVERY).map(|_| both.maintain().len()).sum();
        assert_eq!((*tries.lock().unwrap(), later), (2, 1));
        covered_again.set_gap(false);
        assert_eq!(both.maintain(), [Incident::Recovered { fault: Fault::Gap }]);
        assert_eq!(both.maintain(), [], "told once");
    }
}
