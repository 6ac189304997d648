//! What others do with the same bytes: the original's design, fail2ban, CrowdSec, GoAccess, jq. How soon they cut off
//! a flood is in [`flood`].
//!
//! fail2ban and CrowdSec are unpacked, not installed: installed, they would become services that ban, and CrowdSec would
//! register this machine with its makers. Each peer reads a long and a short piece of one log; the difference
//! is reported, so that start-up does not count.

mod crowdsec;
pub mod flood;

use std::fs::File;
use std::io::{BufRead, BufReader, BufWriter, Write};
use std::net::{Ipv4Addr, TcpListener};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use anyhow::{Result, ensure};

use super::table::{Row, Target};
use super::{Bench, replay, traffic, usage};
use crate::setup::{self, package};

/// What asks for packages.
const WHAT: &str = "comparing with others";

/// One peer at work.
struct Peer {
    name: &'static str,
    /// Lines of its long piece: some seconds of work.
    lines: usize,
    /// How many times as fast we should be.
    times: f64,
    how: String,
    command: Box<dyn Fn(&Path) -> Command>,
}

/// Adds the rows of this part.
///
/// # Errors
/// When a peer is unavailable or does not understand the log.
pub fn measure(bench: &mut Bench, yes: bool) -> Result<()> {
    let tools = [package("python3", "/usr/bin/python3"), package("goaccess", "goaccess"), package("jq", "jq")];
    setup::packages(WHAT, &tools, yes)?;
    let dir = super::dir()?.join("peers");
    std::fs::create_dir_all(&dir)?;
    let log = traffic::USUAL.file()?;
    let ours = replay::records_per_second(&bench.binary, &log)?;
    let mut peers = vec![original(&dir)?];
    peers.extend(fail2ban(&dir, yes)?);
    peers.push(crowdsec(&dir, yes)?);
    peers.push(goaccess(&dir));
    peers.push(jq());
    let mut failed = Vec::new();
    for peer in peers {
        let rate = match rate(&peer, &log, &dir) {
            Ok(rate) => rate,
            Err(error) => {
                failed.push(format!("{}: {error:#}", peer.name));
                continue;
            }
        };
        let Peer { name, lines, times, how, .. } = peer;
        bench.table.add(Row {
            part: "peers",
            what: format!("replay is faster than {name}"),
            value: ours / rate,
            unit: "x",
            target: Target::AtLeast(times),
            how: format!("it does {rate:.0} lines/s, we {ours:.0}, over the same bytes ({lines} lines of them); {how}"),
        });
    }
    ensure!(failed.is_empty(), "{}", failed.join("; "));
    Ok(())
}

/// Lines a second.
fn rate(peer: &Peer, log: &Path, dir: &Path) -> Result<f64> {
    let short = peer.lines / 10;
    let mut secs = [0.0; 2];
    for (lines, secs) in [short, peer.lines].into_iter().zip(&mut secs) {
        let piece = piece(log, lines, dir)?;
        *secs = usage::run(&mut (peer.command)(&piece), None)?.wall.as_secs_f64();
        std::fs::remove_file(&piece)?;
    }
    ensure!(secs[1] > secs[0], "{} lines took {:.2} s, {short} lines {:.2} s", peer.lines, secs[1], secs[0]);
    Ok((peer.lines - short) as f64 / (secs[1] - secs[0]))
}

/// The first lines of a log.
fn piece(log: &Path, lines: usize, dir: &Path) -> Result<PathBuf> {
    let path = dir.join(format!("{lines}.json"));
    let mut from = BufReader::with_capacity(1 << 20, File::open(log)?);
    let mut to = BufWriter::with_capacity(1 << 20, File::create(&path)?);
    let mut line = Vec::new();
    for _ in 0..lines {
        line.clear();
        ensure!(from.read_until(b'\n', &mut line)? > 0, "the log has less than {lines} lines");
        to.write_all(&line)?;
    }
    to.flush()?;
    Ok(path)
}

fn original(dir: &Path) -> Result<Peer> {
    let script = dir.join("original.py");
    std::fs::write(&script, include_str!("peers/original.py"))?;
    Ok(Peer {
        name: "the original's design in Python",
        lines: 500_000,
        times: 20.0,
        how: "xtask/src/bench/peers/original.py: json, windows in O(1), baseline, rule".into(),
        command: Box::new(move |log| {
            let mut command = Command::new("/usr/bin/python3");
            command.arg(&script).arg(log);
            command
        }),
    })
}

fn fail2ban(dir: &Path, yes: bool) -> Result<[Peer; 2]> {
    let (root, version) = setup::unpack(WHAT, "fail2ban", dir, yes)?;
    let command = move |root: &Path, date: Option<&str>, log: &Path| {
        let mut command = Command::new("/usr/bin/python3");
        command.env("PYTHONPATH", root.join("usr/lib/python3/dist-packages"));
        command.arg(root.join("usr/bin/fail2ban-regex")).arg("--config").arg(root.join("etc/fail2ban"));
        if let Some(date) = date {
            command.args(["--datepattern", date]);
        }
        command.arg(log).arg(r#"^\{"source_ip":"<HOST>",.*"status":"4\d\d""#);
        command
    };
    let pattern = r#""timestamp":"%Y-%m-%dT%H:%M:%S%z""#;
    let other = root.clone();
    Ok([
        Peer {
            name: "fail2ban with one datepattern",
            lines: 100_000,
            times: 80.0,
            how: format!("fail2ban-regex {version}: one failregex for status 4xx, no window, no ban"),
            command: Box::new(move |log| command(&root, Some(pattern), log)),
        },
        Peer {
            name: "fail2ban with default date detection",
            lines: 10_000,
            times: 1000.0,
            how: format!("fail2ban-regex {version}: the same without datepattern"),
            command: Box::new(move |log| command(&other, None, log)),
        },
    ])
}

/// CrowdSec's parsers and scenarios for HTTP that come in Debian's package, none from its hub.
fn crowdsec(dir: &Path, yes: bool) -> Result<Peer> {
    let (root, version) = setup::unpack(WHAT, "crowdsec", dir, yes)?;
    // A moment ago nobody listened there; it is told to CrowdSec, which cannot pick one itself.
    let port = TcpListener::bind((Ipv4Addr::LOCALHOST, 0))?.local_addr()?.port();
    let setup = crowdsec::Setup {
        parsers: &[("s00-raw", "syslog-logs"), ("s02-enrich", "dateparse-enrich"), ("s02-enrich", "http-logs")],
        own_parser: Some(include_str!("peers/six-keys.yaml")),
        // Who installs the first gets the second with it.
        collections: &["base-http-scenarios", "http-cve"],
        log_level: "warning",
        acquisition: "",
        port,
    };
    let home = crowdsec::Home::make(root, dir.join("crowdsec-home"), &setup)?;
    Ok(Peer {
        name: "CrowdSec with its HTTP scenarios",
        lines: 6_000,
        times: 5000.0,
        how: format!(
            "crowdsec {version} -dsn file://, {} scenarios of base-http-scenarios and http-cve, the six keys by JsonExtract",
            home.scenarios
        ),
        command: Box::new(move |log| {
            let mut command = Command::new(home.program("crowdsec"));
            command.arg("-c").arg(home.config()).arg("-dsn").arg(format!("file://{}", log.display()));
            command.args(["-type", "anomaly"]).stderr(Stdio::null());
            command
        }),
    })
}

fn goaccess(dir: &Path) -> Peer {
    let report = dir.join("goaccess.json");
    Peer {
        name: "goaccess",
        lines: 300_000,
        times: 50.0,
        how: "Debian's, JSON log format, JSON report".into(),
        command: Box::new(move |log| {
            let mut command = Command::new("goaccess");
            command.arg(log).args([
                "--no-global-config",
                "--no-progress",
                "--date-format=%Y-%m-%d",
                "--time-format=%H:%M:%S",
            ]);
            command.arg(r#"--log-format={"source_ip":"%h","timestamp":"%dT%t+%^","method":"%m","path":"%U","status":"%s","response_size":"%b"}"#);
            command.arg("-o").arg(&report);
            command
        }),
    }
}

fn jq() -> Peer {
    Peer {
        name: "jq",
        lines: 300_000,
        times: 30.0,
        how: "Debian's, jq -c with the six keys into an array".into(),
        command: Box::new(|log| {
            let mut command = Command::new("jq");
            command.args(["-c", "[.source_ip,.timestamp,.method,.path,.status,.response_size]"]).arg(log);
            command
        }),
    }
}
