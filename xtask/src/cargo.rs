//! Cargo as the tasks call it: the same one that runs them.

use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use anyhow::{Context, Result, bail};
use serde_json::Value;

/// The top of the repository.
pub fn root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR")).parent().unwrap_or(Path::new("."))
}

/// `cargo ...` in the repository.
pub fn cargo(words: &[&str]) -> Command {
    let mut command = Command::new(std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into()));
    command.args(words).current_dir(root());
    command
}

/// Where cargo puts what it builds, and the tasks what they make.
pub fn target_dir() -> PathBuf {
    std::env::var_os("CARGO_TARGET_DIR").map_or_else(|| root().join("target"), PathBuf::from)
}

/// Builds the daemon (and no tests) and gives its path.
///
/// # Errors
/// When it does not compile; cargo has then said why.
pub fn build_daemon(release: bool) -> Result<PathBuf> {
    let mut command = cargo(&["build", "--package", "anomaly", "--bin", "anomaly"]);
    command.args(["--message-format", "json-render-diagnostics"]);
    if release {
        command.arg("--release");
    }
    executable(command, "anomaly").context("the daemon could not be built")
}

/// Builds the integration tests and gives their path. They know where cargo built the daemon.
///
/// # Errors
/// As [`build_daemon`].
pub fn build_tests() -> Result<PathBuf> {
    let mut command = cargo(&["test", "--package", "anomaly", "--test", "tests", "--no-run"]);
    command.args(["--message-format", "json-render-diagnostics"]);
    executable(command, "tests").context("the tests could not be built")
}

/// Builds a bench and gives its path.
///
/// # Errors
/// As [`build_daemon`].
pub fn build_bench(name: &str) -> Result<PathBuf> {
    let mut command = cargo(&["bench", "--package", "anomaly", "--bench", name, "--no-run"]);
    command.args(["--message-format", "json-render-diagnostics"]);
    executable(command, name).context("the bench could not be built")
}

/// Runs a build that speaks JSON, and gives the executable that it makes of the target `name`.
///
/// # Errors
/// As [`build_daemon`].
pub fn executable(mut command: Command, name: &str) -> Result<PathBuf> {
    let output = command.stderr(Stdio::inherit()).output().context("cargo could not be started")?;
    if !output.status.success() {
        bail!("{}", output.status);
    }
    // One JSON message per line; a program's artifact names its executable. Benches and tests come beside the daemon that
    // they need, in any order.
    let messages = String::from_utf8_lossy(&output.stdout);
    let mut executables = messages
        .lines()
        .filter_map(|line| serde_json::from_str::<Value>(line).ok())
        .filter(|message| message["target"]["name"] == name)
        .filter_map(|message| message["executable"].as_str().map(PathBuf::from));
    executables.next_back().context("cargo named no executable")
}
