//! A deny list for Nginx, for clients that come through a proxy.
//!
//! A packet filter sees the proxy's address only and must let it pass. Nginx, which knows the client
//! from the proxy's header, can refuse it: every ban is also written to a file that a `geo` block
//! includes (`nginx/deny.conf`), and Nginx is told to read it. For clients without a proxy the file
//! changes nothing, since their packets never reach Nginx.
//!
//! The file is replaced in one step, so Nginx never reads half of it. Each reload costs Nginx a generation of workers, so
//! reloads are few: a ban causes one, paced by `pace`, and none while Nginx still keeps more than one old generation
//! (`nginx`). An unban by an operator causes one, too. A ban that has run out is taken along by the next reload, or has one
//! for all that have run out ten minutes later: until then Nginx refuses its client.
//! An entry has no end of its own: it goes with its unban, or with the start-up reconciliation.

mod list;
mod nginx;
mod pace;

use std::collections::HashSet;
use std::path::PathBuf;
use std::time::Duration;

use ipnet::IpNet;
use rustix::time::{ClockId, clock_gettime};

use super::{Coverage, Drop, EnforceError, Enforcer, Held, Incident, Name, covered_by};
use crate::config;
use list::List;

/// Time since some moment in the past.
type Clock = Box<dyn Fn() -> Duration + Send>;

/// The kernel's own clock, which no clock step moves. It decides nothing but how often Nginx is reloaded.
fn monotonic() -> Duration {
    let now = clock_gettime(ClockId::Monotonic);
    Duration::new(now.tv_sec.unsigned_abs(), u32::try_from(now.tv_nsec).unwrap_or(0))
}

/// An enforcer that also keeps the deny list. Made by [`wrap`].
pub struct DenyMap {
    inner: Box<dyn Enforcer>,
    list: List,
    never_drop: Vec<IpNet>,
    incidents: Vec<Incident>,
    clock: Clock,
}

/// `inner` alone, or with a deny list where the configuration names one.
pub fn wrap(inner: Box<dyn Enforcer>, nginx: &config::Nginx) -> Box<dyn Enforcer> {
    wrap_at(inner, nginx, Box::new(monotonic))
}

fn wrap_at(inner: Box<dyn Enforcer>, nginx: &config::Nginx, clock: Clock) -> Box<dyn Enforcer> {
    let Some(path) = &nginx.deny_map else { return inner };
    let list = List::open(path.clone(), nginx.pid_file.clone());
    Box::new(DenyMap { inner, list, never_drop: Vec::new(), incidents: Vec::new(), clock })
}

/// Where `nginx/deny.conf` and the documents have the list.
const USUAL: &str = "/var/lib/nginx-deny/anomaly.list";

/// The list in its usual place, where no configuration says where it is: only one that we have written.
pub fn find() -> Option<PathBuf> {
    std::fs::read_to_string(USUAL).is_ok_and(|text| text.starts_with(list::HEADER)).then(|| USUAL.into())
}

/// Empties the deny list, without the daemon. False when there was nothing on it.
///
/// # Errors
/// When the file cannot be written or Nginx cannot be told.
pub fn clear(nginx: &config::Nginx) -> Result<bool, EnforceError> {
    let Some(path) = &nginx.deny_map else { return Ok(false) };
    let mut list = List::open(path.clone(), nginx.pid_file.clone());
    // One that cannot be read may refuse clients all the same: it is written anew.
    if list.entries.is_empty() && !list.is_unreadable() {
        return Ok(false);
    }
    list.close(monotonic(), false)?;
    Ok(true)
}

impl std::fmt::Debug for DenyMap {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("DenyMap").field("inner", &self.inner.name()).field("list", &self.list).finish_non_exhaustive()
    }
}

impl Enforcer for DenyMap {
    fn name(&self) -> Name {
        self.inner.name()
    }

    /// The answers are the inner enforcer's; trouble with the list is an [`Incident`].
    fn ban(&mut self, drops: &[Drop]) -> Vec<Result<(), EnforceError>> {
        let now = (self.clock)();
        for drop in drops {
            let prefix = drop.prefix.trunc();
            if covered_by(&prefix, &self.never_drop).is_none() {
                self.list.change(now, prefix, true);
            }
        }
        self.incidents.extend(self.list.flush(now));
        self.inner.ban(drops)
    }

    fn unban(&mut self, prefixes: &[IpNet]) -> Vec<Result<(), EnforceError>> {
        let now = (self.clock)();
        for prefix in prefixes {
            self.list.change(now, prefix.trunc(), false);
        }
        self.incidents.extend(self.list.flush(now));
        self.inner.unban(prefixes)
    }

    fn still_refused(&mut self, lifted: &IpNet) -> Option<String> {
        let now = (self.clock)();
        let lifted = lifted.trunc();
        self.list.ask_for(&lifted);
        self.incidents.extend(self.list.flush(now));
        self.list.still_refused(now, &lifted)
    }

    fn count(&mut self, prefixes: &[IpNet]) -> Result<Vec<Held>, EnforceError> {
        self.inner.count(prefixes)
    }

    /// Left out is what is not on the list and should be; what is only on the list is added. So a
    /// reconciler brings both in line.
    fn banned(&mut self) -> Result<Vec<Held>, EnforceError> {
        let mut held = self.inner.banned()?;
        let known: HashSet<IpNet> = held.iter().map(|held| held.prefix).collect();
        held.retain(|held| {
            self.list.entries.contains(&held.prefix) || covered_by(&held.prefix, &self.never_drop).is_some()
        });
        let only_listed = self.list.entries.iter().filter(|prefix| !known.contains(prefix));
        held.extend(only_listed.map(|&prefix| Held { prefix, packets: 0, bytes: 0, last_hit: None }));
        Ok(held)
    }

    fn snapshot_text(&mut self) -> Result<String, EnforceError> {
        Ok(self.inner.snapshot_text()? + &self.list.snapshot())
    }

    fn set_never_drop(&mut self, prefixes: &[IpNet]) -> Result<(), EnforceError> {
        let now = (self.clock)();
        self.never_drop = prefixes.iter().map(IpNet::trunc).collect();
        let wrong: Vec<IpNet> =
            self.list.entries.iter().filter(|p| covered_by(p, &self.never_drop).is_some()).copied().collect();
        for prefix in wrong {
            self.list.change(now, prefix, false);
            // It may not wait: a proxy on the list refuses everybody behind it.
            self.list.ask_for(&prefix);
        }
        self.incidents.extend(self.list.flush(now));
        self.inner.set_never_drop(prefixes)
    }

    fn maintain(&mut self) -> Vec<Incident> {
        let now = (self.clock)();
        self.incidents.extend(self.list.flush(now));
        let mut incidents = self.inner.maintain();
        incidents.append(&mut self.incidents);
        incidents
    }

    fn coverage(&mut self) -> Coverage {
        self.inner.coverage()
    }

    fn close(mut self: Box<Self>, keep: bool) -> Result<(), EnforceError> {
        let list = self.list.close((self.clock)(), keep);
        self.inner.close(keep).and(list)
    }
}

#[cfg(test)]
mod tests {
    use super::super::Fault;
    use super::super::dry_run::DryRun;
    use super::super::reconcile;
    use super::*;
    use std::fs;
    use std::sync::Arc;
    use std::sync::atomic::AtomicU64;
    use std::sync::atomic::Ordering::Relaxed;

    fn net(text: &str) -> IpNet {
        text.parse().expect("a prefix")
    }

    fn forever(prefix: &str) -> Drop {
        Drop { prefix: net(prefix), left: None }
    }

    struct Fixture {
        dir: tempfile::TempDir,
        nginx: config::Nginx,
        /// Seconds.
        now: Arc<AtomicU64>,
    }

    impl Fixture {
        fn new() -> Self {
            let dir = tempfile::tempdir().expect("a directory");
            // Nobody runs there, which is as good as an Nginx that reads the list at once.
            let pid_file = Some(dir.path().join("nginx.pid"));
            let nginx = config::Nginx { deny_map: Some(dir.path().join("deny.list")), pid_file };
            Self { dir, nginx, now: Arc::default() }
        }

        fn open(&self) -> Box<dyn Enforcer> {
            let now = Arc::clone(&self.now);
            wrap_at(Box::new(DryRun::new()), &self.nginx, Box::new(move || Duration::from_secs(now.load(Relaxed))))
        }

        /// What the daemon does every second, for so many of them.
        fn pass(&self, enforcer: &mut dyn Enforcer, secs: u64) -> Vec<Incident> {
            let second = |_| {
                self.now.fetch_add(1, Relaxed);
                enforcer.maintain()
            };
            (0..secs).flat_map(second).collect()
        }

        fn list(&self) -> Vec<String> {
            let text = fs::read_to_string(self.dir.path().join("deny.list")).expect("the list");
            text.lines().filter(|line| !line.starts_with('#')).map(String::from).collect()
        }
    }

    #[test]
    fn follows_bans_and_unbans_at_a_bounded_pace() {
        let fixture = Fixture::new();
        let mut map = fixture.open();
        map.ban(&[forever("203.0.113.10/32"), forever("2001:db8::/64")]);
        assert_eq!(fixture.list(), ["203.0.113.10/32 1;", "2001:db8::/64 1;"], "the first one at once");
        map.ban(&[forever("203.0.113.11/32")]);
        // The daemon calls this after each ban, too: the pace is time's, not that of the calls.
        (0..10).for_each(|_| assert_eq!(map.maintain(), []));
        assert_eq!(fixture.list().len(), 2, "not again within the same second");
        assert_eq!(fixture.pass(map.as_mut(), 2), []);
        assert_eq!(fixture.list().len(), 3);
        map.unban(&[net("203.0.113.10/32"), net("203.0.113.11/32")]);
        fixture.pass(map.as_mut(), 2);
        assert_eq!(fixture.list(), ["2001:db8::/64 1;"]);
        map.close(true).expect("closed");
        assert_eq!(fixture.list(), ["2001:db8::/64 1;"]);
        assert!(clear(&fixture.nginx).expect("cleared") && fixture.list().is_empty());
        assert!(!clear(&fixture.nginx).expect("nothing to do"));
    }

    #[test]
    fn an_operators_unban_causes_a_reload_and_is_not_said_to_be_done_before() {
        let fixture = Fixture::new();
        let mut map = fixture.open();
        let prefix = net("203.0.113.1/32");
        map.ban(&[forever("203.0.113.1/32")]);
        map.unban(&[prefix]);
        let said = map.still_refused(&prefix).expect("Nginx was reloaded in this very second");
        assert!(said.contains("until its next reload, in about 3 s"), "{said}");
        assert_eq!(map.still_refused(&net("203.0.113.2/32")), None, "it was never refused");
        fixture.pass(map.as_mut(), 2);
        assert_eq!(map.still_refused(&prefix), None);
        fixture.pass(map.as_mut(), 100);
        map.ban(&[forever("203.0.113.1/32")]);
        fixture.pass(map.as_mut(), 100);
        map.unban(&[prefix]);
        assert_eq!(map.still_refused(&prefix), None, "after a quiet time it is reloaded at once");
    }

    #[test]
    fn whoever_reloads_nginx_in_our_stead_is_given_a_new_file_as_rarely() {
        let mut fixture = Fixture::new();
        fixture.nginx.pid_file = None;
        let mut map = fixture.open();
        map.ban(&[forever("203.0.113.1/32"), forever("203.0.113.2/32")]);
        assert_eq!(fixture.list().len(), 2);
        fixture.pass(map.as_mut(), 100);
        map.unban(&[net("203.0.113.1/32")]);
        fixture.pass(map.as_mut(), 500);
        assert_eq!(fixture.list().len(), 2, "its end alone changes nothing");
        fixture.pass(map.as_mut(), 105);
        assert_eq!(fixture.list().len(), 1);
        map.unban(&[net("203.0.113.2/32")]);
        let said = map.still_refused(&net("203.0.113.2/32")).expect("nobody here sees what Nginx has read");
        assert!(said.contains("the list for it is written"), "{said}");
        assert_eq!(fixture.list().len(), 0, "an operator waits");
    }

    #[test]
    fn the_reconciler_brings_list_and_kernel_in_line() {
        let fixture = Fixture::new();
        fs::write(fixture.dir.path().join("deny.list"), "# by hand\n203.0.113.1/32 1;\nnonsense\n203.0.113.2/32 1;\n")
            .expect("written");
        let mut map = fixture.open();
        let done = reconcile(map.as_mut(), &[forever("203.0.113.2/32"), forever("203.0.113.3/32")]).expect("done");
        assert_eq!(done.orphans, [net("203.0.113.1/32")]);
        fixture.pass(map.as_mut(), 3);
        assert_eq!(fixture.list(), ["203.0.113.2/32 1;", "203.0.113.3/32 1;"]);
    }

    #[test]
    fn a_trusted_proxy_is_never_on_the_list() {
        let fixture = Fixture::new();
        let mut map = fixture.open();
        map.ban(&[forever("198.51.100.0/24")]);
        map.set_never_drop(&[net("198.51.100.9/32")]).expect("set");
        map.ban(&[forever("198.51.100.9/32"), forever("203.0.113.1/32")]);
        fixture.pass(map.as_mut(), 3);
        assert_eq!(fixture.list(), ["203.0.113.1/32 1;"]);
    }

    #[test]
    fn trouble_is_told_once_and_tried_again() {
        let mut fixture = Fixture::new();
        let gone = fixture.dir.path().join("not/there");
        fixture.nginx.deny_map = Some(gone.join("deny.list"));
        let mut map = fixture.open();
        assert!(map.ban(&[forever("203.0.113.1/32")])[0].is_ok(), "the packets are dropped all the same");
        let told = fixture.pass(map.as_mut(), 20);
        assert!(
            matches!(&told[..], [Incident::Degraded { reason, .. }] if reason.contains("nginx.deny_map")),
            "{told:?}"
        );
        fs::create_dir_all(&gone).expect("made");
        assert_eq!(fixture.pass(map.as_mut(), 3), [Incident::Recovered { fault: Fault::DenyMap }]);
        assert!(gone.join("deny.list").exists());
    }
}
