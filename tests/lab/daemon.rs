//! The daemon under test: its configuration, its process, and what its command line and audit log say.

use std::collections::BTreeMap;
use std::fmt::Write;
use std::path::{Path, PathBuf};
use std::process::{ExitStatus, Output};
use std::time::Duration;

use anyhow::{Context, Result, bail};
use rustix::process::Signal;
use serde_json::Value;

use super::process::Process;
use super::space::Space;
use super::{INTERFACE, Lab, clock};

/// A configuration file in the making: TOML values by section and key.
#[derive(Clone, Debug)]
pub struct Config {
    name: String,
    values: BTreeMap<(String, String), String>,
}

impl Config {
    /// A daemon called `name` in this lab: XDP on the server's interface, everything it writes in
    /// the lab's directory, short bans.
    pub fn new(lab: &Lab, name: &str) -> Self {
        let file = |suffix: &str| format!("{:?}", lab.dir().join(format!("{name}.{suffix}")));
        Self { name: name.into(), values: BTreeMap::new() }
            .with("log", "paths", format!("[{:?}]", lab.log()))
            .with("enforcer", "interfaces", format!("[{INTERFACE:?}]"))
            .with("enforcer", "pin_dir", format!("{:?}", lab.bpffs().join(name)))
            .with("bans", "durations", r#"["15s", "30s", "permanent"]"#)
            .with("dashboard", "listen", r#""127.0.0.1:8081""#)
            .with("dashboard", "socket", file("sock"))
            .with("store", "path", file("db"))
            .with("audit", "path", file("audit.jsonl"))
            .with("audit", "snapshot_path", file("snapshots.log"))
    }

    /// Sets a key to a TOML value; the section of top-level keys is empty.
    #[must_use]
    pub fn with(mut self, section: &str, key: &str, value: impl Into<String>) -> Self {
        self.values.insert((section.into(), key.into()), value.into());
        self
    }

    /// The file's text.
    pub fn text(&self) -> String {
        let mut text = String::new();
        let mut open = "";
        for ((section, key), value) in &self.values {
            if section != open {
                let _ = writeln!(text, "[{section}]");
                open = section;
            }
            let _ = writeln!(text, "{key} = {value}");
        }
        text
    }

    fn get(&self, section: &str, key: &str) -> PathBuf {
        let value = self.values.get(&(section.into(), key.into()));
        value.map(|v| v.trim_matches('"').into()).unwrap_or_default()
    }
}

/// How a daemon is started.
#[derive(Clone, Default)]
pub struct Start<'lab> {
    /// In another namespace than the server's (with the server's bpffs all the same).
    pub space: Option<&'lab Space>,
    /// Run through this, e.g. `setpriv` that takes capabilities away.
    pub through: Vec<String>,
    /// More arguments of `run`.
    pub arguments: Vec<String>,
}

/// A running (or killed) daemon in the lab's server namespace.
pub struct Daemon<'lab> {
    lab: &'lab Lab,
    binary: PathBuf,
    config: Config,
    process: Process,
}

impl<'lab> Daemon<'lab> {
    /// Writes the configuration, starts the daemon, and waits until it answers.
    ///
    /// # Errors
    /// With what it printed, when it does not.
    pub fn start(lab: &'lab Lab, binary: &Path, config: Config) -> Result<Self> {
        let mut daemon = Self::launch(lab, binary, config, &Start::default())?;
        daemon.wait_ready()?;
        Ok(daemon)
    }

    /// As [`Daemon::start`], but another way and without waiting.
    ///
    /// # Errors
    /// When it cannot be started.
    pub fn launch(lab: &'lab Lab, binary: &Path, config: Config, start: &Start<'_>) -> Result<Self> {
        let file = config_file(lab, &config);
        std::fs::write(&file, config.text())?;
        let process = spawn(lab, binary, &config, start)?;
        Ok(Self { lab, binary: binary.into(), config, process })
    }

    /// Starts it again after [`Daemon::kill`] or [`Daemon::stop`], with what it left behind.
    ///
    /// # Errors
    /// As [`Daemon::start`].
    pub fn restart(&mut self) -> Result<()> {
        self.relaunch()?;
        self.wait_ready()
    }

    /// As [`Daemon::restart`], without waiting.
    ///
    /// # Errors
    /// When it cannot be started.
    pub fn relaunch(&mut self) -> Result<()> {
        self.process = spawn(self.lab, &self.binary, &self.config, &Start::default())?;
        Ok(())
    }

    /// Waits until it answers on its socket.
    ///
    /// # Errors
    /// With what it printed, when it ends or stays silent.
    pub fn wait_ready(&mut self) -> Result<()> {
        let mut last = None;
        let ready = clock::wait_until("the daemon to answer", Duration::from_secs(30), || {
            last = Some(self.status());
            matches!(last, Some(Ok(_))) || self.process.ended().is_some()
        });
        match last {
            Some(Ok(_)) if ready.is_ok() => Ok(()),
            said => bail!("the daemon {} does not run: {said:?}: {}", self.config.name, self.output()),
        }
    }

    /// Runs one of its command line's commands, with its configuration, in its namespace.
    ///
    /// # Errors
    /// When it cannot be started.
    pub fn command(&self, words: &[&str]) -> Result<Output> {
        let mut command = self.lab.server.command(&self.binary);
        command.arg("--config").arg(config_file(self.lab, &self.config)).args(words);
        command.stdin(std::process::Stdio::null());
        command.output().context("the command line could not be started")
    }

    /// The JSON that a command prints (`--json` is added).
    ///
    /// # Errors
    /// When it fails or prints something else.
    pub fn json(&self, words: &[&str]) -> Result<Value> {
        let output = self.command(&[words, &["--json"]].concat())?;
        if !output.status.success() {
            bail!("anomaly {words:?}: {}: {}", output.status, String::from_utf8_lossy(&output.stderr).trim());
        }
        serde_json::from_slice(&output.stdout).with_context(|| format!("anomaly {words:?} printed no JSON"))
    }

    /// `status --json`.
    ///
    /// # Errors
    /// As [`Daemon::json`].
    pub fn status(&self) -> Result<Value> {
        self.json(&["status"])
    }

    /// The row of `bans --json` for this address or prefix.
    ///
    /// # Errors
    /// As [`Daemon::json`].
    pub fn ban_of(&self, ip: &str) -> Result<Option<Value>> {
        let bans = self.json(&["bans"])?;
        Ok(bans.as_array().and_then(|rows| rows.iter().find(|row| row["ip"] == ip).cloned()))
    }

    /// The lines of its audit log so far.
    ///
    /// # Errors
    /// When a line is not JSON.
    pub fn audit(&self) -> Result<Vec<Value>> {
        let text = std::fs::read_to_string(self.config.get("audit", "path")).unwrap_or_default();
        text.lines().map(|line| serde_json::from_str(line).with_context(|| format!("audit line {line}"))).collect()
    }

    /// The lines of its audit log with this event, about this `ip` where one is given.
    ///
    /// # Errors
    /// As [`Daemon::audit`].
    pub fn audited(&self, event: &str, ip: Option<&str>) -> Result<Vec<Value>> {
        let lines = self.audit()?.into_iter();
        Ok(lines.filter(|l| l["event"] == event && ip.is_none_or(|ip| l["ip"] == ip)).collect())
    }

    /// Waits for [`Daemon::audited`] to have at least `count` lines, and gives them.
    ///
    /// # Errors
    /// When they do not come within `patience`.
    pub fn wait_for_audit(
        &self,
        event: &str,
        ip: Option<&str>,
        count: usize,
        patience: Duration,
    ) -> Result<Vec<Value>> {
        let what = format!("{count} x {event} of {} in the audit log", ip.unwrap_or("anybody"));
        clock::wait_for(&what, patience, || self.audited(event, ip).ok().filter(|lines| lines.len() >= count))
            .with_context(|| format!("audit: {:?}\noutput: {}", self.audit(), self.output()))
    }

    /// The file of its firewall snapshots.
    pub fn snapshots(&self) -> String {
        std::fs::read_to_string(self.config.get("audit", "snapshot_path")).unwrap_or_default()
    }

    /// Replaces its configuration file and sends SIGHUP.
    ///
    /// # Errors
    /// When the file cannot be written.
    pub fn reload(&self, text: &str) -> Result<()> {
        self.rewrite(text)?;
        self.process.signal(Signal::HUP);
        Ok(())
    }

    /// Replaces its configuration file, which the command line reads too.
    ///
    /// # Errors
    /// When it cannot be written.
    pub fn rewrite(&self, text: &str) -> Result<()> {
        Ok(std::fs::write(config_file(self.lab, &self.config), text)?)
    }

    /// Its process id.
    pub fn id(&self) -> u32 {
        self.process.id()
    }

    /// `kill -9`.
    pub fn kill(&mut self) {
        self.process.kill();
    }

    /// SIGTERM, and its exit status.
    ///
    /// # Errors
    /// When it does not end.
    pub fn stop(&mut self) -> Result<ExitStatus> {
        self.process.signal(Signal::TERM);
        self.process.wait(Duration::from_secs(20))
    }

    /// Its exit status, where it ends by itself.
    ///
    /// # Errors
    /// When it does not.
    pub fn wait(&mut self, patience: Duration) -> Result<ExitStatus> {
        self.process.wait(patience)
    }

    /// All it has printed.
    pub fn output(&self) -> String {
        self.process.output()
    }
}

fn config_file(lab: &Lab, config: &Config) -> PathBuf {
    lab.dir().join(format!("{}.toml", config.name))
}

fn spawn(lab: &Lab, binary: &Path, config: &Config, start: &Start<'_>) -> Result<Process> {
    let program = binary.to_owned().into_os_string();
    let mut words = start.through.iter().map(Into::into).chain([program]);
    let space = start.space.unwrap_or(&lab.server);
    let mut command = lab.server.command_in(space, words.next().unwrap_or_default());
    command.args(words).arg("--config").arg(config_file(lab, config)).arg("run").args(&start.arguments);
    let output = lab.dir().join(format!("{}.out", config.name));
    lab.start(&format!("daemon {}", config.name), command, &output)
}
