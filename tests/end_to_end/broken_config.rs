//! A configuration file that is refused: a locked-out operator gets in again nevertheless, with the daemon and without it.

use std::path::PathBuf;
use std::process::Output;
use std::time::Duration;

use anyhow::{Context, Result, ensure};

use super::{binary, daemon, lab, wait_for_ban};
use crate::lab::client::Answer;
use crate::lab::daemon::{Config, Daemon, Start};
use crate::lab::nginx::Nginx;
use crate::lab::sink::Sink;
use crate::lab::{ATTACKER, INTERFACE, Lab, clock, run};

const PATIENCE: Duration = Duration::from_secs(20);

/// A command with `-c file`, in the server.
fn command(lab: &Lab, file: &std::path::Path, words: &[&str]) -> Result<Output> {
    let mut command = lab.server.command(binary());
    command.arg("-c").arg(file).args(words).stdin(std::process::Stdio::null());
    command.output().context("not started")
}

fn said(output: &Output) -> String {
    String::from_utf8_lossy(&output.stderr).into_owned()
}

/// Succeeds, and warns.
fn works(lab: &Lab, file: &std::path::Path, words: &[&str]) -> Result<String> {
    let output = command(lab, file, words)?;
    ensure!(output.status.code() == Some(0), "anomaly {words:?}: {}: {}", output.status, said(&output));
    ensure!(said(&output).contains("warning: "), "anomaly {words:?} does not warn: {}", said(&output));
    Ok(String::from_utf8_lossy(&output.stdout).into_owned())
}

/// What the container's engine runs to see whether it is healthy.
fn health_checks() -> Result<Vec<Vec<String>>> {
    let top = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("../compose");
    let compose = std::fs::read_to_string(top.join("compose.yaml"))?;
    let dockerfile = std::fs::read_to_string(top.join("Dockerfile"))?;
    let lists = [
        compose.lines().find_map(|line| line.trim().strip_prefix("test: ")),
        dockerfile
            .lines()
            .find_map(|line| line.split_once(" CMD ").filter(|(h, _)| h.starts_with("HEALTH")))
            .map(|l| l.1),
    ];
    let parse = |list: Option<&str>| Ok(serde_json::from_str::<Vec<String>>(list.context("no health check")?)?);
    let words = lists.into_iter().map(parse).collect::<Result<Vec<_>>>()?;
    Ok(words
        .into_iter()
        .map(|words| words.into_iter().skip_while(|word| word != "anomaly").skip(1).collect())
        .collect())
}

/// Three usual mistakes, and a file that cannot be read at all: a directory, and one that is not there.
fn broken(lab: &Lab, config: &Config) -> Result<Vec<PathBuf>> {
    let good = config.text();
    let mistakes = [
        format!("[thresholds]\nz_scor = 3.0\n{good}"),
        format!("allowlist = [\"192.0.2.77\"\n{good}"),
        format!("{good}[dashbord]\nlisten = \"off\"\nthis is no TOML\n"),
    ];
    let mut files = Vec::new();
    for (n, text) in mistakes.iter().enumerate() {
        let file = lab.dir().join(format!("mistake-{n}.toml"));
        std::fs::write(&file, text)?;
        files.push(file);
    }
    files.extend([lab.dir().to_owned(), lab.dir().join("nowhere.toml")]);
    Ok(files)
}

#[test]
fn a_broken_file_disables_no_command_that_asks_or_frees() -> Result<()> {
    let Some(lab) = lab("a_broken_file_disables_no_command_that_asks_or_frees")? else { return Ok(()) };
    let _nginx = Nginx::start(&lab)?;
    let config = Config::new(&lab, "typo");
    let daemon = daemon(&lab, config.clone())?;
    for file in broken(&lab, &config)? {
        works(&lab, &file, &["ban", ATTACKER.v4, "--for", "1h"])?;
        wait_for_ban(&daemon, ATTACKER.v4, 1, PATIENCE)?;
        ensure!(lab.attacker.get(ATTACKER.v4())? == Answer::NoConnection, "the ban is not enforced");
        for words in health_checks()? {
            works(&lab, &file, &words.iter().map(String::as_str).collect::<Vec<_>>())?;
        }
        for words in [&["status"][..], &["top"], &["bans"], &["explain", ATTACKER.v4]] {
            works(&lab, &file, words)?;
        }
        let status: serde_json::Value = serde_json::from_str(&works(&lab, &file, &["status", "--json"])?)?;
        ensure!(status["active_bans"] == 1, "another daemon answered: {status}");
        let doctor = command(&lab, &file, &["doctor"])?;
        let report = String::from_utf8_lossy(&doctor.stdout).into_owned();
        ensure!(doctor.status.code() == Some(2) && report.contains("the configuration is refused"), "{doctor:?}");
        works(&lab, &file, &["unban", ATTACKER.v4])?;
        ensure!(lab.attacker.get(ATTACKER.v4())? == Answer::Status(200), "still banned with {}", file.display());
        // Who decides, and who says that a file is good, does not guess.
        for words in [&["run"][..], &["config", "check"], &["replay", "/dev/null"]] {
            let output = command(&lab, &file, words)?;
            ensure!(output.status.code() == Some(2), "anomaly {words:?} with {}: {output:?}", file.display());
        }
        let output = command(&lab, &file, &["down"])?;
        ensure!(output.status.code() == Some(1) && said(&output).contains("stop it first"), "{output:?}");
    }

    // Where not even the socket and the pin directory can be read.
    let nowhere = lab.dir().join("nowhere.toml");
    works(&lab, &nowhere, &["ban", ATTACKER.v4, "--for", "1h"])?;
    wait_for_ban(&daemon, ATTACKER.v4, 1, PATIENCE)?;
    ensure!(works(&lab, &nowhere, &["off"])?.contains("XDP passes everything"));
    clock::wait_until("nothing to be dropped any more", PATIENCE, || {
        lab.attacker.get(ATTACKER.v4()).is_ok_and(|answer| answer == Answer::Status(200))
    })?;
    // The daemon has been told, or it would count it as lost and repair it.
    daemon.wait_for_audit("off", None, 1, Duration::from_secs(70))?;
    Ok(())
}

/// Whether the server's interface has a program, and the daemon's pins are there.
fn traces(lab: &Lab, name: &str) -> Result<(bool, bool)> {
    let link = lab.server.ip(&format!("-details link show {INTERFACE}"))?;
    let pins = lab.server.command("test").arg("-e").arg(lab.bpffs().join(name)).status()?.success();
    Ok((link.contains("xdp"), pins))
}

#[test]
fn without_the_daemon_a_broken_file_keeps_nothing_dropping() -> Result<()> {
    let Some(lab) = lab("without_the_daemon_a_broken_file_keeps_nothing_dropping")? else { return Ok(()) };
    let _nginx = Nginx::start(&lab)?;
    let config = Config::new(&lab, "dead");
    let mut daemon = daemon(&lab, config.clone())?;
    for (n, file) in broken(&lab, &config)?.into_iter().enumerate() {
        if n > 0 {
            daemon.restart()?;
        }
        ensure!(daemon.command(&["ban", ATTACKER.v4, "--for", "1h"])?.status.success());
        wait_for_ban(&daemon, ATTACKER.v4, 1, PATIENCE)?;
        daemon.kill();
        ensure!(lab.attacker.get(ATTACKER.v4())? == Answer::NoConnection, "the ban died with the daemon");
        let file_says = file.display();
        // `off` leaves its mark beside the socket that it knows; nobody's but the lab's may be touched.
        let mut off = lab.server.command(binary());
        off.arg("-c").arg(&file).arg("off").env("ANOMALY_DASHBOARD__SOCKET", lab.dir().join("dead.sock"));
        let output = off.output()?;
        ensure!(output.status.success() && said(&output).contains("warning: "), "{file_says}: {output:?}");
        ensure!(lab.attacker.get(ATTACKER.v4())? == Answer::Status(200), "off with {file_says} stopped nothing");
        ensure!(traces(&lab, "dead")? == (true, true), "off took more away than it should");
        let done = works(&lab, &file, &["down"])?;
        ensure!(done.contains(INTERFACE), "{file_says}: {done}");
        ensure!(traces(&lab, "dead")? == (false, false), "down with {file_says} left something");
        // No daemon answers, and that is what is said, not that the file is wrong.
        let output = command(&lab, &file, &["status", "--check"])?;
        ensure!(output.status.code() == Some(1) && said(&output).contains("no daemon answers"), "{output:?}");
        for suffix in ["", "-wal", "-shm"] {
            let _ = std::fs::remove_file(lab.dir().join(format!("dead.db{suffix}")));
        }
    }
    Ok(())
}

/// Pins of another network namespace are in the same bpffs, and are nobody's business here.
#[test]
fn a_broken_file_frees_this_network_namespace_only() -> Result<()> {
    let Some(lab) = lab("a_broken_file_frees_this_network_namespace_only")? else { return Ok(()) };
    // The deny list has its usual place, in the lab's own mounts.
    let places = "mount -t tmpfs lab /var/lib && mkdir /var/lib/nginx-deny";
    run(lab.server.command("sh").args(["-c", places]))?;
    let list = "/var/lib/nginx-deny/anomaly.list";
    let config = Config::new(&lab, "here").with("nginx", "deny_map", format!("{list:?}"));
    let mut daemon = daemon(&lab, config.with("nginx", "pid_file", r#""""#))?;
    ensure!(daemon.command(&["ban", ATTACKER.v4])?.status.success());
    let listed = || Ok::<_, anyhow::Error>(run(lab.server.command("cat").arg(list))?.contains(ATTACKER.v4));
    clock::wait_until("the ban to be listed", PATIENCE, || listed().unwrap_or_default())?;
    daemon.kill();
    let nowhere = lab.dir().join("nowhere.toml");
    let mut elsewhere = lab.server.command_in(&lab.honest, binary());
    let output = elsewhere.arg("-c").arg(&nowhere).arg("down").output()?;
    ensure!(output.status.success() && said(&output).contains("left alone"), "{output:?}");
    // Who may not look into bpffs does not know that nothing is there.
    for words in ["off", "down"] {
        let mut command = lab.server.command("setpriv");
        command.args(["--reuid", "65534", "--clear-groups"]).arg(binary()).arg("-c").arg(&nowhere).arg(words);
        let output = command.output()?;
        ensure!(output.status.code() == Some(1) && said(&output).contains("needs root"), "{words}: {output:?}");
    }
    ensure!(traces(&lab, "here")? == (true, true), "another network namespace was freed");
    works(&lab, &nowhere, &["down"])?;
    ensure!(traces(&lab, "here")? == (false, false), "nothing was freed");
    ensure!(!listed()?, "Nginx goes on refusing");
    Ok(())
}

/// A process of another user may have our name and a socket: nobody is sent there.
#[test]
fn a_strangers_socket_is_not_taken_for_the_daemons() -> Result<()> {
    const NOBODY: u32 = 65534;
    let Some(lab) = lab("a_strangers_socket_is_not_taken_for_the_daemons")? else { return Ok(()) };
    let theirs = lab.dir().join("theirs");
    std::fs::create_dir(&theirs)?;
    std::os::unix::fs::chown(&theirs, Some(NOBODY), Some(NOBODY))?;
    let place = |name: &str| format!("{:?}", theirs.join(name));
    let config = Config::new(&lab, "stranger")
        .with("dashboard", "socket", place("sock"))
        .with("store", "path", place("db"))
        .with("audit", "path", place("audit.jsonl"))
        .with("audit", "snapshot_path", place("snapshots.log"));
    let as_nobody = ["setpriv", "--reuid", "65534", "--regid", "65534", "--clear-groups"];
    let start = Start {
        through: as_nobody.map(Into::into).into(),
        arguments: ["--backend", "dry-run"].map(Into::into).into(),
        ..Start::default()
    };
    let mut stranger = Daemon::launch(&lab, binary(), config, &start)?;
    stranger.wait_ready()?;
    let nowhere = lab.dir().join("nowhere.toml");
    let output = command(&lab, &nowhere, &["status"])?;
    ensure!(output.status.code() == Some(1) && said(&output).contains("the default, is used"), "{output:?}");
    // Its own user's commands find it.
    let mut own = lab.server.command(as_nobody[0]);
    let output = own.args(&as_nobody[1..]).arg(binary()).arg("-c").arg(&nowhere).arg("status").output()?;
    ensure!(output.status.success() && said(&output).contains("theirs/sock is used"), "{output:?}");
    Ok(())
}

#[test]
fn a_refused_file_is_a_fault_until_it_is_mended() -> Result<()> {
    let Some(lab) = lab("a_refused_file_is_a_fault_until_it_is_mended")? else { return Ok(()) };
    let slack = Sink::start(&lab.server)?;
    let config = Config::new(&lab, "refused").with("", "name", "\"web1\"").with(
        "notify.slack",
        "webhook_url",
        format!("{:?}", slack.url()),
    );
    let daemon = daemon(&lab, config.clone())?;
    let posted = |words: &[&str]| slack.bodies().iter().any(|body| words.iter().all(|word| body.contains(word)));
    let broken = format!("{}[thresholds]\nz_scor = 3.0\n", config.text());

    // By a reload at once, and over when the file is mended, also without another.
    daemon.reload(&broken)?;
    let row = wait_for_fault(&daemon, true)?;
    ensure!(row.contains("z_scor"), "{row}");
    clock::wait_until("Slack to be told", PATIENCE, || posted(&["web1: ", "config", "z_scor"]))?;
    let metrics = super::operate::http(&lab, "GET", "/metrics", None, "")?.1;
    ensure!(metrics.contains("anomaly_degraded{what=\"config\"} 1"), "{metrics}");
    daemon.rewrite(&config.text())?;
    wait_for_fault(&daemon, false)?;
    clock::wait_until("Slack to be told of its end", PATIENCE, || posted(&["web1: ", "Recovered: config"]))?;
    let metrics = super::operate::http(&lab, "GET", "/metrics", None, "")?.1;
    ensure!(metrics.contains("anomaly_degraded{what=\"config\"} 0"), "{metrics}");

    // Seen without a reload (the unit's checks the file first), and ended by one.
    daemon.rewrite(&broken)?;
    wait_for_fault(&daemon, true)?;
    daemon.reload(&config.text())?;
    daemon.wait_for_audit("config_reloaded", None, 2, PATIENCE)?;
    wait_for_fault(&daemon, false)?;
    let degraded = daemon.audited("degraded", None)?;
    ensure!(degraded.len() == 4 && degraded.iter().all(|row| row["what"] == "config"), "{degraded:?}");
    Ok(())
}

/// Waits until the configuration is (or is not) a fault in `status`; the reason.
fn wait_for_fault(daemon: &Daemon<'_>, there: bool) -> Result<String> {
    let reason = || {
        let status = daemon.status().ok()?;
        let rows = status["degraded"].as_array()?.iter().find(|row| row["what"] == "config");
        Some(rows.map_or_else(String::new, |row| row["reason"].to_string()))
    };
    clock::wait_for(&format!("the fault (there: {there})"), Duration::from_secs(40), || {
        reason().filter(|reason| reason.is_empty() != there)
    })
    .with_context(|| daemon.output())
}
