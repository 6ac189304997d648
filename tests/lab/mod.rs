//! A host under attack, in a box: a server, an honest client and an attacker, each in a network
//! namespace of its own behind one router, with real Nginx, real TCP and the real daemon.
//!
//! Used by the end-to-end tests and, through `#[path]`, by `cargo xtask demo`; so it knows neither
//! the daemon's code nor any test framework. Nothing here has a name that another run could clash
//! with: namespaces are held by processes, bpffs is mounted in the lab's own mount namespace, and
//! files live in a directory of their own. Whatever ends the process that made the lab, the
//! [`guardian`] takes all of it away. Deliberately not: a general test bed; the topology is fixed.

pub mod client;
pub mod clock;
pub mod daemon;
pub mod guardian;
pub mod history;
pub mod nginx;
pub mod process;
pub mod sink;
pub mod space;

use std::net::IpAddr;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::Arc;

use anyhow::{Context, Result, bail};

use guardian::Guardian;
use process::Process;
use space::Space;

/// Interface of the server (and of every client) that faces the router.
pub const INTERFACE: &str = "veth";
/// The server, by IPv4 and IPv6.
pub const SERVER: Host = Host { v4: "192.0.2.10", v6: "2001:db8:1::10" };
/// A client that nobody should ever drop.
pub const HONEST: Host = Host { v4: "198.51.100.10", v6: "2001:db8:2::10" };
/// A client that nobody has seen before.
pub const ATTACKER: Host = Host { v4: "203.0.113.66", v6: "2001:db8:3::66" };
/// The attacker's second address, in another /64: tests put it on the allow-list.
pub const FRIEND: Host = Host { v4: "203.0.113.99", v6: "2001:db8:4::99" };

/// A host's two addresses.
#[derive(Clone, Copy, Debug)]
pub struct Host {
    /// IPv4.
    pub v4: &'static str,
    /// IPv6.
    pub v6: &'static str,
}

impl Host {
    /// The address of the same family as `other`.
    pub fn like(&self, other: IpAddr) -> IpAddr {
        if other.is_ipv4() { self.v4() } else { self.v6() }
    }

    /// IPv4.
    pub fn v4(&self) -> IpAddr {
        self.v4.parse().expect("the constants above are addresses")
    }

    /// IPv6.
    pub fn v6(&self) -> IpAddr {
        self.v6.parse().expect("the constants above are addresses")
    }
}

/// The namespaces and the directory. Dropping it removes both; daemons and servers borrow it, so
/// that they are gone before.
pub struct Lab {
    /// Runs Nginx and the daemon; has a mount namespace with bpffs too.
    pub server: Space,
    /// Asks politely.
    pub honest: Space,
    /// Does not; holds [`ATTACKER`] and [`FRIEND`].
    pub attacker: Space,
    router: Space,
    guardian: Arc<Guardian>,
}

impl Lab {
    /// Makes the namespaces and wires them.
    ///
    /// # Errors
    /// What [`available`] would have said, or the command that failed.
    pub fn new(farewell: &str) -> Result<Self> {
        let guardian = Arc::new(Guardian::start(farewell)?);
        let server = Space::new("server", &guardian, true)?;
        let router = Space::new("router", &guardian, false)?;
        let honest = Space::new("honest client", &guardian, false)?;
        let attacker = Space::new("attacker", &guardian, false)?;
        let lab = Self { server, honest, attacker, router, guardian };
        lab.wire().context("the lab's network could not be wired")?;
        let bpf = lab.bpffs();
        std::fs::create_dir(&bpf)?;
        run(lab.server.command("mount").args(["-t", "bpf", "-o", "mode=0700", "anomaly-lab"]).arg(&bpf))
            .context("bpffs could not be mounted")?;
        Ok(lab)
    }

    /// The lab's directory, open to Nginx's workers.
    pub fn dir(&self) -> &Path {
        self.guardian.dir()
    }

    /// Starts a process that does not outlive the lab.
    ///
    /// # Errors
    /// When it cannot be started.
    pub fn start(&self, name: &str, command: Command, output: &Path) -> Result<Process> {
        Process::start(name, command, output, &self.guardian)
    }

    /// Where bpffs is mounted, as processes of the server see it.
    pub fn bpffs(&self) -> PathBuf {
        self.dir().join("bpf")
    }

    fn wire(&self) -> Result<()> {
        for space in [&self.server, &self.router, &self.honest, &self.attacker] {
            // Otherwise every address is unusable for a second or two while it is checked for duplicates.
            space.sysctl("net/ipv6/conf/all/accept_dad", "0")?;
            space.sysctl("net/ipv6/conf/default/accept_dad", "0")?;
            space.sysctl("net/ipv6/conf/default/accept_ra", "0")?;
            space.ip("link set lo up")?;
        }
        self.router.sysctl("net/ipv4/ip_forward", "1")?;
        self.router.sysctl("net/ipv6/conf/all/forwarding", "1")?;
        self.connect(&self.server, "to-server", &[SERVER])?;
        self.connect(&self.honest, "to-honest", &[HONEST])?;
        self.connect(&self.attacker, "to-attacker", &[ATTACKER, FRIEND])
    }

    /// A veth pair from the router to `space`, with the `.1` of each network on the router's side.
    fn connect(&self, space: &Space, port: &str, hosts: &[Host]) -> Result<()> {
        self.router.ip(&format!("link add {port} type veth peer name {INTERFACE} netns {}", space.pid()))?;
        self.router.ip(&format!("link set {port} up"))?;
        space.ip(&format!("link set {INTERFACE} up"))?;
        for host in hosts {
            for (address, length, separator) in [(host.v4, 24, '.'), (host.v6, 64, ':')] {
                let network = address.rsplit_once(separator).map_or(address, |(network, _)| network);
                // Two hosts may share an IPv4 network; the gateway is the same address then.
                self.router.ip(&format!("addr replace {network}{separator}1/{length} dev {port}"))?;
                space.ip(&format!("addr add {address}/{length} dev {INTERFACE}"))?;
                space.ip(&format!("route replace default via {network}{separator}1 dev {INTERFACE}"))?;
            }
        }
        Ok(())
    }
}

/// Why a lab cannot be made here; `Ok` when it can.
///
/// # Errors
/// One line that names everything that is missing.
pub fn available() -> Result<()> {
    if !rustix::process::geteuid().is_root() {
        bail!("it needs root, for network namespaces and XDP");
    }
    let missing: Vec<&str> = ["ip", "unshare", "nsenter", "mount", "nginx", "curl", "iptables"]
        .into_iter()
        .filter(|p| !on_path(p))
        .collect();
    if !missing.is_empty() {
        bail!("these programs are not installed: {}", missing.join(", "));
    }
    run(Command::new("unshare").args(["--net", "--mount", "true"])).context("this root may not make namespaces")?;
    Ok(())
}

/// True when the lab can be used. Otherwise says on the terminal that `test` is skipped, and why;
/// where `CI` is set a skipped test is a failed one.
///
/// # Panics
/// Under `CI`.
pub fn ready(test: &str) -> bool {
    let Err(why) = available() else { return true };
    skip(test, &format!("{why:#}"));
    false
}

/// Says that `test` is skipped.
///
/// # Panics
/// Under `CI`.
pub fn skip(test: &str, why: &str) {
    assert!(std::env::var_os("CI").is_none(), "{test} must run here, but: {why}");
    skip_anywhere(test, why);
}

/// Says that `test` is skipped because this kernel or distribution lacks something that nobody can install: also under
/// `CI`.
pub fn skip_anywhere(test: &str, why: &str) {
    use std::io::Write;
    // The macros' output is swallowed for tests that pass, and this one will.
    let line = format!("SKIPPED {test}: {why}\n");
    let _ = std::io::stderr().write_all(line.as_bytes());
    // `cargo xtask test` repeats these at its end.
    if let Some(list) = std::env::var_os("ANOMALY_SKIPS") {
        let file = std::fs::File::options().append(true).open(list);
        let _ = file.and_then(|mut file| file.write_all(line.as_bytes()));
    }
}

fn on_path(program: &str) -> bool {
    let path = std::env::var_os("PATH").unwrap_or_default();
    std::env::split_paths(&path).chain(["/usr/sbin", "/sbin"].map(Into::into)).any(|dir| dir.join(program).is_file())
}

/// Runs a command to its end and gives its standard output.
///
/// # Errors
/// With the command line and what it printed, when it fails.
pub fn run(command: &mut Command) -> Result<String> {
    let output = command
        .stdin(std::process::Stdio::null())
        .output()
        .with_context(|| format!("{} could not be started", command.get_program().display()))?;
    if !output.status.success() {
        bail!("{command:?}: {}: {}", output.status, String::from_utf8_lossy(&output.stderr).trim());
    }
    Ok(String::from_utf8_lossy(&output.stdout).into_owned())
}
