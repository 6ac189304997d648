//! A small Debian, made by mmdebstrap: what images and package tests start from.
//!
//! The archive is kept in cargo's target directory and shared, because it takes most of a minute to make; it is Debian's
//! packages only. mmdebstrap makes what debootstrap makes in half the processor time; what makes either slow is that
//! dpkg has every file written to the disk, so it unpacks into memory where there is room.

use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::{Mutex, PoisonError};

use anyhow::{Context, Result};

use crate::lab::run;

/// What the tests need in it, beyond the smallest system.
const PACKAGES: &str = "nginx-light,iptables,ipset,curl,ca-certificates,logrotate";
/// The oldest Debian that is supported, and what anomaly's own image is based on.
pub const SUITE: &str = "bookworm";

/// What dpkg unpacks in, and how much of it must be free.
const MEMORY: &str = "/dev/shm";
const ROOM: u64 = 1 << 30;
/// What is unfinished is named by this and the process that makes it.
const PREFIX: &str = "debian-";

/// A tar of its root file system; made where there is none yet.
///
/// # Errors
/// When mmdebstrap fails: it needs root and a mirror.
pub fn archive() -> Result<PathBuf> {
    make(SUITE, PACKAGES)
}

/// As [`archive`], with these packages and their dependencies.
///
/// # Errors
/// As [`archive`].
pub fn make(suite: &str, packages: &str) -> Result<PathBuf> {
    // Tests run side by side; the first makes it, the others wait.
    static ONE: Mutex<()> = Mutex::new(());
    let _one = ONE.lock().unwrap_or_else(PoisonError::into_inner);
    let kept = Path::new(env!("CARGO_TARGET_TMPDIR"));
    let archive = kept.join(format!("{suite}-{}.tar", packages.replace(',', "-")));
    if archive.exists() {
        return Ok(archive);
    }
    std::fs::create_dir_all(kept)?;
    remove_stale(&[Path::new(MEMORY), kept]);
    let ours = format!("{PREFIX}{}-", std::process::id());
    let room = rustix::fs::statvfs(MEMORY).is_ok_and(|s| s.f_bavail.saturating_mul(s.f_frsize) > ROOM);
    let unpacked = tempfile::Builder::new().prefix(&ours).tempdir_in(if room { Path::new(MEMORY) } else { kept })?;
    let unfinished = tempfile::Builder::new().prefix(&ours).suffix(".tar").tempfile_in(kept)?;
    let mut command = Command::new("mmdebstrap");
    command.env("TMPDIR", unpacked.path());
    command.args(["--quiet", "--variant=minbase", "--dpkgopt=force-unsafe-io", "--aptopt=Acquire::Languages \"none\""]);
    command.arg(format!("--include={packages}")).arg("--format=tar").arg(suite).arg(unfinished.path());
    run(&mut command).context("mmdebstrap needs root and a Debian mirror")?;
    unfinished.persist(&archive)?;
    Ok(archive)
}

/// Removes what processes that were killed have left: a whole Debian, some of it in memory.
fn remove_stale(places: &[&Path]) {
    for entry in places.iter().filter_map(|place| std::fs::read_dir(place).ok()).flatten().flatten() {
        let owner = entry.file_name().to_str().and_then(owner);
        if owner.is_some_and(|pid| !Path::new("/proc").join(pid.to_string()).exists()) {
            // Never into a /proc or /dev that may still be mounted there. What cannot be removed is in nobody's way.
            let _ = Command::new("rm").args(["-rf", "--one-file-system", "--"]).arg(entry.path()).status();
        }
    }
}

/// The process that made what has this name.
fn owner(name: &str) -> Option<u32> {
    name.strip_prefix(PREFIX)?.split_once('-')?.0.parse().ok()
}

#[test]
fn only_what_the_dead_have_left_is_removed() -> Result<()> {
    let dir = tempfile::tempdir()?;
    let mut dead = Command::new("true").spawn()?;
    dead.wait()?;
    let stale = dir.path().join(format!("{PREFIX}{}-x1", dead.id()));
    let kept = [format!("{PREFIX}{}-x1", std::process::id()), "debian-other".into(), "other".into()];
    for path in kept.iter().map(|name| dir.path().join(name)).chain([stale.join("usr/bin")]) {
        std::fs::create_dir_all(path)?;
    }
    remove_stale(&[dir.path()]);
    assert!(!stale.exists() && kept.iter().all(|name| dir.path().join(name).exists()));
    Ok(())
}
