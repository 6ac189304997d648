//! A deny list for Nginx, for clients that come through a proxy.
//!
//! A packet filter sees the proxy's address only and must let it pass. Nginx, which knows the client
//! from the proxy's header, can refuse it: every ban is also written to a file that a `geo` block
//! includes (`nginx/deny.conf`), and Nginx is told to read it. For clients without a proxy the file
//! changes nothing, since their packets never reach Nginx.
//!
//! The file is replaced in one step, so Nginx never reads half of it, at most every other second.
//! An entry has no end of its own: it goes with its unban, or with the start-up reconciliation.

use std::collections::{BTreeSet, HashSet};
use std::fmt::Write as _;
use std::fs;
use std::io::{self, Write as _};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};

use ipnet::IpNet;
use rustix::process::{Pid, Signal, kill_process};

use super::{Coverage, Drop, EnforceError, Enforcer, Fault, Held, Incident, Name, covered_by};
use crate::config;

/// Calls of [`Enforcer::maintain`] (about seconds) between two reloads of Nginx: each one starts
/// new workers.
const RELOAD_EVERY: u32 = 2;

const HEADER: &str = "# Written by anomaly; read by the geo block of deny.conf. Do not edit.\n";

/// An enforcer that also keeps the deny list. Made by [`wrap`].
pub struct DenyMap {
    inner: Box<dyn Enforcer>,
    list: List,
    never_drop: Vec<IpNet>,
    incidents: Vec<Incident>,
}

/// `inner` alone, or with a deny list where the configuration names one.
pub fn wrap(inner: Box<dyn Enforcer>, nginx: &config::Nginx) -> Box<dyn Enforcer> {
    let Some(path) = &nginx.deny_map else { return inner };
    let list = List::open(path.clone(), nginx.pid_file.clone());
    Box::new(DenyMap { inner, list, never_drop: Vec::new(), incidents: Vec::new() })
}

/// Where `nginx/deny.conf` and the documents have the list.
const USUAL: &str = "/var/lib/nginx-deny/anomaly.list";

/// The list in its usual place, where no configuration says where it is: only one that we have written.
pub fn find() -> Option<PathBuf> {
    fs::read_to_string(USUAL).is_ok_and(|text| text.starts_with(HEADER)).then(|| USUAL.into())
}

/// Empties the deny list, without the daemon. False when there was nothing on it.
///
/// # Errors
/// When the file cannot be written or Nginx cannot be told.
pub fn clear(nginx: &config::Nginx) -> Result<bool, EnforceError> {
    let Some(path) = &nginx.deny_map else { return Ok(false) };
    let mut list = List::open(path.clone(), nginx.pid_file.clone());
    // One that cannot be read may refuse clients all the same: it is written anew.
    let unreadable = list.dirty && list.path.exists();
    if list.entries.is_empty() && !unreadable {
        return Ok(false);
    }
    list.entries.clear();
    list.write()?;
    Ok(true)
}

/// The file and who reads it.
#[derive(Debug)]
struct List {
    path: PathBuf,
    pid_file: Option<PathBuf>,
    entries: BTreeSet<IpNet>,
    /// The file is not what it should be.
    dirty: bool,
    /// Calls of `maintain` until Nginx may be reloaded again.
    wait: u32,
    /// Writing failed, and this has been told.
    failed: bool,
}

impl List {
    fn open(path: PathBuf, pid_file: Option<PathBuf>) -> Self {
        let text = fs::read_to_string(&path);
        // Nginx does not start without the file that it includes.
        let dirty = text.is_err();
        let entries = text.map(|text| read(&text)).unwrap_or_default();
        Self { path, pid_file, entries, dirty, wait: 0, failed: false }
    }

    fn change(&mut self, prefix: IpNet, on: bool) {
        self.dirty |= if on { self.entries.insert(prefix) } else { self.entries.remove(&prefix) };
    }

    /// Writes the file and reloads Nginx, when there is something new and the last time is long ago.
    fn flush(&mut self) -> Option<Incident> {
        if !self.dirty || self.wait > 0 {
            return None;
        }
        self.wait = RELOAD_EVERY;
        match self.write() {
            Ok(()) => {
                self.dirty = false;
                std::mem::take(&mut self.failed).then_some(Incident::Recovered { fault: Fault::DenyMap })
            }
            Err(error) => {
                tracing::warn!(%error, "the deny list for Nginx is not up to date");
                let reason = format!("banned clients behind a proxy are not refused: {error}");
                (!std::mem::replace(&mut self.failed, true))
                    .then_some(Incident::Degraded { fault: Fault::DenyMap, reason })
            }
        }
    }

    fn write(&self) -> Result<(), EnforceError> {
        let failed = |doing: &str, path: &Path, hint: &str| {
            let (doing, hint) = (format!("{doing} {}", path.display()), Some(hint.to_owned()));
            move |source: io::Error| EnforceError::Kernel { doing, source, hint }
        };
        replace(&self.path, &text(&self.entries)).map_err(failed(
            "writing",
            &self.path,
            "nginx.deny_map; the daemon must be able to write its directory",
        ))?;
        let Some(pid_file) = &self.pid_file else { return Ok(()) };
        reload(pid_file).map_err(failed("reloading Nginx by", pid_file, "nginx.pid_file"))
    }
}

fn text(entries: &BTreeSet<IpNet>) -> String {
    entries.iter().fold(String::from(HEADER), |mut text, prefix| {
        let _ = writeln!(text, "{prefix} 1;");
        text
    })
}

fn read(text: &str) -> BTreeSet<IpNet> {
    text.lines().filter_map(|line| line.trim().strip_suffix(" 1;")?.parse().ok()).collect()
}

/// Temporary file, fsync, rename.
fn replace(path: &Path, text: &str) -> io::Result<()> {
    let mut name = path.file_name().ok_or(io::ErrorKind::InvalidInput)?.to_owned();
    name.push(".new");
    let new = path.with_file_name(name);
    let mut file = fs::OpenOptions::new().write(true).create(true).truncate(true).mode(0o644).open(&new)?;
    file.write_all(text.as_bytes())?;
    file.sync_all()?;
    fs::rename(new, path)
}

/// SIGHUP to Nginx's master, and to nobody else: a number in a file may be stale, or of another
/// process namespace. An Nginx that does not run will read the list when it starts.
fn reload(pid_file: &Path) -> io::Result<()> {
    let text = match fs::read_to_string(pid_file) {
        Ok(text) => text,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
        Err(error) => return Err(error),
    };
    let pid = text.trim().parse::<u32>().ok().and_then(|pid| Pid::from_raw(i32::try_from(pid).ok()?));
    let Some(pid) = pid else {
        return Err(io::Error::new(io::ErrorKind::InvalidData, "holds no process id"));
    };
    match fs::read_to_string(format!("/proc/{}/comm", pid.as_raw_nonzero())) {
        Ok(comm) if comm.trim() == "nginx" => Ok(kill_process(pid, Signal::HUP)?),
        Ok(comm) => {
            let what = format!("names process {}, which is {} and not nginx", pid.as_raw_nonzero(), comm.trim());
            Err(io::Error::new(io::ErrorKind::InvalidData, what))
        }
        Err(_) => Ok(()),
    }
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
        for drop in drops {
            let prefix = drop.prefix.trunc();
            if covered_by(&prefix, &self.never_drop).is_none() {
                self.list.change(prefix, true);
            }
        }
        self.incidents.extend(self.list.flush());
        self.inner.ban(drops)
    }

    fn unban(&mut self, prefixes: &[IpNet]) -> Vec<Result<(), EnforceError>> {
        for prefix in prefixes {
            self.list.change(prefix.trunc(), false);
        }
        self.incidents.extend(self.list.flush());
        self.inner.unban(prefixes)
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
        let list = text(&self.list.entries);
        Ok(self.inner.snapshot_text()? + &format!("# {}\n{list}", self.list.path.display()))
    }

    fn set_never_drop(&mut self, prefixes: &[IpNet]) -> Result<(), EnforceError> {
        self.never_drop = prefixes.iter().map(IpNet::trunc).collect();
        let wrong: Vec<IpNet> =
            self.list.entries.iter().filter(|p| covered_by(p, &self.never_drop).is_some()).copied().collect();
        wrong.into_iter().for_each(|prefix| self.list.change(prefix, false));
        self.incidents.extend(self.list.flush());
        self.inner.set_never_drop(prefixes)
    }

    fn maintain(&mut self) -> Vec<Incident> {
        self.list.wait = self.list.wait.saturating_sub(1);
        self.incidents.extend(self.list.flush());
        let mut incidents = self.inner.maintain();
        incidents.append(&mut self.incidents);
        incidents
    }

    fn coverage(&mut self) -> Coverage {
        self.inner.coverage()
    }

    fn close(mut self: Box<Self>, keep: bool) -> Result<(), EnforceError> {
        if !keep {
            self.list.dirty |= !self.list.entries.is_empty();
            self.list.entries.clear();
        }
        let list = if self.list.dirty { self.list.write() } else { Ok(()) };
        self.inner.close(keep).and(list)
    }
}

#[cfg(test)]
mod tests {
    use super::super::dry_run::DryRun;
    use super::super::reconcile;
    use super::*;

    fn net(text: &str) -> IpNet {
        text.parse().expect("a prefix")
    }

    fn forever(prefix: &str) -> Drop {
        Drop { prefix: net(prefix), left: None }
    }

    struct Fixture {
        dir: tempfile::TempDir,
        nginx: config::Nginx,
    }

    impl Fixture {
        fn new() -> Self {
            let dir = tempfile::tempdir().expect("a directory");
            let nginx = config::Nginx { deny_map: Some(dir.path().join("deny.list")), pid_file: None };
            Self { dir, nginx }
        }

        fn open(&self) -> Box<dyn Enforcer> {
            wrap(Box::new(DryRun::new()), &self.nginx)
        }

        fn list(&self) -> Vec<String> {
            let text = fs::read_to_string(self.dir.path().join("deny.list")).expect("the list");
            text.lines().filter(|line| !line.starts_with('#')).map(String::from).collect()
        }
    }

    fn settle(enforcer: &mut dyn Enforcer) -> Vec<Incident> {
        (0..=RELOAD_EVERY).flat_map(|_| enforcer.maintain()).collect()
    }

    #[test]
    fn follows_bans_and_unbans_at_a_bounded_pace() {
        let fixture = Fixture::new();
        let mut map = fixture.open();
        map.ban(&[forever("203.0.113.10/32"), forever("2001:db8::/64")]);
        assert_eq!(fixture.list(), ["203.0.113.10/32 1;", "2001:db8::/64 1;"], "the first one at once");
        map.ban(&[forever("203.0.113.11/32")]);
        assert_eq!(fixture.list().len(), 2, "not again within the same second");
        assert_eq!(settle(map.as_mut()), []);
        assert_eq!(fixture.list().len(), 3);
        map.unban(&[net("203.0.113.10/32"), net("203.0.113.11/32")]);
        settle(map.as_mut());
        assert_eq!(fixture.list(), ["2001:db8::/64 1;"]);
        map.close(true).expect("closed");
        assert_eq!(fixture.list(), ["2001:db8::/64 1;"]);
        assert!(clear(&fixture.nginx).expect("cleared") && fixture.list().is_empty());
        assert!(!clear(&fixture.nginx).expect("nothing to do"));
    }

    #[test]
    fn the_reconciler_brings_list_and_kernel_in_line() {
        let fixture = Fixture::new();
        fs::write(fixture.dir.path().join("deny.list"), "# by hand\n203.0.113.1/32 1;\nnonsense\n203.0.113.2/32 1;\n")
            .expect("written");
        let mut map = fixture.open();
        let done = reconcile(map.as_mut(), &[forever("203.0.113.2/32"), forever("203.0.113.3/32")]).expect("done");
        assert_eq!(done.orphans, [net("203.0.113.1/32")]);
        settle(map.as_mut());
        assert_eq!(fixture.list(), ["203.0.113.2/32 1;", "203.0.113.3/32 1;"]);
    }

    #[test]
    fn a_trusted_proxy_is_never_on_the_list() {
        let fixture = Fixture::new();
        let mut map = fixture.open();
        map.ban(&[forever("198.51.100.0/24")]);
        map.set_never_drop(&[net("198.51.100.9/32")]).expect("set");
        map.ban(&[forever("198.51.100.9/32"), forever("203.0.113.1/32")]);
        settle(map.as_mut());
        assert_eq!(fixture.list(), ["203.0.113.1/32 1;"]);
    }

    #[test]
    fn trouble_is_told_once_and_tried_again() {
        let mut fixture = Fixture::new();
        let gone = fixture.dir.path().join("not/there");
        fixture.nginx.deny_map = Some(gone.join("deny.list"));
        let mut map = fixture.open();
        assert!(map.ban(&[forever("203.0.113.1/32")])[0].is_ok(), "the packets are dropped all the same");
        let told: Vec<Incident> = (0..20).flat_map(|_| map.maintain()).collect();
        assert!(
            matches!(&told[..], [Incident::Degraded { reason, .. }] if reason.contains("nginx.deny_map")),
            "{told:?}"
        );
        fs::create_dir_all(&gone).expect("made");
        assert_eq!(settle(map.as_mut()), [Incident::Recovered { fault: Fault::DenyMap }]);
        assert!(gone.join("deny.list").exists());
    }

    #[test]
    fn only_nginx_is_told_to_reload() {
        let dir = tempfile::tempdir().expect("a directory");
        let pid_file = dir.path().join("nginx.pid");
        reload(&pid_file).expect("an Nginx that does not run needs no reload");
        // This very process would die of the signal.
        fs::write(&pid_file, format!("{}\n", std::process::id())).expect("written");
        let error = reload(&pid_file).expect_err("this is not nginx").to_string();
        assert!(error.contains("not nginx"), "{error}");
        fs::write(&pid_file, "-1\n").expect("written");
        assert!(reload(&pid_file).is_err(), "every process of ours would be told");
        fs::write(&pid_file, "junk").expect("written");
        assert!(reload(&pid_file).is_err());
    }
}
