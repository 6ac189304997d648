//! How long a flood goes on until it is cut off: by anomaly, fail2ban and CrowdSec, each in a lab of its own with the
//! same Nginx and the same flood.
//!
//! The client measures: the first request that gets no connection is the end. A peer's defaults are measured; each row names
//! what was set.

use std::net::Ipv4Addr;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use anyhow::{Context, Result, ensure};

use super::WHAT;
use super::crowdsec::{Home, Setup};
use crate::bench::flood::{FLOODS, RATE, attacker, learned};
use crate::bench::table::{Row, Target};
use crate::bench::{Bench, median, new_lab};
use crate::lab::client::{Answer, Attempt, Plan, Traffic};
use crate::lab::daemon::Daemon;
use crate::lab::nginx::Nginx;
use crate::lab::process::Process;
use crate::lab::{Lab, clock, history, run};
use crate::setup::{self, package};

/// The peer, and what it watches.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Watcher {
    Anomaly,
    /// fail2ban's own jail for what Nginx's limit_req has refused.
    LimitReqJail,
    /// A jail of one's own that counts requests.
    CountingJail,
    CrowdSec,
}

/// Everybody on a site that limits nothing, and on one that has set Nginx's limit_req.
const RACES: [(Watcher, bool); 6] = [
    (Watcher::Anomaly, false),
    (Watcher::CountingJail, false),
    (Watcher::CrowdSec, false),
    (Watcher::Anomaly, true),
    (Watcher::LimitReqJail, true),
    (Watcher::CrowdSec, true),
];
/// After so long a flood counts as not found.
const PATIENCE: Duration = Duration::from_secs(20);
/// How often CrowdSec's bouncer asks for decisions, by default.
const ASKS_EVERY: Duration = Duration::from_secs(10);
/// What CrowdSec's bouncer shows to the local API; of this lab only.
const BOUNCER_KEY: &str = "a-key-of-this-bench-and-nobody-else";

/// What the peers were unpacked to.
struct Peers {
    fail2ban: PathBuf,
    inotify: PathBuf,
    crowdsec: PathBuf,
    bouncer: PathBuf,
}

/// What watches now; gone with this.
enum Running<'lab> {
    Daemon(Daemon<'lab>),
    /// The program that decides, and the one that enforces.
    Others(Process, Option<Process>),
}

impl Running<'_> {
    /// All that they have said.
    fn output(&self) -> String {
        match self {
            Self::Daemon(daemon) => daemon.output(),
            Self::Others(decides, acts) => decides.output() + &acts.as_ref().map(Process::output).unwrap_or_default(),
        }
    }
}

impl Watcher {
    /// What it says when it has decided to ban an address.
    fn words(self, address: Ipv4Addr) -> String {
        match self {
            Self::Anomaly => format!("ban {address} (offence"),
            Self::LimitReqJail | Self::CountingJail => format!("] Ban {address}"),
            Self::CrowdSec => format!("ban on Ip {address}"),
        }
    }
}

/// What became of a flood.
struct Cut {
    /// Seconds from its first request to the first that got no connection.
    secs: f64,
    /// Seconds to the decision, as its log tells it.
    decided: f64,
}

/// Adds the rows of this part.
///
/// # Errors
/// When a peer is unavailable or does not start.
pub fn measure(bench: &mut Bench, yes: bool) -> Result<()> {
    setup::packages(WHAT, &[package("python3", "/usr/bin/python3")], yes)?;
    let dir = crate::bench::dir()?.join("peers");
    std::fs::create_dir_all(&dir)?;
    let (fail2ban, jails) = setup::unpack(WHAT, "fail2ban", &dir, yes)?;
    let (inotify, _) = setup::unpack(WHAT, "python3-pyinotify", &dir, yes)?;
    let (crowdsec, scenarios) = setup::unpack(WHAT, "crowdsec", &dir, yes)?;
    let (bouncer, drops) = setup::unpack(WHAT, "crowdsec-firewall-bouncer", &dir, yes)?;
    let peers = Peers { fail2ban, inotify, crowdsec, bouncer };
    for (watcher, limits) in RACES {
        let (name, how) = match watcher {
            Watcher::Anomaly => ("anomaly", "defaults, has learned from 30 quiet minutes; XDP".to_owned()),
            Watcher::LimitReqJail => (
                "fail2ban, its jail nginx-limit-req",
                format!(
                    "fail2ban {jails}: 5 lines of the error log in 10 minutes (its defaults), pyinotify, iptables-multiport"
                ),
            ),
            Watcher::CountingJail => (
                "fail2ban, a jail of 100 requests in 60 s",
                format!("fail2ban {jails}: failregex ^<HOST> on the combined log, pyinotify, iptables-multiport"),
            ),
            Watcher::CrowdSec => (
                "CrowdSec, its collection nginx",
                format!(
                    "crowdsec {scenarios}, combined and error log; crowdsec-firewall-bouncer {drops}, nftables, asks every 10 s (its default)"
                ),
            ),
        };
        let lab = new_lab()?;
        lab.write_log(&history::quiet(clock::epoch_secs(), 30, 2))?;
        let _nginx = nginx(&lab, limits)?;
        let running = peers.start(watcher, &lab, &bench.binary).with_context(|| name.to_owned())?;
        let mut cuts = Vec::new();
        for n in 0..FLOODS {
            if watcher == Watcher::CrowdSec {
                // A flood ends with an answer to the bouncer; the next ones begin spread over the time to its next question.
                std::thread::sleep(ASKS_EVERY / FLOODS.into() * n.into());
            }
            let Some(cut) = flood(&lab, n, watcher, &running)? else { break };
            cuts.push(cut);
        }
        let nginx = if limits { "with limit_req (10 requests/s, burst 20)" } else { "without limit_req" };
        let what = |end| format!("200 req/s flood on Nginx {nginx}, first request to {end}: {name}");
        let row = |what, value, target, how| Row { part: "peers", what, value, unit: "s", target, how };
        let target = if watcher == Watcher::Anomaly { Target::AtMost(3.0) } else { Target::None };
        bench.table.add(if cuts.len() < FLOODS.into() {
            let how = format!("it was not, {} floods before it were; {how}", cuts.len());
            row(what("being given up as not cut off"), PATIENCE.as_secs_f64(), target, how)
        } else {
            let secs = |figure: fn(&Cut) -> f64| cuts.iter().map(figure).collect::<Vec<_>>();
            let (low, high) =
                secs(|cut| cut.secs).into_iter().fold((f64::MAX, 0.0f64), |(l, h), s| (l.min(s), h.max(s)));
            let how = format!(
                "median of {FLOODS} new addresses ({low:.2} to {high:.2} s; decided after {:.2} s); {how}",
                median(secs(|cut| cut.decided))
            );
            row(what("the first refused connection"), median(secs(|cut| cut.secs)), target, how)
        });
    }
    Ok(())
}

/// Nginx with the combined log that others read, and, with `limits`, with its own limit: what is beyond is refused and
/// told in the error log.
fn nginx(lab: &Lab, limits: bool) -> Result<Nginx> {
    let log = format!("access_log {} combined;", combined_log(lab).display());
    if !limits {
        return Nginx::configured(lab, "", &log);
    }
    let zone = "limit_req_zone $binary_remote_addr zone=flood:10m rate=10r/s;";
    Nginx::configured(lab, zone, &format!("{log} limit_req zone=flood burst=20 nodelay;"))
}

fn combined_log(lab: &Lab) -> PathBuf {
    lab.dir().join("log/combined.log")
}

fn error_log(lab: &Lab) -> PathBuf {
    lab.dir().join("nginx/error.log")
}

/// Floods from a new address; none where that goes on and on.
fn flood(lab: &Lab, n: u8, watcher: Watcher, running: &Running<'_>) -> Result<Option<Cut>> {
    let from = attacker(lab, n)?;
    let words = watcher.words(from);
    let flood =
        Traffic::start(&lab.attacker, Plan { patience: Duration::from_secs(1), ..Plan::new(from.into(), RATE) });
    let began = flood.began;
    let mut decided = None;
    let cut = clock::wait_until("the flood to be cut off", PATIENCE, || {
        if decided.is_none() && running.output().contains(&words) {
            decided = Some(began.elapsed().as_secs_f64());
        }
        // A busy machine alone can leave some requests without a connection.
        decided.is_some() && flood.is_cut(began)
    });
    let attempts = flood.stop()?;
    ensure!(!attempts.is_empty(), "the flood asked for nothing");
    let (Ok(()), Some(first), Some(decided)) = (cut, first_refused(&attempts), decided) else { return Ok(None) };
    Ok(Some(Cut { secs: (first.began - began).as_secs_f64(), decided }))
}

/// The first request without a connection after the last that was answered.
fn first_refused(attempts: &[Attempt]) -> Option<&Attempt> {
    let answered = attempts.iter().filter(|a| matches!(a.answer, Answer::Status(_))).map(|a| a.began).max();
    let refused = attempts.iter().filter(|a| a.answer == Answer::NoConnection);
    refused.filter(|a| answered.is_none_or(|last| a.began > last)).min_by_key(|a| a.began)
}

impl Peers {
    /// Starts a watcher, and waits until it watches.
    fn start<'lab>(&self, watcher: Watcher, lab: &'lab Lab, anomaly: &Path) -> Result<Running<'lab>> {
        Ok(match watcher {
            Watcher::Anomaly => Running::Daemon(learned(lab, anomaly)?),
            Watcher::LimitReqJail => self.fail2ban(lab, "nginx-limit-req", &error_log(lab), "")?,
            Watcher::CountingJail => {
                let more = "port = http,https\nmaxretry = 100\nfindtime = 60\n";
                self.fail2ban(lab, "any-request", &combined_log(lab), more)?
            }
            Watcher::CrowdSec => self.crowdsec(lab)?,
        })
    }

    /// fail2ban with one jail on one log.
    fn fail2ban(&self, lab: &Lab, jail: &str, log: &Path, more: &str) -> Result<Running<'static>> {
        let dir = lab.dir().join("fail2ban");
        run(Command::new("cp").arg("-rT").arg(self.fail2ban.join("etc/fail2ban")).arg(&dir))?;
        let place = dir.display();
        let files = format!("socket = {place}/sock\npidfile = {place}/pid\ndbfile = {place}/db\n");
        std::fs::write(dir.join("fail2ban.local"), format!("[DEFAULT]\nlogtarget = STDOUT\n{files}"))?;
        std::fs::write(dir.join("filter.d/any-request.conf"), "[Definition]\nfailregex = ^<HOST> \n")?;
        // Debian enables sshd's jail, which has no log here. fail2ban looks its own host's name up before the first ban,
        // and the lab has no name server.
        let jails = "[DEFAULT]\nignoreself = false\n[sshd]\nenabled = false\n";
        let own = format!("[{jail}]\nenabled = true\nlogpath = {}\n{more}", log.display());
        std::fs::write(dir.join("jail.local"), format!("{jails}{own}"))?;
        let mut command = lab.server.command("/usr/bin/python3");
        let modules = [&self.fail2ban, &self.inotify].map(|root| root.join("usr/lib/python3/dist-packages"));
        command.env("PYTHONPATH", std::env::join_paths(modules)?).arg(self.fail2ban.join("usr/bin/fail2ban-server"));
        command.arg("-c").arg(&dir).arg("-s").arg(dir.join("sock")).arg("-p").arg(dir.join("pid"));
        command.args(["-xf", "start"]);
        let mut process = lab.start("fail2ban", command, &dir.join("out"))?;
        wait_for_words(&mut process, &format!("Jail '{jail}' started"))?;
        Ok(Running::Others(process, None))
    }

    /// CrowdSec with what Debian's package enables for Nginx, and its bouncer.
    fn crowdsec(&self, lab: &Lab) -> Result<Running<'static>> {
        let dir = lab.dir().join("crowdsec");
        let setup = Setup {
            parsers: &[
                ("s00-raw", "syslog-logs"),
                ("s01-parse", "nginx-logs"),
                ("s02-enrich", "dateparse-enrich"),
                ("s02-enrich", "http-logs"),
                ("s02-enrich", "whitelists"),
            ],
            own_parser: None,
            collections: &["base-http-scenarios", "nginx"],
            log_level: "info",
            acquisition: &format!(
                "filenames: [{}, {}]\nlabels: {{type: nginx}}\n",
                combined_log(lab).display(),
                error_log(lab).display()
            ),
            port: 8080,
        };
        let home = Home::make(self.crowdsec.clone(), dir.clone(), &setup)?;
        run(&mut home.cscli(&["bouncers", "add", "bench", "--key", BOUNCER_KEY]))?;
        let mut command = lab.server.command(home.program("crowdsec"));
        command.arg("-c").arg(home.config());
        let mut process = lab.start("crowdsec", command, &dir.join("out"))?;
        wait_for_words(&mut process, "Starting processing data")?;
        let etc = self.bouncer.join("etc/crowdsec/bouncers/crowdsec-firewall-bouncer.yaml");
        let own = [
            ("${BACKEND}", "nftables"),
            ("${API_KEY}", BOUNCER_KEY),
            ("daemonize: true", "daemonize: false"),
            ("log_mode: file", "log_mode: stdout"),
            ("/var/run/", &dir.to_string_lossy()),
            ("/var/log/", &dir.to_string_lossy()),
        ];
        let text = std::fs::read_to_string(etc)?;
        std::fs::write(dir.join("bouncer.yaml"), own.iter().fold(text, |text, (from, to)| text.replace(from, to)))?;
        let mut command = lab.server.command(self.bouncer.join("usr/bin/crowdsec-firewall-bouncer"));
        command.arg("-c").arg(dir.join("bouncer.yaml"));
        let mut bouncer = lab.start("crowdsec-firewall-bouncer", command, &dir.join("bouncer.out"))?;
        wait_for_words(&mut bouncer, "Processing new and deleted decisions")?;
        Ok(Running::Others(process, Some(bouncer)))
    }
}

/// Waits until a process says so.
fn wait_for_words(process: &mut Process, words: &str) -> Result<()> {
    let said = clock::wait_until(&format!("{words:?}"), Duration::from_secs(30), || {
        process.output().contains(words) || process.ended().is_some()
    });
    ensure!(said.is_ok() && process.output().contains(words), "it did not say {words:?}: {}", process.output());
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_lost_request_before_the_ban_is_not_its_beginning() {
        let start = clock::now();
        let at = |ms, answer| Attempt { began: start + Duration::from_millis(ms), answer };
        let attempts = [
            at(0, Answer::Status(200)),
            at(5, Answer::NoConnection),
            at(10, Answer::Status(200)),
            at(15, Answer::Silence),
            at(25, Answer::NoConnection),
            at(20, Answer::NoConnection),
        ];
        let first = first_refused(&attempts).map(|a| a.began - start);
        assert_eq!(first, Some(Duration::from_millis(20)));
        assert!(first_refused(&attempts[..1]).is_none());
    }
}
