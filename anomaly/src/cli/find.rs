//! Looks for the daemon's socket where no configuration says where it is.
//!
//! Nobody is connected to for that: a stranger's socket may start a program.

use std::collections::HashMap;
use std::fs;
use std::path::{Path, PathBuf};

/// Name of the daemon's process.
const NAME: &str = "anomaly";

/// Sockets that a daemon of this network namespace listens on, as far as this user may know.
pub fn sockets() -> Vec<PathBuf> {
    let listening = listening(&fs::read_to_string("/proc/net/unix").unwrap_or_default());
    let mut found = Vec::new();
    let pids = fs::read_dir("/proc").into_iter().flatten().flatten();
    for process in pids.map(|entry| entry.path()) {
        if !fs::read_to_string(process.join("comm")).is_ok_and(|name| name.trim_end() == NAME) {
            continue;
        }
        for descriptor in fs::read_dir(process.join("fd")).into_iter().flatten().flatten() {
            let Ok(target) = fs::read_link(descriptor.path()) else { continue };
            let number = target.to_str().and_then(|t| t.strip_prefix("socket:[")?.strip_suffix(']')?.parse().ok());
            if let Some(path) = number.and_then(|number: u64| listening.get(&number)) {
                found.push(as_seen_here(path, &process));
            }
        }
    }
    found.sort();
    found.dedup();
    found
}

/// Number and path of each socket that is listened on, of the text of `/proc/net/unix`.
fn listening(text: &str) -> HashMap<u64, PathBuf> {
    const ACCEPTS: u32 = 0x0001_0000;
    let of = |line: &str| {
        let mut words = line.split_ascii_whitespace();
        let (flags, number) = (words.nth(3)?, words.nth(2)?);
        let path = line.split_once(number)?.1.trim_start();
        let accepts = u32::from_str_radix(flags, 16).ok()? & ACCEPTS != 0;
        (accepts && path.starts_with('/')).then(|| Some((number.parse().ok()?, PathBuf::from(path))))?
    };
    text.lines().filter_map(of).collect()
}

/// A daemon in a container has another root.
fn as_seen_here(path: &Path, process: &Path) -> PathBuf {
    let inside = process.join("root").join(path.strip_prefix("/").unwrap_or(path));
    if !path.exists() && inside.exists() { inside } else { path.to_owned() }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_sockets_with_a_path_that_are_listened_on_count() {
        let text = "Num       RefCount Protocol Flags    Type St Inode Path\n\
                    0000000000000000: 00000002 00000000 00010000 0001 01 29321 /run/anomaly/a b.sock\n\
                    0000000000000000: 00000003 00000000 00000000 0001 03 29322 /run/anomaly/a b.sock\n\
                    0000000000000000: 00000002 00000000 00010000 0001 01 29323 @anomaly/iptables\n\
                    0000000000000000: 00000003 00000000 00000000 0001 03 29324\n";
        assert_eq!(listening(text), HashMap::from([(29_321, PathBuf::from("/run/anomaly/a b.sock"))]));
    }
}
