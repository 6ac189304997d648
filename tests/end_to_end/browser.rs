//! The dashboard in a real browser while the daemon behind it drops a real attack.
//!
//! Here is the lab; what is looked at is in `tests/browser/attack.test.mjs`, which runs in the server's namespace and has
//! the attacker's. Needs Chromium and Node, so it is part of `cargo xtask test`'s step `browser`, which sets the
//! variable below and installs both.

use std::path::Path;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use serde_json::json;

use super::{daemon, lab};
use crate::lab::client::{Answer, Plan, Traffic};
use crate::lab::daemon::Config;
use crate::lab::nginx::Nginx;
use crate::lab::{ATTACKER, FRIEND, HONEST, INTERFACE, Lab, SERVER, run};

/// Set by the step that has what this needs.
const WANTED: &str = "ANOMALY_BROWSER_TESTS";
/// Where the screenshots go, for those who want them.
const PICTURES: &str = "ANOMALY_PICTURES";
const TOKEN: &str = "a-token-for-the-lab";

#[test]
fn the_dashboard_shows_an_attack_and_steers_the_kernel() -> Result<()> {
    let test = "the_dashboard_shows_an_attack_and_steers_the_kernel";
    if std::env::var_os(WANTED).is_none() {
        println!("{test} is part of: cargo xtask test --only browser");
        return Ok(());
    }
    let Some(lab) = lab(test)? else { return Ok(()) };
    let _nginx = Nginx::start(&lab)?;
    let config = Config::new(&lab, "browser").with("bans", "durations", r#"["10m", "1h"]"#).with(
        "dashboard",
        "token",
        format!("{TOKEN:?}"),
    );
    let daemon = daemon(&lab, config)?;
    let honest = Traffic::start(&lab.honest, Plan::new(HONEST.v4(), 2.0));
    let leaving = Leaving::watch(&lab)?;

    let here = json!({
        "dashboard": "http://127.0.0.1:8081",
        "token": TOKEN,
        "audit": lab.dir().join("browser.audit.jsonl"),
        "server": SERVER.v4,
        "attacker": ATTACKER.v4,
        "bystander": FRIEND.v4,
        "attacker_pid": lab.attacker.pid(),
    });
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).parent().unwrap_or(Path::new("/")).join("tests/browser");
    let mut node = lab.server.command("node");
    node.args(["--test", "--test-reporter=spec"]).arg(folder.join("attack.test.mjs"));
    node.env("ANOMALY_LAB", here.to_string());
    if let Some(pictures) = std::env::var_os(PICTURES) {
        node.env(PICTURES, pictures);
    }
    // In a group of its own, with the browser it starts: both end with the lab.
    let output = lab.dir().join("browser.out");
    let mut browser = lab.start("the browser tests", node, &output)?;
    let status = browser.wait(Duration::from_secs(180))?;
    println!("{}", browser.output());
    ensure!(status.success(), "{status}\n{}\nthe daemon: {}", browser.output(), daemon.output());

    leaving.ensure_nothing_left()?;
    let attempts = honest.stop()?;
    let refused: Vec<_> = attempts.iter().filter(|a| a.answer != Answer::Status(200)).collect();
    ensure!(refused.is_empty(), "the honest client: {refused:?}");
    Ok(())
}

/// Counts the connections that anything in the server's namespace tries to make to elsewhere, and datagrams it sends there.
struct Leaving<'lab>(&'lab Lab);

/// Each is a rule that only counts.
const COUNTED: [&str; 2] = ["tcp --syn", "udp"];

impl<'lab> Leaving<'lab> {
    fn watch(lab: &'lab Lab) -> Result<Self> {
        for program in ["iptables", "ip6tables"] {
            for what in COUNTED {
                let rule = format!("-w -A OUTPUT -o {INTERFACE} -p {what}");
                run(lab.server.command(program).args(rule.split(' ')))?;
            }
        }
        Ok(Self(lab))
    }

    fn ensure_nothing_left(&self) -> Result<()> {
        for program in ["iptables", "ip6tables"] {
            let listing = run(self.0.server.command(program).args(["-w", "-nvxL", "OUTPUT"]))?;
            let rules: Vec<&str> = listing.lines().skip(2).filter(|line| line.contains(INTERFACE)).collect();
            ensure!(rules.len() == COUNTED.len(), "{listing}");
            for rule in rules {
                let packets: u64 = rule.split_whitespace().next().and_then(|n| n.parse().ok()).context("no count")?;
                ensure!(packets == 0, "{packets} packets left the host: {listing}");
            }
        }
        Ok(())
    }
}
