//! The apply thread: for each decision persist, then enforce, then audit the outcome, then notify.
//!
//! It may block (a disk, an `iptables` that hangs) without the hot thread noticing. None of
//! the sinks can stop another one: what fails is counted, shown as degraded, and tried again.

use std::collections::{BTreeMap, HashMap};
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::mpsc::{Receiver, RecvTimeoutError};
use std::time::Duration;

use ipnet::IpNet;
use tokio::sync::{Notify, broadcast};
use tracing::{error, info, warn};

use super::clock::{now, stopwatch};
use super::messages::{ApplyStatus, MAX_EXPLAINED, Progress, Reply, Shared, Work};
use super::saves::Saves;
use super::trouble::Told;
use crate::audit::{self, Audit, AuditError, Change, Snapshots};
use crate::config::{self, Backend, Config, OnStop};
use crate::enforce::guard::{Guarded, Why};
use crate::enforce::{Drop, Enforcer};
use crate::engine::{Ban, Decision, LevelAccepted, NotEffective, Origin, Output, Refusal};
use crate::metrics::Metrics;
use crate::notify::{Notice, Notifier};
use crate::report::{BanAnswer, BanRow, DecisionRow, Explanation, PastBan, Reason, TopRow, ip_text};
use crate::store::{BanState, Reader, Store, StoreError};
use crate::time::Timestamp;
use crate::view::control::{Event, RequestError};

mod decisions;
#[cfg(test)]
mod tests;
mod upkeep;

/// How often the enforcer is looked after and the picture renewed.
const MAINTAIN_EVERY: Duration = Duration::from_secs(1);
/// Counts of bans are read at least this often, and otherwise as often as reading takes less than a fiftieth of the time.
const COUNT_EVERY: Duration = Duration::from_secs(60);
/// The same while nothing is banned and nothing held: an empty map costs a walk through all of its buckets. The first ban
/// ends this pause.
const COUNT_NOTHING_EVERY: Duration = Duration::from_secs(5);
/// Counts of active bans reach the store this often.
const STORE_COUNTS_EVERY: Duration = Duration::from_secs(60);
const PRUNE_EVERY: Duration = Duration::from_secs(3600);
/// Keys of [`Apply::degraded`]: what the enforcer holds is not what is wanted, or unknown.
const HELD: &str = "enforcement:held";
/// The allow-list is not in the kernel.
const ALLOWLIST: &str = "enforcement:allowlist";
/// The configuration file is refused, or could not be put in force.
const CONFIG: &str = "config";

/// What is to be dropped, and until when.
pub type Wanted = HashMap<IpNet, Option<Timestamp>, foldhash::fast::RandomState>;

/// Which of these bans are to be dropped.
pub fn wanted<'a>(bans: impl ExactSizeIterator<Item = &'a Ban>) -> Wanted {
    let mut wanted = Wanted::with_capacity_and_hasher(bans.len(), Default::default());
    wanted.extend(bans.filter(|ban| !ban.in_past).map(|ban| (ban.prefix, ban.until)));
    wanted
}

/// Bans that have not ended, with the time that they have left.
pub fn still_to_drop<'a>(bans: impl Iterator<Item = (&'a IpNet, Option<Timestamp>)>) -> Vec<Drop> {
    let wall = now();
    bans.filter(|(_, until)| until.is_none_or(|until| until > wall))
        .map(|(prefix, until)| Drop { prefix: *prefix, left: until.map(|until| until.since(wall)) })
        .collect()
}

/// What must never be dropped: who is guarded, the allow-list and the proxies.
pub fn never_drop(guarded: &[Guarded], config: &Config) -> Vec<IpNet> {
    let mut prefixes: Vec<IpNet> = guarded.iter().map(|guarded| guarded.prefix).collect();
    prefixes.extend(config.allowlist.iter().chain(&config.trusted_proxies));
    prefixes.sort();
    prefixes.dedup();
    prefixes
}

/// Everything the apply thread owns.
pub struct Apply {
    /// Bans and progress.
    pub store: Store,
    /// For explanations.
    pub reader: Reader,
    /// Who drops.
    pub enforcer: Box<dyn Enforcer>,
    /// For people.
    pub audit: Audit,
    /// Proof.
    pub snapshots: Snapshots,
    /// Slack and webhook.
    pub notifier: Notifier,
    /// For those who watch.
    pub events: broadcast::Sender<Event>,
    /// For Prometheus.
    pub metrics: Arc<Metrics>,
    /// Where the picture goes.
    pub picture: Shared<ApplyStatus>,
    /// Told when there is something new to show before the second is over.
    pub news: Arc<Notify>,
    /// Told when one has ended, or something could not be written.
    pub saves: Arc<Saves>,
    /// As it is now.
    pub config: Box<Config>,
    /// Never dropped because the host lives on them.
    pub guarded: Vec<Guarded>,
    /// The bans that should be enforced, with their ends.
    pub wanted: Wanted,
    /// Packets and bytes per ban, as last read.
    pub counts: Arc<HashMap<IpNet, (u64, u64)>>,
    /// Wanted bans that the enforcer held when it was last asked.
    pub held: usize,
    /// Why the enforcer did not say what it holds when it was last asked.
    pub unlisted: Option<String>,
    /// `anomaly off` was said: nothing is dropped until the next start.
    pub off: bool,
    /// Bans in force whose clients still come through.
    pub not_effective: BTreeMap<IpNet, NotEffective>,
    /// What is not as it should be: key -> reason, since. A key is a word, or a word, a colon and which of several causes:
    /// each ends by itself.
    pub degraded: BTreeMap<String, (String, Timestamp)>,
    /// What others found and this thread has told, as [`Apply::degraded`]; they show it themselves, with fresher words.
    pub told: Told,
}

impl Apply {
    /// Runs until [`Work::Stop`].
    pub fn run(mut self, work: &Receiver<Work>) {
        let clock = stopwatch();
        let (mut maintain_at, mut count_at, mut nothing_to_count) = (Duration::ZERO, Duration::ZERO, false);
        let (mut store_counts_at, mut prune_at) = (STORE_COUNTS_EVERY, Duration::from_secs(30));
        loop {
            let wait = maintain_at.saturating_sub(clock());
            match work.recv_timeout(wait) {
                Ok(Work::Stop(progress)) => return self.stop(*progress),
                Ok(item) => self.work(item),
                Err(RecvTimeoutError::Timeout) => {}
                Err(RecvTimeoutError::Disconnected) => return,
            }
            let at = clock();
            if at < maintain_at {
                continue;
            }
            maintain_at = at + MAINTAIN_EVERY;
            self.notice_off();
            self.maintain();
            if at >= count_at || (nothing_to_count && !self.wanted.is_empty()) {
                self.recount();
                // What failed is soon asked again: until then nobody knows what is dropped.
                let pause = if self.unlisted.is_some() { 5 } else { 50 };
                nothing_to_count = self.unlisted.is_none() && self.wanted.is_empty() && self.counts.is_empty();
                let least = if nothing_to_count { COUNT_NOTHING_EVERY } else { MAINTAIN_EVERY };
                count_at = at + ((clock() - at) * pause).clamp(least, COUNT_EVERY);
            }
            if at >= store_counts_at {
                store_counts_at = at + STORE_COUNTS_EVERY;
                let counts: Vec<_> = self.counts.iter().map(|(prefix, (p, b))| (*prefix, *p, *b)).collect();
                self.with_store(|store| store.update_counts(&counts));
            }
            if at >= prune_at {
                let more = self.with_store(|store| store.prune(now())).unwrap_or(false);
                prune_at = at + if more { MAINTAIN_EVERY } else { PRUNE_EVERY };
            }
            if self.store.unwritten() > 0 || self.store.failing().is_some() {
                self.with_store(Store::retry);
            }
            if self.snapshots.due(now()) {
                self.snapshot(&[]);
            }
            self.look_after_sinks();
            self.publish();
        }
    }

    fn work(&mut self, work: Work) {
        match work {
            Work::Outputs { outputs, reply } => self.outputs(outputs, reply),
            Work::Save(progress) => {
                let saved = self.save(&progress);
                self.saves.end(saved);
            }
            Work::Reconcile(bans) => {
                self.wanted = wanted(bans.iter().map(Arc::as_ref));
                self.forget_not_effective();
                self.reconcile(true);
            }
            Work::Explain { prefix, client, allowlisted_by, active, inside, reply } => {
                let _ = reply.send(self.explain(&prefix, client, allowlisted_by, [&active, &inside]));
            }
            Work::Guard(prefixes) => {
                self.guarded = prefixes;
                self.set_never_drop();
            }
            Work::Reloaded(outcome) => self.reloaded(outcome),
            Work::ConfigFile(refused) => self.degrade(CONFIG, refused),
            Work::History(point) => {
                self.with_store(|store| store.add_history(&point));
            }
            Work::Health(found) => self.health(&found),
            Work::Stop(_) => {}
        }
    }

    fn drop_for(&self, prefix: IpNet, until: Option<Timestamp>) -> Drop {
        let wall = now();
        Drop { prefix, left: until.map(|until| until.since(wall)) }
    }

    /// Applies outputs in order; bans that follow one another are enforced in one go, and so are unbans: a thousand that
    /// end at the same moment cost one listing of the firewall.
    fn outputs(&mut self, outputs: Vec<Output>, reply: Option<Reply>) {
        let (mut lifted, mut banned, mut kept, mut refused, mut failed) = (Vec::new(), None, None, None, None);
        let mut outputs = outputs.into_iter().peekable();
        while let Some(output) = outputs.next() {
            self.metrics.output(&output);
            match output {
                Output::Decision(Decision::Ban(ban)) => {
                    let mut bans = vec![ban];
                    while let Some(next) = outputs.next_if(|next| matches!(next, Output::Decision(Decision::Ban(_)))) {
                        self.metrics.output(&next);
                        if let Output::Decision(Decision::Ban(ban)) = next {
                            bans.push(ban);
                        }
                    }
                    failed = self.ban(&bans).map(RequestError::NotEnforced).or(failed);
                    banned = bans.pop();
                }
                Output::Decision(Decision::Unban(unban)) => {
                    let mut unbans = vec![unban];
                    while let Some(next) = outputs.next_if(|next| matches!(next, Output::Decision(Decision::Unban(_))))
                    {
                        self.metrics.output(&next);
                        if let Output::Decision(Decision::Unban(unban)) = next {
                            unbans.push(unban);
                        }
                    }
                    let mut rows: Vec<DecisionRow> = unbans.iter().map(DecisionRow::unban).collect();
                    let by_hand: Vec<Option<IpNet>> =
                        unbans.iter().map(|u| (u.origin == Origin::Operator).then_some(u.prefix)).collect();
                    let still = self.unban(unbans);
                    failed = still.map(|(prefix, why)| RequestError::StillDropped { prefix, why }).or(failed);
                    for (row, prefix) in rows.iter_mut().zip(by_hand) {
                        row.still_refused = prefix.and_then(|prefix| self.enforcer.still_refused(&prefix));
                    }
                    lifted.extend(rows);
                }
                Output::Kept(ban) => {
                    // Setting it again changes nothing where it is enforced, and is the only way to know that it is.
                    if !self.off {
                        let drop = self.drop_for(ban.ban.prefix, ban.ban.until);
                        let failure = self.enforcer.ban(&[drop]).into_iter().find_map(Result::err);
                        failed = failure.map(|e| RequestError::NotEnforced(e.to_string())).or(failed);
                    }
                    self.tell_kept(&ban);
                    kept = Some(ban.ban);
                }
                Output::Refused(refusal) => refused = Some(refusal),
                other => self.tell(&other),
            }
        }
        if banned.is_some() || !lifted.is_empty() {
            // Whoever gets the answer, and asks again, must see what was done.
            self.publish();
            self.news.notify_one();
        }
        let failed = refused.map(|refusal| self.refused(refusal)).or(failed);
        match reply {
            Some(Reply::Ban(reply)) => {
                let (kept, banned) = (kept.is_some(), kept.as_deref().or(banned.as_deref()));
                let banned = banned.filter(|_| failed.is_none());
                let answer = banned.map(|ban| BanAnswer { ban: self.row(ban, kept), kept });
                let _ = reply.send(answer.ok_or_else(|| failed.unwrap_or(RequestError::Stopping)));
            }
            Some(Reply::Unban(reply)) => {
                let _ = reply.send(failed.map_or(Ok(lifted), Err));
            }
            None => {}
        }
    }

    /// With the reason, where the engine knows none.
    fn refused(&self, refusal: Refusal) -> RequestError {
        let why = match &refusal {
            Refusal::NeverBan { entry, .. } => {
                let guarded = self.guarded.iter().find(|guarded| guarded.prefix.trunc() == entry.trunc());
                let proxy = || self.config.trusted_proxies.contains(entry).then_some(Why::TrustedProxy);
                guarded.map(|guarded| guarded.why).or_else(proxy)
            }
            _ => None,
        };
        RequestError::Refused(refusal, why)
    }

    /// The row of a ban; of one that has been in force before, with what it has dropped.
    fn row(&self, ban: &Ban, counted: bool) -> BanRow {
        let counts = self.counts.get(&ban.prefix).copied().filter(|_| counted);
        let (packets, bytes) = counts.unwrap_or_default();
        BanRow::new(ban, self.enforcer.name().as_str(), packets, bytes)
    }

    /// What is told and not enforced.
    fn tell(&mut self, output: &Output) {
        match output {
            Output::GlobalAnomaly(finding) => {
                warn!("the whole site is unusual: {}", finding.reason());
                self.write(&audit::Event::GlobalAnomaly(finding));
                self.show(DecisionRow::global_anomaly(finding), finding.reason());
                self.notifier.send(Notice::GlobalAnomaly(Box::new(finding.clone())));
            }
            Output::Baseline(update) => self.write(&audit::Event::Baseline(update)),
            Output::NotEffective(proof) => {
                let reason = super::log_watch::why_not_effective(proof);
                warn!("the ban of {} does not hold: {reason}", ip_text(&proof.prefix));
                self.write(&audit::Event::NotEffective { proof, reason: &reason });
                self.show_not_effective(proof);
                self.notifier.send(Notice::NotEffective { proof: proof.clone(), reason });
            }
            Output::LevelAccepted(accepted) => {
                let LevelAccepted { scope, before, after, .. } = accepted;
                let reason =
                    format!("{}: {:.2} req/s is normal now (was {:.2})", scope.as_str(), after.mean, before.mean);
                info!("a new level is accepted: {reason}");
                self.write(&audit::Event::LevelAccepted(accepted));
                self.show(DecisionRow::level_accepted(accepted), reason);
                self.notifier.send(Notice::LevelAccepted(accepted.clone()));
            }
            Output::Braked(braked) => {
                warn!("the brake holds: {} is not banned ({})", ip_text(&braked.prefix), braked.finding.reason());
                self.write(&audit::Event::Braked(braked));
                self.show(DecisionRow::braked(braked), braked.finding.reason());
                self.notifier.send(Notice::Braked(Box::new(braked.clone())));
            }
            Output::Decision(_) | Output::Kept(_) | Output::Refused(_) => {}
        }
    }

    /// For those who watch; nobody need.
    fn show(&self, row: DecisionRow, reason: String) {
        let _ = self.events.send(Event { row, reason });
    }

    fn explain(
        &mut self,
        prefix: &IpNet,
        now: Option<TopRow>,
        allowlisted_by: Option<IpNet>,
        [active, inside]: [&[Arc<Ban>]; 2],
    ) -> Result<Explanation, RequestError> {
        let name = self.enforcer.name().as_str();
        let counts = Arc::clone(&self.counts);
        let count = |prefix: &IpNet| counts.get(prefix).copied().unwrap_or_default();
        let recorded = self.reader.explain(prefix, MAX_EXPLAINED).map_err(|e| RequestError::Store(e.to_string()))?;
        let bans = recorded.iter().map(|r| {
            let (packets, bytes) =
                if r.state == BanState::Active { count(&r.ban.prefix) } else { (r.packets, r.bytes) };
            PastBan::new(&r.ban, r.state.as_str(), r.ended, packets.max(r.packets), bytes.max(r.bytes))
        });
        let row = |ban: &Arc<Ban>| {
            let (packets, bytes) = count(&ban.prefix);
            BanRow::new(ban, name, packets, bytes)
        };
        Ok(Explanation {
            ip: ip_text(prefix),
            active: active.iter().map(row).collect(),
            inside: inside.iter().map(row).collect(),
            now,
            bans: bans.collect(),
            allowlisted_by: allowlisted_by.map(|p| ip_text(&p)),
        })
    }

    /// Whether everything is on disk.
    fn save(&mut self, progress: &Progress) -> bool {
        let checkpoints: BTreeMap<PathBuf, Vec<u8>> =
            (progress.checkpoints.iter()).filter_map(|c| Some((c.path.clone(), serde_json::to_vec(c).ok()?))).collect();
        self.with_store(|store| store.save_progress(progress.at, &progress.state, &checkpoints)).is_some()
    }

    /// Calls the store; a failure is counted and shown, and over when the store says that everything is written again
    /// (on a nearly full disk small writes work while large ones fail).
    fn with_store<T>(&mut self, call: impl FnOnce(&mut Store) -> Result<T, StoreError>) -> Option<T> {
        match call(&mut self.store) {
            Ok(value) => {
                if self.store.failing().is_none() {
                    self.degrade("store", None);
                }
                Some(value)
            }
            Err(failure) => {
                self.metrics.store_errors.inc();
                self.degrade("store", Some(failure.to_string()));
                self.saves.fail();
                None
            }
        }
    }

    /// Writes an event to the audit log.
    pub fn write(&mut self, event: &audit::Event<'_>) {
        let outcome = self.audit.write(now(), self.enforcer.name().as_str(), event);
        self.audited(outcome);
    }

    fn snapshot(&mut self, changes: &[Change]) {
        let name = self.enforcer.name().as_str();
        let enforcer = &mut self.enforcer;
        let full = || enforcer.snapshot_text().map_err(|e| e.to_string());
        let outcome = self.snapshots.write(now(), name, changes, full);
        self.audited(outcome);
    }

    fn audited(&mut self, outcome: Result<(), AuditError>) {
        if let Err(failure) = outcome {
            self.metrics.audit_errors.inc();
            self.degrade_quietly("audit", failure.to_string());
        }
    }

    fn stop(mut self, progress: Progress) {
        self.save(&progress);
        let keep = self.config.enforcer.on_stop == OnStop::Keep;
        let counts: Vec<_> = self.counts.iter().map(|(prefix, (p, b))| (*prefix, *p, *b)).collect();
        self.with_store(|store| store.update_counts(&counts));
        self.write(&audit::Event::Stopped { keep });
        if let Err(failure) = self.enforcer.close(keep) {
            error!("something of ours stays in the kernel: {failure}");
        }
        let bans = match self.config.enforcer.backend {
            Backend::DryRun => "nothing was dropped (dry-run)",
            _ if self.off => "nothing was dropped any more (`anomaly off`)",
            _ if keep => "bans stay enforced until they run out",
            _ => "bans were taken out of the kernel",
        };
        info!("stopped; {bans}");
    }
}

/// The keys of `old` and `new` that differ and need a restart.
pub fn needs_restart(old: &Config, new: &Config) -> Vec<&'static str> {
    let config::Enforcer { on_stop, .. } = new.enforcer;
    let enforcer = config::Enforcer { on_stop, ..old.enforcer.clone() };
    let differ = [
        ("name", old.name != new.name),
        ("enforcer", enforcer != new.enforcer),
        ("store.path", old.store_path != new.store_path),
        ("notify", old.notify != new.notify),
        ("dashboard", old.dashboard != new.dashboard),
        ("nginx", old.nginx != new.nginx),
    ];
    differ.into_iter().filter(|(_, differs)| *differs).map(|(key, _)| key).collect()
}
