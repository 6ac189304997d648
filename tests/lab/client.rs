//! HTTP clients: one request per TCP connection, at a fixed rate, from a chosen address.
//!
//! Requests are due at fixed times whether or not earlier ones were answered, as a crowd's would be;
//! a dropped client so keeps knocking. Curl is there too, for people to recognise.

use std::io::{Read, Write};
use std::net::{IpAddr, SocketAddr, TcpStream};
use std::os::fd::OwnedFd;
use std::process::Command;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use rustix::net::{AddressFamily, SocketFlags, SocketType, sockopt};

use super::space::Space;
use super::{SERVER, clock};

/// What became of a request.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Answer {
    /// An HTTP status.
    Status(u16),
    /// No TCP connection within the patience: what a dropped client sees.
    NoConnection,
    /// A connection, but no (whole) answer.
    Silence,
}

/// One request.
#[derive(Clone, Copy, Debug)]
pub struct Attempt {
    /// When it began.
    pub began: Instant,
    /// How.
    pub answer: Answer,
}

/// Who asks for what, how often.
#[derive(Clone, Copy, Debug)]
pub struct Plan {
    /// Source address; must be one of the namespace's.
    pub from: IpAddr,
    /// Path, as it goes over the wire.
    pub path: &'static [u8],
    /// Requests per second.
    pub rate: f64,
    /// How long to wait for a connection, and for its answer.
    pub patience: Duration,
    /// Whom it says it speaks for, in X-Forwarded-For; nobody where empty.
    pub forwarded: &'static str,
}

impl Plan {
    /// `GET /` at `rate`, with two seconds of patience.
    pub fn new(from: IpAddr, rate: f64) -> Self {
        Self { from, path: b"/", rate, patience: Duration::from_secs(2), forwarded: "" }
    }
}

struct Shared {
    stop: AtomicBool,
    attempts: Mutex<Vec<Attempt>>,
}

/// Traffic that goes on until it is stopped or dropped.
pub struct Traffic {
    shared: Arc<Shared>,
    thread: Option<std::thread::JoinHandle<Result<()>>>,
    /// When its first request was due.
    pub began: Instant,
}

impl Traffic {
    /// Starts asking.
    pub fn start(space: &Space, plan: Plan) -> Self {
        let shared = Arc::new(Shared { stop: AtomicBool::new(false), attempts: Mutex::new(Vec::new()) });
        let began = clock::now();
        let entrance = space.entrance();
        let ours = shared.clone();
        let thread = std::thread::spawn(move || entrance.within(|| ask_at_rate(plan, began, &ours)));
        Self { shared, thread: Some(thread), began }
    }

    /// All attempts that are over.
    pub fn attempts(&self) -> Vec<Attempt> {
        self.shared.attempts.lock().expect("no client panics").clone()
    }

    /// Waits until the newest attempts of this client, begun after `since`, are all without a connection.
    ///
    /// # Errors
    /// When that does not happen within `patience`.
    pub fn wait_for_cut(&self, since: Instant, patience: Duration) -> Result<()> {
        clock::wait_until("the client to be cut off", patience, || self.is_cut(since))
    }

    /// Whether the newest attempts of this client, begun after `since`, are all without a connection.
    pub fn is_cut(&self, since: Instant) -> bool {
        let attempts = self.attempts();
        let late: Vec<_> = attempts.iter().filter(|a| a.began >= since).collect();
        late.iter().rev().take_while(|a| a.answer == Answer::NoConnection).count() >= 5
    }

    /// When the first request began that got no connection.
    pub fn first_cut(&self) -> Option<Instant> {
        self.attempts().iter().filter(|a| a.answer == Answer::NoConnection).map(|a| a.began).min()
    }

    /// Ends it, and says how all of it went.
    ///
    /// # Errors
    /// When the namespace could not be entered.
    pub fn stop(mut self) -> Result<Vec<Attempt>> {
        self.end()?;
        Ok(self.attempts())
    }

    fn end(&mut self) -> Result<()> {
        self.shared.stop.store(true, Ordering::Relaxed);
        match self.thread.take().map(std::thread::JoinHandle::join) {
            Some(Err(_)) => bail!("the client's thread panicked"),
            Some(Ok(result)) => result,
            None => Ok(()),
        }
    }
}

impl Drop for Traffic {
    fn drop(&mut self) {
        let _ = self.end();
    }
}

/// Sends request n at `began + n / rate`; enough threads that none waits for another's answer.
fn ask_at_rate(plan: Plan, began: Instant, shared: &Shared) {
    let in_flight = (plan.rate * plan.patience.as_secs_f64() * 2.0).ceil() as usize + 2;
    let next = AtomicU64::new(0);
    std::thread::scope(|scope| {
        for _ in 0..in_flight.min(400) {
            scope.spawn(|| {
                while !shared.stop.load(Ordering::Relaxed) {
                    let due = began + Duration::from_secs_f64(next.fetch_add(1, Ordering::Relaxed) as f64 / plan.rate);
                    while clock::now() < due && !shared.stop.load(Ordering::Relaxed) {
                        std::thread::sleep(due.saturating_duration_since(clock::now()).min(Duration::from_millis(50)));
                    }
                    if shared.stop.load(Ordering::Relaxed) {
                        return;
                    }
                    let began = clock::now();
                    let answer = get(&plan);
                    let attempt = Attempt { began, answer };
                    shared.attempts.lock().expect("no client panics").push(attempt);
                }
            });
        }
    });
}

/// One request from this thread's namespace.
fn get(plan: &Plan) -> Answer {
    let Ok(mut stream) = connect(plan.from, SocketAddr::new(SERVER.like(plan.from), 80), plan.patience) else {
        return Answer::NoConnection;
    };
    let forwarded = match plan.forwarded {
        "" => String::new(),
        whom => format!("X-Forwarded-For: {whom}\r\n"),
    };
    let head = b" HTTP/1.1\r\nHost: lab\r\nUser-Agent: lab\r\nConnection: close\r\n";
    let request = [b"GET ", plan.path, head, forwarded.as_bytes(), b"\r\n"].concat();
    let mut answer = Vec::new();
    let asked = stream.write_all(&request).and_then(|()| stream.read_to_end(&mut answer));
    let status = answer.get(9..12).and_then(|s| std::str::from_utf8(s).ok()).and_then(|s| s.parse().ok());
    match (asked, status) {
        (Ok(_), Some(status)) => Answer::Status(status),
        _ => Answer::Silence,
    }
}

/// A connection from a given source address, which the standard library cannot choose.
fn connect(from: IpAddr, to: SocketAddr, patience: Duration) -> rustix::io::Result<TcpStream> {
    let family = if to.is_ipv4() { AddressFamily::INET } else { AddressFamily::INET6 };
    let socket: OwnedFd = rustix::net::socket_with(family, SocketType::STREAM, SocketFlags::CLOEXEC, None)?;
    for timeout in [sockopt::Timeout::Send, sockopt::Timeout::Recv] {
        sockopt::set_socket_timeout(&socket, timeout, Some(patience))?;
    }
    rustix::net::bind(&socket, &SocketAddr::new(from, 0))?;
    rustix::net::connect(&socket, &to)?;
    Ok(TcpStream::from(socket))
}

impl Space {
    /// A TCP connection from `from`, over which nothing has been said.
    ///
    /// # Errors
    /// When there is none within two seconds.
    pub fn open(&self, from: IpAddr, to: SocketAddr) -> Result<TcpStream> {
        Ok(self.within(|| connect(from, to, Duration::from_secs(2)))??)
    }

    /// `GET /` from `from`.
    ///
    /// # Errors
    /// When the namespace cannot be entered.
    pub fn get(&self, from: IpAddr) -> Result<Answer> {
        self.ask(&Plan::new(from, 1.0))
    }

    /// One request as planned.
    ///
    /// # Errors
    /// When the namespace cannot be entered.
    pub fn ask(&self, plan: &Plan) -> Result<Answer> {
        self.within(|| get(plan))
    }

    /// What curl says to `GET /`: the HTTP status, or its own words.
    ///
    /// # Errors
    /// When it cannot be started.
    pub fn curl(&self, from: IpAddr, patience: Duration) -> Result<Result<String, String>> {
        let mut command: Command = self.command("curl");
        command.args([
            "--silent",
            "--show-error",
            "--output",
            "/dev/null",
            "--write-out",
            "%{http_code}",
            "--noproxy",
            "*",
        ]);
        command.args(["--max-time", &patience.as_secs().max(1).to_string(), "--interface", &from.to_string()]);
        command.arg(format!("http://{}/", SocketAddr::new(SERVER.like(from), 80)));
        let output = command.output().context("curl could not be started")?;
        let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).trim().to_owned();
        Ok(if output.status.success() { Ok(text(&output.stdout)) } else { Err(text(&output.stderr)) })
    }
}
