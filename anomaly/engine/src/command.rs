//! What operators ask of the engine: bans and unbans by hand, and new settings.

use std::sync::Arc;

use ipnet::IpNet;

use super::contract::{Ban, Command, Decision, Finding, Grade, Kept, LimitSource, Origin, Output, Refusal, Rule};
use super::key::Exempt;
use super::ledger::BanRequest;
use super::limits::Limits;
use super::settings::{BanLength, Settings};
use super::{Engine, forget, table};
use crate::time::Timestamp;

/// An operator needs `force` for prefixes shorter than these (IPv4, IPv6).
const WIDE: (u8, u8) = (16, 32);

impl Engine {
    pub(super) fn command(&mut self, now: Timestamp, command: Command, out: &mut Vec<Output>) {
        match command {
            Command::Ban { prefix, length, reason, force, replace } => {
                let prefix = prefix.trunc();
                let outcome = match (self.refuse(&prefix, force), self.lasts_longer(&prefix, now, length)) {
                    (Some(refusal), _) => Output::Refused(refusal),
                    (None, Some((ban, until))) if !replace => Output::Kept(Kept { at: now, ban, until, note: reason }),
                    _ => Output::Decision(Decision::Ban(Box::new(self.ban_by_hand(now, prefix, length, reason)))),
                };
                out.push(outcome);
            }
            Command::Unban { prefix } => {
                let prefix = prefix.trunc();
                let unbans = self.ledger.lift(&prefix, now, &self.settings);
                if unbans.is_empty() {
                    out.push(Output::Refused(Refusal::NotBanned { prefix }));
                }
                self.clear(&prefix);
                out.extend(unbans.into_iter().map(|u| Output::Decision(Decision::Unban(u))));
            }
            Command::Configure(settings) => self.configure(now, *settings, out),
        }
    }

    fn refuse(&self, prefix: &IpNet, force: bool) -> Option<Refusal> {
        let overlap = |entries: &[IpNet]| entries.iter().find(|e| e.contains(prefix) || prefix.contains(*e)).copied();
        let prefix = *prefix;
        if let Some(entry) = overlap(&self.settings.allowlist) {
            return Some(Refusal::AllowListed { prefix, entry });
        }
        if let Some(entry) = overlap(&self.settings.never_ban) {
            return Some(Refusal::NeverBan { prefix, entry });
        }
        let shortest = if prefix.addr().is_ipv4() { WIDE.0 } else { WIDE.1 };
        (prefix.prefix_len() < shortest && !force).then_some(Refusal::TooWide { prefix })
    }

    /// The ban in force of this prefix, where it lasts at least as long as another one would, and when that would end.
    fn lasts_longer(
        &self,
        prefix: &IpNet,
        now: Timestamp,
        length: Option<BanLength>,
    ) -> Option<(Arc<Ban>, Option<Timestamp>)> {
        let ban = self.ledger.in_force(prefix)?;
        let until = self.ledger.next(prefix, now, length, &self.settings).1;
        let lasts = ban.until.is_none_or(|end| until.is_some_and(|until| until <= end));
        lasts.then(|| (Arc::clone(ban), until))
    }

    fn ban_by_hand(&mut self, now: Timestamp, prefix: IpNet, length: Option<BanLength>, note: String) -> Ban {
        let index = self.table.find(&self.exempt.key(&prefix.addr()));
        let finding = index.filter(|i| self.table.get(*i).key().prefix().contains(&prefix)).map(|index| {
            let window = &self.table.get(index).window;
            let rate = f64::from(window.requests()) / f64::from(self.settings.window_secs);
            Finding {
                at: now,
                rule: Rule::RateMultiplier,
                error_surge: Limits::is_error_surge(window, self.level.error_rate, &self.settings),
                rate,
                baseline: self.level,
                z_score: (rate - self.level.mean) / self.level.stddev,
                signal: None,
                limit: 0.0,
                limit_source: LimitSource::Configured,
                grade: Grade::Certain,
                requests: u64::from(window.requests()),
                errors: u64::from(window.errors()),
                samples: self.suspects.peek(index),
            }
        });
        // Another end is no reason to forget why it was banned.
        let before = self.ledger.in_force(&prefix);
        let finding = before.and_then(|ban| ban.finding.clone()).or(finding);
        let note = if note.is_empty() { before.map(|ban| ban.note.clone()).unwrap_or_default() } else { note };
        self.clear(&prefix);
        let request = BanRequest { at: now, origin: Origin::Operator, length, finding, note };
        self.ledger.ban(prefix, request, now, &self.settings)
    }

    /// Forgets the windows of the clients inside a prefix, where that is one client.
    fn clear(&mut self, prefix: &IpNet) {
        if let Some(index) = self.table.find(&self.exempt.key(&prefix.addr())) {
            forget(&mut self.top, &mut self.suspects, index, self.table.get(index));
            self.table.remove(index);
        }
    }

    fn configure(&mut self, now: Timestamp, settings: Settings, out: &mut Vec<Output>) {
        let old = std::mem::replace(&mut self.settings, settings);
        let s = &self.settings;
        self.exempt = Exempt::new(&s.allowlist, &s.never_ban, s.ipv6_prefix);
        self.table.set_capacity(s.max_tracked_ips);
        if (old.window_secs, old.history_secs) != (s.window_secs, s.history_secs) {
            self.site.resize(s);
            self.population.resize(s);
        }
        if old.warmup_secs != s.warmup_secs {
            let shift = i64::from(s.warmup_secs) - i64::from(old.warmup_secs);
            self.warm_at = self.warm_at.map(|at| at.saturating_add(shift));
        }
        for index in self.table.places_in_use() {
            let client = self.table.get_mut(index);
            let prefix = client.key().prefix();
            let exempt = prefix.prefix_len() == prefix.max_prefix_len() && self.exempt.covers(prefix.addr());
            client.flags = client.flags & !table::Client::EXEMPT | if exempt { table::Client::EXEMPT } else { 0 };
        }
        self.ledger.sort_by_age(&self.settings);
        let exempt = &self.exempt;
        let unbans = self.ledger.lift_where(now, &self.settings, |p| exempt.overlap(p).is_some());
        out.extend(unbans.into_iter().map(|u| Output::Decision(Decision::Unban(u))));
        if let Some(sec) = self.site.now() {
            self.recalculate(out, sec);
        } else {
            self.site.recalculate(&self.settings);
            self.limits = Limits::new(&mut self.detector.ordinary, &self.settings);
        }
    }
}
