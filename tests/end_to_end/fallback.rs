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

/// What a foreign rule does that iptables does not understand: `iptables -S` shows nothing any more, and ends well.
#[test]
fn a_foreign_rule_in_our_table_neither_hides_ours_nor_multiplies_them() -> Result<()> {
    let Some(lab) = lab("a_foreign_rule_in_our_table_neither_hides_ours_nor_multiplies_them")? else { return Ok(()) };
    if lab.server.command("nft").arg("--version").output().is_err() {
        crate::lab::skip("a_foreign_rule_in_our_table_neither_hides_ours_nor_multiplies_them", "nft is not installed");
        return Ok(());
    }
    let _nginx = Nginx::start(&lab)?;
    let mut daemon = daemon(&lab, Config::new(&lab, "foreign").with("enforcer", "backend", "\"iptables\""))?;
    let nft = |words: &str| run(lab.server.command("nft").args(words.split(' ')));
    let drops = || -> Result<usize> {
        Ok(nft("list chain ip filter INPUT")?.lines().filter(|line| line.trim().ends_with("drop")).count())
    };
    let says = |words: &[&str]| -> Result<(Option<i32>, String)> {
        let output = daemon.command(words)?;
        let said = [output.stdout, output.stderr].concat();
        Ok((output.status.code(), String::from_utf8_lossy(&said).into_owned()))
    };
    for n in 1..=20 {
        ensure!(says(&["ban", &format!("203.0.113.{n}")])?.0 == Some(0));
    }
    ensure!(says(&["ban", "203.0.113.40", "--for", "12s"])?.0 == Some(0));
    ensure!(says(&["ban", ATTACKER.v4, "--for", "1h"])?.0 == Some(0));
    nft("add rule ip filter INPUT ct state established,related accept")?;
    nft("insert rule ip filter INPUT ct state established,related accept")?;
    daemon.wait_for_audit("degraded", None, 1, Duration::from_secs(20))?;
    shows_fault(&daemon, "incompatible")?;
    let (code, said) = says(&["doctor"])?;
    ensure!(said.contains("iptables cannot show its rules"), "{code:?}: {said}");
    ensure!(lab.attacker.get(ATTACKER.v4())? == Answer::NoConnection, "the ban is not enforced");

    // A timed ban ends, and nothing is repaired over and over meanwhile.
    let ended = daemon.wait_for_audit("unban", Some("203.0.113.40"), 1, Duration::from_secs(30))?;
    ensure!(ended[0]["ok"] == true, "{ended:?}");
    ensure!(drops()? == 21 && daemon.audited("repaired", None)?.is_empty(), "{}", nft("list chain ip filter INPUT")?);
    let (code, said) = says(&["unban", ATTACKER.v4])?;
    ensure!(code == Some(0) && drops()? == 20, "{code:?}: {said}");
    ensure!(lab.attacker.get(ATTACKER.v4())? == Answer::Status(200), "not served after its unban");
    let lifted = daemon.audited("unban", Some(ATTACKER.v4))?;
    ensure!(lifted[0]["packets"].as_u64() > Some(0), "the rule's last count was lost: {lifted:?}");

    // Who may not look says so, and does not claim that nothing is dropped.
    let config = lab.dir().join("foreign.toml");
    let mut powerless = lab.server.command("setpriv");
    powerless.args([
        "--bounding-set",
        "-net_admin,-net_raw,-sys_admin",
        "--inh-caps",
        "-net_admin,-net_raw,-sys_admin",
    ]);
    powerless.arg(super::binary()).arg("-c").arg(&config);
    let output = powerless.arg("down").output()?;
    let said = String::from_utf8_lossy(&output.stderr).into_owned();
    ensure!(output.status.code() == Some(1) && said.contains("STILL"), "{output:?}");
    ensure!(!String::from_utf8_lossy(&output.stdout).contains("nothing of anomaly"), "{output:?}");

    let (code, said) = says(&["off"])?;
    ensure!(code == Some(0) && said.contains("20 iptables rules removed"), "{code:?}: {said}");
    ensure!(drops()? == 0, "{}", nft("list chain ip filter INPUT")?);
    ensure!(nft("list chain ip filter INPUT")?.matches("ct state").count() == 2, "a stranger's rule is gone");
    ensure!(daemon.stop()?.success());
    let output = daemon.command(&["down"])?;
    ensure!(output.status.success(), "{output:?}");
    Ok(())
}

/// Waits for a fault of the enforcer in `status` with these words; what it shows is up to a second old.
fn shows_fault(daemon: &Daemon<'_>, words: &str) -> Result<()> {
    clock::wait_until(&format!("a fault with {words:?}"), Duration::from_secs(20), || {
        let status = daemon.status().unwrap_or_default();
        let mut rows = status["degraded"].as_array().into_iter().flatten();
        rows.any(|row| row["what"] == "enforcement" && row.to_string().contains(words))
    })
}

/// A table that nobody can read: `iptables-save` says so, and ends well.
#[test]
fn what_cannot_be_seen_to_be_lifted_is_not_said_to_be() -> Result<()> {
    let Some(lab) = lab("what_cannot_be_seen_to_be_lifted_is_not_said_to_be")? else { return Ok(()) };
    let _nginx = Nginx::start(&lab)?;
    let (programs, broken) = (lab.dir().join("programs"), lab.dir().join("broken"));
    std::fs::create_dir(&programs)?;
    for name in ["iptables", "iptables-restore", "iptables-save", "ip6tables", "ip6tables-restore", "ip6tables-save"] {
        let blind = format!("[ -e {} ] && {{ echo '# incompatible, use nft'; exit 0; }}\n", broken.display());
        let blind = if name == "iptables-save" { blind.as_str() } else { "" };
        let text = format!("#!/bin/sh\n{blind}exec xtables-legacy-multi {name} \"$@\"\n");
        std::fs::write(programs.join(name), text)?;
        run(lab.server.command("chmod").arg("755").arg(programs.join(name)))?;
    }
    let path = format!("PATH={}:{}", programs.display(), std::env::var("PATH")?);
    let start = Start { through: vec!["env".into(), path], ..Start::default() };
    let config = Config::new(&lab, "blind").with("enforcer", "backend", "\"iptables\"");
    let mut daemon = Daemon::launch(&lab, super::binary(), config, &start)?;
    daemon.wait_ready()?;
    let legacy = || run(lab.server.command("xtables-legacy-multi").args(["iptables", "-S", "INPUT"]));
    ensure!(daemon.command(&["ban", ATTACKER.v4, "--for", "1h"])?.status.success());
    ensure!(legacy()?.contains(ATTACKER.v4), "{}", legacy()?);
    std::fs::write(&broken, "")?;
    let output = daemon.command(&["unban", ATTACKER.v4])?;
    let said = String::from_utf8_lossy(&output.stderr).into_owned();
    ensure!(output.status.code() == Some(1) && said.contains("STILL") && said.contains("incompatible"), "{output:?}");
    let unbans = daemon.audited("unban", Some(ATTACKER.v4))?;
    ensure!(unbans.len() == 1 && unbans[0]["ok"] == false, "{unbans:?}");
    shows_fault(&daemon, ATTACKER.v4)?;
    // It is tried again, and seen to be gone, once somebody can see.
    std::fs::remove_file(&broken)?;
    clock::wait_until("the rule to be removed", Duration::from_secs(90), || {
        legacy().is_ok_and(|rules| !rules.contains(ATTACKER.v4))
    })?;
    clock::wait_until("the fault to be over", Duration::from_secs(90), || {
        daemon
            .status()
            .is_ok_and(|s| s["degraded"].as_array().is_some_and(|all| all.iter().all(|d| d["what"] != "enforcement")))
    })
}
