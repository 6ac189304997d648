//! A process that is gone when its handle is: killed with its whole group, and waited for.

use std::fs::File;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, Result};
use rustix::process::{Pid, Signal, kill_process, kill_process_group};

use super::clock;
use super::guardian::Guardian;

/// A child in a process group of its own, whose output goes to a file.
pub struct Process {
    name: String,
    child: Child,
    output: PathBuf,
    guardian: Arc<Guardian>,
}

impl Process {
    /// Starts `command`; what it prints is appended to `output`.
    ///
    /// # Errors
    /// When it cannot be started.
    pub fn start(name: &str, mut command: Command, output: &Path, guardian: &Arc<Guardian>) -> Result<Self> {
        let file = File::options().create(true).append(true).open(output)?;
        let child = command
            .stdin(Stdio::null())
            .stdout(file.try_clone()?)
            .stderr(file)
            .process_group(0)
            .spawn()
            .with_context(|| format!("{name} could not be started: {command:?}"))?;
        guardian.watch(child.id());
        Ok(Self { name: name.into(), child, output: output.into(), guardian: guardian.clone() })
    }

    /// Its process id, which is also its group's.
    pub fn id(&self) -> u32 {
        self.child.id()
    }

    /// All it has printed.
    pub fn output(&self) -> String {
        String::from_utf8_lossy(&std::fs::read(&self.output).unwrap_or_default()).into_owned()
    }

    /// How it ended, if it has.
    pub fn ended(&mut self) -> Option<ExitStatus> {
        self.child.try_wait().ok().flatten()
    }

    /// Sends it a signal.
    pub fn signal(&self, signal: Signal) {
        if let Some(pid) = Pid::from_raw(self.child.id().cast_signed()) {
            let _ = kill_process(pid, signal);
        }
    }

    /// Waits until it ends by itself.
    ///
    /// # Errors
    /// When it does not within `patience`; with what it printed last.
    pub fn wait(&mut self, patience: Duration) -> Result<ExitStatus> {
        let what = format!("{} to end", self.name);
        let ended = clock::wait_for(&what, patience, || self.ended());
        ended.with_context(|| format!("its output: {}", self.output()))
    }

    /// `kill -9`, with everything it started.
    pub fn kill(&mut self) {
        if self.ended().is_none()
            && let Some(group) = Pid::from_raw(self.child.id().cast_signed())
        {
            let _ = kill_process_group(group, Signal::KILL);
            let _ = self.child.wait();
        }
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        self.kill();
        self.guardian.forget(self.child.id());
    }
}
