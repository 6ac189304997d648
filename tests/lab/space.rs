//! One network namespace, held by a sleeping process.
//!
//! Threads enter it for our own traffic, commands for everybody else's programs.

use std::os::fd::AsFd;
use std::process::Command;
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, Result};
use rustix::thread::{LinkNameSpaceType, move_into_link_name_space};

use super::guardian::Guardian;
use super::process::Process;
use super::{clock, run};

/// A namespace. It ends with the last process in it.
pub struct Space {
    holder: Process,
    /// It has a mount namespace too.
    mounts: bool,
}

impl Space {
    /// A new namespace, with a mount namespace of its own where `mounts`.
    ///
    /// # Errors
    /// When the kernel refuses.
    pub fn new(name: &str, guardian: &Arc<Guardian>, mounts: bool) -> Result<Self> {
        let mut command = Command::new("unshare");
        command.arg("--net");
        if mounts {
            command.arg("--mount");
        }
        command.args(["sleep", "infinity"]);
        let output = guardian.dir().join("namespaces.out");
        let mut holder = Process::start(&format!("the {name}'s namespace"), command, &output, guardian)?;
        let program = format!("/proc/{}/comm", holder.id());
        // unshare has done its work when it has become sleep.
        clock::wait_until(&format!("the {name}'s namespace"), Duration::from_secs(10), || {
            holder.ended().is_some() || std::fs::read_to_string(&program).is_ok_and(|comm| comm.trim() == "sleep")
        })?;
        anyhow::ensure!(holder.ended().is_none(), "no namespace could be made: {}", holder.output());
        Ok(Self { holder, mounts })
    }

    /// The process that holds it: what `nsenter --target` and `ip link set ... netns` take.
    pub fn pid(&self) -> u32 {
        self.holder.id()
    }

    fn link(&self, kind: &str) -> String {
        format!("/proc/{}/ns/{kind}", self.pid())
    }

    /// `program`, to be run in here. It keeps the process id it is started with.
    pub fn command(&self, program: impl AsRef<std::ffi::OsStr>) -> Command {
        self.command_in(self, program)
    }

    /// As [`Space::command`], but in `network`'s network; only the mounts are this one's.
    pub fn command_in(&self, network: &Space, program: impl AsRef<std::ffi::OsStr>) -> Command {
        let mut command = Command::new("nsenter");
        command.arg(format!("--net={}", network.link("net")));
        if self.mounts {
            command.arg(format!("--mount={}", self.link("mnt")));
        }
        // The tests' own environment must not configure the daemon.
        for (key, _) in std::env::vars_os().filter(|(key, _)| key.as_encoded_bytes().starts_with(b"ANOMALY_")) {
            command.env_remove(key);
        }
        command.arg("--").arg(program);
        command
    }

    /// Runs `ip` in here, with words separated by blanks.
    ///
    /// # Errors
    /// When it fails.
    pub fn ip(&self, words: &str) -> Result<String> {
        run(self.command("ip").args(words.split(' ')))
    }

    /// Sets a network sysctl, named by its path under `/proc/sys`.
    ///
    /// # Errors
    /// When the kernel has no such thing.
    pub fn sysctl(&self, path: &str, value: &str) -> Result<()> {
        let file = format!("/proc/sys/{path}");
        self.within(|| std::fs::write(&file, value))?.with_context(|| file.clone())
    }

    /// Runs `work` on a thread of its own in here; threads that it starts are in here too.
    ///
    /// # Errors
    /// When the namespace cannot be entered.
    ///
    /// # Panics
    /// When `work` does.
    pub fn within<T: Send>(&self, work: impl FnOnce() -> T + Send) -> Result<T> {
        let entrance = self.entrance();
        std::thread::scope(|scope| match scope.spawn(move || entrance.within(work)).join() {
            Ok(result) => result,
            Err(panic) => std::panic::resume_unwind(panic),
        })
    }

    /// The way in, for threads that outlive the borrow.
    pub fn entrance(&self) -> Entrance {
        Entrance(self.link("net"))
    }
}

/// The way into a namespace, as long as that lasts.
#[derive(Clone, Debug)]
pub struct Entrance(String);

impl Entrance {
    /// Moves the calling thread into the namespace, for good, and runs `work`.
    ///
    /// # Errors
    /// When the namespace cannot be entered.
    pub fn within<T>(&self, work: impl FnOnce() -> T) -> Result<T> {
        let entrance = std::fs::File::open(&self.0).with_context(|| self.0.clone())?;
        move_into_link_name_space(entrance.as_fd(), Some(LinkNameSpaceType::Network))
            .with_context(|| format!("setns to {}", self.0))?;
        Ok(work())
    }
}
