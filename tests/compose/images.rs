//! The images of `compose/compose.yaml` without a registry: a base by debootstrap, and stand-ins made from it.
//!
//! The base is kept in cargo's target directory, because it takes a minute to make; it is Debian's packages only.

use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result};

use super::engine::{Engine, repository};
use crate::lab::{Lab, run};

/// What the stand-ins need of Debian.
const PACKAGES: &str = "nginx-light,iptables,ipset,curl,ca-certificates";
/// As anomaly's own image has it by default.
const SUITE: &str = "bookworm";

/// The variables of `compose.yaml` that name these images.
///
/// # Errors
/// When Debian's mirror or the engine fails.
pub fn make(lab: &Lab, engine: &Engine<'_>) -> Result<Vec<(&'static str, String)>> {
    let base = "anomaly-test/base:1";
    let archive = base_archive()?;
    engine.docker(&["import", &archive.to_string_lossy(), base])?;
    let context = lab.dir().join("images");
    std::fs::create_dir(&context)?;
    for name in ["Dockerfile", "app.conf"] {
        std::fs::copy(repository().join("tests/compose").join(name), context.join(name))?;
    }
    std::fs::copy(env!("CARGO_BIN_EXE_anomaly"), context.join("anomaly"))?;
    let stages =
        [("NGINX_IMAGE", "nginx"), ("NEXTCLOUD_IMAGE", "app"), ("DB_IMAGE", "db"), ("BUILDER_IMAGE", "builder")];
    let mut settings = vec![("RUNTIME_IMAGE", base.to_owned())];
    for (variable, stage) in stages {
        settings.push((variable, engine.build(&context, stage, base)?));
    }
    Ok(settings)
}

/// A tar of the base's root file system; made where there is none yet.
fn base_archive() -> Result<PathBuf> {
    let kept = Path::new(env!("CARGO_TARGET_TMPDIR"));
    let name = format!("{SUITE}-{}", PACKAGES.replace(',', "-"));
    let archive = kept.join(format!("{name}.tar"));
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
