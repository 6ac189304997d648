//! Whoever is logged in is not banned, and a ban that holds them is lifted; whoever only has a connection to sshd is no
//! such client, and where nobody can tell the two apart, it is spared for minutes at most.

use std::net::{Ipv6Addr, SocketAddr, TcpListener, TcpStream};
use std::time::Duration;

use anyhow::{Context, Result, ensure};

use super::{daemon, lab};
use crate::lab::client::{Answer, Plan, Traffic};
use crate::lab::daemon::{Config, Daemon};
use crate::lab::nginx::Nginx;
use crate::lab::{ATTACKER, FRIEND, Host, Lab, SERVER, clock, run};

/// Replaces `/run` in the server's own mount namespace by one with these directories.
fn own_run(lab: &Lab, directories: &str) -> Result<()> {
    let script = format!("mount -t tmpfs tmpfs /run && mkdir -p /run/anomaly {directories}");
    run(lab.server.command("sh").args(["-c", &script])).map(drop)
}

/// Those of a host that systemd has booted.
const BOOTED: &str = "/run/systemd/system /run/systemd/sessions";

fn log_in(lab: &Lab, name: &str, from: &str) -> Result<()> {
    let text = format!("UID=0\\nREMOTE=1\\nSERVICE=sshd\\nSTATE=active\\nREMOTE_HOST={from}");
    let script = format!("printf '{text}\\n' > /run/systemd/sessions/{name}");
    run(lab.server.command("sh").args(["-c", &script])).map(drop)
}

fn is_banned(daemon: &Daemon<'_>, ip: &str) -> Result<(bool, String)> {
    let output = daemon.command(&["ban", ip, "--for", "1h"])?;
    Ok((output.status.success(), String::from_utf8_lossy(&output.stderr).into_owned()))
}

#[test]
fn whoever_logs_in_is_not_banned() -> Result<()> {
    let Some(lab) = lab("whoever_logs_in_is_not_banned")? else { return Ok(()) };
    let _nginx = Nginx::start(&lab)?;
    own_run(&lab, BOOTED)?;
    let daemon = daemon(&lab, Config::new(&lab, "main").with("bans", "durations", r#"["1h"]"#))?;
    let flood = |from| Traffic::start(&lab.attacker, Plan::new(from, 50.0));
    let banned = flood(ATTACKER.v4());
    banned.wait_for_cut(banned.began, Duration::from_secs(20))?;
    drop(banned);

    log_in(&lab, "1", ATTACKER.v4)?;
    log_in(&lab, "2", FRIEND.v4)?;
    clock::wait_until("both to be served", Duration::from_secs(20), || {
        [ATTACKER, FRIEND].iter().all(|host| lab.attacker.get(host.v4()).is_ok_and(|a| a == Answer::Status(200)))
    })?;
    clock::wait_until("the daemon to say so", Duration::from_secs(20), || {
        let said = daemon.output();
        said.contains(ATTACKER.v4) && said.contains(FRIEND.v4)
    })
    .with_context(|| daemon.output())?;
    let allowed = flood(FRIEND.v4());
    clock::wait_until("many requests", Duration::from_secs(30), || allowed.attempts().len() > 600)?;
    ensure!(allowed.stop()?.iter().all(|a| a.answer == Answer::Status(200)), "banned while logged in");
    ensure!(daemon.audited("ban", Some(FRIEND.v4))?.is_empty());

    // By hand neither, and the refusal names the one reason that applies.
    let (banned, said) = is_banned(&daemon, FRIEND.v4)?;
    ensure!(!banned && said.contains("it is where somebody is logged in from"), "{said}");
    ensure!(!said.contains("gateway") && !said.contains("SSH peer"), "{said}");
    let (banned, said) = is_banned(&daemon, "203.0.113.0/24")?;
    ensure!(!banned && said.contains("it holds 203.0.113.") && said.contains("logged in from"), "{said}");
    let (banned, said) = is_banned(&daemon, SERVER.v4)?;
    ensure!(!banned && said.contains("it is an address of this host"), "{said}");

    // And no longer than the session.
    run(lab.server.command("rm").arg("/run/systemd/sessions/2"))?;
    clock::wait_until("the session to have ended", Duration::from_secs(30), || {
        is_banned(&daemon, FRIEND.v4).is_ok_and(|(banned, _)| banned)
    })
    .with_context(|| daemon.output())?;
    ensure!(!is_banned(&daemon, ATTACKER.v4)?.0, "the other one is still logged in");
    Ok(())
}

/// What listens where sshd would, and connections to it over which nobody says anything.
fn silent_connections(lab: &Lab, host: Host) -> Result<(TcpListener, Vec<TcpStream>)> {
    let listener = lab.server.within(|| TcpListener::bind((Ipv6Addr::UNSPECIFIED, 22)))??;
    let open = |from: std::net::IpAddr, to: std::net::IpAddr| lab.attacker.open(from, SocketAddr::new(to, 22));
    let connections = vec![open(host.v4(), SERVER.v4())?, open(host.v6(), SERVER.v6())?];
    Ok((listener, connections))
}

/// Where sessions can be seen, a connection proves nothing: neither its client nor its /64 is exempt.
#[test]
fn a_silent_connection_to_port_22_exempts_nobody() -> Result<()> {
    let Some(lab) = lab("a_silent_connection_to_port_22_exempts_nobody")? else { return Ok(()) };
    let _nginx = Nginx::start(&lab)?;
    own_run(&lab, BOOTED)?;
    let _open = silent_connections(&lab, ATTACKER)?;
    let daemon = daemon(&lab, Config::new(&lab, "main").with("bans", "durations", r#"["1h"]"#))?;
    let network = "2001:db8:3::/64";
    ensure!(is_banned(&daemon, network)?.0, "the client's /64 cannot be banned by hand: {}", daemon.output());
    ensure!(daemon.command(&["unban", network])?.status.success());
    let flood = Traffic::start(&lab.attacker, Plan::new(ATTACKER.v4(), 50.0));
    flood.wait_for_cut(flood.began, Duration::from_secs(20)).with_context(|| daemon.output())?;
    Ok(())
}

/// In a container nobody can tell: the client is spared for as long as sshd waits for a login, but by the detector only.
#[test]
fn where_no_sessions_are_seen_sshds_peers_are_spared_for_minutes_and_never_from_an_operator() -> Result<()> {
    let test = "where_no_sessions_are_seen_sshds_peers_are_spared_for_minutes_and_never_from_an_operator";
    let Some(lab) = lab(test)? else { return Ok(()) };
    let _nginx = Nginx::start(&lab)?;
    own_run(&lab, "")?;
    // sshd waits for ten seconds, and we for fifteen more.
    let script = "mount -t tmpfs tmpfs /etc/ssh && echo LoginGraceTime 10 > /etc/ssh/sshd_config";
    run(lab.server.command("sh").args(["-c", script]))?;
    let _open = silent_connections(&lab, ATTACKER)?;
    let daemon = daemon(&lab, Config::new(&lab, "main").with("bans", "durations", r#"["1h"]"#))?;
    let said = daemon.output();
    ensure!(said.contains("connected to sshd: ") && said.contains(ATTACKER.v4), "{said}");
    // Its neighbours in the /64 are counted and banned by that, as ever.
    let network = "2001:db8:3::/64";
    ensure!(is_banned(&daemon, network)?.0, "the client's /64 cannot be banned by hand: {said}");
    ensure!(daemon.command(&["unban", network])?.status.success());

    let flood = Traffic::start(&lab.attacker, Plan::new(ATTACKER.v4(), 50.0));
    clock::wait_until("many requests", Duration::from_secs(20), || flood.attempts().len() > 250)?;
    ensure!(flood.first_cut().is_none(), "not spared: {}", daemon.output());
    flood.wait_for_cut(flood.began, Duration::from_secs(60)).with_context(|| daemon.output())?;
    ensure!(daemon.output().contains("no longer spared"), "{}", daemon.output());
    Ok(())
}
