//! What an operator does to a running daemon: reload, ask, ban, unban, switch off, remove.

use std::io::{Read, Write};
use std::net::TcpStream;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use serde_json::Value;

use super::faults::wait_for_health;
use super::{daemon, lab, wait_for_ban};
use crate::interfaces;
use crate::lab::client::{Answer, Plan, Traffic};
use crate::lab::daemon::Config;
use crate::lab::nginx::Nginx;
use crate::lab::{ATTACKER, HONEST, Lab, clock};

#[test]
fn sighup_applies_a_valid_configuration_and_survives_an_invalid_one() -> Result<()> {
    let Some(lab) = lab("sighup_applies_a_valid_configuration_and_survives_an_invalid_one")? else { return Ok(()) };
    let _nginx = Nginx::start(&lab)?;
    let config = Config::new(&lab, "reload").with("bans", "durations", r#"["60s", "permanent"]"#);
    let daemon = daemon(&lab, config.clone())?;
    let honest = Traffic::start(&lab.honest, Plan::new(HONEST.v4(), 5.0));
    let flood = Traffic::start(&lab.attacker, Plan::new(ATTACKER.v4(), 50.0));
    let before = wait_for_ban(&daemon, ATTACKER.v4, 1, Duration::from_secs(20))?;
    clock::wait_until("the honest client's window to fill", Duration::from_secs(15), || {
        requests(&daemon, HONEST.v4) > 20
    })?;
    let window = requests(&daemon, HONEST.v4);

    daemon.reload(&config.clone().with("bans", "durations", "[\"7s\"]").text())?;
    let reloaded = daemon.wait_for_audit("config_reloaded", None, 1, Duration::from_secs(10))?;
    ensure!(reloaded[0]["ok"] == true, "{reloaded:?}");
    ensure!(requests(&daemon, HONEST.v4) >= window, "a window was lost");
    let after = daemon.ban_of(ATTACKER.v4)?.context("the ban was lost")?;
    ensure!(after["until"] == before["until"], "{before} became {after}");
    ensure!(lab.attacker.get(ATTACKER.v4())? == Answer::NoConnection, "the ban is not enforced any more");
    ensure!(daemon.command(&["ban", "203.0.113.201"])?.status.success());
    let row = wait_for_ban(&daemon, "203.0.113.201", 1, Duration::from_secs(20))?;
    ensure!(row["duration_secs"] == 7, "the new ladder does not apply: {row}");

    daemon.reload("[bans]\ndurations = [\"a while\"]\n")?;
    let refused = daemon.wait_for_audit("config_reloaded", None, 2, Duration::from_secs(10))?;
    daemon.rewrite(&config.text())?;
    ensure!(refused[1]["ok"] == false && refused[1]["error"].to_string().contains("durations"), "{refused:?}");
    ensure!(daemon.output().lines().any(|l| l.contains("ERROR") && l.contains("durations")), "{}", daemon.output());
    ensure!(daemon.ban_of(ATTACKER.v4)?.is_some(), "the ban was lost");
    drop(flood);
    let attempts = honest.stop()?;
    ensure!(attempts.iter().all(|a| a.answer == Answer::Status(200)), "{attempts:?}");
    Ok(())
}

/// Requests of a client in its window.
fn requests(daemon: &crate::lab::daemon::Daemon<'_>, ip: &str) -> u64 {
    let top = daemon.json(&["top"]).unwrap_or_default();
    let row = top.as_array().and_then(|rows| rows.iter().find(|row| row["ip"] == ip));
    row.and_then(|row| row["requests"].as_u64()).unwrap_or(0)
}

/// Every command against a live daemon, with the keys that scripts rely on.
#[test]
fn the_command_line_asks_and_steers_the_daemon() -> Result<()> {
    let Some(lab) = lab("the_command_line_asks_and_steers_the_daemon")? else { return Ok(()) };
    let _nginx = Nginx::start(&lab)?;
    let mut daemon = daemon(&lab, Config::new(&lab, "cli"))?;
    let status = daemon.status()?;
    for key in interfaces::STATUS {
        ensure!(status.get(key).is_some(), "status lacks {key}: {status}");
    }

    let succeeds = |words: &[&str]| -> Result<String> {
        let output = daemon.command(words)?;
        ensure!(output.status.success(), "anomaly {words:?}: {output:?}");
        Ok(String::from_utf8_lossy(&output.stdout).into_owned())
    };
    succeeds(&["ban", ATTACKER.v4, "--for", "1h", "--reason", "told so"])?;
    let row = wait_for_ban(&daemon, ATTACKER.v4, 1, Duration::from_secs(20))?;
    // What only detection knows is not there.
    let by_hand = interfaces::BAN.iter().filter(|key| !interfaces::FOUND.contains(key));
    for key in by_hand.chain(interfaces::ACTIVE) {
        ensure!(row.get(key).is_some(), "the ban's row lacks {key}: {row}");
    }
    ensure!(row["duration_secs"] == 3600 && row["origin"] == "operator" && row["reason"] == "told so", "{row}");
    ensure!(lab.attacker.get(ATTACKER.v4())? == Answer::NoConnection, "the ban is not enforced");
    for words in [&["status"][..], &["bans"], &["top"], &["explain", ATTACKER.v4]] {
        ensure!(!succeeds(words)?.trim().is_empty(), "{words:?} says nothing");
    }
    let explained = daemon.json(&["explain", ATTACKER.v4])?;
    ensure!(explained["active"][0]["ip"] == ATTACKER.v4, "{explained}");
    ensure!(explained["inside"].as_array().is_some_and(Vec::is_empty), "{explained}");
    // What only holds a banned address is not banned: nothing could be lifted.
    let explained = daemon.json(&["explain", "203.0.113.0/24"])?;
    ensure!(explained["active"].as_array().is_some_and(Vec::is_empty), "{explained}");
    ensure!(explained["inside"][0]["ip"] == ATTACKER.v4, "{explained}");
    ensure!(daemon.command(&["unban", "203.0.113.0/24"])?.status.code() == Some(1));

    // A prefix is exactly what is written; a refusal is exit code 1 with its reason.
    succeeds(&["ban", "203.0.113.128/25"])?;
    let row = wait_for_ban(&daemon, "203.0.113.128/25", 1, Duration::from_secs(20))?;
    ensure!(row["duration_secs"] == 15, "the ladder's first step: {row}");
    ensure!(succeeds(&["unban", "203.0.113.130"])?.contains("203.0.113.128/25"), "unban names what it lifts");
    for (words, code, word) in [
        (&["unban", "198.51.100.77"][..], 1, "198.51.100.77"),
        (&["ban", "192.0.2.10"], 1, "192.0.2.10"),
        (&["ban", "203.0.0.0/8"], 1, "force"),
        (&["ban", "203.0.113.0/24; rm"], 2, "203.0.113.0/24; rm"),
        (&["bann", ATTACKER.v4], 2, "ban"),
        (&["down"], 1, "stop it first"),
    ] {
        let output = daemon.command(words)?;
        let said = String::from_utf8_lossy(&output.stderr).into_owned();
        ensure!(output.status.code() == Some(code) && said.contains(word), "{words:?}: {}: {said}", output.status);
    }

    // Locked out, and the allow-list is wrong too: what lets people in again does not read it.
    let list = lab.dir().join("allowlist");
    std::fs::write(&list, "office.example.org\n")?;
    daemon.rewrite(&Config::new(&lab, "cli").with("", "allowlist_file", format!("{list:?}")).text())?;
    ensure!(daemon.command(&["config", "check"])?.status.code() == Some(2), "a wrong line is not told");
    succeeds(&["off"])?;
    clock::wait_until("nothing to be dropped any more", Duration::from_secs(20), || {
        lab.attacker.get(ATTACKER.v4()).is_ok_and(|answer| answer == Answer::Status(200))
    })?;
    daemon.wait_for_audit("off", None, 1, Duration::from_secs(70))?;
    wait_for_health(&lab, &daemon, 503, "switched off by `anomaly off`")?;
    let status = daemon.status()?;
    let words: Vec<_> = status["degraded"].as_array().into_iter().flatten().map(|row| &row["what"]).collect();
    ensure!(words.contains(&&"off".into()) && !words.contains(&&"enforcement".into()), "said twice: {status}");
    ensure!(
        succeeds(&["ban", "203.0.113.200"])?.contains("dropping is off"),
        "a ban that drops nothing is not told so"
    );
    let code = daemon.stop()?.code();
    ensure!(code == Some(0), "SIGTERM: {code:?}: {}", daemon.output());
    ensure!(daemon.output().contains("stopped; nothing was dropped any more"), "{}", daemon.output());
    let output = daemon.command(&["status"])?;
    ensure!(output.status.code() == Some(1), "no daemon to ask: {output:?}");
    let output = daemon.command(&["down"])?;
    ensure!(output.status.success(), "{output:?}");
    let link = lab.server.ip("-details link show veth")?;
    ensure!(!link.contains("xdp"), "down left a program: {link}");
    ensure!(!lab.server.command("test").arg("-e").arg(lab.bpffs().join("cli")).status()?.success(), "down left pins");
    Ok(())
}

/// `status, headers and body` of one HTTP request to the dashboard inside the server's namespace.
pub(super) fn http(lab: &Lab, method: &str, path: &str, token: Option<&str>, body: &str) -> Result<(u16, String)> {
    let authorization = token.map(|t| format!("Authorization: Bearer {t}\r\n")).unwrap_or_default();
    let request = format!(
        "{method} {path} HTTP/1.1\r\nHost: 127.0.0.1:8081\r\nConnection: close\r\n{authorization}Content-Type: application/json\r\n\
         Content-Length: {}\r\n\r\n{body}",
        body.len()
    );
    lab.server.within(|| -> Result<(u16, String)> {
        let mut stream = TcpStream::connect(("127.0.0.1", 8081))?;
        stream.set_read_timeout(Some(Duration::from_secs(5)))?;
        stream.write_all(request.as_bytes())?;
        let mut answer = Vec::new();
        stream.read_to_end(&mut answer)?;
        let text = String::from_utf8_lossy(&answer).into_owned();
        let (head, body) = text.split_once("\r\n\r\n").context("no HTTP answer")?;
        let status = head.get(9..12).context("no status")?.parse()?;
        Ok((status, body.to_owned()))
    })?
}

#[test]
fn the_api_answers_and_guards_its_writes() -> Result<()> {
    let Some(lab) = lab("the_api_answers_and_guards_its_writes")? else { return Ok(()) };
    let _nginx = Nginx::start(&lab)?;
    let daemon = daemon(&lab, Config::new(&lab, "api").with("dashboard", "token", "\"secret-of-the-lab\""))?;
    for path in ["status", "bans", "top", "baseline", "history", "openapi.json"] {
        let (status, body) = http(&lab, "GET", &format!("/api/v1/{path}"), None, "")?;
        ensure!(status == 200, "{path}: {status}: {body}");
        serde_json::from_str::<Value>(&body).with_context(|| format!("{path}: {body}"))?;
    }
    ensure!(http(&lab, "GET", "/healthz", None, "")?.0 == 200);
    let (_, metrics) = http(&lab, "GET", "/metrics", None, "")?;
    ensure!(metrics.contains("anomaly_") && !metrics.contains("198.51.100."), "{metrics}");
    let (_, page) = http(&lab, "GET", "/", None, "")?;
    ensure!(page.contains("<html") || page.contains("<!doctype html"), "{page}");

    let wish = format!(r#"{{"ip":"{}","duration_secs":600,"reason":"over HTTP"}}"#, ATTACKER.v4);
    for token in [None, Some("wrong")] {
        let (status, body) = http(&lab, "POST", "/api/v1/bans", token, &wish)?;
        ensure!(matches!(status, 401 | 403), "{token:?}: {status}: {body}");
    }
    ensure!(daemon.ban_of(ATTACKER.v4)?.is_none(), "banned without a token");
    let token = Some("secret-of-the-lab");
    let (status, body) = http(&lab, "POST", "/api/v1/bans", token, &wish)?;
    ensure!(matches!(status, 200 | 201), "{status}: {body}");
    ensure!(lab.attacker.get(ATTACKER.v4())? == Answer::NoConnection, "the ban is not enforced");
    let (status, _) = http(&lab, "POST", "/api/v1/bans", token, r#"{"ip":"0.0.0.0/0; rm","duration_secs":-1}"#)?;
    ensure!((400..500).contains(&status), "{status}");
    let (status, body) = http(&lab, "GET", &format!("/api/v1/bans/{}", ATTACKER.v4), None, "")?;
    ensure!(status == 200 && body.contains("over HTTP"), "{status}: {body}");
    let (status, body) = http(&lab, "DELETE", &format!("/api/v1/bans/{}", ATTACKER.v4), token, "")?;
    ensure!((200..300).contains(&status), "{status}: {body}");
    ensure!(lab.attacker.get(ATTACKER.v4())? == Answer::Status(200), "not served after its unban");
    ensure!(!daemon.output().contains("secret-of-the-lab"), "the token was logged");
    Ok(())
}
