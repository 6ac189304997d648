//! A daemon in dry-run, with everything it writes in a directory of its own: for tests that need no packet and no root.

use std::fs::File;
use std::io::Read as _;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};
use std::time::Duration;

use serde_json::Value;
use tempfile::TempDir;

use crate::lab::clock;

/// Killed, and its directory removed, with the test.
pub struct DryRun {
    process: Child,
    dir: TempDir,
}

impl DryRun {
    /// Starts one on a log that holds `past`, and waits until it has read that. `more` is added to its configuration;
    /// it listens on its socket only, unless that says otherwise.
    ///
    /// # Panics
    /// When it does not start.
    pub fn start(past: &str, more: &str) -> Self {
        Self::start_with(past, more, &[])
    }

    /// As [`DryRun::start`], with more in its environment.
    ///
    /// # Panics
    /// When it does not start.
    pub fn start_with(past: &str, more: &str, environment: &[(&str, &str)]) -> Self {
        let dir = tempfile::tempdir().expect("a directory");
        std::fs::write(dir.path().join("access.json"), past).expect("written");
        let file = |name: &str| format!("{:?}", dir.path().join(name));
        let listen = if more.contains("dashboard.listen") { "" } else { "dashboard.listen = \"off\"\n" };
        let text = format!(
            "log.paths = [{}]\nenforcer.backend = \"dry-run\"\nenforcer.pin_dir = {}\ndashboard.socket = {}\n\
             store.path = {}\naudit.path = {}\naudit.snapshot_path = {}\n{listen}{more}",
            file("access.json"),
            file("pins"),
            file("sock"),
            file("state.db"),
            file("audit.jsonl"),
            file("snapshots.log"),
        );
        std::fs::write(dir.path().join("anomaly.toml"), text).expect("written");
        let output = File::create(dir.path().join("output")).expect("a file");
        let mut command = Command::new(env!("CARGO_BIN_EXE_anomaly"));
        command.arg("--config").arg(dir.path().join("anomaly.toml")).arg("run").envs(environment.iter().copied());
        let process = command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(output).spawn().expect("started");
        let daemon = Self { process, dir };
        let lines = past.lines().count() as u64;
        clock::wait_until("the daemon to have read its log", Duration::from_secs(60), || {
            daemon.json(&["status"]).is_some_and(|s| s["records"].as_u64() >= Some(lines) && s["backlog_bytes"] == 0)
        })
        .unwrap_or_else(|error| panic!("{error}: {}", daemon.output()));
        daemon
    }

    /// Where everything that it writes is.
    pub fn dir(&self) -> &Path {
        self.dir.path()
    }

    /// The path of its configuration.
    ///
    /// # Panics
    /// When temporary files have names that are not text.
    pub fn configuration(&self) -> String {
        self.dir.path().join("anomaly.toml").to_str().expect("a path").to_owned()
    }

    /// All it has said.
    pub fn output(&self) -> String {
        std::fs::read_to_string(self.dir.path().join("output")).unwrap_or_default()
    }

    /// One of its command line's commands.
    ///
    /// # Panics
    /// When it cannot be started.
    pub fn command(&self, words: &[&str]) -> Output {
        let mut command = Command::new(env!("CARGO_BIN_EXE_anomaly"));
        command.arg("--config").arg(self.dir.path().join("anomaly.toml")).args(words).stdin(Stdio::null());
        command.output().expect("started")
    }

    /// What a command prints with `--json`; `None` where it fails.
    pub fn json(&self, words: &[&str]) -> Option<Value> {
        let output = self.command(&[words, &["--json"]].concat());
        output.status.success().then(|| serde_json::from_slice(&output.stdout).expect("JSON"))
    }

    /// The log, to write more into.
    ///
    /// # Panics
    /// When it is gone.
    pub fn log(&self) -> File {
        File::options().append(true).open(self.dir.path().join("access.json")).expect("the log")
    }

    /// Its audit log, from the beginning.
    pub fn audit(&self) -> Tail {
        Tail { path: self.dir.path().join("audit.jsonl"), file: None, rest: String::new() }
    }
}

impl Drop for DryRun {
    fn drop(&mut self) {
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}

/// What is new in a file of JSON Lines.
pub struct Tail {
    path: PathBuf,
    file: Option<File>,
    rest: String,
}

impl Tail {
    /// Its new lines.
    pub fn read(&mut self) -> Vec<Value> {
        if self.file.is_none() {
            self.file = File::open(&self.path).ok();
        }
        let Some(file) = &mut self.file else { return Vec::new() };
        file.read_to_string(&mut self.rest).expect("the audit log is text");
        let Some(end) = self.rest.rfind('\n') else { return Vec::new() };
        let lines = self.rest[..end].lines().map(|line| serde_json::from_str(line).expect("a line of JSON")).collect();
        self.rest.drain(..=end);
        lines
    }
}
