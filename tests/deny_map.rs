//! The deny list with real Nginx: a banned client behind a trusted proxy gets 403, everybody else
//! through the same proxy goes on, and a forged header bans nobody else.
#![expect(clippy::unwrap_used, reason = "helpers of tests are tests")]

use std::io::{Read, Write};
use std::net::TcpStream;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use anomaly::config;
use anomaly::enforce::dry_run::DryRun;
use anomaly::enforce::{Drop as Ban, Enforcer, deny_map};
use ipnet::IpNet;

use crate::lab::guardian::Guardian;
use crate::lab::process::Process;
use crate::lab::space::Space;
use crate::lab::{self, clock, run};

const VICTIM: &str = "203.0.113.10";
const NEIGHBOUR: &str = "203.0.113.11";
const V6: &str = "2001:db8::66";

/// The files of `nginx/` with the list at `list`, one trusted proxy (127.0.0.1), and a site.
fn configuration(dir: &Path, list: &Path) -> String {
    let repository = Path::new(env!("CARGO_MANIFEST_DIR")).parent().unwrap();
    let deny = std::fs::read_to_string(repository.join("nginx/deny.conf")).unwrap();
    let shipped = "/var/lib/nginx-deny/anomaly.list";
    assert_eq!(deny.matches(&format!("include {shipped};")).count(), 1);
    std::fs::write(dir.join("deny.conf"), deny.replace(shipped, list.to_str().unwrap())).unwrap();
    let (realip, dir) = (repository.join("nginx/realip.conf"), dir.display());
    format!(
        "daemon off; worker_processes 1; pid {dir}/nginx.pid; error_log {dir}/error.log;
         events {{}}
         http {{
             access_log off; client_body_temp_path {dir}/body; proxy_temp_path {dir}/proxy;
             fastcgi_temp_path {dir}/fastcgi; uwsgi_temp_path {dir}/uwsgi; scgi_temp_path {dir}/scgi;
             set_real_ip_from 127.0.0.1;
             include {}; include {dir}/deny.conf;
             server {{ listen 80; if ($anomaly_denied) {{ return 403; }} location / {{ return 200 hello; }}
                      location = /big {{ root {dir}; }} }}
         }}",
        realip.display()
    )
}

/// The status that a client gets through the proxy, which says who it is.
fn status(space: &Space, from_proxy: bool, client: &str) -> Option<u16> {
    let ask = || -> std::io::Result<String> {
        let address = if from_proxy { "127.0.0.1:80" } else { "192.0.2.1:80" };
        let mut stream = TcpStream::connect(address)?;
        stream.set_read_timeout(Some(Duration::from_secs(5)))?;
        write!(stream, "GET / HTTP/1.0\r\nX-Forwarded-For: {client}\r\n\r\n")?;
        let mut answer = String::new();
        stream.read_to_string(&mut answer)?;
        Ok(answer)
    };
    space.within(ask).unwrap().ok()?.split(' ').nth(1)?.parse().ok()
}

/// A host that is proxy and server, with a program that serves [`configuration`].
struct Host {
    space: Space,
    guardian: Arc<Guardian>,
}

impl Host {
    fn new() -> Self {
        let guardian = Arc::new(Guardian::start("").unwrap());
        let space = Space::new("proxy and server", &guardian, false).unwrap();
        space.ip("link set lo up").unwrap();
        // Who connects to this address connects from it: a peer that nobody trusts.
        space.ip("addr add 192.0.2.1/32 dev lo").unwrap();
        std::fs::File::create(guardian.dir().join("big")).and_then(|file| file.set_len(256 << 20)).unwrap();
        Self { space, guardian }
    }

    fn dir(&self) -> &Path {
        self.guardian.dir()
    }

    fn start(&self, program: impl AsRef<std::ffi::OsStr>, arguments: &[&std::ffi::OsStr]) -> Process {
        let mut command = self.space.command(program);
        command.args(arguments);
        Process::start("nginx", command, &self.dir().join("nginx.out"), &self.guardian).unwrap()
    }

    /// Starts Nginx with this configuration, after its own check.
    fn nginx(&self, configuration: &str) -> Process {
        let (file, errors) = (self.dir().join("nginx.conf"), self.dir().join("error.log"));
        std::fs::write(&file, configuration).unwrap();
        let arguments = ["-c".as_ref(), file.as_os_str(), "-e".as_ref(), errors.as_os_str()];
        run(self.space.command("nginx").args(arguments).arg("-t")).unwrap();
        self.start("nginx", &arguments)
    }

    fn settles(&self, client: &str, wanted: u16) {
        clock::wait_until(&format!("{wanted} for {client}"), Duration::from_secs(20), || {
            status(&self.space, true, client) == Some(wanted)
        })
        .unwrap();
    }

    /// Connections that keep the worker they have met: each asks for much and reads nothing.
    fn slow_clients(&self, count: usize) -> Vec<TcpStream> {
        let connect = || {
            (0..count).filter_map(|_| {
                let mut stream = TcpStream::connect("127.0.0.1:80").ok()?;
                stream.write_all(b"GET /big HTTP/1.1\r\nHost: a\r\n\r\n").ok()?;
                Some(stream)
            })
        };
        self.space.within(|| connect().collect()).unwrap()
    }

    /// Workers of any generation of the Nginx of this host.
    fn workers(&self) -> usize {
        let master = std::fs::read_to_string(self.dir().join("nginx.pid")).unwrap();
        let children = format!("/proc/{0}/task/{0}/children", master.trim());
        let children = std::fs::read_to_string(children).unwrap_or_default();
        let is_worker = |pid: &&str| {
            let title = std::fs::read(format!("/proc/{pid}/cmdline")).unwrap_or_default();
            title.starts_with(b"nginx: worker process")
        };
        children.split_whitespace().filter(is_worker).count()
    }
}

/// Four workers, and three generations of them: the active one, the one before, and one more that ends.
const MOST_WORKERS: usize = 3 * 4;

/// A storm of bans while slow clients keep every worker they have met. With a reload for each, Nginx had soon as many
/// processes as a container may have, and none of them answered.
#[test]
fn a_storm_of_bans_leaves_nginx_answering() {
    if !lab::ready("a_storm_of_bans_leaves_nginx_answering") {
        return;
    }
    let host = Host::new();
    let list = host.dir().join("anomaly.list");
    let nginx = config::Nginx { deny_map: Some(list.clone()), pid_file: Some(host.dir().join("nginx.pid")) };
    let mut enforcer = deny_map::wrap(Box::new(DryRun::new()), &nginx);
    enforcer.maintain();
    let _process = host.nginx(&configuration(host.dir(), &list).replace("worker_processes 1", "worker_processes 4"));
    host.settles(VICTIM, 200);

    let banned: Vec<String> = (1..=20).map(|n| format!("198.51.100.{n}")).collect();
    let (mut slow, mut most) = (Vec::new(), 0);
    for client in &banned {
        slow.extend(host.slow_clients(12));
        enforcer.ban(&[Ban { prefix: IpNet::from(client.parse::<std::net::IpAddr>().unwrap()), left: None }]);
        // What the daemon does after a ban, and every second.
        for _ in 0..4 {
            assert_eq!(enforcer.maintain(), []);
            std::thread::sleep(Duration::from_millis(250));
        }
        most = most.max(host.workers());
        assert!(most <= MOST_WORKERS, "{most} workers");
        assert_eq!(status(&host.space, true, NEIGHBOUR), Some(200), "with {most} workers");
    }
    assert!(most > 4, "no reload has met a slow client, so nothing was tested");

    // An unban is not done where Nginx cannot be reloaded for it.
    let first: IpNet = "198.51.100.1/32".parse().unwrap();
    host.settles("198.51.100.1", 403);
    enforcer.unban(&[first]);
    let said = enforcer.still_refused(&first).expect("it is refused still");
    assert!(said.contains("2 old generations"), "{said}");
    assert_eq!(status(&host.space, true, "198.51.100.1"), Some(403), "{said}");

    // The slow clients go, the old workers end, and what had to wait is done.
    drop(slow);
    clock::wait_until("the last ban to be enforced", Duration::from_secs(40), || {
        assert_eq!(enforcer.maintain(), []);
        status(&host.space, true, banned.last().unwrap()) == Some(403)
    })
    .unwrap();
    host.settles("198.51.100.1", 200);
    assert_eq!(enforcer.still_refused(&first), None);
}

/// The same in a container of its own, where `compose/nginx/run.sh` reloads.
#[test]
fn the_containers_script_spares_nginx_too() {
    if !lab::ready("the_containers_script_spares_nginx_too") {
        return;
    }
    let host = Host::new();
    let dir = host.dir();
    let list = dir.join("anomaly.list");
    std::fs::write(&list, "").unwrap();
    let conf = configuration(dir, &list).replace("daemon off; worker_processes 1", "worker_processes 4");
    std::fs::write(dir.join("nginx.conf"), conf).unwrap();
    std::fs::create_dir(dir.join("bin")).unwrap();
    let shim = dir.join("bin/nginx");
    let place = dir.display();
    std::fs::write(
        &shim,
        format!("#!/bin/sh\nexec /usr/sbin/nginx -c {place}/nginx.conf -e {place}/error.log \"$@\"\n"),
    )
    .unwrap();
    std::fs::set_permissions(&shim, std::os::unix::fs::PermissionsExt::from_mode(0o755)).unwrap();
    let repository = Path::new(env!("CARGO_MANIFEST_DIR")).parent().unwrap();
    let script = std::fs::read_to_string(repository.join("compose/nginx/run.sh")).unwrap();
    let script =
        script.replace("/var/log/nginx", &place.to_string()).replace("/var/lib/nginx-deny", &place.to_string());
    std::fs::write(dir.join("run.sh"), script).unwrap();
    let path = format!("PATH={place}/bin:/usr/sbin:/usr/bin:/sbin:/bin");
    let _process = host.start("env", &[path.as_ref(), "sh".as_ref(), dir.join("run.sh").as_os_str()]);
    host.settles(VICTIM, 200);
    let title = std::fs::read_to_string(dir.join("nginx.pid")).unwrap();
    let title = std::fs::read_to_string(format!("/proc/{}/cmdline", title.trim())).unwrap();
    assert!(title.contains("worker_shutdown_timeout 10s"), "{title}");

    let (mut slow, mut most) = (Vec::new(), 0);
    for n in 0..25 {
        slow.extend(host.slow_clients(12));
        // As anomaly does it, only more often.
        std::fs::write(dir.join("new"), format!("{VICTIM}/32 1;\n198.51.100.{n}/32 1;\n")).unwrap();
        std::fs::rename(dir.join("new"), &list).unwrap();
        std::thread::sleep(Duration::from_millis(1000));
        most = most.max(host.workers());
        assert!(most <= MOST_WORKERS, "{most} workers");
        assert_eq!(status(&host.space, true, NEIGHBOUR), Some(200), "with {most} workers");
    }
    assert!(most > 4, "no reload has met a slow client, so nothing was tested");
    host.settles(VICTIM, 403);
    // Old workers end also while their clients stay: the newest list is read.
    host.settles("198.51.100.24", 403);
    drop(slow);
}

#[test]
fn a_banned_client_behind_a_proxy_gets_403_and_nobody_else_does() {
    if !lab::ready("a_banned_client_behind_a_proxy_gets_403_and_nobody_else_does") {
        return;
    }
    let host = Host::new();
    let (dir, list) = (host.dir(), host.dir().join("anomaly.list"));
    let nginx = config::Nginx { deny_map: Some(list.clone()), pid_file: Some(dir.join("nginx.pid")) };
    let mut enforcer = deny_map::wrap(Box::new(DryRun::new()), &nginx);
    enforcer.set_never_drop(&["127.0.0.0/8".parse().unwrap()]).unwrap();
    enforcer.maintain();
    let _process = host.nginx(&configuration(dir, &list));
    host.settles(VICTIM, 200);

    let prefixes: [IpNet; 3] = [VICTIM, "2001:db8::", "127.0.0.1"].map(|a| {
        let length = if a.contains(':') { 64 } else { 32 };
        IpNet::new(a.parse().unwrap(), length).unwrap()
    });
    let drops = prefixes.map(|prefix| Ban { prefix, left: None });
    enforcer.ban(&drops);
    // What the daemon does every second.
    let maintain = |enforcer: &mut dyn Enforcer, client: &str, wanted| {
        clock::wait_until(&format!("{wanted} for {client}"), Duration::from_secs(20), || {
            assert_eq!(enforcer.maintain(), []);
            status(&host.space, true, client) == Some(wanted)
        })
        .unwrap();
    };
    maintain(enforcer.as_mut(), VICTIM, 403);
    host.settles(V6, 403);
    assert_eq!(status(&host.space, true, NEIGHBOUR), Some(200), "others pass through the same proxy");
    assert_eq!(status(&host.space, true, "127.0.0.1"), Some(200), "the proxy itself is never denied");
    assert_eq!(status(&host.space, false, VICTIM), Some(200), "an untrusted peer is only ever itself");

    enforcer.unban(&prefixes);
    for prefix in prefixes {
        enforcer.still_refused(&prefix);
    }
    maintain(enforcer.as_mut(), VICTIM, 200);
    host.settles(V6, 200);
}
