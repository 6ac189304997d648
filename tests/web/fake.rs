//! The real server on listeners of its own, over a daemon made of data: what it shows is set by the test, and
//! what it is asked is answered from a list of bans.

use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{Receiver, RecvTimeoutError, sync_channel};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use anomaly::config::Secret;
use anomaly::dashboard::Handle;
use anomaly::engine::{
    Ban, BanLength, Finding, Grade, Level, LimitSource, Origin, Refusal, Rule, Sample, Scope, Source,
};
use anomaly::metrics::Metrics;
use anomaly::report::{
    BanAnswer, BanRow, BaselineRow, DecisionRow, Degraded, Explanation, HistoryPoint, InterfaceRow, LevelRow, PastBan,
    Status, TopRow,
};
use anomaly::time::Timestamp;
use anomaly::view::control::{Event, Request, RequestError};
use anomaly::view::history::History;
use anomaly::view::live::Live;
use ipnet::IpNet;
use tokio::sync::{broadcast, oneshot, watch};

/// 2026-04-27T09:25:51Z, the moment in which all fake data lives.
pub const NOW: Timestamp = Timestamp::from_secs(1_777_281_951);
/// What a hostile client puts wherever it can.
pub const HOSTILE: &str =
    "/<script>fetch('http://evil.example/')</script>\"'><img src=x onerror=alert(1)>\u{202e}\r\nevent: status";

/// How to start a server.
#[derive(Default)]
pub struct Options {
    pub token: Option<&'static str>,
    pub public_url: Option<&'static str>,
    /// Bind to all addresses, as a container does.
    pub beyond_loopback: bool,
    /// Nobody answers requests.
    pub deaf: bool,
}

/// A running server; ends when dropped.
pub struct Server {
    pub tcp: SocketAddr,
    pub socket: PathBuf,
    pub live: watch::Sender<Arc<Live>>,
    pub events: broadcast::Sender<Event>,
    pub metrics: Arc<Metrics>,
    pub history: Arc<Mutex<History>>,
    stop: Option<oneshot::Sender<()>>,
    gone: Arc<AtomicBool>,
    threads: Vec<std::thread::JoinHandle<()>>,
    _dir: tempfile::TempDir,
}

impl Server {
    pub fn start(options: Options) -> Self {
        let dir = tempfile::tempdir().expect("a directory");
        let socket = dir.path().join("anomaly.sock");
        let (live, live_rx) = watch::channel(Arc::new(picture()));
        let events = broadcast::Sender::new(1024);
        let (requests, asked) = sync_channel(16);
        let metrics = Arc::new(Metrics::default());
        let mut history = History::default();
        (0..600).for_each(|s| history.push(point(NOW.as_secs() - 600 + s)));
        let history = Arc::new(Mutex::new(history));
        let handle = Handle {
            live: live_rx,
            events: events.clone(),
            requests,
            history: history.clone(),
            metrics: metrics.clone(),
            token: options.token.map(Secret::new),
            public_url: options.public_url.map(str::to_owned),
        };
        let gone = Arc::new(AtomicBool::new(false));
        let mut threads = Vec::new();
        if options.deaf {
            // Kept open and never read.
            let gone = gone.clone();
            threads.push(std::thread::spawn(move || {
                while !gone.load(Ordering::Relaxed) {
                    std::thread::sleep(Duration::from_millis(20));
                }
                drop(asked);
            }));
        } else {
            let (live, events, gone) = (live.clone(), events.clone(), gone.clone());
            threads.push(std::thread::spawn(move || answer(&asked, &live, &events, &gone)));
        }
        let (stop, stopped) = oneshot::channel::<()>();
        let (told, tcp) = std::sync::mpsc::channel();
        let path = socket.clone();
        threads.push(std::thread::spawn(move || {
            let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().expect("a runtime");
            runtime.block_on(async move {
                let address = if options.beyond_loopback { "0.0.0.0:0" } else { "127.0.0.1:0" };
                let tcp = tokio::net::TcpListener::bind(address).await.expect("a port");
                let unix = tokio::net::UnixListener::bind(path).expect("a socket");
                told.send(tcp.local_addr().expect("an address")).expect("the test waits");
                let shutdown = async move { drop(stopped.await) };
                anomaly::dashboard::serve(handle, Some(tcp), Some(unix), shutdown).await;
            });
        }));
        let mut tcp: SocketAddr = tcp.recv().expect("the server starts");
        tcp.set_ip([127, 0, 0, 1].into());
        Self { tcp, socket, live, events, metrics, history, stop: Some(stop), gone, threads, _dir: dir }
    }

    /// Shows a changed picture.
    pub fn show(&self, change: impl FnOnce(&mut Live)) {
        self.live.send_modify(|live| change(Arc::make_mut(live)));
    }

    /// Ends the server and waits for it.
    pub fn stop(&mut self) {
        drop(self.stop.take());
        self.gone.store(true, Ordering::Relaxed);
        for thread in self.threads.drain(..) {
            thread.join().expect("the server's threads end in peace");
        }
    }

    pub fn socket(&self) -> &Path {
        &self.socket
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        if !std::thread::panicking() {
            self.stop();
        }
    }
}

fn answer(
    asked: &Receiver<Request>,
    live: &watch::Sender<Arc<Live>>,
    events: &broadcast::Sender<Event>,
    gone: &AtomicBool,
) {
    while !gone.load(Ordering::Relaxed) {
        match asked.recv_timeout(Duration::from_millis(20)) {
            Ok(request) => answer_one(request, live, events),
            Err(RecvTimeoutError::Timeout) => {}
            Err(RecvTimeoutError::Disconnected) => break,
        }
    }
}

fn covers(row: &BanRow, prefix: &IpNet) -> bool {
    let banned = row.decision.ip.as_deref().and_then(anomaly::report::parse_ip);
    banned.is_some_and(|banned| banned.contains(prefix))
}

fn answer_one(request: Request, live: &watch::Sender<Arc<Live>>, events: &broadcast::Sender<Event>) {
    match request {
        Request::Ban { prefix, length, reason, replace, reply, .. } => {
            let allowed: IpNet = "198.51.100.0/24".parse().expect("a prefix");
            if allowed.contains(&prefix) {
                let refusal = Refusal::AllowListed { prefix, entry: allowed };
                return drop(reply.send(Err(RequestError::Refused(refusal, None))));
            }
            let refused = match prefix.to_string().as_str() {
                "192.0.2.1/32" => Some(RequestError::Refused(
                    Refusal::NeverBan { prefix, entry: prefix },
                    Some(anomaly::enforce::guard::Why::Gateway),
                )),
                "192.0.2.67/32" => Some(RequestError::Stopping),
                "192.0.2.68/32" => Some(RequestError::NotEnforced("iptables -I INPUT: no".into())),
                _ if prefix.prefix_len() < 16 => Some(RequestError::Refused(Refusal::TooWide { prefix }, None)),
                _ => None,
            };
            if let Some(refused) = refused {
                return drop(reply.send(Err(refused)));
            }
            let until = match length {
                None => Some(NOW.plus(Duration::from_secs(600))),
                Some(BanLength::Timed(d)) => Some(NOW.plus(d)),
                Some(BanLength::Permanent) => None,
            };
            let ban = Ban {
                prefix,
                at: NOW,
                until,
                offence: 1,
                origin: Origin::Operator,
                finding: None,
                note: reason,
                in_past: false,
            };
            let row = BanRow::new(&ban, "dry-run", 0, 0);
            let ip = row.decision.ip.clone();
            let in_force = live.borrow().bans.iter().find(|ban| ban.decision.ip == ip).cloned();
            // Each lasts as long as the one before.
            if let Some(ban) = in_force.filter(|_| !replace) {
                return drop(reply.send(Ok(BanAnswer { ban, kept: true })));
            }
            live.send_modify(|live| {
                let live = Arc::make_mut(live);
                let bans = Arc::make_mut(&mut live.bans);
                bans.retain(|ban| ban.decision.ip != ip);
                bans.push(row.clone());
                live.status.active_bans = live.bans.len() as u64;
            });
            let _ = events.send(Event { row: row.decision.clone(), reason: row.reason.clone() });
            drop(reply.send(Ok(BanAnswer { ban: row, kept: false })));
        }
        Request::Unban { prefix, reply } if prefix.to_string() == "192.0.2.69/32" => {
            let why = "iptables -D INPUT: no".into();
            drop(reply.send(Err(RequestError::StillDropped { prefix, why })));
        }
        Request::Unban { prefix, reply } => {
            let mut lifted = Vec::new();
            live.send_modify(|live| {
                let live = Arc::make_mut(live);
                let (gone, kept): (Vec<_>, Vec<_>) = live.bans.iter().cloned().partition(|row| covers(row, &prefix));
                live.bans = Arc::new(kept);
                live.status.active_bans = live.bans.len() as u64;
                lifted = gone;
            });
            let lifted: Vec<DecisionRow> = lifted
                .into_iter()
                .map(|row| DecisionRow {
                    time: NOW.to_string(),
                    action: "unban".into(),
                    numbers: None,
                    duration_secs: None,
                    verdict: None,
                    ..row.decision
                })
                .collect();
            for row in &lifted {
                let _ = events.send(Event { row: row.clone(), reason: "lifted by hand".into() });
            }
            drop(reply.send(if lifted.is_empty() {
                Err(RequestError::Refused(Refusal::NotBanned { prefix }, None))
            } else {
                Ok(lifted)
            }));
        }
        Request::Explain { prefix, reply } if prefix.to_string() == "192.0.2.66/32" => {
            drop(reply.send(Err(RequestError::Store("disk I/O error".into()))));
        }
        Request::Explain { prefix, reply } => {
            let live = live.borrow().clone();
            let active: Vec<BanRow> = live.bans.iter().filter(|row| covers(row, &prefix)).cloned().collect();
            let lies_inside = |row: &&BanRow| {
                let ban = row.decision.ip.as_deref().and_then(anomaly::report::parse_ip);
                ban.is_some_and(|ban| prefix.contains(&ban) && ban != prefix)
            };
            let inside = live.bans.iter().filter(lies_inside).cloned().collect();
            let bans = if active.is_empty() { Vec::new() } else { vec![past_ban(prefix)] };
            let ip = anomaly::report::ip_text(&prefix);
            let now = live.top.iter().find(|row| row.ip == ip).cloned();
            drop(reply.send(Ok(Explanation { ip, active, inside, now, bans, allowlisted_by: None })));
        }
        Request::LogWritten | Request::Enforced(_) | Request::Configure { .. } | Request::Stop => {
            unreachable!("not for the dashboard to ask")
        }
    }
}

/// A level as after half an hour of learning.
pub fn level(scope: Scope, mean: f64, stddev: f64) -> Level {
    Level { scope, mean, stddev, error_rate: 0.021, samples: 1800, source: Source::Rolling }
}

fn finding() -> Finding {
    Finding {
        at: NOW,
        rule: Rule::RateMultiplier,
        error_surge: false,
        rate: 14.2,
        baseline: level(Scope::Ip, 0.4, 0.6),
        z_score: 23.0,
        signal: None,
        limit: 120.0,
        limit_source: LimitSource::Learned,
        grade: Grade::Likely,
        requests: 852,
        errors: 31,
        samples: vec![Sample {
            at: NOW,
            method: b"GET".as_slice().into(),
            path: HOSTILE.as_bytes().into(),
            status: 404,
        }],
    }
}

fn detected(prefix: IpNet) -> Ban {
    Ban {
        prefix,
        at: NOW,
        until: Some(NOW.plus(Duration::from_secs(600))),
        offence: 1,
        origin: Origin::Detector,
        finding: Some(finding()),
        note: String::new(),
        in_past: false,
    }
}

fn past_ban(prefix: IpNet) -> PastBan {
    PastBan::new(&detected(prefix), "active", None, 1200, 64_000)
}

/// The ban of the address that every picture has banned.
pub fn ban_row(ip: &str) -> BanRow {
    BanRow::new(&detected(anomaly::report::parse_ip(ip).expect("an address")), "dry-run", 1200, 64_000)
}

pub fn point(t: i64) -> HistoryPoint {
    HistoryPoint { t, rate: 41.5, error_ratio: 0.02, mean: 40.0, stddev: 3.5, limit: 64.0, bans: 1, dropped: 1200 }
}

/// What the daemon shows unless a test changes it.
pub fn picture() -> Live {
    let global = level(Scope::Global, 40.0, 3.5);
    let bans = vec![ban_row("203.0.113.10")];
    let top_row = |ip: &str, rate: f64, banned| TopRow {
        ip: ip.into(),
        rate,
        requests: (rate * 60.0) as u64,
        error_ratio: 0.036,
        z_score: (rate - 0.4) / 0.6,
        limit: 2.0,
        share: rate / 41.5,
        banned,
    };
    Live {
        status: Status {
            version: env!("CARGO_PKG_VERSION").into(),
            time: NOW.to_string(),
            log_time: Some(NOW.to_string()),
            uptime_secs: 7260,
            enforcer: "dry-run".into(),
            xdp_mode: None,
            interfaces: vec![InterfaceRow { name: "eth0".into(), mode: "none".into(), reason: Some("dry run".into()) }],
            enforcement_ratio: 1.0,
            records: 1_000_000,
            rejected: 3,
            late: 1,
            blocked: 12,
            active_bans: bans.len() as u64,
            dropped_packets: 1200,
            global_rate: 41.5,
            last_second: 44,
            error_ratio: 0.02,
            baseline: LevelRow::new(&global, 64.0),
            ip_limit: 2.0,
            warmup_left_secs: 0,
            tracked_ips: 2312,
            backlog_bytes: 0,
            cpu: 0.021,
            memory_bytes: 48 << 20,
            host_cpu: 0.31,
            host_memory: 0.42,
            unhealthy: None,
            degraded: vec![Degraded {
                what: "rejected".into(),
                reason: "3 of the last 1000 lines gave no record".into(),
                since: NOW.to_string(),
            }],
        },
        bans: Arc::new(bans),
        top: vec![top_row("203.0.113.10", 14.2, true), top_row("2001:db8:7::/64", 3.1, false)],
        baseline: BaselineRow {
            global: LevelRow::new(&global, 64.0),
            ip: LevelRow::new(&level(Scope::Ip, 0.4, 0.6), 2.0),
            warmup_left_secs: 0,
            hours: (0..24).map(|h| (h % 3 != 0).then(|| LevelRow::new(&global, 64.0))).collect(),
        },
    }
}
