//! Compose v2 and v1 on the same files: the stack as it is, with monitoring, and with each override.
//!
//! Debian 12 has docker-compose 1.29.2. v2 is taken from the package of the next Debian, unpacked beside the tests and
//! never installed.

use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, ensure};

use super::engine::repository;
use super::{WANTED, programs};
use crate::lab::{ready, run};

/// The Debian after the one that the images are made of.
const NEXT: &str = "trixie";

#[test]
fn the_compose_files_are_valid_for_both_generations() -> Result<()> {
    let test = "the_compose_files_are_valid_for_both_generations";
    if std::env::var_os(WANTED).is_none() {
        println!("{test} is a step of its own: cargo xtask test --only compose");
        return Ok(());
    }
    if !ready(test) || !programs(test) {
        return Ok(());
    }
    let first = PathBuf::from("docker-compose");
    let second = second()?;
    for (program, version) in [(&first, "1.29"), (&second, "2.")] {
        let said = run(Command::new(program).args(["version", "--short"]))?;
        ensure!(said.trim().trim_start_matches('v').starts_with(version), "{}: {said}", program.display());
        for words in [
            &["--file", "compose.yaml"][..],
            &["--file", "compose.yaml", "--profile", "monitoring"],
            &["--file", "compose.yaml", "--file", "privileged.yaml"],
            &["--file", "compose.yaml", "--env-file", "old-engine.env"],
        ] {
            let mut command = Command::new(program);
            command.current_dir(repository().join("compose")).args(words).args(["config", "--quiet"]);
            let output = command.output()?;
            let said = String::from_utf8_lossy(&output.stderr);
            // v2 warns of what it only tolerates.
            ensure!(output.status.success() && said.is_empty(), "{} {words:?}: {said}", program.display());
        }
    }
    Ok(())
}

/// Compose v2 out of the next Debian's package; fetched where it is not there yet.
fn second() -> Result<PathBuf> {
    let kept = Path::new(env!("CARGO_TARGET_TMPDIR")).join("compose-v2");
    let program = kept.join("usr/libexec/docker/cli-plugins/docker-compose");
    if program.exists() {
        return Ok(program);
    }
    let made = tempfile::Builder::new().prefix("apt-").tempdir_in(env!("CARGO_TARGET_TMPDIR"))?;
    let dir = made.path();
    for name in ["lists/partial", "cache/archives/partial"] {
        std::fs::create_dir_all(dir.join(name))?;
    }
    let key = "/usr/share/keyrings/debian-archive-keyring.gpg";
    let source = format!("deb [signed-by={key}] {} {NEXT} main\n", mirror()?);
    std::fs::write(dir.join("sources.list"), source)?;
    // Nothing of the machine's own apt is touched: another list of sources, and other places for what is fetched.
    let apt = |words: &[&str]| {
        let mut command = Command::new("apt-get");
        command.current_dir(dir).args([
            "-qq",
            "-o",
            "APT::Sandbox::User=root",
            "-o",
            "Dir::Etc::sourceparts=/dev/null",
        ]);
        for (key, name) in
            [("Dir::Etc::sourcelist", "sources.list"), ("Dir::State::lists", "lists"), ("Dir::Cache", "cache")]
        {
            command.arg("-o").arg(format!("{key}={}", dir.join(name).display()));
        }
        run(command.args(words)).context("Debian's mirror")
    };
    apt(&["update"])?;
    apt(&["download", "docker-compose"])?;
    let mut packages = std::fs::read_dir(dir)?.flatten().map(|entry| entry.path());
    let package =
        packages.find(|path| path.extension().is_some_and(|e| e == "deb")).context("no package was fetched")?;
    run(Command::new("dpkg-deb").arg("--extract").arg(package).arg(&kept))?;
    ensure!(program.exists(), "the package has no {}", program.display());
    Ok(program)
}

/// From where this machine takes Debian itself: its next release lies beside it.
fn mirror() -> Result<String> {
    let asked =
        ["--release-info", "--format", "$(REPO_URI)", "Created-By: Packages", "Origin: Debian", "Label: Debian"];
    let said = run(Command::new("apt-get").arg("indextargets").args(asked))?;
    let mirror = said.lines().next().context("apt has no sources of Debian (after apt-get update)")?;
    Ok(mirror.to_owned())
}
