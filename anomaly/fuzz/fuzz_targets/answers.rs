//! The command line's output for any answer of the daemon: any bytes instead of an answer, and any JSON instead of a
//! status. No panic; the output moves no cursor and is not much longer than the answer.
#![no_main]

use std::io::{Read, Write};
use std::os::unix::net::UnixListener;
use std::path::PathBuf;
use std::sync::{LazyLock, Mutex};

use anomaly::report::{BanRow, BaselineRow, DecisionRow, Explanation, HistoryPoint, Status, TopRow};
use anomaly::time::Timestamp;
use anomaly_fuzz::assert_inert;
use libfuzzer_sys::fuzz_target;
use serde::{Serialize, de::DeserializeOwned};
use serde_json::Value;

#[path = "../../src/cli/ask.rs"]
#[expect(dead_code, reason = "the command line uses more of it")]
mod ask;
#[path = "../../src/cli/print.rs"]
#[expect(dead_code, reason = "the command line uses more of it")]
mod print;

const NOW: Timestamp = Timestamp::from_secs(1_777_281_951);

/// What the daemon behind [`SOCKET`] answers.
static ANSWER: Mutex<Vec<u8>> = Mutex::new(Vec::new());

/// A daemon that answers whatever it is told to.
static SOCKET: LazyLock<PathBuf> = LazyLock::new(|| {
    let path = tempfile::tempdir().expect("a directory").keep().join("anomaly.sock");
    let listener = UnixListener::bind(&path).expect("a socket");
    std::thread::spawn(move || {
        for mut stream in listener.incoming().flatten() {
            let (mut head, mut piece) = (Vec::new(), [0; 1024]);
            while !head.windows(4).any(|w| w == b"\r\n\r\n") {
                match stream.read(&mut piece) {
                    // The first connection only looks whether somebody listens.
                    Ok(0) | Err(_) => break,
                    Ok(n) => head.extend_from_slice(&piece[..n]),
                }
            }
            if !head.is_empty() {
                let _ = stream.write_all(&ANSWER.lock().expect("nobody panics with it"));
            }
        }
    });
    path
});

fuzz_target!(|bytes: &[u8]| {
    let value: Value = if bytes.starts_with(b"HTTP/") {
        *ANSWER.lock().expect("nobody panics with it") = bytes.to_vec();
        match ask::ask(&SOCKET, reqwest::Method::GET, "/api/v1/status", None).and_then(ask::Answer::ok) {
            Ok(value) => value,
            Err(error) => return assert_inert(&format!("{error:#}")),
        }
    } else {
        let Ok(value) = serde_json::from_slice(bytes) else { return };
        value
    };
    let printer = print::Printer::new();
    for shown in [printer.status(&value), printer.bans(&value, NOW), printer.top(&value), printer.explain(&value, NOW)]
    {
        shown.lines().for_each(assert_inert);
        // A table is as wide as its widest row, and a row has a few bytes at least.
        assert!(
            shown.len() < 5_000 + 100 * bytes.len() + bytes.len() * bytes.len(),
            "{} of {}",
            shown.len(),
            bytes.len()
        );
    }
    again::<Status>(&value);
    again::<Vec<BanRow>>(&value);
    again::<Vec<TopRow>>(&value);
    again::<Vec<DecisionRow>>(&value);
    again::<Vec<HistoryPoint>>(&value);
    again::<BaselineRow>(&value);
    again::<Explanation>(&value);
});

/// What is read as a row of ours, is written and read as the same.
fn again<T: Serialize + DeserializeOwned + PartialEq + std::fmt::Debug>(value: &Value) {
    let Ok(row) = serde_json::from_value::<T>(value.clone()) else { return };
    let written = serde_json::to_value(&row).expect("rows can be written");
    assert_eq!(serde_json::from_value::<T>(written).expect("what we write can be read"), row);
}
