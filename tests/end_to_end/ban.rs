//! The main job, by IPv4 and IPv6: cut off in XDP, forgiven, caught again; nobody else harmed.

use std::time::Duration;

use anyhow::{Result, ensure};

use super::{daemon, lab, seconds_to_cut, wait_for_ban};
use crate::lab::client::{Answer, Plan, Traffic};
use crate::lab::daemon::Config;
use crate::lab::nginx::Nginx;
use crate::lab::{ATTACKER, FRIEND, HONEST, clock};

#[test]
fn a_flood_is_dropped_in_xdp_and_forgiven() -> Result<()> {
    story("a_flood_is_dropped_in_xdp_and_forgiven", "203.0.113.66", |host| host.v4())
}

/// Automatic IPv6 bans take the whole /64.
#[test]
fn a_flood_over_ipv6_is_dropped_in_xdp_and_forgiven() -> Result<()> {
    story("a_flood_over_ipv6_is_dropped_in_xdp_and_forgiven", "2001:db8:3::/64", |host| host.v6())
}

fn story(test: &str, banned: &str, address: fn(&crate::lab::Host) -> std::net::IpAddr) -> Result<()> {
    let Some(lab) = lab(test)? else { return Ok(()) };
    let _nginx = Nginx::start(&lab)?;
    let friend = address(&FRIEND);
    let config = Config::new(&lab, "main").with("", "allowlist", format!("[\"{friend}\"]"));
    let daemon = daemon(&lab, config)?;
    let status = daemon.status()?;
    ensure!(status["enforcer"] == "xdp" && status["xdp_mode"] == "native", "{status}");

    let honest = Traffic::start(&lab.honest, Plan::new(address(&HONEST), 1.0));
    let allowed = Traffic::start(&lab.attacker, Plan::new(friend, 50.0));
    let attacker = Plan::new(address(&ATTACKER), 50.0);
    let flood = Traffic::start(&lab.attacker, attacker);
    flood.wait_for_cut(flood.began, Duration::from_secs(20))?;
    let seconds = seconds_to_cut(&flood);
    ensure!(seconds <= 5.0, "dropped only {seconds:.1} s after its first request");
    ensure!(flood.attempts().iter().any(|a| a.answer == Answer::Status(200)), "it was served before its ban");
    let row = wait_for_ban(&daemon, banned, 1, Duration::from_secs(20))?;
    ensure!(row["enforcer"] == "xdp" && row["duration_secs"] == 15 && row["origin"] == "detector", "{row}");
    let said = lab.attacker.curl(address(&ATTACKER), Duration::from_secs(1))?;
    ensure!(said.as_ref().is_err_and(|words| words.contains("timed out") || words.contains("timeout")), "{said:?}");
    clock::wait_until("dropped packets to be counted", Duration::from_secs(20), || {
        daemon.ban_of(banned).is_ok_and(|row| row.is_some_and(|row| row["packets"].as_u64() > Some(0)))
    })?;
    ensure!(daemon.snapshots().contains(banned.trim_end_matches("/64")), "no proof of the ban: {}", daemon.snapshots());
    drop(flood);

    let unbans = daemon.wait_for_audit("unban", Some(banned), 1, Duration::from_secs(30))?;
    ensure!(unbans[0]["ok"] == true, "{unbans:?}");
    // The attempts that timed out, as the kernel counted them until the end.
    let (packets, bytes) = (unbans[0]["packets"].as_u64(), unbans[0]["bytes"].as_u64());
    ensure!(packets >= Some(3) && bytes >= packets.map(|packets| 40 * packets), "the last count was lost: {unbans:?}");
    let explained = daemon.json(&["explain", banned])?;
    let past = &explained["bans"][0];
    ensure!(past["packets"].as_u64() == packets && past["bytes"].as_u64() == bytes, "{explained} for {unbans:?}");
    ensure!(lab.attacker.get(address(&ATTACKER))? == Answer::Status(200), "not served again after its ban");

    let flood = Traffic::start(&lab.attacker, attacker);
    flood.wait_for_cut(flood.began, Duration::from_secs(20))?;
    let row = wait_for_ban(&daemon, banned, 2, Duration::from_secs(20))?;
    ensure!(row["duration_secs"] == 30, "the second offence has the second duration: {row}");
    drop(flood);

    for (who, traffic) in [("honest client", honest), ("allow-listed client", allowed)] {
        let attempts = traffic.stop()?;
        let refused: Vec<_> = attempts.iter().filter(|a| a.answer != Answer::Status(200)).collect();
        ensure!(
            refused.is_empty() && attempts.len() >= 5,
            "{who}: {} of {}: {refused:?}",
            refused.len(),
            attempts.len()
        );
    }
    let banned_ones: Vec<_> = daemon.audited("ban", None)?.into_iter().filter(|line| line["ip"] != banned).collect();
    ensure!(banned_ones.is_empty(), "somebody else was banned: {banned_ones:?}");
    Ok(())
}
