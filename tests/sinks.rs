//! Slack and webhook against a local sink that answers 200, 429, 500, hangs or closes.

mod burst;
mod secret;
mod server;
mod words;

use std::future::Future;
use std::io::{Read as _, Write as _};
use std::net::TcpListener;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use anomaly::config::{Notify, Secret};
use anomaly::engine::{
    Ban, Finding, Grade, Level, LimitSource, NotEffective, Origin, Rule, Sample, Scope, Source, Unban,
};
use anomaly::notify::{Notice, Notifier, NotifyError, Pace, SinkHealth};
use anomaly::time::Timestamp;
use ipnet::IpNet;
use serde_json::Value;
use tokio::time::Instant;

use server::{OK, Reply, SECRET, Sink, reporter};

fn slack(sink: &Sink) -> Notify {
    Notify {
        slack_webhook_url: Some(Secret::new(sink.url.clone())),
        webhook_url: None,
        dashboard_url: Some("https://status.example.net/anomaly".into()),
    }
}

fn fast() -> Pace {
    Pace {
        collect: Duration::from_millis(40),
        collect_max: Duration::from_millis(400),
        timeout: Duration::from_millis(300),
        retry: Duration::from_millis(20),
        retry_max: Duration::from_millis(100),
        asked_max: Duration::from_secs(2),
    }
}

fn at(secs: i64) -> Timestamp {
    Timestamp::from_secs(1_777_281_951 + secs)
}

fn finding() -> Finding {
    Finding {
        at: at(0),
        rule: Rule::RateMultiplier,
        error_surge: false,
        rate: 14.2,
        baseline: Level {
            scope: Scope::Ip,
            mean: 0.4,
            stddev: 0.6,
            error_rate: 0.01,
            samples: 1234,
            source: Source::Rolling,
        },
        z_score: 23.0,
        signal: None,
        limit: 30.0,
        limit_source: LimitSource::Learned,
        grade: Grade::Likely,
        requests: 852,
        errors: 0,
        samples: vec![Sample {
            at: at(0),
            method: b"GET"[..].into(),
            path: b"/<!channel>`*x*`\x1b[2J\n&?token=hidden"[..].into(),
            status: 200,
        }],
    }
}

fn of(prefix: IpNet) -> Ban {
    Ban {
        prefix,
        at: at(0),
        until: Some(at(600)),
        offence: 1,
        origin: Origin::Detector,
        finding: Some(finding()),
        note: String::new(),
        in_past: false,
    }
}

fn ban(n: u32) -> Notice {
    let prefix = IpNet::from(std::net::IpAddr::from((0x0a00_0000 + n).to_be_bytes()));
    Notice::Ban { ban: Box::new(of(prefix)), enforcer: "xdp".into(), error: None }
}

/// The end of a ban, that many seconds after it began.
fn unban(ban: Ban, secs: i64, origin: Origin, error: Option<&str>) -> Notice {
    let unban = Unban { prefix: ban.prefix, at: at(secs), offence: ban.offence, origin, ban: Arc::new(ban) };
    Notice::Unban { unban, packets: 12, bytes: 720, error: error.map(Into::into) }
}

fn not_effective(prefix: IpNet) -> Notice {
    let proof = NotEffective {
        prefix,
        client: prefix.addr(),
        peer: Some("192.0.2.1".parse().expect("an address")),
        banned_at: at(0),
        at: at(9),
        records: 3,
    };
    Notice::NotEffective { proof, reason: "it comes through a proxy".into() }
}

fn net(text: &str) -> IpNet {
    text.parse().expect("a prefix")
}

fn run<T>(test: impl Future<Output = T>) -> T {
    tokio::runtime::Builder::new_current_thread().enable_all().build().expect("a runtime").block_on(test)
}

async fn until(what: &str, mut done: impl FnMut() -> bool) {
    let deadline = Instant::now() + Duration::from_secs(20);
    while !done() {
        assert!(Instant::now() < deadline, "waited in vain until {what}");
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
}

fn health(notifier: &Notifier) -> SinkHealth {
    notifier.health().into_iter().next().expect("a sink")
}

/// What is written to the log meanwhile.
fn logged(level: tracing::Level, work: impl FnOnce()) -> String {
    #[derive(Clone, Default)]
    struct Log(Arc<Mutex<Vec<u8>>>);
    impl std::io::Write for Log {
        fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
            self.0.lock().expect("not poisoned").extend(bytes);
            Ok(bytes.len())
        }
        fn flush(&mut self) -> std::io::Result<()> {
            Ok(())
        }
    }

    let log = Log::default();
    let writer = log.clone();
    let subscriber =
        tracing_subscriber::fmt().with_max_level(level).with_ansi(false).with_writer(move || writer.clone()).finish();
    // While there is one subscriber only, `tracing` asks that of whichever thread comes by a line of code first, and other
    // tests' threads have none; then the line stays off for ours too.
    let _second = tracing::Dispatch::new(tracing_subscriber::registry());
    tracing::subscriber::with_default(subscriber, work);
    String::from_utf8(log.0.lock().expect("not poisoned").clone()).expect("UTF-8")
}

/// Every text of a Slack message, put together.
fn words(message: &Value) -> String {
    match message {
        Value::String(text) => format!("{text}\n"),
        Value::Array(all) => all.iter().map(words).collect(),
        Value::Object(all) => all.values().map(words).collect(),
        _ => String::new(),
    }
}

#[test]
fn a_ban_is_told_with_condition_rate_baseline_time_duration_offence_and_link() {
    let sink = Sink::start(|_| OK);
    run(async {
        let notifier = Notifier::with_pace(&slack(&sink), &reporter(), fast()).expect("started");
        notifier.send(ban(1));
        until("it is sent", || health(&notifier).sent == 1).await;
        let message = &sink.bodies()[0];
        assert_eq!(message["text"], "web1: 10.0.0.1 banned for 10 min");
        let words = words(message);
        for part in [
            "*Condition*\nrate_multiplier: 14.20 req/s against 0.40 ± 0.60 of clients (rolling), z 23.0",
            "*Rate*\n14.20 requests/s",
            "*Baseline*\n0.40 ± 0.60 requests/s (ip, rolling)",
            "*Time*\n2026-04-27T09:25:51Z",
            "*Duration*\n10 min",
            "*Offence*\n1",
            "<https://status.example.net/anomaly/ip/10.0.0.1|",
        ] {
            assert!(words.contains(part), "{part:?} is missing in {words}");
        }
        // Text from the log is inert: no mention, no code block that ends early, no control characters, no query.
        assert!(words.contains("GET /&lt;!channel&gt;'*x*'\\u{1b}[2J\\n&amp; 200"), "{words}");
        assert!(!words.contains("hidden") && !words.contains('\u{1b}'));
        assert_eq!(health(&notifier), SinkHealth { name: "slack", sent: 1, delivered: 1, ..SinkHealth::default() });
    });
}

#[test]
fn a_hundred_bans_at_once_are_one_message() {
    let sink = Sink::start(|_| OK);
    run(async {
        let notifier = Notifier::with_pace(&slack(&sink), &reporter(), fast()).expect("started");
        for n in 0..100 {
            notifier.send(ban(n));
        }
        until("all are told", || health(&notifier).delivered == 100).await;
        let bodies = sink.bodies();
        assert_eq!(bodies.len(), 1);
        assert_eq!(bodies[0]["text"], "web1: 100 bans");
        let words = words(&bodies[0]);
        assert!(words.contains("10.0.0.99 banned for 10 min") && words.contains("… and 90 more"), "{words}");
    });
}

/// At the daemon's own pace, on virtual time: only the post takes real time.
#[test]
fn a_hundred_bans_spread_over_a_second_are_one_message() {
    let sink = Sink::start(|_| OK);
    run(async {
        tokio::time::pause();
        let notifier = Notifier::start(&slack(&sink), &reporter()).expect("started");
        let began = Instant::now();
        for n in 0..100 {
            tokio::time::sleep_until(began + Duration::from_secs(1) * n / 99).await;
            notifier.send(ban(n));
        }
        tokio::time::resume();
        until("all are told", || health(&notifier).delivered == 100).await;
        let bodies = sink.bodies();
        assert_eq!(bodies.len(), 1);
        assert_eq!(bodies[0]["text"], "web1: 100 bans");
    });
}

/// A minute at a sixtieth of its length: 10,000 bans in one second, the pace a sixtieth of the default.
#[test]
fn ten_thousand_bans_in_a_minute_are_a_few_messages_and_none_is_forgotten() {
    let sink = Sink::start(|_| OK);
    run(async {
        let real = Pace::default();
        let pace = Pace { collect: real.collect / 60, collect_max: real.collect_max / 60, ..real };
        let notifier = Notifier::with_pace(&slack(&sink), &reporter(), pace).expect("started");
        let sender = notifier.clone();
        let sending = tokio::task::spawn_blocking(move || {
            let mut longest = Duration::ZERO;
            for n in 0..10_000 {
                let before = Instant::now();
                sender.send(ban(n));
                longest = longest.max(before.elapsed());
                if n % 100 == 99 {
                    std::thread::sleep(Duration::from_millis(10));
                }
            }
            longest
        });
        let longest = sending.await.expect("sent");
        until("all are told", || health(&notifier).delivered == 10_000).await;
        let messages = sink.bodies().len();
        println!("{messages} messages, the longest call of send took {longest:?}");
        assert!(messages <= 20, "{messages} messages");
        assert!(longest < Duration::from_secs(1), "one send took {longest:?}");
        assert_eq!(health(&notifier).lost, 0);
        let told: u64 = sink
            .bodies()
            .iter()
            .map(|b| b["text"].as_str().and_then(|t| t.split(' ').nth(1)?.parse::<u64>().ok()).expect("a number"))
            .sum();
        assert_eq!(told, 10_000);
        let largest = sink.bodies().iter().map(|b| b.to_string().len()).max().expect("a message");
        assert!(largest < 20_000, "{largest} bytes");
    });
}

#[test]
fn a_sink_that_is_busy_is_asked_again_when_it_said_so() {
    let sink = Sink::start(|n| if n == 0 { Reply::Status(429, "retry-after: 1\r\n", "") } else { OK });
    run(async {
        let notifier = Notifier::with_pace(&slack(&sink), &reporter(), fast()).expect("started");
        notifier.send(ban(1));
        until("it was refused", || health(&notifier).retried == 1).await;
        let refused = Instant::now();
        assert_eq!(health(&notifier).failing.expect("failing").1, "HTTP 429 Too Many Requests");
        notifier.send(ban(2));
        until("it is sent", || health(&notifier).sent == 1).await;
        assert!(refused.elapsed() >= Duration::from_millis(900), "asked again after {:?}", refused.elapsed());
        assert_eq!(sink.bodies().len(), 2);
        assert_eq!(sink.bodies()[1]["text"], "web1: 2 bans", "what came meanwhile is in the same message");
        assert_eq!(health(&notifier).failing, None);
    });
}

#[test]
fn errors_timeouts_and_broken_connections_are_survived() {
    let sink = Sink::start(|n| match n {
        0 => Reply::Status(500, "", "<html>oops</html>"),
        1 => Reply::Hang,
        2 => Reply::Close,
        3 => Reply::Status(503, "", ""),
        _ => OK,
    });
    run(async {
        let notifier = Notifier::with_pace(&slack(&sink), &reporter(), fast()).expect("started");
        notifier.send(ban(1));
        until("it is sent", || health(&notifier).sent == 1).await;
        let health = health(&notifier);
        assert_eq!((health.delivered, health.retried, health.lost), (1, 4, 0));
        assert_eq!(sink.bodies().len(), 5);
    });
}

#[test]
fn an_outage_ends_in_one_message_and_costs_no_memory() {
    // Bound, but nobody listens behind it: refused at once.
    let port = TcpListener::bind("127.0.0.1:0").expect("a port");
    let address = port.local_addr().expect("an address");
    drop(port);
    run(async {
        let settings =
            Notify { slack_webhook_url: Some(Secret::new(format!("http://{address}/{SECRET}"))), ..Notify::default() };
        let notifier = Notifier::with_pace(&settings, &reporter(), fast()).expect("started");
        for n in 0..50_000 {
            notifier.send(ban(n));
        }
        until("it fails", || health(&notifier).retried >= 2).await;
        let health = health(&notifier);
        assert_eq!((health.waiting, health.folded, health.lost), (50_000, 49_990, 0));
        assert!(health.failing.is_some());
    });
}

/// Whether its task gives up by itself or is ended in the middle of a post.
#[test]
fn what_cannot_be_told_before_the_daemon_ends_is_counted_and_logged() {
    for (reply, limit, why) in [
        (Reply::Status(503, "", ""), Duration::from_secs(10), "HTTP 503 Service Unavailable"),
        (Reply::Hang, Duration::from_millis(100), "no answer in time"),
    ] {
        let sink = Sink::start(move |_| reply);
        let log = logged(tracing::Level::WARN, || {
            run(async {
                let pace = Pace { timeout: Duration::from_secs(60), ..fast() };
                let notifier = Notifier::with_pace(&slack(&sink), &reporter(), pace).expect("started");
                for n in 0..300 {
                    notifier.send(ban(n));
                }
                until("it is asked", || !sink.bodies().is_empty()).await;
                let watched = notifier.clone();
                notifier.finish(limit).await;
                let health = health(&watched);
                assert_eq!((health.lost, health.waiting, health.delivered), (300, 0, 0));
            });
        });
        let line = log.lines().find(|line| line.contains("WARN")).unwrap_or_default();
        assert!(line.contains("the daemon ends") && line.contains("notices=300") && line.contains(why), "{log}");
    }
}

/// One more message is the last thing that a sink needs that refuses too many; and what cannot be delivered cannot say so.
#[test]
fn a_sink_is_not_told_that_it_does_not_deliver() {
    let (slack, webhook) = (Sink::start(|_| OK), Sink::start(|_| OK));
    run(async {
        let settings = Notify {
            slack_webhook_url: Some(Secret::new(slack.url.clone())),
            webhook_url: Some(Secret::new(webhook.url.clone())),
            dashboard_url: None,
        };
        let notifier = Notifier::with_pace(&settings, &reporter(), fast()).expect("started");
        let (what, reason) = (|| "slack".to_owned(), || "HTTP 429".to_owned());
        notifier.send(Notice::Degraded { at: at(0), what: what(), reason: reason() });
        notifier.send(Notice::Recovered { at: at(9), what: what(), reason: reason(), after: Duration::from_secs(9) });
        // Of others it is.
        notifier.send(Notice::Degraded { at: at(9), what: "store".into(), reason: "disk full".into() });
        let delivered = || notifier.health().iter().map(|sink| (sink.delivered, sink.waiting)).collect::<Vec<_>>();
        until("all is told", || delivered() == [(1, 0), (3, 0)]).await;
        assert_eq!(slack.bodies()[0]["text"], "web1: Degraded: store");
        assert_eq!(webhook.bodies()[0]["counts"], serde_json::json!({ "degraded": 2, "recovered": 1 }));
    });
}

#[test]
fn a_message_that_is_refused_for_good_is_counted_and_the_next_one_gets_through() {
    let sink = Sink::start(|n| if n == 0 { Reply::Status(404, "", "no_service") } else { OK });
    run(async {
        let notifier = Notifier::with_pace(&slack(&sink), &reporter(), fast()).expect("started");
        notifier.send(ban(1));
        until("it is refused", || health(&notifier).lost == 1).await;
        assert_eq!(health(&notifier).failing.expect("failing").1, "HTTP 404 Not Found (no_service)");
        notifier.send(ban(2));
        until("the next is sent", || health(&notifier).sent == 1).await;
        assert_eq!(health(&notifier).failing, None);
    });
}

#[test]
fn the_end_of_the_daemon_does_not_wait_for_the_window_but_posts_what_waits() {
    let sink = Sink::start(|_| OK);
    run(async {
        let pace = Pace { collect: Duration::from_secs(60), ..fast() };
        let notifier = Notifier::with_pace(&slack(&sink), &reporter(), pace).expect("started");
        notifier.send(ban(1));
        notifier.finish(Duration::from_secs(10)).await;
        assert_eq!(sink.bodies().len(), 1);
    });
}

#[test]
fn the_webhook_gets_the_rows_of_the_audit_log() {
    let sink = Sink::start(|_| OK);
    run(async {
        let settings = Notify {
            webhook_url: Some(Secret::new(sink.url.clone())),
            dashboard_url: Some("http://localhost:8081".into()),
            slack_webhook_url: None,
        };
        let notifier = Notifier::with_pace(&settings, &reporter(), fast()).expect("started");
        notifier.send(ban(1));
        let prefix = net("2001:db8::/64");
        notifier.send(unban(Ban { offence: 2, ..of(prefix) }, 600, Origin::Operator, None));
        notifier.send(not_effective(prefix));
        until("it is sent", || health(&notifier).delivered == 3).await;
        let body = &sink.bodies()[0];
        assert_eq!(body["counts"], serde_json::json!({ "ban": 1, "unban": 1, "not_effective": 1 }));
        assert_eq!(body["omitted"], 0);
        let events = body["events"].as_array().expect("events");
        let event = |name: &str| events.iter().find(|e| e["event"] == name).expect("the event");
        assert_eq!(event("ban")["ip"], "10.0.0.1");
        assert_eq!(event("ban")["rate"], 14.2);
        assert_eq!(event("ban")["url"], "http://localhost:8081/ip/10.0.0.1");
        assert_eq!(event("unban")["packets"], 12);
        let ended = &event("unban")["ban"];
        assert_eq!(
            (&ended["rate"], &ended["offence"], &ended["duration_secs"]),
            (&14.2.into(), &2.into(), &600.into())
        );
        assert_eq!(event("not_effective")["url"], "http://localhost:8081/ip/2001:db8::%2F64");
        assert_eq!(event("not_effective")["ok"], false);
    });
}

#[test]
fn an_unban_that_did_not_work_is_not_told_as_one() {
    let sink = Sink::start(|_| OK);
    run(async {
        let notifier = Notifier::with_pace(&slack(&sink), &reporter(), fast()).expect("started");
        let error = Some("iptables: exit status 4");
        notifier.send(unban(of(net("203.0.113.7/32")), 600, Origin::Operator, error));
        until("it is sent", || health(&notifier).delivered == 1).await;
        let words = words(&sink.bodies()[0]);
        assert!(words.contains("203.0.113.7 should be unbanned, but is STILL dropped"), "{words}");
        assert!(words.contains("iptables: exit status 4"), "{words}");
    });
}

#[test]
fn the_url_is_in_no_log_and_no_error_whatever_goes_wrong() {
    let mut said = Vec::new();
    let log = logged(tracing::Level::TRACE, || {
        let closed = TcpListener::bind("127.0.0.1:0").expect("a port").local_addr().expect("an address");
        let broken = Sink::start(|n| match n {
            0 => Reply::Status(500, "", ""),
            1 => Reply::Hang,
            2 => Reply::Close,
            3 => Reply::Status(302, "location: http://127.0.0.1:1/x\r\n", ""),
            4 => Reply::Status(400, "", "abcdef"),
            _ => Reply::Status(404, "", "T0SECRET/B0SECRET"),
        });
        for url in [
            broken.url.clone(),
            format!("http://{closed}/services/{SECRET}?key={SECRET}"),
            format!("http://user:T0SECRET@{closed}/services/{SECRET}"),
            format!("http://nowhere.invalid/services/{SECRET}"),
            format!("https://{closed}/services/{SECRET}"),
            format!("{}x", broken.url.replace("http:", "https:")),
        ] {
            run(async {
                let settings = Notify { slack_webhook_url: Some(Secret::new(url)), ..Notify::default() };
                said.push(format!("{settings:?}"));
                let notifier = Notifier::with_pace(&settings, &reporter(), fast()).expect("started");
                said.push(format!("{notifier:?}"));
                for n in 0..6 {
                    notifier.send(ban(n));
                    let tried = health(&notifier).retried + health(&notifier).lost;
                    until("it fails", || health(&notifier).retried + health(&notifier).lost > tried).await;
                    said.push(format!("{:?}", health(&notifier)));
                }
                notifier.finish(Duration::from_millis(50)).await;
            });
        }
        run(async {
            for url in [SECRET.to_owned(), format!("ftp://host/{SECRET}"), format!("http://[{SECRET}")] {
                let settings = Notify { slack_webhook_url: Some(Secret::new(url)), ..Notify::default() };
                let error = Notifier::start(&settings, &reporter()).expect_err("not a URL");
                assert_eq!(error, NotifyError::BadUrl("slack"));
                said.push(format!("{error} {error:?}"));
            }
        });
    });
    assert!(log.contains("notices are lost: they were refused"), "the log was caught: {log}");
    said.push(log);
    for text in said {
        for part in ["T0SECRET", "B0SECRET", "abcdef"] {
            assert!(!text.contains(part), "{part} in {text}");
        }
    }
}

#[test]
fn without_a_sink_nothing_happens() {
    let notifier = Notifier::start(&Notify::default(), &reporter()).expect("started without a runtime");
    notifier.send(ban(1));
    assert!(notifier.health().is_empty());
}

const TLS_URL: &str = "ANOMALY_TEST_TLS_URL";

/// Not a test: the client of `https_is_checked_against_the_certificates_of_the_host`, in a process of its own because
/// the trusted certificates are an environment variable.
#[test]
fn tls_client() {
    let Ok(url) = std::env::var(TLS_URL) else { return };
    let notifier_for = |url: String| {
        let settings = Notify { slack_webhook_url: Some(Secret::new(url)), ..Notify::default() };
        Notifier::with_pace(&settings, &reporter(), Pace { timeout: Duration::from_secs(5), ..fast() })
            .expect("started")
    };
    run(async {
        let trusted = notifier_for(url.clone());
        trusted.send(ban(1));
        until("it is sent", || health(&trusted).sent == 1).await;
        // The same server by a name that its certificate does not have.
        let wrong_name = notifier_for(url.replace("127.0.0.1", "localhost"));
        wrong_name.send(ban(2));
        until("it is refused", || health(&wrong_name).retried > 0).await;
        let (_, error) = health(&wrong_name).failing.expect("failing");
        assert!(error.contains("certificate"), "{error}");
        assert_eq!(health(&wrong_name).sent, 0);
    });
}

#[test]
fn https_is_checked_against_the_certificates_of_the_host() {
    use rustls::pki_types::pem::PemObject as _;
    use rustls::pki_types::{CertificateDer, PrivateKeyDer};

    let dir = tempfile::tempdir().expect("a directory");
    let (certificate, key) = (dir.path().join("cert.pem"), dir.path().join("key.pem"));
    let made = std::process::Command::new("openssl")
        .args(["req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-nodes", "-days", "36500"])
        .args([
            "-subj",
            "/CN=sink",
            "-addext",
            "subjectAltName=IP:127.0.0.1",
            "-addext",
            "basicConstraints=critical,CA:FALSE",
        ])
        .arg("-keyout")
        .arg(&key)
        .arg("-out")
        .arg(&certificate)
        .output();
    if !made.as_ref().is_ok_and(|output| output.status.success()) {
        crate::lab::skip("a sink over TLS", &format!("openssl is needed to make a certificate: {made:?}"));
        return;
    }
    let _ = rustls::crypto::ring::default_provider().install_default();
    let config = rustls::ServerConfig::builder()
        .with_no_client_auth()
        .with_single_cert(
            vec![CertificateDer::from_pem_file(&certificate).expect("a certificate")],
            PrivateKeyDer::from_pem_file(&key).expect("a key"),
        )
        .expect("a server");
    let config = Arc::new(config);
    let listener = TcpListener::bind("127.0.0.1:0").expect("a port");
    let url = format!("https://{}/services/{SECRET}", listener.local_addr().expect("an address"));
    std::thread::spawn(move || {
        for stream in listener.incoming().flatten() {
            let connection = rustls::ServerConnection::new(Arc::clone(&config)).expect("a connection");
            let mut stream = rustls::StreamOwned::new(connection, stream);
            // One read gets the whole small request, or the handshake fails.
            if stream.read(&mut [0; 16_384]).is_ok_and(|n| n > 0) {
                let _ = stream.write_all(b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\nconnection: close\r\n\r\nok");
                stream.conn.send_close_notify();
                let _ = stream.flush();
            }
        }
    });
    let client = std::process::Command::new(std::env::current_exe().expect("this binary"))
        .args(["sinks::tls_client", "--exact", "--nocapture"])
        .env(TLS_URL, url)
        .env("SSL_CERT_FILE", &certificate)
        .env_remove("SSL_CERT_DIR")
        .output()
        .expect("started");
    let said = format!("{}{}", String::from_utf8_lossy(&client.stdout), String::from_utf8_lossy(&client.stderr));
    assert!(client.status.success() && said.contains("1 passed"), "{said}");
}
