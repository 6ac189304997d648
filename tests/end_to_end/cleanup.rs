//! A lab leaves nothing behind, whatever becomes of the process that made it.
//!
//! The test runs itself once more as that process; an environment variable marks it.

use std::io::{BufRead, BufReader};
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use rustix::process::{Pid, Signal, kill_process};

use crate::lab::client::{Plan, Traffic};
use crate::lab::nginx::Nginx;
use crate::lab::{ATTACKER, Lab, clock, ready};

const CHILD: &str = "ANOMALY_LAB_IS_CHILD";

#[test]
fn a_killed_lab_leaves_nothing() -> Result<()> {
    if !ready("a_killed_lab_leaves_nothing") {
        return Ok(());
    }
    if std::env::var_os(CHILD).is_some() {
        return be_killed();
    }
    for signal in [Signal::INT, Signal::TERM, Signal::KILL] {
        let mut child = Command::new(std::env::current_exe()?)
            .args(["end_to_end::cleanup::a_killed_lab_leaves_nothing", "--exact", "--nocapture"])
            .env(CHILD, "1")
            .stdout(Stdio::piped())
            .spawn()?;
        let output = BufReader::new(child.stdout.take().context("no output")?);
        let line = output.lines().map_while(Result::ok).find(|line| line.contains("LAB ")).context("no lab")?;
        let mut words = line.split("LAB ").nth(1).context("no lab")?.split(' ');
        let dir = words.next().context("no directory")?.to_owned();
        let holder = words.next().context("no process")?.to_owned();
        let in_it = processes_of(&dir)?;
        ensure!(!in_it.is_empty(), "the lab runs nothing in {dir}");
        let pid = Pid::from_raw(child.id().cast_signed()).context("no process id")?;
        kill_process(pid, signal)?;
        child.wait()?;
        clock::wait_until("the guardian to clean up", Duration::from_secs(10), || !Path::new(&dir).exists())?;
        clock::wait_until("its processes to end", Duration::from_secs(10), || {
            processes_of(&dir).is_ok_and(|left| left.is_empty()) && ended(&holder)
        })
        .with_context(|| format!("after {signal:?}, of {in_it:?} there are still {:?}", processes_of(&dir)))?;
    }
    Ok(())
}

/// The child: a lab at work until somebody ends it.
fn be_killed() -> Result<()> {
    let lab = Lab::new("")?;
    lab.write_log("")?;
    let _nginx = Nginx::start(&lab)?;
    let _load = Traffic::start(&lab.attacker, Plan::new(ATTACKER.v4(), 20.0));
    println!("LAB {} {} ", lab.dir().display(), lab.server.pid());
    std::thread::sleep(Duration::from_secs(60));
    Ok(())
}

/// Processes whose command line names this directory, the guardian apart.
fn processes_of(dir: &str) -> Result<Vec<String>> {
    let mut found = Vec::new();
    for entry in std::fs::read_dir("/proc")?.flatten() {
        let Ok(line) = std::fs::read(entry.path().join("cmdline")) else { continue };
        let line = String::from_utf8_lossy(&line).replace('\0', " ");
        if line.contains(dir) && !line.contains("guardian") {
            found.push(line);
        }
    }
    Ok(found)
}

/// A process that is gone, or waits only for its parent to take notice.
fn ended(pid: &str) -> bool {
    let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
    stat.is_empty() || stat.contains(") Z ")
}
