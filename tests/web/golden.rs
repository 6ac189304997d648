//! Golden files of what the API, `/metrics` and the commands' `--json` answer, over a daemon made of data.

use std::fmt::Write as _;
use std::process::Command;

use anomaly::engine::Refusal;
use anomaly::view::control::RequestError;
use anomaly::view::history::History;

use super::client::{Answer, Events, ask, get, tcp, unix};
use super::fake::{NOW, Options, Server, picture, point};
use crate::golden::{indent, kinds, same, shown};

/// Headers that mean something to those who call the API.
const HEADERS: [&str; 5] = ["content-type", "location", "allow", "www-authenticate", "retry-after"];

fn start(options: Options) -> Server {
    let server = Server::start(options);
    server.show(|live| live.status.version = "0.0.0".into());
    let mut history = History::default();
    (0..3).for_each(|s| history.push(point(NOW.as_secs() - 3 + s)));
    *server.history.lock().expect("not poisoned") = history;
    server
}

fn add(text: &mut String, request: &str, answer: &Answer) {
    let headers = HEADERS.iter().filter(|name| !answer.header(name).is_empty());
    let headers: String = headers.map(|name| format!("{name}: {}\n", answer.header(name))).collect();
    let is_json = answer.header("content-type").contains("json");
    let body = if is_json { indent(&answer.body) } else { answer.body.trim_end().to_owned() };
    let _ = write!(text, "# {request}\n{}\n{headers}{body}\n\n", answer.status);
}

#[test]
fn golden_api_reads() {
    let server = start(Options::default());
    let mut text = String::new();
    for path in [
        "/api/v1/status",
        "/api/v1/bans",
        "/api/v1/bans?limit=1",
        "/api/v1/bans/203.0.113.10",
        "/api/v1/bans/203.0.113.0%2F24",
        "/api/v1/bans/192.0.2.9",
        "/api/v1/top",
        "/api/v1/top?limit=1",
        "/api/v1/baseline",
        "/api/v1/history",
        "/api/v1/history?range=1h",
        "/api/v1/history?range=24h",
        "/healthz",
        "/ip/203.0.113.10",
    ] {
        add(&mut text, &format!("GET {path}"), &get(&server, path));
    }
    server.show(|live| live.status.unhealthy = Some("access.json does not exist".into()));
    add(&mut text, "GET /healthz, while unhealthy", &get(&server, "/healthz"));
    same("api-reads.txt", &text);
}

#[test]
fn golden_api_headers() {
    let server = start(Options::default());
    let answer = get(&server, "/api/v1/status");
    let mut headers: Vec<_> = answer.headers.iter().filter(|(name, _)| *name != "date").collect();
    headers.sort();
    let length = |name: &str| if name == "content-length" { "N".to_owned() } else { answer.header(name).to_owned() };
    same("api-headers.txt", &headers.iter().map(|(name, _)| format!("{name}: {}\n", length(name))).collect::<String>());
}

#[test]
fn golden_api_writes_and_refusals() {
    let server = start(Options::default());
    let json = ("Content-Type", "application/json");
    let mut text = String::new();
    let mut write = |method: &str, path: &str, body: &str| {
        let shown_body = if body.len() > 200 { "(a long body)" } else { body };
        let answer = ask(unix(&server), method, path, &[json], body);
        add(&mut text, format!("{method} {path} {shown_body}").trim_end(), &answer);
    };
    let bans = "/api/v1/bans";
    write("POST", bans, r#"{"ip":"192.0.2.7","duration_secs":3600,"reason":"scraper"}"#);
    write("POST", bans, r#"{"ip":"2001:db8:9::/64","permanent":true}"#);
    write("POST", bans, r#"{"ip":"192.0.2.8"}"#);
    write("DELETE", "/api/v1/bans/192.0.2.7", "");
    // Refused by the daemon.
    write("DELETE", "/api/v1/bans/192.0.2.7", "");
    write("POST", bans, r#"{"ip":"198.51.100.4"}"#);
    write("POST", bans, r#"{"ip":"192.0.2.1"}"#);
    write("POST", bans, r#"{"ip":"10.0.0.0/8"}"#);
    write("GET", "/api/v1/bans/192.0.2.66", "");
    write("POST", bans, r#"{"ip":"192.0.2.67"}"#);
    write("POST", bans, r#"{"ip":"192.0.2.68"}"#);
    write("DELETE", "/api/v1/bans/192.0.2.69", "");
    // Not understood.
    write("POST", bans, r#"{"ip":"nobody"}"#);
    write("POST", bans, r#"{"ip":"192.0.2.7","duration_secs":0}"#);
    write("POST", bans, r#"{"ip":"192.0.2.7","duration_secs":60,"permanent":true}"#);
    write("POST", bans, r#"{"ip":"192.0.2.7","seconds":60}"#);
    write("POST", bans, &format!(r#"{{"ip":"192.0.2.7","reason":"{}"}}"#, "x".repeat(501)));
    write("POST", bans, &format!(r#"{{"ip":"{}"}}"#, "x".repeat(64 * 1024)));
    write("POST", bans, "[");
    write("GET", "/api/v1/bans?limit=0", "");
    write("GET", "/api/v1/bans?limit=many", "");
    write("GET", "/api/v1/history?range=1y", "");
    write("GET", "/api/v1/bans/nobody", "");
    write("GET", "/api/v1/nothing", "");
    write("PUT", bans, "{}");
    let body = r#"{"ip":"192.0.2.7"}"#;
    add(
        &mut text,
        "POST /api/v1/bans as text",
        &ask(unix(&server), "POST", bans, &[("Content-Type", "text/plain")], body),
    );
    add(&mut text, "POST /api/v1/bans over TCP, no token configured", &ask(tcp(&server), "POST", bans, &[json], body));
    let host = [("Host", "evil.example")];
    add(&mut text, "GET /api/v1/status by another name", &ask(tcp(&server), "GET", "/api/v1/status", &host, ""));
    let server = start(Options { token: Some("secret"), ..Options::default() });
    for (name, token) in [("a wrong token", Some("Bearer wrong")), ("no token", None)] {
        let headers: Vec<_> = [json].into_iter().chain(token.map(|token| ("Authorization", token))).collect();
        add(
            &mut text,
            &format!("POST /api/v1/bans over TCP, {name}"),
            &ask(tcp(&server), "POST", bans, &headers, body),
        );
    }
    let foreign = [json, ("Authorization", "Bearer secret"), ("Origin", "http://evil.example")];
    add(&mut text, "POST /api/v1/bans by another site's page", &ask(tcp(&server), "POST", bans, &foreign, body));
    shown(
        &text,
        &kinds!(Refusal {
            AllowListed => "urn:anomaly:allow_listed",
            NeverBan => "urn:anomaly:never_ban",
            TooWide => "urn:anomaly:too_wide",
            NotBanned => "urn:anomaly:not_banned",
        }),
    );
    shown(
        &text,
        &kinds!(RequestError {
            Refused => "urn:anomaly:not_banned",
            NotEnforced => "urn:anomaly:not_enforced",
            StillDropped => "urn:anomaly:still_dropped",
            Stopping => "urn:anomaly:stopping",
            Store => "urn:anomaly:store",
        }),
    );
    same("api-writes.txt", &text);
}

#[test]
fn golden_openapi() {
    let server = start(Options::default());
    let body = get(&server, "/api/v1/openapi.json").body;
    let version = concat!("\"version\":\"", env!("CARGO_PKG_VERSION"), "\"");
    assert!(body.contains(version), "{body}");
    same("openapi.json", &(indent(&body.replace(version, "\"version\":\"0.0.0\"")) + "\n"));
}

#[test]
fn golden_stream_begins_with_what_the_api_answers() {
    let server = start(Options::default());
    let mut events = Events::open(tcp(&server));
    let first: Vec<_> = (0..3).map(|_| events.next().expect("an event")).collect();
    assert_eq!(first.iter().map(|sent| &*sent.event).collect::<Vec<_>>(), ["recent", "status", "top"]);
    assert_eq!(first[1].data, get(&server, "/api/v1/status").json());
    assert_eq!(first[2].data, get(&server, "/api/v1/top").json());
}

/// Names, types, help and labels; the figures are the machine's.
#[test]
fn golden_metrics() {
    let server = start(Options::default());
    server.metrics.live(&picture());
    let metrics = get(&server, "/metrics");
    let mut text = String::new();
    // The series of a metric come in no order.
    for family in
        metrics.body.split_inclusive('\n').collect::<Vec<_>>().chunk_by(|a, b| a.starts_with('#') == b.starts_with('#'))
    {
        let is_head = family[0].starts_with('#');
        let mut lines: Vec<_> =
            family.iter().map(|line| if is_head { (*line).to_owned() } else { cut(line) + "\n" }).collect();
        if !is_head {
            lines.sort();
        }
        text += &lines.concat();
    }
    let version = concat!("version=\"", env!("CARGO_PKG_VERSION"), "\"");
    let text = text.replace(version, "version=\"0.0.0\"");
    same("metrics.txt", &format!("content-type: {}\n{text}", metrics.header("content-type")));
}

/// A series without its value.
fn cut(line: &str) -> String {
    line.trim_end().rsplit_once(' ').map_or(line, |(series, _)| series).to_owned()
}

#[test]
fn golden_commands() {
    let server = start(Options::default());
    let mut text = String::new();
    for words in [
        &["status"][..],
        &["bans"],
        &["top"],
        &["explain", "203.0.113.10"],
        &["ban", "192.0.2.7", "--for", "1h", "--reason", "scraper"],
        &["unban", "192.0.2.7"],
    ] {
        let mut command = Command::new(env!("CARGO_BIN_EXE_anomaly"));
        command.env("ANOMALY_DASHBOARD__SOCKET", server.socket()).args(["-c", "/dev/null"]);
        let output = command.args(words).arg("--json").output().expect("started");
        assert!(output.status.success(), "{words:?}: {output:?}");
        let body = String::from_utf8(output.stdout).expect("UTF-8");
        let _ = writeln!(text, "# anomaly {} --json\n{}", words.join(" "), indent(body.trim_end()));
    }
    same("commands.txt", &text);
}
