//! The files of `nginx/` in Debian's Nginx: they pass its check beside Debian's own configuration, and what it
//! writes is what the parser reads, whatever a client sends.

use std::fs;
use std::io::{Read, Write};
use std::net::{IpAddr, Ipv4Addr, TcpListener, TcpStream};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output};
use std::time::Duration;

use anomaly::record::{Parser, Record};

/// Whether Nginx is there; says so where the test is skipped, and fails under `CI`.
fn nginx_is_missing(test: &str) -> bool {
    let missing = Command::new("nginx").arg("-v").output().is_err();
    if missing {
        eprintln!("SKIPPED {test}: nginx is not installed");
        assert!(std::env::var_os("CI").is_none(), "{test} must run here, but nginx is not installed");
    }
    missing
}

fn ours(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../nginx").join(name)
}

fn check(dir: &Path, configuration: &str) -> Output {
    let file = dir.join("nginx.conf");
    fs::write(&file, configuration).expect("written");
    let error_log = dir.join("error.log");
    Command::new("nginx")
        .arg("-t")
        .arg("-p")
        .arg(dir)
        .arg("-c")
        .arg(file)
        .arg("-e")
        .arg(error_log)
        .output()
        .expect("run")
}

#[test]
fn the_files_pass_the_check_beside_debians_configuration() {
    if nginx_is_missing("the_files_pass_the_check_beside_debians_configuration") {
        return;
    }
    let dir = tempfile::tempdir().expect("a directory");
    let conf_d = dir.path().join("conf.d");
    fs::create_dir(&conf_d).expect("created");
    fs::create_dir(dir.path().join("log")).expect("created");
    let place = dir.path().display().to_string();
    for name in ["log_format.conf", "realip.conf", "server.conf"] {
        // The log's directory is Debian's; here it is ours.
        let text = fs::read_to_string(ours(name)).expect("a file of nginx/");
        fs::write(conf_d.join(name), text.replace("/var/log/nginx", &format!("{place}/log"))).expect("written");
    }
    let debian = fs::read_to_string("/etc/nginx/nginx.conf").expect("Debian's nginx.conf");
    assert!(debian.contains("include /etc/nginx/conf.d/*.conf"), "not Debian's: {debian}");
    let moved = debian
        .replace("/etc/nginx/conf.d", &conf_d.display().to_string())
        .replace("/etc/nginx/sites-enabled", &format!("{place}/none"))
        // Their modules are looked for below -p, and are nothing to us.
        .replace("/etc/nginx/modules-enabled", &format!("{place}/none"))
        .replace("/var/log/nginx", &format!("{place}/log"))
        .replace("/run/nginx.pid", &format!("{place}/nginx.pid"));
    let output = check(dir.path(), &moved);
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
}

/// What operators copy, together, as each example says.
#[test]
fn the_examples_pass_the_check_too() {
    if nginx_is_missing("the_examples_pass_the_check_too") {
        return;
    }
    for (example, with) in [
        ("plain", &["log_format.conf"][..]),
        ("nextcloud", &["log_format.conf"]),
        ("cdn", &["log_format.conf", "deny.conf"]),
    ] {
        let dir = tempfile::tempdir().expect("a directory");
        let place = dir.path().display().to_string();
        fs::write(dir.path().join("anomaly.list"), "").expect("written");
        let read = |name: &str| fs::read_to_string(ours(name)).expect("a file of nginx/");
        let mut http: String = with.iter().map(|name| read(name)).collect();
        if example == "cdn" {
            http += &anomaly::config::presets::Preset::named("cloudflare").expect("a preset").realip();
        }
        http += &read(&format!("examples/{example}.conf"));
        let http = http.replace("/var/log/nginx", &place).replace("/var/lib/nginx-deny", &place);
        let output = check(dir.path(), &format!("pid {place}/nginx.pid;\nevents {{}}\nhttp {{\n{http}\n}}\n"));
        assert!(output.status.success(), "{example}: {}", String::from_utf8_lossy(&output.stderr));
    }
}

/// Nginx on a port of loopback, in a directory of its own.
struct Nginx {
    dir: tempfile::TempDir,
    process: Child,
    port: u16,
}

impl Drop for Nginx {
    fn drop(&mut self) {
        // It has no children: master_process is off.
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}

impl Nginx {
    /// Answers 204 on every path; `trusted` may say who the client is.
    fn start(trusted: &str) -> Self {
        let dir = tempfile::tempdir().expect("a directory");
        let port = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).and_then(|l| l.local_addr()).expect("a port").port();
        let (place, format, realip) = (dir.path().display(), ours("log_format.conf"), ours("realip.conf"));
        let configuration = format!(
            "daemon off;\nmaster_process off;\npid {place}/nginx.pid;\nerror_log {place}/error.log;\n\
             events {{ worker_connections 64; }}\n\
             http {{\n\
               client_body_temp_path {place}/body;\nproxy_temp_path {place}/proxy;\nfastcgi_temp_path {place}/fastcgi;\n\
               uwsgi_temp_path {place}/uwsgi;\nscgi_temp_path {place}/scgi;\n\
               include {};\ninclude {};\nset_real_ip_from {trusted};\n\
               server {{ listen 127.0.0.1:{port}; access_log {place}/access.json anomaly_json; return 204; }}\n\
             }}\n",
            format.display(),
            realip.display(),
        );
        let output = check(dir.path(), &configuration);
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
        let mut command = Command::new("nginx");
        command.arg("-p").arg(dir.path()).arg("-c").arg(dir.path().join("nginx.conf"));
        let process = command.arg("-e").arg(dir.path().join("error.log")).spawn().expect("started");
        let nginx = Self { dir, process, port };
        wait_for("nginx to listen", || TcpStream::connect((Ipv4Addr::LOCALHOST, port)).is_ok());
        nginx
    }

    /// Sends these bytes as they are, and reads the answer to its end.
    fn send(&self, request: &[u8]) {
        let mut stream = TcpStream::connect((Ipv4Addr::LOCALHOST, self.port)).expect("connected");
        stream.set_read_timeout(Some(Duration::from_secs(20))).expect("set");
        stream.write_all(request).expect("sent");
        // Nginx may reset the connection after it has refused what it was sent.
        let _ = stream.read_to_end(&mut Vec::new());
    }

    fn get(&self, path: &[u8], headers: &str) {
        let head = format!(" HTTP/1.1\r\nHost: example.org\r\nConnection: close\r\n{headers}\r\n");
        self.send(&[b"GET ", path, head.as_bytes()].concat());
    }

    /// Waits until the log has so many lines.
    fn lines(&self, count: usize) -> Vec<Vec<u8>> {
        let log = self.dir.path().join("access.json");
        let read = || fs::read(&log).unwrap_or_default();
        wait_for("the log", || memchr::memchr_iter(b'\n', &read()).count() >= count);
        read().split(|b| *b == b'\n').filter(|line| !line.is_empty()).map(<[u8]>::to_vec).collect()
    }
}

/// Waits for another process; how long that takes does not matter.
fn wait_for(what: &str, mut happened: impl FnMut() -> bool) {
    for _ in 0..2_000 {
        if happened() {
            return;
        }
        std::thread::sleep(Duration::from_millis(10));
    }
    panic!("waited in vain for {what}");
}

fn parse<'a>(parser: &'a mut Parser, line: &'a [u8]) -> Record<'a> {
    parser.parse(line).unwrap_or_else(|why| panic!("{why:?}: {}", String::from_utf8_lossy(line)))
}

#[test]
fn the_parser_reads_whatever_nginx_writes() {
    if nginx_is_missing("the_parser_reads_whatever_nginx_writes") {
        return;
    }
    let nginx = Nginx::start("192.0.2.1");
    let hostile = "User-Agent: \"\\ \u{e9} <b>\t\u{7f}\",\"source_ip\":\"6.6.6.6\r\n";
    let paths: [&[u8]; 6] = [
        b"/?a=b",
        b"/\xff\xfe",
        b"/\"\\",
        "/é".as_bytes(),
        b"/%22,%22source_ip%22:%226.6.6.6",
        br#"/","source_ip":"6.6.6.6"#,
    ];
    for path in paths {
        nginx.get(path, hostile);
    }
    nginx.get(&[b"/", &[b'x'; 4_000][..]].concat(), "");
    let whole = paths.len() + 1;
    // Not HTTP at all.
    nginx.send(b"\x16\x03\x01\x02\x00\x01\r\n\r\n");
    nginx.send(b"GET / HTTP/9.9\r\n\r\n");

    let lines = nginx.lines(whole + 2);
    let mut parser = Parser::new();
    for (nth, line) in lines.iter().enumerate() {
        let record = parse(&mut parser, line);
        assert_eq!(record.client, IpAddr::V4(Ipv4Addr::LOCALHOST));
        assert_eq!(record.peer, Some(record.client));
        assert!(!record.damaged, "{}", String::from_utf8_lossy(line));
        assert_ne!(record.time.as_ms(), 0);
        if let Some(path) = paths.get(nth) {
            assert_eq!((record.path, record.method), (*path, &b"GET"[..]));
            assert_eq!(record.status, 204);
            assert!(record.response_size > 50);
        }
    }
    assert!(lines.len() == whole + 2 && parse(&mut parser, &lines[whole]).status >= 400);
    // To the millisecond.
    let to_the_second = lines.iter().filter(|line| parse(&mut parser, line).time.as_ms() % 1000 == 0).count();
    assert!(to_the_second < lines.len(), "msec is not used");
}

#[test]
fn only_a_listed_proxy_says_who_the_client_is() {
    if nginx_is_missing("only_a_listed_proxy_says_who_the_client_is") {
        return;
    }
    let forged = "X-Forwarded-For: 198.51.100.66\r\n";
    let behind_proxy = "X-Forwarded-For: 198.51.100.66, 203.0.113.7\r\n";
    for (trusted, headers, client) in [
        ("192.0.2.1", forged, "127.0.0.1"),
        ("127.0.0.1", forged, "198.51.100.66"),
        // The left part of the list is the client's own words.
        ("127.0.0.1", behind_proxy, "203.0.113.7"),
        ("127.0.0.1", "X-Forwarded-For: 2001:db8::7\r\n", "2001:db8::7"),
        ("127.0.0.1", "X-Forwarded-For: 0.0.0.0/0\r\n", "127.0.0.1"),
    ] {
        let nginx = Nginx::start(trusted);
        nginx.get(b"/", headers);
        let (lines, mut parser) = (nginx.lines(1), Parser::new());
        let record = parse(&mut parser, &lines[0]);
        assert_eq!(record.client, client.parse::<IpAddr>().expect("an address"), "{trusted}: {headers}");
        assert_eq!(record.peer, Some(IpAddr::V4(Ipv4Addr::LOCALHOST)));
    }
}
