//! Two network namespaces joined by a veth pair, and a pin directory: made for one test, gone after it.
//!
//! The namespaces have no names: a name is a mount that every process shares, and any fault of that mount is `EINVAL` for a
//! process that enters. Processes hold the namespaces, and take them along when they end.

use std::net::UdpSocket;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use anomaly::config::{Backend, Enforcer as Settings, OnStop, XdpMode};
use anomaly::enforce::xdp::{OBJECT, XdpEnforcer};
use anomaly::enforce::{EnforceError, Enforcer, Incident};

use crate::lab::guardian::Guardian;
use crate::lab::space::Space;

/// The host that is guarded (`va`, 10.77.0.1, fd77::1) and its peer (`vb`, 10.77.0.2, fd77::2).
pub struct Rig {
    pub host: Space,
    pub peer: Space,
    scratch: tempfile::TempDir,
}

impl Rig {
    /// `None`, loudly, for a plain user; a panic where it must run.
    pub fn new() -> Option<Self> {
        if !rustix::process::geteuid().is_root() {
            crate::lab::skip(std::thread::current().name().unwrap_or("a kernel test"), "it needs root");
            return None;
        }
        let guardian = Arc::new(Guardian::start("").unwrap());
        let space = |name| Space::new(name, &guardian, false).unwrap();
        let rig = Self {
            host: space("host"),
            peer: space("peer"),
            scratch: tempfile::Builder::new().prefix("anomaly-k").tempdir().unwrap(),
        };
        for space in [&rig.host, &rig.peer] {
            space.ip("link set lo up").unwrap();
        }
        rig.pair("va", "vb", 77);
        rig.ip("route add default via 10.77.0.2");
        Some(rig)
    }

    /// Joins host and peer by a veth pair with addresses 10.`net`.0.1 and .2, fd`net`::1 and ::2.
    pub fn pair(&self, host: &str, peer: &str, net: u8) {
        self.ip(&format!("link add {host} type veth peer name {peer} netns {}", self.peer.pid()));
        for (space, name, last) in [(&self.host, host, 1), (&self.peer, peer, 2)] {
            space.ip(&format!("addr add 10.{net}.0.{last}/24 dev {name}")).unwrap();
            space.ip(&format!("addr add fd{net}::{last}/64 dev {name} nodad")).unwrap();
            space.ip(&format!("link set {name} up")).unwrap();
        }
        // Up is only asked for above; until the kernel has seen to it, nothing at all passes.
        for (space, name) in [(&self.host, host), (&self.peer, peer)] {
            for _ in 0..300 {
                if space.ip(&format!("link show dev {name}")).unwrap().contains("state UP") {
                    break;
                }
                std::thread::sleep(Duration::from_millis(10));
            }
        }
    }

    /// `ip` in the host's namespace, with words separated by blanks.
    pub fn ip(&self, words: &str) {
        self.host.ip(words).unwrap();
    }

    /// Whether this kernel knows VLAN interfaces.
    pub fn has_vlans(&self) -> bool {
        let there = self.host.ip("link add link va name probe.1 type vlan id 1").is_ok();
        if there {
            self.ip("link del probe.1");
        }
        there
    }

    /// Runs something on the host.
    pub fn on_host<T: Send>(&self, f: impl FnOnce() -> T + Send) -> T {
        self.host.within(f).unwrap()
    }

    /// Runs something on the peer.
    pub fn on_peer<T: Send>(&self, f: impl FnOnce() -> T + Send) -> T {
        self.peer.within(f).unwrap()
    }

    /// A pin directory of this test.
    pub fn pin_dir(&self) -> PathBuf {
        self.scratch.path().join("pins")
    }

    /// Where this version's maps and links are pinned.
    pub fn pins(&self) -> PathBuf {
        self.pin_dir().join(format!("v{}", anomaly_common::LAYOUT_VERSION))
    }

    /// Settings for `va`, with this test's pin directory.
    pub fn settings(&self) -> Settings {
        Settings {
            backend: Backend::Auto,
            interfaces: vec!["va".into()],
            xdp_mode: XdpMode::Auto,
            on_stop: OnStop::Keep,
            grace: Duration::from_secs(86_400),
            pin_dir: self.pin_dir(),
            max_bans: 1 << 20,
            iptables_max_rules: 500,
            iptables_raw_prerouting: false,
            probe_log: false,
        }
    }

    /// Opens the enforcer on the host.
    pub fn open(&self, settings: &Settings) -> Result<(XdpEnforcer, Vec<Incident>), EnforceError> {
        self.on_host(|| open(settings))
    }

    /// Sends datagrams from the peer without pause while `during` runs on the caller's thread. Returns its
    /// answer, how many were sent, and how many arrived.
    pub fn flood<T>(&self, from: &str, to: &str, during: impl FnOnce() -> T) -> (T, u64, u64) {
        let socket = self.on_host(|| UdpSocket::bind((to, 0)).unwrap());
        let target = socket.local_addr().unwrap();
        let sender = self.on_peer(|| UdpSocket::bind((from, 0)).unwrap());
        let stop = AtomicBool::new(false);
        let (answer, sent) = std::thread::scope(|scope| {
            let flood = scope.spawn(|| {
                let mut sent = 0;
                while !stop.load(Ordering::Relaxed) {
                    // A full queue of the sender is no gap of ours.
                    sent += u64::from(sender.send_to(&[1], target).is_ok());
                }
                sent
            });
            let answer = std::panic::catch_unwind(std::panic::AssertUnwindSafe(during));
            stop.store(true, Ordering::Relaxed);
            let sent = flood.join().unwrap();
            (answer.unwrap_or_else(|panic| std::panic::resume_unwind(panic)), sent)
        });
        socket.set_read_timeout(Some(Duration::from_millis(150))).unwrap();
        let mut buffer = [0; 8];
        let arrived = std::iter::from_fn(|| socket.recv(&mut buffer).ok()).count() as u64;
        (answer, sent, arrived)
    }

    /// Of `count` datagrams from the peer's `from`, how many arrive on the host's `to`.
    pub fn arrive(&self, from: &str, to: &str, count: u8) -> usize {
        let socket = self.on_host(|| UdpSocket::bind((to, 0)).unwrap());
        let target = socket.local_addr().unwrap();
        self.on_peer(|| {
            let sender = UdpSocket::bind((from, 0)).unwrap();
            for n in 0..count {
                sender.send_to(&[n], target).unwrap();
            }
        });
        // veth delivers at once; this only bounds the wait for what was dropped.
        socket.set_read_timeout(Some(Duration::from_millis(150))).unwrap();
        let mut buffer = [0; 8];
        (0..count).take_while(|_| socket.recv(&mut buffer).is_ok()).count()
    }
}

impl Drop for Rig {
    fn drop(&mut self) {
        // Only where a test failed before it closed its enforcer.
        let _ = rustix::mount::unmount(self.pin_dir(), rustix::mount::UnmountFlags::DETACH);
    }
}

/// Opens the enforcer over the object under test.
pub fn open(settings: &Settings) -> Result<(XdpEnforcer, Vec<Incident>), EnforceError> {
    match std::env::var_os("ANOMALY_EBPF_OBJECT") {
        Some(path) => XdpEnforcer::open_object(settings, &std::fs::read(path).unwrap()),
        None => XdpEnforcer::open_object(settings, OBJECT),
    }
}

/// Bans one prefix.
pub fn ban(enforcer: &mut dyn Enforcer, prefix: &str, secs: Option<u64>) {
    let drop = anomaly::enforce::Drop { prefix: prefix.parse().unwrap(), left: secs.map(Duration::from_secs) };
    enforcer.ban(&[drop]).into_iter().collect::<Result<Vec<()>, EnforceError>>().unwrap();
}

/// Lifts one ban.
pub fn lift(enforcer: &mut dyn Enforcer, prefix: &str) {
    enforcer.unban(&[prefix.parse().unwrap()]).into_iter().collect::<Result<Vec<()>, EnforceError>>().unwrap();
}

/// Mounts bpffs, as a container's start-up does.
pub fn mount_bpffs(path: &std::path::Path) {
    rustix::mount::mount("bpf", path, "bpf", rustix::mount::MountFlags::empty(), None)
        .unwrap_or_else(|e| panic!("mounting bpffs on {}: {e}", path.display()));
}
