//! A client that speaks HTTP as plain bytes, so that a test can be as rude as it likes.

use std::collections::HashMap;
use std::io::{self, BufRead, BufReader, Read, Write};
use std::net::TcpStream;
use std::os::unix::net::UnixStream;
use std::time::Duration;

use super::fake::Server;

/// How long any answer may take.
const PATIENCE: Duration = Duration::from_secs(30);

/// What came back.
#[derive(Debug)]
pub struct Answer {
    pub status: u16,
    pub headers: HashMap<String, String>,
    pub body: String,
}

impl Answer {
    pub fn json(&self) -> serde_json::Value {
        serde_json::from_str(&self.body).unwrap_or_else(|e| panic!("{e}: {:?}", self.body))
    }

    pub fn header(&self, name: &str) -> &str {
        self.headers.get(name).map_or("", String::as_str)
    }

    /// Asserts that this is a problem document with this status, and gives the end of its type.
    pub fn problem(&self, status: u16) -> String {
        assert_eq!(self.status, status, "{self:?}");
        assert_eq!(self.header("content-type"), "application/problem+json", "{self:?}");
        let body = self.json();
        assert_eq!(body["status"], status, "{self:?}");
        assert!(body["detail"].as_str().is_some_and(|d| !d.is_empty()), "{self:?}");
        body["type"].as_str().and_then(|t| t.strip_prefix("urn:anomaly:")).expect("a type of ours").to_owned()
    }
}

pub fn tcp(server: &Server) -> TcpStream {
    let stream = TcpStream::connect(server.tcp).expect("the server listens");
    stream.set_read_timeout(Some(PATIENCE)).expect("a timeout");
    stream
}

pub fn unix(server: &Server) -> UnixStream {
    let stream = UnixStream::connect(server.socket()).expect("the server listens");
    stream.set_read_timeout(Some(PATIENCE)).expect("a timeout");
    stream
}

/// Sends a request as a well-behaved program would and reads the answer.
pub fn ask(mut stream: impl Read + Write, method: &str, path: &str, headers: &[(&str, &str)], body: &str) -> Answer {
    let mut text = format!("{method} {path} HTTP/1.1\r\nConnection: close\r\n");
    if !headers.iter().any(|(name, _)| name.eq_ignore_ascii_case("host")) {
        text.push_str("Host: localhost\r\n");
    }
    for (name, value) in headers {
        text.push_str(&format!("{name}: {value}\r\n"));
    }
    if !body.is_empty() {
        text.push_str(&format!("Content-Length: {}\r\n", body.len()));
    }
    text.push_str("\r\n");
    text.push_str(body);
    // The server may answer and close before all is written (413): what it says is what counts.
    let _ = stream.write_all(text.as_bytes());
    read_answer(stream).expect("an answer")
}

pub fn get(server: &Server, path: &str) -> Answer {
    ask(tcp(server), "GET", path, &[], "")
}

pub fn post(server: &Server, path: &str, headers: &[(&str, &str)], body: &str) -> Answer {
    let mut all = vec![("Content-Type", "application/json")];
    all.extend_from_slice(headers);
    ask(tcp(server), "POST", path, &all, body)
}

/// Reads one answer up to the end of the connection.
pub fn read_answer(mut stream: impl Read) -> io::Result<Answer> {
    let mut bytes = Vec::new();
    if let Err(error) = stream.read_to_end(&mut bytes)
        && bytes.is_empty()
    {
        return Err(error);
    }
    let text = String::from_utf8_lossy(&bytes).into_owned();
    let (head, body) = text.split_once("\r\n\r\n").ok_or(io::ErrorKind::UnexpectedEof)?;
    let mut lines = head.lines();
    let status = lines.next().and_then(|l| l.split(' ').nth(1)).and_then(|s| s.parse().ok());
    let headers = lines
        .filter_map(|line| line.split_once(':'))
        .map(|(name, value)| (name.trim().to_ascii_lowercase(), value.trim().to_owned()))
        .collect();
    Ok(Answer { status: status.ok_or(io::ErrorKind::InvalidData)?, headers, body: body.to_owned() })
}

/// One server-sent event.
#[derive(Debug)]
pub struct Sent {
    pub event: String,
    pub data: serde_json::Value,
}

/// A stream of events, read one by one.
pub struct Events<S: Read> {
    lines: BufReader<S>,
}

impl<S: Read + Write> Events<S> {
    /// Opens the stream and reads its head.
    pub fn open(mut stream: S) -> Self {
        stream.write_all(b"GET /api/v1/events HTTP/1.1\r\nHost: localhost\r\n\r\n").expect("the server listens");
        let mut lines = BufReader::new(stream);
        let mut head = String::new();
        while !head.ends_with("\r\n\r\n") {
            assert_ne!(lines.read_line(&mut head).expect("a head"), 0, "{head}");
        }
        assert!(head.starts_with("HTTP/1.1 200"), "{head}");
        assert!(head.contains("content-type: text/event-stream"), "{head}");
        Self { lines }
    }

    /// The next event; `None` at the end of the stream. Chunk lengths and comments are skipped.
    pub fn next(&mut self) -> Option<Sent> {
        let (mut event, mut data) = (String::new(), String::new());
        loop {
            let mut line = String::new();
            if self.lines.read_line(&mut line).expect("a line in time") == 0 {
                return None;
            }
            if let Some(name) = line.strip_prefix("event: ") {
                event = name.trim_end().to_owned();
            } else if let Some(text) = line.strip_prefix("data: ") {
                data = text.trim_end().to_owned();
            } else if line == "\n" && !event.is_empty() {
                return Some(Sent { event, data: serde_json::from_str(&data).expect("JSON") });
            }
        }
    }

    /// The next event of this name.
    pub fn wait(&mut self, name: &str) -> serde_json::Value {
        loop {
            let sent = self.next().expect("the stream goes on");
            if sent.event == name {
                return sent.data;
            }
        }
    }
}
