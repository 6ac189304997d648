//! What scripts rely on: commands and their flags, JSON keys, events, paths, configuration keys. A change here is a
//! breaking change: it needs a line in CHANGELOG.md, not an adapted test.

use std::collections::{BTreeMap, BTreeSet};
use std::io::{BufRead as _, BufReader, Read as _, Write as _};
use std::net::TcpStream;
use std::os::unix::net::UnixListener;
use std::process::{Command, Stdio};
use std::time::Duration;

use serde_json::Value;

use crate::dry_run::DryRun;
use crate::lab::{clock, history};

/// Whose flood is banned.
const ATTACKER: &str = "203.0.113.10";

/// Keys of a ban's row.
pub const BAN: &[&str] = &[
    "time",
    "action",
    "ip",
    "rule",
    "error_surge",
    "rate",
    "baseline",
    "z_score",
    "offence",
    "duration_secs",
    "category",
    "grade",
    "limit",
    "limit_source",
    "route",
    "sentence",
];
/// Of an unban's.
pub const UNBAN: &[&str] = &["time", "action", "ip", "offence"];
/// Of a global anomaly's.
pub const GLOBAL_ANOMALY: &[&str] = &["time", "action", "rule", "rate", "baseline", "z_score"];
/// What only a ban by the detector has.
pub const FOUND: &[&str] =
    &["rule", "error_surge", "rate", "baseline", "z_score", "grade", "limit", "limit_source", "route"];
/// Where detection adds a signal.
const SIGNAL: &[&str] = &["signal", "signal_value"];
const BASELINE: &[&str] = &["scope", "mean", "stddev", "source"];
/// What the row of an active ban has beside those.
pub const ACTIVE: &[&str] = &["since", "until", "origin", "reason", "enforcer", "packets", "bytes"];
/// Of replay's last line.
pub const SUMMARY: &[&str] = &[
    "records",
    "rejected",
    "late",
    "blocked",
    "bans",
    "unbans",
    "global_anomalies",
    "tracked_ips_peak",
    "elapsed_secs",
    "records_per_sec",
];
/// What the status has at least.
pub const STATUS: &[&str] = &[
    "version",
    "uptime_secs",
    "enforcer",
    "xdp_mode",
    "interfaces",
    "enforcement_ratio",
    "records",
    "rejected",
    "active_bans",
    "global_rate",
    "baseline",
    "unhealthy",
    "degraded",
];
const AUDIT: &[&str] = &["ts", "event", "enforcer", "ok", "error"];

/// Commands with the flags that they must have.
const COMMANDS: &[(&str, &[&str])] = &[
    ("run", &["--log", "--interface", "--backend"]),
    ("replay", &["--json", "--baseline", "--learn"]),
    ("status", &["--json", "--check"]),
    ("bans", &["--json"]),
    ("top", &["--json", "--watch"]),
    ("ban", &["--for", "--reason", "--json"]),
    ("unban", &["--json"]),
    ("explain", &["--json"]),
    ("config default", &[]),
    ("config check", &["--json"]),
    ("doctor", &["--json"]),
    ("off", &["--json"]),
    ("down", &["--json"]),
    ("completions", &[]),
    ("man", &[]),
];

/// Keys of the configuration that scripts set, each with its default or a value like it.
const CONFIGURATION: &str = r#"
allowlist = ["192.0.2.1"]
trusted_proxies = ["192.0.2.2"]
log = { paths = ["/nowhere/access.json"], backfill_secs = 86400, log_requests = false }
enforcer = { backend = "dry-run", interfaces = ["eth0"], xdp_mode = "auto", on_stop = "keep", grace_secs = 86400, pin_dir = "/sys/fs/bpf/x", iptables_max_rules = 5000 }
window = { seconds = 60 }
baseline = { history_secs = 1800, recalc_secs = 60, min_hour_samples = 300, warmup_secs = 120 }
thresholds = { z_score = 3.0, rate_multiplier = 5.0, error_surge_multiplier = 3.0, tightened_z_score = 2.0, tightened_rate_multiplier = 3.0, min_mean_rps = 0.2, min_stddev_rps = 0.05, min_error_rate = 0.01, min_requests = 30, hard_limit = 1200, global_min_ratio = 1.5, global_cooldown_secs = 120 }
bans = { durations = ["10m", "30m", "2h", "permanent"], max_tracked_ips = 100000, ipv6_prefix = 64, offence_decay_secs = 2592000, unban_grace_secs = 300, brake_per_minute = 20, brake_share = 0.05 }
notify = { slack = { webhook_url = "https://hooks.example.net/x" } }
dashboard = { listen = "127.0.0.1:8081", socket = "/run/anomaly/x.sock", token = "0123456789abcdef" }
store = { path = "/var/lib/anomaly/x.db" }
audit = { path = "/var/log/anomaly/x.jsonl", snapshot_path = "/var/log/anomaly/x.log", max_bytes = 52428800 }
"#;

fn anomaly(words: &[&str]) -> std::process::Output {
    Command::new(env!("CARGO_BIN_EXE_anomaly")).args(words).output().expect("started")
}

fn keys(value: &Value) -> BTreeSet<&str> {
    value.as_object().unwrap_or_else(|| panic!("no object: {value}")).keys().map(String::as_str).collect()
}

/// The data of a stream's next event of this name.
fn event(stream: &mut BufReader<TcpStream>, wanted: &str) -> Value {
    let mut line = String::new();
    loop {
        line.clear();
        assert!(stream.read_line(&mut line).expect("an event in time") > 0, "the stream ended before {wanted}");
        if line.trim_end() == format!("event: {wanted}") {
            line.clear();
            stream.read_line(&mut line).expect("its data");
            return serde_json::from_str(line.trim_start_matches("data: ")).expect("JSON");
        }
    }
}

/// The keys of a row that it must have, and no others but those of a signal.
fn exactly(row: &Value, wanted: &[&[&str]]) {
    let wanted: BTreeSet<&str> = wanted.concat().into_iter().collect();
    let mut found = keys(row);
    found.retain(|key| !SIGNAL.contains(key));
    assert_eq!(found, wanted, "{row}");
    assert_eq!(row.get("signal").is_some(), row.get("signal_value").is_some(), "{row}");
    if let Some(baseline) = row.get("baseline") {
        assert_eq!(keys(baseline), BASELINE.iter().copied().collect(), "{row}");
    }
}

fn flood(from: u64, seconds: u64, ip: &str) -> String {
    (from..from + seconds).map(|second| history::line(second, ip, "/", 200).repeat(50)).collect()
}

#[test]
fn commands_have_their_flags_and_say_what_was_meant() {
    for (command, flags) in COMMANDS {
        let words: Vec<&str> = command.split(' ').chain(["--help"]).collect();
        let output = anomaly(&words);
        let help = String::from_utf8_lossy(&output.stdout);
        assert!(output.status.success(), "{command}: {output:?}");
        for flag in flags.iter().chain(&["--config", "-c"]) {
            assert!(help.contains(flag), "{command} lacks {flag}: {help}");
        }
    }
    for (wrong, meant) in
        [(&["stauts"][..], "status"), (&["top", "--wach"], "--watch"), (&["completions", "bsh"], "bash")]
    {
        let output = anomaly(wrong);
        let said = String::from_utf8_lossy(&output.stderr).into_owned();
        assert!(output.status.code() == Some(2) && said.contains(meant), "{wrong:?}: {said}");
    }
    for shell in ["bash", "zsh", "fish"] {
        let output = anomaly(&["completions", shell]);
        assert!(String::from_utf8_lossy(&output.stdout).contains("explain"), "{shell}");
    }
}

#[test]
fn a_key_of_the_configuration_keeps_its_name_and_a_wrong_one_is_told_with_the_right_one() {
    let dir = tempfile::tempdir().expect("a directory");
    let file = dir.path().join("anomaly.toml");
    let file = file.to_str().expect("a path");
    std::fs::write(file, CONFIGURATION).expect("written");
    let output = anomaly(&["config", "check", "-c", file]);
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    assert!(!format!("{output:?}").contains("hooks.example.net"), "{output:?}");
    std::fs::write(file, "[thresholds]\nz_scroe = 3.0\n").expect("written");
    let output = anomaly(&["config", "check", "-c", file]);
    let said = String::from_utf8_lossy(&output.stderr).into_owned();
    assert!(output.status.code() == Some(2) && said.contains("z_scroe") && said.contains("z_score"), "{said}");
}

/// A wrong line in the allow-list's file keeps nobody from letting people in again.
#[test]
fn a_broken_allowlist_file_stops_what_reads_it_and_nothing_else() {
    let dir = tempfile::tempdir().expect("a directory");
    let place = |name: &str| dir.path().join(name).display().to_string();
    std::fs::write(place("allowlist"), "203.0.113.9\noffice.example.org\n").expect("written");
    std::fs::write(place("access.json"), "").expect("written");
    let text = format!(
        "allowlist_file = \"{}\"\n[log]\npaths = [\"{}\"]\n[enforcer]\nbackend = \"dry-run\"\npin_dir = \"{}\"\n\
         [dashboard]\nsocket = \"{}\"\n",
        place("allowlist"),
        place("access.json"),
        place("pins"),
        place("socket")
    );
    let file = place("anomaly.toml");
    std::fs::write(&file, text).expect("written");
    let told = |words: &[&str]| {
        let output = anomaly(&[&["-c", file.as_str()], words].concat());
        (output.status.code(), String::from_utf8_lossy(&output.stderr).into_owned())
    };
    for words in [&["run"][..], &["replay", &place("access.json")], &["config", "check"], &["doctor"]] {
        let (code, said) = told(words);
        assert_eq!(code, Some(2), "{words:?}: {said}");
        assert!(said.contains(&place("allowlist")) && said.contains("line 2"), "{words:?}: {said}");
    }
    let ip = "203.0.113.10";
    for words in [&["status"][..], &["bans"], &["top"], &["explain", ip], &["ban", ip], &["unban", ip]] {
        // No daemon listens: that is what they fail for.
        let (code, said) = told(words);
        assert!(code == Some(1) && said.contains(&place("socket")), "{words:?}: {code:?} {said}");
    }
    // As the package's removal does where the configuration is broken too.
    let mut command = Command::new(env!("CARGO_BIN_EXE_anomaly"));
    command.env("ANOMALY_ALLOWLIST_FILE", place("allowlist")).env("ANOMALY_DASHBOARD__SOCKET", place("socket"));
    let output = command.args(["-c", "/dev/null", "status"]).output().expect("started");
    assert_eq!(output.status.code(), Some(1), "{output:?}");
}

#[test]
fn replay_gives_one_row_a_decision_and_a_summary() {
    let (start, half_hour) = (1_777_280_000, 1800);
    let mut log = history::quiet(start, 30, 0) + &flood(start, 10, ATTACKER);
    // The site as a whole: many at once, none of them much.
    for second in 20..50 {
        for client in 0..60 {
            log += &history::line(start + second, &format!("198.51.100.{}", 100 + client), "/", 200);
        }
    }
    log += &history::quiet(start + half_hour + 60, 29, 0);
    let dir = tempfile::tempdir().expect("a directory");
    let file = dir.path().join("access.json");
    std::fs::write(&file, log).expect("written");
    let output = anomaly(&["replay", "--json", file.to_str().expect("a path")]);
    assert!(output.status.success(), "{output:?}");
    let rows: Vec<Value> =
        output.stdout.lines().map(|line| serde_json::from_str(&line.expect("a line")).expect("JSON")).collect();
    let (summary, rows) = rows.split_last().expect("a summary");
    assert_eq!(keys(summary), BTreeSet::from(["summary"]));
    assert_eq!(keys(&summary["summary"]), SUMMARY.iter().copied().collect());
    let mut seen: BTreeMap<&str, u64> = BTreeMap::new();
    for row in rows {
        let action = row["action"].as_str().expect("an action");
        *seen.entry(action).or_default() += 1;
        match action {
            "ban" => exactly(row, &[BAN]),
            "unban" => exactly(row, &[UNBAN]),
            "global_anomaly" => exactly(row, &[GLOBAL_ANOMALY]),
            other => panic!("{other}"),
        }
    }
    for (action, sum) in [("ban", "bans"), ("unban", "unbans"), ("global_anomaly", "global_anomalies")] {
        assert_eq!(summary["summary"][sum].as_u64(), seen.get(action).copied(), "{action}: {seen:?}");
    }
    let ban = rows.iter().find(|row| row["action"] == "ban" && row["ip"] == ATTACKER).expect("a ban");
    assert_eq!((&ban["offence"], &ban["duration_secs"], &ban["error_surge"]), (&1.into(), &600.into(), &false.into()));
    assert_eq!(ban["baseline"]["scope"], "ip");
}

#[test]
fn a_watch_whose_daemon_hangs_ends_at_once() {
    for answered in [0, 2] {
        let dir = tempfile::tempdir().expect("a directory");
        let socket = dir.path().join("sock");
        let listener = UnixListener::bind(&socket).expect("bound");
        let mut command = Command::new(env!("CARGO_BIN_EXE_anomaly"));
        command.env("ANOMALY_DASHBOARD__SOCKET", &socket).args(["top", "--watch"]);
        let mut watch = command.stdout(Stdio::null()).stderr(Stdio::piped()).spawn().expect("started");
        // Answers the first questions (a status and a top are one picture), and lets the next one hang.
        let (mut left, mut hangs) = (answered, None);
        while hangs.is_none() {
            let (mut stream, _) = listener.accept().expect("a question");
            let mut head = [0; 4096];
            match stream.read(&mut head).expect("read") {
                // It only looks whether anybody is there.
                0 => {}
                _ if left == 0 => hangs = Some(stream),
                _ => {
                    left -= 1;
                    write!(stream, "HTTP/1.1 200 OK\r\nConnection: close\r\nContent-Length: 2\r\n\r\n{{}}")
                        .expect("sent");
                }
            }
        }
        let pid = rustix::process::Pid::from_child(&watch);
        rustix::process::kill_process(pid, rustix::process::Signal::INT).expect("interrupted");
        // A question is given up after 30 s.
        let ended = clock::wait_for("its end", Duration::from_secs(15), || watch.try_wait().expect("waited"));
        let _ = watch.kill();
        let output = watch.wait_with_output().expect("waited");
        assert!(ended.is_ok_and(|status| status.success()), "after {answered} answers: {output:?}");
    }
}

#[test]
fn status_bans_audit_and_api_have_their_keys_and_the_stream_its_events() {
    let now = clock::epoch_secs();
    let port = std::net::TcpListener::bind("127.0.0.1:0").expect("a port").local_addr().expect("an address").port();
    let daemon = DryRun::start(&history::quiet(now, 30, 2), &format!("dashboard.listen = \"127.0.0.1:{port}\"\n"));
    let ask = |method: &str, path: &str, body: &str| {
        let length = body.len();
        let mut stream = TcpStream::connect(("127.0.0.1", port)).expect("the dashboard listens");
        let head = format!("{method} {path} HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n");
        write!(stream, "{head}Content-Type: application/json\r\nContent-Length: {length}\r\n\r\n{body}").expect("sent");
        stream
    };
    let read = |mut stream: TcpStream| -> (u16, String) {
        let mut answer = String::new();
        stream.read_to_string(&mut answer).expect("an answer");
        let status = answer.get(9..12).and_then(|s| s.parse().ok()).expect("a status");
        (status, answer.split_once("\r\n\r\n").expect("a body").1.to_owned())
    };
    clock::wait_until("the port", Duration::from_secs(10), || TcpStream::connect(("127.0.0.1", port)).is_ok())
        .expect("a port");

    let open = || {
        let stream = ask("GET", "/api/v1/events", "");
        stream.set_read_timeout(Some(Duration::from_secs(20))).expect("set");
        BufReader::new(stream)
    };
    // A status comes at once: streams that are opened in turn see the same picture. Did it only come with the next
    // second's picture, each would see another one.
    let firsts: Vec<Value> = (0..20).map(|_| event(&mut open(), "status")).collect();
    let pictures: BTreeSet<&str> = firsts.iter().map(|status| status["time"].as_str().expect("a time")).collect();
    assert!(pictures.len() <= firsts.len() / 2, "a status does not come at once: {pictures:?}");
    let mut stream = open();
    let status = event(&mut stream, "status");
    // And every second, with much room for a busy machine.
    let opened = clock::now();
    let next = (0..5).map(|_| event(&mut stream, "status")).next_back().expect("five");
    assert!(opened.elapsed() < Duration::from_secs(20), "five of them after {:?}", opened.elapsed());
    assert!(next["uptime_secs"].as_u64() > status["uptime_secs"].as_u64(), "{status} {next}");
    let mut event = |wanted: &str| event(&mut stream, wanted);

    daemon.log().write_all(flood(clock::epoch_secs(), 1, ATTACKER).repeat(3).as_bytes()).expect("written");
    let decision = event("decision");
    assert_eq!((&decision["action"], &decision["ip"]), (&"ban".into(), &ATTACKER.into()), "{decision}");
    let status = daemon.json(&["status"]).expect("a status");
    for key in STATUS {
        assert!(status.get(key).is_some(), "status lacks {key}: {status}");
    }
    // The list is a picture of at most a second ago.
    let listed = || daemon.json(&["bans"]).filter(|rows| rows[0].is_object());
    let rows = clock::wait_for("the ban in the list", Duration::from_secs(20), listed).expect("a ban");
    exactly(&rows[0], &[BAN, ACTIVE]);
    for path in
        ["status", "bans", "top", "baseline", "history", "openapi.json", "bans/203.0.113.10", "bans/203.0.113.0%2F24"]
    {
        let (status, body) = read(ask("GET", &format!("/api/v1/{path}"), ""));
        assert_eq!(status, 200, "{path}: {body}");
        serde_json::from_str::<Value>(&body).expect("JSON");
    }
    for path in ["/", "/metrics", "/healthz"] {
        assert_eq!(read(ask("GET", path, "")).0, 200, "{path}");
    }
    // No token is configured.
    assert_eq!(read(ask("DELETE", "/api/v1/bans/203.0.113.10", "")).0, 403);
    assert_eq!(read(ask("POST", "/api/v1/bans", "{\"ip\":\"192.0.2.7\"}")).0, 403);

    let lifted = daemon.json(&["unban", ATTACKER]).expect("lifted");
    exactly(&lifted[0], &[UNBAN]);
    assert_eq!(event("decision")["action"], "unban");
    let lines = daemon.audit().read();
    for line in &lines {
        assert!(AUDIT.iter().all(|key| line.get(key).is_some()), "{line}");
    }
    let line = |event: &str| lines.iter().find(|line| line["event"] == event).unwrap_or_else(|| panic!("no {event}"));
    exactly(line("ban"), &[BAN, AUDIT, &["until", "origin", "reason", "in_past"]]);
    exactly(line("unban"), &[UNBAN, AUDIT, &["origin", "reason", "packets", "bytes"]]);
    assert_eq!(line("started")["ok"], true);
}

#[test]
fn status_says_what_the_daemon_costs_its_host() {
    let now = clock::epoch_secs();
    let daemon = DryRun::start(&history::quiet(now, 30, 2), "");
    let cost = || {
        // An idle daemon uses less than a thousandth of a core.
        daemon
            .log()
            .write_all(history::line(clock::epoch_secs(), "198.51.100.7", "/app.css", 200).repeat(2000).as_bytes())
            .ok()?;
        let status = daemon.json(&["status"])?;
        let [cpu, host_cpu, host_memory] = ["cpu", "host_cpu", "host_memory"].map(|key| status[key].as_f64());
        Some((cpu?, host_cpu?, host_memory?, status["memory_bytes"].as_u64()?))
    };
    let known = || cost().filter(|(cpu, host_cpu, ..)| *cpu > 0.0 && *host_cpu > 0.0);
    let (cpu, host_cpu, host_memory, memory) =
        clock::wait_for("figures of the machine", Duration::from_secs(30), known)
            .unwrap_or_else(|e| panic!("{e}: {:?}", cost()));
    assert!(cpu < 64.0 && host_cpu <= 1.0, "{cpu} {host_cpu}");
    assert!(host_memory > 0.0 && host_memory < 1.0, "{host_memory}");
    assert!((1 << 20..1 << 32).contains(&memory), "{memory}");
}

/// Without a record nothing warms up, whatever the clock says.
#[test]
fn status_is_true_before_the_first_record() {
    let daemon = DryRun::start("", "baseline.warmup_secs = 1\n");
    let status = || daemon.json(&["status"]).expect("a status");
    clock::wait_until("three seconds without a record", Duration::from_secs(20), || {
        status()["uptime_secs"].as_u64() >= Some(3)
    })
    .expect("passed");
    let (before, said) = (status(), daemon.command(&["status"]));
    assert_eq!((&before["log_time"], &before["warmup_left_secs"]), (&Value::Null, &1.into()), "{before}");
    assert_eq!(before["baseline"]["samples"], 0, "{before}");
    let said = String::from_utf8_lossy(&said.stdout).into_owned();
    assert!(said.contains("1s from the first request on"), "{said}");
    daemon.log().write_all(history::line(clock::epoch_secs(), "198.51.100.7", "/", 200).as_bytes()).expect("written");
    clock::wait_until("the end of the warm-up", Duration::from_secs(20), || status()["warmup_left_secs"] == 0)
        .unwrap_or_else(|e| panic!("{e}: {}", status()));
}

#[test]
fn a_ban_by_hand_keeps_the_longer_one_and_says_so() {
    let daemon = DryRun::start("", "");
    let ban = |more: &[&str]| {
        let output = daemon.command(&[&["ban", ATTACKER], more].concat());
        assert!(output.status.success(), "{output:?}");
        String::from_utf8_lossy(&output.stdout).into_owned()
    };
    ban(&["--for", "permanent", "--reason", "never again"]);
    let said = ban(&["--for", "30m", "--reason", "again"]);
    for words in ["stays banned permanently", "offence 1: never again", "--replace"] {
        assert!(said.contains(words), "{words}: {said}");
    }
    let answer = daemon.json(&["ban", ATTACKER, "--for", "30m"]).expect("an answer");
    assert_eq!(
        (&answer["kept"], &answer["until"], &answer["reason"]),
        (&true.into(), &Value::Null, &"never again".into())
    );
    let listed = || daemon.json(&["bans"]).filter(|rows| rows[0].is_object());
    let rows = clock::wait_for("the ban in the list", Duration::from_secs(20), listed).expect("a ban");
    assert_eq!((&rows[0]["until"], &rows[0]["reason"], rows[1].is_null()), (&Value::Null, &"never again".into(), true));
    assert!(ban(&["--for", "30m", "--replace"]).contains("is banned until"));
    let answer = daemon.json(&["ban", ATTACKER, "--for", "1h"]).expect("an answer");
    assert_eq!((&answer["kept"], &answer["duration_secs"]), (&false.into(), &3600.into()), "{answer}");
    let lines = daemon.audit().read();
    let events: Vec<&str> = lines.iter().filter_map(|line| line["event"].as_str()).collect();
    assert_eq!(events, ["started", "ban", "ban_kept", "ban_kept", "ban", "ban"]);
    assert_eq!((&lines[2]["reason"], &lines[2]["asked_reason"]), (&"never again".into(), &"again".into()));
}

#[test]
fn status_says_that_the_brake_holds() {
    let now = clock::epoch_secs();
    // People: they have looked at some pages before. Others are not spared.
    let looks = |ip: &str| {
        let page = |name| history::line(now - 1810, ip, &format!("/{name}/latest"), 200);
        ["news", "shop", "team", "jobs", "help", "blog"].map(page).concat()
    };
    let people: String = (1..5).map(|n| looks(&format!("203.0.113.{n}"))).collect();
    let daemon = DryRun::start(&(people + &history::quiet(now, 30, 2)), "bans.brake_per_minute = 2\n");
    let words = || {
        let status = daemon.json(&["status"])?;
        let rows = status["degraded"].as_array()?.clone();
        Some(rows.iter().filter_map(|row| Some(row["what"].as_str()?.to_owned())).collect::<Vec<_>>())
    };
    let crowd = |clients: std::ops::Range<u32>| {
        let second = clock::epoch_secs();
        let lines: String = clients.map(|n| flood(second, 3, &format!("203.0.113.{n}"))).collect();
        daemon.log().write_all(lines.as_bytes()).expect("written");
    };
    crowd(1..3);
    let bans = || daemon.json(&["bans"]).and_then(|rows| Some(rows.as_array()?.len()));
    clock::wait_until("two bans", Duration::from_secs(10), || bans() == Some(2)).expect("banned");
    assert_eq!(words(), Some(vec![]));
    crowd(3..5);
    clock::wait_until("the brake", Duration::from_secs(10), || words() == Some(vec!["braked".into()]))
        .unwrap_or_else(|e| panic!("{e}: {:?} {:?}", words(), bans()));
    assert_eq!(bans(), Some(2));
}
