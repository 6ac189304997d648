//! Two detectors to compare with: the formulas of the tool that anomaly rewrites, and a fixed threshold. They live
//! here only, and decide per address, as their models do.

use std::collections::{HashMap, VecDeque};
use std::fs::File;
use std::io::{BufWriter, Write};
use std::path::Path;

use anyhow::Result;

use super::log;

/// Ban lengths of both, in seconds; after them, for ever.
const LADDER: [i64; 3] = [600, 1800, 7200];

/// A reference.
#[derive(Clone, Copy)]
pub enum Reference {
    /// A client's 60 s rate against its own per-second history of 30 minutes: z > 3 or 5 x the mean; z > 2 or
    /// 3 x the mean where its errors are three times the site's. Floors: mean 0.2, stddev 0.05, error rate 0.01.
    Original,
    /// More than 100 requests in 60 s.
    Fixed,
}

#[derive(Default)]
struct Client {
    first: i64,
    /// (second, requests) of the newest 30 minutes.
    history: VecDeque<(i64, u32)>,
    /// (second, error) of the newest 60 s.
    window: VecDeque<(i64, bool)>,
    errors: u32,
    judged: i64,
    mean: f64,
    stddev: f64,
    banned_until: i64,
    offences: usize,
}

impl Client {
    fn add(&mut self, now: i64, error: bool) {
        if self.window.is_empty() && self.history.is_empty() {
            self.first = now;
        }
        while self.window.front().is_some_and(|(t, _)| *t <= now - 60) {
            self.errors -= u32::from(self.window.pop_front().is_some_and(|(_, error)| error));
        }
        self.window.push_back((now, error));
        self.errors += u32::from(error);
        match self.history.back_mut() {
            Some((t, n)) if *t == now => *n += 1,
            _ => self.history.push_back((now, 1)),
        }
        while self.history.front().is_some_and(|(t, _)| *t <= now - 1800) {
            self.history.pop_front();
        }
        // Every 60 s; in its first minute at every request, else there would be nothing to compare with.
        if now - self.judged >= 60 || now - self.first < 60 {
            self.judged = now;
            let seconds = (now - self.first + 1).clamp(1, 1800) as f64;
            let sum: f64 = self.history.iter().map(|(_, n)| f64::from(*n)).sum();
            let squares: f64 = self.history.iter().map(|(_, n)| f64::from(*n) * f64::from(*n)).sum();
            let mean = sum / seconds;
            self.mean = mean.max(0.2);
            self.stddev = (squares / seconds - mean * mean).max(0.0).sqrt().max(0.05);
        }
    }

    fn is_anomalous(&self, error_rate: f64) -> bool {
        let rate = self.window.len() as f64 / 60.0;
        let surge = f64::from(self.errors) / self.window.len() as f64 >= 3.0 * error_rate;
        let (z, multiple) = if surge { (2.0, 3.0) } else { (3.0, 5.0) };
        (rate - self.mean) / self.stddev > z || rate > multiple * self.mean
    }
}

impl Reference {
    /// Both.
    pub const ALL: [Self; 2] = [Self::Original, Self::Fixed];

    /// Its column.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Original => "the original's formulas",
            Self::Fixed => "fixed 100 / 60 s",
        }
    }

    /// Decides over a trace and writes the bans as score.py reads them.
    ///
    /// # Errors
    /// When a file cannot be read or written.
    pub fn run(self, trace: &Path, decisions: &Path) -> Result<()> {
        let mut out = BufWriter::new(File::create(decisions)?);
        let mut clients: HashMap<String, Client> = HashMap::new();
        let (mut newest, mut requests, mut errors) = (0, 0u64, 0u64);
        log::read(trace, |line| {
            newest = line.time.max(newest);
            let now = newest;
            let error = line.status >= 400;
            let client = clients.entry(line.ip.clone()).or_default();
            if client.banned_until > now {
                return Ok(());
            }
            requests += 1;
            errors += u64::from(error);
            client.add(now, error);
            let error_rate = (errors as f64 / requests as f64).max(0.01);
            let bad = match self {
                Self::Original => client.is_anomalous(error_rate),
                Self::Fixed => client.window.len() > 100,
            };
            if bad {
                let length = LADDER.get(client.offences).copied();
                let offences = client.offences + 1;
                let banned_until = length.map_or(i64::MAX, |l| now + l);
                *client = Client { offences, banned_until, ..Client::default() };
                let time = log::print_time(now);
                writeln!(out, r#"{{"time":"{time}","action":"ban","ip":"{}"}}"#, line.ip)?;
            }
            Ok(())
        })?;
        Ok(out.flush()?)
    }
}
