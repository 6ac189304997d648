//! What the apply thread does between decisions: looks after enforcer and sinks, compares the kernel with what is
//! wanted, and keeps what is degraded.

use std::sync::Arc;
use std::time::Duration;

use tracing::{error, info, warn};

use super::super::clock::now;
use super::super::hot::publish;
use super::super::off;
use super::super::trouble::Trouble;
use super::{Apply, ApplyPicture};
use crate::audit;
use crate::config::Config;
use crate::enforce::{Drop, Incident, Name, reconcile};
use crate::notify::Notice;
use crate::time::Timestamp;
use ipnet::IpNet;

/// A sink that was busy or away for less long is nobody's trouble.
pub(super) const SINK_FAILS_AFTER: Duration = Duration::from_secs(10);

impl Apply {
    /// Audits, shows and tells what the enforcer met.
    pub fn incidents(&mut self, incidents: Vec<Incident>) {
        for incident in incidents {
            self.metrics.incident(&incident);
            let at = now();
            match incident {
                Incident::Fallback { interface, from, to, reason } => {
                    let place = interface.as_deref().map(|i| format!("{i}: ")).unwrap_or_default();
                    warn!("{place}{from} cannot be used, {to} is: {reason}");
                    self.write(&audit::Event::Fallback {
                        interface: interface.as_deref(),
                        from: &from,
                        to: &to,
                        reason: &reason,
                    });
                    let word = format!("fallback{}", interface.as_deref().map(|i| format!(":{i}")).unwrap_or_default());
                    self.degraded.insert(word, (format!("{place}{from} cannot be used, {to} is: {reason}"), at));
                    self.notifier.send(Notice::Fallback { at, interface, from, to, reason });
                }
                Incident::Repaired { missing, orphans } => self.repaired(&missing, &orphans),
                Incident::MapFull { gave_way, capacity } => {
                    let text = format!("the ban map is full ({capacity}); {} bans gave way", gave_way.len());
                    error!("{text}");
                    self.write(&audit::Event::MapFull { gave_way: &gave_way, capacity });
                    self.degrade("map_full", Some(text.clone()));
                    self.notifier.send(Notice::Other { at, event: "map_full".into(), text });
                }
                Incident::Degraded { reason } => self.degrade("enforcement", Some(reason)),
            }
        }
    }

    pub(super) fn repaired(&mut self, missing: &[IpNet], orphans: &[IpNet]) {
        warn!(
            "the kernel was not as it should be: {} bans were missing, {} were unwanted; repaired",
            missing.len(),
            orphans.len()
        );
        self.write(&audit::Event::Repaired { missing, orphans });
        let text =
            format!("{} bans were missing in the kernel, {} were unwanted; repaired", missing.len(), orphans.len());
        self.notifier.send(Notice::Other { at: now(), event: "repaired".into(), text });
    }

    /// Makes the kernel hold exactly what is wanted; `tell` audits what had to be repaired.
    pub fn reconcile(&mut self, tell: bool) {
        if self.passes_all() {
            return;
        }
        let wall = now();
        let wanted: Vec<Drop> = (self.wanted.iter())
            .filter(|(_, until)| until.is_none_or(|until| until > wall))
            .map(|(prefix, until)| Drop { prefix: *prefix, left: until.map(|until| until.since(wall)) })
            .collect();
        match reconcile(self.enforcer.as_mut(), &wanted) {
            Ok(done) => {
                self.held = done.enforced;
                if tell && !(done.missing.is_empty() && done.orphans.is_empty()) {
                    self.repaired(&done.missing, &done.orphans);
                }
                let failed = done.failed.map(|e| e.to_string());
                if let Some(failure) = &failed {
                    error!("{} of {} bans are NOT enforced: {failure}", done.wanted - done.enforced, done.wanted);
                    self.write(&audit::Event::EnforceFailed { prefix: None, error: failure });
                }
                self.degrade("enforcement", failed);
            }
            Err(failure) => {
                let failure = failure.to_string();
                error!("the enforcer cannot be compared with what is wanted: {failure}");
                self.metrics.enforcer_errors.inc();
                self.write(&audit::Event::EnforceFailed { prefix: None, error: &failure });
                self.degrade("enforcement", Some(failure));
            }
        }
        self.maintain();
    }

    /// Lets the enforcer look after itself, and tells what it met.
    pub(super) fn maintain(&mut self) {
        if !self.passes_all() {
            let incidents = self.enforcer.maintain();
            self.incidents(incidents);
        }
    }

    /// True when nothing may be given to the enforcer because `anomaly off` was said. XDP takes bans all the same: its
    /// program has been told to pass everything, but Nginx has not where it reads a deny list.
    pub(super) fn passes_all(&self) -> bool {
        self.off && (self.enforcer.name() != Name::Xdp || self.config.nginx.deny_map.is_some())
    }

    pub(super) fn notice_off(&mut self) {
        if self.off || !off::is_off(&self.config.dashboard.socket) {
            return;
        }
        self.off = true;
        error!("`anomaly off` was said: nothing is dropped until `anomaly run` is started again");
        self.write(&audit::Event::Off);
        let reason = "dropping was switched off by `anomaly off`; restart the daemon to drop again".to_owned();
        self.degrade_quietly("off", reason.clone());
        self.notifier.send(Notice::Other { at: now(), event: "off".into(), text: reason });
    }

    /// Reads what each ban has dropped, and how many of the wanted ones are held.
    pub(super) fn count(&mut self) {
        match self.enforcer.banned() {
            Ok(held) => {
                self.held = held.iter().filter(|h| self.wanted.contains_key(&h.prefix)).count();
                self.counts = Arc::new(held.into_iter().map(|h| (h.prefix, (h.packets, h.bytes))).collect());
            }
            Err(failure) => {
                self.metrics.enforcer_errors.inc();
                self.degrade("enforcement", Some(failure.to_string()));
            }
        }
    }

    /// Marks `what` as degraded with a reason, or as good again with none. Only changes are logged and told.
    pub fn degrade(&mut self, what: &str, reason: Option<String>) {
        match reason {
            Some(reason) => {
                if !self.degraded.contains_key(what) {
                    self.degrade_quietly(what, reason.clone());
                    self.tell_degraded(what, reason);
                } else if let Some(known) = self.degraded.get_mut(what) {
                    known.0 = reason;
                }
            }
            None => {
                if let Some((reason, since)) = self.degraded.remove(what) {
                    self.tell_recovered(what, &reason, since);
                }
            }
        }
    }

    /// Tells what has come or gone since the last time of what is wrong elsewhere in the daemon.
    pub(super) fn health(&mut self, found: &[Trouble]) {
        let (over, new) = self.told.update(found, now());
        for (Trouble { word, reason, .. }, since) in over {
            self.tell_recovered(word, &reason, since);
        }
        for Trouble { word, reason, .. } in new {
            error!("{word}: {reason}");
            self.tell_degraded(word, reason);
        }
    }

    fn tell_degraded(&mut self, what: &str, reason: String) {
        self.write(&audit::Event::Degraded { what, reason: &reason, recovered: false });
        self.notifier.send(Notice::Degraded { at: now(), what: what.to_owned(), reason });
    }

    fn tell_recovered(&mut self, what: &str, reason: &str, since: Timestamp) {
        info!("{what} is as it should be again; it was: {reason}");
        self.write(&audit::Event::Degraded { what, reason, recovered: true });
        let after = now().since(since);
        self.notifier.send(Notice::Recovered { at: now(), what: what.to_owned(), reason: reason.to_owned(), after });
    }

    /// As [`Apply::degrade`], for what cannot be written to the audit log because that is what fails.
    pub(super) fn degrade_quietly(&mut self, what: &str, reason: String) {
        if !self.degraded.contains_key(what) {
            error!("{what}: {reason}");
        }
        let since = self.degraded.get(what).map_or_else(now, |(_, since)| *since);
        self.degraded.insert(what.to_owned(), (reason, since));
    }

    pub(super) fn look_after_sinks(&mut self) {
        if self.audit.failing().is_none() && self.snapshots.failing().is_none() {
            self.degrade("audit", None);
        }
        let sinks = self.notifier.health();
        self.metrics.sinks(&sinks);
        for sink in sinks {
            let failing = sink.failing.filter(|(lasts, _)| *lasts >= SINK_FAILS_AFTER);
            let reason = failing.map(|(lasts, why)| format!("nothing delivered for {} s: {why}", lasts.as_secs()));
            self.degrade(sink.name, reason);
        }
        let forget = |since: &Timestamp| now().since(*since) > Duration::from_secs(600);
        for what in ["not_effective", "map_full"] {
            if self.degraded.get(what).is_some_and(|(_, since)| forget(since)) {
                self.degrade(what, None);
            }
        }
    }

    /// Renews the picture.
    pub fn publish(&mut self) {
        let wanted = self.wanted.len();
        let ratio = match wanted {
            0 => 1.0,
            _ if self.off => 0.0,
            _ => self.held.min(wanted) as f64 / wanted as f64,
        };
        publish(
            &self.picture,
            ApplyPicture {
                enforcer: self.enforcer.name(),
                coverage: self.enforcer.coverage(),
                counts: Arc::clone(&self.counts),
                enforcement_ratio: ratio,
                degraded: (self.degraded.iter())
                    .map(|(what, (reason, since))| {
                        (what.split(':').next().unwrap_or(what).to_owned(), reason.clone(), *since)
                    })
                    .collect(),
                at: now(),
            },
        );
    }

    /// Hands the allow-list and the guarded addresses to the enforcer.
    pub fn set_never_drop(&mut self) {
        let mut prefixes = self.guarded.clone();
        prefixes.extend(&self.config.allowlist);
        prefixes.extend(&self.config.trusted_proxies);
        prefixes.sort();
        prefixes.dedup();
        if let Err(failure) = self.enforcer.set_never_drop(&prefixes) {
            self.degrade("enforcement", Some(format!("the allow-list could not be set: {failure}")));
        }
    }

    pub(super) fn reloaded(&mut self, outcome: Result<Box<Config>, String>) {
        match outcome {
            Ok(config) => {
                self.metrics.config_reloads.inc();
                self.audit.reopen(&config.audit.path, config.audit.max_bytes);
                self.snapshots.reopen(&config.audit.snapshot_path, config.audit.max_bytes);
                self.config = config;
                self.set_never_drop();
                info!("the configuration was read again and is in force");
                self.write(&audit::Event::ConfigReloaded { error: None });
            }
            Err(problem) => {
                self.metrics.config_reload_errors.inc();
                self.audit.reopen(&self.config.audit.path, self.config.audit.max_bytes);
                self.snapshots.reopen(&self.config.audit.snapshot_path, self.config.audit.max_bytes);
                error!("the new configuration is not used, the old one stays in force: {problem}");
                self.write(&audit::Event::ConfigReloaded { error: Some(&problem) });
            }
        }
    }
}
