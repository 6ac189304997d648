//! Looks for pins of ours where no configuration says where they are.
//!
//! Other instances share a bpffs: those of other network namespaces are told apart by what their links run where.

use std::fs;
use std::os::fd::AsFd;
use std::path::{Path, PathBuf};

use super::netlink::{self, Interface};
use super::{pins, raw};

/// A directory is a pin directory of ours when a version in it has these.
const LAYOUT: [&str; 2] = ["SWITCH", "BANS_V4"];
/// Pin directories deeper in a bpffs than this are not found.
const DEPTH: usize = 4;
/// Directories that are looked at in all; a bpffs has a dozen.
const MOST: usize = 10_000;

/// A pin directory that holds our layout.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Found {
    /// What `enforcer.pin_dir` would be.
    pub pin_dir: PathBuf,
    /// Its program is attached to an interface of this network namespace.
    pub attached: bool,
}

/// Every pin directory of ours in any bpffs that is mounted here, and the mounts that this user may not look into.
pub fn find() -> (Vec<Found>, Vec<PathBuf>) {
    let mounts = fs::read_to_string("/proc/self/mountinfo").unwrap_or_default();
    let interfaces = netlink::interfaces().unwrap_or_default();
    let (mut found, mut hidden) = (Vec::new(), Vec::new());
    for mount in bpffs(&mounts) {
        if fs::read_dir(&mount).is_err() {
            hidden.push(mount);
            continue;
        }
        for pin_dir in below(&mount) {
            let attached = is_attached(&pin_dir, &interfaces);
            found.push(Found { pin_dir, attached });
        }
    }
    found.sort_by(|a, b| a.pin_dir.cmp(&b.pin_dir));
    found.dedup();
    (found, hidden)
}

/// Where bpffs is mounted, of the text of `mountinfo`.
fn bpffs(mounts: &str) -> Vec<PathBuf> {
    let of = |line: &str| {
        let (left, right) = line.split_once(" - ")?;
        (right.split(' ').next()? == "bpf").then(|| unescape(left.split(' ').nth(4)?))?
    };
    mounts.lines().filter_map(of).collect()
}

/// A path as mountinfo writes it: blanks and the like as `\040`.
fn unescape(text: &str) -> Option<PathBuf> {
    let (mut bytes, mut rest) = (Vec::new(), text);
    while let Some((before, after)) = rest.split_once('\\') {
        bytes.extend(before.bytes());
        bytes.push(u8::from_str_radix(after.get(..3)?, 8).ok()?);
        rest = &after[3..];
    }
    bytes.extend(rest.bytes());
    String::from_utf8(bytes).ok().map(PathBuf::from)
}

/// Pin directories in a directory, itself included.
fn below(top: &Path) -> Vec<PathBuf> {
    let (mut found, mut waiting, mut left) = (Vec::new(), vec![(top.to_owned(), 0)], MOST);
    while let Some((directory, depth)) = waiting.pop() {
        let versions = pins::versions(&directory);
        if versions.iter().any(|version| LAYOUT.iter().all(|map| version.join(map).symlink_metadata().is_ok())) {
            found.push(directory);
            continue;
        }
        let entries = fs::read_dir(&directory).into_iter().flatten().flatten();
        for entry in entries.filter(|_| depth < DEPTH) {
            if left > 0 && entry.file_type().is_ok_and(|kind| kind.is_dir()) {
                left -= 1;
                waiting.push((entry.path(), depth + 1));
            }
        }
    }
    found
}

/// Whether a link that is pinned there runs its program on one of these interfaces. Numbers of interfaces are the same in
/// many namespaces; the program's is not.
fn is_attached(pin_dir: &Path, interfaces: &[Interface]) -> bool {
    let links = pins::versions(pin_dir).into_iter().flat_map(|version| pins::links(&version));
    let mut infos = links.filter_map(|(_, pin)| raw::link_info(raw::get(&pin).ok()?.as_fd()).ok());
    infos.any(|info| {
        let runs = |i: &Interface| i.index == info.ifindex && i.xdp.is_some_and(|xdp| xdp.prog_id == info.prog_id);
        interfaces.iter().any(runs)
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bpffs_is_found_wherever_it_is_mounted() {
        let mounts = "24 1 0:22 / / rw - ext4 /dev/sda rw\n\
                      31 24 0:27 / /sys/fs/bpf rw,nosuid shared:9 - bpf bpf rw,mode=700\n\
                      32 24 0:28 / /mnt/a\\040b rw - bpf none rw\n\
                      33 24 0:29 / /mnt/bpf rw - tmpfs bpf rw\n";
        assert_eq!(bpffs(mounts), [PathBuf::from("/sys/fs/bpf"), PathBuf::from("/mnt/a b")]);
    }

    #[test]
    fn only_our_layout_is_ours() {
        let top = tempfile::tempdir().unwrap();
        for pins in ["anomaly/v2/SWITCH", "anomaly/v2/BANS_V4", "a/b/v1/SWITCH", "a/b/v1/BANS_V4", "cilium/v2/SWITCH"] {
            let path = top.path().join(pins);
            fs::create_dir_all(path.parent().unwrap()).unwrap();
            fs::write(path, "").unwrap();
        }
        let mut found = below(top.path());
        found.sort();
        assert_eq!(found, [top.path().join("a/b"), top.path().join("anomaly")]);
        assert_eq!(below(&top.path().join("anomaly")), [top.path().join("anomaly")]);
        assert!(below(&top.path().join("nowhere")).is_empty());
    }
}
