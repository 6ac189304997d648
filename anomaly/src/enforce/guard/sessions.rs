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

/// The remote addresses of all present logins, without loopback and duplicates.
pub fn logged_in() -> Vec<IpAddr> {
    let mut found = login_manager(Path::new("/run/systemd/sessions"));
    if cfg!(target_arch = "x86_64") {
        found.extend(utmp(&fs::read("/run/utmp").unwrap_or_default()));
    }
    found.retain(|address| !address.is_loopback() && !address.is_unspecified());
    found.sort();
    found.dedup();
    found
}

/// `REMOTE_HOST=203.0.113.9` in one file a session. Names are not resolved: whoever rules the reverse zone of an
/// address could choose them.
fn login_manager(dir: &Path) -> Vec<IpAddr> {
    let sessions = fs::read_dir(dir).into_iter().flatten().flatten();
    let texts = sessions.filter_map(|entry| fs::read_to_string(entry.path()).ok());
    let host = |text: String| {
        let value = text.lines().find_map(|line| line.strip_prefix("REMOTE_HOST="))?;
        // "203.0.113.9", or with the port or interface of its end.
        value.trim_matches('"').split('%').next()?.parse().ok()
    };
    texts.filter_map(host).map(|address: IpAddr| address.to_canonical()).collect()
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
            ("5", "REMOTE_HOST=2001:db8::9\n"),
        ] {
            fs::write(dir.path().join(name), text).expect("written");
        }
        let mut found = login_manager(dir.path());
        found.sort();
        assert_eq!(
            found.iter().map(ToString::to_string).collect::<Vec<_>>(),
            ["198.51.100.4", "203.0.113.9", "2001:db8::9"]
        );
        assert_eq!(login_manager(&dir.path().join("none")), [] as [IpAddr; 0]);
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
