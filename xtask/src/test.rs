//! Installs what the tests need, runs all of them, and says at the end what was run and what not.
//!
//! A step that fails does not stop the later ones: one run tells everything that is wrong.

use std::path::PathBuf;
use std::process::Command;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};

use crate::cargo::{cargo, root};
use crate::lab::clock;
use crate::setup;

/// Installs what the tests need and runs them: unit, scenario, integration and kernel tests.
#[derive(clap::Args)]
pub struct Args {
    /// Install what is missing without asking.
    #[arg(long)]
    yes: bool,
    /// Run these steps only (by the first words of their names: unit, integration, docs).
    #[arg(long, value_name = "STEP")]
    only: Vec<String>,
}

/// How a step went.
enum Outcome {
    Passed,
    Skipped(String),
    Failed(String),
}

struct Step {
    name: &'static str,
    outcome: Outcome,
    took: Duration,
}

/// The file in which tests note that they were skipped (`lab::skip`).
const SKIPS: &str = "ANOMALY_SKIPS";

/// Runs the task.
pub fn run(args: &Args) -> Result<()> {
    let skips = root().join(format!("target/skipped-{}", std::process::id()));
    std::fs::create_dir_all(root().join("target"))?;
    std::fs::write(&skips, "")?;
    let mut runner = Runner { args, skips, steps: Vec::new() };
    runner.all();
    runner.summary()
}

struct Runner<'a> {
    args: &'a Args,
    skips: PathBuf,
    steps: Vec<Step>,
}

impl Runner<'_> {
    fn all(&mut self) {
        let yes = self.args.yes;
        self.step("packages", |_| match privileged() {
            Some(why) => Ok(Some(why)),
            None => setup::packages("the tests", setup::LAB, yes).map(|()| None),
        });
        self.step("unit tests", |run| run.cargo(&["test", "--workspace", "--lib", "--bins"], &[]));
        self.step("integration tests (with scenarios, the committed kernel program, and the lab)", |run| {
            run.cargo(&["test", "--package", "anomaly", "--test", "tests"], &[])
        });
        self.step("docs: examples", |run| run.cargo(&["test", "--workspace", "--doc"], &[]));
    }

    fn step(&mut self, name: &'static str, work: impl FnOnce(&mut Self) -> Result<Option<String>>) {
        if !self.args.only.is_empty() && !self.args.only.iter().any(|word| name.starts_with(word.as_str())) {
            return;
        }
        eprintln!("\n== {name}");
        let began: Instant = clock::now();
        let outcome = match work(self) {
            Ok(None) => Outcome::Passed,
            Ok(Some(why)) => Outcome::Skipped(why),
            Err(error) => Outcome::Failed(format!("{error:#}")),
        };
        self.steps.push(Step { name, outcome, took: began.elapsed() });
    }

    fn cargo(&self, words: &[&str], environment: &[(&str, &str)]) -> Result<Option<String>> {
        let mut command = cargo(words);
        command.env(SKIPS, &self.skips).envs(environment.iter().copied());
        status(&mut command)
    }

    fn summary(&self) -> Result<()> {
        let skipped = std::fs::read_to_string(&self.skips).unwrap_or_default();
        let _ = std::fs::remove_file(&self.skips);
        eprintln!("\n== summary");
        for step in &self.steps {
            let seconds = step.took.as_secs();
            match &step.outcome {
                Outcome::Passed => eprintln!("passed   {:>5} s  {}", seconds, step.name),
                Outcome::Skipped(why) => eprintln!("SKIPPED           {}: {why}", step.name),
                Outcome::Failed(why) => eprintln!("FAILED   {:>5} s  {}: {why}", seconds, step.name),
            }
        }
        for line in skipped.lines() {
            let (_, test) = line.split_once(' ').unwrap_or(("", line));
            eprintln!("SKIPPED           test {test}");
        }
        let failed = self.steps.iter().filter(|s| matches!(s.outcome, Outcome::Failed(_))).count();
        if failed > 0 {
            bail!("{failed} of {} steps failed", self.steps.len());
        }
        Ok(())
    }
}

/// Why tests that need root are skipped; `None` when they are not.
fn privileged() -> Option<String> {
    (!rustix::process::geteuid().is_root()).then(|| "needs root; run `cargo xtask test` as root for it".into())
}

fn status(command: &mut Command) -> Result<Option<String>> {
    let status =
        command.status().with_context(|| format!("{} could not be started", command.get_program().display()))?;
    if !status.success() {
        bail!("{status}");
    }
    Ok(None)
}
