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
    let room = rustix::fs::statvfs(MEMORY).is_ok_and(|s| s.f_bavail.saturating_mul(s.f_frsize) > ROOM);
    let unpacked =
        tempfile::Builder::new().prefix("debian-").tempdir_in(if room { Path::new(MEMORY) } else { kept })?;
    let unfinished = tempfile::Builder::new().prefix("debian-").suffix(".tar").tempfile_in(kept)?;
    let mut command = Command::new("mmdebstrap");
    command.env("TMPDIR", unpacked.path());
    command.args(["--quiet", "--variant=minbase", "--dpkgopt=force-unsafe-io", "--aptopt=Acquire::Languages \"none\""]);
    command.arg(format!("--include={packages}")).arg("--format=tar").arg(suite).arg(unfinished.path());
    run(&mut command).context("mmdebstrap needs root and a Debian mirror")?;
    unfinished.persist(&archive)?;
    Ok(archive)
}
