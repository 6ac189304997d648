//! Behind a proxy, from log line to 403: only the banned client is refused, the proxy never, and nobody is framed.

use std::time::Duration;

use anyhow::{Result, ensure};

use super::{daemon, lab};
use crate::lab::client::{Answer, Plan, Traffic};
use crate::lab::daemon::Config;
use crate::lab::nginx::Nginx;
use crate::lab::{ATTACKER, HONEST, clock};

/// Clients that only the proxy sees.
const BEHIND: &str = "203.0.113.200";
const NEIGHBOUR: &str = "203.0.113.201";
/// Whom the attacker blames.
const FRAMED: &str = "198.51.100.222";

#[test]
fn behind_a_proxy_only_the_banned_client_gets_403() -> Result<()> {
    let Some(lab) = lab("behind_a_proxy_only_the_banned_client_gets_403")? else { return Ok(()) };
    // The honest client's host is the proxy here.
    let proxy = HONEST;
    let _nginx = Nginx::behind(&lab, proxy.v4)?;
    let config = Config::new(&lab, "main")
        .with("", "trusted_proxies", format!("[{:?}]", proxy.v4))
        .with("nginx", "deny_map", format!("{:?}", lab.deny_list()))
        .with("nginx", "pid_file", format!("{:?}", lab.nginx_pid()))
        .with("bans", "durations", r#"["30s"]"#);
    let daemon = daemon(&lab, config.clone())?;
    let through = |client, rate| Plan { forwarded: client, ..Plan::new(proxy.v4(), rate) };
    let settles = |client, wanted| {
        clock::wait_until(&format!("{client} to get {wanted}"), Duration::from_secs(20), || {
            lab.honest.ask(&through(client, 1.0)).is_ok_and(|answer| answer == Answer::Status(wanted))
        })
    };

    let neighbour = Traffic::start(&lab.honest, through(NEIGHBOUR, 2.0));
    let flood = Traffic::start(&lab.honest, through(BEHIND, 50.0));
    daemon.wait_for_audit("ban", Some(BEHIND), 1, Duration::from_secs(20))?;
    settles(BEHIND, 403)?;
    ensure!(flood.stop()?.iter().any(|a| a.answer == Answer::Status(200)), "it was served before its ban");
    ensure!(lab.honest.get(proxy.v4())? == Answer::Status(200), "the proxy itself is refused");

    // A peer that nobody trusts says it speaks for somebody else.
    let attack = Traffic::start(&lab.attacker, Plan { forwarded: FRAMED, ..Plan::new(ATTACKER.v4(), 50.0) });
    attack.wait_for_cut(attack.began, Duration::from_secs(20))?;
    drop(attack);
    settles(FRAMED, 200)?;

    let attempts = neighbour.stop()?;
    let refused: Vec<_> = attempts.iter().filter(|a| a.answer != Answer::Status(200)).collect();
    ensure!(refused.is_empty() && attempts.len() >= 5, "{} of {}: {refused:?}", refused.len(), attempts.len());
    let banned: Vec<_> = daemon.audited("ban", None)?.into_iter().map(|line| line["ip"].clone()).collect();
    ensure!(banned == [BEHIND, ATTACKER.v4], "{banned:?}");
    ensure!(!daemon.command(&["ban", proxy.v4])?.status.success(), "the proxy can be banned by hand");

    // Not said to be lifted where Nginx has not been reloaded for it, and reloaded for it all the same.
    let output = daemon.command(&["unban", BEHIND])?;
    let said = String::from_utf8_lossy(&output.stdout).into_owned();
    let served = lab.honest.ask(&through(BEHIND, 1.0))? == Answer::Status(200);
    ensure!(served || said.contains("has ended, but Nginx goes on refusing it"), "{output:?}");
    settles(BEHIND, 200)?;

    // A proxy that is trusted no longer is a client like any other, without a restart.
    daemon.reload(&config.with("", "trusted_proxies", "[]").text())?;
    daemon.wait_for_audit("config_reloaded", None, 1, Duration::from_secs(10))?;
    let output = daemon.command(&["ban", proxy.v4])?;
    ensure!(output.status.success(), "it is still exempt: {output:?}");
    Ok(())
}

/// A dry run bans nobody, behind a proxy neither, and ends what an earlier daemon has left there.
#[test]
fn a_dry_run_refuses_nobody_behind_a_proxy() -> Result<()> {
    let Some(lab) = lab("a_dry_run_refuses_nobody_behind_a_proxy")? else { return Ok(()) };
    std::fs::write(lab.deny_list(), format!("{FRAMED}/32 1;\n"))?;
    let config = Config::new(&lab, "dry")
        .with("enforcer", "backend", "\"dry-run\"")
        .with("nginx", "deny_map", format!("{:?}", lab.deny_list()))
        .with("nginx", "pid_file", format!("{:?}", lab.nginx_pid()));
    let mut daemon = daemon(&lab, config)?;
    ensure!(daemon.command(&["ban", BEHIND, "--for", "1h"])?.status.success());
    daemon.wait_for_audit("ban", Some(BEHIND), 1, Duration::from_secs(10))?;
    daemon.stop()?;
    let list = std::fs::read_to_string(lab.deny_list())?;
    ensure!(!list.contains(" 1;"), "{list}");
    Ok(())
}
