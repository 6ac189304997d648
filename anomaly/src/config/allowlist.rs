//! The second place of the allow-list: a plain file, one address or prefix a line, for installers and
//! configuration management. What is in `allowlist` itself needs no file.

use std::io::ErrorKind;
use std::path::Path;

use super::{Config, ConfigError};
use crate::report::parse_ip;

/// Where the package writes the address that it was installed from.
pub const DEFAULT_FILE: &str = "/etc/anomaly/allowlist";

/// Prefixes of one family that may be exempt: the kernel's table holds 16,384, of which some are left for the host's own
/// addresses and logins.
pub const MOST_EXEMPT: usize = 15_360;

/// # Errors
/// [`ConfigError::Values`]: more exemptions than the kernel's table holds; some would be dropped by wider bans.
pub(super) fn check_room(place: &str, config: &Config) -> Result<(), ConfigError> {
    let mut all: Vec<_> = config.allowlist.iter().chain(&config.trusted_proxies).map(ipnet::IpNet::trunc).collect();
    all.sort_unstable();
    all.dedup();
    let v4 = all.iter().filter(|prefix| prefix.addr().is_ipv4()).count();
    let problem = |(family, count)| {
        format!(
            "allowlist, allowlist_file and trusted_proxies have {count} {family} prefixes, and at most {MOST_EXEMPT} fit \
             into the kernel: write wider ones"
        )
    };
    let counts = [("IPv4", v4), ("IPv6", all.len() - v4)].into_iter().filter(|(_, count)| *count > MOST_EXEMPT);
    let problems: Vec<String> = counts.map(problem).collect();
    if problems.is_empty() { Ok(()) } else { Err(ConfigError::Values { place: place.to_owned(), problems }) }
}

/// Adds what `allowlist_file` lists to the allow-list. Only the default file may be missing.
///
/// # Errors
/// [`ConfigError`]: unreadable file, or lines that are no address and no prefix, each with its number.
pub(super) fn add_file(config: &mut Config) -> Result<(), ConfigError> {
    let Some(path) = config.allowlist_file.clone() else { return Ok(()) };
    let text = match std::fs::read_to_string(&path) {
        Ok(text) => text,
        Err(error) if error.kind() == ErrorKind::NotFound && path == Path::new(DEFAULT_FILE) => return Ok(()),
        Err(source) => return Err(ConfigError::Read { path, source }),
    };
    let mut problems = Vec::new();
    for (n, line) in text.lines().enumerate() {
        let entry = line.split('#').next().unwrap_or_default().trim();
        match parse_ip(entry) {
            _ if entry.is_empty() => {}
            Some(prefix) if prefix.prefix_len() > 0 => config.allowlist.push(prefix),
            Some(_) => problems.push(format!("line {}: {entry} covers every address: nobody could be banned", n + 1)),
            None => problems.push(format!("line {}: {entry:?} is no IP address and no CIDR prefix", n + 1)),
        }
    }
    config.engine.allowlist.clone_from(&config.allowlist);
    if problems.is_empty() { Ok(()) } else { Err(ConfigError::Values { place: path.display().to_string(), problems }) }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::load;

    fn loaded(dir: &Path, text: &str) -> Result<Config, String> {
        let (file, list) = (dir.join("anomaly.toml"), dir.join("allowlist"));
        std::fs::write(&file, format!("allowlist = [\"192.0.2.1\"]\nallowlist_file = \"{}\"\n", list.display()))
            .expect("written");
        if text.is_empty() {
            let _ = std::fs::remove_file(&list);
        } else {
            std::fs::write(&list, text).expect("written");
        }
        load(Some(&file), []).map(|loaded| loaded.config).map_err(|error| error.to_string())
    }

    #[test]
    fn the_file_adds_to_the_list() {
        let dir = tempfile::tempdir().expect("a directory");
        let config = loaded(dir.path(), "# mine\n\n203.0.113.9  # the office\n2001:db8::/48\n").expect("good");
        let shown: Vec<String> = config.allowlist.iter().map(ToString::to_string).collect();
        assert_eq!(shown, ["192.0.2.1/32", "203.0.113.9/32", "2001:db8::/48"]);
        assert_eq!(config.engine.allowlist, config.allowlist);
    }

    #[test]
    fn what_is_wrong_is_named_by_its_line() {
        let dir = tempfile::tempdir().expect("a directory");
        let error = loaded(dir.path(), "203.0.113.9\noffice.example.org\n::/0\n").expect_err("bad");
        assert!(error.contains("line 2") && error.contains("line 3: ::/0 covers every"), "{error}");
        assert!(loaded(dir.path(), "").expect_err("named, and not there").contains("allowlist"));
    }

    #[test]
    fn more_than_the_kernel_holds_is_refused() {
        let dir = tempfile::tempdir().expect("a directory");
        let lines = |count: usize| {
            (0..count)
                .map(|n| format!("10.{}.{}.0/24\n", n >> 8, n & 255))
                .chain(["2001:db8::/48\n".into()])
                .collect::<String>()
        };
        assert_eq!(loaded(dir.path(), &lines(MOST_EXEMPT - 1)).expect("fits").allowlist.len(), MOST_EXEMPT + 1);
        let error = loaded(dir.path(), &lines(MOST_EXEMPT + 1)).expect_err("too many");
        assert!(error.contains("IPv4 prefixes") && !error.contains("IPv6"), "{error}");
        let program = include_str!("../../../anomaly-ebpf/src/main.rs");
        for map in ["ALLOW_V4: LpmTrie<u32, u64>", "ALLOW_V6: LpmTrie<[u64; 2], u64>"] {
            let room =
                program.split(map).nth(1).and_then(|rest| rest.split("with_max_entries(").nth(1)).expect("a map");
            let room: usize = room.split(',').next().and_then(|n| n.trim().parse().ok()).expect("a number");
            assert!(room >= MOST_EXEMPT + 1024, "{map} holds {room}");
        }
    }

    #[test]
    fn ipv4_written_as_ipv6_is_ipv4() {
        let dir = tempfile::tempdir().expect("a directory");
        let config = loaded(dir.path(), "::ffff:203.0.113.9\n::ffff:198.51.100.0/120\n").expect("good");
        let shown: Vec<String> = config.allowlist.iter().map(ToString::to_string).collect();
        assert_eq!(shown, ["192.0.2.1/32", "203.0.113.9/32", "198.51.100.0/24"]);
        assert!(loaded(dir.path(), "::ffff:0:0/96\n").expect_err("every address").contains("covers every"));
    }
}
