//! A small Debian, made by debootstrap: what images and package tests start from.
//!
//! The archive is kept in cargo's target directory, because it takes minutes to make; it is Debian's packages only.

use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result};

use crate::lab::run;

/// What the tests need in it, beyond the smallest system.
const PACKAGES: &str = "nginx-light,iptables,ipset,curl,ca-certificates,logrotate";
/// The oldest Debian that is supported, and what anomaly's own image is based on.
const SUITE: &str = "bookworm";

/// A tar of its root file system; made where there is none yet.
///
/// # Errors
/// When debootstrap fails: it needs root and a mirror.
pub fn archive() -> Result<PathBuf> {
    let kept = Path::new(env!("CARGO_TARGET_TMPDIR"));
    let archive = kept.join(format!("{SUITE}-{}.tar", PACKAGES.replace(',', "-")));
    if archive.exists() {
        return Ok(archive);
    }
    std::fs::create_dir_all(kept)?;
    let made = tempfile::Builder::new().prefix("debootstrap-").tempdir_in(kept)?;
    let root = made.path().join("root");
    run(Command::new("debootstrap").args(["--variant=minbase", &format!("--include={PACKAGES}"), SUITE]).arg(&root))
        .context("debootstrap needs root and a Debian mirror")?;
    let unfinished = made.path().join("root.tar");
    run(Command::new("tar").arg("--create").arg("--file").arg(&unfinished).arg("--directory").arg(&root).args([
        "--exclude=./var/cache/apt/archives/*",
        "--exclude=./var/lib/apt/lists/*",
        "--exclude=./dev/*",
        "--exclude=./proc/*",
        "--exclude=./sys/*",
        ".",
    ]))?;
    std::fs::rename(&unfinished, &archive)?;
    Ok(archive)
}
