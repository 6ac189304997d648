//! One well-formed request with any path and any body, over TCP with the token: the answer has a status that the API knows,
//! every refusal is a problem document, and bans change by exactly what the answer says.
#![no_main]

use anomaly::report::{inert, parse_ip};
use anomaly_fuzz::{TOKEN, assert_inert, banned, client, server};
use libfuzzer_sys::fuzz_target;
use serde_json::Value;

const METHODS: [&str; 6] = ["GET", "POST", "DELETE", "HEAD", "OPTIONS", "PUT"];

// The method, a blank, the path; after the first newline, the body.
fuzz_target!(|input: &str| {
    let (line, body) = input.split_once('\n').unwrap_or((input, ""));
    let (method, path) = line.split_once(' ').unwrap_or(("GET", line));
    // The stream of events does not end; `control` looks at it.
    if !METHODS.contains(&method) || path.contains("events") || body.len() > 60_000 {
        return;
    }
    // Whatever cannot stand in a request line is written as any client would write it.
    let path: String = path
        .bytes()
        .map(|b| if b.is_ascii_graphic() { char::from(b).to_string() } else { format!("%{b:02X}") })
        .collect();
    let path = format!("/{}", path.trim_start_matches('/'));
    if path.len() > 8_000 {
        return;
    }
    let server = server();
    let before = banned(server);
    let authorization = format!("Bearer {TOKEN}");
    let headers = [("Authorization", authorization.as_str()), ("Content-Type", "application/json")];
    let answer = client::ask(client::tcp(server), method, &path, &headers, body);
    assert!(answer.status < 500, "{answer:?}");
    if answer.header("x-content-type-options") != "nosniff" {
        // Only what hyper itself refuses passes none of our layers, and it says nothing.
        assert!(matches!(answer.status, 400 | 414 | 431) && answer.body.is_empty(), "{answer:?}");
    } else if answer.status >= 400 && method != "HEAD" {
        answer.problem(answer.status);
        assert_inert(answer.json()["detail"].as_str().unwrap_or_default());
        assert!(answer.body.len() < 2_000 + 8 * input.len(), "{answer:?}");
    }
    let after = banned(server);
    let asked_for = path.split('?').next().unwrap_or_default();
    match (method, answer.status) {
        ("POST", 201) => {
            assert_eq!(asked_for, "/api/v1/bans");
            let (sent, row): (Value, Value) = (serde_json::from_str(body).expect("it was accepted"), answer.json());
            let prefix = parse_ip(sent["ip"].as_str().expect("it was accepted")).expect("it was accepted");
            assert_eq!(row["ip"].as_str().and_then(parse_ip), Some(prefix));
            let reason = sent["reason"].as_str().unwrap_or_default();
            assert!(reason.chars().count() <= 500);
            assert!(row["reason"].as_str().is_some_and(|r| r.contains(&inert(reason.trim().as_bytes()))), "{row}");
            assert_inert(row["reason"].as_str().unwrap_or_default());
            assert_eq!(row["duration_secs"].is_null(), sent["permanent"] == true, "{row}");
            assert!(after.contains(&prefix) && after.len() <= before.len() + 1);
            // Its why-card is where the answer says.
            let card = client::get(server, answer.header("location"));
            assert_eq!(card.status, 200, "{card:?}");
            assert!(card.json()["active"].as_array().is_some_and(|bans| !bans.is_empty()), "{card:?}");
        }
        ("DELETE", 200) => {
            assert!(asked_for.starts_with("/api/v1/bans/"));
            assert!(!after.is_empty() || !before.is_empty());
            assert!(after.is_subset(&before) && after.len() < before.len());
        }
        _ => assert_eq!(before, after, "{answer:?}"),
    }
});
