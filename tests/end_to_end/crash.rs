//! kill -9, restarts, and instances side by side.

use std::net::IpAddr;
use std::os::unix::fs::PermissionsExt;
use std::time::Duration;

use anomaly::store::{BanState, Reader};
use anyhow::{Result, ensure};

use super::{binary, daemon, lab, wait_for_ban};
use crate::lab::client::{Answer, Plan, Traffic};
use crate::lab::daemon::{Config, Daemon, Start};
use crate::lab::nginx::Nginx;
use crate::lab::sink::Sink;
use crate::lab::{ATTACKER, Lab, clock, run};

#[test]
fn bans_hold_through_kill_and_restart() -> Result<()> {
    let Some(lab) = lab("bans_hold_through_kill_and_restart")? else { return Ok(()) };
    let _nginx = Nginx::start(&lab)?;
    let slack = Sink::start(&lab.server)?;
    let config = Config::new(&lab, "crash").with("bans", "durations", r#"["120s", "240s", "permanent"]"#).with(
        "notify.slack",
        "webhook_url",
        format!("{:?}", slack.url()),
    );
    let mut daemon = daemon(&lab, config)?;
    let flood = Traffic::start(&lab.attacker, Plan::new(ATTACKER.v4(), 50.0));
    flood.wait_for_cut(flood.began, Duration::from_secs(20))?;
    let before = wait_for_ban(&daemon, ATTACKER.v4, 1, Duration::from_secs(20))?;
    daemon.wait_for_audit("ban", Some(ATTACKER.v4), 1, Duration::from_secs(20))?;
    let notices = || slack.bodies().iter().filter(|body| body.contains(ATTACKER.v4)).count();
    clock::wait_until("the notice", Duration::from_secs(10), || notices() == 1)
        .map_err(|e| e.context(format!("{:?} {}", slack.bodies(), daemon.output())))?;
    let since = clock::now();
    for _ in 0..3 {
        daemon.kill();
        flood.wait_for_cut(clock::now(), Duration::from_secs(10))?;
        daemon.restart()?;
    }
    let after = wait_for_ban(&daemon, ATTACKER.v4, 1, Duration::from_secs(20))?;
    ensure!(after["until"] == before["until"] && after["since"] == before["since"], "{before} became {after}");
    flood.wait_for_cut(clock::now(), Duration::from_secs(10))?;
    let attempts = flood.stop()?;
    let through: Vec<_> = attempts.iter().filter(|a| a.began > since && a.answer != Answer::NoConnection).collect();
    ensure!(through.is_empty(), "{} got through: {through:?}", through.len());
    let told = daemon.audited("ban", Some(ATTACKER.v4))?;
    ensure!(told.len() == 1, "told more than once: {told:?}");
    ensure!(notices() == 1, "more than one notice: {:?}", slack.bodies());
    ensure!(daemon.audited("started", None)?.len() == 4, "{:?}", daemon.audit()?);

    let output = daemon.command(&["unban", ATTACKER.v4])?;
    ensure!(output.status.success(), "{output:?}");
    ensure!(lab.attacker.get(ATTACKER.v4())? == Answer::Status(200), "not served after its unban");
    Ok(())
}

/// The ban ran out while nobody watched, by log and store; its offence counts all the same.
#[test]
fn offences_survive_kill_and_restart() -> Result<()> {
    let Some(lab) = lab("offences_survive_kill_and_restart")? else { return Ok(()) };
    let _nginx = Nginx::start(&lab)?;
    let mut daemon = daemon(&lab, Config::new(&lab, "offence").with("bans", "durations", r#"["3s", "60s"]"#))?;
    let flood = Traffic::start(&lab.attacker, Plan::new(ATTACKER.v4(), 50.0));
    wait_for_ban(&daemon, ATTACKER.v4, 1, Duration::from_secs(20))?;
    daemon.kill();
    drop(flood);
    // The kernel keeps the end of a ban without any daemon.
    clock::wait_until("the ban to end in the kernel", Duration::from_secs(10), || {
        lab.attacker.get(ATTACKER.v4()).is_ok_and(|answer| answer == Answer::Status(200))
    })?;
    daemon.restart()?;
    daemon.wait_for_audit("unban", Some(ATTACKER.v4), 1, Duration::from_secs(20))?;
    let flood = Traffic::start(&lab.attacker, Plan::new(ATTACKER.v4(), 50.0));
    let row = wait_for_ban(&daemon, ATTACKER.v4, 2, Duration::from_secs(20))?;
    ensure!(row["duration_secs"] == 60, "{row}");
    drop(flood);
    Ok(())
}

#[test]
fn no_rule_is_orphaned_by_a_crash() -> Result<()> {
    let Some(lab) = lab("no_rule_is_orphaned_by_a_crash")? else { return Ok(()) };
    let _nginx = Nginx::start(&lab)?;
    let config = Config::new(&lab, "rules").with("enforcer", "backend", "\"iptables\"").with(
        "bans",
        "durations",
        r#"["5s", "60s"]"#,
    );
    let mut daemon = daemon(&lab, config)?;
    let flood = Traffic::start(&lab.attacker, Plan::new(ATTACKER.v4(), 50.0));
    flood.wait_for_cut(flood.began, Duration::from_secs(20))?;
    ensure!(daemon.command(&["ban", "203.0.113.200", "--for", "1h"])?.status.success());
    daemon.kill();
    drop(flood);
    ensure!(rules(&lab, "203.0.113.66/32")? == 1, "the ban's rule outlives the daemon");
    std::thread::sleep(Duration::from_secs(5));
    daemon.restart()?;
    clock::wait_until("the orphan to be removed", Duration::from_secs(20), || {
        rules(&lab, "203.0.113.66/32").is_ok_and(|n| n == 0)
    })?;
    ensure!(rules(&lab, "203.0.113.200/32")? == 1, "a ban that lasts has its rule, once");
    ensure!(daemon.audited("ban", Some("203.0.113.200"))?.len() == 1, "{:?}", daemon.audit()?);
    Ok(())
}

/// Killed when the end of a ban is in the database and not yet in the audit log, it is told by the next start, once.
#[test]
fn an_unban_is_told_although_a_crash_came_before_its_line() -> Result<()> {
    let Some(lab) = lab("an_unban_is_told_although_a_crash_came_before_its_line")? else { return Ok(()) };
    lab.write_log("")?;
    // Taking a rule away takes as long as this file is there: that is between the two.
    let (hold, programs) = (lab.dir().join("hold"), lab.dir().join("programs"));
    std::fs::create_dir(&programs)?;
    let real = run(std::process::Command::new("sh").args(["-c", "command -v iptables"]))?;
    let script = format!(
        "#!/bin/sh\ncase \"$*\" in *'-D '*) for i in $(seq 200); do test -e {} || break; sleep 0.05; done ;; esac\nexec {} \"$@\"\n",
        hold.display(),
        real.trim()
    );
    std::fs::write(programs.join("iptables"), script)?;
    std::fs::set_permissions(programs.join("iptables"), PermissionsExt::from_mode(0o755))?;
    let path = format!("PATH={}:{}", programs.display(), std::env::var("PATH")?);
    let slow = Start { through: vec!["env".into(), path], ..Start::default() };
    let config = Config::new(&lab, "between").with("enforcer", "backend", "\"iptables\"");
    let mut daemon = Daemon::launch(&lab, binary(), config, &slow)?;
    daemon.wait_ready()?;
    std::fs::write(&hold, "")?;
    const IP: &str = "203.0.113.200";
    ensure!(daemon.command(&["ban", IP, "--for", "1s"])?.status.success());
    let mut store = Reader::open(&lab.dir().join("between.db"))?;
    let mut state = || {
        store
            .explain(&IP.parse::<IpAddr>()?.into(), 1)
            .map(|bans| bans.first().map(|b| b.state))
            .map_err(anyhow::Error::from)
    };
    let expired = clock::wait_until("the end of the ban to be on record", Duration::from_secs(10), || {
        state().is_ok_and(|state| state == Some(BanState::Expired))
    });
    daemon.kill();
    std::fs::remove_file(&hold)?;
    expired?;
    ensure!(
        daemon.audited("unban", Some(IP))?.is_empty(),
        "it was told too early for this test: {:?}",
        daemon.audit()?
    );
    for _ in 0..2 {
        daemon.restart()?;
        let told = daemon.wait_for_audit("unban", Some(IP), 1, Duration::from_secs(20))?;
        ensure!(told.len() == 1 && told[0]["ok"] == true && told[0]["offence"] == 1, "{told:?}");
        ensure!(rules(&lab, "203.0.113.200/32")? == 0, "the rule stays");
        daemon.stop()?;
    }
    Ok(())
}

/// Rules of INPUT that name this source.
fn rules(lab: &Lab, source: &str) -> Result<usize> {
    let listed = run(lab.server.command("iptables").args(["-w", "-S", "INPUT"]))?;
    Ok(listed.lines().filter(|line| line.contains(source)).count())
}

/// One bpffs, two network namespaces, two pin directories.
#[test]
fn two_instances_do_not_disturb_one_another() -> Result<()> {
    let Some(lab) = lab("two_instances_do_not_disturb_one_another")? else { return Ok(()) };
    let _nginx = Nginx::start(&lab)?;
    let one = daemon(&lab, Config::new(&lab, "one"))?;
    let elsewhere = Start { space: Some(&lab.honest), ..Start::default() };
    let mut two = Daemon::launch(&lab, binary(), Config::new(&lab, "two"), &elsewhere)?;
    two.wait_ready()?;
    ensure!(one.command(&["ban", ATTACKER.v4, "--for", "1h"])?.status.success());
    ensure!(two.command(&["ban", "203.0.113.200", "--for", "1h"])?.status.success());
    wait_for_ban(&one, ATTACKER.v4, 1, Duration::from_secs(20))?;
    wait_for_ban(&two, "203.0.113.200", 1, Duration::from_secs(20))?;
    ensure!(one.ban_of("203.0.113.200")?.is_none() && two.ban_of(ATTACKER.v4)?.is_none(), "they share bans");
    ensure!(lab.attacker.get(ATTACKER.v4())? == Answer::NoConnection, "the ban is not enforced");
    two.stop()?;
    let down = two.command(&["down"])?;
    ensure!(down.status.success(), "{down:?}");
    ensure!(!lab_has(&lab, "two")? && lab_has(&lab, "one")?, "down removed the wrong pins");
    ensure!(lab.attacker.get(ATTACKER.v4())? == Answer::NoConnection, "the other's end lifted the ban");
    ensure!(one.status()?["enforcement_ratio"] == 1.0, "{}", one.status()?);
    Ok(())
}

/// Whether a pin directory exists, seen from where bpffs is mounted.
fn lab_has(lab: &Lab, pins: &str) -> Result<bool> {
    Ok(lab.server.command("test").arg("-e").arg(lab.bpffs().join(pins)).status()?.success())
}

#[test]
fn a_second_instance_on_the_same_pins_is_refused() -> Result<()> {
    let Some(lab) = lab("a_second_instance_on_the_same_pins_is_refused")? else { return Ok(()) };
    let _nginx = Nginx::start(&lab)?;
    let first = daemon(&lab, Config::new(&lab, "first"))?;
    ensure!(first.command(&["ban", ATTACKER.v4, "--for", "1h"])?.status.success());
    let config = Config::new(&lab, "second")
        .with("enforcer", "pin_dir", format!("{:?}", lab.bpffs().join("first")))
        .with("dashboard", "listen", "\"127.0.0.1:8082\"");
    let mut second = Daemon::launch(&lab, binary(), config, &Start::default())?;
    let status = second.wait(Duration::from_secs(15))?;
    ensure!(status.code() == Some(1), "{status}: {}", second.output());
    ensure!(second.output().contains("in use") && second.output().contains("pin_dir"), "{}", second.output());
    ensure!(lab.attacker.get(ATTACKER.v4())? == Answer::NoConnection, "the first one's ban was disturbed");
    ensure!(first.status()?["enforcement_ratio"] == 1.0, "{}", first.status()?);
    Ok(())
}
