//! A log of which no line can be read: the daemon that follows it says that it sees nothing, and so does a replay.

use std::io::{Read as _, Write as _};
use std::net::TcpStream;
use std::path::Path;
use std::process::{Command, Output};
use std::time::Duration;

use serde_json::Value;

use crate::dry_run::DryRun;
use crate::lab::{clock, history};

const COMBINED: &str = "192.0.2.1 - - [27/Apr/2026:09:59:58 +0000] \"GET / HTTP/1.1\" 200 5\n";
const CURE: &str = "set log.format = \"combined\"";

/// Status and body of `/healthz`.
fn health(port: u16) -> Option<(u16, String)> {
    let mut stream = TcpStream::connect(("127.0.0.1", port)).ok()?;
    stream.write_all(b"GET /healthz HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n").ok()?;
    let mut answer = String::new();
    stream.read_to_string(&mut answer).ok()?;
    Some((answer.get(9..12)?.parse().ok()?, answer.split_once("\r\n\r\n")?.1.to_owned()))
}

fn words(status: &Value) -> Vec<&str> {
    status["degraded"].as_array().into_iter().flatten().filter_map(|row| row["what"].as_str()).collect()
}

#[test]
fn a_daemon_that_can_read_no_line_is_unhealthy_until_it_can() {
    let port = std::net::TcpListener::bind("127.0.0.1:0").expect("a port").local_addr().expect("an address").port();
    let daemon = DryRun::start("", &format!("dashboard.listen = \"127.0.0.1:{port}\"\n"));
    let check = || daemon.command(&["status", "--check"]).status.code();
    // An empty log is healthy, and so is one with a line that says nothing.
    daemon.log().write_all(b"\n\nhalf a li\n").expect("written");
    clock::wait_until("the line to be counted", Duration::from_secs(20), || {
        daemon.json(&["status"]).is_some_and(|status| status["rejected"] == 1)
    })
    .expect("counted");
    assert_eq!((check(), health(port).map(|(status, _)| status)), (Some(0), Some(200)));

    daemon.log().write_all(COMBINED.repeat(200).as_bytes()).expect("written");
    clock::wait_until("the daemon to say that it sees nothing", Duration::from_secs(20), || check() == Some(1))
        .unwrap_or_else(|error| panic!("{error}: {:?}", daemon.json(&["status"])));
    let status = daemon.json(&["status"]).expect("a status");
    let why = status["unhealthy"].as_str().expect("a reason");
    assert!(why.contains("access.json") && why.contains("it is not JSON") && why.contains(CURE), "{why}");
    assert_eq!(words(&status), ["log_format"], "{status}");
    let (code, body) = health(port).expect("an answer");
    assert!(code == 503 && body.contains(CURE), "{code} {body}");
    // Whoever is not looking is told.
    let mut audit = daemon.audit();
    let told = || audit.read().into_iter().find(|line| line["event"] == "degraded").map(|line| line["what"].clone());
    assert_eq!(
        clock::wait_for("a line in the audit log", Duration::from_secs(20), told).ok(),
        Some("log_format".into())
    );

    let again = || {
        daemon.log().write_all(history::line(clock::epoch_secs(), "198.51.100.7", "/", 200).as_bytes()).ok()?;
        (check() == Some(0)).then_some(())
    };
    clock::wait_for("the fault to be over", Duration::from_secs(60), again)
        .unwrap_or_else(|error| panic!("{error}: {:?}", daemon.json(&["status"])));
    assert_eq!(health(port).map(|(status, _)| status), Some(200));
}

fn replay(logs: &[&Path], more: &[&str]) -> (Output, String) {
    let output = Command::new(env!("CARGO_BIN_EXE_anomaly")).args(["replay", "--json"]).args(more).args(logs).output();
    let output = output.expect("started");
    let said = String::from_utf8_lossy(&output.stderr).into_owned();
    (output, said)
}

#[test]
fn a_replay_that_could_read_nothing_of_a_log_fails_with_the_cure() {
    let dir = tempfile::tempdir().expect("a directory");
    let file = |name: &str, text: &str| {
        let path = dir.path().join(name);
        std::fs::write(&path, text).expect("written");
        path
    };
    let (good, combined) =
        (file("good.json", &history::quiet(1_777_464_000, 5, 0)), file("b.log", &COMBINED.repeat(7)));
    let (empty, blank) = (file("empty.json", ""), file("blank.json", "\n\n"));
    let mostly = file("mostly.json", &(COMBINED.repeat(3) + &history::quiet(1_777_464_000, 5, 0)));
    let learned = dir.path().join("learned.db");
    for (logs, code) in
        [(&[&*combined][..], 1), (&[&good, &combined], 1), (&[&good], 0), (&[&empty, &blank], 0), (&[&mostly], 0)]
    {
        let (output, said) = replay(logs, &["--learn", learned.to_str().expect("a path")]);
        assert_eq!(output.status.code(), Some(code), "{logs:?}: {said}");
        let names_it = said.contains("none of the 7 lines of")
            && said.contains("b.log")
            && said.contains("log.format = \"combined\"");
        assert_eq!(names_it, code == 1, "{logs:?}: {said}");
        // The summary is there as always.
        let last = String::from_utf8_lossy(&output.stdout).lines().last().map(str::to_owned).expect("a summary");
        let summary: Value = serde_json::from_str(&last).expect("JSON");
        assert!(summary["summary"]["rejected"].is_number(), "{summary}");
        // What has seen nothing teaches nothing.
        assert_eq!(learned.exists(), *logs != [&*combined], "{logs:?}: {said}");
        let _ = std::fs::remove_file(&learned);
    }
}
