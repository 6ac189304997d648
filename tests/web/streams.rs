//! Following what happens.

use std::io::Read;
use std::time::Duration;

use anomaly::view::control::Event;

use super::client::{Events, get, tcp, unix};
use super::fake::{HOSTILE, Options, Server, ban_row, picture};

#[test]
fn a_status_comes_at_once_and_with_every_picture() {
    let server = Server::start(Options::default());
    let mut events = Events::open(tcp(&server));
    assert_eq!(events.wait("recent"), serde_json::json!([]));
    assert_eq!(events.wait("status")["global_rate"], 41.5);
    assert_eq!(events.wait("top")[0]["ip"], "203.0.113.10");
    server.show(|live| live.status.global_rate = 77.0);
    assert_eq!(events.wait("status")["global_rate"], 77.0);
    assert_eq!(Events::open(unix(&server)).wait("status")["global_rate"], 77.0);
}

#[test]
fn decisions_and_anomalies_come_as_they_happen_and_are_told_to_those_who_come_later() {
    let server = Server::start(Options::default());
    let mut events = Events::open(tcp(&server));
    events.wait("status");
    let row = ban_row("203.0.113.10");
    let send = |action: &str| {
        let mut row = row.decision.clone();
        row.action = action.into();
        server.events.send(Event { row, reason: row_reason() }).expect("the server listens");
    };
    send("ban");
    let ban = events.wait("decision");
    assert_eq!((&ban["action"], &ban["ip"], &ban["rate"]), (&"ban".into(), &"203.0.113.10".into(), &14.2.into()));
    assert_eq!(ban["reason"], HOSTILE);
    send("global_anomaly");
    assert_eq!(events.wait("anomaly")["action"], "global_anomaly");
    for action in ["braked", "level_accepted"] {
        send(action);
        assert_eq!(events.wait("anomaly")["action"], action);
    }
    let late = Events::open(tcp(&server)).wait("recent");
    assert_eq!(late.as_array().map(Vec::len), Some(4));
    assert_eq!(late[1]["action"], "global_anomaly");
}

/// A reason that would forge an event if it were not JSON on one line.
fn row_reason() -> String {
    HOSTILE.into()
}

#[test]
fn a_slow_follower_is_told_what_it_missed_and_holds_nobody_up() {
    let server = Server::start(Options::default());
    let mut slow = Events::open(tcp(&server));
    let mut quick = Events::open(tcp(&server));
    slow.wait("status");
    quick.wait("status");
    let row = ban_row("203.0.113.10").decision;
    // 40 MB in all: far more than the sockets in between can hold.
    let padding = "x".repeat(4000);
    for n in 0..10_000 {
        let event = Event { row: row.clone(), reason: format!("{n} {padding}") };
        while server.events.len() > 900 {
            std::thread::sleep(Duration::from_millis(1));
        }
        server.events.send(event).expect("the server listens");
        let seen = quick.wait("decision");
        assert!(seen["reason"].as_str().is_some_and(|r| r.starts_with(&format!("{n} "))), "{n}");
    }
    let missed = slow.wait("lagged")["missed"].as_u64();
    assert!(missed.is_some_and(|n| n > 0), "{missed:?}");
    // And what the newest were, in place of what it missed.
    let recent = slow.wait("recent");
    let newest = recent.as_array().and_then(|rows| rows.last()).map(|row| row["reason"].clone());
    assert!(newest.as_ref().and_then(|r| r.as_str()).is_some_and(|r| r.starts_with("9999 ")), "{newest:?}");
}

#[test]
fn the_stream_names_no_more_clients_than_a_page_shows() {
    let server = Server::start(Options::default());
    server.show(|live| live.top = vec![live.top[0].clone(); 100]);
    let mut events = Events::open(tcp(&server));
    assert_eq!(events.wait("top").as_array().map(Vec::len), Some(20));
    assert_eq!(get(&server, "/api/v1/top").json().as_array().map(Vec::len), Some(100));
}

#[test]
fn streams_are_counted_and_end_with_the_server() {
    let mut server = Server::start(Options::default());
    let mut events = Events::open(tcp(&server));
    events.wait("status");
    assert!(get(&server, "/metrics").body.contains("anomaly_http_event_streams 1"));
    server.stop();
    while events.next().is_some() {}
    assert!(std::net::TcpStream::connect(server.tcp).is_err());
}

#[test]
fn a_follower_that_left_is_forgotten() {
    let server = Server::start(Options::default());
    let mut events = Events::open(tcp(&server));
    events.wait("status");
    drop(events);
    // The server sees it when it next has something to say.
    for _ in 0..200 {
        server.show(|live| *live = picture());
        if get(&server, "/metrics").body.contains("anomaly_http_event_streams 0") {
            return;
        }
        std::thread::sleep(Duration::from_millis(10));
    }
    panic!("the stream is still counted");
}

#[test]
fn a_head_request_for_the_stream_ends() {
    let server = Server::start(Options::default());
    let mut stream = tcp(&server);
    std::io::Write::write_all(
        &mut stream,
        b"HEAD /api/v1/events HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n",
    )
    .expect("the server listens");
    let mut answer = String::new();
    stream.read_to_string(&mut answer).expect("an end");
    assert!(answer.starts_with("HTTP/1.1 200"), "{answer}");
}
