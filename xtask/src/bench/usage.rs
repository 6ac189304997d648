//! What a process has used, as the kernel counts it.

use std::fs::File;
use std::process::{Command, Stdio};
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use wait4::Wait4;

/// What a running process has used so far.
#[derive(Clone, Copy, Debug)]
pub struct Usage {
    /// Of all its threads, in user space and in the kernel.
    pub cpu: Duration,
    /// Resident memory.
    pub rss_bytes: u64,
    /// The most it ever was.
    pub peak_bytes: u64,
}

impl Usage {
    /// Of a process; `/proc/PID/stat` and `status`.
    ///
    /// # Errors
    /// When it does not run.
    pub fn of(pid: u32) -> Result<Self> {
        let read = |name: &str| {
            let path = format!("/proc/{pid}/{name}");
            std::fs::read_to_string(&path).with_context(|| path.clone())
        };
        let (stat, status) = (read("stat")?, read("status")?);
        // The name, which is in parentheses, may hold blanks; utime and stime are the 14th and 15th field.
        let fields: Vec<&str> = stat.rsplit_once(')').map_or("", |(_, rest)| rest).split_whitespace().collect();
        let ticks: u64 =
            fields.get(11..13).context("stat is too short")?.iter().filter_map(|f| f.parse::<u64>().ok()).sum();
        let hertz = rustix::param::clock_ticks_per_second();
        let bytes = |key: &str| -> Result<u64> {
            let line = status.lines().find_map(|line| line.strip_prefix(key)).with_context(|| format!("no {key}"))?;
            Ok(line.trim_end_matches("kB").trim().parse::<u64>()? * 1024)
        };
        Ok(Self {
            cpu: Duration::from_secs_f64(ticks as f64 / hertz as f64),
            rss_bytes: bytes("VmRSS:")?,
            peak_bytes: bytes("VmHWM:")?,
        })
    }
}

/// A process that has ended.
pub struct Ended {
    /// What it wrote to standard output.
    pub output: String,
    /// From its start to its end.
    pub wall: Duration,
    /// Of all its threads.
    pub cpu: Duration,
    /// Most resident memory.
    pub peak_bytes: u64,
}

/// Runs a command to its end; standard input is `input` or empty.
///
/// # Errors
/// When it fails.
pub fn run(command: &mut Command, input: Option<File>) -> Result<Ended> {
    let name = command.get_program().display().to_string();
    command.stdin(input.map_or_else(Stdio::null, Stdio::from)).stdout(Stdio::piped());
    let began = crate::lab::clock::now();
    let mut child = command.spawn().with_context(|| format!("{name} could not be started"))?;
    let mut output = String::new();
    if let Some(stdout) = child.stdout.as_mut() {
        std::io::Read::read_to_string(stdout, &mut output).with_context(|| format!("output of {name}"))?;
    }
    let used = child.wait4()?;
    let wall = began.elapsed();
    ensure!(used.status.success(), "{command:?}: {}", used.status);
    Ok(Ended { output, wall, cpu: used.rusage.utime + used.rusage.stime, peak_bytes: used.rusage.maxrss })
}
