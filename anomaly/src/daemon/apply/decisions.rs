//! Bans and unbans: persisted, enforced, audited and told, in that order, as many at once as came together.

use std::sync::Arc;

use ipnet::IpNet;
use tracing::{error, info};

use super::super::clock::now;
use super::{Apply, HELD};
use crate::audit::{self, Change};
use crate::enforce::{Drop, EnforceError, Held};
use crate::engine::{Ban, Kept, Origin, Unban};
use crate::notify::Notice;
use crate::report::{DecisionRow, Reason, ip_text, some_of};
use crate::store::{BanState, Recorded};
use crate::time::Timestamp;

/// Up to so many decisions that come together are a line each in the daemon's log; more are one line for all. The audit log
/// has each of them in any case.
const MAX_LINES: usize = 100;

impl Apply {
    /// Why the last of them is not enforced, where the enforcer failed.
    pub(super) fn ban(&mut self, bans: &[Box<Ban>]) -> Option<String> {
        // Maintenance looks once a second only: a ban must not slip in between.
        self.notice_off();
        self.with_store(|store| store.record_bans(bans.iter().map(AsRef::as_ref)));
        let wall = now();
        let live: Vec<&Ban> = bans.iter().filter(|b| !b.in_past).map(AsRef::as_ref).collect();
        let drops: Vec<Drop> = live.iter().map(|ban| self.drop_for(ban.prefix, ban.until)).collect();
        let outcomes = if self.off {
            drops.iter().map(|_| Err(EnforceError::Off)).collect()
        } else if drops.is_empty() {
            Vec::new()
        } else {
            self.enforcer.ban(&drops)
        };
        let mut changes = Vec::new();
        let mut failed = Failed::default();
        let mut last = None;
        for ((ban, drop), outcome) in live.iter().zip(&drops).zip(outcomes) {
            let off = matches!(outcome, Err(EnforceError::Off));
            let failure = outcome.err().map(|e| e.to_string());
            last = failure.clone().filter(|_| !off);
            self.wanted.insert(ban.prefix, ban.until);
            match &failure {
                None => {
                    self.held += 1;
                    self.metrics.enforcement_duration.observe(now().since(ban.at.min(wall)).as_secs_f64());
                    changes.push(Change::Ban(drop.prefix, drop.left));
                    if live.len() <= MAX_LINES {
                        let (ip, reason) = (ip_text(&ban.prefix), ban.reason());
                        info!("ban {ip} (offence {}, {}): {reason}", ban.offence, length_text(ban));
                    }
                }
                Some(failure) => {
                    self.metrics.enforcer_errors.inc();
                    failed.add(ban.prefix, failure);
                    if live.len() <= MAX_LINES {
                        error!(
                            "ban {} is NOT enforced: {failure}; it is tried again every minute",
                            ip_text(&ban.prefix)
                        );
                    }
                }
            }
            self.tell_ban(ban, failure);
        }
        if live.len() > MAX_LINES {
            if !changes.is_empty() {
                info!("{} bans at once: {}; the audit log has each with its reason", changes.len(), shown(&changes));
            }
            failed.say("bans are NOT enforced");
        }
        for ban in bans.iter().filter(|b| b.in_past) {
            // It had ended before it was decided: on record, and nothing else.
            tracing::debug!("{} would have been banned at {}: {}", ip_text(&ban.prefix), ban.at, ban.reason());
        }
        if !changes.is_empty() {
            self.maintain();
            self.snapshot(&changes);
        }
        last
    }

    /// Tells everybody of a ban, and why it is not enforced.
    fn tell_ban(&mut self, ban: &Ban, error: Option<String>) {
        self.write(&audit::Event::Ban { ban, error: error.as_deref() });
        self.show(DecisionRow::ban(ban), ban.reason());
        let enforcer = self.enforcer.name().as_str().to_owned();
        self.notifier.send(Notice::Ban { ban: Box::new(ban.clone()), enforcer, error });
    }

    /// Tells that a ban by hand has changed nothing: nobody else is told, because nobody is dropped for longer or shorter.
    pub(super) fn tell_kept(&mut self, kept: &Kept) {
        let Kept { ban, until, .. } = kept;
        let end =
            |until: &Option<Timestamp>| until.map_or_else(|| "permanently".to_owned(), |at| format!("until {at}"));
        let (ip, asked, lasts) = (ip_text(&ban.prefix), end(until), end(&ban.until));
        info!("ban {ip} {asked}, asked for by hand: it stays banned {lasts}, which is not shorter: {}", ban.reason());
        self.write(&audit::Event::BanKept(kept));
    }

    /// Tells of the bans, and of the ends of others, that a crash kept from being told; the kernel holds what it should by
    /// now, or it is known why not.
    pub fn tell_late(&mut self, bans: &[Ban], ended: &[Recorded]) {
        let error = self.degraded.get(HELD).map(|(reason, _)| reason.clone());
        for Recorded { ban, state, ended, packets, bytes } in ended {
            let origin = if *state == BanState::Lifted { Origin::Operator } else { Origin::Detector };
            let at = ended.unwrap_or(ban.at);
            info!("unban {}, from before the last stop", ip_text(&ban.prefix));
            let unban = Unban { prefix: ban.prefix, at, offence: ban.offence, origin, ban: Arc::new(ban.clone()) };
            self.tell_unban(unban, *packets, *bytes, error.clone());
        }
        for ban in bans {
            info!("ban {}, from before the last stop: {}", ip_text(&ban.prefix), ban.reason());
            self.tell_ban(ban, error.clone());
        }
    }

    /// Tells everybody of an unban, and why the kernel drops it all the same.
    fn tell_unban(&mut self, unban: Unban, packets: u64, bytes: u64, error: Option<String>) {
        self.write(&audit::Event::Unban { unban: &unban, packets, bytes, error: error.as_deref() });
        let ended = if unban.origin == Origin::Operator { BanState::Lifted } else { BanState::Expired };
        self.show(DecisionRow::unban(&unban), ended.as_str().into());
        self.notifier.send(Notice::Unban { unban, packets, bytes, error });
    }

    /// What is dropped all the same, or may be, and why.
    pub(super) fn unban(&mut self, unbans: Vec<Unban>) -> Option<(IpNet, String)> {
        self.count_last(&unbans);
        let counted: Vec<(Unban, u64, u64)> = (unbans.into_iter())
            .map(|unban| {
                let (packets, bytes) = self.counts.get(&unban.prefix).copied().unwrap_or_default();
                (unban, packets, bytes)
            })
            .collect();
        self.with_store(|store| store.record_unbans(&counted));
        // Others had ended before they were decided, and were never enforced.
        let lifted: Vec<_> =
            counted.into_iter().filter(|(unban, ..)| self.wanted.remove(&unban.prefix).is_some()).collect();
        if lifted.is_empty() {
            return None;
        }
        self.held = self.held.min(self.wanted.len());
        self.forget_not_effective();
        let prefixes: Vec<IpNet> = lifted.iter().map(|(unban, ..)| unban.prefix).collect();
        let outcomes = self.enforcer.unban(&prefixes);
        let (mut changes, mut failed) = (Vec::new(), Failed::default());
        for ((unban, packets, bytes), outcome) in lifted.into_iter().zip(outcomes) {
            let failure = outcome.err().map(|e| e.to_string());
            Arc::make_mut(&mut self.counts).remove(&unban.prefix);
            match &failure {
                None => {
                    changes.push(Change::Unban(unban.prefix));
                    if prefixes.len() <= MAX_LINES {
                        let ip = ip_text(&unban.prefix);
                        info!("unban {ip} (by the {}): {packets} packets were dropped", unban.origin.as_str());
                    }
                }
                Some(failure) => {
                    self.metrics.enforcer_errors.inc();
                    failed.add(unban.prefix, failure);
                    if prefixes.len() <= MAX_LINES {
                        error!(
                            "{} is STILL dropped: {failure}; it is tried again every minute",
                            ip_text(&unban.prefix)
                        );
                    }
                }
            }
            self.tell_unban(unban, packets, bytes, failure);
        }
        if prefixes.len() > MAX_LINES {
            if !changes.is_empty() {
                info!("{} unbans at once: {}; the audit log has each", changes.len(), shown(&changes));
            }
            failed.say("that were to be lifted are STILL dropped");
        }
        if !changes.is_empty() {
            self.snapshot(&changes);
        }
        if let Some((prefix, failure)) = &failed.first {
            // The next comparison that succeeds says that it is over.
            self.degrade(
                HELD,
                Some(format!("{} may still be dropped although its ban has ended: {failure}", ip_text(prefix))),
            );
        }
        failed.first
    }

    /// Reads for the last time what bans have dropped that end.
    fn count_last(&mut self, unbans: &[Unban]) {
        let enforced = unbans.iter().map(|unban| unban.prefix).filter(|prefix| self.wanted.contains_key(prefix));
        let enforced: Vec<IpNet> = enforced.collect();
        if enforced.is_empty() {
            return;
        }
        match self.enforcer.count(&enforced) {
            Ok(held) => self.add_counts(&held),
            Err(failure) => {
                self.metrics.enforcer_errors.inc();
                tracing::warn!(
                    "the counts of ending bans could not be read, so their last known values are reported: {failure}"
                );
            }
        }
    }

    /// Takes over newer counts. They never fall while a ban lasts, whatever becomes of its entry in the kernel.
    pub(super) fn add_counts(&mut self, held: &[Held]) {
        let counts = Arc::make_mut(&mut self.counts);
        for Held { prefix, packets, bytes, .. } in held {
            let count = counts.entry(*prefix).or_default();
            *count = (count.0.max(*packets), count.1.max(*bytes));
        }
    }
}

/// The first few of many changes.
fn shown(changes: &[Change]) -> String {
    some_of(changes.iter().map(|(Change::Ban(prefix, _) | Change::Unban(prefix))| prefix))
}

/// What could not be done, of many.
#[derive(Default)]
struct Failed {
    count: usize,
    first: Option<(IpNet, String)>,
}

impl Failed {
    fn add(&mut self, prefix: IpNet, failure: &str) {
        self.count += 1;
        self.first.get_or_insert_with(|| (prefix, failure.to_owned()));
    }

    /// One line for all of it; none where nothing failed.
    fn say(&self, what: &str) {
        if let Some((prefix, failure)) = &self.first {
            let first = ip_text(prefix);
            error!("{} {what}, {first} the first of them: {failure}; it is tried again every minute", self.count);
        }
    }
}

fn length_text(ban: &Ban) -> String {
    match (ban.until, ban.duration_secs()) {
        (Some(until), Some(secs)) => format!("{secs} s, until {until}"),
        _ => "permanent".to_owned(),
    }
}
