//! Says what would be dropped and drops nothing.
//!
//! For trying a configuration on live traffic. It keeps what it was told in
//! memory, so that `bans`, `status` and the reconciler work as they would with a
//! real enforcer; nothing survives a restart and nothing touches the kernel.

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::time::Duration;

use ipnet::IpNet;

use super::{Coverage, Drop, EnforceError, Enforcer, Held, Incident, Name, covered_by};
use crate::report::some_of;

/// Up to so many that come in one call are a line each in the daemon's log; more are one line for all.
const MAX_LINES: usize = 100;

/// An enforcer without teeth.
#[derive(Debug, Default)]
pub struct DryRun {
    entries: BTreeMap<IpNet, Option<Duration>>,
    never_drop: Vec<IpNet>,
}

impl DryRun {
    /// One that holds nothing.
    pub fn new() -> Self {
        Self::default()
    }
}

impl Enforcer for DryRun {
    fn name(&self) -> Name {
        Name::DryRun
    }

    fn ban(&mut self, drops: &[Drop]) -> Vec<Result<(), EnforceError>> {
        let many = drops.len() > MAX_LINES;
        if many {
            let some = some_of(drops.iter().map(|drop| &drop.prefix));
            tracing::info!("dry run: would drop {} prefixes: {some}", drops.len());
        }
        drops
            .iter()
            .map(|drop| {
                let prefix = drop.prefix.trunc();
                if let Some(entry) = covered_by(&prefix, &self.never_drop) {
                    return Err(EnforceError::NeverDrop { prefix, entry });
                }
                self.entries.insert(prefix, drop.left);
                if !many {
                    tracing::info!(%prefix, left = ?drop.left, "dry run: would drop");
                }
                Ok(())
            })
            .collect()
    }

    fn unban(&mut self, prefixes: &[IpNet]) -> Vec<Result<(), EnforceError>> {
        let many = prefixes.len() > MAX_LINES;
        if many {
            let some = some_of(prefixes.iter());
            tracing::info!("dry run: would no longer drop {} prefixes: {some}", prefixes.len());
        }
        prefixes
            .iter()
            .map(|prefix| {
                if self.entries.remove(&prefix.trunc()).is_some() && !many {
                    tracing::info!(%prefix, "dry run: would no longer drop");
                }
                Ok(())
            })
            .collect()
    }

    fn banned(&mut self) -> Result<Vec<Held>, EnforceError> {
        Ok(self.entries.keys().map(|&prefix| Held { prefix, packets: 0, bytes: 0, last_hit: None }).collect())
    }

    fn snapshot_text(&mut self) -> Result<String, EnforceError> {
        let mut text = String::from("# dry run: nothing is dropped; this is what would be\n");
        for (prefix, left) in &self.entries {
            let _ = match left {
                Some(left) => writeln!(text, "{prefix} for {} s", left.as_secs()),
                None => writeln!(text, "{prefix} for ever"),
            };
        }
        Ok(text)
    }

    fn set_never_drop(&mut self, prefixes: &[IpNet]) -> Result<(), EnforceError> {
        self.never_drop = prefixes.iter().map(IpNet::trunc).collect();
        self.entries.retain(|prefix, _| covered_by(prefix, &self.never_drop).is_none());
        Ok(())
    }

    fn maintain(&mut self) -> Vec<Incident> {
        Vec::new()
    }

    fn coverage(&mut self) -> Coverage {
        Coverage::default()
    }

    fn close(self: Box<Self>, _keep: bool) -> Result<(), EnforceError> {
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn net(text: &str) -> IpNet {
        text.parse().expect("a prefix")
    }

    #[test]
    fn reconciles_like_a_real_enforcer() {
        let mut dry = DryRun::new();
        let forever = |p: &str| Drop { prefix: net(p), left: None };
        assert!(dry.ban(&[forever("192.0.2.1/32"), forever("2001:db8::/64")]).iter().all(Result::is_ok));
        let done = super::super::reconcile(&mut dry, &[forever("2001:db8::/64"), forever("192.0.2.9/32")])
            .expect("a dry run can always be asked");
        assert_eq!((done.wanted, done.enforced), (2, 2));
        assert_eq!(done.missing, [net("192.0.2.9/32")]);
        assert_eq!(done.orphans, [net("192.0.2.1/32")]);
        assert!(dry.snapshot_text().expect("text").contains("2001:db8::/64 for ever"));
    }

    #[test]
    fn refuses_what_must_never_be_dropped() {
        let mut dry = DryRun::new();
        let wide = Drop { prefix: net("198.51.100.0/24"), left: Some(Duration::from_secs(60)) };
        assert!(dry.ban(&[wide])[0].is_ok());
        dry.set_never_drop(&[net("198.51.100.7/32")]).expect("always works");
        assert_eq!(dry.banned().expect("always works"), [], "what it held already goes as well");
        assert!(matches!(dry.ban(&[wide])[0], Err(EnforceError::NeverDrop { .. })));
    }
}
