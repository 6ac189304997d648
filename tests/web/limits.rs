//! Clients that are slow, large, many or rude.

use std::io::{Read, Write};
use std::time::{Duration, Instant};

use super::client::{ask, get, post, read_answer, tcp, unix};
use super::fake::{Options, Server};

#[expect(clippy::disallowed_methods, reason = "measures how long the server really waits")]
fn now() -> Instant {
    Instant::now()
}

#[test]
fn bodies_are_bounded_whether_they_say_their_length_or_not() {
    let server = Server::start(Options { token: Some("secret"), ..Options::default() });
    let right = [("Authorization", "Bearer secret")];
    let fits = format!(r#"{{"ip":"192.0.2.7"{}}}"#, " ".repeat(64 * 1024 - 18));
    assert_eq!(fits.len(), 64 * 1024);
    assert_eq!(post(&server, "/api/v1/bans", &right, &fits).status, 201);
    assert_eq!(post(&server, "/api/v1/bans", &right, &format!("{fits} ")).problem(413), "payload_too_large");

    let mut chunked = tcp(&server);
    chunked
        .write_all(
            b"POST /api/v1/bans HTTP/1.1\r\nHost: localhost\r\nAuthorization: Bearer secret\r\nConnection: close\r\n\
            Content-Type: application/json\r\nTransfer-Encoding: chunked\r\n\r\n",
        )
        .expect("a head");
    let chunk = format!("4000\r\n{}\r\n", " ".repeat(0x4000));
    for _ in 0..16 {
        // The server may have had enough before the end.
        if chunked.write_all(chunk.as_bytes()).is_err() {
            break;
        }
    }
    assert_eq!(read_answer(chunked).expect("an answer").problem(413), "payload_too_large");
}

#[test]
fn a_head_that_never_ends_is_cut_off_in_time_and_in_size() {
    let server = Server::start(Options::default());
    let mut large = tcp(&server);
    large.write_all(b"GET / HTTP/1.1\r\nHost: localhost\r\n").expect("a start");
    let line = format!("x-filler: {}\r\n", "y".repeat(1000));
    // Much of it may fit into the sockets in between: what counts is that the server has had enough at once.
    let _ = (0..1000).take_while(|_| large.write_all(line.as_bytes()).is_ok()).count();
    let start = now();
    let _ = large.read_to_end(&mut Vec::new());
    assert!(start.elapsed() < Duration::from_secs(5), "{:?}", start.elapsed());

    // Slowloris: a byte now and then keeps no connection alive.
    let start = now();
    let mut slow = tcp(&server);
    slow.set_read_timeout(Some(Duration::from_millis(500))).expect("a timeout");
    slow.write_all(b"GET / HTTP/1.1\r\n").expect("a start");
    let ended = loop {
        if slow.write_all(b"X").is_err() {
            break true;
        }
        match slow.read(&mut [0; 512]) {
            Ok(0) => break true,
            Ok(_) => {}
            Err(e) if matches!(e.kind(), std::io::ErrorKind::WouldBlock | std::io::ErrorKind::TimedOut) => {}
            Err(_) => break true,
        }
        if start.elapsed() > Duration::from_secs(20) {
            break false;
        }
    };
    assert!(ended, "still connected after {:?}", start.elapsed());
    assert!(start.elapsed() > Duration::from_secs(5), "{:?}", start.elapsed());
}

#[test]
fn a_body_that_never_comes_is_answered() {
    let server = Server::start(Options { token: Some("secret"), ..Options::default() });
    let mut slow = tcp(&server);
    slow.write_all(
        b"POST /api/v1/bans HTTP/1.1\r\nHost: localhost\r\nAuthorization: Bearer secret\r\nConnection: close\r\n\
        Content-Type: application/json\r\nContent-Length: 20\r\n\r\n{",
    )
    .expect("a head");
    assert_eq!(read_answer(slow).expect("an answer").problem(408), "timeout");
}

#[test]
fn too_many_connections_are_turned_away_and_the_socket_stays_free() {
    let server = Server::start(Options::default());
    let mut held: Vec<_> = (0..512).map(|_| tcp(&server)).collect();
    let refused = read_answer(tcp(&server)).expect("an answer");
    assert_eq!(refused.problem(503), "too_many_connections");
    assert_eq!(ask(unix(&server), "GET", "/api/v1/status", &[], "").status, 200);
    held.truncate(500);
    // Places come back as soon as the server sees that they are free.
    let start = now();
    while get(&server, "/healthz").status != 200 {
        assert!(start.elapsed() < Duration::from_secs(5));
    }
}

#[test]
fn a_daemon_that_does_not_answer_is_a_503_not_a_hang() {
    let server = Server::start(Options { deaf: true, ..Options::default() });
    let headers = [("Content-Type", "application/json")];
    let start = now();
    let answer = ask(unix(&server), "POST", "/api/v1/bans", &headers, r#"{"ip":"192.0.2.7"}"#);
    assert_eq!(answer.problem(503), "busy");
    assert!(start.elapsed() < Duration::from_secs(15), "{:?}", start.elapsed());
}

#[test]
fn nonsense_ends_one_connection_and_nothing_else() {
    let server = Server::start(Options::default());
    for bytes in [
        &b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03"[..],
        b"GET\r\n\r\n",
        b"GET / HTTP/9.9\r\n\r\n",
        b"GET / HTTP/1.1\r\nHost: localhost\r\nContent-Length: -1\r\n\r\n",
        b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n",
        b"\0\0\0\0\r\n\r\n",
    ] {
        let mut stream = tcp(&server);
        let _ = stream.write_all(bytes);
        let _ = stream.shutdown(std::net::Shutdown::Write);
        let mut answer = Vec::new();
        let _ = stream.read_to_end(&mut answer);
        assert!(!answer.starts_with(b"HTTP/1.1 2"), "{}", String::from_utf8_lossy(&answer));
    }
    assert_eq!(get(&server, "/healthz").status, 200);
}
