//! The second place of the allow-list: a plain file, one address or prefix a line, for installers and
//! configuration management. What is in `allowlist` itself needs no file.

use std::io::ErrorKind;
use std::path::Path;

use super::{Config, ConfigError};
use crate::report::parse_ip;

/// Where the package writes the address that it was installed from.
pub const DEFAULT_FILE: &str = "/etc/anomaly/allowlist";

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
}
