//! Offences, bans and their ends.
//!
//! The ledger knows which clients are banned, until when, and how often that happened before; it does not know why. An
//! offence that is reported twice (a log read again after a crash) counts once. Bans end on the time of `now`; a ban that was over when
//! it was decided (a backlog) is kept aside until log time has passed it, so that one misdeed stays one offence.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::net::IpAddr;
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use foldhash::fast::FixedState;
use hashbrown::HashMap;
use ipnet::IpNet;

use super::contract::{Ban, Finding, Grade, Offence, Origin, Unban};
use super::settings::{BanLength, Settings};
use crate::time::Timestamp;

/// The brake counts automatic bans over this span.
pub const BRAKE_SPAN: Duration = Duration::from_secs(60);

/// What is dropped but was under way when a ban came into force may be logged for this long.
const GRACE: Duration = Duration::from_secs(15);
/// Nginx's own buffers hold a line for a second or a few: what is older comes out of a backlog.
const FRESH: Duration = Duration::from_secs(10);
/// Past this, no record is both fresh and within the grace: log time is at most a minute ahead of the clock.
const SINCE_MATTERS: Duration = Duration::from_secs(120);

/// Whether a ban has an effect, as far as records show.
#[derive(Clone, Copy, Debug)]
pub struct Proof {
    /// What is banned.
    pub prefix: IpNet,
    /// When the ban was put in force.
    pub since: Timestamp,
    /// Records that came although it should drop them.
    pub through: u64,
    /// Whether that was told.
    pub reported: bool,
}

/// A ban in force, and whether it works.
#[derive(Clone, Debug)]
struct Active {
    ban: Arc<Ban>,
    /// The moment it was put in force: a ban that is read out of a backlog was decided earlier by log time.
    since: Timestamp,
    /// Records that came although it should drop them.
    through: u64,
    reported: bool,
}

/// An offence that is only likely one is forgiven after this quiet time.
const LIKELY_DECAY: Duration = Duration::from_secs(86_400);

/// How often, when last, and how sure that was.
#[derive(Clone, Copy, Debug)]
struct Count {
    count: u32,
    last: Timestamp,
    grade: Grade,
}

impl Count {
    /// The quiet time after which one offence is forgiven.
    fn decay(&self, settings: &Settings) -> Duration {
        let decay = match self.grade {
            Grade::Certain => settings.offence_decay,
            Grade::Likely => settings.offence_decay.min(LIKELY_DECAY),
        };
        decay.max(Duration::from_millis(1))
    }

    /// When the next offence is forgiven.
    fn due(&self, settings: &Settings) -> Timestamp {
        self.last.plus(self.decay(settings))
    }
}

/// The prefixes of the bans, for the question that every record asks.
#[derive(Clone, Debug, Default)]
struct Lengths {
    v4: BTreeMap<u8, u32>,
    v6: BTreeMap<u8, u32>,
}

impl Lengths {
    fn of(&mut self, prefix: &IpNet) -> &mut BTreeMap<u8, u32> {
        match prefix {
            IpNet::V4(_) => &mut self.v4,
            IpNet::V6(_) => &mut self.v6,
        }
    }

    fn add(&mut self, prefix: &IpNet) {
        *self.of(prefix).entry(prefix.prefix_len()).or_insert(0) += 1;
    }

    fn remove(&mut self, prefix: &IpNet) {
        let len = prefix.prefix_len();
        let counts = self.of(prefix);
        if let Some(count) = counts.get_mut(&len) {
            *count -= 1;
            if *count == 0 {
                counts.remove(&len);
            }
        }
    }
}

/// The ledger.
#[derive(Clone, Debug, Default)]
pub struct Ledger {
    bans: HashMap<IpNet, Active, FixedState>,
    /// Since when those of an earlier life are in force again.
    enforced_from: Option<Timestamp>,
    /// What [`Ledger::bans`] gave last; empty once `bans` has changed.
    list: OnceLock<Arc<[Arc<Ban>]>>,
    lengths: Lengths,
    ends: BTreeSet<(Timestamp, IpNet)>,
    /// Bans that are over, or were when they were decided, until log time has passed them: what is read of a
    /// backlog (also again, after a crash) may still lie within them.
    past: BTreeMap<IpNet, Timestamp>,
    offences: HashMap<IpNet, Count, FixedState>,
    /// When the next offence of each is forgiven.
    by_age: BTreeSet<(Timestamp, IpNet)>,
    grace: BTreeMap<IpNet, Timestamp>,
    recent: VecDeque<Timestamp>,
}

impl Ledger {
    /// An empty ledger whose hashes are seeded by `seed`.
    pub fn new(seed: u64) -> Self {
        let hasher = FixedState::with_seed(seed);
        Self { bans: HashMap::with_hasher(hasher.clone()), offences: HashMap::with_hasher(hasher), ..Self::default() }
    }

    /// The ban that covers an address, widest last.
    #[inline]
    pub fn covering(&self, address: IpAddr) -> Option<IpNet> {
        if self.bans.is_empty() { None } else { self.covering_one(address) }
    }

    fn covering_one(&self, address: IpAddr) -> Option<IpNet> {
        let lengths = if address.is_ipv4() { &self.lengths.v4 } else { &self.lengths.v6 };
        lengths.keys().rev().find_map(|len| {
            let prefix = IpNet::new(address, *len).ok()?.trunc();
            self.bans.contains_key(&prefix).then_some(prefix)
        })
    }

    /// Whether a ban covers all of `prefix`.
    pub fn covers(&self, prefix: &IpNet) -> bool {
        let lengths = if prefix.addr().is_ipv4() { &self.lengths.v4 } else { &self.lengths.v6 };
        let mut wider = lengths.range(..=prefix.prefix_len()).map(|(len, _)| IpNet::new(prefix.addr(), *len));
        wider.any(|wider| wider.is_ok_and(|wider| self.bans.contains_key(&wider.trunc())))
    }

    /// Whether an address lies in a ban that was over when it was decided, and log time has not passed it yet.
    pub fn in_past(&mut self, prefix: &IpNet, at: Timestamp) -> bool {
        match self.past.get(prefix) {
            None => false,
            Some(until) if *until > at => true,
            Some(_) => {
                self.past.remove(prefix);
                false
            }
        }
    }

    /// True where nobody needs to ask [`Ledger::in_past`].
    pub fn has_no_past(&self) -> bool {
        self.past.is_empty()
    }

    /// Counts a record of a banned client; (when the ban was decided, records so far) once it is time to say that
    /// the ban has no effect. Nothing is proved by what a backlog holds: records from before the ban was put in
    /// force, and old ones, from when perhaps nobody enforced it.
    pub fn came_through(&mut self, prefix: &IpNet, at: Timestamp, now: Timestamp) -> Option<(Timestamp, u64)> {
        const ENOUGH: u64 = 5;
        let active = self.bans.get_mut(prefix)?;
        let since = self.enforced_from.map_or(active.since, |again| again.max(active.since));
        if active.reported || at <= since.plus(GRACE) || now > at.plus(FRESH) {
            return None;
        }
        active.through += 1;
        active.reported = active.through >= ENOUGH;
        active.reported.then_some((active.ban.at, active.through))
    }

    /// The bans in force, oldest first; the same list until one comes or goes.
    pub fn bans(&self) -> Arc<[Arc<Ban>]> {
        let list = self.list.get_or_init(|| {
            let mut bans: Vec<Arc<Ban>> = self.bans.values().map(|a| Arc::clone(&a.ban)).collect();
            bans.sort_by_key(|b| (b.at, b.prefix));
            bans.into()
        });
        Arc::clone(list)
    }

    /// When the next ban ends.
    pub fn next_end(&self) -> Option<Timestamp> {
        self.ends.first().map(|(at, _)| *at)
    }

    /// Offences that have not decayed.
    pub fn offences(&self) -> Vec<Offence> {
        let mut all: Vec<Offence> =
            self.offences.iter().map(|(p, c)| Offence { prefix: *p, count: c.count, last: c.last }).collect();
        all.sort_by_key(|o| (o.last, o.prefix));
        all
    }

    /// Offences of a prefix up to now: one is forgiven for each `offence_decay` without a new one, or each day where the newest
    /// was only a likely one.
    fn count(&self, prefix: &IpNet, at: Timestamp, settings: &Settings) -> u32 {
        let Some(count) = self.offences.get(prefix) else { return 0 };
        let decay = count.decay(settings).as_millis();
        let forgiven = at.since(count.last).as_millis() / decay;
        count.count.saturating_sub(u32::try_from(forgiven).unwrap_or(u32::MAX))
    }

    /// Whether this was decided before: the log is read again after a crash.
    pub fn is_old_news(&self, prefix: &IpNet, at: Timestamp) -> bool {
        self.offences.get(prefix).is_some_and(|c| c.last >= at)
    }

    /// Whether an operator freed this so lately that only the hard limit may ban it.
    pub fn has_grace(&mut self, prefix: &IpNet, at: Timestamp) -> bool {
        if self.grace.is_empty() {
            return false;
        }
        self.grace.retain(|_, until| *until > at);
        self.grace.keys().any(|p| p.contains(prefix) || prefix.contains(p))
    }

    /// Automatic bans in the newest minute.
    pub fn bans_last_minute(&mut self, at: Timestamp) -> u32 {
        while self.recent.front().is_some_and(|t| *t <= at.minus(BRAKE_SPAN)) {
            self.recent.pop_front();
        }
        self.recent.len() as u32
    }

    /// The ban in force of exactly this prefix.
    pub fn in_force(&self, prefix: &IpNet) -> Option<&Arc<Ban>> {
        self.bans.get(prefix).map(|active| &active.ban)
    }

    /// Which offence a ban of this prefix is, and when it ends: after `len`, or at the next step of the ladder.
    pub fn next(&self, net: &IpNet, at: Timestamp, len: Option<BanLength>, s: &Settings) -> (u32, Option<Timestamp>) {
        // Another length for a ban in force is no new offence.
        let replaced = self.in_force(net).map(|ban| ban.offence).filter(|_| len.is_some());
        let offence = replaced.unwrap_or_else(|| self.count(net, at, s).saturating_add(1));
        let step = s.durations.get(offence as usize - 1).or(s.durations.last());
        let until = match len.or(step.copied()).unwrap_or(BanLength::Permanent) {
            BanLength::Timed(duration) => Some(at.plus(duration)),
            BanLength::Permanent => None,
        };
        (offence, until)
    }

    /// Bans a prefix: the next step of the ladder, or `length`. A ban of the same prefix ends with that.
    pub fn ban(&mut self, prefix: IpNet, request: BanRequest, now: Timestamp, settings: &Settings) -> Ban {
        let at = request.at;
        let is_new = request.length.is_none() || self.in_force(&prefix).is_none();
        let (offence, until) = self.next(&prefix, at, request.length, settings);
        let in_past = until.is_some_and(|until| until <= now);
        let ban = Ban {
            prefix,
            at,
            until,
            offence,
            origin: request.origin,
            finding: request.finding,
            note: request.note,
            in_past,
        };
        if is_new {
            let grade = ban.finding.as_ref().map_or(Grade::Certain, |finding| finding.grade);
            self.remember_graded(Offence { prefix, count: offence, last: at }, grade, settings);
        }
        if request.origin == Origin::Detector {
            self.recent.push_back(at);
        }
        match until {
            Some(until) if in_past => {
                self.past.insert(prefix, until);
            }
            _ => self.hold(ban.clone(), at.max(now)),
        }
        ban
    }

    /// Bans that were restored are in force again since `moment`: perhaps nobody enforced them before.
    pub fn enforced_from(&mut self, moment: Timestamp) {
        self.enforced_from = Some(moment);
        // Requests that came through then may be dropped now, and the restarted daemon has forgotten its report.
        for active in self.bans.values_mut() {
            (active.through, active.reported) = (0, false);
        }
    }

    /// Puts a ban in force as of `since`.
    pub fn hold(&mut self, ban: Ban, since: Timestamp) {
        let prefix = ban.prefix;
        self.drop(&prefix);
        self.lengths.add(&prefix);
        if let Some(until) = ban.until {
            self.ends.insert((until, prefix));
        }
        self.list.take();
        self.bans.insert(prefix, Active { ban: Arc::new(ban), since, through: 0, reported: false });
    }

    fn drop(&mut self, prefix: &IpNet) -> Option<Arc<Ban>> {
        let active = self.bans.remove(prefix)?;
        self.list.take();
        self.lengths.remove(prefix);
        if let Some(until) = active.ban.until {
            self.ends.remove(&(until, *prefix));
        }
        Some(active.ban)
    }

    /// Sets a prefix's offences, of which the newest is a certain one, or as sure as the one before was that it replaces. Beyond
    /// as many prefixes as clients are followed, the oldest is forgotten.
    pub fn remember(&mut self, offence: Offence, settings: &Settings) {
        let grade = self.offences.get(&offence.prefix).map_or(Grade::Certain, |count| count.grade);
        self.remember_graded(offence, grade, settings);
    }

    fn remember_graded(&mut self, offence: Offence, grade: Grade, settings: &Settings) {
        let Offence { prefix, count, last } = offence;
        let count = Count { count, last, grade };
        if let Some(old) = self.offences.insert(prefix, count) {
            self.by_age.remove(&(old.due(settings), prefix));
        }
        self.by_age.insert((count.due(settings), prefix));
        while self.offences.len() > settings.max_tracked_ips.max(1) {
            let Some((_, oldest)) = self.by_age.pop_first() else { break };
            self.offences.remove(&oldest);
        }
    }

    /// The prefixes whose newest offence is only a likely one, for the store.
    pub fn likely(&self) -> Vec<IpNet> {
        let likely = self.offences.iter().filter(|(_, count)| count.grade == Grade::Likely);
        let mut all: Vec<IpNet> = likely.map(|(prefix, _)| *prefix).collect();
        all.sort_unstable();
        all
    }

    /// Restores what [`Ledger::likely`] gave, for an offence that has been restored.
    pub fn set_likely(&mut self, prefix: IpNet, settings: &Settings) {
        if let Some(Count { count, last, .. }) = self.offences.get(&prefix).copied() {
            self.remember_graded(Offence { prefix, count, last }, Grade::Likely, settings);
        }
    }

    /// Sorts offences by when they are forgiven, as other settings have it.
    pub fn sort_by_age(&mut self, settings: &Settings) {
        self.by_age = self.offences.iter().map(|(prefix, count)| (count.due(settings), *prefix)).collect();
    }

    /// Ends what has run out; `clock` is log time.
    pub fn expire(&mut self, now: Timestamp, clock: Timestamp, settings: &Settings, mut ended: impl FnMut(Unban)) {
        self.past.retain(|_, until| *until > clock);
        while let Some((until, prefix)) = self.ends.first().copied() {
            if until > now {
                break;
            }
            if let Some(ban) = self.drop(&prefix) {
                if until > clock {
                    self.past.insert(prefix, until);
                }
                ended(Unban { prefix, at: until, offence: ban.offence, origin: Origin::Detector, ban });
            }
        }
        // The one that is due first tells whether any has decayed.
        while let Some((due, prefix)) = self.by_age.first().copied() {
            if due > now {
                break;
            }
            self.by_age.pop_first();
            let left = self.count(&prefix, now, settings);
            let Some(count) = self.offences.remove(&prefix).filter(|_| left > 0) else { continue };
            let count = Count { count: left, last: due, ..count };
            self.offences.insert(prefix, count);
            self.by_age.insert((count.due(settings), prefix));
        }
    }

    /// When [`Ledger::expire`] has work to do.
    pub fn is_due(&self, now: Timestamp) -> bool {
        self.ends.first().is_some_and(|(until, _)| *until <= now)
            || self.by_age.first().is_some_and(|(due, _)| *due <= now)
    }

    /// Lifts every ban that covers `prefix`, takes back its offence, and gives grace. Ends of bans, widest first.
    pub fn lift(&mut self, prefix: &IpNet, now: Timestamp, settings: &Settings) -> Vec<Unban> {
        let mut covering: Vec<IpNet> = self.bans.keys().filter(|p| p.contains(prefix)).copied().collect();
        covering.sort();
        let unbans: Vec<Unban> = covering.iter().filter_map(|p| self.free(p, now, settings)).collect();
        if !unbans.is_empty() {
            self.grace.insert(*prefix, now.plus(settings.unban_grace));
        }
        unbans
    }

    fn free(&mut self, prefix: &IpNet, now: Timestamp, settings: &Settings) -> Option<Unban> {
        let ban = self.drop(prefix)?;
        if let Some(count) = self.offences.get(prefix).copied() {
            let left = count.count.saturating_sub(1);
            if left == 0 {
                self.offences.remove(prefix);
                self.by_age.remove(&(count.due(settings), *prefix));
            } else {
                self.remember(Offence { prefix: *prefix, count: left, last: count.last }, settings);
            }
        }
        Some(Unban { prefix: *prefix, at: now, offence: ban.offence, origin: Origin::Operator, ban })
    }

    /// Lifts the bans that `allowed` says must not be.
    pub fn lift_where(&mut self, now: Timestamp, settings: &Settings, allowed: impl Fn(&IpNet) -> bool) -> Vec<Unban> {
        let mut wrong: Vec<IpNet> = self.bans.keys().filter(|p| allowed(p)).copied().collect();
        wrong.sort();
        wrong.iter().filter_map(|p| self.free(p, now, settings)).collect()
    }

    /// Offences of a prefix as counted, decayed or not.
    pub fn offences_of(&self, prefix: &IpNet) -> u32 {
        self.offences.get(prefix).map_or(0, |c| c.count)
    }

    /// When the automatic bans of the newest minute were decided, for the store.
    pub fn recent(&self) -> impl ExactSizeIterator<Item = &Timestamp> {
        self.recent.iter()
    }

    /// Restores what [`Ledger::recent`] gave.
    pub fn set_recent(&mut self, recent: Vec<Timestamp>) {
        self.recent = recent.into();
    }

    /// What is known of whether bans have an effect, for the store, as of log time `clock`.
    pub fn proofs(&self, clock: Timestamp) -> Vec<Proof> {
        let is_kept = |active: &Active| active.through > 0 || active.since.plus(SINCE_MATTERS) > clock;
        let proof = |(prefix, active): (&IpNet, &Active)| Proof {
            prefix: *prefix,
            since: active.since,
            through: active.through,
            reported: active.reported,
        };
        let mut proofs: Vec<_> = self.bans.iter().filter(|(_, a)| is_kept(a)).map(proof).collect();
        proofs.sort_unstable_by_key(|proof| proof.prefix);
        proofs
    }

    /// Restores one of [`Ledger::proofs`].
    pub fn set_proof(&mut self, proof: &Proof) {
        // Since it was saved another ban of the prefix may have been put on record.
        let known = self.bans.get_mut(&proof.prefix).filter(|active| proof.since >= active.ban.at);
        if let Some(active) = known {
            (active.since, active.through, active.reported) = (proof.since, proof.through, proof.reported);
        }
    }

    /// The grace periods, for the store.
    pub fn grace(&self) -> impl ExactSizeIterator<Item = (&IpNet, &Timestamp)> {
        self.grace.iter()
    }

    /// Restores a grace period.
    pub fn set_grace(&mut self, prefix: IpNet, until: Timestamp) {
        self.grace.insert(prefix, until);
    }

    /// Bans that were over when they were decided, for the store.
    pub fn past(&self) -> impl ExactSizeIterator<Item = (&IpNet, &Timestamp)> {
        self.past.iter()
    }

    /// Restores what [`Ledger::past`] gave.
    pub fn set_past(&mut self, prefix: IpNet, until: Timestamp) {
        self.past.insert(prefix, until);
    }
}

/// A ban that is wanted.
#[derive(Debug)]
pub struct BanRequest {
    /// When it was decided.
    pub at: Timestamp,
    /// By whom.
    pub origin: Origin,
    /// How long; `None` is the ladder's next step.
    pub length: Option<BanLength>,
    /// Why.
    pub finding: Option<Finding>,
    /// The operator's words.
    pub note: String,
}

#[cfg(test)]
mod tests;
