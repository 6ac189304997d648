//! From where people are logged in: the login manager's sessions, and utmp where that is laid out as we know it (x86-64;
//! elsewhere the login manager alone is asked).
//!
//! Unlike an open connection to port 22, a session means that somebody has proved who they are. So it can be looked
//! for again and again while the daemon runs, which would otherwise let an attacker exempt themselves by connecting.

use std::fs;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::path::Path;

/// Size of glibc's `struct utmp` on x86-64, and where its fields are. Other architectures differ: aarch64 has 64-bit times
/// in it, so its records are longer.
const RECORD: usize = 384;
const USER: std::ops::Range<usize> = 44..76;
const ADDRESS: std::ops::Range<usize> = 348..364;
/// `ut_type` of somebody who is logged in.
const USER_PROCESS: i16 = 7;

/// Who is logged in.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct LoggedIn {
    /// The remote addresses of all present logins, without loopback and duplicates.
    pub from: Vec<IpAddr>,
    /// There is a record of logins: false in a container, where nothing follows from an empty list.
    pub recorded: bool,
}

/// Who is logged in now.
pub fn logged_in() -> LoggedIn {
    let sessions = login_manager(Path::new("/run/systemd/sessions"));
    // The directory is in many images of containers, too: there no systemd runs, and nobody ever writes to it.
    let managed = |sessions: &Sessions| sessions.some || Path::new("/run/systemd/system").is_dir();
    let records = if cfg!(target_arch = "x86_64") { fs::read("/run/utmp").unwrap_or_default() } else { Vec::new() };
    // A host that was booted has at least a record of that.
    let recorded = sessions.as_ref().is_some_and(managed) || records.len() >= RECORD;
    let mut from = sessions.map(|sessions| sessions.from).unwrap_or_default();
    from.extend(utmp(&records));
    from.extend(super::ssh::own_session());
    from.retain(|address| !address.is_loopback() && !address.is_unspecified());
    from.sort();
    from.dedup();
    LoggedIn { from, recorded }
}

/// What the login manager has written.
#[derive(Debug, Default, PartialEq, Eq)]
struct Sessions {
    from: Vec<IpAddr>,
    /// There is one at least, from wherever.
    some: bool,
}

/// `REMOTE_HOST=203.0.113.9` in one file a session; none where there is no login manager. Names are not resolved: whoever
/// rules the reverse zone of an address could choose them.
fn login_manager(dir: &Path) -> Option<Sessions> {
    let sessions = fs::read_dir(dir).ok()?.flatten();
    let texts: Vec<String> = sessions.filter_map(|entry| fs::read_to_string(entry.path()).ok()).collect();
    let some = !texts.is_empty();
    let host = |text: String| {
        // Its client has gone; processes that it left behind (tmux) keep it for as long as they like.
        if text.lines().any(|line| line == "STATE=closing") {
            return None;
        }
        let value = text.lines().find_map(|line| line.strip_prefix("REMOTE_HOST="))?;
        // "203.0.113.9", or with the port or interface of its end.
        value.trim_matches('"').split('%').next()?.parse().ok()
    };
    let from = texts.into_iter().filter_map(host).map(|address: IpAddr| address.to_canonical()).collect();
    Some(Sessions { from, some })
}

fn utmp(bytes: &[u8]) -> Vec<IpAddr> {
    let address = |record: &[u8]| {
        let kind = i16::from_ne_bytes(record.get(..2)?.try_into().ok()?);
        let user = *record.get(USER)?.first()?;
        let address: [u8; 16] = record.get(ADDRESS)?.try_into().ok()?;
        let (first, rest) = address.split_at(4);
        let is_v4 = rest.iter().all(|byte| *byte == 0);
        let address = match <[u8; 4]>::try_from(first) {
            Ok(first) if is_v4 => IpAddr::V4(Ipv4Addr::from(first)),
            _ => IpAddr::V6(Ipv6Addr::from(address)).to_canonical(),
        };
        (kind == USER_PROCESS && user != 0).then_some(address)
    };
    bytes.chunks_exact(RECORD).filter_map(address).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_login_managers_sessions_name_their_clients() {
        let dir = tempfile::tempdir().expect("a directory");
        for (name, text) in [
            ("1", "UID=0\nREMOTE=1\nREMOTE_HOST=203.0.113.9\nSERVICE=sshd\n"),
            ("2", "UID=0\nREMOTE=0\nTTY=tty1\n"),
            ("3", "REMOTE_HOST=::ffff:198.51.100.4\n"),
            ("4", "REMOTE_HOST=host.example.org\n"),
            ("5", "STATE=active\nREMOTE_HOST=2001:db8::9\n"),
            ("6", "REMOTE_HOST=203.0.113.77\nSTATE=closing\n"),
        ] {
            fs::write(dir.path().join(name), text).expect("written");
        }
        let Sessions { from: mut found, some } = login_manager(dir.path()).expect("there is one");
        assert!(some);
        found.sort();
        assert_eq!(
            found.iter().map(ToString::to_string).collect::<Vec<_>>(),
            ["198.51.100.4", "203.0.113.9", "2001:db8::9"]
        );
        assert_eq!(login_manager(&dir.path().join("none")), None);
        let empty = tempfile::tempdir().expect("a directory");
        assert_eq!(login_manager(empty.path()), Some(Sessions::default()));
    }

    #[test]
    fn utmp_names_who_is_logged_in_and_nobody_else() {
        let record = |kind: i16, user: &[u8], address: &[u8]| {
            let mut record = [0u8; RECORD];
            record[..2].copy_from_slice(&kind.to_ne_bytes());
            record[USER][..user.len()].copy_from_slice(user);
            record[ADDRESS][..address.len()].copy_from_slice(address);
            record
        };
        let v6: Ipv6Addr = "2001:db8::9".parse().expect("an address");
        let bytes = [
            record(USER_PROCESS, b"root", &[203, 0, 113, 9]),
            record(8, b"", &[198, 51, 100, 4]),
            record(USER_PROCESS, b"admin", &v6.octets()),
        ]
        .concat();
        assert_eq!(utmp(&bytes), [IpAddr::from([203, 0, 113, 9]), IpAddr::from(v6)]);
        assert_eq!(utmp(&bytes[..RECORD - 1]), [] as [IpAddr; 0], "half a record is none");
    }
}
