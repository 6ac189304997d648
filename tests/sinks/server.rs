//! A web server in place of Slack, which does to each request what a test wants.

use std::io::{BufRead as _, BufReader, Read as _, Write as _};
use std::net::{TcpListener, TcpStream};
use std::sync::{Arc, Mutex};

use anomaly::notify::Reporter;
use serde_json::Value;

/// The part of the URL that nobody may ever see.
pub const SECRET: &str = "T0SECRET/B0SECRET/abcdefSECRETabcdef";

/// What it says to a request.
#[derive(Clone, Copy)]
pub enum Reply {
    /// Status, further headers, body.
    Status(u16, &'static str, &'static str),
    /// Accepts the request and never answers.
    Hang,
    /// Closes the connection instead of answering.
    Close,
}

/// What Slack says when all is well.
pub const OK: Reply = Reply::Status(200, "", "ok");

/// A web server for one test; its thread ends with the last connection of the process.
pub struct Sink {
    /// Where to post; holds [`SECRET`].
    pub url: String,
    bodies: Arc<Mutex<Vec<Value>>>,
}

impl Sink {
    /// Answers the nth request (from 0) as `script` says.
    pub fn start(script: impl Fn(usize) -> Reply + Send + Sync + 'static) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").expect("a port");
        let url = format!("http://{}/services/{SECRET}", listener.local_addr().expect("an address"));
        let bodies = Arc::new(Mutex::new(Vec::new()));
        let (seen, script) = (Arc::clone(&bodies), Arc::new(script));
        std::thread::spawn(move || {
            for stream in listener.incoming().flatten() {
                let (seen, script) = (Arc::clone(&seen), Arc::clone(&script));
                std::thread::spawn(move || serve(stream, &seen, &*script));
            }
        });
        Self { url, bodies }
    }

    /// All bodies so far.
    pub fn bodies(&self) -> Vec<Value> {
        self.bodies.lock().expect("not poisoned").clone()
    }
}

fn serve(stream: TcpStream, seen: &Mutex<Vec<Value>>, script: &dyn Fn(usize) -> Reply) {
    let mut reader = BufReader::new(stream.try_clone().expect("a second handle"));
    let mut stream = stream;
    loop {
        let mut length = 0;
        let mut line = String::new();
        while line != "\r\n" {
            line.clear();
            if reader.read_line(&mut line).unwrap_or(0) == 0 {
                return;
            }
            if let Some(value) = line.to_ascii_lowercase().strip_prefix("content-length:") {
                length = value.trim().parse().expect("a length");
            }
        }
        let mut body = vec![0; length];
        reader.read_exact(&mut body).expect("the body");
        let n = {
            let mut seen = seen.lock().expect("not poisoned");
            seen.push(serde_json::from_slice(&body).expect("JSON"));
            seen.len() - 1
        };
        match script(n) {
            Reply::Close => return,
            Reply::Hang => {
                // Until the client gives up.
                let _ = reader.read(&mut [0]);
                return;
            }
            Reply::Status(status, headers, body) => {
                let answer = format!("HTTP/1.1 {status} X\r\n{headers}content-length: {}\r\n\r\n{body}", body.len());
                if stream.write_all(answer.as_bytes()).is_err() {
                    return;
                }
            }
        }
    }
}

/// Who reports to it: messages begin with `web1: `.
pub fn reporter() -> Reporter {
    Reporter { host: "web1".into(), dry_run: false }
}
