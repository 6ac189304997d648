//! What a record adds to its client, and what follows: nothing, evidence, a ban, or a ban that the brake holds back.

use super::Engine;
use super::contract::{Braked, Decision, Finding, LimitSource, Origin, Output, Rule};
use super::detector::{Moment, Observed, Reading};
use super::evidence::Evidence;
use super::key::Key;
use super::kind::Kind;
use super::ledger::{self, BanRequest};
use super::limits::{Limits, Verdict};
use super::table;
use super::top::{Suspects, Top};
use crate::record::Record;
use crate::time::Timestamp;

/// Plain requests that leave no evidence: half of all clients make no more.
const VISITOR: u32 = 2;
/// So many times the brake's bans a minute hold back also who has shown nothing ordinary: nobody fills the table of bans.
const NEWCOMERS: u32 = 50;

impl Engine {
    /// Counts a record in its client's window, learns from it, and judges.
    pub(super) fn follow(&mut self, record: &Record<'_>, kind: Kind, sec: u32, now: Timestamp, out: &mut Vec<Output>) {
        let oldest = self.oldest();
        let key = self.exempt.key(&record.client);
        let (top, suspects) = (&mut self.top, &mut self.suspects);
        let hint = self.ahead.hint(&key);
        let (index, new) = self.table.entry(key, hint, oldest, |index, client| forget(top, suspects, index, client));
        let reading = self.detector.read(record);
        self.table.wake(index);
        let client = self.table.get_mut(index);
        if new {
            if self.exempt.covers(record.client) {
                client.flags |= table::Client::EXEMPT;
            } else if self.ledger.offences_of(&self.exempt.ban_prefix(record.client)) > 0 {
                client.flags |= table::Client::OFFENDER;
            }
        } else {
            client.window.expire(oldest);
        }
        client.last = oldest.wrapping_add(self.settings.window_secs - 1);
        let before = client.window.requests();
        client.window.add(sec, kind, reading.path());
        self.busiest = self.busiest.max(client.window.requests());
        if client.is(table::Client::EXEMPT) {
            // What it does now is not noted: it counts again from the minute on after it is exempt no longer.
            self.population.leave_out(&mut client.seen);
            self.top.offer(index, &mut self.table);
            return;
        }
        if !client.is(table::Client::OFFENDER) {
            self.population.note(&mut client.seen, key.spread(), [client.window.requests()]);
        }
        let observed = self.observe(index, &key, &reading, before);
        let client = self.table.get(index);
        if let Some((evidence, observed)) = client.evidence.as_ref().zip(observed)
            && self.limits.is_suspicious(evidence, client.window.requests())
        {
            self.hurry = self.hurry || Limits::is_fast(&client.window, client.last);
            let warm = self.is_warm();
            let verdict = self.limits.judge(evidence, client.window.requests(), observed.likeness, warm);
            if let Some(verdict) = verdict
                && self.anomalous(index, (verdict, observed), record, now, out)
            {
                return;
            }
            if self.suspects.keep(index, record, self.clock) {
                self.table.get_mut(index).flags |= table::Client::WATCHED;
            }
        }
        self.top.offer(index, &mut self.table);
    }

    /// Adds a record to its client's evidence. `before` is how many requests its window held before: visitors who only look at
    /// [`VISITOR`] things have none, and cost nothing.
    fn observe(&mut self, index: u32, key: &Key, reading: &Reading, before: u32) -> Option<Observed> {
        let client = self.table.get_mut(index);
        let now_ms = self.clock.as_ms();
        let evidence = match &mut client.evidence {
            Some(evidence) => evidence,
            None if before < VISITOR && reading.is_plain() => return None,
            none => none.insert(Box::new(Evidence::new(now_ms, before.min(VISITOR) as u16))),
        };
        let moment = Moment {
            now_ms,
            network: key.network(),
            window_secs: self.settings.window_secs,
            teaches: client.flags & table::Client::OFFENDER == 0,
        };
        Some(self.detector.observe(evidence, reading, &moment, self.limits.floors()))
    }

    /// Acts on a verdict; true when the client is banned and no longer followed.
    fn anomalous(
        &mut self,
        index: u32,
        (verdict, observed): (Verdict, Observed),
        record: &Record<'_>,
        now: Timestamp,
        out: &mut Vec<Output>,
    ) -> bool {
        // Two addresses of an IPv6 prefix can differ in this: one may be allow-listed by hand.
        if self.exempt.covers(record.client) {
            return false;
        }
        let client = self.table.get_mut(index);
        self.population.leave_out(&mut client.seen);
        let prefix = self.exempt.ban_prefix(record.client);
        let hard = verdict.rule == Rule::HardLimit;
        if self.ledger.is_old_news(&prefix, self.clock) {
            // As the ban did that is read again.
            client.evidence = None;
            return false;
        }
        if !hard && self.ledger.has_grace(&prefix, now) {
            return false;
        }
        let bans_last_minute = self.ledger.bans_last_minute(self.clock);
        if !hard && verdict.excess < 3.0 && self.brake_holds(bans_last_minute, observed.spared) {
            let goes_on = self.braked.filter(|(_, last)| now.since(*last) <= ledger::BRAKE_SPAN);
            self.braked = Some((goes_on.map_or(now, |(since, _)| since), now));
            if !self.table.get(index).is(table::Client::BRAKED) {
                let finding = self.finding(index, verdict, record);
                self.table.get_mut(index).flags |= table::Client::BRAKED;
                out.push(Output::Braked(Braked { prefix, finding, bans_last_minute }));
            }
            return false;
        }
        let finding = self.finding(index, verdict, record);
        forget(&mut self.top, &mut self.suspects, index, self.table.get(index));
        self.table.remove(index);
        let request = BanRequest {
            at: self.clock,
            origin: Origin::Detector,
            length: None,
            finding: Some(finding),
            note: String::new(),
        };
        let ban = self.ledger.ban(prefix, request, now, &self.settings);
        out.push(Output::Decision(Decision::Ban(Box::new(ban))));
        true
    }

    /// From `brake_per_minute` bans a minute on, or where it is more, a share of the active clients. It spares people, not bans:
    /// newcomers that have shown nothing ordinary are held back only from [`NEWCOMERS`] times as many on.
    fn brake_holds(&self, bans_last_minute: u32, spared: bool) -> bool {
        let s = &self.settings;
        let bans = if spared { bans_last_minute } else { bans_last_minute / NEWCOMERS };
        s.brake_per_minute > 0
            && bans >= s.brake_per_minute
            && f64::from(bans_last_minute) >= s.brake_share * self.table.active() as f64
    }

    fn finding(&mut self, index: u32, verdict: Verdict, record: &Record<'_>) -> Finding {
        let samples = self.suspects.take(index, record, self.clock);
        let window = &self.table.get(index).window;
        let span = f64::from(self.settings.window_secs);
        let rate = f64::from(window.requests()) / span;
        let baseline = self.level;
        Finding {
            at: self.clock,
            rule: verdict.rule,
            error_surge: Limits::is_error_surge(window, baseline.error_rate, &self.settings),
            rate,
            baseline,
            z_score: (rate - baseline.mean) / baseline.stddev,
            signal: verdict.signal.map(|s| (s, verdict.value)),
            limit: verdict.limit,
            limit_source: match verdict.rule {
                Rule::HardLimit => LimitSource::Configured,
                Rule::Floor => LimitSource::Floor,
                Rule::ZScore | Rule::RateMultiplier => LimitSource::Learned,
            },
            grade: verdict.grade,
            requests: u64::from(window.requests()),
            errors: u64::from(window.errors()),
            samples,
        }
    }
}

/// A client goes: nobody else may keep its place.
pub fn forget(top: &mut Top, suspects: &mut Suspects, index: u32, client: &table::Client) {
    if client.is(table::Client::TOP) {
        top.forget(index);
    }
    if client.is(table::Client::WATCHED) {
        suspects.forget(index);
    }
}
