//! Connections to sshd: who has one, and how long one may stay open without a login.
//!
//! They are seen in the kernel's list of sockets, where a client that has logged in looks like one that has not.

use std::collections::HashSet;
use std::fs;
use std::net::IpAddr;
use std::path::Path;
use std::time::Duration;

use super::{both, kernel_address, net, text};

/// Port of sshd where nothing says otherwise.
const PORT: u16 = 22;
/// `LoginGraceTime` of sshd where nothing says otherwise.
const GRACE: Duration = Duration::from_secs(120);
/// No configuration of sshd makes it more here: it may know no limit.
const LONGEST_GRACE: Duration = Duration::from_secs(600);
/// On top of sshd's login grace: a connection may have begun a moment before it was seen.
pub const SSH_GRACE_MARGIN: Duration = Duration::from_secs(15);

/// The clients that have a connection to sshd now. Anybody can be one.
pub fn peers() -> Vec<IpAddr> {
    peers_in(&tcp(), &sshd_config(), &sshd_sockets())
}

/// How long sshd waits for a login. A connection that lasts longer is one, but where sshd's configuration cannot be read
/// (from a container) it may wait longer than we know.
pub fn login_grace() -> Duration {
    grace_in(&sshd_config())
}

/// The client whose SSH session has started this process (`SSH_CONNECTION`), for as long as its connection lasts.
pub(super) fn own_session() -> Option<IpAddr> {
    let session = std::env::var("SSH_CONNECTION").ok()?;
    session_in(&session, &tcp())
}

fn tcp() -> String {
    both(net("tcp"), net("tcp6"))
}

fn sshd_config() -> String {
    let files = fs::read_dir("/etc/ssh/sshd_config.d").into_iter().flatten().flatten();
    files.fold(text(Path::new("/etc/ssh/sshd_config")), |all, entry| both(all, text(&entry.path())))
}

/// Best effort: without CAP_SYS_PTRACE, or from a container, other processes cannot be looked into.
fn sshd_sockets() -> HashSet<u64> {
    let is_sshd = |dir: &Path| {
        let comm = fs::read_to_string(dir.join("comm")).unwrap_or_default();
        matches!(comm.trim(), "sshd" | "sshd-session" | "sshd-auth" | "dropbear")
    };
    let inode =
        |link: &Path| fs::read_link(link).ok()?.to_str()?.strip_prefix("socket:[")?.strip_suffix(']')?.parse().ok();
    let processes = fs::read_dir("/proc").into_iter().flatten().flatten().map(|entry| entry.path());
    processes
        .filter(|dir| is_sshd(dir))
        .flat_map(|dir| fs::read_dir(dir.join("fd")).into_iter().flatten().flatten())
        .filter_map(|entry| inode(&entry.path()))
        .collect()
}

/// The other ends of established connections to a port that sshd listens on.
fn peers_in(tcp: &str, sshd_config: &str, sshd_sockets: &HashSet<u64>) -> Vec<IpAddr> {
    let sockets: Vec<Socket> = tcp.lines().filter_map(Socket::read).collect();
    let mut ports: HashSet<u16> = sshd_ports(sshd_config);
    let own = |socket: &&Socket| socket.state == Socket::LISTEN && sshd_sockets.contains(&socket.inode);
    ports.extend(sockets.iter().filter(own).map(|socket| socket.local_port));
    let connected = |socket: &&Socket| socket.state == Socket::ESTABLISHED && ports.contains(&socket.local_port);
    let mut peers: Vec<IpAddr> = sockets.iter().filter(connected).map(|socket| socket.peer).collect();
    peers.retain(|peer| !peer.is_loopback());
    peers.sort_unstable();
    peers.dedup();
    peers
}

/// Out of `CLIENT PORT SERVER PORT`.
fn session_in(ssh_connection: &str, tcp: &str) -> Option<IpAddr> {
    let mut words = ssh_connection.split_whitespace();
    let client: IpAddr = words.next()?.split('%').next()?.parse().ok()?;
    let (client, port) = (client.to_canonical(), words.next()?.parse::<u16>().ok()?);
    let local_port = words.nth(1)?.parse::<u16>().ok()?;
    let lasts = |socket: Socket| {
        socket.state == Socket::ESTABLISHED
            && (socket.peer, socket.peer_port, socket.local_port) == (client, port, local_port)
    };
    (!client.is_loopback() && tcp.lines().filter_map(Socket::read).any(lasts)).then_some(client)
}

/// `LoginGraceTime 2m`, the longest where there are several.
fn grace_in(sshd_config: &str) -> Duration {
    let grace = |line: &str| {
        let mut words = line.split_whitespace();
        let is_it = words.next()?.eq_ignore_ascii_case("LoginGraceTime");
        words.next().filter(|_| is_it).and_then(seconds)
    };
    match sshd_config.lines().filter_map(grace).max() {
        // None means that sshd waits for ever, and then nothing follows from how long a connection lasts.
        None | Some(0) => GRACE,
        Some(secs) => Duration::from_secs(secs).min(LONGEST_GRACE),
    }
}

/// A time as sshd writes it: `90`, `2m`, `1h30m`.
fn seconds(text: &str) -> Option<u64> {
    let (mut total, mut number) = (0u64, None::<u64>);
    for c in text.chars() {
        if let Some(digit) = c.to_digit(10) {
            number = Some(number.unwrap_or(0).checked_mul(10)?.checked_add(digit.into())?);
            continue;
        }
        let unit = match c.to_ascii_lowercase() {
            's' => 1,
            'm' => 60,
            'h' => 3600,
            'd' => 86_400,
            'w' => 604_800,
            _ => return None,
        };
        total = total.checked_add(number.take()?.checked_mul(unit)?)?;
    }
    total.checked_add(number.unwrap_or(0))
}

/// `Port 2222` and `ListenAddress [::]:2222`; 22 besides, which is often only a listener of systemd's.
fn sshd_ports(text: &str) -> HashSet<u16> {
    let port = |line: &str| {
        let mut words = line.split_whitespace();
        let (key, value) = (words.next()?, words.next()?);
        if key.eq_ignore_ascii_case("Port") {
            value.parse().ok()
        } else if key.eq_ignore_ascii_case("ListenAddress") && (value.contains("]:") || value.matches(':').count() == 1)
        {
            value.rsplit(':').next()?.parse().ok()
        } else {
            None
        }
    };
    text.lines().filter_map(port).chain([PORT]).collect()
}

/// One line of `/proc/net/tcp` or `tcp6`.
#[derive(Debug, PartialEq, Eq)]
struct Socket {
    local_port: u16,
    peer: IpAddr,
    peer_port: u16,
    state: u8,
    inode: u64,
}

impl Socket {
    const ESTABLISHED: u8 = 1;
    const LISTEN: u8 = 10;

    /// `0: 0100007F:0016 0200007F:C001 01 ... uid timeout inode`.
    fn read(line: &str) -> Option<Self> {
        let words: Vec<&str> = line.split_whitespace().collect();
        let (_, local_port) = words.get(1)?.split_once(':')?;
        let (peer, peer_port) = words.get(2)?.split_once(':')?;
        Some(Self {
            local_port: u16::from_str_radix(local_port, 16).ok()?,
            peer: kernel_address(peer)?.to_canonical(),
            peer_port: u16::from_str_radix(peer_port, 16).ok()?,
            state: u8::from_str_radix(words.get(3)?, 16).ok()?,
            inode: words.get(9)?.parse().ok()?,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ip(text: &str) -> IpAddr {
        text.parse().expect("an address")
    }

    const TCP: &str = "\
  sl  local_address rem_address   st tx_queue rx_queue tr tm->when retrnsmt   uid  timeout inode
   0: 00000000:1E61 00000000:0000 0A 00000000:00000000 00:00000000 00000000     0        0 4711 1
   1: 020200C0:1E61 0A6433C6:C001 01 00000000:00000000 00:00000000 00000000     0        0 4712 1
   2: 020200C0:0050 0B6433C6:C001 01 00000000:00000000 00:00000000 00000000     0        0 4713 1
   3: 020200C0:08AE 0C6433C6:C001 01 00000000:00000000 00:00000000 00000000     0        0 4714 1
   4: 020200C0:0016 0D6433C6:C001 06 00000000:00000000 00:00000000 00000000     0        0 4715 1
   5: 0000000000000000FFFF0000020200C0:0016 0000000000000000FFFF00000E6433C6:C001 01 0:0 0:0 0 0 0 4716 1
   6: B80D0120000000000000000002000000:0016 B80D0120000000000000000099000000:C001 01 0:0 0:0 0 0 0 4717 1
";

    /// Port 2222 is configured, 7777 is sshd's by its socket, 80 is not SSH.
    #[test]
    fn finds_the_peers_of_ssh_and_of_nothing_else() {
        let config = "#Port 80\nport 2222\nListenAddress 192.0.2.2\nListenAddress ::\n";
        // The hexadecimal numbers above are those of a little-endian machine.
        if cfg!(target_endian = "little") {
            let expected = ["198.51.100.10", "198.51.100.12", "198.51.100.14", "2001:db8::99"];
            assert_eq!(peers_in(TCP, config, &HashSet::from([4711])), expected.map(ip));
        }
    }

    #[test]
    fn the_session_that_started_us_counts_while_its_connection_lasts() {
        if cfg!(target_endian = "little") {
            assert_eq!(session_in("198.51.100.14 49153 192.0.2.2 22", TCP), Some(ip("198.51.100.14")));
            assert_eq!(session_in("::ffff:198.51.100.14 49153 ::ffff:192.0.2.2 22", TCP), Some(ip("198.51.100.14")));
        }
        assert_eq!(session_in("198.51.100.14 49154 192.0.2.2 22", TCP), None, "another connection of the same client");
        assert_eq!(session_in("198.51.100.13 49153 192.0.2.2 22", TCP), None, "it has ended");
        assert_eq!(session_in("198.51.100.14 49153", TCP), None);
    }

    #[test]
    fn reads_the_ports_of_sshd() {
        let ports =
            sshd_ports("Port 2022\nListenAddress [::1]:2023\nListenAddress 192.0.2.1:2024\nListenAddress ::1\n");
        assert_eq!(ports, HashSet::from([22, 2022, 2023, 2024]));
    }

    #[test]
    fn reads_sshds_login_grace_and_never_takes_it_for_endless() {
        for (config, secs) in [
            ("", 120),
            ("#LoginGraceTime 30\n", 120),
            ("LoginGraceTime 30\n", 30),
            ("logingracetime 1m30s\n", 90),
            ("LoginGraceTime 10\nLoginGraceTime 2m\n", 120),
            ("LoginGraceTime 0\n", 120),
            ("LoginGraceTime 1d\n", 600),
            ("LoginGraceTime soon\n", 120),
            ("LoginGraceTime 99999999999999999999w\n", 120),
        ] {
            assert_eq!(grace_in(config), Duration::from_secs(secs), "{config:?}");
        }
    }

    proptest::proptest! {
        #[test]
        fn no_text_makes_it_panic(text in "(.{0,80}\n){0,5}", time in "[0-9smhdwx]{0,30}") {
            let _ = (sshd_ports(&text), grace_in(&text), Socket::read(&text), session_in(&text, &text), seconds(&time));
        }
    }
}
