//! What people see of the engine: copies of its figures, made without a walk over all clients.

use std::net::IpAddr;

use super::Engine;
use super::contract::{Client, Snapshot};

impl Engine {
    /// What people see, with at most `top` clients.
    pub fn snapshot(&self, top: usize) -> Snapshot {
        let s = &self.settings;
        let span = f64::from(s.window_secs);
        let requests = self.site.requests();
        let mut clients: Vec<Client> =
            if top == 0 { Vec::new() } else { self.top.places().iter().map(|i| self.client_at(*i)).collect() };
        clients.retain(|c| c.requests > 0);
        clients.sort_by(|a, b| b.requests.cmp(&a.requests).then(a.prefix.cmp(&b.prefix)));
        clients.truncate(top);
        let warmup_left = match (self.warm_at, self.site.now()) {
            (Some(warm_at), Some(now)) => warm_at.saturating_sub(now).clamp(0, i64::from(u32::MAX)) as u32,
            (Some(_), None) => 0,
            (None, _) => s.warmup_secs,
        };
        Snapshot {
            at: self.clock,
            records: self.records,
            late: self.late,
            early: self.early,
            blocked: self.blocked,
            global_rate: f64::from(requests) / span,
            last_second: u64::from(self.site.last_second()),
            global_error_ratio: f64::from(self.site.errors()) / f64::from(requests.max(1)),
            global: *self.site.level(),
            global_limit: self.site.limit_rps(s),
            ip: self.level,
            ip_limit: self.limits.rate(),
            warmup_left_secs: warmup_left,
            hours: std::array::from_fn(|hour| self.site.slot(hour, s)),
            tracked_ips: self.table.len(),
            tracked_ips_peak: self.table.peak(),
            evicted: self.table.evicted(),
            braked: self.braked,
            top: clients,
            bans: self.ledger.bans(),
        }
    }

    fn client_at(&self, index: u32) -> Client {
        let client = self.table.get(index);
        let prefix = client.key().prefix();
        let (requests, errors) = client.window.since(self.oldest());
        let rate = f64::from(requests) / f64::from(self.settings.window_secs);
        Client {
            prefix,
            requests: u64::from(requests),
            errors: u64::from(errors),
            rate,
            z_score: (rate - self.level.mean) / self.level.stddev,
            limit: self.limits.rate(),
            banned: self.ledger.covers(&prefix),
        }
    }

    /// The newest figures of one client; `None` when it is not followed.
    pub fn client(&self, address: IpAddr) -> Option<Client> {
        let index = self.table.find(&self.exempt.key(&address))?;
        // An address of an IPv6 client may be banned without the rest of it.
        Some(Client { banned: self.ledger.covering(address).is_some(), ..self.client_at(index) })
    }

    /// Heap bytes that the followed clients take, as an upper bound. Walks over all of them: for benches and tests.
    pub fn heap_bytes(&self) -> usize {
        self.table.heap_bytes()
    }
}
