//! Reads a scenario, plays it second by second, and holds what comes out against what must.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use anomaly::engine::{Decision, Engine, Input, Output, Settings};
use anomaly::record::Record;
use anomaly::report::Reason;
use anomaly::time::Timestamp;
use ipnet::IpNet;
use serde::Deserialize;

/// Seconds of the epoch at which every scenario begins: midnight UTC.
const START: i64 = 1_767_225_600;

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Scenario {
    /// What an operator would say of it.
    #[expect(dead_code, reason = "for those who read the file")]
    title: String,
    /// How long it is played.
    seconds: i64,
    #[serde(default)]
    allowlist: Vec<Net>,
    #[serde(default)]
    warmup_secs: Option<u32>,
    traffic: Vec<Traffic>,
    #[serde(default)]
    expect: Vec<Expect>,
}

/// A prefix as text; host bits are kept, they say where counting begins.
#[derive(Clone, Copy, Deserialize)]
#[serde(try_from = "String")]
struct Net(IpNet);

impl TryFrom<String> for Net {
    type Error = ipnet::AddrParseError;

    fn try_from(text: String) -> Result<Self, Self::Error> {
        text.parse().map(Self)
    }
}

/// Requests of one client, or of many that take turns at random.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Traffic {
    /// An address, or a prefix of which `clients` addresses are used.
    from: Net,
    #[serde(default = "one")]
    clients: u32,
    /// Addresses from one client to the next: 256 where each is of a network of its own.
    #[serde(default = "one")]
    apart: u32,
    /// Each client makes all of the requests, instead of one of them each.
    #[serde(default)]
    each: bool,
    start: i64,
    end: i64,
    /// Requests/s of all its clients together; grows exponentially to `rate_to` where that is given.
    rate: f64,
    #[serde(default)]
    rate_to: Option<f64>,
    /// Rises and falls by this share around `rate`, once a day.
    #[serde(default)]
    daily: f64,
    /// Evenly spaced instead of Poisson.
    #[serde(default)]
    regular: bool,
    /// All requests of a second at once, once in so many seconds.
    #[serde(default)]
    every: Option<i64>,
    #[serde(default = "get")]
    method: String,
    /// `{}` is a random number below `paths`.
    #[serde(default = "slash")]
    path: String,
    #[serde(default = "one")]
    paths: u32,
    #[serde(default = "ok")]
    status: u16,
    /// Bytes of an answer: one of so many lengths at random, 0 for always the same.
    #[serde(default)]
    sizes: u32,
}

fn one() -> u32 {
    1
}
fn get() -> String {
    "GET".into()
}
fn slash() -> String {
    "/".into()
}
fn ok() -> u16 {
    200
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields, rename_all = "snake_case")]
enum Expect {
    /// This prefix is banned, not before `after`, and `within` seconds of it.
    Banned { prefix: Net, after: i64, within: i64 },
    /// This prefix is banned for this, in the words of a row.
    BannedFor { prefix: Net, signal: String, rule: String },
    /// No ban shares an address with it.
    NotBanned { prefix: Net },
    /// The first global anomaly from a moment on is by this rule.
    FirstGlobalRule { from: i64, rule: String },
    /// As many bans as this, of whomever.
    Bans { least: usize, most: usize },
    /// As many global anomalies as this between two moments.
    GlobalAnomalies { from: i64, to: i64, least: usize, most: usize },
    /// Somebody's ban was held back.
    Braked { least: usize },
    /// A level that lasted was accepted.
    Accepted { least: usize },
}

/// A small generator (splitmix64), so that scenarios are the same everywhere.
struct Random(u64);

impl Random {
    fn next(&mut self) -> f64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ z >> 30).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ z >> 27).wrapping_mul(0x94d0_49bb_1331_11eb);
        (z >> 11) as f64 / (1u64 << 53) as f64
    }

    fn below(&mut self, n: u32) -> u32 {
        ((self.next() * f64::from(n)) as u32).min(n - 1)
    }

    fn poisson(&mut self, mean: f64) -> u32 {
        if mean > 50.0 {
            // Close enough to normal, and fast.
            let normal: f64 = (0..12).map(|_| self.next()).sum::<f64>() - 6.0;
            return (mean + normal * mean.sqrt()).round().max(0.0) as u32;
        }
        let (limit, mut product, mut count) = ((-mean).exp(), self.next(), 0);
        while product > limit {
            product *= self.next();
            count += 1;
        }
        count
    }
}

impl Traffic {
    fn rate_at(&self, t: i64) -> f64 {
        let part = (t - self.start) as f64 / (self.end - self.start).max(1) as f64;
        let rate = self.rate_to.map_or(self.rate, |to| self.rate * (to / self.rate).powf(part));
        rate * (1.0 + self.daily * (t as f64 / 86_400.0 * std::f64::consts::TAU).sin())
    }

    fn count_at(&self, t: i64, random: &mut Random) -> u32 {
        if t < self.start || t >= self.end {
            return 0;
        }
        let rate = self.rate_at(t);
        match self.every {
            Some(every) if (t - self.start) % every == 0 => (rate * every as f64).round() as u32,
            Some(_) => 0,
            None if self.regular => ((t + 1) as f64 * rate).floor() as u32 - (t as f64 * rate).floor() as u32,
            None => random.poisson(rate),
        }
    }

    fn client(&self, n: u32) -> IpAddr {
        let n = n * self.apart;
        match self.from.0 {
            IpNet::V4(net) => IpAddr::V4(Ipv4Addr::from(u32::from(net.addr()).wrapping_add(n))),
            IpNet::V6(net) => IpAddr::V6(Ipv6Addr::from(u128::from(net.addr()).wrapping_add(u128::from(n)))),
        }
    }
}

/// What came out, with the seconds since the start.
#[derive(Default)]
struct Outcome {
    bans: Vec<(i64, IpNet, String)>,
    /// Signal and rule of each ban.
    why: Vec<(IpNet, String, String)>,
    anomalies: Vec<i64>,
    /// Rule of each anomaly.
    rules: Vec<(i64, &'static str)>,
    braked: usize,
    accepted: usize,
}

impl Outcome {
    fn take(&mut self, out: &mut Vec<Output>) {
        for output in out.drain(..) {
            match output {
                Output::Decision(Decision::Ban(ban)) => {
                    let finding = ban.finding.as_ref();
                    let signal = finding.and_then(|f| f.signal).map_or("", |(signal, _)| signal.as_str());
                    let rule = finding.map_or("", |f| f.rule.as_str());
                    self.why.push((ban.prefix, signal.into(), rule.into()));
                    self.bans.push((ban.at.as_secs() - START, ban.prefix, ban.reason()));
                }
                Output::GlobalAnomaly(finding) => {
                    self.anomalies.push(finding.at.as_secs() - START);
                    self.rules.push((finding.at.as_secs() - START, finding.rule.as_str()));
                }
                Output::Braked(_) => self.braked += 1,
                Output::LevelAccepted(_) => self.accepted += 1,
                _ => {}
            }
        }
    }
}

/// Is told of a request: its client, its time, what it is one of, its path, and the bytes of its answer.
type OnRequest<'a> = &'a mut dyn FnMut(IpAddr, Timestamp, &Traffic, (&str, u64));

impl Scenario {
    /// The requests of a second.
    fn second(&self, t: i64, random: &mut Random, on: OnRequest<'_>) {
        for traffic in &self.traffic {
            let count = traffic.count_at(t, random);
            let makers = if traffic.each { traffic.clients } else { 1 };
            for i in (0..count).flat_map(|i| std::iter::repeat_n(i, makers as usize)).enumerate() {
                let (at, i) = i;
                let n = if traffic.each { at as u32 % makers } else { random.below(traffic.clients) };
                let client = traffic.client(n);
                let path = traffic.path.replace("{}", &random.below(traffic.paths).to_string());
                let at = Timestamp::from_ms((START + t) * 1000 + i64::from(i) * 1000 / i64::from(count));
                let size = if traffic.sizes > 0 { 1000 + 997 * u64::from(random.below(traffic.sizes)) } else { 512 };
                on(client, at, traffic, (&path, size));
            }
        }
    }
}

/// A scenario's requests as the log that Nginx would write.
pub fn log(text: &str) -> String {
    let scenario: Scenario = toml::from_str(text).expect("a scenario");
    let (mut random, mut log) = (Random(7), String::new());
    for t in 0..scenario.seconds {
        scenario.second(t, &mut random, &mut |client, at, traffic, (path, size)| {
            let Traffic { method, status, .. } = traffic;
            log += &format!(
                r#"{{"source_ip":"{client}","timestamp":"{at}","method":"{method}","path":"{path}","status":"{status}","response_size":"{size}"}}"#
            );
            log.push('\n');
        });
    }
    log
}

/// Plays a scenario.
///
/// # Errors
/// Says what was expected, and what happened instead.
pub fn check(text: &str) -> Result<(), String> {
    let scenario: Scenario = toml::from_str(text).map_err(|e| e.to_string())?;
    let defaults = Settings::default();
    let settings = Settings {
        allowlist: scenario.allowlist.iter().map(|n| n.0).collect(),
        warmup_secs: scenario.warmup_secs.unwrap_or(defaults.warmup_secs),
        ..defaults
    };
    let mut engine = Engine::new(settings, 1);
    let mut random = Random(7);
    let (mut out, mut outcome) = (Vec::new(), Outcome::default());
    for t in 0..scenario.seconds {
        scenario.second(t, &mut random, &mut |client, at, traffic, (path, response_size)| {
            let (method, status) = (traffic.method.as_bytes(), traffic.status);
            let record = Record { method, status, response_size, ..Record::new(client, at) }.with_path(path.as_bytes());
            engine.handle(at, Input::Record(&record), &mut out);
        });
        engine.handle(Timestamp::from_secs(START + t + 1), Input::Tick { caught_up: true }, &mut out);
        outcome.take(&mut out);
    }
    let failed: Vec<String> = scenario.expect.iter().filter_map(|e| e.hold(&outcome).err()).collect();
    if failed.is_empty() { Ok(()) } else { Err(failed.join("; ")) }
}

impl Expect {
    fn hold(&self, outcome: &Outcome) -> Result<(), String> {
        let between = |name: &str, n: usize, least: usize, most: usize| {
            if (least..=most).contains(&n) { Ok(()) } else { Err(format!("{n} {name}, not {least} to {most}")) }
        };
        match self {
            Self::Banned { prefix: Net(prefix), after, within } => {
                match outcome.bans.iter().find(|(_, banned, _)| banned == prefix) {
                    None => Err(format!("{prefix} was not banned; these were: {:?}", outcome.bans)),
                    Some((t, _, reason)) if t < after || *t > after + within => {
                        Err(format!("{prefix} was banned after {} s, not within {within} s: {reason}", t - after))
                    }
                    Some(_) => Ok(()),
                }
            }
            Self::NotBanned { prefix: Net(prefix) } => {
                match outcome.bans.iter().find(|(_, b, _)| b.contains(prefix) || prefix.contains(b)) {
                    None => Ok(()),
                    Some((t, banned, reason)) => Err(format!("{banned} was banned at {t} s: {reason}")),
                }
            }
            Self::BannedFor { prefix: Net(prefix), signal, rule } => {
                let wanted = (*prefix, signal.clone(), rule.clone());
                if outcome.why.contains(&wanted) { Ok(()) } else { Err(format!("{wanted:?} not in {:?}", outcome.why)) }
            }
            Self::FirstGlobalRule { from, rule } => match outcome.rules.iter().find(|(t, _)| t >= from) {
                Some((_, first)) if first == rule => Ok(()),
                first => Err(format!("the first rule from {from} s on is {first:?}, not {rule}")),
            },
            Self::Bans { least, most } => {
                between(&format!("bans (all: {:?})", outcome.bans), outcome.bans.len(), *least, *most)
            }
            Self::GlobalAnomalies { from, to, least, most } => {
                let n = outcome.anomalies.iter().filter(|t| (from..to).contains(t)).count();
                between(&format!("global anomalies (all: {:?})", outcome.anomalies), n, *least, *most)
            }
            Self::Braked { least } => between("braked", outcome.braked, *least, usize::MAX),
            Self::Accepted { least } => between("accepted levels", outcome.accepted, *least, usize::MAX),
        }
    }
}
