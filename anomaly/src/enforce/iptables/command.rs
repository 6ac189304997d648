//! Programs of others, run without a shell, with an end in sight.
//!
//! A child gets its arguments as a list, its input and output as files in
//! memory (so that neither side can block on a full pipe), and a limit of time:
//! one that hangs is killed together with its children.

use std::ffi::OsStr;
use std::fs::File;
use std::io::{Read, Seek, SeekFrom, Write};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::time::Duration;

use crate::enforce::EnforceError;

/// Where administrators' programs are when PATH, for once, does not say so.
const USUAL: [&str; 3] = ["/usr/sbin", "/sbin", "/usr/local/sbin"];

/// Longest time the lock of xtables is waited for, in seconds (`-w`).
pub(super) const LOCK_WAIT_SECS: u32 = 5;

/// Longest life of a child: the wait for the lock, and work.
pub(super) const TIME_LIMIT: Duration = Duration::from_secs(12);

/// What a child said; only success gets this far.
#[derive(Debug)]
pub(super) struct Said {
    /// Its standard output.
    pub stdout: String,
}

/// How a child ended that was started, and not killed.
#[derive(Debug)]
struct Ended {
    status: ExitStatus,
    stdout: String,
    stderr: String,
}

/// Finds `program` in the directories of `path` (the syntax of PATH).
///
/// # Errors
/// [`EnforceError::Missing`] naming `package`, and where the program is when only PATH is wrong.
pub(super) fn find(program: &str, package: &'static str, path: &OsStr) -> Result<PathBuf, EnforceError> {
    let executable = |dir: &Path| {
        let candidate = dir.join(program);
        rustix::fs::access(&candidate, rustix::fs::Access::EXEC_OK).is_ok().then_some(candidate)
    };
    std::env::split_paths(path).find_map(|dir| executable(&dir)).ok_or_else(|| EnforceError::Missing {
        program: program.into(),
        package,
        elsewhere: USUAL.iter().find_map(|dir| executable(Path::new(dir))).map(|p| p.display().to_string()),
    })
}

/// Runs `program` to its end.
///
/// # Errors
/// [`EnforceError::Command`] with the command line and what it printed, when it cannot be started,
/// fails, or has not ended after `limit` (it is killed then).
pub(super) fn run(program: &Path, args: &[&str], input: Option<&str>, limit: Duration) -> Result<Said, EnforceError> {
    let Ended { status, stdout, stderr } = end(program, args, input, limit)?;
    if status.success() {
        return Ok(Said { stdout });
    }
    let (command, message) = (line(program, args), complaint(&stderr, &stdout, status));
    Err(EnforceError::Command { command, message })
}

/// Runs a program that answers by ending with 0 (yes) or 1 (no).
///
/// # Errors
/// As [`run`], for any other end.
pub(super) fn ask(program: &Path, args: &[&str], limit: Duration) -> Result<bool, EnforceError> {
    let Ended { status, stdout, stderr } = end(program, args, None, limit)?;
    match status.code() {
        Some(0) => Ok(true),
        Some(1) => Ok(false),
        _ => {
            let (command, message) = (line(program, args), complaint(&stderr, &stdout, status));
            Err(EnforceError::Command { command, message })
        }
    }
}

fn end(program: &Path, args: &[&str], input: Option<&str>, limit: Duration) -> Result<Ended, EnforceError> {
    let failed = |message: String| EnforceError::Command { command: line(program, args), message };
    let file = |text: Option<&str>| memory_file(text).map_err(|e| failed(format!("no memory for its output: {e}")));
    let (mut stdout, mut stderr) = (file(None)?, file(None)?);
    let duplicate = |f: &File| f.try_clone().map_err(|e| failed(format!("no file descriptor: {e}")));
    let stdin = match input {
        Some(text) => Stdio::from(file(Some(text))?),
        None => Stdio::null(),
    };
    let mut child = Command::new(program)
        .args(args)
        .env("LC_ALL", "C")
        .stdin(stdin)
        .stdout(duplicate(&stdout)?)
        .stderr(duplicate(&stderr)?)
        .process_group(0)
        .spawn()
        .map_err(|e| failed(format!("cannot be started: {e}")))?;
    let ended = wait(&mut child, limit).map_err(|e| failed(format!("cannot be waited for: {e}")))?;
    let Some(status) = ended else {
        kill(&mut child);
        return Err(failed(format!("did not end within {} s and was killed", limit.as_secs())));
    };
    let read = |f: &mut File| contents(f).map_err(|e| failed(format!("its output cannot be read: {e}")));
    Ok(Ended { status, stdout: read(&mut stdout)?, stderr: read(&mut stderr)? })
}

/// The command line, for errors; arguments are our own and hold no blanks.
fn line(program: &Path, args: &[&str]) -> String {
    let name = program.file_name().unwrap_or(program.as_os_str()).to_string_lossy();
    std::iter::once(name.as_ref()).chain(args.iter().copied()).collect::<Vec<_>>().join(" ")
}

/// What to tell of a child that failed: its own words, else how it ended.
fn complaint(stderr: &str, stdout: &str, status: ExitStatus) -> String {
    let words = if stderr.trim().is_empty() { stdout.trim() } else { stderr.trim() };
    if words.is_empty() {
        return status.to_string();
    }
    // Several lines of one tool make one line of ours; a flood of them is cut.
    let words: String = words.lines().map(str::trim).collect::<Vec<_>>().join("; ");
    words.chars().take(400).collect()
}

fn memory_file(text: Option<&str>) -> std::io::Result<File> {
    let fd = rustix::fs::memfd_create("anomaly", rustix::fs::MemfdFlags::CLOEXEC)?;
    let mut file = File::from(fd);
    if let Some(text) = text {
        file.write_all(text.as_bytes())?;
        file.seek(SeekFrom::Start(0))?;
    }
    Ok(file)
}

fn contents(file: &mut File) -> std::io::Result<String> {
    file.seek(SeekFrom::Start(0))?;
    let mut bytes = Vec::new();
    file.read_to_end(&mut bytes)?;
    Ok(String::from_utf8_lossy(&bytes).into_owned())
}

/// Waits at most `limit`; `None` when the child still runs.
///
/// Asks again and again instead of waiting on a pidfd, because the kernels that need this
/// enforcer most are older than pidfds (5.3). It counts its own pauses, because it has no clock.
fn wait(child: &mut Child, limit: Duration) -> std::io::Result<Option<ExitStatus>> {
    let mut nap = Duration::from_micros(250);
    let mut waited = Duration::ZERO;
    loop {
        if let Some(status) = child.try_wait()? {
            return Ok(Some(status));
        }
        if waited >= limit {
            return Ok(None);
        }
        std::thread::sleep(nap);
        waited += nap;
        nap = (nap * 5 / 4).min(Duration::from_millis(10));
    }
}

/// Kills the child and what it started (they share a process group), and reaps it if the kernel
/// lets go of it: one that hangs in the kernel is left behind rather than waited for.
fn kill(child: &mut Child) {
    if let Some(group) = rustix::process::Pid::from_raw(child.id().cast_signed()) {
        let _ = rustix::process::kill_process_group(group, rustix::process::Signal::KILL);
    }
    let _ = child.kill();
    if !matches!(wait(child, Duration::from_secs(1)), Ok(Some(_))) {
        tracing::warn!(pid = child.id(), "a killed child does not go away");
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sh(script: &str, input: Option<&str>, limit: Duration) -> Result<Said, EnforceError> {
        run(Path::new("/bin/sh"), &["-c", script], input, limit)
    }

    #[test]
    fn carries_more_than_a_pipe_holds_both_ways() {
        let text = "0123456789abcdef\n".repeat(100_000);
        let said = sh("cat", Some(&text), TIME_LIMIT).expect("cat works");
        assert_eq!(said.stdout, text);
    }

    #[test]
    fn tells_what_a_failed_child_said() {
        let error = sh("echo first >&2; echo second >&2; exit 3", None, TIME_LIMIT).expect_err("it failed");
        assert!(error.to_string().ends_with(": first; second"), "{error}");
        let error = sh("exit 3", None, TIME_LIMIT).expect_err("it failed");
        assert!(error.to_string().contains("exit status: 3"), "{error}");
    }

    #[test]
    fn kills_a_child_that_hangs_and_what_it_started() {
        let dir = tempfile::tempdir().expect("a directory");
        let pid_file = dir.path().join("pid");
        let script = format!("sleep 600 & echo $! > {}; wait", pid_file.display());
        let error = sh(&script, None, Duration::from_millis(500)).expect_err("it hangs");
        assert!(error.to_string().contains("did not end within 0 s"), "{error}");
        let pid = std::fs::read_to_string(&pid_file).expect("the child wrote it");
        // It has been sent the signal; on a busy machine it takes a moment to die of it.
        let gone = (0..1000).any(|_| {
            let stat = std::fs::read_to_string(format!("/proc/{}/stat", pid.trim())).unwrap_or_default();
            let gone = stat.is_empty() || stat.contains(") Z");
            if !gone {
                std::thread::sleep(Duration::from_millis(10));
            }
            gone
        });
        assert!(gone, "the grandchild still runs");
    }

    #[test]
    fn names_the_package_of_a_missing_program() {
        let empty = tempfile::tempdir().expect("a directory");
        let error = find("no-such-program", "iptables", empty.path().as_os_str()).expect_err("it is missing");
        assert_eq!(error.to_string(), "no-such-program is not installed: apt-get install iptables");
        let error = run(Path::new("/nowhere/iptables"), &["-S"], None, TIME_LIMIT).expect_err("it is missing");
        assert!(error.to_string().starts_with("iptables -S: cannot be started"), "{error}");
    }
}
