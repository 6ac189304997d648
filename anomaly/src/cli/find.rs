//! Looks for the daemon's socket where no configuration says where it is.
//!
//! Nobody is connected to for that: a stranger's socket may start a program. And only root's processes count, or one's own:
//! `off` leaves a file beside the socket, which must not be where another user wants it.

use std::collections::HashMap;
use std::fs;
use std::os::unix::fs::{FileTypeExt, MetadataExt};
use std::path::{Path, PathBuf};

/// Name of the daemon's process.
const NAME: &str = "anomaly";

/// Sockets that a daemon of this network namespace listens on, as far as this user may know.
pub fn sockets() -> Vec<PathBuf> {
    let listening = listening(&fs::read_to_string("/proc/net/unix").unwrap_or_default());
    let mut found = Vec::new();
    let pids = fs::read_dir("/proc").into_iter().flatten().flatten();
    for process in pids.map(|entry| entry.path()) {
        if !fs::read_to_string(process.join("comm")).is_ok_and(|name| name.trim_end() == NAME) || !is_trusted(&process)
        {
            continue;
        }
        for descriptor in fs::read_dir(process.join("fd")).into_iter().flatten().flatten() {
            let Ok(target) = fs::read_link(descriptor.path()) else { continue };
            let number = target.to_str().and_then(|t| t.strip_prefix("socket:[")?.strip_suffix(']')?.parse().ok());
            if let Some(path) = number.and_then(|number: u64| listening.get(&number)) {
                // A daemon in a container names a path of its own root.
                let is_here =
                    path.symlink_metadata().is_ok_and(|meta| meta.file_type().is_socket()) && is_trusted(path);
                found.extend(is_here.then(|| path.clone()));
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

/// Whether a process or a socket is root's or ours.
fn is_trusted(path: &Path) -> bool {
    let us = rustix::process::geteuid().as_raw();
    path.symlink_metadata().is_ok_and(|meta| meta.uid() == 0 || meta.uid() == us)
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
