//! What the apply thread does between decisions: looks after enforcer and sinks, compares the kernel with what is
//! wanted, and keeps what is degraded.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use tracing::{error, info, warn};

use super::super::clock::now;
use super::super::log_watch::why_not_effective;
use super::super::messages::{ApplyStatus, publish};
use super::super::off;
use super::super::trouble::Trouble;
use super::{ALLOWLIST, Apply, CONFIG, HELD, never_drop, still_to_drop};
use crate::audit;
use crate::config::Config;
use crate::enforce::{EnforceError, Fault, Incident, Name, Reconciled, reconcile};
use crate::engine::NotEffective;
use crate::notify::Notice;
use crate::report::ip_text;
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
                    let key = fallback_key(interface.as_deref().unwrap_or(&from));
                    self.mark(&key, format!("{place}{from} cannot be used, {to} is: {reason}"));
                    self.notifier.send(Notice::Fallback { at, interface, from, to, reason });
                }
                Incident::Repaired { missing, orphans } => self.repaired(&missing, &orphans),
                Incident::MapFull { gave_way, capacity } => {
                    let text = format!("the ban map is full ({capacity}); {} bans gave way", gave_way.len());
                    error!("{text}");
                    self.write(&audit::Event::MapFull { gave_way: &gave_way, capacity });
                    self.mark("map_full", text.clone());
                    self.notifier.send(Notice::Other { at, event: "map_full".into(), text });
                }
                Incident::Degraded { fault, reason } => self.degrade(&format!("enforcement:{fault}"), Some(reason)),
                Incident::Recovered { fault } => self.recovered(&fault),
                Incident::Off => self.switched_off(),
            }
        }
    }

    /// What was stepped down from because of it is in use again, too.
    fn recovered(&mut self, fault: &Fault) {
        self.degrade(&format!("enforcement:{fault}"), None);
        match fault {
            Fault::Interface(name) => self.degrade(&fallback_key(name), None),
            Fault::Overflow => self.degrade(&fallback_key(Name::Iptables.as_str()), None),
            _ => {}
        }
    }

    pub(super) fn repaired(&mut self, missing: &[IpNet], orphans: &[IpNet]) {
        warn!("repaired the kernel: {} bans were missing, {} were unwanted", missing.len(), orphans.len());
        self.write(&audit::Event::Repaired { missing, orphans });
        let text =
            format!("{} bans were missing in the kernel, {} were unwanted; repaired", missing.len(), orphans.len());
        self.notifier.send(Notice::Other { at: now(), event: "repaired".into(), text });
    }

    /// Makes the kernel hold exactly what is wanted; `tell` audits what had to be repaired.
    pub fn reconcile(&mut self, tell: bool) {
        if self.off {
            return;
        }
        if self.degraded.contains_key(ALLOWLIST) {
            self.set_never_drop();
        }
        let wanted = still_to_drop(self.wanted.iter().map(|(prefix, until)| (prefix, *until)));
        let outcome = reconcile(self.enforcer.as_mut(), &wanted);
        self.reconciled(outcome, tell);
    }

    /// Takes note of how that went.
    pub fn reconciled(&mut self, outcome: Result<Reconciled, EnforceError>, tell: bool) {
        match outcome {
            Ok(done) => {
                self.held = done.enforced;
                self.unlisted = None;
                // Of bans that ended while no daemon ran: their ends are still to be told.
                let mut last = done.last;
                last.retain(|held| self.wanted.contains_key(&held.prefix));
                self.add_counts(&last);
                if tell && !(done.missing.is_empty() && done.orphans.is_empty()) {
                    self.repaired(&done.missing, &done.orphans);
                }
                let failed = done.failed.map(|e| e.to_string());
                if let Some(failure) = &failed {
                    error!("{} of {} bans are NOT enforced: {failure}", done.wanted - done.enforced, done.wanted);
                    self.write(&audit::Event::EnforceFailed { prefix: None, error: failure });
                }
                if failed.is_none() {
                    // What had given way is held again, or no longer wanted.
                    self.degrade("map_full", None);
                }
                self.degrade(HELD, failed);
            }
            Err(failure) => {
                let failure = failure.to_string();
                error!("the enforcer cannot be compared with what is wanted: {failure}");
                self.metrics.enforcer_errors.inc();
                self.write(&audit::Event::EnforceFailed { prefix: None, error: &failure });
                self.degrade(HELD, Some(failure));
            }
        }
        self.maintain();
    }

    /// Lets the enforcer look after itself, and tells what it met.
    pub(super) fn maintain(&mut self) {
        if !self.off {
            let incidents = self.enforcer.maintain();
            self.incidents(incidents);
        }
    }

    pub(super) fn notice_off(&mut self) {
        if !self.off && off::is_off(&self.config.dashboard.socket) {
            self.switched_off();
        }
    }

    /// `anomaly off` was said, as its mark or the kernel shows: whichever is seen first tells.
    fn switched_off(&mut self) {
        if self.off {
            return;
        }
        self.off = true;
        // Bans that were set after the command had looked, and those of pins that the command did not know, still drop.
        self.count();
        let held: Vec<IpNet> = self.wanted.keys().copied().collect();
        let failure = self.enforcer.unban(&held).into_iter().find_map(Result::err);
        self.degrade(HELD, failure.map(|e| format!("packets may STILL be dropped although dropping is off: {e}")));
        error!("switched off by `anomaly off`: nothing is dropped until `anomaly run` is started again");
        self.write(&audit::Event::Off);
        let reason = "dropping was switched off by `anomaly off`; restart the daemon to drop again".to_owned();
        self.mark("off", reason.clone());
        self.notifier.send(Notice::Other { at: now(), event: "off".into(), text: reason });
    }

    /// Reads what each ban has dropped, and how many of the wanted ones are held.
    pub(super) fn count(&mut self) {
        match self.enforcer.banned() {
            Ok(held) => {
                self.unlisted = None;
                self.held = held.iter().filter(|h| self.wanted.contains_key(&h.prefix)).count();
                let mut counts: HashMap<_, _> = held.into_iter().map(|h| (h.prefix, (h.packets, h.bytes))).collect();
                if self.held < self.wanted.len() {
                    // What ran out, or was flushed, keeps its count until its end is told.
                    for (prefix, count) in self.counts.iter().filter(|(prefix, _)| self.wanted.contains_key(prefix)) {
                        counts.entry(*prefix).or_insert(*count);
                    }
                }
                self.counts = Arc::new(counts);
            }
            Err(failure) => {
                self.metrics.enforcer_errors.inc();
                self.unlisted = Some(failure.to_string());
                // The next comparison that succeeds says that it is over.
                self.degrade(HELD, Some(failure.to_string()));
            }
        }
    }

    /// The same, from time to time. Once the enforcer says again what it drops, that is compared with what is wanted at once.
    pub(super) fn recount(&mut self) {
        let was_unlisted = self.unlisted.is_some();
        self.count();
        if was_unlisted && self.unlisted.is_none() {
            self.reconcile(true);
        }
    }

    /// Marks a key of [`Apply::degraded`] as degraded with a reason, or as good again with none. Only changes are logged
    /// and told.
    pub fn degrade(&mut self, key: &str, reason: Option<String>) {
        match reason {
            Some(reason) => {
                if self.degrade_quietly(key, reason.clone()) {
                    self.tell_degraded(word(key), reason);
                }
            }
            None => {
                if let Some((reason, since)) = self.degraded.remove(key) {
                    self.tell_recovered(word(key), &reason, since);
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
        info!("{what} has recovered; it was: {reason}");
        self.write(&audit::Event::Degraded { what, reason, recovered: true });
        let after = now().since(since);
        self.notifier.send(Notice::Recovered { at: now(), what: what.to_owned(), reason: reason.to_owned(), after });
    }

    /// As [`Apply::degrade`], for what cannot be written to the audit log because that is what fails; true when it is new.
    pub(super) fn degrade_quietly(&mut self, key: &str, reason: String) -> bool {
        let new = !self.degraded.contains_key(key);
        if new {
            error!("{}: {reason}", word(key));
        }
        self.mark(key, reason);
        new
    }

    /// Shows what is told in another way.
    pub(super) fn mark(&mut self, key: &str, reason: String) {
        let since = self.degraded.get(key).map_or_else(now, |(_, since)| *since);
        self.degraded.insert(key.to_owned(), (reason, since));
    }

    /// Shows that requests of a banned client keep arriving, for as long as such a ban is in force.
    pub(super) fn show_not_effective(&mut self, proof: &NotEffective) {
        self.not_effective.insert(proof.prefix, proof.clone());
        let more = match self.not_effective.len() - 1 {
            0 => String::new(),
            1 => "; and one more ban".into(),
            more => format!("; and {more} more bans"),
        };
        self.mark("not_effective", format!("{}: {}{more}", ip_text(&proof.prefix), why_not_effective(proof)));
    }

    /// Bans have ended. No recovery is told of: what let these clients through is still there.
    pub(super) fn forget_not_effective(&mut self) {
        let known = self.not_effective.len();
        self.not_effective.retain(|prefix, _| self.wanted.contains_key(prefix));
        if self.not_effective.len() == known {
            return;
        }
        match self.not_effective.values().max_by_key(|proof| proof.at).cloned() {
            Some(newest) => self.show_not_effective(&newest),
            None => drop(self.degraded.remove("not_effective")),
        }
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
    }

    /// Renews the picture.
    pub fn publish(&mut self) {
        let wanted = self.wanted.len();
        let ratio = match wanted {
            0 => 1.0,
            _ if self.off || self.unlisted.is_some() => 0.0,
            _ => self.held.min(wanted) as f64 / wanted as f64,
        };
        publish(
            &self.picture,
            ApplyStatus {
                enforcer: self.enforcer.name(),
                coverage: self.enforcer.coverage(),
                counts: Arc::clone(&self.counts),
                enforcement_ratio: ratio,
                degraded: (self.degraded.iter())
                    .map(|(what, (reason, since))| (word(what).to_owned(), reason.clone(), *since))
                    .collect(),
                lost: self.lost(),
                at: now(),
            },
        );
    }

    /// Why nothing is dropped, or nobody knows.
    fn lost(&self) -> Option<String> {
        if self.off {
            return Some("dropping was switched off by `anomaly off`".into());
        }
        let failure = self.unlisted.as_ref()?;
        Some(format!("{} does not say what it drops: {failure}", self.enforcer.name().as_str()))
    }

    /// Hands the allow-list and the guarded addresses to the enforcer.
    pub fn set_never_drop(&mut self) {
        let failure = self.enforcer.set_never_drop(&never_drop(&self.guarded, &self.config)).err();
        self.degrade(ALLOWLIST, failure.map(|failure| format!("the allow-list could not be set: {failure}")));
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
                self.degrade(CONFIG, None);
            }
            Err(problem) => {
                self.metrics.config_reload_errors.inc();
                self.audit.reopen(&self.config.audit.path, self.config.audit.max_bytes);
                self.snapshots.reopen(&self.config.audit.snapshot_path, self.config.audit.max_bytes);
                error!("the new configuration is not used, the old one stays in force: {problem}");
                self.write(&audit::Event::ConfigReloaded { error: Some(&problem) });
                self.degrade(CONFIG, Some(problem));
            }
        }
    }
}

fn fallback_key(from: &str) -> String {
    format!("fallback:{from}")
}

/// The word that people know a key by.
fn word(key: &str) -> &str {
    key.split(':').next().unwrap_or(key)
}
