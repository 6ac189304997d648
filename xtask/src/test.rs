//! Installs what the tests need, runs all of them, and reports at the end which steps ran and which did not.
//!
//! A step that fails does not stop the later ones: one run reports every failure. The tests
//! that make network namespaces run beside the others: each has its own, under names of its own.

use std::path::PathBuf;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};

use crate::cargo::{build_daemon, cargo, root};
use crate::lab::clock;
use crate::release;
use crate::setup::{self, Package, package};

/// Installs what the tests need and runs them: unit, integration (with scenarios, kernel and lab), demo, browser, the
/// compose stack under attack, the life of the package.
#[derive(clap::Args)]
pub struct Args {
    /// Install what is missing without asking.
    #[arg(long)]
    yes: bool,
    /// Only these steps, by the first word of their names: unit, integration, kernel, examples, demo, browser, compose,
    /// package; or dockerfile, which only runs where it is named: a whole optimised build inside an engine.
    #[arg(long, value_name = "STEP", value_parser = STEPS)]
    only: Vec<String>,
    /// Not these steps.
    #[arg(long, value_name = "STEP", value_parser = STEPS)]
    skip: Vec<String>,
}

/// First words of all steps.
const STEPS: [&str; 10] =
    ["packages", "unit", "integration", "kernel", "examples", "demo", "browser", "compose", "package", "dockerfile"];

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
/// What `tests/browser/run.sh` runs, beside python3-venv, which shows in no program.
const BROWSER: &[Package] = &[
    package("chromium", "/usr/bin/chromium"),
    package("nodejs", "node"),
    package("npm", "npm"),
    package("prometheus", "promtool"),
];
/// What other tests than the lab's run.
const TESTS: &[Package] = &[
    package("ipset", "ipset"),
    package("gzip", "gzip"),
    package("faketime", "faketime"),
    package("openssl", "openssl"),
    package("systemd", "systemd-analyze"),
];

/// What the compose test runs.
const ENGINE: &[Package] = &[
    package("docker.io", "dockerd"),
    package("docker-compose", "docker-compose"),
    package("mmdebstrap", "mmdebstrap"),
];

/// Runs the task.
pub fn run(args: &Args) -> Result<()> {
    let skips = root().join(format!("target/skipped-{}", std::process::id()));
    std::fs::create_dir_all(root().join("target"))
        .and_then(|()| std::fs::write(&skips, ""))
        .with_context(|| format!("{} cannot be written; is this your clone?", skips.display()))?;
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
        self.step("packages", |_| {
            if let Some(why) = privileged() {
                return Ok(Some(why));
            }
            setup::packages("the lab of the tests", setup::LAB, yes)?;
            setup::packages("the tests", TESTS, yes).map(|()| None)
        });
        self.step("unit tests", |run| run.cargo(&["test", "--workspace", "--lib", "--bins"], &[]));
        self.step("integration tests: scenarios, sinks, web, kernel (committed object), lab", |run| {
            run.cargo(&["test", "--package", "anomaly", "--test", "tests"], &[])
        });
        self.step("kernel tests with the object built afresh", |run| {
            if let Some(why) = privileged() {
                return Ok(Some(why));
            }
            let object = root().join("target/fresh.bpf.o");
            let mut build = Command::new(std::env::current_exe()?);
            build.args(["build-ebpf", "--output"]).arg(&object).args(yes.then_some("--yes"));
            finish(&mut build)?;
            let object = object.to_str().context("the target directory's path is not UTF-8")?.to_owned();
            let words = ["test", "--package", "anomaly", "--test", "tests", "kernel::"];
            run.cargo(&words, &[("ANOMALY_EBPF_OBJECT", &object)])
        });
        self.step("examples in the documentation", |run| run.cargo(&["test", "--workspace", "--doc"], &[]));
        self.step("demo", |_| {
            if let Some(why) = privileged() {
                return Ok(Some(why));
            }
            let mut demo = Command::new(std::env::current_exe()?);
            finish(demo.args(["demo", "--once"]).args(yes.then_some("--yes"))).map(|()| None)
        });
        self.step("browser: dashboard, schemathesis, promtool, in dry-run", |_| browser(yes));
        self.step("browser: the dashboard under attack, in the lab", |run| {
            if let Some(why) = privileged() {
                return Ok(Some(why));
            }
            let words = ["test", "--package", "anomaly", "--test", "tests", "end_to_end::browser::"];
            run.cargo(&words, &[("ANOMALY_BROWSER_TESTS", "1")])
        });
        self.step("compose: the stack under attack, in an engine of its own", |run| {
            run.engine("compose::", "ANOMALY_COMPOSE_TESTS", yes)
        });
        self.step("package: install, upgrade, purge", |run| run.package(yes));
        if self.args.only.iter().any(|word| word == "dockerfile") {
            self.step("dockerfile: the image, built in it from the sources", |run| {
                run.engine("compose::dockerfile", "ANOMALY_DOCKERFILE_TEST", yes)
            });
        }
    }

    /// Tests in a container engine of their own: those of this name, wanted by this variable.
    fn engine(&self, tests: &str, wanted: &str, yes: bool) -> Result<Option<String>> {
        if let Some(why) = privileged() {
            return Ok(Some(why));
        }
        let missing: Vec<_> = ENGINE.iter().filter(|p| !setup::is_there(p.shows)).map(|p| p.name).collect();
        if !missing.is_empty() && !setup::can_be_installed(&missing) {
            return Ok(Some(format!("no container engine is available: apt has no {}", missing.join(", "))));
        }
        setup::packages("the compose test", ENGINE, yes)?;
        self.cargo(&["test", "--package", "anomaly", "--test", "tests", tests], &[(wanted, "1")])
    }

    /// Packs what the other tests run, because an optimised build takes longer than all of this.
    fn package(&self, yes: bool) -> Result<Option<String>> {
        if let Some(why) = privileged() {
            return Ok(Some(why));
        }
        setup::packages("the package test", &[setup::package("mmdebstrap", "mmdebstrap")], yes)?;
        let program = build_daemon(false)?;
        let pack = |version| -> Result<String> {
            let path = release::package_for_tests(&program, version, yes)?;
            Ok(path.to_str().context("the target directory's path is not UTF-8")?.to_owned())
        };
        let (first, next) = (pack("0.0.1-1")?, pack("0.0.2-1")?);
        let words = ["test", "--package", "anomaly", "--test", "tests", "package::"];
        self.cargo(&words, &[("ANOMALY_DEB", &first), ("ANOMALY_DEB_NEXT", &next)])
    }

    fn step(&mut self, name: &'static str, work: impl FnOnce(&mut Self) -> Result<Option<String>>) {
        let first = name.split([' ', ':']).next().unwrap_or(name);
        debug_assert!(STEPS.contains(&first), "{first} is not in the list");
        let named = |words: &[String]| words.iter().any(|word| word == first);
        if (!self.args.only.is_empty() && !named(&self.args.only)) || named(&self.args.skip) {
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
        finish(&mut command).map(|()| None)
    }

    fn summary(&self) -> Result<()> {
        let skipped = std::fs::read_to_string(&self.skips).unwrap_or_default();
        let _ = std::fs::remove_file(&self.skips);
        eprintln!("\n== summary");
        for step in &self.steps {
            let seconds = step.took.as_secs();
            match &step.outcome {
                Outcome::Passed => eprintln!("passed   {seconds:>5} s  {}", step.name),
                Outcome::Skipped(why) => eprintln!("SKIPPED           {}: {why}", step.name),
                Outcome::Failed(why) => eprintln!("FAILED   {seconds:>5} s  {}: {why}", step.name),
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

/// Dashboard and API over a real daemon in dry-run: in a browser, by schemathesis and promtool. Needs no root where all
/// of that is installed.
fn browser(yes: bool) -> Result<Option<String>> {
    let venv = Command::new("python3").args(["-c", "import ensurepip"]).stderr(Stdio::null()).status();
    let mut missing: Vec<&str> = BROWSER.iter().filter(|p| !setup::is_there(p.shows)).map(|p| p.name).collect();
    if !venv.is_ok_and(|status| status.success()) {
        missing.push("python3-venv");
    }
    if !missing.is_empty() {
        if let Some(why) = privileged() {
            return Ok(Some(format!("{why} (it installs {})", missing.join(" "))));
        }
        setup::install("the browser tests", &missing, yes)?;
    }
    let mut script = Command::new("sh");
    script.arg(root().join("tests/browser/run.sh")).env("ANOMALY_BIN", build_daemon(false)?);
    script.env("npm_config_cache", root().join("target/npm"));
    finish(&mut script).map(|()| None)
}

/// Why tests that need root are skipped; `None` when they are not.
fn privileged() -> Option<String> {
    (!rustix::process::geteuid().is_root()).then(|| "needs root; run `cargo xtask test` as root for it".into())
}

/// Runs a command to its end, with our own output.
fn finish(command: &mut Command) -> Result<()> {
    let name = command.get_program().display().to_string();
    let status = command.status().with_context(|| format!("{name} could not be started"))?;
    if !status.success() {
        bail!("{name}: {status}");
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use clap::Parser;

    use super::*;

    #[derive(Parser)]
    struct Line {
        #[command(flatten)]
        args: Args,
    }

    #[test]
    fn a_misspelt_step_is_refused_before_anything_runs() {
        let parse = |words: &[&str]| Line::try_parse_from([&["test"], words].concat()).map(|line| line.args);
        for flag in ["--only", "--skip"] {
            assert!(parse(&[flag, "integration"]).is_ok());
            let Err(error) = parse(&[flag, "intergation"]) else { panic!("{flag} takes a step that is not there") };
            assert!(error.to_string().contains("'integration'"), "{error}");
        }
    }
}
