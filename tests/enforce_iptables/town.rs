//! A client, a host and a container behind it, in namespaces of their own:
//!
//! ```text
//! client 192.0.2.2 ── 192.0.2.1 host 172.18.0.1 ── 172.18.0.2 container
//!        2001:db8:1::2     ::1       2001:db8:2::1      ::2
//! ```
//!
//! Real packets: a connection is there when the kernels on both sides say so.

#![expect(clippy::unwrap_used, reason = "a test that cannot go on should panic")]

use std::net::{IpAddr, SocketAddr, TcpListener, TcpStream};
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use anomaly::config::{Backend, Enforcer as Settings, OnStop, XdpMode};
use anomaly::enforce::iptables::IptablesEnforcer;
use anomaly::enforce::{Drop as Ban, EnforceError, Enforcer, Incident};
use ipnet::IpNet;

use crate::lab::guardian::Guardian;
use crate::lab::run;
use crate::lab::space::Space;

/// How long an attempt to connect may take; on an idle veth it takes microseconds.
const PATIENCE: Duration = Duration::from_millis(1500);

/// The port that the host publishes for the container.
pub const PUBLISHED: u16 = 8443;

pub struct Town {
    pub client: Space,
    pub host: Space,
    pub container: Space,
    guardian: Arc<Guardian>,
}

impl Town {
    pub fn new() -> Self {
        let guardian = Arc::new(Guardian::start("").unwrap());
        let space = |name| Space::new(name, &guardian, false).unwrap();
        let (client, host, container) = (space("client"), space("host"), space("container"));
        for space in [&client, &host, &container] {
            space.sysctl("net/ipv6/conf/all/accept_dad", "0").unwrap();
            space.sysctl("net/ipv6/conf/default/accept_dad", "0").unwrap();
            space.ip("link set lo up").unwrap();
        }
        host.sysctl("net/ipv4/ip_forward", "1").unwrap();
        host.sysctl("net/ipv6/conf/all/forwarding", "1").unwrap();
        for (guest, port, v4, v6) in
            [(&client, "wan", "192.0.2", "2001:db8:1:"), (&container, "docker0", "172.18.0", "2001:db8:2:")]
        {
            host.ip(&format!("link add {port} type veth peer name eth0 netns {}", guest.pid())).unwrap();
            host.ip(&format!("addr add {v4}.1/24 dev {port}")).unwrap();
            host.ip(&format!("addr add {v6}:1/64 dev {port}")).unwrap();
            host.ip(&format!("link set {port} up")).unwrap();
            guest.ip(&format!("addr add {v4}.2/24 dev eth0")).unwrap();
            guest.ip(&format!("addr add {v6}:2/64 dev eth0")).unwrap();
            guest.ip("link set eth0 up").unwrap();
            guest.ip(&format!("route add default via {v4}.1")).unwrap();
            guest.ip(&format!("-6 route add default via {v6}:1")).unwrap();
        }
        Self { client, host, container, guardian }
    }

    /// A directory for PATH where `iptables` is the `variant` (`nft`, `legacy`), with `more` programs.
    pub fn path(&self, variant: &str, more: &[&str]) -> PathBuf {
        let dir = self.empty_dir(variant);
        let multi = which(&format!("xtables-{variant}-multi"));
        for name in ["iptables", "iptables-save", "iptables-restore"] {
            for name in [name.to_owned(), name.replace("ip", "ip6")] {
                symlink(&multi, dir.join(name)).unwrap();
            }
        }
        for name in more {
            symlink(which(name), dir.join(name)).unwrap();
        }
        dir
    }

    /// An empty directory of the town.
    pub fn empty_dir(&self, name: &str) -> PathBuf {
        let dir = tempfile::Builder::new().prefix(name).tempdir_in(self.guardian.dir()).unwrap();
        dir.keep()
    }

    /// Runs a command on the host, with words separated by blanks.
    pub fn sh(&self, line: &str) -> String {
        let mut words = line.split(' ');
        run(self.host.command(words.next().unwrap()).args(words)).unwrap()
    }

    /// Opens the enforcer on the host.
    pub fn open(&self, settings: &Settings, path: &Path) -> Result<(IptablesEnforcer, Vec<Incident>), EnforceError> {
        self.host.within(|| IptablesEnforcer::open_with(settings, path.as_os_str())).unwrap()
    }

    /// Runs `work` on the host.
    pub fn on_host<T: Send>(&self, work: impl FnOnce() -> T + Send) -> T {
        self.host.within(work).unwrap()
    }

    /// Drops these for ever; each must succeed.
    pub fn ban(&self, enforcer: &mut dyn Enforcer, prefixes: &[IpNet]) {
        let drops: Vec<Ban> = prefixes.iter().map(|&prefix| Ban { prefix, left: None }).collect();
        for result in self.on_host(|| enforcer.ban(&drops)) {
            result.unwrap();
        }
    }

    pub fn unban(&self, enforcer: &mut dyn Enforcer, prefixes: &[IpNet]) {
        for result in self.on_host(|| enforcer.unban(prefixes)) {
            result.unwrap();
        }
    }

    /// Calls `maintain` as often as the daemon does in a few seconds.
    pub fn maintain(&self, enforcer: &mut dyn Enforcer) -> Vec<Incident> {
        self.on_host(|| (0..5).flat_map(|_| enforcer.maintain()).collect())
    }

    /// A server on the host.
    pub fn serve(&self) -> TcpListener {
        self.on_host(|| TcpListener::bind("[::]:0")).unwrap()
    }

    /// A server in the container, published by the host as [`PUBLISHED`]: what Docker's DNAT does.
    pub fn publish(&self, path: &Path) -> TcpListener {
        let listener = self.container.within(|| TcpListener::bind("[::]:0")).unwrap().unwrap();
        let port = listener.local_addr().unwrap().port();
        for (program, to) in [("iptables", "172.18.0.2"), ("ip6tables", "[2001:db8:2::2]")] {
            let program = path.join(program);
            self.sh(&format!(
                "{} -t nat -A PREROUTING -i wan -p tcp --dport {PUBLISHED} -j DNAT --to-destination {to}:{port}",
                program.display()
            ));
        }
        listener
    }

    /// Whether the client reaches this port of the host, over IPv4 and over IPv6.
    pub fn reach(&self, port: u16) -> (bool, bool) {
        let connect = |to: &str| {
            let to = SocketAddr::new(to.parse::<IpAddr>().unwrap(), port);
            self.client.within(move || TcpStream::connect_timeout(&to, PATIENCE).is_ok()).unwrap()
        };
        (connect("192.0.2.1"), connect("2001:db8:1::1"))
    }
}

/// What the daemon would be configured with.
pub fn settings() -> Settings {
    Settings {
        backend: Backend::Iptables,
        interfaces: vec!["auto".into()],
        xdp_mode: XdpMode::Auto,
        on_stop: OnStop::Keep,
        grace: Duration::from_secs(86_400),
        pin_dir: "/nonexistent/anomaly".into(),
        max_bans: 1 << 20,
        iptables_max_rules: 500,
        iptables_raw_prerouting: false,
        probe_log: false,
    }
}

pub fn net(text: &str) -> IpNet {
    text.parse().unwrap()
}

fn which(program: &str) -> PathBuf {
    let path = std::env::var_os("PATH").unwrap();
    let mut dirs = std::env::split_paths(&path).chain(["/usr/sbin", "/sbin"].map(PathBuf::from));
    dirs.find(|dir| dir.join(program).exists()).unwrap_or_else(|| panic!("{program} is not installed")).join(program)
}
