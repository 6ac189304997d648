//! The pin directory in bpffs: what outlives the daemon, and the lock that keeps a second one away.
//!
//! `pin_dir/v2/` (the layout's version) holds the maps and one `link-<interface>` per interface; `pin_dir/stage/` holds what a
//! starting daemon has not put in place yet. The directory belongs to one instance alone.

use std::fs;
use std::io;
use std::os::fd::OwnedFd;
use std::os::unix::fs::{DirBuilderExt, MetadataExt};
use std::path::{Path, PathBuf};

use anomaly_common::LAYOUT_VERSION;
use rustix::fs::{FlockOperation, Mode, OFlags};
use rustix::mount::MountFlags;

use crate::enforce::EnforceError;

/// Where bpffs usually is.
const BPFFS: &str = "/sys/fs/bpf";
const BPF_FS_MAGIC: u32 = 0xcafe_4a11;

/// A locked pin directory.
#[derive(Debug)]
pub struct PinDir {
    path: PathBuf,
    /// Held as long as this lives; a process that dies lets go of it.
    _lock: OwnedFd,
}

impl PinDir {
    /// Mounts bpffs where that is missing, makes the directory (0700) and locks it. One that is there already becomes 0700.
    ///
    /// # Errors
    /// [`EnforceError::InUse`] while another instance has it. [`EnforceError::Kernel`] also for a directory that belongs to
    /// somebody else, or is reached by a symbolic link: in a bpffs where everybody may write, whoever owns the
    /// directory could replace maps and links in it, and so end every ban.
    pub fn lock(path: &Path) -> Result<Self, EnforceError> {
        mount(path)?;
        // Again when a `down` removed the directory between opening and locking it.
        for _ in 0..16 {
            fs::DirBuilder::new().recursive(true).mode(0o700).create(path).map_err(|e| pin_error("making", path, e))?;
            if let Some(lock) = try_lock(path)? {
                make_ours(&lock, path)?;
                return Ok(Self { path: path.to_owned(), _lock: lock });
            }
        }
        Err(pin_error("locking", path, io::ErrorKind::Interrupted.into()))
    }

    /// Locks the directory if it is there.
    pub fn lock_existing(path: &Path) -> Result<Option<Self>, EnforceError> {
        if !path.is_dir() {
            return Ok(None);
        }
        Ok(try_lock(path)?.map(|lock| Self { path: path.to_owned(), _lock: lock }))
    }

    /// The directory itself.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Where this version's maps and links are.
    pub fn current(&self) -> PathBuf {
        self.path.join(format!("v{LAYOUT_VERSION}"))
    }

    /// An empty directory for what is not in place yet.
    pub fn fresh_stage(&self) -> Result<PathBuf, EnforceError> {
        let stage = self.path.join("stage");
        remove(&stage)?;
        for dir in [&stage, &self.current()] {
            match fs::DirBuilder::new().mode(0o700).create(dir) {
                Err(e) if e.kind() != io::ErrorKind::AlreadyExists => return Err(pin_error("making", dir, e)),
                _ => {}
            }
        }
        make_ours(&open_dir(&self.current())?, &self.current())?;
        Ok(stage)
    }

    /// Puts what was staged in place. Each name changes hands at once: there is never none.
    pub fn publish(&self, stage: &Path) -> Result<(), EnforceError> {
        for name in names(stage) {
            let (from, to) = (stage.join(&name), self.current().join(&name));
            fs::rename(&from, &to).map_err(|e| pin_error("renaming", &from, e))?;
        }
        remove(stage)
    }

    /// Removes what other versions left, once nothing of it is needed.
    pub fn remove_other_versions(&self) -> Result<(), EnforceError> {
        for dir in versions(&self.path).into_iter().filter(|dir| *dir != self.current()) {
            remove(&dir)?;
        }
        Ok(())
    }

    /// Removes every pin and the directory. What was mounted on the directory itself is unmounted.
    pub fn remove(self) -> Result<(), EnforceError> {
        for dir in versions(&self.path).into_iter().chain([self.path.join("stage")]) {
            remove(&dir)?;
        }
        let Self { path, _lock: lock } = self;
        let device = |path: &Path| fs::metadata(path).map(|m| m.dev()).ok();
        // Names with dots are the kernel's own in every bpffs (`maps.debug`); nobody can pin such.
        let empty = names(&path).iter().all(|name| name.contains('.'));
        if empty && path.parent().and_then(device) != device(&path) {
            drop(lock);
            rustix::mount::unmount(&path, rustix::mount::UnmountFlags::DETACH)
                .map_err(|e| pin_error("unmounting", &path, e.into()))?;
        }
        match fs::remove_dir(&path) {
            Err(e) if e.kind() != io::ErrorKind::NotFound => Err(pin_error("removing", &path, e)),
            _ => Ok(()),
        }
    }
}

/// The directories of all versions in a pin directory, newest name last.
pub fn versions(pin_dir: &Path) -> Vec<PathBuf> {
    let mut all: Vec<PathBuf> = names(pin_dir)
        .into_iter()
        .filter(|name| name.strip_prefix('v').is_some_and(|n| n.bytes().all(|b| b.is_ascii_digit())))
        .map(|name| pin_dir.join(name))
        .collect();
    all.sort();
    all
}

/// The links in a version's directory: interface and path.
pub fn links(version: &Path) -> Vec<(String, PathBuf)> {
    names(version)
        .into_iter()
        .filter_map(|name| Some((name.strip_prefix("link-")?.replace("%2E", "."), version.join(&name))))
        .collect()
}

/// The name of the pin of an interface's link. bpffs takes no dots; interfaces (`eth0.100`) do.
pub fn link_name(interface: &str) -> String {
    format!("link-{}", interface.replace('.', "%2E"))
}

/// An error about a path in bpffs.
pub fn pin_error(doing: &str, path: &Path, source: io::Error) -> EnforceError {
    let hint = match source.kind() {
        io::ErrorKind::PermissionDenied => {
            Some("run as root; in a container mount the host's bpffs: -v /sys/fs/bpf:/sys/fs/bpf".into())
        }
        _ => None,
    };
    EnforceError::Kernel { doing: format!("{doing} {}", path.display()), source, hint }
}

fn names(dir: &Path) -> Vec<String> {
    let entries = fs::read_dir(dir).into_iter().flatten().flatten();
    entries.filter_map(|entry| entry.file_name().into_string().ok()).collect()
}

fn remove(dir: &Path) -> Result<(), EnforceError> {
    match fs::remove_dir_all(dir) {
        Err(e) if e.kind() != io::ErrorKind::NotFound => Err(pin_error("removing", dir, e)),
        _ => Ok(()),
    }
}

/// A directory itself, and not what a link of its name leads to.
fn open_dir(path: &Path) -> Result<OwnedFd, EnforceError> {
    let flags = OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::RDONLY | OFlags::CLOEXEC;
    rustix::fs::open(path, flags, Mode::empty()).map_err(|e| match pin_error("opening", path, e.into()) {
        EnforceError::Kernel { doing, source, .. } if path.is_symlink() => EnforceError::Kernel {
            doing,
            source,
            hint: Some("it is a symbolic link; name the directory itself in enforcer.pin_dir".into()),
        },
        other => other,
    })
}

/// Nobody but us may look into a directory of pins, and only we may own it.
fn make_ours(dir: &OwnedFd, path: &Path) -> Result<(), EnforceError> {
    let stat = rustix::fs::fstat(dir).map_err(|e| pin_error("reading", path, e.into()))?;
    let us = rustix::process::geteuid().as_raw();
    if stat.st_uid != us {
        return Err(EnforceError::Kernel {
            doing: format!("using {}", path.display()),
            source: io::ErrorKind::PermissionDenied.into(),
            hint: Some(format!(
                "it belongs to user {}, and this is user {us}: `anomaly down` removes it with what is in it, or give it \
                 to user {us}",
                stat.st_uid
            )),
        });
    }
    if stat.st_mode & 0o7777 != 0o700 {
        rustix::fs::fchmod(dir, Mode::RWXU).map_err(|e| pin_error("setting the mode of", path, e.into()))?;
        tracing::info!("{} had mode {:04o}; it is 0700 now", path.display(), stat.st_mode & 0o7777);
    }
    Ok(())
}

/// `None` when the directory was removed meanwhile.
fn try_lock(path: &Path) -> Result<Option<OwnedFd>, EnforceError> {
    let dir = match open_dir(path) {
        Err(EnforceError::Kernel { source, .. }) if source.kind() == io::ErrorKind::NotFound => return Ok(None),
        other => other?,
    };
    let mut tries = 0;
    let answer = loop {
        match rustix::fs::flock(&dir, FlockOperation::NonBlockingLockExclusive) {
            // An owner that just died is outlived for a moment by what it was about to start.
            Err(rustix::io::Errno::WOULDBLOCK) if tries < 20 => {
                tries += 1;
                std::thread::sleep(std::time::Duration::from_millis(10));
            }
            answer => break answer,
        }
    };
    match answer {
        Ok(()) => {}
        Err(rustix::io::Errno::WOULDBLOCK) => {
            let owner = rustix::fs::fstat(&dir).ok().and_then(|stat| lock_owner(stat.st_dev, stat.st_ino));
            return Err(EnforceError::InUse(path.display().to_string(), owner.unwrap_or_default()));
        }
        Err(e) => return Err(pin_error("locking", path, e.into())),
    }
    let locked = rustix::fs::fstat(&dir).map_err(|e| pin_error("reading", path, e.into()))?;
    let there = fs::metadata(path).map(|m| (m.dev(), m.ino())).ok();
    Ok((there == Some((locked.st_dev, locked.st_ino))).then_some(dir))
}

/// Who holds the lock, from /proc/locks; `None` when it lives in another pid namespace.
fn lock_owner(device: u64, inode: u64) -> Option<u32> {
    let (major, minor) = (rustix::fs::major(device), rustix::fs::minor(device));
    let file = format!("{major:02x}:{minor:02x}:{inode}");
    fs::read_to_string("/proc/locks").ok()?.lines().find_map(|line| {
        let mut words = line.split_ascii_whitespace().skip(1);
        let (kind, pid, on) = (words.next()?, words.nth(2)?, words.next()?);
        (kind == "FLOCK" && on == file).then(|| pid.parse().ok())?
    })
}

/// Mounts bpffs if `path` is not in one: on its usual place if `path` lies there, else on `path` itself,
/// so that nothing else is hidden.
fn mount(path: &Path) -> Result<(), EnforceError> {
    let existing = path.ancestors().find(|p| p.exists()).unwrap_or(Path::new("/"));
    let is_bpffs = |p: &Path| rustix::fs::statfs(p).is_ok_and(|s| s.f_type as u32 == BPF_FS_MAGIC);
    if is_bpffs(existing) {
        return Ok(());
    }
    let on = if path.starts_with(BPFFS) {
        PathBuf::from(BPFFS)
    } else {
        fs::create_dir_all(path).map_err(|e| pin_error("making", path, e))?;
        if fs::read_dir(path).is_ok_and(|mut entries| entries.next().is_some()) {
            return Err(EnforceError::Kernel {
                doing: format!("mounting bpffs on {}", path.display()),
                source: io::ErrorKind::DirectoryNotEmpty.into(),
                hint: Some("enforcer.pin_dir must lie in bpffs or be an empty directory".into()),
            });
        }
        path.to_owned()
    };
    let flags = MountFlags::NOSUID | MountFlags::NODEV | MountFlags::NOEXEC;
    match rustix::mount::mount("bpf", &on, "bpf", flags, Some(c"mode=0700")) {
        Ok(()) => {
            tracing::info!("mounted bpffs on {}", on.display());
            Ok(())
        }
        Err(e) => Err(EnforceError::Kernel {
            doing: format!("mounting bpffs on {}", on.display()),
            source: e.into(),
            hint: Some(format!(
                "as root on the host: mount -t bpf bpf {0}; for a container also -v {0}:{0}",
                on.display()
            )),
        }),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn link_pins_have_no_dots_and_read_back() {
        let dir = tempfile::tempdir().unwrap();
        for name in ["eth0", "eth0.100", "br-1.2.3"] {
            let pin = link_name(name);
            assert!(!pin.contains('.'), "{pin}");
            fs::write(dir.path().join(pin), "").unwrap();
        }
        fs::write(dir.path().join("SWITCH"), "").unwrap();
        let mut found: Vec<String> = links(dir.path()).into_iter().map(|(name, _)| name).collect();
        found.sort();
        assert_eq!(found, ["br-1.2.3", "eth0", "eth0.100"]);
    }

    #[test]
    fn only_version_directories_are_versions() {
        let dir = tempfile::tempdir().unwrap();
        for name in ["v1", "v2", "stage", "vx", "other"] {
            fs::create_dir(dir.path().join(name)).unwrap();
        }
        assert_eq!(versions(dir.path()), [dir.path().join("v1"), dir.path().join("v2")]);
    }

    #[test]
    fn the_lock_names_its_owner() {
        let dir = tempfile::tempdir().unwrap();
        let held = PinDir::lock_existing(dir.path()).unwrap().expect("it exists");
        match PinDir::lock_existing(dir.path()) {
            Err(EnforceError::InUse(path, pid)) => {
                assert_eq!((path, pid), (dir.path().display().to_string(), std::process::id()));
            }
            other => panic!("{other:?}"),
        }
        drop(held);
        assert!(PinDir::lock_existing(dir.path()).unwrap().is_some());
        assert!(PinDir::lock_existing(&dir.path().join("nowhere")).unwrap().is_none());
    }
}
