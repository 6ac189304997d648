//! The audit log and the firewall snapshots: whole lines, bounded files, full disks.

use std::fs;
use std::path::Path;
use std::time::Duration;

use anomaly::audit::{Audit, Change, Event, GENERATIONS, Snapshots};
use anomaly::engine::{Ban, Origin, Unban};
use anomaly::time::Timestamp;
use ipnet::IpNet;
use serde_json::Value;

fn at(secs: i64) -> Timestamp {
    Timestamp::from_secs(1_777_281_951 + secs)
}

fn net(text: &str) -> IpNet {
    text.parse().expect("a valid prefix")
}

fn ban(note: &str) -> Ban {
    Ban {
        prefix: net("203.0.113.10/32"),
        at: at(0),
        until: Some(at(600)),
        offence: 1,
        origin: Origin::Operator,
        finding: None,
        note: note.into(),
        in_past: false,
    }
}

fn lines(path: &Path) -> Vec<Value> {
    let text = fs::read_to_string(path).expect("an audit log");
    assert!(text.ends_with('\n'));
    text.lines().map(|l| serde_json::from_str(l).unwrap_or_else(|e| panic!("{e}: {l:?}"))).collect()
}

#[test]
fn a_ban_is_one_line_with_the_documented_keys() {
    let dir = tempfile::tempdir().expect("a directory");
    let path = dir.path().join("log/audit.jsonl");
    let mut audit = Audit::open(&path, 1 << 20);
    let ban = ban("bad\n{\"event\":\"off\"}\u{1b}[2J\u{202e}");
    audit.write(at(1), "xdp", &Event::Ban { ban: &ban, error: None }).expect("written");
    audit.write(at(2), "xdp", &Event::Ban { ban: &ban, error: Some("EPERM") }).expect("written");
    let unban = Unban { prefix: ban.prefix, at: at(600), offence: 1, origin: Origin::Detector };
    audit.write(at(601), "xdp", &Event::Unban { unban: &unban, packets: 7, bytes: 420, error: None }).expect("written");
    let all = lines(&path);
    assert_eq!(all.len(), 3);
    assert_eq!(
        all[0],
        serde_json::json!({
            "ts": "2026-04-27T09:25:52Z", "event": "ban", "enforcer": "xdp", "ok": true, "error": null,
            "time": "2026-04-27T09:25:51Z", "action": "ban", "ip": "203.0.113.10", "offence": 1, "duration_secs": 600,
            "until": "2026-04-27T09:35:51Z", "origin": "operator", "in_past": false,
            "reason": "bad\\n{\"event\":\"off\"}\\u{1b}[2J\\u{202e}",
        })
    );
    assert_eq!((&all[1]["ok"], &all[1]["error"]), (&Value::Bool(false), &Value::from("EPERM")));
    assert_eq!((&all[2]["packets"], &all[2]["event"]), (&Value::from(7), &Value::from("unban")));
    let _ = (Duration::ZERO, GENERATIONS, Snapshots::open(&path, 1), Change::Unban(ban.prefix));
}
