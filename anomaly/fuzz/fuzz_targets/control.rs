//! Any bytes on the Unix socket that the command line uses: each answer is HTTP, the connection ends soon after its client's
//! end, and the next client is served.
#![no_main]

use std::io::{ErrorKind, Read, Write};
use std::net::Shutdown;
use std::time::Duration;

use anomaly_fuzz::{client, server};
use libfuzzer_sys::fuzz_target;

/// Asks for the end of the connection, wherever the bytes before it end in a whole request.
const LAST: &[u8] = b"GET /healthz HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n";
/// After so much silence we go away: it waits for more, or follows what happens.
const SILENCE: Duration = Duration::from_millis(20);

fuzz_target!(|bytes: &[u8]| {
    // The stream of events goes on as long as somebody reads it, also behind requests that nobody waits for.
    if bytes.windows(6).any(|window| window == b"events") {
        return;
    }
    let server = server();
    let mut stream = client::unix(server);
    // It may have refused the first bytes and gone before the last are written.
    let _ = stream.write_all(bytes).and_then(|()| stream.write_all(LAST));
    let (mut answers, mut gone, mut piece) = (Vec::new(), false, [0; 16 * 1024]);
    stream.set_read_timeout(Some(SILENCE)).expect("a timeout");
    loop {
        match stream.read(&mut piece) {
            Ok(0) => break,
            Ok(n) => answers.extend_from_slice(&piece[..n]),
            // The fuzzer's own alarm.
            Err(e) if e.kind() == ErrorKind::Interrupted => {}
            Err(e) if matches!(e.kind(), ErrorKind::WouldBlock | ErrorKind::TimedOut) && !gone => {
                gone = true;
                let _ = stream.shutdown(Shutdown::Write);
                stream.set_read_timeout(Some(Duration::from_secs(10))).expect("a timeout");
            }
            Err(e) if matches!(e.kind(), ErrorKind::ConnectionReset | ErrorKind::BrokenPipe) => break,
            Err(e) => panic!("the connection stays open: {e}"),
        }
    }
    // A page is a hundred kilobytes at most, and a request has a few bytes at least.
    assert!(answers.len() < 200_000 * (1 + bytes.len() / 16), "{} bytes", answers.len());
    if !answers.is_empty() {
        let status = answers.strip_prefix(b"HTTP/1.1 ").or_else(|| answers.strip_prefix(b"HTTP/1.0 "));
        let status = status.and_then(|rest| std::str::from_utf8(rest.get(..3)?).ok()?.parse::<u16>().ok());
        assert!(status.is_some_and(|s| (200..600).contains(&s)), "{:?}", String::from_utf8_lossy(&answers));
    }
    let healthy = client::ask(client::unix(server), "GET", "/healthz", &[], "");
    assert_eq!(healthy.status, 200);
});
