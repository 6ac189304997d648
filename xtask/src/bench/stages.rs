//! `anomaly/benches/stages`: the steps of the hot path by themselves, over a file that is in memory.

use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result};
use serde_json::Value;

use super::usage;
use crate::cargo;

/// The built bench.
pub struct Stages(PathBuf);

impl Stages {
    /// Builds it.
    ///
    /// # Errors
    /// When it does not compile.
    pub fn build() -> Result<Self> {
        Ok(Self(cargo::build_bench("stages")?))
    }

    /// The command of one stage over a log.
    pub fn command(&self, stage: &str, log: &Path) -> Command {
        let mut command = Command::new(&self.0);
        command.arg(stage).arg(log);
        command
    }

    /// Runs one stage once: `lines`, `secs`, and of the stage `engine` also `tracked` and `heap_bytes`.
    ///
    /// # Errors
    /// When it fails.
    pub fn run(&self, stage: &str, log: &Path) -> Result<Value> {
        let ended = usage::run(&mut self.command(stage, log), None)?;
        serde_json::from_str(&ended.output).with_context(|| format!("stage {stage} printed no JSON"))
    }

    /// Seconds that one stage takes.
    ///
    /// # Errors
    /// As [`Stages::run`].
    pub fn secs(&self, stage: &str, log: &Path) -> Result<f64> {
        self.run(stage, log)?["secs"].as_f64().with_context(|| format!("stage {stage} told no time"))
    }
}
