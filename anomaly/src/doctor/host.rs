//! The host itself: kernel, capabilities, disks, and which receivers can be reached.

use std::io::{Read, Write};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, TcpStream, ToSocketAddrs};
use std::path::Path;
use std::sync::mpsc;
use std::time::Duration;

use rustix::thread::CapabilitySet;

use super::Check;
use crate::config::{Backend, Config};
use crate::dashboard;
use crate::report::Status;

/// Least free space for the state and the audit log.
const LOW_BYTES: u64 = 200 << 20;

/// How long a name may take to resolve, and a connection to be made.
const REACH: Duration = Duration::from_secs(4);

/// `statfs` of bpffs.
const BPF_FS_MAGIC: rustix::fs::FsWord = 0xcafe_4a11;

pub(super) fn run(config: &Config) -> Vec<Check> {
    let release = rustix::system::uname().release().to_string_lossy().into_owned();
    let have = rustix::thread::capabilities(None).map_or(CapabilitySet::empty(), |sets| sets.effective);
    let mut checks = vec![kernel(&release), capabilities(have)];
    if matches!(config.enforcer.backend, Backend::Auto | Backend::Xdp) {
        checks.push(bpffs(&config.enforcer.pin_dir, have));
    }
    for (what, path) in [("state", &config.store_path), ("audit", &config.audit.path)] {
        checks.push(disk(what, path));
    }
    checks
}

/// What others can reach of us, and we of others.
pub(super) fn outside(config: &Config, live: Option<&Status>) -> Vec<Check> {
    let mut checks = vec![dashboard(config, live)];
    for (what, url) in [("Slack", &config.notify.slack_webhook_url), ("the webhook", &config.notify.webhook_url)] {
        if let Some(url) = url {
            checks.push(reachable(what, url.expose()));
        }
    }
    if config.notify.slack_webhook_url.is_none() && config.notify.webhook_url.is_none() {
        let next = "set notify.slack.webhook_url_file to be told of bans and of trouble";
        checks.push(Check::warn("notify", "nobody is notified", next));
    }
    if config.allowlist.is_empty() {
        let next = "put your own addresses on it before you enforce";
        checks.push(Check::warn("allowlist", "it is empty", next));
    }
    checks
}

fn kernel(release: &str) -> Check {
    let mut numbers = release.split(|c: char| !c.is_ascii_digit()).map(|n| n.parse::<u32>().unwrap_or(0));
    let version = (numbers.next().unwrap_or(0), numbers.next().unwrap_or(0));
    let found = format!("Linux {release}");
    if version >= (5, 18) {
        return Check::ok("kernel", found);
    }
    let lacks = if version >= (5, 11) {
        "no XDP on jumbo frames (5.18)"
    } else if version >= (5, 8) {
        "no coarse clock for the expiry of bans (5.11), no XDP on jumbo frames (5.18)"
    } else {
        "too old for XDP with CAP_BPF (5.8): iptables is used"
    };
    Check::warn("kernel", format!("{found}: {lacks}"), "a newer kernel drops more cheaply")
}

fn capabilities(have: CapabilitySet) -> Check {
    let admin = have.contains(CapabilitySet::SYS_ADMIN);
    let lacks = |one: CapabilitySet| !have.contains(one);
    if lacks(CapabilitySet::NET_ADMIN) {
        let detail = "CAP_NET_ADMIN is missing: nothing can be dropped";
        return Check::fail("capabilities", detail, "run this as root, or as the service does");
    }
    let missing: Vec<&str> = [
        (lacks(CapabilitySet::BPF) && !admin, "CAP_BPF (no XDP)"),
        (lacks(CapabilitySet::PERFMON) && !admin, "CAP_PERFMON (XDP at half the speed)"),
        (lacks(CapabilitySet::NET_RAW), "CAP_NET_RAW (iptables may refuse)"),
    ]
    .into_iter()
    .filter_map(|(missing, name)| missing.then_some(name))
    .collect();
    if missing.is_empty() {
        return Check::ok("capabilities", "BPF, NET_ADMIN, PERFMON, NET_RAW");
    }
    let next = "give the service or container these (cap_add: BPF, NET_ADMIN, PERFMON, NET_RAW)";
    Check::warn("capabilities", format!("missing: {}", missing.join(", ")), next)
}

fn bpffs(pin_dir: &Path, have: CapabilitySet) -> Check {
    let there = pin_dir.ancestors().find(|path| path.exists()).unwrap_or(Path::new("/"));
    let mounted = rustix::fs::statfs(there).is_ok_and(|s| s.f_type == BPF_FS_MAGIC);
    let place = pin_dir.display();
    if mounted {
        Check::ok("bpffs", format!("{place} is on bpffs"))
    } else if have.contains(CapabilitySet::SYS_ADMIN) {
        Check::ok("bpffs", format!("not mounted at {place}; the daemon may mount it"))
    } else {
        let next = format!("mount -t bpf bpf {}", pin_dir.parent().unwrap_or(pin_dir).display());
        Check::fail("bpffs", format!("{place} is not on bpffs, and only CAP_SYS_ADMIN may mount it"), next)
    }
}

fn disk(what: &str, file: &Path) -> Check {
    let dir = file.parent().unwrap_or(Path::new("/"));
    let there = dir.ancestors().find(|path| path.exists()).unwrap_or(Path::new("/"));
    let found = format!("{what}: {}", dir.display());
    if let Err(error) = rustix::fs::access(there, rustix::fs::Access::WRITE_OK) {
        let next = format!("make {} writable for the daemon", there.display());
        return Check::fail("disk", format!("{found}: {error}"), next);
    }
    match rustix::fs::statvfs(there) {
        Ok(s) if s.f_bavail.saturating_mul(s.f_frsize) < LOW_BYTES => {
            let left = s.f_bavail.saturating_mul(s.f_frsize) >> 20;
            let next = "make room, or lower audit.max_bytes; detection goes on without a disk, records do not";
            Check::warn("disk", format!("{found} has {left} MiB left"), next)
        }
        Ok(s) => Check::ok("disk", format!("{found} has {} MiB left", s.f_bavail.saturating_mul(s.f_frsize) >> 20)),
        Err(error) => Check::warn("disk", format!("{found}: {error}"), "check the file system"),
    }
}

fn dashboard(config: &Config, live: Option<&Status>) -> Check {
    let Some(listen) = config.dashboard.listen else { return Check::ok("dashboard", "off") };
    let port = listen.port();
    match (who_answers(listen), live) {
        (Answers::Other, _) => {
            let next = format!(
                "`ss -ltnp 'sport = :{port}'` names it: end it, or set dashboard.listen to a free port and restart"
            );
            return Check::fail(
                "dashboard",
                format!("another program answers on {listen}: the dashboard does not"),
                next,
            );
        }
        (Answers::Nobody, Some(_)) => {
            let next =
                "restart the daemon: dashboard.listen takes effect at a start, and its log says what is in the way";
            return Check::fail("dashboard", format!("nothing answers on {listen}, though the daemon runs"), next);
        }
        (Answers::Ours, None) => {
            let next = "give each daemon a dashboard.listen of its own, or name the socket of the one that runs in dashboard.socket";
            return Check::warn("dashboard", format!("the dashboard of another anomaly answers on {listen}"), next);
        }
        (Answers::Ours, Some(_)) | (Answers::Nobody, None) => {}
    }
    let now = if live.is_some() { "answers" } else { "the port is free" };
    if listen.ip().is_loopback() {
        let writes =
            if config.dashboard.token.is_some() { "writes need the token" } else { "writes are refused over TCP" };
        Check::ok("dashboard", format!("http://{listen}: {now}; loopback only; {writes}"))
    } else {
        let next = "listen on 127.0.0.1 and let Nginx or an SSH tunnel carry it";
        Check::warn("dashboard", format!("http://{listen}: {now}; open to the network, without TLS"), next)
    }
}

/// What is behind a port of this host.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Answers {
    /// Nothing.
    Nobody,
    /// A dashboard of anomaly.
    Ours,
    /// Anything else.
    Other,
}

fn who_answers(listen: SocketAddr) -> Answers {
    let here = match listen.ip() {
        ip if !ip.is_unspecified() => ip,
        IpAddr::V4(_) => Ipv4Addr::LOCALHOST.into(),
        IpAddr::V6(_) => Ipv6Addr::LOCALHOST.into(),
    };
    let Ok(mut stream) = TcpStream::connect_timeout(&SocketAddr::new(here, listen.port()), REACH / 2) else {
        return Answers::Nobody;
    };
    let mut ask = || -> std::io::Result<String> {
        stream.set_read_timeout(Some(REACH / 2))?;
        stream.set_write_timeout(Some(REACH / 2))?;
        write!(stream, "GET /healthz HTTP/1.1\r\nHost: localhost:{}\r\nConnection: close\r\n\r\n", listen.port())?;
        let mut answer = Vec::new();
        // A program that goes on sending, or sends nothing, is not ours.
        let _ = (&mut stream).take(8192).read_to_end(&mut answer);
        Ok(String::from_utf8_lossy(&answer).into_owned())
    };
    match ask() {
        Ok(answer) if dashboard::is_ours(&answer) => Answers::Ours,
        _ => Answers::Other,
    }
}

/// Connects, and posts nothing. The URL is a secret: only its host is shown.
fn reachable(what: &str, url: &str) -> Check {
    let Some((host, port)) = host_and_port(url) else {
        return Check::fail("notify", format!("{what}: its URL has no host"), "correct the URL");
    };
    let (send, answer) = mpsc::channel();
    let target = (host.to_owned(), port);
    // A resolver can take minutes; the thread is left to it then.
    std::thread::spawn(move || {
        let connect = || {
            let addresses = target.to_socket_addrs()?;
            let mut last = std::io::Error::from(std::io::ErrorKind::AddrNotAvailable);
            for address in addresses {
                match TcpStream::connect_timeout(&address, REACH / 2) {
                    Ok(_) => return Ok(()),
                    Err(error) => last = error,
                }
            }
            Err(last)
        };
        let _ = send.send(connect());
    });
    let next = "open the way out, or check the name server; notices wait meanwhile";
    match answer.recv_timeout(REACH) {
        Ok(Ok(())) => Check::ok("notify", format!("{what}: {host}:{port} answers")),
        Ok(Err(error)) => Check::fail("notify", format!("{what}: {host}:{port}: {error}"), next),
        Err(_) => {
            Check::fail("notify", format!("{what}: {host}:{port} does not answer in {} s", REACH.as_secs()), next)
        }
    }
}

fn host_and_port(url: &str) -> Option<(&str, u16)> {
    let (scheme, rest) = url.split_once("://")?;
    let authority = rest.split(['/', '?', '#']).next()?;
    let authority = authority.rsplit_once('@').map_or(authority, |(_, host)| host);
    let default = if scheme.eq_ignore_ascii_case("http") { 80 } else { 443 };
    let (host, port) = match authority.rsplit_once(':') {
        Some((host, port)) if !host.ends_with(':') && !port.ends_with(']') => (host, port.parse().ok()?),
        _ => (authority, default),
    };
    let host = host.trim_start_matches('[').trim_end_matches(']');
    (!host.is_empty()).then_some((host, port))
}

#[cfg(test)]
mod tests {
    use super::super::Level;
    use super::*;

    #[test]
    fn old_kernels_are_named_for_what_they_lack() {
        for (release, level, words) in [
            ("6.18.44-fc", Level::Ok, "Linux 6.18.44-fc"),
            ("5.18.0", Level::Ok, ""),
            ("5.15.0-91-generic", Level::Warn, "jumbo"),
            ("5.10.0-27-amd64", Level::Warn, "coarse clock"),
            ("4.18.0-553.el8", Level::Warn, "too old"),
        ] {
            let check = kernel(release);
            assert!(check.status == level && check.detail.contains(words), "{check:?}");
        }
    }

    #[test]
    fn each_missing_capability_is_named() {
        let all = CapabilitySet::BPF | CapabilitySet::NET_ADMIN | CapabilitySet::PERFMON | CapabilitySet::NET_RAW;
        assert_eq!(capabilities(all).status, Level::Ok);
        for (one, name) in [
            (CapabilitySet::BPF, "CAP_BPF"),
            (CapabilitySet::PERFMON, "CAP_PERFMON"),
            (CapabilitySet::NET_RAW, "CAP_NET_RAW"),
        ] {
            let check = capabilities(all - one);
            assert!(check.status == Level::Warn && check.detail.contains(name), "{check:?}");
        }
        assert_eq!(capabilities(all - CapabilitySet::NET_ADMIN).status, Level::Fail);
    }

    #[test]
    fn bpffs_that_nobody_may_mount_is_a_failure() {
        let dir = tempfile::tempdir().expect("a directory");
        assert_eq!(bpffs(&dir.path().join("pins"), CapabilitySet::SYS_ADMIN).status, Level::Ok);
        let check = bpffs(&dir.path().join("pins"), CapabilitySet::empty());
        assert!(check.status == Level::Fail && check.next.is_some_and(|next| next.starts_with("mount -t bpf")));
    }

    #[test]
    fn finds_the_host_of_a_url() {
        assert_eq!(host_and_port("https://hooks.slack.com/services/T/B/x"), Some(("hooks.slack.com", 443)));
        assert_eq!(host_and_port("http://user:pw@[2001:db8::1]:8080/x"), Some(("2001:db8::1", 8080)));
        assert_eq!(host_and_port("http://[::1]/x"), Some(("::1", 80)));
        assert_eq!(host_and_port("nonsense"), None);
        assert_eq!(host_and_port("https:///x"), None);
    }

    /// A listener that answers every connection with these bytes.
    fn program(answer: &'static str) -> SocketAddr {
        let listener = std::net::TcpListener::bind("127.0.0.1:0").expect("a port");
        let address = listener.local_addr().expect("bound");
        std::thread::spawn(move || {
            for mut stream in listener.incoming().flatten() {
                let _ = stream.read(&mut [0; 4096]);
                let _ = stream.write_all(answer.as_bytes());
            }
        });
        address
    }

    #[test]
    fn a_dashboard_is_ok_only_where_ours_answers() {
        let other = program("HTTP/1.1 200 OK\r\nContent-Length: 3\r\n\r\nok\n");
        let free = std::net::TcpListener::bind("127.0.0.1:0").and_then(|l| l.local_addr()).expect("a port");
        assert_eq!([other, free].map(who_answers), [Answers::Other, Answers::Nobody]);
        let mut config = Config::default();
        config.dashboard.listen = Some(other);
        let check = dashboard(&config, None);
        assert!(check.status == Level::Fail && check.detail.contains("another program"), "{check:?}");
        config.dashboard.listen = Some(free);
        let check = dashboard(&config, None);
        assert!(check.status == Level::Ok && check.detail.contains("the port is free"), "{check:?}");
    }

    #[test]
    fn a_webhook_that_nobody_listens_for_fails_without_showing_its_path() {
        let free = std::net::TcpListener::bind("127.0.0.1:0").and_then(|l| l.local_addr()).expect("a port").port();
        let check = reachable("Slack", &format!("http://127.0.0.1:{free}/secret"));
        assert!(check.status == Level::Fail && !check.detail.contains("secret"), "{check:?}");
    }
}
