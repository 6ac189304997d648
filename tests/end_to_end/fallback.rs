//! Where XDP cannot be used: iptables rules instead, said aloud, and nobody else's things touched.

use std::time::Duration;

use anomaly::enforce::xdp::OBJECT;
use anyhow::{Context, Result, ensure};
use aya::programs::{ProgramInfo, Xdp, XdpMode};

use super::{daemon, lab, wait_for_ban};
use crate::lab::client::{Answer, Plan, Traffic};
use crate::lab::daemon::{Config, Daemon, Start};
use crate::lab::nginx::Nginx;
use crate::lab::{ATTACKER, INTERFACE, Lab, clock, run};

/// Somebody else's program in the same mode is refused with EBUSY.
#[test]
fn a_foreign_native_program_is_left_alone() -> Result<()> {
    beside_a_foreign_program("a_foreign_native_program_is_left_alone", XdpMode::Driver, |host| host.v4())
}

/// Somebody else's program in the other mode is refused with EEXIST.
#[test]
fn a_foreign_generic_program_is_left_alone() -> Result<()> {
    beside_a_foreign_program("a_foreign_generic_program_is_left_alone", XdpMode::Skb, |host| host.v6())
}

fn beside_a_foreign_program(
    test: &str,
    mode: XdpMode,
    address: fn(&crate::lab::Host) -> std::net::IpAddr,
) -> Result<()> {
    let Some(lab) = lab(test)? else { return Ok(()) };
    let _nginx = Nginx::start(&lab)?;
    // Our own object, loaded as a stranger would: no pins of ours, maps that ban nobody.
    let mut foreign = aya::Ebpf::load(OBJECT)?;
    let program: &mut Xdp = foreign.program_mut("anomaly").context("the object's program")?.try_into()?;
    program.load()?;
    lab.server.within(|| program.attach(INTERFACE, mode))??;
    let id = program.info()?.id();
    cut_by_rules(&lab, address(&ATTACKER), daemon(&lab, Config::new(&lab, "foreign"))?)?;
    ensure!(
        attached(&lab)?.contains(&format!("prog/xdp id {id} ")),
        "the foreign program is gone: {}",
        attached(&lab)?
    );
    ensure!(aya::programs::loaded_programs().any(|p| p.is_ok_and(|p: ProgramInfo| p.id() == id)));
    Ok(())
}

fn attached(lab: &Lab) -> Result<String> {
    lab.server.ip(&format!("-details link show {INTERFACE}"))
}

/// Without CAP_BPF (and the capabilities that contain it) no program can be loaded.
#[test]
fn missing_capabilities_lead_to_iptables() -> Result<()> {
    let Some(lab) = lab("missing_capabilities_lead_to_iptables")? else { return Ok(()) };
    let _nginx = Nginx::start(&lab)?;
    let without = ["setpriv", "--bounding-set", "-bpf,-perfmon,-sys_admin", "--inh-caps", "-bpf,-perfmon,-sys_admin"];
    let start = Start { through: without.map(Into::into).into(), ..Start::default() };
    let mut daemon = Daemon::launch(&lab, super::binary(), Config::new(&lab, "caps"), &start)?;
    daemon.wait_ready()?;
    let reason = fallback(&daemon)?;
    ensure!(reason.contains("CAP_BPF"), "the missing capability is not named: {reason}");
    cut_by_rules(&lab, ATTACKER.v4(), daemon)
}

/// The reason that is audited for stepping down.
fn fallback(daemon: &Daemon<'_>) -> Result<String> {
    let lines = daemon.wait_for_audit("fallback", None, 1, Duration::from_secs(20))?;
    let last = lines.last().context("no fallback")?;
    Ok(last.to_string())
}

/// The whole life of a rule: an attacker is cut by it; unbanning removes it, and no other.
fn cut_by_rules(lab: &Lab, attacker: std::net::IpAddr, daemon: Daemon<'_>) -> Result<()> {
    let (tables, stranger) =
        if attacker.is_ipv4() { ("iptables", "203.0.113.200/32") } else { ("ip6tables", "2001:db8:77::1/128") };
    let list = || run(lab.server.command(tables).args(["-w", "-S", "INPUT"]));
    run(lab.server.command(tables).args(["-w", "-A", "INPUT", "-s", stranger, "-j", "DROP"]))?;
    let status = daemon.status()?;
    ensure!(status["enforcer"] == "iptables" && status["xdp_mode"].is_null(), "{status}");
    ensure!(status["degraded"].as_array().is_some_and(|all| all.iter().any(|d| d["what"] == "fallback")), "{status}");
    let reason = fallback(&daemon)?;
    ensure!(reason.contains(INTERFACE) || reason.contains("CAP_"), "the reason helps nobody: {reason}");

    let flood = Traffic::start(&lab.attacker, Plan::new(attacker, 50.0));
    flood.wait_for_cut(flood.began, Duration::from_secs(20))?;
    let banned = if attacker.is_ipv4() { attacker.to_string() } else { "2001:db8:3::/64".into() };
    let rule = if attacker.is_ipv4() { format!("-s {banned}/32 ") } else { format!("-s {banned} ") };
    let row = wait_for_ban(&daemon, &banned, 1, Duration::from_secs(20))?;
    ensure!(row["enforcer"] == "iptables", "{row}");
    let listed = list()?;
    let ours: Vec<&str> = listed.lines().filter(|line| line.contains(&rule)).collect();
    ensure!(ours.len() == 1 && ours[0].ends_with("-j DROP") && ours[0].contains("anomaly"), "{listed}");
    drop(flood);

    let output = daemon.command(&["unban", &attacker.to_string()])?;
    ensure!(output.status.success(), "{output:?}");
    clock::wait_until("the rule to be removed", Duration::from_secs(10), || list().is_ok_and(|l| !l.contains(&rule)))?;
    ensure!(lab.attacker.get(attacker)? == Answer::Status(200), "not served after its unban");
    ensure!(list()?.contains(&format!("-s {stranger} -j DROP")), "somebody else's rule was touched: {}", list()?);
    Ok(())
}
