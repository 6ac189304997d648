//! A dependency of the running daemon fails: bans go on, the fault is reported, and the daemon recovers.

use std::fs::{self, File};
use std::io::{Seek, SeekFrom, Write};
use std::os::unix::fs::PermissionsExt;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use rusqlite::Connection;

use super::operate::http;
use super::{daemon, lab, wait_for_ban};
use crate::lab::client::{Answer, Plan, Traffic};
use crate::lab::daemon::{Config, Daemon, Start};
use crate::lab::nginx::Nginx;
use crate::lab::{ATTACKER, FRIEND, INTERFACE, Lab, clock, run};

/// The words in `status`'s `degraded`.
fn degraded(daemon: &Daemon<'_>) -> Vec<String> {
    let status = daemon.status().unwrap_or_default();
    let rows = status["degraded"].as_array().cloned().unwrap_or_default();
    rows.iter().filter_map(|row| Some(row["what"].as_str()?.to_owned())).collect()
}

fn wait_for_word(daemon: &Daemon<'_>, word: &str, there: bool) -> Result<()> {
    let what = format!("{word} to be {} what is degraded", if there { "in" } else { "out of" });
    clock::wait_until(&what, Duration::from_secs(20), || degraded(daemon).iter().any(|w| w == word) == there)
        .map_err(|e| e.context(format!("{:?}: {}", degraded(daemon), daemon.output())))
}

/// Waits for `/healthz` to answer so, with this in its text.
pub(super) fn wait_for_health(lab: &Lab, daemon: &Daemon<'_>, status: u16, text: &str) -> Result<()> {
    let ask = || http(lab, "GET", "/healthz", None, "");
    clock::wait_until(&format!("health to be {status} {text:?}"), Duration::from_secs(70), || {
        ask().is_ok_and(|(code, said)| code == status && said.contains(text))
    })
    .map_err(|e| e.context(format!("{:?}: {}", ask(), daemon.output())))?;
    // The command line says the same, and fails where it is asked to.
    let (checked, shown) = (daemon.command(&["status", "--check"])?, daemon.command(&["status"])?);
    ensure!(checked.status.success() == (status == 200) && shown.status.success(), "{checked:?} {shown:?}");
    let said = String::from_utf8_lossy(&checked.stdout).into_owned();
    ensure!(said.contains("! unhealthy: ") == (status != 200), "{said}");
    Ok(())
}

fn is_served(lab: &Lab) -> Result<bool> {
    Ok(lab.attacker.get(FRIEND.v4())? == Answer::Status(200))
}

/// The attacker floods and is cut off.
fn flood_is_cut(lab: &Lab, daemon: &Daemon<'_>) -> Result<()> {
    let flood = Traffic::start(&lab.attacker, Plan::new(ATTACKER.v4(), 50.0));
    flood.wait_for_cut(flood.began, Duration::from_secs(20)).map_err(|e| e.context(daemon.output()))?;
    wait_for_ban(daemon, ATTACKER.v4, 1, Duration::from_secs(20))?;
    ensure!(is_served(lab)?, "somebody else is cut off as well");
    Ok(())
}

#[test]
fn a_damaged_database_is_moved_aside_and_said_loudly() -> Result<()> {
    let Some(lab) = lab("a_damaged_database_is_moved_aside_and_said_loudly")? else { return Ok(()) };
    let mut daemon = daemon(&lab, Config::new(&lab, "damaged").with("enforcer", "backend", "\"dry-run\""))?;
    ensure!(daemon.command(&["ban", "203.0.113.200", "--for", "1h"])?.status.success());
    daemon.stop()?;
    let path = lab.dir().join("damaged.db");
    let mut file = File::options().write(true).open(&path)?;
    let pages = file.metadata()?.len() / 4096;
    for page in 1..pages {
        file.seek(SeekFrom::Start(page * 4096))?;
        file.write_all(&[0xa5; 4096])?;
    }
    drop(file);
    daemon.restart()?;
    wait_for_word(&daemon, "store_damaged", true)?;
    let said = daemon.output();
    ensure!(said.contains("was damaged") && said.contains("ERROR"), "{said}");
    let kept = fs::read_dir(lab.dir())?.flatten().map(|e| e.file_name().to_string_lossy().into_owned());
    ensure!(kept.into_iter().any(|name| name.starts_with("damaged.db.damaged-")), "the old file is gone");
    // And it serves: what is banned now is there after a restart.
    ensure!(daemon.command(&["ban", "203.0.113.201", "--for", "1h"])?.status.success());
    daemon.kill();
    daemon.restart()?;
    wait_for_ban(&daemon, "203.0.113.201", 1, Duration::from_secs(20))?;
    wait_for_word(&daemon, "store_damaged", false)?;
    Ok(())
}

/// Another program has the dashboard's port when the daemon starts, and still when it stops.
#[test]
fn a_port_that_is_taken_is_said_and_tried_again_until_it_is_free() -> Result<()> {
    let Some(lab) = lab("a_port_that_is_taken_is_said_and_tried_again_until_it_is_free")? else { return Ok(()) };
    let take = || lab.server.within(|| std::net::TcpListener::bind("127.0.0.1:8081"));
    let taken = take()??;
    let mut daemon = daemon(&lab, Config::new(&lab, "main").with("enforcer", "backend", "\"dry-run\""))?;
    let dashboard = |daemon: &Daemon<'_>| -> Result<(String, String)> {
        let rows: serde_json::Value = serde_json::from_slice(&daemon.command(&["doctor", "--json"])?.stdout)?;
        let row = rows.as_array().and_then(|rows| rows.iter().find(|row| row["check"] == "dashboard")).cloned();
        let row = row.context("doctor says nothing of the dashboard")?;
        Ok((row["status"].to_string(), row["detail"].to_string()))
    };
    wait_for_word(&daemon, "dashboard", true)?;
    let (status, detail) = dashboard(&daemon)?;
    ensure!(status == "\"fail\"" && detail.contains("another program"), "{status} {detail}");
    daemon.wait_for_audit("degraded", None, 1, Duration::from_secs(10))?;
    ensure!(daemon.command(&["ban", "203.0.113.200", "--for", "1h"])?.status.success(), "the socket serves");

    drop(taken);
    wait_for_word(&daemon, "dashboard", false)?;
    wait_for_health(&lab, &daemon, 200, "ok")?;
    let (status, detail) = dashboard(&daemon)?;
    ensure!(status == "\"ok\"" && detail.contains("answers"), "{status} {detail}");
    ensure!(daemon.stop()?.success(), "{}", daemon.output());

    let _taken = take()??;
    daemon.restart()?;
    wait_for_word(&daemon, "dashboard", true)?;
    let status = daemon.stop()?;
    let said = daemon.output();
    ensure!(status.success() && !said.contains("panicked"), "{status}: {said}");
    ensure!(!lab.dir().join("main.sock").exists(), "the socket stays behind");
    Ok(())
}

/// Slack does not answer, the audit log's disk is full, and somebody locks the database.
#[test]
fn bans_need_neither_slack_nor_audit_log_nor_database() -> Result<()> {
    let Some(lab) = lab("bans_need_neither_slack_nor_audit_log_nor_database")? else { return Ok(()) };
    let _nginx = Nginx::start(&lab)?;
    let disk = lab.dir().join("disk");
    fs::create_dir(&disk)?;
    run(lab.server.command("mount").args(["-t", "tmpfs", "-o", "size=64k", "anomaly-lab"]).arg(&disk))?;
    let config = Config::new(&lab, "alone")
        .with("bans", "durations", r#"["1h"]"#)
        .with("audit", "path", format!("{:?}", disk.join("audit.jsonl")))
        .with("notify.slack", "webhook_url", r#""http://127.0.0.1:9/""#);
    let mut daemon = daemon(&lab, config)?;
    // All but what is there already.
    let fill =
        lab.server.command("dd").arg("if=/dev/zero").arg(format!("of={}", disk.join("full").display())).output()?;
    ensure!(!fill.status.success(), "the disk is not full");
    let database = Connection::open(lab.dir().join("alone.db"))?;
    database.execute_batch("BEGIN EXCLUSIVE")?;

    flood_is_cut(&lab, &daemon)?;
    // The audit log's last page on the disk still has room for some lines.
    for n in 0..16 {
        ensure!(daemon.command(&["ban", &format!("198.18.0.{n}"), "--for", "1h"])?.status.success());
    }
    wait_for_word(&daemon, "store", true)?;
    wait_for_word(&daemon, "audit", true)?;
    wait_for_word(&daemon, "slack", true)?;

    database.execute_batch("ROLLBACK")?;
    drop(database);
    run(lab.server.command("rm").arg(disk.join("full")))?;
    wait_for_word(&daemon, "store", false)?;
    // What was decided meanwhile is on record.
    daemon.kill();
    daemon.restart()?;
    wait_for_ban(&daemon, ATTACKER.v4, 1, Duration::from_secs(20))?;
    ensure!(lab.attacker.get(ATTACKER.v4())? == Answer::NoConnection, "not banned any more");
    Ok(())
}

#[test]
fn a_bpffs_that_is_unmounted_lifts_no_ban_and_is_mounted_again() -> Result<()> {
    let Some(lab) = lab("a_bpffs_that_is_unmounted_lifts_no_ban_and_is_mounted_again")? else { return Ok(()) };
    let _nginx = Nginx::start(&lab)?;
    let mut daemon = daemon(&lab, Config::new(&lab, "bpffs").with("bans", "durations", r#"["1h"]"#))?;
    flood_is_cut(&lab, &daemon)?;
    run(lab.server.command("umount").arg("--lazy").arg(lab.bpffs()))?;
    ensure!(lab.attacker.get(ATTACKER.v4())? == Answer::NoConnection, "the ban went with the mount");
    ensure!(daemon.command(&["ban", FRIEND.v4, "--for", "1h"])?.status.success());
    ensure!(!is_served(&lab)?, "a new ban does not work");
    ensure!(daemon.command(&["unban", FRIEND.v4])?.status.success());
    ensure!(is_served(&lab)?, "an unban does not work");
    daemon.kill();
    let restarted = daemon.restart();
    restarted.with_context(|| daemon.output())?;
    wait_for_ban(&daemon, ATTACKER.v4, 1, Duration::from_secs(20))?;
    ensure!(daemon.status()?["enforcement_ratio"] == 1.0, "{}", daemon.status()?);
    ensure!(lab.attacker.get(ATTACKER.v4())? == Answer::NoConnection, "the ban is not enforced after the restart");
    Ok(())
}

#[test]
fn nginx_and_the_interface_may_go_and_come_back() -> Result<()> {
    let Some(lab) = lab("nginx_and_the_interface_may_go_and_come_back")? else { return Ok(()) };
    let nginx = Nginx::start(&lab)?;
    let daemon = daemon(&lab, Config::new(&lab, "back").with("bans", "durations", r#"["1h"]"#))?;
    ensure!(is_served(&lab)?);
    drop(nginx);
    let _nginx = Nginx::start(&lab)?;
    lab.server.ip(&format!("link set {INTERFACE} down"))?;
    lab.server.ip(&format!("link set {INTERFACE} up"))?;
    // What goes when a link goes down, an administrator's tools put back.
    lab.server.ip(&format!("route replace default via 192.0.2.1 dev {INTERFACE}"))?;
    clock::wait_until("to be served again", Duration::from_secs(10), || is_served(&lab).unwrap_or(false))?;
    flood_is_cut(&lab, &daemon)?;
    ensure!(daemon.status()?["enforcement_ratio"] == 1.0, "{}", daemon.status()?);
    Ok(())
}

#[test]
fn an_interface_that_nothing_covers_makes_it_unhealthy_until_it_is_back() -> Result<()> {
    let Some(lab) = lab("an_interface_that_nothing_covers_makes_it_unhealthy_until_it_is_back")? else { return Ok(()) };
    lab.server.ip("link add extra type veth peer name extrapeer")?;
    let config = Config::new(&lab, "extra").with("enforcer", "backend", "\"xdp\"").with(
        "enforcer",
        "interfaces",
        format!("[{INTERFACE:?}, \"extra\"]"),
    );
    let daemon = daemon(&lab, config)?;
    wait_for_health(&lab, &daemon, 200, "")?;
    lab.server.ip("link del extra")?;
    wait_for_health(&lab, &daemon, 503, "extra is not protected")?;
    wait_for_word(&daemon, "enforcement", true)?;
    lab.server.ip("link add extra type veth peer name extrapeer")?;
    wait_for_health(&lab, &daemon, 200, "")?;
    wait_for_word(&daemon, "enforcement", false)?;
    let told = daemon.audited("degraded", None)?;
    ensure!(told.len() == 2 && told[0]["recovered"] == false && told[1]["recovered"] == true, "{told:?}");
    Ok(())
}

/// iptables that cannot drop IPv6, and then not even say what it drops.
#[test]
fn a_firewall_that_does_not_answer_makes_it_unhealthy_until_it_does() -> Result<()> {
    let Some(lab) = lab("a_firewall_that_does_not_answer_makes_it_unhealthy_until_it_does")? else { return Ok(()) };
    let (programs, broken) = (lab.dir().join("programs"), lab.dir().join("broken"));
    fs::create_dir(&programs)?;
    let path = std::env::var("PATH")?;
    let program = |name: &str, text: String| -> Result<()> {
        let file = programs.join(name);
        fs::write(&file, format!("#!/bin/sh\n{text}\n"))?;
        Ok(fs::set_permissions(file, fs::Permissions::from_mode(0o755))?)
    };
    program("ip6tables", "echo no IPv6 in this kernel >&2; exit 3".into())?;
    program(
        "iptables-save",
        format!(
            "[ -e {} ] && echo no netlink >&2 && exit 1\nPATH='{path}' exec iptables-save \"$@\"",
            broken.display()
        ),
    )?;
    let through = ["env".to_owned(), format!("PATH={}:{path}", programs.display())];
    let start = Start { through: through.into(), ..Start::default() };
    let config = Config::new(&lab, "mute").with("enforcer", "backend", "\"iptables\"");
    let mut daemon = Daemon::launch(&lab, super::binary(), config, &start)?;
    daemon.wait_ready()?;
    // Half of what it can do works, and stays said: the start's own reconciliation has found nothing wrong.
    let row = |text: &str| -> Result<bool> {
        let status = daemon.status()?;
        let mut rows = status["degraded"].as_array().into_iter().flatten();
        Ok(rows.any(|row| row["what"] == "enforcement" && row["reason"].as_str().is_some_and(|r| r.contains(text))))
    };
    ensure!(row("IPv6 clients cannot be dropped")?, "{}", daemon.status()?);
    ensure!(daemon.command(&["ban", ATTACKER.v4, "--for", "1h"])?.status.success());
    wait_for_health(&lab, &daemon, 200, "")?;
    ensure!(daemon.status()?["enforcement_ratio"] == 1.0, "{}", daemon.status()?);

    fs::write(&broken, "")?;
    wait_for_health(&lab, &daemon, 503, "no netlink")?;
    ensure!(daemon.status()?["enforcement_ratio"] == 0.0, "{}", daemon.status()?);
    ensure!(row("no netlink")?, "{}", daemon.status()?);
    fs::remove_file(&broken)?;
    wait_for_health(&lab, &daemon, 200, "")?;
    let gone = || row("no netlink").is_ok_and(|there| !there);
    clock::wait_until("a reconciliation", Duration::from_secs(150), gone).map_err(|e| e.context(daemon.output()))?;
    ensure!(row("IPv6 clients cannot be dropped")?, "another trouble that is over has ended it: {}", daemon.status()?);
    Ok(())
}
