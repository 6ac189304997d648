//! The main job, played as a story in a lab of network namespaces: a site learns, is attacked,
//! drops the attacker in the kernel and forgives it.
//!
//! Every figure that is told comes from the running daemon's own command line. Nothing of it touches
//! the machine's own network but a listener on loopback that leads to the dashboard.

mod forward;
mod tell;

use std::net::IpAddr;
use std::path::Path;
use std::time::Duration;

use anyhow::{Context, Result, bail};
use serde_json::Value;

use crate::lab::client::{Answer, Plan, Traffic};
use crate::lab::daemon::{Config, Daemon};
use crate::lab::nginx::Nginx;
use crate::lab::space::Space;
use crate::lab::{ATTACKER, HONEST, Lab, clock};
use crate::{cargo, lab, setup};
use forward::Forward;
use tell::Teller;

/// Plays the main job in a lab of network namespaces, and leaves the dashboard up until Ctrl-C.
#[derive(clap::Args)]
pub struct Args {
    /// Install what is missing without asking.
    #[arg(long)]
    yes: bool,
    /// End after the story.
    #[arg(long)]
    once: bool,
    /// Build with optimisation: slower to start with, truer figures of CPU and memory.
    #[arg(long)]
    release: bool,
}

/// Runs the task.
pub fn run(args: &Args) -> Result<()> {
    if !rustix::process::geteuid().is_root() {
        bail!("the demo needs root, for network namespaces and XDP; as root: cargo xtask demo");
    }
    eprintln!(
        "The demo: a web site in network namespaces learns its visitors, is flooded, drops the attacker in the kernel and\n\
         forgives it. It takes about a minute, after the daemon is built: some minutes on two cores and 2 GB below target/\n\
         the first time. Nothing of this machine's own network is touched."
    );
    setup::packages("the demo", setup::LAB, args.yes)?;
    lab::available()?;
    eprintln!("Building the daemon.");
    let binary = cargo::build_daemon(args.release)?;
    play(&binary, args.once)
}

/// Seconds of log time that the daemon only learns; the product's default is 120.
const WARMUP_SECS: u32 = 30;
/// Seconds of log time after which the baseline is computed anew; the product's default is 60.
const RECALC_SECS: u32 = 10;
/// First, second and further bans; the product's default is 10 min, 30 min, 2 h, permanent.
const DURATIONS: &str = r#"["25s", "60s", "permanent"]"#;
/// The attacker's rate, requests per second.
const FLOOD: f64 = 50.0;
/// Other people on the site, beside the honest client.
const VISITORS: u8 = 12;

fn play(binary: &Path, once: bool) -> Result<()> {
    let tell = Teller::new();
    let lab = Lab::new("\nInterrupted: every namespace, process, rule and file of the demo is gone.")?;
    lab.write_log("")?;
    let _nginx = Nginx::start(&lab)?;
    let forward = Forward::listen(8081)?;
    let token = forward::token()?;
    let config = Config::new(&lab, "demo")
        .with("baseline", "warmup_secs", WARMUP_SECS.to_string())
        .with("baseline", "recalc_secs", RECALC_SECS.to_string())
        .with("bans", "durations", DURATIONS)
        .with("dashboard", "listen", format!("{:?}", forward.address().to_string()))
        .with("dashboard", "token", format!("{token:?}"));
    let mut daemon = Daemon::start(&lab, binary, config)?;
    let forward = forward.lead_to(lab.server.entrance());
    let status = daemon.status()?;

    tell.step("A host of its own");
    tell.line("Three network namespaces behind a router: a server, an honest client, an attacker.");
    tell.line("On the server: Debian's Nginx with nginx/log_format.conf, and the daemon on its network card.");
    tell.fact("enforcer", &format!("{} ({})", text(&status["enforcer"]), text(&status["xdp_mode"])));
    tell.fact("dashboard", &format!("{}   (token for its buttons: {token})", forward.url()));
    if let Some(note) = forward.note() {
        tell.line(&note);
    }
    tell.line("For the story's sake the warm-up takes 30 s instead of 120, the baseline is computed every 10 s");
    tell.line("instead of 60, and bans last 25 s, 60 s, then for ever instead of 10 min, 30 min, 2 h, then for ever.");
    for line in daemon.audited("fallback", None)? {
        tell.line(&format!(
            "Not the first choice: {} instead of {}: {}",
            text(&line["to"]),
            text(&line["from"]),
            text(&line["reason"])
        ));
    }

    tell.step("Learning what is normal");
    let honest = Traffic::start(&lab.honest, Plan::new(HONEST.v4(), 1.0));
    let visitors = visitors(&lab)?;
    tell.line(&format!("{VISITORS} visitors browse; an honest client asks once a second, from now to the end."));
    learn(&tell, &daemon)?;

    tell.step("The attack");
    tell.line(&format!("{} has never been seen before. It asks {FLOOD} times a second.", ATTACKER.v4));
    let flood = Traffic::start(&lab.attacker, Plan::new(ATTACKER.v4(), FLOOD));
    attack(&tell, &daemon, &flood, ATTACKER.v4)?;

    tell.step("What it looks like from outside");
    tell_curl(&tell, &lab.attacker, "attacker", ATTACKER.v4())?;
    tell_curl(&tell, &lab.honest, "honest client", HONEST.v4())?;
    let row = daemon.ban_of(ATTACKER.v4)?.context("the ban ended too early for the story")?;
    tell.fact("dropped so far", &dropped(&row));

    tell.step("The same over IPv6");
    tell.line("An attacker there has 18 trillion trillion addresses, so its whole /64 is banned.");
    let flood6 = Traffic::start(&lab.attacker, Plan::new(ATTACKER.v6(), FLOOD));
    attack(&tell, &daemon, &flood6, ATTACKER_NET)?;
    drop(flood6);

    tell.step("Forgiven, and caught again");
    tell.line("The kernel itself ends the first ban, on time; the attacker has never stopped knocking.");
    let served = clock::wait_for("the attacker to be served again", Duration::from_secs(60), || {
        let attempts = flood.attempts();
        let cut = flood.first_cut()?;
        attempts.iter().find(|a| a.began > cut && matches!(a.answer, Answer::Status(_))).copied()
    })?;
    tell.fact("served again", &format!("{:.1} s after its first request", (served.began - flood.began).as_secs_f64()));
    let ban = wait_for_ban(&daemon, ATTACKER.v4, 2)?;
    tell_ban(&tell, &ban);
    flood.wait_for_cut(clock::now(), Duration::from_secs(15))?;
    let row = daemon.ban_of(ATTACKER.v4)?.context("the ban ended too early for the story")?;
    tell.fact("dropped so far", &dropped(&row));

    tell.step("The operator's word counts");
    drop(flood);
    let output = daemon.command(&["unban", ATTACKER.v4])?;
    tell.command(&format!("anomaly unban {}", ATTACKER.v4), String::from_utf8_lossy(&output.stdout).trim());
    tell_curl(&tell, &lab.attacker, "attacker", ATTACKER.v4())?;

    tell.step("The balance");
    balance(&tell, &daemon, &honest)?;
    if once {
        drop((visitors, honest));
        daemon.stop()?;
        tell.line("The demo removes everything it made.");
        return Ok(());
    }
    tell.line(&format!("The dashboard stays up: {}   A new attacker comes every minute.", forward.url()));
    tell.line("Ctrl-C ends the demo and removes everything it made.");
    stay(&lab)
}

/// The /64 of [`ATTACKER`].
const ATTACKER_NET: &str = "2001:db8:3::/64";

/// A flood is on its way: tells when and why it is banned, and from when on nothing of it arrives.
fn attack(tell: &Teller, daemon: &Daemon<'_>, flood: &Traffic, banned: &str) -> Result<()> {
    let ban = wait_for_ban(daemon, banned, 1)?;
    flood.wait_for_cut(flood.began, Duration::from_secs(15))?;
    let cut = flood.first_cut().context("nothing was dropped")?;
    tell.fact("cut off", &format!("{:.1} s after its first request", (cut - flood.began).as_secs_f64()));
    tell_ban(tell, &ban);
    Ok(())
}

/// Until somebody ends it: attackers that nobody knows yet, so that the dashboard has something to show.
fn stay(lab: &Lab) -> Result<()> {
    for n in (0..100).cycle() {
        std::thread::sleep(Duration::from_secs(35));
        let address = format!("203.0.113.{}", 100 + n);
        lab.attacker.ip(&format!("addr replace {address}/24 dev {}", lab::INTERFACE))?;
        let flood = Traffic::start(&lab.attacker, Plan::new(address.parse()?, FLOOD));
        std::thread::sleep(Duration::from_secs(25));
        drop(flood);
    }
    Ok(())
}

/// People who look around: each from an address of its own, a page every few seconds.
fn visitors(lab: &Lab) -> Result<Vec<Traffic>> {
    (0..VISITORS)
        .map(|n| {
            let address = format!("198.51.100.{}", 100 + n);
            lab.honest.ip(&format!("addr add {address}/24 dev {}", lab::INTERFACE))?;
            let plan = Plan::new(address.parse()?, 0.15 + 0.05 * f64::from(n));
            Ok(Traffic::start(&lab.honest, plan))
        })
        .collect()
}

fn learn(tell: &Teller, daemon: &Daemon<'_>) -> Result<()> {
    let mut told = clock::now();
    clock::wait_until("the warm-up to end", Duration::from_secs(90), || {
        let Ok(status) = daemon.status() else { return false };
        let learned = status["records"].as_u64() > Some(0) && status["warmup_left_secs"] == 0;
        if told.elapsed() > Duration::from_secs(8) {
            told = clock::now();
            tell.line(&format!(
                "  {} requests read, {:.1} requests/s, {} s of warm-up left",
                status["records"],
                number(&status["global_rate"]),
                status["warmup_left_secs"],
            ));
        }
        learned
    })?;
    let status = daemon.status()?;
    let site = &status["baseline"];
    let (mean, stddev) = (number(&site["mean"]), number(&site["stddev"]));
    tell.fact("the site", &format!("{mean:.2} ± {stddev:.2} requests/s (from: {})", text(&site["source"])));
    tell.fact("limit for an unknown client", &format!("{:.2} requests/s over 60 s", number(&status["ip_limit"])));
    Ok(())
}

fn wait_for_ban(daemon: &Daemon<'_>, ip: &str, offence: u64) -> Result<Value> {
    clock::wait_for(&format!("ban number {offence} of {ip}"), Duration::from_secs(45), || {
        daemon.ban_of(ip).ok().flatten().filter(|row| row["offence"].as_u64() == Some(offence))
    })
    .with_context(|| format!("the daemon said: {}", daemon.output()))
}

fn tell_ban(tell: &Teller, ban: &Value) {
    let until = ban["until"].as_str().map_or_else(|| "for ever".into(), |until| format!("until {until}"));
    tell.fact(
        "ban",
        &format!("{} {until}, offence {}, by {}", text(&ban["ip"]), ban["offence"], text(&ban["enforcer"])),
    );
    tell.fact("because", text(&ban["reason"]));
}

fn tell_curl(tell: &Teller, space: &Space, who: &str, from: IpAddr) -> Result<()> {
    let said = match space.curl(from, Duration::from_secs(3))? {
        Ok(status) => format!("HTTP {status}"),
        Err(words) => words,
    };
    tell.command(&format!("curl http://{}/   # the {who}", lab::SERVER.v4), &said);
    Ok(())
}

fn dropped(row: &Value) -> String {
    let place = if row["enforcer"] == "xdp" { ", before the kernel's network stack saw them" } else { "" };
    format!("{} packets, {} bytes{place}", row["packets"], row["bytes"])
}

fn balance(tell: &Teller, daemon: &Daemon<'_>, honest: &Traffic) -> Result<()> {
    let honest = honest.attempts();
    let served = honest.iter().filter(|a| a.answer == Answer::Status(200)).count();
    let status = daemon.status()?;
    tell.fact("honest client", &format!("{served} of {} requests answered with 200", honest.len()));
    tell.fact(
        "daemon",
        &format!(
            "{} requests read, {} packets dropped, {:.1} MiB of memory, {:.1} % of a core",
            status["records"],
            status["dropped_packets"],
            number(&status["memory_bytes"]) / 1_048_576.0,
            100.0 * number(&status["cpu"]),
        ),
    );
    for line in daemon.audit()?.iter().filter(|l| l["event"] == "ban" || l["event"] == "unban") {
        tell.line(&format!(
            "  audit  {} {} {} offence {}",
            text(&line["ts"]),
            text(&line["event"]),
            text(&line["ip"]),
            line["offence"]
        ));
    }
    if served != honest.len() {
        bail!("the honest client was refused; that must not happen");
    }
    Ok(())
}

fn text(value: &Value) -> &str {
    value.as_str().unwrap_or("-")
}

fn number(value: &Value) -> f64 {
    value.as_f64().unwrap_or(0.0)
}
