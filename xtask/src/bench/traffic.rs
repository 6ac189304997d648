//! Log lines by the million, the same ones for the same plan. Nothing of it is committed: it is written when it is needed.

use std::fs::File;
use std::io::Write;
use std::net::Ipv4Addr;
use std::path::PathBuf;

use anyhow::{Context, Result};

use crate::lab::clock::iso8601;

/// 2026-04-27T00:00:00Z, when the fixed logs begin.
const START: u64 = 1_777_248_000;

/// A log with a fixed content.
#[derive(Clone, Copy, Debug)]
pub struct Plan {
    /// Lines.
    pub lines: u64,
    /// Addresses that they are of.
    pub clients: u64,
    /// Lines with the same second.
    pub per_second: u64,
    /// Whether the addresses take turns, so that none comes twice before all have come; else at random.
    pub in_turn: bool,
}

/// A million lines of 20,000 clients that ask for a page or an asset every four seconds.
pub const USUAL: Plan = Plan { lines: 1_000_000, clients: 20_000, per_second: 5_000, in_turn: false };
/// A million clients within one window.
pub const DISTINCT: Plan = Plan { lines: 1_000_000, clients: 1_000_000, per_second: 20_000, in_turn: true };

impl Plan {
    /// The log; written where it is not there yet.
    ///
    /// # Errors
    /// When it cannot be written.
    pub fn file(&self) -> Result<PathBuf> {
        let Self { lines, clients, per_second, in_turn } = self;
        let order = if *in_turn { "in-turn" } else { "random" };
        let path = super::dir()?.join(format!("{lines}-lines-{clients}-clients-{per_second}-{order}.json"));
        if path.exists() {
            return Ok(path);
        }
        // So that an interrupted run leaves no half of it under the name.
        let unfinished = path.with_extension("unfinished");
        let file = File::create(&unfinished).with_context(|| unfinished.display().to_string())?;
        let mut file = std::io::BufWriter::with_capacity(1 << 20, file);
        let mut lines = self.lines_from(START);
        let mut line = Vec::new();
        while lines.next(&mut line) {
            file.write_all(&line)?;
        }
        file.into_inner().map_err(|failure| failure.into_error())?;
        std::fs::rename(&unfinished, &path)?;
        Ok(path)
    }

    /// The lines, where the first one is of this second since the epoch.
    pub fn lines_from(&self, start: u64) -> Lines {
        Lines { plan: *self, start, nth: 0, stamp: (0, String::new()), random: Random(0x2545_f491_4f6c_dd1d) }
    }
}

/// Lines of a plan, one after the other.
pub struct Lines {
    plan: Plan,
    start: u64,
    nth: u64,
    stamp: (u64, String),
    random: Random,
}

impl Lines {
    /// Puts the next line into `line`; false where the plan has no more.
    pub fn next(&mut self, line: &mut Vec<u8>) -> bool {
        if self.nth == self.plan.lines {
            return false;
        }
        let second = self.start + self.nth / self.plan.per_second;
        self.next_at(second, line);
        true
    }

    /// The next line, with another second than the plan's, however many there were.
    pub fn next_at(&mut self, second: u64, line: &mut Vec<u8>) {
        if self.stamp.0 != second {
            self.stamp = (second, iso8601(second));
        }
        let random = self.random.next();
        let client = if self.plan.in_turn { self.nth } else { random >> 32 } % self.plan.clients;
        self.nth += 1;
        line.clear();
        write(line, address(client), &self.stamp.1, random);
    }
}

/// Marsaglia's xorshift: fast, and the same on every machine.
struct Random(u64);

impl Random {
    fn next(&mut self) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0
    }
}

/// The address of client n: neighbours in number lie far apart, as in a real log.
pub fn address(n: u64) -> Ipv4Addr {
    // An odd factor, so no two of 2^24 clients have the same address.
    Ipv4Addr::from(0x0a00_0000 | (n.wrapping_mul(0x9e_37b1) & 0xff_ffff) as u32)
}

/// What is asked for, and with what status: pages and assets, few of them missing.
const REQUESTS: [(&str, &str, &str); 8] = [
    ("GET", "/", "200"),
    ("GET", "/assets/app.3f2a.js", "200"),
    ("GET", "/assets/site.css?v=12", "304"),
    ("GET", "/products/", "200"),
    ("GET", "/img/banner.webp", "200"),
    ("POST", "/api/cart", "200"),
    ("GET", "/search?q=rust&page=", "200"),
    ("GET", "/fonts/inter.woff2", "200"),
];

/// One line with its newline: the six keys in the order of `nginx/log_format.conf`.
fn write(line: &mut Vec<u8>, client: Ipv4Addr, stamp: &str, random: u64) {
    let (method, mut path, mut status) = REQUESTS[(random % 8) as usize];
    if random.is_multiple_of(125) {
        (path, status) = ("/favicon.ico", "404");
    }
    let detail =
        if path.ends_with(['/', '=']) && path.len() > 1 { (random >> 16 & 0xff).to_string() } else { String::new() };
    let size = 200 + (random >> 24) % 40_000;
    // Writing to a vector cannot fail.
    let _ = writeln!(
        line,
        r#"{{"source_ip":"{client}","timestamp":"{stamp}","method":"{method}","path":"{path}{detail}","status":"{status}","response_size":"{size}"}}"#
    );
}

/// A page of a client, now: for attackers.
pub fn page(line: &mut Vec<u8>, client: Ipv4Addr, second: u64) {
    line.clear();
    write(line, client, &iso8601(second), 0x1_0000_0003);
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_same_plan_gives_the_same_lines() {
        let plan = Plan { lines: 100, clients: 7, per_second: 30, in_turn: false };
        let all = || {
            let (mut lines, mut line, mut text) = (plan.lines_from(START), Vec::new(), Vec::new());
            while lines.next(&mut line) {
                text.extend_from_slice(&line);
            }
            String::from_utf8(text).expect("text")
        };
        let text = all();
        assert_eq!(text, all());
        assert_eq!(text.lines().count(), 100);
        for line in text.lines() {
            let row: serde_json::Value = serde_json::from_str(line).expect(line);
            assert_eq!(row.as_object().map(serde_json::Map::len), Some(6), "{line}");
        }
        assert!(text.lines().last().is_some_and(|line| line.contains("2026-04-27T00:00:03+00:00")), "{text}");
    }

    #[test]
    fn clients_that_take_turns_do_not_come_twice() {
        let addresses: std::collections::HashSet<Ipv4Addr> = (0..1_000_000).map(address).collect();
        assert_eq!(addresses.len(), 1_000_000);
    }
}
