//! The access log: is it there, does it grow, and are its clients the clients?

use std::collections::{HashMap, HashSet};
use std::fs::File;
use std::io::{Read, Seek, SeekFrom};
use std::net::IpAddr;
use std::path::Path;
use std::time::{Duration, UNIX_EPOCH};

use ipnet::IpNet;

use super::Check;
use crate::config::presets::Preset;
use crate::record::{FORMAT, Format, Parser, Reject, cure, is_object, why};
use crate::time::Timestamp;

/// How much of the end of the log is read.
const TAIL_BYTES: u64 = 256 * 1024;

/// A log that has been silent for so long is worth a look.
const SILENT: Duration = Duration::from_secs(600);

/// How far a stamp may be from the wall clock: the engine believes no more.
const SKEW: Duration = Duration::from_secs(60);

/// From so many records on, one client for all of them is suspicious.
const MANY: usize = 50;

pub(super) fn run(path: &Path, written: &Format, proxies: &[IpNet], now: Timestamp) -> Vec<Check> {
    let name = path.display();
    let (tail, whole, modified) = match tail(path) {
        Ok(found) => found,
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => {
            let next = "check log.paths and Nginx's access_log; the daemon waits for the file";
            return vec![Check::fail("log", format!("{name} is not there"), next)];
        }
        Err(error) => {
            let next = "let the daemon's user read it (group adm on Debian), or mount the volume";
            return vec![Check::fail("log", format!("{name}: {error}"), next)];
        }
    };
    let mut lines: Vec<&[u8]> = tail.split(|byte| *byte == b'\n').collect();
    // What follows the last newline is not written to its end; what comes before the first is cut.
    lines.pop();
    if !whole && !lines.is_empty() {
        lines.remove(0);
    }
    let mut checks = vec![match modified {
        _ if lines.is_empty() => {
            Check::warn("log", format!("{name} is empty"), "send a request, and check that Nginx writes here")
        }
        Some(at) if now.since(at) > SILENT => Check::warn(
            "log",
            format!("{name} has not grown for {} s", now.since(at).as_secs()),
            "quiet site, or Nginx writes elsewhere (rotated without a reopen?)",
        ),
        _ => Check::ok("log", format!("{name} is readable and grows")),
    }];
    if !lines.is_empty() {
        checks.extend(judge(&lines, written, proxies, now));
    }
    checks
}

fn tail(path: &Path) -> std::io::Result<(Vec<u8>, bool, Option<Timestamp>)> {
    let mut file = File::open(path)?;
    let metadata = file.metadata()?;
    let start = metadata.len().saturating_sub(TAIL_BYTES);
    file.seek(SeekFrom::Start(start))?;
    let mut bytes = Vec::new();
    file.take(TAIL_BYTES).read_to_end(&mut bytes)?;
    let modified = metadata.modified().ok().and_then(|at| at.duration_since(UNIX_EPOCH).ok());
    Ok((bytes, start == 0, modified.map(|since| Timestamp::EPOCH.plus(since))))
}

/// Judges whole lines; there is at least one.
fn judge(lines: &[&[u8]], written: &Format, proxies: &[IpNet], now: Timestamp) -> Vec<Check> {
    let mut parser = Parser::with_format(written);
    let mut rejected: HashMap<Reject, usize> = HashMap::new();
    let (mut records, mut damaged, mut with_peer, mut proxied) = (0, 0, 0, 0);
    let mut clients: HashSet<IpAddr> = HashSet::new();
    let mut foreign_peers: HashSet<IpAddr> = HashSet::new();
    let mut hidden = Hidden::default();
    let mut newest = None;
    for line in lines {
        match parser.parse(line) {
            Ok(record) => {
                records += 1;
                damaged += usize::from(record.damaged);
                if clients.insert(record.client) {
                    hidden.look_at(record.client, proxies);
                }
                // An address that realip found is a client, even if it belongs to a CDN (its VPN, its workers).
                if record.peer.is_none_or(|peer| peer == record.client) {
                    hidden.count(&record.client);
                }
                newest = newest.max(Some(record.time));
                if let Some(peer) = record.peer {
                    with_peer += 1;
                    if peer != record.client {
                        proxied += 1;
                        if !holds(proxies, &peer) {
                            foreign_peers.insert(peer);
                        }
                    }
                }
            }
            Err(Reject::Empty) => {}
            Err(reject) => *rejected.entry(reject).or_default() += 1,
        }
    }
    let mut checks = vec![format(lines, records, damaged, &rejected)];
    if records == 0 {
        return checks;
    }
    if let Some(newest) = newest {
        checks.push(clock(newest, now));
    }
    checks.push(addresses(&clients, &hidden, records));
    if matches!(written, Format::Combined) {
        return checks;
    }
    checks.push(if with_peer == 0 {
        let next = "add peer ($realip_remote_addr) to the log_format; without it a ban that cannot work is not noticed";
        Check::warn("peer", "the log does not name the TCP peer", next)
    } else if let Some((peer, preset)) = foreign_peers.iter().min().and_then(|p| Some((p, Preset::of(*p)?))) {
        let next = format!("set trusted_proxies_presets = [\"{}\"] (list of {})", preset.name, preset.as_of);
        Check::warn("peer", format!("{peer} of {} names the clients, and is not in trusted_proxies", preset.who), next)
    } else if let Some(peer) = foreign_peers.iter().min() {
        let next = "is it a proxy of yours? then list it in trusted_proxies; otherwise take it out of set_real_ip_from: it can frame anybody";
        Check::warn("peer", format!("{peer} names other clients than itself, and is not in trusted_proxies"), next)
    } else if proxied > 0 {
        let next = "a packet filter cannot drop them one by one: set nginx.deny_map (nginx/deny.conf)";
        Check::warn("peer", format!("{proxied} of {records} requests came through a trusted proxy"), next)
    } else {
        Check::ok("peer", "every client is its own TCP peer")
    });
    checks
}

fn format(lines: &[&[u8]], records: usize, damaged: usize, rejected: &HashMap<Reject, usize>) -> Check {
    let lost: usize = rejected.values().sum();
    let worst = rejected.iter().max_by_key(|(reject, n)| (**n, **reject as usize)).map(|(reject, _)| *reject);
    let json = lines.iter().find(|line| is_object(line));
    let why = why(worst.unwrap_or(Reject::Empty), json.or(lines.last()).copied().unwrap_or_default());
    if records == 0 {
        let detail = format!("none of the last {} lines can be read: {why}", lines.len());
        return Check::fail("format", detail, cure(lines.last().copied().unwrap_or_default()));
    }
    if lost * 100 > lines.len() {
        return Check::warn(
            "format",
            format!("{lost} of the last {} lines cannot be read: {why}", lines.len()),
            FORMAT,
        );
    }
    if damaged * 100 > records {
        let detail = format!("{damaged} of the last {records} records lack a field or have one that cannot be read");
        return Check::warn("format", detail, FORMAT);
    }
    Check::ok("format", format!("the last {records} records are complete"))
}

fn clock(newest: Timestamp, now: Timestamp) -> Check {
    let ahead = newest.since(now);
    if ahead > SKEW {
        let detail = format!("the newest record is {} s ahead of this clock", ahead.as_secs());
        return Check::fail(
            "clock",
            detail,
            "synchronise both hosts' clocks (timedatectl); such records are not believed",
        );
    }
    Check::ok("clock", format!("the newest record is of {newest}"))
}

/// Proxies that stand in the log where a client should be: how many requests each kind made.
#[derive(Default)]
struct Hidden {
    /// Addresses of trusted proxies, and of CDNs that are not trusted.
    found: HashMap<IpAddr, Option<&'static Preset>>,
    trusted: usize,
    example: Option<IpAddr>,
    cdns: HashMap<&'static str, (usize, &'static Preset)>,
}

impl Hidden {
    fn look_at(&mut self, client: IpAddr, proxies: &[IpNet]) {
        if holds(proxies, &client) {
            self.found.insert(client, None);
        } else if let Some(preset) = Preset::of(client) {
            self.found.insert(client, Some(preset));
        }
    }

    fn count(&mut self, client: &IpAddr) {
        match self.found.get(client) {
            Some(Some(preset)) => self.cdns.entry(preset.name).or_insert((0, preset)).0 += 1,
            Some(None) => {
                self.trusted += 1;
                self.example = Some(self.example.map_or(*client, |known| known.min(*client)));
            }
            None => {}
        }
    }

    /// The CDN that made most requests by itself.
    fn cdn(&self) -> Option<(usize, &'static Preset)> {
        self.cdns.values().max_by_key(|(requests, preset)| (*requests, preset.name)).copied()
    }
}

fn addresses(clients: &HashSet<IpAddr>, hidden: &Hidden, records: usize) -> Check {
    let realip = "set_real_ip_from for your proxy alone, and real_ip_header (see nginx/)";
    if let Some(proxy) = hidden.example {
        let detail =
            format!("{proxy}, a trusted proxy, is logged as the client of {} of {records} requests", hidden.trusted);
        // A few of its own, as health checks are, hide nobody.
        return if hidden.trusted * 2 >= records {
            Check::fail("clients", format!("{detail}: the real ones are hidden"), realip)
        } else {
            Check::warn("clients", detail, format!("health checks of its own need nothing; otherwise {realip}"))
        };
    }
    // People come from such addresses too (a CDN's VPN, its workers), but never most of a site's people.
    if let Some((requests, preset)) = hidden.cdn().filter(|(requests, _)| requests * 2 >= records) {
        let detail =
            format!("{} ({}) is logged as the client of {requests} of {records} requests", preset.who, preset.name);
        let next = format!(
            "`anomaly config realip {0} > /etc/nginx/conf.d/realip.conf` names the real ones; then \
             trusted_proxies_presets = [\"{0}\"], and nginx.deny_map, because packets come from the CDN (list of {1})",
            preset.name, preset.as_of
        );
        return Check::fail("clients", format!("{detail}: the real ones are hidden"), next);
    }
    if clients.iter().all(is_private) {
        let detail = format!("all {} clients have private addresses", clients.len());
        return Check::warn("clients", detail, format!("behind a proxy or Docker's userland proxy? {realip}"));
    }
    if clients.len() == 1 && records >= MANY {
        let detail = format!("one address made all of the last {records} requests");
        return Check::warn("clients", detail, format!("is it a load balancer or CDN? {realip}"));
    }
    Check::ok("clients", format!("{} addresses in the last {records} requests", clients.len()))
}

fn holds(prefixes: &[IpNet], address: &IpAddr) -> bool {
    prefixes.iter().any(|prefix| prefix.contains(address))
}

fn is_private(address: &IpAddr) -> bool {
    match address {
        IpAddr::V4(v4) => v4.is_private() || v4.is_loopback() || v4.is_link_local(),
        IpAddr::V6(v6) => v6.is_unique_local() || v6.is_loopback() || v6.is_unicast_link_local(),
    }
}

#[cfg(test)]
mod tests {
    use super::super::Level;
    use super::*;

    const NOW: &str = "2026-04-27T10:00:00Z";

    fn now() -> Timestamp {
        Timestamp::parse(NOW).expect("a stamp")
    }

    fn line(client: &str, peer: Option<&str>, time: &str) -> String {
        let peer = peer.map(|peer| format!(r#","peer":"{peer}""#)).unwrap_or_default();
        format!(
            r#"{{"source_ip":"{client}","timestamp":"{time}","method":"GET","path":"/","status":"200","response_size":"5"{peer}}}"#
        )
    }

    /// The worst of each check, over a log of these lines.
    fn judged(lines: &[String], proxies: &[&str]) -> HashMap<&'static str, (Level, String)> {
        let lines: Vec<&[u8]> = lines.iter().map(|line| line.as_bytes()).collect();
        let proxies: Vec<IpNet> = proxies.iter().map(|p| p.parse().expect("a prefix")).collect();
        judge(&lines, &Format::default(), &proxies, now())
            .into_iter()
            .map(|c| (c.check, (c.status, c.detail)))
            .collect()
    }

    fn plain(client: &str) -> String {
        line(client, Some(client), "2026-04-27T09:59:58Z")
    }

    #[test]
    fn the_format_of_another_server_is_named() {
        let caddy = r#"{"ts":1777280000.5,"request":{"client_ip":"192.0.2.1","method":"GET","uri":"/"},"status":200}"#;
        let combined = r#"192.0.2.1 - - [27/Apr/2026:09:59:58 +0000] "GET / HTTP/1.1" 200 5"#;
        for (text, name) in [(caddy, Some("caddy")), (combined, Some("combined")), ("Hello.", None)] {
            let checks = judge(&[text.as_bytes()], &Format::default(), &[], now());
            let next = checks[0].next.clone().unwrap_or_default();
            assert_eq!(checks[0].status, Level::Fail);
            assert_eq!(next.contains("log.format"), name.is_some(), "{next}");
            assert!(name.is_none_or(|name| next.contains(&format!("log.format = {name:?}"))), "{next}");
        }
    }

    #[test]
    fn a_good_log_is_good() {
        let judged = judged(&[plain("192.0.2.1"), plain("2001:db8::1")], &[]);
        assert!(judged.values().all(|(level, _)| *level == Level::Ok), "{judged:?}");
        assert_eq!(judged.len(), 4);
    }

    #[test]
    fn each_fault_of_a_log_is_named() {
        let combined = r#"192.0.2.1 - - [27/Apr/2026:09:59:58 +0000] "GET / HTTP/1.1" 200 5"#.to_owned();
        let no_status = r#"{"source_ip":"192.0.2.1","timestamp":"2026-04-27T09:59:58Z","path":"/"}"#.to_owned();
        let ahead = line("192.0.2.1", None, "2026-04-27T11:00:00Z");
        let through = line("192.0.2.1", Some("198.51.100.9"), "2026-04-27T09:59:58Z");
        let crowd = vec![plain("192.0.2.1"); MANY];
        type Case<'a> = (&'a [String], &'a [&'a str], &'a str, Level, &'a str);
        let cdn = |share: usize| -> Vec<String> {
            let client = |n: usize| if n < share { format!("172.71.9.{n}") } else { format!("192.0.2.{n}") };
            (0..10).map(|n| plain(&client(n))).collect()
        };
        let from_cdn = line("192.0.2.1", Some("151.101.9.9"), "2026-04-27T09:59:58Z");
        let cases: [Case<'_>; 13] = [
            (std::slice::from_ref(&combined), &[], "format", Level::Fail, "it is not JSON"),
            (&[plain("192.0.2.1"), combined.clone()], &[], "format", Level::Warn, "1 of the last 2 lines"),
            (&[no_status], &[], "format", Level::Warn, "lack a field"),
            (&[ahead], &[], "clock", Level::Fail, "3600 s ahead"),
            (&[plain("172.18.0.1"), plain("10.0.0.9")], &[], "clients", Level::Warn, "private addresses"),
            (&[plain("198.51.100.9")], &["198.51.100.0/24"], "clients", Level::Fail, "198.51.100.9, a trusted proxy"),
            (&crowd, &[], "clients", Level::Warn, "one address made all"),
            (&cdn(5), &[], "clients", Level::Fail, "Cloudflare (cloudflare) is logged as the client of 5 of 10"),
            (&cdn(4), &[], "clients", Level::Ok, "10 addresses"),
            (
                &cdn(4),
                &["172.64.0.0/13"],
                "clients",
                Level::Warn,
                "a trusted proxy, is logged as the client of 4 of 10",
            ),
            (std::slice::from_ref(&from_cdn), &[], "peer", Level::Warn, "151.101.9.9 of Fastly names the clients"),
            (std::slice::from_ref(&through), &[], "peer", Level::Warn, "198.51.100.9 names other clients"),
            (std::slice::from_ref(&through), &["198.51.100.9/32"], "peer", Level::Warn, "through a trusted proxy"),
        ];
        for (lines, proxies, check, level, words) in cases {
            let judged = judged(lines, proxies);
            let (found, detail) = &judged[check];
            assert!(*found == level && detail.contains(words), "{words}: {judged:?}");
        }
        let (level, _) = &judged(&[line("192.0.2.1", None, "2026-04-27T09:59:58Z")], &[])["peer"];
        assert_eq!(*level, Level::Warn);
    }

    #[test]
    fn a_log_is_read_as_it_is_written() {
        let combined = r#"192.0.2.1 - - [27/Apr/2026:09:59:58 +0000] "GET / HTTP/1.1" 200 5 "-" "x""#;
        let format = Format::from_name("combined").expect("a format");
        let checks = judge(&[combined.as_bytes()], &format, &[], now());
        assert!(checks.iter().any(|c| c.check == "format" && c.status == Level::Ok), "{checks:?}");
        assert!(!checks.iter().any(|c| c.check == "peer"), "no combined log can name the peer: {checks:?}");
    }

    #[test]
    fn files_that_cannot_be_read_are_named() {
        let dir = tempfile::tempdir().expect("a directory");
        let path = dir.path().join("access.json");
        let first = |path: &Path| run(path, &Format::default(), &[], now()).remove(0);
        assert!(first(&path).detail.ends_with("is not there"));
        assert_eq!(first(dir.path()).status, Level::Fail, "a directory");
        std::fs::write(&path, "").expect("written");
        assert!(first(&path).detail.ends_with("is empty"));
        std::fs::write(&path, plain("192.0.2.1") + "\n" + "{\"cut").expect("written");
        let checks = run(&path, &Format::default(), &[], now());
        assert!(checks.iter().any(|c| c.check == "format" && c.status == Level::Ok), "{checks:?}");
    }
}
